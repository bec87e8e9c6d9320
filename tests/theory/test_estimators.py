"""What every estimator must satisfy whatever its solver: symmetries, orders between balls, batches,
and a gap that is a bound.

The objectives are written here once more in numpy, one point at a time, with linear programs and
grids where a supremum is left.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linprog, minimize, minimize_scalar
from scipy.special import entr, expit, logsumexp

from tests.jitter import order
from theory import batch, functionals
from theory.estimators import Fit, dpo, gradient_penalty, kldpo, kldpo_tilt, wdpo_finite, wdpo_free
from theory.losses import dpo_loss

Array = NDArray[np.float64]
quick = settings(max_examples=5, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)

KAPPA = 0.6
# each estimator as a function of the sample, the distances between its atoms, its knob and the rest
METHODS: dict[str, Callable[..., Fit]] = {
    "dpo": lambda u, p, D, knob, **k: dpo(u, p, **k),
    "kldpo": lambda u, p, D, knob, **k: kldpo(u, p, radius=knob, **k),
    "kldpo_tilt": lambda u, p, D, knob, **k: kldpo_tilt(u, p, temperature=knob, **k),
    "w1_finite": lambda u, p, D, knob, **k: wdpo_finite(
        u, p, distance=D, power=1, radius=knob, **k
    ),
    "w2_finite": lambda u, p, D, knob, **k: wdpo_finite(
        u, p, distance=D, power=2, radius=knob, **k
    ),
    "w1_free": lambda u, p, D, knob, **k: wdpo_free(u, p, power=1, radius=knob, **k),
    "w1_label": lambda u, p, D, knob, **k: wdpo_free(
        u, p, power=1, radius=knob, label_cost=KAPPA, **k
    ),
    "w2_free": lambda u, p, D, knob, **k: wdpo_free(u, p, power=2, radius=knob, **k),
}
KNOBS = {"dpo": 0.0, "kldpo": 0.05, "kldpo_tilt": 0.3} | {
    f"w{q}_{kind}": 0.1 * q for q in (1, 2) for kind in ("finite", "free")
}
KNOBS["w1_label"] = 0.1
BALLS = [name for name in METHODS if name not in ("dpo", "kldpo_tilt")]
PLAIN: dict[str, Any] = {"beta": 0.8, "bound": 4.0}


def distances(u: Array) -> Array:
    return np.linalg.norm(u[:, None] - u[None], axis=-1)


def sample(seed: int = 0, n: int = 14, d: int = 2) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    drift = rng.standard_normal(d)
    u = rng.standard_normal((n, d)) + 0.8 * drift / np.linalg.norm(drift)
    p, k = rng.dirichlet(4 * np.ones(n)), order(n)
    return u[k], p[k], distances(u[k])


def same(found: Fit, truth: Fit, *, scale: float = 1.0, tolerance: float = 1e-6) -> None:
    """Equal value to ten digits; theta, whose error is a root of the gap's, to six."""
    assert found.converged.all() and truth.converged.all()
    torch.testing.assert_close(found.value, truth.value, rtol=1e-9, atol=2e-10)
    torch.testing.assert_close(
        found.theta, truth.theta * scale, rtol=tolerance, atol=tolerance * scale
    )


# ------------------------------------------------------------------------- the objectives once more
def loss(m: Array) -> Array:
    return np.logaddexp(0, -m)


