"""`prefdro train` from files to files, with a tiny model: what it leaves behind, how it resumes,
what it says of bad input."""

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llm import train as module
from llm.train import main, parse, train
from tests.llm.models import WORDS, tiny_gpt2, word_tokenizer

NOUNS = [word for word in WORDS if word not in ("happy", "sad", "user", "assistant", "system")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), seed=0)


def save_model(folder: Path, seed: int, **options: Any) -> Path:
    tokenizer = word_tokenizer(**options)
    tiny_gpt2(seed, vocabulary=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts that end happily are preferred to those that end sadly; a group and a weight for
    each."""
    draw = random.Random(0)

    def text(count: int) -> str:
        return " ".join(draw.choice(NOUNS) for _ in range(count))

    rows = [
        {
            "prompt": text(3) + " ",
            "chosen": f"{text(draw.randint(1, 3))} happy",
            "rejected": f"{text(draw.randint(1, 3))} sad",
            "group": draw.choice(["few", "many"]),
            "weight": draw.random() + 0.1,
        }
        for _ in range(48)
    ]
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    """A command line of a short run on the CPU; what comes later wins."""
    fixed = (
        "--run_on cpu --max_steps 6 --learning_rate 3e-3 --per_device_train_batch_size 4"
        " --gradient_accumulation_steps 2"
    )
    quiet = "--disable_tqdm true --logging_steps 2 --save_steps 3 --report_to none"
    return " ".join(
        [f"--model {model} --data {data} --output_dir {out}", fixed, quiet, *more]
    ).split(" ")


def weights(folder: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(folder / name)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_a_better_model_its_card_and_its_log(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    options = (
        "--max_steps 24 --objective kldpo --tau 0.5 --seed 7 --kl_prompts 48 --kl_max_new_tokens 4"
    )
    metrics = train(*parse(words(model, pairs, tmp_path, options, f"--eval_data {pairs}")))
    log = pd.read_csv(tmp_path / "log.csv")
    losses = log.loss.dropna()
    assert losses.iloc[-1] < 0.9 * losses.iloc[0]
    assert metrics["eval_rewards/accuracies"] > 0.8 > 0.5
    # before training policy and reference are equal: the KL estimate is of a real change
    assert metrics["eval_kl_to_reference"] > 2 * metrics["eval_kl_to_reference_error"] > 0
    trained = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not torch.equal(
        trained.lm_head.weight, AutoModelForCausalLM.from_pretrained(model).lm_head.weight
    )
    card = (tmp_path / "README.md").read_text()
    for fact in (
        "| objective | kldpo |",
        "| tau | 0.5 |",
        "| seed | 7 |",
        str(pairs),
        "arXiv:2502.01930",
        "eval_kl_to_reference",
    ):
        assert fact in card
    named = {
        "worst_case/effective_sample_size",
        "worst_case/largest_weight",
        "dominance_violation",
        "rewards/chosen_q90",
        "grad_norm",
    }
    assert named <= set(log.columns)
    assert (
        1
        <= log["worst_case/effective_sample_size"].dropna().min()
        <= log["worst_case/effective_sample_size"].max()
        <= 8
    )


def as_if_killed(out: Path, *lost: str) -> None:
    """The folder of a finished run as it was before its end, without these checkpoints."""
    for name in lost:
        shutil.rmtree(out / name)
    record = json.loads((out / "training.json").read_text())
    del record["metrics"]
    (out / "training.json").write_text(json.dumps(record))
    (out / "model.safetensors").unlink(missing_ok=True)


def test_a_finished_run_is_left_as_it_is(
    model: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words(model, pairs, tmp_path)
    metrics = train(*parse(command))
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert train(*parse(command)) == metrics
    assert "this run has finished before" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_an_incomplete_checkpoint_is_passed_over(
    model: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run may be killed while a checkpoint is written."""
    command = words(model, pairs, tmp_path)
    train(*parse(command))
    truth = weights(tmp_path)
    as_if_killed(tmp_path)
    (tmp_path / "checkpoint-6" / "trainer_state.json").unlink()
    (tmp_path / "checkpoint-6" / "model.safetensors").write_bytes(b"half")
    train(*parse(command))
    assert "checkpoint-6 is incomplete" in capsys.readouterr().err
    assert same(weights(tmp_path), truth)


def test_other_weights_of_the_same_texts_are_another_run(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text(pairs.read_text())
    command = words(model, data, tmp_path / "out")
    train(*parse(command))
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    data.write_text("".join(json.dumps(row | {"weight": 1.0}) + "\n" for row in rows))
    with pytest.raises(ValueError, match="other arguments or data: training rows"):
        train(*parse(command))


def test_the_model_is_not_overwritten(model: Path, pairs: Path) -> None:
    with pytest.raises(ValueError, match="is the folder of --model"):
        train(*parse(words(model, pairs, model)))


def test_the_same_command_resumes_to_the_same_parameters(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = "--objective group_dro --group_step 0.5 --lr_scheduler_type cosine"
    train(*parse(words(model, pairs, whole, options)))
    train(*parse(words(model, pairs, broken, options)))
    as_if_killed(broken, "checkpoint-6")
    state = json.loads((broken / "checkpoint-3" / "trainer_state.json").read_text())
    kept = state["stateful_callbacks"]["GroupWeights"]["args"]["weights"]
    assert sum(kept) == pytest.approx(1) and kept != [0.5, 0.5]
    train(*parse(words(model, pairs, broken, options)))
    assert same(weights(broken), weights(whole))


def test_a_run_resumes_whatever_the_trainer_made_of_its_arguments(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    """With checkpointing the trainer sets how; with several ranks, that the last batch is
    dropped."""
    command = words(model, pairs, tmp_path, "--gradient_checkpointing --max_steps 4 --save_steps 2")
    train(*parse(command))
    as_if_killed(tmp_path, "checkpoint-4")
    train(*parse(command))
    assert (
        json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["global_step"]
        == 4
    )


def test_a_checkpoint_without_the_optimizer_is_not_resumed(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    command = words(model, pairs, tmp_path, "--save_only_model true")
    train(*parse(command))
    as_if_killed(tmp_path)
    with pytest.raises(ValueError, match="was saved with --save_only_model"):
        train(*parse(command))


def test_a_run_of_more_ranks_is_another_run(model: Path, pairs: Path, tmp_path: Path) -> None:
    train(*parse(words(model, pairs, tmp_path)))
    record = json.loads((tmp_path / "training.json").read_text())
    (tmp_path / "training.json").write_text(json.dumps(record | {"world_size": 2}))
    with pytest.raises(ValueError, match=r"world_size \(2 then, 1 now\)"):
        train(*parse(words(model, pairs, tmp_path)))


def test_the_split_of_the_evaluation_data(model: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split is 'few', which has no meaning for"):
        train(*parse(words(model, pairs, tmp_path, f"--eval_data {pairs} --eval_split few")))


def test_rows_that_the_model_cannot_take(model: Path, tmp_path: Path) -> None:
    """Longer than its 128 positions, or with tokens of another model's tokenizer."""
    path, big = tmp_path / "pairs.jsonl", word_tokenizer([*WORDS, "strange"])
    big.save_pretrained(tmp_path / "big")
    path.write_text(json.dumps({"prompt": "the " * 127, "chosen": "cat", "rejected": "dog"}) + "\n")
    with pytest.raises(
        ValueError,
        match=(
            r"the longest row has 129 tokens, .* the model has 128 positions. Set --max_length 128"
        ),
    ):
        train(*parse(words(model, path, tmp_path / "out")))
    path.write_text(json.dumps({"prompt": "the ", "chosen": "strange", "rejected": "dog"}) + "\n")
    with pytest.raises(ValueError, match=r"the token 28, and the model knows 28 \(0 to 27\)"):
        train(*parse(words(model, path, tmp_path / "out", f"--tokenizer {tmp_path / 'big'}")))


def test_samples_that_the_model_has_no_positions_for(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    options = f"--kl_prompts 4 --kl_max_new_tokens 126 --eval_data {pairs}"
    with pytest.raises(
        ValueError, match="the model has 128 positions, and texts have up to 129 tokens"
    ):
        train(*parse(words(model, pairs, tmp_path, options)))
    assert not (tmp_path / "model.safetensors").exists()  # before the training


def test_in_bf16_an_untrained_policy_is_at_kl_zero(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    options = (
        "--bf16 --learning_rate 0 --max_steps 1 --kl_prompts 8 --kl_max_new_tokens 8 --eval_data"
        f" {pairs}"
    )
    assert train(*parse(words(model, pairs, tmp_path, options)))["eval_kl_to_reference"] == 0


def test_the_folder_of_another_run_is_refused(
    model: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(*parse(words(model, pairs, tmp_path)))
    before = weights(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(words(model, pairs, tmp_path, "--beta 0.3"))
    assert stopped.value.code == 1
    assert "beta (0.1 then, 0.3 now)" in capsys.readouterr().err
    assert same(weights(tmp_path), before)


def test_a_yaml_file_is_the_command_line(model: Path, pairs: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(
        f"model: {model}\ndata: {pairs}\nobjective: wdpo\nrho: 0.01\nwdpo_mode: adversarial\nbeta:"
        " 0.2\nrun_on: cpu\n"
    )
    _, _, objective, args = parse(
        ["--config", str(path), "--beta", "0.05", "--output_dir", str(tmp_path / "out")]
    )
    assert (objective.objective, objective.rho, objective.beta) == ("wdpo", 0.01, 0.05)
    assert args.output_dir == str(tmp_path / "out")


def test_only_the_adapter_is_trained_and_saved(model: Path, pairs: Path, tmp_path: Path) -> None:
    options = (
        "--lora --lora_rank 2 --objective wdpo --rho 0.01 --wdpo_mode adversarial"
        " --gradient_checkpointing"
    )
    train(*parse(words(model, pairs, tmp_path, options)))
    adapter = weights(tmp_path, "adapter_model.safetensors")
    assert adapter and all("lora" in name for name in adapter)
    assert any(
        w.abs().max() > 0 for name, w in adapter.items() if "lora_B" in name
    )  # zero before training
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    "options", ["--objective kto", "--objective aot_unpaired", "--objective aot --bf16"]
)
def test_other_objectives_and_bf16_run_from_the_same_file(
    options: str, model: Path, pairs: Path, tmp_path: Path
) -> None:
    train(*parse(words(model, pairs, tmp_path, options, "--report_to tensorboard")))
    log = pd.read_csv(tmp_path / "log.csv")
    margins = log["rewards/margins"].dropna()
    assert margins.iloc[-1] > max(margins.iloc[0], 0.02)
    assert list(tmp_path.rglob("events.out.tfevents*"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--objective kldpo", "either --rho (radius: KLDPO, exact, KL ball) or --tau"),
        ("--objective dpo --tau 1", "dpo does not take --tau (got 1.0)"),
        ("--model ./nowhere", "cannot load the tokenizer './nowhere'"),
        ("--data ./nothing.jsonl", "there is no file or folder ./nothing.jsonl"),
        ("--dtype float8", "unknown --dtype 'float8'"),
        ("--run_on gpu", "unknown --run_on 'gpu'"),
        ("--label_smoothing_factor 0.1", "use --objective cdpo with --flip"),
        ("--model ", "--model was not given"),
        (
            "--resume_from_checkpoint x",
            "--resume_from_checkpoint (x) is refused: the same command resumes by itself",
        ),
        ("--max_steps 0", "--max_steps (0) is refused"),
        ("--lora_rank 3", "--lora_rank (3) is of an adapter, but all weights are trained"),
        ("--kl_prompts 4", "--kl_prompts (4) are prompts of the evaluation, but there is none"),
    ],
)
def test_bad_input_ends_with_a_sentence(
    more: str,
    message: str,
    model: Path,
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words(model, pairs, tmp_path, more))
    assert stopped.value.code == 1
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_and_absent(
    model: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*words(model, pairs, tmp_path), "--run_on", "cuda"])
    assert "sees no CUDA device" in capsys.readouterr().err


def test_a_cache_of_another_model_is_refused(
    model: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = str(tmp_path / "reference.safetensors")
    train(*parse(words(model, pairs, tmp_path / "a", f"--reference_cache {cache}")))
    other = save_model(tmp_path / "other", seed=1)
    with pytest.raises(SystemExit):
        main(words(other, pairs, tmp_path / "b", f"--reference_cache {cache}"))
    error = capsys.readouterr().err
    assert cache in error and "model" in error
    assert not (tmp_path / "b" / "model.safetensors").exists()


def test_conversations_without_a_chat_template(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def turn(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    row = {
        "prompt": turn("user", "the cat"),
        "chosen": turn("assistant", "happy"),
        "rejected": turn("assistant", "sad"),
    }
    path = tmp_path / "chat.jsonl"
    path.write_text((json.dumps(row) + "\n") * 8)
    with pytest.raises(SystemExit):
        main(words(model, path, tmp_path / "out"))
    assert "chat template" in capsys.readouterr().err
    chatty = save_model(tmp_path / "chatty", seed=0, chat_template=True)
    train(*parse(words(chatty, path, tmp_path / "out", "--max_steps 1")))


def test_weights_that_are_not_finite_stop_the_run(
    model: Path,
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Diverging(torch.optim.SGD):
        """Its first step makes every weight too large."""

        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.fill_(float("nan"))

    def trainer_with(*args: Any, **kwargs: Any) -> Any:
        net = args[0]
        return original(*args, **kwargs, optimizers=(Diverging(net.parameters(), lr=1.0), None))

    original = module.PreferenceTrainer
    monkeypatch.setattr(module, "PreferenceTrainer", trainer_with)
    with pytest.raises(SystemExit) as stopped:
        main(words(model, pairs, tmp_path))
    assert stopped.value.code == 1
    assert "the objective is [nan" in capsys.readouterr().err
    record = json.loads((tmp_path / "not-finite-step1-rank0.json").read_text())
    assert len(record["rows"]) == 8 and set(record["rows"]) <= set(range(48))


def test_what_is_trained_on_is_shown_and_what_is_left_out_is_written_down(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [
        {"q": "the cat ", "good": f"is {word}", "bad": "is sad"}
        for word in ("happy", "red", "blue", "sad", "green")
    ]
    rows[1]["good"], rows[2]["bad"] = " ", 7  # type: ignore[assignment]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)) + '\n{"q": "the')
    command = words(
        model, data, tmp_path / "out", "--max_steps 1 --columns prompt=q,chosen=good,rejected=bad"
    )
    with pytest.raises(SystemExit) as stopped:
        main(command)
    said = capsys.readouterr().err
    assert stopped.value.code == 1 and "2 of 6 rows cannot be used" in said and str(data) in said
    assert (
        "1 row (3) with a number in `rejected`" in said
        and "1 row (6) not valid JSON" in said
        and "--drop_bad_rows" in said
    )
    assert not (tmp_path / "out").exists()
    with pytest.warns(UserWarning, match="4 of 6 rows are left out"):
        train(*parse([*command, "--drop_bad_rows"]))
    said = capsys.readouterr().err
    assert (
        "the first example as the model sees it (row 1):" in said
        and "chosen:     'is happy <eos>'" in said
    )
    left_out = pd.read_csv(tmp_path / "out" / "left-out-rows-train.csv")
    assert list(left_out["row"]) == [2, 3, 4, 6] and "identical" in left_out["reason"][2]
    # rows in tokens are what counts: the same file without what was left out is the same run
    assert train(*parse([*command, "--drop_bad_rows", "--long_prompts", "error"])) is not None
    assert "has finished before" in capsys.readouterr().out


@pytest.mark.parametrize("columns", ["prompt", "prompt=", "text=q", "prompt=q,prompt=r"])
def test_names_of_columns_that_say_nothing(
    model: Path, pairs: Path, tmp_path: Path, columns: str
) -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"--columns .* is not of the form ours=theirs, with each of ours once and one of prompt"
        ),
    ):
        train(*parse(words(model, pairs, tmp_path / "out", f"--columns {columns}")))
