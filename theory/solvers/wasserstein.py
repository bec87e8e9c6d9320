"""Solvers for Wasserstein balls, on the atoms and with free features, and for the gradient
penalties that stand for them."""

from collections.abc import Callable

import torch
from torch import Tensor

from theory.batch import PairBatch
from theory.duals import transport_dual
from theory.solvers.collapse import Collapse, finite_collapse, free_collapse, label_collapse
from theory.solvers.interior import solve
from theory.solvers.kl import solve_point_ball
from theory.solvers.moves import FiniteMoves, LabelMoves, QuadraticMoves, SmoothedTransportLoss
from theory.solvers.newton import Domain, minimise
from theory.solvers.points import (
    DOUBTFUL,
    LOG2,
    Point,
    at_rest,
    collapsed_point,
    keep_better,
    linear_start,
    lower_gap,
    norm_gap,
    radial_start,
    scatter,
    smooth_point,
    take,
)
from theory.solvers.smooth import (
    FixedLabelLoss,
    GradientPenalisedLoss,
    MeanLoss,
    NormPenalisedLoss,
    QuadraticTransportLoss,
    SmoothedLabelLoss,
    loss_and_slope,
)
from theory.solvers.wells import global_well

# destinations of an atom that the screened solver on a finite Z leaves to the interior-point method
_TARGETS = 10
# times that targets are added where some were missed, and whether the ties are settled then
_ROUNDS = (False, False, False, True, True)
# pairs near the kink that the screened solver for label moves leaves to the interior-point method
_BAND = 96
# how often the band may move, the gap from which on that leads nowhere, and the pairs that the
# smoothed kink may leave in doubt before it
_BANDS, _ASTRAY, _SMOOTHED = 3, 1e-5, 300


def solve_w1(pairs: PairBatch, beta: float, domain: Domain, radius: Tensor) -> Point:
    point = collapsed_point(pairs)
    outside = radius < free_collapse(pairs, 1)
    point.dual = beta * point.w.norm(dim=-1)
    if outside.any():
        part, r = pairs.select(outside), radius[outside]
        solved = _w1_from(part, beta, domain, r, radial_start(part, beta, domain, beta * r))
        # near collapse Newton's decrement is small with ||w||, however far w still has to turn:
        # step until the certificate is
        for _ in range(3):
            hard = (solved.gap > 1e-12).nonzero()[:, 0]
            if not hard.numel():
                break
            better = _w1_from(part.select(hard), beta, domain, r[hard], solved.w[hard])
            solved = keep_better(solved, hard, better)
        point = scatter([(outside, solved)], point)
    return point


def _w1_from(pairs: PairBatch, beta: float, domain: Domain, radius: Tensor, start: Tensor) -> Point:
    function = NormPenalisedLoss(pairs, beta, radius)
    w, _, steps = minimise(function, start, domain)
    point = smooth_point(function, w, steps, domain)
    point.gap = norm_gap(w, MeanLoss(pairs, beta).derivatives(w)[1], beta * radius, domain)
    point.dual = beta * w.norm(dim=-1)
    return point


def solve_w2(pairs: PairBatch, beta: float, domain: Domain, radius: Tensor) -> Point:
    point = collapsed_point(pairs)
    outside = radius < free_collapse(pairs, 2)
    parts = []
    plain = outside & (radius <= 0)
    if plain.any():
        mean_fit = solve_point_ball(pairs.select(plain), beta, domain)
        parts.append((plain, mean_fit))
    robust = outside & ~plain
    if robust.any():
        parts.append((robust, _w2_positive(pairs.select(robust), beta, domain, radius[robust])))
    return scatter(parts, point)


