"""The same problems once more, as convex and linear programs that share no code with the solvers.

TWINS has the twin of each ambiguity set by its name; a module of this folder with a dictionary
TWINS is found by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Twin:
    """One set's estimator, collapse size and worst case, slow and one at a time.

    fit: (u, p, size, beta, bound, theta_ref, **what the set knows) -> theta (d,), value, and a
    bound on value - optimum, infinite where only the solver's word stands for it.
    collapse: (u, p, **what the set knows) -> size; None where there is no such program.
    worst: (losses, p, size) -> value, for sets of weights on the atoms; None for others.
    """

    fit: Callable[..., tuple[Array, float, float]]
    collapse: Callable[..., float] | None
    worst: Callable[[Array, Array, float], float] | None = None


def twins() -> dict[str, Twin]:
    """Of all sets, by name. cvxpy is slow to import: call this where they are needed."""
    found: dict[str, Twin] = {}
    for module in iter_modules(__path__):
        found |= getattr(import_module(f"{__name__}.{module.name}"), "TWINS", {})
    return found


def knowledge(set: Any) -> dict[str, Any]:
    """What a set knows beside its size, as its twin takes it."""
    return {name: value for name, value in vars(set).items() if name != set.facts.size}
