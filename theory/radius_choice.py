"""Which radius? What the data say about rho (KL, W1, W2) and tau, by four considerations and one
rule.

    choice = suggest_radii(u, beta=0.1, held_out=other, groups=person)
    choice.kl.radius, choice.tau, choice.w2.radius
    print(describe(choice))

u (n, d) holds signed feature differences (2y-1)(psi1-psi2) of labelled pairs, w = theta -
theta_ref, m = beta w.u, l = log(1 + exp(-m)). The four considerations, each a function of its own:

* coverage: how large the ball must be to cover sampling error (`kl_coverage`, `value_coverage`,
  `profile_coverage`), of pairs that are independent or come in groups (`design_effects`);
* effective sample size: how much of the sample the worst-case weights leave
  (`temperature_for_share`);
* collapse: the radius from which on the answer is the reference policy (`theory.collapse`);
* held-out shift: how large the ball must be to reach the loss on pairs of another population
  (`shift_radius`).

The rule: the larger of coverage and held-out shift, but at most half the collapse radius and, for
the KL ball, at most the radius that leaves the wanted share of the sample. Where these conflict the
cap is returned and `conflict` says so.

What a radius cannot do. In a well-specified population KLDPO at tau is DPO at beta (1 + 1/tau),
exactly (docs/theorems/larger-beta.md, Prop. E), and at equal KL to the reference the robust methods
hardly beat that DPO anywhere in the ledger. So compare with DPO at `equivalent_beta` before you
believe in a radius. Wasserstein radii are in the unit of the features u: they are not the `--rho`
of `prefdro train --objective wdpo`, which is in the unit of the token embeddings. The KL radius is
in nats and tau in units of the loss in both, but a trainer meets them on each effective batch,
where n is the batch.

Several pairs of one person, prompt or annotator are not independent: without `groups` the radii for
coverage are then too small, and nothing in u shows it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, eigh
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit
from scipy.stats import chi2, norm
from scipy.stats import t as t_law

from theory.batch import ArrayLike, check_magnitudes, feature_names
from theory.checks import as_array, check_clusters, check_probability, check_scale
from theory.collapse import collapse_radius
from theory.estimators import dpo, kldpo
from theory.policy import Array
from theory.separable import separation
from theory.sets import AmbiguitySet
from theory.sets.kl import KL
from theory.sets.wasserstein_free import WassersteinFree
from theory.solvers.adversary import tilt
from theory.solvers.wells import global_well

SETS_HERE: dict[str, AmbiguitySet] = {
    "kl": KL(),
    "w1": WassersteinFree(power=1),
    "w2": WassersteinFree(power=2),
}
SHARE = 0.5  # of the sample that the worst-case weights should leave
CAP = 0.5  # of the collapse radius that a suggestion does not exceed
_DRAWS = 20_000  # of a limit law: its 95 % quantile to about 1 %
_LONGEST = 60.0  # log of the largest ratio of temperatures searched
_ENTRIES = 1 << 21  # of an array that is held at a time
_SURE = 20.0  # a margin at which a label is certain: from here on separation is looked for
_DENSEST = 4.0  # the density of the moves of the W1 profile against the sample
_ROWS, _W1_DRAWS = 5_000, 4_000  # of the sample, and of G, for the W1 profile: about 2 %


@dataclass(frozen=True)
class Suggestion:
    """What is known of the radius of one ball, and what follows.

    radius: by the rule. value: covers the loss of a policy fixed beforehand. theta: covers theta,
    that is, some Q in the ball has the true theta as its DPO solution. shift: reaches the held-out
    loss; None where there are no held-out pairs or their loss is not above the training loss,
    infinite where no radius reaches it. collapse: from here on the answer is the reference policy.
    cap: the largest radius that the rule allows. conflict: what the cap leaves uncovered, in words;
    None where nothing.
    """

    ball: str
    radius: float
    value: float
    theta: float
    shift: float | None
    collapse: float
    cap: float
    conflict: str | None

    @property
    def fraction(self) -> float:
        """The radius as a fraction of the collapse radius; 0 where no radius collapses."""
        return self.radius / self.collapse if self.collapse > 0 else math.nan


@dataclass(frozen=True)
class RadiusChoice:
    """Suggestions for the three balls, and for the temperature.

    Derived; what they rest on is in `theory.radius_choice` and docs/theorems/larger-beta.md, Prop.
    E.

    Attributes:
        kl, w1, w2: a `theory.radius_choice.Suggestion` for the KL ball, in nats, and for W1 and W2
            with free features, in the unit of the features.
        n, dimension: of the data; pairs of weight 0 are not counted.
        units: how many of them are independent: n, or the number of groups.
        effective: 1/sum p_i², Kish's number of pairs that the weights leave: n where all are equal.
        mean_loss: of the DPO fit on them, in nats.
        tau: dual variable of the KL ball at its suggested radius, the temperature at which
            Algorithm 2 of arXiv:2502.01930v4 has the same solution; in nats, as the loss.
        equivalent_beta: beta (1+1/tau), at which plain DPO does the same where the model is right.
        share: what the suggested KL radius leaves of the sample at the DPO fit.
        share_tau, share_radius: temperature and KL radius that leave the wanted share of the sample
            at the DPO fit.
        separable: whether the pairs are, so that the fit and all that follows are the bound's.
        remarks: what to know before the numbers are believed, in words.

    >>> from theory import suggest_radii
    >>> choice = suggest_radii([[1.0]] * 60 + [[-1.0]] * 40, beta=1.0, bound=5.0)
    >>> choice.n, choice.dimension, round(choice.w2.collapse, 6)
    (100, 1, 0.2)
    """

    kl: Suggestion
    w1: Suggestion
    w2: Suggestion
    n: int
    dimension: int
    units: int
    effective: float
    mean_loss: float
    tau: float
    equivalent_beta: float
    share: float
    share_tau: float
    share_radius: float
    separable: bool = False
    remarks: tuple[str, ...] = ()


def suggest_radii(
    u: ArrayLike,
    *,
    beta: float,
    bound: float | None = None,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    held_out: ArrayLike | None = None,
    held_out_groups: ArrayLike | None = None,
    delta: float = 0.05,
    share: float = SHARE,
    cover: str = "theta",
    seed: int = 0,
) -> RadiusChoice:
    """Radii of the KL ball and of W1 and W2 with free features, and the temperature, for labelled
    pairs u (n, d).

    The rule is this package's own; the coverage radii are those of `kl_coverage` (Owen, 1990;
    arXiv:1610.03425; arXiv:1605.09349) and `profile_coverage` (arXiv:1610.05627, Thm. 3), for
    groups and weights with the `design_effects` of Rao and Scott (1981).

    Args:
        u: signed feature differences (2y-1)(psi1-psi2), one row a pair, n >= 2.
        beta: of the loss.
        bound: B in ||theta - theta_ref|| <= B of the fits; None: no bound, as in `fit`.
        weights: (n,) probabilities of the rows, for a sample that was not drawn evenly; None: 1/n
            each. Every row is one independent pair, whatever its weight. Not so a tie that is given
            as two rows of half a weight: give both the same label in `groups`. They are not
            numbers of equal pairs either: repeat those rows.
        groups: (n,) a label for each row: pairs of the same person, prompt or annotator may depend
            on each other in any way. None: all are independent. With several pairs of each person
            and no groups the radii for coverage are too small, and cover less often than they say.
        held_out: the same (m, d), m >= 2, for pairs of another population, judged by the policy
            fitted to u.
        held_out_groups: (m,) labels of the groups of held_out.
        delta: probability with which coverage may fail.
        share: of the sample that the KL ball's worst-case weights should leave at the DPO fit, in
            (0, 1).
        cover: "theta" or "value": which coverage radius the rule takes. The latter is for a policy
            fixed before the data: at the policy fitted to them the loss on them is too low, by
            about d/n, and it fails more often than delta. With d = 5 and n = 200 Bradley-Terry
            pairs it covered the true loss of the fit in 88 % of 400 samples, the radius for theta
            in 97 %.
        seed: of the draws from the limit laws.

    Returns:
        A `RadiusChoice`: the KL radius in nats, those of W1 and W2 in the unit of u, tau in nats.

    Raises:
        ValueError: data that are not (n, d) finite numbers with n >= 2, or an argument out of its
            range; features that are all 0; without a bound, pairs that are separable.

    >>> from theory import suggest_radii
    >>> choice = suggest_radii([[1.0]] * 60 + [[-1.0]] * 40, beta=1.0, bound=5.0)
    >>> round(choice.kl.theta, 6)  # covers theta: chi2_{1, 0.95}/(2n)
    0.019207
    >>> round(choice.kl.radius, 6), choice.kl.conflict  # at most half of the collapse radius
    (0.010205, 'coverage (0.0192) above the cap 0.0102, 0.5 of the collapse radius')
    """
    rows = _rows(u, weights, groups)
    pairs, p = rows.u, rows.p
    names = feature_names(u) or tuple(f"feature {k + 1}" for k in range(pairs.shape[1]))
    if not pairs.any():
        raise ValueError(
            "all features of u are 0: the two responses of every pair look the same. Build other"
            " features."
        )
    other = None if held_out is None else _rows(held_out, None, held_out_groups, "held_out")
    if held_out is None and held_out_groups is not None:
        raise ValueError("held_out_groups are labels of held_out, which is missing. Give both.")
    if other is not None and held_out is not None:
        _same_features(pairs, other.u, feature_names(u), feature_names(held_out))
    if cover not in ("theta", "value"):
        raise ValueError(f"cover must be 'theta' or 'value', got {cover!r}.")
    _open_unit("delta", delta)
    given = None if weights is None else p
    columns = torch.from_numpy(pairs)  # column by column, as fits hold them: no copy is made
    found = dpo(columns, given, beta=beta, bound=bound)
    w = found.theta.numpy()
    split = None
    if bool(found.at_bound) or beta * np.abs(pairs @ w).max() >= _SURE:
        split = separation(columns, given)
    if split is not None and bound is None:
        raise ValueError(f"{split.describe(names)}.")
    losses = _losses(pairs, w, beta)
    share_tau, share_radius = temperature_for_share(losses, share, given)
    moments = _moments(rows, w, beta)
    theta = {"kl": _kl_theta(rows, moments, delta, seed)}
    theta |= {f"w{k}": _profile(rows, w, beta, delta, k, seed, moments) for k in (1, 2)}
    chosen = {}
    for ball in SETS_HERE:
        value = (
            _kl_value(rows, losses, delta)
            if ball == "kl"
            else _value_coverage(ball, rows, w, beta, delta)
        )
        shift = None if other is None else _shift_radius(ball, rows, other, w, beta, delta)
        collapse = collapse_radius(columns, SETS_HERE[ball], given).item()
        caps = {f"{CAP:g} of the collapse radius": CAP * collapse}
        if ball == "kl":
            caps[f"a share {share:g} of the sample"] = share_radius
        wanted = {
            "coverage": theta[ball] if cover == "theta" else value,
            "held-out shift": shift or 0.0,
        }
        chosen[ball] = _decide(ball, value, theta[ball], shift, collapse, wanted, caps)
    radius = chosen["kl"].radius
    tau = math.inf  # a radius of 0 is the plain mean
    if radius > 0:
        dual = kldpo(columns, given, radius=radius, beta=beta, bound=bound).dual
        assert dual is not None
        tau = dual.item()
    left = tilt(losses, p, radius=radius).effective
    equivalent = beta * (1 + 1 / tau) if tau > 0 else math.inf
    remarks = []
    if split is not None:
        remarks.append(f"{split.describe(names)}; all numbers here rest on the bound {bound:g}")
    elif bool(found.at_bound):
        which = (
            "the bound that a fit takes where none is given. Features of similar sizes, such as"
            " each divided by its standard deviation, do not reach it"
            if bound is None
            else f"the bound ||theta|| <= {bound:g}: take a larger one, or None"
        )
        remarks.append(f"the DPO fit, on which all numbers here rest, is on {which}")
    still = [
        name for name, moves in zip(names, np.any(pairs != 0, axis=0), strict=True) if not moves
    ]
    if still:
        remarks.append(f"0 in every pair, and so without a say: {_few(still)}")
    return RadiusChoice(
        **chosen,
        n=len(pairs),
        dimension=pairs.shape[1],
        units=rows.units,
        effective=1 / float(p @ p),
        mean_loss=float(p @ losses),
        tau=tau,
        equivalent_beta=equivalent,
        share=left,
        share_tau=share_tau,
        share_radius=share_radius,
        separable=split is not None,
        remarks=tuple(remarks),
    )


def _decide(
    ball: str,
    value: float,
    theta: float,
    shift: float | None,
    collapse: float,
    wanted: dict[str, float],
    caps: dict[str, float],
) -> Suggestion:
    """The largest of what is wanted, under the smallest cap."""
    limit = min(caps, key=lambda name: caps[name])
    radius = min(max(wanted.values()), caps[limit])
    beyond = [f"{name} ({amount:.3g})" for name, amount in wanted.items() if amount > caps[limit]]
    conflict = (
        f"{' and '.join(beyond)} above the cap {caps[limit]:.3g}, {limit}" if beyond else None
    )
    return Suggestion(ball, radius, value, theta, shift, collapse, caps[limit], conflict)


# ----------------------------------------------------------------------------------------- coverage
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
    _open_unit("delta", delta)
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
    return _quantile(sizes, delta, units, seed) / (2 * n)


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
    rows, direction = _rows(u, weights, groups), _direction(w)
    return _effects(rows, _moments(rows, direction, beta))


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
    return _value_coverage(ball, _rows(u, weights, groups), _direction(w), beta, delta)


def profile_coverage(
    u: ArrayLike,
    w: ArrayLike,
    *,
    beta: float,
    delta: float,
    power: int = 2,
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    seed: int = 0,
) -> float:
    """Radius of W2, or with power = 1 of W1 (features free, labels fixed), that covers theta: with
    probability 1 - delta some Q in it has E_Q grad l = 0.

    The robust Wasserstein profile R_n(theta) = min {W2(Q, P_n)² : E_Q g = 0}, g = grad_theta l, has
    n R_n(theta*) -> G'(E DD')^-1 G in law, D = dg/du, G ~ N(0, Cov g): Blanchet, Kang and Murthy
    (2019), arXiv:1610.05627, Thm. 3 with rho = 2. The law is taken at w and sampled. The radius is
    of order n^-1/2. With groups or weights Cov g is n times the variance of the mean gradient, as
    in `design_effects`, with the same allowance for few groups.

    For W1 their limit is max {z.G : ||D_i'z|| <= 1 for all i}, which leaves all moving to the
    pairs of the steepest slope. With unbounded features that has no finite sample behind it: a
    sample has one steepest pair, of mass 1/n, and where it is moved far only secants of g count.
    Here no pair is moved more than 4 times as much as if all were: moves q_i D_i'y of a density 0
    <= q_i <= 4, E q = 1, with y = -(E q DD')^-1 G/sqrt(n), meet E_Q g = 0 to first order whatever q
    is, and cost E q|D'y|. One q serves all G: that of the least mean E G'(E q DD')^-1 G, by
    Frank-Wolfe steps. The radius is the quantile of these costs: enough, by at most the 4 and the
    one q more than the least, and at most that of W2, where q = 1. Of more than 5,000 pairs 5,000
    are drawn for q and the cost.
    """
    rows, direction = _rows(u, weights, groups), _direction(w)
    _open_unit("delta", delta)
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2, the order of the distance, got {power!r}.")
    return _profile(rows, direction, beta, delta, power, seed, _moments(rows, direction, beta))


def _quantile(effects: Array, delta: float, units: int | None, seed: int) -> float:
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
    return top * float(np.quantile(draws / _allowance(effects, units, count, rng), 1 - delta))


def _allowance(
    effects: Array, units: int | None, count: int, rng: np.random.Generator
) -> Array | float:
    """Draws of chi2_m/m for the variance that is estimated from few groups; 1 for pairs."""
    if units is None:
        return 1.0
    m = (units - 1) * float(effects.sum()) ** 2 / float(effects @ effects)
    return rng.chisquare(m, count) / m


def _kl_theta(rows: "_Rows", moments: "_Moments", delta: float, seed: int) -> float:
    """The radius of `kl_coverage` for theta."""
    effects = _effects(rows, moments)
    if not len(effects):
        return 0.0
    return kl_coverage(len(rows.u), delta, len(effects), effects=effects, units=rows.few, seed=seed)


def _kl_value(rows: "_Rows", losses: Array, delta: float) -> float:
    """The radius of `kl_coverage` for the value, times the design effect of the loss."""
    if rows.plain or np.ptp(losses) == 0:
        return kl_coverage(len(losses), delta)
    variance = float(rows.p @ (losses - rows.p @ losses) ** 2) / (1 - rows.lost)
    return rows.z(delta) ** 2 * rows.error(losses) ** 2 / variance / 2


def _value_coverage(ball: str, rows: "_Rows", w: Array, beta: float, delta: float) -> float:
    _open_unit("delta", delta)
    losses = _losses(rows.u, w, beta)
    target = float(rows.p @ losses) + rows.z(delta) * rows.error(losses)
    return _for_value(ball, rows.u, rows.p, w, target, beta)


def _profile(
    rows: "_Rows",
    w: Array,
    beta: float,
    delta: float,
    power: int,
    seed: int,
    moments: "_Moments",
) -> float:
    if power == 1:
        return _w1_profile(rows, w, beta, delta, seed, moments.error)
    room = _room(rows.u, rows.p, expit(-beta * (rows.u @ w)), w, beta)
    # G'AG has the law of sum_k lambda_k chi2_1 with lambda the eigenvalues of A Cov(G)
    sizes = _relative(moments.error, room)
    return math.inf if sizes is None else math.sqrt(_quantile(sizes, delta, rows.few, seed))


def _w1_profile(
    rows: "_Rows", w: Array, beta: float, delta: float, seed: int, error: Array
) -> float:
    rng = np.random.default_rng(seed)
    u, p = rows.u, rows.p
    if len(u) > _ROWS:
        part = np.sort(rng.choice(len(u), _ROWS, replace=False))
        u, p = u[part], p[part] / p[part].sum()
    down = expit(-beta * (u @ w))
    sizes = _relative(error, _room(u, p, down, w, beta))
    if sizes is None:
        return math.inf
    density = _density(u, p, down, w, beta, error)
    room = _room(u, p * density, down, w, beta)
    size, axes = np.linalg.eigh(error)
    normal = rng.standard_normal((len(w), _W1_DRAWS))
    y = np.linalg.solve(room, (axes * np.sqrt(size.clip(min=0))) @ normal)  # (d, draws)
    moved = p * density > 0
    u, mass, down = u[moved], (p * density)[moved], down[moved]
    bend = (beta * (1 - down))[:, None]
    costs = []
    for part in np.array_split(y, max(1, y.shape[1] * len(u) // _ENTRIES), axis=1):
        along = bend * (u @ part)
        # |D'y|² = beta² s² (|y|² - 2 beta (1-s) u.y w.y + (beta (1-s) u.y |w|)²)
        square = (part**2).sum(0) - 2 * along * (w @ part) + along**2 * (w @ w)
        costs.append((mass * beta * down) @ np.sqrt(square.clip(min=0)))
    cost = np.concatenate(costs) / np.sqrt(_allowance(sizes, rows.few, _W1_DRAWS, rng))
    most = math.sqrt(_quantile(sizes, delta, rows.few, seed))  # of W2, and W1 is at most W2
    return min(float(np.quantile(cost, 1 - delta)), most)


def _density(u: Array, p: Array, down: Array, w: Array, beta: float, error: Array) -> Array:
    """(n,) the q of `profile_coverage`: least tr (E q DD')^-1 V with 0 <= q <= 4 and E q = 1.

    The gradient in q_i is -tr M D_i D_i', M = A^-1 V A^-1, which a vertex minimises that takes the
    steepest quarter.
    """
    q = np.ones(len(u))
    for step in range(10):  # within 1 % of the least
        inverse = np.linalg.inv(_room(u, p * q, down, w, beta))
        m = inverse @ error @ inverse
        pulled, bend = u @ m, beta * (1 - down)
        gain = down**2 * (
            np.trace(m)
            - 2 * bend * (pulled @ w)
            + bend**2 * (w @ w) * np.einsum("ni,ni->n", pulled, u)
        )
        order = np.argsort(-gain, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        vertex = np.zeros(len(u))
        room = (1 / _DENSEST - before).clip(min=0)
        vertex[order] = _DENSEST * np.minimum(1, room / np.maximum(p[order], 1e-300))
        q += (vertex - q) * 2 / (step + 3)
    return q


# ----------------------------------------------------------------------------------- moments
@dataclass(frozen=True, eq=False)
class _Rows:
    """u (n, d), their probabilities p (n,), and the group of each, numbers from 0 to units - 1, or
    None."""

    u: Array
    p: Array
    member: NDArray[np.intp] | None

    @cached_property
    def lost(self) -> float:
        """1/n by Kish's n: sum p_i²."""
        return float(self.p @ self.p)

    @cached_property
    def plain(self) -> bool:
        """Independent pairs of equal weight."""
        return self.member is None and bool((self.p == self.p[0]).all())

    @cached_property
    def units(self) -> int:
        return len(self.p) if self.member is None else int(self.member.max()) + 1

    @property
    def few(self) -> int | None:
        """The number of groups, where there are any."""
        return None if self.member is None else self.units

    def z(self, delta: float, sides: int = 2) -> float:
        """The 1 - delta/sides quantile of the normal law, of the t law for groups."""
        if self.member is None:
            return float(norm.ppf(1 - delta / sides))
        return float(t_law.ppf(1 - delta / sides, self.units - 1))

    def error(self, values: Array) -> float:
        """Standard error of the mean of the values (n,)."""
        parts = self.p * (values - self.p @ values)
        if self.member is None:
            return math.sqrt(float(parts @ parts) / (1 - self.lost))
        sums = np.bincount(self.member, parts)
        return math.sqrt(float(sums @ sums) * self.units / (self.units - 1))


@dataclass(frozen=True, eq=False)
class _Moments:
    """Of the gradients g_i (d,) at w: their covariance, as of independent pairs, and the variance
    of their mean; each (d, d)."""

    spread: Array
    error: Array


def _moments(rows: _Rows, w: Array, beta: float) -> _Moments:
    """By matrix products over parts of the rows: nothing larger than u is held."""
    u, p = rows.u, rows.p
    _losses(u[:1], w, beta)  # its checks
    pull = -beta * expit(-beta * (u @ w))
    mean = (p * pull) @ u
    spread = (_gram(u, p * pull**2) - np.outer(mean, mean)) / (1 - rows.lost)
    if rows.plain:
        return _Moments(spread, spread * rows.lost)
    if rows.member is None:
        square = (p**2 * pull) @ u
        cross = np.outer(square, mean)
        error = _gram(u, (p * pull) ** 2) - cross - cross.T + rows.lost * np.outer(mean, mean)
        return _Moments(spread, error / (1 - rows.lost))
    sums = np.stack([np.bincount(rows.member, p * pull * column) for column in u.T], 1)
    sums -= np.outer(np.bincount(rows.member, p), mean)
    return _Moments(spread, sums.T @ sums * rows.units / (rows.units - 1))


def _effects(rows: _Rows, moments: _Moments) -> Array:
    """Eigenvalues of n S^-1 V in the range of S, the largest first."""
    size = np.sqrt(np.diag(moments.spread).clip(min=0))
    seen = size > 0
    unit = size[seen]
    values, axes = np.linalg.eigh(moments.spread[np.ix_(seen, seen)] / np.outer(unit, unit))
    kept = values > 1e-10
    if rows.plain:
        return np.ones(int(kept.sum()))
    root = axes[:, kept] / np.sqrt(values[kept]) / unit[:, None]
    between = root.T @ moments.error[np.ix_(seen, seen)] @ root
    return (len(rows.u) * np.linalg.eigvalsh(between)[::-1]).clip(min=0)


def _relative(error: Array, room: Array) -> Array | None:
    """Eigenvalues of room^-1 error; None where no move of a feature changes the gradient."""
    scale = float(np.trace(room))
    if not scale > 0:
        return None
    try:
        found = eigh(error, room / scale, eigvals_only=True)
    except LinAlgError:
        return None
    return found.clip(min=0) / scale


def _room(u: Array, p: Array, down: Array, w: Array, beta: float) -> Array:
    """(d, d) sum_i p_i D_i D_i' for D = -beta s I + beta² s (1-s) u w', s = sigma(-m)."""
    flat = p * down**2
    bent = flat * (1 - down)
    cross = np.outer(bent @ u, w)
    curved = _gram(u, bent * (1 - down))
    whole = flat.sum() * np.eye(len(w)) - beta * (cross + cross.T) + beta**2 * (w @ w) * curved
    return beta**2 * whole


def _gram(u: Array, c: Array) -> Array:
    """(d, d) sum_i c_i u_i u_i' for c >= 0."""
    found = np.zeros((u.shape[1], u.shape[1]))
    for part in _parts(u):
        found += (u[part] * c[part, None]).T @ u[part]
    return found


def _parts(u: Array) -> Iterator[slice]:
    step = max(1, _ENTRIES // u.shape[1])
    return (slice(start, start + step) for start in range(0, len(u), step))


# ---------------------------------------------------------------------------- effective sample size
def temperature_for_share(
    losses: ArrayLike, share: float, weights: ArrayLike | None = None
) -> tuple[float, float]:
    """tau at which the tilt q_i ∝ p_i exp(l_i/tau) has the effective sample size share * n (Kish),
    with its KL(q||p); p are the weights (n,), 1/n each where they are None.

    n/ess = E e^{2tl}/(E e^{tl})², t = 1/tau, grows with t: its log is K(2t) - 2K(t) for the convex
    K = log E e^{tl}. Infinite tau and KL 0 where all losses are equal; tau = 0 with the KL of the
    tilt towards the largest losses where these alone are more than the share.
    """
    l = as_array(losses, "losses")
    if l.ndim != 1 or l.size == 0 or not np.isfinite(l).all():
        raise ValueError(
            f"losses must be n >= 1 finite numbers, got shape {l.shape} with"
            f" {int((~np.isfinite(l)).sum())} non-finite entries. Remove those pairs first."
        )
    _open_unit("share", share)
    p = _probability(weights, len(l))
    l, p = l[p > 0], p[p > 0]
    span = float(np.ptp(l))
    if span == 0:
        return math.inf, 0.0
    at_top = float(p[l == l.max()].sum())
    if at_top >= share:
        return 0.0, -math.log(at_top)

    def excess(log_tau: float) -> float:
        return tilt(l, p, temperature=span * math.exp(log_tau)).effective - share

    low, high = -5.0, 5.0
    while excess(low) > 0 and low > -_LONGEST:
        low *= 2
    while excess(high) < 0 and high < _LONGEST:
        high *= 2
    tau = span * math.exp(brentq(excess, low, high, xtol=1e-12))
    return tau, tilt(l, p, temperature=tau).used


# ----------------------------------------------------------------------------------- held-out shift
def shift_radius(
    ball: str,
    u: ArrayLike,
    held_out: ArrayLike,
    w: ArrayLike,
    *,
    beta: float,
    delta: float,
    groups: ArrayLike | None = None,
    held_out_groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> float | None:
    """Smallest radius whose robust value at w covers the held-out mean loss with its one-sided
    confidence bound.

    None where the held-out mean is not above that of u by more than chance: z of the difference at
    most the 1 - delta quantile of the normal law, standard errors of both samples counted. w is
    taken as given; fitted to u it makes the held-out loss a little higher (by about d/n) even
    without a shift. A shift that raises the variance of the loss but not its mean is not seen.

    groups and held_out_groups are labels of rows that depend on each other: standard errors are
    then those of their sums, and the quantiles of the t law with groups - 1 degrees of freedom, the
    fewer of the two for the difference. weights are of u.
    """
    before, after = _rows(u, weights, groups), _rows(held_out, None, held_out_groups, "held_out")
    return _shift_radius(ball, before, after, _direction(w), beta, delta)


def _shift_radius(
    ball: str, rows: "_Rows", other: "_Rows", w: Array, beta: float, delta: float
) -> float | None:
    _open_unit("delta", delta)
    before, after = _losses(rows.u, w, beta), _losses(other.u, w, beta)
    z, error = other.z(delta, 1), other.error(after)
    risen = float(after.mean() - rows.p @ before)
    if risen <= max(z, rows.z(delta, 1)) * math.hypot(error, rows.error(before)):
        return None
    return _for_value(ball, rows.u, rows.p, w, float(after.mean()) + z * error, beta)


def radius_for_value(
    ball: str,
    u: ArrayLike,
    w: ArrayLike,
    target: float,
    *,
    beta: float,
    weights: ArrayLike | None = None,
) -> float:
    """Smallest radius of "kl", "w1" or "w2" (features free) whose worst mean loss at w reaches the
    target; 0 if the mean does.

    Infinite where no radius does: above the largest loss of the sample for KL, at w = 0 for the
    others.
    """
    rows = _rows(u, weights, None)
    return _for_value(ball, rows.u, rows.p, _direction(w), target, beta)


def _for_value(
    ball: str, pairs: Array, p: Array, direction: Array, target: float, beta: float
) -> float:
    if ball not in SETS_HERE:
        raise ValueError(f"unknown ball {ball!r}; choose one of {', '.join(SETS_HERE)}.")
    beta = check_scale("beta", beta, "It scales the log-ratio in the margin.")
    losses = _losses(pairs, direction, beta)
    if not math.isfinite(target):
        raise ValueError(f"target must be a finite loss, got {target}. Look at what computed it.")
    missing = target - float(p @ losses)
    if missing <= 0:
        return 0.0
    if ball == "kl":
        return _kl_for_value(losses, p, target)
    slope = beta * float(np.linalg.norm(direction))
    if slope == 0:
        return math.inf
    if ball == "w1":
        return missing / slope  # E l + rho beta ||w||
    return _w2_for_value(slope, beta * (pairs @ direction), p, missing)


def _w2_for_value(slope: float, margin: Array, p: Array, missing: float) -> float:
    """The W2 ball of radius rho reaches the target iff eta rho² + phi(eta) >= target for all eta,
    phi the dual function.

    So rho² = max over eta of (target - phi(eta))/eta, which is concave in a = b²/(2 eta),
    b = beta ||w||. As moving along the gradient alone gives phi >= mean l + a E sigma(-m)²/2, the
    maximum lies below a = 2 (target - mean l)/E sigma(-m)².
    """
    m = torch.from_numpy(margin)[None]
    plain, mass = float(p @ np.logaddexp(0, -margin)), torch.from_numpy(p)

    def negative(a: float) -> float:
        wells = global_well(m, torch.tensor([a], dtype=torch.float64))[0]
        return (float(wells[0] @ mass) - plain - missing) * 2 * a / slope**2

    high = 2 * missing / float(p @ expit(-margin) ** 2)
    found = minimize_scalar(
        negative, bounds=(0.0, high), method="bounded", options={"xatol": 1e-9 * high}
    )
    return math.sqrt(max(-float(found.fun), 0.0))


def _kl_for_value(losses: Array, p: Array, target: float) -> float:
    """KL(q||p) of the tilt with E_q l = target: the mean of a tilt grows with 1/tau from that of p
    to the largest loss."""
    top, span = float(losses.max()), float(np.ptp(losses))
    if target > top:
        return math.inf
    if target == top:
        return -math.log(float(p[losses == top].sum()))

    def excess(log_tau: float) -> float:
        return tilt(losses, p, temperature=span * math.exp(log_tau)).expected - target

    low, high = -5.0, 5.0
    while excess(low) < 0 and low > -_LONGEST:
        low *= 2
    while excess(high) > 0 and high < _LONGEST:
        high *= 2
    return tilt(losses, p, temperature=span * math.exp(brentq(excess, low, high, xtol=1e-12))).used


# -------------------------------------------------------------------------------------------- words
def describe(choice: RadiusChoice) -> str:
    """The choice as a small table in plain text, with what conflicts and what to compare with.

    The comparison is that of docs/theorems/larger-beta.md, Prop. E.

    Args:
        choice: a `RadiusChoice`, as `suggest_radii` returns it.

    Returns:
        Lines of text: a row for each ball, radii in nats (kl) or in the unit of the features (w1,
        w2), then remarks.

    >>> from theory import describe, suggest_radii
    >>> choice = suggest_radii([[1.0]] * 60 + [[-1.0]] * 40, beta=1.0, bound=5.0)
    >>> print(describe(choice))
    ball radius of collapse covers value covers theta held-out shift collapse cap
    kl   0.0102 0.5         0.0192       0.0192       none           0.0204   0.0102
    ...
    100 pairs, 1 features, mean loss of the DPO fit 0.673.
    ...
    """
    columns = (
        "ball",
        "radius",
        "of collapse",
        "covers value",
        "covers theta",
        "held-out shift",
        "collapse",
        "cap",
    )
    lines = ["".join(f"{name:>15}" for name in columns)]
    for ball in (choice.kl, choice.w1, choice.w2):
        shift = "none" if ball.shift is None else f"{ball.shift:.3g}"
        numbers = [f"{x:.3g}" for x in (ball.radius, ball.fraction, ball.value, ball.theta)]
        cells = [ball.ball, *numbers, shift, f"{ball.collapse:.3g}", f"{ball.cap:.3g}"]
        lines.append("".join(f"{cell:>15}" for cell in cells))
    lines += [
        f"{ball.ball}: {ball.conflict}."
        for ball in (choice.kl, choice.w1, choice.w2)
        if ball.conflict is not None
    ]
    lines += [f"{remark[0].upper()}{remark[1:]}." for remark in choice.remarks]
    groups = f" in {choice.units} groups" if choice.units < choice.n else ""
    if choice.effective < choice.n * (1 - 1e-9):
        groups += f" (by their weights {choice.effective:.3g}, Kish)"
    lines += [
        (
            f"{choice.n} pairs{groups}, {choice.dimension} features, mean loss of the DPO fit"
            f" {choice.mean_loss:.4g}."
        ),
        f"tau at the KL radius: {choice.tau:.3g}; it leaves {choice.share:.0%} of the sample.",
    ]
    if choice.separable:
        lines.append("No beta of plain DPO stands for it: at any of them the bound is the answer.")
    else:
        lines.append(
            f"Compare with plain DPO at beta = {choice.equivalent_beta:.3g}: where the model is"
            " right it is the same policy."
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------- checks
def _pairs(name: str, u: ArrayLike) -> Array:
    array = as_array(u, name)
    if array.ndim != 2 or len(array) < 2 or array.shape[1] < 1:
        raise ValueError(
            f"{name} must be signed feature differences (2y-1)(psi1-psi2) of shape (n, d) with n >="
            f" 2, got shape {array.shape}. Pass one row a pair."
        )
    bad = ~np.isfinite(array)
    if bad.any():
        rows, columns = (np.flatnonzero(bad.any(axis)) for axis in (1, 0))
        names = feature_names(u) or tuple(f"feature {k + 1}" for k in range(array.shape[1]))
        raise ValueError(
            f"{name} holds {int(bad.sum())} non-finite entries (NaN or inf), in rows"
            f" {_few(rows.tolist())} (counted from 0), {_few([names[k] for k in columns])}. Drop"
            " those pairs, or impute their features first."
        )
    check_magnitudes(name, torch.from_numpy(array))
    return array


def _few(items: list) -> str:
    return ", ".join(map(str, items[:5])) + (" and more" if len(items) > 5 else "")


def _probability(weights: ArrayLike | None, n: int) -> Array:
    return np.full(n, 1 / n) if weights is None else check_probability("weights", weights, n)


def _rows(
    u: ArrayLike, weights: ArrayLike | None, groups: ArrayLike | None, name: str = "u"
) -> _Rows:
    """Checked, without the rows of weight 0."""
    pairs = _pairs(name, u)
    p = _probability(weights, len(pairs))
    member = None if groups is None else check_clusters(groups, len(pairs), name="groups")
    seen = p > 0
    if not seen.all():
        pairs, p = pairs[seen], p[seen]
        member = None if member is None else np.unique(member[seen], return_inverse=True)[1]
        if len(pairs) < 2 or (member is not None and member.max() == 0):
            raise ValueError(
                f"{len(pairs)} of the rows have a weight, of one group: two pairs at least are"
                " needed, and two groups. Look at the weights."
            )
    return _Rows(np.asfortranarray(pairs), p, member)


def _same_features(u: Array, other: Array, names: tuple[str, ...], others: tuple[str, ...]) -> None:
    if other.shape[1] != u.shape[1]:
        raise ValueError(
            f"u has {u.shape[1]} features and held_out {other.shape[1]}: build both with the same"
            " features."
        )
    if names and others and names != others:
        raise ValueError(
            f"u has the columns {_few(list(names))} and held_out {_few(list(others))}: give both"
            " the same columns in the same order."
        )


def _direction(w: ArrayLike) -> Array:
    direction = as_array(w, "w")
    if direction.ndim != 1 or not np.isfinite(direction).all():
        raise ValueError(
            f"w must be d finite numbers, got {direction.tolist()}. Look at the fit that gave it."
        )
    check_magnitudes("w", torch.from_numpy(direction))
    return direction


def _losses(u: Array, w: Array, beta: float) -> Array:
    if w.shape != u.shape[1:]:
        raise ValueError(
            f"w must have shape {u.shape[1:]}, one number for each feature of u, got {w.shape}."
        )
    beta = check_scale("beta", beta, "It scales the log-ratio in the margin.")
    return np.logaddexp(0, -beta * (u @ w))


def _open_unit(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {value}.")
