"""How far each Wasserstein adversary can move an atom: the pieces f_ji whose maximum over j is the
robust loss of atom i.

Each class says what the moves are and provides the sums over pieces that the interior-point method
(module `interior`) and the entropic smoothing need. Arrays are (R, J, n): R replicates, J pieces of
each of n atoms.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from theory.batch import PairBatch
from theory.solvers.interior import NOTHING
from theory.solvers.smooth import Derivatives, loss_and_slope
from theory.solvers.wells import restricted_wells

_TINY = 1e-300


def _weights(pairs: PairBatch) -> Tensor:
    """Weights bounded away from zero, so that no multiplier is exactly zero; what they add is far
    below rounding."""
    return pairs.p.clamp(min=NOTHING)


@dataclass
class FiniteMoves:
    """Transport on the atoms themselves: f_ji = l(m_j) - eta c_ij. Lemma 1, arXiv:2502.01930, on a
    finite Z.

    `targets` (R, J, n) lists the atoms targets_ji that atom i may move to; without it every atom is
    a target.
    """

    pairs: PairBatch
    cost: Tensor  # (n, n)
    beta: float
    targets: Tensor | None = None

    def __post_init__(self) -> None:
        self.p = _weights(self.pairs)
        self.price = self.cost
        if self.targets is not None:
            self.price = self.cost.expand(self.targets.shape[0], -1, -1).gather(1, self.targets)

    def _at_targets(self, x: Tensor) -> Tensor:
        """x_j of each target: (R, n) -> (R, J, n)."""
        if self.targets is None:
            return x[:, :, None]
        return x[:, None, :].expand(-1, self.targets.shape[1], -1).gather(2, self.targets)

    def _arriving(self, c: Tensor) -> Tensor:
        """sum over atoms i of what arrives at each target: (R, J, n) -> (R, n)."""
        if self.targets is None:
            return c.sum(2)
        return torch.zeros_like(self.p).scatter_add_(1, self.targets.flatten(1), c.flatten(1))

    def move(self, v: Tensor) -> Tensor:
        loss, s = loss_and_slope(self.beta * self.pairs.project(v[:, :-1]))
        self.slope = -self.beta * s  # d l / d (w.u)
        self.bend = -self.beta * self.slope * (1 - s)
        return self._at_targets(loss) - v[:, -1, None, None] * self.price

    def gradient(self, c: Tensor) -> Tensor:
        to_w = self.pairs.pull(self._arriving(c) * self.slope)
        return torch.cat([to_w, -self._paid(c)[:, None]], -1)

    def arrivals(self, plan: Tensor) -> tuple[Tensor, Tensor]:
        """Mass at each atom after the moves (R, n), and what they cost (R,)."""
        return self._arriving(plan), self._paid(plan)

    def _paid(self, c: Tensor) -> Tensor:
        if self.targets is None:
            return c.flatten(1) @ self.price.flatten()
        return (c * self.price).sum((1, 2))

    def directional(self, dv: Tensor) -> Tensor:
        return (
            self._at_targets(self.slope * self.pairs.project(dv[:, :-1]))
            - dv[:, -1, None, None] * self.price
        )

    def curvature(self, z: Tensor, stiffness: Tensor) -> Tensor:
        leaving = stiffness.sum(1).clamp(min=_TINY)
        gradients = self.slope[:, None, :] * self.pairs.ut  # of each l_j in w, (R, d, n)
        mean_eta = (stiffness * self.price).sum(1) / leaving
        if self.targets is None:
            out = self._scatter_of_all(gradients, stiffness, leaving, mean_eta)
        else:  # deviations from the mean one by one: large stiffnesses cancel without loss
            shares = [self._at_targets(g) for g in gradients.unbind(1)]
            off = [g - ((g * stiffness).sum(1) / leaving)[:, None, :] for g in shares]
            off.append(mean_eta[:, None, :] - self.price)
            deviations = torch.stack(off, 1).flatten(2)
            out = torch.matmul(deviations * stiffness.flatten(1)[:, None, :], deviations.mT)
        d = self.pairs.dimension
        out[:, :d, :d] += self.pairs.outer(self._arriving(z) * self.bend)
        return out

    def _scatter_of_all(
        self, gradients: Tensor, stiffness: Tensor, leaving: Tensor, mean_eta: Tensor
    ) -> Tensor:
        """The same from second moments, for all n² moves at the price of two matrix products, where
        stiffness is moderate."""
        d = self.pairs.dimension
        arriving = stiffness.sum(2)
        priced = stiffness * self.price
        mean_w = torch.matmul(gradients, stiffness) / leaving[:, None, :]
        out = torch.empty(
            stiffness.shape[0], d + 1, d + 1, dtype=stiffness.dtype, device=stiffness.device
        )
        out[:, :d, :d] = torch.matmul(gradients * arriving[:, None, :], gradients.mT)
        out[:, :d, :d] -= torch.matmul(leaving[:, None, :] * mean_w, mean_w.mT)
        cross = ((leaving * mean_eta)[:, None, :] * mean_w).sum(2) - (
            gradients * priced.sum(2)[:, None, :]
        ).sum(2)
        out[:, :d, d] = cross
        out[:, d, :d] = cross
        out[:, d, d] = self._paid(priced) - (leaving * mean_eta**2).sum(1)
        return out

    def cone(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return half_line(v)

    def select(self, index: Tensor) -> "FiniteMoves":
        targets = None if self.targets is None else self.targets[index]
        return FiniteMoves(self.pairs.select(index), self.cost, self.beta, targets)


@dataclass
class LargestLoss(FiniteMoves):
    """max_j l(m_j) over the pairs with weight: one atom whose mass may go to any of them. `cost`
    and `targets` are not used."""

    def __post_init__(self) -> None:
        replicates, n = self.pairs.p.shape
        self.p = torch.ones_like(self.pairs.p[:, :1])
        self.targets = torch.arange(n, device=self.p.device)[None, :, None].expand(
            replicates, -1, -1
        )
        self.price = torch.where(self.pairs.p > 0, 0.0, 1e6)[:, :, None]  # out of reach

    def _arriving(self, c: Tensor) -> Tensor:
        return c[:, :, 0]

    def select(self, index: Tensor) -> "LargestLoss":
        return LargestLoss(self.pairs.select(index), self.cost, self.beta)


@dataclass
class TwoMoves:
    """Two pieces an atom, whose gradients are combinations of u_i and of one vector common to all
    atoms: G_ji = along_ji (beta u_i, 0) + common_ji e."""

    pairs: PairBatch
    beta: float
    along: Tensor = field(init=False)
    common: Tensor = field(init=False)
    e: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.p = _weights(self.pairs)

    def gradient(self, c: Tensor) -> Tensor:
        to_w = self.beta * self.pairs.pull((c * self.along).sum(1))
        return self._pad(to_w) + (c * self.common).sum((1, 2))[:, None] * self.e

    def directional(self, dv: Tensor) -> Tensor:
        u_dot = self.beta * self.pairs.project(dv[:, :-1])
        return self.along * u_dot[:, None, :] + self.common * (self.e * dv).sum(-1)[:, None, None]

    def _form(self, uu: Tensor, ue: Tensor, ee: Tensor) -> Tensor:
        """sum_i uu_i b_i b_i' + ue_i (b_i e' + e b_i') + ee_i e e' with b_i = (beta u_i, 0)."""
        d = self.pairs.dimension
        cross = self._pad(self.beta * self.pairs.pull(ue))[:, :, None] * self.e[:, None, :]
        out = (
            cross + cross.mT + ee.sum(-1)[:, None, None] * (self.e[:, :, None] * self.e[:, None, :])
        )
        out[:, :d, :d] += self.beta**2 * self.pairs.outer(uu)
        return out

    def _spread(self, stiffness: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients of the second term of `curvature`; with two pieces it is a multiple of (G_1
        - G_0)(G_1 - G_0)'."""
        joint = stiffness[:, 0] * stiffness[:, 1] / stiffness.sum(1).clamp(min=_TINY)
        along = self.along[:, 1] - self.along[:, 0]
        common = self.common[:, 1] - self.common[:, 0]
        return joint * along**2, joint * along * common, joint * common**2

    @staticmethod
    def _pad(w: Tensor) -> Tensor:
        return torch.cat([w, torch.zeros_like(w[:, :1])], -1)


