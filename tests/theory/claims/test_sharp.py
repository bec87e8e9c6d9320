import pytest

from theory.claims.ledger import Verdict
from theory.claims.sharp import gradient_route_kl, gradient_route_wasserstein


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("check", [gradient_route_kl, gradient_route_wasserstein])
def test_the_bounds_cover_and_are_loose(check, seed: int) -> None:
    finding = check("smoke", seed)
    assert finding.verdict == Verdict.LOOSE
    step = next(line for line in finding.measurements if line.step)
    assert (
        step.verdict == Verdict.HOLDS and step.ratio is not None and step.ratio >= 2
    )  # half of the convexity is given away


@pytest.mark.parametrize("check", [gradient_route_kl, gradient_route_wasserstein])
def test_false_variants_are_refuted(check) -> None:
    assert (
        check("smoke", 0, exponent=-1.0, constant=0.1).verdict == Verdict.REFUTED
    )  # a rate that is not there
    assert check("smoke", 0, constant=0.01).verdict == Verdict.REFUTED
    # a constant that only the deterministic inequality contradicts
    assert check("smoke", 0, constant=0.15).verdict in (Verdict.GAP, Verdict.REFUTED)
