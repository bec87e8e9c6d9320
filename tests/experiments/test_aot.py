"""The AOT study: its worlds, minimisers and tables against enumeration, duality, closed forms and other optimisers."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logsumexp

from experiments import aot as study
from experiments.aot import AotStudy, Spec, build_world, plan, rates_table, run, solve
from theory.aot import minimise_aot, random_starts
from theory.objectives import least_squares, logistic, squared_hinge

SMALL = Spec("curved", contexts=2, actions=4, dimension=2, reference=1.0)
SPECS = (Spec(), SMALL, Spec(contexts=3, actions=3, dimension=4, reference=0.5))


# ---------------------------------------------------------------------------------------------------------------- worlds
@pytest.mark.parametrize("spec", SPECS)
def test_pairs_have_the_probability_of_reference_draws_and_bradley_terry_labels(spec: Spec) -> None:
    world = build_world(spec)
    contexts, actions, _ = world.features.shape
    scores = world.features @ world.theta_ref
    reference = np.exp(scores - logsumexp(scores, axis=1, keepdims=True))
    wanted = np.zeros((contexts * actions,) * 2)  # [chosen, rejected]
    for s, a, b in product(range(contexts), range(actions), range(actions)):
        first, second = s * actions + a, s * actions + b
        drawn, wins = reference[s, a] * reference[s, b] / contexts, expit(world.reward[s, a] - world.reward[s, b])
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
    np.testing.assert_allclose(world.log_ratio(torch.from_numpy(w)), np.log(new / old).ravel(), atol=1e-12)
    assert float(world.kl(w)) == pytest.approx((new * np.log(new / old)).sum(1).mean())
    wins = 0.0
    for s, a, b in product(range(2), range(4), range(4)):
        wins += new[s, a] * old[s, b] * expit(world.reward[s, a] - world.reward[s, b]) / 2
    assert world.win_rate(w) == pytest.approx(wins)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 2))
def test_chosen_dominates_rejected_in_the_true_reward(seed: int, reference: float) -> None:
    """Derived: given the prompt, chance of chosen over chance of rejected grows with the reward, which is more than dominance."""
    world = build_world(Spec(contexts=3, actions=4, reference=reference, seed=seed))
    p, q = (law.numpy() for law in world.laws(world.probability))
    reward = world.reward.ravel()
    above = reward[:, None] > reward  # P(reward > x) at every atom x
    assert (p @ above >= q @ above - 1e-12).all()
    judged = study._judged(world, world.star[None])
    assert judged["violation"][0] == pytest.approx(0, abs=1e-12)


def test_no_direction_puts_chosen_first_in_the_curved_world() -> None:
    world = build_world(Spec("curved"))
    directions = np.random.default_rng(0).standard_normal((200, 3))
    best = study._judged(world, study._best(Spec("curved"), "logistic", 1.0).numpy())
    assert best["violation"][0] > 0.01
    assert study._judged(world, directions)["violation"].mean() > 0.05


# ------------------------------------------------------------------------------------------------------------ minimisers
def test_solve_meets_the_closed_form_inside_and_on_the_ball() -> None:
    rng = np.random.default_rng(0)
    root, centre = rng.standard_normal((3, 3)), np.array([0.5, -0.2, 0.1])
    matrix = torch.from_numpy(root @ root.T + np.eye(3))

    def quadratic(target: np.ndarray) -> study.Objective:
        return lambda w: ((w - torch.from_numpy(target)) @ matrix * (w - torch.from_numpy(target))).sum(-1)

    starts = random_starts(rng, 3, 3, 2.0)
    inside = solve(quadratic(centre), starts, bound=2.0)
    np.testing.assert_allclose(inside.w, centre, atol=1e-9)
    assert inside.converged
    outside = solve(quadratic(10 * centre), starts, bound=2.0)
    slope = 2 * matrix.numpy() @ (outside.w - 10 * centre)
    assert np.linalg.norm(outside.w) == pytest.approx(2)
    assert -slope @ outside.w == pytest.approx(2 * np.linalg.norm(slope))  # the gradient points into the ball
    assert outside.converged


@pytest.fixture(scope="module")
def fitted() -> tuple[study.AotWorld, np.ndarray, torch.Tensor, dict[str, study.Solution]]:
    spec = Spec("curved", contexts=3, actions=4, dimension=2, reference=0.8)
    world, rng = build_world(spec), np.random.default_rng(5)
    weights = world.sample(rng, 300, 1)[0]
    starts = random_starts(rng, 8, 2, study.BOUND)
    return world, weights, starts, study.fit_methods(world, weights, starts)


def test_every_method_is_fitted(fitted: tuple) -> None:
    assert tuple(fitted[3]) == study.METHODS
    assert all(fit.converged for fit in fitted[3].values())
    assert all(np.linalg.norm(fitted[0].theta_ref + fit.w) <= study.BOUND * (1 + 1e-9) for fit in fitted[3].values())


def test_ipo_is_least_squares(fitted: tuple) -> None:
    world, weights, _, fits = fitted
    x = world.differences * np.sqrt(weights)[:, None]
    wanted, *_ = np.linalg.lstsq(x, 0.5 / study.BETA * np.sqrt(weights), rcond=None)
    np.testing.assert_allclose(fits["ipo"].w, wanted, atol=1e-8)


def _grid(world: study.AotWorld) -> np.ndarray:
    turn, reach = np.meshgrid(np.linspace(0, 2 * np.pi, 121), np.linspace(0.02, 1, 50) * study.BOUND)
    theta = np.stack([reach * np.cos(turn), reach * np.sin(turn)], -1).reshape(-1, 2)
    return theta - world.theta_ref


def _by_hand(world: study.AotWorld, weights: np.ndarray, w: np.ndarray, method: str) -> float:
    """The objectives once more in numpy, from lists of pairs."""
    scores = world.features @ w
    base = world.features @ world.theta_ref
    ratio = (scores - logsumexp(scores + base, axis=1, keepdims=True) + logsumexp(base, axis=1, keepdims=True)).ravel()
    counts = np.round(weights * 300).astype(int)
    chosen, rejected = np.repeat(world.chosen, counts), np.repeat(world.rejected, counts)
    if method == "kto":  # the reference point is 0 where the log-ratio of mismatched responses is negative on average
        return float((expit(-ratio[chosen]) + expit(ratio[rejected])).mean())
    if method == "aot-unpaired":
        return float(np.logaddexp(0, np.sort(ratio[rejected]) - np.sort(ratio[chosen])).mean())
    if method == "aot-linear":
        return float(np.logaddexp(0, np.sort((world.psi @ w)[rejected]) - np.sort((world.psi @ w)[chosen])).mean())
    x = world.psi[chosen] - world.psi[rejected]
    return float(np.logaddexp(0, np.sort(x @ world.theta_ref) - np.sort(x @ (w + world.theta_ref))).mean())


@pytest.mark.parametrize("method", ["kto", "aot-unpaired", "aot-linear", "aot-paired"])
def test_no_point_of_a_grid_is_better(fitted: tuple, method: str) -> None:
    world, weights, _, fits = fitted
    found = fits[method]
    assert found.value == pytest.approx(_by_hand(world, weights, found.w, method), abs=1e-10)
    assert found.value <= min(_by_hand(world, weights, w, method) for w in _grid(world)) + 1e-9


def test_kto_on_reference_responses_compares_with_zero(fitted: tuple) -> None:
    """The mean log-ratio of a mismatched response is below 0 here, so that KTO's reference point is 0 at its minimiser."""
    world, weights, _, fits = fitted
    counts = np.round(weights * 300).astype(int)
    responses = np.concatenate([np.repeat(world.chosen, counts), np.repeat(world.rejected, counts)])
    prompts, actions = responses // 4, responses % 4
    ratio = world.log_ratio(torch.from_numpy(fits["kto"].w)).numpy().reshape(3, 4)
    assert ratio[prompts[:, None], actions].mean() < 0


