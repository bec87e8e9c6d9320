"""WDPO: the three ways agree where they should, and differ where they must. Exact gradients:
`test_gradients`."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import softplus

from llm.logprobs import sequence_logprobs
from llm.objectives import ObjectiveParameters
from llm.wasserstein import embedding_norm, embedding_outputs, squared_norms
from tests.llm.models import tiny_gpt2, tiny_llama
from tests.llm.precision import Result, limits
from tests.llm.training import all_logps, one_batch, random_pairs, relative_error, step_gradient

ROWS = 6
MODES = ("exact", "finite_difference", "adversarial")


def step(
    model: nn.Module,
    out: Path,
    data: Dataset | None = None,
    *,
    micro: int = ROWS,
    args: dict[str, Any] | None = None,
    **p: Any,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradient and logged numbers of one step of WDPO; without rho, of DPO."""
    parameters = ObjectiveParameters("wdpo" if "rho" in p else "dpo", **p)
    rows = random_pairs(ROWS) if data is None else data
    found, history = step_gradient(
        copy.deepcopy(model), rows, parameters, out, micro=micro, **(args or {})
    )
    return found, history[0]


def less(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: a[n] - b[n] for n in a}


def at_reference(model: nn.Module) -> Dataset:
    """Pairs with the model itself as reference."""
    data = random_pairs(ROWS)
    logps = sequence_logprobs(model, one_batch(data)).tolist()
    for name, values in (("chosen", logps[:ROWS]), ("rejected", logps[ROWS:])):
        data = data.remove_columns(f"ref_{name}_logps").add_column(f"ref_{name}_logps", values)
    return data


def test_squared_norms_sum_over_both_responses() -> None:
    gradient = torch.arange(24.0).reshape(4, 3, 2)
    rows = [sum(x * x for x in range(6 * i, 6 * i + 6)) for i in range(4)]
    assert squared_norms(gradient).tolist() == [rows[0] + rows[2], rows[1] + rows[3]]
    assert squared_norms(gradient.bfloat16()).dtype == torch.float32
    assert squared_norms(gradient.double()).dtype == torch.float64


def test_embedding_outputs() -> None:
    """They are what the model computes from, with the shift in them, and nothing stays behind."""
    model, batch = tiny_llama(), one_batch(random_pairs(3))
    z = model.get_input_embeddings()(batch["input_ids"]).detach()
    shift = 0.1 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    with embedding_outputs(model, shift) as outputs:
        shifted = sequence_logprobs(model, batch)
    real = batch["attention_mask"].bool()  # padding may be any token
    torch.testing.assert_close(outputs[0][real], (z + shift)[real])
    logits = model(inputs_embeds=z + shift, attention_mask=batch["attention_mask"]).logits[:, :-1]
    tokens = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    torch.testing.assert_close(
        shifted, (tokens * batch["completion_mask"][:, 1:]).sum(1), rtol=1e-5, atol=1e-4
    )
    torch.testing.assert_close(
        sequence_logprobs(model, batch), all_logps(model, batch), rtol=1e-5, atol=1e-4
    )
    assert not model.get_input_embeddings()._forward_hooks


def test_the_unit_of_rho(tmp_path: Path) -> None:
    """Rows of norms 3, 4 and 5 have the root mean square (50/3)^(1/2). `absolute` times the unit is
    `embedding`."""
    toy = nn.Module()
    toy.get_input_embeddings = lambda: nn.Embedding(
        3, 2, _weight=torch.tensor([[3.0, 0], [0, 4], [3, 4]])
    )  # type: ignore[assignment]
    assert embedding_norm(toy) == pytest.approx((50 / 3) ** 0.5)
    model = tiny_gpt2()
    unit = embedding_norm(model)
    for settings, factor in (
        ({}, unit),
        ({"squared": True}, unit**2),
        ({"wdpo_mode": "adversarial"}, unit),
    ):
        relative = step(model, tmp_path, rho=0.05, **settings)
        absolute = step(model, tmp_path, rho=0.05 * factor, rho_unit="absolute", **settings)
        assert relative_error(relative[0], absolute[0]) < 1e-5
        assert relative[1]["loss"] == pytest.approx(absolute[1]["loss"], rel=1e-5)


def test_without_embeddings_there_is_no_unit(tmp_path: Path) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    with pytest.raises(
        ValueError, match=r"no radius can be given in units of it. Use --rho_unit absolute"
    ):
        step(model, tmp_path, rho=0.1)


@pytest.mark.parametrize("mode", MODES)
def test_rho_zero_is_dpo(mode: str, tmp_path: Path) -> None:
    model = tiny_gpt2()
    found, logged = step(model, tmp_path, rho=0.0, wdpo_mode=mode, micro=4)
    truth, plain = step(model, tmp_path)

    def formula(m: nn.Module) -> Result:
        double, batch = copy.deepcopy(m).double(), one_batch(random_pairs(ROWS))
        ratios = all_logps(double, batch) - batch["reference_logps"].double()
        value = softplus(-ObjectiveParameters().beta * (ratios[:ROWS] - ratios[ROWS:])).mean()
        return float(value.detach()), dict(
            zip(
                truth,
                torch.autograd.grad(value, [dict(double.named_parameters())[n] for n in truth]),
                strict=True,
            )
        )

    _, of_gradient, of_value = limits(formula, model)  # for each of the two
    assert relative_error(found, truth) < 2 * of_gradient
    assert logged["loss"] == pytest.approx(plain["loss"], rel=0, abs=2 * of_value)


