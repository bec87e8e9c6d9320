"""`prefdro bench gpu`: all that a CUDA machine is asked, in one command and within a time budget.

Stages, each a process of its own that writes its table as soon as there is something to write, and
is ended when its time is over:

1. environment.json: the card, the driver, versions, what is installed beside;
2. tests.csv: `pytest -m gpu`, every estimator, functional and objective against the CPU;
3. solvers/solvers.csv: fits by the ten thousand, against the same samples on the CPU;
4. training/..., training-large/...: steps of every objective, real weights and random ones, against
   TRL where it is installed;
5. studies/...: the profile `small` of three experiments, five seeds, with the time that is left.

gpu.csv says of each stage what became of it. Nothing is downloaded but the texts of the studies,
where no files of them are named; what cannot be had, the stage that needs it says. With
`--rehearse` the same stages run on the CPU in tiny sizes.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import torch

from experiments import screen
from experiments.engine.provenance import provenance
from experiments.engine.store import write_json

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT, TESTS = "environment", "tests"
STUDIES = {  # experiment -> the table that it writes at its end, and its share of the time
    "emotion": ("summary.csv", 0.5),
    "aot-benchmark": ("held_out.csv", 0.7),
    "armorm": ("axes.csv", 1.0),
}
STAGES = (ENVIRONMENT, TESTS, "solvers", "training", "training-large", *STUDIES)
SEEDS = 5
_PACKAGES = ("transformers", "trl", "accelerate", "peft", "datasets", "flash_attn", "cvxpy", "gguf")


@dataclass
class Gpu:
    """What the run on a GPU can be told."""

    out: Path = Path("results/gpu")
    """Folder of the tables; a stage whose table is complete there is not run again."""
    minutes: float = 12.0
    """Time for all stages together."""
    stages: tuple[str, ...] = STAGES
    """Which of environment, tests, solvers, training, training-large, and the studies emotion,
    aot-benchmark and armorm."""
    model: str = "smollm2"
    """Real weights for the stage training: smollm2, a folder, a hub name, or a .gguf file."""
    texts: str | None = None
    """Source of the studies emotion and armorm; by default the one on the hub."""
    preferences: str | None = None
    """Source of the study aot-benchmark; by default the one on the hub."""
    shifted: str | None = None
    """Its other population; by default the one on the hub."""
    rehearse: bool = False
    """On the CPU, in tiny sizes, to see that every stage runs."""


@dataclass(frozen=True)
class Stage:
    """One process. share: of the budget, at most, besides what earlier stages left. reads: what
    must be in the folder for it to have succeeded."""

    name: str
    words: list[str]
    share: float
    writes: str


@dataclass
class Outcome:
    """What became of a stage."""

    stage: str
    state: str  # done, partly (out of time, with some rows), failed, no time, there already
    seconds: float
    rows: int
    table: str
    note: str


def stages(config: Gpu) -> list[Stage]:
    """The stages that were asked for, in their order.

    Raises:
        ValueError: an unknown stage, or a budget that is not positive.
    """
    unknown = sorted(set(config.stages) - set(STAGES))
    if unknown:
        raise ValueError(f"unknown stages {', '.join(unknown)}; there are {', '.join(STAGES)}.")
    if not config.minutes > 0:
        raise ValueError(f"--minutes must be positive, got {config.minutes:g}.")
    out, tiny = config.out.resolve(), config.rehearse
    experiments, device = [sys.executable, "-m", "experiments"], "cpu" if tiny else "cuda"
    bench = [*experiments, "bench"]
    xml = str(out / "tests.xml")
    marked = ["tests/theory/test_wells.py", "-q"] if tiny else ["-m", "gpu", "-q"]
    profile = "smoke" if tiny else "quick"
    parts = ["sets"] if tiny else ["devices"]
    training = ["training", "--device", device, "--groups", "1"]
    every = {
        TESTS: Stage(
            TESTS,
            [
                sys.executable,
                "-m",
                "pytest",
                *marked,
                "-p",
                "no:cacheprovider",
                f"--junitxml={xml}",
            ],
            0.25,
            "tests.xml",
        ),
        "solvers": Stage(
            "solvers",
            [*bench, "solvers", "--profile", profile, "--parts", *parts]
            + ["--out", str(out / "solvers")],
            0.25,
            "solvers/solvers.csv",
        ),
        "training": Stage(
            "training",
            [*bench, *training, "--profile", profile, "--out", str(out / "training")]
            + ([] if tiny else ["--model", config.model]),
            0.3,
            "training/training.csv",
        ),
        "training-large": Stage(
            "training-large",
            [*bench, *training, "--profile", "smoke" if tiny else "paper"]
            + ["--out", str(out / "training-large")],
            0.5,
            "training-large/training.csv",
        ),
    }
    every |= {name: _study(config, name) for name in STUDIES}
    return [every[name] for name in STAGES if name in config.stages and name in every]


def _study(config: Gpu, name: str) -> Stage:
    """One of the experiments, which may take all the time that is left: a run that is ended goes on
    where it was."""
    out = config.out.resolve()
    words = [sys.executable, "-m", "experiments", "run", name, "--out", str(out / "studies" / name)]
    words += ["--shared", str(out / "studies" / "generated")]
    if config.rehearse:
        words += ["--profile", "smoke"]
    else:
        words += ["--profile", "small", "--seeds", str(SEEDS)]
        source = config.preferences if name == "aot-benchmark" else config.texts
        words += [] if source is None else ["--source", _absolute(source)]
        if name == "aot-benchmark" and config.shifted is not None:
            words += ["--shifted", _absolute(config.shifted)]
    table, share = STUDIES[name]
    return Stage(name, words, share, f"studies/{name}/{table}")


def _absolute(source: str) -> str:
    """The stage runs in another folder."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def run(config: Gpu) -> int:
    """Run the stages, write gpu.csv after each, and print it; 1 where a stage failed.

    Raises:
        ValueError: no CUDA device and no --rehearse, or an option out of range.
    """
    if not config.rehearse and not torch.cuda.is_available():
        raise ValueError(
            "torch sees no CUDA device: check the driver and that torch is a CUDA build. On a CPU"
            " `--rehearse` runs every stage in tiny sizes."
        )
    planned = stages(config)
    config.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * config.minutes
    outcomes = []
    if ENVIRONMENT in config.stages:
        outcomes.append(_timed_environment(config))
    for stage in planned:
        left = end - time.monotonic()
        limit = min(left, 60 * config.minutes * stage.share)
        print(f"== {stage.name}: at most {limit:.0f} s of {left:.0f} s left", flush=True)
        outcomes.append(_run_stage(stage, config.out, limit))
        _write(config.out, outcomes)
    _write(config.out, outcomes)
    screen.show([vars(outcome) for outcome in outcomes], "stages")
    print(f"tables in {config.out}. Of each stage the log is STAGE.log.")
    return int(any(outcome.state == "failed" for outcome in outcomes))


