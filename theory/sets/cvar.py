"""Conditional value at risk: the mean of the worst share of the pairs.

min over c of c + E (l - c)_+ / share is polyhedral in the losses: at the optimum several of them
tie at the threshold and share the mass. Solved by the interior-point method on its two pieces.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from theory.batch import ArrayLike, PairBatch
from theory.duals import cvar_dual
from theory.fitting import fit
from theory.functionals import cvar
from theory.policy import Array
from theory.results import Fit
from theory.sets.base import AmbiguitySet, AtPolicy, Facts, one_size
from theory.solvers.adversary import WorstCase, reweighted
from theory.solvers.collapse import Collapse, by_programs, linear_program, optimum
from theory.solvers.compiled.batches import Answer, answer
from theory.solvers.interior import solve
from theory.solvers.kl import solve_mean
from theory.solvers.local import AtFit, LocalProgram, mean_program
from theory.solvers.moves import TwoMoves, half_line
from theory.solvers.newton import Domain
from theory.solvers.points import (
    DOUBTFUL,
    LOG2,
    Point,
    collapsed_point,
    keep_better,
    lower_gap,
    scatter,
)
from theory.solvers.smooth import loss_and_slope
from theory.solvers.wasserstein import collapse_where_certified, settle_collapse

_TINY = 1e-300


@dataclass(frozen=True)
class CVaR(AmbiguitySet):
    """{Q : q_i <= p_i/share}: the mean loss of the worst share of the pairs, share in (0, 1].

    A smaller share is a larger set. Rockafellar and Uryasev (2000), doi:10.21314/JOR.2000.038.

    Args:
        share: alpha in (0, 1] without a unit, a number or (R,) of them; None where only the kind
            matters.

    Raises:
        ValueError: where it is used, a share that is missing or outside of (0, 1].

    >>> from theory import CVaR, worst_case
    >>> CVaR(0.2).name
    'cvar'
    >>> worst_case([[1.0], [-1.0]], [0.5], CVaR(0.8), beta=1.0).weights.round(6).tolist()
    [0.375, 0.625]
    """

    share: ArrayLike | None = None

    facts = Facts(
        name="cvar",
        method="cvar-dpo",
        title="CVaR",
        about="DPO on the worst share of the pairs (CVaR), exact",
        source="Rockafellar and Uryasev (2000), doi:10.21314/JOR.2000.038",
        size="share",
        symbol="alpha",
        grows=False,
        dual=cvar_dual,
        reweights=True,
        objective="cvar",
        option="alpha",
        order=21,
    )

    def solve(self, pairs: PairBatch, beta: float, domain: Domain, size: Tensor) -> Point:
        return solve_cvar(pairs, beta, domain, size)

    def compiled(
        self, pairs: PairBatch, beta: float, domain: Domain, size: Tensor
    ) -> Answer | None:
        return answer("cvar", pairs, beta, domain, size)

    def collapse(self, pairs: PairBatch) -> Tensor:
        return 1 / cvar_collapse(pairs).radius

    def check_size(self, replicates: int, like: Tensor) -> Tensor:
        share = super().check_size(replicates, like)
        if not bool(((share > 0) & (share <= 1)).all()):
            bad = share[~((share > 0) & (share <= 1))][0].item()
            raise ValueError(f"share must be in (0, 1], got {bad:g}. Use 1 for the plain mean.")
        return share

    def size_at(self, fraction: float, pairs: PairBatch, **problem: Any) -> float:
        """Fractions are of 1/share - 1, which is 0 for the mean."""
        edge = self.collapse(self.with_units(pairs)).item()
        return 1 / (1 + fraction * (1 / edge - 1)) if edge > 0 else 0.0

    def scaled(self, size: float, factor: float) -> float:
        return 1 / (1 + factor * (1 / size - 1))

    @property
    def smallest(self) -> float:
        return 1.0

    def largest(self, least: float) -> float:
        return least

    def range(self, grid: Array) -> Array:
        return 1 - grid[:-1]

    def worst(self, at: AtPolicy) -> WorstCase:
        return reweighted(self.name, cvar_dual, at.losses, at.p, one_size(self))

    def local(self, at: AtFit) -> LocalProgram:
        share = one_size(self)
        if share >= 1:
            return mean_program(at)
        assert at.dual is not None  # the threshold c

        def pieces(x: Tensor) -> Tensor:
            c = x[-1].expand(len(at.p))
            return torch.cat([c, c + (at.loss(x[:-1]) - c) / share])

        atom = torch.arange(len(at.p)).repeat(2)
        x = torch.cat([at.w, at.w.new_tensor([at.dual])])
        return LocalProgram(x, pieces, atom, finite=True)

    def worst_value(self, losses: Tensor, size: float, weights: Tensor | None = None) -> Tensor:
        return cvar(losses, size, weights)


def cvar_dpo(
    u: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    share: ArrayLike,
    beta: float,
    bound: float | None = None,
    theta_ref: ArrayLike | None = None,
    tolerance: float = 1e-10,
) -> Fit:
    """min over theta of the mean loss of the worst share of the pairs; `dual` is the threshold.

    Rockafellar and Uryasev (2000), doi:10.21314/JOR.2000.038; arguments as `fit`.

    Args:
        share: alpha in (0, 1] without a unit, a number or (R,) of them.

    Returns:
        A `Fit`, with a batch axis where u, weights or the share has one.

    Raises:
        ValueError: as `fit`, or a share outside of (0, 1].

    >>> from theory import cvar_dpo
    >>> found = cvar_dpo([[1.0], [-1.0]], [0.75, 0.25], share=0.625, beta=1.0)
    >>> round(found.theta.exp().item(), 6)  # the odds of the worst case (0.6, 0.4)
    1.5
    """
    return fit(
        u,
        CVaR(share),
        weights,
        beta=beta,
        bound=bound,
        theta_ref=theta_ref,
        tolerance=tolerance,
    )


# ------------------------------------------------------------------------------------------- solver
def solve_cvar(pairs: PairBatch, beta: float, domain: Domain, share: Tensor) -> Point:
    point = collapsed_point(pairs)
    plain = share >= 1
    parts = []
    if plain.any():
        mean_fit = solve_mean(pairs.select(plain), beta, domain)
        mean_fit.dual = torch.zeros_like(mean_fit.value)  # the threshold: every loss counts
        parts.append((plain, mean_fit))
    if not plain.all():
        rest = (~plain).nonzero()[:, 0]
        part, alpha = pairs.select(rest), share[rest]
        solved = _cvar(part, beta, domain, alpha, settled=False)
        solved = settle_collapse(part, solved, 1 / alpha, beta, domain, cvar_collapse)
        hard = (~solved.collapsed & (solved.gap > DOUBTFUL)).nonzero()[:, 0]
        if hard.numel():  # to settle ties is slow, and seldom needed
            better = _cvar(part.select(hard), beta, domain, alpha[hard], settled=True)
            solved = keep_better(solved, hard, better)
        parts.append((rest, solved))
    return scatter(parts, point)


def _cvar(pairs: PairBatch, beta: float, domain: Domain, alpha: Tensor, *, settled: bool) -> Point:
    one = torch.ones_like(alpha)
    found = solve(Shortfall(pairs, beta, alpha), one, LOG2 * one, domain, settled=settled)
    w = domain.project(found.v[:, :-1])
    q = found.z[:, 1] * (pairs.p > 0) / alpha[:, None]
    loss, slope = loss_and_slope(beta * pairs.project(w))
    worst = cvar_dual(loss, pairs.p, alpha)
    q = _within(q, pairs.p / alpha[:, None])
    gap = worst.value - (q * loss).sum(-1) + lower_gap(pairs, q, slope, w, beta, domain)
    none = torch.zeros_like(found.steps, dtype=torch.bool)
    point = Point(w, worst.value, gap, worst.dual.clone(), found.steps, none, q)
    at_rest = lower_gap(pairs, q, torch.full_like(slope, 0.5), torch.zeros_like(w), beta, domain)
    return collapse_where_certified(point, at_rest, beta)


def _within(q: Tensor, most: Tensor) -> Tensor:
    """Weights that sum to one below a bound that sums to more: what is missing is given to all in
    proportion to the room that they have."""
    q = q.clamp(min=0).minimum(most)
    missing = 1 - q.sum(-1, keepdim=True)
    room = most - q
    up = missing.clamp(min=0) * room / room.sum(-1, keepdim=True).clamp(min=_TINY)
    down = (-missing).clamp(min=0) * q / q.sum(-1, keepdim=True).clamp(min=_TINY)
    return q + up - down


@dataclass
class Shortfall(TwoMoves):
    """The pieces 0 and (l - c)/alpha of CVaR, c in the place of eta."""

    alpha: Tensor

    def move(self, v: Tensor) -> Tensor:
        loss, s = loss_and_slope(self.beta * self.pairs.project(v[:, :-1]))
        share = self.alpha[:, None]
        self.along = torch.stack([torch.zeros_like(s), -s / share], 1)
        self.common = torch.stack([torch.zeros_like(s), (-1 / share).expand_as(s)], 1)
        self.e = torch.zeros_like(v)
        self.e[:, -1] = 1.0
        self.bend = s * (1 - s) / share
        return torch.stack([torch.zeros_like(loss), (loss - v[:, -1:]) / share], 1)

    def curvature(self, z: Tensor, stiffness: Tensor) -> Tensor:
        uu, ue, ee = self._spread(stiffness)
        return self._form(uu + z[:, 1] * self.bend, ue, ee)

    def cone(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return half_line(v)

    def select(self, index: Tensor) -> "Shortfall":
        return Shortfall(self.pairs.select(index), self.beta, self.alpha[index])


def cvar_collapse(pairs: PairBatch) -> Collapse:
    """min {1/alpha : some q <= p/alpha has E_q u = 0}, infinite where none has: a linear program
    each."""
    return by_programs(pairs, _cvar_program)


def _cvar_program(u: Array, p: Array) -> tuple[float, Array]:
    """max {sum x : 0 <= x <= p, x u = 0}, x the share times q."""
    found = linear_program(
        -np.ones(len(p)),
        A_eq=u.T / max(np.abs(u).max(), _TINY),
        b_eq=np.zeros(u.shape[1]),
        bounds=[(0, mass) for mass in p],
    )
    share = min(-optimum(found, never=0.0), 1.0)
    if share <= 1e-9:  # of the size of the program's tolerance
        return np.inf, p
    return 1 / share, found.x / share


MEMBERS = (CVaR(),)
ESTIMATORS = (cvar_dpo,)
