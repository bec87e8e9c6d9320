"""Robust preference alignment in a log-linear world: exact estimators, worst cases and bounds.

    from theory import KL, collapse_radius, fit, worst_case

    found = fit(u, KL(0.02), beta=1.0)      # u: signed feature differences, one row a pair
    found.theta, found.value, found.gap     # gap bounds value - optimum
    found.worst.weights                     # where the adversary leans
    collapse_radius(u, KL())                # from here on the reference policy is the answer

Names are loaded when they are first used. Those of ambiguity sets and losses come from
`theory.sets` and `theory.losses`: a new one is exported by being there.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from theory.aot import minimise_aot as minimise_aot
    from theory.collapse import collapse_radius as collapse_radius
    from theory.comparisons.model import PreferenceModel as PreferenceModel
    from theory.fitting import dpo as dpo
    from theory.fitting import fit as fit
    from theory.inference import Inference as Inference
    from theory.inference import infer as infer
    from theory.laws.law import Law as Law
    from theory.laws.law import limit_law as limit_law
    from theory.radius_choice import suggest_radii as suggest_radii
    from theory.results import Fit as Fit
    from theory.separable import separation as separation
    from theory.sets import SETS as SETS
    from theory.sets import AmbiguitySet as AmbiguitySet
    from theory.worst_cases import WorstCase as WorstCase
    from theory.worst_cases import worst_case as worst_case

_ROOMS = {
    "theory.fitting": ("dpo", "fit"),
    "theory.inference": ("Inference", "infer"),
    "theory.laws.law": ("Law", "limit_law"),
    "theory.results": ("Fit",),
    "theory.problem": ("Problem",),
    "theory.separable": ("Separation", "separation"),
    "theory.policy": ("policy_kl",),
    "theory.comparisons.model": ("PreferenceModel",),
    "theory.collapse": ("collapse_radius",),
    "theory.flip_rate": (
        *("Disagreement", "FlipRate", "disagreement", "estimate_flip_rate", "flip_rates_by_group"),
    ),
    "theory.worst_cases": ("Moves", "WorstCase", "worst_case"),
    "theory.radius_choice": ("RadiusChoice", "describe", "suggest_radii"),
    "theory.sets": ("SETS", "AmbiguitySet"),
    "theory.aot": ("minimise_aot",),
    "theory.worlds": (
        *("ContinuousWorld", "FiniteWorld", "from_labels", "from_policy", "from_rewards"),
        *("random_world", "read_table"),
    ),
    "theory.doubly_robust": ("total_preference",),
    "theory.regret": ("least_regret",),
    "theory.stochastic_dominance": ("dominance",),
    "theory.spectra": ("exponential", "lower_tail", "spectral_mean", "upper_tail"),
    "theory.functionals": (
        *("aot_paired", "aot_second_order", "aot_unpaired", "chi2_ball", "cvar", "dr_dpo"),
        *("gradient_norm", "group_dro", "kl_ball", "kl_tilt", "mean", "tilt_weights"),
        *("token_mean", "total_variation_ball", "worst_group"),
    ),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name == "__all__":
        return __dir__()
    if not name.startswith("_"):
        found = _exported()
        if name in found:
            return found[name]
    raise AttributeError(
        f"module 'theory' has no attribute {name!r}; there are {', '.join(__dir__())}."
    )


def __dir__() -> list[str]:
    return sorted({*_HOME, *_exported()})


def _exported() -> dict[str, Any]:
    from theory.losses import EXPORTS as of_losses
    from theory.sets import EXPORTS as of_sets

    return of_losses | of_sets
