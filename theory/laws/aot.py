"""The limit law of AOT on finitely many atoms: Theorem F5, docs/theorems/aot.md. Derived.

    law = aot_law(chosen, rejected, p, q, theta, h=logistic, beta=1.0, bound=2.0)
    law.covariance  # of sqrt(n) (theta_n - theta*), n pairs in the sample
    law.excess  # n (OT_h(theta_n) - OT_h(theta*)) -> sum_k excess_k chi2_1

The sample moves OT_h by E_n phi + E_n psi, with the Kantorovich potentials phi, psi of the optimal
coupling, and its gradient by E_n grad phi + E_n grad psi.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from theory.checks import as_array, check_probability, check_scale
from theory.policy import Array
from theory.transport import coupling

Cost = Callable[[Tensor, float], Tensor]  # h(t, beta)

_SAME = 1e-9  # two rewards, or two levels, this close (relative) count as equal
_SINGULAR = 1e-12  # least curvature, relative to the largest, that is not rounding
_FLAT = 1e-5  # largest gradient of a stationary point, relative to the largest of one pair


@dataclass(frozen=True)
class AotLaw:
    """The law of sqrt(n) (theta_n - theta*): normal, with mean 0.

    covariance: (d, d), of rank d at most, or d - 1 where theta* is on the bound. excess: (d,), or
    (d - 1,) on the bound, weights of independent chi-square variables with one degree of freedom
    whose sum is the limit of n (OT_h(theta_n) - OT_h(theta*)); its mean is their sum. curvature:
    least eigenvalue of the Hessian on the tangent space, that of the bound included; infinite for
    d = 1 on the bound, where the law is a point. multiplier: c in gradient =
    -c theta*/B, 0 inside.
    """

    covariance: Array
    excess: Array
    curvature: float
    multiplier: float

    def draw(self, rng: np.random.Generator, count: int) -> Array:
        """`count` draws (count, d) of the law."""
        values, vectors = np.linalg.eigh(self.covariance)
        z = rng.standard_normal((count, len(values)))
        return z * np.sqrt(np.clip(values, 0, None)) @ vectors.T


def aot_law(
    chosen: Array,
    rejected: Array,
    p: Array,
    q: Array,
    theta: Array,
    *,
    h: Cost,
    beta: float,
    bound: float,
    joint: Array | None = None,
) -> AotLaw:
    """Theorem F5: the law of the AOT minimiser over ||theta|| <= bound from n pairs.

    Args:
        chosen, rejected: (K, d) and (M, d) features of the atoms.
        p, q: (K,) and (M,) their chances, all positive.
        theta: (d,) the only minimiser of the population's OT_h over the ball.
        h: convex with two derivatives, called as h(t, beta), such as `logistic`.
        beta: slope or margin of h.
        bound: B, in the inverse unit of the features.
        joint: (K, M) chances of the pairs, with marginals p and q, where the two responses of a
            pair depend on each other; None: independent samples of n each.

    Returns:
        A `theory.laws.aot.AotLaw`.

    Raises:
        ValueError: theta is no strict local minimum; two atoms have the same reward, or a part of
            the chosen ones the same mass as a part of the rejected ones, so that the law is not
            normal.

    >>> import numpy as np
    >>> from theory import least_squares
    >>> a, b = np.array([[2.0], [1.0]]), np.array([[0.0]])  # regression: theta = E a / E a²
    >>> law = aot_law(
    ...     a, b, [0.4, 0.6], [1.0], np.array([1.4 / 2.2]), h=least_squares, beta=1.0, bound=2.0
    ... )
    >>> law.covariance.round(5).tolist(), law.multiplier
    ([[0.04098]], 0.0)
    """
    a, b, at = (
        as_array(x, name)
        for x, name in ((chosen, "chosen"), (rejected, "rejected"), (theta, "theta"))
    )
    if a.ndim != 2 or b.ndim != 2 or at.shape != a.shape[1:] or at.shape != b.shape[1:]:
        raise ValueError(
            "chosen, rejected and theta must have shapes (K, d), (M, d) and (d,), got"
            f" {a.shape}, {b.shape} and {at.shape}."
        )
    chances = check_probability("p", p, len(a)), check_probability("q", q, len(b))
    bound = check_scale("bound", bound, "It is B in ||theta|| <= B.")
    row, column, mass = _staircase(a @ at, b @ at, *chances)
    x = a[row] - b[column]
    t = torch.from_numpy(x @ at).requires_grad_()
    (first,) = torch.autograd.grad(h(t, beta).sum(), t, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), t)
    slope = first.detach().numpy()[:, None] * x  # (pieces, d)
    gradient = mass @ slope
    hessian = np.einsum("k,ki,kj->ij", mass * second.numpy(), x, x)
    tangent, multiplier = _tangent(at, gradient, bound, np.linalg.norm(slope, axis=1).max())
    curved = tangent.T @ hessian @ tangent + multiplier / bound * np.eye(tangent.shape[1])
    curvatures = np.linalg.eigvalsh(curved)
    least = float(curvatures.min(initial=np.inf))  # d = 1 on the bound: no tangent
    if not least > _SINGULAR * curvatures.max(initial=0.0):
        raise ValueError(
            f"the least curvature at theta is {least:.3g}: no strict minimum. Minimise from more"
            " starts; where directions of theta change no reward, leave them out."
        )
    of_chosen, of_rejected = _potential_gradients(row, column, slope @ tangent, len(a), len(b))
    scatter = _scatter(of_chosen, of_rejected, *chances, joint)
    inverse = np.linalg.inv(curved)
    root = np.linalg.cholesky(inverse)
    return AotLaw(
        tangent @ inverse @ scatter @ inverse @ tangent.T,
        np.linalg.eigvalsh(root.T @ scatter @ root) / 2,
        least,
        multiplier,
    )


def _staircase(u: Array, v: Array, p: Array, q: Array) -> tuple[Array, Array, Array]:
    """Row, column and mass of the pieces of the monotone coupling: K + M - 1 of them, or the law is
    not normal."""
    if min(p.min(), q.min()) <= 0:
        raise ValueError(
            f"every atom needs a positive chance, got {min(p.min(), q.min()):g}. Leave atoms"
            " without one out."
        )
    scale = max(np.ptp(np.concatenate([u, v])), np.finfo(float).tiny)
    for name, rewards in (("chosen", u), ("rejected", v)):
        closest = np.diff(np.sort(rewards)).min(initial=np.inf)
        if closest <= _SAME * scale:
            raise ValueError(
                f"two {name} atoms have the same reward at theta (a difference of {closest:.1e}):"
                " more than one coupling may be optimal, and the law is not normal. Merge atoms"
                " with equal features; else draw the law by simulation."
            )
    plan = coupling(*(torch.from_numpy(x) for x in (u, v, p, q)))
    held = plan.mass.numpy() > _SAME
    if held.sum() != len(u) + len(v) - 1:
        raise ValueError(
            f"the optimal coupling has {held.sum()} pieces, not {len(u) + len(v) - 1}: some of the"
            " chosen atoms have together the mass of some of the rejected ones, the potentials are"
            " not unique, and the law is not normal. Draw it by simulation; other chances, however"
            " close, have a normal law."
        )
    return plan.row.numpy()[held], plan.column.numpy()[held], plan.mass.numpy()[held]


def _tangent(at: Array, gradient: Array, bound: float, scale: float) -> tuple[Array, float]:
    """An orthonormal basis (d, d) or (d, d - 1) of the directions in which theta* is free, and the
    multiplier of the bound."""
    norm = float(np.linalg.norm(at))
    d = len(at)
    basis, multiplier = np.eye(d), 0.0
    if norm >= bound * (1 - 1e-9):
        outward = at / norm
        multiplier = -float(gradient @ outward)
        if multiplier <= _FLAT * scale:
            raise ValueError(
                f"theta is on the bound with the multiplier {multiplier:.3g}: it is no minimum, or"
                " one that the bound just touches, whose law is not normal. Take another bound."
            )
        basis = np.linalg.svd(outward[None])[2][1:].T
    left = float(np.linalg.norm(basis.T @ gradient))
    if left > _FLAT * scale:
        raise ValueError(
            f"the gradient at theta is {left:.3g}, against {scale:.3g} for a single pair: no"
            " minimum. Take theta from minimise_aot, with the same h, beta and bound."
        )
    return basis, multiplier


def _potential_gradients(
    row: Array, column: Array, slope: Array, count: int, other: int
) -> tuple[Array, Array]:
    """grad phi (K, d) and grad psi (M, d): their sum is the slope on every piece of the
    staircase."""
    phi, psi = np.zeros((count, slope.shape[1])), np.zeros((other, slope.shape[1]))
    psi[column[0]] = slope[0]
    for k in range(1, len(row)):
        if row[k] != row[k - 1]:
            phi[row[k]] = slope[k] - psi[column[k]]
        else:
            psi[column[k]] = slope[k] - phi[row[k]]
    return phi, psi


def _scatter(phi: Array, psi: Array, p: Array, q: Array, joint: Array | None) -> Array:
    """Var(grad phi(U) + grad psi(V)) of one pair."""
    phi, psi = phi - p @ phi, psi - q @ psi
    own = phi.T @ (p[:, None] * phi) + psi.T @ (q[:, None] * psi)
    if joint is None:
        return own
    pairs = as_array(joint, "joint")
    if pairs.shape != (len(p), len(q)) or (pairs < 0).any():
        raise ValueError(
            f"joint must be {len(p)} by {len(q)} non-negative chances, got shape {pairs.shape}"
            f" and the least entry {pairs.min():g}."
        )
    off = max(np.abs(pairs.sum(1) - p).max(), np.abs(pairs.sum(0) - q).max())
    if off > 1e-9:
        raise ValueError(
            f"joint must have the marginals p and q, and is off by {off:.2g}. Take p and q from it."
        )
    cross = phi.T @ pairs @ psi
    return own + cross + cross.T
