"""The radius from which the reference policy itself is the robust minimiser.

At w = 0 every pair has the loss log 2 and slope -u/2, so that w = 0 is optimal iff the ball holds a
distribution Q with E_Q u = 0 (or, with free features, a sequence of them). The smallest such radius
is a convex program of its own. Derived; for the KL ball see also Prop. 3, arXiv:2502.01930.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog, nnls
from scipy.sparse import csr_array
from torch import Tensor

from theory.batch import PairBatch
from theory.policy import Array
from theory.solvers.interior import solve
from theory.solvers.moves import LabelMoves
from theory.solvers.newton import Domain, minimise

_PROGRAM_SIZE = 1 << 12  # transport variables of one linear program
_FAR = 1e16  # of a dual variable, for atoms of size one
_BALANCED = 1e-12  # ||E_Q u|| relative to the atoms from which on it counts as zero: rounding


def free_collapse(pairs: PairBatch, power: int) -> Tensor:
    """||E u||/2 for p = 1 (mass sent to infinity), ||E u|| for p = 2."""
    return pairs.pull(pairs.p).norm(dim=-1) / (2 if power == 1 else 1)


@dataclass
class Collapse:
    """Where a set collapses, and why.

    radius: (R,), infinite where no Q has E_Q u = 0, NaN where that was not decided. weights: (R, n)
    a Q of that radius with E_Q u = 0 to rounding, where the radius is finite; None for sets that
    move features. direction: (R, d) of the dual, from which w leaves 0 below the radius, empty
    where a linear program found it.
    """

    radius: Tensor
    weights: Tensor | None = None
    direction: Tensor = field(default_factory=lambda: torch.empty(0))


def kl_collapse(pairs: PairBatch) -> Collapse:
    """min {KL(Q||P) : E_Q u = 0} = max_nu -log E_P exp(nu.u), by Newton's method on the dual."""
    scale = pairs.ut.norm(dim=1).amax(-1).clamp(min=1e-300)  # (R,) or (1,): no unit of u is known
    unit = PairBatch(pairs.ut / scale[:, None, None], pairs.p)
    largest = -torch.where(pairs.p > 0, pairs.p, 1.0).amin(-1).log()
    nu, value = dual_ascent(_LogPartition(unit), pairs.dimension, largest)
    q = torch.softmax(unit.project(nu) + unit.p.log(), -1)
    return decided(unit, q, value, largest, _relative_entropy, nu / scale[:, None])


def dual_ascent(function: Any, dimension: int, largest: Tensor) -> tuple[Tensor, Tensor]:
    """The dual variable (R, dimension) that minimises `function`, and the value less it; ended
    where it is beyond `largest`, which no feasible primal is."""
    v = largest.new_zeros(len(largest), dimension)
    domain = Domain(v[0], _FAR)
    going = torch.arange(len(largest), device=largest.device)
    for _ in range(10):
        # beyond the curvature's reach Newton's steps are too long by many powers of two
        v[going], settled, _ = minimise(
            function.select(going), v[going], domain, max_steps=20, halvings=90
        )
        value = -function.select(going).derivatives(v[going])[0]
        going = going[~settled & (value <= largest[going] + 1e-6)]
        if not going.numel():
            break
    return v, -function.derivatives(v)[0]


def _relative_entropy(q: Tensor, p: Tensor) -> Tensor:
    ratio = q.clamp(min=1e-300) / p.clamp(min=1e-300)
    return torch.where(q > 0, q * ratio.log(), 0.0).sum(-1)


def decided(
    unit: PairBatch,
    q: Tensor,
    lower: Tensor,
    largest: Tensor,
    divergence: Callable[[Tensor, Tensor], Tensor],
    direction: Tensor,
) -> Collapse:
    """The collapse radius between the dual value `lower` and the divergence of a Q with E_Q u = 0.

    unit: pairs of size one. q: the dual's weights. largest: what no Q exceeds where one exists at
    all, so that a dual value beyond it proves that none does. Where neither settles it,
    non-negative least squares say whether there is such a Q.
    """
    q, left = balanced(unit, q)
    upper = divergence(q, unit.p)
    radius = torch.where(left <= _BALANCED, upper.clamp(min=0), torch.nan)
    radius = torch.where(upper - lower > 1e-6 * (1 + upper), torch.nan, radius)
    radius = torch.where(radius.isnan() & (lower > largest + 1e-6), torch.inf, radius)
    for r in radius.isnan().nonzero()[:, 0]:
        if _distance_to_hull(unit.select(r[None])) > _BALANCED:
            radius[r] = torch.inf
    return Collapse(radius, q, direction)


