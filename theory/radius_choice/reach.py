"""The radius at which a robust value reaches a target."""

import math

import numpy as np
import torch
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit

from theory.batch import ArrayLike
from theory.checks import check_scale
from theory.policy import Array
from theory.radius_choice.sample import direction_of, losses_of, read_rows
from theory.sets import AmbiguitySet
from theory.sets.kl import KL
from theory.sets.wasserstein_free import WassersteinFree
from theory.solvers.adversary import tilt
from theory.solvers.wells import global_well

SETS_HERE: dict[str, AmbiguitySet] = {
    "kl": KL(),
    "w1": WassersteinFree(power=1),
    "w2": WassersteinFree(power=2),
}
LONGEST = 60.0  # log of the largest ratio of temperatures searched


def radius_for_value(
    ball: str,
    u: ArrayLike,
    w: ArrayLike,
    target: float,
    *,
    beta: float,
    weights: ArrayLike | None = None,
) -> float:
    """Smallest radius of "kl", "w1" or "w2" (features free) whose worst mean loss at w reaches the
    target; 0 if the mean does.

    Infinite where no radius does: above the largest loss of the sample for KL, at w = 0 for the
    others.
    """
    rows = read_rows(u, weights, None)
    return for_value(ball, rows.u, rows.p, direction_of(w), target, beta)


def for_value(
    ball: str, pairs: Array, p: Array, direction: Array, target: float, beta: float
) -> float:
    """`radius_for_value` of pairs that were read."""
    if ball not in SETS_HERE:
        raise ValueError(f"unknown ball {ball!r}; choose one of {', '.join(SETS_HERE)}.")
    beta = check_scale("beta", beta, "It scales the log-ratio in the margin.")
    losses = losses_of(pairs, direction, beta)
    if not math.isfinite(target):
        raise ValueError(f"target must be a finite loss, got {target}. Look at what computed it.")
    missing = target - float(p @ losses)
    if missing <= 0:
        return 0.0
    if ball == "kl":
        return _kl_for_value(losses, p, target)
    slope = beta * float(np.linalg.norm(direction))
    if slope == 0:
        return math.inf
    if ball == "w1":
        return missing / slope  # E l + rho beta ||w||
    return _w2_for_value(slope, beta * (pairs @ direction), p, missing)


def _w2_for_value(slope: float, margin: Array, p: Array, missing: float) -> float:
    """The W2 ball of radius rho reaches the target iff eta rho² + phi(eta) >= target for all eta,
    phi the dual function.

    So rho² = max over eta of (target - phi(eta))/eta, which is concave in a = b²/(2 eta),
    b = beta ||w||. As moving along the gradient alone gives phi >= mean l + a E sigma(-m)²/2, the
    maximum lies below a = 2 (target - mean l)/E sigma(-m)².
    """
    m = torch.from_numpy(margin)[None]
    plain, mass = float(p @ np.logaddexp(0, -margin)), torch.from_numpy(p)

    def negative(a: float) -> float:
        wells = global_well(m, torch.tensor([a], dtype=torch.float64))[0]
        return (float(wells[0] @ mass) - plain - missing) * 2 * a / slope**2

    high = 2 * missing / float(p @ expit(-margin) ** 2)
    found = minimize_scalar(
        negative, bounds=(0.0, high), method="bounded", options={"xatol": 1e-9 * high}
    )
    return math.sqrt(max(-float(found.fun), 0.0))


def _kl_for_value(losses: Array, p: Array, target: float) -> float:
    """KL(q||p) of the tilt with E_q l = target: the mean of a tilt grows with 1/tau from that of p
    to the largest loss."""
    top, span = float(losses.max()), float(np.ptp(losses))
    if target > top:
        return math.inf
    if target == top:
        return -math.log(float(p[losses == top].sum()))

    def excess(log_tau: float) -> float:
        return tilt(losses, p, temperature=span * math.exp(log_tau)).expected - target

    low, high = -5.0, 5.0
    while excess(low) < 0 and low > -LONGEST:
        low *= 2
    while excess(high) > 0 and high < LONGEST:
        high *= 2
    return tilt(losses, p, temperature=span * math.exp(brentq(excess, low, high, xtol=1e-12))).used