@dataclass
class LabelMoves(TwoMoves):
    """W1 with free features and label cost kappa: f = l(m_i), and l(-m_i) - kappa eta = l(m_i) +
    m_i - kappa eta.

    Shafieezadeh-Abadeh, Esfahani, Kuhn (2015), Thm. 1. The cone is eta >= beta ||w||. With
    `linear`, the losses are replaced by their slopes at the reference policy, -m/2 and m/2, which
    gives the collapse radius.
    """

    kappa: float = 1.0
    linear: bool = False

    def move(self, v: Tensor) -> Tensor:
        margin = self.beta * self.pairs.project(v[:, :-1])
        chance = torch.full_like(margin, 0.5) if self.linear else torch.sigmoid(-margin)
        self.along = torch.stack([-chance, 1 - chance], 1)
        self.common = torch.tensor([0.0, -self.kappa], dtype=margin.dtype, device=margin.device)[
            :, None
        ].expand_as(self.along)
        self.e = torch.zeros_like(v)
        self.e[:, -1] = 1.0
        self.bend = torch.zeros_like(margin) if self.linear else chance * (1 - chance)
        stay = -margin / 2 if self.linear else loss_and_slope(margin)[0]
        return torch.stack([stay, stay + margin - self.kappa * v[:, -1:]], 1)

    def curvature(self, z: Tensor, stiffness: Tensor) -> Tensor:
        uu, ue, ee = self._spread(stiffness)
        return self._form(uu + z.sum(1) * self.bend, ue, ee)

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
class QuadraticMoves(TwoMoves):
    """W2 with free features and fixed labels: the adversary moves x along w, and its best moves lie
    in two wells.

    softplus(-m + k) - eta k²/b² = sup_q -qm + H(q) + a q²/2 with a = b²/(2 eta), b = beta ||w||;
    the pieces are the suprema over q in [0, 1/2] and [1/2, 1], jointly convex in (w, eta). Above a
    = 4 (eta < b²/8) both wells exist.
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
        rows = torch.eye(v.shape[1], dtype=v.dtype, device=v.device)[
            :, :-1
        ] - torch.nn.functional.pad(corner[:, None, :-1], (0, 0, v.shape[1] - 1, 0))
        self.hessian_a = scale[:, None, None] * (rows @ rows.mT)
        return value

    def curvature(self, z: Tensor, stiffness: Tensor) -> Tensor:
        uu, ue, ee = self._spread(stiffness)
        bend = z * self.pull_back
        q = -self.along
        out = self._form(uu + bend.sum(1), ue - (bend * q).sum(1), ee + (bend * q**2).sum(1))
        return out + (z * self.common).sum((1, 2))[:, None, None] * self.hessian_a

    def cone(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return half_line(v)

    def select(self, index: Tensor) -> "QuadraticMoves":
        return QuadraticMoves(self.pairs.select(index), self.beta)


def half_line(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The constraint -eta <= 0."""
    gradient = torch.zeros_like(v)
    gradient[:, -1] = -1.0
    return -v[:, -1], gradient, torch.zeros(*v.shape, v.shape[1], dtype=v.dtype, device=v.device)


