"""Bounds on the estimation error of WDPO with features that may move anywhere, for any bounded law
of the features, continuous ones included: Theorem D2, proofs in docs/theorems/free.md.

With p = 1 the ball adds radius beta ||w|| to the mean loss, whatever the law. With p = 2 every pair
moves by T against w, where T maximises l(m - b T) - eta T², b = beta ||w||: one smooth function of
the pair and of the dual variable eta, and the sample's eta is as close to the population's as the
sample's E T² is to the squared radius.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from theory.bounds.concentration import Deviations, deviations
from theory.bounds.population import Size, check_population, not_stationary, seen_from
from theory.bounds.sharp import SharpBound, _step
from theory.bounds.tilted import NO_BOUND, SLOPE, SmoothBound, largest_distance
from theory.policy import Array

_NONE = SharpBound(math.inf, math.inf, 0.0)
# of the failure probability
_PARTS = {"gradient": 0.5, "cost": 0.3, "curvature": 0.1, "moved": 0.05, "bent": 0.05}


def w1_free_bound(
    u: Array,
    p: Array,
    theta: Array,
    size: Size,
    *,
    radius: float,
    reach: float | None = None,
    sample: Array | None = None,
) -> SmoothBound:
    """Theorem D2 for p = 1, also where the policy has collapsed to the reference.

    Args:
        u, p: (K, d) atoms of the population and (K,) their probabilities, or the nodes and weights
            of a quadrature that integrates it.
        theta: (d,) its robust minimiser.
        size: n, delta, beta, B and theta_ref.
        radius: of the ball, in the unit of the features.
        reach: largest ||u|| of the law; None: of the atoms.
        sample: (K,) shares of the atoms in one sample: with its own deviations in the place of
            tail inequalities the bound holds for it with certainty.
    """
    u, p, theta = check_population(u, p, theta, size)
    _check_radius(radius)
    w = size.away(theta)
    length, d = float(np.linalg.norm(w)), len(w)
    noise = deviations(size.n, sample, p > 0)
    u, p = u[p > 0], p[p > 0]
    plain = _w1(u, p, theta, w, size, radius, reach, np.zeros((d, d)), noise)
    if length == 0:
        return plain
    # the penalty's own curvature, across w: it helps once the error is small against ||w||
    across = radius * size.beta / length * (np.eye(d) - np.outer(w, w) / length**2)
    bent = _w1(u, p, theta, w, size, radius, reach, across, noise)
    return min(plain, bent, key=lambda found: found.value)


def _w1(
    u: Array,
    p: Array,
    theta: Array,
    w: Array,
    size: Size,
    radius: float,
    reach: float | None,
    penalty: Array,
    noise: Deviations,
) -> SmoothBound:
    """The bound that uses this much (d, d) of the penalty's curvature: all or nothing."""
    local, length, beta = seen_from(theta, u, size), float(np.linalg.norm(w)), size.beta
    g = p @ local.gradients
    hessian = np.einsum("k,kij->ij", p, local.hessians) + penalty
    eigenvalues, vectors = np.linalg.eigh(hessian)
    if eigenvalues[0] <= 1e-14 * eigenvalues[-1]:
        return NO_BOUND
    white, h = vectors / np.sqrt(eigenvalues), float(eigenvalues[0])
    X = _reach(u, reach)
    # the subgradient of ||w|| that makes theta stationary; the sample has it as well
    v = w / length if length > 0 else -g / max(radius * beta, float(np.linalg.norm(g)))
    off = not_stationary(g + radius * beta * v, theta, size.bound) / math.sqrt(h)

    rest = math.log(1 / ((1 - SLOPE) * size.delta))
    largest = beta * X / math.sqrt(h) + float(np.linalg.norm(g @ white))
    slope = off + noise.vector(
        p,
        (local.gradients - g) @ white,
        math.log(1 / (SLOPE * size.delta)),
        None if reach is None else largest,
    )
    lost = noise.matrix_shortfall(p, white.T @ local.hessians @ white, rest + math.log(len(white)))
    if lost >= 1:
        return NO_BOUND
    far = np.linalg.norm(u @ white, axis=1).max() if reach is None else X / math.sqrt(h)
    bend, unit = float(beta * far), 1 / math.sqrt(h)  # unit: most of ||D||_2 in a unit of ||D||_J

    def third(r: float) -> float:
        # |l'''| <= beta |u.D| l'', and ||w||''' = -3 (D.w/||w||²) ||w||''
        return max(bend, 3 * unit / (length - unit * r)) if penalty.any() else bend

    furthest = length / unit * (1 - 1e-9) if penalty.any() else math.inf
    scaled = largest_distance(slope / (1 - lost), third, furthest)
    return SmoothBound(scaled / math.sqrt(h), scaled, slope, 1 - lost)


@dataclass(frozen=True)
class _Moved:
    """Every pair at one value of eta: T (K,) and y = b T - m (K,), where its slope is sigma(y)."""

    T: Array
    y: Array