def _distance_to_hull(unit: PairBatch) -> float:
    """How far E_q u and sum q stay from 0 and 1 for any q >= 0 on one sample, by least squares."""
    ((u, p),) = each_sample(unit)
    rows = np.concatenate([u.T, np.ones((1, len(p)))])
    return float(nnls(rows, np.eye(len(rows))[-1], maxiter=100 * len(p))[1])


def balanced(pairs: PairBatch, q: Tensor) -> tuple[Tensor, Tensor]:
    """Weights next to q that sum to one and have E_q u = 0, and how far from it they stay, relative
    to the size of u.

    The last digits of weights from a solver are its tolerance, not the answer's. A correction in
    proportion to q keeps them positive; weights that are as good as zero are also tried as zeros.
    """
    size = pairs.ut.norm(dim=1).amax(-1).clamp(min=1e-300)
    ut = (pairs.ut / size[:, None, None]).expand(pairs.replicates, -1, -1)
    rows = torch.cat([ut, torch.ones_like(ut[:, :1])], 1)
    best, left = q, torch.full_like(q[:, 0], torch.inf)
    for floor in (0.0, 1e-6):
        trial = torch.where(q > floor * q.amax(-1, keepdim=True), q, 0.0)
        for _ in range(4):
            trial = trial / trial.sum(-1, keepdim=True).clamp(min=1e-300)
            missing = (rows @ trial[:, :, None])[:, :, 0]
            missing[:, -1] -= 1
            distance = missing[:, :-1].norm(dim=-1)
            better = distance < left
            best = torch.where(better[:, None], trial, best)
            left = torch.where(better, distance, left)
            spread = (rows * trial[:, None, :]) @ rows.mT
            turn = torch.linalg.pinv(spread, rcond=1e-14, hermitian=True) @ missing[:, :, None]
            trial = (trial * (1 - (rows.mT @ turn)[:, :, 0])).clamp(min=0)
    return best, left


