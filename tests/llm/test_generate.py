"""Completions against a sampler without cache and padding, and labels against hand-computed
numbers."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn

from llm.generate import (
    Completions,
    bradley_terry,
    complete,
    draw_uniforms,
    has_cue,
    mixed_reward,
    take_prompts,
)
from llm.models import word_tokenizer
from tests.llm.models import tiny_gpt2, tiny_llama

EOS, PAD = 1, 0
PROMPTS = [[5, 6, 7], [8], [9, 10], [5, 6, 7], [11, 12, 13, 14], [2, 3, 4]]


def one_by_one(model: nn.Module, prompt: list[int], uniforms: Tensor) -> list[int]:
    """The completion of one prompt: the whole text through the model at each step, the distribution
    inverted by numpy."""
    row = list(prompt)
    for u in uniforms.tolist():
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row])).logits[0, -1].double()
        cumulative = np.cumsum(torch.softmax(logits, 0).numpy())
        row.append(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")))
        if row[-1] == EOS:
            break
    return row[len(prompt) :]


@pytest.mark.parametrize("model", [tiny_gpt2(), tiny_llama()], ids=["gpt2", "llama"])
@pytest.mark.parametrize("prompts", [PROMPTS, [[3, 4]] * 4], ids=["ragged", "even"])
def test_completions_are_those_of_each_prompt_alone(
    model: nn.Module, prompts: list[list[int]]
) -> None:
    uniforms = draw_uniforms(len(prompts), 8, 0)
    truth = [one_by_one(model, prompt, u) for prompt, u in zip(prompts, uniforms, strict=True)]
    for size in (1, 2, 100):
        assert (
            complete(model, prompts, uniforms, eos=EOS, pad=PAD, batch_size=size).completions
            == truth
        )
    assert len({tuple(row) for row in truth}) > 1


@pytest.mark.parametrize("model", [tiny_gpt2(), tiny_llama()], ids=["gpt2", "llama"])
def test_what_has_ended_leaves_the_batch(model: nn.Module) -> None:
    prompts, seen = [PROMPTS[k % 6] for k in range(24)], []
    uniforms = draw_uniforms(24, 40, 5)
    truth = [one_by_one(model, prompt, u) for prompt, u in zip(prompts, uniforms, strict=True)]
    hook = model.register_forward_pre_hook(
        lambda _, __, given: seen.append(len(given["input_ids"])), with_kwargs=True
    )
    written = complete(model, prompts, uniforms, eos=EOS, pad=PAD).completions
    hook.remove()
    assert written == truth
    assert seen[0] == 24
    assert seen[-1] <= 12


def test_completions_end() -> None:
    model = tiny_gpt2()
    written = complete(model, [[5]] * 60, draw_uniforms(60, 30, 3), eos=EOS, pad=PAD).completions
    ended = [row for row in written if EOS in row]
    assert ended
    assert all(row.index(EOS) == len(row) - 1 for row in ended)
    assert all(len(row) == 30 for row in written if EOS not in row)
    assert all(
        len(row) == 30
        for row in complete(
            model, [[5]] * 60, draw_uniforms(60, 30, 3), eos=None, pad=PAD
        ).completions
    )


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_samples_follow_the_model(temperature: float) -> None:
    model = tiny_gpt2()
    uniforms = draw_uniforms(4000, 1, 0)
    written = complete(
        model, [[5, 9]] * 4000, uniforms, eos=EOS, pad=PAD, temperature=temperature, batch_size=1000
    ).completions
    counts = np.bincount([row[0] for row in written], minlength=64)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 9]])).logits[0, -1].double().numpy()
    expected = 4000 * np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    often = expected > 5
    observed, expected = (np.append(x[often], x[~often].sum()) for x in (counts, expected))
    assert chisquare(observed, expected).pvalue > 1e-3


def test_a_text_that_could_be_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="has 128 positions, and texts have up to 129 tokens"):
        complete(tiny_gpt2(), [[5], [6, 7]], draw_uniforms(2, 127, 0), eos=EOS, pad=PAD)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"positive and finite, got {temperature}"):
        complete(
            tiny_gpt2(), [[5]], draw_uniforms(1, 2, 0), eos=EOS, pad=PAD, temperature=temperature
        )


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_gpt2(dropout=0.5).train()
    first, second = (
        complete(model, PROMPTS, draw_uniforms(6, 5, 0), eos=EOS, pad=PAD).completions
        for _ in range(2)
    )
    assert first == second  # dropout is off while it writes
    assert model.training


def test_a_batch_marks_the_completion() -> None:
    written = Completions([[5, 6], [7]], [[8, EOS], [9, 10, 11]])
    batch = {name: tensor.tolist() for name, tensor in written.batch(range(2), PAD).items()}
    assert batch["input_ids"] == [[5, 6, 8, EOS], [7, 9, 10, 11]]
    assert batch["completion_mask"] == [[0, 0, 1, 1], [0, 1, 1, 1]]
    assert batch["attention_mask"] == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert written.texts(EOS) == [[5, 6, 8], [7, 9, 10, 11]]
    uneven = Completions([[5, 6], [7]], [[8], [9, 10, 11]]).batch(range(2), PAD)
    assert uneven["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_prompts_are_the_beginnings_of_texts_that_go_on() -> None:
    assert take_prompts([[1, 2, 3], [4, 5], [6]], 2) == [[1, 2]]
    with pytest.raises(ValueError, match="no text has more than 3 tokens"):
        take_prompts([[1, 2, 3]], 3)


# ------------------------------------------------------------------------------------------- labels
REWARDS = np.array([[0.8, 0.2], [0.5, 0.9]])


def test_mixtures_by_hand() -> None:
    np.testing.assert_allclose(
        mixed_reward(REWARDS, "convex", 0.1), [0.1 * 0.8 + 0.9 * 0.2, 0.1 * 0.5 + 0.9 * 0.9]
    )
    np.testing.assert_allclose(
        mixed_reward(REWARDS, "geometric", 0.25), [0.8**0.25 * 0.2**0.75, 0.5**0.25 * 0.9**0.75]
    )
    np.testing.assert_allclose(
        mixed_reward(REWARDS, "groups", 0.1, np.array([True, False])), [0.8, 0.9]
    )
    for setting in ("convex", "geometric"):
        np.testing.assert_allclose(mixed_reward(REWARDS, setting, 1.0), REWARDS[:, 0])


def test_labels_are_bradley_terry() -> None:
    n = 20000
    wins = bradley_terry(np.full(n, 1.3), np.full(n, 0.5), 0)
    chance = 1 / (1 + np.exp(-0.8))
    assert abs(wins.mean() - chance) < 4 * (chance * (1 - chance) / n) ** 0.5
    np.testing.assert_array_equal(wins, bradley_terry(np.full(n, 1.3), np.full(n, 0.5), 0))
    assert not bradley_terry(np.zeros(50), np.full(50, 60.0), 1).any()


def test_bad_settings_are_refused() -> None:
    with pytest.raises(
        ValueError, match="unknown setting 'mean'; choose one of convex, geometric, groups"
    ):
        mixed_reward(REWARDS, "mean", 0.1)
    with pytest.raises(ValueError, match="which prompts belong to the minority"):
        mixed_reward(REWARDS, "groups", 0.1)
    with pytest.raises(ValueError, match="sum to one"):
        mixed_reward(REWARDS, "convex", 1.5)


def test_the_cue_is_a_word_of_the_prompt() -> None:
    tokenizer = word_tokenizer(["at night i felt fortnight"], 20)
    prompts = tokenizer(["at night i", "i felt fortnight"])["input_ids"]
    assert has_cue(tokenizer, prompts, ("night", "day")).tolist() == [True, False]
