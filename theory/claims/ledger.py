"""What a claim is, what it finds, and how measurements become a verdict.

A claim is a statement with a function that measures it. The function takes a profile (how much to
compute) and a seed and returns a `Finding`. Verdicts are computed: the judges below turn a
measurement and its statistical error into the verdict of one line, and `conclude` turns the lines
into the verdict of the claim. What is printed depends on whose statement it is, its `Kind`: only
what a source says can be refuted, an assumption can fail, and what we derived holds or fails.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, SupportsFloat, TypeVar

from scipy.stats import beta as beta_law

PROFILES = ("smoke", "quick", "paper")
LOOSE = 2.0  # an inequality whose two sides stay this factor apart is called loose
LEVEL = 0.95  # of every confidence interval

Row = dict[str, Any]
T = TypeVar("T")


class Verdict(StrEnum):
    """What the evidence says of a statement."""

    HOLDS = "holds"
    LOOSE = "holds, loose"
    GAP = "proof gap"
    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"


class Kind(StrEnum):
    """Whose statement it is, and of which kind."""

    PUBLISHED = "published"  # the source says so
    ASSUMPTION = "assumption"  # a theorem of the source assumes it
    DERIVED = "derived"  # ours: the source says nothing of the sort, or less
    IDENTITY = "identity"  # known to be true: a test of the code, not a finding


# the printed verdict -> what it means, kind by kind; in the order of the ledger
MEANING = {
    "holds": "the source's statement survives every check",
    "holds, loose": "it survives, and is never near to failing",
    "proof gap": "a step of its proof fails; the statement itself was not refuted",
    "refuted": "there is a counterexample to what the source says",
    "assumption holds": "what a theorem assumes is true in every case tried",
    "assumption can fail": "there is a case where what a theorem assumes is not true",
    "derived, holds": "our own statement survives every check",
    "derived, loose": "our own bound survives, and is never near to failing",
    "derived, proof gap": "a step of our proof fails; our statement itself was not refuted",
    "derived, fails": "there is a counterexample to our own statement",
    "identity": "known to be true, and computed so: a test, not a finding",
    "identity, fails": "known to be true, and computed otherwise: the code is wrong",
    "inconclusive": "the measurement cannot tell",
}
_PRINTED = {
    Kind.ASSUMPTION: {
        Verdict.HOLDS: "assumption holds",
        Verdict.LOOSE: "assumption holds",
        Verdict.REFUTED: "assumption can fail",
    },
    Kind.DERIVED: {
        Verdict.HOLDS: "derived, holds",
        Verdict.LOOSE: "derived, loose",
        Verdict.GAP: "derived, proof gap",
        Verdict.REFUTED: "derived, fails",
    },
    Kind.IDENTITY: {
        Verdict.HOLDS: "identity",
        Verdict.LOOSE: "identity",
        Verdict.REFUTED: "identity, fails",
    },
}


@dataclass(frozen=True)
class Measurement:
    """One line of evidence.

    what: the comparison in words. figure: what came out, with its error or interval. step: whether
    it is a step that the proof uses rather than the statement itself. ratio: bound divided by what
    it bounds, for inequalities. counterexample: numbers that can be checked by hand, where the
    verdict is refuted. decides: what would settle it, where it is inconclusive.
    """

    what: str
    verdict: Verdict
    figure: str
    step: bool = False
    ratio: float | None = None
    counterexample: str = ""
    decides: str = ""


@dataclass(frozen=True)
class Finding:
    """What a claim's check returns: the verdict, its key figure, the lines behind it, and tables to
    draw from (name -> rows).

    A table with the columns `x` and `y` is drawn as a panel with the table's name as its title.
    Optional columns: `low` and `high` (a band, or whiskers), `series` (the name of the curve), and,
    the same in all rows, `x_label`, `y_label`, `log` ("x", "y" or "xy"), `kind` ("line", "points"
    or "bars"; bars may stand at words) and `guide` (a thin line to compare with: "y = x", or "y = "
    and a number). Other columns are kept, and not drawn. See `curve` and `panel`.
    """

    verdict: Verdict
    figure: str
    measurements: tuple[Measurement, ...]
    tables: dict[str, list[Row]] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A statement and how it is checked.

    name: its key on the command line. source: paper, theorem and equation; "derived" first where
    it is ours. title: the statement in one line. statement,
    assumptions, method, flips: sentences for `prefdro verify --explain`; `flips` says what result
    would turn the verdict.
    check: (profile, seed) -> Finding; its keyword arguments, if any, are the constants of the
    statement, for tests that make it false. kind: whose statement it is, on which the printed
    verdict depends.
    """

    name: str
    source: str
    title: str
    statement: str
    assumptions: str
    method: str
    flips: str
    check: Callable[..., Finding]
    kind: Kind = Kind.PUBLISHED

    def printed(self, verdict: Verdict) -> str:
        """The verdict of the claim in words, a key of `MEANING`."""
        return _PRINTED.get(self.kind, {}).get(verdict, verdict.value)

    def printed_line(self, verdict: Verdict) -> str:
        """The verdict of one line of its evidence: of a statement that no source makes, a line is
        not refuted, it fails."""
        fails = verdict == Verdict.REFUTED and self.kind != Kind.PUBLISHED
        return "fails" if fails else verdict.value


