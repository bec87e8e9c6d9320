"""The AOT study as a whole: its cells, its tables and its settings."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.aot import estimator as aot_estimator
from experiments.aot import study
from experiments.aot.comparison import MATCHED_KL
from experiments.aot.fits import METHODS
from experiments.aot.study import AotStudy, plan, run
from experiments.aot.tables import LEVELS, rates_table
from experiments.aot.worlds import Spec, build_world


def test_rates_recover_powers() -> None:
    rng = np.random.default_rng(0)
    n, replicate = np.repeat([10, 100, 1000], 40), np.tile(np.arange(40), 3)
    noise = np.exp(0.1 * rng.standard_normal(len(n)))
    columns = {
        name: n**power * noise
        for name, power in (("fixed", -0.5), ("minimiser", -0.5), ("value", -0.4), ("excess", -1.0))
    }
    errors = pd.DataFrame(
        {"world": "w", "n": n, "replicate": replicate, "violation": 0.0, **columns}
    )
    bias = pd.DataFrame(
        {"actions": 8, "h": "logistic", "batch": n, "replicate": replicate, "population": 1.0}
    )
    table = rates_table(errors, bias.assign(controlled=1 + n**-1.0 * noise), seed=0).set_index(
        "quantity"
    )
    wanted = {
        "fixed": -0.5,
        "value": -0.4,
        "excess": -1.0,
        "logistic, all": -1.0,
        "logistic, tail": -1.0,
    }
    for quantity, slope in wanted.items():
        assert table.slope[quantity] == pytest.approx(slope, abs=0.03)
    assert np.isnan(table.slope["violation"])


def test_a_run_writes_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aot_estimator, "BATCHES", 5)
    monkeypatch.setitem(
        study.WORLDS, "methods", Spec(contexts=3, actions=4, dimension=2, reference=1.0)
    )
    config = AotStudy(tmp_path, profile="smoke", replicates=2, backend="sequential")
    tables = run(config)
    assert set(tables) == {*study.PARTS, "rates", "quantiles"}
    for name, table in tables.items():
        path = tmp_path / f"{name}.{'csv' if name == 'rates' else 'parquet'}"
        stored = pd.read_csv(path) if name == "rates" else pd.read_parquet(path)
        assert len(stored) == len(table) > 0
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["experiment"] == "aot"
    assert report["rows"]["methods"] == len(tables["methods"]) == 2 * 2 * len(METHODS)
    assert report["not_converged"]["methods"] == 0
    assert report["versions"]["torch"] == torch.__version__

    paired = tables["pairing"].query("data == 'pairs'")
    assert (paired.value <= paired.dpo + 1e-12).all()
    matched = tables["methods"].query("matched")
    np.testing.assert_allclose(matched.kl, MATCHED_KL, rtol=1e-9)
    quantiles = tables["quantiles"]
    assert len(quantiles) == len(tables["methods"]) * len(LEVELS)
    dpo = quantiles[quantiles.method == "dpo"].sort_values("level")
    assert (dpo.groupby(["matched", "replicate"]).chosen.diff().dropna() >= 0).all()

    again = run(config)  # from the stored cells
    for name, table in tables.items():
        pd.testing.assert_frame_equal(again[name], table, check_exact=True)


def test_blocks_cover_every_replicate_once() -> None:
    for cells in plan(AotStudy(profile="quick", replicates=7)).values():
        by_setting: dict[str, list[int]] = {}
        for cell in cells:
            where = json.dumps(
                {k: v for k, v in cell.parameters.items() if k not in ("first", "replicates")},
                sort_keys=True,
            )
            first = cell.parameters["first"]
            by_setting.setdefault(where, []).extend(
                range(first, first + cell.parameters["replicates"])
            )
        assert all(replicates == list(range(7)) for replicates in by_setting.values())


def test_rows_depend_on_the_seed_only() -> None:
    for part in ("rate", "minima"):
        cell = plan(AotStudy(profile="smoke"))[part][0]
        one, again, other = (
            study.compute(cell.parameters, np.random.SeedSequence(seed)) for seed in (0, 0, 1)
        )
        pd.testing.assert_frame_equal(one, again, check_exact=True)
        column = "fixed" if part == "rate" else "best"
        assert (one[column] != other[column]).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [({"profile": "huge"}, "unknown profile 'huge'"), ({"replicates": 1}, "at least 2")],
)
def test_unusable_settings_are_named(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan(AotStudy(**change))
    with pytest.raises(ValueError, match="'linear' or 'curved'"):
        build_world(Spec("flat"))
