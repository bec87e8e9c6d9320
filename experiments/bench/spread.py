"""A sweep of fits by one process, and by two local workers of each backend.

`wall_s` is that of the whole call, in which workers start, import and end; `working_s` from the
start of the first cell to the end of the last. Efficiency is the time of one process over twice
that of two workers. `cpu_s` is what the cells took: where it stays the same while working time does
not halve, workers waited for a core that others used.
"""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.bench.child import Job, draw, fitter
from experiments.engine.runner import run_cells
from experiments.engine.store import Cell

WORKERS = 2


@dataclass(frozen=True)
class Sweep:
    """`cells` of so many replicates each, fitted by these backends; the first one is sequential."""

    kind: str
    n: int
    d: int
    replicates: int
    cells: int
    backends: tuple[str, ...]

    @property
    def fits(self) -> int:
        return self.cells * self.replicates


def cell(parameters: dict[str, Any], source: np.random.SeedSequence) -> pd.DataFrame:
    """Draw one block of samples and fit them, in a worker."""
    start, cpu = time.time(), time.process_time()
    job = Job(**parameters)
    found = fitter(job)(draw(job, seed=int(source.generate_state(1)[0])))
    row = {"start": start, "end": time.time(), "cpu_s": time.process_time() - cpu}
    row["value"], row["converged"] = (
        found.value.mean().item(),
        found.converged.double().mean().item(),
    )
    return pd.DataFrame([row])


def rows(sweep: Sweep, out: Path) -> list[dict[str, Any]]:
    """A row for each backend."""
    job = {"kind": sweep.kind, "n": sweep.n, "d": sweep.d, "replicates": sweep.replicates}
    cells = [Cell(f"block={k}", job | {"calls": 1, "threads": 1}) for k in range(sweep.cells)]
    found: list[dict[str, Any]] = []
    for backend in sweep.backends:
        workers = 1 if backend == "sequential" else WORKERS
        row: dict[str, Any] = {"backend": backend, "workers": workers}
        with tempfile.TemporaryDirectory(dir=out) as folder:
            start = time.perf_counter()
            options: dict[str, Any] = {"backend": backend, "workers": workers, "progress": False}
            try:
                done = run_cells(cells, cell, folder, seed=0, fingerprint="1", **options)
            except ImportError as error:
                found.append(row | {"note": str(error)})
                continue
            row["wall_s"] = time.perf_counter() - start
        row["working_s"] = done.end.max() - done.start.min()
        row |= {
            "cpu_s": done.cpu_s.sum(),
            "value": done.value.mean(),
            "converged": done.converged.mean(),
        }
        one = found[0] if found else row
        for name in ("wall", "working"):
            row[f"{name}_efficiency"] = one[f"{name}_s"] / (workers * row[f"{name}_s"])
        found.append(row | {"load": os.getloadavg()[0]})
    return found
