"""The twins of the sets of the two papers, by the programs of `theory.twins.programs`."""

from functools import partial
from typing import Any

from theory.twins import Array, Twin, collapse_radii, programs, worst_cases


def _fit(program: Any, knob: str, u: Array, p: Array, size: float, **more: Any) -> Any:
    """An estimator of `programs`, whose gap is certified."""
    found = program(u, p, **{knob: size}, **more)
    return found.theta, found.value, found.gap


def _atoms(u: Array, p: Array, size: float, *, label_cost: float, **more: Any) -> Any:
    return _fit(programs.wdpo_finite, "radius", u, p, size, **more)


def _atoms_collapse(u: Array, p: Array, *, distance: Array, power: int, label_cost: float) -> float:
    return collapse_radii.wasserstein_collapse(u, p, distance, power)


def _free_collapse(u: Array, p: Array, *, power: int, label_cost: float | None) -> float:
    if label_cost is not None:
        return collapse_radii.label_collapse(u, p, label_cost)
    return collapse_radii.free_collapse(u, p, power)


def _worst(name: str, losses: Array, p: Array, size: float) -> float:
    return worst_cases.reweighting(name, losses, p, size)[1]


_ATOMS = Twin(_atoms, _atoms_collapse)
_FREE = Twin(partial(_fit, programs.wdpo_free, "radius"), _free_collapse)
TWINS = {
    "kl": Twin(
        partial(_fit, programs.kldpo, "radius"), collapse_radii.kl_collapse, partial(_worst, "kl")
    ),
    "tilt": Twin(partial(_fit, programs.kldpo_tilt, "temperature"), None),
    "w1-finite": _ATOMS,
    "w2-finite": _ATOMS,
    "w1-free": _FREE,
    "w1-label": _FREE,
    "w2-free": _FREE,
}
