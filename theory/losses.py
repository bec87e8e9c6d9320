"""Losses of one pair, or one response, as pure elementwise functions: numbers in, losses of the
same shape out.

A margin m is beta times the difference of the two log-ratios, as in `theory.losses.dpo_loss`; a
log-ratio is log pi_theta(y|x) - log pi_ref(y|x), summed over the tokens. Any functional of
`theory.functionals` reduces what comes out.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_loss(margin: Tensor) -> Tensor:
    """log(1 + exp(-m)), the pointwise DPO loss of the margin m = beta w.u, elementwise and without
    overflow.

    Eq. (1), arXiv:2502.01930. In the log-linear world m = beta (theta - theta_ref).u; for a
    language model m is beta times the difference of the two log-ratios.
    """
    return -logsigmoid(margin)


def ipo_loss(
    chosen_ratio: Tensor,
    rejected_ratio: Tensor,
    beta: float,
    chosen_length: Tensor | None = None,
    rejected_length: Tensor | None = None,
) -> Tensor:
    """IPO, (Delta - 1/(2 beta))² with Delta the difference of the log-ratios. Eq. (17),
    arXiv:2310.12036, whose tau is beta.

    With the lengths in tokens each log-ratio is first averaged over its tokens, which is what TRL
    does; without them Delta is the sum that the theory needs.
    """
    if (chosen_length is None) != (rejected_length is None):
        raise ValueError(
            "give the lengths of both responses (averages over tokens) or of none (sums), not of"
            " one."
        )
    if chosen_length is not None and rejected_length is not None:
        chosen_ratio, rejected_ratio = (
            chosen_ratio / chosen_length,
            rejected_ratio / rejected_length,
        )
    return (chosen_ratio - rejected_ratio - 1 / (2 * beta)) ** 2


def hinge_loss(margin: Tensor) -> Tensor:
    """(1 - m)_+, SLiC's loss on log-ratios. arXiv:2305.10425; in this form arXiv:2309.06657."""
    return torch.relu(1 - margin)


def cdpo_loss(margin: Tensor, flip: float) -> Tensor:
    """Conservative DPO, (1 - eps) l(m) + eps l(-m): label smoothing at the flip rate eps. Mitchell
    (2023), a note on DPO."""
    _require_flip(flip)
    return (1 - flip) * dpo_loss(margin) + flip * dpo_loss(-margin)


def rdpo_loss(margin: Tensor, flip: float) -> Tensor:
    """Robust DPO, ((1 - eps) l(m) - eps l(-m))/(1 - 2 eps), unbiased under flips at the rate eps.
    arXiv:2403.00409.

    Not bounded below for eps > 0, and not convex in m.
    """
    _require_flip(flip)
    return ((1 - flip) * dpo_loss(margin) - flip * dpo_loss(-margin)) / (1 - 2 * flip)


def kto_loss(
    ratio: Tensor,
    desirable: Tensor,
    reference_point: Tensor,
    *,
    beta: float,
    gain: float = 1.0,
    aversion: float = 1.0,
) -> Tensor:
    """KTO of single responses, lambda_y - v(y), v = lambda_D sigma(beta (r - z0)) or lambda_U
    sigma(beta (z0 - r)).

    arXiv:2402.01306; r is the log-ratio, desirable a mask, gain and aversion are lambda_D and
    lambda_U. The constant is subtracted in the form lambda sigma(-.), which keeps its digits.
    """
    lam = torch.full_like(ratio, aversion).masked_fill(desirable, gain)
    advantage = beta * (ratio - reference_point)
    return lam * torch.sigmoid(torch.where(desirable, -advantage, advantage))


def rebel_loss(ratio_difference: Tensor, reward_difference: Tensor, eta: float) -> Tensor:
    """REBEL, (Delta/eta - (r1 - r2))²: log-ratios regressed on reward differences.
    arXiv:2404.16767."""
    return (ratio_difference / eta - reward_difference) ** 2


# ------------------------------------------------------------------ h of one-dimensional transport
def logistic(t: Tensor, beta: float) -> Tensor:
    """h(t) = log(1 + exp(-beta t)), at a difference t of quantiles. arXiv:2406.05882."""
    return dpo_loss(beta * t)


def squared_hinge(t: Tensor, beta: float) -> Tensor:
    """h(t) = (beta - t)_+², beta the margin from which it vanishes. arXiv:2406.05882."""
    return torch.relu(beta - t) ** 2


def least_squares(t: Tensor, beta: float) -> Tensor:
    """h(t) = (beta - t)²; it also penalises a gap above beta. arXiv:2406.05882."""
    return (beta - t) ** 2


# ------------------------------------------------------------------------------------------- checks
def _require_flip(flip: float) -> None:
    if not 0 <= flip < 0.5:
        raise ValueError(
            f"the flip rate must be in [0, 1/2), got {flip}: at 1/2 the labels say nothing."
        )
