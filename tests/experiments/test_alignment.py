"""The experiments on language models: pairs and tables against numbers by hand, stages on generated
and on given models."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from experiments.alignment import aot_benchmark, aot_tables, armorm, leaderboard, policies
from experiments.alignment.aot_benchmark import AotBenchmark
from experiments.alignment.armorm import ArmoRM
from experiments.alignment.leaderboard import Leaderboard
from experiments.alignment.pairs import (
    annotators,
    best_and_worst,
    count_pairs,
    take_pairs,
    two_of_each,
    write_pairs,
)
from experiments.alignment.sizes import Options, part_of
from experiments.alignment.training import (
    Run,
    check_options,
    more_options,
    options_of,
    shared,
    words,
)
from llm.data.tokens import load_rows
from llm.train import parse
from paper_figures.paper.published import setup
from tests import launches
from tests.llm.models import WORDS, tiny_llama, word_tokenizer
from tests.llm.test_armorm import random_weights, write_snapshot
from tests.llm.test_prompts import helpsteer, ultrafeedback
from theory.transport import first_order_violation, second_order_violation


# ------------------------------------------------------------------------------------------- pieces
def completions(rows: list[tuple[int, int, str, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["prompt", "completion", "text", "joy"])


def test_the_best_and_the_worst_completion_of_each_prompt_are_paired(tmp_path: Path) -> None:
    table = completions(
        [
            (0, 0, " a", 0.2),
            (0, 1, " b", 0.9),
            (0, 2, " c", 0.1),
            (1, 0, " d", 0.5),
            (1, 1, " d", 0.4),
            (1, 2, " ", 0.6),
            (2, 0, " e", 1),
            (2, 1, " f", 1),
        ]
    )
    best, worst = best_and_worst(table, "joy")
    assert list(best.text) == [" b", " ", " e"] and list(worst.text) == [" c", " d", " e"]
    write_pairs(
        tmp_path, ["p", "q", "r"], best, worst, np.ones(3, bool)
    )  # an empty and an equal completion are left out
    assert count_pairs(tmp_path) == 1
    assert load_rows(tmp_path / "pairs.jsonl") == [
        {"prompt": "p", "chosen": " b", "rejected": " c"}
    ]


def test_annotators_choose_by_bradley_terry() -> None:
    n = 20_000
    wins = annotators(np.full(n, 0.75), np.full(n, 0.5), 4.0, seed=3)
    assert abs(wins.mean() - 1 / (1 + np.exp(-1.0))) < 4 * np.sqrt(0.2 / n)


def test_pairs_of_a_conversation_keep_the_prompt_as_messages(tmp_path: Path) -> None:
    first, second = two_of_each(completions([(0, 0, "yes", 1.0), (0, 1, "no", 0.0)]))
    write_pairs(
        tmp_path, [[{"role": "user", "content": "is it"}]], first, second, np.array([False])
    )
    (row,) = load_rows(tmp_path / "pairs.jsonl")
    assert row["prompt"] == [{"role": "user", "content": "is it"}]
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("no", "yes")


@pytest.mark.parametrize(
    ("text", "meant"), [(None, (0, 1)), ("1/1", (0, 1)), ("2/8", (1, 8)), ("8/8", (7, 8))]
)
def test_parts(text: str | None, meant: tuple[int, int]) -> None:
    assert part_of(text) == meant


@pytest.mark.parametrize("text", ["0/4", "5/4", "2", "a/b", "-1/3"])
def test_parts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"part must be K/N.*" + text):
        part_of(text)


PROFILE = armorm.PROFILES["quick"]


def options(run: Run, more: dict[str, Any] | None = None) -> dict[str, Any]:
    return options_of(run, PROFILE, seed=1, more=more or {})


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (Run("a", "kldpo", 0.5, 0.1, 0), {"tau": 0.5}),
        (Run("a", "wdpo", 0.2, 0.1, 0), {"rho": 0.2, "wdpo_mode": "adversarial"}),
        (Run("a", "dpo", 0.0, 0.3, 0), {"beta": 0.3}),
        (Run("a", "kto", 0.0, 0.1, 0), {}),
        (
            Run("a", "aot", 0.0, 0.1, 0, {"h": "squared_hinge", "batch_size": 48}),
            {"h": "squared_hinge"},
        ),
    ],
)
def test_the_options_of_a_run_are_those_of_prefdro_train(
    run: Run, expected: dict[str, Any]
) -> None:
    given = words({"model": "START", "data": "pairs.jsonl"} | shared(options(run)))
    model, data, objective, arguments = parse([*given, "--output_dir", "OUT"])
    assert (model.model, data.data, objective.objective) == ("START", "pairs.jsonl", run.method)
    assert {name: getattr(objective, name) for name in expected} == expected
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    responses = (
        2 if run.method == "kto" else 1
    )  # of which a pair has two: all methods take the same steps
    assert batch == responses * run.more.get("batch_size", PROFILE.batch_size)
    assert arguments.warmup_steps == PROFILE.warmup and arguments.dataloader_drop_last


def test_how_processes_share_a_batch_is_no_part_of_what_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run("a", "dpo", 0.0, 0.1, 0)
    alone = options(run)
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert options(run) == alone
    given = shared(alone)
    assert (
        given["per_device_train_batch_size"] * given["gradient_accumulation_steps"] * 3
        == PROFILE.batch_size
        == 24
    )
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(ValueError, match="24 pairs cannot be made of 5 processes"):
        shared(alone)


def test_options_that_the_training_does_not_take_are_refused_before_anything_is_trained() -> None:
    run = Run("a", "dpo", 0.0, 0.1, 0)
    check_options(options(run, {"gradient_checkpointing_kwargs": {"use_reentrant": False}}))
    with pytest.raises(ValueError, match="does not take the options"):
        check_options(options(run, {"max_grad_norm": "many"}))


def test_a_file_of_more_options_replaces_what_is_not_the_experiments_own(tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    file.write_text("gradient_checkpointing: true\nmax_grad_norm: 3.0\n")
    given = options(Run("a", "dpo", 0.0, 0.1, 0), more_options(file))
    assert given["gradient_checkpointing"] is True and given["max_grad_norm"] == 3.0
    file.write_text("beta: 0.5\n")
    with pytest.raises(ValueError, match="sets beta, which the experiment sets itself"):
        more_options(file)
    file.write_text("just words")
    with pytest.raises(ValueError, match="must hold lines"):
        more_options(file)
    with pytest.raises(ValueError, match="cannot read"):
        more_options(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ArmoRM(profile="huge"), "unknown profile 'huge'"),
        (ArmoRM(radar=("anger",)), "written first\\+second.*'anger'"),
        (ArmoRM(alpha=1.5), "alpha must be in"),
        (ArmoRM(seeds=1), "at least 2 seeds"),
        (ArmoRM(model="gpt2"), "do not go together"),
        (ArmoRM(judge="armorm"), "do not go together"),
        (ArmoRM(control_betas=(0.1,)), "must be larger than beta"),
        (Leaderboard(benchmarks="bbh"), "unknown benchmarks 'bbh'"),
        (Leaderboard(completions=1), "at least 2 completions"),
        (AotBenchmark(h=("cubic",)), "unknown h cubic"),
        (AotBenchmark(instructions=Path("nowhere.json")), "no file nowhere.json"),
        (AotBenchmark(methods=("dpo", "ppo")), "unknown method ppo"),
        (AotBenchmark(flips=(0.5,)), r"flips must be different and in \(0, 1/2\), got \(0.5,\)"),
        (AotBenchmark(flips=(0.2, 0.2)), "flips must be different"),
        (AotBenchmark(wdpo="exact"), "wdpo = exact would change nothing without wdpo among"),
        (AotBenchmark(dr_dpo_radius=1.0), "dr_dpo_radius = 1.0 would change nothing without flips"),
        (AotBenchmark(shifted_pairs=3), "would change nothing without another population"),
        (AotBenchmark(whole=True), "would change nothing without stored preferences"),
        (AotBenchmark(profile="small", betas=(0.1,)), "change nothing without a reward model"),
        (
            AotBenchmark(shifted="Anthropic/hh-rlhf"),
            "knows generated texts only, and not Anthropic",
        ),
        (AotBenchmark(profile="small", source="grammar"), "do not go together"),
        (
            AotBenchmark(profile="small", instructions=Path(__file__)),
            "would change nothing without a reward model",
        ),
        (ArmoRM(profile="paper", judge="none"), "policies are judged by a reward model here"),
        (ArmoRM(profile="small", model="smollm2"), "do not go together"),
        (ArmoRM(lora=-1), "lora must be a rank"),
        (Leaderboard(profile="paper", benchmarks="local"), "made of the generated texts"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(config: Options, message: str) -> None:
    module = {ArmoRM: armorm, Leaderboard: leaderboard, AotBenchmark: aot_benchmark}[type(config)]
    with pytest.raises(ValueError, match=message):
        module.plan(config)


def test_paper_profiles_are_those_of_the_papers() -> None:
    profile, printed = armorm.PROFILES["paper"], setup("armorm")
    training = (
        f"{profile.epochs} epochs (figures), effective batch {profile.batch_size}, Adam lr"
        f" {profile.learning_rate:.0e}"
    )
    assert (
        printed["training"].startswith(training.replace("e-0", "e-"))
        and f"beta {profile.beta}" in printed["training"]
    )
    assert f"{profile.completions:d}" == "2" and printed["generation"].startswith(
        "two completions, temperature 0.7"
    )
    assert profile.temperature == 0.7 and f"up to {profile.new_tokens} new" in printed["generation"]
    assert (
        f"truncated to {profile.prompt_tokens} tokens" in printed["prompts"]
        and profile.source in printed["prompts"]
    )
    assert (profile.model, profile.judge) == (
        printed["base"],
        printed["reward_model"].split(",")[0],
    )
    for pairs, kind in ((profile.radar, "figure3_pairs"), (profile.curves, "figure4_pairs")):
        assert [pair.split("+") for pair in pairs] == printed[kind]
    figure = printed["figure4"]
    assert [*profile.wdpo_radii] == figure["rho_o"] and [*profile.kldpo_radii] == figure["tau"]
    assert profile.alpha == figure["alpha_o"] and [*armorm.ALPHAS] == figure["alpha_eval"]
    assert [*profile.axes] == printed["figure3_axes"]
    assert leaderboard.PROFILES["paper"].completions == 10 and leaderboard.PROFILES[
        "paper"
    ].dpo_epochs == (2, 4, 6)
    assert aot_benchmark.PROFILES["paper"].beta == 0.01


# ------------------------------------------------------------------------------------------- tables
def judged(folder: Path, scores: dict[str, list[float]], log_ratio: list[float]) -> Path:
    folder.mkdir()
    pd.DataFrame(scores).to_parquet(folder / "scores.parquet")
    pd.DataFrame({"log_ratio": log_ratio}).to_parquet(folder / "completions.parquet")
    return folder


def test_tables_of_armorm_against_numbers_by_hand(tmp_path: Path) -> None:
    profile = armorm.plan(
        ArmoRM(radar=("anger+fear",), curves=("anger+fear",), axes=("anger", "joy"), seeds=2)
    )
    found = [
        (
            "anger+fear",
            Run("a", "kldpo", 0.5, 0.1, seed),
            judged(tmp_path / f"a{seed}", scores, [1.0, 2.0 + seed]),
        )
        for seed, scores in enumerate(
            [
                {"anger": [0, 1], "fear": [1, 1], "joy": [0, 0]},
                {"anger": [1, 1], "fear": [0, 0.5], "joy": [0, 1]},
            ]
        )
    ]
    for seed in range(
        2
    ):  # the control: from reward 0 at KL 0 to reward 1 at KL 4, the same for every alpha
        for pair, run, value, kl in (
            ("", Run("s", "start", 0.0, 0.0, seed), 0.0, 0.0),
            ("anger+fear", Run("d", "dpo", 0.0, 0.1, seed), 1.0, 4.0),
        ):
            scores = {name: [value, value] for name in ("anger", "fear", "joy")}
            found.append((pair, run, judged(tmp_path / f"{run.method}{seed}", scores, [kl, kl])))
    tables = armorm.tables_of(profile, found)
    row = tables["axes"].query("objective == 'anger' and method == 'kldpo'").iloc[0]
    half = student.ppf(0.975, 1) * 0.25  # the two seeds have 0.5 and 1
    assert (row.reward, row.seeds, row.pair) == (0.75, 2, "anger + fear")
    assert np.isclose([row.reward_low, row.reward_high], [0.75 - half, 0.75 + half]).all()
    assert row.kl == (1.5 + 2) / 2
    at = tables["mixtures"].query("method == 'kldpo'").set_index("alpha").reward
    assert np.isclose(at[0.3], (0.3 * 0.5 + 0.7 * 1 + 0.3 * 1 + 0.7 * 0.25) / 2)
    (equal,) = tables["matched"].query("alpha == '0.5'").itertuples()
    assert (
        equal.difference == pytest.approx(((0.75 - 1.5 / 4) + (0.625 - 2 / 4)) / 2)
        and equal.seeds == 2
    )
    assert set(tables["axes"].objective) == {"anger", "joy"} and set(
        tables["rewards"].objective
    ) == {"anger", "fear", "joy"}


def test_tables_of_the_aot_benchmark_against_numbers_by_hand(tmp_path: Path) -> None:
    profile = aot_benchmark.plan(AotBenchmark(seeds=2))
    found = []
    for name, scores, chosen, rejected in (
        ("start", [0.5, 0.5, 0.5], [-2.0, -3.0], [-2.0, -1.0]),
        ("aot", [0.5, 0.9, 0.1], [-1.0, -1.0], [-4.0, -4.0]),
    ):
        folder = judged(tmp_path / name, {"joy": scores}, [0.0, 0.0, 3.0])
        pd.DataFrame({"chosen": chosen, "rejected": rejected}).to_parquet(folder / "logps.parquet")
        pd.DataFrame(
            {
                "task": ["t"],
                "column": ["c"],
                "metric": ["acc"],
                "value": [0.5],
                "stderr": [0.1],
                "samples": [4],
            }
        ).to_csv(folder / "benchmarks.csv", index=False)
        found.append(
            (
                (aot_tables.MAIN, ("beta", "0.1")),
                Run(name, name, 0.0, 0.1, 0, {"batch_size": 24}),
                folder,
            )
        )
    quantiles = aot_tables.quantiles(found)
    ends = quantiles[quantiles.method == "aot"].groupby("quantity").value.agg(["min", "max"])
    assert np.isclose(
        ends.loc["chosen"], [1 + 0.01, 2 - 0.01]
    ).all()  # linear between the two values 1 and 2
    assert np.isclose(ends.loc["rejected"], [-3 + 0.01, -2 - 0.01]).all()
    assert np.isclose(ends.loc["log_ratio"], [3, 3]).all()
    assert set(quantiles[quantiles.method == "start"].quantity) == {"log_ratio"}
    (row,) = aot_tables.ablations(profile, found).itertuples()
    assert (row.axis, row.value, row.win_rate, row.kl) == (
        "beta",
        "0.1",
        0.5,
        1.0,
    )  # a tie, a win, a loss
    table = aot_tables.benchmarks(profile, found).set_index(["method", "column"]).value
    assert (
        table["aot", "win rate"] == table["start", "win rate"] == 0.5 and table["aot", "c"] == 0.5
    )
    for changed, columns in (({"judge": "none"}, {"c"}), ({"benchmarks": "none"}, {"win rate"})):
        part = aot_tables.benchmarks(replace(profile, **changed), found)
        assert set(part.column) == columns and set(part.method) == {"start", "aot"}


def test_the_table_of_dominance_against_the_functionals(tmp_path: Path) -> None:
    profile = aot_benchmark.plan(AotBenchmark())
    rng = np.random.default_rng(0)
    found, scores, logps = [], {}, {}
    for name in ("start", "dpo", "aot"):
        scores[name] = rng.random(40)
        logps[name] = pd.DataFrame(rng.normal(-9, 2, (30, 2)), columns=["chosen", "rejected"])
        folder = judged(tmp_path / name, {"joy": list(scores[name])}, [0.0] * 40)
        logps[name].to_parquet(folder / "logps.parquet")
        found.append(((aot_tables.MAIN,), Run(name, name, 0.0, 0.1, 0), folder))
    table = aot_tables.dominance_table(profile, found).set_index(["method", "better", "worse"])
    assert list(table.index) == [
        ("dpo", "chosen", "rejected"),
        ("dpo", "policy", "start"),
        ("aot", "chosen", "rejected"),
        ("aot", "policy", "start"),
        ("aot", "policy", "dpo"),
    ]
    ratios = logps["aot"] - logps["start"]
    for key, better, worse in (
        (("aot", "chosen", "rejected"), ratios.chosen, ratios.rejected),
        (("aot", "policy", "dpo"), scores["aot"], scores["dpo"]),
    ):
        row = table.loc[key]
        for column, functional in (
            ("violation", first_order_violation),
            ("second_violation", second_order_violation),
        ):
            assert row[column] == pytest.approx(functional(better, worse).item())
        assert row.pairs == len(better) and row.violation <= row.certificate
        assert row.ratio_low < row.ratio < row.ratio_high
    # chances are bounded, log-ratios are not
    assert tuple(table.loc["aot", "policy", "dpo"][["from_level", "to_level"]]) == (0, 1)
    assert table.loc["aot", "chosen", "rejected"].from_level == pytest.approx(
        np.sqrt(np.log(40) / 60)
    )
    alone = aot_tables.dominance_table(replace(profile, judge="none"), found)
    assert set(alone.better) == {"chosen"}


def test_another_population_can_be_left_out() -> None:
    assert aot_benchmark.plan(AotBenchmark(profile="small", shifted="none")).shifted is None


def test_runs_of_the_aot_benchmark_are_trained_once_for_all_panels() -> None:
    profile = aot_benchmark.plan(AotBenchmark())
    runs = aot_benchmark.runs(profile)
    assert len({run.name for _, run in runs}) == len(runs)
    default = next(
        places for places, run in runs if run.method == "aot" and places[0] == aot_tables.MAIN
    )
    assert {axis for axis, _ in default} == {"main", "beta", "batch_size", "h", "sorting"}
    for axis, values in (("beta", 3), ("batch_size", 3), ("h", 3), ("sorting", 3)):
        found = {
            value
            for places, run in runs
            if run.method == "aot_unpaired"
            for one, value in places
            if one == axis
        }
        assert len(found) == values


# --------------------------------------------------------------------------------- generated models
@pytest.fixture(scope="module")
def shared_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of the tests: whoever comes first makes the models, the others
    wait."""
    return tmp_path_factory.getbasetemp().parent / "generated"


