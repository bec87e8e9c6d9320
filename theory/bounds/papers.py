"""The bounds of arXiv:2502.01930 with their constants, one function for each statement; all bound a
norm, not its square."""

import math
from collections.abc import Callable

import numpy as np
import torch

from theory.batch import check_finite, feature_names
from theory.checks import as_array, check_metric, check_positive, check_probability, check_radius
from theory.duals import kl_ball_dual, transport_dual
from theory.policy import Array

_POSITIVE = "The bounds of the paper hold for positive constants only."


def check_constants(
    n: float | None = None,
    *,
    beta: float | None = None,
    bound: float | None = None,
    delta: float | None = None,
) -> None:
    """What all the bounds are made of: a sample size of at least 1, positive beta and B, and delta
    between 0 and 1."""
    if n is not None and not n >= 1:
        raise ValueError(
            f"the sample size n must be at least 1, got {n}. It counts preference pairs."
        )
    if delta is not None and not 0 < delta < 1:
        raise ValueError(
            f"delta must lie strictly between 0 and 1, got {delta}: the probability with which the"
            " bound may fail."
        )
    for name, value in (("beta", beta), ("bound", bound)):
        if value is not None:
            check_positive(name, value, _POSITIVE)


def curvature(beta: float, bound: float) -> float:
    """gamma = beta² e^{4 beta B}/(1+e^{4 beta B})², the strong convexity constant of Lemma 10."""
    for name, value in (("beta", beta), ("bound", bound)):  # None is none of them here
        check_positive(name, value, _POSITIVE)
    t = math.exp(-4 * beta * bound)  # sigma(m) sigma(-m) at m = 4 beta B, written without overflow
    return beta**2 * t / (1 + t) ** 2


def largest_loss(beta: float, bound: float) -> float:
    """K = |log sigma(-4 beta B)|, the bound of the loss in Theorem 1."""
    for name, value in (("beta", beta), ("bound", bound)):  # None is none of them here
        check_positive(name, value, _POSITIVE)
    m = 4 * beta * bound
    return m + math.log1p(math.exp(-m))


def proposition_1(
    n: float, d: int, *, beta: float, bound: float, delta: float, c: float = 0.0
) -> float:
    """||theta_n - theta*|| in the norm of Sigma_D + c I, for DPO; rate n^-1/2. Prop. 1."""
    check_constants(n, delta=delta)
    gamma = curvature(beta, bound)
    if gamma == 0:  # e^{-4 beta B} has underflowed
        return math.inf
    return math.sqrt(16 * beta**2 * (d + math.log(1 / delta)) / (gamma**2 * n) + 8 * c * bound**2)


def theorem_1(n: float, *, beta: float, bound: float, regularity: float, delta: float) -> float:
    """||theta^W_n - theta^W||_2 for WDPO; the square is bounded at the rate n^-1/2, the norm at
    n^-1/4. Theorem 1.

    Infinite where `regularity` (lambda of Assumption 2) is zero.
    """
    check_constants(n, delta=delta)
    K, gamma = largest_loss(beta, bound), curvature(beta, bound)
    if regularity * gamma <= 0:
        return math.inf
    return (8 * K**2 * math.log(2 / delta) / (gamma**2 * regularity**2 * n)) ** 0.25


def theorem_2(
    n: float,
    *,
    beta: float,
    bound: float,
    regularity: float,
    dual_low: float,
    dual_high: float,
    delta: float,
) -> float:
    """||theta^KL_n - theta^KL||_2 for KLDPO, with dual_low <= lambda <= dual_high for the optimal
    dual variable. Theorem 2.

    As printed, the bounds must hold over all of Theta; the reference policy has lambda = 0, so that
    dual_low = 0 and the bound is infinite whenever theta_ref is in Theta. With the range met at the
    two minimisers it is finite.
    """
    check_constants(n, delta=delta)
    gamma = curvature(beta, bound)
    if regularity * gamma <= 0 or dual_low <= 0:
        return math.inf
    constant = (8 * dual_high**2 * math.log(2 / delta) / (gamma**2 * regularity**2 * n)) ** 0.25
    exponent = largest_loss(beta, bound) / (2 * dual_low)  # e^{2L/lamL} under the fourth root
    return constant * math.exp(exponent) if exponent < 700 else math.inf


