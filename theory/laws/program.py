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
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog, nnls

from theory.policy import Array
from theory.solvers.local import LocalProgram, NoLaw

Places = NDArray[np.int64]

# pieces this close, relative to how far pieces are apart, count as equally high at a solution that
# is known to rounding; next to collapse all losses are nearly equal. At one that is known less well
# up to the same share of the largest height, if nothing closer balances the gradient.
TIE = 1e-6
_WIDER = 10.0
SPHERE, FLOOR = -1, -2  # owners of rows that belong to no atom
_REST = 1e-5  # what may be left of the gradient at a solution, relative to its parts
_NONE = 1e-6  # a multiplier below this share of the mass of its atom is none
_FLAT = 1e-10  # curvature, relative to the largest in scaled coordinates, that counts as none


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
        bent = np.diag(self.curvature)
        size = 1 / np.sqrt(np.where(bent > 0, bent, 1.0))
        basis = _null_space(self.held[kept] * size, len(size))
        _check_curved(basis, self.curvature * np.outer(size, size))
        basis = size[:, None] * basis
        mass, owner = self.mass[kept], self.owner[kept]
        return replace(self, held=self.held[kept], mass=mass, owner=owner, basis=basis)

    @property
    def multiplier_influence(self) -> Array:
        """(K, r) of `mass`: how the gradient that kinks and walls balance moves."""
        left = self.gradients + self.influence @ self.curvature
        return -np.asarray(np.linalg.lstsq(self.held.T, left.T, rcond=1e-9)[0]).T

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


@dataclass(frozen=True, eq=False)
class _Pieces:
    """The pieces near the solution: heights (M,), gradients (M, D) in coordinates that are scaled
    by `scale` (D,), the atom of each (M,), and which are as high as their atom's highest."""

    height: Array
    slope: Array
    scale: Array
    atom: Places
    lost: Array
    active: NDArray[np.bool_]


def derivative(program: LocalProgram, p: Array, theta_ref: Array, bound: float) -> Derivative:
    """Differentiate the solution of a program in the weights p (K,) of its atoms.

    Raises:
        NoLaw: no curvature in a direction in which the solution may move, or several worst cases
            that differ in curvature.
        RuntimeError: x is not a solution.
    """
    pieces, wall, bend, system, masses, price = _balanced(program, p, theta_ref, bound)
    base = _highest(pieces.atom, np.where(pieces.active, masses, -1.0), len(p))
    other = pieces.active.copy()
    other[base] = False
    rows = np.concatenate([pieces.slope[other] - pieces.slope[base[pieces.atom[other]]], wall])
    mass = np.concatenate([masses[other], price])
    share = np.concatenate([masses[other] / p[pieces.atom[other]], price])
    walls = ([SPHERE] if bend is not None else []) + [FLOOR]
    owner = np.append(pieces.atom[other], np.array(walls[: len(wall)], dtype=np.int64))
    held, free = rows[share > _NONE], rows[share <= _NONE]
    basis = _null_space(held, pieces.slope.shape[1])

    def bent(weights: Array, prices: Array) -> Array:
        found = _hessian(program, weights) * np.outer(pieces.scale, pieces.scale)
        return found + (prices[0] * bend if len(wall) and bend is not None else 0.0)

    curvature = bent(masses, price)
    _check_curved(basis, curvature)
    _check_one_curvature(system, pieces, basis, curvature, bent)
    missed = ~pieces.active & (pieces.lost < np.inf)
    spare = pieces.slope[base[pieces.atom[missed]]] - pieces.slope[missed]
    room = pieces.lost[missed]
    unscaled = 1 / pieces.scale
    return Derivative(
        pieces.slope[base] * unscaled,
        curvature * np.outer(unscaled, unscaled),
        held * unscaled,
        mass[share > _NONE],
        owner[share > _NONE],
        masses[base],
        pieces.scale[:, None] * basis,
        free * unscaled,
        spare * unscaled,
        room,
    )


