"""Preference data as they are stored: a file, a folder or a data set on the hub -> rows, not yet checked."""

import gzip
import io
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets import Dataset, DatasetDict

from llm.data_checks import FORMATS, READ, TEMPLATE_INPUTS, TEXTS, which

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".csv")
JSON_BLOCK = 2**24  # bytes; a row may not be longer, so it is doubled until all fit
REWRITE = "Write or download it again"


def load_rows(source: str | Path, split: str = "train", name: str | None = None, revision: str | None = None) -> Dataset:
    """The rows of a data set, as they are: `llm.data.tokenise` checks them.

    Args:
        source: a .jsonl, .json, .parquet or .csv file (JSON also as .gz); a folder written by `Dataset.save_to_disk`; a folder
            with the hub's layout; or the name of a data set on the hub.
        split: which split of a folder or of a data set on the hub. A file has only `train`.
        name: configuration of a folder with the hub's layout, or of a data set on the hub.
        revision: revision of a data set on the hub.

    Raises:
        FileNotFoundError: there is no such file or folder, and no data set of that name can be had from the hub.
        ValueError: the file is truncated or malformed (with its line), mixes types or is empty; the split does not exist; an
            argument has no meaning for the source.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
        _refuse(path, revision=revision, name=name if saved else None)
        rows = _load_saved(path, split) if saved else _load_folder(path, split, name)
    elif path.is_file():
        _refuse(path, revision=revision, name=name, split=None if split == "train" else split)
        rows = _load_file(path)
    elif _looks_like_path(str(source)):
        raise FileNotFoundError(f"there is no file or folder {source} (looked for {path.absolute()}). Check the path.")
    else:
        rows = _load_hub(str(source), split, name, revision)
    if len(rows) == 0:
        raise ValueError(f"{source} has no rows.")
    return rows


def _refuse(path: Path, **arguments: str | None) -> None:
    for argument, value in arguments.items():
        if value is not None:
            raise ValueError(
                f"{argument} is {value!r}, which has no meaning for {path}. Leave it out, or give the data that it is for."
            )


def _looks_like_path(source: str) -> bool:
    hub_name = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source)
    return not hub_name or source.lower().endswith(ENDINGS)


def _load_saved(path: Path, split: str) -> Dataset:
    saved = datasets.load_from_disk(str(path))
    if not isinstance(saved, DatasetDict):
        _refuse(path, split=None if split == "train" else split)
        return saved
    if split not in saved:
        raise ValueError(f"{path} has no split {split!r}; it has {', '.join(saved)}.")
    return saved[split]


def _load_folder(path: Path, split: str, name: str | None) -> Dataset:
    with tempfile.TemporaryDirectory() as cache:  # converted files must not fill the user's cache
        try:
            return datasets.load_dataset(str(path), name, split=split, cache_dir=cache, keep_in_memory=True)
        except datasets.exceptions.DatasetGenerationError as error:
            raise ValueError(f"{path} cannot be read: {error.__cause__ or error}. {REWRITE}.") from error
        except FileNotFoundError as error:  # also DataFilesNotFoundError, EmptyDatasetError
            raise ValueError(
                f"{path} holds no data: neither the files of `Dataset.save_to_disk` nor a folder with the hub's layout "
                "(README.md, data/*.parquet or *.jsonl). For a single file, give its own path."
            ) from error


def _load_hub(source: str, split: str, name: str | None, revision: str | None) -> Dataset:
    try:
        return datasets.load_dataset(source, name, split=split, revision=revision)
    except OSError as error:  # no such data set, no connection, offline mode
        raise FileNotFoundError(
            f"{source} is no file or folder here, and could not be had from the hub ({error}). For local data check the path; "
            "for the hub check the name and the connection, or download it once and give the folder."
        ) from error


def _load_file(path: Path) -> Dataset:
    if not path.name.lower().endswith(ENDINGS):
        raise ValueError(f"{path}: unknown kind of file. Known endings: {', '.join(ENDINGS)}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes): it was not written, or its download failed.")
    kind = path.name.lower().removesuffix(".gz").rsplit(".", 1)[-1]
    try:
        if kind == "parquet":
            table = pa.parquet.read_table(path, memory_map=True)
        elif kind == "csv":
            table = _read_csv(path)
        else:
            table = _read_json(path)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read as {kind} ({error}): truncated, damaged or something else. {REWRITE}."
        ) from error
    twice = sorted({column for column in table.column_names if table.column_names.count(column) > 1})
    if twice:
        raise ValueError(f"{path} has more than one column {', '.join(f'`{name}`' for name in twice)}. Keep one of each name.")
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):  # pandas categories, which `datasets` cannot hold
            table = table.set_column(i, field.name, table[i].cast(field.type.value_type))
    return Dataset(table.replace_schema_metadata(None))


def _read_csv(path: Path) -> pa.Table:
    return pa.csv.read_csv(
        path,
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(column_types={column: pa.string() for column in TEXTS}, strings_can_be_null=False),
    )


def _read_json(path: Path) -> pa.Table:
    with _open(path) as file:
        beginning = file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n")
    if beginning.startswith(b"["):
        try:
            with _open(path) as file:
                values = json.load(file)
        except ValueError as error:
            raise _damaged(path, getattr(error, "lineno", None), error) from error
        return _table(path, values)
    try:
        table = _read_json_lines(path, None)
        dates = [field.name for field in table.schema if pa.types.is_temporal(field.type)]
        if dates:  # Arrow takes strings for dates where all of them are
            table = _read_json_lines(path, pa.schema([(column, pa.string()) for column in dates]))
        table.validate(full=True)  # UTF-8
        return table
    except pa.ArrowInvalid:
        return _table(path, _parse_lines(path))


def _read_json_lines(path: Path, schema: pa.Schema | None) -> pa.Table:
    options = pa.json.ParseOptions(explicit_schema=schema)
    block = JSON_BLOCK
    while True:
        try:
            with pa.input_stream(path) as file:
                return pa.json.read_json(file, pa.json.ReadOptions(block_size=block), options)
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error) or block >= 2**30:
                raise
            block *= 2


def _parse_lines(path: Path) -> list[Any]:
    """The slow way, for a file that Arrow refuses: says which line is damaged, or returns the rows for a look at their types."""
    values = []
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values.append(json.loads(line))
            except ValueError as error:
                raise _damaged(path, number, error, last=not file.read().strip()) from error
    return values


def _damaged(path: Path, line: int | None, error: Exception, last: bool = False) -> ValueError:
    place = f", line {line}" + (" (the last)" if last else "") if line else ""
    return ValueError(
        f"{path}{place}: not valid JSON ({error}). The file is probably truncated, or its writing was interrupted. {REWRITE}, or "
        "delete what is incomplete."
    )


def _table(path: Path, values: list[Any]) -> pa.Table:
    """A table of the columns that we read; other columns may hold anything."""
    bad = [i for i, value in enumerate(values) if not isinstance(value, dict)]
    if bad:
        raise ValueError(f'{path}: {which(bad)} not an object with named columns, as {{"prompt": ...}}. {REWRITE}.')
    columns = {column: [row.get(column) for row in values] for column in READ if any(column in row for row in values)}
    if values and not columns:
        there = ", ".join(values[0]) or "nothing"
        raise ValueError(f"{path} has none of the columns that are read; its first row has {there}. Accepted are {FORMATS}.")
    for column, cells in columns.items():
        kinds = [_kind(cell) for cell in cells]
        common = max(sorted(set(kinds) - {"null"}), key=kinds.count, default="null")
        bad = [i for i, kind in enumerate(kinds) if kind not in (common, "null")]
        if bad and column not in TEMPLATE_INPUTS:
            others = ", ".join(sorted({kinds[i] for i in bad}))
            raise ValueError(
                f"{path}: column `{column}` is {common} in most rows, but {which(bad)} {others}. Correct or remove them."
            )
    return pa.table({column: pa.array(cells) for column, cells in columns.items()})


def _kind(cell: Any) -> str:
    if isinstance(cell, list):
        messages = all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in cell)
        contents = messages and all(isinstance(m.get("content"), str | None) for m in cell)
        return "a list of messages" if contents else "another list"
    names = {type(None): "null", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(cell), "an object")


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb")
