"""Effective sample size: the temperature that leaves a share of the sample."""

import math

import numpy as np
from scipy.optimize import brentq

from theory.batch import ArrayLike
from theory.checks import as_array
from theory.radius_choice.reach import LONGEST
from theory.radius_choice.sample import check_open_unit, probability
from theory.solvers.adversary import tilt


def temperature_for_share(
    losses: ArrayLike, share: float, weights: ArrayLike | None = None
) -> tuple[float, float]:
    """tau at which the tilt q_i ∝ p_i exp(l_i/tau) has the effective sample size share * n (Kish),
    with its KL(q||p); p are the weights (n,), 1/n each where they are None.

    n/ess = E e^{2tl}/(E e^{tl})², t = 1/tau, grows with t: its log is K(2t) - 2K(t) for the convex
    K = log E e^{tl}. Infinite tau and KL 0 where all losses are equal; tau = 0 with the KL of the
    tilt towards the largest losses where these alone are more than the share.
    """
    l = as_array(losses, "losses")
    if l.ndim != 1 or l.size == 0 or not np.isfinite(l).all():
        raise ValueError(
            f"losses must be n >= 1 finite numbers, got shape {l.shape} with"
            f" {int((~np.isfinite(l)).sum())} non-finite entries. Remove those pairs first."
        )
    check_open_unit("share", share)
    p = probability(weights, len(l))
    l, p = l[p > 0], p[p > 0]
    span = float(np.ptp(l))
    if span == 0:
        return math.inf, 0.0
    at_top = float(p[l == l.max()].sum())
    if at_top >= share:
        return 0.0, -math.log(at_top)

    def excess(log_tau: float) -> float:
        return tilt(l, p, temperature=span * math.exp(log_tau)).effective - share

    low, high = -5.0, 5.0
    while excess(low) > 0 and low > -LONGEST:
        low *= 2
    while excess(high) < 0 and high < LONGEST:
        high *= 2
    tau = span * math.exp(brentq(excess, low, high, xtol=1e-12))
    return tau, tilt(l, p, temperature=tau).used
