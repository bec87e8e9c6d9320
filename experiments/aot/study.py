"""How does AOT, the alignment by optimal transport of arXiv:2406.05882, behave with the sample, the
batch, h and the pairing?

Seven parts, each with a table in which a row is one replicate:

* `rate`: objective and violation of dominance against the number of pairs; slopes in `rates.csv`
* `minibatch`: how far the mean over batches is above the population, against the batch size; slopes
  in `rates.csv`
* `softness`: soft sorting against hard sorting
* `surrogate`: the choice of h and of beta
* `pairing`: paired and unpaired AOT and DPO, on pairs and on independent samples of unequal sizes
* `minima`: the local minima that different starts end at
* `methods`: AOT of first and second order against DPO, IPO and KTO, as fitted and at one KL to the
  reference; quantiles of the rewards in `quantiles`

Rewards are linear, U = w.psi of chosen and V = w.psi of rejected responses with w = theta -
theta_ref. In `methods` AOT and KTO see the log-ratios, w.psi(s, a) - log E_ref exp(w.psi(s, .)),
instead; in `aot-linear` AOT does not.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments import screen
from experiments.aot.comparison import MATCHED_KL, methods_rows, pairing_rows
from experiments.aot.estimator import (
    BATCHES,
    minibatch_rows,
    minima_rows,
    rate_rows,
    softness_rows,
    surrogate_rows,
)
from experiments.aot.tables import quantiles_table, rates_table
from experiments.aot.worlds import BETA, BOUND, SIGNAL, Spec
from experiments.engine.provenance import code_fingerprint, configuration, files_of, provenance
from experiments.engine.runner import run_cells
from experiments.engine.store import Cell, open_run, write_json, write_table
from theory.solvers.multistart import TOLERANCE


@dataclass(frozen=True)
class Profile:
    """How large the study is: replicates of each part, and what is varied in it."""

    replicates: dict[str, int]
    rewards: tuple[str, ...]
    rate_sizes: tuple[int, ...]
    batches: tuple[int, ...]
    softness: tuple[float, ...]
    betas: tuple[float, ...]
    pairing_sizes: tuple[int, ...]
    minima_sizes: tuple[int, ...]
    minima_dimensions: tuple[int, ...]
    methods_sizes: tuple[int, ...]


PROFILES: dict[str, Profile] = {
    "smoke": Profile(
        replicates=dict(
            rate=4, minibatch=2, softness=2, surrogate=2, pairing=2, minima=2, methods=2
        ),
        rewards=("curved",),
        rate_sizes=(100, 1000),
        batches=(1, 4, 16),
        softness=(1.0, 100.0),
        betas=(1.0,),
        pairing_sizes=(50,),
        minima_sizes=(10,),
        minima_dimensions=(2,),
        methods_sizes=(100,),
    ),
    "quick": Profile(
        replicates=dict(
            rate=50, minibatch=12, softness=5, surrogate=10, pairing=5, minima=4, methods=5
        ),
        rewards=("linear", "curved"),
        rate_sizes=(100, 1000, 10_000, 100_000, 1_000_000),
        batches=tuple(2**k for k in range(10)),
        softness=(1.0, 3.0, 10.0, 30.0, 100.0),
        betas=(0.1, 0.3, 1.0, 3.0),
        pairing_sizes=(50, 500),
        minima_sizes=(10, 30, 100),
        minima_dimensions=(2, 10),
        methods_sizes=(1000,),
    ),
    "paper": Profile(
        replicates=dict(
            rate=400, minibatch=100, softness=50, surrogate=200, pairing=200, minima=50, methods=200
        ),
        rewards=("linear", "curved"),
        rate_sizes=tuple(round(10 ** (k / 2)) for k in range(4, 15)),
        batches=tuple(2**k for k in range(12)),
        softness=(0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
        betas=(0.03, 0.1, 0.3, 1.0, 3.0),
        pairing_sizes=(50, 500, 5000),
        minima_sizes=(10, 30, 100, 300, 1000),
        minima_dimensions=(2, 3, 5, 10, 20),
        methods_sizes=(100, 1000, 10_000),
    ),
}


@dataclass
class AotStudy:
    """AOT: rates, bias of minibatches, soft sorting, choice of h, pairing, local minima, comparison
    with DPO, IPO and KTO."""

    out: Path = Path("results/aot")
    """Folder of the results; a run that was stopped resumes from what it holds."""
    profile: str = "quick"
    """Size of the study: smoke (seconds), quick (half a minute on two cores) or paper (an hour or
    two)."""
    seed: int = 0
    """Seed of all random numbers; the same seed gives the same rows."""
    replicates: int | None = None
    """Replicates of every part, instead of the profile's numbers."""
    backend: str = "loky"
    """Where cells are computed: sequential, loky (processes), dask or ray."""
    workers: int | None = None
    """Number of processes; the number of cores where not given."""
    address: str | None = None
    """Address of a running dask or ray cluster."""


PARTS: dict[str, Callable[[dict[str, Any], np.random.Generator], pd.DataFrame]] = {
    "rate": rate_rows,
    "minibatch": minibatch_rows,
    "softness": softness_rows,
    "surrogate": surrogate_rows,
    "pairing": pairing_rows,
    "minima": minima_rows,
    "methods": methods_rows,
}
BLOCKS = {
    "softness": 1,
    "pairing": 4,
    "minima": 5,
    "methods": 2,
}  # replicates in a cell, where they are fitted one by one
WORLDS = {  # of the parts
    "rate": Spec(),
    "surrogate": Spec(),
    "pairing": Spec(reference=1.0),
    "methods": Spec(contexts=12, actions=6, dimension=4, reference=1.0),
}


