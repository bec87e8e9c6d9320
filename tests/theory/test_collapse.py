"""Collapse radii computed by hand, by grids and by linear programs, and fits on either side of
them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from tests.jitter import order
from tests.theory.instances import collapse_of
from theory.estimators import Fit, kldpo, wdpo_finite, wdpo_free

Array = NDArray[np.float64]
PLAIN = {"beta": 0.8, "bound": 5.0}


def distances(u: Array) -> Array:
    return np.linalg.norm(u[:, None] - u[None], axis=-1)


def sample(seed: int = 0, n: int = 12) -> tuple[Array, Array]:
    """Pairs whose mean is not zero, with 0 well inside their hull."""
    rng = np.random.default_rng(seed)
    u, p, k = (
        rng.standard_normal((n, 2)) + np.array([0.4, 0.2]),
        rng.dirichlet(5 * np.ones(n)),
        order(n),
    )
    return u[k], p[k]


# ------------------------------------------------------------------------------------------ by hand
@pytest.mark.parametrize("a", [0.2, 1.0, 3.0])
def test_kl_of_two_atoms_on_a_line(a: float) -> None:
    """u = (1, -a): the only Q with E u = 0 puts a/(1+a) on the first atom."""
    p, q = 0.9, a / (1 + a)
    truth = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    found = collapse_of("kl", np.array([[1.0], [-a]]), np.array([p, 1 - p]))
    assert found.shape == () and found.item() == pytest.approx(truth, rel=1e-8)


@pytest.mark.parametrize("ball", ["kl", "w1-finite", "w2-finite"])
def test_no_radius_suffices_when_zero_is_outside_the_hull(ball: str) -> None:
    u = np.array([[1.0, 0.0], [1.0, 1.0], [2.0, -1.0]])
    assert collapse_of(ball, u, distance=distances(u)).item() == math.inf


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 1e4])
@pytest.mark.parametrize("margin", [1e-3, 1e-2, 1.0])
def test_infinite_whatever_the_unit_of_the_features(scale: float, margin: float) -> None:
    """KL(Q||P) never exceeds -log min p, so that no finite answer can be above log 2 here."""
    assert collapse_of("kl", scale * np.array([[1.0], [margin]])).item() == math.inf


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_kl_does_not_depend_on_the_unit_of_the_features(scale: float) -> None:
    u, p = sample()
    assert collapse_of("kl", scale * u, p).item() == pytest.approx(
        collapse_of("kl", u, p).item(), rel=1e-7
    )


def test_kl_on_the_boundary_of_the_hull() -> None:
    """u = (0, 1): Q must be the atom at 0, so that the radius is -log p_0; the dual only approaches
    it."""
    found = collapse_of("kl", np.array([[0.0], [1.0]]), np.array([0.25, 0.75]))
    assert found.item() == pytest.approx(math.log(4), rel=1e-6)


def test_kl_ignores_atoms_without_weight() -> None:
    u = np.array([[1.0], [0.5], [-1.0]])
    assert collapse_of("kl", u, np.array([0.5, 0.5, 0.0])).item() == math.inf


def test_transport_of_two_atoms() -> None:
    """u = (1, -1) at distance 3, p = (0.8, 0.2): 0.3 of mass must move."""
    u, p, D = np.array([[1.0], [-1.0]]), np.array([0.8, 0.2]), np.array([[0.0, 3.0], [3.0, 0.0]])
    assert collapse_of("w1-finite", u, p, distance=D).item() == pytest.approx(0.9, rel=1e-9)
    assert collapse_of("w2-finite", u, p, distance=D).item() == pytest.approx(
        math.sqrt(0.3 * 9), rel=1e-9
    )


def test_transport_may_reach_atoms_without_weight() -> None:
    u, D = np.array([[1.0], [-1.0]]), np.array([[0.0, 2.0], [2.0, 0.0]])
    assert collapse_of("w1-finite", u, np.array([1.0, 0.0]), distance=D).item() == pytest.approx(
        1.0
    )


def test_free_features() -> None:
    u, p = np.array([[3.0, 0.0], [0.0, 4.0]]), np.array([0.5, 0.5])
    assert collapse_of("w1-free", u, p).item() == pytest.approx(1.25)
    assert collapse_of("w2-free", u, p).item() == pytest.approx(2.5)


@pytest.mark.parametrize(("kappa", "truth"), [(0.4, 0.2), (1.0, 0.5), (0.999, 0.4995), (3.0, 0.5)])
def test_label_moves_of_one_pair(kappa: float, truth: float) -> None:
    """max over |s| <= 1 of min(s, 2 kappa - s)/2, at s = min(kappa, 1)."""
    assert collapse_of("w1-label", np.array([[1.0]]), label_cost=kappa).item() == pytest.approx(
        truth, rel=1e-7
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kappa", [0.3, 1.0])
def test_label_moves_against_a_grid(seed: int, kappa: float) -> None:
    u, p = sample(seed)
    radius, angle = np.meshgrid(np.linspace(0, 1, 401), np.linspace(0, 2 * np.pi, 721))
    s = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(-1, 2)
    truth = (np.minimum(s @ u.T, 2 * kappa - s @ u.T) @ p).max() / 2
    found = collapse_of("w1-label", u, p, label_cost=kappa).item()
    assert truth - 1e-9 <= found <= truth + 2e-3


@pytest.mark.parametrize("seed", range(3))
def test_kl_against_slsqp(seed: int) -> None:
    u, p = sample(seed, n=6)
    found = minimize(
        lambda q: q @ np.log(q / p),
        np.full(6, 1 / 6),
        bounds=[(1e-12, 1)] * 6,
        constraints=[
            {"type": "eq", "fun": lambda q: q.sum() - 1},
            {"type": "eq", "fun": lambda q: q @ u},
        ],
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 500},
    )
    if found.success:
        assert collapse_of("kl", u, p).item() == pytest.approx(found.fun, abs=1e-6)
    else:  # the hull misses 0
        assert collapse_of("kl", u, p).item() == math.inf


def test_finite_moves_cost_at_least_as_much_as_free_ones() -> None:
    u, p = sample()
    D = distances(u)
    for power in (1, 2):
        assert collapse_of(f"w{power}-finite", u, p, distance=D) >= collapse_of(
            f"w{power}-free", u, p
        )
    cheap, dear = (collapse_of("w1-label", u, p, label_cost=kappa).item() for kappa in (0.2, 2.0))
    assert cheap <= dear <= collapse_of("w1-free", u, p).item() + 1e-12


@pytest.mark.parametrize("ball", ["kl", "w1-finite", "w2-finite", "w1-free", "w1-label", "w2-free"])
def test_a_batch_is_its_rows(ball: str) -> None:
    rows = [sample(s) for s in range(4)]
    u, p = np.stack([r[0] for r in rows]), np.stack([r[1] for r in rows])
    D = distances(rows[0][0])
    together = collapse_of(ball, u, p, distance=D, label_cost=0.5)
    alone = torch.stack(
        [collapse_of(ball, u[r], p[r], distance=D, label_cost=0.5) for r in range(4)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-8, atol=1e-10)


def test_a_replicate_that_no_transport_collapses_does_not_disturb_the_others() -> None:
    """u = 1 and -1 at a distance of 3: what is missing to one half moves; with u = 1 and 2 nothing
    reaches a mean of zero."""
    u = np.array([[[1.0], [-1.0]], [[1.0], [2.0]], [[1.0], [-1.0]]])
    p = np.array([[0.7, 0.3], [0.5, 0.5], [0.9, 0.1]])
    found = collapse_of("w1-finite", u, p, distance=np.array([[0.0, 3.0], [3.0, 0.0]])).numpy()
    np.testing.assert_allclose(found, [0.6, np.inf, 1.2], rtol=1e-9)


def test_a_replicate_without_features_does_not_disturb_the_others() -> None:
    u, p = sample()
    both = collapse_of("kl", np.stack([u, 0 * u]), np.stack([p, p]))
    assert both[0].item() == pytest.approx(collapse_of("kl", u, p).item(), rel=1e-8)
    assert both[1].item() == pytest.approx(0, abs=1e-12)


# ------------------------------------------------------------------------------ fits on either side
FITS: dict[str, Callable[[Array, Array, float], Fit]] = {
    "kl": lambda u, p, r: kldpo(u, p, radius=r, theta_ref=[0.3, -0.4], **PLAIN),
    "w1-finite": lambda u, p, r: wdpo_finite(
        u, p, distance=distances(u), power=1, radius=r, theta_ref=[0.3, -0.4], **PLAIN
    ),
    "w2-finite": lambda u, p, r: wdpo_finite(
        u, p, distance=distances(u), power=2, radius=r, theta_ref=[0.3, -0.4], **PLAIN
    ),
    "w1-free": lambda u, p, r: wdpo_free(u, p, power=1, radius=r, theta_ref=[0.3, -0.4], **PLAIN),
    "w1-label": lambda u, p, r: wdpo_free(
        u, p, power=1, radius=r, label_cost=0.5, theta_ref=[0.3, -0.4], **PLAIN
    ),
    "w2-free": lambda u, p, r: wdpo_free(u, p, power=2, radius=r, theta_ref=[0.3, -0.4], **PLAIN),
}


@pytest.mark.parametrize("seed", [0, 1, 3])
@pytest.mark.parametrize("ball", FITS)
def test_the_fit_leaves_the_reference_exactly_inside_the_radius(ball: str, seed: int) -> None:
    u, p = sample(seed)
    edge = collapse_of(ball, u, p, distance=distances(u), label_cost=0.5).item()
    assert 0 < edge < math.inf
    inside, beyond = FITS[ball](u, p, edge * (1 - 1e-3)), FITS[ball](u, p, edge * (1 + 1e-6))
    reference = torch.tensor([0.3, -0.4], dtype=torch.float64)
    assert not inside.collapsed and inside.converged
    assert (inside.theta - reference).norm() > 1e-6
    assert inside.value.item() < math.log(2)
    assert beyond.collapsed and beyond.converged
    assert torch.equal(beyond.theta, reference)
    assert (
        beyond.value.item() == pytest.approx(math.log(2), rel=1e-15) and beyond.gap.item() <= 1e-11
    )  # where 0 is accepted


@pytest.mark.parametrize("factor", [1.5, 10.0, 1e3, 1e6])
@pytest.mark.parametrize("ball", FITS)
def test_far_beyond_the_radius(ball: str, factor: float) -> None:
    """Where the solver itself is of no help, the radius still decides."""
    u, p = sample(0)
    edge = collapse_of(ball, u, p, distance=distances(u), label_cost=0.5).item()
    fit = FITS[ball](u, p, edge * factor)
    assert (
        fit.collapsed
        and fit.converged
        and fit.value.item() == pytest.approx(math.log(2), rel=1e-15)
    )


@pytest.mark.parametrize("kappa", [0.05, 0.1, 2.0])
def test_label_fits_beyond_the_radius_whatever_the_cost(kappa: float) -> None:
    u, p = sample(1)
    edge = collapse_of("w1-label", u, p, label_cost=kappa).item()
    for factor in (1.01, 3, 30, 300):
        fit = wdpo_free(u, p, power=1, radius=edge * factor, label_cost=kappa, **PLAIN)
        assert fit.collapsed and fit.converged


@pytest.mark.parametrize("power", [1, 2])
def test_every_pair_moves_to_the_worst_one_where_nothing_collapses(power: int) -> None:
    """0 outside the hull and a radius beyond the diameter: the largest loss is minimised, as with
    KL."""
    u = np.array([[1.0, 0.0], [0.5, 1.0], [2.0, -1.0]])
    for radius in (5.0, 50.0, 5e3):
        fit = wdpo_finite(u, distance=distances(u), power=power, radius=radius, **PLAIN)
        assert fit.converged and not fit.collapsed
        assert fit.value.item() == pytest.approx(
            kldpo(u, radius=100.0, **PLAIN).value.item(), abs=1e-9
        )


@pytest.mark.parametrize(("margin", "radius"), [(0.3, 1.0), (0.3, 1e3), (1e-2, 50.0), (1e-3, 50.0)])
def test_kldpo_never_collapses_on_a_separable_sample(margin: float, radius: float) -> None:
    """With u = (1, margin) every pair prefers w > 0: the worst loss is least at the bound."""
    fit = kldpo(np.array([[1.0], [margin]]), radius=radius, beta=1.0, bound=4.0)
    assert not fit.collapsed and fit.converged
    assert fit.theta.item() == pytest.approx(4.0, rel=1e-9)
    assert fit.value.item() == pytest.approx(math.log1p(math.exp(-4 * margin)), rel=1e-9)
