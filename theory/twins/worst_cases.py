"""Worst-case distributions once more, as convex programs over the distributions themselves: slow,
one at a time.

The library solves one-dimensional duals; here the adversary's own problem is stated, in cvxpy or as
a linear program, and solved by Clarabel or HiGHS. Nothing is imported from what is checked.

Notation: losses l (n,), probabilities p (n,) summing to one, weights q (n,), margins m = beta w.u.
"""

import warnings

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import block_diag, csr_array, vstack

Array = NDArray[np.float64]

_TIGHT = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11, "max_iter": 200}
DIVERGENCES = ("kl", "chi2", "cvar", "tv")


def reweighting(ball: str, losses: Array, p: Array, radius: float) -> tuple[Array, float]:
    """max {sum_i q_i l_i : q in the ball}, q = 0 where p = 0; the weights q and the value.

    kl: sum q log(q/p) <= radius. chi2: sum (q-p)²/p <= radius. cvar: q <= p/radius. tv: sum |q-p|/2
    <= radius. Stated in the change s of the ratio q/p = 1 + unit s, with the unit of the radius, so
    that small balls are solved as well as large ones.
    """
    if ball not in DIVERGENCES:
        raise ValueError(f"unknown ball {ball!r}; choose one of {', '.join(DIVERGENCES)}.")
    live = p > 0
    l, mass = losses[live] - losses[live].max(), p[live]
    scale = max(float(-l.min()), 1e-300)
    unit = {"kl": np.sqrt(2 * radius), "chi2": np.sqrt(radius), "cvar": 1.0, "tv": radius}[ball]
    if unit == 0:
        return p.copy(), float(p @ losses)
    s = cp.Variable(len(l))
    ratio = 1 + unit * s
    constraints = [mass @ s == 0, ratio >= 0]
    if ball == "kl":
        constraints.append(mass @ -cp.entr(ratio) <= radius)
    elif ball == "chi2":
        constraints.append(cp.sum_squares(cp.multiply(np.sqrt(mass), s)) <= 1)
    elif ball == "cvar":
        constraints.append(ratio <= 1 / radius)
    else:
        constraints.append(mass @ cp.abs(s) <= 2)
    problem = cp.Problem(cp.Maximize((mass * l / scale) @ s), constraints)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it stops just short of 1e-11
        problem.solve(cp.CLARABEL, **_TIGHT)
    if s.value is None:
        raise RuntimeError(
            f"Clarabel found no {ball} worst case at radius {radius:g}: {problem.status}."
        )
    q = np.zeros(len(p))
    q[live] = mass * (1 + unit * s.value)
    return q, float(p[live] @ losses[live] + unit * scale * problem.value)


def wasserstein_worst_case(
    losses: Array, p: Array, distance: Array, power: int, radius: float
) -> tuple[Array, float]:
    """max {sum_ij pi_ij losses_j : row sums p, sum_ij pi_ij D_ij^power <= radius^power}; the plan
    (n, n) and the value."""
    n = len(p)
    rows = np.kron(np.eye(n), np.ones(n))
    cost = (distance**power).ravel()[None]
    found = linprog(
        -np.tile(losses, n), A_ub=cost, b_ub=[radius**power], A_eq=rows, b_eq=p, method="highs"
    )
    return found.x.reshape(n, n), -float(found.fun)


def plan_cost(p: Array, q: Array, cost: Array) -> float:
    """Least transport cost from p to q, cost (n, n): a linear program (HiGHS)."""
    n = len(p)
    rows, columns = np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))
    # one column condition is implied by the others
    found = linprog(
        cost.ravel(),
        A_eq=np.vstack([rows, columns[:-1]]),
        b_eq=np.concatenate([p, q[:-1]]),
        method="highs",
    )
    if found.status != 0:
        raise RuntimeError(
            f"no transport plan: {found.message} The sums are {p.sum():.15g} and {q.sum():.15g}."
        )
    return float(found.fun)


def free_moves(
    margins: Array,
    p: Array,
    norm: float,
    radius: float,
    power: int,
    shifts: Array,
    label_cost: float | None = None,
) -> float:
    """The adversary with free features who may move along w only by `shifts` >= 0 (with 0 among
    them): a linear program.

    sup of sum_i pi_ik softplus(-m_i + norm t_k), and of sum_i pi'_ik softplus(m_i + norm t_k) where
    labels flip at `label_cost`, over plans with rows p and cost sum pi_ik t_k^power + sum pi'_ik
    (label_cost + t_k)^power <= radius^power; norm = beta ||w||. A lower bound of the supremum over
    all moves, which it approaches as the grid of shifts gets finer and longer.
    """
    gain = np.logaddexp(0, -margins[:, None] + norm * shifts)
    price = np.broadcast_to(shifts**power, gain.shape)
    if label_cost is not None:
        gain = np.hstack([gain, np.logaddexp(0, margins[:, None] + norm * shifts)])
        price = np.hstack(
            [price, np.broadcast_to((label_cost + shifts) ** power, margins.shape + shifts.shape)]
        )
    rows = block_diag([np.ones((1, gain.shape[1]))] * len(p))
    budget = csr_array(price.reshape(1, -1))
    found = linprog(
        -gain.ravel(),
        A_ub=vstack([budget]),
        b_ub=[radius**power],
        A_eq=rows,
        b_eq=p,
        method="highs",
    )
    if found.status != 0:
        raise RuntimeError(f"the program of the moves did not solve: {found.message}")
    return -float(found.fun)