def compute(parameters: dict[str, Any], seed: np.random.SeedSequence) -> pd.DataFrame:
    """The rows of one cell."""
    rows = PARTS[parameters["part"]](parameters, np.random.default_rng(seed))
    return rows.assign(replicate=rows.replicate + parameters["first"])


def plan(config: AotStudy) -> dict[str, list[Cell]]:
    """The cells of each part.

    Raises:
        ValueError: an unknown profile, or fewer than two replicates.
    """
    if config.profile not in PROFILES:
        raise ValueError(
            f"unknown profile {config.profile!r}; choose one of {', '.join(PROFILES)}."
        )
    if config.replicates is not None and config.replicates < 2:
        raise ValueError(
            f"replicates must be at least 2, got {config.replicates}: one sample has no spread."
        )
    profile = PROFILES[config.profile]
    worlds = {
        part: [asdict(replace(spec, rewards=rewards)) for rewards in profile.rewards]
        for part, spec in WORLDS.items()
    }
    grids: dict[str, list[dict[str, Any]]] = {
        "rate": [
            {"world": world, "n": n, "starts": 4}
            for world in worlds["rate"]
            for n in profile.rate_sizes
        ],
        "minibatch": [
            {"actions": count, "batch": b} for count in (8, 1000) for b in profile.batches
        ],
        "softness": [{"n": 100, "dimension": 3, "softness": [*profile.softness]}],
        "surrogate": [
            {"world": world, "n": 1000, "betas": [*profile.betas], "starts": 4}
            for world in worlds["surrogate"]
        ],
        "pairing": [
            {"world": world, "n": n, "starts": 6}
            for world in worlds["pairing"]
            for n in profile.pairing_sizes
        ],
        "minima": [
            {"n": n, "dimension": d, "signal": signal, "starts": 32}
            for signal in (0.0, SIGNAL)
            for d in profile.minima_dimensions
            for n in profile.minima_sizes
        ],
        "methods": [
            {"world": world, "n": n, "starts": 5}
            for world in worlds["methods"]
            for n in profile.methods_sizes
        ],
    }
    return {
        part: [
            cell
            for settings in grid
            for cell in _blocks(part, settings, config.replicates or profile.replicates[part])
        ]
        for part, grid in grids.items()
    }


def _blocks(part: str, settings: dict[str, Any], replicates: int) -> list[Cell]:
    """The cells of one setting: its replicates in blocks, so that the cores share those that are
    fitted one by one."""
    facts = " ".join(
        f"{key}={value['rewards'] if key == 'world' else value}" for key, value in settings.items()
    )
    cells = []
    for first in range(0, replicates, BLOCKS.get(part, replicates)):
        count = min(BLOCKS.get(part, replicates), replicates - first)
        parameters = {"part": part, "first": first, "replicates": count, **settings}
        cells.append(Cell(f"{part} {facts} replicates {first}-{first + count - 1}", parameters))
    return cells


def run(config: AotStudy) -> dict[str, pd.DataFrame]:
    """Run or resume the study and write its tables; returns them by name: those of PARTS, `rates`
    and `quantiles`."""
    cells = plan(config)
    began = time.perf_counter()
    with open_run(config.out) as out:
        tables, seconds, fingerprint = (
            {},
            {},
            code_fingerprint(*files_of("experiments/aot")),
        )
        for part, mine in cells.items():
            start = time.perf_counter()
            tables[part] = run_cells(
                mine,
                compute,
                out,
                seed=config.seed,
                fingerprint=fingerprint,
                backend=config.backend,
                workers=config.workers,
                address=config.address,
            )
            seconds[part] = round(time.perf_counter() - start, 1)
        tables["quantiles"] = quantiles_table(tables["methods"])
        tables["methods"] = tables["methods"].drop(
            columns=[name for name in tables["methods"] if "_0." in name]
        )
        tables["rates"] = rates_table(tables["rate"], tables["minibatch"], config.seed)
        for name, table in tables.items():
            write_table(table, out / (f"{name}.csv" if name == "rates" else f"{name}.parquet"))
        fitted = {name: table for name, table in tables.items() if "converged" in table}
        write_json(
            {
                "experiment": "aot",
                "configuration": configuration(config),
                "profile": asdict(PROFILES[config.profile]),
                "seed": config.seed,
                "constants": {
                    "beta": BETA,
                    "signal": SIGNAL,
                    "bound": BOUND,
                    "batches": BATCHES,
                    "tolerance": TOLERANCE,
                    "matched_kl": MATCHED_KL,
                },
                "worlds": {part: asdict(spec) for part, spec in WORLDS.items()},
                "rows": {name: len(table) for name, table in tables.items()},
                "not_converged": {
                    name: int((~table.converged).sum()) for name, table in fitted.items()
                },
                **provenance(),
                "wall_time_s": round(time.perf_counter() - began, 1),
                "seconds": seconds,
            },
            out / "run.json",
        )
    return tables


def summarise(config: AotStudy, tables: dict[str, pd.DataFrame]) -> None:
    """Print the rates."""
    screen.show(tables["rates"].to_dict("records"))
