"""The inner problem of W2-robust DPO against a dense grid over q, on both sides of a = 4, and its
derivatives."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import entr, expit

from theory.solvers.wells import global_well, restricted_wells

Array = NDArray[np.float64]
MARGINS = np.array([-60.0, -8.0, -2.0, -0.3, 0.0, 0.4, 1.0, 1.9, 2.0, 2.1, 3.0, 5.0, 12.0, 60.0])
STRENGTHS = [0.0, 0.5, 2.0, 3.99, 4.0, 4.01, 5.0, 8.0, 20.0, 90.0]


def on_grid(margin: Array, a: float, low: float, high: float) -> tuple[Array, Array]:
    """sup over q in [low, high] of -q m + H(q) + a q²/2, and where it is; the grid is even in the
    log-odds of q."""
    y = np.linspace(low, high, 1 + int(1000 * (high - low)))
    q, other = expit(y), expit(-y)
    value = -np.outer(margin, q) + entr(q) + entr(other) + a * q**2 / 2
    return value.max(1), q[value.argmax(1)]


def well(margin: Array, a: float) -> tuple[torch.Tensor, ...]:
    return tuple(
        x[0]
        for x in global_well(torch.from_numpy(margin)[None], torch.tensor([a], dtype=torch.float64))
    )


def halves(margin: Array, a: float) -> tuple[torch.Tensor, ...]:
    """Values, maximisers and bends over [1/2, 1] and over [0, 1/2], each (2, n)."""
    return tuple(
        x[0]
        for x in restricted_wells(
            torch.from_numpy(margin)[None], torch.tensor([a], dtype=torch.float64)
        )
    )


@pytest.mark.parametrize("a", STRENGTHS)
def test_global_well_against_a_grid(a: float) -> None:
    phi, q, _, y = well(MARGINS, a)
    value, place = on_grid(MARGINS, a, -65, 155)
    np.testing.assert_allclose(phi, value, atol=5e-8, rtol=1e-9)
    unique = (
        np.abs(MARGINS - a / 2) > 1e-3
    )  # at m = a/2 both wells are equally deep, and flat at a = 4
    np.testing.assert_allclose(q[unique], place[unique], atol=1e-3)
    np.testing.assert_allclose(q, 1 / (1 + np.exp(-y.numpy())), atol=1e-14)


@pytest.mark.parametrize("a", [0.5, 3.0, 6.0])
def test_global_well_is_the_adversary_moving_one_pair(a: float) -> None:
    """sup_t log(1 + exp(-m + b t)) - eta t² with b = 1, so that eta = 1/(2a)."""
    t = np.linspace(-5, 25, 300_001)
    for margin, phi in zip(MARGINS[1:-1], well(MARGINS[1:-1], a)[0], strict=True):
        assert phi.item() == pytest.approx(
            (np.logaddexp(0, t - margin) - t**2 / (2 * a)).max(), abs=1e-8
        )


def test_no_transport_is_the_plain_loss() -> None:
    phi, q, bend, _ = well(MARGINS, 0.0)
    np.testing.assert_allclose(phi, np.logaddexp(0, -MARGINS), rtol=1e-13)
    np.testing.assert_allclose(q, expit(-MARGINS), rtol=1e-12)
    np.testing.assert_allclose(bend, expit(MARGINS) * expit(-MARGINS), rtol=1e-10, atol=1e-30)


@pytest.mark.parametrize("a", STRENGTHS)
def test_restricted_wells_against_grids_on_the_halves(a: float) -> None:
    value, q, _ = halves(MARGINS, a)
    for piece, (low, high) in enumerate(((0, 155), (-65, 0))):
        truth, place = on_grid(MARGINS, a, low, high)
        np.testing.assert_allclose(value[piece], truth, atol=5e-8, rtol=1e-9)
        flat = np.abs(MARGINS - a / 2) < 1e-3
        np.testing.assert_allclose(q[piece, ~flat], place[~flat], atol=2e-3)
    np.testing.assert_allclose(value.amax(0), well(MARGINS, a)[0], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("a", [0.5, 3.0, 5.0, 9.0])
def test_derivatives_of_the_global_well(a: float) -> None:
    """d phi/dm = -q, d phi/da = q²/2, dq/d(-m) = bend, away from the jump at m = a/2."""
    margin = MARGINS[np.abs(MARGINS - a / 2) > 0.05]
    h = 1e-5
    _, q, bend, _ = well(margin, a)
    up, down = well(margin + h, a), well(margin - h, a)
    np.testing.assert_allclose((up[0] - down[0]) / (2 * h), -q, atol=1e-8)
    np.testing.assert_allclose((down[1] - up[1]) / (2 * h), bend, atol=1e-7, rtol=1e-6)
    np.testing.assert_allclose(
        (well(margin, a + h)[0] - well(margin, a - h)[0]) / (2 * h), q**2 / 2, atol=1e-8
    )


@pytest.mark.parametrize("a", [2.0, 5.0, 9.0])
def test_derivatives_of_the_restricted_wells(a: float) -> None:
    margin = np.linspace(-3, 9, 60) + 0.0123
    h = 1e-5
    _, q, bend = halves(margin, a)
    up, down = halves(margin + h, a), halves(margin - h, a)
    np.testing.assert_allclose((up[0] - down[0]) / (2 * h), -q, atol=1e-7)
    smooth = (up[2] > 0) == (down[2] > 0)  # not where a local well ends in the point q = 1/2
    np.testing.assert_allclose(
        ((down[1] - up[1]) / (2 * h))[smooth], bend[smooth], atol=1e-6, rtol=1e-5
    )


def test_the_jump_above_four() -> None:
    """Just below m = a/2 the worst case is the well of large q, just above it that of small q = 1 -
    q, equally deep."""
    below, above = well(np.array([3.0 - 1e-9]), 6.0), well(np.array([3.0 + 1e-9]), 6.0)
    assert below[1].item() > 0.9 and above[1].item() == pytest.approx(1 - below[1].item(), abs=1e-7)
    assert below[0].item() == pytest.approx(above[0].item(), abs=1e-8)


def test_each_row_has_its_own_strength() -> None:
    a = torch.tensor([0.5, 3.0, 7.0], dtype=torch.float64)
    phi = global_well(torch.from_numpy(MARGINS).expand(3, -1), a)[0]
    for row, strength in zip(phi, a.tolist(), strict=True):
        np.testing.assert_allclose(row, well(MARGINS, strength)[0], rtol=1e-14)
