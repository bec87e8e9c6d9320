"""Worst cases over KL and transport balls against linear programs, scipy and closed forms;
certificates and edge cases."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linprog, minimize_scalar
from scipy.special import logsumexp, rel_entr

from tests.jitter import order
from theory.duals import BallDual, kl_ball_dual, transport_dual

Array = NDArray[np.float64]
quick = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def kl(losses: Array, p: Array, radius: float) -> BallDual:
    return kl_ball_dual(
        torch.from_numpy(losses)[None],
        torch.from_numpy(p)[None],
        torch.tensor([radius], dtype=torch.float64),
    )


def transport(losses: Array, p: Array, cost: Array, budget: float) -> BallDual:
    radius = torch.tensor([budget], dtype=torch.float64)
    return transport_dual(
        torch.from_numpy(losses)[None], torch.from_numpy(p)[None], torch.from_numpy(cost), radius
    )


def instance(seed: int, n: int = 6, ties: bool = False) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    losses = rng.integers(0, 3, n).astype(float) if ties else rng.exponential(size=n)
    place = rng.standard_normal((n, 2))
    p, k = rng.dirichlet(np.ones(n)), order(n)
    return losses[k], p[k], np.linalg.norm(place[k][:, None] - place[k][None], axis=-1)


def best_kl_value(losses: Array, p: Array, radius: float) -> float:
    """min over lambda of the convex dual, by Brent's method on log lambda."""

    def dual(log_lam: float) -> float:
        lam = np.exp(log_lam)
        return lam * radius + lam * logsumexp(losses / lam, b=p)

    return min(
        minimize_scalar(dual, bracket=(a, a + 1), tol=1e-14).fun for a in (-6.0, -2.0, 0.0, 3.0)
    )


def best_plan_value(losses: Array, p: Array, cost: Array, budget: float) -> float:
    n = len(p)
    rows = np.kron(np.eye(n), np.ones(n))
    found = linprog(
        -np.tile(losses, n),
        A_ub=cost.reshape(1, -1),
        b_ub=[budget],
        A_eq=rows,
        b_eq=p,
        bounds=(0, None),
    )
    assert found.status == 0
    return -found.fun


def cheapest_plan(p: Array, q: Array, cost: Array) -> float:
    n = len(p)
    rows, columns = np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))
    found = linprog(
        cost.ravel(),
        A_eq=np.vstack([rows, columns])[:-1],
        b_eq=np.concatenate([p, q])[:-1],
        bounds=(0, None),
    )
    assert found.status == 0
    return found.fun


# ----------------------------------------------------------------------------------------------- KL
@given(seeds, st.floats(1e-4, 1.5), st.booleans())
@quick
def test_kl_value_against_scipy(seed: int, radius: float, ties: bool) -> None:
    losses, p, _ = instance(seed, ties=ties)
    found = kl(losses, p, radius)
    top = losses == losses.max()
    truth = losses.max() if radius >= -np.log(p[top].sum()) else best_kl_value(losses, p, radius)
    assert found.value.item() == pytest.approx(truth, abs=2e-8)


@given(seeds, st.floats(-10, 1.5), st.booleans())
@quick
def test_kl_worst_case_is_feasible_and_certified(seed: int, log_radius: float, ties: bool) -> None:
    radius = 10**log_radius
    losses, p, _ = instance(seed, ties=ties)
    found = kl(losses, p, radius)
    q = found.weights[0].numpy()
    assert (q >= 0).all() and q.sum() == pytest.approx(1, abs=1e-12)
    spent = rel_entr(q, p).sum()
    assert spent <= radius * (1 + 1e-9) + 1e-14
    assert found.used.item() == pytest.approx(spent, abs=1e-13, rel=1e-9)
    assert found.gap.item() == pytest.approx(found.value.item() - q @ losses, abs=1e-13)
    assert bool(found.converged) and abs(found.gap.item()) <= 1e-9 * (1 + np.ptp(losses))


@pytest.mark.parametrize("radius", [1e-6, 1e-9, 1e-12])
def test_small_kl_radius_is_a_variance_penalty(radius: float) -> None:
    """value = mean + sqrt(2 rho Var) + O(rho), to a relative accuracy that does not depend on the
    radius."""
    losses, p, _ = instance(1)
    average = p @ losses
    deviation = np.sqrt(2 * radius * (p @ (losses - average) ** 2))
    found = kl(losses, p, radius)
    assert bool(found.converged)
    assert found.value.item() - average == pytest.approx(
        deviation, rel=3 * np.sqrt(radius) + 1e-3, abs=1e-15
    )


