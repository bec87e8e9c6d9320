"""From a table of comparisons to signed feature differences.

A row of the table is one comparison. It has the attributes of both alternatives, in columns whose
names end (or begin) with the two sides, such as price1 and price2, or their differences already:

    design = read_design(table, "price + time + C(comfort)", sides=("1", "2"))
    design.differences(table)  # (n, d), first less second
    signed_pairs(x, label, weights=None, ties="half")  # (2y-1) x, a row for each comparison
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.linalg import qr
from torch import Tensor

from theory.batch import ArrayLike
from theory.checks import as_array
from theory.policy import Array

ORDER = "order"  # the name of what being shown first is worth
ALIASES = (ORDER, "intercept")


@dataclass(frozen=True, eq=False)
class Design:
    """How a row of a table becomes differences of features, first alternative less second.

    names: (d,) of the features. order: whether the last of them is the order effect, 1 in every
    row. sides: of the columns; None where the columns are differences. spec: of the formula, with
    the levels of its categories; None: `columns` as they are.
    """

    names: tuple[str, ...]
    order: bool
    columns: tuple[str, ...]
    sides: tuple[str, str] | None = None
    spec: Any = None

    @property
    def terms(self) -> dict[str, tuple[str, ...]]:
        """Term of the formula -> its features, such as all levels of a category."""
        if self.spec is None:
            return {name: (name,) for name in self.names}
        columns = [str(name) for name in self.spec.column_names]
        found = {
            str(term): tuple(columns[k] for k in index)
            for term, index in self.spec.term_indices.items()
        }
        terms = {term: made for term, made in found.items() if made and made != ("Intercept",)}
        return terms | ({ORDER: (ORDER,)} if self.order else {})

    def differences(self, table: pd.DataFrame | ArrayLike) -> Array:
        """(n, d) of the rows of a table with the same columns.

        Raises:
            ValueError: columns that are missing, entries that are not finite numbers, or a category
                that the fit has not seen.
        """
        frame = as_table(table, self.columns)
        if self.spec is None and self.sides is None:
            x = _numbers(frame, self.columns)
        else:
            first, second = _two_sides(frame, self.sides or ("", ""))
            x = _evaluated(first, self.spec) - _evaluated(second, self.spec)
        return _with_order(x, self.order)


def _with_order(x: Array, order: bool) -> Array:
    return np.column_stack([x, np.ones(len(x))]) if order else x


def read_design(
    table: pd.DataFrame | ArrayLike,
    formula: str | None,
    sides: tuple[str, str] | None,
    order: bool,
    groups: Sequence[str] = (),
) -> tuple[Design, Array]:
    """The design of a table, and its differences (n, d).

    Args:
        table: a row for each comparison: of pandas, or of polars or pyarrow; or an array.
        formula: right side of a formula of formulaic in the names without their side, such as
            "price + time + C(comfort) + price:income"; None: all columns of both sides, or all
            differences.
        sides: what tells the columns of the first and of the second alternative apart, as an ending
            or a beginning; None: the columns are differences.
        order: whether to add the order effect.
        groups: columns that are no features.

    Raises:
        ValueError: no such columns, a formula that cannot be read, or a feature that is the same
            for both alternatives everywhere.
    """
    frame = as_table(table)
    if groups:
        as_table(table, groups)  # they are there
        frame = frame.drop(columns=list(groups))
    if sides is None:
        if formula is not None:
            raise ValueError(
                f"the formula {formula!r} is in the features of one alternative, so that the table"
                " needs both: say how their columns are told apart, as in sides=('1', '2')."
            )
        names = tuple(map(str, frame.columns))
        x = _numbers(frame, names)
        _check_varies(x, names)
        _check_independent(x, names)
        return Design(names + (ORDER,) * order, order, names), _with_order(x, order)
    if formula is not None and "~" in formula:
        raise ValueError(
            f"the formula {formula!r} has a left side: give the right one alone, as in 'price +"
            " time'; the answers are y."
        )
    first, second = _two_sides(frame, sides)
    paired = _paired(frame, sides)
    if formula is None:
        words = [name for name in paired if not pd.api.types.is_numeric_dtype(first[name])]
        if words:
            raise ValueError(
                f"{words[0]!r} is no number: name the features by a formula, with C({words[0]}) for"
                " categories."
            )
        formula = " + ".join(f"`{name}`" for name in paired)
    both = pd.concat([first, second], ignore_index=True)
    spec = _read_formula(formula, both)
    x = _evaluated(first, spec) - _evaluated(second, spec)
    names = tuple(str(name) for name in spec.column_names if name != "Intercept")
    _check_varies(x, names)
    _check_independent(x, names)
    used = {str(name) for name in spec.required_variables}
    columns = [c for name, both in paired.items() if name in used for c in both]
    columns += [c for c in frame.columns if c in used and c not in columns]
    design = Design(names + (ORDER,) * order, order, tuple(columns), sides, spec)
    return design, _with_order(x, order)


def as_table(table: pd.DataFrame | ArrayLike, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A DataFrame with a fresh index; an array is given the names of `columns`, or numbers.

    Tables of other libraries that can become one of pandas, such as those of polars and pyarrow,
    are converted.
    """
    if hasattr(table, "to_pandas"):
        table = table.to_pandas()
    if isinstance(table, pd.DataFrame):
        frame = table.reset_index(drop=True)
        frame.columns = [str(name) for name in frame.columns]
        twice = frame.columns[frame.columns.duplicated()].tolist()
        if twice:
            raise ValueError(
                f"the column {twice[0]!r} is there more than once. Rename one of them."
            )
        missing = [name for name in columns if name not in frame]
        if missing:
            raise ValueError(
                f"the table has no column {missing[0]!r}, which the fit used; it has"
                f" {', '.join(frame.columns[:20])}."
            )
        return frame[list(columns)] if columns else frame
    x = as_array(table, "the comparisons")
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(
            f"comparisons must have a row each and a column for each feature, got shape {x.shape}."
        )
    names = list(columns) or [f"feature {k + 1}" for k in range(x.shape[1])]
    if len(names) != x.shape[1]:
        raise ValueError(f"the fit used {len(names)} features, but these are {x.shape[1]}.")
    return pd.DataFrame(x, columns=names)


