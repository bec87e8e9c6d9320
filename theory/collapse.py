"""The size of a set from which the reference policy itself is the robust minimiser."""

import torch
from torch import Tensor

from theory.batch import ArrayLike, feature_names, pair_batch, warn_of_scales
from theory.checks import check_pairs, check_set
from theory.fitting import is_single
from theory.sets.base import AmbiguitySet


def collapse_radius(u: ArrayLike, set: AmbiguitySet, weights: ArrayLike | None = None) -> Tensor:
    """Smallest radius at which the exact robust estimator returns theta_ref.

    A set on the atoms collapses from the size at which it holds a Q with E_Q u = 0, under which the
    gradient of the mean loss vanishes at theta_ref; with free features and fixed labels that is
    ||E u||/2 for p = 1 and ||E u|| for p = 2. It depends on no beta. Derived; for `KL` see also
    Prop. 3, arXiv:2502.01930v4.

    Args:
        u, weights: as for `fit`.
        set: a member of `theory.SETS`, with or without a size, such as `KL()`.

    Returns:
        () or (R,) in the unit of the set's size, infinite where no radius does. For a set that
        shrinks as its number grows, as `CVaR`, the largest such number, 0 where none does.

    Raises:
        ValueError: input as `fit` refuses it, or a set that never makes the reference the answer.

    >>> from theory import KL, WassersteinFree, collapse_radius
    >>> round(collapse_radius([[1.0], [0.2]], WassersteinFree(power=2)).item(), 6)  # ||E u||
    0.6
    >>> round(collapse_radius([[1.0], [-1.0]], KL(), [0.8, 0.2]).exp().item(), 6)  # 1/(2 sqrt(pq))
    1.25
    """
    check_pairs(u)
    check_set(u, set)
    pairs = pair_batch(u, weights)
    set.check_atoms(pairs.p.shape[1])
    if set.knows_units:
        warn_of_scales(pairs.ut, type(set).__name__, set.facts.size, feature_names(u))
    pairs = set.with_units(pairs)
    parts = [
        set.collapse(pairs.select(torch.arange(part.start, part.stop)))
        for part in pairs.chunks(set.elements(pairs.p.shape[1]))
    ]
    found = torch.cat(parts)
    if bool(found.isnan().any()):
        raise RuntimeError(
            f"the collapse radius of {int(found.isnan().sum())} of {len(found)} samples was not"
            " found: HiGHS solved their programs by none of its methods. Take features and weights"
            " of more similar sizes."
        )
    return found[0] if is_single(u, weights) else found
