"""Exact estimators of theta: DPO and its distributionally robust versions, for many replicates at
once.

    fit = kldpo(u, weights, radius=0.05, beta=1.0, bound=4.0)

u (n, d) or (R, n, d) holds signed feature differences (2y-1)(psi1-psi2), weights (n,) or (R, n)
their probabilities (None: 1/n each); arrays, tensors on any device, DataFrames or lists, computed
in float64. All estimators minimise over ||theta|| <= bound with w = theta - theta_ref and m = beta
w.u. Radii, temperatures and strengths may differ between replicates. Magnitudes from 1e-50 to 1e50
of u, beta, bound, distances and positive radii are accepted, and beta * bound * max|u| up to 1e15.

Each fit carries a certificate. For any theta' in the ball and any distribution Q in the ambiguity
set, value(theta') >= E_Q l(theta') >= E_Q l(theta) + g_Q.(theta' - theta); minimising the right
side over the ball is closed form, so that `gap` bounds value - optimum without trusting the solver.
See Boyd and Vandenberghe, Convex Optimization, section 5.5.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from theory.batch import ArrayLike, PairBatch, as_float64, check_reach, pair_batch
from theory.checks import (
    check_label_cost,
    check_metric,
    check_positive,
    check_radius,
    check_reference,
    check_scale,
)
from theory.solvers.kl import solve_kl, solve_mean, solve_tilt
from theory.solvers.newton import Ball
from theory.solvers.points import Point, join
from theory.solvers.wasserstein import (
    solve_finite,
    solve_penalised,
    solve_w1,
    solve_w1_label,
    solve_w2,
)


@dataclass(frozen=True)
class Fit:
    """R fitted policies with their certificates.

    theta: (R, d). value: (R,) objective at theta. gap: (R,) certified bound on value - optimum; for
    `gradient_penalty`, which is not convex, the same expression only measures stationarity. dual:
    (R,) multiplier of the radius (lambda or eta), None where there is none. converged: (R,) gap <=
    tolerance * max(1, |value|). collapsed: (R,) theta is exactly theta_ref because the radius is at
    or beyond the collapse radius; then gap is what the worst case certifies, or 0 on the word of
    that radius.
    iterations: (R,).
    """

    theta: Tensor
    value: Tensor
    gap: Tensor
    dual: Tensor | None
    converged: Tensor
    collapsed: Tensor
    iterations: Tensor


# -------------------------------------------------------------------------------- public estimators
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
    return _fit(solve_mean, u, weights, beta, bound, theta_ref, tolerance)


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
    """min over theta of sup {E_Q l : KL(Q||P) <= radius}, radius in nats. Eq. (9),
    arXiv:2502.01930; `dual` is lambda."""
    return _fit(solve_kl, u, weights, beta, bound, theta_ref, tolerance, radius=radius)


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
    """min tau log E exp(l/tau), practical KLDPO with temperature tau > 0. Algorithm 2,
    arXiv:2502.01930."""
    tau = as_float64(temperature, "temperature")
    if not bool(((tau > 0) & torch.isfinite(tau)).all()):
        raise ValueError(
            f"temperature must be positive and finite, got {temperature}. For the mean use dpo, for"
            " the worst pair a small value."
        )
    return _fit(solve_tilt, u, weights, beta, bound, theta_ref, tolerance, temperature=tau)


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
    """min over theta of sup {E_Q l : W_p(Q, P) <= radius}, Q on the same atoms; `distance` (n, n)
    is any metric, `power` 1 or 2.

    Eq. (8) and Lemma 1, arXiv:2502.01930; `dual` is eta.
    """
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2, got {power}.")
    n = pair_batch(u, weights).p.shape[1]
    cost = check_metric(distance, n) ** power

    def solver(pairs: PairBatch, beta: float, ball: Ball, radius: Tensor) -> Point:
        return solve_finite(pairs, beta, ball, cost.to(pairs.p.device), radius**power)

    return _fit(
        solver,
        u,
        weights,
        beta,
        bound,
        theta_ref,
        tolerance,
        elements=n * n // 8 + 1,
        radius=radius,
    )


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

    Labels stay fixed, or with `label_cost` kappa (p = 1 only) flip at the cost kappa. p = 1: E l +
    radius beta ||w||, or the program of Shafieezadeh-Abadeh et al. (2015), Thm. 1; p = 2: module
    `wells`.
    """
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2, got {power}.")
    if label_cost is None:
        return _fit(
            solve_w1 if power == 1 else solve_w2,
            u,
            weights,
            beta,
            bound,
            theta_ref,
            tolerance,
            radius=radius,
        )
    if power != 1:
        raise ValueError(
            f"label_cost needs power=1, got power={power}: with p = 2 only fixed labels are solved."
        )
    kappa = check_label_cost(label_cost)

    def solver(pairs: PairBatch, beta: float, ball: Ball, radius: Tensor) -> Point:
        return solve_w1_label(pairs, beta, ball, radius, kappa)

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
    """min E l + strength (E ||grad_x l||²)^(1/2), or E l + strength E ||grad_x l||² with `squared`
    (the released code).

    Algorithm 1, arXiv:2502.01930. Neither is convex: the best of several starts is returned.
    """

    def solver(pairs: PairBatch, beta: float, ball: Ball, strength: Tensor) -> Point:
        return solve_penalised(pairs, beta, ball, strength, squared)

    return _fit(solver, u, weights, beta, bound, theta_ref, tolerance, strength=strength)


