"""Special tokens beyond the embeddings: refused, or replaced, and never saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
)

from llm.models import load_language_model
from llm.special_ids import settle_special_ids
from llm.train import main, parse, train
from tests.llm.models import tiny_gpt2, tiny_llama, word_tokenizer

ROWS = [
    {"prompt": f"the {a} ", "chosen": "is happy" + " very" * k, "rejected": "is sad"}
    for k, a in enumerate(("cat", "dog", "bird", "sun"))
]


def tiny_gemma2(seed: int = 0, vocabulary: int = 64) -> Any:
    """Its logits are capped after the head, which is therefore not fused: padding is looked up."""
    torch.manual_seed(seed)
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
    )


def words(folder: Path, *more: str) -> list[str]:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    fixed = (
        "--run_on cpu --learning_rate 1e-2 --report_to none --disable_tqdm true --max_steps 2"
        " --per_device_train_batch_size 2"
    )
    return " ".join(
        [f"--model {folder / 'model'} --data {path} --output_dir {folder / 'out'}", fixed, *more]
    ).split()


def save(folder: Path, model: Any, tokenizer: Any, **config: Any) -> None:
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name in ("config", "generation_config"):
        path = folder / "model" / f"{name}.json"
        path.write_text(
            json.dumps(json.loads(path.read_text(encoding="utf-8")) | config), encoding="utf-8"
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "more",
    [
        "",
        "--lora --lora_targets all-linear",
        "--eval_split train --kl_prompts 2 --kl_max_new_tokens 2",
    ],
)
@pytest.mark.parametrize("kind", [tiny_gpt2, tiny_llama, tiny_gemma2])
def test_padding_beyond_the_embeddings(kind: Any, more: str, tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    model = kind(0, vocabulary=len(tokenizer))
    tokenizer.add_special_tokens({"pad_token": "<|padding|>"})
    save(tmp_path, model, tokenizer)
    train(*parse(words(tmp_path, more)))
    trained = load_language_model(str(tmp_path / "out"))
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert saved.pad_token == "<eos>"
    for config in (trained.config, trained.generation_config):
        ids = [value for name, value in config.to_dict().items() if name.endswith("_token_id")]
        assert all(number is None or 0 <= number < model.config.vocab_size for number in ids)
    batch = saved(["the cat", "the dog is sad"], padding=True, return_tensors="pt")
    trained(**{name: batch[name] for name in ("input_ids", "attention_mask")})  # with padding in it


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "outside",
    [{"pad_token_id": 28}, {"pad_token_id": -1}, {"bos_token_id": 50256, "eos_token_id": [1, 99]}],
)
def test_a_configuration_with_ids_beyond(outside: dict[str, Any], tmp_path: Path) -> None:
    """Also one with which the model itself cannot be loaded by transformers."""
    tokenizer = word_tokenizer(pad=False)
    save(tmp_path, tiny_llama(vocabulary=28), tokenizer, **outside)
    train(*parse(words(tmp_path)))
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for config in (
        AutoConfig.from_pretrained(tmp_path / "out"),
        GenerationConfig.from_pretrained(tmp_path / "out"),
    ):
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(config, name)
            assert all(
                number is None or 0 <= number < 28
                for number in (value if isinstance(value, list) else [value])
            )


@pytest.mark.parametrize(
    ("name", "what"), [("eos_token", "end-of-sequence"), ("bos_token", "beginning-of-sequence")]
)
def test_an_end_that_the_model_does_not_know(
    name: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Conversations whose template does not write it: the data have no such token."""
    tokenizer = word_tokenizer(chat_template=True)
    save(tmp_path, tiny_gpt2(vocabulary=len(tokenizer)), tokenizer)
    tokenizer.add_special_tokens({name: "<|im_end|>"})
    tokenizer.save_pretrained(tmp_path / "model")
    command = words(tmp_path)

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    row = {
        "prompt": turn("user", "the cat"),
        "chosen": turn("assistant", "happy"),
        "rejected": turn("assistant", "sad"),
    }
    (tmp_path / "pairs.jsonl").write_text((json.dumps(row) + "\n") * 4, encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 1
    said = " ".join(capsys.readouterr().err.split())
    assert (
        f"the tokenizer's {what} token '<|im_end|>' has the id 28, and the model knows 28 tokens (0"
        " to 27)" in said
    )
    assert not (tmp_path / "out" / "training.json").exists()


def test_nothing_is_said_of_ids_that_are_there(recwarn: pytest.WarningsRecorder) -> None:
    model, tokenizer = tiny_llama(vocabulary=28), word_tokenizer()
    settle_special_ids(model, tokenizer)
    assert not recwarn.list and tokenizer.pad_token == "<pad>" and model.config.pad_token_id == 0
