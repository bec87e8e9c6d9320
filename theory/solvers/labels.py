"""Fits where only the label of each pair is uncertain: min E max {l(m) + t m : a <= t <= b}.

The chance t of a flipped label may lie anywhere in an interval [a, b] of the pair, whatever the
others are, so that the worst case is a maximum of two smooth losses for each pair, convex with a
kink at m = 0. The interior-point method decides how the labels of pairs at the kink are split.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array, hstack, vstack
from torch import Tensor

from theory.batch import PairBatch
from theory.policy import Array
from theory.solvers.collapse import Collapse, linear_program, optimum
from theory.solvers.interior import solve
from theory.solvers.moves import TwoMoves, half_line
from theory.solvers.newton import Domain, minimise
from theory.solvers.points import (
    DOUBTFUL,
    Point,
    collapsed_point,
    keep_better,
    linear_start,
    lower_gap,
    scatter,
)
from theory.solvers.smooth import Derivatives, MeanLoss, loss_and_slope
from theory.solvers.wasserstein import collapse_where_certified

_TINY = 1e-300
_SAME = 1e-12  # of two comparisons, relative to their features: rounding
_BALANCED = 1e-12  # ||E (1 - 2t) u|| relative to E ||u|| that counts as zero


def other_label(pairs: PairBatch) -> Tensor:
    """(R, n) how often the comparison of each row, its u or -u, is recorded with the other label.

    Rows are one comparison where they have the same |u.g| along a direction g in general position;
    the sign of u.g is the label.
    """
    g = torch.from_numpy(np.random.default_rng(0).normal(size=(1, pairs.dimension)))
    ut = pairs.ut.to(torch.float64)
    along = (g.to(ut.device) @ ut)[:, 0]  # (R or 1, n)
    size, order = along.abs().sort(dim=-1)
    room = _SAME * ut.norm(dim=1).gather(-1, order)
    new = torch.nn.functional.pad((size.diff(dim=-1) > room[:, 1:]).long(), (1, 0))
    comparison = torch.zeros_like(order).scatter_(-1, order, new.cumsum(-1))
    comparison = comparison.expand(pairs.replicates, -1)
    second = (along < 0).expand(pairs.replicates, -1)

    def total(mass: Tensor) -> Tensor:
        return torch.zeros_like(mass).scatter_add_(-1, comparison, mass).gather(-1, comparison)

    firsts = total(torch.where(second, 0.0, pairs.p))
    seconds = total(torch.where(second, pairs.p, 0.0))
    other = torch.where(second, firsts, seconds)
    return other / (firsts + seconds).clamp(min=_TINY)


# ------------------------------------------------------------------------------------------- fits
@dataclass
class LabelIntervals(TwoMoves):
    """The pieces l(m) + a m and l(m) + b m. `eta` is not used, and has to be pinned."""

    low: Tensor  # (R, n)
    high: Tensor

    def move(self, v: Tensor) -> Tensor:
        margin = self.beta * self.pairs.project(v[:, :-1])
        loss, chance = loss_and_slope(margin)
        self.along = torch.stack([self.low - chance, self.high - chance], 1)
        self.common, self.e = torch.zeros_like(self.along), torch.zeros_like(v)
        self.bend = chance * (1 - chance)
        return torch.stack([loss + self.low * margin, loss + self.high * margin], 1)

    def curvature(self, z: Tensor, stiffness: Tensor) -> Tensor:
        uu, ue, ee = self._spread(stiffness)
        return self._form(uu + z.sum(1) * self.bend, ue, ee)

    def cone(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return half_line(v)

    def select(self, index: Tensor) -> "LabelIntervals":
        return LabelIntervals(
            self.pairs.select(index), self.beta, self.low[index], self.high[index]
        )


@dataclass(frozen=True)
class FixedFlips:
    """E l(m) + t m: labels that flip with fixed chances t (R, n)."""

    pairs: PairBatch
    beta: float
    flip: Tensor

    def derivatives(self, v: Tensor) -> Derivatives:
        value, gradient, hessian = MeanLoss(self.pairs, self.beta).derivatives(v)
        slope = self.beta * self.pairs.pull(self.pairs.p * self.flip)
        return value + (slope * v).sum(-1), gradient + slope, hessian

    def select(self, index: Tensor) -> "FixedFlips":
        return replace(self, pairs=self.pairs.select(index), flip=self.flip[index])


def solve_labels(pairs: PairBatch, beta: float, domain: Domain, low: Tensor, high: Tensor) -> Point:
    """Minimise E max {l(m) + t m : low <= t <= high}, low and high (R, n), with a certificate: the
    chances t of the worst case bound the optimum from below."""
    fixed = ((high <= low) | (pairs.p <= 0)).all(-1)
    parts = []
    if fixed.any():
        part, t = pairs.select(fixed), low[fixed]
        start = linear_start(part, beta, domain)
        w, _, steps = minimise(FixedFlips(part, beta, t), start, domain)
        parts.append((fixed, _point(part, beta, domain, t, t, w, t, steps)))
    rest = (~fixed).nonzero()[:, 0]
    if rest.numel():
        part, a, b = pairs.select(rest), low[rest], high[rest]
        point = _by_interior(part, beta, domain, a, b, 1e-13)
        for settled in (False, True):
            hard = (point.gap > DOUBTFUL).nonzero()[:, 0]
            if hard.numel():
                better = _by_interior(
                    part.select(hard), beta, domain, a[hard], b[hard], 1e-16, settled=settled
                )
                point = keep_better(point, hard, better)
        parts.append((rest, point))
    return scatter(parts, collapsed_point(pairs))


def _by_interior(
    pairs: PairBatch,
    beta: float,
    domain: Domain,
    low: Tensor,
    high: Tensor,
    tolerance: float,
    settled: bool = False,
) -> Point:
    pieces, free = LabelIntervals(pairs, beta, low, high), torch.zeros_like(low[:, 0])
    found = solve(pieces, free, free + 1, domain, pinned=True, tolerance=tolerance, settled=settled)
    share = found.z[:, 1] / found.z.sum(1).clamp(min=_TINY)
    t = (low + share * (high - low)).maximum(low).minimum(high)
    return _point(pairs, beta, domain, low, high, found.v[:, :-1], t, found.steps)


def _point(
    pairs: PairBatch,
    beta: float,
    domain: Domain,
    low: Tensor,
    high: Tensor,
    w: Tensor,
    t: Tensor,
    steps: Tensor,
) -> Point:
    w = domain.project(w)
    margin = beta * pairs.project(w)
    loss, slope = loss_and_slope(margin)
    worst = (low * margin).maximum(high * margin)
    value = (pairs.p * (loss + worst)).sum(-1)
    lost = (pairs.p * (worst - t * margin)).sum(-1)
    gap = lost + lower_gap(pairs, pairs.p, slope - t, w, beta, domain)
    none = torch.zeros_like(steps, dtype=torch.bool)
    point = Point(w, value, gap, torch.zeros_like(value), steps, none)
    rest = lower_gap(pairs, pairs.p, 0.5 - t, torch.zeros_like(w), beta, domain)
    return collapse_where_certified(point, rest, beta)


# ---------------------------------------------------------------------------------------- collapse
def labels_collapse(pairs: PairBatch, flip: Tensor, reach: Tensor) -> Collapse:
    """The least r with an E (1 - 2t) u = 0 among |t - flip| <= r reach, 0 <= t <= 1: a linear
    program each. Its weights p (1 - 2t) may be negative."""
    radii, weights = torch.zeros_like(pairs.p[:, 0]), torch.zeros_like(pairs.p)
    for r in range(pairs.replicates):
        live = (pairs.p[r] > 0).nonzero()[:, 0]
        ut = pairs.ut[r if pairs.ut.shape[0] > 1 else 0][:, live]
        given = (x[r, live].cpu().numpy() for x in (pairs.p, flip, reach))
        radius, t = _program(ut.T.cpu().numpy(), *given)
        radii[r] = radius
        weights[r, live] = pairs.p[r, live] * (1 - 2 * torch.from_numpy(t).to(ut.device))
    return Collapse(radii, weights)


def _program(u: Array, p: Array, flip: Array, reach: Array) -> tuple[float, Array]:
    n, size = len(u), max(float(np.abs(u).max()), _TINY)
    pull = (p[:, None] * u).T / (size * p.max())
    step, away = diags_array(np.ones(n)), csr_array(reach[:, None])
    found = linear_program(
        np.append(np.zeros(n), 1.0),
        A_eq=np.append(pull, np.zeros((len(pull), 1)), 1),
        b_eq=pull.sum(1) / 2,
        A_ub=vstack([hstack([step, -away]), hstack([-step, -away])]),
        b_ub=np.concatenate([flip, -flip]),
        bounds=[(0, 1)] * n + [(0, None)],
    )
    if found.x is None:
        return optimum(found, never=np.inf), flip
    # HiGHS lets a balance of 1e-7 pass: correct the chances that are free to move, or there is none
    t, free = np.clip(found.x[:n], 0, 1), reach > 0
    for _ in range(4):
        left = pull @ (0.5 - t)
        if np.abs(left).max() <= _BALANCED * np.abs(pull).sum():
            return max(float(found.fun), 0.0), t
        inside = free & (t > 1e-9) & (t < 1 - 1e-9)
        for movable in (inside, free):
            move = np.linalg.lstsq(pull[:, movable], left, rcond=None)[0]
            if np.abs(pull[:, movable] @ move - left).max() <= _BALANCED * np.abs(pull).sum():
                break
        t[movable] = np.clip(t[movable] + move, 0, 1)
    return np.inf, flip
