"""Rows on AOT itself: rate, bias of minibatches, soft sorting, choice of h and beta, local
minima."""

from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch import Tensor

from experiments.aot.tables import replicate_rows
from experiments.aot.worlds import (
    BETA,
    BOUND,
    SIGNAL,
    Spec,
    build_world,
    judged,
    sphere_pairs,
    tensor,
)
from theory.aot import Cost, minimise_aot, potentials, random_starts
from theory.functionals import aot_unpaired
from theory.losses import least_squares, logistic, squared_hinge
from theory.solvers.gradient_sampling import minimise_with_kinks
from theory.solvers.multistart import Objective, lowest
from theory.transport import first_order_violation

COSTS: dict[str, Cost] = {
    "logistic": logistic,
    "squared hinge": squared_hinge,
    "least squares": least_squares,
}
BATCHES = 200  # batches in one replicate of `minibatch`


@lru_cache(maxsize=32)
def population_best(spec: Spec, cost: str, beta: float) -> Tensor:
    """The minimiser of the population's unpaired AOT with linear rewards, (1, d).

    In a curved world one random start in a thousand may end there. From a few starts another local
    minimum would pass for it, and the excess of samples that find the better one be negative: the
    starts are the lowest of many points.
    """
    world, h = build_world(spec), COSTS[cost]
    psi, laws = tensor(world.psi), world.laws(world.probability)
    points = random_starts(np.random.default_rng(spec.seed), 4096, spec.dimension, BOUND)
    starts = lowest(lambda w: aot_unpaired(w @ psi.T, w @ psi.T, h, beta, *laws), points, 64)
    return minimise_aot(psi, psi, *laws, starts=starts, h=h, beta=beta, bound=BOUND).theta


def rate_rows(parameters: dict[str, Any], rng: np.random.Generator) -> pd.DataFrame:
    """Deviations from the population, at theta* and at the minimiser of the sample (logistic h).

    fixed: of the sample's objective at theta*. minimiser: of the sample's objective at its
    minimiser. value: of its minimum.
    excess, violation: by how much the population's objective and its violation of dominance are
    higher at the sample's minimiser than at the population's.
    bound: 2 L M / sqrt(n), which is for the mean of |fixed|.
    """
    spec, n, replicates = Spec(**parameters["world"]), parameters["n"], parameters["replicates"]
    world = build_world(spec)
    psi = tensor(world.psi)
    best, truth = population_best(spec, "logistic", BETA), world.laws(world.probability)
    laws = world.laws(world.sample(rng, n, replicates))
    # the population's minimiser is among the starts: the theorem is for a minimiser, so for no more
    # than the value there
    starts = torch.cat([best, random_starts(rng, parameters["starts"], spec.dimension, BOUND)])
    fit = minimise_aot(psi, psi, *laws, starts=starts, h=logistic, beta=BETA, bound=BOUND)

    def objective(theta: Tensor, laws: tuple[Tensor, Tensor]) -> Tensor:
        rewards = theta.expand(replicates, -1) @ psi.T
        return aot_unpaired(rewards, rewards, logistic, BETA, *laws)

    star = tensor(world.star)[None]
    violation, least = (
        first_order_violation(theta @ psi.T, theta @ psi.T, *truth) for theta in (fit.theta, best)
    )
    return replicate_rows(
        world=spec.rewards,
        n=n,
        fixed=objective(star, laws) - objective(star, truth),
        minimiser=fit.value - objective(fit.theta, truth),
        value=fit.value - objective(best, truth),
        excess=objective(fit.theta, truth) - objective(best, truth),
        violation=violation - least,
        violation_population=float(least),
        bound=2 * BETA * SIGNAL / np.sqrt(n),
        converged=fit.converged,
    )


def minibatch_rows(parameters: dict[str, Any], rng: np.random.Generator) -> pd.DataFrame:
    """Mean of OT_h over `BATCHES` batches of b pairs, rewards equally spaced on [-2, 2], labels
    Bradley–Terry in them.

    actions: how many rewards. objective: the plain mean. controlled: minus the linear part of OT_h
    in the two laws, whose mean is zero and which has most of the variance.
    population: OT_h of all pairs. dpo: the mean of h(u - v) over all pairs, which a batch of one
    has as its mean.
    """
    count, b, replicates = parameters["actions"], parameters["batch"], parameters["replicates"]
    reward = SIGNAL * np.linspace(
        -1, 1, count
    )  # with many actions the law of theta*.psi on the sphere of R^3
    difference = reward[:, None] - reward
    wins = expit(BETA * difference)
    law = 2 * wins.mean(1) / count, 2 * wins.mean(0) / count
    first, second = rng.integers(count, size=(2, replicates, BATCHES, b))
    won = rng.random(first.shape) < wins[first, second]
    chosen, rejected = np.where(won, first, second), np.where(won, second, first)
    tables = []
    for name, h in COSTS.items():
        value = aot_unpaired(tensor(reward[chosen]), tensor(reward[rejected]), h, BETA).numpy()
        phi, psi = potentials(reward, reward, h, BETA, *law)
        linear = phi[chosen].mean(-1) + psi[rejected].mean(-1) - law[0] @ phi - law[1] @ psi
        point = tensor(reward)
        tables.append(
            replicate_rows(
                actions=count,
                h=name,
                batch=b,
                objective=value.mean(1),
                controlled=(value - linear).mean(1),
                population=float(aot_unpaired(point, point, h, BETA, *map(tensor, law))),
                dpo=float(2 * (wins * h(tensor(difference), BETA).numpy()).mean()),
            )
        )
    return pd.concat(tables, ignore_index=True)


