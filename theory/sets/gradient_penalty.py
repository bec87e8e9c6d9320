"""The gradient penalty, which Algorithm 1 puts in the place of the W2 ball."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from theory.batch import ArrayLike, PairBatch
from theory.fitting import fit
from theory.results import Fit
from theory.sets.base import AmbiguitySet, AtPolicy, Facts, needs_no_losses, one_size
from theory.solvers.adversary import WorstCase, gradient_step
from theory.solvers.collapse import free_collapse
from theory.solvers.compiled.batches import Answer, answer
from theory.solvers.local import AtFit, LocalProgram, mean_program
from theory.solvers.newton import Domain
from theory.solvers.points import Point
from theory.solvers.wasserstein import solve_penalised

NORM = Facts(
    name="gradient",
    method="wdpo-norm",
    title="gradient norm",
    about="WDPO, practical, gradient norm (Algorithm 1)",
    source="Algorithm 1, arXiv:2502.01930v4",
    size="strength",
    unit="of the features",
    exact=False,
    convex=False,
    order=50,
    objective="wdpo",
    option="rho",
)
SQUARED = replace(
    NORM,
    name="gradient-squared",
    order=51,
    method="wdpo-squared",
    title="squared gradient norm",
    about="WDPO, practical, squared gradient norm (released code)",
    unit="of the features squared, per loss",
    source="released code of arXiv:2502.01930v4",
)


@dataclass(frozen=True)
class GradientPenalty(AmbiguitySet):
    """E l + strength (E ||grad_x l||²)^(1/2), or E l + strength E ||grad_x l||² with `squared`.

    Algorithm 1, arXiv:2502.01930v4, and the released code. Neither is convex. The worst case is the
    step along the gradient, of length `strength` in W2.

    Args:
        strength: rho >= 0 in the unit of the features, a number or (R,) of them; None where only
            the kind matters.
        squared: penalise the mean squared norm; then the strength is in the squared unit of the
            features over that of the loss.

    Raises:
        ValueError: where it is used, a strength that is missing, negative or not finite; by
            `worst_case` with `squared`, which is not a worst case.

    >>> from theory import GradientPenalty, worst_case
    >>> GradientPenalty(0.1, squared=True).name
    'gradient-squared'
    >>> found = worst_case([[0.0]], [2.0], GradientPenalty(0.1), beta=1.0)
    >>> round(found.value, 6)  # log 2 + strength ||w||/2
    0.793147
    """

    strength: ArrayLike | None = None
    squared: bool = False

    @property
    def facts(self) -> Facts:
        return SQUARED if self.squared else NORM

    def solve(self, pairs: PairBatch, beta: float, domain: Domain, size: Tensor) -> Point:
        return solve_penalised(pairs, beta, domain, size, self.squared)

    def compiled(
        self, pairs: PairBatch, beta: float, domain: Domain, size: Tensor
    ) -> Answer | None:
        return answer("penalty", pairs, beta, domain, size, self.squared, dual=False)

    def collapse(self, pairs: PairBatch) -> Tensor:
        """||E u||, from where w = 0 is a local minimum of the norm form; also the studies' unit of
        the squared form, which never collapses."""
        return free_collapse(pairs, 2)

    def worst(self, at: AtPolicy) -> WorstCase:
        needs_no_losses(type(self).__name__, at)
        if self.squared:
            raise ValueError(
                "the squared penalty is not a worst case. Use GradientPenalty(strength)."
            )
        return gradient_step(at.u, at.p, at.w, beta=at.beta, radius=one_size(self))

    def local(self, at: AtFit) -> LocalProgram:
        rho = one_size(self)
        if rho <= 0:
            return mean_program(at)

        def squares(w: Tensor) -> Tensor:  # ||grad_x l||²
            return (at.beta * w).square().sum() * torch.sigmoid(-at.beta * (at.u @ w)) ** 2

        if self.squared:
            return LocalProgram(at.w, lambda w: at.loss(w) + rho * squares(w))
        root = (at.p * squares(at.w)).sum().sqrt()

        def pieces(x: Tensor) -> Tensor:  # the root of a mean is the least of these over x[-1]
            return at.loss(x[:-1]) + rho * (x[-1] + squares(x[:-1]) / x[-1]) / 2

        return LocalProgram(torch.cat([at.w, root[None]]), pieces)


def gradient_penalty(
    u: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    strength: ArrayLike,
    squared: bool = False,
    beta: float,
    bound: float | None = None,
    theta_ref: ArrayLike | None = None,
    tolerance: float = 1e-10,
) -> Fit:
    """min E l + strength (E ||grad_x l||²)^(1/2), or E l + strength E ||grad_x l||² with `squared`
    (the released code).

    Algorithm 1, arXiv:2502.01930v4. Neither is convex: the best of several starts is returned.
    Other arguments as `fit`.

    Args:
        strength: rho >= 0 in the unit of the features, a number or (R,) of them.
        squared: penalise the mean squared norm; then the strength is in the squared unit of the
            features over that of the loss.

    Returns:
        A `Fit`, with a batch axis where u, weights or the strength has one; its `gap` only measures
        stationarity.

    Raises:
        ValueError: as `fit`.

    >>> from theory import gradient_penalty
    >>> found = gradient_penalty([[1.0], [-1.0]], [0.75, 0.25], strength=[0.0, 2.0], beta=1.0)
    >>> (found.theta[:, 0].exp().numpy().round(4) + 0.0).tolist()  # plain DPO, and the reference
    [3.0, 1.0]
    """
    return fit(
        u,
        GradientPenalty(strength, squared),
        weights,
        beta=beta,
        bound=bound,
        theta_ref=theta_ref,
        tolerance=tolerance,
    )


MEMBERS = (GradientPenalty(), GradientPenalty(squared=True))
ESTIMATORS = (gradient_penalty,)
