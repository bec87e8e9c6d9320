"""How the functions of this folder are compiled.

A kernel, `batch`, is called from Python and kept in the cache. Its pieces are called by kernels
alone, so that the wrappers for Python and C are spared, a fifth of the time that compiling takes.
numba makes a version of a function for each constant that it is called with, also where a variable
only begins with it: what takes long to compile has a signature, or gets a value, `np.bool_(True)`.
"""

from typing import Any

from numba import float64, int8, int64, njit, void

NUMBERS, PLACES, MATRIX = float64[::1], int64[::1], float64[:, ::1]
REORDERED = {"reassoc", "contract", "nsz", "arcp"}
_WITHIN = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

# of `batch` without arguments of its own, which go before the last three
HEAD = (
    PLACES,
    float64[:, :, ::1],
    MATRIX,
    float64,
    float64,
    NUMBERS,
    NUMBERS,
)
TAIL = (MATRIX, MATRIX, int8[::1])

_njit: Any = njit  # its stub does not know all options
piece = _njit(**_WITHIN)
reordered = _njit(fastmath=REORDERED, **_WITHIN)  # sums in any order: vector instructions
# and minima in any order, of finite numbers
of_finite = _njit(fastmath=REORDERED | {"nnan", "ninf"}, **_WITHIN)


def with_signature(signature: Any) -> Any:
    """A piece of which there is one version, compiled where its file is imported and kept like a
    kernel."""
    return _njit(signature, cache=True, **_WITHIN)


def kernel(*own: Any) -> Any:
    """A `batch`, whose arguments of its own have these types."""
    signature = void(*HEAD, *own, *TAIL)
    return _njit(signature, nogil=True, cache=True, error_model="numpy", no_cfunc_wrapper=True)
