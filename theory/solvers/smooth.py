"""The objectives that are smooth away from the reference policy, with their derivatives, for
Newton's method.

Each class is a batch of functions of w (or of w and the dual variable) over R samples; v has shape
(R, d) or (R, d+1). With s_i = sigma(-m_i): dl/dw = -beta s u, d²l/dw² = beta² s (1-s) u u' (App.
B.1, arXiv:2502.01930).
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from theory.batch import PairBatch
from theory.duals import kl_ball_dual
from theory.solvers.wells import global_well

Derivatives = tuple[Tensor, Tensor, Tensor]
_LOG_ZERO = -1e300  # stands for log 0 without producing NaN in 0 * log 0


def loss_and_slope(margin: Tensor) -> tuple[Tensor, Tensor]:
    """l = log(1+exp(-m)) and s = sigma(-m) from one exponential, accurate at both ends."""
    tail = torch.exp(-margin.abs())
    loss = torch.log1p(tail) - margin.clamp(max=0)
    return loss, torch.where(margin >= 0, tail, 1.0) / (1 + tail)


def excess_loss(margin: Tensor) -> Tensor:
    """l(m) - log 2 to its own last digits: near the reference policy lambda is as small as the
    differences of the losses."""
    return torch.log1p(torch.expm1(-margin.abs()) / 2) - margin.clamp(max=0)


@dataclass(frozen=True)
class MeanLoss:
    """DPO, E l."""

    pairs: PairBatch
    beta: float

    def derivatives(self, v: Tensor) -> Derivatives:
        loss, s = loss_and_slope(self.beta * self.pairs.project(v))
        weighted = self.pairs.p * s
        hessian = self.beta**2 * self.pairs.outer(weighted * (1 - s))
        return (self.pairs.p * loss).sum(-1), -self.beta * self.pairs.pull(weighted), hessian

    def select(self, index: Tensor) -> "MeanLoss":
        return replace(self, pairs=self.pairs.select(index))


@dataclass(frozen=True)
class TiltedLoss:
    """tau log E exp(l/tau), practical KLDPO; tau (R,)."""

    pairs: PairBatch
    beta: float
    tau: Tensor

    def derivatives(self, v: Tensor) -> Derivatives:
        loss, s = loss_and_slope(self.beta * self.pairs.project(v))
        centre = (self.pairs.p * loss).sum(-1, keepdim=True)
        z = (loss - centre) / self.tau[:, None]
        exponent = z + self.pairs.p.log()
        log_mass = torch.logsumexp(exponent, -1)
        # hot: E exp(z) - 1 is of the second order in z, which rounding of exp(z) alone would drown
        near = log_mass < 0.5
        excess = (self.pairs.p * torch.expm1(z.clamp(max=50.0))).sum(-1)
        log_mass = torch.where(near, torch.log1p(torch.where(near, excess, 0.0)), log_mass)
        q = torch.exp(exponent - log_mass[:, None])
        gradient = -self.beta * self.pairs.pull(q * s)
        second = q * (s * (1 - s) + s**2 / self.tau[:, None])
        hessian = (
            self.beta**2 * self.pairs.outer(second) - _outer(gradient) / self.tau[:, None, None]
        )
        return centre[:, 0] + self.tau * log_mass, gradient, hessian

    def select(self, index: Tensor) -> "TiltedLoss":
        return replace(self, pairs=self.pairs.select(index), tau=self.tau[index])


@dataclass(frozen=True)
class KlBallLoss:
    """lambda rho + lambda log E exp(l/lambda), jointly convex in v = (w, lambda). Section 4.1,
    arXiv:2502.01930.

    With `excess` the value is less log 2, from losses less log 2, which keeps the digits that count
    near the reference policy.
    """

    pairs: PairBatch
    beta: float
    radius: Tensor
    excess: bool = False

    def derivatives(self, v: Tensor) -> Derivatives:
        w, lam = v[:, :-1], v[:, -1:]
        margin = self.beta * self.pairs.project(w)
        loss, s = loss_and_slope(margin)
        if self.excess:
            loss = excess_loss(margin)
        centre = (self.pairs.p * loss).sum(
            -1, keepdim=True
        )  # keeps log E exp accurate when the exponents are small
        z = (loss - centre) / lam
        exponent = z + self.pairs.p.log()
        log_mass = torch.logsumexp(exponent, -1, keepdim=True)
        q = torch.exp(exponent - log_mass)
        z_bar = (q * z).sum(-1, keepdim=True)
        qs = q * s
        pulled = -self.beta * self.pairs.pull(qs)
        spread = z - z_bar
        d = w.shape[1]
        gradient = torch.empty_like(v)
        gradient[:, :d] = pulled
        gradient[:, d] = (self.radius[:, None] + log_mass - z_bar)[:, 0]  # rho - KL(q||p)
        hessian = torch.empty(v.shape[0], d + 1, d + 1, dtype=v.dtype, device=v.device)
        hessian[:, :d, :d] = (
            self.beta**2 * self.pairs.outer(qs * (1 - s) + qs * s / lam)
            - _outer(pulled) / lam[:, :, None]
        )
        cross = self.beta * self.pairs.pull(qs * spread) / lam  # -Cov_q(z, dl/dw)/lambda
        hessian[:, :d, d] = cross
        hessian[:, d, :d] = cross
        hessian[:, d, d] = ((q * spread**2).sum(-1, keepdim=True) / lam)[:, 0]
        return (centre + lam * (self.radius[:, None] + log_mass))[:, 0], gradient, hessian

    def select(self, index: Tensor) -> "KlBallLoss":
        return replace(self, pairs=self.pairs.select(index), radius=self.radius[index])


@dataclass(frozen=True)
class KlBallProfile:
    """The same less log 2 with lambda minimised out, a function of w: slower, but it does not jam
    where lambda is nearly zero."""

    pairs: PairBatch
    beta: float
    radius: Tensor

    def derivatives(self, v: Tensor) -> Derivatives:
        loss = excess_loss(self.beta * self.pairs.project(v))
        span = loss.amax(-1) - loss.amin(-1)
        lam = (
            kl_ball_dual(loss, self.pairs.p, self.radius)
            .dual.maximum(1e-9 * span)
            .clamp(min=1e-150)
        )
        joint = KlBallLoss(self.pairs, self.beta, self.radius, excess=True)
        value, gradient, hessian = joint.derivatives(torch.cat([v, lam[:, None]], -1))
        cross, corner = hessian[:, :-1, -1], hessian[:, -1, -1].clamp(min=1e-300)
        return value, gradient[:, :-1], hessian[:, :-1, :-1] - _outer(cross) / corner[:, None, None]

    def select(self, index: Tensor) -> "KlBallProfile":
        return replace(self, pairs=self.pairs.select(index), radius=self.radius[index])


@dataclass(frozen=True)
class NormPenalisedLoss:
    """E l + rho beta ||w||: WDPO with p = 1, free features and fixed labels. Shafieezadeh-Abadeh et
    al. (2015)."""

    pairs: PairBatch
    beta: float
    radius: Tensor

    def derivatives(self, v: Tensor) -> Derivatives:
        value, gradient, hessian = MeanLoss(self.pairs, self.beta).derivatives(v)
        penalty, slope, bend = _norm(v)
        c = self.radius * self.beta
        return value + c * penalty, gradient + c[:, None] * slope, hessian + c[:, None, None] * bend

    def select(self, index: Tensor) -> "NormPenalisedLoss":
        return replace(self, pairs=self.pairs.select(index), radius=self.radius[index])


@dataclass(frozen=True)
class SmoothedLabelLoss:
    """eta rho + E [l(m) + eps log(1 + exp((m - kappa eta)/eps))] - mu log(eta² - beta²||w||²), for
    W1 with label moves.

    The hinge (m - kappa eta)_+ is smoothed at the width eps and the cone eta >= beta ||w|| has a
    barrier of weight mu; both go to zero. The smoothed hinge is worth at most eps log 2 P(|m -
    kappa eta| ≲ eps) too much.
    """

    pairs: PairBatch
    beta: float
    radius: Tensor
    kappa: float
    width: Tensor  # eps, (R,)
    barrier: Tensor  # mu, (R,)

    def derivatives(self, v: Tensor) -> Derivatives:
        w, eta, beta, p = v[:, :-1], v[:, -1], self.beta, self.pairs.p
        margin = beta * self.pairs.project(w)
        loss, s = loss_and_slope(margin)
        hinge, flip = loss_and_slope((self.kappa * eta[:, None] - margin) / self.width[:, None])
        room = eta**2 - beta**2 * (w**2).sum(-1)
        inside = room > 0
        room = torch.where(inside, room, 1.0)
        mu = self.barrier / room
        value = (
            eta * self.radius
            + (p * (loss + self.width[:, None] * hinge)).sum(-1)
            - self.barrier * room.log()
        )
        d = w.shape[1]
        gradient, hessian = (
            torch.empty_like(v),
            torch.empty(v.shape[0], d + 1, d + 1, dtype=v.dtype, device=v.device),
        )
        gradient[:, :d] = beta * self.pairs.pull(p * (flip - s)) + (2 * beta**2 * mu)[:, None] * w
        gradient[:, d] = self.radius - self.kappa * (p * flip).sum(-1) - 2 * mu * eta
        bend = p * flip * (1 - flip) / self.width[:, None]
        ray = torch.cat(
            [beta**2 * w, -eta[:, None]], -1
        )  # the gradient of the barrier is 2 mu/room times this
        hessian[:] = (4 * mu / room)[:, None, None] * _outer(ray)
        diagonal = torch.arange(d, device=v.device)
        hessian[:, diagonal, diagonal] += (2 * beta**2 * mu)[:, None]
        hessian[:, d, d] += self.kappa**2 * bend.sum(-1) - 2 * mu
        hessian[:, :d, :d] += beta**2 * self.pairs.outer(p * s * (1 - s) + bend)
        cross = -self.kappa * beta * self.pairs.pull(bend)
        hessian[:, :d, d] += cross
        hessian[:, d, :d] += cross
        return torch.where(inside, value, torch.inf), gradient, hessian

    def select(self, index: Tensor) -> "SmoothedLabelLoss":
        return replace(
            self,
            pairs=self.pairs.select(index),
            radius=self.radius[index],
            width=self.width[index],
            barrier=self.barrier[index],
        )


@dataclass(frozen=True)
class FixedLabelLoss:
    """sum_i p_i l(m_i) + sum_i f_i (m_i - kappa eta): the atoms whose labels surely stay, or surely
    flip (share f_i of p_i)."""

    pairs: PairBatch
    beta: float
    kappa: float
    flipped: Tensor  # f, (R, n)

    @cached_property
    def _linear(self) -> tuple[Tensor, Tensor]:
        """sum f_i and beta sum f_i u_i, the same at every v."""
        return self.flipped.sum(-1), self.beta * self.pairs.pull(self.flipped)

    def derivatives(self, v: Tensor) -> Derivatives:
        value, gradient, hessian = MeanLoss(self.pairs, self.beta).derivatives(v[:, :-1])
        moved, to_w = self._linear
        value = value + (to_w * v[:, :-1]).sum(-1) - self.kappa * moved * v[:, -1]
        gradient = torch.cat([gradient + to_w, -self.kappa * moved[:, None]], -1)
        return value, gradient, torch.nn.functional.pad(hessian, (0, 1, 0, 1))

    def select(self, index: Tensor) -> "FixedLabelLoss":
        return replace(self, pairs=self.pairs.select(index), flipped=self.flipped[index])


@dataclass(frozen=True)
class QuadraticTransportLoss:
    """eta rho² + E phi(m, a), a = beta²||w||²/(2 eta): WDPO with p = 2, free features and fixed
    labels (module `wells`)."""

    pairs: PairBatch
    beta: float
    radius: Tensor

    def derivatives(self, v: Tensor) -> Derivatives:
        w, eta = v[:, :-1], v[:, -1]
        scale = self.beta**2 / eta
        a = scale * (w**2).sum(-1) / 2
        phi, q, bend, _ = global_well(self.beta * self.pairs.project(w), a)
        d = w.shape[1]
        e = torch.cat([scale[:, None] * w, -(a / eta)[:, None]], -1)  # gradient of a
        p = self.pairs.p
        half_square = (p * q**2).sum(-1) / 2
        gradient = half_square[:, None] * e
        gradient[:, :d] -= self.beta * self.pairs.pull(p * q)
        gradient[:, d] += self.radius**2
        # phi depends on (m, a) through -q dm + q²/2 da; its second derivative is bend (dm - q
        # da)(dm - q da)'
        pb = p * bend
        cross = (
            torch.nn.functional.pad(-self.beta * self.pairs.pull(pb * q), (0, 1))[:, :, None]
            * e[:, None, :]
        )
        hessian = cross + cross.mT + (pb * q**2).sum(-1)[:, None, None] * _outer(e)
        hessian[:, :d, :d] += self.beta**2 * self.pairs.outer(pb)
        basis = torch.eye(d + 1, d, dtype=v.dtype, device=v.device).repeat(v.shape[0], 1, 1)
        basis[:, d, :] = -w / eta[:, None]
        hessian += (half_square * scale)[:, None, None] * (basis @ basis.mT)
        return eta * self.radius**2 + (p * phi).sum(-1), gradient, hessian

    def select(self, index: Tensor) -> "QuadraticTransportLoss":
        return replace(self, pairs=self.pairs.select(index), radius=self.radius[index])


@dataclass(frozen=True)
class GradientPenalisedLoss:
    """E l + rho (E ||grad_x l||²)^(1/2), or with `squared` E l + rho E ||grad_x l||²; grad_x l =
    -beta s w.

    Practical WDPO (Algorithm 1, arXiv:2502.01930) with the features in the place of the embedding.
    Neither form is convex.
    """

    pairs: PairBatch
    beta: float
    strength: Tensor
    squared: bool

    def derivatives(self, v: Tensor) -> Derivatives:
        p, beta = self.pairs.p, self.beta
        loss, s = loss_and_slope(beta * self.pairs.project(v))
        ps = p * s
        value, gradient = (p * loss).sum(-1), -beta * self.pairs.pull(ps)
        hessian = beta**2 * self.pairs.outer(ps * (1 - s))
        # S = E s², with ds/dm = -s(1-s)
        S = (ps * s).sum(-1)
        S1 = -2 * beta * self.pairs.pull(ps * s * (1 - s))
        S2 = 2 * beta**2 * self.pairs.outer(ps * s * (2 - 3 * s) * (1 - s))
        eye = torch.eye(v.shape[1], dtype=v.dtype, device=v.device)
        if self.squared:
            N, N1, N2 = (
                beta**2 * (v**2).sum(-1),
                2 * beta**2 * v,
                (2 * beta**2 * eye).expand_as(hessian),
            )
            T, T1, T2 = S, S1, S2
        else:
            norm, slope, bend = _norm(v)
            N, N1, N2 = beta * norm, beta * slope, beta * bend
            T = S.sqrt()
            safe = T.clamp(
                min=1e-100
            )  # with very large margins S vanishes, and its derivatives with it
            T1 = S1 / (2 * safe[:, None])
            T2 = S2 / (2 * safe[:, None, None]) - _outer(S1) / (4 * safe**3)[:, None, None]
        cross = N1[:, :, None] * T1[:, None, :]
        penalty = N2 * T[:, None, None] + cross + cross.mT + N[:, None, None] * T2
        c = self.strength
        gradient = gradient + c[:, None] * (N1 * T[:, None] + N[:, None] * T1)
        return value + c * N * T, gradient, hessian + c[:, None, None] * penalty

    def select(self, index: Tensor) -> "GradientPenalisedLoss":
        return replace(self, pairs=self.pairs.select(index), strength=self.strength[index])


def _outer(g: Tensor) -> Tensor:
    return g[:, :, None] * g[:, None, :]


def _norm(w: Tensor) -> Derivatives:
    """||w|| with its derivatives; at w = 0 the zero subgradient."""
    norm = w.norm(dim=-1)
    safe = norm.clamp(min=1e-300)
    unit = w / safe[:, None]
    eye = torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
    return norm, unit, (eye - _outer(unit)) / safe[:, None, None]
