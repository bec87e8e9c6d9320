"""The convex programs against closed forms, linear programs and direct minimisation."""

import warnings
from collections.abc import Callable
from itertools import pairwise

import cvxpy as cp
import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from scipy.special import rel_entr

from tests.jitter import order
from tests.theory.instances import DATA, RADII, Data, collapse, radii, solve
from theory.twins import adversary, certified, collapse_radii, programs, worst_cases
from theory.twins.certified import Array, SolverFallback

LOG2 = np.log(2.0)


def softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


@pytest.fixture
def sample() -> tuple[Array, Array, Array]:
    """u (8, 2), p (8,), and distances between the u (8, 8)."""
    rng = np.random.default_rng(7)
    u, p, k = rng.normal(size=(8, 2)) + np.array([0.6, 0.2]), rng.dirichlet(np.ones(8)), order(8)
    u = u[k]
    return u, p[k], np.linalg.norm(u[:, None] - u[None], axis=-1)


def minimum(function: Callable[[Array], float], d: int, bound: float) -> tuple[Array, float]:
    """Over the ball, by SLSQP from zero and from two corners."""
    inside = {"type": "ineq", "fun": lambda theta: bound**2 - theta @ theta}
    starts = [np.full(d, 0.01), np.full(d, 0.3), np.full(d, -0.3)]
    options = {"ftol": 1e-15, "maxiter": 1000}
    found = min(
        (
            minimize(function, x, method="SLSQP", constraints=inside, options=options)
            for x in starts
        ),
        key=lambda f: f.fun,
    )
    return found.x, float(found.fun)


# --------------------------------------------------------------------------------------- estimators
@pytest.mark.parametrize(("beta", "bound"), [(1.0, 5.0), (1.0, 0.5), (0.1, 2.0)])
def test_dpo_is_what_direct_minimisation_finds(
    sample: tuple[Array, Array, Array], beta: float, bound: float
) -> None:
    u, p, _ = sample
    ref = np.array([0.1, -0.3])
    theta, value = minimum(lambda theta: float(p @ softplus(-beta * u @ (theta - ref))), 2, bound)
    program = programs.dpo(u, p, beta=beta, bound=bound, theta_ref=ref)
    assert program.value == pytest.approx(value, rel=1e-10)
    assert program.theta == pytest.approx(theta, abs=1e-4)
    assert program.gap <= 1e-12


def test_dpo_of_two_opposite_atoms_is_the_log_odds() -> None:
    """u = +1 with probability p and -1 else: sigma(beta w) = p."""
    program = programs.dpo(np.array([[1.0], [-1.0]]), np.array([0.8, 0.2]), beta=0.5, bound=10.0)
    assert program.theta[0] == pytest.approx(np.log(4.0) / 0.5, rel=1e-10)
    assert program.value == pytest.approx(-(0.8 * np.log(0.8) + 0.2 * np.log(0.2)), rel=1e-12)


def test_kldpo_of_two_opposite_atoms_is_the_log_odds_of_the_worst_probability() -> None:
    """The adversary lowers p to the q < p with KL(q||p) = rho as long as q > 1/2; lambda from the
    tilt p -> q."""
    p, q, beta = 0.8, 0.7, 2.0
    radius = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
    program = programs.kldpo(
        np.array([[1.0], [-1.0]]), np.array([p, 1 - p]), radius=radius, beta=beta, bound=10.0
    )
    log_odds = np.log(q / (1 - q))
    assert program.theta[0] == pytest.approx(log_odds / beta, rel=1e-9)
    assert program.value == pytest.approx(-(q * np.log(q) + (1 - q) * np.log(1 - q)), rel=1e-12)
    # q/(1-q) = p/(1-p) exp((l(m) - l(-m))/lambda) with l(m) - l(-m) = -m
    assert program.dual == pytest.approx(log_odds / (np.log(p / (1 - p)) - log_odds), rel=1e-8)


def test_w1_finite_of_two_opposite_atoms_moves_mass_at_cost_two() -> None:
    """Budget rho buys rho/2 of mass at distance 2, so that the worst probability is p - rho/2; p =
    2 buys rho²/4."""
    u, p, distance = (
        np.array([[1.0], [-1.0]]),
        np.array([0.8, 0.2]),
        np.array([[0.0, 2.0], [2.0, 0.0]]),
    )
    for power, radius, q in ((1, 0.3, 0.65), (2, 0.6, 0.71)):
        program = programs.wdpo_finite(
            u, p, distance=distance, power=power, radius=radius, beta=1.0, bound=10.0
        )
        assert program.theta[0] == pytest.approx(np.log(q / (1 - q)), rel=1e-9)
        assert program.dual == pytest.approx(np.log(q / (1 - q)) / 2**power, rel=1e-9)


