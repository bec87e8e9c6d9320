"""Stages of a pipeline: folders of artefacts on disk, each made once from what it says it was made
from.

    OUT/stages/NAME               a finished stage: its artefacts, made_from.json, and time.json
    with the seconds it took OUT/stages/.NAME.prefdro-tmp  one that is being made, or that was when
    its run was killed: what it holds is used again OUT/stages/.NAME.lock         held by the
    process that makes it, so that several jobs can share a folder

A stage that was made from anything else, such as another seed, other options or other code, is made
again.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import joblib
import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from experiments.engine.ranks import from_first, rank, ranks, wait_for_all
from experiments.engine.runner import progress_of
from experiments.engine.store import TEMPORARY, storage_error, write_json, write_table

RECORD = "made_from.json"


class Stage(NamedTuple):
    """A finished stage: its folder, and a digest of all that it was made from."""

    folder: Path
    digest: str


Task = Callable[[], Any]


def stage(
    root: Path, name: str, made_from: dict[str, Any], make: Callable[[Path], object]
) -> Stage:
    """The folder that `make` fills, unless it is there already and was made from the same; complete
    once it has its name.

    Under a launcher every process calls `make` with the same folder, and waits for the others
    before and after. A run that was killed finds in that folder what it had written: `make` may use
    what is complete.
    """
    record = json.loads(json.dumps(made_from))  # tuples become lists, as in the file
    made = Stage(root / name, digest_of(record))
    unfinished = root / f".{name}{TEMPORARY}"
    if from_first(_is_of(made.folder, record)):
        return made
    with _held(root, name) if rank() == 0 else nullcontext():
        if rank() == 0 and not _is_of(made.folder, record) and not _is_of(unfinished, record):
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            write_json(record, unfinished / RECORD)
        if not from_first(_is_of(made.folder, record)):  # else another job has made it meanwhile
            began = time.perf_counter()
            make(unfinished)
            wait_for_all()
            if rank() == 0:
                write_json(
                    {"seconds": round(time.perf_counter() - began, 2)}, unfinished / "time.json"
                )
                shutil.rmtree(made.folder, ignore_errors=True)
                os.replace(unfinished, made.folder)
        wait_for_all()
    return made


def digest_of(record: dict[str, Any]) -> str:
    """A digest of what something is made from."""
    return sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _is_of(folder: Path, record: dict[str, Any]) -> bool:
    try:
        return bool(json.loads((folder / RECORD).read_text(encoding="utf-8")) == record)
    except (OSError, ValueError):  # not there, or half written
        return False


def _held(root: Path, name: str) -> AbstractContextManager[Any]:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(root, error) from error
    return filelock.FileLock(root / f".{name}.lock")


def in_parts(
    folder: Path, name: str, rows: int, size: int, make: Callable[[slice, int], pd.DataFrame]
) -> Path:
    """A table made part by part, `size` rows each: those in the folder are kept, the processes of a
    launch share the others.

    Args:
        name: of the table, a .parquet file in the folder.
        make: rows of the part, and the part's number -> its table.
    """
    whole = folder / f"{name}.parquet"
    if from_first(whole.is_file()):
        return whole
    starts = range(0, rows, size)
    paths = [folder / f"{name}-{number:05d}.parquet" for number in range(len(starts))]
    for number in range(rank(), len(starts), ranks()):
        if not paths[number].is_file():
            table = make(slice(starts[number], min(starts[number] + size, rows)), number)
            write_table(table, paths[number])
    wait_for_all()
    if rank() == 0:
        write_table(pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True), whole)
        for path in paths:
            path.unlink()
    wait_for_all()
    return whole


def read_artefact(path: Path) -> pd.DataFrame:
    """A table of a finished stage, .parquet or .csv.

    Raises:
        ValueError: the file is damaged, with what to do.
    """
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (
        OSError,
        ValueError,
    ) as error:  # ArrowInvalid, ParserError and EmptyDataError are ValueErrors
        raise ValueError(
            f"{path} is missing or damaged ({error}): restore it, or move the folder {path.parent}"
            " away and give the same command again, which makes this stage again, and what depends"
            " on it."
        ) from error


def together(tasks: Sequence[Task], workers: int, what: str = "stages") -> list[Any]:
    """The results of all tasks, in order, from as many processes as workers; one after the other
    under a launcher.

    Each task has a single thread where there are several workers: sums that are split among threads
    are rounded differently.
    """
    if ranks() > 1:
        return [_quiet(task) for task in tasks]
    with progress_of(len(tasks), 0, len(tasks) > 1, what) as advance:
        parallel = joblib.Parallel(
            n_jobs=max(1, min(workers, len(tasks))), batch_size=1, return_as="generator_unordered"
        )
        found: dict[int, Any] = {}
        for number, result in parallel(
            joblib.delayed(_numbered)(number, task) for number, task in enumerate(tasks)
        ):
            found[number] = result
            advance()
    return [found[number] for number in range(len(tasks))]


def _numbered(number: int, task: Task) -> tuple[int, Any]:
    threads = torch.get_num_threads()
    try:
        with threadpool_limits(1):
            torch.set_num_threads(1)
            return number, _quiet(task)
    finally:
        torch.set_num_threads(threads)


def _quiet(task: Task) -> Any:
    quieten()
    return task()


def quieten() -> None:
    """No progress bars and no remarks from transformers and datasets in this process."""
    import datasets
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


def content(source: str | Path | None) -> Any:
    """What identifies a source wherever it lies: digests of its files by their names within it, or
    its name on the hub.

    Of an adapter, also those of the model that it changes. Hidden files, such as those of a
    download, do not count.
    """
    if source is None or not (path := Path(source).expanduser()).exists():
        return source if source is None else str(source)
    if path.is_file():
        return _digest(path)
    files = {
        str(file.relative_to(path).as_posix()): file
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }
    found: dict[str, Any] = {
        name: _digest(file)
        for name, file in files.items()
        if not name.startswith(".") and "/." not in name
    }
    if "adapter_config.json" in found:
        from llm.adapters import adapter_config

        on = adapter_config(str(path))
        found["adapter of"] = on and content(on["base_model_name_or_path"])
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()[:16]


def derived_seed(*words: int) -> int:
    """An independent seed for each combination of the study's seed, a purpose and a replicate."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def times(root: Path, code: str) -> pd.DataFrame:
    """How long each finished stage of that code took, in the session that finished it: columns
    stage, seconds."""
    folders = [path.parent for path in sorted(root.glob("*/time.json"))]
    mine = [
        folder
        for folder in folders
        if json.loads((folder / RECORD).read_text(encoding="utf-8")).get("code") == code
    ]
    rows = [
        (folder.name, json.loads((folder / "time.json").read_text(encoding="utf-8"))["seconds"])
        for folder in mine
    ]
    return pd.DataFrame(rows, columns=["stage", "seconds"])
