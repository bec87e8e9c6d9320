"""Wasserstein balls of distributions on the atoms of the data, for any metric between them."""

import warnings
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from theory.batch import ArrayLike, PairBatch, as_float64
from theory.checks import check_metric
from theory.duals import BallDual, transport_dual
from theory.fitting import fit
from theory.merging import labels, row_keys
from theory.results import Fit
from theory.sets.base import AmbiguitySet, AtPolicy, Facts, one_size
from theory.solvers.adversary import WorstCase, on_atoms
from theory.solvers.collapse import finite_collapse
from theory.solvers.compiled.batches import Answer, answer
from theory.solvers.local import AtFit, LocalProgram, mean_program
from theory.solvers.newton import Domain
from theory.solvers.points import Point
from theory.solvers.wasserstein import solve_finite

SOURCE = "Section 4.1 and Lemma 1, arXiv:2502.01930v4"
# of one fit of n atoms, times n²: seconds on one core, how many times that where moves are missed
# that the screening leaves to the interior point, and bytes
_SECONDS, _SLOWEST, _BYTES = 0.7e-6, 20, 100
_MANY = 3000  # atoms from which on a fit says what it costs
FACTS = {
    power: Facts(
        name=f"w{power}-finite",
        method=f"wdpo-w{power}",
        title=f"W{power} on the atoms",
        about=f"WDPO, exact, W{power} ball on the atoms",
        source=SOURCE,
        unit="of the metric",
        atoms=True,
        order=30 + power,
    )
    for power in (1, 2)
}


@dataclass(frozen=True)
class WassersteinAtoms(AmbiguitySet):
    """{Q on the atoms : W_p(Q, P) <= radius}. Section 4.1 and Lemma 1, arXiv:2502.01930v4.

    A fit on n distinct atoms takes about n² times 0.7 microseconds and 100 bytes on one core: 0.5 s
    for 1,000 of them, 3 s and 0.4 GB for 2,000; a few take twenty times as long. From 3,000 on a
    warning says so. Equal rows, of features and of distances, count as one.

    Args:
        radius: rho >= 0 in the unit of the metric, a number or (R,) of them; None where only the
            kind matters.
        distance: (n, n) metric between the atoms; a finite world gives its own, in which a flipped
            label costs `label_cost`.
        power: p, 1 or 2.
        label_cost: kappa, in the unit of the metric.

    Raises:
        ValueError: another power; where it is used, a radius that is missing, negative or not
            finite, or a distance that is missing or no (n, n) metric.

    >>> from theory import WassersteinAtoms, worst_case
    >>> WassersteinAtoms(0.1, power=2).name
    'w2-finite'
    >>> ball = WassersteinAtoms(0.5, distance=[[0.0, 2.0], [2.0, 0.0]])
    >>> worst_case([[1.0], [-1.0]], [0.5], ball, beta=1.0).weights.round(6).tolist()
    [0.25, 0.75]
    """

    radius: ArrayLike | None = None
    distance: ArrayLike | None = None
    power: int = 1
    label_cost: float = 1.0

    def __post_init__(self) -> None:
        check_power(self.power)

    @property
    def facts(self) -> Facts:
        return FACTS[self.power]

    @property
    def cost_of_labels(self) -> float:
        return self.label_cost

    def in_metric(self, distance: ArrayLike | None = None, label_cost: float | None = None) -> Self:
        return replace(self, distance=distance) if self.distance is None else self

    def check_atoms(self, n: int) -> None:
        check_metric(self.distance, n)

    def _cost(self, n: int) -> Tensor:
        return check_metric(self.distance, n) ** self.power

    def check_cost(self, n: int, replicates: int) -> None:
        if n > _MANY:
            seconds, bytes_ = _SECONDS * n**2 * replicates, _BYTES * n**2
            warnings.warn(
                f"{n} distinct atoms: {replicates} fit(s) on them take about {seconds:.0f} s, some"
                f" {_SLOWEST} times as long, and {bytes_ / 1e9:.1f} GB, as both grow with the"
                " square of the atoms. Round the features, so that equal rows are merged, take a"
                " sample of the rows, or let features move freely, as in WassersteinFree(radius).",
                UserWarning,
                stacklevel=3,
            )

    def alike(self, label: NDArray[np.int64]) -> NDArray[np.int64]:
        distance = check_metric(self.distance, len(label))
        several = np.bincount(label)[label] > 1
        keys = [int(x).to_bytes(8, "big") for x in label]
        for i in np.flatnonzero(several).tolist():  # its distances, and those of others to it
            keys[i] += b"".join(row_keys(torch.stack([distance[i], distance[:, i]])))
        return labels(keys)

    def on_rows(self, rows: NDArray[np.int64]) -> Self:
        assert self.distance is not None
        return replace(self, distance=as_float64(self.distance, "distance")[rows][:, rows])

    def solve(self, pairs: PairBatch, beta: float, domain: Domain, size: Tensor) -> Point:
        cost = self._cost(pairs.p.shape[1]).to(pairs.p.device)
        return solve_finite(pairs, beta, domain, cost, size**self.power)

    def compiled(
        self, pairs: PairBatch, beta: float, domain: Domain, size: Tensor
    ) -> Answer | None:
        cost = self._cost(pairs.p.shape[1])
        apart = bool((cost + torch.eye(len(cost), dtype=cost.dtype, device=cost.device) > 0).all())
        if not apart and bool((size <= 0).any()):
            return None
        budget = size**self.power
        return answer(
            "atom_moves",
            pairs,
            beta,
            domain,
            budget,
            cost.cpu().contiguous().numpy(),
            zero_is_mean=True,
        )

    def worst_weights(self, losses: Tensor, p: Tensor, size: Tensor) -> BallDual:
        cost = self._cost(p.shape[1]).to(p.device)
        return transport_dual(losses, p, cost, size**self.power)

    def elements(self, n: int) -> int:
        return n * n // 8 + 1

    def collapse(self, pairs: PairBatch) -> Tensor:
        return finite_collapse(pairs, self._cost(pairs.p.shape[1])).radius ** (1 / self.power)

    def worst(self, at: AtPolicy) -> WorstCase:
        distance = check_metric(self.distance, len(at.p))
        found = on_atoms(
            at.losses, at.p, distance=distance, power=self.power, radius=one_size(self)
        )
        assert found.moves is not None
        flipped = np.zeros(len(found.moves.source), dtype=bool)
        if at.label is not None:
            flipped = at.label[found.moves.source] != at.label[found.moves.target]
        moves = replace(found.moves, u=at.u[found.moves.target], flipped=flipped)
        return replace(found, name=self.name, moves=moves)

    def local(self, at: AtFit) -> LocalProgram:
        rho, n = one_size(self), len(at.p)
        if rho <= 0:
            return mean_program(at)
        cost, budget, eta = self._cost(n), rho**self.power, at.dual or 0.0

        def pieces(x: Tensor) -> Tensor:
            scores = at.loss(x[:-1])[None, :] - x[-1] * cost
            return (x[-1] * budget + scores).flatten()

        atom = torch.arange(n).repeat_interleave(n)
        x = torch.cat([at.w, at.w.new_tensor([eta])])
        return LocalProgram(x, pieces, atom, floor=len(x) - 1, finite=True)


