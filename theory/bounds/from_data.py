"""A bound on the estimation error of DPO and of Algorithm 2 that is computed from the sample alone;
proofs in docs/theorems/tilt.md.

The argument of theory/bounds/tilted.py, started at theta_n instead of theta_rho: the Hessian and
the third derivative are then the sample's own, and known. What is unknown is the noise of the
gradient at theta_rho. At each distance r that theta_rho may have from theta_n the sample bounds its
variance there (an empirical Bernstein inequality); distances at which that noise could not make up
for the curvature in between are excluded, and the largest that is left is the bound. One event
about the fixed theta_rho is enough: no cover of Theta, and no union over distances.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from theory.bounds.concentration import bousquet
from theory.bounds.population import Size, check_population, not_stationary, seen_from
from theory.bounds.tilted import third_over_second
from theory.checks import check_positive, check_scale
from theory.policy import Array

# of the failure probability: the gradient's noise, its two variances, and the second moments of the
# features from below and from above
_PARTS = {"noise": 0.7, "spread": 0.05, "widest": 0.05, "below": 0.1, "above": 0.1}
_MANY = 1e100  # a deviation beyond which there is no bound
_RATIO, _SPAN = 1.04, 1e6  # of neighbouring distances that are tried, and of the outermost


@dataclass(frozen=True)
class Certificate:
    """||theta_n - theta_rho|| with probability 1 - delta, infinite where n is too small.

    value: in the Euclidean norm and the unit of theta. scaled: in the norm of `hessian` (d, d), the
    sample's at theta_n, so that {theta : (theta - theta_n)' hessian (theta - theta_n) <= scaled²}
    holds theta_rho. noise: what the gradient may be off in its dual norm.
    """

    value: float
    scaled: float
    noise: float
    hessian: Array


def certificate(
    u: Array,
    p: Array,
    theta: Array,
    size: Size,
    *,
    reach: float,
    temperature: float | None = None,
) -> Certificate:
    """Theorem A-data: how far theta_n is from the population's minimiser, from the sample alone.

    Args:
        u, p: (K, d) the pairs of an iid sample, each once, and (K,) their shares of it.
        theta: (d,) theta_n, the minimiser over the sample.
        size: n, delta, beta, B and theta_ref.
        reach: a norm that no u of the population exceeds: 2 where features have norm 1. It cannot
            be learned from a sample.
        temperature: tau of Algorithm 2; None: DPO.

    Raises:
        ValueError: a reach that the sample exceeds, or a temperature that is not positive.

    >>> import numpy as np
    >>> from theory import dpo
    >>> u, p = np.array([[1.0], [-1.0]]), np.array([0.703, 0.297])  # of 10 000 pairs
    >>> theta = dpo(u, p, beta=1.0, bound=4.0).theta.numpy()
    >>> found = certificate(u, p, theta, Size(10_000, 0.05, beta=1.0, bound=4.0), reach=1.0)
    >>> bool(abs(theta[0] - np.log(0.7 / 0.3)) < found.value), round(found.value, 2)
    (True, 0.09)
    """
    u, p, theta = check_population(u, p, theta, size)
    u, p = u[p > 0], p[p > 0]
    t = 0.0
    if temperature is not None:
        t = 1 / check_positive("temperature", temperature, "For DPO leave it out.")
    longest = float(np.linalg.norm(u, axis=1).max())
    reach = check_scale("reach", reach, "It is a norm that no pair of the population exceeds.")
    if not reach >= longest * (1 - 1e-12):
        raise ValueError(
            f"reach must be at least {longest:g}, the largest norm of u in the sample, got"
            f" {reach:g}. It is a norm that no pair of the population exceeds."
        )
    beta, n, d = size.beta, size.n, u.shape[1]
    local = seen_from(theta, u, size)
    q = p * np.exp(t * (local.losses - local.losses.max()))
    q /= q.sum()
    g = q @ local.gradients
    centred = local.gradients - g
    J = np.einsum("k,kij->ij", q, local.hessians + t * centred[:, :, None] * centred[:, None, :])
    second = np.einsum("k,ki,kj->ij", p, u, u)
    eigenvalues, vectors = np.linalg.eigh(J)
    least = float(np.linalg.eigvalsh(second)[0])
    none = Certificate(math.inf, math.inf, math.inf, J)
    if eigenvalues[0] <= 1e-14 * eigenvalues[-1] or least <= 0:
        return none
    white = vectors / np.sqrt(eigenvalues)
    log = {name: math.log(1 / (part * size.delta)) for name, part in _PARTS.items()}

    # Sigma = E u u' against the sample's: (1 - below) Sigma <= Sigma_n <= (1 + above) Sigma
    largest, above = _whitened_reach(reach**2 / least, (log["above"] + math.log(d)) / n)
    below = math.sqrt(2 * largest * (log["below"] + math.log(d)) / n)
    if not below < 1:
        return none
    root = np.linalg.inv(np.linalg.cholesky(second)).T
    over = float(np.linalg.eigvalsh(root.T @ J @ root)[0])  # J >= over Sigma_n
    exchange = 1 / math.sqrt(over * (1 - below))  # from the norm of Sigma^-1 to that of J^-1
    longest_white = math.sqrt(largest)  # no u of the population has a larger ||u||_{Sigma^-1}

    w = size.away(theta)
    margin, arm = beta * u @ w, beta * np.linalg.norm(u @ white, axis=1)
    short = 1 / math.sqrt(eigenvalues[0])
    last = math.sqrt(eigenvalues[-1]) * (size.bound + float(np.linalg.norm(theta)))
    widest_w = size.bound + (
        0.0 if size.theta_ref is None else float(np.linalg.norm(size.theta_ref))
    )
    inverse = (1 + above) * np.einsum("ki,ki->k", u @ root, u @ root)  # >= ||u||²_{Sigma^-1}
    off = not_stationary(g, theta, size.bound) * short

    with np.errstate(over="ignore"):
        mass = float(p @ np.exp(t * local.losses))  # E_n e^{l/tau}, least at theta_n
    if not math.isfinite(mass):
        return none

    def noise(r: float) -> float:
        """The most that the gradient may be off if theta_rho is within r of theta_n."""
        far = min(float(np.linalg.norm(w)) + r * short, widest_w)
        low = np.maximum(margin - arm * r, -beta * np.linalg.norm(u, axis=1) * far)
        heaviest = _exp(t * float(np.logaddexp(0, beta * reach * far)))  # e^{l/tau} at -reach far
        if math.isinf(heaviest):
            return math.inf
        # inside the ball the population's gradient at theta_rho is 0
        inside = float(np.linalg.norm(theta)) + r * short < size.bound
        push = 0.0 if inside else beta * (longest_white if t else 1.0)
        b = heaviest * (beta * longest_white * float(expit(beta * reach * far)) + push)
        weight = np.exp(t * np.logaddexp(0, -low))
        norms = weight * (beta * expit(-low) * np.sqrt(inverse) + (push if t else 0.0))
        spread = min(
            _variance(float(p @ norms**2), b, log["spread"] / n),
            heaviest * 2.0**t * (b / heaviest) ** 2,  # E e^{l/tau} <= 2^{1/tau}, theta_ref's value
        )
        widest = spread
        if push == 0 or t == 0:
            factor = (1 + above) * p * (weight * beta * expit(-low)) ** 2
            matrix = root.T @ np.einsum("k,ki,kj->ij", factor, u, u) @ root
            share = (log["widest"] + math.log(d)) / n
            widest = min(spread, _variance(float(np.linalg.eigvalsh(matrix)[-1]), b, share))
        return off + exchange * bousquet(spread, widest, b, n, log["noise"]) / mass

    scaled, at = _largest_left(noise, third_over_second(margin, arm, t, 0.0), t, last)
    return Certificate(scaled * short, scaled, at, J)


def _whitened_reach(sample: float, share: float) -> tuple[float, float]:
    """The largest ||u||² in the norm of Sigma^-1, and how far Sigma_n may exceed Sigma.

    M <= (1 + e(M)) sample, where e(M) is what the matrix Chernoff bound allows (Tropp 2012, Thm.
    1.1): e concave, so that the fixed point from below is the largest M.
    """
    M = sample
    for _ in range(500):
        y = M * share
        if y > _MANY:
            break
        e = y / 3 + math.sqrt(y**2 / 9 + 2 * y)
        if (1 + e) * sample <= M * (1 + 1e-12):
            return (1 + e) * sample * (1 + 1e-9), e * (1 + 1e-9)
        M = (1 + e) * sample
    return math.inf, math.inf


def _exp(x: float) -> float:
    """e^x, infinite from where its square would be."""
    return math.exp(x) if x < 300 else math.inf


def _variance(sample: float, largest: float, share: float) -> float:
    """E f² from E_n f², |f| <= largest; as Maurer and Pontil (2009), Thm. 10."""
    a = largest * math.sqrt(2 * share)
    return (a / 2 + math.sqrt(a**2 / 4 + sample)) ** 2


def _largest_left(
    noise: Callable[[float], float],
    third: Callable[[float], float],
    t: float,
    last: float,
) -> tuple[float, float]:
    """The largest distance, up to `last`, that the noise there does not exclude, and that noise."""
    count = math.ceil(math.log(_SPAN) / math.log(_RATIO))
    r = last * _RATIO ** np.arange(-count, 1.0)
    width = np.diff(r, prepend=0.0)
    rates = np.array([third(float(x)) for x in r])  # in the cell that ends at r, at most this
    for place in range(len(r) - 1, -1, -1):
        # is a distance in (r[place - 1], r[place]] possible? The curvature up to r[place - 1]:
        loud = noise(float(r[place]))
        if math.isfinite(loud):
            rate = (rates + 3 * t * loud)[:place]
            exponent = np.cumsum(rate * width[:place]) - rate * width[:place]
            grown = float((np.exp(-exponent) * -np.expm1(-rate * width[:place]) / rate).sum())
            if grown > loud:
                continue
        return (float(r[place]), loud) if place + 1 < len(r) else (math.inf, math.inf)
    return float(r[0]), loud
