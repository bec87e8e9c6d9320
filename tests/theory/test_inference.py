"""Standard errors and regions against closed forms, the jackknife and statsmodels."""

from dataclasses import replace

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from theory import (
    KL,
    ChiSquared,
    CVaR,
    Tilt,
    TotalVariation,
    WassersteinAtoms,
    WassersteinFree,
    collapse_radius,
    dpo,
    fit,
    infer,
)
from theory.laws.program import Places
from theory.policy import Array
from theory.results import Fit
from theory.sets import AmbiguitySet

BALLS = [
    None,
    KL(0.01),
    Tilt(1.0),
    ChiSquared(0.02),
    WassersteinFree(0.05),
    WassersteinFree(0.1, 2),
]


def sample(seed: int, n: int = 400) -> Array:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    wins = rng.random(n) < 1 / (1 + np.exp(-x @ [1.2, -0.8]))
    return np.where(wins[:, None], x, -x)


def jackknife(u: Array, ball: AmbiguitySet | None, member: Array) -> Array:
    """The covariance from the fits without one cluster each."""
    weights = np.stack([(member != g) / (member != g).sum() for g in range(member.max() + 1)])
    theta = fit(u, ball, weights, beta=1.0, bound=20.0).theta.numpy()
    away, g = theta - theta.mean(0), len(theta)
    return (g - 1) / g * away.T @ away


@pytest.mark.parametrize("ball", BALLS)
def test_the_covariance_is_that_of_the_jackknife(ball: AmbiguitySet | None) -> None:
    u = sample(0)
    found = fit(u, ball, beta=1.0, bound=20.0)
    seen = infer(found)
    assert seen.method == "sandwich" and seen.independent == len(u)
    np.testing.assert_allclose(
        seen.covariance, jackknife(u, ball, np.arange(len(u))), atol=0.06 * seen.covariance.max()
    )
    groups = np.arange(len(u)) // 8
    grouped = infer(found, clusters=groups)
    assert grouped.independent == 50
    np.testing.assert_allclose(
        grouped.covariance, jackknife(u, ball, groups), atol=0.12 * grouped.covariance.max()
    )


def crossed(seed: int, n: int = 900) -> tuple[Array, Array, Array]:
    """Differences, answers and labels (n, 2) of people and items that both have effects."""
    rng = np.random.default_rng(seed)
    labels = np.column_stack([rng.integers(60, size=n), rng.integers(40, size=n)])
    x = rng.normal(size=(n, 3)) + rng.normal(size=(60, 3))[labels[:, 0]] / 2
    effect = rng.normal(size=60)[labels[:, 0]] + rng.normal(size=40)[labels[:, 1]]
    wins = rng.random(n) < 1 / (1 + np.exp(-x @ [1.0, -0.5, 0.2] - effect))
    return x, wins, labels


def test_two_groupings_and_joint_tests_are_those_of_statsmodels() -> None:
    x, wins, labels = crossed(0)
    n, d = x.shape
    seen = infer(dpo(np.where(wins[:, None], x, -x), beta=1.0), clusters=labels)
    truth = sm.Logit(wins.astype(float), x).fit(
        disp=0, method="newton", tol=1e-14, cov_type="cluster", cov_kwds={"groups": labels}
    )
    factor = (n - 1) / (n - d)  # statsmodels' own, on each of the three
    np.testing.assert_allclose(seen.covariance, truth.cov_params() / factor, rtol=1e-6)
    assert seen.independent == 40
    for k in (1, 2, 3):
        tested = seen.wald(seen.names[:k])
        wald = truth.wald_test(np.eye(d)[:k], use_f=False, scalar=True)
        np.testing.assert_allclose(tested.statistic, wald.statistic * factor, rtol=1e-6)
        assert tested.degrees == k and tested.p_value > wald.pvalue  # few groups are allowed for
    np.testing.assert_allclose(seen.wald(seen.names[:1]).p_value, seen.p_values[0], rtol=1e-9)


