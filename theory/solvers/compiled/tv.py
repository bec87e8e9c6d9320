"""The total-variation ball: min over c of radius max l + (1 - radius) c + E (l - c)_+.

The maximum is an exact penalty: its multipliers sum to the radius, so that a price of twice the
radius on the excess of any one loss is never paid.
"""

from typing import Any

import numpy as np

from theory.solvers.compiled.compiling import kernel
from theory.solvers.compiled.kinks import MOST_FEATURES
from theory.solvers.compiled.tails import solve_tail

_ALL = 1.0 - 1e-9  # radius from which on the largest loss is all that counts


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
    """See `theory.solvers.compiled.batches`; `size` is the radius."""
    if ut.shape[1] > MOST_FEATURES:
        return
    n = ut.shape[2]
    mass, price = np.empty(2), np.empty(2 * n)
    for r in rows:
        u, weights, radius = ut[r % ut.shape[0]], p[r % p.shape[0]], size[r]
        if not radius < _ALL:
            continue
        mass[0], mass[1] = 1.0 - radius, radius
        for i in range(n):
            price[i] = weights[i]
            price[n + i] = 2.0 * radius if weights[i] > 0 else 0.0
        state[r] = solve_tail(u, weights, beta, bound, reference, mass, price, w[r], numbers[r])
