"""The losses of a pair that other trainers know, against formulas written out in numpy, their own
limits, and derivatives by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from theory import (
    alpha_link,
    apo_down_loss,
    apo_zero_loss,
    bco_loss,
    chi_link,
    discopop_loss,
    dpo_loss,
    dpo_norm_loss,
    exo_loss,
    forward_kl_link,
    hoelder_loss,
    jensen_shannon_link,
    nca_loss,
    orpo_loss,
    simpo_loss,
    sppo_loss,
    winsorised_loss,
)

M = torch.tensor([-3.0, -0.4, 0.0, 0.7, 4.0], dtype=torch.float64)
A, B = M.flip(0) / 2, M + 0.3  # rewards, or log-ratios, of chosen and rejected responses
LONG, SHORT = torch.tensor([3, 1, 4, 1, 5]), torch.tensor([2, 7, 1, 8, 2])


def sigma(x: Tensor) -> np.ndarray:
    return 1 / (1 + np.exp(-x.numpy()))


def log1pexp(x: Tensor) -> np.ndarray:
    return np.logaddexp(0, x.numpy())


def odds(logp: Tensor) -> np.ndarray:
    p = np.exp(logp.numpy())
    return p / (1 - p)


FORMULAS: dict[str, tuple[Tensor, np.ndarray]] = {
    "dpo_norm": (
        dpo_norm_loss(A, B, 0.7, LONG, SHORT),
        log1pexp(-0.7 * (A / LONG - B / SHORT)),
    ),
    "exo": (
        exo_loss(M, 0.2),
        sigma(M) * np.log(sigma(M) / 0.8) + sigma(-M) * np.log(sigma(-M) / 0.2),
    ),
    "nca": (nca_loss(A, B), log1pexp(-A) + 0.5 * log1pexp(A) + 0.5 * log1pexp(B)),
    "bco": (bco_loss(A, B), log1pexp(-A) + log1pexp(B)),
    "sppo": (sppo_loss(A, B, 0.25), (A.numpy() - 2) ** 2 + (B.numpy() + 2) ** 2),
    "apo_zero": (apo_zero_loss(A, B), 1 - sigma(A) + sigma(B)),
    "apo_down": (apo_down_loss(A, B), sigma(A) + 1 - sigma(A - B)),
    "discopop": (
        discopop_loss(M, 0.5),
        sigma(-M / 0.5) * log1pexp(-M) + sigma(M / 0.5) * np.exp(-M.numpy()),
    ),
    "hoelder": (hoelder_loss(M, 1.5), -2.5 * sigma(M) ** 1.5 + 1.5 * sigma(M) ** 2.5),
    "winsorised": (
        winsorised_loss(M, 1.0),
        np.log1p(np.exp(-np.array([-1.0, -0.4, 0.0, 0.7, 1.0]))),
    ),
    "simpo": (
        simpo_loss(A, B, 2.0, 0.5, LONG, SHORT),
        log1pexp(0.5 - 2 * (A / LONG - B / SHORT)),
    ),
    "orpo": (
        orpo_loss(A - 3, B - 5, 0.7, LONG, SHORT),
        0.7 * np.log1p(odds((B - 5) / SHORT) / odds((A - 3) / LONG)),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas(name: str) -> None:
    found, truth = FORMULAS[name]
    np.testing.assert_allclose(found.numpy(), truth, rtol=1e-12, atol=1e-15)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dpo_norm": lambda a, b: dpo_norm_loss(a, b, 0.7, LONG, SHORT),
    "exo": lambda a, b: exo_loss(a - b, 0.2),
    "nca": nca_loss,
    "bco": bco_loss,
    "sppo": lambda a, b: sppo_loss(a, b, 0.25),
    "apo_zero": apo_zero_loss,
    "apo_down": apo_down_loss,
    "discopop": lambda a, b: discopop_loss(a - b),
    "hoelder": lambda a, b: hoelder_loss(a - b, 1.5),
    "winsorised": lambda a, b: winsorised_loss(a - b, 2.0),
    "simpo": lambda a, b: simpo_loss(a, b, 2.0, 0.5, LONG, SHORT),
    "orpo": lambda a, b: orpo_loss(a - 9, b - 9, 0.7, LONG, SHORT),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_differences(name: str) -> None:
    a, b = (x.clone().requires_grad_() for x in (A, B))
    assert torch.autograd.gradcheck(LOSSES[name], (a, b))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", LOSSES)
def test_any_float_and_no_overflow(name: str, dtype: torch.dtype) -> None:
    """At log-ratios of ±300, too, where exp overflows in both; orpo's log-probabilities stay below
    0."""
    far = torch.tensor([-300.0, 300.0, 0.0, -300.0, 300.0])
    for a, b in ((A, B), (far, -far), (far, far)):
        if name == "orpo":
            a, b = a - 301, b - 301
        low = [x.detach().to(dtype).requires_grad_() for x in (a, b)]
        found = LOSSES[name](*low)
        assert found.dtype == dtype and found.isfinite().all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), low))
        truth = LOSSES[name](*(x.detach().double() for x in low))
        digits = 3e-2 if dtype == torch.bfloat16 else 1e-5
        np.testing.assert_allclose(
            found.detach().double(), truth, rtol=digits, atol=digits * float(truth.abs().max())
        )


# ------------------------------------------------------------------------------ truths of their own
def slope(loss: Callable[[Tensor], Tensor], m: Tensor) -> np.ndarray:
    leaf = m.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf).sum(), leaf)[0].numpy()


def test_exo_is_least_at_the_smoothed_label() -> None:
    """A KL: zero where sigma(m) = 1 - eps, positive elsewhere."""
    m = torch.linspace(-6, 8, 141, dtype=torch.float64)
    best = torch.tensor(math.log(0.9 / 0.1), dtype=torch.float64)
    assert exo_loss(best, 0.1).item() == pytest.approx(0, abs=1e-15)
    assert (exo_loss(m, 0.1) >= 0).all()
    assert slope(lambda x: exo_loss(x, 0.1), best).item() == pytest.approx(0, abs=1e-14)
    for flip in (0.0, 0.5, -0.1):
        with pytest.raises(ValueError, match="flip rate"):
            exo_loss(m, flip)


def test_sppo_is_least_at_half_over_beta() -> None:
    r = torch.tensor([2.0]).double()
    assert sppo_loss(r, -r, 0.25).item() == 0


def test_nca_keeps_a_lone_chosen_response_where_it_is_likely() -> None:
    """The rewards that minimise it are finite: sigma(r+) = 2/3, where DPO's are infinite."""
    r = torch.tensor([2.0], dtype=torch.float64).log()
    assert slope(lambda x: nca_loss(x, -r), r).item() == pytest.approx(0, abs=1e-14)


