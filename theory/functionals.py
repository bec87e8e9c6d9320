"""Functionals: from the losses of a batch of pairs, with optional weights, to one number.

As the losses below them (`theory.losses`) they are pure functions of tensors of any float dtype and
device, differentiable, and know nothing of models: studies call them on features, the trainer calls
them on log-probabilities, and tests tie the exact estimators to them.

Losses have shape (..., n); weights broadcast against them, are non-negative and sum to one along
the last axis (None means 1/n each). A functional reduces the last axis. Weights on the CPU are
looked at, and refused where negative, not finite or all zero; on an accelerator that would stall
the training, and the caller answers for them. A NaN among the losses stays a NaN.

Sources: Xu et al., arXiv:2502.01930 (WDPO, KLDPO); Wu et al., arXiv:2407.07880 (Dr. DPO); Melnyk et
al., arXiv:2406.05882 (AOT); Sagawa et al., arXiv:1911.08731 (group DRO).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from theory.duals import BallDual, chi2_ball_dual, cvar_dual, kl_ball_dual, total_variation_dual
from theory.losses import least_squares, squared_hinge
from theory.precision import wide
from theory.transport import (
    Spectrum,
    check_weights,
    gauss_mean,
    integrated_transport_of,
    positive_power_mean,
    power_mean,
    soft_sort,
    transport_of,
)

RELEASED_CLAMP = 10.0  # largest weight in the authors' released KLDPO code


# -------------------------------------------------------------------------------------- functionals
def mean(losses: Tensor, weights: Tensor | None = None) -> Tensor:
    """Expected loss, sum_i p_i l_i.

    The plain DPO objective where l is its loss: Eq. (3), arXiv:2502.01930v4.

    Args:
        losses: (..., n) pair losses.
        weights: (..., n) probabilities, or None: 1/n each. All zero is allowed here: a micro-batch
            may be without weight.

    Returns:
        (...) in the unit of the losses.

    Raises:
        ValueError: weights on the CPU that are negative or not finite.

    >>> import torch
    >>> from theory import mean
    >>> losses = torch.tensor([1.0, 3.0])
    >>> mean(losses).item(), mean(losses, torch.tensor([0.25, 0.75])).item()
    (2.0, 2.5)
    """
    _look_at(
        losses, weights, all_zero=True
    )  # a micro-batch may be without weight: its share of a sum is zero
    return losses.mean(-1) if weights is None else (weights * losses).sum(-1)


def token_mean(
    losses: Tensor,
    lengths: Tensor,
    weights: Tensor | None = None,
    mean_length: Tensor | None = None,
) -> Tensor:
    """The mean over all tokens of a batch, sum_i p_i l_i / sum_i p_i n_i: with negative
    log-probabilities of responses for losses the loss of supervised fine-tuning.

    Long responses count more than short ones, which the mean of their own means would not have.

    Args:
        losses: (..., n) sums over the tokens of each response.
        lengths: (..., n) numbers of tokens n_i.
        weights: (..., n) probabilities, or None: 1/n each.
        mean_length: (...) sum_i p_i n_i of a whole batch, where these responses are a part of it
            and their weights its; None: of these.

    Returns:
        (...) in the unit of the losses, by token.

    Raises:
        ValueError: weights on the CPU that are negative or not finite.

    >>> import torch
    >>> from theory import token_mean
    >>> token_mean(torch.tensor([1.0, 6.0]), torch.tensor([1, 3])).item()
    1.75
    """
    total = mean(losses, weights)
    whole = mean(lengths.to(losses.dtype), weights) if mean_length is None else mean_length
    return total / whole


def kl_tilt(
    losses: Tensor, tau: float, weights: Tensor | None = None, *, released: bool = False
) -> Tensor:
    """Tilted risk tau log sum_i p_i exp(l_i / tau), whose gradient is Algorithm 2 of
    arXiv:2502.01930v4.

    Its derivative with respect to l_i is the normalised worst-case weight of `tilt_weights`, so
    that back-propagating through this value is the same as weighting each pair by a constant.
    Finite for any tau > 0 and finite losses.

    Args:
        losses: (..., n) pair losses.
        tau: temperature in units of the loss, > 0. Large tau approaches the mean, small tau the
            largest loss.
        weights: (..., n) probabilities, or None: 1/n each.
        released: compute what the authors' released code does instead: mean of l_i exp((l_i - mean
            l)/tau), the weights clamped at 10, not normalised and without gradient. It is not the
            gradient of a tilted risk: the weights rescale the learning rate and the clamp hides all
            differences among large losses.

    Returns:
        (...) in the unit of the losses.

    Raises:
        ValueError: tau that is not positive and finite, or weights on the CPU that are negative,
            not finite or all zero.

    >>> import torch
    >>> from theory import kl_tilt
    >>> losses = torch.tensor([1.0, 3.0]).log()
    >>> round(kl_tilt(losses, tau=1.0).item(), 4)  # log((1 + 3)/2)
    0.6931
    """
    _require_positive("tau", tau)
    _look_at(losses, weights)
    if released:
        with torch.no_grad():
            factor = torch.exp((losses - mean(losses, weights).unsqueeze(-1)) / tau).clamp(
                max=RELEASED_CLAMP
            )
        return mean(factor * losses, weights)
    top = _on_support(losses, weights, -torch.inf).amax(
        -1, keepdim=True
    )  # centring keeps every exponent <= 0
    return top.squeeze(-1) + tau * _log_mean_exp((losses - top) / tau, weights)


def tilt_weights(losses: Tensor, tau: float, weights: Tensor | None = None) -> Tensor:
    """Worst-case weights q_i proportional to p_i exp(l_i / tau), normalised and detached. Algorithm
    2, arXiv:2502.01930v4.

    Args:
        losses: (..., n) pair losses.
        tau: temperature in units of the loss, > 0.
        weights: (..., n) probabilities p, or None: 1/n each.

    Returns:
        (..., n) probabilities q, without gradient.

    Raises:
        ValueError: tau that is not positive and finite, or weights on the CPU that are negative,
            not finite or all zero.

    >>> import torch
    >>> from theory import tilt_weights
    >>> tilt_weights(torch.tensor([1.0, 3.0]).log(), tau=1.0)
    tensor([0.2500, 0.7500])
    """
    _require_positive("tau", tau)
    _look_at(losses, weights)
    with torch.no_grad():
        exponent = (losses - _on_support(losses, weights, -torch.inf).amax(-1, keepdim=True)) / tau
        return torch.softmax(exponent if weights is None else exponent + weights.log(), -1)


def kl_ball(losses: Tensor, rho: float | Tensor, weights: Tensor | None = None) -> Tensor:
    """Worst expected loss over the KL ball, sup {E_q l : KL(q || p) <= rho}; the radius is met
    exactly. Section 4.1, arXiv:2502.01930v4.

    The dual min_{lambda >= 0} lambda rho + lambda log E_p exp(l/lambda) is solved inside, in
    float64 if there is that, without gradient; the result is differentiable once in the losses, its
    gradient being the worst-case weights (envelope theorem).

    Args:
        losses: (..., n) pair losses.
        rho: radius in nats, >= 0; a number or a tensor of the leading shape.
        weights: (..., n) probabilities, or None: 1/n each.

    Returns:
        (...) in the unit of the losses.

    Raises:
        ValueError: a negative rho, or weights on the CPU that are negative, not finite or all zero.

    >>> import math, torch
    >>> from theory import kl_ball
    >>> rho = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)  # the KL of (1/4, 3/4) from (1/2, 1/2)
    >>> round(kl_ball(torch.tensor([1.0, 5.0]), rho).item(), 4)  # 1/4 + 15/4
    4.0
    """
    return _at_worst_case(kl_ball_dual, losses, "rho", rho, weights)


def chi2_ball(losses: Tensor, rho: float | Tensor, weights: Tensor | None = None) -> Tensor:
    """Worst expected loss over the chi-squared ball, sup {E_q l : sum_i (q_i - p_i)²/p_i <= rho},
    without a factor 1/2.

    Equal to min_eta eta + sqrt(1 + rho) sqrt(E (l - eta)_+²): Duchi and Namkoong,
    arXiv:1810.08750v6, whose rho is half of this one. Solved and differentiated as `kl_ball`.

    Args:
        losses: (..., n) pair losses.
        rho: radius >= 0, without a unit; a number or a tensor of the leading shape.
        weights: (..., n) probabilities, or None: 1/n each.

    Returns:
        (...) in the unit of the losses.

    Raises:
        ValueError: a negative rho, or weights on the CPU that are negative, not finite or all zero.

    >>> import torch
    >>> from theory import chi2_ball
    >>> round(chi2_ball(torch.tensor([1.0, 5.0]), rho=0.25).item(), 4)  # at q = (1/4, 3/4)
    4.0
    """
    return _at_worst_case(chi2_ball_dual, losses, "rho", rho, weights)


def total_variation_ball(
    losses: Tensor, rho: float | Tensor, weights: Tensor | None = None
) -> Tensor:
    """Worst expected loss over the total-variation ball, sup {E_q l : sum_i |q_i - p_i|/2 <= rho},
    q on the atoms of p. Jiang and Guan (2018), doi:10.1287/opre.2018.1729.

    The mass rho moves from the smallest losses to the largest: rho times the largest, plus the mean
    of all but the lowest share rho. rho >= 1 gives the largest loss. Solved and differentiated as
    `kl_ball`.

    Args:
        losses: (..., n) pair losses.
        rho: radius >= 0, a probability; a number or a tensor of the leading shape.
        weights: (..., n) probabilities, or None: 1/n each.

    Returns:
        (...) in the unit of the losses.

    Raises:
        ValueError: a negative rho, or weights on the CPU that are negative, not finite or all zero.

    >>> import torch
    >>> from theory import total_variation_ball
    >>> round(total_variation_ball(torch.tensor([1.0, 5.0]), rho=0.25).item(), 4)  # q = (1/4, 3/4)
    4.0
    """
    return _at_worst_case(total_variation_dual, losses, "rho", rho, weights)


def cvar(losses: Tensor, alpha: float | Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of the worst share alpha in (0, 1] (1: of all), sup {E_q l : q_i <= p_i/alpha}.
    Rockafellar and Uryasev (2000), doi:10.21314/JOR.2000.038.

    Solved and differentiated as `kl_ball`.

    Args:
        losses: (..., n) pair losses.
        alpha: share, without a unit; a number or a tensor of the leading shape.
        weights: (..., n) probabilities, or None: 1/n each.

    Returns:
        (...) in the unit of the losses.

    Raises:
        ValueError: an alpha outside of (0, 1], or weights on the CPU that are negative, not finite
            or all zero.

    >>> import torch
    >>> from theory import cvar
    >>> round(cvar(torch.tensor([1.0, 2.0, 3.0, 4.0]), alpha=0.5).item(), 4)  # (3 + 4)/2
    3.5
    """
    return _at_worst_case(cvar_dual, losses, "alpha", alpha, weights)


