"""The README is short, names claims that exist, and shares its code with the site's first page; the
links of the documentation lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README, SITE = ROOT / "README.md", ROOT / "docs" / "index.md"
FENCE = re.compile(r"^```[^\n]*\n.*?^```$", re.MULTILINE | re.DOTALL)
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(<?([^)>#\s]+)>?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = [
        link
        for link in LINK.findall(page.read_text(encoding="utf-8"))
        if not link.startswith(("http:", "https:"))
    ]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing
    if page.name in ("README.md", "ledger.md"):
        assert links


def test_the_readme_is_short_and_its_code_is_on_the_first_screen() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.split()) < 900
    assert text.index("```python") < text.index("\n## ")


def test_the_first_page_of_the_site_has_the_code_of_the_readme_with_its_output() -> None:
    readme, index = (FENCE.findall(page.read_text(encoding="utf-8"))[:2] for page in (README, SITE))
    assert len(readme) == 2 and readme == index


def test_the_claims_that_the_readme_names_are_in_the_ledger() -> None:
    from theory.claims import CLAIMS

    text = README.read_text(encoding="utf-8")
    table = text[text.index("## Findings") :].split("\n## ")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 7
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row[2])]
    assert named and not [name for name in named if name not in CLAIMS]
