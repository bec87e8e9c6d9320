"""Claims on the edge of collapse: verdicts, and near false variants that flip them."""

from typing import Any

import pytest

from theory.claims.edges import CLAIMS
from theory.claims.ledger import Verdict

CHECKS = {claim.name: claim.check for claim in CLAIMS}
FLIPS: list[tuple[str, dict[str, Any]]] = [
    ("collapse-edge-law", {"constant": 1.1}),
    ("collapse-edge-law", {"constant": 0.9}),
    ("collapse-edge-law", {"exponent": -0.45}),
    ("algorithm-1-edge-law", {"constant": 1.15}),
    ("algorithm-1-edge-law", {"constant": 0.87}),
    ("algorithm-1-edge-law", {"exponent": -0.3}),
]


@pytest.mark.some(3)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", CHECKS)
def test_every_claim_holds(name: str, seed: int) -> None:
    finding = CHECKS[name]("smoke", seed)
    assert finding.verdict == Verdict.HOLDS, [
        line for line in finding.measurements if line.verdict != Verdict.HOLDS
    ]


@pytest.mark.some(2)
@pytest.mark.parametrize(("name", "change"), FLIPS)
def test_a_near_false_variant_is_refuted(name: str, change: dict[str, Any]) -> None:
    finding = CHECKS[name]("smoke", 0, **change)
    assert finding.verdict == Verdict.REFUTED
    assert any(
        line.counterexample for line in finding.measurements if line.verdict == Verdict.REFUTED
    )
