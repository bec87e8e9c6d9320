# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What does the adversary do?
#
# A robust objective is a promise about the worst distribution in a ball. Look at that distribution before you pay for it. The
# world here is a sample of 40 labelled pairs with features on the unit circle, and the DPO policy that was fitted to it; its
# score grows to the right.

# %%
import numpy as np
import pandas as pd
from ipywidgets import Dropdown, FloatSlider, interact

from experiments.worst_case import at_share, sample_world
from paper_figures.notebook import show
from paper_figures.style import BLUE, COLUMN, GREY, PAGE, VERMILLION, grid, paper
from theory import SETS, dpo, worst_case

# %%
world = sample_world(40, seed=0, beta=1.0, bound=4.0)
p = world.probability
theta = dpo(world.u, p, beta=1.0, bound=4.0).theta.numpy()
losses = np.logaddexp(0, -world.u @ theta)
unit = float(np.linalg.norm(p @ world.u))  # the collapse radius of W2 with free features
print(f"mean loss {p @ losses:.3f}, largest {losses.max():.3f}; W2 collapses at {unit:.3f}")

# %% [markdown]
# ## Four ways to reweight
#
# KL, chi-squared, CVaR and total variation put new weights on the same pairs. To compare them fairly, each has the radius at
# which half of the sample is left in effect (Kish: $1/\sum_i q_i^2/p_i$).

# %%
balls = {"kl": "KL", "chi2": "$\\chi^2$", "cvar": "CVaR", "tv": "total variation"}
with paper():
    figure, axes = grid(PAGE, [1.2], 4, left=0.45, right=0.1, gap_x=0.25)
    order = np.argsort(losses)
    for panel, (ball, name) in zip(axes[0], balls.items(), strict=True):
        worst = at_share(SETS[ball], losses, p, 0.5)
        panel.vlines(losses, 0, worst.weights / p, color=BLUE, linewidth=1.2)
        panel.axhline(1, color=GREY, linewidth=0.6)
        panel.set(title=f"{name}: loss {worst.value:.2f}", xlabel="loss of the pair", ylim=(0, 8), xlim=(0, losses.max() * 1.05))
        if panel is not axes[0, 0]:
            panel.set_yticklabels([])
    axes[0, 0].set_ylabel("weight q / p")
show(figure)

# %% [markdown]
# KL weights all pairs, a little more for each bit of loss. CVaR forgets the easy pairs and treats all hard ones alike. Total
# variation takes a share from the easiest pairs and gives it all to one.
#
# ## Move the radius
#
# The slider needs a running kernel; below it is what it shows at three radii. Arrows are moves of the features $x =
# \psi_1-\psi_2$, in the plane of $w$ (to the right) and across; circles are weights.

# %%
along = theta / np.linalg.norm(theta)
plane = np.stack([along, [-along[1], along[0]]], axis=1)


def draw(panel, ball, fraction):
    """One worst case at a fraction of ||E u|| (W2) or at as many nats (KL)."""
    radius = fraction if ball == "kl" else fraction * unit
    worst = worst_case(world, theta, SETS[ball].sized(radius))
    x = world.u @ plane
    if worst.weights is not None:
        panel.scatter(*x.T, s=30 * 40 * worst.weights, facecolor=BLUE, alpha=0.35, linewidth=0)
    else:
        to = worst.moves.u @ plane
        start = x[worst.moves.source]
        panel.quiver(*start.T, *(to - start).T, angles="xy", scale_units="xy", scale=1, width=0.006, color=VERMILLION)
    panel.scatter(*x.T, s=3, color="black", linewidth=0)
    panel.axvline(0, color=GREY, linewidth=0.6)
    unit_name = "nats" if ball == "kl" else "of $||E u||$"
    panel.set(
        title=f"{fraction:g} {unit_name}: loss {worst.value:.2f}", xlim=(-2.9, 2.3), ylim=(-2.2, 2.2), xlabel="$u$ along $w$"
    )


def one(ball="w2-free", fraction=0.3):
    """What the slider shows."""
    with paper():
        figure, axes = grid(COLUMN * 0.75, [1.7], 1, left=0.45, right=0.1)
        draw(axes[0, 0], ball, fraction)
    return show(figure)


interact(
    one,
    ball=Dropdown(options=[("W2: features move", "w2-free"), ("KL: weights", "kl")], value="w2-free", description="ball"),
    fraction=FloatSlider(min=0.0, max=1.5, step=0.05, value=0.3, description="radius", continuous_update=False),
)
# %%
with paper():
    figure, axes = grid(PAGE, [1.75, 1.75], 3, left=0.5, right=0.1, gap_x=0.35, gap_y=0.62)
    for row, ball in zip(axes, ("kl", "w2-free"), strict=True):
        for panel, fraction in zip(row, (0.1, 0.5, 1.0), strict=True):
            draw(panel, ball, fraction)
            if panel is not row[0]:
                panel.set_yticklabels([])
        row[0].set_ylabel("KL: $u$ across $w$" if ball == "kl" else "$W_2$: $u$ across $w$")
show(figure)

# %% [markdown]
# Left of the line the policy is wrong about the pair. **KL** fades out the right side. **W2** pushes every pair to the left
# along $w$: pairs it is wrong about move furthest, since their loss is steepest, and the pairs that are right by a wide margin
# hardly move. Nothing moves across $w$: the policy does not look there.
#
# ## The surprise: noise looks like a minority
#
# Turn round the labels of 10 % of a larger sample, fit DPO to it, and ask how much of the worst case sits on those wrong
# labels.

# %%
rows = []
for seed in range(10):
    clean = sample_world(1000, seed=seed, beta=1.0, bound=8.0)
    rng = np.random.default_rng([seed, 1])
    flipped = rng.random(1000) < 0.1
    u = np.where(flipped, -1.0, 1.0)[:, None] * clean.u
    fit = dpo(u, beta=1.0, bound=8.0).theta.numpy()
    l = np.logaddexp(0, -u @ fit)
    for ball in balls:
        rows.append({"ball": ball, "share left": 1.0, "on wrong labels": flipped.mean()})
        for share in (0.8, 0.5, 0.25):
            q = at_share(SETS[ball], l, np.full(1000, 1e-3), share).weights
            rows.append({"ball": ball, "share left": share, "on wrong labels": q[flipped].sum()})
table = pd.DataFrame(rows).groupby(["ball", "share left"])["on wrong labels"].mean().unstack("ball")[list(balls)]
table.sort_index(ascending=False).round(3)

# %% [markdown]
# The first row is what the sample holds. The more robust, the more of the objective is spent on labels that are simply wrong:
# the adversary cannot tell a minority that should be heard from an annotator who clicked on the wrong button. If your data are
# noisy, clean them or take a loss for noise (`cdpo`, `rdpo`, `dr_dpo`, whose tilt has the opposite sign) rather than a ball.
#
# **Try:** `"w1-label"` in place of `"w2-free"`, where the adversary may turn labels round itself at a cost, or `sample_world(200,
# ...)`.
