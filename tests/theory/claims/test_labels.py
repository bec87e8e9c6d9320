"""Each claim on labels has the verdict that is expected, and a false variant of it has another
one."""

from typing import Any

import pytest

from theory.claims.labels import CLAIMS
from theory.claims.ledger import Verdict

BY_NAME = {claim.name: claim for claim in CLAIMS}
FLIPS: list[tuple[str, dict[str, Any], str]] = [
    ("label-chi2-is-a-penalty", {"power": 0.55}, "against the penalty"),
    ("label-chi2-is-a-penalty", {"reach": 0.9}, "all of the label turns"),
    ("worst-ranking-is-ascending", {"share": 1.1}, "over all rankings"),
]


def test_every_claim_is_tested() -> None:
    assert {name for name, *_ in FLIPS} == set(BY_NAME)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", BY_NAME)
def test_verdicts(name: str, seed: int) -> None:
    finding = BY_NAME[name].check("smoke", seed)
    assert finding.verdict == Verdict.HOLDS, finding.measurements


@pytest.mark.parametrize(("name", "changed", "words"), FLIPS)
def test_false_variants_are_refuted(name: str, changed: dict[str, Any], words: str) -> None:
    finding = BY_NAME[name].check("smoke", 0, **changed)
    assert finding.verdict == Verdict.REFUTED
    wrong = [line for line in finding.measurements if line.verdict == Verdict.REFUTED]
    assert any(words in line.what and line.counterexample for line in wrong)