def _w2_positive(pairs: PairBatch, beta: float, domain: Domain, radius: Tensor) -> Point:
    w0 = radial_start(pairs, beta, domain, beta * radius / 2)
    eta0 = beta * w0.norm(dim=-1) / (4 * radius)  # optimal for small margins
    v, settled, steps = minimise(
        QuadraticTransportLoss(pairs, beta, radius), torch.cat([w0, eta0[:, None]], -1), domain
    )
    point = _w2_point(pairs, beta, domain, radius, v, None, steps)
    hard = (~settled | (point.gap > DOUBTFUL)).nonzero()[:, 0]
    for finish in (False, True):  # to settle ties is slow, and seldom needed
        if hard.numel():  # an atom sits between the two wells
            part = pairs.select(hard)
            interior = solve(
                QuadraticMoves(part, beta), radius[hard] ** 2, eta0[hard], domain, settled=finish
            )
            split = _w2_point(
                part, beta, domain, radius[hard], interior.v, interior.z, interior.steps
            )
            point = keep_better(point, hard, split)
        hard = (point.gap > DOUBTFUL).nonzero()[:, 0]
    for factor in (1.0, 10.0, 0.1):  # where a far start held the method up
        if not hard.numel():
            break
        part, r = pairs.select(hard), radius[hard]
        eta = factor * beta * point.w[hard].norm(dim=-1) / (4 * r)
        # where pairs are separable all losses may be small, and the gap with them
        found = solve(QuadraticMoves(part, beta), r**2, eta, domain, tolerance=1e-16, settled=True)
        again = _w2_point(part, beta, domain, r, found.v, found.z, found.steps)
        point = keep_better(point, hard, again)
        hard = (point.gap > DOUBTFUL).nonzero()[:, 0]
    return point


def _w2_point(
    pairs: PairBatch,
    beta: float,
    domain: Domain,
    radius: Tensor,
    v: Tensor,
    z: Tensor | None,
    steps: Tensor,
) -> Point:
    """Upper bound: the dual value at (w, eta). Lower bound: each atom moved along w, shrunk to meet
    the radius.

    Near collapse w/||w|| turns with the last digits of w, and with it the gradient under moves
    along w, as in `norm_gap`. Moves along the direction that balances the gradient lose b (1 - cos)
    only, of second order in that turn; the better bound counts.
    """
    w, eta = domain.project(v[:, :-1]), v[:, -1]
    b = beta * w.norm(dim=-1)
    a = b**2 / (2 * eta)
    margin = beta * pairs.project(w)
    phi, q, _, _ = global_well(margin, a)
    value = eta * radius**2 + (pairs.p * phi).sum(-1)
    if z is None:
        mass, q = pairs.p[:, None, :], q[:, None, :]
    else:
        pieces = QuadraticMoves(pairs, beta)
        pieces.move(torch.cat([w, eta[:, None]], -1))
        q = -pieces.along
        mass = z / z.sum(1, keepdim=True).clamp(min=1e-300) * pairs.p[:, None, :]
    shift = (
        a[:, None, None] * q / b.clamp(min=1e-300)[:, None, None]
    )  # distance moved against w: k/b with k = a q
    used = (mass * shift**2).sum((1, 2)).sqrt()
    shift = shift * (radius / used.clamp(min=1e-300)).clamp(max=1.0)[:, None, None]
    direction = w / w.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    gaps = []
    for _ in range(2):
        loss, slope = loss_and_slope(
            margin[:, None, :] - beta * (w * direction).sum(-1)[:, None, None] * shift
        )
        pull = mass * slope
        towards, pushed = pairs.pull(pull.sum(1)), (pull * shift).sum((1, 2))[:, None]
        gradient = -beta * (towards - pushed * direction)
        gaps.append(value - (mass * loss).sum((1, 2)) + domain.linear_gap(w, gradient))
        direction = towards / pushed.clamp(min=1e-300)
        direction = direction / direction.norm(dim=-1, keepdim=True).clamp(min=1.0)
    gap = gaps[0].minimum(gaps[1])
    return Point(w, value, gap, eta.clone(), steps, torch.zeros_like(steps, dtype=torch.bool))


def solve_w1_label(
    pairs: PairBatch, beta: float, domain: Domain, radius: Tensor, kappa: float
) -> Point:
    point = collapsed_point(pairs)
    point.dual = torch.zeros_like(radius)
    plain = (radius <= 0).nonzero()[:, 0]
    if plain.numel():
        mean_fit = solve_point_ball(pairs.select(plain), beta, domain)
        point = scatter([(plain, mean_fit)], point)
    # flips only lower the collapse radius, so that beyond the one with fixed labels nothing is left
    # to solve
    outside = ((radius > 0) & (radius < free_collapse(pairs, 1))).nonzero()[:, 0]
    if outside.numel():
        point = scatter(
            [
                (
                    outside,
                    _w1_label_inside(pairs.select(outside), beta, domain, radius[outside], kappa),
                )
            ],
            point,
        )
    return point


