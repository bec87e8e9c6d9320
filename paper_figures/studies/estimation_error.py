"""Figures of `prefdro run estimation-error`: errors against sample size, slopes, bounds against
errors, bias, sweeps, summary.

Nothing is fitted here: everything is read from errors.parquet, worlds.csv, rates.csv, bounds.csv
and run.json.
Radii are fractions of rho_c, the collapse radius of the method in that world.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from matplotlib.transforms import Affine2D, Transform, blended_transform_factory

from paper_figures import style
from paper_figures.style import Look
from paper_figures.tables import read_tables, remedy_of

COLUMNS = {
    "errors.parquet": (
        "world",
        "method",
        "radius",
        "n",
        "replicate",
        "robust_2",
        "nominal_2",
        "converged",
    ),
    "worlds.csv": ("world", "kind", "title", "dimension", "beta", "bound"),
    "rates.csv": (
        "world",
        "method",
        "target",
        "norm",
        "radius",
        "range",
        "slope",
        "ci_low",
        "ci_high",
    ),
    "bounds.csv": (
        "world",
        "method",
        "radius",
        "n",
        "statement",
        "bound",
        "error_q",
        "coverage",
        "tightness",
    ),
}
MEASURED, THEOREM = (
    -1 / 2,
    -1 / 4,
)  # exponents of n: what the studies look for, and what Theorems 1 and 2 state
MAIN_WORLDS = 2
FEW = 3  # radii in one panel


@dataclass(frozen=True)
class World:
    """One world, a row of worlds.csv; older ones may have a `dimension` of NaN and know of no
    `targets_at_bound`."""

    name: str
    kind: str
    called: str
    dimension: float
    beta: float
    bound: float
    targets_at_bound: str = ""

    @property
    def title(self) -> str:
        """Heading of a panel."""
        size = "" if math.isnan(self.dimension) else f"$d$ = {self.dimension:g}, "
        return rf"{self.called}, {size}$\beta$ = {self.beta:g}, $B$ = {self.bound:g}"


@dataclass(frozen=True)
class Study:
    """The tables of one run, its worlds in the order of the profile, and run.json."""

    errors: pd.DataFrame
    rates: pd.DataFrame
    bounds: pd.DataFrame
    worlds: tuple[World, ...]
    run: dict[str, Any]

    @property
    def main(self) -> tuple[World, ...]:
        """The worlds of the main figures: all if there are two, else the first of each kind, finite
        and sphere before others."""
        if len(self.worlds) <= MAIN_WORLDS:
            return self.worlds
        kinds = dict.fromkeys(["finite", "sphere", *(world.kind for world in self.worlds)])
        firsts = [
            next((world for world in self.worlds if world.kind == kind), None) for kind in kinds
        ]
        return tuple(world for world in firsts if world is not None)[:MAIN_WORLDS]

    @property
    def radii(self) -> list[str]:
        """The fixed radii, in increasing order."""
        return sorted({radius for radius in self.errors.radius if is_fixed(radius)}, key=float)

    def methods(self, world: str | None = None) -> list[str]:
        """The methods of a world (of all), in the order of the style, unknown ones last."""
        present = set(
            self.errors.method if world is None else self.errors.method[self.errors.world == world]
        )
        return [name for name in style.METHODS if name in present] + sorted(
            present - set(style.METHODS)
        )


# ------------------------------------------------------------------------------------------ reading
def read(source: Path) -> Study:
    """The tables in a folder.

    Raises:
        ValueError: a table or a column is missing, with the command that makes it.
    """
    command = "prefdro run estimation-error"
    # no method of a run may have a bound
    tables, run = read_tables(
        source, COLUMNS, command, text=("radius",), may_be_empty=("rates.csv", "bounds.csv")
    )
    # a method without a radius has none in the file
    errors, rates, bounds = (
        tables[name].assign(radius=tables[name].radius.fillna(""))
        for name in ("errors", "rates", "bounds")
    )

    made = [
        World(row.world, row.kind, row.title, float(row.dimension), row.beta, row.bound, met)
        for row, met in zip(tables["worlds"].itertuples(), _targets_at_bound(tables), strict=True)
    ]
    present = set(errors.world)
    unknown = sorted(present - {world.name for world in made})
    if unknown:
        what = f"{source / 'worlds.csv'} has no row for {', '.join(unknown)}"
        raise ValueError(f"{what}. {remedy_of(source, command)}")
    worlds = tuple(world for world in made if world.name in present)
    return Study(errors, rates, bounds, worlds, run)


def _targets_at_bound(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    worlds = tables["worlds"]
    if "targets_at_bound" not in worlds:
        return [""] * len(worlds)
    return worlds.targets_at_bound.fillna("").astype(str).tolist()


def is_fixed(radius: str) -> bool:
    """Whether a radius of the tables is the same at every n: `0.3` is, `0.3 n^-1/2` and the empty
    one of DPO are not."""
    try:
        float(radius)
    except ValueError:
        return False
    return True


def middle(radii: Sequence[str]) -> str:
    """The middle one, the upper of two; empty where there is none."""
    return radii[len(radii) // 2] if radii else ""


def few(radii: Sequence[str]) -> list[str]:
    """At most three: the least, the middle and the largest."""
    return list(radii) if len(radii) <= FEW else [radii[0], middle(radii), radii[-1]]


def curve(rows: pd.DataFrame, column: str, *, resamples: int = 200) -> pd.DataFrame:
    """Root mean square of an error at each n with a 95 % bootstrap band over replicates; columns n,
    rms, low, high.

    Sizes where the error vanishes are left out: a logarithmic axis has no zero.
    """
    rng = np.random.default_rng(0)
    points = []
    for n, group in rows.groupby("n"):
        square = np.square(group[column].to_numpy(float))
        if square.mean() > 0:
            means = square[rng.integers(len(square), size=(resamples, len(square)))].mean(1)
            low, high = np.quantile(means, [0.025, 0.975])
            points.append((n, math.sqrt(square.mean()), math.sqrt(low), math.sqrt(high)))
    return pd.DataFrame(points, columns=["n", "rms", "low", "high"], dtype=float)


def _plot_curve(
    axes: Axes, data: pd.DataFrame, look: Look, name: str
) -> tuple[float, float, str, Look]:
    """Draw a curve with its band; returns what `style.label_ends` needs."""
    axes.fill_between(data.n, data.low, data.high, color=look.color, alpha=0.13, linewidth=0)
    axes.plot(data.n, data.rms, **look.line, gid=name)
    return data.n.iloc[-1], data.rms.iloc[-1], look.label, look


def _pad(values: Iterable[float], factor: float) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value) and value > 0]
    return min(finite) / factor, max(finite) * factor


def _slope_name(exponent: float) -> str:
    return {MEASURED: "$n^{-1/2}$", THEOREM: "$n^{-1/4}$"}[exponent]


# ------------------------------------------------------------------------------ (1) error against n
def estimation_error(study: Study) -> Figure | None:
    """Error to the robust target against n at the middle radius, and above it the bounds; one panel
    for each main world."""
    radius = middle(study.radii)
    rows = study.errors[study.errors.radius.isin([radius, ""])]
    curves = {
        (world.name, method): data
        for world in study.main
        for method in study.methods(world.name)
        if len(
            data := curve(rows[(rows.world == world.name) & (rows.method == method)], "robust_2")
        )
    }
    if not curves:  # every error vanishes: all targets are met exactly
        return None
    bounds = _finite_bounds(study, [radius, ""])
    low, high = _pad((v for data in curves.values() for v in (*data.low, *data.high)), 1.8)
    if len(bounds):  # a bound may be astronomical: it leaves the panel at the top
        high = max(
            high, min(2 * bounds.bound.max(), 400 * max(world.bound for world in study.main))
        )
    height = min(max(0.5 * math.log10(high / low), 2.3), 3.6)
    note = _bound_note(study, rows[rows.world.isin([world.name for world in study.main])])
    figure, axes = style.grid(
        style.PAGE,
        [height],
        len(study.main),
        left=0.52,
        right=1.15,
        bottom=0.56 + _room(note),
        gap_x=1.42,
    )
    for panel, world in zip(axes[0], study.main, strict=True):
        style.decades(panel.xaxis, *_pad(study.errors.n[study.errors.world == world.name], 1.25))
        style.decades(panel.yaxis, low, high)
        panel.set_xlabel("preference pairs $n$", labelpad=1)
        panel.set_title(world.title)
        mine = {method: data for (name, method), data in curves.items() if name == world.name}
        _reference_slopes(panel, mine.values())
        ends = [_plot_curve(panel, data, style.look(m), m) for m, data in mine.items()]
        style.label_ends(
            panel, ends + _plot_bounds(panel, bounds[bounds.world == world.name], world)
        )
    axes[0, 0].set_ylabel(r"error to the robust target, $\|\hat\theta_n-\theta_\rho\|_2$")
    notes = ["Root mean square with 95 % bootstrap band"]
    if radius:
        notes.append(rf"$\rho$ = {radius} $\rho_c$")
    if len(bounds):
        notes.append("thin dashes: bounds (Prop. 1 in the data norm)")
    if _uses_star(bounds):
        notes.append(STAR_NOTE)
    style.footnote(figure, "; ".join(notes) + "." + ("\n" + note if note else ""))
    return figure


def _bound_note(study: Study, rows: pd.DataFrame) -> str:
    """A line of its own: how many of the fits that are shown lie at the bound, and in which of
    their worlds targets do. Tables from before that was written say nothing."""
    notes = []
    if "at_bound" in rows and (met := int(rows.at_bound.sum())):
        notes.append(
            rf"{met} of {len(rows)} fits lie at $\|\theta\| = B$, up to $n$ ="
            f" {rows.n[rows.at_bound.astype(bool)].max():,}"
        )
    shown = set(rows.world)
    bound: dict[str, set[float]] = {}  # worlds of one name differ in their B
    for world in study.worlds:
        if world.targets_at_bound and world.name in shown:
            bound.setdefault(world.called, set()).add(world.bound)
    if bound:
        worlds = (
            rf"{called} ($B$ = {', '.join(f'{b:g}' for b in sorted(radii))})"
            for called, radii in bound.items()
        )
        notes.append(
            f"in the population of {', '.join(worlds)} the bound binds: its targets are those of"
            " $B$"
        )
    return "; ".join(notes) + "." if notes else ""


_LINE = 0.16  # inches of a line of a footnote


def _room(note: str) -> float:
    return _LINE if note else 0.0


STAR_NOTE = "Thm. 2*: dual variable at the minimisers"


def _uses_star(bounds: pd.DataFrame) -> bool:
    return any("*" in _statement_name(statement, "") for statement in bounds.statement.unique())


def _statement_name(statement: str, method: str) -> str:
    """`Thm. 1, $W_2$`: a short name for the end of a curve."""
    if statement.startswith("Thm. 2"):
        return "Thm. 2" if statement == "Thm. 2" else "Thm. 2*"
    return f"{statement}, {style.look(method).label.removeprefix('WDPO ')}"


def _finite_bounds(study: Study, radii: Sequence[str]) -> pd.DataFrame:
    names = [world.name for world in study.main]
    bounds = study.bounds
    return bounds[
        bounds.world.isin(names)
        & bounds.radius.isin(radii)
        & np.isfinite(bounds.bound.astype(float))
    ]


def _plot_bounds(
    axes: Axes, bounds: pd.DataFrame, world: World
) -> list[tuple[float, float, str, Look]]:
    if bounds.empty:
        return []
    axes.axhline(2 * world.bound, color=style.GREY, linewidth=0.5)
    axes.text(
        0.02,
        2 * world.bound,
        "trivial above $2B$",
        va="bottom",
        color=style.GREY,
        transform=axes.get_yaxis_transform(),
    )
    ends, top = [], axes.get_ylim()[1]
    for (method, statement), rows in bounds.groupby(["method", "statement"], sort=False):
        look = replace(style.look(method), dashes=(0, (2, 1.5)), marker="")
        axes.plot(rows.n, rows.bound, **look.line, linewidth=0.7, gid=f"{method}|{statement}")
        name = _statement_name(statement, method) + (
            " (above)" if rows.bound.iloc[-1] > top else ""
        )
        ends.append((rows.n.iloc[-1], min(rows.bound.iloc[-1], top), name, look))
    return ends


def _reference_slopes(axes: Axes, curves: Iterable[pd.DataFrame]) -> None:
    """n^-1/2 below the data and n^-1/4 above, each over the whole range."""
    curves = list(curves)
    n = np.array([min(data.n.min() for data in curves), max(data.n.max() for data in curves)])
    below = min(float((data.low * data.n**0.5).min()) for data in curves) * 0.62
    above = max(float(data.high.iloc[0] * data.n.iloc[0] ** 0.25) for data in curves) * 1.15
    for exponent, level, side in ((MEASURED, below, -1), (THEOREM, above, 1)):
        axes.plot(
            n,
            level * n**exponent,
            color=style.GREY,
            linewidth=0.7,
            linestyle=(0, (6, 2)),
            gid=f"slope {exponent}",
        )
        x = n[0] ** 0.4 * n[1] ** 0.6
        place: dict[str, Any] = (
            {"ha": "left", "va": "bottom"} if side > 0 else {"ha": "right", "va": "top"}
        )
        axes.text(x, level * x**exponent, _slope_name(exponent), color=style.GREY, **place)


# --------------------------------------------------------------------------------------- (2) slopes
def slopes(study: Study) -> Figure:
    """Slopes of log error on log n to the robust target: over the tail and over all sizes, at no
    more than three fixed radii."""
    table = study.rates[(study.rates.target == "robust") & (study.rates.norm == "2")]
    rows: list[tuple[str, str, float]] = []  # method, radius, height
    y = 0.0
    for method in study.methods():
        own = set(table.radius[table.method == method])
        for radius in [radius for radius in ["", *few(study.radii)] if radius in own]:
            rows.append((method, radius, y))
            y += 1
        y += 0.5
    height = 0.165 * y
    shown = study.errors[study.errors.world.isin([world.name for world in study.main])]
    note = _bound_note(study, shown[shown.radius.isin(["", *few(study.radii)])])
    figure, axes = style.grid(
        style.PAGE,
        [height],
        len(study.main),
        left=1.45,
        right=0.1,
        top=0.42,
        bottom=0.62 + _room(note),
        gap_x=0.2,
    )
    drawn = table[table.world.isin([world.name for world in study.main])]
    x_low = np.nanmin([*drawn.ci_low, MEASURED]) - 0.03
    x_high = np.nanmax([*drawn.ci_high, THEOREM]) + 0.03
    for panel, world in zip(axes[0], study.main, strict=True):
        panel.set(xlim=(x_low, x_high), ylim=(y - 0.6, -0.9), yticks=[])
        panel.spines.left.set_visible(False)
        panel.set_title(world.title, pad=15)
        panel.set_xlabel("slope of log error on log $n$")
        panel.xaxis.set_major_locator(MultipleLocator(0.1))
        for exponent in (MEASURED, THEOREM):
            panel.axvline(exponent, color=style.GREY, linewidth=0.7, linestyle=(0, (6, 2)))
            panel.text(
                exponent, -1.0, _slope_name(exponent), color=style.GREY, ha="center", va="bottom"
            )
        for k, method in enumerate(study.methods()):
            heights = [h for name, _, h in rows if name == method]
            if k % 2 == 0:
                panel.axhspan(
                    min(heights) - 0.75,
                    max(heights) + 0.75,
                    color=style.PALE,
                    alpha=0.5,
                    linewidth=0,
                )
            if method not in study.methods(world.name):
                _between(panel, float(np.mean(heights)), "not run in this world")
        for method, radius, h in rows:
            for span, shift, filled in (("all", 0.2, False), ("tail", -0.15, True)):
                found = table.query(
                    "world == @world.name and method == @method and radius == @radius and range =="
                    " @span"
                )
                if len(found):
                    _interval(
                        panel,
                        found.iloc[0],
                        h + shift,
                        style.look(method),
                        filled,
                        f"{method}|{radius}|{span}",
                    )
    for method in study.methods():
        own_rows = [(radius, h) for name, radius, h in rows if name == method]
        axes[0, 0].text(
            -1.4,
            own_rows[0][1],
            style.look(method).label,
            transform=_inches_left(axes[0, 0]),
            va="center",
        )
        for radius, h in own_rows:
            text = rf"{radius} $\rho_c$" if radius else ""
            axes[0, 0].text(
                -0.06, h, text, transform=_inches_left(axes[0, 0]), va="center", ha="right"
            )
    _slope_key(figure, axes[0, 0], _room(note))
    if note:
        style.footnote(figure, note)
    return figure


def _between(axes: Axes, y: float, text: str) -> None:
    axes.text(
        (MEASURED + THEOREM) / 2,
        y,
        text,
        va="center",
        ha="center",
        color=style.GREY,
        style="italic",
    )


def _inches_left(axes: Axes) -> Transform:
    """x in inches from the left edge of the panel, y in data."""
    return blended_transform_factory(
        Affine2D().scale(1 / style.inches(axes)[0], 1) + axes.transAxes, axes.transData
    )


def _interval(axes: Axes, row: pd.Series, y: float, look: Look, filled: bool, name: str) -> None:
    if not math.isfinite(row.slope):
        if filled:
            _between(axes, y, "no rate: target met exactly")
        return
    axes.plot([row.ci_low, row.ci_high], [y, y], color=look.color, linewidth=1.2 if filled else 0.6)
    face = look.color if filled else "white"
    axes.plot(
        row.slope,
        y,
        look.marker,
        color=look.color,
        markerfacecolor=face,
        markersize=4 if filled else 3,
        gid=name,
    )


def _slope_key(figure: Figure, axes: Axes, above: float) -> None:
    marks = [
        axes.plot([], [], "o-", color=style.BLACK, linewidth=1.2, markersize=4)[0],
        axes.plot(
            [], [], "o-", color=style.BLACK, linewidth=0.6, markersize=3, markerfacecolor="white"
        )[0],
    ]
    names = ["upper half of the sizes", "all sizes, both with 95 % bootstrap interval"]
    place = (0.5, above / figure.get_size_inches()[1])
    figure.legend(
        marks,
        names,
        loc="lower center",
        bbox_to_anchor=place,
        ncols=2,
        borderaxespad=0.1,
        handlelength=1.8,
    )


# ------------------------------------------------------------------------------------ (3) tightness
def tightness(study: Study) -> Figure | None:
    """Bound over the 95 % quantile of the error; hollow where the bound says no more than that both
    points lie in the ball."""
    radii = few(study.radii)
    bounds = _finite_bounds(study, ["", *radii])
    bounds = bounds[np.isfinite(bounds.tightness.astype(float)) & (bounds.tightness > 0)]
    if bounds.empty:
        return None
    worlds = [world for world in study.main if (bounds.world == world.name).any()]
    shown = study.errors[
        study.errors.world.isin([world.name for world in worlds])
        & study.errors.method.isin(set(bounds.method))
        & study.errors.radius.isin(set(bounds.radius))
    ]
    note = _bound_note(study, shown)
    figure, axes = style.grid(
        style.PAGE,
        [2.4],
        len(worlds),
        left=0.48,
        right=1.1,
        bottom=0.72 + _room(note),
        gap_x=1.42,
    )
    last = bounds.groupby(["world", "method", "statement", "radius"]).tightness.last()
    low, high = (
        min(bounds.tightness.min(), 1.0) / 1.8,
        max(last.max(), 1.0) * 3,
    )  # what lies above leaves the panel
    for panel, world in zip(axes[0], worlds, strict=True):
        mine = bounds[bounds.world == world.name]
        style.decades(panel.xaxis, *_pad(study.errors.n[study.errors.world == world.name], 1.25))
        style.decades(panel.yaxis, low, high)
        panel.set_xlabel("preference pairs $n$", labelpad=1)
        panel.set_title(world.title)
        panel.axhline(1, color=style.GREY, linewidth=0.7)
        panel.text(
            0.99,
            1,
            "tight",
            va="bottom",
            ha="right",
            color=style.GREY,
            transform=panel.get_yaxis_transform(),
        )
        ends = []
        for (method, statement, radius), rows in mine.groupby(
            ["method", "statement", "radius"], sort=False
        ):
            look = style.look(method)
            panel.plot(
                rows.n, rows.tightness, color=look.color, linestyle=look.dashes, linewidth=0.8
            )
            for trivial in (True, False):
                part = rows[(rows.bound >= trivial_above(statement, world)) == trivial]
                face = "white" if trivial else look.color
                name = f"{method}|{radius}|{statement}|{'trivial' if trivial else 'informative'}"
                panel.plot(
                    part.n,
                    part.tightness,
                    look.marker,
                    color=look.color,
                    markerfacecolor=face,
                    gid=name,
                )
            label = _statement_name(statement, method) + (
                rf", {radius} $\rho_c$" if radius and len(radii) > 1 else ""
            )
            ends.append((rows.n.iloc[-1], rows.tightness.iloc[-1], label, replace(look, marker="")))
        style.label_ends(panel, ends)
    axes[0, 0].set_ylabel("bound / 95 % quantile of the error")
    marks = [
        axes[0, 0].plot([], [], "o", color=style.BLACK, markerfacecolor=face)[0]
        for face in ("white", style.BLACK)
    ]
    names = ["trivial: no less than the diameter of the ball", "informative"]
    above_footnote = (0.5, (_LINE + _room(note)) / figure.get_size_inches()[1])
    figure.legend(
        marks,
        names,
        loc="lower center",
        bbox_to_anchor=above_footnote,
        ncols=2,
        borderaxespad=0.1,
        handletextpad=0.1,
    )
    notes = [
        "Values not drawn are infinite or above the panel",
        *([STAR_NOTE] if _uses_star(bounds) else []),
    ]
    notes += [
        f"{statement} as printed is infinite at every $n$" for statement in _always_infinite(study)
    ]
    style.footnote(figure, "; ".join(notes) + "." + ("\n" + note if note else ""))
    return figure


def trivial_above(statement: str, world: World) -> float:
    """The largest error there can be: 2B between two points of the ball; 4B in the data norm of
    Prop. 1, as ||x|| <= 2."""
    return (4 if statement == "Prop. 1" else 2) * world.bound


def _always_infinite(study: Study) -> list[str]:
    """The statements whose bound is infinite in every main world at every n and radius."""
    mine = study.bounds[study.bounds.world.isin([world.name for world in study.main])]
    return [
        str(s)
        for s, rows in mine.groupby("statement", sort=False)
        if not np.isfinite(rows.bound.astype(float)).any()
    ]


# ----------------------------------------------------------------------------------------- (4) bias
_FIXED_LOOKS = (Look("", style.SKY, "o"), Look("", style.BLUE, "s"), Look("", style.PURPLE, "D"))
_SHRINKING_LOOKS = (
    Look("", style.VERMILLION, "^", (0, (4, 1.5))),
    Look("", style.ORANGE, "v", (0, (4, 1.5))),
)
_SHOWN_IN_BIAS = (
    "kldpo",
    "wdpo-w1",
    "wdpo-w2",
    "wdpo-w1-free",
    "wdpo-w2-free",
    "kldpo-tilt",
    "wdpo-norm",
    "wdpo-squared",
)


def bias(study: Study) -> Figure | None:
    """Error to theta* against n: fixed radii level off at their bias, radii that shrink with n do
    not. One row per main world."""
    chosen = {
        w.name: [m for m in _SHOWN_IN_BIAS if m in study.methods(w.name)][:FEW] for w in study.main
    }
    worlds = [world for world in study.main if chosen[world.name]]
    if not worlds:
        return None
    columns = max(len(chosen[world.name]) for world in worlds)
    shown = study.errors[study.errors.world.isin([world.name for world in worlds])]
    shown = shown[shown.method.isin({"dpo", *(m for names in chosen.values() for m in names)})]
    note = _bound_note(study, shown)
    figure, axes = style.grid(
        style.PAGE,
        [1.6] * len(worlds),
        columns,
        left=0.48,
        right=0.85,
        top=0.42,
        bottom=0.54 + _room(note),
        gap_x=0.98,
        gap_y=0.8,
    )
    for panels, world in zip(axes, worlds, strict=True):
        mine = study.errors[study.errors.world == world.name]
        x_limits = _pad(mine.n, 1.25)
        curves = {method: _bias_curves(mine, method, study.radii) for method in chosen[world.name]}
        low, high = _pad(
            (v for group in curves.values() for _, data in group for v in (*data.low, *data.high)),
            1.3,
        )
        for panel, method in zip(panels, [*chosen[world.name], *[None] * columns], strict=False):
            if method is None:
                panel.remove()
                continue
            style.decades(panel.xaxis, *x_limits)
            style.decades(panel.yaxis, low, high)
            panel.set_xlabel("preference pairs $n$", labelpad=1)
            panel.set_title(style.look(method).label)
            ends = [
                _plot_curve(panel, data, look, f"{method}|{look.label}")
                for look, data in curves[method]
            ]
            style.label_ends(panel, ends, offset=0.18)
        style.heading(panels[0], world.title)
        panels[0].set_ylabel(r"error to $\theta^*$: $\|\hat\theta_n-\theta^*\|_2$")
    style.footnote(figure, _schedule_note(study) + ("\n" + note if note else ""))
    return figure


def _schedule_note(study: Study) -> str:
    starts = {radius.split(" n^")[0] for radius in study.errors.radius.unique() if " n^" in radius}
    shrinking = (
        rf"; shrinking radii start at {', '.join(sorted(starts))} $\rho_c$ at the least $n$"
        if starts
        else ""
    )
    return f"Root mean square with 95 % bootstrap band{shrinking}."


def _bias_curves(
    rows: pd.DataFrame, method: str, radii: Sequence[str]
) -> list[tuple[Look, pd.DataFrame]]:
    """Looks and curves of a method at few fixed and at the shrinking radii, with DPO for
    comparison."""
    own = rows[rows.method == method]
    shrinking = [radius for radius in own.radius.unique() if " n^" in radius]
    chosen = [
        replace(look, label=rf"{radius} $\rho_c$")
        for look, radius in zip(_FIXED_LOOKS, few(radii), strict=False)
    ]
    chosen += [
        replace(look, label=rf"$\rho\propto n^{{{radius.split(' n^')[1]}}}$")
        for look, radius in zip(_SHRINKING_LOOKS, shrinking, strict=False)
    ]
    parts = [
        own[own.radius == radius] for radius in [*few(radii), *shrinking[: len(_SHRINKING_LOOKS)]]
    ]
    if (rows.method == "dpo").any():
        chosen.insert(0, Look("DPO", style.BLACK, "", (0, (1.2, 1.2))))
        parts.insert(0, rows[rows.method == "dpo"])
    curves = [(look, curve(part, "nominal_2")) for look, part in zip(chosen, parts, strict=True)]
    return [(look, data) for look, data in curves if len(data)]


# ---------------------------------------------------------------------------------------- (5) sweep
def sweep(study: Study) -> Figure | None:
    """Tail slope at the middle radius against d, beta and B, each with the others as in the main
    world; none without a sweep."""
    radius = middle(study.radii)
    facts = {"dimension": "dimension $d$", "beta": r"$\beta$", "bound": "radius of the ball $B$"}
    series = {
        (world, fact): _one_factor(study, world, fact) for world in study.main for fact in facts
    }
    facts = {
        fact: name
        for fact, name in facts.items()
        if any(len(series[world, fact]) > 1 for world in study.main)
    }
    if not facts:
        return None
    table = study.rates.query("target == 'robust' and norm == '2' and range == 'tail'")
    table = table[table.radius.isin([radius, ""]) & np.isfinite(table.slope)]
    names = {other.name for fact in facts for world in study.main for other in series[world, fact]}
    drawn = table[table.world.isin(names)]
    low, high = (
        np.nanmin([*drawn.ci_low, MEASURED]) - 0.03,
        np.nanmax([*drawn.ci_high, THEOREM]) + 0.03,
    )
    shown = study.errors[study.errors.world.isin(names) & study.errors.radius.isin([radius, ""])]
    note = _bound_note(study, shown)
    figure, axes = style.grid(
        style.PAGE,
        [1.75] * len(study.main),
        len(facts),
        left=0.48,
        right=0.4,
        bottom=0.72 + _room(note),
        gap_x=0.25,
        gap_y=0.68,
    )
    methods = study.methods()
    for panels, world in zip(axes, study.main, strict=True):
        for panel, (fact, name) in zip(panels, facts.items(), strict=True):
            others = series[world, fact]
            panel.set(ylim=(low, high), xlabel=name, xlim=(-0.5, len(others) - 0.5))
            panel.set_xticks(range(len(others)), [f"{getattr(other, fact):g}" for other in others])
            panel.tick_params(axis="x", length=0)
            for edge in range(len(others) - 1):
                panel.axvline(edge + 0.5, color=style.PALE, linewidth=0.6)
            for exponent in (MEASURED, THEOREM):
                panel.axhline(exponent, color=style.GREY, linewidth=0.7, linestyle=(0, (6, 2)))
                if panel is panels[-1]:
                    place = panel.get_yaxis_transform()
                    panel.text(
                        1.03,
                        exponent,
                        _slope_name(exponent),
                        color=style.GREY,
                        va="center",
                        transform=place,
                    )
            for k, method in enumerate(methods):
                mine = table[table.method == method].set_index("world")
                places = [
                    i + 0.8 * ((k + 0.5) / len(methods) - 0.5)
                    for i, o in enumerate(others)
                    if o.name in mine.index
                ]
                found = mine.loc[[other.name for other in others if other.name in mine.index]]
                look = style.look(method)
                panel.vlines(places, found.ci_low, found.ci_high, color=look.color, linewidth=0.7)
                panel.plot(
                    places, found.slope, look.marker, color=look.color, markersize=3.2, gid=method
                )
            panel.tick_params(labelleft=panel is panels[0])
        panels[0].set_title(world.title + (rf", $\rho$ = {radius} $\rho_c$" if radius else ""))
        panels[0].set_ylabel("slope of log error on log $n$")
    marks = [
        axes[0, 0].plot([], [], style.look(m).marker, color=style.look(m).color)[0] for m in methods
    ]
    labels = [style.look(method).label for method in methods]
    columns = math.ceil(len(methods) / 2) if len(methods) > 5 else len(methods)
    figure.legend(
        marks,
        labels,
        loc="lower center",
        bbox_to_anchor=(0.5, _room(note) / figure.get_size_inches()[1]),
        ncols=columns,
        borderaxespad=0.1,
        handletextpad=0.1,
    )
    if note:
        style.footnote(figure, note)
    return figure


def _one_factor(study: Study, base: World, fact: str) -> list[World]:
    """The worlds that differ from `base` in at most this one fact, in its order."""
    others = {"kind", "dimension", "beta", "bound"} - {fact}
    same = [
        world
        for world in study.worlds
        if all(getattr(world, other) == getattr(base, other) for other in others)
    ]
    return sorted(same, key=lambda world: float(getattr(world, fact)))


# --------------------------------------------------------------------------------------- summary.md
def summary(study: Study) -> str:
    """Markdown: for each world and method the tail slope and the fits; for each bound its coverage
    and tightness."""
    radius = middle(study.radii)
    run = study.run
    lines = [
        "# Estimation error",
        "",
        (
            f"{len(study.errors)} fits, {int((~study.errors.converged).sum())} not converged"
            f"{_met(study.errors)}; seed {run.get('seed', '?')}, code"
            f" {run.get('commit') or 'unknown'}."
        ),
        *(
            f"\nThe bound binds in the population of {world.name}, for {world.targets_at_bound}:"
            " these targets are those of B."
            for world in study.worlds
            if world.targets_at_bound
        ),
        "",
        "## Slopes",
        "",
        (
            "Slope of log error on log n: 2-norm to the robust target, upper half of the sizes,"
            f" radius {radius or 'none'} of the collapse radius, with 95 % bootstrap interval; then"
            " the range of the slopes over all fixed radii."
        ),
        "",
        "| world | method | slope | 95 % interval | over all radii | fits | not converged |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    table = study.rates.query("target == 'robust' and norm == '2' and range == 'tail'")
    for world in study.worlds:
        for method in study.methods(world.name):
            fits = study.errors[
                (study.errors.world == world.name) & (study.errors.method == method)
            ]
            rates = table[(table.world == world.name) & (table.method == method)]
            at = rates[rates.radius.isin([radius, ""])]
            cells = [
                world.name,
                method,
                *(_slope_cells(at.iloc[0]) if len(at) else ("no rate", "")),
                _range(rates.slope),
            ]
            lines.append(
                "| "
                + " | ".join([*cells, str(len(fits)), str(int((~fits.converged).sum()))])
                + " |"
            )
    lines += [
        "",
        "## Bounds",
        "",
        (
            "At the largest n: the bound, the 95 % quantile of the error, their ratio (tightness),"
            " and the share of replicates within the bound (coverage); last, the lowest coverage"
            " over all n and radii."
        ),
        "",
        (
            "| world | statement | method | n | bound | error quantile | tightness | coverage |"
            " lowest coverage |"
        ),
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for (name, statement, method), rows in study.bounds.groupby(
        ["world", "statement", "method"], sort=False
    ):
        at = rows[rows.radius.isin([radius, ""])]
        if at.empty:
            continue
        last = at.loc[at.n.idxmax()]
        numbers = [
            _number(last.bound),
            _number(last.error_q),
            _number(last.tightness),
            _percent(last.coverage),
        ]
        lines.append(
            "| "
            + " | ".join(
                [name, statement, method, str(last.n), *numbers, _percent(rows.coverage.min())]
            )
            + " |"
        )
    if study.bounds.empty:
        lines.append("\nNo method of this run has a bound.")
    return "\n".join(lines) + "\n"


def _met(fits: pd.DataFrame) -> str:
    if "at_bound" not in fits:
        return ""
    return f", {int(fits.at_bound.sum())} at the bound ||theta|| = B"


def _slope_cells(row: pd.Series) -> tuple[str, str]:
    if not math.isfinite(row.slope):
        return "no rate", ""
    return f"{row.slope:.3f}", f"[{row.ci_low:.3f}, {row.ci_high:.3f}]"


def _range(values: pd.Series) -> str:
    values = values[np.isfinite(values)]
    return f"{values.min():.3f} to {values.max():.3f}" if len(values) > 1 else ""


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "infinite"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# ------------------------------------------------------------------------------------------ drawing
FIGURES: dict[str, Callable[[Study], Figure | None]] = {
    "estimation_error": estimation_error,
    "slopes": slopes,
    "tightness": tightness,
    "bias": bias,
    "sweep": sweep,
}


def draw(source: Path, out: Path) -> list[Path]:
    """Draw every figure that the tables in `source` allow, as PDF and PNG, and summary.md; returns
    the paths written.

    Args:
        source: folder of `prefdro run estimation-error`.
        out: folder of the figures.

    Raises:
        ValueError: a table or a column is missing.
    """
    study = read(source)
    figures = ((name, make(study)) for name, make in FIGURES.items())
    return style.save_all(figures, out, summary(study))
