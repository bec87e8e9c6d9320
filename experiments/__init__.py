"""Experiments: what is computed, where, and what it leaves on disk.

The two registries below are all that the command knows of what it can run. A module is imported
when its name is asked for, and not before.
"""

from typing import NamedTuple


class Entry(NamedTuple):
    """A module with `run(config)`, whose options are the fields of the dataclass that `config` is,
    and what it does in a line. That of an experiment has `summarise(config, tables)` too."""

    module: str
    about: str


EXPERIMENTS = {
    "estimation-error": Entry(
        "experiments.estimation_error",
        "Estimation error against sample size, for every estimator, with the bounds of the"
        " theorems.",
    ),
    "worst-case": Entry(
        "experiments.worst_case",
        "Worst-case distributions of every ball at one policy: weights, moves, and the value"
        " against the radius.",
    ),
    "preference-shift": Entry(
        "experiments.preference_shift",
        "Robust against plain policies when the preferences shift, at the same distance from the"
        " reference policy.",
    ),
    "aot": Entry(
        "experiments.aot.study",
        "AOT: rates, minibatch bias, soft sorting, choice of h, pairing, local minima, and against"
        " DPO, IPO and KTO.",
    ),
    "emotion": Entry(
        "experiments.alignment.emotion",
        "Emotion alignment: texts, reward model, preferences, DPO and robust policies, rewards"
        " under shift, at equal KL.",
    ),
    "armorm": Entry(
        "experiments.alignment.armorm",
        "Policies for mixtures of two objectives, judged by all objectives of a reward model"
        " (ArmoRM, or one trained here).",
    ),
    "leaderboard": Entry(
        "experiments.alignment.leaderboard",
        "Policies trained on the best against the worst of several completions, on the benchmarks"
        " of lm-evaluation-harness.",
    ),
    "aot-benchmark": Entry(
        "experiments.alignment.aot_benchmark",
        "AOT, DPO, IPO and KTO on language models: quantiles of rewards, beta, batch size, h,"
        " sorting, and benchmarks.",
    ),
}
BENCHMARKS = {
    "solvers": Entry(
        "experiments.bench.solvers",
        "Time our solvers against cvxpy, dro, skwdro and scikit-learn on the same problems, in one"
        " run.",
    ),
    "training": Entry(
        "experiments.bench.training",
        "Time and peak memory of a training step of every objective, against plain DPO here and"
        " against TRL, in one run.",
    ),
    "gpu": Entry(
        "experiments.bench.gpu",
        "All that a CUDA machine is asked, in stages within a time budget: tests, solvers,"
        " training.",
    ),
    "startup": Entry(
        "experiments.bench.startup",
        "Processor time of the commands that only say something, against what we want.",
    ),
}
