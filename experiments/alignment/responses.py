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


def write_response_logps(folder: Path, *, study: Study, policy: str, pairs: Path) -> Path:
    """The table `logps.parquet` in the folder: columns chosen and rejected, log pi(y|x) in nats, a
    row for each pair."""
    from llm.data.tokens import load_rows, padding_token, tokenise

    tokenizer = pretrained_tokenizer(policy, trust_remote_code=study.options.trust_remote_code)
    most = study.sizes.prompt_tokens + study.sizes.new_tokens
    with warnings.catch_warnings():
        if (
            study.models.texts is not None
        ):  # of a generated completion only the end of sequence is cut, that it had not come to
            warnings.filterwarnings("ignore", ".*cut at the end of the completion", UserWarning)
        rows = tokenise(load_rows(pairs), tokenizer, "pairs", max_length=most, long_prompts="drop")
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
        return pd.DataFrame(
            {"chosen": logps(taken, "chosen_ids"), "rejected": logps(taken, "rejected_ids")}
        )

    return in_parts(folder, "logps", len(rows), PAIRS_IN_A_PART, make)
