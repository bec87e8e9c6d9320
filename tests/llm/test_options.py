"""A YAML file means what the same words of a command line would; what it cannot mean is said in a
sentence."""

import os
from pathlib import Path
from typing import Any

import pytest

from llm.options import as_words, listed
from llm.train import Arguments, parse


def parsed(tmp_path: Path, text: str, *words: str) -> Arguments:
    path = tmp_path / "of a run.yaml"
    path.write_text(text, encoding="utf-8")
    return parse(["--config", str(path), "--output_dir", str(tmp_path / "out"), *words])


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("lora: true\nlora_targets: [q_proj, v_proj]", "lora_targets", ["q_proj", "v_proj"]),
        (
            "lora: yes\nlora_targets:\n- up_proj\n- down_proj",
            "lora_targets",
            ["up_proj", "down_proj"],
        ),
        ("lora_targets: q_proj, v_proj", "lora_targets", ["q_proj", "v_proj"]),
        ("lora_targets: all-linear", "lora_targets", ["all-linear"]),
        ("lora-rank: 4.0", "lora_rank", 4),
        ("learning_rate: 5e-7", "learning_rate", 5e-7),  # a text in YAML 1.1
        ('beta: "0.3"', "beta", 0.3),
        ("lora: 'true'", "lora", True),
        ("bf16: off", "bf16", False),
        ("save_strategy: no", "save_strategy", "no"),
        ("report_to: [tensorboard]", "report_to", ["tensorboard"]),
        ("report_to: no", "report_to", []),
        ("max_length: ~", "max_length", None),
        ("max_length: null", "max_length", None),
        ("revision: 20240101", "revision", "20240101"),
        ("lr_scheduler_kwargs: {num_cycles: 2}", "lr_scheduler_kwargs", {"num_cycles": 2}),
        ("max_steps: 7\nbeta: 0.5", "max_steps", 7),
        ("average_tokens: false", "average_tokens", False),  # true by default
        ("average_tokens: 'no'", "average_tokens", False),
        ("average_tokens: true", "average_tokens", True),
        ("skip_memory_metrics: false", "skip_memory_metrics", False),
        ("run_name: 2024_11_27", "run_name", "2024_11_27"),
        ("run_name: 007", "run_name", "007"),
        ("run_name: 1:30", "run_name", "1:30"),
        ("revision: 0123456", "revision", "0123456"),
        ("data_name: 1.10", "data_name", "1.10"),
        ("run_name: 2024-01-01", "run_name", "2024-01-01"),
        ("seed: 010", "seed", 10),
        ("max_length: 1e3", "max_length", 1000),
        ("report_to: ~", "report_to", []),
        (
            "lr_scheduler_kwargs: {min_lr: 1e-7, name: x}",
            "lr_scheduler_kwargs",
            {"min_lr": 1e-7, "name": "x"},
        ),
        ("\ufeffbeta: 0.2", "beta", 0.2),  # as editors of Windows write it
        ("env: {PREFDRO_TEST: 3}\nbeta: 0.2", "beta", 0.2),
        (
            "env: &e {A_B: 1}\nlr_scheduler_kwargs: {<<: *e, num_cycles: 2}",
            "lr_scheduler_kwargs",
            {"A_B": 1, "num_cycles": 2},
        ),
    ],
)
def test_what_a_file_means(text: str, name: str, value: Any, tmp_path: Path) -> None:
    for part in parsed(tmp_path, text):
        if hasattr(part, name):
            found = getattr(part, name)
            assert getattr(found, "value", found) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            (
                "must hold lines `option: value`, with the names of `prefdro train --help`; it is"
                " empty"
            ),
        ),
        ("- beta\n- 0.1", "it holds ['beta', '0.1']"),
        ("beta: 0.1\nmodel: m\nbeta: 0.2", "beta is given twice, first in line 1"),
        ("lora_rank: 2\nlora-rank: 4", "lora-rank is given twice"),
        ("learning_rte: 1e-3", "learning_rte (did you mean learning_rate?)"),
        (
            "model_name_or_path: gpt2\ntorch_dtype: bfloat16",
            "model_name_or_path (did you mean model?), torch_dtype (did you mean",
        ),
        ("config: other.yaml\nbeta: 1", "config"),
        ("beta: [0.1, 0.2]", "option beta: takes one value, got the list ['0.1', '0.2']"),
        ("beta: {start: 1}", "option beta: takes one value, got the mapping"),
        (
            "beta: ~",
            (
                "option beta: null (which `~` alone means, too) is no value of it. Leave the line"
                " out for 0.1"
            ),
        ),
        ("output_dir: ~", "option output_dir: null"),
        (
            "objective: no",
            (
                "option objective: got false, which is also how YAML reads the words no, off, yes"
                " and on"
            ),
        ),
        ("lora_targets: [q_proj, [v_proj]]", "takes a list of words, got ['v_proj']"),
        (
            "data: $NO_SUCH_VARIABLE/p.jsonl",
            "names $NO_SUCH_VARIABLE, which is no variable of the environment",
        ),
        ("beta: 0.1\n\tmodel: m", "cannot read the options in"),
        ("env: [a]\nbeta: 1", "`env` in"),
    ],
)
def test_what_a_file_cannot_mean(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        parsed(tmp_path, text)
    assert message in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read the options in nowhere"):
        parse(["--config=nowhere.yaml"])
    (tmp_path / "latin.yaml").write_bytes("output_dir: r\xe9sultats".encode("latin-1"))
    with pytest.raises(ValueError, match="in UTF-8"):
        parse(["--config", str(tmp_path / "latin.yaml")])


@pytest.mark.parametrize(
    "words",
    [["--config"], ["--config", "--beta", "1"], ["--config", "a", "--config=b"], ["--conf", "a"]],
)
def test_config_needs_one_file(words: list[str]) -> None:
    with pytest.raises(ValueError, match="--config"):
        parse(words)


def test_words_that_are_no_option(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"--lerning_rate \(did you mean learning_rate\?\), --lora_r_max"
    ):
        parse(["--lerning_rate", "1", "--lora_r_max=3", "--output_dir", str(tmp_path)])


def test_a_value_of_the_wrong_type_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(tmp_path, "max_steps: many")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--max_steps" in said and "'many'" in said


def test_homes_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    model, data, *_ = parsed(
        tmp_path, "model: ~/sft\ntokenizer: ~/words\ndata: ${SCRATCH}/p.jsonl", "--beta", "0.7"
    )
    assert (model.model, model.tokenizer) == (str(tmp_path / "sft"), str(tmp_path / "words"))
    assert data.data == "/scratch/me/p.jsonl"
    path = tmp_path / "other.yaml"
    path.write_text("output_dir: ~/runs/a\n", encoding="utf-8")
    assert parse(["--config=~/other.yaml"])[3].output_dir == str(tmp_path / "runs" / "a")


def test_variables_of_the_file(tmp_path: Path) -> None:
    parsed(tmp_path, "env: {PREFDRO_OF_A_FILE: 3}\nbeta: 0.2")
    assert os.environ.pop("PREFDRO_OF_A_FILE") == "3"


def test_lists_as_words() -> None:
    assert listed(" c_attn, c_proj mlp,") == ["c_attn", "c_proj", "mlp"]
    assert listed(["c_attn,c_proj", "mlp"]) == ["c_attn", "c_proj", "mlp"]
    words = as_words(
        {
            "lora_targets": ["q", "v"],
            "max_length": None,
            "lr_scheduler_kwargs": {"a": 1},
            "save_strategy": False,
        }
    )
    assert words == [
        "--lora_targets",
        "q,v",
        "--lr_scheduler_kwargs",
        '{"a": 1}',
        "--save_strategy",
        "no",
    ]
    model, *_ = parse([*words[:2], "--output_dir", "x"])
    assert model.lora_targets == ["q", "v"]
    assert parse(["--lora_targets", "q", "v"])[0].lora_targets == ["q", "v"]
