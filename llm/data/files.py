"""Preference data as they are stored: a file, a folder or a data set on the hub -> rows, exactly as
they stand, not yet checked.

JSON and CSV are read without Arrow, whose columns have one type each: it would give every object
the keys of all others, make dates of strings and refuse what is a number in one row and a string in
another.
"""

import csv
import gzip
import io
import json
import re
import tempfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
from datasets import DatasetDict

from llm.data.numbers import NUMBERS
from llm.data.rows import BadRows, Row, as_rows, of_arrow

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".csv", ".csv.gz")
ZERO = b"\0"
GZIP = b"\x1f\x8b"
# UTF-32 first: its mark begins with that of UTF-16
MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}
REWRITE = "Write or download it again"


def load_rows(
    source: str | Path,
    split: str = "train",
    name: str | None = None,
    revision: str | None = None,
    bad: BadRows | None = None,
) -> list[Row]:
    """The rows of a data set, as they are: `tokenise` checks them.

    Args:
        source: a .jsonl, .json, .parquet or .csv file (JSON and CSV also as .gz; in UTF-8, or
            UTF-16 and 32 with their mark); a folder written by `Dataset.save_to_disk`; a folder
            with the hub's layout; or the name of a data set on the hub.
        split: which split of a folder or of a data set on the hub, also as train[:1000]. A file has
            only `train`.
        name: configuration of a folder with the hub's layout, or of a data set on the hub.
        revision: revision of a data set on the hub.
        bad: takes down lines that are no JSON, whose rows are then empty dicts; not given, they are
            an error.

    Raises:
        FileNotFoundError: there is no such file or folder, and no data set of that name can be had
            from the hub.
        ValueError: the file is damaged or malformed (with its lines), or empty; the split does not
            exist; an argument has no meaning for the source.

    Returns:
        One dict a row, in the order of the file.

    >>> import json, tempfile
    >>> from pathlib import Path
    >>> from llm import load_rows
    >>> path = Path(tempfile.mkdtemp()) / "pairs.jsonl"
    >>> _ = path.write_text(json.dumps({"prompt": "2+2?", "chosen": " 4", "rejected": " 5"}))
    >>> load_rows(path)
    [{'prompt': '2+2?', 'chosen': ' 4', 'rejected': ' 5'}]
    """
    account = BadRows() if bad is None else bad
    account.source = str(source)
    path = Path(source).expanduser()
    if path.is_dir():
        saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
        _refuse(path, revision=revision, name=name if saved else None)
        rows = (
            _load_saved(path, split)
            if saved
            else _load_layout(str(path), split, name, None, account)
        )
    elif path.is_file():
        _refuse(path, revision=revision, name=name, split=None if split == "train" else split)
        rows = _load_file(path, account)
    elif _looks_like_path(str(source)):
        raise FileNotFoundError(
            f"there is no file or folder {source} (looked for {path.absolute()}). Check the path."
        )
    else:
        rows = _load_hub(str(source), split, name, revision, account)
    if len(rows) == 0:
        raise ValueError(f"{source} has no rows.")
    if bad is None:
        account.settle(len(rows))
    return rows


def _refuse(path: Path, **arguments: str | None) -> None:
    for argument, value in arguments.items():
        if value is not None:
            raise ValueError(
                f"{argument} is {value!r}, which has no meaning for {path}. Leave it out, or give"
                " the data that it is for."
            )


def _looks_like_path(source: str) -> bool:
    hub_name = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source)
    return not hub_name or source.lower().endswith(ENDINGS)


# ---------------------------------------------------------------------------------- folders and hub
def _load_saved(path: Path, split: str) -> list[Row]:
    saved = datasets.load_from_disk(str(path))
    if not isinstance(saved, DatasetDict):
        _refuse(path, split=None if split == "train" else split)
        return as_rows(saved)
    return _of_splits(path, split, {name: partial(as_rows, part) for name, part in saved.items()})


def _load_hub(
    source: str, split: str, name: str | None, revision: str | None, bad: BadRows
) -> list[Row]:
    try:
        return _load_layout(source, split, name, revision, bad)
    except OSError as error:  # no such data set, no connection, offline mode
        raise FileNotFoundError(
            f"{source} is no file or folder here, and could not be had from the hub ({error}). For"
            " local data check the path; for the hub check the name and the connection, or"
            " download it once and give the folder."
        ) from error


