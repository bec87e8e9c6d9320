"""The twin of theory/regret.py."""

import warnings

import cvxpy as cp
import numpy as np

from theory.twins import Array


def least_regret(
    u: Array,
    laws: Array,
    *,
    beta: float,
    bound: float,
    theta_ref: Array | None = None,
    of: str = "regret",
) -> tuple[Array, float]:
    """theta and value of min t : E_g l - min E_g l <= t for every law g, each minimum a program of
    its own."""
    reference = np.zeros(u.shape[1]) if theta_ref is None else theta_ref
    theta, t = cp.Variable(u.shape[1]), cp.Variable()
    losses = cp.logistic(-beta * (u @ (theta - reference)))
    ball = [cp.norm(theta) <= bound]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it stops just short of 1e-11
        least = [
            cp.Problem(cp.Minimize(law @ losses), ball).solve(cp.CLARABEL)
            if of == "regret"
            else 0.0
            for law in laws
        ]
        limits = [law @ losses - low <= t for law, low in zip(laws, least, strict=True)]
        value = cp.Problem(cp.Minimize(t), [*ball, *limits]).solve(cp.CLARABEL)
    return np.asarray(theta.value), float(value)
