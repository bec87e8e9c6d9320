"""`prefdro verify`: check the claims of the theory, compare the verdicts with those on record, and
write the ledger.

Into the folder go ledger.md (the page), ledger.parquet (a row a claim), evidence.parquet (a row a
line of evidence), tables/ (what the figures are drawn from) and figures/. They hold every claim
that the folder has for the profile, the seed and this code, whether it was asked for this time or
not.
"""

import difflib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape as plain
from rich.table import Table

from experiments.engine.errors import CellsFailed
from experiments.engine.provenance import code_fingerprint, files_of, provenance
from experiments.engine.runner import run_cells
from experiments.engine.store import (
    Cell,
    CellRejected,
    cell_path,
    cell_record,
    open_run,
    read_cell,
    write_json,
    write_table,
    write_text,
)
from experiments.ledger_page import Entry, page, section, verdict_counts
from theory.claims import CLAIMS
from theory.claims.ledger import Finding, Measurement, Verdict

BASELINE = Path(__file__).with_name("ledger_baseline.json")
_LOG_WIDTH = 160  # columns, where the output is no terminal
_SLOWEST = 5
_DRAWING = (
    "x_label",
    "y_label",
    "log",
    "kind",
    "guide",
)  # columns of a table that only say how to draw it
# of a printed verdict, by what was measured
_COLORS = {
    Verdict.HOLDS: "green",
    Verdict.LOOSE: "cyan",
    Verdict.GAP: "yellow",
    Verdict.REFUTED: "red",
    Verdict.INCONCLUSIVE: "magenta",
}


@dataclass
class Verify:
    """Check the claims of the theory; exit status 1 where a verdict is not the one on record, or a
    check fails."""

    profile: Literal["smoke", "quick", "paper"] = "quick"
    """How much to compute: smoke (half a minute on two cores), quick (a minute or two) or paper
    (thorough)."""
    claim: tuple[str, ...] = ()
    """Only these claims, by name."""
    explain: str | None = None
    """Show one claim in full: statement, assumptions, method, evidence, counterexample and
    figure."""
    json: bool = False
    """Print a JSON list of the claims, and nothing else, to stdout; in ASCII, with escapes,
    whatever the encoding there."""
    record: bool = False
    """Put the verdicts of this run on record for this profile, instead of comparing with it."""
    seed: int = 0
    """Seed of all random numbers. The verdicts on record are of seed 0: another one can turn a
    close verdict."""
    out: Path = Path("results/ledger")
    """Folder of the ledger; claims that it holds, computed by the same code, are not computed
    again."""
    workers: int | None = None
    """Number of processes; the number of cores where not given."""


def run(config: Verify) -> int:
    """Check, write and print; the exit status.

    Raises ValueError for unknown claims, before anything is computed.
    """
    names = _chosen(config)
    talk = Console(stderr=config.json)
    if not talk.is_terminal:
        talk.width = _LOG_WIDTH
    with open_run(config.out) as out:
        failures = _compute(config, names, out)
        stored = stored_entries(out, config.profile, config.seed)
        figures = write_ledger(out, stored, config)
        entries = [entry for entry in stored if entry.claim.name in names]
        odd = []
        if config.record:
            record(entries, config.profile)
        else:
            odd = differences(entries, config.profile, all_run=set(names) == set(CLAIMS))
    if config.json:
        print(
            json.dumps([_as_json(entry) for entry in entries], indent=2)
        )  # ASCII: the same bytes in every encoding
    elif config.explain:
        for entry in entries:
            _explain(talk, entry, figures.get(entry.claim.name))
    else:
        talk.print(_table(entries))
    if not config.explain and entries:
        _summary(talk, entries, config)
    for name, text in failures.items():
        talk.print(f"{name}: the check failed\n{text}", markup=False, highlight=False)
    for text in odd:
        talk.print(text, markup=False, highlight=False)
    return 1 if odd or failures else 0


def _chosen(config: Verify) -> list[str]:
    """The claims asked for, in the ledger's order."""
    if config.explain and config.claim:
        raise ValueError(
            f"--explain {config.explain} shows one claim: leave out --claim"
            f" {' '.join(config.claim)}."
        )
    wanted = (config.explain,) if config.explain else config.claim
    for name in wanted:
        if name not in CLAIMS:
            close = difflib.get_close_matches(name, CLAIMS, n=3, cutoff=0.4)
            near = (
                f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(CLAIMS)}."
            )
            raise ValueError(f"unknown claim {name!r}: {near}")
    return [name for name in CLAIMS if name in wanted] if wanted else list(CLAIMS)


