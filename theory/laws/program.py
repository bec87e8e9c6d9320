"""How the solution of a program moves with the weights of its atoms: its directional derivative.

    min over x = (w, nuisances) of  sum_i p_i max_j f_ij(x),    ||w + theta_ref|| <= B

At the solution some atoms have several pieces f_ij of equal height (a kink), and theta may lie on
the sphere (a wall). What a positive multiplier holds stays held when p moves a little: the solution
moves in the tangent space of these kinks and walls, like that of a quadratic program. Where all
multipliers are positive it moves linearly in p; a kink or wall that is met without a multiplier
lets go to one side. Shapiro (1988); Bonnans and Shapiro (2000), Section 5.2; Theorem F2 of
docs/theorems/limit-laws.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from theory.laws.settled import (
    FREE,
    NONE,
    SPHERE,
    Places,
    Settled,
    hessian,
    null_space,
    settled,
    units,
)
from theory.policy import Array
from theory.solvers.local import LocalProgram, NoLaw

_FLAT = 1e-10  # curvature, relative to that of the coordinates, that counts as none
_BLURRED = 1e-2  # noise of a multiplier's share beyond which it is not known


@dataclass(frozen=True, eq=False)
class Derivative:
    """The derivative of x in p: dx minimises sum_i dp_i a_i.dx + dx'H dx/2 over `held` dx = 0 and
    `free` dx <= 0.

    gradients: (K, D) a_i, of the piece with the largest mass, `base` (K,). curvature: (D, D) H.
    held: (r, D) kinks and walls with their positive multipliers `mass` (r,); `owner` (r,) is the
    atom of a kink, SPHERE or FLOOR. basis: (D, m) of their null space. free: (F, D). spare: (S, D)
    gradients of the positive heights `room` (S,) by which other pieces are missed.
    """

    gradients: Array
    curvature: Array
    held: Array
    mass: Array
    owner: Places
    base: Array
    basis: Array
    free: Array
    spare: Array
    room: Array

    @property
    def linear(self) -> bool:
        """Whether dx is linear in dp."""
        return len(self.free) == 0

    @property
    def influence(self) -> Array:
        """(K, D): dx = sum_i dp_i influence_i, where the derivative is linear."""
        if self.basis.shape[1] == 0:
            return np.zeros_like(self.gradients)
        inner = self.basis.T @ self.curvature @ self.basis
        return -np.linalg.solve(inner, self.basis.T @ self.gradients.T).T @ self.basis.T

    def off_the_sphere(self) -> "Derivative":
        """The same without the bound ||theta|| <= B.

        Raises:
            NoLaw: no curvature without it.
        """
        kept = self.owner != SPHERE
        basis = _tangent(self.held[kept], self.curvature)
        _check_curved(basis, self.curvature)
        mass, owner = self.mass[kept], self.owner[kept]
        return replace(self, held=self.held[kept], mass=mass, owner=owner, basis=basis)

    @property
    def multiplier_influence(self) -> Array:
        """(K, r) of `mass`: how the gradient that kinks and walls balance moves."""
        unit = units(self.curvature)
        left = (self.gradients + self.influence @ self.curvature) * unit
        rows = self.held * unit
        size = np.linalg.norm(rows, axis=1).clip(min=1e-300)
        found = np.linalg.lstsq((rows / size[:, None]).T, left.T, rcond=1e-9)[0]
        return -np.asarray(found / size[:, None]).T

    def along(self, dp: Array) -> Array:
        """(R, D) dx for directions dp (R, K): in the metric of the curvature the point of a cone
        that is nearest to where x would go without it. Moreau (1962)."""
        if self.basis.shape[1] == 0:
            return np.zeros((len(dp), len(self.curvature)))
        root = np.linalg.cholesky(self.basis.T @ self.curvature @ self.basis)
        x = -np.linalg.solve(root, self.basis.T @ (dp @ self.gradients).T)  # (m, R)
        if not self.linear:
            polar = np.linalg.solve(root, (self.free @ self.basis).T)  # (m, F)
            x = x - polar @ np.stack([nnls(polar, y)[0] for y in x.T], 1)
        return (self.basis @ np.linalg.solve(root.T, x)).T


def derivative(program: LocalProgram, p: Array, theta_ref: Array, bound: float) -> Derivative:
    """Differentiate the solution of a program in the weights p (K,) of its atoms.

    Raises:
        NoLaw: no curvature in a direction in which the solution may move, several worst cases that
            differ in curvature, or a solution that is not known well enough.
    """
    at = settled(program, p, theta_ref, bound)
    mass = np.concatenate([at.masses[at.other], at.price])
    share = np.concatenate([at.masses[at.other] / p[at.atom[at.other]], at.price])
    least = np.concatenate([np.maximum(NONE, at.noise), np.full(len(at.price), FREE)])
    if (at.noise > _BLURRED).any():
        rare = p[at.atom[at.other[at.noise.argmax()]]]
        raise NoLaw(
            f"an atom of probability {rare:.1e} has a kink at the solution, and whether it holds it"
            " is below rounding. Leave such atoms out, or resample."
        )
    rows = np.concatenate([at.slope[at.other] - at.slope[at.base[at.atom[at.other]]], at.wall])
    owner = np.append(at.atom[at.other], at.walls)
    held, free = rows[share > least], rows[share <= least]

    def bent(masses: Array, prices: Array) -> Array:
        found = hessian(program, at.x, masses) * np.outer(at.scale, at.scale)
        return found + (prices[0] * at.bend if SPHERE in at.walls else 0.0)

    curvature = bent(at.masses, at.price)
    basis = _tangent(held, curvature)
    _check_curved(basis, curvature)
    _check_one_curvature(at, basis, curvature, bent)
    missed = (at.lost < np.inf) & ~np.isin(np.arange(len(at.lost)), np.append(at.base, at.other))
    unscaled = 1 / at.scale
    return Derivative(
        at.slope[at.base] * unscaled,
        curvature * np.outer(unscaled, unscaled),
        held * unscaled,
        mass[share > least],
        owner[share > least],
        at.masses[at.base],
        at.scale[:, None] * basis,
        free * unscaled,
        (at.slope[at.base[at.atom[missed]]] - at.slope[missed]) * unscaled,
        at.lost[missed],
    )


def _tangent(held: Array, curvature: Array) -> Array:
    """(D, m) basis of what the rows (r, D) leave free, orthonormal in the units of `units`."""
    unit = units(curvature)
    rows = held * unit
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-300)
    return unit[:, None] * null_space(rows, len(unit))


def _check_curved(basis: Array, curvature: Array) -> None:
    if not basis.shape[1]:
        return
    inner = np.linalg.eigvalsh(basis.T @ curvature @ basis)  # in units where coordinates have 1
    if not inner[0] > _FLAT:
        raise NoLaw(
            f"the least curvature at the solution is {inner[0]:.1e} of that of the coordinates: the"
            " minimiser is not unique, or not at the rate n^-1/2. The pairs may not span all"
            " directions."
        )


def _check_one_curvature(
    at: Settled, basis: Array, curvature: Array, bent: Callable[[Array, Array], Array]
) -> None:
    """Several sets of multipliers are harmless where they agree in curvature."""
    if not basis.shape[1]:
        return
    unit = units(curvature)
    for masses, prices in zip(at.spread.T, at.price_spread.T, strict=True):
        change = bent(masses, prices)
        size = np.abs(change * np.outer(unit, unit)).max()
        if np.abs(basis.T @ change @ basis).max() > 1e-6 * max(size, 1.0):
            raise NoLaw(
                "the worst case is not unique and its choices differ in curvature: the limit solves"
                " a saddle-point problem. Resample (m out of n) instead."
            )
