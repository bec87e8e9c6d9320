"""Claims on AOT, arXiv:2406.05882, and what was derived of it: sorting, dominance, sample complexity, minibatches, convexity."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.stats import binom
from torch import Tensor

from theory.aot import minimise_aot, random_starts
from theory.claims.ledger import (
    Claim,
    Finding,
    Measurement,
    Row,
    Verdict,
    conclude,
    curve,
    equality,
    inequality,
    panel,
    pick,
)
from theory.objectives import aot_paired, aot_second_order, aot_unpaired, least_squares, logistic, squared_hinge
from theory.rates import rate
from theory.transport import coupling, first_order_violation, second_order_violation, transport

Cost = Callable[[Tensor, float], Tensor]

COSTS: dict[str, tuple[Cost, float]] = {
    "logistic": (logistic, 1.0),
    "squared hinge": (squared_hinge, 0.5),
    "least squares": (least_squares, 0.5),
}
_DRAWN = 300  # random samples in a figure
_ROUNDING = 1e-12  # below which a violation counts as zero: cumulated weights carry rounding


# ------------------------------------------------------------------------------------------------- sorting and dominance
def sorting_solves_transport(profile: str, seed: int, *, costs: dict[str, tuple[Cost, float]] = COSTS) -> Finding:
    """Claim 14: for convex h the monotone coupling attains the minimum over all couplings."""
    cases = pick(profile, 6, 60, 600)
    rng = np.random.default_rng(seed)
    worst, example = 0.0, ""
    tables = {name: list[Row]() for name in costs}
    for case in range(cases):
        n, m = (5, 5) if case % 3 == 0 else rng.integers(1, 10, 2)
        u, v = rng.normal(0.3, 1, n).round(2), rng.normal(0, 1, m).round(2)
        p, q = (np.full(n, 1 / n), np.full(m, 1 / m)) if case % 3 < 2 else (rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m)))
        for name, (h, beta) in costs.items():
            price = h(_tensor(u[:, None] - v), beta).numpy()
            rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
            program = linprog(price.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([p, q]))
            sorted_value = aot_unpaired(_tensor(u), _tensor(v), h, beta, _tensor(p), _tensor(q)).item()
            tables[name] += curve([program.fun], [sorted_value], "sorted") + curve([program.fun], [p @ price @ q], "independent")
            error = abs(sorted_value - program.fun)
            if not error <= worst:
                worst = error
                example = f"{name}, u={u.tolist()}, v={v.tolist()}: sorted {sorted_value:.8g}, least {program.fun:.8g}"
    line = equality("sorting against the linear program over couplings", worst, 1e-8, example)
    return conclude(
        f"sorted value at most {worst:.0e} from the least, in {cases * len(costs)} problems of all sizes and weights",
        [line],
        {
            f"E h(u - v), {name}": panel(rows, "least of all couplings", "of one coupling", kind="points", guide="y = x")
            for name, rows in tables.items()
        },
    )


def dominance_violation(profile: str, seed: int, *, sign: int = 1) -> Finding:
    """Claim 15: U dominates V iff ∫ (sign (Q_V - Q_U))_+ dt = 0, and OT_h is above that violation."""
    cases = pick(profile, 200, 2000, 20000)
    u, v, p, q = _dominance_cases(np.random.default_rng(seed), cases)
    dominates = (_cdf_gap(u, v, p, q) <= _ROUNDING).all(-1)
    violation = transport(u, v, lambda t: torch.relu(-sign * t), p, q)
    wrong = (violation <= _ROUNDING) != dominates
    first = int(wrong.nonzero()[0]) if wrong.any() else 0
    example = f"u={_short(u[first])}, v={_short(v[first])}: violation {violation[first]:.4g}, dominates: {bool(dominates[first])}"
    there = violation > 1e-6
    steep = 50.0
    square = first_order_violation(u, v, p, q, power=2)
    measures = {"logistic/beta": violation, "squared hinge": square, "least squares": square}
    ratios = {
        "logistic/beta": aot_unpaired(u, v, logistic, steep, p, q) / steep / violation,
        "squared hinge": aot_unpaired(u, v, squared_hinge, 0.01, p, q) / square,
        "least squares": aot_unpaired(u, v, least_squares, 0.01, p, q) / square,
    }
    excess = (aot_unpaired(u, v, logistic, steep, p, q) / steep - violation).max().item()
    lines = [
        equality("cases where the violation and the distribution functions disagree", int(wrong.sum()), 0, example),
        *(
            inequality(f"OT_h above the violation, {name}", float(ratio[there].min()), loose=math.inf)
            for name, ratio in ratios.items()
        ),
        inequality("logistic/beta within log 2/beta of the violation", math.log(2) / steep / excess, loose=math.inf),
    ]
    figure = f"{int(dominates.sum())} of {cases} pairs of samples dominate; the violation tells all but {int(wrong.sum())}"
    tables = {
        title: panel(_quantiles(u[case], p[case], "U") + _quantiles(v[case], q[case], "V"), "level t", "quantile")
        for title, case in (("U dominates V", dominates.nonzero()[0, 0]), ("U does not dominate V", (~dominates).nonzero()[0, 0]))
    }
    shown = there.nonzero()[:_DRAWN, 0]
    rows = list[Row]()
    for name, ratio in ratios.items():
        rows += curve(measures[name][shown], (ratio * measures[name])[shown], name)
    axes = ("violation (its square for the last two)", "OT_h")
    tables["OT_h is above the violation"] = panel(rows, *axes, log="xy", kind="points", guide="y = x")
    return conclude(figure, lines, tables)


def _quantiles(values: Tensor, weights: Tensor, series: str) -> list[Row]:
    """The quantile function as a line: two points a step."""
    values, order = values.sort()
    ends = weights[order].cumsum(0)
    starts = torch.cat([torch.zeros(1), ends[:-1]])
    return curve(torch.stack([starts, ends], 1).ravel(), values.repeat_interleave(2), series)


def second_order_dominance(profile: str, seed: int, *, margin: float = 0.0) -> Finding:
    """Claim 21: ∫_0^t Q_U >= ∫_0^t Q_V for all t; the surrogate ∫ (margin - D)_+² vanishes iff it holds when margin = 0."""
    cases = pick(profile, 200, 2000, 20000)
    u, v, p, q = _dominance_cases(np.random.default_rng(seed), cases)
    first, second = first_order_violation(u, v, p, q), second_order_violation(u, v, p, q)
    # E(x - U)_+ <= E(x - V)_+ at all x is the same order, written with the distribution functions; kinks only at the atoms
    x = torch.cat([u, v], -1)[:, :, None]
    shortfall = (p[:, None] * torch.relu(x - u[:, None])).sum(-1) - (q[:, None] * torch.relu(x - v[:, None])).sum(-1)
    dominates = (shortfall <= _ROUNDING).all(-1)
    wrong = int(((second <= _ROUNDING) != dominates).sum())
    surrogate = aot_second_order(u, v, squared_hinge, margin, p, q)
    vanish = float(surrogate[dominates].max())
    square = second_order_violation(u, v, p, q, power=2)
    above = float((surrogate / square)[square > 1e-9].min())
    # by hand: U = 1/2, V = 0 or 1 with equal chance; Q_V - Q_U = 1/2 above t = 1/2, D(t) = min(t, 1 - t)/2 >= 0
    half, coin = torch.tensor([0.5], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    by_hand = abs(first_order_violation(half, coin).item() - 0.25) + second_order_violation(half, coin).item()
    floor, tight = _margin_floor(u, v, p, q)
    weaker = int((dominates & (first > _ROUNDING)).sum())
    lines = [
        equality("second-order violation where the first-order one is zero", float(second[first <= _ROUNDING].max()), 1e-12),
        equality("cases where the violation and the integrated distribution functions disagree", wrong, 0),
        equality("U = 1/2, V = 0 or 1: first-order violation 1/4, second-order 0", by_hand, 1e-12),
        equality(
            "squared hinge where U dominates",
            vanish,
            1e-12,
            f"U = V = 0: D = 0, and the objective is margin² = {margin**2:g}",
        ),
        inequality("squared hinge above the squared violation", above, loose=math.inf),
        inequality("with a margin beta > 0 at least beta³/(6M) remains, rewards in [-M, M]", floor),
    ]
    figure = (
        f"{weaker} of {int(dominates.sum())} pairs that dominate in the second order do not in the first; with a margin the "
        f"surrogate is at least {floor:.3g} times beta³/(6M), which U = M, V = -M meets to {tight:.0e}"
    )
    contracted = 1  # of the samples: dominates in the second order, not in the first
    u, v, p, q = u[contracted], v[contracted], p[contracted], q[contracted]
    tables = {
        "quantiles cross": panel(_quantiles(u, p, "U") + _quantiles(v, q, "V"), "level t", "quantile"),
        "their integrals do not": panel(_integrated(u, v, p, q), "level t", "D(t)", guide="y = 0"),
    }
    return conclude(figure, lines, tables)


def _integrated(u: Tensor, v: Tensor, p: Tensor, q: Tensor) -> list[Row]:
    """D(t) = ∫_0^t Q_U - Q_V, linear between the levels where a quantile jumps."""
    plan = coupling(u, v, p, q)
    level, area = plan.mass.cumsum(0), (plan.mass * (u[plan.row] - v[plan.column])).cumsum(0)
    return curve([0.0, *level.tolist()], [0.0, *area.tolist()])


def _margin_floor(u: Tensor, v: Tensor, p: Tensor, q: Tensor) -> tuple[float, float]:
    """Smallest value/floor of the second-order hinge with a margin, and how closely the extreme case U = M, V = -M meets it.

    Derived: D(t) <= 2 M t, so that ∫ (beta - D)_+² >= ∫ (beta - 2 M t)_+² = beta³/(6 M) for beta <= 2 M.
    """
    beta = 0.1
    reach = torch.maximum(u.abs().amax(-1), v.abs().amax(-1)).clamp(min=beta)
    ratio = aot_second_order(u, v, squared_hinge, beta, p, q) / (beta**3 / (6 * reach))
    one = torch.ones(1, dtype=torch.float64)
    extreme = aot_second_order(one, -one, squared_hinge, beta).item() / (beta**3 / 6)
    return min(float(ratio.min()), extreme), abs(extreme - 1)


def _dominance_cases(rng: np.random.Generator, cases: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u, v (cases, 6) with weights: in turn atoms raised (U dominates), contracted (in the second order), unrelated samples."""
    v, q = rng.normal(size=(cases, 6)), rng.dirichlet(np.ones(6), size=cases)
    centre = (q * v).sum(1, keepdims=True)
    raised = v + rng.exponential(size=v.shape) * (rng.random(v.shape) < 0.5)
    contracted = centre + rng.uniform(0, 1, (cases, 1)) * (v - centre)
    unrelated = rng.normal(0.8, 1, v.shape)
    kind = np.arange(cases)[:, None] % 3
    u = np.where(kind == 0, raised, np.where(kind == 1, contracted, unrelated))
    p = np.where(kind == 2, rng.dirichlet(np.ones(6), size=cases), q)
    order = rng.permuted(np.tile(np.arange(6), (cases, 1)), axis=1)
    return _tensor(np.take_along_axis(u, order, 1)), _tensor(v), _tensor(np.take_along_axis(p, order, 1)), _tensor(q)


