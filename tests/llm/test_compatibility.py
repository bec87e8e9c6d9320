"""What is refused and what is warned of; a run that stops, and one that goes on from a
checkpoint."""

import copy
import json
import math
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import FalconConfig, FalconForCausalLM, OPTConfig, OPTForCausalLM

from llm import compatibility
from llm.compatibility import (
    bfloat16_offer,
    bfloat16_slowdown,
    refuse_inexact,
    warn_of_rounding,
    warn_of_slow_bfloat16,
)
from llm.data.tokens import PreferenceCollator
from llm.objectives import ObjectiveParameters, make_objective
from llm.trainer import PreferenceTrainer, turn_off_dropout
from tests.llm.models import tiny_gpt2
from tests.llm.training import arguments, random_pairs, random_singles

ROWS = 8


def trainer_of(
    p: ObjectiveParameters,
    out: Path,
    data: Dataset | None = None,
    model: Any = None,
    **settings: Any,
) -> Any:
    callbacks = settings.pop("callbacks", None)
    return PreferenceTrainer(
        tiny_gpt2() if model is None else model,
        arguments(out, **({"per_device_train_batch_size": 4} | settings)),
        p,
        train_dataset=random_pairs(ROWS, groups=2) if data is None else data,
        data_collator=PreferenceCollator(0),
        callbacks=callbacks,
    )


# ---------------------------------------------------------------------------------------- arguments
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"label_smoothing_factor": 0.1},
            r"--label_smoothing_factor \(0.1\) is refused: use --objective cdpo",
        ),
        ({"logging_nan_inf_filter": True}, "--logging_nan_inf_filter"),
        ({"remove_unused_columns": True}, "--remove_unused_columns"),
        (
            {"restore_callback_states_from_checkpoint": False},
            "--restore_callback_states_from_checkpoint",
        ),
        ({"torch_compile": True}, "--torch_compile"),
        (
            {"auto_find_batch_size": True},
            "--auto_find_batch_size .* would change the effective batch",
        ),
        (
            {"neftune_noise_alpha": 5.0},
            r"--neftune_noise_alpha \(5.0\) is refused: noise differs between the two passes",
        ),
        ({"fp16": True}, "--fp16 .* use --bf16"),
        ({"bf16_full_eval": True}, "--bf16_full_eval .* evaluation looks at the whole set"),
        ({"batch_eval_metrics": True}, "--batch_eval_metrics"),
        ({"kl_prompts": -1}, "--kl_prompts must be at least 0 .* got -1 and 64"),
        ({"kl_max_new_tokens": 0}, "got 0 and 0"),
    ],
)
def test_refused_arguments(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **settings)


# ------------------------------------------------------------------------------------- combinations
EXACT = ObjectiveParameters("wdpo", rho=0.1, wdpo_mode="exact")
SHIFTED = ObjectiveParameters("wdpo", rho=0.1, wdpo_mode="adversarial")
DPO = ObjectiveParameters()


def fake_arguments(**settings: Any) -> Any:
    """Arguments as they would be on machines that are not here."""
    defaults = {
        "world_size": 1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "gradient_checkpointing_kwargs": None,
        "parallelism_config": None,
        "n_gpu": 1,
        "dataloader_drop_last": True,
        "kl_prompts": 0,
        "bf16": False,
    }
    return SimpleNamespace(**(defaults | settings))


def with_attention(name: str) -> Any:
    model = tiny_gpt2()
    model.config._attn_implementation = name
    return model