def _w1_label_inside(
    pairs: PairBatch, beta: float, domain: Domain, radius: Tensor, kappa: float
) -> Point:
    if (
        kappa >= pairs.ut.norm(dim=1).max()
    ):  # m_i <= beta ||w|| ||u_i|| <= kappa eta: no flip ever pays
        return solve_w1(pairs, beta, domain, radius)
    n = pairs.p.shape[1]
    if n <= 4 * _BAND:
        point = _w1_label_interior(pairs, beta, domain, radius, kappa, 1e-13)
    else:
        point = _w1_label_screened(pairs, beta, domain, radius, kappa)
    for finish in (False, True):
        hard = (point.gap > DOUBTFUL).nonzero()[:, 0]
        if hard.numel():
            better = _w1_label_interior(
                pairs.select(hard), beta, domain, radius[hard], kappa, 1e-16, settled=finish
            )
            point = keep_better(point, hard, better)
    return settle_collapse(
        pairs, point, radius, beta, domain, lambda part: Collapse(label_collapse(part, kappa))
    )


def _w1_label_interior(
    pairs: PairBatch,
    beta: float,
    domain: Domain,
    radius: Tensor,
    kappa: float,
    tolerance: float,
    settled: bool = False,
) -> Point:
    # of the size of the solution's, which a far bound says nothing of
    w = linear_start(pairs, beta, domain)
    margin = (pairs.p * (beta * pairs.project(w)) ** 2).sum(-1).sqrt()
    eta0 = (1.5 * beta * w.norm(dim=-1) + margin).clamp(min=1e-9, max=beta * domain.bound)
    interior = solve(
        LabelMoves(pairs, beta, kappa), radius, eta0, domain, tolerance=tolerance, settled=settled
    )
    flip = interior.z[:, 1] / interior.z.sum(1).clamp(min=1e-300)
    return _w1_label_point(pairs, beta, domain, radius, kappa, interior.v, flip, interior.steps)


def _w1_label_screened(
    pairs: PairBatch, beta: float, domain: Domain, radius: Tensor, kappa: float
) -> Point:
    """Large samples: Newton's method on a smoothed hinge finds which labels surely stay or flip;
    the interior point decides the rest, the `_BAND` pairs nearest to the kink m = kappa eta. The
    certificate covers all pairs, so that a wrong guess shows; the band then moves to the kink of
    what was found.
    """
    w = linear_start(pairs, beta, domain)
    scale = (pairs.p * (beta * pairs.project(w)) ** 2).sum(-1).sqrt().clamp(min=1e-9)
    v = torch.cat([w, (1.5 * beta * w.norm(dim=-1) + scale)[:, None]], -1)
    taken = torch.zeros_like(radius, dtype=torch.int64)
    stages = [(0.1, _head(pairs)), (0.01, pairs)]
    while pairs.p.shape[1] * stages[-1][0] > _SMOOTHED:  # pairs under the smoothed kink, about
        stages.append((stages[-1][0] / 10, pairs))
    for fraction, sample in stages:
        eps = fraction * scale
        function = SmoothedLabelLoss(
            sample, beta, radius, kappa, eps, (0.1 * eps**2).minimum(0.03 * eps)
        )
        v, _, steps = minimise(function, v, domain, max_steps=7)
        taken = taken + steps
    point = _w1_label_band(pairs, beta, domain, radius, kappa, v, taken)
    for _ in range(_BANDS - 1):
        hard = ((point.gap > DOUBTFUL) & (point.gap < _ASTRAY)).nonzero()[:, 0]
        if not hard.numel():
            break
        part, v = pairs.select(hard), _variables(point, hard)
        again = _w1_label_band(part, beta, domain, radius[hard], kappa, v, point.steps[hard])
        point = keep_better(point, hard, again)
    return point


def _variables(point: Point, index: Tensor) -> Tensor:
    """(w, eta) of some of the points."""
    assert point.dual is not None
    return torch.cat([point.w[index], point.dual[index, None]], -1)


