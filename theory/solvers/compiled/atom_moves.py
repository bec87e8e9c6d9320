"""Wasserstein balls on the atoms: Newton's method on the losses, the maxima over atoms exactly.

    min over w, eta >= 0 of  eta budget + sum_i p_i max_j [l(m_j) - eta c_ij],   m = w.u,

in units in which beta = 1 and the longest u and the largest cost are one. A step minimises the
quadratic model of the losses, weighted as the last plan says, and the maxima of their tangents as
they are (`maxima`). The certificate is that of `theory.solvers.wasserstein`: the plan, mixed with
staying put until it meets the budget.
"""

from typing import Any

import numpy as np
from numba import float64

from theory.solvers.compiled.arithmetic import (
    CLOSED,
    LOG2,
    copy,
    inside,
    linear_gap,
    linear_start,
    longest,
    loss_and_slope,
    moments,
    norm_of,
)
from theory.solvers.compiled.compiling import kernel, piece
from theory.solvers.compiled.kinks import MOST_FEATURES
from theory.solvers.compiled.maxima import best_target, minimise_with_maxima
from theory.solvers.compiled.uniqueness import spans

_DONE = 1e-13  # a gap that no further step needs to lower
_STEPS = 40
_TURNS, _NEARNESS = (
    30,
    0.01,
)  # proximal steps towards the collapse radius, and their weight
_DOUBT = 1e-3  # below log 2, where collapse is asked for
_EDGE = 1e-11  # below log 2, where the solvers above decide whether w is zero
_SHORTER = 0.7  # of DPO's first step, where the method starts


@piece
def _spent(l: Any, eta: float, p: Any, cost: Any, none: Any) -> float:
    """What the plan of best targets costs."""
    total = 0.0
    for i in range(p.shape[0]):
        if p[i] > 0:
            total += p[i] * cost[i, best_target(l, eta, cost[i], 0.0, none)[1]]
    return total


@piece
def _first_eta(l: Any, p: Any, cost: Any, budget: float, none: Any) -> float:
    """About where the plan of best targets meets the budget."""
    low, high = 0.0, 1.0
    while high < 1e12 and _spent(l, high, p, cost, none) > budget:
        low, high = high, 2.0 * high
    for _ in range(5):
        middle = (low + high) / 2
        if _spent(l, middle, p, cost, none) > budget:
            low = middle
        else:
            high = middle
    return high


@piece
def _collapses(u: Any, p: Any, cost: Any, budget: float, rest: float, q: Any) -> bool:
    """Whether a plan within the budget is found that leaves E u = 0; the arriving mass in q.

    The least budget is max over s of -sum_i p_i max_j [-s.u_j/2 - c_ij]: proximal steps, exact
    each, end after finitely many (Ferris 1991, doi:10.1007/BF01594943). rest: length of E u that is
    none.
    """
    d, n = u.shape
    D = d + 1
    slope, h, none = np.full(n, -0.5), np.zeros(n), np.zeros(n)
    base, ties, phi = np.zeros(n, np.int64), np.empty((D, 2), np.int64), np.zeros(D)
    H, step, pull, count = np.zeros((d, d)), np.empty(D), np.empty(d), 0
    for a in range(d):
        H[a, a] = _NEARNESS
    for _ in range(_TURNS):
        least = 0.0
        for i in range(n):
            if p[i] > 0:
                least -= p[i] * best_target(h, 1.0, cost[i], 0.0, none)[0]
        if least > budget:
            return False
        solved, count, _, _ = minimise_with_maxima(
            H, 0.0, u, slope, cost, p, h, 1.0, base, ties, phi, count, False, True, step
        )
        if not solved:
            return False
        spent = _arrivals(p, cost, base, ties, phi, count, q)
        pull[:] = 0.0
        for j in range(n):
            for a in range(d):
                pull[a] += q[j] * u[a, j]
        if spent <= budget and np.dot(pull, pull) <= rest * rest:
            return True
    return False


@piece
def _arrivals(p: Any, cost: Any, base: Any, ties: Any, phi: Any, count: int, q: Any) -> float:
    """Mass that arrives at each atom, and what the plan costs."""
    q[:] = 0.0
    spent = 0.0
    for i in range(p.shape[0]):
        if p[i] > 0:
            q[base[i]] += p[i]
            spent += p[i] * cost[i, base[i]]
    for t in range(count):
        i, j = ties[t]
        q[j] += phi[t]
        q[base[i]] -= phi[t]
        spent += phi[t] * (cost[i, j] - cost[i, base[i]])
    for j in range(p.shape[0]):
        q[j] = max(q[j], 0.0)
    return spent


