"""AOT and the losses that users compare with: formulas, linear programs, and TRL's own loss code on
the same numbers."""

import math
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize_scalar
from torch import Tensor

from tests.jitter import order
from theory.functionals import (
    aot_paired,
    aot_second_order,
    aot_unpaired,
    chi2_ball,
    cvar,
    group_dro,
    group_weights_step,
    kto_reference_point,
    mean,
    total_variation_ball,
    worst_group,
)
from theory.losses import (
    cdpo_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    least_squares,
    logistic,
    rdpo_loss,
    rebel_loss,
    squared_hinge,
)
from theory.transport import soft_sort

quick = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

BALLS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "chi2": lambda l, p=None: chi2_ball(l, 0.4, p),
    "chi2 large": lambda l, p=None: chi2_ball(l, 3.0, p),
    "tv": lambda l, p=None: total_variation_ball(l, 0.3, p),
    "cvar": lambda l, p=None: cvar(l, 0.35, p),
}


def sample(seed: int, n: int = 6) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    losses, p, k = rng.exponential(size=n) + 0.1, rng.dirichlet(np.ones(n)), order(n)
    return torch.from_numpy(losses[k]), torch.from_numpy(p[k])


def ratios(seed: int, n: int = 7, m: int = 7) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(0.4, 2, n)), torch.from_numpy(rng.normal(0, 2, m))


# ---------------------------------------------------------------------------------------------- AOT
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_aot_is_the_mean_of_h_after_sorting(beta: float) -> None:
    u, v = ratios(0)
    t = np.sort(u) - np.sort(v)
    assert aot_unpaired(u, v, logistic, beta).item() == pytest.approx(
        np.logaddexp(0, -beta * t).mean(), rel=1e-14
    )
    assert aot_unpaired(u, v, squared_hinge, beta).item() == pytest.approx(
        (np.maximum(beta - t, 0) ** 2).mean(), rel=1e-14
    )
    assert aot_paired(u, v, least_squares, beta).item() == pytest.approx(
        ((beta - t) ** 2).mean(), rel=1e-14
    )
    assert aot_paired(u, v, lambda t, b: (b * t).exp(), beta).item() == pytest.approx(
        np.exp(beta * t).mean(), rel=1e-14
    )


@given(seed=seeds)
@quick
def test_aot_of_unequal_weighted_samples_against_the_linear_program(seed: int) -> None:
    u, v = ratios(seed, 5, 8)
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(8))
    rows, columns = np.kron(np.eye(5), np.ones(8)), np.kron(np.ones(5), np.eye(8))
    for h in (logistic, squared_hinge, least_squares):
        price = h(u[:, None] - v, 0.7).numpy().ravel()
        truth = linprog(price, A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([p, q])).fun
        value = aot_unpaired(u, v, h, 0.7, torch.from_numpy(p), torch.from_numpy(q))
        assert value.item() == pytest.approx(truth, abs=1e-9)


def test_paired_weights_belong_to_both_sides() -> None:
    u, v = ratios(1)
    p = sample(1, 7)[1]
    assert aot_paired(u, v, logistic, 1.0, p) == aot_unpaired(u, v, logistic, 1.0, p, p)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        aot_paired(u[order], v[order], logistic, 1.0, p[order]), aot_paired(u, v, logistic, 1.0, p)
    )


def test_aot_of_one_pair_is_dpo() -> None:
    u, v = ratios(2, 20, 20)
    torch.testing.assert_close(
        aot_unpaired(u[:, None], v[:, None], logistic, 0.3), dpo_loss(0.3 * (u - v))
    )


@pytest.mark.parametrize("h", [logistic, squared_hinge, least_squares])
@pytest.mark.parametrize("functional", [aot_unpaired, aot_second_order])
def test_aot_gradcheck(functional: Callable[..., Tensor], h: Callable[..., Tensor]) -> None:
    u, v = (x.requires_grad_() for x in ratios(3, 5, 4))
    p = sample(3, 5)[1]
    assert torch.autograd.gradcheck(lambda u, v: functional(u, v, h, 0.8, p), (u, v))
    assert torch.autograd.gradcheck(lambda u, v: functional(u, v, h, 0.8, softness=0.5), (u, v))


