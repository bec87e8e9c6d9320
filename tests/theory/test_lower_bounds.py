"""Lower bounds, against high precision, known minimax bounds and brute force."""

import math

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
from scipy.stats import binom

from theory.bounds.lower import (
    deviation_ceiling,
    deviation_floor,
    influence_by_differences,
    local_minimax,
    slow_constant,
    slow_pair,
)
from theory.bounds.uniform import uniform_kl
from theory.policy import Array


def _mean(u: Array):  # type: ignore[no-untyped-def]
    return lambda p: p @ u


def test_van_trees_for_a_mean_is_the_closed_form() -> None:
    """A mean is linear in e: slopes are sqrt of the eigenvalues of V, at every e."""
    rng = np.random.default_rng(0)
    u, p = rng.standard_normal((7, 2)), rng.dirichlet(np.ones(7))
    influence = u - p @ u
    n, c = 1e8, 10.0
    found = local_minimax(_mean(u), p, influence, n, c)
    values = np.linalg.eigvalsh(influence.T @ (p[:, None] * influence))
    assert found.limit == pytest.approx(values.sum() / n)
    assert found.value == pytest.approx(values.sum() / n / (1 + math.pi**2 / c**2), rel=1e-3)
    assert np.allclose(found.weights.sum(1), 1) and (found.weights > 0).all()


def test_no_estimator_of_a_coin_beats_it() -> None:
    """The minimax rule of a coin known to be in an interval has no closed form; the Bayes rules of
    beta laws, and all constants, are above the bound somewhere in the neighbourhood."""
    n, c, p = 400, 5.0, np.array([0.5, 0.5])
    found = local_minimax(_mean(np.array([[1.0], [0.0]])), p, np.array([[0.5], [-0.5]]), n, c)
    wins = np.arange(n + 1)
    for prior in (0.0, 1.0, 5.0, 20.0, 100.0):
        rule = (wins + prior) / (n + 2 * prior)
        risk = max(float(binom.pmf(wins, n, q[0]) @ (rule - q[0]) ** 2) for q in found.weights)
        assert risk >= found.value
    assert max(float((q[0] - 0.5) ** 2) for q in found.weights) >= found.value


def test_influence_by_differences_of_a_ratio() -> None:
    """p1/p2 has the influence delta method gives."""
    p = np.array([0.2, 0.5, 0.3])
    found = influence_by_differences(lambda q: q[:, :1] / q[:, 1:2], p)
    by_hand = np.array([1 / 0.5, -0.2 / 0.25, 0.0])
    assert np.allclose(found[:, 0], by_hand - p @ by_hand, rtol=1e-6)


@pytest.mark.parametrize("n", [10**6, 10**15, 10**40])
def test_the_slow_pair_in_sixty_digits(n: int) -> None:
    """The same two equations (KL = radius, stationary along the sphere) by mpmath's own solver."""
    rho, pair = 0.1, slow_pair(float(n), radius=0.1)
    with mpmath.workdps(80):
        rare = mpmath.mpf(1) / n
        p = [(1 - rare) / 2, (1 - rare) / 2, rare]
        u = [(1, mpmath.mpf("0.5")), (1, mpmath.mpf("-0.5")), (-1, 1)]

        def worst(angle, t):  # type: ignore[no-untyped-def]
            m = [a * mpmath.cos(angle) + b * mpmath.sin(angle) for a, b in u]
            loss = [mpmath.log(1 + mpmath.exp(-x)) for x in m]
            weight = [pk * mpmath.exp(t * x) for pk, x in zip(p, loss, strict=True)]
            q = [w / sum(weight) for w in weight]
            kl = sum(a * mpmath.log(a / b) for a, b in zip(q, p, strict=True))
            slope = sum(
                -a
                * (1 - 1 / (1 + mpmath.exp(-x)))
                * (-x0 * mpmath.sin(angle) + x1 * mpmath.cos(angle))
                for a, x, (x0, x1) in zip(q, m, u, strict=True)
            )
            return kl - mpmath.mpf(str(rho)), slope

        start = (mpmath.mpf(pair.angles[1]), 1 / mpmath.mpf(pair.dual))
        angle, t = mpmath.findroot(worst, start)
        assert pair.angles[1] == pytest.approx(float(angle), rel=1e-9)
        assert pair.dual == pytest.approx(float(1 / t), rel=1e-9)


def test_the_chance_is_that_of_two_points() -> None:
    pair = slow_pair(1e12, radius=0.2, share=0.5)
    same = math.exp(-0.5)
    assert pair.chance == pytest.approx(same / (1 + same), rel=1e-9)
    assert pair.chance < 0.5  # a guess is right half of the time: no two-point bound is above
    assert pair.distance == pytest.approx(pair.gap * pair.chance)


def test_the_constant_of_the_slow_pair() -> None:
    for radius, beta, bound in ((0.1, 1.0, 1.0), (0.3, 0.5, 2.0), (0.05, 2.0, 0.7)):
        limit = slow_constant(radius=radius, beta=beta, bound=bound)
        near = [
            slow_pair(n, radius=radius, beta=beta, bound=bound).gap * math.log(n) ** 2 / limit
            for n in (1e30, 1e300)
        ]
        assert abs(near[1] - 1) < 0.02 and abs(near[1] - 1) < abs(near[0] - 1)


@pytest.mark.parametrize("n", [10, 10**6, 10**30])
def test_the_floor_in_sixty_digits(n: int) -> None:
    floor = deviation_floor(float(n), radius=0.2, spread=3.0)
    with mpmath.workdps(60):
        p = mpmath.mpf(1) / n
        q = mpmath.mpf(floor) / 3
        kl = q * mpmath.log(q / p) + (1 - q) * mpmath.log((1 - q) / (1 - p))
        assert float(kl) == pytest.approx(0.2, rel=1e-9)


def test_the_floor_where_the_ball_holds_the_point_mass() -> None:
    assert deviation_floor(2.0, radius=1.0, spread=3.0) == 3.0


def test_the_ceiling_is_the_best_of_many_cuts() -> None:
    K = math.log1p(math.exp(4.0))
    common = {"beta": 1.0, "bound": 1.0, "radius": 0.1, "delta": 0.05}
    for n in (1e4, 1e12):
        found = deviation_ceiling(n, 2, **common)
        cuts = K / np.geomspace(0.05, 300, 400)
        brute = min(uniform_kl(n, 2, dual_low=float(cut), **common) for cut in cuts)
        assert brute * (1 - 1e-3) <= found <= brute * (1 + 1e-9)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: slow_pair(1e6, radius=0.7), "log 2"),
        (lambda: slow_pair(1e6, radius=0.1, share=1e5), "share"),
        (lambda: deviation_floor(1e6, radius=0.0, spread=1.0), "radius"),
        (
            lambda: local_minimax(
                _mean(np.eye(2)[:, :1]), np.array([0.5, 0.5]), np.zeros((2, 1)), 1e4, 5.0
            ),
            "vanishes",
        ),
        (
            lambda: local_minimax(
                _mean(np.eye(2)[:, :1]), np.array([0.5, 0.5]), np.array([[1.0], [-1.0]]), 10, 5.0
            ),
            "leaves the simplex",
        ),
    ],
)
def test_refusals_say_what_to_do(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=words):
        call()
