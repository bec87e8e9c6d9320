"""Minimisers that are not unique, and the one of them nearest to the reference policy.

Let (w0, Q) be a saddle point of E_Q l. Any other minimiser w also minimises E_Q l, which is
strictly convex along every u_j that Q gives mass: w.u_j = w0.u_j for all of these. So the
minimisers are

    {w : (w - w0).u_j = 0 where Q_j > 0, F(w) <= F(w0), ||w + theta_ref|| <= B},

F the worst mean loss: a single point where these u_j span all directions. Else the point nearest
to a target is found by cutting planes F(w') + g'.(w - w') <= F(w0) in the null space of the u_j,
each a least-distance program. Derived; Kelley (1960); Lawson and Hanson (1974), Chapter 23.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from theory.batch import PairBatch
from theory.duals import BallDual
from theory.policy import Array
from theory.solvers.newton import Domain
from theory.solvers.points import LOG2, Point
from theory.solvers.smooth import loss_and_slope

# (losses (1, n), p (1, n), size (1,)) -> the worst case
Worst = Callable[[Tensor, Tensor, Tensor], BallDual]

# of an atom in the worst case, below which it has none; and the share of its own probability, for
# rare atoms
_MASS, _SHARE = 1e-7, 1e-4
_RANK = 1e-10  # squared singular values, relative to the largest, that count as none
_PRESSED = 1e-7  # share of the gradient that the bound has to hold to hold theta
_MOVED = 1e-6  # change of a margin from which on minimisers are two
_EQUAL, _NEARLY = 1e-14, 1e-12  # excess of a value that is none; that is accepted at the end
_REST = 1e-9  # margins below which the point of least norm is the reference policy itself
_CUTS = 60


def nearest(
    pairs: PairBatch, point: Point, worst: Worst, sizes: Tensor, beta: float, domain: Domain
) -> Point:
    """The point with those minimisers that are not unique replaced by the ones of least ||w||, and
    `several` (R,) where they are not. What it costs is in proportion to these; where the solver did
    not hand over the worst case's mass, nothing is done.
    """
    several = torch.zeros_like(point.collapsed)
    if point.mass is None:
        return replace(point, several=several)
    for r in _flat(pairs, point, beta, domain).nonzero()[:, 0]:
        index = r[None]
        face = _Face(pairs.select(index), point, r, worst, sizes[index], beta, domain)
        if face.reach == 0:  # no pair has features: all theta are as good
            several[r] = True
            continue
        found = face.project(-face.basis.T @ face.start)
        if found is None:
            continue
        if face.change(found) <= _MOVED or bool(point.collapsed[r]):
            several[r] = face.is_more_than(np.zeros_like(found))
            continue
        several[r] = True
        w, value, dual = face.at(found)
        if float(w.norm()) * face.reach <= _REST and float(value) >= LOG2 - _NEARLY:
            w, value = torch.zeros_like(w), torch.full_like(value, LOG2)
            point.collapsed[r] = True
        point.w[r] = w
        point.gap[r] += (value - point.value[r]).clamp(min=0)
        point.value[r] = value
        if point.dual is not None:
            point.dual[r] = dual
    return replace(point, several=several, mass=None)


def _flat(pairs: PairBatch, point: Point, beta: float, domain: Domain) -> Tensor:
    """Where the atoms with mass do not span all directions, and the bound does not hold theta."""
    mass = point.mass
    assert mass is not None
    live = _live(mass, pairs.p).to(mass.dtype)
    size = (pairs.ut**2).mean(-1).sqrt().clamp(min=1e-300)  # (R or 1, d)
    unit = PairBatch(pairs.ut / size[:, :, None], pairs.p)
    spread = torch.linalg.eigvalsh(unit.outer(live))
    flat = spread[:, 0] <= _RANK * spread[:, -1]
    slope = mass * loss_and_slope(beta * pairs.project(point.w))[1]
    pushes = (slope * pairs.ut.norm(dim=1)).sum(-1)
    pressed = (point.w + domain.theta_ref).norm(dim=-1) >= domain.bound * (1 - 1e-9)
    pressed &= pairs.pull(slope).norm(dim=-1) > _PRESSED * pushes
    return torch.isfinite(mass).all(-1) & flat & ~pressed & torch.isfinite(point.value)


def _live(mass: Tensor, p: Tensor) -> Tensor:
    """Which atoms have mass in the worst case."""
    return mass > (_SHARE * p).clamp(max=_MASS)


class _Face:
    """The minimisers of one replicate as w0 + basis y."""

    def __init__(
        self,
        one: PairBatch,
        point: Point,
        r: Tensor,
        worst: Worst,
        size: Tensor,
        beta: float,
        domain: Domain,
    ) -> None:
        assert point.mass is not None
        self.one, self.worst, self.size, self.beta = one, worst, size, beta
        self.reference, self.bound = domain.theta_ref.cpu().numpy(), domain.bound
        self.u = one.ut[0].T.cpu().numpy()
        self.start = point.w[r].cpu().numpy()
        self.reach = beta * np.linalg.norm(self.u, axis=1).max()  # margins per length
        live = self.u[_live(point.mass[r], one.p[0]).cpu().numpy()]
        live = live / np.linalg.norm(live, axis=1, keepdims=True).clip(min=1e-300)
        _, sizes, right = np.linalg.svd(live)
        rank = int((sizes**2 > _RANK * sizes[0] ** 2).sum()) if len(sizes) else 0
        self.basis: Array = right[rank:].T
        self.cuts: list[tuple[Array, float]] = []
        self.least = self._worst(self.start)[0]

    def change(self, y: Array) -> float:
        """The most that a margin of the size of the largest moves."""
        return float(self.reach * np.linalg.norm(y))

    def at(self, y: Array) -> tuple[Tensor, Tensor, Tensor]:
        """w, and the value and the multiplier there."""
        w = torch.from_numpy(self.start + self.basis @ y).to(self.one.p.device)
        found = self._dual(w)
        return w, found.value[0], found.dual[0]

    def is_more_than(self, y: Array) -> bool:
        """Whether another minimiser exists: of two opposite targets in general position one lies on
        the side of any other point of a convex set."""
        away = np.random.default_rng(0).normal(size=len(y))
        away /= np.linalg.norm(away) * self.reach
        for target in (y + away, y - away):
            found = self.project(target)
            if found is not None and self.change(found - y) > 1e3 * _MOVED:
                return True
        return False

    def project(self, target: Array) -> Array | None:
        """The point of the face nearest to a target, None where cutting planes do not get there."""
        y = target
        for _ in range(_CUTS):
            w = self.start + self.basis @ y
            theta = w + self.reference
            length = float(np.linalg.norm(theta))
            value, gradient = self._worst(w)
            over = value - self.least
            inside = length <= self.bound * (1 + 1e-14)
            if inside and over <= _EQUAL:
                return y
            if not inside:
                normal = theta / length
                first = float(normal @ (self.start + self.reference))
                self._cut(self.basis.T @ normal, self.bound - first)
            if over > _EQUAL:
                slope = self.basis.T @ gradient
                self._cut(slope, float(slope @ y) - over)
            last, y = y, self._least_distance(target)
            if self.change(y - last) <= 1e-14 * (1 + self.change(y)):
                break
        return y if inside and over <= _NEARLY else None

    def _cut(self, normal: Array, room: float) -> None:
        length = float(np.linalg.norm(normal))
        if length > 0:  # y = 0 is a minimiser, which rounding must not cut off
            self.cuts.append((normal / length, max(room / length, 0.0)))

    def _least_distance(self, target: Array) -> Array:
        """min ||y - target|| under the cuts, by non-negative least squares."""
        if not self.cuts:
            return target
        normals, room = np.array([a for a, _ in self.cuts]), np.array([b for _, b in self.cuts])
        missing = normals @ target - room
        unit = max(float(np.abs(missing).max()), 1e-300)
        rows = np.concatenate([-normals.T, missing[None] / unit])
        x, _ = nnls(rows, np.eye(len(rows))[-1], maxiter=100 * len(room))
        left = rows @ x - np.eye(len(rows))[-1]
        if left[-1] >= 0:  # only y = 0 is left, up to rounding
            return np.zeros_like(target)
        return target - unit * left[:-1] / left[-1]

    def _dual(self, w: Tensor) -> BallDual:
        loss = loss_and_slope(self.beta * self.one.project(w[None]))[0]
        return self.worst(loss, self.one.p, self.size)

    def _worst(self, w: Array) -> tuple[float, Array]:
        """The worst mean loss and its gradient."""
        at = torch.from_numpy(w).to(self.one.p.device)
        found = self._dual(at)
        slope = loss_and_slope(self.beta * self.one.project(at[None]))[1]
        gradient = -self.beta * self.one.pull(found.weights * slope)[0]
        return float(found.value), gradient.cpu().numpy()
