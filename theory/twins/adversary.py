"""The adversary's value at fixed losses or margins, by duals in one variable, in numpy: what the
programs of the estimators need inside.

Nothing is imported from what is checked. Losses l (n,), probabilities p (n,) that sum to one,
margins m = beta w.u (n,).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import entr, expit, logsumexp

Array = NDArray[np.float64]


def kl_divergence(q: Array, p: Array) -> float:
    """KL(q||p) in nats, accurate also where q is close to p; q must vanish where p does."""
    ratio = q[p > 0] / p[p > 0] - 1
    near = np.abs(ratio) < 1e-3
    series = ratio**2 / 2 - ratio**3 / 6 + ratio**4 / 12 - ratio**5 / 20 + ratio**6 / 30
    exact = -entr(1 + ratio) - ratio
    return max(0.0, float(p[p > 0] @ np.where(near, series, exact)))


def kl_worst_case(losses: Array, p: Array, radius: float) -> tuple[Array, float]:
    """max {q . losses : KL(q||p) <= radius}, q (n,) and the value: an exponential tilt of p, or p
    given the largest losses."""
    q, value, _ = kl_tilt(losses, p, radius)
    return q, value


def kl_tilt(losses: Array, p: Array, radius: float) -> tuple[Array, float, float]:
    """The worst case, its value and lambda."""
    live = p > 0
    spread = float(np.ptp(losses[live]))
    # losses that differ by rounding are tied: a smaller lambda would tell them apart by noise
    top = np.where(live & (losses >= losses[live].max() - 1e-14 * (1 + losses[live].max())), p, 0.0)
    if radius == 0 or spread == 0:
        return p.copy(), float(p @ losses), np.inf if radius == 0 else 0.0
    if radius >= -np.log(top.sum()):
        q = top / top.sum()
        return q, float(q @ losses), 0.0
    mean, peak = float(p @ losses), float(losses[live].max())
    log_p = np.log(np.where(live, p, 1.0))

    def tilt(log_lam: float) -> Array:
        scores = np.where(
            live, (losses - peak) / np.exp(log_lam) + log_p, -np.inf
        )  # exact where losses nearly tie
        return np.exp(scores - logsumexp(scores))

    def excess(log_lam: float) -> float:
        return kl_divergence(tilt(log_lam), p) - radius

    low = high = float(np.log(spread))
    while excess(high) > 0:
        high += 1.0
    while excess(low) < 0:
        low -= 1.0
    root = high if high == low else brentq(excess, low, high, xtol=1e-15, rtol=1e-15)
    q = tilt(root)
    return q, mean + float(q @ (losses - mean)), float(np.exp(root))


def finite_dual(losses: Array, p: Array, cost: Array, budget: float) -> float:
    """The eta >= 0 that minimises eta budget + sum_i p_i max_j [losses_j - eta cost_ij]; cost (rows
    of p, atoms).

    The derivative budget - sum_i p_i cost_{i, j(i)} increases in steps: the root is bracketed, then
    taken at the crossing of the two lines at its sides.
    """

    def line(eta: float) -> tuple[float, float]:
        chosen = (losses - eta * cost).argmax(1)
        rows = np.arange(len(p))
        return budget - float(p @ cost[rows, chosen]), float(p @ losses[chosen])

    low, high = 0.0, 1.0
    if line(low)[0] >= 0:
        return 0.0
    while line(high)[0] < 0:
        high *= 2
    for _ in range(200):
        (slope, offset), (far_slope, far_offset) = line(low), line(high)
        middle = (offset - far_offset) / (far_slope - slope)
        here = line(middle)[0]
        if not low < middle < high or here in (slope, far_slope):
            break
        low, high = (middle, high) if here < 0 else (low, middle)
    return float(middle)


def free_labels_worst_case(
    margins: Array, p: Array, norm: float, radius: float, kappa: float
) -> tuple[float, float]:
    """min over eta >= norm of eta radius + sum_i p_i max(l(m_i), l(-m_i) - kappa eta), norm = beta
    ||w||; eta and the value.

    Piecewise linear in eta with breakpoints m_i/kappa, since l(-m) - l(m) = m: the minimum is at
    one of them or at the bound.
    """
    etas = np.append(norm, np.maximum(margins / kappa, norm))
    flips = softplus(margins)[None] - kappa * etas[:, None]
    values = etas * radius + np.maximum(softplus(-margins)[None], flips) @ p
    best = int(np.argmin(values))
    return float(etas[best]), float(values[best])


def free_quadratic_worst_case(
    margins: Array, p: Array, norm: float, radius: float
) -> tuple[float, float]:
    """min over eta of eta radius² + sum_i p_i max_q [-q m_i + H(q) + q² norm²/(4 eta)], norm = beta
    ||w|| > 0; eta and value.

    The derivative in eta is increasing; at its root, which may be a jump, radius² = norm² E q²/(4
    eta²).
    """

    def slope(log_eta: float) -> float:
        eta = np.exp(log_eta)
        q, values = peaks(margins, norm**2 / (4 * eta))
        best = q[np.arange(len(p)), values.argmax(1)]
        return radius**2 - float(p @ best**2) * norm**2 / (4 * eta**2)

    high = float(np.log(norm / (2 * radius)))  # q <= 1
    low = high + 0.5 * float(np.log(p @ expit(-margins) ** 2))  # moving along w only raises q
    eta = float(np.exp(brentq(slope, low - 1e-9, high + 1e-9, xtol=1e-14)))
    return eta, eta * radius**2 + float(p @ peaks(margins, norm**2 / (4 * eta))[1].max(1))


def softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def peaks(margins: Array, a: float) -> tuple[Array, Array]:
    """Local maxima over q of -q m + H(q) + a q²: q (n, 2) and values (n, 2), -inf where there is
    only one.

    With q = sigma(x) a maximum is where h(x) = x + m - 2 a sigma(x) crosses zero upwards; h is
    increasing outside [-bend, bend], where sigma(x) sigma(-x) = 1/(2a), so that each side holds at
    most one such root. Found by bisection.
    """
    low, high = -margins - 1e-9, 2 * a - margins + 1e-9
    bend = (
        float(np.log(a / 2) + 2 * np.log1p(np.sqrt(1 - 2 / a))) if a > 2 else 0.0
    )  # logit((1 + sqrt(1 - 2/a))/2)

    def h(x: Array) -> Array:
        return x + margins - 2 * a * expit(x)

    left_end, right_end = np.full_like(margins, -bend), np.full_like(margins, bend)
    left = _bisect(h, np.minimum(low, left_end), np.minimum(high, left_end))
    right = _bisect(h, np.maximum(low, right_end), np.maximum(high, right_end))
    x = np.stack([left, right], axis=1)
    there = np.stack([h(left_end) >= 0, h(right_end) < 0], axis=1)
    q = expit(x)
    values = -q * margins[:, None] + entr(q) + entr(expit(-x)) + a * q**2
    return q, np.where(there, values, -np.inf)


def _bisect(function: Callable[[Array], Array], low: Array, high: Array) -> Array:
    for _ in range(70):
        middle = (low + high) / 2
        above = function(middle) > 0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return (low + high) / 2
