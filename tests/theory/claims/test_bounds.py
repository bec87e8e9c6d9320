import numpy as np
import pytest
import torch

from theory.bounds.population import Size
from theory.claims.bounds import (
    _degenerate_budget,
    _degenerate_transport,
    _knife_edge,
    bound_every_radius,
    bound_free,
    bound_from_data,
    bound_kl_ball,
    bound_tilt,
)
from theory.claims.ledger import Verdict
from theory.duals import transport_dual

CHECKS = (bound_tilt, bound_kl_ball, bound_free, bound_from_data, bound_every_radius)


@pytest.mark.some(3)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("check", CHECKS)
def test_the_bounds_cover(check, seed: int) -> None:
    found = check("smoke", seed)
    assert found.verdict == Verdict.LOOSE, [
        (line.what, line.figure) for line in found.measurements if line.verdict != Verdict.LOOSE
    ]


@pytest.mark.parametrize("check", [bound_tilt, bound_kl_ball, bound_free, bound_from_data])
def test_a_bound_divided_by_one_and_a_half_is_refuted(check) -> None:
    """By the deterministic step, which some sample meets closely."""
    assert check("smoke", 0, constant=1 / 1.5).verdict in (Verdict.GAP, Verdict.REFUTED)


@pytest.mark.some(2)
@pytest.mark.parametrize("exponent", [-0.4, -0.6])
@pytest.mark.parametrize("check", [bound_tilt, bound_kl_ball, bound_free, bound_every_radius])
def test_another_rate_is_refuted(check, exponent: float) -> None:
    assert check("smoke", 0, exponent=exponent).verdict == Verdict.REFUTED


def test_the_budget_is_degenerate() -> None:
    """At theta_rho a budget that is a little less, or more, costs a different target each."""
    u, p, distance, theta, budget = _degenerate_budget()
    losses = torch.from_numpy(np.logaddexp(0, -u @ theta))[None]

    def worst(budget: float) -> tuple[np.ndarray, float]:
        found = transport_dual(
            losses,
            torch.from_numpy(p)[None],
            torch.from_numpy(distance),
            torch.tensor([budget], dtype=torch.float64),
        )
        return found.weights[0].numpy(), found.dual.item()

    below, above = worst(budget * 0.999), worst(budget * 1.001)
    assert below[1] > 1.05 * above[1]  # the multiplier jumps: no target is as good as another
    assert 0.1 < theta[0] < 2.9
    assert _degenerate_transport().bound(Size(10**6, 0.05, 1.0, 3.0), None) < 0.1


def test_the_knife_edge_is_one_and_its_bound_holds_for_samples() -> None:
    case = _knife_edge()
    assert case.fit(case.p).theta.numpy() == pytest.approx(case.theta, abs=1e-6)
    shares = np.random.default_rng(0).multinomial(10**4, case.p, size=6) / 10**4
    errors = np.linalg.norm(case.fit(shares).theta.numpy() - case.theta, axis=1)
    for share, error in zip(shares, errors, strict=True):
        assert error <= case.bound(case.size(10**4), share) + 1e-6
    assert case.bound(case.size(10**7), None) < 0.05
