"""Fits of a table with many equal rows against those of its distinct rows and their shares."""

import numpy as np
import pytest
import torch

from theory import (
    KL,
    ChiSquared,
    CVaR,
    GradientPenalty,
    Tilt,
    TotalVariation,
    WassersteinAtoms,
    WassersteinFree,
    fit,
)
from theory.batch import pair_batch
from theory.fitting import _solve
from theory.laws.program import Places
from theory.merging import merged
from theory.policy import Array
from theory.sets import AmbiguitySet
from theory.solvers.kl import solve_mean
from theory.solvers.newton import Domain

SETS = [
    None,
    KL(0.05),
    Tilt(1.0),
    ChiSquared(0.1),
    CVaR(0.6),
    TotalVariation(0.1),
    WassersteinFree(0.1),
    WassersteinFree(0.1, label_cost=0.5),
    WassersteinFree(0.2, 2),
    GradientPenalty(0.1, squared=True),
    WassersteinAtoms(0.2),
    WassersteinAtoms(0.4, power=2),
]
BETA, BOUND = 1.0, 6.0


def table(seed: int, n: int = 60, kinds: int = 9) -> tuple[Array, Places, Array]:
    """u (n, d) with few distinct rows, which of them each row is, and the distances between."""
    rng = np.random.default_rng(seed)
    atoms = rng.normal(0.4, 1.0, (kinds, 2))
    atom = np.append(np.arange(kinds), rng.integers(0, kinds, n - kinds))
    u = atoms[atom]
    return u, atom.astype(np.int64), np.linalg.norm(u[:, None] - u, axis=-1)


def unmerged(u: Array, ball: AmbiguitySet | None, weights: Array | None) -> tuple[Array, Array]:
    """theta and value of the solver on all rows."""
    pairs = pair_batch(u, weights)
    domain = Domain(torch.zeros(u.shape[1], dtype=torch.float64), BOUND)
    if ball is None:
        point = _solve(pairs, domain, None, lambda part, inner, _: solve_mean(part, BETA, inner))
    else:
        size = ball.check_size(pairs.replicates, pairs.p)
        point = _solve(
            pairs, domain, size, lambda part, inner, sizes: ball.solve(part, BETA, inner, sizes)
        )
    assert (point.gap <= 1e-10).all()
    return point.w.numpy(), point.value.numpy()


@pytest.mark.parametrize("ball", SETS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_table_fits_as_its_distinct_rows_and_as_all_rows(
    ball: AmbiguitySet | None, weighted: bool
) -> None:
    u, atom, distance = table(3)
    rng = np.random.default_rng(4)
    weights = rng.dirichlet(np.ones(len(u)), 3) if weighted else None
    full = ball.in_metric(distance) if ball is not None else None
    found = fit(u, full, weights, beta=BETA, bound=BOUND)
    # the distinct rows by hand
    share = np.full((1, len(u)), 1 / len(u)) if weights is None else weights
    few = np.stack([np.bincount(atom, x) for x in share])
    short = ball.in_metric(distance[:9, :9]) if ball is not None else None
    by_hand = fit(u[:9], short, few if weighted else few[0], beta=BETA, bound=BOUND)
    w, value = unmerged(u, full, weights)
    assert found.converged.all()
    np.testing.assert_allclose(found.value, by_hand.value, rtol=1e-12)
    np.testing.assert_allclose(found.theta, by_hand.theta, atol=1e-9)
    np.testing.assert_allclose(np.atleast_1d(found.value), value, atol=2e-10)
    np.testing.assert_allclose(np.atleast_2d(found.theta), w, atol=1e-5)


@pytest.mark.parametrize("ball", [KL(0.05), CVaR(0.6), WassersteinAtoms(0.2)], ids=str)
def test_the_worst_case_is_that_of_the_rows_that_were_given(ball: AmbiguitySet) -> None:
    u, _, distance = table(5)
    full = ball.in_metric(distance)
    found = fit(u, full, beta=BETA, bound=BOUND)
    worst = found.worst
    assert not isinstance(worst, list) and worst.weights is not None
    assert worst.weights.shape == (len(u),)
    assert worst.value == pytest.approx(found.value.item(), abs=1e-10)
    if worst.moves is not None:
        assert worst.moves.source.max() < len(u)
    path = fit(u, full.sized([full.size, full.size]), beta=BETA, bound=BOUND)
    assert path.theta.shape == (2, 2) and path.one(1).names == found.names


def test_rows_that_the_metric_tells_apart_stay_apart() -> None:
    u = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.5], [1.0, 0.0], [0.0, -0.0], [0.0, 0.0]])
    distance = 1.0 - np.eye(6)
    ball = WassersteinAtoms(0.1, distance)
    assert merged(pair_batch(u), ball) is None
    plain = merged(pair_batch(u), None)
    assert plain is not None and plain[2].tolist() == [0, 0, 1, 0, 2, 2]
    for i, j in ((0, 3), (3, 0)):
        distance[i, j] = 0.0
    few = merged(pair_batch(u), WassersteinAtoms(0.1, distance))
    assert few is not None and few[2].tolist() == [0, 1, 2, 0, 3, 4]
    np.testing.assert_allclose(few[0].p, [[2 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 6]])
    distance[0, 2] = distance[2, 0] = 0.5  # then 0 and 3 are as near, but not to all others alike
    assert merged(pair_batch(u), WassersteinAtoms(0.1, distance)) is None


def test_samples_that_differ_between_replicates_are_left_as_they_are() -> None:
    u = np.ones((2, 3, 1)) * [[[1.0]], [[2.0]]]
    assert merged(pair_batch(u), None) is None
    assert fit(u, KL(0.1), beta=1.0, bound=2.0).theta.shape == (2, 1)


def test_errors_name_the_rows_that_were_given() -> None:
    u, _, distance = table(6)
    with pytest.raises(ValueError, match=r"shape \(60, 60\)"):
        fit(u, WassersteinAtoms(0.1, distance[:9, :9]), beta=1.0)
    with pytest.raises(ValueError, match="non-finite"):
        fit(np.where(u > 1, np.nan, u), KL(0.1), beta=1.0)
    with pytest.raises(ValueError, match=r"weights must have shape \(60,\)"):
        fit(u, KL(0.1), np.full(9, 1 / 9), beta=1.0)
