"""AOT benchmark: quantiles of rewards, what the choices in AOT do, benchmarks. Section 5,
arXiv:2406.05882 (Fig. 1, 2, tables).

Policies are trained with AOT, paired and unpaired, DPO, IPO and KTO on the same preferences. Judged
are the rewards of the chosen and rejected responses of test pairs, completions of test prompts by a
reward model, and benchmarks by lm-evaluation-harness; the files of AlpacaEval are written, and its
results read. Around the default of AOT its beta, batch size, h and sorting are varied. The stages
are folders in OUT/stages. By default all is generated here; `--profile paper` is Merlinite-7B on
UltraFeedback Binarized.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments import screen
from experiments.alignment.alpaca import COLUMN as ALPACA_EVAL
from experiments.alignment.alpaca import instructions_stage, win_rates, write_answers
from experiments.alignment.benchmarks import (
    BENCHMARKS,
    BenchmarkOptions,
    BenchmarkSizes,
    check_benchmarked,
    check_benchmarks,
    tasks_stage,
    write_benchmarks,
)
from experiments.alignment.pairs import (
    annotators,
    count_pairs,
    take_pairs,
    two_of_each,
    write_pairs,
)
from experiments.alignment.policies import (
    completions_stage,
    judge_by_rewards,
    policies,
    scored,
    scores_stage,
)
from experiments.alignment.prompts import FILES, prompts_stage, read_prompts
from experiments.alignment.responses import write_response_logps
from experiments.alignment.sizes import PAPER, QUICK, SMOKE, chosen
from experiments.alignment.study import Study, begin, finish
from experiments.alignment.training import Run
from experiments.engine.ranks import rank
from experiments.engine.stages import Stage, content, derived_seed, read_artefact, stage
from llm.judges.evaluate import mean_of

METHODS = ("dpo", "ipo", "kto", "aot", "aot_unpaired")
AOT_METHODS = ("aot", "aot_unpaired")
H = ("logistic", "squared_hinge", "least_squares")
LEVELS = np.linspace(0.01, 0.99, 50)
WIN_RATE = "win rate"


@dataclass(frozen=True)
class Profile(BenchmarkSizes):
    """Sizes, and what is varied: `AotBenchmark` says what each is."""

    betas: tuple[float, ...]
    batch_sizes: tuple[int, ...]
    h: tuple[str, ...]
    softness: tuple[float, ...]


_QUICK = Profile(
    **asdict(QUICK),
    score="joy",
    benchmarks="local",
    questions=100,
    chat=False,
    betas=(0.03, 0.1, 0.3),
    batch_sizes=(8, 24, 96),
    h=H,
    softness=(0.3, 3.0),
)
PROFILES = {
    "smoke": replace(
        _QUICK,
        **asdict(SMOKE),
        questions=10,
        betas=(0.1, 0.3),
        batch_sizes=(8, 16),
        h=("logistic", "squared_hinge"),
        softness=(1.0,),
    ),
    "quick": _QUICK,
    "paper": Profile(
        **asdict(
            replace(
                PAPER,
                model="ibm-research/merlinite-7b",
                source="HuggingFaceH4/ultrafeedback_binarized",
                split="train_prefs",
                test_split="test_prefs",
                new_tokens=512,
                epochs=1,
            )
        ),
        score="ArmoRM",
        benchmarks="aot",
        questions=100,
        chat=False,
        betas=(0.01, 0.05, 0.1),
        batch_sizes=(32, 64, 128),
        h=H,
        softness=(0.1,),
    ),
}


@dataclass
class AotBenchmark(BenchmarkOptions):
    """AOT, DPO, IPO and KTO on the same preferences. What is not given is taken from the
    profile."""

    out: Path = Path("results/aot-benchmark")
    """Folder of the results; a run that was stopped resumes from what it holds."""
    betas: tuple[float, ...] | None = None
    """beta of AOT and DPO in Fig. 2."""
    batch_sizes: tuple[int, ...] | None = None
    """Pairs in a step in Fig. 2; the epochs are the same, so that smaller batches take more
    steps."""
    h: tuple[str, ...] | None = None
    """h of AOT in Fig. 2: logistic, squared_hinge, least_squares."""
    softness: tuple[float, ...] | None = None
    """Softness of soft sorting in Fig. 2, beside hard sorting."""
    instructions: Path | None = None
    """alpaca_eval.json, whose instructions every compared policy answers for AlpacaEval; where not
    given, the test prompts."""
    alpaca_results: Path | None = None
    """leaderboard.csv or annotations.json of AlpacaEval, whose win rates join the table of
    benchmarks."""


def plan(config: AotBenchmark) -> Profile:
    """The profile with what the configuration replaces.

    Raises:
        ValueError: an unknown or impossible value.
    """
    profile: Profile = chosen(PROFILES, config)
    check_benchmarks(profile, config.limit)
    if config.wdpo is not None:
        raise ValueError(
            f"no WDPO is trained here, to which wdpo = {config.wdpo} could apply: leave it out."
        )
    if unknown := sorted(set(profile.h) - set(H)):
        raise ValueError(f"unknown h {', '.join(unknown)}; choose from {', '.join(H)}.")
    if profile.completions != 2:
        raise ValueError(
            "annotators compare two completions of each prompt, got completions ="
            f" {profile.completions}."
        )
    for path in (config.instructions, config.alpaca_results):
        if path is not None and not path.is_file():
            raise ValueError(f"there is no file {path}.")
    return profile


def run(config: AotBenchmark) -> dict[str, pd.DataFrame] | None:
    """Run or resume the study and write its tables; returns them, or None where other parts of it
    are made elsewhere.

    Raises:
        ValueError: a value, a source or a model that cannot be used.
        ImportError: lm-eval is not installed.
        StoreError: the folder is not writable.
    """
    profile = plan(config)
    study = begin(config.out, profile, config, Path(__file__))
    check_benchmarked(study, profile)
    prompts = prompts_stage(study)
    pairs = preferences(study, prompts)
    tasks = tasks_stage(study, profile.benchmarks, profile.questions)
    instructions = instructions_stage(study, config.instructions, prompts)
    how: dict[str, Any] = {"name": profile.benchmarks, "limit": config.limit, "chat": profile.chat}
    judge = partial(
        _judge,
        prompts=prompts.folder / FILES["test"],
        pairs=pairs["test", 0].folder / "pairs.jsonl",
        tasks=None if tasks is None else tasks.folder,
        instructions=instructions.folder,
        how=how,
    )
    made_of = how | {
        "tasks": None if tasks is None else tasks.digest,
        "prompts": prompts.digest,
        "pairs": pairs["test", 0].digest,
    }
    made_of |= {"instructions": instructions.digest}
    wanted = runs(profile)
    judged = policies(
        study,
        [
            (one, None if one.method == "start" else pairs["train", one.replicate])
            for _, one in wanted
        ],
        judge,
        made_of,
    )
    if config.part is not None or rank() != 0:
        return None
    found = [
        (choices, one, made.folder) for (choices, one), made in zip(wanted, judged, strict=True)
    ]
    columns = [*BENCHMARKS[profile.benchmarks], WIN_RATE]
    tables = {
        "quantiles": quantiles(found),
        "ablations": ablations(profile, found),
        "benchmarks": benchmarks(profile, found),
    }
    if config.alpaca_results is not None:
        more = win_rates(config.alpaca_results, [run for run, _ in _compared(found)])
        tables["benchmarks"] = pd.concat([tables["benchmarks"], more], ignore_index=True)
        columns.append(ALPACA_EVAL)
    facts = {
        "columns": columns,
        "beta": profile.beta,
        "score": profile.score,
        "limit": config.limit,
        "preference_pairs": {
            f"{part} {seed}": count_pairs(made.folder) for (part, seed), made in pairs.items()
        },
    }
    finish(config.out, "aot-benchmark", study, tables, facts)
    return tables


# -------------------------------------------------------------------------------------- what is run
Choices = tuple[tuple[str, str], ...]  # the panels of Fig. 2 that a run is in: axis and value
MAIN = ("main", "")


def runs(profile: Profile) -> list[tuple[Choices, Run]]:
    """What is trained, each once, with the panels that it is in; and the start, once for each
    seed."""
    default = {"beta": profile.beta, "batch_size": profile.batch_size, "h": H[0], "softness": 0.0}
    panels: dict[tuple[str, tuple[Any, ...]], list[tuple[str, str]]] = {}
    for name in METHODS:
        panels.setdefault((name, tuple(default.values())), []).append(MAIN)
    varied = {
        "beta": profile.betas,
        "batch_size": profile.batch_sizes,
        "h": profile.h,
        "softness": (0.0, *profile.softness),
    }
    for axis, options in varied.items():
        for method, value in product(
            (*AOT_METHODS, "dpo") if axis == "beta" else AOT_METHODS, options
        ):
            place = _place(axis, value)
            panels.setdefault((method, tuple((default | {axis: value}).values())), []).append(place)
    found: list[tuple[Choices, Run]] = []
    for ((method, values), places), seed in product(panels.items(), range(profile.seeds)):
        choice = dict(zip(default, values, strict=True))
        more: dict[str, Any] = {"batch_size": choice["batch_size"]}
        more |= {name: choice[name] for name in ("h", "softness") if choice[name] != default[name]}
        name = "-".join(
            [
                method,
                *("=".join(_place(*pair)).replace(" ", "-") for pair in choice.items()),
                f"seed-{seed}",
            ]
        )
        found.append(
            (
                tuple(places),
                Run(name, method, 0.0, choice["beta"], seed, more, compared=MAIN in places),
            )
        )
    # its samples differ from seed to seed, what it knows does not
    starts = [
        Run(f"start-seed-{seed}", "start", 0.0, 0.0, seed, compared=seed == 0)
        for seed in range(profile.seeds)
    ]
    return found + [((MAIN,) if run.compared else (), run) for run in starts]


def _place(axis: str, value: Any) -> tuple[str, str]:
    """Panel and tick of a value."""
    if axis == "softness":
        return "sorting", f"soft {str(value).removesuffix('.0')}" if value else "hard"
    return axis, str(value)


def preferences(study: Study, prompts: Stage) -> dict[tuple[str, int], Stage]:
    """The pairs of the training, for each replicate, and those of the test: folders with
    pairs.jsonl, by part and replicate."""
    profile = study.sizes
    assert isinstance(profile, Profile)
    found: dict[tuple[str, int], Stage] = {}
    for part, seeds in (("train", profile.seeds), ("test", 1)):
        if study.models.texts is not None:
            completions = completions_stage(study, prompts, part, profile.completions)
            scores = scores_stage(study, prompts, completions, part)
            for seed in range(seeds):
                found[part, seed] = _labelled(study, prompts, completions, scores, part, seed)
        else:
            stored = _stored(
                study, part
            )  # the labels are there: replicates differ in the order of the training only
            found |= {(part, seed): stored for seed in range(seeds)}
    return found


def _labelled(
    study: Study, prompts: Stage, completions: Stage, scores: Stage, part: str, seed: int
) -> Stage:
    """Generated completions, labelled by annotators who go by the score."""
    profile = study.sizes
    assert isinstance(profile, Profile)
    made_from = {
        "scores": scores.digest,
        "score": profile.score,
        "scale": profile.label_scale,
        "replicate": seed,
        "code": study.code,
    }

    def make(folder: Path) -> None:
        if rank() != 0:
            return
        table = scored(completions, scores)
        first, second = two_of_each(table)
        rewards = [part[profile.score].to_numpy() for part in (first, second)]
        wins = annotators(
            rewards[0], rewards[1], profile.label_scale, derived_seed(study.options.seed, 26, seed)
        )
        write_pairs(folder, read_prompts(prompts.folder / FILES[part]), first, second, wins)

    return stage(study.root, f"pairs-{part}-seed-{seed}", made_from, make)


def _stored(study: Study, part: str) -> Stage:
    """Pairs of a data set."""
    sizes = study.sizes
    split, count = (
        (sizes.split, sizes.prompts) if part == "train" else (sizes.test_split, sizes.test_prompts)
    )
    made_from = {
        "source": content(sizes.source),
        "split": split,
        "count": count,
        "seed": study.options.seed,
        "code": study.code,
    }

    def make(folder: Path) -> None:
        if rank() == 0:
            take_pairs(folder, sizes.source, split, count, derived_seed(study.options.seed, 27))

    return stage(study.root, f"pairs-{part}", made_from, make)


def _judge(
    folder: Path,
    *,
    study: Study,
    run: Run,
    policy: str,
    prompts: Path,
    pairs: Path,
    tasks: Path | None,
    instructions: Path,
    how: dict[str, Any],
) -> None:
    """Completions of a policy with their scores, and log-probabilities of the test pairs;
    benchmarks of those compared."""
    judge_by_rewards(folder, study=study, run=run, policy=policy, prompts=prompts)
    write_response_logps(folder, study=study, policy=policy, pairs=pairs)
    if run.compared:
        write_benchmarks(folder, study, policy, tasks=tasks, **how)
        write_answers(folder, study=study, run=run, policy=policy, instructions=instructions)


# ------------------------------------------------------------------------------------------- tables
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
    for run, folder in _compared(judged):
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
    """Benchmarks of the compared runs, a row for each task, and their win rate against the start by
    the score."""
    starts = _starts(profile, judged)
    parts = []
    for run, folder in _compared(judged):
        wins = mean_of(_against(profile, folder, starts[run.replicate])[0])
        row: dict[str, Any] = {
            "task": WIN_RATE,
            "column": WIN_RATE,
            "metric": f"share of prompts with more {profile.score}",
        }
        row |= {"value": wins.value, "stderr": wins.error, "samples": len(starts[run.replicate])}
        table = pd.concat(
            [read_artefact(folder / "benchmarks.csv"), pd.DataFrame([row])], ignore_index=True
        )
        parts.append(table.assign(method=run.method, seed=run.replicate))
    return pd.concat(parts, ignore_index=True)


def _compared(judged: Judged) -> Iterable[tuple[Run, Path]]:
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


def summarise(config: AotBenchmark, tables: dict[str, pd.DataFrame]) -> None:
    """Print the benchmarks of every method, and where the answers for AlpacaEval are."""
    means = (
        tables["benchmarks"]
        .pivot_table(index="method", columns="column", values="value", sort=False)
        .round(3)
    )
    screen.show(means.reset_index().to_dict("records"), "mean over tasks and seeds")
    print(f"answers for AlpacaEval: {config.out}/stages/judged-*/outputs.json")
