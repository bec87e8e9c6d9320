"""Newton's method on the parameter ball, for many small smooth problems at once.

Minimises F(w, extra) over ||w + theta_ref|| <= B, with at most one extra positive variable (the
multiplier of an ambiguity set). Each step minimises the exact quadratic model over the ball itself,
so that the boundary costs no accuracy and convergence is quadratic there too; a backtracking line
search on F makes it global.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_ARMIJO = 1e-4
_SETTLED = 1e-20  # squared Newton decrement below which one last full step ends the iteration
_BLIND = 1e-8  # below this decrement, relative to 1 + |F|, values are too coarse and slopes decide


class Smooth(Protocol):
    """A batch of R smooth functions of v = (w, extra)."""

    def derivatives(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value (R,), gradient (R, k) and Hessian (R, k, k) at v (R, k)."""
        ...

    def select(self, index: Tensor) -> "Smooth":
        """The functions named by a mask."""
        ...


@dataclass(frozen=True)
class Domain:
    """The feasible set ||w + theta_ref|| <= bound, on the first d = len(theta_ref) coordinates."""

    theta_ref: Tensor
    bound: float

    @property
    def dimension(self) -> int:
        return self.theta_ref.shape[0]

    def project(self, w: Tensor) -> Tensor:
        """Nearest point of the ball, for w of shape (..., d)."""
        theta = w + self.theta_ref
        norm = theta.norm(dim=-1, keepdim=True)
        return torch.where(norm > self.bound, theta * (self.bound / norm) - self.theta_ref, w)

    def linear_gap(self, w: Tensor, gradient: Tensor) -> Tensor:
        """max over the ball of g.(w - w'), which bounds F(w) - min F for convex F with
        (sub)gradient g at w (Frank–Wolfe gap)."""
        return ((w + self.theta_ref) * gradient).sum(-1) + self.bound * gradient.norm(dim=-1)


