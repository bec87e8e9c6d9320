"""The twin of theory/sets/cvar.py."""

import warnings

import cvxpy as cp
import numpy as np

from theory.twins import Array, Twin, worst_cases

_TIGHT = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}


def _fit(
    u: Array, p: Array, size: float, *, beta: float, bound: float, theta_ref: Array | None = None
) -> tuple[Array, float, float]:
    """min c + E (l - c)_+/share; Rockafellar and Uryasev (2000)."""
    u, p = u[p > 0], p[p > 0]
    theta, c, losses = cp.Variable(u.shape[1]), cp.Variable(), cp.Variable(len(p))
    reference = np.zeros(u.shape[1]) if theta_ref is None else theta_ref
    problem = cp.Problem(
        cp.Minimize(c + p @ cp.pos(losses - c) / size),
        [losses >= cp.logistic(-beta * (u @ (theta - reference))), cp.norm(theta) <= bound],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it stops just short of 1e-11
        problem.solve(cp.CLARABEL, **_TIGHT)
    return np.asarray(theta.value), float(problem.value), np.inf


def _collapse(u: Array, p: Array) -> float:
    """1 / min {t : q <= t p, q u = 0} over probabilities q; 0 where there is none."""
    u, p = u[p > 0], p[p > 0]
    q, t = cp.Variable(len(p), nonneg=True), cp.Variable()
    problem = cp.Problem(
        cp.Minimize(t), [q <= t * p, cp.sum(q) == 1, (u / np.abs(u).max()).T @ q == 0]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem.solve(cp.CLARABEL, **_TIGHT)
    return 1 / float(problem.value)  # infinite where it is infeasible


TWINS = {
    "cvar": Twin(_fit, _collapse, lambda l, p, size: worst_cases.reweighting("cvar", l, p, size)[1])
}
