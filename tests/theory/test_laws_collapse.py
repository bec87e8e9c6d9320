"""The law at the edge of collapse, against closed forms, cvxpy and the objective itself."""

import math

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.fitting import fit
from theory.laws.collapse import free_edge, kl_edge, norm_penalty_edge
from theory.sets.wasserstein_free import WassersteinFree

KNIFE = (1 + math.sqrt(0.5)) / 2


def _atoms(seed: int, count: int = 12, d: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    u = rng.standard_normal((count, d)) + 0.2
    return np.concatenate([u, -u]), np.tile(rng.dirichlet(np.ones(count)), 2) * np.repeat(
        [0.6, 0.4], count
    )


def test_the_kl_edge_of_two_atoms_by_hand() -> None:
    """u = ±1 with chance c: Q* is the fair coin, radius
    -log(2 sqrt(c(1-c)))."""
    c = 0.8
    law = kl_edge([[1.0], [-1.0]], [c, 1 - c], beta=2.0)
    xi = math.log(c / (1 - c)) / 2
    ratio = np.array([0.5 / c, 0.5 / (1 - c)])
    assert law.radius == pytest.approx(-math.log(2 * math.sqrt(c * (1 - c))))
    assert law.direction.tolist() == [1.0]
    assert np.allclose(law.influence, (1 - ratio) / xi)
    assert law.curvature == pytest.approx(1.0)
    # the robust fit of p̂ is logit q/beta, q the lower root of KL(q||p̂) = radius: dq/dp̂ at c by
    # implicit differentiation, logit'(1/2) = 4
    slope = (0.5 / c - 0.5 / (1 - c)) / math.log((1 - c) / c)
    n = 10**8
    assert law.of_sample(np.array([c + 1e-4, 1 - c - 1e-4])) == pytest.approx(
        4 * slope * 1e-4 / 2.0, rel=1e-10
    )
    spread = slope * math.sqrt(c * (1 - c))
    assert law.quantile(n, 0.975) == pytest.approx(
        4 * spread * 1.959964 / 2.0 / math.sqrt(n), rel=1e-6
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_the_kl_edge_is_that_of_a_convex_program(seed: int) -> None:
    u, p = _atoms(seed)
    law = kl_edge(u, p, beta=1.0)
    q = cp.Variable(len(p))
    program = cp.Problem(cp.Minimize(cp.sum(cp.kl_div(q, p))), [u.T @ q == 0, cp.sum(q) == 1])
    program.solve(solver=cp.CLARABEL)
    assert law.radius == pytest.approx(program.value, rel=1e-5)
    assert np.allclose(p @ law.influence, 0, atol=1e-10)
    worst = np.asarray(q.value)
    # xi by least squares of log q/p on (u, 1), from the program alone
    xi = np.linalg.lstsq(np.c_[u, np.ones(len(p))], np.log(worst / p), rcond=None)[0][:-1]
    assert np.allclose(-xi / np.linalg.norm(xi), law.direction, atol=1e-3)
    assert np.allclose((1 - worst / p) / np.linalg.norm(xi), law.influence, atol=5e-3)
    assert law.curvature == pytest.approx(worst @ (u @ law.direction) ** 2, rel=1e-3)


@pytest.mark.parametrize("power", [1, 2])
def test_curvature_and_slope_are_those_of_the_objective(power: int) -> None:
    """Differences of the robust objective, valued by one-sided steps along the ray."""
    u, p = _atoms(3)
    law = free_edge(u, p, beta=1.0, power=power)
    from theory.worst_cases import worst_case  # needs no fit

    ball = WassersteinFree(law.radius, power=power)
    small = 1e-3

    def value(size: float) -> float:
        return worst_case(u, size * law.direction, ball, p, beta=1.0).value

    second = (value(2 * small) - 2 * value(small) + math.log(2)) / small**2
    assert second == pytest.approx(law.curvature / 4, rel=2e-2)
    assert abs(value(small) - math.log(2)) < law.curvature * small**2


def test_the_knife_edge_law_and_its_constant() -> None:
    law = norm_penalty_edge([[1.0], [-1.0]], [KNIFE, 1 - KNIFE], beta=1.0)
    assert law.curvature == 0 and law.exponent == -0.25
    assert law.cubic == pytest.approx(math.sqrt(0.5) / 32)
    # E max(0, N) = 1/sqrt(2 pi)
    assert law.root_mean_square(1e8) * 1e2 == pytest.approx(
        math.sqrt(16 / 3 / math.sqrt(2 * math.pi)), rel=1e-6
    )
    draws = law.draw(1e8, 200_000, np.random.default_rng(0))
    assert np.sqrt((draws**2).sum(1).mean()) == pytest.approx(law.root_mean_square(1e8), rel=0.01)
    assert (draws == 0).all(1).mean() == pytest.approx(0.5, abs=0.01)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(1e-3, 1e3),
    turn=st.integers(0, 10_000),
    kind=st.sampled_from(["kl", "w1", "w2"]),
)
def test_scaling_and_rotating_the_features(seed: int, scale: float, turn: int, kind: str) -> None:
    """u -> c R u turns the distance into distance/c and the ray into R e."""
    u, p = _atoms(seed)
    rotation = np.linalg.qr(np.random.default_rng(turn).standard_normal((3, 3)))[0]

    def law_of(atoms: np.ndarray):  # type: ignore[no-untyped-def]
        if kind == "kl":
            return kl_edge(atoms, p, beta=0.7)
        return free_edge(atoms, p, beta=0.7, power=int(kind[1]))

    plain, moved = law_of(u), law_of(scale * u @ rotation.T)
    assert np.allclose(moved.direction, rotation @ plain.direction, atol=1e-6)
    assert moved.quantile(1e6, 0.9) * scale == pytest.approx(plain.quantile(1e6, 0.9), rel=1e-6)
    assert moved.exponent == -0.5 and plain.quantile(1e6, 0.5) == 0


def test_the_bend_of_the_ray_at_a_knife_edge_in_the_plane() -> None:
    """The least value of Algorithm 1's objective over directions at distance b is log 2 + c b³."""
    u = np.array([[0.0, -0.24], [1.2, 0.24]])
    u, p = np.concatenate([u + [0, 0.3], u - [0, 0.3]]), np.full(4, 0.25)
    law = norm_penalty_edge(u, p, beta=1.0)
    b, angles = 3e-3, np.linspace(-0.05, 0.05, 200_001)
    down = 1 / (1 + np.exp(b * np.stack([np.cos(angles), np.sin(angles)], 1) @ u.T))
    value = -np.log1p(-down) @ p + law.radius * b * np.sqrt(np.square(down) @ p)
    assert (value.min() - math.log(2)) / b**3 == pytest.approx(law.cubic, rel=0.02)
    assert law.cubic == pytest.approx((0.6**3 - 0.24**2 * 0.6) / 16)  # Cov = 0.6 * 0.24


def test_beyond_the_edge_the_answer_is_the_reference() -> None:
    u, p = _atoms(5)
    law = free_edge(u, p, beta=1.0)
    n = 2000
    draws = np.random.default_rng(0).multinomial(n, p, 400) / n
    moved = fit(u, WassersteinFree(1.5 * law.radius, power=2), draws, beta=1.0, bound=5.0).theta
    gap, reach = 0.5 * law.radius, float(np.linalg.norm(u, axis=1).max())
    left = float((moved.norm(dim=1) > 0).double().mean())
    assert left <= 2 * math.exp(-n * gap**2 / (8 * reach**2)) + 3 / math.sqrt(400)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: free_edge([[1.0], [-1.0]], beta=1.0), "E u = 0"),
        (lambda: free_edge([[1.0], [1.0]], beta=1.0), "do not vary"),
        (lambda: free_edge([[1.0], [-1.0]], [0.8, 0.2], beta=1.0, power=3), "power must be"),
        (lambda: norm_penalty_edge([[1.0], [-1.0]], [0.9, 0.1], beta=1.0), "falls away"),
        (lambda: kl_edge([[1.0], [0.5]], beta=1.0), "no law"),
        (lambda: kl_edge([[np.nan], [0.5]], beta=1.0), "finite"),
    ],
)
def test_refusals_say_what_to_do(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=words):
        call()