def test_second_order_closed_forms_against_quadrature() -> None:
    """A h that the functional does not know is integrated by quadrature, which is exact for the
    same polynomial."""
    u, v = ratios(4, 5, 6)
    p, q = sample(4, 5)[1], sample(5, 6)[1]
    known = aot_second_order(u, v, least_squares, 0.3, p, q)
    torch.testing.assert_close(known, aot_second_order(u, v, lambda t, b: (b - t) ** 2, 0.3, p, q))
    far = 50.0  # no kink of the hinge is near
    known = aot_second_order(u, v, squared_hinge, far, p, q)
    torch.testing.assert_close(known, aot_second_order(u, v, lambda t, b: (b - t) ** 2, far, p, q))


def test_second_order_by_hand() -> None:
    """U = 1, V = -1: D(t) = 2t; ∫ (1-2t)_+² = 1/6, ∫ (1-2t)² = 1/3, ∫ log(1+exp(-2t)) by Simpson's
    rule on a fine grid."""
    u, v = torch.ones(1).double(), -torch.ones(1).double()
    assert aot_second_order(u, v, squared_hinge, 1.0).item() == pytest.approx(1 / 6, rel=1e-14)
    assert aot_second_order(u, v, least_squares, 1.0).item() == pytest.approx(1 / 3, rel=1e-14)
    y = np.logaddexp(0, -2 * np.linspace(0, 1, 2001))
    simpson = (y[0] + 4 * y[1::2].sum() + 2 * y[2:-1:2].sum() + y[-1]) / 6000
    assert aot_second_order(u, v, logistic, 1.0).item() == pytest.approx(simpson, rel=1e-12)