def worst_group(
    losses: Tensor, groups: Tensor, count: int, weights: Tensor | None = None
) -> Tensor:
    """Largest mean loss of a group, the group DRO objective. arXiv:1911.08731.

    Args:
        losses: (..., n) pair losses.
        groups: (..., n) integers in [0, count); groups that do not occur are left out.
        count: number of groups.
        weights: (..., n) probabilities, or None: 1/n each.

    Returns:
        (...) in the unit of the losses.

    Raises:
        ValueError: weights on the CPU that are negative, not finite or all zero.

    >>> import torch
    >>> from theory import worst_group
    >>> losses, groups = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1])
    >>> worst_group(losses, groups, count=2).item()  # the larger of 2 and 5
    5.0
    """
    means, present = _group_means(losses, groups, count, weights)
    return means.masked_fill(~present, -torch.inf).amax(-1)


def group_dro(
    losses: Tensor, groups: Tensor, group_weights: Tensor, weights: Tensor | None = None
) -> Tensor:
    """sum_g q_g (mean loss of group g), whose gradient is a step of Algorithm 1, arXiv:1911.08731.

    Args:
        losses: (..., n) pair losses.
        groups: (..., n) integers in [0, count); a group that does not occur has mean 0.
        group_weights: (..., count) probabilities q of the groups, held constant.
        weights: (..., n) probabilities of the pairs, or None: 1/n each.

    Returns:
        (...) in the unit of the losses.

    Raises:
        ValueError: weights on the CPU that are negative, not finite or all zero.

    >>> import torch
    >>> from theory import group_dro
    >>> losses, groups = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1])
    >>> group_dro(losses, groups, torch.tensor([0.5, 0.5])).item()  # means 2 and 5
    3.5
    """
    means, _ = _group_means(losses, groups, group_weights.shape[-1], weights)
    return (group_weights.detach() * means).sum(-1)


