"""Rows of preference data as plain Python objects, exactly as they stand in their file, and the
account of those that are bad.

A row is a dict; a key that a row does not have is not there. Rows are counted from 1 in everything
that a person reads, lines of a file too.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Dataset

Row = dict[str, Any]
RUN = 10  # so many consecutive rows are written as 3-12
DROP = "leave them out with --drop_bad_rows (BadRows(drop=True) in Python)"


def as_rows(data: Sequence[Mapping[str, Any]] | Dataset | pd.DataFrame) -> list[Row]:
    """Rows of a list of dicts, a data set or a table.

    Arrow and pandas give every object the keys of all others, with nulls: those nulls are taken
    away again, except for the content of a message. A list of dicts is handed on as it is.

    Raises:
        ValueError: it is none of them.
    """
    if isinstance(data, Dataset):
        return of_arrow(data.with_format("arrow")[:])
    if isinstance(data, pd.DataFrame):
        cells = {str(name): [_of_pandas(cell) for cell in data[name]] for name in data.columns}
        return _transposed(cells, len(data))
    if (
        isinstance(data, Sequence)
        and not isinstance(data, str)
        and all(isinstance(row, Mapping) for row in data)
    ):
        return [
            {k: v.item() if isinstance(v, np.generic) else v for k, v in row.items()}
            for row in data
        ]
    raise ValueError(
        f"rows must be a list of dicts, a Dataset or a DataFrame, got {type(data).__name__}."
    )


def of_arrow(table: pa.Table) -> list[Row]:
    """Rows of an Arrow table."""
    cells = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        plain = _plain(column.type)
        if isinstance(column.type, pa.BaseExtensionType):
            column = pa.chunked_array(
                [chunk.storage for chunk in column.chunks], type=column.type.storage_type
            )
        cells[name] = (
            column.to_pylist() if plain is None else [plain(cell) for cell in column.to_pylist()]
        )
    return _transposed(cells, len(table))


def column_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """All keys, in the order of their first appearance."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    return list(names)


def renamed(rows: list[Row], names: Mapping[str, str]) -> list[Row]:
    """The same rows with the columns `names` (ours -> theirs) under our names; what stood there
    before is left out.

    Raises:
        ValueError: the rows have no such column.
    """
    there = column_names(rows)
    for ours, theirs in names.items():
        if theirs not in there:
            raise ValueError(
                f"--columns {ours}={theirs}: the data have no column {theirs!r}; they have"
                f" {', '.join(there)}."
            )
    back = {theirs: ours for ours, theirs in names.items()}
    return [
        {back.get(k, k): v for k, v in row.items() if k in back or k not in names} for row in rows
    ]


def which(rows: Iterable[int]) -> str:
    """`3 rows (1, 5, 10)`, `1 row (8)`: how many and all their numbers, from 1, of positions from
    0; runs as 3-12."""
    numbers = sorted({int(row) + 1 for row in rows})
    parts: list[str] = []
    start = 0
    for i, number in enumerate(numbers):
        if i + 1 == len(numbers) or numbers[i + 1] != number + 1:
            run = numbers[start : i + 1]
            parts += [f"{run[0]}-{run[-1]}"] if len(run) >= RUN else map(str, run)
            start = i + 1
    return f"{len(numbers)} row{'s' if len(numbers) != 1 else ''} ({', '.join(parts)})"


