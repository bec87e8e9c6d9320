"""The same table whatever computes it, and whatever happens while it is computed."""

import errno
import io
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]

from experiments.engine import runner, store
from experiments.engine.runner import CellsFailed, run_cells
from experiments.engine.store import Cell, StoreError, cell_path, open_run, write_table
from tests.launches import PATIENCE, end_group, ray_cluster, twice, wait_until

ROOT = Path(__file__).parents[2]
CELLS = [
    Cell(f"n={n} rho={rho}", {"n": n, "rho": rho})
    for n in (100, 300)
    for rho in (0.0, 0.1, float("inf"))
]


pytestmark = pytest.mark.exact(
    "the same bits from every process, and those that a test starts are not shaken"
)


def simulate(parameters: dict[str, Any], rng_seed: np.random.SeedSequence) -> pd.DataFrame:
    """Long sums and products, which come out differently in the last bits when they are split among
    threads."""
    note_call(f"{parameters['n']} {parameters['rho']}")
    x = np.random.default_rng(rng_seed).standard_normal((400, parameters["n"]))
    u = torch.from_numpy(x)
    product = u @ u.T
    return pd.DataFrame(
        {
            **parameters,
            "numpy": (x.T @ x)[0, :3],
            "torch": product[0, :3].numpy(),
            "sum": product.sum().item(),
        }
    )


def slow(parameters: dict[str, Any], rng_seed: np.random.SeedSequence) -> pd.DataFrame:
    time.sleep(0.3)
    if (gate := os.environ.get("TEST_RUNNER_GATE")) and parameters["rho"] == float("inf"):
        wait_until(Path(gate).exists)
    return simulate(parameters, rng_seed)


def failing(parameters: dict[str, Any], rng_seed: np.random.SeedSequence) -> pd.DataFrame:
    if parameters["n"] == 300 and os.environ.get("TEST_RUNNER_FAILS", "yes") == "yes":
        raise LocalError(f"no convergence at rho={parameters['rho']}")
    return simulate(parameters, rng_seed)


