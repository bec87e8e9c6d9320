"""Read the tables of a finished experiment; what is missing is said, with the command that makes
it."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

Tables = dict[str, pd.DataFrame]


def read_tables(
    source: Path,
    columns: Mapping[str, Collection[str]],
    command: str,
    *,
    text: Collection[str] = (),
    may_be_empty: Collection[str] = (),
) -> tuple[Tables, dict[str, Any]]:
    """The tables of a folder by the stem of their file, and its run.json.

    Args:
        columns: file name (.csv or .parquet) -> the columns that the figures need.
        command: makes the tables, such as `prefdro run aot`.
        text: columns of .csv files that are read as text.
        may_be_empty: files that may have no rows.

    Raises:
        ValueError: a table, a column or all rows are missing.
    """
    remedy = remedy_of(source, command)
    missing = [name for name in [*columns, "run.json"] if not (source / name).is_file()]
    if missing:
        raise ValueError(f"{source} has no {' and no '.join(missing)}. {remedy}")
    tables = {}
    for name, needed in columns.items():
        path = source / name
        if name.endswith(".parquet"):
            table = pd.read_parquet(path)
        elif path.read_text(encoding="utf-8").strip():
            table = pd.read_csv(path, dtype=dict.fromkeys(text, "str"))
        else:
            table = pd.DataFrame(columns=list(needed))
        lacking = [column for column in needed if column not in table]
        if lacking:
            raise ValueError(
                f"{path} has no column {', '.join(lacking)}; it has {', '.join(table)}. {remedy}"
            )
        if table.empty and name not in may_be_empty:
            raise ValueError(f"{path} has no rows. {remedy}")
        tables[path.stem] = table
    return tables, json.loads((source / "run.json").read_text(encoding="utf-8"))


def says(folder: Path, **facts: Any) -> bool:
    """Whether the run.json of a folder is there and says all of that."""
    record = folder / "run.json"
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    return all(name in known and known[name] == value for name, value in facts.items())


def remedy_of(source: Path, command: str) -> str:
    return f"Make the tables with `{command} --out {source}`."


def study_folder(results: Path, experiment: str) -> Path:
    """The folder of an experiment in the folder `results` of all of them; `results` itself where
    that is the experiment's.

    Raises:
        ValueError: neither is there, with the command that makes the rows.
    """
    if (results / experiment).is_dir():
        return results / experiment
    record = results / "run.json"
    if (
        record.is_file()
        and json.loads(record.read_text(encoding="utf-8")).get("experiment") == experiment
    ):
        return results
    raise ValueError(
        f"{results} has no folder {experiment}."
        f" {remedy_of(results / experiment, f'prefdro run {experiment}')}"
    )
