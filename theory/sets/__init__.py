"""Ambiguity sets. A module of this folder with MEMBERS and ESTIMATORS is found by itself.

SETS["kl"]      every kind by its name, without its size
EXPORTS["KL"]   its class, and the estimator that is named after it, as `theory` hands them on

>>> from theory import SETS
>>> SETS["kl"].sized(0.1)
KL(radius=0.1)
>>> SETS["cvar"].facts.size, SETS["cvar"].facts.grows
('share', False)
"""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from theory.sets.base import AmbiguitySet, AtPolicy, Facts


class _Registry(dict[str, AmbiguitySet]):
    """The sets by name; an unknown name is told with those that there are."""

    def __missing__(self, name: object) -> AmbiguitySet:
        raise KeyError(f"no ambiguity set is named {name!r}; there are {', '.join(self)}")


def _modules() -> list[ModuleType]:
    names = sorted(module.name for module in iter_modules(__path__))
    return [import_module(f"{__name__}.{name}") for name in names if name != "base"]


def _members(modules: list[ModuleType]) -> _Registry:
    found = [set for module in modules for set in module.MEMBERS]
    ordered = sorted(found, key=lambda s: (s.facts.order, s.name))
    return _Registry({set.name: set for set in ordered})


def _exports(modules: list[ModuleType]) -> dict[str, Any]:
    kinds = {type(set) for module in modules for set in module.MEMBERS}
    estimators = {estimator for module in modules for estimator in module.ESTIMATORS}
    return {thing.__name__: thing for thing in (*kinds, *estimators)}


SETS = _members(_modules())
EXPORTS = _exports(_modules())

__all__ = ["EXPORTS", "SETS", "AmbiguitySet", "AtPolicy", "Facts"]
