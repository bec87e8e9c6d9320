"""What Tables 1, 3 and 4 of arXiv:2502.01930 share: our scores by column and by task, next to those
that are printed."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paper_figures import style, typeset
from paper_figures.paper.published import COLUMNS as PRINTED_COLUMNS
from paper_figures.paper.published import Printed
from paper_figures.studies import policies
from paper_figures.studies.policies import METHODS
from paper_figures.style import Look
from paper_figures.tables import read_tables, study_folder
from paper_figures.typeset import Block, Cell

COLUMNS = {
    "scores.csv": (
        "model",
        "method",
        "label",
        "epochs",
        "seed",
        "task",
        "column",
        "value",
        "samples",
    )
}
SIZES = ("1B", "3B", "8B")  # as the paper's models are named


def read(results: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """scores.csv of the leaderboard experiment and run.json.

    Raises:
        ValueError: a table or a column is missing, or a task has several rows for one model, label
            and seed.
    """
    source = study_folder(results, "leaderboard")
    tables, run = read_tables(source, COLUMNS, "prefdro run leaderboard", text=("label",))
    return once(tables["scores"], ["model", "label", "seed", "task"], source / "scores.csv"), run


def once(scores: pd.DataFrame, keys: list[str], path: Path) -> pd.DataFrame:
    """The scores, if each has its keys for itself.

    Raises:
        ValueError: two rows share their keys, such as two metrics of one task.
    """
    twice = scores[scores.duplicated(keys)]
    if len(twice):
        at = ", ".join(f"{key} {twice[key].iloc[0]}" for key in keys)
        raise ValueError(
            f"{path} has several rows for {at}; a table needs one number for each, so keep one"
            " metric of a task."
        )
    return scores


def by_column(
    scores: pd.DataFrame, columns: Sequence[str], keys: Sequence[str] = ("model", "label")
) -> pd.DataFrame:
    """Score in each column, where every question counts the same, as in lm-eval's groups: index
    (*keys, seed)."""
    weighted = scores.assign(product=scores.value * scores.samples)
    sums = weighted.groupby([*keys, "seed", "column"], sort=False)[["product", "samples"]].sum()
    return (sums["product"] / sums.samples).unstack("column").reindex(columns=list(columns))


def by_task(scores: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """Score in each task: index (model, label, seed)."""
    return scores.pivot(index=["model", "label", "seed"], columns="task", values="value").reindex(
        columns=list(tasks)
    )


def of_size(scores: pd.DataFrame, size: str) -> pd.DataFrame:
    """Rows of the models of that size; all rows where no model has the name of a size of the paper,
    such as a toy."""
    named = scores.model.map(
        lambda name: next((s for s in SIZES if re.search(rf"\b{s}\b", name, re.IGNORECASE)), "")
    )
    return scores[named == size] if (named != "").any() else scores


def printed_block(printed: Printed, *, turned: bool = False) -> Block:
    """The printed table; the best of each model and column is marked. `turned`: the tasks are
    rows."""
    rows: list[tuple[str, str, tuple[Cell | None, ...]]] = []
    for model, labels in printed.rows.items():
        best = np.max(list(labels.values()), axis=0)
        for label, numbers in labels.items():
            cells = tuple(
                Cell(x, best=x == top and len(labels) > 1)
                for x, top in zip(numbers, best, strict=True)
            )
            rows.append((model, label, cells))
    caption = f"Printed in {printed.source}, {printed.table}" + (
        f", {next(iter(printed.rows))}" if turned else ""
    )
    caption += "; bold: best of its model" if not turned else "; bold: best of its task"
    block = Block("printed", caption, printed.columns, tuple(rows))
    return _turned(block) if turned else block


def our_block(
    table: pd.DataFrame, labels: Sequence[str], caption: str, *, turned: bool = False
) -> Block:
    """Ours: mean over seeds and half width of the 95 % t interval; nothing is marked as best.

    Args:
        table: index (model, label, seed), one column for each column of the block.
        labels: order of the rows.
    """
    rows: list[tuple[str, str, tuple[Cell | None, ...]]] = []
    for model in dict.fromkeys(table.index.get_level_values("model")):
        for label in labels:
            if (model, label) in set(table.index.droplevel("seed")):
                mine = policies.interval(table.xs((model, label)).T)
                rows.append((model, label, tuple(_cell(row) for row in mine.itertuples())))
    block = Block("ours", caption, tuple(table.columns), tuple(rows))
    return _turned(block) if turned else block


def _cell(row: Any) -> Cell | None:
    if not math.isfinite(row.mean):
        return None
    half = row.high - row.mean
    return Cell(float(row.mean), float(half) if math.isfinite(half) else None)


def _turned(block: Block) -> Block:
    """Rows become columns; of several models each column names its own."""
    models = {group for group, _, _ in block.rows}
    heads = tuple(
        label if len(models) == 1 else f"{group} {label}" for group, label, _ in block.rows
    )
    rows = tuple(
        ("", task, tuple(cells[i] for _, _, cells in block.rows))
        for i, task in enumerate(block.columns)
    )
    return Block(block.stem, block.caption, heads, rows, block.digits, label="task")


def our_caption(run: dict[str, Any], scores: pd.DataFrame) -> str:
    """What the caption of our block says: the scale, and which tasks."""
    which = (
        "the tasks of the leaderboard"
        if same_columns(run)
        else "local tasks, not those of the leaderboard"
    )
    seeds = scores.seed.nunique()
    spread = (
        "mean ± half width of the 95 % interval over seeds"
        if seeds > 1
        else "one seed, no interval"
    )
    return f"{policies.scale(run)}; {which}; {spread}"


def same_columns(run: dict[str, Any]) -> bool:
    """Whether the run has the columns of Table 1."""
    return set(run["columns"]) == set(PRINTED_COLUMNS)


def paper_name(task: str) -> str:
    """The name of a task of lm-evaluation-harness in the paper: `leaderboard_bbh_navigate` ->
    `bbh-navigate`."""
    return task.removeprefix("leaderboard_").replace("_", "-")


def subtasks(results: Path, out: Path, stem: str, printed: Printed, size: str) -> list[Path]:
    """Write Table 3 or 4, the tasks one by one: the printed table, and ours of that size under
    it."""
    scores, run = read(results)
    mine = of_size(scores, size)
    tasks = [task for task, _ in run["tasks"]]
    names = {task: paper_name(task) if same_columns(run) else task for task in tasks}
    if same_columns(run):  # the paper's order
        order = {name: i for i, name in enumerate(printed.columns)}
        tasks.sort(key=lambda task: order.get(names[task], len(order)))
    blocks = [printed_block(printed, turned=True)]
    notes = []
    if len(mine):
        table = by_task(mine, tasks).rename(columns=names)
        blocks.append(our_block(table, run["labels"], our_caption(run, mine), turned=True))
    else:
        notes.append(
            f"Ours was not run with a model of {size}: the rows are of"
            f" {', '.join(dict.fromkeys(scores.model))}."
        )
    title = (
        f"{printed.source}, {printed.table}: the tasks of the leaderboard one by one, models of"
        f" {size}"
    )
    return typeset.write(stem, title, blocks, out, notes)


# ------------------------------------------------------------------------------- differences, drawn
def difference_panels(
    ours: pd.DataFrame,
    labels: Sequence[str],
    methods: dict[str, str],
    printed: Printed | None,
    notes: Sequence[str],
    base: str,
) -> Figure:
    """Score minus that of plain DPO, in each column: printed at the left and ours at the right, in
    panels of their own.

    Args:
        ours: index (model, label, seed), as from `by_column`.
        methods: label -> method, for the looks.
        printed: what the paper printed, where it did; its first row is the base.
        base: the label of plain DPO in ours.
    """
    panels: list[tuple[str, dict[str, pd.DataFrame]]] = []
    columns = printed.columns if printed else ()
    for model, rows in (printed.rows if printed else {}).items():
        first = next(iter(rows))
        lines = {
            label: pd.DataFrame({"mean": np.subtract(numbers, rows[first])}, index=list(columns))
            for label, numbers in rows.items()
            if label != first
        }
        panels.append((f"printed, {model}", lines))
    for model in dict.fromkeys(ours.index.get_level_values("model")):
        mine = ours.xs(model)
        there = [label for label in labels if label in set(mine.index.get_level_values("label"))]
        lines = {
            label: policies.interval(_by_seed(mine, label, base).T)
            for label in there
            if label != base
        }
        panels.append((", ".join(filter(None, ("ours", model.split("/")[-1]))), lines))
    halves = [
        [panel for panel in panels if panel[0].startswith(kind)] for kind in ("printed", "ours")
    ]
    halves = [half for half in halves if half]
    heights = [
        [max(0.085 * len(_any(lines)) * (len(lines) + 1), 0.13 * len(lines)) for _, lines in half]
        for half in halves
    ]
    tall = max(sum(half) + 0.5 * (len(half) - 1) for half in heights)
    width, top = style.PAGE if len(halves) == 2 else style.COLUMN, 0.25
    below = 0.36 + policies.room_for(notes, width)
    figure, axes = style.grid(
        width, [tall], len(halves), left=0.62, right=1.12, top=top, bottom=below, gap_x=1.74
    )
    for corner, half, sizes in zip(axes[0], halves, heights, strict=True):
        box, total = corner.get_position(), figure.get_size_inches()[1]
        corner.remove()
        y = total - top
        for (title, lines), size in zip(half, sizes, strict=True):
            panel = figure.add_axes((box.x0, (y - size) / total, box.width, size / total))
            _difference_panel(panel, title, lines, methods)
            y -= size + 0.5
        panel.set_xlabel("difference in score", labelpad=1)
    policies.small_print(figure, notes)
    return figure


def _by_seed(scores: pd.DataFrame, label: str, base: str) -> pd.DataFrame:
    """Score minus that of `base` with the same seed; the model before training may have been judged
    once, for all seeds."""
    mine, plain = scores.xs(label), scores.xs(base)
    if label.lower() == "start" and len(mine) == 1:
        return mine.iloc[0] - plain
    return (mine - plain).dropna(how="all")


def base_label(scores: pd.DataFrame) -> str | None:
    """The label of DPO to compare with: of as many epochs as most of the others have, or else of
    the fewest; None without DPO."""
    dpo = scores[scores.method == "dpo"]
    if dpo.empty:
        return None
    others = scores.epochs[~scores.method.isin(["dpo", "start"])].mode()
    same = dpo[dpo.epochs.isin(others[:1])]
    return str((same if len(same) else dpo.sort_values("epochs")).label.iloc[0])


def _any(lines: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return next(iter(lines.values()), pd.DataFrame())


def _difference_panel(
    axes: Axes, title: str, lines: dict[str, pd.DataFrame], methods: dict[str, str]
) -> None:
    columns = list(_any(lines).index)
    step = len(lines) + 1
    ends = []
    reach = 0.0
    for i, (label, table) in enumerate(lines.items()):
        look = _label_look(label, methods)
        for j, (mean, low, high) in enumerate(
            table.reindex(columns=["mean", "low", "high"]).itertuples(index=False)
        ):
            y = -(j * step + i)
            sure = not low <= 0 <= high if math.isfinite(low) else title.startswith("printed")
            if math.isfinite(low):
                axes.hlines(y, low, high, color=look.color, linewidth=0.8)
            face = look.color if sure else "white"
            gid = f"{label}|{columns[j]}"
            axes.plot(
                mean, y, look.marker, color=look.color, markersize=3, markerfacecolor=face, gid=gid
            )
            reach = max(reach, *(abs(x) for x in (mean, low, high) if math.isfinite(x)))
        ends.append((label, look))
    axes.axvline(0, color=style.GREY, linewidth=0.7, zorder=0)
    for j in range(1, len(columns)):
        axes.axhline(-(j * step - 1), color=style.PALE, linewidth=0.5, zorder=0)
    axes.set(
        xlim=(-1.1 * reach - 1e-9, 1.1 * reach + 1e-9),
        ylim=(-step * len(columns) + 1, 1),
        title=title,
    )
    axes.xaxis.set_major_locator(MaxNLocator(3, symmetric=True))
    axes.set_yticks([-(j * step + (len(lines) - 1) / 2) for j in range(len(columns))], columns)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    _names(axes, ends)


def _names(axes: Axes, ends: Sequence[tuple[str, Look]]) -> None:
    """The labels at the right, in the order of the lines of each column."""
    width, height = style.inches(axes)
    for i, (label, look) in enumerate(ends):
        y = 1 - (i + 0.6) * 0.13 / height
        axes.plot(
            1 + 0.08 / width,
            y,
            look.marker,
            color=look.color,
            markersize=3,
            transform=axes.transAxes,
            clip_on=False,
        )
        text = re.sub(r" \(.*\)$", "", label)
        axes.text(
            1 + 0.15 / width, y, text, transform=axes.transAxes, va="center_baseline", fontsize=7
        )


def _label_look(label: str, methods: dict[str, str]) -> Look:
    word = label.split()[0].lower()
    return METHODS.get(methods.get(label, word), Look(label, style.GREY, "*"))
