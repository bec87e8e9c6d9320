"""The twin of theory/sets/chi2.py."""

import warnings

import cvxpy as cp
import numpy as np

from theory.twins import Array, Twin, worst_cases

_TIGHT = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}


def _fit(
    u: Array, p: Array, size: float, *, beta: float, bound: float, theta_ref: Array | None = None
) -> tuple[Array, float, float]:
    """min c + sqrt(1 + rho) ||sqrt(p) (l - c)_+||; Duchi and Namkoong, arXiv:1810.08750v6."""
    u, p = u[p > 0], p[p > 0]
    theta, c, losses = cp.Variable(u.shape[1]), cp.Variable(), cp.Variable(len(p))
    reference = np.zeros(u.shape[1]) if theta_ref is None else theta_ref
    root = cp.norm(cp.multiply(np.sqrt(p), cp.pos(losses - c)))
    problem = cp.Problem(
        cp.Minimize(c + np.sqrt(1 + size) * root),
        [losses >= cp.logistic(-beta * (u @ (theta - reference))), cp.norm(theta) <= bound],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it stops just short of 1e-11
        problem.solve(cp.CLARABEL, **_TIGHT)
    return np.asarray(theta.value), float(problem.value), np.inf


def _collapse(u: Array, p: Array) -> float:
    """min {sum (q - p)²/p : q u = 0} over probabilities q on the atoms with mass."""
    u, p = u[p > 0], p[p > 0]
    ratio = cp.Variable(len(p), nonneg=True)
    rows = [p @ ratio == 1, (u / np.abs(u).max()).T @ cp.multiply(p, ratio) == 0]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(cp.multiply(np.sqrt(p), ratio - 1))), rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem.solve(cp.CLARABEL, **_TIGHT)
    return float(problem.value)  # infinite where it is infeasible


TWINS = {
    "chi2": Twin(_fit, _collapse, lambda l, p, size: worst_cases.reweighting("chi2", l, p, size)[1])
}
