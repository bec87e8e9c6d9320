"""Log-linear policies, pi_theta(a|s) ∝ exp(theta.psi(s,a)). Section 3, arXiv:2502.01930."""

import numpy as np
from numpy.typing import NDArray

from theory.batch import as_float64

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


def convex_mixture(rewards: Array, alpha: Array) -> Array:
    """sum_k alpha_k r_k: rewards (..., m), alpha (m,) on the simplex -> (...). Section 6,
    arXiv:2502.01930."""
    return rewards @ _simplex(alpha, rewards.shape[-1])


def geometric_mixture(rewards: Array, alpha: Array) -> Array:
    """prod_k r_k^alpha_k, for positive rewards (..., m) -> (...). Section 6, arXiv:2502.01930."""
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
