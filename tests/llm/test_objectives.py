"""From names and parameters to objectives: what is refused, what is called, and what is said of the
worst case."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llm.global_batch import coefficients
from llm.metrics import reward_metrics, weight_metrics
from llm.objectives import (
    OBJECTIVES,
    SPECS,
    ObjectiveParameters,
    group_value,
    make_objective,
    worst_case_weights,
)
from llm.pair_losses import PAIR_LOSSES
from llm.scores import Pairs, Singles, widened
from llm.steps import part_values, worst_case_metrics
from tests.launches import run
from tests.theory.instances import example_size
from theory import functionals, losses
from theory.sets import SETS
from theory.spectra import exponential, lower_tail, upper_tail

N = 8


def pairs(seed: int = 0, *, weights: bool = True) -> Pairs:
    g = torch.Generator().manual_seed(seed)
    numbers = [-20 + 4 * torch.randn(N, generator=g, dtype=torch.float64) for _ in range(4)]
    lengths = [torch.randint(1, 9, (N,), generator=g) for _ in range(2)]
    p = torch.rand(N, generator=g, dtype=torch.float64) + 0.1
    return Pairs(
        *numbers,
        *lengths,
        weights=p / p.sum() if weights else None,
        groups=torch.arange(N) % 3,
        reward_difference=torch.randn(N, generator=g, dtype=torch.float64),
    )  # type: ignore[misc]


def singles(seed: int = 0) -> Singles:
    s = pairs(seed)
    desirable = torch.tensor([True, False, True, True, False, False, True, False])
    return Singles(s.chosen, s.reference_chosen, desirable, s.weights, torch.tensor(0.7).double())


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"objective": "dpoo"}, "unknown objective 'dpoo'; there are dpo, ipo"),
    "missing": ({"objective": "cdpo"}, "cdpo needs --flip"),
    "missing b": ({"objective": "dr_dpo"}, "dr_dpo needs --b"),
    "missing step": ({"objective": "group_dro"}, "group_dro needs --group_step"),
    "not taken": (
        {"tau": 1.0},
        r"dpo does not take --tau \(got 1.0\); it takes link, link_alpha",
    ),
    "not taken either": (
        {"objective": "cvar", "alpha": 0.5, "rho": 0.1},
        "cvar does not take --rho .* it takes alpha",
    ),
    "flag not taken": ({"objective": "aot", "released": True}, "aot does not take --released"),
    "flip of no loss that has one": (
        {"objective": "kldpo", "tau": 1.0, "flip": 0.1},
        "kldpo does not take --flip",
    ),
    "flip missing below": (
        {"objective": "kldpo", "tau": 1.0, "pair_loss": "rdpo"},
        "--pair_loss rdpo needs --flip",
    ),
    "pair loss": (
        {"objective": "cvar", "alpha": 0.5, "pair_loss": "kto"},
        "unknown pair loss 'kto'",
    ),
    "pair loss not taken": (
        {"objective": "aot", "pair_loss": "hinge"},
        "--pair_loss is for dr_dpo, kldpo",
    ),
    "averages": ({"average_tokens": False}, "--average_tokens false is for IPO only"),
    "neither": ({"objective": "kldpo"}, "either --rho .* or --tau .* got rho=None, tau=None"),
    "both": ({"objective": "kldpo", "tau": 1.0, "rho": 0.1}, "got rho=0.1, tau=1.0"),
    "released ball": (
        {"objective": "kldpo", "rho": 0.1, "released": True},
        "give --tau, not --rho",
    ),
    "h": ({"objective": "aot", "h": "hinge"}, "unknown h 'hinge'; there are logistic"),
    "beta": ({"beta": 0.0}, "--beta must be positive and finite, got 0.0"),
    "infinite": (
        {"objective": "kldpo", "tau": math.inf},
        "--tau must be positive and finite, got inf",
    ),
    "not a number": (
        {"objective": "dr_dpo", "b": math.nan},
        "--b must be positive and finite, got nan",
    ),
    "gain": ({"objective": "kto", "gain": -1.0}, "--gain must be positive"),
    "spectrum": (
        {"objective": "aot", "quantile_weights": "cvar:2"},
        r"--quantile_weights cvar:2: the share .* got 2",
    ),
    "spectrum not taken": (
        {"quantile_weights": "cvar:0.1"},
        "dpo does not take --quantile_weights",
    ),
    "softness": ({"objective": "aot", "softness": 0.0}, "--softness must be positive"),
    "group step": ({"objective": "group_dro", "group_step": -0.1}, "--group_step must be positive"),
    "rho": ({"objective": "chi2", "rho": -0.1}, "--rho must not be negative, got -0.1"),
    "rho is not a number": (
        {"objective": "tv", "rho": math.nan},
        "--rho must not be negative, got nan",
    ),
    "alpha": ({"objective": "cvar", "alpha": 1.5}, r"in \(0, 1\], got 1.5"),
    "flip": ({"objective": "rdpo", "flip": 0.5}, r"--flip must be in \[0, 1/2\), got 0.5"),
    "flip of exo": ({"objective": "exo", "flip": 0.0}, "exo needs a flip rate above 0"),
    "discopop's temperature": (
        {"objective": "kldpo", "tau": 1.0, "pair_loss": "discopop", "discopop_tau": -1.0},
        "temperature must be positive and finite, got -1.0",
    ),
    "discopop's temperature not taken": (
        {"discopop_tau": 1.0},
        r"dpo does not take --discopop_tau \(got 1.0\)",
    ),
    "gamma": ({"objective": "hoelder", "gamma": 0.0}, "gamma must be positive and finite, got 0.0"),
    "missing gamma": ({"objective": "hoelder"}, "hoelder needs --gamma"),
    "limit": ({"objective": "winsorised", "limit": -1.0}, "limit must be positive and finite"),
    "target": (
        {"objective": "simpo", "target_margin": -0.1},
        "target_margin must not be negative, got -0.1",
    ),
    "link": ({"link": "kl"}, "unknown --link 'kl'; there are forward_kl, jensen_shannon, alpha"),
    "link without alpha": ({"link": "alpha"}, "--link alpha needs --link_alpha"),
    "alpha without link": ({"link_alpha": 0.5}, "got --link None and --link_alpha 0.5"),
    "alpha of another link": (
        {"link": "chi", "link_alpha": 0.5},
        "no other link takes it; got --link chi",
    ),
    "link not taken": ({"objective": "nca", "link": "chi"}, "nca does not take --link"),
    "link not a number": ({"link": "alpha", "link_alpha": math.inf}, "alpha must be finite"),
    "sft weight": ({"sft_weight": -0.5}, "--sft_weight must be positive and finite, got -0.5"),
    "sft of single responses": (
        {"objective": "kto", "sft_weight": 0.5},
        "kto does not take --sft_weight .*unpaired",
    ),
    "sft under a shift": (
        {"objective": "wdpo", "rho": 0.1, "sft_weight": 0.5},
        "wdpo does not take --sft_weight .*the shift of the embeddings",
    ),
    "radius of labels": (
        {"objective": "tv_label", "label_rho": -0.1},
        "--label_rho must not be negative, got -0.1",
    ),
    "no radius of labels": ({"objective": "chi2_label"}, "chi2_label needs --label_rho"),
    "tail of sft": (
        {"sft_weight": 0.5, "ld_alpha": 0.5},
        "--sft_weight 0.5 and --ld_alpha 0.5 exclude each other",
    ),
    "tail": ({"ld_alpha": 1.5}, r"--ld_alpha is the weight of .*in \[0, 1\], got 1.5"),
    "tail of a mean": ({"objective": "ipo", "ld_alpha": 0.5}, "ipo does not take --ld_alpha"),
    "tail of singles": ({"objective": "kto", "ld_alpha": 0.5}, "kto does not take --ld_alpha"),
    "orpo alone": ({"objective": "orpo"}, "orpo needs --sft_weight"),
    "mode": ({"objective": "wdpo", "rho": 0.1, "wdpo_mode": "fd"}, "unknown --wdpo_mode 'fd'"),
    "unit": ({"objective": "wdpo", "rho": 0.1, "rho_unit": "nats"}, "unknown --rho_unit 'nats'"),
    "released squared": (
        {"objective": "wdpo", "rho": 0.1, "released": True, "squared": True},
        "--released is the exact",
    ),
    "released mode": (
        {"objective": "wdpo", "rho": 0.1, "released": True, "wdpo_mode": "adversarial"},
        "leave out --wdpo_mode adversarial",
    ),
    "squared adversary": (
        {"objective": "wdpo", "rho": 0.1, "squared": True, "wdpo_mode": "adversarial"},
        "--squared cannot be adversarial",
    ),
    "epsilon": (
        {"objective": "wdpo", "rho": 0.1, "fd_epsilon": 1e-3},
        "--fd_epsilon is for --wdpo_mode finite_difference",
    ),
    "epsilon too large": (
        {"objective": "wdpo", "rho": 0.1, "wdpo_mode": "finite_difference", "fd_epsilon": 1.0},
        r"lies in \(0, 1\), got 1.0",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_parameters(case: str) -> None:
    settings, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        make_objective(ObjectiveParameters(**settings))


def margin(s: Pairs, beta: float = 0.3) -> Tensor:
    return beta * ((s.chosen - s.reference_chosen) - (s.rejected - s.reference_rejected))


def dpo(s: Pairs) -> Tensor:
    return losses.dpo_loss(margin(s))


def of_rewards(loss: Callable[[Tensor, Tensor], Tensor], s: Pairs) -> Tensor:
    return functionals.mean(loss(0.3 * s.chosen_ratio, 0.3 * s.rejected_ratio), s.weights)


def averaged(loss: Callable[..., Tensor], s: Pairs) -> Tensor:
    lengths = s.chosen_length, s.rejected_length
    return functionals.mean(loss(s.chosen_ratio, s.rejected_ratio, 0.3, *lengths), s.weights)


def sft(s: Pairs) -> Tensor:
    """The mean over tokens, each with the weight of its pair."""
    p = torch.ones(N).double() if s.weights is None else s.weights
    return -(p * s.chosen).sum() / (p * s.chosen_length).sum()


OF_SETS: dict[str, tuple[dict[str, Any], Callable[[Pairs], Tensor]]] = {  # sets added later
    kind.facts.objective: (
        {kind.facts.option or "": example_size(kind, 0.4)},
        lambda s, kind=kind: kind.worst_value(dpo(s), example_size(kind, 0.4), s.weights),
    )
    for kind in SETS.values()
    if kind.facts.reweights and kind.facts.objective is not None
}
THEORY: dict[str, tuple[dict[str, Any], Callable[[Pairs], Tensor]]] = OF_SETS | {
    "dpo": ({}, lambda s: functionals.mean(dpo(s), s.weights)),
    "chi2_label": (  # sqrt(0.25 0.2 0.8) = 0.2: the chance of a flip reaches from 0 to 0.4
        {"label_rho": 0.25, "flip": 0.2},
        lambda s: functionals.mean(
            losses.cdpo_loss(margin(s), 0.2) + 0.2 * margin(s).abs(), s.weights
        ),
    ),
    "tv_label": (
        {"label_rho": 0.3},
        lambda s: functionals.mean(
            0.7 * dpo(s) + 0.3 * torch.maximum(dpo(s), losses.dpo_loss(-margin(s))), s.weights
        ),
    ),
    "ipo": (
        {},
        lambda s: functionals.mean(
            losses.ipo_loss(
                s.chosen_ratio, s.rejected_ratio, 0.3, s.chosen_length, s.rejected_length
            ),
            s.weights,
        ),
    ),
    "cdpo": (
        {"flip": 0.1},
        lambda s: functionals.mean(losses.cdpo_loss(margin(s), 0.1), s.weights),
    ),
    "rdpo": (
        {"flip": 0.1},
        lambda s: functionals.mean(losses.rdpo_loss(margin(s), 0.1), s.weights),
    ),
    "hinge": ({}, lambda s: functionals.mean(losses.hinge_loss(margin(s)), s.weights)),
    "dpo_norm": ({}, lambda s: averaged(losses.dpo_norm_loss, s)),
    "exo": ({"flip": 0.1}, lambda s: functionals.mean(losses.exo_loss(margin(s), 0.1), s.weights)),
    "nca": ({}, lambda s: of_rewards(losses.nca_loss, s)),
    "bco": ({}, lambda s: of_rewards(losses.bco_loss, s)),
    "sppo": (
        {},
        lambda s: functionals.mean(
            losses.sppo_loss(s.chosen_ratio, s.rejected_ratio, 0.3), s.weights
        ),
    ),
    "rebel": (
        {},
        lambda s: functionals.mean((margin(s) - s.reward_difference).square(), s.weights),
    ),
    "apo_zero": ({}, lambda s: of_rewards(losses.apo_zero_loss, s)),
    "apo_down": ({}, lambda s: of_rewards(losses.apo_down_loss, s)),
    "discopop": (
        {"discopop_tau": 0.5},
        lambda s: functionals.mean(losses.discopop_loss(margin(s), 0.5), s.weights),
    ),
    "hoelder": (
        {"gamma": 1.5},
        lambda s: functionals.mean(losses.hoelder_loss(margin(s), 1.5), s.weights),
    ),
    "winsorised": (
        {"limit": 0.7},
        lambda s: functionals.mean(losses.winsorised_loss(margin(s), 0.7), s.weights),
    ),
    "simpo": (
        {"target_margin": 0.2},
        lambda s: functionals.mean(
            losses.simpo_loss(s.chosen, s.rejected, 0.3, 0.2, s.chosen_length, s.rejected_length),
            s.weights,
        ),
    ),
    "orpo": (
        {"sft_weight": 0.5},
        lambda s: (
            functionals.mean(
                losses.orpo_loss(s.chosen, s.rejected, 0.3, s.chosen_length, s.rejected_length),
                s.weights,
            )
            + 0.5 * sft(s)
        ),
    ),
    "dr_dpo": ({"b": 0.4}, lambda s: functionals.dr_dpo(dpo(s), 0.4, s.weights)),
    "kldpo": ({"tau": 0.4}, lambda s: functionals.kl_tilt(dpo(s), 0.4, s.weights)),
    "cvar": ({"alpha": 0.4}, lambda s: functionals.cvar(dpo(s), 0.4, s.weights)),
    "chi2": ({"rho": 0.4}, lambda s: functionals.chi2_ball(dpo(s), 0.4, s.weights)),
    "tv": ({"rho": 0.4}, lambda s: functionals.total_variation_ball(dpo(s), 0.4, s.weights)),
    "wdpo": (
        {"rho": 0.4},
        lambda s: functionals.mean(dpo(s), s.weights),
    ),  # the penalty is no function of log-probabilities
    "group_dro": (
        {"group_step": 0.4},
        lambda s: functionals.mean(dpo(s), s.weights),
    ),  # see `group_value`
    "aot": (
        {},
        lambda s: functionals.aot_paired(
            s.chosen - s.rejected,
            s.reference_chosen - s.reference_rejected,
            losses.logistic,
            0.3,
            s.weights,
        ),
    ),
    "aot_unpaired": (
        {"h": "least_squares"},
        lambda s: functionals.aot_unpaired(
            s.chosen_ratio, s.rejected_ratio, losses.least_squares, 0.3, s.weights, s.weights
        ),
    ),
}


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("name", THEORY)
def test_objectives_are_those_of_the_theory(name: str, weights: bool) -> None:
    settings, truth = THEORY[name]
    made, s = (
        make_objective(ObjectiveParameters(name, beta=0.3, **settings)),
        pairs(weights=weights),
    )
    torch.testing.assert_close(made.value(s), truth(s), rtol=1e-12, atol=1e-12)
    assert "pairs" in made.kinds and made.name == name


def test_a_set_without_a_letter_of_its_own_is_sized_by_size() -> None:
    """As the guide says; and a letter that is none is told at the import."""
    code = """
