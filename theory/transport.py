"""One-dimensional optimal transport and stochastic dominance between two weighted samples.

Samples have shape (..., n) and (..., m), their weights the same shape (or (n,), (m,)),
non-negative; None means equal weights. Leading axes are batch axes. Everything is exact: on the
merged breakpoints of the two quantile functions both are constant, so that integrals over the
levels t in [0, 1] are finite sums. Values keep dtype and device; levels are computed in float64
(float32 on a device without it). Gradients reach the samples, with the coupling frozen (envelope
theorem), but not the weights.

What is called from outside takes arrays as well, and refuses weights that are negative, not finite
or all zero, and samples with NaN entries, or infinite ones with weight: a distance to infinity says
nothing, and NaN would be sorted to an end. Weights need not sum to one here; they are divided by
their sum. `transport_of` and `integrated_transport_of` are the same without the checks,
for training loops: there NaN stays NaN, and on an accelerator a look at the numbers would stall it.

Sources: Santambrogio, Optimal Transport for Applied Mathematicians (2015), section 2.2 (sorting);
Melnyk et al., arXiv:2406.05882 (AOT, first-order dominance); Ogryczak and Ruszczynski, SIAM J.
Optim. 13 (2002) (integrated quantiles); Blondel et al., arXiv:2002.08871 (soft sorting).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from theory.batch import as_float64
from theory.precision import tiny, wide, widest

Cost = Callable[[Tensor], Tensor]  # h, elementwise
# from the ends of pieces of levels to their masses; see `theory.spectra`
Spectrum = Callable[[Tensor, Tensor], Tensor]
PieceMean = Callable[
    [Tensor, Tensor], Tensor
]  # mean of h over the segment between two numbers, elementwise

_gauss_nodes = lru_cache(leggauss)


@dataclass(frozen=True, eq=False)
class Coupling:
    """The monotone coupling: piece k sends `mass[k]` from atom `row[k]` of the first sample to atom
    `column[k]` of the second.

    All of shape (..., K), pieces in the order of the levels; K = n for two samples of equal size
    and weight, else n + m, where some pieces have mass zero. mass is as wide as the device allows
    and sums to one.
    """

    row: Tensor
    column: Tensor
    mass: Tensor


# -------------------------------------------------------------------------------------- first order
def coupling(
    u: Tensor,
    v: Tensor,
    u_weights: Tensor | None = None,
    v_weights: Tensor | None = None,
    *,
    spectrum: Spectrum | None = None,
) -> Coupling:
    """The coupling of u (..., n) and v (..., m) that sends quantile to quantile: optimal for h(u -
    v) with every convex h. With a spectrum its masses are those of the levels' weights, and it is
    optimal between the two samples whose atoms have those masses."""
    u, u_weights = _checked("u", u, u_weights)
    v, v_weights = _checked("v", v, v_weights)
    return _coupling(u, v, u_weights, v_weights, spectrum)


def _coupling(
    u: Tensor,
    v: Tensor,
    u_weights: Tensor | None,
    v_weights: Tensor | None,
    spectrum: Spectrum | None = None,
) -> Coupling:
    with torch.no_grad():
        u, v = _batched(u, v)
        order_u, order_v = u.argsort(dim=-1, stable=True), v.argsort(dim=-1, stable=True)
        n = u.shape[-1]
        if u_weights is None and v_weights is None and v.shape[-1] == n:
            mass = (
                torch.full(u.shape, 1.0 / n, dtype=widest(u.device), device=u.device)
                if spectrum is None
                else _weighed(_levels(order_u, None), spectrum)
            )
            return Coupling(order_u, order_v, mass)
        top_u, top_v = _levels(order_u, u_weights), _levels(order_v, v_weights)
        ends = torch.cat([top_u, top_v], -1).sort(dim=-1).values
        row = order_u.gather(-1, _first_above(top_u, ends))
        column = order_v.gather(-1, _first_above(top_v, ends))
        if spectrum is not None:
            return Coupling(row, column, _weighed(ends, spectrum))
        return Coupling(row, column, ends.diff(dim=-1, prepend=torch.zeros_like(ends[..., :1])))


def transport(
    u: Tensor,
    v: Tensor,
    h: Cost,
    u_weights: Tensor | None = None,
    v_weights: Tensor | None = None,
    *,
    spectrum: Spectrum | None = None,
) -> Tensor:
    """OT_h(u, v) = ∫ h(Q_u(t) - Q_v(t)) dt, the least mean of h(u - v) over couplings if h is
    convex; shape (...). With a spectrum w of `theory.spectra`, ∫ w(t) h(Q_u(t) - Q_v(t)) dt."""
    u, u_weights = _checked("u", u, u_weights)
    v, v_weights = _checked("v", v, v_weights)
    return transport_of(u, v, h, u_weights, v_weights, spectrum)


def transport_of(
    u: Tensor,
    v: Tensor,
    h: Cost,
    u_weights: Tensor | None = None,
    v_weights: Tensor | None = None,
    spectrum: Spectrum | None = None,
) -> Tensor:
    """`transport` without a look at the numbers."""
    gap, mass = _gaps(u, v, u_weights, v_weights, spectrum)
    return (mass.to(gap.dtype) * h(gap)).sum(-1)


def quantile(values: Tensor, levels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Q(t) = inf {x : F(x) >= t} at the levels (..., k) in [0, 1]; Q(0) is the smallest atom with
    weight."""
    values, weights = _checked("values", values, weights)
    levels = _tensor("levels", levels)
    if not bool(((levels >= 0) & (levels <= 1)).all()):
        raise ValueError(
            f"levels must lie in [0, 1], got {levels.min().item():g} to {levels.max().item():g}."
        )
    order = values.detach().argsort(dim=-1, stable=True)
    shape = values.shape[:-1] + levels.shape[-1:]
    top = _levels(order, weights)
    index = _first_above(top, levels.to(top.dtype).expand(shape))
    return values.gather(-1, order.gather(-1, index))


