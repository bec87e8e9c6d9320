"""Which run a folder belongs to, and where that run goes on.

A run is what it is made of: the weights of its model, the tokenizer, the rows, and the arguments
that change what is trained. Where model and data lie does not count. A folder of another run is
refused before anything in it is touched.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llm.options import listed

RECORD = "training.json"
CONTENT = "content"  # key of the fingerprints in the record
PARTS = {
    "model": "model",
    "tokenizer": "tokenizer",
    "rows": "training rows",
    "eval_rows": "evaluation rows",
}

# Arguments that do not change what is trained, so that a run may be resumed with others; of places
# the content is compared.
MAY_CHANGE = (
    *(
        "output_dir",
        "logging_dir",
        "logging_steps",
        "report_to",
        "run_name",
        "disable_tqdm",
        "save_steps",
        "save_total_limit",
    ),
    *(
        "eval_steps",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "local_rank",
        "resume_from_checkpoint",
    ),
    *(
        "model",
        "revision",
        "tokenizer",
        "trust_remote_code",
        "data",
        "data_name",
        "split",
        "eval_data",
        "eval_split",
    ),
    *(
        "reference_cache",
        "columns",
        "strings",
        "ties",
        "drop_bad_rows",
        "long_prompts",
        "max_length",
    ),  # the rows in tokens are compared
)


def rows_fingerprint(rows: Dataset | None) -> str | None:
    """SHA-256 of all that is trained on: tokens, labels, weights and groups, in the order of the
    rows; None of no rows."""
    if rows is None:
        return None
    digest = hashlib.sha256()
    for part in rows.with_format("pandas").iter(batch_size=10_000):
        columns = {
            name: part[name].map(tuple) if name.endswith("_ids") else part[name]
            for name in sorted(part.columns)
        }
        digest.update(
            pd.util.hash_pandas_object(pd.DataFrame(columns), index=False).to_numpy().tobytes()
        )
    return digest.hexdigest()


def refuse_another_run(out: Path, configuration: dict[str, Any]) -> None:
    """Raise ValueError for a folder that holds what another run has computed, or a model of unknown
    origin."""
    kept = _kept(out)
    before = _record(out)
    if not kept:
        return
    if before is None:
        raise ValueError(
            f"{out} has {kept}, but no readable {RECORD} says of which run. Choose another"
            f" --output_dir; to go on with that run, put its {RECORD} back."
        )
    changed = _changed(before, configuration)
    if changed:
        raise ValueError(
            f"{out} has {kept} of a run with other arguments or data: {', '.join(changed[:5])}."
            " Choose another --output_dir; what is there stays, and goes on with the command that"
            " it was begun with."
        )
    if CONTENT not in before:
        print(
            f"{out / RECORD} is of an earlier version, without a fingerprint of the evaluation"
            " rows: they are taken for the same",
            file=sys.stderr,
        )


def stored_metrics(out: Path, configuration: dict[str, Any]) -> dict[str, float] | None:
    """The metrics of the same run, if it has finished."""
    before = _record(out)
    if before is None or "metrics" not in before or _changed(before, configuration):
        return None
    return dict(before["metrics"])


def last_checkpoint(out: Path, configuration: dict[str, Any]) -> Path | None:
    """The last complete checkpoint of the run, None if there is none; to be called after
    `refuse_another_run`.

    Raises ValueError for checkpoints that have no state of the optimizer.
    """
    folders = _checkpoints(out)
    if folders and configuration["save_only_model"]:
        raise ValueError(
            f"{out} was saved with --save_only_model: without the state of the optimizer the run"
            " would go on as another one. Choose another --output_dir; leave the option out in"
            " runs that may have to resume."
        )
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[-1]), reverse=True):
        if _complete(folder):
            return folder
        print(
            f"{folder} is incomplete: the run was stopped while it was written, and goes on from"
            " before it",
            file=sys.stderr,
        )
    return None


def _checkpoints(out: Path) -> list[Path]:
    return [
        path
        for path in out.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.name.split("-")[-1].isdigit()
    ]


def _kept(out: Path) -> str:
    """What of a run is in the folder, in words: checkpoints, or a model. Nothing else is lost when
    a run begins there."""
    if _checkpoints(out):
        return "checkpoints"
    model = [
        path.name
        for pattern in ("*.safetensors", "*.bin")
        for path in out.glob(pattern)
        if "model" in path.name
    ]
    return f"a model ({model[0]})" if model else ""


def _complete(checkpoint: Path) -> bool:
    """The Trainer writes its state last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return True
    except (OSError, ValueError):
        return False


def _record(out: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return (
        found
        if isinstance(found, dict)
        and "objective" in found
        and (CONTENT in found or "rows" in found)
        else None
    )


def _changed(before: dict[str, Any], configuration: dict[str, Any]) -> list[str]:
    """What differs from the record, in words. What the record of an earlier version does not have
    is not compared."""
    content = before.get(CONTENT) or {
        **(before.get("reference") or {}),
        "rows": before.get("rows"),
    }  # as earlier versions had it
    now = configuration[CONTENT]
    found = [
        f"{words} ({_short(content[part])} then, {_short(now[part])} now)"
        for part, words in PARTS.items()
        if part in content and content[part] != now[part]
    ]
    for key in configuration:
        if key in MAY_CHANGE or key == CONTENT or key not in before:
            continue
        then = listed(before[key]) or None if key == "lora_targets" else before[key]
        if then != configuration[key]:
            if key == "plugins":
                found += _sources(before[key], configuration[key])
            else:
                found.append(f"{key} ({before[key]} then, {configuration[key]} now)")
    return found


def _sources(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Losses and objectives from outside whose source is another than then."""
    return [
        f"the source of {name} ({_short(before.get(name))} then, {_short(now[name])} now)"
        for name in now
        if now[name] != before.get(name)
    ]


def _short(fingerprint: str | None) -> str:
    return "none" if fingerprint is None else fingerprint[:12]
