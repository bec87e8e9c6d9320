"""How many labels are flipped: the number that cDPO and rDPO ask for, estimated with an interval.

Where a label is turned round with the chance eps, whatever the pair, the answers follow

    P(y = 1 | z) = eps + (1 - 2 eps) sigma(theta.z),

the binary response with misclassified answers of Hausman, Abrevaya and Scott-Morton (1998), Journal
of Econometrics 87, with both of their rates equal; item response theory knows eps as guessing and
slipping, and rDPO, arXiv:2403.00409, takes it as given. It is where the choice curve levels off,
and so told by pairs of large margins: where all are small, eps and a smaller theta look alike, and
an answer says that it is not identified. It is the flip rate as far as the log-linear model is
true. A missing feature, or people who differ, flatten the curve, too.

Several labels of the same pair tell less: see `disagreement`.
"""

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit, log_expit, rel_entr
from scipy.stats import chi2

from theory.batch import ArrayLike, pair_batch
from theory.checks import as_array, check_level
from theory.policy import Array
from theory.separable import separation

_TOP = 0.499  # largest rate that is fitted: at 1/2 the labels say nothing
_WIDE = 0.2  # length of an interval from which the rate counts as not told; there are 0.5 in all
_PAIRS = (
    10  # for each parameter, below which the law of the likelihood ratio is not to be relied on
)
_STEEP = 3.0  # a margin from which the answer is nearly certain: sigma(3) = 0.95
_FAR = 1e3  # largest coefficient, in units of 1/root mean square of its column
_TRIES = 5  # of profiles, where one of them finds a better fit than the last
_STEP = 0.02  # in which a profile is followed outwards


@dataclass(frozen=True, eq=False)
class FlipRate:
    """The chance that a label is turned round.

    Attributes:
        estimate: of maximum likelihood, in [0, 1/2).
        low, high: ends of the profile-likelihood interval.
        identified: whether the data tell the rate, the interval being short; if not, `why` says
            what they lack. Where the margins are small and the interval short by luck, it covers
            less than its level.
        why: what the interval rests on, in a sentence.
        level: of the interval.
        pairs: n.
        coef: (d,) theta of the same fit, of margins theta.z without a beta.

    >>> import numpy as np
    >>> from theory import estimate_flip_rate
    >>> rng = np.random.default_rng(0)
    >>> z = 4 * rng.normal(size=(2000, 1))
    >>> y = (rng.random(2000) < 1 / (1 + np.exp(-z[:, 0]))) ^ (rng.random(2000) < 0.1)
    >>> found = estimate_flip_rate((2 * y[:, None] - 1) * z)
    >>> found.identified, found.low < 0.1 < found.high
    (True, True)
    """

    estimate: float
    low: float
    high: float
    identified: bool
    why: str
    level: float
    pairs: int
    coef: Array

    def __repr__(self) -> str:
        interval = f"{self.level:.0%} interval {self.low:.3f} to {self.high:.3f}"
        if not self.identified:
            return f"flip rate not identified ({interval}): {self.why}"
        return f"flip rate {self.estimate:.3f}, {interval}: {self.why}"


@dataclass(frozen=True)
class Disagreement:
    """How often two labels of the same pair differ, and what that says of flips.

    Attributes:
        rate: D, the mean over pairs of the chance that two of its labels differ.
        low, high: ends of its interval.
        flips_at_most: (1 - sqrt(1 - 2 high))/2, which the flip rate does not exceed at the level of
            the interval.
        pairs: how many have several labels.
        level: of the interval.

    >>> from theory import disagreement
    >>> found = disagreement(["a", "a", "b", "b"], [1, 0, 1, 1])
    >>> found.rate, found.pairs
    (0.5, 2)
    """

    rate: float
    low: float
    high: float
    flips_at_most: float
    pairs: int
    level: float


def estimate_flip_rate(u: ArrayLike, *, level: float = 0.95) -> FlipRate:
    """The flip rate eps of labels that follow eps + (1 - 2 eps) sigma(theta.z), and theta, by
    maximum likelihood.

    Hausman, Abrevaya and Scott-Morton (1998), with one rate. The interval is that of the profile
    likelihood, {eps : 2 (l_max - l(eps)) <= chi2 quantile}, which knows that rates are not
    negative: where eps = 0 it covers with more than its level, Self and Liang (1987).

    Args:
        u: (n, d) signed feature differences (2y-1)(psi1-psi2), one row a label; ties left out.
        level: of the interval, in (0, 1).

    Returns:
        A `FlipRate`; what `cdpo_loss` and `rdpo_loss` want is its estimate, if it is identified.

    Raises:
        ValueError: pairs that are not finite numbers of this shape.

    >>> import numpy as np
    >>> from theory import estimate_flip_rate
    >>> flat = np.random.default_rng(0).normal(size=(300, 1)) / 10  # all margins are small
    >>> estimate_flip_rate(flat + 0.01).identified
    False
    """
    pairs = _pairs(u)
    return _estimated(pairs, np.zeros(len(pairs), dtype=np.intp), level)[0]


