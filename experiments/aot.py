"""How does AOT, the alignment by optimal transport of arXiv:2406.05882, behave with the sample, the batch, h and the pairing?

Seven parts, each with a table in which a row is one replicate:

* `rate`: objective and violation of dominance against the number of pairs; slopes in `rates.csv`
* `minibatch`: how far the mean over batches is above the population, against the batch size; slopes in `rates.csv`
* `softness`: soft sorting against hard sorting
* `surrogate`: the choice of h and of beta
* `pairing`: paired and unpaired AOT and DPO, on pairs and on independent samples of unequal sizes
* `minima`: the local minima that different starts end at
* `methods`: AOT against DPO, IPO and KTO, as fitted and at one KL to the reference; quantiles of the rewards in `quantiles`

Rewards are linear, U = w.psi of chosen and V = w.psi of rejected responses with w = theta - theta_ref. In `methods` AOT and KTO
see the log-ratios, w.psi(s, a) - log E_ref exp(w.psi(s, .)), instead; in `aot-linear` AOT does not.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor

from experiments.provenance import code_fingerprint, provenance
from experiments.runner import run_cells
from experiments.store import Cell, open_run, write_json, write_table
from theory.aot import minimise_aot, random_starts
from theory.estimators import dpo
from theory.newton import Ball, minimise
from theory.objectives import aot_paired, aot_unpaired, least_squares, logistic, mean, squared_hinge
from theory.pair_losses import ipo_loss, kto_loss, kto_reference_point
from theory.policy import Array, kl_to_reference, log_policy
from theory.rates import rate
from theory.transport import coupling, first_order_violation, quantile
from theory.worlds import from_policy

Cost = Callable[[Tensor, float], Tensor]
Objective = Callable[[Tensor], Tensor]  # w (S, d) -> (S,)

COSTS: dict[str, Cost] = {"logistic": logistic, "squared hinge": squared_hinge, "least squares": least_squares}
BETA = 1.0  # of every loss, and of the world's labels, where beta is not what is varied
SIGNAL = 2.0  # ||theta* - theta_ref||
BOUND = 6.0  # B in ||theta|| <= B
LEVELS = np.round(np.arange(0.025, 1, 0.025), 3)  # of the quantiles in the tables
BATCHES = 200  # batches in one replicate of `minibatch`
TOLERANCE = 1e-8  # first-order gain up to which a point counts as stationary
MATCHED_KL = 0.3  # nats from the reference at which methods are compared
_KTO_ROUNDS = 100


# --------------------------------------------------------------------------------------------------------------- worlds
@dataclass(frozen=True)
class Spec:
    """A finite world of the study, small enough to travel to a worker."""

    rewards: str = "linear"  # (theta* - theta_ref).psi; or "curved", where its size matters more and features come with -features
    contexts: int = 4
    actions: int = 6
    dimension: int = 3
    reference: float = 0.0  # norm of theta_ref
    seed: int = 1


@dataclass(frozen=True)
class AotWorld:
    """All pairs (s, a+, a-) with their probabilities, and every response (s, a) with its reward.

    features: (S, A, d). reward: (S, A) in which labels are Bradley–Terry. theta_ref, star: (d,), star = theta* - theta_ref.
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
        """The laws of the chosen and of the rejected response for weights (..., K) on the pairs: (..., S A) each."""
        responses = np.arange(len(self.psi))
        return tuple(_tensor(weights @ (index[:, None] == responses)) for index in (self.chosen, self.rejected))  # type: ignore[return-value]

    def log_ratio(self, w: Tensor) -> Tensor:
        """log pi_theta/pi_ref of every response at theta = theta_ref + w, (..., d) -> (..., S A)."""
        scores = (w @ _tensor(self.psi).T).unflatten(-1, self.reward.shape)
        return (scores - torch.logsumexp(scores + _tensor(self.reference).log(), -1, keepdim=True)).flatten(-2)

    def kl(self, w: Array) -> Array:
        """KL(pi_theta || pi_ref) in nats, contexts equally likely."""
        contexts = len(self.features)
        return kl_to_reference(self.theta_ref + w, self.theta_ref, self.features, np.full(contexts, 1 / contexts))

    def win_rate(self, w: Array) -> float:
        """Chance that a response of the policy is preferred to one of the reference."""
        policy = np.exp(log_policy(self.theta_ref + w, self.features))
        beats = expit(self.reward[:, :, None] - self.reward[:, None, :])
        return float(np.einsum("sa,sb,sab->s", policy, self.reference, beats).mean())


