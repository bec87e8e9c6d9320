"""Worst-case distributions against programs that share no code with them: value, feasibility,
attainment, on seeded instances."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.theory.instances import DATA, REWEIGHTING, Data, example_size, reweighting
from theory.fitting import fit
from theory.policy import Array
from theory.sets import SETS
from theory.sets.kl import KL
from theory.sets.wasserstein_atoms import WassersteinAtoms
from theory.sets.wasserstein_free import WassersteinFree
from theory.solvers.adversary import free, gradient_step, on_atoms, tilt
from theory.twins import adversary
from theory.twins import worst_cases as worst_programs
from theory.worlds import from_labels, random_world
from theory.worst_cases import Moves, WorstCase, worst_case

INSTANCES = DATA[:40]
RADII = (0.003, 0.05, 0.2, 0.7, 2.0)
quick = settings(max_examples=25, deadline=None, derandomize=True)


def policy(data: Data) -> Array:
    """w of any length inside the parameter ball."""
    rng = np.random.default_rng([7, int(data.name[:2])])
    w = rng.normal(size=data.u.shape[1])
    return data.bound * rng.uniform(0.05, 1) * w / np.linalg.norm(w)


def setting(data: Data) -> tuple[Array, Array, Array, float, float]:
    """w, margins, losses, b = beta ||w|| and a radius."""
    w = policy(data)
    margin = data.beta * data.u @ w
    radius = RADII[int(data.name[:2]) % len(RADII)]
    return w, margin, np.logaddexp(0, -margin), data.beta * float(np.linalg.norm(w)), radius


def closed(worst: WorstCase) -> None:
    assert worst.gap == pytest.approx(worst.value - worst.expected, abs=1e-15)
    assert abs(worst.gap) <= 1e-8 * worst.value and worst.converged


def loss_of(moves: Moves, w: Array, beta: float) -> float:
    """E_Q l from where the mass arrives, not from the margins of the solver."""
    return float(moves.mass @ np.logaddexp(0, -beta * moves.u @ w))


def check_moves(worst: WorstCase, data: Data, power: int, label_cost: float | None) -> Moves:
    """The plan has rows p and spends no more than the radius, both recomputed from u."""
    moves = worst.moves
    assert moves is not None
    np.testing.assert_allclose(
        np.bincount(moves.source, moves.mass, len(data.p)), data.p, rtol=1e-12, atol=1e-16
    )
    start = np.where(moves.flipped, -1.0, 1.0)[:, None] * data.u[moves.source]
    length = np.linalg.norm(moves.u - start, axis=1) + (label_cost or 0.0) * moves.flipped
    spent = float(moves.mass @ length**power) ** (1 / power)
    assert spent <= worst.size * (1 + 1e-9) + 1e-12
    assert worst.used == pytest.approx(spent, rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(moves.distance, length, rtol=1e-7, atol=1e-9)
    assert label_cost is not None or not moves.flipped.any()
    return moves


# ----------------------------------------------------------------------------- weights on the atoms
@pytest.mark.parametrize("ball", REWEIGHTING)
@pytest.mark.parametrize("data", INSTANCES, ids=lambda data: data.name)
def test_reweighting_against_a_convex_program(data: Data, ball: str) -> None:
    _, _, losses, _, radius = setting(data)
    radius = min(radius, 1.0) if ball == "cvar" else radius
    worst = reweighting(ball, losses, data.p, radius)
    q, value = worst_programs.reweighting(ball, losses, data.p, radius)
    spread = 1e-12 + float(np.ptp(losses[data.p > 0]))
    assert worst.value == pytest.approx(value, abs=1e-6 * spread)
    closed(worst)
    assert worst.weights is not None
    weights = worst.weights
    assert weights @ losses == pytest.approx(worst.value, rel=1e-9)
    live = data.p > 0
    p, here = data.p[live], weights[live]
    spent = {
        "kl": adversary.kl_divergence(weights, data.p),
        "chi2": float(np.sum((here - p) ** 2 / p)),
        "cvar": float(np.max(here / p)),
        "tv": float(np.abs(here - p).sum() / 2),
    }[ball]
    assert worst.used == pytest.approx(spent, rel=1e-6, abs=1e-12)
    assert spent <= (1 / radius if ball == "cvar" else radius) * (1 + 1e-8) + 1e-13
    assert worst.effective == pytest.approx(1 / np.sum(here**2 / p), rel=1e-12)
    if (
        ball in ("kl", "chi2") and spread > 1e-6
    ):  # strictly convex: the worst case is unique, up to ties at the top
        np.testing.assert_allclose(
            weights @ data.u, q @ data.u, atol=2e-3 * (1 + np.abs(data.u).max())
        )


def test_the_effective_share_is_that_of_kish() -> None:
    worst = reweighting("cvar", [3.0, 2.0, 1.0, 0.0], np.full(4, 0.25), 0.5)
    assert worst.effective == pytest.approx(0.5)  # half of the pairs are left, with equal weights


def test_losses_around_zero_converge_too() -> None:
    """Losses -1 and 1 with q = 1/2 each at best: the value is 0 to rounding."""
    worst = reweighting("tv", [-1.0, 1.0], [0.8, 0.2], 0.3)
    assert worst.value == pytest.approx(0.0, abs=1e-15) and worst.converged


# -------------------------------------------------------------------------------------- Algorithm 2
@pytest.mark.parametrize("data", INSTANCES[::4], ids=lambda data: data.name)
def test_the_tilt_at_the_dual_optimum_is_the_worst_case_and_at_any_other_temperature_a_bound(
    data: Data,
) -> None:
    _, _, losses, _, radius = setting(data)
    exact = reweighting("kl", losses, data.p, radius)
    default = tilt(losses, data.p, radius=radius)
    np.testing.assert_array_equal(default.weights, exact.weights)
    for tau in (0.3 * max(exact.dual, 0.1), 3 * max(exact.dual, 0.1)):
        other = tilt(losses, data.p, radius=radius, temperature=tau)
        assert other.value >= exact.value - 1e-12 * exact.value
        assert other.used == pytest.approx(
            adversary.kl_divergence(other.weights, data.p), rel=1e-5, abs=1e-12
        )
        own = tilt(losses, data.p, temperature=tau)
        closed(own)
        again = reweighting("kl", losses, data.p, own.size)
        assert again.value == pytest.approx(own.value, rel=1e-9)
        if own.size > 1e-8:
            assert again.dual == pytest.approx(tau, rel=1e-3)


# ------------------------------------------------------------------------------------ between atoms
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("data", INSTANCES, ids=lambda data: data.name)
def test_plans_between_atoms_against_a_linear_program(data: Data, power: int) -> None:
    _, _, losses, _, radius = setting(data)
    radius = min(radius, 0.5 * float(data.distance.max()))
    worst = on_atoms(losses, data.p, distance=data.distance, power=power, radius=radius)
    _, value = worst_programs.wasserstein_worst_case(losses, data.p, data.distance, power, radius)
    assert worst.value == pytest.approx(value, rel=1e-7)
    closed(worst)
    moves = worst.moves
    assert moves is not None and worst.weights is not None
    np.testing.assert_allclose(
        np.bincount(moves.source, moves.mass, len(losses)), data.p, atol=1e-15
    )
    np.testing.assert_allclose(
        np.bincount(moves.target, moves.mass, len(losses)), worst.weights, atol=1e-15
    )
    spent = moves.mass @ data.distance[moves.source, moves.target] ** power
    assert spent <= radius**power * (1 + 1e-9)
    assert worst.used == pytest.approx(spent ** (1 / power), rel=1e-9, abs=1e-12)
    least = worst_programs.plan_cost(
        data.p, worst.weights / worst.weights.sum(), data.distance**power
    )
    assert least <= spent + 1e-7 * (1 + radius)  # the plan is no cheaper than the distance
    assert least <= radius**power + 1e-7
    assert moves.mass @ losses[moves.target] == pytest.approx(worst.value, rel=1e-9)


# ------------------------------------------------------------------------------------ free features
@pytest.mark.parametrize("data", INSTANCES, ids=lambda data: data.name)
def test_free_features_of_order_one(data: Data) -> None:
    """The value is closed form; a linear program over moves on a grid with one very long move comes
    near it from below."""
    w, margin, losses, b, radius = setting(data)
    worst = free(data.u, data.p, w, beta=data.beta, power=1, radius=radius)
    assert worst.value == pytest.approx(data.p @ losses + radius * b, rel=1e-13)
    assert worst.dual == pytest.approx(b)
    closed(worst)
    assert not worst.attained
    check_moves(worst, data, 1, None)
    far = 100 * (radius + (1 + np.abs(margin).max()) / b)
    below = worst_programs.free_moves(
        margin, data.p, b, radius, 1, np.append(np.linspace(0, 2 * radius, 9), far)
    )
    lost = (
        radius / far * (data.p @ np.logaddexp(0, margin))
    )  # a bound on what the length of the grid costs
    assert worst.value * (1 - 1e-6) - lost <= below <= worst.value * (1 + 1e-6)


@pytest.mark.parametrize("data", INSTANCES, ids=lambda data: data.name)
def test_free_features_with_label_moves(data: Data) -> None:
    w, margin, _, b, radius = setting(data)
    worst = free(
        data.u, data.p, w, beta=data.beta, power=1, radius=radius, label_cost=data.label_cost
    )
    _, value = adversary.free_labels_worst_case(margin, data.p, b, radius, data.label_cost)
    assert worst.value == pytest.approx(value, rel=1e-12)
    closed(worst)
    moves = check_moves(worst, data, 1, data.label_cost)
    if worst.attained:
        assert loss_of(moves, w, data.beta) == pytest.approx(worst.value, rel=1e-9)
        assert worst.used == pytest.approx(radius, rel=1e-9)  # flips have used the radius up
    far = 100 * (radius + (1 + np.abs(margin).max()) / b)
    below = worst_programs.free_moves(
        margin, data.p, b, radius, 1, np.array([0.0, far]), data.label_cost
    )
    lost = radius / far * (data.p @ np.logaddexp(0, np.abs(margin)) + b * data.label_cost)
    assert worst.value * (1 - 1e-6) - lost <= below <= worst.value * (1 + 1e-6)


@pytest.mark.some(10)
@pytest.mark.parametrize("data", INSTANCES, ids=lambda data: data.name)
def test_free_features_of_order_two(data: Data) -> None:
    w, margin, _, b, radius = setting(data)
    worst = free(data.u, data.p, w, beta=data.beta, power=2, radius=radius)
    _, value = adversary.free_quadratic_worst_case(
        margin[data.p > 0], data.p[data.p > 0], b, radius
    )
    assert worst.value == pytest.approx(value, rel=1e-9)
    closed(worst)
    moves = check_moves(worst, data, 2, None)
    assert loss_of(moves, w, data.beta) == pytest.approx(worst.value, rel=1e-9)
    grid = np.linspace(0, 1.2 * float(moves.distance.max()), 240)
    below = worst_programs.free_moves(margin, data.p, b, radius, 2, grid)
    assert below <= worst.value * (1 + 1e-6)
    assert (
        worst.value - below <= 0.25 * b * grid[1] + 1e-6 * worst.value
    )  # half a step of the grid, at the steepest slope


def test_a_pair_is_split_where_its_two_wells_tie() -> None:
    """One pair with m = 6 and b = 1: at eta = b²/(2a), a = 2 m = 12, to stay and to go far are
    equally good."""
    u, w = np.array([[6.0]]), np.array([1.0])
    worst = free(u, [1.0], w, beta=1.0, power=2, radius=4.0)
    moves = worst.moves
    assert moves is not None
    assert len(moves.mass) == 2 and worst.dual == pytest.approx(1 / 24, rel=1e-9)
    near, far = np.sort(moves.distance)
    assert near < 0.1 and far == pytest.approx(
        12 - near, rel=1e-9
    )  # the wells are symmetric: q and 1 - q, shift 12 q
    assert worst.used == pytest.approx(4.0, rel=1e-12)
    closed(worst)


# -------------------------------------------------------------------------------------- Algorithm 1
@pytest.mark.parametrize("data", INSTANCES, ids=lambda data: data.name)
def test_the_gradient_step_is_feasible_and_lies_between_its_value_and_the_worst_case(
    data: Data,
) -> None:
    w, margin, losses, b, radius = setting(data)
    step = gradient_step(data.u, data.p, w, beta=data.beta, radius=radius)
    slope = data.beta / (1 + np.exp(margin))
    norm = np.sqrt(data.p @ (slope * np.linalg.norm(w)) ** 2)
    assert step.value == pytest.approx(data.p @ losses + radius * norm, rel=1e-12)
    moves = check_moves(step, data, 2, None)
    assert step.used == pytest.approx(radius, rel=1e-9)
    assert loss_of(moves, w, data.beta) == pytest.approx(step.expected, rel=1e-9)
    exact = free(data.u, data.p, w, beta=data.beta, power=2, radius=radius)
    assert step.value <= step.expected * (1 + 1e-12)
    assert step.expected <= exact.value * (1 + 1e-12)
    assert exact.value <= (step.value + b**2 * radius**2 / 8) * (1 + 1e-12)


# ------------------------------------------------------------------------------------- one entrance
WORLD = random_world(3, contexts=4, actions=2, dimension=2, beta=1.0, bound=2.0)
THETA = np.array([1.2, -0.7])
EXACT = [name for name, set in SETS.items() if set.facts.exact]
HAVE_A_WORST_CASE = [name for name in SETS if name != "gradient-squared"]


@pytest.mark.parametrize("ball", HAVE_A_WORST_CASE)
def test_every_set_has_one_entrance(ball: str) -> None:
    size = example_size(SETS[ball], 0.2)
    worst = worst_case(WORLD, THETA, SETS[ball].sized(size))
    assert worst.name == ball and (worst.size == size or ball == "tilt")
    plain = float(WORLD.probability @ np.logaddexp(0, -WORLD.u @ THETA))
    assert worst.expected > plain
    assert ball == "gradient" or worst.converged
    if worst.moves is not None:
        arrived = float(worst.moves.mass @ np.logaddexp(0, -worst.moves.u @ THETA))
        assert arrived == pytest.approx(worst.expected, rel=1e-9)
    if worst.weights is not None:
        assert worst.weights @ np.logaddexp(0, -WORLD.u @ THETA) == pytest.approx(
            worst.expected, rel=1e-12
        )


def test_moves_between_atoms_know_which_labels_flip() -> None:
    moves = worst_case(WORLD, THETA, WassersteinAtoms(0.3, label_cost=0.1)).moves
    assert moves is not None and moves.flipped.any()
    np.testing.assert_array_equal(
        moves.flipped, WORLD.label[moves.source] != WORLD.label[moves.target]
    )


def test_a_sample_and_other_losses() -> None:
    """The frequencies of a sample in place of the population, and squared losses in place of
    DPO's."""
    counts = np.random.default_rng(0).multinomial(50, WORLD.probability) / 50
    losses = (WORLD.u @ THETA - 0.5) ** 2
    worst = worst_case(WORLD, THETA, SETS["chi2"].sized(0.5), counts, losses=losses)
    assert worst.value == pytest.approx(
        worst_programs.reweighting("chi2", losses, counts, 0.5)[1], rel=1e-6
    )
    assert worst.weights is not None and (worst.weights[counts == 0] == 0).all()


