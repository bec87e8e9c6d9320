"""What `prefdro train` can be told: dataclasses that are the Python arguments, the command line and
the YAML file.

The objective's own parameters are `llm.objectives.ObjectiveParameters`; everything that the Trainer
of transformers can do is inherited. Options whose effect would be ignored, or would make an
objective inexact, are refused.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainingArguments

from llm.options import listed
from llm.pair_losses import option

DEVICES: dict[str, Callable[[], bool]] = {
    "cpu": lambda: True,
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
}


@dataclass
class ModelArguments:
    """Which model is trained, and how much of it."""

    model: str = option("", "folder of a model, its name on the hub, smollm2, or a .gguf file")
    revision: str | None = option(None, "revision of the model on the hub")
    tokenizer: str | None = option(
        None, "folder or name of the tokenizer; not given: that of the model"
    )
    dtype: str = option(
        "float32",
        "dtype of the weights: float32, bfloat16 or float16; float32 with --bf16 is the usual"
        " choice",
    )
    attention: str | None = option(
        None, "attention: eager, sdpa, flash_attention_2, ...; not given: the model's default"
    )
    trust_remote_code: bool = option(False, "run code that comes with the model")
    lora: bool = option(False, "train a LoRA adapter (peft) instead of all weights")
    lora_rank: int = option(16, "rank of the adapter")
    lora_alpha: float = option(32.0, "scale of the adapter; it is divided by the rank")
    lora_targets: list[str] | None = option(  # noqa: RUF009
        None, "modules to adapt, or all-linear; not given: peft's choice"
    )

    def __post_init__(self) -> None:
        self.model, self.tokenizer = (
            os.path.expanduser(self.model),
            self.tokenizer and os.path.expanduser(self.tokenizer),
        )
        self.lora_targets = listed(self.lora_targets) or None


@dataclass
class DataArguments:
    """Which preferences it is trained on, and how they are cut into tokens."""

    data: str = option(
        "", "a .jsonl, .json, .parquet or .csv file, a folder of a data set, or its name on the hub"
    )
    eval_data: str | None = option(
        None, "the same, for evaluation; its split is --eval_split, or else train"
    )
    data_name: str | None = option(None, "configuration of a data set on the hub")
    split: str = option("train", "split to train on")
    eval_split: str | None = option(None, "split to evaluate on, of --eval_data or else of --data")
    max_length: int | None = option(
        1024, "longest prompt with completion, in tokens; longer completions are cut at the end"
    )
    long_prompts: str = option(
        "drop", "rows whose prompt leaves no room for a completion: drop or error"
    )
    columns: str | None = option(
        None,
        "names of the columns in the data where they are others than ours, as"
        " prompt=question,chosen=better; system=NAME is put before a conversation",
    )
    strings: str | None = option(
        None,
        "how strings are read: raw (as they are; not given: the same, with a warning where that is"
        " hardly meant), chat (messages for the chat template), templated (a template has written"
        " them) or json (they spell messages)",
    )
    ties: str = option(
        "half",
        "pairs with a label of 0.5, or a true tie, beside chosen and rejected: half (two of half"
        " the weight, one for each response), drop, or ignore (neither column is read)",
    )
    drop_bad_rows: bool = option(
        False,
        "leave out rows that cannot be used, instead of an error; numbers and reasons:"
        " left-out-rows-train.csv in --output_dir",
    )
    reference_cache: str | None = option(
        None,
        "file of the reference log-probabilities; not given: reference-train.safetensors in"
        " --output_dir",
    )
    reference_batch_size: int = option(
        32, "rows of the data at once when the reference is computed; a pair is two sequences"
    )


@dataclass
class PreferenceArguments(TrainingArguments):
    """How it is trained: the arguments of the Trainer of transformers, with other defaults, and a
    few more. Each field's help, which `prefdro train --help` prints, says what it is.

    Raises:
        ValueError: an argument out of range, or one that must keep its value, with the reason.

    >>> from llm import PreferenceArguments
    >>> PreferenceArguments(run_on="cpu").learning_rate
    1e-06
    """

    output_dir: str | None = option(
        "results/train", "folder of the model, its checkpoints and its card"
    )
    learning_rate: float = option(1e-6, "learning rate")
    logging_steps: float = option(10, "steps between two logs; below 1: as a share of all steps")
    logging_nan_inf_filter: bool = option(
        False, "must stay false: a loss that is not a number stops the run"
    )
    restore_callback_states_from_checkpoint: bool = option(
        True, "must stay true: the group weights of group_dro are such a state"
    )
    run_on: str = option(
        "auto", "device: auto (what there is), cpu, cuda or mps (the GPU of a Mac)"
    )
    remove_unused_columns: bool = option(
        False, "must stay false: the objective reads columns that the model does not"
    )
    padding_free: bool = option(
        False,
        "put the sequences of a micro-batch into one row instead of padding them to one length;"
        " attention sdpa",
    )
    kl_prompts: int = option(
        0,
        "evaluation prompts from which the policy writes a completion, to estimate its KL to the"
        " reference on its own samples",
    )
    kl_max_new_tokens: int = option(64, "length of these completions, in tokens")

    def __post_init__(self) -> None:
        if self.run_on not in ("auto", *DEVICES):
            raise ValueError(
                f"unknown --run_on {self.run_on!r}; choose auto, cpu, cuda or mps. There is here:"
                f" {_there_is()}."
            )
        if self.run_on != "auto" and not DEVICES[self.run_on]():
            name, build = (
                ("CUDA", "a CUDA build")
                if self.run_on == "cuda"
                else ("MPS", "the build for macOS on Apple silicon")
            )
            raise ValueError(
                f"--run_on {self.run_on}, but torch {torch.__version__} sees no {name} device:"
                " there is none, its driver is missing, or this build of torch is without it."
                f" There is here: {_there_is()}. Use one of these, or auto, or install {build}."
            )
        if self.run_on == "cpu" or (self.run_on == "auto" and not torch.accelerator.is_available()):
            self.use_cpu = True
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False  # there is nothing to pin for
        report_to = getattr(self, "report_to", None)  # a list may be written with commas
        if isinstance(report_to, str) and "," in report_to:
            self.report_to: Any = listed(report_to)
        super().__post_init__()
        ignored = (
            "bf16_full_eval",
            "fp16_full_eval",
            "include_for_metrics",
            "eval_accumulation_steps",
            "batch_eval_metrics",
        )
        whole = "evaluation looks at the whole set at once, without outputs of the model"
        refused = {
            **{name: (bool(getattr(self, name)), f"{whole}; leave it out") for name in ignored},
            "label_smoothing_factor": (
                self.label_smoothing_factor != 0,
                "use --objective cdpo with --flip",
            ),
            "logging_nan_inf_filter": (self.logging_nan_inf_filter, "leave it out"),
            "restore_callback_states_from_checkpoint": (
                not self.restore_callback_states_from_checkpoint,
                "leave it out",
            ),
            "remove_unused_columns": (self.remove_unused_columns, "leave it out"),
            "torch_compile": (
                self.torch_compile,
                "not tested with the head inside the forward pass; leave it out",
            ),
            "auto_find_batch_size": (
                self.auto_find_batch_size,
                "it would change the effective batch; set the batch size",
            ),
            "neftune_noise_alpha": (
                self.neftune_noise_alpha is not None,
                (
                    "noise differs between the two passes over a batch, so that the objective would"
                    " not be exact; leave it out"
                ),
            ),
            "resume_from_checkpoint": (
                self.resume_from_checkpoint is not None,
                (
                    "the same command resumes by itself, from the last checkpoint in --output_dir;"
                    " leave it out"
                ),
            ),
            "max_steps": (
                self.max_steps == 0,
                "it would train one step; give at least 1, or -1 for --num_train_epochs",
            ),
            "fp16": (self.fp16, "the loss scaling of float16 is not supported; use --bf16"),
        }
        for name, (given, remedy) in refused.items():
            if given:
                raise ValueError(f"--{name} ({getattr(self, name)}) is refused: {remedy}.")
        if self.kl_prompts < 0 or self.kl_max_new_tokens < 1:
            raise ValueError(
                "--kl_prompts must be at least 0 and --kl_max_new_tokens at least 1, got"
                f" {self.kl_prompts} and {self.kl_max_new_tokens}."
            )


def _there_is() -> str:
    return ", ".join(name for name, available in DEVICES.items() if available())
