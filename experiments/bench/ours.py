"""Our fits as the benchmarks call them: whole calls of `fit`, checks included."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from experiments.bench.samples import BETA, Samples
from theory import (
    KL,
    AmbiguitySet,
    ChiSquared,
    Fit,
    GradientPenalty,
    Tilt,
    WassersteinFree,
    fit,
)
from theory.solvers.compiled.available import SWITCH

BOUND = 50.0  # out of reach: the peers have none
RADIUS = 0.02  # of the KL ball, in nats
SMOOTH: dict[str, AmbiguitySet | None] = {  # the kernels without kinks; None is the mean, DPO
    "mean": None,
    "kl": KL(RADIUS),
    "tilt": Tilt(1.0),
    "chi2": ChiSquared(0.05),
    "w1-free": WassersteinFree(0.1, power=1),
    "w2-free": WassersteinFree(0.1, power=2),
    "gradient": GradientPenalty(0.1),
    "gradient-squared": GradientPenalty(0.1, squared=True),
}


def ours(kind: AmbiguitySet | None, samples: Samples, compiled: bool = True) -> Fit:
    """A whole call, with compiled solvers or without; call it inside of `switch_restored`."""
    os.environ[SWITCH] = "1" if compiled else "0"
    return fit(samples.u, kind, samples.weights, beta=BETA, bound=BOUND)


@contextmanager
def switch_restored() -> Iterator[None]:
    """Whether solvers are compiled is afterwards as it was."""
    before = os.environ.get(SWITCH)
    try:
        yield
    finally:
        os.environ.pop(SWITCH, None)
        if before is not None:
            os.environ[SWITCH] = before


def agreement(found: Fit, other: Fit) -> dict[str, float]:
    """The largest gap of the first fits, and the largest relative difference of values."""
    apart = (found.value - other.value).abs() / other.value
    return {"certified_gap": float(found.gap.max()), "objective_gap": float(apart.max())}
