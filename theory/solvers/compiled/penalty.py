"""The gradient penalties, E l + rho (E ||grad_x l||²)^(1/2) and E l + rho E ||grad_x l||²: the best
of several starts, by Newton's method inside the ball, as
`theory.solvers.wasserstein.solve_penalised`.

Algorithm 1, arXiv:2502.01930v4, and the released code. With S = E s²: the penalties are rho beta
||w|| S^(1/2) and rho beta² ||w||² S.
"""

import math
from typing import Any

import numpy as np
from numba import boolean

from theory.solvers.compiled.arithmetic import (
    BLOCK,
    CLOSED,
    LOG2,
    add_outer,
    add_pull,
    clear,
    dot,
    linear_gap,
    linear_start,
    loss_and_slope,
    margins,
    moments,
    norm_of,
    radial_start,
)
from theory.solvers.compiled.ball import project
from theory.solvers.compiled.compiling import kernel, piece, reordered
from theory.solvers.compiled.newton import minimiser_in_ball

_EDGE = 1e-12  # relative distance from the edge of w = 0 at which the last digit decides
_LARGE = 2048  # pairs of a sixteenth of the sample, from which on that is enough to start with


@reordered
def _weigh(m: Any, p: Any, count: int, a: Any, b: Any, c: Any, e: Any) -> tuple[float, float]:
    """Weights of the gradients of E l (a) and of S (c), and of their Hessians (b, e); E l and S."""
    total, square = 0.0, 0.0
    for i in range(count):
        loss, s = loss_and_slope(m[i])
        ps, rest = p[i] * s, 1.0 - s
        total += p[i] * loss
        square += ps * s
        a[i] = ps
        b[i] = ps * rest
        c[i] = ps * s * rest
        e[i] = ps * s * (2.0 - 3.0 * s) * rest
    return total, square


@piece
def _evaluate(
    problem: Any, w: Any, bent: bool, g: Any, H: Any, scratch: Any
) -> tuple[float, float]:
    u, p, n, total, beta, bound, reference, strength, squared = problem
    (m, a, b, c, e), g2, H2 = scratch
    d = u.shape[0]
    clear(g, H, d)
    clear(g2, H2, d)
    value, S = 0.0, 0.0
    for start in range(0, n, BLOCK):
        count = min(BLOCK, n - start)
        margins(u, start, count, w, beta, m)
        sums = _weigh(m, p[start : start + count], count, a, b, c, e)
        value += sums[0]
        S += sums[1]
        add_pull(u, start, count, a, g)
        add_pull(u, start, count, c, g2)
        if bent:
            add_outer(u, start, count, b, H)
            add_outer(u, start, count, e, H2)
    value /= total
    S /= total
    norm2 = dot(w, w, d)
    norm = math.sqrt(norm2)
    safe = max(norm, 1e-300)
    # the penalty is N T, with derivatives N1 = n1 w, N2 = n2 + n3 w w', T1 = t1 S1, T2 = t1 S2 - t2
    # S1 S1'
    if squared:
        N, n1, n2, n3 = beta * beta * norm2, 2 * beta * beta, 2 * beta * beta, 0.0
        T, t1, t2 = S, 1.0, 0.0
    else:
        N, n1, n2, n3 = beta * norm, beta / safe, beta / safe, -beta / safe / safe / safe
        T = math.sqrt(S)
        root = max(T, 1e-100)
        t1, t2 = 1 / (2 * root), 1 / (4 * root * root * root)
    for k in range(d):
        g[k] *= -beta / total
        g2[k] *= -2 * beta / total
    if bent:
        plain, curved = beta * beta / total, 2 * beta * beta / total
        for k in range(d):
            for j in range(k + 1):
                bend = n3 * w[k] * w[j] * T + N * (t1 * curved * H2[k, j] - t2 * g2[k] * g2[j])
                bend += n1 * t1 * (w[k] * g2[j] + g2[k] * w[j])
                H[k, j] = plain * H[k, j] + strength * bend
            H[k, k] += strength * n2 * T
    for k in range(d):
        g[k] += strength * (n1 * w[k] * T + N * t1 * g2[k])
    return value + strength * N * T, linear_gap(w, g, reference, bound)


_minimise = minimiser_in_ball(_evaluate)


@kernel(boolean)
def batch(
    rows: Any,
    ut: Any,
    p: Any,
    beta: float,
    bound: float,
    reference: Any,
    size: Any,
    squared: bool,
    w: Any,
    numbers: Any,
    state: Any,
) -> None:
    """See `theory.solvers.compiled.batches`; sizes are strengths, `squared` is which penalty."""
    d, n = ut.shape[1], ut.shape[2]
    g, H, M, v = np.empty(d), np.empty((d, d)), np.empty((d, d)), np.empty(d)
    mean, second, linear = np.empty(d), np.empty((d, d)), np.empty(d)
    blocks = (np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK))
    scratch = (blocks, np.empty(d), np.empty((d, d)))
    room = bound - norm_of(reference, d)
    head = n // 16 if n // 16 > _LARGE else n
    bent = np.bool_(True)
    for r in rows:
        u, weights, rho = ut[r % ut.shape[0]], p[r % p.shape[0]], size[r]
        moments(u, weights, mean, second)
        edge = norm_of(mean, d)
        if not squared and abs(rho - edge) <= _EDGE * edge:
            continue
        if not linear_start(mean, second, beta, M, linear):
            continue
        project(linear, reference, bound)
        some = 1.0
        if head < n:
            some = 0.0
            for i in range(head):
                some += weights[i]
            some = max(some, 1e-300)
        whole = (u, weights, n, 1.0, beta, bound, reference, rho, squared)
        few = (u, weights, head, some, beta, bound, reference, rho, squared)
        rest = not squared and rho > edge  # w = 0 is a local minimum
        best, gap, steps = (LOG2 if rest else np.inf), 0.0, 0
        sound = True
        for start in range(4):
            if start == 0:
                radial_start(mean, second, beta, beta * rho / 2, room, v)
            else:
                far = 1.0
                if start == 2:
                    far = 0.1
                elif start == 3:
                    far = 1e3 * bound / max(norm_of(linear, d), 1e-300)
                for k in range(d):
                    v[k] = far * linear[k]
                project(v, reference, bound)
            value, open_, first = _minimise(few, v, reference, bound, 6, g, H, scratch)
            if head < n:
                value, open_ = _evaluate(whole, v, bent, g, H, scratch)
            sound = sound and np.isfinite(value)
            if not value < best - 1e-9:  # goes where an earlier start went, or higher
                continue
            value, open_, more = _minimise(whole, v, reference, bound, 60, g, H, scratch)
            sound = sound and np.isfinite(value)
            if value < best:
                best, gap, steps, rest = value, open_, first + more, False
                for k in range(d):
                    w[r, k] = v[k]
        numbers[r, 0], numbers[r, 2], numbers[r, 3] = best, gap, steps
        if rest:
            state[r] = 2
        elif sound and gap <= CLOSED:
            state[r] = 1
