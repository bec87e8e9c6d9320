"""Which radius? What the data say about rho (KL, W1, W2) and tau, by four considerations and one
rule.

    choice = suggest_radii(u, beta=0.1, bound=50.0, held_out=other)
    choice.kl.radius, choice.tau, choice.w2.radius
    print(describe(choice))

u (n, d) holds signed feature differences (2y-1)(psi1-psi2) of labelled pairs, w = theta -
theta_ref, m = beta w.u, l = log(1 + exp(-m)). The four considerations, each a function of its own:

* coverage: how large the ball must be to cover sampling error (`kl_coverage`, `value_coverage`,
  `profile_coverage`);
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
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit
from scipy.stats import chi2, norm

from theory.batch import ArrayLike, check_magnitudes
from theory.checks import as_array, check_scale
from theory.collapse import collapse_radius
from theory.estimators import dpo, kldpo
from theory.policy import Array
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
_DRAWS = 20_000  # of the limit law in `profile_coverage`: its 95 % quantile to about 1 %
_LONGEST = 60.0  # log of the largest ratio of temperatures searched


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
        n, dimension: of the data.
        mean_loss: of the DPO fit on them, in nats.
        tau: dual variable of the KL ball at its suggested radius, the temperature at which
            Algorithm 2 of arXiv:2502.01930v4 has the same solution; in nats, as the loss.
        equivalent_beta: beta (1+1/tau), at which plain DPO does the same where the model is right.
        share: what the suggested KL radius leaves of the sample at the DPO fit.
        share_tau, share_radius: temperature and KL radius that leave the wanted share of the sample
            at the DPO fit.

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
    mean_loss: float
    tau: float
    equivalent_beta: float
    share: float
    share_tau: float
    share_radius: float


def suggest_radii(
    u: ArrayLike,
    *,
    beta: float,
    bound: float,
    held_out: ArrayLike | None = None,
    delta: float = 0.05,
    share: float = SHARE,
    cover: str = "theta",
    seed: int = 0,
) -> RadiusChoice:
    """Radii of the KL ball and of W1 and W2 with free features, and the temperature, for labelled
    pairs u (n, d).

    The rule is this package's own; the coverage radii are those of `kl_coverage` (Owen, 1990;
    arXiv:1610.03425; arXiv:1605.09349) and `profile_coverage` (arXiv:1610.05627, Thm. 3).

    Args:
        u: signed feature differences (2y-1)(psi1-psi2), one row a pair, n >= 2.
        beta: of the loss.
        bound: B in ||theta - theta_ref|| <= B of the fits; where no bound is wanted one that is not
            reached.
        held_out: the same (m, d), m >= 2, for pairs of another population, judged by the policy
            fitted to u.
        delta: probability with which coverage may fail.
        share: of the sample that the KL ball's worst-case weights should leave at the DPO fit, in
            (0, 1).
        cover: "theta" or "value": which coverage radius the rule takes. The latter is for a policy
            fixed before the data: at the policy fitted to them the loss on them is too low, by
            about d/n, and it fails more often than delta. With d = 5 and n = 200 Bradley-Terry
            pairs it covered the true loss of the fit in 88 % of 400 samples, the radius for theta
            in 97 %.
        seed: of the draws from the limit law of the W2 profile.

    Returns:
        A `RadiusChoice`: the KL radius in nats, those of W1 and W2 in the unit of u, tau in nats.

    Raises:
        ValueError: data that are not (n, d) finite numbers with n >= 2, or an argument out of its
            range; features that are all 0.

    >>> from theory import suggest_radii
    >>> choice = suggest_radii([[1.0]] * 60 + [[-1.0]] * 40, beta=1.0, bound=5.0)
    >>> round(choice.kl.theta, 6)  # covers theta: chi2_{1, 0.95}/(2n)
    0.019207
    >>> round(choice.kl.radius, 6), choice.kl.conflict  # at most half of the collapse radius
    (0.010205, 'coverage (0.0192) above the cap 0.0102, 0.5 of the collapse radius')
    """
    pairs = _pairs("u", u)
    if not pairs.any():
        raise ValueError(
            "all features of u are 0: the two responses of every pair look the same. Build other"
            " features."
        )
    other = None if held_out is None else _pairs("held_out", held_out)
    if other is not None and other.shape[1] != pairs.shape[1]:
        raise ValueError(
            f"u has {pairs.shape[1]} features and held_out {other.shape[1]}: build both with the"
            " same features."
        )
    if cover not in ("theta", "value"):
        raise ValueError(f"cover must be 'theta' or 'value', got {cover!r}.")
    _open_unit("delta", delta)
    n, d = pairs.shape
    w = dpo(pairs, beta=beta, bound=bound).theta.numpy()
    losses = _losses(pairs, w, beta)
    share_tau, share_radius = temperature_for_share(losses, share)
    profile = profile_coverage(pairs, w, beta=beta, delta=delta, seed=seed)
    theta = {"kl": kl_coverage(n, delta, d), "w1": profile, "w2": profile}
    found = {}
    for ball in SETS_HERE:
        value = (
            kl_coverage(n, delta)
            if ball == "kl"
            else value_coverage(ball, pairs, w, beta=beta, delta=delta)
        )
        shift = (
            None if other is None else shift_radius(ball, pairs, other, w, beta=beta, delta=delta)
        )
        collapse = collapse_radius(pairs, SETS_HERE[ball]).item()
        caps = {f"{CAP:g} of the collapse radius": CAP * collapse}
        if ball == "kl":
            caps[f"a share {share:g} of the sample"] = share_radius
        wanted = {
            "coverage": theta[ball] if cover == "theta" else value,
            "held-out shift": shift or 0.0,
        }
        found[ball] = _decide(ball, value, theta[ball], shift, collapse, wanted, caps)
    radius = found["kl"].radius
    tau = math.inf  # a radius of 0 is the plain mean
    if radius > 0:
        dual = kldpo(pairs, radius=radius, beta=beta, bound=bound).dual
        assert dual is not None
        tau = dual.item()
    left = _share_of_radius(losses, radius)
    equivalent = beta * (1 + 1 / tau) if tau > 0 else math.inf
    return RadiusChoice(
        **found,
        n=n,
        dimension=d,
        mean_loss=float(losses.mean()),
        tau=tau,
        equivalent_beta=equivalent,
        share=left,
        share_tau=share_tau,
        share_radius=share_radius,
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
def kl_coverage(n: int, delta: float, degrees: int = 1) -> float:
    """chi2_{degrees, 1-delta}/(2n), the radius of {KL(Q||P_n) <= rho} that covers sampling error in
    the limit of large n.

    degrees = 1, the value: the loss of a policy fixed beforehand lies between the best and the
    worst case of the ball with probability 1 - delta, and below the worst case with 1 - delta/2.
    degrees = d, theta: the ball holds a Q whose DPO solution is the true theta, min {KL(Q||P_n) :
    E_Q grad l(theta) = 0} <= rho, with probability 1 - delta. Owen (1990) for empirical likelihood;
    Duchi, Glynn and Namkoong (2021), arXiv:1610.03425, for all smooth divergences; Lam (2019),
    arXiv:1605.09349.
    """
    _open_unit("delta", delta)
    if n < 1 or degrees < 1:
        raise ValueError(f"n and degrees must be at least 1, got n = {n} and degrees = {degrees}.")
    return float(chi2.ppf(1 - delta, degrees)) / (2 * n)


def value_coverage(ball: str, u: ArrayLike, w: ArrayLike, *, beta: float, delta: float) -> float:
    """Smallest radius whose robust value at w is mean l + z sd(l)/sqrt(n), z² the 1 - delta
    quantile of chi2_1.

    For the KL ball this agrees with `kl_coverage(n, delta)` to first order. For W1 it is z
    sd(l)/(sqrt(n) beta ||w||), for W2 nearly the same with ||w|| (E sigma(-m)²)^(1/2) for ||w||.
    Infinite where w = 0, since then no move of a feature matters.
    """
    pairs, direction = _pairs("u", u), _direction(w)
    losses = _losses(pairs, direction, beta)
    z = math.sqrt(chi2.ppf(1 - delta, 1))
    return radius_for_value(
        ball,
        pairs,
        direction,
        losses.mean() + z * losses.std(ddof=1) / math.sqrt(len(losses)),
        beta=beta,
    )


def profile_coverage(
    u: ArrayLike, w: ArrayLike, *, beta: float, delta: float, seed: int = 0
) -> float:
    """Radius of W2 (features free, labels fixed) that covers theta: with probability 1 - delta some
    Q in it has E_Q grad l = 0.

    The robust Wasserstein profile R_n(theta) = min {W2(Q, P_n)² : E_Q g = 0}, g = grad_theta l, has
    n R_n(theta*) -> G'(E DD')^-1 G in law, D = dg/du, G ~ N(0, Cov g): Blanchet, Kang and Murthy
    (2019), arXiv:1610.05627, Thm. 3 with rho = 2. The law is taken at w and sampled. The radius is
    of order n^-1/2. It covers for W1 as well, W1 being
    at most W2: there it is an upper bound of the smallest radius.
    """
    pairs, direction = _pairs("u", u), _direction(w)
    _open_unit("delta", delta)
    n, d = pairs.shape
    down = expit(-beta * pairs @ direction)
    gradient = -beta * down[:, None] * pairs
    # D_i = -beta sigma(-m) I + beta² sigma(m) sigma(-m) u w'
    slope = -beta * down[:, None, None] * np.eye(d) + beta**2 * (down * (1 - down))[
        :, None, None
    ] * (pairs[:, :, None] * direction)
    room = np.einsum("nij,nkj->ik", slope, slope) / n
    spread = np.cov(gradient.T).reshape(d, d)
    # G'AG has the law of sum_k lambda_k chi2_1 with lambda the eigenvalues of A Cov(G)
    weights = np.linalg.eigvals(np.linalg.solve(room, spread)).real.clip(min=0)
    draws = np.random.default_rng(seed).chisquare(1, (_DRAWS, d)) @ weights
    return math.sqrt(float(np.quantile(draws, 1 - delta)) / n)


# ---------------------------------------------------------------------------- effective sample size
def temperature_for_share(losses: ArrayLike, share: float) -> tuple[float, float]:
    """tau at which the tilt q_i ∝ exp(l_i/tau) has the effective sample size share * n (Kish), with
    its KL(q||p).

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
    span, p = float(np.ptp(l)), np.full(len(l), 1 / len(l))
    if span == 0:
        return math.inf, 0.0
    at_top = float(np.mean(l == l.max()))
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


