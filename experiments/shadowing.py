"""The import names of this project are common ones: another package may come first."""

import sys
from importlib.util import find_spec
from pathlib import Path

NAMES = ("theory", "llm", "experiments", "paper_figures")
ROOT = Path(__file__).resolve().parents[1]


def refuse_shadowed() -> None:
    """Raise ImportError where one of our names leads to another package than the one next to
    this."""
    for name in NAMES:
        spec = find_spec(name)
        places = list(spec.submodule_search_locations or []) if spec else []
        found = places[0] if places else spec.origin if spec else None
        if found is None:
            raise ImportError(
                f"there is no package {name} in {ROOT}, where the rest of prefdro is: the clone is"
                " not complete. Clone it again, and run `make install` there."
            )
        if Path(found).resolve() != ROOT / name:
            raise ImportError(
                f"`import {name}` finds {(spec and spec.origin) or found} and not prefdro's, which"
                f" is {ROOT / name}: another package of that name comes first on the path of"
                f" {sys.executable}. Run prefdro in an environment of its own (`make install` in"
                f" {ROOT}, then .venv/bin/prefdro), or remove the other: `pip uninstall {name}`, or"
                " take its folder out of PYTHONPATH or of the current folder."
            )