class LocalError(Exception):
    """Cannot be unpickled: it needs an argument that it does not hand over."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def __str__(self) -> str:
        return self.text


def no_table(parameters: dict[str, Any], rng_seed: np.random.SeedSequence) -> Any:
    return {"x": 1}


def mixed_column(parameters: dict[str, Any], rng_seed: np.random.SeedSequence) -> pd.DataFrame:
    return pd.DataFrame({"x": [1, "one"]})


def count_threads(parameters: dict[str, Any], rng_seed: np.random.SeedSequence) -> pd.DataFrame:
    pools = max(pool["num_threads"] for pool in threadpool_info())
    return pd.DataFrame(
        {
            "torch": [torch.get_num_threads()],
            "pools": [pools],
            "omp": [os.environ["OMP_NUM_THREADS"]],
        }
    )


def interrupted(parameters: dict[str, Any], rng_seed: np.random.SeedSequence) -> pd.DataFrame:
    if parameters["n"] == 300:
        raise KeyboardInterrupt
    return simulate(parameters, rng_seed)


def note_call(name: str) -> None:
    """Count calls in a file, since they happen in other processes."""
    if calls := os.environ.get("TEST_RUNNER_CALLS"):
        with open(calls, "a") as file:
            file.write(name + "\n")


def run(
    cells: list[Cell], out: Path, function: runner.CellFunction = simulate, **options: Any
) -> pd.DataFrame:
    options = {
        "seed": 7,
        "fingerprint": "abc",
        "backend": "sequential",
        "progress": False,
        **options,
    }
    return run_cells(cells, function, out, **options)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return run(CELLS, tmp_path_factory.mktemp("expected"))


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "calls"
    path.touch()
    monkeypatch.setenv("TEST_RUNNER_CALLS", str(path))
    return path


#  The same table from every backend ---------------------------------------------------------------


def test_rows_are_those_of_the_function(expected: pd.DataFrame) -> None:
    assert list(expected["n"]) == [100] * 9 + [300] * 9
    assert (
        list(expected["rho"])
        == [0.0] * 3 + [0.1] * 3 + [float("inf")] * 3 + [0.0] * 3 + [0.1] * 3 + [float("inf")] * 3
    )
    assert expected["sum"].nunique() == len(CELLS)  # no two cells share their random numbers
    assert list(expected.index) == list(range(18))


@pytest.mark.parametrize("workers", [1, 2])
def test_loky(tmp_path: Path, expected: pd.DataFrame, workers: int) -> None:
    same(run(CELLS, tmp_path, backend="loky", workers=workers), expected)


def test_dask(tmp_path: Path, expected: pd.DataFrame) -> None:
    distributed = pytest.importorskip("distributed")
    same(run(CELLS, tmp_path / "local", backend="dask", workers=2), expected)
    options = {
        "n_workers": 1,
        "threads_per_worker": 2,
        "dashboard_address": None,
    }  # of processes the local one has two
    with twice(lambda: distributed.LocalCluster(**options)) as cluster:
        same(
            run(CELLS, tmp_path / "address", backend="dask", address=cluster.scheduler_address),
            expected,
        )
        assert (
            run_with_failures(
                tmp_path / "failing", backend="dask", address=cluster.scheduler_address
            )
            == 3
        )


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    pytest.importorskip("ray")
    with ray_cluster(cpus=2) as address:
        yield address


@pytest.mark.slow  # starting ray takes a minute
def test_ray_cluster(tmp_path: Path, expected: pd.DataFrame, ray_address: str) -> None:
    same(run(CELLS, tmp_path / "address", backend="ray", address=ray_address), expected)
    assert run_with_failures(tmp_path / "failing", backend="ray", address=ray_address) == 3


@pytest.mark.slow  # starting ray takes long, and test_ray_cluster has done so once
def test_local_ray(tmp_path: Path, expected: pd.DataFrame) -> None:
    ray = pytest.importorskip("ray")
    same(run(CELLS, tmp_path, backend="ray", workers=2), expected)
    assert not ray.is_initialized()


def same(table: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(table, expected, check_exact=True)


def run_with_failures(out: Path, **options: Any) -> int:
    """The number of cells that are stored by a run of which the other cells fail."""
    with pytest.raises(CellsFailed, match="3 of 6 cells failed"):
        run(CELLS, out, failing, **options)
    return len(list(out.glob("cells/*.parquet")))


def test_cells_do_not_depend_on_each_other(tmp_path: Path, expected: pd.DataFrame) -> None:
    shuffled = random.Random(0).sample(CELLS, len(CELLS))
    table = run(shuffled, tmp_path / "shuffled")
    order = [3 * CELLS.index(cell) + row for cell in shuffled for row in range(3)]
    same(table, expected.iloc[order].reset_index(drop=True))
    same(run(CELLS[4:5], tmp_path / "alone"), expected[12:15].reset_index(drop=True))


def test_seed_and_parameters_change_the_numbers(tmp_path: Path, expected: pd.DataFrame) -> None:
    other = run(CELLS[:1], tmp_path / "seed", seed=8)
    renamed = run([Cell("other", CELLS[0].parameters)], tmp_path / "name")
    for table in (other, renamed):
        assert not np.isclose(table["sum"][0], expected["sum"][0])


def test_numbers_stay_those_of_earlier_versions() -> None:
    """The words are the SHA-256 of the cell, by
    `printf '["a",{"n":1}]' | openssl dgst -binary -sha256 | od -tu4`."""
    words = (
        2213842553,
        2798638934,
        1780417581,
        194302333,
        3943089344,
        2765428711,
        1059206227,
        565787245,
    )
    by_hand = np.random.default_rng(np.random.SeedSequence(7, spawn_key=words)).random()
    assert np.random.default_rng(runner._random_source(7, Cell("a", {"n": 1}))).random() == by_hand


@pytest.mark.parametrize("backend", ["sequential", "loky"])
def test_cells_run_in_one_thread(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threadpool_limits(2):
            table = run(CELLS[:2], tmp_path, count_threads, backend=backend)
            assert torch.get_num_threads() == 2
            assert "OMP_NUM_THREADS" not in os.environ
            assert max(pool["num_threads"] for pool in threadpool_info()) == 2
    finally:
        torch.set_num_threads(before)
    assert table.to_dict("list") == {"torch": [1, 1], "pools": [1, 1], "omp": ["1", "1"]}


@pytest.mark.parametrize("other", ["torch.set_num_threads", "threadpool_limits"])
def test_worker_limits_its_own_threads(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    """Workers of a remote cluster inherit nothing from us. Each library is limited by its own
    means, not by chance."""
    for name in runner.THREAD_VARIABLES:
        monkeypatch.setenv(name, "2")
    before = torch.get_num_threads()
    set_num_threads = torch.set_num_threads
    set_num_threads(2)
    try:
        with threadpool_limits(2):
            monkeypatch.setattr(f"experiments.engine.runner.{other}", lambda _: None)
            _, content = runner._compute(0, count_threads, CELLS[0], 7, {})
    finally:
        set_num_threads(before)
    assert isinstance(content, bytes)
    rows = pd.read_parquet(io.BytesIO(content))
    assert rows["omp"][0] == "1"
    assert rows["torch" if other == "threadpool_limits" else "pools"][0] == 1


#  Resuming ----------------------------------------------------------------------------------------


def test_finished_cells_are_reused(
    tmp_path: Path, expected: pd.DataFrame, calls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(CELLS[2:4], out)
    calls.write_text("")
    same(run(CELLS, out, progress=True), expected)
    assert sorted(calls.read_text().split("\n")[:-1]) == [
        "100 0.0",
        "100 0.1",
        "300 0.1",
        "300 inf",
    ]
    assert f"4 cells computed, 2 reused, 0 recomputed. Results: {out}" in capsys.readouterr().err
    same(run(CELLS, out), expected)
    assert len(calls.read_text().split("\n")[:-1]) == 4


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("truncated", "not a readable Parquet file, truncated or damaged"),
        ("flipped", ".*damaged"),
        ("swapped", "cell is 'n=100 rho=0.1', expected 'n=100 rho=0.0'"),
        ("seed", "seed is '8', expected '7'"),
        (
            "fingerprint",
            "fingerprint is 'old', expected 'abc' .the code or the configuration has changed",
        ),
    ],
)
def test_unusable_cells_are_recomputed(
    tmp_path: Path,
    expected: pd.DataFrame,
    calls: Path,
    capsys: pytest.CaptureFixture[str],
    damage: str,
    reason: str,
) -> None:
    out = tmp_path / "out"
    run(CELLS, out)
    path, other = cell_path(out, CELLS[0]), cell_path(out, CELLS[1])
    content = path.read_bytes()
    path.unlink()
    if damage == "seed":
        run(CELLS[:1], out, seed=8)
    elif damage == "fingerprint":
        run(CELLS[:1], out, fingerprint="old")
    elif damage == "truncated":
        path.write_bytes(content[:-100])
    elif damage == "flipped":
        path.write_bytes(
            content[:20] + bytes([content[20] ^ 1]) + content[21:]
        )  # in the first column
    elif damage == "swapped":
        path.write_bytes(other.read_bytes())
    calls.write_text("")
    same(run(CELLS, out, progress=True), expected)
    assert calls.read_text() == "100 0.0\n"
    messages = capsys.readouterr().err
    assert re.search(
        f"warning: recomputing n=100 rho=0.0: the stored file is not used, {reason}", messages
    )
    assert "0 cells computed, 5 reused, 1 recomputed" in messages


def test_one_warning_for_one_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(CELLS, tmp_path)
    run(CELLS, tmp_path, fingerprint="new")
    assert capsys.readouterr().err.count("warning") == 1


# A run as a user starts it, in a process of its own that can be killed.
SCRIPT = """
import sys
from pathlib import Path
from experiments.engine.runner import run_cells
from experiments.engine.store import open_run, write_table
from tests.experiments.test_runner import CELLS, slow
if __name__ == "__main__":
    with open_run(sys.argv[1]) as out:
        table = run_cells(CELLS, slow, out, seed=7, fingerprint="abc", backend=sys.argv[2])
        write_table(table, out / "table.parquet")
