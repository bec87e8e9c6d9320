"""`prefdro list`: what there is to draw, to run and to time. Nothing here imports torch."""

from pathlib import Path

from experiments import BENCHMARKS, EXPERIMENTS, screen
from paper_figures import catalogue

# What experiments.methods.METHODS says, which needs torch and takes seconds to import; a test
# compares the two.
_METHODS = (
    ("dpo", "DPO, the mean loss", "nothing"),
    ("kldpo", "KLDPO, exact, KL ball", "radius"),
    ("kldpo-tilt", "KLDPO, practical, temperature tau (Algorithm 2)", "temperature"),
    ("wdpo-w1", "WDPO, exact, W1 ball on the atoms", "radius"),
    ("wdpo-w2", "WDPO, exact, W2 ball on the atoms", "radius"),
    ("wdpo-w1-free", "WDPO, exact, W1 ball, free features, fixed labels", "radius"),
    ("wdpo-w1-label", "WDPO, exact, W1 ball, free features and labels", "radius"),
    ("wdpo-w2-free", "WDPO, exact, W2 ball, free features, fixed labels", "radius"),
    ("wdpo-norm", "WDPO, practical, gradient norm (Algorithm 1)", "strength"),
    ("wdpo-squared", "WDPO, practical, squared gradient norm (released code)", "strength"),
)


def list_all(results: Path = Path("results")) -> None:
    """Say what there is: figures and their state, experiments, profiles, methods and benchmarks.

    Args:
        results: Folder of all results; the figures are in its folder figures.
    """
    screen.show(_figures(results), "prefdro figures --all: figures and tables")
    screen.show(
        [{"experiment": name, "what it does": about} for name, (_, about) in EXPERIMENTS.items()],
        "prefdro run EXPERIMENT --profile smoke, quick or paper",
    )
    screen.show(
        [dict(zip(("method", "what it is", "size"), row, strict=True)) for row in methods()],
        "methods (--methods), whose sizes are given as fractions of that of collapse",
    )
    screen.show(
        [{"benchmark": name, "what it does": about} for name, (_, about) in BENCHMARKS.items()],
        "prefdro bench BENCHMARK",
    )
    print("claims of the theory: prefdro verify")
    print("training of language models: prefdro train")


def methods() -> tuple[tuple[str, str, str], ...]:
    """Name, what it is and the number that sizes its set, of every method of the studies."""
    return _METHODS


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
