"""Worst-case distributions: where the adversary of each set puts the probability, at a policy.

worst = worst_case(u, theta, KL(0.1), beta=1.0)
worst.weights, worst.value, worst.used, worst.dual, worst.effective
"""

import numpy as np
import torch

from theory.batch import ArrayLike, check_finite, feature_names, warn_of_scales
from theory.checks import as_array, check_number, check_probability, check_scale, check_set
from theory.losses import dpo_loss
from theory.sets.base import AmbiguitySet, AtPolicy
from theory.solvers.adversary import Moves, WorstCase
from theory.worlds import FiniteWorld

__all__ = ["Moves", "WorstCase", "worst_case"]


def worst_case(
    u: ArrayLike | FiniteWorld,
    theta: ArrayLike,
    set: AmbiguitySet,
    weights: ArrayLike | None = None,
    *,
    beta: float | None = None,
    theta_ref: ArrayLike | None = None,
    losses: ArrayLike | None = None,
) -> WorstCase:
    """The worst case of an ambiguity set at theta.

    The source of each set is its own: Section 4.1 and Lemma 1, arXiv:2502.01930v4, for Wasserstein
    balls and for `KL`, Algorithm 2 for `Tilt` and Algorithm 1 for `GradientPenalty`.

    Args:
        u: (n, d) signed feature differences of the atoms, or a finite world, which knows its
            weights, beta, theta_ref, labels, and the distances between its atoms.
        theta: (d,) or (1, d) policy parameter, such as `fit(...).theta`.
        set: a member of `theory.SETS` with one size, such as `KL(0.1)`.
        weights: (n,) probabilities of the atoms, such as the frequencies of a sample; None: 1/n
            each, or the world's own.
        beta: of the loss; needed beside u.
        theta_ref: (d,) of the reference policy; None: 0, or the world's own.
        losses: (n,) losses other than DPO's; not where features move, which needs the loss
            everywhere.

    Returns:
        A `WorstCase`: its value and the distribution that attains it, or comes near.

    Raises:
        ValueError: a size out of range, or losses, weights or theta that do not fit the atoms.

    >>> from theory import CVaR, ChiSquared, worst_case
    >>> worst_case([[1.0], [-1.0]], [0.5], CVaR(0.5), beta=1.0).weights.round(6).tolist()
    [0.0, 1.0]
    >>> found = worst_case([[1.0], [-1.0]], [0.5], ChiSquared(0.25), beta=1.0, losses=[1.0, 5.0])
    >>> found.weights.round(6).tolist(), round(found.value, 6)
    ([0.25, 0.75], 4.0)
    """
    check_set(u, set)
    names: tuple[str, ...] = ()
    if isinstance(u, FiniteWorld):
        world, atoms = u, u.u
        beta = world.beta if beta is None else beta
        theta_ref = world.theta_ref if theta_ref is None else theta_ref
        weights = world.probability if weights is None else weights
        set, label = set.in_metric(world.distance(set.cost_of_labels)), world.label
    else:
        atoms, label = as_array(u, "u"), None
        names = feature_names(u)
        if atoms.ndim != 2 or 0 in atoms.shape:
            raise ValueError(
                f"u must have shape (n, d) with n >= 1 and d >= 1, got {atoms.shape}. A worst case"
                " is that of one sample."
            )
        check_finite(
            "u",
            torch.from_numpy(atoms),
            "Remove those pairs or impute their features first.",
            names,
            "pair",
        )
        if beta is None:
            raise ValueError("beta is missing: the loss is log(1 + exp(-beta w.u)).")
    n, d = atoms.shape
    if set.knows_units:
        units = torch.from_numpy(atoms.T)[None]
        warn_of_scales(units, type(set).__name__, set.facts.size, names)
    p = np.full(n, 1 / n) if weights is None else check_probability("weights", weights, n)
    beta = check_scale("beta", check_number("beta", beta), "It scales the log-ratio in the margin.")
    w = _point("theta", theta, d) - (
        0.0 if theta_ref is None else _point("theta_ref", theta_ref, d)
    )
    own = losses is not None
    values = (
        as_array(losses, "losses")
        if losses is not None
        else dpo_loss(torch.from_numpy(beta * atoms @ w)).numpy()
    )
    return set.worst(AtPolicy(atoms, p, w, beta, values, own, label))


def _point(name: str, theta: ArrayLike, d: int) -> np.ndarray:
    """A parameter (d,), or the only one of a batch (1, d)."""
    point = as_array(theta, name)
    if point.shape == (1, d):
        point = point[0]
    if point.shape != (d,):
        raise ValueError(f"{name} must have shape ({d},) to match u, got {point.shape}.")
    if not np.isfinite(point).all():
        raise ValueError(
            f"{name} must be finite, got {point.tolist()}. Look at the fit it is from."
        )
    return point
