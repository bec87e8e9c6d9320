"""What a trained policy is worth when the preferences shift, and how far it is from the model it
started from.

All numbers come from the policy's own samples. With the same uniform numbers for all policies their
samples are paired, so that differences between policies have less noise than each has alone.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llm.generate import Completions, Rows, complete, mixed_reward
from llm.judges.emotion import emotion_probabilities
from llm.logprobs import head_can_be_fused, sequence_logprobs

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """One completion of each of n prompts. emotions: (n, 5) probabilities. log_ratio: (n,) log
    pi(y|x) - log pi_sft(y|x)."""

    emotions: Array
    log_ratio: Array


@dataclass(frozen=True)
class Mean:
    """A mean over samples and its standard error."""

    value: float
    error: float


def sample_policy(
    policy: nn.Module,
    start: nn.Module,
    judge: nn.Module,
    prompts: Rows,
    uniforms: Tensor,
    *,
    eos: int,
    pad: int,
    batch_size: int = 256,
) -> Samples:
    """Complete every prompt with the policy, score the texts with the judge, and compare with the
    model that it started from."""
    completions = complete(policy, prompts, uniforms, eos=eos, pad=pad, batch_size=batch_size)
    own, other = (
        completion_logprobs(model, completions, pad, batch_size) for model in (policy, start)
    )
    ratio = own - other
    return Samples(
        emotion_probabilities(judge, completions.texts(eos), pad, batch_size=batch_size), ratio
    )


@torch.no_grad()
def completion_logprobs(
    model: nn.Module,
    completions: Completions,
    pad: int,
    batch_size: int = 256,
    *,
    fused: bool | None = None,
    temperature: float = 1.0,
) -> Array:
    """log pi(y|x) of each completion (n,), in nats; `fused` and `temperature` as
    `llm.logprobs.sequence_logprobs` has them.

    Batches are of completions of like length, whatever their order, so that little is padding.
    fused None: find out.
    """
    training = model.training
    if fused is None:
        fused = head_can_be_fused(model)
    model.eval()
    device = next(model.parameters()).device
    lengths = [
        len(x) + len(y) for x, y in zip(completions.prompts, completions.completions, strict=True)
    ]
    found = np.empty(len(lengths))
    order = np.argsort(lengths, kind="stable")[
        ::-1
    ]  # longest first: what fits, fits from the start
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = {name: tensor.to(device) for name, tensor in completions.batch(rows, pad).items()}
        scored = sequence_logprobs(model, batch, fused=fused, temperature=temperature)
        found[rows] = scored.cpu().numpy()
    model.train(training)
    return found


def rewards_under_shift(
    rewards: Array, setting: str, alphas: Array, minority: NDArray[np.bool_]
) -> pd.DataFrame:
    """Expected reward at every alpha of the grid, with its standard error over the samples: columns
    alpha, reward, reward_error.

    In the setting groups alpha is the share of prompts of the minority: the reward is linear
    between the mean of the majority (alpha = 0) and that of the minority (alpha = 1), so that its
    least value over alpha is that of the worst group.

    Args:
        rewards: (n, 2) rewards r1, r2 of the samples.
        minority: (n,) which prompts belong to the minority.

    Raises:
        ValueError: in the setting groups, one of the groups has no prompts.
    """
    rows = []
    for alpha in alphas:
        if setting == "groups":
            if minority.all() or not minority.any():
                raise ValueError(
                    f"{int(minority.sum())} of {len(minority)} prompts of the evaluation are of the"
                    " minority: both groups need some. Take more prompts, or other cue words."
                )
            few, many = (
                mean_of(mixed_reward(rewards[group], setting, alpha, minority[group]))
                for group in (minority, ~minority)
            )
            at = Mean(
                alpha * few.value + (1 - alpha) * many.value,
                float(np.hypot(alpha * few.error, (1 - alpha) * many.error)),
            )
        else:
            at = mean_of(mixed_reward(rewards, setting, alpha))
        rows.append((alpha, at.value, at.error))
    return pd.DataFrame(rows, columns=["alpha", "reward", "reward_error"])


def mean_of(values: Array) -> Mean:
    """Mean and standard error of independent samples (n,); no standard error of a single one.

    Of log-ratios on the policy's own samples this estimates KL(pi || pi_sft), without bias; it can
    be negative by chance.
    """
    n = len(values)
    return Mean(
        float(values.mean()), float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    )
