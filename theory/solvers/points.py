"""What the solvers hand over: points with their certificates, the starts they begin from, and the
bounds on their gaps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from theory.batch import PairBatch
from theory.solvers.newton import Domain, Smooth

LOG2 = 0.6931471805599453  # the loss of every pair at the reference policy
# a gap from which on a solver tries its slower way: well below the estimators' tolerance of 1e-10
DOUBTFUL = 5e-12


@dataclass
class Point:
    """What a solver hands over: w, the multiplier, and the steps it took.

    mass: (R, n) of the worst case that certifies w, NaN or None where it is not known, or has all
    atoms; `theory.solvers.nearest` needs it, and sets `several` (R,): whether other w are as good.
    """

    w: Tensor
    value: Tensor
    gap: Tensor
    dual: Tensor | None
    steps: Tensor
    collapsed: Tensor
    mass: Tensor | None = None
    several: Tensor | None = None


TENSORS = ("w", "value", "gap", "steps", "collapsed")  # the fields of a point that are always there


def linear_start(pairs: PairBatch, beta: float, domain: Domain) -> Tensor:
    """One Newton step of DPO from the reference policy, projected."""
    drift = pairs.pull(pairs.p) / 2
    covariance = pairs.outer(pairs.p) / 4
    ridge = 1e-8 * torch.diagonal(covariance, dim1=-2, dim2=-1).sum(-1) + 1e-300
    eye = torch.eye(pairs.dimension, dtype=torch.float64, device=pairs.p.device)
    return domain.project(torch.linalg.solve(covariance + ridge[:, None, None] * eye, drift) / beta)


def radial_start(pairs: PairBatch, beta: float, domain: Domain, price: Tensor) -> Tensor:
    """Minimise the second-order model of E l + price ||w|| along E u, the direction in which
    solutions leave w = 0."""
    drift = pairs.pull(pairs.p)
    norm = drift.norm(dim=-1).clamp(min=1e-300)
    direction = drift / norm[:, None]
    bend = (pairs.p * pairs.project(direction) ** 2).sum(-1).clamp(min=1e-300) * beta**2 / 4
    length = ((beta * norm / 2 - price) / bend).clamp(min=1e-6 / beta)
    room = domain.bound - domain.theta_ref.norm()  # stay inside the ball
    return direction * length.clamp(max=0.9 * room)[:, None]


def scatter(parts: list[tuple[Tensor, Point]], like: Point) -> Point:
    """Write the solutions of subsets of replicates into `like`."""
    for mask, point in parts:
        for name in TENSORS:
            getattr(like, name)[mask] = getattr(point, name)
        if like.dual is not None and point.dual is not None:
            like.dual[mask] = point.dual
        if point.mass is not None:
            if like.mass is None:
                size = (len(like.value), point.mass.shape[1])
                like.mass = point.mass.new_full(size, torch.nan)
            like.mass[mask] = point.mass
        elif like.mass is not None:
            like.mass[mask] = torch.nan
        if like.several is not None and point.several is not None:
            like.several[mask] = point.several
    return like


def take(point: Point, mask: Tensor) -> Point:
    taken = {name: getattr(point, name)[mask] for name in TENSORS}
    dual = None if point.dual is None else point.dual[mask]
    return Point(**taken, dual=dual, mass=None if point.mass is None else point.mass[mask])


def keep_better(point: Point, index: Tensor, other: Point) -> Point:
    """`point` with the replicates `index` replaced by `other` where its certificate is smaller."""
    better = other.gap < point.gap[index]
    return scatter([(index[better], take(other, better))], point)


def join(points: list[Point]) -> Point:
    joined = {name: torch.cat([getattr(point, name) for point in points]) for name in TENSORS}
    duals = [point.dual for point in points if point.dual is not None]
    several = [point.several for point in points if point.several is not None]
    found = Point(**joined, dual=torch.cat(duals) if duals else None)
    found.several = torch.cat(several) if several else None
    return found


def collapsed_point(pairs: PairBatch, dual: bool = True) -> Point:
    """The collapsed solution: w = 0 with value log 2, to be overwritten elsewhere."""
    zero = torch.zeros(pairs.replicates, dtype=torch.float64, device=pairs.p.device)
    w = torch.zeros(pairs.replicates, pairs.dimension, dtype=torch.float64, device=pairs.p.device)
    steps = torch.zeros_like(zero, dtype=torch.int64)
    return Point(
        w,
        zero + LOG2,
        zero.clone(),
        zero.clone() if dual else None,
        steps,
        torch.ones_like(zero, dtype=torch.bool),
    )


def lower_gap(
    pairs: PairBatch, q: Tensor, slope: Tensor, w: Tensor, beta: float, domain: Domain
) -> Tensor:
    """max over the ball of g_Q.(w - w') with g_Q = -beta sum q_i s_i u_i."""
    return domain.linear_gap(w, -beta * pairs.pull(q * slope))


def at_rest(pairs: PairBatch, q: Tensor | None, beta: float, domain: Domain) -> Point:
    """w = 0 with its value log 2 and what the weights q certify of it: nothing is better where
    E_q u = 0. Without weights, on the word of a collapse radius."""
    point = collapsed_point(pairs)
    if q is None:
        return point
    point.mass = q
    size = pairs.ut.norm(dim=1).amax(-1)
    pulled = pairs.pull(q)
    rounding = pulled.norm(dim=-1) <= 1e-13 * size  # of the sum itself
    gap = domain.linear_gap(point.w, -beta / 2 * pulled).clamp(min=0)
    point.gap = torch.where(rounding, 0.0, gap)
    return point


def norm_gap(w: Tensor, gradient: Tensor, c: Tensor, domain: Domain) -> Tensor:
    """Certificate of a convex function plus c||w||, which is at least c s.w for every ||s|| <= 1.

    s = w/||w|| is the subgradient; near w = 0 it turns with the last digit of w, and the s that
    cancels the gradient is better.
    """
    norm = w.norm(dim=-1, keepdim=True)
    unit = w / norm.clamp(min=1e-300)
    balance = -gradient / c.clamp(min=1e-300)[:, None]
    balance = balance / balance.norm(dim=-1, keepdim=True).clamp(min=1.0)
    lost = c * (norm[:, 0] - (balance * w).sum(-1))
    return domain.linear_gap(w, gradient + c[:, None] * unit).minimum(
        lost + domain.linear_gap(w, gradient + c[:, None] * balance)
    )


def smooth_point(function: Smooth, w: Tensor, steps: Tensor, domain: Domain) -> Point:
    """Value and linear gap of a function of w alone."""
    value, gradient, _ = function.derivatives(w)
    return Point(
        w,
        value,
        domain.linear_gap(w, gradient),
        None,
        steps,
        torch.zeros_like(steps, dtype=torch.bool),
    )
