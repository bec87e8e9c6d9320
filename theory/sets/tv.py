"""The total-variation ball.

min over c, eta >= 0 of rho eta + E max(l, c) with c + eta >= max l is polyhedral in the losses: at
the optimum several of them tie at c, or at the top. Solved by the interior-point method on three
pieces; the constraint is an exact penalty, whose multipliers sum to rho, so that a price of 2 rho
on the excess of any one loss is never paid.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from theory.batch import ArrayLike, PairBatch
from theory.duals import total_variation_dual
from theory.fitting import fit
from theory.functionals import total_variation_ball
from theory.policy import Array
from theory.results import Fit
from theory.sets.base import AmbiguitySet, AtPolicy, Facts, one_size
from theory.solvers.adversary import WorstCase, reweighted
from theory.solvers.collapse import Collapse, by_programs, linear_program, optimum
from theory.solvers.compiled.batches import Answer, answer
from theory.solvers.interior import NOTHING, solve
from theory.solvers.kl import solve_mean
from theory.solvers.local import AtFit, LocalProgram, mean_program
from theory.solvers.moves import half_line
from theory.solvers.newton import Domain
from theory.solvers.points import (
    DOUBTFUL,
    LOG2,
    Point,
    collapsed_point,
    keep_better,
    linear_start,
    lower_gap,
    scatter,
)
from theory.solvers.smooth import loss_and_slope
from theory.solvers.wasserstein import collapse_where_certified, settle_collapse

_TINY = 1e-300


@dataclass(frozen=True)
class TotalVariation(AmbiguitySet):
    """{Q : sum_i |q_i - p_i|/2 <= radius} on the atoms that have mass; radius in [0, 1].

    The worst case takes the mass radius from the lowest losses and gives it to the largest: it is
    radius max l + (1 - radius) CVaR at the share 1 - radius. Jiang and Guan (2018),
    doi:10.1287/opre.2018.1729.

    Args:
        radius: rho >= 0, a probability, a number or (R,) of them; None where only the kind matters.

    Raises:
        ValueError: where it is used, a radius that is missing, negative or not finite.

    >>> from theory import TotalVariation, worst_case
    >>> TotalVariation(0.2).name
    'tv'
    >>> worst_case([[1.0], [-1.0]], [0.5], TotalVariation(0.2), beta=1.0).weights.round(6).tolist()
    [0.3, 0.7]
    """

    radius: ArrayLike | None = None

    facts = Facts(
        name="tv",
        method="tv-dpo",
        title="total variation",
        about="DPO over a total-variation ball, exact",
        source="Jiang and Guan (2018), doi:10.1287/opre.2018.1729",
        size="radius",
        dual=total_variation_dual,
        reweights=True,
        objective="tv",
        option="rho",
        order=22,
    )

    def solve(self, pairs: PairBatch, beta: float, domain: Domain, size: Tensor) -> Point:
        return solve_tv(pairs, beta, domain, size)

    def compiled(
        self, pairs: PairBatch, beta: float, domain: Domain, size: Tensor
    ) -> Answer | None:
        return answer("tv", pairs, beta, domain, size, zero_is_mean=True)

    def collapse(self, pairs: PairBatch) -> Tensor:
        return tv_collapse(pairs).radius

    def largest(self, least: float) -> float:
        return 1 - least

    def range(self, grid: Array) -> Array:
        return grid

    def worst(self, at: AtPolicy) -> WorstCase:
        return reweighted(self.name, total_variation_dual, at.losses, at.p, one_size(self))

    def local(self, at: AtFit) -> LocalProgram:
        rho = one_size(self)
        if rho <= 0:
            return mean_program(at)
        eta = at.dual or 0.0
        live = at.p > 0
        # an exact penalty for c + eta >= l: the multipliers of the excess sum to rho
        price = torch.where(live, 2 * rho / at.p.clamp(min=_TINY), 0.0)
        top = at.loss(at.w)[live].max().item()

        def pieces(x: Tensor) -> Tensor:
            loss, c, height = at.loss(x[:-2]), x[-2].expand(len(at.p)), x[-1]
            high = loss + price * (loss - c - height)
            return torch.cat([c, loss, high]) + rho * height

        atom = torch.arange(len(at.p)).repeat(3)
        x = torch.cat([at.w, at.w.new_tensor([top - eta, eta])])
        floor = len(x) - 1 if eta <= 0 else None
        return LocalProgram(x, pieces, atom, floor, finite=True)

    def worst_value(self, losses: Tensor, size: float, weights: Tensor | None = None) -> Tensor:
        return total_variation_ball(losses, size, weights)


def tv_dpo(
    u: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    radius: ArrayLike,
    beta: float,
    bound: float | None = None,
    theta_ref: ArrayLike | None = None,
    tolerance: float = 1e-10,
) -> Fit:
    """min over theta of sup {E_Q l : TV(Q, P) <= radius}; `dual` is eta, how far below the largest
    loss the worst case takes its mass.

    Jiang and Guan (2018), doi:10.1287/opre.2018.1729; arguments as `fit`.

    Args:
        radius: rho >= 0, a probability, a number or (R,) of them.

    Returns:
        A `Fit`, with a batch axis where u, weights or the radius has one.

    Raises:
        ValueError: as `fit`.

    >>> from theory import tv_dpo
    >>> found = tv_dpo([[1.0], [-1.0]], [0.75, 0.25], radius=0.15, beta=1.0)
    >>> round(found.theta.exp().item(), 6)  # the odds of the worst case (0.6, 0.4)
    1.5
    """
    return fit(
        u,
        TotalVariation(radius),
        weights,
        beta=beta,
        bound=bound,
        theta_ref=theta_ref,
        tolerance=tolerance,
    )


# ------------------------------------------------------------------------------------------- solver
def solve_tv(pairs: PairBatch, beta: float, domain: Domain, radius: Tensor) -> Point:
    point = collapsed_point(pairs)
    plain = radius <= 0
    parts = []
    if plain.any():
        mean_fit = solve_mean(pairs.select(plain), beta, domain)
        mean_fit.dual = torch.full_like(mean_fit.value, torch.inf)
        parts.append((plain, mean_fit))
    if not plain.all():
        rest = (~plain).nonzero()[:, 0]
        part, rho = pairs.select(rest), radius[rest].clamp(max=1.0)
        solved = _tv(part, beta, domain, rho)
        solved = settle_collapse(part, solved, rho, beta, domain, tv_collapse)
        for tolerance in (1e-13, 1e-16):  # to settle ties is slow, and seldom needed
            hard = (~solved.collapsed & (solved.gap > DOUBTFUL)).nonzero()[:, 0]
            if hard.numel():
                better = _tv(part.select(hard), beta, domain, rho[hard], tolerance, settled=True)
                solved = keep_better(solved, hard, better)
        parts.append((rest, solved))
    return scatter(parts, point)


def _tv(
    pairs: PairBatch,
    beta: float,
    domain: Domain,
    rho: Tensor,
    tolerance: float = 1e-13,
    settled: bool = False,
) -> Point:
    margin = beta * pairs.project(linear_start(pairs, beta, domain))
    eta = (pairs.p * margin**2).sum(-1).sqrt().clamp(1e-3, 1.0)
    pieces = Excess(pairs, beta, rho, eta)
    found = solve(pieces, rho, eta, domain, tolerance=tolerance, settled=settled)
    w = domain.project(found.v[:, :-2])
    q = (found.z[:, 1] + (1 + pieces.price) * found.z[:, 2]) * (pairs.p > 0)
    q = q / q.sum(-1, keepdim=True).clamp(min=_TINY)
    away = (q - pairs.p).abs().sum(-1) / 2
    share = (rho / away.clamp(min=_TINY)).clamp(max=1.0)[:, None]
    q = pairs.p + share * (q - pairs.p)
    loss, slope = loss_and_slope(beta * pairs.project(w))
    worst = total_variation_dual(loss, pairs.p, rho)
    gap = worst.value - (q * loss).sum(-1) + lower_gap(pairs, q, slope, w, beta, domain)
    none = torch.zeros_like(found.steps, dtype=torch.bool)
    point = Point(w, worst.value, gap, worst.dual.clone(), found.steps, none, q)
    at_rest = lower_gap(pairs, q, torch.full_like(slope, 0.5), torch.zeros_like(w), beta, domain)
    return collapse_where_certified(point, at_rest, beta)


@dataclass
class Excess:
    """The pieces c, l and l + price (l - c - eta) of total variation at v = (w, c, eta).

    The gradient of piece j of atom i is along_ji (beta u_i, 0, 0) + at_c_ji e_c + at_eta_ji e_eta.
    """

    pairs: PairBatch
    beta: float
    rho: Tensor
    eta: Tensor  # where it starts

    def __post_init__(self) -> None:
        self.p = self.pairs.p.clamp(min=NOTHING)
        live = self.pairs.p > 0
        self.price = torch.where(live, 2 * self.rho[:, None] / self.p, 0.0)
        self.middle = (LOG2 - self.eta / 2)[:, None]

    def move(self, v: Tensor) -> Tensor:
        c, eta = v[:, -2:-1], v[:, -1:]
        loss, s = loss_and_slope(self.beta * self.pairs.project(v[:, :-2]))
        zero = torch.zeros_like(s)
        self.along = torch.stack([zero, -s, -(1 + self.price) * s], 1)
        self.at_c = torch.stack([zero + 1, zero, -self.price], 1)
        self.at_eta = torch.stack([zero, zero, -self.price], 1)
        self.bend = s * (1 - s)
        return torch.stack([c.expand_as(loss), loss, loss + self.price * (loss - c - eta)], 1)

    def gradient(self, c: Tensor) -> Tensor:
        to_w = self.beta * self.pairs.pull((c * self.along).sum(1))
        rest = [(c * x).sum((1, 2))[:, None] for x in (self.at_c, self.at_eta)]
        return torch.cat([to_w, *rest], 1)

    def directional(self, dv: Tensor) -> Tensor:
        u_dot = self.beta * self.pairs.project(dv[:, :-2])
        moved = self.at_c * dv[:, -2, None, None] + self.at_eta * dv[:, -1, None, None]
        return self.along * u_dot[:, None, :] + moved

    def curvature(self, z: Tensor, stiffness: Tensor) -> Tensor:
        total = stiffness.sum(1, keepdim=True).clamp(min=_TINY)
        a, c, e = (
            x - (stiffness * x).sum(1, keepdim=True) / total
            for x in (self.along, self.at_c, self.at_eta)
        )
        d, pull = self.pairs.dimension, self.pairs.pull
        out = z.new_zeros(z.shape[0], d + 2, d + 2)
        bend = (z[:, 1] + (1 + self.price) * z[:, 2]) * self.bend
        out[:, :d, :d] = self.beta**2 * self.pairs.outer((stiffness * a**2).sum(1) + bend)
        for k, x in ((d, c), (d + 1, e)):
            cross = self.beta * pull((stiffness * a * x).sum(1))
            out[:, :d, k] = cross
            out[:, k, :d] = cross
            out[:, k, k] = (stiffness * x**2).sum((1, 2))
        both = (stiffness * c * e).sum((1, 2))
        out[:, d, d + 1] = both
        out[:, d + 1, d] = both
        return out

    def cone(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return half_line(v)

    def select(self, index: Tensor) -> "Excess":
        return Excess(self.pairs.select(index), self.beta, self.rho[index], self.eta[index])


def tv_collapse(pairs: PairBatch) -> Collapse:
    """min {TV(q, p) : E_q u = 0}, infinite where no q has it: a linear program each."""
    return by_programs(pairs, _tv_program)


def _tv_program(u: Array, p: Array) -> tuple[float, Array]:
    """min {sum a : q = p - a + b, sum a = sum b, q u = 0} with 0 <= a <= p and b >= 0."""
    n = len(u)
    x = u.T / max(np.abs(u).max(), _TINY)
    equal = np.concatenate([np.ones((1, n)), x])
    found = linear_program(
        np.append(np.ones(n), np.zeros(n)),
        A_eq=np.concatenate([-equal, equal], 1),
        b_eq=np.append(0.0, -x @ p),
        bounds=[(0, mass) for mass in p] + [(0, None)] * n,
    )
    q = p if found.x is None else p - found.x[:n] + found.x[n:]
    return max(optimum(found, never=np.inf), 0.0), q


MEMBERS = (TotalVariation(),)
ESTIMATORS = (tv_dpo,)
