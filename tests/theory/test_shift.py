"""Preference shift against enumeration, closed forms and fits with another beta."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import ttest_1samp

from theory.batch import pair_batch
from theory.estimators import dpo
from theory.policy import Array, log_policy
from theory.shift import (
    FLIP_RATE,
    KINDS,
    Shift,
    descend,
    evaluate,
    gain_spread,
    gain_spread_bound,
    mean_interval,
    random_shift,
    scored_pairs,
    shrunk,
    spread,
    stopped,
)

quick = settings(max_examples=20, deadline=None, derandomize=True)
ALPHA = np.array([1.0, 0.7, 0.0])  # weights of the first reward


def features(shift: Shift) -> Array:
    assert shift.world.policy_features is not None
    return shift.world.policy_features


def directions(seed: int, dimension: int = 4) -> Array:
    return np.random.default_rng(seed).standard_normal((5, dimension))


def fit(shift: Shift, p: Array | None = None, beta: float = 1.0) -> Array:
    world = shift.world
    theta = dpo(world.u, world.probability if p is None else p, beta=beta, bound=world.bound).theta
    return np.atleast_2d(theta.numpy())


# --------------------------------------------------------------------------------------- evaluation
@pytest.mark.parametrize("kind", KINDS)
def test_outcomes_by_enumeration(kind: str) -> None:
    shift, theta = random_shift(kind, 0, train=0.8, alpha=ALPHA), directions(1)
    outcome = evaluate(shift, theta)
    psi, (S, A, _) = features(shift), features(shift).shape
    for i in range(len(theta)):
        weight = np.exp(psi @ theta[i])
        pi = weight / weight.sum(1, keepdims=True)
        for g in range(len(ALPHA)):
            reward = best = start = win = 0.0
            for s in range(S):
                r = shift.rewards[g, s]
                best += shift.contexts[g, s] * max(r)
                for a in range(A):
                    reward += shift.contexts[g, s] * pi[s, a] * r[a]
                    start += shift.contexts[g, s] * r[a] / A
                    win += (
                        shift.contexts[g, s]
                        * pi[s, a]
                        * sum(0.5 + 0.5 * np.sign(r[a] - r[b]) for b in range(A))
                        / A
                    )
            assert outcome.reward[i, g] == pytest.approx(reward)
            assert outcome.regret[i, g] == pytest.approx((best - reward) / (best - start))
            assert outcome.win_rate[i, g] == pytest.approx(win)
        mu = shift.world.context_probability
        assert mu is not None
        kl = sum(mu[s] * pi[s, a] * np.log(pi[s, a] * A) for s in range(S) for a in range(A))
        assert outcome.kl[i] == pytest.approx(kl)


def test_the_reference_has_regret_one_and_wins_half() -> None:
    shift = random_shift("contexts", 3, train=0.8, alpha=ALPHA)
    outcome = evaluate(shift, np.zeros((1, 4)))
    np.testing.assert_allclose(outcome.regret, 1, atol=1e-12)
    np.testing.assert_allclose(outcome.win_rate, 0.5, atol=1e-12)
    assert spread(outcome)[0] < 1e-12 and outcome.kl[0] < 1e-12


@given(st.integers(0, 10**6), st.sampled_from(KINDS), st.floats(0.01, 30))
@quick
def test_the_kl_bounds_the_spread_of_the_gain(seed: int, kind: str, size: float) -> None:
    shift, theta = random_shift(kind, seed, train=0.7, alpha=ALPHA), size * directions(seed)
    outcome = evaluate(shift, theta)
    assert (gain_spread(shift, outcome) <= gain_spread_bound(shift, outcome.kl) + 1e-12).all()


def test_the_bound_on_the_spread_by_hand() -> None:
    """One context, two responses, r1 = (1, 0), r2 = (0, 1): the gains are +-(pi - 1/2), the range
    of r1 - r2 is 2."""
    shift = scored_pairs(
        np.array([[1.0]]), np.array([[0.0]]), np.array([[1.0, 0]]), np.array([[0.0, 1]]),
        train=0.5, alpha=np.array([0.0, 1.0]), beta=1.0, bound=9.0,
    )  # fmt: skip
    outcome = evaluate(shift, np.array([[2.0]]))
    pi = expit(2.0)
    kl = pi * np.log(2 * pi) + (1 - pi) * np.log(2 * (1 - pi))
    assert gain_spread(shift, outcome)[0] == pytest.approx(2 * (pi - 0.5))
    assert gain_spread_bound(shift, outcome.kl)[0] == pytest.approx(2 * np.sqrt(kl / 2))


# ------------------------------------------------------------------------------------------- shifts
@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_those_of_the_kind(kind: str) -> None:
    train = 0.7
    shift = random_shift(kind, 2, train=train, alpha=ALPHA)
    world, (S, A, _) = shift.world, features(shift).shape
    assert world.probability.sum() == pytest.approx(1)
    for s in range(S):
        for a in range(A):
            for b in range(A):
                here = (world.psi1 == features(shift)[s, a]).all(1) & (
                    world.psi2 == features(shift)[s, b]
                ).all(1)
                mass, won = (
                    world.probability[here].sum(),
                    world.probability[here & (world.label == 1)].sum(),
                )
                first, trained, second = expit(shift.rewards[:, s, a] - shift.rewards[:, s, b])
                chance = {
                    "annotators": train * first + (1 - train) * second,
                    "sure annotators": train * first + (1 - train) * second,
                    "flips": (1 - FLIP_RATE) * trained + FLIP_RATE * (1 - trained),
                }.get(kind, trained)
                assert won / mass == pytest.approx(chance)
                assert mass == pytest.approx(shift.contexts[1, s] / A**2)


def test_mixtures_of_rewards() -> None:
    def rewards(kind: str) -> Array:
        return random_shift(kind, 4, train=0.8, alpha=ALPHA).rewards

    convex, geometric, contexts = rewards("convex"), rewards("geometric"), rewards("contexts")
    np.testing.assert_allclose(convex[1], 0.7 * convex[0] + 0.3 * convex[2])
    np.testing.assert_allclose(geometric[1], geometric[0] ** 0.7 * geometric[2] ** 0.3)
    np.testing.assert_allclose(rewards("sure annotators"), 8 / 3 * convex)
    np.testing.assert_array_equal(
        contexts[0], contexts[2]
    )  # there the contexts shift, not the rewards
    shares = random_shift("contexts", 4, train=0.8, alpha=ALPHA).contexts
    minority = np.isclose(contexts[0], convex[2]).all(1)
    np.testing.assert_allclose(shares[:, minority].sum(1), 1 - ALPHA)


def test_dpo_finds_the_mixed_reward_of_training() -> None:
    shift = random_shift("convex", 5, train=0.7, alpha=ALPHA)
    truth = np.linalg.lstsq(features(shift).reshape(-1, 4), shift.rewards[1].ravel(), rcond=None)[0]
    np.testing.assert_allclose(fit(shift)[0], truth, atol=1e-8)


def test_pairs_of_scored_responses() -> None:
    """One feature: the policy takes the first response with probability sigma(theta x)."""
    psi1, psi2 = np.array([[0.5], [-0.2]]), np.array([[0.1], [0.4]])
    r1, r2 = np.array([[1.0, 0], [2, 5]]), np.array([[0.0, 2], [3, 1]])
    shift = scored_pairs(
        psi1, psi2, r1, r2, train=0.75, alpha=np.array([1.0, 0.0]), beta=1.0, bound=9.0
    )
    outcome = evaluate(shift, np.array([[3.0]]))
    p = expit(3.0 * np.array([0.4, -0.6]))
    np.testing.assert_allclose(
        outcome.reward[0], [p @ r1[:, k] / 2 + (1 - p) @ r2[:, k] / 2 for k in (0, 1)]
    )
    chance = expit(np.array([1 * 0.75 - 2 * 0.25, -1 * 0.75 + 4 * 0.25]))
    np.testing.assert_allclose(shift.world.probability, np.concatenate([chance, 1 - chance]) / 2)


def test_what_is_no_shift_is_refused() -> None:
    with pytest.raises(ValueError, match=r"(?s)'convexe'.*convex"):
        random_shift("convexe", 0, train=0.8, alpha=ALPHA)
    shift = random_shift("convex", 0, train=0.8, alpha=ALPHA)
    with pytest.raises(ValueError, match=r"(?s)\(3, 6, 3\).*\(2, 6, 3\)"):
        Shift(shift.world, ALPHA, shift.rewards[:2], shift.contexts)
    with pytest.raises(ValueError, match=r"alpha = 0 does not depend.*Leave"):
        Shift(
            shift.world, ALPHA, shift.rewards * np.array([1, 1, 0])[:, None, None], shift.contexts
        )


# --------------------------------------------------------------------------------------- matched KL
@given(st.integers(0, 10**6), st.floats(0.001, 0.99))
@quick
def test_shrunk_policies_have_the_kl_and_lie_on_the_ray(seed: int, share: float) -> None:
    shift = random_shift("convex", seed, train=0.8, alpha=ALPHA)
    theta = directions(seed)
    kl = share * evaluate(shift, theta).kl
    found = shrunk(shift.world, theta, kl)
    np.testing.assert_allclose(evaluate(shift, found).kl, kl, rtol=1e-9)
    size = (found * theta).sum(1) / (theta**2).sum(1)
    assert ((size > 0) & (size < 1)).all()
    np.testing.assert_allclose(found, size[:, None] * theta, atol=1e-12)


@pytest.mark.parametrize("larger", [1.5, 4.0, 50.0])
def test_dpo_with_a_larger_beta_is_shrunk_dpo(larger: float) -> None:
    shift = random_shift("annotators", 6, train=0.8, alpha=ALPHA)
    other = fit(shift, beta=larger)
    np.testing.assert_allclose(
        shrunk(shift.world, fit(shift), evaluate(shift, other).kl), other, atol=1e-8
    )


def test_the_ray_goes_beyond_dpo_and_ends_at_the_kl_of_certainty() -> None:
    shift = random_shift("convex", 7, train=0.8, alpha=ALPHA)
    theta = fit(shift)
    kl = evaluate(shift, theta).kl
    further = shrunk(shift.world, theta, kl * 1.2)
    assert (further / theta > 1).all()
    assert np.isnan(
        shrunk(shift.world, theta, np.array([np.log(3) + 0.01]))
    ).all()  # log A is the largest KL there is
    np.testing.assert_array_equal(shrunk(shift.world, theta, np.zeros(1)), 0)


def test_stopped_policies_have_the_kl_and_descend() -> None:
    shift = random_shift("contexts", 8, train=0.8, alpha=ALPHA)
    world = shift.world
    pairs = world.sample(500, np.random.SeedSequence(0).spawn(2))
    minimiser = fit(shift, pairs.p.numpy())
    path = descend(pairs, world, minimiser)
    top = evaluate(shift, minimiser).kl
    np.testing.assert_allclose(
        path.kl, [evaluate(shift, points).kl for points in path.points], atol=1e-15
    )
    sample = np.array([1, 0, 1, 0, 1])
    kl = np.array([1e-4, 0.01, 0.5, 1.0, 1.0]) * top[sample]
    found = stopped(world, path, sample, kl)
    np.testing.assert_allclose(evaluate(shift, found).kl, kl, rtol=1e-9)
    for point, k, target in zip(
        found, sample, kl, strict=True
    ):  # on the first step that reaches the KL
        step = int((path.kl[:, k] >= target).argmax())
        start, end = path.points[step - 1, k], path.points[step, k]
        along = (point - start) @ (end - start) / ((end - start) @ (end - start))
        assert 0 <= along <= 1 + 1e-9
        np.testing.assert_allclose(point, start + along * (end - start), atol=1e-9)
    np.testing.assert_allclose(path.points[-2], minimiser, rtol=1e-3, atol=1e-3)
    drift = pairs.pull(pairs.p).numpy()[
        1
    ]  # the first steps go along the gradient at the reference, E u/2
    assert found[0] @ drift / np.linalg.norm(found[0]) / np.linalg.norm(drift) == pytest.approx(
        1, abs=1e-3
    )

    def loss(theta: Array, k: int) -> float:
        return float(pairs.p.numpy()[k] @ np.log1p(np.exp(-world.u @ theta)))

    for k in (0, 1):
        losses = [loss(point, k) for point in path.points[:, k]]
        assert (np.diff(losses) <= 1e-12).all()
    assert np.isnan(stopped(world, path, np.array([0]), 2 * top[:1])).all()


def test_a_collapsed_fit_has_the_reference_as_its_control() -> None:
    shift = random_shift("convex", 9, train=0.8, alpha=ALPHA)
    path = descend(pair_batch(shift.world.u, shift.world.probability), shift.world, fit(shift))
    np.testing.assert_array_equal(stopped(shift.world, path, np.array([0]), np.zeros(1)), 0)


# --------------------------------------------------------------------------------------- statistics
def test_interval_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 12)
    mean, low, high = mean_interval(values, 0.9)
    truth = ttest_1samp(values, 0).confidence_interval(0.9)
    assert (mean, low, high) == pytest.approx((values.mean(), truth.low, truth.high))
    assert mean_interval(values[:1])[1:] == (-np.inf, np.inf)
    assert np.isnan(mean_interval(np.array([]))[0])


def test_policies_of_the_same_theta_are_those_of_log_policy() -> None:
    """The evaluation uses the world's own features: a sum over them by log_policy gives the same
    reward."""
    shift, theta = random_shift("geometric", 1, train=0.8, alpha=ALPHA), directions(2)
    reward = np.einsum("rsa,gsa->rg", np.exp(log_policy(theta, features(shift))), shift.rewards) / 6
    np.testing.assert_allclose(evaluate(shift, theta).reward, reward)
