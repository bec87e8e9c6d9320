"""Bounds of our own on the estimation error at the rate n^-1/2, with explicit constants: Theorem A
(proof in docs/theorems/kl.md) and Theorem B' (docs/theorems/transport.md).

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
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import brentq, linprog

from theory.bounds.budget import Price, price_of_budget
from theory.bounds.concentration import bernstein, chernoff, deviations, pinelis
from theory.bounds.population import (
    Size,
    check_population,
    kl_worst_case,
    not_stationary,
    seen_from,
)
from theory.checks import check_metric
from theory.duals import transport_dual
from theory.policy import Array

_EVENTS = {"kl": 8}  # averages that have to behave; each fails with probability delta / events
# of transport balls they share delta like this; `room` counts twice
_PARTS = {"gradient": 0.5, "cost": 0.3, "curvature": 0.1, "room": 0.05}
# two scores this close (relative) count as equally good for the adversary; what it costs is
# accounted for
_TIE = 1e-6


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


def deterministic_bound(u: Array, q: Array, theta: Array, size: Size) -> SharpBound:
    """The inequality of the route itself: bound on ||theta_n - theta|| for the sample whose worst
    case at theta is q.

    u (K, d): atoms. q (K,): worst-case probabilities of them at theta (d,), a population minimiser
    or any other point.
    """
    local = seen_from(theta, u, size)
    h = float(np.linalg.eigvalsh(np.einsum("k,kij->ij", q, local.hessians))[0])
    return _step(not_stationary(q @ local.gradients, theta, size.bound), 0.0, h, size.beta, u)


def kl_bound(u: Array, p: Array, theta: Array, size: Size, *, radius: float) -> SharpBound:
    """Theorem A: KLDPO with a radius in nats whose worst case at theta_rho has a positive dual
    variable.

    u (K, d), p (K,): atoms of the population. theta (d,): its robust minimiser theta_rho.
    """
    u, p, theta = check_population(u, p, theta, size)
    u, p = u[p > 0], p[p > 0]
    local = seen_from(theta, u, size)
    l = local.losses
    lam, q = kl_worst_case(l, p, radius)
    if not 0 < lam < math.inf:
        return _NONE
    t, r, mean_loss, g = 1 / lam, q / p, float(q @ l), q @ local.gradients
    from_g = np.linalg.norm(local.gradients - g, axis=1)
    n, share = size.n, math.log(2 * _EVENTS["kl"] / size.delta)

    # how far eight averages of the sample can be from their expectations
    deviation, log_deviation = l - mean_loss, np.log(r) - radius
    cross = r[:, None] * (local.gradients - g) * deviation[:, None]
    covariance = p @ cross
    mass = bernstein(p, r, n, share)  # E r = 1
    divergence = bernstein(p, r * log_deviation, n, share)  # E r log r = radius
    together = bernstein(p, r * log_deviation - (r - 1), n, share)
    variance = bernstein(p, r * deviation**2, n, share)
    scatter = bernstein(p, r * from_g**2, n, share)
    vector = pinelis(p, r * from_g, n, share)
    mixed = pinelis(p, np.linalg.norm(cross - covariance, axis=1), n, share)
    hessian = np.einsum("k,kij->ij", q, local.hessians)
    largest = float((r * np.linalg.eigvalsh(local.hessians)[:, -1]).max())
    h, matrix = chernoff(hessian, largest, n, size.delta / _EVENTS["kl"])
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
    gradient = vector / (1 - mass) + moved + not_stationary(g, theta, size.bound)
    return _step(
        gradient, 0.0, math.exp(-spread * shift) * (1 - matrix) * h / (1 + mass), size.beta, u
    )


def transport_bound(
    u: Array,
    p: Array,
    theta: Array,
    size: Size,
    *,
    distance: Array,
    power: int,
    radius: float,
    sample: Array | None = None,
) -> SharpBound:
    """Theorem B': WDPO with a Wasserstein ball of order `power` on K atoms and any metric; also at
    kinks, where the worst case is not unique, and at every budget.

    Args:
        u, p: (K, d) atoms of the population and (K,) their probabilities.
        theta: (d,) its robust minimiser.
        size: n, delta, beta, B and theta_ref.
        distance: (K, K) metric, as `WassersteinAtoms` takes it.
        power: 1 or 2, order of the distance.
        radius: of the ball, in the unit of the distance.
        sample: (K,) shares of the atoms in one sample: with its own deviations in the place of
            tail inequalities the bound holds for it with certainty.

    Returns:
        A `SharpBound` whose gradient and curvature are in the norm of the Hessian under the
        population's stationary worst case, so that curvature is at most 1.
    """
    u, p, theta = check_population(u, p, theta, size)
    distance = check_metric(distance, len(p)).numpy()
    live = p > 0
    noise = deviations(size.n, sample, live)
    local = seen_from(theta, u, size)
    cost, budget = distance[live] ** power, radius**power
    losses, budgets = (
        torch.from_numpy(local.losses)[None],
        torch.tensor([budget], dtype=torch.float64),
    )
    eta = transport_dual(
        losses, torch.from_numpy(p)[None], torch.from_numpy(distance**power), budgets
    ).dual.item()
    p, score = p[live], local.losses - eta * cost
    best = score.max(1, keepdims=True)
    lost = best - score
    ties = lost <= _TIE * (1 + np.abs(local.losses).max())
    plan = _stationary_plan(local.gradients, p, cost, budget, ties, eta > 0, theta, size.bound)
    if plan is None:
        return _NONE
    hessians = np.einsum("kj,jab->kab", plan, local.hessians)
    eigenvalues, vectors = np.linalg.eigh(np.einsum("k,kab->ab", p, hessians))
    if eigenvalues[0] <= 1e-14 * eigenvalues[-1]:
        return _NONE
    white, h = vectors / np.sqrt(eigenvalues), float(eigenvalues[0])  # the Hessian becomes I
    g_each, cost_each = plan @ local.gradients, (plan * cost).sum(1)
    g = p @ g_each

    share = {name: math.log(1 / (part * size.delta)) for name, part in _PARTS.items()}
    vector = noise.vector(p, (g_each - g) @ white, share["gradient"])
    matrix = noise.matrix_shortfall(
        p, white.T @ hessians @ white, share["curvature"] + math.log(len(white))
    )
    spent = float(p @ cost_each)
    overspent = noise.mean(p, cost_each, share["cost"] + math.log(2))
    # money may be left where it buys nothing
    overspent = overspent + abs(spent - budget) if eta > 0 else max(overspent + spent - budget, 0.0)
    # targets that count as equally good, though the solver left a little between them, are lifted
    # until they are; what that costs is the slack
    lifted = np.where(ties, best + eta * cost, local.losses)
    price = Price()
    for spend in (False, True) if eta > 0 else (False,):  # money may be left where it buys nothing
        price |= price_of_budget(
            p,
            plan,
            cost,
            lifted,
            eta,
            local.gradients @ white,
            white.T @ local.hessians @ white,
            spend=spend,
            need=overspent,
            noise=noise,
            share=share["room"],
        )
    off = not_stationary(g, theta, size.bound) / math.sqrt(h)
    gradient, curvature = vector + overspent * price.gradient + off, 1 - matrix
    curvature -= overspent * price.curvature
    slack = float((lost * (plan > 0)).max() + min(overspent * price.mass, 1.0) * lost[ties].max())
    found = _step(gradient, slack, curvature, size.beta, u @ white)
    return replace(found, value=found.value / math.sqrt(h))


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
    # where money may be left, as much of it as there is
    objective = np.concatenate([np.zeros(len(i)) if spend else 1e-9 * spent[0, :-2], [0.0, 1.0]])
    solved = linprog(
        objective, A_ub=below, b_ub=level, A_eq=equal, b_eq=right, bounds=ranges, method="highs"
    )
    if solved.status != 0:
        return None
    plan = np.zeros(ties.shape)
    plan[i, j] = np.maximum(solved.x[: len(i)], 0)
    return plan / plan.sum(1, keepdims=True)


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
