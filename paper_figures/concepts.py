"""The pictures of the guide: margins, the three kinds of worst case, collapse, what robustness can
do, and what falls.

`python -m paper_figures.concepts docs/guide/img` draws them. They need no rows: each is computed
here, in a second or two, in a world that is small enough to see.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures import falling, style
from paper_figures.style import BLACK, BLUE, GREY, ORANGE, PURPLE, SKY, VERMILLION, Look
from theory.collapse import collapse_radius
from theory.estimators import Fit, dpo
from theory.fitting import fit
from theory.functionals import tilt_weights
from theory.losses import dpo_loss
from theory.policy import Array
from theory.sets import SETS
from theory.shift import evaluate, random_shift, shrunk
from theory.worlds import FiniteWorld, from_labels
from theory.worst_cases import worst_case

PIXELS = 200  # an inch: enough for a screen, and files of some 50 kB
COLOURS = 48
TAUS = {0.25: SKY, 0.5: BLUE, 2.0: GREY}
MOVE = 0.5  # of the collapse radius, W2
SHORT = 0.1  # moves below this length are no more than the dot
FRACTIONS = np.linspace(0, 1.1, 45)  # of the collapse radius
ALPHA = np.linspace(0, 1, 11)
KINDS = {
    "convex": "annotators who agree",
    "sure annotators": "annotators who disagree",
}  # of theory.shift
WORLDS = 12
DASHES: dict[str, str | tuple[float, tuple[float, ...]]] = {
    "kl": "-",
    "w2-free": (0, (4, 1.5)),
}  # for grey print
STEPS = np.linspace(0.1, 0.9, 9)  # of the collapse radius
BALLS = {
    "kl": Look("KLDPO", BLUE, "s"),
    "w1-free": Look("WDPO $W_1$", ORANGE, "^"),
    "w2-free": Look("WDPO $W_2$", PURPLE, "v"),
}


def example(pairs: int = 24, seed: int = 3) -> FiniteWorld:
    """Labelled pairs with features on the unit circle, Bradley-Terry in theta* = (2, 0), beta =
    1."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, (2, pairs))
    psi = np.stack([np.cos(angle), np.sin(angle)], -1)
    label = (rng.random(pairs) < 1 / (1 + np.exp(-2 * (psi[0] - psi[1])[:, 0]))).astype(int)
    return from_labels(psi[0], psi[1], label, beta=1.0, bound=4.0)


def fitted(world: FiniteWorld) -> Array:
    """The DPO policy of the world (d,)."""
    return dpo(world.u, world.probability, beta=world.beta, bound=world.bound).theta.numpy()


# ------------------------------------------------------------------------------------------ margins
def margins(world: FiniteWorld) -> Figure:
    """Left: the pairs as signed feature differences, with w. Right: the loss of each at its
    margin."""
    theta = fitted(world)
    margin = world.beta * world.u @ theta
    loss = dpo_loss(torch.from_numpy(margin)).numpy()
    wrong = margin < 0
    figure, axes = style.grid(
        style.PAGE, [2.15], 2, left=0.45, right=0.9, top=0.25, bottom=0.42, gap_x=0.75
    )
    left, right = axes[0]
    _plane(left, "each dot is a pair, $u = (2y-1)(\\psi_1-\\psi_2)$")
    _border(left, theta)
    _arrow(left, theta / np.linalg.norm(theta) * 1.4, "$w$")
    line = np.linspace(min(margin.min(), -1) - 0.3, max(margin.max(), 3) + 0.2, 200)
    curve = dpo_loss(torch.from_numpy(line)).numpy()
    right.plot(line, curve, color=GREY, linewidth=0.8)
    for rows, colour, marker in ((~wrong, BLUE, "o"), (wrong, VERMILLION, "X")):
        left.plot(*world.u[rows].T, marker, color=colour, markersize=4)
        right.plot(
            margin[rows],
            loss[rows],
            marker,
            color=colour,
            markersize=4,
            gid="right" if colour == BLUE else "wrong",
        )
    right.axhline(loss.mean(), color=BLACK, linewidth=0.6, linestyle=(0, (4, 1.5)))
    right.set(
        xlabel=r"margin $m=\beta\,w\cdot u$",
        ylabel=r"loss $\log(1+e^{-m})$",
        title="what the policy pays for it",
    )
    ends = [
        (float(line[-1]), float(curve[-1]), "loss", Look("", GREY, "")),
        (float(line[-1]), float(loss.mean()), "mean: DPO", Look("", BLACK, "", (0, (4, 1.5)))),
    ]
    right.set_xlim(line[0], line[-1])
    right.set_ylim(0, None)
    style.label_ends(right, ends)
    return figure


# -------------------------------------------------------------------------------------------- balls
def balls(world: FiniteWorld) -> Figure:
    """What the adversary does at the DPO policy: KL reweights, Wasserstein moves; and what AOT
    compares."""
    theta = fitted(world)
    figure, axes = style.grid(
        style.PAGE, [1.95], 3, left=0.42, right=0.12, top=0.25, bottom=0.42, gap_x=0.5
    )
    _weights(axes[0, 0], world, theta)
    _moves(axes[0, 1], world, theta)
    _quantiles(axes[0, 2], world, theta)
    return figure


