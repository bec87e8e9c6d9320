"""Proposition D (docs/theorems/algorithm-1.md) belongs to one strength: a hundredth below it
Algorithm 1 has the rate n^-1/2."""

import math

import numpy as np
import pytest

from theory.estimators import gradient_penalty

EDGE = 2**-0.5


@pytest.mark.parametrize(("share", "exponent"), [(1.0, -0.25), (0.99, -0.5)])
def test_the_rate_of_algorithm_1_at_its_edge_and_off_it(share: float, exponent: float) -> None:
    """One pair, d = 1, E u = 1/sqrt(2): root-mean-square error at a share of the edge."""
    u, right = np.array([[1.0], [-1.0]]), (1 + EDGE) / 2

    def minimiser(wins: np.ndarray) -> np.ndarray:
        p = np.stack([wins, 1 - wins], 1)
        fit = gradient_penalty(u, p, strength=share * EDGE, beta=1.0, bound=3.0)
        return fit.theta.numpy()[:, 0]

    (target,) = minimiser(np.array([right]))

    def error(n: int) -> float:
        wins = np.random.default_rng(n).binomial(n, right, size=200) / n
        return math.sqrt(((minimiser(wins) - target) ** 2).mean())

    assert abs(math.log10(error(10**10) / error(10**6)) / 4 - exponent) < 0.05
