"""Rows on AOT itself against enumeration and single starts."""

from dataclasses import asdict
from itertools import product

import numpy as np
import pytest
import torch
from scipy.special import expit

from experiments.aot.estimator import (
    minibatch_rows,
    minima_rows,
    population_best,
    rate_rows,
    softness_rows,
)
from experiments.aot.worlds import BOUND, Spec, build_world, sphere_pairs
from theory.aot import minimise_aot, random_starts
from theory.functionals import aot_unpaired
from theory.losses import logistic


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
    rows = minibatch_rows(
        {"actions": 2, "batch": batch, "replicates": 200}, np.random.default_rng(0)
    )
    rows = rows[rows.h == "logistic"]
    for column in ("objective", "controlled"):
        error = rows[column].std() / np.sqrt(len(rows))
        assert abs(rows[column].mean() - wanted) < 4 * error
        assert error < 5e-3
    if batch == 1:
        assert rows.dpo.iloc[0] == pytest.approx(wanted)
    assert rows.population.iloc[0] < wanted


def test_at_one_sample_the_soft_minimum_is_below_the_hard_objective_of_its_minimiser() -> None:
    settings_ = {"n": 20, "dimension": 2, "softness": [1e-3, 100.0], "replicates": 2}
    rows = softness_rows(settings_, np.random.default_rng(0)).set_index(["replicate", "softness"])
    for replicate in range(2):
        mine = rows.loc[replicate]
        assert mine.minimum[1e-3] == pytest.approx(
            mine.minimum[0.0], abs=1e-9
        )  # soft enough to be hard
        assert (mine.hard_there >= mine.hard_minimum - 1e-9).all()
        assert mine.minimum[100.0] < mine.minimum[0.0] - 1e-3


def test_minima_are_the_distinct_local_minima_of_the_starts() -> None:
    parameters = {"n": 12, "dimension": 2, "signal": 2.0, "starts": 16, "replicates": 2}
    rows = minima_rows(parameters, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    samples = [sphere_pairs(rng, 12, 2, 2.0) for _ in range(2)]
    starts = random_starts(rng, 16, 2, BOUND)
    for (a, b), row in zip(samples, rows.itertuples(), strict=True):

        def objective(w: np.ndarray, a: torch.Tensor = a, b: torch.Tensor = b) -> np.ndarray:
            return np.logaddexp(0, np.sort(w @ b.numpy().T) - np.sort(w @ a.numpy().T)).mean(-1)

        ends = set()
        for start in starts:
            fit = minimise_aot(a, b, starts=start[None], h=logistic, beta=1.0, bound=BOUND)
            near = fit.theta.numpy() + 1e-4 * rng.standard_normal((500, 2))
            near *= np.minimum(1, BOUND / np.linalg.norm(near, axis=1, keepdims=True))
            assert (objective(near) >= float(fit.value) - 1e-12).all()
            ends.add(round(float(fit.value), 6))
        assert row.minima == len(ends)
        assert row.best == pytest.approx(min(ends), abs=1e-6)
        assert row.spread == pytest.approx(max(ends) - min(ends), abs=2e-6)


def test_the_population_minimiser_is_not_beaten_by_many_starts() -> None:
    """Random starts find it once in a thousand in the curved world."""
    spec = Spec("curved")
    world = build_world(spec)
    laws = world.laws(world.probability)
    starts = random_starts(np.random.default_rng(9), 1000, spec.dimension, BOUND)
    other = minimise_aot(
        world.psi, world.psi, *laws, starts=starts, h=logistic, beta=1.0, bound=BOUND
    )
    rewards = population_best(spec, "logistic", 1.0) @ torch.from_numpy(world.psi).T
    assert float(aot_unpaired(rewards, rewards, logistic, 1.0, *laws)) <= float(other.value) + 1e-9


def test_the_excess_over_the_population_minimum_is_not_negative() -> None:
    for rewards in ("linear", "curved"):
        parameters = {"world": asdict(Spec(rewards)), "n": 300, "replicates": 20, "starts": 4}
        rows = rate_rows(parameters, np.random.default_rng(0))
        assert (rows.excess >= -1e-12).all()
