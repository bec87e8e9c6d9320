"""The table of ambiguity sets in the documentation, from the registry `theory.sets.SETS`.

python -m experiments.sets_page      # writes it into docs/api/sets.md
"""

from dataclasses import fields
from pathlib import Path

from theory.sets import SETS, AmbiguitySet

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api" / "sets.md"
BEGIN, END = "<!-- made by python -m experiments.sets_page -->", "<!-- end -->"
COLUMNS = (
    *("name", "class", "method", "sized by", "source", "distances between atoms"),
    *("worst case", "trainer"),
)


def constructor(set: AmbiguitySet) -> str:
    """How the set is written, `WassersteinFree(radius, power=2)`."""
    given = [
        f"{field.name}={getattr(set, field.name)!r}"
        for field in fields(set)  # type: ignore[arg-type]
        if field.name != set.facts.size and getattr(set, field.name) != field.default
    ]
    return f"{type(set).__name__}({', '.join([set.facts.size, *given])})"


def row(set: AmbiguitySet) -> tuple[str, ...]:
    """What the set says of itself, one cell for each of `COLUMNS`."""
    facts = set.facts
    unit = f", {facts.unit}" if facts.unit else ""
    option = f" --{facts.option}" if facts.option else ""
    return (
        f"`{set.name}`",
        f"`{constructor(set)}`",
        f"`{facts.method}`",
        f"{facts.symbol}{unit}",
        facts.source,
        "needed" if facts.atoms else "",
        "exact" if facts.exact else "stand-in",
        f"`--objective {facts.objective}{option}`" if facts.objective else "",
    )


def table() -> str:
    """Every set of the registry as a Markdown table."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(row, SETS.values())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def renewed(page: str) -> str:
    """The page with the table of today between its two marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
