"""What the figures of trained language models share: names and looks of methods, curves with
intervals, the line on the scale."""

import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import t as student

from paper_figures import style
from paper_figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, Look

_DASHED, _DOTTED, _MIXED = (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2))
METHODS = {
    "start": Look("start", GREY, "x", _DOTTED),
    "dpo": Look("DPO", BLACK, "o"),
    "ipo": Look("IPO", ORANGE, "v", _DASHED),
    "kto": Look("KTO", GREEN, "P", _MIXED),
    "kldpo": Look("KLDPO", BLUE, "s", _DASHED),
    "wdpo": Look("WDPO", VERMILLION, "^"),
    "aot": Look("AOT paired", PURPLE, "D"),
    "aot_unpaired": Look("AOT unpaired", SKY, "<", _DASHED),
    "cdpo": Look("cDPO", GREY, "h"),
    "rdpo": Look("rDPO", GREY, "p"),
    "dr_dpo": Look("Dr. DPO", GREEN, "*"),
}
KNOBS = {"wdpo": r"$\rho$", "kldpo": r"$\tau$", "dr_dpo": "$b$"}
RADII = ("-", _DASHED, _DOTTED)  # dashes of a method's radii, from the smallest
RADII_MARKERS = ("o", "s", "^")
Curve = tuple[
    str, Look, pd.DataFrame
]  # name, look, and columns alpha, reward, reward_low, reward_high


def name(method: str, radius: float) -> str:
    """Such as `KLDPO, τ = 0.5`, for a figure."""
    return METHODS[method].label + (f", {KNOBS[method]} = {radius:g}" if method in KNOBS else "")


def few(radii: Sequence[float], most: int = 3) -> list[float]:
    """At most `most` radii, in order and evenly spread, with the first and the last."""
    radii = sorted(set(radii))
    if len(radii) <= most:
        return radii
    return [radii[round(i * (len(radii) - 1) / (most - 1))] for i in range(most)]


def of_radius(look: Look, index: int) -> Look:
    """The look of a method at its radius number `index`, from the smallest."""
    return replace(
        look, dashes=RADII[index % len(RADII)], marker=RADII_MARKERS[index % len(RADII_MARKERS)]
    )


