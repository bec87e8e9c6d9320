"""Whether a minimiser is the only one."""

import math
from typing import Any

import numpy as np

from theory.solvers.compiled.arithmetic import (
    moments,
)
from theory.solvers.compiled.compiling import piece

_MASS, _SHARE = (
    1e-7,
    1e-4,
)  # of an atom in the worst case, as in `theory.solvers.nearest`
_RANK = 1e-8  # squared pivot, of directions of size one, that counts as none; there it is 1e-10


@piece
def spans(u: Any, q: Any, p: Any) -> bool:
    """Whether the atoms with mass q span all directions, clearly: the minimiser is then the only
    one."""
    d, n = u.shape
    live = np.empty(n)
    for i in range(n):
        live[i] = 1.0 if q[i] > min(_SHARE * p[i], _MASS) else 0.0
    mean, second, unit = np.empty(d), np.empty((d, d)), np.empty(d)
    moments(u, live, mean, second)
    for a in range(d):
        unit[a] = math.sqrt(second[a, a])
        if not unit[a] > 0:
            return False
    for j in range(d):
        for i in range(j, d):
            x = second[i, j] / (unit[i] * unit[j])
            for k in range(j):
                x -= second[i, k] * second[j, k]
            if i == j:
                if not x > _RANK:
                    return False
                second[j, j] = math.sqrt(x)
            else:
                second[i, j] = x / second[j, j]
    return True
