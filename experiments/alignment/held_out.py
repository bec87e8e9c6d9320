"""How policies order pairs that they were not trained on: of the same population or of another one,
after training on clean labels or on labels of which a share was exchanged."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

from experiments.alignment.training import Run
from experiments.engine.stages import read_artefact
from theory.shift import mean_interval
from theory.stochastic_dominance import dominance

POLICY = ["method", "radius", "beta", "flip", "seed"]
MEASURES = ("accuracy", "margin")
SAME = "test"  # the population of the training

Array = NDArray[np.float64]


def file_of(population: str) -> str:
    """The table of a population's log-probabilities in the folder of a judged policy, without its
    ending."""
    return "logps" if population == SAME else f"logps-{population}"


def margins(judged: Sequence[tuple[Run, Path]], populations: Sequence[str]) -> pd.DataFrame:
    """A row for each policy, population and pair: log-ratios to the start, nats, and lengths,
    tokens.

    Args:
        judged: policies with the folders of what they are worth; the start is among them.

    Raises:
        ValueError: a table is of other pairs than that of the start, or damaged.

    Returns:
        The policy's columns; population, pair (its position), chosen, rejected, margin (chosen
        minus rejected), accuracy (1 where the margin is positive, 1/2 where it is 0, NaN where it
        is),
        chosen_tokens, rejected_tokens.
    """
    (start, *_) = (folder for run, folder in judged if run.method == "start")
    parts = []
    for population in populations:
        name = f"{file_of(population)}.parquet"
        before = read_artefact(start / name)
        for run, folder in judged:
            if run.method == "start":
                continue
            after = read_artefact(folder / name)
            if list(after.pair) != list(before.pair):
                raise ValueError(
                    f"{folder / name} and {start / name} are not of the same pairs: move both"
                    " folders away and give the same command again."
                )
            chosen, rejected = (after[side] - before[side] for side in ("chosen", "rejected"))
            margin = chosen - rejected
            parts.append(
                after[["pair", "chosen_tokens", "rejected_tokens"]].assign(
                    population=population,
                    chosen=chosen,
                    rejected=rejected,
                    margin=margin,
                    accuracy=np.sign(margin) / 2 + 0.5,
                    method=run.method,
                    radius=run.radius,
                    beta=run.beta,
                    flip=run.flip,
                    seed=run.replicate,
                )
            )
    return pd.concat(parts, ignore_index=True)


def held_out(rows: pd.DataFrame) -> pd.DataFrame:
    """Preference accuracy and margins of each policy on each population, with standard errors over
    its pairs.

    Length is a covariate: margin_equal_length is the margin of a pair whose responses are equally
    long, and per_token what each token more of the chosen one adds, by least squares of the margin
    on the difference of lengths; accuracy_longer and accuracy_shorter are over the pairs whose
    chosen response is the longer, or the shorter one.
    """
    out = []
    for key, group in rows.groupby(["population", *POLICY], sort=False):
        longer = (group.chosen_tokens - group.rejected_tokens).to_numpy(float)
        level, slope = _line(longer, group.margin.to_numpy())
        out.append(
            {
                **dict(zip(["population", *POLICY], key, strict=True)),
                "pairs": len(group),
                "accuracy": group.accuracy.mean(),
                "accuracy_error": group.accuracy.sem(),
                "margin": group.margin.mean(),
                "margin_error": group.margin.sem(),
                "margin_equal_length": level,
                "per_token": slope,
                "accuracy_longer": group.accuracy[longer > 0].mean(),
                "accuracy_shorter": group.accuracy[longer < 0].mean(),
            }
        )
    return pd.DataFrame(out)


def _line(x: Array, y: Array) -> tuple[float, float]:
    """Level at 0 and slope of the least-squares line; the mean and 0 where all x are equal."""
    if np.ptp(x) == 0:
        return float(y.mean()), 0.0
    slope, level = np.polyfit(x, y, 1)
    return float(level), float(slope)


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """Every method against DPO on the same labels, and against itself on clean labels.

    Both differences are paired, pair by pair and seed by seed: over_dpo (positive: better than DPO)
    and lost (positive: worse than without exchanged labels; NaN where it was not trained on clean
    ones). The intervals `_pairs` are over the held-out pairs, at these seeds; `_seeds` are t
    intervals over the seeds, at these pairs; each leaves out what the other is about.
    """
    keys = ["population", "flip", "method", "radius", "beta"]
    by_policy = {
        key: group.pivot(index="pair", columns="seed", values=list(MEASURES))
        for key, group in rows.groupby(keys, sort=False)
    }
    dpo = {key[:2]: key for key in by_policy if key[2] == "dpo"}
    out = []
    for key, table in by_policy.items():
        population, flip, *policy = key
        clean = by_policy.get((population, 0.0, *policy)) if flip else None
        for measure in MEASURES:
            own = table[measure]
            row = {
                **dict(zip(keys, key, strict=True)),
                "measure": measure,
                "value": float(own.to_numpy().mean()),
                "pairs": len(own),
                "seeds": own.shape[1],
            }
            against = by_policy[dpo[population, flip]][measure]
            row |= _difference("over_dpo", own - against)
            if clean is not None:
                row |= _difference("lost", clean[measure] - own)
            out.append(row)
    return pd.DataFrame(out)


def _difference(name: str, table: pd.DataFrame) -> dict[str, float]:
    """Mean of a table (pairs, seeds), with both intervals."""
    by_pair = table.mean(axis=1).to_numpy()
    half = student.ppf(0.975, len(by_pair) - 1) * by_pair.std(ddof=1) / np.sqrt(len(by_pair))
    mean, low, high = mean_interval(table.mean(axis=0).to_numpy())
    return {
        name: mean,
        f"{name}_low_pairs": mean - half,
        f"{name}_high_pairs": mean + half,
        f"{name}_low_seeds": low,
        f"{name}_high_seeds": high,
    }


def dominates(
    better: Array, worse: Array, *, low: float | None = None, high: float | None = None
) -> dict[str, float | None]:
    """How far paired rewards (n,) are from dominating others, as columns of a table: of
    `theory.stochastic_dominance`, with second_ for the second order."""
    found = dominance(better, worse, low=low, high=high, paired=True)
    row: dict[str, float | None] = {"pairs": len(better)}
    for prefix, order in (("", found.first), ("second_", found.second)):
        ends = order.interval or (None, None)
        row |= {
            f"{prefix}violation": order.violation,
            f"{prefix}certificate": order.certificate,
            f"{prefix}ratio": order.ratio,
            f"{prefix}ratio_low": ends[0],
            f"{prefix}ratio_high": ends[1],
        }
    return row | {
        "from_level": found.levels[0],
        "to_level": found.levels[1],
        "from_pairs": found.from_pairs,
    }
