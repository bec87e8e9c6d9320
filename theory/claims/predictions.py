"""Judges of predictions: a quantile, a mean, or a ratio of means against the one that a law
predicts."""

import math

import numpy as np
from scipy.stats import binom

from theory.claims.ledger import Measurement, Verdict, binomial_interval
from theory.policy import Array

_SAME = 1e-9  # relative, below which two errors are one number


def quantile_interval(
    found: Array, share: float, level: float = 0.99
) -> tuple[float, float, float]:
    """A quantile of `found` with an interval from order statistics, which assumes no law."""
    ordered, count, tail = np.sort(found), len(found), (1 - level) / 2
    low, high = binom.ppf([tail, 1 - tail], count, share).astype(int)
    return (
        float(np.quantile(ordered, share)),
        float(ordered[max(low - 1, 0)]),
        float(ordered[min(high, count - 1)]),
    )


def predicted_quantile(
    what: str,
    found: Array,
    predicted: float,
    margin: float,
    *,
    tail: float = 0.05,
    level: float = 0.99,
    widest: float = 0.5,
    law: Array | None = None,
) -> Measurement:
    """The 1 - tail quantile of `found` against the one that a law predicts.

    Refuted where the interval of measured/predicted at `level` is outside 1 ± margin, inconclusive
    where it is wider than `widest`. An interval without width tells nothing of its error: so many
    of the samples are one number, such as fits that collapsed, that the quantile can only be that
    number. There the law's distribution function is judged instead, from draws of it (`law`, in the
    unit of `found`).
    """
    middle, low, high = quantile_interval(found / predicted, 1 - tail, level)
    if np.isfinite(high) and high - low <= _SAME * high:
        return _at_one_number(what, found, high * predicted, predicted, margin, law)
    return _predicted(f"{what}, {100 * (1 - tail):g} % quantile", middle, low, high, margin, widest)


def _at_one_number(
    what: str, found: Array, value: float, predicted: float, margin: float, law: Array | None
) -> Measurement:
    """The shares of `found` below and up to a number that many of them are, with binomial
    intervals, against the share that the law has below it, its scale ± margin."""
    count, what = len(found), f"{what}, distribution function where samples coincide"
    below = int((found < value * (1 - _SAME)).sum())
    upto = int((found <= value * (1 + _SAME)).sum())
    figure = (
        f"{upto - below} of {count} samples are {value / predicted:.3f} of the predicted quantile"
    )
    if law is None:
        return Measurement(
            what, Verdict.INCONCLUSIVE, figure, decides="the law's distribution function there"
        )
    least, middle, most = (
        float((law <= value / unit).mean()) for unit in (1 + margin, 1.0, 1 - margin)
    )
    low, high = binomial_interval(below, count)[0], binomial_interval(upto, count)[1]
    figure += (
        f", {below / count:.3f} below it and {upto / count:.3f} up to it [{low:.3f}, {high:.3f}],"
        f" predicted {middle:.3f} [{least:.3f}, {most:.3f}]"
    )
    if not (low <= most and high >= least):
        return Measurement(what, Verdict.REFUTED, figure, counterexample=f"{what}: {figure}")
    if binomial_interval(upto - below, count)[0] > margin:  # no continuous law is near that
        return Measurement(what, Verdict.INCONCLUSIVE, figure, decides="more pairs in a sample")
    return Measurement(what, Verdict.HOLDS, figure)


def predicted_mean(what: str, found: Array, predicted: float, margin: float) -> Measurement:
    """The mean of `found` against the one that a law predicts."""
    ratio = float(found.mean()) / predicted
    reach = 2.58 * float(found.std()) / math.sqrt(len(found)) / predicted
    return _predicted(f"{what}, mean", ratio, ratio - reach, ratio + reach, margin)


def _predicted(
    what: str, ratio: float, low: float, high: float, margin: float, widest: float = 0.5
) -> Measurement:
    """Refuted where the interval of measured/predicted is outside 1 ± margin."""
    figure = f"measured/predicted {ratio:.3f} [{low:.3f}, {high:.3f}], allowed 1 +- {margin:g}"
    if not (low <= 1 + margin and high >= 1 - margin):  # nor is a NaN a prediction
        return Measurement(
            what, Verdict.REFUTED, figure, counterexample=f"{what}: a ratio of {ratio:.3f}"
        )
    if high - low > widest or high <= low:
        return Measurement(what, Verdict.INCONCLUSIVE, figure, decides="more replicates")
    return Measurement(what, Verdict.HOLDS, figure)


def ratio_of_means(
    what: str, top: Array, bottom: Array, predicted: float, room: float
) -> Measurement:
    """A ratio of means over the same samples against a prediction, within four standard errors and
    `room`."""
    ratio = float(top.mean() / bottom.mean())
    error = float((top - ratio * bottom).std(ddof=1) / math.sqrt(len(top)) / bottom.mean())
    figure = f"{ratio:.3f} ± {error:.3f}, predicted {predicted:.3f}"
    if error == 0:  # all samples the same: no error can be seen from them
        return Measurement(what, Verdict.INCONCLUSIVE, figure, decides="samples that differ")
    if abs(ratio - predicted) <= 4 * error + room:
        return Measurement(what, Verdict.HOLDS, figure)
    return Measurement(what, Verdict.REFUTED, figure, counterexample=figure)
