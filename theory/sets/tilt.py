"""The tilt at a temperature, which Algorithm 2 puts in the place of the KL ball."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from theory.batch import ArrayLike, PairBatch, as_float64
from theory.fitting import fit
from theory.functionals import kl_tilt
from theory.results import Fit
from theory.sets.base import AmbiguitySet, AtPolicy, Facts, one_size
from theory.sets.kl import KL
from theory.solvers.adversary import WorstCase, tilt
from theory.solvers.compiled.batches import Answer, answer
from theory.solvers.kl import solve_tilt
from theory.solvers.local import AtFit, LocalProgram
from theory.solvers.newton import Domain
from theory.solvers.points import Point


@dataclass(frozen=True)
class Tilt(AmbiguitySet):
    """tau log E exp(l/tau) at a temperature tau > 0. Algorithm 2, arXiv:2502.01930v4.

    The worst case has the weights q_i ∝ p_i exp(l_i/tau).

    Args:
        temperature: tau > 0 in the unit of the loss, a number or (R,) of them; None where only the
            kind matters.

    Raises:
        ValueError: where it is used, a temperature that is missing, not positive or not finite.

    >>> from theory import Tilt, worst_case
    >>> Tilt(temperature=0.5).size
    0.5
    >>> found = worst_case([[1.0], [-1.0]], [1.0], Tilt(1.0), beta=1.0)
    >>> (found.weights[1] / found.weights[0]).round(6).tolist()  # exp of the difference of losses
    2.718282
    """

    temperature: ArrayLike | None = None

    facts = Facts(
        name="tilt",
        method="kldpo-tilt",
        title="tilt",
        about="KLDPO, practical, temperature tau (Algorithm 2)",
        source="Algorithm 2, arXiv:2502.01930v4",
        size="temperature",
        symbol="tau",
        unit="of the loss",
        exact=False,
        reweights=True,
        grows=False,
        objective="kldpo",
        option="tau",
        order=11,
    )

    def check_size(self, replicates: int, like: Tensor) -> Tensor:
        tau = as_float64(self.size, "temperature")
        if not bool(((tau > 0) & tau.isfinite()).all()):
            raise ValueError(
                f"temperature must be positive and finite, got {self.size}. For the mean use dpo,"
                " for the worst pair a small value."
            )
        return super().check_size(replicates, like)

    def solve(self, pairs: PairBatch, beta: float, domain: Domain, size: Tensor) -> Point:
        return solve_tilt(pairs, beta, domain, size)

    def compiled(
        self, pairs: PairBatch, beta: float, domain: Domain, size: Tensor
    ) -> Answer | None:
        return answer("tilt", pairs, beta, domain, size, dual=False)

    def size_at(self, fraction: float, pairs: PairBatch, **problem: Any) -> float:
        """The dual optimum of the KL ball at the same fraction: the two correspond one to one."""
        ball = KL(KL().size_at(fraction, pairs))
        found = fit(pairs.ut[0].T, ball, pairs.p[0], **problem).dual
        assert found is not None
        return found.item()

    def scaled(self, size: float, factor: float) -> float:
        return size * factor**-0.5  # KL ≈ Var/(2 tau²)

    def worst(self, at: AtPolicy) -> WorstCase:
        return tilt(at.losses, at.p, temperature=one_size(self))

    def local(self, at: AtFit) -> LocalProgram:
        tau = one_size(self)
        c = tau * torch.logsumexp(at.p.log() + at.loss(at.w) / tau, 0)

        def pieces(x: Tensor) -> Tensor:
            return x[-1] + tau * torch.expm1((at.loss(x[:-1]) - x[-1]) / tau)

        return LocalProgram(torch.cat([at.w, c[None]]), pieces)

    def worst_value(self, losses: Tensor, size: float, weights: Tensor | None = None) -> Tensor:
        return kl_tilt(losses, size, weights)


def kldpo_tilt(
    u: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    temperature: ArrayLike,
    beta: float,
    bound: float | None = None,
    theta_ref: ArrayLike | None = None,
    tolerance: float = 1e-10,
) -> Fit:
    """min tau log E exp(l/tau), practical KLDPO with temperature tau > 0. Algorithm 2,
    arXiv:2502.01930v4. Other arguments as `fit`.

    Args:
        temperature: tau > 0 in the unit of the loss, a number or (R,) of them.

    Returns:
        A `Fit`, with a batch axis where u, weights or the temperature has one.

    Raises:
        ValueError: as `fit`, or a temperature that is not positive and finite.

    >>> from theory import kldpo_tilt
    >>> found = kldpo_tilt([[1.0], [-1.0]], [0.9, 0.1], temperature=1.0, beta=1.0)
    >>> round(found.theta.exp().item(), 6)  # tau/(1 + tau) of the log-odds log 9
    3.0
    """
    return fit(
        u,
        Tilt(temperature),
        weights,
        beta=beta,
        bound=bound,
        theta_ref=theta_ref,
        tolerance=tolerance,
    )


MEMBERS = (Tilt(),)
ESTIMATORS = (kldpo_tilt,)
