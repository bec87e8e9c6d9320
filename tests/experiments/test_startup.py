"""The commands that only say something import nothing that takes seconds."""

import subprocess
import sys

import pytest

from experiments.bench import startup
from experiments.bench.startup import Startup
from tests.launches import run

SLOW = ("torch", "pandas", "numpy", "scipy", "pyarrow", "transformers", "matplotlib")
PROGRAM = """
import sys
from experiments.cli import main
try:
    main(sys.argv[1:])
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def imported(*words: str) -> set[str]:
    ended = run([sys.executable, "-c", PROGRAM, *words])
    assert ended.returncode == 0, ended.stderr
    return set(ended.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "words", [("--help",), ("run", "--help"), ("bench", "--help"), ("list",)], ids=" ".join
)
def test_what_only_says_something_imports_nothing_slow(words: tuple[str, ...]) -> None:
    assert not imported(*words) & set(SLOW)


def test_an_experiment_is_imported_when_it_is_asked_for() -> None:
    assert {"torch", "pandas"} <= imported("run", "worst-case", "--help")


def test_the_benchmark_has_a_row_for_each_command_and_says_what_is_too_slow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = iter([0.1, 0.4, 0.2, 9.0, 0.1, 0.6, 0.9, 0.3, 0.9])
    monkeypatch.setattr(startup, "processor_seconds", lambda words: next(taken))
    assert startup.run(Startup(repeats=3)) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[2:5]]
    assert lines == [
        ["prefdro", "--help", "0.20", "0.5", "yes"],
        ["prefdro", "run", "--help", "0.60", "0.5", "NO"],
        ["prefdro", "list", "0.90", "1.5", "yes"],
    ]


def test_processor_time_is_that_of_the_command() -> None:
    assert 0.01 < startup.processor_seconds(["--help"]) < 60


def test_a_command_that_fails_has_no_time() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        startup.processor_seconds(["figures", "--all", "--results", "nowhere"])


def test_repeats_are_positive() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        startup.run(Startup(repeats=0))


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """As in `prefdro list | head -1`."""
    command = [sys.executable, "-m", "experiments", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        told = process.stderr.read()
        assert (process.wait(), told) in ((141, b""), (0, b""))  # 0: it was all in the pipe
