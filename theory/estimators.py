"""Exact estimators of theta: DPO and its distributionally robust versions, for many replicates at once.

    fit = kldpo(u, weights, radius=0.05, beta=1.0, bound=4.0)

u (n, d) or (R, n, d) holds signed feature differences (2y-1)(psi1-psi2), weights (n,) or (R, n) their probabilities (None:
1/n each); numpy arrays or tensors, on any device, computed in float64. All estimators minimise over ||theta|| <= bound with
w = theta - theta_ref and m = beta w.u. Radii, temperatures and strengths may differ between replicates.

Each fit carries a certificate. For any theta' in the ball and any distribution Q in the ambiguity set,
value(theta') >= E_Q l(theta') >= E_Q l(theta) + g_Q.(theta' - theta); minimising the right side over the ball is closed form,
so that `gap` bounds value - optimum without trusting the solver. See Boyd and Vandenberghe, Convex Optimization, section 5.5.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from theory import collapse
from theory.batch import ArrayLike, PairBatch, pair_batch
from theory.checks import check_label_cost, check_metric, check_positive, check_radius, check_reference
from theory.duals import kl_ball_dual, transport_dual
from theory.interior import solve
from theory.moves import FiniteMoves, LabelMoves, QuadraticMoves, SmoothedTransportLoss
from theory.newton import Ball, minimise
from theory.smooth import (
    FixedLabelLoss,
    GradientPenalisedLoss,
    KlBallLoss,
    KlBallProfile,
    MeanLoss,
    NormPenalisedLoss,
    QuadraticTransportLoss,
    SmoothedLabelLoss,
    TiltedLoss,
    loss_and_slope,
)
from theory.wells import global_well

LOG2 = 0.6931471805599453
_TARGETS = 10  # destinations of an atom that the screened solver on a finite Z leaves to the interior-point method
_BAND = 96  # pairs near the kink that the screened solver for label moves leaves to the interior-point method


@dataclass(frozen=True)
class Fit:
    """R fitted policies with their certificates.

    theta: (R, d). value: (R,) objective at theta. gap: (R,) certified bound on value - optimum; for `gradient_penalty`, which
    is not convex, the same expression only measures stationarity. dual: (R,) multiplier of the radius (lambda or eta), None
    where there is none. converged: (R,) gap <= tolerance * max(1, |value|). collapsed: (R,) theta is exactly theta_ref because
    the radius is at or beyond the collapse radius. iterations: (R,).
    """

    theta: Tensor
    value: Tensor
    gap: Tensor
    dual: Tensor | None
    converged: Tensor
    collapsed: Tensor
    iterations: Tensor


@dataclass
class _Point:
    """What a solver hands over: w, the multiplier, and the steps it took."""

    w: Tensor
    value: Tensor
    gap: Tensor
    dual: Tensor | None
    steps: Tensor
    collapsed: Tensor


_TENSORS = ("w", "value", "gap", "steps", "collapsed")  # the fields of a point that are always there


# ---------------------------------------------------------------------------------------------------- public estimators
def dpo(
    u: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    beta: float,
    bound: float,
    theta_ref: ArrayLike | None = None,
    tolerance: float = 1e-10,
) -> Fit:
    """min E log(1 + exp(-beta w.u)). Eq. (1), arXiv:2502.01930."""
    return _fit(_dpo, u, weights, beta, bound, theta_ref, tolerance)


def kldpo(
    u: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    radius: ArrayLike,
    beta: float,
    bound: float,
    theta_ref: ArrayLike | None = None,
    tolerance: float = 1e-10,
) -> Fit:
    """min over theta of sup {E_Q l : KL(Q||P) <= radius}, radius in nats. Eq. (9), arXiv:2502.01930; `dual` is lambda."""
    return _fit(_kldpo, u, weights, beta, bound, theta_ref, tolerance, radius=radius)


def kldpo_tilt(
    u: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    temperature: ArrayLike,
    beta: float,
    bound: float,
    theta_ref: ArrayLike | None = None,
    tolerance: float = 1e-10,
) -> Fit:
    """min tau log E exp(l/tau), practical KLDPO with temperature tau > 0. Algorithm 2, arXiv:2502.01930."""
    if bool((torch.as_tensor(temperature) <= 0).any()):
        raise ValueError(
            f"temperature must be positive, got {temperature}. For the mean use dpo, for the worst pair a small value."
        )
    return _fit(_tilt, u, weights, beta, bound, theta_ref, tolerance, temperature=temperature)


def wdpo_finite(
    u: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    distance: ArrayLike,
    power: int,
    radius: ArrayLike,
    beta: float,
    bound: float,
    theta_ref: ArrayLike | None = None,
    tolerance: float = 1e-10,
) -> Fit:
    """min over theta of sup {E_Q l : W_p(Q, P) <= radius}, Q on the same atoms; `distance` (n, n) is any metric, `power` 1 or 2.

    Eq. (8) and Lemma 1, arXiv:2502.01930; `dual` is eta.
    """
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2, got {power}.")
    n = pair_batch(u, weights).p.shape[1]
    cost = check_metric(distance, n) ** power

    def solver(pairs: PairBatch, beta: float, ball: Ball, radius: Tensor) -> _Point:
        return _finite(pairs, beta, ball, cost.to(pairs.p.device), radius**power)

    return _fit(solver, u, weights, beta, bound, theta_ref, tolerance, elements=n * n // 8 + 1, radius=radius)


def wdpo_free(
    u: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    power: int,
    radius: ArrayLike,
    label_cost: float | None = None,
    beta: float,
    bound: float,
    theta_ref: ArrayLike | None = None,
    tolerance: float = 1e-10,
) -> Fit:
    """min over theta of sup {E_Q l : W_p(Q, P) <= radius} with features free in R^d; `dual` is eta.

    Labels stay fixed, or with `label_cost` kappa (p = 1 only) flip at the cost kappa. p = 1: E l + radius beta ||w||, or
    the program of Shafieezadeh-Abadeh et al. (2015), Thm. 1; p = 2: module `wells`.
    """
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2, got {power}.")
    if label_cost is None:
        return _fit(_w1 if power == 1 else _w2, u, weights, beta, bound, theta_ref, tolerance, radius=radius)
    if power != 1:
        raise ValueError(f"label_cost needs power=1, got power={power}: with p = 2 only fixed labels are solved.")
    kappa = check_label_cost(label_cost)

    def solver(pairs: PairBatch, beta: float, ball: Ball, radius: Tensor) -> _Point:
        return _w1_label(pairs, beta, ball, radius, kappa)

    return _fit(solver, u, weights, beta, bound, theta_ref, tolerance, radius=radius)


def gradient_penalty(
    u: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    strength: ArrayLike,
    squared: bool = False,
    beta: float,
    bound: float,
    theta_ref: ArrayLike | None = None,
    tolerance: float = 1e-10,
) -> Fit:
    """min E l + strength (E ||grad_x l||²)^(1/2), or E l + strength E ||grad_x l||² with `squared` (the released code).

    Algorithm 1, arXiv:2502.01930. Neither is convex: the best of several starts is returned.
    """

    def solver(pairs: PairBatch, beta: float, ball: Ball, strength: Tensor) -> _Point:
        return _penalised(pairs, beta, ball, strength, squared)

    return _fit(solver, u, weights, beta, bound, theta_ref, tolerance, strength=strength)


# ------------------------------------------------------------------------------------------------------------- plumbing
def _fit(
    solver: Callable[..., _Point],
    u: ArrayLike,
    weights: ArrayLike | None,
    beta: float,
    bound: float,
    theta_ref: ArrayLike | None,
    tolerance: float,
    elements: int | None = None,
    **knob: ArrayLike,
) -> Fit:
    """Check the input, solve chunk by chunk, and wrap up the certificate. `knob` is the one parameter of the method, if any."""
    pairs = pair_batch(u, weights)
    beta = check_positive("beta", beta, "It scales the log-ratio in the margin; the papers use 0.01 to 1.")
    bound = check_positive("bound", bound, "It is B in ||theta|| <= B; where no bound is wanted take one that is not reached.")
    ball = Ball(check_reference(theta_ref, pairs.dimension, bound, pairs.p), bound)
    values = [check_radius(name, value, pairs.replicates, pairs.p) for name, value in knob.items()]
    points = []
    for part in pairs.chunks(elements):
        index = torch.arange(part.start, part.stop, device=pairs.p.device)
        points.append(solver(pairs.select(index), beta, ball, *(value[index] for value in values)))
    joined = _join(points)
    value, gap = joined.value, joined.gap.clamp(min=0)
    converged = torch.isfinite(value) & (gap <= tolerance * value.abs().clamp(min=1))
    theta = torch.where(joined.collapsed[:, None], ball.theta_ref, joined.w + ball.theta_ref)
    return Fit(theta, value, gap, joined.dual, converged, joined.collapsed, joined.steps)


def _linear_start(pairs: PairBatch, beta: float, ball: Ball) -> Tensor:
    """One Newton step of DPO from the reference policy, projected."""
    drift = pairs.pull(pairs.p) / 2
    covariance = pairs.outer(pairs.p) / 4
    ridge = 1e-8 * torch.diagonal(covariance, dim1=-2, dim2=-1).sum(-1) + 1e-300
    eye = torch.eye(pairs.dimension, dtype=torch.float64, device=pairs.p.device)
    return ball.project(torch.linalg.solve(covariance + ridge[:, None, None] * eye, drift) / beta)


def _radial_start(pairs: PairBatch, beta: float, ball: Ball, price: Tensor) -> Tensor:
    """Minimise the second-order model of E l + price ||w|| along E u, the direction in which solutions leave w = 0."""
    drift = pairs.pull(pairs.p)
    norm = drift.norm(dim=-1).clamp(min=1e-300)
    direction = drift / norm[:, None]
    bend = (pairs.p * pairs.project(direction) ** 2).sum(-1).clamp(min=1e-300) * beta**2 / 4
    length = ((beta * norm / 2 - price) / bend).clamp(min=1e-6 / beta)
    room = ball.bound - ball.theta_ref.norm()  # stay inside the ball
    return direction * length.clamp(max=0.9 * room)[:, None]


def _scatter(parts: list[tuple[Tensor, _Point]], like: _Point) -> _Point:
    """Write the solutions of subsets of replicates into `like`."""
    for mask, point in parts:
        for name in _TENSORS:
            getattr(like, name)[mask] = getattr(point, name)
        if like.dual is not None and point.dual is not None:
            like.dual[mask] = point.dual
    return like


def _take(point: _Point, mask: Tensor) -> _Point:
    taken = {name: getattr(point, name)[mask] for name in _TENSORS}
    return _Point(**taken, dual=None if point.dual is None else point.dual[mask])


def _join(points: list[_Point]) -> _Point:
    joined = {name: torch.cat([getattr(point, name) for point in points]) for name in _TENSORS}
    duals = [point.dual for point in points if point.dual is not None]
    return _Point(**joined, dual=torch.cat(duals) if duals else None)


def _blank(pairs: PairBatch, dual: bool = True) -> _Point:
    """The collapsed solution: w = 0 with value log 2, to be overwritten elsewhere."""
    zero = torch.zeros(pairs.replicates, dtype=torch.float64, device=pairs.p.device)
    w = torch.zeros(pairs.replicates, pairs.dimension, dtype=torch.float64, device=pairs.p.device)
    steps = torch.zeros_like(zero, dtype=torch.int64)
    return _Point(w, zero + LOG2, zero.clone(), zero.clone() if dual else None, steps, torch.ones_like(zero, dtype=torch.bool))


def _lower_gap(pairs: PairBatch, q: Tensor, slope: Tensor, w: Tensor, beta: float, ball: Ball) -> Tensor:
    """max over the ball of g_Q.(w - w') with g_Q = -beta sum q_i s_i u_i."""
    return ball.linear_gap(w, -beta * pairs.pull(q * slope))


def _norm_gap(w: Tensor, gradient: Tensor, c: Tensor, ball: Ball) -> Tensor:
    """Certificate of a convex function plus c||w||, which is at least c s.w for every ||s|| <= 1.

    s = w/||w|| is the subgradient; near w = 0 it turns with the last digit of w, and the s that cancels the gradient is better.
    """
    norm = w.norm(dim=-1, keepdim=True)
    unit = w / norm.clamp(min=1e-300)
    balance = -gradient / c.clamp(min=1e-300)[:, None]
    balance = balance / balance.norm(dim=-1, keepdim=True).clamp(min=1.0)
    lost = c * (norm[:, 0] - (balance * w).sum(-1))
    return ball.linear_gap(w, gradient + c[:, None] * unit).minimum(lost + ball.linear_gap(w, gradient + c[:, None] * balance))


# -------------------------------------------------------------------------------------------------------------- solvers
def _dpo(pairs: PairBatch, beta: float, ball: Ball) -> _Point:
    function = MeanLoss(pairs, beta)
    w, _, steps = minimise(function, _linear_start(pairs, beta, ball), ball)
    return _smooth_point(function, w, steps, ball)


def _smooth_point(
    function: MeanLoss | TiltedLoss | GradientPenalisedLoss | NormPenalisedLoss, w: Tensor, steps: Tensor, ball: Ball
) -> _Point:
    value, gradient, _ = function.derivatives(w)
    return _Point(w, value, ball.linear_gap(w, gradient), None, steps, torch.zeros_like(steps, dtype=torch.bool))


def _tilt(pairs: PairBatch, beta: float, ball: Ball, tau: Tensor) -> _Point:
    function = TiltedLoss(pairs, beta, tau)
    w, settled, steps = minimise(function, _linear_start(pairs, beta, ball), ball)
    point = _smooth_point(function, w, steps, ball)
    hard = ~settled | (point.gap > 1e-10)
    if hard.any():
        w, extra = _follow_tilt(pairs.select(hard), beta, ball, tau[hard])
        again = _smooth_point(TiltedLoss(pairs.select(hard), beta, tau[hard]), w, extra, ball)
        point = _scatter([(hard, again)], point)
    return point


def _follow_tilt(pairs: PairBatch, beta: float, ball: Ball, tau: Tensor) -> tuple[Tensor, Tensor]:
    """Minimise the tilted risk at small tau by halving the temperature from where Newton's method is at ease."""
    w = _linear_start(pairs, beta, ball)
    steps = torch.zeros(pairs.replicates, dtype=torch.int64, device=pairs.p.device)
    now = tau.clamp(min=1.0)
    while True:
        w, _, extra = minimise(TiltedLoss(pairs, beta, now), w, ball)
        steps = steps + extra
        if bool((now <= tau).all()):
            return w, steps
        now = torch.maximum(now / 2, tau)


def _kldpo(pairs: PairBatch, beta: float, ball: Ball, radius: Tensor) -> _Point:
    point = _blank(pairs)
    plain = radius <= 0
    parts = []
    if plain.any():
        mean_fit = _dpo(pairs.select(plain), beta, ball)
        mean_fit.dual = torch.full_like(mean_fit.value, torch.inf)
        parts.append((plain, mean_fit))
    if not plain.all():
        rest = ~plain
        parts.append((rest, _kldpo_positive(pairs.select(rest), beta, ball, radius[rest])))
    return _scatter(parts, point)


def _kldpo_positive(pairs: PairBatch, beta: float, ball: Ball, radius: Tensor) -> _Point:
    w0 = _linear_start(pairs, beta, ball)
    # for Gaussian u the collapse radius is -log(1 - c)/2 with c = Eu'(E uu')^-1 Eu, and w shrinks with the root of the radius
    c = (beta / 2 * (w0 * pairs.pull(pairs.p)).sum(-1)).clamp(0, 1 - 1e-6)
    w0 = w0 * (1 - (2 * radius / -torch.log1p(-c).clamp(max=-1e-12)).sqrt()).clamp(min=0.02)[:, None]
    loss, _ = loss_and_slope(beta * pairs.project(w0))
    spread = (pairs.p * (loss - (pairs.p * loss).sum(-1, keepdim=True)) ** 2).sum(-1).sqrt()
    lam0 = (spread / (2 * radius).sqrt()).clamp(min=1e-3 * beta)  # KL ≈ Var/(2 lambda²)
    v, settled, steps = minimise(
        KlBallLoss(pairs, beta, radius), torch.cat([w0, lam0[:, None]], -1), ball, max_steps=10, halvings=6
    )
    point = _kl_point(pairs, beta, ball, radius, v[:, :-1], steps)
    # what is left: collapse, or nearly so (w and lambda go to zero together), and separable samples (lambda alone does)
    doubt = (~settled | (point.gap > 1e-11) | (v[:, :-1].norm(dim=-1) * beta < 1e-3)).nonzero()[:, 0]
    if doubt.numel():
        point = _scatter([(doubt, _kl_hard(pairs.select(doubt), beta, ball, radius[doubt]))], point)
    return point


def _kl_hard(pairs: PairBatch, beta: float, ball: Ball, radius: Tensor) -> _Point:
    """Decide collapse by its radius; else leave w = 0 in the direction of the collapse dual, lambda minimised out."""
    threshold, nu = collapse.kl_collapse(pairs)
    point = _blank(pairs)
    out = (radius < threshold * (1 - 1e-12)).nonzero()[:, 0]
    if out.numel():
        part, r = pairs.select(out), radius[out]
        room = (ball.bound - ball.theta_ref.norm()).clamp(max=1e-2 / beta)
        start = -nu[out] / nu[out].norm(dim=-1, keepdim=True).clamp(min=1e-300) * room
        w, _, steps = minimise(KlBallProfile(part, beta, r), start, ball)
        solved = _kl_point(part, beta, ball, r, w, steps)
        again = (solved.gap > 1e-11).nonzero()[:, 0]
        if again.numel():
            better = _kl_path(part.select(again), beta, ball, r[again])
            improved = better.gap < solved.gap[again]
            solved = _scatter([(again[improved], _take(better, improved))], solved)
        point = _scatter([(out, solved)], point)
    return point


def _kl_point(pairs: PairBatch, beta: float, ball: Ball, radius: Tensor, w: Tensor, steps: Tensor) -> _Point:
    loss, slope = loss_and_slope(beta * pairs.project(w))
    worst = kl_ball_dual(loss, pairs.p, radius)
    gap = worst.gap + _lower_gap(pairs, worst.weights, slope, w, beta, ball)
    return _Point(w, worst.value, gap, worst.dual.clone(), steps, torch.zeros_like(steps, dtype=torch.bool))


def _kl_path(pairs: PairBatch, beta: float, ball: Ball, radius: Tensor) -> _Point:
    """Follow the tilted minimisers down in lambda until their KL meets the radius, or lambda reaches rounding.

    Needed when the sample is separable: then the optimum may have lambda = 0 (the largest loss is minimised), with several
    pairs tied, where Newton's method in (w, lambda) jams.
    """
    w = _linear_start(pairs, beta, ball)
    steps = torch.zeros(pairs.replicates, dtype=torch.int64, device=pairs.p.device)
    lam = torch.ones_like(radius)
    best: _Point | None = None
    above = torch.full_like(radius, torch.inf)  # smallest lambda seen with KL < rho
    below = torch.zeros_like(radius)  # largest lambda seen with KL >= rho
    for _ in range(120):
        w, _, extra = minimise(TiltedLoss(pairs, beta, lam), w, ball)
        steps = steps + extra
        loss, slope = loss_and_slope(beta * pairs.project(w))
        exponent = loss / lam[:, None] + pairs.p.log()
        log_mass = torch.logsumexp(exponent, -1)
        q = torch.exp(exponent - log_mass[:, None])
        average = (q * loss).sum(-1)
        kl = average / lam - log_mass
        # the tilt is a feasible worst case where KL <= rho; its bound is what certifies a tie, which the dual at w alone cannot
        exact = kl_ball_dual(loss, pairs.p, radius)
        lower_gap = torch.where(kl <= radius, exact.value - average + _lower_gap(pairs, q, slope, w, beta, ball), torch.inf)
        own = _lower_gap(pairs, exact.weights, slope, w, beta, ball) + exact.gap
        now = _Point(w, exact.value, own.minimum(lower_gap), exact.dual.clone(), steps, torch.zeros_like(steps, dtype=torch.bool))
        if best is None:
            best = now
        else:
            improved = now.gap < best.gap
            best = _scatter([(improved, _take(now, improved))], best)
        below = torch.where(kl >= radius, torch.maximum(below, lam), below)
        above = torch.where(kl < radius, torch.minimum(above, lam), above)
        if bool(((best.gap <= 1e-12) | (lam < 1e-13)).all()):
            break
        lam = torch.where(below > 0, (below * above.clamp(max=1e3)).sqrt(), above / 2)
        lam = torch.where(torch.isinf(above), below * 2, lam)
    assert best is not None
    return best


def _w1(pairs: PairBatch, beta: float, ball: Ball, radius: Tensor) -> _Point:
    point = _blank(pairs)
    outside = radius < collapse.free_collapse(pairs, 1)
    point.dual = beta * point.w.norm(dim=-1)
    if outside.any():
        part, r = pairs.select(outside), radius[outside]
        function = NormPenalisedLoss(part, beta, r)
        w, _, steps = minimise(function, _radial_start(part, beta, ball, beta * r), ball)
        solved = _smooth_point(function, w, steps, ball)
        solved.gap = _norm_gap(w, MeanLoss(part, beta).derivatives(w)[1], beta * r, ball)
        solved.dual = beta * w.norm(dim=-1)
        point = _scatter([(outside, solved)], point)
    return point


def _w2(pairs: PairBatch, beta: float, ball: Ball, radius: Tensor) -> _Point:
    point = _blank(pairs)
    outside = radius < collapse.free_collapse(pairs, 2)
    parts = []
    plain = outside & (radius <= 0)
    if plain.any():
        mean_fit = _dpo(pairs.select(plain), beta, ball)
        mean_fit.dual = torch.full_like(mean_fit.value, torch.inf)
        parts.append((plain, mean_fit))
    robust = outside & ~plain
    if robust.any():
        parts.append((robust, _w2_positive(pairs.select(robust), beta, ball, radius[robust])))
    return _scatter(parts, point)


def _w2_positive(pairs: PairBatch, beta: float, ball: Ball, radius: Tensor) -> _Point:
    w0 = _radial_start(pairs, beta, ball, beta * radius / 2)
    eta0 = beta * w0.norm(dim=-1) / (4 * radius)  # optimal for small margins
    v, settled, steps = minimise(QuadraticTransportLoss(pairs, beta, radius), torch.cat([w0, eta0[:, None]], -1), ball)
    point = _w2_point(pairs, beta, ball, radius, v, None, steps)
    hard = (~settled | (point.gap > 1e-11)).nonzero()[:, 0]
    if hard.numel():  # an atom sits between the two wells
        part = pairs.select(hard)
        interior = solve(QuadraticMoves(part, beta), radius[hard] ** 2, eta0[hard], ball)
        split = _w2_point(part, beta, ball, radius[hard], interior.v, interior.z, interior.steps)
        improved = split.gap < point.gap[hard]
        point = _scatter([(hard[improved], _take(split, improved))], point)
    return point


def _w2_point(pairs: PairBatch, beta: float, ball: Ball, radius: Tensor, v: Tensor, z: Tensor | None, steps: Tensor) -> _Point:
    """Upper bound: the dual value at (w, eta). Lower bound: each atom moved along w, shrunk to meet the radius."""
    w, eta = v[:, :-1], v[:, -1]
    b = beta * w.norm(dim=-1)
    a = b**2 / (2 * eta)
    margin = beta * pairs.project(w)
    phi, q, _, y = global_well(margin, a)
    value = eta * radius**2 + (pairs.p * phi).sum(-1)
    if z is None:
        mass, q, y = pairs.p[:, None, :], q[:, None, :], y[:, None, :]
    else:
        pieces = QuadraticMoves(pairs, beta)
        pieces.move(v)
        q = -pieces.along
        mass = z / z.sum(1, keepdim=True).clamp(min=1e-300) * pairs.p[:, None, :]
        y = a[:, None, None] * q - margin[:, None, :]
    shift = a[:, None, None] * q / b.clamp(min=1e-300)[:, None, None]  # distance moved against w: k/b with k = a q
    used = (mass * shift**2).sum((1, 2)).sqrt()
    shift = shift * (radius / used.clamp(min=1e-300)).clamp(max=1.0)[:, None, None]
    moved = margin[:, None, :] - b[:, None, None] * shift
    loss, slope = loss_and_slope(moved)
    expected = (mass * loss).sum((1, 2))
    pull = mass * slope
    unit = w / w.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    gradient = -beta * (pairs.pull(pull.sum(1)) - (pull * shift).sum((1, 2))[:, None] * unit)
    gap = value - expected + ball.linear_gap(w, gradient)
    return _Point(w, value, gap, eta.clone(), steps, torch.zeros_like(steps, dtype=torch.bool))


def _w1_label(pairs: PairBatch, beta: float, ball: Ball, radius: Tensor, kappa: float) -> _Point:
    point = _blank(pairs)
    point.dual = torch.zeros_like(radius)
    # flips only lower the collapse radius, so that beyond the one with fixed labels nothing is left to solve
    outside = (radius < collapse.free_collapse(pairs, 1)).nonzero()[:, 0]
    if outside.numel():
        point = _scatter([(outside, _w1_label_inside(pairs.select(outside), beta, ball, radius[outside], kappa))], point)
    return point


def _w1_label_inside(pairs: PairBatch, beta: float, ball: Ball, radius: Tensor, kappa: float) -> _Point:
    if kappa >= pairs.ut.norm(dim=1).max():  # m_i <= beta ||w|| ||u_i|| <= kappa eta: no flip ever pays
        return _w1(pairs, beta, ball, radius)
    n = pairs.p.shape[1]
    if n <= 4 * _BAND:
        point = _w1_label_interior(pairs, beta, ball, radius, kappa)
    else:
        point = _w1_label_screened(pairs, beta, ball, radius, kappa)
        hard = (point.gap > 1e-11).nonzero()[:, 0]
        if hard.numel():
            better = _w1_label_interior(pairs.select(hard), beta, ball, radius[hard], kappa)
            improved = better.gap < point.gap[hard]
            point = _scatter([(hard[improved], _take(better, improved))], point)
    return _settle_collapse(pairs, point, radius, beta, lambda part: collapse.label_collapse(part, kappa))


def _w1_label_interior(pairs: PairBatch, beta: float, ball: Ball, radius: Tensor, kappa: float) -> _Point:
    interior = solve(LabelMoves(pairs, beta, kappa), radius, torch.full_like(radius, beta * ball.bound), ball)
    flip = interior.z[:, 1] / interior.z.sum(1).clamp(min=1e-300)
    return _w1_label_point(pairs, beta, ball, radius, kappa, interior.v, flip, interior.steps)


def _w1_label_screened(pairs: PairBatch, beta: float, ball: Ball, radius: Tensor, kappa: float) -> _Point:
    """Large samples: Newton's method on a smoothed hinge finds which labels surely stay or flip; the interior point decides the
    rest, the `_BAND` pairs nearest to the kink m = kappa eta. The certificate covers all pairs, so that a wrong guess shows."""
    n = pairs.p.shape[1]
    w = _linear_start(pairs, beta, ball)
    scale = (pairs.p * (beta * pairs.project(w)) ** 2).sum(-1).sqrt().clamp(min=1e-9)
    v = torch.cat([w, (1.5 * beta * w.norm(dim=-1) + scale)[:, None]], -1)
    taken = torch.zeros_like(radius, dtype=torch.int64)
    head = n // 16  # where the sample is large, its first pairs are enough for the coarse width
    few = PairBatch(
        pairs.ut[:, :, :head].contiguous(), pairs.p[:, :head] / pairs.p[:, :head].sum(-1, keepdim=True).clamp(min=1e-300)
    )
    for fraction, sample in ((0.1, few if head > 2048 else pairs), (0.01, pairs)):
        eps = fraction * scale
        function = SmoothedLabelLoss(sample, beta, radius, kappa, eps, (0.1 * eps**2).minimum(0.03 * eps))
        v, _, steps = minimise(function, v, ball, max_steps=7)
        taken = taken + steps
    over = beta * pairs.project(v[:, :-1]) - kappa * v[:, -1:]
    near = over.abs().topk(_BAND, dim=-1, largest=False, sorted=False).indices
    far = torch.ones_like(over, dtype=torch.bool).scatter_(1, near, False)
    flipped = torch.where(far & (over > 0), pairs.p, 0.0)
    rest = FixedLabelLoss(PairBatch(pairs.ut, torch.where(far, pairs.p, 0.0)), beta, kappa, flipped)
    ut = pairs.ut.expand(pairs.replicates, -1, -1).gather(2, near[:, None, :].expand(-1, pairs.dimension, -1))
    band = LabelMoves(PairBatch(ut, pairs.p.gather(1, near)), beta, kappa)
    interior = solve(band, radius, v[:, -1], ball, smooth=rest)
    share = interior.z[:, 1] / interior.z.sum(1).clamp(min=1e-300)
    flip = (flipped > 0).to(share.dtype).scatter_(1, near, share)
    return _w1_label_point(pairs, beta, ball, radius, kappa, interior.v, flip, taken + interior.steps)


def _w1_label_point(
    pairs: PairBatch, beta: float, ball: Ball, radius: Tensor, kappa: float, v: Tensor, flip: Tensor, steps: Tensor
) -> _Point:
    """Lower bound: flip the share `flip` of each label and spend what is left of the radius on sending features to infinity."""
    w = v[:, :-1]
    norm = w.norm(dim=-1)
    eta = v[:, -1].maximum(beta * norm)
    margin = beta * pairs.project(w)
    loss, slope = loss_and_slope(margin)
    value = eta * radius + (pairs.p * (loss + (margin - kappa * eta[:, None]).clamp(min=0))).sum(-1)
    spent = kappa * (pairs.p * flip).sum(-1)
    flip = pairs.p * flip * (radius / spent.clamp(min=1e-300)).clamp(max=1.0)[:, None]
    left = (radius - kappa * flip.sum(-1)).clamp(min=0)
    expected = (pairs.p * loss).sum(-1) + (flip * margin).sum(-1) + left * beta * norm
    gradient = -beta * pairs.pull(pairs.p * slope) + beta * pairs.pull(flip)
    gap = value - expected + _norm_gap(w, gradient, left * beta, ball)
    return _Point(w, value, gap, eta, steps, torch.zeros_like(steps, dtype=torch.bool))


def _finite(pairs: PairBatch, beta: float, ball: Ball, cost: Tensor, budget: Tensor) -> _Point:
    point = _blank(pairs)
    parts = []
    plain = budget <= 0
    if plain.any() and bool((cost + torch.eye(cost.shape[0], dtype=cost.dtype, device=cost.device) > 0).all()):
        mean_fit = _dpo(pairs.select(plain), beta, ball)
        mean_fit.dual = torch.full_like(mean_fit.value, torch.inf)
        parts.append((plain, mean_fit))
    else:
        plain = torch.zeros_like(plain)
    if not plain.all():
        rest = ~plain
        parts.append((rest, _finite_positive(pairs.select(rest), beta, ball, cost, budget[rest])))
    return _scatter(parts, point)


def _finite_positive(pairs: PairBatch, beta: float, ball: Ball, cost: Tensor, budget: Tensor) -> _Point:
    n = cost.shape[0]
    reach = beta * pairs.ut.norm(dim=1).amax(-1) * ball.bound
    eta0 = (0.2 * reach / cost.mean().clamp(min=1e-300)).expand(pairs.replicates)
    if n <= 2 * _TARGETS:
        point = _finite_interior(FiniteMoves(pairs, cost, beta), ball, cost, budget, eta0)
    else:
        point = _finite_screened(pairs, beta, ball, cost, budget, eta0)
        hard = (point.gap > 1e-11).nonzero()[:, 0]
        if hard.numel():
            better = _finite_interior(FiniteMoves(pairs.select(hard), cost, beta), ball, cost, budget[hard], eta0[hard])
            improved = better.gap < point.gap[hard]
            point = _scatter([(hard[improved], _take(better, improved))], point)
    return _settle_collapse(pairs, point, budget, beta, lambda part: collapse.finite_collapse(part, cost))


def _finite_interior(pieces: FiniteMoves, ball: Ball, cost: Tensor, budget: Tensor, eta0: Tensor) -> _Point:
    interior = solve(pieces, budget, eta0, ball)
    pairs = pieces.pairs
    plan = interior.z / interior.z.sum(1, keepdim=True).clamp(min=1e-300) * pairs.p[:, None, :]
    arriving, spent = pieces.arrivals(plan)
    return _finite_point(pairs, pieces.beta, ball, cost, budget, interior.v[:, :-1], arriving, spent, interior.steps)


def _finite_screened(pairs: PairBatch, beta: float, ball: Ball, cost: Tensor, budget: Tensor, eta0: Tensor) -> _Point:
    """Newton's method on the entropic smoothing finds where each atom may go, the interior point decides among its best `_TARGETS`.

    The certificate compares with all moves, so that a target that was missed shows.
    """
    v = torch.cat([_linear_start(pairs, beta, ball), eta0[:, None]], -1)
    scale = (pairs.p * (beta * pairs.project(v[:, :-1])) ** 2).sum(-1).sqrt().clamp(min=1e-9)
    v, _, taken = minimise(SmoothedTransportLoss(pairs, cost, beta, budget, 0.1 * scale), v, ball, max_steps=6)
    targets = FiniteMoves(pairs, cost, beta).move(v).topk(_TARGETS, dim=1, sorted=False).indices
    point = _finite_interior(FiniteMoves(pairs, cost, beta, targets), ball, cost, budget, eta0)
    point.steps = point.steps + taken
    return point


def _finite_point(
    pairs: PairBatch,
    beta: float,
    ball: Ball,
    cost: Tensor,
    budget: Tensor,
    w: Tensor,
    arriving: Tensor,
    spent: Tensor,
    steps: Tensor,
) -> _Point:
    """Upper bound: the exact dual at w. Lower bound: a plan, mixed with staying put until it meets the budget."""
    loss, slope = loss_and_slope(beta * pairs.project(w))
    worst = transport_dual(loss, pairs.p, cost, budget)
    share = (budget / spent.clamp(min=1e-300)).clamp(max=1.0)[:, None]
    q = share * arriving + (1 - share) * pairs.p
    gap = worst.value - (q * loss).sum(-1) + _lower_gap(pairs, q, slope, w, beta, ball)
    return _Point(w, worst.value, gap, worst.dual.clone(), steps, torch.zeros_like(steps, dtype=torch.bool))


def _settle_collapse(
    pairs: PairBatch, point: _Point, radius: Tensor, beta: float, threshold: Callable[[PairBatch], Tensor]
) -> _Point:
    """Where w is nearly zero, ask the collapse radius whether it is zero."""
    near = ((point.w.norm(dim=-1) * beta < 1e-3) & (point.value > LOG2 - 1e-6)).nonzero()[:, 0]
    if near.numel():
        inside = near[radius[near] >= threshold(pairs.select(near)) * (1 - 1e-9)]
        if inside.numel():
            point = _scatter([(inside, _blank(pairs.select(inside)))], point)
    return point


def _penalised(pairs: PairBatch, beta: float, ball: Ball, strength: Tensor, squared: bool) -> _Point:
    """Best of several starts; for the norm form w = 0 is a local minimum when strength >= ||E u|| and then competes."""
    function = GradientPenalisedLoss(pairs, beta, strength, squared)
    local = torch.zeros_like(strength, dtype=torch.bool) if squared else strength >= collapse.free_collapse(pairs, 2)
    linear = _linear_start(pairs, beta, ball)
    edge = ball.project(linear * (1e3 * ball.bound / linear.norm(dim=-1, keepdim=True).clamp(min=1e-300)))
    best = _blank(pairs, dual=False)
    best.value = torch.where(local, best.value, torch.inf)
    best.collapsed = local.clone()
    for start in (_radial_start(pairs, beta, ball, beta * strength / 2), linear, edge):
        rough, _, steps = minimise(function, start, ball, convex=False, max_steps=6)
        value = function.derivatives(rough)[0]
        promising = (value < best.value - 1e-9).nonzero()[:, 0]  # the others go where an earlier start went, or higher
        if promising.numel():
            part = function.select(promising)
            w, _, more = minimise(part, rough[promising], ball, convex=False)
            now = _smooth_point(part, w, steps[promising] + more, ball)
            lower = now.value < best.value[promising]
            best = _scatter([(promising[lower], _take(now, lower))], best)
    return best