# ------------------------------------------------------------------------------ computed and stored
def check_cell(parameters: dict[str, Any], _: np.random.SeedSequence) -> pd.DataFrame:
    """Check one claim; the finding travels as JSON, since its tables have columns of their own."""
    began = time.perf_counter()
    finding = CLAIMS[parameters["claim"]].check(parameters["profile"], parameters["seed"])
    seconds = time.perf_counter() - began
    return pd.DataFrame(
        {
            "seconds": [seconds],
            "finding": [json.dumps(asdict(finding), default=lambda number: number.item())],
        }
    )


def _cell(name: str, profile: str, seed: int) -> Cell:
    return Cell(f"{name} {profile}", {"claim": name, "profile": profile, "seed": seed})


def _fingerprint() -> str:
    return code_fingerprint(*files_of("theory/claims"), *files_of("theory/twins"))


def _compute(config: Verify, names: Sequence[str], out: Path) -> dict[str, str]:
    """Compute the claims that are not stored; the tracebacks of those that failed, by name."""
    cells = [_cell(name, config.profile, config.seed) for name in names]
    backend = "sequential" if config.workers == 1 else "loky"
    try:
        run_cells(
            cells,
            check_cell,
            out,
            seed=config.seed,
            fingerprint=_fingerprint(),
            backend=backend,
            workers=config.workers,
        )
    except CellsFailed as error:
        return {
            name: error.tracebacks[cell.name]
            for name, cell in zip(names, cells, strict=True)
            if cell.name in error.tracebacks
        }
    return {}


def stored_entries(out: Path, profile: str, seed: int) -> list[Entry]:
    """What the folder holds for this profile, seed and code, in the ledger's order."""
    entries = []
    for name, claim in CLAIMS.items():
        cell = _cell(name, profile, seed)
        try:
            rows = read_cell(
                cell_path(out, cell), cell_record(cell, seed=seed, fingerprint=_fingerprint())
            )
        except (FileNotFoundError, CellRejected):
            continue
        entries.append(Entry(claim, _finding(json.loads(rows.finding[0])), float(rows.seconds[0])))
    return entries


def _finding(stored: dict[str, Any]) -> Finding:
    lines = tuple(
        Measurement(**{**line, "verdict": Verdict(line["verdict"])})
        for line in stored["measurements"]
    )
    return Finding(Verdict(stored["verdict"]), stored["figure"], lines, stored["tables"])


# ------------------------------------------------------------------------------------------- record
def record(entries: Sequence[Entry], profile: str, path: Path | None = None) -> None:
    """Put these verdicts on record; those of other claims stay, unless the claim is gone."""
    path = path or BASELINE
    verdicts = _recorded(path)
    kept = {name: verdict for name, verdict in verdicts.get(profile, {}).items() if name in CLAIMS}
    found = kept | {entry.claim.name: entry.verdict for entry in entries}
    verdicts[profile] = {name: found[name] for name in CLAIMS if name in found}
    write_json(verdicts, path)


def differences(
    entries: Sequence[Entry], profile: str, *, all_run: bool, path: Path | None = None
) -> list[str]:
    """A sentence for each verdict that is not the one on record; with `all_run` for claims on
    record that are gone as well."""
    known = _recorded(path or BASELINE).get(profile, {})
    lines = []
    for entry in entries:
        name, verdict = entry.claim.name, entry.verdict
        if name not in known:
            lines.append(
                f"{name}: not recorded for the profile {profile}, now {verdict}; run with --record."
            )
        elif known[name] != verdict:
            lines.append(f"{name}: recorded {known[name]}, now {verdict}; {entry.finding.figure}")
    if all_run:
        lines += [
            f"{name}: recorded, but there is no such claim; run with --record."
            for name in known
            if name not in CLAIMS
        ]
    return lines


