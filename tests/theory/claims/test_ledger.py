"""How measurements become verdicts."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from theory.claims import CLAIMS
from theory.claims.ledger import (
    MEANING,
    Kind,
    Measurement,
    Verdict,
    binomial_interval,
    conclude,
    coverage,
    equality,
    inequality,
    pick,
    rate_bound,
    rate_equal,
    rate_reached,
)


def line(verdict: Verdict, step: bool = False) -> Measurement:
    return Measurement("something", verdict, "1", step)


@pytest.mark.parametrize(
    ("lines", "verdict"),
    [
        ([line(Verdict.HOLDS), line(Verdict.HOLDS)], Verdict.HOLDS),
        ([line(Verdict.HOLDS), line(Verdict.LOOSE)], Verdict.LOOSE),
        ([line(Verdict.LOOSE), line(Verdict.INCONCLUSIVE)], Verdict.INCONCLUSIVE),
        ([line(Verdict.HOLDS), line(Verdict.REFUTED, step=True)], Verdict.GAP),
        ([line(Verdict.INCONCLUSIVE), line(Verdict.REFUTED, step=True)], Verdict.GAP),
        ([line(Verdict.REFUTED), line(Verdict.REFUTED, step=True)], Verdict.REFUTED),
        ([line(Verdict.HOLDS), line(Verdict.INCONCLUSIVE, step=True)], Verdict.HOLDS),
    ],
)
def test_the_verdict_of_a_claim_is_that_of_its_worst_line(
    lines: list[Measurement], verdict: Verdict
) -> None:
    assert conclude("", lines).verdict == verdict


def test_a_finding_needs_a_measurement_of_the_statement() -> None:
    with pytest.raises(ValueError, match="at least one measurement of the statement"):
        conclude("", [line(Verdict.HOLDS, step=True)])


def test_equality_is_refuted_by_a_difference_and_by_a_nan() -> None:
    assert equality("", 1e-12, 1e-10).verdict == Verdict.HOLDS
    assert equality("", 1e-8, 1e-10, "by hand").counterexample == "by hand"
    assert equality("", float("nan"), 1e-10).verdict == Verdict.REFUTED


def test_an_inequality_is_tight_loose_or_refuted() -> None:
    assert inequality("", 1.0).verdict == Verdict.HOLDS
    assert inequality("", 1 - 1e-12).verdict == Verdict.HOLDS  # rounding
    assert inequality("", 3.0).verdict == Verdict.LOOSE
    assert inequality("", 0.99).verdict == Verdict.REFUTED
    assert inequality("", float("nan")).verdict == Verdict.REFUTED


@pytest.mark.parametrize(("failures", "trials"), [(0, 100), (3, 50), (50, 50)])
def test_the_binomial_interval_is_clopper_pearson(failures: int, trials: int) -> None:
    low, high = binomial_interval(failures, trials)
    if failures:
        assert binom.sf(failures - 1, trials, low) == pytest.approx(0.025)
    if failures < trials:
        assert binom.cdf(failures, trials, high) == pytest.approx(0.025)


def test_coverage_needs_enough_trials_and_few_failures() -> None:
    assert coverage("", 0, 100, 0.05).verdict == Verdict.HOLDS
    assert coverage("", 0, 100, 0.05, ratio=10.0).verdict == Verdict.LOOSE
    assert coverage("", 20, 100, 0.05).verdict == Verdict.REFUTED
    few = coverage("", 0, 20, 0.05)
    assert few.verdict == Verdict.INCONCLUSIVE
    enough = int(few.decides.split()[4])
    assert coverage("", 0, enough, 0.05).verdict == Verdict.HOLDS
    assert coverage("", 0, enough - 1, 0.05).verdict == Verdict.INCONCLUSIVE


def test_rates() -> None:
    assert rate_bound("", -0.5, -0.52, -0.48, -0.25).verdict == Verdict.LOOSE
    assert rate_bound("", -0.25, -0.3, -0.2, -0.25).verdict == Verdict.HOLDS
    assert rate_bound("", -0.1, -0.2, -0.05, -0.25).verdict == Verdict.REFUTED
    assert rate_equal("", -0.5, -0.52, -0.48, -0.5).verdict == Verdict.HOLDS
    assert rate_equal("", -0.5, -0.52, -0.48, -1.0).verdict == Verdict.REFUTED
    assert rate_equal("", -0.5, -0.9, -0.1, -0.5).verdict == Verdict.INCONCLUSIVE
    assert rate_reached("", -0.7, -0.72, -0.68, -0.5).verdict == Verdict.HOLDS
    assert rate_reached("", -0.3, -0.32, -0.28, -0.5).verdict == Verdict.REFUTED
    assert rate_reached("", -0.4, -0.6, -0.2, -0.5).verdict == Verdict.INCONCLUSIVE


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown profile 'fast'"):
        pick("fast", 1, 2, 3)


def test_every_claim_says_what_it_is() -> None:
    assert len(CLAIMS) >= 20
    for name, claim in CLAIMS.items():
        assert name == claim.name == name.lower() and " " not in name
        for text in (
            claim.source,
            claim.title,
            claim.statement,
            claim.assumptions,
            claim.method,
            claim.flips,
        ):
            assert text.strip(), name
        assert np.all([len(claim.title) < 100])


def test_every_kind_has_words_for_every_verdict() -> None:
    (claim, *_) = CLAIMS.values()
    for kind in Kind:
        words = {verdict: replace(claim, kind=kind).printed(verdict) for verdict in Verdict}
        assert words[Verdict.INCONCLUSIVE] == "inconclusive"
        assert kind == Kind.PUBLISHED or words[Verdict.REFUTED] != "refuted"
        assert words[Verdict.REFUTED] != words[Verdict.HOLDS]
    used = {claim.printed(verdict) for claim in CLAIMS.values() for verdict in Verdict}
    assert used == set(MEANING)


def test_what_is_ours_is_not_called_published_nor_the_other_way_round() -> None:
    for claim in CLAIMS.values():
        ours = claim.source.startswith("derived")
        assert claim.kind in ((Kind.DERIVED, Kind.IDENTITY) if ours else Kind), claim.name
        assert ours or claim.kind != Kind.DERIVED, claim.name
