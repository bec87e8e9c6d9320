"""Our fits compiled, next to those in torch, to a program in JAX, and to the limit of the machine.

All sides are timed alternately in one process (`experiments.bench.alternate`): medians over the
rounds, with their range, on one thread and on all cores. Ours are whole calls of `fit`, checks
included; JAX gets its samples in its own layout and its program compiled, and chooses its threads
itself. A single fit has scikit-learn's Newton-Cholesky solver and glum beside it, each run to the
accuracy at which its objective is ours to 1e-12. Fits with kinks, and a solver of cone programs,
are in `kinked` and `cones`.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from experiments import screen
from experiments.bench import cones, jax_newton, kinked, limits
from experiments.bench.alternate import alternate, on_all_cores, summary
from experiments.bench.ours import BOUND, RADIUS, SMOOTH, agreement, ours, switch_restored
from experiments.bench.samples import Samples, draw_pairs

CONE_ROUNDS = 5  # a fit takes moreau tenths of a second
TABLES = {
    "microseconds of CPU time a fit on one thread, and ratios to compiled": (
        *("compiled_us", "torch_us", "over_torch", "jax_us", "over_jax", "sklearn_us"),
        *("over_sklearn", "glum_us", "moreau_us", "over_moreau", "of_limit"),
    ),
    "microseconds of wall time a fit on all cores, ratios to compiled, speedup by the threads": (
        *("threads", "compiled_all_us", "torch_all_us", "over_torch_all", "jax_all_us"),
        *("over_jax_all", "over_moreau_all", "speedup"),
    ),
}


@dataclass(frozen=True)
class Shape:
    """R samples of n pairs with d features; JAX takes so many replicates at a time."""

    n: int
    d: int
    replicates: int
    chunk: int


@dataclass(frozen=True)
class Profile:
    """Shapes of the two problems that JAX solves too, of the other sets, of the problems for a
    solver of cone programs, and the rounds."""

    peers: tuple[Shape, ...]
    sets: Shape
    cones: Shape
    rounds: int


QUICK = (
    Shape(1000, 5, 256, 16),
    Shape(100, 5, 4096, 128),
    Shape(100_000, 5, 16, 1),
    Shape(1000, 50, 64, 8),
)
PROFILES = {
    "smoke": Profile((Shape(60, 3, 8, 4),), Shape(60, 3, 4, 4), Shape(20, 2, 2, 2), 2),
    "quick": Profile(QUICK, Shape(1000, 5, 64, 16), Shape(1000, 5, 8, 8), 7),
    "paper": Profile(QUICK, Shape(1000, 5, 256, 16), Shape(1000, 5, 32, 8), 25),
}


def rows(size: Profile) -> Iterator[dict[str, Any]]:
    """All comparisons of fits without kinks, and those of one fit."""
    rates = limits.measure()
    for shape in size.peers:
        for name in ("mean", "kl"):
            yield _row(name, shape, size.rounds, rates)
    for name in SMOOTH:
        if name not in ("mean", "kl"):
            yield _row(name, size.sets, size.rounds, None)
    for name in ("mean", "kl"):
        yield against_cones(name, size.cones, min(size.rounds, CONE_ROUNDS))
    yield from single(size.peers[0], 10 * size.rounds)


def _row(name: str, shape: Shape, rounds: int, rates: limits.Rates | None) -> dict[str, Any]:
    u = draw_pairs(shape.replicates, shape.n, shape.d, seed=1)
    sides = _sides(name, u)
    row: dict[str, Any] = {"problem": name, "n": shape.n, "d": shape.d, "note": ""}
    row["replicates"] = shape.replicates
    if rates is not None:
        try:
            program = jax_newton.make(name, RADIUS, BOUND, shape.chunk)
            ut = importlib.import_module("jax.numpy").asarray(u.mT.contiguous().numpy())
            sides["jax"] = partial(program, ut)
        except ImportError:
            row["note"] = "jax is not installed: make peers"
    found = sides["compiled"]()
    row |= agreement(found, sides["torch"]())
    if "jax" in sides:
        row["jax_theta"] = float(np.abs(np.asarray(sides["jax"]()[0]) - found.theta.numpy()).max())
    sides |= on_all_cores(sides, "compiled", "torch", "jax")
    row |= summary(alternate(sides, rounds), shape.replicates)
    if rates is not None:
        steps = float(found.iterations.double().mean())
        limit = rates.limit(name, shape.n, shape.d, steps)
        row |= {"limit_us": 1e6 * limit, "of_limit": row["compiled_us"] / (1e6 * limit)}
    return row


def _sides(name: str, u: torch.Tensor) -> dict[str, Callable[[], Any]]:
    kind, samples = SMOOTH[name], Samples(u, None)
    return {
        "compiled": partial(ours, kind, samples, True),
        "torch": partial(ours, kind, samples, False),
    }


def against_cones(name: str, shape: Shape, rounds: int) -> dict[str, Any]:
    """A few fits next to moreau's."""
    u = draw_pairs(shape.replicates, shape.n, shape.d, seed=1)
    sides = _sides(name, u)
    try:
        sides["moreau"] = cones.make(name, RADIUS, u.numpy())
        apart = np.abs(sides["moreau"]() - sides["compiled"]().theta.numpy()).max()
        note = f"theta of moreau within {apart:.0e} of ours"
    except ImportError:
        note = "moreau is not installed: make peers"
    sides |= on_all_cores(sides, "compiled", "torch", "moreau")
    row = {"problem": name, "n": shape.n, "d": shape.d, "replicates": shape.replicates}
    return row | summary(alternate(sides, rounds), shape.replicates) | {"note": note}


