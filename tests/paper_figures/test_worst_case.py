"""The figures show what the tables say. The tables are made up here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.studies import worst_case as figures

RADII = np.array([0.0, 0.2, 0.4])


def level(ball: str) -> float:
    """Another slope for every ball, so that a mix-up shows."""
    return 1 + list(figures.BALLS).index(ball) / 10


def write_study(
    folder: Path, balls: tuple[str, ...] = tuple(figures.BALLS), share: float = 0.5
) -> Path:
    values, weights, moves = [], [], []
    for ball in balls:
        if ball == "gradient-step":
            continue
        value = 0.6 + level(ball) * RADII
        version = "tractable" if ball in ("tilt", "gradient") else "exact"
        expected = value - 0.01 if ball == "gradient" else value
        values.append(
            {"version": version, "ball": ball, "radius": 1 - RADII if ball == "cvar" else RADII}
            | {"value": value, "expected": expected, "plain": 0.6}
        )
        if ball in ("kl", "chi2", "cvar", "tv"):
            q = np.array([0.5, 0.2, 0.3])
            weights.append(
                {
                    "ball": ball,
                    "share": share,
                    "effective": share,
                    "loss": [2.0, 0.0, 1.0],
                    "p": [0.25, 0.5, 0.25],
                    "q": q,
                }
            )
        if ball[0] == "w":
            # a pair that stays, one that moves, one that flips in place (if labels move), one that
            # goes to infinity (p = 1, free)
            flips, escapes = ball in ("w1-finite", "w1-label"), ball in ("w1-free", "w1-label")
            plan = {
                "mass": [0.4, 0.3, 0.2, 0.1],
                "distance": [0.0, 1.0, 0.5, 1e9],
                "label": [1, 0, 1, 0],
            }
            place = {"along": [0.0, 1.0, -1.0, 0.5], "across": [1.0, 0.0, 0.5, -0.5]}
            arrive = {
                "to_along": [0.0, 2.0, -1.0, -1e9 if escapes else 0.5],
                "to_across": [1.0, 0.0, 0.5, -0.5],
            }
            marks = {
                "flipped": [False, False, flips, False],
                "escapes": [False, False, False, escapes],
            }
            moves.append(
                {"ball": ball, "fraction": 0.3, "radius": 0.1} | plan | place | arrive | marks
            )
    folder.mkdir(parents=True, exist_ok=True)
    pd.concat([pd.DataFrame(part) for part in values]).to_csv(folder / "values.csv", index=False)
    pd.concat([pd.DataFrame(part) for part in weights]).to_parquet(folder / "weights.parquet")
    pd.concat([pd.DataFrame(part) for part in moves]).to_parquet(folder / "moves.parquet")
    (folder / "run.json").write_text(json.dumps({"seed": 7}))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"))


def artists(axes: Axes) -> dict[str, Any]:
    """The named lines of a panel."""
    return {line.get_gid(): line for line in axes.lines if line.get_gid()}


def panel(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if title in (axes.get_title("left"), axes.get_title()))


def test_draw_writes_every_figure_one_column_wide(source: Path) -> None:
    written = figures.draw(source, source / "figures")
    names = ("worst_weights", "worst_transport", "worst_values")
    assert {path.name for path in written} == {
        f"{name}.{kind}" for name in names for kind in ("pdf", "png")
    }
    for path in written:
        assert path.parent == source / "figures" and path.stat().st_size > 5000
        if path.suffix == ".png":
            assert int.from_bytes(path.read_bytes()[16:20], "big") == round(style.COLUMN * 300)


def test_the_same_tables_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    first, second = figures.draw(source, tmp_path / "a"), figures.draw(source, tmp_path / "b")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_weights_are_ratios_against_increasing_losses(source: Path) -> None:
    lines = artists(figures.weights(figures.read(source)).axes[0])
    assert set(lines) == {"kl", "chi2", "cvar", "tv"}
    for line in lines.values():
        np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2])
        np.testing.assert_allclose(line.get_ydata(), [0.4, 1.2, 2.0])


def test_the_middle_share_is_drawn_where_half_is_not_there(tmp_path: Path) -> None:
    figure = figures.weights(figures.read(write_study(tmp_path, share=0.8)))
    assert any("leaves 80 %" in text.get_text() for text in figure.texts)


def test_moves_are_arrows_and_flips_are_crosses(source: Path) -> None:
    figure = figures.transport(figures.read(source))
    assert figure is not None
    for ball, title in figures.PLANS.items():
        axes = panel(figure, title)
        flips = [line for name, line in artists(axes).items() if name.startswith("flip")]
        assert len(flips) == (ball in ("w1-finite", "w1-label"))
        for line in flips:
            assert (line.get_xdata()[0], line.get_ydata()[0]) == (-1.0, 0.5)
        arrows = {
            text.get_gid(): text for text in axes.texts if (text.get_gid() or "").startswith("move")
        }
        assert set(arrows) == ({"move 1", "move 3"} if ball == "w1-label" else {"move 1"})
        assert arrows["move 1"].xy == (2.0, 0.0)
        if ball == "w1-label":  # the direction is kept, the length is not
            x, y = arrows["move 3"].xy
            assert axes.get_xlim()[0] < x < 0.5 and y == pytest.approx(-0.5)
    assert any("goes to infinity" in text.get_text() for text in figure.legends[0].get_texts())


def test_without_mass_at_infinity_the_key_does_not_name_it(tmp_path: Path) -> None:
    figure = figures.transport(figures.read(write_study(tmp_path, balls=("kl", "w2-free"))))
    assert figure is not None
    assert len(figure.legends[0].get_texts()) == 3


def test_values_are_drawn_in_their_panels(source: Path) -> None:
    figure = figures.values(figures.read(source))
    for title, _, balls in figures.PANELS:
        lines = artists(panel(figure, title))
        assert set(lines) == set(balls)
        for ball, line in lines.items():
            own = (
                0.6
                + level("gradient" if ball == "gradient-step" else ball) * RADII
                - (0.01 if ball == "gradient-step" else 0)
            )
            np.testing.assert_allclose(line.get_ydata(), own)
            np.testing.assert_allclose(line.get_xdata(), 1 - RADII if ball == "cvar" else RADII)
            assert (line.get_linestyle() == "-") == (
                ball not in ("tilt", "gradient", "gradient-step")
            )


def test_a_run_without_balls_between_atoms_can_be_drawn(tmp_path: Path) -> None:
    balls = tuple(ball for ball in figures.BALLS if not ball.endswith("finite"))
    assert len(figures.draw(write_study(tmp_path, balls=balls), tmp_path / "figures")) == 6


@pytest.mark.parametrize("name", ["values.csv", "weights.parquet", "moves.parquet", "run.json"])
def test_a_missing_table_is_named_with_the_command_that_makes_it(tmp_path: Path, name: str) -> None:
    folder = write_study(tmp_path)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"{name}.*prefdro run worst-case --out {folder}"):
        figures.draw(folder, folder / "figures")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    pd.read_csv(folder / "values.csv").drop(columns="plain").to_csv(
        folder / "values.csv", index=False
    )
    with pytest.raises(ValueError, match=r"values.csv has no column plain.*prefdro run worst-case"):
        figures.read(folder)


def test_an_empty_table_is_named(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    pd.read_parquet(folder / "moves.parquet").iloc[:0].to_parquet(folder / "moves.parquet")
    with pytest.raises(ValueError, match=r"moves.parquet has no rows"):
        figures.read(folder)