"""


def start(out: Path, calls: Path, backend: str = "loky", **more: str) -> subprocess.Popen[str]:
    script = out.parent / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TEST_RUNNER_CALLS": str(calls)} | more
    return subprocess.Popen(
        [sys.executable, str(script), str(out), backend],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # what a shell starts in the background ignores control-C, and so do its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,  # so that workers that outlive a killed run can be stopped with it
    )


def stored(out: Path) -> set[str]:
    return {path.name for path in out.glob("cells/*.parquet")}


def wait_for_cells(process: subprocess.Popen[str], out: Path, count: int) -> None:
    wait_until(lambda: len(stored(out)) >= count or process.poll() is not None)


def gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_killed_run_is_resumed(tmp_path: Path, expected: pd.DataFrame) -> None:
    out, calls = tmp_path / "out", tmp_path / "calls"
    generator = random.Random(3)
    names = {
        cell_path(out, cell).name: f"{cell.parameters['n']} {cell.parameters['rho']}"
        for cell in CELLS
    }
    groups = []
    for backend, count in (("loky", 1), ("sequential", 3)):
        process = start(out, calls, backend)
        wait_for_cells(process, out, count)
        time.sleep(generator.uniform(0, 0.1))
        process.kill()  # the run alone: its workers live on, in the middle of a cell
        process.wait()
        groups.append(process.pid)
        finished = {names[name] for name in stored(out)}
        assert len(finished) >= count
        calls.rename(tmp_path / f"calls of {backend}")
        calls.touch()
    process = start(out, calls, "sequential")
    _, messages = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, messages
    assert finished.isdisjoint(calls.read_text().split("\n"))
    assert (
        f"{len(CELLS) - len(finished)} cells computed, {len(finished)} reused, 0 recomputed"
        in messages
    )
    write_table(expected, tmp_path / "expected.parquet")
    assert (out / "table.parquet").read_bytes() == (tmp_path / "expected.parquet").read_bytes()
    for group in groups:
        end_group(group)


def test_interrupted_run_stops_cleanly(tmp_path: Path, expected: pd.DataFrame) -> None:
    out = tmp_path / "out"
    process = start(
        out, tmp_path / "calls", TEST_RUNNER_GATE=str(tmp_path / "never")
    )  # or it may have ended before
    wait_for_cells(process, out, 1)
    os.killpg(process.pid, signal.SIGINT)  # what control-C in a terminal does
    _, messages = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert 1 <= len(stored(out)) < len(CELLS)
    assert (
        f"stopped: {len(stored(out))} of 6 cells are stored in {out}; a rerun computes the others"
        in messages
    )
    assert "Warning" not in messages
    assert wait_until(
        lambda: gone(process.pid)
    )  # no worker outlives an interrupted run; the system may take a moment
    same(run(CELLS, out), expected)


def test_second_run_in_a_folder_stops_at_once(tmp_path: Path, expected: pd.DataFrame) -> None:
    out = tmp_path / "out"
    first = start(out, tmp_path / "calls", "sequential")
    wait_for_cells(first, out, 1)
    first.send_signal(signal.SIGSTOP)  # holds the folder for as long as we wish
    second = start(out, tmp_path / "other", "sequential")
    _, messages = second.communicate(timeout=PATIENCE)
    first.send_signal(signal.SIGCONT)
    assert second.returncode != 0
    assert f"StoreError: {out} is in use by another run (process {first.pid} on " in messages
    assert not (tmp_path / "other").exists()  # it has computed nothing
    first.communicate(timeout=PATIENCE)
    assert first.returncode == 0
    same(pd.read_parquet(out / "table.parquet"), expected)


#  Failures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["sequential", "loky"])
def test_failing_cells(
    tmp_path: Path,
    expected: pd.DataFrame,
    calls: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
) -> None:
    out = tmp_path / "out"
    with pytest.raises(CellsFailed) as caught:
        run(CELLS, out, failing, backend=backend, workers=None if backend == "sequential" else 2)
    text = str(caught.value)
    assert f"3 of 6 cells failed; the others are stored in {out}, and a rerun resumes" in text
    for cell in CELLS[3:]:
        assert f"{cell.name}: {cell.parameters}" in text
    assert 'in failing\n    raise LocalError(f"no convergence' in text
    assert text.count("Traceback") == 1
    assert "no convergence at rho=0.0" in text
    assert "no convergence at rho=inf" in caught.value.tracebacks["n=300 rho=inf"]
    assert len(stored(out)) == 3

    monkeypatch.setenv("TEST_RUNNER_FAILS", "no")
    calls.write_text("")
    same(run(CELLS, out, failing), expected)
    assert calls.read_text().split() == ["300", "0.0", "300", "0.1", "300", "inf"]


@pytest.mark.parametrize(
    ("function", "reason"),
    [(no_table, "must return a pandas.DataFrame, not dict"), (mixed_column, "Arrow")],
)
def test_unusable_result_is_a_failure(
    tmp_path: Path, function: runner.CellFunction, reason: str
) -> None:
    with pytest.raises(CellsFailed, match=reason):
        run(CELLS[:1], tmp_path, function)


def test_keyboard_interrupt_keeps_what_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(CELLS, tmp_path, interrupted)
    assert f"stopped: 3 of 6 cells are stored in {tmp_path}" in capsys.readouterr().err
    assert len(stored(tmp_path)) == 3
    with open_run(tmp_path):  # is free again
        pass


@pytest.mark.parametrize("backend", ["sequential", "loky"])
def test_disk_full_in_the_middle(
    tmp_path: Path, expected: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    written = []

    def fill_up(content: int) -> None:
        written.append(content)
        if len(written) == 4:  # the owner's file, and two cells, have been written
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(store.os, "fsync", fill_up)
        with pytest.raises(StoreError, match="No space left on device"):
            run(CELLS, tmp_path, backend=backend, workers=None if backend == "sequential" else 2)
    assert len(stored(tmp_path)) == 2
    assert not list(tmp_path.rglob("*tmp"))
    same(run(CELLS, tmp_path), expected)


#  Arguments and messages --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backend": "spark"},
            "unknown backend 'spark': choose one of sequential, loky, dask, ray",
        ),
        (
            {"backend": "loky", "address": "tcp://host:1"},
            "'loky' runs on this machine and has no address.*tcp://host:1",
        ),
        ({"backend": "sequential", "address": "x"}, "has no address"),
        ({"backend": "sequential", "workers": 2}, "has one worker, received workers=2"),
        ({"backend": "loky", "workers": 0}, "at least 1, received 0"),
        ({"backend": "dask", "address": "x", "workers": 2}, "leave out workers=2"),
        ({"seed": -1}, "seed must be a non-negative integer, received -1"),
    ],
)
def test_unusable_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(CELLS, tmp_path, **options)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([], "no cells"),
        ([Cell("a", {"n": 1}), Cell("a", {"n": 2})], "'a' is not"),
        ([Cell("a", {"n": np.arange(2)})], "cell 'a' must be JSON values.*ndarray"),
    ],
)
def test_unusable_cells(tmp_path: Path, cells: list[Cell], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(cells, tmp_path)


@pytest.mark.parametrize(("backend", "module"), [("dask", "distributed"), ("ray", "ray")])
def test_missing_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'prefdro\[{backend}\]'"):
        run(CELLS, tmp_path, backend=backend)


def test_plain_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten cells of which four are reused; one takes 20 s. A line every 30 s at most, so after the
    2nd, 4th and 6th."""
    clock = [0.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: clock[0])
    advance = runner._plain_progress(total=10, reused=4)
    for _ in range(6):
        clock[0] += 20
        advance()
    assert capsys.readouterr().err.splitlines() == [
        "6/10 cells (4 reused), time left 0:01:20",
        "8/10 cells (4 reused), time left 0:00:40",
        "10/10 cells (4 reused), time left 0:00:00",
    ]


def test_progress_bar_on_a_terminal(
    tmp_path: Path,
    expected: pd.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        runner, "Console", lambda **options: REAL_CONSOLE(force_terminal=True, **options)
    )
    same(run(CELLS, tmp_path, progress=True), expected)
    assert "6/6" in capsys.readouterr().err


REAL_CONSOLE = runner.Console
