"""Claims on one-dimensional transport and dominance: sorting, soft sorting, first and second order.
arXiv:2406.05882."""

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from theory.claims.ledger import (
    Claim,
    Finding,
    Kind,
    Row,
    conclude,
    curve,
    equality,
    inequality,
    panel,
    pick,
)
from theory.functionals import aot_second_order, aot_unpaired
from theory.losses import least_squares, logistic, squared_hinge
from theory.transport import coupling, first_order_violation, second_order_violation, transport

Cost = Callable[[Tensor, float], Tensor]

COSTS: dict[str, tuple[Cost, float]] = {
    "logistic": (logistic, 1.0),
    "squared hinge": (squared_hinge, 0.5),
    "least squares": (least_squares, 0.5),
}
_DRAWN = 300  # random samples in a figure
_ROUNDING = 1e-12  # below which a violation counts as zero: cumulated weights carry rounding


# ---------------------------------------------------------------------------- sorting and dominance
def sorting_solves_transport(
    profile: str, seed: int, *, costs: dict[str, tuple[Cost, float]] = COSTS
) -> Finding:
    """Claim 14: for convex h the monotone coupling attains the minimum over all couplings."""
    cases = pick(profile, 6, 60, 600)
    rng = np.random.default_rng(seed)
    worst, example = 0.0, ""
    tables = {name: list[Row]() for name in costs}
    for case in range(cases):
        n, m = (5, 5) if case % 3 == 0 else rng.integers(1, 10, 2)
        u, v = rng.normal(0.3, 1, n).round(2), rng.normal(0, 1, m).round(2)
        p, q = (
            (np.full(n, 1 / n), np.full(m, 1 / m))
            if case % 3 < 2
            else (rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m)))
        )
        for name, (h, beta) in costs.items():
            price = h(tensor(u[:, None] - v), beta).numpy()
            rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
            program = linprog(
                price.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([p, q])
            )
            sorted_value = aot_unpaired(tensor(u), tensor(v), h, beta, tensor(p), tensor(q)).item()
            tables[name] += curve([program.fun], [sorted_value], "sorted") + curve(
                [program.fun], [p @ price @ q], "independent"
            )
            error = abs(sorted_value - program.fun)
            if not error <= worst:
                worst = error
                example = (
                    f"{name}, u={u.tolist()}, v={v.tolist()}: sorted {sorted_value:.8g}, least"
                    f" {program.fun:.8g}"
                )
    line = equality("sorting against the linear program over couplings", worst, 1e-8, example)
    return conclude(
        f"sorted value at most {worst:.0e} from the least, in {cases * len(costs)} problems of all"
        " sizes and weights",
        [line],
        {
            f"E h(u - v), {name}": panel(
                rows, "least of all couplings", "of one coupling", kind="points", guide="y = x"
            )
            for name, rows in tables.items()
        },
    )


def dominance_violation(profile: str, seed: int, *, sign: int = 1) -> Finding:
    """Claim 15: U dominates V iff ∫ (sign (Q_V - Q_U))_+ dt = 0, and OT_h is above that
    violation."""
    cases = pick(profile, 200, 2000, 20000)
    u, v, p, q = _dominance_cases(np.random.default_rng(seed), cases)
    dominates = (_cdf_gap(u, v, p, q) <= _ROUNDING).all(-1)
    violation = transport(u, v, lambda t: torch.relu(-sign * t), p, q)
    wrong = (violation <= _ROUNDING) != dominates
    first = int(wrong.nonzero()[0]) if wrong.any() else 0
    example = (
        f"u={short(u[first])}, v={short(v[first])}: violation {violation[first]:.4g}, dominates:"
        f" {bool(dominates[first])}"
    )
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
        equality(
            "cases where the violation and the distribution functions disagree",
            int(wrong.sum()),
            0,
            example,
        ),
        *(
            inequality(
                f"OT_h above the violation, {name}", float(ratio[there].min()), loose=math.inf
            )
            for name, ratio in ratios.items()
        ),
        inequality(
            "logistic/beta within log 2/beta of the violation",
            math.log(2) / steep / excess,
            loose=math.inf,
        ),
    ]
    figure = (
        f"{int(dominates.sum())} of {cases} pairs of samples dominate; the violation tells all but"
        f" {int(wrong.sum())}"
    )
    tables = {
        title: panel(
            _quantiles(u[case], p[case], "U") + _quantiles(v[case], q[case], "V"),
            "level t",
            "quantile",
        )
        for title, case in (
            ("U dominates V", dominates.nonzero()[0, 0]),
            ("U does not dominate V", (~dominates).nonzero()[0, 0]),
        )
    }
    shown = there.nonzero()[:_DRAWN, 0]
    rows = list[Row]()
    for name, ratio in ratios.items():
        rows += curve(measures[name][shown], (ratio * measures[name])[shown], name)
    axes = ("violation (its square for the last two)", "OT_h")
    tables["OT_h is above the violation"] = panel(
        rows, *axes, log="xy", kind="points", guide="y = x"
    )
    return conclude(figure, lines, tables)


