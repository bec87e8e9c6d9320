"""DPO: E l, by Newton's method, one pass over the pairs a step."""

from typing import Any

import numpy as np
from numba import njit

from theory.solvers.compiled.arithmetic import (
    BATCH,
    BLOCK,
    REORDERED,
    add_outer,
    add_pull,
    clear,
    inside,
    linear_gap,
    linear_start,
    loss_and_slope,
    margins,
    moments,
)
from theory.solvers.compiled.newton import minimiser

CLOSED = 5e-12  # a gap that is accepted, as `DOUBTFUL` above this folder


@njit(fastmath=REORDERED, error_model="numpy")
def _weigh(m: Any, p: Any, count: int, a: Any, c: Any) -> float:
    """Weights of the gradient and of the Hessian from margins; the loss."""
    total = 0.0
    for i in range(count):
        loss, s = loss_and_slope(m[i])
        total += p[i] * loss
        a[i] = p[i] * s
        c[i] = p[i] * s * (1.0 - s)
    return total


@njit(error_model="numpy")
def mean_loss(
    u: Any, p: Any, beta: float, w: Any, bent: bool, g: Any, H: Any, scratch: Any
) -> float:
    """E l, with its gradient in g and, with `bent`, its Hessian in H."""
    m, a, c = scratch
    d, n = u.shape
    clear(g, H, d)
    total = 0.0
    for start in range(0, n, BLOCK):
        count = min(BLOCK, n - start)
        margins(u, start, count, w, beta, m)
        total += _weigh(m, p[start : start + count], count, a, c)
        add_pull(u, start, count, a, g)
        if bent:
            add_outer(u, start, count, c, H)
    for k in range(d):
        g[k] *= -beta
        if bent:
            for j in range(k + 1):
                H[k, j] *= beta * beta
    return total


@njit(error_model="numpy")
def _evaluate(
    problem: Any, w: Any, bent: bool, g: Any, H: Any, scratch: Any
) -> tuple[float, float]:
    u, p, beta, bound, reference = problem
    value = mean_loss(u, p, beta, w, bent, g, H, scratch)
    return value, linear_gap(w, g, reference, bound)


_minimise = minimiser(_evaluate)


@njit(BATCH, nogil=True, cache=True, error_model="numpy")
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
