"""Worlds against enumeration, Monte Carlo and other quadratures, tables of every format, and a
world of real rewards."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from theory.estimators import Fit, dpo, kldpo, wdpo_finite, wdpo_free
from theory.policy import convex_mixture, geometric_mixture
from theory.worlds import (
    ContinuousWorld,
    FiniteWorld,
    common_scale,
    common_units,
    feature_columns,
    from_labels,
    from_policy,
    from_rewards,
    random_world,
    read_table,
)

Array = NDArray[np.float64]


def sigma(x: float) -> float:
    return 1 / (1 + np.exp(-x))


def seeds_of(count: int, root: int = 0) -> list[np.random.SeedSequence]:
    return np.random.SeedSequence(root).spawn(count)


def small_world(theta_ref: Array | None = None) -> FiniteWorld:
    rng = np.random.default_rng(1)
    features = rng.standard_normal((3, 4, 2))
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    mu = np.array([0.5, 0.3, 0.2])
    return from_policy(
        features,
        np.array([1.2, -0.7]),
        beta=0.9,
        bound=3.0,
        theta_ref=theta_ref,
        context_probability=mu,
    )


# ------------------------------------------------------------------------------------ finite worlds
@pytest.mark.parametrize("theta_ref", [None, np.array([0.4, 0.3])])
def test_probabilities_by_enumeration(theta_ref: Array | None) -> None:
    world = small_world(theta_ref)
    ref = np.zeros(2) if theta_ref is None else theta_ref
    truth: dict[tuple[float, ...], float] = {}
    for s in range(3):
        features, mu = world.policy_features[s], world.context_probability[s]
        pi = np.exp(features @ ref) / np.exp(features @ ref).sum()
        for i in range(4):
            for j in range(4):
                win = sigma(0.9 * (features[i] - features[j]) @ (np.array([1.2, -0.7]) - ref))
                for y in (0, 1):
                    key = (*features[i], *features[j], y)
                    truth[key] = truth.get(key, 0) + mu * pi[i] * pi[j] * (
                        win if y == 1 else 1 - win
                    )
    assert len(truth) == len(world.probability) == 3 * 4 * 4 * 2
    for psi1, psi2, y, p in zip(
        world.psi1, world.psi2, world.label, world.probability, strict=True
    ):
        assert p == pytest.approx(truth[(*psi1, *psi2, y)], rel=1e-12)


@pytest.mark.parametrize("theta_ref", [None, np.array([0.4, 0.3])])
def test_theta_star_is_the_dpo_minimiser(theta_ref: Array | None) -> None:
    world = small_world(theta_ref)
    w = world.theta_star - world.theta_ref
    score = -world.beta * (world.probability / (1 + np.exp(world.beta * world.u @ w))) @ world.u
    np.testing.assert_allclose(score, 0, atol=1e-15)
    fit = dpo(
        world.u, world.probability, beta=world.beta, bound=world.bound, theta_ref=world.theta_ref
    )
    np.testing.assert_allclose(fit.theta, world.theta_star, atol=1e-9)


def test_features_and_covariance() -> None:
    world = small_world()
    np.testing.assert_allclose(world.x, world.psi1 - world.psi2)
    np.testing.assert_allclose(world.u[world.label == 0], -world.x[world.label == 0])
    np.testing.assert_allclose(world.u[world.label == 1], world.x[world.label == 1])
    truth = sum(p * np.outer(x, x) for p, x in zip(world.probability, world.x, strict=True))
    np.testing.assert_allclose(world.covariance(), truth, rtol=1e-12)
    assert world.dimension == 2


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int8, np.int64, np.float32])
def test_labels_of_any_numeric_type(kind: type) -> None:
    """Unsigned labels must not wrap around in 2y - 1."""
    psi1, psi2 = np.array([[0.5, 0.0], [0.0, 0.5]]), np.zeros((2, 2))
    world = from_labels(psi1, psi2, np.array([0, 1]).astype(kind), beta=1.0, bound=1.0)
    np.testing.assert_allclose(world.u, [[-0.5, 0], [0, 0.5]])


def test_distance_is_the_documented_metric() -> None:
    world, kappa = small_world(), 0.7
    D = world.distance(kappa)
    rng = np.random.default_rng(0)
    for i, j in rng.integers(len(D), size=(50, 2)):
        both = np.sum((world.psi1[i] - world.psi1[j]) ** 2) + np.sum(
            (world.psi2[i] - world.psi2[j]) ** 2
        )
        assert D[i, j] == pytest.approx(
            np.sqrt(both) + kappa * (world.label[i] != world.label[j]), abs=1e-12
        )
    assert (D == D.T).all() and (np.diag(D) == 0).all()
    i, j, k = rng.integers(len(D), size=(3, 500))
    assert (D[i, j] <= D[i, k] + D[k, j] + 1e-12).all()


def test_kl_to_reference_is_zero_only_there() -> None:
    world = small_world(np.array([0.4, 0.3]))
    kl = world.kl_to_reference(np.array([[0.4, 0.3], [0.0, 0.0], [1.0, 1.0]]))
    assert kl[0] == pytest.approx(0, abs=1e-15) and (kl[1:] > 1e-3).all()


# ------------------------------------------------------------------------------------------ samples
def test_samples_are_counts_and_depend_on_the_seed_alone() -> None:
    world = small_world()
    one, again = world.sample(100, seeds_of(3)), world.sample(100, seeds_of(3))
    counts = one.p * 100
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-9)
    assert torch.equal(one.p, again.p)
    assert not torch.equal(one.p[0], one.p[1])
    assert torch.equal(world.sample(100, seeds_of(3)[1:2]).p[0], one.p[1])


@pytest.mark.parametrize("n", [1, 1_000_000, 1_000_000_000, 1e9])
def test_sample_frequencies_converge(n: float) -> None:
    """Chi-squared statistics of 20 samples, whose mean is K - 1 with standard deviation about
    sqrt(2 (K - 1)/20)."""
    world = small_world()
    pairs = world.sample(n, seeds_of(20))
    p = world.probability
    np.testing.assert_allclose(pairs.p.sum(-1), 1, rtol=1e-12)
    statistic = (n * (pairs.p.numpy() - p) ** 2 / p).sum(1).mean()
    if n > 1:
        assert abs(statistic - (len(p) - 1)) < 5 * np.sqrt(2 * (len(p) - 1) / 20)


def test_population_is_the_limit_of_samples() -> None:
    world = small_world()
    pairs = world.population()
    np.testing.assert_allclose(pairs.p[0], world.probability)
    np.testing.assert_allclose(pairs.ut[0].T, world.u)


# ---------------------------------------------------------------------------------- labels, rewards
def test_from_labels_is_the_empirical_distribution() -> None:
    rng = np.random.default_rng(3)
    psi1, psi2, label = rng.random((5, 2)) / 2, rng.random((5, 2)) / 2, np.array([1, 0, 0, 1, 1])
    world = from_labels(psi1, psi2, label, beta=1.0, bound=2.0)
    np.testing.assert_allclose(world.probability, 0.2)
    np.testing.assert_allclose(world.u[1], psi2[1] - psi1[1])
    assert world.theta_star is None and world.kl_to_reference(np.zeros(2)) is None


def test_single_precision_unit_vectors_are_within_the_bound() -> None:
    """Features normalised in float32 have norms up to 1 + 1e-7: rounding, not a mistake."""
    psi = np.random.default_rng(0).standard_normal((200, 7)).astype(np.float32)
    psi /= np.linalg.norm(psi, axis=1, keepdims=True)
    world = from_labels(psi[:100], psi[100:], np.ones(100, dtype=int), beta=1.0, bound=1.0)
    assert world.dimension == 7


def test_from_rewards_is_bradley_terry() -> None:
    psi1, psi2 = np.array([[0.1, 0.2], [0.3, 0.4]]), np.array([[0.5, 0.0], [0.0, 0.5]])
    world = from_rewards(
        psi1, psi2, np.array([2.0, -1.0]), np.array([0.5, 1.0]), beta=1.0, bound=2.0
    )
    truth = {
        (0.1, 1): sigma(1.5) / 2,
        (0.1, 0): sigma(-1.5) / 2,
        (0.3, 1): sigma(-2) / 2,
        (0.3, 0): sigma(2) / 2,
    }
    found = {
        (psi[0], y): p for psi, y, p in zip(world.psi1, world.label, world.probability, strict=True)
    }
    assert found == pytest.approx(truth, rel=1e-12)


def test_with_rewards_relabels_the_same_pairs() -> None:
    world = small_world()
    rng = np.random.default_rng(5)
    direction = rng.standard_normal(2)
    shifted = world.with_rewards(world.psi1 @ direction, world.psi2 @ direction)
    for k in range(len(world.label)):
        other = np.flatnonzero(
            (world.psi1 == world.psi1[k]).all(1)
            & (world.psi2 == world.psi2[k]).all(1)
            & (world.label != world.label[k])
        )
        mass = world.probability[k] + world.probability[other[0]]
        gap = (world.psi1[k] - world.psi2[k]) @ direction * (1 if world.label[k] == 1 else -1)
        assert shifted.probability[k] == pytest.approx(mass * sigma(gap), rel=1e-12)
    assert shifted.theta_star is None
    back = shifted.with_rewards(
        *(world.beta * psi @ world.theta_star for psi in (world.psi1, world.psi2))
    )
    np.testing.assert_allclose(back.probability, world.probability, rtol=1e-12)


def test_with_rewards_of_an_overwhelming_reward() -> None:
    """A reward gap of 1000 makes one label impossible; that is a distribution still, not an
    error."""
    world = small_world()
    shifted = world.with_rewards(1e3 * world.psi1[:, 0], 1e3 * world.psi2[:, 0])
    assert shifted.probability.sum() == pytest.approx(1)


def test_with_rewards_needs_both_labels() -> None:
    psi1, psi2 = np.array([[0.1], [0.3]]), np.array([[0.5], [0.0]])
    world = from_labels(psi1, psi2, np.array([1, 0]), beta=1.0, bound=1.0)
    with pytest.raises(ValueError, match=r"y = 0.*from_rewards"):
        world.with_rewards(np.ones(2), np.zeros(2))


def test_random_world() -> None:
    world = random_world(3, contexts=2, actions=3, dimension=4, beta=0.5, bound=2.0)
    np.testing.assert_allclose(np.linalg.norm(world.policy_features, axis=-1), 1)
    assert np.linalg.norm(world.theta_star) == pytest.approx(1.0)
    same = random_world(3, contexts=2, actions=3, dimension=4, beta=0.5, bound=2.0)
    other = random_world(4, contexts=2, actions=3, dimension=4, beta=0.5, bound=2.0, signal=0.25)
    np.testing.assert_array_equal(world.probability, same.probability)
    assert np.linalg.norm(other.theta_star) == pytest.approx(0.25)


# -------------------------------------------------------------------------------- continuous worlds
def continuous(features: str, d: int = 3, beta: float = 1.5) -> ContinuousWorld:
    star = np.arange(1.0, d + 1)
    return ContinuousWorld(features, d, 2 * star / np.linalg.norm(star), beta, 5.0)


@pytest.mark.parametrize("features", ["sphere", "gaussian"])
@pytest.mark.parametrize("d", [2, 3, 6])
def test_sample_moments(features: str, d: int) -> None:
    world = continuous(features, d)
    u = world.sample(40_000, seeds_of(1)).ut[0].T.numpy()
    np.testing.assert_allclose(
        u.T @ u / len(u), world.covariance(), atol=0.06 / d
    )  # the sign drops out of u u'
    assert world.bounded == (features == "sphere")
    assert (np.linalg.norm(u, axis=1).max() <= 2) == world.bounded


def test_continuous_samples_depend_on_the_seed_alone() -> None:
    world = continuous("sphere")
    many = world.sample(50, seeds_of(4))
    assert torch.equal(world.sample(50, seeds_of(4)[2:3]).ut[0], many.ut[2])
    assert not torch.equal(many.ut[0], many.ut[1])


@pytest.mark.parametrize("features", ["sphere", "gaussian"])
@pytest.mark.parametrize("d", [2, 3, 4, 9])
def test_line_against_monte_carlo(features: str, d: int) -> None:
    """Moments of the signed projection and its loss, within five standard errors."""
    world = continuous(features, d)
    sampled = (world.sample(200_000, seeds_of(1, root=d)).ut[0].T.numpy() @ world.direction)[
        :, None
    ]
    line = world.line()
    u, p = line.ut[0, 0].numpy(), line.p[0].numpy()
    assert p.sum() == pytest.approx(1) and (p >= 0).all()
    for function in (
        lambda z: z,
        lambda z: z**2,
        lambda z: z**4,
        lambda z: np.logaddexp(0, -2 * z),
        lambda z: np.exp(-z),
    ):
        values = function(sampled[:, 0])
        assert abs(values.mean() - p @ function(u)) < 5 * values.std() / np.sqrt(len(values))


@pytest.mark.parametrize("features", ["sphere", "gaussian"])
@pytest.mark.parametrize("d", [2, 3, 8])
def test_theta_star_is_the_dpo_minimiser_on_the_line(features: str, d: int) -> None:
    world = continuous(features, d)
    line = world.line()
    fit = dpo(line.ut[0].T, line.p[0], beta=world.beta, bound=world.bound)
    np.testing.assert_allclose(world.lift(fit.theta), world.theta_star, atol=1e-9)


def fits(u: object, p: object, world: ContinuousWorld) -> dict[str, Fit]:
    common = {"beta": world.beta, "bound": world.bound}
    return {
        "dpo": dpo(u, p, **common),
        "kl": kldpo(u, p, radius=0.05, **common),
        "w1": wdpo_free(u, p, power=1, radius=0.05, **common),
        "w1-label": wdpo_free(u, p, power=1, radius=0.05, label_cost=0.5, **common),
        "w2": wdpo_free(u, p, power=2, radius=0.1, **common),
    }


@pytest.mark.parametrize("features", ["sphere", "gaussian"])
@pytest.mark.parametrize("method", ["dpo", "kl", "w1", "w1-label", "w2"])
def test_doubling_the_nodes_changes_nothing(features: str, method: str) -> None:
    world = continuous(features)
    coarse, fine = (
        fits(line.ut[0].T, line.p[0], world)[method] for line in (world.line(), world.line(128))
    )
    assert coarse.converged.all() and fine.converged.all()
    kinked = (
        method == "w1-label"
    )  # a quadrature of a kink at a margin m = kappa eta converges like 1/nodes²
    np.testing.assert_allclose(coarse.theta, fine.theta, rtol=5e-3 if kinked else 1e-9)
    np.testing.assert_allclose(coarse.value, fine.value, rtol=1e-4 if kinked else 1e-10)


@pytest.mark.parametrize("features", ["sphere", "gaussian"])
def test_population_estimators_on_the_line_against_large_samples(features: str) -> None:
    """Eight samples of 20 000: the mean estimate lies within five standard errors (and a bias of
    order 1/n) of the line's."""
    world = continuous(features)
    line = world.line()
    exact = fits(line.ut[0].T, line.p[0], world)
    pairs = world.sample(20_000, seeds_of(8, root=11))
    for method, sampled in fits(pairs.ut.mT, None, world).items():
        target = world.lift(exact[method].theta)
        spread = sampled.theta.std(0).numpy()
        error = np.abs(sampled.theta.mean(0).numpy() - target)
        assert (error < 5 * spread / np.sqrt(8) + 2e-3).all(), (method, error, spread)
        assert (spread < 0.1).all()