def check_index(table: object, **others: object) -> None:
    """Rows match by place: a Series or DataFrame with another index than the table's would be taken
    wrongly."""
    if not isinstance(table, pd.DataFrame):
        return
    for name, other in others.items():
        if isinstance(other, pd.Series | pd.DataFrame) and not other.index.equals(table.index):
            raise ValueError(
                f"{name} has another index than X, and rows are matched by place. Bring it into the"
                f" order of X, as {name}.loc[X.index], or give {name}.to_numpy() if it is."
            )


# --------------------------------------------------------------------------------------- the sides
def _paired(frame: pd.DataFrame, sides: tuple[str, str]) -> dict[str, tuple[str, str]]:
    """Name without side -> its columns, by endings or, where there are none, by beginnings."""
    a, b = sides
    for ends in (True, False):
        found = {}
        for column in frame.columns:
            if not (column.endswith(a) if ends else column.startswith(a)):
                continue
            stem = column.removesuffix(a) if ends else column.removeprefix(a)
            other = stem + b if ends else b + stem
            if stem and other != column and other in frame:
                found[stem.strip("_. ") or stem] = (column, other)
        if found:
            return found
    raise ValueError(
        f"no column of the table is there for both sides {a!r} and {b!r} as an ending or a"
        f" beginning; it has {', '.join(frame.columns[:20])}. Name the sides as they stand in the"
        " columns, such as ('_left', '_right')."
    )


