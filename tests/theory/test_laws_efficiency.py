"""The efficiency of KLDPO, against quadrature by draws, closed forms and fits."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.laws.efficiency import efficiency, robust_weight, sphere_efficiency
from theory.worlds import unit_vectors


@settings(max_examples=60, deadline=None)
@given(h=st.floats(-20, 20), more=st.floats(0.01, 5), tau=st.floats(0.05, 50))
def test_the_weight_is_even_and_increasing(h: float, more: float, tau: float) -> None:
    plain, mirrored, further = robust_weight([h, -h, abs(h) + more], tau)
    assert plain == pytest.approx(mirrored, rel=1e-12)
    assert further > plain * (1 - 1e-12)
    assert robust_weight(0.0, tau) == pytest.approx(2 ** (1 / tau), rel=1e-12)


def test_the_weight_by_hand_and_its_growth() -> None:
    s = 1 / (1 + math.exp(-1.0))  # tau = 1: m = h/2
    h = 2.0
    by_hand = (1 / s) * (1 - s) / (1 / (1 + math.exp(h)))
    assert robust_weight(h, 1.0) == pytest.approx(by_hand, rel=1e-12)
    for tau in (0.5, 2.0):
        growth = math.log(robust_weight(201.0, tau) / robust_weight(200.0, tau))
        assert growth == pytest.approx(1 / (1 + tau), abs=1e-9)


def test_two_groups_by_hand() -> None:
    """d = 1, x in {1, 3}: all matrices are numbers."""
    p, x, tau = np.array([0.3, 0.7]), np.array([1.0, 3.0]), 0.7
    weight = robust_weight(x, tau)
    f = 1 / (np.exp(x) + 2 + np.exp(-x))
    a = tau / (1 + tau)
    found = efficiency(x[:, None], p, [1.0], tau=tau, beta=1.0)
    top = (p * weight**2 * f * x**2).sum() / (p * weight * f * x**2).sum() ** 2
    assert found.kldpo[0, 0] == pytest.approx(a**2 * top, rel=1e-12)
    assert found.dpo[0, 0] == pytest.approx(a**2 / (p * f * x**2).sum(), rel=1e-12)
    assert found.target[0] == pytest.approx(a)


@pytest.mark.parametrize("d", [2, 3, 5])
def test_the_quadrature_on_the_sphere_is_that_of_many_draws(d: int) -> None:
    rng = np.random.default_rng(d)
    x = np.subtract(*unit_vectors(rng.standard_normal((2, 400_000, d))))
    star = np.zeros(d)
    star[0] = 3.0  # beta 1: the largest log-odds are 6
    mass = np.full(len(x), 1 / len(x))
    drawn = efficiency(x, mass, star, tau=0.5, beta=1.0)
    along, across, total = sphere_efficiency(6.0, 0.5, d)
    assert drawn.dpo[0, 0] / drawn.kldpo[0, 0] == pytest.approx(along, rel=0.01)
    assert drawn.dpo[1, 1] / drawn.kldpo[1, 1] == pytest.approx(across, rel=0.01)
    assert drawn.trace == pytest.approx(total, rel=0.01)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10), tau=st.floats(0.2, 5))
def test_invariances(seed: int, scale: float, tau: float) -> None:
    """beta -> c beta with theta/c; features rotated; atoms split in two."""
    rng = np.random.default_rng(seed)
    x, star, p = rng.standard_normal((8, 3)), rng.standard_normal(3), rng.dirichlet(np.ones(8))
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    plain = efficiency(x, p, star, tau=tau, beta=1.0)
    scaled = efficiency(x, p, star / scale, tau=tau, beta=scale)
    turned = efficiency(x @ turn.T, p, turn @ star, tau=tau, beta=1.0)
    split = efficiency(np.r_[x, -x], np.r_[p, p] / 2, star, tau=tau, beta=1.0)
    for other in (scaled, turned, split):
        assert other.trace == pytest.approx(plain.trace, rel=1e-6)
        assert other.least == pytest.approx(plain.least, rel=1e-6)
    assert plain.floor * (1 - 1e-9) <= plain.least <= 1 + 1e-9


def test_refusals() -> None:
    with pytest.raises(ValueError, match="directions"):
        efficiency([[1.0, 1.0], [2.0, 2.0]], [0.5, 0.5], [1.0, 0.0], tau=1.0, beta=1.0)
    with pytest.raises(ValueError, match="temperature"):
        robust_weight(1.0, 0.0)
    with pytest.raises(ValueError, match="d >= 2"):
        sphere_efficiency(3.0, 1.0, 1)
    with pytest.raises(ValueError, match="shape"):
        efficiency([[1.0]], [1.0], [1.0, 2.0], tau=1.0, beta=1.0)