import theory.sets as sets
from dataclasses import replace
from theory import CVaR
CVaR.facts = replace(CVaR.facts, option={option!r})
from llm.objectives import ObjectiveParameters, make_objective, objectives_table
print(make_objective(ObjectiveParameters("cvar", size=0.5)).name, "--size" in objectives_table())
try:
    make_objective(ObjectiveParameters("cvar", size=2.0))
except ValueError as error:
    print(error)
"""
    named = run([sys.executable, "-c", code.format(option="size")])
    assert named.stdout.startswith("cvar True\nshare must be"), named.stderr
    unknown = run([sys.executable, "-c", code.format(option="delta")])
    assert "the set cvar names the option 'delta', which `prefdro train` does not" in unknown.stderr


def test_every_objective_is_tested() -> None:
    assert {*THEORY, "kto"} == set(OBJECTIVES)


def test_quantile_weights_are_those_of_the_theory() -> None:
    s = pairs()
    policy, reference = s.chosen - s.rejected, s.reference_chosen - s.reference_rejected
    for name, spectrum in (
        ("cvar:0.3", lower_tail(0.3)),
        ("upper_cvar:0.3", upper_tail(0.3)),
        ("exponential:2", exponential(2.0)),
        ("uniform", None),
    ):
        made = make_objective(ObjectiveParameters("aot", 0.3, quantile_weights=name))
        truth = functionals.aot_paired(
            policy, reference, losses.logistic, 0.3, s.weights, spectrum=spectrum
        )
        assert torch.equal(made.value(s), truth)
    plain = make_objective(ObjectiveParameters("aot", 0.3))
    assert torch.equal(plain.value(s), made.value(s))


def test_kto() -> None:
    made, s = make_objective(ObjectiveParameters("kto", 0.3, gain=2.0, aversion=0.5)), singles()
    z = 0.3 * (s.policy - s.reference - 0.7)
    truth = torch.where(s.desirable, 2 * torch.sigmoid(-z), 0.5 * torch.sigmoid(z))
    assert s.weights is not None and made.losses is not None
    torch.testing.assert_close(made.losses(s), truth)
    torch.testing.assert_close(made.value(s), (s.weights * truth).sum())


def test_unpaired_aot_of_single_responses() -> None:
    made, s = make_objective(ObjectiveParameters("aot_unpaired", 0.3)), singles()
    assert s.weights is not None
    p, q = s.weights[s.desirable], s.weights[~s.desirable]
    truth = functionals.aot_unpaired(
        s.ratio[s.desirable],
        s.ratio[~s.desirable],
        losses.logistic,
        0.3,
        p / p.sum(),
        q / q.sum(),
    )
    torch.testing.assert_close(made.value(s), truth)
    with pytest.raises(
        ValueError, match="batch of 8 has 8 chosen ones of total weight 1 and 0 rejected ones"
    ):
        made.value(replace(s, desirable=torch.ones(8, dtype=torch.bool)))


def test_average_tokens_acts() -> None:
    s = pairs()
    averaged, summed = (
        make_objective(ObjectiveParameters("ipo", 0.3, average_tokens=x)).value(s)
        for x in (True, False)
    )
    truth = (s.weights * (s.chosen_ratio - s.rejected_ratio - 1 / 0.6) ** 2).sum()  # type: ignore[operator]
    torch.testing.assert_close(summed, truth)
    assert abs(averaged - summed) > 1


@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_a_functional_takes_any_pair_loss(loss: str) -> None:
    given, s = THEORY[loss][0], pairs()
    below = make_objective(ObjectiveParameters(loss, 0.3, **given)).losses
    made = make_objective(ObjectiveParameters("kldpo", 0.3, tau=2.0, pair_loss=loss, **given))
    assert below is not None
    truth = functionals.kl_tilt(below(s), 2.0, s.weights)
    truth += sft(s) * given.get("sft_weight", 0.0)
    torch.testing.assert_close(made.value(s), truth)


def test_links() -> None:
    """Of chi-PO, which is the winsorised loss with the chi link, and of a mean over tokens."""
    s = pairs()
    u, v = (0.3 * (x.exp() + x) for x in (s.chosen_ratio, s.rejected_ratio))
    truth = functionals.mean(losses.dpo_loss((u - v).clamp(-0.8, 0.8)), s.weights)
    made = make_objective(ObjectiveParameters("winsorised", 0.3, limit=0.8, link="chi"))
    torch.testing.assert_close(made.value(s), truth)
    u, v = (1 - (-x).exp() for x in (s.chosen_ratio, s.rejected_ratio))
    truth = functionals.mean(
        losses.ipo_loss(u, v, 0.3, s.chosen_length, s.rejected_length), s.weights
    )
    made = make_objective(ObjectiveParameters("ipo", 0.3, link="forward_kl"))
    torch.testing.assert_close(made.value(s), truth)
    made = make_objective(ObjectiveParameters("dpo", 0.3, link="alpha", link_alpha=1.0))
    torch.testing.assert_close(made.value(s), functionals.mean(dpo(s), s.weights))


def test_group_value() -> None:
    """Means 1, 3 and an absent third group; q ∝ (1/4, 1/4, 1/2) exp(step mean)."""
    losses, groups = torch.tensor([0.5, 1.5, 3.0]).double(), torch.tensor([0, 0, 1])
    value, weights = group_value(
        losses, groups, torch.tensor([0.25, 0.25, 0.5]).double(), 0.1, None
    )
    q = np.array([0.25 * math.exp(0.1), 0.25 * math.exp(0.3), 0.5])
    q /= q.sum()
    np.testing.assert_allclose(weights.numpy(), q)
    assert value.item() == pytest.approx(q[0] * 1 + q[1] * 3)


@pytest.mark.parametrize("name", ["dpo", "kldpo", "aot_unpaired"])
def test_an_added_sft_term(name: str) -> None:
    settings, truth = THEORY[name]
    for weights in (True, False):
        s = pairs(weights=weights)
        made = make_objective(ObjectiveParameters(name, 0.3, sft_weight=0.7, **settings))
        torch.testing.assert_close(made.value(s), truth(s) + 0.7 * sft(s))
        assert made.kinds == ("pairs",)
        parts = part_values(made, s, made.value(s))
        assert parts[f"loss/{name}"].item() == pytest.approx(float(truth(s)))
        assert parts["loss/sft"].item() == pytest.approx(float(sft(s)))


# -------------------------------------------------------------------------------------- derivatives
@pytest.mark.parametrize("name", ["kldpo", "dr_dpo", "cvar", "chi2", "tv", "aot", "aot_unpaired"])
def test_coefficients_are_derivatives(name: str) -> None:
    """Against central differences of the value, from scores in float32."""
    s = pairs()
    single = Pairs(
        *(x.float() if x is not None and x.is_floating_point() else x for x in vars(s).values())
    )
    made = make_objective(ObjectiveParameters(name, beta=0.3, **THEORY[name][0]))
    value, derivatives = coefficients(made.value, single)
    assert value.dtype == torch.float64 and isinstance(derivatives, Pairs)
    double = widened(single)
    for side in ("chosen", "rejected"):
        for i in range(N):
            ends = []
            for step in (1e-5, -1e-5):
                moved = getattr(double, side).clone()
                moved[i] += step
                ends.append(float(made.value(replace(double, **{side: moved}))))
            assert float(getattr(derivatives, side)[i]) == pytest.approx(
                (ends[0] - ends[1]) / 2e-5, abs=1e-7
            )


# --------------------------------------------------------------------------------------- worst case
def test_the_worst_case_of_a_tilt_is_a_softmax() -> None:
    losses = torch.tensor([0.2, 1.0, 0.6]).double()
    q = worst_case_weights(lambda x: functionals.kl_tilt(x, 0.5), losses)
    e = np.exp(losses.numpy() / 0.5)
    np.testing.assert_allclose(q.numpy(), e / e.sum())
    q = worst_case_weights(lambda x: functionals.dr_dpo(x, 0.5), losses)
    np.testing.assert_allclose(q.numpy(), (1 / e) / (1 / e).sum())


def with_losses(losses: list[float], weights: list[float] | None = None) -> Pairs:
    """Pairs whose DPO losses at beta = 1 are these."""
    margins = -torch.tensor(losses).double().expm1().log()
    zero, one = torch.zeros_like(margins), torch.ones_like(margins)
    return Pairs(
        margins,
        zero,
        zero,
        zero,
        one,
        one,
        None if weights is None else torch.tensor(weights).double(),
    )


def test_metrics_of_cvar_by_hand() -> None:
    """alpha = 2/5 of five pairs: the two worst weigh half each, the dual variable is the next loss
    or any up to the second."""
    made = make_objective(ObjectiveParameters("cvar", beta=1.0, alpha=0.4))
    found = worst_case_metrics(made, with_losses([0.3, 2.0, 1.0, 0.5, 1.5]))
    assert found["worst_case/effective_sample_size"] == pytest.approx(2)
    assert found["worst_case/largest_weight"] == pytest.approx(0.5)
    assert 1.0 - 1e-9 <= found["worst_case/dual"] <= 1.5 + 1e-9
    found = worst_case_metrics(made, with_losses([0.3, 2.0, 1.0], [0.5, 0.1, 0.4]))  # 1/4 and 3/4
    assert found["worst_case/effective_sample_size"] == pytest.approx(1 / (1 / 16 + 9 / 16))
    assert found["worst_case/largest_weight"] == pytest.approx(0.75)


def test_metrics_of_a_kl_ball() -> None:
    """The dual variable is the temperature of the tilt, and both objectives have the same weights
    there."""
    s = with_losses([0.3, 2.0, 1.0, 0.5, 1.5])
    ball = worst_case_metrics(make_objective(ObjectiveParameters("kldpo", beta=1.0, rho=0.2)), s)
    tau = ball.pop("worst_case/dual")
    tilt = worst_case_metrics(make_objective(ObjectiveParameters("kldpo", beta=1.0, tau=tau)), s)
    assert ball == pytest.approx(tilt, rel=1e-6)
    q = np.exp(np.array([0.3, 2.0, 1.0, 0.5, 1.5]) / tau)
    q /= q.sum()
    assert (q * np.log(5 * q)).sum() == pytest.approx(0.2, rel=1e-6)
    assert tilt["worst_case/effective_sample_size"] == pytest.approx(1 / (q**2).sum())


def test_metrics_of_the_other_balls_by_hand() -> None:
    s = with_losses([1.0, 2.0, 3.0, 4.0])
    tv = worst_case_metrics(
        make_objective(ObjectiveParameters("tv", beta=1.0, rho=0.25)), s
    )  # 0, 1/4, 1/4, 1/2
    assert tv["worst_case/effective_sample_size"] == pytest.approx(1 / (2 / 16 + 1 / 4))
    assert tv["worst_case/largest_weight"] == pytest.approx(0.5)
    chi2 = worst_case_metrics(make_objective(ObjectiveParameters("chi2", beta=1.0, rho=0.04)), s)
    q = 0.25 * (
        1 + 0.2 * (np.array([1, 2, 3, 4]) - 2.5) / math.sqrt(1.25)
    )  # no weight vanishes: linear in the loss
    assert chi2["worst_case/effective_sample_size"] == pytest.approx(1 / (q**2).sum())
    assert chi2["worst_case/largest_weight"] == pytest.approx(q.max())


def test_no_worst_case_metrics_without_a_functional() -> None:
    for name in ("dpo", "aot", "group_dro"):
        made = make_objective(ObjectiveParameters(name, **THEORY[name][0]))
        assert worst_case_metrics(made, pairs()) == {}


def test_released_weights_are_not_normalised() -> None:
    """Effective sample size and largest weight do not change with the scale of the weights."""
    q = torch.tensor([0.5, 0.25, 0.25])
    assert weight_metrics(7 * q, None) == pytest.approx(weight_metrics(q, None))
    assert weight_metrics(q, None)["worst_case/effective_sample_size"] == pytest.approx(1 / 0.375)


# ------------------------------------------------------------------------------------------ rewards
def test_reward_metrics_of_a_step_that_overflowed_are_nan() -> None:
    zero = torch.zeros(3)
    found = reward_metrics(
        Pairs(torch.tensor([1.0, torch.nan, 3.0]), zero, zero, zero, zero + 1, zero + 1), beta=1.0
    )
    assert np.isnan(found["dominance_violation"]) and np.isnan(found["rewards/chosen_q50"])
    assert found["rewards/rejected_q50"] == 0


def test_reward_metrics_by_hand() -> None:
    zero, one = torch.zeros(3).double(), torch.ones(3).double()
    s = Pairs(
        torch.tensor([1.0, 2.0, 3.0]).double(),
        torch.tensor([2.0, 0.0, 1.0]).double(),
        zero,
        one,
        one,
        one,
    )
    found = reward_metrics(s, beta=2.0)  # chosen 2, 4, 6; rejected 2, -2, 0
    assert found["rewards/chosen"] == pytest.approx(4) and found[
        "rewards/rejected"
    ] == pytest.approx(0)
    assert found["rewards/margins"] == pytest.approx(4)
    assert found["rewards/accuracies"] == pytest.approx(2 / 3)  # a tie is no success
    assert found["logps/chosen"] == pytest.approx(2) and found["logps/rejected"] == pytest.approx(1)
    assert (
        found["rewards/chosen_q10"],
        found["rewards/chosen_q50"],
        found["rewards/chosen_q90"],
    ) == (2, 4, 6)
    assert found["dominance_violation"] == 0
    swapped = reward_metrics(Pairs(s.rejected, s.chosen, one, zero, one, one), beta=2.0)
    assert swapped["dominance_violation"] == pytest.approx(
        4
    )  # 2-(-2), 4-0 and 6-2, each for a third
    single = Singles(
        torch.tensor([1.0, 2.0, 4.0]).double(), zero, torch.tensor([True, False, True])
    )
    assert reward_metrics(single, beta=2.0)["rewards/margins"] == pytest.approx(1)
    alone = reward_metrics(Singles(single.policy, zero, torch.tensor([True] * 3)), beta=2.0)
    assert "rewards/margins" not in alone and alone["rewards/chosen"] == pytest.approx(14 / 3)


def test_every_set_with_an_option_is_an_objective_of_the_trainer() -> None:
    """Its value is the worst case of the same set, its dual the multiplier of the same ball."""
    losses = torch.linspace(0.1, 2, 7, dtype=torch.float64)
    for name, kind in SETS.items():
        facts = kind.facts
        if not facts.reweights or facts.objective is None or facts.option is None:
            continue
        size = example_size(kind, 0.4)
        made = make_objective(ObjectiveParameters(facts.objective, **{facts.option: size}))
        assert made.functional is not None, name
        assert made.functional(losses, None).item() == kind.worst_value(losses, size).item()
        assert SPECS[facts.objective].step == "coupled"
        assert (made.dual is None) == (facts.dual is None)
