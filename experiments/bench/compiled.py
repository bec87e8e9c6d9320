"""Our fits compiled, next to those in torch, to a program in JAX, and to the limit of the machine.

All sides are timed alternately in one process, after one untimed run of each: medians over the
rounds, with their range. On one thread it is CPU time of the process, which a busy machine changes
least; on all cores it is wall time. Ours are whole calls of `fit`, checks included; JAX gets its
samples in its own layout and its program compiled. A single fit has scikit-learn's Newton-Cholesky
solver and glum beside it, each run to the accuracy at which its objective is ours to 1e-12.
"""

import importlib
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch

from experiments import screen
from experiments.bench import jax_newton, limits
from experiments.bench.samples import BETA, draw_pairs
from theory import SETS, Fit, dpo, fit
from theory.solvers.compiled.available import SWITCH

BOUND = 50.0  # the bound is out of reach: the peers have none
SIZES = {"kl": 0.02, "tilt": 1.0, "chi2": 0.05, "w1-free": 0.1, "w2-free": 0.1}
SIZES |= {"gradient": 0.1, "gradient-squared": 0.1}
Times = dict[str, list[float]]


@dataclass(frozen=True)
class Shape:
    """R samples of n pairs with d features; JAX takes so many replicates at a time."""

    n: int
    d: int
    replicates: int
    chunk: int


@dataclass(frozen=True)
class Profile:
    """Shapes of the two problems that JAX solves too, of the other sets, and the rounds."""

    peers: tuple[Shape, ...]
    sets: Shape
    rounds: int


QUICK = (
    Shape(1000, 5, 256, 16),
    Shape(100, 5, 4096, 128),
    Shape(100_000, 5, 16, 1),
    Shape(1000, 50, 64, 8),
)
PROFILES = {
    "smoke": Profile((Shape(60, 3, 8, 4),), Shape(60, 3, 4, 4), 2),
    "quick": Profile(QUICK, Shape(1000, 5, 64, 16), 7),
    "paper": Profile(QUICK, Shape(1000, 5, 256, 16), 25),
}


def ours(name: str, u: torch.Tensor, compiled: bool) -> Fit:
    """A whole call, with compiled solvers or without."""
    os.environ[SWITCH] = "1" if compiled else "0"
    if name == "mean":
        return dpo(u, beta=BETA, bound=BOUND)
    return fit(u, SETS[name].sized(SIZES[name]), beta=BETA, bound=BOUND)


