"""Training where there is no float64, as on a Mac's GPU: everything runs, and what the digits cost
is measured."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.arguments import PreferenceArguments
from llm.data.tokens import PreferenceCollator
from llm.global_batch import coefficients, normalised
from llm.objectives import OBJECTIVES, ObjectiveParameters, make_objective
from llm.pair_losses import PAIR_LOSSES
from llm.scores import Pairs, Scores, Singles, replaced
from llm.steps import worst_case_metrics
from llm.train import parse, train
from llm.trainer import PreferenceTrainer
from tests.llm.models import tiny_gpt2, word_tokenizer
from tests.llm.no_float64 import NoFloat64
from tests.llm.test_objectives import THEORY
from tests.llm.training import arguments, random_pairs, random_singles
from tests.theory.instances import example_size
from theory.precision import widest
from theory.sets import SETS

NEEDED: dict[str, list[dict[str, Any]]] = {
    **{  # sets added later
        kind.facts.objective: [{kind.facts.option or "": example_size(kind, 0.3)}]
        for kind in SETS.values()
        if kind.facts.reweights and kind.facts.objective is not None
    },
    **{name: [THEORY[name][0]] for name in PAIR_LOSSES},
    "dr_dpo": [{"b": 0.5}],
    "kldpo": [{"tau": 0.5}, {"rho": 0.1}, {"rho": 1e-3}],
    "wdpo": [
        {"rho": 0.05},
        {"rho": 0.05, "wdpo_mode": "adversarial"},
        {"rho": 0.05, "wdpo_mode": "finite_difference"},
    ],
    "aot": [{}, {"softness": 0.3}, {"quantile_weights": "cvar:0.3"}],
    "cvar": [{"alpha": 0.3}],
    "chi2": [{"rho": 0.5}],
    "tv": [{"rho": 0.2}],
    "group_dro": [{"group_step": 0.1}],
}
CASES = [(name, more) for name in OBJECTIVES for more in NEEDED.get(name, [{}])]
IDS = ["-".join([name, *map(str, more.values())]) for name, more in CASES]


def test_the_device_is_asked() -> None:
    assert widest("cpu") == torch.float64
    with NoFloat64():
        assert widest("cpu") == torch.float32
    assert widest("cpu") == torch.float64


@pytest.mark.some(8)
@pytest.mark.parametrize(("name", "more"), CASES, ids=IDS)
def test_every_objective_trains_and_evaluates(
    name: str, more: dict[str, Any], tmp_path: Path
) -> None:
    unpaired = name == "kto"
    data = (
        random_singles(12)
        if unpaired
        else random_pairs(12, weights="softness" not in more, groups=2, rewards=name == "rebel")
    )
    tokenizer = word_tokenizer()
    trainer = PreferenceTrainer(
        tiny_gpt2(),
        arguments(
            tmp_path,
            max_steps=2,
            learning_rate=1e-3,
            gradient_accumulation_steps=2,
            per_device_train_batch_size=3,
            kl_prompts=2,
        ),
        ObjectiveParameters(name, **more),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        data_collator=PreferenceCollator(0),
    )
    with NoFloat64():
        trainer.train()
        metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_loss"]) and "eval_kl_to_reference" in metrics
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and all(loss == loss for loss in losses)


def scores(unpaired: bool, seed: int, *, weights: bool) -> Scores:
    """Log-probabilities of the size that they have: sums over some hundred tokens, log-ratios of a
    few nats."""
    g = torch.Generator().manual_seed(seed)
    n = (16, 128, 1024)[seed % 3]
    reference = -100 + 30 * torch.randn(2, n, generator=g)
    policy = reference + 3 * torch.randn(2, n, generator=g)
    lengths = torch.randint(5, 200, (2, n), generator=g)
    share = torch.rand(n, generator=g) + 0.1 if weights else None
    if unpaired:
        return normalised(
            Singles(
                policy[0], reference[0], torch.rand(n, generator=g) < 0.5, share, torch.tensor(0.7)
            )
        )
    groups, rewards = torch.randint(3, (n,), generator=g), torch.randn(n, generator=g)
    return normalised(
        Pairs(*policy, *reference, *lengths, share, groups, reward_difference=rewards)
    )


@pytest.mark.parametrize(("name", "more"), CASES, ids=IDS)
def test_what_the_digits_cost(name: str, more: dict[str, Any]) -> None:
    """The value to 3e-6, the coefficients to 3e-5 of the sum of their sizes: what
    `llm.global_batch.coefficients` states."""
    objective = make_objective(ObjectiveParameters(name, **more))
    for seed in range(12):
        batch = scores(name == "kto", seed, weights=seed % 2 == 1 and "softness" not in more)
        value, truth = coefficients(objective.value, batch)
        with NoFloat64():
            rough, found = coefficients(objective.value, batch)
            metrics = worst_case_metrics(objective, batch)
        assert value.dtype == torch.float64 and rough.dtype == torch.float32
        assert float(rough) == pytest.approx(float(value), rel=3e-6)
        for field in ("chosen", "rejected", "policy"):
            if hasattr(truth, field):
                exact = getattr(truth, field)
                assert (getattr(found, field) - exact).abs().sum() <= 3e-5 * exact.abs().sum()
        for key, number in worst_case_metrics(objective, batch).items():
            assert metrics[key] == pytest.approx(number, rel=1e-3)


def test_a_small_temperature_needs_more_digits_than_there_are() -> None:
    """The error of a tilt's weights is that of the losses, about 1e-7 of them, over the
    temperature."""
    objective = make_objective(ObjectiveParameters("kldpo", tau=1e-3))
    batch = replaced(scores(False, 1, weights=False), {})
    _, truth = coefficients(objective.value, batch)
    with NoFloat64():
        _, found = coefficients(objective.value, batch)
    assert isinstance(truth, Pairs) and isinstance(found, Pairs)
    assert 0 < (found.chosen - truth.chosen).abs().sum() < 5e-3 * truth.chosen.abs().sum()


def test_a_whole_run_from_files_to_files(tmp_path: Path) -> None:
    """Also what surrounds the steps: reference log-probabilities, evaluation, saving, an adapter,
    bf16."""
    tokenizer = word_tokenizer()
    tiny_gpt2(vocabulary=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    row = {"prompt": "the cat ", "chosen": "is happy", "rejected": "is sad"}
    (tmp_path / "pairs.jsonl").write_text((json.dumps(row) + "\n") * 4, encoding="utf-8")
    words = (
        f"--model {tmp_path / 'model'} --data {tmp_path / 'pairs.jsonl'} --output_dir"
        f" {tmp_path / 'out'} --eval_split train"
    )
    more = (
        "--lora --bf16 --objective kldpo --rho 0.1 --max_steps 2 --kl_prompts 2 --kl_max_new_tokens"
        " 2 --report_to none"
    )
    with NoFloat64():
        assert train(*parse(f"{words} {more} --run_on cpu".split()))["eval_loss"] > 0


@pytest.mark.parametrize("device", ["mps", "cuda"])
def test_a_device_that_is_not_there(device: str, tmp_path: Path) -> None:
    available = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available()}
    if available[device]:
        pytest.skip(f"there is {device}")
    with pytest.raises(ValueError, match=f"--run_on {device}, but torch .* There is here: cpu"):
        PreferenceArguments(output_dir=str(tmp_path), run_on=device)
