"""Estimates of a policy's total preference against enumeration, and what leaves them unchanged."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory import from_policy, total_preference
from theory.doubly_robust import finite_terms
from theory.policy import Array


def simplices(rng: np.random.Generator, *shape: int) -> Array:
    return rng.dirichlet(np.ones(shape[-1]) * 2, size=shape[:-1])


def antisymmetric(rng: np.random.Generator, S: int, A: int) -> Array:
    """Chances g with g(a, b) + g(b, a) = 1, which need not come from rewards."""
    score = rng.normal(size=(S, A, A))
    return 1 / (1 + np.exp(score.transpose(0, 2, 1) - score))


class World:
    """Two contexts and three actions by loops: nothing of the code under test."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.mu = simplices(rng, 2)
        self.policy, self.reference, self.other = (simplices(rng, 2, 3) for _ in range(3))
        self.preference, self.guess = (antisymmetric(rng, 2, 3) for _ in range(2))

    def atoms(self) -> Array:
        return np.array(
            [
                self.mu[s]
                * self.reference[s, a]
                * self.reference[s, b]
                * (self.preference[s, a, b] if y else 1 - self.preference[s, a, b])
                for s, a, b, y in itertools.product(range(2), range(3), range(3), (1, 0))
            ]
        )

    def truth(self, preference: Array | None = None) -> float:
        g = self.preference if preference is None else preference
        return sum(
            self.mu[s] * self.policy[s, a] * self.reference[s, b] * g[s, a, b]
            for s, a, b in itertools.product(range(2), range(3), range(3))
        )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_one_right_model_is_enough_and_each_estimate_needs_its_own(seed: int) -> None:
    world = World(seed)
    for guess, reference in itertools.product(
        (world.preference, world.guess), (world.reference, world.other)
    ):
        label, *terms = finite_terms(world.policy, reference, guess)
        found = total_preference(label, *terms, world.atoms())
        np.testing.assert_allclose(found.direct.value, world.truth(guess), atol=1e-12)
        if reference is world.reference:
            np.testing.assert_allclose(found.weighted.value, world.truth(), atol=1e-12)
        if reference is world.reference or guess is world.preference:
            np.testing.assert_allclose(found.doubly_robust.value, world.truth(), atol=1e-12)
        else:
            off = sum(
                world.mu[s]
                * world.reference[s, a]
                * world.reference[s, b]
                * (
                    world.policy[s, a] / world.reference[s, a]
                    - world.policy[s, a] / reference[s, a]
                )
                * (guess[s, a, b] - world.preference[s, a, b])
                for s, a, b in itertools.product(range(2), range(3), range(3))
            )
            np.testing.assert_allclose(found.doubly_robust.value, world.truth() + off, atol=1e-12)


def test_a_model_that_favours_the_first_place_costs_half_of_what_it_favours() -> None:
    world = World(0)
    favour = 0.1 * world.guess * (1 - world.guess)
    label, *terms = finite_terms(world.policy, world.reference, world.guess + favour)
    found = total_preference(label, *terms, world.atoms()).doubly_robust.value
    twice = world.truth(favour + favour.transpose(0, 2, 1))
    np.testing.assert_allclose(found, world.truth() + twice / 2, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_places_and_repetitions_do_not_matter(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    z, g, f, s = rng.integers(0, 2, n), *rng.random((3, n))
    w1, w2 = rng.exponential(size=(2, n))
    times = rng.integers(1, 4, n)
    one = total_preference(z, w1, w2, g, f, s, times)
    swapped = total_preference(1 - z, w2, w1, 1 - g, s, f, times)
    again = total_preference(*(np.repeat(x, times) for x in (z, w1, w2, g, f, s)))
    for name in ("direct", "weighted", "doubly_robust"):
        for other in (swapped, again):
            np.testing.assert_allclose(
                getattr(one, name).value, getattr(other, name).value, atol=1e-12
            )
            np.testing.assert_allclose(
                getattr(one, name).deviation, getattr(other, name).deviation, atol=1e-12
            )


def test_the_atoms_are_those_of_a_world_from_a_policy() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 3, 2))
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    world = from_policy(features, np.array([0.7, 0.1]), beta=1.0, bound=2.0)
    # a model that tells features apart, and labels: both orders of the atoms have to be the same
    guess = (1 + features[:, :, None, 0] * features[:, None, :, 1]) / 2
    label, _, _, pair, _, _ = finite_terms(np.full((2, 3), 1 / 3), np.full((2, 3), 1 / 3), guess)
    np.testing.assert_array_equal(label, world.label)
    np.testing.assert_allclose(pair, (1 + world.psi1[:, 0] * world.psi2[:, 1]) / 2, atol=1e-15)


def test_intervals_cover() -> None:
    """With the true models the interval of two standard errors covers in about 95 %."""
    world, n, samples = World(3), 400, 2000
    label, *terms = finite_terms(world.policy, world.reference, world.preference)
    counts = np.random.default_rng(0).multinomial(n, world.atoms(), size=samples)
    found = total_preference(label, *terms, counts / n).doubly_robust
    assert found.value.shape == (samples,)
    covered = np.abs(found.value - world.truth()) <= 1.96 * found.deviation / np.sqrt(n)
    assert 0.93 < covered.mean() < 0.97  # four standard errors are 0.02


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": [2.0]}, "label must be chances"),
        ({"guess": [np.nan]}, "guess must be finite"),
        ({"ratio_first": [-0.1]}, "Ratios are pi/pi_ref, not their logarithms"),
        ({"weights": [0.0]}, "all zero"),
        ({"label": []}, "n >= 1"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, list[float]], words: str) -> None:
    names = ("label", "ratio_first", "ratio_second", "guess", "against_first", "against_second")
    with pytest.raises(ValueError, match=words):
        total_preference(**{**{name: [0.5] for name in names}, **change})
