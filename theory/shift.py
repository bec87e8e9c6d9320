"""Preference shift: train on labels of one reward, be judged by another. Section 7.1,
arXiv:2502.01930.

A `Shift` is a world to train in and a grid of rewards to be judged by. Everything is an exact sum
over the finite world. The question that matters is whether a robust policy is more than one that
stayed near the reference: `shrunk` and `stopped` give the DPO policies with the same KL to the
reference.

Derived: in the log-linear world DPO with beta' in the place of beta returns theta_ref +
(beta/beta') (theta_DPO - theta_ref), as the loss sees beta w alone. `shrunk` is therefore DPO with
another beta (while ||theta|| <= B does not bind).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import t as student

from theory.batch import PairBatch
from theory.checks import check_probability
from theory.policy import Array, convex_mixture, geometric_mixture, log_policy
from theory.solvers.newton import Domain
from theory.solvers.smooth import MeanLoss
from theory.worlds import FiniteWorld, from_policy, from_rewards, unit_vectors

KINDS = ("convex", "geometric", "annotators", "sure annotators", "contexts", "flips")
FLIP_RATE = 0.2  # share of the labels turned round in the kind `flips`
# of rewards that a sigmoid has mapped to (0, 1): their differences reach what the linear ones do
GEOMETRIC_SCALE = 6.0
SURE = 8 / 3  # how much larger the rewards of sure annotators are
MINORITY = 3  # every third context belongs to the minority of the kind `contexts`


@dataclass(frozen=True, eq=False)
class Shift:
    """A world to train in, and for each of G values of alpha a reward and a distribution of
    contexts to be judged by.

    world: the training population, with its policy features (S, A, d). alpha: (G,) weight of the
    first reward.
    rewards: (G, S, A). contexts: (G, S) probabilities.
    """

    world: FiniteWorld
    alpha: Array
    rewards: Array
    contexts: Array

    def __post_init__(self) -> None:
        if self.world.policy_features is None:
            raise ValueError(
                "a shift needs a world with policy_features (S, A, d): build it with from_policy or"
                " scored_pairs."
            )
        S, A, _ = self.world.policy_features.shape
        G = len(self.alpha)
        if self.rewards.shape != (G, S, A) or self.contexts.shape != (G, S):
            raise ValueError(
                f"{G} values of alpha over {S} contexts and {A} actions need rewards {(G, S, A)}"
                f" and contexts {(G, S)}, got {self.rewards.shape} and {self.contexts.shape}."
            )
        if not np.isfinite(self.rewards).all():
            bad = sorted({int(g) + 1 for g in np.nonzero(~np.isfinite(self.rewards))[0]})
            raise ValueError(
                f"the rewards at the values of alpha {bad} (the first is 1) hold NaN or infinite"
                " entries."
            )
        for g, context in enumerate(self.contexts):
            check_probability(f"contexts at value {g + 1} of alpha", context, S)
        flat = np.flatnonzero(np.ptp(self.rewards, axis=2).max(1) == 0)
        if flat.size:
            raise ValueError(
                f"the reward at alpha = {self.alpha[flat[0]]:g} does not depend on the action: no"
                " policy has a regret there. Leave that alpha out."
            )


@dataclass(frozen=True, eq=False)
class Outcome:
    """What R policies are worth at each of G values of alpha.

    reward: (R, G) expected reward. regret: (R, G), (best - reward)/(best - reward of the reference
    policy), best being the reward of the best action in every context: 0 for that policy, 1 for the
    reference, above 1 for a policy that is worse than the reference. win_rate: (R, G) probability
    that its response has a higher reward than one of the reference, ties counted half. kl: (R,) E_s
    KL(pi_theta || pi_ref) in nats, over the contexts of training.
    """

    reward: Array
    regret: Array
    win_rate: Array
    kl: Array


def evaluate(shift: Shift, theta: Array) -> Outcome:
    """The policies theta (R, d) under every reward of the shift."""
    pi, reference = _policy(shift.world, theta), _policy(shift.world, shift.world.theta_ref)
    r, mu = shift.rewards, shift.contexts[:, :, None]
    above = (r[:, :, :, None] > r[:, :, None, :]) + 0.5 * (r[:, :, :, None] == r[:, :, None, :])
    wins = (
        above @ reference[:, :, None]
    )  # (G, S, A, 1): the chance that an action beats one of the reference
    best = (shift.contexts * r.max(2)).sum(1)
    reward, start = _expect(pi, mu * r), _expect(reference, mu * r)
    return Outcome(
        reward,
        (best - reward) / (best - start),
        _expect(pi, mu * wins[..., 0]),
        _kl(shift.world, theta),
    )


def spread(outcome: Outcome) -> Array:
    """How far from flat: the largest minus the smallest regret over alpha (R,); 0 for the reference
    policy."""
    return np.ptp(outcome.regret, axis=1)


def gain_spread(shift: Shift, outcome: Outcome) -> Array:
    """The same for the gain over the reference, largest minus smallest reward(pi) - reward(pi_ref)
    over alpha (R,)."""
    start = evaluate(shift, shift.world.theta_ref[None]).reward
    return np.ptp(outcome.reward - start, axis=1)


def gain_spread_bound(shift: Shift, kl: Array) -> Array:
    """Upper bound of `gain_spread` from the KL to the reference alone (R,): near the reference
    every curve is flat.

    With f = mu_alpha r_alpha - mu_alpha' r_alpha' two gains differ by sum_s sum_a (pi - pi_ref) f
    <= sum_s TV_s range_a f(s, a), as pi - pi_ref sums to zero. Pinsker, TV_s <= sqrt(KL_s/2), and
    Cauchy–Schwarz over the contexts mu of training give sqrt(KL/2) (sum_s (range_a f)²/mu_s)^(1/2);
    the bound takes the largest over pairs of alpha.
    """
    mu = shift.world.context_probability
    assert mu is not None
    weighted = shift.contexts[:, :, None] * shift.rewards
    ranges = np.ptp(weighted[:, None] - weighted[None, :], axis=3)  # (G, G, S)
    return np.sqrt(kl / 2) * np.sqrt((ranges**2 / mu).sum(2).max())


# ------------------------------------------------------------------------------------------- shifts
def random_shift(
    kind: str,
    seed: int | list[int],
    *,
    train: float,
    alpha: Array,
    contexts: int = 6,
    actions: int = 3,
    dimension: int = 4,
    beta: float = 1.0,
    bound: float = 30.0,
    signal: float = 3.0,
) -> Shift:
    """A world with random features on the unit sphere, two random linear rewards r1, r2, and
    theta_ref = 0.

    `train` is alpha_o, the weight of the first reward in training; `alpha` (G,) are those of the
    test. Section 7.1, arXiv:2502.01930v4: r*(alpha) = alpha r1 + (1-alpha) r2.

    * convex: labels are Bradley–Terry in alpha r1 + (1-alpha) r2, which is also the reward of the
      test.
    * geometric: the same with c sigma(r1)^alpha sigma(r2)^(1-alpha), which is not linear in the
      features.
    * annotators: a share alpha of the annotators labels by r1, the others by r2; the reward is the
      annotators' mean.
    * sure annotators: the same with rewards 8/3 times as large, so that an annotator's labels are
      hardly random.
    * contexts: in some contexts everybody goes by r1, in the others by r2; alpha is the probability
      of the former.
    * flips: convex, and one training label in five is turned round.

    Args:
        signal: norm of the rewards' parameters, r_k = v_k.psi with ||v_k|| = signal.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of shift {kind!r}; choose one of {', '.join(KINDS)}.")
    rng = np.random.default_rng(seed)
    features = unit_vectors(rng.standard_normal((contexts, actions, dimension)))
    size = signal * SURE if kind == "sure annotators" else signal
    linear = size * features @ unit_vectors(rng.standard_normal((2, dimension))).T  # (S, A, 2)
    minority = np.arange(contexts) % MINORITY == MINORITY - 1

    def reward(a: float) -> Array:
        weights = np.array([a, 1 - a])
        if kind == "geometric":
            return GEOMETRIC_SCALE * geometric_mixture(expit(linear), weights)
        if kind == "contexts":
            return np.where(minority[:, None], linear[:, :, 1], linear[:, :, 0])
        return convex_mixture(linear, weights)

    def context(a: float) -> Array:
        if kind == "contexts":
            return np.where(minority, (1 - a) / minority.sum(), a / (~minority).sum())
        return np.full(contexts, 1 / contexts)

    if kind.endswith("annotators"):
        chance = convex_mixture(
            expit(linear[:, :, None] - linear[:, None]), np.array([train, 1 - train])
        )
    else:
        chance = expit(reward(train)[:, :, None] - reward(train)[:, None])
    if kind == "flips":
        chance = chance + FLIP_RATE * (1 - 2 * chance)
    plain = from_policy(
        features, np.zeros(dimension), beta=beta, bound=bound, context_probability=context(train)
    )
    odds = np.repeat(logit(chance).ravel(), 2)  # each (s, a1, a2) stands with y = 1 and y = 0
    world = plain.with_rewards(odds, np.zeros_like(odds))
    return Shift(
        world, alpha, np.stack([reward(a) for a in alpha]), np.stack([context(a) for a in alpha])
    )


