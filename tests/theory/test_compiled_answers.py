"""What compiled solvers answer: what the solvers in torch find, on ordinary and on awkward samples,
and what programs find that share no code with either."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from theory import SETS, fit
from theory.batch import PairBatch, pair_batch
from theory.fitting import far_bound
from theory.solvers.compiled.batches import Answer, answer
from theory.solvers.kl import solve_mean
from theory.solvers.newton import Domain
from theory.solvers.points import Point
from theory.twins import knowledge, twins

Array = np.ndarray

pytest.importorskip("numba")

# the largest size of a set that is drawn, and the power of the features' unit that it is in
SIZES = {
    "mean": (0.0, 0),
    "kl": (0.1, 0),
    "tilt": (5.0, 0),
    "chi2": (0.2, 0),
    "w1-free": (0.4, 1),
    "w2-free": (0.6, 1),
    "gradient": (0.6, 1),
    "gradient-squared": (0.6, 2),
}
ROBUST = [name for name in SIZES if name != "mean"]
KINDS = ["plain", "plain", "plain", "copies", "rare", "separable", "thin", "heavy"]


@dataclass(frozen=True)
class Instance:
    pairs: PairBatch
    beta: float
    domain: Domain
    size: torch.Tensor
    unit: float


def draw(name: str, seed: int, replicates: int) -> Instance:
    """An instance that is awkward in some way, more often than not: few pairs, scales from 1e-6 to
    1e6, a reference, a bound that is felt, and the kinds above."""
    rng = np.random.default_rng([sum(map(ord, name)), seed])
    n = int(rng.choice([1, 4, 12, 30, 60, 120, 300], p=[0.04, 0.04, 0.07, 0.2, 0.25, 0.2, 0.2]))
    d, beta = int(rng.choice([1, 2, 3, 5, 8])), float(rng.choice([0.1, 1.0, 3.0]))
    unit = 10.0 ** float(rng.uniform(-6, 6)) if rng.random() < 0.5 else 1.0
    u = rng.standard_normal((replicates, n, d))
    strength = 1.5 / np.sqrt(d)
    agree = rng.random((replicates, n, 1)) < 1 / (1 + np.exp(-strength * u.sum(-1, keepdims=True)))
    u = np.where(agree, u, -u)
    weights: Array | None = None
    match rng.choice(KINDS):
        case "copies":
            u[:, n // 3 :] = u[:, rng.integers(0, n // 3 + 1, n - n // 3)]
        case "rare":
            raw = np.where(rng.random((replicates, n)) < 0.3, 10.0 ** rng.uniform(-12, -3), 1.0)
            weights = raw / raw.sum(1, keepdims=True)
        case "separable":
            u[..., 0] = np.abs(u[..., 0]) + 0.1
        case "thin":
            u[..., -1] *= 1e-4
        case "heavy":
            u *= np.exp(1.5 * rng.standard_normal((replicates, n, 1)))
    if rng.random() < 0.25:  # replicates that share their atoms
        u, weights = u[0], rng.dirichlet(np.full(n, 2.0), replicates)
    pairs = pair_batch(u * unit, weights)
    pairs = PairBatch(pairs.ut, pairs.p.expand(replicates, -1))
    reference = np.zeros(d)
    if rng.random() < 0.4:
        reference = 0.5 * rng.standard_normal(d) / (beta * unit)
    bound = float(rng.choice([0.3, 5.0, 50.0], p=[0.1, 0.3, 0.6])) / (beta * unit)
    bound += 2 * float(np.linalg.norm(reference))
    if rng.random() < 0.3:
        bound = far_bound(pairs, beta, reference)
    largest, power = SIZES[name]
    size = largest * rng.uniform(0, 1, replicates) * (rng.random(replicates) > 0.1) * unit**power
    if name == "tilt":
        size = size + 0.02
    domain = Domain(torch.from_numpy(reference), bound)
    return Instance(pairs, beta, domain, torch.from_numpy(size), unit)


def compiled(name: str, at: Instance) -> Answer:
    if name == "mean":
        found = answer("mean", at.pairs, at.beta, at.domain, dual=False)
    else:
        found = SETS[name].sized(0.1).compiled(at.pairs, at.beta, at.domain, at.size)
    assert found is not None
    return found


def by_torch(name: str, at: Instance, rows: torch.Tensor) -> Point:
    part = at.pairs.select(rows)
    if name == "mean":
        return solve_mean(part, at.beta, at.domain)
    return SETS[name].sized(0.1).solve(part, at.beta, at.domain, at.size[rows])


def assert_same(name: str, at: Instance) -> int:
    """How many replicates were answered, each as torch does: the value to 1e-12 of it, w to 1e-8 of
    it or what the certificate leaves of its margins."""
    found = compiled(name, at)
    done = torch.ones(at.pairs.replicates, dtype=torch.bool)
    done[found.left] = False
    rows = done.nonzero()[:, 0]
    if not len(rows):
        return 0
    theirs, w = by_torch(name, at, rows), found.point.w[rows]
    value, gap = found.point.value[rows], found.point.gap[rows]
    assert bool((gap <= 5e-12).all())
    # the solver in torch may itself have stopped short, by what its own certificate says
    slack = 1e-12 * theirs.value + theirs.gap.clamp(min=0)
    assert bool(((value - theirs.value).abs() <= slack).all())
    assert found.point.collapsed[rows].equal(theirs.collapsed)
    sharp = theirs.gap <= 1e-12
    part = at.pairs.select(rows)
    apart = at.beta * (part.project(w) - part.project(theirs.w)).abs().amax(-1)
    margins = at.beta * part.project(theirs.w).abs().amax(-1)
    assert bool((apart <= 1e-8 * margins.clamp(min=1.0))[sharp].all())
    if theirs.dual is not None and found.point.dual is not None:
        close = torch.isclose(found.point.dual[rows], theirs.dual, rtol=1e-6, atol=1e-9 * at.unit)
        assert bool(close[sharp].all())
    return len(rows)


@pytest.mark.parametrize("name", SIZES)
def test_answers_are_those_of_torch(name: str) -> None:
    answered = sum(assert_same(name, draw(name, seed, 6)) for seed in range(10))
    assert answered >= 15


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("name", SIZES)
def test_a_thousand_answers_are_those_of_torch(name: str, part: int) -> None:
    """In four parts: torch takes minutes for what is awkward."""
    answered, first = 0, 1000 * (part + 1)
    seed = first
    while answered < 250:
        answered += assert_same(name, draw(name, seed, 12))
        seed += 1
        assert seed < first + 200, f"only {answered} replicates were answered"


@pytest.mark.parametrize("name", SIZES)
def test_ordinary_samples_are_all_answered(name: str) -> None:
    rng = np.random.default_rng(3)
    u = rng.standard_normal((5, 200, 4)) + 0.4
    zero = torch.zeros(4, dtype=torch.float64)
    size = torch.full((5,), 1.0 if name == "tilt" else 0.05, dtype=torch.float64)
    at = Instance(pair_batch(u), 1.0, Domain(zero, 50.0), size, 1.0)
    assert len(compiled(name, at).left) == 0
    assert assert_same(name, at) == 5


@pytest.mark.parametrize("name", ROBUST)
def test_fits_are_the_same_with_and_without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(2):
        at = draw(name, 50 + seed, 3)
        options: dict[str, Any] = {"beta": at.beta, "bound": at.domain.bound}
        options["theta_ref"] = at.domain.theta_ref
        u = at.pairs.ut.mT
        args = (u if len(u) > 1 else u[0], SETS[name].sized(at.size), at.pairs.p)
        monkeypatch.setenv("PREFDRO_COMPILED", "1")
        ours = fit(*args, **options)
        monkeypatch.setenv("PREFDRO_COMPILED", "0")
        theirs = fit(*args, **options)
        assert ours.converged.equal(ours.converged | theirs.converged)
        assert ours.collapsed.equal(theirs.collapsed) and ours.at_bound.equal(theirs.at_bound)
        apart = (ours.value - theirs.value).abs() <= 1e-12 * theirs.value + ours.gap + theirs.gap
        assert bool(apart.all())


@pytest.mark.parametrize("name", ["kl", "tilt", "chi2", "w1-free", "w2-free"])
def test_answers_are_those_of_a_program(name: str) -> None:
    """Clarabel and the polish of the twins: 1e-7 of the value, as their tests ask."""
    rng = np.random.default_rng(5)
    u = np.where(rng.random((40, 1)) < 0.75, 1, -1) * (rng.standard_normal((40, 2)) + 0.5)
    p = rng.dirichlet(np.full(40, 5.0))
    size = 0.7 if name == "tilt" else 0.04
    kind = SETS[name]
    value = twins()[name].fit(u, p, size, beta=1.3, bound=20.0, **knowledge(kind))[1]
    zero = torch.zeros(2, dtype=torch.float64)
    sizes = torch.tensor([size], dtype=torch.float64)
    at = Instance(pair_batch(u, p), 1.3, Domain(zero, 20.0), sizes, 1.0)
    found = compiled(name, at)
    assert len(found.left) == 0
    assert found.point.value.item() == pytest.approx(value, rel=1e-7)


def test_memory_is_not_that_of_copies() -> None:
    """Shared atoms are read in place: no copy for each replicate."""
    import tracemalloc

    rng = np.random.default_rng(6)
    u = torch.from_numpy(rng.standard_normal((1, 4, 5000)) + 0.3)
    p = torch.from_numpy(rng.dirichlet(np.full(5000, 3.0), 40))
    size = torch.full((40,), 0.05, dtype=torch.float64)
    domain = Domain(torch.zeros(4, dtype=torch.float64), 50.0)
    SETS["kl"].compiled(PairBatch(u, p), 1.0, domain, size)  # loads what it needs
    tracemalloc.start()
    found = SETS["kl"].compiled(PairBatch(u, p), 1.0, domain, size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is not None and len(found.left) == 0
    assert peak < u.numel() * 8  # bytes of a single copy
