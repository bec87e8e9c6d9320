"""Losses and objectives from outside: from MODULE:NAME, or an object, to what the registry of
`llm.objectives` takes, and the fingerprint of its source.

What they compute is checked by `llm.objective_checks`.
"""

import hashlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from llm.pair_losses import PairLoss, PairParameters, margin
from llm.scores import Pairs

# numbers that a function of margins may ask for by their names
NUMBERS = tuple(f.name for f in fields(PairParameters) if f.type in (float, float | None))


def is_place(name: str) -> bool:
    """Whether a name says where something is, as MODULE:NAME, and is no name of a registry."""
    return ":" in name


def imported(place: str, option: str) -> Any:
    """What MODULE:NAME stands for. The current folder is searched last, for a command does not look
    there by itself.

    Args:
        place: MODULE with dots, and NAME in it.
        option: of the command line that has it, for messages.

    Raises:
        ValueError: it is not of this form, the module cannot be imported, or has no such name.
    """
    module_name, _, name = place.partition(":")
    if not name.isidentifier() or not all(x.isidentifier() for x in module_name.split(".")):
        raise ValueError(
            f"--{option} {place!r} is not of the form MODULE:NAME. Write the module as in an import"
            " statement, without .py and with dots for folders, and one name in it, such as"
            " my_package.my_losses:my_loss."
        )
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(_failed(place, option, module_name, error)) from error
        raise ValueError(
            f"--{option} {place}: there is no module {error.name} on Python's path, nor in {here}."
            " Start the command in the folder that has it, put that folder into PYTHONPATH, or"
            " install the package (pip install -e FOLDER)."
        ) from error
    except Exception as error:  # whatever the reader's own file does
        raise ValueError(_failed(place, option, module_name, error)) from error
    if not hasattr(module, name):
        own = [n for n, x in vars(module).items() if callable(x) and not n.startswith("_")]
        near = get_close_matches(name, own, 1, 0.6)
        raise ValueError(
            f"--{option} {place}: {module_name} ({getattr(module, '__file__', 'built in')}) has no"
            f" {name}. "
            + (f"Did you mean {near[0]}?" if near else f"It has {', '.join(own[:8]) or 'none'}.")
        )
    return getattr(module, name)


def _failed(place: str, option: str, module: str, error: Exception) -> str:
    return (
        f"--{option} {place}: importing {module} ended with {type(error).__name__}: {error}. Try"
        f" `python -c 'import {module}'`, which shows the line."
    )


def as_pair_loss(thing: Any, name: str) -> PairLoss:
    """A loss of a pair from a function of margins, or an object or class that is called like one.

    Its first parameter are the margins (n,); the others are options of the trainer of the same
    names (`NUMBERS`): needed, if they have no default.

    Raises:
        ValueError: it cannot be called like that.
    """
    if isinstance(thing, type):
        try:
            thing = thing()
        except TypeError as error:
            raise ValueError(
                f"{name} is a class that cannot be made without arguments ({error}). Give them"
                " defaults, or name an object of it that your module makes."
            ) from error
    if not callable(thing):
        raise ValueError(
            f"{name} is {thing!r}, which cannot be called. Give a function of margins (n,) that"
            " returns losses (n,), a PairLoss, a Spec or a set of weights."
        )
    try:
        parameters = list(inspect.signature(thing).parameters.values())
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} does not say what it takes ({error}). Write a function around it: def"
            " my_loss(margin)."
        ) from error
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    options = [x for x in parameters[1:] if x.name in NUMBERS]
    strange = [
        x.name
        for x in parameters[1:]
        if x.name not in NUMBERS and x.default is x.empty and x.kind not in starred
    ]
    if not parameters or parameters[0].kind not in positional or strange:
        raise ValueError(
            f"{name} has the signature {inspect.signature(thing)}. A loss takes the margins first"
            f" and after them only numbers with the names {', '.join(NUMBERS)}, which are options"
            " of the trainer; give others a default. For log-probabilities or lengths make a"
            " PairLoss, whose value is a function of parameters and pairs."
        )
    wanted = [x.name for x in options if x.name != "beta"]
    needed = tuple(x.name for x in options if x.name in wanted and x.default is x.empty)
    return PairLoss(
        name,
        (inspect.getdoc(thing) or "a loss of margins").partition("\n")[0],
        f"from outside: {getattr(thing, '__module__', type(thing).__module__)}",
        partial(_of_margins, thing, tuple(x.name for x in options)),
        needed,
        (*(x for x in wanted if x not in needed), "link", "link_alpha"),
    )


def _of_margins(
    loss: Callable[..., Tensor], options: tuple[str, ...], p: PairParameters, s: Pairs
) -> Tensor:
    numbers = {name: getattr(p, name) for name in options}
    return loss(margin(p, s), **{name: x for name, x in numbers.items() if x is not None})


def source_sha256(thing: Any) -> str:
    """SHA-256 of the file in which a thing from outside is written; in a script or notebook that is
    run, of its own lines. "unknown" where Python has kept neither.

    What it calls in other files does not count.
    """
    written = _written(thing)
    try:
        if getattr(written, "__module__", "__main__") == "__main__":
            return hashlib.sha256(inspect.getsource(written).encode()).hexdigest()
        file = inspect.getsourcefile(written)
        return hashlib.sha256(Path(file or "").read_bytes()).hexdigest()
    except (OSError, TypeError):
        return "unknown"


def _written(thing: Any) -> Any:
    """The function or class whose lines make a thing what it is."""
    for name in ("value", "build"):  # of a PairLoss, of a Spec
        if inspect.isfunction(inner := getattr(thing, name, None)) or isinstance(inner, partial):
            thing = inner
    while isinstance(thing, partial):
        thing = thing.func
    thing = inspect.unwrap(thing) if callable(thing) else thing
    known = inspect.isroutine(thing) or inspect.isclass(thing)
    return thing if known else type(thing)
