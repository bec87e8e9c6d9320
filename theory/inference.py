"""Confidence regions of a fit, from its sample alone.

The limit law of the fit (`theory.laws`) with the sample in the place of the population: the
influence of each pair, summed within clusters where pairs are not independent, gives the covariance
of theta; for two groupings that cross, such as people and items, by Cameron, Gelbach and Miller
(2011). What decides the law, which kinks hold theta and whether it is on the bound, is estimated
as well. Where the sample does not settle it, or the fit collapsed, the law need not be normal, the
ordinary bootstrap fails with it (Fang and Santos, 2019), and smaller samples are drawn instead: the
m out of n bootstrap of Bickel, Götze and van Zwet (1997).

Smaller samples are separable more often than the sample, and their fits are then as far out as the
bound lets them be: one such fit would decide a root mean square. Standard errors from smaller
samples are therefore the distance of two quantiles over that of the normal law.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import f as f_law
from scipy.stats import norm
from scipy.stats import t as t_law

from theory.batch import ArrayLike, as_float64
from theory.checks import check_count, check_groupings, check_level
from theory.fitting import fit
from theory.laws.law import derivative_at, local_program
from theory.laws.program import SPHERE, Derivative, Places
from theory.merging import merged
from theory.policy import Array
from theory.results import Fit, Made
from theory.solvers.local import NoLaw

_SURE = 2.0  # standard errors by which a multiplier, or what is not met, has to be away from 0
_NEGATIVE = "the variance of two groupings is negative in some direction, and 0 there"
_SEEN = 5  # times that an atom has to be seen on average, where the law is one of atoms
_POWER = 2 / 3  # m = n^(2/3) in the m out of n bootstrap
_TAIL = 0.07  # of the draws on each side that a standard error does not look at; Mosteller (1946):
# no other two quantiles tell the deviation of a normal law better (by 65 % of what all draws tell)


@dataclass(frozen=True)
class Wald:
    """A test of several coefficients being 0 together.

    Attributes:
        names: of the coefficients.
        statistic: theta' V^-1 theta over them, chi-squared in large samples where all are 0; NaN
            where the law is not known to be normal, or V is singular: the fit holds one fast.
        degrees: of freedom, the number of coefficients k.
        p_value: by Hotelling's law with G independent units, statistic (G - k)/(k (G - 1)) being F
            with k and G - k degrees; that is chi-squared where they are many, and the squared t
            test of `Inference.p_values` for a single coefficient. NaN with the statistic.
    """

    names: tuple[str, ...]
    statistic: float
    degrees: int
    p_value: float


@dataclass(frozen=True, repr=False, eq=False)
class Inference:
    """What a sample says of theta_rho, the minimiser in the population that it comes from.

    Printing it shows a table.

    Attributes:
        theta: (d,) the fit, in the inverse unit of the features.
        covariance: (d, d) of the fit, estimated; by "m out of n", with the scales of
            `standard_errors` and the correlations of the draws between those quantiles.
        intervals: (d, 2) for each coordinate, at the level.
        level: of the intervals and of the region, each by itself.
        method: "sandwich" or "m out of n".
        reason: in words, why this method.
        names: of the features.
        independent: number of pairs, or of clusters; of two groupings, the smaller number.

    >>> from theory import KL, fit, infer
    >>> found = fit([[1.0], [-1.0]], KL(0.01), [0.7, 0.3], beta=1.0)
    >>> seen = infer(found, pairs=1000)
    >>> seen.method, seen.intervals.shape, bool(seen.contains(found.theta))
    ('sandwich', (1, 2), True)
    """

    theta: Array
    covariance: Array
    intervals: Array
    level: float
    method: str
    reason: str
    names: tuple[str, ...]
    independent: int
    _draws: Array | None  # of the fit less theta, by resampling
    _limit: float  # of the statistic of `contains`

    @property
    def standard_errors(self) -> Array:
        """(d,) of the coordinates.

        By "m out of n": from the 7 % to the 93 % quantile of the draws, divided by what that is for
        a normal law of deviation 1, 2.95, so that fits that ran away do not count: Mosteller
        (1946), Annals of Mathematical Statistics 17. The root mean square where both are the same
        number.
        """
        return np.sqrt(np.diag(self.covariance))

    def contains(self, theta: ArrayLike) -> bool:
        """Whether the simultaneous region holds theta (d,).

        With "sandwich" it is an ellipsoid, and a cylinder where a kink or the bound holds the fit:
        across these the law is a point. With "m out of n" it is a ball.
        """
        given = as_float64(theta, "theta").cpu().numpy()
        if given.shape != self.theta.shape:
            raise ValueError(
                f"theta must have the shape {self.theta.shape} of the fit, got {given.shape}."
            )
        away = given - self.theta
        if self._draws is not None:
            return bool(np.linalg.norm(away) <= self._limit)
        # in units of the standard errors, whatever those of the features are
        size = np.where(self.standard_errors > 0, self.standard_errors, 1.0)
        shape = np.linalg.pinv(self.covariance / np.outer(size, size), rcond=1e-9)
        return bool(away / size @ shape @ (away / size) <= self._limit)

    def in_units(self, unit: Array, names: Sequence[str]) -> "Inference":
        """The same of unit theta, for a (d, d) matrix: the coefficients of features in other units,
        or of others that span the same.

        An interval by resampling is that of the new coefficients' own draws.
        """
        theta = unit @ self.theta
        draws = None if self._draws is None else self._draws @ unit.T
        if draws is None:
            covariance = unit @ self.covariance @ unit.T
            reach = t_law.ppf((1 + self.level) / 2, self.independent - 1)
            reach = reach * np.sqrt(np.diag(covariance).clip(min=0))
            intervals, limit = np.stack([theta - reach, theta + reach], 1), self._limit
        else:
            covariance, intervals = _spread(draws), _symmetric(theta, draws, self.level)
            limit = float(np.quantile(np.linalg.norm(draws, axis=1), self.level))
        return replace(
            self,
            theta=theta,
            covariance=covariance,
            intervals=intervals,
            names=tuple(names),
            _draws=draws,
            _limit=limit,
        )

    @property
    def p_values(self) -> Array:
        """(d,) two-sided, of the coordinates being 0, by the t law; NaN where the law is not known
        to be normal, or the fit holds a coordinate fast."""
        errors = self.standard_errors
        if self._draws is not None:
            return np.full(len(self.theta), np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = 2 * t_law.sf(np.abs(self.theta) / errors, self.independent - 1)
        return np.where(errors > 0, found, np.nan)

    def wald(self, names: Sequence[str]) -> Wald:
        """The test that the coefficients of these features are all 0, as of a category.

        Args:
            names: of the features, each once.

        Raises:
            ValueError: names that are no features, twice the same, or none.
        """
        unknown = [name for name in names if name not in self.names]
        if unknown or not names or len({*names}) < len(names) or isinstance(names, str):
            raise ValueError(
                f"a test takes a list of features, each once, of {', '.join(self.names)}; got"
                f" {names!r}."
            )
        index = [self.names.index(name) for name in names]
        k, nothing = len(index), Wald(tuple(names), np.nan, len(index), np.nan)
        size = self.standard_errors[index]
        if self._draws is not None or not (size > 0).all() or self.independent <= k:
            return nothing
        shape = self.covariance[np.ix_(index, index)] / np.outer(size, size)
        if np.linalg.eigvalsh(shape)[0] < 1e-9:
            return nothing
        away = self.theta[index] / size
        statistic = float(away @ np.linalg.solve(shape, away))
        units = self.independent
        p = f_law.sf(statistic * (units - k) / (k * (units - 1)), k, units - k)
        return replace(nothing, statistic=statistic, p_value=float(p))

    def __repr__(self) -> str:
        """A short table."""
        width = max(len(name) for name in self.names)
        rows = [
            f"  {name:<{width}}  {x:12.6g}  +- {e:.3g}  [{low:.6g}, {high:.6g}]"
            for name, x, e, (low, high) in zip(
                self.names, self.theta, self.standard_errors, self.intervals, strict=True
            )
        ]
        head = f"{self.level:.0%} intervals by {self.method}, {self.independent} independent units"
        return "\n".join([f"{head}: {self.reason}", *rows])


def infer(
    found: Fit,
    *,
    pairs: int | None = None,
    clusters: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 400,
    seed: int = 0,
) -> Inference:
    """Standard errors and confidence regions of a fit, for the minimiser of the same set in the
    population.

    The radius is held fixed. Theorems F1 to F3, docs/theorems/limit-laws.md; for clusters Liang and
    Zeger (1986), for two groupings A and B Cameron, Gelbach and Miller (2011): V_A + V_B - V_AB, AB
    the pairs that share both, each with its own factor G/(G - 1). Where that is negative in some
    direction it counts as 0 there, as theirs does; directions are told apart in the metric of V_A +
    V_B, so that the units and the coding of features do not matter. Intervals use the t and
    Hotelling's law with the number of independent units less one.

    Args:
        found: one fit; of a batch `found.one(r)`.
        pairs: n, how many pairs the sample has. Needed where the fit was given weights, which are
            then the shares of distinct pairs; else, and with clusters, their number is known.
        clusters: (n,) a label for each row: pairs with the same label, such as those of one
            annotator or prompt, may depend on each other in any way; weights are then those of the
            rows, as sampling weights. (n, 2): two labels, such as annotator and prompt: pairs that
            share either may depend on each other. None: all are independent.
        level: of the intervals, in (0, 1).
        resamples: fits to smaller samples, where those are needed.
        seed: of the smaller samples.

    Returns:
        An `Inference`, which says how it was made and why.

    Raises:
        ValueError: a batch, a fit that did not converge, weights without `pairs`, labels that do
            not match the rows, too few independent units, atoms that were not seen often enough for
            a set that lives on them, or two groupings where smaller samples would be needed.

    >>> from theory import dpo, infer
    >>> found = dpo([[1.0], [1.0], [1.0], [-1.0]] * 100, beta=1.0)
    >>> infer(found).standard_errors.round(3).tolist()  # 1/sqrt(400 * 3/4 * 1/4)
    [0.116]
    """
    made = _single(found)
    level, resamples = check_level(level), check_count("resamples", resamples)
    pairs = None if pairs is None else check_count("pairs", pairs)
    sample = _sample(made, pairs, clusters, len(found.theta))
    try:
        if local_program(found).finite:
            found, made, sample = _distinct(found, made, sample)
            if sample.pairs < _SEEN * (made.pairs.p[0] > 0).sum().item():
                return _seldom(found, made, sample, level, resamples, seed)
        moved = _off_a_doubtful_sphere(derivative_at(found), sample)
        doubt = _doubt(moved, sample)
    except NoLaw as error:
        doubt = str(error)
    if doubt:
        return _resampled(found, made, sample, level, resamples, seed, doubt)
    influence = moved.influence[:, : len(found.theta)]
    covariance, negative = sample.seen(influence)
    units, d = sample.units, np.linalg.matrix_rank(covariance, tol=1e-12 * np.trace(covariance))
    reach = t_law.ppf((1 + level) / 2, units - 1) * np.sqrt(np.diag(covariance))
    theta = found.theta.numpy()
    return Inference(
        theta,
        covariance,
        np.stack([theta - reach, theta + reach], 1),
        level,
        "sandwich",
        "the law is normal"
        + (f" in {d} directions" if d < len(theta) else "")
        + (f"; {_NEGATIVE}" if negative else ""),
        found.names,
        units,
        None,
        d * (units - 1) / (units - d) * f_law.ppf(level, d, units - d) if d else 0.0,
    )


# ------------------------------------------------------------------------------------ the sample
@dataclass(frozen=True, eq=False)
class _Sample:
    """p: (rows,) their shares. pairs: n. members: (rows,) the cluster of each, in none, one or two
    groupings. atom: (rows,) its place among the K atoms of the program."""

    p: Array
    pairs: int
    members: tuple[Places, ...]
    atom: Places

    @property
    def units(self) -> int:
        """Independent ones: pairs or clusters, of the grouping that has fewer."""
        return min((int(member.max()) + 1 for member in self.members), default=self.pairs)

    def covariance(self, influence: Array) -> Array:
        """(m, m) of the mean of the influence (K, m) over the sample."""
        return self.seen(influence)[0]

    def seen(self, influence: Array) -> tuple[Array, bool]:
        """That, and whether it was negative in some direction, where it is 0."""
        influence = influence[self.atom]
        centred = influence - self.p @ influence
        if not self.members:
            return (centred * self.p[:, None]).T @ centred / (self.pairs - 1), False
        parts = centred * self.p[:, None]
        alone = [_between(parts, member) for member in self.members]
        if len(alone) == 1:
            return alone[0], False
        a, b = self.members
        both = np.unique(a * (b.max() + 1) + b, return_inverse=True)[1]
        return _two_way(alone[0] + alone[1], _between(parts, both))

    def errors(self, influence: Array) -> Array:
        """(m,) standard errors, the root of the diagonal of `covariance`; with two groupings at
        least those of either alone, as a variance that comes out negative settles nothing."""
        parts = [influence[:, k : k + 1] for k in range(influence.shape[1])]
        found = np.array([np.sqrt(self.covariance(part)[0, 0]) for part in parts])
        if len(self.members) < 2:
            return found
        alone = [replace(self, members=(member,)).errors(influence) for member in self.members]
        return np.maximum.reduce([found, *alone])

    def smaller(self, count: int, seed: int) -> tuple[Array, int]:
        """(count, K) shares of the atoms in samples of m < n pairs or clusters, and m."""
        rng, m = np.random.default_rng(seed), max(int(self.units**_POWER), 2)
        if not self.members:
            rows = rng.multinomial(m, self.p / self.p.sum(), size=count) / m
        else:
            times = rng.multinomial(m, np.full(self.units, 1 / self.units), size=count)
            rows = times[:, self.members[0]] * self.p
            rows /= rows.sum(1, keepdims=True)
        weights = np.zeros((count, self.atom.max() + 1))
        np.add.at(weights.T, self.atom, rows.T)
        return weights, m


def _between(parts: Array, member: Places) -> Array:
    """(m, m) sum over the clusters of the squares of their sums, times G/(G - 1)."""
    units = int(member.max()) + 1
    sums = np.zeros((units, parts.shape[1]))
    np.add.at(sums, member, parts)
    return sums.T @ sums * units / (units - 1)


def _two_way(either: Array, both: Array) -> tuple[Array, bool]:
    """V_A + V_B - V_AB, for either = V_A + V_B and both = V_AB, with 0 for what is negative, and
    whether anything was."""
    size = np.sqrt(np.diag(either))
    size[size == 0] = 1.0
    values, axes = np.linalg.eigh(either / np.outer(size, size))
    kept = values > 1e-12 * values[-1]
    root = size[:, None] * axes[:, kept] * np.sqrt(values[kept])  # either = root root'
    back = axes[:, kept] / np.sqrt(values[kept]) / size[:, None]
    left, turn = np.linalg.eigh(np.eye(int(kept.sum())) - back.T @ both @ back)
    if len(left) and left[0] < -1e-9:
        along = root @ turn * np.sqrt(left.clip(min=0))
        return along @ along.T, True
    return either - both, False


def _single(found: Fit) -> Made:
    if found.theta.ndim != 1:
        raise ValueError(
            f"found holds {len(found.theta)} fits: take one of them, as in infer(found.one(0))."
        )
    if not bool(found.converged):
        raise ValueError(
            f"the fit did not converge (gap {found.gap.item():.1e}): its derivative would not be"
            " that of the minimiser. Fit with another tolerance or unit first."
        )
    assert found._made is not None
    return found._made


def _sample(made: Made, pairs: int | None, clusters: ArrayLike | None, d: int) -> _Sample:
    p = made.pairs.p[0].cpu().numpy()
    equal = bool(np.allclose(p, p[0], rtol=1e-9, atol=0))
    if pairs is None:
        if not equal and clusters is None:
            raise ValueError(
                "the fit was given weights, from which the number of pairs is not seen. Say it, as"
                " in infer(found, pairs=1000)."
            )
        pairs = len(p)
    n = pairs
    members: tuple[Places, ...] = ()
    if clusters is not None:
        members = check_groupings(clusters, len(p))
        if n != len(p):
            raise ValueError(
                f"clusters are of the rows, but these are {len(p)} rows for {n} pairs: fit the"
                " pairs themselves, one row each, with their own weights."
            )
    sample = _Sample(p, n, members, np.arange(len(p)))
    if sample.units < d + 2:
        raise ValueError(
            f"{sample.units} independent pairs or clusters are too few for {d} features: at least"
            f" {d + 2} are needed, and many more for the limit to be near."
        )
    return sample


def _distinct(found: Fit, made: Made, sample: _Sample) -> tuple[Fit, Made, _Sample]:
    """The same with each atom once: listed twice, it would leave open how its copies share a
    multiplier, and count as two atoms that are seen half as often."""
    few = merged(made.pairs, made.set)
    if few is None:
        return found, made, sample
    pairs, rows, atom = few
    ball = None if made.set is None else made.set.on_rows(rows)
    made = replace(made, set=ball, pairs=pairs)
    return replace(found, _made=made), made, replace(sample, atom=atom)


# ------------------------------------------------------------------------------------- the choice
def _doubt(moved: Derivative, sample: _Sample) -> str:
    """What the sample leaves open of the law, in words; empty where it is settled."""
    if not moved.linear:
        return "a kink or the bound is met without a multiplier"
    influence = moved.influence
    mass, errors = _masses(moved, sample)
    if (mass < _SURE * errors).any():
        return "a multiplier of a kink is within two standard errors of 0"
    near = moved.room < np.inf
    if (moved.room[near] < _SURE * sample.errors(influence @ moved.spare[near].T)).any():
        return "another kink is within two standard errors"
    return ""


def _masses(moved: Derivative, sample: _Sample) -> tuple[Array, Array]:
    """The multipliers of kinks and walls, and what is left to the atoms' own pieces, with their
    standard errors."""
    if not len(moved.held):
        return np.zeros(0), np.zeros(0)
    by_mass, own = moved.multiplier_influence, np.unique(moved.owner[moved.owner >= 0])
    rest = (np.arange(len(by_mass))[:, None] == own).astype(float)
    for k, atom in enumerate(own):
        rest[:, k] -= by_mass[:, moved.owner == atom].sum(1)
    return np.append(moved.mass, moved.base[own]), sample.errors(np.hstack([by_mass, rest]))


def _off_a_doubtful_sphere(moved: Derivative, sample: _Sample) -> Derivative:
    """Without the bound where its multiplier is not surely positive: the fit's error is then the
    projection of the one without it, which is the longer one, so that the region is wide enough."""
    if moved.linear and SPHERE in moved.owner:
        mass, errors = _masses(moved, sample)
        k = int(np.flatnonzero(moved.owner == SPHERE)[0])
        if mass[k] < _SURE * errors[k]:
            return moved.off_the_sphere()
    return moved


def _seldom(
    found: Fit, made: Made, sample: _Sample, level: float, resamples: int, seed: int
) -> Inference:
    """The law is one of atoms, and they were not seen often."""
    assert made.set is not None
    if made.set.facts.atoms:
        raise ValueError(
            f"{type(made.set).__name__} has its atoms for all that there is, and {sample.pairs}"
            f" pairs on {made.pairs.p.shape[1]} atoms are fewer than {_SEEN} each: how the atoms"
            " themselves vary is not known to it. Join similar pairs into one atom with a weight,"
            " or use WassersteinFree."
        )
    why = "the worst case jumps at single pairs"
    return _resampled(found, made, sample, level, resamples, seed, why)


def _resampled(
    found: Fit, made: Made, sample: _Sample, level: float, count: int, seed: int, why: str
) -> Inference:
    """By the fits to smaller samples: sqrt(m) times their error has the law of sqrt(n) times ours.

    Bickel, Götze and van Zwet (1997), Statistica Sinica 7.
    """
    if len(sample.members) > 1:
        raise ValueError(
            f"{why}, so that the law need not be normal, and smaller samples are drawn for one"
            " grouping only. Give the one whose groups matter more."
        )
    weights, m = sample.smaller(count, seed)
    u = made.pairs.ut[0].T
    reference = made.domain.theta_ref
    bound = made.domain.bound if made.bounded else None
    again = fit(
        u, made.set, torch.from_numpy(weights), beta=made.beta, bound=bound, theta_ref=reference
    )
    theta = found.theta.numpy()
    draws = (again.theta.numpy() - theta) * np.sqrt(m / sample.units)
    return Inference(
        theta,
        _spread(draws),
        _symmetric(theta, draws, level),
        level,
        "m out of n",
        why,
        found.names,
        sample.units,
        draws,
        float(np.quantile(np.linalg.norm(draws, axis=1), level)),
    )


def _spread(draws: Array) -> Array:
    """(d, d) covariance that a few draws (count, d) do not move, however far they are out."""
    low, high = np.quantile(draws, [_TAIL, 1 - _TAIL], axis=0)
    scale = (high - low) / (norm.ppf(1 - _TAIL) - norm.ppf(_TAIL))
    held = scale <= 0  # most draws are one number, as where most samples collapse
    scale[held] = np.sqrt(np.mean(draws[:, held] ** 2, axis=0))
    inner = np.where(held, draws, draws.clip(low, high))
    inner = inner - inner.mean(0)
    size = np.sqrt((inner**2).mean(0))
    size[size == 0] = 1.0
    inner /= size
    found = inner.T @ inner / len(draws) * np.outer(scale, scale)
    np.fill_diagonal(found, scale**2)
    return found


def _symmetric(theta: Array, draws: Array, level: float) -> Array:
    """(d, 2) intervals from draws of the fit less theta, by their sizes, as the region has it.

    Next to collapse, or on the bound, the fit lies at an edge and all draws on one side of it,
    where the target may lie, too: intervals that reflect them (theta less their quantiles) would
    then never hold it.
    """
    reach = np.quantile(np.abs(draws), level, axis=0)
    return np.stack([theta - reach, theta + reach], 1)
