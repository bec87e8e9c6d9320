"""The mean loss, which is what several kernels begin with."""

from typing import Any

from theory.solvers.compiled.arithmetic import (
    BLOCK,
    add_outer,
    add_pull,
    clear,
    loss_and_slope,
    margins,
)
from theory.solvers.compiled.compiling import piece, reordered


@reordered
def weigh(m: Any, p: Any, count: int, a: Any, c: Any) -> float:
    """Weights of the gradient and of the Hessian from margins; the loss."""
    total = 0.0
    for i in range(count):
        loss, s = loss_and_slope(m[i])
        total += p[i] * loss
        a[i] = p[i] * s
        c[i] = p[i] * s * (1.0 - s)
    return total


@piece
def mean_loss(
    u: Any, p: Any, beta: float, w: Any, bent: bool, g: Any, H: Any, scratch: Any
) -> float:
    """E l, with its gradient in g and, with `bent`, its Hessian in H."""
    m, a, c = scratch
    d, n = u.shape
    clear(g, H, d)
    total = 0.0
    for start in range(0, n, BLOCK):
        count = min(BLOCK, n - start)
        margins(u, start, count, w, beta, m)
        total += weigh(m, p[start : start + count], count, a, c)
        add_pull(u, start, count, a, g)
        if bent:
            add_outer(u, start, count, c, H)
    for k in range(d):
        g[k] *= -beta
        if bent:
            for j in range(k + 1):
                H[k, j] *= beta * beta
    return total
