"""Emotion alignment: are robust policies better when the preferences shift? Section 7 and Appendix
F, arXiv:2502.01930.

A language model is fine-tuned on emotion texts, a reward model learns to see five emotions,
annotators label pairs of completions by a mixture of two of them (anger and fear), policies are
trained on these labels and judged at every other mixture. The stages before the training are in
OUT/stages; each policy is a cell of `experiments.engine.runner`. A run that was stopped resumes,
and what belongs to another configuration is made again.
"""

import json
import time
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch

from experiments import screen
from experiments.alignment.emotion_profiles import PROFILES, Profile
from experiments.alignment.emotion_stages import code, prepare
from experiments.alignment.emotion_tables import dominance_table, summary_table
from experiments.alignment.emotion_training import METHODS, labelled, run_name, train_cell
from experiments.alignment.equal_kl import matched_table
from experiments.alignment.training import WDPO
from experiments.engine.provenance import configuration, provenance
from experiments.engine.runner import run_cells
from experiments.engine.store import Cell, open_run, write_json, write_table
from llm.data.corpus import CUES, GRAMMAR
from llm.generate import SETTINGS


@dataclass
class Emotion:
    """Emotion alignment, from texts to rewards under shift. What is not given is taken from the
    profile."""

    out: Path = Path("results/emotion")
    """Folder of the results; a run that was stopped resumes from what it holds."""
    profile: str = "quick"
    """Size of the study: smoke (seconds), quick (minutes on two cores), small (an hour on two
    cores: `smollm2`, real texts) or paper (needs a GPU, `gpt2`); small and paper take
    `dair-ai/emotion` from the hub where no source is given."""
    seed: int = 0
    """Seed of all random numbers; the same seed gives the same rows."""
    methods: tuple[str, ...] = ("dpo", "wdpo", "kldpo")
    """What is trained: dpo, wdpo, kldpo, dr_dpo, aot, ipo. DPO is always there, as the control."""
    settings: tuple[str, ...] | None = None
    """Who labels: convex or geometric mixture of two rewards, or groups of annotators that the
    prompt tells apart."""
    cues: tuple[str, ...] = ()
    """Words that mark a prompt of the minority; where not given, those of the grammar, or feeling,
    felt and was."""
    seeds: int | None = None
    """Replicates: other prompts, completions, labels and order; the fine-tuned model and the reward
    model are the same."""
    source: str | None = None
    """Texts: `grammar`; a folder with train.txt, val.txt, test.txt of lines `text;label`; a hub
    dataset or a snapshot of one."""
    model: str | None = None
    """Model to start from: its name on the hub, a folder, or `scratch` for a GPT-2 of the given
    width and layers."""
    texts: tuple[int, ...] | None = None
    """Texts in train, validation and test; the first ones of a source that has more."""
    width: int | None = None
    """Width of the model from scratch."""
    layers: int | None = None
    """Layers of the model from scratch."""
    vocabulary: int | None = None
    """Most words in the vocabulary of the model from scratch."""
    new_tokens: int | None = None
    """Longest completion, in tokens; texts are cut to it too."""
    sft_epochs: float | None = None
    """Epochs of the supervised fine-tuning."""
    sft_learning_rate: float | None = None
    """Learning rate of the supervised fine-tuning."""
    reward_epochs: float | None = None
    """Epochs of the reward model."""
    reward_learning_rate: float | None = None
    """Learning rate of the reward model."""
    prompts: int | None = None
    """Prompts to train on, with two completions each; at most as many as there are texts."""
    test_prompts: int | None = None
    """Prompts of the evaluation, at most as many as there are test texts."""
    label_scale: float | None = None
    """Factor on the rewards in the labels; 1 as in the paper, larger for surer annotators."""
    alpha: float | None = None
    """alpha_o, the weight of the first reward (anger) in the labels of the convex and the geometric
    setting."""
    epochs: float | None = None
    """Epochs of the preference training."""
    learning_rate: float | None = None
    """Learning rate of the preference training."""
    batch_size: int | None = None
    """Pairs in a step of the preference training."""
    micro_batch_size: int | None = None
    """Pairs that are held in memory at once; the step is the same."""
    bf16: bool | None = None
    """Compute the trainings in bfloat16, with weights in float32; twice as fast on processors that
    have it."""
    beta: float | None = None
    """beta of every objective."""
    control_betas: tuple[float, ...] | None = None
    """Larger beta of the DPO runs that robust methods are compared with at equal KL."""
    wdpo: str | None = None
    """How WDPO is computed: adversarial, finite_difference, exact, or released (the squared penalty
    of the authors' code)."""
    wdpo_radii: tuple[float, ...] | None = None
    """rho of WDPO: in units of the embedding norm, or, for `released`, the authors' rho_o."""
    kldpo_radii: tuple[float, ...] | None = None
    """tau of KLDPO."""
    dr_dpo_radii: tuple[float, ...] | None = None
    """b of Dr. DPO."""
    checkpoints: int | None = None
    """Evaluations of DPO, after 1/k, ..., k/k of its steps: the control that is stopped earlier.
    Other runs: at the end."""
    save_policies: bool = False
    """Keep every trained policy, in OUT/policies."""
    shared: Path = Path("results/generated")
    """Folder of the texts, the fine-tuned model and the reward model, which all experiments use."""
    workers: int | None = None
    """Processes that train at the same time; by default one for each core, or one where there is a
    GPU."""


