"""What a preference model shows: its worst case, and its path over radii."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from theory.batch import ArrayLike
from theory.policy import Array
from theory.solvers.adversary import WorstCase

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = 15  # groups, and features by name, in a picture


@dataclass(frozen=True, repr=False, eq=False)
class WorstPairs:
    """What the worst case does to each comparison.

    table: row (place in the data), share of the sample, loss (nats), and worst_share and times, how
    often the adversary counts it, or moved, how far it moves its features in the unit of the
    metric, and flipped, which share of its label it turns round. worst: the `WorstCase`.
    """

    table: pd.DataFrame
    worst: WorstCase
    comparisons: int

    @property
    def measure(self) -> str:
        """The column that says how much the adversary does."""
        return "times" if "times" in self.table else "moved"

    def by(self, groups: ArrayLike | pd.Series) -> pd.DataFrame:
        """Share of the sample and of the worst case for each group, the most leant on first.

        Args:
            groups: (n,) a label for each comparison of the data.

        Raises:
            ValueError: labels that do not match the comparisons.
        """
        labels = np.asarray(groups, dtype=object)
        if labels.ndim != 1 or len(labels) <= int(self.table.row.max()):
            raise ValueError(
                f"groups must have a label for each comparison, {int(self.table.row.max()) + 1} or"
                f" more, got shape {labels.shape}."
            )
        labels = labels[self.table.row.to_numpy()]
        missing = np.flatnonzero(pd.isna(labels))
        if len(missing):
            raise ValueError(
                f"{len(missing)} comparisons have no group, that in row"
                f" {int(self.table.row.iloc[missing[0]])} among them (counted from 0). Give these a"
                " label of their own."
            )
        rows = self.table.assign(group=labels)
        found = rows.groupby("group").agg(comparisons=("row", "size"), share=("share", "sum"))
        if self.measure == "times":
            found["worst_share"] = rows.groupby("group").worst_share.sum()
            found["times"] = found.worst_share / found.share
        else:
            weighted = rows.assign(moved=rows.moved * rows.share, flipped=rows.flipped * rows.share)
            sums = weighted.groupby("group")[["moved", "flipped"]].sum()
            found[["moved", "flipped"]] = sums.div(found.share, axis=0)
        loss = (rows.loss * rows.share).groupby(rows.group).sum()
        found["loss"] = loss / found.share
        return found.sort_values(self.measure, ascending=False)

    def plot(
        self, groups: ArrayLike | pd.Series | None = None, axes: "Axes | None" = None
    ) -> "Axes":
        """How much the adversary does to each comparison, sorted, or to each group."""
        axes = _axes(axes)
        label = {"times": "times counted in the worst case", "moved": "moved in the worst case"}
        if groups is None:
            values = np.sort(self.table[self.measure].to_numpy())[::-1]
            axes.plot(np.arange(1, len(values) + 1), values, color="#0072B2")
            axes.set(xlabel="comparison, by rank", ylabel=label[self.measure])
        else:
            every = self.by(groups)
            ends = [*range(_SHOWN - 5), *range(-5, 0)]
            found = every if len(every) <= _SHOWN else every.iloc[ends]
            places = -np.arange(len(found))
            axes.plot(found[self.measure], places, "o", color="#0072B2")
            names = [f"{name} ({n})" for name, n in found.comparisons.items()]
            axes.set_yticks(places, names, fontsize="small")
            some = "" if len(found) == len(every) else f"\n{len(found)} of {len(every)}: both ends"
            axes.set(xlabel=label[self.measure], ylabel=f"group (comparisons){some}")
        if self.measure == "times":
            line = axes.axhline if groups is None else axes.axvline
            line(1.0, color="#767676", linewidth=0.7)
        return axes

    def __repr__(self) -> str:
        """The comparisons that are leant on most."""
        top = self.table.sort_values(self.measure, ascending=False).head(8)
        head = f"{self.worst.name}, {self.comparisons:,} comparisons; leant on most:"
        return f"{head}\n{top.to_string(index=False, float_format='%.4g')}"


@dataclass(frozen=True, repr=False)
class RadiusPath:
    """Coefficients over radii.

    table: share (of the way to collapse), radius, objective, kl (to the reference), converged, and
    a column for each feature. chosen: the model's own radius. weight: (d,) how much each feature
    says, |coefficient| times the root mean square of its differences.
    """

    table: pd.DataFrame
    names: tuple[str, ...]
    chosen: float
    weight: Array

    def plot(self, axes: "Axes | None" = None, *, scaled: bool = True) -> "Axes":
        """Coefficients against the share of the way to collapse; scaled: each relative to its value
        without robustness, so that features of any unit share an axis.

        Of many features those that say most are named, the others grey; scaled, one that is within
        a hundredth of nothing without robustness is left out.
        """
        axes = _axes(axes)
        start = self.table[list(self.names)].iloc[0]
        colors = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
        order = np.argsort(-self.weight, kind="stable")
        others = 0
        for rank, k in enumerate(order.tolist()):
            name = self.names[k]
            if scaled and self.weight[k] < 0.01 * self.weight.max():
                continue
            y = self.table[name] / start[name] if scaled else self.table[name]
            if rank >= len(colors):
                others += 1
                axes.plot(self.table.share, y, color="#BBBBBB", linewidth=0.6, zorder=1)
                continue
            axes.plot(self.table.share, y, color=colors[rank], label=name)
        if others:
            axes.plot([], [], color="#BBBBBB", linewidth=0.6, label=f"{others} others")
        sized = np.argsort(self.table.radius.to_numpy())  # some sizes fall as their set grows
        radii, shares = (self.table[name].to_numpy()[sized] for name in ("radius", "share"))
        axes.axvline(float(np.interp(self.chosen, radii, shares)), color="#767676", linewidth=0.7)
        axes.axhline(0.0, color="#767676", linewidth=0.7)
        axes.set(
            xlabel="share of the way to collapse",
            ylabel="coefficient / that of DPO" if scaled else "coefficient",
        )
        axes.legend(fontsize="small", frameon=False)
        return axes

    def __repr__(self) -> str:
        """The table."""
        return self.table.to_string(index=False, float_format="%.4g")


def _axes(axes: "Axes | None") -> "Axes":
    if axes is not None:
        return axes
    from matplotlib.figure import Figure

    return Figure(figsize=(4.5, 3.2), layout="constrained").add_subplot()
