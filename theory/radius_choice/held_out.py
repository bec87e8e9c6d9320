"""Held-out shift: how large a ball must be to reach the loss on pairs of another population."""

import math

from theory.batch import ArrayLike
from theory.policy import Array
from theory.radius_choice.reach import for_value
from theory.radius_choice.sample import (
    Rows,
    check_open_unit,
    direction_of,
    losses_of,
    read_rows,
)


def shift_radius(
    ball: str,
    u: ArrayLike,
    held_out: ArrayLike,
    w: ArrayLike,
    *,
    beta: float,
    delta: float,
    groups: ArrayLike | None = None,
    held_out_groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> float | None:
    """Smallest radius whose robust value at w covers the held-out mean loss with its one-sided
    confidence bound.

    None where the held-out mean is not above that of u by more than chance: z of the difference at
    most the 1 - delta quantile of the normal law, standard errors of both samples counted. w is
    taken as given; fitted to u it makes the held-out loss a little higher (by about d/n) even
    without a shift. A shift that raises the variance of the loss but not its mean is not seen.

    groups and held_out_groups are labels of rows that depend on each other: standard errors are
    then those of their sums, and the quantiles of the t law with groups - 1 degrees of freedom, the
    fewer of the two for the difference. weights are of u.
    """
    before, after = (
        read_rows(u, weights, groups),
        read_rows(held_out, None, held_out_groups, "held_out"),
    )
    return shift_covered(ball, before, after, direction_of(w), beta, delta)


def shift_covered(
    ball: str, rows: Rows, other: Rows, w: Array, beta: float, delta: float
) -> float | None:
    """`shift_radius` of samples that were read."""
    check_open_unit("delta", delta)
    before, after = losses_of(rows.u, w, beta), losses_of(other.u, w, beta)
    z, error = other.z(delta, 1), other.error(after)
    risen = float(after.mean() - rows.p @ before)
    if risen <= max(z, rows.z(delta, 1)) * math.hypot(error, rows.error(before)):
        return None
    return for_value(ball, rows.u, rows.p, w, float(after.mean()) + z * error, beta)
