"""Newton's method from several starts against closed forms, and an honest certificate where it does
not apply."""

import numpy as np
import pytest
import torch

from theory.aot import random_starts
from theory.solvers.multistart import Objective, lowest, minimise_from


def quadratic(target: np.ndarray, matrix: torch.Tensor) -> Objective:
    return lambda w: ((w - torch.from_numpy(target)) @ matrix * (w - torch.from_numpy(target))).sum(
        -1
    )


def test_a_quadratic_inside_and_on_the_ball() -> None:
    rng = np.random.default_rng(0)
    root, centre = rng.standard_normal((3, 3)), np.array([0.5, -0.2, 0.1])
    matrix = torch.from_numpy(root @ root.T + np.eye(3))
    starts = random_starts(rng, 3, 3, 2.0)
    inside = minimise_from(quadratic(centre, matrix), starts, bound=2.0)
    np.testing.assert_allclose(inside.w, centre, atol=1e-9)
    assert inside.converged
    outside = minimise_from(quadratic(10 * centre, matrix), starts, bound=2.0)
    slope = 2 * matrix.numpy() @ (outside.w - 10 * centre)
    assert np.linalg.norm(outside.w) == pytest.approx(2)
    assert -slope @ outside.w == pytest.approx(
        2 * np.linalg.norm(slope)
    )  # the gradient points into the ball
    assert outside.converged


def test_the_ball_is_around_minus_theta_ref() -> None:
    theta_ref = np.array([1.0, 0.0])
    found = minimise_from(
        quadratic(np.array([9.0, 0.0]), torch.eye(2).double()),
        torch.zeros(1, 2).double(),
        bound=3.0,
        theta_ref=theta_ref,
    )
    np.testing.assert_allclose(found.w, [2.0, 0.0], atol=1e-9)


def test_the_best_of_two_wells_and_the_end_of_every_start() -> None:
    """(x^2 - 1)^2 + x/5 has two local minima; starts on both sides of zero end in different
    ones."""
    found = minimise_from(
        lambda w: ((w**2 - 1) ** 2 + w / 5).sum(-1),
        torch.tensor([[1.5], [-1.5]]).double(),
        bound=3.0,
    )
    roots = np.sort(np.roots([4, 0, -4, 0.2]).real)
    values = (roots**2 - 1) ** 2 + roots / 5
    assert found.w[0] == pytest.approx(roots[0])
    np.testing.assert_allclose(found.ends, [values[2], values[0]], atol=1e-12)
    assert found.value == pytest.approx(values[0])


def test_a_kink_is_not_called_converged() -> None:
    """|x - 1/3| has slope 1 or -1 everywhere: nothing that a gradient says makes a point
    stationary."""
    found = minimise_from(
        lambda w: (w - 1 / 3).abs().sum(-1), torch.tensor([[1.0]]).double(), bound=2.0
    )
    assert not found.converged
    assert found.gap > 0.1


def test_lowest_points_come_first() -> None:
    points = torch.tensor([[3.0], [-1.0], [2.0], [0.5]])
    assert lowest(lambda w: w[:, 0] ** 2, points, 2).flatten().tolist() == [0.5, -1.0]


def test_bad_bound() -> None:
    with pytest.raises(ValueError, match="bound must be a positive finite number, got 0"):
        minimise_from(lambda w: w.sum(-1), torch.zeros(1, 2).double(), bound=0)