def plan(config: Emotion) -> Profile:
    """The profile with what the configuration replaces.

    Raises:
        ValueError: an unknown or impossible value.
    """
    if config.profile not in PROFILES:
        raise ValueError(
            f"unknown profile {config.profile!r}; choose one of {', '.join(PROFILES)}."
        )
    given = {field.name: getattr(config, field.name, None) for field in fields(Profile)}
    profile = replace(
        PROFILES[config.profile],
        **{name: value for name, value in given.items() if value is not None},
    )
    if profile.model == "scratch":
        profile = replace(profile, model=None)
    for what, values, known in (
        ("method", config.methods, METHODS),
        ("setting", profile.settings, SETTINGS),
        ("wdpo", (profile.wdpo,), WDPO),
    ):
        unknown = [value for value in values if value not in known]
        if unknown or not values:
            raise ValueError(
                f"unknown {what} {', '.join(map(repr, unknown)) or '(none given)'}; choose from"
                f" {', '.join(known)}."
            )
    if config.seed < 0 or profile.seeds < 2:
        raise ValueError(
            f"needs a non-negative seed and at least 2 seeds for intervals, got {config.seed} and"
            f" {profile.seeds}."
        )
    if not 0 <= profile.alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {profile.alpha}.")
    if any(beta <= profile.beta for beta in profile.control_betas):
        raise ValueError(
            f"control_betas must be larger than beta = {profile.beta:g}, got"
            f" {profile.control_betas}."
        )
    for name, value in asdict(profile).items():
        numbers = [
            x
            for x in (value if isinstance(value, tuple) else (value,))
            if isinstance(x, (int, float)) and not isinstance(x, bool)
        ]
        if name != "alpha" and any(x <= 0 for x in numbers):
            raise ValueError(f"{name} must be positive, got {value}.")
    if profile.batch_size % profile.micro_batch_size:
        raise ValueError(
            f"batch_size {profile.batch_size} must be a multiple of micro_batch_size"
            f" {profile.micro_batch_size}."
        )
    return profile


def cue_words(config: Emotion, profile: Profile) -> tuple[str, ...]:
    """The words that mark a prompt of the minority."""
    return config.cues or CUES[GRAMMAR if profile.source == GRAMMAR else "other"]


def runs(profile: Profile, methods: tuple[str, ...]) -> list[tuple[str, float, float]]:
    """What is trained on each set of labels: method, radius (0 where it has none), beta. The costly
    ones come first."""
    radii = {
        "wdpo": profile.wdpo_radii,
        "kldpo": profile.kldpo_radii,
        "dr_dpo": profile.dr_dpo_radii,
    }
    others = sorted(
        {method for method in methods if method != "dpo"},
        key=lambda method: (method != "wdpo", method),
    )
    wanted = [
        (method, radius, profile.beta) for method in others for radius in radii.get(method, (0.0,))
    ]
    return (
        wanted
        + [("dpo", 0.0, beta) for beta in (profile.beta, *profile.control_betas)]
        + [("sft", 0.0, 0.0)]
    )


