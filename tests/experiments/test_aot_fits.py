"""The fitted methods of the AOT study against least squares, grids and other optimisers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logsumexp

from experiments.aot.comparison import scale_to_kl
from experiments.aot.fits import METHODS, Pairs, fit_aot, fit_aot_paired, fit_dpo, fit_methods
from experiments.aot.worlds import BETA, BOUND, AotWorld, Spec, build_world
from theory.aot import minimise_aot, random_starts
from theory.losses import logistic
from theory.solvers.multistart import Solution

SMALL = Spec("curved", contexts=2, actions=4, dimension=2, reference=1.0)


@pytest.fixture(scope="module")
def fitted() -> tuple[AotWorld, np.ndarray, torch.Tensor, dict[str, Solution]]:
    spec = Spec("curved", contexts=3, actions=4, dimension=2, reference=0.8)
    world, rng = build_world(spec), np.random.default_rng(5)
    weights = world.sample(rng, 300, 1)[0]
    starts = random_starts(rng, 8, 2, BOUND)
    return world, weights, starts, fit_methods(world, weights, starts, rng)


def test_every_method_is_fitted(fitted: tuple) -> None:
    assert tuple(fitted[3]) == METHODS
    assert all(fit.converged for fit in fitted[3].values())
    assert all(
        np.linalg.norm(fitted[0].theta_ref + fit.w) <= BOUND * (1 + 1e-9)
        for fit in fitted[3].values()
    )


def test_ipo_is_least_squares(fitted: tuple) -> None:
    world, weights, _, fits = fitted
    x = world.differences * np.sqrt(weights)[:, None]
    wanted, *_ = np.linalg.lstsq(x, 0.5 / BETA * np.sqrt(weights), rcond=None)
    np.testing.assert_allclose(fits["ipo"].w, wanted, atol=1e-8)


def _grid(world: AotWorld) -> np.ndarray:
    turn, reach = np.meshgrid(np.linspace(0, 2 * np.pi, 61), np.linspace(0.04, 1, 25) * BOUND)
    theta = np.stack([reach * np.cos(turn), reach * np.sin(turn)], -1).reshape(-1, 2)
    return theta - world.theta_ref


def _by_hand(world: AotWorld, weights: np.ndarray, w: np.ndarray, method: str) -> float:
    """The objectives once more in numpy, from lists of pairs."""
    scores = world.features @ w
    base = world.features @ world.theta_ref
    ratio = (
        scores
        - logsumexp(scores + base, axis=1, keepdims=True)
        + logsumexp(base, axis=1, keepdims=True)
    ).ravel()
    counts = np.round(weights * 300).astype(int)
    chosen, rejected = np.repeat(world.chosen, counts), np.repeat(world.rejected, counts)
    if (
        method == "kto"
        # the reference point is 0 where the log-ratio of mismatched responses is negative on
        # average
    ):
        return float((expit(-ratio[chosen]) + expit(ratio[rejected])).mean())
    if method == "aot-unpaired":
        return float(np.logaddexp(0, np.sort(ratio[rejected]) - np.sort(ratio[chosen])).mean())
    if (
        method == "aot-second-order"
    ):  # Simpson's rule on each piece of the integrated difference of the quantiles
        end = np.cumsum(np.sort(ratio[chosen]) - np.sort(ratio[rejected])) / len(chosen)
        start = np.append(0, end[:-1])
        at = [np.logaddexp(0, -(start + share * (end - start))) for share in (0, 0.5, 1)]
        return float(((at[0] + 4 * at[1] + at[2]) / 6).mean())
    if method == "aot-linear":
        return float(
            np.logaddexp(
                0, np.sort((world.psi @ w)[rejected]) - np.sort((world.psi @ w)[chosen])
            ).mean()
        )
    x = world.psi[chosen] - world.psi[rejected]
    return float(
        np.logaddexp(0, np.sort(x @ world.theta_ref) - np.sort(x @ (w + world.theta_ref))).mean()
    )


@pytest.mark.parametrize(
    "method", ["kto", "aot-unpaired", "aot-linear", "aot-paired", "aot-second-order"]
)
def test_no_point_of_a_grid_is_better(fitted: tuple, method: str) -> None:
    world, weights, _, fits = fitted
    found = fits[method]
    assert found.value == pytest.approx(_by_hand(world, weights, found.w, method), abs=1e-10)
    assert found.value <= min(_by_hand(world, weights, w, method) for w in _grid(world)) + 1e-9


def test_kto_on_reference_responses_compares_with_zero(fitted: tuple) -> None:
    """The mean log-ratio of a mismatched response is below 0 here, so that KTO's reference point is
    0 at its minimiser."""
    world, weights, _, fits = fitted
    counts = np.round(weights * 300).astype(int)
    responses = np.concatenate([np.repeat(world.chosen, counts), np.repeat(world.rejected, counts)])
    prompts, actions = responses // 4, responses % 4
    ratio = world.log_ratio(torch.from_numpy(fits["kto"].w)).numpy().reshape(3, 4)
    assert ratio[prompts[:, None], actions].mean() < 0


def test_paired_aot_with_a_uniform_reference_is_dpo() -> None:
    world = build_world(Spec(contexts=2, actions=4, dimension=2))
    pairs = Pairs.of(world, world.sample(np.random.default_rng(0), 200, 1)[0])
    starts = random_starts(np.random.default_rng(1), 3, 2, BOUND)
    np.testing.assert_allclose(
        fit_aot_paired(world, pairs, starts).w, fit_dpo(world, pairs).w, atol=1e-8
    )


def test_newton_from_starts_ends_where_the_alternation_does() -> None:
    world = build_world(Spec("curved", contexts=2, actions=4, dimension=2))
    laws = world.laws(world.sample(np.random.default_rng(3), 100, 1)[0])
    starts = random_starts(np.random.default_rng(1), 40, 2, BOUND)
    other = minimise_aot(
        world.psi, world.psi, *laws, starts=starts, h=logistic, beta=BETA, bound=BOUND
    )
    assert fit_aot(world, *laws, starts).value == pytest.approx(float(other.value), abs=1e-9)


@given(st.floats(0.01, 0.5), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_scaling_meets_the_kl(target: float, seed: int) -> None:
    world = build_world(SMALL)
    w = np.random.default_rng(seed).standard_normal(2)
    assert float(world.kl(scale_to_kl(world, w, target) * w)) == pytest.approx(target, rel=1e-9)


def test_a_kl_that_no_scale_reaches_is_nan() -> None:
    assert np.isnan(scale_to_kl(build_world(SMALL), np.zeros(2), 0.3))