def pick(profile: str, smoke: T, quick: T, paper: T) -> T:
    """The size that belongs to a profile."""
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; choose one of {', '.join(PROFILES)}.")
    return {"smoke": smoke, "quick": quick, "paper": paper}[profile]


def conclude(
    figure: str, measurements: Sequence[Measurement], tables: dict[str, list[Row]] | None = None
) -> Finding:
    """The measured verdict of a claim from those of its lines.

    Refuted if a line of the statement is; else a proof gap if a step of the proof is refuted; else
    inconclusive, or loose, if a line of the statement is.
    """
    statement = [line.verdict for line in measurements if not line.step]
    steps = [line.verdict for line in measurements if line.step]
    if not statement:
        raise ValueError(
            "a finding needs at least one measurement of the statement itself, not only of steps of"
            " its proof."
        )
    verdict = Verdict.HOLDS
    if Verdict.REFUTED in statement:
        verdict = Verdict.REFUTED
    elif Verdict.REFUTED in steps:
        verdict = Verdict.GAP
    else:
        for weaker in (Verdict.GAP, Verdict.INCONCLUSIVE, Verdict.LOOSE):
            if weaker in statement:
                verdict = weaker
                break
    return Finding(verdict, figure, tuple(measurements), tables or {})


# ------------------------------------------------------------------------------------------- tables
def curve(x: Iterable[SupportsFloat], y: Iterable[SupportsFloat], series: str = "") -> list[Row]:
    """Rows of one curve, or of a cloud of points."""
    return [{"x": float(a), "y": float(b), "series": series} for a, b in zip(x, y, strict=True)]


def panel(rows: Iterable[Row], x_label: str, y_label: str, **how: str) -> list[Row]:
    """A table that is drawn: rows with the names of its axes and, in `how`, log, kind and guide
    (see `Finding`)."""
    return [row | {"x_label": x_label, "y_label": y_label} | how for row in rows]


# ------------------------------------------------------------------------------------------- judges
def equality(
    what: str, error: float, tolerance: float, counterexample: str = "", *, step: bool = False
) -> Measurement:
    """Two numbers that should agree: `error` is their largest difference, `tolerance` what rounding
    or a solver explains."""
    agrees = error <= tolerance  # a NaN does not agree
    figure = f"largest difference {error:.1e}, tolerance {tolerance:.0e}"
    return Measurement(
        what,
        Verdict.HOLDS if agrees else Verdict.REFUTED,
        figure,
        step,
        counterexample="" if agrees else counterexample,
    )


def inequality(
    what: str,
    closest: float,
    counterexample: str = "",
    *,
    slack: float = 1e-9,
    loose: float = LOOSE,
    step: bool = False,
) -> Measurement:
    """A bound that should be above what it bounds in every case: `closest` is the smallest
    bound/value met.

    Refuted below 1 - slack (rounding), loose where even the closest case stays a factor `loose`
    away.
    """
    if not closest >= 1 - slack:
        return Measurement(
            what,
            Verdict.REFUTED,
            f"smallest bound/value {closest:.6g}",
            step,
            closest,
            counterexample=counterexample,
        )
    verdict = Verdict.LOOSE if closest > loose else Verdict.HOLDS
    return Measurement(what, verdict, f"smallest bound/value {closest:.4g}", step, closest)


