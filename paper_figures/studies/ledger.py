"""Figures of `prefdro verify`: the ledger at a glance, and one figure for each claim whose tables
can be drawn.

Everything is read from ledger.parquet and tables/CLAIM--TABLE.parquet, with - for any / in a name.
A table is drawn, as one panel with the table's name as its title, when it has the columns `x` and
`y`. Optional columns: `low` and `high` (a band, or whiskers), `series` (its name), and, the same in
all rows, `x_label`, `y_label`, `log` ("x", "y" or "xy"), `kind` ("line", "points" or "bars") and
`guide` (a thin line to compare with: "y = x", or "y = " and a number).
"""

import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from paper_figures import style
from paper_figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    VERMILLION,
    Look,
)

COLUMNS = ("claim", "subject", "verdict", "figure", "tables")
VERDICTS = {
    "holds": Look("holds", GREEN, "o"),
    "holds, loose": Look("holds, loose", SKY, "s"),
    "proof gap": Look("proof gap", ORANGE, "D"),
    "refuted": Look("refuted", VERMILLION, "X"),
    "assumption holds": Look("assumption holds", GREEN, "v"),
    "assumption can fail": Look("assumption can fail", PURPLE, "v"),
    "derived, holds": Look("derived, holds", BLUE, "^"),
    "derived, loose": Look("derived, loose", SKY, "^"),
    "derived, proof gap": Look("derived, proof gap", ORANGE, "^"),
    "derived, fails": Look("derived, fails", VERMILLION, "^"),
    "identity": Look("identity", GREY, "o"),
    "identity, fails": Look("identity, fails", VERMILLION, "o"),
    "inconclusive": Look("inconclusive", GREY, "$?$"),
}
KINDS = ("line", "points", "bars")
_GUIDE: dict[str, Any] = {"color": GREY, "linewidth": 0.6, "zorder": 0.5}
_COLORS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
_PAIR = (", measured", ", predicted")
_NAMED, _SHORT = (
    6,
    34,
)  # so many series with names of so many letters are named at their ends; others go into a legend
_LETTER = 0.051  # width of a letter in a label, inches: the widest that a mean over a line gets
_LONGEST = 110  # characters of a key figure
_LEFT, _TITLE, _BELOW, _NARROWEST = (
    0.6,
    0.3,
    0.48,
    1.5,
)  # inches: margins of a panel, and its least width with names at its side
_ASIDE = 0.3  # inches, between the first and the last series of points with whiskers
_TURN = 30  # degrees, of words below bars that have no room side by side


# -------------------------------------------------------------------------------------- at a glance
def glance(claims: pd.DataFrame) -> Figure:
    """Claims as rows, grouped by subject: verdict by colour, shape and word, and the key figure."""
    left, word, figure_at = 1.72, 1.86, 2.98  # inches: end of the names, verdict, key figure
    room = int((style.PAGE - figure_at - 0.05) / (0.84 * _LETTER))  # in smaller print
    line, top = 0.135, 0.12
    rows: list[tuple[float, Any, list[str]]] = []  # height, claim, wrapped key figure
    headings: list[tuple[float, str]] = []
    y, subject = top, None
    for claim in claims.itertuples():
        if claim.subject != subject:
            y += 0.08 if subject else 0.0
            headings.append((y, claim.subject))
            y, subject = y + line + 0.02, claim.subject
        text = textwrap.wrap(
            textwrap.shorten(claim.figure, 2 * _LONGEST, placeholder=" ..."), room
        ) or [""]
        rows.append((y, claim, text))
        y += line * len(text) + 0.035
    height = y + 0.36
    figure = Figure(figsize=(style.PAGE, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, style.PAGE), ylim=(height, 0))
    axes.axis("off")
    for place, name in headings:
        axes.text(0.06, place, name, weight="bold", va="center")
        axes.axhline(place + line / 2 + 0.005, color=PALE, linewidth=0.6)
    for place, claim, text in rows:
        look = VERDICTS.get(claim.verdict, Look(claim.verdict, GREY, "*"))
        axes.text(left, place, claim.claim, ha="right", va="center", fontsize=7.5)
        axes.plot(
            word - 0.05,
            place,
            marker=look.marker,
            color=look.color,
            markersize=4.6,
            gid=claim.claim,
            clip_on=False,
        )
        axes.text(
            word + 0.05,
            place,
            claim.verdict,
            va="center",
            fontsize=7.5,
            weight="bold",
            color=look.color if _dark(look) else BLACK,
        )
        for k, part in enumerate(text):
            axes.text(figure_at, place + k * line, part, va="center", fontsize=7, parse_math=False)
    counts = claims.verdict.value_counts()
    total = "; ".join(f"{counts[name]} × {name}" for name in VERDICTS if name in counts)
    style.footnote(figure, f"{len(claims)} claims: {total}.")
    return figure


