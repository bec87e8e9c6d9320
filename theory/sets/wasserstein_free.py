"""Wasserstein balls whose distributions may put features anywhere, with fixed or moving labels."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from theory.batch import ArrayLike, PairBatch
from theory.checks import check_label_cost
from theory.fitting import fit
from theory.results import Fit
from theory.sets.base import AmbiguitySet, AtPolicy, Facts, needs_no_losses, one_size
from theory.sets.wasserstein_atoms import check_power
from theory.solvers.adversary import WorstCase, free
from theory.solvers.collapse import free_collapse, label_collapse
from theory.solvers.compiled.batches import Answer, answer
from theory.solvers.local import AtFit, LocalProgram, mean_program
from theory.solvers.newton import Domain
from theory.solvers.points import Point
from theory.solvers.wasserstein import solve_w1, solve_w1_label, solve_w2
from theory.solvers.wells import quadratic_transport

SOURCE = "Section 4.1, arXiv:2502.01930v4; Shafieezadeh-Abadeh et al. (2015), Thm. 1"
FIXED = {
    power: Facts(
        name=f"w{power}-free",
        method=f"wdpo-w{power}-free",
        title=f"W{power} with free features",
        about=f"WDPO, exact, W{power} ball, free features, fixed labels",
        source=SOURCE,
        unit="of the features",
        order=38 + 2 * power,
    )
    for power in (1, 2)
}
MOVING = Facts(
    name="w1-label",
    method="wdpo-w1-label",
    title="W1 with free features and labels",
    about="WDPO, exact, W1 ball, free features and labels",
    source=SOURCE,
    unit="of the features",
    order=41,
)


@dataclass(frozen=True)
class WassersteinFree(AmbiguitySet):
    """{Q : W_p(Q, P) <= radius} with features anywhere in R^d. Section 4.1, arXiv:2502.01930v4.

    Solved as Shafieezadeh-Abadeh et al. (2015), Thm. 1, for p = 1.

    Args:
        radius: rho >= 0 in the unit of the features, a number or (R,) of them; None where only the
            kind matters.
        power: p, 1 or 2.
        label_cost: kappa > 0, at which a label flips (p = 1 only); None: labels are fixed.

    Raises:
        ValueError: another power, or a label cost with p = 2 or that is not positive; where it is
            used, a radius that is missing, negative or not finite.

    >>> from theory import WassersteinFree, worst_case
    >>> WassersteinFree(0.1, power=1, label_cost=1.0).name
    'w1-label'
    >>> found = worst_case([[0.0]], [2.0], WassersteinFree(0.1), beta=1.0)
    >>> round(found.value, 6), found.attained  # log 2 + radius beta ||w||, only in the limit
    (0.893147, False)
    """

    radius: ArrayLike | None = None
    power: int = 1
    label_cost: float | None = None

    def __post_init__(self) -> None:
        check_power(self.power)
        if self.label_cost is None:
            return
        if self.power != 1:
            raise ValueError(
                f"label_cost needs power=1, got power={self.power}: with p = 2 only fixed labels"
                " are solved."
            )
        check_label_cost(self.label_cost)

    @property
    def facts(self) -> Facts:
        return FIXED[self.power] if self.label_cost is None else MOVING

    def in_metric(self, distance: ArrayLike | None = None, label_cost: float | None = None) -> Self:
        if self.label_cost is None or label_cost is None:
            return self
        return replace(self, label_cost=label_cost)

    def solve(self, pairs: PairBatch, beta: float, domain: Domain, size: Tensor) -> Point:
        if self.label_cost is not None:
            return solve_w1_label(pairs, beta, domain, size, check_label_cost(self.label_cost))
        return (solve_w1 if self.power == 1 else solve_w2)(pairs, beta, domain, size)

    def compiled(
        self, pairs: PairBatch, beta: float, domain: Domain, size: Tensor
    ) -> Answer | None:
        if self.label_cost is not None:
            kappa = check_label_cost(self.label_cost)
            return answer("label_moves", pairs, beta, domain, size, kappa, zero_is_mean=True)
        kernel, zero_is_mean = ("w1_free", False) if self.power == 1 else ("w2_free", True)
        return answer(kernel, pairs, beta, domain, size, zero_is_mean=zero_is_mean)

    def collapse(self, pairs: PairBatch) -> Tensor:
        if self.label_cost is None:
            return free_collapse(pairs, self.power)
        kappa = check_label_cost(self.label_cost)
        parts = [torch.arange(part.start, part.stop) for part in pairs.chunks()]
        return torch.cat([label_collapse(pairs.select(part), kappa) for part in parts])

    def holds_norm(self, w: Tensor, beta: float, size: Tensor, dual: Tensor | None) -> Tensor:
        held = size > 0
        if self.label_cost is not None and dual is not None:  # where features move, not labels only
            held = held & (dual <= beta * w.norm(dim=-1) * (1 + 1e-9))
        return held

    def worst(self, at: AtPolicy) -> WorstCase:
        needs_no_losses(type(self).__name__, at)
        found = free(
            at.u,
            at.p,
            at.w,
            beta=at.beta,
            power=self.power,
            radius=one_size(self),
            label_cost=self.label_cost,
        )
        return replace(found, name=self.name)

    def local(self, at: AtFit) -> LocalProgram:
        rho = one_size(self)
        if rho <= 0:
            return mean_program(at)
        if self.label_cost is not None:
            return _with_labels(at, rho, check_label_cost(self.label_cost))
        if self.power == 1:
            return LocalProgram(at.w, lambda w: at.loss(w) + rho * at.beta * w.norm())
        norm, eta = at.beta * at.w.norm().item(), at.multiplier
        transport = quadratic_transport(at.beta * (at.u @ at.w), norm**2 / (2 * eta))

        def pieces(x: Tensor) -> Tensor:
            w, eta = x[:-1], x[-1]
            phi = transport(at.beta * (at.u @ w), (at.beta * w).square().sum() / (2 * eta))
            return (eta * rho**2 + phi).flatten()

        x = torch.cat([at.w, at.w.new_tensor([eta])])
        # beyond a = 4 an atom may sit between two wells, and a density there bends the mean
        split = norm**2 / (2 * eta) > 4
        atom = torch.arange(len(at.p)).repeat(2) if split else None
        return LocalProgram(x, pieces, atom, finite=split)


def _with_labels(at: AtFit, rho: float, kappa: float) -> LocalProgram:
    """eta rho + max(l(m), l(-m) - kappa eta), eta >= beta ||w||, in the nuisance eta - beta ||w||:
    the cone is then a floor."""
    spare = max((at.dual or 0.0) - at.beta * at.w.norm().item(), 0.0)

    def pieces(x: Tensor) -> Tensor:
        w, eta = x[:-1], at.beta * x[:-1].norm() + x[-1]
        return (eta * rho + torch.stack([at.loss(w), at.loss(-w) - kappa * eta])).flatten()

    x = torch.cat([at.w, at.w.new_tensor([spare])])
    atom = torch.arange(len(at.p)).repeat(2)
    return LocalProgram(x, pieces, atom, floor=len(x) - 1, finite=True)


def wdpo_free(
    u: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    power: int,
    radius: ArrayLike,
    label_cost: float | None = None,
    beta: float,
    bound: float | None = None,
    theta_ref: ArrayLike | None = None,
    tolerance: float = 1e-10,
) -> Fit:
    """min over theta of sup {E_Q l : W_p(Q, P) <= radius} with features free in R^d; `dual` is eta.

    Labels stay fixed, or with `label_cost` kappa (p = 1 only) flip at the cost kappa. p = 1: E l +
    radius beta ||w||, or the program of Shafieezadeh-Abadeh et al. (2015), Thm. 1; p = 2: module
    `wells`. Section 4.1, arXiv:2502.01930v4. Other arguments as `fit`.

    Args:
        power: p, 1 or 2.
        radius: rho >= 0 in the unit of the features, a number or (R,) of them.
        label_cost: kappa > 0 in the unit of the features, or None.

    Returns:
        A `Fit`, with a batch axis where u, weights or the radius has one.

    Raises:
        ValueError: as `fit`, another power, or a label cost with p = 2 or that is not positive.

    >>> from theory import wdpo_free
    >>> found = wdpo_free([[1.0], [-1.0]], [0.75, 0.25], power=1, radius=0.15, beta=1.0)
    >>> round(found.theta.exp().item(), 6)  # sigma(theta) = 0.75 - radius
    1.5
    """
    return fit(
        u,
        WassersteinFree(radius, power, label_cost),
        weights,
        beta=beta,
        bound=bound,
        theta_ref=theta_ref,
        tolerance=tolerance,
    )


MEMBERS = (
    WassersteinFree(power=1),
    WassersteinFree(power=1, label_cost=1.0),
    WassersteinFree(power=2),
)
ESTIMATORS = (wdpo_free,)
