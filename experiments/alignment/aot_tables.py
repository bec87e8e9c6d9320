"""Tables of the AOT benchmark: quantiles of log-ratios, what the choices in AOT do, benchmarks."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.alignment.aot_profiles import Profile
from experiments.alignment.held_out import dominates
from experiments.alignment.sizes import NONE
from experiments.alignment.training import Run
from experiments.engine.stages import read_artefact
from llm.data.corpus import EMOTIONS
from llm.judges.evaluate import mean_of

LEVELS = np.linspace(0.01, 0.99, 50)
WIN_RATE = "win rate"
Choices = tuple[tuple[str, str], ...]  # the panels of Fig. 2 that a run is in: axis and value
MAIN = ("main", "")
Judged = Sequence[
    tuple[Choices, Run, Path]
]  # panels, run, and the folder of what the policy is worth


def quantiles(judged: Judged) -> pd.DataFrame:
    """Quantiles over test pairs of log pi/pi_start of the chosen and rejected responses, and of log
    pi(chosen)/pi(rejected)."""
    starts = {
        run.replicate: read_artefact(folder / "logps.parquet")
        for _, run, folder in judged
        if run.method == "start"
    }
    parts = []
    for run, folder in main_runs(judged):
        own, start = read_artefact(folder / "logps.parquet"), starts[run.replicate]
        values = {"log_ratio": own.chosen - own.rejected}
        if run.method != "start":
            values |= {name: own[name] - start[name] for name in ("chosen", "rejected")}
        for quantity, value in values.items():
            table = {"quantity": quantity, "level": LEVELS, "value": np.quantile(value, LEVELS)}
            parts.append(pd.DataFrame({"method": run.method, "seed": run.replicate, **table}))
    return pd.concat(parts, ignore_index=True)


def ablations(profile: Profile, judged: Judged) -> pd.DataFrame:
    """Win rate, reward and KL of the runs of Fig. 2: a row for each panel (`axis`), value, method
    and seed."""
    starts = _starts(profile, judged)
    rows = []
    for places, run, folder in judged:
        if run.method == "start":
            continue
        wins, reward = _against(profile, folder, starts[run.replicate])
        kl = float(read_artefact(folder / "completions.parquet").log_ratio.mean())
        of_run = {
            "method": run.method,
            "seed": run.replicate,
            "win_rate": float(wins.mean()),
            "reward": float(reward.mean()),
            "kl": kl,
        }
        rows += [
            {"axis": axis, "value": value, **of_run}
            for axis, value in places
            if (axis, value) != MAIN
        ]
    return pd.DataFrame(rows)


def benchmarks(profile: Profile, judged: Judged) -> pd.DataFrame:
    """Benchmarks of the compared runs, a row for each task, and, with a reward model, their win
    rate against the start by the score."""
    starts = {} if profile.judge == NONE else _starts(profile, judged)
    parts = []
    for run, folder in main_runs(judged):
        own = [] if profile.benchmarks == NONE else [read_artefact(folder / "benchmarks.csv")]
        if starts:
            wins = mean_of(_against(profile, folder, starts[run.replicate])[0])
            row: dict[str, Any] = {
                "task": WIN_RATE,
                "column": WIN_RATE,
                "metric": f"share of prompts with more {profile.score}",
            }
            samples = len(starts[run.replicate])
            row |= {"value": wins.value, "stderr": wins.error, "samples": samples}
            own.append(pd.DataFrame([row]))
        parts += [table.assign(method=run.method, seed=run.replicate) for table in own]
    return pd.concat(parts, ignore_index=True)


def dominance_table(profile: Profile, judged: Judged) -> pd.DataFrame:
    """Stochastic dominance of held-out rewards, a row for each compared policy and comparison
    (`better` over `worse`), columns of `held_out.dominates`.

    chosen over rejected: log pi/pi_start of the test pairs, nats, what AOT is trained to achieve.
    With a reward model, policy over start and over dpo: rewards of the completions of the same
    prompts, with bounds where they are chances.
    """
    runs = list(main_runs(judged))
    bounds = {"low": 0.0, "high": 1.0} if profile.score in EMOTIONS else {}
    others = {(run.method, run.replicate): folder for run, folder in runs}
    others |= {
        (run.method, run.replicate): folder for _, run, folder in judged if run.method == "start"
    }
    rows = []
    for run, folder in runs:
        if run.method == "start":
            continue
        of_run = {"method": run.method, "seed": run.replicate}
        own, start = (
            read_artefact(where / "logps.parquet")
            for where in (folder, others["start", run.replicate])
        )
        ratios = (own[side].to_numpy() - start[side].to_numpy() for side in ("chosen", "rejected"))
        rows.append(of_run | {"better": "chosen", "worse": "rejected"} | dominates(*ratios))
        if profile.judge == NONE:
            continue
        for other in ("start", "dpo"):
            if other != run.method:
                against = _score(profile, others[other, run.replicate])
                rows.append(
                    of_run
                    | {"better": "policy", "worse": other}
                    | dominates(_score(profile, folder), against, **bounds)
                )
    return pd.DataFrame(rows)


def main_runs(judged: Judged) -> Iterable[tuple[Run, Path]]:
    """The runs that are compared, without those around the default."""
    return ((run, folder) for places, run, folder in judged if MAIN in places)


def _starts(profile: Profile, judged: Judged) -> dict[int, np.ndarray]:
    return {
        run.replicate: _score(profile, folder) for _, run, folder in judged if run.method == "start"
    }


def _score(profile: Profile, folder: Path) -> np.ndarray:
    return read_artefact(folder / "scores.parquet")[profile.score].to_numpy()


def _against(profile: Profile, folder: Path, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wins against the start on each test prompt, ties counted half, and the rewards."""
    reward = _score(profile, folder)
    return (reward > start) + 0.5 * (reward == start), reward