def _dark(look: Look) -> bool:
    """Whether a word in this colour can be read on white."""
    return look.color in (GREEN, VERMILLION, GREY, BLUE)


# ------------------------------------------------------------------------------- one claim's tables
_ENDS = {"": "", "*": "^*", "_ref": r"_{\mathrm{ref}}", "_rho": r"_\rho", "_n": "_n"}
_SET = re.compile(
    r"(?P<dollar>\$)"
    r"|(?P<bars>\|\|)"
    r"|(?P<first>\b\d(?:\.\d+)?)e(?P<power>[+-]\d+)\b"
    r"|\b(?P<greek>theta|rho|lambda|tau|beta|delta|eta|sigma)(?P<end>_ref|_rho|_n|\*)?(?![\w*])"
    r"|\b(?P<letter>OT|[A-Z])_(?P<index>[0hn])\b"
    r"|\bsqrt\((?P<root>[a-z])\)"
    r"|\b(?P<chi>chi2)\b"
    r"|\b(?P<plain>n\b|L\b|[dB](?= = ))"
    r"|\^(?:\((?P<inside>-?[\d./]+)\)|(?P<bare>-?\d+(?:[./]\d+)?))"
    r"|(?P<minus>(?<= )-(?= ))"
)


def _set(found: re.Match[str]) -> str:
    """One piece of a label, between dollars."""
    part = found.groupdict()
    if part["dollar"]:
        return r"\$"
    if part["bars"]:
        shown = r"\|"
    elif part["first"]:
        times = "" if part["first"] == "1" else part["first"] + r"\times "
        shown = f"{times}10^{{{int(part['power'])}}}"
    elif part["greek"]:
        shown = f"\\{part['greek']}{_ENDS[part['end'] or '']}"
    elif part["letter"]:
        name = r"\mathrm{OT}" if part["letter"] == "OT" else part["letter"]
        shown = f"{name}_{part['index']}"
    elif part["root"]:
        shown = rf"\sqrt{{{part['root']}}}"
    elif part["chi"]:
        shown = r"\chi^2"
    elif part["minus"]:
        shown = "-"
    else:
        shown = part["plain"] or f"^{{{part['inside'] or part['bare']}}}"
    return f"${shown}$"


def letters(label: str) -> str:
    """A label of the tables, a title or the name of a series, with letters, indices, powers and
    numbers set as such: `||theta_n - theta_rho||`, `n^(-1/4)`, `n = 1e+04`.

    >>> letters("lambda* (nats) of ||theta_n||")
    '$\\\\lambda^*$ (nats) of $\\\\|\\\\theta_n\\\\|$'
    >>> letters("n^(-1/4)"), letters("rho = 6.7e-05")
    ('$n^{-1/4}$', '$\\\\rho$ = $6.7\\\\times 10^{-5}$')
    """
    return _SET.sub(_set, label).replace("$$", "").replace("$ $-$ $", " - ").replace("$ $-", "$ -")


