"""How much the gradients of a sample vary at w, and how far a move of the features changes them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, eigh
from scipy.special import expit

from theory.policy import Array
from theory.radius_choice.sample import Rows, losses_of

ENTRIES = 1 << 21  # of an array that is held at a time


@dataclass(frozen=True, eq=False)
class Moments:
    """Of the gradients g_i (d,) at w: their covariance, as of independent pairs, and the variance
    of their mean; each (d, d)."""

    spread: Array
    error: Array


def moments_of(rows: Rows, w: Array, beta: float) -> Moments:
    """By matrix products over parts of the rows: nothing larger than u is held."""
    u, p = rows.u, rows.p
    losses_of(u[:1], w, beta)  # its checks
    pull = -beta * expit(-beta * (u @ w))
    mean = (p * pull) @ u
    spread = (gram(u, p * pull**2) - np.outer(mean, mean)) / (1 - rows.lost)
    if rows.plain:
        return Moments(spread, spread * rows.lost)
    if rows.member is None:
        square = (p**2 * pull) @ u
        cross = np.outer(square, mean)
        error = gram(u, (p * pull) ** 2) - cross - cross.T + rows.lost * np.outer(mean, mean)
        return Moments(spread, error / (1 - rows.lost))
    sums = np.stack([np.bincount(rows.member, p * pull * column) for column in u.T], 1)
    sums -= np.outer(np.bincount(rows.member, p), mean)
    return Moments(spread, sums.T @ sums * rows.units / (rows.units - 1))


def effects_of(rows: Rows, moments: Moments) -> Array:
    """Eigenvalues of n S^-1 V in the range of S, the largest first."""
    size = np.sqrt(np.diag(moments.spread).clip(min=0))
    seen = size > 0
    unit = size[seen]
    values, axes = np.linalg.eigh(moments.spread[np.ix_(seen, seen)] / np.outer(unit, unit))
    kept = values > 1e-10
    if rows.plain:
        return np.ones(int(kept.sum()))
    root = axes[:, kept] / np.sqrt(values[kept]) / unit[:, None]
    between = root.T @ moments.error[np.ix_(seen, seen)] @ root
    return (len(rows.u) * np.linalg.eigvalsh(between)[::-1]).clip(min=0)


def relative(error: Array, room: Array) -> Array | None:
    """Eigenvalues of room^-1 error; None where no move of a feature changes the gradient."""
    scale = float(np.trace(room))
    if not scale > 0:
        return None
    try:
        found = eigh(error, room / scale, eigvals_only=True)
    except LinAlgError:
        return None
    return found.clip(min=0) / scale


def room_of(u: Array, p: Array, down: Array, w: Array, beta: float) -> Array:
    """(d, d) sum_i p_i D_i D_i' for D = -beta s I + beta² s (1-s) u w', s = sigma(-m)."""
    flat = p * down**2
    bent = flat * (1 - down)
    cross = np.outer(bent @ u, w)
    curved = gram(u, bent * (1 - down))
    whole = flat.sum() * np.eye(len(w)) - beta * (cross + cross.T) + beta**2 * (w @ w) * curved
    return beta**2 * whole


def gram(u: Array, c: Array) -> Array:
    """(d, d) sum_i c_i u_i u_i' for c >= 0."""
    found = np.zeros((u.shape[1], u.shape[1]))
    for part in parts_of(u):
        found += (u[part] * c[part, None]).T @ u[part]
    return found


def parts_of(u: Array) -> Iterator[slice]:
    """Slices of the rows, of ENTRIES entries each."""
    step = max(1, ENTRIES // u.shape[1])
    return (slice(start, start + step) for start in range(0, len(u), step))
