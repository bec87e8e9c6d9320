"""Models of the alignment stages: loaded from folders or the hub, or the generated ones of a small machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.alignment.sizes import Options, Sizes
from experiments.emotion_profiles import PROFILES as GENERATED
from experiments.emotion_stages import prepare_models
from experiments.ranks import device
from experiments.stages import file_digests
from llm.models import cannot_load, pretrained_tokenizer


@dataclass(frozen=True)
class Models:
    """The model that policies start from and the reward model: folders, or names on the hub.

    made_from: what they are, for the record of a stage that uses them. texts: folder of the texts, if they are generated.
    """

    policy: str
    judge: str
    made_from: dict[str, Any]
    texts: Path | None


def prepare(sizes: Sizes, options: Options, workers: int) -> Models:
    """The models that the sizes name; those that are generated are made in `options.shared`, once for all experiments."""
    if sizes.model is not None and sizes.judge is not None:
        made_from = {"model": sizes.model, "judge": sizes.judge, "files": file_digests([sizes.model, sizes.judge])}
        return Models(sizes.model, sizes.judge, made_from, None)
    kind = "smoke" if options.profile == "smoke" else "quick"
    texts, policy, judge = prepare_models(GENERATED[kind], options.shared.resolve() / kind, seed=options.seed, workers=workers)
    return Models(str(policy.folder), str(judge.folder), {"model": policy.digest, "judge": judge.digest}, texts.folder)


def load_policy(name: str, sizes: Sizes, *, trust_remote_code: bool) -> tuple[nn.Module, Any]:
    """A causal language model, on this process's device, and its tokenizer.

    Raises:
        ValueError: it cannot be loaded, or needs code of its own that is not trusted.
    """
    from transformers import AutoModelForCausalLM

    tokenizer = pretrained_tokenizer(name, trust_remote_code=trust_remote_code)
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, sizes.dtype), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise cannot_load("model", name, error) from error
    return model.to(device()).eval(), tokenizer