def check_power(power: int) -> None:
    """Order of a Wasserstein distance that is solved."""
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2, got {power}.")


def wdpo_finite(
    u: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    distance: ArrayLike,
    power: int,
    radius: ArrayLike,
    beta: float,
    bound: float | None = None,
    theta_ref: ArrayLike | None = None,
    tolerance: float = 1e-10,
) -> Fit:
    """min over theta of sup {E_Q l : W_p(Q, P) <= radius}, Q on the same atoms; `distance` (n, n)
    is any metric, `power` 1 or 2.

    Section 4.1 and Lemma 1, arXiv:2502.01930v4; `dual` is eta. The cost is that of
    `WassersteinAtoms`. Other arguments as `fit`.

    Args:
        distance: (n, n) metric between the atoms.
        power: p, 1 or 2.
        radius: rho >= 0 in the unit of the metric, a number or (R,) of them.

    Returns:
        A `Fit`, with a batch axis where u, weights or the radius has one.

    Raises:
        ValueError: as `fit`, another power, or a distance that is no (n, n) metric.

    >>> from theory import wdpo_finite
    >>> apart = [[0.0, 2.0], [2.0, 0.0]]
    >>> found = wdpo_finite(
    ...     [[1.0], [-1.0]], [0.75, 0.25], distance=apart, power=1, radius=0.3, beta=1.0
    ... )
    >>> round(found.theta.exp().item(), 6)  # the odds of the worst case (0.6, 0.4)
    1.5
    """
    return fit(
        u,
        WassersteinAtoms(radius, distance, power),
        weights,
        beta=beta,
        bound=bound,
        theta_ref=theta_ref,
        tolerance=tolerance,
    )


MEMBERS = (WassersteinAtoms(power=1), WassersteinAtoms(power=2))
ESTIMATORS = (wdpo_finite,)
