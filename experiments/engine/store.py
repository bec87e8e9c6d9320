"""Where results live: one Parquet file per cell, written atomically, and read back only if it is
what it says it is.

A run folder looks like this::

    OUT/.lock, OUT/.owner.json         held, and signed, by the process that is writing to the
    folder OUT/cells/<name>-<digest>.parquet  the rows of one finished cell
    OUT/...                            the tables made from the cells

Every file is first written under a temporary name in the same folder and then renamed, so that a
file with its final name is always complete. A cell is finished if and only if its file is in place
and passes `read_cell`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import filelock
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.engine.errors import StoreError

FORMAT = 1  # to be raised whenever a cell file gets another meaning
METADATA_KEY = b"prefdro"
TEMPORARY = ".prefdro-tmp"


class CellRejected(ValueError):
    """A stored cell is damaged, or is not the one that was asked for."""


@dataclass(frozen=True)
class Cell:
    """One independent piece of an experiment, such as one sample size with its replicates."""

    name: str  # readable, unique within a run
    parameters: dict[
        str, Any
    ]  # what the experiment's function receives; anything that JSON can hold
    places: dict[str, Any] = field(
        default_factory=dict
    )  # what it receives too: where files lie that the parameters identify

    def digest(self) -> bytes:
        """SHA-256 of name and parameters: the cell's identity on every machine and in every run,
        wherever its files lie."""
        return hashlib.sha256(_canonical_json([self.name, self.parameters]).encode()).digest()


@contextmanager
def open_run(out: str | Path, *, wait: bool = False) -> Iterator[Path]:
    """Hold the run folder `out` for writing, creating it if needed, and yield its absolute path.

    The operating system releases the lock when the process ends, however it ends. Opening a folder
    again that this thread already holds is allowed, so that a caller can keep it from the first
    cell to the last table. What a killed run has left half written is removed.

    Raises:
        StoreError: another process holds the folder (unless `wait`, which waits for it), or it is
            not writable.
    """
    folder = Path(out).resolve()
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock", is_singleton=True)
        _acquire(lock, folder, wait)
    except OSError as error:
        raise storage_error(folder, error) from error

    owner_file = folder / ".owner.json"
    outermost = lock.lock_counter == 1
    try:
        if outermost:
            for leftover in [*folder.glob(f".*{TEMPORARY}"), *folder.glob(f"cells/.*{TEMPORARY}")]:
                leftover.unlink()
            started = datetime.now().astimezone().isoformat(timespec="seconds")
            write_json(
                {"pid": os.getpid(), "host": socket.gethostname(), "started": started}, owner_file
            )
        yield folder
    finally:
        if outermost:
            owner_file.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: filelock.BaseFileLock, folder: Path, wait: bool) -> None:
    try:
        lock.acquire(timeout=0)
        return
    except filelock.Timeout:
        holder = _describe_owner(folder)
    if not wait:
        raise StoreError(
            f"{folder} is in use by another run ({holder}). Two runs in one folder would overwrite"
            " each other's results: wait until it has finished, stop it, or choose another folder."
        )
    print(f"waiting for {folder}, in use by another run ({holder})", file=sys.stderr, flush=True)
    lock.acquire()


def _describe_owner(folder: Path) -> str:
    try:
        owner = json.loads((folder / ".owner.json").read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}, started {owner['started']}"
    except (OSError, ValueError, KeyError):  # the other run has only just begun, or has just ended
        return "process unknown"


def cell_path(folder: Path, cell: Cell) -> Path:
    """The file of `cell` in the run folder: a readable name, and a digest that tells equal readable
    names apart."""
    slug = re.sub(r"[^a-z0-9.=]+", "-", cell.name.lower()).strip("-.")[:80]
    return folder / "cells" / f"{slug}-{cell.digest().hex()[:12]}.parquet"


def cell_record(cell: Cell, *, seed: int, fingerprint: str) -> dict[str, str]:
    """What a stored cell must say about itself to be used: see `read_cell`.

    Args:
        seed: the seed of the run.
        fingerprint: identifies the code and the configuration that compute the rows; chosen by the
            caller.
    """
    return {
        "format": str(FORMAT),
        "fingerprint": fingerprint,
        "cell": cell.name,
        "parameters": _canonical_json(cell.parameters),
        "seed": str(seed),
    }


def encode_cell(rows: pd.DataFrame, record: dict[str, str]) -> bytes:
    """The bytes of a cell file: `rows` (the index is dropped) with `record` and a checksum in the
    Parquet schema.

    Raises:
        pyarrow.ArrowException, ValueError: a column that Parquet cannot hold, such as one of mixed
            types.
    """
    # Parquet may change what it is given (a None among numbers becomes NaN): the checksum is that
    # of the outcome.
    rows = _parquet_table(
        _parquet_bytes(pa.Table.from_pandas(rows, preserve_index=False))
    ).to_pandas()
    table = pa.Table.from_pandas(rows, preserve_index=False)
    metadata = {METADATA_KEY: json.dumps({**record, "checksum": _checksum(rows)}).encode()}
    return _parquet_bytes(table.replace_schema_metadata({**table.schema.metadata, **metadata}))


def write_cell(path: Path, content: bytes) -> None:
    """Put the result of `encode_cell` in place, atomically. Raises StoreError if the disk is full
    or not writable."""
    _write(path, content)


def read_cell(path: Path, record: dict[str, str]) -> pd.DataFrame:
    """The rows stored at `path`, if the file is intact and says `record` about itself.

    Raises:
        FileNotFoundError: there is no such file.
        CellRejected: with the reason, for a file that is truncated, damaged, not ours, or of
            another cell, seed, configuration or version.
    """
    content = path.read_bytes()
    try:
        table = _parquet_table(content)
        stored = json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"null"))
        rows = table.to_pandas()
        checksum = _checksum(rows)
    except Exception as error:  # a damaged file can make the reader fail in any way
        raise CellRejected(
            f"not a readable Parquet file, truncated or damaged ({type(error).__name__})"
        ) from error

    if not isinstance(stored, dict):
        raise CellRejected(
            "a Parquet file that was not written by an experiment: it has no record of its cell"
        )
    for key, expected in record.items():
        if stored.get(key) != expected:
            hint = " (the code or the configuration has changed)" if key == "fingerprint" else ""
            raise CellRejected(
                f"{key} is {_shorten(stored.get(key))}, expected {_shorten(expected)}{hint}"
            )
    if stored.get("checksum") != checksum:
        raise CellRejected("the rows do not match their checksum: the file is damaged")
    return rows


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as .csv or .parquet, by the ending of `path`, atomically. The index is left
    out.

    Raises:
        ValueError: another ending.
        StoreError: the disk is full or not writable.
    """
    if path.suffix == ".csv":
        content = table.to_csv(index=False, lineterminator="\n").encode()
    elif path.suffix == ".parquet":
        content = _parquet_bytes(pa.Table.from_pandas(table, preserve_index=False))
    else:
        raise ValueError(f"cannot write a table to {path.name}: end the name with .csv or .parquet")
    _write(path, content)


