"""CVaR: min over c of c + E (l - c)_+ / share."""

from typing import Any

import numpy as np

from theory.solvers.compiled.compiling import kernel
from theory.solvers.compiled.kinks import MOST_FEATURES
from theory.solvers.compiled.tails import solve_tail


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
    """See `theory.solvers.compiled.batches`; `size` is the share; that of 1, the mean,
    is left open."""
    if ut.shape[1] > MOST_FEATURES:
        return
    mass = np.ones(1)
    for r in rows:
        u, weights = ut[r % ut.shape[0]], p[r % p.shape[0]]
        if not size[r] < 1.0:
            continue
        price = weights / size[r]
        state[r] = solve_tail(u, weights, beta, bound, reference, mass, price, w[r], numbers[r])