@lru_cache(maxsize=8)
def build_world(spec: Spec) -> AotWorld:
    """The world of a specification: features uniform on the sphere, responses drawn from the reference policy."""
    if spec.rewards not in ("linear", "curved"):
        raise ValueError(f"rewards must be 'linear' or 'curved', got {spec.rewards!r}.")
    rng = np.random.default_rng(spec.seed)
    features = _unit(rng.standard_normal((spec.contexts, spec.actions, spec.dimension)))
    if spec.rewards == "curved":
        half = features[:, : spec.actions // 2]
        features = np.concatenate([half, -half], axis=1)
    star = SIGNAL * _unit(rng.standard_normal(spec.dimension))
    theta_ref = spec.reference * _unit(rng.standard_normal(spec.dimension))
    reward = BETA * features @ star
    if spec.rewards == "curved":  # chosen responses are further out on both sides: no w makes them dominate
        reward = 0.3 * reward + 0.7 * reward**2
    world = from_policy(features, theta_ref + star, beta=BETA, bound=BOUND, theta_ref=theta_ref)
    s, a1, a2, _ = np.unravel_index(np.arange(len(world.label)), (*features.shape[:2], features.shape[1], 2))
    first, second = s * features.shape[1] + a1, s * features.shape[1] + a2
    world = world.with_rewards(reward.ravel()[first], reward.ravel()[second])
    won = world.label == 1
    return AotWorld(
        features, reward, theta_ref, star, np.where(won, first, second), np.where(won, second, first), world.probability
    )


def sphere_pairs(rng: np.random.Generator, n: int, dimension: int, signal: float) -> tuple[Tensor, Tensor]:
    """Chosen and rejected features (n, d), uniform on the sphere, labels Bradley–Terry in signal times the first coordinate."""
    psi = _unit(rng.standard_normal((2, n, dimension)))
    first = rng.random(n) < expit(signal * (psi[0] - psi[1])[:, 0])
    return _tensor(np.where(first[:, None], psi[0], psi[1])), _tensor(np.where(first[:, None], psi[1], psi[0]))


# ------------------------------------------------------------------------------------------------------------- minimiser
@dataclass(frozen=True)
class Solution:
    """The best of several starts.

    w: (d,). value: objective there. gap: largest gain to first order within the ball, which is 0 at a stationary point; it bounds
    value - minimum only where the objective is convex. converged: gap <= TOLERANCE. ends: (S,) value that each start ended at.
    """

    w: Array
    value: float
    gap: float
    converged: bool
    ends: Array


@dataclass(frozen=True)
class _Differentiated:
    """The same objective for every start, with its derivatives by automatic differentiation."""

    objective: Objective

    def derivatives(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            w = v.detach().requires_grad_()
            value = self.objective(w)
            (gradient,) = torch.autograd.grad(value.sum(), w, create_graph=True)
            columns = [torch.autograd.grad(gradient[:, j].sum(), w, retain_graph=True)[0] for j in range(w.shape[1])]
        return value.detach(), gradient.detach(), torch.stack(columns, -1)

    def select(self, index: Tensor) -> "_Differentiated":
        return self


def solve(objective: Objective, starts: Tensor, *, theta_ref: Array | None = None, bound: float = BOUND) -> Solution:
    """Minimise an objective of w over ||w + theta_ref|| <= bound by Newton's method from each of the starts (S, d)."""
    centre = torch.zeros(starts.shape[1], dtype=torch.float64) if theta_ref is None else _tensor(theta_ref)
    ball, problem = Ball(centre, bound), _Differentiated(objective)
    w, _, _ = minimise(problem, ball.project(starts), ball, convex=False)
    value, gradient, _ = problem.derivatives(w)
    best = int(value.argmin())
    gap = float(ball.linear_gap(w, gradient)[best].clamp(min=0))
    return Solution(w[best].numpy(), float(value[best]), gap, gap <= TOLERANCE, value.numpy())


# ----------------------------------------------------------------------------------------------------------- (1) the rate
@lru_cache(maxsize=8)
def _best(spec: Spec, cost: str, beta: float) -> Tensor:
    """The minimiser of the population's unpaired AOT with linear rewards, (1, d)."""
    world = build_world(spec)
    starts = random_starts(np.random.default_rng(spec.seed), 16, spec.dimension, BOUND)
    laws = world.laws(world.probability)
    return minimise_aot(world.psi, world.psi, *laws, starts=starts, h=COSTS[cost], beta=beta, bound=BOUND).theta


def rate_rows(parameters: dict[str, Any], rng: np.random.Generator) -> pd.DataFrame:
    """Deviations from the population, at theta* and at the minimiser of the sample (logistic h).

    fixed: of the sample's objective at theta*. minimiser: of the sample's objective at its minimiser. value: of its minimum.
    excess, violation: by how much the population's objective and its violation of dominance are higher at the sample's minimiser
    than at the population's.
    bound: 2 L M / sqrt(n), which is for the mean of |fixed|.
    """
    spec, n, replicates = Spec(**parameters["world"]), parameters["n"], parameters["replicates"]
    world = build_world(spec)
    psi = _tensor(world.psi)
    best, truth = _best(spec, "logistic", BETA), world.laws(world.probability)
    laws = world.laws(world.sample(rng, n, replicates))
    # the population's minimiser is among the starts: the theorem is for a minimiser, so for no more than the value there
    starts = torch.cat([best, random_starts(rng, parameters["starts"], spec.dimension, BOUND)])
    fit = minimise_aot(psi, psi, *laws, starts=starts, h=logistic, beta=BETA, bound=BOUND)

    def objective(theta: Tensor, laws: tuple[Tensor, Tensor]) -> Tensor:
        rewards = theta.expand(replicates, -1) @ psi.T
        return aot_unpaired(rewards, rewards, logistic, BETA, *laws)

    star = _tensor(world.star)[None]
    violation, least = (first_order_violation(theta @ psi.T, theta @ psi.T, *truth) for theta in (fit.theta, best))
    return _replicates(
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


# --------------------------------------------------------------------------------------------------- (2) bias of minibatches
def minibatch_rows(parameters: dict[str, Any], rng: np.random.Generator) -> pd.DataFrame:
    """Mean of OT_h over `BATCHES` batches of b pairs, rewards equally spaced on [-2, 2], labels Bradley–Terry in them.

    actions: how many rewards. objective: the plain mean. controlled: minus the linear part of OT_h in the two laws, whose mean is
    zero and which has most of the variance.
    population: OT_h of all pairs. dpo: the mean of h(u - v) over all pairs, which a batch of one has as its mean.
    """
    count, b, replicates = parameters["actions"], parameters["batch"], parameters["replicates"]
    reward = SIGNAL * np.linspace(-1, 1, count)  # with many actions the law of theta*.psi on the sphere of R^3
    difference = reward[:, None] - reward
    wins = expit(BETA * difference)
    law = 2 * wins.mean(1) / count, 2 * wins.mean(0) / count
    first, second = rng.integers(count, size=(2, replicates, BATCHES, b))
    won = rng.random(first.shape) < wins[first, second]
    chosen, rejected = np.where(won, first, second), np.where(won, second, first)
    tables = []
    for name, h in COSTS.items():
        value = aot_unpaired(_tensor(reward[chosen]), _tensor(reward[rejected]), h, BETA).numpy()
        phi, psi = _potentials(reward, h, BETA, *law)
        linear = phi[chosen].mean(-1) + psi[rejected].mean(-1) - law[0] @ phi - law[1] @ psi
        point = _tensor(reward)
        tables.append(
            _replicates(
                actions=count,
                h=name,
                batch=b,
                objective=value.mean(1),
                controlled=(value - linear).mean(1),
                population=float(aot_unpaired(point, point, h, BETA, *map(_tensor, law))),
                dpo=float(2 * (wins * h(_tensor(difference), BETA).numpy()).mean()),
            )
        )
    return pd.concat(tables, ignore_index=True)


def _potentials(reward: Array, h: Cost, beta: float, p: Array, q: Array) -> tuple[Array, Array]:
    """phi and psi with phi_i + psi_j = h(r_i - r_j) wherever the monotone coupling of p and q has mass: the dual of OT_h."""
    plan = coupling(_tensor(reward), _tensor(reward), _tensor(p), _tensor(q))
    held = plan.mass > 0
    price = h(_tensor(reward[:, None] - reward), beta).numpy()
    phi, psi = np.zeros(len(reward)), np.zeros(len(reward))
    i, j = int(plan.row[held][0]), int(plan.column[held][0])
    psi[j] = price[i, j]
    for row, column in zip(plan.row[held].tolist(), plan.column[held].tolist(), strict=True):
        if row != i:  # the staircase goes down, then to the right
            i = row
            phi[i] = price[i, j] - psi[j]
        if column != j:
            j = column
            psi[j] = price[i, j] - phi[i]
    return phi, psi


# ------------------------------------------------------------------------------------------------------ (3) soft sorting
def softness_rows(parameters: dict[str, Any], rng: np.random.Generator) -> pd.DataFrame:
    """Soft objective at theta* and its minimiser, for each softness (0: hard) on the same sample of n pairs.

    minimum: of that objective. hard_there: hard objective at its minimiser. distance: of that from the hard one's, norm its norm.
    threshold: softness below which nothing changes at theta*, one over the largest gap between neighbouring rewards.
    """
    n, d = parameters["n"], parameters["dimension"]
    rows = []
    for replicate in range(parameters["replicates"]):
        a, b = sphere_pairs(rng, n, d, SIGNAL)
        starts = torch.cat([SIGNAL * torch.eye(d, dtype=torch.float64)[:1], random_starts(rng, 3, d, BOUND)])
        objectives = {softness: _softly_sorted(a, b, softness) for softness in (0.0, *parameters["softness"])}
        hard = solve(objectives[0.0], starts)
        spread = [float((SIGNAL * x[:, 0]).sort().values.diff().max()) for x in (a, b)]
        for softness, objective in objectives.items():
            found = solve(objective, starts)
            there = _tensor(found.w)[None]
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


# ----------------------------------------------------------------------------------------------- (4) choice of h and beta
def surrogate_rows(parameters: dict[str, Any], rng: np.random.Generator) -> pd.DataFrame:
    """The minimiser of a sample of n pairs for each h and beta, judged in the population."""
    spec, n, replicates = Spec(**parameters["world"]), parameters["n"], parameters["replicates"]
    world = build_world(spec)
    laws = world.laws(world.sample(rng, n, replicates))
    tables = []
    for name, h in COSTS.items():
        for beta in parameters["betas"]:
            starts = torch.cat([_best(spec, name, beta), random_starts(rng, parameters["starts"], spec.dimension, BOUND)])
            fit = minimise_aot(world.psi, world.psi, *laws, starts=starts, h=h, beta=beta, bound=BOUND)
            keys = {"world": spec.rewards, "h": name, "beta": beta, "n": n}
            tables.append(_replicates(**keys, **_judged(world, fit.theta.numpy()), converged=fit.converged))
    return pd.concat(tables, ignore_index=True)


def _judged(world: AotWorld, w: Array, *, linear: bool = True) -> dict[str, Array]:
    """What w (R, d) does in the population, for linear rewards or log-ratios.

    violation: of first-order dominance. relative: the same over the mean distance of the two quantile functions, so that it does
    not grow with w. gap: mean reward of chosen minus rejected. kl: to the reference. win_rate: against it. cosine: of w and
    theta* - theta_ref. boundary: ||theta|| = B.
    """
    u = _tensor(w) @ _tensor(world.psi).T if linear else world.log_ratio(_tensor(w))
    p, q = world.laws(world.probability)
    violation, reverse = first_order_violation(u, u, p, q).numpy(), first_order_violation(u, u, q, p).numpy()
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


# ---------------------------------------------------------------------------------------------- (5) paired and unpaired
def pairing_rows(parameters: dict[str, Any], rng: np.random.Generator) -> pd.DataFrame:
    """DPO, paired and unpaired AOT on n pairs; unpaired AOT on as many independent responses, and on half as many rejected ones.

    value: objective at the minimiser. dpo: the DPO loss there on the same pairs (NaN without pairs).
    """
    spec, n = Spec(**parameters["world"]), parameters["n"]
    world = build_world(spec)
    tables = []
    for replicate in range(parameters["replicates"]):
        weights, others, few = (world.sample(rng, size, 1)[0] for size in (n, n, max(n // 2, 1)))
        pairs, starts = _Pairs.of(world, weights), random_starts(rng, parameters["starts"], spec.dimension, BOUND)
        chosen, rejected = world.laws(weights)
        unequal = {"independent": world.laws(others)[1], "independent, half": world.laws(few)[1]}
        found = {("dpo", "pairs"): _dpo(world, pairs), ("aot-paired", "pairs"): _aot_paired(world, pairs, starts)}
        for data, law in ({"pairs": rejected} | unequal).items():
            objective = _linear_aot(world, chosen, law)
            found["aot-unpaired", data] = solve(objective, starts, theta_ref=world.theta_ref)
        for (method, data), fit in found.items():
            loss = float(mean(logistic(_tensor(fit.w) @ pairs.x.T, BETA), pairs.p)) if data == "pairs" else np.nan
            keys = {"world": spec.rewards, "n": n, "method": method, "data": data, "value": fit.value, "dpo": loss}
            row = _replicates(**keys, **_judged(world, fit.w[None]), gap_certified=fit.gap, converged=fit.converged)
            tables.append(row.assign(replicate=replicate))
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class _Pairs:
    """The pairs that occur in a sample: differences x (k, d) and their weights p (k,)."""

    x: Tensor
    p: Tensor

    @classmethod
    def of(cls, world: AotWorld, weights: Array) -> "_Pairs":
        """weights: (K,)."""
        held = weights > 0
        return cls(_tensor(world.differences[held]), _tensor(weights[held]))


def _linear_aot(world: AotWorld, chosen: Tensor, rejected: Tensor) -> Objective:
    psi = _tensor(world.psi)
    return lambda w: aot_unpaired(w @ psi.T, w @ psi.T, logistic, BETA, chosen, rejected)


def _aot_paired(world: AotWorld, pairs: _Pairs, starts: Tensor) -> Solution:
    """U = theta.x against V = theta_ref.x; with theta_ref = 0 the second is a point, and this is DPO."""
    reference = pairs.x @ _tensor(world.theta_ref)
    return solve(
        lambda w: aot_paired(w @ pairs.x.T + reference, reference, logistic, BETA, pairs.p), starts, theta_ref=world.theta_ref
    )


def _dpo(world: AotWorld, pairs: _Pairs) -> Solution:
    fit = dpo(pairs.x, pairs.p, beta=BETA, bound=BOUND, theta_ref=world.theta_ref)
    w = fit.theta[0].numpy() - world.theta_ref
    return Solution(w, float(fit.value[0]), float(fit.gap[0]), bool(fit.converged[0]), fit.value.numpy())


# ------------------------------------------------------------------------------------------------------- (6) local minima
def minima_rows(parameters: dict[str, Any], rng: np.random.Generator) -> pd.DataFrame:
    """Where the starts end: distinct values, spread from best to worst, share of starts at the best; signal 0: random labels."""
    n, d, signal, count = (parameters[name] for name in ("n", "dimension", "signal", "starts"))
    samples = [sphere_pairs(rng, n, d, signal) for _ in range(parameters["replicates"])]
    a, b = (torch.stack([sample[side] for sample in samples]) for side in (0, 1))
    fit = minimise_aot(a, b, starts=random_starts(rng, count, d, BOUND), h=logistic, beta=BETA, bound=BOUND)
    ends = fit.starts.sort(-1).values
    same = 1e-7 * (1 + ends.abs())
    return _replicates(
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


# ------------------------------------------------------------------------------------------ (7) AOT against DPO, IPO, KTO
METHODS = ("dpo", "ipo", "kto", "aot-paired", "aot-unpaired", "aot-linear")


def methods_rows(parameters: dict[str, Any], rng: np.random.Generator) -> pd.DataFrame:
    """Each method on the same pairs, as fitted and with w scaled to `MATCHED_KL`; judged on the population's log-ratios.

    The columns chosen_0.025 and so on are the quantiles of log pi_theta/pi_ref of chosen and rejected responses.
    """
    spec, n = Spec(**parameters["world"]), parameters["n"]
    world = build_world(spec)
    tables = []
    for replicate in range(parameters["replicates"]):
        weights = world.sample(rng, n, 1)[0]
        starts = torch.cat([torch.zeros(1, spec.dimension), random_starts(rng, parameters["starts"], spec.dimension, BOUND)])
        found = fit_methods(world, weights, starts.double())
        for method, fit in found.items():
            for matched in (False, True):
                scale = _scale_to(world, fit.w, MATCHED_KL) if matched else 1.0
                w = scale * fit.w[None]
                keys = {"world": spec.rewards, "n": n, "method": method, "matched": matched, "scale": scale}
                row = _replicates(
                    **keys,
                    value=fit.value,
                    **_judged(world, w, linear=False),
                    **_quantiles(world, w),
                    stationarity=fit.gap,
                    converged=fit.converged,
                )
                tables.append(row.assign(replicate=replicate))
    return pd.concat(tables, ignore_index=True)


def fit_methods(world: AotWorld, weights: Array, starts: Tensor) -> dict[str, Solution]:
    """Every method fitted to a sample, given by the weights (K,) of its pairs."""
    pairs = _Pairs.of(world, weights)
    laws = world.laws(weights)

    def minimiser(objective: Objective) -> Solution:
        return solve(objective, starts, theta_ref=world.theta_ref)

    def transported(w: Tensor) -> Tensor:
        ratio = world.log_ratio(w)
        return aot_unpaired(ratio, ratio, logistic, BETA, *laws)

    return {
        "dpo": _dpo(world, pairs),
        "ipo": minimiser(lambda w: mean(ipo_loss(w @ pairs.x.T, torch.zeros(()), BETA), pairs.p)),
        "kto": _kto(world, laws, starts),
        "aot-paired": _aot_paired(world, pairs, starts),
        "aot-unpaired": minimiser(transported),
        "aot-linear": minimiser(_linear_aot(world, *laws)),
    }


def _kto(world: AotWorld, laws: tuple[Tensor, Tensor], starts: Tensor) -> Solution:
    """KTO, whose reference point has no gradient: alternate between the minimiser and its reference point until both stay."""
    desirable = torch.tensor([True, False])[:, None]
    contexts, actions = world.reward.shape
    share = ((laws[0] + laws[1]) / 2).unflatten(-1, (contexts, actions))
    mismatched = (share.sum(1, keepdim=True) * share.sum(0)).flatten()  # responses to the prompts of other pairs

    def reference_point(w: Array) -> Tensor:
        ratio = world.log_ratio(_tensor(w)) * mismatched * len(mismatched)
        return kto_reference_point(ratio)

    point, found = torch.zeros((), dtype=torch.float64), None
    for _ in range(_KTO_ROUNDS):

        def objective(w: Tensor, point: Tensor = point) -> Tensor:
            loss = kto_loss(world.log_ratio(w)[:, None], desirable, point, beta=BETA)
            return (torch.stack(laws) * loss).sum((-2, -1))

        here = starts if found is None else torch.cat([_tensor(found.w)[None], starts])
        found = solve(objective, here, theta_ref=world.theta_ref)
        moved, point = point, reference_point(found.w)
        if abs(float(point - moved)) <= TOLERANCE:
            return found
    assert found is not None
    return replace(found, converged=False)


def _scale_to(world: AotWorld, w: Array, target: float) -> float:
    """The factor c with KL(pi_ref+cw || pi_ref) = target; the KL grows with c. NaN where no factor reaches it."""
    high = 1.0
    while float(world.kl(high * w)) < target:
        high *= 2
        if high > 1e6:
            return float("nan")
    return float(brentq(lambda c: float(world.kl(c * w)) - target, 0.0, high, xtol=1e-13))


def _quantiles(world: AotWorld, w: Array) -> dict[str, Array]:
    """Quantiles of the log-ratios at w (R, d), one column for each side and level."""
    ratio, sides = world.log_ratio(_tensor(w)), world.laws(world.probability)
    columns: dict[str, Array] = {}
    for side, law in zip(("chosen", "rejected"), sides, strict=True):
        values = quantile(ratio, _tensor(LEVELS), law).numpy()
        columns |= {f"{side}_{level:g}": values[:, k] for k, level in enumerate(LEVELS)}
    return columns


def quantiles_table(methods: pd.DataFrame) -> pd.DataFrame:
    """One row for each fit and level, instead of a column for each level."""
    keys = ["world", "n", "method", "matched", "replicate"]
    sides = [
        methods.melt(keys, [f"{side}_{level:g}" for level in LEVELS], "level", side).assign(
            level=lambda table: table.level.str.split("_").str[1].astype(float)
        )
        for side in ("chosen", "rejected")
    ]
    return sides[0].merge(sides[1], on=[*keys, "level"])


# ---------------------------------------------------------------------------------------------------------------- study
@dataclass(frozen=True)
class Profile:
    """How large the study is: replicates of each part, and what is varied in it."""

    replicates: dict[str, int]
    rate_sizes: tuple[int, ...]
    batches: tuple[int, ...]
    softness: tuple[float, ...]
    betas: tuple[float, ...]
    pairing_sizes: tuple[int, ...]
    minima_sizes: tuple[int, ...]
    minima_dimensions: tuple[int, ...]
    methods_sizes: tuple[int, ...]


PROFILES: dict[str, Profile] = {
    "smoke": Profile(
        replicates=dict(rate=8, minibatch=4, softness=2, surrogate=4, pairing=2, minima=3, methods=2),
        rate_sizes=(100, 1000),
        batches=(1, 4, 16),
        softness=(1.0, 100.0),
        betas=(1.0,),
        pairing_sizes=(50,),
        minima_sizes=(10, 30),
        minima_dimensions=(2,),
        methods_sizes=(100,),
    ),
    "quick": Profile(
        replicates=dict(rate=100, minibatch=20, softness=6, surrogate=20, pairing=8, minima=5, methods=8),
        rate_sizes=(100, 1000, 10_000, 100_000, 1_000_000),
        batches=tuple(2**k for k in range(10)),
        softness=(1.0, 3.0, 10.0, 30.0, 100.0),
        betas=(0.1, 0.3, 1.0, 3.0),
        pairing_sizes=(50, 500),
        minima_sizes=(10, 30, 100),
        minima_dimensions=(2, 5, 10),
        methods_sizes=(100, 1000),
    ),
    "paper": Profile(
        replicates=dict(rate=400, minibatch=100, softness=50, surrogate=200, pairing=200, minima=50, methods=200),
        rate_sizes=tuple(round(10 ** (k / 2)) for k in range(4, 15)),
        batches=tuple(2**k for k in range(12)),
        softness=(0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
        betas=(0.03, 0.1, 0.3, 1.0, 3.0),
        pairing_sizes=(50, 500, 5000),
        minima_sizes=(10, 30, 100, 300, 1000),
        minima_dimensions=(2, 3, 5, 10, 20),
        methods_sizes=(100, 1000, 10_000),
    ),
}


@dataclass
class AotStudy:
    """AOT: rates, bias of minibatches, soft sorting, choice of h, pairing, local minima, comparison with DPO, IPO and KTO."""

    out: Path = Path("results/aot")
    """Folder of the results; a run that was stopped resumes from what it holds."""
    profile: str = "quick"
    """Size of the study: smoke (seconds), quick (a minute on two cores) or paper (an hour or two)."""
    seed: int = 0
    """Seed of all random numbers; the same seed gives the same rows."""
    replicates: int | None = None
    """Replicates of every part, instead of the profile's numbers."""
    backend: str = "loky"
    """Where cells are computed: sequential, loky (processes), dask or ray."""
    workers: int | None = None
    """Number of processes; the number of cores where not given."""
    address: str | None = None
    """Address of a running dask or ray cluster."""


PARTS: dict[str, Callable[[dict[str, Any], np.random.Generator], pd.DataFrame]] = {
    "rate": rate_rows,
    "minibatch": minibatch_rows,
    "softness": softness_rows,
    "surrogate": surrogate_rows,
    "pairing": pairing_rows,
    "minima": minima_rows,
    "methods": methods_rows,
}
BLOCKS = {"softness": 1, "pairing": 4, "minima": 5, "methods": 2}  # replicates in a cell, where they are fitted one by one
_SMALL = [asdict(Spec(rewards)) for rewards in ("linear", "curved")]
_REFERRED = [asdict(Spec(rewards, reference=1.0)) for rewards in ("linear", "curved")]
_LARGE = [asdict(Spec(rewards, 12, 6, 4, 1.0)) for rewards in ("linear", "curved")]


def compute(parameters: dict[str, Any], seed: np.random.SeedSequence) -> pd.DataFrame:
    """The rows of one cell."""
    rows = PARTS[parameters["part"]](parameters, np.random.default_rng(seed))
    return rows.assign(replicate=rows.replicate + parameters["first"])


def plan(config: AotStudy) -> dict[str, list[Cell]]:
    """The cells of each part.

    Raises:
        ValueError: an unknown profile, or fewer than two replicates.
    """
    if config.profile not in PROFILES:
        raise ValueError(f"unknown profile {config.profile!r}; choose one of {', '.join(PROFILES)}.")
    if config.replicates is not None and config.replicates < 2:
        raise ValueError(f"replicates must be at least 2, got {config.replicates}: one sample has no spread.")
    profile = PROFILES[config.profile]
    grids: dict[str, list[dict[str, Any]]] = {
        "rate": [{"world": world, "n": n, "starts": 4} for world in _SMALL for n in profile.rate_sizes],
        "minibatch": [{"actions": count, "batch": b} for count in (8, 1000) for b in profile.batches],
        "softness": [{"n": 100, "dimension": 3, "softness": [*profile.softness]}],
        "surrogate": [{"world": world, "n": 1000, "betas": [*profile.betas], "starts": 4} for world in _SMALL],
        "pairing": [{"world": world, "n": n, "starts": 6} for world in _REFERRED for n in profile.pairing_sizes],
        "minima": [
            {"n": n, "dimension": d, "signal": signal, "starts": 32}
            for signal in (0.0, SIGNAL)
            for d in profile.minima_dimensions
            for n in profile.minima_sizes
        ],
        "methods": [{"world": world, "n": n, "starts": 5} for world in _LARGE for n in profile.methods_sizes],
    }
    return {
        part: [cell for settings in grid for cell in _blocks(part, settings, config.replicates or profile.replicates[part])]
        for part, grid in grids.items()
    }


def _blocks(part: str, settings: dict[str, Any], replicates: int) -> list[Cell]:
    """The cells of one setting: its replicates in blocks, so that the cores share those that are fitted one by one."""
    facts = " ".join(f"{key}={value['rewards'] if key == 'world' else value}" for key, value in settings.items())
    cells = []
    for first in range(0, replicates, BLOCKS.get(part, replicates)):
        count = min(BLOCKS.get(part, replicates), replicates - first)
        parameters = {"part": part, "first": first, "replicates": count, **settings}
        cells.append(Cell(f"{part} {facts} replicates {first}-{first + count - 1}", parameters))
    return cells


def rates_table(rate_table: pd.DataFrame, minibatch: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Slopes of log error on log n, and of log bias on log b from b = 1 and over the upper half, with bootstrap intervals."""
    rows = []

    def add(part: str, what: str, quantity: str, table: pd.DataFrame) -> None:
        """table: one row for each size, one column for each replicate."""
        found = rate(table.index.to_numpy(float), table.to_numpy(), seed=seed)
        sizes = {"from": int(table.index.min()), "to": int(table.index.max())}
        slope = {"slope": found.slope, "ci_low": found.low, "ci_high": found.high}
        rows.append({"part": part, "setting": what, "quantity": quantity, **sizes, **slope})

    for world, group in rate_table.groupby("world", sort=False):
        for quantity in ("fixed", "minimiser", "value", "excess", "violation"):
            add("rate", str(world), quantity, group.pivot(index="n", columns="replicate", values=quantity))
    bias = minibatch.assign(bias=minibatch.controlled - minibatch.population)
    for (count, h), group in bias.groupby(["actions", "h"], sort=False):
        table = group.pivot(index="batch", columns="replicate", values="bias").sort_index()
        add("minibatch", f"{count} rewards", f"{h}, all", table)
        add("minibatch", f"{count} rewards", f"{h}, tail", table.iloc[len(table) // 2 :])
    return pd.DataFrame(rows)


def run(config: AotStudy) -> dict[str, pd.DataFrame]:
    """Run or resume the study and write its tables; returns them by name: those of PARTS, `rates` and `quantiles`."""
    cells = plan(config)
    began = time.perf_counter()
    with open_run(config.out) as out:
        tables, seconds, fingerprint = {}, {}, code_fingerprint(Path(__file__))
        for part, mine in cells.items():
            start = time.perf_counter()
            tables[part] = run_cells(
                mine,
                compute,
                out,
                seed=config.seed,
                fingerprint=fingerprint,
                backend=config.backend,
                workers=config.workers,
                address=config.address,
            )
            seconds[part] = round(time.perf_counter() - start, 1)
        tables["quantiles"] = quantiles_table(tables["methods"])
        tables["methods"] = tables["methods"].drop(columns=[name for name in tables["methods"] if "_0." in name])
        tables["rates"] = rates_table(tables["rate"], tables["minibatch"], config.seed)
        for name, table in tables.items():
            write_table(table, out / (f"{name}.csv" if name == "rates" else f"{name}.parquet"))
        fitted = {name: table for name, table in tables.items() if "converged" in table}
        write_json(
            {
                "experiment": "aot",
                "configuration": {
                    name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()
                },
                "profile": asdict(PROFILES[config.profile]),
                "seed": config.seed,
                "constants": {
                    "beta": BETA,
                    "signal": SIGNAL,
                    "bound": BOUND,
                    "batches": BATCHES,
                    "tolerance": TOLERANCE,
                    "matched_kl": MATCHED_KL,
                },
                "worlds": {"rate, surrogate": _SMALL, "pairing": _REFERRED, "methods": _LARGE},
                "rows": {name: len(table) for name, table in tables.items()},
                "not_converged": {name: int((~table.converged).sum()) for name, table in fitted.items()},
                **provenance(),
                "wall_time_s": round(time.perf_counter() - began, 1),
                "seconds": seconds,
            },
            out / "run.json",
        )
    return tables


# -------------------------------------------------------------------------------------------------------------- helpers
def _replicates(**columns: Any) -> pd.DataFrame:
    """A table with a row for each replicate; numbers stand in every row."""
    arrays = {name: value.numpy() if isinstance(value, Tensor) else value for name, value in columns.items()}
    count = max(len(value) for value in arrays.values() if isinstance(value, np.ndarray) and value.ndim)
    return pd.DataFrame(
        {name: np.broadcast_to(value, count) for name, value in (arrays | {"replicate": np.arange(count)}).items()}
    )


def _tensor(x: Array) -> Tensor:
    return torch.from_numpy(np.asarray(x, dtype=np.float64))


def _unit(v: Array) -> Array:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)
