"""What large problems cost, measured, next to what formulae for planning say.

Each case runs in a process of its own, on one core, and on all where it has several replicates.
The formulae's constants come from the first cases, which are small and on one core:

    seconds = R (e + n (b + c d (d + 7)/2)),     GiB = before + 16 n d R / 2^30

with R replicates in a call; d (d + 7)/2 counts a pair's multiply-adds (`experiments.bench.limits`),
16 bytes a feature are the sample and its copy with features first. On K atoms, seconds = s K^2.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import pandas as pd

from experiments import screen
from experiments.bench import child, spread
from experiments.bench.child import Job
from experiments.bench.limits import products
from experiments.bench.ours import switch_restored

SMOOTH_KINDS, ATOM_KINDS = ("mean", "kl"), ("w1-finite", "w2-finite")


@dataclass(frozen=True)
class Profile:
    """Cases to measure, those only to compute, and a sweep over workers: cells of so many fits."""

    small: tuple[tuple[int, int, int], ...]  # n, d, R: two n at one d, then another d
    atoms: int
    large: tuple[tuple[int, int, int, int], ...]  # n, d, R, calls
    many_atoms: int
    computed: tuple[tuple[int, int, int, int], ...]
    sweep: spread.Sweep
    measure: Callable[[Job], dict[str, float]] = child.measure  # in a process of its own


PROFILES = {
    "smoke": Profile(
        ((20, 3, 50), (200, 3, 5), (200, 6, 5)),
        12,
        ((400, 3, 2, 2),),
        16,
        ((10**9, 3, 1, 1),),
        spread.Sweep("kl", 40, 3, 4, 4, ("sequential", "loky")),
        child.main,  # here
    ),
    "quick": Profile(
        ((100, 5, 4096), (1000, 5, 1024), (1000, 50, 64)),
        160,
        ((10_000_000, 5, 1, 1), (10_000, 200, 16, 1), (100, 5, 100_000, 10)),
        2000,
        ((1000, 5, 100_000, 10), (1_000_000, 200, 1, 1)),
        spread.Sweep("kl", 100, 5, 25_000, 40, ("sequential", "loky", "dask", "ray")),
    ),
}
PROFILES["paper"] = PROFILES["quick"]


@dataclass(frozen=True)
class Constants:
    """Seconds: a fit, a pair, a multiply-add; on atoms those of a pair of atoms."""

    fit: float
    pair: float
    product: float
    atoms: float

    def seconds(self, job: Job) -> float:
        """CPU time by the formula."""
        if job.kind in ATOM_KINDS:
            return self.atoms * job.n**2
        return job.fits * (self.fit + job.n * (self.pair + self.product * products(job.d)))


def gib(job: Job, before: float) -> float:
    """Peak memory by the formula; on atoms that of some ten matrices."""
    if job.kind in ATOM_KINDS:
        return before + 100 * job.n**2 / 2**30
    return before + 16 * job.n * job.d * job.replicates / 2**30


def constants(first: float, second: float, third: float, small: Any) -> tuple[float, float, float]:
    """e, b and c from seconds a fit of the three small cases.

    >>> small = ((100, 5, 1), (1000, 5, 1), (1000, 50, 1))
    >>> times = [1 + n * (2 + 3 * products(d)) for n, d, _ in small]
    >>> constants(*times, small)
    (1.0, 2.0, 3.0)
    """
    (n, d, _), (more, _, _), (_, wide, _) = small
    each = (second - first) / (more - n)
    fit = first - n * each
    product = ((third - fit) / more - each) / (products(wide) - products(d))
    return fit, each - product * products(d), product


def rows(size: Profile) -> Iterator[dict[str, Any]]:
    """Small cases, large ones, and those that are computed only."""
    cores = joblib.cpu_count()
    for kind in SMOOTH_KINDS:
        jobs = [Job(kind, n, d, R) for n, d, R in size.small]
        found = [size.measure(job) for job in jobs]
        each = [row["cpu_s"] / job.fits for row, job in zip(found, jobs, strict=True)]
        first, second, third = each
        known = Constants(*constants(first, second, third, size.small), atoms=0.0)
        before = found[0]["before_gib"]
        for job, row in zip(jobs, found, strict=True):
            yield _row("small", job, known, before, row)
        for n, d, R, calls in size.large:
            job = Job(kind, n, d, R, calls)
            for threads in sorted({1, cores if R > 1 else 1}):
                job = replace(job, threads=threads)
                yield _row("measured", job, known, before, size.measure(job))
        for n, d, R, calls in size.computed:
            yield _row("computed", Job(kind, n, d, R, calls), known, before, {})
    for kind in ATOM_KINDS:
        job = Job(kind, size.atoms, 5, 1)
        found = [size.measure(job)]
        known = Constants(0.0, 0.0, 0.0, found[0]["cpu_s"] / size.atoms**2)
        before = found[0]["before_gib"]
        yield _row("small", job, known, before, found[0])
        job = replace(job, n=size.many_atoms)
        yield _row("measured", job, known, before, size.measure(job))


def _row(
    what: str, job: Job, known: Constants, before: float, found: dict[str, float]
) -> dict[str, Any]:
    formula = {"formula_s": known.seconds(job), "formula_gib": gib(job, before)}
    load = {"load": os.getloadavg()[0]} if found else {}
    row = {"what": what, **asdict(job), **formula, **found, **load}
    return row | {"constants": f"e {known.fit:.2g}, b {known.pair:.2g}, c {known.product:.2g} s"}


def bench(out: Path, profile: str) -> None:
    """Measure, print tables and write them, row by row, to `out`/large.csv and `out`/spread.csv."""
    out.mkdir(parents=True, exist_ok=True)
    size = PROFILES[profile]
    found: list[dict[str, Any]] = []
    with switch_restored():
        for row in rows(size):
            found.append(row)
            pd.DataFrame(found).to_csv(out / "large.csv", index=False)
            print(f"[{len(found)}] {row['what']}: {row['kind']}, n = {row['n']}, d = {row['d']}")
        swept = spread.rows(size.sweep, out)
    columns = ["what", "kind", "n", "d", "replicates", "calls", "threads", "cpu_s", "wall_s"]
    columns += ["formula_s", "peak_gib", "formula_gib", "not_converged", "load"]
    screen.show([{k: row.get(k) for k in columns} for row in found], "large problems")
    pd.DataFrame(swept).to_csv(out / "spread.csv", index=False)
    screen.show(swept, f"{size.sweep.fits} fits over workers, samples drawn in them")
    print(f"written to {out / 'large.csv'} and {out / 'spread.csv'}")
