"""What the papers printed: the digits of the tables of arXiv:2502.01930 and the set-ups of both
papers, from published.json.

The digits were read by a machine; `notes` says where those of two tables do not fit together.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

WDPO, AOT = "arXiv:2502.01930", "arXiv:2406.05882"
COLUMNS = ("IFEval", "BBH", "MATH", "GPQA", "MUSR", "MMLU")  # of Table 1, in its order
_GROUPS = {
    "ifeval": "IFEval",
    "bbh": "BBH",
    "math": "MATH",
    "gpqa": "GPQA",
    "musr": "MUSR",
    "mmlu": "MMLU",
}
# Test questions of the seven parts of MATH level 5 (Hendrycks et al., arXiv:2103.03874; as in Open
# LLM Leaderboard v2).
MATH_HARD = {
    "algebra": 307,
    "counting-and-prob": 123,
    "geometry": 132,
    "intermediate-algebra": 280,
    "num-theory": 154,
    "prealgebra": 193,
    "precalculus": 135,
}


@dataclass(frozen=True)
class Printed:
    """A printed table: where it stands, its columns, and for each model the rows label -> numbers
    (len(columns) each)."""

    source: str
    table: str
    columns: tuple[str, ...]
    rows: dict[str, dict[str, tuple[float, ...]]]


@cache
def record() -> dict[str, Any]:
    """published.json as it is: `wdpo_kldpo` and `aot`."""
    return json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))


def table1() -> Printed:
    """Table 1: accuracy on the six columns of Open LLM Leaderboard v2, three models."""
    models = record()["wdpo_kldpo"]["table1_openllm_v2"]
    rows = {
        model: {
            label: tuple(scores[column] for column in COLUMNS) for label, scores in labels.items()
        }
        for model, labels in models.items()
    }
    return Printed(WDPO, "Table 1", COLUMNS, rows)


def table3() -> Printed:
    """Table 3: the 39 tasks of the leaderboard, LLaMA-3.2-1B."""
    return _subtasks("table3_1b_subtasks", "Table 3", "LLaMA-3.2-1B")


def table4() -> Printed:
    """Table 4: the 39 tasks of the leaderboard, LLaMA-3.1-8B."""
    return _subtasks("table4_8b_subtasks", "Table 4", "LLaMA-3.1-8B")


def _subtasks(key: str, table: str, model: str) -> Printed:
    entry = record()["wdpo_kldpo"][key]
    rows = {label: tuple(numbers) for label, numbers in entry["rows"].items()}
    return Printed(WDPO, table, tuple(entry["tasks"]), {model: rows})


def setup(name: str) -> dict[str, Any]:
    """The set-up that a paper states for `emotion`, `armorm`, `leaderboard` or `aot-benchmark`.

    Raises:
        ValueError: another name.
    """
    setups = {**record()["wdpo_kldpo"]["setups"], "aot-benchmark": record()["aot"]["setup"]}
    if name not in setups:
        raise ValueError(
            f"the papers have no set-up named {name!r}; there are {', '.join(setups)}."
        )
    return setups[name]


def column_of(task: str) -> str:
    """The column of Table 1 that a task of Tables 3 and 4 belongs to, such as `bbh-navigate` ->
    `BBH`."""
    return _GROUPS[task.split("-")[0]]


def column_means(tasks: Sequence[str], numbers: Sequence[float]) -> dict[str, tuple[float, float]]:
    """For each column of Table 1 the mean over its tasks, plain and (MATH only) weighted by the
    number of questions."""
    means = {}
    for column in COLUMNS:
        mine = {
            task: x for task, x in zip(tasks, numbers, strict=True) if column_of(task) == column
        }
        plain = sum(mine.values()) / len(mine)
        weighted = plain
        if column == "MATH":
            counts = {
                task: MATH_HARD[task.removeprefix("math-").removesuffix("-hard")] for task in mine
            }
            weighted = sum(counts[task] * x for task, x in mine.items()) / sum(counts.values())
        means[column] = plain, weighted
    return means


def notes() -> list[str]:
    """Where an average of Table 1 fits only one kind of mean over the tasks of Tables 3 and 4, or
    none; one line for each."""
    labels = {
        "DPO epoch 2": ("DPO epoch 2 (early stopping)", "DPO"),
        "DPO epoch 4": ("DPO epoch 4 (goodfit)",),
    }
    found = []
    for subtasks in (table3(), table4()):
        for model, rows in subtasks.rows.items():
            averages = table1().rows[model]
            for label, numbers in rows.items():
                printed = next(
                    (
                        averages[name]
                        for name in (label, *labels.get(label, ()))
                        if name in averages
                    ),
                    None,
                )
                if printed is None:
                    continue  # epoch 4 of the 8B model is in Table 4 only
                for column, means in column_means(subtasks.columns, numbers).items():
                    value = printed[COLUMNS.index(column)]
                    fits = [
                        kind
                        for kind, mean in zip(("plain", "weighted"), means, strict=True)
                        if _can_be(value, mean)
                    ]
                    if len(fits) < 2:
                        said = (
                            f"plain mean of {subtasks.table} {means[0]:.3f}, weighted by questions"
                            f" {means[1]:.3f}"
                        )
                        verdict = f"fits the {fits[0]} mean only" if fits else "fits neither"
                        found.append(
                            f"{model}, {label}, {column}: Table 1 has {value:.2f}; {said}:"
                            f" {verdict}."
                        )
    return found


def _can_be(printed: float, mean: float) -> bool:
    """Whether a mean of numbers rounded to 0.01 can have been printed so, itself rounded: each
    error is at most 0.005."""
    return abs(printed - mean) <= 0.01 + 1e-9
