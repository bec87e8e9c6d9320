"""What the stages of one experiment share, and how it begins and ends."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import torch

from experiments.alignment.models import Models, prepare
from experiments.alignment.sizes import NONE, Options, Sizes
from experiments.alignment.training import Run, check_options, more_options, options_of
from experiments.engine.provenance import (
    STAGES,
    code_fingerprint,
    configuration,
    files_of,
    provenance,
)
from experiments.engine.ranks import ranks
from experiments.engine.stages import times
from experiments.engine.store import write_json, write_table


@dataclass(frozen=True)
class Study:
    """root: folder of the stages. code: digest of the code. workers: processes. began: when, by the
    clock of this process."""

    root: Path
    sizes: Sizes
    options: Options
    models: Models
    code: str
    workers: int
    began: float = field(default_factory=time.perf_counter)

    def made_from(self, **more: Any) -> dict[str, Any]:
        """What a stage depends on that samples from a model: models, lengths, seed and code, and
        more."""
        sampling = {
            name: getattr(self.sizes, name)
            for name in ("prompt_tokens", "new_tokens", "temperature")
        }
        return {
            "code": self.code,
            "seed": self.options.seed,
            **self.models.made_from,
            **sampling,
            **more,
        }


def begin(out: Path, sizes: Sizes, options: Options, experiment: Path) -> Study:
    """The study whose results are in `out`; models that are generated are made if they are not
    there.

    Args:
        experiment: the file of the experiment, part of the code that the stages depend on.

    Raises:
        ValueError: workers were given under a launcher, which decides itself; options of the
            training that it does not take; a batch that the processes of the launch cannot share; a
            model that cannot be had.
    """
    if ranks() > 1 and options.workers is not None:
        raise ValueError(
            f"{ranks()} processes were launched together and share each policy: leave out"
            f" workers={options.workers}."
        )
    check_options(
        options_of(
            Run("any", "dpo", 0.0, sizes.beta, 0),
            sizes,
            seed=0,
            more=more_options(options.training),
        )
    )
    if sizes.bf16:
        from llm.compatibility import warn_of_slow_bfloat16

        warn_of_slow_bfloat16("--bf16 False")
    workers = options.workers or (1 if torch.cuda.is_available() else joblib.cpu_count())
    others = (
        *("armorm.py", "leaderboard.py", "aot_benchmark.py", "emotion.py"),
        *("emotion_tables.py", "held_out.py", "aot_tables.py", "aot_profiles.py"),
    )
    files = [*files_of("experiments/alignment", but=others), *files_of("llm"), STAGES]
    models = prepare(sizes, options, workers)
    return Study(
        (out / "stages").resolve(),
        sizes,
        options,
        models,
        code_fingerprint(*files, experiment.resolve()),
        workers,
    )


def finish(
    out: Path,
    experiment: str,
    study: Study,
    tables: dict[str, pd.DataFrame],
    facts: dict[str, Any],
    *,
    parquet: tuple[str, ...] = (),
) -> None:
    """Write the tables (.csv, or .parquet those named), the seconds of each stage, and run.json, in
    `out`."""
    seconds = times(study.root, study.code)
    for name, table in (tables | {"stages": seconds}).items():
        write_table(table, out / f"{name}.{'parquet' if name in parquet else 'csv'}")
    write_json(
        {
            "experiment": experiment,
            "configuration": configuration(study.options),
            "profile": study.options.profile,
            "sizes": asdict(study.sizes),
            "seeds": study.sizes.seeds,
            "scale": scale(study),
            **facts,
            **provenance("transformers", "tokenizers", "datasets", "trl"),
            "stages_s": round(float(seconds.seconds.sum()), 1),
            "wall_time_s": round(time.perf_counter() - study.began, 1),
        },
        out / "run.json",
    )


def scale(study: Study) -> str:
    """On what the study ran, in words: data, model, seeds."""
    sizes = study.sizes
    if sizes.model is not None:
        rewards = "" if sizes.judge == NONE else f", rewards of {sizes.judge}"
        return f"{named(sizes.source)}, {named(sizes.model)}{rewards}, {sizes.seeds} seeds"
    if study.models.start is not None:
        start = named(study.models.start)
        return f"texts of {named(sizes.source)}, {start} fine-tuned on them, {sizes.seeds} seeds"
    from transformers import AutoModelForCausalLM

    parameters = AutoModelForCausalLM.from_pretrained(study.models.policy).num_parameters()
    return f"generated corpus, GPT-2 of {parameters / 1e6:.2f} M parameters, {sizes.seeds} seeds"


def named(source: str) -> str:
    """A source or a model as it is called in a figure: a folder by its own name."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else source
