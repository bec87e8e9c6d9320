"""How fast a fit could be: what its operations cost on this core, measured, and how many it needs.

A pass over n pairs takes for each one an exponential, a log(1 + t) with 1/(1 + t), and the
multiply-adds of the margin, the gradient and the lower triangle of the Hessian; for the KL ball
another exponential and the cross term. A fit of k Newton steps takes k such passes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch


@dataclass(frozen=True)
class Rates:
    """Nanoseconds of this core: of an exponential, of a loss with its slope, of a multiply-add."""

    exponential: float
    loss: float
    multiply_add: float

    def limit(self, kind: str, n: int, d: int, steps: float) -> float:
        """Seconds of a fit of "mean" or "kl", from its operations alone."""
        pair = self.loss + products(d) * self.multiply_add
        if kind == "kl":
            pair += self.exponential + d * self.multiply_add
        return 1e-9 * n * steps * pair


def products(d: int) -> float:
    """Multiply-adds of a pair and pass: margin, gradient, half a Hessian and its weights."""
    return d + d + d * (d + 1) / 2 + d


def measure(seconds: float = 0.2) -> Rates:
    """The rates, on one thread: of arrays in the first cache, and of a large matrix product."""
    import numba

    from theory.solvers.compiled.arithmetic import exp, loss_and_slope
    from theory.solvers.compiled.compiling import REORDERED

    @numba.njit(fastmath=REORDERED)
    def exponentials(x: np.ndarray, into: np.ndarray) -> None:
        for _ in range(100):
            for i in range(len(x)):
                into[i] = exp(x[i])

    @numba.njit(fastmath=REORDERED)
    def losses(x: np.ndarray, into: np.ndarray) -> None:
        for _ in range(100):
            for i in range(len(x)):
                loss, slope = loss_and_slope(x[i])
                into[i] = loss + slope

    x, into = np.linspace(-2.0, 2.0, 1024), np.empty(1024)
    square = torch.rand(384, 384, dtype=torch.float64)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        exp_s = _cpu(lambda: exponentials(x, into), seconds)
        loss_s = _cpu(lambda: losses(x, into), seconds)
        product_s = _cpu(lambda: square @ square, seconds)
    finally:
        torch.set_num_threads(before)
    each = 1e9 / (100 * 1024)
    return Rates(exp_s * each, loss_s * each, product_s * 1e9 / 384**3)


def _cpu(call: Callable[[], object], seconds: float) -> float:
    call()
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times) < 5:
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return median(times)
