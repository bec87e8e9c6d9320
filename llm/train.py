"""`prefdro train`: from a model and a file of preferences to a trained model with its card.

    prefdro train --model MODEL --data pairs.jsonl --objective kldpo --tau 0.5 --output_dir OUT
    prefdro train --config train.yaml --beta 0.05
    accelerate launch -m llm.train --config train.yaml

The same command resumes a run that was stopped, from its last complete checkpoint.
"""

import json
import os
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from llm.arguments import DataArguments, ModelArguments, PreferenceArguments
from llm.card import write_card
from llm.chat import without_the_date
from llm.compatibility import refuse_rows_beyond
from llm.console import print_whatever_the_encoding
from llm.data import PreferenceCollator, group_numbers, load_rows, padding_token, tokenise
from llm.models import cannot_load, check_length
from llm.objectives import ObjectiveParameters, make_objective
from llm.options import parse_options
from llm.resume import RECORD, last_checkpoint, rows_fingerprint, stored_metrics
from llm.trainer import PreferenceTrainer
from llm.wasserstein_steps import Wasserstein

Arguments = tuple[ModelArguments, DataArguments, ObjectiveParameters, PreferenceArguments]


def parse(words: list[str]) -> Arguments:
    """Command line, with --config FILE a YAML file of the same names; the command line has the last word."""
    kinds = (ModelArguments, DataArguments, ObjectiveParameters, PreferenceArguments)
    return cast(Arguments, parse_options(kinds, words, "prefdro train"))


def train(
    model_arguments: ModelArguments, data: DataArguments, objective: ObjectiveParameters, args: PreferenceArguments
) -> dict[str, float]:
    """Train and save: model, tokenizer, card, log.csv and training.json in `args.output_dir`. Returns the last metrics.

    Raises ValueError, FileNotFoundError or FloatingPointError with the cause and the next step.
    """
    kinds = make_objective(objective).kinds  # the cheapest checks first
    _refuse_ignored(model_arguments, data, args)
    for name, value in (("--model", model_arguments.model), ("--data", data.data)):
        if not value:
            raise ValueError(
                f"{name} was not given. `prefdro train --help` lists all options; they can also stand in a YAML file."
            )
    out = Path(str(args.output_dir))
    configuration = _configuration(model_arguments, data, objective, args)  # the trainer changes some of the arguments
    tokenizer = load_tokenizer(model_arguments)
    train_data, eval_data = _datasets(data, tokenizer, kinds)
    configuration["rows"] = rows_fingerprint(train_data)
    if (done := stored_metrics(out, configuration)) is not None:
        print(f"this run has finished before: its model is in {out}. For another one choose another --output_dir.")
        return done
    checkpoint = last_checkpoint(out, configuration)
    model = load_model(model_arguments, args)
    for rows in (train_data, eval_data):
        refuse_rows_beyond(model, rows)
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
    cache = out / "reference-train.safetensors" if data.reference_cache is None else Path(data.reference_cache).expanduser()
    trainer.add_reference(cache, cache.with_name(f"{cache.stem}-eval{cache.suffix}"), data.reference_batch_size)
    if trainer.is_world_process_zero():
        out.mkdir(parents=True, exist_ok=True)
        record = configuration | {"reference": trainer.reference_identity}
        _write_record(out, record)
    if checkpoint is not None and trainer.is_world_process_zero():
        print(f"resuming from {checkpoint}", file=sys.stderr)

    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_model()
    trainer.save_state()
    evaluation = trainer.evaluate() if eval_data is not None else {}
    metrics = _last_metrics(trainer.state.log_history) | evaluation
    if trainer.is_world_process_zero():
        pd.DataFrame(trainer.state.log_history).to_csv(out / "log.csv", index=False, lineterminator="\n")
        facts = _facts(trainer, model_arguments, data, len(train_data))
        write_card(out, objective, model=model_arguments.model, data=data.data, facts=facts, metrics=metrics)
        _write_record(out, configuration | {"reference": trainer.reference_identity, "metrics": metrics})
        print(f"trained model in {out}: model, tokenizer, README.md (card), log.csv, {RECORD}")
    return metrics


def load_tokenizer(arguments: ModelArguments) -> PreTrainedTokenizerBase:
    """The tokenizer of the model, or the one named instead."""
    name = arguments.tokenizer or arguments.model
    try:
        return without_the_date(
            AutoTokenizer.from_pretrained(name, revision=arguments.revision, trust_remote_code=arguments.trust_remote_code)
        )
    except (OSError, ValueError) as error:
        raise cannot_load("tokenizer", name, error) from error


