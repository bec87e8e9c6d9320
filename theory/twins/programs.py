"""The estimators of the two papers once more, as convex programs: slow, one at a time, and
independent of the batched solvers.

    program = kldpo(u, p, radius=0.05, beta=1.0, bound=4.0)

Notation: u (n, d) signed feature differences, p (n,) probabilities summing to one, w = theta -
theta_ref, margins m = beta u w, l = log(1 + exp(-m)); theta ranges over ||theta||_2 <= bound.
"""

from dataclasses import replace

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, logsumexp

from theory.twins.adversary import (
    finite_dual,
    free_labels_worst_case,
    free_quadratic_worst_case,
    kl_divergence,
    kl_tilt,
    peaks,
    softplus,
)
from theory.twins.certified import Pieces, Program, Run, Task, number, single, solve, zero_floor
from theory.twins.collapse_radii import (
    free_collapse,
    kl_collapse,
    label_collapse,
    wasserstein_collapse,
)

Array = NDArray[np.float64]


def dpo(
    u: Array, p: Array, *, beta: float, bound: float, theta_ref: Array | None = None
) -> Program:
    """min sum_i p_i l(m_i)."""
    task = Task(u, beta, bound, theta_ref)

    def attempt(run: Run) -> Array:
        w = cp.Variable(task.d)
        run(cp.Minimize(p @ task.losses(w)), [task.ball(w)])
        return number(w)

    return solve(task, attempt, single(task, lambda losses: (float(p @ losses), p)))


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
    task = Task(u, beta, bound, theta_ref)

    def attempt(run: Run) -> Array:
        w, t, lam = cp.Variable(task.d), cp.Variable(), cp.Variable(nonneg=True)
        s, y = cp.Variable(len(p)), cp.Variable(len(p))
        cone = cp.ExpCone(s - t, lam * np.ones(len(p)), y)
        run(cp.Minimize(lam * radius + t), [task.ball(w), s >= task.losses(w), p @ y <= lam, cone])
        return number(w)

    def worst(losses: Array) -> tuple[float, Array]:
        q, value, _ = kl_tilt(losses, p, radius)
        return value, q

    def largest(x: Array) -> tuple[Array, Array]:
        losses, gradients = task.loss_gradients(x)
        return losses[None], gradients[None]

    def allowed(multipliers: Array) -> bool:
        return kl_divergence(multipliers[0], p) <= radius * (1 + 1e-9)

    minimax = Pieces(task, np.ones(1), largest, allowed=allowed)
    found = solve(
        task,
        attempt,
        single(task, worst),
        minimax,
        collapse=(radius, lambda: kl_collapse(u, p)),
    )
    if found.status == "collapsed":
        return found
    value, dual = kl_tilt(softplus(-beta * u @ (found.theta - task.origin)), p, radius)[1:]
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
    task = Task(u, beta, bound, theta_ref)

    def attempt(run: Run) -> Array:
        w = cp.Variable(task.d)
        run(
            cp.Minimize(temperature * cp.log_sum_exp(task.losses(w) / temperature + np.log(p))),
            [task.ball(w)],
        )
        return number(w)

    def tilted(losses: Array) -> tuple[float, Array]:
        scores = losses / temperature + np.log(p)
        return temperature * float(logsumexp(scores)), np.exp(scores - logsumexp(scores))

    return solve(task, attempt, single(task, tilted))


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
    task = Task(u, beta, bound, theta_ref)
    live = p > 0
    cost = distance[live] ** power
    budget = radius**power

    def attempt(run: Run) -> Array:
        w, eta = cp.Variable(task.d), cp.Variable(nonneg=True)
        t, s = cp.Variable(len(u)), cp.Variable(len(cost))
        moves = [s[i] >= t - eta * row for i, row in enumerate(cost)]
        run(cp.Minimize(eta * budget + p[live] @ s), [task.ball(w), t >= task.losses(w), *moves])
        return number(w)

    def best_eta(w: Array) -> float:
        return finite_dual(task.loss_gradients(w)[0], p[live], cost, budget)

    def pieces(x: Array) -> tuple[Array, Array]:
        losses, gradients = task.loss_gradients(x[:-1])
        slopes = np.broadcast_to(gradients, (*cost.shape, task.d))
        return losses - x[-1] * cost, np.concatenate([slopes, -cost[:, :, None]], axis=-1)

    # beyond this eta no move pays: l is 1-Lipschitz in m and ||w|| <= 2 bound
    gains = 2 * bound * beta * np.linalg.norm(u[live][:, None] - u[None], axis=-1)
    steepest = float(np.max(gains[cost > 0] / cost[cost > 0], initial=1.0))
    found = Pieces(
        task,
        p[live],
        pieces,
        price=budget,
        eta_reach=steepest,
        eta_floor=zero_floor,
        best_eta=best_eta,
    )
    return solve(
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
    task = Task(u, beta, bound, theta_ref, norm_counts=True)
    if power == 2:
        return _free_quadratic(task, u, p, radius)
    return (
        _free_norm(task, p, radius)
        if label_cost is None
        else _free_labels(task, p, radius, label_cost)
    )


def _free_norm(task: "Task", p: Array, radius: float) -> Program:
    """min sum_i p_i l(m_i) + radius beta ||w||; eta = beta ||w||."""

    def attempt(run: Run) -> Array:
        w = cp.Variable(task.d)
        run(cp.Minimize(p @ task.losses(w) + radius * task.beta * cp.norm(w)), [task.ball(w)])
        return number(w)

    def penalised(w: Array) -> tuple[Array, Array]:
        losses, gradients = task.loss_gradients(w)
        norm = float(np.linalg.norm(w))
        value = p @ losses + radius * task.beta * norm
        return (
            np.full((1, 1), value),
            (p @ gradients + radius * task.beta * w / max(norm, 1e-300))[None, None],
        )

    found = solve(
        task,
        attempt,
        Pieces(task, np.ones(1), penalised, single=True),
        collapse=(radius, lambda: free_collapse(task.u, p, 1)),
    )
    return replace(found, dual=task.beta * float(np.linalg.norm(found.theta - task.origin)))


def _free_labels(task: "Task", p: Array, radius: float, kappa: float) -> Program:
    """min eta radius + sum_i p_i s_i with s_i >= l(m_i), s_i >= l(-m_i) - kappa eta, eta >= beta
    ||w||.

    Shafieezadeh-Abadeh, Mohajerin Esfahani and Kuhn (2015), Theorem 1.
    """

    def attempt(run: Run) -> Array:
        w, eta, s = cp.Variable(task.d), cp.Variable(), cp.Variable(len(p))
        stay, flip = s >= task.losses(w), s >= task.losses(-w) - kappa * eta
        run(
            cp.Minimize(eta * radius + p @ s),
            [task.ball(w), stay, flip, task.beta * cp.norm(w) <= eta],
        )
        return number(w)

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
    found = Pieces(
        task, p, pieces, price=radius, eta_reach=reach, eta_floor=floor, best_eta=best_eta
    )
    return solve(task, attempt, found, collapse=(radius, lambda: label_collapse(task.u, p, kappa)))


def _free_quadratic(task: "Task", u: Array, p: Array, radius: float) -> Program:
    """min eta radius² + sum_i p_i max_q [-q m_i + H(q) + q² b²/(4 eta)], b = beta ||w||, by
    exchange.

    With eta = k/(2 radius), each q gives a constraint linear in w and r >= b²/(2 k); the q that
    violates most is added for each pair, both local maxima, until none does by more than 1e-7: the
    polish then works with the maximisers themselves.
    """
    n = len(p)

    def attempt(run: Run) -> Array:
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
            x = number(w)
            tops, values = peaks(task.beta * task.u @ x, radius * float(number(r)))
            if np.max(values.max(1) - number(s)) < 1e-7:
                break
            cuts += [tops[:, 0], tops[:, 1]]
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
        q, values = peaks(task.beta * task.u @ w, radius * square / (2 * k))
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
    found = Pieces(
        task,
        p,
        pieces,
        price=radius / 2,
        eta_reach=reach,
        eta_floor=zero_floor,
        best_eta=best_k,
        relative_eta=True,
    )
    reduced = Pieces(
        task, np.ones(1), at_best_eta, single=True
    )  # smooth in w where the worst q is unique; surer near w = 0
    done = solve(
        task, attempt, found, reduced, collapse=(radius, lambda: free_collapse(task.u, p, 2))
    )
    if done.status == "collapsed":
        return done
    w = done.theta - task.origin
    eta = free_quadratic_worst_case(
        task.beta * (u @ w), p, task.beta * float(np.linalg.norm(w)), radius
    )[0]
    return replace(done, dual=eta)
