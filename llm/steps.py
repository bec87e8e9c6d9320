"""How one training step of an effective batch goes, for each kind of objective.

A step sees all micro-batches first (`before`) and then gives each of them a loss (`loss`), whose
gradient is this micro-batch's share of the gradient of the objective and whose value is its share
of the objective. Data parallelism averages gradients over ranks, so that shares are multiplied by
their number.

| step           | before                                        | passes with / without gradient  |
|----------------|-----------------------------------------------|---------------------------------|
| Mean           | weights that sum to one over all micro-batches| 1 / 0                           |
| KahnemanTversky| and z0 from mismatched pairs                  | 1 / 1 (of the mismatched pairs) |
| Coupled        | coefficients; nothing for a single micro-batch| 1 / 1 (0 for the first of them) |

WDPO has steps of its own: `llm.wasserstein_steps`.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from llm.global_batch import (
    coefficients,
    concatenate,
    detached,
    gather,
    normalised,
    own_rows,
    scores_of,
)
from llm.logprobs import sequence_logprobs
from llm.metrics import weight_metrics
from llm.objective import Objective, weighted
from llm.objectives import group_value, worst_case_weights
from llm.scores import Pairs, Scores
from theory.functionals import kto_reference_point
from theory.precision import wide

Batch = dict[str, Any]


class Mean:
    """A weighted mean of losses: shares of it add up."""

    def __init__(
        self, objective: Objective, accelerator: Accelerator, *, fused: bool, packed: bool = False
    ) -> None:
        self.objective, self.accelerator = objective, accelerator
        self.fused, self.packed = fused, packed
        self.seen: list[Scores] = []  # scores since the last log
        self.numbers: defaultdict[str, list[float]] = defaultdict(
            list
        )  # one for each step since the last log
        # sums over this rank's micro-batches of the steps since the last log, and their number
        self.shares: defaultdict[str, Tensor | float] = defaultdict(float)
        self.steps = 0
        self.values: list[
            Tensor
        ] = []  # of the current step, to be looked at before the weights move

    def score(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Log-probabilities of the rows of a batch, (rows,), as the objective counts them."""
        how = {"fused": self.fused, "packed": self.packed}
        return sequence_logprobs(model, batch, **how, tail=self.objective.tail)

    def before(self, model: nn.Module, batches: list[Batch]) -> None:
        """What couples the micro-batches of one step, put into them."""
        self.values = []
        ones = [torch.ones(len(batch["index"]), device=batch["index"].device) for batch in batches]
        raw = [batch.get("weight", one) for batch, one in zip(batches, ones, strict=True)]
        total = self.accelerator.reduce(wide(torch.cat(raw)).sum(), "sum")
        if not total > 0:
            raise ValueError(
                "all weights of an effective batch are zero. Drop rows of weight zero, or use a"
                " larger batch."
            )
        for batch, weight in zip(batches, raw, strict=True):
            batch["weight"] = (weight.to(total.dtype) / total).to(weight.dtype)
        self.steps += 1
        if self.objective.added:
            self._add_mean_length(batches)

    def _add_mean_length(self, batches: list[Batch]) -> None:
        """The mean length of the chosen responses of the effective batch, for means over tokens."""
        local = [
            (wide(batch["weight"]) * batch["completion_mask"][:, 1:].sum(1).chunk(2)[0]).sum()
            for batch in batches
        ]
        mean_length = self.accelerator.reduce(torch.stack(local).sum(), "sum")
        for batch in batches:
            batch["chosen_tokens"] = mean_length

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The share of one micro-batch."""
        scores = scores_of(batch, self.score(model, batch))
        self.seen.append(detached(scores))
        return self.checked(self.share(scores))

    def share(self, scores: Scores) -> Tensor:
        """This micro-batch's share of the mean loss."""
        value = self.objective.value(scores)
        for name, number in part_values(self.objective, scores, value).items():
            self.shares[name] += number
        return value * self.accelerator.num_processes

    def losses(self, scores: Scores) -> Tensor:
        """Losses of the pairs, (b,)."""
        assert self.objective.losses is not None
        return self.objective.losses(scores)

    def checked(self, value: Tensor) -> Tensor:
        """The same value, remembered for the check that it is finite."""
        self.values.append(value.detach())
        return value

    def logged(self) -> dict[str, float]:
        """Means over the steps since the last log."""
        found = {name: sum(numbers) / len(numbers) for name, numbers in self.numbers.items()}
        for name, share in self.shares.items():
            assert isinstance(share, Tensor)
            found[name] = float(self.accelerator.reduce(share, "sum")) / self.steps
        return found

    def forget(self) -> None:
        """Drop what was kept for the log."""
        self.seen.clear()
        self.numbers.clear()
        self.shares.clear()
        self.steps = 0

    def finite(self) -> bool:
        """Whether all values of the current step are, on every rank: a rank that stopped alone
        would leave the others waiting."""
        bad = (~torch.isfinite(torch.stack([wide(value) for value in self.values]))).float().sum()
        return not bool(self.accelerator.reduce(bad, "sum") > 0)