def test_softness_replaces_the_sort() -> None:
    u, v = ratios(6)
    value = aot_unpaired(u, v, logistic, 1.0, softness=2.0)
    torch.testing.assert_close(value, logistic(soft_sort(u, 2.0) - soft_sort(v, 2.0), 1.0).mean())
    assert value < aot_unpaired(u, v, logistic, 1.0)  # flattened samples: Jensen
    torch.testing.assert_close(
        aot_unpaired(u, v, logistic, 1.0, softness=1e-3), aot_unpaired(u, v, logistic, 1.0)
    )
    with pytest.raises(ValueError, match="equal weights only"):
        aot_unpaired(u, v, logistic, 1.0, sample(0, 7)[1], softness=1.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_aot_in_low_precision(dtype: torch.dtype, device: str) -> None:
    u, v = ratios(7, 64, 48)
    for functional in (aot_unpaired, aot_second_order):
        low = functional(u.to(device, dtype), v.to(device, dtype), logistic, 0.5)
        assert low.dtype == dtype and low.device.type == device
        assert low.item() == pytest.approx(
            functional(u, v, logistic, 0.5).item(), rel=3e-2 if dtype == torch.bfloat16 else 1e-5
        )


# -------------------------------------------------------------------------------------- pair losses
def test_pair_losses_by_hand() -> None:
    m = torch.tensor([-2.0, 0.0, 0.5, 3.0]).double()
    l = np.logaddexp(0, -m.numpy())
    flipped = np.logaddexp(0, m.numpy())
    np.testing.assert_allclose(hinge_loss(m).numpy(), [3, 1, 0.5, 0])
    np.testing.assert_allclose(cdpo_loss(m, 0.2).numpy(), 0.8 * l + 0.2 * flipped)
    np.testing.assert_allclose(rdpo_loss(m, 0.2).numpy(), (0.8 * l - 0.2 * flipped) / 0.6)
    for loss in (cdpo_loss, rdpo_loss):
        np.testing.assert_allclose(loss(m, 0).numpy(), l)
        with pytest.raises(ValueError, match=r"flip rate must be in \[0, 1/2\), got 0.5"):
            loss(m, 0.5)
    np.testing.assert_allclose(rebel_loss(m, torch.ones(4).double(), 0.5).numpy(), [25, 1, 0, 25])
    np.testing.assert_allclose(ipo_loss(m, torch.zeros(4).double(), 0.25).numpy(), [16, 4, 2.25, 1])


@given(st.floats(-20, 20), st.floats(0, 0.49))
@quick
def test_rdpo_is_unbiased_under_flips(m: float, flip: float) -> None:
    margin = torch.tensor(m).double()
    noisy = (1 - flip) * rdpo_loss(margin, flip) + flip * rdpo_loss(-margin, flip)
    assert noisy.item() == pytest.approx(dpo_loss(margin).item(), rel=1e-8, abs=1e-12)


def test_ipo_sums_or_averages_tokens() -> None:
    chosen, rejected = ratios(8)
    long, short = torch.arange(3, 10), torch.arange(9, 2, -1)
    by_sum = (chosen - rejected - 5) ** 2
    by_average = (chosen / long - rejected / short - 5) ** 2
    torch.testing.assert_close(ipo_loss(chosen, rejected, 0.1), by_sum)
    torch.testing.assert_close(ipo_loss(chosen, rejected, 0.1, long, short), by_average)
    with pytest.raises(ValueError, match="lengths of both responses"):
        ipo_loss(chosen, rejected, 0.1, long)


def test_kto_by_hand() -> None:
    """lambda - v: at r = z0 half of lambda is lost; far on the right side nothing, far on the wrong
    side all of it."""
    ratio = torch.tensor([1.0, 1.0, 60.0, 60.0, -40.0, 3.0]).double()
    desirable = torch.tensor([True, False, True, False, True, False])
    loss = kto_loss(ratio, desirable, torch.tensor(1.0).double(), beta=0.5, gain=2.0, aversion=3.0)
    sigma = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    truth = [1.0, 1.5, 2 * sigma(-29.5), 3 * sigma(29.5), 2 * sigma(20.5), 3 - 3 * sigma(-1)]
    np.testing.assert_allclose(loss.numpy(), truth, rtol=1e-12)


def test_kto_reference_point_is_clamped_and_without_gradient() -> None:
    ratio = torch.tensor([[1.0, 3.0], [-4.0, 1.0]], requires_grad=True)
    z0 = kto_reference_point(ratio)
    assert z0.tolist() == [2.0, 0.0] and not z0.requires_grad


# -------------------------------------------------------------------------------------------- balls
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", BALLS)
def test_balls_against_convex_programs(name: str, seed: int) -> None:
    losses, p = sample(seed)
    base = p.numpy()
    q = cp.Variable(6, nonneg=True)
    constraint = {
        "chi2": lambda: cp.sum(cp.square(q - base) / base) <= 0.4,
        "chi2 large": lambda: cp.sum(cp.square(q - base) / base) <= 3.0,
        "tv": lambda: cp.norm1(q - base) / 2 <= 0.3,
        "cvar": lambda: q <= base / 0.35,
    }[name]()
    problem = cp.Problem(cp.Maximize(losses.numpy() @ q), [cp.sum(q) == 1, constraint])
    problem.solve(solver="CLARABEL")
    losses.requires_grad_()
    value = BALLS[name](losses, p)
    (gradient,) = torch.autograd.grad(value, losses)
    assert value.item() == pytest.approx(problem.value, abs=1e-6)
    np.testing.assert_allclose(
        gradient.numpy(), q.value, atol=1e-4
    )  # envelope: the gradient is the worst case


@pytest.mark.parametrize("name", BALLS)
@given(seed=seeds, shift=st.floats(-50, 50))
@quick
def test_ball_invariances(name: str, seed: int, shift: float) -> None:
    losses, p = sample(seed)
    ball, value = BALLS[name], BALLS[name](losses, p)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(6))
    torch.testing.assert_close(ball(losses[order], p[order]), value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ball(losses + shift, p), value + shift, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ball(2 * losses, p), 2 * value, rtol=1e-10, atol=1e-10)
    assert mean(losses, p) - 1e-12 <= value <= losses.max() + 1e-12


