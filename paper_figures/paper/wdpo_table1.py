"""Table 1 of arXiv:2502.01930, Open LLM Leaderboard v2: the printed table, and ours under it with
its own columns."""

from pathlib import Path

from paper_figures import style, typeset
from paper_figures.paper.leaderboard_tables import (
    base_label,
    by_column,
    difference_panels,
    our_block,
    our_caption,
    printed_block,
    read,
)
from paper_figures.paper.published import notes, table1
from paper_figures.studies import policies


def draw(source: Path, out: Path) -> list[Path]:
    """Write wdpo_table1 as .md, .tex and .csv and draw the differences to DPO; the paths written.

    Args:
        source: the folder that holds the studies' folders, or the leaderboard's own.
        out: folder of the figures.

    Raises:
        ValueError: a table or a column is missing.
    """
    scores, run = read(source)
    ours, printed = by_column(scores, run["columns"]), table1()
    blocks = [printed_block(printed), our_block(ours, run["labels"], our_caption(run, scores))]
    title = "arXiv:2502.01930, Table 1: Open LLM Leaderboard v2"
    remarks = [
        (
            "Ours: in a column every question counts the same, as in the groups of"
            " lm-evaluation-harness."
        ),
        *(f"Printed: {note}" for note in notes()),
    ]
    written = typeset.write("wdpo_table1", title, blocks, out, remarks)
    methods = dict(zip(scores.label, scores.method, strict=True))
    base = base_label(scores)
    if base is None:
        return written
    small = [
        (
            f"Score minus that of DPO (printed: the first row of the model; ours: {base})."
            f" {policies.scale(run)}; 95 % over seeds, of the difference seed by seed; filled: 0 is"
            " outside. Printed: single numbers without intervals, all filled."
        ),
    ]
    with style.paper():
        drawn = difference_panels(ours, run["labels"], methods, printed, small, base)
    return written + style.save_all([("wdpo_table1", drawn)], out)
