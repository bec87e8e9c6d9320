"""What the bounds refuse: a bound of input that means nothing would be a number that means
nothing."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from theory import Tilt, dpo, fit
from theory.bounds.aot import Side, aot_deviation
from theory.bounds.free import w1_free_bound, w2_free_bound
from theory.bounds.from_data import certificate
from theory.bounds.kl_ball import kl_ball_bound
from theory.bounds.lower import deviation_floor, slow_pair
from theory.bounds.population import Size
from theory.bounds.sharp import kl_bound, transport_bound
from theory.bounds.tilted import dpo_bound, tilt_bound
from theory.bounds.uniform import pointwise_kl, uniform_kl, uniform_wasserstein
from theory.laws.price import coin_error, coin_gain

U = np.array([[1.0, 0.2], [-1.0, 0.3], [0.5, -1.0]])
P = np.array([0.6, 0.2, 0.2])
SIZE = Size(10**5, 0.05, 1.0, 3.0)
BOUNDS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "dpo": (dpo_bound, {}),
    "tilt": (tilt_bound, {"temperature": 1.0}),
    "kl": (kl_bound, {"radius": 0.01}),
    "kl ball": (kl_ball_bound, {"radius": 0.01}),
    "atoms": (transport_bound, {"radius": 0.1, "power": 1, "distance": 2 * (1 - np.eye(3))}),
    "w1": (w1_free_bound, {"radius": 0.1}),
    "w2": (w2_free_bound, {"radius": 0.1, "dual": 1.0}),
    "data": (certificate, {"reach": 2.0}),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_populations_that_are_refused(name: str) -> None:
    bound, options = BOUNDS[name]
    theta = dpo(U, P, beta=1.0, bound=3.0).theta.numpy()
    with pytest.raises(ValueError, match="u holds 6 entries that are NaN"):
        bound(U * math.nan, P, theta, SIZE, **options)
    with pytest.raises(ValueError, match="theta holds 2 entries"):
        bound(U, P, theta * math.inf, SIZE, **options)
    with pytest.raises(ValueError, match="theta_ref holds 1 entries"):
        off = Size(10**5, 0.05, 1.0, 3.0, np.array([math.nan, 0.0]))
        bound(U, P, theta, off, **options)
    with pytest.raises(ValueError, match="the sum 2"):  # would give a smaller bound
        bound(U, 2 * P, theta, SIZE, **options)
    with pytest.raises(ValueError, match="shapes"):
        bound(U, P, theta[:1], SIZE, **options)


@pytest.mark.parametrize("name", BOUNDS)
def test_lists_and_tensors_are_arrays(name: str) -> None:
    bound, options = BOUNDS[name]
    theta = dpo(U, P, beta=1.0, bound=3.0).theta.numpy()
    value = bound(U, P, theta, SIZE, **options).value
    assert bound(U.tolist(), P.tolist(), theta.tolist(), SIZE, **options).value == value
    tensors = (torch.from_numpy(x) for x in (U, P, theta))
    assert bound(*tensors, SIZE, **options).value == value


def test_sizes_that_are_refused() -> None:
    theta = dpo(U, P, beta=1.0, bound=3.0).theta.numpy()
    for radius in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="radius must be finite and not negative"):
            w1_free_bound(U, P, theta, SIZE, radius=radius)
    with pytest.raises(ValueError, match="reach must be a positive finite number"):
        certificate(U, P, theta, SIZE, reach=math.nan)
    common: dict[str, Any] = {"beta": 1.0, "bound": 1.0, "delta": 0.05}
    for radius in (0.0, math.nan):
        with pytest.raises(ValueError, match="radius must be a positive"):
            uniform_wasserstein(100, 2, radius=radius, power=1, diameter=2.0, **common)
    with pytest.raises(ValueError, match="dual_low must be a positive"):
        uniform_kl(100, 2, radius=0.1, dual_low=0.0, **common)
    with pytest.raises(ValueError, match="dimension"):
        side = Side(10, 1.0)
        aot_deviation(side, side, dimension=0, bound=1.0, lipschitz=1.0, delta=0.05)


def test_a_radius_of_rounding_where_all_losses_are_equal() -> None:
    """-log of weights that sum to 1 but for rounding is hardly a radius; no atom is off the top."""
    u, p = np.ones((4, 1)), np.array([0.7, 0.1, 0.1, 0.1])
    radius = -math.log(float(p.sum()))
    assert 0 < radius < 1e-15
    for shares in ([0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25] * 4):
        sample = np.array(shares)
        size = Size(10**5, 0.05, 1.0, 3.0)
        found = kl_ball_bound(u, p, np.array([3.0]), size, radius=radius, sample=sample)
        assert found.value < 1e-6  # the minimiser is 3, on the bound, for every sample


def test_a_sample_is_one_of_the_population() -> None:
    u, p, theta = np.array([[1.0], [-1.0], [0.5]]), np.array([0.7, 0.3, 0.0]), np.array([0.85])
    for sample, says in (
        ([0.7, 0.7, 0.0], "sum"),
        ([0.6, 0.4], "sample"),
        ([0.6, 0.3, 0.1], "the atom 2, which has probability 0"),
    ):
        with pytest.raises(ValueError, match=says):
            dpo_bound(u, p, theta, SIZE, sample=np.array(sample))


def test_a_certificate_is_infinite_where_its_numbers_are() -> None:
    """Weights e^{l/tau} beyond all numbers, and samples that bound no deviation."""
    u, p = np.array([[1.0], [-1.0]]), np.array([0.7, 0.3])
    for bound, tau in ((1000.0, None), (1e6, None), (400.0, 1.0), (4.0, 0.01), (0.1, 5e-4)):
        ball = None if tau is None else Tilt(tau)
        theta = fit(u, ball, p, beta=1.0, bound=bound).theta.numpy()
        size = Size(10**6, 0.05, beta=1.0, bound=bound)
        found = certificate(u, p, theta, size, reach=1.0, temperature=tau)
        assert found.value > 0 and not math.isnan(found.value)
    theta = dpo(u, p, beta=1.0, bound=4.0).theta.numpy()
    few = Size(1, 0.05, beta=1.0, bound=4.0)
    assert math.isinf(certificate(u, p, theta, few, reach=1.0).value)
    narrow = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1e-6], [0.0, -1e-6]])
    narrow = narrow @ [[0.6, 0.8], [-0.8, 0.6]]
    size, p = Size(10**6, 0.05, beta=1.0, bound=1.0), np.array([0.3, 0.2, 0.3, 0.2])
    theta = dpo(narrow, p, beta=1.0, bound=1.0).theta.numpy()
    found = certificate(narrow, p, theta, size, reach=np.float64(1.0))
    assert math.isinf(found.value)


def test_a_distance_is_not_excluded_by_what_is_not_known() -> None:
    u, p = np.array([[1e-3], [-1e-3]]), np.array([0.7, 0.3])
    for bound in (690.0, 705.0):
        theta = fit(u, Tilt(1.0), p, beta=1000.0, bound=bound).theta.numpy()
        size = Size(1e300, 0.05, beta=1000.0, bound=bound)
        found = certificate(u, p, theta, size, reach=1e-3, temperature=1.0)
        assert math.isinf(found.value)


def test_theta_outside_of_the_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="theta has norm 5, beyond the bound"):
        dpo_bound(U, P, np.array([5.0, 0.0]), SIZE)
    beyond = Size(10**4, 0.05, 1.0, 4.0, np.array([6.0, 0.0]))
    with pytest.raises(ValueError, match="theta_ref has norm 6"):
        dpo_bound(U, P, np.array([1.0, 0.0]), beyond)


def test_numbers_that_mean_nothing_are_refused_by_the_other_bounds() -> None:
    common: dict[str, Any] = {"beta": 1.0, "bound": 1.0, "delta": 0.05}
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: deviation_floor(10, radius=0.1, spread=1.0, share=0.0), "share"),
        (lambda: deviation_floor(10, radius=0.1, spread=1.0, share=20), "share"),
        (lambda: slow_pair(50, radius=0.1), "at least 100"),
        (lambda: coin_gain(1.5), "chance"),
        (lambda: coin_error(10, 0.7, math.nan), "radius"),
        (lambda: coin_error(10.5, 0.7, 0.1), "whole number"),  # type: ignore[arg-type]
        (lambda: uniform_kl(100, 0, radius=0.1, dual_low=0.1, **common), "d must be"),
        (
            lambda: uniform_wasserstein(100, 2, radius=0.1, power=3, diameter=2.0, **common),
            "power",
        ),
        (
            lambda: uniform_wasserstein(100, 2, radius=1e-200, power=2, diameter=2.0, **common),
            "radius",
        ),
        (lambda: pointwise_kl(100, dual_low=2.0, dual_high=1.0, **common), "dual_low"),
    ]
    for attempt, words in cases:
        with pytest.raises(ValueError, match=words):
            attempt()