def test_discopop_has_the_logistic_and_the_exponential_at_its_ends() -> None:
    m = torch.tensor([-2.0, 2.0]).double()
    ends = [dpo_loss(m)[0].item(), math.exp(-2)]
    np.testing.assert_allclose(discopop_loss(m, 0.01).numpy(), ends, rtol=1e-12)
    with pytest.raises(ValueError, match=r"temperature must be positive and finite, got 0"):
        discopop_loss(m, 0.0)


def test_length_normalised_dpo_does_not_see_repetition() -> None:
    """A response of twice the tokens with the same log-ratio each has the same loss; at length 1 it
    is DPO."""
    once = dpo_norm_loss(A, B, 0.7, LONG, SHORT)
    torch.testing.assert_close(dpo_norm_loss(2 * A, B, 0.7, 2 * LONG, SHORT), once)
    one = torch.ones_like(LONG)
    torch.testing.assert_close(dpo_norm_loss(A, B, 0.7, one, one), dpo_loss(0.7 * (A - B)))


@pytest.mark.parametrize("gamma", [0.1, 1.0, 3.0])
def test_hoelder_redescends(gamma: float) -> None:
    """The slope is that of the formula, and vanishes on the side of the mislabelled, where DPO's
    tends to -1."""
    truth = -gamma * (1 + gamma) * sigma(M) ** gamma * sigma(-M) ** 2
    np.testing.assert_allclose(slope(lambda x: hoelder_loss(x, gamma), M), truth, rtol=1e-12)
    far = torch.tensor([-100.0 / gamma]).double()
    assert abs(slope(lambda x: hoelder_loss(x, gamma), far).item()) < 1e-40
    assert slope(dpo_loss, far).item() == pytest.approx(-1)


def test_hoelder_tends_to_a_loss_near_that_of_dpo() -> None:
    """(loss + 1)/gamma -> -log sigma + sigma - 1, with an error of the order of gamma log² sigma;
    where sigma -> 0 that is DPO less 1, but its slope is -(1 - sigma)² and not -(1 - sigma)."""
    gamma = 1e-6
    limit = log1pexp(-M) + sigma(M) - 1
    found = (hoelder_loss(M, gamma).numpy() + 1) / gamma
    np.testing.assert_allclose(found, limit, rtol=0, atol=gamma * (1 + log1pexp(-M).max()) ** 2)
    found = slope(lambda x: hoelder_loss(x, gamma), M) / gamma
    np.testing.assert_allclose(found, -(sigma(-M) ** 2), rtol=gamma * (2 + log1pexp(-M).max()))
    with pytest.raises(ValueError, match=r"gamma must be positive and finite, got -1"):
        hoelder_loss(M, -1.0)


