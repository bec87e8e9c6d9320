"""Fig. 1a of arXiv:2406.05882: quantiles of the rewards of chosen and rejected responses, AOT
against KTO and DPO."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paper_figures import style
from paper_figures.studies import policies
from paper_figures.studies.policies import METHODS
from paper_figures.style import Look
from paper_figures.tables import read_tables, study_folder

COLUMNS = {"quantiles.csv": ("method", "seed", "quantity", "level", "value")}
SHOWN = ("aot", "aot_unpaired", "kto", "dpo")  # those of the paper's figure
PANELS = {
    "chosen": "chosen",
    "rejected": "rejected",
    "gap": "chosen minus rejected, at equal level",
}


def figure(quantiles: pd.DataFrame, run: dict[str, Any]) -> Figure:
    """Quantile functions of both sides, and the gap between them: where it is below 0, chosen do
    not dominate rejected."""
    wide = quantiles.pivot_table(
        index=["method", "seed", "level"], columns="quantity", values="value"
    ).reset_index()
    wide = wide.assign(gap=wide.chosen - wide.rejected)
    notes = [
        f"{policies.scale(run)}. Bands: 95 % over seeds; beta = {run['beta']:g}. The paper (Fig."
        " 1a) has a 7B model and UltraFeedback; no numbers of it are at hand."
    ]
    below = 0.36 + policies.room_for(notes, style.COLUMN)
    drawn, axes = style.grid(
        style.COLUMN, [1.35] * 3, 1, left=0.45, right=1.05, bottom=below, gap_y=0.4
    )
    for panel, (quantity, title) in zip(axes[:, 0], PANELS.items(), strict=True):
        if quantity == "gap":
            panel.axhline(0, color=style.GREY, linewidth=0.7, zorder=0)
        quantile_curves(panel, wide.rename(columns={quantity: "shown"}), SHOWN)
        panel.set_title(title)
        panel.set_ylabel(r"$\log\,\pi/\pi_{\rm ref}$, nats", labelpad=2)
    axes[-1, 0].set_xlabel("level $t$", labelpad=1)
    policies.small_print(drawn, notes)
    return drawn


def quantile_curves(axes: Axes, table: pd.DataFrame, methods: tuple[str, ...]) -> None:
    """Mean over seeds of the column `shown` against the level, with 95 % intervals, named at the
    right."""
    ends: list[tuple[float, float, str, Look]] = []
    curves = []
    for method in methods:
        mine = table[table.method == method].dropna(subset=["shown"])
        if mine.empty:
            continue
        band = policies.interval(mine.pivot(index="level", columns="seed", values="shown"))
        look = METHODS[method]
        axes.fill_between(
            band.index, band.low, band.high, color=look.color, alpha=0.12, linewidth=0
        )
        every = max(len(band) // 6, 1)
        axes.plot(
            band.index, band["mean"], **look.line, markersize=2.6, markevery=every, gid=method
        )
        ends.append(
            (
                float(band.index[-1]),
                float(band["mean"].iloc[-1]),
                look.label,
                replace(look, dashes="-"),
            )
        )
        curves.append(
            band.rename(columns={"mean": "reward", "low": "reward_low", "high": "reward_high"})
        )
    axes.set(xlim=(0, 1), ylim=policies.limits(curves))
    axes.set_xticks(np.linspace(0, 1, 5), ["0", "0.25", "0.5", "0.75", "1"])
    axes.yaxis.set_major_locator(MaxNLocator(4))
    style.label_ends(axes, ends)


def draw(source: Path, out: Path) -> list[Path]:
    """Draw aot_fig1a from the rows of `prefdro run aot-benchmark`; the paths written.

    Args:
        source: the folder that holds the studies' folders, or the study's own.
        out: folder of the figures.

    Raises:
        ValueError: a table or a column is missing.
    """
    tables, run = read_tables(
        study_folder(source, "aot-benchmark"), COLUMNS, "prefdro run aot-benchmark"
    )
    with style.paper():
        drawn = figure(tables["quantiles"], run)
    return style.save_all([("aot_fig1a", drawn)], out)
