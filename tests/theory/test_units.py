"""Features in very different units, without a bound: the same answer as in one unit."""

import numpy as np
import pytest

from tests.theory.laws.nasty import with_labels
from theory import KL, SETS, WassersteinAtoms, collapse_radius, dpo, fit, infer
from theory.sets import AmbiguitySet

UNITS = np.array([1e-6, 1.0, 1e6])


def sample(n: int = 120) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3))
    wins = rng.random(n) < 1 / (1 + np.exp(-x @ [1.0, -0.7, 0.4]))
    return np.where(wins[:, None], x, -x)


U = sample()
METRIC = np.linalg.norm(U[:, None] - U, axis=-1)
BLIND = [name for name, member in SETS.items() if not member.knows_units]


def sized(name: str) -> AmbiguitySet:
    ball = with_labels(SETS[name].in_metric(METRIC))
    return ball.sized(0.5 if name in ("tilt", "cvar") else 0.05)


@pytest.mark.parametrize("name", ["dpo", *BLIND])
def test_units_do_not_matter_where_no_feature_moves(name: str) -> None:
    ball = None if name == "dpo" else sized(name)
    one, other = fit(U, ball, beta=1.0), fit(U * UNITS, ball, beta=1.0)
    assert bool(other.converged) and not bool(other.at_bound) and other.remarks == []
    assert other.value.item() == pytest.approx(one.value.item(), abs=1e-10)
    np.testing.assert_allclose(other.theta.numpy() * UNITS, one.theta.numpy(), atol=1e-6)
    reference = np.array([0.2, -0.1, 0.3])
    near, far = (
        fit(u, ball, beta=1.0, theta_ref=reference / unit)
        for u, unit in ((U, 1.0), (U * UNITS, UNITS))
    )
    np.testing.assert_allclose(far.theta.numpy() * UNITS, near.theta.numpy(), atol=1e-6)


@pytest.mark.parametrize("name", [name for name in BLIND if name != "tilt"])
def test_nor_do_they_for_collapse(name: str) -> None:
    ball = sized(name)
    one, other = collapse_radius(U, ball).item(), collapse_radius(U * UNITS, ball).item()
    assert other == pytest.approx(one, rel=1e-6)
    beyond = 2 * one if ball.facts.grows else one / 2
    assert bool(fit(U * UNITS, ball.sized(beyond), beta=1.0).collapsed)


def test_standard_errors_come_in_the_units() -> None:
    for ball in (None, KL(0.02)):
        one = infer(fit(U, ball, beta=1.0)).standard_errors
        other = infer(fit(U * UNITS, ball, beta=1.0)).standard_errors
        np.testing.assert_allclose(other * UNITS, one, rtol=1e-5)


def test_a_bound_is_in_the_units_that_are_given() -> None:
    found = dpo(U * UNITS ** (1 / 3), beta=1.0, bound=2.0)
    assert bool(found.at_bound) and found.theta.norm().item() == pytest.approx(2.0)


def test_batches_share_their_units() -> None:
    weights = np.random.default_rng(1).multinomial(120, np.full(120, 1 / 120), 4) / 120
    for ball in (None, KL(0.02), WassersteinAtoms(0.05, METRIC)):
        one, other = fit(U, ball, weights, beta=1.0), fit(U * UNITS, ball, weights, beta=1.0)
        np.testing.assert_allclose(other.theta.numpy() * UNITS, one.theta.numpy(), atol=1e-6)
