"""Claims on lower bounds: verdicts, and near false variants that flip them."""

from typing import Any

import pytest

from theory.claims.ledger import Verdict
from theory.claims.lower import CLAIMS

CHECKS = {claim.name: claim.check for claim in CLAIMS}
FLIPS: list[tuple[str, str, dict[str, Any]]] = [
    ("lower-bound-local", "smoke", {"constant": 1.25}),
    ("lower-bound-local", "quick", {"exponent": -0.95}),
    ("rate-not-uniform", "smoke", {"constant": 1.1}),
    ("rate-not-uniform", "smoke", {"power": 1.9}),
    ("rate-not-uniform", "smoke", {"chance": 1.5}),
    ("deviation-logarithmic", "smoke", {"constant": 1.1}),
    ("deviation-logarithmic", "smoke", {"power": 0.95}),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CHECKS)
def test_every_claim_holds(name: str, seed: int) -> None:
    finding = CHECKS[name]("smoke", seed)
    assert finding.verdict == Verdict.HOLDS, [
        line for line in finding.measurements if line.verdict != Verdict.HOLDS
    ]


@pytest.mark.some(2)
@pytest.mark.parametrize(("name", "profile", "change"), FLIPS)
def test_a_near_false_variant_is_refuted(name: str, profile: str, change: dict[str, Any]) -> None:
    assert CHECKS[name](profile, 0, **change).verdict == Verdict.REFUTED
