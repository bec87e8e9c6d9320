"""Judges of predictions: a quantile, a mean, or a ratio of means against the one that a law
predicts."""

import math

import numpy as np
from scipy.stats import binom

from theory.claims.ledger import Measurement, Verdict
from theory.policy import Array


def predicted_quantile(
    what: str, found: Array, predicted: float, margin: float, *, tail: float = 0.05
) -> Measurement:
    """The 1 - tail quantile of `found` against the one that a law predicts, with an interval from
    order statistics, which assumes no law."""
    ordered, count = np.sort(found) / predicted, len(found)
    low, high = binom.ppf([0.005, 0.995], count, 1 - tail).astype(int)
    return _predicted(
        f"{what}, {100 * (1 - tail):g} % quantile",
        float(np.quantile(ordered, 1 - tail)),
        float(ordered[max(low - 1, 0)]),
        float(ordered[min(high, count - 1)]),
        margin,
    )


def predicted_mean(what: str, found: Array, predicted: float, margin: float) -> Measurement:
    """The mean of `found` against the one that a law predicts."""
    ratio = float(found.mean()) / predicted
    reach = 2.58 * float(found.std()) / math.sqrt(len(found)) / predicted
    return _predicted(f"{what}, mean", ratio, ratio - reach, ratio + reach, margin)


def _predicted(what: str, ratio: float, low: float, high: float, margin: float) -> Measurement:
    """Refuted where the 99 % interval of measured/predicted is outside 1 ± margin."""
    figure = f"measured/predicted {ratio:.3f} [{low:.3f}, {high:.3f}]"
    if not (low <= 1 + margin and high >= 1 - margin):  # nor is a NaN a prediction
        return Measurement(what, Verdict.REFUTED, figure, counterexample=figure)
    if high - low > 0.5:
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
    if abs(ratio - predicted) <= 4 * error + room:
        return Measurement(what, Verdict.HOLDS, figure)
    return Measurement(what, Verdict.REFUTED, figure, counterexample=figure)
