"""Log-linear policies, pi_theta(a|s) ∝ exp(theta.psi(s,a)). Assumption 1, arXiv:2502.01930."""

import numpy as np
from numpy.typing import NDArray

from theory.batch import ArrayLike, as_float64

Array = NDArray[np.float64]


def log_policy(theta: Array, features: Array) -> Array:
    """log pi_theta(a|s): theta (..., d), features (S, A, d) -> (..., S, A)."""
    score = np.einsum("sad,...d->...sa", features, theta)
    score -= score.max(-1, keepdims=True)
    return score - np.log(np.exp(score).sum(-1, keepdims=True))


def kl_to_reference(
    theta: Array, theta_ref: Array, features: Array, context_probability: Array
) -> Array:
    """E_s KL(pi_theta(.|s) || pi_ref(.|s)) in nats; theta (..., d) -> (...)."""
    log_pi, log_ref = log_policy(theta, features), log_policy(theta_ref, features)
    return np.einsum("s,...sa->...", context_probability, np.exp(log_pi) * (log_pi - log_ref))


def policy_kl(
    items: ArrayLike, sets: ArrayLike, theta: ArrayLike, theta_ref: ArrayLike | None = None
) -> Array:
    """KL(pi_theta || pi_ref) in nats on each choice set, of log-linear policies over its items.

    pi_theta(item) ∝ exp(theta.features) within its set. Assumption 1, arXiv:2502.01930v4. Where
    theta comes from preferences at some beta, this is of the policy; the preferences themselves
    are sigma(beta (theta - theta_ref).x).

    Args:
        items: (N, d) features, a row for each item of each set.
        sets: (N,) a label for each item: those with the same label are alternatives.
        theta: (d,) of the policy.
        theta_ref: (d,) of the one it is compared with; None: 0, the uniform policy.

    Returns:
        (S,) in the order of the labels, sorted; take their mean with the weights of your sets.

    Raises:
        ValueError: shapes that do not fit, entries that are not finite, missing labels.

    >>> from theory import policy_kl
    >>> policy_kl([[1.0], [0.0], [5.0]], ["a", "a", "b"], [0.5]).round(4).tolist()
    [0.0303, 0.0]
    """
    from theory.checks import check_clusters

    features = as_float64(items, "items").cpu().numpy()
    if features.ndim != 2 or 0 in features.shape or not np.isfinite(features).all():
        raise ValueError(
            "items must be (N, d) finite numbers, a row for each item, got shape"
            f" {features.shape} with {int((~np.isfinite(features)).sum())} that are not."
        )
    member = check_clusters(sets, len(features), name="sets", least=1)
    scores = []
    for name, given in (("theta", theta), ("theta_ref", theta_ref)):
        x = np.zeros(features.shape[1]) if given is None else as_float64(given, name).cpu().numpy()
        if x.shape != features.shape[1:] or not np.isfinite(x).all():
            raise ValueError(
                f"{name} must be {features.shape[1]} finite numbers, one for each feature, got"
                f" shape {x.shape}."
            )
        scores.append(_within(features @ x, member))
    kl = np.zeros(int(member.max()) + 1)
    np.add.at(kl, member, np.exp(scores[0]) * (scores[0] - scores[1]))
    return kl.clip(min=0)


def _within(score: Array, member: NDArray[np.intp]) -> Array:
    """log-softmax of scores (N,) within each set."""
    top = np.full(int(member.max()) + 1, -np.inf)
    np.maximum.at(top, member, score)
    score = score - top[member]
    return score - np.log(np.bincount(member, np.exp(score)))[member]


def convex_mixture(rewards: Array, alpha: Array) -> Array:
    """sum_k alpha_k r_k: rewards (..., m), alpha (m,) on the simplex -> (...). Section 7.1,
    arXiv:2502.01930."""
    return rewards @ _simplex(alpha, rewards.shape[-1])


def geometric_mixture(rewards: Array, alpha: Array) -> Array:
    """prod_k r_k^alpha_k, for positive rewards (..., m) -> (...). Section 7.1, arXiv:2502.01930."""
    weights = _simplex(alpha, rewards.shape[-1])
    if not (rewards > 0).all():
        raise ValueError(
            f"a geometric mixture needs positive rewards, the smallest is {rewards.min():g}. "
            "Map them to (0, 1) first, e.g. by a sigmoid."
        )
    return np.exp(np.log(rewards) @ weights)


def _simplex(alpha: Array, m: int) -> Array:
    alpha = as_float64(alpha, "alpha").cpu().numpy()
    if alpha.shape != (m,) or not (alpha >= 0).all() or not abs(alpha.sum() - 1) <= 1e-9:
        raise ValueError(
            f"alpha must be {m} non-negative numbers that sum to one, got {alpha.tolist()}. Divide"
            " them by their sum."
        )
    return alpha
