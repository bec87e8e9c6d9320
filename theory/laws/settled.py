"""The solution of a program made exact: which kinks and walls it meets, and their multipliers.

A fit is known to its gap, which next to collapse leaves much of theta open, and a kink is a tie of
pieces to rounding. So ties are guessed, closest first; Newton's method on the guess makes the
solution exact; and the guess counts if all of the Karush-Kuhn-Tucker conditions hold there: in a
convex program they say that it is the solution.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog

from theory.policy import Array
from theory.solvers.local import LocalProgram, NoLaw

Places = NDArray[np.int64]

SPHERE, FLOOR = -1, -2  # owners of rows that belong to no atom
NONE = 1e-9  # a multiplier below this share of the mass of its atom is none
FREE = 1e-8  # price of a wall, a share of the gradient, that is none
_TIES = 10.0 ** np.arange(-14, -4)  # relative to the largest height, one after the other
_EXACT = 1e-11  # a tie at the solution, once it is exact
_SAME = 1e-6  # slopes that differ by less than this, of their own length, are the same
_WALL, _WALLS = 1e-9, 1e-3  # relative distance at which a bound is met, and may be
_NEAR = 0.3  # of the gradient's parts, what a guess may leave before the solution is exact
_REST = 1e-9  # the same once it is
_WRONG = 1e-4  # share of an atom's mass by which a multiplier may be negative
_NOISE = 1e-13  # of a gradient at an exact solution, relative to its parts
_RANK = 1e-9  # singular values, relative to the largest, that count as none
_STEPS = 8  # of Newton's method, from a point that is nearly exact
_STAY, _JITTER = 0.1, 1e-9  # how far w may move, of its length and in margins


@dataclass(frozen=True, eq=False)
class Settled:
    """Pieces and walls at an exact solution x, in coordinates that are scaled by `scale` (D,).

    lost: (M,) by how much each piece is below its atom's highest, infinite for those that are none
    of their own. slope: (M, D). atom: (M,) of the pieces. base: (K,) the piece of each atom with
    the largest mass, other: (r,) the rest of those that are as high, noise: (r,) of their share of
    the atom's mass. wall: (w, D) outward normals of the walls that are met, walls: (w,) their
    owners, bend: (D, D) the sphere's curvature at the price 1. masses: (M,) of pieces and price:
    (w,) of walls are the multipliers, in the middle of all that there are; these differ by any
    combination of the columns of spread: (M, m) and price_spread: (w, m).
    """

    x: torch.Tensor
    scale: Array
    lost: Array
    slope: Array
    atom: Places
    base: Places
    other: Places
    noise: Array
    wall: Array
    walls: Places
    bend: Array
    masses: Array
    price: Array
    spread: Array
    price_spread: Array


def settled(program: LocalProgram, p: Array, theta_ref: Array, bound: float) -> Settled:
    """The exact solution next to that of the program, for weights p (K,) of its atoms.

    Raises:
        NoLaw: no guess of what is met there balances the gradient, or the program overflows.
    """
    start = _at(program, p, theta_ref, bound, program.x, None)
    tried: set[bytes] = set()
    for tie in _TIES * (1 + np.abs(start.top[p > 0]).max()):
        for wall in (_WALL, _WALLS):
            guess = _met(start, start.lost <= tie * start.steep, start.slack <= wall)
            key = guess.active.tobytes() + guess.meets.tobytes()
            if key in tried:
                continue
            tried.add(key)
            found = _exact(program, p, theta_ref, bound, guess)
            if found is not None:
                return found
    raise NoLaw(
        "no choice of kinks and bounds balances the gradient at the solution: the fit is not exact"
        " enough to be differentiated, as very close to collapse, or where an atom is rarer than"
        " rounding shows. Give `fit` a smaller tolerance, leave such atoms out, or resample."
    )


# --------------------------------------------------------------------------------- at one point
@dataclass(frozen=True, eq=False)
class _Point:
    """Heights, slopes and walls at x. top: (K,) largest height of an atom's. lost: (M,) below it,
    infinite for atoms without mass. steep: (M,) largest slope of a tie, at least 1. wall: (v, D)
    normals of all walls, of length 1, gap (v,) how far each is exceeded, slack (v,) how far
    it is away, relative to its size. bend: (D, D). active (M,), meets (v,): what is guessed."""

    x: torch.Tensor
    scale: Array
    top: Array
    height: Array
    slope: Array
    atom: Places
    lost: Array
    steep: Array
    wall: Array
    walls: Places
    gap: Array
    slack: Array
    bend: Array
    active: NDArray[np.bool_]
    meets: NDArray[np.bool_]


def _at(
    program: LocalProgram,
    p: Array,
    theta_ref: Array,
    bound: float,
    x: torch.Tensor,
    scale: Array | None,
) -> _Point:
    height = program.pieces(x).numpy()
    slope = _jacobian(program.pieces, x)
    if not (np.isfinite(height).all() and np.isfinite(slope).all()):
        raise NoLaw(
            "the program overflows at the solution, and cannot be differentiated there. Take beta"
            " or the features in another unit."
        )
    atom = np.arange(len(p)) if program.atom is None else program.atom.numpy()
    top = np.full(len(p), -np.inf)
    np.maximum.at(top, atom, height)
    lost = top[atom] - height
    leader = highest(atom, height, len(p))
    lost[p[atom] <= 0] = np.inf  # no mass, no say
    if scale is None:
        tied = lost <= _TIES[-1] * (1 + np.abs(top[p > 0]).max())
        tied[leader] = True
        size = (p / np.bincount(atom[tied]))[atom[tied]] @ np.abs(slope[tied])
        scale = 1 / np.where(size > 0, size, 1.0)
    slope = slope * scale
    steep = np.linalg.norm(slope - slope[leader[atom]], axis=1).clip(min=1)
    wall, walls, gap, slack, bend = _walls(program, theta_ref, bound, x, scale)
    nothing = np.zeros(len(height), dtype=bool)
    none = np.zeros(len(walls), dtype=bool)
    return _Point(
        x,
        scale,
        top,
        height,
        slope,
        atom,
        lost,
        steep,
        wall,
        walls,
        gap,
        slack,
        bend,
        nothing,
        none,
    )


def _walls(
    program: LocalProgram, theta_ref: Array, bound: float, x: torch.Tensor, scale: Array
) -> tuple[Array, Places, Array, Array, Array]:
    """The sphere first. Normals have length 1 in scaled coordinates, so that prices are shares of
    the gradient's parts."""
    d = len(theta_ref)
    theta = x.numpy()[:d] + theta_ref
    norm = float(np.linalg.norm(theta))
    rows, walls, gap, slack = [], [], [], []
    bend = np.zeros((len(scale), len(scale)))
    if norm > 0:
        row = np.zeros_like(scale)
        row[:d] = theta / norm * scale[:d]
        length = float(np.linalg.norm(row))
        rows.append(row / length)
        walls.append(SPHERE)
        gap.append((norm - bound) / length)
        slack.append(1 - norm / bound)
        bend[:d, :d] = np.diag(scale[:d] ** 2 / (bound * length))
    if program.floor is not None:
        row = np.zeros_like(scale)
        row[program.floor] = -1.0
        rows.append(row)
        walls.append(FLOOR)
        gap.append(-float(x[program.floor]) / scale[program.floor])
        inside = float(np.linalg.norm(x.numpy()[:d] / scale[:d]))
        slack.append(-gap[-1] / max(inside, 1e-300))
    return (
        np.array(rows).reshape(-1, len(scale)),
        np.array(walls, dtype=np.int64),
        np.array(gap),
        np.array(slack),
        bend,
    )


