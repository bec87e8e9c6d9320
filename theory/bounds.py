"""The bounds of arXiv:2502.01930 with their constants, one function for each statement; all bound a norm, not its square."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from theory.duals import kl_ball_dual, transport_dual
from theory.policy import Array


def curvature(beta: float, bound: float) -> float:
    """gamma = beta² e^{4 beta B}/(1+e^{4 beta B})², the strong convexity constant of Lemma 10."""
    t = math.exp(-4 * beta * bound)  # sigma(m) sigma(-m) at m = 4 beta B, written without overflow
    return beta**2 * t / (1 + t) ** 2


def largest_loss(beta: float, bound: float) -> float:
    """K = |log sigma(-4 beta B)|, the bound of the loss in Theorem 1."""
    m = 4 * beta * bound
    return m + math.log1p(math.exp(-m))


def proposition_1(n: float, d: int, *, beta: float, bound: float, delta: float, c: float = 0.0) -> float:
    """||theta_n - theta*|| in the norm of Sigma_D + c I, for DPO; rate n^-1/2. Prop. 1."""
    gamma = curvature(beta, bound)
    return math.sqrt(16 * beta**2 * (d + math.log(1 / delta)) / (gamma**2 * n) + 8 * c * bound**2)


def theorem_1(n: float, *, beta: float, bound: float, regularity: float, delta: float) -> float:
    """||theta^W_n - theta^W||_2 for WDPO; the square is bounded at the rate n^-1/2, the norm at n^-1/4. Theorem 1.

    Infinite where `regularity` (lambda of Assumption 2) is zero.
    """
    if regularity <= 0:
        return math.inf
    K, gamma = largest_loss(beta, bound), curvature(beta, bound)
    return (8 * K**2 * math.log(2 / delta) / (gamma**2 * regularity**2 * n)) ** 0.25


def theorem_2(
    n: float, *, beta: float, bound: float, regularity: float, dual_low: float, dual_high: float, delta: float
) -> float:
    """||theta^KL_n - theta^KL||_2 for KLDPO, with dual_low <= lambda <= dual_high for the optimal dual variable. Theorem 2.

    As printed, the bounds must hold over all of Theta; the reference policy has lambda = 0, so that dual_low = 0 and the bound
    is infinite whenever theta_ref is in Theta. With the range met at the two minimisers it is finite.
    """
    if regularity <= 0 or dual_low <= 0:
        return math.inf
    gamma = curvature(beta, bound)
    constant = (8 * dual_high**2 * math.log(2 / delta) / (gamma**2 * regularity**2 * n)) ** 0.25
    exponent = largest_loss(beta, bound) / (2 * dual_low)  # e^{2L/lamL} under the fourth root
    return constant * math.exp(exponent) if exponent < 700 else math.inf


# ------------------------------------------------------------------------------------- lambda of Assumption 2, over the ball
def regularity_kl(x: Array, p: Array, radius: float, *, seed: int = 0) -> float:
    """lambda = min {lambda_min(E_Q x x') : KL(Q||P) <= radius}; x (K, d), p (K,)."""
    losses_p = torch.from_numpy(p)

    def worst(losses: Tensor) -> Tensor:
        R = losses.shape[0]
        return kl_ball_dual(losses, losses_p.expand(R, -1), torch.full((R,), radius, dtype=torch.float64)).weights

    return _least_eigenvalue(x, p, worst, seed)


def regularity_finite(x: Array, p: Array, cost: Array, budget: float, *, seed: int = 0) -> float:
    """lambda over the plans with rows p and transport cost at most `budget` = radius**power; cost (K, K)."""
    price, rows = torch.from_numpy(cost), torch.from_numpy(p)

    def worst(losses: Tensor) -> Tensor:
        R = losses.shape[0]
        return transport_dual(losses, rows.expand(R, -1), price, torch.full((R,), budget, dtype=torch.float64)).weights

    return _least_eigenvalue(x, p, worst, seed)


def _least_eigenvalue(x: Array, p: Array, worst: Callable[[Tensor], Tensor], seed: int) -> float:
    """min over unit v of inf_Q E_Q (v.x)²: alternate the worst Q for v with the least eigenvector of E_Q x x', from many starts.

    The problem is not convex (a concave function of v v'), each step lowers its value, and the best of the starts is returned:
    an upper bound of lambda, exact as far as the starts reach; in two dimensions they are a fine grid.
    """
    d = x.shape[1]
    if d == 2:
        angle = np.linspace(0, np.pi, 64, endpoint=False)
        v = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    else:
        basis = np.linalg.eigh(np.einsum("k,ki,kj->ij", p, x, x))[1].T
        v = np.concatenate([basis, np.random.default_rng(seed).standard_normal((8 * d, d))])
        v /= np.linalg.norm(v, axis=1, keepdims=True)
    value = np.inf
    for _ in range(100):
        q = worst(torch.from_numpy(-((v @ x.T) ** 2))).numpy()
        eigenvalues, vectors = np.linalg.eigh(np.einsum("rk,ki,kj->rij", q, x, x))
        least, v = float(eigenvalues[:, 0].min()), vectors[:, :, 0]
        if least > value - 1e-12:
            break
        value = least
    return max(min(value, least), 0.0)


def regularity_free(x: Array, p: Array, radius: float, power: int) -> float:
    """lambda with free features: the adversary shrinks the projections on the weakest direction.

    p = 2: ((lambda_min(E x x'))^(1/2) - radius)_+². p = 1: projections are cut at the level whose excess is
    the radius, minimised over the eigenvectors (an upper bound in d >= 2).
    """
    covariance = np.einsum("k,ki,kj->ij", p, x, x)
    eigenvalues, vectors = np.linalg.eigh(covariance)
    if power == 2:
        return float(max(np.sqrt(max(eigenvalues[0], 0.0)) - radius, 0.0) ** 2)
    best = np.inf
    for v in vectors.T:
        size = np.abs(x @ v)
        if p @ size <= radius:
            return 0.0
        low, high = 0.0, float(size.max())
        for _ in range(100):
            level = (low + high) / 2
            low, high = (level, high) if p @ np.maximum(size - level, 0) > radius else (low, level)
        best = min(best, float(p @ np.minimum(size, high) ** 2))
    return best
