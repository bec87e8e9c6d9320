"""The least worst-case regret, or worst-case loss, over finitely many candidate laws of the pairs.

    found = least_regret(u, laws, beta=1.0, bound=4.0)  # laws (G, n): weights of the pairs
    found.theta, found.value, found.gap

min over theta of max over g of L_g(theta) - min L_g, with L_g the DPO loss under the law g. The
regret subtracts what no policy could avoid, so that a law whose labels are noise does not rule the
answer. Regret in the place of loss: Wang et al., arXiv:2605.00155v2 (DRRO), for rewards of one
prompt in an l1 ball, of which abstract and introduction were read; for finitely many laws and the
DPO loss derived. It is convex, a largest of convex functions less constants. Over a ball of laws it
would not be: there the least loss changes with the law, and regret is convex in the law that is to
be maximised over.

Certificate: for weights c on the laws, min over theta of sum_g c_g (L_g - min L_g) is DPO on the
mixed law, whose own certificate bounds it from below.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.optimize import minimize, nnls
from scipy.special import expit

from theory.batch import ArrayLike
from theory.checks import as_array, check_probability, check_scale
from theory.fitting import dpo
from theory.policy import Array
from theory.problem import Problem

_TIES = 1e-5  # laws whose regret is so near the largest hold the answer, relative to the value


@dataclass(frozen=True, eq=False)
class RegretFit:
    """The policy of least worst-case regret, with its certificate.

    theta: (d,). value: the largest of `excess`. excess: (G,) regrets at theta in nats, or losses.
    least: (G,) the least loss under each law, or 0. mixture: (G,) weights of the laws that hold
    theta there: DPO on that mixture of laws answers the same. gap: certified bound on value minus
    optimum. converged: gap <= tolerance * max(1, |value|).
    """

    theta: Array
    value: float
    excess: Array
    least: Array
    mixture: Array
    gap: float
    converged: bool


def least_regret(
    u: ArrayLike,
    laws: ArrayLike,
    *,
    beta: float,
    bound: float,
    theta_ref: ArrayLike | None = None,
    of: Literal["regret", "loss"] = "regret",
    tolerance: float = 1e-7,
) -> RegretFit:
    """min over ||theta|| <= B of the largest regret over the laws; see the module for its source.

    Args:
        u: (n, d) signed feature differences, one row a pair.
        laws: (G, n) candidate laws, probabilities of the pairs.
        beta: of the loss, > 0.
        bound: B, in the inverse unit of the features.
        theta_ref: (d,) of the reference policy; None: 0.
        of: "regret", or "loss" for the largest loss, distributionally robust over the same laws.
        tolerance: largest gap of a fit that counts as converged, relative to max(1, |value|).

    Returns:
        A `theory.regret.RegretFit`.

    Raises:
        ValueError: laws that are no probabilities of the pairs, another word than these two, or
            what `dpo` refuses.

    >>> from theory import least_regret
    >>> # one law is nearly sure; of the other, a coin, the loss is log 2 or more for every theta
    >>> u, laws = [[1.0], [-1.0]], [[0.9, 0.1], [0.5, 0.5]]
    >>> regret = least_regret(u, laws, beta=1.0, bound=9.0)
    >>> loss = least_regret(u, laws, beta=1.0, bound=9.0, of="loss")
    >>> regret.theta.round(3).tolist(), abs(loss.theta.round(3)).tolist()
    ([0.92], [0.0])
    """
    if of not in ("regret", "loss"):
        raise ValueError(f"of must be 'regret' or 'loss', got {of!r}.")
    u = as_array(u, "u")
    p = np.atleast_2d(as_array(laws, "laws"))
    if u.ndim != 2 or p.ndim != 2 or p.shape[1] != len(u) or len(p) == 0:
        raise ValueError(
            f"u must be (n, d) and laws (G, n), a probability of each pair, got {u.shape} and"
            f" {p.shape}."
        )
    p = np.stack([check_probability(f"law {g + 1}", law, len(u)) for g, law in enumerate(p)])
    beta = check_scale("beta", beta, "It scales the log-ratio in the margin.")
    bound = check_scale("bound", bound, "It is B in ||theta|| <= B.")
    ref = np.zeros(u.shape[1]) if theta_ref is None else as_array(theta_ref, "theta_ref")
    problem = Problem(beta, bound, ref)
    alone = dpo(u, torch.from_numpy(p), **problem)
    least = alone.value.numpy() if of == "regret" else np.zeros(len(p))

    def excess(theta: Array) -> Array:
        return p @ np.logaddexp(0, -beta * u @ (theta - ref)) - least

    def slopes(theta: Array) -> Array:
        return -beta * (p * expit(-beta * u @ (theta - ref))) @ u

    # the fit of the even mixture, and of each law, as starts; the last number is the largest excess
    even = dpo(u, p.mean(0), **problem).theta.numpy()
    start = min((even, *alone.theta.numpy()), key=lambda theta: excess(theta).max())
    steps = minimize(
        lambda x: x[-1],
        np.r_[start, excess(start).max()],
        jac=lambda x: np.r_[np.zeros(len(x) - 1), 1.0],
        constraints=[
            {
                "type": "ineq",
                "fun": lambda x: x[-1] - excess(x[:-1]),
                "jac": lambda x: np.column_stack([-slopes(x[:-1]), np.ones(len(p))]),
            },
            {
                "type": "ineq",
                "fun": lambda x: bound**2 - x[:-1] @ x[:-1],
                "jac": lambda x: np.r_[-2 * x[:-1], 0.0][None],
            },
        ],
        method="SLSQP",
        options={"maxiter": 200, "ftol": 1e-15},
    )
    theta = steps.x[:-1] * min(1.0, bound / max(float(np.linalg.norm(steps.x[:-1])), 1e-300))
    theta = theta if excess(theta).max() <= excess(start).max() else start
    mixture = _mixture(excess(theta), slopes(theta), theta, bound)
    mixed = dpo(u, mixture @ p, **problem)
    lower = float(mixed.value - mixed.gap) - float(mixture @ least)
    theta = min((theta, mixed.theta.numpy()), key=lambda theta: float(excess(theta).max()))
    value = float(excess(theta).max())
    # what the least losses may be too high by, a regret may be too low by
    gap = max(value - lower, 0.0) + (float(alone.gap.max()) if of == "regret" else 0.0)
    return RegretFit(
        theta, value, excess(theta), least, mixture, gap, gap <= tolerance * max(1.0, abs(value))
    )


def _mixture(excess: Array, slopes: Array, theta: Array, bound: float) -> Array:
    """Weights of the laws whose slopes cancel, with the ball's normal where theta is on its
    sphere: non-negative least squares."""
    top = excess.max()
    held = excess >= top - _TIES * max(1.0, abs(top))
    columns = slopes[held].T
    if np.linalg.norm(theta) >= bound * (1 - 1e-9):
        columns = np.column_stack([columns, theta / bound])
    scale = max(float(np.abs(slopes).max()), 1e-300)
    ones = np.r_[np.ones(held.sum()), np.zeros(columns.shape[1] - held.sum())]
    found, _ = nnls(np.vstack([columns / scale, ones]), np.r_[np.zeros(len(theta)), 1.0])
    mixture = np.zeros(len(excess))
    mixture[held] = found[: held.sum()]
    return mixture / mixture.sum() if mixture.sum() > 0 else held / held.sum()
