import numpy as np
import pytest

from theory.claims.ledger import Verdict
from theory.claims.slowest import (
    BALLS,
    Worlds,
    errors_at,
    errors_of,
    genes_of,
    gradient_norm_rate,
    rare,
    search,
    slowest_at_each_n,
    slowest_instance,
    worlds_of,
)
from theory.twins.programs import kldpo


@pytest.mark.some(1)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_world_is_slower_than_the_root(seed: int) -> None:
    assert slowest_instance("smoke", seed).verdict == Verdict.HOLDS


@pytest.mark.slow
def test_a_faster_rate_is_refuted() -> None:
    assert slowest_instance("smoke", 0, claimed=-0.6).verdict == Verdict.REFUTED


@pytest.mark.parametrize("seed", [0, 1])
def test_worlds_that_change_with_n_are_slower_than_a_quarter(seed: int) -> None:
    assert slowest_at_each_n("smoke", seed).verdict == Verdict.HOLDS


@pytest.mark.some(1)
@pytest.mark.parametrize("change", [{"power": 1.2}, {"power": 2.8}, {"claimed": -0.02}])
def test_another_decay_with_n_is_refuted(change: dict[str, float]) -> None:
    assert slowest_at_each_n("smoke", 0, **change).verdict == Verdict.REFUTED


def test_the_seed_of_the_search_is_the_world_with_a_rare_atom() -> None:
    (rms,) = errors_at(rare(10**6), 10**6, 4, 3)
    u = np.array([[1, 0.5], [1, -0.5], [-1, 1.0]])
    p = np.array([0.4999995, 0.4999995, 1e-6])
    sample = np.random.default_rng(3).multinomial(10**6, p, size=4) / 10**6
    common = {"radius": 0.1, "beta": 1.0, "bound": 2.0}
    target = kldpo(u, p, **common).theta
    fits = np.array([kldpo(u, q, **common).theta for q in sample])
    expected = np.sqrt(((fits - target) ** 2).sum(1).mean())
    assert rms == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("seed", [0, 1])
def test_algorithm_1_is_slow_in_the_designed_world(seed: int) -> None:
    finding = gradient_norm_rate("smoke", seed)
    assert finding.verdict == Verdict.HOLDS, finding.measurements
    assert "0.853553" in finding.measurements[0].figure


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"claimed": -0.35}, "Algorithm 1"),
        ({"claimed": -0.15}, "Algorithm 1"),
        ({"exact": -0.6}, "exact W2 ball"),
        ({"exact": -0.4}, "exact W2 ball"),
        ({"probability": 0.8}, "Algorithm 1"),
    ],
)
def test_other_rates_or_another_world_are_refuted(change: dict[str, float], words: str) -> None:
    finding = gradient_norm_rate("smoke", 0, **change)
    refuted = [line.what for line in finding.measurements if line.verdict == Verdict.REFUTED]
    assert len(refuted) == 1 and words in refuted[0]


def test_the_expansion_behind_the_counterexample() -> None:
    """log 2 + b² (1 - 2 rho²)/8 + rho (1 - rho²) b³/16, against the objective in extended
    precision."""
    for rho in (2**-0.5, 0.3):
        p = (1 + rho) / 2
        b = np.longdouble(1e-3)
        loss = p * np.log1p(np.exp(-b)) + (1 - p) * np.log1p(np.exp(b))
        slope = np.sqrt(p / (1 + np.exp(b)) ** 2 + (1 - p) / (1 + np.exp(-b)) ** 2)
        expansion = (
            np.log(np.longdouble(2)) + b**2 * (1 - 2 * rho**2) / 8 + rho * (1 - rho**2) * b**3 / 16
        )
        assert abs(float(loss + rho * b * slope - expansion)) < 5 * float(b) ** 4


def test_worlds_are_read_from_genes_as_preference_worlds() -> None:
    worlds = worlds_of(genes_of(5, np.random.default_rng(0)))
    assert np.allclose(worlds.p.sum(1), 1) and (worlds.p > 0).all()
    assert (np.linalg.norm(worlds.u, axis=-1) < 2).all()
    assert ((worlds.fraction > 0) & (worlds.fraction <= 1)).all()
    assert np.array_equal(worlds.u[:, :6], -worlds.u[:, 6:])  # each pair with both labels


def test_errors_are_to_the_population_minimiser() -> None:
    world = worlds_of(genes_of(1, np.random.default_rng(3)))
    world = Worlds(world.u, world.p, np.array([0.4]))
    ball = BALLS[0]
    radius = 0.4 * ball.radius(world.u, world.p)[0]
    target = kldpo(world.u[0], world.p[0], radius=radius, beta=1.0, bound=2.0).theta
    n, seed = 1000, 5
    sample = np.random.default_rng(seed).multinomial(n, world.p[:, None, :], size=(1, 2)) / n
    theta = kldpo(world.u[0], sample[0, 1], radius=radius, beta=1.0, bound=2.0).theta
    assert errors_of(ball, world, (n,), 2, seed)[0, 0, 1] == pytest.approx(
        np.linalg.norm(theta - target), rel=1e-4
    )


def test_the_search_finds_slower_worlds_than_chance() -> None:
    """Its slowest world stays slower than the median on samples that the search has not seen."""
    ball = BALLS[0]
    genes, slopes = search(
        ball, candidates=24, generations=8, replicates=32, sizes=(10**3, 10**4), seed=0
    )
    assert (np.diff(slopes) <= 0).all()
    errors = np.sqrt(
        (errors_of(ball, worlds_of(genes[:1]), (10**3, 10**4), 200, 99) ** 2).mean(-1)
    )[0]
    chance = np.sqrt(
        (
            errors_of(
                ball, worlds_of(genes_of(24, np.random.default_rng(1))), (10**3, 10**4), 200, 99
            )
            ** 2
        ).mean(-1)
    )
    typical = np.median(np.log10(chance[:, 1] / chance[:, 0]))
    assert np.log10(errors[1] / errors[0]) > typical + 0.02
