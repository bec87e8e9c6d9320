"""What the papers minimise, as pure functions of tensors: pair losses of a margin, and functionals of a batch of losses.

A *pair loss* maps margins to losses, one for each preference pair. A *functional* maps the losses of a batch, with optional
weights, to one number. Both work on any float dtype and device, are differentiable, and know nothing of models: the exact
estimators call them on features, a trainer calls them on log-probabilities.

Losses have shape (..., n); weights broadcast against them, are non-negative and sum to one along the last axis (None means
1/n each). A functional reduces the last axis.

Sources: Xu et al., arXiv:2502.01930 (WDPO, KLDPO); Wu et al., arXiv:2407.07880 (Dr. DPO).
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from theory.duals import kl_ball_dual

RELEASED_CLAMP = 10.0  # largest weight in the authors' released KLDPO code


# ----------------------------------------------------------------------------------------------- pair losses
def dpo_loss(margin: Tensor) -> Tensor:
    """log(1 + exp(-m)), the pointwise DPO loss of the margin m = beta w.u, elementwise and without overflow.

    Eq. (1), arXiv:2502.01930. In the log-linear world m = beta (theta - theta_ref).u; for a language model m is beta
    times the difference of the two log-ratios.
    """
    return -logsigmoid(margin)


# ----------------------------------------------------------------------------------------------- functionals
def mean(losses: Tensor, weights: Tensor | None = None) -> Tensor:
    """Expected loss, sum_i p_i l_i."""
    return losses.mean(-1) if weights is None else (weights * losses).sum(-1)


def kl_tilt(losses: Tensor, tau: float, weights: Tensor | None = None, *, released: bool = False) -> Tensor:
    """Tilted risk tau log sum_i p_i exp(l_i / tau), whose gradient is Algorithm 2 of arXiv:2502.01930.

    Its derivative with respect to l_i is the normalised worst-case weight of `tilt_weights`, so that back-propagating through
    this value is the same as weighting each pair by a constant. Finite for any tau > 0 and finite losses.

    Args:
        losses: (..., n) pair losses.
        tau: temperature in units of the loss, > 0. Large tau approaches the mean, small tau the largest loss.
        weights: (..., n) probabilities, or None.
        released: compute what the authors' released code does instead: mean of l_i exp((l_i - mean l)/tau), the weights
            clamped at 10, not normalised and without gradient. It is not the gradient of a tilted risk: the weights rescale
            the learning rate and the clamp hides all differences among large losses.
    """
    _require_positive("tau", tau)
    if released:
        with torch.no_grad():
            factor = torch.exp((losses - mean(losses, weights).unsqueeze(-1)) / tau).clamp(max=RELEASED_CLAMP)
        return mean(factor * losses, weights)
    top = _on_support(losses, weights, -torch.inf).amax(-1, keepdim=True)  # centring keeps every exponent <= 0
    return top.squeeze(-1) + tau * _log_mean_exp((losses - top) / tau, weights)


def tilt_weights(losses: Tensor, tau: float, weights: Tensor | None = None) -> Tensor:
    """Worst-case weights q_i proportional to p_i exp(l_i / tau), normalised and detached. Algorithm 2, arXiv:2502.01930."""
    _require_positive("tau", tau)
    with torch.no_grad():
        exponent = (losses - _on_support(losses, weights, -torch.inf).amax(-1, keepdim=True)) / tau
        return torch.softmax(exponent if weights is None else exponent + weights.log(), -1)


def kl_ball(losses: Tensor, rho: float | Tensor, weights: Tensor | None = None) -> Tensor:
    """Worst expected loss over the KL ball, sup {E_q l : KL(q || p) <= rho}; the radius is met exactly.

    The dual min_{lambda >= 0} lambda rho + lambda log E_p exp(l/lambda) is solved inside, in float64 and without gradient;
    the result is differentiable once in the losses, its gradient being the worst-case weights (envelope theorem).

    Args:
        losses: (..., n) pair losses.
        rho: radius in nats, >= 0; a number or a tensor of the leading shape.
        weights: (..., n) probabilities, or None.
    """
    with torch.no_grad():
        flat = losses.detach().double().reshape(-1, losses.shape[-1])
        p = torch.full_like(flat, 1.0 / flat.shape[-1]) if weights is None else weights.double().expand(losses.shape)
        radius = torch.as_tensor(rho, dtype=torch.float64, device=losses.device).expand(losses.shape[:-1]).reshape(-1)
        if not bool((radius >= 0).all()):
            raise ValueError(f"rho must not be negative, got {rho}. Use 0 for the plain mean.")
        worst = kl_ball_dual(flat, p.reshape(flat.shape), radius)
        q = worst.weights.reshape(losses.shape).to(losses.dtype)
    return (q * losses).sum(-1)


def gradient_norm(squared_norms: Tensor, weights: Tensor | None = None, *, squared: bool = False) -> Tensor:
    """WDPO penalty (E ||grad_z l||^2)^(1/2) from the per-pair squared gradient norms, shape (..., n).

    `squared=True` gives E ||grad_z l||^2, which the authors' released code uses. At the reference policy every gradient is
    zero, where the square root has an infinite slope: its zero subgradient is returned there instead of NaN.
    """
    total = mean(squared_norms, weights)
    if squared:
        return total
    positive = total > 0
    # the inner `where` keeps the infinite slope out of the backward pass, not only out of the value
    return torch.where(positive, torch.where(positive, total, 1).sqrt(), 0)


def dr_dpo(losses: Tensor, b: float, weights: Tensor | None = None) -> Tensor:
    """Dr. DPO, -b log sum_i p_i exp(-l_i / b): the opposite tilt, which trusts pairs of low loss. Eq. (12), arXiv:2407.07880."""
    _require_positive("b", b)
    low = _on_support(losses, weights, torch.inf).amin(-1, keepdim=True)
    return low.squeeze(-1) - b * _log_mean_exp((low - losses) / b, weights)


def _on_support(losses: Tensor, weights: Tensor | None, elsewhere: float) -> Tensor:
    """The losses without gradient, and `elsewhere` where the weight is zero."""
    return losses.detach() if weights is None else losses.detach().masked_fill(weights == 0, elsewhere)


def _log_mean_exp(exponent: Tensor, weights: Tensor | None) -> Tensor:
    """log sum_i p_i exp(x_i) for x <= 0 on the support, to the last digits also where the exponents are small."""
    if weights is None:
        weights = torch.full_like(exponent, 1.0 / exponent.shape[-1])
    exponent = torch.where(weights > 0, exponent, 0.0)
    shortfall = (weights * torch.expm1(exponent)).sum(-1)
    near = shortfall > -0.5
    direct = torch.logsumexp(exponent + weights.log(), -1)
    return torch.where(near, torch.log1p(torch.where(near, shortfall, 0.0)), direct)


def _require_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(
            f"{name} must be positive and finite, got {value}. "
            "As it goes to 0 the functional becomes the extreme loss: use a small value."
        )
