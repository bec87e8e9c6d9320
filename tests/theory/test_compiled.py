"""Compiled solvers: the same answers as the solvers in torch, and where they stand back."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from theory import dpo
from theory.batch import pair_batch
from theory.solvers import points
from theory.solvers.compiled import available, threads
from theory.solvers.compiled.batches import answer
from theory.solvers.newton import Domain

arithmetic = pytest.importorskip("theory.solvers.compiled.arithmetic")
ROOT = Path(__file__).resolve().parents[2]
Array = np.ndarray


def sample(seed: int, n: int = 60, d: int = 3, replicates: int = 4) -> Array:
    """Differences whose labels follow Bradley and Terry."""
    rng = np.random.default_rng(seed)
    u = rng.standard_normal((replicates, n, d))
    agree = rng.random((replicates, n, 1)) < 1 / (1 + np.exp(-u @ np.ones((d, 1))))
    return np.where(agree, u, -u)


def lines_of(program: str, root: Path = ROOT, **env: str) -> list[str]:
    """What a fresh process with the package at `root` says of itself on stderr."""
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), **env},
        check=True,
    )
    return [line for line in run.stderr.splitlines() if line.startswith("prefdro:")]


FITS = "from theory import dpo\nfor _ in range(2): dpo([[1.0], [1.0], [-1.0]], beta=1.0)"


# ---------------------------------------------------------------------------------- where they run
def test_theory_alone_does_not_import_numba() -> None:
    program = (
        "import sys, theory, theory.solvers.compiled.batches; assert 'numba' not in sys.modules"
    )
    assert lines_of(program) == []


def test_switched_off_they_are_neither_asked_for_nor_missed() -> None:
    program = f"{FITS}\nimport sys; assert 'numba' not in sys.modules"
    assert lines_of(program, PREFDRO_COMPILED="0") == []


def test_without_numba_one_line_says_so() -> None:
    (line,) = lines_of(f"import sys; sys.modules['numba'] = None\n{FITS}")
    assert "without compiled solvers" in line and "[fast]" in line


def test_without_a_folder_one_line_says_so(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.touch()
    (line,) = lines_of(FITS, NUMBA_CACHE_DIR=str(taken))
    assert "NUMBA_CACHE_DIR" in line and str(taken) in line


@pytest.mark.slow
def test_one_line_where_they_are_compiled_and_none_from_the_cache(tmp_path: Path) -> None:
    (line,) = lines_of(FITS, NUMBA_CACHE_DIR=str(tmp_path))
    assert "compiling" in line
    assert lines_of(FITS, NUMBA_CACHE_DIR=str(tmp_path)) == []
    shutil.copytree(ROOT / "theory", tmp_path / "copy" / "theory")
    assert lines_of(FITS, tmp_path / "copy", NUMBA_CACHE_DIR=str(tmp_path)) == []


def test_code_is_kept_by_what_it_is_made_from() -> None:
    """Not by where the source lies, which numba puts into the path."""
    kept = available.kernel("mean")._cache.cache_path  # type: ignore[attr-defined]
    assert Path(kept) == available.cache_folder()


def test_nothing_is_compiled_that_is_there() -> None:
    """Neither a kernel nor a piece of it, once `python -m theory.solvers.compiled` has run."""
    lines_of("from theory.solvers.compiled.__main__ import main; main()")
    load = "from theory.solvers.compiled import available as a; [a.kernel(n) for n in a.names()]"
    assert lines_of(load) == []


def test_all_kernels_are_known_beforehand() -> None:
    """To `python -m theory.solvers.compiled`, by a decorator that they have."""
    files = (ROOT / "theory" / "solvers" / "compiled").glob("*.py")
    assert set(available.names()) == {f.stem for f in files if "\ndef batch(" in f.read_text()}


def test_kernels_have_the_constants_of_the_solvers_above() -> None:
    assert (arithmetic.CLOSED, arithmetic.LOG2) == (points.DOUBTFUL, points.LOG2)


def test_a_switch_that_is_neither_on_nor_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFDRO_COMPILED", "yes")
    with pytest.raises(ValueError, match="got 'yes'"):
        dpo([[1.0], [-1.0]], beta=1.0)


def test_the_folder_of_others_functions_stays_what_it_was() -> None:
    from numba.core import config

    before = config.CACHE_DIR
    available.kernel("mean")
    assert before == config.CACHE_DIR


# ----------------------------------------------------------------------------------------- threads
def test_threads_are_no_more_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert threads.count() == 1
        torch.set_num_threads(2)
        assert 1 <= threads.count() <= 2
        monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
        assert threads.count() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.exact("the same bits whatever the number of threads")
def test_rows_do_not_depend_on_threads_or_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = pair_batch(sample(1, replicates=7))
    domain = Domain(torch.zeros(3, dtype=torch.float64), 20.0)
    alone = answer("mean", pairs, 1.0, domain, dual=False)
    monkeypatch.setattr(threads, "count", lambda: 3)
    monkeypatch.setattr(threads, "_BLOCK", 1)
    several = answer("mean", pairs, 1.0, domain, dual=False)
    one = answer("mean", pairs.select(torch.tensor([5])), 1.0, domain, dual=False)
    assert alone is not None and several is not None and one is not None
    assert alone.point.w.equal(several.point.w) and alone.point.gap.equal(several.point.gap)
    assert alone.point.w[5].equal(one.point.w[0])


def test_every_replicate_is_solved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "count", lambda: 3)
    seen: list[int] = []
    threads.over_replicates(
        lambda rows, add: seen.extend(int(r) + add for r in rows), np.arange(10), 1 << 16, (1,)
    )
    assert sorted(seen) == list(range(1, 11))


def test_an_error_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "count", lambda: 2)

    def broken(rows: Array) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        threads.over_replicates(broken, np.arange(4), 1 << 20, ())
