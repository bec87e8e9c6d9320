"""Bounds of our own on the estimation error at the rate n^-1/2, with explicit constants; proofs in
docs/theorems/kl.md and docs/theorems/transport.md.

The route: let Q_n be a worst case of the sample at theta_rho (the population minimiser), g_n =
E_{Q_n} grad l(theta_rho) and h_n the least eigenvalue of E_{Q_n} Hess l(theta_rho). Optimality of
theta_n over the ball gives, for every sample,

    phi(r) <= beta X ||g_n|| / h_n,      phi(r) = (e^-r + r - 1) / r,      r = beta X ||theta_n -
    theta_rho||,

with X the largest ||x|| (where theta_rho is on the boundary of the ball, ||g_n|| is the distance of
-g_n from the normal cone). Only the curvature under the worst case at theta_rho enters, not
Assumption 2 over the whole ball. What is left is to bound g_n
and h_n with high probability: Bernstein's inequality for numbers, Pinelis' for vectors (Smale and
Zhou 2007, Lemma 2) and the matrix Chernoff bound (Tropp 2012, Theorem 1.1).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq, linprog
from scipy.special import expit

from theory.bounds.papers import check_constants
from theory.duals import kl_ball_dual, transport_dual
from theory.policy import Array

_EVENTS = {
    "kl": 8,
    "transport": 7,
}  # averages of the sample that have to behave; each fails with probability delta / events
# two scores this close (relative) count as equally good for the adversary; what it costs is
# accounted for
_TIE = 1e-6


@dataclass(frozen=True)
class Size:
    """What every bound needs: sample size n, failure probability delta, beta, B and theta_ref (d,),
    None for 0."""

    n: float
    delta: float
    beta: float
    bound: float
    theta_ref: Array | None = None

    def __post_init__(self) -> None:
        check_constants(self.n, beta=self.beta, bound=self.bound, delta=self.delta)


@dataclass(frozen=True)
class SharpBound:
    """value: bound on ||theta_n - theta_rho||_2 with probability 1 - delta, infinite where n is too
    small for the argument.

    gradient: bound on ||g_n||. curvature: lower bound on h_n.
    """

    value: float
    gradient: float
    curvature: float


_NONE = SharpBound(math.inf, math.inf, 0.0)


@dataclass(frozen=True)
class _Local:
    """The atoms seen from theta_rho: losses (K,), gradients (K, d), Hessians (K, d, d)."""

    losses: Array
    gradients: Array
    hessians: Array


def deterministic_bound(u: Array, q: Array, theta: Array, size: Size) -> SharpBound:
    """The inequality of the route itself: bound on ||theta_n - theta|| for the sample whose worst
    case at theta is q.

    u (K, d): atoms. q (K,): worst-case probabilities of them at theta (d,), a population minimiser
    or any other point.
    """
    local = _seen_from(theta, u, size)
    h = float(np.linalg.eigvalsh(np.einsum("k,kij->ij", q, local.hessians))[0])
    return _step(_not_stationary(q @ local.gradients, theta, size.bound), 0.0, h, size.beta, u)


def kl_bound(u: Array, p: Array, theta: Array, size: Size, *, radius: float) -> SharpBound:
    """Theorem A: KLDPO with a radius in nats whose worst case at theta_rho has a positive dual
    variable.

    u (K, d), p (K,): atoms of the population. theta (d,): its robust minimiser theta_rho.
    """
    u, p = u[p > 0], p[p > 0]
    local = _seen_from(theta, u, size)
    l = local.losses
    worst = kl_ball_dual(
        torch.from_numpy(l)[None],
        torch.from_numpy(p)[None],
        torch.tensor([radius], dtype=torch.float64),
    )
    lam, q = worst.dual.item(), worst.weights[0].numpy()
    if not 0 < lam < math.inf:
        return _NONE
    t, r, mean_loss, g = 1 / lam, q / p, float(q @ l), q @ local.gradients
    from_g = np.linalg.norm(local.gradients - g, axis=1)
    n, share = size.n, math.log(2 * _EVENTS["kl"] / size.delta)

    # how far eight averages of the sample can be from their expectations
    deviation, log_deviation = l - mean_loss, np.log(r) - radius
    cross = r[:, None] * (local.gradients - g) * deviation[:, None]
    covariance = p @ cross
    mass = _bernstein(p, r, n, share)  # E r = 1
    divergence = _bernstein(p, r * log_deviation, n, share)  # E r log r = radius
    together = _bernstein(p, r * log_deviation - (r - 1), n, share)
    variance = _bernstein(p, r * deviation**2, n, share)
    scatter = _bernstein(p, r * from_g**2, n, share)
    vector = _pinelis(p, r * from_g, n, share)
    mixed = _pinelis(p, np.linalg.norm(cross - covariance, axis=1), n, share)
    hessian = np.einsum("k,kij->ij", q, local.hessians)
    largest = float((r * np.linalg.eigvalsh(local.hessians)[:, -1]).max())
    h, matrix = _chernoff(hessian, largest, n, size.delta / _EVENTS["kl"])
    if mass >= 1 or matrix >= 1:
        return _NONE

    # at the population's temperature the sample's tilt misses the radius by at most `off`; 1/lam
    # moves by at most `shift`
    off = together + (divergence * mass + mass**2 / 2) / (1 - mass)
    v, spread = float(q @ deviation**2), float(l.max() - l.min())
    mean_off = divergence / (t * (1 - mass))
    shift = _temperature_shift(off, t, (v - variance) / (1 + mass) - mean_off**2, spread)
    if math.isinf(shift):
        return _NONE
    # d/dt E grad l = Cov(grad l, l), which changes by at most spread sqrt(v scatter); density
    # ratios by e^(spread shift)
    slope = (float(np.linalg.norm(covariance)) + mixed) / (1 - mass) + vector / (
        1 - mass
    ) * mean_off
    third = spread * math.sqrt((v + variance) * (float(q @ from_g**2) + scatter)) / (1 - mass)
    moved = shift * (slope + shift * math.exp(spread * shift) * third)
    gradient = vector / (1 - mass) + moved + _not_stationary(g, theta, size.bound)
    return _step(
        gradient, 0.0, math.exp(-spread * shift) * (1 - matrix) * h / (1 + mass), size.beta, u
    )


def transport_bound(
    u: Array, p: Array, theta: Array, size: Size, *, distance: Array, power: int, radius: float
) -> SharpBound:
    """Theorem B: WDPO with a Wasserstein ball of order `power` on K atoms and any metric; several
    worst cases are allowed.

    u (K, d), p (K,), distance (K, K): atoms of the population and their metric. theta (d,): its
    robust minimiser. bound: B.
    """
    live = p > 0
    local = _seen_from(theta, u, size)
    cost, budget = distance[live] ** power, radius**power
    losses, budgets = (
        torch.from_numpy(local.losses)[None],
        torch.tensor([budget], dtype=torch.float64),
    )
    eta = transport_dual(
        losses, torch.from_numpy(p)[None], torch.from_numpy(distance**power), budgets
    ).dual.item()
    p, score = p[live], local.losses - eta * cost
    lost = score.max(1, keepdims=True) - score
    ties = lost <= _TIE * (1 + np.abs(local.losses).max())
    plan = _stationary_plan(local.gradients, p, cost, budget, ties, eta > 0, theta, size.bound)
    if plan is None:
        return _NONE
    g_each, cost_each = plan @ local.gradients, (plan * cost).sum(1)
    g = p @ g_each
    n, share = size.n, math.log(2 * _EVENTS["transport"] / size.delta)

    overspent = _bernstein(p, cost_each, n, share)
    vector = _pinelis(p, np.linalg.norm(g_each - g, axis=1), n, share)
    hessians = np.einsum("kj,jab->kab", plan, local.hessians)
    largest = float(np.linalg.eigvalsh(hessians)[:, -1].max())
    h, matrix = _chernoff(
        np.einsum("k,kab->ab", p, hessians), largest, n, size.delta / _EVENTS["transport"]
    )

    # the budget is met again by giving a share of the mass its cheapest, or its dearest, worst case
    mixed, moved = 0.0, 0.0
    for spare, target in (
        (False, np.where(ties, cost, np.inf).argmin(1)),
        (True, np.where(ties, cost, -np.inf).argmax(1)),
    ):
        if spare and eta == 0:  # money may be left over where it buys nothing
            continue
        room_each = np.abs(cost[np.arange(len(p)), target] - cost_each)
        room = float(p @ room_each) - _bernstein(p, room_each, n, share)
        if room <= overspent:
            return _NONE
        jump = np.linalg.norm(local.gradients[target] - g_each, axis=1)
        mixed = max(mixed, overspent / room)
        moved = max(moved, overspent / room * (float(p @ jump) + _bernstein(p, jump, n, share)))
    if mixed >= 1 or matrix >= 1:
        return _NONE
    slack = float((lost * (plan > 0)).max() + mixed * (lost * ties).max())
    gradient = vector + moved + _not_stationary(g, theta, size.bound)
    return _step(gradient, slack, (1 - mixed) * (1 - matrix) * h, size.beta, u)


# --------------------------------------------------------------------------------------- population
def _seen_from(theta: Array, u: Array, size: Size) -> _Local:
    beta = size.beta
    margin = beta * u @ (theta if size.theta_ref is None else theta - size.theta_ref)
    slope = expit(-margin)
    curved = beta**2 * slope * (1 - slope)
    return _Local(
        np.logaddexp(0, -margin),
        -beta * slope[:, None] * u,
        curved[:, None, None] * u[:, :, None] * u[:, None, :],
    )


def _not_stationary(g: Array, theta: Array, bound: float) -> float:
    """Distance of -g from the normal cone of the ball at theta: 0 up to the solver's precision."""
    norm = float(np.linalg.norm(theta))
    if norm < bound * (1 - 1e-9):
        return float(np.linalg.norm(g))
    outward = theta / norm
    return float(np.linalg.norm(g + max(-float(g @ outward), 0.0) * outward))


