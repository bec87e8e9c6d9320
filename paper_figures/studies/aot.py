"""Figures of `prefdro run aot`: rates, bias of minibatches, soft sorting, choice of h, quantiles of
the rewards, local minima.

Nothing is fitted here: everything is read from the tables of the run and run.json.
"""

import math
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.paper.aot_tables import METHODS, Study, read, summary, world_name
from paper_figures.studies.estimation_error import curve
from paper_figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, Look

_DASHED, _DOTTED = (0, (4, 1.5)), (0, (1.2, 1.2))
QUANTITIES = {
    "fixed": Look(r"at $\theta^*$", BLACK, "o"),
    "minimiser": Look(r"at $\hat\theta_n$", BLUE, "s"),
    "excess": Look("excess", GREEN, "D"),
    "violation": Look("violation", VERMILLION, "^"),
}
COSTS = {
    "logistic": Look("logistic", BLUE, "s"),
    "squared hinge": Look("hinge²", VERMILLION, "^"),
    "least squares": Look("squares", GREEN, "D"),
}
_DIMENSIONS = (SKY, BLUE, PURPLE, VERMILLION, ORANGE)
_MARKERS = "osD^v"


# ---------------------------------------------------------------------------------------- (1) rates
def rates(study: Study) -> Figure:
    """Root mean square of the deviations from the population against n, and the bound 2LM/sqrt(n);
    one panel for each world."""
    table = study["rate"]
    worlds = list(table.world.unique())
    curves = {
        (world, quantity): data
        for world in worlds
        for quantity in QUANTITIES
        if len(data := curve(table[table.world == world], quantity))
    }
    low, high = _pad(
        [v for data in curves.values() for v in (*data.low, *data.high)] + [*table.bound], 1.8
    )
    figure, axes = style.grid(
        style.COLUMN, [1.75] * len(worlds), 1, left=0.5, right=0.9, top=0.25, bottom=0.56, gap_y=0.4
    )
    for panel, world in zip(axes[:, 0], worlds, strict=True):
        style.decades(panel.xaxis, *_pad(table.n, 1.25))
        style.decades(panel.yaxis, low, high)
        panel.set_title(world_name(world))
        bound = table[table.world == world].groupby("n").bound.first()
        panel.plot(
            bound.index, bound, color=GREY, linewidth=0.7, linestyle=(0, (2, 1.5)), gid="bound"
        )
        ends = [(bound.index[-1], bound.iloc[-1], "bound", Look("bound", GREY, "", (0, (2, 1.5))))]
        for quantity, look in QUANTITIES.items():
            if (world, quantity) in curves:
                data = curves[world, quantity]
                panel.fill_between(
                    data.n, data.low, data.high, color=look.color, alpha=0.13, linewidth=0
                )
                panel.plot(data.n, data.rms, **look.line, gid=quantity)
                ends.append((data.n.iloc[-1], data.rms.iloc[-1], look.label, look))
        style.label_ends(panel, ends)
        panel.set_ylabel("deviation from the population", labelpad=2)
        if (world, "violation") not in curves:
            panel.text(
                0.03,
                0.04,
                "violation: 0 in every sample",
                color=VERMILLION,
                transform=panel.transAxes,
            )
    axes[-1, 0].set_xlabel("preference pairs $n$", labelpad=1)
    style.footnote(
        figure, r"Root mean square, 95 % bootstrap band; bound: $2LM/\sqrt{n}$ at $\theta^*$."
    )
    return figure


