"""A primal–dual interior-point method for Wasserstein objectives, batched over replicates.

    minimise  eta r + sum_i p_i max_j f_ij(w, eta)     over ||w + theta_ref|| <= B and eta in a
    cone,

with every f_ij jointly convex. At the optimum some atoms are split between targets (the maximum has
a kink there), which is where Newton's method stops working; here s_i >= f_ij are constraints whose
multipliers z_ij are the transport plan. The s_i are eliminated by hand, so that each step solves a
(d+1)-dimensional system whatever the number of atoms.

The direction is Mehrotra's predictor and corrector: Nocedal and Wright, Numerical Optimization,
sections 14.2 and 19.3.

Near the end z/t is some 1e12, and the last digits of f decide how an atom is split: the forces on v
then balance to 1e-10 only, and differently on every processor, above all where a tied piece holds
no mass (no strict complementarity). `_settle` finishes in
a form without stiffness: which pieces are tied is known by then, and Newton's method on these ties
is well conditioned.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from theory.solvers.newton import Domain, Smooth

_TINY = 1e-300
_LAST_STEPS = 8  # of `_settle`: Newton's method from this near
_MOST = (
    10**7
    # numbers in the gradients of the ties: with more of them the memory is missed sooner than the
    # last digits
)
_RANK = 1e-12  # of the scaled equations of the ties: below it ties repeat each other
NOTHING = 1e-30  # weight of an atom that has none


class Pieces(Protocol):
    """The functions f_ji of R problems with n atoms and J pieces each, evaluated at v = (w, eta);
    arrays are (R, J, n)."""

    p: Tensor  # (R, n) weights, positive

    def move(self, v: Tensor) -> Tensor:
        """Go to v (R, d+1) and return f (R, J, n)."""
        ...

    def gradient(self, c: Tensor) -> Tensor:
        """sum_ji c_ji G_ji, with G_ji the gradient of f_ji: (R, J, n) -> (R, d+1)."""
        ...

    def directional(self, dv: Tensor) -> Tensor:
        """G_ji.dv: (R, d+1) -> (R, J, n)."""
        ...

    def curvature(self, z: Tensor, stiffness: Tensor) -> Tensor:
        """sum z_ji Hess f_ji + sum_ji stiffness_ji (G_ji - G_i)(G_ji - G_i)', G_i the
        stiffness-weighted mean: (R, d+1, d+1)."""
        ...

    def cone(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value (R,), gradient (R, d+1) and Hessian (R, d+1, d+1) of the constraint g(w, eta) <= 0
        on eta."""
        ...

    def select(self, index: Tensor) -> "Pieces":
        """The problems named by a mask."""
        ...


# --------------------------------------------------------------------------------------- the method
@dataclass(frozen=True)
class Interior:
    """v = (w, eta) (R, d+1), the multipliers z (R, J, n) that sum to p over the pieces, and the
    steps taken (R,)."""

    v: Tensor
    z: Tensor
    steps: Tensor


