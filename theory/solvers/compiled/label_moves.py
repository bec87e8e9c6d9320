"""W1 with free features and labels: Newton's method on the losses, the kinks exactly.

    min over w and eta >= ||w|| of  eta rho + E [l(m) + (m - kappa eta)_+],   m = w.u,

in units in which beta = 1 and the longest u has length one. A step minimises the quadratic model of
the losses, with the curvature that the cone has at its multiplier, and the kinks and the tangent of
the cone as they are (`kinks`). The certificate is that of `theory.solvers.wasserstein`: the labels
that flip, and what is left of the radius sends features to infinity.
"""

from typing import Any

import numpy as np
from numba import float64

from theory.solvers.compiled.arithmetic import (
    BLOCK,
    CLOSED,
    LOG2,
    add_outer,
    add_pull,
    clear,
    copy,
    inside,
    linear_gap,
    linear_start,
    longest,
    margins,
    moments,
    norm_of,
)
from theory.solvers.compiled.compiling import kernel, piece
from theory.solvers.compiled.kinks import (
    ABOVE,
    BELOW,
    HELD,
    MOST_FEATURES,
    largest_with_mass,
    minimise_with_kinks,
    project,
)
from theory.solvers.compiled.losses import weigh

_DONE = 1e-13  # a gap that no further step needs to lower
_STEPS = 40
_TURNS = 30  # of the direction in which w leaves 0
_NEAR = 0.5  # share of the collapse radius from which on w starts in that direction
_ROUGHLY = 1.3  # ratio of the bounds on that radius from which on the direction is good enough
_EDGE = 1e-6  # of that radius, next to which the solvers above decide whether w is zero


@piece
def _losses(u: Any, p: Any, w: Any, m: Any, a: Any, c: Any, g: Any, h: Any) -> float:
    """E l with m = w.u (n,), sum p s u in g and the Hessian in the lower triangle of h."""
    n = u.shape[1]
    clear(g, h, g.shape[0])
    total = 0.0
    for start in range(0, n, BLOCK):
        count = min(BLOCK, n - start)
        here = m[start : start + count]
        margins(u, start, count, w, 1.0, here)
        total += weigh(here, p[start : start + count], count, a, c)
        add_pull(u, start, count, a, g)
        add_outer(u, start, count, c, h)
    return total


@piece
def _flips(u: Any, p: Any, m: Any, side: Any, held: Any, phi: Any, count: int, pull: Any) -> Any:
    """sum of phi u of the flips phi in `pull`, with sum phi and sum phi m."""
    d, n = u.shape
    pull[:] = 0.0
    mass, worth = 0.0, 0.0
    for j in range(n + count):
        i = j if j < n else held[j - n]
        q = phi[j - n] if j >= n else (p[i] if side[i] == ABOVE else 0.0)
        if q > 0:
            mass += q
            worth += q * m[i]
            for a in range(d):
                pull[a] += q * u[a, i]
    return mass, worth


@piece
def _leaving(
    u: Any, p: Any, still: Any, rho: float, kappa: float, work: Any, s: Any
) -> tuple[bool, float]:
    """Whether flips and moves are found that leave E u = 0, so that w = 0; and a lower bound on the
    radius from which on they are there, with the direction s in which w leaves 0 below it.

    That radius is max over ||s|| <= 1 of s.E u/2 - E (s.u - kappa)_+; Newton's method on the ball
    with the kinks exactly, until it is decided on which side of it rho lies. still: E u/2.
    """
    m, over, slope, side, held, phi = work
    d, n = u.shape
    H, step, rest = np.zeros((d, d)), np.empty(d), np.empty(d)
    best, normal = np.empty(d), np.empty(d)
    c = -still
    length = norm_of(still, d)
    if length <= rho:
        return True, length
    copy(still / length, s, d)
    copy(s, best, d)
    bound, reached, count, on = 0.0, np.inf, 0, True
    for _ in range(_TURNS):
        project(u, s, m)
        below = 0.0
        for i in range(n):
            over[i] = m[i] - kappa
            below += p[i] * min(m[i], 2 * kappa - m[i]) / 2
        if below > bound:
            bound = below
            copy(s, best, d)
        if bound > rho * (1 + _EDGE) and (rho < _NEAR * bound or reached < _ROUGHLY * bound):
            break
        norm = norm_of(s, d)
        for a in range(d):
            H[a, a] = max(length, 1e-6)
            normal[a] = s[a] / norm
        room = max(1.0 - norm, 0.0)
        solved, count, on, _, _ = minimise_with_kinks(
            H,
            c,
            u,
            slope,
            kappa,
            p,
            over,
            side,
            held,
            phi,
            count,
            normal,
            room,
            on,
            step,
        )
        if not solved:
            break
        mass, _ = _flips(u, p, m, side, held, phi, count, rest)
        for a in range(d):
            rest[a] = still[a] - rest[a]
        length = norm_of(rest, d)
        reached = min(reached, length + kappa * mass)
        if reached <= rho:
            return True, bound
        s += step
        norm = norm_of(s, d)
        if norm > 1.0:
            s /= norm
        elif not norm > 0:
            break
    copy(best, s, d)
    return False, bound


