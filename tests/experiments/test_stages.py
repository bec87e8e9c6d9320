"""Stages: made once, made again when anything changed, gone on with after a kill, shared by the
processes of a launch."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from experiments.engine.stages import content, derived_seed, in_parts, stage, times, together
from tests.launches import PATIENCE, launch


def counting(made: list[Path]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "artefact").write_text(str(len(made)))

    return make


def test_a_stage_is_made_once_from_the_same_and_again_from_anything_else(tmp_path: Path) -> None:
    made: list[Path] = []
    first = stage(tmp_path, "texts", {"a": (1, 2)}, counting(made))
    assert stage(tmp_path, "texts", {"a": [1, 2]}, counting(made)) == first  # as JSON has it
    assert len(made) == 1
    other = stage(tmp_path, "texts", {"a": [1, 3]}, counting(made))
    assert len(made) == 2 and other.digest != first.digest and other.folder == first.folder
    assert (other.folder / "artefact").read_text() == "2"
    stage(tmp_path, "policy", {"code": "1"}, counting(made))
    assert list(times(tmp_path, "1").stage) == ["policy"] and times(tmp_path, "2").empty


def test_what_a_killed_stage_has_written_is_used_again_by_the_same_only(tmp_path: Path) -> None:
    seen: list[bool] = []

    def make(folder: Path) -> None:
        seen.append((folder / "half").is_file())
        (folder / "half").write_text("done")
        if len(seen) < 3:
            raise KeyboardInterrupt

    for made_from, there in (({"a": 1}, False), ({"a": 2}, False)):
        with pytest.raises(KeyboardInterrupt):
            stage(tmp_path, "policy", made_from, make)
        assert seen[-1] is there and not (tmp_path / "policy").exists()
    finished = stage(tmp_path, "policy", {"a": 2}, make)
    assert seen == [False, False, True] and (finished.folder / "half").read_text() == "done"


def test_a_record_that_was_cut_short_is_not_trusted(tmp_path: Path) -> None:
    made: list[Path] = []
    first = stage(tmp_path, "texts", {"a": 1}, counting(made))
    (first.folder / "made_from.json").write_text('{"a": ')
    stage(tmp_path, "texts", {"a": 1}, counting(made))
    assert len(made) == 2


def test_parts_that_are_there_are_not_made_again(tmp_path: Path) -> None:
    asked: list[int] = []

    def make(rows: slice, number: int) -> pd.DataFrame:
        asked.append(number)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return pd.DataFrame({"row": range(rows.start, rows.stop)})

    with pytest.raises(KeyboardInterrupt):
        in_parts(tmp_path, "table", 10, 3, make)
    whole = in_parts(tmp_path, "table", 10, 3, make)
    assert asked == [0, 1, 2, 2, 3]
    assert list(pd.read_parquet(whole).row) == list(range(10))
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]
    in_parts(tmp_path, "table", 10, 3, make)
    assert len(asked) == 5


def test_results_are_in_the_order_of_the_tasks_whatever_the_number_of_processes() -> None:
    tasks = [lambda k=k: (k, os.getpid()) for k in range(5)]
    for workers in (1, 2):
        assert [number for number, _ in together(tasks, workers)] == list(range(5))


def test_two_processes_at_one_stage_make_it_once(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from experiments.engine.stages import stage
def make(folder):
    with open(sys.argv[1] + "/log", "a") as log:
        log.write("made\\n")
    time.sleep(1.5)
stage(Path(sys.argv[1]), "slow", {"a": 1}, make)
"""
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(PATIENCE) for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "made\n"


def test_processes_of_a_launch_share_the_parts_of_a_stage(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
import pandas as pd
from experiments.engine.stages import in_parts, stage
root = Path(sys.argv[1])
def make(folder):
    def rows_of(rows, number):
        return pd.DataFrame({"row": range(rows.start, rows.stop), "rank": int(os.environ["RANK"])})
    in_parts(folder, "table", 7, 2, rows_of)
for name in ("one", "two"):
    made = stage(root, name, {"a": name}, make)
    assert stage(root, name, {"a": name}, None) == made
"""
    (tmp_path / "program.py").write_text(code)
    done = launch([tmp_path / "program.py", tmp_path], tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("one", "two"):
        table = pd.read_parquet(tmp_path / name / "table.parquet")
        assert list(table.row) == list(range(7)) and list(table["rank"]) == [0, 0, 1, 1, 0, 0, 1]
        assert json.loads((tmp_path / name / "made_from.json").read_text()) == {"a": name}


def test_a_source_is_its_content_wherever_it_lies(tmp_path: Path) -> None:
    assert (content("org/model"), content(None)) == ("org/model", None)
    model = tmp_path / "model"
    (model / "parts").mkdir(parents=True)
    (model / "parts" / "weights").write_text("1")
    (model / "config.json").write_text("{}")
    before = content(model)
    assert sorted(before) == ["config.json", "parts/weights"]
    (model / ".cache").mkdir()
    (model / ".cache" / "downloaded").write_text("today")
    model.rename(tmp_path / "elsewhere")
    assert content(tmp_path / "elsewhere") == before
    (tmp_path / "elsewhere" / "parts" / "weights").write_text("2")
    assert content(str(tmp_path / "elsewhere")) != before
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("row")
    assert content(tmp_path / "a.jsonl") == content(tmp_path / "b.jsonl")


def test_an_adapter_is_also_the_model_that_it_changes(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter):
        folder.mkdir()
        (folder / "weights").write_text("1")
    record = {"base_model_name_or_path": str(base), "peft_type": "LORA", "task_type": "CAUSAL_LM"}
    (adapter / "adapter_config.json").write_text(json.dumps(record))
    before = content(adapter)
    (base / "weights").write_text("2")
    assert content(adapter) != before


def test_seeds_differ_by_purpose_and_replicate() -> None:
    seeds = {
        derived_seed(0, purpose, replicate) for purpose in range(20) for replicate in range(20)
    }
    assert len(seeds) == 400 and derived_seed(0, 1, 2) == derived_seed(0, 1, 2)
