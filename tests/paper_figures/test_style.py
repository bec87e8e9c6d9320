"""Figures look the same whatever the user's matplotlibrc says."""

from pathlib import Path
from typing import Any

import matplotlib
import pytest

from paper_figures import style


def drawn(out: Path) -> bytes:
    def figures() -> Any:
        figure, axes = style.grid(style.COLUMN, [1.2], 1, left=0.4, right=0.2)
        axes[0, 0].plot([1, 10], [1, 10])
        style.decades(axes[0, 0].xaxis, 1, 1e4)
        axes[0, 0].set(xlabel="n", title="$n^{-1/2}$ & 5 %")
        yield "figure", figure

    return style.save_all(figures(), out)[1].read_bytes()


@pytest.mark.parametrize(
    "rc",
    [
        {"text.usetex": True},  # and no LaTeX on this machine
        {
            "font.weight": "bold",
            "xtick.major.pad": 11.0,
            "xtick.direction": "in",
            "axes.grid": True,
        },
        {
            "savefig.bbox": "tight",
            "savefig.transparent": True,
            "savefig.facecolor": "black",
            "figure.facecolor": "red",
        },
        {
            "axes.prop_cycle": matplotlib.cycler(color=["r"]),
            "lines.linestyle": ":",
            "axes.xmargin": 0.4,
        },
        {"image.cmap": "gray", "axes.formatter.use_locale": True, "path.sketch": (1.0, 100.0, 2.0)},
    ],
)
def test_the_users_settings_change_nothing(rc: dict[str, Any], tmp_path: Path) -> None:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        expected = drawn(tmp_path)
    with matplotlib.rc_context(rc):
        assert drawn(tmp_path) == expected
        assert {name: matplotlib.rcParams[name] for name in rc} == rc  # they are the user's again