@pytest.mark.parametrize("name", BALLS)
def test_balls_batch_repeat_pad_and_differentiate(name: str) -> None:
    ball = BALLS[name]
    losses, p = torch.stack([sample(s)[0] for s in range(6)]).reshape(3, 2, 6), sample(8)[1]
    for weights in (None, p):
        rows = torch.stack([ball(row, weights) for row in losses.reshape(6, 6)]).reshape(3, 2)
        torch.testing.assert_close(ball(losses, weights), rows)
    once, thrice = torch.tensor([0.3, 1.7]).double(), torch.tensor([0.3, 0.3, 1.7]).double()
    torch.testing.assert_close(
        ball(once, torch.tensor([2 / 3, 1 / 3]).double()), ball(thrice, None)
    )
    for far in (5e3, -5e3):
        padded = torch.cat([once, torch.tensor([far]).double()]).requires_grad_()
        value = ball(padded, torch.tensor([2 / 3, 1 / 3, 0]).double())
        torch.testing.assert_close(value.detach(), ball(thrice, None))
        assert torch.autograd.grad(value, padded)[0][-1] == 0
    assert torch.autograd.gradcheck(
        lambda l: ball(l, p), losses[0].clone().requires_grad_(), atol=1e-6
    )
    assert ball(losses.float(), p.float()).dtype == torch.float32


def test_ball_extremes_and_bad_radii() -> None:
    losses, p = sample(9)
    for ball in (chi2_ball, total_variation_ball):
        assert ball(losses, 0.0, p).item() == pytest.approx(mean(losses, p).item(), rel=1e-12)
        assert ball(losses, 1e6, p).item() == pytest.approx(losses.max().item(), rel=1e-12)
        with pytest.raises(ValueError, match="rho must not be negative, got -1"):
            ball(losses, -1.0, p)
    assert cvar(losses, 1.0, p).item() == pytest.approx(mean(losses, p).item(), rel=1e-12)
    assert cvar(losses, 1e-9, p).item() == pytest.approx(losses.max().item(), rel=1e-12)
    assert cvar(losses, 0.5).item() == pytest.approx(
        losses.sort().values[3:].mean().item(), rel=1e-12
    )
    with pytest.raises(ValueError, match="alpha"):
        cvar(losses, 0.0, p)


@pytest.mark.parametrize("rho", [0.05, 0.3, 0.49, 1.0])
def test_the_chi_squared_dual_of_dro_rebel_needs_one_plus_two_rho(rho: float) -> None:
    """DRO-REBEL (arXiv:2509.19104) writes the ball as (1/2) sum (q-p)²/p <= rho, which is
    `chi2_ball` at 2 rho.

    Its dual is min_eta eta + sqrt(1 + 2 rho) sqrt(E (l - eta)_+²). With sqrt(2 rho) instead the
    function of eta has the slope 1 - sqrt(2 rho) at -infinity: unbounded below for rho < 1/2.
    """
    losses, p = sample(10)

    def dual(eta: float, factor: float) -> float:
        return float(eta + math.sqrt(factor) * ((p * torch.relu(losses - eta) ** 2).sum()).sqrt())

    right = minimize_scalar(
        lambda eta: dual(eta, 1 + 2 * rho),
        bounds=(-100, float(losses.max())),
        options={"xatol": 1e-12},
    ).fun
    assert chi2_ball(losses, 2 * rho, p).item() == pytest.approx(right, rel=1e-8)
    far = [dual(eta, 2 * rho) for eta in (-1e2, -1e4, -1e6)]
    assert (far[0] > far[1] > far[2] and far[2] < -5e3) == (rho < 0.5)