def objective(
    name: str, theta: Array, u: Array, p: Array, D: Array, knob: float, *, beta: float, ref: Array
) -> float:
    """The robust objective at one theta."""
    w = theta - ref
    m = beta * u @ w
    l, b = loss(m), beta * float(np.linalg.norm(w))
    if name == "dpo":
        return float(p @ l)
    if name == "kldpo_tilt":
        return float(knob * logsumexp(l / knob, b=p))
    if name == "kldpo":

        def dual(log_lam: float) -> float:
            lam = np.exp(log_lam)
            return float(lam * knob + lam * logsumexp(l / lam, b=p))

        # unimodal in log lambda: a grid to bracket, then Brent
        grid = np.linspace(-25, 8, 100)
        k = int(np.argmin([dual(x) for x in grid]))
        return float(
            minimize_scalar(
                dual,
                bounds=(grid[max(k - 1, 0)], grid[min(k + 1, 99)]),
                method="bounded",
                options={"xatol": 1e-12},
            ).fun
        )
    if name in ("w1_finite", "w2_finite"):
        power, n = int(name[1]), len(p)
        rows = np.kron(np.eye(n), np.ones(n))
        found = linprog(
            -np.tile(l, n), A_ub=(D**power).reshape(1, -1), b_ub=[knob**power], A_eq=rows, b_eq=p
        )
        return float(-found.fun)
    if name == "w1_free":
        return float(p @ l + knob * b)
    if (
        name == "w1_label"
    ):  # piecewise linear and convex in eta: the minimum is at a kink or at the end
        kinks = np.append(m[m / KAPPA > b] / KAPPA, b)
        return min(float(eta * knob + p @ np.maximum(l, loss(-m) - KAPPA * eta)) for eta in kinks)
    if name == "w2_free":
        q = expit(np.linspace(-25, 25, 12_001))  # values are off by the square of the step, 1e-7
        fixed = -np.outer(m, q) + entr(q) + entr(1 - q)

        def price(log_eta: float) -> float:
            eta = np.exp(log_eta)
            return float(eta * knob**2 + p @ (fixed + q**2 * b**2 / (4 * eta)).max(1))

        return float(
            minimize_scalar(price, bounds=(-8, 8), method="bounded", options={"xatol": 1e-9}).fun
        )
    raise AssertionError(name)


def in_ball(rng: np.random.Generator, d: int, bound: float) -> Array:
    direction = rng.standard_normal(d)
    return bound * rng.random() ** (1 / d) * direction / np.linalg.norm(direction)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gap_against_the_objective(name: str, seed: int) -> None:
    """value is the objective at theta, and no other point of the ball is lower than value - gap."""
    u, p, D = sample(seed, n=8)
    ref, knob = np.array([0.3, -0.2]), KNOBS[name]
    bound = (4.0, 0.7)[seed % 2]
    fit = METHODS[name](u, p, D, knob, beta=0.8, bound=bound, theta_ref=ref)
    theta = fit.theta.numpy()

    def at(point: Array) -> float:
        return objective(name, point, u, p, D, knob, beta=0.8, ref=ref)

    slack = 1e-6 if name == "w2_free" else 1e-9
    assert fit.converged.all() and np.linalg.norm(theta) <= bound * (1 + 1e-12)
    assert fit.value.item() == pytest.approx(at(theta), abs=slack)
    rng = np.random.default_rng(seed)
    others = [in_ball(rng, 2, bound) for _ in range(12)]
    for size in (1e-1, 1e-2, 1e-3):  # close by, pulled back into the ball
        near = theta + size * rng.standard_normal((4, 2))
        others += list(near * np.minimum(1, bound / np.linalg.norm(near, axis=1, keepdims=True)))
    for other in others:
        assert at(other) >= fit.value.item() - fit.gap.item() - slack


@pytest.mark.parametrize("name", METHODS)
def test_separable_samples(name: str) -> None:
    """All pairs agree: without a price on the norm the fit goes to the bound, with one it may stop
    before."""
    u = np.array([[1.0, 0.2], [0.8, -0.1], [1.2, 0.1]])
    fit = METHODS[name](u, None, distances(u), KNOBS[name], **PLAIN)
    norm = fit.theta.norm().item()
    assert fit.converged.all() and norm <= 4 * (1 + 1e-12)
    if name in ("dpo", "kldpo", "kldpo_tilt", "w1_finite", "w2_finite"):
        assert norm == pytest.approx(4, rel=1e-9)


