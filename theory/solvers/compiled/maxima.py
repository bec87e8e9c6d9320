"""Exact minimiser of a quadratic with maxima over atoms: the model of a Newton step where mass may
move from every atom to every other.

    minimise  budget eta + s'Hs/2 + sum_i p_i max_j [h_j + slope_j u_j.s - eta c_ij],   eta >= 0.

A primal active set, as in `kinks`: every atom has a base, a target that is best for it; ties
(i, j) say that j is held as good for i as its base, and takes the mass phi. Each step goes towards
the minimiser on what is held, with an exact line search through the targets that overtake.

It ends for the reasons given there: searches between two minimisers on what is held are finitely
many, and unless lengths are zero the value falls between these, of which there are finitely many.
After steps of length zero the worth of target j for atom i is moved by x_i y_j, tiny and generic:
ties that then meet in a point are independent and all held, as no combination of base ties within
the atoms vanishes for all x and y.
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
from theory.solvers.compiled.kinks import project, solve_linear

_FREE = 20  # searches since the last minimiser on what was held that may pass ties
_IDLE = 12  # searches without a decrease, beyond the number of variables, before ties move apart
_APART = 1e-12  # by how much
_STILL = 1e-25  # slope of a step that is rounding
_BALANCED = 1e-15  # force on eta that is rounding
_EXCESS = 1e-13  # of a multiplier beyond its range, that is rounding
_RISE = 1e-14  # of one target over another within a step, that is rounding
_ABOVE = 1e-15  # of one target over another at the end of a step
_NEVER = 1e100
_MOST = 1000  # steps: rounding obeys no proof


@of_finite
def _top(h: Any, eta: float, row: Any) -> float:
    best = h[0] - eta * row[0]
    for k in range(h.shape[0]):
        best = max(best, h[k] - eta * row[k])
    return best


@of_finite
def _top_apart(h: Any, eta: float, row: Any, x: float, y: Any) -> float:
    best = h[0] - eta * row[0] + x * y[0]
    for k in range(h.shape[0]):
        best = max(best, h[k] - eta * row[k] + x * y[k])
    return best


@piece
def best_target(h: Any, eta: float, row: Any, x: float, y: Any) -> tuple[float, int]:
    """max_j h_j - eta c_j + x y_j and where it is."""
    best = _top(h, eta, row) if x == 0.0 else _top_apart(h, eta, row, x, y)
    at, gap = 0, np.inf
    for k in range(h.shape[0]):
        less = best - (h[k] - eta * row[k] + x * y[k])
        if less < gap:
            at, gap = k, less
            if less <= 0.0:
                break
    return best, at


@reordered
def _overtaken(
    h: Any,
    dh: Any,
    eta: float,
    de: float,
    row: Any,
    x: float,
    y: Any,
    b: int,
    end: float,
) -> tuple[float, int]:
    """When before `end` another target first overtakes the base b, and which; (_NEVER, -1) if none
    does."""
    worth, change = h[b] - eta * row[b] + x * y[b], dh[b] - de * row[b]
    first, at = end, -1
    for k in range(h.shape[0]):
        room = worth - (h[k] - eta * row[k] + x * y[k])
        rise = dh[k] - de * row[k] - change
        if room < first * rise and rise > _RISE and k != b:
            first, at = max(room, 0.0) / rise, k
    return (first, at) if at >= 0 else (_NEVER, -1)


@piece
def _next_tie(
    h: Any,
    dh: Any,
    eta: float,
    de: float,
    row: Any,
    x: float,
    y: Any,
    b: int,
    end: float,
    i: int,
    ties: Any,
    count: int,
) -> tuple[float, int]:
    """The same for an atom with ties, whose targets move with the base."""
    worth, change = h[b] - eta * row[b] + x * y[b], dh[b] - de * row[b]
    first, at = end, -1
    for k in range(h.shape[0]):
        room = worth - (h[k] - eta * row[k] + x * y[k])
        rise = dh[k] - de * row[k] - change
        if rise > _RISE and room < first * rise and k != b:
            tied = False
            for t in range(count):
                tied = tied or (ties[t, 0] == i and ties[t, 1] == k)
            if not tied:
                first, at = max(room, 0.0) / rise, k
    return (first, at) if at >= 0 else (_NEVER, -1)


@piece
def _move_mass(u: Any, slope: Any, cost: Any, i: int, x: float, j: int, b: int, force: Any) -> None:
    """force += x (gradient of target j for atom i, less that of target b)."""
    d = u.shape[0]
    for a in range(d):
        force[a] += x * (slope[j] * u[a, j] - slope[b] * u[a, b])
    force[d] -= x * (cost[i, j] - cost[i, b])


@piece
def _pull_of_bases(
    u: Any,
    slope: Any,
    cost: Any,
    p: Any,
    base: Any,
    arriving: Any,
    budget: float,
    force: Any,
) -> None:
    d, n = u.shape
    arriving[:] = 0.0
    force[d] = budget
    for i in range(n):
        arriving[base[i]] += p[i]
        force[d] -= p[i] * cost[i, base[i]]
    for a in range(d):
        x = 0.0
        for j in range(n):
            x += arriving[j] * slope[j] * u[a, j]
        force[a] = x


@piece
def _let_go(ties: Any, phi: Any, tied: Any, count: int, t: int) -> int:
    tied[ties[t, 0]] -= 1
    count -= 1
    ties[t, 0], ties[t, 1] = ties[count, 0], ties[count, 1]
    phi[t] = phi[count]
    return count


@with_signature(
    boolean(
        MATRIX,
        NUMBERS,
        MATRIX,
        NUMBERS,
        MATRIX,
        NUMBERS,
        float64,
        PLACES,
        NUMBERS,
        NUMBERS,
        int64[:, ::1],
        int64,
        boolean,
        boolean,
        boolean,
        MATRIX,
        NUMBERS,
    )
)
def _to_minimiser(
    H: Any,
    force: Any,
    u: Any,
    slope: Any,
    cost: Any,
    h: Any,
    eta: float,
    base: Any,
    x: Any,
    y: Any,
    ties: Any,
    count: int,
    floor: bool,
    pinned: bool,
    fixed: bool,
    KKT: Any,
    solved: Any,
) -> bool:
    """solved = (step to the minimiser on what is held, its multipliers); False where singular."""
    d = u.shape[0]
    D = d + 1
    size = D + count + (1 if floor else 0)
    for a in range(size):
        for b in range(size):
            KKT[a, b] = H[a, b] if a < d and b < d else 0.0
    for a in range(D):
        solved[a] = -force[a]
    if not pinned:
        KKT[d, d] = 1.0
        solved[d] = 0.0
    for t in range(count):
        i, j = ties[t]
        b = base[i]
        row = D + t
        for a in range(d):
            KKT[row, a] = slope[j] * u[a, j] - slope[b] * u[a, b]
        KKT[row, d] = 0.0 if fixed else cost[i, b] - cost[i, j]
        over = (h[j] - eta * cost[i, j]) - (h[b] - eta * cost[i, b])
        solved[row] = -(over + x[i] * (y[j] - y[b]))
    if floor:
        KKT[size - 1, d] = -1.0
        solved[size - 1] = eta
    for row in range(D, size):
        for a in range(D):
            KKT[a, row] = KKT[row, a]
    return bool(solve_linear(KKT[:size, :size], solved[:size]))


@with_signature(
    types.Tuple((boolean, int64, boolean, int64))(
        MATRIX,
        float64,
        MATRIX,
        NUMBERS,
        MATRIX,
        NUMBERS,
        NUMBERS,
        float64,
        PLACES,
        int64[:, ::1],
        NUMBERS,
        int64,
        boolean,
        boolean,
        NUMBERS,
    )
)
def minimise_with_maxima(
    H: Any,
    budget: float,
    u: Any,
    slope: Any,
    cost: Any,
    p: Any,
    h: Any,
    eta: float,
    base: Any,
    ties: Any,
    phi: Any,
    count: int,
    floor: bool,
    fixed: bool,
    s: Any,
) -> tuple[bool, int, bool, int]:
    """Solve the problem above, from the ties of the last solution or from s = 0.

    Args:
        H: (d, d) symmetric, positive definite.
        u: (d, n). slope: (n,). cost: (n, n) of about size one. p: (n,).
        h: (n,), at the end h_j + slope_j u_j.s.
        eta: where it is.
        base: (n,) int64, at the end the bases.
        ties: (D, 2) int64, the first `count` of them (atom, target), D = d + 1.
        phi: (D,), at the end the mass that goes by each tie.
        floor: whether eta = 0 is held. fixed: whether eta stays what it is.
        s: (D,), at the end the solution, the change of eta last.

    Returns:
        Whether it is solved, `count` and `floor` at the solution, and the steps taken.
    """
    d, n = u.shape
    D = d + 1
    KKT, solved = np.empty((2 * D + 1, 2 * D + 1)), np.empty(2 * D + 1)
    step, force, pull, arriving = np.empty(D), np.empty(D), np.empty(D), np.empty(n)
    dh, ahead = np.empty(n), np.empty(n)
    when, target, tied = np.empty(n), np.empty(n, np.int64), np.zeros(n, np.int64)
    x, y = np.zeros(n), np.zeros(n)
    s[:] = 0.0
    start = eta
    restart, apart = count > 0, False
    idle, searches = 0, 0
    for t in range(count):
        tied[ties[t, 0]] += 1
    for i in range(n):
        if tied[i] == 0 or not restart:
            base[i] = best_target(h, eta, cost[i], 0.0, y)[1]
    _pull_of_bases(u, slope, cost, p, base, arriving, budget, pull)
    for pivot in range(_MOST):
        for a in range(d):
            force[a] = pull[a]
            for b in range(d):
                force[a] += H[a, b] * s[b]
        force[d] = pull[d]
        pinned = floor
        for t in range(count):
            i, j = ties[t]
            pinned = pinned or abs(cost[i, j] - cost[i, base[i]]) > 1e-12
        pinned = pinned and not fixed
        end = 1.0
        if not (pinned or fixed or restart) and abs(force[d]) > _BALANCED:
            step[:] = 0.0
            step[d] = -1.0 if force[d] > 0 else 1.0
            end = _NEVER
        elif _to_minimiser(
            H,
            force,
            u,
            slope,
            cost,
            h,
            eta,
            base,
            x,
            y,
            ties,
            count,
            floor,
            pinned,
            fixed,
            KKT,
            solved,
        ):
            copy(solved, step, D)
        elif not restart:
            return False, count, floor, pivot
        else:  # the ties of last time are no start
            step[:] = 0.0
            while count > 0:
                count = _let_go(ties, phi, tied, count, 0)
        project(u, step, dh)
        for j in range(n):
            dh[j] *= slope[j]
        if restart:
            if eta + step[d] >= 0:
                s += step
                eta += step[d]
                h += dh
            else:
                while count > 0:
                    count = _let_go(ties, phi, tied, count, 0)
            restart = False
            for i in range(n):
                best, at = best_target(h, eta, cost[i], x[i], y)
                b = base[i]
                if tied[i] == 0:
                    base[i] = at
                elif best > h[b] - eta * cost[i, b] + x[i] * y[b] + 1e-14:
                    base[i] = at
                    for t in range(count - 1, -1, -1):
                        if ties[t, 0] == i:
                            count = _let_go(ties, phi, tied, count, t)
            _pull_of_bases(u, slope, cost, p, base, arriving, budget, pull)
            continue
        downhill, bend = force[d] * step[d], 0.0
        for a in range(d):
            downhill += force[a] * step[a]
            for b in range(d):
                bend += step[a] * H[a, b] * step[b]
        if downhill < -_STILL:
            meets = not floor and eta + end * step[d] < 0
            if meets:
                end = eta / -step[d]
            for j in range(n):
                ahead[j] = h[j] + min(end, 1e6) * dh[j]
            late = eta + min(end, 1e6) * step[d]
            for i in range(n):
                when[i] = _NEVER
                if p[i] > 0:
                    b = base[i]
                    if tied[i] > 0:
                        when[i], target[i] = _next_tie(
                            h,
                            dh,
                            eta,
                            step[d],
                            cost[i],
                            x[i],
                            y,
                            b,
                            end,
                            i,
                            ties,
                            count,
                        )
                        continue
                    own = ahead[b] - late * cost[i, b] + x[i] * y[b] + _ABOVE
                    if x[i] == 0.0:
                        best = _top(ahead, late, cost[i])
                    else:
                        best = _top_apart(ahead, late, cost[i], x[i], y)
                    if best > own:
                        when[i], target[i] = _overtaken(
                            h, dh, eta, step[d], cost[i], x[i], y, b, end
                        )
            stop, entering, flips = end, -1, 0
            fall, behind, rate = (
                0.0,
                0.0,
                downhill,
            )  # of the value, up to the last tie passed
            while True:
                i = int(np.argmin(when))
                t_ = when[i]
                if t_ >= end or rate + t_ * bend >= 0:
                    break
                b, j = base[i], target[i]
                jump = p[i] * ((dh[j] - step[d] * cost[i, j]) - (dh[b] - step[d] * cost[i, b]))
                if searches >= _FREE or rate + t_ * bend + jump >= 0:
                    stop, entering = t_, i
                    break
                fall += rate * (t_ - behind) + bend * (t_ * t_ - behind * behind) / 2
                behind = t_
                rate += jump
                flips += 1
                _move_mass(u, slope, cost, i, p[i], j, b, pull)
                base[i] = j
                if tied[i] > 0:
                    for t in range(count - 1, -1, -1):
                        if ties[t, 0] == i:
                            count = _let_go(ties, phi, tied, count, t)
                when[i], target[i] = _overtaken(h, dh, eta, step[d], cost[i], x[i], y, j, end)
                when[i] = max(when[i], t_)
            inside = entering < 0 and flips > 0 and rate + stop * bend > 0
            if inside:
                stop = min(max(-rate / bend, behind), stop)
            if stop >= _NEVER:
                return False, count, floor, pivot
            fall += rate * (stop - behind) + bend * (stop * stop - behind * behind) / 2
            for a in range(D):
                s[a] += stop * step[a]
            eta = start + s[d]
            for j in range(n):
                h[j] += stop * dh[j]
            searches += 1
            if entering >= 0:
                if count + (1 if floor else 0) >= D:
                    return False, count, floor, pivot
                ties[count, 0], ties[count, 1] = entering, target[entering]
                tied[entering] += 1
                count += 1
            elif meets and not inside:
                floor = True
                s[d] = -start
                eta = 0.0
            idle = idle + 1 if fall > -1e-18 else 0
            if idle > _IDLE + D and not apart:
                for i in range(n):
                    x[i] = _APART * (0.5 + ((i * 2654435761) % 4294967296) / 4294967296.0)
                    y[i] = 0.5 + ((i * 2246822519 + 374761393) % 4294967296) / 4294967296.0
                apart = restart = True
            if restart or entering >= 0 or inside or meets or flips > 0:
                continue
        searches = 0
        worst, drop, leaves = 0.0, -1, False
        for t in range(count):
            phi[t] = solved[D + t]
        for t in range(count):
            i = ties[t, 0]
            total = phi[t]
            if tied[i] > 1:
                total = 0.0
                for o in range(count):
                    if ties[o, 0] == i:
                        total += phi[o]
            over = max(-phi[t], total - p[i])
            if over > _EXCESS + 1e-12 * p[i] and over > worst * p[i]:
                worst, drop = over / p[i], t
                leaves = total - p[i] > -phi[t]
        if drop >= 0:
            if leaves:  # the base gives its mass to a tie, which becomes the base
                i, j = ties[drop]
                _move_mass(u, slope, cost, i, p[i], j, base[i], pull)
                base[i] = j
            count = _let_go(ties, phi, tied, count, drop)
        elif floor and solved[D + count] < -_EXCESS:
            floor = False
        else:
            if apart:  # back onto the ties where they are
                x[:] = 0.0
                if not _to_minimiser(
                    H,
                    force,
                    u,
                    slope,
                    cost,
                    h,
                    eta,
                    base,
                    x,
                    y,
                    ties,
                    count,
                    floor,
                    pinned,
                    fixed,
                    KKT,
                    solved,
                ):
                    return False, count, floor, pivot
                for a in range(D):
                    s[a] += solved[a]
                copy(solved[D:], phi, count)
            for t in range(count):
                phi[t] = max(phi[t], 0.0)
            return True, count, floor, pivot
    return False, count, floor, _MOST