def plan_cells(config: Emotion, profile: Profile, digests: list[str]) -> list[Cell]:
    """One cell for each setting, run and replicate. A cell is identified by all that its rows
    depend on."""
    settings = asdict(profile)
    names = (
        *("epochs", "learning_rate", "batch_size", "micro_batch_size", "bf16"),
        *("alphas", "test_prompts"),
    )
    cells = []
    for method, radius, beta in runs(profile, config.methods):
        for setting in profile.settings:
            for replicate, digest in enumerate(digests):
                parameters = {
                    "setting": setting,
                    "method": method,
                    "radius": radius,
                    "beta": beta,
                    "seed": config.seed,
                    "replicate": replicate,
                    "cues": list(cue_words(config, profile)),
                    "labels": digest,
                    "training": (
                        {name: settings[name] for name in names}
                        | ({"wdpo": profile.wdpo} if method == "wdpo" else {})
                    ),
                    "checkpoints": (
                        profile.checkpoints if (method, beta) == ("dpo", profile.beta) else 1
                    ),
                    "save_policy": config.save_policies,
                }
                cells.append(Cell(run_name(parameters), parameters))
    return cells


def run(config: Emotion) -> dict[str, pd.DataFrame]:
    """Run or resume the study and write its tables; returns them.

    Raises:
        ValueError: a value, a source or a model that cannot be used.
        StoreError, CellsFailed: as `experiments.engine.runner.run_cells`.
    """
    profile, began = plan(config), time.perf_counter()
    if profile.bf16:
        from llm.compatibility import warn_of_slow_bfloat16

        warn_of_slow_bfloat16("--bf16 False")
    workers = config.workers or (1 if torch.cuda.is_available() else joblib.cpu_count())
    with open_run(config.out) as out:
        places, digests = prepare(
            profile,
            out,
            shared=config.shared,
            seed=config.seed,
            cues=cue_words(config, profile),
            workers=workers,
        )
        rows = run_cells(
            plan_cells(config, profile, digests),
            partial(train_cell, places=places, profile=profile, out=out),
            out,
            seed=config.seed,
            fingerprint=code(),
            backend="sequential" if workers == 1 else "loky",
            workers=workers,
        )
        tables = {name: _part(rows, name) for name in ("rewards", "training")}
        tables |= {
            "summary": summary_table(tables["rewards"]),
            "matched": matched_table(tables["rewards"]),
            "dominance": dominance_table(_part(rows, "samples"), (profile.alpha, 0.0, 1.0)),
        }
        for name, table in tables.items():
            write_table(table, out / f"{name}.{'parquet' if name == 'rewards' else 'csv'}")
        pairs = [pd.read_parquet(folder / "pairs.parquet") for folder in places.preferences]
        write_json(
            {
                "experiment": "emotion",
                "configuration": configuration(config),
                "profile": asdict(profile),
                "settings": list(profile.settings),
                "policy": json.loads((places.policy / "metrics.json").read_text(encoding="utf-8")),
                "reward_model": json.loads(
                    (places.judge / "metrics.json").read_text(encoding="utf-8")
                ),
                "pairs": [len(table) for table in pairs],
                "pairs_that_differ": [
                    len(labelled(table, SETTINGS[0])["index"]) for table in pairs
                ],
                "minority_share": float(np.mean([table.minority.mean() for table in pairs])),
                "runs": len(digests) * len(profile.settings) * len(runs(profile, config.methods)),
                **provenance("transformers", "tokenizers", "datasets"),
                "wall_time_s": round(time.perf_counter() - began, 1),
            },
            out / "run.json",
        )
    return tables


def _part(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of one of the tables that the cells return together, with the columns of that
    table."""
    table = rows[rows.table == name].drop(columns="table").dropna(axis=1, how="all")
    return table.astype({"step": int}).reset_index(drop=True)


def summarise(config: Emotion, tables: dict[str, pd.DataFrame]) -> None:
    """Print the worst rewards over alpha against those of DPO at equal KL."""
    matched = tables["matched"].query("alpha == 'worst'")
    screen.show(
        matched.to_dict("records"),
        "worst reward over alpha minus that of DPO at the same KL to the start, mean over seeds\n"
        "and 95 % interval",
    )
