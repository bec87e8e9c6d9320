"""Separable pairs: a direction of theta that no pair speaks against.

Along it the likelihood grows without end, so that no estimate exists: Albert and Anderson (1984),
Biometrika 71. A fit then runs to its bound, and says more of the bound than of the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.optimize import linprog

from theory.batch import ArrayLike, PairBatch, pair_batch
from theory.policy import Array
from theory.solvers.collapse import kl_collapse

_NONE = 1e-9  # of a margin or a coefficient, relative to the largest, that counts as zero


@dataclass(frozen=True, eq=False)
class Separation:
    """A direction along which every pair agrees.

    Attributes:
        kind: "complete", where every pair strictly prefers it; "quasi-complete", where some are
            indifferent.
        direction: (d,) of theta, in the inverse unit of the features: u_i.direction >= 0 for all.
        columns: places of the features that it takes.
        pairs: how many pairs, with a weight, strictly agree.

    >>> from theory import separation
    >>> found = separation([[1.0, 0.2], [0.0, -1.0], [2.0, 0.9], [0.0, 1.0]])
    >>> found.kind, found.columns, found.pairs
    ('quasi-complete', (0,), 2)
    >>> separation([[1.0], [-1.0]]) is None
    True
    """

    kind: Literal["complete", "quasi-complete"]
    direction: Array
    columns: tuple[int, ...]
    pairs: int

    def describe(self, names: Sequence[str] | None = None) -> str:
        """In words, with the names (d,) of the features."""
        labels = [names[k] if names else f"feature {k + 1}" for k in self.columns]
        shown = ", ".join(labels[:5]) + (" and more" if len(labels) > 5 else "")
        return (
            f"the pairs are separable ({self.kind}: {self.pairs} of them agree, and none disagrees,"
            f" with a direction of {shown}), so that no finite estimate exists. Leave these columns"
            " out, join categories, add pairs, or take a bound as a prior"
        )


def separation(u: ArrayLike, weights: ArrayLike | None = None) -> Separation | None:
    """Whether a direction of theta exists that no pair speaks against, and which columns it takes.

    Albert and Anderson (1984). A single column that does so is named before a combination of them.

    Args:
        u: (n, d) signed feature differences (2y-1)(psi1-psi2).
        weights: (n,) of the pairs; those of weight 0 count as absent.

    Returns:
        A `Separation`, or None: the estimate of plain DPO is finite.

    Raises:
        ValueError: pairs that are not finite numbers of this shape.

    >>> from theory import separation
    >>> found = separation([[1.0, 1.0], [1.0, -0.5], [0.5, -0.2]])
    >>> found.kind, found.describe(["price", "time"])[:47]
    ('complete', 'the pairs are separable (complete: 3 of them ag')
    """
    pairs = pair_batch(u, weights)
    if pairs.replicates != 1:
        raise ValueError(
            f"u holds {pairs.replicates} samples: ask for one of them, (n, d), at a time."
        )
    rows = pairs.ut[0].T[pairs.p[0] > 0].cpu().numpy()
    size = np.sqrt(np.mean(rows**2, axis=0))
    live = np.flatnonzero(size > 0)
    if not len(live):
        return None
    rows = rows[:, live] / size[live]
    agree = (rows >= 0).all(0) | (rows <= 0).all(0)
    if agree.any():
        alone = int(np.flatnonzero(agree)[0])
        direction = np.zeros(len(live))
        direction[alone] = np.sign(rows[:, alone].sum())
    elif _surely_none(rows):
        return None
    else:
        found = _program(rows)
        if found is None:
            return None
        direction = found
    margin = rows @ direction
    strict = margin > _NONE * np.abs(rows).max()
    whole = np.zeros(len(size))
    whole[live] = direction / size[live]
    return Separation(
        "complete" if strict.all() else "quasi-complete",
        whole,
        tuple(live[direction != 0].tolist()),
        int(strict.sum()),
    )


def _surely_none(rows: Array) -> bool:
    """A law with E u = 0 and a weight for every pair excludes any such direction; Newton's method
    finds one in most samples."""
    n = len(rows)
    unit = torch.full((1, n), 1.0 / n, dtype=torch.float64)
    found = kl_collapse(PairBatch(torch.from_numpy(rows.T[None].copy()), unit))
    if not bool(torch.isfinite(found.radius).all()) or found.weights is None:
        return False
    return bool((found.weights > 1e-9 / n).all())


def _program(rows: Array) -> Array | None:
    """min ||x||_1 with u_i.x >= 1 for all, else with u_i.x >= 0 for all and mean u.x = 1: feasible
    iff there is a direction, and a vertex takes few columns. Konis (2007)."""
    distinct = np.unique(rows, axis=0)
    (n, d), mean = distinct.shape, distinct.mean(0)
    program = {"c": np.ones(2 * d), "A_ub": np.hstack([-distinct, distinct])}
    found = linprog(**program, b_ub=-np.ones(n))
    if found.x is None:
        equal = np.concatenate([mean, -mean])[None]
        found = linprog(**program, b_ub=np.zeros(n), A_eq=equal, b_eq=[1.0])
    if found.x is None:
        return None
    x = found.x[:d] - found.x[d:]
    x /= np.abs(x).max()
    return np.where(np.abs(x) > _NONE, x, 0.0)
