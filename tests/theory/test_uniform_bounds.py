"""The repaired Lemmas 9 and 13 against the arithmetic of the paper and exact small cases."""

import math

import numpy as np
import pytest

from theory.bounds.uniform import (
    pointwise_kl,
    pointwise_wasserstein,
    uniform_kl,
    uniform_wasserstein,
)

COMMON = {"beta": 1.0, "bound": 1.0, "delta": 0.05}
W = {"radius": 0.2, "power": 1, "diameter": 4.0}


def test_the_lemmas_as_printed() -> None:
    K = abs(math.log(1 / (1 + math.exp(4))))
    assert pointwise_wasserstein(100, **COMMON) == pytest.approx(K * math.sqrt(math.log(40) / 200))
    expected = 2.0 * math.exp(K / 0.5) * math.sqrt(math.log(40) / 200)
    assert pointwise_kl(100, dual_low=0.5, dual_high=2.0, **COMMON) == pytest.approx(expected)
    assert pointwise_kl(100, dual_low=0.0, dual_high=2.0, **COMMON) == math.inf


def test_uniform_is_wider_than_pointwise_and_grows_with_the_dimension() -> None:
    widths = [uniform_wasserstein(1000, d, **W, **COMMON) for d in (1, 2, 8, 32)]
    assert pointwise_wasserstein(1000, **COMMON) < widths[0]
    assert (np.diff(widths) > 0).all()
    kl = [uniform_kl(10**9, d, radius=0.1, dual_low=0.5, **COMMON) for d in (1, 8)]
    assert kl[0] < kl[1]


def test_the_rate_is_the_root_up_to_a_logarithm() -> None:
    ratio = uniform_wasserstein(10**4, 3, **W, **COMMON) / uniform_wasserstein(
        10**8, 3, **W, **COMMON
    )
    assert 70 < ratio < 100
    flat = uniform_kl(10**12, 3, radius=0.1, dual_low=1.0, **COMMON)
    assert 0.1 < flat < 0.11  # what is left is dual_low times the radius


def test_the_cover_is_at_its_best_error() -> None:
    """No other approximation error gives a smaller width than the one found."""
    n, d, K = 5000, 4, math.log1p(math.exp(4))
    found = uniform_wasserstein(n, d, **W, **COMMON)
    for e in np.geomspace(1e-8, 10, 400):
        points = d * math.log(1 + 8 / e) + math.log(1 + K / 0.2 * 4 / e)
        assert K * math.sqrt((math.log(40) + points) / (2 * n)) + 2 * e >= found - 1e-9
