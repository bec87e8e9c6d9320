"""W1 with label moves on large samples: the screened solver certifies its fits by itself."""

import numpy as np
import pytest

from theory import WassersteinFree, fit
from theory.policy import Array
from theory.solvers import wasserstein


def pairs(n: int, seed: int) -> Array:
    """Feature differences uniform in the ball of radius 2, with Bradley-Terry labels."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 3))
    x *= 2 * rng.random((n, 1)) ** (1 / 3) / np.linalg.norm(x, axis=1, keepdims=True)
    wins = rng.random(n) < 1 / (1 + np.exp(-x @ [1.0, -1.0, 0.5]))
    return np.where(wins[:, None], x, -x)


@pytest.mark.parametrize("n", [3_000, 30_000, 100_000])
@pytest.mark.parametrize("radius", [0.02, 0.1])
def test_no_large_sample_is_left_to_the_whole_interior_point(
    n: int, radius: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole(*_: object, **__: object) -> None:
        raise AssertionError("the screening left a fit without a certificate")

    monkeypatch.setattr(wasserstein, "_w1_label_interior", whole)
    for seed in range(2):
        found = fit(pairs(n, seed), WassersteinFree(radius, label_cost=1.0), beta=1.0, bound=50.0)
        assert bool(found.converged) and found.gap.item() < 1e-11


def test_a_large_sample_tends_to_its_population() -> None:
    """Same law, more pairs: the answers differ as n^-1/2."""
    ball = WassersteinFree(0.1, label_cost=1.0)
    small, large = (fit(pairs(n, 5), ball, beta=1.0, bound=50.0).theta for n in (10_000, 200_000))
    assert float((small - large).norm()) < 0.1