def test_hotelling_s_law_is_chi_squared_where_units_are_many() -> None:
    """Two log-odds of pairs that have nothing to do with each other, in closed form."""
    p, n = np.array([0.26, 0.24, 0.253, 0.247]), 2000
    seen = infer(dpo([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], p, beta=1.0), pairs=n)
    tested = seen.wald(seen.names)
    odds, variance = np.log(p[::2] / p[1::2]), (1 / p[::2] + 1 / p[1::2]) / n
    np.testing.assert_allclose(tested.statistic, (odds**2 / variance).sum(), rtol=2 / n)
    # F has the quantiles of chi-squared to order 1/n; the tail at x is off by about x²/n
    truth = chi2.sf(tested.statistic, 2)
    np.testing.assert_allclose(tested.p_value, truth, rtol=tested.statistic**2 / n)


@pytest.mark.parametrize("ball", [None, KL(0.01), WassersteinFree(0.05)])
def test_a_grouping_within_another_adds_nothing(ball: AmbiguitySet | None) -> None:
    u = sample(0)
    wide = np.arange(len(u)) // 20
    found = fit(u, ball, beta=1.0, bound=20.0)
    one = infer(found, clusters=wide)
    for narrow in (np.arange(len(u)) // 5, wide):
        for labels in ((wide, narrow), (narrow, wide)):
            two = infer(found, clusters=np.column_stack(labels))
            np.testing.assert_allclose(two.covariance, one.covariance, rtol=1e-9)
            np.testing.assert_allclose(two.intervals, one.intervals, rtol=1e-9)


def test_a_negative_variance_of_two_groupings_is_0_in_any_coding() -> None:
    # the first feature is +1 or -1 as on a chessboard: its sums over rows and over columns vanish,
    # and those over the fields, of two pairs each, do not
    a, b = np.divmod(np.arange(36), 6)
    board = np.where((a + b) % 2, 1.0, -1.0)
    rng = np.random.default_rng(0)
    u = np.column_stack([np.tile(board, 2), rng.normal(size=(72, 2))])
    labels = np.tile(np.column_stack([a, b]), (2, 1))
    seen = infer(dpo(u, beta=1.0), clusters=labels)
    assert "negative in some direction" in seen.reason
    values = np.linalg.eigvalsh(seen.covariance)
    assert values[0] > -1e-12 * values[-1]
    turn = np.array([[2.0, 1.0, 0.0], [0.0, 100.0, 5.0], [0.0, 0.0, 0.01]])
    again = infer(dpo(u @ np.linalg.inv(turn), beta=1.0), clusters=labels)
    np.testing.assert_allclose(
        again.covariance, turn @ seen.covariance @ turn.T, rtol=1e-5, atol=1e-9
    )
    tested = seen.wald(seen.names)
    assert np.isnan(tested.statistic) and np.isnan(tested.p_value)


def test_a_joint_test_is_of_size_where_all_are_0() -> None:
    """12 groups: chi-squared would reject far more often."""
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(12), 40)
    rejected = []
    for _ in range(300):
        x = rng.normal(size=(480, 3)) + rng.normal(size=(12, 3))[group] / 2
        u = np.where(rng.random(480) < 0.5, 1.0, -1.0)[:, None] * x
        seen = infer(dpo(u, beta=1.0), clusters=group)
        tested = seen.wald(seen.names)
        rejected.append((tested.p_value < 0.05, tested.statistic > chi2.ppf(0.95, 3)))
    ours, naive = np.mean(rejected, axis=0)
    # three standard errors of 300 draws at 0.05, and what 12 groups leave to the limit
    assert ours < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300) + 0.03 < naive


def test_fits_that_ran_away_do_not_move_the_standard_errors_of_smaller_samples() -> None:
    u = np.random.default_rng(2).normal(size=(80, 4)) + [0.8, 0.0, 0.0, 0.0]
    seen = infer(fit(u, CVaR(0.7), beta=1.0), resamples=200)
    assert seen.method == "m out of n" and seen._draws is not None
    # smaller samples of these pairs are separable at times, and their fits as far as the bound
    root = np.sqrt((seen._draws**2).mean(0))
    assert (root[1:] > 2 * seen.standard_errors[1:]).all()
    spoilt = seen._draws.copy()
    spoilt[np.argmax(spoilt, axis=0), np.arange(4)] = 1e9  # those that were the largest already
    before, after = (
        replace(seen, _draws=draws).in_units(np.eye(4), seen.names)
        for draws in (seen._draws, spoilt)
    )
    np.testing.assert_array_equal(after.covariance, before.covariance)
    np.testing.assert_array_equal(before.covariance, seen.covariance)
    assert np.linalg.eigvalsh(after.covariance)[0] > 0


