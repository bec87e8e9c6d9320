"""Table 4 of arXiv:2502.01930, the 39 tasks of the leaderboard, models of 8B: the printed table,
and ours under it."""

from pathlib import Path

from paper_figures.paper.leaderboard_tables import subtasks
from paper_figures.paper.published import table4


def draw(source: Path, out: Path) -> list[Path]:
    """Write wdpo_table4 as .md, .tex and .csv; the paths written.

    Args:
        source: the folder that holds the studies' folders, or the leaderboard's own.
        out: folder of the figures.

    Raises:
        ValueError: a table or a column is missing.
    """
    return subtasks(source, out, "wdpo_table4", table4(), "8B")
