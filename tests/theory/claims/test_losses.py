"""Claims on the loss and its curvature: verdicts, and false variants that flip them."""

from decimal import Decimal, localcontext

import numpy as np
import pytest

from theory.claims import losses, problems
from theory.claims.ledger import Verdict
from theory.claims.losses import CLAIMS

CHECKS = {claim.name: claim.check for claim in CLAIMS}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", CHECKS)
def test_every_claim_holds_and_is_tight(name: str, seed: int) -> None:
    finding = CHECKS[name]("smoke", seed)
    assert finding.verdict == Verdict.HOLDS, finding.measurements


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("score-and-hessian", {"power": 1.9}, "beta="),
        ("score-and-hessian", {"power": 2.1}, "beta="),
        ("score-and-hessian", {"reach": 3.9}, "x=(2, 0, 0)"),
        ("strong-convexity-data-norm", {"factor": 1.1}, "theta_ref="),
        ("strong-convexity-robust", {"factor": 1.1}, "radius"),
    ],
)
def test_a_false_constant_is_refuted(
    name: str, change: dict[str, float], words: str, seed: int
) -> None:
    finding = CHECKS[name]("smoke", seed, **change)
    assert finding.verdict == Verdict.REFUTED
    assert any(words in line.counterexample for line in finding.measurements)


def test_a_gradient_with_the_wrong_sign_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    right = losses.dpo_loss
    monkeypatch.setattr(losses, "dpo_loss", lambda margin: right(margin) + 1e-3 * margin**2)
    assert CHECKS["score-and-hessian"]("smoke", 0).verdict == Verdict.REFUTED


def test_an_objective_that_is_less_convex_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    right = problems.RobustProblem.values
    monkeypatch.setattr(
        problems.RobustProblem,
        "values",
        lambda self, theta, radius: right(self, theta, radius) - 1e-2 * (theta**2).sum(1),
    )
    assert CHECKS["strong-convexity-robust"]("smoke", 0).verdict == Verdict.REFUTED


def test_the_remainder_of_second_order_without_cancellation() -> None:
    """Against fifty digits, from steps where the difference cancels to long ones."""
    with localcontext() as context:
        context.prec = 50
        for margin in (-8.0, -0.5, 0.0, 3.0, 8.0):
            for along in (1e-6, -1e-4, 9.9e-3, -1.01e-2, 0.3, 5.0):
                m, a = Decimal(margin), Decimal(along)
                exact = (1 + (-m - a).exp()).ln() - (1 + (-m).exp()).ln() + a / (1 + m.exp())
                assert losses._bregman(np.array(margin), np.array(along)) == pytest.approx(
                    float(exact), rel=1e-6
                )
