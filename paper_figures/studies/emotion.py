"""Figures of `prefdro run emotion`: reward against alpha, worst reward against KL, and differences
at equal KL.

Nothing is computed from samples here: everything is read from rewards.parquet, summary.csv,
matched.csv and run.json. Curves are drawn at the middle radius of each method; points and tables
have all radii.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paper_figures import style
from paper_figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, Look
from paper_figures.tables import read_tables

_FIT = ("setting", "method", "radius", "beta")
COLUMNS = {
    "rewards.parquet": (*_FIT, "seed", "step", "alpha", "reward", "kl"),
    "summary.csv": (
        *_FIT,
        "step",
        "final",
        "alpha",
        "reward",
        "reward_low",
        "reward_high",
        "kl",
        "seeds",
    ),
    "matched.csv": (*_FIT, "control", "alpha", "difference", "low", "high", "seeds", "outside"),
}
METHODS = {
    "dpo": Look("DPO", BLACK, "o"),
    "wdpo": Look("WDPO", VERMILLION, "^"),
    "kldpo": Look("KLDPO", BLUE, "s"),
    "dr_dpo": Look("Dr. DPO", GREEN, "P"),
    "aot": Look("AOT", PURPLE, "D"),
    "ipo": Look("IPO", ORANGE, "v"),
}
KNOBS = {"wdpo": r"$\rho$", "kldpo": r"$\tau$", "dr_dpo": "$b$"}
TITLES = {
    "convex": "convex mixture",
    "geometric": "geometric mixture",
    "groups": "groups of annotators",
}
CONTROLS = {"beta": "DPO with larger $\\beta$", "stopped": "DPO stopped earlier"}
_DASHED, _DOTTED = (0, (4, 1.5)), (0, (1.2, 1.2))


@dataclass(frozen=True)
class Study:
    """The tables of one run; its settings in the order of the run, and the weight alpha_o of the
    first reward in the labels."""

    rows: pd.DataFrame
    summary: pd.DataFrame
    matched: pd.DataFrame
    settings: tuple[str, ...]
    train: float
    minority: float

    @property
    def beta(self) -> float:
        """beta of all methods; the DPO runs of the control have larger ones."""
        return float(self.rows.beta[self.rows.method == "dpo"].min())

    @property
    def robust(self) -> list[str]:
        """The other methods than DPO that are there."""
        return [method for method in METHODS if method != "dpo" and method in set(self.rows.method)]

    def middle(self, method: str) -> float:
        """The middle radius of a method, the upper of two."""
        radii = sorted(self.rows.radius[self.rows.method == method].unique())
        return float(radii[len(radii) // 2])


def read(source: Path) -> Study:
    """The tables in a folder.

    Raises:
        ValueError: a table or a column is missing, with the command that makes it.
    """
    tables, run = read_tables(
        source, COLUMNS, "prefdro run emotion", text=("alpha",), may_be_empty=("matched.csv",)
    )
    rows = tables["rewards"]
    settings = tuple(name for name in TITLES if name in set(rows.setting))
    profile = run.get("profile", {})
    return Study(
        rows,
        tables["summary"],
        tables["matched"],
        settings,
        float(profile.get("alpha", np.nan)),
        float(run["minority_share"]),
    )


# -------------------------------------------------------------------------------- (1) reward curves
def rewards(study: Study) -> Figure:
    """Expected reward against alpha at the end of the training, with 95 % intervals over seeds; as
    Fig. 2, arXiv:2502.01930."""
    figure, axes = style.grid(
        style.COLUMN, [1.25] * len(study.settings), 1, left=0.5, right=1.0, bottom=0.72, gap_y=0.62
    )
    final = study.summary[study.summary.final & ~study.summary.alpha.isin(["worst", "mean"])]
    final = final.assign(alpha=final.alpha.astype(float))
    for panel, setting in zip(axes[:, 0], study.settings, strict=True):
        mine = final[final.setting == setting]
        ends: list[tuple[float, float, str, Look]] = []
        panel.axvline(
            study.minority if setting == "groups" else study.train,
            color=style.PALE,
            linewidth=2,
            zorder=0,
        )
        start = mine[mine.method == "sft"].sort_values("alpha")
        panel.plot(start.alpha, start.reward, color=GREY, linestyle=_DASHED, gid="sft")
        ends.append((1.0, float(start.reward.iloc[-1]), "start (SFT)", Look("", GREY, "", _DASHED)))
        for method in ["dpo", *study.robust]:
            part = mine[(mine.method == method) & (mine.beta == study.beta)]
            radius = 0.0 if method == "dpo" else study.middle(method)
            part = part[part.radius == radius].sort_values("alpha")
            look = METHODS[method]
            panel.plot(part.alpha, part.reward, color=look.color, gid=method)
            panel.fill_between(
                part.alpha,
                part.reward_low,
                part.reward_high,
                color=look.color,
                alpha=0.13,
                linewidth=0,
            )
            ends.append(
                (1.0, float(part.reward.iloc[-1]), _name(method, radius), Look("", look.color, ""))
            )
        panel.set(xlim=(0, 1), title=TITLES[setting], ylabel="expected reward")
        panel.set_ylim(
            max(panel.get_ylim()[0], 0.0), min(panel.get_ylim()[1], 1.0)
        )  # where rewards can be
        panel.set_xlabel(
            (
                r"test share of the minority"
                if setting == "groups"
                else r"test weight $\alpha$ of anger; $1-\alpha$ of fear"
            ),
            labelpad=1,
        )
        panel.yaxis.set_major_locator(MaxNLocator(4))
        style.label_ends(panel, ends)
    style.footnote(figure, "Bands: 95 % over seeds. Grey bar: the mixture of the training.")
    return figure


# ------------------------------------------------------------------------------------- (2) frontier
def frontier(study: Study) -> Figure:
    """Worst reward over alpha against the KL to the start: both DPO controls as lines, every seed
    of every method as a point."""
    figure, axes = style.grid(
        style.COLUMN, [1.35] * len(study.settings), 1, left=0.5, right=1.0, bottom=0.72, gap_y=0.45
    )
    table = worst(study.rows)
    for panel, setting in zip(axes[:, 0], study.settings, strict=True):
        mine = table[table.setting == setting]
        start, dpo = mine[mine.method == "sft"], mine[mine.method == "dpo"]
        lines = {"beta": dpo[dpo.final], "stopped": dpo[dpo.beta == study.beta]}
        ends: list[tuple[float, float, str, Look]] = []
        for control, dashes in (("beta", "-"), ("stopped", _DOTTED)):
            curve = pd.concat([start.assign(beta=np.inf), lines[control]])
            panel.plot(curve.kl, curve.worst, ".", color=GREY, markersize=2, alpha=0.6, zorder=1)
            means = curve.groupby(["beta", "checkpoint"])[["kl", "worst"]].mean().sort_values("kl")
            panel.plot(means.kl, means.worst, color=BLACK, linestyle=dashes, gid=control, zorder=2)
            if control == "beta":
                ends.append(
                    (
                        float(means.kl.iloc[-1]),
                        float(means.worst.iloc[-1]),
                        "DPO",
                        Look("", BLACK, ""),
                    )
                )
        for method in study.robust:
            part = mine[(mine.method == method) & mine.final]
            look = METHODS[method]
            panel.plot(
                part.kl,
                part.worst,
                look.marker,
                color=look.color,
                markersize=2,
                alpha=0.5,
                markeredgewidth=0,
                gid=f"{method}|seeds",
            )
            centre = part.groupby("radius")[["kl", "worst"]].mean()
            panel.plot(
                centre.kl,
                centre.worst,
                look.marker,
                color=look.color,
                markersize=4,
                gid=method,
                zorder=3,
            )
            last = centre.iloc[-1]
            ends.append(
                (
                    float(last.kl),
                    float(last.worst),
                    look.label,
                    Look("", look.color, look.marker, ""),
                )
            )
        panel.set(
            title=TITLES[setting],
            ylabel="worst group" if setting == "groups" else r"worst over $\alpha$",
        )
        panel.set_xlim(left=min(0.0, float(mine.kl.min())))
        panel.yaxis.set_major_locator(MaxNLocator(4))
        style.label_ends(panel, ends)
    axes[-1, 0].set_xlabel("KL to the start, nats per completion", labelpad=1)
    style.footnote(
        figure,
        "Reward at the end of the training; small: single seeds, large: their mean at each\n"
        "radius. Solid: DPO with larger $\\beta$; dotted: DPO stopped earlier.",
    )
    return figure


def worst(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each evaluation: its worst reward over alpha, its KL, its number within its run
    and whether it was the last."""
    keys = [*_FIT, "seed", "step"]
    table = (
        rows.groupby(keys, sort=False)
        .agg(worst=("reward", "min"), kl=("kl", "first"))
        .reset_index()
    )
    step = table.groupby(keys[:-1]).step  # which differ by a few between seeds
    return table.assign(
        checkpoint=step.rank(method="dense"), final=table.step == step.transform("max")
    )


