"""The figures show what the tables say. The tables are made up here, with numbers that are chosen
beforehand."""

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
from scipy.stats import ttest_1samp

import paper_figures
from paper_figures import style
from paper_figures.studies import preference_shift as figures

SETTINGS = ("convex", "contexts", "sure annotators")
METHODS = ("kldpo", "wdpo-w2-free", "wdpo-norm")
FRACTIONS, ALPHAS, SEEDS = (0.2, 0.5, 0.8), (0.0, 0.5, 1.0), range(4)


def value(*words: object) -> float:
    """Another number in (0, 1) for every row, so that a mix-up shows."""
    return (sum(map(ord, repr(words))) * 0.6180339887) % 1


def difference(setting: str, n: float, method: str) -> float:
    """At the middle fraction: lowest for one method in `sure annotators`, highest on average in
    `contexts`."""
    base = {"convex": 0.0, "contexts": 0.02, "sure annotators": 0.01}[setting]
    return (
        -0.03
        if (setting, method) == ("sure annotators", "kldpo")
        else base + (0.001 if math.isinf(n) else 0.002)
    )


def write_study(
    folder: Path,
    settings: tuple[str, ...] = SETTINGS,
    sizes: tuple[float, ...] = (math.inf, 100.0, 50.0),
) -> Path:
    rows, matched = [], []
    for setting in settings:
        for n in sizes:
            for method in ("dpo", "dpo-shrunk", *METHODS):
                for fraction in (0.0,) if method == "dpo" else FRACTIONS:
                    keys: dict[str, Any] = {
                        "setting": setting,
                        "train": 0.2,
                        "n": n,
                        "method": method,
                        "fraction": fraction,
                    }
                    for seed in SEEDS:
                        kl = (1 + seed) * (1 - fraction) ** 2
                        for alpha in ALPHAS:
                            regrets = {
                                name: (
                                    0.5
                                    + 0.5 * value(setting, n, method, fraction, seed, alpha, name)
                                )
                                for name in ("regret", "regret_shrunk", "regret_stopped")
                            }
                            rows.append(keys | {"seed": seed, "alpha": alpha, "kl": kl} | regrets)
                    for control in ("shrunk", "stopped") if method in METHODS else ():
                        middle = (
                            difference(setting, n, method)
                            if (fraction, control) == (0.5, "shrunk")
                            else 9.0
                        )
                        row = {
                            "difference": middle,
                            "low": middle - 0.004,
                            "high": middle + 0.005,
                            "seeds": 4,
                            "unmatched": 0,
                        }
                        matched += [
                            keys | {"control": control, "alpha": alpha} | row
                            for alpha in ("worst", "0.5")
                        ]
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / "shift.parquet", index=False)
    pd.DataFrame(matched).to_csv(folder / "matched.csv", index=False)
    (folder / "run.json").write_text(json.dumps({"settings": list(settings)}))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"))


def artists(axes: Axes) -> dict[str, Any]:
    """The named lines of a panel."""
    return {line.get_gid(): line for line in axes.lines if line.get_gid()}


def panel(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title("left") + axes.get_title() == title)


def test_draw_writes_every_figure_at_column_width(source: Path) -> None:
    written = figures.draw(source, source / "figures")
    names = {path.name for path in written}
    assert names == {
        f"{name}.{kind}" for name in ("regret", "frontier", "matched") for kind in ("pdf", "png")
    } | {"summary.md"}
    for path in written:
        assert path.parent == source / "figures"
        assert (
            path.read_bytes()[:4]
            == {".pdf": b"%PDF", ".png": b"\x89PNG", ".md": b"# Pr"}[path.suffix]
        )
        if path.suffix == ".png":
            assert int.from_bytes(path.read_bytes()[16:20], "big") == round(style.COLUMN * 300)


def test_the_least_study_can_be_drawn(tmp_path: Path) -> None:
    assert (
        len(
            figures.draw(
                write_study(tmp_path, settings=("convex",), sizes=(math.inf,)),
                tmp_path / "elsewhere",
            )
        )
        == 7
    )
    assert (tmp_path / "elsewhere" / "summary.md").exists()


def test_the_spotlight_is_on_the_first_the_lowest_and_the_highest(source: Path) -> None:
    assert figures.read(source).spotlight() == ["convex", "sure annotators", "contexts"]


