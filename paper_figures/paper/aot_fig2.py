"""Fig. 2 of arXiv:2406.05882: effect of beta, of the batch size, of the loss h, and of hard against
soft sorting on AOT."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from paper_figures import style
from paper_figures.studies import policies
from paper_figures.studies.policies import METHODS
from paper_figures.tables import read_tables, says, study_folder

COLUMNS = {"ablations.csv": ("axis", "value", "method", "seed", "win_rate", "kl")}
AXES = {"beta": r"$\beta$", "batch_size": "batch size", "h": "loss $h$", "sorting": "sorting"}
MEASURES = {"win_rate": "win rate", "kl": "KL to the start"}
SHORT = {
    "least squares": "squares",
    "squared hinge": "hinge²",
    "least_squares": "squares",
    "squared_hinge": "hinge²",
}
_APART = 0.16  # between methods at one value


def figure(ablations: pd.DataFrame, run: dict[str, Any]) -> Figure:
    """Columns: beta, batch size, h, sorting; rows: win rate and KL. Only what the column names
    differs within it."""
    shown = [axis for axis in AXES if axis in set(ablations.axis)]
    methods = [name for name in METHODS if name in set(ablations.method)]
    notes = [
        (
            f"{policies.scale(run)}. Bars: 95 % over seeds; where not varied beta ="
            f" {run['beta']:g}. KL in nats per completion. Win rate: over the start, one completion"
            " of each test prompt from the same random numbers, ties half. All runs have the same"
            " epochs: smaller batches take more steps. Of hinge² and squares beta is the margin,"
            " not the slope."
        ),
        "The paper (Fig. 2) has a 7B model and UltraFeedback; no numbers of it are at hand.",
    ]
    below = 0.64 + policies.room_for(notes, style.PAGE)
    drawn, axes = style.grid(
        style.PAGE,
        [1.2, 1.0],
        len(shown),
        left=0.45,
        right=0.05,
        top=0.25,
        bottom=below,
        gap_x=0.22,
        gap_y=0.16,
    )
    for line, (measure, label) in enumerate(MEASURES.items()):
        low, high = math.inf, -math.inf
        for panel, axis in zip(axes[line], shown, strict=True):
            edges = _panel(panel, ablations[ablations.axis == axis], measure, methods)
            low, high = min(low, edges[0]), max(high, edges[1])
            panel.tick_params(labelbottom=line == len(MEASURES) - 1)
            if line == 0:
                panel.set_title(AXES[axis])
        pad = 0.05 * (high - low)
        for panel in axes[line]:
            panel.set_ylim(low - pad, high + pad)
            panel.tick_params(labelleft=panel is axes[line, 0])
            panel.yaxis.set_major_locator(MaxNLocator(4))
        axes[line, 0].set_ylabel(label, labelpad=2)
    handles = [
        Line2D([], [], **METHODS[name].line, label=METHODS[name].label, markersize=4)
        for name in methods
    ]
    place = (0.5, (below - 0.34) / drawn.get_size_inches()[1])
    drawn.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=place,
        ncols=len(handles),
        handlelength=2.6,
    )
    policies.small_print(drawn, notes)
    return drawn


def _panel(axes: Axes, rows: pd.DataFrame, measure: str, methods: list[str]) -> tuple[float, float]:
    """Draw one panel; the limits of what is in it."""
    values = sorted(dict.fromkeys(rows.value), key=_order)
    edges = []
    for i, method in enumerate(methods):
        mine = rows[rows.method == method]
        if mine.empty:
            continue
        look = METHODS[method]
        band = policies.interval(mine.pivot(index="value", columns="seed", values=measure)).reindex(
            values
        )
        places = [k + (i - (len(methods) - 1) / 2) * _APART for k in range(len(values))]
        axes.vlines(places, band.low, band.high, color=look.color, linewidth=0.8)
        numbers = all(math.isfinite(_order(value)[0]) for value in values)
        line: dict[str, Any] = {"linestyle": look.dashes if numbers else "", "linewidth": 0.7}
        axes.plot(
            places,
            band["mean"],
            marker=look.marker,
            color=look.color,
            markersize=3,
            gid=method,
            **line,
        )
        edges += [x for x in band.to_numpy().ravel() if math.isfinite(x)]
    names = [SHORT.get(value, value) for value in values]
    turned = max(map(len, names)) > 6
    axes.set_xticks(
        range(len(values)), names, rotation=25 if turned else 0, ha="right" if turned else "center"
    )
    axes.set_xlim(-0.5, len(values) - 0.5)
    return min(edges), max(edges)


def _order(value: str) -> tuple[float, float]:
    """Numbers by size, then words as they stand, then those with a number at the end (`soft 0.1`)
    by it."""
    words = str(value).split()
    try:
        number = float(words[-1])
    except ValueError:
        return math.inf, -math.inf
    return (number, 0.0) if len(words) == 1 else (math.inf, number)


def draw(source: Path, out: Path) -> list[Path]:
    """Draw aot_fig2 from the rows of `prefdro run aot-benchmark`; the paths written, none where
    nothing was varied for want of a reward model.

    Args:
        source: the folder that holds the studies' folders, or the study's own.
        out: folder of the figures.

    Raises:
        ValueError: a table or a column is missing.
    """
    folder = study_folder(source, "aot-benchmark")
    if says(folder, score=None):  # no reward model, so no win rates
        return []
    tables, run = read_tables(folder, COLUMNS, "prefdro run aot-benchmark", text=("value",))
    with style.paper():
        drawn = figure(tables["ablations"], run)
    return style.save_all([("aot_fig2", drawn)], out)