# -------------------------------------------------------------------------------------- (3) matched
def matched(study: Study) -> Figure | None:
    """Worst reward minus that of DPO at the same KL to the start, for every setting, method and
    radius, with 95 % intervals."""
    table = study.matched[study.matched.alpha == "worst"]
    if table.empty:
        return None
    lines = [
        (method, radius)
        for method in study.robust
        for radius in sorted(table.radius[table.method == method].unique())
    ]
    step, gap = 0.13, 0.08  # inches
    height = len(study.settings) * ((len(lines) + 1) * step + gap)
    figure, axes = style.grid(
        style.COLUMN, [height], 2, left=0.95, right=0.08, top=0.3, bottom=0.72, gap_x=0.15
    )
    reach = (
        table[["low", "high", "difference"]].replace([np.inf, -np.inf], np.nan).abs().max(axis=None)
    )
    reach = 1.1 * float(reach) if np.isfinite(reach) and reach > 0 else 1.0
    for panel, control in zip(axes[0], CONTROLS, strict=True):
        y, ticks = 0.0, []
        for setting in study.settings:
            if control == "beta":
                panel.text(
                    -reach,
                    y,
                    f" {TITLES[setting]}",
                    va="center",
                    color=GREY,
                    bbox={"color": "white", "pad": 0.5},
                )
            y -= step
            for method, radius in lines:
                ticks.append((y, _name(method, radius)))
                row = table[
                    (table.setting == setting)
                    & (table.method == method)
                    & (table.radius == radius)
                    & (table.control == control)
                ]
                _difference(panel, row, y, METHODS[method], reach, f"{setting}|{method}|{radius:g}")
                y -= step
            y -= gap
        panel.axvline(0, color=GREY, linewidth=0.7, zorder=0)
        panel.spines["left"].set_visible(False)
        panel.set(xlim=(-reach, reach), ylim=(y + gap, step))
        panel.xaxis.set_major_locator(MaxNLocator(3, symmetric=True))
        panel.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
        panel.tick_params(axis="y", length=0, labelleft=control == "beta")
        panel.set_title("to " + CONTROLS[control])
    width, tall = figure.get_size_inches()
    figure.text(
        0.95 / width,
        (0.72 - 0.25) / tall,
        "worst reward minus that of DPO at equal KL\n(right of 0: the method is better)",
        va="top",
    )
    style.footnote(figure, "95 % over seeds; filled: 0 is outside. Cross: no control at that KL.")
    return figure


