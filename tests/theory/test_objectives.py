"""Pair losses and functionals against their formulas in high precision, and the invariances that
every functional must have."""

import math
from collections.abc import Callable

import cvxpy as cp
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor

from tests.jitter import order
from theory.functionals import dr_dpo, gradient_norm, kl_ball, kl_tilt, mean, tilt_weights
from theory.losses import dpo_loss

quick = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

Functional = Callable[[Tensor, Tensor | None], Tensor]
SHIFTING: dict[str, Functional] = {  # f(l + c) = f(l) + c
    "mean": mean,
    "kl_tilt": lambda l, p=None: kl_tilt(l, 0.4, p),
    "kl_ball": lambda l, p=None: kl_ball(l, 0.3, p),
    "dr_dpo": lambda l, p=None: dr_dpo(l, 0.7, p),
}
ALL: dict[str, Functional] = SHIFTING | {
    "released": lambda l, p=None: kl_tilt(l, 0.4, p, released=True),
    "gradient_norm": gradient_norm,
    "gradient_norm_squared": lambda l, p=None: gradient_norm(l, p, squared=True),
}


def sample(seed: int, n: int = 6) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    losses, p, k = rng.exponential(size=n) + 0.1, rng.dirichlet(np.ones(n)), order(n)
    return torch.from_numpy(losses[k]), torch.from_numpy(p[k])


def naive_tilt(losses: Tensor, tau: float, p: Tensor) -> mpmath.mpf:
    """tau log sum p exp(l/tau) with 60 digits and an exponent range without overflow."""
    with mpmath.workdps(60):
        terms = [
            mpmath.mpf(q) * mpmath.exp(mpmath.mpf(l) / tau)
            for l, q in zip(losses.tolist(), p.tolist(), strict=True)
        ]
        return mpmath.mpf(tau) * mpmath.log(mpmath.fsum(terms))


