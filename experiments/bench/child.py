"""Fits in a process of their own: what they take in time and memory.

    python -m experiments.bench.child '{"kind": "kl", "n": 1000, "d": 5, "replicates": 100, ...}'

prints one line of JSON. Samples are drawn in pieces, so that the peak is that of the fit.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.bench.ours import SMOOTH, ours
from experiments.bench.samples import Samples, draw_pairs
from theory import SETS

ROOT = Path(__file__).resolve().parents[2]
_PIECE = 100_000  # rows that are drawn at a time


@dataclass(frozen=True)
class Job:
    """`calls` times `replicates` fits: of "mean" (DPO), a set of `ours.SMOOTH`, or one on atoms."""

    kind: str
    n: int
    d: int
    replicates: int
    calls: int = 1
    threads: int = 1

    @property
    def fits(self) -> int:
        return self.calls * self.replicates


def measure(job: Job) -> dict[str, float]:
    """Seconds of CPU and wall time of all fits, drawing left out, the largest resident memory of
    the process in GiB and the part of it that was there before, and the largest certified gap.

    Raises:
        RuntimeError: the process has failed, as where memory does not suffice.
    """
    command = [sys.executable, "-m", "experiments.bench.child", json.dumps(asdict(job))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(
            f"the process for {job} ended with {done.returncode}; a negative number is a signal,"
            f" and -9 mostly memory that ran out. It said last:\n{done.stderr[-1000:]}"
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def draw(job: Job, seed: int) -> Samples:
    """The samples of one call; for a set on atoms one sample, uniform on all of them."""
    rows = job.replicates * job.n
    piece = _PIECE if rows % _PIECE == 0 else job.n
    u = draw_pairs(rows // piece, piece, job.d, seed).reshape(job.replicates, job.n, job.d)
    return Samples(u[0] if job.kind not in SMOOTH else u, None)


def fitter(job: Job) -> Callable[[Samples], Any]:
    """Our fit of this kind; W1 and W2 on atoms with the radius 0.1."""
    if job.kind in SMOOTH:
        return lambda samples: ours(SMOOTH[job.kind], samples)

    def on_atoms(samples: Samples) -> Any:
        distance = torch.cdist(samples.u, samples.u, compute_mode="donot_use_mm_for_euclid_dist")
        kind = SETS[job.kind].in_metric(distance.fill_diagonal_(0.0))
        return ours(kind.sized(0.1), samples)

    return on_atoms


def main(job: Job) -> dict[str, float]:
    """`measure`, in this process."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    fit = fitter(job)
    small = Job(job.kind, 40, min(job.d, 5), 1)
    fit(draw(small, seed=1))  # loads the kernel
    before, cpu, wall, gap, left = peak_gib(), 0.0, 0.0, 0.0, 0
    for call in range(job.calls):
        samples = draw(job, seed=call)
        times = time.process_time(), time.perf_counter()
        found = fit(samples)
        cpu += time.process_time() - times[0]
        wall += time.perf_counter() - times[1]
        gap = max(gap, float(found.gap.max()))
        left += int(np.sum(~np.atleast_1d(found.converged.numpy())))
        del samples, found
    torch.set_num_threads(threads_before)
    return {
        "cpu_s": cpu,
        "wall_s": wall,
        "peak_gib": peak_gib(),
        "before_gib": before,
        "certified_gap": gap,
        "not_converged": left,
    }


def peak_gib() -> float:
    """The largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the process was forked from
        (line,) = [
            x for x in status.read_text(encoding="utf-8").splitlines() if x.startswith("VmHWM")
        ]
        return int(line.split()[1]) / 2**20
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


if __name__ == "__main__":
    print(json.dumps(main(Job(**json.loads(sys.argv[1])))))
