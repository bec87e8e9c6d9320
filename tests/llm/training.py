"""What the tests of training share: a small preference data set in tokens, and the gradient of one
step of the trainer."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback

from llm.arguments import PreferenceArguments
from llm.data.tokens import PreferenceCollator
from llm.objectives import ObjectiveParameters
from llm.trainer import PreferenceTrainer
from tests.jitter import order

VOCABULARY = 64


def random_pairs(
    count: int,
    seed: int = 0,
    *,
    weights: bool = False,
    groups: int = 0,
    rewards: bool = False,
    shift: float = 0.0,
    shuffled: bool = True,
) -> Dataset:
    """Pairs of random tokens of random lengths, with random reference log-probabilities and
    weights."""
    g = torch.Generator().manual_seed(seed)

    def tokens(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (), generator=g))
        return torch.randint(3, VOCABULARY, (length,), generator=g).tolist()

    rows: dict[str, list] = {
        "prompt_ids": [tokens(2, 6) for _ in range(count)],
        "chosen_ids": [tokens(1, 8) for _ in range(count)],
        "rejected_ids": [tokens(1, 8) for _ in range(count)],
        "index": list(range(count)),
        "ref_chosen_logps": (-20 + 5 * torch.randn(count, generator=g) + shift).tolist(),
        "ref_rejected_logps": (-20 + 5 * torch.randn(count, generator=g)).tolist(),
    }
    if weights:
        rows["weight"] = (torch.rand(count, generator=g) + 0.1).tolist()
    if groups:
        rows["group"] = torch.randint(groups, (count,), generator=g).tolist()
    if rewards:
        for name in ("chosen_reward", "rejected_reward"):
            rows[name] = torch.randn(count, generator=g).tolist()
    k = order(count) if shuffled else range(count)
    rows = {
        name: values if name == "index" else [values[i] for i in k] for name, values in rows.items()
    }
    return Dataset.from_dict(rows)


def random_singles(count: int, seed: int = 0, *, weights: bool = False) -> Dataset:
    """Unpaired responses of random tokens, with the completion of the next row as mismatched
    one."""
    pairs = random_pairs(
        count, seed, weights=weights, shuffled=False
    )  # with labels and mismatches they are no rows of their own
    g = torch.Generator().manual_seed(seed + 1)
    completion = pairs["chosen_ids"]
    rows: dict[str, Any] = {
        "prompt_ids": pairs["prompt_ids"],
        "completion_ids": completion,
        "label": (torch.rand(count, generator=g) < 0.5).tolist(),
        "kl_completion_ids": completion[1:] + completion[:1],
        "index": list(range(count)),
        "ref_logps": pairs["ref_chosen_logps"],
        "ref_kl_logps": (-30 + 3 * torch.randn(count, generator=g)).tolist(),
    }
    if weights:
        rows["weight"] = pairs["weight"]
    return Dataset.from_dict(rows)


def arguments(out: Path, **others: Any) -> PreferenceArguments:
    """Arguments for one process, on the CPU unless `use_cpu` is false, without shuffling."""
    defaults: dict[str, Any] = {
        "output_dir": str(out),
        "use_cpu": True,
        "report_to": [],
        "max_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
    }
    return PreferenceArguments(**(defaults | others))


class _Gradients(TrainerCallback):
    """Keeps the gradients at the first optimizer step."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any
    ) -> None:
        assert model is not None
        if not self.found:
            self.found = {
                n: p.grad.detach().cpu().clone()
                for n, p in model.named_parameters()
                if p.grad is not None
            }


def step_gradient(
    model: nn.Module,
    data: Dataset,
    objective: ObjectiveParameters,
    out: Path,
    *,
    micro: int,
    **others: Any,
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """The parameter gradient of one step over all rows in micro-batches of so many, and what was
    logged."""
    keep = _Gradients()
    accumulation = -(-len(data) // micro)
    trainer = PreferenceTrainer(
        model,
        arguments(
            out,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            **others,
        ),
        objective,
        train_dataset=data,
        data_collator=PreferenceCollator(0),
        callbacks=[keep],
    )
    trainer.train()
    return keep.found, trainer.state.log_history


def one_batch(data: Dataset) -> dict[str, Tensor]:
    """All rows as one batch."""
    return PreferenceCollator(0)(list(data))


def all_logps(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Log-probabilities through full logits and a log-softmax over the whole vocabulary,
    (rows,)."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[
        :, :-1
    ]
    tokens = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    return (tokens * batch["completion_mask"][:, 1:]).sum(1)


def relative_error(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Euclidean distance of two gradients relative to the norm of the second."""
    assert found.keys() == truth.keys()
    difference = torch.cat([(found[n] - truth[n]).flatten() for n in truth])
    return float(difference.norm() / torch.cat([t.flatten() for t in truth.values()]).norm())
