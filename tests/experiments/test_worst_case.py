"""The study of worst cases: what it writes, that the rows say what other solvers say, and that they
depend on the seed alone."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import worst_case as study
from experiments.worst_case import (
    FRACTIONS,
    LABEL_COST,
    SHARES,
    WorstCaseStudy,
    _reweighting,
    at_share,
    run,
    sample_world,
)
from theory.sets import SETS
from theory.twins import adversary, twins
from theory.twins import worst_cases as worst_programs


def config(out: Path, **changes: object) -> WorstCaseStudy:
    settings: dict = {"out": out, "profile": "smoke"}
    return WorstCaseStudy(**(settings | changes))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("study")
    return run(config(out)) | {"out": out, "run": json.loads((out / "run.json").read_text())}


def test_tables_are_written_as_they_are_returned(tables: dict) -> None:
    pd.testing.assert_frame_equal(
        pd.read_csv(tables["out"] / "values.csv"), tables["values"], check_dtype=False
    )
    for name in ("weights", "moves"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(tables["out"] / f"{name}.parquet"), tables[name]
        )
    assert set(tables["values"].ball) == set(SETS) - {"gradient-squared"}
    assert tables["run"]["not_converged"] == 0 and tables["run"]["largest_relative_gap"] < 1e-8
    assert tables["run"]["worst_cases"] == (tables["values"].version == "exact").sum()


def test_values_are_those_of_the_convex_programs(tables: dict) -> None:
    world = sample_world(12, 0, beta=1.0, bound=4.0)
    theta = np.array(tables["run"]["theta"])
    p, margin = world.probability, world.u @ theta
    losses, norm = np.logaddexp(0, -margin), float(np.linalg.norm(theta))
    exact = tables["values"][tables["values"].version == "exact"]
    assert tables["run"]["mean_loss"] == pytest.approx(p @ losses)
    for row in exact.itertuples():
        if row.radius == 0:
            expected = p @ losses
        elif SETS[row.ball].facts.reweights:
            expected = twins()[row.ball].worst(losses, p, row.radius)
        elif row.ball.endswith("finite"):
            distance = world.distance(LABEL_COST)
            expected = worst_programs.wasserstein_worst_case(
                losses, p, distance, int(row.ball[1]), row.radius
            )[1]
        elif row.ball == "w1-free":
            expected = p @ losses + row.radius * norm
        elif row.ball == "w1-label":
            expected = adversary.free_labels_worst_case(margin, p, norm, row.radius, LABEL_COST)[1]
        elif row.ball == "w2-free":
            expected = adversary.free_quadratic_worst_case(margin, p, norm, row.radius)[1]
        elif (program := twins()[row.ball].worst) is not None:
            expected = program(losses, p, row.radius)
        else:  # a set that moves features has a test of its own
            continue
        assert row.value == pytest.approx(expected, rel=1e-6), row


def test_tractable_versions_lie_on_their_side_of_the_exact_ones(tables: dict) -> None:
    """The tilt at one temperature is above the KL ball and touches it; the gradient norm and its
    step are below the W2 ball."""
    values = tables["values"].set_index(["ball", "radius"]).sort_index()
    tilt, kl = values.loc["tilt"], values.loc["kl"]
    assert (tilt.value >= kl.value - 1e-12).all()
    assert (tilt.value - kl.value).min() < 0.05 * kl.value.max()
    gradient, w2 = values.loc["gradient"], values.loc["w2-free"]
    assert (gradient.value <= gradient.expected + 1e-12).all()
    assert (gradient.expected <= w2.value + 1e-12).all()
    assert gradient.used.to_numpy() == pytest.approx(gradient.index.to_numpy())


def test_weights_are_compared_at_equal_effective_sample_size(tables: dict) -> None:
    for (_, share), rows in tables["weights"].groupby(["ball", "share"]):
        assert share in SHARES
        assert rows.q.sum() == pytest.approx(1)
        assert 1 / (rows.q**2 / rows.p).sum() == pytest.approx(share, rel=1e-6)


@pytest.mark.parametrize("ball", [s.name for s in _reweighting()])
def test_a_share_below_the_largest_loss_gives_the_largest_loss(ball: str) -> None:
    losses, p = np.array([0.0, 1.0, 2.0]), np.array([0.5, 0.3, 0.2])
    worst = at_share(SETS[ball], losses, p, 0.1)
    assert worst.expected == pytest.approx(2.0)
    assert worst.effective == pytest.approx(0.2)


def test_moves_are_plans_within_their_radius(tables: dict) -> None:
    moves = tables["moves"]
    assert set(moves.fraction) == set(FRACTIONS)
    for (ball, _), rows in moves.groupby(["ball", "fraction"]):
        assert np.bincount(rows.source, rows.mass) == pytest.approx(np.full(12, 1 / 12))
        power = 2 if ball in ("w2-finite", "w2-free", "gradient") else 1
        spent = (rows.mass * rows.distance**power).sum() ** (1 / power)
        assert spent <= rows.radius.iloc[0] * (1 + 1e-9)
        assert not rows.flipped.any() or "finite" in ball or "label" in ball
        if ball == "w1-free":
            assert rows.escapes.any() and rows[rows.escapes].mass.sum() < 1e-6
        still = rows[(rows.distance == 0) & ~rows.flipped]
        np.testing.assert_allclose(
            still[["to_along", "to_across"]], still[["along", "across"]], atol=1e-12
        )


def test_free_moves_shift_pairs_against_their_label_along_the_policy(tables: dict) -> None:
    moves = tables["moves"][tables["moves"].ball == "w2-free"]
    shift = (moves.to_along - moves.along) * (2 * moves.label - 1)
    np.testing.assert_allclose(
        shift, -moves.distance, atol=1e-9
    )  # x moves so that u moves along -w
    np.testing.assert_allclose(moves.to_across, moves.across, atol=1e-9)


def test_rows_depend_on_the_seed_only(tables: dict, tmp_path: Path) -> None:
    again, other = run(config(tmp_path / "again")), run(config(tmp_path / "other", seed=1))
    for name in ("values", "weights", "moves"):
        pd.testing.assert_frame_equal(again[name], tables[name], check_exact=True)
    assert (other["weights"].loss != tables["weights"].loss).all()


def test_a_table_of_pairs_in_five_dimensions_and_one(tmp_path: Path) -> None:
    for d in (5, 1):
        rng = np.random.default_rng(d)
        first, second = rng.standard_normal((2, 30, d))
        columns = {
            f"{side}_{k}": x[:, k]
            for side, x in (("first", first), ("second", second))
            for k in range(d)
        }
        columns["label"] = (rng.random(30) < 1 / (1 + np.exp(-2 * (first - second)[:, 0]))).astype(
            int
        )
        pd.DataFrame(columns).to_csv(tmp_path / f"pairs{d}.csv", index=False)
        result = run(config(tmp_path / f"out{d}", pairs=tmp_path / f"pairs{d}.csv"))
        exact = result["values"][result["values"].version == "exact"]
        assert exact.converged.all()
        assert set(result["weights"].atom) == set(range(30))


def test_many_pairs_leave_out_the_balls_that_need_a_metric(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(study, "METRIC_ATOMS", 5)
    balls = set(run(config(tmp_path))["values"].ball)
    assert balls == set(SETS) - {"gradient-squared", "w1-finite", "w2-finite"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": "huge"}, "unknown profile 'huge'; choose one of smoke, quick, paper"),
        ({"beta": -1.0}, "beta must be a positive finite number, got -1"),
        ({"pairs": Path("nowhere.csv")}, "nowhere.csv.*Give the path"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(config(tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()
