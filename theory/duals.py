"""Worst expected loss over a ball of distributions at fixed losses: one-dimensional dual problems,
solved exactly.

Every function is batched over the leading axis R, works in float64 (in float32 where it is given
that: the trainer's devices need not have float64) and returns a `BallDual`, whose worst case is
feasible, so that `gap = dual value - primal value` is a certificate. Probabilities that are
negative, not finite or all zero, and negative or missing radii, are refused; a loss with weight
that is not finite gives NaN, and never `converged`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from theory.precision import rounding, tiny
from theory.transport import check_weights

_MAX_STEPS = 200


@dataclass(frozen=True, eq=False)
class BallDual:
    """Solution of sup {E_q l : q in the ball} for R problems over n atoms.

    value: (R,) dual value, an upper bound of the supremum. dual: (R,) multiplier of the radius
    constraint (infinite when the radius of a KL or chi-squared ball is zero; for CVaR the
    threshold). weights: (R, n) worst-case probabilities.
    gap: (R,) value minus the expectation under `weights`. used: (R,) divergence or transport cost
    that the worst case really uses. converged: (R,) gap below 1e-9 of the loss range.
    """

    value: Tensor
    dual: Tensor
    weights: Tensor
    gap: Tensor
    used: Tensor
    converged: Tensor


def kl_ball_dual(losses: Tensor, p: Tensor, radius: Tensor) -> BallDual:
    """sup {E_q l : KL(q||p) <= rho} = min_{lam >= 0} lam rho + lam log E_p exp(l/lam). Section 4.1,
    arXiv:2502.01930.

    The worst case is the exponential tilt q_i ∝ p_i exp(t l_i), t = 1/lam (Thm. 3), and KL(q_t||p)
    grows with t at the rate t Var_q(l): a safeguarded Newton iteration on log t finds KL = rho.
    When rho >= -log p(largest loss) the worst case is p restricted to the largest losses and lam =
    0.

    Args: losses, p: (R, n); radius: (R,) in nats.
    """
    _check(p, losses, radius)
    support, top, span = _range(losses, p)
    scale = torch.where(span > 0, span, 1.0)
    z = (losses - top[:, None]) / scale[
        :, None
    ]  # in [-1, 0] on the support: the problem is scale free from here on
    z = z.masked_fill(~support, -torch.inf)
    at_top = z == 0
    top_mass = (p * at_top).sum(-1)
    extreme = (span == 0) | (radius >= -top_mass.log())
    trivial = (radius <= 0) & ~extreme

    log_p = p.log()
    z_finite = z.masked_fill(~support, 0.0)

    def tilt(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exponent = t[:, None] * z_finite + log_p
        log_mass = torch.logsumexp(exponent, -1)
        q = torch.exp(exponent - log_mass[:, None])
        average = (q * z_finite).sum(-1)
        variance = (q * (z_finite - average[:, None]) ** 2).sum(-1)
        return q, t * average - log_mass, average, variance

    solve = ~(extreme | trivial)
    rho = torch.where(solve, radius, 1.0)
    variance_p = (p * (z_finite - (p * z_finite).sum(-1, keepdim=True)) ** 2).sum(-1)
    log_t = 0.5 * (2 * rho / variance_p.clamp(min=tiny(p.dtype))).log()  # KL ≈ t² Var/2 for small t
    log_t = torch.where(solve, log_t, 0.0).clamp(-80, 80)
    lower, upper = torch.full_like(log_t, -torch.inf), torch.full_like(log_t, torch.inf)
    for _ in range(_MAX_STEPS):
        t = log_t.exp()
        _, kl, average, variance = tilt(t)
        excess = kl - rho
        slack = (
            2 * rounding(p.dtype) * (t * average.abs() + kl.abs())
        )  # KL is a difference of numbers of this size
        done = (
            ~solve
            | (excess.abs() <= slack)
            | (upper - lower <= rounding(p.dtype) * (1 + log_t.abs()))
        )
        if done.all():
            break
        lower = torch.where(excess < 0, torch.maximum(lower, log_t), lower)
        upper = torch.where(excess >= 0, torch.minimum(upper, log_t), upper)
        # Newton on log KL against log t, which is linear for small t
        slope = t**2 * variance / kl.clamp(min=tiny(p.dtype))
        step = (rho.log() - kl.clamp(min=tiny(p.dtype)).log()) / slope.clamp(min=1e-12)
        proposal = log_t + step.clamp(-2, 2)
        middle = torch.where(
            torch.isfinite(lower) & torch.isfinite(upper), (lower + upper) / 2, proposal
        )
        inside = (proposal > lower) & (proposal < upper)
        log_t = torch.where(done, log_t, torch.where(inside, proposal, middle))
    t = log_t.exp()
    q, kl, average, _ = tilt(t)
    log_mass = t * average - kl
    value = torch.where(solve, top + scale * (rho + log_mass) / t, top)
    q = torch.where(solve[:, None], q, p)
    q = torch.where(
        (extreme & (span > 0))[:, None], p * at_top / top_mass.clamp(min=tiny(p.dtype))[:, None], q
    )
    expected = (q * losses.masked_fill(~support, 0.0)).sum(-1)
    value = torch.where(trivial, expected, value)
    lam = torch.where(trivial, torch.inf, torch.where(extreme, 0.0, scale / t))
    used = torch.where(solve, kl, torch.where(extreme & (span > 0), -top_mass.log(), 0.0))
    gap = value - expected
    return BallDual(value, lam, q, gap, used, _closed(gap, top, span))


def chi2_ball_dual(losses: Tensor, p: Tensor, radius: Tensor) -> BallDual:
    """sup {E_q l : sum_i (q_i - p_i)²/p_i <= rho} = min_{lam >= 0, nu} lam rho + nu + lam E_p
    phi((l - nu)/lam).

    phi(s) = s + s²/4 for s >= -2, else -1. The worst case is q_i = p_i (l_i - c)_+ / E_p (l - c)_+
    with the threshold c at which E_p (l - c)_+² = (1 + rho) (E_p (l - c)_+)²; the ratio of the two
    sides grows with c and is known at every loss, so that sorting finds which atoms are above c,
    and c is closed form. When rho >= 1/p(largest loss) - 1 the worst case is p restricted to the
    largest losses and lam = 0. Ben-Tal et al. (2013), doi:10.1287/mnsc.1120.1641; Duchi and
    Namkoong, arXiv:1810.08750 (their rho is half of this one).

    Args: losses, p: (R, n); radius: (R,), without unit.
    """
    _check(p, losses, radius)
    support, top, span = _range(losses, p)
    scale = torch.where(span > 0, span, 1.0)
    # in [-1, 0], where the support is; an atom without mass may stand anywhere
    z = torch.where(support, (losses - top[:, None]) / scale[:, None], -1.0)
    at_top = support & (z == 0)
    top_mass = (p * at_top).sum(-1)
    extreme = (span == 0) | (1 + radius >= 1 / top_mass)
    trivial = (radius <= 0) & ~extreme
    rho = torch.where(extreme | trivial, 1.0, radius)

    # E (z - c)_+ and E (z - c)_+² at c = each loss in turn, from the largest down: sums of
    # non-negative terms only
    sorted_z, order = z.sort(-1, descending=True)
    mass = p.gather(-1, order).cumsum(-1)[:, :-1]
    step = sorted_z[:, :-1] - sorted_z[:, 1:]
    first = torch.nn.functional.pad((mass * step).cumsum(-1), (1, 0))
    second = torch.nn.functional.pad((2 * step * first[:, :-1] + mass * step**2).cumsum(-1), (1, 0))
    above = (first == 0) | (second > (1 + rho)[:, None] * first**2)  # c lies below these losses
    last = sorted_z.masked_fill(~above, torch.inf).amin(-1)
    active = torch.where(support & (z >= last[:, None]), p, 0.0)

    share = active.sum(-1)
    tail = torch.where(active > 0, 0.0, p).sum(
        -1
    )  # 1 - share, to the last digit also where it vanishes
    average = (active * z).sum(-1) / share
    deviation = torch.where(active > 0, z - average[:, None], 0.0)
    slip = (active * deviation).sum(
        -1
    ) / share  # rounding of the average, which counts where nearly all mass is on one atom
    average, deviation = average + slip, torch.where(active > 0, deviation - slip[:, None], 0.0)
    variance = (active * deviation**2).sum(-1) / share
    # second/first² = 1 + rho for first = share (average - c), second = share (variance + (average -
    # c)²)
    room = torch.where(
        share > tail, rho - tail * (1 + rho), share * (1 + rho) - 1
    )  # share (1 + rho) - 1, without cancellation
    reach = (
        (variance / room.clamp(min=tiny(p.dtype))).sqrt().clamp(min=tiny(p.dtype))
    )  # average - c
    q = active / share[:, None] * (1 + deviation / reach[:, None]).clamp(min=0)
    lam, nu = share * reach / 2, average - tail * reach
    excess = torch.where(active > 0, z - nu[:, None], 0.0)
    value = (
        lam * (rho - tail)
        + nu
        + (active * excess).sum(-1)
        + (active * excess**2).sum(-1) / (4 * lam)
    )

    q = torch.where((trivial | (span == 0))[:, None], p, q)
    q = torch.where((extreme & (span > 0))[:, None], p * at_top / top_mass[:, None], q)
    expected = (q * losses.masked_fill(~support, 0.0)).sum(-1)
    value = torch.where(extreme, top, torch.where(trivial, expected, top + scale * value))
    dual = torch.where(trivial, torch.inf, torch.where(extreme, 0.0, scale * lam))
    used = torch.where(support, (q - p) ** 2 / torch.where(support, p, 1.0), 0.0).sum(-1)
    gap = value - expected
    return BallDual(value, dual, q, gap, used, _closed(gap, top, span))


def cvar_dual(losses: Tensor, p: Tensor, alpha: Tensor) -> BallDual:
    """Mean of the worst share alpha: sup {E_q l : q_i <= p_i/alpha} = min_c c + E_p (l - c)_+ /
    alpha.

    `dual` is the threshold c, the largest loss that is reached or exceeded with probability at
    least alpha; `used` is the largest ratio q_i/p_i, at most 1/alpha. Losses above c have q_i =
    p_i/alpha, those equal to c share what is left in proportion to p_i. Rockafellar and Uryasev
    (2000).

    Args: losses, p: (R, n); alpha: (R,) in (0, 1].
    """
    if not bool(((alpha > 0) & (alpha <= 1)).all()):
        raise ValueError(
            f"alpha must be in (0, 1], got {alpha.tolist()}: the worst share of the pairs; 1 is the"
            " plain mean."
        )
    _check(p, losses, alpha)
    support, top, span = _range(losses, p)
    order = losses.masked_fill(~support, -torch.inf).argsort(-1, descending=True)
    covered = p.gather(-1, order).cumsum(-1) < alpha[:, None]  # the losses before the threshold
    live = support.sum(-1, keepdim=True)
    place = covered.sum(-1, keepdim=True).minimum(
        live - 1
    )  # rounding may leave the sum below alpha = 1
    threshold = losses.gather(-1, order.gather(-1, place))
    above, equal = support & (losses > threshold), support & (losses == threshold)
    over = (p * above).sum(-1)
    left = ((alpha - over) / (p * equal).sum(-1)).clamp(0, 1)
    q = p * (above + equal * left[:, None]) / alpha[:, None]
    z = torch.where(above, losses - threshold, 0.0)
    value = threshold[:, 0] + (p * z).sum(-1) / alpha
    gap = value - (q * losses.masked_fill(~support, 0.0)).sum(-1)
    used = torch.where(support, q / torch.where(support, p, 1.0), 0.0).amax(-1)
    return BallDual(value, threshold[:, 0], q, gap, used, _closed(gap, top, span))


def total_variation_dual(losses: Tensor, p: Tensor, radius: Tensor) -> BallDual:
    """sup {E_q l : sum_i |q_i - p_i|/2 <= rho, q_i = 0 where p_i = 0} = min_{eta >= 0} eta rho +
    E_p max(l, max l - eta).

    The worst case takes the mass rho from the lowest losses and gives it to the largest. `dual` is
    eta, how far below the largest loss the taking stops. Ties share in proportion to p_i.

    Args: losses, p: (R, n); radius: (R,) in [0, 1]; more is as good as 1.
    """
    _check(p, losses, radius)
    support, top, span = _range(losses, p)
    at_top = support & (losses == top[:, None])
    top_mass = (p * at_top).sum(-1)
    below = torch.where(support & ~at_top, p, 0.0)
    moved = radius.minimum(below.sum(-1))
    order = losses.masked_fill(~support, torch.inf).argsort(-1)
    place = (
        (p.gather(-1, order).cumsum(-1) < moved[:, None])
        .sum(-1, keepdim=True)
        .minimum(support.sum(-1, keepdim=True) - 1)
    )
    threshold = losses.gather(-1, order.gather(-1, place))
    emptied, equal = support & (losses < threshold), support & (losses == threshold)
    under = (p * emptied).sum(-1)
    share = ((moved - under) / (p * equal).sum(-1)).clamp(0, 1)
    taken = p * (emptied + equal * share[:, None])
    q = p - taken + p * at_top * (taken.sum(-1) / top_mass)[:, None]
    eta = torch.where(radius >= below.sum(-1), 0.0, top - threshold[:, 0])
    value = eta * radius + (
        p * torch.maximum(losses.masked_fill(~support, -torch.inf), (top - eta)[:, None])
    ).sum(-1)
    gap = value - (q * losses.masked_fill(~support, 0.0)).sum(-1)
    used = (q - p).abs().sum(-1) / 2
    return BallDual(value, eta, q, gap, used, _closed(gap, top, span))


def _check(p: Tensor, losses: Tensor, radius: Tensor) -> None:
    """Probabilities that are some, and radii that are not negative."""
    check_weights(p, losses.shape[-1], "p")
    if not bool((radius >= 0).all()):
        raise ValueError(
            f"the radius must not be negative or NaN, got {radius.min().item():g}. Use 0 for the"
            " plain mean."
        )


def _range(losses: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which atoms have mass (R, n), the largest loss among them and its distance to the smallest
    (R,)."""
    support = p > 0
    low = losses.masked_fill(~support, torch.inf).amin(-1)
    top = losses.masked_fill(~support, -torch.inf).amax(-1)
    return support, top, top - low


