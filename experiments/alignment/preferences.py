"""Stages of preference pairs: labelled by annotators here, or stored in a data set; with a share of
the labels exchanged, or of another population."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.alignment.pairs import (
    Array,
    annotators,
    count_pairs,
    take_pairs,
    two_of_each,
    write_pairs,
)
from experiments.alignment.policies import scored
from experiments.alignment.prompts import FILES, read_prompts
from experiments.alignment.study import Study
from experiments.engine.ranks import rank
from experiments.engine.stages import Stage, content, derived_seed, stage
from experiments.engine.store import write_json, write_text


@dataclass(frozen=True)
class Annotators:
    """Who compares completions. name: of the stage. reward: a table of scored completions -> what
    they go by, (n,). knows: what the reward depends on, for the record. purpose: tells their random
    numbers apart, with the number of the replicate."""

    name: str
    reward: Callable[[pd.DataFrame], Array]
    knows: dict[str, Any]
    purpose: int


def labelled_pairs(
    study: Study,
    prompts: Stage,
    completions: Stage,
    scores: Stage,
    part: str,
    who: Annotators,
    replicate: int,
) -> Stage:
    """Two completions of each prompt of `part`, labelled by annotators: pairs.jsonl."""
    scale = study.sizes.label_scale
    made_from = who.knows | {
        "scores": scores.digest,
        "scale": scale,
        "replicate": replicate,
        "code": study.code,
    }

    def make(folder: Path) -> None:
        if rank() != 0:
            return
        first, second = two_of_each(scored(completions, scores))
        seed = derived_seed(study.options.seed, who.purpose, replicate)
        wins = annotators(who.reward(first), who.reward(second), scale, seed)
        write_pairs(folder, read_prompts(prompts.folder / FILES[part]), first, second, wins)

    return stage(study.root, f"pairs-{who.name}-seed-{replicate}", made_from, make)


def stored_pairs(
    study: Study,
    part: str,
    source: str,
    split: str,
    count: int,
    *,
    whole: bool,
    strings: str | None,
    after: int = 0,
) -> Stage:
    """At most `count` pairs of a data set, as they are; the labels are there.

    Args:
        part: names the stage.
        whole: only pairs of which nothing is cut within the study's greatest length.
        split: of the data set; a file has none.
        strings: how strings are read, of `llm.data.tokens.tokenise`.
        after: so many are passed over first.
    """
    split = "train" if is_file(source) else split
    made_from: dict[str, Any] = {
        "source": content(source),
        "split": split,
        "count": count,
        "after": after,
        "seed": study.options.seed,
        "code": study.code,
    }
    most = study.sizes.prompt_tokens + study.sizes.new_tokens
    if whole:
        made_from |= {"whole": most, "strings": strings, "model": study.models.made_from["model"]}

    def keep(rows: list[dict[str, Any]]) -> list[int]:
        from llm.data.tokens import tokenise
        from llm.models import pretrained_tokenizer

        with warnings.catch_warnings():  # said where they are trained on
            warnings.simplefilter("ignore", UserWarning)
            tokenizer = pretrained_tokenizer(
                study.models.policy, trust_remote_code=study.options.trust_remote_code
            )
            data = tokenise(rows, tokenizer, strings=strings)
        longest = [
            len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
            for row in data
        ]
        return [i for i, length in zip(data["index"], longest, strict=True) if length <= most]

    def make(folder: Path) -> None:
        if rank() == 0:
            take_pairs(
                folder,
                source,
                split,
                count,
                derived_seed(study.options.seed, 27),
                keep if whole else None,
                after,
            )

    return stage(study.root, f"pairs-{part}", made_from, make)


def is_file(source: str) -> bool:
    """Whether a source is a single file."""
    return Path(source).expanduser().is_file()


def flipped_pairs(study: Study, pairs: Stage, share: float, seed: int) -> Stage:
    """The same pairs, of which a random share (rounded to a number of pairs) has chosen and
    rejected exchanged; `seed` numbers the replicate."""
    made_from = {"pairs": pairs.digest, "share": share, "replicate": seed, "code": study.code}

    def make(folder: Path) -> None:
        if rank() != 0:
            return
        lines = (pairs.folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
        rng = np.random.default_rng(derived_seed(study.options.seed, 30, seed))
        wrong = set(rng.permutation(len(lines))[: round(share * len(lines))].tolist())
        rows = [exchanged(json.loads(line), i in wrong) for i, line in enumerate(lines)]
        write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
            folder / "pairs.jsonl",
        )
        counted = {"pairs": len(rows), "of": count_pairs(pairs.folder), "flipped": len(wrong)}
        write_json(counted, folder / "count.json")

    name = pairs.folder.name.removesuffix(f"-seed-{seed}")
    return stage(study.root, f"{name}-flip-{share:g}-seed-{seed}", made_from, make)


def exchanged(row: dict[str, Any], yes: bool) -> dict[str, Any]:
    """The pair with chosen and rejected exchanged, if so."""
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]} if yes else row
