"""The stages of the emotion study before the preference training: texts, fine-tuned model, reward
model, labelled pairs.

Each leaves a folder with all that it was made from; it is made again when any of that has changed.
Texts and models are in a folder that all experiments share, labelled pairs in OUT/stages.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from experiments.alignment.emotion_profiles import REWARDS, Profile
from experiments.engine.provenance import STAGES, code_fingerprint, files_of
from experiments.engine.stages import (
    Stage,
    content,
    derived_seed,
    digest_of,
    stage,
    together,
)
from experiments.engine.store import write_json, write_table
from llm import generate, models, sft
from llm.data import corpus
from llm.data.corpus import EMOTIONS
from llm.generate import SETTINGS
from llm.judges import emotion as rewards
from llm.judges import evaluate
from llm.weights import located

SIZES = ("width", "layers", "prompt_tokens", "new_tokens")
TEXTS = ("texts", "vocabulary")


class Places(NamedTuple):
    """The folders of the finished stages; one folder of labelled pairs for each replicate."""

    texts: Path
    policy: Path
    judge: Path
    preferences: tuple[Path, ...]


def prepare(
    profile: Profile, out: Path, *, shared: Path, seed: int, cues: tuple[str, ...], workers: int
) -> tuple[Places, list[str]]:
    """Make what is not there yet, with as many processes as workers; also the digests of the
    replicates' labels."""
    texts, policy, judge = prepare_models(profile, shared, seed=seed, workers=workers)
    labels = _made_from(
        profile,
        seed,
        "prompts",
        "label_scale",
        "alpha",
        cues=cues,
        policy=policy.digest,
        judge=judge.digest,
    )
    folders: dict[str, Any] = {
        "texts": texts.folder,
        "policy": policy.folder,
        "judge": judge.folder,
    }
    make = partial(make_preferences, profile=profile, seed=seed, cues=cues, **folders)
    tasks = [
        partial(
            stage,
            out / "stages",
            f"pairs-{k}",
            labels | {"replicate": k},
            partial(make, replicate=k),
        )
        for k in range(profile.seeds)
    ]
    preferences = together(tasks, workers)
    return Places(**folders, preferences=tuple(made.folder for made in preferences)), [
        made.digest for made in preferences
    ]


def prepare_models(
    profile: Profile, shared: Path, *, seed: int, workers: int
) -> tuple[Stage, Stage, Stage]:
    """The stages of the texts with their tokenizer, of the fine-tuned model and of the reward
    model, in a folder of `shared` that is named after what they are made from: other sizes, sources
    or code are beside them, so that no running study loses what it reads."""
    common: dict[str, Any] = {"profile": profile, "seed": seed}
    source = corpus.GRAMMAR if profile.source == corpus.GRAMMAR else content(profile.source)
    model = content(profile.model and located(profile.model))
    sizes: dict[str, Any] = {name: getattr(profile, name) for name in SIZES} | {"model": model}
    sources = _made_from(profile, seed, *TEXTS, source=source, model=model)
    recipes = _made_from(profile, seed, *_recipe("sft"), *_recipe("reward"), **sizes)
    root = shared.resolve() / digest_of(sources | recipes)
    (texts,) = together(
        [partial(stage, root, "texts", sources, partial(make_texts, **common))], workers
    )
    tasks = []
    for name, kind, make in (("policy", "sft", make_policy), ("judge", "reward", make_judge)):
        recipe = _made_from(profile, seed, *_recipe(kind), texts=texts.digest, **sizes)
        tasks.append(
            partial(stage, root, name, recipe, partial(make, texts=texts.folder, **common))
        )
    policy, judge = together(tasks, workers)
    return texts, policy, judge


def _recipe(kind: str) -> tuple[str, ...]:
    """The settings that say how the fine-tuned model (sft) or the reward model is trained."""
    return f"{kind}_epochs", f"{kind}_learning_rate", "bf16"


def _made_from(profile: Profile, seed: int, *names: str, **more: Any) -> dict[str, Any]:
    """What a stage depends on: those settings of the profile, the seed, the code, and more."""
    return {name: getattr(profile, name) for name in names} | {"seed": seed, "code": code()} | more


def code() -> str:
    """Digest of the code that makes the stages and trains the policies."""
    own = sorted(Path(__file__).parent.glob("emotion*.py"))
    return code_fingerprint(STAGES, *own, *files_of("llm"))


def make_texts(folder: Path, profile: Profile, seed: int) -> None:
    """The texts of each split, and the tokenizer."""
    texts = corpus.load_corpus(profile.source, sizes=profile.texts, seed=derived_seed(seed, 0))
    for split, table in texts.items():
        write_table(table, folder / f"{split}.parquet")
    if profile.model is None:
        tokenizer = models.word_tokenizer(list(texts["train"].text), profile.vocabulary)
    else:
        tokenizer = models.pretrained_tokenizer(profile.model)
        tokenizer.chat_template = None  # texts are continued, not answered
    tokenizer.save_pretrained(folder / "tokenizer")