def single(shape: Shape, rounds: int) -> Iterator[dict[str, Any]]:
    """One DPO fit alone, next to the solvers for one logistic regression."""
    u = draw_pairs(1, shape.n, shape.d, seed=1)[0]
    y = np.where(np.arange(shape.n) % 2 == 0, 1.0, -1.0)  # classifiers insist on two classes
    X = u.numpy() * y[:, None]
    sides = _sides("mean", u)
    note = []
    for name, make in (("sklearn", _newton_cholesky), ("glum", _glum)):
        try:
            sides[name] = make(X, y)
        except ImportError:
            note.append(f"{name} is not installed: make peers")
    row = {"problem": "mean", "n": shape.n, "d": shape.d, "replicates": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation notices of the peers
        row |= summary(alternate(sides, rounds), 1)
    yield row | {"note": "; ".join(note)}


def _newton_cholesky(X: np.ndarray, y: np.ndarray) -> Callable[[], Any]:
    model = importlib.import_module("sklearn.linear_model").LogisticRegression
    options = {"C": np.inf, "fit_intercept": False, "solver": "newton-cholesky", "tol": 1e-10}
    return lambda: model(**options).fit(X, y)


def _glum(X: np.ndarray, y: np.ndarray) -> Callable[[], Any]:
    model = importlib.import_module("glum").GeneralizedLinearRegressor
    options = {"family": "binomial", "alpha": 0.0, "fit_intercept": False, "gradient_tol": 1e-10}
    return lambda: model(**options).fit(X, (y > 0).astype(float))


def bench(out: Path, profile: str) -> pd.DataFrame:
    """Run the comparisons, print their table and write it to `out`/compiled.csv, row by row."""
    out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    with switch_restored():
        for row in chain(rows(PROFILES[profile]), kinked.rows(kinked.PROFILES[profile])):
            found.append(row)
            pd.DataFrame(found).to_csv(out / "compiled.csv", index=False)
            print(
                f"[{len(found)}] {row['problem']}, n = {row['n']}, d = {row['d']}, R ="
                f" {row['replicates']}, load {row['load']:.1f}"
            )
    for title, columns in TABLES.items():
        shown = ["problem", "n", "d", "replicates", *columns]
        timed = [row for row in found if any(name in row for name in columns)]
        screen.show([{key: row.get(key) for key in shown} for row in timed], title)
    print(f"written to {out / 'compiled.csv'}")
    return pd.DataFrame(found)
