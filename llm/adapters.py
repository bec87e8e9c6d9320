"""Adapters of peft as models of their own: found, traced to the model that they change, and merged
into it.

A folder of an adapter holds little beside what was trained; `adapter_config.json` names the model
that it changes, which can be the folder of an adapter again.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm.weights import located

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def adapter_config(name: str, revision: str | None = None) -> dict[str, Any] | None:
    """What the adapter of a folder or hub name says of itself; None where there is none, but a
    whole model, as `smollm2` and GGUF files are (`located`).

    Raises:
        ValueError: it cannot be read, is not one that can be merged into a language model, or lies
            in one folder with a model.
    """
    from transformers.utils import find_adapter_config_file

    try:
        path = find_adapter_config_file(located(name), revision=revision)
    except (
        OSError,
        ValueError,
    ):  # no name of the hub, or one that cannot be reached: whoever loads the model says so
        return None
    if path is None:
        return None
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        base, kind, task = (
            config.get(key) for key in ("base_model_name_or_path", "peft_type", "task_type")
        )
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is no configuration of a peft adapter ({error}). Copy or download the adapter"
            " again."
        ) from error
    if not base:
        raise ValueError(
            f"{path} does not name the model that the adapter changes: put it into"
            " `base_model_name_or_path`."
        )
    if kind in (
        "PROMPT_TUNING",
        "MULTITASK_PROMPT_TUNING",
        "PREFIX_TUNING",
        "P_TUNING",
        "ADAPTION_PROMPT",
        "CPT",
    ):
        raise ValueError(
            f"{name} is an adapter of kind {kind}, which is no change of weights and cannot be"
            f" merged into {base}. Train on {base} itself, or on an adapter that changes weights,"
            " such as LoRA."
        )
    if task not in (None, "CAUSAL_LM"):
        raise ValueError(
            f"{name} is an adapter for {task}, not of a causal language model. Give one that is."
        )
    whole = (
        [file.name for file in Path(name).glob("model*.safetensors")] if Path(name).is_dir() else []
    )
    if whole:
        raise ValueError(
            f"{name} has the weights of a model ({whole[0]}) and an adapter ({CONFIG}), and which"
            " of them is meant is not clear. Move one of them to a folder of its own."
        )
    return dict(config)


def adapter_base(name: str, revision: str | None = None) -> str | None:
    """The whole model below an adapter, or below adapters of adapters; None for a whole model.

    Raises:
        ValueError: as `adapter_config`, or the adapters lead in a circle.
    """
    seen = [name]
    while (config := adapter_config(seen[-1], revision)) is not None:
        revision = config.get("revision")
        if config["base_model_name_or_path"] in seen:
            raise ValueError(
                f"the adapters {' -> '.join(seen)} lead back to"
                f" {config['base_model_name_or_path']}: none is a model."
            )
        seen.append(config["base_model_name_or_path"])
    return seen[-1] if len(seen) > 1 else None


def merged(base: Any, name: str, revision: str | None = None) -> nn.Module:
    """The model with the adapter's change in its weights, which are all trainable. `base` is used
    up.

    The base is given as many embeddings as the adapter was saved with, and a head of its own where
    the adapter changes either.

    Raises:
        ValueError: the adapter does not belong to this model, or merging would change what it
            computes.
    """
    from peft import PeftModel
    from peft.utils import load_peft_weights
    from safetensors import SafetensorError

    try:
        state = load_peft_weights(name, device="cpu", revision=revision)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"the weights of the adapter {name} cannot be read ({error}). Its folder needs {CONFIG}"
            f" and {WEIGHTS[0]}: copy or download it again."
        ) from error
    dtype = base.dtype
    _fit_embeddings(base, state)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", ".*tie_word_embeddings.*"
            )  # untied already, where it matters
            warnings.filterwarnings("error", ".*[Mm]issing adapter keys")
            adapted = PeftModel.from_pretrained(base, name, revision=revision)
            ids = torch.arange(8)[None] % base.get_input_embeddings().weight.shape[0]
            adapted.eval()
            with torch.no_grad():
                wanted = adapted(input_ids=ids.to(base.device)).logits.float()
            model = adapted.merge_and_unload()
    except (RuntimeError, ValueError, KeyError, UserWarning) as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the adapter {name} does not fit the model that it names,"
            f" {adapter_base(name, revision)} ({said}). Was another model put in its place, or were"
            " its embeddings resized? Give the model that the adapter was trained on."
        ) from error
    model = model.to(dtype).requires_grad_(True)
    with torch.no_grad():
        found = model(input_ids=ids.to(base.device)).logits.float()
    off = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))
    if not off < (0.1 if dtype in (torch.bfloat16, torch.float16) else 1e-3):
        raise ValueError(
            f"merging the adapter {name} would change what it computes (by {off:.2g} of its largest"
            " logit). Merge it with the tool that it comes from, save the whole model, and give"
            " that."
        )
    model.name_or_path = name
    return model


def _fit_embeddings(base: Any, state: dict[str, Any]) -> None:
    """As many rows as the adapter's own embeddings have, and no tie between embeddings and head
    where the adapter changes one."""
    names = {module: name.rpartition(".")[2] for name, module in base.named_modules()}
    ends = [
        names[module]
        for module in (base.get_input_embeddings(), base.get_output_embeddings())
        if module in names
    ]
    changes = [key for key in state if set(ends) & set(key.split("."))]
    rows = {len(state[key]) for key in changes if key.endswith("weight") and "lora_" not in key}
    if len(rows) == 1 and (wanted := rows.pop()) != base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(wanted, mean_resizing=False)
    head = base.get_output_embeddings()
    if changes and head is not None and head.weight is base.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
        base.config.tie_word_embeddings = False