@pytest.mark.parametrize("micro", [ROWS, 2])
@pytest.mark.parametrize("mode", MODES)
def test_where_all_embedding_gradients_vanish(mode: str, micro: int, tmp_path: Path) -> None:
    """A hinge that all pairs are beyond: the root has no slope there, and its zero subgradient is
    taken."""
    data = random_pairs(
        ROWS, shift=-2000.0
    )  # of the reference of the chosen responses: margins near 200
    found, logged = step(
        tiny_gpt2(), tmp_path, data, micro=micro, rho=0.3, wdpo_mode=mode, pair_loss="hinge"
    )
    assert found and all(not g.any() for g in found.values())
    assert logged["loss"] == 0 and logged["embedding_gradient_norm"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_at_the_reference_policy(mode: str, tmp_path: Path) -> None:
    """There margins are zero but embedding gradients are not: l' = -1/2. The step is finite and
    lowers the loss."""
    model = tiny_gpt2()
    found, logged = step(model, tmp_path, at_reference(model), rho=0.05, wdpo_mode=mode)
    assert all(torch.isfinite(g).all() for g in found.values())
    if mode != "adversarial":
        penalty = 0.05 * embedding_norm(model) * logged["embedding_gradient_norm"]
        assert logged["loss"] == pytest.approx(
            torch.log(torch.tensor(2.0)).item() + penalty, rel=1e-5
        )


def test_adversarial_is_first_order_equal_to_the_penalty(tmp_path: Path) -> None:
    """In float64: the difference to the penalty falls with rho², the penalty with rho."""
    model = tiny_gpt2().double()
    plain, _ = step(model, tmp_path)
    apart, penalties = [], []
    for rho in (4e-4, 2e-4, 1e-4):
        exact, adversarial = (
            step(model, tmp_path, rho=rho, wdpo_mode=mode)[0] for mode in ("exact", "adversarial")
        )
        apart.append(relative_error(adversarial, exact))
        penalties.append(relative_error(exact, plain))
    for numbers, order in ((apart, 4), (penalties, 2)):
        assert numbers[0] / numbers[1] == pytest.approx(order, rel=0.15)
        assert numbers[1] / numbers[2] == pytest.approx(order, rel=0.15)
    assert apart[2] < 0.1 * penalties[2]


def test_error_of_the_finite_difference(tmp_path: Path) -> None:
    """In float64 it falls with epsilon²; in float32 rounding takes over, and the default is within
    1 % of the penalty."""
    double = tiny_gpt2().double()
    exact = step(double, tmp_path, rho=0.2, wdpo_mode="exact")[0]
    plain = step(double, tmp_path)[0]
    settings = {"rho": 0.2, "wdpo_mode": "finite_difference"}
    errors = [
        relative_error(step(double, tmp_path, fd_epsilon=e, **settings)[0], exact)
        for e in (4e-4, 2e-4, 1e-4)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2) and errors[1] / errors[
        2
    ] == pytest.approx(4, rel=0.2)
    penalty = {n: g.float() for n, g in less(exact, plain).items()}
    found = less(step(tiny_gpt2(), tmp_path, **settings)[0], step(tiny_gpt2(), tmp_path)[0])
    assert relative_error(found, penalty) < 0.01
    tiny = less(
        step(tiny_gpt2(), tmp_path, fd_epsilon=1e-7, **settings)[0], step(tiny_gpt2(), tmp_path)[0]
    )
    assert relative_error(tiny, penalty) > 10 * relative_error(found, penalty)


@pytest.mark.parametrize("mode", MODES)
def test_under_bf16_autocast(mode: str, tmp_path: Path) -> None:
    """The direction of the penalty's gradient is that of the exact one in float32; roughly so for
    the finite difference."""

    def penalty(mode: str, rho: float, **args: bool) -> torch.Tensor:
        whole, _ = step(tiny_gpt2(), tmp_path, micro=4, args=args, rho=rho, wdpo_mode=mode)
        plain, _ = step(tiny_gpt2(), tmp_path, micro=4, args=args)
        return torch.cat([(whole[name] - plain[name]).flatten().double() for name in whole])

    rho = 0.003 if mode == "adversarial" else 0.1  # beyond, the adversary is another method
    cosine = torch.cosine_similarity(penalty(mode, rho, bf16=True), penalty("exact", rho), 0)
    assert cosine > {"exact": 0.97, "finite_difference": 0.85, "adversarial": 0.5}[mode]


@pytest.mark.parametrize("mode", MODES)
def test_lora_with_frozen_embeddings(mode: str, tmp_path: Path) -> None:
    """Only adapters have a gradient, and the penalty is in it: far from that of DPO."""
    model = get_peft_model(
        tiny_llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    g = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(0, 0.3, generator=g)
    found, _ = step(model, tmp_path, micro=4, rho=0.3, wdpo_mode=mode)
    assert found and all("lora_" in name for name in found)
    exact, _ = step(model, tmp_path, rho=0.3, wdpo_mode="exact")
    plain, _ = step(model, tmp_path)
    assert relative_error(plain, exact) > 0.05
    if mode != "adversarial":
        assert relative_error(found, exact) < 0.01
    else:
        assert relative_error(found, plain) > 0.05


@pytest.mark.parametrize("mode", MODES)
def test_logged_rewards_are_those_of_the_policy(mode: str, tmp_path: Path) -> None:
    """Not of shifted embeddings, and each pair once."""
    _, logged = step(tiny_gpt2(), tmp_path, micro=4, rho=0.3, wdpo_mode=mode)
    _, plain = step(tiny_gpt2(), tmp_path)
    for name in ("rewards/margins", "rewards/chosen_q10", "logps/rejected", "dominance_violation"):
        assert logged[name] == pytest.approx(plain[name], rel=1e-5, abs=1e-5)
