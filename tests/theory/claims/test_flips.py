"""The claims on flipped pairs: verdicts, variants that flip them, and that no loss is left out."""

import pytest

from llm.pair_losses import PAIR_LOSSES
from theory.claims.flips import PULLS, mislabelled_share_estimate, redescending_losses
from theory.claims.ledger import Verdict


def test_every_pair_loss_is_looked_at() -> None:
    assert set(PULLS) == set(PAIR_LOSSES)


def test_others_redescend_too() -> None:
    finding = redescending_losses("smoke", 0)
    assert finding.verdict == Verdict.REFUTED
    refuted = [line.what for line in finding.measurements if line.verdict == Verdict.REFUTED]
    assert refuted == [f"{name} does not redescend" for name in ("dr_dpo", "exo", "winsorised")]


@pytest.mark.parametrize("seed", [0, 1])
def test_without_those_it_holds(seed: int) -> None:
    finding = redescending_losses("smoke", seed, said=("dpo", "ipo", "cdpo", "rdpo"), earlier=())
    assert finding.verdict == Verdict.HOLDS, finding.measurements


@pytest.mark.parametrize("seed", [0, 1])
def test_the_share_is_right_where_preferences_are_sure(seed: int) -> None:
    finding = mislabelled_share_estimate("smoke", seed)
    assert finding.verdict == Verdict.HOLDS, finding.measurements


def test_the_share_is_wrong_where_they_are_not() -> None:
    finding = mislabelled_share_estimate("smoke", 0, sure=3.0)
    assert finding.verdict == Verdict.REFUTED
