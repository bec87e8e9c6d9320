"""The tables of ambiguity sets and of objectives in the documentation are those of the
registries."""

from pathlib import Path

import pytest

from experiments.sets_page import COLUMNS, TABLES, renewed, table
from theory.sets import SETS


@pytest.mark.parametrize("page", TABLES, ids=lambda path: path.stem)
def test_the_page_has_the_table_of_the_registry(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == renewed(page), "run python -m experiments.sets_page"


def test_the_table_has_a_row_for_each_set_and_no_broken_cell() -> None:
    head, _, *rows = table().splitlines()
    assert [line.split("`")[1] for line in rows] == list(SETS)
    assert {line.count("|") for line in (head, *rows)} == {len(COLUMNS) + 1}


def test_rows_say_what_the_sets_say() -> None:
    rows = {line.split("`")[1]: line for line in table().splitlines()[2:]}
    assert "`KL(radius)`" in rows["kl"] and "rho, nats" in rows["kl"] and "exact" in rows["kl"]
    assert "`--objective kldpo --tau`" in rows["tilt"] and "stand-in" in rows["tilt"]
    assert "`WassersteinAtoms(radius, power=2)`" in rows["w2-finite"]
    assert "needed" in rows["w2-finite"] and "needed" not in rows["w2-free"]