def _recorded(path: Path) -> dict[str, dict[str, str]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


# ------------------------------------------------------------------------------------------ written
def write_ledger(out: Path, entries: Sequence[Entry], config: Verify) -> dict[str, Path]:
    """Write page, tables and the figures whose tables are new; the image of each claim that has
    one."""
    from paper_figures.studies.ledger import draw_claims  # matplotlib is slow to import

    claims = [
        {
            "claim": entry.claim.name,
            "subject": entry.subject,
            "source": entry.claim.source,
            "title": entry.claim.title,
            "kind": str(entry.claim.kind),
            "verdict": entry.verdict,
            "figure": entry.finding.figure,
            "seconds": entry.seconds,
            "tables": list(entry.finding.tables),
        }
        for entry in entries
    ]
    lines = [
        {
            "claim": entry.claim.name,
            **asdict(line),
            "verdict": entry.claim.printed_line(line.verdict),
        }
        for entry in entries
        for line in entry.finding.measurements
    ]
    if not claims:
        return {}
    write_table(pd.DataFrame(claims), out / "ledger.parquet")
    write_table(pd.DataFrame(lines).astype({"ratio": float}), out / "evidence.parquet")
    tables, changed = _write_tables(out, entries)
    about = {
        "experiment": "ledger",
        "profile": config.profile,
        "seed": config.seed,
        "claims": len(claims),
    }
    write_json({**about, **provenance()}, out / "run.json")
    drawn = draw_claims(out, out / "figures", changed)
    images = {
        entry.claim.name: out / "figures" / f"{entry.claim.name}.png"
        for entry in entries
        if entry.claim.name in tables
    }
    images = {name: path for name, path in images.items() if path in drawn or path.exists()}
    said = (
        f"Profile {config.profile}, seed {config.seed}; made by `prefdro verify --profile"
        f" {config.profile}`."
    )
    links = {name: PurePosixPath("figures") / path.name for name, path in images.items()}
    write_text(page(entries, links, tables, run=said), out / "ledger.md")
    return images


def _write_tables(out: Path, entries: Sequence[Entry]) -> tuple[dict[str, list[str]], list[str]]:
    """Write OUT/tables and remove what is stale there: files of each claim, and claims whose tables
    changed or have no figure."""
    folder = out / "tables"
    folder.mkdir(exist_ok=True)
    files: dict[str, list[str]] = {}
    changed = []
    for entry in entries:
        name = entry.claim.name
        before = {path: path.read_bytes() for path in folder.glob(f"{name}--*.parquet")}
        for title, rows in entry.finding.tables.items():
            if rows:
                path = folder / f"{name}--{title.replace('/', '-')}.parquet"
                write_table(pd.DataFrame(rows), path)
                files.setdefault(name, []).append(f"tables/{path.name}")
        after = {out / file: (out / file).read_bytes() for file in files.get(name, [])}
        if after != before or not (out / "figures" / f"{name}.png").exists():
            changed.append(name)
    current = {out / file for paths in files.values() for file in paths}
    for path in folder.glob("*.parquet"):
        if path not in current:
            path.unlink()
    return files, changed


# ------------------------------------------------------------------------------------------ printed
def _as_json(entry: Entry) -> dict[str, Any]:
    claim = entry.claim
    about = {
        name: getattr(claim, name)
        for name in ("source", "title", "statement", "assumptions", "method", "flips", "kind")
    }
    finding = asdict(entry.finding)
    found = {
        "verdict": entry.verdict,
        "figure": entry.finding.figure,
        "seconds": round(entry.seconds, 3),
    }
    measurements = [
        {**line, "verdict": claim.printed_line(line["verdict"])} for line in finding["measurements"]
    ]
    return _finite(
        {
            "claim": claim.name,
            **about,
            **found,
            "subject": entry.subject,
            "measurements": measurements,
        }
    )


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become null."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(entries: Sequence[Entry]) -> Table:
    table = Table("claim", "source", "verdict", "key figure", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("seconds", justify="right")
    for entry in entries:
        word = f"[{_COLORS[entry.finding.verdict]}]{entry.verdict}[/]"
        name, source, figure = (
            plain(text) for text in (entry.claim.name, entry.claim.source, entry.finding.figure)
        )
        table.add_row(name, source, word, figure, f"{entry.seconds:.1f}")
    return table


def _summary(talk: Console, entries: Sequence[Entry], config: Verify) -> None:
    counts = "; ".join(f"{count} × {verdict}" for verdict, count in verdict_counts(entries).items())
    slowest = sorted(entries, key=lambda entry: -entry.seconds)[:_SLOWEST]
    slow = ", ".join(f"{entry.claim.name} {entry.seconds:.1f} s" for entry in slowest)
    talk.print(
        f"{len(entries)} claims ({config.profile}): {counts}. Slowest: {slow}.",
        markup=False,
        highlight=False,
    )
    talk.print(
        f"Results: {config.out} (ledger.md). One claim in full: prefdro verify --explain CLAIM",
        markup=False,
        highlight=False,
    )
    if config.record:
        talk.print(f"recorded in {BASELINE}", markup=False, highlight=False)


def _explain(talk: Console, entry: Entry, image: Path | None) -> None:
    talk.print(Markdown(section(entry)))
    for title, rows in entry.finding.tables.items():
        if rows:
            talk.print(_head(title, rows))
    if image is not None:
        talk.print(f"figure: {image}", markup=False, highlight=False, soft_wrap=True)


def _head(title: str, rows: Sequence[Mapping[str, Any]], count: int = 6) -> Table:
    """The first rows of a table, without the columns that only say how to draw it."""
    columns = [
        name for name in dict.fromkeys(key for row in rows for key in row) if name not in _DRAWING
    ]
    caption = f"first {count} of {len(rows)} rows" if len(rows) > count else None
    table = Table(*columns, title=plain(title), caption=caption, box=box.SIMPLE_HEAD)
    for row in rows[:count]:
        table.add_row(
            *(
                plain(f"{value:.4g}" if isinstance(value, float) else str(value))
                for value in map(row.get, columns)
            )
        )
    return table
