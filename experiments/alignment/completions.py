"""Completions of prompts by a language model, part by part, so that a run that was killed goes on
where it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.alignment.models import load_policy
from experiments.alignment.prompts import read_prompts
from experiments.alignment.sizes import Sizes
from experiments.engine.stages import derived_seed, in_parts
from llm.data.chat import token_rows
from llm.generate import Completions, complete, draw_uniforms
from llm.judges.evaluate import completion_logprobs

ROWS_IN_A_PART = 256  # a part is what a kill loses, and what the processes of a launch share
TOKENS_AT_ONCE = 2**15  # of prompts and completions in one forward pass of the sampler


def write_completions(
    folder: Path,
    *,
    policy: str,
    prompts: Path,
    count: int,
    sizes: Sizes,
    seed: int,
    trust_remote_code: bool,
    start: str | None = None,
    name: str = "completions",
) -> Path:
    """A table in the folder, `completions.parquet` or of another name: `count` completions of each
    prompt.

    Columns prompt (number in the file), completion (number), text, tokens, ended (whether it came
    to its end) and, with a model `start` to compare with, log_ratio: log pi(y|x) - log
    pi_start(y|x), nats, both at the temperature of the samples, so that its mean estimates KL(pi ||
    pi_start). The random numbers depend on seed, prompt and count only: policies of the same seed
    are compared on paired samples.
    """
    rows = read_prompts(prompts)
    loaded: list = []

    def make(part: slice, number: int) -> pd.DataFrame:
        if not loaded:  # nothing is loaded where all parts are there
            loaded.extend(
                load_policy(name, trust_remote_code=trust_remote_code)
                for name in (policy, start)
                if name
            )
        model, tokenizer = loaded[0]
        eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        ids = [row for row in token_rows(tokenizer, rows[part]) for _ in range(count)]
        uniforms = draw_uniforms(len(ids), sizes.new_tokens, derived_seed(seed, 21, number))
        batch = max(1, TOKENS_AT_ONCE // (max(map(len, ids)) + sizes.new_tokens))
        written = complete(
            model, ids, uniforms, eos=eos, pad=pad, temperature=sizes.temperature, batch_size=batch
        )
        table = pd.DataFrame(
            {
                "prompt": np.repeat(np.arange(part.start, part.stop), count),
                "completion": np.tile(np.arange(count), part.stop - part.start),
                "text": decoded(tokenizer, written),
                "tokens": [len(row) for row in written.completions],
                "ended": [row[-1] == eos for row in written.completions],
            }
        )
        if start is not None:
            own, other = (
                completion_logprobs(one, written, pad, batch, temperature=sizes.temperature)
                for one, _ in loaded
            )
            table["log_ratio"] = own - other
        return table

    return in_parts(folder, name, len(rows), max(1, ROWS_IN_A_PART // count), make)


def decoded(tokenizer: Any, written: Completions) -> list[str]:
    """The text of each completion as it follows its prompt, with the blank between them."""
    whole = [
        [*prompt, *completion]
        for prompt, completion in zip(written.prompts, written.completions, strict=True)
    ]
    texts, prompts = (
        tokenizer.batch_decode(rows, skip_special_tokens=True)
        for rows in (whole, list(written.prompts))
    )
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