def first_order_violation(
    u: Tensor,
    v: Tensor,
    u_weights: Tensor | None = None,
    v_weights: Tensor | None = None,
    *,
    power: int = 1,
    spectrum: Spectrum | None = None,
) -> Tensor:
    """∫ (Q_v - Q_u)_+^power dt, zero iff u dominates v in the first order: Q_u(t) >= Q_v(t) for all
    t; with a spectrum, at all levels that it weighs."""
    return transport(
        u, v, lambda gap: torch.relu(-gap) ** power, u_weights, v_weights, spectrum=spectrum
    )


# ------------------------------------------------------------------------------------- second order
def integrated_transport(
    u: Tensor,
    v: Tensor,
    piece_mean: PieceMean,
    u_weights: Tensor | None = None,
    v_weights: Tensor | None = None,
) -> Tensor:
    """∫ h(D(t)) dt of the integrated quantile difference D(t) = ∫_0^t (Q_u - Q_v); shape (...).

    D is piecewise linear with D(0) = 0, so that the integral is the sum of the pieces' masses times
    `piece_mean(a, b)`, the mean
    of h on the segment from a to b: `power_mean`, `positive_power_mean`, or `gauss_mean` for any
    other h.
    """
    u, u_weights = _checked("u", u, u_weights)
    v, v_weights = _checked("v", v, v_weights)
    return integrated_transport_of(u, v, piece_mean, u_weights, v_weights)


def integrated_transport_of(
    u: Tensor,
    v: Tensor,
    piece_mean: PieceMean,
    u_weights: Tensor | None = None,
    v_weights: Tensor | None = None,
) -> Tensor:
    """`integrated_transport` without a look at the numbers."""
    gap, mass = _gaps(u, v, u_weights, v_weights)
    mass = mass.to(gap.dtype)
    end = (mass * gap).cumsum(-1)
    start = torch.cat([torch.zeros_like(end[..., :1]), end[..., :-1]], -1)
    return (mass * piece_mean(start, end)).sum(-1)


def second_order_violation(
    u: Tensor,
    v: Tensor,
    u_weights: Tensor | None = None,
    v_weights: Tensor | None = None,
    *,
    power: int = 1,
) -> Tensor:
    """∫ (-D(t))_+^power dt, zero iff u dominates v in the second order: ∫_0^t Q_u >= ∫_0^t Q_v for
    all t."""
    return integrated_transport(
        u, v, lambda a, b: positive_power_mean(-a, -b, power), u_weights, v_weights
    )


def power_mean(a: Tensor, b: Tensor, power: int) -> Tensor:
    """Mean of x^power over the segment from a to b, without cancellation: sum_j a^j b^(power-j) /
    (power+1)."""
    total = torch.zeros_like(a)
    for j in range(power + 1):
        total = total + a**j * b ** (power - j)
    return total / (power + 1)


