"""The sample that radii are read off: checked rows, their weights and their groups."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as t_law

from theory.batch import ArrayLike, check_magnitudes, feature_names
from theory.checks import as_array, check_clusters, check_probability, check_scale
from theory.policy import Array


@dataclass(frozen=True, eq=False)
class Rows:
    """u (n, d), their probabilities p (n,), and the group of each, numbers from 0 to units - 1, or
    None."""

    u: Array
    p: Array
    member: NDArray[np.intp] | None

    @cached_property
    def lost(self) -> float:
        """1/n by Kish's n: sum p_i²."""
        return float(self.p @ self.p)

    @cached_property
    def plain(self) -> bool:
        """Independent pairs of equal weight."""
        return self.member is None and bool((self.p == self.p[0]).all())

    @cached_property
    def units(self) -> int:
        return len(self.p) if self.member is None else int(self.member.max()) + 1

    @property
    def few(self) -> int | None:
        """The number of groups, where there are any."""
        return None if self.member is None else self.units

    def z(self, delta: float, sides: int = 2) -> float:
        """The 1 - delta/sides quantile of the normal law, of the t law for groups."""
        if self.member is None:
            return float(norm.ppf(1 - delta / sides))
        return float(t_law.ppf(1 - delta / sides, self.units - 1))

    def error(self, values: Array) -> float:
        """Standard error of the mean of the values (n,)."""
        parts = self.p * (values - self.p @ values)
        if self.member is None:
            return math.sqrt(float(parts @ parts) / (1 - self.lost))
        sums = np.bincount(self.member, parts)
        return math.sqrt(float(sums @ sums) * self.units / (self.units - 1))


def read_rows(
    u: ArrayLike, weights: ArrayLike | None, groups: ArrayLike | None, name: str = "u"
) -> Rows:
    """Checked, without the rows of weight 0."""
    pairs = _pairs(name, u)
    p = probability(weights, len(pairs))
    member = None if groups is None else check_clusters(groups, len(pairs), name="groups")
    seen = p > 0
    if not seen.all():
        pairs, p = pairs[seen], p[seen]
        member = None if member is None else np.unique(member[seen], return_inverse=True)[1]
        if len(pairs) < 2 or (member is not None and member.max() == 0):
            raise ValueError(
                f"{len(pairs)} of the rows have a weight, of one group: two pairs at least are"
                " needed, and two groups. Look at the weights."
            )
    return Rows(np.asfortranarray(pairs), p, member)


def _pairs(name: str, u: ArrayLike) -> Array:
    array = as_array(u, name)
    if array.ndim != 2 or len(array) < 2 or array.shape[1] < 1:
        raise ValueError(
            f"{name} must be signed feature differences (2y-1)(psi1-psi2) of shape (n, d) with n >="
            f" 2, got shape {array.shape}. Pass one row a pair."
        )
    bad = ~np.isfinite(array)
    if bad.any():
        rows, columns = (np.flatnonzero(bad.any(axis)) for axis in (1, 0))
        names = feature_names(u) or tuple(f"feature {k + 1}" for k in range(array.shape[1]))
        raise ValueError(
            f"{name} holds {int(bad.sum())} non-finite entries (NaN or inf), in rows"
            f" {some(rows.tolist())} (counted from 0), {some([names[k] for k in columns])}. Drop"
            " those pairs, or impute their features first."
        )
    check_magnitudes(name, torch.from_numpy(array))
    return array


def probability(weights: ArrayLike | None, n: int) -> Array:
    """(n,) weights that are a probability; 1/n each where there are none."""
    return np.full(n, 1 / n) if weights is None else check_probability("weights", weights, n)


def check_same_features(
    u: Array, other: Array, names: tuple[str, ...], others: tuple[str, ...]
) -> None:
    """The features of a held-out sample are those of u."""
    if other.shape[1] != u.shape[1]:
        raise ValueError(
            f"u has {u.shape[1]} features and held_out {other.shape[1]}: build both with the same"
            " features."
        )
    if names and others and names != others:
        raise ValueError(
            f"u has the columns {some(list(names))} and held_out {some(list(others))}: give both"
            " the same columns in the same order."
        )


def direction_of(w: ArrayLike) -> Array:
    """(d,) finite numbers."""
    direction = as_array(w, "w")
    if direction.ndim != 1 or not np.isfinite(direction).all():
        raise ValueError(
            f"w must be d finite numbers, got {direction.tolist()}. Look at the fit that gave it."
        )
    check_magnitudes("w", torch.from_numpy(direction))
    return direction


def losses_of(u: Array, w: Array, beta: float) -> Array:
    """(n,) log(1 + exp(-beta w.u)), in nats."""
    if w.shape != u.shape[1:]:
        raise ValueError(
            f"w must have shape {u.shape[1:]}, one number for each feature of u, got {w.shape}."
        )
    beta = check_scale("beta", beta, "It scales the log-ratio in the margin.")
    return np.logaddexp(0, -beta * (u @ w))


def check_open_unit(name: str, value: float) -> None:
    """A probability that is neither 0 nor 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {value}.")


def some(items: list) -> str:
    """The first five, in words."""
    return ", ".join(map(str, items[:5])) + (" and more" if len(items) > 5 else "")
