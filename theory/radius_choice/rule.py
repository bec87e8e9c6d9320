"""The rule: from the four considerations to a radius of each ball, and a temperature."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from theory.batch import ArrayLike, feature_names
from theory.collapse import collapse_radius
from theory.estimators import dpo, kldpo
from theory.radius_choice.coverage import kl_theta, kl_value, value_covered
from theory.radius_choice.gradients import moments_of
from theory.radius_choice.held_out import shift_covered
from theory.radius_choice.profiles import profile
from theory.radius_choice.reach import SETS_HERE
from theory.radius_choice.sample import (
    check_open_unit,
    check_same_features,
    losses_of,
    read_rows,
    some,
)
from theory.radius_choice.share import temperature_for_share
from theory.separable import separation
from theory.solvers.adversary import tilt

SHARE = 0.5  # of the sample that the worst-case weights should leave
CAP = 0.5  # of the collapse radius that a suggestion does not exceed
_SURE = 20.0  # a margin at which a label is certain: from here on separation is looked for


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
    rows = read_rows(u, weights, groups)
    pairs, p = rows.u, rows.p
    names = feature_names(u) or tuple(f"feature {k + 1}" for k in range(pairs.shape[1]))
    if not pairs.any():
        raise ValueError(
            "all features of u are 0: the two responses of every pair look the same. Build other"
            " features."
        )
    other = None if held_out is None else read_rows(held_out, None, held_out_groups, "held_out")
    if held_out is None and held_out_groups is not None:
        raise ValueError("held_out_groups are labels of held_out, which is missing. Give both.")
    if other is not None and held_out is not None:
        check_same_features(pairs, other.u, feature_names(u), feature_names(held_out))
    if cover not in ("theta", "value"):
        raise ValueError(f"cover must be 'theta' or 'value', got {cover!r}.")
    check_open_unit("delta", delta)
    given = None if weights is None else p
    columns = torch.from_numpy(pairs)  # column by column, as fits hold them: no copy is made
    found = dpo(columns, given, beta=beta, bound=bound)
    w = found.theta.numpy()
    split = None
    if bool(found.at_bound) or beta * np.abs(pairs @ w).max() >= _SURE:
        split = separation(columns, given)
    if split is not None and bound is None:
        raise ValueError(f"{split.describe(names)}.")
    losses = losses_of(pairs, w, beta)
    share_tau, share_radius = temperature_for_share(losses, share, given)
    moments = moments_of(rows, w, beta)
    theta = {"kl": kl_theta(rows, moments, delta, seed)}
    theta |= {f"w{k}": profile(rows, w, beta, delta, k, seed, moments) for k in (1, 2)}
    chosen = {}
    for ball in SETS_HERE:
        value = (
            kl_value(rows, losses, delta)
            if ball == "kl"
            else value_covered(ball, rows, w, beta, delta)
        )
        shift = None if other is None else shift_covered(ball, rows, other, w, beta, delta)
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
        remarks.append(f"0 in every pair, and so without a say: {some(still)}")
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
