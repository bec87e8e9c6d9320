"""Each claim on transport and AOT: the verdict on two seeds, and that a false variant of it is
refuted."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from theory.claims import Finding, Verdict, aot, transport
from theory.functionals import aot_unpaired
from theory.losses import logistic
from theory.transport import second_order_violation
from theory.worlds import unit_vectors

CHECKS = {claim.name: claim.check for claim in (*transport.CLAIMS, *aot.CLAIMS)}


def concave(t: Tensor, beta: float) -> Tensor:
    return 30 - (beta - t) ** 2


FALSE: list[tuple[str, dict[str, Any]]] = [
    ("sorting-solves-transport", {"costs": {"concave": (concave, 0.5)}}),
    ("dominance-violation", {"sign": -1}),
    ("aot-objective-deviation", {"constant": 1.1}),  # two samples, of which it counts each in full
    ("aot-violation-rate", {"claimed": -0.6}),
    ("aot-violation-rate", {"claimed": -0.4}),
    ("aot-violation-rate", {"faster": -0.85}),
    ("aot-violation-rate", {"faster": -1.15}),
    ("aot-envelope", {"stale": 0.05}),
    ("aot-minibatch-bias", {"h": concave}),
    ("soft-sorting-limit", {"factor": 1.5}),
    ("aot-below-dpo", {"costs": {"concave": (concave, 0.5)}}),
    # one rejected reward only: no coupling to choose
    ("aot-not-convex", {"rejected": ((0.0, 0.0), (0.0, 0.0))}),
    ("second-order-dominance", {"margin": 0.01}),
]


def lines(finding: Finding, verdict: Verdict) -> list[str]:
    return [line.what for line in finding.measurements if line.verdict == verdict]


@pytest.mark.some(2)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CHECKS)
def test_verdict(name: str, seed: int) -> None:
    finding = CHECKS[name]("smoke", seed)
    assert finding.verdict == Verdict.HOLDS, finding.measurements


@pytest.mark.some(1)
@pytest.mark.parametrize(("name", "change"), FALSE)
def test_a_false_variant_is_refuted(name: str, change: dict[str, Any]) -> None:
    finding = CHECKS[name]("smoke", 0, **change)
    assert finding.verdict == Verdict.REFUTED, finding.measurements
    if name in (
        "sorting-solves-transport",
        "aot-objective-deviation",
        "aot-below-dpo",
        "second-order-dominance",
    ):
        assert any(
            line.counterexample for line in finding.measurements if line.verdict == Verdict.REFUTED
        )


def test_every_claim_has_a_false_variant() -> None:
    assert {name for name, _ in FALSE} == set(CHECKS)


def test_a_start_for_each_order_finds_the_global_minimum() -> None:
    """No theta of a fine grid of the disc is better."""
    rng = np.random.default_rng(4)
    sides = (unit_vectors(rng.standard_normal((k, 2))) for k in (4, 3))
    a, b = (torch.from_numpy(side) for side in sides)
    p, q = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(3))
    world = aot._AotWorld(a, b, p, q)
    assert len(world.starts) == 2 * (6 + 3)
    turn, reach = np.meshgrid(np.linspace(0, 2 * np.pi, 721), np.linspace(0, 2, 41))
    grid = torch.from_numpy(
        np.stack([reach * np.cos(turn), reach * np.sin(turn)], -1).reshape(-1, 2)
    )
    masses = torch.from_numpy(p), torch.from_numpy(q)
    values = aot_unpaired(grid @ a.T, grid @ b.T, logistic, 1.0, *masses)
    assert world.best.value.item() <= values.min().item() + 1e-12
    assert values.min().item() - world.best.value.item() < 1e-4


def scaled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: 1.01 * function(*args, **kwargs)


def unsorted(u: Tensor, v: Tensor, h: Any, beta: float, *rest: Any, **kwargs: Any) -> Tensor:
    """DPO in the place of AOT."""
    return h(u - v, beta).mean(-1)


def test_a_wrong_batch_of_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A factor leaves the order of the batch sizes as it is, and only DPO tells."""
    monkeypatch.setattr(aot, "aot_unpaired", scaled(aot_unpaired))
    finding = CHECKS["aot-minibatch-bias"]("smoke", 0)
    assert lines(finding, Verdict.REFUTED) == [
        "batches of one pair against DPO, value and gradient"
    ]


def test_without_sorting_there_is_no_concave_kink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aot, "aot_unpaired", unsorted)
    assert CHECKS["aot-not-convex"]("smoke", 0).verdict == Verdict.REFUTED


def test_values_that_can_be_computed_by_hand() -> None:
    """h = (1 - t)²: h(0) = 1, h(1/2) = 1/4, h(1) = 0; the ends have (1 + 1/4)/2 and (1/4 + 0)/2,
    the midpoint (0 + 1)/2."""
    finding = CHECKS["aot-not-convex"]("smoke", 0)
    (line,) = (line for line in finding.measurements if line.what.endswith("least squares"))
    assert line.ratio == pytest.approx((1 / 2) / ((1.25 / 2 + 0.25 / 2) / 2))
    assert (
        "0.625 at theta = (1, 1/2) and 0.125 at (1, -1/2), on average 0.375; at the midpoint (1,"
        " 0) 0.5" in line.figure
    )


def test_a_second_order_violation_the_wrong_way_round_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        transport,
        "second_order_violation",
        lambda u, v, p=None, q=None, **k: second_order_violation(v, u, q, p, **k),
    )
    finding = CHECKS["second-order-dominance"]("smoke", 0)
    assert "cases where the violation and the integrated distribution functions disagree" in lines(
        finding, Verdict.REFUTED
    )
