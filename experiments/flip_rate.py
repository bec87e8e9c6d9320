"""`prefdro flip-rate`: the value of `--flip` for cdpo, rdpo and exo, estimated from a table of
comparisons with features.

    prefdro features --data pairs.jsonl --model MODEL --out features.parquet
    prefdro flip-rate --data features.parquet
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from experiments import screen
from theory.comparisons.table import as_table, read_design, signed_pairs
from theory.flip_rate import disagreement, estimate_flip_rate, flip_rates_by_group

READERS = {".parquet": pd.read_parquet, ".csv": pd.read_csv}


@dataclass
class FlipRateOptions:
    """The rate of flipped labels in a table of comparisons, with its interval, or why the table
    does not tell it."""

    data: Path
    """A .parquet or .csv table, a row for each comparison, as `prefdro features` writes it."""
    sides: tuple[str, str] = ("first_", "second_")
    """What tells the columns of the two alternatives apart, at the beginning or end of a name."""
    choice: str = "label"
    """Column of the answers: 1 where the first is preferred, 0 where the second, 0.5 for a tie,
    which is left out."""
    formula: str | None = None
    """Features, as price + time + C(comfort), without their side; all columns where not given."""
    groups: str | None = None
    """Column of who answered, for a rate each."""
    pair: str | None = None
    """Column with the name of the pair, where pairs have several answers."""
    level: float = 0.95
    """Of the intervals."""


def run(config: FlipRateOptions) -> None:
    """Estimate and print."""
    if config.data.suffix not in READERS:
        raise ValueError(f"--data {config.data} must end with .parquet or .csv.")
    table = READERS[config.data.suffix](config.data)
    others = [name for name in (config.choice, config.groups, config.pair) if name is not None]
    answers = as_table(table, others)
    _, x = read_design(table, config.formula, config.sides, False, others)
    pairs = signed_pairs(x, answers[config.choice], ties="drop")
    if pairs.ties:
        print(f"{pairs.ties} ties are left out")
    found = estimate_flip_rate(pairs.u, level=config.level)
    print(str(found))
    if found.identified:
        print(f"for cdpo and rdpo: --flip {found.estimate:.3g}")
    else:
        print("no value of --flip follows from these data")
    if config.groups is not None:
        who = answers[config.groups].to_numpy()[pairs.row]
        rates = flip_rates_by_group(pairs.u, who, level=config.level)
        rows = [
            {
                config.groups: str(name),
                "pairs": rate.pairs,
                "flip rate": rate.estimate if rate.identified else np.nan,
                "low": rate.low,
                "high": rate.high,
                "": "" if rate.identified else f"not identified: {rate.why}",
            }
            for name, rate in rates.items()
        ]
        screen.show(rows)
    if config.pair is not None:
        names, label = answers[config.pair].to_numpy(), answers[config.choice].to_numpy()
        again = disagreement(names[pairs.row], label[pairs.row], level=config.level)
        print(
            f"two answers to the same pair differ with the chance {again.rate:.3f}"
            f" ({again.low:.3f} to {again.high:.3f}, {again.pairs} pairs with several): the noise"
            f" of the choice and flips together, so that the flip rate is at most"
            f" {again.flips_at_most:.3f}"
        )
