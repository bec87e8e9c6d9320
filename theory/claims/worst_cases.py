"""Claims on worst-case distributions: the KL tilt, Wasserstein duality, and what the algorithms put
in their place.

Section 6 and Appendices D to F, arXiv:2502.01930, their released code, and the chi-squared dual of
arXiv:2509.19104.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch

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
    rate_equal,
)
from theory.claims.toy_model import gradient_norms
from theory.collapse import collapse_radius
from theory.duals import kl_ball_dual, transport_dual
from theory.estimators import kldpo, kldpo_tilt
from theory.functionals import kl_tilt, tilt_weights
from theory.losses import dpo_loss
from theory.policy import Array
from theory.sets.kl import KL
from theory.solvers.adversary import WorstCase, free, gradient_step, reweighted
from theory.worlds import FiniteWorld, random_world

BETAS = (0.03, 0.1, 0.3, 1.0, 3.0)


def _worst(losses: Array, p: Array, rho: float) -> WorstCase:
    """The worst case of the KL ball at any losses."""
    return reweighted("kl", kl_ball_dual, losses, p, rho)


def kl_worst_case_is_tilt(
    profile: str, seed: int, *, sharpness: float = 1.0, threshold: float = 1.0
) -> Finding:
    """Claim 8: q_i ∝ p_i exp(sharpness l_i / lam*); on a sample, lam* = 0 iff rho >= threshold log
    n."""
    from theory.twins import worst_cases as worst_programs  # cvxpy is slow to import

    value_error, spent_error, example = 0.0, 0.0, ""
    weights, duals = list[Row](), list[Row]()
    for index, (world, theta) in enumerate(_settings(seed, pick(profile, 3, 15, 100))):
        losses, p = _losses(world, theta), world.probability
        for rho in (0.01, 0.1, 0.5):
            exact, (found, program) = (
                _worst(losses, p, rho),
                worst_programs.reweighting("kl", losses, p, rho),
            )
            if index == 0:
                weights += curve(losses, found / p, f"rho = {rho:g}")
            if exact.dual == 0:  # the ball holds the point masses on the largest loss
                continue
            q = tilt_weights(
                torch.from_numpy(losses), exact.dual / sharpness, torch.from_numpy(p)
            ).numpy()
            spread = float(np.ptp(losses))
            if abs(q @ losses - program) / spread > value_error:
                value_error = abs(float(q @ losses) - program) / spread
                example = (
                    f"losses {losses.round(3).tolist()}, rho={rho}: tilt {q @ losses:.6g}, program"
                    f" {program:.6g}"
                )
            spent_error = max(spent_error, abs(float(np.sum(q * np.log(q / p))) / rho - 1))
    wrong, cases, odd = 0, 0, ""
    rng = np.random.default_rng(seed)
    for n in (2, 5, 20, 100):
        losses = np.sort(rng.exponential(size=n))[None]
        for factor in (0.5, 0.9, 0.99, 1 - 1e-3, 1 + 1e-9, 1.01, 1.1, 2.0):
            rho = factor * math.log(n)
            lam = kl_ball_dual(
                torch.from_numpy(losses),
                torch.full((1, n), 1 / n, dtype=torch.float64),
                _number(rho),
            ).dual.item()
            cases += 1
            duals += curve([factor], [lam], f"n = {n}")
            if (lam == 0) != (factor >= threshold):
                wrong, odd = wrong + 1, f"n={n}, rho={factor:g} log n: lam* = {lam:.3g}"
    lines = [
        equality(
            "expected loss of the tilt against a convex program, relative to the range of the"
            " losses",
            value_error,
            1e-5,
            example,
        ),
        equality("KL of the tilt relative to the radius", spent_error, 1e-7),
        equality(
            f"cases of {cases} where lam* = 0 and rho >= {threshold:g} log n disagree",
            wrong,
            0,
            odd,
        ),
    ]
    return conclude(
        f"tilt and program agree to {value_error:.0e}; lam* = 0 from log n on in {cases - wrong} of"
        f" {cases} cases",
        lines,
        {
            "worst-case weights of the program, one world": panel(
                weights, "loss (nats)", "q / p", log="y"
            ),
            "lambda* on samples of n": panel(duals, "rho / log n", "lambda* (nats)"),
        },
    )


def tilt_normaliser(profile: str, seed: int, *, factor: float = 1.0) -> Finding:
    """Prop. 4: mu + lam = lam log E exp(l/lam) >= factor E l, so that p exp((l - E l)/lam) >= q,
    and divided by its mass it is q."""
    lowest, least_ratio, shape, rows = math.inf, math.inf, 0.0, list[Row]()
    example = ""
    for world, theta in _settings(seed, pick(profile, 10, 60, 400)):
        losses, p = _losses(world, theta), world.probability
        mean = float(p @ losses)
        for rho in (0.01, 0.1, 0.3):
            exact = _worst(losses, p, rho)
            if exact.dual == 0 or exact.weights is None:
                continue
            normaliser = kl_tilt(torch.from_numpy(losses), exact.dual, torch.from_numpy(p)).item()
            if normaliser / (factor * mean) < lowest:
                lowest = normaliser / (factor * mean)
                example = (
                    f"losses {losses.round(3).tolist()}: mu + lam = {normaliser:.6g}, mean"
                    f" {mean:.6g}"
                )
            kernel = p * np.exp((losses - mean) / exact.dual)
            least_ratio = min(least_ratio, float((kernel / exact.weights).min()))
            shape = max(shape, float(np.abs(kernel / kernel.sum() - exact.weights).max()))
            rows.append(
                {
                    "beta": world.beta,
                    "series": f"rho = {rho:g}",
                    "x": exact.dual,
                    "y": float(kernel.sum()),
                }
            )
    masses = np.array([row["y"] for row in rows])
    lines = [
        inequality(f"mu + lam >= {factor:g} E l", lowest, example, loose=math.inf),
        inequality(
            "kernel p exp((l - E l)/lam) >= the worst case, atom by atom",
            least_ratio,
            loose=math.inf,
        ),
        equality("the kernel divided by its mass is the worst case", shape, 1e-9),
    ]
    figure = (
        f"mass of the kernel {np.median(masses):.3f} in the median, {masses.max():.2f} at most;"
        " divided by it, the tilt exactly"
    )
    how = {"log": "x", "kind": "points", "guide": "y = 1"}
    return conclude(
        figure, lines, {"mass of the kernel": panel(rows, "tau = lambda* (nats)", "mass", **how)}
    )


def wasserstein_duality(profile: str, seed: int, *, exponent: float = 1.0) -> Finding:
    """Claim 9: sup over plans = min over eta of eta rho^(p exponent) + E max_z' [l(z') - eta d^p];
    finite Z and free features."""
    from theory.twins import worst_cases as worst_programs  # cvxpy is slow to import

    finite, example, below, above = 0.0, "", -math.inf, -math.inf
    rows = list[Row]()
    for world, theta in _settings(seed, pick(profile, 3, 10, 60)):
        losses, p = _losses(world, theta), world.probability
        distance, mean = world.distance(), float(p @ losses)
        margin, b = world.beta * world.u @ theta, world.beta * float(np.linalg.norm(theta))
        for power in (1, 2):
            for rho in (0.05, 0.3):
                primal = worst_programs.wasserstein_worst_case(losses, p, distance, power, rho)[1]
                cost, budget = torch.from_numpy(distance**power), _number(rho ** (power * exponent))
                dual = transport_dual(
                    torch.from_numpy(losses)[None], torch.from_numpy(p)[None], cost, budget
                ).value.item()
                if abs(dual - primal) / primal > finite:
                    finite = abs(dual - primal) / primal
                    example = (
                        f"{world.beta=}, theta={theta.round(3)}, p={power}, rho={rho}: plan"
                        f" {primal:.6g}, dual {dual:.6g}"
                    )
                rows += curve([dual - mean], [primal - mean], f"W{power}, finite Z")
                dual = free(
                    world.u, p, theta, beta=world.beta, power=power, radius=rho**exponent
                ).value
                reach = (
                    1e4 * rho
                    if power == 1
                    else 3 * rho / math.sqrt(float(p @ (1 / (1 + np.exp(margin))) ** 2))
                )
                grid = (
                    np.append(np.linspace(0, 2 * rho, 20), reach)
                    if power == 1
                    else np.linspace(0, reach, 150)
                )
                plan = worst_programs.free_moves(margin, p, b, rho, power, grid)
                above = max(above, plan / dual - 1)
                below = max(below, 1 - plan / dual)
                rows += curve([dual - mean], [plan - mean], f"W{power}, free features")
    lines = [
        equality(
            "finite Z: linear program over plans against the dual, relative", finite, 1e-7, example
        ),
        inequality(
            "free features: the dual is above every plan on a grid of moves",
            1 / (1 + above),
            loose=math.inf,
            slack=1e-6,
        ),
        equality("free features: a plan on the grid comes near the dual, relative", below, 1e-3),
    ]
    figure = (
        f"plans and duals agree to {finite:.0e} (finite Z) and {below:.0e} (free features, on a"
        " grid)"
    )
    how = {"log": "xy", "kind": "points", "guide": "y = x"}
    title = "what the ball adds to the mean loss"
    return conclude(figure, lines, {title: panel(rows, "dual (nats)", "best plan (nats)", **how)})


def gradient_norm_approximates_w2(
    profile: str, seed: int, *, denominator: float = 8.0, order: float = 2.0
) -> Finding:
    """Claim 10: E l + rho G <= sup <= E l + rho G + b² rho² / denominator, with an error of the
    given order in rho."""
    from theory.twins.adversary import free_quadratic_worst_case  # cvxpy is slow to import

    low, tight, slopes, rows = math.inf, math.inf, list[float](), list[Row]()
    low_example = high_example = ""
    radii = np.array([1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0])
    for world, theta in _settings(seed, pick(profile, 5, 30, 200)):
        p, b = world.probability, world.beta * float(np.linalg.norm(theta))
        margin = world.beta * world.u @ theta
        errors = []
        for rho in radii:
            value = gradient_step(world.u, p, theta, beta=world.beta, radius=rho)
            exact = free_quadratic_worst_case(margin, p, b, rho)[1]
            case = (
                f"beta={world.beta}, |w|={np.linalg.norm(theta):.3g}, rho={rho:g}: sup {exact:.8g},"
                f" E l + rho G {value.value:.8g}"
            )
            if exact / value.value < low:
                low, low_example = exact / value.value, case
            error = exact - value.value
            if error > 1e-8:  # the program has more than eleven digits
                ratio = b**2 * rho**2 / denominator / error
                values = {"exact": exact, "gradient_norm": value.value, "achieved": value.expected}
                rows.append(
                    {"series": f"beta = {world.beta:g}", "x": float(rho), "y": float(1 / ratio)}
                    | values
                )
                if ratio < tight:
                    tight, high_example = ratio, case
            errors.append(error)
        small = np.array(errors)[:4]
        if (small > 1e-8).all():
            slopes.append(float(np.polyfit(np.log(radii[:4]), np.log(small), 1)[0]))
    spread = (min(slopes), max(slopes)) if slopes else (-math.inf, math.inf)
    lines = [
        inequality("sup >= E l + rho G", low, low_example, loose=math.inf),
        inequality(
            f"b² rho²/{denominator:g} >= sup - (E l + rho G)", tight, high_example, slack=1e-3
        ),
        rate_equal(
            "order in rho of the error, rho from 1e-3 to 3e-2",
            float(np.mean(slopes or [math.nan])),
            *_widen(spread, 0.02),
            order,
            width=0.3,
        ),
    ]
    worst = 100 * max(row["exact"] / row["gradient_norm"] - 1 for row in rows)
    figure = (
        f"error of order rho^{np.mean(slopes or [math.nan]):.2f}, at most {worst:.1f} % at rho <="
        f" 1; bound/error >= {tight:.3f}"
    )
    table = panel(rows, "rho", "error / bound", log="x", kind="points", guide="y = 1")
    return conclude(figure, lines, {f"error over (beta ||w|| rho)²/{denominator:g}": table})


def dropped_square_root(
    profile: str,
    seed: int,
    *,
    betas: tuple[float, ...] | None = None,
    embeddings: tuple[float, ...] | None = None,
    steps: int | None = None,
) -> Finding:
    """Claim 11: the squared penalty E ||grad l||² is above the norm (E ||grad l||²)^(1/2), true iff
    the former is at least 1, for the embedding gradients of a small language model.

    embeddings: their initial standard deviation. steps: of DPO; 0 looks at the reference model.
    """
    betas = betas or pick(profile, (0.1, 1.0), BETAS, (*BETAS, 10.0))
    embeddings = embeddings or pick(profile, (0.02, 1.0), (0.02, 0.2, 1.0), (0.02, 0.2, 1.0))
    steps = pick(profile, 8, 16, 100) if steps is None else steps
    first, later, lowest, hand = list[Row](), dict[str, list[Row]](), math.inf, ""
    below = 0
    for embedding in embeddings:
        found = gradient_norms(seed, embedding=embedding, betas=betas, steps=steps)
        name = f"embeddings of size {embedding:g}"
        first += curve(found, [norms[0] for norms in found.values()], name)
        for beta, norms in found.items():
            later.setdefault(name, []).extend(curve(range(steps + 1), norms, f"beta = {beta:g}"))
            below += min(norms) < 1
            if min(norms) < lowest:
                lowest = min(norms)
                hand = (
                    f"{name}, beta = {beta:g}, seed {seed}, after {int(np.argmin(norms))} steps of"
                    f" DPO: (E ||g||²)^(1/2) = {lowest:.4g}, its square {lowest**2:.4g} is less"
                )
    lines = [inequality("E ||grad l||² >= (E ||grad l||²)^(1/2)", lowest, hand, loose=math.inf)]
    start = [row["y"] for row in first if row["x"] == betas[0]]
    figure = (
        f"fails in {below} of {len(betas) * len(embeddings)} runs; norm at beta = {betas[0]:g}"
        f" {min(start):.2g} to {max(start):.2g} at the reference, by the size of the embeddings; in"
        f" proportion to beta there, and down to {lowest:.2g} as the pairs are fitted"
    )
    norm = "(E ||grad l||²)^(1/2)"
    tables = {
        "at the reference model": panel(first, "beta", norm, log="xy", guide="y = 1"),
        **{
            name: panel(rows, "steps of DPO", norm, log="y", guide="y = 1")
            for name, rows in later.items()
        },
    }
    return conclude(figure, lines, tables)


def temperature_radius(
    profile: str, seed: int, *, direction: float = -1.0, end: float = 1.0
) -> Finding:
    """Claim 12: tau = lam*(rho) falls strictly up to rho = -end log p(largest loss), is 0 from
    there on, and is invertible."""
    trip, wrong, rises, points, same, example = 0.0, 0, 0, 0, 0.0, ""
    drift, rows = list[float](), list[Row]()
    for index, (world, theta) in enumerate(_settings(seed, pick(profile, 4, 20, 150))):
        losses, p = (
            torch.from_numpy(_losses(world, theta))[None],
            torch.from_numpy(world.probability)[None],
        )
        limit = -end * math.log(p[0, losses[0] == losses.max()].sum().item())
        inside = torch.logspace(-5, math.log10(0.98), 25, dtype=torch.float64) * limit
        tau = kl_ball_dual(losses.expand(25, -1), p.expand(25, -1), inside).dual
        rises += int((direction * tau.diff() <= 0).sum())
        points += 24
        if index < len(BETAS):
            rows += curve(inside / limit, tau, f"beta = {world.beta:g}")
        for rho, temperature in zip(inside.tolist(), tau.tolist(), strict=True):
            if temperature > 0:
                q = tilt_weights(losses[0], temperature, p[0])
                trip = max(
                    trip,
                    abs((q * torch.where(q > 0, (q / p[0]).log(), 0.0)).sum().item() / rho - 1),
                )
        beyond = torch.tensor([1.0, 1.5, 3.0], dtype=torch.float64) * limit * (1 + 1e-12)
        outside = kl_ball_dual(losses.expand(3, -1), p.expand(3, -1), beyond).dual
        if bool((tau == 0).any()) or bool((outside != 0).any()):
            wrong, example = (
                wrong + 1,
                (
                    f"beta={world.beta}, theta={theta.round(3)}: lam* {outside.tolist()} from rho ="
                    f" {limit:.4g}"
                ),
            )
        # the tilted estimator at the robust estimator's own dual variable is the robust estimator
        common = {"beta": world.beta, "bound": world.bound}
        radius = 0.3 * collapse_radius(world.u, KL(), world.probability).item()
        robust = kldpo(world.u, world.probability, radius=radius, **common)
        if robust.dual is not None:
            tilted = kldpo_tilt(world.u, world.probability, temperature=robust.dual, **common)
            same = max(same, (tilted.theta - robust.theta).norm().item() / world.bound)
            at_half = torch.from_numpy(_losses(world, robust.theta.numpy() / 2))
            q = tilt_weights(at_half, robust.dual.item(), p[0])
            drift.append(radius / max((q * (q / p[0]).log()).sum().item(), 1e-300))
    lines = [
        equality(
            f"steps of {points} along rho where tau does not go"
            f" {'up' if direction > 0 else 'down'}",
            rises,
            0,
        ),
        equality("KL of the tilt at tau(rho), relative to rho", trip, 1e-8),
        equality(
            "settings where tau is 0 before, or positive from, the radius of the largest loss on",
            wrong,
            0,
            example,
        ),
        equality("robust and tilted estimators at tau = lam*, distance relative to B", same, 1e-7),
    ]
    figure = (
        f"rho -> tau -> rho to {trip:.0e}; at half the robust theta the same tau is a ball"
        f" {np.median(drift):.1f} times smaller"
    )
    table = panel(rows, "rho / radius of the largest loss", "tau = lambda* (nats)", log="xy")
    return conclude(figure, lines, {"temperature of a radius, one world each": table})


def released_kldpo_weights(profile: str, seed: int, *, clamp: float = 10.0) -> Finding:
    """The released weights, not normalised and clamped at `clamp`: the gradient is that of the tilt
    up to a factor as long as no weight reaches the clamp, and no longer."""
    rows, scale = list[Row](), list[float]()
    below, bent = 0.0, math.inf
    examples = {"below": "", "above": ""}
    for world, theta in _settings(seed, pick(profile, 20, 60, 400), betas=(0.3, 1.0, 3.0)):
        p = torch.from_numpy(world.probability)
        for tau in (0.1, 0.3, 1.0):
            released, losses = _gradient(world, theta, tau, released=True)
            tilted, _ = _gradient(world, theta, tau, released=False)
            largest = float(losses.max() - p.numpy() @ losses) / tau
            cosine = float(released @ tilted / (np.linalg.norm(released) * np.linalg.norm(tilted)))
            rows.append({"beta": world.beta, "series": f"tau = {tau:g}", "x": largest, "y": cosine})
            scale.append(float(np.linalg.norm(released) / np.linalg.norm(tilted)))
            case = (
                f"beta={world.beta}, theta={theta.round(3)}, tau={tau}: largest weight"
                f" {math.exp(min(largest, 700)):.4g}, cosine {cosine:.8f}"
            )
            if largest <= math.log(clamp) and 1 - cosine >= below:
                below, examples["below"] = 1 - cosine, case
            if largest > math.log(clamp) and 1 - cosine <= bent:
                bent, examples["above"] = 1 - cosine, case
    # ten pairs with losses 6, 4 and eight of almost 0: the two that count get the same weight 10
    # instead of 148 and 20
    u = torch.tensor([[-6.0, 0.0], [0.0, -4.0], *[[20.0, 20.0]] * 8], dtype=torch.float64)
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    (hand_released,) = torch.autograd.grad(kl_tilt(dpo_loss(u @ w), 1.0, released=True), w)
    (hand_tilted,) = torch.autograd.grad(kl_tilt(dpo_loss(u @ w), 1.0), w)
    by_hand = torch.nn.functional.cosine_similarity(hand_released, hand_tilted, dim=0).item()
    # slopes of the losses are sigma(6) and sigma(4), the losses log(1 + e^6) and log(1 + e^4), so
    # that the tilt's weights are as 1 + e^6 to 1 + e^4
    slopes = np.array([6 / (1 + math.exp(-6)), 4 / (1 + math.exp(-4))])
    tilt = slopes * np.array([1 + math.exp(6), 1 + math.exp(4)])
    expected = slopes @ tilt / (np.linalg.norm(slopes) * np.linalg.norm(tilt))
    lines = [
        equality(
            f"1 - cosine of released and tilted gradient where no weight is above {clamp:g}",
            below,
            1e-12,
            examples["below"],
        ),
        inequality(
            f"1 - cosine where a weight is above {clamp:g}, least, over rounding (1e-12)",
            bent / 1e-12,
            examples["above"],
            loose=math.inf,
        ),
        equality(
            "ten pairs with losses 6, 4 and 0, tau = 1: cosine of (60, 40) and (6 e², 4), 0.882",
            abs(by_hand - expected),
            1e-6,
        ),
    ]
    clamped = [row["y"] for row in rows if row["x"] > math.log(clamp)]
    least = min(clamped, default=1.0)
    figure = (
        f"clamped in {len(clamped)} of {len(rows)} settings; cosine down to {least:.3f},"
        f" {by_hand:.3f} in ten pairs by hand; "
    )
    figure += f"gradient {min(scale):.2f} to {max(scale):.1f} times as long"
    how = {"log": "x", "kind": "points", "guide": "y = 1"}
    table = panel(rows, "log of the largest weight; the clamp is at 2.3", "cosine", **how)
    return conclude(figure, lines, {"released and tilted gradient": table})


def chi2_rebel_dual(profile: str, seed: int, *, paper: float = 1.0, code: float = 0.0) -> Finding:
    """sup {E_q l : sum (q-p)²/p <= 2 rho} = min_eta (paper + 2 rho)^(1/2) (E (l - eta)_+²)^(1/2) +
    eta; with `code` in the place of 1 the right side has no minimum."""
    from theory.twins import worst_cases as worst_programs  # cvxpy is slow to import

    error, example, fall, rows = 0.0, "", math.inf, list[Row]()
    least = ""
    depths = np.linspace(0, 20, 81)
    for index, (world, theta) in enumerate(_settings(seed, pick(profile, 3, 15, 100))):
        losses, p = _losses(world, theta), world.probability
        spread = float(np.ptp(losses))
        for rho in (0.01, 0.1, 0.4):
            truth = worst_programs.reweighting("chi2", losses, p, 2 * rho)[1]
            if index == 0 and rho == 0.1:
                for offset in (paper, code):
                    factor = math.sqrt(offset + 2 * rho)
                    sides = np.array([_chi2_side(losses, p, factor, depth) for depth in depths])
                    rows += curve(depths, (sides - truth) / spread, f"c² = {offset:g} + 2 rho")
            dual = _chi2_dual(losses, p, math.sqrt(paper + 2 * rho))
            if abs(dual - truth) / spread > error:
                error = abs(dual - truth) / spread
                example = f"rho={rho}: dual {dual:.6g}, worst case {truth:.6g}"
            # c sqrt(E (l - eta)_+²) + eta ~ (c - 1) |eta|: at a depth of a million ranges
            below = (truth - _chi2_side(losses, p, math.sqrt(code + 2 * rho), 1e6)) / spread
            if below < fall:
                fall = below
                least = f"rho={rho}, c² = {code:g} + 2 rho: {below:.4g} ranges below the worst case"
    lines = [
        equality(
            f"min over eta with c² = {paper:g} + 2 rho against a convex program, in ranges of the"
            " losses",
            error,
            1e-5,
            example,
        ),
        inequality(
            f"c² = {code:g} + 2 rho: how far the right side is below the worst case at a depth of"
            " a million ranges, in tens of thousands of them",
            fall / 1e4,
            least,
            loose=math.inf,
        ),
    ]
    figure = (
        f"(1 + 2 rho)^(1/2) is exact to {error:.0e}; with the code's factor the right side is at"
        f" least {fall:.0e} ranges of the losses below the worst case, and falls on"
    )
    axes = ("(largest loss - eta) / range of the losses", "right side less worst case / range")
    return conclude(
        figure, lines, {"right side of the dual, rho = 0.1": panel(rows, *axes, guide="y = 0")}
    )


# -------------------------------------------------------------------------------------------- parts
def _settings(
    seed: int, count: int, betas: tuple[float, ...] = BETAS
) -> Iterator[tuple[FiniteWorld, Array]]:
    """Small worlds with policies of any size up to B = 2; theta_ref = 0, so that w = theta."""
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        beta, d = betas[index % len(betas)], int(rng.integers(2, 4))
        world = random_world(
            int(rng.integers(2**31)), contexts=4, actions=2, dimension=d, beta=beta, bound=2.0
        )
        direction = rng.standard_normal(d)
        yield world, 2.0 * rng.uniform(0.1, 1.0) * direction / np.linalg.norm(direction)


def _losses(world: FiniteWorld, theta: Array) -> Array:
    return np.logaddexp(0, -world.beta * world.u @ (theta - world.theta_ref))


def _number(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


def _widen(interval: tuple[float, float], by: float) -> tuple[float, float]:
    return interval[0] - by, interval[1] + by


def _gradient(
    world: FiniteWorld, theta: Array, tau: float, *, released: bool
) -> tuple[Array, Array]:
    """d/dw of the functional, by automatic differentiation, and the losses."""
    w = torch.from_numpy(theta - world.theta_ref).requires_grad_()
    losses = dpo_loss(world.beta * torch.from_numpy(world.u) @ w)
    (gradient,) = torch.autograd.grad(
        kl_tilt(losses, tau, torch.from_numpy(world.probability), released=released), w
    )
    return gradient.numpy(), losses.detach().numpy()


def _chi2_side(losses: Array, p: Array, factor: float, depth: float) -> float:
    """factor (E (l - eta)_+²)^(1/2) + eta, eta = largest loss - depth times the range of the
    losses."""
    eta = float(losses.max()) - depth * float(np.ptp(losses))
    return factor * math.sqrt(float(p @ np.maximum(losses - eta, 0) ** 2)) + eta


def _chi2_dual(losses: Array, p: Array, factor: float) -> float:
    """min over eta of the right side by ternary search, eta down to -1e9 ranges below the
    losses."""

    def value(log_depth: float) -> float:
        return _chi2_side(losses, p, factor, math.exp(log_depth))

    low, high = -20.0, math.log(1e9)
    for _ in range(200):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, b) if value(a) <= value(b) else (a, high)
    return value((low + high) / 2)


_WORLDS = (
    "random finite worlds (four contexts, two actions, d = 2 or 3, beta from 0.03 to 3) with random"
    " policies"
)

CLAIMS = (
    Claim(
        "kl-worst-case-is-tilt",
        "arXiv:2502.01930, Prop. 2 and Thm. 3",
        "the KL worst case is q ∝ p exp(l/lam*)",
        "sup {E_Q l : KL(Q||P_n) <= rho} is attained by the exponential tilt of P_n at the"
        " temperature lam*, the optimum of the dual; on a sample with a unique largest loss lam* ="
        " 0 iff rho >= log n, and the worst case is then that loss.",
        "Finitely many atoms; losses that are not all equal.",
        f"The tilt at lam* against a convex program over the weights (Clarabel), in {_WORLDS};"
        " radii around log n on samples.",
        "Another expected loss or KL than the program's, or lam* > 0 at a radius above log n, or 0"
        " below.",
        kl_worst_case_is_tilt,
    ),
    Claim(
        "tilt-normaliser",
        "arXiv:2502.01930, Prop. 4 and Algorithm 2",
        "the normaliser satisfies -mu - lam <= -E l; the kernel exp((l - E l)/tau) p",
        "mu + lam = lam log E exp(l/lam) >= E l (Jensen), so that the kernel p exp((l - E l)/lam)"
        " is above the worst case at every atom. Algorithm 2 takes weights in proportion to it:"
        " divided by its mass it is the worst case. The mass itself is above 1 (two pairs with"
        " losses 0 and 2, lam = 1: cosh 1 = 1.543), so that the kernel without the division, as"
        " the released code has it, is no distribution (see released-kldpo-weights).",
        "lam > 0.",
        f"Both sides and the mass of the kernel in {_WORLDS}, at the dual optima of three radii.",
        "A normaliser below the mean loss (with 1.1 times the mean loss there is one), or a kernel"
        " that is not the worst case after division by its mass.",
        tilt_normaliser,
    ),
    Claim(
        "wasserstein-duality",
        "arXiv:2502.01930, Lemma 1",
        "sup over the W_p ball = min over eta of eta rho^p + E max [l - eta d^p]",
        "Strong duality of the worst expected loss over a Wasserstein ball, on finitely many atoms"
        " and with free features.",
        "A finite metric, or the logistic loss on R^d with fixed labels; p = 1, 2.",
        "The dual against a linear program over plans (HiGHS); with free features against a linear"
        f" program over moves on a grid, which can only fall short; in {_WORLDS}.",
        "A plan above the dual, or a dual that no plan comes near.",
        wasserstein_duality,
    ),
    Claim(
        "gradient-norm-approximates-w2",
        "arXiv:2502.01930, Section 6 (from Gao, Chen, Kleywegt); bounds derived",
        "E l + rho G <= sup over the W2 ball <= E l + rho G + beta²||w||² rho²/8",
        "With free features and fixed labels the W2 worst case is E l + rho G up to an error"
        " between 0 and beta²||w||² rho²/8, of second order in rho; G = (E ||grad_x l||²)^(1/2).",
        "Log-linear policies; gradients with respect to the feature difference x.",
        f"Algorithm 1 against the exact dual at seven radii from 1e-3 to 1, in {_WORLDS}.",
        "A worst case outside the two bounds, or an error of another order.",
        gradient_norm_approximates_w2,
    ),
    Claim(
        "dropped-square-root",
        "arXiv:2502.01930, App. F",
        "the square root is dropped 'by sqrt(x) <= x for x >= 1'",
        "The implemented penalty E ||grad l||² is an upper bound of (E ||grad l||²)^(1/2). That"
        " needs E ||grad l||² >= 1.",
        "Gradients with respect to the embedding output of the policy, of both responses of a pair;"
        " the reference model's log-probabilities are constants.",
        "A causal transformer of one block (13,000 weights), trained on texts of 16 tokens of a"
        " Markov chain and then by DPO; embeddings that start at the size of GPT-2's (0.02), ten"
        " and fifty times that; beta from 0.03 to 3. The norm before every step.",
        "Norms of at least 1 at every step of every run: so it is at the reference model above a"
        " beta that depends on the embeddings.",
        dropped_square_root,
    ),
    Claim(
        "temperature-radius",
        "derived, for arXiv:2502.01930, Algorithm 2",
        "temperature and radius correspond one to one through the dual optimum",
        "At fixed losses rho -> lam*(rho) falls strictly until rho = -log p(largest loss) and is 0"
        " from there on; the tilt at lam* has KL rho. At the robust estimator's own lam* the tilted"
        " estimator is the robust one. At another theta the same tau belongs to another radius.",
        "Losses that are not all equal; rho below the degenerate radius.",
        "Radii on a logarithmic grid, there and back; both estimators at one radius; in"
        f" {_WORLDS}.",
        "A step where tau does not fall, a radius not recovered, or another estimator.",
        temperature_radius,
        Kind.DERIVED,
    ),
    Claim(
        "released-kldpo-weights",
        "derived; released code of arXiv:2502.01930 against its Algorithm 2",
        "released KLDPO weights: the tilt's gradient up to a factor until the clamp at 10, not"
        " beyond",
        "The released code has the weights exp((l - mean)/tau), clamped at 10 and not normalised."
        " While no weight reaches 10, the gradient of its loss is that of the tilted risk up to a"
        " factor, which the learning rate absorbs. As soon as one does, it points elsewhere.",
        "One batch holding all pairs; no gradient through the weights in the released version.",
        "Both gradients by automatic differentiation in random worlds and policies, tau = 0.1, 0.3,"
        " 1; ten pairs by hand.",
        "Gradients that are not parallel where no weight is above 10, or parallel where one is."
        " With a clamp at 15 or at 7 in the statement it fails.",
        released_kldpo_weights,
        Kind.DERIVED,
    ),
    Claim(
        "chi2-rebel-dual",
        "derived; released code of arXiv:2509.19104v1 against its dual",
        "the chi-squared dual has a minimum with (1 + 2 rho)^(1/2), none with (2 rho)^(1/2)",
        "sup {E_q l : sum (q-p)²/p <= 2 rho} = min over eta of c (E (l - eta)_+²)^(1/2) + eta with"
        " c = (1 + 2 rho)^(1/2), as the paper has it (Ben-Tal et al., 2013). The released code has"
        " c = (2 rho)^(1/2), for which the right side falls without end as eta does when rho < 1/2:"
        " one pair of loss 1 and rho = 1/8 give (1 - eta)/2 + eta = (1 + eta)/2.",
        "Finitely many atoms, rho < 1/2.",
        "Both right sides, eta down to 1e9 and at 1e6 ranges below the losses, against a convex"
        f" program; in {_WORLDS}.",
        "A minimum that is not the worst case (with 0.9 + 2 rho or 1.1 + 2 rho it is not), or a"
        " right side with the code's factor that does not fall (with 0.25 + 2 rho it does not).",
        chi2_rebel_dual,
        Kind.DERIVED,
    ),
)