def _cdf_gap(u: Tensor, v: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """F_U - F_V at every atom; U dominates V iff none is positive."""
    x = torch.cat([u, v], -1)[:, :, None]
    return (p[:, None] * (u[:, None] <= x)).sum(-1) - (q[:, None] * (v[:, None] <= x)).sum(-1)


# ---------------------------------------------------------------------------------------------------- sample complexity
def aot_objective_deviation(profile: str, seed: int, *, constant: float = 2.0) -> Finding:
    """Claim 16, derived: E|OT_h(n) - OT_h| <= constant L M / sqrt(n) at a fixed theta, h L-Lipschitz, rewards in [-M, M]."""
    replicates = pick(profile, 400, 4000, 40000)
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for name, h, lipschitz in (("h linear", _descent, 1.0), ("h logistic", logistic, 1.0)):
        for n in pick(profile, (1, 10, 50), (1, 2, 5, 10, 50, 150), (1, 2, 5, 10, 50, 150, 400)):
            rows.append({"series": name, "x": n, "y": _coin_deviation(n, h), "bound": constant * lipschitz / math.sqrt(n)})
    random: list[Row] = []
    for law in range(pick(profile, 2, 5, 20)):
        u, v = _tensor(rng.uniform(-1, 1, 5)), _tensor(rng.uniform(-1, 1, 7))
        p, q = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(7))
        truth = aot_unpaired(u, v, logistic, 1.0, _tensor(p), _tensor(q))
        for n in (10, 100, 1000):
            counts = _tensor(rng.multinomial(n, p, replicates) / n), _tensor(rng.multinomial(n, q, replicates) / n)
            deviation = (aot_unpaired(u.expand(replicates, -1), v, logistic, 1.0, *counts) - truth).abs()
            high = (deviation.mean() + 3 * deviation.std() / math.sqrt(replicates)).item()
            random.append({"series": "random laws", "law": law, "x": n, "y": high, "bound": constant / math.sqrt(n)})
    exact = min(rows, key=lambda row: row["bound"] / row["y"])
    closest = min(row["bound"] / row["y"] for row in random)
    example = f"U, V = ±1 with chance 1/2, {exact['series']}, n={exact['x']}: {exact['y']:.5g} > {exact['bound']:.5g}"
    lines = [
        inequality("two-point laws, expectation exact", exact["bound"] / exact["y"], example),
        inequality("random laws, mean + 3 standard errors", closest, loose=math.inf),
    ]
    figure = f"bound/deviation at least {exact['bound'] / exact['y']:.3f}, at two-point laws"
    axes = ("sample size n", "E|OT_h(n) - OT_h|")
    tables = {
        "two-point laws": panel(rows + _bounds(rows), *axes, log="xy"),
        "random laws, mean + 3 standard errors": panel(random + _bounds(random), *axes, log="xy", kind="points"),
    }
    return conclude(figure, lines, tables)


