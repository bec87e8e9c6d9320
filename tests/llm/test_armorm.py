"""ArmoRM from a small random snapshot with the files of the published one, against its head written
out in numpy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from llm.judges.armorm import ANSWER, answer_position
from llm.judges.load import ARMORM_OBJECTIVES, load_reward_model
from tests.llm.models import WORDS

WIDTH, HIDDEN = 16, 12
# the config.json of RLHFlow/ArmoRM-Llama3-8B-v0.1 with smaller sizes
CONFIG = {
    "auto_map": {
        "AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"
    },
    "architectures": ["LlamaForRewardModelWithGating"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "id2label": {"0": "LABEL_0"},
    "initializer_range": 0.02,
    "intermediate_size": 32,
    "label2id": {"LABEL_0": 0},
    "max_position_embeddings": 64,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 128256,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.40.0",
    "use_cache": False,
    "vocab_size": 128257,
    "num_objectives": 19,
    "gating_temperature": 10,
    "gating_hidden_dim": HIDDEN,
    "gating_n_hidden": 3,
}
TEMPLATE = (  # that of Llama 3
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] +"
    " '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0"
    " %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
)
PROMPTS: list[Any] = [
    "the cat",
    [
        {"role": "user", "content": "a dog"},
        {"role": "assistant", "content": "is"},
        {"role": "user", "content": "very happy"},
    ],
    "the moon and the sun",
]
ANSWERS = ["is happy", "sees a bird", "the red cat likes the angry dog"]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, with the tokens of Llama 3 that matter at their numbers."""
    special = {
        "<|begin_of_text|>": 128000,
        "<|start_header_id|>": 128006,
        "<|end_header_id|>": 128007,
        "<|eot_id|>": 128009,
        "[PAD]": 128256,
    }
    words = {word: k for k, word in enumerate(["<unk>", *WORDS])}
    backend = Tokenizer(
        WordLevel(
            words | special | {"assistant": 78191, "user": 882, "\n\n": 271}, unk_token="<unk>"
        )
    )
    backend.pre_tokenizer = Split(" ", "removed")
    start = (  # as in Llama 3, written by the tokenizer and by the template: it must not come twice
        "<|begin_of_text|>"
    )
    backend.post_processor = TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, special[start])]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin_of_text|>", pad_token="[PAD]"
    )
    wrapped.add_special_tokens({"additional_special_tokens": list(special)[1:4]})
    wrapped.add_tokens(["\n\n"])
    wrapped.chat_template = TEMPLATE
    return wrapped


