"""Slopes of known power laws, and what the bootstrap interval must do."""

import numpy as np
import pytest

from theory.rates import rate

SIZES = np.array([100.0, 1000.0, 10_000.0, 100_000.0])


@pytest.mark.parametrize("slope", [-0.5, -0.25, -1.0, 0.0])
def test_an_exact_power_law(slope: float) -> None:
    found = rate(SIZES, 3.0 * SIZES[:, None] ** slope * np.ones((4, 10)), seed=0)
    assert found.slope == pytest.approx(slope, abs=1e-12)
    assert found.low == pytest.approx(slope, abs=1e-12) and found.high == pytest.approx(
        slope, abs=1e-12
    )


def test_the_error_is_the_root_mean_square() -> None:
    """Two sizes, errors (3, 4) against (1, 1): rms sqrt(12.5) against 1; signs do not matter."""
    found = rate(np.array([1.0, np.e]), np.array([[3.0, -4.0], [1.0, 1.0]]), seed=0)
    assert found.slope == pytest.approx(-np.log(12.5) / 2, rel=1e-12)


def test_least_squares_over_uneven_sizes() -> None:
    rng = np.random.default_rng(0)
    n, errors = np.array([10.0, 20, 500, 1e6]), rng.exponential(size=(4, 30))
    truth = np.polyfit(np.log(n), np.log(np.sqrt((errors**2).mean(1))), 1)[0]
    assert rate(n, errors, seed=0).slope == pytest.approx(truth, rel=1e-10)


def test_the_unit_of_the_error_does_not_matter() -> None:
    errors = np.abs(np.random.default_rng(1).standard_normal((4, 20))) * SIZES[:, None] ** -0.5
    one, other = rate(SIZES, errors, seed=3), rate(SIZES, 1e-6 * errors, seed=3)
    np.testing.assert_allclose(
        [one.slope, one.low, one.high], [other.slope, other.low, other.high], rtol=1e-9
    )


def test_coverage_of_the_interval() -> None:
    """Errors |N(0,1)| n^-1/2: the rms follows the law exactly, so that about 95 % of the intervals
    hold -1/2."""
    rng = np.random.default_rng(2)
    hits = 0
    for trial in range(200):
        errors = np.abs(rng.standard_normal((4, 60))) * SIZES[:, None] ** -0.5
        found = rate(SIZES, errors, seed=trial, resamples=300)
        assert found.low <= found.slope <= found.high
        hits += found.low <= -0.5 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_level_and_seed() -> None:
    errors = np.abs(np.random.default_rng(4).standard_normal((4, 40)))
    narrow, wide = rate(SIZES, errors, seed=0, level=0.5), rate(SIZES, errors, seed=0, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert rate(SIZES, errors, seed=0) == rate(SIZES, errors, seed=0) != rate(SIZES, errors, seed=1)


def test_no_rate_where_the_target_is_met_exactly() -> None:
    errors = np.ones((4, 5))
    errors[2] = 0
    assert np.isnan(rate(SIZES, errors, seed=0).slope)
    assert np.isnan(rate(SIZES[:1], errors[:1], seed=0).slope)


def test_single_zero_errors_are_no_obstacle() -> None:
    errors = np.ones((4, 50)) * SIZES[:, None] ** -0.5
    errors[1, :3] = 0
    found = rate(SIZES, errors, seed=0)
    assert np.isfinite([found.slope, found.low, found.high]).all()
