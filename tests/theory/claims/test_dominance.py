"""The claim on spectral risk: its verdict, and that each of its bounds is met."""

import pytest

from theory.claims.dominance import spectral_risk
from theory.claims.ledger import Verdict


@pytest.mark.parametrize("seed", [0, 1])
def test_it_holds_and_is_tight(seed: int) -> None:
    finding = spectral_risk("smoke", seed)
    assert finding.verdict == Verdict.HOLDS, finding.measurements
    smaller = spectral_risk("smoke", seed, factor=0.98)
    assert [line.verdict for line in smaller.measurements] == [Verdict.REFUTED] * 4
