"""Log-probabilities that a policy gives to the responses of stored preference pairs."""

import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.alignment.models import load_policy
from experiments.alignment.study import Study
from experiments.engine.stages import in_parts
from llm.generate import Completions
from llm.judges.evaluate import completion_logprobs
from llm.models import pretrained_tokenizer

PAIRS_IN_A_PART = 256
BATCH = {
    True: 64,
    False: 8,
}  # responses in one forward pass: of the generated model, of a large one


def write_response_logps(
    folder: Path,
    *,
    study: Study,
    policy: str,
    pairs: Path,
    strings: str | None = None,
    name: str = "logps",
) -> Path:
    """The table `logps.parquet`, or of another name, in the folder: columns chosen and rejected,
    log pi(y|x) in nats; chosen_tokens and rejected_tokens, their lengths; a row for each pair whose
    prompt leaves room for a response. Long responses are cut."""
    from llm.data.tokens import load_rows, padding_token, tokenise

    tokenizer = pretrained_tokenizer(policy, trust_remote_code=study.options.trust_remote_code)
    most = study.sizes.prompt_tokens + study.sizes.new_tokens
    with warnings.catch_warnings():
        # of a generated completion only the end of sequence is cut, that it had not come to; what
        # is cut of given ones is so for every policy, and documented
        warnings.filterwarnings("ignore", ".*cut at the end of the completion", UserWarning)
        rows = tokenise(
            load_rows(pairs),
            tokenizer,
            "pairs",
            max_length=most,
            long_prompts="drop",
            strings=strings,
        )
    batch = BATCH[study.models.texts is not None]
    loaded: list[Any] = []

    def logps(part: dict[str, Any], column: str) -> Any:
        model, own = loaded  # padding may be another token than before: one that the model knows
        return completion_logprobs(
            model, Completions(part["prompt_ids"], part[column]), padding_token(own), batch
        )

    def make(part: slice, _: int) -> pd.DataFrame:
        if not loaded:
            loaded.extend(load_policy(policy, trust_remote_code=study.options.trust_remote_code))
        taken = rows[part.start : part.stop]
        sides = ("chosen", "rejected")
        values = {side: logps(taken, f"{side}_ids") for side in sides}
        lengths = {f"{side}_tokens": list(map(len, taken[f"{side}_ids"])) for side in sides}
        return pd.DataFrame({"pair": taken["index"], **values, **lengths})

    return in_parts(folder, name, len(rows), PAIRS_IN_A_PART, make)
