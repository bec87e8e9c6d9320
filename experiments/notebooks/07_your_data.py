# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own data
#
# A file of preferences, its log-linear fit, robust fits, the radius that the data suggest, and the pairs that the worst case
# leans on. Name your file before you start Jupyter, any that `prefdro train` reads (JSONL, JSON, Parquet, CSV or a folder, with
# `prompt`, `chosen` and `rejected`, or without the first), and, if you have them, pairs of another population:
#
# ```
# PREFDRO_PAIRS=pairs.jsonl PREFDRO_HELD_OUT=others.jsonl jupyter lab experiments/notebooks/07_your_data.py
# ```
#
# Without a name a small file is made up here, so that every cell has something to show.

# %%
import json
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from llm.data.tokens import load_rows, preference_texts
from paper_figures.notebook import show
from paper_figures.style import BLACK, BLUE, GREY, METHODS, PAGE, grid, paper
from theory import KL, WassersteinFree, dpo, worst_case
from theory import fit as fit_set
from theory.radius_choice import describe, suggest_radii

BETA = 1.0

# %% [markdown]
# ## Read, or make up
#
# The made-up annotators like answers that are long, hedge little and use words of the question; one in six is of another kind
# and wants it short. The held-out file is from a population in which half are of that kind.


# %%
def make_up(path, count, minority, seed):
    """A JSONL of random answers, labelled by two kinds of annotators."""
    rng = np.random.default_rng(seed)
    topics = ["tea", "trains", "rain", "bread", "stars", "maps"]
    facts = [
        "it is old and known in many countries",
        "people learn it early",
        "most books agree on this",
        "you can try it at home",
    ]
    with path.open("w") as file:
        for _ in range(count):
            topic = topics[rng.integers(len(topics))]
            answers, scores = [], []
            short = rng.random() < minority
            for _ in range(2):
                length, hedges, on_topic = rng.integers(1, 7), rng.integers(0, 3), rng.random() < 0.5
                sentences = [facts[k] for k in rng.integers(len(facts), size=length)]
                if on_topic:
                    sentences[0] = f"{topic}: {sentences[0]}"
                for k in rng.integers(len(sentences), size=hedges):
                    sentences[k] = f"perhaps {sentences[k]}"
                answers.append(". ".join(sentences) + ".")
                scores.append((-0.8 if short else 0.35) * length - 0.5 * hedges + 0.8 * on_topic)
            first = rng.random() < 1 / (1 + np.exp(scores[1] - scores[0]))
            chosen, rejected = answers if first else answers[::-1]
            kind = "short" if short else "long"
            file.write(
                json.dumps({"prompt": f"tell me about {topic}", "chosen": chosen, "rejected": rejected, "kind": kind}) + "\n"
            )


def read(path):
    """Prompt, chosen, rejected of every usable pair, read as `prefdro train` reads them, beside the other columns of the file."""
    rows = load_rows(path)
    texts = preference_texts(rows)
    rest = pd.DataFrame([rows[i] for i in texts["index"]]).drop(columns=["prompt", "chosen", "rejected"], errors="ignore")
    return texts.drop(columns="index").join(rest)


folder = Path(tempfile.mkdtemp())
named, named_held_out = os.environ.get("PREFDRO_PAIRS"), os.environ.get("PREFDRO_HELD_OUT")
if named is None:
    make_up(folder / "pairs.jsonl", 600, 1 / 6, 0)
    make_up(folder / "others.jsonl", 300, 1 / 2, 1)
pairs = read(named or folder / "pairs.jsonl")
others = None if named and not named_held_out else read(named_held_out or folder / "others.jsonl")
print(f"{len(pairs)} pairs from {named or 'a made-up file'}, {0 if others is None else len(others)} held out")
pairs[["prompt", "chosen", "rejected"]].head(3)

# %% [markdown]
# ## Features
#
# A log-linear policy needs numbers that describe a response. These are crude and readable; replace the function by what matters
# in your data, for instance embeddings (then reduce them to a few dozen directions first: with more features than a tenth of
# the pairs everything below is noise).

# %%
HEDGES = {"perhaps", "maybe", "possibly", "might", "could", "seems", "probably"}


def features(prompt, response):
    """Named numbers of one response."""
    words = re.findall(r"[\w']+", response.lower())
    asked = set(re.findall(r"[\w']+", prompt.lower()))
    count = max(len(words), 1)
    return {
        "log length": np.log1p(len(words)),
        "letters a word": sum(map(len, words)) / count,
        "hedges": sum(word in HEDGES for word in words) / count,
        "words of the prompt": len(asked & set(words)) / max(len(asked), 1),
        "different words": len(set(words)) / count,
        "list marks": sum(line.lstrip()[:2] in ("- ", "* ", "1.", "2.", "3.") for line in response.splitlines()),
        "question marks": response.count("?"),
    }


def table_of(rows, column):
    return pd.DataFrame([features(p, r) for p, r in zip(rows.prompt, rows[column], strict=True)])


chosen, rejected = (table_of(pairs, column) for column in ("chosen", "rejected"))
names = [name for name in chosen if pd.concat([chosen, rejected])[name].std() > 0]  # a constant says nothing
spread = pd.concat([chosen[names], rejected[names]]).std()  # of each feature over all responses
u = (chosen[names] - rejected[names]) / spread  # in standard deviations
print(f"left out, since they never vary: {sorted(set(chosen) - set(names))}")

# %% [markdown]
# ## The fit
#
# Log-odds for each standard deviation of a feature, so that they can be compared with each other, and for each unit of it, with 95 %
# percentile intervals of the bootstrap: 300 resamples are one call.

