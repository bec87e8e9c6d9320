"""Figures of `prefdro run preference-shift`: regret against alpha, regret against KL, and
differences at equal KL.

Nothing is fitted here: everything is read from shift.parquet, matched.csv and run.json. Regret is 0
for the best policy and 1 for the reference. Radii are the middle one of the study, as a fraction of
the collapse radius.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import t as student

from paper_figures import style
from paper_figures.style import Look
from paper_figures.tables import read_tables

COLUMNS = {
    "shift.parquet": (
        *("setting", "train", "seed", "n", "method", "fraction", "kl", "alpha"),
        *("regret", "regret_shrunk", "regret_stopped"),
    ),
    "matched.csv": (
        *("setting", "train", "n", "method", "fraction", "control", "alpha", "difference"),
        *("low", "high", "seeds", "unmatched"),
    ),
}
SHOWN = (
    "kldpo",
    "wdpo-w1",
    "wdpo-w2-free",
    "worst-loss",
    "worst-regret",
)  # in the curves; those that are there


@dataclass(frozen=True)
class Study:
    """The tables of one run at one alpha_o, the first; its settings in the order of the run."""

    rows: pd.DataFrame
    matched: pd.DataFrame
    settings: tuple[str, ...]
    train: float

    @property
    def fraction(self) -> float:
        """The middle fraction of the collapse radius, the upper of two."""
        fractions = sorted(self.matched.fraction.unique())
        return float(fractions[len(fractions) // 2])

    @property
    def methods(self) -> list[str]:
        """The robust methods, in the order of the style."""
        present = set(self.matched.method)
        return [name for name in style.METHODS if name in present] + sorted(
            present - set(style.METHODS)
        )

    def worst(self, n: float) -> pd.DataFrame:
        """Differences in worst-alpha regret to DPO shrunk to the same KL, at the middle fraction
        and one n."""
        table = self.matched.query("control == 'shrunk' and alpha == 'worst'")
        return table[(table.fraction == self.fraction) & (table.n == n)]

    def spotlight(self) -> list[str]:
        """The first setting, the one with the lowest difference in the population, and the one with
        the highest on average."""
        differences = self.worst(math.inf).groupby("setting").difference
        return list(
            dict.fromkeys(
                [
                    self.settings[0],
                    str(differences.min().idxmin()),
                    str(differences.mean().idxmax()),
                ]
            )
        )


# ------------------------------------------------------------------------------------------ reading
def read(source: Path) -> Study:
    """The tables in a folder.

    Raises:
        ValueError: a table or a column is missing, with the command that makes it.
    """
    tables, run = read_tables(source, COLUMNS, "prefdro run preference-shift", text=("alpha",))
    rows, matched = tables["shift"], tables["matched"]
    settings = tuple(
        name for name in run.get("settings", []) if name in set(rows.setting)
    ) or tuple(rows.setting.unique())
    train = float(max(rows.train))
    return Study(rows[rows.train == train], matched[matched.train == train], settings, train)


def mean_band(values: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95 % t interval of each row over its columns (seeds): mean, low, high."""
    mean, count = values.mean(axis=1), values.count(axis=1)
    half = student.ppf(0.975, (count - 1).clip(lower=1)) * values.std(axis=1) / np.sqrt(count)
    return pd.DataFrame({"mean": mean, "low": mean - half, "high": mean + half})


# -------------------------------------------------------------------------------- (1) regret curves
def regret(study: Study) -> Figure:
    """Regret against alpha in the population: DPO, robust methods, and (dashed) DPO with the KL of
    each robust method."""
    settings = study.spotlight()
    figure, axes = style.grid(
        style.COLUMN, [1.3] * len(settings), 1, left=0.45, right=1.05, bottom=0.84, gap_y=0.42
    )
    for panel, setting in zip(axes[:, 0], settings, strict=True):
        mine = study.rows[(study.rows.setting == setting) & np.isinf(study.rows.n)]
        ends: list[tuple[float, float, str, Look]] = []
        panel.axhline(1, color=style.GREY, linewidth=0.7, linestyle=(0, (6, 2)))
        panel.axvline(study.train, color=style.PALE, linewidth=2, zorder=0)
        for method in ("dpo", *SHOWN):
            part = mine[(mine.method == method) & mine.fraction.isin([0.0, study.fraction])]
            if part.empty:
                continue
            look = replace(style.look(method), dashes="-", marker="")
            band = mean_band(part.pivot(index="alpha", columns="seed", values="regret"))
            panel.plot(band.index, band["mean"], color=look.color, gid=method)
            panel.fill_between(
                band.index, band.low, band.high, color=look.color, alpha=0.13, linewidth=0
            )
            if method != "dpo":
                near = mean_band(part.pivot(index="alpha", columns="seed", values="regret_shrunk"))
                panel.plot(
                    near.index,
                    near["mean"],
                    color=look.color,
                    linestyle=(0, (2, 1.5)),
                    gid=f"{method}|shrunk",
                )
            ends.append((float(band.index[-1]), float(band["mean"].iloc[-1]), look.label, look))
        ends.append((1.0, 1.0, "reference", Look("", style.GREY, "", (0, (6, 2)))))
        panel.set(xlim=(0, 1), title=setting)
        panel.set_ylim(bottom=max(panel.get_ylim()[0], 0.0))
        style.label_ends(panel, ends)
        panel.set_ylabel("regret")
    axes[-1, 0].set_xlabel(r"test mixture $\alpha$", labelpad=1)
    style.footnote(
        figure,
        f"Population, {study.fraction:g} $\\rho_c$; trained at $\\alpha_o$ = {study.train:g}."
        " Bands: 95 %, over worlds.\nDashed: DPO with the KL of that colour. Worst loss, regret:"
        f" mixtures\nwithin {study.fraction:g} of the farthest from $\\alpha_o$.",
    )
    return figure