def solve(
    pieces: Pieces,
    price: Tensor,
    eta: Tensor,
    domain: Domain,
    *,
    smooth: Smooth | None = None,
    pinned: bool = False,
    tolerance: float = 1e-13,
    max_steps: int = 100,
    settled: bool = False,
) -> Interior:
    """Minimise eta*price + sum_i p_i max_j f_ij from w = 0 and the given eta > 0, until the mean
    complementarity is `tolerance`.

    price, eta: (R,); `smooth` is a smooth convex function of v to add; `pinned` holds eta where it
    starts; `settled` finishes by `_settle`, one problem after the other: for the few that need it,
    without `smooth`. The central path is weighted, z_ij t_ij = mu p_i, so that neither the number
    of atoms nor small weights change its course. The caller turns the point and the plan into a
    certificate of its own.
    """
    state = _start(pieces, eta, domain)
    every, every_price = pieces, price
    out = _State(*(getattr(state, item.name).clone() for item in fields(state)))
    steps = torch.zeros(price.shape[0], dtype=torch.int64, device=price.device)
    active = torch.arange(price.shape[0], device=price.device)
    best, stalled = torch.full_like(price, torch.inf), torch.zeros_like(steps)
    lowest = best.clone()
    f = pieces.move(state.v)
    for _ in range(max_steps + 1):
        system = _System(pieces, state, f, price, domain, smooth, pinned)
        worst = system.imbalance()
        improved = worst < best
        for name in _KEPT if settled else ("v", "z"):
            getattr(out, name)[active[improved]] = getattr(state, name)[improved]
        stalled = torch.where(worst < 0.9 * best, 0, stalled + 1)
        best = torch.minimum(best, worst)
        lowest[active] = best
        keep = (worst > tolerance) & ((stalled < 4) | ((best > 1e-9) & (stalled < 40)))
        if not keep.any():
            break
        if not keep.all():
            pieces, active, price, state = (
                pieces.select(keep),
                active[keep],
                price[keep],
                state.select(keep),
            )
            smooth = None if smooth is None else smooth.select(keep)
            best, stalled, worst = best[keep], stalled[keep], worst[keep]
            system = _System(pieces, state, pieces.move(state.v), price, domain, smooth, pinned)
        system.factorise()
        zero = torch.zeros_like(price)
        guess = system.direction(torch.zeros_like(state.t), zero, zero)
        # below the floor rounding in the matrix would cost the balance of forces more than a
        # smaller mu gains
        aim = (((1 - guess.reach) ** 3).clamp(min=1e-6) * system.mu).clamp(min=0.1 * tolerance)
        # the corrector can cycle: where nothing has improved lately, plain steps towards the
        # central path
        calm = stalled >= 3
        aim = torch.where(calm, aim.maximum(0.3 * system.mu), aim)
        trust = torch.where(calm, 0.0, 1.0)
        step = system.direction(
            aim[:, None, None] * pieces.p[:, None, :]
            - trust[:, None, None] * guess.change.z * guess.change.t,
            aim - trust * guess.change.z_ball * guess.change.t_ball,
            aim - trust * guess.change.z_cone * guess.change.t_cone,
        )
        state, f = _move(system, step, worst, domain)
        steps[active] += 1
    if settled:
        for index in torch.arange(len(steps), device=steps.device)[:, None]:
            at, reached = out.select(index), float(lowest[index])
            v, z, extra = _settle(
                every.select(index), at, every_price[index], domain, pinned, reached
            )
            out.v[index], out.z[index] = v, z
            steps[index] += extra
    return Interior(out.v, out.z, steps)


def _move(
    system: "_System", step: "_Direction", worst: Tensor, domain: Domain
) -> tuple["_State", Tensor]:
    """Take the step, shortened where the curvature of the pieces would leave a residual far above
    the imbalance so far."""
    pieces, size = system.pieces, 0.995 * step.reach
    for _ in range(8):
        new = system.at.advance(step.change, size)
        f = pieces.move(new.v)
        new = new.absorb(f, pieces.p, _domain(new.v, domain)[0], pieces.cone(new.v)[0])
        curved = _residual(f, new, pieces.p) > 10 * worst
        if not curved.any():
            break
        size = torch.where(curved, size / 4, size)
    return new, f


def _residual(f: Tensor, state: "_State", p: Tensor) -> Tensor:
    """Largest p_i |f_ji + t_ji - s_i|, (R,)."""
    return torch.matmul((f + state.t - state.s[:, None, :]).abs(), p[:, :, None]).amax((1, 2))


@dataclass(frozen=True)
class _State:
    """Point v (R, d+1), s (R, n), slacks t and multipliers z of the pieces (R, J, n), of the ball
    and of the cone (R,).

    Each constraint g <= 0 is g + t = 0 with a slack t > 0 of its own: curvature moves the residual
    g + t, never the slack.
    """

    v: Tensor
    s: Tensor
    t: Tensor
    z: Tensor
    t_ball: Tensor
    z_ball: Tensor
    t_cone: Tensor
    z_cone: Tensor

    def select(self, keep: Tensor) -> "_State":
        return _State(*(getattr(self, item.name)[keep] for item in fields(self)))

    def advance(self, change: "_State", size: Tensor) -> "_State":
        moved = []
        for item in fields(self):
            x = getattr(self, item.name)
            moved.append(x + size.reshape(-1, *[1] * (x.ndim - 1)) * getattr(change, item.name))
        return _State(*moved)

    def absorb(self, f: Tensor, p: Tensor, domain: Tensor, cone: Tensor) -> "_State":
        """The residual that all pieces of an atom share is taken up by s_i; slacks that are wide
        take up their own.

        f, ball and cone are the values of the constraints at v.
        """
        s = self.s + (self.z * (f + self.t - self.s[:, None, :])).sum(1) / p
        true = s[:, None, :] - f
        return replace(
            self,
            s=s,
            t=torch.where(true > 0.5 * self.t, true, self.t),
            t_ball=torch.where(-domain > 0.5 * self.t_ball, -domain, self.t_ball),
            t_cone=torch.where(-cone > 0.5 * self.t_cone, -cone, self.t_cone),
        )