def _load_layout(
    source: str, split: str, name: str | None, revision: str | None, bad: BadRows
) -> list[Row]:
    """A folder or data set of the hub: its files are found by `datasets` and, where they are JSON,
    CSV or Parquet, read here."""
    local = Path(source).is_dir()
    with tempfile.TemporaryDirectory() as cache:  # converted files must not fill the user's cache
        try:
            builder = datasets.load_dataset_builder(
                source, name, revision=revision, cache_dir=cache if local else None
            )
        except FileNotFoundError as error:  # also DataFilesNotFoundError, EmptyDatasetError
            if not local:
                raise
            raise ValueError(
                f"{source} holds no data: neither the files of `Dataset.save_to_disk` nor a folder"
                " with the hub's layout (README.md, data/*.parquet or *.jsonl). For a single file,"
                " give its own path."
            ) from error
        kind = {"json": "jsonl"}.get(builder.name, builder.name)
        files = [
            str(file).lower()
            for files in (builder.config.data_files or {}).values()
            for file in files
        ]
        ours = kind in ("jsonl", "csv", "parquet") and all(file.endswith(ENDINGS) for file in files)
        if not ours or getattr(builder.config, "field", None):
            return as_rows(
                datasets.load_dataset(
                    source, name, split=split, revision=revision, keep_in_memory=local
                )
            )
        parts = {
            str(part): partial(_load_files, list(map(str, files)), kind, local, bad)
            for part, files in (builder.config.data_files or {}).items()
        }
        return _of_splits(Path(source), split, parts)


def _load_files(files: list[str], kind: str, local: bool, bad: BadRows) -> list[Row]:
    rows: list[Row] = []
    for file in files if local else datasets.DownloadManager().download(files):
        rows += _read(Path(file), kind, bad, len(rows))
    return rows


def _of_splits(path: Path, split: str, parts: Mapping[str, Callable[[], list[Row]]]) -> list[Row]:
    """One split, or what `datasets` writes as train[:10%]+test."""
    wanted = [re.sub(r"\[.*", "", part) for part in split.split("+")]
    for one in wanted:
        if one not in parts:
            raise ValueError(f"{path} has no split {one!r}; it has {', '.join(parts)}.")
    read = {one: parts[one]() for one in wanted}
    if split in read:
        return read[split]
    pieces = datasets.ReadInstruction.from_spec(split).to_absolute(
        {one: len(rows) for one, rows in read.items()}
    )
    return [row for piece in pieces for row in read[piece.splitname][piece.from_ : piece.to]]


# -------------------------------------------------------------------------------------------- files
def _load_file(path: Path, bad: BadRows) -> list[Row]:
    if not path.name.lower().endswith(ENDINGS):
        raise ValueError(f"{path}: unknown kind of file. Known endings: {', '.join(ENDINGS)}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes): it was not written, or its download failed.")
    return _read(path, path.name.lower().removesuffix(".gz").rsplit(".", 1)[-1], bad, 0)


def _read(path: Path, kind: str, bad: BadRows, before: int) -> list[Row]:
    """The rows of one file, of which `before` rows of other files come first."""
    with path.open("rb") as file:
        start = file.read(40)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path} is a pointer of Git LFS and not the data: `git lfs pull` brings them, or"
            " download the file again."
        )
    if start.startswith(b"PAR1") and kind != "parquet":
        raise ValueError(f"{path} is a Parquet file. Give it the ending .parquet.")
    try:
        if kind == "parquet":
            table = pa.parquet.read_table(path, memory_map=True)
            _refuse_twice(path, table.column_names)
            return of_arrow(table)
        content = path.read_bytes()
        content = gzip.decompress(content) if content.startswith(GZIP) else content
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be read as {kind} ({error}): truncated, damaged or something else."
            f" {REWRITE}."
        ) from error
    text = _text(path, content)
    if kind == "csv":
        return _read_csv(path, text)
    if text.lstrip().startswith("["):
        return _read_json(path, text, bad, before)
    return _read_json_lines(path, text, bad, before)


def _text(path: Path, content: bytes) -> str:
    """Raises ValueError for a text that is neither UTF-8 nor says by its mark what else it is."""
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in content[:1000]:
        raise ValueError(
            f"{path} holds zero bytes, as UTF-16 without a mark, or something that is no text at"
            f" all. For UTF-16: iconv -f UTF-16{'BE' if content[:1] == ZERO else 'LE'} -t UTF-8"
            f" {path.name} > utf8-{path.name}"
        )
    if encoding.startswith(("utf-16", "utf-32")):
        try:
            content = content.decode(encoding).encode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} begins as {encoding.upper()} and is not ({error}): truncated or damaged."
                f" {REWRITE}."
            ) from error
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        seen = content[content.rfind(b"\n", 0, error.start) + 1 :][:400].split(b"\n")[0]
        around = seen[max(0, error.start - content.rfind(b"\n", 0, error.start) - 13) :][
            :24
        ].decode("cp1252", "replace")
        raise ValueError(
            f"{path}, line {line}: the byte 0x{content[error.start]:02x} is not UTF-8 (read as"
            f" Windows-1252 the text there is {around!r}). If that looks right: iconv -f"
            f" WINDOWS-1252 -t UTF-8 {path.name} > utf8-{path.name}. If not, the file is truncated"
            f" or damaged. {REWRITE}."
        ) from error