def test_armorm_from_nothing_to_tables_and_again_after_a_kill(
    shared_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ArmoRM(
        out=tmp_path,
        shared=shared_models,
        profile="smoke",
        radar=("anger+fear",),
        curves=("anger+fear",),
        control_betas=(0.3,),
        workers=1,
    )
    train, trained = policies.train_policy, []

    def killed(folder: Path, **more: Any) -> None:
        trained.append(folder.name)
        if len(trained) == 3:
            raise KeyboardInterrupt
        train(folder, **more)

    monkeypatch.setattr(policies, "train_policy", killed)
    with pytest.raises(KeyboardInterrupt):
        armorm.run(config)
    assert not (tmp_path / "run.json").exists()
    tables = armorm.run(config)
    assert tables is not None
    assert (
        len(trained) == 9 and trained[2] == trained[3]
    )  # eight policies, of which the third was begun twice
    armorm.run(config)
    assert len(trained) == 9
    rewards = tables["rewards"]
    assert set(rewards.method) == {"start", "wdpo", "kldpo", "dpo"} and set(rewards.seed) == {0, 1}
    assert (rewards[rewards.method == "start"].kl.abs() < 1e-6).all()
    assert rewards.reward.between(0, 1).all()
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["scale"].startswith("generated corpus, GPT-2 of 0.0") and record[
        "radar_pairs"
    ] == ["anger + fear"]
    for name in ("axes", "mixtures", "stages"):
        assert len(pd.read_csv(tmp_path / f"{name}.csv"))
    line = (
        tmp_path
        / "stages"
        / f"policy-{trained[0].removeprefix('.policy-').split('.prefdro')[0]}"
        / "command.txt"
    ).read_text()
    assert line.startswith("prefdro train --model ") and "--objective wdpo" in line

    parts = ArmoRM(**(vars(config) | {"out": tmp_path / "parts", "part": "1/2"}))
    assert armorm.run(parts) is None
    other = ArmoRM(**(vars(parts) | {"part": "2/2"}))
    assert armorm.run(other) is None and len(trained) == 17
    again = armorm.run(ArmoRM(**(vars(parts) | {"part": None})))
    assert again is not None and len(trained) == 17
    pd.testing.assert_frame_equal(again["rewards"], rewards, check_exact=True)


def test_an_objective_that_the_reward_model_has_not_is_refused_at_once(
    shared_models: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"no objective envy; it has sadness, joy"):
        armorm.run(
            ArmoRM(out=tmp_path, shared=shared_models, profile="smoke", axes=("joy", "envy"))
        )
    with pytest.raises(ValueError, match="no objective ArmoRM"):
        leaderboard.run(
            Leaderboard(out=tmp_path, shared=shared_models, profile="smoke", score="ArmoRM")
        )
    with pytest.raises(ValueError, match="has no chat template"):
        leaderboard.run(Leaderboard(out=tmp_path, shared=shared_models, profile="smoke", chat=True))


def test_leaderboard_from_nothing_to_scores(shared_models: Path, tmp_path: Path) -> None:
    config = Leaderboard(
        out=tmp_path,
        shared=shared_models,
        profile="smoke",
        dpo_epochs=(1.0,),
        kldpo_radii=(1.0,),
        wdpo_radii=(0.1,),
        workers=1,
    )
    tables = leaderboard.run(config)
    assert tables is not None
    scores = tables["scores"]
    assert list(dict.fromkeys(scores.column)) == ["emotion", "ending", "words"]
    assert set(scores.label) == {"start", "DPO epoch 1", "KLDPO tau=1", "WDPO rho=0.1"}
    assert (scores.groupby(["label", "seed"]).size() == 15).all()
    assert scores.value.between(0, 1).all() and (scores.samples <= 10).all()
    of_policies = pd.read_csv(tmp_path / "policies.csv").set_index("label")
    assert (
        of_policies.kl["start"] == pytest.approx(0, abs=1e-6)
        and of_policies.reward.between(0, 1).all()
    )
    record = json.loads((tmp_path / "run.json").read_text())
    assert (
        record["labels"] == ["start", "DPO epoch 1", "KLDPO tau=1", "WDPO rho=0.1"]
        and len(record["tasks"]) == 15
    )


def aot_study(shared: Path, tmp_path: Path) -> AotBenchmark:
    return AotBenchmark(
        out=tmp_path / "out",
        shared=shared,
        profile="smoke",
        betas=(0.1,),
        batch_sizes=(8,),
        h=("logistic",),
        softness=(1.0,),
        workers=1,
    )


def test_the_aot_benchmark_from_nothing_to_tables(shared_models: Path, tmp_path: Path) -> None:
    results = tmp_path / "leaderboard.csv"
    results.write_text(",win_rate,standard_error,n_total\naot seed 0,61.5,2.5,40\ngpt4,95,1,40\n")
    tables = aot_benchmark.run(replace(aot_study(shared_models, tmp_path), alpaca_results=results))
    assert tables is not None
    assert set(tables["quantiles"].method) == {"start", "dpo", "ipo", "kto", "aot", "aot_unpaired"}
    table = tables["benchmarks"]
    (row,) = table[table.column == "AlpacaEval"].itertuples()
    assert (row.method, row.seed, row.value, row.stderr, row.samples) == (
        "aot",
        0,
        0.615,
        0.025,
        40,
    )
    assert set(tables["ablations"].value) == {"0.1", "8", "logistic", "hard", "soft 1"}
    answers = json.loads(
        next(
            (tmp_path / "out" / "stages").glob("judged-aot-*sorting=hard-seed-0/outputs.json")
        ).read_text()
    )
    assert len(answers) == 40 and set(answers[0]) == {
        "dataset",
        "instruction",
        "output",
        "generator",
    }
    assert answers[0]["generator"] == "aot seed 0"


@pytest.mark.slow
def test_what_was_varied_is_compared_after_a_change_and_the_reverse(
    shared_models: Path, tmp_path: Path
) -> None:
    config = aot_study(shared_models, tmp_path)
    tables = aot_benchmark.run(config)
    again = aot_benchmark.run(replace(config, beta=0.2, test_prompts=20))
    assert tables is not None and again is not None
    assert set(again["benchmarks"].method) == set(tables["benchmarks"].method)
    answers = json.loads(
        next(
            (tmp_path / "out" / "stages").glob(
                "judged-aot-beta=0.2*sorting=hard-seed-0/outputs.json"
            )
        ).read_text()
    )
    assert len(answers) == 20


# ------------------------------------------------------------------------------------- given models
def test_given_models_and_data_go_the_same_way_as_those_of_the_paper(tmp_path: Path) -> None:
    """The profile paper with folders of the same kinds as on the hub: a chat model, ArmoRM,
    HelpSteer2."""
    model, judge, source = (tmp_path / name for name in ("model", "judge", "source"))
    tiny_llama().save_pretrained(model)
    word_tokenizer(chat_template=True).save_pretrained(model)
    write_snapshot(judge, random_weights())
    source.mkdir()
    helpsteer(source)
    pair = "ultrafeedback-truthfulness+helpsteer-complexity"
    config = ArmoRM(
        out=tmp_path / "out",
        profile="paper",
        model=str(model),
        judge=str(judge),
        source=str(source),
        radar=(pair,),
        curves=(pair,),
        seeds=2,
        new_tokens=8,
        prompt_tokens=40,
        epochs=1,
        batch_size=2,
        micro_batch_size=1,
        control_betas=(),
        wdpo_radii=(0.005,),
        kldpo_radii=(1.0,),
        workers=1,
    )
    tables = armorm.run(config)
    assert tables is not None
    assert set(tables["axes"].objective) == set(armorm.PROFILES["paper"].axes)
    assert len(set(tables["rewards"].objective)) == 20
    assert np.isfinite(tables["rewards"].reward).all()
    pairs = load_rows(next((tmp_path / "out" / "stages").glob("pairs-*-seed-0")) / "pairs.jsonl")
    assert pairs[0]["prompt"][-1]["role"] == "user" and pairs[0]["chosen"][0]["role"] == "assistant"
    folder = next((tmp_path / "out" / "stages").glob("policy-*wdpo*seed-0"))
    assert not list(folder.glob("checkpoint-*")) and (folder / "model.safetensors").is_file()
    assert "--bf16 True" in (folder / "command.txt").read_text()
    shutil.rmtree(tmp_path / "out")


@pytest.mark.slow  # another pipeline of the kind above and below
def test_stored_preferences_go_the_same_way_as_ultrafeedback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The profile paper of the AOT benchmark on a folder of UltraFeedback's layout; the benchmarks
    need the hub: none are run."""
    model, judge, source = (tmp_path / name for name in ("model", "judge", "source"))
    tiny_llama().save_pretrained(model)
    word_tokenizer(chat_template=True).save_pretrained(model)
    write_snapshot(judge, random_weights())
    source.mkdir()
    ultrafeedback(source)

    def none_run(folder: Path, *_: Any, **__: Any) -> None:
        columns = ["task", "column", "metric", "value", "stderr", "samples"]
        pd.DataFrame(columns=columns).to_csv(folder / "benchmarks.csv", index=False)

    monkeypatch.setattr(aot_benchmark, "write_benchmarks", none_run)
    config = AotBenchmark(
        out=tmp_path / "out",
        profile="paper",
        model=str(model),
        judge=str(judge),
        source=str(source),
        seeds=2,
        new_tokens=8,
        prompt_tokens=40,
        batch_size=2,
        micro_batch_size=1,
        betas=(0.01,),
        batch_sizes=(2,),
        h=("logistic",),
        softness=(0.1,),
        workers=1,
    )
    tables = aot_benchmark.run(config)
    assert tables is not None
    assert set(tables["quantiles"].method) == {"start", *aot_benchmark.METHODS}
    steps = {
        path.parent.name.split("-")[1]: json.loads(
            (path.parent / "trainer_state.json").read_text()
        )["global_step"]
        for path in (tmp_path / "out" / "stages").glob("policy-*sorting=hard-seed-0/training.json")
    }
    assert set(steps) == set(aot_benchmark.METHODS) and len(set(steps.values())) == 1
    assert np.isfinite(tables["ablations"].reward).all()
    shutil.rmtree(tmp_path / "out")


def test_policies_are_tried_on_other_pairs_after_clean_and_exchanged_labels(
    tmp_path: Path,
) -> None:
    """The profile small: no reward model, adapters, stored pairs of which nothing is cut, and
    another population in a file of its own."""
    model, source, shifted = (tmp_path / name for name in ("model", "source", "shifted.jsonl"))
    tiny_llama().save_pretrained(model)
    word_tokenizer(chat_template=True).save_pretrained(model)
    source.mkdir()
    ultrafeedback(source)
    rows = [
        {
            "chosen": f"\n\nHuman: the {word}\n\nAssistant: is {word} very",
            "rejected": f"\n\nHuman: the {word}\n\nAssistant: sees",
        }
        for word in WORDS[3:7]
    ]
    shifted.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = AotBenchmark(
        out=tmp_path / "out",
        profile="small",
        model=str(model),
        source=str(source),
        split="train_prefs",
        test_split="test_prefs",
        shifted=str(shifted),
        methods=("aot", "kto", "wdpo"),
        prompt_tokens=24,
        new_tokens=8,
        batch_size=2,
        micro_batch_size=1,
        lora=2,
        bf16=False,
        workers=1,
    )
    tables = aot_benchmark.run(config)
    assert tables is not None and "ablations" not in tables and "benchmarks" not in tables
    clean, exchanged = {"dpo", "aot", "kto", "wdpo"}, {"cdpo", "rdpo", "dr_dpo"}
    held = tables["held_out"]
    assert set(held[held.flip == 0].method) == clean
    assert set(held[held.flip == 0.2].method) == clean | exchanged
    assert held.groupby("population").pairs.first().to_dict() == {"test": 2, "shifted": 4}
    assert len(held) == 2 * 2 * (len(clean) + len(clean | exchanged))
    stages = tmp_path / "out" / "stages"
    counted = json.loads((stages / "pairs-train-flip-0.2-seed-1" / "count.json").read_text())
    kept = load_rows(stages / "pairs-train" / "pairs.jsonl")
    assert counted == {"pairs": len(kept), "of": len(kept), "flipped": round(0.2 * len(kept))}
    flipped = load_rows(stages / "pairs-train-flip-0.2-seed-1" / "pairs.jsonl")
    swapped = [
        (a["chosen"], a["rejected"]) == (b["rejected"], b["chosen"])
        for a, b in zip(kept, flipped, strict=True)
    ]
    assert sum(swapped) == counted["flipped"] and all(
        a == b or yes for a, b, yes in zip(kept, flipped, swapped, strict=True)
    )
    assert (next(stages.glob("policy-wdpo-*")) / "adapter_config.json").is_file()
    command = (next(stages.glob("policy-rdpo-flip=0.2-*")) / "command.txt").read_text()
    assert "--flip 0.2" in command and "--strings chat" in command
    quantiles = tables["quantiles"]
    assert set(quantiles.method) == clean | {"start"}


def test_pairs_that_would_be_cut_are_not_trained_on(tmp_path: Path) -> None:
    rows = [
        {"prompt": "the", "chosen": " ".join([word] * n), "rejected": word}
        for n, word in enumerate(WORDS[3:9], 1)
    ]
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def keep(given: list[dict[str, Any]]) -> list[int]:
        return [i for i, row in enumerate(given) if len(row["chosen"].split()) <= 3]

    (out := tmp_path / "out").mkdir()
    take_pairs(out, str(source), "train", 100, 0, keep)
    assert count_pairs(out) == 3
    first = load_rows(out / "pairs.jsonl")
    (rest := tmp_path / "rest").mkdir()
    take_pairs(out, str(source), "train", 1, 0, keep)
    take_pairs(rest, str(source), "train", 100, 0, keep, after=1)
    assert [*load_rows(out / "pairs.jsonl"), *load_rows(rest / "pairs.jsonl")] == first
    with pytest.raises(
        ValueError, match=r"of 6 pairs .* 0 can be taken, and 0 of them .*raise pro"
    ):
        take_pairs(out, str(source), "train", 100, 0, lambda _: [])


@pytest.mark.slow
def test_two_processes_of_a_launch_give_the_rows_of_one(
    shared_models: Path, tmp_path: Path
) -> None:
    words = [
        "run",
        "armorm",
        "--profile",
        "smoke",
        "--radar",
        "anger+fear",
        "--curves",
        "anger+fear",
        "--shared",
        str(shared_models),
    ]
    one = launches.run(
        [sys.executable, "-m", "experiments", *words, "--out", tmp_path / "one"],
        env={"OMP_NUM_THREADS": "1"},
    )
    two = launches.launch(["-m", "experiments", *words, "--out", tmp_path / "two"], tmp_path)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    first, second = (
        pd.read_parquet(tmp_path / name / "rewards.parquet") for name in ("one", "two")
    )
    keys = ["pair", "method", "radius", "beta", "seed", "objective"]
    pd.testing.assert_frame_equal(first[keys], second[keys])
    assert np.allclose(first.reward, second.reward, atol=1e-5) and np.allclose(
        first.kl, second.kl, atol=1e-4
    )


def test_a_damaged_artefact_is_named_with_what_to_do(shared_models: Path, tmp_path: Path) -> None:
    config = ArmoRM(
        out=tmp_path,
        shared=shared_models,
        profile="smoke",
        radar=("anger+fear",),
        curves=("anger+fear",),
        control_betas=(0.3,),
        workers=1,
    )
    armorm.run(config)
    scores = next((tmp_path / "stages").glob("judged-*wdpo*seed-0/scores.parquet"))
    scores.write_bytes(scores.read_bytes()[:100])
    with pytest.raises(
        ValueError,
        match=rf"{scores.name} is missing or damaged.*move the folder .*{scores.parent.name[:10]}",
    ):
        armorm.run(config)
    shutil.rmtree(scores.parent)
    assert armorm.run(config) is not None


def test_too_few_pairs_for_a_batch_are_said(shared_models: Path, tmp_path: Path) -> None:
    config = ArmoRM(
        out=tmp_path,
        shared=shared_models,
        profile="smoke",
        radar=("anger+fear",),
        curves=("anger+fear",),
        prompts=4,
        workers=1,
    )
    with pytest.raises(ValueError, match=r"pairs make no batch of 8: take more prompts"):
        armorm.run(config)