def _bounds(rows: Sequence[Row]) -> list[Row]:
    by_size = {row["x"]: row["bound"] for row in rows}
    return curve(by_size, by_size.values(), "bound")


def _descent(t: Tensor, beta: float) -> Tensor:
    return -beta * t


def _coin_deviation(n: int, h: Cost) -> float:
    """E|OT_h(n) - OT_h| for U, V = ±1 with chance 1/2, summed over the two binomial counts."""
    chance = binom.pmf(np.arange(n + 1), n, 0.5)
    share = torch.arange(n + 1, dtype=torch.float64) / n
    weights = torch.stack([1 - share, share], -1)
    points = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    values = aot_unpaired(points.expand(n + 1, n + 1, 2), points, h, 1.0, weights[:, None], weights[None])
    truth = h(torch.zeros((), dtype=torch.float64), 1.0)
    return float(chance @ (values - truth).abs().numpy() @ chance)


def aot_violation_rate(profile: str, seed: int, *, claimed: float = -0.5) -> Finding:
    """Claim 16: the excess of OT_h at the empirical minimiser is O(n^claimed); so are value error and plain violation."""
    sizes = pick(profile, (100, 1000, 10000), (100, 1000, 10000, 100000), (100, 1000, 10000, 100000, 1000000))
    replicates, count = pick(profile, (16, 1), (200, 6), (400, 16))
    rng = np.random.default_rng(seed)
    world = np.random.default_rng(1)  # one fixed world of four atoms a side, whose best theta leaves a violation
    chosen, rejected = (_unit(world.standard_normal((4, 2))) for _ in range(2))
    p, q = world.dirichlet(np.full(4, 4.0)), world.dirichlet(np.full(4, 4.0))
    pair = np.random.default_rng(9)  # and one of two atoms, to be mixed with its mirror image: two best thetas
    half = (_unit(pair.standard_normal((2, 2))) for _ in range(2))
    left, right = (np.concatenate([atoms, atoms * [-1, 1]]) for atoms in half)
    errors: dict[str, list[np.ndarray]] = {"excess": [], "value": [], "violation": [], "two minima": []}
    rows: list[Row] = []
    for n in sizes:
        for name, found in _minimiser_errors(rng, chosen, rejected, p, q, n, replicates, count).items():
            errors[name].append(found)
        tilt = 0.3 / math.sqrt(n)  # about what a sample of n can tell, so that the wrong one of the two is often taken
        mix = np.array([1 + 2 * tilt] * 2 + [1 - 2 * tilt] * 2) / 4
        errors["two minima"].append(_minimiser_errors(rng, left, right, mix, mix, n, replicates, count)["excess"])
        for name, sizes_so_far in errors.items():
            rows += curve([n], [np.sqrt(np.mean(sizes_so_far[-1] ** 2))], name)
    lines, slopes = [], []
    for name, what in (
        ("two minima", "excess of OT_h at the minimiser, worlds whose two best thetas differ by O(n^-1/2)"),
        ("excess", "excess of OT_h at the minimiser, one world"),
        ("value", "minimal value, one world"),
        ("violation", "plain violation at the minimiser, one world"),
    ):
        fall = rate(np.array(sizes), np.array(errors[name]), seed=seed)
        slope = f"{fall.slope:.2f} [{fall.low:.2f}, {fall.high:.2f}]"
        verdict = Verdict.REFUTED if fall.low > claimed + 0.1 else Verdict.HOLDS
        slower = f"slope {slope}, not {claimed:g}" if verdict == Verdict.REFUTED else ""
        figure = f"slope {slope}, claimed {claimed:g}; refuted where surely above {claimed + 0.1:g}"
        lines.append(Measurement(what, verdict, figure, counterexample=slower))
        slopes.append(f"{name} {slope}")
    table = panel(rows, "sample size n", "root mean square error", log="xy")
    return conclude(f"slopes: {', '.join(slopes)}", lines, {"error at the minimiser": table})


