"""How the time of compiled fits grows with pairs and with replicates, and what memory they take.

Against n the work stays the same, n x R pairs in each call, so that what is fixed in a call weighs
the same; against replicates n stays. CPU time on one thread, medians of alternate rounds; the slope
is that of ordinary least squares on logarithms, 1 where cost is linear, with its 95 % interval from
Student's t: what it holds beyond noise is curvature, as where samples leave the cache.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from experiments import screen
from experiments.bench.alternate import alternate
from experiments.bench.child import Job, draw, measure
from experiments.bench.ours import SMOOTH, ours, switch_restored

KINDS = ("mean", "kl", "tilt", "w1-free", "w2-free")
MEMORY_LIMIT_GIB = 2.6


@dataclass(frozen=True)
class Profile:
    """Pairs n at n x R = work; replicates R at n = few; rounds; n and R of the peak memory."""

    pairs: tuple[int, ...]
    work: int
    replicates: tuple[int, ...]
    few: int
    rounds: int
    memory: tuple[int, int]


QUICK = Profile(
    pairs=(100, 1_000, 10_000, 100_000, 1_000_000),
    work=1_000_000,
    replicates=(100, 1_000, 10_000, 100_000),
    few=100,
    rounds=5,
    memory=(100_000, 256),
)
PROFILES = {
    "smoke": Profile((50, 100, 200), 400, (2, 4, 8), 50, 2, (1_000, 2)),
    "quick": QUICK,
    "paper": Profile(**(vars(QUICK) | {"rounds": 15})),
}


def slopes(size: Profile) -> Iterator[dict[str, Any]]:
    """A row for each size, with the slope of its group."""
    by_pairs = [(n, size.work // n) for n in size.pairs]
    by_replicates = [(size.few, replicates) for replicates in size.replicates]
    for against, shapes in (("n", by_pairs), ("replicates", by_replicates)):
        samples = {shape: draw(Job("mean", shape[0], 5, shape[1]), seed=5) for shape in shapes}
        for name in KINDS:
            calls = {str(s): partial(ours, SMOOTH[name], u) for s, u in samples.items()}
            times = alternate(calls, size.rounds)
            seconds = [median(times[str(s)].cpu) for s in shapes]
            x = [n if against == "n" else replicates for n, replicates in shapes]
            y = [
                t / (r if against == "n" else 1) for t, (_, r) in zip(seconds, shapes, strict=True)
            ]
            found = {"problem": name, "against": against, **slope(x, y)}
            for (n, replicates), t in zip(shapes, seconds, strict=True):
                row = found | {"n": n, "replicates": replicates, "load": os.getloadavg()[0]}
                yield row | {"fit_us": 1e6 * t / replicates, "pair_ns": 1e9 * t / (n * replicates)}


def slope(x: list[int], y: list[float]) -> dict[str, float]:
    """Of log y on log x, with its 95 % interval."""
    line = stats.linregress(np.log(x), np.log(y))
    half = stats.t.ppf(0.975, len(x) - 2) * line.stderr
    return {"slope": line.slope, "low": line.slope - half, "high": line.slope + half}


def memory(size: Profile) -> Iterator[dict[str, Any]]:
    """The largest resident memory of a process that draws samples and fits them, samples
    included."""
    n, replicates = size.memory
    for name in ("mean", "kl"):
        found = measure(Job(name, n, 5, replicates))
        row = {"problem": name, "n": n, "replicates": replicates, "peak_gib": found["peak_gib"]}
        row |= {"samples_gib": 8 * 5 * n * replicates / 2**30, "limit_gib": MEMORY_LIMIT_GIB}
        yield row | {"met": found["peak_gib"] <= MEMORY_LIMIT_GIB}


def bench(out: Path, profile: str) -> None:
    """Measure both, print tables and write them to `out`/scaling.csv and `out`/memory.csv."""
    out.mkdir(parents=True, exist_ok=True)
    size = PROFILES[profile]
    kept = list(memory(size))
    pd.DataFrame(kept).to_csv(out / "memory.csv", index=False)
    screen.show(kept, "peak memory, n x R pairs of 5 features")
    with switch_restored():
        table = pd.DataFrame(slopes(size))
    table.to_csv(out / "scaling.csv", index=False)
    groups = table.groupby(["problem", "against"], sort=False)
    ends = groups.agg(
        slope=("slope", "first"),
        low=("low", "first"),
        high=("high", "first"),
        first_ns=("pair_ns", "first"),
        last_ns=("pair_ns", "last"),
        load=("load", "last"),
    )
    shown = [{str(k): v for k, v in row.items()} for row in ends.reset_index().to_dict("records")]
    screen.show(shown, "slope of log CPU time, 95 % interval; ns a pair at the smallest, largest")
    print(f"written to {out / 'scaling.csv'} and {out / 'memory.csv'}")