@piece
def _solve(
    u: Any,
    p: Any,
    rho: float,
    kappa: float,
    reference: Any,
    bound: float,
    w: Any,
    out: Any,
) -> int:
    """w, and value, eta, gap and steps in `out`, of one problem in units in which beta = 1."""
    d, n = u.shape
    D = d + 1
    m, over, slope, side = np.empty(n), np.empty(n), np.ones(n), np.empty(n)
    held, phi = np.empty(D, np.int64), np.zeros(D)
    work = (m, over, slope, side, held, phi)
    a_, c_ = np.empty(BLOCK), np.empty(BLOCK)
    g, h, M = np.empty(d), np.empty((d, d)), np.empty((d, d))
    flip, x, direction = np.empty(d), np.empty(d), np.empty(d)
    H, c, normal, s = np.zeros((D, D)), np.empty(D), np.empty(D), np.zeros(D)
    moments(u, p, g, h)
    if not linear_start(g, h, 1.0, M, w):
        return 0
    collapsed, threshold = _leaving(u, p, g / 2, rho, kappa, work, direction)
    if collapsed:
        w[:] = 0.0
        out[0], out[1], out[2] = LOG2, 0.0, 0.0
        return 2
    eta = 0.0
    if not threshold > rho * (1 + _EDGE):
        return 0
    if rho < _NEAR * threshold:  # robust solutions are shorter by what the radius takes away
        w *= 1 - rho / threshold
    else:
        bend = 0.0
        for a in range(d):
            for b in range(d):
                bend += direction[a] * direction[b] * (h[a, b] if b <= a else h[b, a]) / 4
        eta = (threshold - rho) / bend
        copy(direction * eta, w, d)
    project(u, w, m)
    norm = norm_of(w, d)
    count, on = 0, eta <= norm
    if eta == 0.0:  # where flips use up the radius, or on the cone
        eta = norm
        at = largest_with_mass(m, p, rho / kappa)
        if at >= 0 and m[at] > kappa * norm:
            eta, count, on = m[at] / kappa, 1, False
            held[0], phi[0] = at, p[at] / 2
    nu = 0.0
    f_old, gap_old = np.inf, np.inf
    for steps in range(_STEPS):
        norm = norm_of(w, d)
        if not norm * norm < 1e200:
            return 0
        f = eta * rho + _losses(u, p, w, m, a_, c_, g, h)
        expected = f - eta * rho
        for i in range(n):
            over[i] = m[i] - kappa * eta
            f += p[i] * max(over[i], 0.0)
            side[i] = ABOVE if over[i] > 0 else BELOW
        for j in range(count):
            side[held[j]] = HELD
        mass, worth = _flips(u, p, m, side, held, phi, count, flip)
        # lower bound: these flips, and what is left of the radius sends features to infinity
        share = min(1.0, rho / max(kappa * mass, 1e-300))
        left = max(rho - kappa * mass * share, 0.0)
        for a in range(d):
            x[a] = share * flip[a] - g[a] + left * w[a] / max(norm, 1e-300)
        gap = f - expected - share * worth - left * norm + linear_gap(w, x, reference, bound)
        out[0], out[1], out[2], out[3] = f, eta, gap, steps
        if steps > 0 and gap <= CLOSED * min(f, 1.0) and (gap <= _DONE or gap > gap_old / 4):
            return 1 if inside(w, reference, bound) else 0
        if norm < 1e-9:
            return 0
        if steps > 0 and f > f_old + 1e-14 and gap > gap_old / 2:  # too far: half of the way back
            s *= 0.5
            for a in range(d):
                w[a] -= s[a]
            eta = max(eta - s[d], norm_of(w, d))
            if norm_of(s, D) < 1e-12:
                return 0
            continue
        f_old, gap_old = f, gap
        for a in range(d):
            for b in range(d):
                round = ((1.0 if a == b else 0.0) - w[a] * w[b] / norm**2) / norm
                H[a, b] = (h[a, b] if b <= a else h[b, a]) + (nu * round if on else 0.0)
            c[a] = -g[a]
            normal[a] = w[a] / norm
        c[d], normal[d] = rho, -1.0
        solved, count, on, nu, _ = minimise_with_kinks(
            H,
            c,
            u,
            slope,
            kappa,
            p,
            over,
            side,
            held,
            phi,
            count,
            normal,
            max(eta - norm, 0.0),
            on,
            s,
        )
        if not solved:
            return 0
        for a in range(d):
            w[a] += s[a]
        norm = norm_of(w, d)
        eta = norm if on else max(eta + s[d], norm)
    return 0


@kernel(float64)
def batch(
    rows: Any,
    ut: Any,
    p: Any,
    beta: float,
    bound: float,
    reference: Any,
    size: Any,
    kappa: float,
    w: Any,
    numbers: Any,
    state: Any,
) -> None:
    """See `theory.solvers.compiled.batches`; `size` is the radius, kappa the cost of a label."""
    d = ut.shape[1]
    if d > MOST_FEATURES:
        return
    for r in rows:
        u = ut[r % ut.shape[0]]
        far = longest(u)
        if not far > 0:
            continue
        unit = beta * far
        state[r] = _solve(
            u / far,
            p[r % p.shape[0]],
            size[r] / far,
            kappa / far,
            reference * unit,
            bound * unit,
            w[r],
            numbers[r],
        )
        for a in range(d):
            w[r, a] /= unit
        numbers[r, 1] /= far
