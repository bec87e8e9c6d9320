"""ArmoRM (Wang et al., arXiv:2406.12845) as a module of this project, without the Python code that
comes with its weights.

A Llama reads the conversation. A linear layer on the last token gives the rewards of 19 objectives;
a gate that sees only the prompt weighs them into one score, after a matrix that takes the verbosity
out of them:

    score = sum_i gate_i (rewards @ reward_transform_matrix)_i

Names and shapes of the weights, the gate's position and its temperature are those of
RLHFlow/ArmoRM-Llama3-8B-v0.1. The published weights have not been loaded here: the tests run on
small random ones in the same files.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

# <|eot_id|> <|start_header_id|> assistant <|end_header_id|> "\n\n" in the tokens of Llama 3
ANSWER = (128009, 128006, 78191, 128007, 271)
OBJECTIVES = 19


class Gate(nn.Module):
    """The weights (b, k) of k objectives from hidden states (b, width): an MLP, a softmax with a
    temperature, a scale."""

    def __init__(
        self, width: int, hidden: int, depth: int, objectives: int, temperature: float
    ) -> None:
        super().__init__()
        sizes = [width, *[hidden] * depth]
        self.layers = nn.ModuleList(
            nn.Linear(a, b) for a, b in zip(sizes, [*sizes[1:], objectives], strict=True)
        )
        self.logit_scale = nn.Parameter(torch.ones(1))
        self.temperature = temperature

    def forward(self, states: Tensor) -> Tensor:
        """Weights (b, k), non-negative; they add up to `logit_scale`."""
        *hidden, last = self.layers
        for layer in hidden:
            states = torch.relu(layer(states))
        return torch.softmax(last(states) / self.temperature, -1) * self.logit_scale


class ArmoRM(LlamaPreTrainedModel):
    """The reward model; `from_pretrained` takes the hub's name or the folder of a snapshot."""

    config_class = LlamaConfig
    # what is read off the hidden states is as precise as in the training of the heads, also when
    # the backbone is in bfloat16
    _keep_in_fp32_modules_strict = ("regression_layer", "reward_transform_matrix", "gating")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        objectives = getattr(config, "num_objectives", OBJECTIVES)
        self.model = LlamaModel(config)
        self.regression_layer = nn.Linear(config.hidden_size, objectives, bias=False)
        self.reward_transform_matrix = nn.Parameter(torch.eye(objectives), requires_grad=False)
        self.gating = Gate(
            config.hidden_size,
            getattr(config, "gating_hidden_dim", 1024),
            getattr(config, "gating_n_hidden", 3),
            objectives,
            getattr(config, "gating_temperature", 10.0),
        )
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        """Rewards of the objectives, before the matrix, and the score as the last column: `logits`
        (b, k + 1), float32.

        Args:
            input_ids: (b, T) conversations that end with an answer, padded on the right.
            attention_mask: (b, T) in {0, 1}.

        Raises:
            ValueError: there is no answer in a conversation.
        """
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        rows = torch.arange(len(input_ids), device=states.device)
        rewards = self.regression_layer(states[rows, attention_mask.sum(1) - 1].float())
        gate = self.gating(states[rows, answer_position(input_ids)].float())
        score = (gate * (rewards @ self.reward_transform_matrix)).sum(1, keepdim=True)
        return SequenceClassifierOutput(logits=torch.cat([rewards, score], 1))


def answer_position(input_ids: Tensor) -> Tensor:
    """Where the last answer's header starts (b,): the end of the turn before it, the last token
    that knows only of the prompt.

    Raises:
        ValueError: a row (T,) of the tokens (b, T) has no such header.
    """
    header = torch.tensor(ANSWER, device=input_ids.device)
    windows = (
        input_ids.unfold(1, len(ANSWER), 1)
        if input_ids.shape[1] >= len(ANSWER)
        else input_ids[:, :0, None]
    )
    found = (windows == header).all(-1)
    missing = ~found.any(1)
    if missing.any():
        raise ValueError(
            f"{int(missing.sum())} of {len(found)} texts have no header of an assistant's answer"
            f" (tokens {ANSWER}): the chat template is not that of Llama 3. Use the tokenizer that"
            " comes with ArmoRM."
        )
    return found.shape[1] - 1 - found.flip(1).int().argmax(1)
