"""A batch of weighted samples of preference pairs, and the three contractions every estimator
needs."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

SMALLEST, LARGEST = (
    1e-50,
    1e50,
)  # magnitudes whose squares, and the products of two squares, neither vanish nor overflow
# how far probabilities may be from a sum of one, as in single precision, and from where on they are
# divided by it
SUMS, EXACT = 1e-6, 1e-9
# beta B max|u| beyond which a margin at the boundary of the ball has no digit after the point
_REACH = 1e15
# ratio of the sizes of two features up to which solvers need no common scale
_SIMILAR = 100.0
_UNEVEN = 1e4  # ratio of two features, in root mean square, from which on a common unit is doubted


class SupportsArray(Protocol):
    """What numpy can convert, such as a pandas DataFrame."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray: ...


# anything that numpy makes an array of numbers of: also a pandas DataFrame or Series
ArrayLike = Tensor | np.ndarray | float | Sequence[Any] | SupportsArray

# doubles in one chunk's (replicates x pairs) array: a few of them fit in a core's L2 cache, or keep
# a GPU busy for each launch
_CHUNK_ELEMENTS = {"cpu": 1 << 16, "cuda": 1 << 23}


@dataclass(frozen=True, eq=False)
class PairBatch:
    """R samples of n pairs: signed feature differences u = (2y-1)(psi1-psi2) and their weights.

    ut: (R, d, n), or (1, d, n) when all replicates share their atoms (a finite world). p: (R, n),
    rows summing to one.
    """

    ut: Tensor
    p: Tensor

    @property
    def replicates(self) -> int:
        return self.p.shape[0]

    @cached_property
    def largest(self) -> float:
        """The largest magnitude of a feature; not finite where one is not."""
        return largest(self.ut)

    @cached_property
    def gram(self) -> np.ndarray:
        """(R or 1, d, d) sums of u u' over the pairs, without their weights."""
        return (self.ut @ self.ut.mT).cpu().numpy()

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

    def in_units(self, unit: Tensor) -> "PairBatch":
        """The same with features (d,) measured in these units: theta times them is the same
        policy."""
        return PairBatch(self.ut / unit[:, None], self.p)

    def own_units(self) -> Tensor | None:
        """(d,) root mean squares of the features; None where they are of about one size."""
        squares = np.diagonal(self.gram, axis1=1, axis2=2).sum(0)
        squares = squares[squares > 0]
        if not len(squares) or squares.max() <= _SIMILAR**2 * squares.min():
            return None
        size = root_mean_squares(self.ut)
        return torch.where(size > 0, size, 1.0)

    def chunk_size(self, elements_per_replicate: int | None = None) -> int:
        """Replicates that are few enough to stay in cache; what is computed does not depend on
        it."""
        size = elements_per_replicate or self.p.shape[1]
        return max(1, _CHUNK_ELEMENTS.get(self.p.device.type, 1 << 16) // size)

    def chunks(self, elements_per_replicate: int | None = None) -> list[slice]:
        """Slices of so many replicates."""
        step = self.chunk_size(elements_per_replicate)
        return [
            slice(start, min(start + step, self.replicates))
            for start in range(0, self.replicates, step)
        ]


def as_float64(x: ArrayLike, name: str, device: torch.device | None = None) -> Tensor:
    """What a user passed as a float64 tensor: tensors, arrays of any layout, DataFrames and Series,
    lists, numbers.

    A masked array or a missing value becomes NaN, for the caller's check to find. Raises ValueError
    for what is not numbers.
    """
    if isinstance(x, str | bytes):
        raise ValueError(
            f"{name} must be numbers, got the {type(x).__name__} {x!r}. Write it without quotes, or"
            " convert it by float."
        )
    if isinstance(x, Tensor):
        if x.is_complex():
            raise ValueError(
                f"{name} must be real numbers, got a tensor of {x.dtype}. Pass its real part if"
                " that is what is meant."
            )
        dense = x.to_dense() if x.layout != torch.strided else x
        return dense.detach().to(device=device, dtype=torch.float64)
    try:
        array = np.asarray(
            np.ma.filled(x.astype(float), np.nan) if isinstance(x, np.ma.MaskedArray) else x
        )
        if array.dtype.kind == "O" and any(
            isinstance(entry, (str, bytes, complex)) for entry in array.flat
        ):
            raise TypeError("some entries are text or complex numbers")
        if array.dtype.kind not in "biufO":
            raise TypeError(f"its entries have the type {array.dtype}")
        # torch takes neither negative strides nor a read-only array
        array = np.require(array, dtype=np.float64, requirements=["C", "W"])
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"{name} must be an array of numbers, got {type(x).__name__} ({error}). Convert it"
            " first, from a table by table[columns].to_numpy(float), and give all rows the same"
            " length."
        ) from error
    return torch.from_numpy(array).to(device)


def feature_names(u: ArrayLike) -> tuple[str, ...]:
    """The columns of a table; none for anything else."""
    return tuple(str(name) for name in getattr(u, "columns", ()))


def largest(x: Tensor) -> float:
    """The largest magnitude, in one pass without copies; not finite where an entry is not."""
    if x.numel() == 0:
        return 0.0
    low, high = torch.aminmax(x)
    return max(-low.item(), high.item())


