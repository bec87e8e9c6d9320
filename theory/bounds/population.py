"""The population as our bounds see it from one theta: losses, gradients and Hessians of the atoms,
and how far theta is from being a minimiser."""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from theory.bounds.papers import check_constants
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


@dataclass(frozen=True)
class Local:
    """The atoms seen from theta_rho: losses (K,), gradients (K, d), Hessians (K, d, d)."""

    losses: Array
    gradients: Array
    hessians: Array


def seen_from(theta: Array, u: Array, size: Size) -> Local:
    beta = size.beta
    margin = beta * u @ (theta if size.theta_ref is None else theta - size.theta_ref)
    slope = expit(-margin)
    curved = beta**2 * slope * (1 - slope)
    return Local(
        np.logaddexp(0, -margin),
        -beta * slope[:, None] * u,
        curved[:, None, None] * u[:, :, None] * u[:, None, :],
    )


def not_stationary(g: Array, theta: Array, bound: float) -> float:
    """Distance of -g from the normal cone of the ball at theta: 0 up to the solver's precision."""
    norm = float(np.linalg.norm(theta))
    if norm < bound * (1 - 1e-9):
        return float(np.linalg.norm(g))
    outward = theta / norm
    return float(np.linalg.norm(g + max(-float(g @ outward), 0.0) * outward))
