"""What `test_distributed` runs on each rank, and in one process to compare with.

python -m torch.distributed.run --nproc-per-node 2 -m tests.llm.distributed_worker FOLDER; the first
rank saves there what it found under each wrapper, ddp.pt and fsdp.pt.
"""

import gc
import math
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.utils import logging

from llm.data.tokens import PreferenceCollator
from llm.objectives import ObjectiveParameters
from llm.trainer import PreferenceTrainer
from tests import jitter
from tests.llm.models import tiny_gpt2, tiny_llama
from tests.llm.training import arguments, random_pairs, random_singles

ROWS = 12
OBJECTIVES: dict[str, ObjectiveParameters] = {
    "dpo": ObjectiveParameters(),
    "dpo and sft": ObjectiveParameters(sft_weight=0.7),
    "kldpo tau": ObjectiveParameters("kldpo", tau=0.1),
    "kldpo rho": ObjectiveParameters("kldpo", rho=0.3),
    "aot": ObjectiveParameters("aot"),
    "aot_unpaired": ObjectiveParameters("aot_unpaired"),  # of single responses
    "dr_dpo": ObjectiveParameters("dr_dpo", b=0.3),
    "kto": ObjectiveParameters("kto"),
    "group_dro": ObjectiveParameters("group_dro", group_step=0.7),
    "wdpo adversarial": ObjectiveParameters("wdpo", rho=0.2, wdpo_mode="adversarial"),
    "wdpo finite_difference": ObjectiveParameters(
        "wdpo", rho=0.2, wdpo_mode="finite_difference", fd_epsilon=1e-5
    ),
    "wdpo exact": ObjectiveParameters("wdpo", rho=0.2, wdpo_mode="exact"),
    "wdpo released": ObjectiveParameters("wdpo", rho=0.2, released=True),
}
DOUBLE_BACKWARD = ("wdpo exact", "wdpo released")
ONE_OF_EACH_STEP = (
    "dpo",
    "kldpo tau",
    "kto",
    "group_dro",
    "wdpo adversarial",
    "wdpo finite_difference",
    "wdpo exact",
)


def allow_fsdp_on_cpu() -> None:
    """Accelerate takes FSDP for GPUs only; FSDP2 itself runs on CPUs. Nothing but this choice is
    changed."""
    original = AcceleratorState.__init__

    def patched(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **others: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **others)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = patched


def whole(x: Any) -> Tensor:
    """A parameter, or a gradient, of which each rank may hold a shard."""
    x = x.detach()
    return (x.full_tensor() if hasattr(x, "full_tensor") else x).clone()


class FirstGradient(TrainerCallback):
    """The gradient at the first optimizer step."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any
    ) -> None:
        assert model is not None
        self.found = self.found or {n: whole(p.grad) for n, p in model.named_parameters()}


def trainer_of(
    name: str, data: Dataset, out: Path, settings: dict[str, Any], *, llama: bool = False
) -> PreferenceTrainer:
    return PreferenceTrainer(
        tiny_llama() if llama else tiny_gpt2().double(),
        arguments(out, **settings),
        OBJECTIVES[name],
        train_dataset=data,
        eval_dataset=data.select(range(7)),  # not a multiple of the rows that two ranks see at once
        data_collator=PreferenceCollator(0),
        callbacks=[FirstGradient()],
    )


def cut(ranks: int, accumulation: int) -> dict[str, int]:
    """The same effective batch of all rows."""
    return {
        "per_device_train_batch_size": ROWS // ranks // accumulation,
        "gradient_accumulation_steps": accumulation,
    }


def one_step(
    name: str, out: Path, settings: dict[str, Any], *, llama: bool = False
) -> dict[str, Any]:
    """Gradient, logged numbers and evaluation of a step that changes nothing."""
    single = name in ("kto", "aot_unpaired")
    data = (
        random_singles(ROWS, weights=True) if single else random_pairs(ROWS, weights=True, groups=3)
    )
    trainer = trainer_of(name, data, out, settings | {"per_device_eval_batch_size": 2}, llama=llama)
    trainer.train()
    gradient = next(
        c for c in trainer.callback_handler.callbacks if isinstance(c, FirstGradient)
    ).found
    kind = [c.__name__ for c in type(trainer.model_wrapped).__mro__]
    return {
        "kind": kind,
        "gradient": gradient,
        "logged": trainer.state.log_history[0],
        "evaluated": trainer.evaluate(),
    }


def short_training(name: str, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Parameters and logged objectives of six steps of AdamW over two epochs, each with an
    incomplete last step."""
    adam = {
        "max_steps": 6,
        "learning_rate": 1e-2,
        "adam_epsilon": 1e-4,
        "max_grad_norm": 1.0,
        "logging_steps": 2,
    }
    trainer = trainer_of(
        name, random_pairs(2 * ROWS + 6, weights=True, groups=3), out, settings | adam
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "parameters": {n: whole(p) for n, p in trainer.model.named_parameters()},
        "losses": losses,
    }


def bad_row(out: Path, settings: dict[str, Any]) -> str:
    """What happens where one rank alone sees that its loss is not a number."""
    data = random_pairs(ROWS)
    reference = data["ref_chosen_logps"][:-1] + [math.nan]
    data = data.remove_columns("ref_chosen_logps").add_column("ref_chosen_logps", reference)
    try:
        trainer_of("dpo", data, out, settings).train()
    except FloatingPointError as error:
        return str(error)
    return "trained"


def everything(out: Path, wrapper: str | None, ranks: int) -> dict[str, Any]:
    """Everything that is compared."""
    common: dict[str, Any] = (
        {"fsdp": True, "fsdp_config": {"version": 2}} if wrapper == "fsdp" else {}
    )
    found: dict[str, Any] = {}
    for accumulation in (1, 2) if ranks > 1 else (1,):
        settings = common | cut(ranks, accumulation)
        for name in OBJECTIVES:
            if wrapper == "fsdp" and name in DOUBLE_BACKWARD:
                continue
            if accumulation == 1 < ranks and name not in ONE_OF_EACH_STEP:
                continue
            found[f"{name}, {accumulation}"] = one_step(name, out, settings)
    found["llama"] = one_step(
        "kldpo tau", out, common | cut(ranks, 2 if ranks > 1 else 1), llama=True
    )
    for name in ("kldpo tau", "group_dro"):
        found[f"training, {name}"] = short_training(
            name, out, common | cut(ranks, 2 if ranks > 1 else 1)
        )
    if ranks > 1:
        found["bad row"] = bad_row(out, common | cut(ranks, 1))
    if wrapper == "fsdp":
        try:
            one_step("wdpo exact", out, common | cut(ranks, 1))
        except ValueError as error:
            found["refused"] = str(error)
    return found


if __name__ == "__main__":
    jitter.as_in_the_test()
    logging.set_verbosity_error()
    gc.collect()
    gc.freeze()  # see `conftest`
    for wrapper in ("ddp", "fsdp"):
        if wrapper == "fsdp":
            allow_fsdp_on_cpu()
            AcceleratorState._reset_state()  # which has settled on DDP; the processes stay joined
        found = everything(Path(sys.argv[1]), wrapper, 2)
        said: list[Any] = [None, None]
        torch.distributed.all_gather_object(said, found["bad row"])
        found["bad row"] = said
        if torch.distributed.get_rank() == 0:
            torch.save(found, Path(sys.argv[1]) / f"{wrapper}.pt")
    torch.distributed.destroy_process_group()
