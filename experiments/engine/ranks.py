"""The processes of one launch (`accelerate launch`, `torchrun`): which one this is, and waiting for
each other."""

import atexit
import os
import sys
from datetime import timedelta
from typing import Any

PATIENCE = timedelta(days=7)  # of one process for another: one may wait for the lock of another job


def rank() -> int:
    """Number of this process, from 0; 0 where there is only one."""
    return int(os.environ.get("RANK", "0"))


def ranks() -> int:
    """How many processes were launched together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wait_for_all() -> None:
    """Go on when every process of the launch has come here."""
    if ranks() > 1:
        _joined().wait_for_everyone()


def from_first(value: Any) -> Any:
    """What the first process passes, in every process: decisions that depend on files are made
    once. Waits for all."""
    if ranks() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    _joined()
    (decided,) = broadcast_object_list([value])
    return decided


def _joined() -> Any:
    import torch
    from accelerate import (
        PartialState,
    )  # slow to import, and joins the processes when it is first made

    atexit.unregister(_leave)  # once, and before whatever was registered earlier
    atexit.register(_leave)
    # told that there is no GPU: left to itself it takes processes on a CPU for one that is alone,
    # and would not wait
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def _leave() -> None:
    from llm.processes import leave

    if getattr(sys, "last_value", None) is None:  # no error ended this process
        leave()


def device() -> str:
    """Where this process computes: its own GPU, or the CPU where there is none."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