def load_model(arguments: ModelArguments, args: PreferenceArguments) -> nn.Module:
    """The model in the wanted dtype, with a LoRA adapter if wanted."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if arguments.dtype not in dtypes:
        raise ValueError(f"unknown --dtype {arguments.dtype!r}; there are {', '.join(dtypes)}.")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            arguments.model,
            dtype=dtypes[arguments.dtype],
            revision=arguments.revision,
            trust_remote_code=arguments.trust_remote_code,
            attn_implementation=arguments.attention,
        )
    except (OSError, ValueError, ImportError) as error:
        raise cannot_load("model", arguments.model, error) from error
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
    torch.manual_seed(args.seed)  # the adapter's first weights
    if args.gradient_checkpointing:
        model.enable_input_require_grads()
    return cast(nn.Module, get_peft_model(model, config))


def _refuse_ignored(model: ModelArguments, data: DataArguments, args: PreferenceArguments) -> None:
    """Raise ValueError for an option that needs another one to act, or that would overwrite what it reads."""
    if Path(model.model).exists() and Path(model.model).resolve() == Path(str(args.output_dir)).resolve():
        raise ValueError(f"--output_dir {args.output_dir} is the folder of --model: it would be overwritten. Choose another one.")
    for name in ("lora_rank", "lora_alpha", "lora_targets"):
        if not model.lora and getattr(model, name) != getattr(ModelArguments, name):
            raise ValueError(
                f"--{name} ({getattr(model, name)}) is of an adapter, but all weights are trained. Give --lora, too."
            )
    if args.kl_prompts and data.eval_data is None and data.eval_split is None:
        raise ValueError(
            f"--kl_prompts ({args.kl_prompts}) are prompts of the evaluation, but there is none. "
            "Give --eval_data or --eval_split."
        )


def _datasets(data: DataArguments, tokenizer: PreTrainedTokenizerBase, kinds: tuple[str, ...]) -> tuple[Dataset, Dataset | None]:
    rows = load_rows(data.data, data.split, data.data_name)
    kind = "unpaired" if "unpaired" in kinds and ("pairs" not in kinds or "label" in rows.column_names) else "pairs"
    cut: dict[str, Any] = {"max_length": data.max_length, "long_prompts": data.long_prompts}
    train_data = tokenise(rows, tokenizer, kind, **cut)
    if data.eval_data is not None:
        held_out = load_rows(data.eval_data, data.eval_split or "train")
    elif data.eval_split is not None:
        held_out = load_rows(data.data, data.eval_split, data.data_name)
    else:
        return train_data, None
    return train_data, tokenise(held_out, tokenizer, kind, **cut, groups=group_numbers(train_data) or None)


def _write_record(out: Path, record: dict[str, Any]) -> None:
    """What the folder holds, in one piece: `llm.resume` reads it."""
    temporary = out / f".{RECORD}"
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    temporary.replace(out / RECORD)


def _configuration(*groups: Any) -> dict[str, Any]:
    """All arguments as JSON can hold them."""
    merged: dict[str, Any] = {}
    for group in groups:
        of_trainer = isinstance(group, PreferenceArguments)  # the number of ranks is part of the effective batch
        merged |= group.to_dict() | {"world_size": group.world_size} if of_trainer else asdict(group)
    return cast(dict[str, Any], json.loads(json.dumps(merged, default=str)))


def _facts(trainer: PreferenceTrainer, model: ModelArguments, data: DataArguments, rows: int) -> dict[str, Any]:
    args = trainer.args
    micro = args.per_device_train_batch_size
    facts: dict[str, Any] = {
        "base model": model.model,
        "data": f"{data.data} ({rows} rows)",
        "seed": args.seed,
        "effective batch": f"{micro * args.gradient_accumulation_steps * args.world_size} "
        f"({micro} x {args.gradient_accumulation_steps} micro-batches x {args.world_size} ranks)",
        "steps": trainer.state.global_step,
        "learning rate": args.learning_rate,
        "precision": f"{model.dtype} weights" + (", bfloat16 autocast" if args.bf16 else ""),
        "adapter": f"LoRA, rank {model.lora_rank}, alpha {model.lora_alpha:g}" if model.lora else "none",
    }
    if isinstance(trainer.step, Wasserstein):
        unit = "embedding output" + (", squared" if trainer.step.squared else "")
        facts[f"radius in units of the {unit}"] = f"{trainer.step.radius:.6g}"
    facts |= {f"sha256 of the {part}": value for part, value in trainer.reference_identity.items() if part != "dtype"}
    facts |= {name: version(name) for name in ("prefdro", "torch", "transformers")}
    return facts


def _last_metrics(history: list[dict[str, Any]]) -> dict[str, float]:
    """The last value of each number that was logged in training."""
    numbers: dict[str, float] = {}
    for entry in history:
        numbers |= {name: float(value) for name, value in entry.items() if name != "step"}
    return numbers


def main(words: list[str] | None = None) -> None:
    """Entry point of every rank: parse, train, and say in one line what went wrong."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    print_whatever_the_encoding()
    try:
        train(*parse(sys.argv[1:] if words is None else words))
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        print(f"prefdro train: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
