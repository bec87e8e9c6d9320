"""AOT benchmark: quantiles of rewards, what the choices in AOT do, benchmarks:
the figures and tables of arXiv:2406.05882.

Policies are trained with AOT, paired and unpaired, DPO, IPO and KTO on the same preferences. Judged
are the rewards of the chosen and rejected responses of test pairs, completions of test prompts by a
reward model, and benchmarks by lm-evaluation-harness; the files of AlpacaEval are written, and its
results read. Around the default of AOT its beta, batch size, h and sorting are varied. The stages
are folders in OUT/stages. By default all is generated here; `--profile paper` is Merlinite-7B on
UltraFeedback Binarized.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import screen
from experiments.alignment.alpaca import COLUMN as ALPACA_EVAL
from experiments.alignment.alpaca import instructions_stage, win_rates, write_answers
from experiments.alignment.aot_profiles import (
    AGAINST_FLIPS,
    AOT_METHODS,
    KNOWING,
    METHODS,
    PROFILES,
    ROBUST,
    H,
    Profile,
)
from experiments.alignment.aot_tables import (
    MAIN,
    WIN_RATE,
    Choices,
    ablations,
    benchmarks,
    dominance_table,
    main_runs,
    quantiles,
)
from experiments.alignment.benchmarks import (
    BENCHMARKS,
    BenchmarkOptions,
    check_benchmarked,
    check_benchmarks,
    check_chat,
    tasks_stage,
    write_benchmarks,
)
from experiments.alignment.held_out import SAME, compared, file_of, held_out, margins
from experiments.alignment.pairs import count_pairs, of_pairs, shared_prompts
from experiments.alignment.policies import (
    completions_stage,
    judge_by_rewards,
    policies,
    scores_stage,
)
from experiments.alignment.preferences import (
    Annotators,
    flipped_pairs,
    is_file,
    labelled_pairs,
    stored_pairs,
)
from experiments.alignment.prompts import FILES, prompts_stage
from experiments.alignment.responses import write_response_logps
from experiments.alignment.sizes import NONE, chosen
from experiments.alignment.study import Study, begin, finish
from experiments.alignment.training import Run
from experiments.engine.ranks import rank
from experiments.engine.stages import Stage

SHIFTED = "shifted"  # the name of the other population in the tables


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
    methods: tuple[str, ...] | None = None
    """What is trained: dpo, ipo, kto, aot, aot_unpaired, kldpo, wdpo. DPO is always there."""
    kldpo_radius: float | None = None
    """tau of KLDPO."""
    wdpo_radius: float | None = None
    """rho of WDPO, in units of the embedding norm."""
    dr_dpo_radius: float | None = None
    """b of Dr. DPO."""
    flips: tuple[float, ...] | None = None
    """Shares of the training labels that are exchanged, beside none; every method is trained on
    them too, and cDPO and rDPO, which are told the share, and Dr. DPO."""
    shifted: str | None = None
    """Preferences of another population, on which the policies are judged, too: a file, folder or
    data set on the hub; `none` for none."""
    shifted_split: str | None = None
    """Split of them."""
    shifted_pairs: int | None = None
    """How many of them, at most."""
    whole: bool | None = None
    """Take only pairs of which nothing is cut within prompt_tokens + new_tokens."""
    strings: str | None = None
    """How strings of stored preferences are read, as `prefdro train --strings`: chat puts them into
    the chat template."""
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
    profile: Profile = chosen(PROFILES, config, judged=False)
    if profile.shifted == NONE:
        profile = replace(profile, shifted=None)
    if profile.judge == NONE:
        profile = replace(profile, betas=(), batch_sizes=(), h=(), softness=())
    _refuse_ignored(config, profile)
    if profile.benchmarks != NONE:
        check_benchmarks(profile, config.limit)
    if unknown := sorted(set(profile.methods) - {*METHODS, *ROBUST}):
        raise ValueError(
            f"unknown method {', '.join(unknown)}; choose from {', '.join((*METHODS, *ROBUST))}."
        )
    flips = [f"{flip:g}" for flip in profile.flips]
    if not all(0 < flip < 0.5 for flip in profile.flips) or len(set(flips)) < len(flips):
        raise ValueError(f"flips must be different and in (0, 1/2), got {profile.flips}.")
    if profile.model is None and profile.shifted is not None:
        raise ValueError(
            f"the generated model knows generated texts only, and not {profile.shifted}: give a"
            " model and a source."
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


def _refuse_ignored(config: AotBenchmark, profile: Profile) -> None:
    """Raise ValueError for an option that was given and would change nothing."""
    rewarded = profile.judge != NONE, "a reward model"
    stored = profile.model is not None, "stored preferences (a model and a source)"
    other = profile.shifted is not None, "another population (shifted)"
    needs = {
        "kldpo_radius": ("kldpo" in profile.methods, "kldpo among the methods"),
        "wdpo_radius": ("wdpo" in profile.methods, "wdpo among the methods"),
        "wdpo": ("wdpo" in profile.methods, "wdpo among the methods"),
        "dr_dpo_radius": (bool(profile.flips), "flips"),
        **dict.fromkeys(("whole", "strings"), stored),
        **dict.fromkeys(("shifted_split", "shifted_pairs"), other),
        **dict.fromkeys(("betas", "batch_sizes", "h", "softness"), rewarded),
        **dict.fromkeys(("instructions", "alpaca_results"), rewarded),
    }
    for name, (there, what) in needs.items():
        if (value := getattr(config, name)) is not None and not there:
            raise ValueError(
                f"{name} = {value} would change nothing without {what}: leave it out, or add that."
            )


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
    rewarded = profile.judge != NONE
    (check_benchmarked if rewarded else check_chat)(study, profile)
    prompts = prompts_stage(study) if rewarded else None
    pairs = preferences(study, prompts)
    tried = populations(study, pairs["test", 0])
    tasks = tasks_stage(study, profile.benchmarks, profile.questions)
    how: dict[str, Any] = {"name": profile.benchmarks, "limit": config.limit, "chat": profile.chat}
    judge = partial(
        _judge,
        prompts=None if prompts is None else prompts.folder / FILES["test"],
        populations={name: made.folder / "pairs.jsonl" for name, made in tried.items()},
        tasks=None if tasks is None else tasks.folder,
        how=how,
    )
    made_of = how | {
        "tasks": None if tasks is None else tasks.digest,
        "prompts": None if prompts is None else prompts.digest,
        "pairs": pairs["test", 0].digest,
        "strings": profile.strings,
    }
    if SHIFTED in tried:
        made_of[SHIFTED] = tried[SHIFTED].digest
    if prompts is not None:
        instructions = instructions_stage(study, config.instructions, prompts)
        judge = partial(judge, instructions=instructions.folder)
        made_of |= {"instructions": instructions.digest}
    wanted = runs(profile)
    judged = policies(
        study, [(one, _labels(study, pairs, one)) for _, one in wanted], judge, made_of
    )
    if config.part is not None or rank() != 0:
        return None
    found = [
        (choices, one, made.folder) for (choices, one), made in zip(wanted, judged, strict=True)
    ]
    held = [(run, folder) for places, run, folder in found if MAIN in places or run.flip]
    rows = margins(held, list(tried))
    tables = {
        "quantiles": quantiles(found),
        "dominance": dominance_table(profile, found),
        "pairs": rows,
        "held_out": held_out(rows),
        "compared": compared(rows),
    }
    columns = list(BENCHMARKS.get(profile.benchmarks, ()))
    if rewarded:
        columns.append(WIN_RATE)
        tables |= {"ablations": ablations(profile, found)}
    if columns:
        tables["benchmarks"] = benchmarks(profile, found)
    if config.alpaca_results is not None:
        more = win_rates(config.alpaca_results, [run for run, _ in main_runs(found)])
        tables["benchmarks"] = pd.concat([tables["benchmarks"], more], ignore_index=True)
        columns.append(ALPACA_EVAL)
    facts = {
        "columns": columns,
        "beta": profile.beta,
        "score": profile.score if rewarded else None,
        "limit": config.limit,
        "preference_pairs": {
            f"{part} {seed}": count_pairs(made.folder) for (part, seed), made in pairs.items()
        },
        "held_out_pairs": {
            name: int(rows[rows.population == name].pair.nunique()) for name in tried
        },
        "held_out_of": {name: of_pairs(made.folder) for name, made in tried.items()},
        "prompts_of_the_training": {
            name: shared_prompts(made.folder, pairs["train", 0].folder)
            for name, made in tried.items()
        },
    }
    finish(config.out, "aot-benchmark", study, tables, facts, parquet=("pairs",))
    return tables


# -------------------------------------------------------------------------------------- what is run
def runs(profile: Profile) -> list[tuple[Choices, Run]]:
    """What is trained, each once, with the panels that it is in; and the start, once for each
    seed."""
    default = {"beta": profile.beta, "batch_size": profile.batch_size, "h": H[0], "softness": 0.0}
    panels: dict[tuple[str, tuple[Any, ...]], list[tuple[str, str]]] = {}
    for name in dict.fromkeys(("dpo", *profile.methods)):
        panels.setdefault((name, tuple(default.values())), []).append(MAIN)
    varied = {
        "beta": profile.betas,
        "batch_size": profile.batch_sizes,
        "h": profile.h,
        "softness": (0.0, *profile.softness) if profile.softness else (),
    }
    for axis, options in varied.items():
        varied_here = (*AOT_METHODS, "dpo") if axis == "beta" else AOT_METHODS
        for method, value in product(
            [name for name in varied_here if name == "dpo" or name in profile.methods], options
        ):
            place = _place(axis, value)
            panels.setdefault((method, tuple((default | {axis: value}).values())), []).append(place)
    found: list[tuple[Choices, Run]] = []
    for ((method, values), places), seed in product(panels.items(), range(profile.seeds)):
        choice = dict(zip(default, values, strict=True))
        more: dict[str, Any] = {"batch_size": choice["batch_size"]} | _strings(profile)
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
                Run(
                    name,
                    method,
                    _radius(profile, method, 0.0),
                    choice["beta"],
                    seed,
                    more,
                    compared=MAIN in places,
                ),
            )
        )
    found += _on_flipped_labels(profile)
    # its samples differ from seed to seed, what it knows does not
    starts = [
        Run(f"start-seed-{seed}", "start", 0.0, 0.0, seed, compared=seed == 0)
        for seed in range(profile.seeds)
    ]
    return found + [((MAIN,) if run.compared else (), run) for run in starts]


def _on_flipped_labels(profile: Profile) -> list[tuple[Choices, Run]]:
    """The methods of the comparison, and those that are made for it, on labels of which a share is
    exchanged."""
    methods = dict.fromkeys(("dpo", *profile.methods, *AGAINST_FLIPS))
    return [
        (
            (("flip", str(flip)),),
            Run(
                f"{method}-flip={flip:g}-beta={profile.beta:g}-seed-{seed}",
                method,
                _radius(profile, method, flip),
                profile.beta,
                seed,
                _strings(profile),
                flip=flip,
                compared=False,
            ),
        )
        for flip, method, seed in product(profile.flips, methods, range(profile.seeds))
    ]


def _strings(profile: Profile) -> dict[str, Any]:
    return {} if profile.strings is None else {"strings": profile.strings}


def _radius(profile: Profile, method: str, flip: float) -> float:
    """What sizes a method: its radius, the rate of flips that it is told, or 0 where it has
    neither."""
    if method in KNOWING:
        return flip
    return float(getattr(profile, f"{method}_radius", 0.0))


def _labels(study: Study, pairs: dict[tuple[str, int], Stage], run: Run) -> Stage | None:
    """The pairs that a run is trained on; None for the start."""
    if run.method == "start":
        return None
    clean = pairs["train", run.replicate]
    return flipped_pairs(study, clean, run.flip, run.replicate) if run.flip else clean


def _place(axis: str, value: Any) -> tuple[str, str]:
    """Panel and tick of a value."""
    if axis == "softness":
        return "sorting", f"soft {str(value).removesuffix('.0')}" if value else "hard"
    return axis, str(value)


def preferences(study: Study, prompts: Stage | None) -> dict[tuple[str, int], Stage]:
    """The pairs of the training, for each replicate, and those of the test: folders with
    pairs.jsonl, by part and replicate."""
    profile = study.sizes
    assert isinstance(profile, Profile)
    found: dict[tuple[str, int], Stage] = {}
    for part, seeds in (("train", profile.seeds), ("test", 1)):
        if study.models.texts is not None:
            assert prompts is not None  # checked: a generated model comes with its reward model
            completions = completions_stage(study, prompts, part, profile.completions)
            scores = scores_stage(study, prompts, completions, part)
            who = who_prefers(part, profile.score)
            for seed in range(seeds):
                found[part, seed] = labelled_pairs(
                    study, prompts, completions, scores, part, who, seed
                )
        else:  # the labels are there: replicates differ in the order of the training, and in flips
            train = part == "train"
            same = is_file(profile.source) or profile.split == profile.test_split
            stored = stored_pairs(
                study,
                part,
                profile.source,
                profile.split if train else profile.test_split,
                profile.prompts if train else profile.test_prompts,
                # of one split the test has the first pairs, the training those after them
                after=profile.test_prompts if train and same else 0,
                whole=profile.whole,
                strings=profile.strings,
            )
            found |= {(part, seed): stored for seed in range(seeds)}
    return found


def who_prefers(part: str, score: str) -> Annotators:
    """Annotators who go by a score of the reward model."""
    return Annotators(part, lambda table: table[score].to_numpy(), {"score": score}, purpose=26)


def populations(study: Study, test: Stage) -> dict[str, Stage]:
    """The held-out pairs: those of the test, and of another population where one is named."""
    profile = study.sizes
    assert isinstance(profile, Profile)
    found = {SAME: test}
    if profile.shifted is not None:
        found[SHIFTED] = stored_pairs(
            study,
            SHIFTED,
            profile.shifted,
            profile.shifted_split,
            profile.shifted_pairs,
            whole=profile.whole,
            strings=profile.strings,
        )
    return found


def _judge(
    folder: Path,
    *,
    study: Study,
    run: Run,
    policy: str,
    prompts: Path | None,
    populations: dict[str, Path],
    tasks: Path | None,
    how: dict[str, Any],
    instructions: Path | None = None,
) -> None:
    """Log-probabilities of the held-out pairs, and, with a reward model, completions of a policy
    with their scores; benchmarks and answers of those compared."""
    if prompts is not None:
        judge_by_rewards(folder, study=study, run=run, policy=policy, prompts=prompts)
    assert isinstance(study.sizes, Profile)
    for name, pairs in populations.items():
        write_response_logps(
            folder,
            study=study,
            policy=policy,
            pairs=pairs,
            strings=study.sizes.strings,
            name=file_of(name),
        )
    if run.compared and how["name"] != NONE:
        write_benchmarks(folder, study, policy, tasks=tasks, **how)
    if run.compared and instructions is not None:
        write_answers(folder, study=study, run=run, policy=policy, instructions=instructions)


def summarise(config: AotBenchmark, tables: dict[str, pd.DataFrame]) -> None:
    """Print the benchmarks of every method, and how it orders held-out pairs; and where the answers
    for AlpacaEval are."""
    if "benchmarks" in tables:
        means = (
            tables["benchmarks"]
            .pivot_table(index="method", columns="column", values="value", sort=False)
            .round(3)
        )
        screen.show(means.reset_index().to_dict("records"), "mean over tasks and seeds")
    accuracy = tables["compared"].query("measure == 'accuracy'")
    shown = ["population", "flip", "method", "value", "over_dpo", "lost"]
    screen.show(
        accuracy[[name for name in shown if name in accuracy]].round(3).to_dict("records"),
        "share of held-out pairs in the right order, mean over seeds",
    )
    if "ablations" in tables:
        print(f"answers for AlpacaEval: {config.out}/stages/judged-*/outputs.json")