@pytest.mark.parametrize("name", METHODS)
@given(seed=seeds)
@settings(
    max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate]
)  # failures are small enough
def test_every_fit_is_certified(name: str, seed: int) -> None:
    """Few pairs and many, separable or not, rounded features (ties), atoms without weight, any
    scale, bound and radius."""
    rng = np.random.default_rng(seed)
    n, d = int(rng.choice([2, 3, 5, 10, 30])), int(rng.choice([1, 2, 4]))
    u = 10 ** rng.uniform(-1, 0.5) * rng.standard_normal((3, n, d)) + rng.choice(
        [0, 0.3, 2]
    ) * rng.standard_normal(d)
    u = np.round(u, rng.integers(0, 9)) if rng.random() < 0.5 else u
    p = (
        rng.multinomial(n, np.ones(n) / n, size=3) / n
        if rng.random() < 0.5
        else rng.dirichlet(np.ones(n), size=3)
    )
    beta, bound, knob = (10 ** rng.uniform(*span) for span in ((-2, 0.7), (-0.5, 1.5), (-3, 0.7)))
    ref = rng.standard_normal(d)
    ref *= rng.choice([0, 0.5, 0.95]) * bound / np.linalg.norm(ref)
    fit = METHODS[name](
        u, p, distances(rng.standard_normal((n, d))), knob, beta=beta, bound=bound, theta_ref=ref
    )
    assert fit.converged.all(), (fit.gap, fit.value)
    assert (fit.theta.norm(dim=-1) <= bound * (1 + 1e-12)).all()
    if name != "kldpo_tilt":
        assert (fit.value <= math.log(2) + 1e-10).all()  # the value at theta_ref