# ----------------------------------------------------------------------------------------- plumbing
def _fit(
    solver: Callable[..., Point],
    u: ArrayLike,
    weights: ArrayLike | None,
    beta: float,
    bound: float,
    theta_ref: ArrayLike | None,
    tolerance: float,
    elements: int | None = None,
    **knob: ArrayLike,
) -> Fit:
    """Check the input, solve chunk by chunk, and wrap up the certificate. `knob` is the one
    parameter of the method, if any."""
    pairs = pair_batch(u, weights)
    beta = check_scale(
        "beta", beta, "It scales the log-ratio in the margin; the papers use 0.01 to 1."
    )
    bound = check_scale(
        "bound",
        bound,
        "It is B in ||theta|| <= B; where no bound is wanted take one that is not reached.",
    )
    tolerance = check_positive(
        "tolerance", tolerance, "It is how large a certified gap may be; 1e-10 is the default."
    )
    check_reach(pairs, beta, bound)
    ball = Ball(check_reference(theta_ref, pairs.dimension, bound, pairs.p), bound)
    values = [check_radius(name, value, pairs.replicates, pairs.p) for name, value in knob.items()]
    points = []
    for index in _parts(pairs, elements):
        part, basis = pairs.select(index), _basis(pairs, index, ball)
        here = [value[index] for value in values]
        if basis is None:
            points.append(solver(part, beta, ball, *here))
        else:
            part = PairBatch(torch.matmul(basis.T, part.ut), part.p)
            point = solver(part, beta, Ball(ball.theta_ref @ basis, bound), *here)
            point.w = point.w @ basis.T
            points.append(point)
    joined = join(points)
    value, gap = joined.value, joined.gap.clamp(min=0)  # rounding may leave it a little below zero
    small = tolerance * value.abs().clamp(min=1)
    converged = torch.isfinite(value) & (joined.gap.abs() <= small)
    theta = torch.where(joined.collapsed[:, None], ball.theta_ref, joined.w + ball.theta_ref)
    return Fit(theta, value, gap, joined.dual, converged, joined.collapsed, joined.steps)


def _parts(pairs: PairBatch, elements: int | None) -> list[Tensor]:
    """Indices of the replicates to solve together; with fewer pairs than dimensions each sample has
    a span of its own."""
    replicates = torch.arange(pairs.replicates, device=pairs.p.device)
    if pairs.ut.shape[0] > 1 and pairs.ut.shape[2] < pairs.dimension + 1:
        return list(replicates[:, None])
    return [replicates[part] for part in pairs.chunks(elements)]


def _basis(pairs: PairBatch, index: Tensor, ball: Ball) -> Tensor | None:
    """Orthonormal basis (d, k) of the span of the pairs and theta_ref, None where that is
    everything.

    No objective sees w outside the span of the pairs, and the ball pulls theta only towards 0: w =
    0 there is a solution.
    """
    if pairs.dimension == 1 or (pairs.ut.shape[0] > 1 and len(index) > 1):
        return None
    u = pairs.ut[0 if pairs.ut.shape[0] == 1 else index[0]]
    spread = torch.linalg.eigvalsh(u @ u.T)
    if spread[0] > 1e-8 * spread[-1]:  # surely everything, without the decomposition below
        return None
    everything = torch.cat(
        [u / u.norm(dim=0).amax().clamp(min=1e-300), ball.theta_ref[:, None] / ball.bound], 1
    )
    left, sizes, _ = torch.linalg.svd(everything, full_matrices=False)
    rank = max(int((sizes > 1e-12 * sizes[0]).sum()), 1)
    return None if rank == pairs.dimension else left[:, :rank]