def _two_sides(frame: pd.DataFrame, sides: tuple[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of the first and of the second alternatives; columns of neither go to both."""
    if len(sides) != 2 or sides[0] == sides[1]:
        raise ValueError(f"sides must be two different texts, got {sides!r}, such as ('1', '2').")
    pairs = _paired(frame, sides)
    taken = {column for both in pairs.values() for column in both}
    shared = frame[[column for column in frame.columns if column not in taken]]
    made = []
    for side in (0, 1):
        own = pd.DataFrame({name: _plain(frame[both[side]]) for name, both in pairs.items()})
        rest = {c: _plain(shared[c]) for c in shared if c not in own}
        made.append(pd.concat([own, pd.DataFrame(rest, index=own.index)], axis=1))
    return made[0], made[1]


def _plain(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Truth values as numbers, and text as plain text, whatever holds it."""
    if pd.api.types.is_bool_dtype(column.dtype):
        return column.astype("Float64" if column.hasnans else float)
    if isinstance(column.dtype, pd.StringDtype):
        return column.astype(object)
    return column


# ------------------------------------------------------------------------------------- the formula
def _read_formula(formula: str, both: pd.DataFrame) -> Any:
    """The specification of a formula, with the categories of both sides."""
    from formulaic import Formula

    try:
        spec = Formula(formula).get_model_matrix(both, na_action="ignore").model_spec
    except Exception as error:  # formulaic lets errors of many kinds through
        said = re.sub(r"\x1b\[[0-9;]*m|[⧛⧚]", "", str(error)).splitlines()
        raise ValueError(
            f"the formula {formula!r} cannot be read with the columns"
            f" {', '.join(map(str, both.columns[:20]))}: {said[0] if said else error!r}. Names are"
            " those without their side; C(name) makes categories; a name with blanks goes between"
            " backticks; a condition is I(name == 'word')."
        ) from error
    for name in spec.required_variables:
        column = both[name]
        if not pd.api.types.is_numeric_dtype(column.dtype) and column.notna().any():
            numbers = pd.to_numeric(column.dropna(), errors="coerce")
            if numbers.notna().mean() > 0.5:
                raise ValueError(
                    f"{name!r} holds numbers written as text, such as {column.dropna().iloc[0]!r}:"
                    " make them numbers first, by pd.to_numeric(table[name]), or words if they are"
                    " names."
                )
    _check_complete(both, spec, len(both) // 2)
    return spec


def _check_complete(side: pd.DataFrame, spec: Any, rows: int) -> None:
    """No missing entry in what the formula takes: formulaic would take it for the first
    category."""
    for name in sorted(map(str, spec.required_variables)):
        missing = np.flatnonzero(side[name].isna())
        if len(missing):
            raise ValueError(
                f"column {name!r} has no entry in row {int(missing[0]) % rows} (counted from"
                f" 0), and {len(missing)} such entries: drop or fill these rows, or make missing a"
                " category of its own."
            )


def _evaluated(side: pd.DataFrame, spec: Any) -> Array:
    """(n, d) features of one side, without the intercept, which cancels."""
    for factor, levels in _categories(spec).items():
        if factor in side:
            new = set(side[factor].dropna().unique()) - set(levels)
            if new:
                raise ValueError(
                    f"{factor} has the level {sorted(map(str, new))[0]!r}, which was not there when"
                    f" the model was fitted; it knew {', '.join(map(str, levels))}. Join it with"
                    " one of these, or fit with rows that have it."
                )
    _check_complete(side, spec, len(side))
    try:
        matrix = spec.get_model_matrix(side, na_action="ignore")
    except Exception as error:  # such as categories where the fit had numbers
        raise ValueError(
            f"the columns do not have the kinds that the fit had ({str(error).splitlines()[0]})."
            " Give both sides of a feature the same kind: numbers, or words."
        ) from error
    kept = [name for name in matrix.columns if name != "Intercept"]
    return _numbers(pd.DataFrame(matrix)[kept], kept)


def _categories(spec: Any) -> dict[str, list[Any]]:
    """Column -> its levels, for the categories of a formula."""
    found = {}
    for expression, (_, state) in getattr(spec, "encoder_state", {}).items():
        levels = state.get("categories") if isinstance(state, dict) else None
        if levels is not None:
            name = expression.removeprefix("C(").split(",")[0].rstrip(")").strip("` ")
            found[name] = list(levels)
    return found


def _numbers(frame: pd.DataFrame, columns: Sequence[str]) -> Array:
    """(n, d) finite numbers; the first that is none is named with its row."""
    found = np.empty((len(frame), len(columns)))
    for k, column in enumerate(columns):
        series = frame[column]
        numbers = pd.to_numeric(series, errors="coerce").to_numpy(float, na_value=np.nan)
        bad = np.flatnonzero(~np.isfinite(numbers))
        if len(bad):
            entry = series.iloc[int(bad[0])]
            raise ValueError(
                f"column {column!r} has {entry!r} in row {int(bad[0])} (counted from 0),"
                f" and {len(bad)} such entries: every feature must be a finite number. Drop or fill"
                " these rows; make words categories by a formula, C(name)."
            )
        found[:, k] = numbers
    return found


def _check_varies(x: Array, names: Sequence[str]) -> None:
    still = [name for name, column in zip(names, x.T, strict=True) if not column.any()]
    if still:
        raise ValueError(
            f"{', '.join(still[:5])}: the two alternatives never differ in"
            f" {'it' if len(still) == 1 else 'these'}, so that the comparisons say nothing of"
            f" {'it' if len(still) == 1 else 'them'}. Leave"
            f" {'it' if len(still) == 1 else 'them'} out, or let it meet a feature that differs, as"
            " in price:income."
        )


def _check_independent(x: Array, names: Sequence[str]) -> None:
    """No feature is a combination of others: which coefficients are meant is then open."""
    size = np.sqrt(np.mean(x**2, axis=0))
    _, upper, order = qr(x / size, mode="economic", pivoting=True)
    diagonal = np.abs(np.diag(upper))
    rank = int((diagonal > 1e-9 * diagonal[0]).sum())
    if rank == x.shape[1] or len(x) < x.shape[1]:
        return
    extra = order[rank]
    weights = np.linalg.lstsq(upper[:rank, :rank], upper[:rank, rank], rcond=None)[0]
    others = [names[order[k]] for k in np.flatnonzero(np.abs(weights) > 1e-6)]
    raise ValueError(
        f"{names[extra]} is a combination of {', '.join(others[:6])}: their coefficients cannot be"
        " told apart. Leave one of them out. Categories of a person meet one category of an"
        " alternative at a time, as in I(fuel == 'electric'):college."
    )


# -------------------------------------------------------------------------------------- the labels
@dataclass(frozen=True, eq=False)
class SignedPairs:
    """u: (m, d) (2y-1) x. weights: (m,) that sum to one. row: (m,) the comparison of each.

    pairs: how many comparisons count. ties: how many of them are ties.
    """

    u: Array
    weights: Array
    row: NDArray[np.intp]
    pairs: int
    ties: int

    @cached_property
    def rows(self) -> NDArray[np.intp]:
        """(pairs,) the comparisons that count, each once."""
        return np.unique(self.row)

    def by_comparison(self, mass: Array, place: NDArray[np.intp] | None = None) -> Array:
        """(pairs,) sums over the rows of each comparison; place: the row of each of the masses,
        None: theirs in order."""
        row = self.row if place is None else self.row[place]
        return np.bincount(np.searchsorted(self.rows, row), mass, len(self.rows)).astype(float)


def signed_pairs(
    x: Array,
    label: ArrayLike,
    weights: ArrayLike | None = None,
    ties: Literal["half", "drop"] = "half",
) -> SignedPairs:
    """Signed differences of labelled comparisons.

    Args:
        x: (n, d) differences, first less second.
        label: (n,) 1 where the first was preferred, 0 where the second, 0.5 for a tie; or truth
            values.
        weights: (n,) of the comparisons, not negative; None: all count the same.
        ties: "half": a tie is two comparisons of half the weight, one with each label, as a random
            answer would give in the mean; "drop": it is left out.

    Raises:
        ValueError: other labels, weights that are negative or not finite, or nothing left.
    """
    if ties not in ("half", "drop"):
        raise ValueError(f"ties must be 'half' or 'drop', got {ties!r}.")
    y = check_labels(label, len(x))
    w = np.ones(len(x)) if weights is None else as_array(weights, "sample_weight")
    if w.shape != (len(x),) or not np.isfinite(w).all() or (w < 0).any():
        raise ValueError(
            f"sample_weight must be {len(x)} finite numbers that are not negative, got shape"
            f" {w.shape} with {int((~np.isfinite(w)).sum() + (w < 0).sum())} others."
        )
    tie = y == 0.5
    plain, halves = np.flatnonzero(~tie & (w > 0)), np.flatnonzero(tie & (w > 0))
    if ties == "drop":
        halves = halves[:0]
    row = np.concatenate([plain, halves, halves])
    if not len(row):
        raise ValueError("no comparison is left: all are ties that are dropped, or have weight 0.")
    sign = np.concatenate([2 * y[plain] - 1, np.ones(len(halves)), -np.ones(len(halves))])
    mass = np.concatenate([w[plain], w[halves] / 2, w[halves] / 2])
    order = np.argsort(row, kind="stable")
    row, u = row[order], (sign[:, None] * x[row])[order]
    return SignedPairs(u, mass[order] / mass.sum(), row, len(plain) + len(halves), int(tie.sum()))


def check_labels(label: ArrayLike, n: int) -> Array:
    """(n,) labels 0, 0.5 or 1."""
    if np.ndim(label) == 1 and not isinstance(label, Tensor):
        missing = np.flatnonzero(pd.isna(np.asarray(label, dtype=object)))
        if len(missing):
            raise ValueError(
                f"y has no answer in row {int(missing[0])} (counted from 0), and {len(missing)}"
                " such rows: drop them; 0.5 is a tie."
            )
    try:
        y = as_array(label, "y")
    except ValueError as error:
        raise ValueError(
            f"{error} Labels are 1 where the first alternative was preferred, 0 where the second,"
            " 0.5 for a tie; of words make a comparison, as in table.choice == 'choice1'."
        ) from error
    if y.shape != (n,):
        raise ValueError(f"y must have a label for each of {n} comparisons, got shape {y.shape}.")
    bad = np.flatnonzero(~np.isin(y, (0.0, 0.5, 1.0)))
    if len(bad):
        raise ValueError(
            f"y has {y[bad[0]]:g} in row {int(bad[0])} (counted from 0), and {len(bad)} such"
            " labels: 1 where the first alternative was preferred, 0 where the second, 0.5 for a"
            " tie."
        )
    return y
