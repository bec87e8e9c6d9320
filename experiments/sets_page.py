"""The tables of ambiguity sets and of objectives in the documentation, from the registries
`theory.sets.SETS` and `llm.objectives.SPECS`.

python -m experiments.sets_page      # writes them into docs/api/sets.md and docs/training.md
"""

from dataclasses import fields
from pathlib import Path

from llm.objectives import objectives_table
from theory.sets import SETS, AmbiguitySet

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, OBJECTIVES = DOCS / "api" / "sets.md", DOCS / "training.md"
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


TABLES = {PAGE: table, OBJECTIVES: objectives_table}


def renewed(path: Path) -> str:
    """A page with the table of today between its two marks."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n\n{TABLES[path]()}\n\n{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    for path in TABLES:
        path.write_text(renewed(path), encoding="utf-8")
