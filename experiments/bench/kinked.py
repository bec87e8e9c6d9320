"""Fits with kinks, compiled next to the interior-point method in torch, on one thread."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from experiments.bench.alternate import alternate, summary
from experiments.bench.ours import BOUND, agreement, ours
from experiments.bench.samples import BETA, Samples, draw_atoms, draw_pairs
from theory import SETS
from theory.batch import pair_batch


@dataclass(frozen=True)
class Kinked:
    """Pairs and atoms of a sample, replicates, rounds, and shares of the way to collapse."""

    pairs: int
    atoms: tuple[int, ...]
    replicates: int
    rounds: int
    shares: tuple[float, ...]
    dimension: int = 5


PROFILES = {
    "smoke": Kinked(40, (12,), 2, 2, (0.3,), dimension=3),
    "quick": Kinked(1000, (48, 160), 16, 5, (0.3, 0.7)),
    "paper": Kinked(1000, (48, 160), 64, 15, (0.1, 0.3, 0.7, 1.3)),
}


def rows(size: Kinked) -> Iterator[dict[str, Any]]:
    """Label moves, CVaR and total variation, then W1 and W2 on atoms of each number."""
    pairs = Samples(draw_pairs(size.replicates, size.pairs, size.dimension, seed=1), None)
    for name in ("w1-label", "cvar", "tv"):
        for share in size.shares:
            yield _row(name, pairs, None, share, size.rounds)
    for n in size.atoms:
        samples, distance = draw_atoms(size.replicates, n, size.dimension, seed=2)
        for name in ("w1-finite", "w2-finite"):
            for share in size.shares:
                yield _row(name, samples, distance, share, size.rounds)


def _row(
    name: str, samples: Samples, distance: np.ndarray | None, share: float, rounds: int
) -> dict[str, Any]:
    kind = SETS[name].in_metric(distance)
    first = pair_batch(*samples.replicate(0))
    kind = kind.sized(kind.size_at(share, first, beta=BETA, bound=BOUND))
    sides = {
        "compiled": partial(ours, kind, samples, True),
        "torch": partial(ours, kind, samples, False),
    }
    n, d = samples.u.shape[-2:]
    row: dict[str, Any] = {"problem": f"{name} at {share:g} of collapse", "n": n, "d": d}
    row |= {"replicates": samples.replicates} | agreement(sides["compiled"](), sides["torch"]())
    return row | summary(alternate(sides, rounds), samples.replicates)
