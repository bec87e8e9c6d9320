"""What every ambiguity set says of itself, in one place for the whole package."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from theory.batch import ArrayLike, PairBatch, as_float64
from theory.checks import check_radius
from theory.duals import BallDual
from theory.policy import Array
from theory.solvers.adversary import WorstCase
from theory.solvers.compiled.batches import Answer
from theory.solvers.local import AtFit, LocalProgram
from theory.solvers.newton import Domain
from theory.solvers.points import Point


@dataclass(frozen=True)
class AtPolicy:
    """The atoms as the adversary meets them at one policy.

    u: (n, d) signed feature differences, p: (n,) probabilities, w: (d,) theta - theta_ref.
    losses: (n,) at that policy, DPO's or others; own_losses says that they are others, which no set
    can value away from the atoms. label: (n,) of the atoms, where they are known.
    """

    u: Array
    p: Array
    w: Array
    beta: float
    losses: Array
    own_losses: bool = False
    label: Array | None = None


@dataclass(frozen=True)
class Facts:
    """What a set is called and what it needs; everything that is printed of it is derived from it.

    name: in tables and on the command line. method: its estimator there. title: in legends. about:
    the estimator in a line. source: equation, paper, version. size, symbol, unit: of the number
    that sizes it. atoms: it needs the distances between the atoms. exact: false for what an
    algorithm computes instead of the worst case. convex: its fits are certified against the
    optimum. reweights: its worst case is one of weights on the atoms, whatever their losses. grows:
    false where a larger number is a smaller set. order: its place in lists. objective, option: of
    the trainer that minimises the same functional, None where there is none. dual: the worst case
    of losses (R, n) with weights (R, n) at sizes (R,), for exact sets of weights.
    """

    name: str
    method: str
    title: str
    about: str
    source: str
    size: str = "radius"
    symbol: str = "rho"
    unit: str = ""
    atoms: bool = False
    exact: bool = True
    convex: bool = True
    reweights: bool = False
    grows: bool = True
    order: float = math.inf
    dual: Callable[[Tensor, Tensor, Tensor], BallDual] | None = None
    objective: str | None = None
    option: str | None = None


class AmbiguitySet(ABC):
    """A set of distributions around the data, or what an algorithm puts in its place.

    A subclass is a frozen dataclass whose first field, named by `facts.size`, is the number that
    sizes it; it may be left out where only the kind matters, as in `collapse_radius`. Its source,
    equation and paper, is `facts.source`; those of this package are listed in docs/api/sets.md.

    Raises:
        ValueError: by `size`, where the number was left out.
        TypeError: of the class itself, which is abstract.

    >>> from theory import KL, AmbiguitySet
    >>> isinstance(KL(), AmbiguitySet), KL().sized(0.1).size
    (True, 0.1)
    >>> KL.facts.source, KL.facts.unit
    ('Section 4.1, arXiv:2502.01930v4', 'nats')
    """

    def __init_subclass__(cls) -> None:
        # a dataclass leaves alone what is there; its own == would compare arrays to an array
        cls.__eq__ = AmbiguitySet.__eq__  # type: ignore[method-assign]
        cls.__hash__ = AmbiguitySet.__hash__  # type: ignore[method-assign]

    def __eq__(self, other: object) -> bool:
        """The same kind of set with the same numbers, whatever holds them."""
        return type(self) is type(other) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash((type(self), self._content()))

    def _content(self) -> tuple[Any, ...]:
        given = [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]
        return tuple(_comparable(x) for x in given)

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """What it is called and what it needs."""

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def size(self) -> Any:
        """The number, or one for each replicate, that sizes it.

        Raises:
            ValueError: it was left out.
        """
        given = getattr(self, self.facts.size)
        if given is None:
            kind = type(self).__name__
            raise ValueError(
                f"{kind} has no {self.facts.size} here. Give one, as in"
                f" {kind}({self.facts.size}=0.1), or set.sized(0.1)."
            )
        return given

    def sized(self, size: ArrayLike) -> Self:
        """The same set with another size."""
        return replace(self, **{self.facts.size: size})  # type: ignore[type-var]

    def in_metric(self, distance: ArrayLike | None = None, label_cost: float | None = None) -> Self:
        """The same set, which takes distances between atoms, or a label's cost, where it has to."""
        return self

    def with_units(self, pairs: PairBatch) -> PairBatch:
        """Features in units of their own, where these do not matter to the set."""
        unit = None if self.knows_units else pairs.own_units()
        return pairs if unit is None else pairs.in_units(unit)

    @property
    def knows_units(self) -> bool:
        """Whether the set moves features, so that their units matter to it."""
        return not (self.facts.reweights or self.facts.atoms)

    def check_size(self, replicates: int, like: Tensor) -> Tensor:
        """The size as (R,), refused where it is out of range."""
        return check_radius(self.facts.size, self.size, replicates, like)

    @property
    def cost_of_labels(self) -> float:
        """What a flipped label adds to the distance between two atoms of a world."""
        return 1.0

    def check_atoms(self, n: int) -> None:  # noqa: B027
        """Raise ValueError where what it knows of the atoms does not fit n of them."""

    def alike(self, label: NDArray[np.int64]) -> NDArray[np.int64]:
        """Labels (n,) of the atoms that are one and the same to it, out of those whose features
        are: `label` is the same for these, and numbered by first appearance, as what is returned.

        A set that knows more of its atoms than their features says which of them it cannot tell
        apart; here, none.
        """
        return np.arange(len(label)) if self.facts.atoms else label

    def on_rows(self, rows: NDArray[np.int64]) -> Self:
        """The same set where only these of the atoms are left."""
        return self

    def check_cost(self, n: int, replicates: int) -> None:  # noqa: B027
        """Warn where so many fits of n distinct atoms take long."""

    @abstractmethod
    def solve(self, pairs: PairBatch, beta: float, domain: Domain, size: Tensor) -> Point:
        """The exact estimator: minimise the worst mean loss over the feasible set."""

    def compiled(
        self, pairs: PairBatch, beta: float, domain: Domain, size: Tensor
    ) -> Answer | None:
        """What the compiled form of `solve` finds at once, and which replicates it leaves to
        `solve`; None where there is none."""
        return None

    def worst_weights(self, losses: Tensor, p: Tensor, size: Tensor) -> BallDual:
        """The worst case of losses (R, n) at sizes (R,), for sets of weights on the atoms."""
        assert self.facts.dual is not None
        return self.facts.dual(losses, p, size)

    def holds_norm(self, w: Tensor, beta: float, size: Tensor, dual: Tensor | None) -> Tensor:
        """(R,) whether a minimiser w (R, d) is held also where no pair has features, as by a price
        on ||w||."""
        return torch.zeros_like(size, dtype=torch.bool)

    def elements(self, n: int) -> int:
        """Numbers that one replicate of n pairs needs at a time, in the largest array."""
        return n

    def collapse(self, pairs: PairBatch) -> Tensor:
        """(R,) the size from which on the reference policy is the answer, infinite for never.

        For sets that shrink as their number grows (`CVaR`) it is the largest such size, 0 for
        never.
        """
        raise ValueError(f"{type(self).__name__} never makes the reference policy the answer.")

    def size_at(self, fraction: float, pairs: PairBatch, **problem: Any) -> float:
        """The size that is this fraction of the way from the data alone to collapse.

        problem: beta, bound and theta_ref, for a set whose size depends on them.

        Raises:
            ValueError: no size makes the reference policy the answer.
        """
        edge = self.collapse(self.with_units(pairs)).item()
        if math.isinf(edge):
            raise ValueError(
                f"{type(self).__name__} never makes the reference policy the answer on these pairs"
                " (they agree with some direction of the features): there is no way to collapse to"
                " take a fraction of. Give a size."
            )
        return fraction * edge

    @property
    def holds_data(self) -> bool:
        """Whether its smallest member is the data alone, so that its fit there is plain DPO."""
        return True

    @property
    def counts_labels(self) -> bool:
        """Whether it is around how often each comparison is met with either label, which says
        nothing where each is met once: the studies leave it out unless it is asked for."""
        return False

    # of sets of weights on the atoms, for the studies of worst cases
    @property
    def smallest(self) -> float:
        """The size at which the set is the data alone."""
        return 0.0

    def largest(self, least: float) -> float:
        """The size from which all mass is on a largest loss that has the probability `least`."""
        raise ValueError(f"{type(self).__name__} does not keep to weights on the atoms.")

    def range(self, grid: Array) -> Array:
        """Sizes to draw the worst case over, from a grid between 0 and 1."""
        raise ValueError(f"{type(self).__name__} does not keep to weights on the atoms.")

    def scaled(self, size: float, factor: float) -> float:
        """The size of a set whose radius is `factor` times that of this size."""
        return size * factor

    @abstractmethod
    def worst(self, at: AtPolicy) -> WorstCase:
        """The worst case at one policy, with its certificate."""

    def local(self, at: AtFit) -> LocalProgram:
        """The program of its fits near one solution, for their limit law and intervals.

        Raises:
            ValueError: of a set that has not said what it is.
            NoLaw: a solution at which there is no law.
        """
        raise ValueError(
            f"no limit law of {type(self).__name__} is known here. Give the class a method `local`,"
            " as that of KL, or resample."
        )

    def dual_of(self, size: float, losses: Tensor, weights: Tensor) -> Tensor:
        """The dual variable of the worst case at losses and weights (n,), a scalar."""
        assert self.facts.dual is not None
        return self.facts.dual(losses[None], weights[None], losses.new_full((1,), size)).dual[0]

    def worst_value(self, losses: Tensor, size: float, weights: Tensor | None = None) -> Tensor:
        """The functional that the trainer minimises, of losses (n,): differentiable."""
        raise ValueError(f"{type(self).__name__} is no functional of the losses alone.")


def _comparable(x: Any) -> Any:
    """Numbers by their values, whether in a list, an array or a tensor; anything else as it is."""
    if x is None or isinstance(x, (str, int, float)):
        return x
    try:
        numbers = as_float64(x, "size")
    except ValueError:
        return x
    return tuple(numbers.shape), tuple(numbers.flatten().tolist())


def needs_no_losses(kind: str, at: AtPolicy) -> None:
    """A set that moves features needs the loss wherever they go."""
    if at.own_losses:
        raise ValueError(
            f"{kind} moves features, and needs the loss wherever they go. Leave losses out."
        )


def one_size(set_: AmbiguitySet) -> float:
    """The size as a single number."""
    size = as_float64(set_.size, set_.facts.size)
    if size.numel() != 1:
        raise ValueError(
            f"a worst case is that of a single {set_.facts.size}, got {size.numel()} of them."
        )
    return float(size)
