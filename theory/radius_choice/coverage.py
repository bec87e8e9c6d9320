"""Coverage: how large a ball must be to cover sampling error, by the KL ball and for the value."""

import numpy as np
from scipy.stats import chi2

from theory.batch import ArrayLike
from theory.checks import as_array
from theory.policy import Array
from theory.radius_choice.gradients import Moments, effects_of, moments_of
from theory.radius_choice.reach import for_value
from theory.radius_choice.sample import (
    Rows,
    check_open_unit,
    direction_of,
    losses_of,
    read_rows,
)

_DRAWS = 20_000  # of a limit law: its 95 % quantile to about 1 %


def kl_coverage(
    n: int,
    delta: float,
    degrees: int = 1,
    *,
    effects: ArrayLike | None = None,
    units: int | None = None,
    seed: int = 0,
) -> float:
    """chi2_{degrees, 1-delta}/(2n), the radius of {KL(Q||P_n) <= rho} that covers sampling error in
    the limit of large n.

    degrees = 1, the value: the loss of a policy fixed beforehand lies between the best and the
    worst case of the ball with probability 1 - delta, and below the worst case with 1 - delta/2.
    degrees = d, theta: the ball holds a Q whose DPO solution is the true theta, min {KL(Q||P_n) :
    E_Q grad l(theta) = 0} <= rho, with probability 1 - delta. Owen (1990) for empirical likelihood;
    Duchi, Glynn and Namkoong (2021), arXiv:1610.03425, for all smooth divergences; Lam (2019),
    arXiv:1605.09349.

    effects: `design_effects`, in place of degrees, where pairs come in groups or have weights: the
    law is then that of sum_k effects_k chi2_1, n still the number of rows. Where the number of
    groups is given as `units`, their few are allowed for as in F: the sum is divided by chi2_m/m, m
    = (units - 1) (sum effects)²/sum effects², Rao and Thomas (1989).
    """
    check_open_unit("delta", delta)
    if n < 1 or degrees < 1:
        raise ValueError(f"n and degrees must be at least 1, got n = {n} and degrees = {degrees}.")
    if effects is None and units is None:
        return float(chi2.ppf(1 - delta, degrees)) / (2 * n)
    sizes = np.ones(degrees) if effects is None else as_array(effects, "effects")
    if sizes.ndim != 1 or not np.isfinite(sizes).all() or (sizes < 0).any():
        raise ValueError(
            f"effects must be finite numbers >= 0, got {sizes.tolist()}. Take those of"
            " design_effects."
        )
    return quantile(sizes, delta, units, seed) / (2 * n)


def design_effects(
    u: ArrayLike,
    w: ArrayLike,
    *,
    beta: float,
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Array:
    """By how much groups and weights make the gradient vary more than n independent pairs would:
    the eigenvalues of Cov_iid^-1 Cov_groups.

    With g_i = grad l_i(theta*), G = sum_i p_i g_i and S = sum_i p_i g_i g_i', the least KL(Q||P_n)
    with E_Q g = 0 is reached by a tilt q_i ∝ p_i exp(a.g_i); to second order its mean is G + S a,
    so that a = -S^-1 G, and its KL is G'S^-1 G/2. As G is a sum over groups, of variance V, 2n
    times that KL has the law of sum_k lambda_k chi2_1, lambda the eigenvalues of n S^-1 V. They are
    1 for independent pairs of equal weight, n/n_Kish where weights have nothing to do with the
    gradients, and up to the size of the groups where pairs of a group are alike. The generalised
    design effects of Rao and Scott (1981), J. Amer. Statist. Assoc. 76. V is the variance of Liang
    and Zeger (1986), with the factor groups/(groups - 1).

    Returns:
        (k,) without a unit, the largest first, k the rank of S.
    """
    rows, direction = read_rows(u, weights, groups), direction_of(w)
    return effects_of(rows, moments_of(rows, direction, beta))


def value_coverage(
    ball: str,
    u: ArrayLike,
    w: ArrayLike,
    *,
    beta: float,
    delta: float,
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> float:
    """Smallest radius whose robust value at w is mean l + z e, e the standard error of the mean and
    z² the 1 - delta quantile of chi2_1.

    e is sd(l)/sqrt(n), and with groups that of their sums, z then of the t law with groups - 1
    degrees of freedom. For the KL ball this agrees with `kl_coverage(n, delta)` to first order. For
    W1 it is z e/(beta ||w||), for W2 nearly the same with ||w|| (E sigma(-m)²)^(1/2) for ||w||.
    Infinite where w = 0, since then no move of a feature matters.
    """
    return value_covered(ball, read_rows(u, weights, groups), direction_of(w), beta, delta)


def value_covered(ball: str, rows: Rows, w: Array, beta: float, delta: float) -> float:
    """`value_coverage` of a sample that was read."""
    check_open_unit("delta", delta)
    losses = losses_of(rows.u, w, beta)
    target = float(rows.p @ losses) + rows.z(delta) * rows.error(losses)
    return for_value(ball, rows.u, rows.p, w, target, beta)


def kl_theta(rows: Rows, moments: Moments, delta: float, seed: int) -> float:
    """The radius of `kl_coverage` for theta."""
    effects = effects_of(rows, moments)
    if not len(effects):
        return 0.0
    return kl_coverage(len(rows.u), delta, len(effects), effects=effects, units=rows.few, seed=seed)


def kl_value(rows: Rows, losses: Array, delta: float) -> float:
    """The radius of `kl_coverage` for the value, times the design effect of the loss."""
    if rows.plain or np.ptp(losses) == 0:
        return kl_coverage(len(losses), delta)
    variance = float(rows.p @ (losses - rows.p @ losses) ** 2) / (1 - rows.lost)
    return rows.z(delta) ** 2 * rows.error(losses) ** 2 / variance / 2


def quantile(effects: Array, delta: float, units: int | None, seed: int) -> float:
    """1 - delta quantile of sum_k effects_k chi2_1, divided as `kl_coverage` says where units are
    given."""
    top = float(effects.max(initial=0.0))
    if top == 0:
        return 0.0
    effects = effects[effects > 1e-12 * top] / top
    d = len(effects)
    if units is None and effects.min() > 1 - 1e-9:
        return top * float(chi2.ppf(1 - delta, d))
    rng, count = np.random.default_rng(seed), max(_DRAWS // 5, min(_DRAWS, 20 * _DRAWS // d))
    draws = rng.chisquare(1, (count, d)) @ effects  # the longer the sum, the less it varies
    return top * float(np.quantile(draws / allowance(effects, units, count, rng), 1 - delta))


def allowance(
    effects: Array, units: int | None, count: int, rng: np.random.Generator
) -> Array | float:
    """Draws of chi2_m/m for the variance that is estimated from few groups; 1 for pairs."""
    if units is None:
        return 1.0
    m = (units - 1) * float(effects.sum()) ** 2 / float(effects @ effects)
    return rng.chisquare(m, count) / m