def _w1_label_band(
    pairs: PairBatch,
    beta: float,
    domain: Domain,
    radius: Tensor,
    kappa: float,
    v: Tensor,
    taken: Tensor,
) -> Point:
    """The interior point on the pairs near the kink at v = (w, eta), all other labels as they are
    there."""
    over = beta * pairs.project(v[:, :-1]) - kappa * v[:, -1:]
    near = over.abs().topk(_BAND, dim=-1, largest=False, sorted=False).indices
    far = torch.ones_like(over, dtype=torch.bool).scatter_(1, near, False)
    flipped = torch.where(far & (over > 0), pairs.p, 0.0)
    rest = FixedLabelLoss(PairBatch(pairs.ut, torch.where(far, pairs.p, 0.0)), beta, kappa, flipped)
    ut = pairs.ut.expand(pairs.replicates, -1, -1).gather(
        2, near[:, None, :].expand(-1, pairs.dimension, -1)
    )
    band = LabelMoves(PairBatch(ut, pairs.p.gather(1, near)), beta, kappa)
    interior = solve(band, radius, v[:, -1], domain, smooth=rest)
    share = interior.z[:, 1] / interior.z.sum(1).clamp(min=1e-300)
    flip = (flipped > 0).to(share.dtype).scatter_(1, near, share)
    return _w1_label_point(
        pairs, beta, domain, radius, kappa, interior.v, flip, taken + interior.steps
    )


def _head(pairs: PairBatch) -> PairBatch:
    """Where the sample is large its first sixteenth, which is enough to find where to start; else
    the sample."""
    head = pairs.p.shape[1] // 16
    if head <= 2048:
        return pairs
    p = pairs.p[:, :head]
    return PairBatch(
        pairs.ut[:, :, :head].contiguous(), p / p.sum(-1, keepdim=True).clamp(min=1e-300)
    )


def _w1_label_point(
    pairs: PairBatch,
    beta: float,
    domain: Domain,
    radius: Tensor,
    kappa: float,
    v: Tensor,
    flip: Tensor,
    steps: Tensor,
) -> Point:
    """Lower bound: flip the share `flip` of each label and spend what is left of the radius on
    sending features to infinity."""
    w = domain.project(v[:, :-1])
    norm = w.norm(dim=-1)
    eta = v[:, -1].maximum(beta * norm)
    margin = beta * pairs.project(w)
    loss, slope = loss_and_slope(margin)
    value = eta * radius + (pairs.p * (loss + (margin - kappa * eta[:, None]).clamp(min=0))).sum(-1)
    spent = kappa * (pairs.p * flip).sum(-1)
    flip = pairs.p * flip * (radius / spent.clamp(min=1e-300)).clamp(max=1.0)[:, None]
    left = (radius - kappa * flip.sum(-1)).clamp(min=0)
    expected = (pairs.p * loss).sum(-1) + (flip * margin).sum(-1) + left * beta * norm
    gradient = -beta * pairs.pull(pairs.p * slope) + beta * pairs.pull(flip)
    gap = value - expected + norm_gap(w, gradient, left * beta, domain)
    point = Point(w, value, gap, eta, steps, torch.zeros_like(steps, dtype=torch.bool))
    at_rest = beta * pairs.pull(flip - pairs.p / 2)
    return collapse_where_certified(
        point, norm_gap(torch.zeros_like(w), at_rest, left * beta, domain), beta
    )


def solve_finite(
    pairs: PairBatch, beta: float, domain: Domain, cost: Tensor, budget: Tensor
) -> Point:
    point = collapsed_point(pairs)
    parts = []
    budget = budget.minimum(
        1.01 * (pairs.p @ cost.amax(1)) + 1e-300
    )  # no plan costs more than moving everything farthest
    plain = budget <= 0
    if plain.any() and bool(
        (cost + torch.eye(cost.shape[0], dtype=cost.dtype, device=cost.device) > 0).all()
    ):
        mean_fit = solve_point_ball(pairs.select(plain), beta, domain)
        parts.append((plain, mean_fit))
    else:
        plain = torch.zeros_like(plain)
    if not plain.all():
        rest = ~plain
        parts.append((rest, _finite_positive(pairs.select(rest), beta, domain, cost, budget[rest])))
    return scatter(parts, point)


