"""The steps of Theorems A-tilt, A-ball, A-data, B' and D2 one by one: automatic differentiation,
convex programs and root finding as the other solver."""

import doctest
import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import expit

import theory.bounds.from_data
import theory.bounds.tilted
from theory import KL, Tilt, WassersteinAtoms, WassersteinFree, dpo, fit, random_world
from theory.bounds.budget import price_of_budget
from theory.bounds.concentration import (
    Realised,
    bousquet,
    matrix_excess,
    matrix_shortfall,
    shortfall,
    vector_mean,
)
from theory.bounds.free import _move, w1_free_bound, w2_free_bound
from theory.bounds.from_data import _whitened_reach, certificate
from theory.bounds.kl_ball import _third_along, kl_ball_bound
from theory.bounds.kl_edge import _left_behind, _stationary
from theory.bounds.population import Size
from theory.bounds.sharp import transport_bound
from theory.bounds.tilted import dpo_bound, largest_distance, third_over_second, tilt_bound

SEEDS = st.integers(0, 10_000)


def _atoms(seed: int, K: int = 7, d: int = 2) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    u = rng.standard_normal((K, d))
    u *= 2 * rng.random((K, 1)) ** 0.5 / np.linalg.norm(u, axis=1, keepdims=True)
    return u, rng.dirichlet(np.full(K, 3.0)), rng


# ------------------------------------------------------------------------------------ concentration
def test_the_tails_hold_for_a_random_basis_vector() -> None:
    """e_I with I uniform: E_n e_I is a vector of counts over n."""
    d, n, share = 4, 100, 2.0
    p, f = np.full(d, 1 / d), np.eye(d) - 1 / d
    counts = np.random.default_rng(0).multinomial(n, p, size=40_000) / n
    assert (np.linalg.norm(counts - 1 / d, axis=1) > vector_mean(p, f, n, share)).mean() < math.exp(
        -share
    )
    low = shortfall(p, np.eye(d)[0], n, share)
    assert (1 / d - counts[:, 0] > low).mean() < math.exp(-share)
    outer = np.eye(d)[:, :, None] * np.eye(d)[:, None, :]
    assert (1 / d - counts.min(1) > matrix_shortfall(p, outer, n, share)).mean() < d * math.exp(
        -share
    )
    assert (counts.max(1) - 1 / d > matrix_excess(p, outer, n, share)).mean() < d * math.exp(-share)


def test_bousquet_is_within_a_factor_of_a_normal_vector() -> None:
    """For large n the 95 % quantile of the norm of a normal vector, times 1.6 at most."""
    d, n = 3, 1e8
    exact = np.sqrt(7.815 / n)  # chi-squared with three degrees of freedom
    assert exact < bousquet(d, 1.0, 3.0, n, math.log(20)) < 1.6 * exact


def test_the_realised_deviations_are_those_of_the_sample() -> None:
    p, sample = np.array([0.5, 0.5]), np.array([0.6, 0.4])
    noise = Realised(sample)
    assert noise.mean(p, np.array([1.0, 0.0]), 1.0) == pytest.approx(0.1)
    assert noise.shortfall(p, np.array([1.0, 0.0]), 1.0) == pytest.approx(-0.1)
    assert noise.vector(p, np.eye(2), 1.0) == pytest.approx(0.1 * math.sqrt(2))
    one = np.array([np.eye(2), np.zeros((2, 2))])
    assert noise.matrix_shortfall(p, one, 1.0) == pytest.approx(-0.1)
    assert noise.matrix_excess(p, one, 1.0) == pytest.approx(0.1)


