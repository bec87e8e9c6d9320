"""One look for all figures: sizes in inches as printed, colours for colour-blind readers, markers
and dashes for grey print."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatterMathtext, LogLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

COLUMN, PAGE = 3.35, 6.9  # widths of one column and of the page, inches
FONT = 8.0  # points
LINE_HEIGHT = 9.5 / 72  # least distance between two lines of text, inches

# Okabe and Ito, "Color universal design" (2008); their yellow is too light for lines on white.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY, PALE = "#767676", "#E8E8E8"
# of Paul Tol's "Colour schemes" (2021), muted: they stay apart from the above for every eye
_SPARE_COLORS = ("#882255", "#999933", "#332288")

_RC: dict[str, Any] = {
    "font.family": "STIXGeneral",  # comes with matplotlib: the same on every machine
    "mathtext.fontset": "stix",
    "font.size": FONT,
    "axes.titlesize": FONT,
    "axes.labelsize": FONT,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 5.0,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.6,
    "lines.markeredgewidth": 0.8,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": 300,
}


@dataclass(frozen=True)
class Look:
    """How one series is drawn, and what it is called."""

    label: str
    color: str
    marker: str
    dashes: str | tuple[float, tuple[float, ...]] = "-"

    @property
    def line(self) -> dict[str, Any]:
        """The arguments of `Axes.plot`."""
        return {"color": self.color, "marker": self.marker, "linestyle": self.dashes}


_DASHED, _DOTTED = (0, (4, 1.5)), (0, (1.2, 1.2))
_SPARE = ("8", "H", "*", "p", "h")  # they have an inside: filled or not can be seen
METHODS = {
    "dpo": Look("DPO", BLACK, "o"),
    "kldpo": Look("KLDPO", BLUE, "s"),
    "kldpo-tilt": Look("KLDPO, tilt", SKY, "D", _DASHED),
    "wdpo-w1": Look("WDPO $W_1$", VERMILLION, "^"),
    "wdpo-w2": Look("WDPO $W_2$", ORANGE, "v", _DASHED),
    "wdpo-w1-free": Look("WDPO $W_1$ free", PURPLE, "<"),
    "wdpo-w1-label": Look("WDPO $W_1$ labels", PURPLE, ">", _DOTTED),
    "wdpo-w2-free": Look("WDPO $W_2$ free", PURPLE, "d", _DASHED),
    "wdpo-norm": Look("WDPO, norm", GREEN, "P"),
    "wdpo-squared": Look("WDPO, squared", GREEN, "X", _DASHED),
    "chi2-dpo": Look(r"DPO, $\chi^2$", _SPARE_COLORS[0], "h"),
    "cvar-dpo": Look("DPO, CVaR", _SPARE_COLORS[1], "*", _DASHED),
    "tv-dpo": Look("DPO, TV", _SPARE_COLORS[2], "p", _DOTTED),
    "chi2-label-dpo": Look(r"DPO, $\chi^2$ of labels", _SPARE_COLORS[0], "H", _DASHED),
    "tv-label-dpo": Look("DPO, TV of labels", _SPARE_COLORS[2], "8"),
    "worst-loss": Look("worst loss", SKY, "H"),
    "worst-regret": Look("worst regret", GREEN, "8"),
}


def look(method: str) -> Look:
    """The look of a method; one without its own has its name for a label, and a spare colour and
    marker that hang on the name."""
    number = sum(map(ord, method))
    color, marker = _SPARE_COLORS[number % len(_SPARE_COLORS)], _SPARE[number % len(_SPARE)]
    return METHODS.get(method, Look(method, color, marker, _DOTTED))


@contextmanager
def paper() -> Iterator[None]:
    """Draw and save inside this context: matplotlib's own defaults and this style, whatever the
    user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)  # type: ignore[arg-type]
        yield


def grid(
    width: float,
    heights: Sequence[float],
    columns: int,
    *,
    left: float,
    right: float,
    top: float = 0.25,
    bottom: float = 0.38,
    gap_x: float = 0.5,
    gap_y: float = 0.5,
) -> tuple[Figure, NDArray[Any]]:
    """A figure and its axes (rows, columns). All in inches: panel heights from the top, margins,
    gaps between panels."""
    height = top + sum(heights) + gap_y * (len(heights) - 1) + bottom
    panel = (width - left - right - gap_x * (columns - 1)) / columns
    figure = Figure(figsize=(width, height))
    axes = np.empty((len(heights), columns), dtype=object)
    y = height - top
    for i, h in enumerate(heights):
        y -= h
        for j in range(columns):
            x = left + j * (panel + gap_x)
            axes[i, j] = figure.add_axes((x / width, y / height, panel / width, h / height))
        y -= gap_y
    return figure, axes


