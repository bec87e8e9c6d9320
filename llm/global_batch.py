"""The objective of a whole effective batch, from the parts that micro-batches and ranks see.

A functional such as the KL tilt, or a sort, needs all log-probabilities at once, but its gradient
needs the model only through them:

    d objective / d theta = sum_i c_i d logp_i / d theta,   c_i = d objective / d logp_i.

So the log-probabilities are gathered without gradient, the objective and its coefficients c are
computed once, by every rank for itself, and each micro-batch back-propagates sum_i c_i logp_i for
its own rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields

import torch
from accelerate import Accelerator
from torch import Tensor

from llm.scores import Pairs, Scores, Singles, replaced, widened


def scores_of(batch: Mapping[str, Tensor], logps: Tensor) -> Scores:
    """What the objective sees of one micro-batch; weights as they are in the data. Rows as in
    `llm.data.tokens.PreferenceCollator`."""
    lengths = batch["completion_mask"][:, 1:].sum(1)
    weights = batch.get("weight")
    if "desirable" in batch:
        return Singles(
            logps,
            batch["reference_logps"],
            batch["desirable"],
            weights,
            batch.get("reference_point"),
        )
    chosen, rejected = logps.chunk(2)
    reference_chosen, reference_rejected = batch["reference_logps"].chunk(2)
    chosen_length, rejected_length = lengths.chunk(2)
    rewards = [batch[name] for name in ("chosen_reward", "rejected_reward") if name in batch]
    return Pairs(
        chosen,
        rejected,
        reference_chosen,
        reference_rejected,
        chosen_length,
        rejected_length,
        weights,
        batch.get("group"),
        batch.get("chosen_tokens"),
        batch.get("label_confidence"),
        rewards[0] - rewards[1] if len(rewards) == 2 else None,
    )


def concatenate(parts: list[Scores]) -> Scores:
    """The scores of several micro-batches as one; a number of the effective batch is taken from the
    first."""
    columns = {}
    for name in (f.name for f in fields(parts[0])):
        values = [getattr(part, name) for part in parts]
        columns[name] = values[0] if values[0] is None or values[0].ndim == 0 else torch.cat(values)
    return type(parts[0])(**columns)


def gather(scores: Scores, accelerator: Accelerator) -> Scores:
    """The scores of all ranks, rank after rank, without gradient. All ranks must hold equally
    many."""
    if accelerator.num_processes == 1:
        return detached(scores)
    moved = {
        name: x if x.ndim == 0 else accelerator.gather(x.detach().contiguous())
        for name, x in _tensors(scores).items()
    }
    return replaced(scores, moved)


def detached(scores: Scores) -> Scores:
    """The same numbers without gradient."""
    return replaced(scores, {name: x.detach() for name, x in _tensors(scores).items()})


def normalised(scores: Scores) -> Scores:
    """The same scores with weights that sum to one."""
    if scores.weights is None:
        return scores
    total = scores.weights.sum()
    if not total > 0:
        raise ValueError(
            f"all {len(scores.weights)} weights of an effective batch are zero: there is nothing to"
            " learn from it. Drop rows of weight zero, or use a larger effective batch."
        )
    return replaced(scores, {"weights": scores.weights / total})


def coefficients(value: Callable[[Scores], Tensor], scores: Scores) -> tuple[Tensor, Scores]:
    """The objective of an effective batch and its derivative in each policy log-probability, both
    in float64.

    The derivatives take the place of the log-probabilities in the scores that are returned.

    On a device without float64 (MPS) both are float32. For log-ratios of a few nats the value is
    then within 3e-6 of itself, and the derivatives within 3e-5 of the sum of their sizes (the
    largest of all objectives, measured by the tests); a tilt whose temperature is below 1e-2 has
    more: about 1e-7 of a loss over the temperature.
    """
    policy = [f for f in ("chosen", "rejected", "policy") if hasattr(scores, f)]
    exact = widened(scores)
    leaves = [getattr(exact, name).detach().requires_grad_() for name in policy]
    with torch.enable_grad():
        total = value(replaced(exact, dict(zip(policy, leaves, strict=True))))
        grads = torch.autograd.grad(total, leaves)
    return total.detach(), replaced(exact, dict(zip(policy, grads, strict=True)))


def own_rows(derivatives: Scores, sizes: list[int], rank: int) -> list[Tensor]:
    """Coefficients of this rank's micro-batches of so many pairs or responses, each in the row
    order of its batch."""
    mine = slice(rank * sum(sizes), (rank + 1) * sum(sizes))
    if isinstance(derivatives, Singles):
        return list(derivatives.policy[mine].split(sizes))
    parts = zip(
        derivatives.chosen[mine].split(sizes), derivatives.rejected[mine].split(sizes), strict=True
    )
    return [torch.cat(part) for part in parts]


def _tensors(scores: Scores) -> dict[str, Tensor]:
    return {name: x for name, x in vars(scores).items() if isinstance(x, Tensor)}