SPLIT = SimpleNamespace(total_size=4, data_parallel_size=2)
REFUSED: dict[str, tuple[ObjectiveParameters, Any, dict[str, Any], str, str]] = {
    "several gpus": (DPO, None, {"n_gpu": 2}, "NO", "DataParallel splits each batch"),
    "tensor parallel": (
        DPO,
        None,
        {"parallelism_config": SPLIT},
        "NO",
        "tensor, context and sequence parallelism",
    ),
    "reentrant": (
        EXACT,
        None,
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        "NO",
        "reentrant checkpointing",
    ),
    "flash": (EXACT, "flash_attention_2", {}, "NO", "flash_attention_2 has no second derivative"),
    "fsdp": (EXACT, None, {}, "FSDP", "FSDP does not support a double backward"),
    "deepspeed": (
        SHIFTED,
        None,
        {},
        "DEEPSPEED",
        "DeepSpeed does not support several backward passes",
    ),
    "half": (SHIFTED, "half", {}, "NO", "rounds away in weights of half precision"),
    "ragged ranks": (
        DPO,
        None,
        {"world_size": 2, "dataloader_drop_last": False},
        "MULTI_GPU",
        "set --dataloader_drop_last",
    ),
    "samples of a shard": (DPO, None, {"kl_prompts": 4}, "FSDP", "which FSDP does not keep"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_combinations(case: str) -> None:
    p, attention, settings, kind, message = REFUSED[case]
    model = tiny_gpt2().bfloat16() if attention == "half" else with_attention(attention or "sdpa")
    args, accelerator = (
        fake_arguments(**settings),
        SimpleNamespace(distributed_type=f"DistributedType.{kind}"),
    )
    with pytest.raises(ValueError, match=message):
        refuse_inexact(p, make_objective(p), model, args, accelerator)
    if case not in (
        "several gpus",
        "tensor parallel",
        "ragged ranks",
        "samples of a shard",
    ):  # those are for any objective
        other = {"fsdp": SHIFTED, "flash": SHIFTED, "half": EXACT}.get(case, DPO)
        refuse_inexact(other, make_objective(other), model, args, accelerator)


def test_the_trainer_asks(tmp_path: Path) -> None:
    checkpointing = {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": True},
    }
    with pytest.raises(ValueError, match="wdpo is refused here: reentrant checkpointing"):
        trainer_of(EXACT, tmp_path, **checkpointing)


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (ObjectiveParameters("kldpo", tau=1.0), "one pair, for which kldpo is the plain mean"),
        (ObjectiveParameters("aot"), "one pair, for which aot is DPO"),
    ],
)
def test_a_batch_of_one_pair(
    p: ObjectiveParameters, message: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.warns(UserWarning, match=message):
        trainer_of(p, tmp_path, per_device_train_batch_size=1)
    recwarn.clear()
    trainer_of(p, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    trainer_of(DPO, tmp_path, per_device_train_batch_size=1)
    assert not [w for w in recwarn if "one pair" in str(w.message)]


@pytest.mark.parametrize(
    ("dtype", "bf16", "below", "above"),
    [
        ("float32", False, 9e-6, 1.1e-5),
        ("float32", True, 0.019, 0.021),
        ("bfloat16", False, 0.29, 0.31),
    ],
)
def test_small_temperatures(
    dtype: str, bf16: bool, below: float, above: float, recwarn: pytest.WarningsRecorder
) -> None:
    """beta = 0.1 times the rounding error of a sum of log-probabilities."""
    model, args = tiny_gpt2().to(getattr(torch, dtype)), fake_arguments(bf16=bf16)
    for p in (ObjectiveParameters("kldpo", tau=below), ObjectiveParameters("dr_dpo", b=below)):
        with pytest.warns(UserWarning, match="below the rounding error of the losses in"):
            warn_of_rounding(p, model, args)
    recwarn.clear()
    for p in (ObjectiveParameters("kldpo", tau=above), ObjectiveParameters("kldpo", rho=0.1), DPO):
        warn_of_rounding(p, model, args)
    assert not len(recwarn)


def test_groups_are_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="group_dro needs a column `group` in the training data"):
        trainer_of(ObjectiveParameters("group_dro", group_step=0.1), tmp_path, random_pairs(ROWS))


def test_groups_are_needed_in_the_evaluation_too(tmp_path: Path) -> None:
    settings = arguments(tmp_path, per_device_train_batch_size=4)
    p, data = ObjectiveParameters("group_dro", group_step=0.1), random_pairs(ROWS, groups=2)
    with pytest.raises(ValueError, match="group_dro needs a column `group` in the evaluation data"):
        PreferenceTrainer(
            tiny_gpt2(),
            settings,
            p,
            train_dataset=data,
            eval_dataset=random_pairs(3),
            data_collator=PreferenceCollator(0),
        )


def test_groups_with_far_too_large_numbers(tmp_path: Path) -> None:
    data = random_pairs(2).add_column("group", [5, 10**7])
    with pytest.raises(
        ValueError,
        match=r"2 groups, with numbers up to 10000000. Number them from 0, or give them names",
    ):
        trainer_of(ObjectiveParameters("group_dro", group_step=0.1), tmp_path, data)


def test_groups_that_do_not_occur_have_no_weight(tmp_path: Path) -> None:
    """Groups numbered 1 and 3 are those numbered 0 and 1."""
    data = random_pairs(ROWS, groups=2)
    spread = data.remove_columns("group").add_column(
        "group", [2 * group + 1 for group in data["group"]]
    )
    logged = []
    for rows in (data, spread):
        trainer = trainer_of(
            ObjectiveParameters("group_dro", group_step=0.7),
            tmp_path,
            rows,
            per_device_train_batch_size=ROWS,
        )
        trainer.train()
        logged.append(trainer.state.log_history[0])
    assert logged[1]["loss"] == pytest.approx(logged[0]["loss"])
    assert [logged[1][f"group_weight/{g}"] for g in range(4)] == pytest.approx(
        [0, logged[0]["group_weight/0"], 0, logged[0]["group_weight/1"]]
    )


# ------------------------------------------------------------------------------------------ dropout
def test_every_dropout_is_off() -> None:
    """OPT has numbers instead of modules, and leaves out whole layers at random."""
    config = OPTConfig(
        vocab_size=64, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, word_embed_proj_dim=16, dropout=0.3, attention_dropout=0.3,
        activation_dropout=0.3, layerdrop=0.5,
    )  # fmt: skip
    ids = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(0))
    for model in (OPTForCausalLM(config), tiny_gpt2(dropout=0.3)):
        turn_off_dropout(model)
        with torch.no_grad():
            truth = model.eval()(input_ids=ids).logits
            for seed in range(4):
                torch.manual_seed(seed)
                torch.testing.assert_close(model.train()(input_ids=ids).logits, truth)


