"""Preference training of the emotion study: one policy trained on labelled pairs, and judged at its
checkpoints."""

import copy
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from experiments.alignment.emotion_profiles import REWARDS, Profile
from experiments.alignment.emotion_stages import (
    Places,
    draw_prompts,
    stored_model,
    stored_tokenizer,
)
from experiments.alignment.training import objective, spare_the_collector
from experiments.engine.stages import derived_seed, quieten
from llm import generate
from llm.data.corpus import EMOTIONS
from llm.judges import evaluate

METHODS = ("dpo", "wdpo", "kldpo", "dr_dpo", "aot", "ipo")


def train_cell(
    parameters: dict[str, Any],
    _: np.random.SeedSequence,
    *,
    places: Places,
    profile: Profile,
    out: Path,
) -> pd.DataFrame:
    """Rows of one policy: `rewards` at each checkpoint and alpha, `samples`, the two rewards of
    each prompt, and the `training` log; the column `table` tells them apart.

    The method `sft` is the model that all start from, at step 0.
    """
    quieten()
    spare_the_collector()
    keys = {name: parameters[name] for name in ("setting", "method", "radius", "beta")} | {
        "seed": parameters["replicate"]
    }
    judge = _judge_policy(parameters, places, profile)
    start, _ = _models(places.policy, places.judge)
    if parameters["method"] == "sft":
        return judge(start, 0).assign(**keys)
    model = copy.deepcopy(start)
    evaluations: list[pd.DataFrame] = []
    log = _train(
        model, parameters, places, profile, out, lambda step: evaluations.append(judge(model, step))
    )
    return pd.concat([*evaluations, log.assign(table="training")], ignore_index=True).assign(**keys)


# What many cells read and none changes is made once in a process.
@lru_cache(maxsize=1)
def _models(policy: Path, judge: Path) -> tuple[Any, Any]:
    """The model that all start from, and the reward model."""
    return stored_model(policy), stored_model(judge, judge=True)


@lru_cache(maxsize=1)
def _tokenizer(texts: Path) -> Any:
    return stored_tokenizer(texts)


class _Test(NamedTuple):
    prompts: list[list[int]]
    uniforms: torch.Tensor
    minority: np.ndarray


@lru_cache(maxsize=8)
def _test(texts: Path, profile: Profile, cues: tuple[str, ...], seed: int, replicate: int) -> _Test:
    """The prompts of a replicate's evaluation, with the random numbers of their completions, and
    which are the minority's."""
    tokenizer = _tokenizer(texts)
    prompts = draw_prompts(
        tokenizer,
        texts / "test.parquet",
        profile,
        profile.test_prompts,
        derived_seed(seed, 8, replicate),
    )
    uniforms = generate.draw_uniforms(
        len(prompts), profile.new_tokens, derived_seed(seed, 9, replicate)
    )
    return _Test(prompts, uniforms, generate.has_cue(tokenizer, prompts, cues))


@lru_cache(maxsize=16)
def _training_data(preferences: Path, digest: str, setting: str) -> Any:
    """The replicate's pairs with the labels of a setting, as the trainer takes them. digest: of the
    stage of the pairs, whose folder may hold others later."""
    from datasets import Dataset

    return Dataset.from_dict(labelled(pd.read_parquet(preferences / "pairs.parquet"), setting))


def _judge_policy(
    parameters: dict[str, Any], places: Places, profile: Profile
) -> Callable[[Any, int], pd.DataFrame]:
    """A function of a policy and a step: its expected reward at each alpha with its KL to the model
    it started from, and the two rewards of each prompt."""
    tokenizer = _tokenizer(places.texts)
    start, model = _models(places.policy, places.judge)
    seed, replicate, setting = (parameters[name] for name in ("seed", "replicate", "setting"))
    prompts, uniforms, minority = _test(
        places.texts, profile, tuple(parameters["cues"]), seed, replicate
    )
    chosen = [EMOTIONS.index(emotion) for emotion in REWARDS]

    def judge(policy: Any, step: int) -> pd.DataFrame:
        samples = evaluate.sample_policy(
            policy,
            start,
            model,
            prompts,
            uniforms,
            eos=tokenizer.eos_token_id,
            pad=tokenizer.pad_token_id,
        )
        table = evaluate.rewards_under_shift(
            samples.emotions[:, chosen], setting, np.linspace(0, 1, profile.alphas), minority
        )
        kl = evaluate.mean_of(samples.log_ratio)
        table = table.assign(table="rewards", kl=kl.value, kl_error=kl.error)
        each = pd.DataFrame(samples.emotions[:, chosen], columns=list(REWARDS))
        each = each.assign(
            table="samples", prompt=range(len(each)), minority=minority.astype(float)
        )
        return pd.concat([table, each], ignore_index=True).assign(step=step)

    return judge