def group_weights_step(
    losses: Tensor,
    groups: Tensor,
    group_weights: Tensor,
    step: float,
    weights: Tensor | None = None,
) -> Tensor:
    """Exponentiated-gradient step on the group weights, q_g ∝ q_g exp(step mean_g), detached.
    Algorithm 1, arXiv:1911.08731.

    A group that does not occur in the batch has mean 0 there, as in the authors' code.
    """
    with torch.no_grad():
        means, _ = _group_means(losses, groups, group_weights.shape[-1], weights)
        return torch.softmax(group_weights.log() + step * means, -1)


def kto_reference_point(mismatched_ratio: Tensor, weights: Tensor | None = None) -> Tensor:
    """z0 = max(0, mean log-ratio of responses put to prompts of other pairs), without gradient.
    arXiv:2402.01306.

    The estimate of KL(pi_theta || pi_ref) that KTO compares with; the last axis is the batch, whose
    weights sum to one (None: 1/n each).
    """
    return mean(mismatched_ratio.detach(), weights).clamp(min=0)


# -------------------------------------------------------------------------------- optimal transport
def aot_unpaired(
    chosen: Tensor,
    rejected: Tensor,
    h: Callable[[Tensor, float], Tensor],
    beta: float,
    chosen_weights: Tensor | None = None,
    rejected_weights: Tensor | None = None,
    *,
    softness: float | None = None,
    spectrum: Spectrum | None = None,
) -> Tensor:
    """AOT, ∫ h(Q_U(t) - Q_V(t)) dt of the log-ratios U of chosen and V of rejected responses.
    arXiv:2406.05882v1.

    On two samples of equal size it is mean_i h(u_(i) - v_(i)) after sorting both; sizes and weights
    may differ. Its gradient is that with the coupling frozen. For an estimate of the population
    value the batch should be large: it is biased upwards.

    Args:
        chosen, rejected: (..., n) and (..., m) log-ratios in nats; need not come from the same
            prompts.
        h: convex, called as h(t, beta): `logistic`, `squared_hinge`, `least_squares`, or one of
            your own.
        beta: slope or margin of h.
        chosen_weights, rejected_weights: probabilities, or None: equal ones.
        softness: None sorts exactly; a positive number, in units of 1/log-ratio, sorts softly
            (`theory.transport.soft_sort`).
        spectrum: w of ∫ w(t) h(Q_U(t) - Q_V(t)) dt, such as `lower_tail(0.1)`: weights of the
            quantile levels, of which 0 is the lowest; None: all count the same. Soft sorting weighs
            the ranks. After arXiv:2603.10938v1 (RAD), of which the abstract was read.

    Returns:
        (...) in the unit of h.

    Raises:
        ValueError: weights on the CPU that are negative, not finite or all zero, or weights
            together with a softness.

    >>> import torch
    >>> from theory import aot_unpaired, least_squares
    >>> chosen, rejected = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 1.0])
    >>> aot_unpaired(chosen, rejected, least_squares, beta=3.0).item()  # sorted, both gaps are 1
    4.0
    """
    _look_at(chosen, chosen_weights)
    _look_at(rejected, rejected_weights)
    u, v = _softly(chosen, chosen_weights, softness), _softly(rejected, rejected_weights, softness)
    return transport_of(u, v, lambda t: h(t, beta), chosen_weights, rejected_weights, spectrum)


