"""Separation against a brute-force search over the directions of the plane."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory import KL, dpo, fit, separation
from theory.policy import Array


def directions(u: Array) -> tuple[bool, bool]:
    """Whether some direction of the plane is spoken against by none, strictly or not."""
    candidates = [np.array([-x[1], x[0]]) for x in u] + [np.array([x[1], -x[0]]) for x in u]
    candidates += [*u, *(-u)]
    # a cone of directions is bounded by such lines: its inside is a sum of two
    pairs = [a + b for a in candidates for b in candidates]
    margins = np.array([u @ x for x in candidates + pairs])
    margins[np.abs(margins) < 1e-9] = 0.0
    agree = (margins >= 0).all(1) & (margins > 0).any(1)
    return bool(agree.any()), bool((margins > 0).all(1).any())


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 6), whole=st.booleans())
def test_against_all_directions_of_the_plane(seed: int, n: int, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    u = rng.integers(-2, 3, (n, 2)).astype(float) if whole else rng.normal(size=(n, 2))
    some, strict = directions(u)
    found = separation(u)
    assert (found is not None) == some
    if found is not None:
        margin = u @ found.direction
        assert (margin >= -1e-9 * np.abs(margin).max()).all() and margin.max() > 0
        assert found.pairs == (margin > 1e-9 * np.abs(margin).max()).sum()
        assert found.kind == ("complete" if found.pairs == n else "quasi-complete")
        if len(found.columns) == 2:  # no single column does it, and none that is strict was missed
            assert (found.kind == "complete") == strict


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-6])
def test_the_column_that_separates_is_named(scale: float) -> None:
    rng = np.random.default_rng(0)
    u = rng.normal(size=(200, 4)) * [1.0, scale, 1.0, 1.0]
    u[:, 2] = np.abs(u[:, 2]) * (rng.random(200) < 0.3)  # a dummy that always wins where it differs
    found = separation(u)
    assert found is not None
    assert found.kind == "quasi-complete" and found.columns == (2,)
    assert "price" in found.describe(["a", "b", "price", "d"])
    assert separation(np.delete(u, 2, 1)) is None


def test_a_combination_of_columns_that_separates() -> None:
    rng = np.random.default_rng(1)
    u = rng.normal(size=(300, 5))
    u *= np.sign(u[:, 1] - 2 * u[:, 3])[:, None]
    found = separation(u)
    assert found is not None and found.kind == "complete" and found.pairs == 300
    u[0] *= -1
    assert separation(u) is None
    weights = np.full(300, 1 / 299)
    weights[0] = 0.0
    again = separation(u, weights)
    assert again is not None and again.pairs == 299


def test_fits_say_that_no_finite_estimate_exists() -> None:
    u = np.array([[1.0, 0.3], [0.0, -1.0], [0.0, 1.0], [1.0, 0.2]])
    found = dpo(u, beta=1.0)
    assert "separable (quasi-complete: 2 of them agree" in repr(found)
    assert "direction of feature 1)" in repr(found)
    near = fit(np.vstack([u, [-1.0, 0.0]]), KL(0.01), beta=1.0)
    assert near.remarks == [] and "separable" not in repr(near)


def test_fits_say_that_the_bound_binds() -> None:
    u = [[1.0], [1.0], [-1.0]]
    free, bound = dpo(u, beta=1.0), dpo(u, beta=1.0, bound=0.3)
    assert not free.at_bound and bool(bound.at_bound)
    assert "on the bound ||theta|| <= 0.3" in repr(bound)
    both = dpo([u, [[1.0], [-1.0], [-1.0]]], beta=1.0, bound=0.5)
    assert both.at_bound.tolist() == [True, True] and "2 on the bound" in repr(both)
    assert bool(both.one(1).at_bound)
    assert not dpo([u, [[1.0], [-1.0], [-1.0]]], beta=1.0).at_bound.any()
    assert not fit(u, KL(3.0), beta=1.0, bound=0.3).at_bound  # the reference policy


def test_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="holds 2 samples"):
        separation(np.ones((2, 3, 1)))
