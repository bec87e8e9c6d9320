"""How far a policy is from its reference, estimated on completions that the policy itself
writes."""

from collections.abc import Sequence
from contextlib import nullcontext

from torch import nn
from transformers import PreTrainedTokenizerBase

from llm.data.tokens import padding_token
from llm.generate import complete, draw_uniforms
from llm.judges.evaluate import completion_logprobs, mean_of


def kl_on_own_samples(
    policy: nn.Module,
    reference: nn.Module | None,
    prompts: Sequence[list[int]],
    *,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    seed: int,
    batch_size: int,
) -> dict[str, float]:
    """KL(policy || reference) per completion of at most `length` tokens, in nats, with its standard
    error.

    The mean over one completion of each prompt of log pi(y|x) - log pi_ref(y|x). The same seed
    gives the same random numbers.

    Args:
        policy: unwrapped.
        reference: None for a policy with adapters, whose reference is itself without them.
    """
    uniforms = draw_uniforms(len(prompts), length, seed)
    pad = padding_token(tokenizer)
    written = complete(
        policy, list(prompts), uniforms, eos=tokenizer.eos_token_id, pad=pad, batch_size=batch_size
    )
    own = completion_logprobs(policy, written, pad, batch_size)
    without = policy.disable_adapter() if reference is None else nullcontext()  # type: ignore[operator]
    with without:
        other = completion_logprobs(
            policy if reference is None else reference, written, pad, batch_size
        )
    kl = mean_of(own - other)
    return {"kl_to_reference": kl.value, "kl_to_reference_error": kl.error}
