"""What an objective is: a function of the scores of one effective batch, with what a training step
has to know of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from llm.scores import Scores

Kind = Literal["pairs", "unpaired"]


@dataclass(frozen=True)
class Part:
    """A term of an objective that is a sum, with its weight: a function of the scores of one
    effective batch."""

    name: str
    weight: float
    value: Callable[[Scores], Tensor]


def weighted(parts: tuple[Part, ...], scores: Scores) -> Tensor | float:
    """sum_k w_k value_k, a scalar; 0 where there are none."""
    return sum((part.weight * part.value(scores) for part in parts), start=0.0)


@dataclass(frozen=True)
class Objective:
    """What is minimised over one effective batch.

    value: the objective of all scores of the batch, a scalar. losses: the pointwise losses below
    the functional, (n,); None for optimal transport, whose losses belong to no single pair.
    couples: the gradient of one pair depends on the others, so that the effective batch has to be
    seen as a whole; otherwise the value is a weighted sum over pairs. functional: of losses and
    weights, for a robust objective. dual: the dual variable of its ball, from losses and weights.
    added: what the value is a sum with, beside the objective of this name. tail: of which
    log-probabilities the scores are, see `llm.logprobs.sequence_logprobs`.
    """

    name: str
    kinds: tuple[Kind, ...]
    value: Callable[[Scores], Tensor]
    couples: bool
    losses: Callable[[Scores], Tensor] | None = None
    functional: Callable[[Tensor, Tensor | None], Tensor] | None = None
    dual: Callable[[Tensor, Tensor], Tensor] | None = None
    added: tuple[Part, ...] = ()
    tail: float = 1.0

    def plus(self, *parts: Part) -> "Objective":
        """The sum of this objective and parts, which are functions of pairs."""
        whole = replace(self, kinds=("pairs",), added=(*self.added, *parts))
        return replace(whole, value=lambda s: self.value(s) + weighted(parts, s))
