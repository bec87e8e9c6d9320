"""W2 with free features and fixed labels: eta rho² + E phi(m, a), a = beta²||w||²/(2 eta), over (w,
eta), by Newton's method.

phi and its maximiser q are those of `theory.solvers.wells`: y = logit q solves the Curie-Weiss
equation y = (a/2) tanh(y/2) - (m - a/2). The reference policy is the answer from ||E u|| on.
Where an atom sits between two wells (a > 4) the certificate stays open.
"""

import math
from typing import Any

import numpy as np

from theory.solvers.compiled.arithmetic import (
    BLOCK,
    CLOSED,
    LOG2,
    add_outer,
    add_pull,
    clear,
    dot,
    exp,
    inside,
    linear_gap,
    log1p_from,
    loss_and_slope,
    margins,
    moments,
    norm_of,
    radial_start,
)
from theory.solvers.compiled.compiling import kernel, piece, reordered
from theory.solvers.compiled.newton import minimiser

_EDGE = 1e-12  # relative distance from the collapse radius at which the last digit decides
_ONE_WELL = 3.5  # below a = 4, where Newton's method finds the log-odds from anywhere


@reordered
def _step_odds(m: Any, a: float, count: int, y: Any) -> float:
    """A step of Newton's method to |log-odds| y of a block; the sum of the errors it leaves, by the
    curvature."""
    half, left = a / 2, 0.0
    for i in range(count):
        distance = abs(m[i] - half)
        t = exp(-y[i])
        r = 1.0 / (1.0 + t)
        slope = max(1.0 - a * t * r * r, 1e-12)
        step = (y[i] - half * (1.0 - t) * r - distance) / slope
        y[i] = max(y[i] - step, distance)
        left += step * step * a / slope
    return left


@reordered
def _weigh(
    m: Any, p: Any, a: float, count: int, y: Any, q: Any, pull: Any, cross: Any, outer: Any
) -> tuple[float, float, float]:
    """q and the weights of gradient, cross term and Hessian, of a block; E phi, E q², E bend q²."""
    half, total, square, bent = a / 2, 0.0, 0.0, 0.0
    for i in range(count):
        t = exp(-y[i])
        r = 1.0 / ((1.0 + t) * (2.0 + t))
        inverse = r * (2.0 + t)
        spread = t * inverse * inverse
        towards = m[i] <= half
        q[i] = inverse if towards else t * inverse
        bend = spread / max(1.0 - a * spread, 1e-12)
        phi = log1p_from(t * (r * (1.0 + t))) + (y[i] if towards else 0.0) - half * q[i] * q[i]
        total += p[i] * phi
        square += p[i] * q[i] * q[i]
        pull[i] = p[i] * q[i]
        outer[i] = p[i] * bend
        cross[i] = outer[i] * q[i]
        bent += cross[i] * q[i]
    return total, square, bent


@reordered
def _farthest(m: Any, a: float, count: int, y: Any) -> None:
    """A start on the right of every root, from where Newton's method falls to it."""
    for i in range(count):
        y[i] = a / 2 + abs(m[i] - a / 2)


@piece
def _evaluate(
    problem: Any, v: Any, bent: bool, g: Any, H: Any, scratch: Any
) -> tuple[float, float]:
    u, p, beta, bound, reference, radius = problem
    m, pull, cross, outer, mixed, y, q, warm = scratch
    d, n = u.shape
    eta = v[d]
    scale, square = beta * beta / eta, dot(v, v, d)
    a = scale * square / 2
    clear(g, H, d + 1)
    for k in range(d):
        mixed[k] = 0.0
    value, q2, bq2 = eta * radius * radius, 0.0, 0.0
    for start in range(0, n, BLOCK):
        count = min(BLOCK, n - start)
        here, odds = y[start : start + count], q[start : start + count]
        margins(u, start, count, v, beta, m)
        if warm[0] == 0.0 or a > _ONE_WELL:
            _farthest(m, a, count, here)
        for _ in range(100):
            if _step_odds(m, a, count, here) <= 1e-17:
                break
        sums = _weigh(m, p[start : start + count], a, count, here, odds, pull, cross, outer)
        value += sums[0]
        q2 += sums[1]
        bq2 += sums[2]
        add_pull(u, start, count, pull, g)
        if bent:
            add_pull(u, start, count, cross, mixed)
            add_outer(u, start, count, outer, H)
    warm[0] = 1.0
    e = -a / eta  # da/deta; da/dw = scale w
    for k in range(d):
        g[k] = q2 / 2 * scale * v[k] - beta * g[k]
    g[d] = q2 / 2 * e + radius * radius
    if bent:
        for k in range(d):
            along, side = scale * v[k], -beta * mixed[k]
            for j in range(k + 1):
                # phi'' = bend (dm - q da)(dm - q da)', and half of E q² times the Hessian of a
                H[k, j] = beta * beta * H[k, j] + bq2 * along * scale * v[j]
                H[k, j] += side * scale * v[j] - beta * mixed[j] * along
            H[k, k] += q2 / 2 * scale
            H[d, k] = side * e + bq2 * along * e - q2 / 2 * scale * v[k] / eta
        H[d, d] = bq2 * e * e + q2 / 2 * scale * square / (eta * eta)
    return value, linear_gap(v, g, reference, bound)


