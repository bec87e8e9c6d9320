"""Newton's step inside the parameter ball, ||w + theta_ref|| <= B."""

import math
from typing import Any

import numpy as np

from theory.solvers.compiled.arithmetic import (
    norm_of_sum,
    solve_positive,
)
from theory.solvers.compiled.compiling import piece


@piece
def project(w: Any, reference: Any, bound: float) -> None:
    """w := the nearest point of the ball."""
    length = norm_of_sum(w, reference)
    if length > bound:
        for k in range(reference.shape[0]):
            w[k] = (w[k] + reference[k]) * (bound / length) - reference[k]


@piece
def step_in_ball(w: Any, reference: Any, bound: float, g: Any, H: Any, M: Any, x: Any) -> bool:
    """x := the step that minimises g.x + x'|H|x/2 inside the ball, with H by its lower triangle;
    by Cholesky's factor where H is positive definite and the step stays inside, else in the
    eigenbasis. M is written into. False where derivatives overflowed."""
    d = reference.shape[0]
    for k in range(d):
        x[k] = -g[k]
        if not np.isfinite(g[k]):
            return False
        for j in range(k + 1):
            M[k, j] = H[k, j]
            if not np.isfinite(H[k, j]):
                return False
    if solve_positive(M, x):
        square = 0.0
        for k in range(d):
            square += (w[k] + reference[k] + x[k]) ** 2
        if math.sqrt(square) <= bound:
            return True
    for k in range(d):
        for j in range(k + 1):
            M[k, j] = H[k, j]
            M[j, k] = H[k, j]
    _step_in_eigenbasis(w, reference, bound, g, M, x)
    return True


@piece
def _step_in_eigenbasis(w: Any, reference: Any, bound: float, g: Any, M: Any, x: Any) -> None:
    """Moré-Sorensen, as `theory.solvers.newton._step_in_eigenbasis`: (|H| + mu) x = -(g + mu theta)
    with the mu >= 0 that puts theta + x on the sphere, or mu = 0 inside it."""
    d = reference.shape[0]
    values, basis = np.linalg.eigh(M)
    e, t, slope, h = np.empty(d), np.empty(d), np.empty(d), np.empty(d)
    top = 1e-300
    for k in range(d):
        e[k] = abs(values[k])
        top = max(top, e[k])
    mu = 0.0
    for k in range(d):
        e[k] = max(e[k], 1e-14 * top)
        t[k], slope[k] = 0.0, 0.0
        for i in range(d):
            t[k] += basis[i, k] * (w[i] + reference[i])
            slope[k] += basis[i, k] * g[i]
        if e[k] <= 1e-13 * top and abs(slope[k]) <= 1e-13:  # a direction that no pair sees
            slope[k] = 0.0
        h[k] = e[k] * t[k] - slope[k]
        mu = max(mu, abs(h[k]) / bound - e[k])
    for _ in range(60):
        square, bend = 0.0, 0.0
        for k in range(d):
            y = h[k] / (e[k] + mu)
            square += y * y
            bend += y * y / (e[k] + mu)
        norm = math.sqrt(square)
        if norm <= bound * (1 + 1e-15):
            break
        mu += (1 / bound - 1 / norm) / (bend / norm**3)
    for k in range(d):
        if mu == 0:
            t[k] = -slope[k] / e[k]
        else:
            t[k] = h[k] / (e[k] + mu) - t[k]
    for i in range(d):
        x[i] = 0.0
        for k in range(d):
            x[i] += basis[i, k] * t[k]
