"""Minimisers that are not unique, and the one nearest to the reference policy, against convex
programs."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from theory import (
    KL,
    ChiSquared,
    CVaR,
    GradientPenalty,
    TotalVariation,
    WassersteinAtoms,
    WassersteinFree,
    dpo,
    fit,
)
from theory.laws.law import derivative_at
from theory.policy import Array
from theory.sets import AmbiguitySet
from theory.solvers.local import NoLaw

# a program whose value may exceed the least by 1e-9 only, at a solver's own tolerance
pytestmark = pytest.mark.filterwarnings("ignore:Solution may be inaccurate")

# the worst case keeps to the first two rows, which say nothing of the second feature
FLAT = np.array([[-1.0, 0.0], [4.0, 0.0], [1.0, 5.0], [5.0, 0.5]])
P = np.array([0.3, 0.3, 0.2, 0.2])
BOUND = 4.0
AWAY = 10.0 * (1 - np.eye(4))
AWAY[2:, :2], AWAY[:2, 2:] = 0.1, 0.1  # the last two are moved to the first two at no price

BALLS = [
    CVaR(0.55),
    TotalVariation(0.42),
    WassersteinAtoms(0.2, AWAY),
    WassersteinAtoms(0.3, AWAY, 2),
]


def worst_mean(
    losses: cp.Expression, ball: AmbiguitySet
) -> tuple[cp.Expression, list[cp.Constraint]]:
    """sup over the ball of the mean of losses on the atoms P, by linear duality."""
    n, size = len(P), ball.size
    if isinstance(ball, CVaR):
        c = cp.Variable()
        return c + P @ cp.pos(losses - c) / size, []
    if isinstance(ball, TotalVariation):
        c, eta = cp.Variable(), cp.Variable(nonneg=True)
        return size * eta + P @ cp.maximum(losses, c), [losses <= c + eta]
    assert isinstance(ball, WassersteinAtoms)
    eta, s = cp.Variable(nonneg=True), cp.Variable(n)
    cost = np.asarray(ball.distance) ** ball.power
    held = [s[i] >= losses - eta * cost[i] for i in range(n)]
    return eta * size**ball.power + P @ s, held


def by_programs(u: Array, ball: AmbiguitySet, reference: Array) -> tuple[float, Array, float]:
    """The value, the minimiser nearest to the reference, and the widest range of a coefficient
    among the minimisers, up to 1e-9 of the value."""
    theta = cp.Variable(u.shape[1])
    value, held = worst_mean(cp.logistic(-u @ (theta - reference)), ball)
    held = [*held, cp.norm(theta) <= BOUND]
    least = float(cp.Problem(cp.Minimize(value), held).solve(solver=cp.CLARABEL))
    near = [*held, value <= least + 1e-9]
    cp.Problem(cp.Minimize(cp.norm(theta - reference)), near).solve(solver=cp.CLARABEL)
    nearest, wide = np.array(theta.value), []
    for k in range(len(nearest)):
        ends = [
            float(cp.Problem(cp.Maximize(sign * theta[k]), near).solve(solver=cp.CLARABEL))
            for sign in (1.0, -1.0)
        ]
        wide.append(sum(ends))
    return least, nearest, max(wide)


@pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.name)
@pytest.mark.parametrize("reference", [[0.0, 0.0], [0.3, -0.5]])
def test_the_nearest_of_several_minimisers(ball: AmbiguitySet, reference: list[float]) -> None:
    found = fit(FLAT, ball, P, beta=1.0, bound=BOUND, theta_ref=reference)
    least, nearest, wide = by_programs(FLAT, ball, np.array(reference))
    assert found.converged and float(found.value) == pytest.approx(least, abs=1e-8)
    assert wide > 0.1 and not found.unique
    np.testing.assert_allclose(found.theta, nearest, atol=2e-3)  # a value within 1e-9
    assert any("not unique" in remark for remark in found.remarks)
    assert "not unique" in repr(found)
    with pytest.raises(NoLaw):
        derivative_at(found)


@pytest.mark.some(1)
@pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.name)
def test_random_tables_against_the_range_of_their_minimisers(ball: AmbiguitySet) -> None:
    seen = set()
    for seed in range(10):
        rng = np.random.default_rng([7, seed])
        u = rng.integers(-1, 3, (4, 2)).astype(float)
        if np.linalg.matrix_rank(u) < 2:
            continue
        found = fit(u, ball, P, beta=1.0, bound=BOUND)
        least, nearest, wide = by_programs(u, ball, np.zeros(2))
        assert found.converged and float(found.value) == pytest.approx(least, abs=1e-7)
        assert float(found.theta.norm()) <= np.linalg.norm(nearest) + 2e-3
        if wide > 0.1:
            assert not found.unique, seed
        if wide < 1e-2:
            assert found.unique, seed
        seen.add(bool(found.unique))
    assert True in seen


def test_a_batch_says_it_of_each_of_its_fits() -> None:
    other = FLAT + [[0.0, 0.3], [0.0, -0.4], [0.0, 0.0], [0.0, 0.0]]
    both = fit(np.stack([FLAT, other]), CVaR([0.55, 0.9]), P, beta=1.0, bound=BOUND)
    assert both.unique.tolist() == [False, True]
    assert not both.one(0).unique and both.one(1).unique
    alone = fit(FLAT, CVaR(0.55), P, beta=1.0, bound=BOUND)
    torch.testing.assert_close(alone.theta, both.theta[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("ball", [KL(2.0), ChiSquared(4.0), CVaR(0.2), TotalVariation(0.9)])
def test_collapse_on_few_pairs(ball: AmbiguitySet) -> None:
    """The largest loss is log 2 at best, at theta = (0, t) for every t >= 0."""
    found = fit(FLAT, ball, beta=1.0, bound=BOUND)
    assert found.collapsed and found.theta.tolist() == [0.0, 0.0] and not found.unique
    u = np.concatenate([FLAT, -FLAT[2:]])  # which the new rows forbid
    assert fit(u, ball, beta=1.0, bound=BOUND).unique


def test_pairs_that_leave_a_direction_free() -> None:
    u = np.array([[1.0, 2.0], [-1.0, -2.0], [2.0, 4.0]])
    for ball, unique in ((None, False), (KL(0.01), False), (WassersteinFree(0.01), True)):
        found = fit(u, ball, beta=1.0, bound=BOUND)
        assert bool(found.unique) == unique
        assert ("do not span" in repr(found)) == (not unique)
    assert dpo(np.eye(2).repeat(2, 0) * [[1], [-1], [1], [-1]], beta=1.0).unique
    with pytest.raises(ValueError, match="not convex"):
        _ = fit(u, GradientPenalty(0.1), beta=1.0, bound=BOUND).unique


def test_many_atoms_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("theory.sets.wasserstein_atoms._MANY", 3)
    with pytest.warns(UserWarning, match=r"4 distinct atoms.*WassersteinFree"):
        fit(FLAT, WassersteinAtoms(0.2, AWAY), beta=1.0, bound=BOUND)