# ---------------------------------------------------------------------------------- (2) minibatches
def minibatch(study: Study) -> Figure:
    """Bias of the minibatch objective against the batch size, for each h."""
    table = study["minibatch"].assign(bias=lambda t: t.controlled - t.population)
    counts = sorted(table.actions.unique())
    grouped = table.groupby(["actions", "h", "batch"]).bias
    band = _interval(grouped)
    low, high = _pad([*band.low, *band.high], 1.6)
    figure, axes = style.grid(
        style.COLUMN,
        [1.6] * len(counts),
        1,
        left=0.5,
        right=0.85,
        top=0.25,
        bottom=0.56,
        gap_y=0.42,
    )
    for panel, count in zip(axes[:, 0], counts, strict=True):
        style.decades(panel.xaxis, *_pad(table.batch, 1.2))
        style.decades(panel.yaxis, low, high)
        panel.set_title(f"{count} distinct rewards")
        ends = []
        for h, look in COSTS.items():
            data = band.loc[count, h]
            panel.fill_between(
                data.index, data.low, data.high, color=look.color, alpha=0.15, linewidth=0
            )
            panel.plot(data.index, data["mean"], **look.line, gid=h)
            ends.append((data.index[-1], data["mean"].iloc[-1], look.label, look))
            one = table[(table.actions == count) & (table.h == h)]
            panel.plot(
                1,
                (one.dpo - one.population).iloc[0],
                "o",
                color=look.color,
                markerfacecolor="white",
                markersize=6,
            )
        sizes = np.array([4.0, table.batch.max()])
        middle = band.loc[count, "logistic"]["mean"]
        panel.plot(
            sizes,
            0.35 * middle.iloc[-1] * middle.index[-1] / sizes,
            color=GREY,
            linewidth=0.7,
            linestyle=(0, (6, 2)),
        )
        panel.text(
            5,
            0.35 * middle.iloc[-1] * middle.index[-1] / 5,
            "$1/b$ ",
            color=GREY,
            ha="right",
            va="top",
        )
        style.label_ends(panel, ends)
        panel.set_ylabel("mean over batches − population", labelpad=2)
    axes[-1, 0].set_xlabel("batch size $b$", labelpad=1)
    style.footnote(figure, "95 % intervals; open circles: DPO with the same $h$.")
    return figure


# --------------------------------------------------------------------------------- (3) soft sorting
def softness(study: Study) -> Figure:
    """What soft sorting minimises, what its minimiser is worth with hard sorting, and how far it is
    from the hard one."""
    table = study["softness"]
    soft = table[table.softness > 0]
    looks = {
        "minimum": Look("soft minimum", BLUE, "s"),
        "hard_there": Look("hard, there", VERMILLION, "^"),
    }
    figure, axes = style.grid(
        style.COLUMN, [1.5, 1.1], 1, left=0.5, right=1.0, top=0.12, bottom=0.72, gap_y=0.15
    )
    for panel in axes[:, 0]:
        style.decades(panel.xaxis, *_pad(soft.softness, 1.3))
    upper, lower = axes[:, 0]
    ends = []
    for column, look in looks.items():
        ratio = soft.assign(ratio=soft[column] / soft.hard_minimum)
        data = _interval(ratio.groupby("softness").ratio)
        upper.fill_between(
            data.index, data.low, data.high, color=look.color, alpha=0.15, linewidth=0
        )
        upper.plot(data.index, data["mean"], **look.line, gid=column)
        ends.append((data.index[-1], data["mean"].iloc[-1], look.label, look))
    upper.axhline(1, color=GREY, linewidth=0.5)
    style.label_ends(upper, ends)
    upper.set_ylabel("objective / hard minimum", labelpad=2)
    upper.tick_params(labelbottom=False)
    data = _interval(soft.groupby("softness").distance)
    lower.fill_between(data.index, data.low, data.high, color=BLACK, alpha=0.12, linewidth=0)
    lower.plot(data.index, data["mean"], "o-", color=BLACK, gid="distance")
    lower.set_ylim(bottom=0)
    lower.set_ylabel("distance", labelpad=2)
    figure.align_ylabels([upper, lower])
    lower.set_xlabel("softness (1 / reward)", labelpad=1)
    samples = f"{soft.replicate.nunique()} samples of {soft.n.iloc[0]} pairs"
    style.footnote(
        figure,
        f"Means over {samples}, 95 % intervals;\ndistance: from the minimiser of hard sorting.",
    )
    return figure