def positive_power_mean(a: Tensor, b: Tensor, power: int) -> Tensor:
    """Mean of (x)_+^power over the segment from a to b: only the part above zero counts."""
    top, low = torch.maximum(a, b), torch.minimum(a, b)
    above = torch.relu(top) / torch.where(
        top > low, top - low, 1.0
    )  # share of the segment above zero, where it crosses
    return torch.where(
        low >= 0, power_mean(a, b, power), above * torch.relu(top) ** power / (power + 1)
    )


def gauss_mean(h: Cost, a: Tensor, b: Tensor, nodes: int = 32) -> Tensor:
    """Mean of a smooth h over the segment from a to b by Gauss–Legendre quadrature.

    With 32 nodes the logistic h(t) = log(1 + exp(-beta t)) is exact to 1e-10 on segments of length
    up to 15/beta (its poles are at ±i pi/beta); rewards of a sample move D by less than that from
    one atom to the next unless beta times a single mass times a reward gap exceeds 15. A kink of h
    inside a segment leaves few digits: give such an h a piece mean of its own.
    """
    points, masses = _gauss_nodes(nodes)
    x, w = (
        torch.as_tensor(points, dtype=a.dtype, device=a.device),
        torch.as_tensor(masses, dtype=a.dtype, device=a.device),
    )
    segment = (a + b)[..., None] / 2 + (b - a)[..., None] / 2 * x
    return (h(segment) * w).sum(-1) / 2


# ------------------------------------------------------------------------------------- soft sorting
def soft_sort(values: Tensor, softness: float) -> Tensor:
    """Soft ascending sort: the projection of (1, ..., n)/softness on the permutahedron of the
    values; shape (..., n).

    The soft sort P_Q(rho/epsilon, theta) of arXiv:2002.08871 with the quadratic regulariser Q,
    mirrored (the paper sorts downwards), by its reduction to isotonic regression. softness is
    epsilon > 0, in the inverse unit of the values. It equals the hard sort as soon as softness <= 1
    / (largest gap between neighbours), flattens to the mean as softness grows, keeps the sum, is
    monotone along the last axis, and is differentiable almost everywhere.
    """
    if not 0 < softness < float("inf"):
        raise ValueError(
            f"softness must be positive and finite, got {softness}. Pass None for hard sorting."
        )
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(
            "a soft sort needs at least one number on the last axis, got shape"
            f" {tuple(values.shape)}."
        )
    ordered = wide(values).sort(dim=-1).values
    rank = torch.arange(1, values.shape[-1] + 1, dtype=ordered.dtype, device=values.device).expand(
        values.shape
    )
    with torch.no_grad():
        block = _pooled_blocks(ordered - rank / softness)
    # the anchor plus the block mean of (ordered - anchor), anchor = rank/softness, without
    # cancelling large anchors
    soft = _block_mean(ordered, block) + (rank - _block_mean(rank, block)) / softness
    return soft.to(values.dtype)


def _pooled_blocks(y: Tensor) -> Tensor:
    """Block of each entry, (..., n), in the least-squares fit of y by a non-increasing sequence:
    pool adjacent violators.

    Neighbouring blocks whose means increase are equal in the fit, so that all of them can be pooled
    at once, round by round.
    """
    block = torch.arange(y.shape[-1], device=y.device).expand(y.shape)
    while True:
        level = _block_mean(y, block)
        edge = block[..., 1:] != block[..., :-1]
        violated = edge & (level[..., 1:] > level[..., :-1])
        if not violated.any():
            return block
        starts = torch.cat([torch.zeros_like(block[..., :1]), (edge & ~violated).long()], -1)
        block = starts.cumsum(-1)


def _block_mean(x: Tensor, block: Tensor) -> Tensor:
    """The mean over each entry's block."""
    size = torch.zeros_like(x).scatter_add(-1, block, torch.ones_like(x))
    return (torch.zeros_like(x).scatter_add(-1, block, x) / size.clamp(min=1)).gather(-1, block)


