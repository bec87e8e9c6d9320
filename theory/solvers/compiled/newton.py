"""The loops of Newton's method on a function that a kernel evaluates: a convex one, and one with
negative curvature inside the ball."""

from collections.abc import Callable
from typing import Any

import numpy as np

from theory.solvers.compiled.arithmetic import dot, norm_of, norm_of_sum, solve_positive
from theory.solvers.compiled.ball import project, step_in_ball
from theory.solvers.compiled.compiling import piece

_ARMIJO = 1e-4
_BLIND = 1e-8  # decrement, relative to 1 + |F|, from which on values are too coarse to judge steps
_LAST = 1e-13  # decrement, after which one full step leaves only rounding
_SETTLED, _CLOSED = 1e-20, 1e-12  # decrement and gap that are as good as none
_MOST = 60


def minimiser(
    evaluate: Callable[..., tuple[float, float]],
) -> Callable[..., tuple[float, float, int]]:
    """A compiled minimise(problem, v, d, g, H, scratch) of one function.

    It minimises over v (k,), in place; with k = d + 1 the last of v stays positive. It returns the
    value and the gap at v, the latter infinite where the iteration broke off, and the steps that
    were taken.

    Args:
        evaluate: evaluate(problem, v, bent, g, H, scratch), compiled, fills the gradient g (k,)
            and, with `bent`, the lower triangle of the Hessian H (k, k); it returns the value and
            the gap that it certifies. `scratch` are arrays that it may write into.
    """

    @piece
    def minimise(
        problem: Any, v: Any, d: int, g: Any, H: Any, scratch: Any
    ) -> tuple[float, float, int]:
        k = v.shape[0]
        M = np.empty((k, k))
        x = np.empty(k)
        before = np.empty(k)
        bent = np.bool_(True)
        value, gap = evaluate(problem, v, bent, g, H, scratch)
        for steps in range(_MOST):
            if not np.isfinite(value):
                return value, np.inf, steps
            for i in range(k):
                x[i], before[i] = -g[i], v[i]
                for j in range(i + 1):
                    M[i, j] = H[i, j]
            if not solve_positive(M, x):
                return value, np.inf, steps
            slope, old = dot(g, x, k), value
            # far out all losses vanish, and the decrement with them, however far there is to go
            weight = min(abs(value), 1.0)
            if -slope <= _SETTLED * weight and gap <= _CLOSED:
                return value, gap, steps
            last = -slope <= _LAST * weight
            blind = -slope <= _BLIND * (1 + abs(value))
            size = 1.0
            if k > d and -x[d] > 0.9 * v[d]:  # leave a tenth of what must stay positive
                size = 0.9 * v[d] / -x[d]
                last = False
            while True:
                for i in range(k):
                    v[i] = before[i] + size * x[i]
                value, gap = evaluate(problem, v, not last, g, H, scratch)
                enough = old + _ARMIJO * size * slope + 2e-15 * (1 + abs(old))
                if value <= enough or (blind and np.isfinite(value)):
                    break
                size /= 2
                if size < 1e-6:
                    return value, np.inf, steps
            if last:
                if gap <= _CLOSED or -slope <= _SETTLED * weight:
                    return value, gap, steps + 1
                value, gap = evaluate(problem, v, bent, g, H, scratch)
        return value, gap, _MOST

    return minimise


def minimiser_in_ball(
    evaluate: Callable[..., tuple[float, float]],
) -> Callable[..., tuple[float, float, int]]:
    """As `theory.solvers.newton.minimise` with `convex=False`: a compiled minimise(problem, v,
    reference, bound, most, g, H, scratch) that keeps ||v + theta_ref|| <= bound and reflects
    negative curvature, in at most so many steps; `evaluate` and what it returns as `minimiser`."""

    @piece
    def minimise(
        problem: Any, v: Any, reference: Any, bound: float, most: int, g: Any, H: Any, scratch: Any
    ) -> tuple[float, float, int]:
        d = v.shape[0]
        M, x, before = np.empty((d, d)), np.empty(d), np.empty(d)
        bent = np.bool_(True)
        value, gap = evaluate(problem, v, bent, g, H, scratch)
        for steps in range(most):
            if not step_in_ball(v, reference, bound, g, H, M, x):
                return value, np.inf, steps
            slope, old = dot(g, x, d), value
            short = norm_of(x, d) <= 1e-14 * norm_of_sum(v, reference)
            final = -slope <= _SETTLED or short
            blind = -slope <= _BLIND * (1 + abs(old))
            rounding, size = 2e-15 * (1 + abs(old)), 1.0
            for k in range(d):
                before[k] = v[k]
            for halvings in range(31):
                for k in range(d):
                    v[k] = before[k] + size * x[k]
                project(v, reference, bound)
                value, gap = evaluate(problem, v, bent, g, H, scratch)
                finite = np.isfinite(value)
                if blind:
                    enough = finite and dot(g, x, d) <= -0.5 * slope
                else:
                    enough = value <= old + _ARMIJO * size * slope + rounding
                if enough or (final and value <= old + rounding) or halvings == 30:
                    break
                size /= 2
            moved = (blind and finite) or value <= old + rounding
            if not moved:
                for k in range(d):
                    v[k] = before[k]
                value, gap = evaluate(problem, v, bent, g, H, scratch)
            if final or not moved:
                return value, gap, steps + 1
        return value, gap, most

    return minimise