def test_the_scale_of_smaller_samples_is_a_deviation_where_the_law_is_normal() -> None:
    seen = infer(fit(sample(0, 80), CVaR(0.7), beta=1.0), resamples=20)
    rng = np.random.default_rng(0)
    draws = rng.multivariate_normal([0, 0], [[4.0, 1.2], [1.2, 1.0]], size=20_000)
    made = replace(seen, _draws=draws).in_units(np.eye(2), seen.names)
    # Mosteller's two quantiles are 65 % efficient: 1/sqrt(2 * 0.65 * 20,000) relative; 4 of these
    np.testing.assert_allclose(made.standard_errors, [2.0, 1.0], rtol=4 / np.sqrt(1.3 * 20_000))
    assert 0.5 < made.covariance[0, 1] / 2 < 0.61  # 0.6, and a little less where draws are clipped
    flat = np.zeros((200, 2))
    flat[:10] = 1.0  # most are one number: no quantile tells the scale
    held = replace(seen, _draws=flat).in_units(np.eye(2), seen.names)
    np.testing.assert_allclose(held.standard_errors, np.sqrt(10 / 200))


@pytest.mark.parametrize("ball", BALLS)
def test_pairs_that_are_copied_say_no_more_than_once_where_they_are_clusters(
    ball: AmbiguitySet | None,
) -> None:
    u = sample(1, 60)
    once = infer(fit(u, ball, beta=1.0, bound=20.0))
    copied = infer(
        fit(np.repeat(u, 5, 0), ball, beta=1.0, bound=20.0), clusters=np.repeat(np.arange(60), 5)
    )
    np.testing.assert_allclose(copied.covariance, once.covariance, rtol=1e-4)
    np.testing.assert_allclose(copied.intervals, once.intervals, rtol=1e-4)
    assert copied.independent == once.independent


def test_shares_of_distinct_pairs_are_the_pairs_themselves() -> None:
    u, count = np.array([[1.0, 0.2], [-0.9, 0.3], [0.4, -1.0], [-0.2, 0.5]]), [30, 12, 25, 13]
    ball = KL(0.01)
    rows = infer(fit(np.repeat(u, count, 0), ball, beta=1.0))
    shares = infer(fit(u, ball, np.array(count) / 80, beta=1.0), pairs=80)
    np.testing.assert_allclose(shares.covariance, rows.covariance, rtol=1e-5)


def test_a_log_odds_has_its_textbook_interval_and_region() -> None:
    seen = infer(dpo([[1.0], [-1.0]], [0.75, 0.25], beta=1.0), pairs=4000)
    error = 1 / np.sqrt(4000 * 0.75 * 0.25)
    np.testing.assert_allclose(seen.standard_errors, [error], rtol=1e-3)
    np.testing.assert_allclose(
        seen.intervals[0], np.log(3) + np.array([-1, 1]) * 1.96 * error, rtol=1e-3
    )
    low, high = seen.intervals[0]
    assert seen.contains([low + 1e-6]) and not seen.contains([low - 1e-3])
    assert seen.contains([high - 1e-6]) and not seen.contains([high + 1e-3])
    assert "95% intervals by sandwich" in repr(seen)