def interval(values: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95 % t interval of each row over its columns (seeds): mean, low, high; NaN limits
    from a single seed."""
    mean, count = values.mean(axis=1), values.count(axis=1)
    half = student.ppf(0.975, (count - 1).clip(lower=1)) * values.std(axis=1) / np.sqrt(count)
    return pd.DataFrame({"mean": mean, "low": mean - half, "high": mean + half})


def scale(run: dict[str, Any]) -> str:
    """The sentence on the scale of a run, `ours: ...`; that of the emotion study is made from its
    profile."""
    if run.get("scale"):
        text = str(run["scale"]).strip().rstrip(".")
    elif isinstance(run.get("profile"), dict):
        profile = run["profile"]
        texts = (
            "texts of a grammar"
            if profile.get("source") == "grammar"
            else f"texts of {profile.get('source')}"
        )
        size = f"{profile.get('layers')} layers of width {profile.get('width')}"
        model = profile.get("model") or f"GPT-2 of {size}, trained from scratch"
        pairs = _first(run.get("pairs"), profile.get("prompts"))
        text = f"{texts}, {model}, {pairs} pairs, {profile.get('seeds')} seeds"
    else:
        text = f"profile {run.get('profile', 'unknown')}"
    return text if re.match("ours", text, re.IGNORECASE) else f"ours: {text}"


def _first(values: Any, default: Any) -> Any:
    return values[0] if isinstance(values, list) and values else default


def distances(rows: pd.DataFrame, beta: float) -> str:
    """How far each method is from the start, as a sentence: mean of the column kl at that beta,
    over all rows of a radius."""
    mine = rows[(rows.beta == beta) & (rows.method != "start")]
    means = mine.groupby(["method", "radius"]).kl.mean()
    parts = [f"{name(method, radius)}: {kl:.1f}" for (method, radius), kl in means.items()]
    return f"KL to the start, nats: {'; '.join(parts)}."


def small_print(figure: Figure, lines: Iterable[str]) -> None:
    """Lines at the bottom of a figure, wrapped to its width; `room_for` says how much height they
    need."""
    style.footnote(figure, "\n".join(wrap(lines, float(figure.get_size_inches()[0]))))


def room_for(lines: Iterable[str], width: float) -> float:
    """Inches of height that `small_print` takes in a figure `width` inches wide."""
    return 0.06 + 0.165 * len(wrap(lines, width))


def wrap(lines: Iterable[str], width: float) -> list[str]:
    return [
        part
        for line in lines
        for part in textwrap.wrap(line, int(width * 21.5), break_long_words=False)
    ]


@dataclass(frozen=True)
class Row:
    """Reward against alpha in one setting: title, label of alpha; for each column its curves and
    their differences to DPO."""

    title: str
    xlabel: str
    curves: dict[str, list[Curve]]
    differences: dict[str, list[Curve]]


def curve_panels(
    rows: Sequence[Row], *, headings: Sequence[str], trained: float, notes: Sequence[str]
) -> Figure:
    """Reward against alpha, and below it the difference to DPO by seed: a line of panels for each
    row, a column for each method.

    Args:
        headings: the columns, keys of the curves of every row.
        trained: alpha of the training labels, marked; not drawn where it is NaN.
        notes: small print.
    """
    below = 0.4 + room_for(notes, style.PAGE)
    heights = [1.15, 0.7] * len(rows)
    figure, axes = style.grid(
        style.PAGE,
        heights,
        len(headings),
        left=0.5,
        right=0.98,
        top=0.25,
        bottom=below - 0.25,
        gap_x=1.28,
        gap_y=0.42,
    )
    for index, row in enumerate(rows):
        for kind, line, sets in (
            ("expected reward", 2 * index, row.curves),
            ("minus DPO", 2 * index + 1, row.differences),
        ):
            reach = (
                math.inf if kind == "minus DPO" else 1.0
            )  # how wide these intervals are is the message
            edges = limits(
                (table for curves in sets.values() for _, _, table in curves), reach=reach
            )
            for panel, head in zip(axes[line], headings, strict=True):
                if kind == "minus DPO":  # close to the panel above, whose scale of alpha it shares
                    box = panel.get_position()
                    panel.set_position(box.translated(0, 0.25 / figure.get_size_inches()[1]))
                if math.isfinite(trained):
                    panel.axvline(trained, color=style.PALE, linewidth=3, zorder=0, gid="trained")
                if kind == "minus DPO":
                    panel.axhline(0, color=BLACK, linewidth=0.6, zorder=1)
                    panel.set_xlabel(row.xlabel, labelpad=1)
                else:
                    panel.set_title(f"{row.title}: {head}")
                ends = [_curve(panel, *curve) for curve in sets[head]]
                panel.set(xlim=(0, 1), ylim=edges)
                panel.set_ylabel(kind, labelpad=2)
                panel.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
                panel.tick_params(labelbottom=kind == "minus DPO")
                panel.yaxis.set_major_locator(MaxNLocator(4 if kind == "expected reward" else 3))
                style.label_ends(panel, ends)
    if math.isfinite(trained):
        box = {
            "xycoords": ("data", "axes fraction"),
            "xytext": (2, -1),
            "textcoords": "offset points",
        }
        axes[0, 0].annotate("training", (trained, 1), va="top", color=GREY, fontsize=7, **box)
    small_print(figure, notes)
    return figure


def _curve(
    axes: Axes, label: str, look: Look, table: pd.DataFrame
) -> tuple[float, float, str, Look]:
    table = table.sort_values("alpha")
    axes.fill_between(
        table.alpha, table.reward_low, table.reward_high, color=look.color, alpha=0.10, linewidth=0
    )
    axes.plot(table.alpha, table.reward, **look.line, markersize=2.6, gid=label)
    return float(table.alpha.iloc[-1]), float(table.reward.iloc[-1]), label, look


def limits(
    tables: Iterable[pd.DataFrame], pad: float = 0.05, reach: float = 1.0
) -> tuple[float, float]:
    """Limits of a reward axis that hold every curve whole, and every interval up to `reach` spans
    of the curves beyond them."""
    tables = list(tables)
    low, high = min(t.reward.min() for t in tables), max(t.reward.max() for t in tables)
    span = max(high - low, 1e-9)
    edges = [x for t in tables for x in (*t.reward_low, *t.reward_high) if math.isfinite(x)]
    low = max(min([low, *edges]), low - reach * span)
    high = min(max([high, *edges]), high + reach * span)
    return low - pad * (high - low), high + pad * (high - low)


def robust_row(
    title: str,
    xlabel: str,
    rows: pd.DataFrame,
    by_seed: pd.DataFrame,
    methods: Sequence[str],
    beta: float,
) -> Row:
    """The row of a setting: for each robust method its radii, the start and DPO; and the
    differences to DPO, seed by seed.

    Args:
        rows: columns method, radius, beta, alpha, reward, reward_low, reward_high.
        by_seed: columns method, radius, beta, alpha, seed, reward.
        methods: the robust methods, one for each column of panels.
        beta: of the runs that are compared; DPO runs with a larger one are a control that is not
            drawn.
    """
    rows, by_seed = (
        table[(table.method == "start") | np.isclose(table.beta, beta)] for table in (rows, by_seed)
    )
    dpo = by_seed[by_seed.method == "dpo"].pivot(index="alpha", columns="seed", values="reward")
    shared: list[Curve] = [("DPO", METHODS["dpo"], rows[rows.method == "dpo"])]
    start = rows[rows.method == "start"]
    if len(start):
        shared.append(("start", replace(METHODS["start"], marker=""), start))
    curves: dict[str, list[Curve]] = {}
    differences: dict[str, list[Curve]] = {}
    for method in methods:
        mine = rows[rows.method == method]
        radii = few(mine.radius.unique())
        head = METHODS[method].label
        curves[head], differences[head] = list(shared), []
        for i, radius in enumerate(radii):
            label, look = f"{KNOBS[method]} = {radius:g}", of_radius(METHODS[method], i)
            curves[head].append((label, look, mine[mine.radius == radius]))
            seeds = by_seed[(by_seed.method == method) & (by_seed.radius == radius)]
            table = interval(seeds.pivot(index="alpha", columns="seed", values="reward") - dpo)
            table = table.rename(
                columns={"mean": "reward", "low": "reward_low", "high": "reward_high"}
            ).reset_index()
            differences[head].append((label, look, table))
    return Row(title, xlabel, curves, differences)
