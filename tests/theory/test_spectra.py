"""Weights of quantile levels against POT on distorted samples, closed forms and quadrature."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor

from theory.aot import minimise_aot
from theory.functionals import aot_paired, aot_unpaired, cvar
from theory.losses import least_squares, logistic
from theory.spectra import (
    exponential,
    from_density,
    lower_tail,
    named_spectrum,
    spectral_mean,
    upper_tail,
)
from theory.transport import Spectrum, coupling, first_order_violation, soft_sort, transport

# the spectrum, its density and its integral from 0, written out once more
SPECTRA: dict[str, tuple[Spectrum, Callable[[float], float], Callable[[np.ndarray], np.ndarray]]]
SPECTRA = {
    "cvar": (
        lower_tail(0.3),
        lambda t: (t <= 0.3) / 0.3,
        lambda t: np.minimum(t, 0.3) / 0.3,
    ),
    "upper": (
        upper_tail(0.4),
        lambda t: (t >= 0.6) / 0.4,
        lambda t: np.maximum(t - 0.6, 0) / 0.4,
    ),
    "averse": (
        exponential(2.5),
        lambda t: 2.5 * math.exp(-2.5 * t) / (1 - math.exp(-2.5)),
        lambda t: (1 - np.exp(-2.5 * t)) / (1 - math.exp(-2.5)),
    ),
    "own": (
        from_density(lambda t: 3 * (1 - t) ** 2),
        lambda t: 3 * (1 - t) ** 2,
        lambda t: 1 - (1 - t) ** 3,
    ),
}
seeds = st.integers(0, 10**6)
quick = settings(max_examples=15, deadline=None)


def sample(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    n, m = rng.integers(1, 8, size=2)
    u, v = rng.normal(size=n), rng.normal(size=m)
    p, q = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
    return tuple(torch.from_numpy(x) for x in (u, v, p, q))  # type: ignore[return-value]


def distorted(x: Tensor, p: Tensor, integral: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Masses of the atoms when the levels of each are weighed."""
    order = np.argsort(x.numpy())
    mass = np.empty(len(x))
    mass[order] = np.diff(integral(np.r_[0, p.numpy()[order].cumsum()].clip(max=1)))
    return mass


@pytest.mark.parametrize("name", SPECTRA)
@given(seed=seeds)
@quick
def test_it_is_transport_between_distorted_samples(name: str, seed: int) -> None:
    spectrum, _, integral = SPECTRA[name]
    u, v, p, q = sample(seed)
    a, b = distorted(u, p, integral), distorted(v, q, integral)
    found = aot_unpaired(u, v, least_squares, 0.0, p, q, spectrum=spectrum).item()
    assert found == pytest.approx(ot.emd2_1d(u.numpy(), v.numpy(), a, b), abs=1e-10)
    price = np.log1p(np.exp(-0.8 * (u.numpy()[:, None] - v.numpy())))
    found = aot_unpaired(u, v, logistic, 0.8, p, q, spectrum=spectrum).item()
    assert found == pytest.approx((ot.emd(a, b, price) * price).sum(), abs=1e-10)
    plan = coupling(u, v, p, q, spectrum=spectrum)
    marginal = np.bincount(plan.row.numpy(), plan.mass.numpy(), len(u))
    np.testing.assert_allclose(marginal, a, atol=1e-12)


@pytest.mark.parametrize("name", SPECTRA)
def test_spectral_means_and_violations_by_quadrature(name: str) -> None:
    spectrum, density, _ = SPECTRA[name]
    u, v = torch.tensor([0.3, -1.0, 2.0, 0.7]).double(), torch.tensor([1.0, -0.5, 0.1]).double()

    def at(x: Tensor, t: float) -> float:
        return float(np.quantile(x.numpy(), t, method="inverted_cdf"))

    ends = sorted({*np.arange(5) / 4, *np.arange(4) / 3, 0.3, 0.6})
    pieces = list(itertools.pairwise(ends))

    def integral(f: Callable[[float], float]) -> float:
        return sum(quad(lambda t: density(t) * f(t), a, b)[0] for a, b in pieces)

    means = [spectral_mean(x, spectrum).item() for x in (u, v)]
    assert means[0] == pytest.approx(integral(lambda t: at(u, t)), abs=1e-9)
    violation = first_order_violation(u, v, spectrum=spectrum).item()
    truth = integral(lambda t: max(at(v, t) - at(u, t), 0.0))
    assert violation == pytest.approx(truth, abs=1e-9)
    assert means[1] - means[0] <= violation + 1e-12  # what the violation is good for
    assert violation <= aot_unpaired(u, v, logistic, 2.0, spectrum=spectrum).item() / 2