# ---------------------------------------------------------------------------------------- group DRO
def test_group_dro() -> None:
    losses = torch.tensor([[1.0, 3.0, 5.0, 2.0], [4.0, 4.0, 0.0, 0.0]]).double().requires_grad_()
    groups = torch.tensor([0, 0, 1, 3])  # group 2 does not occur
    p = torch.tensor([0.4, 0.1, 0.3, 0.2]).double()
    assert worst_group(losses, groups, 4).tolist() == [5.0, 4.0]
    assert worst_group(losses, groups, 4, p).tolist() == pytest.approx([5.0, 4.0])
    q = torch.tensor([0.25, 0.25, 0.3, 0.2]).double()
    value = group_dro(losses, groups, q, p)
    np.testing.assert_allclose(value.tolist(), [0.25 * 1.4 + 0.25 * 5 + 0.2 * 2, 0.25 * 4])
    (gradient,) = torch.autograd.grad(value[0], losses)
    np.testing.assert_allclose(gradient[0].numpy(), [0.25 * 0.8, 0.25 * 0.2, 0.25, 0.2])
    stepped = group_weights_step(losses[0], groups, q, 0.5)
    truth = q.numpy() * np.exp(0.5 * np.array([2.0, 5.0, 0.0, 2.0]))
    np.testing.assert_allclose(stepped.numpy(), truth / truth.sum())
    assert not stepped.requires_grad


def test_the_exponentiated_gradient_finds_the_worst_group() -> None:
    losses, groups = sample(11, 30)[0], torch.arange(30) % 3
    q = torch.full((3,), 1 / 3).double()
    for _ in range(2000):
        q = group_weights_step(losses, groups, q, 0.1)
    assert group_dro(losses, groups, q).item() == pytest.approx(
        worst_group(losses, groups, 3).item(), rel=1e-6
    )


def test_a_negative_loss_does_not_lose_to_an_absent_group() -> None:
    losses = torch.tensor([-2.0, -3.0])
    assert worst_group(losses, torch.tensor([0, 0]), 2).item() == -2.5


# ---------------------------------------------------------------------------------------------- TRL
@pytest.fixture(scope="module")
def pairs() -> dict[str, Any]:
    """Token log-probabilities of 6 pairs with completions of different lengths, under policy and
    reference."""
    rng = np.random.default_rng(12)
    mask = (torch.arange(10)[None] >= 3) & (
        torch.arange(10)[None] < torch.from_numpy(rng.integers(5, 11, (12, 1)))
    )
    policy, reference = (
        torch.from_numpy(-rng.exponential(1.0, (12, 9))) * mask[:, 1:] for _ in range(2)
    )
    return {"mask": mask.long(), "policy": policy, "reference": reference}


def stub_model(log_probs: Tensor) -> Any:
    zeros = torch.zeros_like(log_probs)
    output = SimpleNamespace(
        log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
    )
    return type("Model", (), {"training": True, "__call__": lambda self, **inputs: output})()


def stub_trainer(**settings: Any) -> Any:
    same = lambda x: x  # noqa: E731
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=same, gather=same)
    common = {
        "accelerator": accelerator,
        "aux_loss_enabled": False,
        "precompute_ref_logps": True,
        "_tp_size": 1,
    }
    return SimpleNamespace(
        **common, _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, **settings
    )