# ---------------------------------------------------------------------------- third over second
def _derivatives(value, length: float) -> tuple[float, float, float]:
    """First, second and third derivative of a function of one tensor."""
    x = torch.tensor(length, dtype=torch.float64, requires_grad=True)
    found, y = [], value(x)
    for _ in range(3):
        (y,) = torch.autograd.grad(y, x, create_graph=True)
        found.append(y.item())
    return found[0], found[1], found[2]


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, t=st.sampled_from([0.0, 0.3, 1.0, 4.0]), r=st.floats(0, 2))
def test_the_third_derivative_of_a_tilted_risk(seed: int, t: float, r: float) -> None:
    u, p, rng = _atoms(seed)
    theta, D = rng.standard_normal((2, 2))
    D /= np.linalg.norm(D)
    margin = torch.from_numpy(u @ theta)
    along, weights = torch.from_numpy(u @ D), torch.from_numpy(p)

    def risk(x):
        l = torch.nn.functional.softplus(-(margin + along * x))
        return weights @ l if t == 0 else torch.logsumexp(t * l + weights.log(), 0) / t

    first, second, third = _derivatives(risk, r)
    most = third_over_second(u @ theta, np.linalg.norm(u, axis=1), t, abs(first))(r)
    assert abs(third) <= most * second * (1 + 1e-9) + 1e-14


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, r=st.floats(0.01, 0.3))
def test_the_third_derivative_of_the_ball(seed: int, r: float) -> None:
    """Along the way from a point: the ball's value by its dual, derivatives by differences."""
    u, p, rng = _atoms(seed)
    theta, D = rng.standard_normal((2, 2))
    D /= np.linalg.norm(D)
    radius = 0.05

    def at(x: float) -> tuple[float, float, float, float, float]:
        """Slope and curvature there, 1/lambda, Var log r and Var l'."""
        m, slope = u @ (theta + x * D), u @ D
        l, dl = np.logaddexp(0, -m), -expit(-m) * slope
        ddl = expit(m) * expit(-m) * slope**2

        def tilted(t: float) -> np.ndarray:
            q = p * np.exp(t * (l - l.max()))
            return q / q.sum()

        def miss(t: float) -> float:
            q = tilted(t)
            return (
                t * float(q @ l)
                - math.log(float(p @ np.exp(t * (l - l.max()))))
                - t * float(l.max())
                - radius
            )

        t = brentq(miss, 1e-6, 200, xtol=1e-14, rtol=8.9e-16)
        q = tilted(t)
        deviation, centred = l - q @ l, dl - q @ dl
        v = q @ deviation**2
        rest = centred - deviation * (q @ (centred * deviation)) / v
        return float(q @ dl), float(q @ (ddl + t * rest**2)), t, t * t * v, float(q @ centred**2)

    if -math.log(p[np.logaddexp(0, -u @ theta).argmax()]) < radius * 1.5:
        return
    slope, _, t, log_variance, variance = at(0.0)
    e = 1e-4
    ends = [at(r + k * e) for k in (-1, 0, 1)]
    pull = max(abs(slope), *(abs(end[0]) for end in ends))
    third = (ends[2][1] - ends[0][1]) / (2 * e)
    most = _third_along(
        u @ theta, np.linalg.norm(u, axis=1), t, log_variance, math.sqrt(variance), pull
    )(r)
    assert abs(third) <= most * ends[1][1] * (1 + 1e-3) + 1e-6


@settings(max_examples=40, deadline=None)
@given(target=st.floats(1e-6, 0.9), rate=st.floats(0.01, 1.0))
def test_the_largest_distance_has_its_closed_form(target: float, rate: float) -> None:
    """(1 - e^{-rate R})/rate = target."""
    exact = -math.log1p(-rate * target) / rate
    found = largest_distance(target, lambda r: rate)
    assert exact * (1 - 1e-9) <= found <= exact * (1 + 1e-6)
    assert largest_distance(1.001 / rate, lambda r: rate) == math.inf
    assert largest_distance(target, lambda r: rate, furthest=exact / 2) == math.inf


def test_a_growing_rate_is_rounded_up() -> None:
    """exp(-r²/2) integrates to the error function."""
    target = 0.8
    exact = brentq(lambda R: math.sqrt(math.pi / 2) * math.erf(R / math.sqrt(2)) - target, 0, 5)
    assert exact <= largest_distance(target, lambda r: r) < 1.02 * exact


# --------------------------------------------------------- the bounds with realised deviations
def _tilted_program(u: np.ndarray, p: np.ndarray, t: float, B: float) -> np.ndarray:
    theta = cp.Variable(u.shape[1])
    loss = cp.logistic(-u @ theta)
    risk = p @ loss if t == 0 else cp.log_sum_exp(t * loss + np.log(p)) / t
    cp.Problem(cp.Minimize(risk), [cp.norm(theta) <= B]).solve(solver="CLARABEL")
    return theta.value


