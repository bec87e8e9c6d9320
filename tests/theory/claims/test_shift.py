"""Each claim on preference shift: the verdict on two seeds, and what turns it."""

from typing import Any

import pytest

from theory.claims import Finding, Verdict, shift
from theory.claims.shift import CLAIMS
from theory.estimators import dpo
from theory.policy import Array
from theory.worlds import FiniteWorld

CHECKS = {claim.name: claim.check for claim in CLAIMS}
EXPECTED = {
    "kldpo-is-larger-beta": Verdict.HOLDS,
    "robustness-beyond-kl": Verdict.REFUTED,
    "robust-flat-curves": Verdict.HOLDS,
}


def lines(finding: Finding, verdict: Verdict) -> list[str]:
    return [line.what for line in finding.measurements if line.verdict == verdict]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CHECKS)
def test_verdict(name: str, seed: int) -> None:
    finding = CHECKS[name]("smoke", seed)
    assert finding.verdict == EXPECTED[name], finding.measurements
    assert all(
        line.counterexample for line in finding.measurements if line.verdict == Verdict.REFUTED
    )


@pytest.mark.parametrize("factor", [0.99, 2.0])
def test_another_beta_is_refuted(factor: float) -> None:
    assert CHECKS["kldpo-is-larger-beta"]("smoke", 0, factor=factor).verdict == Verdict.REFUTED


def test_an_estimator_that_is_not_robust_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        shift, "kldpo_tilt", lambda u, p, temperature, **common: dpo(u, p, **common)
    )
    finding = CHECKS["kldpo-is-larger-beta"]("smoke", 0)
    assert (
        len(lines(finding, Verdict.REFUTED)) == 2
    )  # both lines of the temperature form, not that of the ball


@pytest.mark.parametrize("seed", [0, 1])
def test_a_weaker_statement_on_regret_holds(seed: int) -> None:
    """Robust policies are at most 0.1 worse than DPO of the same KL."""
    assert CHECKS["robustness-beyond-kl"]("smoke", seed, advantage=-0.1).verdict == Verdict.HOLDS


def test_a_control_that_goes_the_wrong_way_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(world: FiniteWorld, theta: Array, kl: Array) -> Array:
        return -theta

    monkeypatch.setattr(shift, "shrunk", away)
    finding = CHECKS["robustness-beyond-kl"]("smoke", 0)
    assert finding.verdict == Verdict.HOLDS, finding.measurements
    assert (
        CHECKS["robust-flat-curves"]("smoke", 0).verdict == Verdict.REFUTED
    )  # and its curve is not flat


@pytest.mark.parametrize(
    ("change", "words"),
    [({"constant": 0.5}, "spread of the gain"), ({"share": 1.3}, "convex, population, KLDPO")],
)
def test_a_false_statement_on_flat_curves_is_refuted(change: dict[str, Any], words: str) -> None:
    finding = CHECKS["robust-flat-curves"]("smoke", 0, **change)
    assert finding.verdict == Verdict.REFUTED
    assert any(words in what for what in lines(finding, Verdict.REFUTED))


def test_kldpo_in_a_well_specified_world_is_exactly_its_control() -> None:
    """What the first claim says, seen in the second: the difference is rounding in every world."""
    finding = CHECKS["robustness-beyond-kl"]("smoke", 0)
    (row,) = (
        r
        for r in finding.tables["robust less DPO at equal KL, population"]
        if (r["x"], r["series"]) == ("convex", "KLDPO")
    )
    assert max(abs(row["low"]), abs(row["high"])) < 1e-9
    assert row["regret"] > 0.3
