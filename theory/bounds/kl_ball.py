"""A bound on the estimation error of KLDPO at a fixed radius that uses all of the curvature:
Theorem A-tilt for the ball, proofs in docs/theorems/tilt.md.

The ball's objective is a minimum over temperature and normaliser of a smooth convex function, and
is smooth and convex itself wherever the dual variable is positive. Its third derivative is at most
`third` times the second, where `third` grows with the distance from theta_rho: the temperature and
the variance of log dq/dp are followed along the way by differential inequalities. At theta_rho the
temperature is treated as in Theorem A, but gradient and temperature move together, as one average.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.special import expit

from theory.bounds.concentration import Deviations, deviations
from theory.bounds.kl_edge import kl_edge_bound
from theory.bounds.population import (
    Size,
    check_population,
    kl_worst_case,
    not_stationary,
    seen_from,
)
from theory.bounds.sharp import SharpBound, _step, _temperature_shift
from theory.bounds.tilted import largest_distance
from theory.policy import Array

_NONE = SharpBound(math.inf, math.inf, 0.0)
_SCORE, _REST, _EVENTS = 0.6, 0.4, 9  # of the failure probability: the score's, the others'


def kl_ball_bound(
    u: Array,
    p: Array,
    theta: Array,
    size: Size,
    *,
    radius: float,
    sample: Array | None = None,
) -> SharpBound:
    """KLDPO at a radius in nats, at every radius; where the dual variable is 0 by `kl_edge_bound`.

    Args:
        u, p: (K, d) atoms of the population and (K,) their probabilities.
        theta: (d,) its robust minimiser theta_rho.
        size: n, delta, beta, B and theta_ref.
        radius: of the ball, > 0, in nats.
        sample: (K,) shares of the atoms in one sample: with its own deviations in the place of
            tail inequalities the bound holds for it with certainty.

    Returns:
        The better of two bounds: by Lemma 1 of docs/theorems/kl.md, which is finite sooner, and by
        all of the curvature, which is smaller once it is finite.
    """
    u, p, theta = check_population(u, p, theta, size)
    edge = kl_edge_bound(u, p, theta, size, radius=radius, sample=sample)
    if math.isfinite(edge.value):
        return edge
    noise = deviations(size.n, sample, p > 0)
    u, p = u[p > 0], p[p > 0]
    fixed, profiled = (
        _bound(u, p, theta, size, radius, noise, profiled) for profiled in (False, True)
    )
    return min(fixed, profiled, key=lambda found: found.value)


def _bound(
    u: Array,
    p: Array,
    theta: Array,
    size: Size,
    radius: float,
    noise: Deviations,
    profiled: bool,
) -> SharpBound:
    """By Lemma 1, at one worst case, or by all of the curvature."""
    local = seen_from(theta, u, size)
    l = local.losses
    lam, q = kl_worst_case(l, p, radius)
    if not 0 < lam < math.inf:
        return _NONE
    t, r = 1 / lam, q / p
    g, deviation = q @ local.gradients, l - float(q @ l)
    v, spread = float(q @ deviation**2), float(np.ptp(l))
    raw = local.gradients - g
    slope = q @ (raw * deviation[:, None]) / v  # of the gradient on the loss, under q
    residual = raw - deviation[:, None] * slope
    curved = local.hessians
    if profiled:
        curved = curved + t * residual[:, :, None] * residual[:, None, :]
    eigenvalues, vectors = np.linalg.eigh(np.einsum("k,kij->ij", q, curved))
    if eigenvalues[0] <= 1e-14 * eigenvalues[-1]:
        return _NONE
    white = vectors / np.sqrt(eigenvalues)
    G, slope, residual = raw @ white, slope @ white, residual @ white
    C = slope * v

    # averages of the sample, each as far from its expectation as it may be
    share, d = math.log(2 * _EVENTS / (_REST * size.delta)), len(white)
    log_deviation = t * deviation  # log r - radius
    cross = r[:, None] * G * deviation[:, None]
    from_g = np.linalg.norm(G, axis=1)
    mass = noise.mean(p, r, share)
    divergence = noise.mean(p, r * log_deviation, share)
    together = noise.mean(p, r * log_deviation - (r - 1), share)
    variance = noise.mean(p, r * deviation**2, share)
    scatter = noise.mean(p, r * from_g**2, share)
    vector = noise.vector(p, r[:, None] * G, share)
    mixed = noise.vector(p, cross - C, share)
    lost = noise.matrix_shortfall(
        p, r[:, None, None] * (white.T @ curved @ white), share + math.log(d)
    )
    outer = r[:, None, None] * G[:, :, None] * G[:, None, :]
    wide = float(np.linalg.eigvalsh(np.einsum("k,kij->ij", p, outer))[-1])
    wide += noise.matrix_excess(p, outer, share + math.log(d))
    if mass >= 1 or lost >= 1:
        return _NONE

    # Theorem A: how far the temperature moves at theta_rho
    second = (divergence * mass + mass**2 / 2) / (1 - mass)
    mean_off = divergence / (t * (1 - mass))
    least = (v - variance) / (1 + mass) - mean_off**2
    shift = _temperature_shift(together + second, t, least, spread)
    if math.isinf(shift):
        return _NONE
    swing = math.exp(spread * shift)

    # the gradient: a linear score, and what is left of it
    score = r[:, None] * residual + np.outer(r - 1, slope) / t
    size_C = float(np.linalg.norm(C))
    uneven = max(
        1 - (1 - shift / t) / swing * least / v,
        (1 + shift / t) * swing * (v + variance) / ((1 - mass) * v) - 1,
    )
    bent = (mixed + size_C * mass) / (1 - mass) + vector * mean_off / (1 - mass)
    third = spread * math.sqrt((v + variance) * (float(q @ from_g**2) + scatter)) / (1 - mass)
    pull = (
        noise.vector(p, score, math.log(1 / (_SCORE * size.delta)))
        + vector * mass / (1 - mass)
        + size_C * (second / (t * v) + shift * uneven)
        + shift * bent
        + shift**2 / 2 * swing * third
        + not_stationary(g, theta, size.bound) / math.sqrt(float(eigenvalues[0]))
    )

    curvature, root = (1 - lost) / (1 + mass), math.sqrt(float(eigenvalues[0]))
    if not profiled:
        found = _step(pull, 0.0, curvature / swing, size.beta, u @ white)
        return replace(found, value=found.value / root)
    # the residual's variance, after another regression on the sample
    steep = float(np.linalg.norm(slope))
    off = (vector + steep * divergence / t) / (1 - mass)
    tilted = (mixed + steep * variance) / (1 - mass) + off * mean_off
    curvature -= t * (off**2 + tilted**2 / least)
    curvature *= (1 - shift / t) / swing
    if curvature <= 0:
        return _NONE
    margin = size.beta * u @ size.away(theta)
    way = _third_along(
        margin,
        size.beta * np.linalg.norm(u @ white, axis=1),
        t + shift,
        (t - shift) ** 2 * least / swing,
        math.sqrt(swing * wide / (1 - mass)),
        pull,
    )
    furthest = 2 * size.bound * math.sqrt(eigenvalues[-1])
    scaled = largest_distance(pull / curvature, way, furthest)
    return SharpBound(scaled / root, pull, curvature)


def _third_along(
    margin: Array, reach: Array, t: float, log_variance: float, deviation: float, pull: float
) -> Callable[[float], float]:
    """|F'''| / F'' at a distance from theta_rho, at most this; to be asked in increasing order.

    With x = log dq/dp along a direction of unit length: F'' = E_q(l'' + lambda x'²), F''' =
    E_q(3 x' l'' + lambda x'³ + l''' - 3 lambda' x'²), lambda x' the residual of l' on (1, l). Then
    (log t)' = -c, c = lambda'/lambda, |c| <= t sd(l')/sd(x), and both (log Var x)' and twice
    (log sd l')' are at most max |x'|, up to the change of l' itself.

    Args:
        margin, reach: as `third_over_second`. t, log_variance, deviation: most 1/lambda, least Var
            log dq/dp, and most sd of l' at theta_rho. pull: the largest |E l'|.
    """
    at, turned, grown, rate = 0.0, 0.0, 0.0, 0.0  # distance, integrals of c and max |x'|
    bends = float((reach**2).max()) / 4

    def third(r: float) -> float:
        nonlocal at, turned, grown, rate
        if r <= at or math.isinf(rate):
            return rate
        step, moved = r - at, reach * r
        slopes = reach * expit(moved - margin) + pull
        span = float(np.logaddexp(0, moved - margin).max() - np.logaddexp(0, -moved - margin).min())
        bend = reach * np.tanh((np.abs(margin) + moved) / 2)
        c = speed = 0.0
        for _ in range(
            200
        ):  # the rates of this cell, from its right end; they depend on themselves
            if grown + speed * step + turned + c * step > 50:
                break
            warmer = t * math.exp(turned + c * step)
            noise = math.exp((grown + speed * step) / 2)
            c_next = warmer * noise**2 * (deviation + r * bends) / math.sqrt(log_variance)
            each = warmer * (slopes + c_next * span)
            speed_next = float(each.max())
            settled = c_next <= c * (1 + 1e-9) and speed_next <= speed * (1 + 1e-9)
            c, speed = c_next * (1 + 1e-10), speed_next * (1 + 1e-10)
            if settled:
                at, turned, grown = r, turned + c * step, grown + speed * step
                rate = max(float((3 * each + bend).max()), speed + 3 * c)
                return rate
        rate = math.inf
        return rate

    return third
