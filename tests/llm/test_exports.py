"""The public names of `llm`, and what importing it costs."""

import sys
from importlib import import_module

import pytest

import llm
from tests.launches import run


def test_every_name_is_there() -> None:
    for name in llm.__all__:
        thing = getattr(llm, name)
        home = import_module(llm._HOME[name])
        assert thing is getattr(home, name)
    with pytest.raises(AttributeError, match=r"no attribute 'Trainer'; there are .*tokenise"):
        _ = llm.Trainer


def test_importing_it_imports_neither_torch_nor_transformers() -> None:
    heavy = "('torch', 'transformers', 'pandas')"
    code = f"import sys, llm; print([n for n in {heavy} if n in sys.modules])"
    assert run([sys.executable, "-c", code]).stdout.strip() == "[]"


def test_the_room_of_data_hands_on_its_names() -> None:
    from llm import data

    for name in data.__all__:
        assert getattr(data, name).__module__.startswith("llm.data.")
    with pytest.raises(AttributeError, match="no attribute 'rows_of'"):
        _ = data.rows_of