def _difference(
    panel: Axes, row: pd.DataFrame, y: float, look: Look, reach: float, gid: str
) -> None:
    middle = float(row.difference.iloc[0]) if len(row) else math.nan
    if not math.isfinite(middle):
        panel.plot(0.9 * reach, y, "x", color=GREY, markersize=3, gid=gid)
        return
    low, high = float(row.low.iloc[0]), float(row.high.iloc[0])
    if math.isfinite(low):
        panel.hlines(y, low, high, color=look.color, linewidth=0.8)
    face = look.color if math.isfinite(low) and not low <= 0 <= high else "white"
    panel.plot(
        middle, y, look.marker, color=look.color, markersize=3, markerfacecolor=face, gid=gid
    )


def _name(method: str, radius: float) -> str:
    return METHODS[method].label + (f", {KNOBS[method]} = {radius:g}" if method in KNOBS else "")


# --------------------------------------------------------------------------------------- summary.md
def summary(study: Study, run: dict[str, Any] | None = None) -> str:
    """Markdown: worst reward and KL at the end of the training, and the differences at equal KL."""
    lines = [
        "# Emotion alignment",
        "",
        (
            "Worst reward over alpha (in the setting groups: of the worst group) and KL to the"
            " start in nats, at the end of the training; then the worst reward minus that of DPO at"
            " the same KL, as mean over seeds [95 % t interval] (seeds within the KL of the"
            " control). Above 0 the method is better."
        ),
        "",
        "| setting | method | beta | worst reward | KL | to larger beta | to stopped earlier |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    final = study.summary[study.summary.final & (study.summary.alpha == "worst")]
    differences = study.matched[study.matched.alpha == "worst"]
    for setting in study.settings:
        for method in ["sft", "dpo", *study.robust]:
            for row in (
                final[(final.setting == setting) & (final.method == method)]
                .sort_values(["radius", "beta"])
                .itertuples()
            ):
                name = "start (SFT)" if method == "sft" else _plain(method, row.radius)
                cells = [
                    _cell(
                        differences[
                            (differences.setting == setting)
                            & (differences.method == method)
                            & (differences.radius == row.radius)
                            & (differences.control == control)
                        ]
                    )
                    for control in CONTROLS
                ]
                reward = f"{row.reward:.3f} [{row.reward_low:.3f}, {row.reward_high:.3f}]"
                beta = "" if method == "sft" else f"{row.beta:g}"
                lines.append(
                    f"| {setting} | {name} | {beta} | {reward} | {row.kl:.2f} |"
                    f" {' | '.join(cells)} |"
                )
    return "\n".join(lines) + "\n"


def _plain(method: str, radius: float) -> str:
    knob = KNOBS.get(method, "").strip("$").strip("\\")
    return METHODS[method].label + (f", {knob} = {radius:g}" if knob else "")


def _cell(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    row = rows.iloc[0]
    if not row.seeds:
        return "outside"
    interval = f" [{row.low:+.3f}, {row.high:+.3f}]" if math.isfinite(row.low) else ""
    return f"{row.difference:+.3f}{interval} ({row.seeds})"


# ------------------------------------------------------------------------------------------ drawing
FIGURES: dict[str, Callable[[Study], Figure | None]] = {
    "rewards": rewards,
    "frontier": frontier,
    "matched": matched,
}


def draw(source: Path, out: Path) -> list[Path]:
    """Draw every figure from the tables in `source`, as PDF and PNG, and summary.md; returns the
    paths written.

    Args:
        source: folder of `prefdro run emotion`.
        out: folder of the figures.

    Raises:
        ValueError: a table or a column is missing.
    """
    study = read(source)
    figures = ((name, make(study)) for name, make in FIGURES.items())
    return style.save_all(figures, out, summary(study))
