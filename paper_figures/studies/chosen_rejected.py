"""Figure of `prefdro run aot-benchmark`: how far each method has moved the log-probabilities of
chosen and of rejected held-out responses."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paper_figures import style
from paper_figures.studies import policies
from paper_figures.studies.held_out import POPULATIONS
from paper_figures.studies.policies import METHODS
from paper_figures.style import BLUE, GREY, ORANGE
from paper_figures.tables import read_tables

COLUMNS = {
    "pairs.parquet": ("population", "flip", "method", "seed", "pair", "chosen", "rejected"),
}
SIDES = {"chosen": (BLUE, "o"), "rejected": (ORANGE, "s")}
_ROW = 0.2  # inches for a method


def figure(pairs: pd.DataFrame, run: dict[str, Any]) -> Figure:
    """A panel for each population: the mean log-ratio of chosen and rejected responses to the
    reference, of policies trained on clean labels."""
    table = pairs[pairs.flip == pairs.flip.min()]
    populations = [name for name in POPULATIONS if name in set(table.population)]
    methods = [name for name in METHODS if name in set(table.method)]
    count = table.groupby("population").pair.nunique()
    notes = [
        f"{policies.scale(run)}. Mean change of the log-probability of a response to the model that"
        " all start from. Lines: 95 % over pairs (their means over the seeds), "
        + " and ".join(f"{count[name]} {POPULATIONS[name]}" for name in populations).replace(
            "another population", "pairs of another population"
        )
        + "."
    ]
    drawn, axes = style.grid(
        style.PAGE,
        [_ROW * len(methods)],
        len(populations),
        left=1.0,
        right=0.1,
        bottom=0.4 + policies.room_for(notes, style.PAGE),
        gap_x=0.3,
    )
    for panel, population in zip(axes[0], populations, strict=True):
        panel.axvline(0, color=GREY, linewidth=0.7, zorder=0)
        for k, (side, (color, marker)) in enumerate(SIDES.items()):
            found = intervals(table[table.population == population], side).loc[methods]
            places = np.arange(len(methods)) + 0.3 * (k - 0.5)
            panel.hlines(places, found.low, found.high, color=color, linewidth=0.9)
            panel.plot(
                found["mean"], places, marker, color=color, markersize=3.6, label=side, gid=side
            )
        panel.set_title(POPULATIONS[population])
        panel.set_ylim(len(methods) - 0.5, -0.5)
        panel.set_yticks(range(len(methods)), [METHODS[name].label for name in methods])
        panel.tick_params(axis="y", length=0, labelleft=panel is axes[0][0])
        panel.xaxis.set_major_locator(MaxNLocator(6))
        panel.set_xlabel("mean change of the log-probability, nats", labelpad=1)
    axes[0][0].legend()
    policies.small_print(drawn, notes)
    return drawn


def intervals(table: pd.DataFrame, side: str) -> pd.DataFrame:
    """For each method, mean over the pairs of their means over seeds, with its 95 % t interval:
    mean, low, high, nats."""
    return policies.interval(table.groupby(["method", "pair"])[side].mean().unstack())


FIGURES = {"chosen_rejected": figure}


def draw(source: Path, out: Path) -> list[Path]:
    """Draw chosen_rejected from the rows of `prefdro run aot-benchmark`; the paths written.

    Args:
        source: folder of `prefdro run aot-benchmark`.
        out: folder of the figure.

    Raises:
        ValueError: a table or a column is missing.
    """
    tables, run = read_tables(source, COLUMNS, "prefdro run aot-benchmark")
    with style.paper():
        drawn = [(name, make(tables["pairs"], run)) for name, make in FIGURES.items()]
    return style.save_all(drawn, out)
