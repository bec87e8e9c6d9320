"""Processor time of the commands that only say something: they should answer at once."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from experiments import screen

TARGETS = {("--help",): 0.5, ("run", "--help"): 0.5, ("list",): 1.5}  # seconds


@dataclass
class Startup:
    """What the benchmark can be told."""

    repeats: int = 5
    """Times that each command is run; the median counts."""


def run(config: Startup) -> int:
    """Print a row for each command; the exit status, 1 where one takes longer than its target.

    Raises:
        ValueError: repeats is not positive.
        CalledProcessError: a command fails.
    """
    if config.repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {config.repeats}.")
    rows = []
    for words, target in TARGETS.items():
        seconds = median(processor_seconds(words) for _ in range(config.repeats))
        rows.append(
            {
                "command": f"prefdro {' '.join(words)}",
                "cpu s": f"{seconds:.2f}",
                "target": f"{target:g}",
                "met": seconds <= target,
            }
        )
    screen.show(rows, f"processor time, user and system, median of {config.repeats}")
    return 0 if all(row["met"] for row in rows) else 1


def processor_seconds(words: Sequence[str]) -> float:
    """User and system time of one run of the command."""
    command = [sys.executable, "-m", "experiments", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_utime + usage.ru_stime