# ------------------------------------------------------------------------------------- (2) frontier
def frontier(study: Study) -> Figure:
    """Worst-alpha regret against the KL to the reference, as a share of DPO's: the DPO control and
    the robust methods."""
    settings = study.spotlight()
    figure, axes = style.grid(
        style.COLUMN, [1.3] * len(settings), 1, left=0.45, right=1.05, bottom=0.72, gap_y=0.42
    )
    for panel, setting in zip(axes[:, 0], settings, strict=True):
        table = worst_regret(study.rows[(study.rows.setting == setting) & np.isinf(study.rows.n)])
        control = table[table.method.isin(["dpo", "dpo-shrunk"])].pivot(
            index="fraction", columns="seed", values=["share", "worst"]
        )
        start = pd.DataFrame({"share": [0.0], "worst": [1.0]})  # the reference itself
        for seed in control["worst"]:
            line = pd.concat([start, control.xs(seed, axis=1, level="seed")]).sort_values("share")
            panel.plot(line.share, line.worst, color=style.BLACK, linewidth=0.4, alpha=0.15)
        middle = pd.concat([start, control.T.groupby(level=0).mean().T]).sort_values("share")
        panel.plot(middle.share, middle.worst, color=style.BLACK, gid="dpo")
        ends = [
            (
                float(middle.share.iloc[-1]),
                float(middle.worst.iloc[-1]),
                "DPO, shrunk",
                Look("", style.BLACK, ""),
            )
        ]
        for method in SHOWN:
            part = table[table.method == method]
            if part.empty:
                continue
            look = replace(style.look(method), dashes="-")
            panel.plot(
                part.share,
                part.worst,
                look.marker,
                color=look.color,
                markersize=1.6,
                alpha=0.3,
                markeredgewidth=0,
            )
            centre = part.groupby("fraction")[["share", "worst"]].mean()
            panel.plot(
                centre.share,
                centre.worst,
                look.marker,
                color=look.color,
                markersize=4.5,
                gid=method,
            )
            first = centre.loc[centre.share.idxmax()]
            ends.append((float(first.share), float(first.worst), look.label, look))
        panel.set(xlim=(0, 1.02), title=setting)
        inner = table.worst[table.method.isin(["dpo", *SHOWN])]
        panel.set_ylim(float(inner.quantile(0.03)) - 0.03, float(inner.quantile(0.97)) + 0.03)
        style.label_ends(panel, ends)
        panel.set_ylabel(r"worst-$\alpha$ regret")
    axes[-1, 0].set_xlabel("KL to the reference / KL of DPO", labelpad=1)
    style.footnote(
        figure,
        "Population. Faint: single worlds; bold: their mean at each radius.\nNot drawn: worlds"
        " beyond the panel.",
    )
    return figure


