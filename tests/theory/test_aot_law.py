"""The limit law of AOT against a regression in closed form and against derivatives of the minimiser
in the weights; the bound on the deviation by hand."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar

from theory.bounds.aot import Side, aot_deviation
from theory.laws.aot import aot_law
from theory.losses import least_squares, logistic

Array = np.ndarray


def test_one_rejected_atom_is_a_regression() -> None:
    """h = (1 - t)²: theta = E a / E a², whose influence is a (1 - theta a) / E a²."""
    a, p = np.array([[0.5], [1.0], [3.0]]), np.array([0.2, 0.5, 0.3])
    square = p @ a[:, 0] ** 2
    theta = p @ a[:, 0] / square
    law = aot_law(a, [[0.0]], p, [1.0], np.array([theta]), h=least_squares, beta=1.0, bound=9.0)
    influence = a[:, 0] * (1 - theta * a[:, 0]) / square
    assert p @ influence == pytest.approx(0, abs=1e-12)
    assert law.covariance == pytest.approx(np.array([[p @ influence**2]]))
    assert law.excess == pytest.approx([square * (p @ influence**2)])
    assert law.curvature == pytest.approx(2 * square) and law.multiplier == 0


def world(bound: float) -> dict[str, Any]:
    rng = np.random.default_rng(6)
    return {
        "chosen": 0.7 * rng.standard_normal((4, 2)) + 0.4,
        "rejected": 1.4 * rng.standard_normal((5, 2)),
        "p": rng.dirichlet(np.full(4, 4.0)),
        "q": rng.dirichlet(np.full(5, 4.0)),
        "bound": bound,
    }


def objective(theta: Array, chosen: Array, rejected: Array, p: Array, q: Array) -> float:
    """OT_h for the logistic h, by walking along both sorted samples."""
    u, v = chosen @ theta, rejected @ theta
    i, j = list(np.argsort(u)), list(np.argsort(v))
    left, right, total = dict(enumerate(p)), dict(enumerate(q)), 0.0
    while i and j:
        mass = min(left[i[0]], right[j[0]])
        total += mass * math.log1p(math.exp(-(u[i[0]] - v[j[0]])))
        left[i[0]] -= mass
        right[j[0]] -= mass
        if left[i[0]] <= 1e-15:
            i.pop(0)
        if j and right[j[0]] <= 1e-15:
            j.pop(0)
    return total


def minimiser(made: dict[str, Any], near: Array, inside: bool) -> Array:
    atoms = made["chosen"], made["rejected"], made["p"], made["q"]
    if inside:
        options = {"xatol": 1e-11, "fatol": 1e-16, "maxiter": 4000}
        found = minimize(objective, near, atoms, method="Nelder-Mead", options=options)
        return found.x
    around = math.atan2(near[1], near[0])
    B = made["bound"]
    angle = minimize_scalar(
        lambda t: objective(B * np.array([math.cos(t), math.sin(t)]), *atoms),
        bounds=(around - 0.2, around + 0.2),
        method="bounded",
        options={"xatol": 1e-11},
    ).x
    return B * np.array([math.cos(angle), math.sin(angle)])


def best(made: dict[str, Any]) -> Array:
    """The best point of a grid over the disc, refined."""
    radii, angles = np.linspace(0.05, 1, 20) * made["bound"], np.linspace(0, 2 * np.pi, 120)
    atoms = made["chosen"], made["rejected"], made["p"], made["q"]
    grid = [r * np.array([math.cos(t), math.sin(t)]) for r in radii for t in angles]
    near = min(grid, key=lambda theta: objective(theta, *atoms))
    inside = np.linalg.norm(near) < 0.99 * made["bound"]
    return minimiser(made, near, inside)


@pytest.mark.parametrize(("bound", "inside"), [(5.0, True), (0.5, False)])
def test_derivatives_of_the_minimiser_in_the_weights(bound: float, inside: bool) -> None:
    made = world(bound)
    theta = best(made)
    assert (np.linalg.norm(theta) < bound * 0.99) == inside
    step = 1e-3
    influences: dict[str, list[Array]] = {"p": [], "q": []}
    for name, found in influences.items():
        for k in range(len(made[name])):
            ends = []
            for sign in (1, -1):
                moved = dict(made)
                moved[name] = made[name] + sign * step * (np.eye(len(made[name]))[k] - made[name])
                ends.append(minimiser(moved, theta, inside))
            found.append((ends[0] - ends[1]) / (2 * step))
    IF, IG = (np.array(influences[name]) for name in ("p", "q"))
    expected = IF.T @ (made["p"][:, None] * IF) + IG.T @ (made["q"][:, None] * IG)
    law = aot_law(
        made["chosen"],
        made["rejected"],
        made["p"],
        made["q"],
        theta * bound / np.linalg.norm(theta) if not inside else theta,
        h=logistic,
        beta=1.0,
        bound=bound,
    )
    assert law.covariance == pytest.approx(expected, rel=0.01, abs=0.01 * np.trace(expected))
    assert (law.multiplier > 0) == (not inside)
    # a dependent pair: the cross terms of the same influences
    joint = np.outer(made["p"], made["q"])
    joint[:2, :2] += 0.02 * np.array([[1, -1], [-1, 1]])
    cross = IF.T @ joint @ IG
    paired = aot_law(
        made["chosen"],
        made["rejected"],
        made["p"],
        made["q"],
        theta,
        h=logistic,
        beta=1.0,
        bound=bound,
        joint=joint,
    )
    expected = expected + cross + cross.T
    assert paired.covariance == pytest.approx(expected, rel=0.01, abs=0.01 * np.trace(expected))
    drawn = law.draw(np.random.default_rng(0), 200_000)
    assert np.cov(drawn.T) == pytest.approx(law.covariance, rel=0.03, abs=0.03)


def test_what_is_refused() -> None:
    made = world(5.0)
    common: dict[str, Any] = {"h": logistic, "beta": 1.0, "bound": 5.0}
    atoms = [made[name] for name in ("chosen", "rejected", "p", "q")]
    theta = best(made)
    with pytest.raises(ValueError, match="no minimum"):
        aot_law(*atoms, theta + 0.1, **common)
    with pytest.raises(ValueError, match="multiplier"):
        aot_law(*atoms, theta * 5.0 / np.linalg.norm(theta), **common)
    twice = np.concatenate([made["chosen"], made["chosen"][:1]])
    half = np.append(made["p"], made["p"][0] / 2) * ([0.5] + [1.0] * 4)
    with pytest.raises(ValueError, match="same reward"):
        aot_law(twice, made["rejected"], half, made["q"], theta, **common)
    equal = np.full(4, 0.25), np.array([0.25, 0.25, 0.2, 0.2, 0.1])
    with pytest.raises(ValueError, match="potentials are not unique"):
        aot_law(made["chosen"], made["rejected"], *equal, theta, **common)
    with pytest.raises(ValueError, match="positive chance"):
        aot_law(*atoms[:2], np.array([0.5, 0.5, 0, 0]), made["q"], theta, **common)
    with pytest.raises(ValueError, match="marginals"):
        aot_law(*atoms, theta, **common, joint=np.full((4, 5), 0.05))
    with pytest.raises(ValueError, match="shapes"):
        aot_law(*atoms, theta[:1], **common)


@pytest.mark.parametrize("angle", [0.0, 0.7, 2.0, 5.0])
def test_features_that_leave_a_direction_out_are_refused(angle: float) -> None:
    """The Hessian is singular up to rounding: no covariance of 1e16, and no error of a library."""
    way = np.array([math.cos(angle), math.sin(angle)])
    a, b = np.outer([2.0, 1.0], way), np.zeros((1, 2))
    best_there = 1.4 / 2.2 * way  # regression, as in the example of aot_law
    with pytest.raises(ValueError, match="no strict minimum"):
        aot_law(a, b, [0.4, 0.6], [1.0], best_there, h=least_squares, beta=1.0, bound=2.0)


def test_one_dimension_on_the_bound_is_a_point() -> None:
    """Chosen 2 or 1, rejected 0, h = (1 - t)²: the minimiser 1.4/2.2 is beyond the bound 0.5."""
    a, b = np.array([[2.0], [1.0]]), np.array([[0.0]])
    law = aot_law(a, b, [0.4, 0.6], [1.0], np.array([0.5]), h=least_squares, beta=1.0, bound=0.5)
    assert law.covariance.tolist() == [[0.0]] and law.excess.size == 0
    assert law.curvature == math.inf
    assert law.multiplier == pytest.approx(2 * (1.4 - 2.2 * 0.5))
    assert not law.draw(np.random.default_rng(0), 5).any()


# ------------------------------------------------------------------------------------------- bounds
def test_the_deviation_by_hand() -> None:
    """n = 100 and m = 400, L = 2, B = 3, with every constant written out, at the best cover of a
    grid."""
    found = aot_deviation(
        Side(100, 1.0, 0.25), Side(400, 0.5), dimension=3, bound=3.0, lipschitz=2.0, delta=0.1
    )
    variance = 36 * (0.25 / 100 + 0.25 / 400)
    lows, highs = [], []
    for e in np.geomspace(1e-6, 8, 4000):
        share = math.log(20) + 3 * math.log(1 + 6 / e)
        rest = 2 * 2 * 1.5 * e
        lows.append(math.sqrt(2 * variance * share) + 2 * 6 * 0.01 * share / 3 + rest)
        swing = 36 * (1 / 100 + 0.25 / 400)
        highs.append(6 * (1 / 10 + 0.5 / 20) + math.sqrt(2 * swing * share) + rest)
    assert found.below == pytest.approx(min(lows), rel=1e-5)
    assert found.above == pytest.approx(min(highs), rel=1e-5)
    at_best = 6 * (1 / 10 + 0.5 / 20) + math.sqrt(2 * swing * math.log(20))
    assert found.excess == pytest.approx(min(lows) + at_best, rel=1e-5)
    assert found.value == max(found.below, found.above)


def test_the_deviation_falls_as_the_root_up_to_a_logarithm() -> None:
    def value(n: float, d: int = 2) -> float:
        return aot_deviation(
            Side(n, 1.0), Side(n, 1.0), dimension=d, bound=1.0, lipschitz=1.0, delta=0.05
        ).value

    assert 70 < value(1e4) / value(1e8) < 100
    assert value(1e4) < value(1e4, 8) < 2 * value(1e4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bound": 0.0},
        {"lipschitz": -1.0},
        {"delta": 1.0},
        {"dimension": 0},
    ],
)
def test_constants_that_are_refused(wrong: dict[str, Any]) -> None:
    given = {"dimension": 2, "bound": 1.0, "lipschitz": 1.0, "delta": 0.05} | wrong
    with pytest.raises(ValueError, match=next(iter(wrong))):
        aot_deviation(Side(10, 1.0), Side(10, 1.0), **given)


def test_sides_that_are_refused() -> None:
    with pytest.raises(ValueError, match="spread"):
        Side(10, 1.0, 2.0)
    with pytest.raises(ValueError, match="reach"):
        Side(10, 0.0)
    with pytest.raises(ValueError, match="n must be"):
        Side(0, 1.0)