def w2_free_bound(
    u: Array,
    p: Array,
    theta: Array,
    size: Size,
    *,
    radius: float,
    dual: float,
    reach: float | None = None,
    sample: Array | None = None,
) -> SharpBound:
    """Theorem D2 for p = 2, where eta > b²/8: every pair has one best move.

    Args:
        u, p, theta, size, radius, reach, sample: as `w1_free_bound`.
        dual: eta at theta, as the fit has it.

    Returns:
        A `SharpBound` whose gradient and curvature are in the norm of the worst case's Hessian. It
        is infinite at the reference policy and where eta <= b²/8.
    """
    u, p, theta = check_population(u, p, theta, size)
    _check_radius(radius)
    noise = deviations(size.n, sample, p > 0)
    u, p = u[p > 0], p[p > 0]
    w = size.away(theta)
    length, beta = float(np.linalg.norm(w)), size.beta
    b = beta * length
    if length == 0 or not b**2 / 8 < dual < math.inf:
        return _NONE
    what, margin, X = w / length, beta * u @ w, _reach(u, reach)
    at = _move(margin, b, dual)
    slope, bend = expit(at.y), expit(at.y) * expit(-at.y)
    there = u - at.T[:, None] * what
    hessians = beta**2 * bend[:, None, None] * there[:, :, None] * there[:, None, :]
    eigenvalues, vectors = np.linalg.eigh(np.einsum("k,kij->ij", p, hessians))
    if eigenvalues[0] <= 1e-14 * eigenvalues[-1]:
        return _NONE
    white, h = vectors / np.sqrt(eigenvalues), float(eigenvalues[0])
    gradients = -beta * slope[:, None] * there
    g = p @ gradients

    share = {name: math.log(1 / (part * size.delta)) for name, part in _PARTS.items()}
    exact = reach is None  # the atoms are all that there is
    furthest = float(_move(np.array([-b * X]), b, dual).T[0])  # T is largest at the least margin
    cost = abs(float(p @ at.T**2) - radius**2) + noise.mean(
        p, at.T**2, share["cost"] + math.log(2), None if exact else furthest**2
    )
    if cost >= radius**2:
        return _NONE
    # d log E T² / d log eta <= -2
    low, high = (dual * math.sqrt(1 + sign * cost / radius**2) for sign in (-1, 1))
    if low <= b**2 / 8:
        return _NONE
    moved, bent = _change(u, margin, what, white, b, beta, low, high)
    corner = _move(np.array([-b * X]), b, low)  # no pair of the law moves further
    longest = (X + float(corner.T[0])) / math.sqrt(h)
    worst = _change_at(
        corner, np.array([0.25]), np.array([longest]), 1 / math.sqrt(h), b, beta, low
    )
    step = max(dual - low, high - dual)
    gradient = (
        noise.vector(
            p,
            (gradients - g) @ white,
            share["gradient"],
            None
            if exact
            else beta * (X + furthest) / math.sqrt(h) + float(np.linalg.norm(g @ white)),
        )
        + step
        * (
            float(p @ moved)
            + noise.mean(p, moved, share["moved"] + math.log(2), None if exact else worst[0][0])
        )
        + not_stationary(g, theta, size.bound) / math.sqrt(h)
    )
    curvature = (
        1
        - noise.matrix_shortfall(
            p, white.T @ hessians @ white, share["curvature"] + math.log(len(white))
        )
        - step
        * (
            float(p @ bent)
            + noise.mean(p, bent, share["bent"] + math.log(2), None if exact else worst[1][0])
        )
    )
    found = _step(gradient, 0.0, curvature, beta, np.array([[longest]]))
    return replace(found, value=found.value / math.sqrt(h))


def _check_radius(radius: float) -> None:
    if not 0 <= radius < math.inf:
        raise ValueError(
            f"radius must be finite and not negative, got {radius}. It is in the unit of u."
        )


def _reach(u: Array, reach: float | None) -> float:
    """The largest ||u||, which must not be less than that of the nodes."""
    nodes = float(np.linalg.norm(u, axis=1).max())
    if reach is None:
        return nodes
    if not reach >= nodes * (1 - 1e-12):
        raise ValueError(
            f"reach must be at least the largest norm of u, {nodes:g}, got {reach:g}. It is the"
            " largest norm that the law can give."
        )
    return reach


def _move(margin: Array, b: float, eta: float) -> _Moved:
    """The maximiser T of l(m - b T) - eta T², from 2 eta T = b sigma(b T - m); eta > b²/8."""
    low, high = np.zeros_like(margin), np.full_like(margin, b / (2 * eta))
    for _ in range(60):
        T = (low + high) / 2
        above = 2 * eta * T > b * expit(b * T - margin)
        low, high = np.where(above, low, T), np.where(above, T, high)
    T = (low + high) / 2
    return _Moved(T, b * T - margin)


def _change(
    u: Array,
    margin: Array,
    what: Array,
    white: Array,
    b: float,
    beta: float,
    low: float,
    high: float,
) -> tuple[Array, Array]:
    """(K,) at most how fast gradient and Hessian of a pair change with eta between low and high."""
    most, least = _move(margin, b, low), _move(margin, b, high)
    # sigma' is largest where y is closest to 0
    closest = np.where((least.y <= 0) & (most.y >= 0), 0.0, np.minimum(abs(least.y), abs(most.y)))
    bend = expit(closest) * expit(-closest)
    sizes = [np.linalg.norm((u - T[:, None] * what) @ white, axis=1) for T in (most.T, least.T)]
    along = float(np.linalg.norm(what @ white))
    return _change_at(most, bend, np.maximum(*sizes), along, b, beta, low)


def _change_at(
    most: _Moved, bend: Array, norm: Array, along: float, b: float, beta: float, eta: float
) -> tuple[Array, Array]:
    """With |T'| = 2 T/(2 eta - b² sigma'), G = -beta sigma (u - T what), H = beta² sigma' (u - T
    what)(u - T what)' and |sigma''| <= sigma'."""
    speed = 2 * most.T / np.maximum(2 * eta - b**2 * bend, 1e-300)
    gradient = beta * (b * bend * norm + expit(most.y) * along)
    hessian = beta**2 * bend * norm * (b * norm + 2 * along)
    return speed * gradient, speed * hessian
