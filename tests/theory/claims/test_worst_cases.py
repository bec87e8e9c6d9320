"""Each claim on worst cases has the verdict that is expected, and a false variant of it has another
one."""

import dataclasses
from typing import Any

import pytest
import torch

from theory import functionals
from theory.claims import worst_cases
from theory.claims.ledger import Verdict
from theory.claims.toy_model import ToyModel
from theory.claims.worst_cases import CLAIMS

BY_NAME = {claim.name: claim for claim in CLAIMS}
EXPECTED = {
    "kl-worst-case-is-tilt": Verdict.HOLDS,
    "tilt-normaliser": Verdict.HOLDS,
    "wasserstein-duality": Verdict.HOLDS,
    "gradient-norm-approximates-w2": Verdict.HOLDS,
    "dropped-square-root": Verdict.REFUTED,
    "temperature-radius": Verdict.HOLDS,
    "released-kldpo-weights": Verdict.HOLDS,
    "chi2-rebel-dual": Verdict.HOLDS,
}
# statement, what makes it false (or true), verdict, words of the line that shows it
FLIPS: list[tuple[str, dict[str, Any], Verdict, str]] = [
    ("kl-worst-case-is-tilt", {"sharpness": 1.1}, Verdict.REFUTED, "expected loss of the tilt"),
    ("kl-worst-case-is-tilt", {"threshold": 1.05}, Verdict.REFUTED, "log n disagree"),
    ("kl-worst-case-is-tilt", {"threshold": 0.95}, Verdict.REFUTED, "log n disagree"),
    ("tilt-normaliser", {"factor": 1.1}, Verdict.REFUTED, "mu + lam >= 1.1 E l"),
    ("wasserstein-duality", {"exponent": 1.1}, Verdict.REFUTED, "finite Z"),
    ("wasserstein-duality", {"exponent": 0.9}, Verdict.REFUTED, "finite Z"),
    ("gradient-norm-approximates-w2", {"denominator": 9.0}, Verdict.REFUTED, "rho²/9"),
    ("gradient-norm-approximates-w2", {"order": 1.9}, Verdict.REFUTED, "order in rho"),
    ("gradient-norm-approximates-w2", {"order": 2.1}, Verdict.REFUTED, "order in rho"),
    ("dropped-square-root", {"betas": (10.0,), "steps": 0}, Verdict.HOLDS, ""),
    ("temperature-radius", {"direction": 1.0}, Verdict.REFUTED, "does not go up"),
    ("temperature-radius", {"end": 0.9}, Verdict.REFUTED, "the radius of the largest loss"),
    ("temperature-radius", {"end": 1.1}, Verdict.REFUTED, "the radius of the largest loss"),
    ("released-kldpo-weights", {"clamp": 15.0}, Verdict.REFUTED, "no weight is above 15"),
    ("released-kldpo-weights", {"clamp": 7.0}, Verdict.REFUTED, "a weight is above 7"),
    ("chi2-rebel-dual", {"paper": 0.9}, Verdict.REFUTED, "c² = 0.9 + 2 rho"),
    ("chi2-rebel-dual", {"paper": 1.1}, Verdict.REFUTED, "c² = 1.1 + 2 rho"),
    ("chi2-rebel-dual", {"code": 0.25}, Verdict.REFUTED, "c² = 0.25 + 2 rho"),
]


def test_every_claim_is_tested() -> None:
    assert set(EXPECTED) == set(BY_NAME)
    assert {name for name, *_ in FLIPS} == set(BY_NAME)


@pytest.mark.some(10)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", EXPECTED)
def test_verdicts(name: str, seed: int) -> None:
    finding = BY_NAME[name].check("smoke", seed)
    assert finding.verdict == EXPECTED[name], finding.measurements
    for line in finding.measurements:
        assert line.verdict != Verdict.REFUTED or line.counterexample


@pytest.mark.some(10)
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


@pytest.mark.parametrize("clamp", [7.0, 15.0])
def test_a_clamp_elsewhere_is_found_out(clamp: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functionals, "RELEASED_CLAMP", clamp)
    assert BY_NAME["released-kldpo-weights"].check("smoke", 0).verdict == Verdict.REFUTED
    assert (
        BY_NAME["released-kldpo-weights"].check("smoke", 0, clamp=clamp).measurements[0].verdict
        == Verdict.HOLDS
    )


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


@pytest.mark.some(2)
@pytest.mark.parametrize("name", EXPECTED)
def test_the_same_seed_gives_the_same_finding(name: str) -> None:
    assert BY_NAME[name].check("smoke", 4) == BY_NAME[name].check("smoke", 4)


def test_the_square_root_may_go_above_a_beta_and_not_below_it() -> None:
    """At the reference model all slopes are 1/2, so that the norm is in proportion to beta."""
    check = BY_NAME["dropped-square-root"].check
    row, *_ = check("smoke", 0).tables["at the reference model"]
    edge = row["x"] / row["y"]
    for factor, verdict in ((1.05, Verdict.HOLDS), (1 / 1.05, Verdict.REFUTED)):
        change = {"betas": (factor * edge,), "embeddings": (0.02,), "steps": 0}
        assert check("smoke", 0, **change).verdict == verdict


def test_embedding_gradients_against_finite_differences() -> None:
    torch.manual_seed(0)
    model = ToyModel(0.1, 6).double()
    tokens = torch.randint(40, (3, 6))
    z = model.token(tokens).detach().requires_grad_()
    (slope,) = torch.autograd.grad(model.log_probability(z, tokens).sum(), z)
    step = 1e-6 * torch.randn_like(z)
    ends = [model.log_probability(z + s * step, tokens).sum().item() for s in (1, -1)]
    assert (ends[0] - ends[1]) / 2 == pytest.approx((slope * step).sum().item(), rel=1e-6)
    assert (slope[:, -1] == 0).all()  # the last token predicts nothing


def test_the_toy_model_does_not_look_ahead_and_its_probabilities_sum_to_one() -> None:
    model = ToyModel(0.1, 3).double()
    texts = torch.cartesian_prod(*[torch.arange(40)] * 2)
    texts = torch.cat([torch.zeros(len(texts), 1, dtype=torch.long), texts], 1)
    mass = model.log_probability(model.token(texts), texts).exp().sum().item()
    assert mass == pytest.approx(1, abs=1e-9)
