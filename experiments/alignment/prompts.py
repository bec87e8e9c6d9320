"""Stage `prompts`: what the policies are asked, in training and in the test."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.alignment.study import Study
from experiments.engine.ranks import rank
from experiments.engine.stages import Stage, content, derived_seed, stage
from experiments.engine.store import write_text

FILES = {"train": "train.jsonl", "test": "test.jsonl"}


def prompts_stage(study: Study) -> Stage:
    """A folder with `train.jsonl` and `test.jsonl`, each line {"prompt": a string or a list of
    messages}."""
    names = ("split", "test_split", "prompts", "test_prompts", "prompt_tokens")
    made_from = {name: getattr(study.sizes, name) for name in names}
    made_from |= {
        "seed": study.options.seed,
        "code": study.code,
        "source": content(study.sizes.source),
    }
    return stage(
        study.root, "prompts", made_from | study.models.made_from, partial(_make, study=study)
    )


def _make(folder: Path, study: Study) -> None:
    if rank() != 0:
        return
    sizes = study.sizes
    wanted = {"train": (sizes.split, sizes.prompts), "test": (sizes.test_split, sizes.test_prompts)}
    for number, (part, (split, count)) in enumerate(wanted.items()):
        if study.models.texts is not None:
            prompts = beginnings(
                study.models.texts / f"{split}.parquet", sizes.prompt_tokens, count
            )
        else:
            prompts = _load(study, split, count, derived_seed(study.options.seed, 20, number))
        write_text(
            "".join(
                json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in prompts
            ),
            folder / FILES[part],
        )


def beginnings(texts: Path, words: int, count: int) -> list[str]:
    """The first words of the first `count` texts of a stored corpus."""
    return [" ".join(text.split()[:words]) for text in pd.read_parquet(texts).text.head(count)]


def _load(study: Study, split: str, count: int, seed: int) -> list[Any]:
    from llm.data.chat import as_messages
    from llm.data.prompts import load_prompts
    from llm.models import pretrained_tokenizer

    tokenizer = pretrained_tokenizer(
        study.models.policy, trust_remote_code=study.options.trust_remote_code
    )
    prompts = load_prompts(
        study.sizes.source, tokenizer, split=split, seed=seed, max_tokens=study.sizes.prompt_tokens
    )[:count]
    return [as_messages(prompt) if tokenizer.chat_template else prompt for prompt in prompts]


def read_prompts(path: Path) -> list[Any]:
    """The prompts of a file that the stage wrote."""
    return [json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines()]
