"""The figures show what the tables say. The tables are made up here."""

import ast
import json
import math
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from paper_figures import style
from paper_figures.paper import aot_tables
from paper_figures.studies import aot as figures

SIZES, BATCHES, BETAS, LEVELS = (
    (100, 1000, 10000),
    (1, 8, 64),
    (0.1, 1.0),
    (0.1, 0.3, 0.5, 0.7, 0.9),
)
WORLDS, COSTS, METHODS = (
    ("linear", "curved"),
    tuple(figures.COSTS),
    ("dpo", "aot-paired", "aot-unpaired"),
)
DRAWN = (
    "aot_rates",
    "aot_minibatch",
    "aot_softness",
    "aot_surrogate",
    "aot_minima",
    "aot_quantiles_linear",
    "aot_quantiles_curved",
)
_WOBBLE = np.array([-0.1, 0.0, 0.1])  # of the three replicates


def _rows(keys: tuple[str, ...], values: product, **columns: object) -> pd.DataFrame:
    table = pd.DataFrame(list(values), columns=[*keys, "replicate"])
    return table.assign(
        **{name: column(table) if callable(column) else column for name, column in columns.items()}
    )


def write_study(folder: Path) -> Path:
    """Powers of n and of the batch size; in the curved world rejected responses are ahead below the
    level 0.4."""
    three = range(3)
    wobble = {k: _WOBBLE[k] for k in three}
    rate = _rows(
        ("world", "n"),
        product(WORLDS, SIZES, three),
        fixed=lambda t: t.n**-0.5,
        minimiser=lambda t: 2 * t.n**-0.5,
        excess=lambda t: 1.0 / t.n,
        violation=lambda t: np.where(t.world == "curved", t.n**-0.5 / 3, 0.0),
        violation_population=0.0,
        bound=lambda t: 4 * t.n**-0.5,
    )
    minibatch = _rows(
        ("actions", "h", "batch"),
        product((8, 1000), COSTS, BATCHES, three),
        population=1.0,
        controlled=lambda t: (
            1 + (t.h.map(COSTS.index) + 1) / t.batch * (1 + t.replicate.map(wobble))
        ),
        dpo=lambda t: 2 + t.h.map(COSTS.index),
    )
    softness = _rows(
        ("softness",),
        product((0.0, 1.0, 10.0), three),
        n=50,
        hard_minimum=0.5,
        minimum=lambda t: 0.5 / (1 + t.softness / 10),
        hard_there=lambda t: 0.5 * (1 + t.softness / 10),
        distance=lambda t: t.softness / 10,
        converged=True,
    )
    surrogate = _rows(
        ("world", "h", "beta"),
        product(WORLDS, COSTS, BETAS, three),
        n=1000,
        violation=lambda t: t.beta / 100,
        gap=lambda t: t.h.map(COSTS.index) + t.beta,
        kl=lambda t: 3 - t.beta,
        boundary=False,
    )
    pairing = _rows(
        ("world", "n", "method", "data"),
        product(WORLDS, (50, 500), METHODS, ("pairs",), three),
        value=0.3,
        dpo=lambda t: np.where(t.replicate == 0, 0.2, 0.5),
        relative=0.0,
        cosine=0.9,
        win_rate=0.6,
    )
    minima = _rows(
        ("n", "dimension", "signal"),
        product((10, 100), (2, 5), (0.0, 2.0), three),
        starts=32,
        minima=lambda t: t.dimension + t.replicate,
        best=0.5,
        spread=lambda t: 1.0 / t.n,
        share_best=0.25,
    )
    methods = _rows(
        ("world", "n", "method", "matched"),
        product(WORLDS, (100, 1000), METHODS, (False, True), three),
        relative=0.0,
        kl=0.3,
        win_rate=lambda t: np.where(t.n == 100, 0.111, 0.777),
        boundary=False,
        converged=True,
    )
    quantiles = _rows(
        ("world", "n", "method", "matched", "level"),
        product(WORLDS, (100, 1000), METHODS, (False, True), LEVELS, three),
        chosen=lambda t: t.level + t.n / 1000 + t.matched,
        rejected=lambda t: (
            t.level
            + t.n / 1000
            + t.matched
            + np.where((t.world == "curved") & (t.level < 0.4), 0.2, -0.2)
        ),
    )
    rates = pd.DataFrame(
        [
            {
                "part": "rate",
                "setting": "linear",
                "quantity": "fixed",
                "slope": -0.512,
                "ci_low": -0.53,
                "ci_high": -0.49,
            },
            {
                "part": "rate",
                "setting": "linear",
                "quantity": "violation",
                "slope": math.nan,
                "ci_low": math.nan,
                "ci_high": math.nan,
            },
        ]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "rate": rate,
        "minibatch": minibatch,
        "softness": softness,
        "surrogate": surrogate,
        "pairing": pairing,
    }
    for name, table in (
        tables | {"minima": minima, "methods": methods, "quantiles": quantiles}
    ).items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
    rates.to_csv(folder / "rates.csv", index=False)
    run = {
        "seed": 7,
        "commit": "abc",
        "not_converged": {"rate": 1, "softness": 2},
        "constants": {"matched_kl": 0.3},
    }
    (folder / "run.json").write_text(json.dumps(run))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("aot"))


@pytest.fixture(scope="module")
def study(source: Path) -> aot_tables.Study:
    return aot_tables.read(source)


def line(axes: Axes, name: str) -> np.ndarray:
    """The y values of the line of that name."""
    (found,) = [one for one in axes.lines if one.get_gid() == name]
    return np.asarray(found.get_ydata(), dtype=float)


