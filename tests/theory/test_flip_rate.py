"""The flip rate against closed forms, statsmodels, and samples whose rate is known."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit, xlogy
from scipy.stats import binom, chi2

from theory import PreferenceModel, disagreement, estimate_flip_rate, flip_rates_by_group

Array = NDArray[np.float64]


def labelled(
    rng: np.random.Generator, z: Array, theta: Array, eps: float | Array
) -> NDArray[np.bool_]:
    """Labels of the log-linear world, turned round with the chance eps."""
    n = len(z)
    return (rng.random(n) < expit(z @ theta)) ^ (rng.random(n) < eps)


def signed(z: Array, y: NDArray[np.bool_]) -> Array:
    return (2.0 * y[:, None] - 1) * z


@pytest.mark.parametrize(("right", "far"), [(270, 300), (299, 300), (36, 40)])
def test_two_kinds_of_pairs_have_a_closed_form(right: int, far: int) -> None:
    """Pairs so far apart that only a flip can turn them, and others that settle theta: the rate is
    that of the wrong labels among the first, with their binomial likelihood for its interval."""
    near, wins = 400, 260
    z = np.repeat([800.0, 800.0, 1.0, 1.0], [right, far - right, wins, near - wins])
    sign = np.repeat([1.0, -1.0, 1.0, -1.0], [right, far - right, wins, near - wins])
    found = estimate_flip_rate((sign * z)[:, None], level=0.9)
    eps = 1 - right / far
    np.testing.assert_allclose(found.estimate, eps, atol=1e-5)
    np.testing.assert_allclose(found.coef, logit((wins / near - eps) / (1 - 2 * eps)), rtol=1e-3)

    def excess(rate: float) -> float:
        wrong = far - right
        at, best = (xlogy(wrong, x) + xlogy(right, 1 - x) for x in (rate, eps))
        return float(2 * (best - at) - chi2.ppf(0.9, 1))

    truth = brentq(excess, 1e-12, eps), brentq(excess, eps, 0.49)
    np.testing.assert_allclose((found.low, found.high), truth, atol=2e-4)
    assert found.identified == (truth[1] - truth[0] < 0.2) and found.pairs == far + near


def test_without_flips_it_is_logistic_regression() -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(size=(600, 2)) * [3.0, 2.0]
    y = rng.random(600) < expit(z @ [1.0, -0.5]) * 0.99 + 0.005
    margin = z @ [1.0, -0.5]
    y = np.where(np.abs(margin) > 2.5, margin > 0, y)  # none of the easy ones is wrong
    found = estimate_flip_rate(signed(z, y))
    assert found.estimate < 1e-6 and found.low == 0 < found.high < 0.02
    np.testing.assert_allclose(found.coef, sm.Logit(y, z).fit(disp=0).params, rtol=1e-4)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """40 samples: fewer than the 1e-4 quantile of the binomial law at the level would be a fault;
    intervals half as long cover 67 %, and fail this in nine of ten runs."""
    rng, theta, eps, runs = np.random.default_rng(2), np.ones(1), 0.1, 40
    found = []
    for _ in range(runs):
        z = 5 * rng.normal(size=(300, 1))
        found.append(estimate_flip_rate(signed(z, labelled(rng, z, theta, eps))))
    covered = sum(x.low <= eps <= x.high for x in found)
    assert covered >= binom.ppf(1e-4, runs, 0.95)
    assert sum(x.identified for x in found) >= 0.75 * runs
    estimates = np.array([x.estimate for x in found])
    assert abs(estimates.mean() - eps) < 4 * estimates.std() / np.sqrt(runs) + 0.005


def test_it_says_when_the_data_do_not_tell() -> None:
    rng = np.random.default_rng(3)
    small = 0.3 * rng.normal(size=(1000, 1))
    found = estimate_flip_rate(signed(small, labelled(rng, small, np.ones(1), 0.1)))
    assert not found.identified and found.high - found.low > 0.2
    assert "0 of 1000 are above 3; add pairs that are easy to tell apart" in found.why
    assert str(found).startswith("flip rate not identified (95% interval 0.000 to 0.")
    found = estimate_flip_rate(np.abs(rng.normal(size=(300, 1))))
    assert not found.identified and "the pairs are separable" in found.why
    z = 4 * rng.normal(size=(25, 2))
    found = estimate_flip_rate(signed(z, labelled(rng, z, np.ones(2), 0.2)))
    assert not found.identified and "25 pairs are too few for 3 parameters" in found.why
    with pytest.raises(ValueError, match="u holds 2 samples"):
        estimate_flip_rate(np.ones((2, 30, 1)))


def test_a_rate_for_each_annotator() -> None:
    """With the shared theta of the whole; of one group alone it is the rate of all."""
    rng = np.random.default_rng(4)
    z = 4 * rng.normal(size=(1500, 1))
    who = rng.choice(["ann", "bob", "cy"], size=1500, p=[0.5, 0.47, 0.03])
    eps = np.select([who == "ann", who == "bob"], [0.02, 0.25], 0.0)
    u = signed(z, labelled(rng, z, np.ones(1), eps))
    found = flip_rates_by_group(u, who)
    assert list(found) == ["ann", "bob", "cy"]
    assert found["ann"].low <= 0.02 <= found["ann"].high < found["bob"].low < 0.25
    assert found["bob"].high > 0.25 and found["bob"].identified
    assert found["cy"].pairs == (who == "cy").sum() and found["cy"].high > found["ann"].high
    np.testing.assert_allclose(found["ann"].coef, found["bob"].coef)
    one, all_ = flip_rates_by_group(u, np.zeros(1500))[0.0], estimate_flip_rate(u)
    np.testing.assert_allclose(
        (one.low, one.estimate, one.high), (all_.low, all_.estimate, all_.high)
    )
    with pytest.raises(ValueError, match=r"groups must be \(1500,\), .* got \(3,\)"):
        flip_rates_by_group(u, [1, 2, 3])


def test_units_and_orders_do_not_matter() -> None:
    rng = np.random.default_rng(5)
    z = 3 * rng.normal(size=(400, 2))
    u = signed(z, labelled(rng, z, np.ones(2), 0.1))
    first, other = (estimate_flip_rate(x) for x in (u, u[::-1, ::-1] * [1e-6, 1e6]))
    for name in ("estimate", "low", "high"):
        np.testing.assert_allclose(getattr(first, name), getattr(other, name), atol=1e-4)


# -------------------------------------------------------------------------------- repeated labels
@given(st.floats(0, 0.5), st.floats(0, 1))
def test_flips_and_noise_add_up_in_what_repeats_show(eps: float, s: float) -> None:
    """The formula of the docstring, from the four ways in which two labels come about."""
    q = s * (1 - eps) + (1 - s) * eps
    differ = q * (1 - q) + (1 - q) * q
    np.testing.assert_allclose(
        differ, 2 * eps * (1 - eps) + (1 - 2 * eps) ** 2 * 2 * s * (1 - s), atol=1e-12
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.floats(0.001, 0.7), st.sampled_from([0.5, 0.9, 0.99]))
def test_the_interval_of_disagreement_covers_at_any_size(n: int, rate: float, level: float) -> None:
    """By the binomial law of how many of n pairs with two labels have two different ones."""
    covered = 0.0
    for k in range(n + 1):
        pair, label = np.repeat(np.arange(n), 2), np.tile([1, 0], n)
        label[2 * k :] = 1
        found = disagreement(pair, label, level=level)
        assert found.rate == pytest.approx(k / n) and found.pairs == n
        covered += binom.pmf(k, n, rate) * (found.low <= rate <= found.high)
    assert covered >= level - 1e-9


def test_disagreement_has_closed_forms() -> None:
    found = disagreement(["a", "a", "a", "b", "c", "c"], [1, 1, 0, 1, 0, 0])
    assert found.rate == pytest.approx((2 / 3 + 0) / 2) and found.pairs == 2
    none = disagreement(np.repeat(np.arange(100), 2), np.ones(200))
    high = 1 - 0.025 ** (1 / 100)
    np.testing.assert_allclose((none.low, none.high), (0.0, high))
    np.testing.assert_allclose(none.flips_at_most, (1 - np.sqrt(1 - 2 * high)) / 2)
    assert disagreement([1, 1], [0, 1]).flips_at_most == 0.5
    with pytest.raises(ValueError, match="none of the 2 pairs has two labels"):
        disagreement([1, 2], [0, 1])
    with pytest.raises(ValueError, match=r"labels 0 or 1; got .* Leave ties out"):
        disagreement([1, 1], [0.5, 1])


# ---------------------------------------------------------------------------------------- the doors
def test_a_preference_model_says_the_rate_of_its_comparisons() -> None:
    rng = np.random.default_rng(6)
    z = 3 * rng.normal(size=(800, 2))
    y = labelled(rng, z, np.ones(2), 0.1)
    who = rng.integers(2, size=800)
    tied = np.append(y[:-1].astype(float), 0.5)
    model = PreferenceModel(set="kl", radius=0.01).fit(z, tied)
    found, truth = model.flip_rate(), estimate_flip_rate(signed(z, y)[:-1])
    np.testing.assert_allclose((found.low, found.high), (truth.low, truth.high), atol=1e-4)
    np.testing.assert_allclose(found.coef, truth.coef, rtol=1e-3)
    each = model.flip_rates_by_group(np.where(who == 1, "ann", "bob"))
    assert list(each) == ["ann", "bob"] and each["ann"].pairs == (who[:-1] == 1).sum()
    with pytest.raises(ValueError, match=r"groups must be \(800,\), .* got \(2,\)"):
        model.flip_rates_by_group([1, 2])
    weighted = PreferenceModel(set="kl", radius=0.01).fit(z, y, sample_weight=1.0 + (who == 1))
    with pytest.raises(ValueError, match="weights that differ"):
        weighted.flip_rate()


def test_the_command_prints_what_to_pass(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    from experiments import cli

    rng = np.random.default_rng(7)
    first, second = 4 * rng.normal(size=(2, 300))
    y = labelled(rng, (first - second)[:, None], np.ones(1), 0.1).astype(float)
    again = y.copy()
    again[:30] = 1 - again[:30]
    table = pd.DataFrame({"first_x": first, "second_x": second, "label": y})
    table = pd.concat([table, table.assign(label=again)])
    table["who"], table["which"] = np.repeat(["ann", "bob"], 300), np.tile(np.arange(300), 2)
    table.iloc[0, 2] = 0.5
    path = tmp_path / "pairs.csv"
    table.to_csv(path, index=False)
    options = f"flip-rate --data {path} --groups who --pair which"
    cli.main(options.split())
    said = " ".join(capsys.readouterr().out.split())
    difference, answer = (table.first_x - table.second_x).to_numpy(), table.label.to_numpy() == 1
    u = signed(difference[1:, None], answer[1:])
    found = estimate_flip_rate(u)
    assert (
        "1 ties are left out" in said and f"for cdpo and rdpo: --flip {found.estimate:.3g}" in said
    )
    assert "ann 299" in said and "bob 300" in said
    assert f"differ with the chance {29 / 299:.3f}" in said and "flip rate is at most" in said
    table[["first_x", "second_x"]] /= 30
    table.to_csv(path, index=False)
    cli.main(f"flip-rate --data {path}".split())
    said = capsys.readouterr().out
    assert "for cdpo and rdpo: --flip" in said  # units do not matter
    table.label = rng.integers(2, size=600)
    table.to_csv(path, index=False)
    cli.main(f"flip-rate --data {path}".split())
    assert "no value of --flip follows from these data" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["flip-rate", "--data", "pairs.txt"])
    assert "must end with .parquet or .csv" in capsys.readouterr().err