def _share_of_radius(losses: Array, radius: float) -> float:
    """The share of the sample that the worst case of a KL ball leaves."""
    return tilt(losses, np.full(len(losses), 1 / len(losses)), radius=radius).effective


# ----------------------------------------------------------------------------------- held-out shift
def shift_radius(
    ball: str, u: ArrayLike, held_out: ArrayLike, w: ArrayLike, *, beta: float, delta: float
) -> float | None:
    """Smallest radius whose robust value at w covers the held-out mean loss with its one-sided
    confidence bound.

    None where the held-out mean is not above that of u by more than chance: z of the difference at
    most the 1 - delta quantile of the normal law, standard errors of both samples counted. w is
    taken as given; fitted to u it makes the held-out loss a little higher (by about d/n) even
    without a shift. A shift that raises the variance of the loss but not its mean is not seen.
    """
    pairs, direction = _pairs("u", u), _direction(w)
    before, after = (_losses(x, direction, beta) for x in (pairs, _pairs("held_out", held_out)))
    z = float(norm.ppf(1 - delta))
    error = after.std(ddof=1) / math.sqrt(len(after))
    if after.mean() - before.mean() <= z * math.hypot(
        error, before.std(ddof=1) / math.sqrt(len(before))
    ):
        return None
    return radius_for_value(ball, pairs, direction, after.mean() + z * error, beta=beta)


