"""`import prefdro`: the names of `theory`, under the name of the package."""

from typing import Any

import theory


def __getattr__(name: str) -> Any:
    return getattr(theory, name)


def __dir__() -> list[str]:
    return dir(theory)
