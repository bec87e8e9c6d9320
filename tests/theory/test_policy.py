"""Log-linear policies and reward mixtures against enumeration."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from theory.policy import (
    convex_mixture,
    geometric_mixture,
    kl_to_reference,
    log_policy,
    policy_kl,
)

quick = settings(max_examples=20, deadline=None, derandomize=True)


def test_log_policy_by_enumeration() -> None:
    rng = np.random.default_rng(0)
    features, theta = rng.standard_normal((3, 4, 2)), rng.standard_normal((5, 2))
    log_pi = log_policy(theta, features)
    assert log_pi.shape == (5, 3, 4)
    for k in range(5):
        for s in range(3):
            weight = [np.exp(features[s, a] @ theta[k]) for a in range(4)]
            np.testing.assert_allclose(
                np.exp(log_pi[k, s]), np.array(weight) / sum(weight), rtol=1e-12
            )
    np.testing.assert_allclose(log_policy(theta[2], features), log_pi[2])


def test_a_policy_of_large_norm_does_not_overflow() -> None:
    log_pi = log_policy(np.array([1e4]), np.array([[[1.0], [0.0]]]))
    np.testing.assert_allclose(log_pi, [[0.0, -1e4]])


def test_kl_of_two_actions() -> None:
    """One context, features 1 and 0: pi(first) = sigma(theta)."""
    theta, ref = 0.7, -0.4
    p, r = 1 / (1 + np.exp(-theta)), 1 / (1 + np.exp(-ref))
    truth = p * np.log(p / r) + (1 - p) * np.log((1 - p) / (1 - r))
    found = kl_to_reference(
        np.array([theta]), np.array([ref]), np.array([[[1.0], [0.0]]]), np.ones(1)
    )
    assert float(found) == pytest.approx(truth, rel=1e-13)


@given(st.integers(0, 2**31))
@quick
def test_kl_is_a_weighted_sum_over_contexts_and_never_negative(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, mu = rng.standard_normal((4, 3, 2)), rng.dirichlet(np.ones(4))
    theta, ref = rng.standard_normal((6, 2)), rng.standard_normal(2)
    found = kl_to_reference(theta, ref, features, mu)
    assert found.shape == (6,) and (found >= 0).all()
    for k in range(6):
        truth = 0.0
        for s in range(4):
            p, r = np.exp(features[s] @ theta[k]), np.exp(features[s] @ ref)
            p, r = p / p.sum(), r / r.sum()
            truth += mu[s] * sum(p * np.log(p / r))
        assert found[k] == pytest.approx(truth, rel=1e-9, abs=1e-12)
    assert float(kl_to_reference(ref, ref, features, mu)) == pytest.approx(0, abs=1e-15)


def test_mixtures_by_hand() -> None:
    rewards = np.array([[1.0, 4.0], [9.0, 1.0]])
    np.testing.assert_allclose(convex_mixture(rewards, np.array([0.25, 0.75])), [3.25, 3.0])
    np.testing.assert_allclose(geometric_mixture(rewards, np.array([0.5, 0.5])), [2.0, 3.0])
    np.testing.assert_allclose(geometric_mixture(rewards, np.array([1.0, 0.0])), [1.0, 9.0])


@given(st.integers(0, 2**31))
@quick
def test_the_geometric_mean_is_below_the_arithmetic_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rewards, alpha = rng.random((7, 3)) + 1e-3, rng.dirichlet(np.ones(3))
    assert (geometric_mixture(rewards, alpha) <= convex_mixture(rewards, alpha) + 1e-12).all()


@pytest.mark.parametrize("alpha", [[0.5, 0.6], [1.5, -0.5], [1.0], [0.2, 0.3, 0.5]])
def test_mixtures_refuse_what_is_not_a_distribution(alpha: list[float]) -> None:
    for mixture in (convex_mixture, geometric_mixture):
        with pytest.raises(ValueError, match=r"(?s)alpha must be 2.*Divide") as error:
            mixture(np.ones((3, 2)), np.array(alpha))
        assert str(alpha[0]) in str(error.value)


@pytest.mark.parametrize("smallest", [0.0, -0.25, np.nan])
def test_a_geometric_mixture_needs_positive_rewards(smallest: float) -> None:
    with pytest.raises(ValueError, match=r"positive rewards.*sigmoid") as error:
        geometric_mixture(np.array([[1.0, smallest]]), np.array([0.5, 0.5]))
    assert f"{smallest:g}" in str(error.value)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_kl_of_choices_is_that_of_categorical_laws(seed: int) -> None:
    """Against torch's categorical distributions, set by set."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, 6)
    sets = np.repeat(np.array(["f", "a", "c", "b", "e", "d"]), sizes)
    items, theta, ref = rng.normal(size=(len(sets), 3)), rng.normal(size=3) * 5, rng.normal(size=3)
    order = rng.permutation(len(sets))
    found = policy_kl(items[order], sets[order], theta, ref)
    for name, kl in zip(sorted(set(sets)), found, strict=True):
        one = torch.from_numpy(items[sets == name])
        p, q = (Categorical(logits=one @ torch.from_numpy(x)) for x in (theta, ref))
        assert kl == pytest.approx(kl_divergence(p, q).item(), abs=1e-12)
    assert policy_kl(items, sets, theta)[0] >= 0


def test_what_is_no_choice_set_is_refused() -> None:
    with pytest.raises(ValueError, match="sets must be labels"):
        policy_kl([[1.0], [2.0]], ["a", None], [1.0])
    with pytest.raises(ValueError, match="theta must be 1 finite"):
        policy_kl([[1.0], [2.0]], ["a", "a"], [1.0, 2.0])
    with pytest.raises(ValueError, match="items must be"):
        policy_kl([[1.0], [np.nan]], ["a", "a"], [1.0])
