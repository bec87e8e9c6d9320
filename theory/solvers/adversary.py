"""The adversary of each set: where it puts the probability, at a fixed policy.

Sets on the atoms reweight them; Wasserstein balls move mass, to other atoms or, with free features,
anywhere. Next to the exact worst cases stand the two that the algorithms of arXiv:2502.01930
compute instead: the tilt at a temperature (Algorithm 2) and the step along the gradient
(Algorithm 1).

Notation: losses l (n,), probabilities p (n,), signed feature differences u (n, d),
w = theta - theta_ref, m = beta w.u, b = beta ||w||. Free features move along w only: that is where
the loss grows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from theory.batch import ArrayLike, as_float64, check_magnitudes
from theory.checks import (
    as_array,
    check_label_cost,
    check_metric,
    check_number,
    check_probability,
    check_radius,
    check_scale,
)
from theory.duals import BallDual, kl_ball_dual, transport_plan
from theory.functionals import gradient_norm, kl_tilt, tilt_weights
from theory.losses import dpo_loss
from theory.policy import Array
from theory.solvers.wells import global_well

Index = NDArray[np.int64]

_TOLERANCE = 1e-9  # of a gap, relative to the value
# how near, relative to the value, the returned distribution comes to a supremum that none attains
_ESCAPE = 1e-10


@dataclass(frozen=True, eq=False)
class Moves:
    """A transport plan as a list of M moves, those that stay put included; masses sum to one.

    The plans of Section 4.1 and Lemma 1, arXiv:2502.01930v4.

    Attributes:
        source: (M,) atom where the mass was.
        target: (M,) atom where it goes, -1 where features are free.
        mass: (M,) probabilities.
        u: (M, d) signed feature difference on arrival, in the unit of the features.
        distance: (M,) length of the move in the metric, a label flip included.
        flipped: (M,) whether the label changes, which turns u into -u before any shift.

    >>> from theory import WassersteinFree, worst_case
    >>> moves = worst_case([[1.0]], [0.5], WassersteinFree(0.1, power=2), beta=1.0).moves
    >>> moves.u.round(6).tolist(), moves.distance.round(6).tolist(), moves.target.tolist()
    ([[0.9]], [0.1], [-1])
    """

    source: Index
    target: Index
    mass: Array
    u: Array
    distance: Array
    flipped: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class WorstCase:
    """The worst case of one set.

    Reweighting sets have their weights from the dual, Thm. 3 of arXiv:2502.01930v4 for the KL ball;
    transport has its plan from Lemma 1 there.

    Attributes:
        name: of the set, as in `theory.SETS`.
        size: of the set, in its own unit.
        value: the supremum, from the dual; for the tractable versions what the algorithm minimises
            (see `tilt`, `gradient_step`). In the unit of the losses, as expected and gap.
        expected: E_Q l of the distribution that is returned.
        gap: value - expected.
        used: its distance from p: KL, chi-squared, total variation, W_p, and for CVaR the largest
            ratio q_i/p_i.
        dual: multiplier of the radius (lam, or eta of radius**power); the threshold for CVaR.
        effective: 1 / sum_i q_i²/p_i = 1/(1 + chi-squared), the share of the sample that is left:
            times n it is the effective sample size of Kish; NaN where Q leaves the atoms.
        attained: whether a distribution attains the supremum; if not, the returned one is a member
            of a maximising sequence, within 1e-10 of it.
        converged: |gap| at most 1e-9 of the value (of the largest loss, if that is more).
        weights: (n,) probabilities on the atoms, None where Q leaves them.
        moves: where mass goes, for transport, a `Moves`; else None.

    >>> from theory import ChiSquared, worst_case
    >>> found = worst_case([[1.0], [-1.0]], [0.5], ChiSquared(0.25), beta=1.0)
    >>> found.name, found.size, found.converged, found.attained
    ('chi2', 0.25, True, True)
    >>> round(found.used, 6), round(found.effective, 6)
    (0.25, 0.8)
    """

    name: str
    size: float
    value: float
    expected: float
    gap: float
    used: float
    dual: float
    effective: float
    attained: bool
    converged: bool
    weights: Array | None = None
    moves: Moves | None = None


# ----------------------------------------------------------------------------- weights on the atoms
def reweighted(
    name: str,
    dual: Callable[[Tensor, Tensor, Tensor], BallDual],
    losses: ArrayLike,
    p: ArrayLike,
    size: float,
) -> WorstCase:
    """The worst weights in the set `name` of this size, by its dual of `theory.duals`."""
    l, mass = _losses(losses, p)
    found = dual(l[None], mass[None], _radius(size)[None])
    return _weighted(
        name,
        size,
        l,
        mass,
        found.weights[0],
        found.value.item(),
        found.dual.item(),
        found.used.item(),
    )


def tilt(
    losses: ArrayLike,
    p: ArrayLike,
    *,
    radius: float | None = None,
    temperature: float | None = None,
) -> WorstCase:
    """Algorithm 2: weights q_i ∝ p_i exp(l_i/tau), at tau = `temperature`, or at the dual optimum
    of the ball of `radius`.

    value is tau rho + tau log E exp(l/tau), the dual at tau: an upper bound of the worst case in
    the KL ball of radius rho, and equal to it iff tau is the dual optimum. With the temperature
    alone rho is the KL of the tilt itself, the radius for which tau is optimal. With both, `used`
    exceeds the radius where tau is too small, and falls short of it where tau is too large.
    """
    if temperature is None:
        if radius is None:
            raise ValueError(
                "a tilt needs a temperature, or a radius whose dual optimum is the temperature; got"
                " neither."
            )
        return reweighted("tilt", kl_ball_dual, losses, p, radius)
    l, mass = _losses(losses, p)
    tau = check_scale(
        "temperature",
        temperature,
        "As it goes to 0 all weight goes to the largest loss: use a small value.",
    )
    q = tilt_weights(l, tau, mass)
    risk = kl_tilt(l, tau, mass).item()
    used = max(
        ((q * l.masked_fill(mass == 0, 0.0)).sum().item() - risk) / tau, 0.0
    )  # KL = (E_q l - tilted risk)/tau
    rho = used if radius is None else _radius(radius).item()
    return _weighted("tilt", rho, l, mass, q, tau * rho + risk, tau, used)


def _weighted(
    name: str,
    radius: float,
    l: Tensor,
    p: Tensor,
    q: Tensor,
    value: float,
    dual: float,
    used: float,
) -> WorstCase:
    expected = (q * l.masked_fill(p == 0, 0.0)).sum().item()
    effective = 1 / torch.where(p > 0, q**2 / torch.where(p > 0, p, 1.0), 0.0).sum().item()
    gap = value - expected
    return WorstCase(
        name,
        float(radius),
        value,
        expected,
        gap,
        used,
        dual,
        effective,
        True,
        _small(gap, value, l),
        weights=q.numpy(),
    )


# ------------------------------------------------------------------------------------ between atoms
def on_atoms(
    losses: ArrayLike, p: ArrayLike, *, distance: ArrayLike, power: int, radius: float
) -> WorstCase:
    """The worst case in {W_p(Q, P) <= radius} on the same atoms, with its plan. Lemma 1,
    arXiv:2502.01930.

    `moves.u` has no columns and `moves.flipped` is False throughout: without a world nothing is
    known of the atoms. `effective` is 0 where mass arrives at an atom that had none.
    """
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2, got {power}.")
    l, mass = _losses(losses, p)
    n = len(l)
    budget = _radius(radius) ** power
    cost = check_metric(distance, n) ** power
    found, first, second, share = transport_plan(l[None], mass[None], cost, budget[None])
    source = torch.arange(n).repeat(2)
    target = torch.cat([first[0], second[0]])
    amount = torch.cat([mass * share, mass * (1 - share)])
    same = (first[0] == second[0]).repeat(2)  # the two halves of such an atom go together
    amount = torch.where(same, torch.cat([mass, torch.zeros_like(mass)]), amount)
    live = amount > 0
    source, target, amount = source[live], target[live], amount[live]
    steps = cost[source, target] ** (1 / power)
    moves = Moves(
        source.numpy(),
        target.numpy(),
        amount.numpy(),
        np.empty((len(source), 0)),
        steps.numpy(),
        np.zeros(len(source), dtype=bool),
    )
    q = found.weights[0]
    empty = (mass == 0) & (q > 0)
    effective = 0.0 if bool(empty.any()) else 1 / (q[mass > 0] ** 2 / mass[mass > 0]).sum().item()
    value, expected = found.value.item(), float(amount @ l[target])
    used = float(amount @ steps**power) ** (1 / power)
    gap = value - expected
    return WorstCase(
        f"W{power}",
        float(radius),
        value,
        expected,
        gap,
        used,
        found.dual.item(),
        effective,
        True,
        _small(gap, value, l),
        q.numpy(),
        moves,
    )


# ------------------------------------------------------------------------------------ free features
def free(
    u: ArrayLike,
    p: ArrayLike,
    w: ArrayLike,
    *,
    beta: float,
    power: int,
    radius: float,
    label_cost: float | None = None,
) -> WorstCase:
    """The worst case in {W_p(Q, P) <= radius} of the DPO loss, features free in R^d, labels fixed
    or (p = 1) moving at kappa.

    p = 1: what is left of the radius after the flips that pay more than they cost, m_i > kappa b,
    goes to infinity: the share eps of every atom moves by (rest of the radius)/eps along -w, and
    the loss, whose slope there is b, gains b times the rest as eps goes to 0. No distribution
    attains that; the one returned has an eps small enough. Where flips use up the radius the
    supremum is attained. Shafieezadeh-Abadeh et al. (2015), Thm. 1. p = 2: each pair moves to the
    bottom of its deepest well (module `wells`); pairs whose two wells tie at the optimal eta are
    split between them so that the radius is met.
    """
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2, got {power}.")
    if label_cost is not None and power != 1:
        raise ValueError(
            f"label_cost needs power=1, got power={power}: with p = 2 only fixed labels are solved."
        )
    step = _Steps.start(u, p, w, beta)
    rho = _radius(radius).item()
    if power == 2:
        return _quadratic(step, rho)
    return _linear(step, rho, None if label_cost is None else check_label_cost(label_cost))


def gradient_step(
    u: ArrayLike, p: ArrayLike, w: ArrayLike, *, beta: float, radius: float
) -> WorstCase:
    """Algorithm 1: every x moves by rho grad l / (E ||grad l||²)^(1/2); fixed labels.

    value is mean l + rho (E ||grad l||²)^(1/2), which the algorithm minimises: not a bound of the
    W2 worst case but the first two terms of its expansion in rho. The moves use exactly the radius,
    and since the loss is convex in x what they achieve, `expected`, lies between value and the
    worst case: gap is not positive, and `converged` says whether it is rounding.
    """
    step = _Steps.start(u, p, w, beta)
    rho = _radius(radius).item()
    chance = torch.sigmoid(-torch.from_numpy(step.margin))
    norm = gradient_norm(
        (step.b * chance) ** 2, torch.from_numpy(step.p)
    ).item()  # grad_x l = -beta sigma(-m) w
    value = float(step.p @ step.loss(step.margin)) + rho * norm
    length = np.zeros(len(step.p)) if norm == 0 else rho * step.b * chance.numpy() / norm
    moves = step.moves(step.everywhere, step.p, length)
    return step.finish("gradient", rho, 2, value, norm / (2 * rho) if rho > 0 else math.inf, moves)


@dataclass(frozen=True)
class _Steps:
    """Atoms (those with mass) with their margins, and the unit vector along which the adversary
    moves them, -w/||w||."""

    u: Array
    p: Array
    index: Index  # of the atoms in the caller's arrays
    margin: Array
    b: float
    down: Array

    @staticmethod
    def start(u: ArrayLike, p: ArrayLike, w: ArrayLike, beta: float) -> "_Steps":
        atoms, direction = as_array(u, "u"), as_array(w, "w")
        if atoms.ndim != 2 or direction.shape != atoms.shape[1:]:
            raise ValueError(
                f"u must have shape (n, d) and w (d,), got {atoms.shape} and {direction.shape}."
            )
        if not np.isfinite(atoms).all() or not np.isfinite(direction).all():
            raise ValueError(
                "u or w holds non-finite entries (NaN or inf). Remove those pairs, or look at the"
                " fit that gave w."
            )
        mass = check_probability("p", p, len(atoms))
        for name, x in (("u", atoms), ("w", direction)):
            if x.size:
                check_magnitudes(name, torch.from_numpy(x))
        beta = check_scale("beta", beta, "It scales the log-ratio in the margin.")
        live = np.flatnonzero(mass > 0)
        norm = float(np.linalg.norm(direction))
        down = -direction / norm if norm > 0 else np.zeros_like(direction)
        return _Steps(
            atoms[live], mass[live], live, beta * atoms[live] @ direction, beta * norm, down
        )

    @property
    def everywhere(self) -> Index:
        return np.arange(len(self.p))

    @staticmethod
    def loss(margin: Array) -> Array:
        return dpo_loss(torch.from_numpy(margin)).numpy()

    def moves(
        self,
        source: Index,
        mass: Array,
        length: Array,
        flipped: NDArray[np.bool_] | None = None,
        kappa: float = 0.0,
    ) -> Moves:
        """Moves of the atoms `source` (positions among those with mass) by `length` along -w, after
        a flip where there is one."""
        flip = np.zeros(len(source), dtype=bool) if flipped is None else flipped
        arrive = np.where(flip, -1.0, 1.0)[:, None] * self.u[source] + length[:, None] * self.down
        distance = length + np.where(flip, kappa, 0.0)
        return Moves(self.index[source], np.full(len(source), -1), mass, arrive, distance, flip)

    def finish(
        self,
        name: str,
        radius: float,
        power: int,
        value: float,
        dual: float,
        moves: Moves,
        attained: bool = True,
    ) -> WorstCase:
        """Expected loss and distance, from the moves: margins on arrival are +-m - b length."""
        position = np.searchsorted(self.index, moves.source)
        turned = np.where(moves.flipped, -1.0, 1.0) * self.margin[position]
        arrival = turned - self.b * (
            (moves.u - np.where(moves.flipped, -1.0, 1.0)[:, None] * self.u[position]) @ self.down
        )
        expected = float(moves.mass @ self.loss(arrival))
        used = float(moves.mass @ moves.distance**power) ** (1 / power)
        gap = value - expected
        return WorstCase(
            name,
            radius,
            value,
            expected,
            gap,
            used,
            dual,
            math.nan,
            attained,
            _small(gap, value, None),
            None,
            moves,
        )


def _linear(step: _Steps, rho: float, kappa: float | None) -> WorstCase:
    """p = 1: flip labels where that pays and the radius lasts, and send off what is left of the
    radius."""
    flip, eta, spent = np.zeros(len(step.p)), step.b, 0.0
    losses, gain = step.loss(step.margin), np.zeros(len(step.p))
    if kappa is not None:
        flip, eta = _flips(step, rho, kappa)
        spent = kappa * float(step.p @ flip)
        gain = np.maximum(step.margin - kappa * eta, 0.0)  # l(-m) - l(m) = m
    value = eta * rho + float(step.p @ (losses + gain))
    rest = max(rho - spent, 0.0) if 0 < step.b == eta else 0.0
    source = np.tile(step.everywhere, 2)
    mass = np.concatenate([step.p * (1 - flip), step.p * flip])
    flipped = np.repeat([False, True], len(step.p))
    length = np.zeros(len(mass))
    if rest > 0:  # split every move: most of it stays, the share eps goes far
        margin = np.where(flipped, -1.0, 1.0) * step.margin[source]
        eps = min(
            _ESCAPE * value / float(mass @ np.logaddexp(0, margin)), 0.5
        )  # at most eps E log(1 + exp m) is missing
        source, flipped = np.tile(source, 2), np.tile(flipped, 2)
        mass = np.concatenate([(1 - eps) * mass, eps * mass])
        length = np.concatenate([length, length + rest / eps])
    live = mass > 0
    moves = step.moves(source[live], mass[live], length[live], flipped[live], kappa or 0.0)
    return step.finish("W1", rho, 1, value, eta, moves, attained=rest == 0)


def _flips(step: _Steps, rho: float, kappa: float) -> tuple[Array, float]:
    """The share of each label that flips, largest margins first as long as m > kappa b and the
    radius lasts; with eta."""
    flip = np.zeros(len(step.p))
    for margin in np.unique(step.margin[step.margin > kappa * step.b])[::-1]:
        level = step.margin == margin
        share = (rho / kappa - float(step.p @ flip)) / float(step.p @ level)
        flip[level] = min(max(share, 0.0), 1.0)
        if share < 1:
            return flip, float(margin) / kappa
    return flip, step.b


def _quadratic(step: _Steps, rho: float) -> WorstCase:
    """p = 2: the radius used, a/b (E q²)^(1/2), grows with a = b²/(2 eta), with jumps where wells
    tie; bisection finds a.

    Between the two neighbouring numbers at the end the radius is crossed: the worst case mixes the
    two plans.
    """
    if rho == 0 or step.b == 0:
        value = float(step.p @ step.loss(step.margin))
        dual = math.inf if rho == 0 else 0.0
        return step.finish(
            "W2",
            rho,
            2,
            value,
            dual,
            step.moves(step.everywhere, step.p, np.zeros(len(step.p))),
        )
    margin, p = torch.from_numpy(step.margin)[None], torch.from_numpy(step.p)

    def lengths(a: float) -> Tensor:
        return a / step.b * global_well(margin, torch.tensor([a], dtype=torch.float64))[1][0]

    def spent(length: Tensor) -> float:
        return float((p * length**2).sum())

    least = (
        float((p * torch.sigmoid(-margin[0]) ** 2).sum()) ** 0.5
    )  # moving along -w only raises q
    low, high = step.b * rho, 1.01 * step.b * rho / max(least, 1e-300)
    while low < (middle := math.sqrt(low) * math.sqrt(high)) < high:
        low, high = (low, middle) if spent(lengths(middle)) > rho**2 else (middle, high)
    near, far = lengths(low), lengths(high)
    crossing = spent(far) - spent(near)
    share = min(max((rho**2 - spent(near)) / crossing, 0.0), 1.0) if crossing > 0 else 0.0
    split = far - near > 1e-6 * far  # the wells of these pairs tie
    mixed = ((1 - share) * near**2 + share * far**2).sqrt()
    tied = split.nonzero()[:, 0].numpy()
    source = np.concatenate([step.everywhere, tied])
    mass = np.concatenate([np.where(split, (1 - share) * step.p, step.p), share * step.p[tied]])
    length = np.concatenate([torch.where(split, near, mixed).numpy(), far.numpy()[tied]])
    length *= min(
        rho / math.sqrt(max(float(mass @ length**2), 1e-300)), 1.0
    )  # rounding must not leave the ball
    eta = step.b**2 / (2 * low)
    value = eta * rho**2 + float(
        (p * global_well(margin, torch.tensor([low], dtype=torch.float64))[0][0]).sum()
    )
    return step.finish("W2", rho, 2, value, eta, step.moves(source, mass, length))


# ------------------------------------------------------------------------------------------- checks
def _losses(losses: ArrayLike, p: ArrayLike) -> tuple[Tensor, Tensor]:
    l = as_float64(losses, "losses")
    if l.ndim != 1 or l.numel() == 0 or not bool(torch.isfinite(l).all()):
        raise ValueError(
            f"losses must be n >= 1 finite numbers, got shape {tuple(l.shape)} with"
            f" {int((~torch.isfinite(l)).sum())} non-finite entries. Remove those pairs first."
        )
    check_magnitudes("losses", l)
    p = as_float64(p, "p")
    if p.shape != l.shape:
        raise ValueError(
            f"losses and p must be of equal length, one number for each atom; got {len(l)} and"
            f" {tuple(p.shape)}."
        )
    return l, torch.from_numpy(check_probability("p", p, len(l)))


def _radius(radius: float) -> Tensor:
    return check_radius(
        "radius", check_number("radius", radius), 1, torch.zeros(1, dtype=torch.float64)
    )[0]


def _small(gap: float, value: float, losses: Tensor | None) -> bool:
    """Whether a gap is small against the value or, for losses around 0, against their size."""
    return abs(gap) <= _TOLERANCE * max(
        abs(value), 0.0 if losses is None else losses.abs().max().item()
    )
