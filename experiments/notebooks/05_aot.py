# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # AOT: sorted, not paired
#
# DPO asks that each chosen response beats *its* rejected one. AOT (arXiv:2406.05882v1) asks that the *distribution* of chosen
# rewards lies above that of rejected ones: quantile by quantile, which is stochastic dominance of the first order. In one
# dimension the optimal coupling sorts.

# %%
import numpy as np
import pandas as pd

from experiments.aot.worlds import Spec, build_world, judged, sphere_pairs, tensor
from paper_figures.notebook import show
from paper_figures.style import BLACK, BLUE, GREY, PAGE, PURPLE, VERMILLION, Look, decades, grid, label_ends, paper
from theory.aot import minimise_aot, random_starts
from theory import dpo
from theory.losses import dpo_loss, least_squares, logistic, squared_hinge
from theory.functionals import aot_unpaired
from theory.transport import quantile

# %%
rng = np.random.default_rng(0)
chosen, rejected = sphere_pairs(rng, 400, 3, 3.0)  # features on the sphere, Bradley–Terry labels
theta = dpo(chosen - rejected, beta=1.0, bound=6.0).theta
u, v = chosen @ theta, rejected @ theta  # rewards at the DPO policy

# %% [markdown]
# ## Quantiles
#
# Dominance is that the upper curve nowhere falls below the lower one. AOT's objective is the mean of $h$ over the vertical
# gaps.

# %%
levels = np.linspace(0.005, 0.995, 199)
with paper():
    figure, axes = grid(PAGE * 0.6, [1.7], 1, left=0.5, right=0.9)
    panel, ends = axes[0, 0], []
    for values, name, color in ((u, "chosen", BLUE), (v, "rejected", VERMILLION)):
        curve = quantile(values, tensor(levels))
        look = Look(name, color, "")
        panel.plot(levels, curve, color=color)
        ends.append((levels[-1], float(curve[-1]), name, look))
    panel.set(xlabel="level", ylabel="reward", title="at the DPO policy", xlim=(0, 1))
    label_ends(panel, ends)
show(figure)

# %% [markdown]
# ## Sorting is the cheapest pairing, and a batch of one is DPO
#
# On the same rewards the sorted objective is never above the paired one. On minibatches it lies in between: a batch of one pair
# has nothing to sort and *is* DPO; the bias falls as $1/b$.

# %%
full, paired = aot_unpaired(u, v, logistic, 1.0).item(), dpo_loss(u - v).mean().item()
sizes = [1, 2, 4, 8, 16, 32, 64, 128]
bias = []
for b in sizes:
    batch = rng.integers(len(u), size=(20_000, b))
    bias.append(aot_unpaired(u[batch], v[batch], logistic, 1.0).mean().item() - full)
print(f"AOT on all pairs {full:.3f}, mean DPO loss {paired:.3f}, mean AOT of batches of one {bias[0] + full:.3f}")

# %%
with paper():
    figure, axes = grid(PAGE * 0.6, [1.7], 1, left=0.55, right=0.9)
    panel = axes[0, 0]
    panel.plot(sizes, bias, color=PURPLE, marker="D")
    panel.plot(sizes, bias[-1] * sizes[-1] / np.array(sizes), color=GREY, linestyle=":")
    panel.axhline(paired - full, color=BLACK, linewidth=0.6)
    decades(panel.xaxis, 0.8, 160)
    decades(panel.yaxis, 2e-3, 1)
    panel.set(xlabel="pairs in a batch", ylabel="bias of the objective, nats")
    ends = [(160, bias[-1], "AOT", Look("", PURPLE, "D")), (160, paired - full, "DPO", Look("", BLACK, ""))]
    label_ends(panel, ends)
    panel.text(14, 1.35 * bias[4], "$1/b$", color=GREY)
show(figure)

# %% [markdown]
# That is why the authors train with the largest batch that fits, and why this package gathers rewards over micro-batches and
# ranks before it sorts.
#
# ## Not convex
#
# A minimum over couplings of convex functions is not convex. Thirty-two starts on 200 pairs, least squares $h$:

