"""From files and data sets to tokens: rows, chat templates, checks. The room's names, lazily."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm.data.files import load_rows as load_rows
    from llm.data.rows import BadRows as BadRows
    from llm.data.tokens import PreferenceCollator as PreferenceCollator
    from llm.data.tokens import preference_texts as preference_texts
    from llm.data.tokens import tokenise as tokenise

_HOME = {
    "BadRows": "rows",
    "PreferenceCollator": "tokens",
    "load_rows": "files",
    "preference_texts": "tokens",
    "tokenise": "tokens",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"llm.data.{_HOME[name]}"), name)
    raise AttributeError(f"module 'llm.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