@piece
def _solve(
    u: Any,
    p: Any,
    cost: Any,
    budget: float,
    reference: Any,
    bound: float,
    rest: float,
    w: Any,
    out: Any,
) -> int:
    """w, and value, eta, gap and steps in `out`, of one problem in its own units; `rest` is a gap
    at w = 0 that is none."""
    d, n = u.shape
    D = d + 1
    l, slope, curve, h, q = (
        np.empty(n),
        np.empty(n),
        np.empty(n),
        np.empty(n),
        np.empty(n),
    )
    base, ties, phi = np.empty(n, np.int64), np.empty((D, 2), np.int64), np.zeros(D)
    g, M, H, s = np.empty(d), np.empty((d, d)), np.empty((d, d)), np.zeros(D)
    still, none = np.empty(d), np.zeros(n)
    moments(u, p, g, H)
    if not linear_start(g, H, 1.0, M, w):
        return 0
    w *= _SHORTER
    eta, count, floor, asked = -1.0, 0, False, False
    f_old, gap_old = np.inf, np.inf
    for steps in range(_STEPS):
        top = 0.0
        for j in range(n):
            m = 0.0
            for a in range(d):
                m += w[a] * u[a, j]
            l[j], x = loss_and_slope(m)
            slope[j], curve[j] = -x, x * (1.0 - x)
            top = max(top, abs(m))
        if not (top < 1e8 and (top > 1e-7 or not asked)):
            return 0
        if eta < 0:
            eta = _first_eta(l, p, cost, budget, none)
            floor = eta == 0.0
        f = eta * budget
        for i in range(n):
            if p[i] > 0:
                best, at = best_target(l, eta, cost[i], 0.0, none)
                f += p[i] * best
                held = False
                for t in range(count):
                    held = held or ties[t, 0] == i
                if not held:
                    base[i] = at
        if f > LOG2 - _DOUBT and not asked:
            asked = True
            length = rest / (bound + norm_of(reference, d))
            if _collapses(u, p, cost, budget, length, q):
                w[:] = 0.0
                out[0], out[1], out[2], out[3] = LOG2, 0.0, 0.5 * rest, steps
                return 2 if spans(u, q, p) else 0
        spent = _arrivals(p, cost, base, ties, phi, count, q)
        # lower bound: this plan, mixed with staying put
        share = min(1.0, budget / max(spent, 1e-300))
        expected = 0.0
        g[:] = 0.0
        still[:] = 0.0
        for j in range(n):
            mass = share * q[j] + (1.0 - share) * p[j]
            q[j] = mass
            expected += mass * l[j]
            for a in range(d):
                g[a] += mass * slope[j] * u[a, j]
                still[a] -= 0.5 * mass * u[a, j]
        gap = f - expected + linear_gap(w, g, reference, bound)
        out[0], out[1], out[2], out[3] = f, eta, gap, steps
        at_rest = linear_gap(np.zeros(d), still, reference, bound)
        if at_rest <= rest:
            w[:] = 0.0
            out[0], out[1], out[2] = LOG2, eta, max(at_rest, 0.0)
            return 2 if spans(u, q, p) else 0
        if steps > 0 and gap <= CLOSED * min(f, 1.0) and (gap <= _DONE or gap > gap_old / 4):
            sure = f < LOG2 - _EDGE and inside(w, reference, bound)
            return 1 if sure and spans(u, q, p) else 0
        if steps > 0 and f > f_old + 1e-14 and gap > gap_old / 2:  # too far: half of the way back
            s *= 0.5
            for a in range(d):
                w[a] -= s[a]
            eta = max(eta - s[d], 0.0)
            floor = eta == 0.0
            count = 0
            if not np.dot(s, s) > 1e-24:
                return 0
            continue
        f_old, gap_old = f, gap
        for a in range(d):
            for b in range(a + 1):
                x = 0.0
                for j in range(n):
                    x += q[j] * curve[j] * u[a, j] * u[b, j]
                H[a, b] = x
                H[b, a] = x
        copy(l, h, n)
        solved, count, floor, _ = minimise_with_maxima(
            H,
            budget,
            u,
            slope,
            cost,
            p,
            h,
            eta,
            base,
            ties,
            phi,
            count,
            floor,
            False,
            s,
        )
        if not solved:
            return 0
        for a in range(d):
            w[a] += s[a]
        eta = 0.0 if floor else max(eta + s[d], 0.0)
    return 0


@kernel(float64[:, ::1])
def batch(
    rows: Any,
    ut: Any,
    p: Any,
    beta: float,
    bound: float,
    reference: Any,
    size: Any,
    cost: Any,
    w: Any,
    numbers: Any,
    state: Any,
) -> None:
    """See `theory.solvers.compiled.batches`; `size` is the budget, cost (n, n) that of a move."""
    d, n = ut.shape[1], ut.shape[2]
    if d > MOST_FEATURES:
        return
    largest = 0.0
    for i in range(n):
        for j in range(n):
            largest = max(largest, cost[i, j])
    if not largest > 0:
        return
    unit_cost = cost / largest
    for r in rows:
        u, weights = ut[r % ut.shape[0]], p[r % p.shape[0]]
        far, most = longest(u), 0.0
        for i in range(n):
            dearest = 0.0
            for j in range(n):
                dearest = max(dearest, unit_cost[i, j])
            most += weights[i] * dearest
        budget = min(size[r] / largest, 1.01 * most)  # no plan costs more than all moves
        if not (far > 0 and budget > 0):
            continue
        unit = beta * far
        state[r] = _solve(
            u / far,
            weights,
            unit_cost,
            budget,
            reference * unit,
            bound * unit,
            1e-11 * min(beta, 1.0),
            w[r],
            numbers[r],
        )
        for a in range(d):
            w[r, a] /= unit
        numbers[r, 1] /= largest
