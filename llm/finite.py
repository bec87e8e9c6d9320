"""A step whose objective or gradient is not a number is stopped before the weights move, and its
batch named."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from transformers import TrainingArguments

from llm.steps import Mean


def stop_if_not_finite(
    step: Mean, rows: list[Tensor], model: nn.Module, args: TrainingArguments, number: int
) -> None:
    """Raise FloatingPointError unless all values of this step and its gradient are finite; to be
    called by every rank.

    The row numbers of this rank's part of the batch are left in a file of `args.output_dir`.
    """
    values = [float(value) for value in step.values]
    finite = step.finite()
    if finite and _gradient_is_finite(model):
        return
    found = (
        f"the objective is {values}"
        if not finite
        else f"the objective is {values}, but its gradient is not finite,"
    )
    if not finite and all(map(torch.isfinite, map(torch.tensor, values))):
        found = "the objective of another rank is not finite"
    path = Path(str(args.output_dir)) / f"not-finite-step{number}-rank{args.process_index}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "step": number,
        "rows": (torch.cat(rows) + 1).tolist(),
        "values": [repr(v) for v in values],
    }
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    raise FloatingPointError(
        f"{found} at step {number}; no weight has been changed by it. The rows of this batch (their"
        f" numbers in the data, from 1) are in {path}. Likely causes: a learning rate that is too"
        f" large ({args.learning_rate:g}), weights of the model that are not finite already, or a"
        " temperature that the dtype does not support. Start again with a smaller learning rate,"
        " in another --output_dir."
    )


def _gradient_is_finite(model: nn.Module) -> bool:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = get_total_norm(gradients)
    return bool(torch.isfinite(norm.full_tensor() if hasattr(norm, "full_tensor") else norm))