def scored_pairs(
    psi1: Array,
    psi2: Array,
    rewards1: Array,
    rewards2: Array,
    *,
    train: float,
    alpha: Array,
    beta: float,
    bound: float,
) -> Shift:
    """Two responses to each of N prompts, with features (N, d) and two rewards each (N, 2): the
    policy chooses between the two.

    Labels are Bradley–Terry in train r1 + (1-train) r2; the reference takes either response with
    probability 1/2.
    """
    both = np.stack([rewards1, rewards2], 1)  # (N, 2 responses, 2 rewards)
    mixed = convex_mixture(both, np.array([train, 1 - train]))
    mu = np.full(len(psi1), 1 / len(psi1))
    world = from_rewards(psi1, psi2, mixed[:, 0], mixed[:, 1], beta=beta, bound=bound)
    world = replace(world, policy_features=np.stack([psi1, psi2], 1), context_probability=mu)
    rewards = np.stack([convex_mixture(both, np.array([a, 1 - a])) for a in alpha])
    return Shift(world, alpha, rewards, np.tile(mu, (len(alpha), 1)))


def candidate_laws(shift: Shift, p: Array) -> Array:
    """Weights of the atoms, (G, K), if the pairs of a sample p (K,) had come at each alpha: its
    contexts weighed as alpha weighs them, and both labels with Bradley and Terry's chances in the
    reward of alpha. For worlds from a policy, whose atoms are all (s, a1, a2, y)."""
    world = shift.world
    assert world.policy_features is not None and world.context_probability is not None
    S, A, _ = world.policy_features.shape
    if len(p) != 2 * S * A * A:
        raise ValueError(
            f"candidate laws need a world of all {2 * S * A * A} atoms (s, a1, a2, y) of"
            f" from_policy, got {len(p)} weights. Given pairs have no such atoms."
        )
    pairs = p.reshape(S, A, A, 2).sum(3)
    r = shift.rewards
    chance = expit(r[:, :, :, None] - r[:, :, None, :])
    mass = pairs * (shift.contexts / world.context_probability)[:, :, None, None]
    laws = np.stack([mass * chance, mass * (1 - chance)], axis=-1).reshape(len(r), -1)
    return laws / laws.sum(1, keepdims=True)


