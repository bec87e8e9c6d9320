"""Deviation of OT_h over the whole ball of theta at once, with explicit constants: Theorem H1,
docs/theorems/aot.md. Derived.

    bound = aot_deviation(Side(n, 1.0), Side(m, 1.0), dimension=2, bound=2.0, lipschitz=1.0,
    delta=0.05)
    bound.excess  # of OT_h at the sample's minimiser, over the least of the population

No class of functions is needed. From below OT_h of the sample is at least the mean of the
population's own potentials, one bounded function for each theta (Bernstein); from above it exceeds
its expectation as a function of independent draws does (McDiarmid), and its expectation is off by
at most the W1 distance of the samples. A cover of the ball does the rest.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from scipy.optimize import minimize_scalar

from theory.bounds.papers import check_constants
from theory.checks import check_positive


@dataclass(frozen=True)
class Side:
    """The chosen responses, or the rejected ones: sample size n; reach, the largest norm of a
    feature vector; spread, the largest eigenvalue of the features' covariance, None: reach²."""

    n: float
    reach: float
    spread: float | None = None

    def __post_init__(self) -> None:
        check_constants(self.n)
        check_positive("reach", self.reach, "It is the largest norm of the features.")
        if self.spread is not None and not 0 <= self.spread <= self.reach**2 * (1 + 1e-9):
            raise ValueError(
                f"spread is a variance of features of norm at most {self.reach:g}: it lies in [0,"
                f" {self.reach**2:g}], got {self.spread}."
            )

    @property
    def variance(self) -> float:
        """Largest variance of a unit direction of the mean of n draws."""
        return (self.reach**2 if self.spread is None else self.spread) / self.n


@dataclass(frozen=True)
class AotDeviation:
    """With probability 1 - delta, all in the unit of h.

    below, above: OT_h of the population minus that of the sample, and the reverse, is at most this
    for all theta. excess: OT_h of the population at the sample's minimiser minus its least value.
    Each holds with probability 1 - delta; below and above each with half of it.
    """

    below: float
    above: float
    excess: float

    @property
    def value(self) -> float:
        """Bound on sup |OT_h of the sample - OT_h of the population|."""
        return max(self.below, self.above)


def aot_deviation(
    chosen: Side,
    rejected: Side,
    *,
    dimension: int,
    bound: float,
    lipschitz: float,
    delta: float,
) -> AotDeviation:
    """Theorem H1: two independent samples, h convex and Lipschitz on the range of the gaps.

    Args:
        chosen, rejected: what is known of the two laws, as `Side`.
        dimension: d of theta.
        bound: B in ||theta|| <= B, in the inverse unit of the features.
        lipschitz: L of h on [-B (reach + reach), B (reach + reach)]: beta for `logistic`.
        delta: probability with which each of the results may fail.

    Returns:
        A `theory.bounds.aot.AotDeviation`.

    Raises:
        ValueError: a constant that is not positive, or delta outside (0, 1).

    >>> bound = aot_deviation(
    ...     Side(10**4, 1.0), Side(10**4, 1.0), dimension=2, bound=2.0, lipschitz=1.0, delta=0.05
    ... )
    >>> round(bound.value, 3), round(bound.excess, 3)
    (0.222, 0.301)
    """
    check_constants(bound=bound, delta=delta)
    L = check_positive("lipschitz", lipschitz, "It is the largest slope of h.")
    if not dimension >= 1:
        raise ValueError(f"dimension must be at least 1, got {dimension}.")
    scale = L * bound
    reach = chosen.reach + rejected.reach
    variance = scale**2 * (chosen.variance + rejected.variance)
    jump = 2 * scale * max(chosen.reach / chosen.n, rejected.reach / rejected.n)
    # E W1 <= int sqrt(F (1 - F) / n) <= B reach / sqrt(n), each side
    bias = scale * sum(side.reach / math.sqrt(side.n) for side in (chosen, rejected))
    swing = scale**2 * sum(side.reach**2 / side.n for side in (chosen, rejected))

    def below(share: float) -> float:
        return math.sqrt(2 * variance * share) + jump * share / 3

    def above(share: float) -> float:
        return bias + math.sqrt(2 * swing * share)

    def uniform(one: Callable[[float], float]) -> float:
        """The best cover: (1 + 2B/e)^d points, between which the difference moves by 2L reach
        e."""

        def width(log_share: float) -> float:
            e = bound * math.exp(log_share)
            points = dimension * math.log1p(2 * bound / e)
            return one(math.log(2 / delta) + points) + 2 * L * reach * e

        found = minimize_scalar(width, bounds=(-40.0, 1.0), method="bounded")
        return float(found.fun)

    low = uniform(below)
    return AotDeviation(low, uniform(above), low + above(math.log(2 / delta)))
