"""`prefdro train`: from a model and a file of preferences to a trained model with its card.

    prefdro train --model MODEL --data pairs.jsonl --objective kldpo --tau 0.5 --output_dir OUT
    prefdro train --config train.yaml --beta 0.05
    accelerate launch -m llm.train --config train.yaml

The same command resumes a run that was stopped, from its last complete checkpoint.
"""

import json
import os
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from llm import models
from llm.adapters import CONFIG, WEIGHTS, adapter_base, merged
from llm.arguments import DataArguments, ModelArguments, PreferenceArguments
from llm.card import write_card
from llm.compatibility import bfloat16_offer, refuse_rows_beyond
from llm.console import print_whatever_the_encoding, refuse_undecoded
from llm.data.checks import READ
from llm.data.doubts import first_example
from llm.data.rows import column_names
from llm.data.tokens import (
    BadRows,
    PreferenceCollator,
    group_numbers,
    load_rows,
    padding_token,
    tokenise,
)
from llm.memory import GIB, peak_memory
from llm.models import check_length
from llm.objectives import ObjectiveParameters, make_objective, outside
from llm.options import parse_options
from llm.processes import leave
from llm.reference import model_fingerprint, tokenizer_fingerprint
from llm.resume import (
    CONTENT,
    RECORD,
    last_checkpoint,
    refuse_another_run,
    rows_fingerprint,
    stored_metrics,
)
from llm.special_ids import settle_special_ids
from llm.trainer import PreferenceTrainer
from llm.wasserstein_steps import Wasserstein
from theory.versions import versions

Arguments = tuple[ModelArguments, DataArguments, ObjectiveParameters, PreferenceArguments]


def parse(words: list[str]) -> Arguments:
    """Command line, with --config FILE a YAML file of the same names; the command line has the last
    word."""
    kinds = (ModelArguments, DataArguments, ObjectiveParameters, PreferenceArguments)
    return cast(Arguments, parse_options(kinds, words, "prefdro train"))


