"""Does one sample of rewards dominate another? A certificate for any law, and an interval from a
limit law. Theorems H2 and H3, docs/theorems/aot.md.

    found = dominance(chosen, rejected, low=0.0, high=1.0)
    found.first.certificate  # with probability 0.95 the violation is at most this, for any law
    found.first.ratio, found.first.interval  # almost stochastic dominance

U dominates V in the first order if Q_U >= Q_V at every level, in the second if the integrals of
Q_U from 0 to every level are. The violation is what is missing. Certificate: derived, from the
bands of Dvoretzky, Kiefer and Wolfowitz with the constant of Massart (1990). Ratio: del Barrio,
Cuesta-Albertos and Matran (2018) and Dror, Shlomov and Reichart (ACL 2019); second order: Nitsure
et al. (ICML 2024).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import erfc, expit, logit
from scipy.stats import norm

from theory.batch import ArrayLike
from theory.checks import as_array, check_clusters, check_level, check_number
from theory.policy import Array
from theory.transport import positive_power_mean

_LARGEST = 8e307  # reward in magnitude, whose differences are numbers


@dataclass(frozen=True)
class Violation:
    """Of dominance of one order, in the unit of the rewards (second order: unit times level).

    violation: of the samples, int (Q_V - Q_U)_+ dt, or int (int_0^t Q_V - Q_U)_+ dt. certificate:
    upper bound on that of the laws over the levels `levels`, None where there are no such levels,
    or, in the second order, not all of them: bounds on the rewards or more of them are needed.
    ratio: violation of squares over all squares, 0 if U dominates V, 1 if V dominates U, None where
    the two samples are equal. interval: of the laws' ratio, by the limit law on the scale of
    log-odds, for laws whose ratio is neither 0 nor 1: where one dominates the other, or both are
    equal, the ratio of samples need not be normal, and the interval says nothing; None where the
    samples' own ratio is 0 or 1.
    """

    violation: float
    certificate: float | None
    ratio: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Dominance:
    """Of the chosen rewards over the rejected ones.

    first, second: by order. levels: of the first order's certificate; (0, 1) where the rewards are
    bounded. band: widths of the bands of the two distribution functions. from_pairs: another
    certificate of the first order, from pairs and bounds, None without them; smaller where the two
    rewards of a pair are near each other. level: of certificates and intervals, each.
    """

    first: Violation
    second: Violation
    levels: tuple[float, float]
    band: tuple[float, float]
    from_pairs: float | None
    level: float


@dataclass(frozen=True)
class _Sample:
    """Atoms in ascending order (n,), and the distribution function at them (n,)."""

    atoms: Array
    top: Array

    def quantile(self, levels: Array) -> Array:
        """Q(t) = inf {x : F(x) >= t}."""
        place = self.top.searchsorted(levels).clip(max=len(self.top) - 1)
        return self.atoms[place]


def dominance(
    chosen: ArrayLike,
    rejected: ArrayLike,
    *,
    level: float = 0.95,
    low: float | None = None,
    high: float | None = None,
    paired: bool = False,
    clusters: ArrayLike | None = None,
) -> Dominance:
    """How far chosen rewards are from dominating rejected ones, in the first and second order.

    The certificate holds for every law and sample size if the draws *within* each sample are
    independent and of one law (or the clusters are); the two samples may depend on each other in
    any way. The interval holds for large samples, for laws with positive densities of which neither
    dominates the other (Theorem H3).

    Args:
        chosen, rejected: (n,) and (m,) rewards of held-out responses, not of those that the policy
            was trained on.
        level: probability that the certificate holds, and coverage of the interval.
        low, high: bounds on all rewards of the laws, not of the samples; None where there are none:
            the certificate is then of the levels away from that end.
        paired: chosen[i] and rejected[i] belong together; the interval then uses it.
        clusters: (n,) labels of pairs that depend on each other; implies paired. Each cluster
            counts the same, and the law is that of a random pair of a random cluster.

    Returns:
        A `theory.stochastic_dominance.Dominance`.

    Raises:
        ValueError: rewards or bounds that are not finite, rewards not between low and high, samples
            of different lengths that are said to be paired, fewer than two rewards or clusters,
            missing labels, or a level outside (0, 1).

    >>> import numpy as np
    >>> from theory import dominance
    >>> rng = np.random.default_rng(0)
    >>> found = dominance(rng.beta(4, 2, 2000), rng.beta(2, 4, 2000), low=0.0, high=1.0)
    >>> found.first.violation, round(found.first.certificate, 4)
    (0.0, 0.0046)
    """
    u, v = _rewards("chosen", chosen, low, high), _rewards("rejected", rejected, low, high)
    level = check_level(level)
    if (paired or clusters is not None) and len(u) != len(v):
        raise ValueError(
            f"paired samples have the same length, got {len(u)} chosen and {len(v)} rejected"
            " rewards. Leave out paired and clusters, or the rewards without a partner."
        )
    label = None if clusters is None else check_clusters(clusters, len(u))
    if label is None:
        p, q = np.full(len(u), 1 / len(u)), np.full(len(v), 1 / len(v))
        band = band_width(len(u), (1 - level) / 2), band_width(len(v), (1 - level) / 2)
    else:
        sizes = np.bincount(label)
        p = q = 1 / (len(sizes) * sizes[label])
        wide = band_width(len(sizes), (1 - level) / 2, clustered=bool((sizes > 1).any()))
        band = wide, wide
    if paired and label is None:
        label = np.arange(len(u))
    orders = u.argsort(kind="stable"), v.argsort(kind="stable")
    samples = (
        _Sample(u[orders[0]], _levels(p[orders[0]])),
        _Sample(v[orders[1]], _levels(q[orders[1]])),
    )
    upper, upper_second, levels = _certificates(*samples, band, low, high)
    z = float(norm.isf((1 - level) / 2))
    # the ratio has no unit: in this one its squares neither overflow nor vanish
    unit = _power_of_two(*samples)
    scaled = tuple(_Sample(sample.atoms / unit, sample.top) for sample in samples)
    found = []
    for certificate, of_order in ((upper, _first_order), (upper_second, _second_order)):
        violation, ratio, *influences = of_order(*scaled)
        phi, psi = (
            weight * x[order.argsort()]
            for x, weight, order in zip(influences, (p, q), orders, strict=True)
        )
        if label is None:
            error = math.hypot(float(np.linalg.norm(phi)), float(np.linalg.norm(psi)))
        else:
            sums = np.bincount(label, phi + psi)
            error = float(np.linalg.norm(sums)) * math.sqrt(len(sums) / (len(sums) - 1))
        found.append(Violation(violation * unit, certificate, ratio, _interval(ratio, error, z)))
    from_pairs = None
    if label is not None and low is not None and high is not None:
        width = _pairs_width(u - v, label, high - low, 1 - level)
        from_pairs = min(found[0].violation + width, high - low)  # no law has a larger violation
    return Dominance(found[0], found[1], levels, band, from_pairs, level)


def band_width(n: int, delta: float, *, clustered: bool = False) -> float:
    """e with P(F <= F_n + e everywhere) >= 1 - delta, for n independent draws or clusters.

    Independent draws: sqrt(log(1/delta)/2n), Massart (1990), for delta <= 1/2. Clusters: F_n is a
    mean over the ways to take one draw of each, to whose widths Markov's inequality is applied;
    derived, Theorem H2.

    >>> round(band_width(1000, 0.025), 5), round(band_width(1000, 0.025, clustered=True), 5)
    (0.04295, 0.04818)
    """
    if n < 1 or not 0 < delta <= 0.5:
        raise ValueError(f"n must be at least 1 and delta in (0, 1/2], got {n} and {delta}.")
    if not clustered:
        return math.sqrt(math.log(1 / delta) / (2 * n))
    # P(mean of widths > e) <= E (X - a)_+ / (e - a), E (X - a)_+ <= int_a^oo exp(-2 n s²) ds
    start = math.sqrt(math.log(2))  # from where Massart's inequality holds
    found = minimize_scalar(
        lambda a: a + math.sqrt(math.pi) / 2 * erfc(a) / delta,
        bounds=(start, 10.0),
        method="bounded",
    )
    return float(found.fun) / math.sqrt(2 * n)


# ------------------------------------------------------------------------------------ certificates
def _certificates(
    u: _Sample, v: _Sample, band: tuple[float, float], low: float | None, high: float | None
) -> tuple[float | None, float | None, tuple[float, float]]:
    """int (Q_V,m(s + e_m) - Q_U,n(s - e_n))_+ ds, the same of the integrals, which need all levels,
    and the levels s of the first; None where there are none."""
    start, end = (band[0] if low is None else 0.0), (1 - band[1] if high is None else 1.0)
    if start >= end:
        return None, None, (start, start)
    # the least quantiles of U and the largest of V that the bands allow
    least = _Sample(
        np.append(-np.inf if low is None else low, u.atoms), np.append(band[0], u.top + band[0])
    )
    most = _Sample(
        np.append(v.atoms, np.inf if high is None else high), np.append(v.top - band[1], 1.0)
    )
    knots, gap = _gaps(least, most, start, end)
    first = float(np.diff(knots) @ np.maximum(-gap, 0))
    whole = low is not None and high is not None
    return first, _negative_part(knots, _integrated(knots, gap), 1) if whole else None, (start, end)


def _pairs_width(gap: Array, label: NDArray[np.intp], span: float, delta: float) -> float:
    """Theorem H2': what the violation can be above that of the sample, for gaps u - v of pairs in
    [-span, span]. Empirical Bernstein, Maurer and Pontil (2009), Theorem 4, of the clusters'
    means."""
    sizes = np.bincount(label)
    largest = np.bincount(label, np.abs(gap)) / sizes  # at least |f(v) - f(u)|, f 1-Lipschitz
    n, share = len(sizes), math.log(2 / delta)
    variance = float(largest @ largest) / (n - 1)
    return math.sqrt(2 * variance * share / n) + 14 * span * share / (3 * (n - 1))


# ------------------------------------------------------------------------- almost dominance, limit
def _first_order(u: _Sample, v: _Sample) -> tuple[float, float | None, Array, Array]:
    """Violation, ratio, and the influence of each reward, in order, on the ratio.

    Between two atoms the potential of the ratio's cost k(t) = (-t)_+² - ratio t² rises as k against
    the other sample's quantile at their level.
    """
    knots, gap = _gaps(u, v)
    mass = np.diff(knots)
    violation = float(mass @ np.maximum(-gap, 0))
    everything = float(mass @ gap**2)
    if not everything > 0:
        return violation, None, np.zeros_like(u.top), np.zeros_like(v.top)
    ratio = float(mass @ np.minimum(gap, 0) ** 2) / everything

    def influence(own: _Sample, other: _Sample, sign: int) -> Array:
        against = other.quantile(own.top[:-1])
        ends = sign * (np.stack([own.atoms[:-1], own.atoms[1:]]) - against)
        cost = np.minimum(ends, 0) ** 2 - ratio * ends**2
        return _centred(np.diff(cost, axis=0)[0], own) / everything

    return violation, ratio, influence(u, v, 1), influence(v, u, -1)


def _second_order(u: _Sample, v: _Sample) -> tuple[float, float | None, Array, Array]:
    """The same for D(t) = int_0^t Q_U - Q_V.

    More mass in x moves the integrated quantile at t by t q - (q - x)_+ less its value, q the
    quantile: the potential has the slope K(F(x)) in x, K(s) = int_s^1 k'(D(t)) dt.
    """
    knots, gap = _gaps(u, v)
    D = _integrated(knots, gap)
    violation = _negative_part(knots, D, 1)
    everything = _negative_part(knots, D, 2) + _negative_part(knots, -D, 2)
    if not everything > 0:
        return violation, None, np.zeros_like(u.top), np.zeros_like(v.top)
    ratio = _negative_part(knots, D, 2) / everything
    slope = -2 * _negative_means(D, 1) - ratio * (D[:-1] + D[1:])  # means of k'(D) on the pieces
    rest = np.append((slope * np.diff(knots))[::-1].cumsum()[::-1], 0.0)

    def influence(own: _Sample, sign: int) -> Array:
        steps = np.diff(own.atoms) * np.interp(own.top[:-1], knots, rest)
        return sign * _centred(steps, own) / everything

    return violation, ratio, influence(u, 1), influence(v, -1)


def _centred(steps: Array, sample: _Sample) -> Array:
    """The potential with these steps between atoms, less its mean."""
    potential = np.append(0.0, steps.cumsum())
    return potential - np.diff(sample.top, prepend=0.0) @ potential


def _interval(ratio: float | None, error: float, z: float) -> tuple[float, float] | None:
    """On the scale of log-odds, where small samples are nearer to normal."""
    if ratio is None or not 0 < ratio < 1:
        return None
    reach = z * error / (ratio * (1 - ratio))
    return float(expit(logit(ratio) - reach)), float(expit(logit(ratio) + reach))


# ----------------------------------------------------------------------------------------- helpers
def _gaps(u: _Sample, v: _Sample, start: float = 0.0, end: float = 1.0) -> tuple[Array, Array]:
    """Levels between which both quantile functions are constant (k + 1,), and Q_U - Q_V there
    (k,)."""
    knots = np.unique(np.clip(np.concatenate([[start, end], u.top, v.top]), start, end))
    middle = (knots[:-1] + knots[1:]) / 2
    return knots, u.quantile(middle) - v.quantile(middle)


def _integrated(knots: Array, gap: Array) -> Array:
    """D(t) = int_0^t Q_U - Q_V at the knots."""
    return np.append(0.0, (gap * np.diff(knots)).cumsum())


def _negative_means(D: Array, power: int) -> Array:
    """Means of (-D)_+^power on the pieces between the knots, linear on each."""
    ends = torch.from_numpy(-D)
    return positive_power_mean(ends[:-1], ends[1:], power).numpy()


def _negative_part(knots: Array, D: Array, power: int) -> float:
    """int (-D)_+^power."""
    return float(np.diff(knots) @ _negative_means(D, power))


def _rewards(name: str, x: ArrayLike, low: float | None, high: float | None) -> Array:
    """At least two finite rewards between the bounds."""
    rewards = as_array(x, name)
    if rewards.ndim != 1 or len(rewards) < 2:
        raise ValueError(
            f"{name} must be at least two rewards, one number each, got shape {rewards.shape}."
        )
    bad = np.flatnonzero(~np.isfinite(rewards))
    if len(bad):
        raise ValueError(
            f"{name} holds {len(bad)} entries that are NaN or infinite among {len(rewards)}, the"
            f" first at {bad[0] + 1}. Leave them out only if that does not depend on the reward."
        )
    if np.abs(rewards).max() > _LARGEST:
        raise ValueError(
            f"{name} has a reward of magnitude {np.abs(rewards).max():.3g}, above {_LARGEST:g}:"
            " differences of such overflow. Take another unit."
        )
    for bound, sign in ((low, 1), (high, -1)):
        if bound is None:
            continue
        number = check_number("low" if sign > 0 else "high", bound)
        if not math.isfinite(number):
            raise ValueError(
                f"low and high must be finite, got {number:g}. Pass None for an end without one."
            )
        worst = float((sign * rewards).min()) * sign
        if not sign * worst >= sign * number:
            raise ValueError(
                f"{name} has the reward {worst:g} beyond the bound {number:g}: low and high must"
                " bound every reward that can be drawn. Pass None for an end without a bound."
            )
    return rewards


def _power_of_two(u: _Sample, v: _Sample) -> float:
    """Near the largest reward less the least: dividing by it is exact."""
    ends = [end for sample in (u, v) for end in (sample.atoms[0], sample.atoms[-1])]
    return math.ldexp(1.0, max(math.frexp(max(ends) / 2 - min(ends) / 2)[1], -1000))


def _levels(mass: Array) -> Array:
    """Distribution function from masses in order, exactly 1 at the end."""
    top = mass.cumsum()
    return top / top[-1]
