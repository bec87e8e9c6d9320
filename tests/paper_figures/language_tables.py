"""Small tables of the three experiments with language models, made up: as their runs write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.alignment.held_out import compared
from paper_figures.paper.published import table3
from tests.experiments.test_held_out import simulated

EMOTIONS = ("sadness", "joy", "love", "anger", "fear")
PAIRS = ("anger + fear", "joy + sadness", "love + fear")
RUNS = [("start", 0.0, 0.0), ("dpo", 0.0, 0.1), ("dpo", 0.0, 1.0)]
RUNS += [("wdpo", rho, 0.1) for rho in (0.01, 0.05, 0.2)] + [
    ("kldpo", tau, 0.1) for tau in (0.5, 0.75, 1.0)
]
SCALE = "ours: generated corpus, GPT-2 of 0.13 M parameters, 3 seeds"
T2 = 4.302652729911275  # 97.5 % quantile of t with two degrees of freedom, from a table


def _write(folder: Path, run: dict[str, Any], **tables: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        table = pd.DataFrame(rows)
        if name == "rewards":
            table.to_parquet(folder / "rewards.parquet", index=False)
        else:
            table.to_csv(folder / f"{name}.csv", index=False)
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def _band(values: Any, name: str) -> dict[str, float]:
    middle, half = float(np.mean(values)), T2 * float(np.std(values, ddof=1)) / 3**0.5
    return {name: middle, f"{name}_low": middle - half, f"{name}_high": middle + half}


def write_armorm(results: Path, seed: int = 0) -> Path:
    """results/armorm: three pairs, five objectives, three radii each, three seeds."""
    rng = np.random.default_rng(seed)
    rewards, axes, mixtures = [], [], []
    for pair in PAIRS:
        first, second = pair.split(" + ")
        base = dict(zip(EMOTIONS, (0.22, 0.3, 0.12, 0.18, 0.2), strict=True))
        for method, radius, beta in RUNS:
            pull = {"start": 0.0, "dpo": 0.35 if beta < 0.5 else 0.2}.get(
                method, 0.3 / (1 + (5 * radius) ** 0.5)
            )
            keys = {"pair": pair, "method": method, "radius": radius, "beta": beta}
            kl = rng.normal(10 * pull, 0.2, 3).clip(0)
            values = {}
            for objective in EMOTIONS:
                goal = {first: 0.3, second: 1.0}.get(objective, -0.4)
                mean = base[objective] + pull * (goal if goal > 0 else goal * base[objective])
                values[objective] = rng.normal(mean, 0.015, 3)
                more = {"first": first, "second": second, "objective": objective}
                rewards += [
                    keys
                    | more
                    | {
                        "seed": s,
                        "reward": values[objective][s],
                        "reward_error": 0.01,
                        "kl": kl[s],
                        "kl_error": 0.1,
                    }
                    for s in range(3)
                ]
                axes.append(
                    keys
                    | {"objective": objective, "seeds": 3}
                    | _band(values[objective], "reward")
                    | _band(kl, "kl")
                )
            for alpha in np.linspace(0, 1, 5):
                mixed = alpha * values[first] + (1 - alpha) * values[second]
                mixtures.append(
                    keys
                    | {"first": first, "second": second, "alpha": alpha, "seeds": 3}
                    | _band(mixed, "reward")
                )
    run = {
        "experiment": "armorm",
        "profile": "quick",
        "alpha": 0.1,
        "radar_pairs": PAIRS,
        "curve_pairs": PAIRS,
    }
    run |= {"axes": EMOTIONS, "beta": 0.1, "scale": SCALE, "seeds": 3}
    return _write(results / "armorm", run, rewards=rewards, axes=axes, mixtures=mixtures)


LOCAL = {  # task -> column
    "prefdro_local_grammar": "grammar",
    "prefdro_local_agreement": "grammar",
    "prefdro_local_emotion": "emotion",
    "prefdro_local_copy": "copying",
}
GROUPS = {
    "bbh": "BBH",
    "gpqa": "GPQA",
    "ifeval": "IFEval",
    "math": "MATH",
    "mmlu": "MMLU",
    "musr": "MUSR",
}


def leaderboard_tasks() -> dict[str, str]:
    """The 39 tasks by the names of lm-evaluation-harness."""
    return {
        f"leaderboard_{task.replace('-', '_')}": GROUPS[task.split("-")[0]]
        for task in table3().columns
    }


def write_leaderboard(
    results: Path,
    *,
    local: bool = True,
    models: tuple[str, ...] = ("GPT-2, 0.13 M",),
    seed: int = 0,
) -> Path:
    """results/leaderboard, on local tasks or on those of the leaderboard; three seeds, one metric
    for each task."""
    rng = np.random.default_rng(seed)
    tasks = LOCAL if local else leaderboard_tasks()
    labels = {
        "start": ("start", 0.0, 0),
        "DPO epoch 2": ("dpo", 0.0, 2),
        "DPO epoch 4": ("dpo", 0.0, 4),
        "KLDPO tau=0.5": ("kldpo", 0.5, 2),
        "WDPO rho=0.05": ("wdpo", 0.05, 2),
    }
    scores = []
    for model in models:
        for i, (label, (method, radius, epochs)) in enumerate(labels.items()):
            keys = {
                "model": model,
                "method": method,
                "radius": radius,
                "beta": 0.1,
                "epochs": epochs,
                "label": label,
            }
            for j, (task, column) in enumerate(tasks.items()):
                scores += [
                    keys
                    | {
                        "seed": s,
                        "task": task,
                        "column": column,
                        "metric": "acc",
                        "stderr": 0.02,
                        "samples": 200,
                    }
                    | {
                        "value": float(
                            np.clip(0.3 + 0.08 * (j % 5) + 0.01 * i + rng.normal(0, 0.01), 0, 1)
                        )
                    }
                    for s in range(3)
                ]
    run = {
        "experiment": "leaderboard",
        "profile": "quick",
        "columns": list(dict.fromkeys(tasks.values())),
    }
    run |= {
        "tasks": [list(item) for item in tasks.items()],
        "labels": list(labels),
        "scale": SCALE,
        "seeds": 3,
    }
    return _write(results / "leaderboard", run, scores=scores)


def write_aot_benchmark(results: Path, seed: int = 0) -> Path:
    """results/aot-benchmark: five methods and the start, three seeds."""
    rng = np.random.default_rng(seed)
    levels = np.linspace(0.02, 0.98, 25)
    normal = np.sqrt(2) * np.array([_erfinv(2 * t - 1) for t in levels])
    methods = ("dpo", "ipo", "kto", "aot", "aot_unpaired")
    quantiles, ablations, benchmarks = [], [], []
    for i, method in enumerate(("start", *methods)):
        for s in range(3):
            shift = rng.normal(0, 0.03)
            curves = {"log_ratio": (0.1 + 0.25 * i, 2.0 - 0.1 * i)}
            if method != "start":
                curves |= {
                    "chosen": (0.3 + 0.1 * i, 0.8),
                    "rejected": (-0.3 - 0.1 * i, 0.9 + 0.05 * i),
                }
            for quantity, (mean, width) in curves.items():
                quantiles += [
                    {
                        "method": method,
                        "seed": s,
                        "quantity": quantity,
                        "level": t,
                        "value": mean + width * z + shift,
                    }
                    for t, z in zip(levels, normal, strict=True)
                ]
            for j, (column, task) in enumerate(
                {
                    "grammar": "local_grammar",
                    "emotion": "local_emotion",
                    "win rate": "judge",
                }.items()
            ):
                value = 0.5 + 0.02 * i * (j + 1) / 3 + rng.normal(0, 0.01)
                keys = {
                    "method": method,
                    "seed": s,
                    "column": column,
                    "task": task,
                    "metric": "acc",
                    "stderr": 0.02,
                }
                benchmarks.append(keys | {"value": value, "samples": 200})
    axes = {
        "beta": ("0.01", "0.1", "1"),
        "batch_size": ("8", "16", "64"),
        "h": ("logistic", "squared hinge", "least squares"),
        "sorting": ("hard", "soft 0.1", "soft 1"),
    }
    for axis, values in axes.items():
        for method in (
            "aot",
            "aot_unpaired",
            *(("dpo",) if axis in ("beta", "batch_size") else ()),
        ):
            for k, value in enumerate(values):
                for s in range(3):
                    rate = 0.6 - 0.03 * k + (0.02 if method == "aot" else 0) + rng.normal(0, 0.01)
                    kl = 4 * 0.5**k + rng.normal(0, 0.1)
                    keys = {"axis": axis, "value": value, "method": method, "seed": s}
                    ablations.append(keys | {"win_rate": rate, "reward": 0.4 + rate / 5, "kl": kl})
    run = {
        "experiment": "aot-benchmark",
        "profile": "quick",
        "columns": ["grammar", "emotion", "win rate"],
    }
    run |= {"beta": 0.1, "scale": SCALE, "seeds": 3}
    return _write(
        results / "aot-benchmark",
        run,
        quantiles=quantiles,
        ablations=ablations,
        benchmarks=benchmarks,
        compared=compared(simulated(seed)).to_dict("records"),
    )


def _erfinv(x: float) -> float:
    from scipy.special import erfinv

    return float(erfinv(x))