# ----------------------------------------------------------------------------------- (4) h and beta
def surrogate(study: Study) -> Figure:
    """Violation, mean reward gap and KL to the reference at the minimiser, against beta, for each h
    and world."""
    table = study["surrogate"]
    worlds = list(table.world.unique())
    facts = {"violation": "violation", "gap": "mean gap", "kl": "KL (nats)"}
    figure, axes = style.grid(
        style.COLUMN,
        [0.95] * len(facts),
        len(worlds),
        left=0.48,
        right=0.72,
        top=0.25,
        bottom=0.56,
        gap_x=0.12,
        gap_y=0.12,
    )
    for row, (fact, name) in zip(axes, facts.items(), strict=True):
        band = _interval(table.groupby(["world", "h", "beta"])[fact])
        top = 1.08 * float(band.high.max())
        for panel, world in zip(row, worlds, strict=True):
            style.decades(panel.xaxis, *_pad(table.beta, 1.4))
            panel.set_ylim(min(0.0, float(band.low.min())) - 0.03 * top, top)
            ends = []
            for h, look in COSTS.items():
                data = band.loc[world, h]
                panel.fill_between(
                    data.index, data.low, data.high, color=look.color, alpha=0.15, linewidth=0
                )
                panel.plot(data.index, data["mean"], **look.line, gid=f"{fact}|{h}", clip_on=False)
                ends.append((data.index[-1], data["mean"].iloc[-1], look.label, look))
            panel.tick_params(labelleft=panel is row[0], labelbottom=fact == "kl")
            if panel is row[-1]:
                style.label_ends(panel, ends, offset=0.16)
            if fact == "violation":
                panel.set_title(world_name(world))
            if fact == "kl":
                panel.set_xlabel(r"$\beta$", labelpad=0)
        row[0].set_ylabel(name, labelpad=2)
    figure.align_ylabels(list(axes[:, 0]))
    style.footnote(
        figure, f"Samples of {table.n.iloc[0]} pairs, judged in the population; 95 % intervals."
    )
    return figure


