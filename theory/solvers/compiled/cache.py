"""Where numba keeps a compiled function of this folder.

By itself it asks for the path and the date of the source, so that each copy of the package, and
each checkout, would compile anew. What a function is compiled from is in the name of the folder
(`available.cache_folder`) already.
"""

from pathlib import Path
from typing import Any, Self

from numba.core import config as settings
from numba.core.caching import _CacheLocator

config: Any = settings


class InOurFolder(_CacheLocator):
    """The folder that is set while kernels are loaded."""

    def __init__(self, line: int) -> None:
        self._folder, self._line = Path(config.CACHE_DIR), line

    @classmethod
    def from_function(cls, function: Any, _: str) -> Self | None:
        self = cls(function.__code__.co_firstlineno)
        try:
            self.ensure_cache_path()
        except OSError:
            return None
        return self

    def get_cache_path(self) -> str:
        return str(self._folder)

    def get_source_stamp(self) -> str:
        return self._folder.name

    def get_disambiguator(self) -> str:
        return str(self._line)
