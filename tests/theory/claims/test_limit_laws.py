import pytest

from theory.claims.ledger import Verdict
from theory.claims.limit_laws import limit_law_atoms, limit_law_free, limit_law_kl

CHECKS = [limit_law_kl, limit_law_atoms, limit_law_free]


@pytest.mark.parametrize("check", CHECKS)
def test_the_predictions_hold(check) -> None:
    assert check("smoke", 0).verdict == Verdict.HOLDS


@pytest.mark.some(3)
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    "wrong",
    [{"covariance": 1.5}, {"covariance": 1 / 1.5}, {"exponent": -0.4}, {"exponent": -0.6}],
)
def test_false_variants_near_the_truth_are_refuted(check, wrong: dict[str, float]) -> None:
    assert check("smoke", 0, **wrong).verdict == Verdict.REFUTED


def test_the_curvature_needs_its_correction_and_the_kinks_count() -> None:
    assert limit_law_kl("smoke", 0, correction=False).verdict == Verdict.REFUTED
    assert limit_law_atoms("smoke", 0, kinks=False).verdict == Verdict.REFUTED
