"""What a run of `prefdro run aot` says: its tables, read and checked, and their main numbers as
Markdown."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from paper_figures.tables import read_tables

COLUMNS = {
    "rate.parquet": (
        "world",
        "n",
        "replicate",
        "fixed",
        "minimiser",
        "excess",
        "violation",
        "violation_population",
        "bound",
    ),
    "minibatch.parquet": ("actions", "h", "batch", "replicate", "controlled", "population", "dpo"),
    "softness.parquet": (
        "n",
        "replicate",
        "softness",
        "minimum",
        "hard_there",
        "hard_minimum",
        "distance",
        "converged",
    ),
    "surrogate.parquet": ("world", "h", "beta", "n", "violation", "gap", "kl", "boundary"),
    "pairing.parquet": (
        "world",
        "n",
        "method",
        "data",
        "value",
        "dpo",
        "relative",
        "cosine",
        "win_rate",
    ),
    "minima.parquet": (
        "n",
        "dimension",
        "signal",
        "starts",
        "minima",
        "best",
        "spread",
        "share_best",
    ),
    "methods.parquet": (
        "world",
        "n",
        "method",
        "matched",
        "relative",
        "kl",
        "win_rate",
        "boundary",
        "converged",
    ),
    "quantiles.parquet": ("world", "n", "method", "matched", "level", "chosen", "rejected"),
    "rates.csv": ("part", "setting", "quantity", "slope", "ci_low", "ci_high"),
}
METHODS = {
    "dpo": "DPO",
    "ipo": "IPO",
    "kto": "KTO",
    "aot-paired": "AOT, paired",
    "aot-unpaired": "AOT, unpaired",
    "aot-linear": "AOT, without partition",
    "aot-second-order": "AOT, second order",
}


@dataclass(frozen=True)
class Study:
    """The tables of one run by name, and run.json."""

    tables: dict[str, pd.DataFrame]
    run: dict[str, Any]

    def __getitem__(self, name: str) -> pd.DataFrame:
        return self.tables[name]


def read(source: Path) -> Study:
    """The tables in a folder.

    Raises:
        ValueError: a table or a column is missing, with the command that makes it.
    """
    return Study(*read_tables(source, COLUMNS, "prefdro run aot"))


def world_name(name: str) -> str:
    return {"linear": "Linear rewards", "curved": "Curved rewards"}.get(name, name)


def summary(study: Study) -> str:
    """Markdown with the main numbers."""
    run = study.run
    unsettled = sum(run.get("not_converged", {}).values())
    lines = [
        "# AOT",
        "",
        (
            f"Seed {run.get('seed', '?')}, code {run.get('commit') or 'unknown'}; {unsettled}"
            " minimisations not converged."
        ),
        "",
        *(f"* {sentence}" for sentence in _headlines(study)),
        "",
        "## Rates",
        "",
        (
            "Slopes of log deviation on log n, and of log bias on log b, with 95 % bootstrap"
            " intervals."
        ),
        "",
        "| part | setting | quantity | slope | 95 % interval |",
        "|---|---|---|--:|--:|",
    ]
    for row in study["rates"].itertuples():
        known = math.isfinite(row.slope)
        slope, interval = (
            (f"{row.slope:.3f}", f"[{row.ci_low:.3f}, {row.ci_high:.3f}]")
            if known
            else ("zero at some size", "")
        )
        lines.append(f"| {row.part} | {row.setting} | {row.quantity} | {slope} | {interval} |")
    lines += [
        "",
        "## Pairing",
        "",
        *_table(
            _largest(study["pairing"]),
            ["world", "n", "method", "data"],
            ["value", "relative", "cosine", "win_rate"],
        ),
        "",
        "## Choice of h and beta",
        "",
        *_table(study["surrogate"], ["world", "h", "beta"], ["violation", "gap", "kl", "boundary"]),
        "",
        "## Local minima",
        "",
        *_table(
            study["minima"],
            ["signal", "dimension", "n"],
            ["minima", "best", "spread", "share_best"],
        ),
        "",
        "## Methods",
        "",
        (
            "relative: violation over the mean distance of the quantile functions; boundary: share"
            " of fits at ||theta|| = B."
        ),
        "",
        *_table(
            _largest(study["methods"]),
            ["world", "n", "matched", "method"],
            ["relative", "kl", "win_rate", "boundary"],
        ),
        "",
    ]
    return "\n".join(lines)


def _headlines(study: Study) -> list[str]:
    """What the tables say, in a sentence each."""
    rate = study["rate"]
    bounds = rate.groupby(["world", "n"]).bound.first()
    tightest = (
        bounds / rate.assign(size=rate.fixed.abs()).groupby(["world", "n"])["size"].mean()
    ).min()
    soft = study["softness"]
    softest = soft[soft.softness == soft.softness.max()].mean(numeric_only=True)
    pairing = study["pairing"]
    paired = pairing[(pairing.data == "pairs") & (pairing.method != "dpo")]
    minima = study["minima"]
    edge = study["surrogate"].groupby("h", sort=False).boundary.mean()
    matched = (
        _largest(study["methods"])
        .query("matched")
        .groupby(["world", "method"], sort=False)[["relative", "win_rate"]]
        .mean()
    )
    sentences = [
        f"The bound 2LM/sqrt(n) is at least {tightest:.1f} times the mean deviation at theta*.",
        (
            f"At softness {softest.softness:g} the soft minimum is"
            f" {softest.minimum / softest.hard_minimum:.2f} of the hard one, and its minimiser is"
            f" worth {softest.hard_there / softest.hard_minimum:.2f} of it with hard sorting."
        ),
        (
            "AOT is at most DPO at the same policy in"
            f" {int((paired.value <= paired.dpo + 1e-12).sum())} of {len(paired)} fits."
        ),
        "Fits that end on the boundary ||theta|| = B: "
        + ", ".join(f"{h} {100 * share:.0f} %" for h, share in edge.items())
        + ".",
        (
            f"{minima.starts.max()} starts end at {minima.minima.min()} to {minima.minima.max()}"
            " local minima; the worst is above the best by"
            f" {100 * (minima.spread / minima.best).median():.1f} % in the median sample."
        ),
    ]
    for world in matched.index.unique("world"):
        found = "; ".join(
            f"{METHODS.get(method, method)} {row.relative:.3f}, {row.win_rate:.3f}"
            for method, row in matched.loc[world].iterrows()
        )
        sentences.append(f"{world_name(world)}, equal KL: relative violation and win rate {found}.")
    return sentences


def _largest(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows.n == rows.n.max()]


def _table(rows: pd.DataFrame, keys: list[str], columns: list[str]) -> list[str]:
    """Means with their standard errors."""
    groups = rows.groupby(keys, sort=False)[columns]
    mean, error = groups.mean(), groups.sem().fillna(0)
    lines = [
        "| " + " | ".join([*keys, *columns]) + " |",
        "|" + "---|" * len(keys) + "--:|" * len(columns),
    ]
    for key in mean.index:
        cells = [
            (
                f"{mean.loc[key, c]:.3g} ± {error.loc[key, c]:.1g}"
                if error.loc[key, c] > 1e-12
                else f"{mean.loc[key, c]:.3g}"
            )
            for c in columns
        ]
        lines.append("| " + " | ".join([*map(str, key), *cells]) + " |")
    return lines
