"""The losses of a pair that the trainer knows: their options, and which numbers of a pair each of
them takes.

The losses themselves are functions of `theory.losses`. One that stands in `PAIR_LOSSES` is an
objective of its own, the mean of it, and can stand under every robust objective as `--pair_loss`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from llm.scores import Pairs
from theory import losses


def option(default: Any, text: str) -> Any:
    """A field that is also a command-line option with this help."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class PairParameters:
    """The parameters of a loss of a pair; those of an objective begin with them."""

    objective: str = option("dpo", "what is minimised")
    beta: float = option(
        0.1, "beta of the losses; of AOT: slope of the logistic h, or the margin of the other two"
    )
    pair_loss: str = option("dpo", "loss of a pair under a robust objective")
    flip: float | None = option(None, "cdpo, rdpo: rate of flipped labels, in [0, 1/2)")
    average_tokens: bool = option(
        True, "ipo: average log-ratios over tokens, as TRL does; false: sum, as the theory has it"
    )


@dataclass(frozen=True)
class PairLoss:
    """All that is known of a loss of a pair.

    about: what it is. value: losses (n,) of n pairs. required, optional: its options beside beta.
    """

    name: str
    about: str
    source: str
    value: Callable[[PairParameters, Pairs], Tensor]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


def margin(p: PairParameters, s: Pairs) -> Tensor:
    """m of Eq. (1), arXiv:2502.01930v4: beta times the difference of the log-ratios, (n,)."""
    return p.beta * (s.chosen_ratio - s.rejected_ratio)


def given(p: PairParameters, name: str) -> float:
    """An option that the loss needs, which is there once the parameters are checked."""
    value = getattr(p, name)
    assert value is not None, name
    return value


def _ipo(p: PairParameters, s: Pairs) -> Tensor:
    lengths = (s.chosen_length, s.rejected_length) if p.average_tokens else ()
    return losses.ipo_loss(s.chosen_ratio, s.rejected_ratio, p.beta, *lengths)


_ALL = (
    PairLoss(
        "dpo",
        "the mean DPO loss",
        "Rafailov et al., arXiv:2305.18290",
        lambda p, s: losses.dpo_loss(margin(p, s)),
    ),
    PairLoss("ipo", "the mean IPO loss", "Azar et al., arXiv:2310.12036", _ipo),
    PairLoss(
        "cdpo",
        "DPO with smoothed labels",
        "Mitchell (2023)",
        lambda p, s: losses.cdpo_loss(margin(p, s), given(p, "flip")),
        ("flip",),
    ),
    PairLoss(
        "rdpo",
        "DPO unbiased under flipped labels",
        "Chowdhury et al., arXiv:2403.00409",
        lambda p, s: losses.rdpo_loss(margin(p, s), given(p, "flip")),
        ("flip",),
    ),
    PairLoss(
        "hinge",
        "the mean hinge loss (SLiC)",
        "Zhao et al., arXiv:2305.10425",
        lambda p, s: losses.hinge_loss(margin(p, s)),
    ),
)
PAIR_LOSSES = {loss.name: loss for loss in _ALL}