def test_where_the_kinks_are_in_doubt_samples_are_smaller() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(6, 2))
    u = np.concatenate([x, -0.9 * x])
    p = np.array([4, 3, 5, 6, 3, 4, 2, 1, 2, 3, 1, 2]) / 36
    metric = np.linalg.norm(u[:, None] - u, axis=-1)
    met = set()
    for radius in np.linspace(0.02, 0.3, 15):
        found = fit(u, WassersteinAtoms(radius, metric), p, beta=1.0, bound=20.0)
        if bool(found.collapsed):
            continue
        sure, unsure = infer(found, pairs=10**9), infer(found, pairs=200, resamples=50)
        met |= {(sure.method, unsure.method)}
        if unsure.method == "m out of n":
            assert "two standard errors" in unsure.reason or "multiplier" in unsure.reason
            assert unsure.contains(found.theta) and (unsure.standard_errors > 0).all()
    assert ("sandwich", "m out of n") in met


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["w1", "w2", "cvar", "tv"])
def test_atoms_that_are_listed_twice_change_nothing(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(6, 2))
    u = np.concatenate([x, -0.9 * x])
    p = rng.dirichlet(np.full(12, 5.0))
    metric = np.linalg.norm(u[:, None] - u, axis=-1)
    row = np.repeat(np.arange(12), 2)

    def ball(index: Places) -> AmbiguitySet:
        balls: dict[str, AmbiguitySet] = {
            "w1": WassersteinAtoms(0.05, metric[index][:, index]),
            "w2": WassersteinAtoms(0.15, metric[index][:, index], power=2),
            "cvar": CVaR(0.8),
            "tv": TotalVariation(0.1),
        }
        return balls[kind]

    once = fit(u, ball(np.arange(12)), p, beta=1.0, bound=20.0)
    twice = fit(u[row], ball(row), p[row] / 2, beta=1.0, bound=20.0)
    for pairs in (100, 10**6):  # 100 pairs are fewer than five for each of 24 rows
        shares, rows = (infer(x, pairs=pairs, resamples=10) for x in (once, twice))
        assert rows.method == shares.method
        if rows.method == "sandwich":
            size = np.abs(shares.covariance).max()
            np.testing.assert_allclose(rows.covariance, shares.covariance, atol=1e-4 * size)


@pytest.mark.parametrize("ball", [CVaR(0.6), TotalVariation(0.03)])
def test_clusters_of_atoms_that_are_listed_again(ball: AmbiguitySet) -> None:
    """Many pairs on each of six atoms: alone they are clusters of one; copied, they say no more."""
    rng = np.random.default_rng(5)
    u = np.array([[1.0, 0.3], [-0.4, 1.0], [0.5, 0.6], [-1.0, 0.4], [-0.5, -0.9], [0.8, -1.0]])
    rows = np.repeat(np.arange(6), [1250, 1000, 1100, 450, 300, 400])
    rng.shuffle(rows)

    def fitted(index: Places) -> Fit:
        return fit(u[index], ball, beta=1.0, bound=20.0)

    alone = infer(fitted(rows), resamples=20)
    assert alone.method == "sandwich"
    ones = infer(fitted(rows), clusters=np.arange(len(rows)), resamples=20)
    np.testing.assert_allclose(ones.covariance, alone.covariance, rtol=1e-6)
    twice = infer(
        fitted(np.repeat(rows, 2)), clusters=np.repeat(np.arange(len(rows)), 2), resamples=20
    )
    assert twice.independent == len(rows)
    size = np.abs(alone.covariance).max()
    np.testing.assert_allclose(twice.covariance, alone.covariance, atol=1e-4 * size)