def _met(point: _Point, active: NDArray[np.bool_], meets: NDArray[np.bool_]) -> _Point:
    """The point with a guess of what it meets; of pieces of an atom that are the same to first
    order, as those of atoms that are listed twice, one."""
    active, lost = active.copy(), point.lost.copy()
    size = np.linalg.norm(point.slope, axis=1)
    several = np.bincount(point.atom[active], minlength=len(point.top)) > 1
    for i in np.flatnonzero(several):
        kept: list[int] = []
        for m in np.flatnonzero(active & (point.atom == i)).tolist():
            away = np.linalg.norm(point.slope[m] - point.slope[kept], axis=1)
            if (away <= _SAME * np.maximum(size[m], size[kept])).any():
                active[m], lost[m] = False, np.inf
            else:
                kept.append(m)
    return replace(point, active=active, lost=lost, meets=meets)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Kinks and walls as rows (r + w, D) of length 1, by how much each is off (r + w,), and the
    lengths (r,) that the kinks had."""

    base: Places
    other: Places
    row: Array
    off: Array
    length: Array


def _rows(point: _Point, masses: Array | None = None) -> _Rows:
    """Kinks against the piece of each atom with the largest mass, where these are known."""
    if masses is None:
        masses = np.zeros(len(point.atom))
    below = point.height - point.top[point.atom] - 1
    base = highest(point.atom, np.where(point.active, masses, below), len(point.top))
    others = point.active.copy()
    others[base] = False
    other = np.flatnonzero(others)
    own = base[point.atom[other]]
    kink = point.slope[other] - point.slope[own]
    length = np.linalg.norm(kink, axis=1).clip(min=1e-300)
    row = np.concatenate([kink / length[:, None], point.wall[point.meets]])
    off = np.concatenate(
        [(point.height[other] - point.height[own]) / length, point.gap[point.meets]]
    )
    return _Rows(base, other, row, off, length)


# ------------------------------------------------------------------------ one guess, made exact
def _exact(
    program: LocalProgram, p: Array, theta_ref: Array, bound: float, guess: _Point
) -> Settled | None:
    """The solution that meets what is guessed, if there is one."""
    point, d = guess, len(theta_ref)
    first, moved = guess.x.numpy() / guess.scale, np.inf
    for step in range(_STEPS):
        rows = _rows(point)
        gradient = p @ point.slope[rows.base]
        force, rest = _forces(rows, gradient)
        if step == 0 and rest > _NEAR:
            return None
        if moved <= 1e-12 * np.abs(point.x.numpy() / point.scale).max():
            break
        curvature = _curvature(program, point, *_masses(rows, point, p, force))
        r = len(rows.row)
        # each coordinate in the unit that its curvature has, or steps along flat ones are noise
        unit = units(curvature)
        row = rows.row * unit
        size = np.linalg.norm(row, axis=1).clip(min=1e-300)
        system = np.block(
            [
                [curvature * np.outer(unit, unit), (row / size[:, None]).T],
                [row / size[:, None], np.zeros((r, r))],
            ]
        )
        target = -np.concatenate([gradient * unit, rows.off / size])
        change = unit * np.linalg.lstsq(system, target, rcond=1e-13)[0][: len(gradient)]
        if not np.isfinite(change).all():
            return None
        x = point.x + torch.from_numpy(change * point.scale)
        away = np.linalg.norm((x.numpy() / point.scale - first)[:d])
        if away > _STAY * np.linalg.norm(first[:d]) + _JITTER:
            return None
        moved = float(np.abs(change).max())
        now = _at(program, p, theta_ref, bound, x, point.scale)
        point = replace(now, active=point.active, meets=point.meets)
    return _judged(program, p, point)


def _judged(program: LocalProgram, p: Array, point: _Point) -> Settled | None:
    """The multipliers at a point, if it meets all conditions."""
    tie = _EXACT * (1 + np.abs(point.top[p > 0]).max()) * point.steep
    if (point.lost[point.active] > tie[point.active]).any():
        return None  # another piece is higher
    if (point.gap > _EXACT * (1 + np.abs(point.x.numpy() / point.scale).max())).any():
        return None
    point = _met(point, point.lost <= tie, point.meets)
    rows = _rows(point)
    gradient = p @ point.slope[rows.base]
    force, rest = _forces(rows, gradient)
    if rest > _REST:
        return None
    r = len(rows.other)
    mass = p[point.atom[rows.other]]
    share = np.concatenate([1 / (rows.length * mass), np.ones(len(rows.row) - r)])
    free = null_space(rows.row.T, len(force))
    if free.shape[1]:
        inner = _most_interior(force, free, share, point.atom[rows.other])
        if inner is None:
            return None
        force = inner
    if (force * share < -_WRONG).any():
        return None
    masses, price = _masses(rows, point, p, np.where(force > 0, force, 0.0))
    if (masses[rows.base] < -_WRONG * p).any():
        return None
    spread = np.zeros((len(masses), free.shape[1]))
    for k, change in enumerate(free.T):
        spread[:, k] = _masses(rows, point, 0 * p, change)[0]
    last = _rows(point, masses)
    return Settled(
        point.x,
        point.scale,
        point.lost,
        point.slope,
        point.atom,
        last.base,
        last.other,
        _NOISE / (last.length * p[point.atom[last.other]]),
        point.wall[point.meets],
        point.walls[point.meets],
        point.bend,
        masses.clip(min=0),
        price,
        spread,
        free[r:],
    )


def _forces(rows: _Rows, gradient: Array) -> tuple[Array, float]:
    """Multipliers (r + w,) of rows of length 1, and what they leave of the gradient."""
    if not len(rows.row):
        return np.zeros(0), float(np.abs(gradient).max(initial=0.0))
    force = np.asarray(np.linalg.lstsq(rows.row.T, -gradient, rcond=_RANK)[0])
    return force, float(np.abs(rows.row.T @ force + gradient).max())


def _masses(rows: _Rows, point: _Point, p: Array, force: Array) -> tuple[Array, Array]:
    """Masses (M,) of the pieces and prices of the walls."""
    r = len(rows.other)
    masses = np.zeros(len(point.atom))
    masses[rows.base] = p
    masses[rows.other] = force[:r] / rows.length
    np.subtract.at(masses, rows.base[point.atom[rows.other]], masses[rows.other])
    return masses, force[r:]


def _curvature(program: LocalProgram, point: _Point, masses: Array, price: Array) -> Array:
    found = hessian(program, point.x, masses) * np.outer(point.scale, point.scale)
    if point.meets.any() and point.walls[point.meets][0] == SPHERE:
        found = found + price[0] * point.bend
    return found


def _most_interior(force: Array, free: Array, share: Array, atom: Places) -> Array | None:
    """force + free y with no negative share, zero only where that is so for every y: the mean of
    those that make each share largest; None where there is none. free: (k, m)."""
    own = np.unique(atom)
    back = np.zeros((len(own), len(force)))  # what is left to each atom's own piece
    back[np.searchsorted(own, atom), np.arange(len(atom))] = -share[: len(atom)]
    to_shares = np.concatenate([np.diag(share), back])
    least = np.concatenate([share * force, 1 + back @ force])
    matrix = to_shares @ free
    size = np.linalg.norm(matrix, axis=0).clip(min=1e-300)
    found = []
    for k in np.flatnonzero(np.abs(matrix / size).max(1) > 1e-9):
        best = linprog(-matrix[k] / size, -matrix / size, least + NONE, bounds=(None, None))
        if best.x is None:
            return None
        found.append(force + free @ (best.x / size))
    return np.mean(found, 0) if found else force


def highest(atom: Places, value: Array, count: int) -> Places:
    """(K,) for each atom its piece of largest value, the first of several."""
    order = np.lexsort((np.arange(len(atom)), -value, atom))
    return order[np.searchsorted(atom[order], np.arange(count))]


def null_space(rows: Array, dimension: int) -> Array:
    """(D, m) orthonormal, of rows (r, D)."""
    if not rows.size:
        return np.eye(dimension)
    _, sizes, right = np.linalg.svd(rows)
    rank = int((sizes > _RANK * sizes[0]).sum())
    return right[rank:].T


def units(curvature: Array) -> Array:
    """(D,) a unit of each coordinate in which its curvature is 1, where it has one."""
    bent = np.diag(curvature)
    flat = bent <= 1e-14 * bent.max(initial=0.0)
    return 1 / np.sqrt(np.where(flat, 1.0, bent))


def hessian(program: LocalProgram, x: torch.Tensor, weights: Array) -> Array:
    """(D, D) of the weighted sum of the pieces."""
    w = torch.from_numpy(weights)
    found = torch.autograd.functional.hessian(lambda y: w @ program.pieces(y), x).numpy()
    return (found + found.T) / 2


def _jacobian(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Array:
    """(M, D) by backward passes alone, D + 1 of them, as the pullback is linear in what it pulls;
    torch.func would import its compiler, for seconds."""
    x = x.detach().requires_grad_()
    value = function(x)
    pulled = torch.zeros_like(value, requires_grad=True)
    (back,) = torch.autograd.grad(value, x, pulled, create_graph=True)
    columns = [torch.autograd.grad(back[k], pulled, retain_graph=True)[0] for k in range(len(x))]
    return torch.stack(columns, 1).numpy()