def test_labelled_pairs_are_a_world() -> None:
    psi = np.random.default_rng(1).uniform(-0.5, 0.5, (2, 9, 2))
    world = from_labels(*psi, np.arange(9) % 2, beta=0.5, bound=2.0)
    assert worst_case(world, [0.3, 0.4], SETS["cvar"].sized(1 / 3)).value == pytest.approx(
        np.sort(np.logaddexp(0, -0.5 * world.u @ [0.3, 0.4]))[-3:].mean(), rel=1e-12
    )


@given(st.integers(0, 2**31), st.sampled_from(EXACT), st.floats(0.01, 1.0))
@quick
def test_a_larger_ball_is_worse_and_holds_the_smaller_one(
    seed: int, ball: str, radius: float
) -> None:
    theta = np.random.default_rng(seed).uniform(-1.4, 1.4, 2)
    sizes = [example_size(SETS[ball], r) for r in (0.5 * radius, radius)]
    small, large = (worst_case(WORLD, theta, SETS[ball].sized(size)) for size in sizes)
    if not SETS[ball].facts.grows:
        small, large = large, small
    assert large.value >= small.value * (1 - 1e-12)
    assert small.value >= float(WORLD.probability @ np.logaddexp(0, -WORLD.u @ theta)) * (1 - 1e-12)


