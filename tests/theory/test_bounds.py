"""Constants and bounds against a second transcription of the paper, and lambda of Assumption 2
against brute force."""

import math

import cvxpy as cp
import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import linprog, minimize_scalar

from tests.jitter import order
from theory.bounds.papers import (
    curvature,
    largest_loss,
    proposition_1,
    regularity_finite,
    regularity_free,
    regularity_kl,
    theorem_1,
    theorem_2,
)

Array = NDArray[np.float64]


def instance(seed: int, n: int = 6, d: int = 2) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    u, p, k = rng.standard_normal((n, d)), rng.dirichlet(2 * np.ones(n)), order(n)
    return u[k], p[k]


def directions(count: int) -> Array:
    angle = np.linspace(0, np.pi, count, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


# ---------------------------------------------------------------------------------------- constants
@pytest.mark.parametrize(
    ("beta", "bound"), [(0.1, 1.0), (1.0, 1.0), (0.5, 4.0), (1.0, 30.0), (2.0, 60.0)]
)
def test_constants(beta: float, bound: float) -> None:
    with mpmath.workdps(500):
        e = mpmath.exp(4 * mpmath.mpf(beta) * mpmath.mpf(bound))
        assert curvature(beta, bound) == pytest.approx(
            float(mpmath.mpf(beta) ** 2 * e / (1 + e) ** 2), rel=1e-12
        )
        assert largest_loss(beta, bound) == pytest.approx(
            float(abs(mpmath.log(1 / (1 + e)))), rel=1e-12
        )


def test_constants_without_overflow() -> None:
    assert largest_loss(10.0, 100.0) == pytest.approx(4000.0)
    assert curvature(10.0, 100.0) == 0.0


def test_the_constants_bound_what_they_should() -> None:
    """|m| <= 4 beta B whatever theta, theta_ref and the features: both in the ball, ||x|| <= 2."""
    beta, bound = 0.7, 1.3
    m = np.linspace(-4 * beta * bound, 4 * beta * bound, 1001)
    assert np.logaddexp(0, -m).max() == pytest.approx(largest_loss(beta, bound))
    assert (beta**2 / (1 + np.exp(m)) / (1 + np.exp(-m))).min() == pytest.approx(
        curvature(beta, bound)
    )


# ----------------------------------------------------------------------------------------- theorems
def test_theorems_against_the_paper() -> None:
    n, d, beta, B, delta, c, lam, low, high = 1000, 5, 0.5, 1.5, 0.05, 0.01, 0.2, 2.0, 9.0
    e = math.exp(4 * beta * B)
    gamma, K = beta**2 * e / (1 + e) ** 2, math.log(1 + e)
    first = math.sqrt(16 * beta**2 * (d + math.log(1 / delta)) / (gamma**2 * n) + 8 * c * B**2)
    assert proposition_1(n, d, beta=beta, bound=B, delta=delta, c=c) == pytest.approx(
        first, rel=1e-12
    )
    square = math.sqrt(8 * K**2 * math.log(2 / delta) / (gamma**2 * lam**2 * n))
    assert theorem_1(n, beta=beta, bound=B, regularity=lam, delta=delta) == pytest.approx(
        math.sqrt(square), rel=1e-12
    )
    square = math.sqrt(
        8 * high**2 * math.exp(2 * K / low) * math.log(2 / delta) / (gamma**2 * lam**2 * n)
    )
    found = theorem_2(
        n, beta=beta, bound=B, regularity=lam, dual_low=low, dual_high=high, delta=delta
    )
    assert found == pytest.approx(math.sqrt(square), rel=1e-12)


def test_rates_of_the_bounds() -> None:
    def slope(bound: object) -> float:
        return math.log(bound(1e8) / bound(1e4)) / math.log(1e4)  # type: ignore[operator]

    common = {"beta": 0.5, "bound": 1.0, "delta": 0.1}
    assert slope(lambda n: proposition_1(n, 3, **common)) == pytest.approx(-1 / 2)
    assert slope(lambda n: theorem_1(n, regularity=0.1, **common)) == pytest.approx(-1 / 4)
    assert slope(
        lambda n: theorem_2(n, regularity=0.1, dual_low=1, dual_high=2, **common)
    ) == pytest.approx(-1 / 4)


def test_bounds_are_infinite_without_regularity_or_dual_floor() -> None:
    common = {"beta": 0.5, "bound": 1.0, "delta": 0.1}
    assert theorem_1(10, regularity=0.0, **common) == math.inf
    assert theorem_2(10, regularity=0.0, dual_low=1, dual_high=2, **common) == math.inf
    assert theorem_2(10, regularity=0.1, dual_low=0.0, dual_high=2, **common) == math.inf
    assert theorem_2(10, regularity=0.1, dual_low=1e-4, dual_high=2, **common) == math.inf


def test_bounds_of_a_very_large_norm() -> None:
    """4 beta B = 4000: gamma underflows, so that the bound says nothing; that is infinity, not a
    crash."""
    assert theorem_1(10, beta=10, bound=100, regularity=0.1, delta=0.1) == math.inf
    assert proposition_1(10, 3, beta=10, bound=100, delta=0.1) == math.inf
    assert (
        theorem_2(10, beta=10, bound=100, regularity=0.1, dual_low=1e4, dual_high=1e4, delta=0.1)
        == math.inf
    )


# --------------------------------------------------------------------------------------- regularity
def tilted_minimum(values: Array, p: Array, radius: float) -> Array:
    """inf {E_q values : KL(q||p) <= radius} for rows of values, by bisection on the tilt; (rows, n)
    -> (rows,)."""
    low, high = np.full(len(values), -30.0), np.full(len(values), 30.0)  # log t
    for _ in range(100):
        t = np.exp((low + high) / 2)[:, None]
        weight = p * np.exp(-t * (values - values.min(1, keepdims=True)))
        q = weight / weight.sum(1, keepdims=True)
        kl = np.sum(np.where(q > 0, q * np.log(np.maximum(q, 1e-300) / p), 0), axis=1)
        low, high = (
            np.where(kl < radius, (low + high) / 2, low),
            np.where(kl < radius, high, (low + high) / 2),
        )
    return (q * values).sum(1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("radius", [0.01, 0.2, 0.6])
def test_regularity_of_the_kl_ball(seed: int, radius: float) -> None:
    x, p = instance(seed)
    truth = tilted_minimum((directions(4000) @ x.T) ** 2, p, radius).min()
    assert regularity_kl(x, p, radius) == pytest.approx(truth, rel=1e-4, abs=1e-6)


@pytest.mark.some(2)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("budget", [0.05, 0.3])
def test_regularity_of_a_transport_ball(seed: int, budget: float) -> None:
    x, p = instance(seed, n=5)
    cost = np.linalg.norm(x[:, None] - x[None], axis=-1)
    rows = np.kron(np.eye(5), np.ones(5))

    def worst(v: Array) -> float:
        found = linprog(
            np.tile((x @ v) ** 2, 5), A_ub=cost.reshape(1, -1), b_ub=[budget], A_eq=rows, b_eq=p
        )
        return float(found.fun)

    coarse = directions(180)
    values = [worst(v) for v in coarse]
    best = int(np.argmin(values))
    angle = np.pi * best / 180 + np.linspace(-np.pi / 180, np.pi / 180, 41)
    truth = min(worst(np.array([np.cos(a), np.sin(a)])) for a in angle)
    assert regularity_finite(x, p, cost, budget) == pytest.approx(truth, rel=1e-3, abs=1e-6)


def test_regularity_in_more_dimensions_is_met_by_no_random_direction() -> None:
    x, p = instance(5, n=12, d=4)
    found = regularity_kl(x, p, 0.3)
    v = np.random.default_rng(0).standard_normal((20_000, 4))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    assert found <= tilted_minimum((v @ x.T) ** 2, p, 0.3).min() + 1e-9


@pytest.mark.parametrize("radius", [0.1, 0.4, 0.8])
def test_regularity_of_free_features_with_squared_costs(radius: float) -> None:
    x, p = instance(1)

    def worst(v: Array) -> float:
        s = cp.Variable(len(p))
        root = np.sqrt(p)
        moved = cp.norm(cp.multiply(root, s - x @ v)) <= radius
        problem = cp.Problem(cp.Minimize(cp.sum_squares(cp.multiply(root, s))), [moved])
        return float(problem.solve(solver=cp.CLARABEL))

    truth = min(worst(v) for v in directions(60))
    found = regularity_free(x, p, radius, 2)
    assert found <= truth + 1e-7
    assert found == pytest.approx(truth, rel=2e-2, abs=2e-3)


def shrunk(size: Array, p: Array, radius: float) -> float:
    """min E s² over E|s - size| <= radius, as a convex program."""
    s = cp.Variable(len(p))
    problem = cp.Problem(cp.Minimize(p @ s**2), [p @ cp.abs(s - size) <= radius])
    return float(problem.solve(solver=cp.CLARABEL))


@pytest.mark.parametrize("radius", [0.05, 0.3, 0.7])
def test_regularity_of_free_features_on_a_line(radius: float) -> None:
    x, p = instance(2, d=1)
    truth = shrunk(x[:, 0], p, radius)
    assert regularity_free(x, p, radius, 1) == pytest.approx(max(truth, 0), rel=1e-5, abs=1e-7)


@pytest.mark.some(1)
@pytest.mark.parametrize("seed", range(3))
def test_regularity_of_free_features_in_the_plane(seed: int) -> None:
    """lambda is the least over all directions, not only over the eigenvectors of E x x'."""
    x, p = instance(seed)

    def at(angle: float) -> float:
        return shrunk(x @ np.array([np.cos(angle), np.sin(angle)]), p, 0.2)

    step = np.pi / 200
    coarse = min(np.arange(200) * step, key=at)
    truth = minimize_scalar(at, bounds=(coarse - step, coarse + step), method="bounded").fun
    assert regularity_free(x, p, 0.2, 1) == pytest.approx(truth, rel=1e-4, abs=1e-6)


def test_regularity_vanishes_with_a_hyperplane_law_in_the_ball() -> None:
    x, p = instance(3)
    least = np.linalg.eigvalsh(np.einsum("k,ki,kj->ij", p, x, x))[0]
    assert regularity_free(x, p, np.sqrt(least) * 0.999, 2) > 0
    assert regularity_free(x, p, np.sqrt(least) * 1.001, 2) == 0
    flat = min(
        p @ np.abs(x @ v) for v in directions(20_000)
    )  # W1 distance to the laws on a hyperplane
    assert regularity_free(x, p, flat * 0.99, 1) > 0
    assert regularity_free(x, p, flat * 1.001, 1) == pytest.approx(0, abs=1e-9)
    one = -np.log(p.max())  # the ball holds a point mass
    assert regularity_kl(x, p, one) == pytest.approx(0, abs=1e-12)
    cost = np.linalg.norm(x[:, None] - x[None], axis=-1)
    assert regularity_finite(x, p, cost, float((cost @ p).min())) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_regularity_falls_with_the_radius(seed: int) -> None:
    x, p = instance(seed, n=8, d=3)
    cost = np.linalg.norm(x[:, None] - x[None], axis=-1)
    plain = np.linalg.eigvalsh(np.einsum("k,ki,kj->ij", p, x, x))[0]
    radii = np.linspace(0, 1, 6)
    for values in (
        [regularity_kl(x, p, r) for r in radii],
        [regularity_finite(x, p, cost, r) for r in radii],
        [regularity_free(x, p, r, 1) for r in radii],
        [regularity_free(x, p, r, 2) for r in radii],
    ):
        assert values[0] == pytest.approx(plain, rel=1e-9)
        assert (np.diff(values) <= 1e-9).all() and min(values) >= 0
