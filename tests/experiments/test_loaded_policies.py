"""Evaluation loads what training leaves: adapters merged into their model, padding that the model
knows."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from experiments.alignment.models import load_policy
from llm.benchmarks import harness
from tests.llm.models import tiny_gpt2, word_tokenizer


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A folder of an adapter whose tokenizer has a padding token too many, and the logits of model
    and adapter."""
    tokenizer = word_tokenizer()
    tiny_gpt2(vocabulary=len(tokenizer)).save_pretrained(tmp_path / "base")
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.add_special_tokens({"pad_token": "<|padding|>"})
    tokenizer.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        return tmp_path / "adapter", model.eval()(torch.arange(8)[None]).logits


@pytest.mark.filterwarnings("ignore:the padding token")
def test_both_evaluations_read_an_adapter(adapter: tuple[Path, torch.Tensor]) -> None:
    folder, wanted = adapter
    for model, tokenizer in (
        load_policy(str(folder), trust_remote_code=False),
        harness._load(str(folder), None, "float32", False),
    ):
        with torch.no_grad():
            torch.testing.assert_close(
                model.cpu()(torch.arange(8)[None]).logits, wanted, atol=1e-4, rtol=1e-4
            )
        assert tokenizer.pad_token == "<eos>"
