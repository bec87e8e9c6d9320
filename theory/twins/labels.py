"""The twins of theory/sets/labels.py."""

import warnings
from collections.abc import Callable

import cvxpy as cp
import numpy as np

from theory.twins import Array, Twin

Distance = Callable[[cp.Expression, Array], cp.Expression]  # of chances t, at confidences c
_TIGHT = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}


def _solve(problem: cp.Problem) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it stops just short of 1e-11
        problem.solve(cp.CLARABEL, **_TIGHT)
    return float(problem.value)


def _chances(u: Array, p: Array, confidence: object) -> Array:
    """(n,) that the recorded labels are right; None: counted over the pairs u and -u."""
    if confidence is not None:
        return np.broadcast_to(np.asarray(confidence, float), p.shape)
    same, turned = ((u[:, None] == x).all(-1) for x in (u, -u))
    return same @ p / ((same | turned) @ p).clip(min=1e-300)


def _chi2(t: cp.Expression, c: Array) -> cp.Expression:
    """Of the labels (1 - t, t) from (c, 1 - c), one each."""
    return cp.multiply(1 / c + 1 / (1 - c), cp.square(t - (1 - c)))


def _tv(t: cp.Expression, c: Array) -> cp.Expression:
    return cp.abs(t - (1 - c))


def _fit_of(distance: Distance, certain: bool) -> Callable[..., tuple[Array, float, float]]:
    def fit(
        u: Array,
        p: Array,
        size: float,
        *,
        beta: float,
        bound: float,
        theta_ref: Array | None = None,
        confidence: object = None,
    ) -> tuple[Array, float, float]:
        """min E max over the ends t of each pair's ball of (1 - t) l(m) + t l(-m)."""
        c = _chances(u, p, confidence)
        u, p, c = u[p > 0], p[p > 0], c[p > 0]
        moved = (c > 0) & (c < 1) if certain else c >= 0
        ends = []
        for sign in (-1, 1):
            end = 1 - c
            if moved.any() and size > 0:
                t = cp.Variable(int(moved.sum()))
                ball = [distance(t, c[moved]) <= size, t >= 0, t <= 1]
                _solve(cp.Problem(cp.Maximize(sign * cp.sum(t)), ball))
                end[moved] = np.asarray(t.value).clip(0, 1)  # to its tolerance
            ends.append(end)
        theta = cp.Variable(u.shape[1])
        margin = beta * (u @ (theta - (0 if theta_ref is None else theta_ref)))
        own, turned = cp.logistic(-margin), cp.logistic(margin)
        losses = [cp.multiply(1 - t, own) + cp.multiply(t, turned) for t in ends]
        problem = cp.Problem(cp.Minimize(p @ cp.maximum(*losses)), [cp.norm(theta) <= bound])
        value = _solve(problem)
        return np.asarray(theta.value), value, np.inf

    return fit


def _collapse_of(distance: Distance, certain: bool) -> Callable[..., float]:
    def collapse(u: Array, p: Array, confidence: object = None) -> float:
        """The least radius at which some labels have E (1 - 2 t) u = 0."""
        c = _chances(u, p, confidence)
        u, p, c = u[p > 0], p[p > 0], c[p > 0]
        t, size = cp.Variable(len(p)), cp.Variable(nonneg=True)
        rows = [(u / np.abs(u).max()).T @ cp.multiply(p, 1 - 2 * t) == 0, t >= 0, t <= 1]
        moved = (c > 0) & (c < 1) if certain else c >= 0
        if (~moved).any():
            rows.append(t[~moved] == 1 - c[~moved])
        if moved.any():
            rows.append(distance(t[moved], c[moved]) <= size)
        return _solve(cp.Problem(cp.Minimize(size), rows))  # infinite where it is infeasible

    return collapse


# a label that is certain has no other within any chi-squared distance
TWINS = {
    "chi2-label": Twin(_fit_of(_chi2, True), _collapse_of(_chi2, True)),
    "tv-label": Twin(_fit_of(_tv, False), _collapse_of(_tv, False)),
}
