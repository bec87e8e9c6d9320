"""The tilt: tau log E exp(l/tau) over w, by Newton's method. Algorithm 2, arXiv:2502.01930v4."""

import math
from typing import Any

import numpy as np

from theory.solvers.compiled.arithmetic import (
    BLOCK,
    CLOSED,
    inside,
    linear_gap,
    linear_start,
    moments,
)
from theory.solvers.compiled.compiling import kernel, piece
from theory.solvers.compiled.exponential import BEYOND, FIRST, MASS, tilted_sums
from theory.solvers.compiled.newton import minimiser


@piece
def _evaluate(
    problem: Any, w: Any, bent: bool, g: Any, H: Any, scratch: Any
) -> tuple[float, float]:
    u, p, beta, bound, reference, tau = problem
    blocks, covariance, sums, centre = scratch
    d, c = u.shape[0], centre[0]
    tilted_sums(u, p, beta, w, tau, c, bent, g, covariance, H, blocks, sums)
    if sums[BEYOND] > 0:
        return np.inf, np.inf
    mass = 1 + sums[MASS]
    for k in range(d):
        g[k] *= -beta / mass
    if bent:
        scale = beta * beta / mass
        for k in range(d):
            for j in range(k + 1):
                H[k, j] = scale * H[k, j] - g[k] * g[j] / tau
    centre[0] = c + tau * sums[FIRST] / mass
    return c + tau * math.log1p(sums[MASS]), linear_gap(w, g, reference, bound)


_minimise = minimiser(_evaluate)


@kernel()
def batch(
    rows: Any,
    ut: Any,
    p: Any,
    beta: float,
    bound: float,
    reference: Any,
    size: Any,
    w: Any,
    numbers: Any,
    state: Any,
) -> None:
    """See `theory.solvers.compiled.batches`; sizes are temperatures."""
    d = ut.shape[1]
    g, H, M = np.empty(d), np.empty((d, d)), np.empty((d, d))
    blocks = (np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK))
    scratch = (blocks, np.empty(d), np.empty(4), np.empty(1))
    for r in rows:
        u, weights = ut[r % ut.shape[0]], p[r % p.shape[0]]
        moments(u, weights, g, H)
        if not linear_start(g, H, beta, M, w[r]):
            continue
        # the loss at the mean margin, about the mean loss
        along = 0.0
        for k in range(d):
            along += beta * w[r, k] * g[k]
        scratch[3][0] = math.log1p(math.exp(-abs(along))) - min(along, 0.0)
        problem = (u, weights, beta, bound, reference, size[r])
        value, gap, steps = _minimise(problem, w[r], d, g, H, scratch)
        numbers[r, 0], numbers[r, 2], numbers[r, 3] = value, gap, steps
        if gap <= CLOSED and inside(w[r], reference, bound):
            state[r] = 1
