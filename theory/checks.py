"""Checks of what users pass in: each error gives the value received, the likely cause and the remedy."""

import math

import numpy as np
import torch
from torch import Tensor

from theory.batch import ArrayLike


def check_metric(distance: ArrayLike | None, n: int) -> Tensor:
    """An (n, n) matrix of distances: finite, non-negative, symmetric, with a zero diagonal."""
    if distance is None:
        raise ValueError(f"distance is missing: a Wasserstein ball on {n} atoms needs their ({n}, {n}) distances.")
    matrix = torch.as_tensor(distance, dtype=torch.float64)
    if matrix.shape != (n, n):
        raise ValueError(f"distance must have shape ({n}, {n}) to match the {n} atoms, got {tuple(matrix.shape)}.")
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError("distance holds NaN or infinite entries. Forbid a move by a large finite distance instead.")
    if bool((matrix < 0).any()):
        raise ValueError(
            f"distance has the negative entry {matrix.min().item():g}: not a metric. Check its sign or its square root."
        )
    diagonal = matrix.diagonal().abs().max().item()
    if diagonal > 0:
        raise ValueError(f"distance has {diagonal:g} on its diagonal; the distance of an atom to itself must be zero.")
    asymmetry = (matrix - matrix.T).abs().max().item()
    if asymmetry > 1e-9 * (1 + matrix.max().item()):
        raise ValueError(f"distance is not symmetric (largest difference {asymmetry:g}). Average it with its transpose.")
    return matrix


def check_label_cost(kappa: float | None) -> float:
    """A label cost kappa > 0."""
    if kappa is None or not kappa > 0 or math.isinf(kappa):
        raise ValueError(f"label_cost must be a positive finite number, got {kappa}. Pass None where labels cannot move.")
    return float(kappa)


def check_radius(name: str, value: ArrayLike, replicates: int, like: Tensor) -> Tensor:
    """A non-negative finite number, or one for each replicate."""
    radius = torch.as_tensor(value, dtype=torch.float64, device=like.device)
    if radius.ndim > 1 or (radius.ndim == 1 and radius.shape[0] not in (1, replicates)):
        raise ValueError(f"{name} must be a number or have shape ({replicates},), got shape {tuple(radius.shape)}.")
    bad = ~(torch.isfinite(radius) & (radius >= 0))
    if bool(bad.any()):
        raise ValueError(
            f"{name} must be finite and not negative, got {radius[bad].reshape(-1)[0].item():g}. Use 0 for the plain mean."
        )
    return radius.expand(replicates) if radius.ndim == 0 else radius.expand(replicates).clone()


def check_positive(name: str, value: float, remedy: str) -> float:
    """A positive finite number."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be a positive finite number, got {value}. {remedy}")
    return float(value)


def check_reference(theta_ref: ArrayLike | None, d: int, bound: float, like: Tensor) -> Tensor:
    """theta_ref (d,) inside the parameter ball; None is 0, the uniform policy."""
    if theta_ref is None:
        return torch.zeros(d, dtype=torch.float64, device=like.device)
    theta = torch.as_tensor(theta_ref, dtype=torch.float64, device=like.device)
    if theta.shape != (d,) or not bool(torch.isfinite(theta).all()):
        raise ValueError(
            f"theta_ref must be {d} finite numbers, got {theta.tolist()} of shape {tuple(theta.shape)}. "
            "Pass None for the uniform policy."
        )
    if theta.norm().item() >= bound:
        raise ValueError(
            f"theta_ref has norm {theta.norm().item():g}, not inside the ball of radius B = {bound:g}: enlarge the bound."
        )
    return theta


def check_probability(name: str, p: np.ndarray, n: int) -> np.ndarray:
    """n finite non-negative numbers that sum to one."""
    p = np.asarray(p, dtype=float)
    if p.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), got {p.shape}: one number for each pair or context.")
    if not np.isfinite(p).all() or (p < 0).any() or abs(p.sum() - 1) > 1e-9:
        raise ValueError(
            f"{name} must be non-negative and sum to one; the smallest entry is {p.min():g}, the sum {p.sum():.12g}. "
            "Divide by the sum."
        )
    return p
