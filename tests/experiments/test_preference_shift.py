"""The study: what it writes, that its rows depend on the seed alone, and that its tables say what
the rows say."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from experiments import preference_shift as study
from experiments.methods import USUAL
from experiments.preference_shift import (
    PreferenceShift,
    Profile,
    matched_table,
    plan,
    read_pairs,
    run,
    tuned_table,
)
from theory.shift import candidate_laws, evaluate
from theory.twins import regret as twin

SMALL = Profile(3, (100,), (0.3, 0.7), (0.8,), 3, ("convex", "contexts"))
REWARDS = os.environ.get("PREFDRO_MAP_REWARDS")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(study.PROFILES, "smoke", SMALL)


def config(out: Path, **changes: object) -> PreferenceShift:
    return PreferenceShift(**({"out": out, "profile": "smoke", "backend": "sequential"} | changes))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(study.PROFILES, "smoke", SMALL)
        return run(config(out)) | {"out": out}


def scores(folder: Path, rows: int = 60, shift: float = 0.0) -> Path:
    """Two files of scored answers, as the real ones have them; the label follows helpful and
    harmless."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for name in ("first.json", "second.json"):
        values = rng.standard_normal((rows, 6)) * [1, 0.1, 0.2, 1, 1, 3] + shift
        names = ["humor", "diversity", "coherence", "perplexity", "gpt2-helpful", "gpt2-harmless"]
        answers = [
            {"prompt": f"p{i}", "generated": "g"} | dict(zip(names, v, strict=True))
            for i, v in enumerate(values.tolist())
        ]
        (folder / name).write_text(json.dumps(answers))
    return folder


# --------------------------------------------------------------------------------------------- rows
def test_every_method_and_control_is_there(tables: dict) -> None:
    rows = pd.read_parquet(tables["out"] / "shift.parquet")
    assert set(rows.method) == {*USUAL, *study.CANDIDATES, "dpo-shrunk", "dpo-stopped"}
    # 2 settings, 3 seeds, 2 sample sizes, 3 alphas; dpo once, controls on their own grid, the
    # others at two fractions
    assert len(rows) == 2 * 3 * 2 * 3 * (
        1 + 2 * len(study.CONTROL_FRACTIONS) + 2 * (len(USUAL) - 1 + 2)
    )
    assert rows.converged.all()
    assert (
        rows[["reward", "win_rate", "regret", "regret_shrunk", "heldout", "kl"]].notna().all().all()
    )
    assert json.loads((tables["out"] / "run.json").read_text())["settings"] == [
        "convex",
        "contexts",
    ]


def test_dpo_and_its_shrunk_policies_are_their_own_controls(tables: dict) -> None:
    rows = tables["shift"]
    own = rows[rows.method.isin(["dpo", "dpo-shrunk"])]
    np.testing.assert_allclose(own.regret, own.regret_shrunk, atol=1e-8)
    np.testing.assert_allclose(own.heldout, own.heldout_shrunk, atol=1e-8)
    stopped = rows[rows.method == "dpo-stopped"]
    np.testing.assert_allclose(stopped.regret, stopped.regret_stopped, atol=1e-8)
    kl = rows[rows.method == "dpo"].set_index(["setting", "seed", "n", "alpha"]).kl
    shrunk = rows[rows.method == "dpo-shrunk"].set_index(["setting", "seed", "n", "alpha"])
    np.testing.assert_allclose(
        shrunk.kl, (1 - shrunk.fraction) ** 2 * kl.reindex(shrunk.index), rtol=1e-8
    )


def test_kldpo_in_a_well_specified_population_is_dpo_with_a_larger_beta(tables: dict) -> None:
    rows = tables["shift"].query(
        "setting == 'convex' and n == inf and method in ('kldpo', 'kldpo-tilt')"
    )
    np.testing.assert_allclose(rows.regret, rows.regret_shrunk, atol=1e-8)
    others = tables["shift"].query("setting == 'convex' and n == inf and method == 'wdpo-w1'")
    assert (others.regret - others.regret_shrunk).abs().max() > 1e-3


def test_larger_radii_are_nearer_to_the_reference(tables: dict) -> None:
    rows = tables["shift"].drop_duplicates(["setting", "seed", "n", "method", "fraction"])
    rows = rows[~rows.method.isin([*study.NOT_ROBUST, *study.CANDIDATES])]
    kl = rows.pivot(index=["setting", "seed", "n", "method"], columns="fraction", values="kl")
    assert (kl[0.7] < kl[0.3]).all()
    dpo = tables["shift"].query("method == 'dpo'").groupby(["setting", "seed", "n"]).kl.first()
    assert (
        kl[0.3].reset_index("method", drop=True) < dpo.reindex(kl.index.droplevel("method"))
    ).all()