def _train(
    model: Any,
    parameters: dict[str, Any],
    places: Places,
    profile: Profile,
    out: Path,
    at: Callable[[int], None],
) -> pd.DataFrame:
    """Train the model in place on the replicate's labels, calling `at` with the step at each
    checkpoint; returns the log."""
    from transformers import PrinterCallback, TrainerCallback

    from llm.arguments import PreferenceArguments
    from llm.data.tokens import PreferenceCollator
    from llm.objectives import ObjectiveParameters
    from llm.trainer import PreferenceTrainer

    setting, replicate = parameters["setting"], parameters["replicate"]
    data = _training_data(places.preferences[replicate], parameters["labels"], setting)
    steps = int(profile.epochs * (len(data) // profile.batch_size))
    if steps < 1:
        raise ValueError(
            f"{len(data)} pairs of different completions in {profile.epochs:g} epochs make no step"
            f" of {profile.batch_size} pairs. Take more prompts or epochs, or a smaller batch_size."
        )
    count = parameters["checkpoints"]
    checkpoints = {round(steps * (k + 1) / count) for k in range(count)}
    name = run_name(parameters).replace(" ", "-")
    left_behind = (
        out / "training" / name
    )  # where the trainer says on which pairs the loss was not a number
    arguments = PreferenceArguments(
        output_dir=str(left_behind),
        max_steps=steps,
        per_device_train_batch_size=profile.micro_batch_size,
        gradient_accumulation_steps=profile.batch_size // profile.micro_batch_size,
        dataloader_drop_last=True,  # every step has the same number of pairs
        dataloader_pin_memory=torch.cuda.is_available(),
        learning_rate=profile.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=min(12, steps // 2),
        max_grad_norm=10.0,
        bf16=profile.bf16,
        logging_steps=max(1, steps // 20),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=derived_seed(parameters["seed"], 10, replicate),
    )
    options = objective(
        parameters["method"], parameters["radius"], parameters["beta"], profile.wdpo
    )
    tokenizer = _tokenizer(places.texts)

    class Checkpoints(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in checkpoints:
                at(state.global_step)

    trainer = PreferenceTrainer(
        model,
        arguments,
        ObjectiveParameters(**options),
        train_dataset=data,
        processing_class=tokenizer,
        data_collator=PreferenceCollator(tokenizer.pad_token_id),
        callbacks=[Checkpoints()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if parameters["save_policy"]:
        for part in (model, tokenizer):
            part.save_pretrained(out / "policies" / name)
    with suppress(OSError):  # not empty
        left_behind.rmdir()
    return pd.DataFrame([entry for entry in trainer.state.log_history if "loss" in entry])


def labelled(pairs: pd.DataFrame, setting: str) -> dict[str, list]:
    """Preference pairs with the labels of a setting, as the trainer takes them.

    Pairs of equal completions say nothing and are left out.
    """
    differ = np.array(
        [list(a) != list(b) for a, b in zip(pairs["first"], pairs["second"], strict=True)]
    )
    pairs = pairs[differ]
    wins = pairs[f"first_wins_{setting}"].to_numpy()
    columns: dict[str, list] = {"prompt_ids": [list(map(int, row)) for row in pairs.prompt]}
    for name, first in (("chosen", wins), ("rejected", ~wins)):
        chosen = np.where(first, pairs["first"], pairs["second"])
        columns[f"{name}_ids"] = [list(map(int, row)) for row in chosen]
        columns[f"ref_{name}_logps"] = np.where(
            first, pairs["first_logp"], pairs["second_logp"]
        ).tolist()
    columns["group"] = pairs.minority.astype(int).tolist()
    columns["index"] = pairs.index.tolist()
    return columns


def run_name(parameters: dict[str, Any]) -> str:
    """What is trained, in words."""
    return "{setting} {method} radius={radius:g} beta={beta:g} seed {replicate}".format(
        **parameters
    )
