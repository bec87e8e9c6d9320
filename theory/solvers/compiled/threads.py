"""Replicates over threads.

Each replicate is solved from its own numbers by one thread, so that the answers do not depend on
how many there are. Plain threads take blocks from a queue while kernels have released the
interpreter's lock: nobody spins at a barrier, and a core that others use only takes fewer blocks.
numba's own parallel loops would either spin (OpenMP, which also ends a process that was forked)
or end the process when two threads call at once (workqueue).
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_BLOCK = 1 << 17  # features that a thread takes at a time, about a millisecond of work


def count() -> int:
    """Threads to use: as many as torch would (OMP_NUM_THREADS, `torch.set_num_threads`), and no
    more than NUMBA_NUM_THREADS or the cores that this process may use."""
    import joblib  # which knows the affinity and the limits of containers

    given = os.environ.get("NUMBA_NUM_THREADS", "")
    own = [int(given)] if given.isdecimal() and int(given) > 0 else []
    return min(torch.get_num_threads(), joblib.cpu_count(), *own)


def over_replicates(
    kernel: Callable[..., None], rows: NDArray[np.int64], features: int, arguments: tuple[Any, ...]
) -> None:
    """kernel(some of the rows, *arguments) until all rows are done.

    Args:
        kernel: writes the answers of the replicates `rows` into arrays among its arguments.
        rows: (R,) replicates to solve.
        features: numbers that one replicate reads in a pass.
    """
    step = max(1, _BLOCK // features)
    if len(rows) <= step:
        return kernel(rows, *arguments)
    threads = min(count(), len(rows))
    if threads == 1:
        return kernel(rows, *arguments)
    step = min(step, -(-len(rows) // threads))
    blocks = [rows[start : start + step] for start in range(0, len(rows), step)]
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda block: kernel(block, *arguments), blocks):
            pass
