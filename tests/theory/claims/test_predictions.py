"""Judges of predictions: what a law predicts against samples whose law is known, also where many
samples are one number and an interval has no width."""

import numpy as np
import pytest

from theory.claims.ledger import Measurement, Verdict, rate_bound, rate_equal, rate_reached
from theory.claims.predictions import (
    predicted_mean,
    predicted_quantile,
    quantile_interval,
    ratio_of_means,
)

HALF_NORMAL = 1.959964  # the 95 % quantile of |N(0, 1)|


def half_normal(count: int, seed: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.abs(np.random.default_rng(seed).standard_normal(count))


def test_a_quantile_and_its_interval() -> None:
    found = np.arange(1.0, 1001.0)
    middle, low, high = quantile_interval(found, 0.95, 0.95)
    assert (low, high) == (936, 964)  # P(Bin(1000, 0.95) < 936) < 0.025, and not for 937
    assert middle == pytest.approx(950, abs=1)


@pytest.mark.parametrize(
    ("scale", "verdict"), [(1.0, Verdict.HOLDS), (1.25, Verdict.REFUTED), (0.8, Verdict.REFUTED)]
)
def test_a_right_quantile_holds_and_a_wrong_one_does_not(scale: float, verdict: Verdict) -> None:
    found = half_normal(4000, 0, scale)
    assert predicted_quantile("", found, HALF_NORMAL, 0.05).verdict == verdict


def collapsed(count: int, at: float, share: float, scale: float = 1.0) -> np.ndarray:
    """|N(0, 1)| of which about `share` is replaced by one number, those beyond it on one side, as
    where a fit collapses."""
    found = np.sort(half_normal(count, 1, scale))
    beyond = np.flatnonzero(found > at * scale)
    found[np.random.default_rng(2).permutation(beyond)[: int(share * count)]] = at * scale
    return found


def judged(found: np.ndarray, law: np.ndarray | None = None) -> Measurement:
    return predicted_quantile("", found, HALF_NORMAL, 0.05, law=law)


def test_where_the_quantile_is_one_number_the_distribution_function_is_judged() -> None:
    law, at = half_normal(200_000, 3), 0.95 * HALF_NORMAL
    found = collapsed(4000, at, 0.03)
    _, low, high = quantile_interval(found, 0.95)
    assert low == high == at  # no width: the ratio 0.95 would be within 1 +- 0.05 of anything
    assert judged(found, law).verdict == Verdict.HOLDS
    assert judged(found).verdict == Verdict.INCONCLUSIVE  # nothing to judge it by
    wrong = judged(found, law * 1.25)
    assert wrong.verdict == Verdict.REFUTED and wrong.counterexample


def test_a_law_without_mass_there_does_not_pass_for_one_with_much() -> None:
    law, at = half_normal(200_000, 3), 0.95 * HALF_NORMAL
    found = half_normal(4000, 4)
    found[found > 0.7 * at] = at  # a third of the samples
    assert judged(found, law).verdict == Verdict.INCONCLUSIVE


@pytest.mark.parametrize("judge", [rate_bound, rate_reached, rate_equal])
def test_a_slope_without_width_decides_nothing(judge) -> None:
    assert judge("", -0.5, -0.5, -0.5, -0.5).verdict == Verdict.INCONCLUSIVE
    assert judge("", -0.5, -0.52, -0.48, -0.5).verdict == Verdict.HOLDS


def test_means_without_spread_decide_nothing() -> None:
    same, spread = np.ones(100), np.linspace(0.9, 1.1, 100)
    assert predicted_mean("", same, 1.0, 0.1).verdict == Verdict.INCONCLUSIVE
    assert predicted_mean("", spread, 1.0, 0.1).verdict == Verdict.HOLDS
    assert ratio_of_means("", same, same, 1.0, 0.01).verdict == Verdict.INCONCLUSIVE
    assert ratio_of_means("", spread, spread[::-1], 1.0, 0.01).verdict == Verdict.HOLDS
    assert ratio_of_means("", same, spread, 2.0, 0.01).verdict == Verdict.REFUTED
