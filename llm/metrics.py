"""What is logged about a batch, or an evaluation set, beside the objective: numbers of the scores
alone.

Rewards are beta times the log-ratio to the reference, in nats.
"""

import torch
from torch import Tensor

from llm.scores import Pairs, Scores
from theory.precision import widest
from theory.transport import first_order_violation, quantile

QUANTILES = (0.1, 0.5, 0.9)


def reward_metrics(scores: Scores, beta: float) -> dict[str, float]:
    """Rewards, margins, their quantiles, and by how much the chosen rewards fail to dominate the
    rejected ones.

    dominance_violation is ∫ (Q_rejected - Q_chosen)_+ dt of the rewards, zero iff chosen responses
    dominate in the first order (arXiv:2406.05882). For unpaired data chosen are the desirable
    responses.
    """
    if isinstance(scores, Pairs):
        chosen, rejected = beta * scores.chosen_ratio, beta * scores.rejected_ratio
        margin = chosen - rejected
        found = {
            "rewards/margins": margin.mean(),
            "rewards/accuracies": (margin > 0).to(margin.dtype).mean(),
            "logps/chosen": scores.chosen.mean(),
            "logps/rejected": scores.rejected.mean(),
        }
    else:
        reward = beta * scores.ratio
        chosen, rejected = reward[scores.desirable], reward[~scores.desirable]
        found = {"logps/all": scores.policy.mean()}
        if len(chosen) and len(rejected):
            found["rewards/margins"] = chosen.mean() - rejected.mean()
    for name, reward in (("chosen", chosen), ("rejected", rejected)):
        if len(reward):
            found[f"rewards/{name}"] = reward.mean()
            levels = torch.tensor(QUANTILES, dtype=widest(reward.device), device=reward.device)
            # a step that overflowed is logged as such, not refused
            finite = bool(torch.isfinite(reward).all())
            values = quantile(reward, levels) if finite else torch.full_like(levels, torch.nan)
            for level, value in zip(QUANTILES, values, strict=True):
                found[f"rewards/{name}_q{round(100 * level)}"] = value
    if len(chosen) and len(rejected):
        finite = bool(torch.isfinite(chosen).all() & torch.isfinite(rejected).all())
        found["dominance_violation"] = (
            first_order_violation(chosen, rejected) if finite else chosen.new_tensor(torch.nan)
        )
    return {name: float(value) for name, value in found.items()}


def weight_metrics(weights: Tensor, dual: Tensor | None) -> dict[str, float]:
    """Of the worst-case weights (n,) of one effective batch: how many pairs they amount to, the
    largest, and the dual variable.

    The effective sample size is (sum q)² / sum q², between 1 and n; the largest weight is relative
    to the sum.
    """
    size = weights.abs()
    found = {
        "worst_case/effective_sample_size": size.sum() ** 2 / size.square().sum(),
        "worst_case/largest_weight": size.max() / size.sum(),
    }
    if dual is not None:
        found["worst_case/dual"] = dual
    return {name: float(value) for name, value in found.items()}