class KahnemanTversky(Mean):
    """KTO: a mean of losses relative to z0, a number of the whole effective batch.
    arXiv:2402.01306."""

    def before(self, model: nn.Module, batches: list[Batch]) -> None:
        """Also z0, from all mismatched pairs of the effective batch."""
        super().before(model, batches)
        with torch.no_grad():
            ratios = torch.cat([self.mismatched_ratio(model, batch) for batch in batches])
        weights = torch.cat([batch["weight"] for batch in batches])
        z0 = kto_reference_point(self.accelerator.gather(ratios), self.accelerator.gather(weights))
        for batch in batches:
            batch["reference_point"] = z0
        self.numbers["kto/reference_point"].append(float(z0))

    def mismatched_ratio(self, model: nn.Module, batch: Batch) -> Tensor:
        """log pi_theta/pi_ref of completions put to the prompts of other rows, (b,)."""
        mismatched = {
            name: batch[f"kl_{name}"] for name in ("input_ids", "attention_mask", "completion_mask")
        }
        return self.score(model, mismatched) - batch["kl_reference_logps"]


class Coupled(Mean):
    """A functional of all scores of the effective batch, by coefficients: see
    `llm.global_batch`."""

    def before(self, model: nn.Module, batches: list[Batch]) -> None:
        """With several micro-batches, a pass over them for the coefficients; that of the first one
        serves its loss as well."""
        self.values = []
        if len(batches) > 1:
            with torch.no_grad():
                others = [self.score(model, batch) for batch in batches[1:]]
            with self.accelerator.no_sync(model):
                batches[0]["logps"] = self.score(model, batches[0])
            self._add_coefficients(batches, [batches[0]["logps"], *others])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """sum_i c_i logp_i, with the value of the objective."""
        logps = batch["logps"] if "logps" in batch else self.score(model, batch)
        if "coefficients" not in batch:
            self._add_coefficients([batch], [logps])
        return with_value((batch["coefficients"] * logps).sum(), batch["value"])

    def _add_coefficients(self, batches: list[Batch], logps: list[Tensor]) -> None:
        local = [
            detached(scores_of(batch, logp)) for batch, logp in zip(batches, logps, strict=True)
        ]
        self.seen.extend(local)
        everything = normalised(gather(concatenate(local), self.accelerator))
        value, derivatives = coefficients(self.value, everything)
        self.checked(value)
        for name, part in part_values(self.objective, everything, value).items():
            self.numbers[name].append(float(part))
        for name, number in worst_case_metrics(self.objective, everything).items():
            self.numbers[name].append(number)
        sizes = [len(batch["index"]) for batch in batches]
        own = own_rows(derivatives, sizes, self.accelerator.process_index)
        for batch, part, logp in zip(batches, own, logps, strict=True):
            batch["coefficients"] = (part * self.accelerator.num_processes).to(logp.dtype)
            batch["value"] = (value / len(batches)).to(logp.dtype)

    def value(self, scores: Scores) -> Tensor:
        """The objective of the effective batch."""
        return self.objective.value(scores)


class GroupRobust(Coupled):
    """Group DRO: the group weights move with the losses of each effective batch, then weight them.
    arXiv:1911.08731."""

    def __init__(
        self,
        objective: Objective,
        accelerator: Accelerator,
        *,
        fused: bool,
        callbacks: list[TrainerCallback],
        step: float,
        packed: bool = False,
    ) -> None:
        super().__init__(objective, accelerator, fused=fused, packed=packed)
        self._callbacks, self._step = callbacks, step

    def value(self, scores: Scores) -> Tensor:
        """The objective at the new group weights, which are kept."""
        assert isinstance(scores, Pairs) and scores.groups is not None
        # a resumed run replaces the callback by the one of its checkpoint, in the same list
        state = next(callback for callback in self._callbacks if isinstance(callback, GroupWeights))
        losses = self.losses(scores)
        before = torch.tensor(state.weights, dtype=losses.dtype, device=losses.device)
        value, after = group_value(losses, scores.groups, before, self._step, scores.weights)
        state.weights = after.tolist()
        for group, weight in enumerate(state.weights):
            self.numbers[f"group_weight/{group}"].append(weight)
        return value + weighted(self.objective.added, scores)


class GroupWeights(TrainerCallback, ExportableState):
    """The weights of group DRO, saved with each checkpoint and restored from it."""

    def __init__(self, weights: list[float]) -> None:
        self.weights = weights

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: arguments and attributes of this object."""
        return {"args": {"weights": self.weights}, "attributes": {}}


def part_values(objective: Objective, scores: Scores, value: Tensor) -> dict[str, Tensor]:
    """Of an objective that is a sum with this value: each part, without its weight, as loss/NAME;
    nothing for the other objectives."""
    if not objective.added:
        return {}
    with torch.no_grad():
        found = {f"loss/{part.name}": part.value(scores) for part in objective.added}
        rest = value - sum(part.weight * found[f"loss/{part.name}"] for part in objective.added)
    return {f"loss/{objective.name}": rest.detach(), **found}


def worst_case_metrics(objective: Objective, scores: Scores) -> dict[str, float]:
    """Effective sample size, largest weight and dual variable of a robust functional; nothing for
    the other objectives."""
    if objective.losses is None or objective.functional is None:
        return {}
    functional, losses = objective.functional, wide(objective.losses(scores).detach())
    weights = scores.weights
    q = worst_case_weights(lambda x: functional(x, weights), losses)
    p = torch.full_like(losses, 1.0 / len(losses)) if weights is None else wide(weights)
    return weight_metrics(q, None if objective.dual is None else objective.dual(losses, p))


def with_value(surrogate: Tensor, value: Tensor) -> Tensor:
    """The gradient of `surrogate` with another value, so that logs show the objective."""
    return surrogate + (value - surrogate).detach()