class BadRows:
    """The rows of one data set that cannot be used or were left out, by position from 0, each with
    the first reason found.

    drop: leave out what cannot be used, instead of an error that lists it. source: what the rows
    are of, for the messages; `load_rows` fills it in.
    """

    def __init__(self, drop: bool = False, source: str = "") -> None:
        self.drop, self.source = drop, source
        self._reasons: dict[int, str] = {}
        self._details: dict[int, str] = {}
        self._harmless: set[int] = set()

    def add(self, rows: Iterable[int], reason: str, detail: str = "") -> None:
        """Rows that cannot be used. `reason` is the same for all rows of a kind, `detail` of the
        first of them."""
        for row in map(int, rows):
            if row not in self._reasons:
                self._reasons[row], self._details[row] = reason, detail

    def leave_out(self, rows: Iterable[int], reason: str) -> None:
        """Rows that are left out in any case, since nothing can be learnt from them."""
        for row in map(int, rows):
            if row not in self._reasons:
                self._reasons[row] = reason
                self._harmless.add(row)

    def __contains__(self, row: int) -> bool:
        return row in self._reasons

    def __len__(self) -> int:
        return len(self._reasons)

    def settle(self, count: int) -> None:
        """Raise ValueError where one of `count` rows cannot be used, unless such rows are left out
        and others remain."""
        bad = self._reasons.keys() - self._harmless
        if not bad or (self.drop and len(self) < count):
            return
        remedy = (
            f"Correct or remove them, or {DROP}"
            if len(bad) < count
            else "Correct them, or check that this is the right file"
        )
        of = (
            f"{len(bad)} of {count} rows cannot be used"
            if len(bad) < count
            else f"none of the {count} rows can be used"
        )
        raise ValueError(f"{self._where()}{of}: {self._by_reason(bad)}. {remedy}.")

    def summary(self, count: int) -> str:
        """What was left out of `count` rows and why; empty where nothing was."""
        if not self._reasons:
            return ""
        are = "is" if len(self) == 1 else "are"
        return (
            f"{self._where()}{len(self)} of {count} rows {are} left out:"
            f" {self._by_reason(self._reasons)}."
        )

    def write(self, path: Path) -> None:
        """All rows left out as a CSV of row (from 1) and reason; without any, no file, and an older
        one is removed."""
        if not self._reasons:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = sorted(self._reasons)
        reasons = [
            self._reasons[row] + (f" ({detail})" if (detail := self._details.get(row)) else "")
            for row in rows
        ]
        pd.DataFrame({"row": [row + 1 for row in rows], "reason": reasons}).to_csv(
            path, index=False, encoding="utf-8"
        )

    def _where(self) -> str:
        return f"{self.source}: " if self.source else ""

    def _by_reason(self, rows: Iterable[int]) -> str:
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for row in sorted(rows):
            groups[self._reasons[row]].append(row)
        parts = []
        for reason, group in groups.items():
            details = [self._details[row] for row in group if self._details.get(row)]
            first = (
                "" if not details else f" ({'the first: ' if len(group) > 1 else ''}{details[0]})"
            )
            parts.append(f"{which(group)} {reason}{first}")
        return "; ".join(parts)


def _transposed(cells: dict[str, list[Any]], count: int) -> list[Row]:
    return [
        {name: column[i] for name, column in cells.items() if column[i] is not None}
        for i in range(count)
    ]


def _plain(type_: pa.DataType) -> Callable[[Any], Any] | None:
    """From what Arrow gives for a cell to what was stored; None where they are the same."""
    if isinstance(type_, pa.BaseExtensionType):
        return _of_json if type_.extension_name == "arrow.json" else _plain(type_.storage_type)
    if pa.types.is_dictionary(type_):
        return _plain(type_.value_type)
    if pa.types.is_map(type_):
        inner = _plain(type_.item_type) or (lambda cell: cell)
        return lambda cell: None if cell is None else {key: inner(value) for key, value in cell}
    if pa.types.is_struct(type_):
        fields = {field.name: _plain(field.type) or (lambda cell: cell) for field in type_}
        return lambda cell: (
            None if cell is None else _without_filled({k: fields[k](v) for k, v in cell.items()})
        )
    if (
        pa.types.is_list(type_)
        or pa.types.is_large_list(type_)
        or pa.types.is_fixed_size_list(type_)
    ):
        element = _plain(type_.value_type)
        return (
            None
            if element is None
            else lambda cell: None if cell is None else [element(x) for x in cell]
        )
    return None


def _without_filled(cell: dict[str, Any]) -> dict[str, Any]:
    """Without the nulls that stand for absent keys; a message keeps its content, which is null
    beside a tool call."""
    return {k: v for k, v in cell.items() if v is not None or (k == "content" and "role" in cell)}


def _of_json(cell: Any) -> Any:
    return None if cell is None else json.loads(cell)


def _of_pandas(cell: Any) -> Any:
    if isinstance(cell, np.ndarray):
        cell = cell.tolist()
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, list | tuple):
        return [_of_pandas(x) for x in cell]
    if isinstance(cell, dict):
        return _without_filled({k: _of_pandas(v) for k, v in cell.items()})
    return (
        None if cell is None or cell is pd.NA or cell is pd.NaT or cell != cell else cell
    )  # NaN: pandas' word for missing
