"""`prefdro list`: what there is to draw, to run and to time. Nothing here imports torch."""

from pathlib import Path
from typing import Annotated

import tyro

from experiments import BENCHMARKS, EXPERIMENTS, screen
from paper_figures import catalogue


def list_all(
    results: Path = Path("results"),
    methods: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Say what there is: figures and their state, experiments, profiles, methods and benchmarks.

    Args:
        results: Folder of all results; the figures are in its folder figures.
        methods: Only the methods of the studies, which needs seconds of imports.
    """
    if methods:
        return _list_methods()
    screen.show(_figures(results), "prefdro figures --all: figures and tables")
    screen.show(
        [{"experiment": name, "what it does": about} for name, (_, about) in EXPERIMENTS.items()],
        "prefdro run EXPERIMENT --profile smoke, quick or paper (some: small, a real model)",
    )
    screen.show(
        [{"benchmark": name, "what it does": about} for name, (_, about) in BENCHMARKS.items()],
        "prefdro bench BENCHMARK",
    )
    print("methods of the studies: prefdro list --methods")
    print("claims of the theory: prefdro verify")
    print("training of language models: prefdro train")


def _list_methods() -> None:
    from experiments.methods import METHODS  # torch is slow to import

    rows = [
        {
            "method": name,
            "what it is": method.about,
            "size": "nothing" if method.set is None else method.set.facts.size,
        }
        for name, method in METHODS.items()
    ]
    screen.show(rows, "methods (--methods), whose sizes are given as fractions of that of collapse")


def _figures(results: Path) -> list[dict[str, str]]:
    drawn = catalogue.record(results / "figures")
    rows = []
    for entry in catalogue.ENTRIES:
        state, _, _ = catalogue.state(entry, results, results / "figures", drawn).partition(":")
        rows.append(
            {
                "figure or table": entry.key,
                "state": state,
                "rows from": entry.command(results) if entry.experiment else "needs no rows",
            }
        )
    return rows
