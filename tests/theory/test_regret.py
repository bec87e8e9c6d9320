"""The least worst-case regret over candidate laws against its convex program."""

import numpy as np
import pytest

from theory import least_regret
from theory.shift import candidate_laws, random_shift
from theory.twins import regret as twin


def instance(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n, d, count = int(rng.integers(4, 20)), int(rng.integers(1, 4)), int(rng.integers(1, 6))
    u = rng.normal(size=(n, d))
    return u, rng.dirichlet(np.full(n, 0.5), size=count), 0.3 * rng.normal(size=d)


@pytest.mark.parametrize("of", ["regret", "loss"])
@pytest.mark.parametrize("seed", range(8))
def test_against_its_twin(seed: int, of: str) -> None:
    u, laws, ref = instance(seed)
    problem = {"beta": 0.8, "bound": 1.5 if seed % 2 else 4.0, "theta_ref": ref}
    found = least_regret(u, laws, of=of, **problem)
    theta, value = twin.least_regret(u, laws, of=of, **problem)
    assert found.converged and found.gap < 1e-7
    assert found.value == pytest.approx(value, abs=2e-6)  # the program's own digits
    np.testing.assert_allclose(found.theta, theta, atol=5e-3)
    assert np.linalg.norm(found.theta) <= problem["bound"] * (1 + 1e-12)
    assert found.mixture.sum() == pytest.approx(1) and (found.mixture >= 0).all()


def test_two_coins_meet_at_equal_regrets() -> None:
    """One feature: the regrets of the chances 0.9 and 0.3 are KL(q, sigma(m)), equal at one m."""
    u, laws = np.array([[1.0], [-1.0]]), np.array([[0.9, 0.1], [0.3, 0.7]])
    found = least_regret(u, laws, beta=2.0, bound=5.0)
    q = 1 / (1 + np.exp(-2 * found.theta.item()))
    regrets = [a * np.log(a / q) + (1 - a) * np.log((1 - a) / (1 - q)) for a in (0.9, 0.3)]
    np.testing.assert_allclose(regrets, found.value, atol=1e-7)
    np.testing.assert_allclose(found.excess, regrets, atol=1e-9)


def test_one_law_is_dpo_and_a_law_twice_is_once() -> None:
    u, laws, ref = instance(3)
    one = least_regret(u, laws[:1], beta=1.0, bound=3.0, theta_ref=ref)
    assert one.value == pytest.approx(0.0, abs=1e-9)
    several = least_regret(u, laws, beta=1.0, bound=3.0, theta_ref=ref)
    again = least_regret(u, np.repeat(laws, 2, axis=0), beta=1.0, bound=3.0, theta_ref=ref)
    assert again.value == pytest.approx(several.value, abs=1e-7) and again.converged
    np.testing.assert_allclose(again.theta, several.theta, atol=1e-3)


def test_the_laws_of_a_shift_by_loops() -> None:
    for kind in ("convex", "contexts"):
        shift = random_shift(kind, 1, train=0.8, alpha=np.array([0.2, 0.8]))
        world = shift.world
        laws = candidate_laws(shift, world.probability)
        features, mu = world.policy_features, world.context_probability
        assert features is not None and mu is not None
        if kind == "convex":  # at the alpha of training it is the training law
            np.testing.assert_allclose(laws[1], world.probability, atol=1e-15)
        for at, (s, first, second) in enumerate(np.ndindex(6, 3, 3)):
            gap = shift.rewards[0, s, first] - shift.rewards[0, s, second]
            row = shift.contexts[0, s] / 9 / (1 + np.exp(-gap))
            assert laws[0, 2 * at] == pytest.approx(row)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"of": "risk"}, "of must be 'regret' or 'loss'"),
        ({"laws": [[0.5, 0.2]]}, "law 1 must be non-negative and sum to one"),
        ({"laws": [[1.0]]}, "laws .G, n., a probability of each pair"),
    ],
)
def test_bad_input(change: dict, words: str) -> None:
    given = {"u": [[1.0], [-1.0]], "laws": [[0.5, 0.5]], "beta": 1.0, "bound": 1.0} | change
    with pytest.raises(ValueError, match=words):
        least_regret(**given)


def test_given_pairs_have_no_candidate_laws() -> None:
    shift = random_shift("convex", 0, train=0.8, alpha=np.array([0.2, 0.8]))
    with pytest.raises(ValueError, match="all 108 atoms"):
        candidate_laws(shift, np.ones(5) / 5)
