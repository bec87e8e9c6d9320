"""Draw everything that has rows, several modules at a time, and write the page that shows it."""

import json
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from joblib import Parallel, cpu_count, delayed

from paper_figures.catalogue import (
    AOT,
    ENTRIES,
    OURS,
    RECORD,
    WDPO,
    Entry,
    code_digest,
    has_rows,
    record,
    rows_digest,
)
from paper_figures.studies import policies

_SLOW_FIRST = (
    "estimation_error",
    "aot",
    "preference_shift",
    "ledger",
    "emotion",
)  # so that no long one comes last
_SECTIONS = (
    (WDPO, "WDPO and KLDPO, arXiv:2502.01930"),
    (AOT, "AOT, arXiv:2406.05882"),
    (OURS, "Our studies"),
)


@dataclass(frozen=True)
class Outcome:
    """What became of one figure: its files, relative to the folder of figures, and its module's
    error, if that failed."""

    entry: Entry
    rows: bool
    files: tuple[str, ...] = ()
    error: str = ""


def draw_all(
    results: Path, out: Path, workers: int | None = None, entries: Sequence[Entry] = ENTRIES
) -> list[Outcome]:
    """Draw every entry that has rows into `out`, and README.md that shows them; a module that fails
    stops no other.

    Args:
        results: the folder that holds the studies' folders.
        out: folder of the figures; what our own studies draw is in folders of their names.
        workers: processes; where not given, one for each processor.
    """
    out.mkdir(parents=True, exist_ok=True)
    ready = [entry for entry in entries if has_rows(entry, results)]
    before = {
        entry.key: rows_digest(entry, results) for entry in ready
    }  # rows that change meanwhile count as not drawn
    modules = sorted(
        {entry.module for entry in ready}, key=lambda name: (name not in _SLOW_FIRST, name)
    )
    jobs = [(module, [entry for entry in ready if entry.module == module]) for module in modules]
    done = Parallel(n_jobs=max(min(workers or cpu_count(), len(jobs)), 1), batch_size=1)(
        delayed(_draw_module)(module, mine, results, out) for module, mine in jobs
    )
    drawn = dict(zip(modules, done, strict=True))
    outcomes = []
    for entry in entries:
        paths, error = drawn.get(entry.module, ([], "")) if entry in ready else ([], "")
        files = tuple(str(path.relative_to(out)) for path in paths if entry.owns(path))
        outcomes.append(Outcome(entry, entry in ready, files, error))
    kept = record(out) | {
        o.entry.key: {"files": list(o.files), "rows": before[o.entry.key], "code": code_digest()}
        for o in outcomes
        if o.rows and not o.error
    }
    (out / RECORD).write_text(json.dumps(kept, indent=1), encoding="utf-8")
    (out / "README.md").write_text(page(outcomes, results, out), encoding="utf-8")
    return outcomes


def _draw_module(
    module: str, entries: Sequence[Entry], results: Path, out: Path
) -> tuple[list[Path], str]:
    """What a module wrote, and the error where it failed; in a process of its own."""
    first = entries[0]
    try:
        room = import_module(f"paper_figures.{module}")
        if not first.ours:
            return room.draw(results, out), ""
        source, folder = results / first.experiment, out / first.folder
        if (
            module == "studies.ledger"
            # only the claims that have a place here; `prefdro verify` draws the figure of every
            # claim
        ):
            return room.draw_claims(source, folder, [entry.name for entry in entries]), ""
        return room.draw(source, folder), ""
    except Exception as error:  # whatever it is, the others are drawn, and this one is named
        last = traceback.extract_tb(error.__traceback__)[-1]
        return (
            [],
            f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})",
        )


# --------------------------------------------------------------------------------------------- page
def page(outcomes: Sequence[Outcome], results: Path, out: Path) -> str:
    """The page: for each figure its image, title, source, scale, experiment and command; then what
    has no rows or failed."""
    shown = [o for o in outcomes if o.files]
    drawn = (
        f"{len(shown)} of {len(outcomes)} are drawn, by `prefdro figures --all`, from the rows in"
        f" `{results}`."
    )
    lines = [
        "# Figures and tables",
        "",
        f"{drawn} Numbers that the papers printed and ours are never in one column.",
        "",
    ]
    for source, title in _SECTIONS:
        mine = [o for o in shown if o.entry.source.startswith(source)]
        if mine:
            lines += [f"## {title}", ""]
            for outcome in mine:
                lines += _item(outcome, results, out)
    for title, rest in (
        ("Failed", [(o, o.error) for o in outcomes if o.error]),
        ("No rows yet", [(o, f"`{o.entry.command(results)}`") for o in outcomes if not o.rows]),
        (
            "Nothing for it in these rows",
            [(o, "") for o in outcomes if o.rows and not o.files and not o.error],
        ),
    ):
        if rest:
            lines += [f"## {title}", ""]
            lines += [
                f"* `{o.entry.key}` ({o.entry.title}; {o.entry.source})"
                + (f": {said}" if said else "")
                for o, said in rest
            ]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _item(outcome: Outcome, results: Path, out: Path) -> list[str]:
    entry = outcome.entry
    lines = [f"### {entry.title}", ""]
    lines += [f"![{entry.title}]({name})\n" for name in outcome.files if name.endswith(".png")]
    for name in outcome.files:
        if name.endswith(".md"):  # the table itself, without its title
            table = (out / name).read_text(encoding="utf-8").split("\n", 2)[2].strip()
            lines += ["<details><summary>The table</summary>", "", table, "", "</details>", ""]
    others = [f"[{Path(name).name}]({name})" for name in outcome.files if not name.endswith(".png")]
    about = [entry.source, scale(entry, results)]
    if entry.experiment:
        about.append(f"rows: `{results / entry.experiment}`, by `{entry.command(results)}`")
    return [*lines, "; ".join(filter(None, about)) + ".", "", " · ".join(others), ""]


def scale(entry: Entry, results: Path) -> str:
    """At which scale the rows were made: the sentence of the run, or the name of its profile."""
    if not entry.experiment:
        return "computed, no rows"
    run: dict[str, Any] = json.loads(
        (results / entry.experiment / "run.json").read_text(encoding="utf-8")
    )
    if run.get("scale") or entry.experiment == "emotion":
        return policies.scale(run)
    named = run.get("configuration", {}).get("profile", run.get("profile"))
    return f"profile {named}" if isinstance(named, str) else ""
