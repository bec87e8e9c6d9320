"""Completions of prompts by a language model, and who prefers which: Bradley–Terry labels from
mixtures of two rewards.

Section 7.1 and Appendix F, arXiv:2502.01930: r*(alpha) = alpha r1 + (1 - alpha) r2, or
r1^alpha r2^(1 - alpha).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor, nn

from llm.models import check_length
from theory.policy import convex_mixture, geometric_mixture
from theory.precision import wide, widest

SETTINGS = ("convex", "geometric", "groups")

Array = NDArray[np.float64]
Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Completions:
    """Prompts and what they were continued with, as rows of tokens; a completion that ended has its
    end-of-sequence token."""

    prompts: Rows
    completions: Rows

    def batch(self, rows: Iterable[int], pad: int) -> dict[str, Tensor]:
        """Some rows as `llm.logprobs.sequence_logprobs` takes them."""
        pairs = [(self.prompts[row], self.completions[row]) for row in rows]
        ids = padded([[*prompt, *completion] for prompt, completion in pairs], pad)
        completion_mask = padded(
            [[0] * len(prompt) + [1] * len(completion) for prompt, completion in pairs], 0
        )
        attention_mask = padded(
            [[1] * (len(prompt) + len(completion)) for prompt, completion in pairs], 0
        )
        return {
            "input_ids": ids,
            "attention_mask": attention_mask,
            "completion_mask": completion_mask,
        }

    def texts(self, eos: int) -> list[list[int]]:
        """Prompt and completion of each row without the end-of-sequence token, as the reward model
        reads them."""
        pairs = zip(self.prompts, self.completions, strict=True)
        return [
            [*prompt, *(completion[:-1] if completion[-1] == eos else completion)]
            for prompt, completion in pairs
        ]


def padded(rows: Rows, value: int, *, left: bool = False) -> Tensor:
    """Rows of numbers as one tensor (n, T), filled up with `value` on the right, or on the left."""
    longest = max(len(row) for row in rows)
    if left:
        return torch.tensor([[*[value] * (longest - len(row)), *row] for row in rows])
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def take_prompts(rows: Rows, tokens: int) -> list[list[int]]:
    """The first `tokens` tokens of each text that goes on after them.

    Raises:
        ValueError: no text is that long.
    """
    prompts = [list(row[:tokens]) for row in rows if len(row) > tokens]
    if not prompts:
        raise ValueError(
            f"no text has more than {tokens} tokens, the length of a prompt: take longer texts or"
            " shorter prompts."
        )
    return prompts


def draw_uniforms(rows: int, steps: int, seed: int) -> Tensor:
    """The random numbers (rows, steps) in [0, 1) of `complete`."""
    return torch.rand(
        (rows, steps), generator=torch.Generator().manual_seed(seed), dtype=widest("cpu")
    )


@torch.no_grad()
def complete(
    model: nn.Module,
    prompts: Rows,
    uniforms: Tensor,
    *,
    eos: int | None,
    pad: int,
    temperature: float = 1.0,
    batch_size: int = 256,
) -> Completions:
    """Sample a completion of every prompt from softmax(logits / temperature) (top-k 0, top-p 1), at
    most N tokens.

    Row i inverts the cumulative distributions at uniforms[i]. It depends on no other row:
    completions are the same whatever the batch size (up to rounding in the model), and those of two
    models can be compared row by row.

    Args:
        prompts: n rows of tokens.
        uniforms: (n, N) numbers in [0, 1).
        eos: ends a completion; without it all have N tokens.
        temperature: 1 is the model's own distribution; smaller is closer to its likeliest tokens.

    Raises:
        ValueError: the model has fewer positions than the longest text could have tokens, or the
            temperature is not positive.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(
            f"the temperature must be positive and finite, got {temperature}: 1 is the model's own"
            " distribution."
        )
    check_length(model.config, max(map(len, prompts)) + uniforms.shape[1])
    training = model.training
    model.eval()
    completions: list[list[int]] = []
    for start in range(0, len(prompts), batch_size):
        rows = slice(start, start + batch_size)
        completions += _continue(model, prompts[rows], uniforms[rows], eos, pad, temperature)
    model.train(training)
    return Completions(prompts, completions)