def _finite_positive(
    pairs: PairBatch, beta: float, domain: Domain, cost: Tensor, budget: Tensor
) -> Point:
    n = cost.shape[0]
    margins = beta * pairs.project(linear_start(pairs, beta, domain))
    scale = (pairs.p * margins**2).sum(-1).sqrt().clamp(min=1e-9)
    typical = cost.mean() if bool((cost > 0).any()) else torch.ones_like(cost[0, 0])
    eta0 = 0.5 * scale / typical  # where a typical move costs what it gains
    everywhere = torch.arange(n, device=cost.device)[:, None].expand(n, n)
    if n <= 2 * _TARGETS:
        every = FiniteMoves(pairs, cost, beta, everywhere.expand(pairs.replicates, -1, -1))
        point = _finite_interior(every, domain, cost, budget, eta0)
    else:
        point = _finite_screened(pairs, beta, domain, cost, budget, eta0, scale)
    for tolerance, finish in (
        (1e-13, False),
        (1e-13, True),
        (1e-16, True),
    ):  # near collapse the smaller one is needed
        hard = (point.gap > DOUBTFUL).nonzero()[:, 0]
        if hard.numel():
            every = FiniteMoves(
                pairs.select(hard), cost, beta, everywhere.expand(len(hard), -1, -1)
            )
            better = _finite_interior(
                every, domain, cost, budget[hard], eta0[hard], tolerance, settled=finish
            )
            point = keep_better(point, hard, better)
    return settle_collapse(
        pairs, point, budget, beta, domain, lambda part: finite_collapse(part, cost)
    )


def _finite_interior(
    pieces: FiniteMoves,
    domain: Domain,
    cost: Tensor,
    budget: Tensor,
    eta0: Tensor,
    tolerance: float = 1e-13,
    settled: bool = False,
) -> Point:
    interior = solve(pieces, budget, eta0, domain, tolerance=tolerance, settled=settled)
    pairs = pieces.pairs
    plan = interior.z / interior.z.sum(1, keepdim=True).clamp(min=1e-300) * pairs.p[:, None, :]
    arriving, spent = pieces.arrivals(plan)
    return _finite_point(
        pairs,
        pieces.beta,
        domain,
        cost,
        budget,
        interior.v[:, :-1],
        arriving,
        spent,
        interior.steps,
    )


def _finite_screened(
    pairs: PairBatch,
    beta: float,
    domain: Domain,
    cost: Tensor,
    budget: Tensor,
    eta0: Tensor,
    scale: Tensor,
) -> Point:
    """Newton's method on the entropic smoothing finds where each atom may go, the interior point
    picks among `_TARGETS` of them.

    The certificate compares with all moves, so that a target that was missed shows; then those that
    are best at the point that was found are added, as in column generation.
    """
    v = torch.cat([linear_start(pairs, beta, domain), eta0[:, None]], -1)
    v, _, taken = minimise(
        SmoothedTransportLoss(pairs, cost, beta, budget, 0.1 * scale), v, domain, max_steps=6
    )
    targets = FiniteMoves(pairs, cost, beta).move(v).topk(_TARGETS, dim=1, sorted=False).indices
    point = _finite_interior(FiniteMoves(pairs, cost, beta, targets), domain, cost, budget, eta0)
    point.steps = point.steps + taken
    hard = torch.arange(len(targets), device=targets.device)
    for settled in _ROUNDS:
        left = point.gap[hard] > DOUBTFUL
        hard, targets = hard[left], targets[left]
        if not hard.numel() or targets.shape[1] + _TARGETS > cost.shape[0]:
            break
        part, v = pairs.select(hard), _variables(point, hard)
        gain = FiniteMoves(part, cost, beta).move(v).scatter_(1, targets, -torch.inf)
        targets = torch.cat([targets, gain.topk(_TARGETS, dim=1, sorted=False).indices], 1)
        few = FiniteMoves(part, cost, beta, targets)
        again = _finite_interior(few, domain, cost, budget[hard], eta0[hard], settled=settled)
        again.steps = again.steps + point.steps[hard]
        point = keep_better(point, hard, again)
    return point


