"""The run on a GPU, rehearsed on the CPU: stages leave their tables, within their time."""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from experiments.bench import gpu
from experiments.bench.gpu import Gpu, Stage, environment, run, stages
from experiments.cli import main


def config(out: Path, **more: Any) -> Gpu:
    return Gpu(out=out, rehearse=True, model="no/weights", **more)


def script(name: str, code: str, share: float = 1.0) -> Stage:
    return Stage(name, [sys.executable, "-c", code], share, f"{name}.csv")


def write(path: Path, rows: int = 1) -> str:
    """Code that writes a table."""
    return f"open({str(path)!r}, 'w').write({'a' + chr(10) + rows * ('1' + chr(10))!r})"


def outcomes(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "gpu.csv", keep_default_na=False).set_index("stage")


@pytest.mark.parametrize(
    "study",
    [
        pytest.param((), id="no-study"),
        pytest.param(("armorm",), id="armorm", marks=pytest.mark.slow),
    ],
)
def test_every_stage_runs_and_leaves_its_table(study: tuple[str, ...], tmp_path: Path) -> None:
    """The studies are tested by themselves; here only that they can be stages."""
    wanted = ("environment", "tests", "solvers", "training", *study)
    assert run(config(tmp_path, stages=wanted, minutes=30)) == 0
    found = outcomes(tmp_path)
    assert tuple(found.index) == wanted and (found.state == "done").all() and (found.rows > 0).all()
    assert (pd.read_csv(tmp_path / "tests.csv").state == "passed").all()
    assert "torch" in (tmp_path / "environment.json").read_text()
    training = pd.read_csv(tmp_path / "training" / "training.csv")
    assert {"dpo", "kldpo", "wdpo"} <= set(training.objective) and set(training.accumulation) == {1}


def test_studies_of_the_small_profile_take_sources_that_are_files(tmp_path: Path) -> None:
    given = Gpu(
        out=tmp_path,
        stages=("emotion", "aot-benchmark"),
        texts="texts",
        preferences="uf",
        shifted="hh.jsonl",
    )
    one, other = stages(given)
    assert one.words[3:] == [
        *("run", "emotion", "--out", str(tmp_path / "studies" / "emotion")),
        *("--shared", str(tmp_path / "studies" / "generated"), "--profile", "small"),
        *("--seeds", "5", "--source", "texts"),
    ]
    assert other.words[-4:] == ["--source", "uf", "--shifted", "hh.jsonl"]
    assert "--source" not in stages(Gpu(out=tmp_path, stages=("armorm",)))[0].words


def test_a_stage_that_has_its_table_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = f"open({str(tmp_path / 'runs')!r}, 'a').write('x'); {write(tmp_path / 'one.csv')}"
    monkeypatch.setattr(gpu, "stages", lambda config: [script("one", once)])
    for state in ("done", "there already"):
        run(config(tmp_path, stages=("solvers",)))
        assert outcomes(tmp_path).state["one"] == state
    assert (tmp_path / "runs").read_text() == "x"


def test_time_that_is_over_ends_a_stage_and_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = "import time; time.sleep(600)"
    planned = [
        script("slow", f"{write(tmp_path / 'slow.csv', 2)}; {sleep}", 0.5),
        script("silent", sleep, 0.5),
        script("late", "1"),
    ]
    monkeypatch.setattr(gpu, "stages", lambda config: planned)
    assert run(config(tmp_path, stages=("solvers",), minutes=0.35)) == 0
    found = outcomes(tmp_path)
    assert found.state.to_dict() == {"slow": "partly", "silent": "no time", "late": "no time"}
    assert found["rows"]["slow"] == 2 and found.seconds.sum() < 60


def test_a_stage_that_fails_says_why_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = [
        script("broken", "raise SystemExit('no such card')"),
        script("sound", write(tmp_path / "sound.csv")),
    ]
    monkeypatch.setattr(gpu, "stages", lambda config: planned)
    assert run(config(tmp_path, stages=("solvers",))) == 1
    found = outcomes(tmp_path)
    assert found.state.to_dict() == {"broken": "failed", "sound": "done"}
    assert found.note["broken"] == "no such card"


def test_tests_as_a_table(tmp_path: Path) -> None:
    path = tmp_path / "tests.xml"
    path.write_text(
        '<testsuites><testsuite><testcase classname="a" name="x" time="0.5"/>'
        '<testcase classname="a" name="y" time="1"><failure message="1 != 2&#10;more"/></testcase>'
        '<testcase classname="a" name="z" time="0"><skipped message="no card"/></testcase>'
        "</testsuite></testsuites>"
    )
    table = gpu.test_table(path)
    assert list(table.state) == ["passed", "failed", "skipped"]
    assert list(table.why) == ["", "1 != 2", "no card"] and table.seconds.sum() == 1.5


def test_the_environment_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from llm import weights

    monkeypatch.setattr(weights, "_PACKAGE", "no_such_package")
    found = environment("smollm2")
    assert found["model"].startswith("not to be had: the weights of smollm2 are not installed")
    assert found["transformers"] and json.dumps(found)


def test_what_cannot_be_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="unknown stages lunch; there are environment, tests"):
        stages(config(tmp_path, stages=("lunch",)))
    with pytest.raises(ValueError, match="--minutes must be positive, got 0"):
        stages(config(tmp_path, minutes=0.0))
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            main(["bench", "gpu", "--out", str(tmp_path)])
        assert "torch sees no CUDA device" in capsys.readouterr().err