def test_paired_aot_with_a_uniform_reference_is_dpo() -> None:
    world = build_world(Spec(contexts=2, actions=4, dimension=2))
    pairs = study._Pairs.of(world, world.sample(np.random.default_rng(0), 200, 1)[0])
    starts = random_starts(np.random.default_rng(1), 3, 2, study.BOUND)
    np.testing.assert_allclose(study._aot_paired(world, pairs, starts).w, study._dpo(world, pairs).w, atol=1e-8)


def test_newton_from_starts_ends_where_the_alternation_does() -> None:
    world = build_world(Spec("curved", contexts=2, actions=4, dimension=2))
    laws = world.laws(world.sample(np.random.default_rng(3), 100, 1)[0])
    starts = random_starts(np.random.default_rng(1), 40, 2, study.BOUND)
    other = minimise_aot(world.psi, world.psi, *laws, starts=starts, h=logistic, beta=study.BETA, bound=study.BOUND)
    assert solve(study._linear_aot(world, *laws), starts).value == pytest.approx(float(other.value), abs=1e-9)


@given(st.floats(0.01, 0.5), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_scaling_meets_the_kl(target: float, seed: int) -> None:
    world = build_world(SMALL)
    w = np.random.default_rng(seed).standard_normal(2)
    assert float(world.kl(study._scale_to(world, w, target) * w)) == pytest.approx(target, rel=1e-9)


def test_a_kl_that_no_scale_reaches_is_nan() -> None:
    assert np.isnan(study._scale_to(build_world(SMALL), np.zeros(2), 0.3))


# ----------------------------------------------------------------------------------------------------------- minibatches
@pytest.mark.parametrize("h", [logistic, squared_hinge, least_squares])
@pytest.mark.parametrize("count", [2, 7])
def test_potentials_solve_the_dual(h: study.Cost, count: int) -> None:
    rng = np.random.default_rng(count)
    reward, p, q = np.sort(rng.normal(size=count)), rng.dirichlet(np.ones(count)), rng.dirichlet(np.ones(count))
    phi, psi = study._potentials(reward, h, 1.0, p, q)
    price = h(torch.from_numpy(reward[:, None] - reward), 1.0).numpy()
    assert (phi[:, None] + psi <= price + 1e-12).all()  # feasible, so that its value is no more than OT_h
    value = study.aot_unpaired(torch.from_numpy(reward), torch.from_numpy(reward), h, 1.0, *map(torch.from_numpy, (p, q)))
    assert p @ phi + q @ psi == pytest.approx(float(value), abs=1e-12)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_mean_over_batches_is_that_of_all_batches(batch: int) -> None:
    """Two rewards, -2 and 2: all batches of that size are enumerated with their chances."""
    reward = np.array([-2.0, 2.0])
    pairs = {(c, r): 0.0 for c, r in product(range(2), repeat=2)}
    for i, j in product(range(2), repeat=2):
        wins = expit(reward[i] - reward[j])
        pairs[i, j] += wins / 4
        pairs[j, i] += (1 - wins) / 4
    wanted = 0.0
    for chosen in product(pairs, repeat=batch):
        u, v = (np.sort(reward[[pair[side] for pair in chosen]]) for side in (0, 1))
        wanted += np.prod([pairs[pair] for pair in chosen]) * np.logaddexp(0, v - u).mean()
    rows = study.minibatch_rows({"actions": 2, "batch": batch, "replicates": 200}, np.random.default_rng(0))
    rows = rows[rows.h == "logistic"]
    for column in ("objective", "controlled"):
        error = rows[column].std() / np.sqrt(len(rows))
        assert abs(rows[column].mean() - wanted) < 4 * error
        assert error < 5e-3
    if batch == 1:
        assert rows.dpo.iloc[0] == pytest.approx(wanted)
    assert rows.population.iloc[0] < wanted


# ----------------------------------------------------------------------------------------------------------------- parts
def test_at_one_sample_the_soft_minimum_is_below_the_hard_objective_of_its_minimiser() -> None:
    settings_ = {"n": 20, "dimension": 2, "softness": [1e-3, 100.0], "replicates": 2}
    rows = study.softness_rows(settings_, np.random.default_rng(0)).set_index(["replicate", "softness"])
    for replicate in range(2):
        mine = rows.loc[replicate]
        assert mine.minimum[1e-3] == pytest.approx(mine.minimum[0.0], abs=1e-9)  # soft enough to be hard
        assert (mine.hard_there >= mine.hard_minimum - 1e-9).all()
        assert mine.minimum[100.0] < mine.minimum[0.0] - 1e-3


def test_minima_are_the_distinct_local_minima_of_the_starts() -> None:
    parameters = {"n": 12, "dimension": 2, "signal": 2.0, "starts": 16, "replicates": 2}
    rows = study.minima_rows(parameters, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    samples = [study.sphere_pairs(rng, 12, 2, 2.0) for _ in range(2)]
    starts = random_starts(rng, 16, 2, study.BOUND)
    for (a, b), row in zip(samples, rows.itertuples(), strict=True):

        def objective(w: np.ndarray, a: torch.Tensor = a, b: torch.Tensor = b) -> np.ndarray:
            return np.logaddexp(0, np.sort(w @ b.numpy().T) - np.sort(w @ a.numpy().T)).mean(-1)

        ends = set()
        for start in starts:
            fit = minimise_aot(a, b, starts=start[None], h=logistic, beta=1.0, bound=study.BOUND)
            near = fit.theta.numpy() + 1e-4 * rng.standard_normal((500, 2))
            near *= np.minimum(1, study.BOUND / np.linalg.norm(near, axis=1, keepdims=True))
            assert (objective(near) >= float(fit.value) - 1e-12).all()
            ends.add(round(float(fit.value), 6))
        assert row.minima == len(ends)
        assert row.best == pytest.approx(min(ends), abs=1e-6)
        assert row.spread == pytest.approx(max(ends) - min(ends), abs=2e-6)


def test_rates_recover_powers() -> None:
    rng = np.random.default_rng(0)
    n, replicate = np.repeat([10, 100, 1000], 40), np.tile(np.arange(40), 3)
    noise = np.exp(0.1 * rng.standard_normal(len(n)))
    columns = {
        name: n**power * noise for name, power in (("fixed", -0.5), ("minimiser", -0.5), ("value", -0.4), ("excess", -1.0))
    }
    errors = pd.DataFrame({"world": "w", "n": n, "replicate": replicate, "violation": 0.0, **columns})
    bias = pd.DataFrame({"actions": 8, "h": "logistic", "batch": n, "replicate": replicate, "population": 1.0})
    table = rates_table(errors, bias.assign(controlled=1 + n**-1.0 * noise), seed=0).set_index("quantity")
    wanted = {"fixed": -0.5, "value": -0.4, "excess": -1.0, "logistic, all": -1.0, "logistic, tail": -1.0}
    for quantity, slope in wanted.items():
        assert table.slope[quantity] == pytest.approx(slope, abs=0.03)
    assert np.isnan(table.slope["violation"])


# ----------------------------------------------------------------------------------------------------------------- study
def test_a_run_writes_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "BATCHES", 5)
    config = AotStudy(tmp_path, profile="smoke", replicates=2, backend="sequential")
    tables = run(config)
    assert set(tables) == {*study.PARTS, "rates", "quantiles"}
    for name, table in tables.items():
        path = tmp_path / f"{name}.{'csv' if name == 'rates' else 'parquet'}"
        stored = pd.read_csv(path) if name == "rates" else pd.read_parquet(path)
        assert len(stored) == len(table) > 0
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["experiment"] == "aot"
    assert report["rows"]["methods"] == len(tables["methods"]) == 2 * 2 * 2 * len(study.METHODS)
    assert report["not_converged"]["methods"] == 0
    assert report["versions"]["torch"] == torch.__version__

    paired = tables["pairing"].query("data == 'pairs'")
    assert (paired.value <= paired.dpo + 1e-12).all()
    matched = tables["methods"].query("matched")
    np.testing.assert_allclose(matched.kl, study.MATCHED_KL, rtol=1e-9)
    quantiles = tables["quantiles"]
    assert len(quantiles) == len(tables["methods"]) * len(study.LEVELS)
    linear = quantiles[(quantiles.world == "linear") & (quantiles.method == "dpo")].sort_values("level")
    assert (linear.groupby(["matched", "replicate"]).chosen.diff().dropna() >= 0).all()

    again = run(config)  # from the stored cells
    for name, table in tables.items():
        pd.testing.assert_frame_equal(again[name], table, check_exact=True)


def test_blocks_cover_every_replicate_once() -> None:
    for cells in plan(AotStudy(profile="quick", replicates=7)).values():
        by_setting: dict[str, list[int]] = {}
        for cell in cells:
            where = json.dumps({k: v for k, v in cell.parameters.items() if k not in ("first", "replicates")}, sort_keys=True)
            first = cell.parameters["first"]
            by_setting.setdefault(where, []).extend(range(first, first + cell.parameters["replicates"]))
        assert all(replicates == list(range(7)) for replicates in by_setting.values())


def test_rows_depend_on_the_seed_only() -> None:
    for part in ("rate", "minima"):
        cell = plan(AotStudy(profile="smoke"))[part][0]
        one, again, other = (study.compute(cell.parameters, np.random.SeedSequence(seed)) for seed in (0, 0, 1))
        pd.testing.assert_frame_equal(one, again, check_exact=True)
        column = "fixed" if part == "rate" else "best"
        assert (one[column] != other[column]).all()


@pytest.mark.parametrize(
    ("change", "words"), [({"profile": "huge"}, "unknown profile 'huge'"), ({"replicates": 1}, "at least 2")]
)
def test_unusable_settings_are_named(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan(AotStudy(**change))
    with pytest.raises(ValueError, match="'linear' or 'curved'"):
        build_world(Spec("flat"))
