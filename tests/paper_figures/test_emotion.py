"""Figures of the emotion study: from tables made here, each line and point has the numbers of the
table."""

import ast
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import paper_figures
from paper_figures import style
from paper_figures.studies import emotion as figures

ALPHAS, SEEDS = (0.0, 0.5, 1.0), (0, 1, 2)
RUNS = [  # method, radius, beta, steps
    ("sft", 0.0, 0.0, (0,)),
    ("dpo", 0.0, 0.1, (5, 10)),
    ("dpo", 0.0, 1.0, (10,)),
    ("wdpo", 0.1, 0.1, (10,)),
    ("kldpo", 0.5, 0.1, (10,)),
    ("kldpo", 1.0, 0.1, (10,)),
]
KL = {("sft", 0.0, 0): 0.0, ("dpo", 0.1, 5): 2.0, ("dpo", 0.1, 10): 5.0, ("dpo", 1.0, 10): 1.0}


def reward(setting: str, method: str, radius: float, step: int, seed: int, alpha: float) -> float:
    at = ("convex", "geometric", "groups").index(setting) + ("sft", "dpo", "wdpo", "kldpo").index(
        method
    )
    return 0.8 - 0.05 * at - 0.1 * radius * alpha - 0.3 * alpha - 0.01 * seed - 0.002 * step


def write_study(
    folder: Path, settings: tuple[str, ...] = ("convex", "geometric", "groups")
) -> Path:
    rows, summary, matched = [], [], []
    for setting in settings:
        for method, radius, beta, steps in RUNS:
            keys = {"setting": setting, "method": method, "radius": radius, "beta": beta}
            for step in steps:
                kl = KL.get((method, beta, step), 1.5 + radius)
                values = {
                    a: [reward(setting, method, radius, step, seed, a) for seed in SEEDS]
                    for a in ALPHAS
                }
                rows += [
                    keys
                    | {
                        "seed": seed,
                        "step": step,
                        "alpha": a,
                        "reward": values[a][seed],
                        "kl": kl + 0.1 * seed,
                    }
                    for a in ALPHAS
                    for seed in SEEDS
                ]
                for name, numbers in [(f"{a:g}", values[a]) for a in ALPHAS] + [
                    ("worst", values[1.0]),
                    ("mean", values[0.5]),
                ]:
                    middle = float(np.mean(numbers))
                    numbers = {
                        "reward": middle,
                        "reward_low": middle - 0.02,
                        "reward_high": middle + 0.03,
                        "kl": kl + 0.1,
                    }
                    summary.append(
                        keys
                        | {"step": step, "final": step == steps[-1], "alpha": name, "seeds": 3}
                        | numbers
                    )
            if method in ("wdpo", "kldpo"):
                for control in ("beta", "stopped"):
                    outside = (method, control) == ("wdpo", "stopped")
                    row = {
                        "difference": math.nan if outside else 0.01 * radius,
                        "low": -math.inf if outside else -0.002,
                    }
                    row |= {
                        "high": math.inf if outside else 0.03,
                        "seeds": 0 if outside else 3,
                        "outside": 3 if outside else 0,
                    }
                    matched += [
                        keys | {"control": control, "alpha": alpha} | row
                        for alpha in ("worst", "0.5")
                    ]
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / "rewards.parquet", index=False)
    pd.DataFrame(summary).to_csv(folder / "summary.csv", index=False)
    pd.DataFrame(matched).to_csv(folder / "matched.csv", index=False)
    (folder / "run.json").write_text(json.dumps({"profile": {"alpha": 0.1}, "minority_share": 0.2}))
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> figures.Study:
    return figures.read(write_study(tmp_path_factory.mktemp("study")))


def panel(figure: Figure | None, title: str) -> Axes:
    assert figure is not None
    return next(axes for axes in figure.axes if axes.get_title("left") + axes.get_title() == title)


def artists(axes: Axes) -> dict[str, Any]:
    return {line.get_gid(): line for line in axes.lines if line.get_gid()}


def test_draw_writes_every_figure_at_column_width(tmp_path: Path) -> None:
    written = figures.draw(write_study(tmp_path), tmp_path / "figures")
    names = {path.name for path in written}
    assert names == {
        f"{name}.{kind}" for name in ("rewards", "frontier", "matched") for kind in ("pdf", "png")
    } | {"summary.md"}
    for path in written:
        if path.suffix == ".png":
            assert int.from_bytes(path.read_bytes()[16:20], "big") == round(style.COLUMN * 300)


