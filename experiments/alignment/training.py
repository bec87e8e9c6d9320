"""Policies: each is one `prefdro train`, with its own folder, from the same start."""

import gc
import shlex
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from experiments.alignment.sizes import Sizes
from experiments.engine.ranks import rank, ranks
from experiments.engine.store import write_text

KNOBS = {
    "kldpo": "tau",
    "wdpo": "rho",
    "dr_dpo": "b",
    "cdpo": "flip",
    "rdpo": "flip",
}  # methods with a radius, or a rate of flips -> the option that sets it
WDPO: dict[
    str, dict[str, Any]
] = {  # ways to compute the gradient penalty -> options of the objective
    "adversarial": {"wdpo_mode": "adversarial"},
    "finite_difference": {"wdpo_mode": "finite_difference"},
    "exact": {"wdpo_mode": "exact"},
    "released": {"released": True, "rho_unit": "absolute"},
}
# what the experiment sets, which a file of more options may not replace
OWN = (
    *(
        "model",
        "data",
        "split",
        "objective",
        "beta",
        "tau",
        "rho",
        "b",
        "flip",
        "strings",
        "released",
        "rho_unit",
        "wdpo_mode",
        "output_dir",
        "seed",
    ),
    *(
        "num_train_epochs",
        "max_steps",
        "learning_rate",
        "lr_scheduler_type",
        "per_device_train_batch_size",
        "warmup_steps",
    ),
    *("gradient_accumulation_steps", "reference_cache", "h", "softness", "max_length"),
)


@dataclass(frozen=True)
class Run:
    """One policy to train: what it is called, and the options of `prefdro train` that make it what
    it is."""

    name: str
    method: str
    radius: float
    beta: float
    replicate: int
    more: dict[str, Any] = field(default_factory=dict)  # other options, such as num_train_epochs
    flip: float = 0.0  # share of the training labels that are exchanged
    compared: bool = True  # whether benchmarks are run on it, where the experiment has some


def objective(method: str, radius: float, beta: float, wdpo: str) -> dict[str, Any]:
    """The options of an objective; `wdpo` as in WDPO. IPO sums over tokens, as the theory has
    it."""
    knob = {KNOBS[method]: radius} if method in KNOBS else {}
    ipo = {"average_tokens": False} if method == "ipo" else {}
    return {
        "objective": method,
        "beta": beta,
        **knob,
        **ipo,
        **(WDPO[wdpo] if method == "wdpo" else {}),
    }


def options_of(run: Run, sizes: Sizes, *, seed: int, more: dict[str, Any]) -> dict[str, Any]:
    """The options of `prefdro train` for a run, but for its model, data and folders; `more` adds
    what the experiment leaves open.

    `batch_size`, which is none of them, is the number of pairs in a step, over all processes: how
    these share it is no part of what is trained (`shared`).
    """
    options: dict[str, Any] = {
        "max_length": sizes.prompt_tokens + sizes.new_tokens,
        "long_prompts": "drop",
        **objective(run.method, run.radius, run.beta, sizes.wdpo),
        "num_train_epochs": sizes.epochs,
        "learning_rate": sizes.learning_rate,
        "lr_scheduler_type": sizes.schedule,
        "warmup_steps": sizes.warmup,  # below 1: a share of all steps
        "batch_size": sizes.batch_size,
        "per_device_train_batch_size": sizes.micro_batch_size,
        "dataloader_drop_last": True,
        "logging_steps": 0.05,
        "save_strategy": "no" if sizes.model is None else "steps",
        "bf16": sizes.bf16,
        **({"lora": True, "lora_rank": sizes.lora} if sizes.lora else {}),
        "report_to": "none",
        "disable_tqdm": True,
        "seed": seed,
    }
    if options["save_strategy"] == "steps":
        options |= {"save_steps": 0.1, "save_total_limit": 1}
    return options | more | run.more


def shared(options: dict[str, Any]) -> dict[str, Any]:
    """The options with the batch shared among the processes of this launch: micro-batches and
    accumulation.

    KTO counts responses, of which a pair has two.

    Raises:
        ValueError: the batch cannot be shared so.
    """
    batch = int(options["batch_size"])
    micro = min(int(options["per_device_train_batch_size"]), max(1, batch // ranks()))
    if batch % (micro * ranks()):
        raise ValueError(
            f"a batch of {batch} pairs cannot be made of {ranks()} processes with micro-batches of"
            f" {micro}: set batch_size and micro_batch_size so that it can."
        )
    rows = 2 * micro if options["objective"] == "kto" else micro
    own = {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": batch // (micro * ranks()),
    }
    return {name: value for name, value in options.items() if name != "batch_size"} | own


def check_options(options: dict[str, Any]) -> None:
    """Raise ValueError where `prefdro train` does not take the options; it says on stderr which."""
    from llm.train import parse

    try:
        parse(words(shared(options)))
    except SystemExit as error:
        raise ValueError(
            "`prefdro train` does not take the options of the training; see the lines above."
        ) from error


def words(options: dict[str, Any]) -> list[str]:
    """Options as words of a command line."""
    from llm.options import as_words

    return as_words(options)


def more_options(path: Path | None) -> dict[str, Any]:
    """Options of `prefdro train` from a YAML file.

    Raises:
        ValueError: it cannot be read, is no mapping of options, or sets what the experiment itself
            varies.
    """
    if path is None:
        return {}
    from llm.options import read_config, with_numbers

    more = with_numbers(read_config(path))
    if own := sorted(set(more) & set(OWN)):
        raise ValueError(
            f"{path} sets {', '.join(own)}, which the experiment sets itself: leave it out, or give"
            " its own option."
        )
    return more


@cache
def spare_the_collector() -> None:
    """Leave what a training imports out of all garbage collections of this process, once.

    Each training makes several, which would look through every object of the libraries again. To be
    called before a model is loaded, which would never be collected.
    """
    import llm.trainer  # noqa: F401

    gc.collect()  # what is garbage now would never be found
    gc.freeze()


def train_policy(folder: Path, *, options: dict[str, Any], files: dict[str, Any]) -> None:
    """Train a policy into the folder: model, tokenizer, card, log.csv, training.json, command.txt
    and the log of each process.

    A run that was killed goes on from its last checkpoint.

    Args:
        options: of `options_of`.
        files: model, data, and reference_cache: the reference log-probabilities, which runs on the
            same data share.
    """
    from llm.train import parse, train

    spare_the_collector()
    given = words(files | shared(options))
    if rank() == 0:
        write_text(
            shlex.join(["prefdro", "train", *given, "--output_dir", "OUT"]) + "\n",
            folder / "command.txt",
        )
    with (
        (folder / f"log-{rank()}.txt").open("a", encoding="utf-8") as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        train(*parse([*given, "--output_dir", str(folder)]))
    # the trainer is part of a cycle, and holds the model and the state of its optimizer
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if rank() == 0:
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