_KEPT = (
    "v",
    "z",
    "t",
    "z_ball",
    "t_ball",
    "z_cone",
    "t_cone",
)  # of the best state, where it is to be settled


@dataclass(frozen=True)
class _Direction:
    """A change of the state, and the largest step in (0, 1] that keeps slacks, multipliers and eta
    non-negative."""

    change: _State
    reach: Tensor


def _start(pieces: Pieces, eta: Tensor, domain: Domain) -> _State:
    """w = 0, with all products z t equal to mu p_i."""
    middle = getattr(pieces, "middle", torch.empty_like(eta[:, None])[:, :0])
    v = torch.cat([torch.zeros_like(eta)[:, None].expand(-1, domain.dimension), middle], 1)
    v = torch.cat([v, eta[:, None]], 1)
    f = pieces.move(v)
    # atoms without weight get so wide a slack that they never matter, and no mask is needed
    s = f.amax(1) + torch.where(pieces.p > 2 * NOTHING, 0.05, 1e6)
    t = s[:, None, :] - f
    z = pieces.p[:, None, :] / (t * (1 / t).sum(1, keepdim=True))
    mu = (z * t).sum((1, 2)) / f.shape[1]
    t_ball, t_cone = -_domain(v, domain)[0], -pieces.cone(v)[0]
    return _State(v, s, t, z, t_ball, mu / t_ball, t_cone, mu / t_cone)


class _System:
    """The optimality conditions at one state, and Newton steps towards them."""

    def __init__(
        self,
        pieces: Pieces,
        state: _State,
        f: Tensor,
        price: Tensor,
        domain: Domain,
        smooth: Smooth | None,
        pinned: bool,
    ) -> None:
        self.pieces, self.at, self.pinned = pieces, state, pinned
        self.d = domain.dimension
        ball_value, self.ball_slope = _domain(state.v, domain)
        cone_value, self.cone_slope, self.cone_bend = pieces.cone(state.v)
        self.f, self.miss = f, f + state.t - state.s[:, None, :]
        self.miss_ball, self.miss_cone = ball_value + state.t_ball, cone_value + state.t_cone
        self.cost, self.bend = _smooth_part(smooth, state.v)
        self.cost[:, -1] += price
        products = (
            (state.z * state.t).sum((1, 2))
            + state.z_ball * state.t_ball
            + state.z_cone * state.t_cone
        )
        self.mu = products / (f.shape[1] + 2)

    def imbalance(self) -> Tensor:
        """Largest of complementarity, weighted residuals of the pieces, and forces that do not
        balance, (R,)."""
        at = self.at
        forces = self.cost + self.pieces.gradient(at.z) + at.z_ball[:, None] * self.ball_slope
        forces = forces + at.z_cone[:, None] * self.cone_slope
        if self.pinned:
            forces[:, -1] = 0
        residual = _residual(self.f, self.at, self.pieces.p)
        return self.mu.maximum(residual).maximum(forces.abs().amax(-1))

    def factorise(self) -> None:
        """Assemble and factor the (d+1)-dimensional matrix that is left when s and the multipliers
        are eliminated."""
        at = self.at
        self.stiffness = at.z / at.t
        self.leaving = self.stiffness.sum(1).clamp(min=_TINY)
        matrix = (
            self.pieces.curvature(at.z, self.stiffness)
            + self.bend
            + at.z_cone[:, None, None] * self.cone_bend
        )
        matrix = (
            matrix
            + _outer(self.cone_slope, at.z_cone / at.t_cone)
            + _outer(self.ball_slope, at.z_ball / at.t_ball)
        )
        diagonal = torch.arange(self.d, device=matrix.device)
        matrix[:, diagonal, diagonal] += 2 * at.z_ball[:, None]
        if self.pinned:
            matrix[:, -1, :] = 0
            matrix[:, :, -1] = 0
            matrix[:, -1, -1] = 1
        self.factor, self.scale = _factorise(matrix)

    def direction(self, aim: Tensor, aim_ball: Tensor, aim_cone: Tensor) -> _Direction:
        """Newton step towards z t = aim and vanishing residuals."""
        at, stiffness = self.at, self.stiffness
        stiff_ball, stiff_cone = at.z_ball / at.t_ball, at.z_cone / at.t_cone
        push = aim / at.t + stiffness * self.miss
        push_ball = aim_ball / at.t_ball + stiff_ball * self.miss_ball
        push_cone = aim_cone / at.t_cone + stiff_cone * self.miss_cone
        shift = (push.sum(1) - self.pieces.p) / self.leaving
        rhs = self.cost + self.pieces.gradient(push - stiffness * shift[:, None, :])
        rhs = rhs + self.ball_slope * push_ball[:, None] + self.cone_slope * push_cone[:, None]
        if self.pinned:
            rhs[:, -1] = 0
        dv = (
            -torch.cholesky_solve((rhs * self.scale)[:, :, None], self.factor)[:, :, 0] * self.scale
        )
        along = self.pieces.directional(dv)
        ds = shift + (stiffness * along).sum(1) / self.leaving
        dt = ds[:, None, :] - along - self.miss
        dt_ball = -(self.ball_slope * dv).sum(-1) - self.miss_ball
        dt_cone = -(self.cone_slope * dv).sum(-1) - self.miss_cone
        change = _State(
            v=dv,
            s=ds,
            t=dt,
            z=aim / at.t - at.z - stiffness * dt,
            t_ball=dt_ball,
            z_ball=aim_ball / at.t_ball - at.z_ball - stiff_ball * dt_ball,
            t_cone=dt_cone,
            z_cone=aim_cone / at.t_cone - at.z_cone - stiff_cone * dt_cone,
        )
        reach = (
            _reach(at.t, change.t)
            .minimum(_reach(at.z, change.z))
            .minimum(_reach(at.v[:, -1], 1.25 * dv[:, -1]))
        )
        for name in ("t_ball", "z_ball", "t_cone", "z_cone"):
            reach = reach.minimum(_reach(getattr(at, name), getattr(change, name)))
        return _Direction(change, reach)