def test_reward_curves_are_at_the_middle_radius_and_the_end(study: figures.Study) -> None:
    figure = figures.rewards(study)
    for setting in study.settings:
        lines = artists(panel(figure, figures.TITLES[setting]))
        assert set(lines) == {"sft", "dpo", "wdpo", "kldpo"}
        for method, radius, step in (
            ("sft", 0.0, 0),
            ("dpo", 0.0, 10),
            ("wdpo", 0.1, 10),
            ("kldpo", 1.0, 10),
        ):
            truth = [
                np.mean([reward(setting, method, radius, step, seed, a) for seed in SEEDS])
                for a in ALPHAS
            ]
            np.testing.assert_allclose(lines[method].get_ydata(), truth)
            np.testing.assert_array_equal(lines[method].get_xdata(), ALPHAS)


def test_the_frontier_has_both_controls_and_every_seed(study: figures.Study) -> None:
    lines = artists(panel(figures.frontier(study), figures.TITLES["geometric"]))
    worst = {
        key: np.mean([reward("geometric", *key, seed, 1.0) for seed in SEEDS])
        for key in (
            ("sft", 0.0, 0),
            ("dpo", 0.0, 5),
            ("dpo", 0.0, 10),
            ("kldpo", 0.5, 10),
            ("kldpo", 1.0, 10),
        )
    }
    np.testing.assert_allclose(lines["beta"].get_xdata(), [0.1, 1.1, 5.1])
    np.testing.assert_allclose(
        lines["beta"].get_ydata(),
        [worst["sft", 0.0, 0], worst["dpo", 0.0, 10], worst["dpo", 0.0, 10]],
    )
    np.testing.assert_allclose(lines["stopped"].get_xdata(), [0.1, 2.1, 5.1])
    np.testing.assert_allclose(lines["stopped"].get_ydata()[1], worst["dpo", 0.0, 5])
    np.testing.assert_allclose(
        lines["kldpo"].get_ydata(), [worst["kldpo", 0.5, 10], worst["kldpo", 1.0, 10]]
    )
    assert len(lines["kldpo|seeds"].get_xdata()) == 2 * len(SEEDS)
    assert len(lines["wdpo|seeds"].get_xdata()) == len(SEEDS)


def test_differences_are_those_of_the_table_and_crosses_where_there_are_none(
    study: figures.Study,
) -> None:
    figure = figures.matched(study)
    for control in ("beta", "stopped"):
        lines = artists(panel(figure, "to " + figures.CONTROLS[control]))
        assert len(lines) == 3 * 3
        for setting in study.settings:
            for radius in (0.5, 1.0):
                line = lines[f"{setting}|kldpo|{radius:g}"]
                assert float(np.squeeze(line.get_xdata())) == pytest.approx(0.01 * radius)
                assert line.get_markerfacecolor() == "white"  # the interval holds 0
            assert (lines[f"{setting}|wdpo|0.1"].get_marker() == "x") == (control == "stopped")
        places = [float(np.squeeze(line.get_ydata())) for line in lines.values()]
        assert len(set(np.round(places, 6))) == len(places)


def test_the_summary_has_the_numbers(study: figures.Study) -> None:
    text = figures.summary(study)
    (row,) = (line for line in text.splitlines() if line.startswith("| groups | WDPO, rho = 0.1 |"))
    cells = [cell.strip() for cell in row.split("|")]
    middle = np.mean([reward("groups", "wdpo", 0.1, 10, seed, 1.0) for seed in SEEDS])
    assert cells[4] == f"{middle:.3f} [{middle - 0.02:.3f}, {middle + 0.03:.3f}]"
    assert cells[5:8] == ["1.70", "+0.001 [-0.002, +0.030] (3)", "outside"]
    assert sum(line.startswith("| convex | DPO |") for line in text.splitlines()) == 2


def test_a_study_without_robust_methods_has_no_differences(tmp_path: Path) -> None:
    write_study(tmp_path, settings=("convex",))
    for name, read, write in (
        ("rewards.parquet", pd.read_parquet, "to_parquet"),
        ("summary.csv", pd.read_csv, "to_csv"),
        ("matched.csv", pd.read_csv, "to_csv"),
    ):
        table = read(tmp_path / name)
        getattr(table[table.method.isin(["sft", "dpo"])], write)(tmp_path / name, index=False)
    names = {path.name for path in figures.draw(tmp_path, tmp_path / "figures")}
    assert names == {"rewards.pdf", "rewards.png", "frontier.pdf", "frontier.png", "summary.md"}


def test_a_missing_table_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no rewards.parquet and no summary.csv.*prefdro run emotion"
    ):
        figures.read(tmp_path)


def test_the_drawing_reads_tables_only() -> None:
    tree = ast.parse((Path(paper_figures.__path__[0]) / "studies/emotion.py").read_text())
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    ]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [
        name for name in names if name.split(".")[0] in ("theory", "experiments", "llm", "torch")
    ]
