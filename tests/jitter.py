"""`pytest --jitter SEED`: the same tests on instances that differ in the last digits and in the
order of their rows.

Whoever draws a number, a test or the project, draws x (1 + SIZE noise): no verdict may hang on
digits that another processor, BLAS or number of threads would round in another way. The noise is a
function of the seed and of the bits of x alone: equal numbers stay equal, drawing again gives the
same, and the shape in which numbers are drawn does not matter. Integers, permutations, choices and
counts are drawn as ever. Processes that a test starts are shaken if they call `as_in_the_test`.

Rows of a sample, drawn jointly and in no particular order, are permuted by `order`, together with
their weights and distances:

    k = order(len(u))
    return u[k], p[k], distance[np.ix_(k, k)]
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

SIZE = {
    np.dtype(np.float64): 1e-13,
    np.dtype(np.float32): 2.0**-22,
}  # some hundred and a few units in the last place
VARIABLE = "PREFDRO_TESTS_JITTER"  # tells the seed to the processes that a test starts
seed: int | None = None  # of --jitter


def order(rows: int) -> np.ndarray:
    """A permutation of so many rows; without --jitter the one that changes nothing."""
    if seed is None:
        return np.arange(rows)
    return np.random.Generator(np.random.PCG64([seed, rows])).permutation(rows)


def shaken(x: Any) -> Any:
    """x (1 + SIZE noise) for an array or number of floats, everything else as it is."""
    array = np.asarray(x)
    if array.dtype not in SIZE:
        return x
    # splitmix64 of the bits
    word = array.astype(np.float64).view(np.uint64) ^ np.uint64(
        (seed or 0) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    )
    with np.errstate(over="ignore"):
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            word = (word ^ (word >> np.uint64(shift))) * np.uint64(factor)
    noise = (word >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
    moved = (array.astype(np.float64) * (1 + SIZE[array.dtype] * noise)).astype(array.dtype)
    return (
        moved
        if isinstance(x, np.ndarray)
        else moved[()]
        if isinstance(x, np.generic)
        else float(moved)
    )


class Generator(np.random.Generator):
    """numpy's, with draws that are shaken."""

    def random(self, *given: Any, **named: Any) -> Any:
        return np.minimum(shaken(super().random(*given, **named)), 1 - 2.0**-53)  # 1 is not drawn

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        return np.clip(shaken(super().uniform(low, high, size)), low, high)

    def dirichlet(self, alpha: Any, size: Any = None) -> Any:
        moved = shaken(super().dirichlet(alpha, size))
        return moved / moved.sum(-1, keepdims=True)


def _shaking(name: str) -> Callable[..., Any]:
    def draw(self: Generator, *given: Any, **named: Any) -> Any:
        return shaken(getattr(super(Generator, self), name)(*given, **named))

    return draw


CONTINUOUS = (
    "normal standard_normal exponential standard_exponential standard_cauchy gumbel standard_t"
    " gamma beta"
)
for _name in CONTINUOUS.split():
    setattr(Generator, _name, _shaking(_name))


def turn_on(number: int) -> None:
    """From now on, in this process, for numpy's `default_rng` and for what torch draws."""
    global seed
    seed = number
    os.environ[VARIABLE] = str(number)
    plain = np.random.default_rng

    def default_rng(source: Any = None) -> np.random.Generator:
        return (
            source
            if isinstance(source, np.random.Generator)
            else Generator(plain(source).bit_generator)
        )

    np.random.default_rng = default_rng
    for name in ("rand", "randn", "rand_like", "randn_like", "normal"):
        setattr(torch, name, _of_torch(getattr(torch, name)))
    for name in ("normal_", "uniform_"):  # weights of models
        setattr(torch.Tensor, name, _of_torch(getattr(torch.Tensor, name)))


def as_in_the_test() -> None:
    """In a process that a test started: draw as the test does."""
    if VARIABLE in os.environ:
        turn_on(int(os.environ[VARIABLE]))


def _of_torch(draw: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def drawn(*given: Any, **named: Any) -> torch.Tensor:
        x = draw(*given, **named)
        if x.dtype in (torch.float64, torch.float32) and x.device.type == "cpu":
            with torch.no_grad():
                x.copy_(torch.from_numpy(np.asarray(shaken(x.detach().numpy()))))
        return x

    return drawn
