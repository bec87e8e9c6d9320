"""The twin of theory/sets/tv.py."""

import warnings

import cvxpy as cp
import numpy as np

from theory.twins import Array, Twin, worst_cases

_TIGHT = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}


def _fit(
    u: Array, p: Array, size: float, *, beta: float, bound: float, theta_ref: Array | None = None
) -> tuple[Array, float, float]:
    """min rho max l + (1 - rho) CVaR of l at the share 1 - rho; Jiang and Guan (2018)."""
    u, p = u[p > 0], p[p > 0]
    theta, c, losses = cp.Variable(u.shape[1]), cp.Variable(), cp.Variable(len(p))
    reference = np.zeros(u.shape[1]) if theta_ref is None else theta_ref
    tail = (1 - size) * c + p @ cp.pos(losses - c)
    problem = cp.Problem(
        cp.Minimize(size * cp.max(losses) + tail),
        [losses >= cp.logistic(-beta * (u @ (theta - reference))), cp.norm(theta) <= bound, c >= 0],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it stops just short of 1e-11
        problem.solve(cp.CLARABEL, **_TIGHT)
    return np.asarray(theta.value), float(problem.value), np.inf


def _collapse(u: Array, p: Array) -> float:
    """min {sum |q - p|/2 : q u = 0} over probabilities q on the atoms with mass."""
    u, p = u[p > 0], p[p > 0]
    q = cp.Variable(len(p), nonneg=True)
    problem = cp.Problem(
        cp.Minimize(cp.norm1(q - p) / 2), [cp.sum(q) == 1, (u / np.abs(u).max()).T @ q == 0]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem.solve(cp.CLARABEL, **_TIGHT)
    return float(problem.value)  # infinite where it is infeasible


TWINS = {
    "tv": Twin(_fit, _collapse, lambda l, p, size: worst_cases.reweighting("tv", l, p, size)[1])
}
