"""The page that compares packages: each cell has its evidence, and what can be looked up here is as
the page says."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from llm.objectives import OBJECTIVES
from llm.pair_losses import PAIR_LOSSES

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "guide" / "peers.md").read_text(encoding="utf-8")
COMPARED, EVIDENCE = PAGE.split("\n## Evidence\n")
NUMBER = re.compile(r"\b[PTLONKXRADS]\d+\b")
OF = {  # the letters that the evidence of a column may have
    "prefdro": "P",
    "TRL": "T",
    "LLaMA-Factory": "L",
    "OpenRLHF": "O",
    "NeMo-RL": "N",
    "Liger-Kernel": "K",
    "WDPO and KLDPO": "X",
    "DRO-REBEL": "R",
    "AOT": "AT",
    "dro": "DP",
    "skwdro": "SP",
}


def tables() -> list[list[list[str]]]:
    """The comparing tables: a head of packages, then rows, as cells."""
    blocks = re.findall(r"(?:^\|.*\n)+", COMPARED, re.MULTILINE)
    rows = [
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in b.splitlines()]
        for b in blocks
    ]
    return [table for table in rows if table[0][1] == "prefdro"]


def letters(head: str) -> str:
    return OF[re.sub(r" [\d.]+$", "", head)]


def named_in(row: str) -> set[str]:
    """The names of losses in a row of the table of losses."""
    (line,) = re.findall(rf"^\| {row} \(.\d+\) \|.*$", COMPARED, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", line))


def test_every_cell_has_evidence_of_its_package() -> None:
    found = tables()
    assert [len(table[0]) for table in found] == [7, 5, 4]
    for head, _, *rows in found:
        assert len(rows) > 9
        for title, *cells in rows:
            assert len(cells) == len(head) - 1, title
            for package, cell in zip(head[1:], cells, strict=True):
                numbers = NUMBER.findall(cell)
                assert cell == "not read" or numbers, f"{title}, {package}: no evidence"
                assert {n[0] for n in numbers} <= set(letters(package)), f"{title}, {package}"


def test_all_evidence_is_there_and_is_used() -> None:
    there = re.findall(r"^\| ([A-Z]\d+) \|", EVIDENCE, re.MULTILINE)
    assert len(there) == len(set(there))
    assert set(there) == set(NUMBER.findall(re.sub(r"```.*?```", "", COMPARED, flags=re.DOTALL)))


def test_our_evidence_is_in_the_project() -> None:
    ours = re.findall(r"^\| P\d+ \|(.*)\|$", EVIDENCE, re.MULTILINE)
    places = [
        place for row in ours for place in re.findall(r"`((?:theory|llm|tests)/[\w/.]*)`", row)
    ]
    assert len(places) > 15
    assert not [place for place in places if not (ROOT / place).exists()]


def test_our_losses_are_those_of_the_trainer() -> None:
    assert named_in("prefdro") == {*PAIR_LOSSES, "kto"} <= set(OBJECTIVES)
    assert f"| {len(PAIR_LOSSES)} and KTO (P1) |" in COMPARED


def test_versions_are_those_that_are_installed_and_timed() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"| T | TRL {re.findall(r'^trl==(.*)$', lock, re.MULTILINE)[0]}, " in COMPARED
    for letter, name in (("D", "dro"), ("S", "skwdro")):
        (version,) = re.findall(rf"[ =]{name}==(\S+)", makefile)
        assert f"| {letter} | {name} {version}, " in COMPARED


def test_losses_of_trl_are_those_of_its_source() -> None:
    spec = find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("TRL is not installed")
    trainer = Path(spec.origin).parent / "trainer"
    source = (trainer / "dpo_trainer.py").read_text(encoding="utf-8")
    theirs = set(re.findall(r'(?:el)?if loss_type == "(\w+)":', source))
    assert len(theirs) > 10
    experimental = {"alphapo", "simpo"}
    assert named_in("TRL") == theirs | experimental | {"kto", "apo_zero_unpaired"}
    assert "self.padding_free = False" in source  # without padding: T10
