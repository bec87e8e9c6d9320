"""The chi-squared ball.

    sup {E_Q l : chi2(Q, P) <= rho} = min_c c + sqrt(1 + rho) (E (l - c)_+²)^(1/2),

convex in (w, c) and, with c minimised out, continuously differentiable in w with the gradient
E_q grad l. Newton's method on that function of w converges although its Hessian jumps where a loss
crosses c (semismooth: Qi and Sun, 1993).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from theory.batch import ArrayLike, PairBatch
from theory.duals import chi2_ball_dual
from theory.fitting import fit
from theory.functionals import chi2_ball
from theory.policy import Array
from theory.results import Fit
from theory.sets.base import AmbiguitySet, AtPolicy, Facts, one_size
from theory.solvers.adversary import WorstCase, reweighted
from theory.solvers.collapse import Collapse, decided, dual_ascent
from theory.solvers.compiled.batches import Answer, answer
from theory.solvers.interior import solve
from theory.solvers.kl import solve_point_ball
from theory.solvers.local import AtFit, LocalProgram, divergence_program, mean_program
from theory.solvers.moves import LargestLoss
from theory.solvers.newton import Domain, minimise
from theory.solvers.points import (
    DOUBTFUL,
    LOG2,
    Point,
    at_rest,
    collapsed_point,
    keep_better,
    linear_start,
    lower_gap,
    scatter,
)
from theory.solvers.smooth import Derivatives, excess_loss, loss_and_slope

_TINY = 1e-300


@dataclass(frozen=True)
class ChiSquared(AmbiguitySet):
    """{Q : sum_i (q_i - p_i)²/p_i <= radius}; Duchi and Namkoong's rho is half of it.

    Ben-Tal et al. (2013), doi:10.1287/mnsc.1120.1641; Duchi and Namkoong, arXiv:1810.08750v6.

    Args:
        radius: rho >= 0 without a unit, a number or (R,) of them; None where only the kind matters.

    Raises:
        ValueError: where it is used, a radius that is missing, negative or not finite.

    >>> from theory import ChiSquared, worst_case
    >>> ChiSquared(0.2).name
    'chi2'
    >>> worst_case([[1.0], [-1.0]], [0.5], ChiSquared(0.25), beta=1.0).weights.round(6).tolist()
    [0.25, 0.75]
    """

    radius: ArrayLike | None = None

    facts = Facts(
        name="chi2",
        method="chi2-dpo",
        title="chi-squared",
        about="DPO over a chi-squared ball, exact",
        source="Duchi and Namkoong, arXiv:1810.08750v6",
        dual=chi2_ball_dual,
        reweights=True,
        objective="chi2",
        option="rho",
        order=20,
    )

    def solve(self, pairs: PairBatch, beta: float, domain: Domain, size: Tensor) -> Point:
        return solve_chi2(pairs, beta, domain, size)

    def compiled(
        self, pairs: PairBatch, beta: float, domain: Domain, size: Tensor
    ) -> Answer | None:
        return answer("chi2", pairs, beta, domain, size, zero_is_mean=True)

    def collapse(self, pairs: PairBatch) -> Tensor:
        return chi2_collapse(pairs).radius

    def largest(self, least: float) -> float:
        return 1 / least - 1

    def range(self, grid: Array) -> Array:
        return 4.0 * grid

    def worst(self, at: AtPolicy) -> WorstCase:
        return reweighted(self.name, chi2_ball_dual, at.losses, at.p, one_size(self))

    def local(self, at: AtFit) -> LocalProgram:
        rho = one_size(self)
        if rho <= 0:
            return mean_program(at)
        lam, loss = at.multiplier, at.loss(at.w)
        size = at.p.new_tensor([rho])
        ratio = chi2_ball_dual(loss[None], at.p[None], size).weights[0] / at.p.clamp(min=_TINY)
        top = int(ratio.argmax())  # where q/p = 1 + (l - c)/(2 lambda) is surely positive
        shift = (loss[top] - 2 * lam * (ratio[top] - 1)).item()

        def conjugate(s: Tensor) -> Tensor:  # of (r - 1)², r >= 0
            return torch.where(s > -2, s + s**2 / 4, -1.0)

        return divergence_program(at, conjugate, rho, lam, shift)

    def worst_value(self, losses: Tensor, size: float, weights: Tensor | None = None) -> Tensor:
        return chi2_ball(losses, size, weights)


def chi2_dpo(
    u: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    radius: ArrayLike,
    beta: float,
    bound: float | None = None,
    theta_ref: ArrayLike | None = None,
    tolerance: float = 1e-10,
) -> Fit:
    """min over theta of sup {E_Q l : chi2(Q, P) <= radius}; `dual` is its multiplier.

    Duchi and Namkoong, arXiv:1810.08750v6; arguments as `fit`.

    Args:
        radius: rho >= 0 without a unit, a number or (R,) of them.

    Returns:
        A `Fit`, with a batch axis where u, weights or the radius has one.

    Raises:
        ValueError: as `fit`.

    >>> from theory import chi2_dpo
    >>> found = chi2_dpo([[1.0], [-1.0]], [0.75, 0.25], radius=0.12, beta=1.0)
    >>> round(found.theta.exp().item(), 6)  # the odds of the worst case (0.6, 0.4)
    1.5
    """
    return fit(
        u,
        ChiSquared(radius),
        weights,
        beta=beta,
        bound=bound,
        theta_ref=theta_ref,
        tolerance=tolerance,
    )


# ------------------------------------------------------------------------------------------- solver
def solve_chi2(pairs: PairBatch, beta: float, domain: Domain, radius: Tensor) -> Point:
    point = collapsed_point(pairs)
    plain = radius <= 0
    parts = []
    if plain.any():
        parts.append((plain, solve_point_ball(pairs.select(plain), beta, domain)))
    if not plain.all():
        rest = ~plain
        parts.append((rest, _positive(pairs.select(rest), beta, domain, radius[rest])))
    return scatter(parts, point)


def _positive(pairs: PairBatch, beta: float, domain: Domain, radius: Tensor) -> Point:
    start = linear_start(pairs, beta, domain)
    w, settled, steps = minimise(
        ChiSquaredLoss(pairs, beta, radius), start, domain, max_steps=10, halvings=6
    )
    point = _point(pairs, beta, domain, radius, w, steps)
    doubt = (~settled | (point.gap > DOUBTFUL) | (w.norm(dim=-1) * beta < 1e-3)).nonzero()[:, 0]
    if doubt.numel():
        better = _hard(pairs.select(doubt), beta, domain, radius[doubt], w[doubt])
        point = scatter([(doubt, better)], point)
    return point


def _hard(pairs: PairBatch, beta: float, domain: Domain, radius: Tensor, w: Tensor) -> Point:
    """Decide collapse by its radius; else leave w = 0 where its dual points, then the largest loss,
    which is the objective once the ball holds the point masses."""
    collapse = chi2_collapse(pairs)
    nu, point = collapse.direction, at_rest(pairs, collapse.weights, beta, domain)
    out = (~(radius >= collapse.radius * (1 - 1e-9))).nonzero()[:, 0]
    if not out.numel():
        return point
    part, r = pairs.select(out), radius[out]
    room = (domain.bound - domain.theta_ref.norm()).clamp(max=1e-2 / beta)
    away = -nu[out] / nu[out].norm(dim=-1, keepdim=True).clamp(min=_TINY) * room
    solved = _point(part, beta, domain, r, w[out], torch.zeros_like(out))
    for start, most in ((away, 30), (None, 0), (away, 200), (w[out], 200), (0.1 * w[out], 200)):
        again = (solved.gap > DOUBTFUL).nonzero()[:, 0]
        if not again.numel():
            break
        some, size = part.select(again), r[again]
        if start is None:  # where losses tie, Newton's method creeps
            better = _largest(some, beta, domain, size)
        else:
            function = ChiSquaredLoss(some, beta, size)
            v, _, steps = minimise(function, start[again], domain, max_steps=most)
            better = _point(some, beta, domain, size, v, steps)
        solved = keep_better(solved, again, better)
    return scatter([(out, solved)], point)


def _point(
    pairs: PairBatch, beta: float, domain: Domain, radius: Tensor, w: Tensor, steps: Tensor
) -> Point:
    margin = beta * pairs.project(w)
    worst = chi2_ball_dual(excess_loss(margin), pairs.p, radius)
    slope = loss_and_slope(margin)[1]
    gap = worst.gap + lower_gap(pairs, worst.weights, slope, w, beta, domain)
    none = torch.zeros_like(steps, dtype=torch.bool)
    return Point(w, LOG2 + worst.value, gap, worst.dual.clone(), steps, none, worst.weights)


def _largest(pairs: PairBatch, beta: float, domain: Domain, radius: Tensor) -> Point:
    """Minimise the largest loss; certified where the weights of its ties are in the ball."""
    one = torch.ones_like(radius)
    pieces = LargestLoss(pairs, torch.zeros_like(pairs.p[:1, :1]), beta)
    found = solve(pieces, 0 * one, one, domain, pinned=True, settled=True)
    w, q = domain.project(found.v[:, :-1]), found.z[:, :, 0] * (pairs.p > 0)
    q = q / q.sum(-1, keepdim=True)
    loss, slope = loss_and_slope(beta * pairs.project(w))
    spent = _divergence(q, pairs.p)
    worst = chi2_ball_dual(loss, pairs.p, radius)
    gap = worst.value - (q * loss).sum(-1) + lower_gap(pairs, q, slope, w, beta, domain)
    gap = torch.where(spent <= radius, gap, torch.inf)
    none = torch.zeros_like(found.steps, dtype=torch.bool)
    return Point(w, worst.value, gap, worst.dual.clone(), found.steps, none, q)


@dataclass(frozen=True)
class ChiSquaredLoss:
    """The worst mean loss less log 2 with the threshold c minimised out, a function of w.

    With r = (l - c)_+ and N = (E r²)^(1/2): F = c + a N, a = sqrt(1 + rho). Its Hessian is that of
    F(w, c) with c eliminated, which the weights q = a p r/N = p r/E r and the count of the active
    atoms give.
    """

    pairs: PairBatch
    beta: float
    radius: Tensor

    def derivatives(self, v: Tensor) -> Derivatives:
        pairs, margin = self.pairs, self.beta * self.pairs.project(v)
        loss, s = excess_loss(margin), loss_and_slope(margin)[1]
        worst = chi2_ball_dual(loss, pairs.p, self.radius)
        q = worst.weights
        gradient = -self.beta * pairs.pull(q * s)
        # E r = N/a, so that 1/N-weighted sums are those of q and of p on the active atoms over E r
        active = torch.where(q > 0, pairs.p, 0.0)
        mass = active.sum(-1, keepdim=True)
        ratio = q / pairs.p.clamp(min=_TINY)  # r/E r
        mean = (active * loss).sum(-1, keepdim=True) / mass
        spread = (active * (loss - mean) ** 2).sum(-1, keepdim=True) / mass
        tilt = (active * (ratio - 1 / mass) ** 2).sum(-1, keepdim=True) / mass
        reach = (spread / tilt.clamp(min=_TINY)).sqrt()  # E r
        level = torch.where(tilt > _TINY, reach, torch.inf).clamp(min=1e-150)
        a2 = (1 + self.radius)[:, None]  # F_ww = (a²/a) E[...]/N, and a/N = 1/(E r)
        bent = self.beta**2 * pairs.outer(q * s * (1 - s))
        plain = -self.beta * pairs.pull(active * s)
        square = self.beta**2 * pairs.outer(active * s**2) / level[:, :, None]
        outer = gradient[:, :, None] * gradient[:, None, :] / (a2 * level)[:, :, None]
        cross = (-plain + gradient / a2) / level
        corner = ((mass - 1 / a2) / level)[:, 0].clamp(min=_TINY)
        eliminated = cross[:, :, None] * cross[:, None, :] / corner[:, None, None]
        return worst.value, gradient, bent + square - outer - eliminated

    def select(self, index: Tensor) -> "ChiSquaredLoss":
        return replace(self, pairs=self.pairs.select(index), radius=self.radius[index])


# ---------------------------------------------------------------------------------------- collapse
def chi2_collapse(pairs: PairBatch) -> Collapse:
    """min {chi2(Q||P) : E_Q u = 0} = max over (nu, t) of t - E phi(t + nu.u), with nu (R, d).

    phi(s) = s + s²/4 for s >= -2, else -1. By Newton's method on the dual.
    """
    scale = pairs.ut.norm(dim=1).amax(-1).clamp(min=_TINY)
    unit = PairBatch(pairs.ut / scale[:, None, None], pairs.p)
    lifted = PairBatch(torch.cat([unit.ut, torch.ones_like(unit.ut[:, :1])], 1), pairs.p)
    largest = 1 / torch.where(pairs.p > 0, pairs.p, 1.0).amin(-1) - 1
    v, value = dual_ascent(_Conjugate(lifted), pairs.dimension + 1, largest)
    q = pairs.p * (1 + lifted.project(v) / 2).clamp(min=0)
    return decided(unit, q, value, largest, _divergence, v[:, :-1] / scale[:, None])


def _divergence(q: Tensor, p: Tensor) -> Tensor:
    return torch.where(p > 0, (q - p) ** 2 / p.clamp(min=_TINY), 0.0).sum(-1)


class _Conjugate:
    """E phi(v.(u, 1)) - t, t the last of v."""

    def __init__(self, pairs: PairBatch):
        self.pairs = pairs

    def derivatives(self, v: Tensor) -> Derivatives:
        s = self.pairs.project(v)
        inside = s > -2
        value = torch.where(inside, s + s**2 / 4, -1.0)
        slope, bend = torch.where(inside, 1 + s / 2, 0.0), inside.to(s.dtype) / 2
        gradient = self.pairs.pull(self.pairs.p * slope)
        gradient[:, -1] -= 1
        total = (self.pairs.p * value).sum(-1) - v[:, -1]
        return total, gradient, self.pairs.outer(self.pairs.p * bend)

    def select(self, index: Tensor) -> "_Conjugate":
        return _Conjugate(self.pairs.select(index))


MEMBERS = (ChiSquared(),)
ESTIMATORS = (chi2_dpo,)
