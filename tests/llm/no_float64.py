"""A device without float64, such as Apple's MPS, emulated on the CPU: every operation that gives a
float64 tensor raises.

Unlike on a Mac, where the CPU beside the device has float64, nothing at all has it.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class NoFloat64(TorchDispatchMode):
    """While this context is open, float64 raises TypeError, as MPS does."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = function(*args, **(kwargs or {}))
        if any(
            isinstance(x, torch.Tensor) and x.dtype in (torch.float64, torch.complex128)
            for x in tree_leaves(given)
        ):
            raise TypeError(
                f"{function} gives float64, which this device does not support. Please use float32"
                " instead."
            )
        return given
