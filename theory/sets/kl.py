"""The Kullback-Leibler ball."""

import math
from dataclasses import dataclass

import torch
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
from theory.solvers.compiled.batches import Answer, answer
from theory.solvers.kl import solve_kl
from theory.solvers.local import AtFit, LocalProgram, divergence_program, mean_program
from theory.solvers.newton import Domain
from theory.solvers.points import Point


@dataclass(frozen=True)
class KL(AmbiguitySet):
    """{Q : KL(Q||P) <= radius}, radius in nats. Section 4.1, arXiv:2502.01930v4.

    The worst case has the weights q_i ∝ p_i exp(l_i/lambda). Thm. 3 there.

    Args:
        radius: rho >= 0 in nats, a number or (R,) of them; None where only the kind matters.

    Raises:
        ValueError: where it is used, a radius that is missing, negative or not finite.

    >>> from theory import KL, worst_case
    >>> KL(0.1).name
    'kl'
    >>> worst_case([[1.0], [-1.0]], [0.5], KL(1.0), beta=1.0).weights.round(6).tolist()  # > log 2
    [0.0, 1.0]
    """

    radius: ArrayLike | None = None

    facts = Facts(
        name="kl",
        method="kldpo",
        title="KL",
        about="KLDPO, exact, KL ball",
        source="Section 4.1, arXiv:2502.01930v4",
        unit="nats",
        dual=kl_ball_dual,
        reweights=True,
        objective="kldpo",
        option="rho",
        order=10,
    )

    def solve(self, pairs: PairBatch, beta: float, domain: Domain, size: Tensor) -> Point:
        return solve_kl(pairs, beta, domain, size)

    def compiled(
        self, pairs: PairBatch, beta: float, domain: Domain, size: Tensor
    ) -> Answer | None:
        return answer("kl", pairs, beta, domain, size, zero_is_mean=True)

    def collapse(self, pairs: PairBatch) -> Tensor:
        return kl_collapse(pairs).radius

    def largest(self, least: float) -> float:
        return -math.log(least)

    def range(self, grid: Array) -> Array:
        return 2.0 * grid

    def worst(self, at: AtPolicy) -> WorstCase:
        return reweighted(self.name, kl_ball_dual, at.losses, at.p, one_size(self))

    def local(self, at: AtFit) -> LocalProgram:
        rho = one_size(self)
        if rho <= 0:
            return mean_program(at)
        lam, loss = at.multiplier, at.loss(at.w)
        shift = lam * torch.logsumexp(at.p.log() + loss / lam, 0).item()
        return divergence_program(at, torch.expm1, rho, lam, shift)

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
    """min over theta of sup {E_Q l : KL(Q||P) <= radius}, radius in nats. Section 4.1,
    arXiv:2502.01930v4; `dual` is lambda. Other arguments as `fit`.

    Args:
        radius: rho >= 0 in nats, a number or (R,) of them.

    Returns:
        A `Fit`, with a batch axis where u, weights or the radius has one.

    Raises:
        ValueError: as `fit`.

    >>> import math
    >>> from theory import kldpo
    >>> radius = 0.6 * math.log(0.6 / 0.75) + 0.4 * math.log(0.4 / 0.25)
    >>> found = kldpo([[1.0], [-1.0]], [0.75, 0.25], radius=radius, beta=1.0)
    >>> round(found.theta.exp().item(), 6)  # the odds of the worst case (0.6, 0.4)
    1.5
    """
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
