"""The laws of AOT and the certificate of dominance: the verdicts on two seeds, and that variants
near the truth are refuted."""

from typing import Any

import numpy as np
import pytest

from theory.claims import CLAIMS, Verdict
from theory.claims.predictions import predicted_mean, predicted_quantile

VERDICTS = {
    "aot-law": Verdict.HOLDS,
    "aot-deviation": Verdict.LOOSE,
    "dominance-certificate": Verdict.LOOSE,
}
# the factor of the variance or width, and the exponent, off by 1.5 and by 0.1
FALSE: list[tuple[str, dict[str, Any]]] = [
    ("aot-law", {"scale": 1.5}),
    ("aot-law", {"scale": 1 / 1.5}),
    ("aot-law", {"exponent": -0.6}),
    ("aot-law", {"dependence": False}),
    ("aot-deviation", {"scale": 1.5}),
    ("aot-deviation", {"scale": 1 / 1.5}),
    ("aot-deviation", {"claimed": -0.6}),
    ("aot-deviation", {"constant": 0.1}),  # the bound itself is 7 to 11 quantiles away
    ("dominance-certificate", {"band": 1 / 1.5}),
    ("dominance-certificate", {"error": 1 / 1.5}),
    ("dominance-certificate", {"error": 1.5}),
    ("dominance-certificate", {"clustered": False}),
]


@pytest.mark.some(2)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", VERDICTS)
def test_verdict(name: str, seed: int) -> None:
    finding = CLAIMS[name].check("smoke", seed)
    assert finding.verdict == VERDICTS[name], finding.measurements


@pytest.mark.some(3)
@pytest.mark.parametrize(("name", "change"), FALSE)
def test_a_false_variant_is_refuted(name: str, change: dict[str, Any]) -> None:
    finding = CLAIMS[name].check("smoke", 0, **change)
    assert finding.verdict == Verdict.REFUTED, finding.measurements


def test_predictions_are_judged_by_their_intervals() -> None:
    found = np.abs(np.random.default_rng(0).standard_normal(20_000))
    assert predicted_quantile("", found, 1.96, 0.02).verdict == Verdict.HOLDS
    assert predicted_quantile("", found, 1.96 * 1.1, 0.02).verdict == Verdict.REFUTED
    assert predicted_quantile("", found[:60], 1.96, 0.02).verdict == Verdict.INCONCLUSIVE
    assert predicted_mean("", found**2, 1.0, 0.02).verdict == Verdict.HOLDS
    assert predicted_mean("", found**2, 1.1, 0.02).verdict == Verdict.REFUTED
    assert predicted_mean("", found * np.nan, 1.1, 0.02).verdict == Verdict.REFUTED