def test_kldpo_tilt_and_kldpo_meet_at_the_dual_optimum(sample: tuple[Array, Array, Array]) -> None:
    """The ball's minimiser solves the tilted problem of temperature lambda, and value = tilted
    value + lambda rho."""
    u, p, _ = sample
    ball = programs.kldpo(u, p, radius=0.02, beta=1.0, bound=5.0)
    assert ball.dual is not None and ball.dual > 0
    tilt = programs.kldpo_tilt(u, p, temperature=ball.dual, beta=1.0, bound=5.0)
    assert tilt.theta == pytest.approx(ball.theta, abs=1e-8)
    assert tilt.value + 0.02 * ball.dual == pytest.approx(ball.value, rel=1e-12)


@pytest.mark.some(2)
@pytest.mark.parametrize("ball", ["kl", "w1-finite", "w2-finite", "w1-free", "w1-label", "w2-free"])
def test_the_robust_programs_are_what_direct_minimisation_of_the_worst_case_finds(
    sample: tuple[Array, Array, Array], ball: str
) -> None:
    u, p, distance = sample
    beta, bound, radius, kappa = 1.0, 4.0, 0.15, 2.0
    data = Data("00", u, p, distance, kappa, beta, bound, None)

    def worst(theta: Array) -> float:
        m, norm = beta * u @ theta, beta * float(np.linalg.norm(theta))
        if ball == "kl":
            return adversary.kl_worst_case(softplus(-m), p, radius)[1]
        if ball.endswith("finite"):
            return worst_cases.wasserstein_worst_case(
                softplus(-m), p, distance, int(ball[1]), radius
            )[1]
        if ball == "w1-free":
            return float(p @ softplus(-m)) + radius * norm
        if ball == "w1-label":
            return adversary.free_labels_worst_case(m, p, norm, radius, kappa)[1]
        return adversary.free_quadratic_worst_case(m, p, norm, radius)[1]

    program = solve(data, ball, radius)
    assert program.status == "optimal"
    assert worst(program.theta) == pytest.approx(program.value, rel=1e-8)
    assert program.value <= minimum(worst, 2, bound)[1] + 1e-9
    for step in 0.01 * np.random.default_rng(0).normal(
        size=(30, 2)
    ):  # a convex function: a local minimum will do
        theta = program.theta + step
        assert worst(theta * min(1.0, bound / np.linalg.norm(theta))) > program.value


def test_radius_zero_is_dpo_and_radii_only_raise_the_value(
    sample: tuple[Array, Array, Array],
) -> None:
    u, p, distance = sample
    data = Data("00", u, p, distance, 0.3, 1.0, 4.0, None)
    plain = solve(data, "dpo", 0.0)
    for ball in ("kl", "w1-finite", "w2-finite", "w1-free", "w1-label", "w2-free"):
        values = [solve(data, ball, radius).value for radius in (0.0, 1e-8, 1e-3, 0.05, 0.2)]
        assert values[0] == plain.value
        assert values[1] == pytest.approx(plain.value, abs=1e-3)
        assert all(before < after for before, after in pairwise(values)), ball


def test_certificates_do_not_lie() -> None:
    """A gap of a point that is not optimal must cover its distance to the optimum: check with
    solvers stopped early."""
    data = DATA[0]
    best = solve(data, "w1-finite", 0.02)
    form = certified.single(
        certified.Task(data.u, data.beta, data.bound, None),
        lambda losses: (float(data.p @ losses), data.p),
    )
    optimum = solve(data, "dpo", 0.0)
    for theta in (np.zeros(data.u.shape[1]), best.theta, 0.5 * optimum.theta):
        point = certified._certify(form, theta)
        assert point.gap >= point.value - optimum.value > 0


def test_every_kind_of_radius_and_beta_occurs() -> None:
    kinds = {kind for data in DATA for kind, _ in radii(data, "kl")}
    assert kinds == set(RADII) and len(DATA) >= 50
    assert {data.beta for data in DATA} == {0.01, 0.1, 1.0, 3.0, 10.0}
    assert any(data.u.shape[1] == 1 for data in DATA) and any(
        data.u.shape[0] < data.u.shape[1] for data in DATA
    )


