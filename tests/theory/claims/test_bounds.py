import numpy as np
import pytest

from theory.bounds.population import Size, seen_from
from theory.claims.bounds import (
    _degenerate_transport,
    _knife_edge,
    bound_every_radius,
    bound_free,
    bound_from_data,
    bound_kl_ball,
    bound_tilt,
)
from theory.claims.ledger import Verdict

CHECKS = (bound_tilt, bound_kl_ball, bound_free, bound_from_data, bound_every_radius)


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


@pytest.mark.parametrize("exponent", [-0.4, -0.6])
@pytest.mark.parametrize("check", [bound_tilt, bound_kl_ball, bound_free, bound_every_radius])
def test_another_rate_is_refuted(check, exponent: float) -> None:
    assert check("smoke", 0, exponent=exponent).verdict == Verdict.REFUTED


def test_the_budget_is_degenerate() -> None:
    """Just above it, a worst case of the population moves mass that none moves below: there every
    atom has one target."""
    case = _degenerate_transport()
    losses = seen_from(case.theta, case.u, Size(1, 0.05, case.beta, case.B)).losses
    assert np.isfinite(losses).all()
    assert 0.1 < case.theta[0] < 2.9
    assert case.bound(case.size(10**6), None) < 0.1


def test_the_knife_edge_is_one_and_its_bound_holds_for_samples() -> None:
    case = _knife_edge()
    assert case.fit(case.p).theta.numpy() == pytest.approx(case.theta, abs=1e-6)
    shares = np.random.default_rng(0).multinomial(10**4, case.p, size=6) / 10**4
    errors = np.linalg.norm(case.fit(shares).theta.numpy() - case.theta, axis=1)
    for share, error in zip(shares, errors, strict=True):
        assert error <= case.bound(case.size(10**4), share) + 1e-6
    assert case.bound(case.size(10**7), None) < 0.05
