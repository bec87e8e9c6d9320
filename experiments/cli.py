"""The `prefdro` command: list, verify, run, figures, bench, train."""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from subprocess import CalledProcessError
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from experiments import estimation_error, preference_shift, worst_case
from experiments import verify as ledger
from experiments.alignment import aot_benchmark, armorm, emotion, leaderboard
from experiments.alignment.aot_benchmark import AotBenchmark
from experiments.alignment.armorm import ArmoRM
from experiments.alignment.emotion import Emotion
from experiments.alignment.leaderboard import Leaderboard
from experiments.aot import study as aot
from experiments.aot.study import AotStudy
from experiments.bench import solvers as bench_solvers
from experiments.bench import training as bench_training
from experiments.engine.ranks import rank
from experiments.engine.runner import CellsFailed
from experiments.engine.store import StoreError, refuse_folder_of_another
from experiments.estimation_error import PROFILES, EstimationError
from experiments.methods import METHODS
from experiments.preference_shift import PreferenceShift
from experiments.verify import Verify
from experiments.worst_case import WorstCaseStudy
from llm.console import print_whatever_the_encoding, refuse_undecoded
from paper_figures import catalogue
from theory.claims.shift import ROUNDING

Command = Callable[..., None]


def main(arguments: list[str] | None = None) -> None:
    """Entry point; unusable input ends with a message on stderr and exit status 1."""
    words = sys.argv[1:] if arguments is None else arguments
    print_whatever_the_encoding()
    try:
        refuse_undecoded(words)
        if words and words[0] == "train":
            train(*words[1:])
        elif words and words[0] in _GROUPS:
            tyro.extras.subcommand_cli_from_dict(
                _GROUPS[words[0]], prog=f"prefdro {words[0]}", args=words[1:]
            )
        else:
            tyro.extras.subcommand_cli_from_dict(
                _TOP, prog="prefdro", description=_DESCRIPTION, args=words
            )
    except (
        ValueError,
        ImportError,
        OSError,
        FloatingPointError,
        CalledProcessError,
        StoreError,
        CellsFailed,
    ) as error:
        print("prefdro:", error, *getattr(error, "__notes__", ()), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(
            "prefdro: stopped; what is finished is kept, and the same command resumes.",
            file=sys.stderr,
        )
        sys.exit(130)


def list_all(results: Path = Path("results")) -> None:
    """Say what there is: figures and their state, experiments, profiles, methods and benchmarks.

    Args:
        results: Folder of all results; the figures are in its folder figures.
    """
    console = Console()
    drawn = catalogue.record(results / "figures")
    shown = Table("figure or table", "experiment", "source", "state", title="prefdro figures --all")
    for entry in catalogue.ENTRIES:
        state = catalogue.state(entry, results, results / "figures", drawn)
        shown.add_row(entry.key, entry.experiment or "needs no rows", entry.source, state)
    console.print(shown)
    experiments = Table(
        "experiment",
        "profile",
        "replicates",
        "sizes n (finite; continuous)",
        "worlds",
        title="prefdro run EXPERIMENT --profile PROFILE",
    )
    for name, profile in PROFILES.items():
        sizes = "; ".join(
            f"{sizes[0]:.0e} to {sizes[-1]:.0e}"
            for sizes in (profile.finite_sizes, profile.continuous_sizes)
        )
        experiments.add_row(
            "estimation-error", name, str(profile.replicates), sizes, str(len(profile.worlds))
        )
    console.print(experiments)
    console.print(
        "other experiments, each with the profiles smoke, quick and paper:"
        f" {', '.join([*_GROUPS['run']][1:])}"
    )
    methods = Table("method", "what it is", "set by", title="methods (--methods)")
    for name, method in METHODS.items():
        knob = (
            "nothing"
            if method.set is None
            else f"{method.set.facts.size}, as a fraction of collapse"
        )
        methods.add_row(name, method.about, knob)
    console.print(methods)
    console.print("benchmarks: prefdro bench solvers, prefdro bench training")
    console.print("claims of the theory: prefdro verify")
    console.print("training of language models: prefdro train")


def verify(config: Annotated[Verify, tyro.conf.arg(name="")]) -> None:
    """Check the claims of the theory and compare the verdicts with those on record."""
    status = ledger.run(config)
    if status:
        sys.exit(status)


def train(*words: str) -> None:
    """Train a language model on preferences with any objective; `prefdro train --help` lists the
    options."""
    from llm.train import main as train_main  # transformers is slow to import and only needed here

    train_main(list(words))


def run_estimation_error(config: Annotated[EstimationError, tyro.conf.arg(name="")]) -> None:
    """Estimation error against sample size, for every estimator, with the bounds of the
    theorems."""
    refuse_folder_of_another(config.out, "estimation-error")
    tables = estimation_error.run(config)
    console = Console()
    rates = tables["rates"]
    shown = rates[(rates.target == "robust") & (rates.norm == "2") & (rates.range == "tail")]
    table = Table(
        "world",
        "method",
        "radius",
        "slope of log error on log n",
        "95 % interval",
        "not converged",
        title="rates, to the robust target",
    )
    for row in shown.itertuples():
        interval = f"[{row.ci_low:.3f}, {row.ci_high:.3f}]"
        table.add_row(
            row.world,
            row.method,
            str(row.radius),
            f"{row.slope:.3f}",
            interval,
            str(row.not_converged),
        )
    console.print(table)
    bounds, errors = tables["bounds"], tables["errors"]
    if len(bounds):
        low = bounds[bounds.coverage < 1 - bounds.delta]
        console.print(f"bounds: {len(bounds)} checked, {len(low)} with coverage below 1 - delta.")
    without = sorted(set(config.methods) - set(errors.method))
    if without:
        console.print(
            f"not run, for lack of a finite world of at most {estimation_error.METRIC_ATOMS} atoms:"
            f" {', '.join(without)}."
        )
    console.print(f"fits: {len(errors)}, not converged: {int((~errors.converged).sum())}.")
    console.print(
        f"tables in {config.out}: errors.parquet, rates.csv, bounds.csv, run.json. Next: prefdro"
        f" figures --from {config.out}"
    )


def run_worst_case(config: Annotated[WorstCaseStudy, tyro.conf.arg(name="")]) -> None:
    """Worst-case distributions of every ball at one policy: weights, moves, and the value against
    the radius."""
    refuse_folder_of_another(config.out, "worst-case")
    values = worst_case.run(config)["values"]
    exact = values[values.version == "exact"].assign(
        relative_gap=lambda rows: rows.gap.abs() / rows.value
    )
    print(
        exact.groupby("ball")
        .agg(problems=("value", "size"), largest_relative_gap=("relative_gap", "max"))
        .to_string()
    )
    _say_where(config.out)


def run_preference_shift(config: Annotated[PreferenceShift, tyro.conf.arg(name="")]) -> None:
    """Robust against plain policies when the preferences shift, at the same distance from the
    reference policy."""
    refuse_folder_of_another(config.out, "preference-shift")
    matched = preference_shift.run(config)["matched"].query(
        "control == 'shrunk' and alpha == 'worst'"
    )
    counts = matched.assign(lower=matched.high < -ROUNDING, higher=matched.low > ROUNDING).groupby(
        "method", sort=False
    )
    print(
        "worst-alpha regret minus that of DPO at equal KL: comparisons, 95 % intervals below and"
        " above 0, mean difference"
    )
    print(
        counts.agg(
            comparisons=("difference", "size"),
            lower=("lower", "sum"),
            higher=("higher", "sum"),
            mean=("difference", "mean"),
        )
    )
    _say_where(config.out)


def run_aot(config: Annotated[AotStudy, tyro.conf.arg(name="")]) -> None:
    """AOT: rates, minibatch bias, soft sorting, choice of h, pairing, local minima, and against
    DPO, IPO and KTO."""
    refuse_folder_of_another(config.out, "aot")
    tables = aot.run(config)
    print(tables["rates"].to_string(index=False))
    _say_where(config.out)


def run_emotion(config: Annotated[Emotion, tyro.conf.arg(name="")]) -> None:
    """Emotion alignment: texts, reward model, preferences, DPO and robust policies, rewards under
    shift, at equal KL."""
    refuse_folder_of_another(config.out, "emotion")
    matched = emotion.run(config)["matched"].query("alpha == 'worst'")
    print(
        "worst reward over alpha minus that of DPO at the same KL to the start, mean over seeds and"
        " 95 % interval"
    )
    print(matched.to_string(index=False))
    _say_where(config.out)


def run_armorm(config: Annotated[ArmoRM, tyro.conf.arg(name="")]) -> None:
    """Policies for mixtures of two objectives, judged by all objectives of a reward model (ArmoRM,
    or one trained here)."""
    refuse_folder_of_another(config.out, "armorm")
    tables = armorm.run(config)
    if tables is None:
        return _say_part(config.out)
    print(
        "reward of the mixture that the policies were trained for, mean over seeds and 95 %"
        " interval"
    )
    mixtures = tables["mixtures"]
    print(
        mixtures[mixtures.alpha == armorm.plan(config).alpha]
        .drop(columns=["first", "second", "alpha"])
        .to_string(index=False)
    )
    _say_where(config.out)


def run_leaderboard(config: Annotated[Leaderboard, tyro.conf.arg(name="")]) -> None:
    """Policies trained on the best against the worst of several completions, on the benchmarks of
    lm-evaluation-harness."""
    refuse_folder_of_another(config.out, "leaderboard")
    tables = leaderboard.run(config)
    if tables is None:
        return _say_part(config.out)
    print(
        "mean over tasks and seeds, with the reward of each policy's completions and its KL to the"
        " start"
    )
    means = tables["scores"].pivot_table(
        index="label", columns="column", values="value", sort=False
    )
    print(
        means.join(tables["policies"].groupby("label")[["reward", "kl"]].mean())
        .round(3)
        .to_string()
    )
    _say_where(config.out)


def run_aot_benchmark(config: Annotated[AotBenchmark, tyro.conf.arg(name="")]) -> None:
    """AOT, DPO, IPO and KTO on language models: quantiles of rewards, beta, batch size, h, sorting,
    and benchmarks."""
    refuse_folder_of_another(config.out, "aot-benchmark")
    tables = aot_benchmark.run(config)
    if tables is None:
        return _say_part(config.out)
    print("mean over tasks and seeds")
    print(
        tables["benchmarks"]
        .pivot_table(index="method", columns="column", values="value", sort=False)
        .round(3)
        .to_string()
    )
    print(f"answers for AlpacaEval: {config.out}/stages/judged-*/outputs.json")
    _say_where(config.out)


def _say_part(out: Path) -> None:
    if rank() == 0:
        print(
            f"this part of the policies is in {out}/stages; when all parts are, run it without"
            " --part for the tables."
        )


def _say_where(out: Path) -> None:
    names = sorted(
        path.name
        for path in out.iterdir()
        if path.suffix in (".csv", ".parquet", ".json") and path.name[0] != "."
    )
    print(f"tables in {out}: {', '.join(names)}. Next: prefdro figures --from {out}")


def figures(
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None,
    every: Annotated[bool, tyro.conf.arg(name="all"), tyro.conf.FlagCreatePairsOff] = False,
    results: Path | None = None,
    out: Path | None = None,
    workers: int | None = None,
) -> None:
    """Draw figures and tables from stored rows, without computing anything: of one experiment, or
    all of them (--all).

    Args:
        source: Folder of the experiment's tables.
        every: Draw every figure of both papers and of our own studies that has rows, and a page
            that shows them.
        results: With --all: the folder that holds the experiments' folders; ./results where not
            given.
        out: Folder of the figures; where not given SOURCE/figures, or with --all RESULTS/figures.
        workers: With --all: processes that draw; where not given, one for each processor.
    """
    if every:
        if source is not None:
            raise ValueError(
                f"--all draws from every experiment in --results: leave out --from {source}, or"
                " --all."
            )
        results = results or Path("results")
        if not results.is_dir():
            raise ValueError(
                f"there is no folder {results}. `make reproduce` makes ./results; give another one"
                " with --results."
            )
        return _draw_all(results, out or results / "figures", workers)
    if results is not None or workers is not None:
        raise ValueError(
            "--results and --workers go with --all; --from FOLDER draws the figures of one"
            " experiment."
        )
    if source is None:
        raise ValueError(
            "of what? Give --from FOLDER, the folder of an experiment's tables, or --all."
        )
    # matplotlib is slow to import and only needed here
    modules = [
        import_module(f"paper_figures.{name}") for name in catalogue.modules_of(_experiment(source))
    ]
    try:
        written = [
            path for module in modules for path in module.draw(source, out or source / "figures")
        ]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"the tables in {source} cannot be drawn ({error!r}): one was truncated, or is of"
            " another version. Run the experiment again, in the same folder: what is finished is"
            " not computed again."
        ) from error
    print("\n".join(str(path) for path in written))