def test_ties_are_half_wins_of_both() -> None:
    """Bradley-Terry of two items with w wins, l losses and t ties: the odds are those of w + t/2
    against l + t/2."""
    label = np.array([1] * 5 + [0] * 2 + [0.5] * 3)
    psi1, psi2 = np.ones((10, 1)), np.zeros((10, 1))
    world = from_labels(psi1, psi2, label, beta=1.0, bound=9.0)
    found = dpo(world.u, world.probability, **world.problem)
    assert found.theta.exp().item() == pytest.approx(6.5 / 3.5)
    dropped = from_labels(psi1, psi2, label, beta=1.0, bound=9.0, ties="drop")
    assert dpo(dropped.u, dropped.probability, beta=1.0).theta.exp().item() == pytest.approx(2.5)
    merged = world.merged()
    assert merged.label.tolist() == [1, 0]
    np.testing.assert_allclose(merged.probability, [0.65, 0.35])


def test_merged_atoms_are_the_same_world() -> None:
    rng = np.random.default_rng(5)
    psi = rng.integers(-1, 2, (2, 200, 2)) / 2
    world = from_labels(psi[0], psi[1], rng.integers(0, 2, 200), beta=1.0, bound=4.0)
    merged = world.merged()
    atoms = {tuple(row) for row in np.column_stack([*psi, world.label])}
    assert len(merged.label) == len(atoms) < 200
    assert merged.probability.sum() == pytest.approx(1)
    np.testing.assert_allclose(merged.covariance(), world.covariance())
    both = [dpo(each.u, each.probability, **each.problem).theta for each in (world, merged)]
    np.testing.assert_allclose(*both, atol=1e-9)