@pytest.mark.parametrize("seed", range(12))
def test_the_tilted_bound_holds_for_every_sample(seed: int) -> None:
    """Both minimisers by cvxpy; every other problem is on the boundary."""
    u, p, rng = _atoms(seed)
    t, B = (0.0, 1.0, 3.0)[seed % 3], (0.3, 4.0)[seed % 2]
    sample = p * np.exp(0.05 * rng.standard_normal(len(p)))
    sample /= sample.sum()
    theta = _tilted_program(u, p, t, B)
    error = np.linalg.norm(_tilted_program(u, sample, t, B) - theta)
    size = Size(1, 0.05, 1.0, B)
    if t == 0:
        bound = dpo_bound(u, p, theta, size, sample=sample)
    else:
        bound = tilt_bound(u, p, theta, size, temperature=1 / t, sample=sample)
    assert error <= bound.value + 1e-5


@pytest.mark.parametrize("kind", ["kl", "collapsed", "transport", "w1", "w2"])
@pytest.mark.parametrize("seed", range(6))
def test_the_balls_bounds_hold_for_every_sample(kind: str, seed: int) -> None:
    u, p, rng = _atoms(seed)
    u *= np.sign((u.T @ p)[0])
    sample = p * np.exp(0.02 * rng.standard_normal(len(p)))
    sample /= sample.sum()
    places = rng.standard_normal((len(p), 2))
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    radius = {"kl": 0.01, "collapsed": 3.0, "transport": 0.05, "w1": 0.05, "w2": 0.05}[kind]
    ball = {
        "kl": KL(radius),
        "collapsed": KL(radius),
        "transport": WassersteinAtoms(radius=radius, power=1, distance=distance),
        "w1": WassersteinFree(radius, power=1),
        "w2": WassersteinFree(radius, power=2),
    }[kind]
    problem = {"beta": 1.0, "bound": 2.0}
    found, size = fit(u, ball, p, **problem), Size(1, 0.05, 1.0, 2.0)
    theta = found.theta.numpy()
    error = np.linalg.norm(fit(u, ball, sample, **problem).theta.numpy() - theta)
    arguments = (u, p, theta, size)
    if kind in ("kl", "collapsed"):
        bound = kl_ball_bound(*arguments, radius=radius, sample=sample).value
    elif kind == "transport":
        bound = transport_bound(
            *arguments, radius=radius, power=1, distance=distance, sample=sample
        ).value
    elif kind == "w1":
        bound = w1_free_bound(*arguments, radius=radius, sample=sample).value
    else:
        assert found.dual is not None
        bound = w2_free_bound(
            *arguments, radius=radius, dual=found.dual.item(), sample=sample
        ).value
    assert error <= bound * (1 + 1e-6) + 1e-7


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, turn=st.floats(0, 6.2))
def test_the_bounds_do_not_mind_a_rotation_or_a_split_atom(seed: int, turn: float) -> None:
    u, p, _ = _atoms(seed)
    size = Size(10**6, 0.05, 1.0, 4.0)
    theta = dpo(u, p, beta=1.0, bound=4.0).theta.numpy()
    c, s = math.cos(turn), math.sin(turn)
    O = np.array([[c, -s], [s, c]])
    value = dpo_bound(u, p, theta, size).value
    assert dpo_bound(u @ O, p, theta @ O, size).value == pytest.approx(value, rel=1e-6)
    twice, half = np.concatenate([u, u[:1]]), np.append(p, p[0] / 2)
    half[0] /= 2
    assert dpo_bound(twice, half, theta, size).value == pytest.approx(value, rel=1e-6)


