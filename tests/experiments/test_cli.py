"""The command: its words reach the right function, and what is wrong ends with a message and a
non-zero status."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from experiments.cli import main
from experiments.methods import METHODS
from tests.launches import run


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    assert caught.value.code not in (0, None)
    captured = capsys.readouterr()
    return captured.err + captured.out


def test_list_names_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in METHODS)


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
        (("run", "aot-benchmark", "--wdpo", "exact"), "no WDPO is trained here"),
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