# ------------------------------------------------------------ lambda of Assumption 2, over the ball
def regularity_kl(x: Array, p: Array, radius: float, *, seed: int = 0) -> float:
    """lambda = min {lambda_min(E_Q x x') : KL(Q||P) <= radius}; x (K, d), p (K,)."""
    x, p = _atoms(x, p)
    radius = _radius("radius", radius)
    weights = torch.from_numpy(p)

    def worst(v: Array) -> Array:
        losses = torch.from_numpy(-((v @ x.T) ** 2))
        R = losses.shape[0]
        return _moments(
            x,
            kl_ball_dual(
                losses, weights.expand(R, -1), torch.full((R,), radius, dtype=torch.float64)
            ).weights.numpy(),
        )

    return _least_eigenvalue(x, worst, seed)


def regularity_finite(x: Array, p: Array, cost: Array, budget: float, *, seed: int = 0) -> float:
    """lambda over the plans with rows p and transport cost at most `budget` = radius**power; cost
    (K, K)."""
    x, p = _atoms(x, p)
    cost, budget = check_metric(cost, len(x)).numpy(), _radius("budget", budget)
    price, rows = torch.from_numpy(cost), torch.from_numpy(p)

    def worst(v: Array) -> Array:
        losses = torch.from_numpy(-((v @ x.T) ** 2))
        R = losses.shape[0]
        plan = transport_dual(
            losses, rows.expand(R, -1), price, torch.full((R,), budget, dtype=torch.float64)
        )
        return _moments(x, plan.weights.numpy())

    return _least_eigenvalue(x, worst, seed)


def regularity_free(x: Array, p: Array, radius: float, power: int, *, seed: int = 0) -> float:
    """lambda with free features, where the adversary shrinks the projections on the weakest
    direction.

    p = 2: ((lambda_min(E x x'))^(1/2) - radius)_+². p = 1: projections are cut at the level whose
    excess is the radius.
    """
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2, got {power}.")
    x, p = _atoms(x, p)
    radius = _radius("radius", radius)
    if power == 2:
        least = np.linalg.eigvalsh(_moments(x, p[None])[0])[0]
        return float(max(np.sqrt(max(least, 0.0)) - radius, 0.0) ** 2)

    def worst(v: Array) -> Array:
        along = v @ x.T
        size = np.abs(along)
        low, high = np.zeros(len(v)), size.max(1)
        for _ in range(60):  # the level at which E (|v.x| - level)_+ is the radius
            level = (low + high) / 2
            over = np.maximum(size - level[:, None], 0) @ p > radius
            low, high = np.where(over, level, low), np.where(over, high, level)
        cut = np.sign(along) * np.maximum(size - high[:, None], 0)
        moved = x[None] - cut[:, :, None] * v[:, None, :]
        return np.einsum("k,rki,rkj->rij", p, moved, moved)

    return _least_eigenvalue(x, worst, seed)


def _atoms(x: Array, p: Array) -> tuple[Array, Array]:
    atoms = as_array(x, "x")
    if atoms.ndim == 2:
        remedy = "Leave those atoms out first."
        check_finite("x", torch.from_numpy(atoms), remedy, feature_names(x), "atom")
    if atoms.ndim != 2 or 0 in atoms.shape:
        raise ValueError(
            f"x must be finite numbers of shape (K, d) with K, d >= 1, got shape {atoms.shape}. One"
            " row an atom."
        )
    return atoms, check_probability("p", p, len(atoms))


def _radius(name: str, value: float) -> float:
    return check_radius(name, value, 1, torch.zeros(1, dtype=torch.float64))[0].item()


def _moments(x: Array, q: Array) -> Array:
    """E_Q x x' for each row of q: (R, K) -> (R, d, d)."""
    return np.einsum("rk,ki,kj->rij", q, x, x)


def _least_eigenvalue(x: Array, worst: Callable[[Array], Array], seed: int) -> float:
    """min over unit v of inf_Q E_Q (v.x)²: alternate the worst E_Q x x' for v with its least
    eigenvector, from many starts.

    `worst` maps directions (R, d) to second moments (R, d, d). The problem is not convex (a concave
    function of v v'); each step lowers its value, and the best of the starts is returned: an upper
    bound of lambda, exact as far as the starts reach. They are random directions and the normals of
    planes through atoms, on which a law without regularity would sit.
    """
    d = x.shape[1]
    rng = np.random.default_rng(seed)
    starts = [rng.standard_normal((16 * d, d)), np.eye(d)]
    if d > 1:
        planes = x[rng.integers(len(x), size=(64, d - 1))] if d > 2 else x[:, None, :][:256]
        starts.append(np.linalg.svd(planes)[2][:, -1])
    v = np.concatenate(starts)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    value = np.inf
    for _ in range(100):
        eigenvalues, vectors = np.linalg.eigh(worst(v))
        least, v = float(eigenvalues[:, 0].min()), vectors[:, :, 0]
        if least > value - 1e-12:
            break
        value = least
    return max(min(value, least), 0.0)
