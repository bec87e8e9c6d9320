"""The claim that confidence regions from one sample cover what they say they cover."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as f_law

from theory.claims.ledger import (
    Claim,
    Finding,
    Kind,
    Measurement,
    Row,
    Verdict,
    binomial_interval,
    conclude,
    curve,
    panel,
    pick,
)
from theory.claims.problems import NAMES, RobustProblem, worlds
from theory.inference import Inference, infer
from theory.laws.law import law_at
from theory.policy import Array

MANY = 10**4
# the level of a region, and what the share that covers may be, all sets together, at n = 1e4; the
# region of half of the samples feels a covariance that is too large
ALLOWED = {0.95: (0.92, 0.98), 0.5: (0.42, 0.58)}
_FRACTION = 0.5  # of the collapse radius


def interval_coverage(
    profile: str, seed: int, *, covariance: float = 1.0, exponent: float = -0.5
) -> Finding:
    """Coverage of `infer` against n. covariance, exponent: a factor on the covariance, and the
    exponent of n in the errors (right at n = 1000), for false variants."""
    balls: tuple[str, ...] = ("kl", "tilt", "w2-free")
    if profile == "paper":
        balls = (*balls, "chi2", "w1-free", "w1-finite", "w2-finite")
    few, many = pick(profile, (10, 120), (30, 150), (200, 400))
    world = worlds(seed, 1)[0]
    away: list[float] = []
    rows: list[Row] = []
    table: list[Row] = []
    for number, ball in enumerate(balls):
        problem = RobustProblem(ball, world)
        radius = problem.set.size_at(_FRACTION, world.population(), **world.problem)
        target = law_at(problem.fit(world.probability, radius)).theta
        sizes = (100, 300, 1000, 3000, MANY)
        for n in sizes:
            count = many if n == MANY else few
            found = problem.fit(
                world.sample(n, np.random.SeedSequence([seed, number, n]).spawn(count)).p, radius
            )
            factor = covariance * (n / 1e3) ** (2 * exponent + 1)
            met: dict[str, list[bool]] = {}
            for r in range(count):
                seen = infer(found.one(r), pairs=n, resamples=60)
                met.setdefault(seen.method, []).append(_covers(seen, target, factor))
                if n == MANY and seen.method == "sandwich":
                    away.append(_level(seen, target, factor))
            plugged = met.get("sandwich", [])
            row = {"set": NAMES[ball], "n": n, "sandwich": len(plugged) / count}
            row["its coverage"] = float(np.mean(plugged)) if plugged else float("nan")
            rest = met.get("m out of n", [])
            row["coverage of m out of n"] = float(np.mean(rest)) if rest else float("nan")
            table.append(row)
            both = np.array(plugged + rest)
            low, high = binomial_interval(int(both.sum()), count)
            point = curve([n], [both.mean()], NAMES[ball])[0]
            rows.append(point | {"low": low, "high": high})
    reached = np.mean(np.array(away) <= 0.95)
    low = min(r["its coverage"] for r in table if r["sandwich"] > 0.5)
    figure = f"{reached:.3f} of the 95 % regions cover at n = 1e4; least in a cell {low:.3f}"
    axes = ("pairs n", "share of regions that cover")
    return conclude(
        figure,
        [_judge(np.array(away) <= level, level) for level in ALLOWED],
        {
            "coverage of the 95 % region": panel(rows, *axes, log="x", guide="y = 0.95"),
            "coverage by set, n and method": table,
        },
    )


def _covers(seen: Inference, target: Array, factor: float) -> bool:
    """Whether the region, its lengths times the root of the factor, holds the target."""
    return seen.contains(seen.theta + (target - seen.theta) / np.sqrt(factor))


def _level(seen: Inference, target: Array, factor: float) -> float:
    """The level of the smallest region that holds the target: Hotelling's law."""
    away, spread = target - seen.theta, seen.covariance * factor
    d, n = int(np.linalg.matrix_rank(spread, tol=1e-9 * np.trace(spread))), seen.independent
    statistic = away @ np.linalg.pinv(spread, rcond=1e-9) @ away
    return float(f_law.cdf(statistic * (n - d) / (d * (n - 1)), d, n - d))


def _judge(covered: NDArray[np.bool_], level: float) -> Measurement:
    what = f"{level:.0%} regions of the sandwich, n = {MANY:.0e}, all sets together"
    low, high = binomial_interval(int(covered.sum()), len(covered))
    least, most = ALLOWED[level]
    figure = f"{covered.mean():.3f} [{low:.3f}, {high:.3f}] cover, {least} to {most} is allowed"
    if high < least or low > most:
        example = f"{covered.sum()} of {len(covered)} regions cover"
        return Measurement(what, Verdict.REFUTED, figure, counterexample=example)
    if high - low > 0.15:
        return Measurement(what, Verdict.INCONCLUSIVE, figure, decides="more samples")
    return Measurement(what, Verdict.HOLDS, figure)


CLAIMS = (
    Claim(
        "interval-coverage",
        "derived; docs/theorems/limit-laws.md, Theorems F1 to F3",
        "confidence regions of a robust fit, from its sample alone, cover theta_rho",
        "The region of `infer` with the level 0.95 covers the minimiser of the same set in the"
        " population in 95 % of the samples, where its method is the sandwich, for n of 1e4.",
        "As for the limit laws; half of the collapse radius.",
        "Many samples of a finite world; how often the region holds theta_rho, for n from 100 to"
        " 1e4. The table says how often the sample settled the law (sandwich), and how the m out of"
        " n bootstrap covers where it did not; only the sandwich at n = 1e4 is judged.",
        "Surely less than 92 % or more than 98 % of the 95 % regions cover at n = 1e4, or less than"
        " 42 % or more than 58 % of the 50 % regions. A covariance 1.5 times too small or too"
        " large, or an exponent that is 0.1 off, is refuted.",
        interval_coverage,
        Kind.DERIVED,
    ),
)
