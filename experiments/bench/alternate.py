"""Sides of a comparison, timed alternately in one process.

After one untimed run of each side, every round runs all of them, so that a busy minute of the
machine slows all alike. On one thread CPU time of the process counts, which others change least; on
all cores, sides whose name ends in "_all", wall time.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

ALL = "_all"
Sides = Mapping[str, Callable[[], Any]]


@dataclass(frozen=True)
class Times:
    """Seconds of one side, in each round: CPU time of the process, and wall time."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


def alternate(sides: Sides, rounds: int) -> dict[str, Times]:
    """The times of each side, on as many threads as its name says."""
    cores = torch.get_num_threads()
    found = {name: Times() for name in sides}
    try:
        for number in range(rounds + 1):
            for name, call in sides.items():
                torch.set_num_threads(cores if name.endswith(ALL) else 1)
                cpu, wall = time.process_time(), time.perf_counter()
                call()
                if number > 0:
                    found[name].cpu.append(time.process_time() - cpu)
                    found[name].wall.append(time.perf_counter() - wall)
    finally:
        torch.set_num_threads(cores)
    return found


def on_all_cores(sides: Sides, *names: str) -> dict[str, Callable[[], Any]]:
    """These sides once more, on all cores; none where there is one core."""
    if torch.get_num_threads() == 1:
        return {}
    return {name + ALL: sides[name] for name in names if name in sides}


def summary(times: Mapping[str, Times], replicates: int) -> dict[str, Any]:
    """Microseconds a fit, and how many times the compiled side's they are.

    `X_us`: the median over the rounds, `X_range` its range, `over_X` the median ratio to the
    compiled side, on all cores for `X_all`. `speedup`: wall time of the compiled side on one thread
    over that on all cores.
    """
    row: dict[str, Any] = {"load": os.getloadavg()[0]}
    clock = {name: t.wall if name.endswith(ALL) else t.cpu for name, t in times.items()}
    for name, seconds in clock.items():
        each = 1e6 * np.array(seconds) / replicates
        row[f"{name}_us"] = float(np.median(each))
        row[f"{name}_range"] = f"{each.min():.3g} to {each.max():.3g}"
        ours = "compiled" + (ALL if name.endswith(ALL) else "")
        if name != ours:
            ratio = np.array(seconds) / np.array(clock[ours])
            row[f"over_{name}"] = float(np.median(ratio))
            row[f"over_{name}_range"] = f"{ratio.min():.3g} to {ratio.max():.3g}"
    if "compiled" + ALL in times:
        one, all_ = (np.array(times[name].wall) for name in ("compiled", "compiled" + ALL))
        row["threads"] = torch.get_num_threads()
        row["speedup"] = float(np.median(one / all_))
    return row
