"""How often is a policy's response preferred to one of the reference? From labelled pairs, by a
preference model, by importance weights, or by both: doubly robust.

    found = total_preference(label, ratio_first, ratio_second, guess, against_first, against_second)
    found.doubly_robust.value  # right if the preference model or the reference policy is

The estimators are those of Xu et al., arXiv:2506.01183v2 (DRPO), Eq. (8) for the last, as two
summaries of the paper and the objective of its authors' code have them. With responses Y1, Y2 of
the reference, Z = 1 where the first wins, w = pi/pi_ref and a model g of the chance that one
response beats another, a pair's terms are

    direct         (E g(y, Y1) + E g(y, Y2))/2 over y ~ pi
    weighted       (w(Y1) Z + w(Y2) (1 - Z))/2
    doubly robust  direct + (w(Y1) - w(Y2)) (Z - g(Y1, Y2))/2

The last is unbiased if w is right or g is, where in the first case g has to treat both places
alike, g(y, y') + g(y', y) = 1: with g off by b in the sum, it is off by E b/2. Derived.
"""

from dataclasses import dataclass

import numpy as np

from theory.batch import ArrayLike
from theory.checks import as_array
from theory.policy import Array


@dataclass(frozen=True, eq=False)
class Estimate:
    """A mean over pairs, (...).

    value: the estimate. deviation: of one pair's term, so that deviation/sqrt(n) is the standard
    error of n independent pairs where ratios and guesses come from other data, or are both right.
    """

    value: Array
    deviation: Array


@dataclass(frozen=True, eq=False)
class TotalPreference:
    """The chance that a response of the policy beats one of the reference, estimated in three
    ways."""

    direct: Estimate
    weighted: Estimate
    doubly_robust: Estimate


def total_preference(
    label: ArrayLike,
    ratio_first: ArrayLike,
    ratio_second: ArrayLike,
    guess: ArrayLike,
    against_first: ArrayLike,
    against_second: ArrayLike,
    weights: ArrayLike | None = None,
) -> TotalPreference:
    """P(y beats y'), y from the policy and y' from the reference, from n pairs of responses of the
    reference.

    arXiv:2506.01183v2, Eq. (8); see the module for what was read of it.

    Args:
        label: (n,) 1 where the first response won, 0 where the second did; 0.5 for a tie.
        ratio_first, ratio_second: (..., n) pi/pi_ref at both responses, numbers without a unit.
        guess: (..., n) what the preference model says of the pair: the chance that the first wins.
        against_first, against_second: (..., n) its chance that a response of the policy beats the
            first, or the second: a mean over responses drawn from the policy.
        weights: (..., n) of the pairs, or None: equal ones.

    Returns:
        A `theory.doubly_robust.TotalPreference` with values of shape (...).

    Raises:
        ValueError: numbers that are not finite, chances and labels outside of [0, 1], or negative
            ratios or weights.

    >>> from theory import total_preference
    >>> # one pair, whose first response won and is the likelier one under the policy
    >>> found = total_preference(
    ...     [1], [1.5], [0.5], guess=[0.75], against_first=[0.5], against_second=[0.75]
    ... )
    >>> print(*(float(x.value) for x in (found.direct, found.weighted, found.doubly_robust)))
    0.625 0.75 0.75
    """
    chances = [
        _chance(name, x)
        for name, x in (
            ("label", label),
            ("guess", guess),
            ("against_first", against_first),
            ("against_second", against_second),
        )
    ]
    z, g, first, second = chances
    w1, w2 = (
        _not_negative(name, x)
        for name, x in (("ratio_first", ratio_first), ("ratio_second", ratio_second))
    )
    if z.ndim == 0 or z.shape[-1] == 0:
        raise ValueError(f"labels must be (n,) numbers with n >= 1, got shape {z.shape}.")
    p = np.ones(z.shape[-1]) if weights is None else _not_negative("weights", weights)
    if not (p.sum(-1) > 0).all():
        raise ValueError("the weights of the pairs are all zero: nothing is left.")
    p = p / p.sum(-1, keepdims=True)
    direct = (first + second) / 2
    return TotalPreference(
        _mean(direct, p),
        _mean((w1 * z + w2 * (1 - z)) / 2, p),
        _mean(direct + (w1 - w2) * (z - g) / 2, p),
    )


def finite_terms(
    policy: Array, reference: Array, model: Array
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """The arguments of `total_preference` for every (s, a1, a2, y) of a finite world, in the order
    of the atoms of `from_policy`.

    Args:
        policy: (S, A) pi(a|s). reference: (..., S, A) the supposed pi_ref(a|s), positive.
        model: (..., S, A, A) the supposed chance that the first action beats the second.

    Returns:
        label (K,), ratio_first, ratio_second, guess, against_first and against_second (..., K) with
        K = 2 S A².
    """
    S, A = policy.shape
    s, a1, a2, y = (
        index.ravel()
        for index in np.meshgrid(np.arange(S), np.arange(A), np.arange(A), [1, 0], indexing="ij")
    )
    ratio = policy / reference
    against = np.einsum("sa,...sab->...sb", policy, model)
    return (
        y.astype(float),
        ratio[..., s, a1],
        ratio[..., s, a2],
        model[..., s, a1, a2],
        against[..., s, a1],
        against[..., s, a2],
    )


def _mean(terms: Array, p: Array) -> Estimate:
    value = np.asarray((p * terms).sum(-1))
    square = (p * (terms - value[..., None]) ** 2).sum(-1)
    return Estimate(value, np.sqrt(square))


def _chance(name: str, x: ArrayLike) -> Array:
    x = _not_negative(name, x)
    if not (x <= 1 + 1e-12).all():
        raise ValueError(f"{name} must be chances in [0, 1], got {x.max():g}.")
    return x


def _not_negative(name: str, x: ArrayLike) -> Array:
    x = as_array(x, name)
    if not (np.isfinite(x) & (x >= 0)).all():
        raise ValueError(
            f"{name} must be finite and not negative, got {x.min():g} to {x.max():g}. Ratios are"
            " pi/pi_ref, not their logarithms."
        )
    return x
