"""Each claim on worst cases has the verdict that is expected, and a false variant of it has another
one."""

import dataclasses
from typing import Any

import pytest

from theory import functionals
from theory.claims import worst_cases
from theory.claims.ledger import Verdict
from theory.claims.worst_cases import CLAIMS

BY_NAME = {claim.name: claim for claim in CLAIMS}
EXPECTED = {
    "kl-worst-case-is-tilt": Verdict.HOLDS,
    "tilt-normaliser": Verdict.GAP,
    "wasserstein-duality": Verdict.HOLDS,
    "gradient-norm-approximates-w2": Verdict.HOLDS,
    "dropped-square-root": Verdict.REFUTED,
    "temperature-radius": Verdict.HOLDS,
    "released-kldpo-weights": Verdict.REFUTED,
    "chi2-rebel-dual": Verdict.REFUTED,
}
# statement, what makes it false (or true), verdict, words of the line that shows it
FLIPS: list[tuple[str, dict[str, Any], Verdict, str]] = [
    ("kl-worst-case-is-tilt", {"sharpness": 1.1}, Verdict.REFUTED, "expected loss of the tilt"),
    ("kl-worst-case-is-tilt", {"threshold": 1.05}, Verdict.REFUTED, "log n disagree"),
    ("kl-worst-case-is-tilt", {"threshold": 0.95}, Verdict.REFUTED, "log n disagree"),
    ("tilt-normaliser", {"factor": 1.5}, Verdict.REFUTED, "mu + lam >= 1.5 E l"),
    ("wasserstein-duality", {"exponent": 2.0}, Verdict.REFUTED, "finite Z"),
    ("wasserstein-duality", {"exponent": 0.5}, Verdict.REFUTED, "comes near"),
    ("gradient-norm-approximates-w2", {"denominator": 16.0}, Verdict.REFUTED, "rho²/16"),
    ("gradient-norm-approximates-w2", {"order": 1.0}, Verdict.REFUTED, "order in rho"),
    ("dropped-square-root", {"betas": (100.0,)}, Verdict.HOLDS, ""),
    ("temperature-radius", {"direction": 1.0}, Verdict.REFUTED, "does not go up"),
    ("temperature-radius", {"end": 0.5}, Verdict.REFUTED, "the radius of the largest loss"),
    ("chi2-rebel-dual", {"code": 1.0}, Verdict.HOLDS, ""),
]


def test_every_claim_is_tested() -> None:
    assert set(EXPECTED) == set(BY_NAME)
    assert {name for name, *_ in FLIPS} | {"released-kldpo-weights"} == set(BY_NAME)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", EXPECTED)
def test_verdicts(name: str, seed: int) -> None:
    finding = BY_NAME[name].check("smoke", seed)
    assert finding.verdict == EXPECTED[name], finding.measurements
    for line in finding.measurements:
        assert line.verdict != Verdict.REFUTED or line.counterexample


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("name", "change", "verdict", "words"), FLIPS)
def test_a_false_variant_flips_the_verdict(
    name: str, change: dict[str, Any], verdict: Verdict, words: str, seed: int
) -> None:
    finding = BY_NAME[name].check("smoke", seed, **change)
    assert finding.verdict == verdict != EXPECTED[name], finding.measurements
    if words:
        (line,) = [line for line in finding.measurements if words in line.what]
        assert line.verdict == Verdict.REFUTED


def test_another_factor_than_the_papers_is_refuted_too() -> None:
    finding = BY_NAME["chi2-rebel-dual"].check("smoke", 0, paper=0.9, code=1.0)
    assert [line.verdict for line in finding.measurements] == [Verdict.REFUTED, Verdict.HOLDS]


@pytest.mark.parametrize("seed", [0, 1])
def test_without_the_clamp_the_released_gradient_is_parallel(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functionals, "RELEASED_CLAMP", float("inf"))
    assert BY_NAME["released-kldpo-weights"].check("smoke", seed).verdict == Verdict.HOLDS


def test_a_gradient_step_that_is_too_long_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = worst_cases.gradient_step
    monkeypatch.setattr(
        worst_cases,
        "gradient_step",
        lambda *args, radius, **rest: exact(*args, radius=1.2 * radius, **rest),
    )
    finding = BY_NAME["gradient-norm-approximates-w2"].check("smoke", 0)
    assert finding.verdict == Verdict.REFUTED
    assert finding.measurements[0].counterexample


def test_a_worst_case_that_is_not_quite_the_tilt_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = worst_cases._worst

    def broken(*args: Any) -> Any:
        found = exact(*args)
        return dataclasses.replace(found, weights=0.99 * found.weights + 0.01 * args[1])

    monkeypatch.setattr(worst_cases, "_worst", broken)
    assert BY_NAME["tilt-normaliser"].check("smoke", 0).verdict == Verdict.REFUTED


@pytest.mark.parametrize("name", EXPECTED)
def test_the_same_seed_gives_the_same_finding(name: str) -> None:
    assert BY_NAME[name].check("smoke", 4) == BY_NAME[name].check("smoke", 4)
