"""Claims on the radius: bias, coverage and schedules; verdicts, and false variants that flip
them."""

from typing import Any

import numpy as np
import pytest

from theory.claims import radii
from theory.claims.ledger import Verdict
from theory.claims.problems import worlds
from theory.claims.radii import CLAIMS
from theory.radius_choice import profile_coverage
from theory.worlds import random_world

CHECKS = {claim.name: claim.check for claim in CLAIMS}
FLIPS: list[tuple[str, dict[str, Any]]] = [
    ("bias-kl", {"exponent": 0.6}),
    ("bias-kl", {"exponent": 0.4}),
    ("bias-wasserstein", {"exponents": (("w1-free", 0.9),)}),
    ("bias-wasserstein", {"exponents": (("w2-free", 1.1),)}),
    ("bias-wasserstein", {"exponents": (("w2-finite", 1.9),)}),
    ("radius-coverage", {"scale": 0.8}),
    ("radius-coverage", {"scale": 1.25}),
    ("radius-coverage", {"star": 0.85}),
    ("radius-coverage", {"star": 1.2}),
    ("radius-coverage", {"distance_rates": (-0.4, -0.25)}),
    ("radius-coverage", {"distance_rates": (-0.5, -0.35)}),
    ("radius-coverage", {"schedules": (("kl", -0.5, -0.35),)}),
    ("radius-coverage", {"schedules": (("w1-free", -0.5, -0.4),)}),
    ("radius-coverage", {"schedules": (("w2-free", -0.25, -0.35),)}),
    ("radius-coverage", {"schedules": (("w2-free", -0.5, -0.6),)}),
]


@pytest.mark.some(3)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", [name for name in CHECKS if name != "coverage-costs-the-rate"])
def test_every_claim_holds(name: str, seed: int) -> None:
    finding = CHECKS[name]("smoke", seed)
    assert finding.verdict == Verdict.HOLDS, finding.measurements


@pytest.mark.some(2)
@pytest.mark.parametrize(("name", "change"), FLIPS)
def test_a_false_variant_is_refuted(name: str, change: dict[str, Any]) -> None:
    finding = CHECKS[name]("smoke", 0, **change)
    assert finding.verdict == Verdict.REFUTED, finding.measurements
    assert any(
        line.counterexample for line in finding.measurements if line.verdict == Verdict.REFUTED
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_coverage_of_p_costs_the_rate_with_free_features_only(seed: int) -> None:
    finding = CHECKS["coverage-costs-the-rate"]("smoke", seed)
    assert finding.verdict == Verdict.REFUTED
    verdicts = {line.what.partition(",")[0]: line.verdict for line in finding.measurements}
    assert verdicts["KL"] == Verdict.REFUTED
    assert [line.verdict for line in finding.measurements] == [Verdict.REFUTED] * 3 + [
        Verdict.HOLDS
    ]
    change = {"schedules": (("w2-free", -0.25),)}
    assert CHECKS["coverage-costs-the-rate"]("smoke", seed, **change).verdict == Verdict.HOLDS
    for claimed in (-0.35, -0.15):
        check = CHECKS["coverage-costs-the-rate"]("smoke", seed, claimed=claimed, **change)
        assert check.verdict == Verdict.REFUTED


def test_covering_theta_star_against_profile_coverage() -> None:
    """The radius that `theory.radius_choice` reads off a large sample is that of the claim."""
    (world,) = worlds(3, 1)
    n = 20_000
    counts = np.random.default_rng(0).multinomial(n, world.probability)
    assert world.theta_star is not None
    w = world.theta_star - world.theta_ref
    radius = profile_coverage(np.repeat(world.u, counts, axis=0), w, beta=world.beta, delta=0.05)
    assert radius * np.sqrt(n) == pytest.approx(radii.star_radius(world), rel=0.04)


@pytest.mark.parametrize("ball", ["kl", "w1-free", "w2-free"])
def test_a_leading_term_with_another_factor_is_refuted(
    ball: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = radii._LEADING[ball]
    monkeypatch.setitem(radii._LEADING, ball, lambda world, radius: 1.2 * right(world, radius))
    name = "bias-kl" if ball == "kl" else "bias-wasserstein"
    finding = CHECKS[name]("smoke", 0)
    refuted = [line.what for line in finding.measurements if line.verdict == Verdict.REFUTED]
    assert len(refuted) == 1 and "leading term" in refuted[0]


def test_the_distance_between_two_samples_by_hand() -> None:
    """All mass moves from one atom to another: W1 is their distance."""
    world = random_world(0, contexts=1, actions=2, dimension=2, beta=1.0, bound=1.0)
    K = len(world.probability)
    start, end = np.eye(K)[0], np.eye(K)[3]
    moved = type(world)(
        world.psi1, world.psi2, world.label, start, world.beta, world.bound, world.theta_ref
    )
    for power in (1, 2):
        assert radii._distances(moved, end[None], power)[0] == pytest.approx(
            world.distance(1.0)[0, 3]
        )


def test_equal_atoms_are_counted_once() -> None:
    world = random_world(0, contexts=2, actions=2, dimension=2, beta=1.0, bound=1.0)
    assert len(radii._distinct(world)) == 2 * 4 * 2
    doubled = type(world)(
        *(
            np.concatenate([part, part])
            for part in (world.psi1, world.psi2, world.label, world.probability / 2)
        ),
        world.beta,
        world.bound,
        world.theta_ref,
    )
    assert np.allclose(np.sort(radii._distinct(doubled)), np.sort(world.probability))
