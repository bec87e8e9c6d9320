"""The claim on doubly robust preference estimates: its verdict, and variants that flip it."""

from typing import Any

import pytest

from theory.claims.doubly_robust import doubly_robust_preference
from theory.claims.ledger import Verdict


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_holds(seed: int) -> None:
    finding = doubly_robust_preference("smoke", seed)
    assert finding.verdict == Verdict.HOLDS, finding.measurements


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"position": 0.1}, "preferences wrong"),
        ({"without": "weights"}, "preferences wrong"),
        ({"without": "model"}, "reference wrong"),
    ],
)
def test_a_false_variant_is_refuted_where_it_is_false(change: dict[str, Any], what: str) -> None:
    finding = doubly_robust_preference("smoke", 0, **change)
    assert finding.verdict == Verdict.REFUTED
    (slope,) = [line for line in finding.measurements if f"{what}: error on n" in line.what]
    assert slope.verdict == Verdict.REFUTED
