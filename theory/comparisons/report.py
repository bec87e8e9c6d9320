"""What a preference model shows: its table of results, its worst case, its path over radii."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from theory.batch import ArrayLike
from theory.inference import Inference
from theory.policy import Array
from theory.sets import AmbiguitySet
from theory.solvers.adversary import WorstCase

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_FEW = 10  # effective comparisons a coefficient, below which it is said


@dataclass(frozen=True, eq=False)
class Results:
    """What a fit has come to, as `PreferenceModel` names it. some_unmoved: whether there are
    columns that a set which moves features does not move. ties_taken: "half" or "drop"."""

    names: tuple[str, ...]
    coef: Array
    inference: Inference | None
    dpo: Array
    rival_beta: float
    rival: Array
    set: AmbiguitySet | None
    size: float
    why: str
    metric: str
    some_unmoved: bool
    level: float
    comparisons: int
    ties: int
    ties_taken: str
    groups: int | None
    objective: float
    gap: float
    converged: bool
    effective: float
    kl: float
    remarks: list[str]


@dataclass(frozen=True, repr=False)
class Summary:
    """The results of a fit, in the manner of statsmodels; printing it shows them.

    table: a row for each feature, with the columns coef, std err, t, P>|t|, the ends of the
    interval, and the coefficients of plain DPO, at the same beta and at the one at which it is as
    far from the reference as this fit. facts: name -> value, in words. notes: what to know before
    it is believed.
    """

    table: pd.DataFrame
    title: str
    facts: dict[str, str]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, results: "Results") -> "Summary":
        """That of a fit."""
        seen, ball = results.inference, results.set
        d, nothing = len(results.coef), np.full(len(results.coef), np.nan)
        tail = 100 * (1 - results.level) / 2
        errors = nothing if seen is None else seen.standard_errors
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(errors > 0, results.coef / errors, np.nan)
        rival = f"DPO, beta {results.rival_beta:.3g}"
        table = pd.DataFrame(
            {
                "coef": results.coef,
                "std err": errors,
                "t": t if seen is None or seen.method == "sandwich" else nothing,
                "P>|t|": nothing if seen is None else seen.p_values,
                f"[{tail:g} %": nothing if seen is None else seen.intervals[:, 0],
                f"{100 - tail:g} %]": nothing if seen is None else seen.intervals[:, 1],
            },
            index=pd.Index(results.names, name="feature"),
        )
        if ball is not None:
            table = table.assign(**{"DPO": results.dpo, rival: results.rival})
        facts = {"comparisons": f"{results.comparisons:,}"}
        if results.ties:
            facts["ties"] = (
                f"{results.ties:,}, {'halved' if results.ties_taken == 'half' else 'dropped'}"
            )
        if results.groups is not None:
            facts["groups"] = f"{results.groups:,}"
        state = "converged" if results.converged else "NOT converged"
        facts["objective"] = f"{results.objective:.6f} nats, gap {results.gap:.0e}, {state}"
        if ball is not None:
            facts[ball.facts.symbol] = f"{results.size:.4g} {_unit(results)}: {results.why}"
        if np.isfinite(results.effective):
            facts["effective comparisons"] = f"{results.effective:,.0f} in the worst case"
        facts["KL to the reference"] = f"{results.kl:.4f} nats a comparison"
        title = "DPO" if ball is None else ball.facts.about
        return cls(table, title, facts, _notes(results, rival, d))

    def to_csv(self, path: Any) -> None:
        """Write the table, all digits."""
        self.table.to_csv(path)

    def to_latex(self, path: Any = None) -> str:
        """The table, its facts and notes in the caption; needs booktabs. Also written to a path."""
        shown = self.table.map(lambda x: "" if pd.isna(x) else f"{x:.4g}")
        shown.columns = [name.replace("%", r"\%") for name in shown.columns]
        shown.index = [str(name).replace("_", r"\_") for name in shown.index]
        facts = "; ".join(f"{name}: {value}" for name, value in self.facts.items())
        caption = f"{self.title}. {facts}. {' '.join(self.notes)}"
        for sign in "%&#_":
            caption = caption.replace(sign, "\\" + sign)
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption.replace('|', r'$|$').replace('>', '$>$')}}}",
            rf"\begin{{tabular}}{{l{'r' * len(shown.columns)}}}",
            r"\toprule",
            " & ".join(["", *shown.columns]).replace("|", "$|$").replace(">", "$>$") + r" \\",
            r"\midrule",
            *(
                " & ".join([str(name), *row]) + r" \\"
                for name, row in zip(shown.index, shown.to_numpy(), strict=True)
            ),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        text = "\n".join(lines) + "\n"
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def __repr__(self) -> str:
        """The title, the facts, the table and the notes."""
        wide = max(map(len, self.facts))
        facts = [f"{name:<{wide}}  {value}" for name, value in self.facts.items()]
        shown = self.table.map(lambda x: "" if pd.isna(x) else f"{x:.4g}")
        p = self.table["P>|t|"]
        shown["P>|t|"] = ["" if pd.isna(x) else f"{x:.3f}" for x in p]
        body = shown.rename_axis(None).to_string(justify="right")
        rule = "=" * max(map(len, body.splitlines()))
        return "\n".join([self.title, rule, *facts, rule, body, rule, *self.notes])


def _unit(results: Results) -> str:
    unit = results.set.facts.unit if results.set is not None else ""
    if "features" not in unit:
        return unit
    return {
        "columns": "root mean squares of the differences",
        "whitened": "in the whitened metric",
        "raw": "in the columns' own unit",
    }[results.metric]


def _notes(results: Results, rival: str, d: int) -> tuple[str, ...]:
    notes = []
    seen = results.inference
    if seen is None:
        notes.append(
            "The radius is at or beyond collapse: the set holds a law that knows no preference"
            + (" but for the unpenalised columns" if results.some_unmoved else "")
            + ", and the answer is the reference. There is no law to infer from."
        )
    else:
        by = "groups" if results.groups is not None else "comparisons"
        notes.append(
            f"Standard errors: {seen.method} over {seen.independent:,} {by}: {seen.reason}."
        )
        if seen.method == "sandwich" and results.set is not None:
            notes.append(
                "P>|t|: of a coefficient of the robust target being 0, at this radius as given."
            )
    if results.set is not None:
        notes.append(
            f"{rival}: plain DPO that is as far from the reference; where the model is right KLDPO"
            " is just that. If it predicts as well, take it."
        )
    if (
        results.metric == "columns"
        and results.set is not None
        and "features" in results.set.facts.unit
    ):
        coded = [name for name in results.names if "[" in name]
        if coded:
            notes.append(
                f"The set moves features, and its answer depends on how {coded[0].split('[')[0]} is"
                " coded (the category left out). metric='whitened' does not."
            )
    notes += [f"{remark[0].upper()}{remark[1:]}." for remark in results.remarks]
    if np.isfinite(results.effective) and results.effective < _FEW * d:
        notes.append(
            f"The worst case leaves {results.effective:,.0f} effective comparisons for {d}"
            " coefficients."
        )
    return tuple(notes)


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
        labels = np.asarray(groups)
        if labels.ndim != 1 or len(labels) <= int(self.table.row.max()):
            raise ValueError(
                f"groups must have a label for each comparison, {int(self.table.row.max()) + 1} or"
                f" more, got shape {labels.shape}."
            )
        rows = self.table.assign(group=labels[self.table.row.to_numpy()])
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
            found = self.by(groups)[::-1].tail(30)
            places = np.arange(len(found))
            axes.plot(found[self.measure], places, "o", color="#0072B2")
            axes.set_yticks(places, [f"{name} ({n})" for name, n in found.comparisons.items()])
            axes.set(xlabel=label[self.measure], ylabel="group (comparisons)")
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
    a column for each feature. chosen: the model's own radius.
    """

    table: pd.DataFrame
    names: tuple[str, ...]
    chosen: float
    symbol: str

    def plot(self, axes: "Axes | None" = None, *, scaled: bool = True) -> "Axes":
        """Coefficients against the share of the way to collapse; scaled: each relative to its value
        without robustness, so that features of any unit share an axis."""
        axes = _axes(axes)
        start = self.table[list(self.names)].iloc[0]
        colors = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
        for k, name in enumerate(self.names):
            y = self.table[name] / start[name] if scaled else self.table[name]
            dash = ("-", "--", ":", "-.")[k // len(colors) % 4]
            axes.plot(self.table.share, y, dash, color=colors[k % len(colors)], label=name)
        near = int(np.argmin(np.abs(self.table.radius.to_numpy() - self.chosen)))
        axes.axvline(self.table.share.iloc[near], color="#767676", linewidth=0.7)
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
