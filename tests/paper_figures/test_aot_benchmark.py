"""Figures 1a, 1b and 2 and the benchmark tables of AOT: what is drawn has the numbers of the
tables."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from experiments.alignment.held_out import compared
from paper_figures import style
from paper_figures.paper import aot_benchmarks, aot_fig1a, aot_fig1b, aot_fig2
from paper_figures.studies import chosen_rejected, held_out
from tests.experiments.test_held_out import simulated
from tests.paper_figures.language_tables import SCALE, write_aot_benchmark
from tests.paper_figures.test_wdpo_figures import line, panel, small_print


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_aot_benchmark(tmp_path_factory.mktemp("results"))


def test_quantiles_of_both_sides_and_their_gap(study: Path) -> None:
    quantiles, run = (
        pd.read_csv(study / "quantiles.csv"),
        json.loads((study / "run.json").read_text()),
    )
    with style.paper():
        figure = aot_fig1a.figure(quantiles, run)
    mine = quantiles[quantiles.method == "aot"]
    mean = {
        q: mine[mine.quantity == q].groupby("level").value.mean() for q in ("chosen", "rejected")
    }
    np.testing.assert_allclose(line(panel(figure, "chosen"), "aot")[:, 1], mean["chosen"])
    gap = panel(figure, "chosen minus rejected, at equal level")
    np.testing.assert_allclose(line(gap, "aot")[:, 1], mean["chosen"] - mean["rejected"])
    assert {one.get_gid() for one in gap.lines} & set(aot_fig1a.SHOWN) == set(aot_fig1a.SHOWN)
    assert "ipo" not in {one.get_gid() for one in gap.lines} and SCALE in small_print(figure)


def test_log_ratio_has_the_start(study: Path) -> None:
    quantiles, run = (
        pd.read_csv(study / "quantiles.csv"),
        json.loads((study / "run.json").read_text()),
    )
    with style.paper():
        figure = aot_fig1b.figure(quantiles, run)
    start = quantiles[(quantiles.method == "start") & (quantiles.quantity == "log_ratio")]
    drawn = line(figure.axes[0], "start")
    np.testing.assert_allclose(drawn[:, 1], start.groupby("level").value.mean())
    assert {one.get_gid() for one in figure.axes[0].lines} >= set(aot_fig1b.SHOWN)


def test_ablations(study: Path) -> None:
    ablations = pd.read_csv(study / "ablations.csv", dtype={"value": str})
    with style.paper():
        figure = aot_fig2.figure(ablations, json.loads((study / "run.json").read_text()))
    beta = panel(figure, r"$\beta$")
    mine = ablations[(ablations.axis == "beta") & (ablations.method == "dpo")]
    means = [mine[mine.value == value].win_rate.mean() for value in ("0.01", "0.1", "1")]
    np.testing.assert_allclose(line(beta, "dpo")[:, 1], means)
    below = figure.axes[4]  # second row: KL
    np.testing.assert_allclose(
        line(below, "dpo")[:, 1], [mine[mine.value == v].kl.mean() for v in ("0.01", "0.1", "1")]
    )
    assert [label.get_text() for label in figure.axes[7].get_xticklabels()] == [
        "hard",
        "soft 0.1",
        "soft 1",
    ]
    assert "dpo" not in {one.get_gid() for one in panel(figure, "loss $h$").lines}


def test_values_stand_in_their_order() -> None:
    assert sorted(["64", "8", "16"], key=aot_fig2._order) == ["8", "16", "64"]
    assert sorted(["soft 1", "hard", "soft 0.1"], key=aot_fig2._order) == [
        "hard",
        "soft 0.1",
        "soft 1",
    ]
    assert sorted(["logistic", "hinge"], key=aot_fig2._order) == [
        "logistic",
        "hinge",
    ]  # as they stand


def test_benchmarks(study: Path, tmp_path: Path) -> None:
    names = [path.name for path in aot_benchmarks.draw(study.parent, tmp_path)]
    assert names[0] == "aot_benchmarks.md" and names[-1] == "aot_benchmarks.png"
    text = (tmp_path / "aot_benchmarks.md").read_text()
    assert "| method | grammar | emotion | win rate |" in text and SCALE in text
    assert "digits are not at hand" in text and "Printed" not in text
    (start,) = [row for row in text.splitlines() if row.startswith("| start")]
    assert (
        "±" not in start and start.count("0.") == 3
    )  # one model, whatever the seed: no interval over seeds
    rows = pd.read_csv(study / "benchmarks.csv").query("method == 'aot' and column == 'win rate'")
    assert (
        f"{rows.value.mean():.2f} ±"
        in next(row for row in text.splitlines() if row.startswith("| AOT paired")).split("|")[-2]
    )


# ----------------------------------------------------------------------------------- held-out pairs
def test_held_out_accuracy_and_what_it_has_over_dpo(tmp_path: Path) -> None:
    table = compared(pd.concat([simulated(), simulated(1).assign(population="shifted")]))
    source = tmp_path / "aot-benchmark"
    source.mkdir()
    table.to_csv(source / "compared.csv", index=False)
    run = {"scale": SCALE, "beta": 0.1, "score": None, "columns": []}
    (source / "run.json").write_text(json.dumps(run | {"experiment": "aot-benchmark"}))
    with style.paper():
        figure = held_out.figure(pd.read_csv(source / "compared.csv"), run)
    assert len(figure.axes) == 4 and SCALE in small_print(figure)
    for title, population in (("held-out pairs: ", "test"), ("another population: ", "shifted")):
        mine = table[(table.population == population) & (table.measure == "accuracy")]
        for row in mine.itertuples():
            (x,) = line(panel(figure, f"{title}accuracy"), f"{row.method}|{row.flip:g}")[:, 0]
            assert x == pytest.approx(row.value, rel=1e-12)
    drawn = held_out.draw(source, tmp_path / "figures")
    assert {path.name for path in drawn} == {"held_out.pdf", "held_out.png"}
    # without a reward model there are no win rates and no benchmarks
    for module in (aot_fig2, aot_benchmarks):
        assert module.draw(tmp_path, tmp_path / "figures") == []


def test_chosen_and_rejected_stand_at_their_means_over_pairs(tmp_path: Path) -> None:
    rows = pd.concat([simulated(), simulated(1).assign(population="shifted")])
    rng = np.random.default_rng(0)
    rows = rows.assign(chosen=rng.normal(size=len(rows)), rejected=rng.normal(-1, 1, len(rows)))
    rows.to_parquet(tmp_path / "pairs.parquet")
    run = {"experiment": "aot-benchmark", "scale": SCALE}
    (tmp_path / "run.json").write_text(json.dumps(run))
    with style.paper():
        figure = chosen_rejected.figure(rows, run)
    clean = rows[(rows.flip == 0) & (rows.population == "shifted")]
    for side in ("chosen", "rejected"):
        shown = line(panel(figure, "another population"), side)[:, 0]
        means = [clean[clean.method == method][side].mean() for method in ("dpo", "aot")]
        np.testing.assert_allclose(shown, means, rtol=1e-12)
    each = clean[clean.method == "dpo"].groupby("pair").chosen.mean()
    test = ttest_1samp(each, 0).confidence_interval()
    found = chosen_rejected.intervals(clean, "chosen").loc["dpo"]
    assert (found.low, found.high) == pytest.approx((test.low, test.high), rel=1e-12)
    drawn = chosen_rejected.draw(tmp_path, tmp_path / "figures")
    assert {path.name for path in drawn} == {"chosen_rejected.pdf", "chosen_rejected.png"}
