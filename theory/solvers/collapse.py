"""The radius from which the reference policy itself is the robust minimiser.

At w = 0 every pair has the loss log 2 and slope -u/2, so that w = 0 is optimal iff the ball holds a
distribution Q with E_Q u = 0 (or, with free features, a sequence of them). The smallest such radius
is a convex program of its own. Derived; for the KL ball see also Prop. 3, arXiv:2502.01930.
"""

import math
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import csr_array
from torch import Tensor

from theory.batch import PairBatch
from theory.policy import Array
from theory.solvers.interior import solve
from theory.solvers.moves import LabelMoves
from theory.solvers.newton import Domain, minimise

_PROGRAM_SIZE = 1 << 12  # transport variables of one linear program


def free_collapse(pairs: PairBatch, power: int) -> Tensor:
    """||E u||/2 for p = 1 (mass sent to infinity), ||E u|| for p = 2."""
    return pairs.pull(pairs.p).norm(dim=-1) / (2 if power == 1 else 1)


def kl_collapse(pairs: PairBatch) -> tuple[Tensor, Tensor]:
    """min {KL(Q||P) : E_Q u = 0} = max_nu -log E_P exp(nu.u), by Newton's method on the dual; with
    nu (R, d).

    Infinite when 0 lies outside the convex hull of the atoms, by more than about 1e-7 of their
    size.
    """
    scale = (
        pairs.ut.norm(dim=1).amax(-1).clamp(min=1e-300)
    )  # (R,) or (1,): the problem does not know the unit of u
    unit = PairBatch(pairs.ut / scale[:, None, None], pairs.p)
    start = torch.zeros(
        pairs.replicates, pairs.dimension, dtype=torch.float64, device=pairs.p.device
    )
    nu, _, _ = minimise(_LogPartition(unit), start, Domain(start[0], 1e8), max_steps=200)
    value = -_LogPartition(unit).derivatives(nu)[0]
    # where some Q has E_Q u = 0, one with KL(Q||P) <= -log of the smallest weight does; beyond that
    # there is none
    largest = -torch.where(pairs.p > 0, pairs.p, 1.0).amin(-1).log()
    return torch.where(value > largest + 1e-6, torch.inf, value.clamp(min=0)), nu / scale[:, None]


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


def finite_collapse(pairs: PairBatch, cost: Tensor) -> Tensor:
    """Least transport cost to a distribution on the atoms with E_Q u = 0: linear programs, many
    replicates in each (HiGHS)."""
    step = max(1, _PROGRAM_SIZE // cost.numel())
    parts = [
        torch.arange(pairs.replicates)[start : start + step]
        for start in range(0, pairs.replicates, step)
    ]
    radii = np.concatenate([_collapse_programs(pairs.select(part), cost) for part in parts])
    return torch.from_numpy(radii).to(pairs.p.device)


def _collapse_programs(pairs: PairBatch, cost: Tensor) -> Array:
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
        paid = np.bincount(
            replicate, weights=price[source * n + target] * solution.x, minlength=pairs.replicates
        )
        return np.maximum(paid, 0.0) * float(largest)
    if pairs.replicates > 1:
        return np.concatenate(
            [
                _collapse_programs(pairs.select(one), cost)
                for one in torch.arange(pairs.replicates)[:, None]
            ]
        )
    return np.array([optimum(solution, never=np.inf)])


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