def test_a_model_that_is_random_in_training_is_refused(tmp_path: Path) -> None:
    """Falcon reads its dropout from the configuration in each forward pass."""
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(ValueError, match="the model is random in training mode"):
        trainer_of(
            DPO, tmp_path, model=FalconForCausalLM(FalconConfig(**sizes, hidden_dropout=0.3))
        )
    trainer_of(DPO, tmp_path, model=FalconForCausalLM(FalconConfig(**sizes)))


# ------------------------------------------------------------------------------------- not a number
STOPPED = [
    DPO,
    ObjectiveParameters("kldpo", tau=0.1),
    ObjectiveParameters("aot"),
    SHIFTED,
    ObjectiveParameters("wdpo", rho=0.1, wdpo_mode="finite_difference"),
    EXACT,
]


@pytest.mark.parametrize("p", STOPPED, ids=lambda p: f"{p.objective} {p.wdpo_mode or ''}")
def test_a_loss_that_is_not_a_number_stops_the_run(p: ObjectiveParameters, tmp_path: Path) -> None:
    """Row 5, the second micro-batch of the first step, has a reference that is not a number; no
    parameter moves."""
    data, model = random_pairs(ROWS), tiny_gpt2()
    reference = [math.nan if i == 5 else x for i, x in enumerate(data["ref_rejected_logps"])]
    data = data.remove_columns("ref_rejected_logps").add_column("ref_rejected_logps", reference)
    trainer = trainer_of(
        p,
        tmp_path,
        data,
        model,
        gradient_accumulation_steps=2,
        learning_rate=0.1,
        max_grad_norm=1.0,
    )
    with pytest.raises(FloatingPointError, match="no weight has been changed by it"):
        trainer.train()
    torch.testing.assert_close(
        dict(model.named_parameters()), dict(tiny_gpt2().named_parameters()), rtol=0, atol=0
    )
    (file,) = tmp_path.glob("not-finite-step0-rank0.json")
    found = json.loads(file.read_text())
    assert found["rows"] == list(range(1, ROWS + 1)) and "nan" in found["values"]


def test_weights_that_are_not_numbers_stop_the_run(tmp_path: Path) -> None:
    model = tiny_gpt2()
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="at step 0"):
        trainer_of(DPO, tmp_path, model=model).train()


