"""Random populations in which ties, copies, rare atoms, units and nearness to collapse meet."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from theory import SETS, LabelChiSquared, fit
from theory.batch import pair_batch
from theory.policy import Array
from theory.results import Fit
from theory.sets import AmbiguitySet

FRACTIONS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)  # of the collapse radius


@dataclass(frozen=True, eq=False)
class Case:
    """A fit, and how to fit its set to other weights."""

    u: Array
    p: Array
    set: AmbiguitySet | None
    beta: float
    bound: float
    found: Fit

    def theta(self, weights: Array) -> Array:
        """(R, d) of weights (R, K)."""
        how = {"beta": self.beta, "bound": self.bound, "tolerance": 1e-14}
        return fit(self.u, self.set, weights, **how).theta.numpy()


def with_labels(ball: AmbiguitySet) -> AmbiguitySet:
    """Frequencies of labels say nothing of pairs that are met with one of them."""
    return replace(ball, confidence=0.8) if isinstance(ball, LabelChiSquared) else ball


def case(name: str, seed: int) -> Case | None:
    """A set in a random population, on the bound in half of them; None where there is no radius, or
    where the fit itself is inexact."""
    rng = np.random.default_rng([77, seed])
    u, x = _pairs(rng)
    p = _weights(rng, len(u))
    beta = float(10.0 ** rng.choice([0.0, -2.0, 1.0, rng.uniform(-2, 2)]))
    at = u if rng.random() < 0.5 else x
    distance = np.linalg.norm(at[:, None] - at, axis=-1)
    fraction = float(rng.choice([*FRACTIONS, rng.uniform(0.05, 0.95)]))
    bounded = rng.random() >= 0.6
    label = float(10.0 ** rng.uniform(-1, 1)) * float(np.median(np.linalg.norm(u, axis=1)))
    ball = None
    if name != "dpo":
        ball = with_labels(SETS[name].in_metric(distance, label))
        size = ball.size_at(fraction, pair_batch(u, p), beta=beta, bound=1e3)
        if not (np.isfinite(size) and size > 0):
            return None
        ball = ball.sized(size)
    found = fit(u, ball, p, beta=beta, tolerance=1e-14)
    assert found._made is not None
    bound = float(found._made.domain.bound)
    if bounded and not bool(found.collapsed):
        bound = float(np.random.default_rng(seed).choice([0.5, 0.9]) * found.theta.norm())
    found = fit(u, ball, torch.from_numpy(p), beta=beta, bound=bound, tolerance=1e-14)
    return Case(u, p, ball, beta, bound, found) if float(found.gap) <= 1e-12 else None


def _pairs(rng: np.random.Generator) -> tuple[Array, Array]:
    """Pairs in units from 1e-3 to 1e3, and without."""
    n, d = int(rng.integers(3, 9)), int(rng.integers(1, 4))
    x = rng.normal(size=(n, d)) + rng.choice([0.0, 0.5])
    kind = int(rng.integers(6))
    if kind == 1:  # each with both labels, so that losses tie in pairs
        x = np.concatenate([x, -x])
    elif kind == 2:
        x = np.concatenate([x, -0.9 * x])
    elif kind == 3:  # some are listed twice
        x = np.concatenate([x, -0.7 * x])
        x = np.concatenate([x, x[rng.integers(len(x), size=3)]])
    elif kind == 4:  # on a grid
        x = np.round(np.concatenate([x, -x * 0.8]) * 2) / 2
        x[np.abs(x).max(1) == 0] = 0.5
    else:
        x = np.concatenate([x, -0.9 * x * rng.uniform(0.5, 1.5, (n, 1))])
    unit = rng.uniform(-3, 3) if rng.random() < 0.5 else rng.uniform(-3, 3, d)
    return x * 10.0**unit, x


def _weights(rng: np.random.Generator, n: int) -> Array:
    """(n,), some of them 1e-7, or all equal."""
    p = rng.dirichlet(np.full(n, rng.choice([0.5, 3.0, 20.0])))
    if rng.random() < 0.4:
        p = np.where(rng.random(n) < 0.3, 1e-7 * rng.uniform(0.5, 2, n), p)
    if rng.random() < 0.2:
        p = np.full(n, 1.0)
    return p / p.sum()


def worst_error(of: Case, predicted: Array, dp: Array) -> float | None:
    """How far the prediction (R, d) of theta's change is from differences of fits along dp (R, K).

    Relative to the largest of both or, as theta is known to about 1e-7 only, to 1e-3 of it and 1e-7
    of it for each step: more where the fits stop short of the bound. Extrapolated from two steps;
    None where no two steps agree to 0.5 %.
    """
    steps = 10.0 ** -np.arange(3.0, 8.0)
    size = np.sqrt((of.u**2).mean(0))
    every = [of.p[None]] + [of.p + half * step * dp for step in steps for half in (1.0, 0.5)]
    theta = of.theta(np.concatenate(every)) * size
    moved = (theta[1:] - theta[0]).reshape(len(steps), 2, len(dp), -1)
    slope = (4 * moved[:, 1] - moved[:, 0]) / steps[:, None, None]
    law, length = predicted * size, float(np.linalg.norm(theta[0]))
    short = 1 - float(of.found.theta.norm()) / of.bound
    known = max(1e-7, 100 * short if short < 1e-3 else 0.0)  # a slack is noise of 1 %
    errors = []
    for k in range(len(steps) - 1):
        largest = max(np.abs(slope[k]).max(), np.abs(slope[k + 1]).max())
        floor = (1e-3 + known / steps[k]) * length
        if np.abs(slope[k] - slope[k + 1]).max() < 5e-3 * max(largest, floor):
            errors.append(np.abs(slope[k] - law).max() / max(largest, np.abs(law).max(), floor))
    return float(min(errors)) if errors else None