def test_winsorised_is_dpo_inside_its_limits() -> None:
    inside, far = M[1:4], torch.tensor([-9.0, 9.0]).double()
    assert torch.equal(winsorised_loss(inside, 1.0), dpo_loss(inside))
    assert torch.equal(winsorised_loss(M, 100.0), dpo_loss(M))
    edges = winsorised_loss(far, 1.0).tolist()
    assert edges == pytest.approx([math.log(1 + math.e), math.log(1 + 1 / math.e)])
    assert not slope(lambda x: winsorised_loss(x, 1.0), far).any()
    np.testing.assert_array_equal(
        slope(lambda x: winsorised_loss(x, 1.0), inside), slope(dpo_loss, inside)
    )
    with pytest.raises(ValueError, match=r"limit must be positive and finite, got inf"):
        winsorised_loss(M, math.inf)


def test_simpo_is_length_normalised_dpo_with_a_margin() -> None:
    """With a reference of probability 1 and no target; the target moves the margin."""
    plain = dpo_norm_loss(A, B, 2.0, LONG, SHORT)
    torch.testing.assert_close(simpo_loss(A, B, 2.0, 0.0, LONG, SHORT), plain)
    one = torch.ones_like(LONG)
    torch.testing.assert_close(simpo_loss(A, B, 1.0, 0.4, one, one), dpo_loss(A - B - 0.4))
    with pytest.raises(ValueError, match="target_margin must not be negative, got -1"):
        simpo_loss(A, B, 2.0, -1.0, LONG, SHORT)


LINKS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[float], float]]] = {
    "forward_kl": (forward_kl_link, lambda t: -math.log(t) + t - 1),
    "jensen_shannon": (
        jensen_shannon_link,
        lambda t: t * math.log(t) - (t + 1) * math.log((t + 1) / 2),
    ),
    "alpha": (
        lambda r: alpha_link(r, 0.3),
        lambda t: (t**0.3 - 1) / (0.3 * (0.3 - 1)) - (t - 1) / (0.3 - 1),
    ),
    "chi": (chi_link, lambda t: 0.5 * (t - 1) ** 2 + t * math.log(t)),
}


@pytest.mark.parametrize("name", LINKS)
def test_a_link_is_the_derivative_of_its_divergence(name: str) -> None:
    """f'(t) at t = exp(r), up to a constant, which the difference of two responses loses: by
    central differences of f."""
    link, f = LINKS[name]
    values = link(M).numpy()
    steps = [1e-5 * math.exp(r) for r in M.tolist()]
    truth = np.array(
        [
            (f(math.exp(r) + h) - f(math.exp(r) - h)) / (2 * h)
            for r, h in zip(M.tolist(), steps, strict=True)
        ]
    )
    gap = values - truth
    # differences of f lose about eps |f|/h, and h² f'''/6 by the step
    np.testing.assert_allclose(gap, gap[2], rtol=0, atol=1e-7 * (1 + np.abs(values).max()))
    leaf = M.clone().requires_grad_()
    assert torch.autograd.gradcheck(link, (leaf,))


def test_alpha_links_the_others() -> None:
    assert torch.equal(alpha_link(M, 1.0), M)
    torch.testing.assert_close(alpha_link(M, 1 + 1e-9), M, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(alpha_link(M, 0.0), forward_kl_link(M))
    torch.testing.assert_close(alpha_link(M, 2.0) + M + 1, chi_link(M))
    with pytest.raises(ValueError, match="alpha must be finite"):
        alpha_link(M, math.nan)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", LINKS)
def test_links_do_not_overflow(name: str, dtype: torch.dtype) -> None:
    leaf = torch.tensor([-300.0, 0.0, 300.0], dtype=dtype, requires_grad=True)
    found = LINKS[name][0](leaf)
    assert found.dtype == dtype and found.isfinite().all()
    assert torch.autograd.grad(found.sum(), leaf)[0].isfinite().all()


def test_orpo_is_half_at_equal_odds_and_finite_at_a_sure_response() -> None:
    one = torch.ones(1).double()
    assert orpo_loss(-one, -one, 0.5, one, one).item() == pytest.approx(0.5 * math.log(2))
    sure = torch.zeros(1, requires_grad=True)
    loss = orpo_loss(sure, sure - 1, 1.0, one, one)
    assert loss.isfinite() and torch.autograd.grad(loss.sum(), sure)[0].isfinite()
