"""Against TRL: its loss code on the same numbers, and its DPO trainer on the same data."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from llm.data.tokens import PreferenceCollator, tokenise
from llm.logprobs import sequence_logprobs
from llm.objectives import ObjectiveParameters, make_objective
from llm.reference import reference_logps
from llm.scores import Pairs
from llm.trainer import PreferenceTrainer
from tests.llm.models import WORDS, tiny_gpt2, word_tokenizer
from tests.llm.training import arguments
from tests.theory.test_objectives_neighbours import pairs, trl_loss  # noqa: F401, a fixture

OURS: dict[str, tuple[ObjectiveParameters, str, float]] = {
    "dpo": (ObjectiveParameters("dpo", 0.2), "sigmoid", 0.0),
    "rdpo": (ObjectiveParameters("rdpo", 0.2, flip=0.15), "robust", 0.15),
    "ipo": (ObjectiveParameters("ipo", 0.2), "ipo", 0.0),
    "hinge": (ObjectiveParameters("hinge", 0.2), "hinge", 0.0),
    "dpo_norm": (ObjectiveParameters("dpo_norm", 0.2), "sigmoid_norm", 0.0),
    "exo": (ObjectiveParameters("exo", 0.2, flip=0.15), "exo_pair", 0.15),
    "nca": (ObjectiveParameters("nca", 0.2), "nca_pair", 0.0),
    "bco": (ObjectiveParameters("bco", 0.2), "bco_pair", 0.0),
    "sppo": (ObjectiveParameters("sppo", 0.2), "sppo_hard", 0.0),
    "apo_zero": (ObjectiveParameters("apo_zero", 0.2), "apo_zero", 0.0),
    "apo_down": (ObjectiveParameters("apo_down", 0.2), "apo_down", 0.0),
    "discopop": (ObjectiveParameters("discopop", 0.2), "discopop", 0.0),
    "aot": (ObjectiveParameters("aot", 0.2), "aot", 0.0),
    "aot_unpaired": (ObjectiveParameters("aot_unpaired", 0.2), "aot_unpaired", 0.0),
}


LINKS: dict[str, dict[str, Any]] = {
    "log": {"f_divergence_type": "reverse_kl"},
    "forward_kl": {"f_divergence_type": "forward_kl"},
    "jensen_shannon": {"f_divergence_type": "js_divergence"},
    "alpha": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
}
LINKED = ("dpo", "rdpo", "ipo", "hinge", "dpo_norm", "exo", "discopop")


def scores_of(pairs: dict[str, Any]) -> Pairs:  # noqa: F811
    """`pairs` are token log-probabilities of 6 pairs of different lengths, chosen ones first."""
    policy, reference, lengths = (
        pairs["policy"].sum(1),
        pairs["reference"].sum(1),
        pairs["mask"].sum(1),
    )
    return Pairs(policy[:6], policy[6:], reference[:6], reference[6:], lengths[:6], lengths[6:])


@pytest.mark.parametrize("name", OURS)
def test_losses(name: str, pairs: dict[str, Any]) -> None:  # noqa: F811
    """TRL holds EXO's label smoothing in float32."""
    p, loss_type, smoothing = OURS[name]
    theirs = trl_loss(pairs, loss_type, 0.2, smoothing, torch.arange(6))
    ours = make_objective(p).value(scores_of(pairs)).item()
    assert ours == pytest.approx(theirs.item(), rel=1e-6 if name == "exo" else 1e-10)


@pytest.mark.parametrize("name", OURS)
def test_gradients_of_losses(name: str, pairs: dict[str, Any]) -> None:  # noqa: F811
    """In each token's log-probability."""
    p, loss_type, smoothing = OURS[name]
    tokens = pairs["policy"].clone().requires_grad_()
    moving = pairs | {"policy": tokens}
    theirs = trl_loss(moving, loss_type, 0.2, smoothing, torch.arange(6))
    ours = make_objective(p).value(scores_of(moving))
    scored = pairs["mask"][:, 1:]
    found, truth = (torch.autograd.grad(x, tokens)[0] * scored for x in (ours, theirs))
    assert (found - truth).norm() <= (1e-6 if name == "exo" else 1e-10) * truth.norm()


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("name", LINKED)
def test_links(name: str, link: str, pairs: dict[str, Any]) -> None:  # noqa: F811
    """In float32, for TRL's alpha-divergence knows no float64: to the rounding of some 20 sums."""
    p, loss_type, smoothing = OURS[name]
    single = {key: x if key == "mask" else x.float() for key, x in pairs.items()}
    theirs = trl_loss(single, loss_type, 0.2, smoothing, torch.arange(6), **LINKS[link])
    p = p if link == "log" else replace(p, link=link, link_alpha=0.3 if link == "alpha" else None)
    ours = make_objective(p).value(scores_of(single))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_simpo(pairs: dict[str, Any]) -> None:  # noqa: F811
    """What CPO's trainer makes of mean log-probabilities."""
    cpo = pytest.importorskip("trl.experimental.cpo")
    s = scores_of(pairs)
    accelerator = SimpleNamespace(device=torch.device("cpu"))
    stub = SimpleNamespace(
        loss_type="simpo", alpha=0.0, beta=2.0, simpo_gamma=0.5, label_smoothing=0.0
    )
    stub.accelerator = accelerator
    means = s.chosen / s.chosen_length, s.rejected / s.rejected_length
    theirs = cpo.CPOTrainer.cpo_loss(stub, *means)[0].mean()
    ours = make_objective(ObjectiveParameters("simpo", 2.0, target_margin=0.5)).value(s)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-10)


