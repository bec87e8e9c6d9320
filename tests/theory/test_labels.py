"""Balls of labels: their worst cases from the definition, fits and collapse against the twin."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from theory import (
    LabelChiSquared,
    LabelTotalVariation,
    PreferenceModel,
    chi2_flips,
    collapse_radius,
    fit,
    label_robust_loss,
    limit_law,
    tv_flips,
    worst_case,
)
from theory.batch import pair_batch
from theory.sets.labels import _LabelBall
from theory.solvers.labels import other_label
from theory.twins import knowledge, twins

BALLS = (LabelChiSquared, LabelTotalVariation)
quick = settings(max_examples=50, deadline=None)
chances = st.floats(0, 1)


def sample(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs, weights, and confidences of which some are certain."""
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(n, d)) + 0.3
    confidence = rng.uniform(0.3, 1.0, n)
    confidence[: n // 5] = 1.0
    return u, rng.dirichlet(np.ones(n)), confidence


# ----------------------------------------------------------------------------- of a pair
@given(st.floats(0.001, 0.999), st.floats(0, 5))
@quick
def test_the_ends_are_on_the_sphere_or_certain(eps: float, rho: float) -> None:
    flip = torch.tensor(eps, dtype=torch.float64)
    for flips, unit in ((chi2_flips, eps * (1 - eps)), (tv_flips, 1.0)):
        for end, certain in zip(flips(flip, rho), (0.0, 1.0), strict=True):
            away = abs(end.item() - eps)
            away = away**2 / unit if flips is chi2_flips else away
            assert 0 <= end <= 1 and away <= rho * (1 + 1e-9) + 1e-12
            assert end == certain or away == pytest.approx(rho, rel=1e-6, abs=1e-9)


@given(st.floats(-20, 20), chances, chances, chances)
@quick
def test_no_chance_between_the_ends_is_worse(m: float, a: float, b: float, share: float) -> None:
    low, high = min(a, b), max(a, b)
    ends = torch.tensor([low, high], dtype=torch.float64)
    found = label_robust_loss(torch.tensor(m, dtype=torch.float64), (ends[0], ends[1])).item()
    own, turned = np.logaddexp(0, -m), np.logaddexp(0, m)

    def at(t: float) -> float:
        return (1 - t) * own + t * turned

    assert found == pytest.approx(max(at(low), at(high)), rel=1e-12, abs=1e-12)
    assert at(low + share * (high - low)) <= found + 1e-12


# --------------------------------------------------------------------------- of a sample
@pytest.mark.parametrize("ball", BALLS)
def test_fits_with_confidences_are_those_of_the_twin(ball: type[_LabelBall]) -> None:
    for seed, n, d in ((0, 12, 2), (1, 30, 4)):
        u, p, confidence = sample(n, d, seed)
        kind = ball(confidence=confidence)  # type: ignore[call-arg]
        twin = twins()[kind.name]
        edge, known = collapse_radius(u, kind, p).item(), knowledge(kind)
        assert twin.collapse is not None
        assert edge == pytest.approx(twin.collapse(u, p, **known), rel=1e-6)
        sizes = (
            [0.0, 0.1, 0.5, 2.0] if math.isinf(edge) else [0.0, *(edge * np.array([0.3, 0.9, 1.1]))]
        )
        found = fit(u, kind.sized(sizes), p, beta=2.0, bound=3.0)
        assert bool(found.converged.all())
        assert bool(found.collapsed[-1]) == math.isfinite(edge)
        for size, theta, value in zip(sizes, found.theta, found.value, strict=True):
            _, best, _ = twin.fit(u, p, size, beta=2.0, bound=3.0, **known)
            assert value.item() == pytest.approx(best, abs=1e-7)
            worst = worst_case(u, theta, kind.sized(size), p, beta=2.0)
            assert worst.value == pytest.approx(value.item(), rel=1e-9)
            assert worst.converged and worst.used <= size * (1 + 1e-9)


def test_the_dual_is_the_slope_of_the_value_in_the_radius() -> None:
    u, p, confidence = sample(40, 3)
    for ball in BALLS:
        kind = ball(confidence=confidence)
        size = 0.3 * collapse_radius(u, ball(confidence=0.8), p).item()
        near = [size * (1 - 1e-4), size, size * (1 + 1e-4)]
        found = fit(u, kind.sized(near), p, beta=1.0, tolerance=1e-13)
        slope = (found.value[2] - found.value[0]) / (near[2] - near[0])
        assert found.dual is not None
        assert found.dual[1].item() == pytest.approx(slope.item(), rel=1e-3)


def test_one_comparison_in_closed_form() -> None:
    """80 of 100 for one response: sigma(theta) is the share that the worst labels leave it."""
    u, p, odds = [[1.0], [-1.0]], [0.8, 0.2], lambda x: math.log(x / (1 - x))
    for kind, size, left in (
        (LabelChiSquared(), 0.09, 0.8 - 0.3 * 0.4),
        (LabelTotalVariation(), 0.1, 0.7),
    ):
        found = fit(u, kind.sized(size), p, beta=1.0)
        assert found.theta.item() == pytest.approx(odds(left), rel=1e-9)
    assert collapse_radius(u, LabelChiSquared(), p).item() == pytest.approx((0.3 / 0.4) ** 2)
    assert collapse_radius(u, LabelTotalVariation(), p).item() == pytest.approx(0.3)


def test_frequencies_are_those_of_comparisons_in_any_basis() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(6, 4))
    u = np.concatenate([x, -x[:4], x[:2], 1e-9 * x[:1]])
    p = rng.dirichlet(np.ones(len(u)), 3)
    same = np.array([[(a == b).all() for b in u] for a in u])
    turned = np.array([[(a == -b).all() for b in u] for a in u])
    truth = p @ turned.T / (p @ (same | turned).T)
    basis = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    for rows in (u, u @ basis, u * [1e-6, 1.0, 1e3, 1.0]):
        np.testing.assert_allclose(other_label(pair_batch(rows, p)), truth, atol=1e-14)
        several = pair_batch(np.stack([rows] * 3), p)
        np.testing.assert_allclose(other_label(several), truth, atol=1e-14)