# %%
starts = random_starts(np.random.default_rng(1), 32, 3, 6.0)
found = {
    name: minimise_aot(chosen[:200], rejected[:200], starts=starts, h=h, beta=1.0, bound=6.0)
    for name, h in (("logistic", logistic), ("squared hinge", squared_hinge), ("least squares", least_squares))
}
pd.DataFrame(
    {
        name: {
            "lowest": fit.value.item(),
            "highest": fit.starts.max().item(),
            "different ends": len(np.unique(fit.starts.numpy().round(7))),
            "norm of theta": fit.theta.norm().item(),
        }
        for name, fit in found.items()
    }
).T.round(4)

# %% [markdown]
# Nearly every start of the least squares ends elsewhere. The logistic $h$ has few ends, for another reason: its solutions sit
# on the edge of the ball $\|\theta\| \le B = 6$. **Where the chosen rewards already dominate, scaling them up lowers $h$ for
# ever.** Unregularised AOT with the logistic $h$ has no minimiser there, as DPO has none on separable pairs; what stops it in
# practice is the number of steps.
#
# ## What dominance buys, and what it costs
#
# A world where no linear reward can make the chosen dominate: the annotators like extremes on both sides. Each method is
# brought to the same KL of 0.3 nats to the reference along its ray. `relative` is the violated share of dominance, the area
# where the chosen quantiles lie *below* the rejected.

# %%
KL = 0.3


def at_kl(world, w):
    """w scaled so that its policy has the wanted KL to the reference."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if world.kl(middle * w) > KL else (middle, high)
    return low * w


def contestants(world):
    p, q = world.laws(world.probability)
    psi = tensor(world.psi)
    points = {"DPO": dpo(world.differences, world.probability, beta=1.0, bound=6.0).theta.numpy()}
    for name, h in (("AOT, logistic", logistic), ("AOT, squared hinge", squared_hinge)):
        fit = minimise_aot(psi, psi, p, q, starts=random_starts(np.random.default_rng(0), 16, 3, 6.0), h=h, beta=1.0, bound=6.0)
        points[name] = fit.theta[0].numpy()
    return {name: at_kl(world, w / np.linalg.norm(w)) for name, w in points.items()}


worlds = [build_world(Spec(rewards="curved", seed=seed)) for seed in range(6)]
rows = []
for seed, world in enumerate(worlds):
    points = contestants(world)
    facts = judged(world, np.stack(list(points.values())))
    rows += [
        {"method": name, "seed": seed, "relative": facts["relative"][k], "win rate": facts["win_rate"][k]}
        for k, name in enumerate(points)
    ]
pd.DataFrame(rows).groupby("method", sort=False)[["relative", "win rate"]].agg(["mean", "min", "max"]).round(3)

# %%
world = worlds[0]
p, q = world.laws(world.probability)
with paper():
    figure, axes = grid(PAGE * 0.6, [1.7], 1, left=0.5, right=1.3)
    panel, ends = axes[0, 0], []
    for (name, w), color in zip(contestants(world).items(), (BLACK, PURPLE, BLUE), strict=True):
        reward = tensor(world.psi) @ tensor(w)
        gap = quantile(reward, tensor(levels), p) - quantile(reward, tensor(levels), q)
        panel.step(levels, gap, color=color, where="mid")
        ends.append((levels[-1], float(gap[-1]), name, Look("", color, "")))
    panel.axhline(0, color=GREY, linewidth=0.6)
    panel.set(xlabel="level", ylabel="chosen − rejected quantile", title=f"one world, KL = {KL:g}", xlim=(0, 1))
    label_ends(panel, ends)
show(figure)

# %% [markdown]
# Below the line dominance is violated. AOT violates it far less than DPO, as it should: that is its objective. **It pays with
# the win rate**: DPO, which looks at pairs, is ahead of both in the table. Choose by what you want: every quantile, or the
# average duel.
#
# **Try:** `rewards="linear"` (chosen then dominate at $\theta^*$, and nobody violates anything), `KL = 1.0`, other seeds.
