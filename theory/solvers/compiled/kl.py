"""The KL ball: lambda rho + lambda log E exp(l/lambda) over (w, lambda), by Newton's method.

Eq. (9), arXiv:2502.01930v4. The certificate is that of the tilt q at lambda: KL(q||p) = rho -
dF/dlambda, and where that is above rho by rounding, a little of p is mixed in.
"""

import math
from typing import Any

import numpy as np

from theory.solvers.compiled.arithmetic import (
    BLOCK,
    CLOSED,
    dot,
    inside,
    linear_gap,
    linear_start,
    moments,
    norm_of,
)
from theory.solvers.compiled.compiling import kernel, piece
from theory.solvers.compiled.exponential import BEYOND, FIRST, MASS, SECOND, tilted_sums
from theory.solvers.compiled.newton import minimiser

_SMALL = 1e-3  # root mean square of the margins below which collapse is near


@piece
def _evaluate(
    problem: Any, v: Any, bent: bool, g: Any, H: Any, scratch: Any
) -> tuple[float, float]:
    u, p, beta, bound, reference, rho, spread = problem
    blocks, covariance, sums, centre = scratch
    d = u.shape[0]
    lam, c0 = v[d], centre[0]
    tilted_sums(u, p, beta, v, lam, c0, bent, g, covariance, H, blocks, sums)
    if sums[BEYOND] > 0:
        return np.inf, np.inf
    mass, log_mass = 1 + sums[MASS], math.log1p(sums[MASS])
    z = sums[FIRST] / mass
    variance = sums[SECOND] / mass - z * z
    slope = rho + log_mass - z  # rho - KL(q||p)
    for k in range(d):
        g[k] *= -beta / mass
    value, expected = c0 + lam * (rho + log_mass), c0 + lam * z
    mixed = -slope / (rho - slope) if slope < 0 else 0.0
    gap = value - (1 - mixed) * expected + linear_gap(v, g, reference, bound)
    # the gradient under p differs from that under q by no more than both together
    gap += mixed * 2 * bound * (beta * spread + norm_of(g, d))
    # aim a few digits inside the ball, so that q need not be mixed
    g[d] = slope - 4e-16 * (1 + rho + abs(log_mass) + abs(z))
    if bent:
        scale = beta * beta / mass
        for k in range(d):
            for j in range(k + 1):
                H[k, j] = scale * H[k, j] - g[k] * g[j] / lam
            H[d, k] = (beta * covariance[k] / mass + z * g[k]) / lam
        H[d, d] = variance / lam
    centre[0] = expected
    return value, gap


_minimise = minimiser(_evaluate)


@piece
def _start(mean: Any, second: Any, beta: float, rho: float, v: Any, centre: Any) -> None:
    """From DPO's first step in v: shrunk as for Gaussian u, whose collapse radius is -log(1 - c)/2
    with c = Eu'(E uu')^-1 Eu; lambda by KL ≈ Var/(2 lambda²)."""
    d = mean.shape[0]
    c = min(max(dot(v, mean, d) * beta / 2, 0.0), 1 - 1e-6)
    shrunk = max(1 - math.sqrt(2 * rho / max(-math.log1p(-c), 1e-12)), 0.02)
    for k in range(d):
        v[k] *= shrunk
    along, square = dot(v, mean, d), 0.0
    for k in range(d):
        square += v[k] * v[k] * second[k, k]
        for j in range(k):
            square += 2 * v[k] * v[j] * second[k, j]
    m = beta * along
    slope = 1 / (1 + math.exp(min(m, 700.0)))
    variance = max(square - along * along, 0.0) * (beta * slope) ** 2
    v[d] = max(math.sqrt(variance / (2 * rho)), 1e-3 * beta)
    centre[0] = math.log1p(math.exp(-abs(m))) - min(m, 0.0)


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
    """See `theory.solvers.compiled.batches`; sizes are radii > 0."""
    d = ut.shape[1]
    v, g, H = np.empty(d + 1), np.empty(d + 1), np.empty((d + 1, d + 1))
    mean, second, M = np.empty(d), np.empty((d, d)), np.empty((d, d))
    blocks = (np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK))
    scratch = (blocks, np.empty(d), np.empty(4), np.empty(1))
    for r in rows:
        u, weights, rho = ut[r % ut.shape[0]], p[r % p.shape[0]], size[r]
        moments(u, weights, mean, second)
        if not linear_start(mean, second, beta, M, v[:d]):
            continue
        trace = 0.0
        for k in range(d):
            trace += second[k, k]
        spread = math.sqrt(trace)
        _start(mean, second, beta, rho, v, scratch[3])
        problem = (u, weights, beta, bound, reference, rho, spread)
        value, gap, steps = _minimise(problem, v, d, g, H, scratch)
        for k in range(d):
            w[r, k] = v[k]
        numbers[r, 0], numbers[r, 1], numbers[r, 2], numbers[r, 3] = value, v[d], gap, steps
        small = beta * norm_of(v, d) * spread < _SMALL
        if gap <= CLOSED and not small and inside(v, reference, bound):
            state[r] = 1
