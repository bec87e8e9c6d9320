"""The stages that the experiments on language models share: prompts, completions, scores, pairs,
policies, judgements."""
