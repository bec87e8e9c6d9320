"""Solvers for the mean loss, the tilted loss and the KL ball."""

import torch
from torch import Tensor

from theory.batch import PairBatch
from theory.duals import kl_ball_dual
from theory.solvers.collapse import kl_collapse
from theory.solvers.interior import solve
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
    smooth_point,
    take,
)
from theory.solvers.smooth import (
    KlBallLoss,
    KlBallProfile,
    MeanLoss,
    TiltedLoss,
    excess_loss,
    loss_and_slope,
)


def solve_mean(pairs: PairBatch, beta: float, domain: Domain) -> Point:
    function = MeanLoss(pairs, beta)
    w, _, steps = minimise(function, linear_start(pairs, beta, domain), domain)
    return smooth_point(function, w, steps, domain)


def solve_point_ball(pairs: PairBatch, beta: float, domain: Domain) -> Point:
    """A ball of radius zero, whose multiplier is infinite."""
    point = solve_mean(pairs, beta, domain)
    point.dual = torch.full_like(point.value, torch.inf)
    return point


def solve_tilt(pairs: PairBatch, beta: float, domain: Domain, tau: Tensor) -> Point:
    function = TiltedLoss(pairs, beta, tau)
    w, settled, steps = minimise(function, linear_start(pairs, beta, domain), domain)
    point = smooth_point(function, w, steps, domain)
    hard = ~settled | (point.gap > 1e-10)
    if hard.any():
        w, extra = _follow_tilt(pairs.select(hard), beta, domain, tau[hard])
        again = smooth_point(TiltedLoss(pairs.select(hard), beta, tau[hard]), w, extra, domain)
        point = scatter([(hard, again)], point)
    return point


def _follow_tilt(
    pairs: PairBatch, beta: float, domain: Domain, tau: Tensor
) -> tuple[Tensor, Tensor]:
    """Minimise the tilted risk at small tau by halving the temperature from where Newton's method
    is at ease."""
    w = linear_start(pairs, beta, domain)
    steps = torch.zeros(pairs.replicates, dtype=torch.int64, device=pairs.p.device)
    now = tau.clamp(min=1.0)
    while True:
        w, _, extra = minimise(TiltedLoss(pairs, beta, now), w, domain)
        steps = steps + extra
        if bool((now <= tau).all()):
            return w, steps
        now = torch.maximum(now / 2, tau)


def solve_kl(pairs: PairBatch, beta: float, domain: Domain, radius: Tensor) -> Point:
    point = collapsed_point(pairs)
    plain = radius <= 0
    parts = []
    if plain.any():
        mean_fit = solve_point_ball(pairs.select(plain), beta, domain)
        parts.append((plain, mean_fit))
    if not plain.all():
        rest = ~plain
        parts.append((rest, _kldpo_positive(pairs.select(rest), beta, domain, radius[rest])))
    return scatter(parts, point)


def _kldpo_positive(pairs: PairBatch, beta: float, domain: Domain, radius: Tensor) -> Point:
    w0 = linear_start(pairs, beta, domain)
    # for Gaussian u the collapse radius is -log(1 - c)/2 with c = Eu'(E uu')^-1 Eu, and w shrinks
    # with the root of the radius
    c = (beta / 2 * (w0 * pairs.pull(pairs.p)).sum(-1)).clamp(0, 1 - 1e-6)
    w0 = (
        w0 * (1 - (2 * radius / -torch.log1p(-c).clamp(max=-1e-12)).sqrt()).clamp(min=0.02)[:, None]
    )
    loss, _ = loss_and_slope(beta * pairs.project(w0))
    spread = (pairs.p * (loss - (pairs.p * loss).sum(-1, keepdim=True)) ** 2).sum(-1).sqrt()
    lam0 = (spread / (2 * radius).sqrt()).clamp(min=1e-3 * beta)  # KL ≈ Var/(2 lambda²)
    v, settled, steps = minimise(
        KlBallLoss(pairs, beta, radius),
        torch.cat([w0, lam0[:, None]], -1),
        domain,
        max_steps=10,
        halvings=6,
    )
    point = _kl_point(pairs, beta, domain, radius, v[:, :-1], steps)
    # what is left: collapse, or nearly so (w and lambda go to zero together), and separable samples
    # (lambda alone does)
    doubt = (~settled | (point.gap > DOUBTFUL) | (v[:, :-1].norm(dim=-1) * beta < 1e-3)).nonzero()[
        :, 0
    ]
    if doubt.numel():
        point = scatter(
            [(doubt, _kl_hard(pairs.select(doubt), beta, domain, radius[doubt]))], point
        )
    return point


