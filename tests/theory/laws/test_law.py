"""Limit laws against closed forms, the theorem's formula, and differences of fits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.theory.laws.nasty import with_labels
from theory import (
    KL,
    SETS,
    WassersteinAtoms,
    WassersteinFree,
    dpo,
    fit,
    limit_law,
)
from theory.batch import pair_batch
from theory.duals import kl_ball_dual
from theory.laws.law import derivative_at, law_at
from theory.laws.program import Places
from theory.policy import Array
from theory.problem import Problem
from theory.sets import AmbiguitySet

BETA, BOUND = 1.3, 20.0
REFERENCE = np.array([0.1, -0.2])


def problem(seed: int, pairs: int = 5) -> tuple[Array, Array, Array]:
    """Pairs that are met with both labels, so that they are not separable, their probabilities and
    a metric."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(pairs, 2))
    star = np.array([0.8, -0.5])
    first = rng.dirichlet(np.full(pairs, 5.0))
    chance = 1 / (1 + np.exp(-2 * x @ star))
    u = np.concatenate([x, -0.9 * x])
    p = np.concatenate([first * chance, first * (1 - chance)])
    return u, p, np.linalg.norm(u[:, None] - u, axis=-1)


NAMES = ("dpo", *SETS)


def member(name: str, u: Array, p: Array, distance: Array) -> AmbiguitySet | None:
    """A set at half of its collapse radius."""
    if name == "dpo":
        return None
    ball = with_labels(SETS[name].in_metric(distance))
    return ball.sized(ball.size_at(0.5, pair_batch(u, p), beta=BETA, bound=BOUND))


