import numpy as np
import pytest

from theory.claims.ledger import Verdict
from theory.claims.problems import one_pair
from theory.claims.uniformity import _grid, pointwise_to_uniform, uniform_deviation


@pytest.mark.parametrize("seed", [0, 1])
def test_the_step_to_the_minimiser_is_a_gap(seed: int) -> None:
    assert pointwise_to_uniform("smoke", seed).verdict == Verdict.GAP


def test_there_is_no_gap_where_theta_comes_from_another_sample() -> None:
    assert pointwise_to_uniform("smoke", 0, own_sample=False).verdict == Verdict.LOOSE


def test_a_smaller_constant_is_refuted() -> None:
    assert pointwise_to_uniform("smoke", 0, constant=0.6).verdict == Verdict.REFUTED


@pytest.mark.parametrize("seed", [0, 1])
def test_the_repaired_bound_covers(seed: int) -> None:
    assert uniform_deviation("smoke", seed).verdict == Verdict.LOOSE


def test_a_smaller_repaired_bound_is_refuted() -> None:
    assert uniform_deviation("smoke", 0, constant=0.2).verdict == Verdict.REFUTED


def test_the_grid_has_theta_ref_and_stays_inside() -> None:
    for away, farthest in ((0.5, 1.5), (1.0, 2.0)):
        world = one_pair(bound=2.0, away=away)
        points, reach = _grid(world, 8)
        assert np.allclose(np.abs(points - world.theta_ref)[:, 0], 2.0 * reach)
        assert (np.abs(points) <= 2.0).all() and points.max() == pytest.approx(2.0)
        assert reach.min() == 0 and reach.max() == farthest
