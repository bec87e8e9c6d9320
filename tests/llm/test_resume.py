"""A run is its content: it goes on wherever model and data lie, and never into the folder of
another."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm.train import main, parse, train
from tests.llm.models import WORDS, tiny_gpt2, word_tokenizer


class Place:
    """A model, pairs to train on and others to evaluate with, and a folder for the run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model, self.data, self.held_out, self.out = (
            root / "sft",
            root / "train.jsonl",
            root / "test.jsonl",
            root / "out",
        )
        tokenizer = word_tokenizer()
        tiny_gpt2(0, vocabulary=len(tokenizer)).save_pretrained(self.model)
        tokenizer.save_pretrained(self.model)
        write_pairs(self.data, 0)
        write_pairs(self.held_out, 1)

    def words(self, *more: str) -> list[str]:
        fixed = (
            "--run_on cpu --max_steps 4 --save_steps 2 --learning_rate 1e-2 --report_to none"
            " --disable_tqdm true"
        )
        places = (
            f"--model {self.model} --data {self.data} --eval_data {self.held_out} --output_dir"
            f" {self.out}"
        )
        return " ".join([places, fixed, *more]).split()

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.out)): path.read_bytes()
            for path in self.out.rglob("*")
            if path.is_file()
        }


def write_pairs(path: Path, seed: int) -> None:
    draw = random.Random(seed)
    rows = [
        {
            "prompt": " ".join(draw.choices(WORDS, k=3)) + " ",
            "chosen": "is happy",
            "rejected": "is sad",
        }
        for _ in range(16)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "a")


def record(out: Path, **changes: Any) -> None:
    path = out / "training.json"
    found = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(
        json.dumps({name: value for name, value in found.items() if value is not None}),
        encoding="utf-8",
    )


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "elete" not in said and "Choose another --output_dir" in said
    return said


def another_model(place: Place) -> None:
    model = AutoModelForCausalLM.from_pretrained(place.model)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.add_(0.01)
    model.save_pretrained(place.model)


def another_tokenizer(place: Place) -> None:
    tokenizer = word_tokenizer(chat_template=True)
    tokenizer.save_pretrained(place.model)


CHANGES = {
    "model": (another_model, "model ("),
    "tokenizer": (another_tokenizer, "tokenizer ("),
    "rows": (lambda place: write_pairs(place.data, 2), "training rows ("),
    "evaluation rows": (lambda place: write_pairs(place.held_out, 3), "evaluation rows ("),
}


@pytest.mark.parametrize("checkpoints", ["steps", "no"])
@pytest.mark.parametrize("what", CHANGES)
def test_other_content_at_the_same_place(
    what: str, checkpoints: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished run is no other run's result, and is not overwritten by it."""
    change, message = CHANGES[what]
    command = place.words(f"--save_strategy {checkpoints}")
    train(*parse(command))
    before = place.files()
    change(place)
    said = refused(command, capsys)
    assert message in said and " then, " in said
    assert place.files() == before


@pytest.mark.parametrize("finished", [True, False])
def test_the_same_content_at_another_place(
    finished: bool, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """Model, rows and result may move: a run that has finished is known, one that has not goes on
    to the same weights."""
    train(*parse(place.words()))
    truth = place.files()["model.safetensors"]
    if not finished:
        record(place.out, metrics=None)
        (place.out / "model.safetensors").unlink()
        shutil.rmtree(place.out / "checkpoint-4")
    place.root.rename(place.root.with_name("b"))
    moved = Place.__new__(Place)
    moved.root = place.root.with_name("b")
    moved.model, moved.data = moved.root / "renamed", moved.root / "pairs.jsonl"
    moved.held_out, moved.out = moved.root / "held out.jsonl".replace(" ", "-"), moved.root / "out"
    for old, new in (
        ("sft", moved.model),
        ("train.jsonl", moved.data),
        ("test.jsonl", moved.held_out),
    ):
        (moved.root / old).rename(new)
    capsys.readouterr()
    train(*parse(moved.words()))
    captured = capsys.readouterr()
    assert ("has finished before" in captured.out) is finished
    assert ("resuming from" in captured.err) is not finished
    assert moved.files()["model.safetensors"] == truth


@pytest.mark.parametrize("finished", [True, False])
def test_records_of_an_earlier_version(
    finished: bool, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """They have the fingerprints at another place, without evaluation rows, and the targets of an
    adapter as a text."""
    command = place.words("--lora --lora_targets c_attn,c_proj")
    train(*parse(command))
    found = json.loads((place.out / "training.json").read_text(encoding="utf-8"))
    old = {"rows": found["content"]["rows"], "content": None, "lora_targets": "c_attn,c_proj"}
    record(place.out, **old, **({} if finished else {"metrics": None}))
    capsys.readouterr()
    train(*parse(command))
    captured = capsys.readouterr()
    assert "is of an earlier version, without a fingerprint of the evaluation rows" in captured.err
    assert ("has finished before" in captured.out) is finished
    record(place.out, **old)
    another_model(place)
    assert "model (" in refused(command, capsys)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_model_of_unknown_origin_is_not_overwritten(
    text: str | None, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    train(*parse(place.words("--save_strategy no")))
    if text is None:
        (place.out / "training.json").unlink()
    else:
        (place.out / "training.json").write_text(text, encoding="utf-8")
    before = place.files()
    assert "has a model (model.safetensors), but no readable training.json" in refused(
        place.words(), capsys
    )
    assert place.files() == before
    shutil.copytree(place.model, place.root / "somebody's")
    said = refused([*place.words(), "--output_dir", str(place.root / "somebody's")], capsys)
    assert "but no readable training.json says of which run" in said


def test_what_begins_again_has_nothing_to_lose(place: Place) -> None:
    """A run that was stopped before its first checkpoint has left a record and reference
    log-probabilities only."""
    place.out.mkdir()
    (place.out / "training.json").write_text(json.dumps({"beta": 3.0}), encoding="utf-8")
    assert train(*parse(place.words()))["eval_loss"] > 0