def make_policy(folder: Path, texts: Path, profile: Profile, seed: int) -> None:
    """The supervised fine-tuned model, and its cross-entropy on the validation texts."""
    tokenizer, length = stored_tokenizer(texts), profile.prompt_tokens + profile.new_tokens
    model = models.language_model(
        profile.model,
        tokenizer,
        width=profile.width,
        layers=profile.layers,
        length=length,
        seed=derived_seed(seed, 1),
    )
    recipe = sft.Recipe(profile.sft_epochs, profile.sft_learning_rate, bf16=profile.bf16)
    train, validation = (
        list(pd.read_parquet(texts / f"{split}.parquet").text) for split in ("train", "validation")
    )
    before = sft.heldout_loss(model, tokenizer, validation, length=length)
    loss = sft.fine_tune(model, tokenizer, train, recipe, length=length, seed=derived_seed(seed, 1))
    after = sft.heldout_loss(model, tokenizer, validation, length=length)
    for part in (model, tokenizer):
        part.save_pretrained(folder)  # type: ignore[operator]
    write_json(
        {"training_loss": loss, "validation_loss": after, "validation_loss_before": before},
        folder / "metrics.json",
    )


def make_judge(folder: Path, texts: Path, profile: Profile, seed: int) -> None:
    """The reward model, and how good it is on test texts that were put together like its training
    texts, and on single ones."""
    tokenizer = stored_tokenizer(texts)
    length = rewards.MOST_TEXTS * (profile.prompt_tokens + profile.new_tokens)
    train, test = (pd.read_parquet(texts / f"{split}.parquet") for split in ("train", "test"))
    model = rewards.reward_model(
        profile.model,
        tokenizer,
        width=profile.width,
        layers=profile.layers,
        length=length,
        seed=derived_seed(seed, 2),
    )
    recipe = sft.Recipe(
        profile.reward_epochs,
        profile.reward_learning_rate,
        weight_decay=0.01,
        bf16=profile.bf16,
    )
    loss = rewards.fit_reward_model(
        model,
        tokenizer,
        *rewards.concatenated(train, derived_seed(seed, 3)),
        recipe,
        length=length,
        seed=derived_seed(seed, 2),
    )
    together, merged = rewards.concatenated(test, derived_seed(seed, 4))
    single = test.label.map({name: k for k, name in enumerate(EMOTIONS)}).to_numpy()
    found: dict[str, float] = {}
    for name, rows, labels in (
        ("", together, merged),
        ("single_", list(test.text), np.eye(len(EMOTIONS))[single]),
    ):
        tokens = sft.tokenize_texts(tokenizer, rows, length)
        scores = rewards.score(
            rewards.emotion_probabilities(model, tokens, tokenizer.pad_token_id), labels
        )
        found |= {f"{name}{key}": value for key, value in asdict(scores).items()}
    for part in (model, tokenizer):
        part.save_pretrained(folder)  # type: ignore[operator]
    write_json({"training_loss": loss, **found}, folder / "metrics.json")


def make_preferences(
    folder: Path,
    texts: Path,
    policy: Path,
    judge: Path,
    profile: Profile,
    cues: tuple[str, ...],
    seed: int,
    replicate: int,
) -> None:
    """Two completions of each prompt, with emotions and log-probabilities, and which one annotators
    prefer in every setting."""
    tokenizer, start, model = (
        stored_tokenizer(texts),
        stored_model(policy),
        stored_model(judge, judge=True),
    )
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    prompts = draw_prompts(
        tokenizer,
        texts / "train.parquet",
        profile,
        profile.prompts,
        derived_seed(seed, 5, replicate),
    )
    columns: dict[str, Any] = {
        "prompt": prompts,
        "minority": generate.has_cue(tokenizer, prompts, cues),
    }
    for k, name in enumerate(("first", "second")):
        uniforms = generate.draw_uniforms(
            len(prompts), profile.new_tokens, derived_seed(seed, 6, replicate, k)
        )
        written = generate.complete(start, prompts, uniforms, eos=eos, pad=pad)
        emotions = rewards.emotion_probabilities(model, written.texts(eos), pad)
        columns[name] = written.completions
        columns[f"{name}_text"] = tokenizer.batch_decode(written.texts(eos))
        columns[f"{name}_logp"] = evaluate.completion_logprobs(start, written, pad)
        columns |= {
            f"{name}_{emotion}": column
            for emotion, column in zip(EMOTIONS, emotions.T, strict=True)
        }
    pairs = pd.DataFrame(columns)
    for k, setting in enumerate(SETTINGS):
        first, second = (
            profile.label_scale
            * generate.mixed_reward(
                pairs[[f"{name}_{emotion}" for emotion in REWARDS]].to_numpy(),
                setting,
                profile.alpha,
                pairs.minority.to_numpy(),
            )
            for name in ("first", "second")
        )
        pairs[f"first_wins_{setting}"] = generate.bradley_terry(
            first, second, derived_seed(seed, 7, replicate, k)
        )
    write_table(pairs, folder / "pairs.parquet")


def draw_prompts(
    tokenizer: Any, texts: Path, profile: Profile, count: int, seed: int
) -> list[list[int]]:
    """The beginnings of `count` texts in random order, of all where there are fewer."""
    rows = sft.tokenize_texts(
        tokenizer, list(pd.read_parquet(texts).text), profile.prompt_tokens + profile.new_tokens
    )
    prompts = generate.take_prompts(rows, profile.prompt_tokens)
    return [prompts[k] for k in np.random.default_rng(seed).permutation(len(prompts))[:count]]


def stored_tokenizer(texts: Path) -> Any:
    """The tokenizer of the stage of the texts."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(texts / "tokenizer")


def stored_model(folder: Path, *, judge: bool = False) -> Any:
    """A stored model, on the GPU where there is one."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    loader = AutoModelForSequenceClassification if judge else AutoModelForCausalLM
    return loader.from_pretrained(folder).to("cuda" if torch.cuda.is_available() else "cpu").eval()
