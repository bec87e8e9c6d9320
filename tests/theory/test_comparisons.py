"""The preference model against statsmodels, cvxpy and its own invariances."""

import pickle
from typing import Any

import cvxpy as cp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score

from theory import KL, PreferenceModel, WassersteinFree, fit
from theory.policy import Array
from theory.sets.gradient_penalty import GradientPenalty

FORMULA = "price + time + C(comfort)"


def journeys(seed: int = 0, n: int = 600, people: int = 60) -> tuple[pd.DataFrame, Array, Array]:
    """Choices between two journeys by people who differ, with a liking for what comes first."""
    rng = np.random.default_rng(seed)
    person = rng.integers(people, size=n)
    table = pd.DataFrame({"person": person, "income": rng.normal(size=people)[person]})
    score = np.full(n, 0.3) + rng.normal(scale=0.4, size=people)[person]
    for side, sign in (("1", 1.0), ("2", -1.0)):
        table[f"price{side}"] = rng.integers(10, 60, n) * 100
        table[f"time{side}"] = rng.integers(60, 180, n)
        table[f"comfort{side}"] = rng.integers(0, 3, n)
        comfort = np.array([0.0, -0.4, -1.0])[table[f"comfort{side}"]]
        score += sign * (-6e-4 * table[f"price{side}"] - 0.01 * table[f"time{side}"] + comfort)
    return table, rng.random(n) < 1 / (1 + np.exp(-np.asarray(score))), person


def fitted(set: Any = "kl", groups: bool = True, **settings: Any) -> PreferenceModel:
    table, first, person = journeys()
    model = PreferenceModel(FORMULA, sides=("1", "2"), set=set, unpenalised=("order",), **settings)
    return model.fit(table, first, groups=person if groups else None)


def test_without_a_radius_it_is_a_logistic_regression_with_clustered_errors() -> None:
    table, first, person = journeys()
    x = np.column_stack(
        [
            table.price1 - table.price2,
            table.time1 - table.time2,
            *((table.comfort1 == k).astype(float) - (table.comfort2 == k) for k in (1, 2)),
            np.ones(len(table)),
        ]
    )
    logit = sm.Logit(first.astype(float), x)
    how = {"disp": 0, "method": "newton", "tol": 1e-14}
    n, d = x.shape
    for set in (None, "kl"):
        zero = {} if set is None else {"radius": 0.0}
        model = fitted(set, **zero)
        truth = logit.fit(cov_type="cluster", cov_kwds={"groups": person}, **how)
        np.testing.assert_allclose(model.coef_, truth.params, rtol=1e-6)
        assert model.names_[-1] == "order" and model.intercept_ == model.coef_[-1]
        assert model.inference_ is not None
        # statsmodels also multiplies by (n - 1)/(n - d)
        errors = truth.bse / np.sqrt((n - 1) / (n - d))
        np.testing.assert_allclose(model.inference_.standard_errors, errors, rtol=1e-6)
        alone = logit.fit(cov_type="HC0", **how)
        robust = fitted(set, groups=False, **zero).inference_
        assert robust is not None
        np.testing.assert_allclose(
            robust.standard_errors, alone.bse * np.sqrt(n / (n - 1)), rtol=1e-6
        )


@pytest.mark.some(2)
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_unpenalised_columns_are_those_of_the_partial_norm(power: int, share: float) -> None:
    """Against cvxpy; W2 by its own value, as a convex program in the moved coefficients alone."""
    table, first, _ = journeys()
    model = fitted(WassersteinFree(power=power), of_collapse=share)
    x = model.design_.differences(table)
    size = np.sqrt((x**2).mean(0))
    u = np.where(first, 1.0, -1.0)[:, None] * x / size
    if power == 1:
        w = cp.Variable(5)
        goal = cp.sum(cp.logistic(-u @ w)) / len(u) + model.radius_ * cp.norm(w[:4])
        problem = cp.Problem(cp.Minimize(goal))
        problem.solve(solver="CLARABEL")
        np.testing.assert_allclose(model.objective_, problem.value, atol=2e-7)
        np.testing.assert_allclose(model.coef_ * size, w.value, atol=2e-4)
    # with the unpenalised part as it is, the others are those of an ordinary fit around it
    theta = model.coef_ * size
    assert model.gap_ < 1e-4 * model.radius_ + 1e-8

    def partial(scale: float, order: float) -> float:
        moved = scale * theta[:4]
        b, margin = np.linalg.norm(moved), u @ np.append(moved, order)
        if power == 1:
            return float(np.logaddexp(0, -margin).mean() + model.radius_ * b)
        grid = b * np.exp(np.linspace(-6, 6, 4001))  # eta
        shift = np.linspace(0, 4, 401)
        best = []
        for eta in grid[1500:3500:20]:
            worst = (np.logaddexp(0, -margin[:, None] + b * shift) - eta * shift**2).max(1)
            best.append(eta * model.radius_**2 + worst.mean())
        return float(min(best))

    here = partial(1.0, theta[4])
    for scale, order in (
        (0.9, theta[4]),
        (1.1, theta[4]),
        (1.0, theta[4] + 0.1),
        (1.0, theta[4] - 0.1),
    ):
        assert partial(scale, order) > here - 1e-5