def aot_paired(
    policy_ratio: Tensor,
    reference_ratio: Tensor,
    h: Callable[[Tensor, float], Tensor],
    beta: float,
    weights: Tensor | None = None,
    *,
    softness: float | None = None,
    spectrum: Spectrum | None = None,
) -> Tensor:
    """Paired AOT: U = log pi_theta(y+|x)/pi_theta(y-|x), V the same under pi_ref.
    arXiv:2406.05882v1.

    Args:
        policy_ratio: (..., n) U, one number in nats for each pair of responses.
        reference_ratio: (..., n) V, of the same pairs.
        h: convex, called as h(t, beta): `logistic`, `squared_hinge`, `least_squares`, or one of
            your own.
        beta: slope or margin of h.
        weights: (..., n) probabilities of the pairs, or None: 1/n each.
        softness, spectrum: as for `aot_unpaired`.

    Returns:
        (...) in the unit of h.

    Raises:
        ValueError: as `aot_unpaired`.

    >>> import torch
    >>> from theory import aot_paired, squared_hinge
    >>> policy, reference = torch.tensor([3.0, 1.0]), torch.tensor([0.0, 1.0])
    >>> aot_paired(policy, reference, squared_hinge, beta=2.0).item()  # sorted gaps of 1 and 2
    0.5
    """
    return aot_unpaired(
        policy_ratio,
        reference_ratio,
        h,
        beta,
        weights,
        weights,
        softness=softness,
        spectrum=spectrum,
    )


