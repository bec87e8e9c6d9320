"""The estimators by their own names, beside `fit`."""

from theory.fitting import dpo, fit
from theory.results import Fit
from theory.sets.gradient_penalty import gradient_penalty
from theory.sets.kl import kldpo
from theory.sets.tilt import kldpo_tilt
from theory.sets.wasserstein_atoms import wdpo_finite
from theory.sets.wasserstein_free import wdpo_free

__all__ = [
    "Fit",
    "dpo",
    "fit",
    "gradient_penalty",
    "kldpo",
    "kldpo_tilt",
    "wdpo_finite",
    "wdpo_free",
]
