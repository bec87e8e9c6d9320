"""Training of language models with the losses of `theory`: the public names.

    from llm import ObjectiveParameters, PreferenceArguments, PreferenceTrainer, load_rows, tokenise

Names are loaded when they are first used: importing `llm` imports neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm.arguments import PreferenceArguments as PreferenceArguments
    from llm.data.tokens import PreferenceCollator as PreferenceCollator
    from llm.data.tokens import load_rows as load_rows
    from llm.data.tokens import tokenise as tokenise
    from llm.logprobs import sequence_logprobs as sequence_logprobs
    from llm.models import language_model as language_model
    from llm.models import load_language_model as load_language_model
    from llm.models import load_tokenizer as load_tokenizer
    from llm.models import word_tokenizer as word_tokenizer
    from llm.objectives import OBJECTIVES as OBJECTIVES
    from llm.objectives import SPECS as SPECS
    from llm.objectives import ObjectiveParameters as ObjectiveParameters
    from llm.objectives import Spec as Spec
    from llm.objectives import make_objective as make_objective
    from llm.objectives import register as register
    from llm.objectives import robust as robust
    from llm.pair_losses import PairLoss as PairLoss
    from llm.reference import reference_logps as reference_logps
    from llm.scores import Pairs as Pairs
    from llm.trainer import PreferenceTrainer as PreferenceTrainer
    from llm.weights import located as located

_HOME = {
    "OBJECTIVES": "llm.objectives",
    "SPECS": "llm.objectives",
    "ObjectiveParameters": "llm.objectives",
    "PairLoss": "llm.pair_losses",
    "Pairs": "llm.scores",
    "PreferenceArguments": "llm.arguments",
    "PreferenceCollator": "llm.data.tokens",
    "PreferenceTrainer": "llm.trainer",
    "Spec": "llm.objectives",
    "language_model": "llm.models",
    "load_language_model": "llm.models",
    "load_rows": "llm.data.tokens",
    "load_tokenizer": "llm.models",
    "located": "llm.weights",
    "make_objective": "llm.objectives",
    "reference_logps": "llm.reference",
    "register": "llm.objectives",
    "robust": "llm.objectives",
    "sequence_logprobs": "llm.logprobs",
    "tokenise": "llm.data.tokens",
    "word_tokenizer": "llm.models",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'llm' has no attribute {name!r}; there are {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return __all__