def radius_for_value(ball: str, u: ArrayLike, w: ArrayLike, target: float, *, beta: float) -> float:
    """Smallest radius of "kl", "w1" or "w2" (features free) whose worst mean loss at w reaches the
    target; 0 if the mean does.

    Infinite where no radius does: above the largest loss of the sample for KL, at w = 0 for the
    others.
    """
    if ball not in SETS_HERE:
        raise ValueError(f"unknown ball {ball!r}; choose one of {', '.join(SETS_HERE)}.")
    beta = check_scale("beta", beta, "It scales the log-ratio in the margin.")
    pairs, direction = _pairs("u", u), _direction(w)
    losses = _losses(pairs, direction, beta)
    if not math.isfinite(target):
        raise ValueError(f"target must be a finite loss, got {target}. Look at what computed it.")
    missing = target - float(losses.mean())
    if missing <= 0:
        return 0.0
    if ball == "kl":
        return _kl_for_value(losses, target)
    slope = beta * float(np.linalg.norm(direction))
    if slope == 0:
        return math.inf
    if ball == "w1":
        return missing / slope  # E l + rho beta ||w||
    return _w2_for_value(slope, beta * pairs @ direction, missing)


def _w2_for_value(slope: float, margin: Array, missing: float) -> float:
    """The W2 ball of radius rho reaches the target iff eta rho² + phi(eta) >= target for all eta,
    phi the dual function.

    So rho² = max over eta of (target - phi(eta))/eta, which is concave in a = b²/(2 eta),
    b = beta ||w||. As moving along the gradient alone gives phi >= mean l + a E sigma(-m)²/2, the
    maximum lies below a = 2 (target - mean l)/E sigma(-m)².
    """
    m = torch.from_numpy(margin)[None]
    plain = float(np.logaddexp(0, -margin).mean())

    def negative(a: float) -> float:
        wells = global_well(m, torch.tensor([a], dtype=torch.float64))[0]
        return (float(wells.mean()) - plain - missing) * 2 * a / slope**2

    high = 2 * missing / float(np.mean(expit(-margin) ** 2))
    found = minimize_scalar(
        negative, bounds=(0.0, high), method="bounded", options={"xatol": 1e-9 * high}
    )
    return math.sqrt(max(-float(found.fun), 0.0))