def _draw_all(results: Path, out: Path, workers: int | None) -> None:
    from paper_figures import gallery

    outcomes = gallery.draw_all(results, out, workers)
    drawn = sum(bool(outcome.files) for outcome in outcomes)
    print(f"{drawn} of {len(outcomes)} figures and tables drawn; open {out / 'README.md'}")
    for command in dict.fromkeys(
        outcome.entry.command(results) for outcome in outcomes if not outcome.rows
    ):
        keys = [
            outcome.entry.key
            for outcome in outcomes
            if not outcome.rows and outcome.entry.command(results) == command
        ]
        print(f"no rows for {', '.join(keys)}: {command}")
    failed = {outcome.entry.module: outcome.error for outcome in outcomes if outcome.error}
    for module, error in failed.items():
        print(f"failed: paper_figures.{module}: {error}", file=sys.stderr)
    if failed:
        sys.exit(1)


def _experiment(source: Path) -> str:
    """What the folder says it holds."""
    record = source / "run.json"
    if not record.is_file():
        raise ValueError(
            f"{source} has no run.json: it is not the folder of a finished experiment. `prefdro"
            " run` makes one."
        )
    try:
        name = json.loads(record.read_text(encoding="utf-8"))["experiment"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{record} does not name its experiment ({error!r}); run the experiment again."
        ) from error
    known = catalogue.experiments()
    if name not in known:
        raise ValueError(
            f"{record} names the experiment {name!r}, which has no figures; there are"
            f" {', '.join(known)}."
        )
    return str(name)


