"""Tables of the AOT study: rows from arrays over replicates, slopes from rows, one row for each
level of a quantile."""

from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from theory.rates import rate

LEVELS = np.round(np.arange(0.025, 1, 0.025), 3)  # of the quantiles in the tables


def replicate_rows(**columns: Any) -> pd.DataFrame:
    """A table with a row for each replicate; numbers stand in every row."""
    arrays = {
        name: value.numpy() if isinstance(value, Tensor) else value
        for name, value in columns.items()
    }
    count = max(
        len(value) for value in arrays.values() if isinstance(value, np.ndarray) and value.ndim
    )
    return pd.DataFrame(
        {
            name: np.broadcast_to(value, count)
            for name, value in (arrays | {"replicate": np.arange(count)}).items()
        }
    )


def rates_table(rate_table: pd.DataFrame, minibatch: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Slopes of log error on log n, and of log bias on log b from b = 1 and over the upper half,
    with bootstrap intervals."""
    rows = []

    def add(part: str, what: str, quantity: str, table: pd.DataFrame) -> None:
        """table: one row for each size, one column for each replicate."""
        found = rate(table.index.to_numpy(float), table.to_numpy(), seed=seed)
        sizes = {"from": int(table.index.min()), "to": int(table.index.max())}
        slope = {"slope": found.slope, "ci_low": found.low, "ci_high": found.high}
        rows.append({"part": part, "setting": what, "quantity": quantity, **sizes, **slope})

    for world, group in rate_table.groupby("world", sort=False):
        for quantity in ("fixed", "minimiser", "value", "excess", "violation"):
            add(
                "rate",
                str(world),
                quantity,
                group.pivot(index="n", columns="replicate", values=quantity),
            )
    bias = minibatch.assign(bias=minibatch.controlled - minibatch.population)
    for (count, h), group in bias.groupby(["actions", "h"], sort=False):
        table = group.pivot(index="batch", columns="replicate", values="bias").sort_index()
        add("minibatch", f"{count} rewards", f"{h}, all", table)
        add("minibatch", f"{count} rewards", f"{h}, tail", table.iloc[len(table) // 2 :])
    return pd.DataFrame(rows)


def quantiles_table(methods: pd.DataFrame) -> pd.DataFrame:
    """One row for each fit and level, instead of a column for each level."""
    keys = ["world", "n", "method", "matched", "replicate"]
    sides = [
        methods.melt(keys, [f"{side}_{level:g}" for level in LEVELS], "level", side).assign(
            level=lambda table: table.level.str.split("_").str[1].astype(float)
        )
        for side in ("chosen", "rejected")
    ]
    return sides[0].merge(sides[1], on=[*keys, "level"])
