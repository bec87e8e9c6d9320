"""A table of numbers as Markdown, as LaTeX (booktabs) and as CSV. What is printed and what is ours
are never one block."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class Cell:
    """A number, the half width of its 95 % interval where there is one, and whether it is the best
    of its group."""

    value: float
    half: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Block:
    """One table: caption, names of the columns, and groups of rows: (group, label, cells); None
    where there is no number.

    `stem` names its CSV file; `digits` after the point.
    """

    stem: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[Cell | None, ...]], ...]
    digits: int = 2
    label: str = "method"


def markdown(title: str, blocks: Sequence[Block], notes: Sequence[str] = ()) -> str:
    """The blocks one under the other, each under its caption."""
    lines = [f"# {title}", ""]
    for block in blocks:
        groups = len({group for group, _, _ in block.rows}) > 1 or any(
            group for group, _, _ in block.rows
        )
        head = (["model"] if groups else []) + [block.label, *block.columns]
        lines += [f"**{block.caption}**", "", f"| {' | '.join(head)} |"]
        lines.append("|" + "---|" * (2 if groups else 1) + "--:|" * len(block.columns))
        for group, label, cells in block.rows:
            texts = [
                "" if cell is None else _text(cell, block.digits, "**", "**", "±") for cell in cells
            ]
            lines.append(f"| {' | '.join(([group] if groups else []) + [label, *texts])} |")
        lines.append("")
    lines += [f"* {note}" for note in notes]
    return "\n".join(lines).rstrip() + "\n"


def latex(blocks: Sequence[Block], notes: Sequence[str] = ()) -> str:
    """One `table` environment for each block; needs the package booktabs."""
    lines = ["% needs \\usepackage{booktabs}"]
    for block in blocks:
        groups = any(group for group, _, _ in block.rows)
        lines += [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{_escaped(block.caption)}}}",
            f"\\begin{{tabular}}{{{'l' * (1 + groups)}{'r' * len(block.columns)}}}",
            "\\toprule",
            " & ".join([*(["model"] if groups else []), block.label, *map(_escaped, block.columns)])
            + r" \\",
        ]
        before = None
        for group, label, cells in block.rows:
            if group != before:
                lines.append("\\midrule")
            texts = [
                "" if cell is None else _text(cell, block.digits, "\\textbf{", "}", "$\\pm$")
                for cell in cells
            ]
            first = [_escaped(group) if group != before else ""] if groups else []
            lines.append(" & ".join([*first, _escaped(label), *texts]) + r" \\")
            before = group
        lines += ["\\bottomrule", "\\end{tabular}", "\\end{table}", ""]
    lines += [f"% {note}" for note in notes]
    return "\n".join(lines).rstrip() + "\n"


def rows_of(block: Block) -> pd.DataFrame:
    """The numbers of a block, one row each: group, label, column, value, half_width."""
    return pd.DataFrame(
        [
            (group, label, column, cell.value, cell.half)
            for group, label, cells in block.rows
            for column, cell in zip(block.columns, cells, strict=True)
            if cell is not None
        ],
        columns=["model", block.label, "column", "value", "half_width"],
    )


def write(
    stem: str, title: str, blocks: Sequence[Block], out: Path, notes: Sequence[str] = ()
) -> list[Path]:
    """Write stem.md, stem.tex and one .csv for each block; the paths written."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{stem}.md", out / f"{stem}.tex"]
    paths[0].write_text(markdown(title, blocks, notes), encoding="utf-8")
    paths[1].write_text(latex(blocks, notes), encoding="utf-8")
    for block in blocks:
        path = out / f"{stem}_{block.stem}.csv"
        rows_of(block).to_csv(path, index=False, lineterminator="\n")
        paths.append(path)
    return paths


def _text(cell: Cell, digits: int, left: str, right: str, between: str) -> str:
    text = f"{cell.value:.{digits}f}"
    if cell.best:
        text = f"{left}{text}{right}"
    return text if cell.half is None else f"{text} {between} {cell.half:.{digits}f}"


def _escaped(text: str) -> str:
    text = re.sub(r"([&%#_{}])", r"\\\1", text)
    return text.replace("±", "$\\pm$").replace("∝", "$\\propto$")