def run_bench_solvers(
    out: Path = Path("results/bench"),
    profile: Literal["smoke", "quick", "paper"] = "quick",
    parts: tuple[Literal["peers", "scaling", "devices"], ...] = ("peers", "scaling", "devices"),
) -> None:
    """Time our solvers against cvxpy, dro, skwdro and scikit-learn on the same problems, in one
    run.

    Args:
        out: Folder for solvers.csv.
        profile: Size of the benchmark: smoke (seconds), quick (minutes) or paper (more repeats).
        parts: Against other packages; by sample size and replicates; on a CUDA device, where there
            is one, against the CPU.
    """
    bench_solvers.bench_solvers(out, profile, parts)


def run_bench_training(
    out: Path = Path("results/bench"),
    profile: Literal["smoke", "quick", "paper"] = "quick",
    device: Literal["cpu", "cuda"] | None = None,
) -> None:
    """Time and peak memory of a training step of every objective, against plain DPO here and
    against TRL, in one run.

    Args:
        out: Folder for training.csv.
        profile: Size of the benchmark: smoke (a minute), quick (minutes) or paper (more repeats).
        device: cpu or cuda; where not given, what there is.
    """
    bench_training.bench_training(out, profile, device)


def _group(name: str) -> Command:
    def show() -> None:
        raise ValueError(
            f"{name} what? Choose one of {', '.join(_GROUPS[name])}; `prefdro {name} NAME --help`"
            " shows its options."
        )

    return show


_DESCRIPTION = (
    "Robust preference alignment: estimators, bounds and experiments. `prefdro verify` checks the"
    " claims of the theory; `prefdro run --help` lists the experiments."
)
_GROUPS: dict[str, dict[str, Command]] = {
    "run": {
        "estimation-error": run_estimation_error,
        "worst-case": run_worst_case,
        "preference-shift": run_preference_shift,
        "aot": run_aot,
        "emotion": run_emotion,
        "armorm": run_armorm,
        "leaderboard": run_leaderboard,
        "aot-benchmark": run_aot_benchmark,
    },
    "bench": {"solvers": run_bench_solvers, "training": run_bench_training},
}
_RUN, _BENCH = _group("run"), _group("bench")
_RUN.__doc__, _BENCH.__doc__ = "Run an experiment.", "Run a benchmark."
_TOP: dict[str, Command] = {
    "list": list_all,
    "verify": verify,
    "run": _RUN,
    "figures": figures,
    "bench": _BENCH,
    "train": train,
}
