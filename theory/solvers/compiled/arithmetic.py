"""What kernels are made of: exp and log1p that compile to vector instructions, sums over blocks of
pairs, and small linear systems.

The sums may be reordered (fast-math without its assumptions on NaN and infinity): the last digit
depends on the processor, as with any BLAS, but not on the threads. Polynomials are those of
fdlibm (e_exp.c, s_log1p.c) and Taylor's, accurate to two units in the last place.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from theory.solvers.compiled.compiling import piece, reordered

CLOSED = 5e-12  # a gap that a kernel accepts, `DOUBTFUL` of `theory.solvers.points`
LOG2 = 0.6931471805599453  # the loss of every pair at the reference policy
BLOCK = 256  # pairs at a time: their features and weights stay in the first cache


# ---------------------------------------------------------------------------------- exp and log1p
@intrinsic
def _power_of_two(typing_context: Any, n: Any) -> Any:
    """2^n for an integral float64 n in [-1022, 1023], without a branch."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        k = builder.sext(builder.fptosi(args[0], ir.IntType(32)), ir.IntType(64))
        k = builder.add(k, ir.Constant(ir.IntType(64), 1023))
        return builder.bitcast(builder.shl(k, ir.Constant(ir.IntType(64), 52)), ir.DoubleType())

    return types.float64(types.float64), generate