def test_equal_pairs_of_other_confidence_are_not_merged() -> None:
    u, p = np.array([[1.0], [1.0], [1.0]]), [0.25, 0.25, 0.5]
    one = fit(u, LabelChiSquared(0.1, confidence=[0.9, 0.9, 0.6]), p, beta=1.0)
    flip = np.array([0.1, 0.4])
    worst = flip + np.sqrt(0.1 * flip * (1 - flip))
    left = 1 - worst.mean()
    assert one.theta.item() == pytest.approx(math.log(left / (1 - left)), rel=1e-9)


def test_a_model_of_comparisons_keeps_the_confidence_at_radius_0() -> None:
    """Half of the labels in doubt leave nothing to learn, whatever the radius."""
    x, y = np.array([[1.0], [1.0], [1.0], [-1.0]]), [1, 1, 1, 1]
    model = PreferenceModel(set=LabelChiSquared(confidence=0.5), radius=0.0, resamples=5)
    assert abs(model.fit(x, y).coef_).max() < 1e-9
    with pytest.raises(
        ValueError, match=r"covers the truth is known for kl, .* not for chi2-label"
    ):
        PreferenceModel(set="chi2-label", radius="coverage").fit(x, y)


def test_the_law_with_the_frequencies_of_the_sample() -> None:
    """Pairs that are met with both labels; one of them nearly always with one, so that the ball
    makes it certain."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(4, 2))
    share = np.array([0.95, 0.7, 0.6, 0.2])
    p = np.concatenate([share, 1 - share]) / 4
    u = np.concatenate([x, -x])
    ball, how = LabelTotalVariation(0.08), {"beta": 1.0, "bound": 9.0}
    law = limit_law(u, p, ball, **how)
    dp = rng.normal(size=(5, 8)) * p
    dp -= dp.sum(1, keepdims=True) * p
    moved = fit(u, ball, np.concatenate([p[None], p + 1e-5 * dp]), tolerance=1e-14, **how).theta
    slopes = ((moved[1:] - moved[0]) / 1e-5).numpy()
    np.testing.assert_allclose(dp @ law.influence, slopes, atol=3e-3 * np.abs(slopes).max())
    with pytest.raises(ValueError, match="no limit law of LabelChiSquared is known where"):
        limit_law(u, p, LabelChiSquared(0.08), **how)


@pytest.mark.parametrize(
    ("confidence", "words"),
    [
        (1.2, r"between 0 and 1, got 1\.2"),
        ([0.5, math.nan], "between 0 and 1, got nan"),
        ([0.5, 0.5, 0.5], r"one for each of 2 pairs, got shape \(3,\)"),
    ],
)
def test_confidences_that_are_none(confidence: object, words: str) -> None:
    for ball in BALLS:
        kind, u = ball(0.1, confidence), [[1.0], [2.0]]  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=words):
            fit(u, kind, beta=1.0)
        with pytest.raises(ValueError, match=words):
            collapse_radius(u, kind)
        with pytest.raises(ValueError, match=words):
            worst_case(u, [1.0], kind, beta=1.0)
