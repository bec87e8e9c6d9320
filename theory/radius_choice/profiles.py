"""Robust Wasserstein profiles: the radii of W1 and W2 that cover theta."""

import math

import numpy as np
from scipy.special import expit

from theory.batch import ArrayLike
from theory.policy import Array
from theory.radius_choice.coverage import allowance, quantile
from theory.radius_choice.gradients import ENTRIES, Moments, moments_of, relative, room_of
from theory.radius_choice.sample import Rows, check_open_unit, direction_of, read_rows

_DENSEST = 4.0  # the density of the moves of the W1 profile against the sample
_ROWS, _W1_DRAWS = 5_000, 4_000  # of the sample, and of G, for the W1 profile: about 2 %


def profile_coverage(
    u: ArrayLike,
    w: ArrayLike,
    *,
    beta: float,
    delta: float,
    power: int = 2,
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    seed: int = 0,
) -> float:
    """Radius of W2, or with power = 1 of W1 (features free, labels fixed), that covers theta: with
    probability 1 - delta some Q in it has E_Q grad l = 0.

    The robust Wasserstein profile R_n(theta) = min {W2(Q, P_n)² : E_Q g = 0}, g = grad_theta l, has
    n R_n(theta*) -> G'(E DD')^-1 G in law, D = dg/du, G ~ N(0, Cov g): Blanchet, Kang and Murthy
    (2019), arXiv:1610.05627, Thm. 3 with rho = 2. The law is taken at w and sampled. The radius is
    of order n^-1/2. With groups or weights Cov g is n times the variance of the mean gradient, as
    in `design_effects`, with the same allowance for few groups.

    For W1 their limit is max {z.G : ||D_i'z|| <= 1 for all i}, which leaves all moving to the
    pairs of the steepest slope. With unbounded features that has no finite sample behind it: a
    sample has one steepest pair, of mass 1/n, and where it is moved far only secants of g count.
    Here no pair is moved more than 4 times as much as if all were: moves q_i D_i'y of a density 0
    <= q_i <= 4, E q = 1, with y = -(E q DD')^-1 G/sqrt(n), meet E_Q g = 0 to first order whatever q
    is, and cost E q|D'y|. One q serves all G: that of the least mean E G'(E q DD')^-1 G, by
    Frank-Wolfe steps. The radius is the quantile of these costs: enough, by at most the 4 and the
    one q more than the least, and at most that of W2, where q = 1. Of more than 5,000 pairs 5,000
    are drawn for q and the cost.
    """
    rows, direction = read_rows(u, weights, groups), direction_of(w)
    check_open_unit("delta", delta)
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2, the order of the distance, got {power!r}.")
    return profile(rows, direction, beta, delta, power, seed, moments_of(rows, direction, beta))


def profile(
    rows: Rows,
    w: Array,
    beta: float,
    delta: float,
    power: int,
    seed: int,
    moments: Moments,
) -> float:
    """`profile_coverage` of a sample that was read."""
    if power == 1:
        return _w1_profile(rows, w, beta, delta, seed, moments.error)
    room = room_of(rows.u, rows.p, expit(-beta * (rows.u @ w)), w, beta)
    # G'AG has the law of sum_k lambda_k chi2_1 with lambda the eigenvalues of A Cov(G)
    sizes = relative(moments.error, room)
    return math.inf if sizes is None else math.sqrt(quantile(sizes, delta, rows.few, seed))


def _w1_profile(rows: Rows, w: Array, beta: float, delta: float, seed: int, error: Array) -> float:
    rng = np.random.default_rng(seed)
    u, p = rows.u, rows.p
    if len(u) > _ROWS:
        part = np.sort(rng.choice(len(u), _ROWS, replace=False))
        u, p = u[part], p[part] / p[part].sum()
    down = expit(-beta * (u @ w))
    sizes = relative(error, room_of(u, p, down, w, beta))
    if sizes is None:
        return math.inf
    density = _density(u, p, down, w, beta, error)
    room = room_of(u, p * density, down, w, beta)
    size, axes = np.linalg.eigh(error)
    normal = rng.standard_normal((len(w), _W1_DRAWS))
    y = np.linalg.solve(room, (axes * np.sqrt(size.clip(min=0))) @ normal)  # (d, draws)
    moved = p * density > 0
    u, mass, down = u[moved], (p * density)[moved], down[moved]
    bend = (beta * (1 - down))[:, None]
    costs = []
    for part in np.array_split(y, max(1, y.shape[1] * len(u) // ENTRIES), axis=1):
        along = bend * (u @ part)
        # |D'y|² = beta² s² (|y|² - 2 beta (1-s) u.y w.y + (beta (1-s) u.y |w|)²)
        square = (part**2).sum(0) - 2 * along * (w @ part) + along**2 * (w @ w)
        costs.append((mass * beta * down) @ np.sqrt(square.clip(min=0)))
    cost = np.concatenate(costs) / np.sqrt(allowance(sizes, rows.few, _W1_DRAWS, rng))
    most = math.sqrt(quantile(sizes, delta, rows.few, seed))  # of W2, and W1 is at most W2
    return min(float(np.quantile(cost, 1 - delta)), most)


def _density(u: Array, p: Array, down: Array, w: Array, beta: float, error: Array) -> Array:
    """(n,) the q of `profile_coverage`: least tr (E q DD')^-1 V with 0 <= q <= 4 and E q = 1.

    The gradient in q_i is -tr M D_i D_i', M = A^-1 V A^-1, which a vertex minimises that takes the
    steepest quarter.
    """
    q = np.ones(len(u))
    for step in range(10):  # within 1 % of the least
        inverse = np.linalg.inv(room_of(u, p * q, down, w, beta))
        m = inverse @ error @ inverse
        pulled, bend = u @ m, beta * (1 - down)
        gain = down**2 * (
            np.trace(m)
            - 2 * bend * (pulled @ w)
            + bend**2 * (w @ w) * np.einsum("ni,ni->n", pulled, u)
        )
        order = np.argsort(-gain, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        vertex = np.zeros(len(u))
        room = (1 / _DENSEST - before).clip(min=0)
        vertex[order] = _DENSEST * np.minimum(1, room / np.maximum(p[order], 1e-300))
        q += (vertex - q) * 2 / (step + 3)
    return q
