"""Which run a folder belongs to, and where that run goes on."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

RECORD = "training.json"

# Arguments that do not change what is trained, so that a run may be resumed with others.
MAY_CHANGE = (
    *("output_dir", "logging_dir", "logging_steps", "report_to", "run_name", "disable_tqdm", "save_steps", "save_total_limit"),
    *("eval_steps", "dataloader_num_workers", "dataloader_pin_memory", "local_rank", "resume_from_checkpoint"),
)


def rows_fingerprint(rows: Dataset) -> str:
    """SHA-256 of all that is trained on: tokens, labels, weights and groups, in the order of the rows."""
    digest = hashlib.sha256()
    for part in rows.with_format("pandas").iter(batch_size=10_000):
        columns = {name: part[name].map(tuple) if name.endswith("_ids") else part[name] for name in sorted(part.columns)}
        digest.update(pd.util.hash_pandas_object(pd.DataFrame(columns), index=False).to_numpy().tobytes())
    return digest.hexdigest()


def stored_metrics(out: Path, configuration: dict[str, Any]) -> dict[str, float] | None:
    """The metrics of the same run, if it has finished."""
    before = _record(out)
    if before is None or "metrics" not in before or _changed(before, configuration):
        return None
    return dict(before["metrics"])


def last_checkpoint(out: Path, configuration: dict[str, Any]) -> Path | None:
    """The last complete checkpoint of the same run, None if there is none.

    Raises ValueError for the folder of another run, and for checkpoints that have no state of the optimizer.
    """
    folders = [path for path in out.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.split("-")[-1].isdigit()]
    if not folders:
        return None
    before = _record(out)
    if before is None:
        raise ValueError(
            f"{out} has checkpoints, but no readable {RECORD} says of which run. Choose another --output_dir, or delete them."
        )
    if changed := _changed(before, configuration):
        named = ", ".join(f"{key} ({before.get(key)} then, {configuration[key]} now)" for key in changed[:5])
        raise ValueError(
            f"{out} has checkpoints of a run with other arguments or data: {named}. Choose another --output_dir, or delete the "
            "folder."
        )
    if configuration["save_only_model"]:
        raise ValueError(
            f"{out} was saved with --save_only_model: without the state of the optimizer the run would go on as another one. "
            "Choose another --output_dir, or delete the folder; leave the option out in runs that may have to resume."
        )
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[-1]), reverse=True):
        if _complete(folder):
            return folder
        print(f"{folder} is incomplete: the run was stopped while it was written, and goes on from before it", file=sys.stderr)
    return None


def _complete(checkpoint: Path) -> bool:
    """The Trainer writes its state last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return True
    except (OSError, ValueError):
        return False


def _record(out: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((out / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _changed(before: dict[str, Any], configuration: dict[str, Any]) -> list[str]:
    return [key for key in configuration if key not in MAY_CHANGE and before.get(key) != configuration[key]]
