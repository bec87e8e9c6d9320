"""Samples that the benchmarks of the solvers fit."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray
BETA = 1.0


@dataclass(frozen=True)
class Samples:
    """R samples: u (R, n, d) with uniform weights, or shared atoms u (n, d) with weights (R, n)."""

    u: Tensor
    weights: Tensor | None

    @property
    def replicates(self) -> int:
        return self.u.shape[0] if self.weights is None else self.weights.shape[0]

    def to(self, device: str) -> "Samples":
        return Samples(self.u.to(device), None if self.weights is None else self.weights.to(device))

    def first(self, count: int) -> "Samples":
        if self.weights is None:
            return Samples(self.u[:count], None)
        return Samples(self.u, self.weights[:count])

    def repeated(self, times: int) -> "Samples":
        if self.weights is None:
            return Samples(self.u.repeat(times, 1, 1), None)
        return Samples(self.u, self.weights.repeat(times, 1))

    def replicate(self, r: int) -> tuple[Array, Array]:
        """u (n, d) and weights (n,) of one replicate."""
        if self.weights is None:
            n = self.u.shape[1]
            return self.u[r].numpy(), np.full(n, 1.0 / n)
        return self.u.numpy(), self.weights[r].numpy()


def draw_pairs(replicates: int, n: int, d: int, seed: int) -> Tensor:
    """u (replicates, n, d): feature differences uniform in the ball of radius 2, signed by
    Bradley-Terry labels."""
    rng = np.random.default_rng(seed)
    theta = np.resize([1.0, -1.0, 0.5, 0.0, 0.3], d)
    u = np.empty((replicates, n, d))
    for sample in u:  # one at a time: the largest run must not hold temporaries of all replicates
        x = rng.standard_normal((n, d))
        x *= (2 * rng.random((n, 1)) ** (1 / d)) / np.linalg.norm(x, axis=1, keepdims=True)
        sample[:] = np.where(
            rng.random((n, 1)) < 1 / (1 + np.exp(-BETA * x @ theta)[:, None]), x, -x
        )
    return torch.from_numpy(u)


def draw_atoms(replicates: int, n: int, d: int, seed: int) -> tuple[Samples, Array]:
    """Multinomial samples of 1000 pairs on n shared atoms, and the atoms' Euclidean distances (n,
    n)."""
    u = draw_pairs(1, n, d, seed)[0]
    counts = np.random.default_rng(seed + 1).multinomial(1000, np.full(n, 1 / n), size=replicates)
    distance = np.linalg.norm(u.numpy()[:, None] - u.numpy()[None], axis=-1)
    return Samples(u, torch.from_numpy(counts / 1000)), distance
