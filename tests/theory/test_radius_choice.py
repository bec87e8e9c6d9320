"""Suggested radii against closed forms, scipy, and coverage counted in simulated samples."""

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize, root
from scipy.special import expit
from scipy.stats import norm

from tests.jitter import order
from tests.theory.instances import reweighting
from theory.collapse import collapse_radius
from theory.duals import kl_ball_dual
from theory.estimators import dpo, kldpo, kldpo_tilt
from theory.radius_choice import (
    describe,
    kl_coverage,
    profile_coverage,
    radius_for_value,
    shift_radius,
    suggest_radii,
    temperature_for_share,
    value_coverage,
)
from theory.sets.kl import KL
from theory.sets.wasserstein_free import WassersteinFree
from theory.solvers.adversary import free
from theory.worlds import FiniteWorld, random_world

Array = NDArray[np.float64]


def sample(n: int = 300, d: int = 3, seed: int = 0, signal: float = 2.0) -> Array:
    """Bradley–Terry pairs with Gaussian features and the true theta along the first axis."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    u = np.where(rng.random(n) < expit(signal * x[:, 0]), 1.0, -1.0)[:, None] * x
    return u[order(n)]  # with their labels: another order is the same sample


def a_world(d: int = 2) -> FiniteWorld:
    return random_world(0, contexts=6, actions=4, dimension=d, beta=1.0, bound=30.0, signal=1.0)


def rows(world: FiniteWorld, weights: Array, n: int) -> Array:
    """The pairs of a sample that is given as weights on the atoms."""
    return np.repeat(world.u, np.round(weights * n).astype(int), axis=0)


# ----------------------------------------------------------------------------------------- coverage
def test_chi_squared_radii_from_printed_tables() -> None:
    """chi2 at 95 %: 3.841 with one degree of freedom, 11.070 with five."""
    assert kl_coverage(100, 0.05) == pytest.approx(3.841 / 200, rel=1e-3)
    assert kl_coverage(100, 0.05, 5) == pytest.approx(11.070 / 200, rel=1e-3)


def test_kl_value_radius_covers_the_loss_of_a_fixed_policy() -> None:
    """One side of a two-sided 90 % interval: the true loss is above the worst case in 5 % of
    samples in the limit."""
    world, n, replicates = a_world(), 400, 2000
    assert world.theta_star is not None
    losses = np.logaddexp(0, -world.u @ world.theta_star)
    p = world.sample(n, np.random.SeedSequence(1).spawn(replicates)).p
    radius = torch.full((replicates,), kl_coverage(n, 0.1), dtype=torch.float64)
    worst = kl_ball_dual(
        torch.from_numpy(losses).expand(replicates, -1).contiguous(), p, radius
    ).value.numpy()
    failed = float((worst < world.probability @ losses).mean())
    assert (
        abs(failed - 0.05) < 4 * math.sqrt(0.05 * 0.95 / replicates) + 0.005
    )  # 0.005 for finite n


def test_theta_radius_covers_the_true_loss_of_the_fit_and_the_value_radius_does_not() -> None:
    world = random_world(1, contexts=6, actions=4, dimension=5, beta=1.0, bound=30.0, signal=3.0)
    n, replicates = 200, 400
    p = world.sample(n, np.random.SeedSequence(7).spawn(replicates)).p
    fits = dpo(world.u, p, beta=1.0, bound=30.0).theta.numpy()
    losses = np.logaddexp(0, -fits @ world.u.T)
    covered = {}
    for degrees in (1, 5):
        radius = torch.full((replicates,), kl_coverage(n, 0.05, degrees), dtype=torch.float64)
        worst = kl_ball_dual(torch.from_numpy(losses), p, radius).value.numpy()
        covered[degrees] = float((worst >= losses @ world.probability).mean())
    assert covered[5] >= 0.95 and covered[1] < 0.93


def test_kl_profile_covers_the_true_theta() -> None:
    """min {KL(Q||P_n) : E_Q grad l(theta*) = 0}, by the program of the collapse radius with
    gradients for pairs."""
    world, n, replicates = a_world(), 1000, 1000
    assert world.theta_star is not None
    gradient = -expit(-world.u @ world.theta_star)[:, None] * world.u
    p = world.sample(n, np.random.SeedSequence(2).spawn(replicates)).p
    failed = float((collapse_radius(gradient, KL(), p).numpy() > kl_coverage(n, 0.05, 2)).mean())
    assert abs(failed - 0.05) < 4 * math.sqrt(0.05 * 0.95 / replicates) + 0.01


def test_w2_profile_covers_the_true_theta() -> None:
    """A Q with E_Q grad l(theta*) = 0 is built for each sample; within the radius it shows that
    theta* is covered."""
    world, n, replicates = a_world(), 1000, 150
    star = world.theta_star
    assert star is not None
    p = world.sample(n, np.random.SeedSequence(3).spawn(replicates)).p.numpy()
    missed = 0
    for weights in p:
        u = rows(world, weights, n)
        down = expit(-u @ star)
        slope = (down * (1 - down))[:, None, None] * u[:, :, None] * star - down[
            :, None, None
        ] * np.eye(2)

        def moved(z: Array, u: Array = u, slope: Array = slope) -> Array:
            return u + np.einsum("nij,i->nj", slope, z)

        found = root(
            lambda z, moved=moved: (-expit(-moved(z) @ star)[:, None] * moved(z)).mean(0),
            np.zeros(2),
        )  # type: ignore[misc]
        distance = math.sqrt(np.square(moved(found.x) - u).sum(1).mean())
        fit = dpo(u, beta=1.0, bound=30.0).theta.numpy()
        missed += not found.success or distance > profile_coverage(u, fit, beta=1.0, delta=0.1)
    assert abs(missed / replicates - 0.1) < 4 * math.sqrt(0.09 / replicates)


def test_w2_profile_of_a_small_sample_against_a_program_over_all_moves() -> None:
    """The limit law is built on R_n = h'(E DD')^-1 h: against the least moves that make the
    gradient vanish, by SLSQP."""
    u = sample(30, 2, seed=3)
    w = dpo(u, beta=1.0, bound=30.0).theta.numpy() + np.array(
        [-0.2, 0.2]
    )  # near the sample's own, as theta* is
    down = expit(-u @ w)
    slope = (down * (1 - down))[:, None, None] * u[:, :, None] * w - down[:, None, None] * np.eye(2)
    h = (-down[:, None] * u).mean(0)
    formula = math.sqrt(h @ np.linalg.solve(np.einsum("nij,nkj->ik", slope, slope) / 30, h))

    def gradient(move: Array) -> Array:
        v = u + move.reshape(u.shape)
        return -(expit(-v @ w)[:, None] * v).mean(0)

    found = minimize(
        lambda move: np.square(move).sum() / 30,
        np.zeros(60),
        jac=lambda move: 2 * move / 30,
        constraints={"type": "eq", "fun": gradient},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 300},
    )
    assert found.success and formula == pytest.approx(math.sqrt(found.fun), rel=0.05)


def test_profile_coverage_in_one_dimension() -> None:
    """G'(E DD')^-1 G = (Var g/E D²) chi2_1: the quantile is known, the draws are good to about 2
    %."""
    u, w = sample(400, 1), np.array([1.3])
    m = u[:, 0] * 1.3
    slope = -expit(-m) + expit(m) * expit(-m) * m
    truth = math.sqrt(
        (expit(-m) * u[:, 0]).var(ddof=1) / np.square(slope).mean() * norm.ppf(0.975) ** 2 / 400
    )
    assert profile_coverage(u, w, beta=1.0, delta=0.05) == pytest.approx(truth, rel=0.02)


@pytest.mark.parametrize("scale", [0.1, 7.0])
def test_only_the_product_of_beta_and_w_matters(scale: float) -> None:
    u, w = sample(), np.array([1.0, 0.3, -0.2])
    for ball in ("w1", "w2"):
        one = value_coverage(ball, u, w, beta=1.0, delta=0.05)
        assert value_coverage(ball, u, w / scale, beta=scale, delta=0.05) == pytest.approx(
            one, rel=1e-9
        )
    one = profile_coverage(u, w, beta=1.0, delta=0.05)
    assert profile_coverage(u, w / scale, beta=scale, delta=0.05) == pytest.approx(one, rel=1e-9)


# ---------------------------------------------------------------------------- the value of a radius
@pytest.mark.parametrize("target", [0.02, 0.2, 1.0])
@pytest.mark.parametrize("ball", ["kl", "w1", "w2"])
def test_the_ball_of_the_radius_has_the_value(ball: str, target: float) -> None:
    """The worst cases are solved by other functions, and tested on their own."""
    u, w = sample(), np.array([2.0, 0.3, -0.2])
    losses, p = np.logaddexp(0, -u @ w), np.full(300, 1 / 300)
    aim = losses.mean() + target
    radius = radius_for_value(ball, u, w, aim, beta=1.0)
    if ball == "kl":
        value = reweighting("kl", losses, p, radius).value
    else:
        value = free(u, p, w, beta=1.0, power=int(ball[1]), radius=radius).value
    assert value == pytest.approx(aim, rel=1e-9)


def test_kl_radius_of_two_losses_by_hand() -> None:
    """Losses l(m) at two margins; the mean of the target asks for q on the second, KL by its
    definition."""
    u, w = np.array([[1.0]] * 3 + [[-1.0]]), np.array([1.0])
    low, high = math.log1p(math.exp(-1)), math.log1p(math.exp(1))
    q = 0.6
    truth = q * math.log(q / 0.25) + (1 - q) * math.log((1 - q) / 0.75)
    assert radius_for_value("kl", u, w, (1 - q) * low + q * high, beta=1.0) == pytest.approx(
        truth, rel=1e-9
    )
    assert radius_for_value("kl", u, w, high, beta=1.0) == pytest.approx(math.log(4))
    assert radius_for_value("kl", u, w, 1.01 * high, beta=1.0) == math.inf
    assert radius_for_value("kl", u, w, low, beta=1.0) == 0


def test_no_move_matters_at_the_reference() -> None:
    assert radius_for_value("w1", sample(), np.zeros(3), 1.0, beta=1.0) == math.inf


# ---------------------------------------------------------------------------- effective sample size
@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
def test_temperature_of_two_losses_in_closed_form(share: float) -> None:
    """(q - p)² = p (1 - p)(1/share - 1) for the weight q of the larger loss, and exp(L/tau) is the
    odds ratio of q and p."""
    n, k, high = 50, 10, 1.7
    p = k / n
    q = p + math.sqrt(p * (1 - p) * (1 / share - 1))
    tau = high / math.log(q * (1 - p) / (p * (1 - q)))
    divergence = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    assert temperature_for_share(np.array([0.0] * (n - k) + [high] * k), share) == pytest.approx(
        (tau, divergence), rel=1e-8
    )


def test_temperature_grows_with_the_share() -> None:
    losses = np.random.default_rng(0).exponential(size=200)
    taus = [temperature_for_share(losses, share)[0] for share in (0.05, 0.2, 0.5, 0.9, 0.999)]
    assert all(a < b for a, b in itertools.pairwise(taus))


def test_temperature_at_the_ends() -> None:
    assert temperature_for_share(np.ones(5), 0.5) == (math.inf, 0.0)
    assert temperature_for_share(np.array([0.0, 1.0, 1.0]), 0.5) == pytest.approx(
        (0.0, math.log(1.5))
    )


# -------------------------------------------------------------------------------------------- shift
def test_a_shift_is_found_and_reached() -> None:
    """Of the held-out pairs every fourth has its label turned round."""
    u, held_out, w = sample(2000), sample(1500, seed=1), np.array([2.0, 0.0, 0.0])
    held_out[::4] *= -1
    after = np.logaddexp(0, -held_out @ w)
    upper = after.mean() + norm.ppf(0.95) * after.std(ddof=1) / math.sqrt(1500)
    radius = shift_radius("w1", u, held_out, w, beta=1.0, delta=0.05)
    assert radius == pytest.approx(
        (upper - np.logaddexp(0, -u @ w).mean()) / 2, rel=1e-12
    )  # E l + rho beta ||w||


def test_the_same_population_shows_no_shift_in_most_samples() -> None:
    w = np.array([2.0, 0.0, 0.0])
    found = [
        shift_radius(
            "kl", sample(200, seed=2 * k), sample(150, seed=2 * k + 1), w, beta=1.0, delta=0.1
        )
        for k in range(300)
    ]
    seen = sum(radius is not None for radius in found) / 300
    assert abs(seen - 0.1) < 4 * math.sqrt(0.09 / 300)


# ----------------------------------------------------------------------------------------- the rule
def test_the_rule_takes_the_larger_one_below_the_cap() -> None:
    u, held_out = sample(2000), sample(2000, seed=1)
    held_out[::8] *= -1
    choice = suggest_radii(u, beta=1.0, bound=30.0, held_out=held_out)
    for ball, set in (
        (choice.kl, KL()),
        (choice.w1, WassersteinFree()),
        (choice.w2, WassersteinFree(power=2)),
    ):
        assert ball.shift is not None and ball.shift > ball.theta
        assert ball.collapse == collapse_radius(u, set).item()
        assert ball.radius == min(ball.shift, ball.cap) and ball.cap <= ball.collapse / 2
        assert (ball.conflict is None) == (ball.shift <= ball.cap)
    without = suggest_radii(u, beta=1.0, bound=30.0)
    assert without.kl.radius == pytest.approx(
        7.815 / 4000, rel=1e-3
    )  # chi2 with three degrees of freedom
    assert without.kl.shift is None and without.kl.conflict is None


def test_few_pairs_conflict_with_the_cap_and_say_so() -> None:
    choice = suggest_radii(sample(12, signal=0.3), beta=1.0, bound=5.0)
    assert choice.kl.conflict is not None and choice.kl.radius == choice.kl.cap
    assert choice.kl.conflict in describe(choice)


def test_tau_stands_for_the_radius() -> None:
    """The tilt at tau has the solution of the ball, and DPO at the equivalent beta has it in a
    population (Prop. E)."""
    u = sample(500)
    choice = suggest_radii(u, beta=0.5, bound=50.0)
    ball = kldpo(u, radius=choice.kl.radius, beta=0.5, bound=50.0).theta
    tilted = kldpo_tilt(u, temperature=choice.tau, beta=0.5, bound=50.0).theta
    torch.testing.assert_close(ball, tilted, rtol=0, atol=1e-5)
    plain = dpo(u, beta=choice.equivalent_beta, bound=50.0).theta
    assert (plain - ball).norm() / ball.norm() < 0.1  # a sample of 500, not the population


def test_the_share_cap_binds_where_losses_have_a_heavy_tail() -> None:
    choice = suggest_radii(sample(60, signal=0.5), beta=1.0, bound=30.0, share=0.99)
    assert choice.kl.radius == choice.share_radius and choice.share == pytest.approx(0.99, abs=1e-6)


def test_separable_pairs_and_pairs_without_preference() -> None:
    """Where no radius collapses the share is the only cap; where E u = 0 any radius does, and the
    suggestion is 0."""
    separable = suggest_radii(np.abs(sample(50)) + 0.1, beta=1.0, bound=5.0)
    assert separable.kl.collapse == math.inf and separable.kl.cap == separable.share_radius
    u = sample(40)
    balanced = suggest_radii(np.concatenate([u, -u]), beta=1.0, bound=5.0)
    assert balanced.kl.radius == pytest.approx(
        0, abs=1e-12
    ) and balanced.w2.radius == pytest.approx(0, abs=1e-12)
    assert "inf" in describe(separable) and "rest on the bound" in describe(separable)
    assert "rest on the bound" not in describe(balanced)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": np.ones((1, 2))}, "n >= 2"),
        ({"u": np.full((4, 2), np.nan)}, "8 non-finite"),
        ({"held_out": np.ones((4, 2))}, "3 features and held_out 2"),
        ({"delta": 1.0}, "delta"),
        ({"share": 0.0}, "share"),
        ({"cover": "both"}, "'theta' or 'value'"),
    ],
)
def test_unusable_input_is_refused(change: dict, message: str) -> None:
    given = {"u": sample(20), "beta": 1.0, "bound": 5.0} | change
    with pytest.raises(ValueError, match=message):
        suggest_radii(**given)


def test_pairs_from_which_no_radius_follows_are_refused() -> None:
    with pytest.raises(ValueError, match="all features of u are 0"):
        suggest_radii(np.zeros((80, 3)), beta=1.0, bound=50.0)
    with pytest.raises(ValueError, match="u must be an array of numbers"):
        suggest_radii(np.array([["a", "b"], ["c", "d"]]), beta=1.0, bound=50.0)
