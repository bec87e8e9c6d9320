"""`from theory import ...` and `from prefdro import ...` give what they name."""

import subprocess
import sys

import pytest

import prefdro
import theory


@pytest.mark.parametrize("name", dir(theory))
def test_every_name_is_the_same_thing_at_both_doors(name: str) -> None:
    assert getattr(prefdro, name) is getattr(theory, name)


@pytest.mark.some(1)
@pytest.mark.parametrize("first", ["import theory.worst_cases", "import theory", "import prefdro"])
def test_a_module_of_the_same_name_does_not_take_the_place_of_a_function(first: str) -> None:
    code = (
        f"{first}\nfrom theory import KL, fit, worst_case\n"
        "fit([[1.0], [-0.5]], KL(0.1), beta=1.0).worst\n"
        "from prefdro import worst_case as again\n"
        "assert worst_case is again and callable(again)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("door", ["theory", "prefdro"])
def test_a_star_brings_everything(door: str) -> None:
    names: dict[str, object] = {}
    exec(f"from {door} import *", names)
    assert set(dir(theory)) <= set(names)
