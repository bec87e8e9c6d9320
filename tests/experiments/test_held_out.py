"""How policies order held-out pairs: tables against numbers by hand and scipy."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import linregress, ttest_rel

from experiments.alignment.held_out import compared, file_of, held_out, margins
from experiments.alignment.training import Run


def judged(folder: Path, chosen: list[float], rejected: list[float]) -> Path:
    folder.mkdir(parents=True)
    for name in ("test", "other"):
        pd.DataFrame(
            {
                "pair": range(len(chosen)),
                "chosen": chosen,
                "rejected": rejected,
                "chosen_tokens": [3, 5, 9],
                "rejected_tokens": [4, 5, 2],
            }
        ).to_parquet(folder / f"{file_of(name)}.parquet")
    return folder


def test_margins_are_those_to_the_start(tmp_path: Path) -> None:
    start = judged(tmp_path / "start", [-2.0, -3.0, -4.0], [-1.0, -1.0, -1.0])
    after = judged(tmp_path / "dpo", [-1.0, -3.0, -5.0], [-2.0, -1.0, -1.0])
    rows = margins(
        [(Run("dpo", "dpo", 0.0, 0.1, 0), after), (Run("s", "start", 0.0, 0.0, 0), start)],
        ["test", "other"],
    )
    assert set(rows.population) == {"test", "other"} and len(rows) == 6
    one = rows[rows.population == "test"]
    assert one.chosen.tolist() == [1, 0, -1] and one.rejected.tolist() == [-1, 0, 0]
    assert one.margin.tolist() == [2, 0, -1] and one.accuracy.tolist() == [1, 0.5, 0]
    table = held_out(rows)
    (row, _) = table.itertuples()
    assert (row.pairs, row.accuracy, row.margin) == (3, 0.5, pytest.approx(1 / 3))
    assert (row.accuracy_longer, row.accuracy_shorter) == (0, 1)


def simulated(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = []
    for method, flip in (("dpo", 0.0), ("dpo", 0.2), ("aot", 0.0), ("aot", 0.2), ("cdpo", 0.2)):
        for replicate in range(3):
            margin = rng.normal(0.3, 1.0, 40)
            parts.append(
                pd.DataFrame(
                    {
                        "population": "test",
                        "method": method,
                        "radius": 0.2 if method == "cdpo" else 0.0,
                        "beta": 0.1,
                        "flip": flip,
                        "seed": replicate,
                        "pair": range(40),
                        "margin": margin,
                        "accuracy": (margin > 0).astype(float),
                        "chosen_tokens": rng.integers(1, 50, 40),
                        "rejected_tokens": rng.integers(1, 50, 40),
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def test_length_is_a_covariate() -> None:
    rows = simulated()
    for row in held_out(rows).itertuples():
        mine = rows[(rows.method == row.method) & (rows.flip == row.flip) & (rows.seed == row.seed)]
        longer = mine.chosen_tokens - mine.rejected_tokens
        line = linregress(longer, mine.margin)
        # two ways to solve a 2 x 2 system of condition below 1e4
        expected = [line.intercept, line.slope]
        assert np.allclose([row.margin_equal_length, row.per_token], expected, rtol=1e-9)
        assert row.accuracy_longer == mine.accuracy[longer > 0].mean()


def test_differences_are_paired_over_pairs_and_over_seeds() -> None:
    rows = simulated()
    table = compared(rows)

    def values(method: str, flip: float) -> pd.DataFrame:
        mine = rows[(rows.method == method) & (rows.flip == flip)]
        return mine.pivot(index="pair", columns="seed", values="margin")

    row = table[(table.method == "aot") & (table.flip == 0.2) & (table.measure == "margin")].iloc[0]
    for name, first, second in (
        ("over_dpo", values("aot", 0.2), values("dpo", 0.2)),
        ("lost", values("aot", 0.0), values("aot", 0.2)),
    ):
        for over, axis in (("pairs", 1), ("seeds", 0)):
            test = ttest_rel(first.mean(axis=axis), second.mean(axis=axis))
            low, high = test.confidence_interval(0.95)
            assert np.isclose(row[name], (first - second).to_numpy().mean())
            assert np.allclose([row[f"{name}_low_{over}"], row[f"{name}_high_{over}"]], [low, high])
    knowing = table[table.method == "cdpo"]
    assert knowing.lost.isna().all() and knowing.over_dpo.notna().all()
    dpo = table[table.method == "dpo"]
    assert (dpo.over_dpo == 0).all()
