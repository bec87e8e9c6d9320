"""Fig. 1 of arXiv:2502.01930, preference shift, as a drawn scheme. Every curve in it is computed
from a small example.

Three completions A, B, C to one prompt have two rewards. Annotators are a mixture: r*(alpha) =
alpha r1 + (1 - alpha) r2. The share of people who like each completion best is softmax(r*(alpha)),
a point of the simplex; labels are drawn at alpha_o and the policy is used at another alpha. DPO on
labels from r*(alpha_o) finds the policy proportional to exp(r*(alpha_o) / beta) (uniform
reference); KLDPO with temperature tau finds the same with beta (1 + 1/tau) in place of beta
(Proposition E of docs/theorems/larger-beta.md).
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import rel_entr, softmax

from paper_figures import style
from paper_figures.style import BLACK, BLUE, GREEN, GREY, PALE, SKY, VERMILLION, Look

Array = NDArray[np.float64]
REWARDS = np.array([[0.2, 2.2, 0.9], [2.6, 0.1, 1.0]])  # r1 and r2 of A, B, C
NAMES = ("A", "B", "C")
COLORS, MARKERS = (BLUE, VERMILLION, GREEN), ("o", "s", "^")
TRAIN, TEST = 0.1, 0.8  # alpha_o of the labels, alpha of those who use the policy
RADIUS_KL, RADIUS_W = (
    0.30,
    0.32,
)  # of the two balls; W1 with distance 1 between any two completions is total variation
BETA, TAU = 0.5, 0.5
_CORNERS = np.array(
    [[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]]
)  # of the simplex in the plane: A, B, C


def reward(alpha: float | Array) -> Array:
    """r*(alpha) = alpha r1 + (1 - alpha) r2 of the three completions: (..., 3)."""
    share = np.asarray(alpha)[..., None]
    return share * REWARDS[0] + (1 - share) * REWARDS[1]


def population(alpha: float | Array) -> Array:
    """Share of people who like each completion best (Luce's choice rule): (..., 3)."""
    return softmax(reward(alpha), axis=-1)


def policy(beta: float) -> Array:
    """What DPO with this beta learns from labels at alpha_o, over a uniform reference: (3,)."""
    return softmax(reward(TRAIN) / beta)


def worst_case(centre: Array, pi: Array, radius: float) -> Array:
    """The distribution of likes in the KL ball for which the log loss -log pi is worst, centre *
    pi^(-1/lambda): (3,)."""

    def tilted(inverse: float) -> Array:
        weights = centre * np.exp(-inverse * np.log(pi))
        return weights / weights.sum()

    inverse = brentq(lambda x: rel_entr(tilted(x), centre).sum() - radius, 0.0, 50.0)
    return tilted(float(inverse))


def robust_beta(tau: float) -> float:
    """KLDPO with temperature tau is DPO with this beta where the labels are Bradley-Terry
    (Proposition E)."""
    return BETA * (1 + 1 / tau)


def scheme() -> Figure:
    """From left to right: rewards that cross, the ball around the labels' distribution, what either
    policy is worth."""
    figure, axes = style.grid(
        style.PAGE, [1.75], 3, left=0.42, right=0.78, top=0.6, bottom=0.82, gap_x=0.72
    )
    width = style.PAGE
    for panel, left, wide in zip(
        axes[0], (0.42, 2.12, 4.82), (1.3, 2.05, 1.3), strict=True
    ):  # inches
        box = panel.get_position()
        panel.set_position((left / width, box.y0, wide / width, box.height))
    _rewards(axes[0, 0])
    _ball(axes[0, 1])
    _values(axes[0, 2])
    style.footnote(
        figure,
        "A drawn scheme, computed from a made-up example: three completions, $r^*(\\alpha) ="
        f" \\alpha r_1 + (1-\\alpha) r_2$, labels at $\\alpha_o$ = {TRAIN:g};\nKL ball of radius"
        f" {RADIUS_KL:g} nats, Wasserstein-1 ball of radius {RADIUS_W:g}; $\\beta$ = {BETA:g},"
        f" KLDPO with $\\tau$ = {TAU:g}. After Fig. 1 of arXiv:2502.01930.",
    )
    return figure


def _mark_shift(axes: Axes, y: float) -> None:
    """Grey bars at the alpha of the labels and of the test, and the arrow from one to the other,
    `y` in units of the panel."""
    place = axes.get_xaxis_transform()
    for alpha, text in ((TRAIN, "labels"), (TEST, "test")):
        axes.axvline(alpha, color=PALE, linewidth=4, zorder=0)
        axes.text(
            alpha, 1.02, text, transform=place, ha="center", va="bottom", fontsize=7, color=GREY
        )
    arrow = {
        "arrowstyle": "-|>",
        "color": GREY,
        "lw": 0.8,
        "shrinkA": 2,
        "shrinkB": 2,
        "mutation_scale": 7,
    }
    axes.annotate("", (TEST, y), (TRAIN, y), xycoords=place, textcoords=place, arrowprops=arrow)
    axes.text(
        (TRAIN + TEST) / 2,
        y + 0.02,
        "shift",
        transform=place,
        ha="center",
        va="bottom",
        fontsize=7,
        color=GREY,
    )


def _rewards(axes: Axes) -> None:
    alphas = np.linspace(0, 1, 11)
    axes.set(xlim=(0, 1), ylim=(0, 3.1), xlabel=r"mixture $\alpha$")
    axes.set_ylabel(r"reward $r^*(\alpha)$", labelpad=2)
    ends = []
    for i, name in enumerate(NAMES):
        look = Look(name, COLORS[i], MARKERS[i])
        values = reward(alphas)[:, i]
        axes.plot(
            alphas, values, color=COLORS[i], marker=MARKERS[i], markevery=5, clip_on=False, gid=name
        )
        ends.append((1.0, float(values[-1]), name, look))
    style.label_ends(axes, ends, offset=0.16)
    _mark_shift(axes, 0.88)
    axes.set_xticks([0, TRAIN, 0.5, TEST, 1], ["0", r"$\alpha_o$", "", r"$\alpha$", "1"])
    axes.set_title("(a) preferences shift: the\nbest completion changes", pad=14)


def _ball(axes: Axes) -> None:
    centre = population(TRAIN)
    grid = _simplex(120)
    points = grid @ _CORNERS
    x, y = points.T
    kl = rel_entr(grid, centre).sum(-1)
    moved = np.abs(grid - centre).sum(-1) / 2
    axes.plot(*np.vstack([_CORNERS, _CORNERS[:1]]).T, color=GREY, linewidth=0.6)
    axes.tricontourf(x, y, kl, levels=[0, RADIUS_KL], colors=[SKY], alpha=0.45)
    axes.tricontour(x, y, kl, levels=[RADIUS_KL], colors=[BLUE], linewidths=0.9)
    axes.tricontour(
        x, y, moved, levels=[RADIUS_W], colors=[VERMILLION], linewidths=0.9, linestyles="--"
    )
    path = population(np.linspace(0, 1, 101)) @ _CORNERS
    axes.plot(*path.T, color=BLACK, linewidth=0.9, gid="path")
    marked = (
        (centre, "o", r"$P_o$: labels", (-0.04, -0.07), "left"),
        (population(TEST), "o", r"$P$: test", (0.03, -0.09), "center"),
        (worst_case(centre, policy(BETA), RADIUS_KL), "*", "worst case", (0.04, 0.03), "left"),
    )
    for distribution, marker, text, shift, side in marked:
        at = distribution @ _CORNERS
        axes.plot(*at, marker, color=BLACK, markersize=6 if marker == "*" else 3.5, gid=text)
        axes.annotate(text, at, at + shift, ha=side, va="center", fontsize=7)
    pointer = {"arrowstyle": "-", "lw": 0.5, "shrinkA": 1, "shrinkB": 1}
    top = grid[np.argmax(np.where(kl <= RADIUS_KL, points[:, 1], -1))] @ _CORNERS
    axes.annotate(
        "KL ball",
        top,
        (0.02, 0.62),
        ha="center",
        color=BLUE,
        fontsize=7,
        arrowprops=pointer | {"color": BLUE},
    )
    corner = (centre + RADIUS_W * np.array([-1.0, 0.0, 1.0])) @ _CORNERS
    text = "Wasserstein\nball"
    axes.annotate(
        text,
        corner,
        (0.84, 0.66),
        ha="center",
        color=VERMILLION,
        fontsize=7,
        arrowprops=pointer | {"color": VERMILLION},
    )
    for corner, name, align in zip(
        _CORNERS, NAMES, (("right", "top"), ("left", "top"), ("center", "bottom")), strict=True
    ):
        axes.text(corner[0], corner[1], f" {name} ", ha=align[0], va=align[1])
    axes.set(xlim=(-0.08, 1.08), ylim=(-0.2, 0.98), aspect="equal")
    axes.axis("off")
    axes.text(
        0.5,
        -0.13,
        "share of people who like A, B, C best",
        ha="center",
        va="top",
        fontsize=7,
        color=GREY,
    )
    axes.set_title(
        "(b) robust training looks at the worst\ncase in a ball around the labels", pad=14
    )


def _simplex(steps: int) -> Array:
    """A grid of distributions over three completions: (points, 3)."""
    i, j = np.meshgrid(np.arange(steps + 1), np.arange(steps + 1), indexing="ij")
    inside = i + j <= steps
    a, b = i[inside] / steps, j[inside] / steps
    return np.stack([a, b, np.clip(1 - a - b, 0, None)], -1)


def _values(axes: Axes) -> None:
    alphas = np.linspace(0, 1, 11)
    axes.set(xlim=(0, 1), ylim=(0, 3.1), xlabel=r"mixture $\alpha$", ylabel="expected reward")
    lines = (
        ("DPO", policy(BETA), Look("DPO", BLACK, "o")),
        ("KLDPO", policy(robust_beta(TAU)), Look("KLDPO", BLUE, "s", (0, (4, 1.5)))),
        ("reference", np.full(3, 1 / 3), Look("reference", GREY, "", (0, (1.2, 1.2)))),
    )
    ends = []
    for name, pi, look in lines:
        values = reward(alphas) @ pi
        axes.plot(alphas, values, **look.line, markevery=5, clip_on=False, gid=name)
        ends.append((1.0, float(values[-1]), name, look))
    style.label_ends(axes, ends, offset=0.16)
    _mark_shift(axes, 0.88)
    axes.set_xticks([0, TRAIN, 0.5, TEST, 1], ["0", r"$\alpha_o$", "", r"$\alpha$", "1"])
    axes.set_title("(c) the robust policy gives up\nreward here to lose less there", pad=14)


def draw(source: Path, out: Path) -> list[Path]:
    """Draw wdpo_fig1, which needs no rows; `source` is not read. The paths written.

    Args:
        source: the folder that holds the studies' folders.
        out: folder of the figures.
    """
    del source
    with style.paper():
        drawn = scheme()
    return style.save_all([("wdpo_fig1", drawn)], out)
