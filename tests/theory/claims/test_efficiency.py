"""The claim that KLDPO is inefficient: verdict, and near false variants that flip it."""

from typing import Any

import pytest

from theory.claims.efficiency import kldpo_inefficient
from theory.claims.ledger import Verdict


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_holds(seed: int) -> None:
    finding = kldpo_inefficient("smoke", seed)
    assert finding.verdict == Verdict.HOLDS, finding.measurements


@pytest.mark.parametrize("change", [{"constant": 1.1}, {"constant": 0.9}, {"power": 0.7}])
def test_a_near_false_variant_is_refuted(change: dict[str, Any]) -> None:
    assert kldpo_inefficient("smoke", 0, **change).verdict == Verdict.REFUTED