def _settle(
    pieces: Pieces, at: _State, price: Tensor, domain: Domain, pinned: bool, worst: float
) -> tuple[Tensor, Tensor, int]:
    """v, z of one problem from Newton's method on its ties, with the steps; the state's own where
    its imbalance `worst` is less.

    A piece is tied if its share z/p of the mass exceeds its slack, in units of the largest; and so
    for the ball and the cone. With G the gradients of the ties (each minus that of the atom's
    heaviest piece) and H the Hessian of the Lagrangian, a step solves

        [H  G'] [dv]     [forces]
        [G  0 ] [dz] = - [ties  ]

    by least squares: where ties repeat each other the shortest dz leaves the multipliers near those
    of the central path, which are positive. A piece whose multiplier wants to be negative is let
    go.
    """
    p, d = pieces.p[0], domain.dimension
    held = at.z[0] / at.z[0].sum(0).clamp(min=_TINY)
    atoms, base = (
        torch.arange(len(p), device=p.device),
        held.argmax(0),
    )  # base: the heaviest piece of each atom
    largest = (
        at.t[0][:, p > 2 * NOTHING].amax().clamp(max=1.0)
    )  # near collapse all slacks are as small as w
    tied = (held > at.t[0] / largest) & (torch.arange(len(held), device=p.device)[:, None] != base)
    on_ball, on_cone = bool(at.z_ball[0] > at.t_ball[0]), bool(at.z_cone[0] > at.t_cone[0])
    v, z, z_ball, z_cone = at.v, held * p, at.z_ball * on_ball, at.z_cone * on_cone
    best_v, best_z, steps = at.v, at.z, 0
    for _ in range(2 * _LAST_STEPS + int(tied.sum())):
        j, i = tied.nonzero(as_tuple=True)
        m = len(i)
        if m * held.numel() > _MOST:
            break
        z = torch.where(tied, z, 0.0)
        z[base, atoms] = (p - z.sum(0)).clamp(
            min=0
        )  # the mass of what is not tied goes to the heaviest
        f = pieces.move(v)[0]
        ball_value, ball_slope = _domain(v, domain)
        cone_value, cone_slope, cone_bend = pieces.cone(v)
        forces = (
            pieces.gradient(z[None]) + z_ball[:, None] * ball_slope + z_cone[:, None] * cone_slope
        )[0]
        forces[-1] += price[0]
        hessian = (
            pieces.curvature(z[None], torch.zeros_like(at.z)) + z_cone[:, None, None] * cone_bend
        )[0]
        hessian[range(d), range(d)] += 2 * z_ball
        rows = torch.zeros(m, *held.shape, dtype=v.dtype, device=v.device)
        rows[range(m), j, i], rows[range(m), base[i], i] = 1.0, -1.0
        many = pieces.select(torch.zeros(m, dtype=torch.int64, device=v.device))
        many.move(v.expand(m, -1))
        gradients = torch.cat([many.gradient(rows), ball_slope[:on_ball], cone_slope[:on_cone]])
        ties = torch.cat([f[j, i] - f[base[i], i], ball_value[:on_ball], cone_value[:on_cone]])
        if pinned:
            forces[-1], gradients[:, -1], hessian[-1], hessian[:, -1] = 0, 0, 0, 0
        above = (p * (f.amax(0) - f[base, atoms])).amax()
        misfit = max(
            forces.abs().amax().item(),
            above.item(),
            ball_value.item() * on_ball,
            cone_value.item() * on_cone,
        )
        if misfit < worst:
            best_v, best_z, worst = v, z[None], misfit
        if not math.isfinite(misfit) or steps == _LAST_STEPS:
            break
        dv, dz = _tie_step(hessian, gradients, forces, ties)
        sizes = torch.cat([z[j, i], z_ball[:on_ball], z_cone[:on_cone]])
        if m + on_ball + on_cone and bool((sizes + dz < 0).any()):
            out = int((dz / sizes.clamp(min=_TINY)).argmin())
            if out < m:
                tied[j[out], i[out]] = False
            elif on_ball and out == m:
                on_ball, z_ball = False, torch.zeros_like(z_ball)
            else:
                on_cone, z_cone = False, torch.zeros_like(z_cone)
            continue
        steps += 1
        v = v + dv
        if not bool(v[0, -1] > 0):
            break
        z[j, i] += dz[:m]
        z_ball = z_ball + dz[m : m + 1] if on_ball else z_ball
        z_cone = z_cone + dz[-1:] if on_cone else z_cone
    return best_v, best_z, steps


