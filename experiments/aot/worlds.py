"""Worlds of the AOT study, all pairs and responses enumerated, and how a policy is judged in one.

Rewards are linear, U = w.psi of chosen and V = w.psi of rejected responses with w = theta -
theta_ref, or log-ratios, w.psi(s, a) - log E_ref exp(w.psi(s, .)).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from theory.policy import Array, kl_to_reference, log_policy
from theory.transport import first_order_violation
from theory.worlds import from_policy

BETA = 1.0  # of every loss, and of the world's labels, where beta is not what is varied
SIGNAL = 2.0  # ||theta* - theta_ref||
BOUND = 6.0  # B in ||theta|| <= B


@dataclass(frozen=True)
class Spec:
    """A finite world of the study, small enough to travel to a worker."""

    # (theta* - theta_ref).psi; or "curved", where its size matters more and features come with
    # -features
    rewards: str = "linear"
    contexts: int = 4
    actions: int = 6
    dimension: int = 3
    reference: float = 0.0  # norm of theta_ref
    seed: int = 1


@dataclass(frozen=True)
class AotWorld:
    """All pairs (s, a+, a-) with their probabilities, and every response (s, a) with its reward.

    features: (S, A, d). reward: (S, A) in which labels are Bradley–Terry. theta_ref, star: (d,),
    star = theta* - theta_ref.
    chosen, rejected: (K,) flat index s A + a of the responses of a pair. probability: (K,).
    """

    features: Array
    reward: Array
    theta_ref: Array
    star: Array
    chosen: Array
    rejected: Array
    probability: Array

    @property
    def psi(self) -> Array:
        """(S A, d) features of the responses."""
        return self.features.reshape(-1, self.features.shape[-1])

    @property
    def reference(self) -> Array:
        """(S, A) probabilities of the reference policy."""
        return np.exp(log_policy(self.theta_ref, self.features))

    @property
    def differences(self) -> Array:
        """(K, d) psi(chosen) - psi(rejected)."""
        return self.psi[self.chosen] - self.psi[self.rejected]

    def sample(self, rng: np.random.Generator, n: int, replicates: int) -> Array:
        """Samples of n pairs as weights count/n, (R, K)."""
        return rng.multinomial(n, self.probability, replicates) / n

    def laws(self, weights: Array) -> tuple[Tensor, Tensor]:
        """The laws of the chosen and of the rejected response for weights (..., K) on the pairs:
        (..., S A) each."""
        responses = np.arange(len(self.psi))
        return tuple(
            tensor(weights @ (index[:, None] == responses))
            for index in (self.chosen, self.rejected)
        )  # type: ignore[return-value]

    def log_ratio(self, w: Tensor) -> Tensor:
        """log pi_theta/pi_ref of every response at theta = theta_ref + w, (..., d) -> (..., S
        A)."""
        scores = (w @ tensor(self.psi).T).unflatten(-1, self.reward.shape)
        return (
            scores - torch.logsumexp(scores + tensor(self.reference).log(), -1, keepdim=True)
        ).flatten(-2)

    def kl(self, w: Array) -> Array:
        """KL(pi_theta || pi_ref) in nats, contexts equally likely."""
        contexts = len(self.features)
        return kl_to_reference(
            self.theta_ref + w, self.theta_ref, self.features, np.full(contexts, 1 / contexts)
        )

    def win_rate(self, w: Array) -> float:
        """Chance that a response of the policy is preferred to one of the reference."""
        policy = np.exp(log_policy(self.theta_ref + w, self.features))
        beats = expit(self.reward[:, :, None] - self.reward[:, None, :])
        return float(np.einsum("sa,sb,sab->s", policy, self.reference, beats).mean())


@lru_cache(maxsize=8)
def build_world(spec: Spec) -> AotWorld:
    """The world of a specification: features uniform on the sphere, responses drawn from the
    reference policy."""
    if spec.rewards not in ("linear", "curved"):
        raise ValueError(f"rewards must be 'linear' or 'curved', got {spec.rewards!r}.")
    rng = np.random.default_rng(spec.seed)
    features = unit(rng.standard_normal((spec.contexts, spec.actions, spec.dimension)))
    if spec.rewards == "curved":
        half = features[:, : spec.actions // 2]
        features = np.concatenate([half, -half], axis=1)
    star = SIGNAL * unit(rng.standard_normal(spec.dimension))
    theta_ref = spec.reference * unit(rng.standard_normal(spec.dimension))
    reward = BETA * features @ star
    if (
        spec.rewards == "curved"
    ):  # chosen responses are further out on both sides: no w makes them dominate
        reward = 0.3 * reward + 0.7 * reward**2
    world = from_policy(features, theta_ref + star, beta=BETA, bound=BOUND, theta_ref=theta_ref)
    s, a1, a2, _ = np.unravel_index(
        np.arange(len(world.label)), (*features.shape[:2], features.shape[1], 2)
    )
    first, second = s * features.shape[1] + a1, s * features.shape[1] + a2
    world = world.with_rewards(reward.ravel()[first], reward.ravel()[second])
    won = world.label == 1
    return AotWorld(
        features,
        reward,
        theta_ref,
        star,
        np.where(won, first, second),
        np.where(won, second, first),
        world.probability,
    )


def sphere_pairs(
    rng: np.random.Generator, n: int, dimension: int, signal: float
) -> tuple[Tensor, Tensor]:
    """Chosen and rejected features (n, d), uniform on the sphere, labels Bradley–Terry in signal
    times the first coordinate."""
    psi = unit(rng.standard_normal((2, n, dimension)))
    first = rng.random(n) < expit(signal * (psi[0] - psi[1])[:, 0])
    return tensor(np.where(first[:, None], psi[0], psi[1])), tensor(
        np.where(first[:, None], psi[1], psi[0])
    )


def judged(world: AotWorld, w: Array, *, linear: bool = True) -> dict[str, Array]:
    """What w (R, d) does in the population, for linear rewards or log-ratios.

    violation: of first-order dominance. relative: the same over the mean distance of the two
    quantile functions, so that it does not grow with w. gap: mean reward of chosen minus rejected.
    kl: to the reference. win_rate: against it. cosine: of w and theta* - theta_ref. boundary:
    ||theta|| = B.
    """
    u = tensor(w) @ tensor(world.psi).T if linear else world.log_ratio(tensor(w))
    p, q = world.laws(world.probability)
    violation, reverse = (
        first_order_violation(u, u, p, q).numpy(),
        first_order_violation(u, u, q, p).numpy(),
    )
    apart = violation + reverse
    norm = np.linalg.norm(w, axis=1)
    return {
        "violation": violation,
        "relative": np.divide(violation, apart, out=np.zeros_like(apart), where=apart > 0),
        "gap": reverse - violation,
        "kl": world.kl(w),
        "win_rate": np.array([world.win_rate(one) for one in w]),
        "cosine": np.divide(w @ world.star, norm * SIGNAL, out=np.zeros_like(norm), where=norm > 0),
        "norm": norm,
        "boundary": np.linalg.norm(world.theta_ref + w, axis=1) > BOUND * (1 - 1e-9),
    }


def tensor(x: Array) -> Tensor:
    return torch.from_numpy(np.asarray(x, dtype=np.float64))


def unit(v: Array) -> Array:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)