def test_the_lower_tail_is_cvar() -> None:
    """Of losses, by the dual of the ambiguity set."""
    rng = np.random.default_rng(0)
    losses, p = torch.from_numpy(rng.exponential(size=9)), torch.from_numpy(rng.dirichlet([1] * 9))
    for share in (0.05, 0.3, 1.0):
        found = -spectral_mean(-losses, lower_tail(share), p).item()
        assert found == pytest.approx(cvar(losses, share, p).item(), abs=1e-12)
        assert spectral_mean(losses, upper_tail(share), p).item() == pytest.approx(found, abs=1e-12)


def test_without_weights_nothing_changes() -> None:
    u, v, p, q = sample(3)
    assert named_spectrum("uniform") is None
    for weights in ((None, None), (p, q)):
        plain = aot_unpaired(u, v, logistic, 1.0, *weights)
        for same in (lower_tail(1.0), upper_tail(1.0), from_density(torch.ones_like)):
            torch.testing.assert_close(
                aot_unpaired(u, v, logistic, 1.0, *weights, spectrum=same), plain
            )
        assert torch.equal(aot_unpaired(u, v, logistic, 1.0, *weights, spectrum=None), plain)


def test_soft_sorting_weighs_the_ranks() -> None:
    rng = np.random.default_rng(1)
    u, v = torch.from_numpy(rng.normal(size=(2, 6)))
    masses = np.diff(SPECTRA["averse"][2](np.arange(7) / 6))
    for softness in (1e-3, 2.0):
        soft = soft_sort(u, softness) - soft_sort(v, softness)
        by_hand = (masses * np.log1p(np.exp(-soft.numpy()))).sum()
        found = aot_paired(u, v, logistic, 1.0, softness=softness, spectrum=exponential(2.5))
        assert found.item() == pytest.approx(by_hand, abs=1e-12)
    hard = aot_paired(u, v, logistic, 1.0, spectrum=exponential(2.5)).item()
    softly = aot_paired(u, v, logistic, 1.0, softness=1e-3, spectrum=exponential(2.5)).item()
    assert softly == pytest.approx(hard, abs=1e-12)


def test_gradcheck() -> None:
    u, v, p, q = sample(7)
    u, v = u.requires_grad_(), v.requires_grad_()
    for name, (spectrum, _, _) in SPECTRA.items():
        assert torch.autograd.gradcheck(
            lambda a, b, w=spectrum: aot_unpaired(a, b, logistic, 0.8, p, q, spectrum=w), (u, v)
        ), name


@pytest.mark.parametrize("name", ["cvar", "averse"])
def test_fits_against_a_grid(name: str) -> None:
    """One feature: the least value over a fine grid of theta, by POT on the distorted samples."""
    spectrum, _, integral = SPECTRA[name]
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.3, 1, (7, 1)), rng.normal(0, 1, (5, 1))
    p, q = np.full(7, 1 / 7), np.full(5, 1 / 5)

    def truth(theta: float) -> float:
        u, v = torch.from_numpy(theta * a[:, 0]), torch.from_numpy(theta * b[:, 0])
        left, right = (distorted(x, torch.from_numpy(w), integral) for x, w in ((u, p), (v, q)))
        price = (0.5 - (u[:, None] - v).numpy()) ** 2
        return float((ot.emd(left, right, price) * price).sum())

    grid = np.linspace(-2, 2, 801)
    least = min(truth(theta) for theta in grid)
    found = minimise_aot(
        a,
        b,
        starts=np.linspace(-2, 2, 6)[:, None],
        h=least_squares,
        beta=0.5,
        bound=2.0,
        spectrum=spectrum,
    )
    assert found.value.item() == pytest.approx(truth(found.theta.item()), abs=1e-10)
    assert least - 1e-4 < found.value.item() <= least + 1e-9


def test_batches_single_precision_and_empty_levels() -> None:
    u, v = torch.arange(12.0).reshape(3, 4), torch.zeros(3, 2)
    found = spectral_mean(u, lower_tail(0.25))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, u[:, 0])
    assert transport(u, v, lambda t: t, spectrum=lower_tail(0.1)).tolist() == [0.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cvar:0", r"lies in \(0, 1\], got 0"),
        ("upper_cvar:1.5", "got 1.5"),
        ("exponential:0", "not 0"),
        ("cvar", "unknown spectrum 'cvar'; there are uniform, cvar:SHARE"),
        ("wang:0.1", "unknown spectrum 'wang:0.1'"),
        ("uniform:2", "unknown spectrum"),
        ("cvar:many", "unknown spectrum 'cvar:many'"),
    ],
)
def test_what_is_no_spectrum_is_refused(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        named_spectrum(name)


def test_negative_weights_are_refused() -> None:
    u, v, _, _ = sample(0)
    with pytest.raises(ValueError, match="a spectrum weighs levels by numbers that are not neg"):
        transport(u, v, torch.abs, spectrum=from_density(lambda t: t - 1))
