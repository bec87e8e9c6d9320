"""Seeded problems for comparing solvers: random ones of every shape, and the corners where solvers
go wrong.

    for data in DATA:
        for kind, radius in radii(data, "kl"): ...

Every kind of data meets every beta, and every kind of radius many kinds of data.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tests.jitter import order
from theory.collapse import collapse_radius
from theory.duals import chi2_ball_dual, cvar_dual, kl_ball_dual, total_variation_dual
from theory.sets import SETS, AmbiguitySet
from theory.solvers.adversary import WorstCase, reweighted
from theory.twins import certified, collapse_radii, programs
from theory.twins.certified import Array

BALLS = ("kl", "w1-finite", "w2-finite", "w1-free", "w1-label", "w2-free")
BETAS = (0.01, 0.1, 1.0, 3.0, 10.0)
KINDS = (
    "random",
    "line",
    "wide",
    "separable",
    "one-label",
    "duplicates",
    "zeros",
    "uniform",
    "symmetric",
    "reference",
)
# A factor is relative to the collapse radius; where that is infinite or 0 the second number is the
# radius itself.
RADII = {
    "zero": (0.0, 0.0),
    "tiny": (None, 1e-8),
    "small": (0.05, 0.03),
    "half": (0.5, 0.3),
    "most": (0.9, 1.0),
    "almost": (0.999, 2.0),
    "collapse": (1.0, 4.0),
    "beyond": (1.5, 0.1),
}
COUNT = 50


REWEIGHTING = {
    "kl": kl_ball_dual,
    "chi2": chi2_ball_dual,
    "cvar": cvar_dual,
    "tv": total_variation_dual,
}


def reweighting(name: str, losses: Array, p: Array, size: float) -> WorstCase:
    """The worst weights in a set of `REWEIGHTING`, at any losses."""
    return reweighted(name, REWEIGHTING[name], losses, p, size)


def example_size(set: AmbiguitySet, excess: float) -> float:
    """A size beyond the smallest, for sets that are sized from 1 on as well; a share is itself."""
    return excess + (set.smallest if set.facts.grows else 0.0)


def collapse_of(
    name: str,
    u: Array,
    p: Array | None = None,
    *,
    distance: Array | None = None,
    label_cost: float | None = None,
) -> Tensor:
    """The collapse radius of a set by its name, in a metric."""
    return collapse_radius(u, SETS[name].in_metric(distance, label_cost), p)


@dataclass(frozen=True)
class Data:
    """Atoms u (n, d) with probabilities p (n,), their metric (n, n), and the constants of the
    problem."""

    name: str
    u: Array
    p: Array
    distance: Array
    label_cost: float
    beta: float
    bound: float
    theta_ref: Array | None


def _atoms(kind: str, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """psi (n, 2, d), labels (n,) and probabilities (n,); with both labels of each pair unless all
    labels are equal."""
    d = {"line": 1, "wide": 5}.get(kind, int(rng.integers(1, 6)))
    pairs = {"wide": 2}.get(kind, int(rng.integers(2, 16)))
    psi = rng.normal(size=(pairs, 2, d)) / np.sqrt(d)
    if kind in ("separable", "one-label"):  # the first feature tells the preferred one
        psi = np.where((psi[:, 0, 0] > psi[:, 1, 0])[:, None, None], psi, psi[:, ::-1])
    if kind == "duplicates":
        psi = np.concatenate([psi[: max(1, pairs // 2)]] * 2)
    pairs = len(psi)
    if kind == "one-label":
        return psi, np.ones(pairs), rng.dirichlet(np.ones(pairs))
    psi, y = np.concatenate([psi, psi]), np.repeat([1.0, 0.0], pairs)
    p = rng.dirichlet(np.ones(2 * pairs))
    if kind == "separable":  # the other label is possible but not observed
        p = p * y
    elif kind == "zeros":
        p = np.where(rng.random(2 * pairs) < 0.4, 0.0, p)
        p[0] += 0.1
    elif kind == "uniform":
        p = np.ones(2 * pairs)
        p[: pairs // 2 + 1] = 3.0  # as counts; equal ones would make every robust solution collapse
    elif kind == "symmetric":
        p[pairs:] = p[:pairs]
    return psi, y, p / p.sum()


def _data(index: int) -> Data:
    rng = np.random.default_rng([2502, index])
    kind = KINDS[index % len(KINDS)]
    beta = BETAS[(index + index // len(KINDS)) % len(BETAS)]
    psi, y, p = _atoms(kind, rng)
    u = (2 * y - 1)[:, None] * (psi[:, 0] - psi[:, 1])
    label_cost = float(rng.choice([0.1, 0.5, 2.0]))
    flat = psi.reshape(len(psi), -1)
    distance = np.linalg.norm(flat[:, None] - flat[None], axis=-1) + label_cost * (
        y[:, None] != y[None]
    )
    bound = float(rng.uniform(1.0, 6.0))
    direction = rng.normal(size=u.shape[1])
    at_reference = kind == "reference" or index % 4 == 3
    theta_ref = (
        0.5 * bound * rng.random() * direction / np.linalg.norm(direction) if at_reference else None
    )
    name = f"{index:02d}-{kind}-beta{beta:g}-n{len(u)}-d{u.shape[1]}" + (
        "-ref" if at_reference else ""
    )
    k = order(len(u))  # rows, weights and distances together
    u, p, distance = u[k], p[k], distance[np.ix_(k, k)]
    return Data(name, u, p, distance, label_cost, beta, bound, theta_ref)


DATA = tuple(_data(index) for index in range(COUNT))


def collapse(data: Data, ball: str) -> float:
    """The collapse radius of a ball of `BALLS`, by the programs."""
    if ball == "kl":
        return collapse_radii.kl_collapse(data.u, data.p)
    if ball == "w1-label":
        return collapse_radii.label_collapse(data.u, data.p, data.label_cost)
    power = int(ball[1])
    if ball.endswith("finite"):
        return collapse_radii.wasserstein_collapse(data.u, data.p, data.distance, power)
    return collapse_radii.free_collapse(data.u, data.p, power)


def radii(data: Data, ball: str) -> list[tuple[str, float]]:
    """Two kinds of radius for each data set, in turn; (kind, radius)."""
    index = int(data.name[:2])
    edge = collapse(data, ball)
    chosen = []
    for kind in (list(RADII)[(3 * index + index // 10 + shift) % len(RADII)] for shift in (0, 3)):
        factor, absolute = RADII[kind]
        chosen.append(
            (kind, absolute if factor is None or not 1e-12 < edge < np.inf else factor * edge)
        )
    return chosen


def solve(data: Data, ball: str, radius: float) -> certified.Program:
    """The program of a ball of `BALLS`, of "tilt" (radius is the temperature) or of "dpo"."""
    common = {"beta": data.beta, "bound": data.bound, "theta_ref": data.theta_ref}
    if ball == "dpo":
        return programs.dpo(data.u, data.p, **common)
    if ball == "kl":
        return programs.kldpo(data.u, data.p, radius=radius, **common)
    if ball == "tilt":
        return programs.kldpo_tilt(data.u, data.p, temperature=radius, **common)
    power = int(ball[1])
    if ball.endswith("finite"):
        return programs.wdpo_finite(
            data.u, data.p, distance=data.distance, power=power, radius=radius, **common
        )
    label_cost = data.label_cost if ball == "w1-label" else None
    return programs.wdpo_free(
        data.u, data.p, power=power, radius=radius, label_cost=label_cost, **common
    )
