"""Compute the cells of an experiment, in parallel if wished, and never twice.

A cell's rows depend on the cell, the seed and the code, and on nothing else: not on the order of
the cells, on which others there are, on the backend, or on the number of workers. Two things see to
that. The random numbers of a cell come from the seed and a digest of the cell itself; and every
cell is computed by a single thread, because sums that are split among threads are rounded
differently. (Machines with other processors may still round differently.)
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import rich.progress
import torch
from rich.console import Console
from threadpoolctl import threadpool_limits

from experiments.engine.errors import CellsFailed
from experiments.engine.store import (
    Cell,
    CellRejected,
    cell_path,
    cell_record,
    encode_cell,
    open_run,
    read_cell,
    write_cell,
)

# Called in a worker process with the cell's parameters and its own source of random numbers;
# returns the cell's rows.
CellFunction = Callable[[dict[str, Any], np.random.SeedSequence], pd.DataFrame]

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PLAIN_PROGRESS_SECONDS = 30.0


def run_cells(
    cells: Sequence[Cell],
    function: CellFunction,
    out: str | Path,
    *,
    seed: int,
    fingerprint: str,
    backend: str = "loky",
    workers: int | None = None,
    address: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The rows of all cells, in the order of `cells`; those that the run folder `out` already holds
    are not recomputed.

    Args:
        cells: with different names.
        function: a module-level function, since workers find it by its import name.
        out: run folder. It is locked during the call; hold it longer with `open_run`, which may be
            nested.
        seed: non-negative. Every cell derives its own random numbers from it.
        fingerprint: identifies the code and configuration behind `function`; cells stored with
            another one are recomputed.
        backend: "sequential", "loky" (processes of this machine), "dask" or "ray".
        workers: number of local processes, by default the number of processor cores.
        address: of a running dask scheduler or ray cluster; without it a local one is started and
            stopped again.
        progress: whether to show progress, time left and a summary on stderr.

    Raises:
        ValueError: unusable arguments.
        ImportError: the backend is not installed.
        StoreError: the folder is in use, not writable, or the disk is full. Cells stored so far are
            kept.
        CellsFailed: after all other cells have been computed and stored.
    """
    _check_cells(cells)
    _check_backend(backend, workers, address)
    if seed < 0:
        raise ValueError(f"the seed must be a non-negative integer, received {seed}")
    with open_run(out) as folder:
        paths = [cell_path(folder, cell) for cell in cells]
        records = [cell_record(cell, seed=seed, fingerprint=fingerprint) for cell in cells]
        rows, rejected = _stored_rows(paths, records)
        _warn_rejected([(cells[index].name, reason) for index, reason in rejected.items()])
        missing = [index for index in range(len(cells)) if index not in rows]
        tasks = [
            joblib.delayed(_compute)(index, function, cells[index], seed, records[index])
            for index in missing
        ]
        finished = set(rows)
        tracebacks: dict[int, str] = {}
        try:
            with (
                progress_of(len(cells), len(rows), progress) as advance,
                _one_thread(),
                closing(_results(tasks, backend, workers, address)) as results,
            ):
                for index, result in results:
                    if isinstance(result, bytes):
                        write_cell(paths[index], result)
                        finished.add(index)
                    else:
                        tracebacks[index] = result
                    advance()
        except BaseException:  # above all KeyboardInterrupt
            _say(
                f"stopped: {len(finished)} of {len(cells)} cells are stored in {folder}; a rerun"
                " computes the others"
            )
            raise
        if tracebacks:
            raise _failure(
                [cells[index] for index in sorted(tracebacks)], tracebacks, len(cells), folder
            )
        for index in (
            missing
        ):  # from the files too, so that the table is the same whether its cells are new or reused
            rows[index] = read_cell(paths[index], records[index])
        if progress:
            new, reused = len(missing) - len(rejected), len(cells) - len(missing)
            _say(
                f"{new} cells computed, {reused} reused, {len(rejected)} recomputed. Results:"
                f" {folder}"
            )
    return pd.concat([rows[index] for index in range(len(cells))], ignore_index=True)


