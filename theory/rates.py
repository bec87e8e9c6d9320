"""Convergence rates: the slope of log error on log n, with bootstrap intervals over replicates."""

from dataclasses import dataclass

import numpy as np

from theory.policy import Array


@dataclass(frozen=True)
class Rate:
    """Slope of log root-mean-square error on log n with a percentile bootstrap interval."""

    slope: float
    low: float
    high: float


def rate(n: Array, errors: Array, *, seed: int, resamples: int = 1000, level: float = 0.95) -> Rate:
    """Fit the slope over sample sizes n (k,) to errors (k, R), resampling the replicates of each n.

    NaN where fewer than two sizes are given, or where the error vanishes in mean square at one of
    them: a collapsed target is met exactly, and has no rate.
    """
    n, errors = np.asarray(n, dtype=float), np.asarray(errors, dtype=float)
    if len(n) < 2 or not (np.square(errors).mean(1) > 0).all():
        return Rate(np.nan, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    x = np.log(n) - np.log(n).mean()
    picks = rng.integers(errors.shape[1], size=(resamples, *errors.shape))
    picks += errors.shape[1] * np.arange(len(n))[:, None]  # places in the flat array
    resampled = np.square(errors).ravel().take(picks).mean(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.log(resampled) @ x / 2 / (x @ x)
    tail = (1 - level) / 2
    low, high = np.nanquantile(slopes[np.isfinite(slopes)], [tail, 1 - tail])
    return Rate(float(np.log(np.square(errors).mean(1)) @ x / 2 / (x @ x)), float(low), float(high))
