"""Every error names the value received and a remedy: a ValueError, never a NaN or an exception from
deep inside."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.theory.instances import collapse_of
from theory.estimators import dpo, gradient_penalty, kldpo, kldpo_tilt, wdpo_finite, wdpo_free
from theory.functionals import dr_dpo, kl_ball, kl_tilt, tilt_weights
from theory.worlds import (
    ContinuousWorld,
    FiniteWorld,
    from_labels,
    from_policy,
    from_rewards,
    random_world,
)

U = np.array([[1.0, 0.2], [-0.3, 0.4], [0.5, -1.0]])
D = np.linalg.norm(U[:, None] - U[None], axis=-1)
PLAIN: dict[str, Any] = {"beta": 1.0, "bound": 2.0}
ESTIMATORS: dict[str, Callable[..., Any]] = {
    "dpo": dpo,
    "kldpo": lambda *a, **k: kldpo(*a, radius=0.1, **k),
    "kldpo_tilt": lambda *a, **k: kldpo_tilt(*a, temperature=0.5, **k),
    "wdpo_finite": lambda *a, **k: wdpo_finite(*a, distance=D, power=1, radius=0.1, **k),
    "wdpo_free": lambda *a, **k: wdpo_free(*a, power=2, radius=0.1, **k),
    "gradient_penalty": lambda *a, **k: gradient_penalty(*a, strength=0.1, **k),
}
RADIUS: dict[str, Callable[..., Any]] = {
    "kldpo": lambda r: kldpo(U, radius=r, **PLAIN),
    "wdpo_finite": lambda r: wdpo_finite(U, distance=D, power=2, radius=r, **PLAIN),
    "w1": lambda r: wdpo_free(U, power=1, radius=r, **PLAIN),
    "w1-label": lambda r: wdpo_free(U, power=1, radius=r, label_cost=0.5, **PLAIN),
    "w2": lambda r: wdpo_free(U, power=2, radius=r, **PLAIN),
    "gradient_penalty": lambda r: gradient_penalty(U, strength=r, **PLAIN),
}


def refuses(call: Callable[[], Any], *words: str) -> None:
    """The call raises a ValueError whose message holds each of the words."""
    with pytest.raises(ValueError) as error:
        call()
    for word in words:
        assert word in str(error.value), f"{word!r} not in: {error.value}"


# --------------------------------------------------------------------------------------- estimators
@pytest.mark.parametrize("name", ESTIMATORS)
def test_samples(name: str) -> None:
    fit = ESTIMATORS[name]
    bad = U.copy()
    bad[1, 0] = np.nan
    refuses(lambda: fit(bad, **PLAIN), "1 non-finite", "Remove")
    refuses(lambda: fit(np.where(U > 0.9, np.inf, U), **PLAIN), "1 non-finite", "Remove")
    refuses(lambda: fit(np.zeros((0, 2)), **PLAIN), "(0, 2)", "Pass")
    refuses(lambda: fit(np.ones(3), **PLAIN), "(3,)", "Pass")
    refuses(lambda: fit(U, np.array([0.5, 0.5, 0.5]), **PLAIN), "1.5", "divided")
    refuses(lambda: fit(U, np.array([1.5, -0.75, 0.25]), **PLAIN), "-0.75", "divided")
    refuses(lambda: fit(U, np.array([0.5, np.nan, 0.5]), **PLAIN), "nan", "divided")
    refuses(lambda: fit(U, np.array([0.5, 0.5]), **PLAIN), "(3,)", "2)")
    refuses(lambda: fit(np.stack([U, U]), np.full((3, 3), 1 / 3), **PLAIN), "2 replicates", "3")


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("value", [0.0, -1.5, np.nan, np.inf])
def test_beta_and_bound(name: str, value: float) -> None:
    refuses(lambda: ESTIMATORS[name](U, beta=value, bound=1.0), "beta", str(value), "papers use")
    refuses(lambda: ESTIMATORS[name](U, beta=1.0, bound=value), "bound", str(value), "leave it out")


@pytest.mark.parametrize("name", ESTIMATORS)
def test_reference(name: str) -> None:
    fit = ESTIMATORS[name]
    refuses(lambda: fit(U, theta_ref=[3.0, 4.0], **PLAIN), "norm 5", "2", "enlarge the bound")
    refuses(lambda: fit(U, theta_ref=[0.0, 2.0], **PLAIN), "norm 2", "enlarge the bound")
    refuses(lambda: fit(U, theta_ref=[0.0, 0.1, 0.2], **PLAIN), "(3,)", "2 finite")


def test_reference_that_is_not_a_number() -> None:
    refuses(lambda: dpo(U, theta_ref=[0.0, np.nan], **PLAIN), "theta_ref", "nan")


@pytest.mark.parametrize("name", RADIUS)
@pytest.mark.parametrize("value", [-0.25, np.nan, np.inf])
def test_radius(name: str, value: float) -> None:
    word = "strength" if name == "gradient_penalty" else "radius"
    refuses(lambda: RADIUS[name](value), word, f"{value:g}", "Use 0")
    refuses(lambda: RADIUS[name](torch.tensor([value])), f"{value:g}")


@pytest.mark.parametrize("value", [-0.25, np.nan, np.inf])
def test_one_bad_radius_among_several_is_the_one_named(value: float) -> None:
    refuses(lambda: kldpo(np.stack([U, U]), radius=[0.125, value], **PLAIN), f"{value:g}")


def test_number_of_radii() -> None:
    refuses(lambda: kldpo(np.stack([U, U]), radius=[0.1, 0.2, 0.3], **PLAIN), "(2,)", "(3,)")


@pytest.mark.parametrize("value", [0.0, -0.5, np.nan, np.inf])
def test_temperature(value: float) -> None:
    with pytest.raises(ValueError) as error:
        kldpo_tilt(U, temperature=value, **PLAIN)
    assert "temperature" in str(error.value) and f"{value:g}" in str(error.value).replace(
        "0.0", "0"
    )
    assert "Use 0" not in str(error.value)  # a temperature of zero is no remedy
    if np.isfinite(value):
        for functional in (kl_tilt, dr_dpo, tilt_weights):
            refuses(
                lambda functional=functional: functional(torch.ones(3), value),
                str(value),
                "small value",
            )


def test_radius_of_the_kl_functional() -> None:
    refuses(lambda: kl_ball(torch.ones(3), -0.25), "-0.25")
    refuses(lambda: kl_ball(torch.ones(3), float("nan")), "nan")


def test_power() -> None:
    for power in (0, 3, 1.5):
        refuses(
            lambda power=power: wdpo_free(U, power=power, radius=0.1, **PLAIN), str(power), "1 or 2"
        )
        refuses(
            lambda power=power: wdpo_finite(U, distance=D, power=power, radius=0.1, **PLAIN),
            str(power),
            "1 or 2",
        )


@pytest.mark.parametrize("kappa", [0.0, -0.5, np.nan, np.inf])
def test_label_cost(kappa: float) -> None:
    refuses(
        lambda: wdpo_free(U, power=1, radius=0.1, label_cost=kappa, **PLAIN),
        "label_cost",
        str(kappa),
        "Pass None",
    )
    refuses(lambda: collapse_of("w1-label", U, label_cost=kappa), "label_cost", str(kappa))


def test_label_cost_belongs_to_the_first_order() -> None:
    refuses(
        lambda: wdpo_free(U, power=2, radius=0.1, label_cost=0.5, **PLAIN),
        "label_cost",
        "power=2",
        "power=1",
    )


def bad_metrics() -> dict[str, tuple[Any, tuple[str, ...]]]:
    negative, lopsided, diagonal, holes = D.copy(), D.copy(), D.copy(), D.copy()
    negative[0, 1] = negative[1, 0] = -0.5
    lopsided[0, 1] += 0.25
    diagonal[2, 2] = 0.125
    holes[0, 1] = holes[1, 0] = np.nan
    return {
        "negative": (negative, ("-0.5", "sign")),
        "asymmetric": (lopsided, ("0.25", "transpose")),
        "diagonal": (diagonal, ("0.125", "zero")),
        "shape": (D[:2, :2], ("(2, 2)", "(3, 3)")),
        "nan": (holes, ("NaN", "instead")),
        "missing": (None, ("(3, 3)", "needs")),
    }


@pytest.mark.parametrize("kind", bad_metrics())
def test_metric(kind: str) -> None:
    matrix, words = bad_metrics()[kind]
    refuses(
        lambda: wdpo_finite(U, distance=matrix, power=1, radius=0.1, **PLAIN), "distance", *words
    )
    refuses(lambda: collapse_of("w2-finite", U, distance=matrix), "distance", *words)


# ------------------------------------------------------------------------------------------- worlds
def seeds() -> list[np.random.SeedSequence]:
    return np.random.SeedSequence(0).spawn(1)


@pytest.mark.parametrize("n", [0, -5, 2.5, float("nan"), float("inf")])
def test_sample_size(n: float) -> None:
    finite = random_world(0, contexts=1, actions=2, dimension=2, beta=1.0, bound=1.0)
    continuous = ContinuousWorld("sphere", 2, np.array([1.0, 0.0]), 1.0, 2.0)
    for world in (finite, continuous):
        refuses(lambda world=world: world.sample(n, seeds()), str(n), "whole number")


def test_features_of_a_world() -> None:
    psi = np.array([[0.5, 0.0], [0.0, 0.5]])
    ones = np.ones(2, dtype=int)
    hole = np.array([[0.5, np.nan], [0.0, 0.5]])
    refuses(lambda: from_labels(hole, psi, ones, **PLAIN), "psi1", "1 non-finite", "Drop")
    refuses(lambda: from_labels(psi, hole, ones, **PLAIN), "psi2", "1 non-finite", "Drop")
    refuses(lambda: from_labels(5 * psi, psi, ones, **PLAIN), "psi1", "norm 2.5", "Divide")
    refuses(lambda: from_labels(psi, 5 * psi, ones, **PLAIN), "psi2", "norm 2.5", "Divide")
    refuses(lambda: from_labels(psi, psi[:1], ones, **PLAIN), "(2, 2)", "(1, 2)")
    refuses(
        lambda: from_labels(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), **PLAIN),
        "at least one pair",
        "(0, 2)",
    )
    refuses(lambda: from_rewards(psi, psi, np.array([1.0, np.nan]), np.zeros(2), **PLAIN), "nan")
    refuses(lambda: from_rewards(psi, psi, np.ones(3), np.zeros(3), **PLAIN), "3")


def test_labels_of_a_world() -> None:
    psi = np.array([[0.5, 0.0], [0.0, 0.5]])
    for label in (np.array([1, -1]), np.array([1, 2]), np.array([0.6, 1]), np.array([np.nan, 1])):
        odd = [x for x in label.tolist() if x not in (0, 1)]
        row = 1 if label[1] == 1 else 2
        refuses(
            lambda label=label: from_labels(psi, psi, label, **PLAIN),
            str(odd[0]),
            "0 or 1",
            f"that of pair {row}",
        )
    refuses(lambda: from_labels(psi, psi, [0.5, 0.5], ties="drop", **PLAIN), "2 pairs are ties")
    refuses(lambda: from_labels(psi, psi, [0.5, 0.5], ties="split", **PLAIN), "'split'", "'half'")
    refuses(
        lambda: from_labels(psi, psi, np.ones(3, dtype=int), **PLAIN), "(3,)", "one for each pair"
    )


def test_probabilities_of_a_world() -> None:
    psi, label = np.array([[0.5, 0.0], [0.0, 0.5]]), np.array([0, 1])

    def world(p: list[float]) -> FiniteWorld:
        return FiniteWorld(psi, -psi, label, np.array(p), 1.0, 1.0, np.zeros(2))

    refuses(lambda: world([0.5, 0.75]), "1.25", "Divide")
    refuses(lambda: world([1.25, -0.25]), "-0.25", "Divide")
    refuses(lambda: world([np.nan, 1.0]), "nan")
    features = np.array([[[0.5], [0.1]], [[0.2], [0.3]]])
    refuses(
        lambda: from_policy(
            features, np.ones(1), context_probability=np.array([0.5, 0.25]), **PLAIN
        ),
        "context_probability",
        "0.75",
    )


def test_as_many_probabilities_as_pairs_and_contexts() -> None:
    psi, label, three = (
        np.array([[0.5, 0.0], [0.0, 0.5]]),
        np.array([0, 1]),
        np.array([0.5, 0.25, 0.25]),
    )
    refuses(lambda: FiniteWorld(psi, -psi, label, three, 1.0, 1.0, np.zeros(2)), "3")
    features = np.array([[[0.5], [0.1]], [[0.2], [0.3]]])
    refuses(lambda: from_policy(features, np.ones(1), context_probability=three, **PLAIN), "3")


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_constants_of_a_world(value: float) -> None:
    psi, label = np.array([[0.5, 0.0]]), np.array([1])
    refuses(lambda: from_labels(psi, -psi, label, beta=value, bound=1.0), "beta", str(value))
    refuses(lambda: from_labels(psi, -psi, label, beta=1.0, bound=value), "bound", str(value))
    refuses(
        lambda: ContinuousWorld("sphere", 2, np.array([1.0, 0.0]), value, 2.0), "beta", str(value)
    )


def test_parameters_of_a_world() -> None:
    features = np.array([[[0.5, 0.0], [0.1, 0.2]]])
    refuses(
        lambda: from_policy(features, np.array([3.0, 4.0]), beta=1.0, bound=2.0),
        "norm 5",
        "2",
        "Enlarge",
    )
    refuses(
        lambda: from_policy(np.zeros((0, 2, 2)), np.ones(2), **PLAIN), "(0, 2, 2)", "at least one"
    )


def test_true_parameter_of_a_world() -> None:
    features = np.array([[[0.5, 0.0], [0.1, 0.2]]])
    refuses(lambda: from_policy(features, np.array([0.1, np.nan]), **PLAIN), "theta_star", "nan")
    refuses(lambda: from_policy(features, np.array([0.1, 0.2, 0.3]), **PLAIN), "theta_star", "(3,)")


def test_reference_of_a_world() -> None:
    features, psi = np.array([[[0.5, 0.0], [0.1, 0.2]]]), np.array([[0.5, 0.0]])
    refuses(
        lambda: from_policy(
            features, np.array([0.1, 0.2]), theta_ref=np.array([3.0, 4.0]), **PLAIN
        ),
        "5",
        "bound",
    )
    refuses(
        lambda: from_labels(psi, -psi, np.array([1]), theta_ref=np.array([3.0, 4.0]), **PLAIN),
        "5",
        "bound",
    )
    refuses(lambda: from_labels(psi, -psi, np.array([1]), theta_ref=np.zeros(3), **PLAIN), "(3,)")


@pytest.mark.parametrize("name", ["contexts", "actions", "dimension"])
def test_empty_random_worlds(name: str) -> None:
    size = {"contexts": 2, "actions": 2, "dimension": 2} | {name: 0}
    refuses(lambda: random_world(0, beta=1.0, bound=1.0, **size), name, "0", "empty")


def test_continuous_worlds() -> None:
    star = np.array([1.0, 0.0])
    refuses(lambda: ContinuousWorld("cube", 2, star, 1.0, 2.0), "'cube'", "sphere")
    refuses(lambda: ContinuousWorld("sphere", 1, star[:1], 1.0, 2.0), "1", "finite world")
    refuses(lambda: ContinuousWorld("sphere", 3, star, 1.0, 2.0), "(2,)", "(3,)")
    refuses(lambda: ContinuousWorld("sphere", 2, 5 * star, 1.0, 2.0), "5", "2")
    refuses(lambda: ContinuousWorld("sphere", 2, 0 * star, 1.0, 2.0), "0")
    refuses(lambda: ContinuousWorld("sphere", 2, np.array([np.nan, 0]), 1.0, 2.0), "nan")
