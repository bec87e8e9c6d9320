"""KLDPO where the dual variable is 0: the worst case sits on the largest losses. Proposition K,
proofs in docs/theorems/kl-edge.md.

That is so for P(A) >= e^-radius, A the largest losses at theta_rho, of which collapse (all losses
equal log 2) is a case. There are three: the population's stationary worst case leaves some of the
radius; it leaves none, but P(.|A) does; and the knife edge P(A) = e^-radius, where in half of the
samples P_n(.|A) is out of reach, and a share of about n^-1/2 / log n stays off A.
"""

import math
from dataclasses import replace

import numpy as np
from scipy.optimize import brentq, minimize

from theory.bounds.concentration import deviations
from theory.bounds.population import Size, not_stationary, seen_from
from theory.bounds.sharp import SharpBound, _step
from theory.policy import Array

_NONE = SharpBound(math.inf, math.inf, 0.0)
# of the failure probability; the first four have two sides
_PARTS = {"mass": 0.05, "divergence": 0.05, "together": 0.1, "top": 0.2, "gradient": 0.5}
_CURVATURE = 0.1
_EQUAL = 1e-9  # relative, losses that count as equally large


def kl_edge_bound(
    u: Array,
    p: Array,
    theta: Array,
    size: Size,
    *,
    radius: float,
    sample: Array | None = None,
) -> SharpBound:
    """Arguments as `kl_ball_bound`, which calls it. Infinite where P(A) < e^-radius, or no law on A
    is stationary."""
    noise = deviations(size.n, sample, p > 0)
    u, p = u[p > 0], p[p > 0]
    local = seen_from(theta, u, size)
    l, G = local.losses, local.gradients
    top = l >= l.max() - _EQUAL * (1 + l.max())
    mass_top = float(p[top].sum())
    if -math.log(mass_top) > radius * (1 + 1e-9) + 1e-12:
        return _NONE
    q = np.zeros_like(p)
    q[top] = _stationary(G[top], p[top], theta, size.bound)
    g = q @ G
    r, log_r = q / p, np.log(np.where(q > 0, q / p, 1.0))
    used = float(q @ log_r)
    if used > radius * (1 + 1e-6) + 1e-9:
        return _NONE
    eigenvalues, vectors = np.linalg.eigh(np.einsum("k,kij->ij", q, local.hessians))
    if eigenvalues[0] <= 1e-14 * eigenvalues[-1]:
        return _NONE
    white, h = vectors / np.sqrt(eigenvalues), float(eigenvalues[0])

    share = {name: math.log(1 / (part * size.delta)) for name, part in _PARTS.items()}
    share = {name: x + (math.log(2) if name != "gradient" else 0.0) for name, x in share.items()}
    mass = noise.mean(p, r, share["mass"])
    lost = noise.matrix_shortfall(
        p,
        r[:, None, None] * (white.T @ local.hessians @ white),
        math.log(len(white) / (_CURVATURE * size.delta)),
    )
    seen = noise.mean(p, top.astype(float), share["top"])
    if mass >= 1 or lost >= 1 or seen >= mass_top:
        return _NONE
    divergence = noise.mean(p, r * (log_r - used), share["divergence"])
    together = noise.mean(p, r * (log_r - used) - (r - 1), share["together"])
    most = used + together + (divergence * mass + mass**2 / 2) / (1 - mass)
    # KL of the sample's P_n(.|A), which is P_n itself where all losses are equal
    highest = 0.0 if top.all() else -math.log(mass_top - seen)
    jump = np.linalg.norm((G - g) @ white, axis=1)
    if most <= radius:  # the population's worst case, reweighted, is within reach
        share_off, away = 0.0, 0.0
    elif highest < min(radius, most):  # after mixing with P_n(.|A)
        share_off, away = (most - radius) / (most - highest), float(jump[top].max())
    elif abs(used + math.log(mass_top)) <= 1e-9:
        odds = math.log(max(1 - mass_top - seen, 1e-300) / (mass_top + seen))
        gap, span = float(l.max() - l[~top].max()), float(np.ptp(l))
        share_off = _left_behind(max(highest - radius, 0.0), odds) * span / gap
        away = float(jump[~top].max())
    else:
        return _NONE
    if share_off >= 1:
        return _NONE
    gradient = (
        noise.vector(p, r[:, None] * (G - g) @ white, share["gradient"]) / (1 - mass)
        + share_off * away
        + not_stationary(g, theta, size.bound) / math.sqrt(h)
    )
    curvature = (1 - share_off) * (1 - lost) / (1 + mass)
    slack = float(l.max() - l[top].min())
    found = _step(gradient, slack, curvature, size.beta, u @ white)
    return replace(found, value=found.value / math.sqrt(h))


def _stationary(G: Array, p: Array, theta: Array, bound: float) -> Array:
    """The law closest to p in KL whose mean of G (K, d) is stationary: an exponential family."""
    norm = float(np.linalg.norm(theta))
    d = G.shape[1]
    basis, ranges = np.eye(d), list[tuple[None, float | None]]([(None, None)] * d)
    if norm >= bound * (1 - 1e-9):  # the ball holds a pull outwards: only one sign of v there
        basis = np.linalg.svd((theta / norm)[None])[2]
        basis[0] = theta / norm
        ranges[0] = (None, 0.0)
    along = G @ basis.T

    def log_mass(v: Array) -> tuple[float, Array]:
        x = along @ v
        weight = p * np.exp(x - x.max())
        total = float(weight.sum())
        return math.log(total) + float(x.max()), weight @ along / total

    found = minimize(
        log_mass,
        np.zeros(d),
        jac=True,
        bounds=ranges,
        method="L-BFGS-B",
        options={"ftol": 1e-16, "gtol": 1e-12, "maxiter": 2000},
    )
    x = along @ found.x
    weight = p * np.exp(x - x.max())
    return np.asarray(weight / weight.sum())


def _left_behind(missing: float, odds: float) -> float:
    """Least e with h(e) + e odds >= missing, h the entropy of a coin: off A with this mass the
    divergence falls by enough. 1 where none is."""

    def gained(e: float) -> float:
        entropy = -e * math.log(e) - (1 - e) * math.log1p(-e) if 0 < e < 1 else 0.0
        return entropy + e * odds - missing

    if missing <= 0:
        return 0.0
    best = 1 / (1 + math.exp(-odds))
    return float(brentq(gained, 1e-300, best)) if gained(best) > 0 else 1.0
