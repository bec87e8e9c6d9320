"""How far rounding in float32 may move a result: a limit for a comparison that follows from the
instance, not from a machine.

Roundings on the way to a result act as if the weights of the model were off by some units of the
last place (a backward error). How much the true result, in float64, reacts to weights that are each
off by at most one unit is measured: the condition of this instance times the unit. A forward and a
backward pass through two blocks round some dozens of times one after the other, and at
worst the errors add up: `ROUNDINGS`. Found were up to 8 of these units.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.llm.training import relative_error

UNIT = 2.0**-24  # of float32
ROUNDINGS = 64

Result = tuple[float, dict[str, Tensor]]  # a value, and its gradient by parameter


def nearby(model: nn.Module, seed: int, unit: float = UNIT) -> nn.Module:
    """The model in float64 with each weight off by at most a unit in the last place."""
    moved, g = copy.deepcopy(model).double(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in moved.parameters():
            p.mul_(1 + unit * (2 * torch.rand(p.shape, generator=g, dtype=torch.float64) - 1))
    return moved


def limits(
    truth: Callable[[nn.Module], Result], model: nn.Module, unit: float = UNIT
) -> tuple[Result, float, float]:
    """The truth at a model, and the limits of the relative error of its gradient and of the
    absolute one of its value."""
    value, gradient = truth(model)
    others = [truth(nearby(model, seed, unit)) for seed in range(2)]
    gradients = max(relative_error(other, gradient) for _, other in others)
    values = max(abs(other - value) for other, _ in others)
    return (
        (value, gradient),
        ROUNDINGS * (gradients + unit),
        ROUNDINGS * (values + unit * abs(value)),
    )