def _quantiles(values: Tensor, weights: Tensor, series: str) -> list[Row]:
    """The quantile function as a line: two points a step."""
    values, order = values.sort()
    ends = weights[order].cumsum(0)
    starts = torch.cat([torch.zeros(1), ends[:-1]])
    return curve(torch.stack([starts, ends], 1).ravel(), values.repeat_interleave(2), series)


def second_order_dominance(profile: str, seed: int, *, margin: float = 0.0) -> Finding:
    """Claim 21: ∫_0^t Q_U >= ∫_0^t Q_V for all t; the surrogate ∫ (margin - D)_+² vanishes iff it
    holds when margin = 0."""
    cases = pick(profile, 200, 2000, 20000)
    u, v, p, q = _dominance_cases(np.random.default_rng(seed), cases)
    first, second = first_order_violation(u, v, p, q), second_order_violation(u, v, p, q)
    # E(x - U)_+ <= E(x - V)_+ at all x is the same order, written with the distribution functions;
    # kinks only at the atoms
    x = torch.cat([u, v], -1)[:, :, None]
    shortfall = (p[:, None] * torch.relu(x - u[:, None])).sum(-1) - (
        q[:, None] * torch.relu(x - v[:, None])
    ).sum(-1)
    dominates = (shortfall <= _ROUNDING).all(-1)
    wrong = int(((second <= _ROUNDING) != dominates).sum())
    surrogate = aot_second_order(u, v, squared_hinge, margin, p, q)
    vanish = float(surrogate[dominates].max())
    square = second_order_violation(u, v, p, q, power=2)
    above = float((surrogate / square)[square > 1e-9].min())
    # by hand: U = 1/2, V = 0 or 1 with equal chance; Q_V - Q_U = 1/2 above t = 1/2, D(t) = min(t, 1
    # - t)/2 >= 0
    half, coin = (
        torch.tensor([0.5], dtype=torch.float64),
        torch.tensor([0.0, 1.0], dtype=torch.float64),
    )
    by_hand = (
        abs(first_order_violation(half, coin).item() - 0.25)
        + second_order_violation(half, coin).item()
    )
    floor, tight = _margin_floor(u, v, p, q)
    weaker = int((dominates & (first > _ROUNDING)).sum())
    lines = [
        equality(
            "second-order violation where the first-order one is zero",
            float(second[first <= _ROUNDING].max()),
            1e-12,
        ),
        equality(
            "cases where the violation and the integrated distribution functions disagree", wrong, 0
        ),
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
        f"{weaker} of {int(dominates.sum())} pairs that dominate in the second order do not in the"
        f" first; with a margin the surrogate is at least {floor:.3g} times beta³/(6M), which U ="
        f" M, V = -M meets to {tight:.0e}"
    )
    contracted = 1  # of the samples: dominates in the second order, not in the first
    u, v, p, q = u[contracted], v[contracted], p[contracted], q[contracted]
    tables = {
        "quantiles cross": panel(
            _quantiles(u, p, "U") + _quantiles(v, q, "V"), "level t", "quantile"
        ),
        "their integrals do not": panel(_integrated(u, v, p, q), "level t", "D(t)", guide="y = 0"),
    }
    return conclude(figure, lines, tables)


