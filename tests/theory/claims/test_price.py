"""The claim on the price of coverage: verdict, and near false variants that flip it."""

from typing import Any

import pytest

from theory.claims.ledger import Verdict
from theory.claims.price import price_of_coverage


@pytest.mark.parametrize("seed", [0, 1])
def test_it_holds(seed: int) -> None:
    finding = price_of_coverage("smoke", seed)
    assert finding.verdict == Verdict.HOLDS, [
        line for line in finding.measurements if line.verdict != Verdict.HOLDS
    ]


@pytest.mark.some(1)
@pytest.mark.parametrize(
    "change",
    [
        {"constant": 1.2},
        {"constant": 0.8},
        {"exponents": (-0.35, -0.5)},
        {"exponents": (-0.25, -0.4)},
    ],
)
def test_a_near_false_variant_is_refuted(change: dict[str, Any]) -> None:
    assert price_of_coverage("smoke", 0, **change).verdict == Verdict.REFUTED
