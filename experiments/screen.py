"""Tables on a screen: rich ones in a terminal, plain aligned text in pipes and files. No cell is
cut in either."""

import math
import sys
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def show(rows: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Print rows, whose columns are those of the first: a line each in a pipe, where nothing is
    wrapped."""
    if not rows:
        print(f"{title}: no rows" if title else "no rows")
        return
    cells = {name: [text(row[name]) for row in rows] for name in rows[0]}
    numbers = {name for name in cells if all(isinstance(row[name], Real | None) for row in rows)}
    if sys.stdout.isatty():
        Console().print(_rich(cells, numbers, title))
    else:
        print(_plain(cells, numbers, title))


def text(value: Any) -> str:
    """A cell: numbers with four digits, yes or NO, and nothing for what is missing."""
    if value is None or (isinstance(value, Real) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, Real) and not isinstance(value, Integral):
        return f"{value:.4g}"
    return str(value)


def _plain(cells: dict[str, list[str]], numbers: set[str], title: str) -> str:
    columns = []
    for name, column in cells.items():
        width = max(map(len, [name, *column]))
        aligned = str.rjust if name in numbers else str.ljust
        columns.append([aligned(cell, width) for cell in [name, *column]])
    lines = ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]
    return "\n".join([*([title] if title else []), *lines, ""])


def _rich(cells: dict[str, list[str]], numbers: set[str], title: str) -> Table:
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in cells:
        # folded where it does not fit: rich's own choice is to cut it
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for line in zip(*cells.values(), strict=True):
        table.add_row(*map(escape, line))
    return table
