"""Supervised fine-tuning: next-token cross-entropy on texts, and the training loop that the reward
model uses too."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm.generate import Completions, padded
from llm.logprobs import sequence_logprobs
from theory.precision import wide

IGNORED = -100  # label of a position that the cross-entropy leaves out


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: Adam with decoupled weight decay, linear warm-up, then a constant
    learning rate. bf16: weights in float32, what is computed with them in bfloat16."""

    epochs: float
    learning_rate: float
    batch_size: int = 64
    warmup_steps: int = 12
    max_grad_norm: float = 10.0
    weight_decay: float = 0.0
    bf16: bool = False


def tokenize_texts(
    tokenizer: Any, texts: Sequence[str], length: int, *, end: bool = False
) -> list[list[int]]:
    """Token ids of each text, at most `length`, with the end-of-sequence token where it fits if
    `end`."""
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [(row + [tokenizer.eos_token_id] if end else row)[:length] for row in rows]


def fine_tune(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    recipe: Recipe,
    *,
    length: int,
    seed: int,
) -> float:
    """Train the model in place on texts, each with its end-of-sequence token; returns the mean loss
    of the last tenth."""
    examples = [{"ids": row} for row in tokenize_texts(tokenizer, texts, length, end=True)]

    def collate(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        rows = [example["ids"] for example in batch]
        ids, mask = (
            padded(rows, tokenizer.pad_token_id),
            padded([[1] * len(row) for row in rows], 0),
        )
        # the padding token may be the end-of-sequence token, which is to be learned: the mask tells
        # them apart
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": ids.masked_fill(mask == 0, IGNORED),
        }

    return optimise(model, examples, collate, recipe, seed=seed)


def optimise(
    model: nn.Module,
    examples: Sequence[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
    recipe: Recipe,
    *,
    seed: int,
) -> float:
    """Train a model in place on its own loss with `transformers.Trainer`; returns the mean loss of
    the last tenth of steps.

    Runs on a GPU where there is one. The same seed gives the same order of the examples.
    """
    from transformers import Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=recipe.epochs,
            per_device_train_batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=recipe.warmup_steps,
            max_grad_norm=recipe.max_grad_norm,
            weight_decay=recipe.weight_decay,
            bf16=recipe.bf16,
            use_cpu=not torch.accelerator.is_available(),  # else bf16 is refused there
            logging_steps=0.1,  # of all steps
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=seed,
        )
        trainer = Trainer(
            model=model, args=arguments, train_dataset=examples, data_collator=collate
        )
        trainer.remove_callback(_printer())
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(losses[-1])


def _printer() -> Any:
    from transformers import PrinterCallback

    return PrinterCallback


@torch.no_grad()
def heldout_loss(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], *, length: int, batch_size: int = 256
) -> float:
    """Mean cross-entropy of texts, in nats per token; the first token, which nothing predicts, is
    not counted."""
    model.eval()
    device = next(model.parameters()).device
    rows = [row for row in tokenize_texts(tokenizer, texts, length, end=True) if len(row) > 1]
    total, count = 0.0, 0
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        batch = Completions([row[:1] for row in part], [row[1:] for row in part]).batch(
            range(len(part)), tokenizer.pad_token_id
        )
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        total += float(wide(sequence_logprobs(model, batch, fused=False)).sum())
        count += int(batch["completion_mask"].sum())
    return -total / count
