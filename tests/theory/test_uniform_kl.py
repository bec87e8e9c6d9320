"""Corollary A1 (docs/theorems/kl.md): what a lower bound of the dual variable gives, on random
atoms; the tilt comes from a bisection of its own."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq


def tilt(l: np.ndarray, p: np.ndarray, t: float) -> np.ndarray:
    q = p * np.exp(t * (l - l.max()))
    return q / q.sum()


def divergence(l: np.ndarray, p: np.ndarray, t: float) -> float:
    return float(t * tilt(l, p, t) @ l - np.log(p @ np.exp(t * (l - l.max()))) - t * l.max())


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 8),
    st.floats(0.1, 4),
    st.floats(0.02, 0.98),
)
def test_density_variance_and_temperature(
    seed: int, atoms: int, spread: float, part: float
) -> None:
    rng = np.random.default_rng(seed)
    l, p = spread * rng.random(atoms), rng.dirichlet(np.ones(atoms))
    R = float(np.ptp(l))
    most = -math.log(p[l.argmax()])  # beyond this radius the dual variable is 0
    if R < 1e-3 or most < 1e-3:
        return
    rho = part * most
    high = 1.0
    while divergence(l, p, high) < rho:
        high *= 2
    t = brentq(lambda t: divergence(l, p, t) - rho, 0.0, high, xtol=1e-14)
    q = tilt(l, p, t)
    v = float(q @ (l - q @ l) ** 2)
    assert math.log((q / p).max()) <= R * t + 1e-6
    assert math.log(v) >= math.log(2 * rho) - R * t - 2 * math.log(t) - 1e-6
    assert t * (1 + 1e-6) >= math.sqrt(8 * rho) / R
