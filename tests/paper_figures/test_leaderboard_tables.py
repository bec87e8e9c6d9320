"""Tables 1, 3 and 4: printed and ours in blocks of their own, with numbers worked out by hand;
Markdown, LaTeX, CSV."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from paper_figures import typeset
from paper_figures.paper import leaderboard_tables, wdpo_table1, wdpo_table3, wdpo_table4
from paper_figures.typeset import Block, Cell
from tests.paper_figures.language_tables import SCALE, T2, write_leaderboard


def blocks(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown page as cells, header first."""
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    return [
        [[cell.strip() for cell in row.strip("|").split("|")] for row in [rows[0], *rows[2:]]]
        for rows in tables
    ]


def test_printed_and_ours_are_two_tables_each_with_its_columns(tmp_path: Path) -> None:
    write_leaderboard(tmp_path)
    wdpo_table1.draw(tmp_path, tmp_path / "out")
    text = (tmp_path / "out" / "wdpo_table1.md").read_text()
    printed, ours = blocks(text)
    assert printed[0] == ["model", "method", "IFEval", "BBH", "MATH", "GPQA", "MUSR", "MMLU"]
    assert ours[0] == ["model", "method", "grammar", "emotion", "copying"]
    assert len(printed) == 14 and len(ours) == 6
    assert [
        "LLaMA-3.2-1B",
        "KLDPO tau=0.05",
        "**0.56**",
        "**0.36**",
        "0.08",
        "0.26",
        "0.32",
        "0.18",
    ] in printed
    assert not any(
        "**" in cell for row in ours for cell in row
    )  # nothing of ours is marked against the printed
    assert text.index("**Printed in arXiv:2502.01930, Table 1") < text.index(
        f"**{SCALE}; local tasks"
    )
    csv = pd.read_csv(tmp_path / "out" / "wdpo_table1_printed.csv")
    assert set(csv.model) == {"LLaMA-3.2-1B", "LLaMA-3.2-3B", "LLaMA-3.1-8B"} and len(csv) == 13 * 6


def test_a_column_weighs_questions_equally_and_its_interval_is_over_seeds() -> None:
    rows = [
        {
            "model": "toy",
            "label": "DPO",
            "seed": s,
            "task": task,
            "column": "c",
            "value": value,
            "samples": n,
        }
        for s, values in enumerate(((0.1, 0.5), (0.2, 0.5), (0.3, 0.5)))
        for task, value, n in zip(("a", "b"), values, (300, 100), strict=True)
    ]
    table = leaderboard_tables.by_column(pd.DataFrame(rows), ["c"])
    assert table["c"].tolist() == pytest.approx([0.2, 0.275, 0.35])
    block = leaderboard_tables.our_block(table, ["DPO"], "ours")
    ((_, _, (cell,)),) = block.rows
    assert (
        cell is not None
        and cell.value == pytest.approx(0.275)
        and cell.half == pytest.approx(T2 * 0.075 / 3**0.5)
    )


def test_one_seed_has_no_interval() -> None:
    rows = pd.DataFrame(
        [
            {
                "model": "toy",
                "label": "DPO",
                "seed": 0,
                "task": "a",
                "column": "c",
                "value": 0.4,
                "samples": 9,
            }
        ]
    )
    block = leaderboard_tables.our_block(leaderboard_tables.by_column(rows, ["c"]), ["DPO"], "ours")
    assert block.rows[0][2] == (Cell(0.4),)


def test_tasks_of_the_leaderboard_in_the_order_of_the_paper(tmp_path: Path) -> None:
    write_leaderboard(
        tmp_path,
        local=False,
        models=("meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-3B-Instruct"),
    )
    wdpo_table3.draw(tmp_path, tmp_path / "out")
    printed, ours = blocks((tmp_path / "out" / "wdpo_table3.md").read_text())
    assert [row[0] for row in printed] == [row[0] for row in ours] and len(ours) == 40
    assert ours[0][1:] == [
        "start",
        "DPO epoch 2",
        "DPO epoch 4",
        "KLDPO tau=0.5",
        "WDPO rho=0.05",
    ]  # of the 1B model only
    scores = pd.read_csv(tmp_path / "leaderboard" / "scores.csv")
    mine = scores[
        scores.model.str.contains("1B")
        & (scores.label == "DPO epoch 2")
        & (scores.task == "leaderboard_bbh_navigate")
    ]
    row = next(row for row in ours if row[0] == "bbh-navigate")
    assert row[2].split(" ± ")[0] == f"{mine.value.mean():.2f}"


