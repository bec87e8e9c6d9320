"""The law of an estimator at the edge of collapse, where its population's answer is just the
reference policy.

At the collapse radius theta_rho = theta_ref, and near it, with w = theta - theta_ref and b = beta
||w||,

    L(theta) = log 2 + (beta/2) h(w) + (beta²/8) q(w) + c b³ + ...,

where h >= 0 is convex, positively homogeneous and vanishes on one ray R+ e alone. In a sample h(e)
is off by -delta_n = -E_n i, a mean of n centred terms. So theta_n stays at theta_ref where delta_n
<= 0, that is half of the time, and else moves along e to where the derivative vanishes:

    3 c b² + q b/4 = delta_n/2.

The exact sets have q > 0, and c does not matter: n^-1/2. The norm penalty of Algorithm 1 can have
q = 0, where Var(e.u) = rho²: n^-1/4. Theorem F4 of
docs/theorems/collapse-edge.md.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from theory.batch import ArrayLike
from theory.checks import as_array, check_probability, check_scale
from theory.policy import Array

_STEPS = 200  # of Newton's method for the tilt that centres the features
_NODES = 4001  # of the rule that integrates over the normal law


@dataclass(frozen=True)
class EdgeLaw:
    """Law of theta_n at the collapse radius: n pairs, theta_n = theta_ref + distance * direction to
    first order.

    radius: the collapse radius. direction: e (d,), of length one. influence: i (K,) on the atoms,
    centred; delta_n = E_n i. curvature: q = q(e). cubic: c. beta: of the loss.
    """

    radius: float
    direction: Array
    influence: Array
    probability: Array
    curvature: float
    cubic: float
    beta: float

    @property
    def spread(self) -> float:
        """sd of the influence: sqrt(n) delta_n is N(0, spread²) in the limit."""
        return math.sqrt(float(self.probability @ self.influence**2))

    @property
    def exponent(self) -> float:
        """Of n in the distance: -1/2, or -1/4 where the quadratic term vanishes."""
        return -0.5 if self.curvature > 0 else -0.25

    def distance(self, delta: Array | float) -> Array:
        """||theta_n - theta_ref|| to first order, where the sample's slope is delta (any shape)."""
        up = np.maximum(np.asarray(delta, dtype=np.float64), 0.0)
        if self.cubic == 0:
            return 2 * up / (self.beta * self.curvature)
        # the positive root of 3 c b² + q b/4 = delta/2, in the form that does not cancel
        half = self.curvature / 4
        root = np.sqrt(half**2 + 6 * self.cubic * up)
        with np.errstate(invalid="ignore"):
            b = np.where(up > 0, up / (half + root), 0.0)
        return b / self.beta

    def of_sample(self, weights: Array) -> Array:
        """The distance that the sample weights (R, K) or (K,) predict."""
        return self.distance(as_array(weights, "weights") @ self.influence)

    def quantile(self, n: float, level: float) -> float:
        """The quantile of ||theta_n - theta_ref|| at n pairs; 0 up to the level 1/2."""
        return float(self.distance(self.spread * ndtri(level) / math.sqrt(n)))

    def root_mean_square(self, n: float) -> float:
        """(E ||theta_n - theta_ref||²)^(1/2) at n pairs, by the trapezoidal rule."""
        z = np.linspace(0, 12, _NODES)
        density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        squares = self.distance(self.spread * z / math.sqrt(n)) ** 2
        return math.sqrt(float(np.trapezoid(density * squares, z)))

    def draw(self, n: float, count: int, rng: np.random.Generator) -> Array:
        """(count, d) draws of theta_n - theta_ref at n pairs."""
        z = rng.standard_normal(count) / math.sqrt(n)
        return self.distance(self.spread * z)[:, None] * self.direction


