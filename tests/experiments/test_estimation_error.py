"""The study: what it writes, that its rows depend on the seed alone, and that its tables say what
the rows say."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from experiments import estimation_error as study
from experiments import worst_case
from experiments.estimation_error import (
    EstimationError,
    WorldSpec,
    bounds_table,
    fit_cell,
    plan,
    rates_table,
    run,
)
from experiments.pairs import read_pairs
from theory.bounds.papers import proposition_1

METHODS = ("dpo", "kldpo", "wdpo-w1", "wdpo-w2-free")


def config(out: Path, **changes: object) -> EstimationError:
    settings: dict = {
        "out": out,
        "profile": "smoke",
        "replicates": 4,
        "methods": METHODS,
        "backend": "sequential",
    }
    return EstimationError(**(settings | changes))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    out = tmp_path_factory.mktemp("study")
    return run(config(out)) | {"out": out}


def test_the_tables_are_written_with_their_columns(tables: dict) -> None:
    rates = pd.read_csv(tables["out"] / "rates.csv")
    wanted = [
        "world",
        "method",
        "target",
        "radius",
        "slope",
        "ci_low",
        "ci_high",
        "n_min",
        "n_max",
        "replicates",
    ]
    assert set(wanted) <= set(rates.columns)
    bounds = pd.read_csv(tables["out"] / "bounds.csv")
    assert set(["world", "method", "n", "bound", "error_q", "coverage", "tightness"]) <= set(
        bounds.columns
    )
    errors = pd.read_parquet(tables["out"] / "errors.parquet")
    # one row a fit: 2 worlds; dpo once, the others at one fixed radius and two shrinking ones; w1
    # on atoms in one world only
    finite, sphere = 3 * 4 * (1 + 3 * 3), 2 * 4 * (1 + 2 * 3)
    assert len(errors) == finite + sphere
    assert errors.converged.all()


def test_the_population_is_exact_to_a_reported_error(tables: dict) -> None:
    reported = json.loads((tables["out"] / "run.json").read_text())["population_error"]
    assert reported["finite d=3 beta=1 B=1"] == 0
    assert 0 < reported["sphere d=3 beta=1 B=1"] < 1e-8


def test_dpo_has_the_true_parameter_as_its_population_minimiser(tables: dict) -> None:
    errors = tables["errors"]
    dpo = errors[errors.method == "dpo"]
    np.testing.assert_allclose(dpo.robust_2, dpo.nominal_2, atol=1e-9)
    robust = errors[(errors.method == "kldpo") & (errors.radius == "0.3")]
    assert (robust.robust_2 - robust.nominal_2).abs().min() > 1e-3  # while a fixed ball has a bias


@pytest.mark.exact("the same bits from worker processes, which are not shaken")
def test_rows_depend_on_the_seed_only(
    tables: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parallel = run(config(tmp_path / "loky", backend="loky", workers=2))
    pd.testing.assert_frame_equal(parallel["errors"], tables["errors"], check_exact=True)
    pd.testing.assert_frame_equal(parallel["rates"], tables["rates"], check_exact=True)
    other = run(config(tmp_path / "seed", seed=1))
    assert (other["errors"].robust_2 != tables["errors"].robust_2).mean() > 0.5


def test_samples_do_not_depend_on_blocks_methods_or_radii(
    tables: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "BLOCK", 3)
    small = run(config(tmp_path, methods=("dpo",), fractions=(0.2,)))["errors"]
    full = tables["errors"][tables["errors"].method == "dpo"].reset_index(drop=True)
    np.testing.assert_allclose(small.nominal_2, full.nominal_2, rtol=1e-9)


def test_rates_recover_a_power_law() -> None:
    rng = np.random.default_rng(0)
    n = np.repeat([100, 1000, 10000], 50)
    error = n**-0.25 * np.exp(0.1 * rng.standard_normal(len(n)))
    rows = {name: error for name in ("robust_2", "robust_data", "nominal_2", "nominal_data")}
    errors = pd.DataFrame(
        {
            "world": "w",
            "method": "m",
            "radius": "0.1",
            "n": n,
            "replicate": np.tile(np.arange(50), 3),
            **rows,
        }
    )
    table = rates_table(errors.assign(converged=True, at_bound=False), seed=0)
    assert table.slope.to_numpy() == pytest.approx(-0.25, abs=0.02)
    assert ((table.ci_low <= -0.25) & (table.ci_high >= -0.25)).all()
    assert set(table[table.range == "tail"].n_min) == {1000}


def test_a_violated_bound_shows() -> None:
    spec = WorldSpec()
    bound = proposition_1(100, 3, beta=1.0, bound=1.0, delta=study.DELTA)
    error = np.array([0.5, 0.9, 1.1, 2.0]) * bound
    rows = pd.DataFrame(
        {
            "world": spec.name,
            "method": "dpo",
            "radius": "",
            "fraction": np.nan,
            "n": 100,
            "nominal_sample": error,
            "at_bound": [False, False, False, True],
        }
    )
    (row,) = bounds_table(rows, {spec.name: spec}, (0.3,)).to_dict("records")
    assert row["coverage"] == 0.5
    assert row["tightness"] < 1 and row["at_bound"] == 1


def test_the_printed_theorem_2_is_infinite_and_its_repair_is_not(tables: dict) -> None:
    bounds = tables["bounds"]
    assert np.isinf(bounds[bounds.statement == "Thm. 2"].bound).all()
    repaired = bounds[(bounds.statement == "Thm. 2, dual at the minimisers") & (bounds.n == 10000)]
    assert np.isfinite(repaired.bound).all()
    assert len(repaired)


def test_pairs_by_path(tmp_path: Path) -> None:
    table_of_pairs(tmp_path / "pairs.csv", 300)
    errors = run(
        config(
            tmp_path / "out", pairs=tmp_path / "pairs.csv", methods=("dpo", "kldpo"), replicates=2
        )
    )["errors"]
    assert errors.converged.all() and not errors[errors.n > 100].at_bound.any()
    mean = errors[errors.method == "dpo"].groupby("n").nominal_2.mean()
    assert mean.iloc[-1] < 0.5 * mean.iloc[0]  # the estimates approach the fit to the table itself


@pytest.mark.parametrize(
    ("changes", "received", "remedy"),
    [
        ({"profile": "huge"}, "'huge'", "smoke, quick, paper"),
        ({"methods": ("dpo", "magic")}, "magic", "choose from"),
        ({"replicates": 1}, "got 1", "at least 2"),
        ({"sizes": (100, 10)}, r"\[100, 10\]", "increasing"),
        ({"sizes": (0, 10)}, r"\[0, 10\]", "at least 1"),
        ({"fractions": (-0.1,)}, r"\[-0.1\]", "above 0"),
        ({"fractions": (0.5, 1.0)}, r"1.0", "below 1"),
        ({"fractions": (float("nan"),)}, "nan", "above 0"),
        ({"fractions": (0.3, 0.30000001)}, "0.30000001", "six digits"),
        ({"beta": -1.0}, "-1", "beta"),
        ({"pairs": Path("nowhere.csv")}, "nowhere.csv", "Give the path"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    tmp_path: Path, changes: dict, received: str, remedy: str
) -> None:
    with pytest.raises(ValueError, match=received) as caught:
        run(config(tmp_path / "out", **changes))
    assert remedy in str(caught.value)
    assert not (tmp_path / "out").exists()


def table_of_pairs(path: Path, rows: int, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((2, rows, 2))
    label = rng.random(rows) < 1 / (1 + np.exp(-(first - second) @ [2.0, 0.0]))
    columns = {
        "first_a": first[:, 0],
        "first_b": first[:, 1],
        "second_a": second[:, 0],
        "second_b": second[:, 1],
        "label": label,
    }
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def test_a_table_that_changes_is_another_world(tmp_path: Path) -> None:
    settings = {
        "methods": ("dpo",),
        "replicates": 2,
        "pairs": table_of_pairs(tmp_path / "pairs.csv", 100),
    }
    run(config(tmp_path / "out", **settings))
    table_of_pairs(tmp_path / "pairs.csv", 100, seed=1)
    again = run(config(tmp_path / "out", **settings))["errors"]
    fresh = run(config(tmp_path / "fresh", **settings))["errors"]
    pd.testing.assert_frame_equal(again, fresh, check_exact=True)


def test_methods_that_need_a_metric_are_refused_where_there_is_none(tmp_path: Path) -> None:
    big = table_of_pairs(tmp_path / "pairs.csv", 600)
    with pytest.raises(ValueError, match="at most 512"):
        plan(config(tmp_path, pairs=big, methods=("wdpo-w1",)))


def test_separable_pairs_are_refused_with_their_columns(tmp_path: Path) -> None:
    """Even where no robust method is asked for: plain DPO has no target there."""
    columns = {"first_a": [1.0, 2.0, 3.0], "second_a": [0.0, 0.5, 1.0], "label": [True, True, True]}
    pd.DataFrame(columns).to_csv(tmp_path / "pairs.csv", index=False)
    with pytest.raises(ValueError, match=r"separable \(complete: 3.*direction of a.*--exclude"):
        plan(config(tmp_path, pairs=tmp_path / "pairs.csv", methods=("dpo",)))
    rng = np.random.default_rng(1)  # one column is 0 but for pairs that agree: quasi-complete
    first, second = rng.standard_normal((2, 40, 2))
    second[:, 1] = first[:, 1] = 0.0
    first[:5, 1] = 1.0
    table = {"first_a": first[:, 0], "second_a": second[:, 0], "first_rare": first[:, 1]}
    label = np.where(np.arange(40) < 5, 1, np.arange(40) % 2)
    pd.DataFrame(table | {"second_rare": second[:, 1], "label": label}).to_csv(
        tmp_path / "pairs.csv", index=False
    )
    with pytest.raises(ValueError, match=r"quasi-complete: 5.*direction of rare"):
        plan(config(tmp_path, pairs=tmp_path / "pairs.csv"))
    given = config(tmp_path, pairs=tmp_path / "pairs.csv", exclude=("rare",), methods=("dpo",))
    assert plan(given)[0].worlds[0].features == ("a",)


def test_the_bound_of_pairs_does_not_bind(tmp_path: Path) -> None:
    """theta* is that of a logistic regression without a bound, by another solver."""
    path = table_of_pairs(tmp_path / "pairs.csv", 400)
    given = config(tmp_path / "out", pairs=path, methods=("dpo", "kldpo"), replicates=2)
    tables = run(given)
    (world,) = tables["worlds"].to_dict("records")
    table = pd.read_csv(path)
    x = table[["first_a", "first_b"]].to_numpy() - table[["second_a", "second_b"]].to_numpy()
    record = json.loads((tmp_path / "out" / "run.json").read_text())["pairs"]
    unit = np.array([record["unit"][name] for name in ("a", "b")])
    u = np.where(table.label, 1, -1)[:, None] * x
    truth = minimize(lambda t: np.logaddexp(0, -u @ t).mean(), np.zeros(2), tol=1e-10).x * unit
    assert world["theta_star_norm"] == pytest.approx(np.linalg.norm(truth), rel=1e-4)
    assert world["bound"] == pytest.approx(2 * world["theta_star_norm"], rel=0.06)
    assert world["dimension"] == 2 and world["features"] == "a, b" and world["atoms"] == 400
    assert not world["targets_at_bound"] and world["bound_is"].startswith("2 ||theta_DPO||")
    assert record["features"] == ["a", "b"] and record["rows"] == 400
    assert json.loads((tmp_path / "out" / "run.json").read_text())["profile"]["worlds"][0][
        "dimension"
    ] == (2)


def test_a_bound_that_binds_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table_of_pairs(tmp_path / "pairs.csv", 400)
    given = config(tmp_path / "out", pairs=path, methods=("dpo", "kldpo"), replicates=2, bound=1.0)
    tables = run(given)
    assert tables["worlds"].targets_at_bound.tolist() == ["dpo, kldpo 0.3"]
    big = tables["errors"][(tables["errors"].n == 10000) & (tables["errors"].radius != "0.3 n^-1")]
    assert big.at_bound.all()
    assert (tables["rates"].at_bound > 0).all()
    study.summarise(given, tables)
    said = capsys.readouterr().out
    assert "features a, b" in said and "binds in the population" in said and "--bound" in said


def test_equal_pairs_are_one_atom(tmp_path: Path) -> None:
    """So that the methods on atoms run where there are many rows, but few different ones."""
    rng = np.random.default_rng(2)
    first, second = rng.integers(0, 2, (2, 2000, 1))
    table = {"first_a": first[:, 0], "second_a": second[:, 0], "label": rng.random(2000) < 0.6}
    pd.DataFrame(table).to_csv(tmp_path / "pairs.csv", index=False)
    given = config(tmp_path, pairs=tmp_path / "pairs.csv", methods=("wdpo-w1",))
    world = study.build_world(plan(given)[0].worlds[0])
    assert len(world.probability) == 8  # two values on each side, two labels
    assert world.probability.sum() == pytest.approx(1)


def columns_of_pairs(**changes: object) -> dict:
    given = {"first_a": [1.0, 0.0, 3.0, 2.0], "second_a": [0.0, 2.0, 1.0, 3.0]}
    return given | {"label": [1, 1, 0, 0]} | changes


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({"first_a": [1.0, "x?", 3.0, 2.0]}, {}, ("first_a", "row 2 has 'x?'", "exclude")),
        ({"first_a": ["l", "m", "n", "o"]}, {}, ("first_a is text", "--exclude")),
        ({"first_a": [1.0, None, 3.0, 2.0]}, {}, ("not finite", "[2]", "'a'")),
        ({"first_b": [1.0, 2.0, 3.0, 4.0]}, {}, ("no column second_b", "--exclude b")),
        (
            {"first_id": [1, 2, 3, 4], "second_id": [5, 6, 7, 8]},
            {},
            ("first_id", "identifiers", "--exclude id", "--features a id"),
        ),
        (
            {"first_user_id": [1, 2, 3, 4], "second_user_id": [5, 6, 7, 8]},
            {"exclude": ("id",)},
            ("no column to exclude for id",),
        ),
        ({"first_b": [5.0] * 4, "second_b": [5.0] * 4}, {}, ("'b'", "constant")),
        ({"label": [1, 0.7, 0, 0]}, {}, ("row 2 has 0.7", "0.5 for a tie")),
        ({"label": [1, None, 0, 0]}, {}, ("row 2 has nan",)),
        ({"label": ["first", "second", "first", "tie"]}, {}, ("label is text",)),
        ({}, {"features": ("a", "z")}, ("no column first_z and no second_z",)),
        ({"label": [0.5] * 4}, {"ties": "drop"}, ("4 pairs are ties",)),
    ],
)
def test_tables_that_are_refused(
    tmp_path: Path, columns: dict, options: dict, words: tuple[str, ...]
) -> None:
    path = tmp_path / "pairs.csv"
    pd.DataFrame(columns_of_pairs(**columns)).to_csv(path, index=False)
    with pytest.raises(ValueError) as caught:
        plan(config(tmp_path, pairs=path, methods=("dpo",), **options))
    for word in words:
        assert word in str(caught.value)
    with pytest.raises(ValueError):
        worst_case.run(
            worst_case.WorstCaseStudy(tmp_path / "w", profile="smoke", pairs=path, **options)
        )


def test_ties_identifiers_and_text_of_a_table(tmp_path: Path) -> None:
    """A tie is half a win of both; identifiers that are asked for are features; text is named."""
    path = tmp_path / "pairs.csv"
    more = {"first_id": [1, 2, 3, 5], "second_id": [5, 6, 7, 7], "first_text": ["x"] * 4}
    table = columns_of_pairs(**more, second_text=["y"] * 4, label=[1, 0.5, 0, 0])
    pd.DataFrame(table).to_csv(path, index=False)
    read = read_pairs(path, exclude=("id",))
    assert read.names == ("a",)
    assert read.unused == ("first_id", "first_text", "second_id", "second_text")
    world = read.world(beta=1.0, bound=None)
    np.testing.assert_allclose(world.probability, [1 / 4, 1 / 8, 1 / 4, 1 / 4, 1 / 8])
    assert len(read.world(beta=1.0, bound=1.0, ties="drop").probability) == 3
    assert read_pairs(path, features=("id", "a")).names == ("id", "a")
    with pytest.raises(ValueError, match="give --pairs"):
        plan(config(tmp_path, exclude=("id",)))


def test_sizes_beyond_what_can_be_drawn_stay_in_finite_worlds(tmp_path: Path) -> None:
    cells = plan(config(tmp_path, sizes=(1000, 10**8)))[1]
    assert {cell.parameters["world"]["kind"] for cell in cells} == {"finite"}


@pytest.mark.parametrize(("sizes", "start"), [(2, 1), (3, 1), (4, 2), (6, 3), (7, 3)])
def test_the_tail_is_the_upper_half_of_the_sizes(sizes: int, start: int) -> None:
    n = 10 ** np.arange(sizes)
    rows = pd.DataFrame(
        {
            "world": "w",
            "method": "m",
            "radius": "",
            "n": np.repeat(n, 2),
            "replicate": np.tile([0, 1], sizes),
        }
    )
    rows = rows.assign(
        converged=True,
        at_bound=False,
        **dict.fromkeys(("robust_2", "robust_data", "nominal_2", "nominal_data"), 1.0),
    )
    table = rates_table(rows, seed=0)
    assert set(table[table.range == "tail"].n_min) == {n[start]}


def test_pairs_without_the_columns(tmp_path: Path) -> None:
    pd.DataFrame({"chosen": [1.0]}).to_csv(tmp_path / "pairs.csv", index=False)
    with pytest.raises(ValueError, match="first_NAME and second_NAME"):
        plan(config(tmp_path, pairs=tmp_path / "pairs.csv"))


def test_every_method_meets_its_target_with_the_population_as_sample() -> None:
    """At n = 1e8 each estimator is near its own target: a wrong target or knob would leave a
    gap."""
    spec = WorldSpec()
    parameters = plan(EstimationError(profile="smoke"))[1][0].parameters | {
        "n": 10**8,
        "replicates": 3,
    }
    rows = fit_cell(parameters, np.random.SeedSequence(0))
    assert rows.world.unique().tolist() == [spec.name]
    fixed = rows[rows.robust_2.notna()]
    assert fixed.method.nunique() == len(study.USUAL)
    assert fixed.robust_2.max() < 5e-3


def test_the_same_pairs_at_another_place_are_the_same_study(tmp_path: Path) -> None:
    """The rows are reused, and new ones would be the same."""
    found = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        table_of_pairs(tmp_path / place / "pairs.csv", 300)
        given = config(
            tmp_path / f"out-{place}",
            pairs=tmp_path / place / "pairs.csv",
            methods=("dpo",),
            replicates=2,
        )
        found.append((plan(given)[1], run(given)["errors"]))
    (here, first), (there, second) = found
    assert [cell.digest() for cell in here] == [cell.digest() for cell in there]
    pd.testing.assert_frame_equal(first, second)