@pytest.mark.parametrize("name", METHODS)
def test_no_fit_leaves_the_parameter_ball(name: str) -> None:
    """Small samples and tight bounds: what is certified is a point of the ball."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        n, d = int(rng.integers(1, 4)), int(rng.integers(1, 4))
        u = np.concatenate([0.3 * rng.standard_normal((n, d)), rng.standard_normal((1, d))])
        u[-1] = 0.5 * u[0] + 1e-3 * u[-1]  # nearly a direction that no pair sees
        fit = METHODS[name](
            u,
            None,
            distances(u),
            0.005,
            beta=10 ** rng.uniform(-1, 1),
            bound=(bound := 10 ** rng.uniform(-1, 1)),
        )
        assert (fit.theta.norm(dim=-1) <= bound * (1 + 1e-9)).all(), (
            seed,
            fit.theta.norm() / bound,
        )


def test_the_bound_holds_for_two_pairs() -> None:
    u = np.array([[0.2644, -0.0081], [-0.5441, 0.4325]])
    for extra in ({"power": 2}, {"power": 1, "label_cost": 0.6}):
        fit = wdpo_free(u, radius=0.00455017, beta=0.14820959, bound=0.91586940, **extra)
        assert fit.theta.norm() <= 0.91586940 * (1 + 1e-9)


@pytest.mark.parametrize("radius", [0.5, 4.0, 40.0])
def test_kldpo_of_fewer_pairs_than_dimensions(radius: float) -> None:
    u = np.array([[0.68, -0.6, 0.26, 0.21], [-0.61, -0.05, -1.28, 0.11]])
    fit = kldpo(u, np.array([0.015, 0.985]), radius=radius, beta=0.01, bound=6.0)
    assert fit.converged.all() and not fit.collapsed


# --------------------------------------------------------------------------------------- symmetries
@pytest.mark.parametrize("name", METHODS)
@given(seed=seeds)
@quick
def test_permutation_of_the_pairs(name: str, seed: int) -> None:
    u, p, D = sample(seed)
    order = np.random.default_rng(seed).permutation(len(u))
    one = METHODS[name](u, p, D, KNOBS[name], **PLAIN)
    same(METHODS[name](u[order], p[order], D[np.ix_(order, order)], KNOBS[name], **PLAIN), one)


@pytest.mark.parametrize("name", METHODS)
@given(seed=seeds)
@quick
def test_duplicates_with_halved_weights(name: str, seed: int) -> None:
    u, p, D = sample(seed, n=8)
    share = np.random.default_rng(seed).random(8)
    twice, split = np.tile(u, (2, 1)), np.concatenate([p * share, p * (1 - share)])
    one = METHODS[name](u, p, D, KNOBS[name], **PLAIN)
    same(METHODS[name](twice, split, np.tile(D, (2, 2)), KNOBS[name], **PLAIN), one)


@pytest.mark.parametrize("name", [name for name in METHODS if "finite" not in name])
def test_pairs_without_weight_do_not_matter(name: str) -> None:
    u, p, D = sample(2)
    more = np.concatenate([u, [[5.0, -7.0], [0.0, 0.0]]])
    one = METHODS[name](u, p, D, KNOBS[name], **PLAIN)
    same(METHODS[name](more, np.append(p, [0, 0]), distances(more), KNOBS[name], **PLAIN), one)


def test_counts_are_weights() -> None:
    """Uniform weights on repeated pairs and one weighted pair each are the same sample."""
    u, _, _ = sample(3, n=5)
    counts = np.array([1, 4, 2, 3, 2])
    for name in METHODS:
        one = METHODS[name](u, counts / 12, distances(u), KNOBS[name], **PLAIN)
        repeated = np.repeat(u, counts, axis=0)
        same(METHODS[name](repeated, None, distances(repeated), KNOBS[name], **PLAIN), one)


@pytest.mark.parametrize("name", METHODS)
@given(seed=seeds)
@quick
def test_rotation(name: str, seed: int) -> None:
    u, p, D = sample(seed, d=3)
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))[0]
    ref = np.array([0.5, -0.2, 0.1])
    one = METHODS[name](u, p, D, KNOBS[name], theta_ref=ref, **PLAIN)
    turned = METHODS[name](u @ Q.T, p, D, KNOBS[name], theta_ref=Q @ ref, **PLAIN)
    torch.testing.assert_close(turned.value, one.value, rtol=1e-9, atol=2e-10)
    torch.testing.assert_close(
        turned.theta, one.theta @ torch.from_numpy(Q.T), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("factor", [0.01, 20.0])
@pytest.mark.parametrize("bound", [4.0, 0.6])
def test_beta_against_theta(name: str, factor: float, bound: float) -> None:
    """Only beta w enters: (c beta, B/c, theta_ref/c) gives theta/c, in every ball."""
    u, p, D = sample(4)
    ref = np.array([0.2, 0.1])
    one = METHODS[name](u, p, D, KNOBS[name], beta=0.8, bound=bound, theta_ref=ref)
    other = METHODS[name](
        u, p, D, KNOBS[name], beta=0.8 * factor, bound=bound / factor, theta_ref=ref / factor
    )
    same(other, one, scale=1 / factor)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("factor", [0.01, 20.0])
def test_unit_of_the_features(name: str, factor: float) -> None:
    """u in other units, beta in their inverse: transport radii and the label cost scale with u, KL
    radii do not."""
    u, p, D = sample(5)
    one = METHODS[name](u, p, D, KNOBS[name], **PLAIN)
    knob = KNOBS[name] * (factor if name[0] == "w" else 1)
    scaled: dict[str, Any] = {"beta": 0.8 / factor, "bound": 4.0}
    if name == "w1_label":
        same(
            wdpo_free(factor * u, p, power=1, radius=knob, label_cost=KAPPA * factor, **scaled), one
        )
    else:
        same(METHODS[name](factor * u, p, factor * D, knob, **scaled), one)


@pytest.mark.parametrize("name", METHODS)
def test_shift_of_the_reference(name: str) -> None:
    """Where the bound is slack, theta - theta_ref does not depend on theta_ref."""
    u, p, D = sample(6)
    far: dict[str, Any] = {"beta": 0.8, "bound": 60.0}
    one = METHODS[name](u, p, D, KNOBS[name], **far)
    ref = np.array([3.0, -2.0])
    other = METHODS[name](u, p, D, KNOBS[name], theta_ref=ref, **far)
    assert one.theta.norm() < 40
    torch.testing.assert_close(other.value, one.value, rtol=1e-9, atol=2e-10)
    torch.testing.assert_close(other.theta - torch.from_numpy(ref), one.theta, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_mirrored_pairs(name: str) -> None:
    """With every u and -u equally likely nothing is preferred: theta = theta_ref."""
    u, p, _ = sample(7, n=6)
    both, half = np.concatenate([u, -u]), np.concatenate([p, p]) / 2
    fit = METHODS[name](both, half, distances(both), KNOBS[name], theta_ref=[0.5, 0.5], **PLAIN)
    np.testing.assert_allclose(fit.theta, [0.5, 0.5], atol=1e-8)
    assert fit.value.item() == pytest.approx(math.log(2), abs=1e-12)


# --------------------------------------------------------------------------------- radii and orders
@pytest.mark.parametrize("name", BALLS)
@pytest.mark.parametrize("seed", range(2))
def test_value_rises_with_the_radius_from_dpo_to_log_two(name: str, seed: int) -> None:
    u, p, D = sample(seed, n=16)
    radii = np.concatenate([[0, 1e-6, 1e-3], np.linspace(0.02, 1.5, 12), [50.0]])
    fits = METHODS[name](np.tile(u, (16, 1, 1)), np.tile(p, (16, 1)), D, radii, **PLAIN)
    value = fits.value.numpy()
    assert fits.converged.all()
    assert (np.diff(value) >= -1e-10).all() and value[-1] <= math.log(2) + 1e-12
    plain = dpo(u, p, **PLAIN)
    assert value[0] == pytest.approx(plain.value.item(), abs=1e-10)
    np.testing.assert_allclose(fits.theta[0], plain.theta, atol=1e-6)
    # the multiplier is the slope in the radius (KL, p = 1) or its square: never negative, never
    # rising
    dual = fits.dual.numpy()[1:]
    assert (dual >= 0).all()
    if not name.startswith("w2"):
        assert (np.diff(dual[2:]) <= 1e-5).all()


@pytest.mark.parametrize("name", BALLS)
def test_the_multiplier_is_the_slope_of_the_value(name: str) -> None:
    """d value / d radius = dual for KL and p = 1, and 2 radius dual for p = 2."""
    u, p, D = sample(8, n=10)
    knob, h = KNOBS[name], 1e-4
    radii = np.array([knob - h, knob, knob + h])
    fits = METHODS[name](np.tile(u, (3, 1, 1)), np.tile(p, (3, 1)), D, radii, **PLAIN)
    slope = (fits.value[2] - fits.value[0]).item() / (2 * h)
    price = fits.dual[1].item() * (2 * knob if name.startswith("w2") else 1)
    left, right = ((fits.value[i + 1] - fits.value[i]).item() / h for i in (0, 1))
    assert min(left, right) - 1e-4 <= price <= max(left, right) + 1e-4, slope


@pytest.mark.parametrize("seed", range(4))
def test_order_of_the_balls(seed: int) -> None:
    """W1 <= W2, so that the W1 ball is the larger; moves on the atoms are free moves; label moves
    are more moves."""
    u, p, D = sample(seed, n=10)
    for radius in (0.02, 0.2, 0.5):
        value = {name: METHODS[name](u, p, D, radius, **PLAIN).value.item() for name in BALLS}
        tiny = 1e-10
        assert value["w2_free"] <= value["w1_free"] + tiny
        assert value["w2_finite"] <= value["w1_finite"] + tiny
        assert value["w1_finite"] <= value["w1_free"] + tiny
        assert value["w2_finite"] <= value["w2_free"] + tiny
        assert value["w1_free"] <= value["w1_label"] + tiny
        by_label = [
            wdpo_free(u, p, power=1, radius=radius, label_cost=c, **PLAIN)
            for c in (0.1, 0.5, 1.0, 2.0, 5.0, 100.0)
        ]
        assert all(fit.converged for fit in by_label)
        by_cost = [fit.value.item() for fit in by_label]
        assert (np.diff(by_cost) <= tiny).all()
        assert by_cost[-1] == pytest.approx(value["w1_free"], abs=tiny)


def test_the_label_cost_beyond_which_no_flip_pays() -> None:
    u, p, _ = sample(9)
    longest = np.linalg.norm(u, axis=1).max()
    below, above = (
        wdpo_free(u, p, power=1, radius=0.1, label_cost=longest * c, **PLAIN)
        for c in (1 - 1e-9, 1 + 1e-9)
    )
    same(below, above)


def test_second_order_ball_is_a_gradient_penalty_to_first_order() -> None:
    """E l + rho G <= value <= E l + rho G + beta²||w||² rho²/8 at the fitted theta, G = beta||w||
    sqrt(E sigma(-m)²)."""
    u, p, _ = sample(10)
    for radius in (0.01, 0.1, 0.3):
        fit = wdpo_free(u, p, power=2, radius=radius, **PLAIN)
        w = fit.theta.numpy()
        m, b = 0.8 * u @ w, 0.8 * np.linalg.norm(w)
        first = p @ loss(m) + radius * b * math.sqrt(p @ expit(-m) ** 2)
        assert first - 1e-12 <= fit.value.item() <= first + b**2 * radius**2 / 8 + 1e-12


def test_tilt_and_ball_correspond() -> None:
    """At lambda of the ball the tilted risk plus lambda rho is the same program."""
    u, p, _ = sample(11, n=30)
    ball = kldpo(u, p, radius=0.02, **PLAIN)
    lam = ball.dual.item()
    assert lam > 0.1
    tilt = kldpo_tilt(u, p, temperature=lam, **PLAIN)
    assert tilt.value.item() + lam * 0.02 == pytest.approx(ball.value.item(), abs=1e-10)
    np.testing.assert_allclose(tilt.theta, ball.theta, atol=1e-6)


def test_tilt_limits() -> None:
    u, p, _ = sample(12)
    plain = dpo(u, p, **PLAIN)
    hot = kldpo_tilt(u, p, temperature=1e6, **PLAIN)
    np.testing.assert_allclose(hot.theta, plain.theta, atol=1e-5)
    temperatures = np.array([1e-3, 1e-2, 0.1, 1.0, 10.0])
    fits = kldpo_tilt(np.tile(u, (5, 1, 1)), np.tile(p, (5, 1)), temperature=temperatures, **PLAIN)
    assert fits.converged.all() and (np.diff(fits.value) <= 1e-12).all()
    assert not fits.collapsed.any()


# --------------------------------------------------------------------------------- gradient penalty
@pytest.mark.parametrize("squared", [False, True])
def test_gradient_penalty_of_a_large_sample(squared: bool) -> None:
    """Starts come from a part of a large sample, the end from all of it: as low as scipy's, and no
    slope is left there."""
    rng = np.random.default_rng(3)
    u = rng.standard_normal((40_000, 2)) + np.array([0.5, 0.2])

    def objective(w: np.ndarray) -> float:
        m = 0.8 * u @ w
        square = (0.8**2 * (w @ w) / (1 + np.exp(m)) ** 2).mean()
        return float(np.logaddexp(0, -m).mean() + 0.3 * (square if squared else np.sqrt(square)))

    fit = gradient_penalty(u, strength=0.3, squared=squared, beta=0.8, bound=3.0)
    found = [
        minimize(objective, w, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-13})
        for w in ([0.1, 0.1], [1, 0.5])
    ]
    lowest = min(found, key=lambda end: end.fun)
    assert np.linalg.norm(lowest.x) < 3 and fit.converged.all()
    assert fit.value.item() == pytest.approx(objective(fit.theta.numpy()), rel=1e-12)
    assert fit.value.item() <= lowest.fun + 1e-12
    np.testing.assert_allclose(fit.theta, lowest.x, atol=1e-5)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("strength", [0.0, 0.1, 0.5, 2.0])
def test_gradient_penalty_is_the_best_point_of_a_grid(squared: bool, strength: float) -> None:
    u, p, _ = sample(13)
    fit = gradient_penalty(u, p, strength=strength, squared=squared, beta=0.8, bound=3.0)

    def at(w: Array) -> Array:
        m = 0.8 * w @ u.T
        square = (0.8 * np.linalg.norm(w, axis=-1)) ** 2 * (expit(-m) ** 2 @ p)
        return loss(m) @ p + strength * (square if squared else np.sqrt(square))

    side = np.linspace(-3, 3, 241)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    grid = grid[np.linalg.norm(grid, axis=1) <= 3]
    assert fit.value.item() == pytest.approx(at(fit.theta.numpy()), abs=1e-12)
    assert fit.value.item() <= at(grid).min() + 1e-9
    assert fit.theta.norm() <= 3 * (1 + 1e-12)


def test_only_the_square_root_collapses() -> None:
    u, p, _ = sample(14)
    edge = np.linalg.norm(p @ u)
    root = gradient_penalty(u, p, strength=10 * edge, beta=0.8, bound=3.0)
    square = gradient_penalty(u, p, strength=10 * edge, squared=True, beta=0.8, bound=3.0)
    assert root.collapsed.all() and torch.equal(root.theta, torch.zeros(2, dtype=torch.float64))
    assert not square.collapsed.any() and square.theta.norm() > 1e-4


# ------------------------------------------------------------------------------------------ batches
@pytest.mark.parametrize("name", METHODS)
def test_a_batch_is_its_replicates(name: str) -> None:
    """A dozen samples at once, each with its own radius, against one at a time."""
    rows = [sample(s, n=10) for s in range(12)]
    u, p, D = np.stack([r[0] for r in rows]), np.stack([r[1] for r in rows]), rows[0][2]
    knob = KNOBS[name] * np.linspace(0.1, 3, 12)
    together = METHODS[name](u, p, D, knob, **PLAIN)
    assert together.converged.all()
    for r in range(12):
        alone = METHODS[name](u[r], p[r], D, float(knob[r]), **PLAIN)
        torch.testing.assert_close(together.value[r], alone.value, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(together.theta[r], alone.theta, rtol=1e-7, atol=1e-7)
        assert together.collapsed[r] == alone.collapsed


@pytest.mark.parametrize("name", METHODS)
def test_chunks_do_not_change_the_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [sample(s, n=10) for s in range(7)]
    u, p, D = np.stack([r[0] for r in rows]), np.stack([r[1] for r in rows]), rows[0][2]
    whole = METHODS[name](u, p, D, KNOBS[name], **PLAIN)
    monkeypatch.setattr(batch, "_CHUNK_ELEMENTS", {"cpu": 1})
    pieces = METHODS[name](u, p, D, KNOBS[name], **PLAIN)
    torch.testing.assert_close(pieces.value, whole.value, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(pieces.theta, whole.theta, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", METHODS)
def test_shared_atoms_or_shared_weights(name: str) -> None:
    """(n, d) atoms with (R, n) weights, as a finite world gives them, and (R, n, d) atoms with one
    row of weights."""
    u, p, D = sample(15, n=9)
    weights = np.random.default_rng(0).dirichlet(3 * np.ones(9), size=3)
    one = METHODS[name](u, weights, D, KNOBS[name], **PLAIN)
    same(METHODS[name](np.tile(u, (3, 1, 1)), weights, D, KNOBS[name], **PLAIN), one)
    other = METHODS[name](np.stack([u, -u]), p, D, KNOBS[name], **PLAIN)
    np.testing.assert_allclose(other.theta[1], -other.theta[0], atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_arrays_and_tensors(name: str) -> None:
    u, p, D = sample(16, n=9)
    one = METHODS[name](u, p, D, KNOBS[name], theta_ref=[0.1, 0.2], **PLAIN)
    tensors = [torch.from_numpy(x) for x in (u, p, D)]
    ref, knob = (
        torch.tensor([0.1, 0.2], dtype=torch.float64),
        torch.tensor(KNOBS[name], dtype=torch.float64),
    )
    other = METHODS[name](*tensors, knob, theta_ref=ref, **PLAIN)
    assert torch.equal(one.theta, other.theta) and torch.equal(one.value, other.value)
    again = METHODS[name](u, p, D, KNOBS[name], theta_ref=[0.1, 0.2], **PLAIN)
    assert torch.equal(one.theta, again.theta)  # and the same numbers each time


@pytest.mark.parametrize("name", METHODS)
def test_the_input_is_left_alone(name: str) -> None:
    u, p, D = sample(17, n=9)
    copies = [x.copy() for x in (u, p, D)]
    knob = np.array([KNOBS[name]])
    METHODS[name](u, p, D, knob, **PLAIN)
    for x, copy in zip((u, p, D), copies, strict=True):
        np.testing.assert_array_equal(x, copy)
    assert knob[0] == KNOBS[name]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("u", [[[1.0]], [[0.0, 0.0]], [[0.0], [0.0], [1.0]], [[1.0, 0.0]] * 5])
def test_degenerate_samples(name: str, u: list[list[float]]) -> None:
    """One pair, no feature, pairs that are nearly all ties, one pair many times: certified all the
    same."""
    points = np.array(u)
    fit = METHODS[name](points, None, distances(points), KNOBS[name], **PLAIN)
    assert fit.converged.all() and torch.isfinite(fit.theta).all()
    assert fit.value.item() <= math.log(2) + 1e-12
    if not points.any():
        assert fit.value.item() == pytest.approx(math.log(2))


OBJECTIVES: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "dpo": lambda losses, p, slopes: functionals.mean(losses, p),
    "kldpo": lambda losses, p, slopes: functionals.kl_ball(losses, 0.05, p),
    "kldpo_tilt": lambda losses, p, slopes: functionals.kl_tilt(losses, 0.3, p),
    "norm": (
        lambda losses, p, slopes: (
            functionals.mean(losses, p) + 0.2 * functionals.gradient_norm(slopes, p)
        )
    ),
    "squared": (
        lambda losses, p, slopes: (
            functionals.mean(losses, p) + 0.2 * functionals.gradient_norm(slopes, p, squared=True)
        )
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_functionals_of_objectives_are_what_the_estimators_minimise(name: str) -> None:
    """Value and stationarity of each fit, by `theory.functionals` and automatic differentiation
    instead of `theory.solvers.smooth`."""
    u, p, D = sample(3, n=20)
    if name in METHODS:
        fit = METHODS[name](u, p, D, KNOBS[name], **PLAIN)
    else:
        fit = gradient_penalty(u, p, strength=0.2, squared=name == "squared", **PLAIN)
    theta = fit.theta.clone().requires_grad_()
    margin = PLAIN["beta"] * torch.from_numpy(u) @ theta
    slopes = (PLAIN["beta"] * torch.sigmoid(-margin)) ** 2 * (
        theta**2
    ).sum()  # squared norm of the gradient in the features
    value = OBJECTIVES[name](dpo_loss(margin), torch.from_numpy(p), slopes)
    assert value.item() == pytest.approx(fit.value.item(), rel=1e-11)
    (gradient,) = torch.autograd.grad(value, theta)
    assert theta.norm() < PLAIN["bound"] - 0.1  # inside the ball, where the gradient must vanish
    assert gradient.norm() < 1e-8


def test_the_norm_penalty_collapses_only_locally() -> None:
    """Beyond ||E u|| the reference policy is a local minimum of the gradient-norm penalty, and yet
    far away the penalty fades."""
    u, rho = np.array([[1.0]]), 1.2
    near = gradient_penalty(u, strength=rho, beta=1.0, bound=0.3)
    assert near.collapsed.all() and near.value.item() == pytest.approx(math.log(2))
    far = gradient_penalty(u, strength=rho, beta=1.0, bound=50.0)
    sigma = 1 / (1 + math.exp(50))
    assert far.theta.item() == pytest.approx(50) and far.value.item() == pytest.approx(
        rho * 50 * sigma + math.log1p(math.exp(-50)), rel=1e-6
    )
    assert wdpo_free(
        u, power=2, radius=rho, beta=1.0, bound=50.0
    ).collapsed.all()  # while the exact ball stays collapsed


@pytest.mark.parametrize("name", METHODS)
def test_shapes_and_types_of_a_fit(name: str) -> None:
    u, p, D = sample(18, n=9)
    fit = METHODS[name](np.stack([u] * 3), p, D, KNOBS[name], **PLAIN)
    assert fit.theta.shape == (3, 2) and fit.theta.dtype == torch.float64
    for field in (fit.value, fit.gap, fit.converged, fit.collapsed, fit.iterations):
        assert field.shape == (3,)
    assert fit.converged.dtype == fit.collapsed.dtype == torch.bool
    assert (fit.gap >= 0).all() and (fit.iterations > 0).all()
    assert (fit.dual is None) == (name in ("dpo", "kldpo_tilt"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_devices_agree(name: str) -> None:
    """Values to what the certificates leave open; theta to its square root over the curvature,
    which is of the order of 1e-6."""
    u, p, D = sample(19)
    many = np.stack([u * (1 + 0.05 * r) for r in range(16)])
    one = METHODS[name](many, p, D, KNOBS[name], **PLAIN)
    other = METHODS[name](
        torch.from_numpy(many).cuda(), torch.from_numpy(p).cuda(), D, KNOBS[name], **PLAIN
    )
    assert (
        other.theta.is_cuda
        and other.value.is_cuda
        and bool(other.converged.all()) == bool(one.converged.all())
    )
    torch.testing.assert_close(other.theta.cpu(), one.theta, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.value.cpu(), one.value, rtol=1e-9, atol=2e-10)
    assert (other.gap.cpu() - one.gap).abs().max() < 1e-9


def test_a_large_sample_is_screened_to_the_same_answer() -> None:
    """40 000 pairs, 300 of them different: the screened solver against the interior point on the
    300 weighted atoms."""
    u, p, _ = sample(5, n=300)
    counts = np.random.default_rng(0).multinomial(40_000, p)
    settings_ = {"power": 1, "radius": 0.1, "label_cost": KAPPA, **PLAIN}
    same(
        wdpo_free(np.repeat(u, counts, axis=0), **settings_),
        wdpo_free(u, counts / 40_000, **settings_),
    )