# ---------------------------------------------------------------------------------------- pair loss
@pytest.mark.parametrize("margin", [-800.0, -30.0, -1.0, 0.0, 1e-9, 2.5, 40.0, 600.0])
def test_dpo_loss_is_log_one_plus_exp(margin: float) -> None:
    with mpmath.workdps(400):
        truth = float(mpmath.log(1 + mpmath.exp(-mpmath.mpf(margin))))
    assert dpo_loss(torch.tensor(margin, dtype=torch.float64)).item() == pytest.approx(
        truth, rel=1e-14
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_dpo_loss_does_not_overflow(dtype: torch.dtype) -> None:
    margin = torch.tensor([-3e4, -100.0, 0.0, 100.0, 3e4], dtype=dtype, requires_grad=True)
    loss = dpo_loss(margin)
    loss.sum().backward()
    assert loss.dtype == dtype
    rtol = 8 * torch.finfo(dtype).eps  # a few roundings
    truth = torch.tensor([3e4, 100, math.log(2), 0, 0], dtype=torch.float64)
    torch.testing.assert_close(loss.double(), truth, rtol=rtol, atol=1e-6)
    torch.testing.assert_close(
        margin.grad.double(), torch.tensor([-1, -1, -0.5, 0, 0]).double(), rtol=rtol, atol=1e-6
    )


# ----------------------------------------------------------------------------------------- formulas
@given(seeds, st.floats(1e-2, 1e2))
@quick
def test_kl_tilt_is_the_tilted_risk(seed: int, tau: float) -> None:
    losses, p = sample(seed)
    assert kl_tilt(losses, tau, p).item() == pytest.approx(
        float(naive_tilt(losses, tau, p)), rel=1e-12
    )


@given(seeds, st.floats(5e-2, 50))
@quick
def test_kl_tilt_gradient_is_the_worst_case_weight(seed: int, tau: float) -> None:
    losses, p = sample(seed)
    losses.requires_grad_()
    (gradient,) = torch.autograd.grad(kl_tilt(losses, tau, p), losses)
    with mpmath.workdps(
        60
    ):  # derivative of the naive formula, by a central difference that 60 digits make exact
        step = mpmath.mpf(10) ** -20
        for i in range(len(losses)):
            up = down = mpmath.mpf(0)
            for j, (l, q) in enumerate(zip(losses.tolist(), p.tolist(), strict=True)):
                shift = step if i == j else 0
                up += mpmath.mpf(q) * mpmath.exp((mpmath.mpf(l) + shift) / tau)
                down += mpmath.mpf(q) * mpmath.exp((mpmath.mpf(l) - shift) / tau)
            truth = mpmath.mpf(tau) * (mpmath.log(up) - mpmath.log(down)) / (2 * step)
            assert gradient[i].item() == pytest.approx(float(truth), rel=1e-9, abs=1e-14)
    torch.testing.assert_close(tilt_weights(losses, tau, p), gradient, rtol=1e-12, atol=1e-15)


def test_tilt_weights_are_normalised_and_without_gradient() -> None:
    losses, _ = sample(0)
    q = tilt_weights(losses.requires_grad_(), 0.3)
    assert not q.requires_grad
    assert q.sum().item() == pytest.approx(1, abs=1e-14)
    truth = np.exp(losses.detach().numpy() / 0.3)
    np.testing.assert_allclose(q.numpy(), truth / truth.sum(), rtol=1e-12)


def test_kl_tilt_limits() -> None:
    losses, p = sample(3)
    average = (p * losses).sum()
    variance = (p * (losses - average) ** 2).sum()
    assert kl_tilt(losses, 1e4, p).item() == pytest.approx(
        (average + variance / 2e4).item(), abs=1e-8
    )
    largest = losses.argmax()  # tau log p is left of it
    assert kl_tilt(losses, 1e-6, p).item() == pytest.approx(
        (losses[largest] + 1e-6 * p[largest].log()).item(), rel=1e-12
    )


def test_released_code_is_a_clamped_unnormalised_weight_without_gradient() -> None:
    losses = torch.tensor([0.1, 0.2, 0.7, 3.0], dtype=torch.float64, requires_grad=True)
    tau = 0.5
    factor = [
        min(math.exp((l - 1.0) / tau), 10.0) for l in (0.1, 0.2, 0.7, 3.0)
    ]  # the mean of the losses is 1
    value = kl_tilt(losses, tau, released=True)
    assert factor[3] == 10.0  # the clamp is at work
    assert value.item() == pytest.approx(
        sum(f * l for f, l in zip(factor, (0.1, 0.2, 0.7, 3.0), strict=True)) / 4, rel=1e-13
    )
    value.backward()
    np.testing.assert_allclose(losses.grad.numpy(), np.array(factor) / 4, rtol=1e-13)


@given(seeds, st.floats(1e-2, 1e2))
@quick
def test_dr_dpo_is_the_opposite_tilt(seed: int, b: float) -> None:
    losses, p = sample(seed)
    assert dr_dpo(losses, b, p).item() == pytest.approx(
        -float(naive_tilt(-losses, b, p)), rel=1e-12
    )


def test_dr_dpo_limits_and_weights() -> None:
    losses, p = sample(4)
    losses.requires_grad_()
    assert dr_dpo(losses, 1e-6, p).item() == pytest.approx(losses.min().item(), abs=1e-5)
    assert dr_dpo(losses, 1e6, p).item() == pytest.approx((p * losses).sum().item(), abs=1e-5)
    (gradient,) = torch.autograd.grad(dr_dpo(losses, 0.5, p), losses)
    low, high = losses.argmin(), losses.argmax()
    assert gradient[low] / p[low] > gradient[high] / p[high]


# ------------------------------------------------------------------------------------------ KL ball
@given(st.floats(0.02, 0.98), st.floats(1e-4, 2.0))
@quick
def test_kl_ball_of_two_atoms(a: float, rho: float) -> None:
    """KL((1-q, q) || (1-a, a)) = rho solved for q > a, where the second atom has the larger
    loss."""

    def kl(q: float) -> float:
        return q * math.log(q / a) + (1 - q) * math.log((1 - q) / (1 - a))

    q = 1.0 if rho >= -math.log(a) else brentq(lambda q: kl(q) - rho, a, 1 - 1e-15, xtol=1e-15)
    losses = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    value = kl_ball(losses, rho, torch.tensor([1 - a, a], dtype=torch.float64))
    value.backward()
    assert value.item() == pytest.approx(0.5 + 1.5 * q, rel=1e-9)
    np.testing.assert_allclose(losses.grad.numpy(), [1 - q, q], atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_kl_ball_against_a_conic_program(seed: int) -> None:
    losses, p = sample(seed, n=5)
    l, base, rho = losses.numpy(), p.numpy(), 0.2
    q = cp.Variable(5)
    inside = cp.sum(cp.kl_div(q, base)) <= rho  # sum q log(q/p) - q + p, where the sums cancel
    program = cp.Problem(cp.Maximize(q @ l), [cp.sum(q) == 1, inside])
    program.solve(solver=cp.CLARABEL)
    losses.requires_grad_()
    value = kl_ball(losses, rho, p)
    value.backward()
    # the solver's tolerance is 1e-8; where the ball is round, weights follow as its root
    assert value.item() == pytest.approx(program.value, abs=1e-6)
    np.testing.assert_allclose(losses.grad.numpy(), q.value, atol=5e-4)


def test_kl_ball_extremes() -> None:
    losses, p = sample(5)
    assert kl_ball(losses, 0.0, p).item() == pytest.approx((p * losses).sum().item(), rel=1e-14)
    assert kl_ball(losses, 1e6, p).item() == pytest.approx(losses.max().item(), rel=1e-14)
    assert kl_ball(torch.full((4,), 2.5), 0.3).item() == pytest.approx(2.5)


def test_kl_ball_radius_for_each_row() -> None:
    losses = torch.stack([sample(s)[0] for s in range(6)]).reshape(2, 3, 6)
    p = sample(9)[1]
    rho = torch.linspace(0, 2, 6, dtype=torch.float64).reshape(2, 3)
    rows = [[kl_ball(losses[i, j], rho[i, j].item(), p) for j in range(3)] for i in range(2)]
    torch.testing.assert_close(
        kl_ball(losses, rho, p), torch.stack([torch.stack(row) for row in rows])
    )


# ------------------------------------------------------------------------------------ gradient norm
def test_gradient_norm_is_the_root_of_the_mean_square() -> None:
    squares = torch.tensor([1.0, 4.0, 10.0], dtype=torch.float64)
    p = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    assert gradient_norm(squares, p).item() == pytest.approx(2.0)
    assert gradient_norm(squares, p, squared=True).item() == pytest.approx(4.0)
    assert gradient_norm(squares).item() == pytest.approx(math.sqrt(5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_norm_at_the_reference_policy(dtype: torch.dtype) -> None:
    """grad l = -beta sigma(-m) w vanishes at w = 0, where automatic differentiation of a plain root
    gives NaN."""
    w = torch.zeros(3, dtype=dtype, requires_grad=True)
    squares = (w**2).sum() * torch.ones(5, dtype=dtype)
    value = gradient_norm(squares)
    value.backward()
    assert value.item() == 0 and value.dtype == dtype
    assert torch.equal(w.grad, torch.zeros(3, dtype=dtype))


def test_gradient_norm_of_a_batch_where_one_row_vanishes() -> None:
    squares = torch.tensor([[0.0, 0.0], [9.0, 9.0]], dtype=torch.float64, requires_grad=True)
    gradient_norm(squares).sum().backward()
    np.testing.assert_allclose(squares.grad.numpy(), [[0, 0], [1 / 12, 1 / 12]])


# -------------------------------------------------------------------------------------- invariances
@pytest.mark.parametrize("name", ALL)
@given(seed=seeds)
@quick
def test_permutation(name: str, seed: int) -> None:
    losses, p = sample(seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(losses)))
    torch.testing.assert_close(
        ALL[name](losses[order], p[order]), ALL[name](losses, p), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("name", SHIFTING)
@given(seed=seeds, shift=st.floats(-50, 50))
@quick
def test_shift(name: str, seed: int, shift: float) -> None:
    losses, p = sample(seed)
    torch.testing.assert_close(
        SHIFTING[name](losses + shift, p), SHIFTING[name](losses, p) + shift, rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("name", ALL)
def test_a_weight_is_a_repetition(name: str) -> None:
    once = torch.tensor([0.3, 1.7], dtype=torch.float64)
    thrice = torch.tensor([0.3, 0.3, 1.7], dtype=torch.float64)
    p = torch.tensor([2 / 3, 1 / 3], dtype=torch.float64)
    torch.testing.assert_close(ALL[name](once, p), ALL[name](thrice, None), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ALL)
def test_leading_dimensions(name: str) -> None:
    losses = torch.stack([sample(s)[0] for s in range(6)]).reshape(3, 2, 6)
    p = sample(8)[1]
    for weights in (None, p):
        rows = torch.stack([ALL[name](row, weights) for row in losses.reshape(6, 6)]).reshape(3, 2)
        torch.testing.assert_close(ALL[name](losses, weights), rows, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["kl_tilt", "kl_ball", "dr_dpo", "released"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_an_atom_without_weight_does_not_matter(name: str, dtype: torch.dtype) -> None:
    """Padding of a batch: weight zero, and a loss far away from the others, on either side."""
    losses, p = (
        torch.tensor([0.2, 0.9, 1.4], dtype=dtype),
        torch.tensor([0.5, 0.25, 0.25], dtype=dtype),
    )
    for far in (5e3, -5e3):
        padded = torch.cat([losses, torch.tensor([far], dtype=dtype)]).requires_grad_()
        value = ALL[name](padded, torch.cat([p, torch.zeros(1, dtype=dtype)]))
        torch.testing.assert_close(value.detach(), ALL[name](losses, p))
        (gradient,) = torch.autograd.grad(value, padded)
        assert torch.isfinite(gradient).all() and gradient[-1] == 0


@pytest.mark.parametrize("far", [1e4, -1e4])
def test_tilt_weights_ignore_an_atom_without_weight(far: float) -> None:
    losses, p = torch.tensor([0.2, 0.9, 1.4]), torch.tensor([0.5, 0.25, 0.25])
    padded = tilt_weights(
        torch.cat([losses, torch.tensor([far])]), 0.01, torch.cat([p, torch.zeros(1)])
    )
    torch.testing.assert_close(padded[:3], tilt_weights(losses, 0.01, p))


# -------------------------------------------------------------------------------------- derivatives
@pytest.mark.parametrize(
    "name", ["mean", "kl_tilt", "kl_ball", "dr_dpo", "gradient_norm", "gradient_norm_squared"]
)
def test_gradcheck(name: str) -> None:
    losses = torch.stack([sample(s)[0] for s in range(2)]).requires_grad_()
    p = sample(7)[1]
    assert torch.autograd.gradcheck(lambda l: ALL[name](l, p), losses, atol=1e-6)


@pytest.mark.parametrize("name", ["kl_tilt", "dr_dpo", "gradient_norm"])
def test_gradgradcheck(name: str) -> None:
    losses = sample(1)[0].requires_grad_()
    p = sample(7)[1]
    assert torch.autograd.gradgradcheck(lambda l: ALL[name](l, p), losses, atol=1e-5)


# ---------------------------------------------------------------------------- precision and devices
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", [1e-3, 1.0])
def test_large_losses_and_small_temperatures_stay_finite(
    tau: float, dtype: torch.dtype, device: str
) -> None:
    values = [0.0, 1.0, 5e3, 1e4]
    functionals: dict[str, tuple[Functional, float]] = {
        "kl_tilt": (
            lambda l, p: kl_tilt(l, tau, p),
            float(naive_tilt(torch.tensor(values), tau, torch.full((4,), 0.25))),
        ),
        "dr_dpo": (
            lambda l, p: dr_dpo(l, tau, p),
            -float(naive_tilt(-torch.tensor(values), tau, torch.full((4,), 0.25))),
        ),
        "kl_ball": (lambda l, p: kl_ball(l, 5.0, p), 1e4),
        "gradient_norm": (lambda l, p: gradient_norm(l, p), math.sqrt(15001 / 4)),
    }
    for functional, truth in functionals.values():
        for weights in (None, torch.full((4,), 0.25, dtype=dtype, device=device)):
            losses = torch.tensor(values, dtype=dtype, device=device, requires_grad=True)
            value = functional(losses, weights)
            value.backward()
            assert value.dtype == dtype and losses.grad.dtype == dtype
            assert torch.isfinite(losses.grad).all()
            assert value.item() == pytest.approx(
                truth, rel=1e-2 if dtype.itemsize == 2 else 1e-5, abs=2 * tau
            )
    losses = torch.tensor(values, dtype=dtype, device=device)
    assert torch.isfinite(
        kl_tilt(losses / 4, tau, released=True)
    )  # ten times 1e4 is beyond float16
    torch.testing.assert_close(
        tilt_weights(losses, tau).double().cpu(), torch.tensor([0, 0, 0, 1.0]).double()
    )


@pytest.mark.parametrize("functional", [kl_tilt, dr_dpo])
@pytest.mark.parametrize("tau", [1e2, 1e4, 1e6])
def test_a_large_temperature_is_the_mean_in_single_precision(
    functional: Callable[..., Tensor], tau: float
) -> None:
    losses = torch.tensor([0.1, 0.5, 0.9, 2.0])
    assert functional(losses, tau).item() == pytest.approx(0.875, abs=0.5 / tau + 1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ALL)
def test_single_precision_agrees_with_double(name: str, device: str) -> None:
    losses, p = sample(11, n=50)
    single = ALL[name](losses.float().to(device), p.float().to(device))
    assert single.device.type == device
    torch.testing.assert_close(single.double().cpu(), ALL[name](losses, p), rtol=3e-6, atol=1e-6)