@pytest.mark.parametrize("ball", HAVE_A_WORST_CASE)
def test_at_the_reference_policy_nothing_can_be_gained(ball: str) -> None:
    """All losses are log 2, whatever the distribution."""
    worst = worst_case(WORLD, WORLD.theta_ref, SETS[ball].sized(example_size(SETS[ball], 0.4)))
    assert worst.value == pytest.approx(math.log(2), rel=1e-14) and worst.expected == pytest.approx(
        math.log(2), rel=1e-14
    )
    assert worst.attained and worst.converged


@pytest.mark.parametrize("ball", [name for name in HAVE_A_WORST_CASE if name != "tilt"])
def test_the_smallest_set_is_the_mean(ball: str) -> None:
    worst = worst_case(WORLD, THETA, SETS[ball].sized(SETS[ball].smallest))
    assert worst.value == pytest.approx(
        float(WORLD.probability @ np.logaddexp(0, -WORLD.u @ THETA)), rel=1e-13
    )
    assert worst.converged and worst.used == pytest.approx(SETS[ball].smallest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"set": KL()}, r"KL has no radius here. Give one, as in KL\(radius=0.1\)"),
        ({"set": KL(-1.0)}, "radius must be finite and not negative, got -1"),
        ({"set": KL(float("nan"))}, "got nan"),
        ({"set": KL([0.1, 0.2])}, "a worst case is that of a single radius, got 2 of them"),
        ({"theta": [1.0]}, r"theta must have shape \(2,\) to match u, got \(1,\)"),
        ({"losses": [1.0, 2.0]}, "losses and p must be of equal length"),
        ({"losses": [float("inf")] * 32}, "32 non-finite entries"),
        ({"weights": [1.0]}, r"weights must have shape \(32,\), got \(1,\)"),
        (
            {"set": WassersteinFree(0.1, power=2), "losses": [1.0]},
            "moves features, and needs the loss wherever they go",
        ),
    ],
)
def test_bad_input_is_refused(changes: dict, message: str) -> None:
    arguments: dict = {"theta": THETA, "set": KL(0.1)} | changes
    with pytest.raises(ValueError, match=message):
        worst_case(WORLD, **arguments)