def _stationary_plan(
    gradients: Array,
    p: Array,
    cost: Array,
    budget: float,
    ties: np.ndarray,
    spend: bool,
    theta: Array,
    bound: float,
) -> Array | None:
    """Conditional laws (K, K) on the ties that spend the budget and make the expected gradient
    stationary: a linear program."""
    i, j = np.nonzero(ties)
    d = gradients.shape[1]
    norm = float(np.linalg.norm(theta))
    on_boundary = norm >= bound * (1 - 1e-9)
    columns = np.concatenate(
        [p[i][None] * gradients[j].T, theta[:, None] / max(norm, 1e-300)], 1
    )  # (d, ties + 1)
    limit = np.ones((d, 1))
    rows = np.zeros((len(p), len(i) + 2))
    rows[i, np.arange(len(i))] = 1
    spent = np.concatenate([p[i] * cost[i, j], [0, 0]])[None] / max(budget, 1e-300)
    below, level = np.block([[columns, -limit], [-columns, -limit]]), np.zeros(2 * d)
    if spend:
        equal, right = np.concatenate([rows, spent]), np.ones(len(p) + 1)
    else:
        equal, right = rows, np.ones(len(p))
        below, level = np.concatenate([below, spent]), np.append(level, 1.0)
    ranges = [(0, None)] * len(i) + [(0, None if on_boundary else 0), (0, None)]
    objective = np.append(np.zeros(len(i) + 1), 1.0)
    solved = linprog(
        objective, A_ub=below, b_ub=level, A_eq=equal, b_eq=right, bounds=ranges, method="highs"
    )
    if solved.status != 0:
        return None
    plan = np.zeros(ties.shape)
    plan[i, j] = np.maximum(solved.x[: len(i)], 0)
    return plan / plan.sum(1, keepdims=True)


