"""Adapters of peft as --model: what is trained starts from base and adapter together, and what is
saved loads on its own."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm.adapters import adapter_base
from llm.arguments import ModelArguments
from llm.judges.emotion import reward_model
from llm.models import load_language_model, load_tokenizer
from llm.reference import _as_reference, model_fingerprint
from llm.train import load_model, main, parse, train
from tests.llm.models import tiny_gpt2, tiny_llama, word_tokenizer

IDS = torch.arange(12)[None] + 3


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-4)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base")


def save_base(folder: Path, kind: Any = tiny_gpt2) -> Path:
    tokenizer = word_tokenizer()
    kind(0, vocabulary=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_adapter(
    folder: Path, on: Path, config: Any = None, *, scale: float = 0.3
) -> tuple[Path, torch.Tensor]:
    """An adapter with random weights, and the logits of model and adapter together."""
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(on),
        config or LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"),
    )
    for weight in (weight for weight in model.parameters() if weight.requires_grad):
        weight.data += scale * torch.randn_like(weight)
    wanted = logits(model)
    model.save_pretrained(folder)
    return folder, wanted


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"the {a} ", "chosen": "is happy", "rejected": "is sad"}
        for a in ("cat", "dog", "bird", "sun")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def words(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    fixed = (
        "--run_on cpu --learning_rate 1e-2 --report_to none --disable_tqdm true --save_steps 2"
        " --max_steps 4"
    )
    return " ".join([f"--model {model} --data {data} --output_dir {out}", fixed, *more]).split()


KINDS = {
    "lora": LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"),
    "rslora and dora": LoraConfig(task_type="CAUSAL_LM", r=2, use_rslora=True, use_dora=True),
    "ia3": IA3Config(task_type="CAUSAL_LM"),
    "the head, which is tied": LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], modules_to_save=["lm_head"]
    ),
    "the embeddings": LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn", "wte"]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_merged_and_loads_again(kind: str, base: Path, tmp_path: Path) -> None:
    folder, wanted = save_adapter(tmp_path / "sft", base, KINDS[kind])
    model = load_language_model(str(folder))
    assert near(logits(model), wanted) and not near(
        logits(AutoModelForCausalLM.from_pretrained(base)), wanted
    )
    assert all(weight.requires_grad for weight in model.parameters())
    assert not any("lora" in name or "base_layer" in name for name, _ in model.named_parameters())
    model.save_pretrained(tmp_path / "whole")
    assert near(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")), wanted)


def test_policy_and_reference_start_at_the_adapter(base: Path, tmp_path: Path) -> None:
    folder, wanted = save_adapter(tmp_path / "sft", base)
    policy = load_model(ModelArguments(model=str(folder), lora=True))
    with _as_reference(policy):
        reference = logits(policy)
    assert near(logits(policy), wanted) and near(reference, wanted)
    assert model_fingerprint(policy) == model_fingerprint(
        load_model(ModelArguments(model=str(folder)))
    )
    assert model_fingerprint(policy) != model_fingerprint(
        load_model(ModelArguments(model=str(base)))
    )


@pytest.mark.parametrize("kind", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("second", ["--lora", ""])
def test_a_second_round_leaves_a_model_of_its_own(
    second: str, kind: Any, pairs: Path, tmp_path: Path
) -> None:
    """It is what was trained, without base and adapter; also after a run that was stopped and went
    on."""
    base = save_base(tmp_path / "base", kind)
    train(*parse(words(base, pairs, tmp_path / "first", "--lora --lora_rank 2")))
    assert adapter_base(str(tmp_path / "first")) == str(base)
    out = tmp_path / "second"
    command = words(tmp_path / "first", pairs, out, second)
    train(*parse(command))
    found = logits(AutoModelForCausalLM.from_pretrained(out))
    start = logits(load_language_model(str(tmp_path / "first")))
    assert not near(found, start)
    if second:  # the checkpoint is an adapter on an adapter
        assert near(logits(load_language_model(str(out / "checkpoint-4"))), found)
        assert adapter_base(str(out / "checkpoint-4")) == str(base)
    assert adapter_base(str(out)) is None
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"an adapter merged into {base}" in card

    record = json.loads((out / "training.json").read_text(encoding="utf-8"))
    del record["metrics"]
    (out / "training.json").write_text(json.dumps(record), encoding="utf-8")
    shutil.rmtree(out / "checkpoint-4")
    train(*parse(command))
    assert near(logits(AutoModelForCausalLM.from_pretrained(out)), found)

    moved = tmp_path / "elsewhere"
    out.rename(moved)
    shutil.rmtree(base)
    shutil.rmtree(tmp_path / "first")
    assert near(logits(AutoModelForCausalLM.from_pretrained(moved)), found)
    assert len(AutoTokenizer.from_pretrained(moved)) == len(word_tokenizer())


def test_an_adapter_with_added_tokens(base: Path, tmp_path: Path) -> None:
    """The adapter holds the embeddings that it was resized to; its tokenizer is longer than the
    base's."""
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["wonderful", "terrible"])
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    adapted = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=2, modules_to_save=["wte", "lm_head"])
    )
    for weight in (weight for weight in adapted.parameters() if weight.requires_grad):
        weight.data += 0.2 * torch.randn_like(weight)
    wanted = logits(adapted)
    adapted.save_pretrained(tmp_path / "sft")
    tokenizer.save_pretrained(tmp_path / "sft")
    found = load_language_model(str(tmp_path / "sft"))
    assert near(logits(found), wanted) and found.config.vocab_size == len(tokenizer)


