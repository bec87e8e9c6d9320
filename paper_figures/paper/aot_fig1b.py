"""Fig. 1b of arXiv:2406.05882: quantiles of the log-likelihood ratio, chosen to rejected, against
the base model."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.paper.aot_fig1a import COLUMNS, quantile_curves
from paper_figures.studies import policies
from paper_figures.tables import read_tables, study_folder

SHOWN = ("start", "aot", "aot_unpaired", "dpo", "kto", "ipo")


def figure(quantiles: pd.DataFrame, run: dict[str, Any]) -> Figure:
    """Quantile functions of log pi(chosen)/pi(rejected), of every method and of the model before
    training."""
    table = quantiles[quantiles.quantity == "log_ratio"].rename(columns={"value": "shown"})
    notes = [
        f"{policies.scale(run)}. Bands: 95 % over seeds; beta = {run['beta']:g}. The paper (Fig."
        " 1b) has a 7B model and UltraFeedback; no numbers of it are at hand."
    ]
    below = 0.36 + policies.room_for(notes, style.COLUMN)
    drawn, axes = style.grid(style.COLUMN, [2.0], 1, left=0.55, right=1.05, bottom=below)
    panel = axes[0, 0]
    panel.axhline(0, color=style.GREY, linewidth=0.7, zorder=0)
    quantile_curves(panel, table, SHOWN)
    panel.set_title("log-likelihood ratio, chosen to rejected")
    panel.set_ylabel(r"$\log\,\pi(y_+)/\pi(y_-)$, nats", labelpad=2)
    panel.set_xlabel("level $t$", labelpad=1)
    policies.small_print(drawn, notes)
    return drawn


def draw(source: Path, out: Path) -> list[Path]:
    """Draw aot_fig1b from the rows of `prefdro run aot-benchmark`; the paths written.

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
    return style.save_all([("aot_fig1b", drawn)], out)