def test_pairs_without_a_world() -> None:
    """u, theta of a fit and beta say as much as the world does; a missing beta is said."""
    found = fit(WORLD.u, KL(0.1), WORLD.probability, **WORLD.problem)
    again = worst_case(
        WORLD.u, found.theta, KL(0.1), WORLD.probability, beta=1.0, theta_ref=WORLD.theta_ref
    )
    assert again.value == worst_case(WORLD, found.theta[None], KL(0.1)).value
    assert again.value == pytest.approx(found.value.item(), rel=1e-12)
    np.testing.assert_array_equal(found.worst.weights, again.weights)
    with pytest.raises(ValueError, match="beta is missing"):
        worst_case(WORLD.u, found.theta, KL(0.1))


def test_functions_on_arrays_refuse_what_they_cannot_use() -> None:
    with pytest.raises(ValueError, match="got neither"):
        tilt([1.0, 2.0], [0.5, 0.5])
    with pytest.raises(ValueError, match="temperature must be a positive finite number, got 0"):
        tilt([1.0, 2.0], [0.5, 0.5], temperature=0.0)
    with pytest.raises(ValueError, match="power must be 1 or 2, got 3"):
        free(np.ones((1, 1)), [1.0], [1.0], beta=1.0, power=3, radius=0.1)
    with pytest.raises(ValueError, match="label_cost needs power=1"):
        free(np.ones((1, 1)), [1.0], [1.0], beta=1.0, power=2, radius=0.1, label_cost=1.0)
    with pytest.raises(ValueError, match=r"u must have shape \(n, d\) and w \(d,\)"):
        gradient_step(np.ones((1, 2)), [1.0], [1.0], beta=1.0, radius=0.1)
    with pytest.raises(ValueError, match=r"label_cost must be a positive .* got -2\.0"):
        WassersteinFree(power=1, label_cost=-2.0)
