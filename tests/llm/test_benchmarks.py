"""The columns of the papers' tables against lm-eval's own task files, and what a column's number
is, by hand."""

import math
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pandas as pd
import pytest
from lm_eval.api import metrics
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from llm.benchmarks.columns import AOT, LEADERBOARD, by_column, printed_name
from paper_figures.paper.published import record

FOLDERS = (
    "leaderboard",
    "arc",
    "hellaswag",
    "mmlu/default",
    "truthfulqa",
    "winogrande",
    "gsm8k",
)  # all 14 000 take 10 s


@pytest.fixture(scope="module")
def index() -> Any:
    tasks = Path(lm_eval.__file__).parent / "tasks"
    return TaskManager(
        include_path=[str(tasks / folder) for folder in FOLDERS], include_defaults=False
    )


def members(index: Any, group: str) -> set[str]:
    """The tasks of a group of lm-eval, down to those of its groups and tags."""
    entry, found = index.task_index[group], set()
    for name in entry.cfg["task"]:
        child = index.task_index[name]
        found |= {
            "TASK": lambda n=name: {n},
            "TAG": lambda c=child: set(c.tags),
            "GROUP": lambda n=name: members(index, n),
        }[child.kind.name]()
    return found


def tasks_of(columns: dict[str, Any]) -> list[str]:
    return [task for column in columns.values() for task in column.tasks]


def test_the_leaderboard_is_lm_evals(index: Any) -> None:
    assert set(tasks_of(LEADERBOARD)) == members(index, "leaderboard")
    assert len(tasks_of(LEADERBOARD)) == 39
    groups = {
        "BBH": "bbh",
        "MATH": "math_hard",
        "GPQA": "gpqa",
        "MUSR": "musr",
        "IFEval": "instruction_following",
    }
    for column, group in groups.items():
        assert set(LEADERBOARD[column].tasks) == members(index, f"leaderboard_{group}"), column


def test_the_leaderboard_is_the_papers() -> None:
    """Columns of Table 1, and names of Tables 3 and 4, as printed."""
    printed = record()["wdpo_kldpo"]
    assert sorted(printed_name(task) for task in tasks_of(LEADERBOARD)) == sorted(
        printed["table3_1b_subtasks"]["tasks"]
    )
    for model in printed["table1_openllm_v2"].values():
        assert all(list(row) == list(LEADERBOARD) for row in model.values())


def test_mmlu_is_lm_evals(index: Any) -> None:
    assert set(AOT["MMLU"].tasks) == members(index, "mmlu")
    assert len(AOT["MMLU"].tasks) == 57


@pytest.mark.parametrize("columns", [LEADERBOARD, AOT], ids=["leaderboard", "aot"])
def test_every_task_has_the_metric(index: Any, columns: dict[str, Any]) -> None:
    for column in columns.values():
        for task in column.tasks:
            config = load_yaml(index.task_index[task].yaml_path, resolve_func=False)
            filters = [made["name"] for made in config.get("filter_list", [{"name": "none"}])]
            for metric in column.metrics:
                name, _, kind = metric.partition(",")
                assert name in [known["metric"] for known in config["metric_list"]], task
                assert (kind or "none") in filters, task
            # a number that is 0 in the task's file stays 0 whatever lm-eval's command line is told
            assert column.examples in (None, 0) or config.get("num_fewshot") != 0, task


def test_examples_are_those_of_the_first_leaderboard() -> None:
    """As its model cards say: "ARC (25-shot), HellaSwag (10-shot), MMLU (5-shot), TruthfulQA
    (0-shot), Winogrande (5-shot)"."""
    assert [column.examples for column in AOT.values()] == [25, 10, 5, 0, 5, 5]


def rows(
    values: list[float], errors: list[float], samples: list[int], column: str = "BBH"
) -> pd.DataFrame:
    names = [f"task {k}" for k in range(len(values))]
    return pd.DataFrame(
        {
            "task": names,
            "column": column,
            "metric": "acc",
            "value": values,
            "stderr": errors,
            "samples": samples,
        }
    )


def test_a_column_by_hand() -> None:
    """One task of 100 questions with 0.5, one of 300 with 0.7: 0.65 by questions, 0.6 by tasks."""
    table = pd.concat(
        [rows([0.5, 0.7], [0.04, 0.02], [100, 300]), rows([0.2], [math.nan], [10], "IFEval")]
    )
    found = by_column(table)
    assert list(found.column) == ["BBH", "IFEval"]
    assert list(found.samples) == [400, 10]
    assert found.value.tolist() == pytest.approx([0.65, 0.2])
    assert found.stderr[0] == pytest.approx(math.sqrt(0.01**2 + 0.015**2))
    assert math.isnan(found.stderr[1])
    plain = by_column(table, weighted=False)
    assert plain.value.tolist() == pytest.approx([0.6, 0.2])
    assert plain.stderr[0] == pytest.approx(math.sqrt(0.02**2 + 0.01**2))
    with pytest.raises(ValueError, match="task 0 has several rows"):
        by_column(pd.concat([table, table]))


@pytest.mark.parametrize("weighted", [True, False])
def test_a_column_against_lm_evals_aggregation(weighted: bool) -> None:
    """The same number; with weights the standard error comes close, as lm-eval pools variances."""
    rng = np.random.default_rng(0)
    answers = [rng.random(n) < p for n, p in ((50, 0.3), (200, 0.5), (120, 0.8))]
    numbers = [(float(a.mean()), float(a.std(ddof=1) / math.sqrt(len(a))), len(a)) for a in answers]
    values, errors, sizes = map(list, zip(*numbers, strict=True))
    mine = by_column(rows(values, errors, sizes), weighted=weighted)
    assert mine.value.item() == pytest.approx(
        metrics.aggregate_subtask_metrics(values, sizes, weighted), rel=1e-12
    )
    theirs = (
        metrics.pooled_sample_stderr(errors, sizes)
        if weighted
        else metrics.unweighted_mean_stderr(errors)
    )
    assert mine.stderr.item() == pytest.approx(theirs, rel=0.02 if weighted else 1e-12)


def test_ifeval_is_the_mean_that_the_leaderboard_shows() -> None:
    """Llama-2-7b: the results file has these two numbers, and the leaderboard shows 25.19."""
    assert LEADERBOARD["IFEval"].metrics == ("prompt_level_strict_acc", "inst_level_strict_acc")
    assert 100 * np.mean([0.18484288354898337, 0.31894484412470026]) == pytest.approx(
        25.19, abs=0.005
    )