def test_a_number_stays_a_number_with_extreme_losses(tmp_path: Path) -> None:
    """exp(loss/tau) has no float for a loss of 20 and tau = 0.005; the softmax does."""
    data = random_pairs(ROWS, shift=2000.0)
    for p in (ObjectiveParameters("kldpo", tau=0.005), ObjectiveParameters("dr_dpo", b=0.005)):
        trainer_of(p, tmp_path, data).train()


# --------------------------------------------------------------------------------------- checkpoint
@pytest.mark.parametrize(
    "p", [DPO, ObjectiveParameters("group_dro", group_step=0.7)], ids=lambda p: p.objective
)  # fmt: skip
def test_resuming_gives_the_same_parameters(p: ObjectiveParameters, tmp_path: Path) -> None:
    """Six steps with shuffling and a dropout that is turned off, over three epochs; stopped after
    the third."""
    data = random_pairs(2 * ROWS, groups=2)
    settings = {
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "train_sampling_strategy": "random",
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "seed": 5,
    }
    whole = trainer_of(p, tmp_path / "whole", data, tiny_gpt2(dropout=0.2), **settings)
    whole.train()
    again = trainer_of(p, tmp_path / "again", data, tiny_gpt2(dropout=0.2, seed=9), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    torch.testing.assert_close(
        again.model.state_dict(), whole.model.state_dict(), rtol=0, atol=1e-7
    )
    for name in ("loss", *(["group_weight/0"] if p.objective == "group_dro" else [])):
        histories = [
            [entry[name] for entry in t.state.log_history if name in entry] for t in (whole, again)
        ]
        assert len(histories[0]) == 6 and histories[0] == pytest.approx(histories[1], rel=1e-6)
        assert len(set(histories[0])) == 6


def test_training_twice_with_the_same_arguments_is_the_same(tmp_path: Path) -> None:
    settings = {
        "learning_rate": 1e-2,
        "train_sampling_strategy": "random",
        "max_steps": 4,
        "max_grad_norm": 1.0,
    }
    first, second = (
        trainer_of(ObjectiveParameters("kldpo", tau=0.5), tmp_path, **settings) for _ in range(2)
    )
    start = copy.deepcopy(first.model.state_dict())
    first.train(), second.train()
    torch.testing.assert_close(first.model.state_dict(), second.model.state_dict(), rtol=0, atol=0)
    assert any(not torch.equal(x, start[n]) for n, x in first.model.state_dict().items())


def test_columns_that_the_objective_cannot_use(tmp_path: Path) -> None:
    weighted, alike = random_pairs(4, weights=True), random_singles(4)
    alike = alike.remove_columns("label").add_column("label", [True] * 4)
    doubtful = weighted.add_column("label_confidence", [0.9] * 4)
    for objective, data, message in (
        (ObjectiveParameters("aot", softness=1.0), weighted, "the data have a column `weight`"),
        (ObjectiveParameters("aot_unpaired"), alike, "all 4 labels are True"),
        (
            ObjectiveParameters("chi2_label", label_rho=0.1),
            weighted,
            "nothing says how likely these are to be right",
        ),
        (
            ObjectiveParameters("kldpo", tau=1.0, pair_loss="chi2_label", label_rho=0.1),
            weighted,
            "Add a column `label_confidence`",
        ),
        (
            ObjectiveParameters("tv_label", label_rho=0.1, flip=0.1),
            doubtful,
            "a column label_confidence, and --flip is 0.1",
        ),
        (
            ObjectiveParameters("chi2", rho=0.1, pair_loss="rebel"),
            weighted,
            r"rebel needs the columns chosen_reward, rejected_reward, but the data have no chosen_",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            PreferenceTrainer(tiny_gpt2(), arguments(tmp_path), objective, train_dataset=data)


# ---------------------------------------------------------------------- steps that are rounded away
def moved_and_said(
    out: Path, dtype: torch.dtype, rate: float, **settings: Any
) -> tuple[float, list[str]]:
    """Which share of the weights a training moved, and what it warned of before."""
    model = tiny_gpt2().to(dtype)
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = trainer_of(
            DPO, out, model=model, learning_rate=rate, max_steps=20, logging_steps=50, **settings
        )
    trainer.train()
    moved = sum(int((weight != before[name]).sum()) for name, weight in model.state_dict().items())
    return moved / sum(weight.numel() for weight in before.values()), [
        str(warning.message)
        for warning in caught
        if "a step of --learning_rate" in str(warning.message)
    ]


@pytest.mark.parametrize(
    ("dtype", "rate"),
    [(torch.bfloat16, 1e-6), (torch.bfloat16, 1e-4), (torch.float16, 1e-6), (torch.float16, 1e-5)],
)
def test_steps_that_round_away_are_warned_of(
    dtype: torch.dtype, rate: float, tmp_path: Path
) -> None:
    moved, (said,) = moved_and_said(tmp_path, dtype, rate)
    found = re.search(rf"a step of --learning_rate {rate:g} changes ([0-9.]+)% of them", said)
    assert found and moved < 0.2
    assert float(found[1]) / 100 == pytest.approx(moved, abs=0.08)
    assert "--dtype float32, with --bf16" in said


@pytest.mark.parametrize(
    ("dtype", "rate", "settings"),
    [
        (torch.bfloat16, 2e-3, {}),
        (torch.float16, 1e-3, {}),
        (torch.float32, 1e-6, {}),
        (torch.float32, 1e-6, {"bf16": True}),
        (torch.bfloat16, 1e-6, {"optim": "sgd"}),
    ],
)
def test_steps_that_count_are_not(
    dtype: torch.dtype, rate: float, settings: dict[str, Any], tmp_path: Path
) -> None:
    assert moved_and_said(tmp_path, dtype, rate, **settings)[1] == []


def test_an_adapter_on_a_half_model_takes_every_step(tmp_path: Path) -> None:
    """peft keeps its weights in float32."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(tiny_gpt2().bfloat16(), LoraConfig(task_type="CAUSAL_LM", r=2))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*a step of --learning_rate")
        trainer_of(DPO, tmp_path, model=adapted, learning_rate=1e-6)
        for name, weight in adapted.named_parameters():
            weight.data = (
                torch.full_like(weight, 0.01) if "lora_B" in name else weight.data
            ).bfloat16()
        with pytest.raises(
            UserWarning, match="the trained weights are bfloat16"
        ):  # one that was trained before
            trainer_of(DPO, tmp_path, model=adapted, learning_rate=1e-6)


@pytest.mark.parametrize("slower", [0.5, 7.0])
def test_bfloat16_that_is_emulated_is_warned_of(
    slower: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bfloat16_slowdown() > 0
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(compatibility, "bfloat16_slowdown", lambda: slower)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warn_of_slow_bfloat16("--bf16 False")
    assert [str(one.message).split(":")[0] for one in said] == (
        ["bfloat16 takes 7.0 times as long as float32 here"] if slower > 1 else []
    )


@pytest.mark.parametrize(
    ("instructions", "slower", "change", "offered"),
    [
        ({"avx512_bf16": True}, 0.5, {}, True),
        ({"bf16": True}, 0.5, {}, True),  # of ARM
        ({"avx2": True, "avx512_bf16": False}, 0.5, {}, False),
        ({"avx512_bf16": True}, 0.9, {}, False),
        ({"avx512_bf16": True}, 0.5, {"bf16": True}, False),
        ({"avx512_bf16": True}, 0.5, {"dtype": torch.bfloat16}, False),
        ({"avx512_bf16": True}, 0.5, {"weights": 1000}, False),
    ],
)
def test_bfloat16_is_offered_where_it_is_faster(
    instructions: dict[str, bool],
    slower: float,
    change: dict[str, Any],
    offered: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    monkeypatch.setattr(compatibility, "bfloat16_slowdown", lambda: slower)
    size = change.get("weights", compatibility.LARGE_ENOUGH_FOR_BFLOAT16)
    model = torch.nn.Linear(size, 1, dtype=change.get("dtype", torch.float32), device="meta")
    said = bfloat16_offer(model, arguments(tmp_path, run_on="cpu", bf16=change.get("bf16", False)))
    assert (said is not None) == offered
    if said is not None:
        assert "multiplies 2.0 times as fast" in said and "--bf16 True" in said
        assert "0.2 nats" in said
