"""The exact estimators as compiled loops over the pairs, for float64 on the CPU.

    available.py    whether they can run here, and how a kernel is loaded
    cache.py        where numba keeps what it compiled
    __main__.py     compiles all that is not there yet
    threads.py      replicates over threads
    batches.py      a batch of problems to a kernel, and its answers back
    compiling.py    how kernels and their pieces are compiled
    arithmetic.py   what kernels are made of: exp, log1p, sums over pairs, small linear systems
    losses.py, exponential.py, tails.py   sums and losses that several kernels share
    newton.py, ball.py   Newton's method, and its step inside the parameter ball
    kinks.py, maxima.py, uniqueness.py   exact minimisers where losses have kinks
    the others      a kernel each, of the set that they are named after

A kernel answers only what its own certificate proves; whatever it leaves open is solved by the
solvers above this folder, which also run where numba is not there, on other devices, and with
PREFDRO_COMPILED=0. `available`, `threads` and `batches` do without numba; what imports it is
imported by `available.kernel` alone.
"""
