"""Reward model: which emotions are in a text, as probabilities. Appendix F, arXiv:2502.01930.

A multi-label classifier on the last token (sigmoid, binary cross-entropy), trained on up to three
random texts in a row whose labels are merged.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import rankdata
from torch import Tensor, nn

from llm.adapters import adapter_base
from llm.data.corpus import EMOTIONS
from llm.generate import padded
from llm.models import cannot_load, check_length, gpt2_config, load_language_model
from llm.sft import Recipe, optimise, tokenize_texts
from llm.weights import located
from theory.precision import wide

MOST_TEXTS = 3

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Quality of a classifier: share of right decisions, of texts with all labels right, and mean
    ROC-AUC of the labels."""

    label_accuracy: float
    text_accuracy: float
    roc_auc: float


def concatenated(corpus: pd.DataFrame, seed: int) -> tuple[list[str], Array]:
    """As many texts as in the corpus, each of one to three of its texts in a row, and the merged
    labels (n, 5) in {0, 1}.

    Every text comes first in one row; what follows it is drawn at random.
    """
    rng = np.random.default_rng(seed)
    n = len(corpus)
    count = rng.integers(1, MOST_TEXTS + 1, n)
    parts = np.concatenate(
        [rng.permutation(n)[:, None], rng.integers(0, n, (n, MOST_TEXTS - 1))], axis=1
    )
    text, label = (
        corpus.text.to_numpy(),
        corpus.label.map({name: k for k, name in enumerate(EMOTIONS)}).to_numpy(),
    )
    labels = np.zeros((n, len(EMOTIONS)))
    for k in range(MOST_TEXTS):
        used = count > k
        labels[np.flatnonzero(used), label[parts[used, k]]] = 1.0
    return [" ".join(text[row[:c]]) for row, c in zip(parts, count, strict=True)], labels


def reward_model(
    name: str | None, tokenizer: Any, *, width: int, layers: int, length: int, seed: int
) -> nn.Module:
    """A classifier with one output for each emotion, on a pretrained model or, without a name, on a
    new GPT-2 of that size.

    Raises:
        ValueError: the model cannot be loaded, or has fewer positions than `length` tokens.
    """
    from transformers import AutoModelForSequenceClassification

    name = None if name is None else located(name)
    torch.manual_seed(seed)  # of the new head, or of all weights
    kind = {
        "id2label": dict(enumerate(EMOTIONS)),
        "label2id": {name: k for k, name in enumerate(EMOTIONS)},
        "problem_type": "multi_label_classification",
        "pad_token_id": tokenizer.pad_token_id,
    }
    if name is None:
        config = gpt2_config(tokenizer, width=width, layers=layers, length=length)
        for key, value in kind.items():
            setattr(config, key, value)
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        with tempfile.TemporaryDirectory() as folder:
            if adapter_base(name) is not None:  # the backbone is that of the merged model
                load_language_model(name).save_pretrained(folder)
            try:
                model = AutoModelForSequenceClassification.from_pretrained(
                    name if adapter_base(name) is None else folder, **kind
                )
            except (OSError, ValueError) as error:
                raise cannot_load("model", name, error) from error
    check_length(model.config, length)
    return model


def fit_reward_model(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    labels: Array,
    recipe: Recipe,
    *,
    length: int,
    seed: int,
) -> float:
    """Train the classifier in place on texts with labels (n, 5); returns the mean loss of the last
    tenth of steps."""
    rows = tokenize_texts(tokenizer, texts, length)
    examples = [{"ids": row, "labels": label} for row, label in zip(rows, labels, strict=True)]

    def collate(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids, mask = _padded([example["ids"] for example in batch], tokenizer.pad_token_id)
        targets = torch.from_numpy(np.stack([example["labels"] for example in batch])).float()
        return {"input_ids": ids, "attention_mask": mask, "labels": targets}

    return optimise(model, examples, collate, recipe, seed=seed)


def emotion_probabilities(
    model: nn.Module, rows: Sequence[Sequence[int]], pad_token: int, *, batch_size: int = 256
) -> Array:
    """Probability of each emotion (n, 5) in texts given as rows of tokens, without an
    end-of-sequence token."""
    return expit(classifier_logits(model, rows, pad_token, batch_size=batch_size))


@torch.no_grad()
def classifier_logits(
    model: nn.Module, rows: Sequence[Sequence[int]], pad_token: int, *, batch_size: int = 256
) -> Array:
    """Logits (n, m) of a sequence classifier for texts given as rows of tokens, padded on the
    right."""
    model.eval()
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(rows), batch_size):
        ids, mask = (
            tensor.to(device) for tensor in _padded(rows[start : start + batch_size], pad_token)
        )
        parts.append(wide(model(input_ids=ids, attention_mask=mask).logits).cpu().numpy())
    return np.concatenate(parts).astype(np.float64)


def _padded(rows: Sequence[Sequence[int]], pad_token: int) -> tuple[Tensor, Tensor]:
    return padded(rows, pad_token), padded([[1] * len(row) for row in rows], 0)


def score(probabilities: Array, labels: Array) -> Scores:
    """How well probabilities (n, m) predict labels (n, m) in {0, 1}; decisions at 1/2."""
    right = (probabilities > 0.5) == (labels == 1)
    areas = [
        roc_auc(column, truth) for column, truth in zip(probabilities.T, labels.T, strict=True)
    ]
    return Scores(float(right.mean()), float(right.all(1).mean()), float(np.mean(areas)))


def roc_auc(values: Array, labels: Array) -> float:
    """Probability that a positive has a higher value than a negative, ties counted half: the
    Mann–Whitney statistic.

    Raises:
        ValueError: there are no positives, or no negatives.
    """
    positive = int((labels == 1).sum())
    negative = len(labels) - positive
    if positive == 0 or negative == 0:
        raise ValueError(
            f"ROC-AUC needs both classes, got {positive} positives and {negative} negatives: take"
            " more texts."
        )
    ranks = rankdata(values)
    return float((ranks[labels == 1].sum() - positive * (positive + 1) / 2) / (positive * negative))