def write_json(value: Any, path: Path) -> None:
    """Write `value` as indented JSON, atomically. Raises StoreError if the disk is full or not
    writable."""
    write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write `text` in UTF-8, atomically. Raises StoreError if the disk is full or not writable."""
    _write(path, text.encode())


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(
                file.fileno()
            )  # the content must be on the disk before the name says that it is complete
        os.replace(temporary, path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()  # there is none after a successful replace


def refuse_folder_of_another(out: Path, experiment: str) -> None:
    """Raise StoreError where `out` holds the results of another experiment, which would be
    overwritten."""
    try:
        other = json.loads((out / "run.json").read_text(encoding="utf-8"))["experiment"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if other != experiment:
        raise StoreError(
            f"{out} holds the results of {other}, which {experiment} would overwrite: choose"
            " another --out."
        )


def storage_error(path: Path, error: OSError) -> StoreError:
    """What to say of a folder or file that cannot be written: cause, space, next step."""
    existing = next(parent for parent in [path, *path.parents] if parent.exists())
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "Free some space, or choose a folder on another disk"
    else:
        remedy = "Check that the folder is one that you may write to, or choose another one"
    return StoreError(
        f"cannot write {path}: {error.strerror or error} ({shutil.disk_usage(existing).free:,}"
        f" bytes are free there). {remedy}, and run the same command again: finished cells are"
        " kept, and are not computed again."
    )


def _parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _parquet_table(content: bytes) -> pa.Table:
    return pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)


def _checksum(rows: pd.DataFrame) -> str:
    """SHA-256 of column names, types and values. The schema's metadata is left out: it names
    library versions."""
    table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return hashlib.sha256(sink.getvalue()).hexdigest()


def _canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