def _finite_point(
    pairs: PairBatch,
    beta: float,
    domain: Domain,
    cost: Tensor,
    budget: Tensor,
    w: Tensor,
    arriving: Tensor,
    spent: Tensor,
    steps: Tensor,
) -> Point:
    """Upper bound: the exact dual at w. Lower bound: a plan, mixed with staying put until it meets
    the budget."""
    w = domain.project(w)
    loss, slope = loss_and_slope(beta * pairs.project(w))
    worst = transport_dual(loss, pairs.p, cost, budget)
    share = (budget / spent.clamp(min=1e-300)).clamp(max=1.0)[:, None]
    q = share * arriving + (1 - share) * pairs.p
    gap = worst.value - (q * loss).sum(-1) + lower_gap(pairs, q, slope, w, beta, domain)
    point = Point(
        w, worst.value, gap, worst.dual.clone(), steps, torch.zeros_like(steps, dtype=torch.bool), q
    )
    return collapse_where_certified(
        point,
        lower_gap(pairs, q, torch.full_like(slope, 0.5), torch.zeros_like(w), beta, domain),
        beta,
    )


def collapse_where_certified(point: Point, gap_at_rest: Tensor, beta: float) -> Point:
    """Return w = 0 exactly where it is nearly so and the worst case, E_Q u = 0 to the last digits,
    certifies it as optimal.

    Short of collapse by one part in a million E_Q u is of order 1e-6, so that this does not mistake
    a small w for none.
    """
    rest = (gap_at_rest <= 1e-11 * min(beta, 1.0)) & (point.w.norm(dim=-1) * beta < 1e-3)
    point.w = torch.where(rest[:, None], 0.0, point.w)
    point.value = torch.where(rest, LOG2, point.value)
    point.gap = torch.where(rest, gap_at_rest, point.gap)
    point.collapsed = rest
    return point


def settle_collapse(
    pairs: PairBatch,
    point: Point,
    radius: Tensor,
    beta: float,
    domain: Domain,
    threshold: Callable[[PairBatch], Collapse],
) -> Point:
    """Where w is nearly zero, or nothing is certain, ask the collapse radius whether it is zero.

    The value is one of the objective: where it is below log 2, no radius makes w = 0 the answer.
    """
    small = (point.w.norm(dim=-1) * beta < 1e-3) & (point.value > LOG2 - 1e-6)
    doubtful = (small | (point.gap > 1e-10)) & (point.value > LOG2 - 1e-9)
    near = (~point.collapsed & doubtful).nonzero()[:, 0]
    if near.numel():
        found = threshold(pairs.select(near))
        here = (radius[near] >= found.radius * (1 - 1e-9)).nonzero()[:, 0]
        if here.numel():
            inside = near[here]
            q = None if found.weights is None else found.weights[here]
            rest = at_rest(pairs.select(inside), q, beta, domain)
            point = scatter([(inside, rest)], point)
    return point


def solve_penalised(
    pairs: PairBatch, beta: float, domain: Domain, strength: Tensor, squared: bool
) -> Point:
    """Best of several starts; for the norm form w = 0 is a local minimum when strength >= ||E u||
    and then competes."""
    function = GradientPenalisedLoss(pairs, beta, strength, squared)
    coarse = GradientPenalisedLoss(_head(pairs), beta, strength, squared)
    local = (
        torch.zeros_like(strength, dtype=torch.bool)
        if squared
        else strength >= free_collapse(pairs, 2)
    )
    linear = linear_start(pairs, beta, domain)
    edge = domain.project(
        linear * (1e3 * domain.bound / linear.norm(dim=-1, keepdim=True).clamp(min=1e-300))
    )
    best = collapsed_point(pairs, dual=False)
    best.value = torch.where(local, best.value, torch.inf)
    best.collapsed = local.clone()
    for start in (
        radial_start(pairs, beta, domain, beta * strength / 2),
        linear,
        domain.project(0.1 * linear),
        edge,
    ):
        rough, _, steps = minimise(coarse, start, domain, convex=False, max_steps=6)
        value = function.derivatives(rough)[0]
        promising = (value < best.value - 1e-9).nonzero()[
            :, 0
        ]  # the others go where an earlier start went, or higher
        if promising.numel():
            part = function.select(promising)
            w, _, more = minimise(part, rough[promising], domain, convex=False)
            now = smooth_point(part, w, steps[promising] + more, domain)
            lower = now.value < best.value[promising]
            best = scatter([(promising[lower], take(now, lower))], best)
    return best
