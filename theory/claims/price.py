"""A claim of our own on what a radius that shrinks with n costs. Theorem R of
docs/theorems/price.md."""

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import chi2

from theory.claims.ledger import (
    Claim,
    Finding,
    Kind,
    Measurement,
    Row,
    conclude,
    curve,
    equality,
    panel,
    pick,
    rate_equal,
)
from theory.claims.predictions import ratio_of_means
from theory.claims.problems import NAMES, RobustProblem, worlds
from theory.fitting import dpo
from theory.laws.price import coin_error, coin_gain, price_of_radius
from theory.policy import Array
from theory.rates import rate
from theory.shift import ratio_interval

_LEVEL = 0.999
_CHANCE = 0.75  # P(y = 1) of the exact example


def price_of_coverage(
    profile: str,
    seed: int,
    *,
    constant: float = 1.0,
    exponents: tuple[float, float] = (-0.25, -0.5),
) -> Finding:
    """Theorem R: the radius multiplies the mean squared error by 1 + constant strength² ||b||²/tr
    V; exponents: of the error of W2 with free features under radii that cover P and theta*."""
    lines, tables = list[Measurement](), dict[str, list[Row]]()
    factors = list[tuple[float, float]]()
    sizes = pick(profile, (10**8,), (10**4, 10**6, 10**8), (10**4, 10**5, 10**6, 10**7, 10**8))
    replicates = pick(profile, 1000, 2000, 20_000)
    for index, world in enumerate(worlds(seed, pick(profile, 1, 3, 4))):
        assert world.theta_star is not None
        distinct = np.unique(np.round(np.c_[world.psi1, world.psi2, world.label], 12), axis=0)
        degrees = {"P": len(distinct) - 1, "theta*": world.dimension}
        for n in sizes:
            p = world.sample(n, np.random.SeedSequence([seed, index, n]).spawn(replicates)).p
            plain = _squares(dpo(world.u, p, **world.problem).theta.numpy(), world.theta_star)
            for ball in ("kl", "w1-free", "w2-free"):
                problem = RobustProblem(ball, world)
                price = price_of_radius(
                    world.u,
                    world.probability,
                    world.theta_star,
                    ball,
                    beta=world.beta,
                    theta_ref=world.theta_ref,
                )
                bias2 = float(price.bias @ price.bias)
                if ball == "kl":
                    radii = {
                        f"rho = chi2({df}, .95)/2n, covers {what}": float(chi2.ppf(0.95, df))
                        / (2 * n)
                        for what, df in degrees.items()
                    }
                    factors.append(
                        (
                            price.coverage_factor(degrees["P"]),
                            price.coverage_factor(world.dimension),
                        )
                    )
                else:  # a bias as large as the root of tr V
                    size = math.sqrt(float(np.trace(price.variance)) / bias2 / n)
                    radii = {"rho = c/sqrt(n)": size}
                for what, radius in radii.items():
                    robust = _squares(problem.fit(p, radius).theta.numpy(), world.theta_star)
                    name = f"{NAMES[ball]}, {what}, world {index + 1}"
                    predicted = 1 + constant * (price.factor(n, radius) - 1)
                    rows = tables.setdefault(NAMES[ball], [])
                    series = f"{what.rsplit(', ', 1)[-1]}, world {index + 1}"
                    ratio, low, high = ratio_interval(robust, plain)
                    (point,) = curve([n], [ratio], series)
                    rows.append(point | {"low": low, "high": high})
                    if n >= 10**8:
                        what = f"{name}, n = {n:.0e}: factor"
                        room = 0.02 * predicted
                        lines.append(ratio_of_means(what, robust, plain, predicted, room))
    lines += _schedules(profile, seed, exponents, constant)
    lines += _coin(constant)
    tables = {
        name: panel(rows, "pairs n", "mean squared error over DPO's", log="x")
        for name, rows in tables.items()
    }
    of_p, of_theta = zip(*factors, strict=True)
    return conclude(
        f"KL radius that covers P multiplies the mean squared error by {min(of_p):.2f} to"
        f" {max(of_p):.2f}, one that covers theta* by {min(of_theta):.2f} to {max(of_theta):.2f}",
        lines,
        tables,
    )


def _squares(theta: Array, star: Array) -> Array:
    return np.square(theta - star).sum(1)


