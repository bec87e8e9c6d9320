"""DPO: E l, by Newton's method, one pass over the pairs a step."""

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
from theory.solvers.compiled.losses import mean_loss
from theory.solvers.compiled.newton import minimiser


@piece
def _evaluate(
    problem: Any, w: Any, bent: bool, g: Any, H: Any, scratch: Any
) -> tuple[float, float]:
    u, p, beta, bound, reference = problem
    value = mean_loss(u, p, beta, w, bent, g, H, scratch)
    return value, linear_gap(w, g, reference, bound)


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
    """See `theory.solvers.compiled.batches`; `size` is not read."""
    d = ut.shape[1]
    g, H, M = np.empty(d), np.empty((d, d)), np.empty((d, d))
    scratch = (np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK))
    for r in rows:
        u, weights = ut[r % ut.shape[0]], p[r % p.shape[0]]
        moments(u, weights, g, H)
        if not linear_start(g, H, beta, M, w[r]):
            continue
        problem = (u, weights, beta, bound, reference)
        value, gap, steps = _minimise(problem, w[r], d, g, H, scratch)
        numbers[r, 0], numbers[r, 2], numbers[r, 3] = value, gap, steps
        if gap <= CLOSED and inside(w[r], reference, bound):
            state[r] = 1
