"""Robust problems that the claims share: a world, a ball around its population, and what is fitted,
valued and known there."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from theory.bounds.papers import (
    regularity_finite,
    regularity_free,
    regularity_kl,
    theorem_1,
    theorem_2,
)
from theory.collapse import collapse_radius
from theory.duals import BallDual, kl_ball_dual, transport_dual
from theory.fitting import fit
from theory.losses import dpo_loss
from theory.policy import Array
from theory.results import Fit
from theory.sets import SETS, AmbiguitySet
from theory.worlds import FiniteWorld, from_policy

LABEL_COST = 1.0
NAMES = {name: set.facts.title for name, set in SETS.items()}


@dataclass(frozen=True)
class RobustProblem:
    """One ambiguity set, a name of `theory.SETS`, in one finite world."""

    ball: str
    world: FiniteWorld

    @property
    def name(self) -> str:
        return NAMES[self.ball]

    @property
    def power(self) -> int:
        """Order of the Wasserstein distance; 0 for others."""
        return getattr(self.set, "power", 0)

    @cached_property
    def distance(self) -> Array:
        return self.world.distance(LABEL_COST)

    @cached_property
    def set(self) -> AmbiguitySet:
        """The set, in the metric of the world, without a size."""
        return SETS[self.ball].in_metric(self.distance, LABEL_COST)

    @cached_property
    def edge(self) -> float:
        """The collapse radius."""
        return collapse_radius(self.world.u, self.set, self.world.probability).item()

    def fit(self, p: Array | Tensor, radius: Array | float) -> Fit:
        """The robust estimator for weights p (R, K) or (K,) of the atoms; one radius, or one for
        each row."""
        return fit(self.world.u, self.set.sized(radius), p, **self.world.problem)

    def target(self, radius: float) -> Array:
        """theta_rho, the minimiser in the population (d,)."""
        return self.fit(self.world.probability, radius).theta.numpy()

    def errors(
        self, n: int, radius: float, around: Array, replicates: int, seed: Sequence[int]
    ) -> tuple[Array, Array | None]:
        """||theta_n - around|| and the dual variables of `replicates` samples of n pairs (R,)."""
        fit = self.fit(
            self.world.sample(n, np.random.SeedSequence(list(seed)).spawn(replicates)).p, radius
        )
        dual = None if fit.dual is None else fit.dual.numpy()
        return np.linalg.norm(fit.theta.numpy() - around, axis=1), dual

    def worst_case(self, theta: Array, p: Tensor, radius: float) -> BallDual:
        """At theta (R, d) or (d,) for weights p (R, K) of the atoms; KL ball and balls on the atoms
        only."""
        world = self.world
        losses = dpo_loss(
            torch.from_numpy(world.beta * (theta - world.theta_ref) @ world.u.T)
        ).expand(len(p), -1)
        size = torch.full((len(p),), radius ** max(self.power, 1), dtype=torch.float64)
        if not self.power:
            return kl_ball_dual(losses, p, size)
        return transport_dual(losses, p, torch.from_numpy(self.distance**self.power), size)

    def values(self, theta: Array, radius: float) -> Array:
        """L(theta) in the population for theta (R, d); KL ball and balls on the atoms only."""
        p = torch.from_numpy(self.world.probability).expand(len(theta), -1)
        return self.worst_case(theta, p, radius).value.numpy()

    def paper_bound(self, n: float, regularity: float, dual: Array, delta: float) -> float:
        """Theorem 2 for the KL ball, with the range of the dual variables (R,) met in samples;
        Theorem 1 for the others."""
        common = {
            "beta": self.world.beta,
            "bound": self.world.bound,
            "regularity": regularity,
            "delta": delta,
        }
        if not self.power:
            return theorem_2(n, dual_low=float(dual.min()), dual_high=float(dual.max()), **common)
        return theorem_1(n, **common)

    def regularity(self, radius: float) -> float:
        """lambda of Assumption 2."""
        x, p = self.world.x, self.world.probability
        if not self.power:
            return regularity_kl(x, p, radius)
        if self.set.facts.atoms:
            return regularity_finite(x, p, self.distance**self.power, radius**self.power)
        return regularity_free(x, p, radius, self.power)


def one_pair(
    probability: float = 0.6, *, beta: float = 1.0, bound: float = 0.25, away: float = 0.0
) -> FiniteWorld:
    """One pair of antipodal features, whose first response wins with `probability`; theta_ref is at
    -away B. The constants of the papers are met here, or nearly so: all curvature is in one
    direction, and with away = 1 margins reach 4 beta B."""
    one = np.ones((2, 1))
    chance, ref = (
        np.array([probability, 1 - probability]),
        np.array([-away * bound * (1 - 1e-9)]),
    )  # inside
    star = ref + np.log(probability / (1 - probability)) / (2 * beta)
    return FiniteWorld(one, -one, np.array([1, 0]), chance, beta, bound, ref, star)


SETTINGS = ((3, 1.0, 1.0, 0.0), (2, 0.5, 2.0, 0.3), (4, 2.0, 1.0, 0.0), (2, 3.0, 1.0, 0.0))


def worlds(seed: int, count: int, *, contexts: int = 6, signal: float = 0.5) -> list[FiniteWorld]:
    """Random worlds of two responses a context that differ in d, beta and B; the second of four has
    theta_ref away from 0."""
    made = []
    for index in range(count):
        d, beta, bound, away = SETTINGS[index % len(SETTINGS)]
        rng = np.random.default_rng([seed, index])
        features = rng.standard_normal((contexts, 2, d))
        features /= np.linalg.norm(features, axis=-1, keepdims=True)
        star, ref = rng.standard_normal((2, d))
        star, ref = (
            star / np.linalg.norm(star) * bound * signal,
            ref / np.linalg.norm(ref) * bound * away,
        )
        made.append(from_policy(features, star, beta=beta, bound=bound, theta_ref=ref))
    return made
