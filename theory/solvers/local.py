"""A fit as a convex program whose objective is linear in the weights of the atoms, seen near its
solution.

    min over x = (w, nuisances) of  sum_i p_i max_j f_ij(x),    ||w + theta_ref|| <= B

where the sample enters by its weights p alone. Every set whose fits have a limit law says what its
f_ij are (`AmbiguitySet.local`); `theory.laws.program` differentiates the solution in p.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus


class NoLaw(ValueError):
    """There is no limit law at this solution, or none that is known; the message says why."""


@dataclass(frozen=True, eq=False)
class AtFit:
    """A fit of one sample: atoms u (K, d), their probabilities p (K,), w (d,) = theta - theta_ref,
    beta, and the multiplier of the set's size, None where there is none."""

    u: Tensor
    p: Tensor
    w: Tensor
    beta: float
    dual: float | None

    def loss(self, w: Tensor) -> Tensor:
        """(K,) losses of the atoms at w (d,). Section 4.1, arXiv:2502.01930v4."""
        return softplus(-self.beta * (self.u @ w), threshold=40.0)

    @property
    def multiplier(self) -> float:
        """The multiplier where it is positive, as smooth programs need it."""
        if self.dual is None or not self.dual > 0:
            raise NoLaw(
                f"the multiplier of the radius is {self.dual} at the solution: the worst case puts"
                " all mass on the largest losses. Take a smaller radius."
            )
        return self.dual


@dataclass(frozen=True, eq=False)
class LocalProgram:
    """The program near one solution.

    x: (D,) the solution, w first. pieces: (D,) -> (M,) values of the pieces f_ij, whose values and
    first two derivatives are right at x. atom: (M,) the atom i of each piece; None: one piece for
    each atom. floor: the place in x of a nuisance with the lower bound 0, if there is one.
    finite: whether the law needs a population on finitely many atoms, which are those of the fit.
    """

    x: Tensor
    pieces: Callable[[Tensor], Tensor]
    atom: Tensor | None = None
    floor: int | None = None
    finite: bool = False


def mean_program(at: AtFit) -> LocalProgram:
    """Plain DPO: E l."""
    return LocalProgram(at.w, at.loss)


def divergence_program(
    at: AtFit, conjugate: Callable[[Tensor], Tensor], radius: float, lam: float, shift: float
) -> LocalProgram:
    """A ball of a phi-divergence by its dual, the optimised certainty equivalent of Ben-Tal and
    Teboulle (2007), jointly convex in x = (w, lambda, c):

        E [lambda rho + c + lambda phi*((l - c)/lambda)].

    conjugate: phi*. lam, shift: lambda > 0 and c at the solution.
    """

    def pieces(x: Tensor) -> Tensor:
        lam, c = x[-2], x[-1]
        return lam * radius + c + lam * conjugate((at.loss(x[:-2]) - c) / lam)

    return LocalProgram(torch.cat([at.w, at.w.new_tensor([lam, shift])]), pieces)