def _integrated(u: Tensor, v: Tensor, p: Tensor, q: Tensor) -> list[Row]:
    """D(t) = ∫_0^t Q_U - Q_V, linear between the levels where a quantile jumps."""
    plan = coupling(u, v, p, q)
    level, area = plan.mass.cumsum(0), (plan.mass * (u[plan.row] - v[plan.column])).cumsum(0)
    return curve([0.0, *level.tolist()], [0.0, *area.tolist()])


def _margin_floor(u: Tensor, v: Tensor, p: Tensor, q: Tensor) -> tuple[float, float]:
    """Smallest value/floor of the second-order hinge with a margin, and how closely the extreme
    case U = M, V = -M meets it.

    Derived: D(t) <= 2 M t, so that ∫ (beta - D)_+² >= ∫ (beta - 2 M t)_+² = beta³/(6 M) for beta <=
    2 M.
    """
    beta = 0.1
    reach = torch.maximum(u.abs().amax(-1), v.abs().amax(-1)).clamp(min=beta)
    ratio = aot_second_order(u, v, squared_hinge, beta, p, q) / (beta**3 / (6 * reach))
    one = torch.ones(1, dtype=torch.float64)
    extreme = aot_second_order(one, -one, squared_hinge, beta).item() / (beta**3 / 6)
    return min(float(ratio.min()), extreme), abs(extreme - 1)


