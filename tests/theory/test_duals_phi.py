"""Worst cases of the chi-squared, CVaR and total-variation balls: convex programs, two atoms by
hand, and invariances."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.jitter import order
from theory.duals import BallDual, chi2_ball_dual, cvar_dual, kl_ball_dual, total_variation_dual
from theory.twins.worst_cases import reweighting

Array = NDArray[np.float64]
quick = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
DUALS: dict[str, Callable[..., BallDual]] = {
    "kl": kl_ball_dual,
    "chi2": chi2_ball_dual,
    "cvar": cvar_dual,
    "tv": total_variation_dual,
}
BALLS = tuple(DUALS)


def worst(ball: str, losses: Array, p: Array, radius: float) -> BallDual:
    batch = [torch.from_numpy(np.atleast_1d(np.asarray(x, dtype=float)))[None] for x in (losses, p)]
    return DUALS[ball](*batch, torch.tensor([radius], dtype=torch.float64))


def weights(found: BallDual) -> Array:
    return found.weights[0].numpy()


def instance(seed: int, n: int = 6) -> tuple[Array, Array]:
    """Ties on every third seed, atoms without mass on every fourth."""
    rng = np.random.default_rng(seed)
    losses = rng.integers(0, 3, n).astype(float) if seed % 3 == 0 else rng.exponential(size=n)
    p = rng.dirichlet(np.ones(n))
    if seed % 4 == 0:
        p = np.where(rng.random(n) < 0.4, 0.0, p)
        p[0] += 0.1
    k = order(n)
    return losses[k], p[k] / p.sum()


def a_radius(ball: str, seed: int) -> float:
    """From tiny balls to those that hold a point mass; for CVaR a share."""
    u = np.random.default_rng([seed, 1]).random()
    return float(
        {
            "kl": 10 ** (4 * u - 3),
            "chi2": 10 ** (8 * u - 6),
            "cvar": 0.01 + 0.99 * u,
            "tv": 1.2 * u,
        }[ball]
    )


def distance(ball: str, q: Array, p: Array) -> float:
    """Recomputed here, from the definitions."""
    live = p > 0
    q, p = q[live], p[live]
    if ball == "kl":
        return float(np.sum(np.where(q > 0, q * np.log(np.where(q > 0, q, 1) / p), 0)))
    return float(
        {"chi2": np.sum((q - p) ** 2 / p), "cvar": np.max(q / p), "tv": np.abs(q - p).sum() / 2}[
            ball
        ]
    )


# ---------------------------------------------------------------------------- against other solvers
@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("seed", range(30))
def test_value_against_a_convex_program(ball: str, seed: int) -> None:
    losses, p = instance(seed)
    radius = a_radius(ball, seed)
    found = worst(ball, losses, p, radius)
    _, value = reweighting(ball, losses, p, radius)
    assert found.value.item() == pytest.approx(value, abs=2e-7 * (1 + np.ptp(losses)))


@pytest.mark.parametrize("ball", BALLS)
@given(seed=seeds)
@quick
def test_the_worst_case_is_feasible_and_attains_the_dual_value(ball: str, seed: int) -> None:
    losses, p = instance(seed)
    radius = a_radius(ball, seed)
    found = worst(ball, losses, p, radius)
    q = weights(found)
    assert (q >= 0).all() and (q[p == 0] == 0).all() and q.sum() == pytest.approx(1, abs=1e-13)
    allowed = 1 / radius if ball == "cvar" else radius
    assert distance(ball, q, p) <= allowed * (1 + 1e-9) + 1e-14
    assert found.used.item() == pytest.approx(distance(ball, q, p), rel=1e-9, abs=1e-14)
    assert q @ losses == pytest.approx(found.value.item(), abs=1e-12 * (1 + np.ptp(losses)))
    assert found.gap.item() == pytest.approx(found.value.item() - q @ losses, abs=1e-14)
    assert bool(found.converged)


# ------------------------------------------------------------------------------- two atoms, by hand
@pytest.mark.parametrize("p", [1e-100, 1e-15, 0.1, 0.5, 0.7])
@pytest.mark.parametrize("radius", [1e-10, 1e-3, 0.1, 0.9, 3.0, 1e6])
def test_chi2_with_two_atoms(p: float, radius: float) -> None:
    """Losses 1 and 0 with mass p and 1-p: q = p + (rho p (1-p))^(1/2) until q = 1, at rho =
    (1-p)/p."""
    found = worst("chi2", [1.0, 0.0], [p, 1 - p], radius)
    q = min(p + np.sqrt(radius * p * (1 - p)), 1.0)
    assert found.value.item() == pytest.approx(q, rel=1e-14)
    assert weights(found)[0] == pytest.approx(q, rel=1e-13) and weights(
        found
    ).sum() == pytest.approx(1, abs=1e-14)
    slope = (
        0.5 * np.sqrt(p * (1 - p) / radius) if q < 1 else 0.0
    )  # lam is the derivative of the value in the radius
    assert found.dual.item() == pytest.approx(slope, rel=1e-7, abs=1e-15)


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.6, 1.0])
def test_cvar_with_two_atoms(alpha: float) -> None:
    """Losses 1 and 0 with mass 0.3 and 0.7: min(0.3/alpha, 1)."""
    found = worst("cvar", [1.0, 0.0], [0.3, 0.7], alpha)
    assert found.value.item() == pytest.approx(min(0.3 / alpha, 1), rel=1e-14)
    assert found.dual.item() == (1.0 if alpha <= 0.3 else 0.0)  # the threshold


@pytest.mark.parametrize("radius", [0.0, 0.2, 0.7, 0.9, 5.0])
def test_total_variation_with_two_atoms(radius: float) -> None:
    """Losses 1 and 0 with mass 0.3 and 0.7: min(0.3 + rho, 1), at the rate 1 until all is at the
    top."""
    found = worst("tv", [1.0, 0.0], [0.3, 0.7], radius)
    assert found.value.item() == pytest.approx(min(0.3 + radius, 1), rel=1e-14)
    assert found.dual.item() == (1.0 if radius < 0.7 else 0.0)


def test_chi2_leaves_out_the_lowest_losses_in_turn() -> None:
    """Three equal atoms, losses 0, 1, 2: q = (1 - s, 1, 1 + s)/3 with rho = 2 s²/3 until s = 1,
    then the first one is empty."""
    for s in (0.3, 0.999):
        np.testing.assert_allclose(
            weights(worst("chi2", [0.0, 1.0, 2.0], np.full(3, 1 / 3), 2 * s**2 / 3)),
            [(1 - s) / 3, 1 / 3, (1 + s) / 3],
            rtol=1e-12,
        )
    # beyond: q = (0, 1/2 - d, 1/2 + d), sum q²/p = 3 (1/2 + 2 d²) = 1 + rho
    d = np.sqrt((2 / 3 - 0.5 + 0.1 / 3) / 2)
    np.testing.assert_allclose(
        weights(worst("chi2", [0.0, 1.0, 2.0], np.full(3, 1 / 3), 1.1)),
        [0, 0.5 - d, 0.5 + d],
        rtol=1e-12,
        atol=1e-15,
    )


# ------------------------------------------------------------------------------------------ corners
@pytest.mark.parametrize("ball", BALLS)
def test_a_ball_of_no_size_is_the_mean(ball: str) -> None:
    losses, p = instance(5)
    found = worst(ball, losses, p, 1.0 if ball == "cvar" else 0.0)
    np.testing.assert_allclose(weights(found), p, rtol=1e-14)
    assert found.value.item() == pytest.approx(p @ losses, rel=1e-14)
    assert bool(found.converged)


@pytest.mark.parametrize("ball", BALLS)
def test_a_ball_of_any_size_is_the_largest_loss_that_has_mass(ball: str) -> None:
    losses, p = np.array([1.0, 5.0, 3.0, 3.0]), np.array([0.5, 0.0, 0.2, 0.3])
    found = worst(ball, losses, p, 1e-9 if ball == "cvar" else 1e9)
    assert found.value.item() == pytest.approx(3.0, rel=1e-14)
    np.testing.assert_allclose(weights(found), [0, 0, 0.4, 0.6], atol=1e-15)
    assert bool(found.converged)


@pytest.mark.parametrize("ball", BALLS)
def test_equal_losses_leave_the_distribution_alone(ball: str) -> None:
    found = worst(ball, np.full(3, 2.5), np.array([0.2, 0.3, 0.5]), 0.4)
    np.testing.assert_allclose(weights(found), [0.2, 0.3, 0.5], rtol=1e-14)
    assert found.value.item() == pytest.approx(2.5, rel=1e-14)
    assert bool(found.converged)


def test_a_small_chi2_ball_is_a_standard_deviation() -> None:
    """value = mean + (rho Var)^(1/2) exactly while no weight is zero."""
    losses, p = instance(1)
    deviation = np.sqrt(p @ (losses - p @ losses) ** 2)
    for radius in (1e-14, 1e-9, 1e-4):
        found = worst("chi2", losses, p, radius)
        assert found.value.item() - p @ losses == pytest.approx(
            np.sqrt(radius) * deviation, rel=1e-7, abs=1e-15
        )
        assert found.used.item() == pytest.approx(radius, rel=1e-7)


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\], got .* worst share"):
        worst("cvar", [1.0, 0.0], [0.3, 0.7], alpha)


# -------------------------------------------------------------------------------------- invariances
@pytest.mark.parametrize("ball", BALLS)
@given(
    seed=seeds,
    factor=st.sampled_from([1e-6, 0.3, 7.0, 1e6]),
    shift=st.sampled_from([-3.0, 0.0, 100.0]),
)
@quick
def test_affine_change_of_the_losses(ball: str, seed: int, factor: float, shift: float) -> None:
    losses, p = instance(seed)
    losses = np.round(losses, 2)  # so that ties stay ties
    radius = a_radius(ball, seed)
    before, after = worst(ball, losses, p, radius), worst(ball, factor * losses + shift, p, radius)
    scale = factor * np.ptp(losses) + abs(shift) + 1e-12
    assert after.value.item() == pytest.approx(
        factor * before.value.item() + shift, abs=1e-9 * scale
    )
    if shift == 0:
        np.testing.assert_allclose(weights(after), weights(before), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("ball", BALLS)
@given(seed=seeds)
@quick
def test_permuting_the_atoms_permutes_the_weights(ball: str, seed: int) -> None:
    losses, p = instance(seed)
    order = np.random.default_rng(seed).permutation(len(p))
    radius = a_radius(ball, seed)
    before, after = worst(ball, losses, p, radius), worst(ball, losses[order], p[order], radius)
    np.testing.assert_allclose(weights(after), weights(before)[order], rtol=1e-8, atol=1e-12)
    assert after.value.item() == pytest.approx(before.value.item(), rel=1e-12)


@pytest.mark.parametrize("ball", BALLS)
@given(seed=seeds, part=st.floats(0.1, 0.9))
@quick
def test_an_atom_split_in_two_is_the_same_problem(ball: str, seed: int, part: float) -> None:
    losses, p = instance(seed)
    radius = a_radius(ball, seed)
    whole = worst(ball, losses, p, radius)
    halves = worst(
        ball,
        np.append(losses, losses[0]),
        np.append(p, part * p[0]) - np.append(np.eye(len(p))[0] * part * p[0], 0),
        radius,
    )
    merged = weights(halves)[:-1].copy()
    merged[0] += weights(halves)[-1]
    assert halves.value.item() == pytest.approx(whole.value.item(), rel=1e-11)
    np.testing.assert_allclose(merged, weights(whole), rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("ball", BALLS)
def test_a_batch_is_its_rows(ball: str) -> None:
    rows = [instance(seed) for seed in range(9)]
    radius = [a_radius(ball, seed) for seed in range(9)]
    losses, p = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
    batch = DUALS[ball](losses, p, torch.tensor(radius, dtype=torch.float64))
    for r in range(9):
        single = worst(ball, *rows[r], radius[r])
        for name in ("value", "dual", "weights", "used"):
            torch.testing.assert_close(
                getattr(batch, name)[r], getattr(single, name)[0], rtol=1e-9, atol=1e-14
            )
