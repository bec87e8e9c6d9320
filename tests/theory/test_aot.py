"""The AOT estimator against convex programs for every coupling, and what must hold at any of its
points."""

from itertools import permutations

import cvxpy as cp
import numpy as np
import pytest
import torch

from tests.jitter import order
from theory.aot import Cost, minimise_aot, potentials, random_starts
from theory.functionals import aot_unpaired
from theory.losses import least_squares, logistic, squared_hinge

COSTS = {
    "logistic": (logistic, 1.5),
    "squared hinge": (squared_hinge, 0.5),
    "least squares": (least_squares, 0.5),
}


def sample(seed: int, n: int, m: int, d: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0.2, 1, (n, d))[order(n)], rng.normal(0, 1, (m, d))[order(m)]


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("seed", range(2))
def test_the_best_of_all_couplings(name: str, seed: int) -> None:
    """Four pairs have 24 couplings; the minimum over theta of each is a convex program."""
    a, b = sample(seed, 4, 4)
    h, beta = COSTS[name]
    bound = 1.5
    least = np.inf
    for coupling in permutations(range(4)):
        theta = cp.Variable(2)
        t = (a - b[list(coupling)]) @ theta
        cost = {
            "logistic": cp.logistic(-beta * t),
            "squared hinge": cp.square(cp.pos(beta - t)),
            "least squares": (beta - t) ** 2,
        }
        problem = cp.Problem(cp.Minimize(cp.sum(cost[name]) / 4), [cp.norm(theta) <= bound])
        least = min(least, problem.solve(solver="CLARABEL"))
    fit = minimise_aot(
        a,
        b,
        starts=random_starts(np.random.default_rng(seed), 40, 2, bound),
        h=h,
        beta=beta,
        bound=bound,
    )
    assert fit.value.item() == pytest.approx(least, abs=1e-7)
    assert fit.converged.all()
    assert fit.theta.norm() <= bound * (1 + 1e-12)


def test_every_start_ends_at_a_local_minimum() -> None:
    """Unequal sizes, weights and replicates: the value is the objective's, and no small step lowers
    it."""
    a, b = sample(3, 8, 5, d=3)
    rng = np.random.default_rng(4)
    p, q = rng.dirichlet(np.ones(8), size=6), rng.dirichlet(np.ones(5), size=6)
    fit = minimise_aot(
        a, b, p, q, starts=random_starts(rng, 5, 3, 2.0), h=logistic, beta=1.0, bound=2.0
    )
    A, B, P, Q = (torch.from_numpy(x) for x in (a, b, p, q))

    def objective(theta: torch.Tensor) -> torch.Tensor:
        return aot_unpaired(theta @ A.T, theta @ B.T, logistic, 1.0, P, Q)

    assert fit.converged.all() and fit.starts.shape == (6, 5)
    torch.testing.assert_close(objective(fit.theta), fit.value)
    assert torch.equal(fit.value, fit.starts.min(1).values)
    for _ in range(50):
        nearby = fit.theta + 1e-4 * torch.from_numpy(rng.standard_normal((6, 3)))
        nearby = nearby * (2.0 / nearby.norm(dim=1, keepdim=True)).clamp(max=1)
        assert (objective(nearby) >= fit.value - 1e-12).all()


def test_replicates_are_independent_and_starts_may_differ() -> None:
    chosen, rejected = zip(*(sample(seed, 5, 5) for seed in range(3)), strict=True)
    starts = torch.stack(
        [random_starts(np.random.default_rng(seed), 4, 2, 1.0) for seed in range(3)]
    )
    common = {"h": squared_hinge, "beta": 0.3, "bound": 1.0}
    together = minimise_aot(np.stack(chosen), np.stack(rejected), starts=starts, **common)
    for i in range(3):
        alone = minimise_aot(chosen[i], rejected[i], starts=starts[i], **common)
        torch.testing.assert_close(alone.theta[0], together.theta[i])
        torch.testing.assert_close(alone.starts[0], together.starts[i])


def test_a_linear_h_has_a_closed_form() -> None:
    """h(t) = -t: every coupling costs the same, and theta points along the difference of the means,
    out to the bound."""
    a, b = sample(5, 6, 4)
    fit = minimise_aot(
        a, b, starts=torch.zeros(1, 2).double(), h=lambda t, beta: -beta * t, beta=1.0, bound=3.0
    )
    drift = torch.from_numpy(a.mean(0) - b.mean(0))
    torch.testing.assert_close(fit.theta[0], 3 * drift / drift.norm())
    assert fit.value.item() == pytest.approx(-3 * drift.norm().item())


def test_random_starts_fill_the_ball() -> None:
    starts = random_starts(np.random.default_rng(0), 4000, 3, 2.0)
    radius = starts.norm(dim=1)
    assert radius.max() <= 2.0
    assert (radius < 1.0).double().mean().item() == pytest.approx(1 / 8, abs=0.03)


@pytest.mark.parametrize("h", [logistic, squared_hinge, least_squares])
@pytest.mark.parametrize(("n", "m"), [(2, 2), (7, 7), (5, 3)])
def test_potentials_solve_the_dual(h: Cost, n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    u, v, p, q = (
        rng.normal(size=n),
        rng.normal(size=m),
        rng.dirichlet(np.ones(n)),
        rng.dirichlet(np.ones(m)),
    )
    phi, psi = potentials(u, v, h, 1.0, p, q)
    price = h(torch.from_numpy(u[:, None] - v), 1.0).numpy()
    assert (
        phi[:, None] + psi <= price + 1e-12
    ).all()  # feasible, so that its value is no more than OT_h
    value = aot_unpaired(*map(torch.from_numpy, (u, v)), h, 1.0, *map(torch.from_numpy, (p, q)))
    assert p @ phi + q @ psi == pytest.approx(float(value), abs=1e-12)


def test_bad_input() -> None:
    a, b = sample(0, 3, 3)
    with pytest.raises(ValueError, match="share their last axis"):
        minimise_aot(a, b, starts=torch.zeros(1, 3).double(), h=logistic, beta=1.0, bound=1.0)
    with pytest.raises(ValueError, match="bound must be a positive finite number, got 0"):
        minimise_aot(a, b, starts=torch.zeros(1, 2).double(), h=logistic, beta=1.0, bound=0)
    with pytest.raises(ValueError, match="every atom needs a positive chance, got 0"):
        potentials(np.zeros(2), np.ones(1), logistic, 1.0, np.array([1.0, 0.0]), np.ones(1))
