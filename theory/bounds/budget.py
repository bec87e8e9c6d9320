"""What a worst case of a transport ball changes when its budget does: Theorem B', proofs in
docs/theorems/transport.md.

For fixed probabilities of the atoms the worst case is a knapsack: more budget moves mass, one atom
at a time, along the upper concave envelope of its targets in the plane of cost and loss, where the
gain per cost is largest. So per unit of budget the mean gradient changes by at most the steepest
||G_j - G_k|| / |c_ij - c_ik| among the moves that are made.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from theory.bounds.concentration import Deviations
from theory.policy import Array

_ROUNDING = 1e-12  # relative, of losses and costs that count as equal


@dataclass(frozen=True)
class Move:
    """Mass of one atom moves along one edge of its envelope.

    atom: its index. gain: loss per cost of the edge. room: most cost per mass of the atom.
    price: of its dearest pair of source and target.
    """

    atom: int
    gain: float
    room: float
    price: "Price"


@dataclass(frozen=True)
class Price:
    """Per unit of budget: change of the mean gradient, in norm; loss of the mean Hessian, in its
    largest eigenvalue; mass that moves."""

    gradient: float = 0.0
    curvature: float = 0.0
    mass: float = 0.0

    def __or__(self, other: "Price") -> "Price":
        """The larger of each."""
        return Price(
            max(self.gradient, other.gradient),
            max(self.curvature, other.curvature),
            max(self.mass, other.mass),
        )


def price_of_budget(
    p: Array,
    plan: Array,
    cost: Array,
    value: Array,
    eta: float,
    gradients: Array,
    hessians: Array,
    *,
    spend: bool,
    need: float,
    noise: Deviations,
    share: float,
) -> Price:
    """The price of spending up to `need` more (or less) than `plan` does, in every sample whose
    atoms have room enough in the moves that come first; that fails with probability e^-share.

    Args:
        p, plan, cost, value: (K,) probabilities of the atoms, (K, M) conditional laws of their
            targets, costs and losses of the targets as each atom sees them.
        eta: gain at which every target in the plan is best.
        gradients, hessians: (M, d) and (M, d, d) at the targets.
        spend: more budget, else less.
    """
    moves = sorted(
        (
            move
            for i in range(len(p))
            for move in _moves(i, plan[i], cost[i], value[i], eta, gradients, hessians, spend)
        ),
        # the moves with the gain eta come first, in an order that is ours to choose
        key=lambda move: (abs(move.gain - eta), move.price.gradient),
    )
    room = np.zeros(len(p))
    price = Price()
    for place, move in enumerate(moves):
        room[move.atom] += move.room
        price |= move.price
        last = place + 1 == len(moves) or moves[place + 1].gain != move.gain or move.gain == eta
        if last and float(p @ room) - noise.shortfall(p, room, share) >= need:
            break
    return price


def _moves(
    atom: int,
    plan: Array,
    cost: Array,
    value: Array,
    eta: float,
    gradients: Array,
    hessians: Array,
    spend: bool,
) -> Iterator[Move]:
    """Of one atom, from the targets in its plan on: first to the dearest (cheapest) target that is
    as good, then along the envelope."""
    tiny = _ROUNDING * (1 + float(np.abs(value).max()))
    score = value - eta * cost
    good = score >= score.max() - tiny
    used = plan > 0
    side = 1.0 if spend else -1.0
    best = side * cost
    end = float(best[good].max())
    at_end = good & (best >= end - _ROUNDING * (1 + abs(end)))
    early = used & (best < end - _ROUNDING * (1 + abs(end)))
    if early.any():
        room = side * (side * end - float(plan @ cost))
        yield _move(atom, eta, room, early, at_end, cost, gradients, hessians)
    while True:
        ahead = best > end + _ROUNDING * (1 + abs(end))
        here = float(value[at_end].max())
        gain = np.where(ahead, (value - here) / np.where(ahead, cost - side * end, 1.0), np.nan)
        if not ahead.any():
            return
        # more budget takes the largest gain that is left, less gives up the smallest
        steepest = float(np.nanmax(gain) if spend else np.nanmin(gain))
        if spend and steepest <= 0:
            return
        line = here + steepest * (cost - side * end)
        on_line = ahead & (np.abs(value - line) <= tiny)
        end_next = float(best[on_line].max())
        before, at_end = at_end, on_line & (best >= end_next - _ROUNDING * (1 + abs(end_next)))
        yield _move(atom, steepest, end_next - end, before, at_end, cost, gradients, hessians)
        end = end_next


def _move(
    atom: int,
    gain: float,
    room: float,
    source: NDArray[np.bool_],
    target: NDArray[np.bool_],
    cost: Array,
    gradients: Array,
    hessians: Array,
) -> Move:
    """The worst pair of a source and a target: mass may sit on several of equal cost and loss."""
    price = Price()
    for j in np.flatnonzero(source):
        for k in np.flatnonzero(target):
            paid = abs(float(cost[k] - cost[j]))
            jump = float(np.linalg.norm(gradients[k] - gradients[j]))
            lost = max(float(np.linalg.eigvalsh(hessians[j] - hessians[k])[-1]), 0.0)
            price |= Price(jump / paid, lost / paid, 1 / paid)
    return Move(atom, gain, max(room, 0.0), price)
