"""A primal–dual interior-point method for Wasserstein objectives, batched over replicates.

    minimise  eta r + sum_i p_i max_j f_ij(w, eta)     over ||w + theta_ref|| <= B and eta in a cone,

with every f_ij jointly convex. At the optimum some atoms are split between targets (the maximum has a kink there), which is
where Newton's method stops working; here s_i >= f_ij are constraints whose multipliers z_ij are the transport plan. The s_i
are eliminated by hand, so that each step solves a (d+1)-dimensional system whatever the number of atoms.

The direction is Mehrotra's predictor and corrector: Nocedal and Wright, Numerical Optimization, sections 14.2 and 19.3.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from theory.batch import PairBatch
from theory.newton import Ball
from theory.objectives import dpo_loss
from theory.wells import restricted_wells

_TINY = 1e-300


class Pieces(Protocol):
    """The functions f_ij of R problems with n atoms and J pieces each, evaluated at one point v = (w, eta)."""

    p: Tensor  # (R, n) weights

    def move(self, v: Tensor) -> Tensor:
        """Go to v (R, d+1) and return f (R, n, J)."""
        ...

    def gradient(self, c: Tensor) -> Tensor:
        """sum_ij c_ij G_ij, with G_ij the gradient of f_ij: (R, n, J) -> (R, d+1)."""
        ...

    def directional(self, dv: Tensor) -> Tensor:
        """G_ij.dv: (R, d+1) -> (R, n, J)."""
        ...

    def curvature(self, z: Tensor, stiffness: Tensor) -> Tensor:
        """sum z_ij Hess f_ij + sum_ij stiffness_ij (G_ij - G_i)(G_ij - G_i)', G_i the stiffness-weighted mean: (R, d+1, d+1)."""
        ...

    def cone(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value (R,), gradient (R, d+1) and Hessian (R, d+1, d+1) of the constraint g(w, eta) <= 0 on eta."""
        ...

    def select(self, index: Tensor) -> "Pieces":
        """The problems named by a mask."""
        ...


# --------------------------------------------------------------------------------------------- the three kinds of pieces
@dataclass
class FiniteMoves:
    """Transport on the atoms themselves: f_ij = l(m_j) - eta c_ij. Lemma 1, arXiv:2502.01930, on a finite Z."""

    pairs: PairBatch
    cost: Tensor  # (n, n)
    beta: float

    def __post_init__(self) -> None:
        self.p = self.pairs.p

    def move(self, v: Tensor) -> Tensor:
        margin = self.beta * self.pairs.project(v[:, :-1])
        self.slope = -self.beta * torch.sigmoid(-margin)  # d l / d (w.u)
        self.bend = -self.beta * self.slope * torch.sigmoid(margin)
        return dpo_loss(margin)[:, None, :] - v[:, -1, None, None] * self.cost

    def gradient(self, c: Tensor) -> Tensor:
        to_w = self.pairs.pull(c.sum(1) * self.slope)
        return torch.cat([to_w, -(c * self.cost).sum((1, 2))[:, None]], -1)

    def directional(self, dv: Tensor) -> Tensor:
        return (self.slope * self.pairs.project(dv[:, :-1]))[:, None, :] - dv[:, -1, None, None] * self.cost

    def curvature(self, z: Tensor, stiffness: Tensor) -> Tensor:
        arriving = stiffness.sum(1)
        leaving = stiffness.sum(2).clamp(min=_TINY)
        priced = stiffness * self.cost
        d = self.pairs.dimension
        targets = self.slope[:, :, None] * self.pairs.ut.mT  # gradient of each l_j in w
        mean_w = torch.matmul(stiffness, targets) / leaving[:, :, None]
        mean_eta = priced.sum(2) / leaving
        out = torch.empty(z.shape[0], d + 1, d + 1, dtype=z.dtype, device=z.device)
        out[:, :d, :d] = self.pairs.outer(z.sum(1) * self.bend + arriving * self.slope**2)
        out[:, :d, :d] -= torch.matmul((leaving[:, :, None] * mean_w).mT, mean_w)
        cross = -self.pairs.pull(priced.sum(1) * self.slope) + ((leaving * mean_eta)[:, :, None] * mean_w).sum(1)
        out[:, :d, d] = cross
        out[:, d, :d] = cross
        out[:, d, d] = (priced * self.cost).sum((1, 2)) - (leaving * mean_eta**2).sum(1)
        return out

    def cone(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _half_line(v)

    def select(self, index: Tensor) -> "FiniteMoves":
        return FiniteMoves(self.pairs.select(index), self.cost, self.beta)


@dataclass
class _TwoMoves:
    """Two pieces an atom, whose gradients are combinations of u_i and of one vector common to all atoms:
    G_ij = along_ij (beta u_i, 0) + common_ij e."""

    pairs: PairBatch
    beta: float

    def __post_init__(self) -> None:
        self.p = self.pairs.p

    def gradient(self, c: Tensor) -> Tensor:
        to_w = self.beta * self.pairs.pull((c * self.along).sum(-1))
        return self._pad(to_w) + (c * self.common).sum((1, 2))[:, None] * self.e

    def directional(self, dv: Tensor) -> Tensor:
        u_dot = self.beta * self.pairs.project(dv[:, :-1])
        return self.along * u_dot[:, :, None] + self.common * (self.e * dv).sum(-1)[:, None, None]

    def _form(self, uu: Tensor, ue: Tensor, ee: Tensor) -> Tensor:
        """sum_i uu_i b_i b_i' + ue_i (b_i e' + e b_i') + ee_i e e' with b_i = (beta u_i, 0)."""
        d = self.pairs.dimension
        cross = self._pad(self.beta * self.pairs.pull(ue))[:, :, None] * self.e[:, None, :]
        out = cross + cross.mT + ee.sum(-1)[:, None, None] * (self.e[:, :, None] * self.e[:, None, :])
        out[:, :d, :d] += self.beta**2 * self.pairs.outer(uu)
        return out

    def _spread(self, stiffness: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients of the second term of `curvature`; with two pieces it is a multiple of (G_1 - G_0)(G_1 - G_0)'."""
        joint = stiffness.prod(-1) / stiffness.sum(-1).clamp(min=_TINY)
        along = self.along[..., 1] - self.along[..., 0]
        common = self.common[..., 1] - self.common[..., 0]
        return joint * along**2, joint * along * common, joint * common**2

    @staticmethod
    def _pad(w: Tensor) -> Tensor:
        return torch.cat([w, torch.zeros_like(w[:, :1])], -1)


@dataclass
class LabelMoves(_TwoMoves):
    """W1 with free features and label cost kappa: f = l(m_i), and l(-m_i) - kappa eta = l(m_i) + m_i - kappa eta.

    Shafieezadeh-Abadeh, Esfahani, Kuhn (2015), Thm. 1. The cone is eta >= beta ||w||. With `linear`, the losses are replaced by
    their slopes at the reference policy, -m/2 and m/2, which gives the collapse radius.
    """

    kappa: float = 1.0
    linear: bool = False

    def move(self, v: Tensor) -> Tensor:
        margin = self.beta * self.pairs.project(v[:, :-1])
        chance = torch.full_like(margin, 0.5) if self.linear else torch.sigmoid(-margin)
        self.along = torch.stack([-chance, 1 - chance], -1)
        self.common = torch.tensor([0.0, -self.kappa], dtype=margin.dtype, device=margin.device).expand_as(self.along)
        self.e = torch.zeros_like(v)
        self.e[:, -1] = 1.0
        self.bend = torch.zeros_like(margin) if self.linear else chance * (1 - chance)
        stay = -margin / 2 if self.linear else dpo_loss(margin)
        return torch.stack([stay, stay + margin - self.kappa * v[:, -1:]], -1)

    def curvature(self, z: Tensor, stiffness: Tensor) -> Tensor:
        uu, ue, ee = self._spread(stiffness)
        return self._form(uu + z.sum(-1) * self.bend, ue, ee)

    def cone(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # beta² ||w||²/eta - eta <= 0: the second-order cone, smooth for eta > 0
        w, eta = v[:, :-1], v[:, -1]
        ratio = self.beta * w / eta[:, None]
        square = (ratio**2).sum(-1)
        gradient = torch.cat([2 * self.beta * ratio, -(1 + square)[:, None]], -1)
        direction = torch.cat([self.beta * torch.ones_like(w), torch.zeros_like(eta[:, None])], -1)
        tilt = torch.cat([torch.zeros_like(w), torch.ones_like(eta[:, None])], -1)
        # Hessian of ||beta w||²/eta is 2/eta A A' with A = (beta I, -ratio)
        rows = torch.diag_embed(direction)[:, :, :-1] - tilt[:, :, None] * ratio[:, None, :]
        hessian = (2 / eta)[:, None, None] * (rows @ rows.mT)
        return eta * (square - 1), gradient, hessian

    def select(self, index: Tensor) -> "LabelMoves":
        return LabelMoves(self.pairs.select(index), self.beta, self.kappa, self.linear)


@dataclass
class QuadraticMoves(_TwoMoves):
    """W2 with free features and fixed labels: the adversary moves x along w, and its best moves lie in two wells.

    softplus(-m + k) - eta k²/b² = sup_q -qm + H(q) + a q²/2 with a = b²/(2 eta), b = beta ||w||; the pieces are the suprema over
    q in [0, 1/2] and [1/2, 1], jointly convex in (w, eta). Above a = 4 (eta < b²/8) both wells exist.
    """

    def move(self, v: Tensor) -> Tensor:
        w, eta = v[:, :-1], v[:, -1]
        scale = self.beta**2 / eta
        square = (w**2).sum(-1)
        a = scale * square / 2
        self.e = torch.cat([scale[:, None] * w, -(a / eta)[:, None]], -1)
        margin = self.beta * self.pairs.project(w)
        value, q, self.pull_back = restricted_wells(margin, a)
        self.along, self.common = -q, q**2 / 2
        corner = torch.cat([w / eta[:, None], torch.zeros_like(eta[:, None])], -1)
        rows = torch.eye(v.shape[1], dtype=v.dtype, device=v.device)[:, :-1] - torch.nn.functional.pad(
            corner[:, None, :-1], (0, 0, v.shape[1] - 1, 0)
        )
        self.hessian_a = scale[:, None, None] * (rows @ rows.mT)
        return value

    def curvature(self, z: Tensor, stiffness: Tensor) -> Tensor:
        uu, ue, ee = self._spread(stiffness)
        bend = z * self.pull_back
        q = -self.along
        out = self._form(uu + bend.sum(-1), ue - (bend * q).sum(-1), ee + (bend * q**2).sum(-1))
        return out + (z * self.common).sum((1, 2))[:, None, None] * self.hessian_a

    def cone(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _half_line(v)

    def select(self, index: Tensor) -> "QuadraticMoves":
        return QuadraticMoves(self.pairs.select(index), self.beta)


def _half_line(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The constraint -eta <= 0."""
    gradient = torch.zeros_like(v)
    gradient[:, -1] = -1.0
    return -v[:, -1], gradient, torch.zeros(*v.shape, v.shape[1], dtype=v.dtype, device=v.device)


# --------------------------------------------------------------------------------------------------------- the method
@dataclass(frozen=True)
class Interior:
    """v = (w, eta) (R, d+1), the multipliers z (R, n, J) whose rows sum to p, and the steps taken (R,)."""

    v: Tensor
    z: Tensor
    steps: Tensor


def solve(
    pieces: Pieces, price: Tensor, eta: Tensor, ball: Ball, *, pinned: bool = False, tolerance: float = 1e-13, max_steps: int = 100
) -> Interior:
    """Minimise eta*price + sum_i p_i max_j f_ij from w = 0 and the given eta > 0, until the mean complementarity is `tolerance`.

    price, eta: (R,); `pinned` holds eta where it starts. The central path is weighted: z_ij t_ij = mu p_i, so that neither the
    number of atoms nor small weights change its course. The caller turns the point and the plan into a certificate of its own.
    """
    R, d = price.shape[0], ball.dimension
    v = torch.cat([torch.zeros(R, d, dtype=price.dtype, device=price.device), eta[:, None]], -1)
    f = pieces.move(v)
    # atoms without weight get so wide a slack that they never matter, and no mask is needed
    s = f.amax(-1) + torch.where(pieces.p > 0, 0.05, 1e6)
    t = s[:, :, None] - f
    z = pieces.p[:, :, None] / (t * (1 / t).sum(-1, keepdim=True))
    mu = (z * t).sum((1, 2)) / f.shape[-1]
    t_ball, t_cone = -_ball(v, ball)[0], -pieces.cone(v)[0]
    z_ball, z_cone = mu / t_ball, mu / t_cone
    out_v, out_z = v.clone(), z.clone()
    steps = torch.zeros(R, dtype=torch.int64, device=v.device)
    active = torch.arange(R, device=v.device)
    best, stalled = torch.full_like(mu, torch.inf), torch.zeros_like(steps)
    for _ in range(max_steps):
        share = pieces.p[:, :, None]
        ball_value, ball_slope = _ball(v, ball)
        cone_value, cone_slope, cone_hessian = pieces.cone(v)
        # each constraint g + t = 0 has its own slack t > 0 and residual: curvature moves the residual, never the slack
        miss, miss_ball, miss_cone = f + t - s[:, :, None], ball_value + t_ball, cone_value + t_cone
        mu = ((z * t).sum((1, 2)) + z_ball * t_ball + z_cone * t_cone) / (f.shape[-1] + 2)
        stiffness = z / t
        leaving = stiffness.sum(-1).clamp(min=_TINY)
        matrix = pieces.curvature(z, stiffness) + z_cone[:, None, None] * cone_hessian
        matrix = matrix + _outer(cone_slope, z_cone / t_cone) + _outer(ball_slope, z_ball / t_ball)
        diagonal = torch.arange(d, device=v.device)
        matrix[:, diagonal, diagonal] += 2 * z_ball[:, None]
        cost = torch.zeros_like(v)
        cost[:, -1] = price
        if pinned:
            matrix[:, -1, :] = 0
            matrix[:, :, -1] = 0
            matrix[:, -1, -1] = 1
        factor, scale = _factorise(matrix)

        def direction(aim: Tensor, aim_ball: Tensor, aim_cone: Tensor) -> _Direction:
            """Newton step towards z t = aim and vanishing residuals. The loop variables are those of this very iteration."""
            push = aim / t + stiffness * miss  # noqa: B023
            push_ball = aim_ball / t_ball + z_ball / t_ball * miss_ball  # noqa: B023
            push_cone = aim_cone / t_cone + z_cone / t_cone * miss_cone  # noqa: B023
            shift = (push.sum(-1) - pieces.p) / leaving  # noqa: B023
            rhs = cost + pieces.gradient(push - stiffness * shift[:, :, None])  # noqa: B023
            rhs = rhs + ball_slope * push_ball[:, None] + cone_slope * push_cone[:, None]  # noqa: B023
            if pinned:
                rhs[:, -1] = 0
            dv = -torch.cholesky_solve((rhs * scale)[:, :, None], factor)[:, :, 0] * scale  # noqa: B023
            change = pieces.directional(dv)  # noqa: B023
            ds = shift + (stiffness * change).sum(-1) / leaving  # noqa: B023
            dt = ds[:, :, None] - change - miss  # noqa: B023
            dz = aim / t - z - stiffness * dt  # noqa: B023
            dt_ball, dt_cone = -(ball_slope * dv).sum(-1) - miss_ball, -(cone_slope * dv).sum(-1) - miss_cone  # noqa: B023
            dz_ball = aim_ball / t_ball - z_ball - z_ball / t_ball * dt_ball  # noqa: B023
            dz_cone = aim_cone / t_cone - z_cone - z_cone / t_cone * dt_cone  # noqa: B023
            reach = _reach(t, dt).minimum(_reach(z, dz))  # noqa: B023
            for x, dx in ((t_ball, dt_ball), (z_ball, dz_ball), (t_cone, dt_cone), (z_cone, dz_cone), (v[:, -1], dv[:, -1])):  # noqa: B023
                reach = reach.minimum(_reach(x[:, None, None], dx[:, None, None]))
            return _Direction(dv, ds, dt, dz, dt_ball, dz_ball, dt_cone, dz_cone, reach)

        zero = torch.zeros_like(mu)
        guess = direction(torch.zeros_like(t), zero, zero)
        # below the floor rounding in the matrix would cost the balance of forces more than a smaller mu gains
        aim = (((1 - guess.reach) ** 3).clamp(min=1e-6) * mu).clamp(min=0.1 * tolerance)
        step = direction(
            aim[:, None, None] * share - guess.dz * guess.dt,
            aim - guess.dz_ball * guess.dt_ball,
            aim - guess.dz_cone * guess.dt_cone,
        )
        size = (0.995 * step.reach).clamp(max=1.0)
        v, s = v + size[:, None] * step.dv, s + size[:, None] * step.ds
        t, z = t + size[:, None, None] * step.dt, z + size[:, None, None] * step.dz
        t_ball, z_ball = t_ball + size * step.dt_ball, z_ball + size * step.dz_ball
        t_cone, z_cone = t_cone + size * step.dt_cone, z_cone + size * step.dz_cone
        f = pieces.move(v)
        # the residual that all pieces of an atom share is taken up by s_i; a slack that is wide takes up its own
        s = s + (z * (f + t - s[:, :, None])).sum(-1) / pieces.p.clamp(min=_TINY)
        true = s[:, :, None] - f
        t = torch.where(true > 0.5 * t, true, t)
        steps[active] += 1
        worst = (share * (f + t - s[:, :, None]).abs()).sum(1).amax(-1).maximum(mu)
        ball_slope, cone_slope = _ball(v, ball)[1], pieces.cone(v)[1]
        balance = cost + pieces.gradient(z) + z_ball[:, None] * ball_slope + z_cone[:, None] * cone_slope
        if pinned:
            balance[:, -1] = 0
        worst = worst.maximum(balance.abs().amax(-1))
        improved = worst < best
        out_v[active[improved]], out_z[active[improved]] = v[improved], z[improved]
        stalled = torch.where(worst < 0.9 * best, 0, stalled + 1)
        best = torch.minimum(best, worst)
        keep = (worst > tolerance) & ((stalled < 4) | ((best > 1e-9) & (stalled < 40)))
        if not keep.any():
            break
        if not keep.all():
            pieces, active, price = pieces.select(keep), active[keep], price[keep]
            v, s, t, z = v[keep], s[keep], t[keep], z[keep]
            t_ball, z_ball, t_cone, z_cone = t_ball[keep], z_ball[keep], t_cone[keep], z_cone[keep]
            best, stalled = best[keep], stalled[keep]
            f = pieces.move(v)
    return Interior(out_v, out_z, steps)


@dataclass(frozen=True)
class _Direction:
    """Changes of the point, the slacks and the multipliers, and the largest step in (0, 1] that keeps them non-negative."""

    dv: Tensor
    ds: Tensor
    dt: Tensor
    dz: Tensor
    dt_ball: Tensor
    dz_ball: Tensor
    dt_cone: Tensor
    dz_cone: Tensor
    reach: Tensor


def _ball(v: Tensor, ball: Ball) -> tuple[Tensor, Tensor]:
    """||theta||² - B² and its gradient in v."""
    theta = v[:, : ball.dimension] + ball.theta_ref
    return (theta**2).sum(-1) - ball.bound**2, torch.nn.functional.pad(2 * theta, (0, 1))


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
        factor = torch.where((info == 0)[:, None, None], factor, torch.linalg.cholesky_ex(scaled + 1e-9 * eye)[0])
    return factor, scale


def _reach(x: Tensor, dx: Tensor) -> Tensor:
    """Largest step in (0, 1] that keeps x + step dx >= 0."""
    return torch.where(dx < 0, -x / dx, 1.0).amin((1, 2)).clamp(max=1.0)