def _compute(
    index: int, function: CellFunction, cell: Cell, seed: int, record: dict[str, str]
) -> tuple[int, bytes | str]:
    """In a worker: the cell's file as bytes, or the traceback if it failed (an exception may not
    survive pickling)."""
    _use_one_thread()
    try:
        rows = function(cell.parameters | cell.places, _random_source(seed, cell))
        if not isinstance(rows, pd.DataFrame):
            raise TypeError(
                f"a cell's function must return a pandas.DataFrame, not {type(rows).__name__}"
            )
        return index, encode_cell(rows, record)
    except Exception:
        return index, traceback.format_exc()


def _random_source(seed: int, cell: Cell) -> np.random.SeedSequence:
    words = np.frombuffer(cell.digest(), dtype="<u4")  # the same numbers on a big-endian machine
    return np.random.SeedSequence(seed, spawn_key=tuple(int(word) for word in words))


def _stored_rows(
    paths: list[Path], records: list[dict[str, str]]
) -> tuple[dict[int, pd.DataFrame], dict[int, str]]:
    """Rows of the cells that are stored and intact, and the reasons why others are not used, both
    by position."""
    rows: dict[int, pd.DataFrame] = {}
    rejected: dict[int, str] = {}
    for index, (path, record) in enumerate(zip(paths, records, strict=True)):
        try:
            rows[index] = read_cell(path, record)
        except FileNotFoundError:
            continue
        except CellRejected as error:
            rejected[index] = str(error)
    return rows, rejected


#  Backends ----------------------------------------------------------------------------------------


def _results(
    tasks: list[Any], backend: str, workers: int | None, address: str | None
) -> Generator[tuple[int, bytes | str], None, None]:
    """The results of the tasks as they arrive. Closing the iterator early stops the workers."""
    if not tasks:
        return
    with BACKENDS[backend](workers or joblib.cpu_count(), address) as options:
        # One cell per batch: a cell is stored when it is finished, and not when its batch is.
        parallel = joblib.Parallel(**options, batch_size=1, return_as="generator_unordered")
        with warnings.catch_warnings():
            # Said when the iterator is closed early. There is no loss: a rerun computes these
            # cells.
            warnings.filterwarnings("ignore", r"\d+ tasks (have been|which were)", UserWarning)
            warnings.filterwarnings(
                "ignore", "A worker stopped while some jobs", UserWarning
            )  # loky renews large workers
            yield from parallel(tasks)


@contextmanager
def _sequential(workers: int, address: str | None) -> Iterator[dict[str, Any]]:
    yield {"backend": "sequential"}


@contextmanager
def _loky(workers: int, address: str | None) -> Iterator[dict[str, Any]]:
    yield {"backend": "loky", "n_jobs": workers}


@contextmanager
def _dask(workers: int, address: str | None) -> Iterator[dict[str, Any]]:
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise _not_installed("dask") from error
    if address is not None:
        with (
            Client(address, set_as_default=False) as client,
            joblib.parallel_config("dask", client=client),
        ):
            yield {}
    else:
        options = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
        with (
            LocalCluster(**options, silence_logs=logging.ERROR) as cluster,
            Client(cluster, set_as_default=False) as client,
            joblib.parallel_config("dask", client=client),
        ):
            yield {}


@contextmanager
def _ray(workers: int, address: str | None) -> Iterator[dict[str, Any]]:
    os.environ.setdefault(
        "RAY_USAGE_STATS_ENABLED", "0"
    )  # ray would report to its makers that it is being used
    try:
        import ray
        from ray.util.joblib.ray_backend import (
            RayBackend,
        )  # what ray.util.joblib.register_ray registers
    except ImportError as error:
        raise _not_installed("ray") from error
    if address is not None:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        options: dict[str, Any] = {
            "address": "local",  # and not a cluster that happens to run on this machine
            "num_cpus": workers,
            "include_dashboard": False,
            "object_store_memory": 10**8,  # the results are small tables
            "log_to_driver": False,
            "logging_level": logging.ERROR,
        }
        try:
            ray.init(**options)
        except (
            Exception
        ):  # it gives its own processes 30 s to start, which may be too few on a busy machine
            ray.shutdown()
            ray.init(**options)
    try:
        backend = RayBackend()
        # Inherited from joblib's multiprocessing backend, which must not be stopped by another
        # thread. Ray's can.
        backend.supports_return_generator = True
        yield {"backend": backend, "n_jobs": -1}  # all processors of the cluster
    finally:
        ray.shutdown()


BACKENDS = {"sequential": _sequential, "loky": _loky, "dask": _dask, "ray": _ray}
CLUSTERS = ("dask", "ray")