def free_edge(u: ArrayLike, p: ArrayLike | None = None, *, beta: float, power: int = 2) -> EdgeLaw:
    """W1 or W2 with free features at its collapse radius, ||E u||/2 or ||E u||.

    e = E u/||E u||, i = e.u - ||E u||; q = E (e.u)² for W1 and Var(e.u) for W2. Theorem F4,
    docs/theorems/collapse-edge.md; derived.

    Args:
        u: (K, d) signed feature differences (2y-1)(psi1-psi2), the atoms.
        p: (K,) their probabilities; None: 1/K each.
        beta: of the loss.
        power: 1 or 2, the order of the distance.

    Returns:
        An `EdgeLaw`; its radius is in the unit of u.

    Raises:
        ValueError: a power that is neither, features with mean 0, or W2 with features that do not
            vary along their mean.

    >>> law = free_edge([[1.0], [-1.0]], [0.8, 0.2], beta=1.0)
    >>> round(law.radius, 6), law.exponent
    (0.6, -0.5)
    >>> round(law.quantile(10_000, 0.975), 4)  # 2 z/(beta sd sqrt(n)), sd = 0.8
    0.049
    """
    if power not in (1, 2):
        raise ValueError(
            f"power must be 1 or 2, got {power!r}: Wasserstein balls of other orders are not"
            " implemented."
        )
    atoms, mass, size, e = _mean(u, p)
    beta = check_scale("beta", beta, "It scales the log-ratio in the margin.")
    along = atoms @ e
    q = float(mass @ along**2) if power == 1 else float(mass @ (along - size) ** 2)
    if q <= 1e-14 * size**2:
        raise ValueError(
            f"the features do not vary along their mean: Var(e.u) = {q:.3g}. Then W2 at its"
            " collapse radius moves every pair onto 0 and no policy is preferred. Take W1, the KL"
            " ball, or features that vary."
        )
    return EdgeLaw(size / 2 if power == 1 else size, e, along - size, mass, q, 0.0, beta)


def norm_penalty_edge(u: ArrayLike, p: ArrayLike | None = None, *, beta: float) -> EdgeLaw:
    """Algorithm 1 (penalty: the norm of the gradient) at the strength ||E u||, from where on
    theta_ref is a local minimum.

    e and i as for `free_edge`; q = Var(e.u) - ||E u||² and, with v = u - (e.u) e, 16 c = ||E u||
    Var(e.u) - ||Cov(e.u, v)||²/||E u||, what turning away from e gains. At q = 0 the rate is
    n^-1/4; near it the law passes from the one to the other, as `EdgeLaw.distance` does. It is the
    law of the minimiser near theta_ref: the objective is not convex and may have another. Theorem
    F4b, docs/theorems/collapse-edge.md; derived. Arguments as `free_edge`.

    Raises:
        ValueError: features with mean 0, or q < 0, or q = 0 and c <= 0: then the objective falls
            away from theta_ref at the strength ||E u||, and the minimiser is elsewhere.

    >>> import math
    >>> half = (1 + math.sqrt(0.5)) / 2
    >>> law = norm_penalty_edge([[1.0], [-1.0]], [half, 1 - half], beta=1.0)
    >>> law.exponent, round(law.root_mean_square(1e8) * 100, 3)  # (16 E max(0, N)/3)^(1/2)
    (-0.25, 1.459)
    """
    atoms, mass, size, e = _mean(u, p)
    beta = check_scale("beta", beta, "It scales the log-ratio in the margin.")
    along = atoms @ e
    variance = float(mass @ (along - size) ** 2)
    q = variance - size**2
    if abs(q) <= 1e-12 * size**2:
        q = 0.0
    across = (mass * (along - size)) @ (atoms - np.outer(along, e))
    cubic = (size * variance - float(across @ across) / size) / 16
    if q < 0 or (q == 0 and cubic <= 0):
        raise ValueError(
            f"at the strength ||E u|| = {size:.6g} the objective of Algorithm 1 falls away from"
            f" theta_ref (q = {q:.3g}, c = {cubic:.3g}), so that its minimiser is not near it and"
            " has no law here. Use a larger strength, or the exact W2 ball."
        )
    return EdgeLaw(size, e, along - size, mass, q, max(cubic, 0.0), beta)


