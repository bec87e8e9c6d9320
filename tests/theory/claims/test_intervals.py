import pytest

from theory.claims.intervals import interval_coverage
from theory.claims.ledger import Verdict


def test_the_regions_cover() -> None:
    finding = interval_coverage("smoke", 0)
    assert finding.verdict == Verdict.HOLDS
    rows = finding.tables["coverage by set, n and method"]
    assert all(row["sandwich"] == 1 for row in rows if row["n"] == 10**4)


@pytest.mark.some(1)
@pytest.mark.parametrize(
    "wrong",
    [{"covariance": 1 / 1.5}, {"covariance": 1.5}, {"exponent": -0.4}, {"exponent": -0.6}],
)
def test_false_variants_near_the_truth_are_refuted(wrong: dict[str, float]) -> None:
    assert interval_coverage("smoke", 0, **wrong).verdict == Verdict.REFUTED