def train(
    model_arguments: ModelArguments,
    data: DataArguments,
    objective: ObjectiveParameters,
    args: PreferenceArguments,
) -> dict[str, float]:
    """Train and save: model, tokenizer, card, log.csv and training.json in `args.output_dir`.
    Returns the last metrics.

    Raises ValueError, FileNotFoundError or FloatingPointError with the cause and the next step.
    """
    kinds = make_objective(objective).kinds  # the cheapest checks first
    _refuse_ignored(model_arguments, data, args)
    for name, value in (("--model", model_arguments.model), ("--data", data.data)):
        if not value:
            raise ValueError(
                f"{name} was not given. `prefdro train --help` lists all options; they can also"
                " stand in a YAML file."
            )
    out = Path(str(args.output_dir))
    configuration = _configuration(
        model_arguments, data, objective, args
    )  # the trainer changes some of the arguments
    if plugins := outside(objective):
        configuration["plugins"] = plugins
    tokenizer = load_tokenizer(model_arguments)
    train_data, eval_data, left_out = _datasets(data, tokenizer, kinds)
    if args.process_index == 0:
        print(first_example(train_data, tokenizer), file=sys.stderr)
    model = load_model(model_arguments, args)
    for rows in (train_data, eval_data):
        refuse_rows_beyond(model, rows)
    settle_special_ids(model, tokenizer)
    configuration[CONTENT] = {
        "model": model_fingerprint(model),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "rows": rows_fingerprint(train_data),
        "eval_rows": rows_fingerprint(eval_data),
    }
    refuse_another_run(out, configuration)
    if (done := stored_metrics(out, configuration)) is not None:
        print(
            f"this run has finished before: its model is in {out}. For another one choose another"
            " --output_dir."
        )
        return done
    checkpoint = last_checkpoint(out, configuration)
    if args.kl_prompts and eval_data is not None:
        prompts = eval_data[: args.kl_prompts]["prompt_ids"]
        check_length(model.config, max(map(len, prompts)) + args.kl_max_new_tokens)
    trainer = PreferenceTrainer(
        model,
        args,
        objective,
        train_dataset=train_data,
        eval_dataset=eval_data,
        processing_class=tokenizer,
        data_collator=PreferenceCollator(padding_token(tokenizer)),
    )
    cache = (
        out / "reference-train.safetensors"
        if data.reference_cache is None
        else Path(data.reference_cache).expanduser()
    )
    trainer.add_reference(
        cache,
        cache.with_name(f"{cache.stem}-eval{cache.suffix}"),
        data.reference_batch_size,
        fingerprint=configuration[CONTENT]["model"],
    )
    if trainer.is_world_process_zero():
        out.mkdir(parents=True, exist_ok=True)
        record = configuration | {"reference": trainer.reference_identity}
        _write_record(out, record)
        for part, bad in left_out.items():
            bad.write(path := out / f"left-out-rows-{part}.csv")
            if len(bad):
                print(
                    f"{len(bad)} rows of the {part} data are left out; their numbers and reasons:"
                    f" {path}",
                    file=sys.stderr,
                )
    if checkpoint is not None and trainer.is_world_process_zero():
        print(f"resuming from {checkpoint}", file=sys.stderr)

    offer = bfloat16_offer(model, args)
    if offer is not None and trainer.is_world_process_zero():
        print(offer, file=sys.stderr)
    needed = trainer.memory()
    if needed is not None and trainer.is_world_process_zero():
        print(needed, file=sys.stderr)
        if needed.missing:
            warnings.warn(
                f"that is {needed.missing / GIB:.1f} GiB more than there are, and the run may end"
                " for want of memory. A smaller --per_device_train_batch_size with more"
                " --gradient_accumulation_steps computes the same; --gradient_checkpointing, --lora"
                " or a smaller --max_length need less as well.",
                stacklevel=1,
            )
    if args.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(args.device)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    peak = peak_memory(args.device)
    if needed is not None and peak is not None and trainer.is_world_process_zero():
        whose = "of the device" if args.device.type == "cuda" else "of this process"
        print(
            f"memory: the peak {whose} was {peak / GIB:.1f} GiB, estimated {needed.peak / GIB:.1f}",
            file=sys.stderr,
        )
    trainer.save_model()
    trainer.save_state()
    evaluation = trainer.evaluate() if eval_data is not None else {}
    if (
        model_arguments.lora
        and adapter_base(model_arguments.model, model_arguments.revision)
        and trainer.is_world_process_zero()
    ):
        _merge_saved(out, model_arguments)
    metrics = _last_metrics(trainer.state.log_history) | evaluation
    if trainer.is_world_process_zero():
        pd.DataFrame(trainer.state.log_history).to_csv(
            out / "log.csv", index=False, lineterminator="\n"
        )
        facts = _facts(trainer, model_arguments, data, len(train_data))
        write_card(
            out,
            objective,
            model=model_arguments.model,
            data=data.data,
            facts=facts,
            metrics=metrics,
        )
        _write_record(
            out, configuration | {"reference": trainer.reference_identity, "metrics": metrics}
        )
        print(f"trained model in {out}: model, tokenizer, README.md (card), log.csv, {RECORD}")
    return metrics


def load_tokenizer(arguments: ModelArguments) -> PreTrainedTokenizerBase:
    """The tokenizer of the model, or the one named instead."""
    own = arguments.tokenizer is None  # the revision is the model's
    name, revision = (arguments.model, arguments.revision) if own else (arguments.tokenizer, None)
    return models.load_tokenizer(
        str(name), revision=revision, trust_remote_code=arguments.trust_remote_code
    )


