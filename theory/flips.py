"""What share of the labels is turned round? Estimated from the margins of a fit that mislabelled
pairs do not pull.

    share = mislabelled_share(margins, gamma=2.0)  # at a policy trained by `theory.hoelder_loss`
"""

import torch
from torch import Tensor

from theory.functionals import mean
from theory.losses import dpo_loss


def mislabelled_share(margin: Tensor, gamma: float, weights: Tensor | None = None) -> Tensor:
    """1 - E sigma(m) E sigma(m)^gamma / E sigma(m)^(1 + gamma) over the labelled pairs.

    Proposition 1 with the normalised likelihoods of Eq. (27), arXiv:2505.17859v2 (Hoelder-DPO): the
    share eps where right labels have sigma = 1 and wrong ones sigma = 0. Where preferences are not
    sure it counts what chance turned round as well: see the claim `mislabelled-share`.

    Args:
        margin: (..., n) margins m of the labelled pairs, numbers without a unit.
        gamma: > 0, that of the loss.
        weights: (..., n) of the pairs, summing to one, or None: 1/n each.

    Returns:
        (...) shares, from 0 to below 1.

    Raises:
        ValueError: a gamma that is not positive and finite.

    >>> import torch
    >>> from theory.flips import mislabelled_share
    >>> margins = torch.tensor([50.0, 50.0, 50.0, -50.0])
    >>> round(mislabelled_share(margins, gamma=2.0).item(), 6)
    0.25
    """
    if not 0 < gamma < float("inf"):
        raise ValueError(f"gamma must be positive and finite, got {gamma}.")
    log_sigma = -dpo_loss(margin)
    top = log_sigma.amax(-1, keepdim=True)  # where all are tiny their powers would vanish
    one, some, both = (
        mean(torch.exp(power * (log_sigma - top)), weights) for power in (1.0, gamma, 1 + gamma)
    )
    return 1 - one * some / both  # a factor of all sigma does not matter
