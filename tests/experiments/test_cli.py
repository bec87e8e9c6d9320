"""The command: its words reach the right function, and what is wrong ends with a message and a
non-zero status."""

import subprocess
import sys
from dataclasses import fields, is_dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import get_type_hints

import pandas as pd
import psutil
import pytest

from experiments import BENCHMARKS, EXPERIMENTS, Entry, cli
from experiments.cli import main
from experiments.methods import METHODS
from tests.launches import PATIENCE, ROOT, run, wait_until

COUNTING = """
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Counting:
    out: Path = Path("results/counting")
    n: int = 1


def run(config: Counting) -> int:
    config.out.mkdir()
    (config.out / "run.json").write_text('{"experiment": "counting"}')
    return config.n


def summarise(config: Counting, tables: int) -> None:
    print(tables, "rows")
"""


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    assert caught.value.code not in (0, None)
    captured = capsys.readouterr()
    return captured.err + captured.out


def test_list_names_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list", "--methods"])
    shown = capsys.readouterr().out
    assert all(name in shown and method.about in shown for name, method in METHODS.items())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_what_the_command_needs(name: str) -> None:
    module = import_module(EXPERIMENTS[name].module)
    options = get_type_hints(module.run)["config"]
    assert is_dataclass(options) and options().out == Path("results") / name
    assert list(signature(module.summarise).parameters) == ["config", "tables"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_shows_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", name, "--help"])
    assert ended.value.code == 0
    options = get_type_hints(import_module(BENCHMARKS[name].module).run)["config"]
    shown = capsys.readouterr().out
    assert all(f"--{option.name}" in shown for option in fields(options))


def test_an_experiment_is_an_entry_and_its_module(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counting.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.GROUPS["run"], "counting", Entry("counting", "Counts."))
    main(["run", "counting", "--out", str(tmp_path / "out"), "--n", "3"])
    said = capsys.readouterr().out
    assert "3 rows" in said and f"tables in {tmp_path / 'out'}: run.json." in said
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    assert "Counts." in capsys.readouterr().out


def test_names_may_have_underscores(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "worst_case", "--help"])
    assert ended.value.code == 0
    assert "--pairs" in capsys.readouterr().out


def test_run_writes_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--profile",
        "smoke",
        "--replicates",
        "3",
        "--methods",
        "dpo",
        "--backend",
        "sequential",
        "--out",
        str(tmp_path),
    ]
    main(["run", "estimation-error", *words])
    assert set(pd.read_parquet(tmp_path / "errors.parquet").method) == {"dpo"}
    assert str(tmp_path) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "estimation-error", "--methods", "magic"), "magic"),
        (("run", "estimation-error", "--profile", "huge"), "huge"),
        (("run", "estimation-error", "--backend", "abacus", "--profile", "smoke"), "abacus"),
        (("run", "estimation-error", "--no-such-option"), "no-such-option"),
        (("figures", "--from", "no/such/folder"), "no/such/folder"),
        (("figures",), "Give --from FOLDER"),
        (("figures", "--all", "--results", "nowhere"), "no folder nowhere"),
        (
            (
                "run",
                "armorm",
                "--profile",
                "smoke",
                "--out",
                "/proc/1/nothing",
                "--shared",
                "/proc/1/nothing",
            ),
            "cannot write",
        ),
        (("run", "aot-benchmark", "--wdpo", "exact"), "would change nothing without wdpo"),
        (("figures", "--all", "--from", "results/aot"), "leave out --from results/aot"),
        (("figures", "--from", "results/aot", "--workers", "2"), "go with --all"),
        (("run", "armorm", "--part", "3/2"), "part must be K/N"),
        (("run", "leaderboard", "--benchmarks", "mmlu"), "unknown benchmarks 'mmlu'"),
        (("run", "aot-benchmark", "--seeds", "1"), "at least 2 seeds"),
        (("nonsense",), "nonsense"),
        (("run",), "estimation-error"),
        (
            ("run", "estimation-error", "--profile", "smoke", "--out", "/proc/1/nothing"),
            "/proc/1/nothing",
        ),
    ],
)
def test_what_is_wrong_is_said(
    words: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *words)


def test_the_folder_of_another_experiment_is_not_overwritten(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text('{"experiment": "armorm"}')
    said = refused(capsys, "run", "leaderboard", "--profile", "smoke", "--out", str(tmp_path))
    assert "holds the results of armorm" in said and "choose another --out" in said


def test_the_installed_command_exits_with_a_status() -> None:
    command = [sys.executable, "-m", "experiments", "run", "estimation-error", "--methods", "magic"]
    ended = run(command)
    assert ended.returncode == 1
    assert "magic" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="there a process is ended without a signal")
def test_a_terminated_command_takes_its_workers_with_it(tmp_path: Path) -> None:
    command = ["-m", "experiments", "run", "estimation-error", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, *command, "--out", str(tmp_path / "out")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    parent = psutil.Process(process.pid)
    wait_until(lambda: len(parent.children(recursive=True)) >= 3)  # two workers and a tracker
    workers = parent.children(recursive=True)
    process.terminate()
    _, messages = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, messages
    assert "the same command resumes" in messages
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
