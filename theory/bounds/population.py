"""The population as our bounds see it from one theta: losses, gradients and Hessians of the atoms,
and how far theta is from being a minimiser."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit

from theory.batch import ArrayLike
from theory.bounds.papers import check_constants
from theory.checks import as_array, check_probability
from theory.duals import kl_ball_dual
from theory.policy import Array


@dataclass(frozen=True)
class Size:
    """What every bound needs: sample size n, failure probability delta, beta, B and theta_ref (d,),
    None for 0."""

    n: float
    delta: float
    beta: float
    bound: float
    theta_ref: Array | None = None

    def __post_init__(self) -> None:
        check_constants(self.n, beta=self.beta, bound=self.bound, delta=self.delta)

    def away(self, theta: Array) -> Array:
        """w = theta - theta_ref, (d,)."""
        return theta if self.theta_ref is None else theta - self.theta_ref


@dataclass(frozen=True)
class Local:
    """The atoms seen from theta_rho: losses (K,), gradients (K, d), Hessians (K, d, d)."""

    losses: Array
    gradients: Array
    hessians: Array


def check_population(
    u: ArrayLike, p: ArrayLike, theta: ArrayLike, size: Size
) -> tuple[Array, Array, Array]:
    """u (K, d), p (K,) and theta (d,) as arrays of finite numbers, p a probability.

    A bound of anything else would be a number that means nothing.
    """
    atoms, at = as_array(u, "u"), as_array(theta, "theta")
    ref = np.zeros(at.shape) if size.theta_ref is None else as_array(size.theta_ref, "theta_ref")
    if atoms.ndim != 2 or 0 in atoms.shape or {at.shape, ref.shape} != {atoms.shape[1:]}:
        raise ValueError(
            "u, theta and theta_ref must have shapes (K, d), (d,) and (d,), got"
            f" {atoms.shape}, {at.shape} and {ref.shape}. One row of u an atom."
        )
    for name, x in (("u", atoms), ("theta", at), ("theta_ref", ref)):
        bad = int((~np.isfinite(x)).sum())
        if bad:
            raise ValueError(
                f"{name} holds {bad} entries that are NaN or infinite among {x.size}. Leave atoms"
                " without numbers out, with their weights, or look at what computed them."
            )
    for name, x in (("theta", at), ("theta_ref", ref)):
        norm = float(np.linalg.norm(x))
        if norm > size.bound * (1 + 1e-9):
            raise ValueError(
                f"{name} has norm {norm:g}, beyond the bound {size.bound:g}: it is not in Theta."
                " Give the bound of the fit."
            )
    return atoms, check_probability("p", p, len(atoms)), at


def seen_from(theta: Array, u: Array, size: Size) -> Local:
    beta = size.beta
    margin = beta * u @ size.away(theta)
    slope = expit(-margin)
    curved = beta**2 * slope * (1 - slope)
    return Local(
        np.logaddexp(0, -margin),
        -beta * slope[:, None] * u,
        curved[:, None, None] * u[:, :, None] * u[:, None, :],
    )


def kl_worst_case(losses: Array, p: Array, radius: float) -> tuple[float, Array]:
    """lambda and the probabilities q (K,) of the worst case in the KL ball at these losses (K,)."""
    worst = kl_ball_dual(
        torch.from_numpy(losses)[None],
        torch.from_numpy(p)[None],
        torch.tensor([radius], dtype=torch.float64),
    )
    return worst.dual.item(), worst.weights[0].numpy()


def not_stationary(g: Array, theta: Array, bound: float) -> float:
    """Distance of -g from the normal cone of the ball at theta: 0 up to the solver's precision."""
    norm = float(np.linalg.norm(theta))
    if norm < bound * (1 - 1e-9):
        return float(np.linalg.norm(g))
    outward = theta / norm
    return float(np.linalg.norm(g + max(-float(g @ outward), 0.0) * outward))