def test_the_candidate_mixtures_are_fitted_as_their_twin_does(tables: dict) -> None:
    """Of the mixtures 0, 0.5 and 1 those within 0.3 and 0.7 of the farthest from 0.8."""
    cells = plan(config(tables["out"]))[1]
    parameters = next(cell.parameters for cell in cells if cell.name == "contexts train=0.8 seed 0")
    shift = study.build_shift(parameters)
    world = shift.world
    laws = candidate_laws(shift, world.probability)
    for name, of in study.CANDIDATES.items():
        rows = tables["shift"].query(
            f"setting == 'contexts' and seed == 0 and n == inf and method == '{name}'"
        )
        for fraction, near in ((0.3, [2]), (0.7, [1, 2])):
            theta, _ = twin.least_regret(
                world.u, laws[near], beta=world.beta, bound=world.bound, of=of
            )
            found = rows[rows.fraction == fraction].sort_values("alpha").regret
            np.testing.assert_allclose(found, evaluate(shift, theta[None]).regret[0], atol=2e-3)


def test_rows_depend_on_the_seed_only(tables: dict, tmp_path: Path) -> None:
    cells = plan(config(tmp_path))[1]
    parameters = next(cell.parameters for cell in cells if cell.name == "contexts train=0.8 seed 2")
    again = study.fit_cell(parameters, np.random.SeedSequence(5))
    rows = tables["shift"].query("setting == 'contexts' and seed == 2").reset_index(drop=True)
    pd.testing.assert_frame_equal(again[rows.columns], rows, check_exact=True)
    other = study.fit_cell(parameters | {"seed": 1}, np.random.SeedSequence(5))
    assert (other.regret != rows.regret).mean() > 0.9


# ------------------------------------------------------------------------------------------- tables
def test_differences_and_intervals_are_those_of_a_paired_t_test(tables: dict) -> None:
    rows = tables["shift"].query(
        "setting == 'contexts' and n == 100 and method == 'wdpo-w2-free' and fraction == 0.7"
    )
    found = tables["matched"].query(
        "setting == 'contexts' and n == 100 and method == 'wdpo-w2-free' and fraction == 0.7"
    )
    for control in study.CONTROLS:
        for alpha, value in {
            "worst": lambda t: t.max(),
            "mean": lambda t: t.mean(),
            "spread": lambda t: t.max() - t.min(),
            "0.5": lambda t: t.loc[0.5],
        }.items():
            mine, theirs = (
                value(rows.pivot(index="alpha", columns="seed", values=v))
                for v in ("regret", f"regret_{control}")
            )
            truth = ttest_rel(mine, theirs).confidence_interval(0.95)
            (row,) = found[(found.control == control) & (found.alpha == alpha)].itertuples()
            assert (row.difference, row.low, row.high) == pytest.approx(
                ((mine - theirs).mean(), truth.low, truth.high)
            )
            assert (row.seeds, row.unmatched) == (3, 0)
            assert row.kl == pytest.approx(rows.kl.mean())


def made_up(
    fraction: float,
    regret: float,
    shrunk: float,
    heldout: float,
    method: str = "kldpo",
    seed: int = 0,
) -> dict:
    keys = {
        "setting": "convex",
        "train": 0.2,
        "n": 100.0,
        "seed": seed,
        "method": method,
        "fraction": fraction,
        "alpha": 0.0,
    }
    values = {"regret": regret, "regret_shrunk": shrunk, "regret_stopped": np.nan}
    return (
        keys
        | values
        | {
            "heldout": heldout,
            "heldout_shrunk": -heldout,
            "heldout_stopped": np.nan,
            "kl": 0.1,
        }
    )


def test_a_control_that_does_not_reach_is_left_out_and_counted() -> None:
    rows = pd.DataFrame(
        [
            made_up(0.3, 0.5, 0.6, 1.0),
            made_up(0.3, 0.5, np.nan, 1.0, seed=1),
            made_up(0.3, 0.1, 0.4, 1.0, seed=2),
        ]
    )
    (row,) = matched_table(rows).query("control == 'shrunk' and alpha == 'worst'").itertuples()
    assert (row.difference, row.seeds, row.unmatched) == (pytest.approx(-0.2), 2, 1)


def test_tuning_chooses_for_method_and_rival_alike() -> None:
    """Oracle: the least regret of each, 0.5 against 0.4. Held-out: fraction 0.7 for the method, 0
    for the rival."""
    rows = [
        made_up(0.0, 0.9, 0.9, 3.0, "dpo"),
        made_up(0.3, 0.5, 0.8, 2.0),
        made_up(0.7, 0.7, 0.4, 1.0),
    ]
    table = tuned_table(pd.DataFrame(rows)).set_index(["tuning", "rival"])
    assert table.difference["oracle", "shrunk"] == pytest.approx(0.5 - 0.4)
    assert table.difference["oracle", "dpo"] == pytest.approx(0.5 - 0.9)
    assert table.difference["held-out", "shrunk"] == pytest.approx(0.7 - 0.9)
    assert table.difference["held-out", "dpo"] == pytest.approx(0.7 - 0.9)
    assert (table.fraction["oracle", "dpo"], table.fraction["held-out", "dpo"]) == (0.3, 0.7)


def test_an_oracle_over_fits_on_the_ray_gains_nothing_over_the_ray(tables: dict) -> None:
    row = tables["tuned"].query(
        "setting == 'convex' and n == inf and method == 'kldpo' and tuning == 'oracle' and rival =="
        " 'shrunk'"
    )
    assert abs(row.difference.item()) < 1e-8


