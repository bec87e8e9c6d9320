"""Exact minimiser of a quadratic with kinks: the model of a Newton step where losses have kinks.

    minimise  c.s + s'Hs/2 + sum_k price_k (r_k + a_k.s)_+     subject to  normal.s <= room.

s = (s_w, s_e), with H positive definite in s_w and zero in the extra variables s_e. Kink
k = g n + i of group g has a_k = (slope_i u_i, -cost at extra variable g); without extra variables
there is one group. A primal active set: kinks are held at r_k + a_k.s = 0, or lie below or above.
Each step goes towards the minimiser on what is held, with an exact line search through the kinks
that it meets.

Why it ends. No search raises the value. Between two minimisers on what is held there are finitely
many searches: those that stop at a kink hold it, at most as many as there are variables, and after
`_FREE` of them every search stops at the first kink it meets. At such a minimiser either the
multipliers say that it is the solution, or something is let go and the next step leads downhill.
Unless its length is zero the value falls strictly, so that no choice of held kinks and sides, of
which there are finitely many, comes back. The length can be zero only where more kinks meet than
are held. After a few such steps the r_k are moved apart, each by a tiny amount of its own (but for
amounts of measure zero, kinks then meet in a point only where their normals are independent, and
are all held there). At the end the amounts are taken back on the kinks that are held.

Nocedal and Wright, Numerical Optimization, sections 13.5 and 16.5 (degeneracy, active sets);
Charnes (1952), doi:10.2307/1907845 (perturbation); Rockafellar and Wets, Variational Analysis,
section 10.E (piecewise linear-quadratic functions).
"""

from typing import Any

import numpy as np
from numba import boolean, float64, int64, types

from theory.solvers.compiled.arithmetic import copy
from theory.solvers.compiled.compiling import (
    MATRIX,
    NUMBERS,
    PLACES,
    of_finite,
    piece,
    reordered,
    with_signature,
)

MOST_FEATURES = 64  # by operation count: every one of many iterations solves a system of this size
BELOW, ABOVE, HELD = -1.0, 1.0, 0.0  # those without a price are as if held
_FREE = 20  # searches since the last minimiser on what was held that may pass kinks
_IDLE = 12  # searches without a decrease, beyond the number of variables, before kinks move apart
_APART = 1e-12  # by how much; margins, losses and radii are of size one
_STILL = 1e-25  # slope of a step that is rounding
_BALANCED = 1e-15  # force on an extra variable that is rounding
_EXCESS = 1e-13  # of a multiplier beyond its range, that is rounding
_SCAN = 64  # kinks looked at together
_MOST = 1000  # steps: rounding obeys no proof


@piece
def solve_linear(A: Any, b: Any) -> bool:
    """b := A^-1 b by elimination with row exchanges, in place; False where A is singular."""
    n = b.shape[0]
    for j in range(n):
        row = j
        largest = abs(A[j, j])
        for i in range(j + 1, n):
            if abs(A[i, j]) > largest:
                largest = abs(A[i, j])
                row = i
        if not largest > 1e-14:
            return False
        if row != j:
            for k in range(j, n):
                A[j, k], A[row, k] = A[row, k], A[j, k]
            b[j], b[row] = b[row], b[j]
        for i in range(j + 1, n):
            f = A[i, j] / A[j, j]
            if f != 0.0:
                for k in range(j + 1, n):
                    A[i, k] -= f * A[j, k]
                b[i] -= f * b[j]
    for i in range(n - 1, -1, -1):
        x = b[i]
        for k in range(i + 1, n):
            x -= A[i, k] * b[k]
        b[i] = x / A[i, i]
    return True


@reordered
def project(u: Any, w: Any, into: Any) -> None:
    """into_i = w.u_i, for u (d, n), w (d or more,)."""
    d, n = u.shape
    for start in range(0, n, 1024):
        count = min(1024, n - start)
        o = into[start : start + count]
        for i in range(count):
            o[i] = 0.0
        for k in range(d):
            x = w[k]
            row = u[k, start : start + count]
            for i in range(count):
                o[i] += x * row[i]