def _tie_step(
    hessian: Tensor, gradients: Tensor, forces: Tensor, ties: Tensor
) -> tuple[Tensor, Tensor]:
    """The step of `_settle` in v and in the multipliers, v measured in units that give each
    coordinate a matrix of size one."""
    unit = (torch.diagonal(hessian).abs() + (gradients**2).sum(0)).clamp(min=_TINY).rsqrt()
    size = (gradients * unit).norm(dim=1).clamp(min=_TINY)
    g = gradients * unit / size[:, None]
    zero = torch.zeros(len(g), len(g), dtype=g.dtype, device=g.device)
    matrix = torch.cat(
        [torch.cat([hessian * unit[:, None] * unit, g.T], 1), torch.cat([g, zero], 1)]
    )
    solution = torch.linalg.pinv(matrix, rtol=_RANK, hermitian=True) @ -torch.cat(
        [forces * unit, ties / size]
    )
    return solution[: len(unit)] * unit, solution[len(unit) :] / size


def _smooth_part(smooth: Smooth | None, v: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian of the function that is added, zero where there is none."""
    if smooth is None:
        return torch.zeros_like(v), torch.zeros(
            *v.shape, v.shape[1], dtype=v.dtype, device=v.device
        )
    return smooth.derivatives(v)[1:]


def _domain(v: Tensor, domain: Domain) -> tuple[Tensor, Tensor]:
    """||theta||² - B² and its gradient in v."""
    theta = v[:, : domain.dimension] + domain.theta_ref
    rest = v.shape[1] - domain.dimension
    return (theta**2).sum(-1) - domain.bound**2, torch.nn.functional.pad(2 * theta, (0, rest))


def _outer(g: Tensor, c: Tensor) -> Tensor:
    return c[:, None, None] * g[:, :, None] * g[:, None, :]


def _factorise(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factor of the matrix scaled to unit diagonal, with the scaling."""
    diagonal = torch.diagonal(matrix, dim1=-2, dim2=-1).clamp(min=_TINY)
    scale = diagonal.rsqrt()
    scaled = matrix * scale[:, :, None] * scale[:, None, :]
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    factor, info = torch.linalg.cholesky_ex(scaled + 1e-15 * eye)
    if (info != 0).any():
        factor = torch.where(
            (info == 0)[:, None, None], factor, torch.linalg.cholesky_ex(scaled + 1e-9 * eye)[0]
        )
    return factor, scale


def _reach(x: Tensor, dx: Tensor) -> Tensor:
    """Largest step in (0, 1] that keeps x + step dx >= 0 for positive x, for each problem of the
    batch."""
    fastest = (dx / x).reshape(x.shape[0], -1).amin(1)
    return 1 / (-fastest).clamp(min=1.0)
