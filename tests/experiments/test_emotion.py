"""The emotion study: its tables, its controls against hand-computed numbers, what resumes and what
is made again, its sources."""

import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from experiments.alignment import emotion as study
from experiments.alignment import emotion_stages, emotion_training
from experiments.alignment.emotion import Emotion, plan, run
from experiments.alignment.emotion_profiles import PROFILES
from experiments.alignment.emotion_tables import dominance_table, summary_table
from experiments.alignment.emotion_training import METHODS, labelled
from experiments.alignment.equal_kl import at_kl, matched_table
from experiments.alignment.training import WDPO, objective
from llm.data.corpus import SPLITS, generate_texts

TINY = {"profile": "smoke", "workers": 1}


def config(out: Path, **changes: object) -> Emotion:
    given = TINY | {"shared": out / "generated"} | changes
    return Emotion(out=out, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def tables(out: Path) -> dict[str, pd.DataFrame]:
    return run(config(out, methods=("wdpo", "kldpo"), settings=("groups",)))


def test_tables_are_written_as_they_are_returned(
    tables: dict[str, pd.DataFrame], out: Path
) -> None:
    pd.testing.assert_frame_equal(pd.read_parquet(out / "rewards.parquet"), tables["rewards"])
    for name in ("training", "summary", "matched", "dominance"):
        assert len(pd.read_csv(out / f"{name}.csv")) == len(tables[name]) > 0
    rows = tables["rewards"]
    assert set(rows.setting) == {"groups"}
    assert set(rows.method) == {"sft", "dpo", "wdpo", "kldpo"}
    assert set(rows.seed) == {0, 1}
    assert sorted(rows.alpha.unique()) == [0, 0.5, 1]
    assert rows.reward.between(0, 1).all()
    dpo = rows[(rows.method == "dpo") & (rows.beta == 0.1)]
    assert dpo.step.nunique() == 2 and rows[rows.method == "wdpo"].step.nunique() == 1
    assert set(rows[rows.method == "dpo"].beta) == {0.1, 1.0}
    start = rows[rows.method == "sft"]
    assert (start.kl == 0).all() and (start.step == 0).all()
    assert (rows[rows.method != "sft"].kl != 0).all()
    assert {"loss", "rewards/margins"} <= set(tables["training"])


def test_the_record_has_what_the_study_was_made_with(
    tables: dict[str, pd.DataFrame], out: Path
) -> None:
    record = json.loads((out / "run.json").read_text())
    assert record["experiment"] == "emotion"
    assert record["configuration"]["methods"] == ["wdpo", "kldpo"]
    assert record["profile"]["learning_rate"] == PROFILES["smoke"].learning_rate
    assert record["policy"]["validation_loss"] < record["policy"]["validation_loss_before"]
    assert 0 < record["reward_model"]["roc_auc"] <= 1
    assert 0 < record["minority_share"] < 1
    assert record["runs"] == 2 * 5 == len(list((out / "cells").glob("*.parquet")))
    assert record["versions"]["torch"]


def test_labels_follow_the_rewards_of_each_setting(
    tables: dict[str, pd.DataFrame], out: Path
) -> None:
    for k in (0, 1):
        pairs = pd.read_parquet(out / "stages" / f"pairs-{k}" / "pairs.parquet")
        cue = pairs.first_text.str.split().map(lambda words: "night" in words[:4])
        assert (cue == pairs.minority).all()
        data = labelled(pairs, "groups")
        for row, index in enumerate(data["index"]):
            first = pairs.loc[index, "first_wins_groups"]
            chosen, rejected = ("first", "second") if first else ("second", "first")
            assert data["chosen_ids"][row] == list(pairs.loc[index, chosen])
            assert data["rejected_ids"][row] == list(pairs.loc[index, rejected])
            assert data["ref_chosen_logps"][row] == pairs.loc[index, f"{chosen}_logp"]
            assert data["group"][row] == pairs.loc[index, "minority"]
            assert data["chosen_ids"][row] != data["rejected_ids"][row]


def test_a_finished_run_is_not_computed_again(
    tables: dict[str, pd.DataFrame], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    for name in ("make_texts", "make_policy", "make_judge", "make_preferences"):
        monkeypatch.setattr(emotion_stages, name, never)
    monkeypatch.setattr(emotion_training, "_train", never)
    again = run(config(out, methods=("wdpo", "kldpo"), settings=("groups",)))
    for name, table in tables.items():
        pd.testing.assert_frame_equal(again[name], table)
    with pytest.raises(AssertionError, match="made again"):
        run(config(out, methods=("wdpo", "kldpo"), seed=1))


def test_cells_share_what_they_read_and_leave_it_as_it_was(
    tables: dict[str, pd.DataFrame], out: Path
) -> None:
    settings = config(out, methods=("wdpo", "kldpo"), settings=("groups",))
    profile, cues = plan(settings), study.cue_words(settings, plan(settings))
    places, digests = emotion_stages.prepare(
        profile, out, shared=settings.shared, seed=0, cues=cues, workers=1
    )
    start, judge = emotion_training._models(places.policy, places.judge)
    before = [weight.clone() for model in (start, judge) for weight in model.parameters()]
    cell = next(
        cell.parameters
        for cell in study.plan_cells(settings, profile, digests)
        if cell.parameters["method"] == "wdpo"
    )
    rows = emotion_training.train_cell(
        cell, np.random.SeedSequence(0), places=places, profile=profile, out=out
    )
    assert emotion_training._models(places.policy, places.judge)[0] is start
    after = [weight for model in (start, judge) for weight in model.parameters()]
    assert all(a.equal(b) and b.grad is None for a, b in zip(before, after, strict=True))
    mine = tables["rewards"].query("method == 'wdpo' and seed == 0")
    own = rows[rows.table == "rewards"]
    for column in ("reward", "kl"):  # of a process that had shared nothing yet
        np.testing.assert_array_equal(own[column].to_numpy(), mine[column].to_numpy())


def test_pairs_that_were_made_again_are_read_again(
    tables: dict[str, pd.DataFrame], out: Path, tmp_path: Path
) -> None:
    first, second = (
        pd.read_parquet(out / "stages" / f"pairs-{k}" / "pairs.parquet") for k in (0, 1)
    )
    first.to_parquet(tmp_path / "pairs.parquet")
    data = emotion_training._training_data(tmp_path, "the first digest", "groups")
    second.to_parquet(tmp_path / "pairs.parquet")
    assert emotion_training._training_data(tmp_path, "the first digest", "groups") is data
    again = emotion_training._training_data(tmp_path, "another digest", "groups")
    assert again["chosen_ids"][:] == labelled(second, "groups")["chosen_ids"]
    assert data["chosen_ids"][:] == labelled(first, "groups")["chosen_ids"]


@pytest.mark.slow
def test_rows_do_not_depend_on_the_number_of_workers(
    tables: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    again = run(config(tmp_path, methods=("wdpo", "kldpo"), settings=("groups",), workers=2))
    pd.testing.assert_frame_equal(again["rewards"], tables["rewards"], check_exact=True)


def test_a_stage_that_was_killed_is_made_again(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "half").write_text("done")
        if len(made) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        emotion_stages.stage(tmp_path, "texts", {"a": (1,)}, make)
    assert not (tmp_path / "texts").exists()
    first = emotion_stages.stage(tmp_path, "texts", {"a": (1,)}, make)
    assert (first.folder / "half").read_text() == "done"
    assert emotion_stages.stage(tmp_path, "texts", {"a": (1,)}, make) == first
    assert len(made) == 2
    other = emotion_stages.stage(tmp_path, "texts", {"a": (2,)}, make)
    assert len(made) == 3 and other.digest != first.digest


def test_a_hub_snapshot_and_a_model_folder_go_the_same_way(
    tables: dict[str, pd.DataFrame], out: Path, tmp_path: Path
) -> None:
    """A folder laid out as a download of the hub, and a saved model with its tokenizer in the place
    of `gpt2`."""
    (tmp_path / "data").mkdir()
    names = ["sadness", "joy", "love", "anger", "fear", "surprise"]
    for k, split in enumerate(SPLITS):
        data = datasets.Dataset.from_pandas(generate_texts(60, k)).cast_column(
            "label", datasets.ClassLabel(names=names)
        )
        data.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for part, folder in ((AutoModelForCausalLM, "policy"), (AutoTokenizer, "texts/tokenizer")):
        (made,) = (out / "generated").glob(f"*/{folder}")
        part.from_pretrained(made).save_pretrained(tmp_path / "model")
    changes = {"source": str(tmp_path), "model": str(tmp_path / "model"), "cues": ("night",)}
    settings = {
        "settings": ("convex",),
        "methods": ("dpo",),
        "control_betas": (),
        "save_policies": True,
        "new_tokens": 2,
    }
    result = run(config(tmp_path / "out", **(changes | settings)))
    assert set(result["rewards"].method) == {"sft", "dpo"}
    assert len(result["matched"]) == 0
    kept = list((tmp_path / "out" / "policies").iterdir())
    assert len(kept) == 2
    assert AutoModelForCausalLM.from_pretrained(kept[0]).config.n_layer == 1
    assert AutoTokenizer.from_pretrained(kept[0])("night").input_ids


# ------------------------------------------------------------------------------------------- tables
def rows_of(
    method: str,
    radius: float,
    beta: float,
    step: int,
    kl: float,
    rewards: tuple[float, float],
    seed: int,
) -> pd.DataFrame:
    table = pd.DataFrame({"alpha": [0.0, 1.0], "reward": rewards})
    return table.assign(
        setting="convex", method=method, radius=radius, beta=beta, step=step, kl=kl, seed=seed
    )


def small_study(kldpo_kl: float = 1.0) -> pd.DataFrame:
    """Two seeds. Worst rewards: start 0.2 at KL 0, DPO 0.3 at KL 1 (half the steps) and 0.1 at KL
    4, with beta 1 0.4 at KL 2."""
    parts = []
    for seed, lift in ((0, 0.0), (1, 0.1)):
        parts += [
            rows_of("sft", 0, 0, 0, 0.0, (0.2, 0.3), seed),
            rows_of("dpo", 0, 0.1, 5, 1.0, (0.3, 0.5), seed),
            rows_of("dpo", 0, 0.1, 10, 4.0, (0.9, 0.1), seed),
            rows_of("dpo", 0, 1.0, 10, 2.0, (0.4, 0.6), seed),
            rows_of("kldpo", 0.5, 0.1, 10, kldpo_kl, (0.35 + lift, 0.8), seed),
        ]
    return pd.concat(parts, ignore_index=True)


def test_differences_at_equal_kl_by_hand() -> None:
    table = matched_table(small_study()).query("alpha == 'worst'").set_index("control")
    # the line from (0, 0.2) to (2, 0.4) is at 0.3 for KL 1; the stopped DPO has the point (1, 0.3)
    # itself
    for control in ("beta", "stopped"):
        row = table.loc[control]
        np.testing.assert_allclose([row.difference, row.seeds, row.outside, row.kl], [0.1, 2, 0, 1])
        interval = ttest_1samp([0.05, 0.15], 0).confidence_interval(0.95)
        np.testing.assert_allclose([row.low, row.high], [interval.low, interval.high])
    at_zero = matched_table(small_study()).query("alpha == '0'").set_index("control").difference
    np.testing.assert_allclose(at_zero["stopped"], 0.4 - 0.3)


def test_beyond_the_control_there_is_no_difference() -> None:
    table = matched_table(small_study(kldpo_kl=4.5))
    assert (table.outside == 2).all() and (table.seeds == 0).all() and table.difference.isna().all()
    assert at_kl(pd.DataFrame({"kl": [1.0, 0.0], "reward": [3.0, 1.0]}), 0.25) == 1.5


def test_seeds_of_different_numbers_of_steps_are_averaged() -> None:
    """Replicates have different numbers of pairs, since those of equal completions are left out."""
    rows = small_study()
    rows.loc[rows.seed == 1, "step"] += (rows.step[rows.seed == 1] / 5).astype(int)
    table, truth = summary_table(rows), summary_table(small_study())
    pd.testing.assert_frame_equal(table.drop(columns="step"), truth.drop(columns="step"))
    dpo = table.query("method == 'dpo' and beta == 0.1 and alpha == 'mean'")
    assert dpo.step.tolist() == [6, 12] and (table.seeds == 2).all()


def test_the_summary_has_intervals_over_seeds_at_every_checkpoint() -> None:
    table = summary_table(small_study())
    row = table.query("method == 'kldpo' and alpha == 'worst'").iloc[0]
    interval = ttest_1samp([0.35, 0.45], 0).confidence_interval(0.95)
    np.testing.assert_allclose(
        [row.reward, row.reward_low, row.reward_high], [0.4, interval.low, interval.high]
    )
    dpo = table.query("method == 'dpo' and beta == 0.1 and alpha == 'mean'")
    assert dpo.step.tolist() == [5, 10] and dpo.final.tolist() == [False, True]
    np.testing.assert_allclose(dpo.reward, [0.4, 0.5])


def test_dominance_of_the_rewards_by_hand() -> None:
    """Eight prompts; the last step of each policy. Anger: DPO 1/4, KLDPO 3/4 on half of them."""
    anger = {"sft": [0.5] * 8, "dpo": [0.25] * 8, "kldpo": [0.75] * 4 + [0.0] * 4}
    parts = []
    for method, values in anger.items():
        for step, at in ((5, [0.9] * 8), (10, values)):
            part = pd.DataFrame({"anger": at, "fear": 1 - np.array(at), "minority": 0.0})
            radius, beta = {"sft": (0.0, 0.0), "dpo": (0.0, 0.1), "kldpo": (1.0, 0.1)}[method]
            parts.append(
                part.assign(prompt=range(8), step=step, method=method, radius=radius, beta=beta)
            )
    rows = pd.concat(parts, ignore_index=True).assign(setting="convex", seed=0)
    table = dominance_table(rows, (1.0, 0.0)).set_index(["method", "worse", "alpha"])
    assert set(table.index) == {
        (method, worse, alpha)
        for method, worse in (("dpo", "sft"), ("kldpo", "sft"), ("kldpo", "dpo"))
        for alpha in (0.0, 1.0)
    }
    assert table.violation["dpo", "sft", 1.0] == 0.25 and table.violation["dpo", "sft", 0.0] == 0
    assert table.violation["kldpo", "dpo", 1.0] == 0.5 * 0.25
    assert table.ratio["kldpo", "dpo", 1.0] == 0.25**2 / (0.25**2 + 0.5**2)
    assert (table.certificate >= table.violation).all() and (table.certificate <= 1).all()


# -------------------------------------------------------------------------------------------- input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": "huge"}, "unknown profile 'huge'; choose one of smoke, quick, small, paper"),
        ({"methods": ("dpo", "magic")}, "unknown method 'magic'; choose from dpo, wdpo"),
        ({"settings": ()}, r"unknown setting \(none given\)"),
        ({"wdpo": "fast"}, "unknown wdpo 'fast'"),
        ({"seeds": 1}, "at least 2 seeds"),
        ({"alpha": 1.5}, r"alpha must be in \[0, 1\], got 1.5"),
        ({"control_betas": (0.05,)}, "control_betas must be larger than beta = 0.1"),
        ({"batch_size": 10}, "must be a multiple of micro_batch_size"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0"),
        ({"kldpo_radii": (-1.0,)}, "kldpo_radii must be positive"),
        ({"source": "no/such/data"}, "cannot load the dataset 'no/such/data'"),
        ({"model": "no/such/model"}, "cannot load the tokenizer 'no/such/model'"),
    ],
)
def test_bad_input_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(config(tmp_path, **changes))


def test_the_configuration_replaces_values_of_the_profile() -> None:
    profile = plan(Emotion(profile="paper", model="scratch", epochs=2, kldpo_radii=(0.1,)))
    assert (profile.model, profile.epochs, profile.kldpo_radii) == (None, 2, (0.1,))
    assert (profile.source, profile.sft_learning_rate, profile.wdpo_radii) == (
        "dair-ai/emotion",
        5e-7,
        (50, 75, 100),
    )


def test_every_method_has_an_objective() -> None:
    from llm.objectives import ObjectiveParameters, make_objective

    for name in METHODS:
        for wdpo in WDPO:
            parameters = ObjectiveParameters(**objective(name, 0.5, 0.1, wdpo))
            make_objective(parameters)
            assert 0.5 in (
                parameters.rho,
                parameters.tau,
                parameters.b,
                0.5 if name in ("dpo", "aot", "ipo") else None,
            )
    methods = [method for method, _, _ in study.runs(PROFILES["smoke"], ("aot", "ipo", "dr_dpo"))]
    assert methods == ["aot", "dr_dpo", "ipo", "dpo", "dpo", "sft"]
