"""Sequences in one row without padding: the same numbers as padded, or a refusal."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM

from llm import packing
from llm.data.tokens import PreferenceCollator
from llm.logprobs import pack_sequences, sequence_logprobs
from llm.memory import estimate
from llm.objectives import ObjectiveParameters
from llm.train import main
from llm.trainer import PreferenceTrainer
from tests.llm.models import WORDS, tiny_gpt2, tiny_llama, word_tokenizer
from tests.llm.test_gradients import adapted
from tests.llm.test_memory import kept, model_of
from tests.llm.training import (
    all_logps,
    arguments,
    one_batch,
    random_pairs,
    random_singles,
    relative_error,
    step_gradient,
)


def with_window(size: int) -> nn.Module:
    """A Mistral of random weights whose tokens see `size` tokens back."""
    config = MistralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=size,
        max_position_embeddings=128, initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MistralForCausalLM(config).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": tiny_gpt2,
    "llama": tiny_llama,
    "sliding window": lambda: with_window(3),
    "lora": lambda: adapted(tiny_llama(), ["q_proj", "v_proj"]),
}


def values_and_gradients(
    model: nn.Module, batch: dict[str, Tensor], **how: bool
) -> tuple[Tensor, Tensor]:
    found = (
        sequence_logprobs(model, batch, **how) if how else all_logps(model, batch)
    )  # through full logits, where nothing is said
    weights = torch.linspace(-1, 1, len(found), dtype=found.dtype)
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad((weights * found).sum(), trained)
    return found.detach(), torch.cat([g.flatten() for g in gradients])


@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_those_of_full_logits(name: str) -> None:
    batch = one_batch(random_pairs(6))
    single = MODELS[name]()
    double = copy.deepcopy(single).double()
    truth = values_and_gradients(double, batch)
    # normalisations of Llama and Mistral are float32 whatever the weights are
    for model, tight in ((double, 1e-12 if name == "gpt2" else 1e-6), (single, 1e-5)):
        pack_sequences(model)
        for fused in (True, False):
            found = values_and_gradients(model, batch, fused=fused, packed=True)
            for x, y in zip(found, truth, strict=True):
                assert (x - y).norm() < tight * y.norm()


def test_a_sequence_does_not_see_its_neighbours() -> None:
    """Alone, in any order and behind others, to the last bit but of the order of sums."""
    model, batch = tiny_gpt2().double(), one_batch(random_pairs(4))
    pack_sequences(model)
    there = {key: x for key, x in batch.items() if x.ndim == 2}
    found = sequence_logprobs(model, there, packed=True)
    order = torch.tensor([3, 0, 7, 2, 6, 1, 5, 4])
    turned = sequence_logprobs(model, {key: x[order] for key, x in there.items()}, packed=True)
    torch.testing.assert_close(turned, found[order], rtol=1e-13, atol=0)
    for i in range(8):
        alone = sequence_logprobs(model, {k: x[i : i + 1] for k, x in there.items()}, packed=True)
        torch.testing.assert_close(alone[0], found[i], rtol=1e-13, atol=0)


def test_no_token_of_padding_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, seen = tiny_llama(), one_batch(random_pairs(5)), []
    pack_sequences(model)
    monkeypatch.setattr(packing, "sdpa_attention_forward", spy(seen))
    model.get_input_embeddings().register_forward_hook(lambda _m, _i, z: seen.append(z.shape[:2]))
    sequence_logprobs(model, batch, packed=True)
    lengths = batch["attention_mask"].sum(1).tolist()
    assert seen == [(1, sum(lengths)), *lengths, *lengths]  # of two layers


def spy(seen: list[Any]) -> Callable[..., Any]:
    plain = packing.sdpa_attention_forward

    def attention(module: nn.Module, query: Tensor, *rest: Any, **others: Any) -> Any:
        seen.append(query.shape[2])
        assert rest[2] is None  # the mask: causal by itself
        return plain(module, query, *rest, **others)

    return attention


def test_padded_batches_are_as_before() -> None:
    """Also those padded on the left, which generation makes."""
    model = tiny_llama().double()
    ids = torch.tensor([[0, 0, 5, 6, 7], [5, 6, 7, 8, 9]])
    truth = model(ids, attention_mask=(ids > 0).long()).logits
    pack_sequences(model)
    assert torch.equal(model(ids, attention_mask=(ids > 0).long()).logits, truth)


# ------------------------------------------------------------------------------------ the trainer
OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {},
    "dpo and sft": {"objective": "dpo", "sft_weight": 0.7},
    "ipo": {},
    "ld": {"objective": "dpo", "ld_alpha": 0.3},
    "kldpo": {"tau": 0.1},
    "chi2": {"rho": 0.5},
    "group_dro": {"group_step": 0.7},
    "aot": {},
    "kto": {},
    "aot_unpaired": {},
    "exact": {"objective": "wdpo", "rho": 0.2, "wdpo_mode": "exact"},
    "adversarial": {"objective": "wdpo", "rho": 0.2, "wdpo_mode": "adversarial"},
    "finite_difference": {"objective": "wdpo", "rho": 0.2, "wdpo_mode": "finite_difference"},
}


def data_for(name: str, count: int = 7) -> Dataset:
    single = name in ("kto", "aot_unpaired")
    return random_singles(count) if single else random_pairs(count, weights=True, groups=2)


def both_ways(
    name: str, out: Path, model: nn.Module, **settings: Any
) -> list[tuple[dict[str, Tensor], dict[str, float]]]:
    """Gradient and log of a step of seven rows in three micro-batches: padded, and without."""
    p = ObjectiveParameters(**({"objective": name} | OBJECTIVES[name]))
    found = []
    for free in (False, True):
        gradient, history = step_gradient(
            copy.deepcopy(model), data_for(name), p, out, micro=3, padding_free=free, **settings
        )
        found.append((gradient, history[0]))
    return found


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_kind_of_objective(name: str, tmp_path: Path) -> None:
    (truth, told), (found, log) = both_ways(name, tmp_path, tiny_gpt2().double())
    # the finite difference divides its rounding by a step of 3e-4
    assert relative_error(found, truth) < (1e-7 if name == "finite_difference" else 1e-10)
    for key, value in told.items():
        assert log[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key


@pytest.mark.parametrize(
    ("name", "lora"), [("kldpo", True), ("exact", False), ("adversarial", True)]
)
def test_checkpointing_and_adapters_in_single_precision(
    name: str, lora: bool, tmp_path: Path
) -> None:
    model = adapted(tiny_llama(), ["q_proj", "v_proj"]) if lora else tiny_llama()
    (truth, _), (found, _) = both_ways(name, tmp_path, model, activation_checkpointing=True)
    assert relative_error(found, truth) < 1e-5


def test_a_run_with_evaluation_and_reference_is_the_padded_one_and_resumes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def text() -> str:
        return " ".join(rng.choice(WORDS, size=rng.integers(1, 12)))

    rows = [
        {"prompt": text() + " ", "chosen": text(), "rejected": text() + " cat"} for _ in range(12)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = word_tokenizer()
    tiny_gpt2(vocabulary=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    command = (
        f"--model {tmp_path}/model --data {tmp_path}/pairs.jsonl --eval_data"
        f" {tmp_path}/pairs.jsonl --run_on cpu --objective kldpo --tau 0.5 --max_steps 4"
        " --save_steps 2 --per_device_train_batch_size 3 --gradient_accumulation_steps 2"
        " --learning_rate 1e-3 --kl_prompts 2 --kl_max_new_tokens 4 --strings raw"
        " --disable_tqdm true --report_to none --optim sgd"
    ).split()

    def trained(name: str, *more: str) -> Path:
        main([*command, "--output_dir", str(tmp_path / name), *more])
        return tmp_path / name

    padded = trained("padded")
    free = trained("free", "--padding_free", "True")
    for name in (
        "reference-train.safetensors", "reference-train-eval.safetensors", "model.safetensors",
    ):  # fmt: skip
        truth = load_file(padded / name)
        for key, value in load_file(free / name).items():
            torch.testing.assert_close(value, truth[key], rtol=1e-5, atol=1e-5)
    records = [json.loads((out / "training.json").read_text()) for out in (padded, free)]
    truth, found = (record["metrics"] for record in records)
    for key in ("eval_loss", "eval_rewards/margins", "eval_kl_to_reference"):
        assert found[key] == pytest.approx(truth[key], rel=1e-4, abs=1e-5), key
    assert "attn_implementation" not in (free / "config.json").read_text()

    whole = load_file(free / "model.safetensors")  # as if killed after the second step
    del records[1]["metrics"]
    (free / "training.json").write_text(json.dumps(records[1]))
    (free / "model.safetensors").unlink()
    shutil.rmtree(free / "checkpoint-4")
    again = load_file(trained("free", "--padding_free", "True") / "model.safetensors")
    assert all(torch.equal(again[key], whole[key]) for key in whole)


# ---------------------------------------------------------------------------------------- refusals
def test_a_model_with_a_state_is_refused() -> None:
    config = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ValueError, match="padding_free"):
        pack_sequences(MambaForCausalLM(config))


class HandsOn(nn.Module):
    """A model with sdpa whose tokens also get the embedding of the token before, as of a
    convolution."""

    def __init__(self, size: float, inner: Any = None) -> None:
        super().__init__()
        self.inner, self.size = inner or tiny_llama(), size
        self.config, self.set_attn_implementation = (
            self.inner.config,
            self.inner.set_attn_implementation,
        )

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def forward(self, input_ids: Tensor, **others: Any) -> Any:
        z = self.get_input_embeddings()(input_ids)
        before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1)
        return self.inner(inputs_embeds=z + self.size * before, **others)


def test_what_is_handed_from_token_to_token_is_seen_however_small() -> None:
    pack_sequences(HandsOn(0.0))
    for size in (1.0, 1e-9):
        with pytest.raises(
            ValueError, match="the second of two sequences in one row sees the first"
        ):
            pack_sequences(HandsOn(size))


def test_positions_that_go_on_are_seen() -> None:
    class GoesOn(HandsOn):
        def forward(self, input_ids: Tensor, position_ids: Any = None, **others: Any) -> Any:
            return self.inner(input_ids=input_ids, **others)

    with pytest.raises(ValueError, match="their positions go on"):
        pack_sequences(GoesOn(0.0, tiny_gpt2()))
    pack_sequences(GoesOn(0.0))  # rotary positions: only their differences count


def test_other_attention_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model's is eager\. Set --attention sdpa"):
        PreferenceTrainer(
            model_of("eager"),
            arguments(tmp_path, padding_free=True),
            train_dataset=random_pairs(2),
            data_collator=PreferenceCollator(0),
        )


# ------------------------------------------------------------------------------------------ memory
def test_the_estimate_is_of_the_tokens_of_the_largest_micro_batch(tmp_path: Path) -> None:
    data = random_pairs(9)
    trainer = PreferenceTrainer(
        tiny_gpt2(),
        arguments(tmp_path, padding_free=True, per_device_train_batch_size=2),
        train_dataset=data,
        data_collator=PreferenceCollator(0),
    )
    pairs = sorted(
        2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
        for row in data
    )
    found = trainer.memory()
    assert found is not None and found.rows == 4
    assert found.rows * (found.tokens - 1) < pairs[-1] + pairs[-2] <= found.rows * found.tokens


def test_what_is_kept_for_the_backward_pass() -> None:
    model = model_of()
    plain = kept(model, 4, 200)
    pack_sequences(model)
    found = estimate(model, rows=4, tokens=200, optimizer="sgd", packed=True, compare_exact=True)
    assert found.activations == pytest.approx(plain, rel=0.15)
    assert found.exact is not None and found.exact > 2 * found.activations