@pytest.mark.parametrize("power", [1, 2])
def test_beyond_all_that_moves_only_the_unpenalised_are_left(power: int) -> None:
    _, first, _ = journeys()
    model = fitted(WassersteinFree(power=power), of_collapse=1.0)
    share = first.mean()
    np.testing.assert_allclose(model.coef_, [0, 0, 0, 0, np.log(share / (1 - share))], atol=1e-9)
    assert model.collapsed_ and model.inference_ is None and "collapse" in repr(model.summary())
    just = fitted(WassersteinFree(power=power), of_collapse=0.999)
    assert not just.collapsed_ and np.abs(just.coef_[:4]).max() > 0


def test_ties_are_two_half_comparisons() -> None:
    table, first, person = journeys()
    y = first.astype(float)
    y[::7] = 0.5
    model = PreferenceModel(FORMULA, sides=("1", "2"), radius=0.01).fit(table, y, groups=person)
    # by hand: both answers, half the weight each
    tie = y == 0.5
    double = pd.concat([table, table[tie]], ignore_index=True)
    answer = np.append(np.where(tie, 1.0, y), np.zeros(tie.sum()))
    weight = np.append(np.where(tie, 0.5, 1.0), np.full(tie.sum(), 0.5))
    twin = PreferenceModel(FORMULA, sides=("1", "2"), radius=0.01)
    twin.fit(double, answer, groups=np.append(person, person[tie]), sample_weight=weight)
    np.testing.assert_allclose(model.coef_, twin.coef_, rtol=1e-7)
    assert model.inference_ is not None and twin.inference_ is not None
    np.testing.assert_allclose(
        model.inference_.standard_errors, twin.inference_.standard_errors, rtol=1e-5
    )
    assert (model.n_comparisons_, model.n_ties_) == (len(table), int(tie.sum()))
    dropped = PreferenceModel(FORMULA, sides=("1", "2"), radius=0.01, ties="drop").fit(table, y)
    alone = PreferenceModel(FORMULA, sides=("1", "2"), radius=0.01).fit(table[~tie], y[~tie])
    np.testing.assert_allclose(dropped.coef_, alone.coef_, rtol=1e-9)
    # a tie is one comparison, not two: its errors are those of clusters of its two rows
    lone = PreferenceModel(FORMULA, sides=("1", "2"), radius=0.01).fit(table, y)
    assert lone.inference_ is not None and lone.inference_.independent == len(table)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1000),
    factor=st.floats(1e-3, 1e3),
    set=st.sampled_from(["kl", "w1-free", "chi2"]),
)
def test_units_order_and_sides_do_not_matter(seed: int, factor: float, set: str) -> None:
    table, first, person = journeys(seed, 200, 20)
    how: dict[str, Any] = {"sides": ("1", "2"), "set": set, "of_collapse": 0.3}
    one = PreferenceModel(FORMULA, **how).fit(table, first, groups=person)
    scaled = table.assign(price1=table.price1 * factor, price2=table.price2 * factor)
    other = PreferenceModel(FORMULA, **how).fit(scaled, first, groups=person)
    np.testing.assert_allclose(other.coef_[0] * factor, one.coef_[0], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(other.coef_[1:], one.coef_[1:], rtol=1e-5, atol=1e-7)
    order = np.random.default_rng(seed).permutation(len(table))
    again = PreferenceModel(FORMULA, **how).fit(
        table.iloc[order], first[order], groups=person[order]
    )
    np.testing.assert_allclose(again.coef_, one.coef_, rtol=1e-5, atol=1e-7)
    turned = table.rename(
        columns=lambda c: c[:-1] + {"1": "2", "2": "1"}[c[-1]] if c[-1] in "12" else c
    )
    mirror = PreferenceModel(FORMULA, **how).fit(turned, ~first, groups=person)
    np.testing.assert_allclose(mirror.coef_, one.coef_, rtol=1e-5, atol=1e-7)


def test_the_whitened_metric_does_not_see_how_categories_are_coded() -> None:
    table, first, _ = journeys()
    losses = {}
    for metric in ("columns", "whitened"):
        for base in (0, 2):
            formula = f"price + time + C(comfort, contr.treatment(base={base}))"
            model = PreferenceModel(
                formula, sides=("1", "2"), set="w1-free", radius=0.03, metric=metric
            ).fit(table, first)
            losses[metric, base] = model.score(table, first)
    assert losses["whitened", 0] == pytest.approx(losses["whitened", 2], abs=1e-7)
    assert abs(losses["columns", 0] - losses["columns", 2]) > 1e-5


def test_coefficients_are_those_of_the_exact_fit() -> None:
    table, first, _ = journeys()
    model = PreferenceModel(FORMULA, sides=("1", "2"), radius=0.02).fit(table, first)
    u = np.where(first, 1.0, -1.0)[:, None] * model.design_.differences(table)
    truth = fit(u, KL(0.02), beta=1.0)
    np.testing.assert_allclose(model.coef_, truth.theta.numpy(), rtol=1e-4)
    assert model.objective_ == pytest.approx(truth.value.item(), abs=1e-8)
    worst = model.worst_case()
    assert worst.table.worst_share.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(worst.table.worst_share, truth.worst.weights, atol=1e-5)  # type: ignore[union-attr]
    by = worst.by(table.person)
    assert by.share.sum() == pytest.approx(1) and by.worst_share.sum() == pytest.approx(1)
    assert by.times.is_monotonic_decreasing
    path = model.path([0.0, 0.2, 0.4])
    np.testing.assert_allclose(path.table[list(model.names_)].iloc[0], model.dpo_, rtol=1e-5)
    assert (np.diff(path.table.kl) < 0).all() and path.table.converged.all()
    # the rival is plain DPO at another beta, as far from the reference
    rival = PreferenceModel(FORMULA, sides=("1", "2"), set=None).fit(table, first)
    np.testing.assert_allclose(model.rival_, rival.coef_ * 1.0 / model.rival_beta_, rtol=1e-6)
    assert model._kl(model.rival_) == pytest.approx(model.kl_, rel=1e-9)


def test_moves_of_a_transport_ball_use_up_its_radius() -> None:
    model = fitted("w2-free", of_collapse=0.5)
    worst = model.worst_case()
    assert not worst.table.flipped.any() and (worst.table.moved > 0).all()
    moves = worst.worst.moves
    assert moves is not None
    assert float(moves.mass @ moves.distance**2) == pytest.approx(model.radius_**2, rel=1e-3)


def test_two_groupings_and_joint_tests_are_those_of_statsmodels() -> None:
    table, first, person = journeys()
    table["town"] = np.random.default_rng(5).integers(25, size=len(table))
    how: dict[str, Any] = {"sides": ("1", "2"), "set": None, "unpenalised": ("order",)}
    model = PreferenceModel(FORMULA, **how).fit(table, first, groups=table[["person", "town"]])
    x = model.design_.differences(table)
    n, d = x.shape
    truth = sm.Logit(first.astype(float), x).fit(
        disp=0,
        method="newton",
        tol=1e-14,
        cov_type="cluster",
        cov_kwds={"groups": np.column_stack([person, table.town])},
    )
    factor = (n - 1) / (n - d)
    assert model.inference_ is not None
    np.testing.assert_allclose(
        model.inference_.covariance, truth.cov_params() / factor, rtol=1e-5, atol=1e-12
    )
    assert model.n_groups_ == (60, 25)
    shown = model.summary()
    assert "60 and 25" in repr(shown) and "t law of the fewer, 25" in repr(shown)
    # the category as a whole, as wald_test_terms has it
    wald = truth.wald_test(np.eye(d)[2:4], use_f=False, scalar=True).statistic * factor
    np.testing.assert_allclose(shown.tests.loc["C(comfort)", "chi2"], wald, rtol=1e-5)
    assert shown.tests.df.tolist() == [2] and f"Wald chi2 {wald:.2f} on 2 df" in repr(shown)
    tested = model.wald("C(comfort)")
    assert tested.p_value == shown.tests.P.item()
    assert model.wald("price", "order").degrees == 2
    # by the names of the columns, in the constructor
    named = PreferenceModel(FORMULA, **how, groups=("person", "town")).fit(table, first)
    assert named.inference_ is not None
    np.testing.assert_array_equal(named.inference_.covariance, model.inference_.covariance)
    # both are resampled, of which the spread is rather too large: Owen (2007)
    spread = named.bootstrap(200).std() / model.inference_.standard_errors
    assert (spread > 0.8).all() and (spread < np.sqrt(3) * 1.2).all()
    cv = PreferenceModel(FORMULA, **how | {"set": "kl"}, radius="cv", groups=("person", "town"))
    assert "over the first groups" in cv.fit(table, first).radius_why_
    with pytest.raises(ValueError, match="known for one grouping"):
        cv.set_params(radius="coverage").fit(table, first)
    with pytest.raises(ValueError, match="groups has another index"):
        model.fit(table, first, groups=table[["person", "town"]][::-1])


def test_a_joint_test_is_refused_where_single_ones_are() -> None:
    model = fitted("kl", radius=0.01)
    assert list(model.summary().tests.index) == ["C(comfort)"]
    with pytest.raises(ValueError, match="no term 'comfort' to test; there are price, time"):
        model.wald("comfort")
    moves = fitted("w1-free", radius=0.05)
    assert not len(moves.summary().tests)
    with pytest.raises(ValueError, match="moves features"):
        moves.wald("C(comfort)")
    smaller = fitted("cvar", of_collapse=0.3, resamples=20)
    assert smaller.inference_ is not None and smaller.inference_.method == "m out of n"
    assert not len(smaller.summary().tests) and np.isnan(smaller.wald("price").p_value)
    table, first, person = journeys()
    few = clone(model).fit(table[person < 3], first[person < 3], groups=person[person < 3])
    with pytest.raises(ValueError, match="no standard errors to test with"):
        few.wald("price")


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_odds_ratios_are_those_of_the_odds_themselves(beta: float, tmp_path: Any) -> None:
    table, *_ = journeys()
    model = fitted("kl", radius=0.005, beta=beta)
    odds = model.summary(odds=True).table
    assert list(odds)[:3] == ["odds ratio", "t", "P>|t|"] and "std err" not in odds
    # one more of a feature, by the model's own probabilities
    for name, feature in (("time", "time1"), ("price", "price1")):
        chance = model.predict_proba(table)[:, 1]
        more = model.predict_proba(table.assign(**{feature: table[feature] + 1}))[:, 1]
        times = (more / (1 - more)) / (chance / (1 - chance))
        np.testing.assert_allclose(times, odds.loc[name, "odds ratio"], rtol=1e-9)
    plain = model.summary().table
    for end in ("[2.5 %", "97.5 %]", "DPO"):
        np.testing.assert_allclose(np.log(odds[end]), beta * plain[end], rtol=1e-9)
    np.testing.assert_array_equal(odds["P>|t|"], plain["P>|t|"])
    model.to_csv(tmp_path / "odds.csv", odds=True)
    back = pd.read_csv(tmp_path / "odds.csv", index_col=0)
    np.testing.assert_allclose(back, odds)
    text = model.to_latex(odds=True, columns=["odds ratio", "[2.5 %", "97.5 %]"])
    assert "odds ratio" in text and ("exp(coef)" if beta == 1 else "exp(0.5 coef)") in text
    with pytest.raises(ValueError, match="no column 'std err'"):
        model.to_latex(odds=True, columns=["std err"])


def test_it_keeps_scikit_learn_s_conventions() -> None:
    table, first, person = journeys()
    model = PreferenceModel(FORMULA, sides=("1", "2"), radius=0.01)
    assert clone(model).get_params() == model.get_params()
    assert model.set_params(radius=0.02).radius == 0.02
    scores = cross_val_score(model, table, first, groups=person, cv=GroupKFold(3))
    assert (scores > -np.log(2)).all()
    right = cross_val_score(
        model, table, first, groups=person, cv=GroupKFold(3), scoring="accuracy"
    )
    assert (right > 0.6).all()
    loss = cross_val_score(
        model, table, first, groups=person, cv=GroupKFold(3), scoring="neg_log_loss"
    )
    np.testing.assert_allclose(loss, scores, rtol=1e-9)
    model.fit(table, first)
    chance = model.predict_proba(table)
    np.testing.assert_allclose(chance.sum(1), 1)
    assert ((chance[:, 1] > 0.5) == model.predict(table)).all()
    # a search hands the table on, and no groups: their column is named
    search = GridSearchCV(
        PreferenceModel(FORMULA, sides=("1", "2"), groups="person"), {"radius": [0.001, 0.01]}
    )
    best = search.fit(table, first).best_estimator_
    assert best.n_groups_ == table.person.nunique()
    by_hand = clone(best).set_params(groups=None).fit(table, first, groups=person)
    np.testing.assert_allclose(
        best.inference_.standard_errors, by_hand.inference_.standard_errors, rtol=1e-9
    )
    again = pickle.loads(pickle.dumps(best))
    np.testing.assert_array_equal(again.predict_proba(table), best.predict_proba(table))
    with pytest.raises(Exception, match="not fitted"):
        PreferenceModel(radius=0.1).predict([[1.0]])


def test_cross_validation_holds_out_whole_groups_and_finds_the_least_loss() -> None:
    model = fitted("kl", radius="cv")
    table = model.cv_
    assert table.held_out_loss.min() == table.held_out_loss[table.radius == model.radius_].item()
    assert "over groups" in model.radius_why_
    # few comparisons and many features: some robustness predicts better than none
    rng = np.random.default_rng(1)
    x = rng.normal(size=(120, 12))
    y = rng.random(120) < 1 / (1 + np.exp(-x[:, 0]))
    found = PreferenceModel(set="w1-free", radius="cv").fit(x, y)
    assert found.radius_ > 0


def test_the_bootstrap_agrees_with_the_sandwich() -> None:
    model = fitted("kl", radius=0.01)
    draws = model.bootstrap(300)
    assert model.inference_ is not None
    np.testing.assert_allclose(draws.std(), model.inference_.standard_errors, rtol=0.25)


@pytest.mark.parametrize("shares", [[-1], [0, 2], [[0.1]]])
def test_a_path_takes_shares_of_the_way_to_collapse(shares: Any) -> None:
    with pytest.raises(ValueError, match="shares are a list of numbers from 0"):
        fitted("kl", radius=0.01).path(shares)


def test_the_line_of_a_path_stands_at_the_models_radius() -> None:
    """Between two radii of the grid, too."""
    model = fitted("kl", of_collapse=0.13)
    axes = model.path([0.0, 0.1, 0.2, 0.5]).plot()
    (line,) = (line for line in axes.lines if len(set(line.get_xdata())) == 1)
    assert 0.1 < float(np.asarray(line.get_xdata())[0]) < 0.2


def test_names_that_are_no_features_are_told() -> None:
    with pytest.raises(ValueError, match=r"'prize'.*price"):
        fitted("kl", radius=0.01).summary().to_latex(names={"prize": "Price"})


@pytest.mark.parametrize("level", [0, 95])
def test_a_level_that_is_none_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        fitted("kl", radius=0.01, level=level)


@pytest.mark.parametrize("resamples", [0, -3, 2.5])
def test_no_bootstrap_without_resamples(resamples: Any) -> None:
    with pytest.raises(ValueError, match="resamples must be a whole number"):
        fitted("kl", radius=0.01).bootstrap(resamples)


def test_what_cannot_be_read_is_told() -> None:
    table, first, _ = journeys()
    model = PreferenceModel(FORMULA, sides=("1", "2"), radius=0.01)
    holes = table.astype({"time1": float})
    holes.loc[5, "time1"] = np.nan

    def fitted_with(**columns: Any) -> Any:
        return clone(model).fit(table.assign(**columns), first)

    def holed(table: pd.DataFrame, hole: int) -> Any:
        return table.comfort1.astype("Int64").where(table.index != hole)

    cases: list[tuple[Any, str]] = [
        (lambda: model.fit(holes, first), "'time' has no entry in row 5"),
        (lambda: model.fit(table, first * 2), "y has 2 in row"),
        (lambda: model.fit(table, first * 0.0 + 0.5), "all comparisons are ties"),
        (lambda: model.fit(table, pd.array([None, *first[1:]], dtype="boolean")), "row 0"),
        (
            lambda: model.fit(table, pd.Series(first)[::-1]),
            "y has another",
        ),
        (lambda: fitted_with(comfort1=holed(table, 3)), "'comfort' has no entry in row 3"),
        (lambda: fitted_with(price1=table.price1.astype(str)), "'price' holds numbers written as"),
        (lambda: clone(model).set_params(formula="first ~ price").fit(table, first), "left side"),
        (lambda: clone(model).set_params(groups="town").fit(table, first), "'town'"),
        (
            lambda: (
                clone(model)
                .set_params(formula="price + time + I(price + 2 * time)")
                .fit(table, first)
            ),
            "is a combination of",
        ),
        (lambda: model.fit(table, np.where(first, "a", "b")), "make a comparison"),
        (lambda: model.fit(table, first[:-1]), "a label for each of 600"),
        (lambda: model.fit(table, first, sample_weight=-np.ones(600)), "not negative"),
        (lambda: clone(model).set_params(formula="price + nothing").fit(table, first), "nothing"),
        (
            lambda: clone(model).set_params(formula="price + income").fit(table, first),
            "never differ",
        ),
        (lambda: clone(model).set_params(sides=("x", "y")).fit(table, first), "'x' and 'y'"),
        (lambda: clone(model).set_params(sides=None).fit(table, first), "needs both"),
        (lambda: clone(model).set_params(set="sphere").fit(table, first), "set must be one of"),
        (lambda: clone(model).set_params(radius="large").fit(table, first), "'coverage' or 'cv'"),
        (lambda: clone(model).set_params(radius=None).fit(table, first), "how large is KL"),
        (lambda: clone(model).set_params(of_collapse=0.5).fit(table, first), "not both"),
        (lambda: clone(model).set_params(set=None).fit(table, first), "no radius"),
        (lambda: clone(model).set_params(set="w1-finite").fit(table, first), "distances"),
        (lambda: clone(model).set_params(unpenalised=("colour",)).fit(table, first), "'colour'"),
        (lambda: clone(model).set_params(metric="x").fit(table, first), "metric must be"),
        (lambda: clone(model).set_params(ties="x").fit(table, first), "ties must be"),
        (lambda: model.fit(table.assign(price1=table.price2 - 5), table.index >= 0), "separable"),
        (lambda: model.fit(table, first).predict(table.drop(columns="time1")), "'time1'"),
        (lambda: model.fit(table, first).predict(table.assign(comfort1=7)), "level '7'"),
    ]
    for attempt, words in cases:
        with pytest.raises(ValueError, match=words):
            attempt()


def test_missing_categories_are_not_the_first_one() -> None:
    table, first, _ = journeys()
    for kind in ("object", "category", "string"):
        words = table.assign(
            comfort1=table.comfort1.map({0: "a", 1: "b", 2: "c"}).astype(kind),
            comfort2=table.comfort2.map({0: "a", 1: "b", 2: "c"}).astype(kind),
        )
        model = PreferenceModel("price + comfort", sides=("1", "2"), radius=0.01).fit(words, first)
        assert model.names_ == ("price", "comfort[T.b]", "comfort[T.c]")
        words.loc[4, "comfort2"] = None
        with pytest.raises(ValueError, match="'comfort' has no entry in row 4"):
            model.predict(words)
        with pytest.raises(ValueError, match="'comfort' has no entry in row 4"):
            model.fit(words, first)


def test_a_set_that_moves_features_has_an_estimate_where_plain_dpo_has_none() -> None:
    table, first, person = journeys()
    rare = table.assign(rare1=0, rare2=0)
    rare.loc[np.flatnonzero(first)[:2], "rare1"] = 1
    how: dict[str, Any] = {"formula": "price + rare", "sides": ("1", "2")}
    for set in (None, "kl"):
        size = {} if set is None else {"radius": 0.01}
        with pytest.raises(ValueError, match=r"separable .*direction of rare.*w2-free"):
            PreferenceModel(**how, set=set, **size).fit(rare, first)
        held = PreferenceModel(**how, set=set, bound=3.0, **size).fit(rare, first, groups=person)
        assert np.isfinite(held.coef_).all() and "separable" in repr(held.summary())
    for power in (1, 2):
        model = PreferenceModel(**how, set=WassersteinFree(0.05, power=power)).fit(rare, first)
        assert 0 < model.coef_[1] < 10 and np.isnan(model.dpo_).all()
        assert "no finite estimate" in repr(model.summary()) and model.to_latex()


def test_no_p_values_where_a_null_would_be_significant() -> None:
    """b has no effect and goes with a, whose coefficient the set shares with it."""
    rng = np.random.default_rng(0)
    low = []
    for _ in range(20):
        a = rng.normal(size=600)
        x = np.column_stack([a, a + 0.7 * rng.normal(size=600)])
        y = rng.random(600) < 1 / (1 + np.exp(-1.5 * a))
        model = PreferenceModel(set="w2-free", of_collapse=0.2).fit(x, y)
        assert model.inference_ is not None
        low.append(model.inference_.p_values[1] < 0.05)
        assert model.summary().table["P>|t|"].isna().all() and "No P" in repr(model.summary())
    assert np.mean(low) > 0.9


def test_few_groups_leave_the_coefficients() -> None:
    table, first, person = journeys()
    some = person < 3
    model = PreferenceModel(FORMULA, sides=("1", "2"), radius=0.01)
    model.fit(table[some], first[some], groups=person[some])
    assert model.inference_ is None and "too few" in repr(model.summary())
    assert np.isfinite(model.coef_).all() and len(model.predict(table)) == len(table)


def test_sides_without_a_mark_and_latex_of_any_name() -> None:
    table, first, _ = journeys()
    bare = table.rename(columns={"price1": "price", "time1": "time"})
    bare = bare.rename(columns={"price2": "price1", "time2": "time1"})
    model = PreferenceModel("price + time", sides=("", "1"), radius=0.01).fit(bare, first)
    twin = PreferenceModel("price + time", sides=("1", "2"), radius=0.01).fit(table, first)
    np.testing.assert_allclose(model.coef_, twin.coef_)
    x = pd.DataFrame({"50% off_R&D": table.price1 - table.price2, "t": table.time1 - table.time2})
    odd = PreferenceModel(radius=0.01).fit(x, first)
    text = odd.to_latex(
        label="tab:a", caption="A_b", names={"t": "time #1"}, columns=["coef", "DPO"]
    )
    assert r"50\% off\_R\&D" in text and r"time \#1" in text and r"\caption{A\_b}" in text
    with pytest.raises(ValueError, match="no column 'se'"):
        odd.to_latex(columns=["se"])


def test_tables_of_other_libraries_are_those_of_pandas() -> None:
    table, first, _ = journeys()
    for side in ("comfort1", "comfort2"):
        table[side] = table[side].map({0: "good", 1: "fair", 2: "poor"})
    other = pa.Table.from_pandas(table)
    how: dict[str, Any] = {"sides": ("1", "2"), "radius": 0.01, "groups": "person"}
    model = PreferenceModel(FORMULA, **how).fit(table, first)
    twin = PreferenceModel(FORMULA, **how).fit(other, pa.array(first))
    assert twin.names_ == model.names_ and twin.n_groups_ == model.n_groups_
    np.testing.assert_array_equal(twin.coef_, model.coef_)
    np.testing.assert_array_equal(twin.feature_names_in_, model.feature_names_in_)
    np.testing.assert_array_equal(twin.predict_proba(other), model.predict_proba(table))
    plain = PreferenceModel(set=None).fit(other.select(["price1", "time2"]), first)
    assert plain.names_ == ("price1", "time2")


def test_a_radius_of_0_is_still_that_of_its_set() -> None:
    model = fitted("kl", radius=0.0)
    assert "with the rho 0" in repr(model.summary()) and "0 nats: given" in repr(model.summary())
    with pytest.raises(ValueError, match="its radius is 0"):
        model.worst_case()


def test_pictures_of_many_features_and_groups() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 11)) * np.r_[np.ones(10), 1e-9]
    y = rng.random(400) < 1 / (1 + np.exp(-x[:, :10] @ np.linspace(1, 0.1, 10)))
    person = np.repeat(np.arange(40), 10)
    model = PreferenceModel(radius=0.01).fit(x, y, groups=person)
    axes = model.path([0.0, 0.3, 0.6]).plot()
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(named) == 8 and named[-1].endswith("others") and "feature 1" in named
    worst = model.worst_case()
    groups = worst.plot(person)
    assert len(groups.get_yticks()) == 15 and "15 of 40" in groups.get_ylabel()
    order = worst.by(person).times.to_numpy()  # both ends are shown
    (dots,) = [line for line in groups.lines if len(line.get_xdata()) == 15]
    np.testing.assert_allclose(dots.get_xdata(), [*order[:10], *order[-5:]])
    with pytest.raises(ValueError, match="1 comparisons have no group, that in row 3"):
        worst.by(pd.Series(person).astype(object).where(np.arange(400) != 3))