def trl_loss(
    pairs: dict[str, Any],
    loss_type: str,
    beta: float,
    smoothing: float,
    rows: Tensor,
    **settings: Any,
) -> Tensor:
    """What TRL's DPO trainer computes from these log-probabilities, its model and machinery
    replaced by stubs; settings: of its configuration."""
    trainer = pytest.importorskip("trl").DPOTrainer
    if not hasattr(trainer, "_compute_loss"):
        pytest.skip("this version of TRL has no DPOTrainer._compute_loss")
    both = torch.cat([rows, rows + 6])
    model = stub_model(pairs["policy"][both])
    reference = pairs["reference"].sum(1)
    inputs = {
        "input_ids": torch.ones_like(pairs["mask"][both]),
        "attention_mask": torch.ones_like(pairs["mask"][both]),
        "completion_mask": pairs["mask"][both],
        "ref_chosen_logps": reference[rows],
        "ref_rejected_logps": reference[rows + 6],
    }
    common = {
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "loss_types": [loss_type],
        "loss_weights": [1.0],
        "beta": beta,
        "label_smoothing": smoothing,
        "use_weighting": False,
        "args": SimpleNamespace(discopop_tau=0.05),
    }
    stub = stub_trainer(model=model, **(common | settings))
    return trainer._compute_loss(stub, model, inputs, False)


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_against_trl(pairs: dict[str, Any], beta: float) -> None:
    policy, reference = pairs["policy"].sum(1), pairs["reference"].sum(1)
    chosen, rejected = (policy - reference)[:6], (policy - reference)[6:]
    length = pairs["mask"].sum(1)
    margin = beta * (chosen - rejected)
    eps = 0.15

    def smooth(t: Tensor, beta: float) -> Tensor:
        return cdpo_loss(beta * t, eps)

    between, before = policy[:6] - policy[6:], reference[:6] - reference[6:]
    ours = {
        ("sigmoid", 0.0): dpo_loss(margin).mean(),
        ("hinge", 0.0): hinge_loss(margin).mean(),
        ("ipo", 0.0): ipo_loss(chosen, rejected, beta, length[:6], length[6:]).mean(),
        ("robust", eps): rdpo_loss(margin, eps).mean(),
        ("aot_unpaired", 0.0): aot_unpaired(chosen, rejected, logistic, beta),
        ("aot_unpaired", eps): aot_unpaired(chosen, rejected, smooth, beta),
        ("aot", 0.0): aot_paired(between, before, logistic, beta),
        ("aot", eps): aot_paired(between, before, smooth, beta),
    }
    everything = torch.arange(6)
    for (loss_type, smoothing), value in ours.items():
        theirs = trl_loss(pairs, loss_type, beta, smoothing, everything)
        assert value.item() == pytest.approx(theirs.item(), rel=1e-12), loss_type
    assert len({round(value.item(), 9) for value in ours.values()}) == len(
        ours
    )  # no two of them agree by accident
    for i in range(6):  # a batch of one pair has nothing to sort: AOT with label smoothing is cDPO
        theirs = trl_loss(pairs, "aot_unpaired", beta, eps, torch.tensor([i]))
        assert cdpo_loss(margin[i], eps).item() == pytest.approx(theirs.item(), rel=1e-12)


def test_gradients_against_trl(pairs: dict[str, Any]) -> None:
    tokens = pairs["policy"].clone().requires_grad_()
    theirs = torch.autograd.grad(
        trl_loss(pairs | {"policy": tokens}, "aot_unpaired", 0.3, 0.0, torch.arange(6)), tokens
    )[0]
    ratio = tokens.sum(1) - pairs["reference"].sum(1)
    ours = torch.autograd.grad(aot_unpaired(ratio[:6], ratio[6:], logistic, 0.3), tokens)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("drift", [-4.0, 4.0])
def test_kto_against_trl(pairs: dict[str, Any], drift: float) -> None:
    """With a drift down the estimate of the KL is negative and clamped."""
    trainer = pytest.importorskip("trl").KTOTrainer
    if not hasattr(trainer, "_compute_loss"):
        pytest.skip("this version of TRL has no KTOTrainer._compute_loss")
    desirable = torch.tensor(
        [True, False, True, True, False, False, True, False, True, False, True, True]
    )
    policy, reference = pairs["policy"].sum(1), pairs["reference"].sum(1)
    mismatched = reference.roll(1) + drift + torch.linspace(-1, 1, 12)
    model = stub_model(pairs["policy"])
    stub = stub_trainer(
        model=model,
        calculate_KL=True,
        loss_type="kto",
        beta=0.2,
        desirable_weight=1.3,
        undesirable_weight=0.8,
        _compute_kl_logps=lambda model, batch: mismatched,
    )
    inputs = {
        "input_ids": torch.ones_like(pairs["mask"]),
        "attention_mask": torch.ones_like(pairs["mask"]),
        "completion_mask": pairs["mask"],
        "label": desirable,
        "ref_logps": reference,
        "ref_KL_logps": reference.roll(1),
    }
    theirs = trainer._compute_loss(stub, model, inputs, False)
    z0 = kto_reference_point(mismatched - reference.roll(1))
    assert (z0 == 0) == (drift < 0)
    ours = kto_loss(policy - reference, desirable, z0, beta=0.2, gain=1.3, aversion=0.8).mean()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
