"""The Kullback-Leibler ball."""

import math
from dataclasses import dataclass

from torch import Tensor

from theory.batch import ArrayLike, PairBatch
from theory.duals import kl_ball_dual
from theory.fitting import fit
from theory.functionals import kl_ball
from theory.policy import Array
from theory.results import Fit
from theory.sets.base import AmbiguitySet, AtPolicy, Facts, one_size
from theory.solvers.adversary import WorstCase, reweighted
from theory.solvers.collapse import kl_collapse
from theory.solvers.kl import solve_kl
from theory.solvers.newton import Domain
from theory.solvers.points import Point


@dataclass(frozen=True)
class KL(AmbiguitySet):
    """{Q : KL(Q||P) <= radius}, radius in nats. Eq. (9), arXiv:2502.01930v4.

    >>> KL(0.1).name
    'kl'
    """

    radius: ArrayLike | None = None

    facts = Facts(
        name="kl",
        method="kldpo",
        title="KL",
        about="KLDPO, exact, KL ball",
        source="Eq. (9), arXiv:2502.01930v4",
        unit="nats",
        dual=kl_ball_dual,
        reweights=True,
        objective="kldpo",
        option="rho",
        order=10,
    )

    def solve(self, pairs: PairBatch, beta: float, domain: Domain, size: Tensor) -> Point:
        return solve_kl(pairs, beta, domain, size)

    def collapse(self, pairs: PairBatch) -> Tensor:
        return kl_collapse(pairs)[0]

    def largest(self, least: float) -> float:
        return -math.log(least)

    def range(self, grid: Array) -> Array:
        return 2.0 * grid

    def worst(self, at: AtPolicy) -> WorstCase:
        return reweighted(self.name, kl_ball_dual, at.losses, at.p, one_size(self))

    def worst_value(self, losses: Tensor, size: float, weights: Tensor | None = None) -> Tensor:
        return kl_ball(losses, size, weights)


def kldpo(
    u: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    radius: ArrayLike,
    beta: float,
    bound: float | None = None,
    theta_ref: ArrayLike | None = None,
    tolerance: float = 1e-10,
) -> Fit:
    """min over theta of sup {E_Q l : KL(Q||P) <= radius}, radius in nats. Eq. (9),
    arXiv:2502.01930v4; `dual` is lambda."""
    return fit(
        u,
        KL(radius),
        weights,
        beta=beta,
        bound=bound,
        theta_ref=theta_ref,
        tolerance=tolerance,
    )


MEMBERS = (KL(),)
ESTIMATORS = (kldpo,)