def _not_installed(backend: str) -> ImportError:
    return ImportError(
        f"backend {backend!r} is not installed here: pip install 'prefdro[{backend}]'"
    )


#  One thread --------------------------------------------------------------------------------------


def _use_one_thread() -> None:
    """Limit the libraries that are loaded, and by environment variables those that `function` may
    still load."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    threadpool_limits(1)
    torch.set_num_threads(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """`_use_one_thread` for this process and the local workers it starts, undone afterwards."""
    variables = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    torch_threads = torch.get_num_threads()
    try:
        with threadpool_limits(1):
            _use_one_thread()
            yield
    finally:
        torch.set_num_threads(torch_threads)
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


#  Checks and messages -----------------------------------------------------------------------------


def _check_cells(cells: Sequence[Cell]) -> None:
    if not cells:
        raise ValueError("there are no cells to compute: the experiment's grid is empty")
    repeated = [name for name, count in Counter(cell.name for cell in cells).items() if count > 1]
    if repeated:
        raise ValueError(
            f"cell names must be unique, and {repeated[0]!r} is not: put what differs into the name"
        )
    for cell in cells:
        try:
            cell.digest()
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the parameters of cell {cell.name!r} must be JSON values (numbers, strings,"
                f" lists, dictionaries): {error}. Received {cell.parameters!r}"
            ) from error


def _check_backend(backend: str, workers: int | None, address: str | None) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, received {workers}")
    if backend == "sequential" and workers not in (None, 1):
        raise ValueError(
            f"backend 'sequential' has one worker, received workers={workers}: use backend 'loky'"
        )
    if address is not None and backend not in CLUSTERS:
        raise ValueError(
            f"backend {backend!r} runs on this machine and has no address, received {address!r}: "
            f"leave it out, or choose one of {', '.join(CLUSTERS)}"
        )
    if address is not None and workers is not None:
        raise ValueError(
            f"the cluster at {address!r} decides on its workers: leave out workers={workers}"
        )


def _failure(
    failed: list[Cell], tracebacks: dict[int, str], total: int, folder: Path
) -> CellsFailed:
    texts = [tracebacks[index] for index in sorted(tracebacks)]
    lines = [f"  {cell.name}: {cell.parameters}" for cell in failed]
    message = (
        f"{len(failed)} of {total} cells failed; the others are stored in {folder}, and a rerun"
        " resumes there: it computes only the failed ones.\n"
        + "\n".join(lines)
        + f"\nThe first one raised:\n{texts[0]}"
    )
    return CellsFailed(message, {cell.name: text for cell, text in zip(failed, texts, strict=True)})


def _warn_rejected(rejected: list[tuple[str, str]]) -> None:
    """One line per reason, since after a change of the code it is the same one for every cell."""
    for reason, count in Counter(reason for _, reason in rejected).items():
        first = next(name for name, its_reason in rejected if its_reason == reason)
        others = f" and {count - 1} more" if count > 1 else ""
        _say(f"warning: recomputing {first}{others}: the stored file is not used, {reason}")


@contextmanager
def progress_of(
    total: int, reused: int, shown: bool, what: str = "cells"
) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each cell: a bar on a terminal, a line now and then in a log
    file."""
    console = Console(stderr=True)
    if shown and console.is_terminal:
        columns = (
            rich.progress.TextColumn(what),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("time left"),
            rich.progress.TimeRemainingColumn(),
        )
        # Cells can take minutes, and the default period forgets them after thirty seconds.
        with rich.progress.Progress(*columns, console=console, speed_estimate_period=3600.0) as bar:
            task = bar.add_task(what, total=total, completed=reused)
            yield lambda: bar.advance(task)
    elif shown:
        yield _plain_progress(total, reused, what)
    else:
        yield lambda: None


def _plain_progress(total: int, reused: int, what: str = "cells") -> Callable[[], None]:
    started = last_line = time.monotonic()
    computed = 0

    def advance() -> None:
        nonlocal computed, last_line
        computed += 1
        now = time.monotonic()
        if now - last_line >= PLAIN_PROGRESS_SECONDS:
            last_line = now
            left = timedelta(
                seconds=round((now - started) / computed * (total - reused - computed))
            )
            found = f" ({reused} reused)" if reused else ""  # stages do not know
            _say(f"{reused + computed}/{total} {what}{found}, time left {left}")

    return advance


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