@dataclass(frozen=True)
class SmoothedTransportLoss:
    """eta r + eps sum_i p_i log sum_j exp((l_j - eta c_ij)/eps): the entropic smoothing of
    transport on the atoms.

    It exceeds the robust loss by at most eps log n. Minimised at a small width it tells which moves
    matter.
    """

    pairs: PairBatch
    cost: Tensor
    beta: float
    budget: Tensor
    width: Tensor  # eps, (R,)

    def derivatives(self, v: Tensor) -> Derivatives:
        moves, eps = FiniteMoves(self.pairs, self.cost, self.beta), self.width[:, None, None]
        exponent = moves.move(v) / eps
        top = exponent.amax(1, keepdim=True)
        share = torch.exp(exponent - top)
        total = share.sum(1, keepdim=True)
        plan = share * (self.pairs.p[:, None, :] / total)
        soft = (top + total.log())[:, 0]
        gradient = moves.gradient(plan)
        gradient[:, -1] += self.budget
        value = v[:, -1] * self.budget + self.width * (self.pairs.p * soft).sum(-1)
        return value, gradient, moves.curvature(plan, plan / eps)

    def select(self, index: Tensor) -> "SmoothedTransportLoss":
        return replace(
            self, pairs=self.pairs.select(index), budget=self.budget[index], width=self.width[index]
        )
