"""The chi-squared ball: c + sqrt(1 + rho) (E (l - c)_+²)^(1/2) with c minimised out, a function of
w, by Newton's method (semismooth), as `theory.sets.chi2`.

The losses of a sample are kept, so that the threshold c costs passes of sums only. It is closed
form while the same atoms are above it.
"""

import math
from typing import Any

import numpy as np

from theory.solvers.compiled.arithmetic import (
    BLOCK,
    CLOSED,
    add_outer,
    add_pull,
    clear,
    inside,
    linear_gap,
    linear_start,
    loss_and_slope,
    margins,
    moments,
    norm_of,
    solve_positive,
)
from theory.solvers.compiled.compiling import kernel, piece, reordered
from theory.solvers.compiled.newton import minimiser

_SMALL = 1e-3  # root mean square of the margins below which collapse is near
# smallest eigenvalue over the largest, of the atoms that count, from which on they surely span all
# directions: ten times what `theory.solvers.nearest` takes for flat
_SPANS = 1e-9
_LIVE = 1e-4  # share of its own probability above which an atom counts there


@reordered
def _losses(m: Any, p: Any, count: int, loss: Any, slope: Any) -> float:
    total = 0.0
    for i in range(count):
        loss[i], slope[i] = loss_and_slope(m[i])
        total += p[i] * loss[i]
    return total


@reordered
def _above(loss: Any, p: Any, c: float, centre: float) -> tuple[float, float, float]:
    """Mass, first and second moment about the centre of the losses above c."""
    mass, first, second = 0.0, 0.0, 0.0
    for i in range(loss.shape[0]):
        weight = p[i] if loss[i] > c else 0.0
        away = loss[i] - centre
        mass += weight
        first += weight * away
        second += weight * away * away
    return mass, first, second


@piece
def _threshold(loss: Any, p: Any, rho: float, mean: float, c: float) -> tuple[float, float, float]:
    """c with E (l - c)_+² = (1 + rho)(E (l - c)_+)², the mass above it and E (l - c)_+; a c of NaN
    where a few largest losses take it all."""
    centre = mean
    for _ in range(60):
        mass, first, second = _above(loss, p, c, centre)
        room = (1 + rho) * mass - 1
        if not (mass > 0 and room > 0):
            if c > -np.inf:  # too few: begin again with all
                c = -np.inf
                continue
            return np.nan, mass, 0.0
        average = first / mass
        variance = second / mass - average * average
        reach = math.sqrt(max(variance, 0.0) / room)
        found = centre + average - reach
        if abs(found - c) <= 1e-15 * (abs(found) + reach):
            # a few digits below it, so that the weights are inside the ball
            return found - 4e-16 * (abs(found) + reach), mass, mass * reach
        c, centre = found, centre + average
    return np.nan, 0.0, 0.0


@reordered
def _weigh(
    loss: Any, slope: Any, p: Any, count: int, c: float, level: float, a: Any, b: Any, h: Any
) -> tuple[float, float]:
    """Weights of the gradient under the worst case (a) and under p above c (b), and of the Hessian
    (h); E (l - c)_+ and E (l - c)_+²."""
    inverse, first, second = 1.0 / level, 0.0, 0.0
    for i in range(count):
        s = slope[i]
        active = p[i] if loss[i] > c else 0.0
        over = loss[i] - c
        q = active * over * inverse
        first += active * over
        second += active * over * over
        a[i] = q * s
        b[i] = active * s
        h[i] = q * s * (1.0 - s) + active * s * s * inverse
    return first, second