def test_a_size_that_was_not_run_is_said(tmp_path: Path) -> None:
    write_leaderboard(tmp_path, local=False, models=("meta-llama/Llama-3.2-1B-Instruct",))
    wdpo_table4.draw(tmp_path, tmp_path / "out")
    text = (tmp_path / "out" / "wdpo_table4.md").read_text()
    assert (
        len(blocks(text)) == 1
        and "Ours was not run with a model of 8B: the rows are of meta-llama/Llama-3.2-1B" in text
    )
    assert not (tmp_path / "out" / "wdpo_table4_ours.csv").exists()


def test_a_toy_stands_in_both_tables_of_tasks(tmp_path: Path) -> None:
    write_leaderboard(tmp_path)
    for draw, name in ((wdpo_table3.draw, "wdpo_table3"), (wdpo_table4.draw, "wdpo_table4")):
        draw(tmp_path, tmp_path / "out")
        assert len(blocks((tmp_path / "out" / f"{name}.md").read_text())[1]) == 5


def test_two_rows_for_one_task_are_refused(tmp_path: Path) -> None:
    folder = write_leaderboard(tmp_path)
    scores = pd.read_csv(folder / "scores.csv")
    pd.concat([scores, scores.tail(1)]).to_csv(folder / "scores.csv", index=False)
    with pytest.raises(
        ValueError,
        match=(
            r"several rows for model GPT-2, 0.13 M, label WDPO rho=0.05, seed 2, task"
            r" prefdro_local_copy"
        ),
    ):
        leaderboard_tables.read(tmp_path)


def test_differences_are_drawn_in_panels_of_their_own(tmp_path: Path) -> None:
    write_leaderboard(tmp_path)
    scores, run = leaderboard_tables.read(tmp_path)
    ours = leaderboard_tables.by_column(scores, run["columns"])
    methods = dict(zip(scores.label, scores.method, strict=True))
    figure = leaderboard_tables.difference_panels(
        ours, run["labels"], methods, wdpo_table1.table1(), ["note"], "DPO epoch 2"
    )
    titles = [axes.get_title("left") or axes.get_title() for axes in figure.axes]
    assert titles == [
        "printed, LLaMA-3.2-1B",
        "printed, LLaMA-3.2-3B",
        "printed, LLaMA-3.1-8B",
        "ours, GPT-2, 0.13 M",
    ]
    drawn = {
        line.get_gid(): float(line.get_xdata()[0])
        for line in figure.axes[3].lines
        if line.get_gid()
    }
    gap = (ours.xs("KLDPO tau=0.5", level="label") - ours.xs("DPO epoch 2", level="label"))[
        "emotion"
    ].mean()
    assert drawn["KLDPO tau=0.5|emotion"] == pytest.approx(gap)
    printed = {
        line.get_gid(): float(line.get_xdata()[0])
        for line in figure.axes[1].lines
        if line.get_gid()
    }
    assert printed["KLDPO tau=0.005|IFEval"] == pytest.approx(0.74 - 0.55)


def test_the_start_is_judged_once_for_all_seeds() -> None:
    index = pd.MultiIndex.from_tuples(
        [("start", 0), ("DPO", 0), ("DPO", 1)], names=["label", "seed"]
    )
    scores = pd.DataFrame({"c": [0.5, 0.4, 0.2]}, index=index)
    assert leaderboard_tables._by_seed(scores, "start", "DPO")["c"].tolist() == pytest.approx(
        [0.1, 0.3]
    )


def test_the_base_has_the_epochs_of_the_others() -> None:
    rows = [
        ("dpo", 6, "DPO epoch 6"),
        ("dpo", 2, "DPO epoch 2"),
        ("kldpo", 2, "KLDPO"),
        ("start", 0, "start"),
    ]
    scores = pd.DataFrame(rows, columns=["method", "epochs", "label"])
    assert leaderboard_tables.base_label(scores) == "DPO epoch 2"
    assert leaderboard_tables.base_label(scores[scores.method != "kldpo"]) == "DPO epoch 2"
    assert leaderboard_tables.base_label(scores[scores.method == "start"]) is None


def test_latex() -> None:
    block = Block(
        "b",
        "50 % of A&B",
        ("x_1", "y"),
        (("m", "DPO", (Cell(0.5, 0.125, best=True), None)), ("m", "IPO", (None, Cell(1)))),
    )
    text = typeset.latex([block])
    assert r"\caption{50 \% of A\&B}" in text and r"model & method & x\_1 & y \\" in text
    assert r"m & DPO & \textbf{0.50} $\pm$ 0.12 &  \\" in text and r" & IPO &  & 1.00 \\" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert all(len(re.findall(r"(?<!\\)&", line)) == 3 for line in rows)
    assert (
        text.count("\\midrule") == 1
        and text.count("\\begin{table}") == text.count("\\end{table}") == 1
    )


def test_rows_of_another_experiment_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"experiment": "aot"}))
    with pytest.raises(ValueError, match="no folder leaderboard"):
        wdpo_table1.draw(tmp_path, tmp_path / "out")