def test_a_failed_solver_is_reported(
    sample: tuple[Array, Array, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = certified._run

    def broken(solver: str, *arguments: object) -> None:
        if solver == cp.CLARABEL:
            raise cp.SolverError("numerical trouble")
        run(solver, *arguments)  # type: ignore[arg-type]

    u, p, _ = sample
    sound = programs.kldpo(u, p, radius=0.05, beta=1.0, bound=4.0)
    monkeypatch.setattr(certified, "_run", broken)
    with pytest.warns(SolverFallback, match="numerical trouble"):
        program = programs.kldpo(u, p, radius=0.05, beta=1.0, bound=4.0)
    assert (program.solver, len(program.failures)) == ("SCS", 3)
    assert program.theta == pytest.approx(sound.theta, abs=1e-9)


# ----------------------------------------------------------------------------------- inner problems
@pytest.mark.parametrize("radius", [0.0, 1e-8, 0.1, 0.7, 5.0])
def test_kl_worst_case_solves_its_program(radius: float) -> None:
    rng = np.random.default_rng(3)
    losses, p = rng.random(6), rng.dirichlet(np.ones(6))
    p[2] = 0.0
    p /= p.sum()
    q, value = adversary.kl_worst_case(losses, p, radius)
    assert rel_entr(q, p).sum() <= radius * (1 + 1e-6) + 1e-15
    assert q @ losses == pytest.approx(value, rel=1e-13) and q[2] == 0
    live = p > 0
    r = cp.Variable(int(live.sum()))
    ball = [cp.sum(cp.rel_entr(r, p[live])) <= radius, cp.sum(r) == 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bound = cp.Problem(cp.Maximize(r @ losses[live]), ball).solve(cp.CLARABEL)
    if (
        radius == 0
        # p alone; what the program makes of a ball without interior is known to the root of its
        # tolerance
    ):
        assert value == pytest.approx(p @ losses, rel=1e-13) and value == pytest.approx(
            bound, abs=1e-4
        )
    else:
        assert value == pytest.approx(bound, abs=2e-6)


@pytest.mark.parametrize("power", [1, 2])
def test_the_transport_linear_program_equals_its_dual(
    sample: tuple[Array, Array, Array], power: int
) -> None:
    u, p, distance = sample
    losses = softplus(-u @ np.array([1.0, -0.5]))
    for radius in (0.01, 0.3, 1.0, 50.0):
        plan, value = worst_cases.wasserstein_worst_case(losses, p, distance, power, radius)
        assert plan.sum(1) == pytest.approx(p) and (
            plan * distance**power
        ).sum() <= radius**power * (1 + 1e-9)
        eta = adversary.finite_dual(losses, p, distance**power, radius**power)
        dual = eta * radius**power + p @ (losses - eta * distance**power).max(1)
        assert value == pytest.approx(dual, rel=1e-9)
    assert value == pytest.approx(losses.max(), rel=1e-12)


def test_free_duals_are_minima_over_eta_of_a_brute_force_worst_case(
    sample: tuple[Array, Array, Array],
) -> None:
    u, p, _ = sample
    w, beta, radius, kappa = np.array([2.0, -1.0]), 1.5, 0.4, 0.2
    m, norm = beta * u @ w, beta * float(np.linalg.norm(w))
    moves = np.linspace(-20, 20, 40_001)

    def quadratic(eta: float) -> float:
        return eta * radius**2 + float(
            p @ [(softplus(-m_i + norm * moves) - eta * moves**2).max() for m_i in m]
        )

    def labels(eta: float) -> float:
        return eta * radius + float(p @ np.maximum(softplus(-m), softplus(m) - kappa * eta))

    found = minimize_scalar(quadratic, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-6})
    eta, value = adversary.free_quadratic_worst_case(m, p, norm, radius)
    assert (eta, value) == (pytest.approx(found.x, rel=1e-2), pytest.approx(found.fun, rel=1e-6))
    found = minimize_scalar(
        labels, bounds=(norm, 200 * norm), method="bounded", options={"xatol": 1e-9}
    )
    assert adversary.free_labels_worst_case(m, p, norm, radius, kappa)[1] == pytest.approx(
        found.fun, rel=1e-6
    )


def test_both_local_maxima_are_found() -> None:
    """With a = 4 and m = a the function of q is symmetric about 1/2, with two equal maxima off the
    middle."""
    q, values = adversary.peaks(np.array([4.0, 0.0, 8.0]), 4.0)
    assert q[0, 0] + q[0, 1] == pytest.approx(1.0, abs=1e-12) and values[0, 0] == pytest.approx(
        values[0, 1], abs=1e-12
    )
    grid = np.linspace(1e-9, 1 - 1e-9, 1_000_001)  # and the best point of it polished
    for i, m in enumerate((4.0, 0.0, 8.0)):

        def below(x: Array, m: float = m) -> Array:
            return x * m + x * np.log(x) + (1 - x) * np.log1p(-x) - 4.0 * x**2

        k = int(below(grid).argmin())
        near = minimize_scalar(
            below,
            bounds=(grid[max(k - 1, 0)], grid[min(k + 1, len(grid) - 1)]),
            method="bounded",
            options={"xatol": 1e-12},
        )
        assert values[i].max() == pytest.approx(
            -min(near.fun, below(grid[k])), abs=1e-12
        )  # values of order 1, off by h^2 1e-12


# ----------------------------------------------------------------------------------- collapse radii
def test_collapse_radii_by_hand() -> None:
    """Atoms +1 and -1 with p = (0.8, 0.2): Q = (1/2, 1/2) needs KL 0.5 log(0.5²/0.16), or 0.3 of
    mass moved by 2."""
    u, p, distance = (
        np.array([[1.0], [-1.0]]),
        np.array([0.8, 0.2]),
        np.array([[0.0, 2.0], [2.0, 0.0]]),
    )
    assert collapse_radii.kl_collapse(u, p) == pytest.approx(0.5 * np.log(0.25 / 0.16), rel=1e-12)
    assert collapse_radii.wasserstein_collapse(u, p, distance, 1) == pytest.approx(0.6, rel=1e-12)
    assert collapse_radii.wasserstein_collapse(u, p, distance, 2) == pytest.approx(
        np.sqrt(1.2), rel=1e-12
    )
    assert collapse_radii.free_collapse(u, p, 1) == pytest.approx(
        0.3
    ) and collapse_radii.free_collapse(u, p, 2) == pytest.approx(0.6)
    # E min(s u, 2k - s u)/2 = (0.8 min(s, 2k - s) - 0.2 s)/2: at s = k for k < 1, at s = 1 beyond
    assert collapse_radii.label_collapse(u, p, 0.5) == pytest.approx(0.15, abs=1e-10)
    assert collapse_radii.label_collapse(u, p, 5.0) == pytest.approx(0.3, abs=1e-10)


def test_collapse_radii_at_the_edges_of_the_hull() -> None:
    ahead, across = np.array([[1.0], [2.0]]), np.array([[1.0, 0.0], [-1.0, 0.0], [0.3, 1.0]])
    p, apart = np.array([0.5, 0.5]), np.array([[0.0, 1.0], [1.0, 0.0]])
    assert (
        collapse_radii.kl_collapse(ahead, p) == np.inf
        and collapse_radii.wasserstein_collapse(ahead, p, apart, 1) == np.inf
    )
    # 0 lies on the edge between the first two atoms: Q leaves the third, KL = log 1/(p1 + p2) for
    # p1 = p2
    assert collapse_radii.kl_collapse(across, np.array([0.3, 0.3, 0.4])) == pytest.approx(
        -np.log(0.6), rel=1e-10
    )


@pytest.mark.parametrize("ball", ["kl", "w1-finite", "w2-finite", "w1-free", "w1-label", "w2-free"])
def test_the_programs_collapse_from_the_collapse_radius_on(
    sample: tuple[Array, Array, Array], ball: str
) -> None:
    u, p, _ = sample
    u = np.concatenate([u, -u])  # both labels
    p = np.concatenate([0.7 * p, 0.3 * p])
    distance = np.linalg.norm(u[:, None] - u[None], axis=-1)
    data = Data("00", u, p, distance, 0.5, 1.0, 4.0, np.array([0.5, 0.0]))
    edge = collapse(data, ball)
    before, after = solve(data, ball, 0.99 * edge), solve(data, ball, 1.01 * edge)
    assert before.status == "optimal" and before.value < LOG2 - 1e-7
    assert (
        after.status == "collapsed"
        and np.array_equal(after.theta, data.theta_ref)
        and after.value == LOG2
    )


def test_kl_worst_case_of_losses_that_tie_up_to_rounding_is_their_mean() -> None:
    losses, p = np.array([0.4, 0.4 + 1e-16, 0.4 - 1e-16, 0.1]), np.array([0.2, 0.05, 0.05, 0.7])
    q, value = adversary.kl_worst_case(
        losses, p, 2.0
    )  # -log P(tied) = 1.2 < 2 < -log of the smaller ones
    assert q == pytest.approx([2 / 3, 1 / 6, 1 / 6, 0.0]) and value == pytest.approx(0.4, rel=1e-15)