@piece
def _evaluate(
    problem: Any, w: Any, bent: bool, g: Any, H: Any, scratch: Any
) -> tuple[float, float]:
    u, p, beta, bound, reference, rho, spread = problem
    (m, a, b, h), plain, loss, slope, threshold = scratch
    d, n = u.shape
    mean = 0.0
    for start in range(0, n, BLOCK):
        count = min(BLOCK, n - start)
        stop = start + count
        margins(u, start, count, w, beta, m)
        mean += _losses(m, p[start:stop], count, loss[start:stop], slope[start:stop])
    if not np.isfinite(mean):
        return np.inf, np.inf
    c, mass, level = _threshold(loss, p, rho, mean, threshold[0])
    if not (np.isfinite(c) and level > 0):
        return np.inf, np.inf
    threshold[0], threshold[1] = c, level
    clear(g, H, d)
    for k in range(d):
        plain[k] = 0.0
    first, second = 0.0, 0.0
    for start in range(0, n, BLOCK):
        count = min(BLOCK, n - start)
        stop = start + count
        sums = _weigh(loss[start:stop], slope[start:stop], p[start:stop], count, c, level, a, b, h)
        first += sums[0]
        second += sums[1]
        add_pull(u, start, count, a, g)
        if bent:
            add_pull(u, start, count, b, plain)
            add_outer(u, start, count, h, H)
    divergence = second / (first * first) - 1
    value = c + math.sqrt((1 + rho) * second)
    expected = c + second / first
    mixed = 1 - math.sqrt(rho / divergence) if divergence > rho else 0.0
    for k in range(d):
        g[k] *= -beta * level / first
    gap = value - (1 - mixed) * expected + linear_gap(w, g, reference, bound)
    # the gradient under p differs from that under q by no more than both together
    gap += mixed * 2 * bound * (beta * spread + norm_of(g, d))
    if bent:
        a2 = 1 + rho
        corner = max((mass - 1 / a2) / level, 1e-300)
        for k in range(d):
            plain[k] = (beta * plain[k] + g[k] / a2) / level
        for k in range(d):
            for j in range(k + 1):
                H[k, j] = beta * beta * H[k, j] - g[k] * g[j] / (a2 * level)
                H[k, j] -= plain[k] * plain[j] / corner
    return value, gap


_minimise = minimiser(_evaluate)


@piece
def _spans(u: Any, p: Any, H: Any, x: Any, scratch: Any) -> bool:
    """Whether the atoms with mass in the worst case surely span all directions, each feature in
    its own root mean square: the minimiser is then the only one."""
    (m, _, _, _), square, loss, _, threshold = scratch
    d, n = u.shape
    clear(square, H, d)
    for start in range(0, n, BLOCK):
        count = min(BLOCK, n - start)
        for i in range(count):
            over = p[start + i] > 0 and loss[start + i] - threshold[0] > _LIVE * threshold[1]
            m[i] = 1.0 if over else 0.0
        add_outer(u, start, count, m, H)
    total = 0.0
    for k in range(d):
        square[k] = 0.0
        for i in range(n):
            square[k] += u[k, i] * u[k, i]
        if not square[k] > 0:
            return False
        for j in range(k + 1):
            H[k, j] /= math.sqrt(square[k]) * math.sqrt(square[j])
        total += H[k, k]
    inverse = 0.0
    factor = np.empty((d, d))
    for k in range(d):
        for i in range(d):
            x[i] = 1.0 if i == k else 0.0
            for j in range(i + 1):
                factor[i, j] = H[i, j]
        if not solve_positive(factor, x):
            return False
        inverse += x[k]
    return bool(inverse * total * _SPANS <= 1)


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
    d, n = ut.shape[1], ut.shape[2]
    g, H, M = np.empty(d), np.empty((d, d)), np.empty((d, d))
    mean, second, threshold = np.empty(d), np.empty((d, d)), np.empty(2)
    blocks = (np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK))
    scratch = (blocks, np.empty(d), np.empty(n), np.empty(n), threshold)
    for r in rows:
        u, weights, rho = ut[r % ut.shape[0]], p[r % p.shape[0]], size[r]
        moments(u, weights, mean, second)
        if not linear_start(mean, second, beta, M, w[r]):
            continue
        trace = 0.0
        for k in range(d):
            trace += second[k, k]
        spread = math.sqrt(trace)
        threshold[0] = -np.inf
        problem = (u, weights, beta, bound, reference, rho, spread)
        value, gap, steps = _minimise(problem, w[r], d, g, H, scratch)
        dual = threshold[1] / 2
        numbers[r, 0], numbers[r, 1], numbers[r, 2], numbers[r, 3] = value, dual, gap, steps
        small = beta * norm_of(w[r], d) * spread < _SMALL
        good = gap <= CLOSED and not small and inside(w[r], reference, bound)
        if good and _spans(u, weights, H, g, scratch):
            state[r] = 1