@intrinsic
def _nearest_integer(typing_context: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rint = builder.module.declare_intrinsic("llvm.rint", [ir.DoubleType()])
        return builder.call(rint, args)

    return types.float64(types.float64), generate


@reordered
def _expm1_reduced(r: float) -> float:
    """exp(r) - 1 for |r| <= log(2)/2."""
    q = 2.5100375832561233664e-8
    q = q * r + 2.7620075879983366586e-7
    q = q * r + 2.7557268480310025526e-6
    q = q * r + 0.000024801521322368693266
    q = q * r + 0.00019841269863040545271
    q = q * r + 0.0013888888917196719077
    q = q * r + 0.0083333333333300644495
    q = q * r + 0.041666666666624161903
    q = q * r + 0.16666666666666667452
    q = q * r + 0.50000000000000010211
    return r + r * r * q


@reordered
def exp(x: float) -> float:
    """exp(x), of the nearest x between -708 and 709."""
    x = min(max(x, -708.0), 709.0)
    n: float = _nearest_integer(x * 1.4426950408889634)  # type: ignore[call-arg]
    r = x - n * 6.93147180369123816490e-01 - n * 1.90821492927058770002e-10
    return (1.0 + _expm1_reduced(r)) * _power_of_two(n)


@reordered
def expm1(x: float) -> float:
    """exp(x) - 1, of the nearest x between -708 and 709; near 0 to its own last digits."""
    x = min(max(x, -708.0), 709.0)
    n: float = _nearest_integer(x * 1.4426950408889634)  # type: ignore[call-arg]
    r = x - n * 6.93147180369123816490e-01 - n * 1.90821492927058770002e-10
    power = _power_of_two(n)
    return _expm1_reduced(r) * power + (power - 1.0)


@reordered
def log1p_from(s: float) -> float:
    """log(1 + t) of s = t/(2 + t), for t in [0, 1]."""
    z = s * s
    q = 0.16164045688037065986
    q = q * z + 0.088007384460414018845
    q = q * z + 0.12001072818488293007
    q = q * z + 0.13314144208575589928
    q = q * z + 0.15385570065036415001
    q = q * z + 0.18181789436129470557
    q = q * z + 0.22222222717427949611
    q = q * z + 0.28571428568107755963
    q = q * z + 0.40000000000014582681
    q = q * z + 0.66666666666666658561
    return s * (2.0 + z * q)


@reordered
def loss_and_slope(m: float) -> tuple[float, float]:
    """l = log(1 + exp(-m)) and s = sigma(-m), from one exponential and one division."""
    t = exp(-abs(m))
    r = 1.0 / ((1.0 + t) * (2.0 + t))
    inverse = r * (2.0 + t)
    loss = log1p_from(t * (r * (1.0 + t))) - min(m, 0.0)
    return loss, (inverse if m < 0 else t * inverse)


# ----------------------------------------------------------------------------- sums over the pairs
@reordered
def margins(u: Any, start: int, count: int, w: Any, beta: float, into: Any) -> None:
    """into_i = beta w.u_i of the pairs of a block, u (d, n), w (d or more,)."""
    for i in range(count):
        into[i] = 0.0
    for k in range(u.shape[0]):
        wk = beta * w[k]
        row = u[k, start : start + count]
        for i in range(count):
            into[i] += wk * row[i]


@reordered
def add_pull(u: Any, start: int, count: int, c: Any, g: Any) -> None:
    """g += sum of c_i u_i over a block, g (d or more,)."""
    for k in range(u.shape[0]):
        row = u[k, start : start + count]
        total = 0.0
        for i in range(count):
            total += c[i] * row[i]
        g[k] += total


@reordered
def add_outer(u: Any, start: int, count: int, c: Any, H: Any) -> None:
    """H += sum of c_i u_i u_i' over a block, its lower triangle, H (d or more, d or more).

    Two rows by two columns at a time, so that what is loaded is used twice.
    """
    d = u.shape[0]
    for k in range(0, d - 1, 2):
        x0 = u[k, start : start + count]
        x1 = u[k + 1, start : start + count]
        h00 = 0.0
        h10 = 0.0
        h11 = 0.0
        for i in range(count):
            q1 = c[i] * x1[i]
            h00 += c[i] * x0[i] * x0[i]
            h10 += q1 * x0[i]
            h11 += q1 * x1[i]
        H[k, k] += h00
        H[k + 1, k] += h10
        H[k + 1, k + 1] += h11
        for j in range(0, k, 2):
            y0 = u[j, start : start + count]
            y1 = u[j + 1, start : start + count]
            h00 = 0.0
            h01 = 0.0
            h10 = 0.0
            h11 = 0.0
            for i in range(count):
                q0 = c[i] * x0[i]
                q1 = c[i] * x1[i]
                h00 += q0 * y0[i]
                h01 += q0 * y1[i]
                h10 += q1 * y0[i]
                h11 += q1 * y1[i]
            H[k, j] += h00
            H[k, j + 1] += h01
            H[k + 1, j] += h10
            H[k + 1, j + 1] += h11
    if d % 2:
        k = d - 1
        x0 = u[k, start : start + count]
        h00 = 0.0
        for i in range(count):
            h00 += c[i] * x0[i] * x0[i]
        H[k, k] += h00
        for j in range(0, k, 2):
            y0 = u[j, start : start + count]
            y1 = u[j + 1, start : start + count]
            h00 = 0.0
            h01 = 0.0
            for i in range(count):
                q0 = c[i] * x0[i]
                h00 += q0 * y0[i]
                h01 += q0 * y1[i]
            H[k, j] += h00
            H[k, j + 1] += h01


@piece
def clear(g: Any, H: Any, k: int) -> None:
    """Zeros into the first k of g and the lower triangle of H."""
    for i in range(k):
        g[i] = 0.0
        for j in range(i + 1):
            H[i, j] = 0.0


@piece
def moments(u: Any, p: Any, mean: Any, second: Any) -> None:
    """E u and the lower triangle of E u u', of u (d, n) with weights p (n,)."""
    n = u.shape[1]
    clear(mean, second, u.shape[0])
    for start in range(0, n, BLOCK):
        count = min(BLOCK, n - start)
        weight = p[start : start + count]
        add_pull(u, start, count, weight, mean)
        add_outer(u, start, count, weight, second)


# --------------------------------------------------------------------------- small linear algebra
@piece
def solve_positive(H: Any, x: Any) -> bool:
    """x := H^-1 x by Cholesky's factor, which replaces the lower triangle of H; False where H is
    not surely positive definite."""
    d = x.shape[0]
    least, most = np.inf, 0.0
    for j in range(d):
        s = H[j, j]
        for k in range(j):
            s -= H[j, k] * H[j, k]
        if not (s > 0.0 and s < np.inf):
            return False
        s = math.sqrt(s)
        least, most = min(least, s), max(most, s)
        H[j, j] = s
        for i in range(j + 1, d):
            t = H[i, j]
            for k in range(j):
                t -= H[i, k] * H[j, k]
            H[i, j] = t / s
    if least < 1e-7 * most:  # as in `theory.solvers.newton`
        return False
    for i in range(d):
        t = x[i]
        for k in range(i):
            t -= H[i, k] * x[k]
        x[i] = t / H[i, i]
    for i in range(d - 1, -1, -1):
        t = x[i]
        for k in range(i + 1, d):
            t -= H[k, i] * x[k]
        x[i] = t / H[i, i]
    return True


@piece
def dot(a: Any, b: Any, d: int) -> float:
    """a.b over the first d."""
    total = 0.0
    for k in range(d):
        total += a[k] * b[k]
    return total


@piece
def copy(a: Any, into: Any, count: int) -> None:
    """The first `count` of a; for an assignment of slices numba compiles five seconds."""
    for k in range(count):
        into[k] = a[k]


@piece
def norm_of(a: Any, d: int) -> float:
    """||a|| over the first d."""
    return math.sqrt(dot(a, a, d))


@piece
def norm_of_sum(a: Any, b: Any) -> float:
    """||a + b||, over the length of b."""
    square = 0.0
    for k in range(b.shape[0]):
        square += (a[k] + b[k]) ** 2
    return math.sqrt(square)


@piece
def longest(u: Any) -> float:
    """max ||u_i||, of u (d, n)."""
    most = 0.0
    for i in range(u.shape[1]):
        most = max(most, dot(u[:, i], u[:, i], u.shape[0]))
    return math.sqrt(most)


@piece
def linear_gap(w: Any, gradient: Any, reference: Any, bound: float) -> float:
    """max over the ball of g.(w - w'), the Frank-Wolfe gap: bounds F(w) - min F of a convex F."""
    along, square = 0.0, 0.0
    for k in range(reference.shape[0]):
        along += (w[k] + reference[k]) * gradient[k]
        square += gradient[k] * gradient[k]
    return along + bound * math.sqrt(square)


@piece
def inside(w: Any, reference: Any, bound: float) -> bool:
    """Whether ||w + theta_ref|| is below the bound, clearly."""
    return bool(norm_of_sum(w, reference) < bound * (1.0 - 1e-9))


# ------------------------------------------------------------------------------------------ starts
@piece
def linear_start(mean: Any, second: Any, beta: float, M: Any, w: Any) -> bool:
    """w (d,): a Newton step of DPO from the reference policy, out of E u and E u u'; False where
    the pairs do not span all directions."""
    d = w.shape[0]
    trace = 0.0
    for k in range(d):
        trace += second[k, k]
    for k in range(d):
        w[k] = 2.0 * mean[k] / beta
        for j in range(k + 1):
            M[k, j] = second[k, j]
        M[k, k] += 1e-8 * trace + 1e-300
    return bool(solve_positive(M, w))


@piece
def radial_start(mean: Any, second: Any, beta: float, price: float, room: float, w: Any) -> None:
    """w (d,): the minimiser of the second-order model of E l + price ||w|| along E u, the direction
    in which solutions leave w = 0, as far as there is room in the ball."""
    d = mean.shape[0]
    length = norm_of(mean, d)
    bend = 0.0
    for k in range(d):
        w[k] = mean[k] / max(length, 1e-300)
        for j in range(k + 1):
            bend += (1.0 if j == k else 2.0) * w[k] * w[j] * second[k, j]
    bend = max(bend, 1e-300) * beta * beta / 4
    far = min(max((beta * length / 2 - price) / bend, 1e-6 / beta), 0.9 * room)
    for k in range(d):
        w[k] *= far