def softness_rows(parameters: dict[str, Any], rng: np.random.Generator) -> pd.DataFrame:
    """Soft objective at theta* and its minimiser, for each softness (0: hard) on the same sample of
    n pairs.

    minimum: of that objective. hard_there: hard objective at its minimiser. distance: of that from
    the hard one's, norm its norm.
    threshold: softness below which nothing changes at theta*, one over the largest gap between
    neighbouring rewards.
    """
    n, d = parameters["n"], parameters["dimension"]
    rows = []
    for replicate in range(parameters["replicates"]):
        a, b = sphere_pairs(rng, n, d, SIGNAL)
        starts = torch.cat(
            [SIGNAL * torch.eye(d, dtype=torch.float64)[:1], random_starts(rng, 3, d, BOUND)]
        )
        objectives = {
            softness: _softly_sorted(a, b, softness) for softness in (0.0, *parameters["softness"])
        }
        hard = minimise_with_kinks(objectives[0.0], starts, rng, bound=BOUND)
        spread = [float((SIGNAL * x[:, 0]).sort().values.diff().max()) for x in (a, b)]
        for softness, objective in objectives.items():
            found = minimise_with_kinks(objective, starts, rng, bound=BOUND)
            there = tensor(found.w)[None]
            rows.append(
                {
                    "n": n,
                    "replicate": replicate,
                    "softness": softness,
                    "objective": float(objective(starts[:1])),
                    "minimum": found.value,
                    "hard_there": float(objectives[0.0](there)),
                    "hard_minimum": hard.value,
                    "distance": float(np.linalg.norm(found.w - hard.w)),
                    "norm": float(np.linalg.norm(found.w)),
                    "threshold": 1 / max(spread),
                    "stationarity": found.gap,
                    "converged": found.converged,
                }
            )
    return pd.DataFrame(rows)


def _softly_sorted(a: Tensor, b: Tensor, softness: float) -> Objective:
    return lambda w: aot_unpaired(w @ a.T, w @ b.T, logistic, BETA, softness=softness or None)


def surrogate_rows(parameters: dict[str, Any], rng: np.random.Generator) -> pd.DataFrame:
    """The minimiser of a sample of n pairs for each h and beta, judged in the population."""
    spec, n, replicates = Spec(**parameters["world"]), parameters["n"], parameters["replicates"]
    world = build_world(spec)
    laws = world.laws(world.sample(rng, n, replicates))
    tables = []
    for name, h in COSTS.items():
        for beta in parameters["betas"]:
            starts = torch.cat(
                [
                    population_best(spec, name, beta),
                    random_starts(rng, parameters["starts"], spec.dimension, BOUND),
                ]
            )
            fit = minimise_aot(
                world.psi, world.psi, *laws, starts=starts, h=h, beta=beta, bound=BOUND
            )
            keys = {"world": spec.rewards, "h": name, "beta": beta, "n": n}
            tables.append(
                replicate_rows(**keys, **judged(world, fit.theta.numpy()), converged=fit.converged)
            )
    return pd.concat(tables, ignore_index=True)


def minima_rows(parameters: dict[str, Any], rng: np.random.Generator) -> pd.DataFrame:
    """Where the starts end: distinct values, spread from best to worst, share of starts at the
    best; signal 0: random labels."""
    n, d, signal, count = (parameters[name] for name in ("n", "dimension", "signal", "starts"))
    samples = [sphere_pairs(rng, n, d, signal) for _ in range(parameters["replicates"])]
    a, b = (torch.stack([sample[side] for sample in samples]) for side in (0, 1))
    fit = minimise_aot(
        a, b, starts=random_starts(rng, count, d, BOUND), h=logistic, beta=BETA, bound=BOUND
    )
    ends = fit.starts.sort(-1).values
    same = 1e-7 * (1 + ends.abs())
    return replicate_rows(
        n=n,
        dimension=d,
        signal=signal,
        starts=count,
        minima=1 + (ends.diff(dim=-1) > same[:, 1:]).sum(-1),
        best=ends[:, 0],
        spread=ends[:, -1] - ends[:, 0],
        share_best=(ends - ends[:, :1] <= same).double().mean(-1),
        converged=fit.converged,
    )
