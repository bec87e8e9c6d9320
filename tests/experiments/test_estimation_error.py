"""The study: what it writes, that its rows depend on the seed alone, and that its tables say what
the rows say."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import estimation_error as study
from experiments.estimation_error import (
    EstimationError,
    WorldSpec,
    bounds_table,
    fit_cell,
    plan,
    rates_table,
    run,
)
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
    table = rates_table(errors.assign(converged=True), seed=0)
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
        }
    )
    (row,) = bounds_table(rows, {spec.name: spec}, (0.3,)).to_dict("records")
    assert row["coverage"] == 0.5
    assert row["tightness"] < 1


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
    assert errors.converged.all()
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


def test_separable_pairs_have_no_fraction_of_a_radius(tmp_path: Path) -> None:
    columns = {"first_a": [1.0, 2.0, 3.0], "second_a": [0.0, 0.5, 1.0], "label": [True, True, True]}
    pd.DataFrame(columns).to_csv(tmp_path / "pairs.csv", index=False)
    with pytest.raises(ValueError, match="separable"):
        plan(config(tmp_path, pairs=tmp_path / "pairs.csv", methods=("kldpo",)))


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
    assert fixed.method.nunique() == len(study.METHODS)
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