def _weights(panel: Axes, world: FiniteWorld, theta: Array) -> None:
    """Worst-case weight of each pair, times n, against its loss."""
    loss = np.sort(np.logaddexp(0, -world.beta * world.u @ theta))
    for tau, colour in TAUS.items():
        weight = len(loss) * tilt_weights(torch.from_numpy(loss), tau).numpy()
        panel.plot(
            loss, weight, "-o", color=colour, markersize=2.4, linewidth=0.8, gid=f"tau={tau:g}"
        )
        name = rf"$\tau={tau:g}$"
        panel.annotate(
            name,
            (loss[-1], weight[-1]),
            (-4, 1),
            textcoords="offset points",
            ha="right",
            va="bottom",
            color=colour,
        )
    panel.axhline(1, color=BLACK, linewidth=0.6, linestyle=(0, (4, 1.5)))
    panel.text(loss[0], 1.1, "DPO: all 1", va="bottom", ha="left")
    panel.set(
        xlabel="loss of the pair",
        ylabel="weight in the worst case",
        title="KL ball: pairs count more or less",
    )
    panel.set_ylim(0, None)


def _moves(panel: Axes, world: FiniteWorld, theta: Array) -> None:
    """Where the W2 ball moves each pair."""
    radius = MOVE * collapse_radius(world.u, SETS["w2-free"]).item()
    found = worst_case(world, theta, SETS["w2-free"].sized(radius)).moves
    assert found is not None
    _plane(panel, "Wasserstein ball: pairs move")
    _border(panel, theta)
    panel.plot(*world.u.T, "o", color=PURPLE, markersize=2.5)
    flush = {"shrinkA": 0, "shrinkB": 0}
    for start, end in zip(world.u[found.source], found.u, strict=True):
        if np.linalg.norm(end - start) < SHORT:
            continue
        panel.annotate(
            "",
            xy=end,
            xytext=start,
            arrowprops={"arrowstyle": "->", "color": PURPLE, "lw": 0.7, "mutation_scale": 5}
            | flush,
        )
    _arrow(panel, theta / np.linalg.norm(theta) * 1.2, "$w$")


def _quantiles(panel: Axes, world: FiniteWorld, theta: Array) -> None:
    """Rewards of chosen and rejected responses, each sorted: what AOT pays for where the chosen
    ones are not higher."""
    chosen, rejected = sides(world, theta)
    level = (np.arange(len(chosen)) + 0.5) / len(chosen)
    panel.plot(level, chosen, "-o", color=BLUE, markersize=2.4, linewidth=0.8, gid="chosen")
    panel.plot(
        level, rejected, "-s", color=VERMILLION, markersize=2.4, linewidth=0.8, gid="rejected"
    )
    panel.vlines(level, rejected, chosen, color=GREY, linewidth=0.4)
    panel.annotate(
        "chosen",
        (0.42, chosen[10]),
        (-3, 6),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=BLUE,
    )
    panel.annotate(
        "rejected",
        (0.6, rejected[14]),
        (3, -6),
        textcoords="offset points",
        ha="left",
        va="top",
        color=VERMILLION,
    )
    panel.set(
        xlabel="quantile", ylabel=r"reward $\beta\,w\cdot\psi$", title="AOT: whole distributions"
    )


def sides(world: FiniteWorld, theta: Array) -> tuple[Array, Array]:
    """Rewards beta w.psi of the chosen and of the rejected responses, each in ascending order
    (n,)."""
    first = (world.label == 1)[:, None]
    chosen, rejected = (
        np.where(first, world.psi1, world.psi2),
        np.where(first, world.psi2, world.psi1),
    )
    return np.sort(world.beta * chosen @ theta), np.sort(world.beta * rejected @ theta)


# ----------------------------------------------------------------------------------------- collapse
def collapse(world: FiniteWorld) -> Figure:
    """How far the robust policy goes from the reference, relative to DPO, against the radius in
    units of the collapse radius."""
    figure, axes = style.grid(4.4, [1.75], 1, left=0.5, right=1.05, top=0.1, bottom=0.42)
    panel: Axes = axes[0, 0]
    length = float(np.linalg.norm(fitted(world)))
    ends = []
    for ball, look in BALLS.items():
        share = np.array([path(world, ball, f) for f in FRACTIONS]) / length
        panel.plot(FRACTIONS, share, **look.line, markevery=8, gid=ball)
        middle = int(np.searchsorted(FRACTIONS, 0.3))
        ends.append((float(FRACTIONS[middle]), float(share[middle]), look))
    panel.axvline(1, color=GREY, linewidth=0.6, linestyle=(0, (1.2, 1.2)))
    panel.text(0.985, 0.97, "collapse", ha="right", va="top", color=GREY)
    panel.set(
        xlabel="radius / collapse radius",
        ylabel=r"$\Vert w\Vert$ / that of DPO",
        xlim=(0, FRACTIONS[-1]),
        ylim=(0, 1.03),
    )
    for (_, _, look), place in zip(
        sorted(ends, key=lambda end: -end[1]), (0.78, 0.66, 0.54), strict=True
    ):
        panel.plot(1.06, place, **look.line, transform=panel.transAxes, clip_on=False)
        panel.text(1.09, place, look.label, transform=panel.transAxes, va="center_baseline")
    return figure


