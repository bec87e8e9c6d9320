"""Fig. 3 of arXiv:2502.01930: five objectives as the spokes of a radar, for three training pairs,
DPO against WDPO and KLDPO.

Every spoke has its own scale, the same in all three radars: the two numbers at its end, the smaller
at the inner ring and the larger at the outer one. Whiskers are 95 % intervals over seeds; methods
stand beside one another on a spoke to keep them apart.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paper_figures import style
from paper_figures.paper.published import setup
from paper_figures.studies import policies
from paper_figures.studies.policies import METHODS
from paper_figures.style import Look
from paper_figures.tables import read_tables, study_folder

COLUMNS = {
    "axes.csv": (
        "pair",
        "method",
        "radius",
        "beta",
        "objective",
        "reward",
        "reward_low",
        "reward_high",
        "kl",
        "seeds",
    )
}
INNER, OUTER, RINGS = (
    0.25,
    1.0,
    3,
)  # radius of the smaller and the larger end of every scale; rings between and at them
APART = 0.032  # between methods on one spoke, in units of the outer ring


def chosen(rows: pd.DataFrame, beta: float) -> list[tuple[str, Look, pd.DataFrame]]:
    """What is drawn: the start, DPO at the common beta, and each robust method at the middle of its
    radii."""
    found = []
    for method in ("start", "dpo", "wdpo", "kldpo"):
        mine = rows[rows.method == method]
        if method != "start":
            mine = mine[np.isclose(mine.beta, beta)]
        if mine.empty:
            continue
        radii = sorted(mine.radius.unique())
        radius = radii[len(radii) // 2]
        found.append((policies.name(method, radius), METHODS[method], mine[mine.radius == radius]))
    return found


def scales(
    tables: Sequence[pd.DataFrame], objectives: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """The two ends of each spoke: round numbers that hold every interval, or every mean where an
    interval is far wider."""
    rows = pd.concat(tables)
    ends = {}
    for objective in objectives:
        mine = rows[rows.objective == objective]
        low, high = policies.limits([mine], pad=0.0)
        step = 10 ** math.floor(math.log10(max(high - low, 1e-9)))
        step = step / 2 if (high - low) / step < 4 else step
        ends[objective] = (
            math.floor(round(low / step, 9)) * step,
            math.ceil(round(high / step, 9)) * step,
        )
    return ends


def figure(axes: pd.DataFrame, run: dict[str, Any]) -> Figure:
    """One radar for each pair of `radar_pairs`, over the objectives `axes` of the run."""
    objectives, pairs = (
        list(run["axes"]),
        [pair for pair in run["radar_pairs"] if pair in set(axes.pair)],
    )
    shown = {pair: chosen(axes[axes.pair == pair], float(run["beta"])) for pair in pairs}
    ends = scales([table for lines in shown.values() for _, _, table in lines], objectives)
    paper = setup("armorm")
    notes = [
        (
            f"{policies.scale(run)}. Whiskers: 95 % over seeds. Each spoke runs from its first"
            " number, at the inner ring, to its second, at the outer one, the same in every radar;"
            f" beta = {run['beta']:g}."
        ),
        policies.distances(
            pd.concat([table for lines in shown.values() for _, _, table in lines]),
            float(run["beta"]),
        ),
        (
            "The paper (Fig. 3): LLaMA-3.2-1B, ArmoRM;"
            f" {'; '.join(' + '.join(pair) for pair in paper['figure3_pairs'])}; over"
            f" {', '.join(paper['figure3_axes'])}; no numbers of it are at hand."
        ),
    ]
    side = (style.PAGE - 0.1) / 3 * 2.8 / 3.0
    below = 0.28 + policies.room_for(notes, style.PAGE)
    drawing, panels = style.grid(
        style.PAGE, [side], 3, left=0.05, right=0.05, top=0.24, bottom=below, gap_x=0.0
    )
    for panel in panels[0, len(pairs) :]:
        panel.set_visible(False)
    for panel, pair in zip(panels[0], pairs, strict=False):
        _radar(panel, objectives, ends, shown[pair])
        panel.set_title(f"trained on {pair}", loc="center", pad=2)
    looks = {label: look for lines in shown.values() for label, look, _ in lines}
    handles = [
        Line2D([], [], **look.line, label=label, markersize=4) for label, look in looks.items()
    ]
    place = (0.5, (below - 0.04) / drawing.get_size_inches()[1])
    drawing.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=place,
        ncols=len(handles),
        handlelength=2.6,
    )
    policies.small_print(drawing, notes)
    return drawing


def _radar(
    axes: Axes,
    objectives: Sequence[str],
    ends: dict[str, tuple[float, float]],
    lines: Sequence[tuple[str, Look, pd.DataFrame]],
) -> None:
    angles = np.pi / 2 - 2 * np.pi * np.arange(len(objectives)) / len(
        objectives
    )  # the first at the top, then clockwise
    spokes = np.stack([np.cos(angles), np.sin(angles)], -1)
    across = np.stack([np.sin(angles), -np.cos(angles)], -1)
    axes.set(xlim=(-1.5, 1.5), ylim=(-1.3, 1.5), aspect="equal", anchor="N")
    axes.axis("off")
    for ring in np.linspace(INNER, OUTER, RINGS):
        corners = np.concatenate([ring * spokes, ring * spokes[:1]])
        axes.plot(*corners.T, color="#C8C8C8", linewidth=0.5, zorder=0)
    for spoke, objective in zip(spokes, objectives, strict=True):
        low, high = ends[objective]
        axes.plot(
            *np.stack([INNER * spoke, OUTER * spoke]).T, color="#C8C8C8", linewidth=0.5, zorder=0
        )
        above = spoke[1] > -0.2
        place = (1.12 * spoke[0], spoke[1] + (0.1 if above else -0.08))
        text = f"{_broken(objective)}\n{low:g} to {high:g}"
        axes.text(
            *place, text, ha="center", va="bottom" if above else "top", fontsize=7, linespacing=1.0
        )
    for index, (label, look, table) in enumerate(lines):
        values = table.set_index("objective").reindex(objectives)
        low, high = np.array([ends[objective] for objective in objectives]).T
        shift = (index - (len(lines) - 1) / 2) * APART * across
        at = {
            name: _radius(values[name], low, high)[:, None] * spokes + shift
            for name in ("reward", "reward_low", "reward_high")
        }
        for down, up in zip(at["reward_low"], at["reward_high"], strict=True):
            axes.plot(
                *np.stack([down, up]).T,
                color=look.color,
                linewidth=0.7,
                zorder=2,
                gid=f"{label}|interval",
            )
        closed = np.concatenate([at["reward"], at["reward"][:1]])
        axes.plot(*closed.T, **replace(look, marker="").line, linewidth=0.9, zorder=2)
        axes.plot(
            *at["reward"].T, look.marker, color=look.color, markersize=2.6, zorder=3, gid=label
        )


def _radius(values: pd.Series, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """From the unit of the spoke to the radius; what is off the scale ends a little outside it."""
    share = (values.to_numpy(dtype=float) - low) / (high - low)
    return INNER + (OUTER - INNER) * np.clip(share, -0.1, 1.06)


def _broken(objective: str) -> str:
    return objective.replace("-", "-\n", 1) if len(objective) > 12 else objective


def draw(source: Path, out: Path) -> list[Path]:
    """Draw wdpo_fig3 from the rows of `prefdro run armorm`; the paths written.

    Args:
        source: the folder that holds the studies' folders, or the study's own.
        out: folder of the figures.

    Raises:
        ValueError: a table or a column is missing, or none of the pairs has rows.
    """
    folder = study_folder(source, "armorm")
    tables, run = read_tables(folder, COLUMNS, "prefdro run armorm")
    if not set(run["radar_pairs"]) & set(tables["axes"].pair):
        raise ValueError(
            f"{folder / 'axes.csv'} has rows of none of the pairs {', '.join(run['radar_pairs'])}"
            " of run.json."
        )
    with style.paper():
        drawn = figure(tables["axes"], run)
    return style.save_all([("wdpo_fig3", drawn)], out)