def claim_figure(tables: dict[str, pd.DataFrame]) -> Figure | None:
    """A panel for each table that has x and y; None where none has. Series of the same name look
    the same in all panels."""
    panels = {title: rows for title, rows in tables.items() if drawable(rows)}
    if not panels:
        return None
    series = {title: list(_series(rows)) for title, rows in panels.items()}
    looks = _looks(list(dict.fromkeys(name for names in series.values() for name in names)))
    columns = min(len(panels), 2 if len(panels) <= 4 else 3)
    width = style.COLUMN * 1.5 if columns == 1 else style.PAGE
    several = [set(names) for names in series.values() if len(names) > 1]
    shared = len(several) > 1 and all(names == several[0] for names in several)
    ended, right = ([], 0.15) if shared else _room_for_names(panels, series, width, columns)
    legends = {
        title: names
        for title, names in series.items()
        if not shared and title not in ended and len(names) > 1
    }
    panel = (width - columns * (_LEFT + right)) / columns

    titles = {title: textwrap.fill(_spaced(title), int(panel / _LETTER)) for title in panels}
    top = _TITLE + max(title.count("\n") for title in titles.values()) * style.LINE_HEIGHT
    rows_of_panels = math.ceil(len(panels) / columns)
    last = list(panels)[(rows_of_panels - 1) * columns :]
    keys = {
        title: _legend_lines(names, width / columns) * style.LINE_HEIGHT
        for title, names in legends.items()
    }
    key, last_key = (
        max((h for title, h in keys.items() if (title in last) == end), default=0.0)
        for end in (False, True)
    )
    below = _BELOW + max(_turned_height(rows, panel) for rows in panels.values())
    bottom = (
        below
        + last_key
        + (_legend_lines(list(looks), width) * style.LINE_HEIGHT if shared else 0.0)
    )
    heights = [2.0 if columns < 3 else 1.5] * rows_of_panels
    figure, axes = style.grid(
        width,
        heights,
        columns,
        left=_LEFT,
        right=right,
        top=top,
        bottom=bottom,
        gap_x=_LEFT + right,
        gap_y=below + key + top - 0.03,
    )
    for place, (title, rows) in zip(axes.flat, panels.items(), strict=False):
        _draw(place, rows, titles[title], looks, named=title in ended)
        if title in legends:
            _legend(
                place,
                {name: looks[name] for name in legends[title]},
                _kind(rows),
                width / columns,
                below,
            )
    if shared:
        _legend(
            axes[-1, 0],
            {name: looks[name] for name in looks if name},
            _kind(next(iter(panels.values()))),
            width,
            below,
        )
    for place in axes.flat[len(panels) :]:
        place.set_visible(False)
    return figure


def _room_for_names(
    panels: dict[str, pd.DataFrame], series: dict[str, list[str]], width: float, columns: int
) -> tuple[list[str], float]:
    """The panels whose few curves are named at their ends, and the margin that takes, in inches."""
    few = [
        title
        for title, names in series.items()
        if 1 < len(names) <= _NAMED
        and max(map(len, names)) <= _SHORT
        and _kind(panels[title]) == "line"
        if panels[title].groupby("series").x.max().nunique()
        == 1  # a line from a name to an end further left looks like a curve
    ]
    right = 0.45 + _LETTER * max((len(name) for title in few for name in series[title]), default=0)
    if not few or width / columns - _LEFT - right < _NARROWEST:
        return [], 0.15
    return few, right


def _spaced(title: str) -> str:
    return title if " " in title else title.replace("_", " ")


def drawable(rows: pd.DataFrame) -> bool:
    """Whether a table has at least one finite point; bars may stand at names."""
    if not {"x", "y"} <= set(rows):
        return False
    numeric = _kind(rows) == "bars" or pd.api.types.is_numeric_dtype(rows.x)
    return (
        numeric
        and pd.api.types.is_numeric_dtype(rows.y)
        and bool(np.isfinite(rows.y.astype(float)).any())
    )


def _kind(rows: pd.DataFrame) -> str:
    kind = _constant(rows, "kind", "line")
    if kind not in KINDS:
        raise ValueError(
            f"a table of the ledger asks for the kind {kind!r}; there are {', '.join(KINDS)}."
        )
    return kind


def _constant(rows: pd.DataFrame, column: str, default: str) -> str:
    return (
        str(rows[column].iloc[0]) if column in rows and pd.notna(rows[column].iloc[0]) else default
    )


