"""Sets whose worst case weighs the pairs with the largest losses: Newton's method on the losses,
the kinks exactly.

    min over w, e of  sum_g [ mass_g e_g + sum_i price_gi (l_i - e_g)_+ ],   l_i = l(w.u_i),

in units in which beta = 1 and the longest u has length one. With one e this is CVaR, e the
threshold; total variation has a second one, the largest loss. The multipliers of group g sum to
mass_g, and over the groups to the weights q of the worst case, from which the certificate comes.
"""

from typing import Any

import numpy as np

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
    loss_and_slope,
    margins,
    moments,
)
from theory.solvers.compiled.compiling import piece, reordered
from theory.solvers.compiled.kinks import largest_with_mass, minimise_with_kinks
from theory.solvers.compiled.uniqueness import spans

_DONE = 1e-13  # a gap that no further step needs to lower
_STEPS = 40
_AT_REST = 1e-7  # below log 2, where the solvers above decide whether w is zero


@reordered
def _losses(u: Any, w: Any, l: Any, slope: Any) -> None:
    """l_i and its slope -s_i at the margin w.u_i."""
    n = u.shape[1]
    for start in range(0, n, BLOCK):
        count = min(BLOCK, n - start)
        margins(u, start, count, w, 1.0, l[start : start + count])
    for i in range(n):
        loss, s = loss_and_slope(l[i])
        l[i], slope[i] = loss, -s


@piece
def _to_mass(q: Any, price: Any, mass: float, bounded: bool) -> None:
    """Multipliers that sum to the mass: what is missing goes to the room that they have, or to all
    in proportion where nothing bounds them."""
    total, room = 0.0, 0.0
    for i in range(q.shape[0]):
        total += q[i]
        room += price[i] - q[i]
    if total < mass and bounded:
        share = (mass - total) / room
        for i in range(q.shape[0]):
            q[i] += share * (price[i] - q[i])
    else:
        for i in range(q.shape[0]):
            q[i] *= mass / total


@piece
def _sums(u: Any, q: Any, slope: Any, a: Any, c: Any, g: Any, h: Any) -> None:
    """sum q slope u in g, and sum q s (1 - s) u u' in the lower triangle of h."""
    n = u.shape[1]
    clear(g, h, g.shape[0])
    for start in range(0, n, BLOCK):
        count = min(BLOCK, n - start)
        for i in range(count):
            x = slope[start + i]
            a[i] = q[start + i] * x
            c[i] = -a[i] * (1.0 + x)
        add_pull(u, start, count, a, g)
        add_outer(u, start, count, c, h)


@piece
def solve_tail(
    ut: Any,
    p: Any,
    beta: float,
    bound: float,
    reference: Any,
    mass: Any,
    price: Any,
    w: Any,
    out: Any,
) -> int:
    """w, and value, the last e, gap and steps in `out`, of one problem; its state.

    mass: (G,). price: (G n,); a second group is a maximum over the pairs that have a price there.
    """
    d, n = ut.shape
    groups = mass.shape[0]
    D = d + groups
    far = longest(ut)
    if not far > 0:
        return 0
    unit = beta * far
    u, reference, bound = ut / far, reference * unit, bound * unit
    l, slope, r, side = (
        np.empty(n),
        np.empty(n),
        np.empty(groups * n),
        np.empty(groups * n),
    )
    held, phi, q, share = (
        np.empty(D, np.int64),
        np.zeros(D),
        np.empty(n),
        np.empty(groups * n),
    )
    a_, c_ = np.empty(BLOCK), np.empty(BLOCK)
    g, h, M = np.empty(d), np.empty((d, d)), np.empty((d, d))
    H, c, normal, s, e = (
        np.zeros((D, D)),
        np.zeros(D),
        np.zeros(D),
        np.zeros(D),
        np.empty(groups),
    )
    moments(u, p, g, h)
    if not linear_start(g, h, 1.0, M, w):
        return 0
    count = 0
    f_old, gap_old = np.inf, np.inf
    for steps in range(_STEPS):
        _losses(u, w, l, slope)
        if steps == 0:
            e[0] = l[max(largest_with_mass(l, price[:n], mass[0]), 0)]
        if groups > 1:
            e[1] = 0.0
            for i in range(n):
                if price[n + i] > 0:
                    e[1] = max(e[1], l[i])
        f = 0.0
        for k in range(groups):
            f += mass[k] * e[k]
        for k in range(groups * n):
            r[k] = l[k % n] - e[k // n]
            f += price[k] * max(r[k], 0.0)
            share[k] = price[k] if r[k] > 0 else 0.0
        for j in range(count):
            share[held[j]] = phi[j]
        if steps == 0 and groups > 1:  # no multipliers yet: the largest loss has all of the mass
            for i in range(n):
                if price[n + i] > 0 and r[n + i] >= 0:
                    share[n + i] = mass[1]
        for k in range(groups):
            part = slice(k * n, (k + 1) * n)
            _to_mass(share[part], price[part], mass[k], k == 0)
        expected = 0.0
        for i in range(n):
            q[i] = share[i] + (share[n + i] if groups > 1 else 0.0)
            expected += q[i] * l[i]
        _sums(u, q, slope, a_, c_, g, h)
        gap = f - expected + linear_gap(w, g, reference, bound)
        out[0], out[1], out[2], out[3] = f, e[0], gap, steps
        if groups > 1:
            out[1] = e[1] - e[0]
        if not f < 1e8:
            return 0
        if steps > 0 and gap <= CLOSED * min(f, 1.0) and (gap <= _DONE or gap > gap_old / 4):
            sure = f < LOG2 - _AT_REST and inside(w, reference, bound)
            for a in range(d):
                w[a] /= unit
            return 1 if sure and spans(u, q, p) else 0
        if steps > 1 and f > LOG2 - _AT_REST:
            return 0
        if steps > 0 and f > f_old + 1e-14 and gap > gap_old / 2:  # too far: half of the way back
            s *= 0.5
            for a in range(d):
                w[a] -= s[a]
            for k in range(groups):
                e[k] -= s[d + k]
            if not np.dot(s, s) > 1e-24:
                return 0
            continue
        f_old, gap_old = f, gap
        for a in range(d):
            for b in range(d):
                H[a, b] = h[a, b] if b <= a else h[b, a]
        copy(mass, c[d:], groups)
        solved, count, _, _, _ = minimise_with_kinks(
            H, c, u, slope, 1.0, price, r, side, held, phi, count, normal, 1.0, False, s
        )
        if not solved:
            return 0
        for a in range(d):
            w[a] += s[a]
        for k in range(groups):
            e[k] += s[d + k]
    return 0