def load_model(arguments: ModelArguments, args: PreferenceArguments | None = None) -> nn.Module:
    """The model in the wanted dtype, with a LoRA adapter if wanted."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if arguments.dtype not in dtypes:
        raise ValueError(f"unknown --dtype {arguments.dtype!r}; there are {', '.join(dtypes)}.")
    model = models.load_language_model(
        arguments.model,
        dtype=dtypes[arguments.dtype],
        revision=arguments.revision,
        trust_remote_code=arguments.trust_remote_code,
        attention=arguments.attention,
    )
    if not arguments.lora:
        return cast(nn.Module, model)
    from peft import LoraConfig, get_peft_model

    targets = arguments.lora_targets
    config = LoraConfig(
        r=arguments.lora_rank,
        lora_alpha=arguments.lora_alpha,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
    )
    if args is not None:
        torch.manual_seed(args.seed)  # the adapter's first weights
    if args is not None and args.gradient_checkpointing:
        model.enable_input_require_grads()
    # the adapter names its model, and must find it from elsewhere, too: not in this cache
    there = Path(arguments.model).expanduser()
    model.name_or_path = str(there.resolve()) if there.exists() else arguments.model
    return cast(nn.Module, get_peft_model(model, config))


def _merge_saved(out: Path, arguments: ModelArguments) -> None:
    """In place of the adapter, the whole model that was trained: the model that the adapter changes
    is nowhere on the disk.

    It is --model, itself an adapter, merged into its model.
    """
    plain = replace(
        arguments,
        lora=False,
        lora_rank=ModelArguments.lora_rank,
        lora_alpha=ModelArguments.lora_alpha,
    )
    model = merged(load_model(plain, None), str(out))
    model.save_pretrained(out)  # type: ignore[operator]
    for name in (CONFIG, *WEIGHTS):
        (out / name).unlink(missing_ok=True)


def _refuse_ignored(model: ModelArguments, data: DataArguments, args: PreferenceArguments) -> None:
    """Raise ValueError for an option that needs another one to act, or that would overwrite what it
    reads."""
    read = {"--model": model.model, "--tokenizer": model.tokenizer}
    if model.model:
        read["the model that the adapter --model changes"] = adapter_base(
            model.model, model.revision
        )
    for what, place in read.items():
        if (
            place
            and Path(place).exists()
            and Path(place).resolve() == Path(str(args.output_dir)).resolve()
        ):
            raise ValueError(
                f"--output_dir {args.output_dir} is the folder of {what}: it would be overwritten."
                " Choose another one."
            )
    for name in ("lora_rank", "lora_alpha", "lora_targets"):
        if not model.lora and getattr(model, name) != getattr(ModelArguments, name):
            raise ValueError(
                f"--{name} ({getattr(model, name)}) is of an adapter, but all weights are trained."
                " Give --lora, too."
            )
    if args.kl_prompts and data.eval_data is None and data.eval_split is None:
        raise ValueError(
            f"--kl_prompts ({args.kl_prompts}) are prompts of the evaluation, but there is none. "
            "Give --eval_data or --eval_split."
        )


def _datasets(
    data: DataArguments, tokenizer: PreTrainedTokenizerBase, kinds: tuple[str, ...]
) -> tuple[Dataset, Dataset | None, dict[str, BadRows]]:
    """Training and evaluation data, and the rows of each that were left out."""
    columns = columns_of(data.columns)
    train_bad, eval_bad = BadRows(data.drop_bad_rows), BadRows(data.drop_bad_rows)
    cut: dict[str, Any] = {
        "max_length": data.max_length,
        "long_prompts": data.long_prompts,
        "strings": data.strings,
        "ties": data.ties,
    }
    rows = load_rows(data.data, data.split, data.data_name, bad=train_bad)
    there = {*columns, *column_names(rows)}
    labelled = "label" in there and not {"chosen", "rejected"} <= there
    kind = "unpaired" if "unpaired" in kinds and ("pairs" not in kinds or labelled) else "pairs"
    train_data = tokenise(rows, tokenizer, kind, **cut, columns=columns, bad=train_bad)
    accounts = {"train": train_bad, "eval": eval_bad}
    if data.eval_data is not None:
        held_out = load_rows(data.eval_data, data.eval_split or "train", bad=eval_bad)
    elif data.eval_split is not None:
        held_out = load_rows(data.data, data.eval_split, data.data_name, bad=eval_bad)
    else:
        return train_data, None, accounts
    known = group_numbers(train_data) or None
    return (
        train_data,
        tokenise(held_out, tokenizer, kind, **cut, columns=columns, bad=eval_bad, groups=known),
        accounts,
    )


def columns_of(text: str | None) -> dict[str, str]:
    """`prompt=question,chosen=better` as a dict."""
    columns: dict[str, str] = {}
    for part in (text or "").split(","):
        ours, equals, theirs = (word.strip() for word in part.partition("="))
        if not part.strip():
            continue
        names = (*READ, "tie", "system")
        if not equals or not theirs or ours not in names or ours in columns:
            raise ValueError(
                f"--columns {text!r}: {part.strip()!r} is not of the form ours=theirs, with each of"
                f" ours once and one of {', '.join(names)}."
            )
        columns[ours] = theirs
    return columns


def _write_record(out: Path, record: dict[str, Any]) -> None:
    """What the folder holds, in one piece: `llm.resume` reads it."""
    temporary = out / f".{RECORD}"
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    temporary.replace(out / RECORD)


def _configuration(*groups: Any) -> dict[str, Any]:
    """All arguments as JSON can hold them."""
    merged: dict[str, Any] = {}
    for group in groups:
        of_trainer = isinstance(
            group, PreferenceArguments
        )  # the number of ranks is part of the effective batch
        merged |= (
            group.to_dict() | {"world_size": group.world_size} if of_trainer else asdict(group)
        )
    return cast(dict[str, Any], json.loads(json.dumps(merged, default=str)))


def _facts(
    trainer: PreferenceTrainer, model: ModelArguments, data: DataArguments, rows: int
) -> dict[str, Any]:
    args = trainer.args
    micro = args.per_device_train_batch_size
    facts: dict[str, Any] = {
        "base model": (
            model.model
            + (
                ""
                if (base := adapter_base(model.model)) is None
                else f", an adapter merged into {base}"
            )
        ),
        "data": f"{data.data} ({rows} rows)",
        "seed": args.seed,
        "effective batch": (
            f"{micro * args.gradient_accumulation_steps * args.world_size} ({micro} x"
            f" {args.gradient_accumulation_steps} micro-batches x {args.world_size} ranks)"
        ),
        "steps": trainer.state.global_step,
        "learning rate": args.learning_rate,
        "precision": f"{model.dtype} weights" + (", bfloat16 autocast" if args.bf16 else ""),
        "adapter": (
            f"LoRA, rank {model.lora_rank}, alpha {model.lora_alpha:g}" if model.lora else "none"
        ),
    }
    if isinstance(trainer.step, Wasserstein):
        unit = "embedding output" + (", squared" if trainer.step.squared else "")
        facts[f"radius in units of the {unit}"] = f"{trainer.step.radius:.6g}"
    facts |= {
        f"sha256 of the {part}": value
        for part, value in trainer.reference_identity.items()
        if part != "dtype"
    }
    facts |= {
        f"sha256 of the source of `{name}`": value
        for name, value in outside(trainer.parameters).items()
    }
    facts |= versions("prefdro", "torch", "transformers")
    return facts


def _last_metrics(history: list[dict[str, Any]]) -> dict[str, float]:
    """The last value of each number that was logged in training."""
    numbers: dict[str, float] = {}
    for entry in history:
        numbers |= {name: float(value) for name, value in entry.items() if name != "step"}
    return numbers


def as_a_line(message: Warning | str, category: type[Warning], *_: Any) -> str:
    """What concerns the data or the model is for the reader of this run; other warnings say where
    in the code they come from."""
    return (
        f"warning: {message}\n" if category is UserWarning else f"{category.__name__}: {message}\n"
    )


def main(words: list[str] | None = None) -> None:
    """Entry point of every rank: parse, train, and say in one line what went wrong."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    print_whatever_the_encoding()
    warnings.formatwarning = as_a_line  # type: ignore[assignment]
    try:
        words = sys.argv[1:] if words is None else words
        refuse_undecoded(words)
        train(*parse(words))
        leave()
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        print(f"prefdro train: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
