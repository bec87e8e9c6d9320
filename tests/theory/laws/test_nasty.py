"""Laws against differences of fits where ties, rare atoms and collapse are near."""

import numpy as np
import pytest

from tests.theory.laws.nasty import Case, case, worst_error
from theory import SETS
from theory.laws.law import law_at
from theory.policy import Array

# cases in which the law was wrong or raised before its solution was made exact
FOUND = [
    ("tv", 1),  # the fit lies within 1e-7 of the bound that holds it
    ("tv", 12),  # rare atoms, whose pieces are steep
    ("tv", 27),
    ("tv", 40),  # a threshold that rare atoms alone would scale
    ("cvar", 78),
    ("cvar", 100),  # losses that are nearly 0, and not equal
    ("w1-finite", 4),
    ("w1-finite", 12),
    ("w1-finite", 22),  # losses that are nearly equal, and not equal
    ("w2-finite", 1),
    ("w2-free", 26),
    ("w2-free", 31),
    ("w1-label", 0),  # the multiplier lies within 1e-7 of its bound
]


def directions(of: Case, seed: int) -> Array:
    """(6, K) changes of the weights and their opposites."""
    z = np.random.default_rng([78, seed]).normal(size=(3, len(of.p)))
    dp = z * of.p
    dp -= dp.sum(1, keepdims=True) * of.p
    return np.concatenate([dp, -dp])


@pytest.mark.some(3)
@pytest.mark.parametrize(("name", "seed"), FOUND)
def test_the_law_is_the_derivative_where_it_was_not(name: str, seed: int) -> None:
    of = case(name, seed)
    assert of is not None
    law, dp = law_at(of.found), directions(of, seed)
    assert law.derivative is not None, law.reason
    error = worst_error(of, law.derivative.along(dp)[:, : of.u.shape[1]], dp)
    assert error is not None and error < 0.02


@pytest.mark.parametrize("name", ["chi2", "w1-free", "w2-free", "w1-label"])
def test_a_fit_that_is_the_reference_policy_to_rounding_has_no_law(name: str) -> None:
    """Each pair with both labels, equally often: the gradient at theta_ref is 0 to rounding."""
    of = case(name, 33 if name == "chi2" else 5)
    assert of is not None
    law = law_at(of.found)
    assert law.kind == "none" and "reference policy" in law.reason


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", *SETS])
def test_random_laws_are_derivatives_or_none(name: str) -> None:
    judged = 0
    for seed in range(30):
        of = case(name, seed)
        if of is None:
            continue
        law, dp = law_at(of.found), directions(of, seed)
        if law.derivative is not None:
            error = worst_error(of, law.derivative.along(dp)[:, : of.u.shape[1]], dp)
            assert error is None or error < 0.02, (seed, error)
            judged += error is not None
    assert judged >= 10