def _balanced(
    program: LocalProgram, p: Array, theta_ref: Array, bound: float
) -> tuple[_Pieces, Array, Array | None, "_System", Array, Array]:
    """The pieces, walls and multipliers at the closest ties that balance the gradient."""
    height = program.pieces(program.x).numpy()
    slope = _jacobian(program.pieces, program.x)
    if not (np.isfinite(height).all() and np.isfinite(slope).all()):
        raise RuntimeError(
            "the program overflows at the solution, and cannot be differentiated there. Take beta"
            " or the features in another unit."
        )
    atom = np.arange(len(p)) if program.atom is None else program.atom.numpy()
    top = np.full(len(p), -np.inf)
    np.maximum.at(top, atom, height)
    lost = top[atom] - height
    lost[p[atom] <= 0] = np.inf  # no mass, no say
    widest = TIE * (1 + np.abs(top[p > 0]).max())
    tie = min(TIE * float(lost[lost < np.inf].max()), widest)
    while True:
        pieces = _pieces(height, slope, atom, lost, tie, p)
        wall, bend = _wall(program, theta_ref, bound, pieces.scale)
        system = _system(pieces, p, wall)
        try:
            masses, price = _multipliers(system, pieces, p, wall)
            return pieces, wall, bend, system, masses, price
        except RuntimeError:
            if tie >= widest or len(height) == len(p):
                raise
        tie = min(_WIDER * max(tie, 1e-3 * widest), widest)


def _pieces(
    height: Array, slope: Array, atom: Places, lost: Array, tie: float, p: Array
) -> _Pieces:
    lost, active = lost.copy(), lost <= tie
    share = p[atom] * active / np.bincount(atom, active, len(p))[atom].clip(min=1)
    size = share @ np.abs(slope)
    scale = 1 / np.where(size > 0, size, 1.0)
    slope = slope * scale
    # pieces that are the same to first order, as those of atoms that are listed twice, count once
    largest = np.abs(slope[active]).max(0)
    several = np.bincount(atom[active], minlength=len(p)) > 1
    for i in np.flatnonzero(several):
        kept: list[int] = []
        for m in np.flatnonzero(active & (atom == i)).tolist():
            if any((np.abs(slope[m] - slope[k]) <= TIE * largest).all() for k in kept):
                active[m], lost[m] = False, np.inf
            else:
                kept.append(m)
    return _Pieces(height, slope, scale, atom, lost, active)


def _highest(atom: Places, value: Array, count: int) -> Places:
    """(K,) for each atom its piece of largest value, the first of several."""
    order = np.lexsort((np.arange(len(atom)), -value, atom))
    return order[np.searchsorted(atom[order], np.arange(count))]


def _wall(
    program: LocalProgram, theta_ref: Array, bound: float, scale: Array
) -> tuple[Array, Array | None]:
    """Outward normals (0 to 2, D) of the constraints that are met, of length 1 in scaled
    coordinates so that prices are shares of the gradient's parts, the sphere first, and the
    curvature of the sphere for the price 1, None inside of it."""
    d, rows = len(theta_ref), []
    theta = program.x.numpy()[:d] + theta_ref
    bend = None
    if np.linalg.norm(theta) >= bound * (1 - 1e-9):
        row = np.zeros_like(scale)
        row[:d] = theta / np.linalg.norm(theta) * scale[:d]
        length = float(np.linalg.norm(row))
        rows.append(row / length)
        bend = np.diag(np.where(np.arange(len(scale)) < d, scale**2 / (bound * length), 0.0))
    if program.floor is not None:
        row = np.zeros_like(scale)
        row[program.floor] = -1.0
        rows.append(row)
    return np.array(rows).reshape(-1, len(scale)), bend


@dataclass(frozen=True, eq=False)
class _System:
    """matrix z = target, z >= 0: what the multipliers z of `unknown` pieces and of the walls have
    to meet; all other pieces have the mass of their atom."""

    matrix: Array
    target: Array
    unknown: Places


def _system(pieces: _Pieces, p: Array, wall: Array) -> _System:
    several = np.bincount(pieces.atom[pieces.active], minlength=len(p)) > 1
    unknown = np.flatnonzero(pieces.active & several[pieces.atom])
    alone = pieces.active & ~several[pieces.atom]
    rest = -p[pieces.atom[alone]] @ pieces.slope[alone]
    tied = np.flatnonzero(several)
    sums = (pieces.atom[unknown] == tied[:, None]).astype(float)
    matrix = np.block(
        [
            [pieces.slope[unknown].T, wall.T],
            [sums, np.zeros((len(tied), len(wall)))],
        ]
    )
    return _System(matrix, np.concatenate([rest, p[tied]]), unknown)


