"""A smooth or piecewise smooth objective on a ball: Newton's method from several starts, and a
certificate for the best end.

    found = minimise_from(objective, random_starts(rng, 8, d, bound), bound=2.0)

The objective need not be convex: an end is a local minimum at best, and the values that other
starts end at belong to the answer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from theory.checks import check_positive
from theory.policy import Array
from theory.solvers.newton import Domain, minimise

TOLERANCE = 1e-8  # first-order gain up to which a point counts as stationary

Objective = Callable[[Tensor], Tensor]  # w (S, d) -> (S,)


@dataclass(frozen=True)
class Solution:
    """The best of S starts.

    w: (d,). value: objective there. gap: largest gain to first order within the ball, which is 0 at
    a stationary point; it bounds value - minimum only where the objective is convex. converged: gap
    <= tolerance. ends: (S,) value that each start ended at.
    """

    w: Array
    value: float
    gap: float
    converged: bool
    ends: Array


def minimise_from(
    objective: Objective,
    starts: Tensor,
    *,
    bound: float,
    theta_ref: Array | None = None,
    tolerance: float = TOLERANCE,
) -> Solution:
    """Minimise an objective of w over ||w + theta_ref|| <= bound by Newton's method from each of
    the starts (S, d).

    Args:
        objective: (S, d) -> (S,), each value of its own row, with two derivatives almost
            everywhere.
        starts: float64; those outside the ball start from the nearest point of it.
        theta_ref: (d,), zero where not given.
    """
    domain, problem = make_ball(starts, bound, theta_ref), _Differentiated(objective)
    # a kink stops a start short of any step length: more halvings would only cost time
    w, _, _ = minimise(problem, domain.project(starts), domain, halvings=12, convex=False)
    value, gradient, _ = problem.derivatives(w)
    best = int(value.argmin())
    gap = float(domain.linear_gap(w, gradient)[best].clamp(min=0))
    return Solution(w[best].numpy(), float(value[best]), gap, gap <= tolerance, value.numpy())


def lowest(objective: Objective, points: Tensor, count: int) -> Tensor:
    """The `count` of the points (m, d) at which the objective is lowest, lowest first: starts that
    find narrow basins too."""
    return points[objective(points).argsort()[:count]]


def make_ball(points: Tensor, bound: float, theta_ref: Array | None) -> Domain:
    """The ball ||w + theta_ref|| <= bound for points w (..., d); theta_ref None is zero."""
    bound = check_positive("bound", bound, "It is B in ||w + theta_ref|| <= B.")
    return Domain(
        points.new_zeros(points.shape[-1]) if theta_ref is None else points.new_tensor(theta_ref),
        bound,
    )


@dataclass(frozen=True)
class _Differentiated:
    """The same objective for every start, with its derivatives by automatic differentiation."""

    objective: Objective

    def derivatives(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            w = v.detach().requires_grad_()
            value = self.objective(w)
            (gradient,) = torch.autograd.grad(value.sum(), w, create_graph=True)
            axes = torch.eye(w.shape[1], dtype=w.dtype)[:, None].expand(-1, *w.shape)
            (rows,) = torch.autograd.grad(gradient, w, axes, is_grads_batched=True)
        return value.detach(), gradient.detach(), rows.movedim(0, -1).clone()

    def select(self, index: Tensor) -> "_Differentiated":
        return self
