"""The stages of each policy, `policy-NAME` and `judged-NAME`: its training, and what it is
worth."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.alignment.completions import write_completions
from experiments.alignment.pairs import count_pairs
from experiments.alignment.prompts import FILES
from experiments.alignment.scores import write_scores
from experiments.alignment.sizes import part_of
from experiments.alignment.study import Study
from experiments.alignment.training import Run, more_options, options_of, train_policy
from experiments.engine.stages import (
    Stage,
    derived_seed,
    digest_of,
    read_artefact,
    stage,
    together,
)

Judge = Callable[
    ..., object
]  # (folder, study=, run=, policy=): fills the folder with what the policy is worth


def completions_stage(study: Study, prompts: Stage, part: str, count: int) -> Stage:
    """Completions of the training or test prompts by the start: completions.parquet."""
    make = partial(
        write_completions,
        policy=study.models.policy,
        prompts=prompts.folder / FILES[part],
        count=count,
        sizes=study.sizes,
        seed=derived_seed(study.options.seed, 22),
        trust_remote_code=study.options.trust_remote_code,
    )
    return stage(
        study.root,
        f"completions-{part}",
        study.made_from(prompts=prompts.digest, count=count),
        make,
    )


def scores_stage(study: Study, prompts: Stage, completions: Stage, part: str) -> Stage:
    """Rewards of these completions: scores.parquet."""
    make = partial(
        write_scores,
        completions=completions.folder / "completions.parquet",
        prompts=prompts.folder / FILES[part],
        judge=study.models.judge,
        sizes=study.sizes,
        trust_remote_code=study.options.trust_remote_code,
    )
    return stage(
        study.root, f"scores-{part}", study.made_from(completions=completions.digest), make
    )


def scored(completions: Stage, scores: Stage) -> pd.DataFrame:
    """Completions with their rewards, one row each."""
    return pd.concat(
        [
            read_artefact(completions.folder / "completions.parquet"),
            read_artefact(scores.folder / "scores.parquet"),
        ],
        axis=1,
    )


def policies(
    study: Study, runs: Sequence[tuple[Run, Stage | None]], judge: Judge, judged_by: dict[str, Any]
) -> list[Stage]:
    """Train every run on its pairs and judge it; the runs of `options.part` only, where it is
    given.

    Args:
        runs: with the stage that holds their pairs (pairs.jsonl); None for a policy that is not
            trained, the start.
        judge: fills the folder of the stage `judged-NAME`.
        judged_by: all that the judgement depends on beside the policy.

    Returns:
        The stages `judged-NAME`, in the order of the runs.
    """
    first, step = part_of(study.options.part)
    more = more_options(study.options.training)
    tasks = [
        partial(_policy, study, run, pairs, more, judge, judged_by)
        for run, pairs in runs[first::step]
    ]
    return together(tasks, study.workers, "policies")


def _policy(
    study: Study,
    run: Run,
    pairs: Stage | None,
    more: dict[str, Any],
    judge: Judge,
    judged_by: dict[str, Any],
) -> Stage:
    try:
        policy, digest = (
            (study.models.policy, "start") if pairs is None else _trained(study, run, pairs, more)
        )
        record = {
            "policy": digest,
            "replicate": run.replicate,
            "compared": run.compared,
            **study.made_from(**judged_by),
        }
        return stage(
            study.root,
            f"judged-{run.name}",
            record,
            partial(judge, study=study, run=run, policy=policy),
        )
    except Exception as error:
        error.add_note(
            f"(Policy {run.name}. Where a file of a finished stage is damaged, move that stage's"
            f" folder out of {study.root} and give the same command again.)"
        )
        raise


def _trained(study: Study, run: Run, pairs: Stage, more: dict[str, Any]) -> tuple[str, str]:
    """Folder and digest of the policy, trained if it is not there."""
    seed = derived_seed(study.options.seed, 23, run.replicate)
    if study.options.trust_remote_code:
        more = more | {"trust_remote_code": True}
    options = options_of(run, study.sizes, seed=seed, more=more)
    if (count := count_pairs(pairs.folder)) < options["batch_size"]:
        raise ValueError(
            f"{count} preference pairs make no batch of {options['batch_size']}: take more prompts"
            " or a smaller batch_size. Pairs of equal or empty completions are left out."
        )
    # a judge that has labelled the pairs is in their digest
    data = {"pairs": pairs.digest, "code": study.code, "model": study.models.made_from["model"]}
    # the reference depends on neither the objective nor the order, but on how rows are cut and
    # computed; KTO has rows of its own
    of_reference = (
        data
        | {name: options[name] for name in ("max_length", "bf16")}
        | {"more": more, "kto": run.method == "kto"}
    )
    files = {
        "model": study.models.policy,
        "data": str(pairs.folder / "pairs.jsonl"),
        "reference_cache": str(study.root / f"reference-{digest_of(of_reference)}.safetensors"),
    }
    made = stage(
        study.root,
        f"policy-{run.name}",
        {"options": options, **data},
        partial(train_policy, options=options, files=files),
    )
    return str(made.folder), made.digest


def judge_by_rewards(folder: Path, study: Study, run: Run, policy: str, prompts: Path) -> None:
    """Completions of the test prompts by a policy, with their log-ratio to the start, and their
    rewards."""
    completions = write_completions(
        folder,
        policy=policy,
        prompts=prompts,
        count=1,
        sizes=study.sizes,
        seed=derived_seed(study.options.seed, 24, run.replicate),
        trust_remote_code=study.options.trust_remote_code,
        start=study.models.policy,
    )
    write_scores(
        folder,
        completions=completions,
        prompts=prompts,
        judge=study.models.judge,
        sizes=study.sizes,
        trust_remote_code=study.options.trust_remote_code,
    )


def keys(run: Run) -> dict[str, Any]:
    """The columns that say which policy a row is of."""
    return {"method": run.method, "radius": run.radius, "beta": run.beta, "seed": run.replicate}
