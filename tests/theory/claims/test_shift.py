"""Each claim on preference shift: the verdict on two seeds, and what turns it."""

from typing import Any

import numpy as np
import pytest

from theory.claims import Finding, Verdict, shift
from theory.claims.shift import CLAIMS
from theory.estimators import dpo
from theory.policy import Array
from theory.worlds import FiniteWorld

CHECKS = {claim.name: claim.check for claim in CLAIMS}
EXPECTED = {
    "kldpo-is-larger-beta": Verdict.HOLDS,
    "robustness-beyond-kl": Verdict.HOLDS,
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


@pytest.mark.parametrize("factor", [0.99, 1.01])
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
def test_another_share_is_refuted(seed: int) -> None:
    """KLDPO in a well-specified world gains nothing, and so not less than -10 % either."""
    finding = CHECKS["robustness-beyond-kl"]("smoke", seed, share=-0.1)
    assert finding.verdict == Verdict.REFUTED
    assert "convex, KLDPO" in lines(finding, Verdict.REFUTED)


def test_a_control_that_goes_the_wrong_way_makes_robustness_look_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against the reversed policy nearly all that is attainable is gained, and the curve of the
    control is not flat."""
    right = shift.shrunk

    def away(world: FiniteWorld, theta: Array, kl: Array) -> Array:
        return -theta if len(theta) == 1 else right(world, theta, kl)

    monkeypatch.setattr(shift, "shrunk", away)
    finding = CHECKS["robustness-beyond-kl"]("smoke", 0)
    assert finding.verdict == Verdict.REFUTED, finding.measurements
    assert CHECKS["robust-flat-curves"]("smoke", 0).verdict == Verdict.REFUTED


def test_the_search_finds_a_policy_of_that_kl_that_no_grid_beats() -> None:
    made = shift.random_shift("convex", 3, train=0.8, alpha=np.linspace(0, 1, 11))
    ref = made.world.theta_ref
    found = shift._least_regret(made, 0.2, [ref + np.eye(len(ref))[0]], [0])
    ways = np.random.default_rng(1).standard_normal((4000, len(ref)))
    points = shift.shrunk(made.world, ref + ways, np.full(4000, 0.2))
    points = points[np.isfinite(points).all(1)]
    least = shift.evaluate(made, points).regret.max(1).min()
    start = shift.evaluate(made, ref[None]).regret.max()
    assert start - found > 0.9 * (start - least)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"constant": 0.67}, "spread of the gain"), ({"share": 1.15}, "convex, population, KLDPO")],
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
        for r in finding.tables["share of the attainable gain, population"]
        if (r["x"], r["series"]) == ("convex 0.3", "KLDPO")
    )
    assert abs(row["gained"]) < 1e-9 and row["attainable"] > 0.05