# ------------------------------------------------------------------------------------ concentration
def _bernstein(p: Array, values: Array, n: float, share: float) -> float:
    """|E_n f - E f| except with probability 2 e^-share, for f with these values; Bernstein's
    inequality."""
    centred = values - p @ values
    V, b = float(p @ centred**2), float(np.abs(centred).max())
    linear = b * share / (3 * n)
    return linear + math.sqrt(linear**2 + 2 * V * share / n)


def _pinelis(p: Array, norms: Array, n: float, share: float) -> float:
    """||E_n f|| for centred vectors of these norms, except with probability 2 e^-share; Smale and
    Zhou (2007), Lemma 2."""
    return 2 * float(norms.max()) * share / n + math.sqrt(2 * float(p @ norms**2) * share / n)


def _chernoff(matrix: Array, largest: float, n: float, delta: float) -> tuple[float, float]:
    """Least eigenvalue of E H, and the part of it that E_n H may lose with probability delta; Tropp
    (2012), Theorem 1.1."""
    h = float(np.linalg.eigvalsh(matrix)[0])
    if h <= 0:
        return 0.0, 1.0
    return h, math.sqrt(2 * largest * math.log(len(matrix) / delta) / (n * h))


def _temperature_shift(off: float, t: float, variance: float, spread: float) -> float:
    """Smallest s with (t - s) v (1 - e^(-spread s)) / spread >= off: KL of the tilts at t - s and t
    + s is beyond the radius."""
    if variance <= 0 or spread <= 0:
        return math.inf

    def reach(s: float) -> float:
        return (t - s) * variance * -math.expm1(-spread * s) / spread

    top = brentq(
        lambda s: (t - s) * spread * math.exp(-spread * s) + math.expm1(-spread * s),
        0.0,
        t,
        xtol=1e-14,
    )
    if reach(top) <= off:
        return math.inf
    return float(brentq(lambda s: reach(s) - off, 0.0, top, xtol=1e-16, rtol=1e-12))