def test_sets_and_metrics_that_are_seldom_taken() -> None:
    table, first, _ = journeys()
    u = np.where(first, 1.0, -1.0)[:, None] * PreferenceModel(
        FORMULA, sides=("1", "2"), set=None
    ).fit(table, first).design_.differences(table)
    size = np.sqrt((u**2).mean(0))
    for kind in (WassersteinFree(0.05, label_cost=1.0), GradientPenalty(0.05)):
        model = PreferenceModel(FORMULA, sides=("1", "2"), set=kind).fit(table, first)
        truth = fit(u / size, kind, beta=1.0).theta.numpy() / size
        np.testing.assert_allclose(model.coef_, truth, rtol=1e-5, atol=1e-9)
        with pytest.raises(ValueError, match="leaves only the unpenalised columns is not known"):
            PreferenceModel(
                FORMULA,
                sides=("1", "2"),
                set=kind.sized(None),
                of_collapse=0.2,
                unpenalised="order",
            ).fit(table, first)
    x = pd.DataFrame(u[:, 1:3], columns=["a", "b"])
    raw = PreferenceModel(set="w1-free", radius=0.1, metric="raw").fit(x, np.ones(len(x)))
    truth = fit(u[:, 1:3], WassersteinFree(0.1), beta=1.0).theta.numpy()
    np.testing.assert_allclose(raw.coef_, truth, rtol=1e-6)
    assert "in the columns' own unit" in repr(raw.summary())


