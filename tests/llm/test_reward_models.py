"""Reward models against the classifier run by hand on each text alone, and what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from llm.data.chat import as_messages, text, token_rows
from llm.data.corpus import EMOTIONS
from llm.judges.emotion import emotion_probabilities, reward_model
from llm.judges.load import RewardModel, load_reward_model
from llm.models import word_tokenizer as words_only
from tests.llm.models import WORDS, tiny_gpt2, word_tokenizer
from tests.llm.precision import ROUNDINGS, UNIT

PROMPTS = [
    "the cat",
    "a dog in the sun",
    "the bird is very",
    "the moon",
    "blue",
    "the happy cat sees",
]
ANSWERS = [
    "is happy",
    "was",
    "sad and angry",
    "sees the very green bird on the moon",
    "sun",
    "a dog",
]
ROUNDED = (
    ROUNDINGS * UNIT
)  # of numbers of order one: probabilities, and logits from states of unit size
TEXTS = [f"{prompt} {answer}" for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]


def save_judge(folder: Path, seed: int = 0) -> Any:
    """The embedded emotion model, its tokenizer beside it; the head large enough that probabilities
    differ."""
    tokenizer = words_only([" ".join(WORDS)], 100)
    model: Any = reward_model(None, tokenizer, width=32, layers=2, length=32, seed=seed)
    with torch.no_grad():
        model.score.weight.mul_(50)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def save_chat_model(folder: Path, **more: Any) -> Any:
    """A Llama classifier with two labels and a chat tokenizer."""
    tokenizer = word_tokenizer(chat_template=True)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    labels = {"id2label": {0: "helpful", 1: "harmless"}, "label2id": {"helpful": 0, "harmless": 1}}
    settings = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "pad_token_id": 0,
    }
    torch.manual_seed(1)
    model = LlamaForSequenceClassification(LlamaConfig(**(settings | sizes | labels | more))).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def by_hand(model: Any, rows: list[list[int]]) -> np.ndarray:
    """The head on the hidden state of the last token, each text alone."""
    backbone = getattr(model, model.base_model_prefix)
    with torch.no_grad():
        states = [backbone(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
        return torch.stack([model.score.weight @ state for state in states]).double().numpy()


# ------------------------------------------------------------------------------------------- scores
def test_the_embedded_judge_gives_its_probabilities(tmp_path: Path) -> None:
    model = save_judge(tmp_path)
    judge: RewardModel = load_reward_model(str(tmp_path))
    assert judge.names == EMOTIONS
    tokenizer = words_only([" ".join(WORDS)], 100)
    rows = tokenizer(TEXTS)["input_ids"]
    found = judge.score(PROMPTS, ANSWERS)
    assert found.dtype == np.float64
    np.testing.assert_allclose(
        found,
        emotion_probabilities(model, rows, tokenizer.pad_token_id),
        rtol=ROUNDED,
        atol=ROUNDED,
    )
    np.testing.assert_allclose(
        found, 1 / (1 + np.exp(-by_hand(model, rows))), rtol=ROUNDED, atol=ROUNDED
    )
    assert np.ptp(found, axis=0).min() > 0.01


def test_other_classifiers_give_their_logits(tmp_path: Path) -> None:
    model = save_chat_model(tmp_path)
    rewards = load_reward_model(str(tmp_path))
    assert rewards.names == ("helpful", "harmless")
    ids = word_tokenizer(chat_template=True)
    conversations = [
        f"<|user|> {prompt} <eos> <|assistant|> {answer} <eos>"
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
    ]
    truth = by_hand(model, ids(conversations)["input_ids"])
    np.testing.assert_allclose(rewards.score(PROMPTS, ANSWERS), truth, rtol=ROUNDED, atol=ROUNDED)
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    np.testing.assert_allclose(rewards.score(messages, ANSWERS), truth, rtol=ROUNDED, atol=ROUNDED)


@pytest.mark.parametrize("save", [save_judge, save_chat_model])
def test_rewards_do_not_depend_on_the_batch(tmp_path: Path, save: Any) -> None:
    save(tmp_path)
    alone, *others = (
        load_reward_model(str(tmp_path), batch_size=size).score(PROMPTS, ANSWERS)
        for size in (1, 2, 4, 100)
    )
    for found in others:
        np.testing.assert_allclose(found, alone, rtol=ROUNDED, atol=ROUNDED)
    few = load_reward_model(str(tmp_path)).score(PROMPTS[3:5], ANSWERS[3:5])
    np.testing.assert_allclose(few, alone[3:5], rtol=ROUNDED, atol=ROUNDED)


def test_without_a_padding_token_texts_are_scored_alone(tmp_path: Path) -> None:
    """Where the end of sequence would also be the padding, the last token of a text could not be
    told from it."""
    model = save_chat_model(tmp_path, pad_token_id=None)
    tokenizer = word_tokenizer(chat_template=True, pad=False)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    rows = token_rows(tokenizer, PROMPTS, ANSWERS)
    assert all(row[-1] == tokenizer.eos_token_id for row in rows)
    np.testing.assert_allclose(
        load_reward_model(str(tmp_path)).score(PROMPTS, ANSWERS),
        by_hand(model, rows),
        rtol=ROUNDED,
        atol=ROUNDED,
    )


def test_the_padding_token_of_the_tokenizer_is_used_where_the_config_has_none(
    tmp_path: Path,
) -> None:
    model = save_chat_model(tmp_path, pad_token_id=None)
    rows = token_rows(word_tokenizer(chat_template=True), PROMPTS, ANSWERS)
    np.testing.assert_allclose(
        load_reward_model(str(tmp_path)).score(PROMPTS, ANSWERS),
        by_hand(model, rows),
        rtol=ROUNDED,
        atol=ROUNDED,
    )


def test_bfloat16_is_near_float32(tmp_path: Path) -> None:
    save_judge(tmp_path)
    full, half = (
        load_reward_model(str(tmp_path), dtype=dtype).score(PROMPTS, ANSWERS)
        for dtype in ("float32", "bfloat16")
    )
    assert 0 < np.abs(half - full).max() < 0.05


def test_no_texts(tmp_path: Path) -> None:
    save_judge(tmp_path)
    assert load_reward_model(str(tmp_path)).score([], []).shape == (0, 5)


# -------------------------------------------------------------------------------------------- texts
def test_texts_of_prompts() -> None:
    chat, plain = word_tokenizer(chat_template=True), word_tokenizer()
    assert as_messages("the cat") == [{"role": "user", "content": "the cat"}]
    assert text(plain, "the cat ", " is") == "the cat is"
    assert text(plain, "the cat", "") == text(plain, "the cat") == "the cat"
    assert text(chat, "the cat") == "<|user|> the cat <eos> <|assistant|> "
    talk = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    assert text(chat, talk, "c") == "<|system|> a <eos> <|user|> b <eos> <|assistant|> c <eos> "
    assert token_rows(plain, ["the cat"], ["is"]) == [plain("the cat is")["input_ids"]]
    assert token_rows(plain, []) == []


def test_texts_that_cannot_be_made() -> None:
    with pytest.raises(
        ValueError, match="the tokenizer has no chat template: give them as strings"
    ):
        text(word_tokenizer(), [{"role": "user", "content": "a"}])
    with pytest.raises(ValueError, match="there are 2 prompts and 1 completions"):
        token_rows(word_tokenizer(), ["a", "b"], ["c"])
    picky = word_tokenizer()
    picky.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(
        ValueError, match=r"refuses a conversation with the roles system \(no system role\)"
    ):
        text(picky, [{"role": "system", "content": "a"}])


# ----------------------------------------------------------------------------------------- refusals
def test_long_and_empty_texts_are_refused(tmp_path: Path) -> None:
    save_judge(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"2 texts of 6 have more than 6 tokens \(the longest has 10, the first is number 2\)",
    ):
        load_reward_model(str(tmp_path), max_length=6).score(PROMPTS, ANSWERS)
    with pytest.raises(ValueError, match="1 texts of 1 have more than 32 tokens"):
        load_reward_model(str(tmp_path)).score(["cat " * 40], ["dog"])
    with pytest.raises(ValueError, match="max_length must be between 1 and 32 tokens, got 33"):
        load_reward_model(str(tmp_path), max_length=33)
    with pytest.raises(ValueError, match=r"1 texts of 2 have no token \(the first is number 1\)"):
        load_reward_model(str(tmp_path)).score(["the", ""], ["cat", ""])


def test_remote_code_is_refused_unless_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    monkeypatch.setattr("sys.path", [*sys.path])
    save_chat_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "modeling.Halved"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling.py").write_text(
        "from transformers import LlamaForSequenceClassification\n\n\n"
        "class Halved(LlamaForSequenceClassification):\n"
        "    def forward(self, *args, **kwargs):\n"
        "        output = super().forward(*args, **kwargs)\n"
        "        output.logits = output.logits / 2\n"
        "        return output\n"
    )
    with pytest.raises(
        ValueError,
        match=(
            r"comes with Python code of its own \(modeling.Halved\).*allow it with"
            r" trust_remote_code"
        ),
    ):
        load_reward_model(str(tmp_path))
    halved = load_reward_model(str(tmp_path), trust_remote_code=True).score(PROMPTS, ANSWERS)
    del config["auto_map"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    np.testing.assert_allclose(
        2 * halved, load_reward_model(str(tmp_path)).score(PROMPTS, ANSWERS), atol=ROUNDED
    )


def test_models_that_are_no_reward_models_are_refused(tmp_path: Path) -> None:
    tiny_gpt2().save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"not those of a GPT2ForSequenceClassification \(1 missing keys, as score.weight\)",
    ):
        load_reward_model(str(tmp_path))
    with pytest.raises(
        ValueError,
        match=r"cannot load the reward model .*missing.*Give the folder of a downloaded snapshot",
    ):
        load_reward_model(str(tmp_path / "missing"))
    (tmp_path / "bare").mkdir()
    GPT2ForSequenceClassification(GPT2Config(n_layer=1, n_embd=8, n_head=2)).save_pretrained(
        tmp_path / "bare"
    )
    with pytest.raises(ValueError, match="there is no tokenizer beside the reward model"):
        load_reward_model(str(tmp_path / "bare"))
    with pytest.raises(
        ValueError, match="unknown dtype 'float16'; choose one of float32, bfloat16"
    ):
        load_reward_model(str(tmp_path), dtype="float16")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        load_reward_model(str(tmp_path), batch_size=0)
