"""The exact estimators as compiled loops over the pairs, for float64 on the CPU.

    available.py    whether they can run here, and how a kernel is loaded
    threads.py      replicates over threads
    batches.py      a batch of problems to a kernel, and its answers back
    arithmetic.py   what kernels are made of: exp, log1p, sums over pairs, small linear systems
    newton.py       the loop of Newton's method
    cache.py        where numba keeps what it compiled
    the others      a kernel each, of the set that they are named after

A kernel answers only what its own certificate proves; whatever it leaves open is solved by the
solvers above this folder, which also run where numba is not there, on other devices, and with
PREFDRO_COMPILED=0. Modules that import numba (arithmetic, newton and the kernels) are imported by
`available.kernel` alone.
"""