def aot_second_order(
    chosen: Tensor,
    rejected: Tensor,
    h: Callable[[Tensor, float], Tensor],
    beta: float,
    chosen_weights: Tensor | None = None,
    rejected_weights: Tensor | None = None,
    *,
    softness: float | None = None,
) -> Tensor:
    """∫ h(D(t)) dt of the integrated quantile difference D(t) = ∫_0^t (Q_U - Q_V): AOT for
    second-order dominance.

    Cf. Nitsure et al., arXiv:2310.07132v3. D(0) = 0, so that with a margin beta > 0 the hinge
    cannot vanish even where U dominates; with beta = 0 it vanishes iff U dominates V in the second
    order. D is piecewise linear: the integral is in closed form for `squared_hinge` and
    `least_squares`, and by `theory.transport.gauss_mean` on each piece for any other, smooth h.

    Args:
        chosen, rejected: (..., n) and (..., m) log-ratios in nats, as for `aot_unpaired`.
        h: convex, called as h(t, beta), as for `aot_unpaired`.
        beta: slope or margin of h.
        chosen_weights, rejected_weights: probabilities, or None: equal ones.
        softness: as for `aot_unpaired`.

    Returns:
        (...) in the unit of h.

    Raises:
        ValueError: as `aot_unpaired`.

    >>> import torch
    >>> from theory import aot_second_order, least_squares
    >>> found = aot_second_order(torch.tensor([3.0]), torch.tensor([0.0]), least_squares, beta=0.0)
    >>> round(found.item(), 4)  # D(t) = 3t
    3.0
    """

    def piece_mean(start: Tensor, end: Tensor) -> Tensor:
        if h is squared_hinge:
            return positive_power_mean(beta - start, beta - end, 2)
        if h is least_squares:
            return power_mean(beta - start, beta - end, 2)
        return gauss_mean(lambda t: h(t, beta), start, end)

    _look_at(chosen, chosen_weights)
    _look_at(rejected, rejected_weights)
    u, v = _softly(chosen, chosen_weights, softness), _softly(rejected, rejected_weights, softness)
    return integrated_transport_of(u, v, piece_mean, chosen_weights, rejected_weights)


# --------------------------------------------------------------------- gradient norm, opposite tilt
def gradient_norm(
    squared_norms: Tensor, weights: Tensor | None = None, *, squared: bool = False
) -> Tensor:
    """WDPO penalty (E ||grad_z l||^2)^(1/2) from the per-pair squared gradient norms, shape (...,
    n). Algorithm 1, arXiv:2502.01930v4.

    `squared=True` gives E ||grad_z l||^2, which the authors' released code uses. At the reference
    policy every gradient of a log-linear model is zero, where the square root has an infinite
    slope: its zero subgradient is returned there.

    Args:
        squared_norms: (..., n) squared gradient norms, in (unit of the loss / unit of z)².
        weights: (..., n) probabilities, or None: 1/n each.
        squared: leave the square root out.

    Returns:
        (...) in the unit of the loss over that of z; with `squared` in its square.

    Raises:
        ValueError: weights on the CPU that are negative or not finite.

    >>> import torch
    >>> from theory import gradient_norm
    >>> norms = torch.tensor([2.0, 6.0])
    >>> gradient_norm(norms).item(), gradient_norm(norms, squared=True).item()
    (2.0, 4.0)
    """
    total = mean(squared_norms, weights)
    if squared:
        return total
    positive = total > 0
    # the inner `where` keeps the infinite slope out of the backward pass, not only out of the value
    return torch.where(positive, torch.where(positive, total, 1).sqrt(), 0)


def dr_dpo(losses: Tensor, b: float, weights: Tensor | None = None) -> Tensor:
    """Dr. DPO, -b log sum_i p_i exp(-l_i / b): the opposite tilt, which trusts pairs of low loss.
    arXiv:2407.07880.

    Args:
        losses: (..., n) pair losses.
        b: temperature in units of the loss, > 0. Large b approaches the mean, small b the smallest
            loss.
        weights: (..., n) probabilities, or None: 1/n each.

    Returns:
        (...) in the unit of the losses.

    Raises:
        ValueError: b that is not positive and finite, or weights on the CPU that are negative,
            not finite or all zero.

    >>> import torch
    >>> from theory import dr_dpo
    >>> round(dr_dpo(torch.tensor([1.0, 3.0]).log(), b=1.0).item(), 4)  # -log((1 + 1/3)/2)
    0.4055
    """
    _require_positive("b", b)
    _look_at(losses, weights)
    low = _on_support(losses, weights, torch.inf).amin(-1, keepdim=True)
    return low.squeeze(-1) - b * _log_mean_exp((low - losses) / b, weights)