def flip_rates_by_group(
    u: ArrayLike, groups: ArrayLike, *, level: float = 0.95
) -> dict[Hashable, FlipRate]:
    """The flip rate of each annotator, or of any other groups of labels, with one theta for all.

    Args:
        u: (n, d) signed feature differences, as in `estimate_flip_rate`.
        groups: (n,) a name for each label.
        level: of each interval by itself, in (0, 1).

    Returns:
        Name -> `FlipRate`, in the order of the names.

    Raises:
        ValueError: as `estimate_flip_rate`, or groups of another length.

    >>> import numpy as np
    >>> from theory import flip_rates_by_group
    >>> rng = np.random.default_rng(0)
    >>> z, who = 4 * rng.normal(size=(4000, 1)), np.repeat(["ann", "bob"], 2000)
    >>> wrong = rng.random(4000) < np.where(who == "bob", 0.2, 0.0)
    >>> y = (rng.random(4000) < 1 / (1 + np.exp(-z[:, 0]))) ^ wrong
    >>> found = flip_rates_by_group((2 * y[:, None] - 1) * z, who)
    >>> found["bob"].low > found["ann"].high
    True
    """
    pairs = _pairs(u)
    given = np.asarray(groups)
    if given.shape != (len(pairs),):
        raise ValueError(
            f"groups must be ({len(pairs)},), a name for each row of u, got {given.shape}."
        )
    names, member = np.unique(given, return_inverse=True)
    return dict(zip(names.tolist(), _estimated(pairs, member, level), strict=True))


def disagreement(pair: ArrayLike, label: ArrayLike, *, level: float = 0.95) -> Disagreement:
    """How often two labels of the same pair differ.

    With q the chance of a label 1, two labels differ with the chance 2 q (1 - q). Where q = eps +
    (1 - 2 eps) s, s the chance without flips, the mean of it is

        D = 2 eps (1 - eps) + (1 - 2 eps)² E 2 s (1 - s),

    and labels of the same pairs, however many, tell q alone: eps and the noise of the choice itself
    cannot be told apart by them, only that 2 eps (1 - eps) <= D. The interval holds for any n, by
    n KL(rate || D) <= log(2/(1 - level)), Hoeffding (1963), Theorem 1.

    Args:
        pair: (n,) a name of its pair for each label; pairs with a single label are left out. The
            order of the two responses must be the same in all rows of a pair.
        label: (n,) 1 or 0.
        level: of the interval, in (0, 1).

    Returns:
        A `Disagreement`.

    Raises:
        ValueError: labels other than 0 and 1, lengths that differ, or no pair with two labels.

    >>> from theory import disagreement
    >>> found = disagreement([1, 1, 2, 2, 3, 3] * 50, [1, 1, 0, 0, 1, 1] * 50)
    >>> found.rate, found.pairs  # three pairs with a hundred labels each
    (0.0, 3)
    """
    level = check_level(level)
    names, y = np.asarray(pair), as_array(label, "label")
    if y.ndim != 1 or names.shape != y.shape or not np.isin(y, (0, 1)).all():
        raise ValueError(
            f"pair and label must be (n,), and labels 0 or 1; got {names.shape}, {y.shape} and the"
            f" labels {np.unique(y)[:5].tolist()}. Leave ties out."
        )
    _, member = np.unique(names, return_inverse=True)
    ones, count = np.bincount(member, y), np.bincount(member)
    several = count > 1
    n = int(several.sum())
    if n == 0:
        raise ValueError(
            f"none of the {len(count)} pairs has two labels. Repeats are rows with the same name of"
            " their pair."
        )
    ones, count = ones[several], count[several]
    rate = float(np.mean(2 * ones * (count - ones) / (count * (count - 1))))
    reach = np.log(2 / (1 - level)) / n

    def beyond(other: float) -> float:
        return float(rel_entr(rate, other) + rel_entr(1 - rate, 1 - other)) - reach

    low = 0.0 if rate == 0 else brentq(beyond, 1e-300, rate)
    high = 1.0 if rate == 1 or beyond(1 - 1e-12) < 0 else brentq(beyond, rate, 1 - 1e-12)
    most = 0.5 if high >= 0.5 else (1 - np.sqrt(1 - 2 * high)) / 2
    return Disagreement(rate, float(low), float(high), float(most), n, level)


