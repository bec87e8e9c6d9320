"""DPO, IPO, KTO and AOT fitted to a sample of a world, all with the same starts, constraint and
certificate."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from experiments.aot.worlds import BETA, BOUND, AotWorld, tensor
from theory.aot import random_starts
from theory.estimators import dpo
from theory.functionals import aot_paired, aot_second_order, aot_unpaired, kto_reference_point, mean
from theory.losses import ipo_loss, kto_loss, logistic
from theory.policy import Array
from theory.solvers.gradient_sampling import minimise_with_kinks
from theory.solvers.multistart import (
    TOLERANCE,
    Objective,
    Solution,
    lowest,
    make_ball,
    minimise_from,
)

METHODS = ("dpo", "ipo", "kto", "aot-paired", "aot-unpaired", "aot-linear", "aot-second-order")
_KTO_ROUNDS = 100


@dataclass(frozen=True)
class Pairs:
    """The pairs that occur in a sample: differences x (k, d) and their weights p (k,)."""

    x: Tensor
    p: Tensor

    @classmethod
    def of(cls, world: AotWorld, weights: Array) -> "Pairs":
        """weights: (K,)."""
        held = weights > 0
        return cls(tensor(world.differences[held]), tensor(weights[held]))


def fit_aot(world: AotWorld, chosen: Tensor, rejected: Tensor, starts: Tensor) -> Solution:
    """Unpaired AOT with linear rewards, from the laws of chosen and rejected responses (S A,)."""
    psi = tensor(world.psi)
    return _minimise(
        world,
        lambda w: aot_unpaired(w @ psi.T, w @ psi.T, logistic, BETA, chosen, rejected),
        starts,
    )


def fit_aot_paired(world: AotWorld, pairs: Pairs, starts: Tensor) -> Solution:
    """U = theta.x against V = theta_ref.x; with theta_ref = 0 the second is a point, and this is
    DPO."""
    reference = pairs.x @ tensor(world.theta_ref)
    return _minimise(
        world,
        lambda w: aot_paired(w @ pairs.x.T + reference, reference, logistic, BETA, pairs.p),
        starts,
    )


def fit_dpo(world: AotWorld, pairs: Pairs) -> Solution:
    fit = dpo(pairs.x, pairs.p, beta=BETA, bound=BOUND, theta_ref=world.theta_ref)
    w = fit.theta.numpy() - world.theta_ref
    return Solution(
        w, float(fit.value), float(fit.gap), bool(fit.converged), fit.value[None].numpy()
    )


def fit_second_order(
    world: AotWorld, laws: tuple[Tensor, Tensor], start: Array, rng: np.random.Generator
) -> Solution:
    """AOT for second-order dominance on log-ratios, with minima at kinks; from the lowest of start
    (d,) and random points."""

    def objective(w: Tensor) -> Tensor:
        ratio = world.log_ratio(w)
        return aot_second_order(ratio, ratio, logistic, BETA, *laws)

    ball = make_ball(tensor(start), BOUND, world.theta_ref)
    around = ball.project(
        random_starts(rng, 500, len(start), 1.3 * BOUND)
    )  # many on the sphere, where most minima are
    points = torch.cat([tensor(start)[None], around])
    return minimise_with_kinks(
        objective, lowest(objective, points, 1), rng, bound=BOUND, theta_ref=world.theta_ref
    )


def fit_methods(
    world: AotWorld, weights: Array, starts: Tensor, rng: np.random.Generator
) -> dict[str, Solution]:
    """Every method fitted to a sample, given by the weights (K,) of its pairs; rng: for the
    gradients that are sampled."""
    pairs = Pairs.of(world, weights)
    laws = world.laws(weights)

    def transported(w: Tensor) -> Tensor:
        ratio = world.log_ratio(w)
        return aot_unpaired(ratio, ratio, logistic, BETA, *laws)

    unpaired = _minimise(world, transported, starts)
    return {
        "dpo": fit_dpo(world, pairs),
        "ipo": _minimise(
            world, lambda w: mean(ipo_loss(w @ pairs.x.T, torch.zeros(()), BETA), pairs.p), starts
        ),
        "kto": fit_kto(world, laws, starts),
        "aot-paired": fit_aot_paired(world, pairs, starts),
        "aot-unpaired": unpaired,
        "aot-linear": fit_aot(world, *laws, starts),
        "aot-second-order": fit_second_order(world, laws, unpaired.w, rng),
    }


def fit_kto(world: AotWorld, laws: tuple[Tensor, Tensor], starts: Tensor) -> Solution:
    """KTO, whose reference point has no gradient: alternate between the minimiser and its reference
    point until both stay."""
    desirable = torch.tensor([True, False])[:, None]
    contexts, actions = world.reward.shape
    share = ((laws[0] + laws[1]) / 2).unflatten(-1, (contexts, actions))
    mismatched = (
        share.sum(1, keepdim=True) * share.sum(0)
    ).flatten()  # responses to the prompts of other pairs

    def reference_point(w: Array) -> Tensor:
        ratio = world.log_ratio(tensor(w)) * mismatched * len(mismatched)
        return kto_reference_point(ratio)

    point, found = torch.zeros((), dtype=torch.float64), None
    for _ in range(_KTO_ROUNDS):

        def objective(w: Tensor, point: Tensor = point) -> Tensor:
            loss = kto_loss(world.log_ratio(w)[:, None], desirable, point, beta=BETA)
            return (torch.stack(laws) * loss).sum((-2, -1))

        here = starts if found is None else torch.cat([tensor(found.w)[None], starts])
        found = _minimise(world, objective, here)
        moved, point = point, reference_point(found.w)
        if abs(float(point - moved)) <= TOLERANCE:
            return found
    assert found is not None
    return replace(found, converged=False)


def _minimise(world: AotWorld, objective: Objective, starts: Tensor) -> Solution:
    return minimise_from(objective, starts, bound=BOUND, theta_ref=world.theta_ref)