# %%
fitted = dpo(u, beta=BETA)
print("\n".join(fitted.remarks) or "finite: the pairs are not separable, and no bound is met")
fit = fitted.theta.numpy()
counts = np.random.default_rng(0).multinomial(len(u), np.full(len(u), 1 / len(u)), 300) / len(u)
low, high = np.quantile(dpo(u, counts, beta=BETA).theta.numpy(), [0.025, 0.975], axis=0)
order = np.argsort(np.abs(fit))[::-1]
with paper():
    figure, axes = grid(PAGE * 0.6, [0.25 + 0.2 * len(names)], 1, left=1.3, right=0.1)
    panel = axes[0, 0]
    panel.hlines(range(len(names)), low[order], high[order], color=BLACK)
    panel.plot(fit[order], range(len(names)), "o", color=BLACK)
    panel.axvline(0, color=GREY, linewidth=0.6)
    panel.set(yticks=range(len(names)), ylim=(len(names) - 0.5, -0.5), xlabel="log-odds for a standard deviation, 95 % intervals")
    panel.set_yticklabels([names[k] for k in order])
show(figure)

# %%
units = pd.DataFrame({"a standard deviation is": spread, "log-odds for it": fit, "log-odds for one unit": fit / spread.to_numpy()})
units.iloc[order].round(3)

# %% [markdown]
# Made-up or not, mind what a coefficient is: the weight of a feature *at equal values of the others*. In the made-up file most
# annotators like length, and yet its coefficient is about zero: long answers repeat themselves, and `different words` stands
# for length. Under the reference policy, and under a shift, the two need not go together.
#
# ## Which radius?

# %%
held_out = None
if others is not None:  # in the units of the training pairs
    held_out = (table_of(others, "chosen")[names] - table_of(others, "rejected")[names]) / spread
choice = suggest_radii(u, beta=BETA, held_out=held_out)
print(describe(choice))

# %% [markdown]
# - *covers value*, *covers theta*: what sampling error alone asks for. With more pairs it shrinks.
# - *held-out shift*: what the other population asks for. `none` means that its loss is not above what chance explains.
# - *cap*: half the collapse radius, or for KL the radius that leaves half the sample. Where a wish is above it, the line below
#   the table says so, and **a ball around this sample is then the wrong tool**: get pairs of the other population.
#
# ## Robust fits at the suggested radii

# %%
same = dpo(u, beta=choice.equivalent_beta).theta.numpy()
fits = {
    "DPO": fit,
    **{
        name: fit_set(u, set, beta=BETA).theta.numpy()
        for name, set in (
            ("KLDPO", KL(choice.kl.radius)),
            ("WDPO W1", WassersteinFree(choice.w1.radius)),
            ("WDPO W2", WassersteinFree(choice.w2.radius, power=2)),
        )
    },
    f"DPO, beta = {choice.equivalent_beta:.2f}": same,
}


def loss(w, data):
    return float("nan") if data is None else np.logaddexp(0, -BETA * data.to_numpy() @ w).mean()


def cosine(w):
    return w @ fit / max(np.linalg.norm(w) * np.linalg.norm(fit), 1e-300)


facts = {
    name: {"norm": np.linalg.norm(w), "cosine with DPO": cosine(w), "loss": loss(w, u), "held-out loss": loss(w, held_out)}
    for name, w in fits.items()
}
pd.DataFrame(facts).T.round(3)

# %% [markdown]
# The last row is the honest rival: plain DPO with the $\beta$ that KLDPO amounts to where the Bradley–Terry model is right. If
# it does as well on the held-out pairs, what helped was staying near the reference, and you do not need a ball. (log 2 = 0.693
# is the loss of the reference policy itself.)
#
# ## What does the worst case lean on?

# %%
worst = worst_case(u, fit, KL(choice.kl.radius), beta=BETA)
ratio = worst.weights * len(u)
top = np.argsort(-ratio)[:5]
shown = pairs.loc[top, ["chosen", "rejected"]].assign(weight=ratio[top].round(2))
shown.assign(chosen=shown.chosen.str[:60], rejected=shown.rejected.str[:60])

# %% [markdown]
# Read them. Are they people whom the policy should serve, or mistakes? The adversary cannot tell (notebook 03). In the made-up
# file we can look, and are disappointed: the worst case hardly finds the minority.

# %%
if "kind" in pairs:
    short = (pairs.kind == "short").to_numpy()
    share = worst.weights[short].sum()
    print(f"pairs of annotators who want it short: {short.mean():.2f} of the sample, {share:.2f} of the worst case")

# %%
change = pd.DataFrame({"all pairs": u.mean(axis=0), "worst case": worst.weights @ u.to_numpy()}, index=names).iloc[order]
with paper():
    figure, axes = grid(PAGE * 0.6, [0.25 + 0.2 * len(names)], 1, left=1.3, right=0.8)
    panel, rows = axes[0, 0], np.arange(len(names))
    for shift, (name, color, marker) in enumerate((("all pairs", BLACK, "o"), ("worst case", METHODS["kldpo"].color, "s"))):
        panel.plot(change[name], rows, marker, color=color)
        panel.text(1.02, 0.95 - 0.14 * shift, name, transform=panel.transAxes, color=color, va="top")
    panel.hlines(rows, change["all pairs"], change["worst case"], color=BLUE, linewidth=0.6)
    panel.axvline(0, color=GREY, linewidth=0.6)
    panel.set(yticks=rows, ylim=(len(names) - 0.5, -0.5), xlabel="mean of chosen − rejected, standard deviations")
    panel.set_yticklabels(change.index)
show(figure)

# %% [markdown]
# Each preference of the sample is weaker in the worst case, or turned round. When all of them are zero the ball has reached the
# collapse radius, and the only policy that is safe is the one you started from.
