"""The estimated share of wrong labels, by hand and by what leaves it unchanged."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from theory.flips import mislabelled_share


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 6.0))
def test_by_its_formula_and_between_zero_and_one(seed: int, gamma: float) -> None:
    rng = np.random.default_rng(seed)
    margin, times = rng.normal(0, 4, 9), rng.integers(1, 4, 9)
    s = expit(np.repeat(margin, times))
    truth = 1 - s.mean() * (s**gamma).mean() / (s ** (1 + gamma)).mean()
    m, p = torch.from_numpy(margin), torch.from_numpy(times / times.sum())
    found = mislabelled_share(m, gamma, p).item()
    assert found == pytest.approx(truth, abs=1e-10)
    assert -1e-12 <= found < 1  # Chebyshev's sum inequality: Lemma 4 of the paper
    assert mislabelled_share(m[torch.randperm(9)], gamma).shape == ()


def test_sure_labels_by_counting() -> None:
    margin = torch.tensor([[60.0] * 7 + [-60.0] * 3, [60.0] * 10], dtype=torch.float64)
    found = mislabelled_share(margin, 2.0).numpy()
    np.testing.assert_allclose(found, [0.3, 0.0], atol=1e-12)


def test_far_margins_keep_their_digits() -> None:
    """A common factor of all sigma cancels: sigma(m) = exp(m) far below zero."""
    near = torch.tensor([0.0, -1.0, -3.0], dtype=torch.float64)
    s = near.exp()
    truth = 1 - s.mean() * (s**2).mean() / (s**3).mean()
    found = mislabelled_share(near - 900, 2.0)
    assert found.item() == pytest.approx(truth.item(), abs=1e-10)


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("inf"), float("nan")])
def test_gamma_is_positive(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma must be positive and finite"):
        mislabelled_share(torch.zeros(2), gamma)