def _kl_hard(pairs: PairBatch, beta: float, domain: Domain, radius: Tensor) -> Point:
    """Decide collapse by its radius; else leave w = 0 in the direction of the collapse dual, lambda
    minimised out."""
    collapse = kl_collapse(pairs)
    nu, point = collapse.direction, at_rest(pairs, collapse.weights, beta, domain)
    # within 1e-9 of it w is of that order and the value of its square: both are zero to the digits
    # that a certificate has
    out = (~(radius >= collapse.radius * (1 - 1e-9))).nonzero()[:, 0]
    if out.numel():
        never = out[torch.isinf(collapse.radius[out])]
        if never.numel():
            at_once = _kl_separable(pairs.select(never), beta, domain, radius[never])
            point = scatter([(never, at_once)], point)
            out = out[torch.isfinite(collapse.radius[out]) | (point.gap[out] > DOUBTFUL)]
    if out.numel():
        part, r = pairs.select(out), radius[out]
        room = (domain.bound - domain.theta_ref.norm()).clamp(max=1e-2 / beta)
        start = -nu[out] / nu[out].norm(dim=-1, keepdim=True).clamp(min=1e-300) * room
        w, _, steps = minimise(KlBallProfile(part, beta, r), start, domain)
        solved = _kl_point(part, beta, domain, r, w, steps)
        again = (solved.gap > DOUBTFUL).nonzero()[:, 0]
        if again.numel():
            better = _kl_path(part.select(again), beta, domain, r[again])
            solved = keep_better(solved, again, better)
            tied = again[solved.gap[again] > DOUBTFUL]
            if tied.numel():
                solved = keep_better(
                    solved, tied, _kl_largest(part.select(tied), beta, domain, r[tied])
                )
        point = scatter([(out, solved)], point)
    return point


def _kl_separable(pairs: PairBatch, beta: float, domain: Domain, radius: Tensor) -> Point:
    """Where no Q has E_Q u = 0: far out all losses vanish, as at the minimiser of their mean;
    nearer the largest is often what is minimised. Cheap to try, and certified where it is right."""
    mean_fit = solve_mean(pairs, beta, domain)
    point = _kl_point(pairs, beta, domain, radius, mean_fit.w, mean_fit.steps)
    left = (point.gap > DOUBTFUL).nonzero()[:, 0]
    if left.numel():
        tied = _kl_largest(pairs.select(left), beta, domain, radius[left])
        point = keep_better(point, left, tied)
    return point


def _kl_point(
    pairs: PairBatch, beta: float, domain: Domain, radius: Tensor, w: Tensor, steps: Tensor
) -> Point:
    margin = beta * pairs.project(w)
    worst = kl_ball_dual(excess_loss(margin), pairs.p, radius)
    gap = worst.gap + lower_gap(pairs, worst.weights, loss_and_slope(margin)[1], w, beta, domain)
    value = LOG2 + worst.value
    return Point(
        w,
        value,
        gap.minimum(value.clamp(min=0)),  # no loss is negative, and so no optimum
        worst.dual.clone(),
        steps,
        torch.zeros_like(steps, dtype=torch.bool),
    )