def _continue(
    model: nn.Module, prompts: Rows, uniforms: Tensor, eos: int | None, pad: int, temperature: float
) -> list[list[int]]:
    device = next(model.parameters()).device
    step = padded(prompts, pad, left=True).to(device)
    attention = padded([[1] * len(prompt) for prompt in prompts], 0, left=True).to(device)
    ragged = bool((attention == 0).any())
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    cache, tokens = None, torch.zeros(uniforms.shape, dtype=torch.long)
    rows = torch.arange(len(prompts))  # those that the model still goes on with
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    for k in range(uniforms.shape[1]):
        # without padding the model's own positions and mask are right, also for models that take no
        # positions
        more = {"attention_mask": attention, "position_ids": positions} if ragged else {}
        output = model(input_ids=step, past_key_values=cache, use_cache=True, **more)
        cache = output.past_key_values
        # in double precision, where there is: in single, the sum over a large vocabulary loses the
        # tail of the distribution
        cumulative = torch.softmax(wide(output.logits[:, -1]) / temperature, -1).cumsum(-1)
        u = uniforms[rows, k].to(cumulative.dtype).to(device)
        target = u[:, None] * cumulative[:, -1:]
        step = torch.searchsorted(cumulative, target, right=True).clamp(
            max=cumulative.shape[-1] - 1
        )
        attention, positions = (
            torch.cat([attention, torch.ones_like(step)], 1),
            positions[:, -1:] + 1,
        )
        tokens[rows, k] = step[:, 0].cpu()
        ended |= tokens[:, k] == eos
        if ended.all():
            break
        alive = ~ended[rows]
        if alive.sum() <= len(rows) // 2 and hasattr(cache, "batch_select_indices"):
            kept = alive.nonzero()[:, 0]
            rows, kept = rows[kept], kept.to(device)
            cache.batch_select_indices(kept)
            step, attention, positions = step[kept], attention[kept], positions[kept]
    written = [row[: k + 1] for row in tokens.tolist()]
    return [row[: row.index(eos) + 1] if eos in row else row for row in written]


# ------------------------------------------------------------------------------------------- labels
def mixed_reward(
    rewards: Array, setting: str, alpha: float, minority: NDArray[np.bool_] | None = None
) -> Array:
    """Reward (...,) at weight alpha of r1, from r1 and r2 (..., 2), both in (0, 1).

    * convex: alpha r1 + (1 - alpha) r2.
    * geometric: r1^alpha r2^(1 - alpha).
    * groups: annotators of the prompts of a minority (mask, broadcast against ...) go by r1, those
      of all others by r2. It does not depend on alpha, which in this setting is the minority's
      share of the prompts.

    Raises:
        ValueError: an unknown setting, alpha outside [0, 1], or no mask of the minority.
    """
    if setting == "convex":
        return convex_mixture(rewards, np.array([alpha, 1 - alpha]))
    if setting == "geometric":
        return geometric_mixture(rewards, np.array([alpha, 1 - alpha]))
    if setting != "groups":
        raise ValueError(f"unknown setting {setting!r}; choose one of {', '.join(SETTINGS)}.")
    if minority is None:
        raise ValueError("the setting groups needs to know which prompts belong to the minority.")
    return np.where(minority, rewards[..., 0], rewards[..., 1])


def bradley_terry(
    first: Array, second: Array, seed: np.random.SeedSequence | int
) -> NDArray[np.bool_]:
    """Whether the first response is preferred: with probability sigma(r(first) - r(second)) for
    each pair (n,)."""
    return np.random.default_rng(seed).random(len(first)) < expit(first - second)


def has_cue(tokenizer: Any, prompts: Rows, cues: Sequence[str]) -> NDArray[np.bool_]:
    """Which prompts hold one of the words (n,): those whose annotators are the minority."""
    return np.array(
        [not set(cues).isdisjoint(text.split()) for text in tokenizer.batch_decode(list(prompts))]
    )