def _schedules(
    profile: str, seed: int, exponents: tuple[float, float], constant: float
) -> list[Measurement]:
    """W2 with free features: a radius of the order n^-1/4, as covering P on the atoms takes, and of
    the order n^-1/2, as covering theta* takes."""
    (world,) = worlds(seed, 1)
    problem, sizes = RobustProblem("w2-free", world), (10**8, 10**9, 10**10)
    replicates = pick(profile, 200, 400, 2000)
    assert world.theta_star is not None
    price = price_of_radius(
        world.u,
        world.probability,
        world.theta_star,
        "w2-free",
        beta=world.beta,
        theta_ref=world.theta_ref,
    )
    lines = []
    for power, exponent in zip((-0.25, -0.5), exponents, strict=True):
        radii = [0.005 * problem.edge * (n / sizes[0]) ** power for n in sizes]
        errors = np.array(
            [
                problem.errors(n, radius, world.theta_star, replicates, (seed, n, 5))[0]
                for n, radius in zip(sizes, radii, strict=True)
            ]
        )
        found = rate(np.array(sizes), errors, seed=seed, resamples=4000, level=_LEVEL)
        cover = "P" if power == -0.25 else "theta*"
        lines.append(
            rate_equal(
                f"W2 free, rho ∝ n^{power:g}, the order that covers {cover}: error to theta*",
                found.slope,
                found.low - 0.02,
                found.high + 0.02,
                exponent,
                width=0.15,
            )
        )
        root = float(np.sqrt(np.square(errors[-1]).mean()))
        squared = price.strength(sizes[-1], radii[-1]) ** 2 * float(price.bias @ price.bias)
        expected = math.sqrt((constant * squared + float(np.trace(price.variance))) / sizes[-1])
        lines.append(
            equality(
                f"W2 free, rho ∝ n^{power:g}, n = {sizes[-1]:.0e}: r.m.s. error over prediction,"
                " minus 1",
                abs(root / expected - 1),
                0.1,
                f"measured {root:.3g}, predicted {expected:.3g}",
            )
        )
    return lines


def _coin(constant: float) -> list[Measurement]:
    """The exact error of one pair: the best radius is O(n^-2), and gains O(n^-2)."""
    radius, gain = coin_gain(_CHANCE)
    lines = []
    for n in (1000, 10_000):
        base = coin_error(n, _CHANCE, 0.0)

        def error(log_radius: float, n: int = n) -> float:
            return coin_error(n, _CHANCE, math.exp(log_radius))

        start = math.log(radius / n**2)
        found = minimize_scalar(
            error, bounds=(start - 4, start + 4), method="bounded", options={"maxiter": 40}
        )
        # the whole range of radii: none is better than the one near n^-2
        others = min(error(x) for x in np.linspace(start - 8, math.log(0.1), 40))
        for what, value in (
            ("best radius over (2p - 1)² b²/(2 n²)", math.exp(found.x) * n**2 / radius),
            ("its gain over (2p - 1)² b⁴/n²", (base - found.fun) * n**2 / gain),
        ):
            lines.append(
                equality(
                    f"one pair, P(y = 1) = {_CHANCE}, n = {n}: {what}, minus 1",
                    abs(value / constant - 1),
                    10 / n**0.9,
                    f"{value:.4f}",
                )
            )
        lines.append(
            equality(
                f"one pair, n = {n}: gain of any radius of a grid above that, relative to the error"
                " of DPO",
                max(found.fun - others, 0.0) / base,
                1e-9,
            )
        )
    return lines


CLAIMS = (
    Claim(
        "price-of-coverage",
        "derived; docs/theorems/price.md, Theorem R; cf. arXiv:2509.19104v1",
        "what a radius that covers P, or theta*, costs; and no radius gains to first order",
        "With n rho -> c the KL ball multiplies the mean squared error to theta* by 1 + 2c"
        " ||b||²/tr V, b = H^-1 Cov(G, l)/sd(l), V DPO's variance: covering P on K atoms takes 2c ="
        " chi2_{K-1,.95}, covering theta* chi2_{d,.95}. W1 and W2 with free features and rho ="
        " c/sqrt(n): by 1 + c² ||b||²/tr V, b = H^-1 grad of the penalty. W2 with free features has"
        " n^-1/4 under the radius that covers P, n^-1/2 under the one that covers theta*. The best"
        " KL radius is O(n^-2) and gains O(n^-2) of an error of order n^-1.",
        "Bradley-Terry labels, theta* inside the ball of radius B and away from theta_ref, losses"
        " at theta* not all equal. Finitely many atoms.",
        "Random finite worlds: mean squared errors with and without the ball on the same samples, n"
        " = 1e8; slopes of W2 with free features, n = 1e8 to 1e10; one pair by an exact sum.",
        "A factor off by four standard errors and 2 %, or another slope. A constant 1.2, or"
        " exponents 0.1 off, is refuted.",
        price_of_coverage,
        Kind.DERIVED,
    ),
)
