"""Claims on preference shift: is a robust policy more than one that stayed near the reference?
Section 7, arXiv:2502.01930."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch

from theory.claims.ledger import (
    LEVEL,
    Claim,
    Finding,
    Kind,
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
from theory.collapse import collapse_radius
from theory.estimators import Fit, dpo, kldpo, kldpo_tilt
from theory.fitting import fit
from theory.policy import Array
from theory.sets import AmbiguitySet
from theory.sets.gradient_penalty import GradientPenalty
from theory.sets.kl import KL
from theory.sets.wasserstein_free import WassersteinFree
from theory.shift import (
    KINDS,
    Outcome,
    Shift,
    evaluate,
    gain_spread,
    gain_spread_bound,
    mean_interval,
    random_shift,
    ratio_interval,
    shrunk,
    spread,
)
from theory.worlds import ContinuousWorld, FiniteWorld, from_policy

TRAIN = 0.8  # alpha_o, the weight of the first reward in training
FRACTION = 0.5  # of the collapse radius
LABEL_COST = 1.0
ROUNDING = 1e-9  # a difference of regrets below it is none
Fitter = Callable[[Array, Array, float, dict[str, Any], Array], Fit]


def _over(set: AmbiguitySet) -> Fitter:
    """A robust estimator at a fraction of its collapse radius in the population, for a batch of
    worlds."""

    def fitted(
        u: Array, p: Array, fraction: float, common: dict[str, Any], population: Array
    ) -> Fit:
        radius = fraction * collapse_radius(u, set, population)
        return fit(u, set.sized(radius), p, **common)

    return fitted


FITTERS: dict[str, Fitter] = {
    "KLDPO": _over(KL()),
    "WDPO W2 free": _over(WassersteinFree(power=2)),
    "WDPO W1 labels": _over(WassersteinFree(power=1, label_cost=LABEL_COST)),
    "WDPO W1 free": _over(WassersteinFree(power=1)),
    "WDPO norm": _over(GradientPenalty()),
}


@dataclass(frozen=True)
class _Case:
    """One robust method in one setting, over worlds: what it, DPO shrunk to the same KL, and DPO
    come to. fraction: of the collapse radius. thetas: the robust and the shrunk policies."""

    setting: str
    n: float
    method: str
    fraction: float
    shifts: list[Shift]
    robust: list[Outcome]
    near: list[Outcome]
    plain: list[Outcome]
    thetas: tuple[Array, Array]

    @property
    def size(self) -> str:
        return "population" if np.isinf(self.n) else f"n = {self.n:g}"

    @property
    def name(self) -> str:
        return f"{self.setting}, {self.size}, {self.method} at {self.fraction:g} of collapse"

    @property
    def kl(self) -> float:
        """Of the robust policies, in the mean over worlds."""
        return float(np.mean([outcome.kl[0] for outcome in self.robust]))


def _each(measure: Callable[[Outcome], Array], outcomes: list[Outcome]) -> Array:
    return np.array([measure(outcome)[0] for outcome in outcomes])


def _worst(outcome: Outcome) -> Array:
    return outcome.regret.max(1)


def _cases(
    profile: str, seed: int, fractions: tuple[float, ...] = (FRACTION,), worlds: int | None = None
) -> list[_Case]:
    """Robust fits at fractions of the collapse radius; every world has its own features, rewards
    and sample."""
    cases = []
    for kind in pick(profile, ("convex", "contexts"), KINDS, KINDS):
        count, alpha = worlds or pick(profile, 40, 80, 400), np.linspace(0, 1, 11)
        shifts = [
            random_shift(kind, [seed, index], train=TRAIN, alpha=alpha) for index in range(count)
        ]
        common = {"beta": shifts[0].world.beta, "bound": shifts[0].world.bound}
        u = np.stack([shift.world.u for shift in shifts])
        population = np.stack([shift.world.probability for shift in shifts])
        for n in pick(profile, (np.inf,), (np.inf, 200), (np.inf, 100, 1000)):
            p = population if np.isinf(n) else _sampled(shifts, int(n), seed)
            theta = dpo(u, p, **common).theta.numpy()
            plain = [evaluate(shift, theta[[i]]) for i, shift in enumerate(shifts)]
            methods = pick(profile, tuple(FITTERS)[:2], tuple(FITTERS)[:3], tuple(FITTERS))
            for method, fraction in product(methods, fractions):
                fitted = FITTERS[method](u, p, fraction, common, population).theta.numpy()
                robust = [evaluate(shift, fitted[[i]]) for i, shift in enumerate(shifts)]
                same = np.concatenate(
                    [
                        shrunk(shift.world, theta[[i]], robust[i].kl)
                        for i, shift in enumerate(shifts)
                    ]
                )
                near = [evaluate(shift, same[[i]]) for i, shift in enumerate(shifts)]
                thetas = fitted, same
                cases.append(_Case(kind, n, method, fraction, shifts, robust, near, plain, thetas))
    return cases


def _simultaneous(cases: list[_Case]) -> float:
    """The level of each of so many intervals that holds for all together (Bonferroni)."""
    return 1 - (1 - LEVEL) / len(cases)


def _sampled(shifts: list[Shift], n: int, seed: int) -> Array:
    return torch.cat(
        [s.world.sample(n, [np.random.SeedSequence([seed, i, n])]).p for i, s in enumerate(shifts)]
    ).numpy()


# ------------------------------------------------------------------------------------------- claims
def kldpo_is_larger_beta(profile: str, seed: int, *, factor: float = 1.0) -> Finding:
    """KLDPO in a well-specified population is theta_ref + tau/(tau + factor) (theta* -
    theta_ref)."""
    tilted: list[float] = []
    exact: list[float] = []
    rows: list[Row] = []
    for index in range(pick(profile, 2, 6, 40)):
        world = _well_specified([seed, index], beta=(0.5, 1.0, 2.0)[index % 3])
        common = world.problem
        assert world.theta_star is not None
        away = world.theta_star - world.theta_ref
        for tau in (0.1, 1.0, 10.0):
            fit = kldpo_tilt(world.u, world.probability, temperature=tau, **common)
            tilted.append(_distance(fit, world.theta_ref + tau / (tau + factor) * away))
            rows += curve([tau / (tau + factor)], [_share(fit, world, away)], "temperature form")
        edge = collapse_radius(world.u, KL(), world.probability).item()
        for fraction in (0.1, 0.5, 0.9):
            fit = kldpo(world.u, world.probability, radius=fraction * edge, **common)
            assert fit.dual is not None
            tau = fit.dual.item()
            exact.append(_distance(fit, world.theta_ref + tau / (tau + factor) * away))
            rows += curve(
                [tau / (tau + factor)], [_share(fit, world, away)], "KL ball, tau its dual"
            )
    sphere = ContinuousWorld("sphere", 4, np.array([2.0, 0, 0, 0]), 1.0, 6.0)
    line = sphere.line()
    on_sphere = kldpo_tilt(line.ut[0].T, line.p, temperature=0.5, beta=1.0, bound=6.0).theta.item()
    example = (
        f"one pair x = 1 with log-odds h: tau = 1 should give the margin h/(1 + {factor:g});"
        " setting the derivative of sigma(h) (1+e^-m) + sigma(-h) (1+e^m) to zero gives e^(2m) ="
        " e^h, m = h/2"
    )
    return conclude(
        f"largest distance from that point {max(tilted + exact):.0e} over {len(tilted + exact)}"
        " fits",
        [
            equality("temperature form, finite worlds", max(tilted), 1e-7, example),
            equality("KL ball, tau its dual variable, finite worlds", max(exact), 1e-7, example),
            equality(
                "temperature form, features on a sphere",
                abs(on_sphere - 2 * 0.5 / (0.5 + factor)),
                1e-7,
                example,
            ),
        ],
        {
            "how far from theta_ref to theta*": panel(
                rows,
                f"tau / (tau + {factor:g})",
                "measured share of the way",
                kind="points",
                guide="y = x",
            )
        },
    )


def _share(fit: Fit, world: FiniteWorld, away: Array) -> float:
    """How far along `away` a policy is from theta_ref."""
    return float((fit.theta.numpy() - world.theta_ref) @ away / (away @ away))


def _distance(fit: Fit, point: Array) -> float:
    return float(np.abs(fit.theta.numpy() - point).max())


def _well_specified(seed: list[int], beta: float) -> FiniteWorld:
    rng = np.random.default_rng(seed)
    features, star = rng.standard_normal((4, 3, 3)), rng.standard_normal(3)
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    ref = 0.3 * rng.standard_normal(3)
    return from_policy(
        features, ref + 3 * star / np.linalg.norm(star), beta=beta, bound=12.0, theta_ref=ref
    )


def robustness_beyond_kl(profile: str, seed: int, *, share: float = 0.5) -> Finding:
    """At the same KL to the reference the worst-alpha regret of a robust policy is below that of
    DPO by less than `share` of what the best policy of that KL would gain."""
    lines: list[Measurement] = []
    tables: dict[str, list[Row]] = {}
    cases = _cases(profile, seed, fractions=(0.3, 0.7), worlds=pick(profile, 12, 36, 200))
    gains: dict[tuple[str, str], list[tuple[Array, Array]]] = {}
    for case in cases:
        robust, near = (_each(_worst, group) for group in (case.robust, case.near))
        best = np.array(
            [
                _least_regret(shift, float(outcome.kl[0]), known, [seed, index])
                for index, (shift, outcome, *known) in enumerate(
                    zip(case.shifts, case.robust, *case.thetas, strict=True)
                )
            ]
        )
        gained, there = near - robust, near - best
        gains.setdefault((case.setting, case.method), []).append((gained, there))
        ratio, low, high = ratio_interval(gained, there)
        tables.setdefault(case.size, []).append(
            {
                "x": f"{case.setting} {case.fraction:g}",
                "series": case.method,
                "y": ratio,
                "low": low,
                "high": high,
                "kl": case.kl,
                "gained": float(gained.mean()),
                "attainable": float(there.mean()),
            }
        )
    level, shares, better, worse = 1 - (1 - LEVEL) / len(gains), list[float](), 0, 0
    for (setting, method), parts in gains.items():
        # in each world the mean over sizes and radii
        gained, there = (np.mean(each, axis=0) for each in zip(*parts, strict=True))
        _, low, high = mean_interval(gained - share * there, level)
        mean, below, above = mean_interval(gained, level)
        shares.append(float(mean / there.mean()))
        better, worse = better + (below > ROUNDING), worse + (above < -ROUNDING)
        figure = (
            f"{mean:+.4f} [{below:+.4f}, {above:+.4f}] of {there.mean():.4f} attainable:"
            f" {shares[-1]:.0%}; gain less {share:g} of the attainable [{low:+.4f}, {high:+.4f}]"
        )
        name = f"{setting}, {method}"
        if high < 0:
            lines.append(Measurement(name, Verdict.HOLDS, figure))
        elif low > 0:
            top = int(np.argmax(gained - share * there))
            example = (
                f"seed {seed}, world {top}: {gained[top]:+.4f} of {there[top]:.4f} in worst-case"
                " regret, in the mean over sizes and radii"
            )
            lines.append(Measurement(name, Verdict.REFUTED, figure, counterexample=example))
        else:
            wanted = f"more than {len(gained)} worlds"
            lines.append(Measurement(name, Verdict.INCONCLUSIVE, figure, decides=wanted))
    return conclude(
        f"at equal KL robust policies gain {min(shares):.0%} to {max(shares):.0%} of what the best"
        f" policy would; surely better than DPO in {better} of {len(lines)} comparisons, surely"
        f" worse in {worse}",
        lines,
        {
            f"share of the attainable gain, {size}": panel(
                part, "setting and fraction of collapse", "share", kind="bars", guide="y = 0"
            )
            for size, part in tables.items()
        },
    )


def _least_regret(shift: Shift, kl: float, known: list[Array], seed: list[int]) -> float:
    """The least worst-alpha regret of log-linear policies of this KL that a search over directions
    finds: random ones and the `known`, then smaller and smaller steps from the best. An upper bound
    of the least."""
    rng, ref = np.random.default_rng(seed), shift.world.theta_ref
    ways = np.stack([theta - ref for theta in known])
    ways = np.concatenate([ways, rng.standard_normal((40, len(ref)))])
    least = np.inf
    for step in (0.4, 0.15, 0.0):
        ways = ways / np.maximum(np.linalg.norm(ways, axis=1, keepdims=True), 1e-300)
        points = shrunk(shift.world, ref + ways, np.full(len(ways), kl))
        reached = np.isfinite(points).all(1)
        regret = np.full(len(ways), np.inf)
        regret[reached] = _worst(evaluate(shift, points[reached]))
        least = min(least, float(regret.min()))
        ways = ways[regret.argmin()] + step * rng.standard_normal((20, len(ref)))
    return least


def robust_flat_curves(
    profile: str, seed: int, *, constant: float = 1.0, share: float = 0.85
) -> Finding:
    """The KL to the reference bounds how far a curve is from flat, and explains at least `share` of
    what robustness flattens."""
    lines: list[Measurement] = []
    rows: list[Row] = []
    tables: dict[str, list[Row]] = {}
    ratios: list[float] = []
    closest, example = np.inf, ""
    cases = _cases(profile, seed)
    for case in cases:
        robust, near, plain = (
            _each(spread, group) for group in (case.robust, case.near, case.plain)
        )
        _, low, high = mean_interval(
            (plain - near) - share * (plain - robust), _simultaneous(cases)
        )
        ratio, least, most = ratio_interval(plain - near, plain - robust)
        ratios.append(ratio)
        tables.setdefault(case.size, []).append(
            {"x": case.setting, "y": ratio, "series": case.method, "low": least, "high": most}
        )
        figure = (
            f"spread {plain.mean():.3f} to {robust.mean():.3f}; DPO at equal KL {near.mean():.3f}:"
            f" explains {ratios[-1]:.2f}"
        )
        if low > 0:
            lines.append(Measurement(case.name, Verdict.HOLDS, figure))
        elif high < 0:
            lines.append(
                Measurement(
                    case.name,
                    Verdict.REFUTED,
                    figure,
                    counterexample=f"seed {seed}, {len(robust)} worlds",
                )
            )
        else:
            lines.append(
                Measurement(
                    case.name,
                    Verdict.INCONCLUSIVE,
                    figure,
                    decides=f"more than {len(robust)} worlds",
                )
            )
        for policy, group in (
            (case.method, case.robust),
            (f"DPO at the KL of {case.method}", case.near),
            ("DPO", case.plain),
        ):
            for index, (shift, outcome) in enumerate(zip(case.shifts, group, strict=True)):
                gap, bound = (
                    gain_spread(shift, outcome)[0],
                    constant * gain_spread_bound(shift, outcome.kl)[0],
                )
                rows.append(
                    {
                        "series": case.setting,
                        "n": float(case.n),
                        "policy": policy,
                        "world": index,
                        "kl": float(outcome.kl[0]),
                    }
                    | {"x": float(bound), "y": float(gap), "spread": float(spread(outcome)[0])}
                )
                if bound < closest * gap:
                    closest = float(bound / gap)
                    example = (
                        f"{case.name}, {policy}, world {index}: gains differ by {gap:.5g}, the KL"
                        f" allows {bound:.5g}"
                    )
    bars, points = (
        {"kind": "bars", "guide": "y = 1"},
        {
            "kind": "points",
            "log": "xy",
            "guide": "y = x",
        },
    )
    lines.append(
        inequality(
            "spread of the gain over the reference <= sqrt(KL/2) (sum_s (range f)²/mu)^(1/2)",
            closest,
            example,
        )
    )
    return conclude(
        f"the KL explains {min(ratios):.2f} to {max(ratios):.2f} of the flattening; bound/spread at"
        f" least {closest:.2f}",
        lines,
        {
            f"explained by the KL, {size}": panel(part, "", "share of the flattening", **bars)
            for size, part in tables.items()
        }
        | {
            "spread of the gain against its bound": panel(
                rows, "bound from the KL", "spread of the gain", **points
            )
        },
    )


CLAIMS = (
    Claim(
        "kldpo-is-larger-beta",
        "derived, for arXiv:2502.01930, Algorithm 2",
        "KLDPO in a well-specified population is DPO with beta (1 + 1/tau)",
        "Let labels be Bradley–Terry in beta (theta* - theta_ref).psi. For every law of the"
        " features, KLDPO with temperature tau has the population minimiser theta_ref + tau/(1 +"
        " tau) (theta* - theta_ref), and so has the KL ball with dual variable tau. DPO trained"
        " with beta (1 + 1/tau) has the same. Proof: e^(l/tau) = sigma(m)^(-1/tau), so that the two"
        " labels of a pair with log-odds h pull equally, sigma(h) e^(l(m)/tau) sigma(-m) ="
        " sigma(-h) e^(l(-m)/tau) sigma(m), iff h = (1 + 1/tau) m; every pair is then at rest by"
        " itself, and the objective is convex.",
        "Bradley–Terry labels in a linear reward; ||theta|| <= B does not bind. Not covered: finite"
        " samples, other rewards.",
        "Distance of fits to that point, for three temperatures and three radii in random finite"
        " worlds, and on a sphere.",
        "A distance above 1e-7.",
        kldpo_is_larger_beta,
        Kind.DERIVED,
    ),
    Claim(
        "robustness-beyond-kl",
        "derived, for arXiv:2502.01930, Section 7",
        "At equal KL to the reference robust policies gain less than half of what there is to gain",
        "Trained at alpha_o and judged at every mixture alpha, KLDPO and WDPO are compared with DPO"
        " that is shrunk towards the reference until its KL is the same (in the log-linear world"
        " DPO with a larger beta). The worst-alpha regret of the robust policy is lower by less"
        " than half of what the best policy of that KL would gain. The paper compares at equal"
        " training, not at equal KL, and claims nothing of the kind.",
        "Random worlds of six kinds of shift (theory.shift); free features, 0.3 and 0.7 of the"
        " collapse radius. Regret 0 is the best policy, 1 the reference.",
        "Paired differences over worlds with t intervals at 95 % for all lines together; one line a"
        " setting and method, in each world the mean over sizes and radii. The best policy of"
        " a KL by a search over directions, which can only fall short and so makes the share"
        " larger.",
        "A line whose interval lies above half of the attainable gain.",
        robustness_beyond_kl,
        Kind.DERIVED,
    ),
    Claim(
        "robust-flat-curves",
        "derived, for arXiv:2502.01930, Section 7",
        "A flat curve under shift comes with a policy near the reference",
        "The gains over the reference at two alphas differ by at most sqrt(KL(pi||pi_ref)/2) times"
        " a number of the rewards; and shrinking DPO to the KL of a robust policy flattens its"
        " regret curve by at least 85 % of what robustness does.",
        "The bound: any policy. The share: random worlds of six kinds of shift, half of the"
        " collapse radius.",
        "The bound on every policy; for the share, paired differences over worlds with t intervals"
        " at 95 % together.",
        "A spread above the bound, or an interval in which the KL explains less than 85 % of the"
        " flattening.",
        robust_flat_curves,
        Kind.DERIVED,
    ),
)
