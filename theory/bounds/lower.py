"""Lower bounds: what no estimator of theta_rho can do, whatever it computes from n pairs.

G1: near any population the mean squared error is at least the limit variance of the plug-in, up to
the size of the neighbourhood; by van Trees' inequality, explicit on finitely many atoms. G2: over
all populations, without a lower bound on the dual variable, KLDPO's target cannot be estimated at
any rate n^-a: 1/log² n. G3: nor can its objective: 1/log n. Proofs in
docs/theorems/lower-bounds.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit

from theory.bounds.papers import check_constants, largest_loss
from theory.bounds.uniform import uniform_kl
from theory.checks import check_positive
from theory.policy import Array

# nodes of Gauss' rule in each direction of the neighbourhood, for 1, 2, 3 and 4 of them: six leave
# an error of 4e-4 where the neighbourhood all but fills the simplex, twelve none that is seen
_NODES = (24, 12, 8, 6)


# ------------------------------------------------------------------------------ G1: a neighbourhood
@dataclass(frozen=True)
class LocalBound:
    """Lower bound on the largest E ||T - theta||² over the populations `weights`, for every T.

    value: the bound, in the squared unit of theta. limit: tr V/n, its value for a large
    neighbourhood in large samples. weights: (N, K) populations of the neighbourhood, its centre and
    corners first. radius: c, the neighbourhood reaches c/sqrt(n) in each direction.
    """

    value: float
    limit: float
    weights: Array
    radius: float


def local_minimax(
    target: Callable[[Array], Array], p: Array, influence: Array, n: float, c: float
) -> LocalBound:
    """Theorem G1: van Trees' inequality over p_e = p (1 + sum_j e_j s_j), |e_j| <= c/sqrt(n).

    s_j are the standardised components of the influence function in the eigenvectors of its
    covariance V. With independent priors ∝ cos²(pi e/(2h)), h = c/sqrt(n), of information pi²/h²,

        max over e of E_e ||T - theta(p_e)||² >= sum_j (E d theta_j/d e_j)²/(n E I_jj + pi²/h²),

    which is about tr V/(n (1 + pi²/c²)). It holds for every direction s, so that errors of the
    influence function make it smaller, not false. Van Trees (1968); Gill and Levit (1995).

    Args:
        target: populations (N, K) -> theta (N, d), such as a fit in the population.
        p: (K,) the population at the centre.
        influence: (K, d) influence function of the target at p on the atoms; see
            `influence_by_differences`.
        n: pairs.
        c: half width of the neighbourhood, in units of n^-1/2; the larger, the sharper.

    Raises:
        ValueError: a neighbourhood that leaves the simplex (p_e < 0 somewhere: take a smaller c or
            a larger n), a degenerate influence function, or too many dimensions for the quadrature.

    >>> import numpy as np
    >>> p = np.array([0.5, 0.5])  # the mean of ±1
    >>> found = local_minimax(lambda q: q[:, :1] - q[:, 1:], p, np.array([[1.0], [-1.0]]), 1e4, 10)
    >>> round(found.value * 1e4, 3), round(1 / (1 + np.pi**2 / 100), 3)
    (0.909, 0.91)
    """
    check_constants(n)
    check_positive("c", c, "It is the half width of the neighbourhood.")
    V = influence.T @ (p[:, None] * influence)
    values, vectors = np.linalg.eigh(V)
    if values[-1] <= 0:
        raise ValueError(
            "the influence function vanishes: the target does not depend on the population, as at"
            " and beyond collapse. There is nothing to estimate."
        )
    kept = values > 1e-10 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    if len(values) > len(_NODES):
        raise ValueError(
            f"the quadrature is over all d directions: d = {len(values)} is above {len(_NODES)}."
            " Bound fewer components of the target."
        )
    scores = influence @ vectors / np.sqrt(values)  # (K, d), centred with variance one under p
    scores = scores - p @ scores
    h = c / math.sqrt(n)
    if h * np.abs(scores).sum(1).max() >= 1:
        raise ValueError(
            f"the neighbourhood |e| <= {h:.3g} leaves the simplex: the scores reach"
            f" {np.abs(scores).sum(1).max():.3g}. Take a smaller c (now {c:g}) or a larger n (now"
            f" {n:g})."
        )
    t, w = np.polynomial.legendre.leggauss(_NODES[len(values) - 1])
    grids = np.meshgrid(*[t] * len(values), indexing="ij")
    e = np.stack([g.ravel() for g in grids], 1)  # in units of h
    mass = np.prod(np.meshgrid(*[w] * len(values), indexing="ij"), axis=0).ravel()
    prior = np.prod(np.cos(np.pi * e / 2) ** 2, axis=1) * mass
    around = p * (1 + h * e @ scores.T)
    theta = target(around) @ vectors
    bound = 0.0
    for j in range(len(values)):
        # E d theta_j/d e_j = -int theta_j d log prior/d e_j: no derivative of the target is needed
        slope = float(prior @ (theta[:, j] * np.pi * np.tan(np.pi * e[:, j] / 2))) / h
        information = float(prior @ (p * scores[:, j] ** 2 / (1 + h * e @ scores.T)).sum(1))
        bound += slope**2 / (n * information + (math.pi / h) ** 2)
    corners = np.stack(np.meshgrid(*[[-1.0, 1.0]] * len(values), indexing="ij"), -1)
    special = np.concatenate([np.zeros((1, len(values))), corners.reshape(-1, len(values))])
    return LocalBound(
        bound,
        float(values.sum()) / n,
        np.concatenate([p * (1 + h * special @ scores.T), around]),
        c,
    )


def influence_by_differences(
    target: Callable[[Array], Array], p: Array, step: float = 1e-4
) -> Array:
    """Influence function (K, d) of a target at p, by central differences.

    Along p -> p + e (delta_k - p), e = ±step min p. It needs a target that is differentiable at p;
    at kinks (WDPO on atoms) the differences depend on the step.
    """
    size = step * float(p[p > 0].min())
    toward = np.eye(len(p)) - p
    up, down = target(p + size * toward), target(p - size * toward)
    influence = (up - down) / (2 * size)
    influence[p == 0] = 0.0
    return influence - p @ influence


# ---------------------------------------------------------------------- G2: no rate over all worlds
@dataclass(frozen=True)
class SlowPair:
    """Two populations on the same three atoms, which n pairs cannot tell apart, with different
    targets.

    u: (3, 2) signed feature differences. common, rare: (3,) probabilities; the third atom has
    probability 0, or share/n. angles: of their targets B (cos f, sin f), the first 0. dual: lambda*
    in the rare population. gap: ||theta_rho(rare) - theta_rho(common)||. chance: lower bound on the
    larger of the two probabilities that ||T - theta_rho|| >= gap/2, for every estimator T; the
    larger of the two mean errors is at least gap * chance.
    """

    u: Array
    common: Array
    rare: Array
    angles: tuple[float, float]
    dual: float
    gap: float
    chance: float

    @property
    def distance(self) -> float:
        """The bound on max E ||T - theta_rho||."""
        return self.gap * self.chance


def slow_pair(
    n: float, *, radius: float, beta: float = 1.0, bound: float = 1.0, share: float = 1.0
) -> SlowPair:
    """Theorem G2: u = (1, 1/2), (1, -1/2) with probability 1/2 each, and (-1, 1) with share/n or
    never.

    Where the third atom is missing (probability (1 - share/n)^n, about e^-share) the two samples
    have the same law. Both populations satisfy Assumption 2 of arXiv:2502.01930v4 with a constant
    that does not depend on n, but lambda* tends to 0 as 1/log n.

    Args:
        n: pairs, at least 100.
        radius: of the KL ball in nats, in (0, log 2).
        beta, bound: of the loss and of Theta; theta_ref = 0.
        share: expected number of rare pairs in the sample.

    Raises:
        ValueError: a radius out of range, or n too small for the targets to be on the sphere.

    >>> pair = slow_pair(1e10, radius=0.1)
    >>> round(pair.chance, 4), 3 < pair.gap * math.log(1e10) ** 2 < 4
    (0.2689, True)
    """
    check_constants(n, beta=beta, bound=bound)
    if not 0 < radius < math.log(2):
        raise ValueError(
            f"radius must lie in (0, log 2), got {radius}: from log 2 on the ball holds the point"
            " mass on one atom, and Assumption 2 fails."
        )
    if n < 100:
        raise ValueError(f"n must be at least 100, got {n:g}: the rare pairs are not rare.")
    _check_share(share, n, 99.0)
    u = np.array([[1.0, 0.5], [1.0, -0.5], [-1.0, 1.0]])
    mass = share / n
    rare = np.array([(1 - mass) / 2, (1 - mass) / 2, mass])

    def slope(angle: float) -> float:
        """d L/d angle on the sphere: the mean of the derivatives under the worst case."""
        along = bound * np.array([math.cos(angle), math.sin(angle)])
        turn = bound * np.array([-math.sin(angle), math.cos(angle)])
        margin = beta * u @ along
        q = _worst(np.logaddexp(0, -margin), rare, radius)[0]
        return float(q @ (-beta * expit(-margin) * (u @ turn)))

    if not slope(0.0) < 0 < slope(math.pi / 4):
        raise ValueError(
            f"the target of the rare population is not between the angles 0 and 45° at n = {n:g}:"
            " take a larger n or a smaller radius."
        )
    angle = float(brentq(slope, 0.0, math.pi / 4, xtol=1e-15, rtol=1e-13))
    along = np.array([math.cos(angle), math.sin(angle)])
    margin = beta * bound * u @ along
    q, dual = _worst(np.logaddexp(0, -margin), rare, radius)
    if not q @ (-beta * expit(-margin) * (u @ along)) < 0:
        raise ValueError(
            f"at n = {n:g} the target of the rare population is inside the sphere: take a larger n"
            " or a smaller radius."
        )
    same = math.exp(n * math.log1p(-mass))
    return SlowPair(
        u,
        np.array([0.5, 0.5, 0.0]),
        rare,
        (0.0, angle),
        dual,
        2 * bound * math.sin(angle / 2),
        same / (1 + same),
    )


def slow_constant(*, radius: float, beta: float = 1.0, bound: float = 1.0) -> float:
    """c_0 = lim gap log² n = 4 rho B sigma(beta B)/sigma(-beta B)² of `slow_pair`; the limit is
    reached like loglog n/log n.

    >>> round(slow_constant(radius=0.1), 4)
    4.0429
    """
    m = beta * bound
    return float(4 * radius * bound * expit(m) / expit(-m) ** 2)


def _worst(losses: Array, p: Array, radius: float) -> tuple[Array, float]:
    """Weights and lambda of the KL ball for three atoms, by its defining equation; log-weights, so
    that a mass of 1e-300 does no harm. p > 0."""
    log_p, gap = np.log(p), losses.max() - losses

    def tilt(t: float) -> tuple[Array, float]:
        x = log_p - t * gap
        x -= x.max() + math.log(np.exp(x - x.max()).sum())
        q = np.exp(x)
        return q, float(q @ (x - log_p))

    high = 1.0
    while tilt(high)[1] < radius:
        high *= 2
        if high > 1e12:
            raise ValueError(
                f"the worst case of radius {radius:g} sits on the largest loss: lambda = 0."
            )
    t = float(brentq(lambda t: tilt(t)[1] - radius, 0.0, high, xtol=1e-14, rtol=1e-14))
    return tilt(t)[0], 1 / t


# ---------------------------------------------------------------------------- G3: the objective
def deviation_floor(n: float, *, radius: float, spread: float, share: float = 1.0) -> float:
    """Theorem G3: |L_n - L| at a fixed theta is at least this with probability about e^-share.

    Two losses that are `spread` apart, the larger with probability share/n: where the sample does
    not hold it, L_n is the smaller loss, while L is above it by spread q, where
    KL((1 - q, q)||(1 - p, p)) = radius. It is ~ spread radius/log n.

    Args:
        n: pairs. radius: in nats, positive. spread: difference of the losses. share: expected
            number of the larger loss in a sample.

    Raises:
        ValueError: a radius or spread that is not positive, or a share outside of (0, n).

    >>> round(deviation_floor(1e6, radius=0.1, spread=1.0), 5)
    0.01192
    """
    check_constants(n)
    check_positive("radius", radius, "A ball of radius 0 has no robust part.")
    check_positive("spread", spread, "Equal losses do not deviate.")
    _check_share(share, n)
    log_p = math.log(share) - math.log(n)
    log_rest = math.log1p(-math.exp(log_p))

    def excess(log_q: float) -> float:
        q = math.exp(log_q)
        return q * (log_q - log_p) + (1 - q) * (math.log1p(-q) - log_rest) - radius

    top = -1e-15
    if log_p >= top or excess(top) <= 0:  # the ball holds the point mass on the larger loss
        return spread
    return spread * math.exp(brentq(excess, log_p, top, xtol=1e-14, rtol=1e-14))


def _check_share(share: float, n: float, least: float = 1.0) -> None:
    if not 0 < share < n / least:
        raise ValueError(
            f"share must lie between 0 and {n / least:g}, got {share} at n = {n:g}: it is how many"
            " rare pairs a sample is expected to hold."
        )


def deviation_ceiling(
    n: float, d: int, *, beta: float, bound: float, radius: float, delta: float
) -> float:
    """Theorem C's KL part at its best cut: `theory.bounds.uniform.uniform_kl` minimised over
    dual_low. It is ~ 2 K radius/log n, K the bound of the loss: within a factor 2 K/spread of
    `deviation_floor`.

    >>> low = deviation_floor(1e100, radius=0.1, spread=4.0)
    >>> 2 < deviation_ceiling(1e100, 2, beta=1.0, bound=1.0, radius=0.1, delta=0.05) / low < 3
    True
    """
    K = largest_loss(beta, bound)

    def width(log_exponent: float) -> float:
        cut = K * math.exp(-log_exponent)
        return uniform_kl(n, d, beta=beta, bound=bound, radius=radius, dual_low=cut, delta=delta)

    # by the exponent K/dual_low, up to which e^{K/dual_low} is a number; falling, then rising
    grid = np.linspace(math.log(0.01), math.log(699.0), 60)
    best = int(np.argmin([width(x) for x in grid]))
    near = (float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)]))
    found = minimize_scalar(width, bounds=near, method="bounded", options={"xatol": 1e-8})
    return float(found.fun)
