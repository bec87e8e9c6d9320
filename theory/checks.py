"""Checks of what users pass in: each error gives the value received, the likely cause and the
remedy."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from theory.batch import EXACT, LARGEST, SMALLEST, SUMS, ArrayLike, as_float64

Array = NDArray[np.float64]


def check_set(u: object, set: object) -> None:
    """An ambiguity set, after the data: not its class, not its name, and not in the place of u."""
    if hasattr(u, "facts"):
        raise ValueError(
            f"u is an ambiguity set, {u!r}: the data come first, as in fit(u, set, weights)."
        )
    if isinstance(set, type) and hasattr(set, "facts"):
        raise ValueError(
            f"set is the class {set.__name__}. Make one of it, with its size, such as"
            f" {set.__name__}(0.1)."
        )
    if not hasattr(set, "facts"):
        raise ValueError(
            f"set must be an ambiguity set, got {set!r}. Take one of theory.SETS by its name and"
            " give it a size, such as SETS['kl'].sized(0.1), or write KL(0.1); weights come after"
            " it, as in fit(u, set, weights)."
        )


def check_pairs(u: object) -> None:
    """Pairs, and not the world that they come from."""
    if hasattr(u, "problem"):
        raise ValueError(
            f"u is a {type(u).__name__}: an estimator takes pairs. Of a finite world they are"
            " world.u with the weights world.probability, as in fit(world.u, set,"
            " world.probability, **world.problem); of another take a sample."
        )


def check_metric(distance: ArrayLike | None, n: int) -> Tensor:
    """An (n, n) matrix of distances: finite, non-negative, symmetric, with a zero diagonal."""
    if distance is None:
        raise ValueError(
            f"distance is missing: a Wasserstein ball on {n} atoms needs their ({n}, {n})"
            " distances."
        )
    matrix = as_float64(distance, "distance")
    if matrix.shape != (n, n):
        raise ValueError(
            f"distance must have shape ({n}, {n}) to match the {n} atoms, got"
            f" {tuple(matrix.shape)}."
        )
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(
            "distance holds NaN or infinite entries. Forbid a move by a large finite distance"
            " instead."
        )
    if bool((matrix < 0).any()):
        raise ValueError(
            f"distance has the negative entry {matrix.min().item():g}: not a metric. Check its sign"
            " or its square root."
        )
    positive = matrix[matrix > 0]
    if (
        positive.numel()
        and not SMALLEST <= positive.min().item() <= positive.max().item() <= LARGEST
    ):
        raise ValueError(
            f"distance has positive entries from {positive.min().item():g} to"
            f" {positive.max().item():g}; from {SMALLEST:g} to {LARGEST:g} is accepted, so that"
            " their squares count. Take another unit, and 0 for what is as good as equal."
        )
    diagonal = matrix.diagonal().abs().max().item()
    if diagonal > 0:
        raise ValueError(
            f"distance has {diagonal:g} on its diagonal; the distance of an atom to itself must be"
            " zero."
        )
    asymmetry = (matrix - matrix.T).abs().max().item()
    if asymmetry > 1e-9 * (1 + matrix.max().item()):
        raise ValueError(
            f"distance is not symmetric (largest difference {asymmetry:g}). Average it with its"
            " transpose."
        )
    return matrix


def check_label_cost(kappa: float | None) -> float:
    """A label cost kappa > 0."""
    if kappa is None:
        raise ValueError(
            "label_cost must be a positive finite number, got None. Give the cost of flipping a"
            " label."
        )
    return check_scale("label_cost", kappa, "Pass None where labels cannot move.")


def check_radius(name: str, value: ArrayLike, replicates: int, like: Tensor) -> Tensor:
    """A non-negative finite number, or one for each replicate."""
    radius = as_float64(value, name, like.device)
    if radius.numel() == 0:
        raise ValueError(f"{name} is empty. Give a number, or one for each fit.")
    if radius.ndim > 1 or (radius.ndim == 1 and radius.shape[0] not in (1, replicates)):
        raise ValueError(
            f"{name} must be a number or have shape ({replicates},), got shape"
            f" {tuple(radius.shape)}."
        )
    bad = ~(torch.isfinite(radius) & (radius >= 0))
    if bool(bad.any()):
        raise ValueError(
            f"{name} must be finite and not negative, got {radius[bad].reshape(-1)[0].item():g}."
            " Use 0 for the plain mean."
        )
    odd = (radius > 0) & ~((radius >= SMALLEST) & (radius <= LARGEST))
    if bool(odd.any()):
        raise ValueError(
            f"{name} must be 0 or between {SMALLEST:g} and {LARGEST:g}, got"
            f" {radius[odd].reshape(-1)[0].item():g}: its square would vanish or overflow. Use 0"
            " for the plain mean; beyond the collapse radius larger ones change nothing."
        )
    return radius.expand(replicates) if radius.ndim == 0 else radius.expand(replicates).clone()


def check_positive(name: str, value: float, remedy: str) -> float:
    """A positive finite number."""
    number = check_number(name, value)
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"{name} must be a positive finite number, got {value}. {remedy}")
    return number


def check_scale(name: str, value: float, remedy: str) -> float:
    """A positive number between SMALLEST and LARGEST."""
    number = check_positive(name, value, remedy)
    if not SMALLEST <= number <= LARGEST:
        raise ValueError(
            f"{name} must lie between {SMALLEST:g} and {LARGEST:g}, got {number:g}: its square"
            f" would vanish or overflow. {remedy}"
        )
    return number


def check_number(name: str, value: float) -> float:
    """One number: a float, an integer, or an array or tensor that holds a single one."""
    if type(value) in (float, int):
        return float(value)
    number = as_float64(value, name)
    if number.numel() != 1:
        raise ValueError(
            f"{name} must be a single number, got shape {tuple(number.shape)}. Pass one of them."
        )
    return float(number)


def check_level(level: float) -> float:
    """The confidence level of an interval, between 0 and 1."""
    number = check_number("level", level)
    if not 0 < number < 1:
        percent = f" {number:g} % is {number / 100:g}." if 1 < number < 100 else ""
        raise ValueError(f"level must be between 0 and 1, got {number:g}; 0.95 is usual.{percent}")
    return number


def check_count(name: str, value: int, least: int = 1) -> int:
    """A whole number of things."""
    number = check_number(name, value)
    if not (number >= least and number == math.floor(number) and math.isfinite(number)):
        raise ValueError(f"{name} must be a whole number from {least} on, got {value}.")
    return int(number)


def check_reference(theta_ref: ArrayLike | None, d: int, bound: float, like: Tensor) -> Tensor:
    """theta_ref (d,) inside the parameter ball; None is 0, the uniform policy."""
    if theta_ref is None:
        return torch.zeros(d, dtype=torch.float64, device=like.device)
    theta = as_float64(theta_ref, "theta_ref", like.device)
    if theta.shape == (1, d):  # a row, as tables and models give it
        theta = theta[0]
    if theta.shape != (d,) or not bool(torch.isfinite(theta).all()):
        raise ValueError(
            f"theta_ref must be {d} finite numbers, got {theta.tolist()} of shape"
            f" {tuple(theta.shape)}. Pass None for the uniform policy."
        )
    if theta.norm().item() >= bound:
        raise ValueError(
            f"theta_ref has norm {theta.norm().item():g}, not inside the ball of radius B ="
            f" {bound:g}: enlarge the bound."
        )
    return theta


def as_array(x: ArrayLike, name: str) -> Array:
    """`as_float64` as a numpy array."""
    return as_float64(x, name).cpu().numpy()


def check_probability(name: str, p: ArrayLike, n: int) -> Array:
    """n finite non-negative numbers that sum to one; what single precision lost is divided out."""
    p = as_array(p, name)
    if p.shape != (n,):
        raise ValueError(
            f"{name} must have shape ({n},), got {p.shape}: one number for each pair or context."
        )
    odd = np.flatnonzero(~(np.isfinite(p) & (p >= 0)))
    if len(odd) or abs(p.sum() - 1) > SUMS:
        place = f" (that of {odd[0] + 1} of {n} is {p[odd[0]]:g})" if len(odd) else ""
        raise ValueError(
            f"{name} must be non-negative and sum to one; the smallest entry is"
            f" {p.min():g}{place}, the sum {p.sum():.12g}. Divide by the sum."
        )
    return p / p.sum() if abs(p.sum() - 1) > EXACT else p


def check_clusters(
    clusters: ArrayLike, n: int, *, name: str = "clusters", least: int = 2
) -> NDArray[np.intp]:
    """Numbers 0, 1, ... of the clusters (n,) of rows that belong together, sorted."""
    try:
        found, label = np.unique(np.asarray(clusters), return_inverse=True)
        missing = bool((found != found).any())
    except TypeError:  # None or NA among the labels, or labels of several types
        missing = True
    if missing:
        raise ValueError(
            f"{name} must be labels of one type without missing ones, got NaN, None or labels that"
            " cannot be compared. Leave rows without a label out."
        )
    if label.shape != (n,) or len(found) < least:
        raise ValueError(
            f"{name} must be a label for each of the {n} rows, at least {least} different ones,"
            f" got shape {np.shape(clusters)} with {len(found)} different labels."
        )
    return label


def check_groupings(
    clusters: ArrayLike, n: int, *, name: str = "clusters"
) -> tuple[NDArray[np.intp], ...]:
    """The numbers of `check_clusters` for each grouping of n rows: one for labels (n,), two for
    labels (n, 2), a column each."""
    labels = clusters if isinstance(clusters, np.ndarray) else np.asarray(clusters)
    if labels.ndim != 2:
        return (check_clusters(labels, n, name=name),)
    if labels.shape != (n, 2):
        raise ValueError(
            f"{name} must be (n,) labels, or (n, 2) where rows belong together in two ways, got"
            f" shape {labels.shape} for n = {n} rows. Join further groupings into one of these two."
        )
    return tuple(check_clusters(column, n, name=name) for column in labels.T)