def worst_regret(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a fit: its worst regret over alpha, and its KL to the reference as a share of DPO's
    on the same sample."""
    fits = (
        rows.groupby(["method", "fraction", "seed"], sort=False)
        .agg(worst=("regret", "max"), kl=("kl", "first"))
        .reset_index()
    )
    dpo = fits[fits.method == "dpo"].set_index("seed").kl
    return fits.assign(share=fits.kl / fits.seed.map(dpo))


# -------------------------------------------------------------------------------------- (3) matched
def matched(study: Study) -> Figure:
    """Worst-alpha regret minus that of DPO with the same KL, for every setting and method:
    population and smallest sample."""
    sizes = sorted(study.matched.n.unique(), reverse=True)
    sizes = [sizes[0], sizes[-1]] if len(sizes) > 1 else sizes
    step, gap = 0.06, 0.13  # inches
    height = len(study.settings) * (step * len(study.methods) + gap)
    figure, axes = style.grid(
        style.COLUMN, [height], len(sizes), left=0.78, right=0.08, top=0.3, bottom=1.36, gap_x=0.3
    )
    tables = [study.worst(n) for n in sizes]
    edges = np.concatenate(
        [table[["low", "high", "difference"]].to_numpy().ravel() for table in tables]
    )
    edges = edges[np.isfinite(edges)]
    for panel, n, table in zip(axes[0], sizes, tables, strict=True):
        y, ticks = 0.0, []
        for setting in study.settings:
            top = y
            for method in study.methods:
                row = table[(table.setting == setting) & (table.method == method)]
                look = style.look(method)
                if len(row):
                    low, high, middle = (
                        float(row[name].iloc[0]) for name in ("low", "high", "difference")
                    )
                    if math.isfinite(low):
                        panel.hlines(y, low, high, color=look.color, linewidth=0.8)
                    face = look.color if not low <= 0 <= high and math.isfinite(low) else "white"
                    panel.plot(
                        middle,
                        y,
                        look.marker,
                        color=look.color,
                        markersize=2.8,
                        markerfacecolor=face,
                        gid=f"{setting}|{method}",
                    )
                y -= step
            ticks.append((top + y + step) / 2)
            y -= gap
            panel.axhline(y + step / 2 + gap / 2, color=style.PALE, linewidth=0.6)
        panel.axvline(0, color=style.GREY, linewidth=0.7, zorder=0)
        panel.set(
            ylim=(y + gap / 2 + step / 2, gap / 2 + step / 2),
            xlim=(edges.min() * 1.1 - 1e-3, edges.max() * 1.1 + 1e-3),
        )
        panel.set_yticks(
            ticks, [name.replace(", ", ",\n").replace("sure ", "sure\n") for name in study.settings]
        )
        panel.tick_params(axis="y", length=0, labelleft=panel is axes[0, 0])
        panel.set_title("population" if math.isinf(n) else f"$n$ = {n:g}")
    width, tall = figure.get_size_inches()
    figure.text(
        0.78 / width,
        (1.36 - 0.28) / tall,
        "regret minus that of DPO at equal KL\n(left of 0: the robust method is better)",
        va="top",
    )
    marks = [
        axes[0, 0].plot([], [], style.look(m).marker, color=style.look(m).color)[0]
        for m in study.methods
    ]
    labels = [style.look(method).label for method in study.methods]
    figure.legend(
        marks,
        labels,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.16 / tall),
        ncols=3,
        borderaxespad=0.1,
        handletextpad=0.1,
        columnspacing=0.6,
        labelspacing=0.25,
    )
    style.footnote(figure, "95 % over seeds; filled: 0 is outside.")
    return figure


# --------------------------------------------------------------------------------------- summary.md
def summary(study: Study) -> str:
    """Markdown: differences in worst-alpha regret at equal KL, for every setting, n and method at
    the middle fraction."""
    lines = [
        "# Preference shift",
        "",
        (
            "Worst-alpha regret minus that of DPO shrunk to the same KL to the reference, at"
            f" {study.fraction:g} of the collapse radius, trained at alpha_o = {study.train:g}:"
            " mean over seeds with 95 % t interval. Below 0 the robust one wins."
        ),
        "",
        "| setting | n | " + " | ".join(study.methods) + " |",
        "|---|--:|" + "--:|" * len(study.methods),
    ]
    for setting in study.settings:
        for n in sorted(study.matched.n.unique()):
            table = study.worst(n)
            mine = table[table.setting == setting].set_index("method")
            cells = [
                _cell(mine.loc[method]) if method in mine.index else "" for method in study.methods
            ]
            lines.append(
                f"| {setting} | {'infinite' if math.isinf(n) else f'{n:g}'} | "
                + " | ".join(cells)
                + " |"
            )
    return "\n".join(lines) + "\n"


def _cell(row: pd.Series) -> str:
    interval = f" [{row.low:+.4f}, {row.high:+.4f}]" if math.isfinite(row.low) else ""
    return f"{row.difference:+.4f}{interval}"


# ------------------------------------------------------------------------------------------ drawing
FIGURES: dict[str, Callable[[Study], Figure]] = {
    "regret": regret,
    "frontier": frontier,
    "matched": matched,
}


def draw(source: Path, out: Path) -> list[Path]:
    """Draw every figure from the tables in `source`, as PDF and PNG, and summary.md; returns the
    paths written.

    Args:
        source: folder of `prefdro run preference-shift`.
        out: folder of the figures.

    Raises:
        ValueError: a table or a column is missing.
    """
    study = read(source)
    figures = ((name, make(study)) for name, make in FIGURES.items())
    return style.save_all(figures, out, summary(study))
