"""What an objective sees of a batch: log-probabilities under policy and reference, lengths,
weights and groups."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from theory.precision import wide


@dataclass(frozen=True)
class Pairs:
    """Summed log-probabilities of preference pairs, each (n,) in nats, with lengths in tokens.

    chosen, rejected: of the policy; reference_chosen, reference_rejected: of the reference;
    chosen_length, rejected_length: of the responses.
    weights: (n,) non-negative, or None for equal ones; they sum to one over the effective batch, so
    that the contributions of its parts add up. groups: (n,) integers, or None. chosen_tokens: mean
    length of the chosen responses of the effective batch, which its parts cannot know; None where
    these are all of it. confidence: (n,) chances that the recorded labels are right, or None.
    reward_difference: (n,) reward of the chosen response less that of the rejected one, or None.

    >>> import torch
    >>> from llm import Pairs
    >>> one = torch.ones(2)
    >>> Pairs(-3 * one, -5 * one, -4 * one, -4 * one, 7 * one, 9 * one).chosen_ratio
    tensor([1., 1.])
    """

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor
    weights: Tensor | None = None
    groups: Tensor | None = None
    chosen_tokens: Tensor | None = None
    confidence: Tensor | None = None
    reward_difference: Tensor | None = None

    @property
    def chosen_ratio(self) -> Tensor:
        """log pi_theta/pi_ref of the chosen responses."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """log pi_theta/pi_ref of the rejected responses."""
        return self.rejected - self.reference_rejected


@dataclass(frozen=True)
class Singles:
    """Summed log-probabilities of single responses, each (n,); desirable is a mask. weights as in
    `Pairs`.

    reference_point: KTO's z0, a number of the effective batch.
    """

    policy: Tensor
    reference: Tensor
    desirable: Tensor
    weights: Tensor | None = None
    reference_point: Tensor | None = None

    @property
    def ratio(self) -> Tensor:
        """log pi_theta/pi_ref."""
        return self.policy - self.reference


Scores = Pairs | Singles


def replaced(scores: Scores, tensors: Mapping[str, Tensor | None]) -> Scores:
    """The same scores with some of their tensors replaced."""
    return type(scores)(**{**vars(scores), **tensors})


def widened(scores: Scores) -> Scores:
    """The same numbers in float64: sorting, tilts and balls of one batch cost nothing and small
    temperatures need the digits.

    On a device without float64 (MPS) they stay float32: see `llm.global_batch.coefficients` for
    what that costs.
    """
    floats = {
        name: wide(x)
        for name, x in vars(scores).items()
        if isinstance(x, Tensor) and x.is_floating_point()
    }
    return replaced(scores, floats)
