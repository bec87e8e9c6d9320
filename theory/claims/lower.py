"""Claims of our own on what no estimator can do: theorems G1, G2 and G3 of
docs/theorems/lower-bounds.md."""

import math

import numpy as np
import torch
from scipy.stats import binom

from theory.bounds.lower import (
    SlowPair,
    deviation_ceiling,
    deviation_floor,
    influence_by_differences,
    local_minimax,
    slow_constant,
    slow_pair,
)
from theory.bounds.papers import largest_loss, regularity_kl
from theory.claims.ledger import (
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
from theory.claims.problems import NAMES, RobustProblem, worlds
from theory.duals import kl_ball_dual
from theory.fitting import fit
from theory.policy import Array
from theory.sets.kl import KL
from theory.shift import mean_interval

_FAR = 1e300  # pairs: where the limits of the logarithms are met
_RADIUS = 0.1
_WIDTH = 30.0  # c, of the neighbourhoods


# ---------------------------------------------------------------------------------------------- G1
def lower_bound_local(
    profile: str, seed: int, *, constant: float = 1.0, exponent: float = -1.0
) -> Finding:
    """Theorem G1: no mean squared error is below constant times van Trees' bound, which falls as
    n^exponent; the robust estimators meet it."""
    sizes = pick(profile, (10**8,), (10**7, 10**9), (10**6, 10**7, 10**8, 10**9))
    replicates = pick(profile, 2000, 2000, 20_000)
    lines, rows, ratios = list[Measurement](), list[Row](), list[float]()
    for index, world in enumerate(worlds(seed, pick(profile, 1, 3, 4), contexts=3)):
        for ball in ("kl", "w1-free", "w2-free"):
            problem = RobustProblem(ball, world)
            radius = 0.5 * problem.edge

            def target(p: Array, problem=problem, radius=radius) -> Array:  # type: ignore[no-untyped-def]
                return problem.fit(p, radius).theta.numpy()

            influence = influence_by_differences(target, world.probability)
            for n in sizes:
                found = local_minimax(target, world.probability, influence, n, _WIDTH)
                bound = constant * found.value * (n / sizes[0]) ** (exponent + 1)
                name = f"{NAMES[ball]}, world {index + 1}, n = {n:.0e}"
                # the estimator at the centre and in two opposite corners of the neighbourhood
                places = found.weights[[0, 1, 2**world.dimension]]
                centre = target(places[:1])[0]
                robust, shrunk = [], []
                for place, p in enumerate(places):
                    draws = np.random.default_rng([seed, index, n, place]).multinomial(
                        n, p, replicates
                    )
                    theta, there = target(draws / n), target(p[None])[0]
                    robust.append(((theta - there) ** 2).sum(1))
                    shrunk.append((((theta + centre) / 2 - there) ** 2).sum(1))
                lines += [
                    _not_below(f"{name}: the estimator", robust, bound),
                    _not_below(f"{name}: drawn half way to the centre", shrunk, bound),
                    equality(
                        f"{name}: the bound over tr V/n, minus 1",
                        abs(found.value / found.limit - 1),
                        0.05,
                    ),
                ]
                _, low, high = mean_interval(max(robust, key=lambda e: float(e.mean())) / bound)
                ratios.append(max(e.mean() for e in robust) / bound)
                (point,) = curve([n], [ratios[-1]], f"{NAMES[ball]}, world {index + 1}")
                rows.append(point | {"low": low, "high": high})
    table = panel(
        rows, "pairs n", "largest mean squared error / lower bound", log="x", guide="y = 1"
    )
    return conclude(
        "largest mean squared error of the estimator / bound for every estimator:"
        f" {min(ratios):.3f} to {max(ratios):.3f}",
        lines,
        {"neighbourhoods of c = 30": table},
    )


def _not_below(what: str, squares: list[Array], bound: float) -> Measurement:
    """The largest of several mean squared errors, plus three standard errors, is not below a
    bound."""
    largest = max(squares, key=lambda e: float(e.mean()))
    mean = float(largest.mean())
    error = float(largest.std(ddof=1)) / math.sqrt(len(largest))
    figure = f"{mean / bound:.3f} ± {error / bound:.3f} times the bound"
    if mean + 3 * error >= bound:
        return Measurement(what, Verdict.HOLDS, figure, ratio=mean / bound)
    return Measurement(what, Verdict.REFUTED, figure, ratio=mean / bound, counterexample=figure)


# ---------------------------------------------------------------------------------------------- G2
def rate_not_uniform(
    profile: str, seed: int, *, constant: float = 1.0, power: float = 2.0, chance: float = 1.0
) -> Finding:
    """Theorem G2: two populations that n pairs cannot tell apart have targets constant
    c_0/log^power n apart; chance multiplies the probability of Le Cam's bound."""
    powers = pick(profile, (6, 10, 15), (4, 6, 8, 10, 12, 15), (4, 6, 8, 10, 12, 15, 30, 100, 300))
    lines, gaps, regular = list[Measurement](), list[float](), list[float]()
    rows = list[Row]()
    pairs = [slow_pair(10.0**k, radius=_RADIUS) for k in powers]
    for pair in pairs:
        gaps.append(pair.gap)
        regular.append(regularity_kl(pair.u, pair.rare, _RADIUS))
    rows += curve([10.0**k for k in powers], gaps, "distance of the targets")
    rows += curve([10.0**k for k in powers], [10 ** (-k / 4) for k in powers], "n^(-1/4)")
    rows += curve([10.0**k for k in powers], [10 ** (-k / 2) for k in powers], "n^(-1/2)")
    limit = constant * slow_constant(radius=_RADIUS)
    far = slow_pair(_FAR, radius=_RADIUS)
    lines += [
        equality(
            "distance of the targets times log^power n over c_0 at n = 1e300, minus 1",
            abs(far.gap * math.log(_FAR) ** power / limit - 1),
            0.02,
            f"{far.gap:.6g} at n = 1e300, c_0 = {limit:.4f}",
        ),
        equality(
            "lambda* times log n over beta B at n = 1e300, minus 1",
            abs(far.dual * math.log(_FAR) - 1),
            0.05,
        ),
        inequality(
            "lambda of Assumption 2, smallest over n, against its value without the rare atom",
            min(regular) / regularity_kl(pairs[0].u, pairs[0].common, _RADIUS),
            slack=1e-3,
            loose=np.inf,
        ),
    ]
    each = pick(profile, 3, 4, 40)
    for k in pick(profile, (10,), (6, 15), (6, 10, 15)):
        n = 10**k
        pair = slow_pair(n, radius=_RADIUS)
        share, root = _of_kldpo(pair, n, each, (seed, k))
        lines.append(
            inequality(
                f"n = {n:.0e}: probability that KLDPO is off by half the distance or more, over the"
                f" bound {pair.chance:.3f} (r.m.s. error {root:.2g}, n^-1/4 = {n**-0.25:.2g})",
                share / (chance * pair.chance),
                f"the probability is {share:.4f}",
                loose=np.inf,
            )
        )
        # the best two-point rule: common's target for a sample without rare pairs, but rare's with
        # the bound's own probability
        count = pick(profile, 20_000, 100_000, 10**6)
        rng = np.random.default_rng([seed, k, 9])
        unseen = rng.binomial(n, pair.rare[2], count) == 0
        guess = rng.random(count) < pair.chance  # the rare target although none was seen
        errors = (float(guess.mean()), float((unseen & ~guess).mean()))
        spread = 4 * math.sqrt(0.25 / count)
        lines.append(
            equality(
                f"n = {n:.0e}: larger error probability of the randomised rule against the bound",
                abs(max(errors) - chance * pair.chance),
                spread,
                f"the rule errs with probability {errors[0]:.4f} and {errors[1]:.4f}",
            )
        )
    scaled = [gap * (k * math.log(10)) ** 2 for gap, k in zip(gaps, powers, strict=True)]
    return conclude(
        f"distance times log² n: {min(scaled):.2f} to {max(scaled):.2f} for n = 1e{powers[0]} to"
        f" 1e{powers[-1]}, {far.gap * math.log(_FAR) ** 2:.3f} at 1e300, limit"
        f" {slow_constant(radius=_RADIUS):.3f}; chance {pairs[-1].chance:.3f}",
        lines,
        {
            "targets that n pairs cannot tell apart": panel(
                rows, "pairs n", "||theta_rho(P_n) - theta_rho(P_0)||", log="xy"
            )
        },
    )


def _of_kldpo(pair: SlowPair, n: int, each: int, seed: tuple[int, ...]) -> tuple[float, float]:
    """P(error >= gap/2) and the root mean square error of KLDPO in the rare population, with `each`
    samples for each number of rare pairs, weighted by the probability of that number."""
    counts = np.arange(8)
    mass = binom.pmf(counts, n, pair.rare[2])
    rng = np.random.default_rng(seed)
    draws = np.array(
        [[*rng.multinomial(n - c, [0.5, 0.5]), c] for c in counts for _ in range(each)]
    )
    theta = fit(pair.u, KL(_RADIUS), draws / n, beta=1.0, bound=1.0).theta.numpy()
    angle = pair.angles[1]
    error = np.linalg.norm(theta - [math.cos(angle), math.sin(angle)], axis=1)
    off = (error >= pair.gap / 2 * (1 - 1e-6)).reshape(-1, each).mean(1)
    squares = np.square(error).reshape(-1, each).mean(1)
    return float(mass @ off), float(np.sqrt(mass @ squares))


# ---------------------------------------------------------------------------------------------- G3
def deviation_logarithmic(
    profile: str, seed: int, *, constant: float = 1.0, power: float = 1.0
) -> Finding:
    """Theorem G3: |L_n - L| of the KL ball is at least constant spread rho/log^power n with
    probability 1/e, and at most twice that, at the largest spread."""
    beta = bound = 1.0
    spread, K = 4 * beta * bound, largest_loss(beta, bound)
    lines, rows = list[Measurement](), list[Row]()
    trials = pick(profile, 500, 2000, 20_000)
    powers = pick(profile, (2, 6, 12), (2, 4, 6, 8, 10, 12, 15), (2, 4, 6, 8, 10, 12, 15))
    losses = torch.tensor([[0.0, spread]], dtype=torch.float64)
    for k in powers:
        n = 10**k
        floor = deviation_floor(n, radius=_RADIUS, spread=spread)
        ceiling = deviation_ceiling(n, 2, beta=beta, bound=bound, radius=_RADIUS, delta=1 / math.e)
        rows += curve([n], [floor], "floor, probability 1/e")
        rows += curve([n], [ceiling], "Theorem C at its best cut")
        count = np.random.default_rng([seed, k]).binomial(n, 1 / n, trials)
        p = torch.from_numpy(np.stack([1 - count / n, count / n], 1))
        radius = torch.full((trials,), _RADIUS, dtype=torch.float64)
        values = kl_ball_dual(losses.expand(trials, -1), p, radius).value.numpy()
        population = torch.tensor([[1 - 1 / n, 1 / n]], dtype=torch.float64)
        L = kl_ball_dual(losses, population, radius[:1]).value.item()
        share = float((np.abs(values - L) >= constant * floor * (1 - 1e-7)).mean())
        chance = (1 - 1 / n) ** n
        lines += [
            inequality(
                f"n = {n:.0e}: share of samples off by the floor {constant * floor:.3g} or more,"
                f" plus four standard errors, over {chance:.3f}",
                (share + 4 * math.sqrt(chance * (1 - chance) / trials)) / chance,
                f"{share:.3f} of {trials} samples",
                loose=np.inf,
            ),
            inequality(f"n = {n:.0e}: Theorem C over the floor", ceiling / floor, loose=np.inf),
        ]
    low = deviation_floor(_FAR, radius=_RADIUS, spread=spread)
    high = deviation_ceiling(_FAR, 2, beta=beta, bound=bound, radius=_RADIUS, delta=1 / math.e)
    scale = math.log(_FAR) ** power / (constant * _RADIUS)
    lines += [
        equality(
            "floor times log^power n over spread rho at n = 1e300, minus 1",
            abs(low * scale / spread - 1),
            0.03,
            f"floor {low:.6g}",
        ),
        equality(
            "Theorem C times log^power n over 2 K rho at n = 1e300, minus 1",
            abs(high * scale / (2 * K) - 1),
            0.06,
            f"ceiling {high:.6g}",
        ),
    ]
    rows += curve([10.0**k for k in powers], [10 ** (-k / 2) for k in powers], "n^(-1/2)")
    return conclude(
        "floor and Theorem C times log n/(K rho) at n = 1e300:"
        f" {low * math.log(_FAR) / K / _RADIUS:.3f} and"
        f" {high * math.log(_FAR) / K / _RADIUS:.3f}",
        lines,
        {"KL ball, rho = 0.1": panel(rows, "pairs n", "|L_n - L|", log="xy")},
    )


CLAIMS = (
    Claim(
        "lower-bound-local",
        "derived; docs/theorems/lower-bounds.md, Theorem G1",
        "no estimator beats the limit variance of the plug-in, not even near one population",
        "Over the populations p (1 + sum_j e_j s_j), |e_j| <= c/sqrt(n), s_j the components of the"
        " influence function, the largest E ||T - theta_rho||² of any estimator T is at least van"
        " Trees' bound, about tr V/(n (1 + pi²/c²)), V the variance of the robust estimator's limit"
        " law. The robust estimator meets it.",
        "Finitely many atoms; a target that is differentiable in p (no kinks).",
        "KL, W1 and W2 with free features at half the collapse radius: the bound by quadrature over"
        " the neighbourhood, c = 30; mean squared errors of the estimator, and of the estimator"
        " drawn half way to the centre, at the centre and in two corners.",
        "A largest mean squared error below the bound by more than three standard errors. A bound"
        " 1.5 times as large, or one that falls as n^-0.95, is refuted.",
        lower_bound_local,
        Kind.DERIVED,
    ),
    Claim(
        "rate-not-uniform",
        "derived; docs/theorems/lower-bounds.md, Theorem G2; cf. arXiv:2502.01930, Theorem 2",
        "KLDPO: no rate n^-a over all populations of the paper's class; at best 1/log² n",
        "P_0 = (1/2, 1/2, 0) and P_n = ((1 - 1/n)/2, (1 - 1/n)/2, 1/n) on u = (1, 1/2), (1, -1/2),"
        " (-1, 1) satisfy Assumption 2 with one lambda, and their targets are (c_0 + o(1))/log² n"
        " apart, c_0 = 4 rho B sigma(beta B)/sigma(-beta B)². So for every estimator the larger of"
        " the two probabilities of an error of half of that is at least 1/(1 + e) - o(1), and no"
        " larger constant is true of this pair.",
        "rho in (0, log 2); no lower bound on lambda*, which here is about beta B/log n.",
        "The targets by the equations of the worst case in log-weights, n up to 1e300; KLDPO on"
        " samples of both populations; the randomised rule that attains the probability.",
        "A distance away from c_0/log² n, or a rule that errs less. A constant 10 % off, the power"
        " 1.9, or a probability 1.5 times as large is refuted.",
        rate_not_uniform,
        Kind.DERIVED,
    ),
    Claim(
        "deviation-logarithmic",
        "derived; docs/theorems/lower-bounds.md, Theorem G3; docs/theorems, Theorem C",
        "KLDPO: |L_n - L| falls as 1/log n uniformly in P, and no faster",
        "With losses {0, D} and P(D) = 1/n, |L_n - L| >= (1 + o(1)) D rho/log n with probability"
        " 1/e, at a fixed theta. Theorem C at its best cut of the dual variable is (2 + o(1)) K"
        " rho/log n, K the bound of the loss, D up to 4 beta B <= K.",
        "No lower bound on the dual variable nor on the probabilities of the atoms.",
        "Samples by binomial draws, n = 1e2 to 1e15, their values by the exact dual; both sides at"
        " n = 1e300 against their limits.",
        "A share of samples below 1/e, or a limit off. A constant 1.1, or the power 0.9 of log n,"
        " is refuted.",
        deviation_logarithmic,
        Kind.DERIVED,
    ),
)
