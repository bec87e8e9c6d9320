"""The table of results of a preference model, printed and in LaTeX."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from theory.inference import Inference, Wald
from theory.policy import Array
from theory.sets import AmbiguitySet

_ODDS = "odds ratio"
_TESTS = ("t", "P>|t|")  # columns that are in no unit
_LONG = 1e7  # from here on with an exponent
_FITS = 5  # columns of numbers that the text width of LaTeX's article holds in its own type
_NARROW = r"\footnotesize\setlength{\tabcolsep}{2pt}"
_FEW = 10  # effective comparisons a coefficient, below which it is said
_DIGITS = 2  # of a standard error; coefficients are given to the same decimals
_SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"$|$",
    "<": r"$<$",
    ">": r"$>$",
} | {sign: "\\" + sign for sign in "%&#_{}$"}


@dataclass(frozen=True, eq=False)
class Results:
    """What a fit has come to, as `PreferenceModel` names it.

    asked, set: the set that was asked for, and with its size; the latter None where that is plain
    DPO. inferred: why there is no inference. some_unmoved: whether there are columns that a set
    which moves features does not move. ties_taken: "half" or "drop". terms: of the formula, with
    the features of each.
    """

    names: tuple[str, ...]
    coef: Array
    inference: Inference | None
    inferred: str
    dpo: Array
    rival_beta: float
    rival: Array
    asked: AmbiguitySet | None
    set: AmbiguitySet | None
    size: float
    why: str
    metric: str
    some_unmoved: bool
    level: float
    comparisons: int
    ties: int
    ties_taken: str
    groups: int | tuple[int, ...] | None
    objective: float
    gap: float
    converged: bool
    effective: float
    kl: float
    remarks: list[str]
    beta: float
    terms: Mapping[str, tuple[str, ...]]

    @property
    def moves(self) -> bool:
        """Whether the set moves features."""
        return self.set is not None and self.set.knows_units


@dataclass(frozen=True, repr=False)
class Summary:
    """The results of a fit, in the manner of statsmodels; printing it shows them.

    table: a row for each feature, with the columns coef, std err, t, P>|t|, the ends of the
    interval, and the coefficients of plain DPO, at the same beta and at the one at which it is as
    far from the reference as this fit; with odds, the odds ratio exp(beta coef) and the exp of all
    that is in its unit, and no std err, which has no interval there. facts: name -> value, in
    words. notes: what to know before it is believed. tests: a row for each term of the formula that
    has several features, with Wald's chi2, its degrees of freedom df, and P, of all being 0; empty
    where a single coefficient has no P either.
    """

    table: pd.DataFrame
    title: str
    facts: dict[str, str]
    notes: tuple[str, ...]
    tests: pd.DataFrame

    @classmethod
    def of(cls, results: Results, odds: bool = False) -> "Summary":
        """That of a fit."""
        seen, nothing = results.inference, np.full(len(results.coef), np.nan)
        tail = 100 * (1 - results.level) / 2
        errors = nothing if seen is None else seen.standard_errors
        p = nothing if seen is None or results.moves else seen.p_values
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(np.isfinite(p), results.coef / errors, np.nan)
        rival = f"DPO, beta {results.rival_beta:.3g}"
        table = pd.DataFrame(
            {
                "coef": results.coef,
                "std err": errors,
                "t": t,
                "P>|t|": p,
                f"[{tail:g} %": nothing if seen is None else seen.intervals[:, 0],
                f"{100 - tail:g} %]": nothing if seen is None else seen.intervals[:, 1],
            },
            index=pd.Index(results.names, name="feature"),
        )
        if results.set is not None:
            table = table.assign(**{"DPO": results.dpo, rival: results.rival})
        tests = _tests(results)
        notes = _notes(results, rival) + tuple(_told(*each) for each in tests.items())
        if odds:
            table = _odds(table, results.beta)
            power = "coef" if results.beta == 1 else f"{results.beta:g} coef"
            notes += (f"Odds ratio: exp({power}), for one more of the feature.",)
        rows = [(x.statistic, x.degrees, x.p_value) for x in tests.values()]
        frame = pd.DataFrame(rows, pd.Index(tests, name="term"), ["chi2", "df", "P"])
        return cls(table, _title(results), _facts(results), notes, frame)

    def to_csv(self, path: Any) -> None:
        """Write the table, all digits."""
        self.table.to_csv(path)

    def to_latex(
        self,
        path: Any = None,
        *,
        caption: str | None = None,
        label: str | None = None,
        names: Mapping[str, str] | None = None,
        columns: list[str] | None = None,
    ) -> str:
        """The table in LaTeX, facts and notes below it; needs booktabs. In small type where it has
        more than five columns of numbers.

        Args:
            path: of a file to write as well.
            caption: None: the estimator.
            label: for references.
            names: feature -> what it is called; others keep their names.
            columns: of `table`, in this order; None: all.

        Raises:
            ValueError: columns that the table does not have, or names none of which is a feature.
        """
        missing = [name for name in columns or [] if name not in self.table]
        if missing:
            raise ValueError(f"no column {missing[0]!r}; there are {', '.join(self.table)}.")
        shown = self._shown()[columns or list(self.table)]
        called = names or {}
        if called and not any(str(name) in called for name in shown.index):
            raise ValueError(
                f"names has {next(iter(called))!r}, and no feature of the table; these are"
                f" {', '.join(map(str, shown.index))}."
            )
        rows = [
            " & ".join([_tex(called.get(str(name), str(name))), *map(_tex_number, row)]) + r" \\"
            for name, row in zip(shown.index, shown.to_numpy(), strict=True)
        ]
        facts = "; ".join(f"{name}: {value}" for name, value in self.facts.items())
        below = " ".join([f"{facts}.", *self.notes])
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(caption or self.title)}}}",
            *([rf"\label{{{label}}}"] if label else []),
            *([_NARROW] if shown.shape[1] > _FITS else []),
            rf"\begin{{tabular}}{{@{{}}l{'r' * shown.shape[1]}@{{}}}}",
            r"\toprule",
            " & ".join(["", *map(_tex, shown.columns)]) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            "",
            rf"\medskip\parbox{{\linewidth}}{{\footnotesize {_tex(below)}}}",
            r"\end{table}",
        ]
        text = "\n".join(lines) + "\n"
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def _shown(self) -> pd.DataFrame:
        """As text: each row to the decimals of its standard error."""
        shown = pd.DataFrame("", index=self.table.index, columns=self.table.columns)
        for k, (_, row) in enumerate(self.table.iterrows()):
            decimals = _decimals(row)
            for j, (name, x) in enumerate(row.items()):
                if not math.isfinite(x):
                    continue
                if name == "P>|t|":
                    shown.iloc[k, j] = _p(x)
                elif name == "t":
                    shown.iloc[k, j] = f"{x:.2f}"
                elif abs(x) >= _LONG:
                    shown.iloc[k, j] = f"{x:.1e}"
                else:
                    shown.iloc[k, j] = f"{x:.{decimals}f}"
        return shown

    def __repr__(self) -> str:
        """The title, the facts, the table and the notes."""
        wide = max(map(len, self.facts))
        facts = [f"{name:<{wide}}  {value}" for name, value in self.facts.items()]
        body = self._shown().rename_axis(None).to_string(justify="right")
        rule = "=" * max(map(len, body.splitlines()))
        return "\n".join([self.title, rule, *facts, rule, body, rule, *self.notes])


def _decimals(row: "pd.Series[float]") -> int:
    if _ODDS in row:  # a quarter of the interval: a standard error, if the law were normal here
        ends = [x for name, x in row.items() if str(name).startswith("[") or str(name)[-1] == "]"]
        size, whole = (max(ends) - min(ends)) / 4, row[_ODDS]
    else:
        size, whole = row["std err"], row["coef"]
    if not size > 0:
        size = abs(whole) / 10
    if not (math.isfinite(size) and size > 0):
        return 4
    return min(max(_DIGITS - 1 - math.floor(math.log10(size)), 0), 12)


def _p(x: float) -> str:
    return f"{x:.3f}" if x >= 0.0005 else "<0.001"


def _odds(table: pd.DataFrame, beta: float) -> pd.DataFrame:
    """exp(beta x) of what is in the unit of a coefficient; t and P are those of the coefficient."""
    kept = [name for name in table if name != "std err"]
    with np.errstate(over="ignore"):  # of a bound that is that far away
        found = {
            name: table[name] if name in _TESTS else np.exp(beta * table[name]) for name in kept
        }
    return pd.DataFrame(found).rename(columns={"coef": _ODDS})


def _tests(results: Results) -> dict[str, Wald]:
    """Term -> its test, for the terms that have several features."""
    seen = results.inference
    if seen is None or results.moves or seen.method != "sandwich":
        return {}
    return {term: seen.wald(made) for term, made in results.terms.items() if len(made) > 1}


def _told(term: str, test: Wald) -> str:
    if not math.isfinite(test.statistic):
        return f"{term}: no joint test, its covariance is singular."
    p = _p(test.p_value)
    return (
        f"{term}: Wald chi2 {test.statistic:.2f} on {test.degrees} df, by Hotelling's law P"
        f" {p if p[0] == '<' else f'= {p}'}."
    )


def _tex(text: str) -> str:
    return "".join(_SIGNS.get(sign, sign) for sign in text)


def _tex_number(text: str) -> str:
    """A hyphen is no minus."""
    return f"$-${text[1:]}" if text.startswith("-") else _tex(text)


def _title(results: Results) -> str:
    if results.set is not None:
        return results.set.facts.about
    if results.asked is None:
        return "DPO"
    facts = results.asked.facts
    return f"DPO ({facts.about}, with the {facts.symbol} 0)"


def _facts(results: Results) -> dict[str, str]:
    facts = {"comparisons": f"{results.comparisons:,}"}
    if results.ties:
        taken = "halved" if results.ties_taken == "half" else "dropped"
        facts["ties"] = f"{results.ties:,}, {taken}"
    if results.groups is not None:
        counts = results.groups if isinstance(results.groups, tuple) else (results.groups,)
        facts["groups"] = " and ".join(f"{count:,}" for count in counts)
    state = "converged" if results.converged else "NOT converged"
    facts["objective"] = f"{results.objective:.6f} nats, gap {results.gap:.1e}, {state}"
    if results.asked is not None:
        size = f"{results.size:.4g} {_unit(results.asked, results.metric)}".strip()
        facts[results.asked.facts.symbol] = f"{size}: {results.why}"
    if math.isfinite(results.effective):
        facts["effective comparisons"] = f"{results.effective:,.0f} in the worst case"
    facts["KL to the reference"] = f"{results.kl:.4f} nats a comparison"
    return facts


def _unit(kind: AmbiguitySet, metric: str) -> str:
    if not kind.knows_units:
        return kind.facts.unit
    return {
        "columns": "root mean squares of the differences",
        "whitened": "in the whitened metric",
        "raw": "in the columns' own unit",
    }[metric]


def _notes(results: Results, rival: str) -> tuple[str, ...]:
    notes = []
    seen = results.inference
    if seen is None:
        notes.append(f"No standard errors: {results.inferred.rstrip('.')}.")
    else:
        by = f"{seen.independent:,} " + ("comparisons" if results.groups is None else "groups")
        if isinstance(results.groups, tuple):
            by = f"groups of two kinds, t law of the fewer, {seen.independent:,}"
        notes.append(f"Standard errors: {seen.method} over {by}: {seen.reason}.")
    if results.moves:
        notes.append(
            "No P: a set that moves features shares its penalty among those that go together, so"
            " that the robust coefficient of a feature without any effect is not 0. Test effects"
            " with plain DPO."
        )
        coded = [name for name in results.names if "[" in name]
        if results.metric == "columns" and coded:
            notes.append(
                f"The answer depends on how {coded[0].split('[')[0]} is coded (the category left"
                " out). metric='whitened' does not."
            )
    elif results.set is not None and seen is not None and seen.method == "sandwich":
        notes.append("P: of a coefficient of the robust target being 0, at this radius as given.")
    if results.set is not None and np.isfinite(results.rival).all():
        notes.append(
            f"{rival}: plain DPO that is as far from the reference; where the model is right KLDPO"
            " is just that. If it predicts as well, take it."
        )
    if results.set is not None and not np.isfinite(results.dpo).all():
        notes.append("Plain DPO has no finite estimate here: the comparisons are separable.")
    notes += [f"{remark[0].upper()}{remark[1:].rstrip('.')}." for remark in results.remarks]
    d = len(results.coef)
    if math.isfinite(results.effective) and results.effective < _FEW * d:
        notes.append(
            f"The worst case leaves {results.effective:,.0f} effective comparisons for {d}"
            " coefficients."
        )
    return tuple(notes)
