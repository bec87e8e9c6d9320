"""Robust problems that the claims share: a world, a ball around its population, and what is fitted,
valued and known there."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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
from theory.estimators import Fit, kldpo, wdpo_finite, wdpo_free
from theory.losses import dpo_loss
from theory.policy import Array
from theory.worlds import FiniteWorld, from_policy

LABEL_COST = 1.0
NAMES = {
    "kl": "KL",
    "w1-finite": "W1 on the atoms",
    "w2-finite": "W2 on the atoms",
    "w1-free": "W1 with free features",
    "w1-label": "W1 with free features and labels",
    "w2-free": "W2 with free features",
}


@dataclass(frozen=True)
class Problem:
    """One ball of `theory.collapse.BALLS` in one finite world."""

    ball: str
    world: FiniteWorld

    @property
    def name(self) -> str:
        return NAMES[self.ball]

    @property
    def power(self) -> int:
        """Order of the Wasserstein distance; 0 for KL."""
        return 0 if self.ball == "kl" else int(self.ball[1])

    @cached_property
    def distance(self) -> Array:
        return self.world.distance(LABEL_COST)

    @property
    def common(self) -> dict[str, Any]:
        """The arguments that every estimator shares."""
        return {
            "beta": self.world.beta,
            "bound": self.world.bound,
            "theta_ref": self.world.theta_ref,
        }

    @property
    def ball_arguments(self) -> dict[str, Any]:
        """Those of this ball, besides the radius."""
        if self.ball == "kl":
            return {}
        if self.ball.endswith("finite"):
            return {"power": self.power, "distance": self.distance}
        return {"power": self.power, "label_cost": LABEL_COST if self.ball == "w1-label" else None}

    @cached_property
    def edge(self) -> float:
        """The collapse radius."""
        knobs: dict[str, Any] = {"distance": self.distance} if self.ball.endswith("finite") else {}
        knobs |= {"label_cost": LABEL_COST} if self.ball == "w1-label" else {}
        return collapse_radius(self.ball, self.world.u, self.world.probability, **knobs).item()

    def fit(self, p: Array | Tensor, radius: Array | float) -> Fit:
        """The robust estimator for weights p (R, K) or (K,) of the atoms; one radius, or one for
        each row."""
        estimator = {"kl": kldpo}.get(
            self.ball, wdpo_finite if self.ball.endswith("finite") else wdpo_free
        )
        return estimator(self.world.u, p, radius=radius, **self.ball_arguments, **self.common)

    def target(self, radius: float) -> Array:
        """theta_rho, the minimiser in the population (d,)."""
        return self.fit(self.world.probability, radius).theta[0].numpy()

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
        if self.ball == "kl":
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
        if self.ball == "kl":
            return theorem_2(n, dual_low=float(dual.min()), dual_high=float(dual.max()), **common)
        return theorem_1(n, **common)

    def regularity(self, radius: float) -> float:
        """lambda of Assumption 2."""
        x, p = self.world.x, self.world.probability
        if self.ball == "kl":
            return regularity_kl(x, p, radius)
        if self.ball.endswith("finite"):
            return regularity_finite(x, p, self.distance**self.power, radius**self.power)
        return regularity_free(x, p, radius, self.power)


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
