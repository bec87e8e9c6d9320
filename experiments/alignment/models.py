"""Models of the alignment stages: loaded from folders or the hub, or the generated ones of a small
machine."""

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.alignment.emotion_profiles import PROFILES as GENERATED
from experiments.alignment.emotion_profiles import Profile as Generated
from experiments.alignment.emotion_stages import prepare_models
from experiments.alignment.sizes import Options, Sizes
from experiments.engine.ranks import device, rank, ranks, wait_for_all
from experiments.engine.stages import content
from llm.judges.load import objectives_of
from llm.models import load_language_model, pretrained_tokenizer
from llm.special_ids import settle_special_ids
from llm.weights import located


@dataclass(frozen=True)
class Models:
    """The model that policies start from and the reward model: folders, or names on the hub.

    made_from: what they are, for the record of a stage that uses them. texts: folder of the texts,
    if they are made here. start: the pretrained model that they are made of, if any.
    """

    policy: str
    judge: str
    made_from: dict[str, Any]
    texts: Path | None
    start: str | None = None


def prepare(sizes: Sizes, options: Options, workers: int) -> Models:
    """The models that the sizes name; those that are generated are made in `options.shared`, once
    for all experiments."""
    if sizes.model is not None and sizes.judge is not None:
        made_from = {
            "model": content(located(sizes.model)),
            "judge": content(sizes.judge),
        }
        return Models(
            os.path.expanduser(sizes.model), os.path.expanduser(sizes.judge), made_from, None
        )
    kind = options.profile if options.profile in ("smoke", "small") else "quick"
    if ranks() > 1:
        if rank() == 0:
            _make_alone(kind, sizes, options, workers)
        wait_for_all()
    profile = generated(kind, sizes.source, sizes.bf16)
    texts, policy, judge = prepare_models(
        profile, options.shared, seed=options.seed, workers=workers
    )
    return Models(
        str(policy.folder),
        str(judge.folder),
        {"model": policy.digest, "judge": judge.digest},
        texts.folder,
        profile.model,
    )


def generated(kind: str, source: str, bf16: bool) -> Generated:
    """How the emotion study makes its models in that profile, from texts of a source; bf16 is for
    pretrained ones."""
    profile = replace(GENERATED[kind], source=source)
    return replace(profile, bf16=bf16) if profile.model is not None else profile


def _make_alone(kind: str, sizes: Sizes, options: Options, workers: int) -> None:
    """Make the generated models outside of the launch, as a single process does."""
    launched = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_",
        "GROUP_",
        "ROLE_",
        "MASTER_",
        "TORCHELASTIC_",
        "ACCELERATE_",
    )
    alone = {name: value for name, value in os.environ.items() if not name.startswith(launched)}
    module = "experiments.alignment.make_models"
    words = [kind, sizes.source, str(int(sizes.bf16)), str(options.shared)]
    words += [str(options.seed), str(workers)]
    subprocess.run([sys.executable, "-m", module, *words], env=alone, check=True)


def check_objectives(models: Models, names: Iterable[str]) -> None:
    """Raise ValueError where the reward model has no objective of one of the names."""
    known = objectives_of(models.judge)
    if missing := sorted(set(names) - set(known)):
        raise ValueError(
            f"the reward model {models.judge} has no objective {', '.join(missing)}; it has"
            f" {', '.join(known)}."
        )


def load_policy(name: str, *, trust_remote_code: bool) -> tuple[nn.Module, Any]:
    """A causal language model in float32, on this process's device, and its tokenizer; an adapter
    is merged into its model.

    In bfloat16 most of what a training with a small learning rate changes would be rounded away: at
    5e-7 and 300 steps weights of size 0.02 move by about 1e-5, and the next bfloat16 number is 6e-5
    to 1e-4 away.

    Raises:
        ValueError: it cannot be loaded, or needs code of its own that is not trusted.
    """
    tokenizer = pretrained_tokenizer(name, trust_remote_code=trust_remote_code)
    model = load_language_model(name, dtype=torch.float32, trust_remote_code=trust_remote_code)
    settle_special_ids(model, tokenizer)
    return model.to(device()).eval(), tokenizer