def _minimiser_errors(
    rng: np.random.Generator,
    chosen: np.ndarray,
    rejected: np.ndarray,
    p: np.ndarray,
    q: np.ndarray,
    n: int,
    replicates: int,
    count: int,
) -> dict[str, np.ndarray]:
    """Excess, value error and error of the violation at the minimisers of samples of n; (replicates,) each. B = 2, beta = 1.

    The theta of the population is among the starts: the theorem needs no more than a value not above the one there.
    """
    a, b = _tensor(chosen), _tensor(rejected)
    bound, beta = 2.0, 1.0

    def population(theta: Tensor, functional: Callable[..., Tensor], *rest: object) -> Tensor:
        return functional(theta @ a.T, theta @ b.T, *rest, _tensor(p), _tensor(q))

    wide = random_starts(np.random.default_rng(0), 32, 2, bound)
    best = minimise_aot(a, b, p, q, starts=wide, h=logistic, beta=beta, bound=bound)
    counts = rng.multinomial(n, p, replicates) / n, rng.multinomial(n, q, replicates) / n
    starts = torch.cat([best.theta, best.theta * torch.tensor([-1.0, 1.0]), random_starts(rng, count, 2, bound)])
    fit = minimise_aot(a, b, *counts, starts=starts, h=logistic, beta=beta, bound=bound)
    if not bool(fit.converged.all()):
        raise RuntimeError(f"{int((~fit.converged).sum())} of {replicates} fits at n = {n} did not converge.")
    floor = population(best.theta, first_order_violation)
    return {
        "excess": (population(fit.theta, aot_unpaired, logistic, beta) - best.value).clamp(min=0).numpy(),
        "value": (fit.value - best.value).abs().numpy(),
        "violation": (population(fit.theta, first_order_violation) - floor).abs().numpy(),
    }


