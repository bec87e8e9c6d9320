"""W1 with free features and fixed labels: E l + rho beta ||w||, by Newton's method.

Shafieezadeh-Abadeh et al. (2015), Thm. 1. The reference policy is the answer from ||E u||/2 on.
"""

from typing import Any

import numpy as np

from theory.solvers.compiled.arithmetic import (
    BLOCK,
    CLOSED,
    LOG2,
    inside,
    linear_gap,
    moments,
    norm_of,
    radial_start,
)
from theory.solvers.compiled.compiling import kernel, piece
from theory.solvers.compiled.losses import mean_loss
from theory.solvers.compiled.newton import minimiser

_EDGE = 1e-12  # relative distance from the collapse radius at which the last digit decides


@piece
def _norm_gap(w: Any, gradient: Any, c: float, reference: Any, bound: float, along: Any) -> float:
    """As `theory.solvers.points.norm_gap`: with the subgradient of c ||w|| that w gives, or with
    the one that balances the gradient."""
    d = w.shape[0]
    norm, push = norm_of(w, d), norm_of(gradient, d)
    for k in range(d):
        along[k] = gradient[k] + c * w[k] / max(norm, 1e-300)
    first = linear_gap(w, along, reference, bound)
    scale = 1.0 / max(push, c)  # c times -gradient/c, of a norm of at most one
    turned = 0.0
    for k in range(d):
        balance = -gradient[k] * scale
        turned += balance * w[k]
        along[k] = gradient[k] + c * balance
    return min(first, c * (norm - turned) + linear_gap(w, along, reference, bound))


@piece
def _evaluate(
    problem: Any, w: Any, bent: bool, g: Any, H: Any, scratch: Any
) -> tuple[float, float]:
    u, p, beta, bound, reference, c = problem
    blocks, along = scratch
    d = u.shape[0]
    value = mean_loss(u, p, beta, w, bent, g, H, blocks)
    gap = _norm_gap(w, g, c, reference, bound, along)
    norm = norm_of(w, d)
    inverse = 1.0 / max(norm, 1e-300)
    for k in range(d):
        g[k] += c * w[k] * inverse
        if bent:
            for j in range(k + 1):
                H[k, j] -= c * inverse * (w[k] * inverse) * (w[j] * inverse)
            H[k, k] += c * inverse
    return value + c * norm, gap


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
    """See `theory.solvers.compiled.batches`; sizes are radii."""
    d = ut.shape[1]
    g, H, mean = np.empty(d), np.empty((d, d)), np.empty(d)
    scratch = ((np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)), np.empty(d))
    room = bound - norm_of(reference, d)
    for r in rows:
        u, weights = ut[r % ut.shape[0]], p[r % p.shape[0]]
        moments(u, weights, mean, H)
        edge = norm_of(mean, d) / 2
        if abs(size[r] - edge) <= _EDGE * edge:
            continue
        if size[r] > edge:
            numbers[r, 0], numbers[r, 1], numbers[r, 2], numbers[r, 3] = LOG2, 0.0, 0.0, 0.0
            state[r] = 2
            continue
        c = beta * size[r]
        radial_start(mean, H, beta, c, room, w[r])
        problem = (u, weights, beta, bound, reference, c)
        value, gap, steps = _minimise(problem, w[r], d, g, H, scratch)
        dual = beta * norm_of(w[r], d)
        numbers[r, 0], numbers[r, 1], numbers[r, 2], numbers[r, 3] = value, dual, gap, steps
        if gap <= CLOSED and inside(w[r], reference, bound):
            state[r] = 1