_minimise = minimiser(_evaluate)


@reordered
def _moved(m: Any, p: Any, q: Any, move: float, count: int, pull: Any) -> tuple[float, float]:
    """Loss and push of a block whose margins fall by move q; the weights of its gradient."""
    total, push = 0.0, 0.0
    for i in range(count):
        loss, s = loss_and_slope(m[i] - move * q[i])
        total += p[i] * loss
        pull[i] = p[i] * s
        push += pull[i] * q[i]
    return total, push


@piece
def _gap(problem: Any, v: Any, value: float, scratch: Any) -> float:
    """The certificate, as `theory.solvers.wasserstein._w2_point`: each atom moved along w, then
    along what balances the gradient, shrunk to meet the radius."""
    u, p, beta, bound, reference, radius = problem
    m, pull, q = scratch[0], scratch[1], scratch[6]
    d, n = u.shape
    direction, towards = np.empty(d), np.empty(d)
    norm = norm_of(v, d)
    square = 0.0
    for i in range(n):
        square += p[i] * q[i] * q[i]
    # the shift of an atom is far q
    far = beta * norm / (2 * v[d])
    far *= min(radius / max(far * math.sqrt(square), 1e-300), 1.0)
    for k in range(d):
        direction[k] = v[k] / max(norm, 1e-300)
    best = np.inf
    for _ in range(2):
        along, lost, push = dot(v, direction, d), 0.0, 0.0
        for k in range(d):
            towards[k] = 0.0
        for start in range(0, n, BLOCK):
            count = min(BLOCK, n - start)
            margins(u, start, count, v, beta, m)
            weight, odds = p[start : start + count], q[start : start + count]
            sums = _moved(m, weight, odds, beta * along * far, count, pull)
            lost += sums[0]
            push += sums[1]
            add_pull(u, start, count, pull, towards)
        push *= far
        norm = 0.0
        for k in range(d):
            gradient = -beta * (towards[k] - push * direction[k])
            direction[k] = towards[k] / max(push, 1e-300)
            norm += direction[k] * direction[k]
            towards[k] = gradient
        best = min(best, value - lost + linear_gap(v, towards, reference, bound))
        if best <= CLOSED / 5:
            break
        for k in range(d):
            direction[k] /= max(math.sqrt(norm), 1.0)
    return best


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
    v, g, H = np.empty(d + 1), np.empty(d + 1), np.empty((d + 1, d + 1))
    mean, second, warm = np.empty(d), np.empty((d, d)), np.empty(1)
    blocks = (np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK))
    scratch = (*blocks, np.empty(d), np.empty(n), np.empty(n), warm)
    room = bound - norm_of(reference, d)
    for r in rows:
        u, weights, radius = ut[r % ut.shape[0]], p[r % p.shape[0]], size[r]
        moments(u, weights, mean, second)
        edge = norm_of(mean, d)
        if abs(radius - edge) <= _EDGE * edge:
            continue
        if radius > edge:
            numbers[r, 0], numbers[r, 1], numbers[r, 2], numbers[r, 3] = LOG2, 0.0, 0.0, 0.0
            state[r] = 2
            continue
        radial_start(mean, second, beta, beta * radius / 2, room, v[:d])
        v[d] = beta * norm_of(v, d) / (4 * radius)  # optimal for small margins
        warm[0] = 0.0
        problem = (u, weights, beta, bound, reference, radius)
        value, gap, steps = _minimise(problem, v, d, g, H, scratch)
        if gap <= CLOSED:  # stationary: now its certificate
            gap = _gap(problem, v, value, scratch)
        for k in range(d):
            w[r, k] = v[k]
        numbers[r, 0], numbers[r, 1], numbers[r, 2], numbers[r, 3] = value, v[d], gap, steps
        if gap <= CLOSED and inside(v, reference, bound):
            state[r] = 1