def _series(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Name -> rows, in the order of the table."""
    if "series" not in rows:
        return {"": rows}
    return {str(name): group for name, group in rows.groupby("series", sort=False)}


def _looks(series: Sequence[str]) -> dict[str, Look]:
    """Colours and shapes go round together, at a different pace, and dashes change with each round
    of the colours. What is "..., measured" is marks alone, and "..., predicted" a line of the same
    colour."""
    stems = list(dict.fromkeys(_stem(name) for name in series))
    looks = {}
    for name in series:
        i, part = stems.index(_stem(name)), name.removeprefix(_stem(name))
        color = _COLORS[i % len(_COLORS)]
        marker = _MARKERS[(i + i // len(_COLORS)) % len(_MARKERS)]
        dashes = _DASHES[(i // len(_COLORS)) % len(_DASHES)]
        if part in _PAIR:
            dashes, marker = ("", marker) if part == _PAIR[0] else (dashes, "")
        looks[name] = Look(name, color, marker, dashes)
    return looks


def _stem(name: str) -> str:
    """Without what tells a measured series from the predicted one."""
    for end in _PAIR:
        name = name.removesuffix(end)
    return name


def _draw(
    axes: Axes, rows: pd.DataFrame, title: str, looks: dict[str, Look], *, named: bool
) -> None:
    kind, log = _kind(rows), _constant(rows, "log", "")
    level = _constant(rows, "guide", "").removeprefix("y = ")
    series = _series(rows)
    axes.set_title("\n".join(map(letters, title.splitlines())))
    axes.set_xlabel(letters(_constant(rows, "x_label", "")), labelpad=1)
    axes.set_ylabel(letters(_constant(rows, "y_label", "")), labelpad=2)
    if kind == "bars":
        _bars(axes, series, looks)
    else:
        for k, (name, part) in enumerate(series.items()):
            _curve(axes, part, looks[name], kind, name, (k + 0.5) / len(series))
    drawn = [rows[name].astype(float) for name in ("y", "low", "high") if name in rows]
    if level not in ("", "x"):
        axes.axhline(float(level), **_GUIDE)
        drawn.append(pd.Series([float(level)]))
    if "x" in log and kind != "bars":
        beside = 1.7 if kind == "points" and "low" in rows else 1.3
        style.decades(axes.xaxis, *_limits([rows.x.astype(float)], beside))
    if "y" in log:
        style.decades(axes.yaxis, *_limits(drawn, 1.6))
    if level == "x":
        inside = [
            max(axes.get_xlim()[0], axes.get_ylim()[0]),
            min(axes.get_xlim()[1], axes.get_ylim()[1]),
        ]
        axes.plot(inside, inside, scalex=False, scaley=False, **_GUIDE)
    if named:
        axes.autoscale_view()
        ends = []
        for name, part in series.items():
            last = part[np.isfinite(part.y)].sort_values("x").iloc[-1:]
            if len(last):
                end = float(last.x.iloc[0]), float(last.y.iloc[0])
                ends.append((*end, letters(name), looks[name]))
        style.label_ends(axes, ends)


def _limits(columns: Sequence[pd.Series], factor: float) -> tuple[float, float]:
    """Around all positive numbers; a logarithmic axis has no place for the others."""
    values = np.concatenate([column.to_numpy() for column in columns])
    values = values[np.isfinite(values) & (values > 0)]
    return (
        (float(values.min()) / factor, float(values.max()) * factor) if len(values) else (0.1, 10.0)
    )


def _curve(axes: Axes, part: pd.DataFrame, look: Look, kind: str, name: str, offset: float) -> None:
    """offset: in (0, 1), of this series among all, so that one does not hide another: marks of a
    curve of many points begin there, and points with whiskers stand side by side."""
    if kind == "points":
        size = 3.6 if len(part) < 100 else 2.0
        whiskers = {"low", "high"} <= set(part)
        place = axes.transData
        if whiskers:
            figure = axes.get_figure(root=True)
            assert figure is not None
            aside = (offset - 0.5) * _ASIDE
            place = place + ScaledTranslation(aside, 0, figure.dpi_scale_trans)
        axes.plot(
            part.x,
            part.y,
            look.marker,
            color=look.color,
            markersize=size,
            alpha=0.75,
            markeredgewidth=0,
            gid=name,
            rasterized=len(part) > 500,
            transform=place,
        )
        if whiskers:
            axes.vlines(
                part.x, part.low, part.high, color=look.color, linewidth=0.7, transform=place
            )
            for end in (part.low, part.high):
                axes.update_datalim(np.column_stack([part.x, end]))
            axes.autoscale_view()
        return
    part = part.sort_values("x", kind="stable")  # a step has two points at one x
    if {"low", "high"} <= set(part):
        axes.fill_between(part.x, part.low, part.high, color=look.color, alpha=0.13, linewidth=0)
    every = max(len(part) // 10, 1)
    axes.plot(part.x, part.y, **look.line, markevery=(int(offset * every), every), gid=name)


def _bars(axes: Axes, series: dict[str, pd.DataFrame], looks: dict[str, Look]) -> None:
    """Groups of bars at the values of x, side by side for the series."""
    places = {
        x: i for i, x in enumerate(dict.fromkeys(x for part in series.values() for x in part.x))
    }
    width = 0.8 / len(series)
    for k, (name, part) in enumerate(series.items()):
        at = np.array([places[x] for x in part.x]) + (k - (len(series) - 1) / 2) * width
        hatch = "///" if looks[name].dashes != "-" else None
        axes.bar(
            at,
            part.y,
            width * 0.9,
            color=looks[name].color,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.4,
            gid=name,
        )
        if {"low", "high"} <= set(part):
            axes.vlines(at, part.low, part.high, color=BLACK, linewidth=0.7)
    words = [_word(x) for x in places]
    turned: dict[str, Any] = {"rotation": _TURN, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(
        range(len(words)),
        [letters(word) for word in words],
        **(turned if _crowd(words, style.inches(axes)[0]) else {}),
    )


def _word(x: Any) -> str:
    return f"{x:g}" if isinstance(x, float) else str(x)


def _crowd(labels: Sequence[str], width: float) -> bool:
    return (max(map(len, labels)) + 1) * len(labels) * _LETTER > width


def _turned_height(rows: pd.DataFrame, width: float) -> float:
    """What turned words below bars need, in inches."""
    labels = list(dict.fromkeys(map(_word, rows.x)))
    if _kind(rows) != "bars" or not _crowd(labels, width):
        return 0.0
    return math.sin(math.radians(_TURN)) * _LETTER * max(map(len, labels))


def _legend_columns(series: Sequence[str], width: float) -> int:
    longest = min(max(len(name) for name in series), 60)
    return max(int((width - 0.2) / (0.4 + 0.84 * _LETTER * longest)), 1)  # in smaller print


def _legend_lines(series: Sequence[str], width: float) -> int:
    return math.ceil(len(series) / _legend_columns(series, width)) + 1


def _legend(axes: Axes, looks: dict[str, Look], kind: str, width: float, below: float) -> None:
    """Below the panel, under what is written at its axis (`below`, inches)."""
    unlike = {"bars": {"marker": "s", "linestyle": ""}, "points": {"linestyle": ""}}.get(kind, {})
    handles = [Line2D([], [], **(look.line | unlike)) for look in looks.values()]
    panel, height = style.inches(axes)
    axes.legend(
        handles,
        [letters(textwrap.shorten(name, 60, placeholder=" ...")) for name in looks],
        loc="upper left",
        bbox_to_anchor=(-0.35 / panel, -below / height),
        ncols=_legend_columns(list(looks), width),
        borderaxespad=0,
        handlelength=1.8,
        columnspacing=1.2,
        labelspacing=0.2,
        fontsize=7,
    )


# ------------------------------------------------------------------------------------------ drawing
def read(source: Path) -> tuple[pd.DataFrame, dict[str, dict[str, pd.DataFrame]]]:
    """The claims, and for each the tables it left, by name, in the claim's order.

    Raises:
        ValueError: ledger.parquet or one of its columns is missing, with the command that makes it.
    """
    remedy = f"Make it with `prefdro verify --out {source}`."
    path = source / "ledger.parquet"
    if not path.is_file():
        raise ValueError(f"{source} has no ledger.parquet. {remedy}")
    claims = pd.read_parquet(path)
    lacking = [column for column in COLUMNS if column not in claims]
    if lacking or claims.empty:
        raise ValueError(
            f"{path} has {f'no column {chr(44).join(lacking)}' if lacking else 'no rows'}. {remedy}"
        )
    tables: dict[str, dict[str, pd.DataFrame]] = {name: {} for name in claims.claim}
    for claim, titles in zip(claims.claim, claims.tables, strict=True):
        for title in titles:
            file = source / "tables" / f"{claim}--{title.replace('/', '-')}.parquet"
            if file.is_file():
                tables[claim][title] = pd.read_parquet(file)
    return claims, tables


def draw(source: Path, out: Path) -> list[Path]:
    """Draw the ledger at a glance and the figure of each claim that has one, as PDF and PNG;
    returns the paths written.

    Args:
        source: folder of `prefdro verify`.
        out: folder of the figures.
    """
    return draw_claims(source, out)


def draw_claims(source: Path, out: Path, claims: Sequence[str] | None = None) -> list[Path]:
    """`draw`, with the figures of some claims only.

    Args:
        source: folder of `prefdro verify`.
        out: folder of the figures.
        claims: draw only the figures of these, besides the glance; of all where not given.
    """
    table, tables = read(source)
    with style.paper():
        written = style.save(glance(table), out / "ledger")
        for name in table.claim:
            figure = claim_figure(tables[name]) if claims is None or name in claims else None
            if figure is not None:
                written += style.save(figure, out / name)
    return written