# -------------------------------------------------------------------------------------- given pairs
def test_given_pairs_are_two_more_settings(tmp_path: Path) -> None:
    folder = scores(tmp_path / "scores")
    rows = run(config(tmp_path / "out", rewards=folder, replicates=2))["shift"]
    assert set(rows.setting) == {"convex", "contexts", *study.PAIR_FEATURES}
    pairs = rows[rows.setting == "pairs, all scores"]
    assert set(pairs[np.isinf(pairs.n)].seed) == {0} and set(pairs.seed) == {
        0,
        1,
    }  # one population, two samples
    assert {"wdpo-w1", "kldpo"} <= set(pairs.method)  # so few pairs have a metric between all atoms
    helpful = pairs.query("n == inf and method == 'dpo'").sort_values("alpha").win_rate
    # trained at alpha 0.8, mostly by helpful
    assert (helpful > 0.5).all() and helpful.iloc[-1] > 0.6
    assert pairs.query("n == inf and method == 'dpo'").regret.iloc[-1] < 0.7


def test_rewards_are_standardised_and_features_are_the_named_scores(tmp_path: Path) -> None:
    psi1, psi2, r1, r2 = read_pairs(scores(tmp_path / "scores"), study.OTHER_SCORES)
    assert psi1.shape == psi2.shape == (60, 3)
    np.testing.assert_allclose(np.concatenate([r1, r2]).std(0), 1)
    raw = [
        json.loads((tmp_path / "scores" / name).read_text())
        for name in ("first.json", "second.json")
    ]
    unit = np.std([answer["gpt2-harmless"] for answers in raw for answer in answers])
    np.testing.assert_allclose(r2[:, 1], [answer["gpt2-harmless"] / unit for answer in raw[1]])
    assert np.linalg.norm(np.concatenate([psi1, psi2]), axis=1).max() == pytest.approx(1)


def test_files_that_change_during_a_run_are_refused(tmp_path: Path) -> None:
    cell = plan(config(tmp_path / "out", rewards=scores(tmp_path / "scores")))[1][0]
    scores(tmp_path / "scores", shift=1.0)
    with pytest.raises(ValueError, match="changed since the run began"):
        study.build_shift(cell.parameters | cell.places)


def test_the_same_rewards_at_another_place_are_the_same_study(tmp_path: Path) -> None:
    here = plan(config(tmp_path / "out", rewards=scores(tmp_path / "here")))[1]
    (tmp_path / "here").rename(tmp_path / "there")
    there = plan(config(tmp_path / "out", rewards=tmp_path / "there"))[1]
    assert [cell.digest() for cell in here] == [cell.digest() for cell in there]
    assert study.build_shift(there[0].parameters | there[0].places) is not None


@pytest.mark.skipif(
    not REWARDS, reason="set PREFDRO_MAP_REWARDS to the folder of the two reward tables"
)
def test_real_rewards() -> None:
    shape = {
        "train": 0.8,
        "seed": 0,
        "replicate": 0,
        "sizes": [200],
        "fractions": [0.5],
        "alphas": 3,
    }
    files = {"rewards": str(REWARDS), "digest": study._digest(Path(str(REWARDS)))}
    rows = study.fit_cell(
        {"setting": "pairs, all scores", **shape, **files}, np.random.SeedSequence(0)
    )
    assert rows.converged.all() and len(rows.n.unique()) == 2
    population = rows[np.isinf(rows.n)]
    dpo = population[population.method == "dpo"].set_index("alpha").regret
    assert dpo[1.0] < dpo[0.0] < 1.2  # trained mostly by helpful; harmless pulls the other way
    near = population[population.method == "kldpo"]
    np.testing.assert_allclose(
        near.regret, near.regret_shrunk, atol=1e-3
    )  # the labels are nearly linear in the scores


# ---------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("changes", "received", "remedy"),
    [
        ({"profile": "huge"}, "'huge'", "smoke, quick, paper"),
        ({"replicates": 1}, "got 1", "at least 2"),
        ({"rewards": Path("nowhere")}, "nowhere holds 0", "two are needed"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    tmp_path: Path, changes: dict, received: str, remedy: str
) -> None:
    with pytest.raises(ValueError, match=received) as caught:
        run(config(tmp_path / "out", **changes))
    assert remedy in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_files_of_different_length_are_refused(tmp_path: Path) -> None:
    folder = scores(tmp_path / "scores")
    answers = json.loads((folder / "second.json").read_text())
    (folder / "second.json").write_text(json.dumps(answers[:50]))
    with pytest.raises(ValueError, match=r"first.json has 60 rows and second.json 50.*same prompt"):
        plan(config(tmp_path / "out", rewards=folder))


def test_a_missing_score_is_named(tmp_path: Path) -> None:
    folder = scores(tmp_path / "scores")
    for file in folder.glob("*.json"):
        file.write_text(file.read_text().replace("coherence", "coherent"))
    with pytest.raises(ValueError, match=r"coherence.*humor"):
        plan(config(tmp_path / "out", rewards=folder))
