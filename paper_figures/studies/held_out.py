"""Figure of `prefdro run aot-benchmark`: which share of held-out pairs each method orders rightly,
after clean and after partly exchanged labels, on two populations."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from paper_figures import style
from paper_figures.studies import policies
from paper_figures.studies.policies import METHODS
from paper_figures.tables import read_tables

COLUMNS = {
    "compared.csv": (
        *("population", "flip", "method", "radius", "measure", "value", "pairs", "seeds"),
        *("over_dpo", "over_dpo_low_pairs", "over_dpo_high_pairs"),
        *("over_dpo_low_seeds", "over_dpo_high_seeds"),
    )
}
POPULATIONS = {"test": "held-out pairs", "shifted": "another population"}
_ROW = 0.175  # inches for a method


def figure(compared: pd.DataFrame, run: dict[str, Any]) -> Figure:
    """A row of panels for each population: the accuracy of each method on clean labels and on
    exchanged ones, and what it has over DPO on the same labels."""
    table = compared[compared.measure == "accuracy"]
    populations = [name for name in POPULATIONS if name in set(table.population)]
    methods = [name for name in METHODS if name in set(table.method)]
    flips = sorted(set(table.flip))
    pairs = {name: int(table.pairs[table.population == name].iloc[0]) for name in populations}
    counts = " and ".join(f"{pairs[name]} pairs ({POPULATIONS[name]})" for name in populations)
    exchanged = ", ".join(f"{flip:.0%}" for flip in flips if flip)
    notes = [
        f"{policies.scale(run)}. {counts}. A pair is ordered rightly if the chosen"
        " response has the larger log-ratio to the reference. Filled: trained on clean labels"
        + (f"; open: {exchanged} of the training labels exchanged. " if exchanged else ". ")
        + "Lines: 95 % over pairs, at these seeds; ticks: 95 % over seeds, at these pairs, beyond"
        " the panel where an arrow stands."
        + (" cDPO and rDPO are told the share." if {"cdpo", "rdpo"} & set(methods) else "")
    ]
    below = 0.4 + policies.room_for(notes, style.PAGE)
    drawn, axes = style.grid(
        style.PAGE,
        [_ROW * len(methods)] * len(populations),
        2,
        left=1.0,
        right=0.1,
        bottom=below,
        gap_x=0.3,
        gap_y=0.5,
    )
    for line, population in enumerate(populations):
        mine = table[table.population == population]
        left, right = axes[line]
        left.axvline(0.5, color=style.PALE, linewidth=2, zorder=0)
        right.axvline(0, color=style.GREY, linewidth=0.7, zorder=0)
        for k, flip in enumerate(flips):
            rows = mine[mine.flip == flip].set_index("method")
            _values(left, rows, methods, flip, k)
            _differences(right, rows, methods, k, len(flips))
        left.set_title(f"{POPULATIONS[population]}: accuracy")
        right.set_title("minus DPO on the same labels")
        for panel in (left, right):
            panel.set_ylim(len(methods) - 0.5, -0.5)
            panel.set_yticks(range(len(methods)), [METHODS[name].label for name in methods])
            panel.tick_params(axis="y", length=0, labelleft=panel is left)
            panel.xaxis.set_major_locator(MaxNLocator(5))
    for panel in axes[:, 1]:
        _limit(panel, table)
    for panel, words in zip(axes[-1], ("share of pairs", "difference of shares"), strict=True):
        panel.set_xlabel(words, labelpad=1)
    policies.small_print(drawn, notes)
    return drawn


def _limit(panel: Axes, table: pd.DataFrame) -> None:
    """Hold every interval over pairs whole; those over a few seeds may be wider than what is seen,
    and an arrow at the edge says so."""
    ends = table[["over_dpo_low_pairs", "over_dpo_high_pairs"]].to_numpy()
    ends = ends[np.isfinite(ends)]
    if not len(ends):
        return
    pad = 0.25 * max(float(np.ptp(ends)), 1e-6)
    low, high = float(ends.min()) - pad, float(ends.max()) + pad
    panel.set_xlim(low, high)
    for line in panel.lines:
        if line.get_marker() == "|":
            x, y = (np.asarray(values, dtype=float) for values in line.get_data())
            for beyond, place, marker in (
                (x.min() < low, low, "<"),
                (x.max() > high, high, ">"),
            ):
                if beyond:
                    color = line.get_color()
                    panel.plot(place, y[0], marker, color=color, markersize=2.5, clip_on=False)


def _filled(number: int) -> str:
    """Clean labels are filled, those with more and more flips open and half filled."""
    return ("full", "none", "left", "top")[min(number, 3)]


def _values(axes: Axes, rows: pd.DataFrame, methods: list[str], flip: float, number: int) -> None:
    for k, method in enumerate(methods):
        if method in rows.index:
            look = METHODS[method]
            axes.plot(
                rows.value[method],
                k,
                look.marker,
                color=look.color,
                fillstyle=_filled(number),
                markersize=4,
                gid=f"{method}|{flip:g}",
            )


def _differences(
    axes: Axes, rows: pd.DataFrame, methods: list[str], number: int, count: int
) -> None:
    """Intervals of the flips of a method one below the other."""
    for k, method in enumerate(methods):
        if method not in rows.index or method == "dpo":
            continue
        look, row = METHODS[method], rows.loc[method]
        y = k if count == 1 else k + 0.4 * (number / (count - 1) - 0.5)
        axes.hlines(
            y, row.over_dpo_low_pairs, row.over_dpo_high_pairs, color=look.color, linewidth=0.9
        )
        ends = np.array([row.over_dpo_low_seeds, row.over_dpo_high_seeds])
        if np.isfinite(ends).all():
            line = Line2D(ends, [y, y], marker="|", markersize=4, linestyle="", color=look.color)
            axes.add_line(line)
        axes.plot(
            row.over_dpo,
            y,
            look.marker,
            color=look.color,
            fillstyle=_filled(number),
            markersize=3.4,
        )


FIGURES = {"held_out": figure}


def draw(source: Path, out: Path) -> list[Path]:
    """Draw held_out from the rows of `prefdro run aot-benchmark`; the paths written.

    Args:
        source: folder of `prefdro run aot-benchmark`.
        out: folder of the figure.

    Raises:
        ValueError: a table or a column is missing.
    """
    tables, run = read_tables(source, COLUMNS, "prefdro run aot-benchmark")
    with style.paper():
        drawn = [(name, make(tables["compared"], run)) for name, make in FIGURES.items()]
    return style.save_all(drawn, out)
