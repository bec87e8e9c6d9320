"""Deviation of the robust objective over all of Theta and all values of the dual variable at once:
Lemmas 9 and 13, repaired.

The lemmas of arXiv:2502.01930 hold at a fixed theta, but are applied to the data-dependent
minimiser. What that takes is a bound on sup over Theta of |L_n - L|; here it comes from a cover of
Theta and of the range of the dual variable, each point of which is treated by Hoeffding's
inequality. A cover with N points and an approximation error e gives width sqrt(log(2N/delta)/2n) +
2e.
"""

import math
from collections.abc import Callable

from scipy.optimize import minimize_scalar

from theory.bounds.papers import check_constants, largest_loss
from theory.checks import check_positive, check_scale


def pointwise_wasserstein(n: float, *, beta: float, bound: float, delta: float) -> float:
    """K sqrt(log(2/delta)/2n) of Lemma 9: |L_n(theta) - L(theta)| for WDPO at one theta fixed
    before the sample."""
    check_constants(n, beta=beta, bound=bound, delta=delta)
    return largest_loss(beta, bound) * math.sqrt(math.log(2 / delta) / (2 * n))


def pointwise_kl(
    n: float, *, beta: float, bound: float, dual_low: float, dual_high: float, delta: float
) -> float:
    """lamU e^{L/lamL} sqrt(log(2/delta)/2n) of Lemma 13, the same for KLDPO; dual_low <= lambda <=
    dual_high."""
    check_constants(n, beta=beta, bound=bound, delta=delta)
    if not dual_low <= dual_high:
        raise ValueError(f"dual_low must be at most dual_high, got {dual_low} and {dual_high}.")
    exponent = largest_loss(beta, bound) / dual_low if dual_low > 0 else math.inf
    return (
        dual_high * math.exp(exponent) * math.sqrt(math.log(2 / delta) / (2 * n))
        if exponent < 700
        else math.inf
    )


def uniform_wasserstein(
    n: float,
    d: int,
    *,
    beta: float,
    bound: float,
    radius: float,
    power: int,
    diameter: float,
    delta: float,
) -> float:
    """sup over Theta of |L_n - L| for WDPO with labels and features of a bounded Z, with
    probability 1 - delta.

    |min_eta a - min_eta b| <= sup_eta |a - b|, and psi(z; theta, eta) = max_z' l(z') -
    eta d(z, z')^p lies in [0, K], is 2 beta-Lipschitz in theta and diameter^p-Lipschitz in eta,
    whose optimum is at most K/radius^p.
    """
    check_constants(n, beta=beta, bound=bound, delta=delta)
    check_positive("radius", radius, "For the plain mean there is no dual variable to cover.")
    check_positive("diameter", diameter, "It is the largest distance in Z.")
    _check_dimension(d)
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2, got {power!r}.")
    check_scale("radius", radius, "It is in the unit of the distance.")
    check_scale("diameter", diameter, "It is in the unit of the distance.")
    K = largest_loss(beta, bound)
    reach = K / radius**power

    def width(e: float) -> float:
        points = d * math.log(1 + 2 * bound * 4 * beta / e) + math.log(
            1 + reach * diameter**power / e
        )
        return K * math.sqrt((math.log(2 / delta) + points) / (2 * n)) + 2 * e

    return _best(width, K)


def uniform_kl(
    n: float, d: int, *, beta: float, bound: float, radius: float, dual_low: float, delta: float
) -> float:
    """sup over Theta of |L_n - L| for KLDPO, with probability 1 - delta; no lower bound of the
    optimal dual variable is assumed.

    Cutting the dual variable off at dual_low costs at most dual_low radius, since lam log E
    e^{l/lam} falls in lam; above it, lam log E e^{l/lam} differs by at most lam |E_n - E|
    e^{l/lam}, which has the range lam (e^{K/lam} - 1), largest at dual_low.
    """
    check_constants(n, beta=beta, bound=bound, delta=delta)
    check_positive("radius", radius, "For the plain mean there is no dual variable to cover.")
    check_positive("dual_low", dual_low, "It is where the dual variable is cut off, a choice.")
    _check_dimension(d)
    K = largest_loss(beta, bound)
    if K / dual_low > 700:
        return math.inf
    largest = dual_low * math.expm1(K / dual_low)
    reach = K / radius  # lam radius <= L <= K at the optimum
    slope = math.exp(K / dual_low)  # of lam e^{l/lam} in l; in lam at most K/lam of it

    def width(e: float) -> float:
        points = d * math.log(1 + 2 * bound * 4 * beta * slope / e) + math.log(
            1 + reach * slope * (1 + K / dual_low) / e
        )
        return (
            largest * math.sqrt((math.log(2 / delta) + points) / (2 * n))
            + 2 * e
            + dual_low * radius
        )

    return _best(width, largest)


def _check_dimension(d: int) -> None:
    if not d >= 1:
        raise ValueError(f"d must be at least 1, got {d}. It is the dimension of theta.")


def _best(width: Callable[[float], float], scale: float) -> float:
    """Smallest width over the approximation error of the cover."""
    found = minimize_scalar(
        lambda s: width(scale * math.exp(s)), bounds=(-600.0, 2.0), method="bounded"
    )
    return float(found.fun)
