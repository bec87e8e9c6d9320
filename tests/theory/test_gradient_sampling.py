"""Gradient sampling against convex programs and closed forms with kinks at the minimum."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from theory.aot import random_starts
from theory.solvers.gradient_sampling import descend, minimise_with_kinks
from theory.solvers.multistart import Objective, minimise_from


def regression(x: np.ndarray, y: np.ndarray) -> Objective:
    """Least absolute deviations: the minimum is where as many residuals vanish as there are
    coordinates."""
    return lambda w: (w @ torch.from_numpy(x).T - torch.from_numpy(y)).abs().mean(-1)


def test_least_absolute_deviations_inside_and_on_the_ball() -> None:
    """What it says is converged is the minimum. It samples, and in 4 of 800 problems of this kind
    it stood still and said so: of 40 at most 3, which chance exceeds once in 100 000 times."""
    stood = 0
    for seed in range(20):
        for bound, dimension in ((0.5, 1 + seed % 4), (10.0, 1 + seed // 5)):
            rng = np.random.default_rng(seed)
            x, theta_ref = (
                rng.standard_normal((15, dimension)),
                0.1 * rng.standard_normal(dimension),
            )
            y = x @ np.ones(dimension) + rng.laplace(size=15)
            w = cp.Variable(dimension)
            inside = [cp.norm(w + theta_ref) <= bound]
            problem = cp.Problem(cp.Minimize(cp.norm1(x @ w - y) / 15), inside)
            least, start = problem.solve(solver="CLARABEL"), torch.zeros(dimension).double()
            found = descend(regression(x, y), start, rng, bound=bound, theta_ref=theta_ref)
            assert np.linalg.norm(found.w + theta_ref) <= bound * (1 + 1e-12)
            if found.converged:
                assert found.value == pytest.approx(least, abs=1e-5)
            else:
                stood += 1
                assert found.value >= least - 1e-7
    assert stood <= 3


def test_a_curved_valley_whose_floor_is_a_kink() -> None:
    """|x^2 - y| + (1 - x)^2/4 is not convex; its minimum is 0 at (1, 1), where the slope along the
    valley is continuous."""

    def objective(w: torch.Tensor) -> torch.Tensor:
        return (w[:, 0] ** 2 - w[:, 1]).abs() + (1 - w[:, 0]) ** 2 / 4

    found = descend(
        objective, torch.tensor([-1.0, 1.0]).double(), np.random.default_rng(0), bound=5.0
    )
    assert found.converged
    np.testing.assert_allclose(found.w, [1, 1], atol=1e-4)
    assert found.value < 1e-6


def test_a_descent_that_is_cut_short_says_so() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((15, 3)), rng.laplace(size=15)
    found = descend(regression(x, y), torch.ones(3).double(), rng, bound=10.0, max_steps=5)
    assert not found.converged
    assert found.gap > 1e-3


def test_newton_first_and_sampling_where_it_stalls() -> None:
    rng = np.random.default_rng(2)
    starts = random_starts(rng, 3, 2, 2.0)
    smooth = minimise_with_kinks(lambda w: (w**2).sum(-1), starts, rng, bound=2.0)
    assert smooth.converged and smooth.value == pytest.approx(0, abs=1e-15)

    def kinked(w: torch.Tensor) -> torch.Tensor:
        return (w - 0.3).abs().sum(-1) + (w**2).sum(-1) / 10

    assert not minimise_from(kinked, starts, bound=2.0).converged
    found = minimise_with_kinks(kinked, starts, rng, bound=2.0)
    assert found.converged and found.ends.shape == (3,)
    np.testing.assert_allclose(found.w, [0.3, 0.3], atol=1e-5)
    assert found.value <= found.ends.min()


def test_the_same_seed_gives_the_same_descent() -> None:
    rng = np.random.default_rng(3)
    objective, start = (
        regression(rng.standard_normal((9, 2)), rng.standard_normal(9)),
        torch.ones(2).double(),
    )
    one, again = (descend(objective, start, np.random.default_rng(7), bound=3.0) for _ in range(2))
    assert np.array_equal(one.w, again.w) and one.value == again.value
