"""Equal pairs as one atom with their total weight.

A table of comparisons has few distinct rows, each many times. No worst case of a set here depends
on how an atom is split into copies, so that fits of the merged sample are those of the sample, at a
cost that grows with the distinct rows: of WDPO on atoms with the square of their number.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from theory.batch import PairBatch

if TYPE_CHECKING:
    from theory.sets.base import AmbiguitySet

Labels = NDArray[np.int64]

_LOOK = 256  # rows that are compared first: where all differ, merging would save little


def merged(
    pairs: PairBatch, ball: "AmbiguitySet | None"
) -> tuple[PairBatch, Labels, Labels] | None:
    """The sample with each atom once, where each atom first appears, and the atom (n,) of each row.

    Rows are merged where all their numbers are equal, and the set cannot tell them apart: on atoms,
    where they have the same distances to all others.

    Args:
        pairs: one sample, with one or R vectors of weights.
        ball: the set, None for plain DPO.

    Returns:
        Atoms in the order in which they first appear, for `ball.on_rows`; None where no two rows
        are equal, or samples differ between replicates.
    """
    if pairs.ut.shape[0] != 1:
        return None
    n = pairs.p.shape[1]
    look = n > _LOOK and (ball is None or not ball.facts.atoms)
    column = pairs.ut[0, 0].cpu().numpy()  # rows differ where already these do
    if all_different((column[_some(n)] if look else column).tolist()):
        return None
    rows = pairs.ut[0].T
    if look and all_different(row_keys(rows[torch.from_numpy(_some(n)).to(rows.device)])):
        return None
    label = labels(row_keys(rows))
    if label.max() + 1 < n and ball is not None:
        label = ball.alike(label)
    count = int(label.max()) + 1
    if count == n:
        return None
    first = np.full(count, n)
    np.minimum.at(first, label, np.arange(n))
    kept, place = (torch.from_numpy(x).to(rows.device) for x in (first, label))
    p = pairs.p.new_zeros(count, pairs.replicates).index_add_(0, place, pairs.p.T).T.contiguous()
    return PairBatch(rows[kept].T[None].contiguous(), p), first, label


@cache
def _some(n: int) -> Labels:
    """Places of up to `_LOOK` of n rows."""
    return np.unique(np.random.default_rng(0).integers(0, n, _LOOK))


def all_different(keys: Sequence[object]) -> bool:
    return len(set(keys)) == len(keys)


def row_keys(rows: torch.Tensor) -> list[bytes]:
    """(n, k) numbers as n keys that are equal where all numbers of a row are."""
    table = np.ascontiguousarray(rows.cpu().numpy() + 0.0)  # -0 is 0
    return [bytes(x) for x in table.view(np.dtype((np.void, table.strides[0]))).ravel().tolist()]


def labels(keys: list[bytes]) -> Labels:
    """Numbers 0, 1, ... of the keys, in the order in which they first appear."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)
