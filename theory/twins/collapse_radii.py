"""Collapse radii once more, as programs of their own: u (n, d) signed feature differences, p (n,)
probabilities that sum to one."""

import warnings

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.special import logsumexp

Array = NDArray[np.float64]


def kl_collapse(u: Array, p: Array) -> float:
    """min {KL(q||p) : sum_i q_i u_i = 0}, infinite if there is none.

    A linear program for each atom finds the face of the simplex that the feasible q fill; inside
    that face the dual max over nu of -log sum_i p_i exp(nu.u_i) is attained.
    """
    u, p = u[p > 0], p[p > 0]
    balance, total = np.vstack([u.T, np.ones(len(p))]), np.append(np.zeros(u.shape[1]), 1.0)
    masses = [linprog(-row, A_eq=balance, b_eq=total, method="highs") for row in np.eye(len(p))]
    if not all(found.success for found in masses):
        return np.inf
    face = np.array([-found.fun > 1e-9 for found in masses])
    u, p = u[face], p[face]
    nu = np.zeros(u.shape[1])

    def state(nu: Array) -> tuple[float, Array]:
        scores = u @ nu + np.log(p)
        return float(logsumexp(scores)), np.exp(scores - logsumexp(scores))

    for _ in range(200):  # damped Newton
        value, q = state(nu)
        gradient = q @ u
        step = -np.linalg.lstsq(
            (u.T * q) @ u - np.outer(gradient, gradient), gradient, rcond=1e-12
        )[0]
        if np.abs(u @ step).max() < 1e-13:
            break
        t = 1.0
        while (
            state(nu + t * step)[0]
            > value + 0.25 * t * (gradient @ step) + 1e-15 * max(1, abs(value))
            and t > 1e-8
        ):
            t /= 2
        nu = nu + t * step
    return max(0.0, -state(nu)[0])


def wasserstein_collapse(u: Array, p: Array, distance: Array, power: int) -> float:
    """(min {sum_ij pi_ij D_ij^power : row sums p, sum_ij pi_ij u_j = 0})^(1/power), infinite if
    there is none."""
    n = len(p)
    conditions = np.vstack([np.kron(np.eye(n), np.ones(n)), np.tile(u.T, n)])
    found = linprog(
        (distance**power).ravel(),
        A_eq=conditions,
        b_eq=np.append(p, np.zeros(u.shape[1])),
        method="highs",
    )
    return max(0.0, float(found.fun)) ** (1 / power) if found.success else np.inf


def free_collapse(u: Array, p: Array, power: int) -> float:
    """||E u||/2 for power 1 (mass sent to infinity), ||E u|| for power 2."""
    return float(np.linalg.norm(p @ u)) / (2 if power == 1 else 1)


def label_collapse(u: Array, p: Array, kappa: float) -> float:
    """max over ||s|| <= 1 of sum_i p_i min(s.u_i, 2 kappa - s.u_i)/2."""
    s = cp.Variable(u.shape[1])
    along = u @ s
    problem = cp.Problem(
        cp.Maximize(p @ cp.minimum(along, 2 * kappa - along) / 2), [cp.norm(s) <= 1]
    )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # it stops just short of 1e-13, which is asked for to get 1e-12
        problem.solve(cp.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13)
    return max(0.0, float(problem.value))
