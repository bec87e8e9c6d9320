"""Every name that `theory` and `llm` export says what it takes and shows an example that runs.

An example begins with nothing: it imports what it uses, as a reader who copies it has to.
"""

import dataclasses
import doctest
import inspect
import re
from io import StringIO
from typing import Any

import pytest

import llm
import theory
import theory.sets

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
VERSIONS = {"2502.01930": "v4", "2406.05882": "v1"}  # of the two papers, that were read


DOORS = {"theory": theory, "llm": llm}
# data whose own comment or page says what they are; fields of options say it in their help
PLAIN = {"llm.OBJECTIVES", "llm.SPECS"}
NAMES = [n for door, m in DOORS.items() for n in (f"{door}.{x}" for x in dir(m)) if n not in PLAIN]
TOLD_ELSEWHERE = {"llm.ObjectiveParameters", "llm.PreferenceArguments", "llm.PreferenceTrainer"}


def thing_of(name: str) -> Any:
    door, _, own = name.partition(".")
    return getattr(DOORS[door], own)


def docstring(name: str) -> str:
    """Of a class or function; of anything else that of the module it comes from."""
    thing = thing_of(name)
    own = inspect.isclass(thing) or inspect.isroutine(thing)
    return inspect.cleandoc((thing if own else theory.sets).__doc__ or "")


def parameters(thing: Any) -> list[str]:
    """Those of a function, and the public fields of a dataclass."""
    if inspect.isroutine(thing):
        return list(inspect.signature(thing).parameters)
    if dataclasses.is_dataclass(thing):
        return [f.name for f in dataclasses.fields(thing) if not f.name.startswith("_")]
    return []


@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs(name: str) -> None:
    test = doctest.DocTestParser().get_doctest(docstring(name), {}, name, None, None)
    assert test.examples, f"the docstring of {name} shows no example"
    out = StringIO()
    failed, _ = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=out.write)
    assert not failed, out.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_spoken_of(name: str) -> None:
    if name in TOLD_ELSEWHERE:
        return
    said = docstring(name)
    of_fit = parameters(theory.fit) if "rguments as `fit`" in said else []
    unsaid = [
        parameter
        for parameter in parameters(thing_of(name))
        if parameter not in of_fit and not re.search(rf"\b{parameter}\b", said.split(">>>")[0])
    ]
    assert not unsaid, f"the docstring of {name} says nothing of {', '.join(unsaid)}"


@pytest.mark.parametrize("name", NAMES)
def test_functions_say_what_they_return_and_papers_are_named_with_their_version(name: str) -> None:
    said = docstring(name)
    if inspect.isroutine(thing_of(name)):
        assert "Returns:" in said
    for paper, version in re.findall(r"arXiv:(\d{4}\.\d{5})(v\d+)?", said):
        assert version == VERSIONS.get(paper, version)
