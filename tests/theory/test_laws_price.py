"""The price of a radius, against differences of the fits themselves and closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from theory.fitting import fit
from theory.laws.price import coin_error, coin_gain, price_of_radius
from theory.sets.kl import KL
from theory.sets.wasserstein_free import WassersteinFree
from theory.worlds import random_world

WORLD = random_world(2, contexts=6, actions=2, dimension=3, beta=1.5, bound=6.0, signal=1.0)
STAR = np.asarray(WORLD.theta_star)
SETS = {
    "kl": KL(),
    "w1-free": WassersteinFree(power=1),
    "w2-free": WassersteinFree(power=2),
}


@pytest.mark.parametrize("ball", SETS)
def test_the_bias_is_the_slope_of_the_population_s_answer(ball: str) -> None:
    """theta_rho - theta* over sqrt(2 rho) or rho, at two small radii, extrapolated to 0."""
    found = price_of_radius(WORLD.u, WORLD.probability, STAR, ball, beta=WORLD.beta)
    strength = np.array([2e-4, 1e-4])
    sizes = strength**2 / 2 if found.root else strength
    assert found.strength(1.0, float(sizes[0])) == pytest.approx(strength[0])
    moved = [
        fit(
            WORLD.u, SETS[ball].sized(float(size)), WORLD.probability, **WORLD.problem
        ).theta.numpy()
        - STAR
        for size in sizes
    ]
    slopes = np.array(moved) / strength[:, None]
    assert np.allclose(2 * slopes[1] - slopes[0], -found.bias, rtol=1e-2, atol=1e-3)


def test_the_variance_is_the_inverse_information_where_the_model_is_right() -> None:
    found = price_of_radius(WORLD.u, WORLD.probability, STAR, "kl", beta=WORLD.beta)
    m = WORLD.beta * WORLD.u @ STAR
    f = 1 / (np.exp(m) + 2 + np.exp(-m))
    fisher = WORLD.beta**2 * (WORLD.u.T * (WORLD.probability * f)) @ WORLD.u
    assert np.allclose(found.variance, np.linalg.inv(fisher), rtol=1e-9)
    assert found.factor(1e4, 0.0) == 1.0
    assert found.coverage_factor(3) == pytest.approx(
        1 + 7.814728 * found.bias @ found.bias / np.trace(found.variance), rel=1e-6
    )


@settings(max_examples=30, deadline=None)
@given(
    chance=st.floats(0.55, 0.95),
    radius=st.one_of(st.just(0.0), st.floats(1e-6, 0.3)),
    n=st.integers(5, 60),
)
def test_the_exact_error_is_the_sum_over_fits(chance: float, radius: float, n: int) -> None:
    wins = np.arange(n + 1) / n
    theta = fit(
        [[1.0], [-1.0]], KL(radius), np.stack([wins, 1 - wins], 1), beta=1.0, bound=12.0
    ).theta[:, 0]
    star = math.log(chance / (1 - chance))
    by_fits = float(binom.pmf(np.arange(n + 1), n, chance) @ (theta.numpy() - star) ** 2)
    assert coin_error(n, chance, radius) == pytest.approx(by_fits, rel=1e-5, abs=1e-10)


def test_the_best_radius_of_a_coin() -> None:
    radius, gain = coin_gain(0.8)
    n = 3000
    base = coin_error(n, 0.8, 0.0)
    here = base - coin_error(n, 0.8, radius / n**2)
    assert here * n**2 / gain == pytest.approx(1, abs=0.01)
    for factor in (0.3, 3.0):  # 2 sqrt(f) - f of the gain, f the ratio of the radii
        there = base - coin_error(n, 0.8, factor * radius / n**2)
        assert there / here == pytest.approx(2 * math.sqrt(factor) - factor, abs=0.02)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: price_of_radius([[1.0], [-1.0]], [0.75, 0.25], [math.log(3)], "tv", beta=1.0),
            "ball must be",
        ),
        (lambda: price_of_radius([[1.0], [-1.0]], [0.75, 0.25], [0.5], "kl", beta=1.0), "not 0"),
        (
            lambda: price_of_radius([[1.0], [-1.0]], [0.5, 0.5], [0.0], "kl", beta=1.0),
            "all equal",
        ),
        (
            lambda: price_of_radius([[1.0], [-1.0]], [0.5, 0.5], [0.0], "w1-free", beta=1.0),
            "kink",
        ),
        (lambda: coin_error(10, 0.4, 0.0), "chance"),
    ],
)
def test_refusals_say_what_to_do(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=words):
        call()
