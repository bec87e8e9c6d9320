"""Rewards under shift against hand-computed numbers, the KL estimate against the exact KL."""

import numpy as np
import pytest
import torch

from llm.generate import Completions, complete, draw_uniforms
from llm.judges.emotion import reward_model
from llm.judges.evaluate import completion_logprobs, mean_of, rewards_under_shift, sample_policy
from llm.models import language_model, word_tokenizer
from llm.sft import Recipe, fine_tune, heldout_loss
from tests.llm.models import tiny_gpt2

REWARDS = np.array([[0.8, 0.1], [0.6, 0.3], [0.2, 0.9], [0.1, 0.7]])
MINORITY = np.array([True, True, False, False])


def test_convex_rewards_by_hand() -> None:
    table = rewards_under_shift(REWARDS, "convex", np.array([0.0, 0.25, 1.0]), MINORITY)
    assert table.alpha.tolist() == [0, 0.25, 1]
    np.testing.assert_allclose(table.reward, [0.5, 0.25 * 0.425 + 0.75 * 0.5, 0.425])
    at_one = REWARDS[:, 0]
    assert table.reward_error[2] == pytest.approx(at_one.std(ddof=1) / 2)


def test_the_geometric_mixture_is_taken_of_each_sample() -> None:
    table = rewards_under_shift(REWARDS, "geometric", np.array([0.5]), MINORITY)
    assert table.reward[0] == pytest.approx(np.mean([0.08**0.5, 0.18**0.5, 0.18**0.5, 0.07**0.5]))


def test_groups_are_mixed_by_their_share() -> None:
    """The minority's mean of r1 is 0.7, the majority's mean of r2 is 0.8: the least over alpha is
    that of the worst group."""
    table = rewards_under_shift(REWARDS, "groups", np.array([0.0, 0.2, 1.0]), MINORITY)
    np.testing.assert_allclose(table.reward, [0.8, 0.8 * 0.8 + 0.2 * 0.7, 0.7])
    errors = [np.std([0.9, 0.7], ddof=1) / 2**0.5, np.std([0.8, 0.6], ddof=1) / 2**0.5]
    assert table.reward_error[1] == pytest.approx(np.hypot(0.8 * errors[0], 0.2 * errors[1]))
    with pytest.raises(ValueError, match="0 of 4 prompts of the evaluation are of the minority"):
        rewards_under_shift(REWARDS, "groups", np.array([0.5]), np.zeros(4, bool))


def test_mean_and_error() -> None:
    found = mean_of(np.array([1.0, 2.0, 6.0]))
    assert (found.value, found.error) == (3.0, pytest.approx(7**0.5 / 3**0.5))
    assert np.isnan(mean_of(np.array([1.0])).error)


def test_log_probabilities_are_those_of_the_softmax() -> None:
    model = tiny_gpt2()
    written = Completions([[5, 6], [7], [8, 9]], [[10, 1], [11, 12, 13], [14]])
    truth = []
    for prompt, completion in zip(written.prompts, written.completions, strict=True):
        row = torch.tensor([[*prompt, *completion]])
        logp = torch.log_softmax(model(input_ids=row).logits[0].double(), -1).detach()
        truth.append(
            sum(float(logp[len(prompt) + k - 1, token]) for k, token in enumerate(completion))
        )
    for fused in (None, False):
        np.testing.assert_allclose(
            completion_logprobs(model, written, 0, 2, fused=fused), truth, atol=1e-5
        )


def test_the_kl_estimate_is_unbiased() -> None:
    """Of completions of one token the exact KL is a sum over the vocabulary."""
    policy, start = tiny_gpt2(0), tiny_gpt2(1)
    prompts = [[5, 6]] * 3000
    written = complete(policy, prompts, draw_uniforms(3000, 1, 0), eos=1, pad=0)
    found = mean_of(
        completion_logprobs(policy, written, 0) - completion_logprobs(start, written, 0)
    )
    p, q = (
        torch.log_softmax(model(input_ids=torch.tensor([[5, 6]])).logits[0, -1].double(), 0)
        for model in (policy, start)
    )
    exact = float((p.exp() * (p - q)).sum())
    assert exact > 0.1
    assert abs(found.value - exact) < 4 * found.error
    assert found.error < 0.1 * exact


def test_the_start_is_at_distance_zero_and_samples_are_paired() -> None:
    tokenizer = word_tokenizer([" ".join(f"w{k}" for k in range(61))], 64)
    policy, judge = (
        tiny_gpt2(0),
        reward_model(None, tokenizer, width=16, layers=1, length=20, seed=0),
    )
    prompts = [[5, 6, 7 + k] for k in range(10)]
    uniforms = draw_uniforms(10, 6, 0)
    found = sample_policy(policy, policy, judge, prompts, uniforms, eos=1, pad=0)
    assert (found.log_ratio == 0).all()
    assert found.emotions.shape == (10, 5)
    again = sample_policy(
        policy, tiny_gpt2(1), judge, prompts, uniforms, eos=1, pad=0, batch_size=3
    )
    np.testing.assert_allclose(again.emotions, found.emotions, atol=1e-6)
    assert (again.log_ratio != 0).all()


def test_fine_tuning_learns_the_texts_and_their_end() -> None:
    texts = ["a b c", "a b d"] * 40
    tokenizer = word_tokenizer(texts, 10)
    model = language_model(None, tokenizer, width=32, layers=1, length=5, seed=0)
    before = heldout_loss(model, tokenizer, texts, length=5)
    fine_tune(
        model,
        tokenizer,
        texts,
        Recipe(epochs=15, learning_rate=1e-2, batch_size=16, warmup_steps=2),
        length=5,
        seed=0,
    )
    after = heldout_loss(model, tokenizer, texts, length=5)
    # after `a` everything is certain but c or d: log 2 in three predicted tokens
    assert after == pytest.approx(np.log(2) / 3, abs=0.02)
    assert before > 1
    prompts = tokenizer(["a b"] * 200)["input_ids"]
    written = complete(
        model,
        prompts,
        draw_uniforms(200, 3, 0),
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
    )
    ends = [row[-1] == tokenizer.eos_token_id and len(row) == 2 for row in written.completions]
    assert np.mean(ends) > 0.95


@pytest.mark.parametrize("fused", [True, False])
def test_log_probabilities_at_a_temperature_are_those_of_the_flatter_distribution(
    fused: bool,
) -> None:
    """KL of two models at temperature T, by sampling at T, against the sum over the vocabulary;
    completions of one token."""
    models = [tiny_gpt2(seed) for seed in (0, 1)]
    temperature, n = 0.7, 4000
    prompt = [3, 5, 7]
    with torch.no_grad():
        log_p, log_q = (
            torch.log_softmax(
                model(input_ids=torch.tensor([prompt])).logits[0, -1].double() / temperature, -1
            )
            for model in models
        )
    written = complete(
        models[0], [prompt] * n, draw_uniforms(n, 1, 0), eos=None, pad=0, temperature=temperature
    )
    own, other = (
        completion_logprobs(model, written, 0, fused=fused, temperature=temperature)
        for model in models
    )
    tokens = torch.tensor([row[0] for row in written.completions])
    np.testing.assert_allclose(own, log_p[tokens], rtol=1e-5, atol=1e-5)
    exact = float((log_p.exp() * (log_p - log_q)).sum())
    error = float((own - other).std() / np.sqrt(n))
    assert abs((own - other).mean() - exact) < 4 * error < 0.5 * exact