def test_kl_edges() -> None:
    losses, p, _ = instance(2)
    plain = kl(losses, p, 0.0)
    assert plain.value.item() == pytest.approx(p @ losses, rel=1e-14)
    assert plain.dual.item() == np.inf
    np.testing.assert_allclose(plain.weights[0], p)
    huge = kl(losses, p, 1e9)
    assert huge.value.item() == losses.max() and huge.dual.item() == 0
    assert huge.weights[0, losses.argmax()].item() == 1
    equal = kl(np.full(4, 3.25), np.full(4, 0.25), 0.7)
    assert (
        equal.value.item() == pytest.approx(3.25)
        and equal.dual.item() == 0
        and bool(equal.converged)
    )


def test_kl_threshold_of_a_degenerate_worst_case() -> None:
    """lambda = 0 on n equal weights with a unique largest loss iff rho >= log n."""
    losses, p = np.arange(8.0), np.full(8, 1 / 8)
    assert kl(losses, p, np.log(8) - 1e-6).dual.item() > 0
    assert kl(losses, p, np.log(8) - 1e-6).value.item() < 7
    assert kl(losses, p, np.log(8) + 1e-12).dual.item() == 0


def test_kl_never_moves_mass_to_an_atom_without_weight() -> None:
    losses, p = np.array([0.0, 1.0, 100.0]), np.array([0.5, 0.5, 0.0])
    for radius in (0.0, 0.1, 0.5, 10.0):
        found, alone = kl(losses, p, radius), kl(losses[:2], p[:2], radius)
        assert found.value.item() == pytest.approx(alone.value.item(), rel=1e-13)
        assert found.weights[0, 2].item() == 0
        assert bool(found.converged)


@given(seeds)
@quick
def test_kl_monotone_concave_and_scale_equivariant(seed: int) -> None:
    losses, p, _ = instance(seed)
    radii = np.linspace(0, 2.5, 21)
    values = np.array([kl(losses, p, r).value.item() for r in radii])
    assert (np.diff(values) >= -1e-12).all()
    assert (np.diff(values, 2) <= 1e-9).all()
    assert p @ losses - 1e-12 <= values.min() and values.max() <= losses.max() + 1e-12
    for factor in (1e-8, 1e8):
        scaled = kl(factor * losses - 3 * factor, p, 0.3)
        reference = kl(losses - 3, p, 0.3)
        assert scaled.value.item() == pytest.approx(factor * reference.value.item(), rel=1e-10)
        assert scaled.dual.item() == pytest.approx(factor * reference.dual.item(), rel=1e-6)


def test_kl_dual_is_the_slope_in_the_radius() -> None:
    losses, p, _ = instance(4)
    slope = (kl(losses, p, 0.3 + 1e-5).value - kl(losses, p, 0.3 - 1e-5).value) / 2e-5
    assert kl(losses, p, 0.3).dual.item() == pytest.approx(slope.item(), rel=1e-5)


# ---------------------------------------------------------------------------------------- transport
@given(seeds, st.floats(0, 4), st.sampled_from([1, 2]), st.booleans())
@quick
def test_transport_value_against_a_linear_program(
    seed: int, budget: float, power: int, ties: bool
) -> None:
    losses, p, distance = instance(seed, ties=ties)
    found = transport(losses, p, distance**power, budget)
    assert found.value.item() == pytest.approx(
        best_plan_value(losses, p, distance**power, budget), abs=1e-9
    )
    assert bool(found.converged)


@given(seeds, st.floats(0, 3), st.booleans())
@quick
def test_transport_worst_case_is_feasible(seed: int, budget: float, ties: bool) -> None:
    losses, p, distance = instance(seed, ties=ties)
    found = transport(losses, p, distance, budget)
    q = found.weights[0].numpy()
    assert (q >= 0).all() and q.sum() == pytest.approx(1, abs=1e-12)
    assert cheapest_plan(p, q, distance) <= budget + 1e-9
    assert found.used.item() <= budget + 1e-12
    assert found.gap.item() == pytest.approx(found.value.item() - q @ losses, abs=1e-13)