# ------------------------------------------------------------------------------------------ helpers
def _checked(name: str, sample: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Numbers, finite where they have weight, with one non-negative finite weight each, not all
    zero."""
    sample = _tensor(name, sample)
    if weights is not None:
        weights = _tensor(f"the weights of {name}", weights).to(sample.device)
        check_weights(weights, sample.shape[-1] if sample.ndim else 0, f"the weights of {name}")
    bad = torch.isnan(sample) | (
        torch.isinf(sample) if weights is None else torch.isinf(sample) & (weights > 0)
    )
    if bool(bad.any()):
        raise ValueError(
            f"{name} holds {int(bad.sum())} entries that are NaN or infinite among"
            f" {sample.numel()}, the first at {int(bad.nonzero()[0, -1]) + 1}. Leave them out, with"
            " their weights, or look at what computed them."
        )
    return sample, weights


def _tensor(name: str, x: Tensor) -> Tensor:
    """Tensors of floats as they are, with dtype and gradient; whole numbers, truth values and what
    else there is in float64."""
    return (
        x
        if isinstance(x, Tensor) and x.is_floating_point() and x.layout == torch.strided
        else as_float64(x, name)
    )


def check_weights(
    weights: Tensor, n: int, name: str = "weights", *, all_zero: bool = False
) -> None:
    """One non-negative finite number for each of n atoms on the last axis, in no row all zero
    unless that is allowed."""
    if weights.ndim == 0 or weights.shape[-1] != n:
        raise ValueError(
            f"{name} must have one number for each of the {n} atoms, got shape"
            f" {tuple(weights.shape)}."
        )
    bad = ~(torch.isfinite(weights) & (weights >= 0))
    if bool(bad.any()):
        place = bad.nonzero()[0, -1].item()
        raise ValueError(
            f"{name} must be finite and not negative, but weight {place + 1} of {n} is"
            f" {weights[bad][0].item():g}. Probabilities, or counts, are wanted; use 0 to leave an"
            " atom out."
        )
    if not all_zero and not bool((weights.sum(-1) > 0).all()):
        raise ValueError(
            f"{name} are all zero, for {n} atoms: nothing is left. Give at least one of them"
            " weight."
        )


def _batched(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Both samples with the same leading shape."""
    if u.ndim == 0 or v.ndim == 0 or 0 in (u.shape[-1], v.shape[-1]):
        raise ValueError(
            f"both samples need at least one number on their last axis, got {tuple(u.shape)} and"
            f" {tuple(v.shape)}."
        )
    lead = torch.broadcast_shapes(u.shape[:-1], v.shape[:-1])
    return u.expand(*lead, u.shape[-1]), v.expand(*lead, v.shape[-1])


def _gaps(
    u: Tensor,
    v: Tensor,
    u_weights: Tensor | None,
    v_weights: Tensor | None,
    spectrum: Spectrum | None = None,
) -> tuple[Tensor, Tensor]:
    """Q_u - Q_v on the pieces of the coupling, and their masses."""
    plan = _coupling(u, v, u_weights, v_weights, spectrum)
    u, v = _batched(u, v)
    if not u.is_floating_point():  # whole numbers, whose dtype has no shares of mass
        u, v = wide(u), wide(v)
    return u.gather(-1, plan.row) - v.gather(-1, plan.column), plan.mass


def _weighed(ends: Tensor, spectrum: Spectrum) -> Tensor:
    """The masses of the pieces between the levels `ends`, from 0 on."""
    start = torch.cat([torch.zeros_like(ends[..., :1]), ends[..., :-1]], -1)
    mass = spectrum(start, ends)
    if mass.device.type == "cpu" and not bool((mass >= -1e-12).all()):
        raise ValueError(
            f"a spectrum weighs levels by numbers that are not negative, got {mass.min().item():g}."
            " It is called with the two ends of pieces of levels, and returns their masses."
        )
    return mass


def _levels(order: Tensor, weights: Tensor | None) -> Tensor:
    """Cumulated weights of the sorted atoms, the last exactly one."""
    n = order.shape[-1]
    if weights is None:
        top = torch.arange(1, n + 1, dtype=widest(order.device), device=order.device) / n
        return top.expand(order.shape)
    if weights.shape[-1] != n:
        raise ValueError(
            f"weights must have one number for each of the {n} atoms, got shape"
            f" {tuple(weights.shape)}."
        )
    top = wide(weights.detach()).expand(order.shape).gather(-1, order).cumsum(-1)
    return top / top[..., -1:]


def _first_above(top: Tensor, levels: Tensor) -> Tensor:
    """Index of the first atom whose cumulated weight reaches the level; an atom without weight is
    never the first."""
    lead = torch.broadcast_shapes(top.shape[:-1], levels.shape[:-1])
    top, levels = (
        top.expand(*lead, top.shape[-1]).contiguous(),
        levels.expand(*lead, levels.shape[-1]).contiguous(),
    )
    return torch.searchsorted(top, levels.clamp(min=tiny(levels.dtype))).clamp(
        max=top.shape[-1] - 1
    )