def random_weights() -> dict[str, torch.Tensor]:
    """Weights under the names of the published files."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{key: CONFIG[key] for key in CONFIG if key not in ("auto_map", "architectures")}
    )
    weights = {f"model.{key}": value for key, value in LlamaModel(config).state_dict().items()}
    weights |= {
        key: 0.6 * torch.randn(value.shape) for key, value in weights.items() if "norm" not in key
    }
    sizes = [(HIDDEN, WIDTH), (HIDDEN, HIDDEN), (HIDDEN, HIDDEN), (19, HIDDEN)]
    for k, (rows, columns) in enumerate(sizes):
        weights |= {
            f"gating.layers.{k}.weight": torch.randn(rows, columns),
            f"gating.layers.{k}.bias": torch.randn(rows),
        }
    weights["gating.layers.3.weight"] *= (
        5  # so that the gate depends on the prompt in spite of the temperature
    )
    weights["gating.logit_scale"] = torch.tensor([1.7])
    weights["regression_layer.weight"] = torch.randn(19, WIDTH)
    weights["reward_transform_matrix"] = torch.eye(19) + 0.3 * torch.randn(19, 19)
    return weights


def write_snapshot(
    folder: Path, weights: dict[str, torch.Tensor], *, shards: int = 1, **config: Any
) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    tokenizer().save_pretrained(folder)
    weights = {key: value.contiguous() for key, value in weights.items()}
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        names = [f"model-{k + 1:05d}-of-{shards:05d}.safetensors" for k in range(shards)]
        place = {key: names[k % shards] for k, key in enumerate(sorted(weights))}
        for name in names:
            part = {key: value for key, value in weights.items() if place[key] == name}
            save_file(part, folder / name, metadata={"format": "pt"})
        size = sum(value.nbytes for value in weights.values())
        index = {"metadata": {"total_size": size}, "weight_map": place}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(folder)


def head_in_numpy(
    weights: dict[str, torch.Tensor], rows: list[list[int]]
) -> tuple[NDArray, NDArray]:
    """Rewards (n, 19) and scores (n,) from the hidden states of transformers' Llama, each text
    alone."""
    config = LlamaConfig(
        **{key: CONFIG[key] for key in CONFIG if key not in ("auto_map", "architectures")}
    )
    backbone = LlamaModel(config).eval()
    backbone.load_state_dict(
        {
            key.removeprefix("model."): value
            for key, value in weights.items()
            if key.startswith("model.")
        }
    )
    w = {
        key: value.double().numpy()
        for key, value in weights.items()
        if not key.startswith("model.")
    }
    rewards, scores = [], []
    for row in rows:
        with torch.no_grad():
            states = backbone(input_ids=torch.tensor([row])).last_hidden_state[0].double().numpy()
        reward = w["regression_layer.weight"] @ states[-1]
        header = max(
            j for j in range(len(row)) if row[j : j + 5] == [128009, 128006, 78191, 128007, 271]
        )
        x = states[header]
        for k in range(3):
            x = np.maximum(w[f"gating.layers.{k}.weight"] @ x + w[f"gating.layers.{k}.bias"], 0)
        x = (w["gating.layers.3.weight"] @ x + w["gating.layers.3.bias"]) / 10
        gate = np.exp(x) / np.exp(x).sum() * w["gating.logit_scale"][0]
        rewards.append(reward)
        # the model card's second way: coefficients of the rewards that were not transformed
        scores.append(reward @ (w["reward_transform_matrix"] @ gate))
    return np.array(rewards), np.array(scores)


def conversation_tokens() -> list[list[int]]:
    """The conversations of PROMPTS and ANSWERS as the template of Llama 3 writes them, put together
    token by token."""
    word = {name: k for k, name in enumerate(["<unk>", *WORDS])}
    role = {"user": 882, "assistant": 78191}

    def turn(who: str, content: str) -> list[int]:
        return [128006, role[who], 128007, 271, *[word[w] for w in content.split()], 128009]

    rows = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        turns = [
            token for message in messages for token in turn(message["role"], message["content"])
        ]
        rows.append([128000, *turns, *turn("assistant", answer)])
    return rows


@pytest.mark.parametrize("shards", [1, 4])
def test_rewards_and_score(tmp_path: Path, shards: int) -> None:
    weights = random_weights()
    armorm = load_reward_model(write_snapshot(tmp_path, weights, shards=shards))
    assert armorm.names == (*ARMORM_OBJECTIVES, "ArmoRM")
    rewards, scores = head_in_numpy(weights, conversation_tokens())
    found = armorm.score(PROMPTS, ANSWERS)
    assert found.shape == (3, 20)
    np.testing.assert_allclose(found[:, :19], rewards, atol=2e-5)
    np.testing.assert_allclose(found[:, 19], scores, atol=2e-5)
    assert np.ptp(scores) > 0.1
    for size in (1, 2):
        np.testing.assert_allclose(
            load_reward_model(str(tmp_path), batch_size=size).score(PROMPTS, ANSWERS),
            found,
            atol=2e-5,
        )


def test_the_gate_sees_the_prompt_only(tmp_path: Path) -> None:
    """The score of another answer to the same prompt is the same linear function of its rewards."""
    weights = random_weights()
    armorm = load_reward_model(write_snapshot(tmp_path, weights))
    answers = [" ".join(np.random.default_rng(k).choice(WORDS, 6)) for k in range(40)]
    found = armorm.score([PROMPTS[1]] * 40, answers)
    coefficients = np.linalg.lstsq(found[:20, :19], found[:20, 19], rcond=None)[0]
    np.testing.assert_allclose(found[20:, :19] @ coefficients, found[20:, 19], atol=1e-3)
    other = armorm.score([PROMPTS[0]] * 40, answers)
    assert np.abs(other[:, :19] @ coefficients - other[:, 19]).max() > 0.05


def test_the_heads_stay_in_single_precision(tmp_path: Path) -> None:
    weights = random_weights()
    half = load_reward_model(write_snapshot(tmp_path, weights), dtype="bfloat16")
    kept = {
        name: value
        for name, value in half.model.named_parameters()
        if not name.startswith("model.")
    }  # type: ignore[attr-defined]
    assert len(kept) == 11
    for name, value in kept.items():
        torch.testing.assert_close(value.cpu(), weights[name], rtol=0, atol=0)
    rewards, _ = head_in_numpy(weights, conversation_tokens())
    difference = np.abs(half.score(PROMPTS, ANSWERS)[:, :19] - rewards)
    assert 1e-4 < difference.max() < 0.1 * np.abs(rewards).max()


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_other_weights_are_refused(tmp_path: Path, change: str) -> None:
    weights = random_weights()
    if change == "missing":
        del weights["gating.logit_scale"]
    elif change == "unexpected":
        weights["score.weight"] = torch.zeros(1, WIDTH)
    else:
        weights["gating.layers.3.bias"] = torch.zeros(18)
    with pytest.raises(
        (ValueError, RuntimeError),
        match=r"not those of a ArmoRM \(1 (missing|unexpected)|size mismatch|mismatched",
    ):
        load_reward_model(write_snapshot(tmp_path, weights))


def test_another_number_of_objectives_has_no_names(tmp_path: Path) -> None:
    weights = random_weights()
    for key in ("regression_layer.weight", "gating.layers.3.weight", "gating.layers.3.bias"):
        weights[key] = weights[key][:18]
    weights["reward_transform_matrix"] = weights["reward_transform_matrix"][:18, :18]
    with pytest.raises(ValueError, match="has 18 objectives, and the names of the 19"):
        load_reward_model(write_snapshot(tmp_path, weights, num_objectives=18))


def test_the_last_header_counts() -> None:
    row = [1, *ANSWER, 5, 6, *ANSWER, 7]
    assert answer_position(torch.tensor([row, [*ANSWER, *[0] * 9]])).tolist() == [8, 0]
    for bad in ([1, 2, 3, 4, 5, 6], [1, 2]):
        with pytest.raises(
            ValueError, match="1 of 1 texts have no header of an assistant's answer"
        ):
            answer_position(torch.tensor([bad]))


def test_the_snapshot_is_what_it_should_be(tmp_path: Path) -> None:
    """The test's own template and tokenizer, and that weights are read from the files."""
    weights = random_weights()
    write_snapshot(tmp_path, weights)
    messages = [
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "is happy"},
    ]
    assert tokenizer().apply_chat_template(messages, return_dict=False) == conversation_tokens()[0]
    assert set(load_file(tmp_path / "model.safetensors")) == set(weights)
