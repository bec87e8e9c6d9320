"""Leaderboard: what robust preference training does to benchmarks. Section 7, arXiv:2502.01930
(Tables 1, 3, 4).

Ten completions of each prompt are scored by a reward model; policies are trained on the best
against the worst and evaluated by lm-evaluation-harness. The stages are folders in OUT/stages:
prompts, completions, scores, pairs, policies, judgements. By default all is generated here, and the
benchmarks are small local tasks. `--profile paper` is Llama-3.2-1B-Instruct, HelpSteer2, ArmoRM's
gated score and Open LLM Leaderboard v2; `--model` names the 3B or 8B model.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import screen
from experiments.alignment.benchmarks import (
    BENCHMARKS,
    BenchmarkOptions,
    BenchmarkSizes,
    check_benchmarked,
    check_benchmarks,
    tasks_stage,
    write_benchmarks,
)
from experiments.alignment.pairs import best_and_worst, count_pairs, write_pairs
from experiments.alignment.policies import (
    completions_stage,
    judge_by_rewards,
    keys,
    policies,
    scored,
    scores_stage,
)
from experiments.alignment.prompts import FILES, prompts_stage, read_prompts
from experiments.alignment.sizes import PAPER, QUICK, SMOKE, chosen
from experiments.alignment.study import Study, begin, finish
from experiments.alignment.training import KNOBS, Run
from experiments.engine.ranks import rank
from experiments.engine.stages import Stage, read_artefact, stage
from llm.judges.evaluate import mean_of
from llm.judges.load import ARMORM_SCORE


@dataclass(frozen=True)
class Profile(BenchmarkSizes):
    """Sizes, and what is compared: `Leaderboard` says what each is."""

    dpo_epochs: tuple[float, ...]
    wdpo_radii: tuple[float, ...]
    kldpo_radii: tuple[float, ...]


_QUICK = Profile(
    **asdict(replace(QUICK, seeds=2, completions=10, learning_rate=1e-4)),
    score="joy",
    benchmarks="local",
    questions=100,
    chat=False,
    dpo_epochs=(2, 4, 6),
    wdpo_radii=(0.05, 0.2),
    kldpo_radii=(0.5, 1.0),
)
PROFILES = {
    "smoke": replace(
        _QUICK,
        **asdict(replace(SMOKE, completions=4)),
        questions=10,
        dpo_epochs=(1, 2),
        wdpo_radii=(0.1,),
        kldpo_radii=(1.0,),
    ),
    "quick": _QUICK,
    "paper": Profile(
        **asdict(replace(PAPER, completions=10, epochs=2)),
        score=ARMORM_SCORE,
        benchmarks="leaderboard",
        questions=100,
        chat=True,
        dpo_epochs=(2, 4, 6),
        wdpo_radii=(0.005, 0.01),
        kldpo_radii=(0.05, 0.1),
    ),
}


@dataclass
class Leaderboard(BenchmarkOptions):
    """Policies trained on the best against the worst completion, on benchmarks. What is not given
    is taken from the profile."""

    out: Path = Path("results/leaderboard")
    """Folder of the results; a run that was stopped resumes from what it holds."""
    dpo_epochs: tuple[float, ...] | None = None
    """Epochs of the DPO runs; the robust ones take `epochs`."""
    wdpo_radii: tuple[float, ...] | None = None
    """rho of WDPO: in units of the embedding norm, or, for `--wdpo released`, the authors'
    rho_o."""
    kldpo_radii: tuple[float, ...] | None = None
    """tau of KLDPO."""


def plan(config: Leaderboard) -> Profile:
    """The profile with what the configuration replaces.

    Raises:
        ValueError: an unknown or impossible value.
    """
    profile: Profile = chosen(PROFILES, config)
    check_benchmarks(profile, config.limit)
    if profile.completions < 2:
        raise ValueError(
            "the best and the worst are chosen among at least 2 completions, got"
            f" {profile.completions}."
        )
    return profile


def run(config: Leaderboard) -> dict[str, pd.DataFrame] | None:
    """Run or resume the study and write its tables; returns them, or None where other parts of it
    are made elsewhere.

    Seeds differ in the order of the training and the samples of the test: their intervals say
    nothing of other prompts, pairs or questions.

    Raises:
        ValueError: a value, a source or a model that cannot be used.
        ImportError: lm-eval is not installed.
        StoreError: the folder is not writable.
    """
    profile = plan(config)
    study = begin(config.out, profile, config, Path(__file__))
    check_benchmarked(study, profile)
    prompts = prompts_stage(study)
    completions = completions_stage(study, prompts, "train", profile.completions)
    pairs = pairs_stage(
        study,
        prompts,
        completions,
        scores_stage(study, prompts, completions, "train"),
        profile.score,
    )
    tasks = tasks_stage(study, profile.benchmarks, profile.questions)
    wanted = runs(profile)
    how: dict[str, Any] = {"name": profile.benchmarks, "limit": config.limit, "chat": profile.chat}
    judge = partial(
        _judge,
        prompts=prompts.folder / FILES["test"],
        tasks=None if tasks is None else tasks.folder,
        how=how,
    )
    made_of = how | {"tasks": None if tasks is None else tasks.digest, "prompts": prompts.digest}
    judged = policies(
        study,
        [(one, None if one.method == "start" else pairs) for _, one in wanted],
        judge,
        made_of,
    )
    if config.part is not None or rank() != 0:
        return None
    tables = tables_of(
        profile,
        [(label, one, made.folder) for (label, one), made in zip(wanted, judged, strict=True)],
    )
    columns = BENCHMARKS[profile.benchmarks]
    facts = {
        "columns": list(columns),
        "tasks": [[task, name] for name, column in columns.items() for task in column.tasks],
        "labels": list(
            dict.fromkeys(
                label for label, _ in sorted(wanted, key=lambda one: _place(profile, one[1]))
            )
        ),
        "score": profile.score,
        "limit": config.limit,
        "preference_pairs": count_pairs(pairs.folder),
    }
    finish(config.out, "leaderboard", study, tables, facts)
    return tables


def tables_of(profile: Profile, judged: Sequence[tuple[str, Run, Path]]) -> dict[str, pd.DataFrame]:
    """Every task of every policy, and what each policy's completions are worth: label, run and
    folder -> scores, policies."""
    scores, rows = [], []
    for label, run, folder in judged:
        of_run = {"label": label, **keys(run), "epochs": _epochs(profile, run)}
        table = read_artefact(folder / "benchmarks.csv")
        scores.append(table.assign(model=profile.model or "generated GPT-2", **of_run))
        reward = mean_of(read_artefact(folder / "scores.parquet")[profile.score].to_numpy())
        kl = mean_of(read_artefact(folder / "completions.parquet").log_ratio.to_numpy())
        rows.append(
            {
                **of_run,
                "reward": reward.value,
                "reward_error": reward.error,
                "kl": kl.value,
                "kl_error": kl.error,
            }
        )
    return {"scores": pd.concat(scores, ignore_index=True), "policies": pd.DataFrame(rows)}


def _epochs(profile: Profile, run: Run) -> float:
    return 0.0 if run.method == "start" else run.more.get("num_train_epochs", profile.epochs)


def _place(profile: Profile, run: Run) -> tuple[int, float, float]:
    """Where a run stands in the tables: as in Table 1."""
    return ("start", "dpo", "kldpo", "wdpo").index(run.method), _epochs(profile, run), -run.radius


def _judge(
    folder: Path,
    *,
    study: Study,
    run: Run,
    policy: str,
    prompts: Path,
    tasks: Path | None,
    how: dict[str, Any],
) -> None:
    """The rewards of a policy's completions, its KL to the start, and its benchmarks."""
    judge_by_rewards(folder, study=study, run=run, policy=policy, prompts=prompts)
    write_benchmarks(folder, study, policy, tasks=tasks, **how)


