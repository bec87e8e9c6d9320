"""How many digits there are: float64, or float32 on a device that has no float64 (Apple's MPS)."""

import torch
from torch import Tensor


def widest(device: torch.device | str) -> torch.dtype:
    """float64 where the device has it, else float32. The device is asked each time, which takes
    about a microsecond."""
    try:
        return torch.empty(0, dtype=torch.float64, device=device).dtype
    except (TypeError, RuntimeError):
        return torch.float32


def wide(numbers: Tensor) -> Tensor:
    """The same numbers with as many digits as their device has."""
    return numbers.to(widest(numbers.device))


def tiny(dtype: torch.dtype) -> float:
    """A positive number that is next to nothing and that the dtype can tell from zero."""
    return 1e-300 if dtype == torch.float64 else 1e-37


def rounding(dtype: torch.dtype) -> float:
    """A few units in the last place of 1."""
    return 1e-15 if dtype == torch.float64 else 5e-7
