"""The claims ledger as text: a Markdown page, and the section of one claim, which
`prefdro verify --explain` shows too."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from theory.claims.ledger import MEANING, Claim, Finding, Measurement

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~$#])")


@dataclass(frozen=True)
class Entry:
    """One claim with what its check found, and the seconds that took when it was computed."""

    claim: Claim
    finding: Finding
    seconds: float

    @property
    def subject(self) -> str:
        """The module of the check: `worst cases` for theory/claims/worst_cases.py."""
        return self.claim.check.__module__.rpartition(".")[2].replace("_", " ")

    @property
    def verdict(self) -> str:
        """As it is printed: what was found, in words that say whose statement it is."""
        return self.claim.printed(self.finding.verdict)


def page(
    entries: Sequence[Entry],
    figures: Mapping[str, PurePosixPath],
    tables: Mapping[str, Sequence[str]],
    *,
    run: str,
) -> str:
    """The whole ledger: a table with links, then a section for each claim.

    figures: claim -> image, tables: claim -> files, both relative to the page. run: what was run,
    in words.
    """
    counts = "; ".join(f"{count} × {verdict}" for verdict, count in verdict_counts(entries).items())
    lines = ["# The claims ledger", "", f"{len(entries)} claims: {counts}. {run}", ""]
    lines += ["| claim | source | verdict | key figure | seconds |", "|---|---|---|---|--:|"]
    for entry in entries:
        claim, finding = entry.claim, entry.finding
        cells = (
            f"[{claim.name}](#{claim.name})",
            escape(claim.source),
            f"**{entry.verdict}**",
            escape(finding.figure),
        )
        lines.append(f"| {' | '.join(cells)} | {entry.seconds:.1f} |")
    lines += [
        "",
        *(f"* **{verdict}**: {MEANING[verdict]}." for verdict in verdict_counts(entries)),
        "",
    ]
    for entry in entries:
        lines.append(
            section(entry, figures.get(entry.claim.name), tables.get(entry.claim.name, ()))
        )
    return "\n".join(lines)


def section(entry: Entry, figure: PurePosixPath | None = None, tables: Sequence[str] = ()) -> str:
    """One claim in Markdown: statement, assumptions, method, what would flip it, verdict, evidence,
    counterexamples."""
    claim, finding = entry.claim, entry.finding
    lines = [f"## {claim.name}", "", f"**{escape(claim.title)}** ({escape(claim.source)})", ""]
    facts = (
        ("Statement", claim.statement),
        ("Assumptions", claim.assumptions),
        ("How it is checked", claim.method),
        ("What would flip it", claim.flips),
    )
    for name, text in facts:
        lines += [f"{name}. {escape(text)}", ""]
    lines += [f"Verdict: **{entry.verdict}**. {escape(finding.figure)}", ""]
    lines += [_evidence(claim, line) for line in finding.measurements]
    lines.append("")
    if figure is not None:
        lines += [f"![{claim.name}]({figure})", ""]
    if tables:
        lines += [
            "Tables: "
            + ", ".join(
                f"[{PurePosixPath(name).stem.partition('--')[2]}](<{name}>)" for name in tables
            ),
            "",
        ]
    return "\n".join(lines)


def _evidence(claim: Claim, line: Measurement) -> str:
    role = "step of the proof: " if line.step else ""
    verdict = claim.printed_line(line.verdict)
    text = f"* **{verdict}**: {role}{escape(line.what)}: {escape(line.figure)}"
    if line.counterexample:
        text += f"  \n  counterexample: {escape(line.counterexample)}"
    if line.decides:
        text += f"  \n  what would decide: {escape(line.decides)}"
    return text


def verdict_counts(entries: Sequence[Entry]) -> dict[str, int]:
    """How many claims have each printed verdict, without those that none has."""
    found = [entry.verdict for entry in entries]
    return {verdict: found.count(verdict) for verdict in MEANING if verdict in found}


def escape(text: str) -> str:
    """Plain text on one line, with what Markdown would read as markup escaped."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
