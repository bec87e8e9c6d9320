"""`make test-anywhere`: do verdicts hang on the last digits, the order of rows, or what computes
sums and products?

The numeric part of the tests with every jitter seed (`tests.jitter`) under the processor's own
kernels, and with the first two seeds under each other environment; prints a table, and writes it
with the failures to OUT/anywhere.json. A cell that is there already for the same code is not run
again. Exit status 1 where a test fails anywhere.

    python -m tests.anywhere [--seeds 0 1] [--environments own AVX2] [--out results/anywhere] [--
    more words for pytest]
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.launches import ROOT, end_group

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "own": {},
    "MKL compatible": {"MKL_CBWR": "COMPATIBLE"},
    "MKL AVX2": {"MKL_CBWR": "AVX2"},
    "torch default": {"ATEN_CPU_CAPABILITY": "default"},  # without vector instructions
    # threads that spin while they wait make this three times as long where workers fill the cores
    "two threads": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
}
SEEDS = range(10)
OF_OTHERS = 2  # the first so many seeds
NUMERIC = [
    "tests/theory",
    *(
        f"tests/llm/test_{name}.py"
        for name in (
            "gradients",
            "log_linear",
            "logprobs",
            "objectives",
            "wasserstein",
            "against_trl",
        )
    ),
    *(
        f"tests/llm/test_{name}.py"
        for name in ("reference", "rewards", "reward_models", "models", "armorm", "distributed")
    ),
    *(
        f"tests/experiments/test_{name}.py"
        for name in ("aot", "aot_estimator", "aot_fits", "aot_worlds", "bench_solvers")
    ),
    *(
        f"tests/experiments/test_{name}.py"
        for name in ("estimation_error", "preference_shift", "worst_case")
    ),
]
LIMIT = 4 * 3600.0  # seconds for one cell


def code() -> str:
    """A digest of the files that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    files = [
        ROOT / name
        for name in sorted(listed.stdout.splitlines())
        if name.endswith((".py", ".toml", ".lock"))
    ]
    return sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()[:16]


def cell(environment: str, seed: int, folder: Path, words: list[str]) -> dict[str, Any]:
    """One run of the numeric part: counts, names of failures, seconds."""
    report = folder / f"{re.sub('[^a-z0-9]+', '-', environment.lower())}-{seed}.xml"
    report.unlink(missing_ok=True)
    own = {"OMP_NUM_THREADS": "1", **ENVIRONMENTS[environment]}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "auto",
        "--maxprocesses",
        "4",
        "--dist",
        "loadgroup",
        "--jitter",
        str(seed),
    ]
    began = time.monotonic()
    with report.with_suffix(".log").open("w") as log:
        started = [*command, f"--junitxml={report}", *(words or NUMERIC)]
        with subprocess.Popen(
            started, cwd=ROOT, env=os.environ | own, stdout=log, stderr=log, start_new_session=True
        ) as process:
            try:
                process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                pass
            finally:
                end_group(process.pid)
    found: dict[str, Any] = {
        "environment": environment,
        "seed": seed,
        "seconds": round(time.monotonic() - began),
    }
    if not report.is_file():
        return found | {
            "passed": 0,
            "failed": ["the run itself: see " + report.with_suffix(".log").name],
        }
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [
        f"{c.get('classname')}::{c.get('name')}"
        for c in cases
        if c.find("failure") is not None or c.find("error") is not None
    ]
    skipped = sum(c.find("skipped") is not None for c in cases)
    return found | {"passed": len(cases) - len(failed) - skipped, "failed": failed}


def table(cells: list[dict[str, Any]]) -> str:
    """Passed/failed and seconds, environments down and seeds across; then who failed where."""
    there = {(c["environment"], c["seed"]): c for c in cells}
    seeds = sorted({seed for _, seed in there})
    lines = [f"{'passed/failed s':16}" + "".join(f"{f'seed {seed}':>14}" for seed in seeds)]
    for name in [name for name in ENVIRONMENTS if any(name == e for e, _ in there)]:
        shown = [there.get((name, seed)) for seed in seeds]
        texts = [f"{c['passed']}/{len(c['failed'])} {c['seconds']}" if c else "" for c in shown]
        lines.append(f"{name:16}" + "".join(f"{text:>14}" for text in texts))
    where: dict[str, list[str]] = {}
    for c in cells:
        for name in c["failed"]:
            where.setdefault(name, []).append(f"{c['environment']} {c['seed']}")
    lines += [f"{name}: {', '.join(places)}" for name, places in sorted(where.items())] or [
        "no test fails anywhere"
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="the numeric tests under jitter and other kernels")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument(
        "--environments", nargs="*", choices=list(ENVIRONMENTS), default=list(ENVIRONMENTS)
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "anywhere")
    parser.add_argument("tests", nargs="*", help="instead of the numeric part")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    file, made_from = given.out / "anywhere.json", {"code": code(), "tests": given.tests or NUMERIC}
    stored = json.loads(file.read_text()) if file.is_file() else {}
    cells: list[dict[str, Any]] = stored["cells"] if stored.get("made_from") == made_from else []
    # every environment with the first seed first: what differs shows early
    wanted = sorted(
        (
            (seed, name)
            for name in given.environments
            for seed in given.seeds
            if name == "own" or seed in SEEDS[:OF_OTHERS]
        ),
        key=lambda pair: (pair[0], list(ENVIRONMENTS).index(pair[1])),
    )
    for seed, name in wanted:
        if any((c["environment"], c["seed"]) == (name, seed) for c in cells):
            continue
        print(f"== {name}, seed {seed}", flush=True)
        cells.append(cell(name, seed, given.out, given.tests))
        file.write_text(json.dumps({"made_from": made_from, "cells": cells}, indent=1))
        print(
            f"   {cells[-1]['passed']} passed, {len(cells[-1]['failed'])} failed,"
            f" {cells[-1]['seconds']} s",
            flush=True,
        )
    print(table(cells))
    sys.exit(any(c["failed"] for c in cells))


if __name__ == "__main__":
    main()