def coverage(
    what: str,
    failures: int,
    trials: int,
    delta: float,
    *,
    ratio: float | None = None,
    counterexample: str = "",
    step: bool = False,
    loose: float = LOOSE,
) -> Measurement:
    """A bound that may fail with probability at most delta: exact (Clopper–Pearson) interval of the
    failure rate.

    ratio: bound divided by the (1 - delta) quantile of what it bounds, for looseness.
    """
    low, high = binomial_interval(failures, trials)
    figure = f"{failures} of {trials} fail, rate in [{low:.3g}, {high:.3g}], allowed {delta:g}"
    if ratio is not None:
        figure += f", bound/quantile {ratio:.4g}"
    if low > delta:
        return Measurement(
            what, Verdict.REFUTED, figure, step, ratio, counterexample=counterexample
        )
    if high > delta:
        more = math.ceil(math.log((1 - LEVEL) / 2) / math.log(1 - delta))
        return Measurement(
            what,
            Verdict.INCONCLUSIVE,
            figure,
            step,
            ratio,
            decides=f"more trials: at least {more} without a failure",
        )
    return Measurement(
        what,
        Verdict.LOOSE if ratio is not None and ratio > loose else Verdict.HOLDS,
        figure,
        step,
        ratio,
    )


def rate_bound(
    what: str, slope: float, low: float, high: float, claimed: float, *, step: bool = False
) -> Measurement:
    """An upper bound on an error at the rate n^claimed: refuted by a slower slope, loose where the
    slope is surely faster."""
    figure = f"slope {slope:.3f} [{low:.3f}, {high:.3f}], claimed at most {claimed:g}"
    if low == high:
        return _without_width(what, figure, step)
    if low > claimed:
        return Measurement(
            what, Verdict.REFUTED, figure, step, counterexample=f"slope {slope:.3f} > {claimed:g}"
        )
    if high < claimed:
        return Measurement(what, Verdict.LOOSE, figure, step)
    return Measurement(what, Verdict.HOLDS, figure, step)


def rate_reached(
    what: str,
    slope: float,
    low: float,
    high: float,
    claimed: float,
    *,
    width: float = 0.1,
    counterexample: str = "",
    step: bool = False,
) -> Measurement:
    """A rate that should be n^claimed or faster; the interval must be short enough (`width`) to
    tell it from slower ones."""
    figure = f"slope {slope:.3f} [{low:.3f}, {high:.3f}], claimed {claimed:g} or faster"
    if low == high:
        return _without_width(what, figure, step)
    if low > claimed:
        why = counterexample or f"slope {slope:.3f} > {claimed:g}"
        return Measurement(what, Verdict.REFUTED, figure, step, counterexample=why)
    if high > claimed + width:
        return Measurement(
            what,
            Verdict.INCONCLUSIVE,
            figure,
            step,
            decides="more replicates or a wider range of sizes",
        )
    return Measurement(what, Verdict.HOLDS, figure, step)


def rate_equal(
    what: str,
    slope: float,
    low: float,
    high: float,
    claimed: float,
    *,
    width: float = 0.1,
    step: bool = False,
) -> Measurement:
    """A rate that should be n^claimed: its interval must hold it, and be short enough (`width`) to
    tell it from others."""
    figure = f"slope {slope:.3f} [{low:.3f}, {high:.3f}], claimed {claimed:g}"
    if low == high:
        return _without_width(what, figure, step)
    if not low <= claimed <= high:
        return Measurement(
            what,
            Verdict.REFUTED,
            figure,
            step,
            counterexample=f"slope {slope:.3f}, not {claimed:g}",
        )
    if high - low > width:
        return Measurement(
            what,
            Verdict.INCONCLUSIVE,
            figure,
            step,
            decides="more replicates or a wider range of sizes",
        )
    return Measurement(what, Verdict.HOLDS, figure, step)


def _without_width(what: str, figure: str, step: bool) -> Measurement:
    """All replicates are the same, as where all of them collapsed: the interval says nothing of
    the error."""
    return Measurement(
        what, Verdict.INCONCLUSIVE, figure, step, decides="replicates that differ from each other"
    )


def binomial_interval(failures: int, trials: int) -> tuple[float, float]:
    """Clopper–Pearson interval of a failure rate at `LEVEL`."""
    tail = (1 - LEVEL) / 2
    low = 0.0 if failures == 0 else float(beta_law.ppf(tail, failures, trials - failures + 1))
    high = (
        1.0
        if failures == trials
        else float(beta_law.ppf(1 - tail, failures + 1, trials - failures))
    )
    return low, high
