"""Claims of our own: the estimation error falls as n^-1/2, with explicit constants. Theorems A and B of docs/theorems.md."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from theory.bounds import regularity_finite, regularity_kl, theorem_1, theorem_2
from theory.claims.ledger import Claim, Finding, Measurement, Row, conclude, coverage, inequality, pick
from theory.collapse import collapse_radius
from theory.duals import BallDual, kl_ball_dual, transport_dual
from theory.estimators import Fit, kldpo, wdpo_finite
from theory.objectives import dpo_loss
from theory.policy import Array
from theory.sharp_bounds import SharpBound, Size, deterministic_bound, kl_bound, transport_bound
from theory.worlds import FiniteWorld, from_policy

DELTA = 0.05


@dataclass(frozen=True)
class _Problem:
    """One estimator in one world: its population minimiser, how it is fitted, and the bounds at a sample size."""

    name: str
    world: FiniteWorld
    radius: float
    power: int  # 0: KL ball
    distance: Array

    def fit(self, p: Array | torch.Tensor) -> Fit:
        world = self.world
        common: dict[str, Any] = {"beta": world.beta, "bound": world.bound, "theta_ref": world.theta_ref, "radius": self.radius}
        if self.power == 0:
            return kldpo(world.u, p, **common)
        return wdpo_finite(world.u, p, distance=self.distance, power=self.power, **common)

    def bound(self, theta: Array, n: float) -> SharpBound:
        world = self.world
        atoms = (world.u, world.probability, theta)
        size = Size(n, DELTA, world.beta, world.bound, world.theta_ref)
        if self.power == 0:
            return kl_bound(*atoms, size, radius=self.radius)
        return transport_bound(*atoms, size, radius=self.radius, distance=self.distance, power=self.power)

    def worst_case(self, theta: Array, p: torch.Tensor) -> BallDual:
        """Of each sample, at the fixed theta."""
        losses = dpo_loss(torch.from_numpy(self.world.beta * self.world.u @ (theta - self.world.theta_ref))).expand(p.shape)
        if self.power == 0:
            return kl_ball_dual(losses, p, torch.full((len(p),), self.radius, dtype=torch.float64))
        budget = torch.full((len(p),), self.radius**self.power, dtype=torch.float64)
        return transport_dual(losses, p, torch.from_numpy(self.distance**self.power), budget)

    def paper_bound(self, n: float, duals: Array) -> float:
        """Theorem 1 or 2, the latter with the dual variables met in the samples: as printed it is infinite."""
        world = self.world
        common = {"beta": world.beta, "bound": world.bound, "delta": DELTA}
        if self.power:
            regularity = regularity_finite(world.x, world.probability, self.distance**self.power, self.radius**self.power)
            return theorem_1(n, regularity=regularity, **common)
        regularity = regularity_kl(world.x, world.probability, self.radius)
        return theorem_2(n, regularity=regularity, dual_low=float(duals.min()), dual_high=float(duals.max()), **common)


def _worlds(profile: str, seed: int) -> list[FiniteWorld]:
    """Random finite worlds; the second has theta_ref away from 0."""
    settings = [(3, 1.0, 1.0, 0.0), (2, 0.5, 2.0, 0.3), (4, 2.0, 1.0, 0.0)][: pick(profile, 1, 2, 3)]
    worlds = []
    for index, (d, beta, bound, away) in enumerate(settings):
        rng = np.random.default_rng([seed, index])
        features = rng.standard_normal((6, 2, d))
        features /= np.linalg.norm(features, axis=-1, keepdims=True)
        star, ref = rng.standard_normal((2, d))
        star, ref = star / np.linalg.norm(star) * bound / 2, ref / np.linalg.norm(ref) * bound * away
        worlds.append(from_policy(features, star, beta=beta, bound=bound, theta_ref=ref))
    return worlds


def _problems(profile: str, seed: int, powers: tuple[int, ...]) -> list[_Problem]:
    problems = []
    for index, world in enumerate(_worlds(profile, seed)):
        distance = world.distance(1.0)
        for power in powers:
            ball = f"w{power}-finite" if power else "kl"
            edge = collapse_radius(ball, world.u, world.probability, distance=distance if power else None).item()
            for fraction in pick(profile, (0.5,), (0.1, 0.5), (0.1, 0.5, 0.9)):
                name = f"{'W' + str(power) if power else 'KL'} world {index + 1}, {fraction:g} of collapse"
                problems.append(_Problem(name, world, fraction * edge, power, distance))
    return problems


def _measure(
    profile: str, seed: int, powers: tuple[int, ...], scale: Callable[[float], float], constant: float
) -> tuple[list[Measurement], list[Row]]:
    """Coverage and tightness at each size, and the deterministic inequality on every sample. `scale` multiplies the bound."""
    sizes = pick(profile, (10**7,), (10**6, 10**8), (10**5, 10**6, 10**7, 10**8, 10**9))
    replicates = pick(profile, 100, 200, 1000)
    lines, rows = [], []
    closest, example = np.inf, ""
    for index, problem in enumerate(_problems(profile, seed, powers)):
        world = problem.world
        target = problem.fit(world.probability).theta[0].numpy()
        for n in sizes:
            sample = world.sample(n, np.random.SeedSequence([seed, index, n]).spawn(replicates))
            fit = problem.fit(sample.p)
            errors = np.linalg.norm(fit.theta.numpy() - target, axis=1)
            quantile = float(np.quantile(errors, 1 - DELTA))
            ours = problem.bound(target, n).value * scale(n)
            assert fit.dual is not None
            paper = problem.paper_bound(n, fit.dual.numpy())
            if np.isfinite(ours):
                lines.append(
                    coverage(
                        f"{problem.name}, n = {n:.0e} (the paper's bound: {paper / quantile:.3g} times the quantile)",
                        int((errors > ours).sum()),
                        replicates,
                        DELTA,
                        ratio=ours / quantile,
                        counterexample=f"seed {seed}: an error of {errors.max():.4g} against a bound of {ours:.4g}",
                    )
                )
            for series, value in (("95 % error quantile", quantile), ("our bound", ours), ("paper's bound", paper)):
                if np.isfinite(value):
                    rows.append({"problem": problem.name, "series": f"{series}, {problem.name}", "x": float(n), "y": value})
            size = Size(n, DELTA, world.beta, world.bound, world.theta_ref)
            for error, q in zip(errors, problem.worst_case(target, sample.p).weights.numpy(), strict=True):
                limit = constant * deterministic_bound(world.u, q, target, size).value
                if limit < closest * error:
                    closest = limit / error
                    example = f"{problem.name}, n = {n:.0e}, seed {seed}: error {error:.6g}, the inequality allows {limit:.6g}"
    lines.append(inequality("the deterministic inequality, sample by sample", closest, example, step=True, loose=np.inf))
    return lines, rows


def _finding(profile: str, seed: int, powers: tuple[int, ...], exponent: float, constant: float) -> Finding:
    sizes_from = 1e6
    lines, rows = _measure(profile, seed, powers, lambda n: constant * (n / sizes_from) ** (exponent + 0.5), constant)
    ratios = [line.ratio for line in lines if line.ratio is not None and not line.step]
    if not ratios:
        raise RuntimeError("every bound is infinite at these sizes: nothing was measured. Use larger sizes.")
    return conclude(
        f"bound / 95 % error quantile {min(ratios):.3g} to {max(ratios):.3g}, covered in every case"
        if all(line.verdict in ("holds", "holds, loose") for line in lines)
        else "an error exceeds the bound more often than allowed",
        lines,
        {"error and bounds": rows},
    )


def gradient_route_kl(profile: str, seed: int, *, exponent: float = -0.5, constant: float = 1.0) -> Finding:
    """Theorem A: the bound of `kl_bound`; `exponent` and `constant` change it, for a false variant."""
    return _finding(profile, seed, (0,), exponent, constant)


def gradient_route_wasserstein(profile: str, seed: int, *, exponent: float = -0.5, constant: float = 1.0) -> Finding:
    """Theorem B: the bound of `transport_bound` for W1 and W2; `exponent` and `constant` change it, for a false variant."""
    return _finding(profile, seed, (1, 2), exponent, constant)


_METHOD = (
    "Finite worlds, radii as fractions of the collapse radius, many samples of each size: how often the error exceeds the bound, "
    "and the bound against the 95 % quantile of the error, next to the paper's. The deterministic inequality is checked "
    "on every single sample."
)
_FLIPS = (
    "Errors above the bound in surely more than 5 % of the samples (refuted), or one sample above the deterministic inequality."
)

CLAIMS = (
    Claim(
        "gradient-route-kl",
        "derived; docs/theorems.md, Theorem A",
        "KLDPO: ||theta_n - theta_rho|| <= C n^-1/2 with explicit C",
        "With probability at least 1 - delta the error of KLDPO at a fixed radius is at most the value of kl_bound, which falls "
        "as n^-1/2 and needs only the curvature under the worst case at theta_rho.",
        "Finitely many atoms (or bounded losses and gradients at theta_rho), lambda*(theta_rho) > 0, curvature > 0.",
        _METHOD,
        _FLIPS,
        gradient_route_kl,
    ),
    Claim(
        "gradient-route-wasserstein",
        "derived; docs/theorems.md, Theorem B",
        "WDPO on finitely many atoms: ||theta_n - theta_rho|| <= C n^-1/2 with explicit C",
        "With probability at least 1 - delta the error of WDPO, p = 1 or 2, any metric, is at most the value of transport_bound, "
        "which falls as n^-1/2, also at kinks where the worst case is not unique.",
        "Finitely many atoms, radius > 0 that no plan of zero cost or of largest cost meets exactly, curvature > 0.",
        _METHOD,
        _FLIPS,
        gradient_route_wasserstein,
    ),
)