def _read_json(path: Path, text: str, bad: BadRows, before: int) -> list[Row]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, getattr(error, "lineno", None), error) from error
    return [_object(value, before + i, path.name, bad) for i, value in enumerate(values)]


def _read_json_lines(path: Path, text: str, bad: BadRows, before: int) -> list[Row]:
    lines = re.split(
        r"\r\n|\n|\r", text
    )  # not splitlines: U+2028 and others may stand inside a string
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    rows: list[Row] = []
    for number, line in numbered:
        position, last = before + len(rows), " (the last)" if number == numbered[-1][0] else ""
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if len(rows) == 0:
                _explain_object(path, text)
            bad.add(
                [position],
                "not valid JSON, as of a file that is truncated",
                f"{path.name}, line {number}{last}: {error}",
            )
            value = {}
        if len(numbered) == 1:
            _explain_object(path, text)
        rows.append(_object(value, position, f"{path.name}, line {number}", bad))
    return rows


def _object(value: Any, position: int, where: str, bad: BadRows) -> Row:
    if isinstance(value, dict):
        return value
    bad.add(
        [position],
        'not an object with named columns, as {"prompt": ...}',
        f"{where}: {_short(value)}",
    )
    return {}


def _explain_object(path: Path, text: str) -> None:
    """Raise ValueError where the whole file is one object, such as {"data": [...]} or what pandas
    writes by default."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return
    if not isinstance(whole, dict) or not whole:
        return
    lists = [
        key
        for key, cell in whole.items()
        if isinstance(cell, list) and cell and all(isinstance(x, dict) for x in cell)
    ]
    if any("role" in whole[key][0] for key in lists):
        messages_in_lines = "\n" in text.strip()
        lists = []
    else:
        messages_in_lines = "\n" in text.strip() and not any(
            isinstance(cell, list | dict) for cell in whole.values()
        )
    same_size = (
        len({len(cell) if isinstance(cell, list | dict) else -1 for cell in whole.values()}) == 1
    )
    if lists:
        what = f"its rows are under {', '.join(map(repr, lists))}. Write that list alone"
    elif messages_in_lines:
        what = "it is a single row over several lines. Write one row a line, or a list of rows"
    elif len(whole) > 1 and same_size and all(isinstance(cell, dict) for cell in whole.values()):
        what = (
            "it holds columns. Write rows, in pandas by to_json(..., orient='records', lines=True)"
        )
    else:
        return
    raise ValueError(
        f"{path} is one JSON object with {', '.join(map(repr, list(whole)[:8]))}; {what}."
    )


def _damaged(path: Path, line: int | None, error: Exception) -> ValueError:
    place = f", line {line}" if line else ""
    return ValueError(
        f"{path}{place}: not valid JSON ({error}). The file is probably truncated, or its writing"
        f" was interrupted. {REWRITE}, or delete what is incomplete."
    )


def _read_csv(path: Path, text: str) -> list[Row]:
    """Text columns as they stand; label, group and columns of numbers as the truth values and
    numbers that they spell."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    try:
        header = next(reader, [])
        _refuse_twice(path, header)
        if len(header) == 1 and (
            other := next((mark for mark in (";", "\t", "|") if mark in header[0]), None)
        ):
            raise ValueError(
                f"{path} has the single column {header[0]!r}: its cells are separated by {other!r}."
                f" Write it with commas, in pandas by pd.read_csv({path.name!r},"
                f" sep={other!r}).to_csv(..., index=False)."
            )
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num}: expected {len(header)} cells"
                    f" ({', '.join(header)}), got {len(cells)}. A cell with commas, quotes or line"
                    " breaks stands in double quotes; the separator is a comma."
                )
            rows.append(
                {name: _spelled(name, cell) for name, cell in zip(header, cells, strict=True)}
            )
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: not valid CSV ({error}). {REWRITE}."
        ) from error
    if all(
        re.fullmatch(r"\s*\d+\s*", row.get("group") or "0") for row in rows
    ):  # else they are names
        rows = [row | {"group": int(row["group"])} if row.get("group") else row for row in rows]
    return [{k: v for k, v in row.items() if v is not None} for row in rows]


def _spelled(name: str, cell: str) -> Any:
    if name == "label":
        return {"true": True, "false": False, "1": 1, "0": 0, "1.0": 1, "0.0": 0}.get(
            cell.strip().lower(), cell or None
        )
    if name in NUMBERS:
        try:
            return float(cell)
        except ValueError:
            return cell or None
    return None if cell == "" and name == "group" else cell


def _refuse_twice(path: Path, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"{path} has more than one column {', '.join(f'`{name}`' for name in twice)}. Keep one"
            " of each name."
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