def _closed(gap: Tensor, top: Tensor, span: Tensor) -> Tensor:
    return gap.abs() <= 1e-9 * (span + top.abs()) + tiny(gap.dtype)


def transport_dual(losses: Tensor, p: Tensor, cost: Tensor, budget: Tensor) -> BallDual:
    """sup over plans with rows p and total cost <= budget of E l = min_{eta >= 0} eta budget + E_p
    max_j [l_j - eta c_ij].

    The dual is piecewise linear and convex in eta: the intersection of the two supporting lines of
    a bracket is the next trial, which ends at the exact minimiser; the worst case mixes the two
    plans that meet there. Lemma 1, arXiv:2502.01930.

    Args: losses, p: (R, n); cost: (n, n), non-negative with zero diagonal; budget: (R,) =
    radius**power.
    """
    return transport_plan(losses, p, cost, budget)[0]


def transport_plan(
    losses: Tensor, p: Tensor, cost: Tensor, budget: Tensor
) -> tuple[BallDual, Tensor, Tensor, Tensor]:
    """`transport_dual` with its plan: two targets (R, n) of each atom, and the share (R,) of the
    mass that goes to the first."""
    _check(p, losses, budget)
    rows = torch.arange(losses.shape[0], device=losses.device)[:, None]

    def line(eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Targets of each atom at eta, with the expected loss (intercept) and cost of that plan."""
        best = (losses[:, None, :] - eta[:, None, None] * cost).argmax(-1)
        spent = cost.expand(losses.shape[0], -1, -1).gather(-1, best[..., None]).squeeze(-1)
        return best, (p * losses.gather(-1, best)).sum(-1), (p * spent).sum(-1)

    positive = cost[cost > 0]
    smallest = (
        positive.min() if positive.numel() else torch.ones((), dtype=cost.dtype, device=cost.device)
    )
    span = losses.amax(-1) - losses.amin(-1)
    eta_low, eta_high = (
        torch.zeros_like(budget),
        span / smallest + 1.0,
    )  # at eta_high nothing moves (except at zero cost)
    plan_low, gain_low, cost_low = line(eta_low)
    # at eta = 0 ties are broken towards the cheapest target, so that a slack budget is seen as such
    nearest = torch.where(
        losses[:, None, :] >= losses.amax(-1)[:, None, None], cost, torch.inf
    ).min(-1)
    plan_low, cost_low = nearest.indices, (p * nearest.values).sum(-1)
    gain_low = (p * losses.gather(-1, plan_low)).sum(-1)
    plan_high, gain_high, cost_high = line(eta_high)
    slack = cost_low <= budget
    eta = torch.where(slack, 0.0, eta_high)
    done = slack | (cost_high >= budget)
    for _ in range(_MAX_STEPS):
        if done.all():
            break
        # lines gain + eta (budget - cost): meet where the gains differ by eta times the costs
        meet = (gain_low - gain_high) / (cost_low - cost_high).clamp(min=tiny(p.dtype))
        trial = torch.where(done, eta, meet)
        plan, gain, spent = line(trial)
        on_bracket = gain - trial * spent <= gain_low - trial * cost_low + 1e-15 * (1 + gain.abs())
        low_side = ~done & ~on_bracket & (spent > budget)
        high_side = ~done & ~on_bracket & (spent <= budget)
        eta = torch.where(done, eta, trial)
        plan_low = torch.where(low_side[:, None], plan, plan_low)
        gain_low, cost_low = (
            torch.where(low_side, gain, gain_low),
            torch.where(low_side, spent, cost_low),
        )
        plan_high = torch.where(high_side[:, None], plan, plan_high)
        gain_high, cost_high = (
            torch.where(high_side, gain, gain_high),
            torch.where(high_side, spent, cost_high),
        )
        done = done | on_bracket
    share = ((budget - cost_high) / (cost_low - cost_high).clamp(min=tiny(p.dtype))).clamp(0, 1)
    share = torch.where(slack, 1.0, torch.where(cost_low > cost_high, share, 0.0))
    weights = torch.zeros_like(p)
    weights.index_put_((rows.expand_as(plan_low), plan_low), p * share[:, None], accumulate=True)
    weights.index_put_(
        (rows.expand_as(plan_high), plan_high), p * (1 - share)[:, None], accumulate=True
    )
    value = eta * budget + (p * (losses[:, None, :] - eta[:, None, None] * cost).amax(-1)).sum(-1)
    gap = value - (weights * losses).sum(-1)
    used = share * cost_low + (1 - share) * cost_high
    found = BallDual(
        value,
        eta,
        weights,
        gap,
        used,
        gap.abs() <= 1e-9 * (span + losses.abs().amax(-1)) + tiny(gap.dtype),
    )
    return found, plan_low, plan_high, share