# --------------------------------------------------------------------------------------------- gradient and minibatches
def aot_envelope(profile: str, seed: int, *, stale: float = 0.0) -> Finding:
    """Claim 17: the gradient is that with the coupling frozen at theta (at theta + stale, to make it false)."""
    cases = pick(profile, 20, 200, 2000)
    rng = np.random.default_rng(seed)
    step = 1e-6
    worst, automatic, used, example = 0.0, 0.0, 0, ""
    for h, beta in COSTS.values():
        a, b = _tensor(rng.standard_normal((cases, 12, 3))), _tensor(rng.standard_normal((cases, 9, 3)))
        theta = _tensor(rng.standard_normal((cases, 1, 3))).requires_grad_()
        u, v = (theta * a).sum(-1), (theta * b).sum(-1)
        (found,) = torch.autograd.grad(aot_unpaired(u, v, h, beta).sum(), theta)
        elsewhere = theta.detach() + stale
        plan = coupling((elsewhere * a).sum(-1), (elsewhere * b).sum(-1))
        rows = torch.arange(cases)[:, None]
        x = a[rows, plan.row] - b[rows, plan.column]
        held = (plan.mass * h((theta * x).sum(-1), beta)).sum(-1)
        (frozen,) = torch.autograd.grad(held.sum(), theta)
        moves = step * torch.eye(3, dtype=torch.float64)[:, None, None]
        ahead, behind = ((theta.detach() + s * moves) for s in (1, -1))  # (3, cases, 1, 3)
        ends = [((point * a).sum(-1), (point * b).sum(-1)) for point in (ahead, behind)]
        difference = (aot_unpaired(*ends[0], h, beta) - aot_unpaired(*ends[1], h, beta)) / (2 * step)
        # only where one coupling is best on both sides: at a tie there is no gradient
        same = (ends[0][0].argsort(-1) == ends[1][0].argsort(-1)).all(-1) & (
            ends[0][1].argsort(-1) == ends[1][1].argsort(-1)
        ).all(-1)
        error = torch.where(same, (difference - frozen[:, 0].T).abs(), 0.0)
        used += int(same.sum())
        if error.max().item() > worst:
            worst = error.max().item()
            j, i = divmod(int(error.argmax()), cases)
            example = f"case {i}, coordinate {j}: difference quotient {difference[j, i]:.6g}, frozen {frozen[i, 0, j]:.6g}"
        automatic = max(automatic, (found - frozen).abs().max().item())
    # by hand: u = (s, 0), v = (0, 1) at s = 0 has two best couplings; rightwards u_1 meets 1, leftwards it meets 0
    right, left = (_tie(s * step) / step for s in (1, -1))
    slope = -1 / (1 + math.e ** np.array([-1.0, 0.0]))  # h'(-1), h'(0)
    tie = max(abs(right - slope[0] / 2), abs(left + slope[1] / 2))
    lines = [
        equality("frozen coupling against difference quotients", worst, 1e-6, example),
        equality("automatic differentiation against the frozen coupling", automatic, 1e-12, example),
        equality("at a tie the slope jumps down: h'(0)/2 on the left, h'(-1)/2 on the right", tie, 1e-5),
    ]
    figure = f"gradient error {worst:.0e} in {used} directions; one-sided slopes at a tie to {tie:.0e}"
    along = np.linspace(-1, 1, 41)
    loss = np.logaddexp(0, -np.add.outer([0.0, -1.0], along))  # h(s), h(s - 1)
    rest = np.logaddexp(0, [[1.0], [0.0]])  # h(-1), h(0)
    still = (loss + rest).min(0)[len(along) // 2] / 2
    drawn = list[Row]()
    for name, couple in zip(("s with 0", "s with 1"), (loss + rest) / 2 - still, strict=True):
        drawn += curve(along, couple, name)
    drawn += curve(along[::4], [_tie(s) for s in along[::4]], "sorted")
    return conclude(figure, lines, {"a tie: u = (s, 0), v = (0, 1)": panel(drawn, "s", "OT_h less its value at 0")})


def _tie(s: float) -> float:
    """OT_h of u = (s, 0), v = (0, 1), minus its value at s = 0."""
    u, v = torch.tensor([[s, 0.0], [0.0, 0.0]], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    moved, still = aot_unpaired(u, v, logistic, 1.0)
    return (moved - still).item()


def aot_minibatch_bias(profile: str, seed: int, *, h: Cost = logistic) -> Finding:
    """Claim 18, derived: the mean over minibatches is above the full batch and falls with their size; size one is DPO."""
    cases, n = pick(profile, (3, 6), (20, 9), (100, 12))
    rng = np.random.default_rng(seed)
    beta = 1.0
    above, falls, same = math.inf, math.inf, 0.0
    objective, plain = list[list[float]](), list[float]()
    for _ in range(cases):
        u, v = _tensor(rng.normal(0.3, 1, n)), _tensor(rng.normal(0, 1, n))
        means = [aot_unpaired(u[k], v[k], h, beta).mean().item() for k in (_subsets(n, size) for size in range(1, n + 1))]
        above = min(above, min(means[:-1]) / means[-1])
        falls = min(falls, min(x / y for x, y in pairwise(means)))
        objective.append(means)
        w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        value = aot_unpaired(w * u[:, None], w * v[:, None], logistic, beta).mean()
        (gradient,) = torch.autograd.grad(value, w)
        margin = beta * (u - v).numpy()
        dpo, slope = np.logaddexp(0, -margin).mean(), (-margin / (1 + np.exp(margin))).mean()
        plain.append(float(dpo))
        same = max(same, abs(value.item() - dpo), abs(gradient.item() - slope))
    example = "mean over all batches of one size, e.g. " + ", ".join(f"{mean:.4g}" for mean in objective[0])
    lines = [
        inequality(f"mean over all batches of {n} pairs / full batch", above, example),
        inequality("one size / the next larger one", falls, example),
        equality("batches of one pair against DPO, value and gradient", same, 1e-12),
    ]
    first, last = objective[0][0], objective[0][-1]
    figure = f"mean over batches {first:.4f} for size 1, {last:.4f} for all {n} pairs; size one equals DPO to {same:.0e}"
    full = np.array(objective)[:, -1:]
    low, middle, high = np.quantile(np.array(objective) - full, (0, 0.5, 1), axis=0).tolist()
    rows = [
        row | {"low": a, "high": b} for row, a, b in zip(curve(range(1, n + 1), middle, "minibatches"), low, high, strict=True)
    ]
    rows += curve([1], [np.median(np.array(plain) - full[:, 0])], "DPO")
    table = panel(rows, f"pairs in a batch, of {n}", "mean objective less that of all", guide="y = 0")
    return conclude(figure, lines, {f"median and range over {cases} samples": table})


def _subsets(n: int, size: int) -> Tensor:
    return torch.tensor(list(combinations(range(n), size)))


def soft_sorting_limit(profile: str, seed: int, *, factor: float = 1.0) -> Finding:
    """Claim 19: the soft objective is the hard one as soon as softness <= factor / (largest gap between neighbours)."""
    angles, n = pick(profile, (180, 8), (720, 16), (3600, 40))
    rng = np.random.default_rng(seed)
    turn = np.linspace(0, 2 * np.pi, angles, endpoint=False)
    circle = _tensor(np.stack([np.cos(turn), np.sin(turn)], 1))
    drift = np.array([0.5, 0.0])
    u, v = circle @ _tensor(rng.normal(size=(n, 2)) + drift).T, circle @ _tensor(rng.normal(size=(n, 2))).T
    hard = aot_unpaired(u, v, logistic, 1.0)
    gap = max(float(x.sort(-1).values.diff(dim=-1).max()) for x in (u, v))
    rows: list[Row] = []
    for multiple in (1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.1):
        soft = aot_unpaired(u, v, logistic, 1.0, softness=multiple * factor * 0.999 / gap)
        difference = float((soft - hard).abs().max())
        regret = float(hard[soft.argmin()] - hard.min())
        rows.append({"multiple": multiple, "softness": multiple * factor / gap, "difference": difference, "regret": regret})
    limit = [row for row in rows if row["multiple"] <= 1]
    difference, regret = max(row["difference"] for row in limit), max(row["regret"] for row in limit)
    flattest = max(row["difference"] for row in rows)
    example = f"largest gap {gap:.4g}, softness {factor / gap:.4g}: soft and hard objective differ by {difference:.4g}"
    lines = [
        equality(f"soft against hard objective from softness {factor:g}/(largest gap) down", difference, 1e-12, example),
        equality("hard objective at the soft optimum minus its minimum, on the circle", regret, 1e-12, example),
    ]
    figure = f"{difference:.0e} apart from softness {factor / gap:.3g} down, {flattest:.2g} at a thousand times that"
    multiples = [row["multiple"] for row in rows]
    drawn = curve(multiples, [row["difference"] for row in rows], "largest difference")
    drawn += curve(multiples, [row["regret"] for row in rows], "regret of the soft optimum")
    table = panel(drawn, "softness / threshold", "soft against hard objective", log="x")
    return conclude(figure, lines, {"soft sorting on a circle of theta": table})


# ------------------------------------------------------------------------------------------------- AOT, DPO and convexity
def aot_below_dpo(profile: str, seed: int, *, costs: dict[str, tuple[Cost, float]] = COSTS) -> Finding:
    """Claim 20, derived: on paired data AOT <= mean_i h(u_i - v_i), DPO with the same h."""
    cases, n = pick(profile, (200, 8), (5000, 20), (50000, 50))
    rng = np.random.default_rng(seed)
    u, v = _tensor(rng.normal(0.3, 1, (cases, n))), _tensor(rng.normal(0, 1, (cases, n)))
    u[0], v[0] = u[0].sort().values, v[0].sort().values  # in the same order already: AOT is DPO
    lines, equal, least = [], 0.0, math.inf
    tables: dict[str, list[Row]] = {}
    for name, (h, beta) in costs.items():
        dpo = h(u - v, beta).mean(-1)
        for kind, value in (("unpaired", aot_unpaired(u, v, h, beta)), ("paired", aot_paired(u, v, h, beta))):
            ratio = dpo / value
            i = int(ratio.argmin())
            example = f"u={_short(u[i])}, v={_short(v[i])}: DPO {dpo[i]:.6g} < AOT {value[i]:.6g}"
            lines.append(inequality(f"DPO/AOT, {kind}, {name}", float(ratio.min()), example))
            equal, least = max(equal, abs(float(ratio[0]) - 1)), min(least, float(ratio.min()))
        tables[f"h {name}"] = panel(curve(dpo[:_DRAWN], value[:_DRAWN]), "DPO", "AOT", kind="points", guide="y = x")
    lines.append(equality("AOT against DPO on samples in the same order", equal, 1e-12))
    typical = float((h(u - v, beta).mean(-1) / aot_unpaired(u, v, h, beta)).median())
    figure = f"smallest DPO/AOT {least:.6g} in {cases} samples of {n} pairs; median {typical:.2f} ({name})"
    return conclude(figure, lines, tables)


def aot_not_convex(
    profile: str, seed: int, *, rejected: Sequence[Sequence[float]] = ((0.0, 1.0), (0.0, 0.0)), dimension: int = 3
) -> Finding:
    """Claim 20, derived: AOT is not convex in theta, even for rewards linear in it."""
    segments = pick(profile, 500, 5000, 50000)
    a, b = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64), torch.tensor(rejected, dtype=torch.float64)
    ends = torch.tensor([[1.0, 0.5], [1.0, -0.5], [1.0, 0.0]], dtype=torch.float64)
    along = torch.linspace(-0.5, 0.5, 21, dtype=torch.float64)
    segment = torch.stack([torch.ones_like(along), along], 1)
    lines, tables = [], dict[str, list[Row]]()
    for name, (h, beta) in {"logistic": (logistic, 1.0), "least squares": (least_squares, 1.0)}.items():
        one, other, middle = aot_unpaired(ends @ a.T, ends @ b.T, h, beta).tolist()
        ratio = middle / ((one + other) / 2)
        example = (
            f"h {name} with beta = 1, chosen features (1,0), (0,0), rejected {list(map(tuple, rejected))}: {one:.6g} at theta = "
            f"(1, 1/2) and {other:.6g} at (1, -1/2), on average {(one + other) / 2:.6g}; at the midpoint (1, 0) {middle:.6g}"
        )
        rows = curve(along, aot_unpaired(segment @ a.T, segment @ b.T, h, beta), "AOT")
        rows += curve([-0.5, 0.5], [other, one], "chord")
        tables[f"h {name}, theta = (1, s)"] = panel(rows, "s", "OT_h")
        line = inequality(f"midpoint / average of the ends, above 1, {name}", ratio, example, slack=-1e-6)
        lines.append(replace(line, figure=f"{line.figure}: {example}"))
    rng = np.random.default_rng(seed)
    a, b = (_tensor(rng.normal(shift, 1, (30, dimension))) for shift in (0.3, 0.0))
    theta = _tensor(rng.standard_normal((segments, 3, dimension)))
    theta[:, 2] = theta[:, :2].mean(1)
    values = aot_unpaired(theta @ a.T, theta @ b.T, logistic, 1.0)
    above = values[:, 2] > values[:, :2].mean(1) + 1e-9
    share = above.double().mean().item()
    found = f"{int(above.sum())} of {segments} ({100 * share:.1f} %) have a midpoint above the average of their ends"
    verdict = Verdict.HOLDS if above.any() else Verdict.INCONCLUSIVE
    lines.append(Measurement(f"random segments, d = {dimension}, 30 pairs", verdict, found, decides="more segments"))
    return conclude(f"midpoint {100 * (ratio - 1):.0f} % above the average at a hand-made sample; {found}", lines, tables)


# ------------------------------------------------------------------------------------------------------------- helpers
def _tensor(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(x, dtype=np.float64))


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def _short(x: Tensor) -> list[float]:
    return [round(number, 4) for number in x.tolist()]


CLAIMS = (
    Claim(
        "sorting-solves-transport",
        "arXiv:2406.05882",
        "sorting solves OT_h for convex h",
        "For convex h and two samples on the line, of any sizes and weights, the coupling of equal quantiles attains the least "
        "expected h(u - v) of all couplings.",
        "h convex.",
        "The sorted value against a linear program over all couplings (HiGHS), for three convex h, equal and unequal sizes and "
        "weights.",
        "A coupling that is cheaper than the sorted one by more than 1e-8.",
        sorting_solves_transport,
    ),
    Claim(
        "dominance-violation",
        "arXiv:2406.05882",
        "zero quantile violation is dominance; OT_h is above it",
        "U dominates V in the first order iff the integral of (Q_V - Q_U)_+ vanishes; with h logistic (divided by beta), squared "
        "hinge or least squares (against the squared violation) OT_h is an upper bound, within log 2/beta for the logistic.",
        "beta >= 0.",
        "Random weighted samples, a third raised so that U dominates and a third contracted; dominance from the distribution "
        "functions at every atom.",
        "A sample that the violation and the distribution functions judge differently, or an OT_h below the violation.",
        dominance_violation,
    ),
    Claim(
        "aot-objective-deviation",
        "derived; cf. arXiv:2406.05882",
        "E|OT_h(n) - OT_h| <= 2 L M / sqrt(n) at a fixed theta",
        "The objective of two independent samples of n is within 2 L M / sqrt(n) of the population's, in expectation: it moves "
        "by at most L (W1(U_n, U) + W1(V_n, V)), and E W1 is at most the integral of sqrt(F(1-F)/n), at most M/sqrt(n).",
        "h L-Lipschitz, rewards in [-M, M], theta fixed in advance.",
        "Two-point laws, where the expectation is a sum over binomial counts, and random laws by simulation.",
        "An expectation above the bound.",
        aot_objective_deviation,
    ),
    Claim(
        "aot-violation-rate",
        "arXiv:2406.05882, sample complexity of the violation",
        "the violation at the empirical minimiser converges as n^-1/2",
        "At the minimiser of the sample's OT_h the population's OT_h exceeds its minimum by O(n^-1/2); the minimal value and the "
        "plain violation differ as little from the population's.",
        "Linear rewards, ||theta|| <= B, independent samples of chosen and rejected responses, h logistic.",
        "Finite worlds in two dimensions, many samples of each size, the best of several starts that include the population's "
        "minimiser; slope of the root mean square with a bootstrap interval. One world is fixed; another is mixed with its "
        "mirror image, so that two minima differ by a multiple of n^-1/2, which makes the rate n^-1/2 attained.",
        "An interval of a slope that lies above -0.4, a tenth from the claimed rate.",
        aot_violation_rate,
    ),
    Claim(
        "aot-envelope",
        "derived; used by arXiv:2406.05882",
        "the gradient of AOT is that with the coupling frozen",
        "Where one coupling is optimal the sorted objective is differentiable, with the gradient of the sum over that coupling; "
        "where two are, its slope jumps downwards.",
        "h convex and differentiable.",
        "Central differences that sort again, against the frozen coupling and automatic differentiation; a tie computed by hand.",
        "A gradient that differs by more than 1e-6.",
        aot_envelope,
    ),
    Claim(
        "aot-minibatch-bias",
        "derived; arXiv:2406.05882 asks for large batches",
        "minibatch AOT is biased upwards, less so for larger batches; batch size one is DPO",
        "OT_h is jointly convex in its two laws, so that the mean over the batches of one size is above the value of all the "
        "data and does not increase with the size. A batch of one pair has one coupling: its AOT is the DPO loss.",
        "h convex; batches drawn without replacement.",
        "All batches of every size, enumerated; value and gradient of batches of one pair against the logistic loss in numpy.",
        "A size whose mean is below that of a larger one, or a batch of one that differs from DPO.",
        aot_minibatch_bias,
    ),
    Claim(
        "soft-sorting-limit",
        "arXiv:2406.05882 and arXiv:2002.08871; threshold derived",
        "soft sorting has the optimum of hard sorting as softness goes to 0",
        "With the quadratic regulariser the soft objective is the hard one as soon as softness times the largest gap between "
        "neighbours is at most one, and so has the same optimum on any bounded set of theta.",
        "Soft sorting by projection on the permutahedron.",
        "Soft and hard objective on a circle of theta, from a thousand times that softness down.",
        "A difference, or a different optimum, at or below that softness.",
        soft_sorting_limit,
    ),
    Claim(
        "aot-below-dpo",
        "derived",
        "AOT <= DPO with the same h",
        "On paired data sorting takes the cheapest coupling and DPO the given one, so that unpaired and paired AOT are at most "
        "the mean of h(u_i - v_i); equal where the samples are in the same order.",
        "h convex.",
        "Random samples and three convex h.",
        "A sample whose AOT is above DPO.",
        aot_below_dpo,
    ),
    Claim(
        "aot-not-convex",
        "derived",
        "AOT is not convex in theta, even for linear rewards",
        "As a minimum over couplings of convex functions OT_h(theta.a, theta.b) is not convex in theta: take several starts.",
        "Rewards linear in theta, at least two dimensions.",
        "Two pairs in the plane whose three values can be computed by hand; the share of random segments whose midpoint is above "
        "the average of the ends.",
        "A midpoint that is not above the average of the ends in the sample made by hand.",
        aot_not_convex,
    ),
    Claim(
        "second-order-dominance",
        "named as future work in arXiv:2406.05882; derived",
        "second-order dominance by integrated quantiles, and its surrogate",
        "With D(t) the integral of Q_U - Q_V up to t: the violation (-D)_+ vanishes iff U dominates V in the second order, which "
        "first-order dominance implies and does not need; the integral of (-D)_+² is a surrogate that vanishes just there. With "
        "a margin beta > 0 it cannot vanish, as D(0) = 0: at least beta³/(6M) remains.",
        "Rewards in [-M, M], beta <= 2M for the last statement.",
        "Random weighted samples; the order judged by E(x - U)_+ at every atom; the case U = 1/2, V = 0 or 1 by hand.",
        "A sample that is judged differently, or a surrogate that stays above zero where U dominates.",
        second_order_dominance,
    ),
)