def test_regret_curves_are_means_over_seeds_in_the_population(source: Path) -> None:
    figure = figures.regret(figures.read(source))
    for setting in SETTINGS:
        lines = artists(panel(figure, setting))
        for method, name, gid in (
            ("dpo", "regret", "dpo"),
            ("kldpo", "regret", "kldpo"),
            ("kldpo", "regret_shrunk", "kldpo|shrunk"),
        ):
            fraction = 0.0 if method == "dpo" else 0.5
            truth = [
                np.mean(
                    [
                        0.5 + 0.5 * value(setting, math.inf, method, fraction, seed, alpha, name)
                        for seed in SEEDS
                    ]
                )
                for alpha in ALPHAS
            ]
            np.testing.assert_allclose(lines[gid].get_ydata(), truth)
            np.testing.assert_array_equal(lines[gid].get_xdata(), ALPHAS)


def test_bands_are_t_intervals() -> None:
    values = pd.DataFrame(np.random.default_rng(0).random((3, 5)))
    band = figures.mean_band(values)
    truth = ttest_1samp(values, 0, axis=1).confidence_interval(0.95)
    np.testing.assert_allclose(band[["low", "high"]], np.stack(truth, 1))


def test_the_frontier_has_the_worst_regret_over_the_share_of_dpos_kl(source: Path) -> None:
    figure = figures.frontier(figures.read(source))
    lines = artists(panel(figure, "contexts"))
    np.testing.assert_allclose(
        sorted(lines["kldpo"].get_xdata()), sorted((1 - f) ** 2 for f in FRACTIONS)
    )
    worst = [
        np.mean(
            [
                max(
                    0.5 + 0.5 * value("contexts", math.inf, "kldpo", f, s, a, "regret")
                    for a in ALPHAS
                )
                for s in SEEDS
            ]
        )
        for f in FRACTIONS
    ]
    np.testing.assert_allclose(lines["kldpo"].get_ydata(), worst)
    np.testing.assert_allclose(
        lines["dpo"].get_xdata(), [0, *sorted((1 - f) ** 2 for f in FRACTIONS), 1]
    )
    assert lines["dpo"].get_ydata()[0] == 1  # the reference


def test_matched_differences_are_those_of_the_table(source: Path) -> None:
    figure = figures.matched(figures.read(source))
    for title, n in (("population", math.inf), ("$n$ = 50", 50.0)):
        lines = artists(panel(figure, title))
        assert set(lines) == {f"{setting}|{method}" for setting in SETTINGS for method in METHODS}
        for setting in SETTINGS:
            for method in METHODS:
                line = lines[f"{setting}|{method}"]
                assert float(np.squeeze(line.get_xdata())) == pytest.approx(
                    difference(setting, n, method)
                )
                holds_zero = abs(difference(setting, n, method)) < 0.004
                assert (line.get_markerfacecolor() == "white") == holds_zero
    heights = [line.get_ydata()[0] for line in artists(panel(figure, "population")).values()]
    assert len({round(y, 6) for y in heights}) == len(heights)  # no two on top of each other


def test_the_summary_has_the_numbers(source: Path) -> None:
    text = figures.summary(figures.read(source))
    (row,) = (
        line for line in text.splitlines() if line.startswith("| sure annotators | infinite |")
    )
    assert row.split(" | ")[2] == "-0.0300 [-0.0340, -0.0250]"


def test_a_missing_table_or_column_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no shift.parquet and no matched.csv.*prefdro run preference-shift"
    ):
        figures.read(tmp_path)
    write_study(tmp_path)
    table = pd.read_csv(tmp_path / "matched.csv")
    table.drop(columns="low").to_csv(tmp_path / "matched.csv", index=False)
    with pytest.raises(ValueError, match=r"no column low; it has"):
        figures.read(tmp_path)
    table.iloc[:0].to_csv(tmp_path / "matched.csv", index=False)
    with pytest.raises(ValueError, match="has no rows"):
        figures.read(tmp_path)


def test_the_drawing_reads_tables_only() -> None:
    tree = ast.parse((Path(paper_figures.__path__[0]) / "studies/preference_shift.py").read_text())
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    ]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.split(".")[0] in ("theory", "experiments", "torch")]