# --------------------------------------------------------------------------------------- matched KL
def shrunk(world: FiniteWorld, theta: Array, kl: Array) -> Array:
    """The point of the ray from theta_ref through theta (R, d) whose policy has KL `kl` (R,) to the
    reference.

    KL grows along the ray: its derivative at theta_ref + s w is s E_s Var(w.psi). NaN where the ray
    does not reach that far.
    """
    w = theta - world.theta_ref

    def position(s: Array) -> Array:
        return world.theta_ref + s[:, None] * w

    upper = np.ones(len(theta))
    for _ in range(40):
        reached = _kl(world, position(upper)) >= kl
        if reached.all():
            break
        upper = np.where(reached, upper, 2 * upper)
    found = position(_matched(world, position, np.zeros_like(upper), upper, kl))
    return np.where(reached[:, None], found, np.nan)


@dataclass(frozen=True, eq=False)
class Descent:
    """Paths of gradient descent, points (T, R, d), and the KL of each point to the reference (T,
    R)."""

    points: Array
    kl: Array


def descend(pairs: PairBatch, world: FiniteWorld, minimiser: Array, steps: int = 300) -> Descent:
    """Gradient descent on the DPO loss of each of R samples from theta_ref, ending with a last step
    to the `minimiser` (R, d).

    The step size is 1/L, L = beta² lambda_max(E uu')/4.
    """
    loss = MeanLoss(pairs, world.beta)
    ball = Domain(torch.from_numpy(np.asarray(world.theta_ref, dtype=float)), world.bound)
    size = 4 / (world.beta**2 * torch.linalg.eigvalsh(pairs.outer(pairs.p))[:, -1:])
    w = torch.zeros(pairs.replicates, pairs.dimension, dtype=torch.float64)
    path = [w]
    for _ in range(steps):
        w = ball.project(w - size * loss.derivatives(w)[1])
        path.append(w)
    points = np.concatenate([torch.stack(path).numpy() + world.theta_ref, minimiser[None]])
    return Descent(points, _kl(world, points))


