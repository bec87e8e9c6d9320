from dataclasses import replace

import pytest

from theory.claims import sharp
from theory.claims.ledger import Verdict
from theory.claims.sharp import gradient_route_kl, gradient_route_wasserstein


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("check", [gradient_route_kl, gradient_route_wasserstein])
def test_the_bounds_cover_and_are_loose(check, seed: int) -> None:
    finding = check("smoke", seed)
    assert finding.verdict == Verdict.LOOSE
    step = next(line for line in finding.measurements if line.step)
    assert (
        step.verdict == Verdict.HOLDS and step.ratio is not None and step.ratio >= 2 * (1 - 1e-4)
    )  # half of the convexity is given away


@pytest.mark.parametrize("check", [gradient_route_kl, gradient_route_wasserstein])
def test_false_variants_are_refuted(check) -> None:
    assert check("smoke", 0, exponent=-0.6).verdict == Verdict.REFUTED  # a rate that is not there
    # a fifth of the bound; and a constant that only the deterministic inequality contradicts,
    # which is too large by 2 and no more
    assert check("smoke", 0, constant=0.2).verdict == Verdict.REFUTED
    assert check("smoke", 0, constant=0.48).verdict == Verdict.GAP
    assert check("smoke", 0, constant=0.52).verdict in (Verdict.HOLDS, Verdict.LOOSE)


def test_infinite_bounds_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    right = sharp._bound
    monkeypatch.setattr(
        sharp,
        "_bound",
        lambda problem, radius, theta, size: right(
            problem, radius, theta, replace(size, n=10 if size.n == 10**7 else size.n)
        ),
    )
    finding = gradient_route_kl("smoke", 0)
    assert "of the 1 where it is finite; infinite in 2" in finding.figure
