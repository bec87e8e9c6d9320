"""What KLDPO costs where the model is right: its variance against that of DPO with the same target.

Labels are Bradley-Terry in the log-odds h = beta (theta* - theta_ref).x and the bound B does not
bind. KLDPO at the temperature tau (Algorithm 2) and DPO at beta (1 + 1/tau) have the same target,
theta_ref + a (theta* - theta_ref) with a = tau/(1 + tau) (Proposition E). With m = a h,

    f = sigma(h) sigma(-h),      k = sigma(h) sigma(m)^(-1/tau) sigma(-m),

    V_DPO = (a²/beta²) (E f xx')^-1,
    V_KLDPO = (a²/beta²) (E k xx')^-1 E[(k²/f) xx'] (E k xx')^-1 >= V_DPO:

logistic regression with the weights k/f, which are not constant in |h|. Theorem E' of
docs/theorems/efficiency.md.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import log_expit, roots_gegenbauer

from theory.batch import ArrayLike
from theory.checks import as_array, check_probability, check_scale
from theory.policy import Array

_NODES = 96  # of the quadrature in each of the two heights on the sphere


@dataclass(frozen=True)
class Efficiency:
    """Asymptotic covariances of sqrt(n)(theta_n - target), both for the same target.

    target: (d,). kldpo, dpo: (d, d). trace: tr V_DPO/tr V_KLDPO, the share of the pairs that DPO
    needs for the same mean squared error. least: the smallest v'V_DPO v/v'V_KLDPO v, in the worst
    direction. floor: 4R/(1 + R)², R = largest/smallest k/f: no direction is below it.
    """

    target: Array
    kldpo: Array
    dpo: Array
    trace: float
    least: float
    floor: float


def robust_weight(h: ArrayLike, tau: float) -> Array:
    """k/f at log-odds h (any shape): how KLDPO at the temperature tau weighs a pair, against the
    likelihood.

    Even in h, 2^(1/tau) at 0, increasing in |h|, as e^{|h|/(1+tau)} for large |h|. Theorem E' of
    docs/theorems/efficiency.md; derived.

    Raises:
        ValueError: a temperature that is not positive and finite, or log-odds that are not finite.

    >>> robust_weight([0.0, 2.0, -2.0], 1.0).round(4).tolist()
    [2.0, 3.0862, 3.0862]
    """
    return np.exp(_log_weight(as_array(h, "h"), check_scale("tau", tau, _TAU)))


def efficiency(
    x: ArrayLike,
    p: ArrayLike,
    theta_star: ArrayLike,
    *,
    tau: float,
    beta: float,
    theta_ref: ArrayLike | None = None,
) -> Efficiency:
    """KLDPO at tau against DPO at beta (1 + 1/tau), in a well-specified population.

    Theorem E' of docs/theorems/efficiency.md; derived. For one pair KLDPO's loss is the alpha-loss
    with alpha = tau/(1 + tau) of Sypherd et al., arXiv:1906.02314v6.

    Args:
        x: (K, d) feature differences psi1 - psi2, not signed by the label.
        p: (K,) probabilities of them; where an atom is there with each label, theirs may be given
            apart.
        theta_star: (d,) true parameter.
        tau: temperature, in nats.
        beta: of the loss.
        theta_ref: (d,) of the reference policy; None: 0.

    Returns:
        An `Efficiency`. Without a bound B: a target outside of ||theta|| <= B has another law.

    Raises:
        ValueError: a temperature or beta that is not positive, shapes that do not fit, or features
            that do not span all dimensions, so that no estimator of theta exists.

    >>> import numpy as np
    >>> found = efficiency([[1.0], [3.0]], [0.5, 0.5], [1.0], tau=1.0, beta=1.0)
    >>> round(found.trace, 4), round(found.floor, 4)
    (0.9205, 0.8761)
    """
    atoms = as_array(x, "x")
    if atoms.ndim != 2 or atoms.size == 0 or not np.isfinite(atoms).all():
        raise ValueError(f"x must be (K, d) finite numbers, got shape {atoms.shape}.")
    mass = check_probability("p", p, len(atoms))
    star = as_array(theta_star, "theta_star")
    d = atoms.shape[1]
    ref = np.zeros(d) if theta_ref is None else as_array(theta_ref, "theta_ref")
    if star.shape != (d,) or ref.shape != (d,):
        raise ValueError(
            f"theta_star and theta_ref must have shape ({d},), got {star.shape} and {ref.shape}."
        )
    tau, beta = check_scale("tau", tau, _TAU), check_scale("beta", beta, "It scales the margin.")
    live = mass > 0
    atoms, mass = atoms[live], mass[live]
    h = beta * atoms @ (star - ref)
    a = tau / (1 + tau)
    log_f = log_expit(h) + log_expit(-h)
    log_weight = _log_weight(h, tau)
    log_weight -= log_weight.max()  # V does not depend on the scale of k
    fisher, bread, meat = (
        np.einsum("k,ki,kj->ij", mass * np.exp(log_f + power * log_weight), atoms, atoms)
        for power in (0, 1, 2)
    )
    spectrum = np.linalg.eigvalsh(fisher)
    if spectrum[0] <= 1e-13 * spectrum[-1]:
        raise ValueError(
            f"the Fisher information has the eigenvalues {spectrum.tolist()}: the features do not"
            " tell all directions of theta apart. Project them onto the span of the pairs."
        )
    dpo = (a / beta) ** 2 * np.linalg.inv(fisher)
    inverse = np.linalg.inv(bread)
    kldpo = (a / beta) ** 2 * inverse @ meat @ inverse
    # v'V_DPO v/v'V_KLDPO v is largest where the pencil (V_KLDPO, V_DPO) is
    root = np.linalg.cholesky(fisher)
    worst = float(np.linalg.eigvalsh(root.T @ kldpo @ root)[-1]) * (beta / a) ** 2
    spread = math.exp(-float(log_weight.min()))
    return Efficiency(
        ref + a * (star - ref),
        kldpo,
        dpo,
        float(np.trace(dpo) / np.trace(kldpo)),
        1 / worst,
        4 * spread / (1 + spread) ** 2,
    )


def sphere_efficiency(largest: float, tau: float, d: int) -> tuple[float, float, float]:
    """Efficiency of KLDPO for x = psi1 - psi2, both uniform on the unit sphere, d >= 2 dimensions.

    largest = 2 beta ||theta* - theta_ref|| is the largest log-odds, of opposite responses.

    The covariances are diagonal along theta* - theta_ref and across it, so that a quadrature over
    the two heights gives them to rounding. Theorem E' of docs/theorems/efficiency.md; derived.

    Returns:
        The ratios V_DPO/V_KLDPO along, across, and of the traces.

    Raises:
        ValueError: a temperature or a largest log-odds that is not positive, or d < 2.

    >>> tuple(round(x, 3) for x in sphere_efficiency(6.0, 1.0, 4))
    (0.817, 0.913, 0.866)
    """
    tau = check_scale("tau", tau, _TAU)
    largest = check_scale("largest", largest, "It is the largest log-odds of a pair.")
    if d < 2:
        raise ValueError(f"a sphere needs d >= 2, got {d}.")
    exponent = (d - 2) / 2
    if exponent > 0:
        t, w = roots_gegenbauer(_NODES, exponent)
    else:  # the circle
        t, w = np.cos((2 * np.arange(_NODES) + 1) * np.pi / (2 * _NODES)), np.ones(_NODES)
    mass = np.outer(w, w).ravel() / w.sum() ** 2
    along = np.subtract.outer(t, t).ravel()
    # E ||x across||² given the heights, spread over d - 1 directions
    across = np.add.outer(1 - t**2, 1 - t**2).ravel() / (d - 1)
    h = largest / 2 * along
    f = np.exp(log_expit(h) + log_expit(-h))
    weight = np.exp(_log_weight(h, tau))
    variances = [
        (
            1 / float(mass @ (f * s)),
            float(mass @ (weight**2 * f * s)) / float(mass @ (weight * f * s)) ** 2,
        )
        for s in (along**2, across)
    ]
    (dpo_in, kl_in), (dpo_out, kl_out) = variances
    total = (dpo_in + (d - 1) * dpo_out) / (kl_in + (d - 1) * kl_out)
    return dpo_in / kl_in, dpo_out / kl_out, total


_TAU = "It is a temperature in nats; for the mean use DPO."


def _log_weight(h: Array, tau: float) -> Array:
    """log k/f = -log sigma(m)/tau + log sigma(-m) - log sigma(-h) at |h|, as it is even."""
    size = np.abs(h)
    m = size * tau / (1 + tau)
    return -log_expit(m) / tau + log_expit(-m) - log_expit(-size)
