"""The benchmark tables of arXiv:2406.05882 with our columns. The paper's digits are not at hand:
none are shown."""

from pathlib import Path
from typing import Any

import pandas as pd

from paper_figures import style, typeset
from paper_figures.paper.leaderboard_tables import by_column, difference_panels, once, our_block
from paper_figures.paper.published import AOT, setup
from paper_figures.studies import policies
from paper_figures.studies.policies import METHODS
from paper_figures.tables import read_tables, says, study_folder

COLUMNS = {"benchmarks.csv": ("method", "seed", "column", "task", "value", "samples")}


def scores(benchmarks: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Score of each method and seed in each column: index (model, label, seed), model empty; the
    start, one model, once."""
    one = (benchmarks.method != "start") | (
        benchmarks.seed == benchmarks.seed.min()
    )  # its seeds differ in nothing: no interval
    benchmarks = benchmarks[one]
    rows = benchmarks.assign(
        model="", label=benchmarks.method.map(lambda method: METHODS[method].label)
    )
    rows = rows.assign(
        samples=rows.samples.fillna(1).clip(lower=1)
    )  # a column from elsewhere may not say
    return by_column(rows, columns)


def caption(run: dict[str, Any], seeds: int) -> str:
    spread = (
        "mean ± half width of the 95 % interval over seeds"
        if seeds > 1
        else "one seed, no interval"
    )
    return f"{policies.scale(run)}; beta = {run['beta']:g}; {spread}"


def draw(source: Path, out: Path) -> list[Path]:
    """Write aot_benchmarks as .md, .tex and .csv and draw the differences to DPO; the paths
    written, none where no benchmarks were run.

    Args:
        source: the folder that holds the studies' folders, or the study's own.
        out: folder of the figures.

    Raises:
        ValueError: a table or a column is missing, or a task has several rows for one method and
            seed.
    """
    folder = study_folder(source, "aot-benchmark")
    if says(folder, columns=[]):
        return []
    tables, run = read_tables(folder, COLUMNS, "prefdro run aot-benchmark")
    rows = once(
        tables["benchmarks"], ["method", "seed", "column", "task"], folder / "benchmarks.csv"
    )
    ours = scores(rows, run["columns"])
    methods = {look.label: method for method, look in METHODS.items()}
    block = our_block(ours, list(methods), caption(run, rows.seed.nunique()))
    paper = setup("aot-benchmark")
    notes = [
        f"The paper's tables ({AOT}): {' and '.join(paper['base'])}, {paper['data']}; columns"
        f" {', '.join(paper['benchmarks'])}. Their digits are not at hand, so that none are shown"
        " here."
    ]
    written = typeset.write("aot_benchmarks", f"{AOT}: benchmark tables", [block], out, notes)
    if "dpo" not in set(rows.method):
        return written
    small = [
        f"Score minus that of DPO. {policies.scale(run)}; 95 % over seeds, of the difference seed"
        " by seed; filled: 0 is outside."
    ]
    with style.paper():
        drawn = difference_panels(ours, list(methods), methods, None, small, METHODS["dpo"].label)
    return written + style.save_all([("aot_benchmarks", drawn)], out)