class _LogPartition:
    """log E exp(nu.u)."""

    def __init__(self, pairs: PairBatch):
        self.pairs = pairs

    def derivatives(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        exponent = self.pairs.project(v) + self.pairs.p.log()
        value = torch.logsumexp(exponent, -1)
        q = torch.exp(exponent - value[:, None])
        gradient = self.pairs.pull(q)
        return value, gradient, self.pairs.outer(q) - gradient[:, :, None] * gradient[:, None, :]

    def select(self, index: Tensor) -> "_LogPartition":
        return _LogPartition(self.pairs.select(index))


def label_collapse(pairs: PairBatch, kappa: float) -> Tensor:
    """max over ||s|| <= 1 of E min(s.u, 2 kappa - s.u)/2: features move freely and labels flip at
    the cost kappa."""
    size = pairs.ut.norm(dim=1).amax(-1).expand(pairs.replicates)
    if kappa >= size.max():  # no flip pays
        return free_collapse(pairs, 1)
    # the problem does not know the unit of u, but the interior point does: solve in units of u,
    # samples of about the same size together
    decade = size.clamp(min=1e-300).log10().floor()
    found = torch.zeros_like(size)
    for power in decade.unique():
        here, unit = (decade == power).nonzero()[:, 0], 10.0 ** float(power)
        part = pairs.select(here)
        scaled = PairBatch(part.ut / unit, part.p)
        found[here] = unit * _label_collapse(scaled, kappa / unit)
    return found


def _label_collapse(pairs: PairBatch, kappa: float) -> Tensor:
    domain = Domain(torch.zeros(pairs.dimension, dtype=torch.float64, device=pairs.p.device), 2.0)
    pieces = LabelMoves(pairs, 1.0, kappa, linear=True)
    ones = torch.ones(pairs.replicates, dtype=torch.float64, device=pairs.p.device)
    s = solve(pieces, torch.zeros_like(ones), ones, domain, pinned=True).v[:, :-1]
    s = s / s.norm(dim=-1, keepdim=True).clamp(min=1.0)
    along = pairs.project(s)
    return ((pairs.p * along.minimum(2 * kappa - along)).sum(-1) / 2).clamp(min=0)


def finite_collapse(pairs: PairBatch, cost: Tensor) -> Collapse:
    """Least transport cost to a distribution on the atoms with E_Q u = 0: linear programs, many
    replicates in each (HiGHS)."""
    step = max(1, _PROGRAM_SIZE // cost.numel())
    parts = [
        torch.arange(pairs.replicates)[start : start + step]
        for start in range(0, pairs.replicates, step)
    ]
    found = [_collapse_programs(pairs.select(part), cost) for part in parts]
    radii, weights = (np.concatenate(x) for x in zip(*found, strict=True))
    return verified(pairs, radii, weights)


def _collapse_programs(pairs: PairBatch, cost: Tensor) -> tuple[Array, Array]:
    """The programs of all replicates as one, since none shares a variable with another; one by one
    where one is infeasible."""
    n, d = cost.shape[0], pairs.dimension
    largest = cost.max().clamp(min=1e-300)  # HiGHS has absolute tolerances
    price = (cost / largest).cpu().numpy().ravel()
    p = pairs.p.cpu().numpy()
    u = pairs.ut.expand(pairs.replicates, -1, -1).cpu().numpy()
    replicate, source, target = np.nonzero(np.repeat((p > 0)[:, :, None], n, 2))
    variable = np.arange(len(source))
    moment = u[replicate, :, target]  # (variables, d)
    rows = [replicate * (n + d) + source, *(replicate * (n + d) + n + k for k in range(d))]
    entries = np.concatenate([np.ones(len(source)), moment.T.ravel()])
    places = (np.concatenate(rows), np.tile(variable, 1 + d))
    constraint = csr_array((entries, places), shape=(pairs.replicates * (n + d), len(source)))
    demand = np.concatenate([p, np.zeros((pairs.replicates, d))], 1).ravel()
    solution = linear_program(
        price[source * n + target], A_eq=constraint, b_eq=demand, bounds=(0, None)
    )
    if solution.status == 0:
        bill = price[source * n + target] * solution.x
        paid = np.bincount(replicate, weights=bill, minlength=pairs.replicates)
        cells = pairs.replicates * n
        arrived = np.bincount(replicate * n + target, weights=solution.x, minlength=cells)
        return np.maximum(paid, 0.0) * float(largest), arrived.reshape(-1, n).astype(float)
    if pairs.replicates > 1:
        ones = torch.arange(pairs.replicates)[:, None]
        each = [_collapse_programs(pairs.select(one), cost) for one in ones]
        return np.concatenate([x[0] for x in each]), np.concatenate([x[1] for x in each])
    return np.array([optimum(solution, never=np.inf)]), p


def by_programs(
    pairs: PairBatch, program: Callable[[Array, Array], tuple[float, Array]]
) -> Collapse:
    """The collapse of each sample by a program of u (n, d) and p (n,) that gives its radius and
    weights, on the atoms with mass."""
    radii, weights = np.zeros(pairs.replicates), np.zeros(tuple(pairs.p.shape))
    for r, (u, p) in enumerate(each_sample(pairs)):
        live = pairs.p[r].cpu().numpy() > 0
        radii[r], weights[r, live] = program(u, p)
    return verified(pairs, radii, weights)


def verified(pairs: PairBatch, radii: Array, weights: Array) -> Collapse:
    """What linear programs found, whose tolerance of 1e-7 also passes atoms that 0 lies a little
    outside of: infinite where their weights do not balance and none do."""
    device = pairs.p.device
    radius = torch.from_numpy(radii).to(device)
    q, left = balanced(pairs, torch.from_numpy(weights).to(device))
    for r in (radius.isfinite() & (left > _BALANCED)).nonzero()[:, 0]:
        one = pairs.select(r[None])
        size = one.ut.abs().max().clamp(min=1e-300)
        if _distance_to_hull(PairBatch(one.ut / size, one.p)) > _BALANCED:
            radius[r] = torch.inf
    return Collapse(radius, q)


def each_sample(pairs: PairBatch) -> list[tuple[Array, Array]]:
    """u (n, d) and p (n,) of each replicate, atoms with mass only."""
    ut = pairs.ut.expand(pairs.replicates, -1, -1).cpu().numpy()
    p = pairs.p.cpu().numpy()
    return [(x[:, q > 0].T, q[q > 0]) for x, q in zip(ut, p, strict=True)]


def linear_program(c: Array, **constraints: Any) -> Any:
    """scipy's `linprog` by HiGHS; where it gives up without an answer, by its other methods."""
    for method in ("highs", "highs-ipm", "highs-ds"):
        found = linprog(c, method=method, **constraints)
        if found.status in (0, 2):
            break
    return found


def optimum(found: Any, never: float) -> float:
    """The optimum of a linear program, `never` where 0 is outside the convex hull of the atoms, and
    NaN where no method solved it: a fit then stays what it was."""
    if found.status == 0:
        return float(found.fun)
    return never if found.status == 2 else math.nan