# -------------------------------------------------------------------------------------- likelihood
class _Likelihood:
    """-log likelihood of (theta, eps of each group), theta in units of its columns."""

    def __init__(self, u: Array, member: NDArray[np.intp]) -> None:
        size = np.sqrt(np.mean(u**2, 0))
        self.unit = np.where(size > 0, size, 1.0)
        self.u, self.member = u / self.unit, member
        self.groups = int(member.max()) + 1

    def __call__(self, x: Array) -> tuple[float, Array]:
        d = self.u.shape[1]
        eps, margin = x[d:][self.member], self.u @ x[:d]
        with np.errstate(divide="ignore"):  # log 0, of no flips
            log_p = np.logaddexp(np.log(eps), np.log1p(-2 * eps) + log_expit(margin))
        slope = np.exp(np.log1p(-2 * eps) + log_expit(margin) + log_expit(-margin) - log_p)
        by_eps = (1 - 2 * expit(margin)) * np.exp(np.minimum(-log_p, 600.0))
        gradient = np.concatenate([self.u.T @ slope, np.bincount(self.member, by_eps)])
        return -float(log_p.sum()), -gradient

    def minimised(self, start: Array, held: tuple[int, float] | None = None) -> tuple[float, Array]:
        """From a start; with the rate of one group held."""
        d = self.u.shape[1]
        bounds = [(-_FAR, _FAR)] * d + [(0.0, _TOP)] * self.groups
        x = start.copy()
        if held is not None:
            x[d + held[0]] = held[1]
            bounds[d + held[0]] = (held[1], held[1])
        found = minimize(
            self,
            x,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"ftol": 1e-13, "gtol": 1e-7, "maxiter": 2000, "maxfun": 5000},
        )
        return float(found.fun), found.x


def _estimated(u: Array, member: NDArray[np.intp], level: float) -> list[FlipRate]:
    level = check_level(level)
    likelihood = _Likelihood(u, member)
    d, count = u.shape[1], likelihood.groups
    plain = likelihood.minimised(np.zeros(d + count), None if count > 1 else (0, 0.0))[1][:d]
    starts = [
        np.append(stretch * plain, np.full(count, eps))
        for eps, stretch in ((0.01, 1.0), (0.15, 1.5), (0.35, 3.0))
    ]
    best = min((likelihood.minimised(x) for x in starts), key=lambda found: found[0])
    for _ in range(_TRIES):
        profiles = [_Profile(likelihood, best, group, level) for group in range(count)]
        ends = [profile.interval() for profile in profiles]
        better = min((profile.seen for profile in profiles), key=lambda found: found[0])
        if better[0] > best[0] - 1e-6:
            break
        best = likelihood.minimised(better[1])  # the likelihood has several maxima
    apart = separation(u)
    margin = np.abs(likelihood.u @ best[1][:d])
    found = []
    for group, (low, high) in enumerate(ends):
        own = member == group
        why = _lack(int(own.sum()), d, low, high, margin[own], apart is not None)
        steep = f"{int((margin[own] > _STEEP).sum())} of {int(own.sum())} margins are above 3"
        found.append(
            FlipRate(
                float(best[1][d + group]),
                low,
                high,
                not why,
                why or steep,
                level,
                int(own.sum()),
                best[1][:d] / likelihood.unit,
            )
        )
    return found


class _Profile:
    """2 (l_max - l(eps)) of one group's rate, followed outwards from the best fit."""

    def __init__(
        self, likelihood: _Likelihood, best: tuple[float, Array], group: int, level: float
    ) -> None:
        self.likelihood, self.group = likelihood, group
        self.least, self.at = best
        self.seen = best  # the best that is met on the way
        self.limit = float(chi2.ppf(level, 1))

    def interval(self) -> tuple[float, float]:
        """Its two ends; 0 and 1/2 where it does not end before."""
        return self._end(-1), self._end(1)

    def _end(self, sign: int) -> float:
        place = len(self.at) - self.likelihood.groups + self.group
        inside, x = float(self.at[place]), self.at
        edge = 0.0 if sign < 0 else _TOP
        while inside != edge:
            outside = max(edge, inside - _STEP) if sign < 0 else min(edge, inside + _STEP)
            value, there = self._excess(outside, x)
            if value > 0:
                return float(
                    brentq(lambda eps, x: self._excess(eps, x)[0], inside, outside, (x,), 1e-5)
                )
            inside, x = outside, there
        return edge if sign < 0 else 0.5

    def _excess(self, eps: float, start: Array) -> tuple[float, Array]:
        value, x = self.likelihood.minimised(start, (self.group, eps))
        self.seen = min(self.seen, (value, x), key=lambda found: found[0])
        return 2 * (value - self.least) - self.limit, x


def _lack(n: int, d: int, low: float, high: float, margin: Array, separable: bool) -> str:
    """What the data lack to tell the rate; nothing where they do."""
    if separable:
        return (
            "the pairs are separable, so that no label speaks against some theta and none is seen"
            " to be wrong; leave columns out, or add pairs"
        )
    if n < _PAIRS * (d + 1):
        return (
            f"{n} pairs are too few for {d + 1} parameters; there should be {_PAIRS * (d + 1)} at"
            " least"
        )
    if high - low > _WIDE:
        steep = int((margin > _STEEP).sum())
        return (
            "the likelihood is nearly as large at many rates: a rate shows where margins are large,"
            f" and {steep} of {n} are above {_STEEP:g}; add pairs that are easy to tell apart"
        )
    return ""


def _pairs(u: ArrayLike) -> Array:
    batch = pair_batch(u, None)
    if batch.replicates != 1:
        raise ValueError(
            f"u holds {batch.replicates} samples: give one of them, (n, d), at a time."
        )
    return batch.ut[0].T.cpu().numpy()