def path(world: FiniteWorld, ball: str, fraction: float) -> float:
    """||w|| of the robust fit at this fraction of the collapse radius."""
    radius = fraction * collapse_radius(world.u, SETS[ball], world.probability).item()
    return float(robust(world, ball, radius).theta.norm())


def robust(world: FiniteWorld, ball: str, radius: float) -> Fit:
    """The exact robust fit of a set of `BALLS`."""
    return fit(world.u, SETS[ball].sized(radius), world.probability, **world.problem)


# ------------------------------------------------------------------------------------------- limits
def limits() -> Figure:
    """What a radius changes at equal KL to the reference: worst regret minus that of DPO with
    another beta, world by world."""
    figure, axes = style.grid(
        style.PAGE, [1.95], 2, left=0.75, right=0.85, top=0.25, bottom=0.42, gap_x=0.6
    )
    for panel, (kind, title) in zip(axes[0], KINDS.items(), strict=True):
        panel.axhline(0, color=BLACK, linewidth=0.8)
        for ball in ("w2-free", "kl"):
            for seed in range(WORLDS):
                panel.plot(
                    STEPS,
                    advantage(kind, seed, ball),
                    color=BALLS[ball].color,
                    linestyle=DASHES[ball],
                    linewidth=0.8,
                    gid=ball,
                )
        panel.set(xlabel="radius / collapse radius", title=title, xlim=(0, 1), ylim=(-0.1, 0.2))
    axes[0, 0].set_ylabel("worst regret minus\nDPO's at equal KL")
    last = axes[0, 1]
    names = [
        (Look("DPO", BLACK, ""), 1 / 3),
        (replace(BALLS["kl"], marker=""), 0.2),
        (replace(BALLS["w2-free"], marker="", dashes=DASHES["w2-free"]), 0.55),
    ]
    for look, place in names:
        last.plot([1.02, 1.08], [place] * 2, **look.line, transform=last.transAxes, clip_on=False)
        last.text(1.1, place, look.label, transform=last.transAxes, va="center_baseline")
    return figure


def advantage(kind: str, seed: int, ball: str) -> Array:
    """Worst regret over the mixtures minus that of the DPO policy with the same KL, at each of
    `STEPS`; whole populations."""
    shift = random_shift(kind, seed, train=0.8, alpha=ALPHA)
    world = shift.world
    reach = collapse_radius(world.u, SETS[ball], world.probability).item()
    theta = np.stack([robust(world, ball, step * reach).theta.numpy() for step in STEPS])
    found = evaluate(shift, theta)
    # DPO with beta' for beta has w times beta/beta': the policies along DPO's ray (theory.shift)
    control = shrunk(world, np.tile(fitted(world), (len(STEPS), 1)), found.kl)
    return found.regret.max(1) - evaluate(shift, control).regret.max(1)


# ------------------------------------------------------------------------------------------ drawing
def _plane(panel: Axes, title: str) -> None:
    panel.set(
        xlim=(-2.6, 2.6),
        ylim=(-2.6, 2.6),
        title=title,
        aspect="equal",
        xticks=(-2, 0, 2),
        yticks=(-2, 0, 2),
    )
    panel.set(xlabel="first feature of $u$", ylabel="second feature of $u$")


def _border(panel: Axes, theta: Array) -> None:
    """The line where the margin is 0; beyond it the policy disagrees with the label."""
    across = np.array([-theta[1], theta[0]]) / np.linalg.norm(theta)
    panel.plot(
        *np.outer([-3.5, 3.5], across).T,
        color=GREY,
        linewidth=0.6,
        linestyle=(0, (4, 1.5)),
        clip_on=True,
    )


def _arrow(panel: Axes, end: Array, text: str) -> None:
    look = {"arrowstyle": "-|>", "color": BLACK, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    tip = (float(end[0]), float(end[1]))
    panel.annotate("", xy=tip, xytext=(0, 0), arrowprops=look)
    panel.annotate(text, tip, (3, 2), textcoords="offset points", ha="left", va="bottom")


def draw_pictures(out: Path) -> list[Path]:
    """Draw all of them as .png, with few colours so that the files are small; returns the paths."""
    from PIL import Image

    out.mkdir(parents=True, exist_ok=True)
    world = example()
    written = []
    with style.paper():
        figures = {
            "margins": margins(world),
            "balls": balls(world),
            "collapse": collapse(world),
            "limits": limits(),
            "falling": falling.falling(falling.world()),
        }
        for name, figure in figures.items():
            target = out / f"{name}.png"
            figure.savefig(target, dpi=PIXELS)
            Image.open(target).convert("RGB").quantize(COLOURS).save(target, optimize=True)
            written.append(target)
    return written


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/guide/img")
    print(*draw_pictures(folder), sep="\n")