def _dominance_cases(rng: np.random.Generator, cases: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u, v (cases, 6) with weights: in turn atoms raised (U dominates), contracted (in the second
    order), unrelated samples."""
    v, q = rng.normal(size=(cases, 6)), rng.dirichlet(np.ones(6), size=cases)
    centre = (q * v).sum(1, keepdims=True)
    raised = v + rng.exponential(size=v.shape) * (rng.random(v.shape) < 0.5)
    contracted = centre + rng.uniform(0, 1, (cases, 1)) * (v - centre)
    unrelated = rng.normal(0.8, 1, v.shape)
    kind = np.arange(cases)[:, None] % 3
    u = np.where(kind == 0, raised, np.where(kind == 1, contracted, unrelated))
    p = np.where(kind == 2, rng.dirichlet(np.ones(6), size=cases), q)
    order = rng.permuted(np.tile(np.arange(6), (cases, 1)), axis=1)
    return (
        tensor(np.take_along_axis(u, order, 1)),
        tensor(v),
        tensor(np.take_along_axis(p, order, 1)),
        tensor(q),
    )


def _cdf_gap(u: Tensor, v: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """F_U - F_V at every atom; U dominates V iff none is positive."""
    x = torch.cat([u, v], -1)[:, :, None]
    return (p[:, None] * (u[:, None] <= x)).sum(-1) - (q[:, None] * (v[:, None] <= x)).sum(-1)


def soft_sorting_limit(profile: str, seed: int, *, factor: float = 1.0) -> Finding:
    """Claim 19: the soft objective is the hard one as soon as softness <= factor / (largest gap
    between neighbours)."""
    angles, n = pick(profile, (180, 8), (720, 16), (3600, 40))
    rng = np.random.default_rng(seed)
    turn = np.linspace(0, 2 * np.pi, angles, endpoint=False)
    circle = tensor(np.stack([np.cos(turn), np.sin(turn)], 1))
    drift = np.array([0.5, 0.0])
    u, v = (
        circle @ tensor(rng.normal(size=(n, 2)) + drift).T,
        circle @ tensor(rng.normal(size=(n, 2))).T,
    )
    hard = aot_unpaired(u, v, logistic, 1.0)
    gap = max(float(x.sort(-1).values.diff(dim=-1).max()) for x in (u, v))
    rows: list[Row] = []
    for multiple in (1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.1):
        soft = aot_unpaired(u, v, logistic, 1.0, softness=multiple * factor * 0.999 / gap)
        difference = float((soft - hard).abs().max())
        regret = float(hard[soft.argmin()] - hard.min())
        rows.append(
            {
                "multiple": multiple,
                "softness": multiple * factor / gap,
                "difference": difference,
                "regret": regret,
            }
        )
    limit = [row for row in rows if row["multiple"] <= 1]
    difference, regret = (
        max(row["difference"] for row in limit),
        max(row["regret"] for row in limit),
    )
    flattest = max(row["difference"] for row in rows)
    example = (
        f"largest gap {gap:.4g}, softness {factor / gap:.4g}: soft and hard objective differ by"
        f" {difference:.4g}"
    )
    lines = [
        equality(
            f"soft against hard objective from softness {factor:g}/(largest gap) down",
            difference,
            1e-12,
            example,
        ),
        equality(
            "hard objective at the soft optimum minus its minimum, on the circle",
            regret,
            1e-12,
            example,
        ),
    ]
    figure = (
        f"{difference:.0e} apart from softness {factor / gap:.3g} down, {flattest:.2g} at a"
        " thousand times that"
    )
    multiples = [row["multiple"] for row in rows]
    drawn = curve(multiples, [row["difference"] for row in rows], "largest difference")
    drawn += curve(multiples, [row["regret"] for row in rows], "regret of the soft optimum")
    table = panel(drawn, "softness / threshold", "soft against hard objective", log="x")
    return conclude(figure, lines, {"soft sorting on a circle of theta": table})


# ------------------------------------------------------------------------------------------ helpers
def tensor(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(x, dtype=np.float64))


def short(x: Tensor) -> list[float]:
    return [round(number, 4) for number in x.tolist()]


CLAIMS = (
    Claim(
        "sorting-solves-transport",
        "arXiv:2406.05882",
        "sorting solves OT_h for convex h",
        "For convex h and two samples on the line, of any sizes and weights, the coupling of equal"
        " quantiles attains the least expected h(u - v) of all couplings.",
        "h convex.",
        "The sorted value against a linear program over all couplings (HiGHS), for three convex h,"
        " equal and unequal sizes and weights.",
        "A coupling that is cheaper than the sorted one by more than 1e-8.",
        sorting_solves_transport,
        Kind.IDENTITY,
    ),
    Claim(
        "dominance-violation",
        "arXiv:2406.05882",
        "zero quantile violation is dominance; OT_h is above it",
        "U dominates V in the first order iff the integral of (Q_V - Q_U)_+ vanishes; with h"
        " logistic (divided by beta), squared hinge or least squares (against the squared"
        " violation) OT_h is an upper bound, within log 2/beta for the logistic.",
        "beta >= 0.",
        "Random weighted samples, a third raised so that U dominates and a third contracted;"
        " dominance from the distribution functions at every atom.",
        "A sample that the violation and the distribution functions judge differently, or an OT_h"
        " below the violation.",
        dominance_violation,
        Kind.IDENTITY,
    ),
    Claim(
        "soft-sorting-limit",
        "derived, for arXiv:2406.05882 and arXiv:2002.08871",
        "soft sorting has the optimum of hard sorting as softness goes to 0",
        "With the quadratic regulariser the soft objective is the hard one as soon as softness"
        " times the largest gap between neighbours is at most one, and so has the same optimum on"
        " any bounded set of theta.",
        "Soft sorting by projection on the permutahedron.",
        "Soft and hard objective on a circle of theta, from a thousand times that softness down.",
        "A difference, or a different optimum, at or below that softness.",
        soft_sorting_limit,
        Kind.DERIVED,
    ),
    Claim(
        "second-order-dominance",
        "derived; cf. Nitsure et al., arXiv:2310.07132v3",
        "second-order dominance by integrated quantiles, and its surrogate",
        "With D(t) the integral of Q_U - Q_V up to t: the violation (-D)_+ vanishes iff U dominates"
        " V in the second order, which first-order dominance implies and does not need; the"
        " integral of (-D)_+² is a surrogate that vanishes just there. With a margin beta > 0 it"
        " cannot vanish, as D(0) = 0: at least beta³/(6M) remains.",
        "Rewards in [-M, M], beta <= 2M for the last statement.",
        "Random weighted samples; the order judged by E(x - U)_+ at every atom; the case U = 1/2, V"
        " = 0 or 1 by hand.",
        "A sample that is judged differently, or a surrogate that stays above zero where U"
        " dominates.",
        second_order_dominance,
        Kind.DERIVED,
    ),
)
