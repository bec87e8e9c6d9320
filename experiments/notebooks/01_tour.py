# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A tour in ten cells
#
# A world of preference pairs, a sample, DPO and its robust versions with their certificates, and the worst case that each of
# them guards against. Everything here is exact: the world is finite, so that nothing is estimated where it can be summed.
#
# Change any number and run on. No cell takes more than a second.

# %%
import numpy as np
import pandas as pd

from paper_figures.notebook import show
from paper_figures.style import METHODS, PAGE, grid, label_ends, paper
from theory import SETS, collapse_radius, fit, random_world, worst_case

# %% [markdown]
# ## 1. A world
#
# Six contexts, three responses each, with features $\psi$ on the unit sphere. The reference policy picks two responses and an
# annotator prefers one of them by Bradley–Terry in $\beta\,(\theta^*-\theta_{\rm ref})\cdot\psi$. What the losses see of a
# labelled pair is $u = (2y-1)(\psi_1-\psi_2)$.

# %%
world = random_world(seed=3, contexts=6, actions=3, dimension=3, beta=1.0, bound=10.0, signal=2.0)
print(f"{len(world.u)} possible labelled pairs, theta* = {world.theta_star.round(2)}")
print(f"KL(pi* || pi_ref) = {world.kl_to_reference(world.theta_star):.3f} nats")

# %% [markdown]
# ## 2. A sample
#
# A sample of $n$ pairs is a vector of frequencies on those atoms, so that $n = 10^8$ would cost what $n = 200$ does. One seed
# gives one sample; a list of seeds gives as many, and `fit` takes all of them at once.

# %%
n = 200
sample = world.sample(n, [np.random.SeedSequence(0)]).p[0].numpy()
plain = fit(world.u, weights=sample, **world.problem)
plain

# %% [markdown]
# `gap` is a bound on (loss − least possible loss) by weak duality. It does not trust the solver: if it is small, the fit is
# right. `plain.theta`, `plain.value` and `plain.gap` are tensors.
#
# ## 3. How large is a large radius?
#
# From the *collapse radius* on the robust answer is the reference policy itself. It is the natural unit for a radius: 0.1 nats
# may be nothing in one data set and everything in another.

# %%
balls = ("kl", "w1-free", "w2-free")
edge = {ball: collapse_radius(world.u, SETS[ball], sample).item() for ball in balls}
print(edge)

# %% [markdown]
# ## 4. Robust fits at half the collapse radius

# %%
fits = {"dpo": plain}
for ball in balls:
    half = SETS[ball].sized(0.5 * edge[ball])
    fits[half.facts.method] = fit(world.u, half, sample, **world.problem)
theta = {name: one.theta.numpy() for name, one in fits.items()}
losses = {name: np.logaddexp(0, -world.beta * world.u @ t) for name, t in theta.items()}
table = pd.DataFrame(
    {
        "norm of theta": {name: np.linalg.norm(t) for name, t in theta.items()},
        "KL to reference": {name: float(world.kl_to_reference(t)) for name, t in theta.items()},
        "loss on the sample": {name: float(sample @ l) for name, l in losses.items()},
        "robust value": {name: one.value.item() for name, one in fits.items()},
        "true loss": {name: float(world.probability @ l) for name, l in losses.items()},
        "gap": {name: one.gap.item() for name, one in fits.items()},
    }
)
table.round(4)

# %% [markdown]
# **Read it like this.** All robust fits are shorter: they stay nearer to the reference. Their *robust value* is what they
# promise, and the true loss is far below the promise. But the true loss of plain DPO is lower than theirs: in this world
# nothing has shifted, so that robustness is paid for and not used.
#
# ## 5. The worst case at the DPO policy
#
# Where does the adversary of the KL ball put the probability? Its weights are an exponential tilt of the losses (Theorem 3 of
# arXiv:2502.01930v4): the pairs that the policy gets most wrong.

# %%
worst = worst_case(world, theta["dpo"], SETS["kl"].sized(0.5 * edge["kl"]), sample)
seen = pd.DataFrame({"p": sample, "q": worst.weights, "loss": losses["dpo"]}).query("p > 0")
print(f"loss {seen.p @ seen.loss:.3f} -> {worst.value:.3f}; of the {n} pairs {n * worst.effective:.0f} are left in effect")
seen.assign(ratio=seen.q / seen.p).sort_values("ratio", ascending=False).head(5).round(3)

# %% [markdown]
# ## 6. The robust value against the radius
#
# The same policy under three balls, each in units of its own collapse radius.

# %%
fractions = np.linspace(0, 1, 21)
values = {
    ball: [worst_case(world, theta["dpo"], SETS[ball].sized(f * edge[ball]), sample).value for f in fractions]
    for ball in balls
}
with paper():
    figure, axes = grid(PAGE * 0.62, [1.8], 1, left=0.5, right=1.2)
    looks = dict(zip(balls, (METHODS["kldpo"], METHODS["wdpo-w1-free"], METHODS["wdpo-w2-free"]), strict=True))
    panel = axes[0, 0]
    for ball, look in looks.items():
        panel.plot(fractions, values[ball], **look.line, markevery=4)
    panel.set(xlabel="radius / collapse radius", ylabel="worst expected loss, nats", title="at the DPO policy", xlim=(0, 1))
    panel.axhline(np.log(2), color="0.6", linewidth=0.6, zorder=0)
    panel.text(0.98, np.log(2) - 0.005, "log 2: the reference policy", va="top", ha="right", color="0.4")
    ends = [(1.0, values[ball][-1], name, looks[ball]) for ball, name in zip(balls, ("KL", "$W_1$", "$W_2$"), strict=True)]
    label_ends(panel, ends)
show(figure)

# %% [markdown]
# Where a curve is above the grey line the reference policy, whose loss is $\log 2$ whatever the distribution, is the better
# answer. That is why robust fits shrink towards it, and arrive there at the collapse radius.
#
# ## 7. A surprise to end with
#
# Fit KLDPO to the *population*. It does not point anywhere new: it is a shorter $\theta^*$, to the last digit.

# %%
population = fit(world.u, SETS["kl"].sized(0.05), world.probability, **world.problem)
w, tau = population.theta.numpy(), population.dual.item()
cosine = w @ world.theta_star / np.linalg.norm(w) / np.linalg.norm(world.theta_star)
print(f"cosine with theta* = {cosine:.9f}")
print(
    f"length / length of theta* = {np.linalg.norm(w) / np.linalg.norm(world.theta_star):.6f}, tau/(1+tau) = {tau / (1 + tau):.6f}"
)
larger = fit(world.u, weights=world.probability, beta=world.beta * (1 + 1 / tau)).theta.numpy()
print(f"DPO with beta (1 + 1/tau) differs from it by {np.linalg.norm(larger - w):.1e}")

# %% [markdown]
# Where the Bradley–Terry model is right, KLDPO *is* DPO with a larger $\beta$ (docs/theorems/larger-beta.md, Proposition E). What
# robustness can add must come from finite samples or from a model that is wrong. Notebook 04 looks for it.
#
# **Try:** `n = 20` (what happens to the collapse radii?), `signal=0.5`, or `"chi2"`, `"cvar"`, `"tv"` and `"w1-label"` among the balls: every set of `SETS` has a fit and a worst
# case.
