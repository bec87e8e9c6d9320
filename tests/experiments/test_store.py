"""The store must notice every file that is not exactly what was asked for, and never leave a file
half written."""

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.engine import store
from experiments.engine.store import (
    Cell,
    CellRejected,
    StoreError,
    cell_path,
    cell_record,
    encode_cell,
    open_run,
    read_cell,
    write_cell,
    write_json,
    write_table,
    write_text,
)

ROOT = Path(__file__).parents[2]
CELL = Cell("n=100", {"n": 100, "rho": 0.1})
ROWS = pd.DataFrame(
    {
        "replicate": [0, 1, 2],
        "error": [0.1, 0.2 + 1e-16, math.pi],
        "estimator": ["dpo", "kldpo", "wdpo"],
    }
)


def record(cell: Cell = CELL, seed: int = 1, fingerprint: str = "abc") -> dict[str, str]:
    return cell_record(cell, seed=seed, fingerprint=fingerprint)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cell.parquet"


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


#  What is written is read back --------------------------------------------------------------------

NEGATIVE_NAN = np.array([0xFFF8000000000000], dtype=np.uint64).view(np.float64)[
    0
]  # what 0/0 gives on x86


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        ROWS.iloc[:0],
        ROWS.set_index("replicate"),
        pd.DataFrame({"x": [NEGATIVE_NAN, np.nan, np.inf, -0.0, 5e-324]}),
        pd.DataFrame(
            {
                "x": [1, None, 3],
                "name": ["a", None, "β"],
                "flag": [True, None, False],
                "none": [None] * 3,
            }
        ),
        pd.DataFrame(
            {"x": pd.array([1, None, 3], dtype="Int64"), "group": pd.Categorical(["a", "b", "a"])}
        ),
        pd.DataFrame(
            {"x": np.arange(3, dtype=np.float32), "time": pd.date_range("2025-01-01", periods=3)}
        ),
        pd.DataFrame({"weights": [[0.5, 0.5], [1.0], []]}),
        pd.DataFrame({"x": np.random.default_rng(0).standard_normal(200_000)}),  # several pages
    ],
)
def test_rows_survive(path: Path, rows: pd.DataFrame) -> None:
    write_cell(path, encode_cell(rows, record()))
    once = read_cell(path, record())
    # Missing values may take another form (None, NaN) the first time, and no number may change.
    pd.testing.assert_frame_equal(
        once.astype(object).where(once.notna(), None), normal(rows), check_dtype=False
    )
    write_cell(path, encode_cell(once, record()))
    pd.testing.assert_frame_equal(read_cell(path, record()), once, check_exact=True)


def normal(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.reset_index(drop=True).astype(object)
    return rows.where(rows.notna(), None)


def test_files_of_equal_content_have_equal_bytes() -> None:
    assert encode_cell(ROWS, record()) == encode_cell(ROWS.copy(), record())


def test_cells_have_different_files(tmp_path: Path) -> None:
    same_slug = [
        Cell("a b", {}),
        Cell("A/b", {}),
        Cell("a b", {"n": 1}),
        Cell("x" * 300, {}),
        Cell("x" * 300 + "y", {}),
    ]
    paths = {cell_path(tmp_path, cell) for cell in same_slug}
    assert len(paths) == len(same_slug)
    assert all(path.parent == tmp_path / "cells" and len(path.name) < 120 for path in paths)
    assert Cell("a", {"x": 1, "y": 2}).digest() == Cell("a", {"y": 2, "x": 1}).digest()


#  What is not as it should be is not read ---------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (
            record(fingerprint="new"),
            "fingerprint is 'abc', expected 'new'.*code or the configuration",
        ),
        (record(seed=2), "seed is '1', expected '2'"),
        (record(Cell("n=200", CELL.parameters)), "cell is 'n=100', expected 'n=200'"),
        (record(Cell("n=100", {"n": 100, "rho": 0.2})), "parameters is .*0.1.*, expected .*0.2"),
        (record() | {"format": "2"}, "format is '1', expected '2'"),
    ],
)
def test_foreign_cell_is_rejected(path: Path, asked: dict[str, str], reason: str) -> None:
    write_cell(path, encode_cell(ROWS, record()))
    with pytest.raises(CellRejected, match=reason):
        read_cell(path, asked)