def _kl_for_value(losses: Array, target: float) -> float:
    """KL(q||p) of the tilt with E_q l = target: the mean of a tilt grows with 1/tau from that of p
    to the largest loss."""
    top, span = float(losses.max()), float(np.ptp(losses))
    p = np.full(len(losses), 1 / len(losses))
    if target > top:
        return math.inf
    if target == top:
        return -math.log(float(np.mean(losses == top)))

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
    if math.isinf(choice.kl.collapse):
        lines.append(
            "A policy can separate these pairs: without a bound their DPO fit is infinite, and all"
            " numbers here rest on the bound. Take more pairs, or fewer features, before you"
            " believe them."
        )
    lines += [
        (
            f"{choice.n} pairs, {choice.dimension} features, mean loss of the DPO fit"
            f" {choice.mean_loss:.4g}."
        ),
        f"tau at the KL radius: {choice.tau:.3g}; it leaves {choice.share:.0%} of the sample.",
        (
            f"Compare with plain DPO at beta = {choice.equivalent_beta:.3g}: where the model is"
            " right it is the same policy."
        ),
    ]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------- checks
def _pairs(name: str, u: ArrayLike) -> Array:
    array = as_array(u, name)
    if array.ndim != 2 or len(array) < 2 or array.shape[1] < 1 or not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be finite signed feature differences (2y-1)(psi1-psi2) of shape (n, d)"
            f" with n >= 2, got shape {array.shape} with {int((~np.isfinite(array)).sum())}"
            " non-finite entries. Drop those pairs, or pass one row a pair."
        )
    check_magnitudes(name, torch.from_numpy(array))
    return array


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
    return np.logaddexp(0, -beta * u @ w)


def _open_unit(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {value}.")
