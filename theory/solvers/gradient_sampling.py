"""Minimise a function with kinks over a ball by gradient sampling, with a certificate that holds at
a kink.

At a kink that points upwards, such as the minimum of |x|, no gradient is small and Newton's method
stalls. What vanishes there is the shortest convex combination of the gradients nearby, up to the
outward normal on the boundary of the ball. Each step samples gradients within a radius, moves
against their shortest combination, and shrinks the radius where there is nothing left to gain.
Burke, Lewis and Overton, SIAM J. Optim. 15 (2005), with the normal cone of the ball added to the
hull.
"""

from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from theory.policy import Array
from theory.solvers.multistart import Objective, Solution, make_ball, minimise_from
from theory.solvers.newton import Domain

RADII = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of the neighbourhoods in which gradients are sampled
_STILL = 0.1  # slope, over the radius, at which a radius is done
_ARMIJO = 1e-5
_TRIES = 3  # sets of points without a lower end after which a radius is given up
_SIZES = (
    4.0 ** torch.arange(1, -12, -1, dtype=torch.float64)[:, None]
)  # of a step, over the smaller of slope and one


def descend(
    objective: Objective,
    start: Tensor,
    rng: np.random.Generator,
    *,
    bound: float,
    theta_ref: Array | None = None,
    max_steps: int = 1000,
) -> Solution:
    """Descend from start (d,), or the nearest point of the ball ||w + theta_ref|| <= bound, to a
    stationary point.

    The solution's gap is what the shortest combination of gradients sampled within the last radius
    says could be gained in the ball, to first order; it has converged if that combination, with the
    outward normal, is shorter than a tenth of that radius.

    Args:
        objective: (S, d) -> (S,), each value of its own row; locally Lipschitz, differentiable
            almost everywhere.
        rng: for the points at which gradients are sampled.
        theta_ref: (d,), zero where not given.
        max_steps: sets of gradients that are sampled at most.
    """
    domain = make_ball(start, bound, theta_ref)
    w, d = domain.project(start), len(start)
    value, steps = float(objective(w[None])), 0
    for radius in RADII:
        tries = 0
        while tries < _TRIES:
            points = torch.cat([w[None], w + radius * _in_unit_ball(rng, 2 * d, d)])
            combination, direction = _shortest(_gradients(objective, points), domain, w)
            slope = float(direction.norm())
            steps += 1
            if slope <= _STILL * radius or steps >= max_steps:
                break
            size = max(min(1.0, slope), radius) / slope * _SIZES
            ends = domain.project(w - size * direction)
            values = objective(ends)
            lower = values < value - _ARMIJO * size[:, 0] * slope**2
            if lower.any():
                best = int(values.where(lower, torch.inf).argmin())
                w, value, tries = ends[best], float(values[best]), 0
            else:
                tries += 1
    gap = float(domain.linear_gap(w, combination).clamp(min=0))
    return Solution(w.numpy(), value, gap, slope <= _STILL * RADII[-1], np.array([value]))


def minimise_with_kinks(
    objective: Objective,
    starts: Tensor,
    rng: np.random.Generator,
    *,
    bound: float,
    theta_ref: Array | None = None,
) -> Solution:
    """Newton's method from each of the starts (S, d), and gradient sampling from the best end if
    that is at a kink."""
    found = minimise_from(objective, starts, bound=bound, theta_ref=theta_ref)
    if found.converged:
        return found
    settled = descend(objective, torch.from_numpy(found.w), rng, bound=bound, theta_ref=theta_ref)
    return replace(settled, ends=found.ends)


def _gradients(objective: Objective, points: Tensor) -> Tensor:
    w = points.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(objective(w).sum(), w)
    return gradient


def _shortest(gradients: Tensor, domain: Domain, w: Tensor) -> tuple[Tensor, Tensor]:
    """The convex combination g of gradients (m, d), and g + nu * normal with the nu >= 0 that make
    the second shortest.

    The normal counts on the boundary only. Non-negative least squares, with a heavy row that makes
    the weights sum to one.
    """
    theta = w + domain.theta_ref
    g = gradients.numpy()
    heavy = 1e3 * max(float(np.abs(g).max()), 1e-300)
    matrix = np.vstack([g.T, np.full(len(g), heavy)])
    if theta.norm() >= domain.bound * (1 - 1e-9):
        matrix = np.hstack([matrix, np.append(theta.numpy() / domain.bound, 0.0)[:, None]])
    weights, _ = nnls(matrix, np.append(np.zeros(g.shape[1]), heavy))
    weights /= weights[: len(g)].sum()
    return torch.from_numpy(weights[: len(g)] @ g), torch.from_numpy(matrix[:-1] @ weights)


def _in_unit_ball(rng: np.random.Generator, count: int, dimension: int) -> Tensor:
    v: Array = rng.standard_normal((count, dimension))
    return torch.from_numpy(
        v * rng.random((count, 1)) ** (1 / dimension) / np.linalg.norm(v, axis=1, keepdims=True)
    )