def decades(axis: Axis, low: float, high: float) -> None:
    """A logarithmic axis from low to high: powers of ten, or 1, 2, 5 in plain numbers where there
    are few of those."""
    axes = axis.axes
    axes.set(
        **(
            {"xscale": "log", "xlim": (low, high)}
            if axis is axes.xaxis
            else {"yscale": "log", "ylim": (low, high)}
        )
    )
    powers = math.floor(math.log10(high)) - math.ceil(math.log10(low)) + 1
    if powers >= 3:
        axis.set_major_locator(LogLocator(10, numticks=8))
        axis.set_major_formatter(LogFormatterMathtext(10))
    else:
        axis.set_major_locator(
            LogLocator(10, subs=(1.0, 2.0, 5.0) if powers < 2 else (1.0, 3.0), numticks=12)
        )
        axis.set_major_formatter(
            FuncFormatter(
                lambda value, _: (
                    f"{value:g}" if value < 1e4 else f"$10^{{{math.log10(value):.0f}}}$"
                )
            )
        )
    axis.set_minor_locator(LogLocator(10, subs=tuple(range(2, 10)), numticks=12))
    axis.set_minor_formatter(NullFormatter())


def inches(axes: Axes) -> tuple[float, float]:
    """Width and height of a panel."""
    box, size = axes.get_position(), axes.get_figure(root=True).get_size_inches()  # type: ignore[union-attr]
    return box.width * size[0], box.height * size[1]


def spread(wanted: Sequence[float], gap: float) -> NDArray[Any]:
    """Positions in [0, 1], as near as possible to those wanted, in the same order and `gap`
    apart."""
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(order))
    packed = isotonic_regression(np.asarray(wanted, dtype=float)[order] - steps).x
    places = np.empty(len(order))
    places[order] = np.clip(packed, 0, max(1 - gap * (len(order) - 1), 0)) + steps
    return places


def label_ends(
    axes: Axes, ends: Sequence[tuple[float, float, str, Look]], *, offset: float = 0.22
) -> None:
    """Name series at the right of the panel: (x, y) of the last point, text, look. Call it when the
    limits are final."""
    if not ends:
        return
    width, height = inches(axes)
    to_panel = axes.transData + axes.transAxes.inverted()
    wanted = [float(to_panel.transform((x, y))[1]) for x, y, _, _ in ends]
    for (x, y, text, style), place in zip(ends, spread(wanted, LINE_HEIGHT / height), strict=True):
        start = 1 + offset / width
        axes.annotate(
            "",
            xy=(x, y),
            xytext=(start - 0.06 / width, place),
            textcoords="axes fraction",
            arrowprops={
                "arrowstyle": "-",
                "color": style.color,
                "lw": 0.5,
                "shrinkA": 0,
                "shrinkB": 3,
            },
            annotation_clip=False,
        )
        axes.plot(start, place, **style.line, transform=axes.transAxes, clip_on=False)
        axes.text(
            start + (0.07 if style.marker else -0.02) / width,
            place,
            text,
            transform=axes.transAxes,
            va="center_baseline",
            ha="left",
        )


def heading(axes: Axes, text: str) -> None:
    """A heading for a row of panels, above the title of its first one."""
    whole = axes.get_figure(root=True)
    assert whole is not None
    place = axes.transAxes + ScaledTranslation(0, 17 / 72, whole.dpi_scale_trans)
    axes.text(0, 1, text, transform=place, va="bottom", weight="bold")


def footnote(figure: Figure, text: str) -> None:
    """A line in small print at the bottom."""
    width, height = figure.get_size_inches()
    figure.text(0.05 / width, 0.04 / height, text, fontsize=7.5, va="bottom", color=GREY)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.pdf and `stem`.png; the same figure gives the same bytes."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_suffix(".pdf"), stem.with_suffix(".png")]
    figure.savefig(paths[0], metadata={"CreationDate": None})
    figure.savefig(paths[1])
    return paths


def save_all(
    figures: Iterable[tuple[str, Figure | None]], out: Path, summary: str | None = None
) -> list[Path]:
    """Save each named figure (None: nothing to show) in the style of the paper, and `summary` as
    summary.md; the paths written.

    `figures` may be a generator: each figure is made, saved and let go before the next.
    """
    written: list[Path] = []
    with paper():
        for name, figure in figures:
            if figure is not None:
                written += save(figure, out / name)
    if summary is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "summary.md").write_text(summary, encoding="utf-8")
        written.append(out / "summary.md")
    return written
