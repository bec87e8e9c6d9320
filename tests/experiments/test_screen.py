"""Tables are readable in a pipe and in a terminal of 80 columns: nothing is cut."""

import math
import os
import pty
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from experiments import BENCHMARKS, EXPERIMENTS, screen
from experiments.methods import METHODS
from paper_figures import catalogue
from tests.launches import ROOT, run

NAMES = [
    *(entry.key for entry in catalogue.ENTRIES),
    *EXPERIMENTS,
    *BENCHMARKS,
    *METHODS,
]
LISTS = [[sys.executable, "-m", "experiments", "list", *more] for more in ([], ["--methods"])]


def test_columns_are_aligned_and_numbers_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    screen.show(
        [{"name": "a", "x": 1.23456, "met": True}, {"name": "a long name", "x": 20, "met": None}],
        "title",
    )
    assert capsys.readouterr().out.splitlines() == [
        "title",
        "name             x  met",
        "a            1.235  yes",
        "a long name     20",
        "",
    ]


def test_no_rows_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    screen.show([], "rates")
    assert capsys.readouterr().out == "rates: no rows\n"


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, ""),
        (math.nan, ""),
        (np.float64("nan"), ""),
        (False, "NO"),
        (np.int64(1234567), "1234567"),
        (0.000123456, "0.0001235"),
        ("", ""),
    ],
)
def test_a_cell(value: object, cell: str) -> None:
    assert screen.text(value) == cell


def test_rows_of_a_frame_are_taken_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.DataFrame({"met": np.array([True, None], dtype=object), "n": [10, 200]})
    screen.show(frame.to_dict("records"))
    assert capsys.readouterr().out.splitlines()[:3] == ["met    n", "yes   10", "     200"]


def test_a_pipe_gets_plain_lines_with_whole_names() -> None:
    shown = "".join(run(words, env={"COLUMNS": "80"}).stdout for words in LISTS)
    assert not re.search("[…┃│━─]", shown)
    firsts = {line.split("  ")[0] for line in shown.splitlines()}
    assert set(NAMES) <= firsts


def test_a_terminal_of_80_columns_gets_whole_names() -> None:
    shown = "".join(_in_a_terminal(words) for words in LISTS)
    assert "━" in shown or "─" in shown  # it is rich's
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert set(NAMES) <= set(shown.split())


def _in_a_terminal(words: list[str]) -> str:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, stdout=theirs, cwd=ROOT, env=environment)
    os.close(theirs)
    read = b""
    while part := _read(ours):
        read += part
    assert process.wait() == 0
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;]*m", "", read.decode())


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other side was closed
        return b""
