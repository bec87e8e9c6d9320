"""Claims on collapse: verdicts, and false variants that flip them."""

from typing import Any

import numpy as np
import pytest

from theory.claims import collapse
from theory.claims.collapse import CLAIMS
from theory.claims.ledger import Verdict
from theory.claims.problems import RobustProblem, worlds
from theory.functionals import gradient_norm

BALLS = ("kl", *collapse.WASSERSTEIN)
CHECKS = {claim.name: claim.check for claim in CLAIMS}
FLIPS: list[tuple[str, dict[str, Any], str]] = [
    ("collapse-kl", {"scale": 0.9}, "independent program"),
    ("collapse-kl", {"scale": 1.1}, "no better than theta_ref"),
    ("collapse-wasserstein", {"scale": 0.9}, "independent program"),
    ("collapse-wasserstein", {"scale": 1.1}, "no better than theta_ref"),
    ("practical-forms-do-not-collapse", {"drift": 0.0}, "temperature: gain"),
    ("practical-forms-do-not-collapse", {"local": 0.95}, "just above"),
    ("practical-forms-do-not-collapse", {"local": 1.05}, "just below"),
]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", CHECKS)
def test_every_claim_holds(name: str, seed: int) -> None:
    finding = CHECKS[name]("smoke", seed)
    assert finding.verdict == Verdict.HOLDS, finding.measurements


@pytest.mark.parametrize(("name", "change", "words"), FLIPS)
def test_a_false_variant_is_refuted(name: str, change: dict[str, Any], words: str) -> None:
    finding = CHECKS[name]("smoke", 0, **change)
    assert finding.verdict == Verdict.REFUTED
    refuted = [line.what for line in finding.measurements if line.verdict == Verdict.REFUTED]
    assert any(words in what for what in refuted), refuted


@pytest.mark.some(2)
@pytest.mark.parametrize("ball", BALLS)
def test_a_wrong_radius_of_any_one_ball_is_refuted(
    ball: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges = {name: RobustProblem(name, worlds(0, 1, contexts=3)[0]).edge for name in BALLS}
    wrong = edges | {ball: 0.93 * edges[ball]}
    monkeypatch.setattr(RobustProblem, "edge", property(lambda self: wrong[self.ball]))
    name = "collapse-kl" if ball == "kl" else "collapse-wasserstein"
    finding = CHECKS[name]("smoke", 0)
    assert {
        line.what.partition(":")[0]
        for line in finding.measurements
        if line.verdict == Verdict.REFUTED
    } == {collapse.NAMES[ball]}


def test_a_norm_in_the_place_of_its_square_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        collapse, "gradient_norm", lambda squares, mass, squared: gradient_norm(squares, mass)
    )
    assert CHECKS["practical-forms-do-not-collapse"]("smoke", 0).verdict == Verdict.REFUTED


def test_tempering_shrinks_the_mean() -> None:
    (world,) = worlds(1, 1, contexts=3)
    for drift in (0.0, 0.4, 1.0):
        p = collapse._tempered(world, drift)
        assert p.sum() == pytest.approx(1) and (p > 0).all()
        assert np.allclose(p @ world.u, drift * world.probability @ world.u)
