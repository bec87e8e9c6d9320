"""How far averages of a sample are from their expectations: the inequalities that our bounds use.

Each takes the law of what is averaged, as values with probabilities, a sample size n and a `share`:
it fails with probability e^-share, or twice that where it has two sides. Proofs are in the sources;
docs/theorems/tilt.md proves the lower tail of matrices.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from theory.checks import check_probability
from theory.policy import Array


def bernstein(
    p: Array, values: Array, n: float, share: float, largest: float | None = None
) -> float:
    """|E_n f - E f| except with probability 2 e^-share, for f with these values; Bernstein's
    inequality.

    largest: of |f - E f|, where the values are nodes of a quadrature and may not reach it.
    """
    centred = values - p @ values
    V, b = float(p @ centred**2), float(np.abs(centred).max()) if largest is None else largest
    linear = b * share / (3 * n)
    return linear + math.sqrt(linear**2 + 2 * V * share / n)


def shortfall(p: Array, values: Array, n: float, share: float) -> float:
    """E f - E_n f except with probability e^-share, for f >= 0: the lower tail needs only E f².

    From e^-x <= 1 - x + x²/2 for x >= 0; Maurer (2003), Thm. 2.1.
    """
    return math.sqrt(2 * float(p @ values**2) * share / n)


def pinelis(p: Array, norms: Array, n: float, share: float) -> float:
    """||E_n f|| for centred vectors of these norms, except with probability 2 e^-share; Smale and
    Zhou (2007), Lemma 2."""
    return 2 * float(norms.max()) * share / n + math.sqrt(2 * float(p @ norms**2) * share / n)


def bousquet(spread: float, widest: float, largest: float, n: float, share: float) -> float:
    """||E_n f|| for centred vectors, except with probability e^-share; Bousquet (2002), Thm. 2.3.

    Args:
        spread: E ||f||², which bounds the expectation of the norm.
        widest: the largest variance of f in one direction, at most `spread`.
        largest: the largest ||f||.
    """
    mean = math.sqrt(spread / n)
    tail = math.sqrt(2 * share * (widest + 2 * largest * mean) / n)
    return mean + tail + largest * share / (3 * n)


def vector_mean(
    p: Array, vectors: Array, n: float, share: float, largest: float | None = None
) -> float:
    """`bousquet` for centred vectors (K, d) with probabilities p (K,); largest as for
    `bernstein`."""
    second = np.einsum("k,ki,kj->ij", p, vectors, vectors)
    if largest is None:
        largest = float(np.linalg.norm(vectors, axis=1).max())
    widest = float(np.linalg.eigvalsh(second)[-1])
    return bousquet(float(np.trace(second)), widest, largest, n, share)


def chernoff(matrix: Array, largest: float, n: float, delta: float) -> tuple[float, float]:
    """Least eigenvalue of E H, and the part of it that E_n H may lose with probability delta; Tropp
    (2012), Theorem 1.1."""
    h = float(np.linalg.eigvalsh(matrix)[0])
    if h <= 0:
        return 0.0, 1.0
    return h, math.sqrt(2 * largest * math.log(len(matrix) / delta) / (n * h))


def matrix_shortfall(p: Array, matrices: Array, n: float, share: float) -> float:
    """Largest eigenvalue of E A - E_n A except with probability d e^-share, for positive
    semidefinite A (K, d, d).

    The matrix version of `shortfall`: it needs only the norm of E A². By Lieb's theorem, Tropp
    (2012), Cor. 3.3, and log E e^-sA <= -s E A + s² E A²/2; docs/theorems/tilt.md.
    """
    square = np.einsum("k,kij,kjl->il", p, matrices, matrices)
    return math.sqrt(2 * float(np.linalg.eigvalsh(square)[-1]) * share / n)


def matrix_excess(p: Array, matrices: Array, n: float, share: float) -> float:
    """Largest eigenvalue of E_n A - E A except with probability d e^-share, for positive
    semidefinite A (K, d, d); matrix Bernstein, Tropp (2012), Thm. 1.4."""
    square = np.einsum("k,kij,kjl->il", p, matrices, matrices)
    V = float(np.linalg.eigvalsh(square)[-1])
    linear = float(np.linalg.eigvalsh(matrices)[:, -1].max()) * share / (3 * n)
    return linear + math.sqrt(linear**2 + 2 * V * share / n)


@dataclass(frozen=True)
class Tails:
    """The deviations of any sample of n pairs, each with its share of the failure probability."""

    n: float

    def mean(self, p: Array, values: Array, share: float, largest: float | None = None) -> float:
        return bernstein(p, values, self.n, share, largest)

    def shortfall(self, p: Array, values: Array, share: float) -> float:
        return shortfall(p, values, self.n, share)

    def vector(self, p: Array, vectors: Array, share: float, largest: float | None = None) -> float:
        return vector_mean(p, vectors, self.n, share, largest)

    def matrix_shortfall(self, p: Array, matrices: Array, share: float) -> float:
        return matrix_shortfall(p, matrices, self.n, share)

    def matrix_excess(self, p: Array, matrices: Array, share: float) -> float:
        return matrix_excess(p, matrices, self.n, share)


@dataclass(frozen=True)
class Realised:
    """The deviations of one sample with these shares (K,) of the atoms: what is proved with them
    holds for it without any chance."""

    sample: Array

    def mean(self, p: Array, values: Array, share: float, largest: float | None = None) -> float:
        return abs(float((self.sample - p) @ values))

    def shortfall(self, p: Array, values: Array, share: float) -> float:
        return float((p - self.sample) @ values)

    def vector(self, p: Array, vectors: Array, share: float, largest: float | None = None) -> float:
        return float(np.linalg.norm((self.sample - p) @ vectors))

    def matrix_shortfall(self, p: Array, matrices: Array, share: float) -> float:
        mean = np.einsum("k,kij->ij", p - self.sample, matrices)
        return float(np.linalg.eigvalsh(mean)[-1])

    def matrix_excess(self, p: Array, matrices: Array, share: float) -> float:
        return -float(np.linalg.eigvalsh(np.einsum("k,kij->ij", p - self.sample, matrices))[0])


Deviations = Tails | Realised


def deviations(n: float, sample: Array | None, live: NDArray[np.bool_]) -> Deviations:
    """Of any sample of n pairs, or of one: sample (K,) shares, of which the atoms `live` count.

    Raises:
        ValueError: shares that do not sum to one, or are of atoms without a probability.
    """
    if sample is None:
        return Tails(n)
    shares = check_probability("sample", sample, len(live))
    if (shares[~live] > 0).any():
        raise ValueError(
            f"the sample has the atom {int(np.flatnonzero((shares > 0) & ~live)[0])}, which has"
            " probability 0 in the population: it is no sample of it. Look at the order of the"
            " atoms."
        )
    return Realised(shares[live])
