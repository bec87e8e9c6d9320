"""What lm-evaluation-harness says of a policy: the papers' benchmarks, or small local ones that
need no hub."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.alignment.models import check_objectives, load_policy
from experiments.alignment.sizes import Options, Sizes
from experiments.alignment.study import Study
from experiments.engine.ranks import rank, ranks
from experiments.engine.stages import Stage, stage
from experiments.engine.store import write_table
from llm.benchmarks.columns import AOT, LEADERBOARD, LEADERBOARD_SETTINGS, Column
from llm.benchmarks.local_tasks import LOCAL, write_local_tasks
from llm.models import pretrained_tokenizer

BENCHMARKS: dict[str, Mapping[str, Column]] = {
    "local": LOCAL,
    "leaderboard": LEADERBOARD,
    "aot": AOT,
}


@dataclass(frozen=True)
class BenchmarkSizes(Sizes):
    """Sizes of an experiment that evaluates on benchmarks: `BenchmarkOptions` says what each is."""

    score: str
    benchmarks: str
    questions: int
    chat: bool


@dataclass
class BenchmarkOptions(Options):
    """What an experiment that evaluates on benchmarks can be told, too."""

    score: str | None = None
    """Objective of the reward model that says which completions are better; `ArmoRM` is its gated
    score."""
    benchmarks: str | None = None
    """local (tasks made of the generated texts), leaderboard (Open LLM Leaderboard v2), or aot
    (ARC, HellaSwag, MMLU, TruthfulQA, Winogrande, GSM8K)."""
    questions: int | None = None
    """Most questions of each local task."""
    limit: int | None = None
    """Only that many questions of each task of any benchmark, the first ones; for a trial."""
    chat: bool | None = None
    """Put the questions into the model's chat template."""


BATCH = {
    True: 32,
    False: 4,
}  # questions in one forward pass: local ones, those of the hub, whose texts are long
_LENGTHS: dict[str, Any] = {
    name: LEADERBOARD_SETTINGS[name] for name in ("max_length", "max_new_tokens")
}


def check_benchmarks(sizes: BenchmarkSizes, limit: int | None) -> None:
    """Raise ValueError for unknown benchmarks, local ones without the generated texts that they are
    made of, or a bad limit."""
    if sizes.benchmarks not in BENCHMARKS:
        raise ValueError(
            f"unknown benchmarks {sizes.benchmarks!r}; choose one of {', '.join(BENCHMARKS)}."
        )
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}.")
    if sizes.benchmarks == "local" and sizes.model is not None:
        raise ValueError(
            "the local benchmarks are made of the generated texts: with another model choose"
            " leaderboard or aot."
        )


def check_benchmarked(study: Study, sizes: BenchmarkSizes) -> None:
    """Raise ValueError where the reward model has no such score, or the model no chat template that
    is wanted."""
    check_objectives(study.models, [sizes.score])
    check_chat(study, sizes)


def check_chat(study: Study, sizes: BenchmarkSizes) -> None:
    """Raise ValueError where the model has no chat template and one is wanted."""
    tokenizer = pretrained_tokenizer(
        study.models.policy, trust_remote_code=study.options.trust_remote_code
    )
    if sizes.chat and not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {study.models.policy} has no chat template: give --chat False, or a"
            " chat model."
        )


def tasks_stage(study: Study, name: str, questions: int) -> Stage | None:
    """The folder of the local tasks, made of the generated test texts; None for benchmarks of the
    hub."""
    texts = study.models.texts
    if name != "local" or texts is None:
        return None
    made_from = {
        "questions": questions,
        "seed": study.options.seed,
        "code": study.code,
        **study.models.made_from,
    }

    def make(folder: Path) -> None:
        if rank() == 0:
            write_local_tasks(
                folder,
                pd.read_parquet(texts / "test.parquet"),
                seed=study.options.seed,
                questions=questions,
            )

    return stage(study.root, "tasks", made_from, make)


def write_benchmarks(
    folder: Path,
    study: Study,
    policy: str,
    name: str,
    tasks: Path | None,
    limit: int | None,
    chat: bool,
) -> None:
    """The table `benchmarks.csv` in the folder: one row for each task; answers that were given
    before a kill are kept."""
    from llm.benchmarks.harness import evaluate_with_harness

    model, tokenizer = load_policy(policy, trust_remote_code=study.options.trust_remote_code)
    table = evaluate_with_harness(
        model,
        tokenizer,
        BENCHMARKS[name],
        include=tasks,
        batch_size=BATCH[name == "local"],
        limit=limit,
        seed=study.options.seed,
        chat=chat,
        **(_LENGTHS if name == "leaderboard" else {}),
        answers=None if name == "local" else folder / "answers",
        share=ranks() > 1,
    )
    if rank() == 0:
        write_table(table, folder / "benchmarks.csv")
