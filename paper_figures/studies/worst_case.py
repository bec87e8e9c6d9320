"""Figures of `prefdro run worst-case`: worst weights against the loss, transport plans, and the
worst loss against the radius.

Nothing is computed here: everything is read from values.csv, weights.parquet, moves.parquet and
run.json.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from paper_figures import style
from paper_figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, Look
from paper_figures.tables import read_tables

COLUMNS = {
    "values.csv": ("version", "ball", "radius", "value", "expected", "plain"),
    "weights.parquet": ("ball", "share", "effective", "loss", "p", "q"),
    "moves.parquet": (
        *("ball", "fraction", "radius", "mass", "distance", "flipped", "escapes", "label"),
        *("along", "across", "to_along", "to_across"),
    ),
}
_DASHED, _DOTTED = (0, (4, 1.5)), (0, (1.2, 1.2))
BALLS = {
    "kl": Look("KL", BLUE, "s"),
    "chi2": Look(r"$\chi^2$", SKY, "D"),
    "cvar": Look("CVaR", GREEN, "^"),
    "tv": Look("TV", BLACK, "o"),
    "w1-finite": Look("$W_1$, atoms", VERMILLION, ""),
    "w1-free": Look("$W_1$, free", PURPLE, ""),
    "w1-label": Look("$W_1$, labels", BLACK, ""),
    "w2-finite": Look("$W_2$, atoms", ORANGE, ""),
    "w2-free": Look("$W_2$, free", PURPLE, ""),
    "tilt": Look(r"tilt, one $\tau$", BLUE, "", _DASHED),
    "gradient": Look("gradient", GREEN, "", _DASHED),
    "gradient-step": Look(
        "its step", GREEN, "", _DOTTED
    ),  # what the step achieves, next to what the algorithm minimises
}


def look_of(ball: str) -> Look:
    """The look of a set; one that is not named here has a spare one."""
    return BALLS.get(ball) or style.look(ball)


def balls_of(rows: pd.DataFrame) -> list[str]:
    """The sets of a table, in the order of `BALLS`, then those that are not named there."""
    there = list(dict.fromkeys(rows.ball))
    return [*(ball for ball in BALLS if ball in there), *(b for b in there if b not in BALLS)]


# effective share of the sample at which weights are drawn, or the middle one if that is not there
SHARE = 0.5
# panels of the values figure: title, label of the radius, curves
PANELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("KL", r"$\rho$ (nats)", ("kl", "tilt")),
    (r"$\chi^2$", r"$\rho$", ("chi2",)),
    ("$W_1$", r"$\rho$", ("w1-label", "w1-free", "w1-finite")),
    ("CVaR", r"share $\alpha$", ("cvar",)),
    ("$W_2$", r"$\rho$", ("w2-free", "gradient-step", "gradient", "w2-finite")),
    ("total variation", r"$\rho$", ("tv",)),
)
PLANS = {
    "w1-finite": "$W_1$, between atoms",
    "w2-finite": "$W_2$, between atoms",
    "w1-label": "$W_1$, free, labels move",
    "w2-free": "$W_2$, free, labels fixed",
}


@dataclass(frozen=True)
class Study:
    """The tables of one run, and run.json."""

    values: pd.DataFrame
    weights: pd.DataFrame
    moves: pd.DataFrame
    run: dict[str, Any]


def read(source: Path) -> Study:
    """The tables in a folder.

    Raises:
        ValueError: a table or a column is missing, with the command that makes it.
    """
    tables, run = read_tables(source, COLUMNS, "prefdro run worst-case")
    return Study(**tables, run=run)


# -------------------------------------------------------------------------------- (a) worst weights
def weights(study: Study) -> Figure:
    """Worst-case weight of each pair, as a multiple of its own, against its loss; the balls at one
    effective sample size."""
    shares = sorted(study.weights.share.unique())
    share = SHARE if SHARE in shares else shares[len(shares) // 2]
    rows = study.weights[(study.weights.share == share) & (study.weights.p > 0)]
    figure, axes = style.grid(style.COLUMN, [1.75], 1, left=0.42, right=0.92, top=0.1, bottom=0.56)
    panel: Axes = axes[0, 0]
    panel.axhline(1, color=GREY, linewidth=0.5)
    ends = []
    for ball in balls_of(rows):
        curve = rows[rows.ball == ball].sort_values("loss")
        look = look_of(ball)
        ratio = curve.q / curve.p
        panel.plot(
            curve.loss, ratio, **look.line, markersize=2.6, linewidth=0.8, gid=ball, clip_on=False
        )
        ends.append((float(curve.loss.iloc[-1]), float(ratio.iloc[-1]), look.label, look))
    panel.set_xlabel("loss of the pair", labelpad=1)
    panel.set_ylabel(r"worst-case weight, $q_i/p_i$", labelpad=2)
    panel.set_ylim(0, 1.05 * max(y for _, y, _, _ in ends))
    panel.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    style.label_ends(panel, ends, offset=0.25)
    style.footnote(figure, f"Every ball leaves {100 * share:g} % of the effective sample size.")
    return figure


# ------------------------------------------------------------------------------ (b) transport plans
def transport(study: Study) -> Figure | None:
    """From where to where mass goes, in the plane of the policy's direction; label flips and mass
    sent to infinity are marked."""
    balls = [ball for ball in PLANS if ball in set(study.moves.ball)]
    if not balls:
        return None
    fractions = sorted(study.moves.fraction.unique())
    fraction = fractions[-1]
    rows = study.moves[study.moves.fraction == fraction]
    points = (
        rows.loc[~rows.escapes, ["along", "to_along"]].to_numpy(),
        rows.loc[~rows.escapes, ["across", "to_across"]].to_numpy(),
    )
    limits = [1.12 * float(np.abs(values).max()) + 0.05 for values in points]
    lines = -(-len(balls) // 2)
    panel_width = (style.COLUMN - 0.38 - 0.06 - 0.18) / 2
    height = min(max(panel_width * limits[1] / limits[0], 0.8), 2.2)
    figure, axes = style.grid(
        style.COLUMN,
        [height] * lines,
        2,
        left=0.38,
        right=0.06,
        top=0.25,
        bottom=0.82,
        gap_x=0.18,
        gap_y=0.32,
    )
    heaviest = float(rows.mass.max())
    for index, panel in enumerate(axes.flat):
        if index >= len(balls):
            panel.set_visible(False)
            continue
        plan = rows[rows.ball == balls[index]]
        panel.set(xlim=(-limits[0], limits[0]), ylim=(-limits[1], limits[1]))
        panel.set_title(PLANS[balls[index]], pad=3)
        panel.axvline(0, color=GREY, linewidth=0.5, linestyle=(0, (3, 2)))
        _pairs(panel, plan)
        _arrows(panel, plan, heaviest, 0.45 * limits[0])
        if index % 2:
            panel.set_yticklabels([])
        if index + 2 < len(balls):
            panel.set_xticklabels([])
        else:
            panel.set_xlabel("$x$ along $w$", labelpad=1)
    for row in axes:
        row[0].set_ylabel("$x$ across $w$", labelpad=1)
    _plan_key(figure, bool(rows[rows.ball.isin(balls)].escapes.any()))
    style.footnote(
        figure,
        rf"$\rho$ = {rows.radius.iloc[0]:.3g} in all panels; dashes: the policy is indifferent.",
    )
    return figure


def _pairs(axes: Axes, plan: pd.DataFrame) -> None:
    """The pairs where they start; filled where the first response was preferred."""
    for label, face in ((1, BLUE), (0, "white")):
        start = plan[plan.label == label]
        axes.plot(
            start.along,
            start.across,
            "o",
            color=BLUE,
            markerfacecolor=face,
            markersize=2.6,
            markeredgewidth=0.6,
            zorder=3,
        )


def _arrows(axes: Axes, plan: pd.DataFrame, heaviest: float, long: float) -> None:
    """A line for each move, as wide as its mass, with a head where there is room; mass that escapes
    gets a fixed length."""
    for number, move in enumerate(plan.itertuples()):
        if move.flipped and not move.escapes:
            axes.plot(
                move.along,
                move.across,
                "x",
                color=VERMILLION,
                markersize=4.2,
                markeredgewidth=1.0,
                zorder=4,
                gid=f"flip {number}",
            )
        change = np.array([move.to_along - move.along, move.to_across - move.across])
        length = float(np.hypot(*change))
        if length < 1e-9:
            continue
        end = np.array([move.along, move.across]) + change * (
            long / length if move.escapes else 1.0
        )
        room = move.escapes or length > 0.2 * long
        axes.annotate(
            "",
            xy=tuple(end),
            xytext=(move.along, move.across),
            arrowprops={
                "arrowstyle": "->,head_length=0.18,head_width=0.1" if room else "-",
                "color": GREY if move.escapes else VERMILLION if move.flipped else BLACK,
                "lw": 0.4 if move.escapes else 0.4 + 0.6 * move.mass / heaviest,
                "linestyle": _DOTTED if move.escapes else "-",
                "shrinkA": 0,
                "shrinkB": 0,
            },
            zorder=2,
            gid=f"move {number}",
        )


def _plan_key(figure: Figure, escapes: bool) -> None:
    dots: dict[str, Any] = {
        "linestyle": "",
        "marker": "o",
        "color": BLUE,
        "markersize": 2.6,
        "markeredgewidth": 0.6,
    }
    entries = [
        (Line2D([], [], **dots), "first preferred"),
        (Line2D([], [], markerfacecolor="white", **dots), "second preferred"),
        (Line2D([], [], linestyle="", marker="x", color=VERMILLION, markersize=4.2), "label flips"),
    ]
    if escapes:
        entries.append(
            (
                Line2D([], [], color=GREY, linewidth=0.7, linestyle=_DOTTED),
                "a share goes to infinity",
            )
        )
    height = figure.get_size_inches()[1]
    figure.legend(
        *zip(*entries, strict=True),
        loc="lower left",
        bbox_to_anchor=(0.02, 0.17 / height),
        ncols=2,
        handlelength=1.4,
        columnspacing=1.2,
        labelspacing=0.25,
        borderaxespad=0,
    )


# ------------------------------------------------------------------------- (c) value against radius
def values(study: Study) -> Figure:
    """Worst expected loss against the radius, one panel for each family of balls; the tractable
    versions are dashed."""
    step = study.values[study.values.ball == "gradient"].assign(
        ball="gradient-step", value=lambda rows: rows.expected
    )
    rows = pd.concat([study.values, step])
    panels = [
        (title, label, [c for c in curves if c in set(rows.ball)])
        for title, label, curves in PANELS
    ]
    named = {curve for _, _, curves in PANELS for curve in curves}
    panels = [panel for panel in panels if panel[2]]
    panels += [(ball, "size", [ball]) for ball in balls_of(rows) if ball not in named]
    lines = -(-len(panels) // 2)
    figure, axes = style.grid(
        style.COLUMN,
        [0.95] * lines,
        2,
        left=0.36,
        right=0.12,
        top=0.22,
        bottom=0.52,
        gap_x=0.96,
        gap_y=0.52,
    )
    plain = float(rows.plain.iloc[0])
    for panel, (title, label, curves) in zip(axes.flat, panels, strict=False):
        panel.axhline(plain, color=GREY, linewidth=0.5)
        ends = []
        for ball in curves:
            curve = rows[rows.ball == ball].sort_values(
                "radius", ascending=ball != "cvar"
            )  # a smaller share is a larger ball
            look = replace(look_of(ball), marker="")
            panel.plot(curve.radius, curve.value, **look.line, gid=ball)
            ends.append(
                (float(curve.radius.iloc[-1]), float(curve.value.iloc[-1]), look.label, look)
            )
        panel.set_title(title, pad=3)
        panel.set_xlabel(label, labelpad=1)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
        panel.margins(x=0)
        if curves == ["cvar"]:
            panel.set_xlim(1, 0)
        if len(ends) > 1:
            style.label_ends(panel, ends, offset=0.14)
    for panel in axes.flat[len(panels) :]:
        panel.set_visible(False)
    for row in axes:
        row[0].set_ylabel("worst loss", labelpad=2)
    style.footnote(figure, "Grey: mean loss. Dashed: what the algorithms compute.")
    return figure


# ------------------------------------------------------------------------------------------ drawing
FIGURES: dict[str, Callable[[Study], Figure | None]] = {
    "worst_weights": weights,
    "worst_transport": transport,
    "worst_values": values,
}


def draw(source: Path, out: Path) -> list[Path]:
    """Draw every figure that the tables in `source` allow, as PDF and PNG; returns the paths
    written.

    Args:
        source: folder of `prefdro run worst-case`.
        out: folder of the figures.

    Raises:
        ValueError: a table or a column is missing.
    """
    study = read(source)
    return style.save_all(((name, make(study)) for name, make in FIGURES.items()), out)