def test_transport_edges() -> None:
    losses, p, distance = instance(6)
    assert transport(losses, p, distance, 0.0).value.item() == pytest.approx(p @ losses, rel=1e-14)
    np.testing.assert_allclose(transport(losses, p, distance, 0.0).weights[0], p)
    huge = transport(losses, p, distance, 1e9)
    assert huge.value.item() == pytest.approx(losses.max(), rel=1e-14) and huge.dual.item() == 0
    assert huge.used.item() == pytest.approx(p @ distance[:, losses.argmax()])
    equal = transport(np.full(6, 2.0), p, distance, 0.3)
    assert (
        equal.value.item() == pytest.approx(2.0)
        and bool(equal.converged)
        and equal.used.item() == 0
    )


def test_transport_by_hand() -> None:
    """Two atoms at distance 2, losses 0 and 1: budget 0.5 moves a quarter of mass, worth 1/4, at
    the price eta = 1/2."""
    found = transport(
        np.array([0.0, 1.0]), np.array([0.8, 0.2]), np.array([[0.0, 2.0], [2.0, 0.0]]), 0.5
    )
    assert found.value.item() == pytest.approx(0.45)
    assert found.dual.item() == pytest.approx(0.5)
    np.testing.assert_allclose(found.weights[0], [0.55, 0.45])


def test_atoms_at_zero_distance_move_for_nothing() -> None:
    """A world may list the same pair twice; then the larger loss is reached at radius zero."""
    found = transport(np.array([0.0, 1.0]), np.array([0.8, 0.2]), np.zeros((2, 2)), 0.0)
    assert found.value.item() == pytest.approx(1.0) and found.used.item() == 0


def test_transport_reaches_atoms_without_weight() -> None:
    losses, p, cost = np.array([0.0, 3.0]), np.array([1.0, 0.0]), np.array([[0.0, 1.0], [1.0, 0.0]])
    assert transport(losses, p, cost, 0.25).value.item() == pytest.approx(0.75)


@given(seeds)
@quick
def test_transport_monotone_concave_and_scale_equivariant(seed: int) -> None:
    losses, p, distance = instance(seed)
    values = np.array(
        [transport(losses, p, distance, b).value.item() for b in np.linspace(0, 3, 16)]
    )
    assert (np.diff(values) >= -1e-12).all() and (np.diff(values, 2) <= 1e-9).all()
    reference = transport(losses, p, distance, 0.4)
    for factor in (1e-7, 1e7):
        assert transport(factor * losses, p, distance, 0.4).value.item() == pytest.approx(
            factor * reference.value.item(), rel=1e-9
        )
        scaled = transport(losses, p, factor * distance, factor * 0.4)
        assert scaled.value.item() == pytest.approx(reference.value.item(), rel=1e-9)
        assert scaled.dual.item() * factor == pytest.approx(reference.dual.item(), rel=1e-6)


# ------------------------------------------------------------------------------------------ batches
def test_a_batch_is_its_rows() -> None:
    rows = [instance(s) for s in range(7)]
    losses = torch.from_numpy(np.stack([r[0] for r in rows]))
    p = torch.from_numpy(np.stack([r[1] for r in rows]))
    radius = torch.tensor([0.0, 1e-6, 0.1, 0.5, 1.0, 3.0, 50.0], dtype=torch.float64)
    cost = torch.from_numpy(rows[0][2])
    for batch, single in (
        (
            kl_ball_dual(losses, p, radius),
            lambda r: kl_ball_dual(losses[r : r + 1], p[r : r + 1], radius[r : r + 1]),
        ),
        (
            transport_dual(losses, p, cost, radius),
            lambda r: transport_dual(losses[r : r + 1], p[r : r + 1], cost, radius[r : r + 1]),
        ),
    ):
        for r in range(7):
            torch.testing.assert_close(batch.value[r], single(r).value[0], rtol=1e-13, atol=1e-14)
            torch.testing.assert_close(batch.dual[r], single(r).dual[0], rtol=1e-10, atol=1e-14)
            torch.testing.assert_close(
                batch.weights[r], single(r).weights[0], rtol=1e-10, atol=1e-14
            )
