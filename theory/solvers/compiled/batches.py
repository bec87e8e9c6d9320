"""A batch of problems to a kernel, and its answers back.

A kernel is the function `batch` of a module here, compiled for

    batch(rows, ut, p, beta, bound, reference, size, *extra, w, numbers, state)

with rows (r,) of the replicates to solve, ut (R or 1, d, n) and p (R or 1, n), theta_ref (d,) and
size (R,). It writes w (R, d), numbers (R, 4), which are value, dual, gap and steps, and state (R,):
OPEN, SOLVED or COLLAPSED. SOLVED says that its own certificate has closed and that w is the only
minimiser; all else it leaves OPEN.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from theory.batch import PairBatch
from theory.solvers.compiled.available import kernel, usable
from theory.solvers.compiled.threads import over_replicates
from theory.solvers.newton import Domain
from theory.solvers.points import LOG2, Point

OPEN, SOLVED, COLLAPSED = 0, 1, 2
VALUE, DUAL, GAP, STEPS = range(4)  # columns of `numbers`
_NOTHING = 1e-8


@dataclass(frozen=True)
class Answer:
    """What a kernel found. left: (k,) the replicates that it left open, whose rows of the point
    mean nothing."""

    point: Point
    left: Tensor


def answer(
    name: str,
    pairs: PairBatch,
    beta: float,
    domain: Domain,
    size: Tensor | None = None,
    *extra: Any,
    dual: bool = True,
    zero_is_mean: bool = False,
) -> Answer | None:
    """Solve a batch by the kernel `name`; None where compiled solvers cannot run.

    Args:
        size: (R,) of the set, None where it has none.
        extra: arrays and numbers that this kernel takes besides.
        dual: whether there is a multiplier.
        zero_is_mean: the set is the data alone at size 0, with an infinite multiplier.
    """
    if not usable(pairs):
        return None
    count, d = pairs.replicates, pairs.dimension
    # what is shared stays shared: a stride of 0 is one row
    p = pairs.p.numpy()
    p = np.ascontiguousarray(p[:1] if p.strides[0] == 0 else p)
    ut, reference = (np.ascontiguousarray(x.numpy()) for x in (pairs.ut, domain.theta_ref))
    sizes = np.zeros(count) if size is None else np.ascontiguousarray(size.numpy())
    w, numbers = np.zeros((count, d)), np.zeros((count, 4))
    state = np.zeros(count, dtype=np.int8)
    given = (ut, p, beta, domain.bound, reference, sizes)
    found = (w, numbers, state)
    rows = np.arange(count)
    if zero_is_mean and (plain := sizes <= 0).any():
        over_replicates(kernel("mean"), rows[plain], ut[0].size, given + found)
        numbers[plain, DUAL] = np.inf
        at_rest = plain & ~(numbers[:, VALUE] < LOG2 - 1e-12)  # whether it is collapse, others say
        state[at_rest] = OPEN
        rows = rows[~plain]
    if len(rows):
        over_replicates(kernel(name), rows, ut[0].size, given + extra + found)
    # where hardly anything is lost, how far out w goes is a matter of the stopping rule
    state[(state == SOLVED) & (numbers[:, VALUE] < _NOTHING)] = OPEN
    columns = np.ascontiguousarray(numbers.T)
    point = Point(
        torch.from_numpy(w),
        torch.from_numpy(columns[VALUE]),
        torch.from_numpy(columns[GAP]),
        torch.from_numpy(columns[DUAL]) if dual else None,
        torch.from_numpy(columns[STEPS].astype(np.int64)),
        torch.from_numpy(state == COLLAPSED),
        several=torch.zeros(count, dtype=torch.bool),
    )
    return Answer(point, torch.from_numpy((state == OPEN).nonzero()[0]))
