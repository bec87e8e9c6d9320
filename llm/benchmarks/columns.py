"""The columns of the papers' benchmark tables as tasks and metrics of lm-evaluation-harness, and
what a column's number is."""

import math
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Column:
    """A column of a table: the tasks of lm-eval that it is made of, and which number of each is
    taken.

    metrics: lm-eval's names, with the filter where there is one ("exact_match,strict-match"); of
    several their mean is taken.
    examples: solved examples in the prompt (few-shot); None for as many as the task's own file
    says.
    """

    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    examples: int | None = None


_BBH = (
    "boolean_expressions causal_judgement date_understanding disambiguation_qa formal_fallacies"
    " geometric_shapes hyperbaton logical_deduction_five_objects logical_deduction_seven_objects"
    " logical_deduction_three_objects movie_recommendation navigate object_counting"
    " penguins_in_a_table reasoning_about_colored_objects ruin_names"
    " salient_translation_error_detection snarks sports_understanding temporal_sequences"
    " tracking_shuffled_objects_five_objects tracking_shuffled_objects_seven_objects"
    " tracking_shuffled_objects_three_objects web_of_lies"
)
_MATH = "algebra counting_and_prob geometry intermediate_algebra num_theory prealgebra precalculus"
_MMLU = (
    "abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology"
    " college_chemistry college_computer_science college_mathematics college_medicine"
    " college_physics computer_security conceptual_physics econometrics electrical_engineering"
    " elementary_mathematics formal_logic global_facts high_school_biology high_school_chemistry"
    " high_school_computer_science high_school_european_history high_school_geography"
    " high_school_government_and_politics high_school_macroeconomics high_school_mathematics"
    " high_school_microeconomics high_school_physics high_school_psychology high_school_statistics"
    " high_school_us_history high_school_world_history human_aging human_sexuality"
    " international_law jurisprudence logical_fallacies machine_learning management marketing"
    " medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory"
    " professional_accounting professional_law professional_medicine professional_psychology"
    " public_relations security_studies sociology us_foreign_policy virology world_religions"
)


def _tasks(pattern: str, names: str) -> tuple[str, ...]:
    return tuple(pattern.format(name) for name in names.split())


# Tables 1, 3 and 4, arXiv:2502.01930: the group `leaderboard` of lm-eval, Open LLM Leaderboard v2.
# IFEval has four numbers, and the paper does not say which one it prints: we take what that
# leaderboard shows, the mean of the two strict ones (Llama-2-7b: 25.19 of 18.48 and 31.89). MMLU is
# MMLU-Pro. The numbers are raw: the leaderboard's site subtracts chance from some of them.
LEADERBOARD = {
    "IFEval": Column(("leaderboard_ifeval",), ("prompt_level_strict_acc", "inst_level_strict_acc")),
    "BBH": Column(_tasks("leaderboard_bbh_{}", _BBH), ("acc_norm",)),
    "MATH": Column(_tasks("leaderboard_math_{}_hard", _MATH), ("exact_match",)),
    "GPQA": Column(_tasks("leaderboard_gpqa_{}", "diamond extended main"), ("acc_norm",)),
    "MUSR": Column(
        _tasks("leaderboard_musr_{}", "murder_mysteries object_placements team_allocation"),
        ("acc_norm",),
    ),
    "MMLU": Column(("leaderboard_mmlu_pro",), ("acc",)),
}

# Benchmark tables of arXiv:2406.05882, with the metrics and numbers of examples of Open LLM
# Leaderboard v1.
AOT = {
    "ARC": Column(("arc_challenge",), ("acc_norm",), 25),
    "HellaSwag": Column(("hellaswag",), ("acc_norm",), 10),
    "MMLU": Column(_tasks("mmlu_{}", _MMLU), ("acc",), 5),
    "TruthfulQA": Column(("truthfulqa_mc2",), ("acc",), 0),
    "Winogrande": Column(("winogrande",), ("acc",), 5),
    "GSM8K": Column(("gsm8k",), ("exact_match,strict-match",), 5),
}

# What arXiv:2502.01930's released script (leaderboard_eval.sh) gives to lm-eval, as arguments of
# `evaluate_with_harness`; it also lets models run code of their own and uses flash attention.
LEADERBOARD_SETTINGS = {
    "dtype": "bfloat16",
    "max_length": 2048,
    "max_new_tokens": 1024,
    "chat": True,
    "seed": 42,
}


def printed_name(task: str) -> str:
    """The name of a leaderboard task in Tables 3 and 4, such as math-algebra-hard."""
    return task.removeprefix("leaderboard_").replace("_", "-")


def by_column(scores: pd.DataFrame, *, weighted: bool = True) -> pd.DataFrame:
    """One number for each column of a table of tasks: columns column, value, stderr, samples, in
    the order of the table.

    Args:
        scores: the rows of one model, as `llm.benchmarks.harness.evaluate_with_harness` returns
            them.
        weighted: every question counts the same, as in lm-eval's groups `leaderboard_*` and `mmlu`;
            otherwise every task does, as in Open LLM Leaderboard v1's MMLU and, to the digits
            printed, in Table 1's rows of the 1B model.

    The standard error takes the tasks to be independent; it is missing (NaN) where that of a task
    is.

    Raises:
        ValueError: a task stands twice, as when the rows are of several models.
    """
    if (twice := scores.duplicated(["column", "task"])).any():
        raise ValueError(
            f"the task {scores.task[twice].iloc[0]} has several rows: give the rows of one model"
            " and seed at a time."
        )
    rows = []
    for column, part in scores.groupby("column", sort=False):
        sizes = part.samples.to_numpy(dtype=float)
        weights = sizes / sizes.sum() if weighted else 1 / len(part)
        error = math.sqrt(((weights * part.stderr.to_numpy(dtype=float)) ** 2).sum())
        rows.append((column, float((weights * part.value).sum()), error, int(sizes.sum())))
    return pd.DataFrame(rows, columns=["column", "value", "stderr", "samples"])
