"""Each claim on transport and AOT: the verdict on two seeds, and that a false variant of it is
refuted."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from theory.claims import Finding, Verdict, aot, transport
from theory.functionals import aot_unpaired
from theory.transport import second_order_violation

CHECKS = {claim.name: claim.check for claim in (*transport.CLAIMS, *aot.CLAIMS)}


def concave(t: Tensor, beta: float) -> Tensor:
    return 30 - (beta - t) ** 2


FALSE: dict[str, dict[str, Any]] = {
    "sorting-solves-transport": {"costs": {"concave": (concave, 0.5)}},
    "dominance-violation": {"sign": -1},
    "aot-objective-deviation": {"constant": 1.0},
    "aot-violation-rate": {"claimed": -1.0},
    "aot-envelope": {"stale": 0.5},
    "aot-minibatch-bias": {"h": concave},
    "soft-sorting-limit": {"factor": 5.0},
    "aot-below-dpo": {"costs": {"concave": (concave, 0.5)}},
    "aot-not-convex": {
        "rejected": ((0.0, 0.0), (0.0, 0.0))
    },  # one rejected reward only: no coupling to choose
    "second-order-dominance": {"margin": 0.1},
}


def lines(finding: Finding, verdict: Verdict) -> list[str]:
    return [line.what for line in finding.measurements if line.verdict == verdict]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CHECKS)
def test_verdict(name: str, seed: int) -> None:
    finding = CHECKS[name]("smoke", seed)
    assert finding.verdict == Verdict.HOLDS, finding.measurements


@pytest.mark.parametrize("name", CHECKS)
def test_a_false_variant_is_refuted(name: str) -> None:
    finding = CHECKS[name]("smoke", 0, **FALSE[name])
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