def kl_edge(u: ArrayLike, p: ArrayLike | None = None, *, beta: float) -> EdgeLaw:
    """KLDPO at its collapse radius min {KL(Q||P) : E_Q u = 0}.

    Q = e^{xi.u} P/E e^{xi.u} is the law nearest to P with E_Q u = 0; e = -xi/||xi||,
    i = (1 - dQ/dP)/||xi||, q = E_Q (e.u)². The law lives on the ray R+ e. Theorem F4,
    docs/theorems/collapse-edge.md; derived. Arguments as `free_edge`.

    Returns:
        An `EdgeLaw`; its radius is in nats.

    Raises:
        ValueError: no law on the atoms has E_Q u = 0 with positive weights (then the ball collapses
            at another kind of edge, or never), or E u = 0 already.

    >>> law = kl_edge([[1.0], [-1.0]], [0.8, 0.2], beta=1.0)
    >>> import math
    >>> round(math.exp(law.radius), 6)  # 1/(2 sqrt(0.8 0.2))
    1.25
    """
    atoms, mass, _, _ = _mean(u, p)
    beta = check_scale("beta", beta, "It scales the log-ratio in the margin.")
    xi, q = _centring_tilt(atoms, mass)
    length = float(np.linalg.norm(xi))
    e = -xi / length
    ratio = np.divide(q, mass, out=np.zeros_like(q), where=mass > 0)
    # KL(Q||P) = xi.E_Q u - log E e^{xi.u} and E_Q u = 0
    radius = -_log_mean(mass, atoms @ xi)
    return EdgeLaw(radius, e, (1 - ratio) / length, mass, float(q @ (atoms @ e) ** 2), 0.0, beta)


# ---------------------------------------------------------------------------------------- the atoms
def _mean(u: ArrayLike, p: ArrayLike | None) -> tuple[Array, Array, float, Array]:
    """Atoms (K, d), probabilities (K,), ||E u|| and its direction."""
    atoms = as_array(u, "u")
    if atoms.ndim != 2 or atoms.size == 0 or not np.isfinite(atoms).all():
        raise ValueError(
            f"u must be (K, d) finite numbers, got shape {atoms.shape}. One row an atom."
        )
    mass = (
        np.full(len(atoms), 1 / len(atoms)) if p is None else check_probability("p", p, len(atoms))
    )
    mean = mass @ atoms
    size = float(np.linalg.norm(mean))
    if size <= 1e-14 * float(np.abs(atoms).max()):
        raise ValueError(
            "E u = 0: every radius collapses, and there is no edge. Look at the labels: they agree"
            " with no direction of the features."
        )
    return atoms, mass, size, mean / size


def _log_mean(p: Array, x: Array) -> float:
    """log E e^x."""
    top = float(x.max())
    return top + math.log(float(p @ np.exp(x - top)))


def _centring_tilt(u: Array, p: Array) -> tuple[Array, Array]:
    """xi (d,) and q (K,) ∝ p e^{xi.u} with E_q u = 0: the minimum of the convex log E e^{xi.u}, by
    Newton's method with halving."""
    xi, value = np.zeros(u.shape[1]), 0.0
    for _ in range(_STEPS):
        x = u @ xi
        q = p * np.exp(x - x.max())
        q /= q.sum()
        mean = q @ u
        if np.linalg.norm(mean) <= 1e-14 * float(np.abs(u).max()):
            return xi, q
        centred = u - mean
        step = -np.linalg.pinv((q[:, None] * centred).T @ centred, rcond=1e-12) @ mean
        fall, share = -float(mean @ step), 1.0
        # where the value falls by less than its rounding the full step is the right one
        while fall > 1e-12 and share > 1e-6:
            if _log_mean(p, u @ (xi + share * step)) <= value - 1e-4 * share * fall:
                break
            share /= 2
        xi = xi + share * step
        value = _log_mean(p, u @ xi)
    raise ValueError(
        "no law with positive weights on the atoms has E_Q u = 0: the pairs agree with some"
        " direction, or nearly, so that the KL ball collapses only where it holds the laws on a"
        " face of them, or never. This law is for 0 inside the convex hull of the features."
    )
