"""The estimators of the studies by name, each with the one number that sets its robustness.

Radii are given as fractions of the collapse radius in the population, so that 1 means that the
reference policy itself is the answer, whatever the ball. `knob` turns a fraction into what the
estimator takes; for the temperature of the practical KLDPO that is the dual optimum of the KL ball
at the same fraction, since the two correspond one to one (claim 12).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from theory import estimators
from theory.batch import PairBatch
from theory.collapse import collapse_radius, free_collapse
from theory.estimators import Fit
from theory.policy import Array


@dataclass(frozen=True)
class Setting:
    """What an estimator needs besides the sample: beta, B, theta_ref, the metric on the atoms and
    the label cost."""

    beta: float
    bound: float
    theta_ref: Array
    label_cost: float
    distance: Array | None = None  # only in a finite world

    @property
    def common(self) -> dict[str, Any]:
        """The arguments that every estimator shares."""
        return {"beta": self.beta, "bound": self.bound, "theta_ref": self.theta_ref}


@dataclass(frozen=True)
class Method:
    """One estimator: `fit` takes (pairs, knob, setting); `knob` takes (population, fraction,
    setting)."""

    about: str
    fit: Callable[[PairBatch, float, Setting], Fit]
    knob: Callable[[PairBatch, float, Setting], float] | None = None  # None: nothing to set
    finite_only: bool = False
    temperature: bool = False  # the knob falls as the radius grows: tau ~ radius^-1/2


def _u(pairs: PairBatch) -> tuple[Any, Any]:
    features = pairs.ut.mT
    return (features[0] if features.shape[0] == 1 else features), pairs.p


def _ball(ball: str) -> Callable[[PairBatch, float, Setting], float]:
    def knob(population: PairBatch, fraction: float, setting: Setting) -> float:
        u, p = _u(population)
        distance = setting.distance if ball.endswith("finite") else None
        return (
            fraction
            * collapse_radius(ball, u, p, distance=distance, label_cost=setting.label_cost).item()
        )

    return knob


def _temperature(population: PairBatch, fraction: float, setting: Setting) -> float:
    u, p = _u(population)
    fit = estimators.kldpo(
        u, p, radius=_ball("kl")(population, fraction, setting), **setting.common
    )
    assert fit.dual is not None
    return fit.dual.item()


def _drift(population: PairBatch, fraction: float, setting: Setting) -> float:
    return fraction * free_collapse(population, 2).item()


def _finite(power: int) -> Callable[[PairBatch, float, Setting], Fit]:
    def fit(pairs: PairBatch, radius: float, setting: Setting) -> Fit:
        assert setting.distance is not None
        return estimators.wdpo_finite(
            *_u(pairs), distance=setting.distance, power=power, radius=radius, **setting.common
        )

    return fit


def _free(power: int, labels: bool = False) -> Callable[[PairBatch, float, Setting], Fit]:
    def fit(pairs: PairBatch, radius: float, setting: Setting) -> Fit:
        kappa = setting.label_cost if labels else None
        return estimators.wdpo_free(
            *_u(pairs), power=power, radius=radius, label_cost=kappa, **setting.common
        )

    return fit


def _penalty(squared: bool) -> Callable[[PairBatch, float, Setting], Fit]:
    def fit(pairs: PairBatch, strength: float, setting: Setting) -> Fit:
        return estimators.gradient_penalty(
            *_u(pairs), strength=strength, squared=squared, **setting.common
        )

    return fit


METHODS: dict[str, Method] = {
    "dpo": Method(
        "DPO, the mean loss", lambda pairs, _, setting: estimators.dpo(*_u(pairs), **setting.common)
    ),
    "kldpo": Method(
        "KLDPO, exact, KL ball",
        lambda pairs, radius, setting: estimators.kldpo(
            *_u(pairs), radius=radius, **setting.common
        ),
        _ball("kl"),
    ),
    "kldpo-tilt": Method(
        "KLDPO, practical, temperature tau (Algorithm 2)",
        lambda pairs, tau, setting: estimators.kldpo_tilt(
            *_u(pairs), temperature=tau, **setting.common
        ),
        _temperature,
        temperature=True,
    ),
    "wdpo-w1": Method(
        "WDPO, exact, W1 ball on the atoms", _finite(1), _ball("w1-finite"), finite_only=True
    ),
    "wdpo-w2": Method(
        "WDPO, exact, W2 ball on the atoms", _finite(2), _ball("w2-finite"), finite_only=True
    ),
    "wdpo-w1-free": Method(
        "WDPO, exact, W1 ball, free features, fixed labels", _free(1), _ball("w1-free")
    ),
    "wdpo-w1-label": Method(
        "WDPO, exact, W1 ball, free features and labels", _free(1, labels=True), _ball("w1-label")
    ),
    "wdpo-w2-free": Method(
        "WDPO, exact, W2 ball, free features, fixed labels", _free(2), _ball("w2-free")
    ),
    "wdpo-norm": Method("WDPO, practical, gradient norm (Algorithm 1)", _penalty(False), _drift),
    "wdpo-squared": Method(
        "WDPO, practical, squared gradient norm (released code)", _penalty(True), _drift
    ),
}
