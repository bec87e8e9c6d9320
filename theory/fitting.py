"""Exact fits of theta over an ambiguity set, for many replicates at once, with certificates.

    fit(u, KL(0.05), weights, beta=1.0, bound=4.0)

u (n, d) or (R, n, d) holds signed feature differences (2y-1)(psi1-psi2), weights (n,) or (R, n)
their probabilities (None: 1/n each); arrays, tensors on any device, DataFrames or lists, computed
in float64. Equal pairs are merged before they are solved (`theory.merging`). All estimators
minimise over ||theta|| <= bound with w = theta - theta_ref and m = beta w.u. The number that sizes
the set may differ between replicates. Magnitudes from 1e-50 to 1e50 of u, beta, bound, distances
and positive radii are accepted, and beta * bound * max|u| up to 1e15.

Each fit carries a certificate. For any theta' in the feasible set and any distribution Q in the
ambiguity set, value(theta') >= E_Q l(theta') >= E_Q l(theta) + g_Q.(theta' - theta); minimising the
right side over theta' is closed form, so that `gap` bounds value - optimum without trusting the
solver. See Boyd and Vandenberghe, Convex Optimization, section 5.5.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from theory.batch import (
    SMALLEST,
    ArrayLike,
    PairBatch,
    as_float64,
    check_reach,
    feature_names,
    pair_batch,
    warn_of_scales,
)
from theory.checks import check_pairs, check_positive, check_reference, check_scale, check_set
from theory.merging import merged
from theory.results import Fit
from theory.solvers.compiled.batches import Answer, answer
from theory.solvers.kl import solve_mean
from theory.solvers.nearest import nearest
from theory.solvers.newton import Domain
from theory.solvers.points import LOG2, Point, join, scatter

if TYPE_CHECKING:  # sets name their estimators, which fit
    from theory.sets.base import AmbiguitySet

# margins, in root mean square along any direction, that no minimiser reaches unless the pairs are
# separable or nearly so, and beta ||theta|| max|u| beyond which none is sought
_LARGE, _FAR = 100.0, 1e6


# ----------------------------------------------------------------------------------- the front door
def fit(
    u: ArrayLike,
    set: "AmbiguitySet | None" = None,
    weights: ArrayLike | None = None,
    *,
    beta: float,
    bound: float | None = None,
    theta_ref: ArrayLike | None = None,
    tolerance: float = 1e-10,
) -> Fit:
    """Minimise the worst mean DPO loss over an ambiguity set, exactly and with a certificate.

    The loss of a pair is log(1 + exp(-beta w.u)), w = theta - theta_ref: Section 4.1,
    arXiv:2502.01930v4. The source of each set is its own: Section 4.1 there for Wasserstein
    balls and `KL`.

    Args:
        u: (n, d) or (R, n, d) signed feature differences (2y-1)(psi1-psi2), one row a pair.
        set: one of `theory.SETS`, with its size, such as `KL(0.05)`; a vector of R sizes gives R
            fits. None: the mean loss, plain DPO.
        weights: (n,) or (R, n) probabilities of the pairs; None: 1/n each.
        beta: of the loss, > 0 and without a unit.
        bound: B in ||theta|| <= B, in the inverse unit of u as theta is; None: one that is reached
            only where the pairs are separable.
        theta_ref: (d,) of the reference policy; None: 0, the uniform policy.
        tolerance: largest certified gap of a fit that counts as converged, relative to
            max(1, |value|).

    Returns:
        A `Fit`: with a batch axis where u, weights or the size has one, without where none has.
        Values and gaps are in nats, as the loss is.

    Raises:
        ValueError: input that is not finite numbers of these shapes and magnitudes, weights that do
            not sum to one, a size out of range, or theta_ref outside of the bound.

    >>> import numpy as np
    >>> from theory import KL, WassersteinFree, fit
    >>> u = np.array([[1.0, 0.2], [0.5, -1.0], [-0.6, 0.4], [0.8, 0.9]])
    >>> found = fit(u, KL(0.02), beta=1.0)
    >>> bool(found.converged), found.theta.shape
    (True, torch.Size([2]))

    Three of four pairs agree: W1 makes it sigma(theta) = 3/4 - radius.

    >>> agreed = [[1.0], [1.0], [1.0], [-1.0]]
    >>> found = fit(agreed, WassersteinFree([0.0, 0.15], power=1), beta=1.0)
    >>> found.theta[:, 0].exp().numpy().round(6).tolist()
    [3.0, 1.5]
    """
    check_pairs(u)
    if set is not None or hasattr(u, "facts"):
        check_set(u, set)
    pairs, single = pair_batch(u, weights), is_single(u, weights)
    beta = check_scale("beta", beta, "It scales the log-ratio in the margin; papers use 0.01 to 1.")
    tolerance = check_positive(
        "tolerance", tolerance, "It is how large a certified gap may be; 1e-10 is the default."
    )
    inner, unit = _inner(pairs, set, bound)
    domain, within = _domains(inner, unit, beta, bound, theta_ref)
    if set is None:
        few = merged(inner, None)
        atoms = inner if few is None else few[0]
        point = _solve(
            atoms,
            within,
            None,
            lambda part, here, _: solve_mean(part, beta, here),
            quick=answer("mean", atoms, beta, within, dual=False),
        )
    else:
        set.check_atoms(pairs.p.shape[1])
        if set.knows_units:
            warn_of_scales(pairs.ut, type(set).__name__, set.facts.size, feature_names(u))
        pairs, single = _for_each_size(pairs, single, set)
        inner = PairBatch(inner.ut, pairs.p)
        size = set.check_size(pairs.replicates, pairs.p)
        few = merged(inner, set)
        atoms, ball = (inner, set) if few is None else (few[0], set.on_rows(few[1]))
        ball.check_cost(atoms.p.shape[1], atoms.replicates)

        def solver(part: PairBatch, here: Domain, sizes: Tensor) -> Point:
            found = ball.solve(part, beta, here, sizes)
            return nearest(part, found, ball.worst_weights, sizes, beta, here)

        quick = ball.compiled(atoms, beta, within, size)
        point = _solve(atoms, within, size, solver, ball.elements(atoms.p.shape[1]), quick)
    point = _not_above_reference(point)
    value, gap = point.value, point.gap.clamp(min=0)  # rounding may leave it a little below zero
    gap = gap.minimum(value)  # no loss is negative, and so no optimum
    small = tolerance * value.clamp(min=1)  # infinite, or NaN, with the value
    converged = (small < torch.inf) & (gap <= small) & (point.gap >= -small)
    reach = (point.w + within.theta_ref).norm(dim=-1)
    at_bound = ~point.collapsed & (reach >= within.bound * (1 - 1e-9))
    w = point.w if unit is None else point.w / unit
    theta = torch.where(point.collapsed[:, None], domain.theta_ref, w + domain.theta_ref)
    found = Fit(
        theta,
        value,
        gap,
        point.dual,
        converged,
        point.collapsed,
        point.steps,
        at_bound,
        _several=point.several,
    )
    made = found.of(set, pairs, beta, domain, feature_names(u), bounded=bound is not None)
    return made.without_batch() if single else made


def dpo(
    u: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    beta: float,
    bound: float | None = None,
    theta_ref: ArrayLike | None = None,
    tolerance: float = 1e-10,
) -> Fit:
    """min E log(1 + exp(-beta w.u)), plain DPO. Eq. (3), arXiv:2502.01930v4; arguments as `fit`.

    Returns:
        A `Fit`, whose `dual` is None.

    Raises:
        ValueError: as `fit`.

    >>> from theory import dpo
    >>> dpo([[1.0], [1.0], [-1.0]], beta=1.0).theta.item()  # log 2: two of three pairs
    0.69314718...
    """
    return fit(u, None, weights, beta=beta, bound=bound, theta_ref=theta_ref, tolerance=tolerance)


# ----------------------------------------------------------------------------------------- plumbing
def is_single(u: ArrayLike, weights: ArrayLike | None) -> bool:
    """Whether neither the pairs nor their weights have a batch axis."""
    axes = [x.ndim if hasattr(x, "ndim") else np.ndim(x) for x in (u, weights) if x is not None]
    return axes[0] == 2 and axes[1:] in ([], [1])


def _inner(
    pairs: PairBatch, set: "AmbiguitySet | None", bound: float | None
) -> tuple[PairBatch, Tensor | None]:
    """The pairs to solve with, and the units (d,) that their features are measured in, None for
    their own.

    Where neither a bound nor the set knows them, features of very different sizes are measured each
    in its own: a ball around theta then fits all of them, and so does its certificate.
    """
    blind = bound is None and (set is None or not set.knows_units)
    unit = pairs.own_units() if blind else None
    return (pairs if unit is None else pairs.in_units(unit)), unit


def _domains(
    inner: PairBatch,
    unit: Tensor | None,
    beta: float,
    bound: float | None,
    theta_ref: ArrayLike | None,
) -> tuple[Domain, Domain]:
    """The feasible set in the units that were given, and in those that are solved in; where these
    differ, the first is a ball around the second."""
    if bound is None:
        near = theta_ref
        if unit is not None and theta_ref is not None:
            near = as_float64(theta_ref, "theta_ref", unit.device) * unit
        bound = far_bound(inner, beta, near)
    bound = check_scale(
        "bound",
        bound,
        "It is B in ||theta|| <= B; leave it out, or None, where no bound is wanted.",
    )
    check_reach(inner, beta, bound)
    outer = bound if unit is None else bound / unit.min().item()
    reference = check_reference(theta_ref, inner.dimension, outer, inner.p)
    domain = Domain(reference, outer)
    return domain, domain if unit is None else Domain(reference * unit, bound)


def _for_each_size(pairs: PairBatch, single: bool, set: "AmbiguitySet") -> tuple[PairBatch, bool]:
    """A vector of sizes on one sample is a path of fits: the sample once for each of them."""
    size = as_float64(set.size, set.facts.size)
    if pairs.replicates > 1 or size.ndim != 1:
        return pairs, single
    return PairBatch(pairs.ut, pairs.p.expand(len(size), -1)), False


def far_bound(pairs: PairBatch, beta: float, theta_ref: ArrayLike | None = None) -> float:
    """A bound that only a separable sample reaches: where the margins are large in the direction
    in which they grow least, as the singular values of the pairs tell."""
    reference = 0.0 if theta_ref is None else as_float64(theta_ref, "theta_ref").norm().item()
    size = max(pairs.largest, SMALLEST)
    spread = np.linalg.eigvalsh(pairs.gram / (pairs.ut.shape[2] * size**2))  # (R, d), of squares
    seen = spread > 1e-13 * spread[:, -1:]
    least = math.sqrt(max(np.where(seen, spread, 1.0).min(), 1e-300))
    return min(_FAR, _LARGE / least) / (beta * size) + 2 * reference


def _solve(
    pairs: PairBatch,
    domain: Domain,
    size: Tensor | None,
    solver: Callable[[PairBatch, Domain, Any], Point],
    elements: int | None = None,
    quick: Answer | None = None,
) -> Point:
    """What a compiled solver left open, or everything, by `solver`."""
    if quick is None:
        everything = torch.arange(pairs.replicates, device=pairs.p.device)
        return _by_chunks(pairs, domain, size, solver, everything, elements)
    if not len(quick.left):
        return quick.point
    rest = _by_chunks(pairs, domain, size, solver, quick.left, elements)
    return scatter([(quick.left, rest)], quick.point)


def _by_chunks(
    pairs: PairBatch,
    domain: Domain,
    size: Tensor | None,
    solver: Callable[[PairBatch, Domain, Any], Point],
    replicates: Tensor,
    elements: int | None,
) -> Point:
    """Some of the replicates chunk by chunk, and in the span of the pairs where that is less than
    everything."""
    points = []
    for index in _parts(pairs, replicates, elements):
        part, basis = pairs.select(index), _basis(pairs, index, domain)
        here = None if size is None else size[index]
        if basis is None:
            points.append(solver(part, domain, here))
        else:
            part = PairBatch(torch.matmul(basis.T, part.ut), part.p)
            point = solver(part, Domain(domain.theta_ref @ basis, domain.bound), here)
            point.w = point.w @ basis.T
            points.append(point)
    return join(points)


def _not_above_reference(point: Point) -> Point:
    """The reference policy is feasible, with the value log 2 under any set: what is above it is
    replaced by it, certified as far as it was."""
    above = point.value > LOG2
    if not bool(above.any()):
        return point
    point.gap = torch.where(above, point.gap - (point.value - LOG2), point.gap)
    point.value = point.value.clamp(max=LOG2)
    point.w = torch.where(above[:, None], 0.0, point.w)
    return point


def _parts(pairs: PairBatch, replicates: Tensor, elements: int | None) -> list[Tensor]:
    """Indices of the replicates to solve together; with fewer pairs than dimensions each sample has
    a span of its own."""
    if pairs.ut.shape[0] > 1 and pairs.ut.shape[2] < pairs.dimension + 1:
        return list(replicates[:, None])
    return list(replicates.split(pairs.chunk_size(elements)))


def _basis(pairs: PairBatch, index: Tensor, domain: Domain) -> Tensor | None:
    """Orthonormal basis (d, k) of the span of the pairs and theta_ref, None where that is
    everything.

    No objective sees w outside the span of the pairs, and the ball pulls theta only towards 0: w =
    0 there is a solution.
    """
    if pairs.dimension == 1 or (pairs.ut.shape[0] > 1 and len(index) > 1):
        return None
    u = pairs.ut[0 if pairs.ut.shape[0] == 1 else index[0]]
    spread = torch.linalg.eigvalsh(u @ u.T)
    if spread[0] > 1e-8 * spread[-1]:  # surely everything, without the decomposition below
        return None
    everything = torch.cat(
        [u / u.norm(dim=0).amax().clamp(min=1e-300), domain.theta_ref[:, None] / domain.bound], 1
    )
    left, sizes, _ = torch.linalg.svd(everything, full_matrices=False)
    rank = max(int((sizes > 1e-12 * sizes[0]).sum()), 1)
    return None if rank == pairs.dimension else left[:, :rank]
