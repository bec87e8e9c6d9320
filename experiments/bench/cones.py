"""A competitor: DPO and the KL ball as batches of exponential-cone programs for moreau.

moreau (Apache-2.0) solves many cone programs of one sparsity pattern in one call. A pair takes two
cones for its loss, exp(-l) + exp(-m - l) <= 1, and for the KL ball a third one for its weight in
the worst case, lambda exp((l - nu)/lambda) <= r with E r <= lambda. Building the program is left
out of the time. As its accuracy is 1e-8, thetas agree to some 1e-5.
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse

Array = np.ndarray


def make(kind: str, radius: float, u: Array) -> Callable[[], Array]:
    """A solve of all samples u (R, n, d), beta = 1, uniform weights, which returns theta (R, d);
    kind "mean" or "kl".

    Raises:
        ImportError: moreau is not installed.
    """
    moreau = importlib.import_module("moreau")
    R, n, d = u.shape
    program = _Program(kind, n, d)
    A_values = program.values(u)
    m, columns = program.pattern.shape
    settings = moreau.Settings(device="cpu", batch_size=R)
    solver = moreau.CompiledSolver(
        columns,
        m,
        np.zeros(columns + 1, dtype=np.int64),
        np.zeros(0, dtype=np.int64),
        program.pattern.indptr,
        program.pattern.indices,
        cones=moreau.Cones(num_nonneg_cones=program.inequalities, num_exp_cones=program.cones),
        settings=settings,
    )
    costs = np.tile(program.cost(radius), (R, 1))
    right = np.tile(program.right, (R, 1))

    def solve() -> Array:
        solver.setup(np.zeros((R, 0)), A_values)
        found: Any = solver.solve(costs, right)
        return np.asarray(found.x)[:, :d]

    return solve


class _Program:
    """Minimise cost.x with right - A x in nonnegative numbers, then exponential cones: triples
    (a, b, c) with b exp(a/b) <= c. The variables are theta, the losses l, the two exponentials
    of each; for the KL ball also r, lambda and nu."""

    def __init__(self, kind: str, n: int, d: int) -> None:
        self.kind, self.n, self.d = kind, n, d
        i = np.arange(n)
        loss, first, second, mass = (d + k * n + i for k in range(4))
        lam, nu = d + 4 * n, d + 4 * n + 1
        kl = kind == "kl"
        self.inequalities, self.cones = n + kl, (3 if kl else 2) * n
        start = self.inequalities
        a, b = start + 3 * i, start + 3 * n + 3 * i  # of the first and the second exponential
        entries: list[tuple[Any, Any, float]] = [(i, first, 1.0), (i, second, 1.0)]
        entries += [(a, loss, 1.0), (a + 2, first, -1.0)]
        entries += [(b, loss, 1.0), (b + 2, second, -1.0)]
        if kl:
            c = start + 6 * n + 3 * i
            entries += [(n, lam, -1.0), (n, mass, 1.0 / n)]
            entries += [(c, loss, -1.0), (c, nu, 1.0), (c + 1, lam, -1.0), (c + 2, mass, -1.0)]
        rows, columns, self._fixed = (
            np.concatenate([np.broadcast_to(entry[k], n) for entry in entries]) for k in range(3)
        )
        rows = np.concatenate([np.repeat(b, d), rows])
        columns = np.concatenate([np.tile(np.arange(d), n), columns])
        size = (start + 3 * self.cones, d + (4 * n + 2 if kl else 3 * n))
        # lambda stands n times at one place, with the same number
        places, self._slot = np.unique(rows * size[1] + columns, return_inverse=True)
        ends = np.searchsorted(places // size[1], np.arange(size[0] + 1))
        self.pattern = sparse.csr_array((np.ones(len(places)), places % size[1], ends), shape=size)
        self.right = np.zeros(size[0])
        self.right[:n] = 1.0
        self.right[np.concatenate([a + 1, b + 1])] = 1.0

    def values(self, u: Array) -> Array:
        """(R, entries of the pattern) of samples u (R, n, d)."""
        found = np.zeros((len(u), self.pattern.nnz))
        for into, sample in zip(found, u, strict=True):
            into[self._slot] = np.concatenate([sample.ravel(), self._fixed])
        return found

    def cost(self, radius: float) -> Array:
        found = np.zeros(self.pattern.shape[1])
        if self.kind == "kl":
            found[self.d + 4 * self.n :] = radius, 1.0
        else:
            found[self.d : self.d + self.n] = 1.0 / self.n
        return found
