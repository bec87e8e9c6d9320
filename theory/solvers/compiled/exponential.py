"""Sums over the pairs under the exponential tilt q_i ∝ p_i exp((l_i - c)/lambda), in one pass."""

from typing import Any

from theory.solvers.compiled.arithmetic import (
    BLOCK,
    add_outer,
    add_pull,
    clear,
    expm1,
    loss_and_slope,
    margins,
)
from theory.solvers.compiled.compiling import piece, reordered

MASS, FIRST, SECOND, BEYOND = range(4)  # places of the sums that `tilted_sums` leaves in `sums`
_MOST = 700.0  # exponents beyond which the sums say nothing


@reordered
def _weigh(
    m: Any, p: Any, count: int, lam: float, centre: float, a: Any, b: Any, c: Any, sums: Any
) -> None:
    """Weights of the gradient (a), of its covariance with z (b) and of the Hessian (c)."""
    inverse, more = 1.0 / lam, 1.0 / lam - 1.0
    mass, first, second, beyond = 0.0, 0.0, 0.0, 0.0
    for i in range(count):
        loss, s = loss_and_slope(m[i])
        z = (loss - centre) * inverse
        grown = p[i] * expm1(z)
        e = p[i] + grown
        mass += grown
        first += e * z
        second += e * z * z
        beyond += 1.0 if z > _MOST else 0.0
        es = e * s
        a[i] = es
        b[i] = es * z
        c[i] = es * (1.0 + s * more)
    sums[0] += mass
    sums[1] += first
    sums[2] += second
    sums[3] += beyond


@piece
def tilted_sums(
    u: Any,
    p: Any,
    beta: float,
    w: Any,
    lam: float,
    centre: float,
    bent: bool,
    g: Any,
    covariance: Any,
    H: Any,
    scratch: Any,
    sums: Any,
) -> None:
    """With z = (l - centre)/lambda and e = p exp(z): sum e - 1, sum e z and sum e z², and how many
    z are beyond reach, into sums (4,); sum e s u into g; with `bent` sum e s z u into `covariance`
    and the lower triangle of sum e (s (1 - s) + s²/lambda) u u' into H. `scratch`: four blocks."""
    m, a, b, c = scratch
    d, n = u.shape
    clear(g, H, d)
    for k in range(d):
        covariance[k] = 0.0
    for k in range(4):
        sums[k] = 0.0
    for start in range(0, n, BLOCK):
        count = min(BLOCK, n - start)
        margins(u, start, count, w, beta, m)
        _weigh(m, p[start : start + count], count, lam, centre, a, b, c, sums)
        add_pull(u, start, count, a, g)
        if bent:
            add_pull(u, start, count, b, covariance)
            add_outer(u, start, count, c, H)