def title(axes: Axes) -> str:
    return axes.get_title("left") + axes.get_title()


def test_draw_writes_every_figure_as_pdf_and_png_at_column_width(source: Path) -> None:
    written = figures.draw(source, source / "figures")
    assert {path.name for path in written} == {
        f"{n}.{k}" for n in DRAWN for k in ("pdf", "png")
    } | {"summary.md"}
    for path in written:
        assert path.parent == source / "figures"
        assert (
            path.read_bytes()[:4]
            == {".pdf": b"%PDF", ".png": b"\x89PNG", ".md": b"# AO"}[path.suffix]
        )
        if path.suffix == ".png":
            assert int.from_bytes(path.read_bytes()[16:20], "big") == round(
                style.COLUMN * 300
            )  # 300 dots per inch


def test_rates_are_root_mean_squares_and_vanishing_violations_are_said(
    study: aot_tables.Study,
) -> None:
    linear, curved = figures.rates(study).axes
    np.testing.assert_allclose(line(linear, "fixed"), np.array(SIZES) ** -0.5)
    np.testing.assert_allclose(line(linear, "bound"), 4 * np.array(SIZES) ** -0.5)
    np.testing.assert_allclose(line(curved, "violation"), np.array(SIZES) ** -0.5 / 3)
    assert not [one for one in linear.lines if one.get_gid() == "violation"]
    assert [text for text in linear.texts if "0 in every sample" in text.get_text()]
    assert not [text for text in curved.texts if "0 in every sample" in text.get_text()]


def test_minibatch_lines_are_biases(study: aot_tables.Study) -> None:
    for axes in figures.minibatch(study).axes:
        for k, h in enumerate(COSTS):
            np.testing.assert_allclose(line(axes, h), (k + 1) / np.array(BATCHES))


def test_softness_leaves_hard_sorting_out_and_divides_by_it(study: aot_tables.Study) -> None:
    upper, lower = figures.softness(study).axes
    np.testing.assert_allclose(line(upper, "minimum"), [1 / 1.1, 1 / 2])
    np.testing.assert_allclose(line(upper, "hard_there"), [1.1, 2])
    np.testing.assert_allclose(line(lower, "distance"), [0.1, 1])


def test_surrogate_panels_show_each_fact(study: aot_tables.Study) -> None:
    axes = figures.surrogate(study).axes
    np.testing.assert_allclose(line(axes[0], "violation|logistic"), [0.001, 0.01])
    np.testing.assert_allclose(line(axes[2], "gap|least squares"), [2.1, 3])
    np.testing.assert_allclose(line(axes[5], "kl|squared hinge"), [2.9, 2])


def test_quantiles_are_those_at_matched_kl_and_most_pairs(study: aot_tables.Study) -> None:
    for world, marked in (("linear", False), ("curved", True)):
        axes = [panel for panel in figures.quantiles(study, world).axes if panel.get_visible()]
        assert [title(panel) for panel in axes] == [aot_tables.METHODS[name] for name in METHODS]
        for panel in axes:
            np.testing.assert_allclose(line(panel, "chosen"), np.array(LEVELS) + 2)
            (dark,) = [band for band in panel.collections if band.get_gid() == "violation"]
            assert bool(dark.get_paths()) == marked


def test_minima_are_means_over_samples(study: aot_tables.Study) -> None:
    axes = figures.minima(study).axes
    np.testing.assert_allclose(line(axes[0], "minima|5"), [6, 6])
    np.testing.assert_allclose(line(axes[3], "relative|2"), [0.2, 0.02])
    assert [title(axes[k]) for k in (0, 1)] == ["Bradley–Terry labels", "random labels"]


def test_the_summary_has_the_main_numbers(study: aot_tables.Study) -> None:
    text = aot_tables.summary(study)
    assert "3 minimisations not converged" in text
    assert "| rate | linear | fixed | -0.512 | [-0.530, -0.490] |" in text
    assert "| rate | linear | violation | zero at some size |  |" in text
    assert "at least 4.0 times the mean deviation" in text
    assert (
        f"in {2 * 2 * 2 * 2} of {2 * 2 * 2 * 3} fits" in text
    )  # of paired and unpaired AOT; one replicate in three is above
    assert "logistic 0 %, squared hinge 0 %, least squares 0 %" in text
    assert "32 starts end at 2 to 7 local minima; the worst is above the best by 11.0 %" in text
    assert (
        "At softness 10 the soft minimum is 0.50 of the hard one, and its minimiser is worth 2.00"
        " of it" in text
    )
    assert (
        "Linear rewards, equal KL: relative violation and win rate DPO 0.000, 0.777; AOT, paired"
        " 0.000, 0.777" in text
    )
    assert "0.111" not in text  # only the most pairs
    assert "| linear | 1000 | True | dpo | 0 | 0.3 | 0.777 | 0 |" in text


@pytest.mark.parametrize("name", [*aot_tables.COLUMNS, "run.json"])
def test_a_missing_table_is_named_with_the_command_that_makes_it(tmp_path: Path, name: str) -> None:
    folder = write_study(tmp_path)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"no {name}.*prefdro run aot"):
        aot_tables.read(folder)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    pd.read_parquet(folder / "minima.parquet").drop(columns="spread").to_parquet(
        folder / "minima.parquet"
    )
    with pytest.raises(ValueError, match="no column spread"):
        aot_tables.read(folder)


@pytest.mark.parametrize("module", [figures, aot_tables])
def test_figures_read_tables_only(module: ModuleType) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text())
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    ]
    assert not [name for name in modules if name.split(".")[0] in ("theory", "experiments", "llm")]
