"""The claim on Assumption 2: its verdict, and what flips it."""

import numpy as np
import pytest

from theory.batch import pair_batch
from theory.claims import problems, regularity
from theory.claims.ledger import Verdict
from theory.claims.problems import RobustProblem
from theory.solvers.collapse import free_collapse
from theory.worlds import from_labels


@pytest.mark.parametrize("seed", [0, 1])
def test_regularity_is_lost_before_the_collapse(seed: int) -> None:
    finding = regularity.regularity("smoke", seed)
    assert finding.verdict == Verdict.REFUTED
    refuted = {
        line.what.partition(":")[0]: line
        for line in finding.measurements
        if line.verdict == Verdict.REFUTED
    }
    assert {"W1 with free features", "W2 with free features"} <= set(refuted)
    assert all(line.counterexample for line in refuted.values())


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_not_where_features_are_isotropic_and_the_signal_is_weak(seed: int) -> None:
    assert (
        regularity.regularity("smoke", seed, elongations=(1.0,), signals=(0.1,)).verdict
        == Verdict.HOLDS
    )


def test_the_example_by_hand() -> None:
    """u = (1, 0) or (0, 1/10), always labelled right."""
    u = np.array([[1.0, 0.0], [0.0, 0.1]])
    world = from_labels(u / 2, -u / 2, np.ones(2), beta=1.0, bound=1.0)
    assert np.allclose(world.covariance(), np.diag([1 / 2, 1 / 200]))
    assert regularity._flat_radius(RobustProblem("w2-free", world)) == pytest.approx(
        0.0707, abs=1e-4
    )
    assert regularity._flat_radius(RobustProblem("w1-free", world)) == pytest.approx(0.05)
    assert free_collapse(pair_batch(world.u, world.probability), 2).item() == pytest.approx(
        0.5025, abs=1e-4
    )
    assert regularity._flat_radius(RobustProblem("kl", world)) == pytest.approx(
        np.log(2)
    )  # all mass on one of the two


@pytest.mark.parametrize("name", ["regularity_kl", "regularity_finite", "regularity_free"])
def test_a_wrong_lambda_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(problems, name)
    monkeypatch.setattr(problems, name, lambda *args, **rest: right(*args, **rest) + 1e-4)
    settings = {"elongations": (1.0,), "signals": (0.1,)}
    assert regularity.regularity("smoke", 0, **settings).verdict == Verdict.REFUTED