def stopped(world: FiniteWorld, path: Descent, sample: NDArray[np.intp], kl: Array) -> Array:
    """Where the path of each `sample` (R',), an index, first has KL `kl` (R',): (R', d), NaN where
    it never has."""
    points, along = path.points[:, sample], path.kl[:, sample]
    beyond = along >= kl
    last = np.where(beyond.any(0), beyond.argmax(0), len(points) - 1)
    rows = np.arange(len(kl))

    def position(t: Array) -> Array:
        k = np.clip(np.ceil(t).astype(int), 1, len(points) - 1)
        return points[k - 1, rows] + (t - k + 1)[:, None] * (points[k, rows] - points[k - 1, rows])

    found = position(_matched(world, position, np.maximum(last - 1.0, 0.0), last.astype(float), kl))
    return np.where(beyond.any(axis=0, keepdims=True).T, found, np.nan)


def _matched(
    world: FiniteWorld, position: Callable[[Array], Array], lower: Array, upper: Array, kl: Array
) -> Array:
    """t in [lower, upper] with KL(position(t)) = kl, by the Illinois method on the root of the KL,
    which is nearly linear."""
    low, high = (np.sqrt(_kl(world, position(t))) - np.sqrt(kl) for t in (lower, upper))
    t = np.where(low >= 0, lower, upper)
    before = np.full(
        len(kl), 2
    )  # on which side of the root the last step fell, True or False; neither at first
    for _ in range(100):
        width = high - low
        t = np.where(
            (low < 0) & (high > 0),
            upper - high * (upper - lower) / np.where(width > 0, width, 1),
            t,
        )
        now = _kl(world, position(t))
        if (np.abs(now - kl) <= 1e-14 + 1e-11 * kl).all():
            break
        value = np.sqrt(now) - np.sqrt(kl)
        left = value < 0
        halve = 0.5 ** (left == before)  # the end that stays, when it stays twice
        low, high, before = (
            np.where(left, value, low * halve),
            np.where(left, high * halve, value),
            left,
        )
        lower, upper = np.where(left, t, lower), np.where(left, upper, t)
    return t


# --------------------------------------------------------------------------------------- statistics
def mean_interval(values: Array, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of independent values with its t interval: (mean, low, high); an infinite interval for
    fewer than two values."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()) if len(values) else np.nan, -np.inf, np.inf
    half = student.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def ratio_interval(top: Array, bottom: Array, level: float = 0.95) -> tuple[float, float, float]:
    """Ratio of the means of paired values with the interval of its linearisation, by the t law:
    (ratio, low, high)."""
    top, bottom = np.asarray(top, dtype=float), np.asarray(bottom, dtype=float)
    ratio = float(top.mean() / bottom.mean())
    _, low, high = mean_interval((top - ratio * bottom) / abs(bottom.mean()), level)
    return ratio, ratio + low, ratio + high


def _policy(world: FiniteWorld, theta: Array) -> Array:
    assert world.policy_features is not None
    return np.exp(log_policy(theta, world.policy_features))


def _kl(world: FiniteWorld, theta: Array) -> Array:
    kl = world.kl_to_reference(theta)
    assert kl is not None
    return np.maximum(kl, 0.0)  # rounding may leave it a little below zero


def _expect(pi: Array, weights: Array) -> Array:
    """sum_{s,a} pi(a|s) weights(g, s, a): (..., S, A) and (G, S, A) -> (..., G)."""
    return np.tensordot(pi, weights, axes=([-2, -1], [1, 2]))