def runs(profile: Profile) -> list[tuple[str, Run]]:
    """What is trained, with its name in the tables, the costly ones first; and the start."""
    kinds: list[tuple[str, str, float, dict[str, Any]]] = []
    for epochs in sorted(profile.dpo_epochs, reverse=True):
        kinds.append((f"DPO epoch {epochs:g}", "dpo", 0.0, {"num_train_epochs": epochs}))
    for method, radii in (("wdpo", profile.wdpo_radii), ("kldpo", profile.kldpo_radii)):
        knob = "rho_o" if method == "wdpo" and profile.wdpo == "released" else KNOBS[method]
        kinds += [(f"{method.upper()} {knob}={radius:g}", method, radius, {}) for radius in radii]
    trained = [
        (
            label,
            Run(
                f"{label.lower().replace(' ', '-')}-seed-{seed}",
                method,
                radius,
                profile.beta,
                seed,
                more,
            ),
        )
        for (label, method, radius, more), seed in product(kinds, range(profile.seeds))
    ]
    return [*trained, ("start", Run("start", "start", 0.0, 0.0, 0))]


def pairs_stage(
    study: Study, prompts: Stage, completions: Stage, scores: Stage, score: str
) -> Stage:
    """The best against the worst completion of each prompt: pairs.jsonl."""

    def make(folder: Path) -> None:
        if rank() != 0:
            return
        table = scored(completions, scores)
        best, worst = best_and_worst(table, score)
        first_wins = (best[score] >= worst[score]).to_numpy()
        write_pairs(folder, read_prompts(prompts.folder / FILES["train"]), best, worst, first_wins)

    return stage(
        study.root, "pairs", {"scores": scores.digest, "score": score, "code": study.code}, make
    )


def summarise(config: Leaderboard, tables: dict[str, pd.DataFrame]) -> None:
    """Print the scores of every policy."""
    scores = tables["scores"].pivot_table(
        index="label", columns="column", values="value", sort=False
    )
    means = scores.join(tables["policies"].groupby("label")[["reward", "kl"]].mean()).round(3)
    screen.show(
        means.reset_index().to_dict("records"),
        "mean over tasks and seeds, with the reward of each policy's completions and its KL to\n"
        "the start",
    )
