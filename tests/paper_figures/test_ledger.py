"""Figures of the ledger: every claim is there, tables are drawn by the convention, and what is
wrong is said."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.studies.ledger import (
    VERDICTS,
    claim_figure,
    draw,
    draw_claims,
    drawable,
    glance,
    letters,
    read,
)
from theory.claims.ledger import MEANING

TABLES = {"claim-1": ["error / bound", "bias"], "claim-2": ["others", "gone"]}


@pytest.fixture(autouse=True)
def in_style() -> Iterator[None]:
    with style.paper():
        yield


def claims(count: int = 5) -> pd.DataFrame:
    rows = [
        {
            "claim": f"claim-{i}",
            "subject": f"subject {i // 3}",
            "verdict": list(VERDICTS)[i % len(VERDICTS)],
            "figure": f"ratio {i} " * 20,
        }
        for i in range(count)
    ]
    return pd.DataFrame(rows).assign(tables=[TABLES.get(row["claim"], []) for row in rows])


def curve(series: int = 1, **columns: object) -> pd.DataFrame:
    parts = [
        pd.DataFrame(
            {"x": [1.0, 10.0, 100.0], "y": [3.0 * (k + 1), 2.0, 1.0], "series": f"series {k}"}
        ).assign(**columns)
        for k in range(series)
    ]
    return pd.concat(parts, ignore_index=True)


def lines(figure: Figure) -> dict[str, np.ndarray]:
    return {
        line.get_gid(): line.get_xydata()
        for axes in figure.axes
        for line in axes.lines
        if line.get_gid()
    }


def folder(tmp_path: Path) -> Path:
    (tmp_path / "tables").mkdir()
    claims().to_parquet(tmp_path / "ledger.parquet")
    curve(2, log="xy").to_parquet(tmp_path / "tables" / "claim-1--error - bound.parquet")
    curve().to_parquet(tmp_path / "tables" / "claim-1--bias.parquet")
    pd.DataFrame({"tau": [1.0]}).to_parquet(tmp_path / "tables" / "claim-2--others.parquet")
    curve().to_parquet(tmp_path / "tables" / "gone--error.parquet")
    return tmp_path


def test_every_claim_has_its_row_and_its_verdict_in_colour_shape_and_word() -> None:
    figure = glance(claims(len(VERDICTS)))
    marks = {line.get_gid(): line for line in figure.axes[0].lines if line.get_gid()}
    words = [text.get_text() for text in figure.axes[0].texts]
    for row in claims(len(VERDICTS)).itertuples():
        look = VERDICTS[row.verdict]
        assert (marks[row.claim].get_color(), marks[row.claim].get_marker()) == (
            look.color,
            look.marker,
        )
        assert row.claim in words and row.verdict in words
    assert len({(look.color, look.marker) for look in VERDICTS.values()}) == len(VERDICTS)
    assert list(VERDICTS) == list(MEANING)


def test_nothing_overlaps_or_leaves_the_page() -> None:
    figure = glance(claims(40))
    figure.canvas.draw()  # type: ignore[attr-defined]
    page = figure.bbox
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert all(
        box.x0 >= page.x0 and box.x1 <= page.x1 and box.y0 >= page.y0 and box.y1 <= page.y1
        for box in boxes
    )
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert min(a.x1, b.x1) <= max(a.x0, b.x0) + 1 or min(a.y1, b.y1) <= max(a.y0, b.y0) + 4


def test_a_table_becomes_a_panel() -> None:
    figure = claim_figure(
        {
            "error": curve(2, log="xy", x_label="pairs n", y_label="error"),
            "other": pd.DataFrame({"a": [1]}),
        }
    )
    assert figure is not None
    (axes,) = figure.axes
    assert (axes.get_title("left"), axes.get_xlabel(), axes.get_ylabel()) == (
        "error",
        "pairs $n$",
        "error",
    )
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert np.array_equal(lines(figure)["series 1"], [[1, 6], [10, 2], [100, 1]])
    assert {"series 0", "series 1"} <= {text.get_text() for text in axes.texts}


def test_many_series_go_into_a_legend_and_stay_apart() -> None:
    figure = claim_figure({"error": curve(20)})
    assert figure is not None
    legend = figure.axes[0].get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == [
        f"series {k}" for k in range(20)
    ]
    looks = {
        (line.get_color(), line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines
    }
    assert len(looks) == 20


def test_points_bars_and_bands() -> None:
    band = curve(low=0.5, high=4.0)
    words = pd.DataFrame(
        {"x": ["KL", "W1"], "y": [1.0, 2.0], "low": [0.5, 1.5], "high": [1.5, 2.5], "kind": "bars"}
    )
    figure = claim_figure({"band": band, "points": curve(kind="points"), "bars": words})
    assert figure is not None
    first, second, third = figure.axes[:3]
    assert len(first.collections) == 1
    assert second.lines[0].get_linestyle() == "None"
    assert [bar.get_height() for bar in third.patches] == [1.0, 2.0]
    assert [label.get_text() for label in third.get_xticklabels()] == ["KL", "W1"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (curve(), True),
        (pd.DataFrame({"x": [1.0], "z": [1.0]}), False),
        (pd.DataFrame({"x": ["a"], "y": [1.0]}), False),
        (pd.DataFrame({"x": ["a"], "y": [1.0], "kind": "bars"}), True),
        (pd.DataFrame({"x": [1.0], "y": [np.nan]}), False),
    ],
)
def test_what_can_be_drawn(rows: pd.DataFrame, expected: bool) -> None:
    assert drawable(rows) == expected
    assert (claim_figure({"t": rows}) is not None) == expected


def test_values_that_a_logarithm_has_no_place_for_are_left_out() -> None:
    rows = curve(log="xy")
    rows.loc[0, "y"], rows.loc[1, "y"] = 0.0, np.inf
    figure = claim_figure({"error": rows})
    assert figure is not None
    assert figure.axes[0].get_ylim() == pytest.approx((1 / 1.6, 1.6))


def test_draw_writes_the_glance_and_a_figure_for_each_drawable_claim(tmp_path: Path) -> None:
    source = folder(tmp_path)
    written = draw(source, source / "figures")
    assert {path.name for path in written} == {
        "ledger.pdf",
        "ledger.png",
        "claim-1.pdf",
        "claim-1.png",
    }
    first = {path: path.read_bytes() for path in written}
    assert {path: path.read_bytes() for path in draw(source, source / "figures")} == first
    assert {path.stem for path in draw_claims(source, tmp_path / "new", ["claim-2"])} == {"ledger"}


def test_tables_come_in_the_order_of_the_claim_with_their_own_names(tmp_path: Path) -> None:
    _, tables = read(folder(tmp_path))
    assert {name: list(found) for name, found in tables.items() if found} == {
        "claim-1": ["error / bound", "bias"],
        "claim-2": ["others"],
    }


def test_points_with_whiskers_stand_side_by_side_inside_of_the_panel() -> None:
    for count in (1, 3):
        figure = claim_figure({"a": curve(count, low=0.5, high=9.0, kind="points", log="x")})
        assert figure is not None
        figure.canvas.draw()  # type: ignore[attr-defined]
        (axes,) = figure.axes
        marks = [line for line in axes.lines if line.get_gid()]
        at = [line.get_transform().transform((10.0, 1.0))[0] for line in marks]
        middle = axes.transData.transform((10.0, 1.0))[0]
        assert np.mean(at) == pytest.approx(middle) and len({*np.round(at, 6)}) == count
        low, high = axes.get_ylim()
        assert low <= 0.5 and high >= 9.0


def test_all_points_are_inside_of_the_panel() -> None:
    for how in ({}, {"low": 0.5, "high": 9.0}, {"guide": "y = x"}, {"log": "xy"}):
        figure = claim_figure({"a": curve(3, kind="points", **how)})
        assert figure is not None
        (axes,) = figure.axes
        assert axes.get_xlim()[0] < 1 and axes.get_xlim()[1] > 100, how
        assert axes.get_ylim()[0] <= 1 and axes.get_ylim()[1] >= 9, how


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("n^(-1/4)", "$n^{-1/4}$"),
        ("KL, rho ∝ n^-0.5", r"KL, $\rho$ ∝ $n^{-0.5}$"),
        (
            "||theta_rho(P_n) - theta_rho(P_0)||",
            r"$\|\theta_\rho$($P_n$) $-$ $\theta_\rho$($P_0$)$\|$",
        ),
        ("n = 1e+04", "$n$ = $10^{4}$"),
        ("costs $5, none", r"costs \$5, none"),
    ],
)
def test_labels_are_set_as_formulas(label: str, shown: str) -> None:
    assert letters(label) == shown
    figure = claim_figure({label: curve(2, x_label=label, y_label=label).assign(series=label)})
    assert figure is not None
    figure.canvas.draw()  # type: ignore[attr-defined]  # what cannot be set raises
    assert figure.axes[0].get_title("left") == shown


def test_panels_with_the_same_series_share_their_looks_and_one_legend() -> None:
    other = curve(3).iloc[::-1]
    figure = claim_figure({"W1": curve(3), "W2": other, "W3": curve()})
    assert figure is not None
    (legend,) = (axes.get_legend() for axes in figure.axes if axes.get_legend() is not None)
    assert [text.get_text() for text in legend.get_texts()] == ["series 0", "series 1", "series 2"]
    first, second, third = (
        {
            line.get_gid(): (line.get_color(), line.get_marker())
            for line in axes.lines
            if line.get_gid()
        }
        for axes in figure.axes[:3]
    )
    assert first == second and len(set(first.values())) == 3 and third.items() <= first.items()


@pytest.mark.parametrize(("guide", "line"), [("y = 1.5", [1.5, 1.5]), ("y = x", [1.0, 6.0])])
@pytest.mark.parametrize("log", ["", "xy"])
def test_a_guide_is_drawn_inside_the_panel(guide: str, line: list[float], log: str) -> None:
    figure = claim_figure(
        {"error": pd.DataFrame({"x": [1.0, 6.0], "y": [2.0, 6.0], "guide": guide, "log": log})}
    )
    assert figure is not None
    (axes,) = figure.axes
    (drawn,) = (one for one in axes.lines if one.get_color() == style.GREY)
    x, y = (np.asarray(values, dtype=float) for values in drawn.get_data())
    low, high = axes.get_ylim()
    assert low <= y.min() and y.max() <= high
    assert np.array_equal(x, y) if guide == "y = x" else np.array_equal(y, line)


def test_words_below_bars_meet_neither_each_other_nor_the_legend() -> None:
    words = pd.DataFrame({"x": [f"a setting {k}" for k in range(8)], "y": 1.0, "kind": "bars"})
    rows = pd.concat([words.assign(series=name) for name in ("one", "two")])
    figure = claim_figure(
        {"left": rows, "right": rows.assign(y_label="y"), "alone": words.assign(series="three")}
    )
    assert figure is not None
    figure.canvas.draw()  # type: ignore[attr-defined]
    assert any(axes.get_legend() is not None for axes in figure.axes[:3])
    for axes in figure.axes[:3]:
        labels = axes.get_xticklabels()
        assert {label.get_rotation() for label in labels} == {30.0}
        below = min(label.get_window_extent().y0 for label in labels)
        assert below > figure.bbox.y0
        if axes.get_legend() is not None:
            assert axes.get_legend().get_window_extent().y1 <= below + 2


def test_a_name_far_from_the_end_of_its_curve_goes_into_the_legend() -> None:
    short = pd.DataFrame({"x": [1.0], "y": [2.0], "series": "one point"})
    figure = claim_figure({"error": pd.concat([curve(), short])})
    assert figure is not None
    assert figure.axes[0].get_legend() is not None and not figure.axes[0].texts


def test_names_at_the_ends_stand_at_the_height_of_the_ends() -> None:
    rows = pd.DataFrame(
        {"x": [0.0, 1.0] * 2, "y": [0.0, 10.0, 0.0, -10.0], "series": ["up", "up", "down", "down"]}
    )
    figure = claim_figure({"error": rows})
    assert figure is not None
    places = {text.get_text(): text.get_position()[1] for text in figure.axes[0].texts}
    assert places["up"] > 0.9 and places["down"] < 0.1


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no ledger.parquet. Make it with `prefdro verify"):
        draw(tmp_path, tmp_path / "figures")
    claims().drop(columns="verdict").to_parquet(tmp_path / "ledger.parquet")
    with pytest.raises(ValueError, match="no column verdict"):
        draw(tmp_path, tmp_path / "figures")
    with pytest.raises(ValueError, match="kind 'pie'"):
        claim_figure({"error": curve(kind="pie")})