def check_finite(
    name: str, x: Tensor, remedy: str, names: Sequence[str] = (), rows: str = "row"
) -> None:
    """Entries (..., d) that are all finite; else an error with the first rows, from 1, and the
    names of their columns."""
    if math.isfinite(largest(x)):
        return
    bad = ~torch.isfinite(x)
    found = bad.nonzero()[:3].tolist()
    shown = []
    for place in found:
        words = [f"{rows} {place[-2] + 1}"] if len(place) > 1 else [f"{rows} {place[0] + 1}"]
        if len(place) > 2:
            words.insert(0, f"sample {place[0] + 1}")
        if len(place) > 1:
            k = place[-1]
            words.append(f"column {names[k]!r}" if k < len(names) else f"column {k + 1}")
        shown.append(", ".join(words))
    count = int(bad.sum())
    more = f"; and {count - len(found)} more" if count > len(found) else ""
    raise ValueError(
        f"{name} holds {count} non-finite entries (NaN or inf): {'; '.join(shown)}{more} (the first"
        f" is 1). {remedy}"
    )


def check_magnitudes(name: str, x: Tensor) -> None:
    """The entry of largest magnitude lies between SMALLEST and LARGEST, or all entries are 0."""
    check_magnitude(name, largest(x))


def check_magnitude(name: str, top: float) -> None:
    """`check_magnitudes`, of the largest magnitude."""
    if top != 0 and not SMALLEST <= top <= LARGEST:
        raise ValueError(
            f"{name} has entries of magnitude up to {top:g}; from {SMALLEST:g} to {LARGEST:g} is"
            " accepted, so that squares and their products neither vanish nor overflow. Divide by"
            " a common factor: it is a matter of the unit."
        )


def root_mean_squares(ut: Tensor) -> Tensor:
    """(d,) sizes of the features (R, d, n)."""
    return ut.square().mean((0, 2)).sqrt()


def warn_of_scales(ut: Tensor, kind: str, size: str, names: Sequence[str] = ()) -> None:
    """Features (R, d, n) in very different units, under a set whose size is in the unit of them
    all."""
    spread = root_mean_squares(ut)
    least = int(torch.where(spread > 0, spread, math.inf).argmin())
    most = int(spread.argmax())
    ratio = float(spread[most] / spread[least]) if spread[least] > 0 else 1.0
    if ratio <= _UNEVEN:
        return
    small, large = (repr(names[k]) if k < len(names) else f"{k + 1}" for k in (least, most))
    warnings.warn(
        f"feature {large} is {ratio:.1e} times as large as feature {small}, in root mean square,"
        f" and the {size} of {kind} is in the unit of all features alike: what it means for one is"
        " nothing, or everything, for the other. Bring them to a common scale first, as by"
        " theory.worlds.common_scale or u / u.std(0).",
        stacklevel=3,
    )


def check_reach(pairs: "PairBatch", beta: float, bound: float) -> None:
    """Margins anywhere in the parameter ball have digits that count."""
    reach = beta * bound * pairs.largest
    if reach > _REACH:
        raise ValueError(
            f"beta * bound * max|u| = {reach:.3g} is above {_REACH:g}: at that distance a margin"
            " has no digit after the point, and no fit could be certified. Take a smaller bound,"
            " or features in another unit."
        )


def pair_batch(u: ArrayLike, weights: ArrayLike | None = None) -> PairBatch:
    """Check and arrange samples: u (n, d) or (R, n, d), weights None (uniform), (n,) or (R, n).

    Raises ValueError for an empty sample, features that are not finite or have magnitudes outside
    of SMALLEST to LARGEST, or weights that are negative or do not sum to one.
    """
    features = as_float64(u, "u")
    if features.ndim not in (2, 3) or 0 in features.shape:
        raise ValueError(
            "u must have shape (n, d) or (R, n, d) with n >= 1 and d >= 1, got"
            f" {tuple(features.shape)}. Pass signed feature differences (2y-1)(psi1-psi2), one row"
            " a pair."
        )
    remedy = "Remove those pairs or impute their features first."
    top = largest(features)
    if not math.isfinite(top):
        check_finite("u", features, remedy, feature_names(u), "pair")
    check_magnitude("u", top)
    n = features.shape[-2]
    if weights is None:
        p = torch.full((1, n), 1.0 / n, dtype=torch.float64, device=features.device)
    else:
        p = as_float64(weights, "weights", features.device)
        p = p[None] if p.ndim == 1 else p
        if p.ndim != 2 or p.shape[1] != n:
            raise ValueError(
                f"weights must have shape ({n},) or (R, {n}) to match u, got {tuple(p.shape)}."
            )
        total = p.sum(-1)
        if (
            not bool(torch.isfinite(p).all())
            or bool((p < 0).any())
            or bool(((total - 1).abs() > SUMS).any())
        ):
            worst = total[(total - 1).abs().argmax()].item()
            odd = (~torch.isfinite(p) | (p < 0)).nonzero()
            place = (
                f" (weight {int(odd[0, 1]) + 1} of {n} is {p[tuple(odd[0])].item():g})"
                if len(odd)
                else ""
            )
            raise ValueError(
                "weights must be non-negative and each row must sum to one; the smallest entry is"
                f" {p.min().item():g}{place} and the sum furthest from one is {worst:.12g}. Counts"
                " must be divided by their total first."
            )
        p = torch.where(((total - 1).abs() > EXACT)[:, None], p / total[:, None], p)
    ut = _features_first(features if features.ndim == 3 else features[None])
    replicates = max(ut.shape[0], p.shape[0])
    if ut.shape[0] > 1 and p.shape[0] > 1 and ut.shape[0] != p.shape[0]:
        raise ValueError(
            f"u holds {ut.shape[0]} replicates but weights {p.shape[0]}: give one of them once, or"
            " both equally often."
        )
    pairs = PairBatch(ut, p.expand(replicates, -1))
    pairs.__dict__["largest"] = top  # known already
    return pairs


def _features_first(u: Tensor) -> Tensor:
    """(R, n, d) as a contiguous (R, d, n); on the CPU by numpy, which is four times faster."""
    if u.device.type != "cpu":
        return u.mT.contiguous()
    return torch.from_numpy(np.ascontiguousarray(u.numpy().swapaxes(1, 2)))
