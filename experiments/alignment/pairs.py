"""Preference pairs from completions and their rewards: what annotators would say, or the best
against the worst."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.engine.store import write_json, write_text
from llm.generate import bradley_terry

Array = NDArray[np.float64]


def write_pairs(
    folder: Path,
    prompts: list[Any],
    first: pd.DataFrame,
    second: pd.DataFrame,
    first_wins: NDArray[np.bool_],
) -> None:
    """Write pairs as `prefdro train` reads them, pairs.jsonl of prompt, chosen and rejected, and
    count.json: how many they are.

    Args:
        prompts: all of them, strings or lists of messages; a table's column `prompt` numbers them.
        first, second: completions of the same prompts, with columns prompt and text. Equal or empty
            ones are left out; those that were cut at their greatest length are taken as they are,
            and trained on as if they had ended there.
        first_wins: (n,) which of the two is chosen.

    Raises:
        ValueError: no pair is left.
    """
    lines = []
    for number, a, b, wins in zip(first.prompt, first.text, second.text, first_wins, strict=True):
        if a == b or not a.strip() or not b.strip():
            continue
        chosen, rejected = (a, b) if wins else (b, a)
        lines.append(json.dumps(_row(prompts[number], chosen, rejected), ensure_ascii=False) + "\n")
    if not lines:
        raise ValueError(
            f"of {len(first)} pairs of completions none is left (pairs of equal or empty"
            " completions are left out: they say nothing, or cannot be trained on). Take more"
            " prompts, or longer completions."
        )
    write_text("".join(lines), folder / "pairs.jsonl")
    write_json({"pairs": len(lines), "of": len(first)}, folder / "count.json")


def count_pairs(folder: Path) -> int:
    """How many pairs a folder holds."""
    return int(json.loads((folder / "count.json").read_text(encoding="utf-8"))["pairs"])


def of_pairs(folder: Path) -> int:
    """How many pairs there were, of which a folder holds those that could be taken."""
    return int(json.loads((folder / "count.json").read_text(encoding="utf-8"))["of"])


def shared_prompts(folder: Path, other: Path) -> int:
    """How many pairs of a folder have a prompt that is one of the other folder's."""
    asked = [
        [
            json.dumps(json.loads(line).get("prompt"), sort_keys=True)
            for line in (place / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for place in (folder, other)
    ]
    known = set(asked[1]) - {"null"}  # pairs without a prompt of their own
    return sum(prompt in known for prompt in asked[0])


def _row(prompt: Any, chosen: str, rejected: str) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    answers = {
        name: [{"role": "assistant", "content": text}]
        for name, text in (("chosen", chosen), ("rejected", rejected))
    }
    return {"prompt": prompt, **answers}


def two_of_each(completions: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The first and the second completion of every prompt, row by row."""
    first, second = (
        completions[completions.completion == k].reset_index(drop=True) for k in (0, 1)
    )
    return first, second


def annotators(first: Array, second: Array, scale: float, seed: int) -> NDArray[np.bool_]:
    """Whether annotators prefer the first of each pair (n,): Bradley-Terry with scale times the
    rewards (n,)."""
    return bradley_terry(scale * first, scale * second, seed)


def best_and_worst(completions: pd.DataFrame, reward: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The completions of each prompt with the highest and the lowest reward, row by row; of equals
    the earlier one."""
    by_prompt = completions.groupby("prompt")[reward]
    best, worst = (
        completions.loc[by_prompt.agg(which)].reset_index(drop=True)
        for which in ("idxmax", "idxmin")
    )
    return best, worst


def take_pairs(
    folder: Path,
    source: str,
    split: str,
    count: int,
    seed: int,
    keep: Callable[[list[dict[str, Any]]], list[int]] | None = None,
    after: int = 0,
) -> None:
    """At most `count` pairs of a data set, drawn at random, as pairs.jsonl and count.json: how many
    they are, and of how many.

    Args:
        keep: the positions of those that may be taken, of rows; None: all.
        after: so many of them, in the random order, are passed over first.

    Raises:
        ValueError: none may be taken.
    """
    from llm.data.tokens import load_rows

    rows = load_rows(source, split)
    columns = ("prompt", "chosen", "rejected")
    order = np.random.default_rng(seed).permutation(len(rows))
    if keep is not None:
        order = order[np.isin(order, keep(rows))]
    if len(order) <= after:
        raise ValueError(
            f"of {len(rows)} pairs of {source} (split {split}) {len(order)} can be taken, and"
            f" {after} of them are those of the test: raise prompt_tokens or new_tokens, or take"
            " more data."
        )
    of = len(rows)
    order = order[after : after + count]
    rows = [{name: rows[i][name] for name in columns if name in rows[i]} for i in order]
    write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), folder / "pairs.jsonl"
    )
    write_json({"pairs": len(rows), "of": of}, folder / "count.json")
