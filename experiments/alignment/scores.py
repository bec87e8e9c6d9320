"""Rewards of completions by a reward model, part by part."""

from pathlib import Path
from typing import Any

import pandas as pd

from experiments.alignment.prompts import read_prompts
from experiments.alignment.sizes import Sizes
from experiments.engine.ranks import device
from experiments.engine.stages import in_parts
from llm.judges.load import load_reward_model

ROWS_IN_A_PART = 1024


def write_scores(
    folder: Path,
    *,
    completions: Path,
    prompts: Path,
    judge: str,
    sizes: Sizes,
    trust_remote_code: bool,
) -> Path:
    """The table `scores.parquet` in the folder: a row for each completion, a column for each
    objective of the reward model."""
    table, asked = pd.read_parquet(completions), read_prompts(prompts)
    loaded: list[Any] = []
    given = sizes.judge is not None
    dtype = "bfloat16" if sizes.bf16 and given else "float32"

    def make(part: slice, _: int) -> pd.DataFrame:
        if not loaded:
            loaded.append(
                load_reward_model(
                    judge, dtype=dtype, device=device(), trust_remote_code=trust_remote_code
                )
            )
        rows = table.iloc[part]
        rewards = loaded[0].score([asked[k] for k in rows.prompt], list(rows.text))
        return pd.DataFrame(rewards, columns=list(loaded[0].names))

    return in_parts(folder, "scores", len(table), ROWS_IN_A_PART, make)