def _run_stage(stage: Stage, out: Path, limit: float) -> Outcome:
    table = out / stage.writes
    record = out / f"{stage.name}.done"
    if record.exists() and table.exists():
        return Outcome(stage.name, "there already", 0.0, _rows(stage, out), stage.writes, "")
    if limit < 5:
        return Outcome(stage.name, "no time", 0.0, 0, "", "give more --minutes")
    began = time.monotonic()
    with (out / f"{stage.name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            stage.words,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
    seconds, rows = time.monotonic() - began, _rows(stage, out)
    if status == 0:
        record.write_text("", encoding="utf-8")
        return Outcome(stage.name, "done", seconds, rows, stage.writes, "")
    last = (out / f"{stage.name}.log").read_text(encoding="utf-8").strip().splitlines()[-1:]
    if status is None:
        state = "partly" if rows else "no time"
        note = f"ended after {seconds:.0f} s"
        return Outcome(stage.name, state, seconds, rows, stage.writes if rows else "", note)
    if stage.name == TESTS and status == 1 and rows:  # some failed: the table says which
        return Outcome(stage.name, "failed", seconds, rows, stage.writes, "".join(last))
    return Outcome(stage.name, "failed", seconds, rows, "", "".join(last))


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a stage and what it started; a process that holds the card would spoil the next one."""
    import signal

    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _rows(stage: Stage, out: Path) -> int:
    """Rows that a stage has written; of the tests as a table, tests.csv."""
    path = out / stage.writes
    if not path.exists():
        return 0
    if stage.name != TESTS:
        return len(pd.read_csv(path))
    table = test_table(path)
    table.to_csv(out / "tests.csv", index=False)
    return len(table)


def test_table(path: Path) -> pd.DataFrame:
    """One row a test of a JUnit file: name, passed, failed or skipped, seconds, and why."""
    rows = []
    for case in ElementTree.parse(path).iter("testcase"):
        broken = next((x for x in case if x.tag in ("failure", "error", "skipped")), None)
        state = "passed" if broken is None else "skipped" if broken.tag == "skipped" else "failed"
        why = "" if broken is None else (broken.get("message") or "").splitlines()[:1]
        name = f"{case.get('classname')}::{case.get('name')}"
        rows.append(
            {
                "test": name,
                "state": state,
                "seconds": float(case.get("time", 0)),
                "why": "".join(why),
            }
        )
    return pd.DataFrame(rows, columns=["test", "state", "seconds", "why"])


test_table.__test__ = False  # type: ignore[attr-defined]  # no test, whatever its name says


def _timed_environment(config: Gpu) -> Outcome:
    began = time.monotonic()
    write_json(environment(config.model), config.out / "environment.json")
    return Outcome(ENVIRONMENT, "done", time.monotonic() - began, 1, "environment.json", "")


def environment(model: str) -> dict[str, Any]:
    """The card, the driver, versions, and whether the weights are there."""
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    found: dict[str, Any] = {**provenance(), "cores": os.cpu_count()}
    for package in _PACKAGES:
        try:
            found[package] = version(package) if find_spec(package) else None
        except PackageNotFoundError:
            found[package] = "there, without a version"
    found["model"] = _or_reason(lambda: __import__("llm").located(model))
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "device_memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "driver": _or_reason(_driver),
        }
    return found


def _driver() -> str:
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def _or_reason(ask: Callable[[], Any]) -> str:
    try:
        return str(ask())
    except (ValueError, OSError, subprocess.SubprocessError) as error:
        return f"not to be had: {error}"


def _write(out: Path, outcomes: list[Outcome]) -> None:
    pd.DataFrame([vars(outcome) for outcome in outcomes]).round(1).to_csv(
        out / "gpu.csv", index=False
    )