def test_the_bounds_fall_as_the_root_and_start_infinite() -> None:
    world = random_world(0, contexts=4, actions=2, dimension=2, beta=1.0, bound=1.0)
    theta = fit(world.u, Tilt(1.0), world.probability, **world.problem).theta.numpy()

    def value(n: float) -> float:
        size = Size(n, 0.05, 1.0, 1.0)
        return tilt_bound(world.u, world.probability, theta, size, temperature=1.0).value

    assert value(50) == math.inf
    assert value(1e8) / value(1e10) == pytest.approx(10, rel=0.01)
    flat = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert dpo_bound(flat, np.array([0.6, 0.4]), theta, Size(1e9, 0.05, 1.0, 1.0)).value == math.inf
    with pytest.raises(ValueError, match="temperature"):
        tilt_bound(world.u, world.probability, theta, Size(10, 0.05, 1.0, 1.0), temperature=0.0)


# ------------------------------------------------------------------------------------------ budgets
@pytest.mark.parametrize("seed", range(30))
def test_a_worst_case_of_the_sample_is_near_the_populations_plan(seed: int) -> None:
    """Theorem B', its lemma, with ties and degenerate budgets on purpose: a semidefinite program
    looks for the worst case that the lemma promises."""
    rng = np.random.default_rng(seed)
    K, d = int(rng.integers(3, 6)), 2
    places = rng.permutation(9)[:K]
    cost = np.abs(places[:, None] // 3 - places // 3) + np.abs(places[:, None] % 3 - places % 3)
    cost, loss = cost.astype(float), rng.integers(0, 4, K).astype(float)
    G, H = rng.standard_normal((K, d)), rng.standard_normal((K, d, d))
    H = H @ H.transpose(0, 2, 1)
    eta = float(rng.choice([0.5, 1.0, 2.0]))
    score = loss - eta * cost
    ties = score >= score.max(1, keepdims=True) - 1e-12
    plan = np.where(ties, rng.random((K, K)), 0.0)
    if seed % 3:
        plan = np.eye(K)[np.where(ties, (-1) ** seed * cost, np.inf).argmin(1)]
    plan /= plan.sum(1, keepdims=True)
    p = rng.dirichlet(np.ones(K))
    sample = p * np.exp(0.5 * rng.standard_normal(K))
    sample /= sample.sum()
    budget, spent = float(p @ (plan * cost).sum(1)), float(sample @ (plan * cost).sum(1))
    need = abs(spent - budget)
    if need < 1e-3 or budget < 1e-3:
        return
    price = price_of_budget(
        sample,
        plan,
        cost,
        np.broadcast_to(loss, (K, K)),
        eta,
        G,
        H,
        spend=spent < budget,
        need=need,
        noise=Realised(sample),
        share=1.0,
    )
    moved, size = cp.Variable((K, K)), cp.Variable(nonneg=True)
    there = sample[:, None] * plan + need * moved
    feasible = [cp.sum(moved, axis=1) == 0, there >= 0]
    feasible.append(cp.sum(cp.multiply(moved, cost)) <= (budget - spent) / need)
    best = cp.Problem(cp.Maximize(cp.sum(moved @ loss)), feasible).solve(solver="CLARABEL")
    bent = sum(cp.sum(moved[:, a]) * H[a] for a in range(K))
    least = cp.Problem(
        cp.Minimize(size),
        [
            *feasible,
            cp.sum(moved @ loss) >= best - 1e-4,
            cp.norm(cp.sum(moved @ G, axis=0)) <= size * price.gradient + 1e-7,
            bent + (size * price.curvature + 1e-7) * np.eye(d) >> 0,
        ],
    ).solve(solver="CLARABEL")
    assert least <= 1 + 1e-3


# -------------------------------------------------------------------------------------------- KL, 0
def test_the_law_closest_in_kl_with_a_stationary_gradient() -> None:
    """Inside: the mean vanishes. The other solver is a program over the law itself."""
    G = np.array([[1.0, 0.2], [-0.8, 0.5], [0.1, -1.0], [0.4, 0.7]])
    p = np.array([0.4, 0.3, 0.2, 0.1])
    q = _stationary(G, p, np.zeros(2), 1.0)
    law = cp.Variable(4, nonneg=True)
    cp.Problem(cp.Minimize(cp.sum(cp.rel_entr(law, p))), [cp.sum(law) == 1, law @ G == 0]).solve(
        solver="CLARABEL"
    )
    assert q == pytest.approx(law.value, abs=1e-5)
    # on the boundary a pull outwards is held
    outward = np.array([-1.0, 0.0])
    held = _stationary(G, p, outward, 1.0) @ G
    assert abs(held[1]) < 1e-8
    assert held @ outward <= 1e-8


@pytest.mark.parametrize("odds", [-2.0, 0.0, 1.0])
def test_what_stays_off_the_largest_losses(odds: float) -> None:
    missing = 0.01
    e = _left_behind(missing, odds)
    assert -e * math.log(e) - (1 - e) * math.log(1 - e) + e * odds == pytest.approx(missing)
    assert _left_behind(0.0, odds) == 0.0
    assert _left_behind(50.0, odds) == 1.0


# ------------------------------------------------------------------------------------ free features
@settings(max_examples=30, deadline=None)
@given(m=st.floats(-3, 3), b=st.floats(0.1, 3), over=st.floats(1.05, 20))
def test_the_best_move_and_its_cost_in_eta(m: float, b: float, over: float) -> None:
    eta = over * b**2 / 8
    T = float(_move(np.array([m]), b, eta).T[0])
    exact = brentq(lambda T: 2 * eta * T - b * expit(b * T - m), 0, b / (2 * eta) + 1)
    assert pytest.approx(exact, rel=1e-9) == T
    e = 1e-5
    after = float(_move(np.array([m]), b, eta * (1 + e)).T[0])
    assert math.log(after**2 / T**2) / math.log1p(e) <= -2 + 1e-4


def test_free_bounds_say_where_they_are_infinite_and_refuse_a_short_reach() -> None:
    u, p = np.array([[1.0], [-1.0]]), np.array([0.75, 0.25])
    size = Size(1e6, 0.05, 1.0, 4.0)
    zero = np.zeros(1)
    assert w2_free_bound(u, p, zero, size, radius=0.6, dual=1.0).value == math.inf
    assert w1_free_bound(u, p, zero, size, radius=0.6).value < 0.1  # collapsed
    with pytest.raises(ValueError, match="largest norm"):
        w1_free_bound(u, p, zero, size, radius=0.6, reach=0.5)


# ------------------------------------------------------------------------------------ from the data
def test_the_certificate_covers_shrinks_and_needs_its_reach() -> None:
    p, u = np.array([0.5, 0.2, 0.2, 0.1]), np.array([[1.0, 0.2], [-1.0, 0.3], [0.2, 1.0], [0, -1]])
    truth = dpo(u, p, beta=1.0, bound=4.0).theta.numpy()
    values = []
    for n in (10**4, 10**6):
        shares = np.random.default_rng(n).multinomial(n, p, size=40) / n
        thetas = dpo(u, shares, beta=1.0, bound=4.0).theta.numpy()
        size = Size(n, 0.05, 1.0, 4.0)
        bounds = [
            certificate(u, share, theta, size, reach=1.1).value
            for share, theta in zip(shares, thetas, strict=True)
        ]
        assert (np.linalg.norm(thetas - truth, axis=1) <= bounds).all()
        values.append(np.median(bounds))
    assert 10 < values[0] / values[1] < 20
    assert certificate(u, p, truth, Size(50, 0.05, 1.0, 4.0), reach=1.1).value == math.inf
    with pytest.raises(ValueError, match="no pair of the population"):
        certificate(u, p, truth, Size(50, 0.05, 1.0, 4.0), reach=0.9)


@settings(max_examples=30, deadline=None)
@given(sample=st.floats(1, 50), share=st.floats(1e-8, 0.01))
def test_the_reach_of_the_population_is_the_largest_fixed_point(
    sample: float, share: float
) -> None:
    largest, above = _whitened_reach(sample, share)
    if math.isinf(largest):
        assert 2 * sample * share / 3 > 0.5
        return
    y = largest * 1.01 * share
    assert (1 + y / 3 + math.sqrt(y**2 / 9 + 2 * y)) * sample < largest * 1.01
    assert above**2 / (2 + 2 * above / 3) == pytest.approx(largest * share, rel=1e-4)


@pytest.mark.parametrize("module", [theory.bounds.tilted, theory.bounds.from_data])
def test_the_examples_run(module) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
