"""The printed numbers: digits copied here by hand, shapes, and what does not fit together, worked
out by hand."""

from pathlib import Path

import pytest

from paper_figures.paper import published


def test_digits_of_table_1() -> None:
    table = published.table1()
    assert table.columns == ("IFEval", "BBH", "MATH", "GPQA", "MUSR", "MMLU")
    assert table.rows["LLaMA-3.2-1B"]["KLDPO tau=0.05"] == (0.56, 0.36, 0.08, 0.26, 0.32, 0.18)
    assert table.rows["LLaMA-3.2-3B"]["DPO"] == (0.55, 0.45, 0.08, 0.24, 0.36, 0.30)
    assert table.rows["LLaMA-3.1-8B"]["KLDPO tau=0.01"] == (0.75, 0.51, 0.22, 0.31, 0.36, 0.37)
    assert {model: len(rows) for model, rows in table.rows.items()} == {
        "LLaMA-3.2-1B": 7,
        "LLaMA-3.2-3B": 3,
        "LLaMA-3.1-8B": 3,
    }


@pytest.mark.parametrize(("table", "rows"), [(published.table3(), 6), (published.table4(), 4)])
def test_39_tasks(table: published.Printed, rows: int) -> None:
    assert len(table.columns) == len(set(table.columns)) == 39
    (labels,) = table.rows.values()
    assert len(labels) == rows and all(len(numbers) == 39 for numbers in labels.values())
    assert all(0 <= x <= 1 for numbers in labels.values() for x in numbers)


def test_digits_of_tables_3_and_4() -> None:
    small, large = published.table3(), published.table4()
    at = small.columns.index
    wdpo = small.rows["LLaMA-3.2-1B"]["WDPO rho_o=0.01"]
    assert (
        wdpo[at("bbh-boolean-expressions")],
        wdpo[at("gpqa-diamond")],
        wdpo[at("musr-team-allocation")],
    ) == (0.73, 0.24, 0.25)
    kldpo = large.rows["LLaMA-3.1-8B"]["KLDPO tau=0.005"]
    assert (kldpo[at("math-algebra-hard")], kldpo[at("ifeval")], kldpo[at("mmlu-pro")]) == (
        0.42,
        0.72,
        0.37,
    )


def test_tasks_are_those_of_the_harness() -> None:
    lm_eval = pytest.importorskip("lm_eval")
    folder = Path(lm_eval.__file__).parent / "tasks" / "leaderboard"
    lines = [
        line
        for file in folder.rglob("*.yaml")
        for line in file.read_text().splitlines()
        if line.startswith("task: leader")
    ]
    tasks = {line.split(":")[1].strip() for line in lines}
    assert {task.removeprefix("leaderboard_").replace("_", "-") for task in tasks} == set(
        published.table3().columns
    )


def test_means_over_the_tasks() -> None:
    table = published.table4()
    means = published.column_means(table.columns, table.rows["LLaMA-3.1-8B"]["KLDPO tau=0.005"])
    plain = (0.42 + 0.18 + 0.10 + 0.06 + 0.25 + 0.42 + 0.10) / 7
    weighted = (
        0.42 * 307 + 0.18 * 123 + 0.10 * 132 + 0.06 * 280 + 0.25 * 154 + 0.42 * 193 + 0.10 * 135
    ) / 1324
    assert means["MATH"] == pytest.approx((plain, weighted))
    assert means["MUSR"] == pytest.approx(((0.54 + 0.26 + 0.24) / 3,) * 2)


def test_what_does_not_fit_is_named() -> None:
    notes = published.notes()
    assert len(notes) == 5 and all(", MATH: " in note for note in notes)
    assert [note.endswith("weighted mean only.") for note in notes] == [False] * 3 + [True] * 2
    assert (
        "LLaMA-3.1-8B, KLDPO tau=0.005, MATH: Table 1 has 0.24; plain mean of Table 4 0.219"
        in notes[3]
    )


def test_setups() -> None:
    assert published.setup("emotion")["rho_o"] == [50, 75, 100]
    with pytest.raises(
        ValueError, match="'sentiment'; there are emotion, armorm, leaderboard, aot-benchmark"
    ):
        published.setup("sentiment")
