"""Bounds on the estimation error of DPO and of Algorithm 2 (a fixed temperature) that are
informative from a few thousand pairs; Theorem A-tilt, proofs in docs/theorems/tilt.md.

The route: F_n(theta) = tau log E_n e^{l/tau} is smooth and convex, and its third derivative along
any direction is at most a known multiple of its second one. So its slope at theta_rho has to make
up for all the curvature between theta_rho and theta_n:

    ||E_{Q_n} grad l - g||  >=  low * integral_0^R exp(-integral_0^r third(x) dx) dr,
    R = ||theta_n - theta_rho||,

in the norm of the Hessian J at theta_rho and its dual norm. Nothing is compared with a value, and
no half of the convexity is given away as in theory/bounds/sharp.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from theory.bounds.concentration import deviations
from theory.bounds.population import Size, check_population, not_stationary, seen_from
from theory.checks import check_positive
from theory.policy import Array

# the failure probability goes mostly to the slope at theta_rho, which decides the bound at large n;
# the rest to the mass of the tilt and to the curvature
SLOPE, REST = 0.9, 0.05
_CELLS = 50  # of the integral, up to where it would be at constant curvature


@dataclass(frozen=True)
class SmoothBound:
    """A bound with probability 1 - delta, infinite where n is too small for the argument.

    value: on ||theta_n - theta_rho||_2, in the unit of theta. scaled: on the norm of the Hessian J
    of the objective at theta_rho, without unit. slope: on the sample's gradient at theta_rho in the
    dual norm. curvature: lower bound on the sample's Hessian in units of J, in [0, 1].
    """

    value: float
    scaled: float
    slope: float
    curvature: float


NO_BOUND = SmoothBound(math.inf, math.inf, math.inf, 0.0)


def dpo_bound(
    u: Array, p: Array, theta: Array, size: Size, *, sample: Array | None = None
) -> SmoothBound:
    """Theorem A-tilt without a tilt: DPO.

    Args:
        u, p: (K, d) atoms of the population and (K,) their probabilities.
        theta: (d,) its minimiser, inside the ball or on its boundary.
        size: n, delta, beta, B and theta_ref.
        sample: (K,) shares of the atoms in one sample: with its own deviations in the place of
            tail inequalities the bound holds for it with certainty.

    Raises:
        ValueError: numbers that are not finite, shapes that do not fit, or probabilities that do
            not sum to one; so do the other bounds on the error.

    >>> import numpy as np
    >>> from theory import dpo
    >>> u, p = np.array([[1.0], [-1.0]]), np.array([0.7, 0.3])
    >>> theta = dpo(u, p, beta=1.0, bound=4.0).theta.numpy()
    >>> found = dpo_bound(u, p, theta, Size(10_000, 0.05, beta=1.0, bound=4.0))
    >>> round(found.value, 3)  # 0.043 is the 95 % quantile
    0.081
    """
    return _bound(u, p, theta, size, 0.0, sample)


def tilt_bound(
    u: Array,
    p: Array,
    theta: Array,
    size: Size,
    *,
    temperature: float,
    sample: Array | None = None,
) -> SmoothBound:
    """Theorem A-tilt: the minimiser of tau log E e^{l/tau}, Algorithm 2 of arXiv:2502.01930v4.

    Args:
        u, p, size, sample: as `dpo_bound`.
        theta: (d,) the minimiser of the population's tilted risk.
        temperature: tau > 0 in the unit of the loss.

    Raises:
        ValueError: a temperature that is not positive and finite.
    """
    tau = check_positive("temperature", temperature, "For the plain mean use dpo_bound.")
    return _bound(u, p, theta, size, 1 / tau, sample)


def _bound(
    u: Array, p: Array, theta: Array, size: Size, t: float, sample: Array | None
) -> SmoothBound:
    u, p, theta = check_population(u, p, theta, size)
    noise = deviations(size.n, sample, p > 0)
    u, p = u[p > 0], p[p > 0]
    local = seen_from(theta, u, size)
    tilted = np.exp(t * (local.losses - local.losses.max()))
    r = tilted / (p @ tilted)
    g = (r * p) @ local.gradients
    centred = local.gradients - g
    curved = local.hessians + t * centred[:, :, None] * centred[:, None, :]
    J = np.einsum("k,kij->ij", r * p, curved)
    eigenvalues, vectors = np.linalg.eigh(J)
    if eigenvalues[0] <= 1e-14 * eigenvalues[-1]:
        return NO_BOUND
    white = vectors / np.sqrt(eigenvalues)

    rest = math.log(1 / (REST * size.delta))
    slope = noise.vector(p, r[:, None] * centred @ white, math.log(1 / (SLOPE * size.delta)))
    slope += float(r.max()) * not_stationary(g, theta, size.bound) / math.sqrt(eigenvalues[0])
    mass = noise.mean(p, r, rest + math.log(2))
    lost = noise.matrix_shortfall(
        p, r[:, None, None] * (white.T @ curved @ white), rest + math.log(len(J))
    )
    if mass >= 1:
        return NO_BOUND
    pull = slope / (1 - mass)
    # both sides of the inequality have the factor 1 / E_n r, except for the variance's second term
    curvature = 1 - lost - t * slope * pull
    if curvature <= 0:
        return NO_BOUND
    margin = size.beta * u @ size.away(theta)
    third = third_over_second(margin, size.beta * np.linalg.norm(u @ white, axis=1), t, pull)
    furthest = 2 * size.bound * math.sqrt(eigenvalues[-1])
    scaled = largest_distance(slope / curvature, third, furthest)
    return SmoothBound(scaled / math.sqrt(eigenvalues[0]), scaled, pull, curvature)


def third_over_second(
    margin: Array, reach: Array, t: float, pull: float
) -> Callable[[float], float]:
    """|F'''| / F'' along a direction of unit length, at most this at a distance r from theta_rho.

    Args:
        margin: (K,) m at theta_rho. reach: (K,) the most that m moves per unit of length.
        t: 1/tau. pull: the largest |F'| on the segment from theta_rho to theta_n.

    With s = sigma(-m): F''' = E l''' + 3t Cov(l'', l') + t² k_3(l'), |l'''| <= |1 - 2s| reach l'',
    |l' - E l'| <= s reach + pull; |1 - 2s| = tanh(|m|/2).
    """

    def third(r: float) -> float:
        moved = reach * r
        bend = np.tanh((np.abs(margin) + moved) / 2)
        return float((reach * (bend + 3 * t * expit(moved - margin))).max()) + 3 * t * pull

    return third


def largest_distance(
    target: float, third: Callable[[float], float], furthest: float = math.inf
) -> float:
    """Largest R with integral_0^R exp(-integral_0^r third) dr <= target, for a third that grows.

    Rounded up: `third` is taken at the right end of every cell. Infinite where the integral never
    reaches the target, or only beyond `furthest`.
    """
    if target == 0:
        return 0.0
    step = target / _CELLS
    R = integral = exponent = 0.0
    while R + step <= furthest:
        rate = third(R + step)
        if math.isinf(rate):
            return math.inf
        left = (target - integral) * math.exp(exponent)  # in units of the curvature that remains
        if rate * left < 1:
            within = -math.log1p(-rate * left) / rate if rate > 0 else left
            if within <= step:
                return R + within
        elif third(R) * left >= 1:  # not even with the present rate for ever
            return math.inf
        integral += math.exp(-exponent) * (-math.expm1(-rate * step) / rate if rate > 0 else step)
        exponent += rate * step
        R += step
    return math.inf