def timed(sides: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> Times:
    """Seconds of each side in each round, alternately."""
    for call in sides.values():
        call()
    found: Times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            start = clock()
            call()
            found[name].append(clock() - start)
    return found


def rows(size: Profile) -> Iterator[dict[str, Any]]:
    """All comparisons, on one thread and on all cores."""
    rates = limits.measure()
    cores = torch.get_num_threads()
    for threads in sorted({1, cores}):
        torch.set_num_threads(threads)
        try:
            for shape in size.peers:
                for name in ("mean", "kl"):
                    yield _row(name, shape, size.rounds, threads, rates)
            for name in SIZES:
                if name != "kl":
                    yield _row(name, size.sets, size.rounds, threads, None)
        finally:
            torch.set_num_threads(cores)
    yield from single(size.peers[0], size.rounds)


def _row(
    name: str, shape: Shape, rounds: int, threads: int, rates: limits.Rates | None
) -> dict[str, Any]:
    u = draw_pairs(shape.replicates, shape.n, shape.d, seed=1)
    sides: dict[str, Callable[[], Any]] = {
        "compiled": partial(ours, name, u, True),
        "torch": partial(ours, name, u, False),
    }
    note = ""
    if rates is not None:
        try:
            program = jax_newton.make(name, SIZES["kl"], BOUND, shape.chunk)
            ut = importlib.import_module("jax.numpy").asarray(u.mT.contiguous().numpy())
            sides["jax"] = partial(program, ut)
        except ImportError:
            note = "jax is not installed: make peers"
    found, other = ours(name, u, True), ours(name, u, False)
    clock = time.process_time if threads == 1 else time.perf_counter
    row = _summary(name, shape, threads, timed(sides, rounds, clock)) | {"note": note}
    row["certified_gap"] = float(found.gap.max())
    row["objective_gap"] = float(((found.value - other.value).abs() / other.value).max())
    if "jax" in sides:
        row["jax_theta"] = float(np.abs(np.asarray(sides["jax"]()[0]) - found.theta.numpy()).max())
    if rates is not None and threads == 1:
        steps = float(found.iterations.double().mean())
        limit = rates.limit(name, shape.n, shape.d, steps)
        row |= {"limit_us": 1e6 * limit, "of_limit": row["compiled_us"] / (1e6 * limit)}
    return row


def single(shape: Shape, rounds: int) -> Iterator[dict[str, Any]]:
    """One DPO fit alone, next to the solvers for one logistic regression."""
    u = draw_pairs(1, shape.n, shape.d, seed=1)[0]
    y = np.where(np.arange(shape.n) % 2 == 0, 1.0, -1.0)  # classifiers insist on two classes
    X = u.numpy() * y[:, None]
    sides: dict[str, Callable[[], Any]] = {
        "compiled": partial(ours, "mean", u, True),
        "torch": partial(ours, "mean", u, False),
    }
    note = []
    for name, make in (("sklearn", _newton_cholesky), ("glum", _glum)):
        try:
            sides[name] = make(X, y)
        except ImportError:
            note.append(f"{name} is not installed: make peers")
    one = Shape(shape.n, shape.d, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation notices of the peers
        row = _summary("mean", one, 1, timed(sides, 10 * rounds, time.process_time))
    yield row | {"note": "; ".join(note)}


def _newton_cholesky(X: np.ndarray, y: np.ndarray) -> Callable[[], Any]:
    model = importlib.import_module("sklearn.linear_model").LogisticRegression
    options = {"C": np.inf, "fit_intercept": False, "solver": "newton-cholesky", "tol": 1e-10}
    return lambda: model(**options).fit(X, y)


def _glum(X: np.ndarray, y: np.ndarray) -> Callable[[], Any]:
    model = importlib.import_module("glum").GeneralizedLinearRegressor
    options = {"family": "binomial", "alpha": 0.0, "fit_intercept": False, "gradient_tol": 1e-10}
    return lambda: model(**options).fit(X, (y > 0).astype(float))


def _summary(name: str, shape: Shape, threads: int, times: Times) -> dict[str, Any]:
    row: dict[str, Any] = {
        "problem": name,
        "n": shape.n,
        "d": shape.d,
        "replicates": shape.replicates,
        "threads": threads,
        "clock": "cpu" if threads == 1 else "wall",
        "load": os.getloadavg()[0],
    }
    for side, seconds in times.items():
        each = 1e6 * np.array(seconds) / shape.replicates
        row[f"{side}_us"] = float(np.median(each))
        row[f"{side}_range"] = f"{each.min():.3g} to {each.max():.3g}"
        if side != "compiled":
            ratio = np.array(seconds) / np.array(times["compiled"])
            row[f"over_{side}"] = float(np.median(ratio))
    return row


def bench(out: Path, profile: str) -> pd.DataFrame:
    """Run the comparisons, print their table and write it to `out`/compiled.csv, row by row."""
    out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    with mock.patch.dict(os.environ):  # the switch is left as it was
        for row in rows(PROFILES[profile]):
            found.append(row)
            pd.DataFrame(found).to_csv(out / "compiled.csv", index=False)
            print(
                f"[{len(found)}] {row['problem']}, n = {row['n']}, d = {row['d']}, R ="
                f" {row['replicates']}, {row['threads']} threads, load {row['load']:.1f}"
            )
    table = pd.DataFrame(found)
    shown = ["problem", "n", "d", "replicates", "threads", "compiled_us", "torch_us", "over_torch"]
    shown += ["jax_us", "over_jax", "sklearn_us", "over_sklearn", "glum_us", "of_limit"]
    screen.show(
        [{key: row.get(key) for key in shown} for row in found],
        "microseconds a fit, compiled and otherwise, and ratios to compiled",
    )
    print(f"written to {out / 'compiled.csv'}")
    return table
