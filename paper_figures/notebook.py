"""A figure in the style of the paper, as the output of a notebook's cell."""

from io import BytesIO
from typing import Any

from matplotlib.figure import Figure

from paper_figures.style import paper

DPI = 130  # a figure of the width of a page has 900 points, and some 40 KB


def show(figure: Figure) -> Any:
    """The figure as an image (IPython.display.Image); figures of `style.grid` belong to no backend
    that would show them."""
    from IPython.display import Image

    buffer = BytesIO()
    with paper():
        figure.savefig(buffer, format="png", dpi=DPI)
    return Image(buffer.getvalue())