def test_an_adapter_without_a_tokenizer_has_that_of_its_model(base: Path, tmp_path: Path) -> None:
    folder, _ = save_adapter(tmp_path / "sft", base)
    assert load_tokenizer(str(folder)).get_vocab() == load_tokenizer(str(base)).get_vocab()


def test_a_reward_model_starts_from_the_merged_model(base: Path, tmp_path: Path) -> None:
    folder, _ = save_adapter(tmp_path / "sft", base)
    judge = reward_model(str(folder), word_tokenizer(), width=8, layers=1, length=8, seed=0)
    merged = load_language_model(str(folder)).state_dict()
    assert torch.equal(
        judge.state_dict()["transformer.h.0.attn.c_attn.weight"],
        merged["transformer.h.0.attn.c_attn.weight"],
    )


def edited(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8"
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("more", ["", "--lora"])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("gone", "which cannot be had: cannot load the model"),
        ("other shape", "does not fit the model that it names"),
        ("prompt", "is an adapter of kind PROMPT_TUNING, which is no change of weights"),
        ("classifier", "is an adapter for SEQ_CLS, not of a causal language model"),
        ("nameless", "does not name the model that the adapter changes"),
        ("circle", "lead back to"),
        ("both", "has the weights of a model (model.safetensors) and an adapter"),
        ("weightless", "the weights of the adapter"),
        ("broken", "is no configuration of a peft adapter"),
        ("own output", "is the folder of the model that the adapter --model changes"),
    ],
)
def test_an_adapter_that_cannot_be_used(
    what: str,
    message: str,
    more: str,
    base: Path,
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    if what == "prompt":
        folder = tmp_path / "sft"
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), prompt).save_pretrained(folder)
    else:
        folder, _ = save_adapter(tmp_path / "sft", base)
    word_tokenizer().save_pretrained(folder)
    out = tmp_path / "out"
    if what == "gone":
        base.rename(tmp_path / "moved")
    elif what == "other shape":
        tiny_gpt2(vocabulary=len(word_tokenizer()), width=8).save_pretrained(base)
    elif what == "classifier":
        edited(folder, task_type="SEQ_CLS")
    elif what == "nameless":
        edited(folder, base_model_name_or_path=None)
    elif what == "circle":
        edited(folder, base_model_name_or_path=str(folder))
    elif what == "both":
        tiny_gpt2().save_pretrained(folder)
    elif what == "weightless":
        (folder / "adapter_model.safetensors").unlink()
    elif what == "broken":
        (folder / "adapter_config.json").write_text("{", encoding="utf-8")
    elif what == "own output":
        out = base
    before = (
        {path.name: path.stat().st_mtime_ns for path in base.iterdir()} if base.exists() else {}
    )
    with pytest.raises(SystemExit) as stopped:
        main(words(folder, pairs, out, more))
    assert stopped.value.code == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out" / "training.json").exists()
    assert before == (
        {path.name: path.stat().st_mtime_ns for path in base.iterdir()} if base.exists() else {}
    )


def test_what_was_trained_is_what_peft_itself_makes_of_it(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    """Of the first round: an adapter that peft and transformers load, from another working
    directory, too."""
    train(*parse(words(base, pairs, tmp_path / "first", "--lora")))
    config = json.loads((tmp_path / "first" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(base.resolve())
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), tmp_path / "first"
    )
    assert near(logits(load_language_model(str(tmp_path / "first"))), logits(adapted))
