"""Newton's method on a ball against scipy, and against the optimality conditions, which prove a
minimum of a convex function."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from theory.solvers.newton import Domain, minimise

quick = settings(max_examples=25, deadline=None, derandomize=True)


@dataclass
class Quadratic:
    """v'Hv/2 - c.v."""

    H: Tensor
    c: Tensor

    def derivatives(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        Hv = (self.H @ v[:, :, None])[:, :, 0]
        return (v * (Hv / 2 - self.c)).sum(-1), Hv - self.c, self.H

    def select(self, index: Tensor) -> "Quadratic":
        return replace(self, H=self.H[index], c=self.c[index])


@dataclass(frozen=True)
class Logistic:
    """mean log(1 + exp(-x.v))."""

    x: Tensor  # (R, n, d)

    def derivatives(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m = (self.x @ v[:, :, None])[:, :, 0]
        s = torch.sigmoid(-m) / m.shape[1]
        bend = s * torch.sigmoid(m)
        return (
            torch.nn.functional.softplus(-m).mean(-1),
            -(s[:, :, None] * self.x).sum(1),
            self.x.mT @ (bend[:, :, None] * self.x),
        )

    def select(self, index: Tensor) -> "Logistic":
        return Logistic(self.x[index])


@dataclass(frozen=True)
class Perspective:
    """(||w - c||² + 1)/e + e: the minimum over e > 0 is 2 sqrt(||w - c||² + 1), at e = sqrt(||w -
    c||² + 1)."""

    c: Tensor

    def derivatives(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gap, e = v[:, :-1] - self.c, v[:, -1]
        top = (gap**2).sum(-1) + 1
        gradient = torch.cat([2 * gap / e[:, None], (1 - top / e**2)[:, None]], -1)
        d = gap.shape[1]
        hessian = torch.zeros(len(v), d + 1, d + 1, dtype=v.dtype)
        hessian[:, :d, :d] = 2 * torch.eye(d, dtype=v.dtype) / e[:, None, None]
        hessian[:, :d, d] = hessian[:, d, :d] = -2 * gap / e[:, None] ** 2
        hessian[:, d, d] = 2 * top / e**3
        return torch.where(e > 0, top / e + e, torch.inf), gradient, hessian

    def select(self, index: Tensor) -> "Perspective":
        return Perspective(self.c[index])


@dataclass(frozen=True)
class DoubleWell:
    """(v² - 1)² in each coordinate: concave around 0, minima at ±1."""

    def derivatives(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return ((v**2 - 1) ** 2).sum(-1), 4 * v * (v**2 - 1), torch.diag_embed(12 * v**2 - 4)

    def select(self, index: Tensor) -> "DoubleWell":
        return self


def ball_of(reference: np.ndarray, bound: float) -> Domain:
    return Domain(torch.from_numpy(reference), bound)


def assert_optimal(w: Tensor, gradient: Tensor, ball: Domain, tolerance: float = 1e-9) -> None:
    """-gradient = mu theta with mu >= 0, and mu = 0 inside the ball."""
    theta = w + ball.theta_ref
    norm = theta.norm(dim=-1)
    assert (norm <= ball.bound * (1 + 1e-12)).all()
    mu = torch.where(norm > ball.bound * (1 - 1e-9), -(gradient * theta).sum(-1) / norm**2, 0.0)
    assert (mu >= -tolerance).all()
    assert (
        (gradient + mu[:, None] * theta).norm(dim=-1) <= tolerance * (1 + gradient.norm(dim=-1))
    ).all()


@given(st.integers(0, 2**31), st.sampled_from([0.05, 0.5, 50.0]), st.integers(1, 5))
@quick
def test_quadratics(seed: int, bound: float, d: int) -> None:
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((4, d, d))
    H, c = (
        torch.from_numpy(root @ root.transpose(0, 2, 1) + 0.1 * np.eye(d)),
        torch.from_numpy(rng.standard_normal((4, d))),
    )
    reference = rng.standard_normal(d)
    ball = ball_of(0.5 * bound * reference / np.linalg.norm(reference), bound)
    function = Quadratic(H, c)
    w, settled, steps = minimise(function, torch.zeros(4, d, dtype=torch.float64), ball)
    assert settled.all() and (steps <= 10).all()
    assert_optimal(w, function.derivatives(w)[1], ball)


@pytest.mark.parametrize("bound", [0.3, 2.0, 100.0])
def test_logistic_regression_against_slsqp(bound: float) -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((3, 40, 3)) + 0.3
    reference = np.array([0.1, -0.05, 0.1])
    function, ball = Logistic(torch.from_numpy(x)), ball_of(reference, bound)
    w, settled, _ = minimise(function, torch.zeros(3, 3, dtype=torch.float64), ball)
    assert settled.all()
    value, gradient, _ = function.derivatives(w)
    assert_optimal(w, gradient, ball)
    for r in range(3):
        found = minimize(
            lambda v, r=r: np.logaddexp(0, -x[r] @ v).mean(),
            np.zeros(3),
            constraints=[
                {"type": "ineq", "fun": lambda v: bound**2 - ((v + reference) ** 2).sum()}
            ],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 300},
        )
        assert value[r].item() <= found.fun + 1e-11
        assert value[r].item() == pytest.approx(found.fun, abs=1e-8)
        np.testing.assert_allclose(w[r], found.x, atol=1e-4)


def test_separable_data_end_on_the_sphere() -> None:
    x = torch.rand(2, 10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    function, ball = Logistic(x), ball_of(np.zeros(3), 20.0)
    w, _, _ = minimise(function, torch.zeros(2, 3, dtype=torch.float64), ball)
    np.testing.assert_allclose(w.norm(dim=-1), 20.0, rtol=1e-9)


def test_directions_that_no_pair_sees() -> None:
    """A singular Hessian: the flat direction is left where it was."""
    x = torch.zeros(1, 6, 2, dtype=torch.float64)
    x[0, :, 0] = torch.tensor([1.0, 1, 1, 1, -1, -1])
    w, _, _ = minimise(
        Logistic(x), torch.zeros(1, 2, dtype=torch.float64), ball_of(np.zeros(2), 10.0)
    )
    assert w[0, 0].item() == pytest.approx(np.log(2), rel=1e-10)  # sigma(w) = 4/6
    assert w[0, 1].item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("bound", [0.5, 10.0])
def test_an_extra_positive_variable(bound: float) -> None:
    c = torch.tensor([[1.0, 2.0], [-3.0, 0.5], [0.1, 0.2]], dtype=torch.float64)
    ball = ball_of(np.array([0.1, -0.2]), bound)
    start = torch.tensor([[0.0, 0.0, 5.0]], dtype=torch.float64).expand(3, -1)
    v, settled, _ = minimise(Perspective(c), start, ball)
    assert settled.all()
    target = c + ball.theta_ref  # the nearest point of the ball
    nearest = target * (bound / target.norm(dim=-1, keepdim=True)).clamp(max=1) - ball.theta_ref
    torch.testing.assert_close(v[:, :2], nearest, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        v[:, 2], (((nearest - c) ** 2).sum(-1) + 1).sqrt(), rtol=1e-8, atol=1e-8
    )


def test_negative_curvature() -> None:
    start = torch.tensor([[0.1, -0.2], [0.01, 0.4]], dtype=torch.float64)
    v, settled, _ = minimise(DoubleWell(), start, ball_of(np.zeros(2), 10.0), convex=False)
    assert settled.all()
    torch.testing.assert_close(v, start.sign(), rtol=0, atol=1e-9)


@dataclass
class Rounded(Quadratic):
    """The same with a gradient of which the last digits are noise, and a count of its
    evaluations."""

    noise: torch.Generator
    evaluations: list[int]

    def derivatives(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.evaluations.append(len(v))
        value, gradient, hessian = super().derivatives(v)
        return (
            value,
            gradient + 1e-15 * torch.randn(v.shape, generator=self.noise, dtype=v.dtype),
            hessian,
        )


def test_a_last_step_that_drowns_in_rounding_is_not_halved() -> None:
    """A start, the step to the minimum and one within rounding: three evaluations, whatever the
    sign of the last slope."""
    H = torch.eye(3, dtype=torch.float64).repeat(50, 1, 1)
    problem = Rounded(
        H, torch.ones(50, 3, dtype=torch.float64), torch.Generator().manual_seed(0), []
    )
    v, settled, _ = minimise(
        problem,
        torch.zeros(50, 3, dtype=torch.float64),
        Domain(torch.zeros(3, dtype=torch.float64), 10.0),
    )
    assert settled.all() and (v - 1).abs().max() < 1e-13
    assert problem.evaluations == [50] * 3


def test_a_batch_ends_each_problem_by_itself() -> None:
    rng = np.random.default_rng(1)
    x = torch.from_numpy(
        rng.standard_normal((5, 30, 3)) * np.array([0.01, 0.1, 1, 10, 100])[:, None, None]
    )
    ball = ball_of(np.zeros(3), 3.0)
    together, _, _ = minimise(Logistic(x), torch.zeros(5, 3, dtype=torch.float64), ball)
    for r in range(5):
        alone, _, _ = minimise(Logistic(x[r : r + 1]), torch.zeros(1, 3, dtype=torch.float64), ball)
        torch.testing.assert_close(together[r], alone[0], rtol=1e-9, atol=1e-10)


@given(st.integers(0, 2**31))
@quick
def test_projection_and_linear_gap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ball = ball_of(rng.standard_normal(3) * 0.3, 1.5)
    w = torch.from_numpy(rng.standard_normal((1, 3)) * 3)
    inside = ball.project(w)
    others = torch.from_numpy(rng.standard_normal((2000, 3)))
    others = (
        others
        * (
            ball.bound
            * torch.from_numpy(rng.random((2000, 1))) ** (1 / 3)
            / others.norm(dim=-1, keepdim=True)
        )
        - ball.theta_ref
    )
    assert (inside + ball.theta_ref).norm() <= ball.bound * (1 + 1e-14)
    assert (inside - w).norm() <= (others - w).norm(dim=-1).min() + 1e-12
    g = torch.from_numpy(rng.standard_normal((1, 3)))
    gap = ball.linear_gap(inside, g)
    sampled = ((inside - others) * g).sum(-1).max()
    assert (
        sampled <= gap + 1e-12 and sampled >= gap - 0.5 * g.norm()
    )  # a maximum over the ball, nearly met by the sample