# ------------------------------------------------------------------------------------------- tables
def test_read_table_of_each_format(tmp_path: Path) -> None:
    table = pd.DataFrame({"score": [0.5, -1.25, 3.0], "count": [1, 2, 3], "text": ["a", "b", "c"]})
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    table.to_json(tmp_path / "t.json", orient="records")
    table.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    np.savez(tmp_path / "t.npz", score=table["score"], count=table["count"])
    for suffix in ("csv", "parquet", "json", "jsonl", "npz"):
        for path in (tmp_path / f"t.{suffix}", str(tmp_path / f"t.{suffix}")):
            columns = read_table(path)
            assert set(columns) == {"score", "count"}
            np.testing.assert_array_equal(columns["score"], [0.5, -1.25, 3.0])
            assert columns["count"].dtype == np.float64
    stacked = feature_columns(columns, ["count", "score"])
    np.testing.assert_array_equal(stacked, [[1, 0.5], [2, -1.25], [3, 3]])


def test_text_among_numbers_is_refused_with_its_row(tmp_path: Path) -> None:
    cells = {"a": ["1.5", "n. a.", "2"], "id": ["x1", "2", "x3"], "b": ["0.5", "", " 7 "]}
    pd.DataFrame(cells).to_csv(tmp_path / "t.csv", index=False)
    pd.DataFrame(cells).to_parquet(tmp_path / "t.parquet")
    np.savez(tmp_path / "t.npz", **{name: np.array(column) for name, column in cells.items()})
    for suffix in ("csv", "parquet", "npz"):
        with pytest.raises(ValueError, match=r"a: a column of numbers.*row 2 has 'n\. a\.'.*excl"):
            read_table(tmp_path / f"t.{suffix}")
        columns = read_table(tmp_path / f"t.{suffix}", exclude=["a"])
        assert set(columns) == {"b"}  # most cells of id are text
        np.testing.assert_array_equal(columns["b"], [0.5, np.nan, 7.0])


