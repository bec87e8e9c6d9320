"""Claims on preference shift: is a robust policy more than one that stayed near the reference? Section 6, arXiv:2502.01930."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from theory.claims.ledger import Claim, Finding, Measurement, Row, Verdict, conclude, equality, inequality, pick
from theory.collapse import collapse_radius, free_collapse
from theory.estimators import Fit, dpo, gradient_penalty, kldpo, kldpo_tilt, wdpo_finite, wdpo_free
from theory.policy import Array
from theory.shift import KINDS, Outcome, Shift, evaluate, mean_interval, random_shift, shrunk, spread
from theory.worlds import ContinuousWorld, random_world

TRAIN = 0.2  # alpha_o, the weight of the second reward in training
LABEL_COST = 1.0
ROUNDING = 1e-9  # a difference of regrets below it is none
Fitter = Callable[[Array, Array, float, dict[str, Any], Array], Fit]


def _ball(name: str, estimator: Callable[..., Fit], **extra: Any) -> Fitter:
    """A robust estimator at a fraction of its collapse radius in the population, for a batch of worlds."""

    def fit(u: Array, p: Array, fraction: float, common: dict[str, Any], population: Array) -> Fit:
        knobs = {"label_cost": extra["label_cost"]} if "label_cost" in extra else {}
        return estimator(u, p, radius=fraction * collapse_radius(name, u, population, **knobs), **extra, **common)

    return fit


def _norm(u: Array, p: Array, fraction: float, common: dict[str, Any], population: Array) -> Fit:
    return gradient_penalty(u, p, strength=fraction * collapse_radius("w2-free", u, population), **common)


FITTERS: dict[str, Fitter] = {
    "KLDPO": _ball("kl", kldpo),
    "WDPO W1 free": _ball("w1-free", wdpo_free, power=1),
    "WDPO W2 free": _ball("w2-free", wdpo_free, power=2),
    "WDPO W1 labels": _ball("w1-label", wdpo_free, power=1, label_cost=LABEL_COST),
    "WDPO norm": _norm,
}


@dataclass(frozen=True)
class _Case:
    """One robust method in one setting, over W worlds: what it, DPO, and DPO shrunk to the same KL come to."""

    setting: str
    n: float
    method: str
    robust: list[Outcome]
    near: list[Outcome]
    plain: list[Outcome]

    def over(self, measure: Callable[[Outcome], Array]) -> tuple[Array, Array, Array]:
        """A number of each policy, over the worlds: robust, shrunk DPO, DPO."""
        return tuple(np.array([measure(o)[0] for o in group]) for group in (self.robust, self.near, self.plain))  # type: ignore[return-value]


def _worst(outcome: Outcome) -> Array:
    return outcome.regret.max(1)


def _cases(profile: str, seed: int) -> list[_Case]:
    kinds = pick(profile, ("convex", "contexts"), KINDS, KINDS)
    sizes = pick(profile, (np.inf,), (np.inf, 200), (np.inf, 100, 1000))
    methods = pick(profile, ("KLDPO", "WDPO W1 free", "WDPO W2 free"), tuple(FITTERS), tuple(FITTERS))
    fraction, alpha = 0.5, np.linspace(0, 1, 11)
    cases = []
    for kind in kinds:
        worlds = pick(profile, 12, 40, 300)
        shifts = [random_shift(kind, [seed, index], train=TRAIN, alpha=alpha) for index in range(worlds)]
        first = shifts[0].world
        common = {"beta": first.beta, "bound": first.bound}
        u = np.stack([shift.world.u for shift in shifts])
        population = np.stack([shift.world.probability for shift in shifts])
        for n in sizes:
            p = population if np.isinf(n) else _sampled(shifts, int(n), [seed, KINDS.index(kind)])
            plain = dpo(u, p, **common).theta.numpy()
            for method in methods:
                theta = FITTERS[method](u, p, fraction, common, population).theta.numpy()
                robust = [evaluate(shift, theta[[i]]) for i, shift in enumerate(shifts)]
                same = [shrunk(shift.world, plain[[i]], robust[i].kl) for i, shift in enumerate(shifts)]
                near = [evaluate(shift, same[i]) for i, shift in enumerate(shifts)]
                cases.append(_Case(kind, n, method, robust, near, [evaluate(s, plain[[i]]) for i, s in enumerate(shifts)]))
    return cases


def _sampled(shifts: list[Shift], n: int, entropy: list[int]) -> Array:
    samples = [shift.world.sample(n, [np.random.SeedSequence([*entropy, n, i])]).p for i, shift in enumerate(shifts)]
    return torch.cat(samples).numpy()


# --------------------------------------------------------------------------------------------------------------- claims
def kldpo_is_larger_beta(profile: str, seed: int, *, factor: float = 1.0) -> Finding:
    """KLDPO in a well-specified population is theta_ref + tau/(tau + factor) (theta* - theta_ref)."""
    lines, steps = [], []
    for index in range(pick(profile, 2, 6, 40)):
        world = random_world([seed, index], contexts=4, actions=3, dimension=3, beta=(0.5, 1.0, 2.0)[index % 3], bound=8.0)  # type: ignore[arg-type]
        common: dict[str, Any] = {"beta": world.beta, "bound": world.bound}
        assert world.theta_star is not None
        for tau in (0.1, 1.0, 10.0):
            fit = kldpo_tilt(world.u, world.probability, temperature=tau, **common)
            steps.append(float(np.abs(fit.theta[0].numpy() - tau / (tau + factor) * world.theta_star).max()))
        edge = collapse_radius("kl", world.u, world.probability).item()
        for fraction in (0.1, 0.5, 0.9):
            ball = kldpo(world.u, world.probability, radius=fraction * edge, **common)
            assert ball.dual is not None
            tau = ball.dual.item()
            lines.append(float(np.abs(ball.theta[0].numpy() - tau / (tau + factor) * world.theta_star).max()))
    sphere = ContinuousWorld("sphere", 4, np.array([2.0, 0, 0, 0]), 1.0, 6.0)
    line = sphere.line()
    on_sphere = kldpo_tilt(line.ut[0].T, line.p, temperature=0.5, beta=1.0, bound=6.0).theta.item()
    example = (
        f"one pair x = 1 with log-odds h: tau = 1 should give the margin h/(1 + {factor:g}); setting the derivative of "
        "sigma(h) (1+e^-m) + sigma(-h) (1+e^m) to zero gives e^(2m) = e^h, m = h/2"
    )
    return conclude(
        f"largest distance from that point {max(max(steps), max(lines)):.0e} over {len(steps) + len(lines) + 1} fits",
        [
            equality("temperature form, finite worlds", max(steps), 1e-7, example),
            equality("KL ball, tau its dual variable, finite worlds", max(lines), 1e-7, example),
            equality("temperature form, features on a sphere", abs(on_sphere - 2 * 0.5 / (0.5 + factor)), 1e-7, example),
        ],
    )


def robustness_beyond_kl(profile: str, seed: int, *, advantage: float = 0.0, margin: float = 0.01) -> Finding:
    """At the same KL to the reference the worst-alpha regret of a robust policy is below that of DPO, by `advantage`."""
    lines: list[Measurement] = []
    rows: list[Row] = []
    for case in _cases(profile, seed):
        robust, near, plain = case.over(_worst)
        mean, low, high = mean_interval(robust - near + advantage)
        kl = float(np.mean([outcome.kl[0] for outcome in case.robust]))
        rows.append(
            {"setting": case.setting, "n": float(case.n), "method": case.method, "kl": kl}
            | {"difference": mean, "low": low, "high": high, "regret": float(robust.mean()), "regret_dpo": float(plain.mean())}
        )
        figure = f"robust minus DPO at equal KL ({kl:.3f} nats): {mean:+.4f} [{low:+.4f}, {high:+.4f}] of worst-alpha regret"
        what = f"{case.setting}, {'population' if np.isinf(case.n) else f'n = {case.n:g}'}, {case.method}"
        if high < -ROUNDING:
            lines.append(Measurement(what, Verdict.HOLDS, figure))
        elif low > -margin:
            example = (
                f"seed {seed}, {len(robust)} worlds: an advantage of {margin:g} is outside the interval. By hand: with one feature "
                "every policy lies on one line, so that a robust one is DPO with a larger beta"
            )
            lines.append(Measurement(what, Verdict.REFUTED, figure, counterexample=example))
        else:
            lines.append(Measurement(what, Verdict.INCONCLUSIVE, figure, decides=f"more than {len(robust)} worlds"))
    counts = {verdict: sum(line.verdict == verdict for line in lines) for verdict in Verdict}
    worse = sum(row["low"] > ROUNDING for row in rows)
    best = min(rows, key=lambda row: row["difference"])
    figure = (
        f"at equal KL better in {counts[Verdict.HOLDS]} of {len(lines)} comparisons, no advantage of {margin:g} in "
        f"{counts[Verdict.REFUTED]} (worse in {worse}); best: {best['method']} in {best['setting']}, {best['difference']:+.4f}"
    )
    return conclude(figure, lines, {"robustness beyond KL": rows})


def robust_flat_curves(profile: str, seed: int, *, constant: float = 1.0, share: float = 0.7) -> Finding:
    """Flatness under shift is bounded by the KL to the reference, which explains at least `share` of what robustness flattens."""
    lines, rows = [], []
    closest, example = np.inf, ""
    for case in _cases(profile, seed):
        robust, near, plain = case.over(spread)
        explained, all_of_it = plain - near, plain - robust
        _, low, high = mean_interval(explained - share * all_of_it)
        ratio = explained.mean() / all_of_it.mean()
        what = f"{case.setting}, {'population' if np.isinf(case.n) else f'n = {case.n:g}'}, {case.method}"
        figure = f"spread {plain.mean():.3f} -> {robust.mean():.3f}, DPO of the same KL {near.mean():.3f}: it explains {ratio:.2f}"
        verdict = Verdict.HOLDS if low > 0 else Verdict.REFUTED if high < 0 else Verdict.INCONCLUSIVE
        lines.append(
            Measurement(
                what,
                verdict,
                figure,
                counterexample=f"seed {seed}, {len(robust)} worlds" if verdict == Verdict.REFUTED else "",
                decides=f"more than {len(robust)} worlds" if verdict == Verdict.INCONCLUSIVE else "",
            )
        )
        for group, name in ((case.robust, case.method), (case.near, f"DPO at the KL of {case.method}"), (case.plain, "DPO")):
            for index, outcome in enumerate(group):
                reach = _reach(profile, seed, case.setting, index)
                gap = np.ptp(outcome.reward - reach[1])
                rows.append(
                    {"setting": case.setting, "n": float(case.n), "method": name, "world": index}
                    | {"kl": float(outcome.kl[0]), "spread": float(spread(outcome)[0])}
                )
                if reach[0] > 0 and gap > 0:
                    ratio = constant * reach[0] * np.sqrt(outcome.kl[0] / 2) / gap
                    if ratio < closest:
                        closest = float(ratio)
                        example = f"{what}, world {index}: gains differ by {gap:.4g}, KL {outcome.kl[0]:.4g} allows {ratio * gap:.4g}"
    lines.append(inequality("spread of the gain over the reference <= sqrt(KL/2) range", closest, example))
    held = [line for line in lines if line.verdict in (Verdict.HOLDS, Verdict.LOOSE)]
    return conclude(f"{len(held)} of {len(lines)} lines hold; bound/spread at least {closest:.2f}", lines, {"spread": rows})


CLAIMS: tuple[Claim, ...] = ()
