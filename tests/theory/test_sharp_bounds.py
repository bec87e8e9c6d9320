"""The steps of Theorems A and B one by one: exact tails, direct computation, and the convex
programs as the other solver."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from theory.bounds.concentration import bernstein, chernoff, pinelis
from theory.bounds.population import Size, not_stationary, seen_from
from theory.bounds.sharp import (
    _root,
    _stationary_plan,
    _step,
    _temperature_shift,
    deterministic_bound,
    kl_bound,
    transport_bound,
)
from theory.twins import adversary, collapse_radii, programs, worst_cases
from theory.worlds import random_world

WORLD = random_world(0, contexts=4, actions=2, dimension=2, beta=1.0, bound=1.0)
U, P, D = WORLD.u, WORLD.probability, WORLD.distance(1.0)
RADIUS = {
    "kl": 0.3 * collapse_radii.kl_collapse(U, P),
    **{power: 0.3 * collapse_radii.wasserstein_collapse(U, P, D, power) for power in (1, 2)},
}


@pytest.fixture(scope="module")
def theta() -> dict:
    """Population minimisers by cvxpy."""
    found = {"kl": programs.kldpo(U, P, radius=RADIUS["kl"], beta=1.0, bound=1.0).theta}
    for power in (1, 2):
        found[power] = programs.wdpo_finite(
            U, P, distance=D, power=power, radius=RADIUS[power], beta=1.0, bound=1.0
        ).theta
    assert all(
        0.1 < np.linalg.norm(at) < 0.9 for at in found.values()
    )  # neither collapsed nor at the bound
    return found


@pytest.mark.parametrize("n", [20, 1000])
@pytest.mark.parametrize("chance", [0.02, 0.4])
@pytest.mark.parametrize("share", [1.0, 3.0, 8.0])
def test_the_tail_inequalities_hold_for_a_coin(n: int, chance: float, share: float) -> None:
    p, values = np.array([1 - chance, chance]), np.array([0.0, 1.0])
    for width in (bernstein(p, values, n, share), pinelis(p, np.abs(values - chance), n, share)):
        tail = binom.cdf(math.ceil(n * (chance - width)) - 1, n, chance) + binom.sf(
            math.floor(n * (chance + width)), n, chance
        )
        assert tail <= 2 * math.exp(-share)


def test_bernstein_is_within_a_factor_of_the_exact_tail() -> None:
    """Not only a bound: 2.5 times the exact quantile at most, for a fair coin."""
    p, n, share = np.array([0.5, 0.5]), 10_000, math.log(2 / 0.05)
    exact = binom.ppf(0.975, n, 0.5) / n - 0.5
    assert exact < bernstein(p, np.array([0.0, 1.0]), n, share) < 2.5 * exact


def test_the_matrix_bound_holds_for_a_random_basis_vector() -> None:
    d, n, delta = 4, 200, 0.2
    h, lost = chernoff(np.eye(d) / d, 1.0, n, delta)
    counts = np.random.default_rng(0).multinomial(n, np.full(d, 1 / d), size=20_000).min(1) / n
    assert h == pytest.approx(1 / d)
    assert (counts < (1 - lost) * h).mean() < delta
    assert chernoff(np.diag([1.0, 0.0]), 1.0, n, delta) == (0.0, 1.0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), t=st.floats(0.1, 20), s=st.floats(1e-4, 1))
def test_the_divergence_grows_as_fast_as_the_shift_assumes(seed: int, t: float, s: float) -> None:
    rng = np.random.default_rng(seed)
    l, p = rng.uniform(0, 3, 6), rng.dirichlet(np.ones(6))
    s = s * t

    def tilt(t: float) -> tuple[float, float]:
        q = p * np.exp(t * (l - l.max()))
        q /= q.sum()
        return float((q * np.log(q / p)).sum()), float(q @ (l - q @ l) ** 2)

    kl, v = tilt(t)
    R = float(np.ptp(l))
    least = (t - s) * v * (1 - math.exp(-R * s)) / R
    assert tilt(t + s)[0] - kl >= least * (1 - 1e-7) - 1e-12
    assert kl - tilt(t - s)[0] >= least * (1 - 1e-7) - 1e-12
    found = _temperature_shift(least, t, v, R)
    assert found <= s * (1 + 1e-6)  # the smallest such shift


def test_no_shift_is_enough_when_the_sample_is_too_small() -> None:
    assert _temperature_shift(10.0, 1.0, 0.1, 1.0) == math.inf
    assert _temperature_shift(0.1, 1.0, 0.0, 1.0) == math.inf


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-6, 0.4), st.floats(0, 1e-3), st.floats(0.1, 2), st.floats(0.1, 3))
@example(
    0.0014321757809396321, 1.296686673457492e-13, 0.0007832092602198403, 0.3537
)  # just below where the bound is infinite
def test_the_step_solves_its_inequality_with_equality(
    gradient: float, slack: float, h: float, beta: float
) -> None:
    u = np.array([[0.0, 1.5], [0.3, 0.0]])
    found = _step(gradient, slack, h, beta, u).value
    if beta * 1.5 * gradient >= h:
        assert found == math.inf
    else:
        r = beta * 1.5 * found
        assert (math.exp(-r) + r - 1) / r**2 * h * found**2 == pytest.approx(
            gradient * found + slack, rel=1e-6, abs=1e-12
        )


@pytest.mark.parametrize("c", [0.0, 1e-305, 1e-100, 1e-30, 1e-13, 1e-3, 1.0, 1e5, 1e200])
def test_the_step_is_exact_however_small_or_large(c: float) -> None:
    """Against bisection with enough digits for the smallest r², over all y that can occur."""
    ys = [0.0, *(10.0**-k for k in (300, 200, 100, 50, 20, 14, 13, 12, 9, 6, 3, 1))]
    for y in (*ys, 0.3, 0.4, 0.45, 0.5, 0.9, 0.999, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12):
        if y == c == 0:
            assert _root(y, c) == 0
            continue
        found = _root(y, c)
        with mpmath.workdps(650):

            def excess(factor: float, r: float = found, y: float = y) -> mpmath.mpf:
                point = mpmath.mpf(r) * factor
                return mpmath.exp(-point) + point - 1 - y * point - c

            assert excess(1 - 4e-15) < 0 < excess(1 + 4e-15), (y, c, found)


def test_a_tiny_gradient_gives_twice_its_newton_step() -> None:
    """2 g/h, the first order: what the bound tends to, here at g = 1e-13 and below."""
    for gradient in (1e-12, 1e-13, 1e-100, 1e-290):
        assert _step(gradient, 0.0, 1.0, 1.0, np.eye(2)).value == pytest.approx(
            2 * gradient, rel=1e-11
        )


def test_the_normal_cone() -> None:
    g = np.array([-2.0, 1.0])
    assert not_stationary(g, np.array([0.5, 0.0]), 1.0) == pytest.approx(math.sqrt(5))
    assert not_stationary(g, np.array([1.0, 0.0]), 1.0) == pytest.approx(
        1.0
    )  # the pull outwards is held by the ball
    assert not_stationary(-g, np.array([1.0, 0.0]), 1.0) == pytest.approx(math.sqrt(5))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(20, 2000))
def test_the_deterministic_inequality_holds_for_every_sample_and_every_point(
    seed: int, n: int
) -> None:
    rng = np.random.default_rng(seed)
    p = rng.multinomial(n, P / P.sum()) / n
    fixed = rng.standard_normal(2)
    fixed *= rng.random() / np.linalg.norm(fixed)
    if seed % 3 == 0:
        fixed /= np.linalg.norm(fixed)  # on the boundary
    losses = np.logaddexp(0, -(U @ fixed))
    size = Size(n, 0.05, 1.0, 1.0)
    q, _ = adversary.kl_worst_case(losses, p, RADIUS["kl"])
    fit = programs.kldpo(U, p, radius=RADIUS["kl"], beta=1.0, bound=1.0)
    assert np.linalg.norm(fit.theta - fixed) <= deterministic_bound(U, q, fixed, size).value + 1e-6


@pytest.mark.parametrize("power", [1, 2])
def test_the_stationary_plan_is_a_worst_case_with_zero_gradient(power: int, theta: dict) -> None:
    cost, budget = D**power, RADIUS[power] ** power
    local = seen_from(theta[power], U, Size(1, 0.05, 1.0, 1.0))
    eta = adversary.finite_dual(local.losses, P, cost, budget)
    score = local.losses - eta * cost
    ties = score >= score.max(1, keepdims=True) - 1e-6
    plan = _stationary_plan(local.gradients, P, cost, budget, ties, True, theta[power], 1.0)
    assert plan is not None
    assert np.allclose(plan.sum(1), 1) and (plan >= 0).all()
    assert P @ (plan * cost).sum(1) == pytest.approx(budget, rel=1e-6)
    _, worst = worst_cases.wasserstein_worst_case(local.losses, P, D, power, RADIUS[power])
    assert P @ plan @ local.losses == pytest.approx(worst, rel=1e-6)
    assert not_stationary(P @ plan @ local.gradients, theta[power], 1.0) < 1e-5


@pytest.mark.parametrize("ball", ["kl", 1, 2])
def test_the_bounds_fall_as_the_root_and_cover(ball, theta: dict) -> None:
    def bound(n: float) -> float:
        size = Size(n, 0.05, 1.0, 1.0)
        if ball == "kl":
            return kl_bound(U, P, theta[ball], size, radius=RADIUS[ball]).value
        return transport_bound(
            U, P, theta[ball], size, distance=D, power=ball, radius=RADIUS[ball]
        ).value

    assert bound(10) == math.inf
    assert bound(1e7) / bound(1e9) == pytest.approx(
        10, rel=0.2
    )  # the ties of the solver add a little at large n
    n = 10**7
    for seed in range(3):
        p = np.random.default_rng(seed).multinomial(n, P / P.sum()) / n
        if ball == "kl":
            found = programs.kldpo(U, p, radius=RADIUS[ball], beta=1.0, bound=1.0).theta
        else:
            found = programs.wdpo_finite(
                U, p, distance=D, power=ball, radius=RADIUS[ball], beta=1.0, bound=1.0
            ).theta
        assert np.linalg.norm(found - theta[ball]) < bound(n)


def test_where_the_argument_does_not_apply_the_bound_is_infinite() -> None:
    size = Size(1e9, 0.05, 1.0, 1.0)
    assert (
        kl_bound(U, P, np.zeros(2), size, radius=RADIUS["kl"]).value == math.inf
    )  # all losses equal: the dual variable is 0