def moved(
    u: Array, ball: AmbiguitySet | None, p: Array, dp: Array, step: float, how: Problem
) -> Array:
    """(theta(p + step dp) - theta(p))/step, by fits."""
    weights = np.stack([p, *(p + step * dp)])
    found = fit(u, ball, weights, tolerance=1e-14, **how).theta.numpy()
    return (found[1:] - found[0]) / step


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_influence_is_the_derivative_of_the_fit(name: str, seed: int) -> None:
    u, p, distance = problem(seed)
    ball = member(name, u, p, distance)
    how = Problem(BETA, BOUND, REFERENCE)
    law = limit_law(u, p, ball, **how)
    assert law.kind == "normal"
    dp = np.random.default_rng(seed).normal(size=(6, len(p))) * p
    dp -= dp.sum(1, keepdims=True) * p
    for step in (1e-5, -1e-5):
        slopes = moved(u, ball, p, dp, step, how)
        np.testing.assert_allclose(dp @ law.influence, slopes, atol=3e-3 * np.abs(slopes).max())
    covariance = law.influence.T @ (np.diag(p) - np.outer(p, p)) @ law.influence
    np.testing.assert_allclose(law.covariance, covariance, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_kldpo_has_the_covariance_of_the_theorem(seed: int) -> None:
    """Theorem F1, written out with numpy."""
    u, p, _ = problem(seed)
    law = limit_law(u, p, KL(0.05), beta=BETA, bound=BOUND)
    m = BETA * u @ law.theta
    l, s = np.logaddexp(0, -m), 1 / (1 + np.exp(m))
    losses, weights = torch.from_numpy(l)[None], torch.from_numpy(p)[None]
    worst = kl_ball_dual(losses, weights, torch.tensor([0.05], dtype=torch.float64))
    q, t = worst.weights[0].numpy(), 1 / worst.dual.item()
    gradient, r = -BETA * s[:, None] * u, q / p
    mu, g = q @ l, q @ gradient
    v, c = q @ (l - mu) ** 2, (gradient - g).T @ (q * (l - mu))
    spread = (gradient - g).T @ (q[:, None] * (gradient - g))
    hessian = u.T @ ((q * BETA**2 * s * (1 - s))[:, None] * u)
    j = hessian + t * (spread - np.outer(c, c) / v)
    score = r[:, None] * (gradient - g) - np.outer(r * (l - mu), c / v)
    score += np.outer(r - 1, c / (t * v))
    middle = score.T @ (p[:, None] * score)
    np.testing.assert_allclose(p @ score, 0, atol=1e-6)
    np.testing.assert_allclose(
        law.covariance, np.linalg.solve(j, np.linalg.solve(j, middle).T), rtol=1e-5
    )


def test_plain_dpo_has_the_variance_of_a_log_odds() -> None:
    law = limit_law([[1.0], [-1.0]], [0.8, 0.2], None, beta=2.0, bound=9.0)
    np.testing.assert_allclose(law.covariance, [[1 / (0.8 * 0.2) / 4]], rtol=1e-9)


def test_plain_dpo_of_even_pairs_has_the_variance_of_a_log_odds_of_0() -> None:
    law = limit_law([[1.0], [-1.0]], [0.5, 0.5], None, beta=2.0, bound=9.0)
    np.testing.assert_allclose(law.covariance, [[1 / (0.5 * 0.5) / 4]], rtol=1e-9)


def test_w1_in_one_dimension_has_the_variance_of_its_closed_form() -> None:
    """sigma(theta) = p - rho, so that dtheta = dp/(sigma (1 - sigma))."""
    law = limit_law([[1.0], [-1.0]], [0.8, 0.2], WassersteinFree(0.1), beta=1.0, bound=9.0)
    np.testing.assert_allclose(law.covariance, [[0.8 * 0.2 / (0.7 * 0.3) ** 2]], rtol=1e-8)


def test_a_normal_law_on_a_kink_is_singular_and_the_fit_stays_on_the_kink() -> None:
    for seed in range(20):
        u, p, distance = problem(seed)
        ball = WassersteinAtoms(0.4, distance)
        how = Problem(BETA, BOUND)
        found = fit(u, ball, p, tolerance=1e-13, **how)
        if bool(found.collapsed) or len(derivative_at(found).held) < 2:
            continue
        law = law_at(found)
        size, basis = np.linalg.eigh(law.covariance)
        assert size[0] < 1e-12 * size[1] or size[1] < 1e-12
        dp = np.random.default_rng(0).normal(size=(20, len(p))) * p
        dp -= dp.sum(1, keepdims=True) * p
        slopes = moved(u, ball, p, dp, 1e-5, how)
        assert np.abs(slopes @ basis[:, 0]).max() < 1e-3 * np.abs(dp).max()
        return
    raise AssertionError("no problem with two kinks was met")


@pytest.mark.parametrize("seed", [2, 8])
def test_an_atom_between_two_wells_of_w2_is_a_kink(seed: int) -> None:
    """Pairs that nearly all agree, so that theta is long and a = b²/(2 eta) is above 4."""
    u, p, _ = problem(seed)
    u[:5] *= np.sign(u[:5] @ [0.8, -0.5])[:, None]
    u[5:] = -0.9 * u[:5]
    share = p[:5] + p[5:]
    p = np.concatenate([0.99 * share, 0.01 * share])
    radius = 0.3 * float(np.linalg.norm(p @ u))
    ball, how = WassersteinFree(radius, power=2), Problem(1.0, BOUND)
    found = fit(u, ball, p, tolerance=1e-13, **how)
    assert found.dual is not None
    assert found.theta.norm().item() ** 2 / (2 * found.dual.item()) > 4
    law = law_at(found)
    assert law.derivative is not None and len(law.derivative.held)
    dp = np.random.default_rng(seed).normal(size=(6, len(p))) * p
    dp -= dp.sum(1, keepdims=True) * p
    slopes = moved(u, ball, p, dp, 1e-5, how)
    np.testing.assert_allclose(dp @ law.influence, slopes, atol=1e-3 * np.abs(slopes).max())


def on_the_bound(factor: float) -> tuple[Array, Array, float]:
    u, p, _ = problem(3)
    return u, p, factor * float(np.linalg.norm(dpo(u, p, beta=BETA).theta))


@pytest.mark.parametrize("ball", [None, KL(0.03), WassersteinFree(0.1)])
def test_on_the_bound_the_law_is_that_of_the_tangent_space(ball: AmbiguitySet | None) -> None:
    u, p, bound = on_the_bound(0.5)
    law = limit_law(u, p, ball, beta=BETA, bound=bound)
    assert law.kind == "normal"
    np.testing.assert_allclose(law.covariance @ law.theta, 0, atol=1e-8)
    dp = np.random.default_rng(0).normal(size=(5, len(p))) * p
    dp -= dp.sum(1, keepdims=True) * p
    slopes = moved(u, ball, p, dp, 1e-4, Problem(BETA, bound))
    np.testing.assert_allclose(dp @ law.influence, slopes, atol=3e-3 * np.abs(slopes).max())


def test_a_small_multiplier_of_the_bound_is_one_in_any_unit() -> None:
    """Next to its parts the gradient is what counts, not next to 1."""
    u, p, _ = on_the_bound(0.7)
    rare = np.where(np.arange(len(p)) < 5, p, 1e-3 * p)
    for weights in (p, rare / rare.sum()):
        size = float(np.linalg.norm(dpo(u, weights, beta=BETA).theta))
        for beta in (1e-3, 1e3):
            how = Problem(BETA * beta, 0.7 * size / beta)
            law = limit_law(u, weights, None, **how)
            assert law.kind == "normal"
            np.testing.assert_allclose(law.influence @ law.theta, 0, atol=1e-6 / beta**2)


def test_losses_that_are_nearly_equal_are_not_kinks() -> None:
    """Four pairs on a line: theta is short at half of the collapse radius, and losses are close."""
    x = np.array([[0.005], [0.0072]])
    u, p = np.concatenate([x, -0.9 * x]), np.array([0.3, 0.25, 0.24, 0.21])
    ball = WassersteinAtoms(distance=np.abs(u - u.T))
    for share in (0.5, 0.9, 0.99, 0.999):
        near = ball.sized(share * ball.size_at(1.0, pair_batch(u, p), beta=1.0, bound=5.0))
        how = Problem(1.0, 500.0)
        law = law_at(fit(u, near, p, tolerance=1e-14, **how))
        dp = np.random.default_rng(0).normal(size=(6, len(p))) * p
        dp -= dp.sum(1, keepdims=True) * p
        slopes = moved(u, near, p, dp, 1e-6, how)
        assert law.kind == "normal" and np.abs(slopes).max() > 0
        np.testing.assert_allclose(dp @ law.influence, slopes, atol=1e-2 * np.abs(slopes).max())


def test_a_bound_that_is_met_without_a_multiplier_lets_go_to_one_side() -> None:
    u, p, bound = on_the_bound(1.0)
    law = limit_law(u, p, None, beta=BETA, bound=bound)
    assert law.kind == "directional" and "no multiplier" in law.reason
    assert law.derivative is not None
    dp = np.random.default_rng(0).normal(size=(40, len(p))) * p
    dp -= dp.sum(1, keepdims=True) * p
    slopes = moved(u, None, p, dp, 1e-5, Problem(BETA, bound))
    np.testing.assert_allclose(law.derivative.along(dp), slopes, atol=1e-3 * np.abs(slopes).max())
    outward = slopes @ law.theta
    assert (outward < -1e-3).any() and (np.abs(outward) < 1e-3).any()  # both kinds of step are met
    draws = law.draw(2000, np.random.default_rng(1))
    assert (draws @ law.theta <= 1e-9).all()
    assert abs((draws @ law.theta < -1e-9).mean() - 0.5) < 0.05  # a half-space
    assert np.isnan(law.covariance).all()


def test_there_is_no_law_at_collapse_nor_without_curvature() -> None:
    u, p, _ = problem(0)
    assert limit_law(u, p, KL(5.0), beta=1.0, bound=5.0).kind == "none"
    law = limit_law(u, p, WassersteinFree(9.0), beta=1.0, bound=5.0)
    assert law.kind == "none" and "collapse" in law.reason
    with pytest.raises(ValueError, match="no limit law"):
        law.quantile(0.9, 100)
    flat = limit_law(u * [1.0, 0.0], p, None, beta=1.0, bound=5.0)
    assert flat.kind == "none" and "curvature" in flat.reason


class Silent(KL):
    """A set that has not said what its program is."""

    local = AmbiguitySet.local


def test_a_set_that_says_nothing_is_refused() -> None:
    u, p, _ = problem(0)
    with pytest.raises(ValueError, match="method `local`"):
        limit_law(u, p, Silent(0.01), beta=1.0, bound=5.0)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    name=st.sampled_from(["dpo", "kl", "chi2", "w1-finite", "w2-free"]),
    factor=st.floats(0.2, 5.0),
)
def test_order_units_and_equal_atoms_do_not_matter(seed: int, name: str, factor: float) -> None:
    u, p, distance = problem(seed)
    ball = member(name, u, p, distance)
    law = limit_law(u, p, ball, beta=BETA, bound=BOUND)
    if law.kind != "normal":
        return
    order = np.random.default_rng(seed).permutation(len(p))

    def picked(index: Places) -> AmbiguitySet | None:
        if isinstance(ball, WassersteinAtoms):
            return replace(ball, distance=distance[index][:, index])
        return ball

    again = limit_law(u[order], p[order], picked(order), beta=BETA, bound=BOUND)
    size = np.abs(law.covariance).max() + 1e-9
    np.testing.assert_allclose(again.covariance, law.covariance, atol=1e-4 * size)
    # another unit of beta is another unit of theta
    scaled = limit_law(u, p, ball, beta=BETA * factor, bound=BOUND / factor)
    np.testing.assert_allclose(scaled.covariance * factor**2, law.covariance, atol=1e-4 * size)
    twice = np.append(np.arange(len(p)), 0)
    share = np.append(p, 0.4 * p[0])
    share[0] *= 0.6
    split = limit_law(u[twice], share, picked(twice), beta=BETA, bound=BOUND)
    np.testing.assert_allclose(split.covariance, law.covariance, atol=1e-4 * size)


def test_draws_and_quantiles_are_those_of_the_covariance() -> None:
    u, p, _ = problem(1)
    law = limit_law(u, p, KL(0.05), beta=BETA, bound=BOUND)
    draws = law.draw(50_000, np.random.default_rng(0))
    np.testing.assert_allclose(np.cov(draws.T), law.covariance, rtol=0.03, atol=0.05)
    one = limit_law([[1.0], [-1.0]], [0.8, 0.2], None, beta=1.0, bound=9.0)
    assert one.quantile(0.95, 100) == pytest.approx(1.96 * 2.5 / 10, rel=0.01)