def test_missing_cell_is_not_a_rejected_one(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_cell(path, record())


def test_files_of_others_are_rejected(path: Path) -> None:
    path.write_text("replicate,error\n0,0.1\n")
    with pytest.raises(CellRejected, match="not a readable Parquet file"):
        read_cell(path, record())
    ROWS.to_parquet(path)
    with pytest.raises(CellRejected, match="no record of its cell"):
        read_cell(path, record())


def test_changed_rows_are_rejected(path: Path) -> None:
    """A valid Parquet file with a valid record, and one number changed in its last bit."""
    write_cell(path, encode_cell(ROWS, record()))
    table = pq.read_table(path)
    error = table["error"].to_numpy().copy()
    error[1] = np.nextafter(error[1], 1)
    pq.write_table(table.set_column(1, "error", pa.array(error)), path)
    with pytest.raises(CellRejected, match="checksum"):
        read_cell(path, record())


def test_every_truncation_is_rejected(path: Path) -> None:
    content = encode_cell(ROWS, record())
    for length in [*range(0, len(content), 37), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(CellRejected, match="truncated or damaged"):
            read_cell(path, record())


def test_no_flipped_bit_changes_the_rows(path: Path) -> None:
    """Some bytes of a file mean nothing (statistics, library versions); wherever the flip is, wrong
    rows never come."""
    content = encode_cell(ROWS, record())
    generator = random.Random(0)
    rejected = 0
    flips = range(0, len(content), 5)
    for position in flips:
        damaged = bytearray(content)
        damaged[position] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            pd.testing.assert_frame_equal(read_cell(path, record()), ROWS, check_exact=True)
        except CellRejected:
            rejected += 1
    assert rejected > len(flips) / 3


#  Atomic writes and failing disks -----------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_table_round_trip(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"table.{ending}"
    write_table(ROWS, path)
    read = pd.read_csv(path) if ending == "csv" else pd.read_parquet(path)
    pd.testing.assert_frame_equal(read, ROWS, check_exact=True)
    assert files(tmp_path) == [path.name]


def test_table_of_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"table\.xlsx.*\.csv or \.parquet"):
        write_table(ROWS, tmp_path / "table.xlsx")


def test_json_round_trip(path: Path) -> None:
    value = {"β": [1, 0.1, None], "text": "é"}
    write_json(value, path)
    assert json.loads(path.read_text(encoding="utf-8")) == value


def test_text_is_written_as_it_is(path: Path) -> None:
    text = "# β\r\n\ttau λ\n"
    write_text(text, path)
    assert path.read_bytes() == text.encode("utf-8")
    assert files(path.parent) == [path.name]


@pytest.mark.parametrize("write", [write_json, write_text])
@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_failing_write_keeps_the_old_file(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    code: int,
    write: Callable[[str, Path], None],
) -> None:
    write("old", path)
    old = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(store.os, moment, fail)
    remedy = "Free some space" if code == errno.ENOSPC else "may write to"
    with pytest.raises(
        StoreError, match=rf"{path}.*{os.strerror(code)}.*[\d,]+ bytes are free.*{remedy}.*kept"
    ):
        write("new", path)
    assert path.read_bytes() == old
    assert files(path.parent) == [path.name]


def test_interrupted_write_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_json("new", path)
    assert files(path.parent) == []


def test_full_disk(tmp_path: Path) -> None:
    """A real one, of 64 kB: what was written before it filled up is intact, and writing goes on
    once there is space."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        not shutil.which("mount")
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small disk is not permitted here")
    try:
        rows = pd.DataFrame({"x": np.random.default_rng(0).standard_normal(500)})
        content = encode_cell(rows, record())
        with open_run(disk) as folder:
            written = []
            with pytest.raises(StoreError, match=r"No space left on device .* Free some space"):
                for number in range(100):
                    write_cell(folder / "cells" / f"{number}.parquet", content)
                    written.append(number)
            assert files(folder / "cells") == sorted(f"{number}.parquet" for number in written)
            for number in written:
                pd.testing.assert_frame_equal(
                    read_cell(folder / "cells" / f"{number}.parquet", record()), rows
                )
            (folder / "cells" / "0.parquet").unlink()
            write_cell(folder / "cells" / "100.parquet", content)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


WRITER = """
import sys
from pathlib import Path
from experiments.engine.store import open_run, write_cell
with open_run(sys.argv[1]) as folder:
    content = Path(sys.argv[2]).read_bytes()
    print("ready", flush=True)
    while True:
        for number in range(5):
            write_cell(folder / "cells" / f"{number}.parquet", content)
"""


def test_killed_writer_leaves_whole_files(tmp_path: Path) -> None:
    rows = pd.DataFrame({"x": np.random.default_rng(0).standard_normal(100_000)})
    content = tmp_path / "content"
    content.write_bytes(encode_cell(rows, record()))
    out = tmp_path / "out"
    generator = random.Random(1)
    for _ in range(3):
        arguments = [sys.executable, "-c", WRITER, str(out), str(content)]
        with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(generator.uniform(0.01, 0.1))
            writer.send_signal(signal.SIGKILL)
        for path in out.glob("cells/*.parquet"):
            pd.testing.assert_frame_equal(read_cell(path, record()), rows, check_exact=True)
    with open_run(out):  # takes the lock of the killed process at once, and cleans up after it
        assert all(name.endswith((".parquet", ".lock", ".owner.json")) for name in files(out))


#  One run per folder ------------------------------------------------------------------------------


def test_folder_is_made_signed_and_released(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with open_run(out) as folder:
        assert folder == out.resolve()
        assert json.loads((out / ".owner.json").read_text())["pid"] == os.getpid()
        with open_run(out):
            pass
        assert (
            out / ".owner.json"
        ).exists()  # the inner one leaves the outer one's signature and lock
        assert acquired_elsewhere(out) is False
    assert not (out / ".owner.json").exists()
    assert acquired_elsewhere(out) is True


def acquired_elsewhere(out: Path) -> bool:
    """Whether another process could open the folder."""
    program = (
        "import sys\nfrom experiments.engine.store import open_run, StoreError\ntry:\n  with"
        " open_run(sys.argv[1]): pass\nexcept StoreError as error: sys.exit(str(error))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(out)], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        assert f"in use by another run (process {os.getpid()} on " in done.stderr
        assert "choose another folder" in done.stderr
    return done.returncode == 0


def test_waiting_for_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = []

    def second() -> None:
        with open_run(tmp_path, wait=True):
            order.append("second")

    with open_run(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]
    assert (
        f"waiting for {tmp_path}, in use by another run (process {os.getpid()}"
        in capsys.readouterr().err
    )


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    kept = ["cells/done.parquet", "cells/.hidden", "notes.txt", ".mine.tmp"]
    for name in [*kept, "cells/.done.parquet.prefdro-tmp", ".table.csv.prefdro-tmp"]:
        (tmp_path / name).write_text("")
    with open_run(tmp_path):
        assert set(files(tmp_path)) == {*kept, ".lock", ".owner.json"}


def test_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(
            StoreError, match=r"cannot write .*file/out: Not a directory .* choose another one"
        ),
        open_run(tmp_path / "file" / "out"),
    ):
        pass

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(store.Path, "mkdir", read_only)
    with (
        pytest.raises(StoreError, match=r"Read-only file system .* may write to"),
        open_run(tmp_path / "out"),
    ):
        pass


def test_a_cell_is_the_same_wherever_its_files_lie() -> None:
    here, there = (
        Cell("pairs", {"digest": "1"}, {"pairs": path}) for path in ("/a/pairs.csv", "/b/pairs.csv")
    )
    assert here.digest() == there.digest() == Cell("pairs", {"digest": "1"}).digest()
