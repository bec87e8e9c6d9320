"""The worlds of the AOT study against enumeration."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logsumexp

from experiments.aot.estimator import population_best
from experiments.aot.worlds import Spec, build_world, judged

SMALL = Spec("curved", contexts=2, actions=4, dimension=2, reference=1.0)
SPECS = (Spec(), SMALL, Spec(contexts=3, actions=3, dimension=4, reference=0.5))


@pytest.mark.parametrize("spec", SPECS)
def test_pairs_have_the_probability_of_reference_draws_and_bradley_terry_labels(spec: Spec) -> None:
    world = build_world(spec)
    contexts, actions, _ = world.features.shape
    scores = world.features @ world.theta_ref
    reference = np.exp(scores - logsumexp(scores, axis=1, keepdims=True))
    wanted = np.zeros((contexts * actions,) * 2)  # [chosen, rejected]
    for s, a, b in product(range(contexts), range(actions), range(actions)):
        first, second = s * actions + a, s * actions + b
        drawn, wins = (
            reference[s, a] * reference[s, b] / contexts,
            expit(world.reward[s, a] - world.reward[s, b]),
        )
        wanted[first, second] += drawn * wins
        wanted[second, first] += drawn * (1 - wins)
    found = np.zeros_like(wanted)
    np.add.at(found, (world.chosen, world.rejected), world.probability)
    np.testing.assert_allclose(found, wanted, atol=1e-14)
    chosen, rejected = world.laws(world.probability)
    np.testing.assert_allclose(chosen, wanted.sum(1), atol=1e-14)
    np.testing.assert_allclose(rejected, wanted.sum(0), atol=1e-14)


def test_log_ratio_kl_and_win_rate_are_those_of_the_policies() -> None:
    world = build_world(SMALL)
    w = np.array([0.7, -1.3])

    def policy(theta: np.ndarray) -> np.ndarray:
        weights = np.exp(world.features @ theta)
        return weights / weights.sum(1, keepdims=True)

    new, old = policy(world.theta_ref + w), policy(world.theta_ref)
    np.testing.assert_allclose(
        world.log_ratio(torch.from_numpy(w)), np.log(new / old).ravel(), atol=1e-12
    )
    assert float(world.kl(w)) == pytest.approx((new * np.log(new / old)).sum(1).mean())
    wins = 0.0
    for s, a, b in product(range(2), range(4), range(4)):
        wins += new[s, a] * old[s, b] * expit(world.reward[s, a] - world.reward[s, b]) / 2
    assert world.win_rate(w) == pytest.approx(wins)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 2))
def test_chosen_dominates_rejected_in_the_true_reward(seed: int, reference: float) -> None:
    """Derived: given the prompt, chance of chosen over chance of rejected grows with the reward,
    which is more than dominance."""
    world = build_world(Spec(contexts=3, actions=4, reference=reference, seed=seed))
    p, q = (law.numpy() for law in world.laws(world.probability))
    reward = world.reward.ravel()
    above = reward[:, None] > reward  # P(reward > x) at every atom x
    assert (p @ above >= q @ above - 1e-12).all()
    found = judged(world, world.star[None])
    assert found["violation"][0] == pytest.approx(0, abs=1e-12)


def test_no_direction_puts_chosen_first_in_the_curved_world() -> None:
    world = build_world(Spec("curved"))
    directions = np.random.default_rng(0).standard_normal((200, 3))
    best = judged(world, population_best(Spec("curved"), "logistic", 1.0).numpy())
    assert best["violation"][0] > 1e-3
    assert judged(world, directions)["violation"].mean() > 0.05
