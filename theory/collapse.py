"""The size of a set from which the reference policy itself is the robust minimiser."""

import torch
from torch import Tensor

from theory.batch import ArrayLike, pair_batch
from theory.fitting import is_single
from theory.sets.base import AmbiguitySet


def collapse_radius(u: ArrayLike, set: AmbiguitySet, weights: ArrayLike | None = None) -> Tensor:
    """Smallest radius at which the exact robust estimator returns theta_ref.

    Args:
        u, weights: as for `fit`.
        set: a member of `theory.SETS`, with or without a size, such as `KL()`.

    Returns:
        () or (R,), infinite where no radius does. For a set that shrinks as its number grows, as
        `CVaR`, the largest such number, 0 where none does.

    Raises:
        ValueError: input as `fit` refuses it, or a set that never makes the reference the answer.

    >>> from theory import WassersteinFree
    >>> collapse_radius([[1.0], [0.2]], WassersteinFree(power=2)).item()  # ||E u||
    0.6
    """
    pairs = pair_batch(u, weights)
    set.check_atoms(pairs.p.shape[1])
    parts = [
        set.collapse(pairs.select(torch.arange(part.start, part.stop)))
        for part in pairs.chunks(set.elements(pairs.p.shape[1]))
    ]
    found = torch.cat(parts)
    return found[0] if is_single(u, weights) else found