@reordered
def _changes(u: Any, slope: Any, cost: float, step: Any, dr: Any) -> None:
    """dr_k = a_k.step of all kinks."""
    d, n = u.shape
    extras = step.shape[0] - d
    project(u, step, dr[:n])
    for i in range(n):
        dr[i] *= slope[i]
    for g in range(extras - 1, -1, -1):
        shift = cost * step[d + g]
        for i in range(n):
            dr[g * n + i] = dr[i] - shift


@piece
def _push(u: Any, slope: Any, cost: float, k: int, x: float, force: Any) -> None:
    """force += x a_k."""
    d, n = u.shape
    i = k % n
    for a in range(d):
        force[a] += x * slope[i] * u[a, i]
    if force.shape[0] > d:
        force[d + k // n] -= x * cost


@piece
def _take_sides(
    u: Any,
    slope: Any,
    cost: float,
    price: Any,
    r: Any,
    held: Any,
    count: int,
    side: Any,
    force: Any,
) -> None:
    """The sides of all kinks at the residuals r, and the force of those above."""
    for k in range(r.shape[0]):
        side[k] = HELD if price[k] <= 0 else (ABOVE if r[k] > 0 else BELOW)
    for j in range(count):
        side[held[j]] = HELD
    force[:] = 0.0
    for k in range(r.shape[0]):
        if side[k] == ABOVE:
            _push(u, slope, cost, k, price[k], force)


@of_finite
def _any_crosses(r: Any, dr: Any, side: Any, end: float) -> bool:
    least = 0.0
    for k in range(r.shape[0]):
        least = min(least, side[k] * (r[k] + end * dr[k]))
    return least < 0.0


@piece
def _crossed(r: Any, dr: Any, side: Any, end: float, when: Any, which: Any) -> int:
    """The kinks that change sides within a step of length `end`, and when; how many."""
    m = 0
    for start in range(0, r.shape[0], _SCAN):
        stop = min(start + _SCAN, r.shape[0])
        if _any_crosses(r[start:stop], dr[start:stop], side[start:stop], end):
            for k in range(start, stop):
                if side[k] * (r[k] + end * dr[k]) < 0.0:
                    when[m] = max(-r[k] / dr[k], 0.0)
                    which[m] = k
                    m += 1
    return m


@piece
def sift(when: Any, which: Any, at: int, m: int) -> None:
    """Restore the heap, whose first is the earliest, below the place `at`."""
    t, k = when[at], which[at]
    while True:
        child = 2 * at + 1
        if child >= m:
            break
        if child + 1 < m and when[child + 1] < when[child]:
            child += 1
        if when[child] >= t:
            break
        when[at], which[at] = when[child], which[child]
        at = child
    when[at], which[at] = t, k


@piece
def largest_with_mass(x: Any, p: Any, mass: float) -> int:
    """The entry of x (n,) at which those that are larger, and itself, have the mass; -1 where all
    have not."""
    n = x.shape[0]
    when, which = np.empty(n), np.empty(n, np.int64)
    for i in range(n):
        when[i], which[i] = -x[i], i
    for at in range(n // 2 - 1, -1, -1):
        sift(when, which, at, n)
    total = 0.0
    for m in range(n - 1, -1, -1):
        i = which[0]
        total += p[i]
        if total >= mass:
            return int(i)
        when[0], which[0] = when[m], which[m]
        sift(when, which, 0, m)
    return -1


@with_signature(
    boolean(
        MATRIX,
        NUMBERS,
        MATRIX,
        NUMBERS,
        float64,
        NUMBERS,
        PLACES,
        int64,
        boolean,
        NUMBERS,
        float64,
        boolean[::1],
        MATRIX,
        NUMBERS,
    )
)
def _to_minimiser(
    H: Any,
    force: Any,
    u: Any,
    slope: Any,
    cost: float,
    r: Any,
    held: Any,
    count: int,
    on: bool,
    normal: Any,
    left: float,
    pinned: Any,
    KKT: Any,
    solved: Any,
) -> bool:
    """solved = (step to the minimiser on what is held, its multipliers); False where singular.

    Extra variables that nothing pins do not move.
    """
    D = H.shape[0]
    d, n = u.shape
    size = D + count + (1 if on else 0)
    for a in range(size):
        for b in range(size):
            KKT[a, b] = H[a, b] if a < D and b < D else 0.0
    for a in range(D):
        solved[a] = -force[a]
    for g in range(D - d):
        if not pinned[g]:
            KKT[d + g, d + g] = 1.0
            solved[d + g] = 0.0
    for j in range(count):
        i = held[j] % n
        row = D + j
        for a in range(d):
            KKT[row, a] = slope[i] * u[a, i]
        if d < D:
            KKT[row, d + held[j] // n] = -cost
        solved[row] = -r[held[j]]
    if on:
        for a in range(D):
            KKT[size - 1, a] = normal[a]
        solved[size - 1] = left
    for row in range(D, size):
        for a in range(D):
            KKT[a, row] = KKT[row, a]
    return bool(solve_linear(KKT[:size, :size], solved[:size]))


@piece
def _move_apart(r: Any, amount: float) -> None:
    for k in range(r.shape[0]):
        r[k] += amount * (0.5 + ((k * 2654435761) % 4294967296) / 4294967296.0)


@with_signature(
    types.Tuple((boolean, int64, boolean, float64, int64))(
        MATRIX,
        NUMBERS,
        MATRIX,
        NUMBERS,
        float64,
        NUMBERS,
        NUMBERS,
        NUMBERS,
        PLACES,
        NUMBERS,
        int64,
        NUMBERS,
        float64,
        boolean,
        NUMBERS,
    )
)
def minimise_with_kinks(
    H: Any,
    c: Any,
    u: Any,
    slope: Any,
    cost: float,
    price: Any,
    r: Any,
    side: Any,
    held: Any,
    phi: Any,
    count: int,
    normal: Any,
    room: float,
    on: bool,
    s: Any,
) -> tuple[bool, int, bool, float, int]:
    """Solve the problem above, from what was held at the last solution or from s = 0.

    Args:
        H: (D, D) symmetric. c: (D,).
        u: (d, n). slope: (n,). cost: > 0.
        price: (K,) of the kinks, K = n times the larger of D - d and 1; those without do not exist.
        r: (K,), at the end r_k + a_k.s.
        side: (K,), at the end BELOW, ABOVE or HELD.
        held: (D,) int64, the first `count` of them the kinks that are held.
        phi: (D,), at the end the multipliers of the kinks held, within 0 and their price.
        normal: (D,), zero for no constraint. room: >= 0. on: whether it is held.
        s: (D,), at the end the solution.

    Returns:
        Whether it is solved, `count` and `on` at the solution, the multiplier of the constraint,
        and the steps taken.
    """
    D = H.shape[0]
    d, n = u.shape
    K = r.shape[0]
    KKT, solved = np.empty((2 * D + 1, 2 * D + 1)), np.empty(2 * D + 1)
    step, force, above = np.empty(D), np.empty(D), np.empty(D)
    pinned = np.empty(D - d, np.bool_)
    dr, when, which = np.empty(K), np.empty(K), np.empty(K, np.int64)
    s[:] = 0.0
    nu = 0.0
    restart = count > 0 or on  # first onto what is held
    apart = False
    idle, searches = 0, 0
    _take_sides(u, slope, cost, price, r, held, count, side, above)
    for pivot in range(_MOST):
        left = room
        for a in range(D):
            force[a] = c[a] + above[a]
            for b in range(D):
                force[a] += H[a, b] * s[b]
            left -= normal[a] * s[a]
        pinned[:] = on
        if d < D:
            for j in range(count):
                pinned[held[j] // n] = True
        free = -1
        for g in range(D - d):
            if not pinned[g] and abs(force[d + g]) > _BALANCED:
                free = g
        end = 1.0
        if free >= 0 and not restart:
            step[:] = 0.0
            step[d + free] = -1.0 if force[d + free] > 0 else 1.0
            end = 1e100
        elif _to_minimiser(
            H,
            force,
            u,
            slope,
            cost,
            r,
            held,
            count,
            on,
            normal,
            left,
            pinned,
            KKT,
            solved,
        ):
            copy(solved, step, D)
        elif not restart:
            return False, count, on, nu, pivot
        else:  # what was held is no start
            count, on, restart = 0, False, False
            _take_sides(u, slope, cost, price, r, held, count, side, above)
            continue
        _changes(u, slope, cost, step, dr)
        downhill, bend, towards = 0.0, 0.0, 0.0
        for a in range(D):
            downhill += force[a] * step[a]
            towards += normal[a] * step[a]
            for b in range(D):
                bend += step[a] * H[a, b] * step[b]
        if restart:
            if on or towards <= left:
                for a in range(D):
                    s[a] += step[a]
                for k in range(K):
                    r[k] += dr[k]
                for j in range(count):
                    r[held[j]] = 0.0
            else:
                count = 0
            restart = False
            _take_sides(u, slope, cost, price, r, held, count, side, above)
            continue
        if downhill < -_STILL:
            meets = not on and towards > 0 and left < end * towards
            if meets:
                end = max(left / towards, 0.0)
            m = _crossed(r, dr, side, end, when, which)
            for at in range(m // 2 - 1, -1, -1):
                sift(when, which, at, m)
            stop, entering, flips = end, -1, 0
            fall, behind, rate = (
                0.0,
                0.0,
                downhill,
            )  # of the value, up to the last kink passed
            while m > 0:
                t, k = when[0], which[0]
                if rate + t * bend >= 0:
                    break
                jump = price[k] * abs(dr[k])
                if searches >= _FREE or rate + t * bend + jump >= 0:
                    stop, entering = t, k
                    break
                fall += rate * (t - behind) + bend * (t * t - behind * behind) / 2
                behind = t
                rate += jump
                flips += 1
                _push(
                    u,
                    slope,
                    cost,
                    k,
                    price[k] if side[k] == BELOW else -price[k],
                    above,
                )
                side[k] = ABOVE if side[k] == BELOW else BELOW
                m -= 1
                when[0], which[0] = when[m], which[m]
                sift(when, which, 0, m)
            inside = entering < 0 and flips > 0 and rate + stop * bend > 0
            if inside:
                stop = min(max(-rate / bend, behind), stop)
            if stop >= 1e100:
                return False, count, on, nu, pivot
            fall += rate * (stop - behind) + bend * (stop * stop - behind * behind) / 2
            for a in range(D):
                s[a] += stop * step[a]
            for k in range(K):
                r[k] += stop * dr[k]
            searches += 1
            if entering >= 0:
                if count + (1 if on else 0) >= D:
                    return False, count, on, nu, pivot
                if side[entering] == ABOVE:
                    _push(u, slope, cost, entering, -price[entering], above)
                side[entering] = HELD
                r[entering] = 0.0
                held[count] = entering
                count += 1
            elif meets and not inside:
                on = True
            idle = idle + 1 if fall > -1e-18 else 0
            if idle > _IDLE + D and not apart:
                _move_apart(r, _APART)
                apart = restart = True
            if restart or entering >= 0 or inside or meets or flips > 0:
                continue
        searches = 0
        worst, drop = 0.0, -1
        for j in range(count):
            phi[j] = solved[D + j]
            p = price[held[j]]
            over = max(-phi[j], phi[j] - p)
            if over > _EXCESS + 1e-12 * p and over > worst * p:
                worst, drop = over / p, j
        nu = solved[D + count] if on else 0.0
        if drop >= 0:
            k = held[drop]
            side[k] = BELOW
            if phi[drop] > price[k] / 2:
                side[k] = ABOVE
                _push(u, slope, cost, k, price[k], above)
            count -= 1
            held[drop] = held[count]
        elif nu < -_EXCESS:
            on = False
        else:
            if apart:  # back onto the kinks where they are
                _move_apart(r, -_APART)
                if not _to_minimiser(
                    H,
                    force,
                    u,
                    slope,
                    cost,
                    r,
                    held,
                    count,
                    on,
                    normal,
                    left,
                    pinned,
                    KKT,
                    solved,
                ):
                    return False, count, on, nu, pivot
                copy(solved, step, D)
                _changes(u, slope, cost, step, dr)
                s += step
                r += dr
                copy(solved[D:], phi, count)
            for j in range(count):
                phi[j] = min(max(phi[j], 0.0), price[held[j]])
            return True, count, on, max(nu, 0.0), pivot
    return False, count, on, nu, _MOST