@pytest.mark.slow
def test_intervals_cover_where_samples_collapse_and_the_population_does_not() -> None:
    """At 0.9 of its collapse radius: the fit is at the edge, and the target on one side of it."""
    rng = np.random.default_rng(1)
    population = rng.normal((0.3, 0.1), 1.0, (100_000, 2))
    ball = KL(0.9 * collapse_radius(population, KL()).item())
    target = fit(population, ball, beta=1.0).theta.numpy()
    samples, held, collapsed = 80, np.zeros(2), 0
    for _ in range(samples):
        found = fit(rng.normal((0.3, 0.1), 1.0, (400, 2)), ball, beta=1.0)
        low, high = infer(found, resamples=100).intervals.T
        held += (low <= target) & (target <= high)
        collapsed += bool(found.collapsed)
    assert collapsed > samples / 5
    assert (held / samples > 0.95 - 3 * np.sqrt(0.95 * 0.05 / samples)).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"level": 95}, "95 % is 0.95"),
        ({"level": 0}, "between 0 and 1"),
        ({"resamples": 0}, "resamples must be a whole number"),
        ({"pairs": 100.7}, "pairs must be a whole number"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        infer(fit(sample(0), beta=1.0), **options)  # type: ignore[arg-type]


def test_a_region_is_asked_for_a_theta_of_its_own_size() -> None:
    with pytest.raises(ValueError, match="shape"):
        infer(fit(sample(0), beta=1.0)).contains(np.zeros(9))


def test_a_fit_that_collapsed_is_resampled() -> None:
    seen = infer(fit(sample(0), KL(2.0), beta=1.0), resamples=30)
    assert seen.method == "m out of n" and "reference policy" in seen.reason
    assert seen.contains([0.0, 0.0])


def test_on_the_bound_the_sphere_holds_where_its_multiplier_is_sure() -> None:
    u = sample(3, 4000)
    size = float(np.linalg.norm(dpo(u, beta=1.0).theta))
    sure = infer(dpo(u, beta=1.0, bound=0.5 * size))
    np.testing.assert_allclose(sure.covariance @ sure.theta, 0, atol=1e-8)
    assert "in 1 directions" in sure.reason
    doubtful = infer(dpo(u, beta=1.0, bound=0.999 * size))
    free = infer(dpo(u, beta=1.0, bound=10 * size))
    np.testing.assert_allclose(doubtful.covariance, free.covariance, rtol=0.05, atol=1e-6)


def test_what_cannot_be_answered_is_refused() -> None:
    u = sample(0, 50)
    found = dpo(u, beta=1.0)
    with pytest.raises(ValueError, match="level"):
        infer(found, level=1.0)
    with pytest.raises(ValueError, match="shape"):
        infer(found, clusters=[1, 2])
    with pytest.raises(ValueError, match=r"\(n, 2\) where rows belong together in two ways"):
        infer(found, clusters=np.zeros((50, 3)))
    with pytest.raises(ValueError, match="one grouping only"):
        both = np.column_stack([np.arange(50), np.arange(50) // 2])
        infer(fit(u, CVaR(0.7), beta=1.0), clusters=both)
    with pytest.raises(ValueError, match="a list of features"):
        infer(found).wald(["feature 1", "feature 1"])
    assert np.isnan(infer(fit(u, CVaR(0.7), beta=1.0), resamples=20).wald(found.names).p_value)
    with pytest.raises(ValueError, match="too few"):
        infer(found, clusters=np.arange(50) % 2)
    for missing in (np.r_[np.arange(49.0), np.nan], [None] * 50):
        with pytest.raises(ValueError, match="without missing ones"):
            infer(found, clusters=missing)
    with pytest.raises(ValueError, match="pairs=1000"):
        infer(dpo([[1.0], [-1.0]], [0.7, 0.3], beta=1.0))
    with pytest.raises(ValueError, match=r"found\.one"):
        infer(fit(u, KL([0.01, 0.02]), beta=1.0))
    with pytest.raises(ValueError, match="Join similar"):
        metric = np.linalg.norm(u[:, None] - u, axis=-1)
        infer(fit(u, WassersteinAtoms(0.1, metric), beta=1.0))
    assert infer(fit(u, CVaR(0.7), beta=1.0), resamples=20).method == "m out of n"


def test_one_of_a_batch_is_that_fit_alone() -> None:
    u = sample(4, 100)
    batch, alone = fit(u, KL([0.01, 0.03]), beta=1.0), fit(u, KL(0.03), beta=1.0)
    one = batch.one(1)
    np.testing.assert_allclose(infer(one).covariance, infer(alone).covariance, rtol=1e-6)
    with pytest.raises(ValueError, match="single fit"):
        one.one(0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.floats(0.1, 10.0))
def test_order_and_unit_do_not_matter(seed: int, factor: float) -> None:
    u = sample(seed, 80)
    order = np.random.default_rng(seed).permutation(80)
    seen = infer(fit(u, KL(0.01), beta=1.0, bound=50.0))
    again = infer(fit(factor * u[order], KL(0.01), beta=1.0, bound=50.0 / factor))
    assert seen.method == again.method
    if seen.method == "sandwich":
        np.testing.assert_allclose(again.covariance * factor**2, seen.covariance, rtol=1e-4)