def _step(gradient: float, slack: float, curvature: float, beta: float, u: Array) -> SharpBound:
    """Largest ||D|| with (e^-r + r - 1) h / r² ||D||² <= gradient ||D|| + slack, r = beta X
    ||D||."""
    reach = beta * float(np.linalg.norm(u, axis=1).max())
    if curvature <= 0 or reach * gradient >= curvature:
        return SharpBound(math.inf, gradient, curvature)
    r = _root(reach * gradient / curvature, reach**2 * slack / curvature)
    return SharpBound(r / reach, gradient, curvature)


def _root(y: float, c: float) -> float:
    """The largest r with e^-r + r - 1 = y r + c, 0 <= y < 1 and c >= 0, to rounding.

    Newton's method from above: e^-r + r - 1 >= r²/(2 + r) gives a first point above the root, and
    for a convex function the points then fall to it. The excess over the line is divided by r, so
    that neither r² of a tiny r underflows nor 1 - y is lost next to a large one.
    """
    if y == 0 and c == 0:
        return 0.0
    line = 2 * y + c
    r = (line + math.hypot(line, math.sqrt(8 * c * (1 - y)))) / (2 * (1 - y))
    for _ in range(100):
        if r < 0.5:  # e^-r + r - 1 = r² (1/2 - r/6 + r²/24 - ..)
            series = math.fsum((-r) ** k / math.factorial(k + 2) for k in range(16))
            excess = r * series - y - c / r
        else:
            excess = (1 - y) + math.expm1(-r) / r - c / r
        below = r - r * excess / (-math.expm1(-r) - y if r < 0.5 else (1 - y) - math.exp(-r))
        if not below < r * (1 - 1e-15):  # rounding is all that is left
            break
        r = below
    return r