# ------------------------------------------------------------------------------------ (5) quantiles
def quantiles(study: Study, world: str) -> Figure:
    """Quantiles of log pi/pi_ref of chosen and rejected responses by method, at equal KL to the
    reference."""
    table = study["quantiles"].query("world == @world and matched")
    table = table[table.n == table.n.max()]
    methods = [name for name in METHODS if name in set(table.method)]
    lines = -(-len(methods) // 2)
    low, high = (
        table[["chosen", "rejected"]].to_numpy().min(),
        table[["chosen", "rejected"]].to_numpy().max(),
    )
    figure, axes = style.grid(
        style.COLUMN,
        [0.95] * lines,
        2,
        left=0.45,
        right=0.08,
        top=0.25,
        bottom=0.74,
        gap_x=0.14,
        gap_y=0.32,
    )
    sides = {"chosen": (BLUE, "-"), "rejected": (VERMILLION, _DASHED)}
    for index, panel in enumerate(axes.flat):
        if index >= len(methods):
            panel.set_visible(False)
            continue
        mine = table[table.method == methods[index]]
        middle = {}
        for side, (color, dashes) in sides.items():
            group = mine.groupby("level")[side]
            middle[side] = group.mean()
            panel.fill_between(
                middle[side].index,
                group.quantile(0.025),
                group.quantile(0.975),
                color=color,
                alpha=0.15,
                lw=0,
            )
            panel.plot(middle[side].index, middle[side], color=color, linestyle=dashes, gid=side)
        above = middle["rejected"] > middle["chosen"] + 1e-12
        panel.fill_between(
            above.index,
            middle["chosen"],
            middle["rejected"],
            where=above.to_numpy(),
            color=BLACK,
            alpha=0.4,
            lw=0,
            gid="violation",
        )
        panel.set(xlim=(0, 1), ylim=(low - 0.05 * (high - low), high + 0.05 * (high - low)))
        panel.set_title(METHODS[methods[index]], pad=2)
        panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        panel.tick_params(labelleft=index % 2 == 0, labelbottom=index + 2 >= len(methods))
        if index == 0:
            place = middle["chosen"].index[len(middle["chosen"]) // 2]
            panel.text(place, high, "chosen", color=BLUE, ha="right", va="top")
            panel.text(0.98, low, "rejected", color=VERMILLION, ha="right", va="bottom")
        if index + 2 >= len(methods):
            panel.set_xlabel("level $t$", labelpad=1)
    for row in axes:
        row[0].set_ylabel(r"$\log\,\pi/\pi_{\rm ref}$", labelpad=1)
    style.footnote(figure, _quantile_note(study, table, world))
    return figure


def _quantile_note(study: Study, table: pd.DataFrame, world: str) -> str:
    kl = study.run.get("constants", {}).get("matched_kl")
    at = f", KL {kl:g} nats" if kl is not None else ""
    return (
        f"{world_name(world)}, {table.n.iloc[0]} pairs{at}. Mean, 95 % of the samples;\ndark:"
        " rejected above chosen."
    )


# --------------------------------------------------------------------------------- (6) local minima
def minima(study: Study) -> Figure:
    """Local minima that the starts end at, and the loss of the worst one, against n; lines are
    dimensions, columns signals."""
    table = study["minima"]
    table = table.assign(relative=table.spread / table.best)
    signals = sorted(table.signal.unique(), reverse=True)
    dimensions = sorted(table.dimension.unique())
    figure, axes = style.grid(
        style.COLUMN,
        [1.2, 1.2],
        len(signals),
        left=0.5,
        right=0.55,
        top=0.25,
        bottom=0.56,
        gap_x=0.14,
        gap_y=0.14,
    )
    for row, (fact, name) in zip(
        axes, (("minima", "local minima"), ("relative", "(worst − best)/best")), strict=True
    ):
        band = _interval(table.groupby(["signal", "dimension", "n"])[fact])
        low, high = _pad([*band["mean"], *band.high], 1.3)
        for panel, signal in zip(row, signals, strict=True):
            style.decades(panel.xaxis, *_pad(table.n, 1.25))
            if fact == "minima":
                panel.set_ylim(0, 1.04 * float(table.starts.max()))
            else:
                style.decades(panel.yaxis, low, high)
            ends = []
            for k, d in enumerate(dimensions):
                look = Look(f"$d$ = {d}", _DIMENSIONS[k % 5], _MARKERS[k % 5])
                data = band.loc[signal, d]
                floor = data.low if fact == "minima" else data.low.clip(lower=low)
                panel.fill_between(
                    data.index, floor, data.high, color=look.color, alpha=0.13, linewidth=0
                )
                panel.plot(data.index, data["mean"], **look.line, gid=f"{fact}|{d}")
                ends.append((data.index[-1], data["mean"].iloc[-1], look.label, look))
            if panel is row[-1]:
                style.label_ends(panel, ends, offset=0.16)
            panel.tick_params(labelleft=panel is row[0], labelbottom=fact == "relative")
            if fact == "minima":
                panel.set_title("random labels" if signal == 0 else "Bradley–Terry labels")
            else:
                panel.set_xlabel("pairs $n$", labelpad=1)
        row[0].set_ylabel(name, labelpad=2)
    figure.align_ylabels(list(axes[:, 0]))
    style.footnote(
        figure, f"{table.starts.max()} random starts; means and 95 % intervals over samples."
    )
    return figure


# ------------------------------------------------------------------------------------------ helpers
def _interval(groups: Any) -> pd.DataFrame:
    """Mean of each group with a 95 % normal interval of the mean; columns mean, low, high."""
    mean, error = groups.mean(), 1.96 * groups.std().fillna(0) / np.sqrt(groups.count())
    return pd.DataFrame({"mean": mean, "low": mean - error, "high": mean + error})


def _pad(values: Iterable[float], factor: float) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value) and value > 0]
    return min(finite) / factor, max(finite) * factor


# ------------------------------------------------------------------------------------------ drawing
FIGURES: dict[str, Callable[[Study], Figure]] = {
    "aot_rates": rates,
    "aot_minibatch": minibatch,
    "aot_softness": softness,
    "aot_surrogate": surrogate,
    "aot_minima": minima,
}


def draw(source: Path, out: Path) -> list[Path]:
    """Draw every figure as PDF and PNG, and summary.md; returns the paths written.

    Args:
        source: folder of `prefdro run aot`.
        out: folder of the figures.

    Raises:
        ValueError: a table or a column is missing.
    """
    study = read(source)
    figures = ((name, make(study)) for name, make in FIGURES.items())
    worlds = (
        (f"aot_quantiles_{world}", quantiles(study, world))
        for world in study["quantiles"].world.unique()
    )
    return style.save_all(chain(figures, worlds), out, summary(study))