def _at_worst_case(
    dual: Callable[[Tensor, Tensor, Tensor], BallDual],
    losses: Tensor,
    name: str,
    knob: float | Tensor,
    weights: Tensor | None,
) -> Tensor:
    """E_q l with the worst case q of a ball, found in float64 and held constant: the envelope
    theorem makes its gradient q."""
    _look_at(losses, weights)
    if isinstance(knob, str) or knob is None:
        raise ValueError(f"{name} must be a number, got {knob!r}. Write it without quotes.")
    with torch.no_grad():
        flat = wide(losses.detach()).reshape(-1, losses.shape[-1])
        p = (
            torch.full_like(flat, 1.0 / flat.shape[-1])
            if weights is None
            else wide(weights).expand(losses.shape)
        )
        size = (
            torch.as_tensor(knob, dtype=flat.dtype, device=losses.device)
            .expand(losses.shape[:-1])
            .reshape(-1)
        )
        if not bool((size >= 0).all()):
            raise ValueError(f"{name} must not be negative, got {knob}. Use 0 for the plain mean.")
        q = dual(flat, p.reshape(flat.shape), size).weights.reshape(losses.shape).to(losses.dtype)
    return (q * losses).sum(-1)


def _group_means(
    losses: Tensor, groups: Tensor, count: int, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mean loss of each group (..., count), 0 where a group does not occur, and which do."""
    _look_at(losses, weights)
    member = (groups.unsqueeze(-1) == torch.arange(count, device=losses.device)).to(
        losses.dtype
    )  # (..., n, count)
    share = member if weights is None else member * weights.unsqueeze(-1)
    mass = share.sum(-2)
    total = (share * losses.unsqueeze(-1)).sum(-2)
    return total / torch.where(mass > 0, mass, 1), mass > 0


def _look_at(losses: Tensor, weights: Tensor | None, all_zero: bool = False) -> None:
    """Refuse what is no tensor, and weights that are none where a look at them costs next to
    nothing."""
    for name, x in (("losses", losses), ("weights", weights)):
        if x is not None and not isinstance(x, Tensor):
            raise ValueError(
                f"{name} must be a tensor, got {type(x).__name__}: functionals are differentiated."
                " Make it one by torch.tensor(numpy.array(x, dtype=float))."
            )
    if weights is not None and weights.device.type == "cpu":
        check_weights(weights, losses.shape[-1] if losses.ndim else 0, all_zero=all_zero)


def _softly(sample: Tensor, weights: Tensor | None, softness: float | None) -> Tensor:
    """The sample itself, or its soft sort, which sorting then leaves as it is."""
    if softness is None:
        return sample
    if weights is not None:
        raise ValueError(
            "soft sorting is defined for equal weights only: pass softness=None, or no weights."
        )
    return soft_sort(sample, softness)


def _on_support(losses: Tensor, weights: Tensor | None, elsewhere: float) -> Tensor:
    """The losses without gradient, and `elsewhere` where the weight is zero."""
    return (
        losses.detach() if weights is None else losses.detach().masked_fill(weights == 0, elsewhere)
    )


def _log_mean_exp(exponent: Tensor, weights: Tensor | None) -> Tensor:
    """log sum_i p_i exp(x_i) for x <= 0 on the support, to the last digits also where the exponents
    are small."""
    if weights is None:
        weights = torch.full_like(exponent, 1.0 / exponent.shape[-1])
    exponent = torch.where(weights > 0, exponent, 0.0)
    shortfall = (weights * torch.expm1(exponent)).sum(-1)
    near = shortfall > -0.5
    direct = torch.logsumexp(exponent + weights.log(), -1)
    return torch.where(near, torch.log1p(torch.where(near, shortfall, 0.0)), direct)


def _require_positive(name: str, value: float) -> None:
    if isinstance(value, str) or value is None or not 0 < value < float("inf"):
        raise ValueError(
            f"{name} must be positive and finite, got {value!r}. "
            "As it goes to 0 the functional becomes the extreme loss: use a small value."
        )
