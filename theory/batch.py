"""A batch of weighted samples of preference pairs, and the three contractions every estimator needs."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ArrayLike = Tensor | np.ndarray | float | list

_CHUNK_ELEMENTS = 1 << 16  # doubles in one chunk's (replicates x pairs) array: a few arrays of it fit in the L2 cache


@dataclass(frozen=True)
class PairBatch:
    """R samples of n pairs: signed feature differences u = (2y-1)(psi1-psi2) and their weights.

    ut: (R, d, n), or (1, d, n) when all replicates share their atoms (a finite world). p: (R, n), rows summing to one.
    """

    ut: Tensor
    p: Tensor

    @property
    def replicates(self) -> int:
        return self.p.shape[0]

    @property
    def dimension(self) -> int:
        return self.ut.shape[1]

    def project(self, w: Tensor) -> Tensor:
        """w.u_i for each pair: (R, d) -> (R, n)."""
        if self.ut.shape[0] == 1:
            return w @ self.ut[0]
        return torch.bmm(w[:, None, :], self.ut)[:, 0]

    def pull(self, c: Tensor) -> Tensor:
        """sum_i c_i u_i: (R, n) -> (R, d)."""
        if self.ut.shape[0] == 1:
            return c @ self.ut[0].T
        return torch.bmm(self.ut, c[:, :, None])[:, :, 0]

    def outer(self, c: Tensor) -> Tensor:
        """sum_i c_i u_i u_i': (R, n) -> (R, d, d)."""
        d = self.dimension
        if self.ut.shape[0] == 1 and c.shape[0] > d:  # one matrix product for all replicates
            products = self.ut[0, :, None, :] * self.ut[0]
            return (c @ products.flatten(0, 1).T).unflatten(1, (d, d))
        return torch.matmul(self.ut * c[:, None, :], self.ut.mT)

    def select(self, index: Tensor) -> "PairBatch":
        """The replicates named by a boolean mask or an index."""
        return PairBatch(self.ut if self.ut.shape[0] == 1 else self.ut[index], self.p[index])

    def chunks(self, elements_per_replicate: int | None = None) -> list[slice]:
        """Slices of replicates small enough to stay in cache; what is computed does not depend on them."""
        size = elements_per_replicate or self.p.shape[1]
        step = max(1, _CHUNK_ELEMENTS // size)
        return [slice(start, min(start + step, self.replicates)) for start in range(0, self.replicates, step)]


def pair_batch(u: ArrayLike, weights: ArrayLike | None = None) -> PairBatch:
    """Check and arrange samples: u (n, d) or (R, n, d), weights None (uniform), (n,) or (R, n).

    Raises ValueError for an empty sample, non-finite features, or weights that are negative or do not sum to one.
    """
    features = torch.as_tensor(u, dtype=torch.float64)
    if features.ndim not in (2, 3) or 0 in features.shape:
        raise ValueError(
            f"u must have shape (n, d) or (R, n, d) with n >= 1 and d >= 1, got {tuple(features.shape)}. "
            "Pass signed feature differences (2y-1)(psi1-psi2), one row a pair."
        )
    bad = int((~torch.isfinite(features)).sum())
    if bad:
        raise ValueError(f"u holds {bad} non-finite entries (NaN or inf). Remove those pairs or impute their features first.")
    n = features.shape[-2]
    if weights is None:
        p = torch.full((1, n), 1.0 / n, dtype=torch.float64, device=features.device)
    else:
        p = torch.as_tensor(weights, dtype=torch.float64, device=features.device)
        p = p[None] if p.ndim == 1 else p
        if p.ndim != 2 or p.shape[1] != n:
            raise ValueError(f"weights must have shape ({n},) or (R, {n}) to match u, got {tuple(p.shape)}.")
        total = p.sum(-1)
        if not bool(torch.isfinite(p).all()) or bool((p < 0).any()) or bool(((total - 1).abs() > 1e-9).any()):
            worst = total[(total - 1).abs().argmax()].item()
            raise ValueError(
                f"weights must be non-negative and each row must sum to one; the smallest entry is {p.min().item():g} and the "
                f"sum furthest from one is {worst:.12g}. Counts must be divided by their total first."
            )
    ut = (features if features.ndim == 3 else features[None]).mT.contiguous()
    replicates = max(ut.shape[0], p.shape[0])
    if ut.shape[0] > 1 and p.shape[0] > 1 and ut.shape[0] != p.shape[0]:
        raise ValueError(
            f"u holds {ut.shape[0]} replicates but weights {p.shape[0]}: give one of them once, or both equally often."
        )
    return PairBatch(ut, p.expand(replicates, -1))
