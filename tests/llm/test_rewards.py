"""The reward model: its data, its scores against scikit-learn, its outputs whatever the padding,
and that it learns."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score

from llm.data.corpus import EMOTIONS
from llm.judges.emotion import (
    concatenated,
    emotion_probabilities,
    fit_reward_model,
    reward_model,
    roc_auc,
    score,
)
from llm.models import word_tokenizer
from llm.sft import Recipe, tokenize_texts

CORPUS = pd.DataFrame(
    {"text": [f"word{k} {name}" for k, name in enumerate(EMOTIONS * 8)], "label": EMOTIONS * 8}
)
TOKENIZER = word_tokenizer(list(CORPUS.text), 100)


def test_texts_are_put_together_with_their_labels() -> None:
    texts, labels = concatenated(CORPUS, 0)
    assert len(texts) == len(CORPUS)
    assert {len(text.split()) // 2 for text in texts} == {1, 2, 3}
    for text, row in zip(texts, labels, strict=True):
        assert {name for name, there in zip(EMOTIONS, row, strict=True) if there} == set(
            text.split()[1::2]
        )
    first = [text.split()[0] for text in texts]
    assert sorted(first) == sorted(f"word{k}" for k in range(len(CORPUS)))  # every text is used
    assert concatenated(CORPUS, 0)[0] == texts
    assert concatenated(CORPUS, 1)[0] != texts


def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 5)) < 0.4).astype(float)
    probabilities = np.round(
        np.clip(0.5 * labels + rng.random((300, 5)) * 0.6, 0, 1), 2
    )  # rounded: there are ties
    found = score(probabilities, labels)
    assert found.roc_auc == pytest.approx(
        roc_auc_score(labels, probabilities, average="macro"), abs=1e-12
    )
    assert found.text_accuracy == pytest.approx(accuracy_score(labels, probabilities > 0.5))
    assert found.label_accuracy == pytest.approx(
        accuracy_score(labels.ravel(), probabilities.ravel() > 0.5)
    )


def test_roc_auc_by_hand() -> None:
    assert roc_auc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([0, 1, 0, 1])) == pytest.approx(3.5 / 4)
    with pytest.raises(ValueError, match="3 positives and 0 negatives"):
        roc_auc(np.ones(3), np.ones(3))


def test_probabilities_do_not_depend_on_padding() -> None:
    model = reward_model(None, TOKENIZER, width=16, layers=2, length=12, seed=0)
    torch.manual_seed(1)
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn_like(
            weight
        )  # random weights of the usual size hardly react to anything
    rows = tokenize_texts(
        TOKENIZER, ["word1 joy", "word2 fear word3 love word4", "joy", "word1 joy"], 12
    )
    together = emotion_probabilities(model, rows, TOKENIZER.pad_token_id)
    one_by_one = np.concatenate(
        [emotion_probabilities(model, [row], TOKENIZER.pad_token_id) for row in rows]
    )
    np.testing.assert_allclose(together, one_by_one, atol=1e-6)
    np.testing.assert_allclose(
        together,
        emotion_probabilities(model, rows, TOKENIZER.pad_token_id, batch_size=3),
        atol=1e-6,
    )
    assert abs(together[0] - together[1]).max() > 0.01
    hidden = model.transformer(input_ids=torch.tensor([rows[1]])).last_hidden_state[
        0, -1
    ]  # the last token, by hand
    np.testing.assert_allclose(
        together[1], torch.sigmoid(model.score(hidden)).detach().numpy(), atol=1e-6
    )


def test_it_learns_words() -> None:
    texts, labels = concatenated(CORPUS, 0)
    model = reward_model(None, TOKENIZER, width=32, layers=1, length=6, seed=0)
    recipe = Recipe(epochs=30, learning_rate=1e-2, batch_size=8, warmup_steps=2)
    fit_reward_model(model, TOKENIZER, texts, labels, recipe, length=6, seed=0)
    fresh, truth = concatenated(CORPUS, 5)
    found = score(
        emotion_probabilities(model, tokenize_texts(TOKENIZER, fresh, 6), TOKENIZER.pad_token_id),
        truth,
    )
    assert found.label_accuracy > 0.95
    assert found.roc_auc > 0.98


def test_a_model_that_is_too_short_or_not_there_is_refused(tmp_path: object) -> None:
    with pytest.raises(ValueError, match="cannot load the model"):
        reward_model(f"{tmp_path}/nowhere", TOKENIZER, width=16, layers=1, length=6, seed=0)
    short = reward_model(None, TOKENIZER, width=16, layers=1, length=6, seed=0)
    short.save_pretrained(f"{tmp_path}/short")  # type: ignore[operator]
    with pytest.raises(ValueError, match="has 6 positions, and texts have up to 7"):
        reward_model(f"{tmp_path}/short", TOKENIZER, width=16, layers=1, length=7, seed=0)
