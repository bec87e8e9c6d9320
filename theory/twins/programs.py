"""The estimators once more, as convex programs: slow, one at a time, and independent of the batched
solvers.

    program = kldpo(u, p, radius=0.05, beta=1.0, bound=4.0)

Each problem is stated in cvxpy and solved by Clarabel, then SCS. An interior-point solution has
about nine digits in the objective and half of them in theta, so it is polished by Newton's method
on the optimality conditions, the active pieces and constraints held as equations (`_polish`). What
decides is neither solver but `gap`, a bound on value - optimum from the
Lagrangian: a solver whose polished point is not certified has failed, which `failures` records and
a `SolverFallback` warning says.

Notation: u (n, d) signed feature differences, p (n,) probabilities summing to one, w = theta -
theta_ref, margins m = beta u w, l = log(1 + exp(-m)); theta ranges over ||theta||_2 <= bound.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, linprog, nnls
from scipy.special import entr, expit, logsumexp

Array = NDArray[np.float64]
_Run = Callable[[cp.Minimize, list[cp.Constraint]], None]

LOG2 = float(np.log(2.0))
CERTIFIED = 1e-10  # gap, relative to max(1, value), below which a point counts as solved

# Clarabel stops short of 1e-12 on hard instances and says so; the polish often makes up for it, so
# that is not yet a failure.
_TIGHT = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12, "max_iter": 200}
_LOOSE = {"tol_gap_abs": 1e-8, "tol_gap_rel": 1e-8, "tol_feas": 1e-8, "max_iter": 200}
_SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Clarabel": (cp.CLARABEL, _TIGHT),
    "Clarabel (1e-8)": (cp.CLARABEL, _LOOSE),
    "Clarabel (1e-8, short steps)": (
        cp.CLARABEL,
        {**_LOOSE, "max_step_fraction": 0.8, "equilibrate_enable": False},
    ),
    "SCS": (cp.SCS, {"eps_abs": 1e-8, "eps_rel": 1e-8, "max_iters": 20_000}),
}


class SolverFallback(UserWarning):
    """A solver failed on this instance and another one decided, or none could be certified."""


@dataclass(frozen=True)
class Program:
    """A solved program.

    theta: (d,). value: objective at theta, evaluated exactly and not read from the solver. gap:
    certified bound on value - optimum. dual: multiplier of the radius (lambda, eta), None where the
    problem has none, infinite at radius 0. status: "optimal", "collapsed" (theta is theta_ref) or
    "uncertified" (gap too large: do not use as a reference). solver: the one that decided.
    failures: (solver, reason) for those that failed before it.
    """

    theta: Array
    value: float
    gap: float
    dual: float | None
    status: str
    solver: str
    failures: tuple[tuple[str, str], ...] = ()


# --------------------------------------------------------------------------------------- estimators
def dpo(
    u: Array, p: Array, *, beta: float, bound: float, theta_ref: Array | None = None
) -> Program:
    """min sum_i p_i l(m_i)."""
    task = _Task(u, beta, bound, theta_ref)

    def attempt(run: _Run) -> Array:
        w = cp.Variable(task.d)
        run(cp.Minimize(p @ task.losses(w)), [task.ball(w)])
        return _number(w)

    return _solve(task, attempt, _single(task, lambda losses: (float(p @ losses), p)))


def kldpo(
    u: Array, p: Array, *, radius: float, beta: float, bound: float, theta_ref: Array | None = None
) -> Program:
    """min over theta of max {sum_i q_i l(m_i) : KL(q||p) <= radius}, radius in nats.

    Dual: min lam radius + t with sum_i p_i y_i <= lam, y_i >= lam exp((l_i - t)/lam). The polish
    uses the gradient of the worst case; where lam = 0, the worst case sits on the largest losses
    and the problem is the minimax of the losses.
    """
    if radius == 0:
        return replace(dpo(u, p, beta=beta, bound=bound, theta_ref=theta_ref), dual=np.inf)
    u, p = u[p > 0], p[p > 0]
    task = _Task(u, beta, bound, theta_ref)

    def attempt(run: _Run) -> Array:
        w, t, lam = cp.Variable(task.d), cp.Variable(), cp.Variable(nonneg=True)
        s, y = cp.Variable(len(p)), cp.Variable(len(p))
        cone = cp.ExpCone(s - t, lam * np.ones(len(p)), y)
        run(cp.Minimize(lam * radius + t), [task.ball(w), s >= task.losses(w), p @ y <= lam, cone])
        return _number(w)

    def worst(losses: Array) -> tuple[float, Array]:
        q, value, _ = _kl_tilt(losses, p, radius)
        return value, q

    def largest(x: Array) -> tuple[Array, Array]:
        losses, gradients = task.loss_gradients(x)
        return losses[None], gradients[None]

    def allowed(multipliers: Array) -> bool:
        return kl_divergence(multipliers[0], p) <= radius * (1 + 1e-9)

    minimax = _Pieces(task, np.ones(1), largest, allowed=allowed)
    found = _solve(
        task,
        attempt,
        _single(task, worst),
        minimax,
        collapse=(radius, lambda: kl_collapse(u, p)),
    )
    if found.status == "collapsed":
        return found
    value, dual = _kl_tilt(_softplus(-beta * u @ (found.theta - task.origin)), p, radius)[1:]
    return replace(found, value=value, dual=dual)


def kldpo_tilt(
    u: Array,
    p: Array,
    *,
    temperature: float,
    beta: float,
    bound: float,
    theta_ref: Array | None = None,
) -> Program:
    """min tau log sum_i p_i exp(l(m_i)/tau)."""
    u, p = u[p > 0], p[p > 0]
    task = _Task(u, beta, bound, theta_ref)

    def attempt(run: _Run) -> Array:
        w = cp.Variable(task.d)
        run(
            cp.Minimize(temperature * cp.log_sum_exp(task.losses(w) / temperature + np.log(p))),
            [task.ball(w)],
        )
        return _number(w)

    def tilted(losses: Array) -> tuple[float, Array]:
        scores = losses / temperature + np.log(p)
        return temperature * float(logsumexp(scores)), np.exp(scores - logsumexp(scores))

    return _solve(task, attempt, _single(task, tilted))


def wdpo_finite(
    u: Array,
    p: Array,
    *,
    distance: Array,
    power: int,
    radius: float,
    beta: float,
    bound: float,
    theta_ref: Array | None = None,
) -> Program:
    """min over theta of max {sum_ij pi_ij l(m_j) : pi >= 0, row sums p, sum_ij pi_ij D_ij^power <=
    radius^power}.

    Dual: min eta radius^power + sum_i p_i s_i with s_i >= l(m_j) - eta D_ij^power and eta >= 0;
    Lemma 1, arXiv:2502.01930.
    """
    if radius == 0:
        return replace(dpo(u, p, beta=beta, bound=bound, theta_ref=theta_ref), dual=np.inf)
    task = _Task(u, beta, bound, theta_ref)
    live = p > 0
    cost = distance[live] ** power
    budget = radius**power

    def attempt(run: _Run) -> Array:
        w, eta = cp.Variable(task.d), cp.Variable(nonneg=True)
        t, s = cp.Variable(len(u)), cp.Variable(len(cost))
        moves = [s[i] >= t - eta * row for i, row in enumerate(cost)]
        run(cp.Minimize(eta * budget + p[live] @ s), [task.ball(w), t >= task.losses(w), *moves])
        return _number(w)

    def best_eta(w: Array) -> float:
        return finite_dual(task.loss_gradients(w)[0], p[live], cost, budget)

    def pieces(x: Array) -> tuple[Array, Array]:
        losses, gradients = task.loss_gradients(x[:-1])
        slopes = np.broadcast_to(gradients, (*cost.shape, task.d))
        return losses - x[-1] * cost, np.concatenate([slopes, -cost[:, :, None]], axis=-1)

    # beyond this eta no move pays: l is 1-Lipschitz in m and ||w|| <= 2 bound
    gains = 2 * bound * beta * np.linalg.norm(u[live][:, None] - u[None], axis=-1)
    steepest = float(np.max(gains[cost > 0] / cost[cost > 0], initial=1.0))
    found = _Pieces(
        task,
        p[live],
        pieces,
        price=budget,
        eta_reach=steepest,
        eta_floor=_zero_floor,
        best_eta=best_eta,
    )
    return _solve(
        task, attempt, found, collapse=(radius, lambda: wasserstein_collapse(u, p, distance, power))
    )


def wdpo_free(
    u: Array,
    p: Array,
    *,
    power: int,
    radius: float,
    label_cost: float | None = None,
    beta: float,
    bound: float,
    theta_ref: Array | None = None,
) -> Program:
    """Wasserstein balls with features free in R^d: power 1, power 1 with labels that move at
    `label_cost`, or power 2."""
    if radius == 0:  # mass flips for nothing only at distance 0, so labels stay too
        return replace(dpo(u, p, beta=beta, bound=bound, theta_ref=theta_ref), dual=np.inf)
    u, p = u[p > 0], p[p > 0]
    task = _Task(u, beta, bound, theta_ref, norm_counts=True)
    if power == 2:
        return _free_quadratic(task, u, p, radius)
    return (
        _free_norm(task, p, radius)
        if label_cost is None
        else _free_labels(task, p, radius, label_cost)
    )


def _free_norm(task: "_Task", p: Array, radius: float) -> Program:
    """min sum_i p_i l(m_i) + radius beta ||w||; eta = beta ||w||."""

    def attempt(run: _Run) -> Array:
        w = cp.Variable(task.d)
        run(cp.Minimize(p @ task.losses(w) + radius * task.beta * cp.norm(w)), [task.ball(w)])
        return _number(w)

    def penalised(w: Array) -> tuple[Array, Array]:
        losses, gradients = task.loss_gradients(w)
        norm = float(np.linalg.norm(w))
        value = p @ losses + radius * task.beta * norm
        return (
            np.full((1, 1), value),
            (p @ gradients + radius * task.beta * w / max(norm, 1e-300))[None, None],
        )

    found = _solve(
        task,
        attempt,
        _Pieces(task, np.ones(1), penalised, single=True),
        collapse=(radius, lambda: free_collapse(task.u, p, 1)),
    )
    return replace(found, dual=task.beta * float(np.linalg.norm(found.theta - task.origin)))


def _free_labels(task: "_Task", p: Array, radius: float, kappa: float) -> Program:
    """min eta radius + sum_i p_i s_i with s_i >= l(m_i), s_i >= l(-m_i) - kappa eta, eta >= beta
    ||w||.

    Shafieezadeh-Abadeh, Mohajerin Esfahani and Kuhn (2015), Theorem 1.
    """

    def attempt(run: _Run) -> Array:
        w, eta, s = cp.Variable(task.d), cp.Variable(), cp.Variable(len(p))
        stay, flip = s >= task.losses(w), s >= task.losses(-w) - kappa * eta
        run(
            cp.Minimize(eta * radius + p @ s),
            [task.ball(w), stay, flip, task.beta * cp.norm(w) <= eta],
        )
        return _number(w)

    def best_eta(w: Array) -> float:
        return free_labels_worst_case(
            task.beta * task.u @ w, p, task.beta * float(np.linalg.norm(w)), radius, kappa
        )[0]

    def pieces(x: Array) -> tuple[Array, Array]:
        stay, stay_slope = task.loss_gradients(x[:-1])
        flip, flip_slope = task.loss_gradients(-x[:-1])
        slopes = np.stack([stay_slope, -flip_slope], axis=1)
        prices = np.broadcast_to([[0.0], [-kappa]], (len(p), 2, 1))
        return np.stack([stay, flip - kappa * x[-1]], axis=1), np.concatenate(
            [slopes, prices], axis=-1
        )

    def floor(w: Array) -> tuple[float, Array]:
        norm = float(np.linalg.norm(w))
        return task.beta * norm, task.beta * w / max(norm, 1e-300)

    longest = float(np.linalg.norm(task.u, axis=1).max())
    reach = 2 * task.bound * task.beta * max(1.0, longest / kappa)
    found = _Pieces(
        task, p, pieces, price=radius, eta_reach=reach, eta_floor=floor, best_eta=best_eta
    )
    return _solve(task, attempt, found, collapse=(radius, lambda: label_collapse(task.u, p, kappa)))


def _free_quadratic(task: "_Task", u: Array, p: Array, radius: float) -> Program:
    """min eta radius² + sum_i p_i max_q [-q m_i + H(q) + q² b²/(4 eta)], b = beta ||w||, by
    exchange.

    With eta = k/(2 radius), each q gives a constraint linear in w and r >= b²/(2 k); the q that
    violates most is added for each pair, both local maxima, until none does by more than 1e-7: the
    polish then works with the maximisers themselves.
    """
    n = len(p)

    def attempt(run: _Run) -> Array:
        cuts = [np.full(n, q) for q in (0.02, 0.2, 0.4, 0.6, 0.8, 0.98)]
        x = np.zeros(task.d)
        for _ in range(20):
            w, k, r, s = (
                cp.Variable(task.d),
                cp.Variable(nonneg=True),
                cp.Variable(),
                cp.Variable(n),
            )
            q = np.concatenate(cuts)
            tilt = -task.beta * q[:, None] * np.tile(task.u, (len(cuts), 1))
            lines = np.tile(np.eye(n), (len(cuts), 1)) @ s >= tilt @ w + radius * q**2 * r + (
                entr(q) + entr(1 - q)
            )
            rotated = cp.quad_over_lin(task.beta * w, k) <= 2 * r
            try:
                run(cp.Minimize(radius * k / 2 + p @ s), [task.ball(w), rotated, lines])
            except cp.SolverError:
                if not x.any():
                    raise
                break  # the previous round is near enough for the polish
            x = _number(w)
            peaks, values = _peaks(task.beta * task.u @ x, radius * float(_number(r)))
            if np.max(values.max(1) - _number(s)) < 1e-7:
                break
            cuts += [peaks[:, 0], peaks[:, 1]]
        return x

    def best_k(w: Array) -> float:
        norm = task.beta * float(np.linalg.norm(w))
        return (
            2 * radius * free_quadratic_worst_case(task.beta * task.u @ w, p, norm, radius)[0]
            if norm > 0
            else 0.0
        )

    def pieces(x: Array) -> tuple[Array, Array]:
        w, k = x[:-1], max(x[-1], 1e-150)
        square = task.beta**2 * float(w @ w)
        q, values = _peaks(task.beta * task.u @ w, radius * square / (2 * k))
        slopes = (
            -task.beta * q[:, :, None] * task.u[:, None]
            + (q**2)[:, :, None] * radius * task.beta**2 * w / k
        )
        prices = -(q**2)[:, :, None] * radius * square / (2 * k**2)
        return values, np.concatenate([slopes, prices], axis=-1)

    def at_best_eta(w: Array) -> tuple[Array, Array]:
        eta, value = free_quadratic_worst_case(
            task.beta * task.u @ w, p, task.beta * float(np.linalg.norm(w)), radius
        )
        values, slopes = pieces(np.append(w, 2 * radius * eta))
        return np.full((1, 1), value), (p @ slopes[np.arange(n), values.argmax(1), :-1])[None, None]

    reach = (
        2 * task.beta * task.bound
    )  # k <= b, since the worst q in radius² = b² E q²/(4 eta²) are at most 1
    found = _Pieces(
        task,
        p,
        pieces,
        price=radius / 2,
        eta_reach=reach,
        eta_floor=_zero_floor,
        best_eta=best_k,
        relative_eta=True,
    )
    reduced = _Pieces(
        task, np.ones(1), at_best_eta, single=True
    )  # smooth in w where the worst q is unique; surer near w = 0
    done = _solve(
        task, attempt, found, reduced, collapse=(radius, lambda: free_collapse(task.u, p, 2))
    )
    if done.status == "collapsed":
        return done
    w = done.theta - task.origin
    eta = free_quadratic_worst_case(
        task.beta * (u @ w), p, task.beta * float(np.linalg.norm(w)), radius
    )[0]
    return replace(done, dual=eta)


# ----------------------------------------------------------- worst cases at fixed losses or margins
def kl_divergence(q: Array, p: Array) -> float:
    """KL(q||p) in nats, accurate also where q is close to p; q must vanish where p does."""
    ratio = q[p > 0] / p[p > 0] - 1
    near = np.abs(ratio) < 1e-3
    series = ratio**2 / 2 - ratio**3 / 6 + ratio**4 / 12 - ratio**5 / 20 + ratio**6 / 30
    exact = -entr(1 + ratio) - ratio
    return max(0.0, float(p[p > 0] @ np.where(near, series, exact)))


def kl_worst_case(losses: Array, p: Array, radius: float) -> tuple[Array, float]:
    """max {q . losses : KL(q||p) <= radius}, q (n,) and the value: an exponential tilt of p, or p
    given the largest losses."""
    q, value, _ = _kl_tilt(losses, p, radius)
    return q, value


def _kl_tilt(losses: Array, p: Array, radius: float) -> tuple[Array, float, float]:
    """The worst case, its value and lambda."""
    live = p > 0
    spread = float(np.ptp(losses[live]))
    # losses that differ by rounding are tied: a smaller lambda would tell them apart by noise
    top = np.where(live & (losses >= losses[live].max() - 1e-14 * (1 + losses[live].max())), p, 0.0)
    if radius == 0 or spread == 0:
        return p.copy(), float(p @ losses), np.inf if radius == 0 else 0.0
    if radius >= -np.log(top.sum()):
        q = top / top.sum()
        return q, float(q @ losses), 0.0
    mean, peak = float(p @ losses), float(losses[live].max())
    log_p = np.log(np.where(live, p, 1.0))

    def tilt(log_lam: float) -> Array:
        scores = np.where(
            live, (losses - peak) / np.exp(log_lam) + log_p, -np.inf
        )  # exact where losses nearly tie
        return np.exp(scores - logsumexp(scores))

    def excess(log_lam: float) -> float:
        return kl_divergence(tilt(log_lam), p) - radius

    low = high = float(np.log(spread))
    while excess(high) > 0:
        high += 1.0
    while excess(low) < 0:
        low -= 1.0
    root = high if high == low else brentq(excess, low, high, xtol=1e-15, rtol=1e-15)
    q = tilt(root)
    return q, mean + float(q @ (losses - mean)), float(np.exp(root))


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


def finite_dual(losses: Array, p: Array, cost: Array, budget: float) -> float:
    """The eta >= 0 that minimises eta budget + sum_i p_i max_j [losses_j - eta cost_ij]; cost (rows
    of p, atoms).

    The derivative budget - sum_i p_i cost_{i, j(i)} increases in steps: the root is bracketed, then
    taken at the crossing of the two lines at its sides.
    """

    def line(eta: float) -> tuple[float, float]:
        chosen = (losses - eta * cost).argmax(1)
        rows = np.arange(len(p))
        return budget - float(p @ cost[rows, chosen]), float(p @ losses[chosen])

    low, high = 0.0, 1.0
    if line(low)[0] >= 0:
        return 0.0
    while line(high)[0] < 0:
        high *= 2
    for _ in range(200):
        (slope, offset), (far_slope, far_offset) = line(low), line(high)
        middle = (offset - far_offset) / (far_slope - slope)
        here = line(middle)[0]
        if not low < middle < high or here in (slope, far_slope):
            break
        low, high = (middle, high) if here < 0 else (low, middle)
    return float(middle)


def free_labels_worst_case(
    margins: Array, p: Array, norm: float, radius: float, kappa: float
) -> tuple[float, float]:
    """min over eta >= norm of eta radius + sum_i p_i max(l(m_i), l(-m_i) - kappa eta), norm = beta
    ||w||; eta and the value.

    Piecewise linear in eta with breakpoints m_i/kappa, since l(-m) - l(m) = m: the minimum is at
    one of them or at the bound.
    """
    etas = np.append(norm, np.maximum(margins / kappa, norm))
    flips = _softplus(margins)[None] - kappa * etas[:, None]
    values = etas * radius + np.maximum(_softplus(-margins)[None], flips) @ p
    best = int(np.argmin(values))
    return float(etas[best]), float(values[best])


def free_quadratic_worst_case(
    margins: Array, p: Array, norm: float, radius: float
) -> tuple[float, float]:
    """min over eta of eta radius² + sum_i p_i max_q [-q m_i + H(q) + q² norm²/(4 eta)], norm = beta
    ||w|| > 0; eta and value.

    The derivative in eta is increasing; at its root, which may be a jump, radius² = norm² E q²/(4
    eta²).
    """

    def slope(log_eta: float) -> float:
        eta = np.exp(log_eta)
        q, values = _peaks(margins, norm**2 / (4 * eta))
        best = q[np.arange(len(p)), values.argmax(1)]
        return radius**2 - float(p @ best**2) * norm**2 / (4 * eta**2)

    high = float(np.log(norm / (2 * radius)))  # q <= 1
    low = high + 0.5 * float(np.log(p @ expit(-margins) ** 2))  # moving along w only raises q
    eta = float(np.exp(brentq(slope, low - 1e-9, high + 1e-9, xtol=1e-14)))
    return eta, eta * radius**2 + float(p @ _peaks(margins, norm**2 / (4 * eta))[1].max(1))


# ----------------------------------------------------------------------------------- collapse radii
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


# -------------------------------------------------------------------------------------------- parts
class _Task:
    """The data that all problems share, in coordinates of the row space of u, with the loss in both
    languages.

    Outside the row space only the norm of theta counts: it is 0 there, which leaves the ball its
    full radius, or where the objective also holds ||w|| (`norm_counts`) it stays at theta_ref.
    """

    def __init__(
        self,
        u: Array,
        beta: float,
        bound: float,
        theta_ref: Array | None,
        norm_counts: bool = False,
    ):
        self.origin = (
            np.zeros(u.shape[1]) if theta_ref is None else np.asarray(theta_ref, dtype=float)
        )
        _, sizes, axes = np.linalg.svd(u)
        rank = int((sizes > 1e-10 * sizes[0]).sum())
        self.axes = np.eye(u.shape[1]) if rank == u.shape[1] else axes[:rank]
        self.u, self.ref, self.beta = u @ self.axes.T, self.axes @ self.origin, beta
        self.outside = (self.origin - self.ref @ self.axes) * norm_counts
        self.bound = float(np.sqrt(bound**2 - self.outside @ self.outside))
        self.d = rank

    def theta(self, w: Array) -> Array:
        """Back in the coordinates of u."""
        return (self.ref + w) @ self.axes + self.outside

    def losses(self, w: cp.Expression) -> cp.Expression:
        return cp.logistic(-self.beta * (self.u @ w))

    def ball(self, w: cp.Expression) -> cp.Constraint:
        return cp.norm(w + self.ref) <= self.bound

    def loss_gradients(self, w: Array) -> tuple[Array, Array]:
        """(n,) losses and (n, d) gradients in w."""
        margins = self.beta * self.u @ w
        return _softplus(-margins), -self.beta * expit(-margins)[:, None] * self.u


@dataclass(frozen=True)
class _Pieces:
    """price * eta + sum_i p_i max_k f_ik(x), with x = w, or x = (w, eta) where `eta_floor` is
    given.

    evaluate: x to values (n, K), -inf for a piece that is absent, and gradients (n, K, dim).
    Constraints: the ball, and eta >= eta_floor(w), a convex function given with its gradient.
    eta_reach bounds |eta - optimal eta|, for the certificate.
    best_eta: the optimal eta for a given w, which completes the w of a solver, whose eta is poor
    where radius is small.
    relative_eta: measure eta in units of itself, where its curvature is out of proportion to its
    slope.
    single: n = K = 1. allowed: a further condition on the multipliers (n, K) of the pieces.
    """

    task: _Task
    p: Array
    evaluate: Callable[[Array], tuple[Array, Array]]
    single: bool = False
    price: float = 0.0
    eta_reach: float = 0.0
    eta_floor: Callable[[Array], tuple[float, Array]] | None = None
    best_eta: Callable[[Array], float] | None = None
    relative_eta: bool = False
    allowed: Callable[[Array], bool] = lambda multipliers: True

    def cost(self) -> Array:
        return (
            np.zeros(self.task.d)
            if self.eta_floor is None
            else np.append(np.zeros(self.task.d), self.price)
        )

    def constraints(self, x: Array) -> tuple[Array, Array]:
        """Values (J,), at most 0 where feasible, and gradients (J, dim)."""
        d, bound = self.task.d, self.task.bound
        theta = x[:d] + self.task.ref
        ball = (theta @ theta - bound**2) / (2 * bound)
        if self.eta_floor is None:
            return np.array([ball]), theta[None] / bound
        floor, slope = self.eta_floor(x[:d])
        return np.array([ball, floor - x[d]]), np.vstack(
            [np.append(theta / bound, 0.0), np.append(slope, -1.0)]
        )

    def feasible(self, x: Array) -> Array:
        """The nearest theta in the ball, with eta raised to its floor."""
        d = self.task.d
        theta = x[:d] + self.task.ref
        w = (
            theta * min(1.0, self.task.bound / max(float(np.linalg.norm(theta)), 1e-300))
            - self.task.ref
        )
        return w if self.eta_floor is None else np.append(w, max(x[d], self.eta_floor(w)[0]))


def _zero_floor(w: Array) -> tuple[float, Array]:
    return 0.0, np.zeros_like(w)


@dataclass(frozen=True)
class _Point:
    x: Array
    value: float
    gap: float

    @property
    def certified(self) -> bool:
        return self.gap <= CERTIFIED * max(1.0, self.value)


def _single(task: _Task, functional: Callable[[Array], tuple[float, Array]]) -> _Pieces:
    """A single piece: a convex functional of the losses that returns its value and its weights on
    them."""

    def evaluate(w: Array) -> tuple[Array, Array]:
        losses, gradients = task.loss_gradients(w)
        value, weights = functional(losses)
        return np.full((1, 1), value), (weights @ gradients)[None, None]

    return _Pieces(task, np.ones(1), evaluate, single=True)


def _number(variable: cp.Variable) -> Array:
    """The value of a variable of a solved problem."""
    return np.asarray(variable.value, dtype=float)


def _softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def _peaks(margins: Array, a: float) -> tuple[Array, Array]:
    """Local maxima over q of -q m + H(q) + a q²: q (n, 2) and values (n, 2), -inf where there is
    only one.

    With q = sigma(x) a maximum is where h(x) = x + m - 2 a sigma(x) crosses zero upwards; h is
    increasing outside [-bend, bend], where sigma(x) sigma(-x) = 1/(2a), so that each side holds at
    most one such root. Found by bisection.
    """
    low, high = -margins - 1e-9, 2 * a - margins + 1e-9
    bend = (
        float(np.log(a / 2) + 2 * np.log1p(np.sqrt(1 - 2 / a))) if a > 2 else 0.0
    )  # logit((1 + sqrt(1 - 2/a))/2)

    def h(x: Array) -> Array:
        return x + margins - 2 * a * expit(x)

    left_end, right_end = np.full_like(margins, -bend), np.full_like(margins, bend)
    left = _bisect(h, np.minimum(low, left_end), np.minimum(high, left_end))
    right = _bisect(h, np.maximum(low, right_end), np.maximum(high, right_end))
    x = np.stack([left, right], axis=1)
    there = np.stack([h(left_end) >= 0, h(right_end) < 0], axis=1)
    q = expit(x)
    values = -q * margins[:, None] + entr(q) + entr(expit(-x)) + a * q**2
    return q, np.where(there, values, -np.inf)


def _bisect(function: Callable[[Array], Array], low: Array, high: Array) -> Array:
    for _ in range(70):
        middle = (low + high) / 2
        above = function(middle) > 0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return (low + high) / 2


# --------------------------------------------------------------------------- solve, polish, certify
def _run(
    solver: str, options: dict[str, Any], objective: cp.Minimize, constraints: list[cp.Constraint]
) -> None:
    """Solve in place; a status other than (nearly) optimal raises cp.SolverError."""
    problem = cp.Problem(objective, constraints)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "may be inaccurate": the certificate decides
        problem.solve(solver, **options)
    if problem.status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE):
        raise cp.SolverError(f"status {problem.status}")


def _solve(
    task: _Task,
    attempt: Callable[[_Run], Array],
    *forms: _Pieces,
    collapse: tuple[float, Callable[[], float]] | None = None,
) -> Program:
    """Try the solvers in turn until the polished point of one is certified in one of the forms of
    the problem.

    `collapse` is the radius and the collapse radius: a w near 0 is replaced by 0 where some Q in
    the ball has E_Q u = 0, since then by Jensen's inequality the worst case is at least l(0) = log
    2 for every theta. So is a w that ties with 0.
    """

    def collapsed() -> Program | None:
        """The worst case is concave in the radius (or its power): a little short of collapse it is
        log 2 but for a little."""
        if collapse is None:
            return None
        gap = 2 * LOG2 * max(0.0, 1 - collapse[0] / max(collapse[1](), 1e-300))
        return (
            Program(task.origin.copy(), LOG2, gap, 0.0, "collapsed", solver)
            if gap <= CERTIFIED
            else None
        )

    failures: list[tuple[str, str]] = []
    best: tuple[_Point, str] | None = None
    for solver, (name, options) in _SOLVERS.items():
        try:
            start = attempt(partial(_run, name, options))
        except (cp.SolverError, ValueError, ArithmeticError) as error:
            failures.append((solver, str(error).splitlines()[0]))
            continue
        if np.abs(task.beta * task.u @ start).max() < 1e-3 and (program := collapsed()):
            return _finish(program, failures)
        for form in forms:
            point = _polish(form, start)
            if best is None or point.gap < best[0].gap:
                best = point, solver
            if point.certified:
                break
        if best is not None and best[0].value >= LOG2 - 1e-9 and (program := collapsed()):
            return _finish(program, failures)
        if best is not None and best[0].certified:
            break
        failures.append((solver, f"not certified, gap {point.gap:.1e}"))
    if best is None:
        raise cp.SolverError(
            f"No solver returned a point: {failures}. The data may hold NaN or be scaled far"
            " from 1."
        )
    point, solver = best
    dual = None if forms[0].eta_floor is None else float(point.x[-1])
    status = "optimal" if point.certified else "uncertified"
    return _finish(
        Program(task.theta(point.x[: task.d]), point.value, point.gap, dual, status, solver),
        failures,
    )


def _finish(program: Program, failures: list[tuple[str, str]]) -> Program:
    if failures:
        warnings.warn(
            SolverFallback(f"{program.status} by {program.solver} after {failures}"), stacklevel=4
        )
    return replace(program, failures=tuple(failures))


def _polish(form: _Pieces, start: Array) -> _Point:
    """Newton's method on the optimality conditions, for the active sets suggested by a ladder of
    slacks; the best point."""
    if form.best_eta is not None:
        start = np.append(start, form.best_eta(start))
    best = _certify(form, form.feasible(start))
    best = _newton(form, start, best)
    if best.gap <= 1e-2 * CERTIFIED or form.single:
        return best
    for _ in range(12):
        try:
            step = form.feasible(_quadratic_step(form, start))
        except cp.SolverError:
            break
        if not np.isfinite(step).all():
            break
        start = step
        best = min(best, _certify(form, start), key=lambda point: point.gap)
    return _newton(form, start, best)


def _newton(form: _Pieces, start: Array, best: _Point) -> _Point:
    for slack in 10.0 ** np.arange(-9, -1, 3 if form.single else 1):
        x = start
        for _ in range(8):
            stepped, moved = _newton_step(form, x, slack * min(1.0, best.value))
            x = form.feasible(stepped)
            if not np.isfinite(form.evaluate(x)[1]).all():
                break
            best = min(best, _certify(form, x), key=lambda point: point.gap)
            if moved < 1e-12:  # the next step would be lost in rounding
                break
        if best.gap <= 1e-3 * CERTIFIED * min(1.0, best.value):
            break
    return best


class _Local:
    """Values and gradients of the pieces and constraints at x.

    steep is the largest slope of a loss; scale (dim,) makes gradients of pieces, over scale and
    steep, about 1.
    """

    def __init__(self, form: _Pieces, x: Array):
        self.form, self.x = form, x
        self.values, self.slopes = form.evaluate(x)
        self.limits, self.limit_slopes = form.constraints(x)
        self.steep = float(
            expit(-form.task.beta * form.task.u @ x[: form.task.d]).max()
        )  # of the losses
        self.scale = np.maximum(np.abs(self.slopes).max((0, 1)), 1e-300) / self.steep
        if form.relative_eta:
            self.scale[-1] = 1 / max(x[-1], 1e-150)
        self.scale[: form.task.d] = (
            form.task.beta * np.abs(form.task.u).max()
        )  # where gradients vanish their scale does not

    def lagrangian_gradient(self, pi: Array, mu: Array) -> Array:
        return (
            self.form.cost()
            + np.einsum("i,ik,ikj->j", self.form.p, pi, self.slopes)
            + mu @ self.limit_slopes
        )

    def multipliers(self, slack: float) -> tuple[Array, Array]:
        """Multipliers of the pieces within `slack` of the largest, (n, K) with rows that sum to
        one, and of the constraints.

        By non-negative least squares on the stationarity of the Lagrangian.
        """
        p, scale = self.form.p, self.scale * self.steep
        group, piece = np.nonzero(self.values >= self.values.max(1, keepdims=True) - slack)
        held = np.flatnonzero(
            self.limits >= -slack * np.linalg.norm(self.limit_slopes / self.scale, axis=1)
        )
        columns = np.vstack(
            [(p[group, None] * self.slopes[group, piece] / scale).T, np.eye(len(p))[:, group]]
        )
        binding = np.vstack([(self.limit_slopes[held] / scale).T, np.zeros((len(p), len(held)))])
        target = np.append(-self.form.cost() / scale, np.ones(len(p)))
        solution = nnls(np.hstack([columns, binding]), target, maxiter=10_000)[0]
        pi, mu = np.zeros(self.values.shape), np.zeros(len(self.limits))
        pi[group, piece] = solution[: len(group)]
        pi = np.where(
            pi.sum(1, keepdims=True) > 0, pi, self.values == self.values.max(1, keepdims=True)
        )
        mu[held] = solution[len(group) :]
        return pi / pi.sum(1, keepdims=True), mu


def _certify(form: _Pieces, x: Array) -> _Point:
    """A feasible x with the smallest gap that multipliers found at several slacks certify.

    For all feasible x' the Lagrangian, convex in x', gives objective(x') >= sum p pi f(x) + price
    eta + mu g(x) + r.(x' - x) with r its gradient.
    """
    here = _Local(form, x)
    best = here.values.max(1)
    value = float(form.p @ best + form.cost() @ x)
    d, theta = form.task.d, x[: form.task.d] + form.task.ref
    reach = (
        min(form.eta_reach, value / form.price) if form.price > 0 else 0.0
    )  # all pieces are at least 0
    gap = np.inf
    for slack in (1e-15, 1e-13, 1e-11, 1e-9):
        pi, mu = here.multipliers(slack * min(1.0, value))
        if form.allowed(pi):
            rest = here.lagrangian_gradient(pi, mu)
            lost = (
                form.p @ (best - (pi * np.where(pi > 0, here.values, 0.0)).sum(1))
                - mu @ here.limits
            )
            drift = (
                rest[:d] @ theta
                + form.task.bound * np.linalg.norm(rest[:d])
                + np.abs(rest[d:]).sum() * reach
            )
            gap = min(gap, float(lost + drift))
    return _Point(x, value, max(0.0, gap))


def _hessian(form: _Pieces, x: Array, pi: Array, mu: Array) -> Array:
    """Hessian of the Lagrangian, by differences of its gradient."""
    dim = len(x)
    size = np.append(np.full(form.task.d, np.linalg.norm(x[: form.task.d])), x[form.task.d :])
    hessian = np.empty((dim, dim))
    for c in range(dim):
        h = np.eye(dim)[c] * max(1e-4 * size[c], 1e-8)
        ahead, behind = _Local(form, x + h), _Local(form, x - h)
        hessian[:, c] = (ahead.lagrangian_gradient(pi, mu) - behind.lagrangian_gradient(pi, mu)) / (
            2 * h[c]
        )
    return (hessian + hessian.T) / 2


def _quadratic_step(form: _Pieces, x: Array) -> Array:
    """A step of sequential quadratic programming, all pieces linearised: it finds the active ones
    where slacks do not.

    In units of the loss differences at x, so that small w is solved as well as large.
    """
    here = _Local(form, x)
    pi, mu = here.multipliers(1e-9 * min(1.0, float(here.values.max())))
    unit = max(1e-12, float(np.linalg.norm(x[: form.task.d])) * here.scale[0])
    curvature, axes = np.linalg.eigh(
        _hessian(form, x, pi, mu) / here.scale / here.scale[:, None] / here.steep
    )
    root = np.sqrt(np.maximum(curvature, 0.0))[:, None] * axes.T
    step, s = cp.Variable(len(x)), cp.Variable(len(form.p))
    heights = np.maximum(
        (here.values - here.values.max(1, keepdims=True)) / unit / here.steep, -1e6
    )
    lines = [
        s >= heights[:, k] + here.slopes[:, k] / here.scale / here.steep @ step
        for k in range(heights.shape[1])
    ]
    inside = here.limits / unit + here.limit_slopes / here.scale @ step <= 0
    objective = (
        form.cost() / here.scale / here.steep @ step
        + form.p @ s
        + unit / 2 * cp.sum_squares(root @ step)
    )
    _run(cp.CLARABEL, _TIGHT, cp.Minimize(objective), [*lines, inside])
    return x + unit * _number(step) / here.scale


def _newton_step(form: _Pieces, x: Array, slack: float) -> tuple[Array, float]:
    """One step of Newton's method with the pieces and constraints of positive multiplier held as
    equations.

    Unknown: the step, the multipliers of those pieces, the common value of each group's pieces, and
    the multipliers of the constraints. Least squares, since duplicated atoms leave multipliers
    free.
    """
    here = _Local(form, x)
    scale = here.scale
    pi, mu = here.multipliers(slack)
    group, piece = np.nonzero(pi)
    held = np.flatnonzero(mu)
    n, dim, k, j = len(form.p), len(x), len(group), len(held)
    pulls = here.slopes[group, piece] / scale / here.steep
    member = np.eye(n)[:, group]
    binds = here.limit_slopes[held] / scale
    curvature = _hessian(form, x, pi, mu) / scale / scale[:, None] / here.steep
    zero = np.zeros
    matrix = np.block(
        [
            [curvature, pulls.T * form.p[group], zero((dim, n)), binds.T],
            [pulls, zero((k, k)), -member.T, zero((k, j))],
            [zero((n, dim)), member, zero((n, n)), zero((n, j))],
            [binds, zero((j, k + n + j))],
        ]
    )
    lift = -here.values[group, piece] / here.steep
    target = np.concatenate(
        [-form.cost() / scale / here.steep, lift, np.ones(n), -here.limits[held]]
    )
    step = np.linalg.lstsq(matrix, target, rcond=1e-14)[0][:dim]
    return x + step / scale, float(np.abs(step).max())
