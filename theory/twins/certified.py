"""How a convex program becomes a certified answer: solve, polish, certify.

Each problem is stated in cvxpy and solved by Clarabel, then SCS. An interior-point solution has
about nine digits in the objective and half of them in theta, so it is polished by Newton's method
on the optimality conditions, the active pieces and constraints held as equations (`_polish`). What
decides is neither solver but `gap`, a bound on value - optimum from the Lagrangian: a solver whose
polished point is not certified has failed, which `failures` records and a `SolverFallback` warning
says.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.special import expit

from theory.twins.adversary import softplus

Array = NDArray[np.float64]
Run = Callable[[cp.Minimize, list[cp.Constraint]], None]
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


class Task:
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
        return softplus(-margins), -self.beta * expit(-margins)[:, None] * self.u


@dataclass(frozen=True)
class Pieces:
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

    task: Task
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


def zero_floor(w: Array) -> tuple[float, Array]:
    return 0.0, np.zeros_like(w)


@dataclass(frozen=True)
class _Point:
    x: Array
    value: float
    gap: float

    @property
    def certified(self) -> bool:
        return self.gap <= CERTIFIED * max(1.0, self.value)


def single(task: Task, functional: Callable[[Array], tuple[float, Array]]) -> Pieces:
    """A single piece: a convex functional of the losses that returns its value and its weights on
    them."""

    def evaluate(w: Array) -> tuple[Array, Array]:
        losses, gradients = task.loss_gradients(w)
        value, weights = functional(losses)
        return np.full((1, 1), value), (weights @ gradients)[None, None]

    return Pieces(task, np.ones(1), evaluate, single=True)


def number(variable: cp.Variable) -> Array:
    """The value of a variable of a solved problem."""
    return np.asarray(variable.value, dtype=float)


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


def solve(
    task: Task,
    attempt: Callable[[Run], Array],
    *forms: Pieces,
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


def _polish(form: Pieces, start: Array) -> _Point:
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


def _newton(form: Pieces, start: Array, best: _Point) -> _Point:
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

    def __init__(self, form: Pieces, x: Array):
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


def _certify(form: Pieces, x: Array) -> _Point:
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


def _hessian(form: Pieces, x: Array, pi: Array, mu: Array) -> Array:
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


def _quadratic_step(form: Pieces, x: Array) -> Array:
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
    return x + unit * number(step) / here.scale


def _newton_step(form: Pieces, x: Array, slack: float) -> tuple[Array, float]:
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