def test_answers_of_another_index_are_refused_by_score_too() -> None:
    table, first, _ = journeys()
    model = fitted("kl", radius=0.01)
    with pytest.raises(ValueError, match="y has another index"):
        model.score(table, pd.Series(first)[::-1])
    halves = np.full(len(table), 0.5)  # ties can be judged, if not fitted to
    assert model.score(table, halves) < -np.log(2)


def test_the_summary_is_printed_and_written(tmp_path: Any) -> None:
    model = fitted("kl", radius=0.01)
    shown = repr(model.summary())
    for words in (
        "comparisons",
        "groups",
        "60",
        "gap",
        "effective",
        "DPO, beta",
        "C(comfort)[T.1]",
    ):
        assert words in shown
    model.to_csv(tmp_path / "table.csv")
    back = pd.read_csv(tmp_path / "table.csv", index_col=0)
    np.testing.assert_allclose(back.coef, model.coef_)
    text = model.to_latex(tmp_path / "table.tex")
    assert text.count(r"\\") == len(model.names_) + 1 and "booktabs" not in text
    assert (tmp_path / "table.tex").read_text() == text and r"\%" in text
    # a minus is none where it is a hyphen; names keep theirs
    price = next(line for line in text.splitlines() if line.startswith("price"))
    assert price.startswith(f"price & $-${abs(model.coef_[0]):.5f}"[:15]) and "& -" not in text
    assert r"\footnotesize\setlength" in text
    assert r"\setlength" not in model.to_latex(columns=["coef", "std err"])
    assert model.path().plot().get_xlabel() and model.worst_case().plot(journeys()[2]).get_ylabel()
