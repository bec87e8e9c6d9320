"""A table of labelled pairs as a world: which columns are its features, what is done with ties, and
the bound that goes with it.

The columns are first_NAME and second_NAME for every feature, and label: 1 where the first response
won, 0 where the second did, 0.5 for a tie.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from theory.fitting import dpo
from theory.policy import Array
from theory.separable import separation
from theory.worlds import (
    FiniteWorld,
    common_scale,
    common_units,
    feature_columns,
    from_labels,
    read_columns,
)

SIDES = ("first_", "second_")
BOUND_IS = "2 ||theta_DPO||, to two digits"


@dataclass(frozen=True, eq=False)
class Pairs:
    """A table of labelled pairs.

    first, second: (N, d) features as they stand in the table. label: (N,) in {0, 0.5, 1}. names:
    (d,) of the features. unused: the other columns of the table.
    """

    path: Path
    first: Array
    second: Array
    label: Array
    names: tuple[str, ...]
    unused: tuple[str, ...]

    def world(self, *, beta: float, bound: float | None, ties: str = "half") -> FiniteWorld:
        """The distinct pairs with their frequencies, features in common units.

        bound None: twice the norm of the minimiser of the DPO loss over all of R^d, to two digits,
        so that theta* has about the norm B/2, as in the other worlds.

        Raises:
            ValueError: pairs that are separable, for which there is no theta*, or what
                `from_labels` and `common_scale` refuse.
        """
        try:
            psi = common_scale(self.first, self.second, names=self.names)
            made = from_labels(*psi, self.label, beta=beta, bound=bound or 1.0, ties=ties).merged()
        except ValueError as error:
            raise ValueError(f"{self.path.name}: {error}") from error
        found = separation(made.u, made.probability)
        if found is not None:
            raise ValueError(
                f"{self.path.name}: {found.describe(self.names)}. Columns are left out by --exclude"
                " NAME."
            )
        if bound is not None:
            return made
        norm = float(dpo(made.u, made.probability, beta=beta).theta.norm())
        whole = float(f"{2 * norm:.1e}") if norm > 1e-6 / beta else 1 / beta
        return replace(made, bound=whole)

    def facts(self, world: FiniteWorld) -> dict[str, Any]:
        """What run.json says of it. A coefficient of a feature, divided by its unit, is that of the
        column as it stands in the table."""
        centre, unit = common_units(self.first, self.second, names=self.names)
        return {
            "rows": len(self.label),
            "ties": int((self.label == 0.5).sum()),
            "atoms": len(world.probability),
            "features": list(self.names),
            "not_used": list(self.unused),
            "centre": dict(zip(self.names, centre.tolist(), strict=True)),
            "unit": dict(zip(self.names, unit.tolist(), strict=True)),
        }

    def describe(self, distinct: int, ties: str) -> str:
        """A line for the screen, with the number of distinct pairs of its world."""
        tied = int((self.label == 0.5).sum())
        taken = {"half": "each as two halves", "drop": "left out"}[ties]
        parts = [
            f"{len(self.label)} pairs, {distinct} distinct atoms",
            *([f"{tied} ties, {taken}"] if tied else []),
            f"features {', '.join(self.names)}",
            *([f"not used: {', '.join(self.unused)}"] if self.unused else []),
        ]
        return f"{self.path.name}: {'; '.join(parts)}."


def read_pairs(
    path: Path, *, features: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> Pairs:
    """The pairs of a table.

    features: NAMEs that are used; None: all that are numbers. exclude: NAMEs, or whole names of
    columns, that are left out.

    Raises:
        ValueError: no such table; features that one side lacks or that are no numbers; names that
            look like identifiers and were not asked for; a label that is none.
    """
    path = Path(path)
    meant = {word: {word, *(f"{side}{word}" for side in SIDES)} for word in exclude}
    table, text, excluded = read_columns(path, exclude=set().union(*meant.values()))
    there = {*table, *text}
    unknown = [word for word, columns in meant.items() if not columns & {*excluded}]
    if unknown:
        raise ValueError(
            f"{path.name}: no column to exclude for {', '.join(unknown)}. It has"
            f" {', '.join(sorted(there))}; give NAME for first_NAME and second_NAME."
        )
    sides = [{name.removeprefix(side) for name in there if name.startswith(side)} for side in SIDES]
    if not (sides[0] | sides[1]) or "label" not in there:
        raise ValueError(
            f"{path} needs the columns first_NAME and second_NAME for every feature and label"
            f" (1: the first response won, 0.5: a tie); it has {sorted(there)}."
        )
    if "label" in text:
        raise ValueError(
            f"{path.name}: label is text. It must be 1 where the first response won, 0 where the"
            " second did, and 0.5 for a tie."
        )
    wanted = sorted(sides[0] | sides[1]) if features is None else list(dict.fromkeys(features))
    for name in wanted:
        lacking = [f"{side}{name}" for side in SIDES if f"{side}{name}" not in there]
        if lacking:
            raise ValueError(
                f"{path.name}: no column {' and no '.join(lacking)}; a feature needs first_NAME and"
                f" second_NAME. It has {', '.join(sorted(there))}. --exclude {name} leaves it out."
            )
    words = {name for name in wanted if all(f"{side}{name}" in text for side in SIDES)}
    if features is None:
        wanted = [name for name in wanted if name not in words]
    half = [f"{side}{name}" for name in wanted for side in SIDES if f"{side}{name}" in text]
    if half:
        raise ValueError(
            f"{path.name}: {', '.join(half)} {'is' if len(half) == 1 else 'are'} text, and a"
            " feature is numbers. Correct the cells, or leave the feature out by --exclude NAME."
        )
    if features is None:
        _refuse_identifiers(path, wanted)
    if not wanted:
        raise ValueError(
            f"{path.name}: no feature is left; its columns are {', '.join(sorted(there))}."
        )
    first, second = (feature_columns(table, [side + name for name in wanted]) for side in SIDES)
    label = table["label"]
    odd = np.flatnonzero(~np.isin(label, (0, 0.5, 1)))
    if len(odd):
        raise ValueError(
            f"{path.name}: label must be 1 where the first response won, 0 where the second did, or"
            f" 0.5 for a tie; row {odd[0] + 1} has {label[odd[0]]:g}"
            f"{f', and {len(odd) - 1} more' if len(odd) > 1 else ''} (the first row is 1)."
        )
    used = {"label", *(side + name for name in wanted for side in SIDES)}
    unused = tuple(sorted({*there, *excluded} - used))
    return Pairs(path, first, second, label, tuple(wanted), unused)


def _refuse_identifiers(path: Path, names: Sequence[str]) -> None:
    """Numbers that name something are no features, unless somebody says that they are."""
    doubtful = [
        name for name in names if name.lower() == "id" or name.lower().endswith(("_id", " id"))
    ]
    if doubtful:
        raise ValueError(
            f"{path.name}: {', '.join(f'first_{name}' for name in doubtful)} and"
            f" {', '.join(f'second_{name}' for name in doubtful)} look like identifiers, not"
            f" features. Leave them out by --exclude {' '.join(doubtful)}, or name all features"
            f" that are wanted: --features {' '.join(names)}."
        )