def _multipliers(system: _System, pieces: _Pieces, p: Array, wall: Array) -> tuple[Array, Array]:
    """Masses (M,) of the pieces and prices of the walls, as far as possible from zero."""
    masses = np.where(pieces.active, p[pieces.atom], 0.0)
    d, k = pieces.slope.shape[1], len(system.unknown)
    if not system.matrix.shape[1]:
        z, left = np.zeros(0), float(np.abs(system.target[:d]).max())
    else:
        z = np.asarray(np.linalg.lstsq(system.matrix, system.target, rcond=1e-7)[0])
        share = np.concatenate([p[pieces.atom[system.unknown]], np.ones(len(wall))])
        several = _null_space(system.matrix, len(z))
        if several.shape[1]:
            z = _most_interior(z, several, share)
        z = np.where(z > _NONE * share, z, 0.0)
        left = float(np.abs(system.matrix @ z - system.target).max())
    if left > _REST:
        raise RuntimeError(
            f"the gradient at the solution is {left:.1e} of its parts, and should be 0: the fit is"
            " not exact enough to be differentiated (look at its gap), an atom is rarer than its"
            " tolerance, or all pairs are the same. Give `fit` a smaller tolerance, or leave such"
            " atoms out."
        )
    masses[system.unknown] = z[:k]
    return masses, z[k:]


def _most_interior(z: Array, free: Array, share: Array) -> Array:
    """z + free y >= 0, zero only where that is so for every y: the mean of those that make each of
    them largest. free: (k, m)."""
    found = []
    for k in range(len(z)):
        best = linprog(
            -free[k],
            -free / share[:, None],
            z / share + _NONE,
            bounds=(None, None),
        )
        if best.x is None:
            raise RuntimeError(
                f"no worst case makes the gradient zero at the solution ({best.message}): the fit"
                " is not exact enough to be differentiated. Fit with a smaller tolerance."
            )
        found.append(z + free @ best.x)
    return np.mean(found, 0)


def _jacobian(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Array:
    """(M, D) by backward passes alone, D + 1 of them, as the pullback is linear in what it pulls;
    torch.func would import its compiler, for seconds."""
    x = x.detach().requires_grad_()
    value = function(x)
    pulled = torch.zeros_like(value, requires_grad=True)
    (back,) = torch.autograd.grad(value, x, pulled, create_graph=True)
    columns = [torch.autograd.grad(back[k], pulled, retain_graph=True)[0] for k in range(len(x))]
    return torch.stack(columns, 1).numpy()


def _hessian(program: LocalProgram, weights: Array) -> Array:
    w = torch.from_numpy(weights)
    found = torch.autograd.functional.hessian(lambda x: w @ program.pieces(x), program.x).numpy()
    return (found + found.T) / 2


def _null_space(rows: Array, dimension: int) -> Array:
    if not len(rows):
        return np.eye(dimension)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-300)
    _, sizes, right = np.linalg.svd(rows)
    rank = int((sizes > 1e-6 * sizes[0]).sum())
    return right[rank:].T


def _check_curved(basis: Array, curvature: Array) -> None:
    if not basis.shape[1]:
        return
    inner = np.linalg.eigvalsh(basis.T @ curvature @ basis)
    if not inner[0] > _FLAT * max(inner[-1], np.abs(curvature).max()):
        raise NoLaw(
            f"the least curvature at the solution is {inner[0]:.1e}, of {inner[-1]:.1e} at most:"
            " the minimiser is not unique, or not at the rate n^-1/2. The pairs may not span all"
            " directions."
        )


def _check_one_curvature(
    system: _System,
    pieces: _Pieces,
    basis: Array,
    curvature: Array,
    bent: Callable[[Array, Array], Array],
) -> None:
    """Several sets of multipliers are harmless where they agree in curvature."""
    if not system.matrix.shape[1] or not basis.shape[1]:
        return
    k = len(system.unknown)
    for change in _null_space(system.matrix, system.matrix.shape[1]).T:
        weights = np.zeros(len(pieces.atom))
        weights[system.unknown] = change[:k]
        moved = basis.T @ bent(weights, change[k:]) @ basis
        if np.abs(moved).max() > 1e-6 * np.abs(curvature).max():
            raise NoLaw(
                "the worst case is not unique and its choices differ in curvature: the limit solves"
                " a saddle-point problem. Resample (m out of n) instead."
            )