def test_orpo(pairs: dict[str, Any]) -> None:  # noqa: F811
    """The odds ratio in float32, as TRL has it; its SFT term counts the prompt, ours does not."""
    orpo = pytest.importorskip("trl.experimental.orpo")
    s = scores_of(pairs)
    stub = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device=torch.device("cpu")))
    means = s.chosen / s.chosen_length, s.rejected / s.rejected_length
    theirs = -orpo.ORPOTrainer.odds_ratio_loss(stub, *means)[0].mean()
    objective = make_objective(ObjectiveParameters("orpo", 0.3, sft_weight=1.0))
    assert objective.losses is not None
    assert objective.losses(s).mean().item() == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["dpo", "dpo_norm", "aot"])
def test_sft_term(name: str, pairs: dict[str, Any]) -> None:  # noqa: F811
    """Value and gradient of TRL's sum of losses, sft with the weight that was rpo_alpha."""
    p, loss_type, smoothing = OURS[name]
    tokens = pairs["policy"].clone().requires_grad_()
    moving = pairs | {"policy": tokens}
    sums = {"loss_types": [loss_type, "sft"], "loss_weights": [1.0, 0.7]}
    theirs = trl_loss(moving, loss_type, 0.2, smoothing, torch.arange(6), **sums)
    ours = make_objective(replace(p, sft_weight=0.7)).value(scores_of(moving))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-10)
    scored = pairs["mask"][:, 1:]
    found, truth = (torch.autograd.grad(x, tokens)[0] * scored for x in (ours, theirs))
    assert (found - truth).norm() <= 1e-10 * truth.norm()


def texts(count: int) -> Dataset:
    g = torch.Generator().manual_seed(0)

    def words(low: int, high: int) -> str:
        length = int(torch.randint(low, high, (), generator=g))
        return " ".join(
            WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=g).tolist()
        )

    rows = {"prompt": (2, 5), "chosen": (1, 6), "rejected": (1, 6)}
    return Dataset.from_dict(
        {
            column: [" " * (column != "prompt") + words(*r) for _ in range(count)]
            for column, r in rows.items()
        }
    )


@pytest.mark.parametrize(
    ("name", "loss_type"),
    [
        ("dpo", "sigmoid"),
        ("ipo", "ipo"),
        ("aot", "aot"),
        ("dpo", "sigmoid+sft"),
        ("dpo", "sigmoid, ld_alpha"),
    ],
)
def test_training(name: str, loss_type: str, tmp_path: Path) -> None:
    """Four steps of AdamW on the same texts; TRL sorts each micro-batch alone, so that there is one
    micro-batch."""
    trl = pytest.importorskip("trl")
    loss_type, _, named = loss_type.partition(", ")
    ld = {name: 0.4 for name in filter(None, [named])}
    rows, tokenizer = texts(12), word_tokenizer()
    common = {
        "per_device_train_batch_size": 6,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "adam_epsilon": 1e-4,
        "max_grad_norm": 1.0,
    }

    model = tiny_gpt2()
    data, collate = tokenise(rows, tokenizer), PreferenceCollator(0)
    score = partial(sequence_logprobs, tail=ld.get("ld_alpha", 1.0))
    data = reference_logps(model, data, collate, 12, cache=None, identity={}, score=score)
    ours = PreferenceTrainer(
        model,
        arguments(tmp_path, **common),
        ObjectiveParameters(name, beta=0.3, sft_weight=0.5 if "+" in loss_type else None, **ld),
        train_dataset=data,
        data_collator=collate,
        processing_class=tokenizer,
    )
    ours.train()

    settings = dict(vars(arguments(tmp_path)))
    shared = (
        "output_dir",
        "use_cpu",
        "report_to",
        "save_strategy",
        "disable_tqdm",
        "train_sampling_strategy",
        "logging_steps",
    )
    config = trl.DPOConfig(
        **{key: settings[key] for key in shared},
        **common,
        loss_type=loss_type.split("+"),
        loss_weights=[1.0, 0.5] if "+" in loss_type else None,
        beta=0.3,
        **ld,
        precompute_ref_log_probs=True,
        activation_checkpointing=False,
        bf16=False,
        max_length=None,
    )
    theirs = trl.DPOTrainer(
        tiny_gpt2(), args=config, train_dataset=rows, processing_class=tokenizer
    )
    theirs.train()

    losses = [
        [entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (ours, theirs)
    ]
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], rel=1e-5)
    start, end = tiny_gpt2().state_dict(), ours.model.state_dict()
    moved = torch.cat([(end[n] - start[n]).flatten() for n in start])
    apart = torch.cat([(end[n] - x).flatten() for n, x in theirs.model.state_dict().items()])
    assert moved.norm() > 0.01 and apart.norm() < 1e-4 * moved.norm()
