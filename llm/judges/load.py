"""Reward models behind one small interface: a prompt and a completion in, a number for each
objective out.

ArmoRM is `llm.judges.armorm`; any other sequence classifier of the hub or of a folder is taken as
it is, with a reward for each label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import nn

from llm.data.chat import Prompt, token_rows
from llm.judges.emotion import classifier_logits
from llm.models import first_line

ARMORM = "LlamaForRewardModelWithGating"  # the architecture in the config of ArmoRM
ARMORM_OBJECTIVES = (
    "helpsteer-helpfulness",
    "helpsteer-correctness",
    "helpsteer-coherence",
    "helpsteer-complexity",
    "helpsteer-verbosity",
    "ultrafeedback-overall_score",
    "ultrafeedback-instruction_following",
    "ultrafeedback-truthfulness",
    "ultrafeedback-honesty",
    "ultrafeedback-helpfulness",
    "beavertails-is_safe",
    "prometheus-score",
    "argilla-overall_quality",
    "argilla-judge_lm",
    "code-complexity",
    "code-style",
    "code-explanation",
    "code-instruction-following",
    "code-readability",
)  # in the order of the model card of RLHFlow/ArmoRM-Llama3-8B-v0.1
ARMORM_SCORE = "ArmoRM"  # the gated score, after the 19 objectives
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Array = NDArray[np.float64]


class RewardModel(Protocol):
    """Anything that gives completions of prompts a reward for each of its objectives."""

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> Array:
        """Rewards (n, len(names)) of n answers, each to a prompt given as a string or as a list of
        messages (role, content)."""


@dataclass(frozen=True)
class SequenceRewardModel:
    """A sequence classifier and its tokenizer; see `load_reward_model`."""

    names: tuple[str, ...]
    model: nn.Module
    tokenizer: Any
    pad_token: int
    sigmoid: bool
    max_length: int | None
    batch_size: int

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> Array:
        """Rewards (n, len(names)), whatever the batch size up to rounding; the longest texts are
        scored first.

        Raises:
            ValueError: a text has no token, or more than `max_length`.
        """
        rows = token_rows(self.tokenizer, prompts, completions)
        lengths = np.array([len(row) for row in rows], dtype=int)
        self._check(lengths)
        order = np.argsort(
            -lengths, kind="stable"
        )  # texts of about the same length together: little padding
        logits = np.zeros((len(rows), len(self.names)))
        if len(rows):
            logits[order] = classifier_logits(
                self.model, [rows[k] for k in order], self.pad_token, batch_size=self.batch_size
            )
        return expit(logits) if self.sigmoid else logits

    def _check(self, lengths: NDArray[np.int_]) -> None:
        empty = np.flatnonzero(lengths == 0)
        if len(empty):
            raise ValueError(
                f"{len(empty)} texts of {len(lengths)} have no token (the first is number"
                f" {empty[0]}): remove them."
            )
        if self.max_length is None:
            return
        long = np.flatnonzero(lengths > self.max_length)
        if len(long):
            raise ValueError(
                f"{len(long)} texts of {len(lengths)} have more than {self.max_length} tokens (the"
                f" longest has {lengths.max()}, the first is number {long[0]}). The reward is read"
                " at the end of a text, so that none is cut: shorten prompts or completions, or"
                " raise max_length up to what the model can read."
            )


def objectives_of(name: str, *, revision: str | None = None) -> tuple[str, ...]:
    """The objectives of the reward model of a folder or hub id, from its config alone.

    Raises:
        ValueError: there is no config to be had.
    """
    from transformers import PretrainedConfig

    try:
        raw, _ = PretrainedConfig.get_config_dict(name, revision=revision)
    except OSError as error:
        raise _cannot_load(name, error) from error
    if ARMORM in (raw.get("architectures") or []):
        return (*ARMORM_OBJECTIVES, ARMORM_SCORE)
    return _labels(PretrainedConfig.from_dict(raw))


def _labels(config: Any) -> tuple[str, ...]:
    return tuple(str(label) for _, label in sorted(config.id2label.items()))


def _cannot_load(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"cannot load the reward model {name!r} ({type(error).__name__}: {first_line(error)}). Give"
        " the folder of a downloaded snapshot with config, weights and tokenizer, or a name on the"
        " hub that this machine can reach."
    )


def load_reward_model(
    name: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: str = "float32",
    batch_size: int = 16,
    max_length: int | None = None,
    device: str | None = None,
) -> RewardModel:
    """The reward model of a folder or hub id, with its tokenizer from the same place.

    * ArmoRM (architecture LlamaForRewardModelWithGating): its 19 objectives, not transformed, and
      `ArmoRM`, the gated score. Built natively, without the code that comes with the weights.
    * Any other sequence classifier: one objective for each label, named by id2label. Probabilities
      (sigmoid) where problem_type is multi_label_classification, the raw logits otherwise.

    A text is what the tokenizer's chat template makes of prompt and answer; without a template it
    is both, joined by a blank. A text that is too long is refused, since the reward is read at its
    end. A model whose config names no padding token is given the tokenizer's, unless that is also
    the end of sequence, which can be part of a text: then texts are scored one at a time.

    Args:
        revision: of a model on the hub.
        trust_remote_code: run the Python code that comes with a model. Off: such a model is
            refused.
        dtype: "float32" or "bfloat16", of the weights; the head of ArmoRM is float32 in both.
        max_length: in tokens; None: what model and tokenizer can read.
        device: e.g. "cuda:1"; None: the GPU where there is one.

    Raises:
        ValueError: it cannot be loaded, needs remote code that is not trusted, lacks weights, or an
            argument is out of range.
    """
    from transformers import AutoTokenizer, PretrainedConfig

    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    try:
        raw, _ = PretrainedConfig.get_config_dict(name, revision=revision)
        native = ARMORM in (raw.get("architectures") or [])
        remote = trust_remote_code and not native
        if not native and not trust_remote_code:
            _refuse_remote_code(name, raw)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=remote)
        model = _load(
            name, native, revision=revision, trust_remote_code=remote, dtype=DTYPES[dtype]
        )
    except OSError as error:
        raise _cannot_load(name, error) from error
    if len(tokenizer) <= len(
        tokenizer.all_special_tokens
    ):  # what transformers makes where there are no files of a tokenizer
        raise ValueError(
            f"there is no tokenizer beside the reward model {name!r}: save the one that it was"
            " trained with there."
        )
    alone, pad = _padding(model.config, tokenizer)
    return SequenceRewardModel(
        names=(*ARMORM_OBJECTIVES, ARMORM_SCORE) if native else _labels(model.config),
        model=model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(),
        tokenizer=tokenizer,
        pad_token=pad,
        sigmoid=not native and model.config.problem_type == "multi_label_classification",
        max_length=_longest(model.config, tokenizer, max_length),
        batch_size=1 if alone else batch_size,
    )


def _refuse_remote_code(name: str, config: dict[str, Any]) -> None:
    code = config.get("auto_map") or {}
    if {"AutoConfig", "AutoModelForSequenceClassification"} & set(code):
        raise ValueError(
            f"the reward model {name!r} comes with Python code of its own"
            f" ({', '.join(map(str, code.values()))}), which would run on this machine. Read it,"
            " then allow it with trust_remote_code, or take a model that needs none."
        )


def _load(name: str, native: bool, **options: Any) -> Any:
    """The model, all of whose weights are in the files; those of a head that is missing would be
    random numbers."""
    architecture: Any
    kinds = ["missing_keys"]
    if native:
        from llm.judges.armorm import ArmoRM

        architecture = ArmoRM
        kinds.append("unexpected_keys")
    else:
        from transformers import AutoModelForSequenceClassification

        architecture = AutoModelForSequenceClassification
    model, info = architecture.from_pretrained(name, output_loading_info=True, **options)
    wrong = {kind: sorted(map(str, info[kind])) for kind in kinds if info[kind]}
    if wrong:
        found = "; ".join(
            f"{len(keys)} {kind.replace('_', ' ')}, as {keys[0]}" for kind, keys in wrong.items()
        )
        raise ValueError(
            f"the weights of {name!r} are not those of a {type(model).__name__} ({found}). It is"
            " probably no reward model (a language model has no such head), or its files are"
            " incomplete: download it again, or take another one."
        )
    if native and model.regression_layer.out_features != len(ARMORM_OBJECTIVES):
        raise ValueError(
            f"{name!r} has {model.regression_layer.out_features} objectives, and the names of the"
            f" {len(ARMORM_OBJECTIVES)} of RLHFlow/ArmoRM-Llama3-8B-v0.1 are known: take that one."
        )
    return model


def _padding(config: Any, tokenizer: Any) -> tuple[bool, int]:
    """Whether texts have to be scored one at a time, and the token to pad with; the config is told
    where it names none."""
    if config.pad_token_id is not None:
        return False, config.pad_token_id
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        return True, 0  # never used: a text alone is not padded
    config.pad_token_id = tokenizer.pad_token_id
    return False, tokenizer.pad_token_id


def _longest(config: Any, tokenizer: Any, wanted: int | None) -> int | None:
    positions = getattr(config, "max_position_embeddings", None)
    # a tokenizer without a limit of its own says 1e30; RoBERTa's knows of two positions that cannot
    # be used
    limits = [
        limit
        for limit in (positions, tokenizer.model_max_length)
        if limit is not None and limit < 1e9
    ]
    if wanted is None:
        return min(limits, default=None)
    if wanted < 1 or (limits and wanted > min(limits)):
        raise ValueError(
            f"max_length must be between 1 and {min(limits, default='any number')} tokens, got"
            f" {wanted}."
        )
    return wanted