def _kl_largest(pairs: PairBatch, beta: float, domain: Domain, radius: Tensor) -> Point:
    """Minimise the largest loss, which is the solution where lambda = 0; certified where the
    weights of the ties are in the ball.

    The path ends short of it, some 1e-11 above: at lambda the exponents l/lambda have lost the
    digits that divide the ties.
    """
    one = torch.ones_like(radius)
    pieces = LargestLoss(pairs, torch.zeros_like(pairs.p[:1, :1]), beta)
    found = solve(pieces, 0 * one, one, domain, pinned=True, settled=True)
    w, q = domain.project(found.v[:, :-1]), found.z[:, :, 0] * (pairs.p > 0)
    q = q / q.sum(-1, keepdim=True)
    loss, slope = loss_and_slope(beta * pairs.project(w))
    kl = torch.where(q > 0, q * (q.clamp(min=1e-300) / pairs.p.clamp(min=1e-300)).log(), 0.0).sum(
        -1
    )
    worst = kl_ball_dual(loss, pairs.p, radius)
    gap = worst.value - (q * loss).sum(-1) + lower_gap(pairs, q, slope, w, beta, domain)
    gap = torch.where(kl <= radius, gap, torch.inf)
    return Point(
        w,
        worst.value,
        gap,
        worst.dual.clone(),
        found.steps,
        torch.zeros_like(found.steps, dtype=torch.bool),
        q,
    )


def _kl_path(pairs: PairBatch, beta: float, domain: Domain, radius: Tensor) -> Point:
    """Follow the tilted minimisers down in lambda until their KL meets the radius, or lambda
    reaches rounding.

    Needed when the sample is separable: then the optimum may have lambda = 0 (the largest loss is
    minimised), with several pairs tied, where Newton's method in (w, lambda) jams.
    """
    w = linear_start(pairs, beta, domain)
    steps = torch.zeros(pairs.replicates, dtype=torch.int64, device=pairs.p.device)
    lam = torch.ones_like(radius)
    best: Point | None = None
    above = torch.full_like(radius, torch.inf)  # smallest lambda seen with KL < rho
    below = torch.zeros_like(radius)  # largest lambda seen with KL >= rho
    for _ in range(120):
        w, _, extra = minimise(TiltedLoss(pairs, beta, lam), w, domain)
        steps = steps + extra
        loss, slope = loss_and_slope(beta * pairs.project(w))
        log_p = pairs.p.log()
        log_q = torch.log_softmax((loss - loss.amax(-1, keepdim=True)) / lam[:, None] + log_p, -1)
        q = torch.exp(log_q)
        average = (q * loss).sum(-1)
        kl = torch.where(q > 0, q * (log_q - log_p), 0.0).sum(
            -1
        )  # of this very q, however small lambda is
        # the tilt is a feasible worst case where KL <= rho; its bound is what certifies a tie,
        # which the dual at w alone cannot
        exact = kl_ball_dual(loss, pairs.p, radius)
        tilted = torch.where(
            kl <= radius,
            exact.value - average + lower_gap(pairs, q, slope, w, beta, domain),
            torch.inf,
        )
        own = lower_gap(pairs, exact.weights, slope, w, beta, domain) + exact.gap
        now = Point(
            w,
            exact.value,
            own.minimum(tilted),
            exact.dual.clone(),
            steps,
            torch.zeros_like(steps, dtype=torch.bool),
        )
        if best is None:
            best = now
        else:
            improved = now.gap < best.gap
            best = scatter([(improved, take(now, improved))], best)
        below = torch.where(kl >= radius, torch.maximum(below, lam), below)
        above = torch.where(kl < radius, torch.minimum(above, lam), above)
        if bool(((best.gap <= 1e-12) | (lam < 1e-13)).all()):
            break
        lam = torch.where(below > 0, (below * above.clamp(max=1e3)).sqrt(), above / 2)
        lam = torch.where(torch.isinf(above), below * 2, lam)
    assert best is not None
    return best