def minimise(
    function: Smooth,
    start: Tensor,
    domain: Domain,
    *,
    max_steps: int = 60,
    halvings: int = 30,
    convex: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise a batch of functions from `start` (R, k); returns v (R, k), settled (R,) and the
    steps taken (R,).

    `settled` says that the iteration ended by itself; whether the point is a minimiser is for the
    caller's certificate to say. With `convex=False` negative curvature is reflected, and the point
    is a local minimiser.
    """
    result = start.clone()
    steps = torch.zeros(start.shape[0], dtype=torch.int64, device=start.device)
    settled = torch.zeros(start.shape[0], dtype=torch.bool, device=start.device)
    active = torch.arange(start.shape[0], device=start.device)
    v = start.clone()
    value, gradient, hessian = function.derivatives(v)
    for _ in range(max_steps):
        step = _newton_step(v, gradient, hessian, domain, convex)
        slope = (gradient * step).sum(-1)
        # on the sphere rounding of theta alone leaves a slope, so that a step in the last digits
        # ends it as well
        reach = (v[:, : domain.dimension] + domain.theta_ref).norm(dim=-1)
        final = (-slope <= _SETTLED) | (step[:, : domain.dimension].norm(dim=-1) <= 1e-14 * reach)
        step = step * _fraction_to_boundary(v, step, domain.dimension)[:, None]
        v_new, value_new, gradient_new, hessian_new, moved = _line_search(
            function, v, value, slope, step, final, domain, halvings
        )
        steps[active] += 1
        result[active] = v_new
        ended = final | ~moved
        settled[active] = ended
        keep = ~ended
        if not keep.any():
            break
        if not keep.all():
            function, active = function.select(keep), active[keep]
        v, value = v_new[keep], value_new[keep]
        gradient, hessian = gradient_new[keep], hessian_new[keep]
    return result, settled, steps


def _line_search(
    function: Smooth,
    v: Tensor,
    value: Tensor,
    slope: Tensor,
    step: Tensor,
    final: Tensor,
    domain: Domain,
    halvings: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Backtrack from the full step; the derivatives at the accepted point come with it, as the full
    step usually is.

    A `final` step is too short for slopes to judge it, and is taken unless the value rises.
    """
    size = torch.ones_like(value)
    # where the decrease drowns in rounding the slope decides: it must not turn more positive than
    # it was negative
    blind = -slope <= _BLIND * (1 + value.abs())
    rounding = 2e-15 * (1 + value.abs())
    v_new = _into_ball(v + step, domain)
    value_new, gradient_new, hessian_new = function.derivatives(v_new)
    for _ in range(halvings):
        lower = value_new <= value + _ARMIJO * size * slope + rounding
        flatter = torch.isfinite(value_new) & ((gradient_new * step).sum(-1) <= -0.5 * slope)
        poor = ~torch.where(blind, flatter, lower) & ~(final & (value_new <= value + rounding))
        if not poor.any():
            break
        size = torch.where(poor, size / 2, size)
        v_new[poor] = _into_ball(v[poor] + size[poor, None] * step[poor], domain)
        value_new[poor], gradient_new[poor], hessian_new[poor] = function.select(poor).derivatives(
            v_new[poor]
        )
    moved = blind & torch.isfinite(value_new) | (value_new <= value + rounding)
    v_new = torch.where(moved[:, None], v_new, v)
    return v_new, value_new, gradient_new, hessian_new, moved


def _into_ball(v: Tensor, domain: Domain) -> Tensor:
    """Remove what rounding left outside the ball."""
    d = domain.dimension
    return torch.cat([domain.project(v[:, :d]), v[:, d:]], -1)


def _fraction_to_boundary(v: Tensor, step: Tensor, d: int) -> Tensor:
    """Largest fraction of the step, at most 1, that leaves a tenth of the positive extra
    variable."""
    if v.shape[1] == d:
        return torch.ones_like(v[:, 0])
    shrink = -step[:, d] / v[:, d]
    return torch.where(shrink > 0.9, 0.9 / shrink.clamp(min=0.9), 1.0)


def _newton_step(
    v: Tensor, gradient: Tensor, hessian: Tensor, domain: Domain, convex: bool
) -> Tensor:
    """argmin of g.s + s'Hs/2 subject to ||w + s_w + theta_ref|| <= B."""
    d = domain.dimension
    g, H = gradient[:, :d], hessian[:, :d, :d]
    if v.shape[1] > d:  # the extra variable is free: eliminate it (Schur complement)
        corner, cross = hessian[:, d, d].clamp(min=1e-300), hessian[:, :d, d]
        g = g - cross * (gradient[:, d] / corner)[:, None]
        H = H - cross[:, :, None] * (cross / corner[:, None])[:, None, :]
    s = _step_in_ball(v[:, :d], g, H, domain, convex)
    if v.shape[1] > d:
        extra = -(gradient[:, d] + (cross * s).sum(-1)) / corner
        s = torch.cat([s, extra[:, None]], -1)
    return s


def _step_in_ball(w: Tensor, g: Tensor, H: Tensor, domain: Domain, convex: bool) -> Tensor:
    theta = w + domain.theta_ref
    if convex:
        # a Cholesky solve for all; those that are singular or leave the ball are solved in the
        # eigenbasis
        factor, info = torch.linalg.cholesky_ex(H)
        diagonal = torch.diagonal(factor, dim1=-2, dim2=-1).abs()
        sound = (info == 0) & (diagonal.amin(-1) > 1e-7 * diagonal.amax(-1))
        factor = torch.where(
            sound[:, None, None], factor, torch.eye(H.shape[-1], dtype=H.dtype, device=H.device)
        )
        s = -torch.cholesky_solve(g[:, :, None], factor)[:, :, 0]
        hard = ~sound | ((theta + s).norm(dim=-1) > domain.bound)
        if not hard.any():
            return s
        s[hard] = _step_in_eigenbasis(theta[hard], g[hard], H[hard], domain.bound)
        return s
    return _step_in_eigenbasis(theta, g, H, domain.bound)


def _step_in_eigenbasis(theta: Tensor, g: Tensor, H: Tensor, bound: float) -> Tensor:
    """Moré–Sorensen: (|H| + mu) s = -(g + mu theta) with the mu >= 0 that puts theta + s on the
    sphere, or mu = 0 inside it."""
    sound = (torch.isfinite(H).all(-1) & torch.isfinite(g)).all(
        -1
    )  # where derivatives overflowed, stay: the certificate tells
    H = torch.where(sound[:, None, None], H, torch.eye(H.shape[-1], dtype=H.dtype, device=H.device))
    g = torch.where(sound[:, None], g, 0.0)
    eigenvalues, basis = torch.linalg.eigh(H)
    e = eigenvalues.abs()
    top = e.amax(-1, keepdim=True).clamp(min=1e-300)
    e = e.clamp(min=1e-14 * top)
    t = (basis.mT @ theta[:, :, None])[:, :, 0]
    slope = (basis.mT @ g[:, :, None])[:, :, 0]
    # directions that no pair sees: rounding there must not be divided by a curvature of zero
    slope = torch.where((e <= 1e-13 * top) & (slope.abs() <= 1e-13), 0.0, slope)
    h = e * t - slope
    # mu lies to the right of this bound, and Newton on 1/||x(mu)|| rises to it monotonically from
    # there
    mu = (h.abs() / bound - e).amax(-1).clamp(min=0)
    for _ in range(60):
        x = h / (e + mu[:, None])
        norm = x.norm(dim=-1)
        outside = norm > bound * (1 + 1e-15)
        if not outside.any():
            break
        derivative = (x**2 / (e + mu[:, None])).sum(-1) / norm**3
        raise_by = (1 / bound - 1 / norm) / derivative
        mu = torch.where(outside, mu + raise_by, mu)
    step = h / (e + mu[:, None]) - t
    # inside the ball the step is computed from the slope itself, which keeps its relative accuracy
    # when it is small
    inner = -(slope + mu[:, None] * t) / (e + mu[:, None])
    step = torch.where((mu == 0)[:, None], inner, step)
    return (basis @ step[:, :, None])[:, :, 0]