def test_read_table_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.csv.*\.parquet"):
        read_table(tmp_path / "absent.csv")
    (tmp_path / "t.xlsx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"xlsx.*Use one of"):
        read_table(tmp_path / "t.xlsx")
    with pytest.raises(ValueError, match=r"length.*score"):
        feature_columns({"score": np.ones(2)}, ["score", "length"])


def test_common_scale() -> None:
    rng = np.random.default_rng(0)
    psi1, psi2 = 100 + 5 * rng.standard_normal((30, 3)), 90 + rng.standard_normal((30, 3))
    a, b = common_scale(psi1, psi2)
    both = np.concatenate([a, b])
    np.testing.assert_allclose(both.mean(0), 0, atol=1e-14)
    np.testing.assert_allclose(both.std(0), both.std(0)[0])
    assert np.linalg.norm(both, axis=1).max() == pytest.approx(1)
    c, d = common_scale(1e3 * psi1 - 7, 1e3 * psi2 - 7)
    np.testing.assert_allclose(np.concatenate([c, d]), both, atol=1e-12)
    with pytest.raises(ValueError, match=r"\[1\] are constant.*Leave"):
        common_scale(np.array([[1.0, 2], [3, 2]]), np.array([[0.0, 2], [1, 2]]))
    table = pd.DataFrame({"price": [1.0, 3.0], "[5]": [2.0, 2.0]})
    with pytest.raises(ValueError, match=r"column\(s\) '\[5\]' are constant"):
        common_scale(table, table)
    with pytest.raises(ValueError, match=r"pairs \[2\].*feature 'time'"):
        common_scale([[1.0, 2.0], [3.0, np.nan]], [[0.0, 1.0], [1.0, 5.0]], names=["price", "time"])


def test_units_lead_back_to_the_raw_features() -> None:
    """Coefficients in raw units are those of a fit to the raw differences, outlier or not."""
    rng = np.random.default_rng(3)
    raw = rng.standard_normal((2, 60, 2)) * [10.0, 0.01] + 5
    raw[0, 0] = [900.0, 5.0]
    label = rng.random(60) < 0.6
    psi1, psi2 = common_scale(*raw)
    centre, unit = common_units(*raw)
    np.testing.assert_allclose((raw[0] - centre) / unit, psi1, atol=1e-12)
    sign = np.where(label, 1.0, -1.0)[:, None]
    scaled, plain = (dpo(sign * (a - b), beta=1.0) for a, b in ((psi1, psi2), raw))
    np.testing.assert_allclose(scaled.theta.numpy() / unit, plain.theta.numpy(), rtol=1e-5)


# ---------------------------------------------------------------------------------------- real data
REWARDS = os.environ.get("PREFDRO_MAP_REWARDS")
SCORES = ["humor", "gpt2-helpful", "gpt2-harmless", "diversity", "coherence", "perplexity"]


@pytest.mark.skipif(
    not REWARDS, reason="set PREFDRO_MAP_REWARDS to the folder of the two reward tables"
)
@pytest.mark.parametrize("mixture", ["convex", "geometric"])
def test_a_world_of_real_rewards(mixture: str) -> None:
    """Two language models' answers to the same prompts, scored by reward models; labels from
    helpful and harmless mixed."""
    paths = [
        Path(str(REWARDS)) / f"{model}-Anthropic-harmless.json"
        for model in ("llama2_chat", "opt1.3b")
    ]
    tables = [read_table(path) for path in paths]
    raw = [feature_columns(table, SCORES) for table in tables]
    assert raw[0].shape == raw[1].shape == (2312, 6)
    first = json.loads(paths[0].read_text())[0]
    np.testing.assert_allclose(raw[0][0], [first[name] for name in SCORES], rtol=1e-12)
    psi1, psi2 = common_scale(*raw)
    rewards = [psi[:, 1:3] for psi in raw]
    if mixture == "convex":
        mixed = [convex_mixture(reward, np.array([0.5, 0.5])) for reward in rewards]
    else:
        mixed = [
            6 * geometric_mixture(1 / (1 + np.exp(-reward)), np.array([0.5, 0.5]))
            for reward in rewards
        ]
    world = from_rewards(psi1, psi2, *mixed, beta=1.0, bound=20.0)
    assert world.probability.sum() == pytest.approx(1) and len(world.probability) == 4624
    common = {"beta": world.beta, "bound": world.bound}
    plain = dpo(world.u, world.probability, **common)
    robust = [
        kldpo(world.u, world.probability, radius=0.05, **common),
        wdpo_free(world.u, world.probability, power=1, radius=0.01, **common),
        wdpo_free(world.u, world.probability, power=1, radius=0.01, label_cost=0.2, **common),
        wdpo_free(world.u, world.probability, power=2, radius=0.02, **common),
    ]
    for fit in (plain, *robust):
        assert fit.converged.all() and (fit.gap <= 1e-10).all(), fit
        assert (fit.theta.norm(dim=-1) <= 20).all()
    for fit in robust:
        assert plain.value < fit.value < np.log(2)
        assert fit.theta.norm() < plain.theta.norm()
    if mixture == "convex":  # the label depends on the two scores alone: they carry the weight
        weight = plain.theta.abs()
        assert weight[1:3].min() > weight[[0, 3, 4, 5]].max()
    part = np.concatenate(
        [np.arange(60), 2312 + np.arange(60)]
    )  # both labels of the first 60 pairs
    distance = world.distance(0.5)[np.ix_(part, part)]
    finite = wdpo_finite(
        world.u[part],
        world.probability[part] * 2312 / 60,
        distance=distance,
        power=1,
        radius=0.01,
        **common,
    )
    assert finite.converged.all()
