"""The AOT estimator for linear rewards: min over ||theta|| <= B of OT_h of the rewards theta.a and
theta.b, from several starts.

    fit = minimise_aot(chosen, rejected, starts=random_starts(rng, 8, d, bound), h=logistic,
    beta=1.0, bound=2.0)

The objective is a minimum over couplings of convex functions, and not convex (its kinks bend down).
Alternating between the best coupling of theta (sorting) and a better theta for that coupling (a
convex problem: some Newton steps) lowers it in each round and
ends where neither step does: at a local minimum, unless the coupling is not unique there. Derived;
the objective is that of Melnyk et al., arXiv:2406.05882.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from theory.batch import (
    ArrayLike,
    PairBatch,
    as_float64,
    check_finite,
    check_magnitudes,
    feature_names,
)
from theory.checks import as_array, check_number, check_scale
from theory.functionals import aot_unpaired
from theory.policy import Array
from theory.solvers.newton import Domain, minimise
from theory.transport import Spectrum, check_weights, coupling

_MAX_ROUNDS = 100
_HALVINGS = 20  # of a step of the weighted objective

Cost = Callable[[Tensor, float], Tensor]  # h(t, beta)


@dataclass(frozen=True, eq=False)
class AotFit:
    """The best of S starts for each of R samples.

    theta: (R, d). value: (R,) objective at theta. starts: (R, S) value that each start ended at;
    their spread shows how far from convex the sample is. gap: (R,) bound on how much another theta
    could gain at the coupling of this one. converged: (R,) the alternation ended and gap <=
    tolerance * max(1, |value|); it says nothing of other couplings.
    """

    theta: Tensor
    value: Tensor
    starts: Tensor
    gap: Tensor
    converged: Tensor


def minimise_aot(
    chosen: ArrayLike,
    rejected: ArrayLike,
    chosen_weights: ArrayLike | None = None,
    rejected_weights: ArrayLike | None = None,
    *,
    starts: ArrayLike,
    h: Cost,
    beta: float,
    bound: float,
    tolerance: float = 1e-10,
    spectrum: Spectrum | None = None,
) -> AotFit:
    """Minimise OT_h(theta.chosen, theta.rejected) over the ball.

    The objective is that of Melnyk et al., arXiv:2406.05882v1, with the rewards theta.a; the
    algorithm, best coupling and better theta in turn, is derived. It ends at a local minimum.

    Args:
        chosen, rejected: (n, d) and (m, d) features, or (R, n, d) and (R, m, d).
        chosen_weights, rejected_weights: (n,) or (R, n) probabilities, or None: equal ones.
        starts: (S, d) or (R, S, d) points to start from.
        h: convex with two derivatives, called as h(t, beta), such as `logistic`.
        beta: slope or margin of h.
        bound: B in ||theta|| <= B, in the inverse unit of the features.
        tolerance: largest gap of a fit that counts as converged, relative to max(1, |value|).
        spectrum: weights of the quantile levels, as of `aot_unpaired`, or None. With them the
            masses of the atoms change with theta, so that a better theta for a coupling can have a
            higher objective: its step is then halved until it has not.

    Returns:
        A `theory.aot.AotFit`, the best start of each sample: theta (R, d), value, gap and converged
        (R,), and starts (R, S), the value that each start ended at, in the unit of h.

    Raises:
        ValueError: input that is not finite numbers of these shapes and magnitudes, weights that
            are negative or all zero, or a bound that is not positive.

    >>> from theory import least_squares, minimise_aot
    >>> chosen, rejected, starts = [[1.0], [2.0]], [[0.0], [1.0]], [[0.5], [-0.5]]
    >>> found = minimise_aot(
    ...     chosen, rejected, starts=starts, h=least_squares, beta=1.0, bound=2.0
    ... )  # sorted, both gaps are theta
    >>> found.theta.numpy().round(6).tolist(), found.starts.shape
    ([[1.0]], torch.Size([1, 2]))
    """
    a, b, start = (
        as_float64(x, name)
        for x, name in ((chosen, "chosen"), (rejected, "rejected"), (starts, "starts"))
    )
    p = None if chosen_weights is None else as_float64(chosen_weights, "chosen_weights")
    q = None if rejected_weights is None else as_float64(rejected_weights, "rejected_weights")
    bound = check_scale("bound", bound, "It is B in ||theta|| <= B.")
    beta = check_number("beta", beta)
    if not math.isfinite(beta):
        raise ValueError(
            f"beta must be a finite number, got {beta}. It is the slope or margin of h."
        )
    for name, x, given in (
        ("chosen", a, chosen),
        ("rejected", b, rejected),
        ("starts", start, starts),
    ):
        if x.ndim not in (2, 3) or 0 in x.shape:
            raise ValueError(
                f"{name} must have shape (n, d) or (R, n, d) with n >= 1 and d >= 1, got"
                f" {tuple(x.shape)}."
            )
        check_finite(name, x, "Leave those rows out first.", feature_names(given))
        check_magnitudes(name, x)
    for name, mass, x in (("chosen_weights", p, a), ("rejected_weights", q, b)):
        if mass is not None:
            check_weights(mass, x.shape[-2], name)
    if a.shape[-1] != b.shape[-1] or start.shape[-1] != a.shape[-1]:
        raise ValueError(
            f"chosen, rejected and starts must share their last axis d, got {tuple(a.shape)},"
            f" {tuple(b.shape)} and {tuple(start.shape)}."
        )
    # one problem for each sample and start: leading axes (R, S)
    a, b, start = (x if x.ndim == 3 else x[None] for x in (a, b, start))
    p, q = (None if x is None else (x if x.ndim == 2 else x[None])[:, None] for x in (p, q))
    replicates = max(x.shape[0] for x in (a, b, start, p, q) if x is not None)
    theta = start.expand(replicates, -1, -1).clone()
    ball = Domain(torch.zeros(theta.shape[-1], dtype=torch.float64, device=theta.device), bound)
    theta = ball.project(theta)

    def rewards(theta: Tensor) -> tuple[Tensor, Tensor]:
        return theta @ a.mT, theta @ b.mT

    def objective(theta: Tensor) -> Tensor:
        return aot_unpaired(*rewards(theta), h, beta, p, q, spectrum=spectrum)

    def frozen(theta: Tensor) -> "_FrozenCoupling":
        """The problem with the coupling that is best at theta, for all samples and starts in one
        batch."""
        plan = coupling(*rewards(theta), p, q, spectrum=spectrum)
        sample = torch.arange(replicates, device=theta.device)[:, None, None]
        x = (
            a.expand(replicates, -1, -1)[sample, plan.row]
            - b.expand(replicates, -1, -1)[sample, plan.column]
        )
        return _FrozenCoupling(
            PairBatch(x.flatten(0, 1).mT.contiguous(), plan.mass.flatten(0, 1)), h, beta
        )

    value = objective(theta)
    active = torch.ones_like(value, dtype=torch.bool).flatten()
    for _ in range(_MAX_ROUNDS):
        problem = frozen(theta).select(active)
        moved = theta.flatten(0, 1).clone()
        # what a few steps and halvings leave is made up for in the next round
        moved[active], _, _ = minimise(problem, moved[active], ball, max_steps=3, halvings=10)
        moved = moved.reshape(theta.shape)
        lower = objective(moved)
        better = lower < value - 1e-14 * (1 + value.abs())
        for _ in range(0 if spectrum is None else _HALVINGS):
            if better[active.reshape(value.shape)].all():
                break
            moved = torch.where(better[..., None], moved, (theta + moved) / 2)
            lower = objective(moved)
            better = lower < value - 1e-14 * (1 + value.abs())
        theta, value = (
            torch.where(better[..., None], moved, theta),
            torch.where(better, lower, value),
        )
        active = better.flatten()
        if not active.any():
            break
    best = value.argmin(-1)
    every = torch.arange(replicates, device=theta.device)
    _, gradient, _ = frozen(theta).derivatives(theta.flatten(0, 1))
    gap = ball.linear_gap(theta, gradient.reshape(theta.shape))[every, best].clamp(min=0)
    lowest = value[every, best]
    converged = (gap <= tolerance * lowest.abs().clamp(min=1)) & ~active.reshape(value.shape)[
        every, best
    ]
    return AotFit(theta[every, best], lowest, value, gap, converged)


def random_starts(rng: np.random.Generator, count: int, dimension: int, bound: float) -> Tensor:
    """(count, d) points spread uniformly over the ball."""
    v = rng.standard_normal((count, dimension))
    v *= (
        bound * rng.random((count, 1)) ** (1 / dimension) / np.linalg.norm(v, axis=1, keepdims=True)
    )
    return torch.from_numpy(v)


def potentials(u: Array, v: Array, h: Cost, beta: float, p: Array, q: Array) -> tuple[Array, Array]:
    """The dual of OT_h between atoms u (n,) with chances p and v (m,) with q: phi (n,) and psi
    (m,).

    phi_i + psi_j <= h(u_i - v_j), with equality along the monotone coupling, so that p.phi + q.psi
    = OT_h. Every chance must be
    positive: an atom that the coupling does not visit has no price.
    """
    u, v, p, q = (as_array(x, name) for x, name in ((u, "u"), (v, "v"), (p, "p"), (q, "q")))
    if not ((p > 0).all() and (q > 0).all()):
        raise ValueError(
            f"every atom needs a positive chance, got {min(p.min(), q.min()):g}. Leave atoms"
            " without one out."
        )
    values = torch.from_numpy(u), torch.from_numpy(v)
    plan = coupling(*values, torch.from_numpy(p), torch.from_numpy(q))
    held = plan.mass > 0
    price = h(values[0][:, None] - values[1], beta).numpy()
    phi, psi = np.zeros(len(u)), np.zeros(len(v))
    i, j = int(plan.row[held][0]), int(plan.column[held][0])
    psi[j] = price[i, j]
    for row, column in zip(plan.row[held].tolist(), plan.column[held].tolist(), strict=True):
        if row != i:  # the staircase goes down, then to the right
            i = row
            phi[i] = price[i, j] - psi[j]
        if column != j:
            j = column
            psi[j] = price[i, j] - phi[i]
    return phi, psi


@dataclass(frozen=True)
class _FrozenCoupling:
    """E h(theta.x) over the pairs of a coupling, x = a - b: convex and smooth in theta."""

    pairs: PairBatch
    h: Cost
    beta: float

    def derivatives(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = self.pairs.p
        with torch.enable_grad():
            t = self.pairs.project(v).requires_grad_()
            cost = self.h(t, self.beta)
            (slope,) = torch.autograd.grad(cost.sum(), t, create_graph=True)
            curvature = (
                torch.autograd.grad(slope.sum(), t)[0]
                if slope.requires_grad
                else torch.zeros_like(t)
            )  # h may be linear
        slope = slope.detach()
        return (
            (p * cost.detach()).sum(-1),
            self.pairs.pull(p * slope),
            self.pairs.outer(p * curvature),
        )

    def select(self, index: Tensor) -> "_FrozenCoupling":
        return replace(self, pairs=self.pairs.select(index))
