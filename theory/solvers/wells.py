"""The inner problem of W2-robust DPO: sup_t log(1+exp(-m + b t)) - eta t², exactly.

By softplus(x) = sup_q qx + H(q) it equals

    phi(m, a) = sup_{0 <= q <= 1}  -q m + H(q) + a q²/2,      a = b²/(2 eta),

where q = sigma(-m') is the slope of the loss at the worst-case margin m'. With q = 1/2 + r and
delta = m - a/2 it is symmetric in (r, delta): stationarity reads y = (a/2) tanh(y/2) - delta for y
= logit q (the Curie–Weiss equation). For a <= 4 (eta >= b²/8) the maximiser is unique; above it
there are two wells, equally deep at delta = 0, where the worst case splits.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus


def _softplus(x: Tensor) -> Tensor:
    return softplus(x, threshold=40.0)  # torch's default threshold of 20 costs 2e-9


def _log_odds(a: Tensor, distance: Tensor) -> Tensor:
    """Largest root y of y = (a/2) tanh(y/2) + distance, distance >= 0; Newton from the right of it,
    where y - ... is convex."""
    half = a / 2
    y = half + distance
    for _ in range(100):
        slope = torch.tanh(y / 2)
        step = (y - half * slope - distance) / (1 - half / 2 * (1 - slope**2)).clamp(min=1e-12)
        y = (y - step).maximum(distance)
        if bool((step <= 1e-15 * (1 + y)).all()):
            break
    return y


def global_well(margin: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """phi, the maximiser q, dq/d(-m) and the worst-case log-odds y = -m'. margin (R, n), a (R,) >=
    0; all returned (R, n)."""
    a = a[:, None]
    delta = margin - a / 2
    size = _log_odds(a, delta.abs())
    y = torch.where(delta > 0, -size, size)
    q = torch.sigmoid(y)
    spread = q * torch.sigmoid(-y)
    bend = spread / (1 - a * spread).clamp(min=1e-12)
    return _softplus(y) - a * q**2 / 2, q, bend, y


def restricted_wells(margin: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sup over q in [0, 1/2] and over [1/2, 1]: values, maximisers and dq/d(-m), each (R, 2, n),
    convex in (m, a).

    On the side where the global maximum is not, the supremum is a local well, if there is one, or
    the end point q = 1/2.
    """
    a = a[:, None]
    delta = margin - a / 2
    near = _log_odds(a, delta.abs())
    far = _far_well(a, delta.abs())
    sign = torch.where(delta > 0, -1.0, 1.0)  # q > 1/2 holds the global maximum when delta <= 0
    values, places, bends = [], [], []
    for y, inner in (
        (sign * near, torch.ones_like(near, dtype=torch.bool)),
        (-sign * far, far > 0),
    ):
        q = torch.sigmoid(y)
        spread = q * torch.sigmoid(-y)
        at_well = _softplus(y) + q * (a * q - margin - y) - a * q**2 / 2
        at_half = -margin / 2 + 0.6931471805599453 + a / 8
        well = inner & (at_well >= at_half)
        values.append(torch.where(well, at_well, at_half))
        places.append(torch.where(well, q, 0.5))
        bends.append(torch.where(well, spread / (1 - a * spread).clamp(min=1e-12), 0.0))
    high_first = (delta <= 0)[:, None, :]
    near_far = [torch.stack(pair, 1) for pair in (values, places, bends)]
    value, q, bend = (torch.where(high_first, pair, pair.flip(1)) for pair in near_far)
    return value, q, bend  # piece 0: q >= 1/2, piece 1: q <= 1/2


def quadratic_transport(margin: Tensor, a: float) -> Callable[[Tensor, Tensor], Tensor]:
    """phi near margin (n,) and a, as a function that torch can differentiate twice there: (n,), or
    (2, n) with the other well where a > 4, which is a piece of its own while it is there.

    A step of Newton's method from the exact maximiser changes nothing but carries its derivative.
    """
    level = margin.new_tensor(a)
    delta = margin - level / 2
    sign = torch.where(delta > 0, -1.0, 1.0)
    y = (sign * _log_odds(level, delta.abs()))[None]
    if a > 4:
        far = _far_well(level, delta.abs())
        y = torch.cat([y, torch.where(far > 0, -sign * far, y[0])[None]])
    q0 = torch.sigmoid(y)
    spread = q0 * torch.sigmoid(-y)
    bend = spread / (1 - a * spread).clamp(min=1e-12)

    def phi(m: Tensor, level: Tensor) -> Tensor:
        q = q0 + bend * (level * q0 - m - y)
        entropy = -torch.xlogy(q, q) - torch.xlogy(1 - q, 1 - q)
        found = entropy - q * m + level * q**2 / 2
        return found if a > 4 else found[0]

    return phi


def _far_well(a: Tensor, distance: Tensor) -> Tensor:
    """Largest root y > 0 of y = (a/2) tanh(y/2) - distance, or 0 where there is none: the
    metastable well."""
    half = a / 2
    # the root exists iff the function is negative at its minimum, where (a/4) sech²(y/2) = 1
    turn = 2 * torch.acosh((half / 2).clamp(min=1.0).sqrt())
    exists = (half > 2) & (turn - half * torch.tanh(turn / 2) + distance < 0)
    y = (half - distance).clamp(min=0.0).maximum(turn)
    for _ in range(100):
        slope = torch.tanh(y / 2)
        step = (y - half * slope + distance) / (1 - half / 2 * (1 - slope**2)).clamp(min=1e-12)
        step = torch.where(exists, step, 0.0)
        y = (y - step).maximum(turn)
        if bool((step.abs() <= 1e-15 * (1 + y)).all()):
            break
    return torch.where(exists, y, 0.0)
