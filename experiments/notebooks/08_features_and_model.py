# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Features, or the model itself?
#
# The theory's estimators see a response as a vector of features; the trainer sees every weight. Here both get the same pairs: a
# log-linear fit on features of the start's hidden states (`prefdro features`), and a policy trained by `prefdro train`. Then one
# question to both: which pairs does the worst case of a KL ball lean on? If the answers agree, the cheap analysis speaks for the
# expensive one.
#
# Name your preferences, a model, and a folder that keeps what takes long (it is read when it is there):
#
# ```
# PREFDRO_PAIRS=pairs.jsonl PREFDRO_MODEL=smollm2 PREFDRO_FOLDER=results/both jupyter lab experiments/notebooks/08_features_and_model.py
# ```
#
# PREFDRO_COUNT is how many of the pairs are taken (1,000 if not said), PREFDRO_LENGTH how many tokens of each (192).
#
# Without a name a grammar and a small model trained on it stand in, so that every cell has something to show.

# %%
import json
import os
import tempfile
import warnings
from contextlib import redirect_stderr, redirect_stdout
from hashlib import sha256
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import disable_progress_bars
from matplotlib.ticker import FixedLocator, NullLocator
from scipy.stats import rankdata
from transformers.utils import logging

from experiments.cli import main
from experiments.engine.stages import content
from llm import PreferenceCollator, language_model, load_language_model, load_rows, load_tokenizer
from llm import reference_logps, sequence_logprobs, tokenise, word_tokenizer
from llm.data.corpus import generate_texts
from llm.data.tokens import padding_token
from llm.sft import Recipe, fine_tune
from llm.weights import located
from paper_figures.notebook import show
from paper_figures.style import BLACK, BLUE, GREY, PAGE, grid, paper
from theory import KL, dpo, read_table, worst_case
from theory.worlds import common_scale

disable_progress_bars()
logging.disable_progress_bar()
logging.set_verbosity_error()
warnings.simplefilter("ignore")

BETA, RADIUS = 0.1, 0.1  # the radius in nats
PAIRS, LENGTH = (int(os.environ.get(f"PREFDRO_{name}", most)) for name, most in (("COUNT", 1000), ("LENGTH", 192)))

# %% [markdown]
# ## The pairs, and the model that is the reference


# %%
def make_up(folder):
    """Pairs whose chosen response is the happier end of a sentence, and a GPT-2 fine-tuned on such sentences."""
    texts = generate_texts(600, 0)
    tokenizer = word_tokenizer(list(texts.text), 200)
    model = language_model(None, tokenizer, width=32, layers=2, length=32, seed=0)
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        fine_tune(model, tokenizer, list(texts.text), Recipe(4, 3e-3), length=24, seed=0)
    for part in (model, tokenizer):
        part.save_pretrained(folder / "start")
    happy = {"joy": 2.0, "love": 1.5, "fear": 0.5, "anger": 0.0, "sadness": 0.0}
    rng = np.random.default_rng(0)
    with (folder / "pairs.jsonl").open("w") as file:
        for _ in range(200):
            one, two = texts.iloc[rng.integers(len(texts), size=2)].itertuples(index=False)
            first = rng.random() < 1 / (1 + np.exp(happy[two.label] - happy[one.label]))
            chosen, rejected = (one.text, two.text) if first else (two.text, one.text)
            rest = [" ".join(text.split()[3:]) for text in (chosen, rejected)]
            row = {"prompt": " ".join(chosen.split()[:3]), "chosen": f" {rest[0]}", "rejected": f" {rest[1]}"}
            file.write(json.dumps(row) + "\n")
    return str(folder / "pairs.jsonl"), str(folder / "start")


named = os.environ.get("PREFDRO_PAIRS")
folder = Path(os.environ.get("PREFDRO_FOLDER") or tempfile.mkdtemp())
folder.mkdir(parents=True, exist_ok=True)
data, start = (named, os.environ.get("PREFDRO_MODEL", "smollm2")) if named else make_up(folder)
tokenizer = load_tokenizer(start)
strings = "chat" if tokenizer.chat_template else None
reading = {"strings": strings} if strings else {}
given = load_rows(data)[:PAIRS]
# what is kept is of these pairs, this model and this length, and is found under them only
key = [given, content(located(start)), LENGTH, strings, BETA]
folder = folder / sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
folder.mkdir(exist_ok=True)
first_pairs = folder / "pairs.jsonl"
first_pairs.write_text("".join(json.dumps(row) + "\n" for row in given))
rows = tokenise(given, tokenizer, max_length=LENGTH, **reading)
print(f"{len(rows)} pairs, cut to {LENGTH} tokens, of {data if named else 'a grammar'}; the reference is {start if named else 'a small GPT-2'}")

# %% [markdown]
# ## Both on the same pairs
#
# The two commands, as they would be typed; what they have written before is used again. The policy is trained for one epoch,
# LoRA on the pretrained model and all weights of the small one.


# %%
def prefdro(*words):
    """Run a command quietly; what it says is shown if it fails."""
    said = StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            main([str(word) for word in words])
    except SystemExit:
        print(said.getvalue()[-2000:])
        raise


as_chat = ["--strings", strings] if strings else []
common = ["--data", first_pairs, "--model", start, *as_chat, "--max-length", LENGTH]
table = folder / "features.parquet"
if not table.is_file():
    prefdro("features", *common, "--pooling", "mean", "--dimensions", 8, "--out", table)

adapter = "--lora --learning_rate 5e-4" if named else "--learning_rate 1e-3"
steps = "--num_train_epochs 1 --per_device_train_batch_size 4 --gradient_accumulation_steps 4 --save_strategy no --report_to none"
policy = folder / "policy"
words = [*(str(word).replace("max-length", "max_length") for word in common), "--objective", "dpo", "--beta", BETA]
prefdro("train", *words, *adapter.split(), *steps.split(), "--output_dir", policy)

# %% [markdown]
# ## What each makes of a pair


# %%
def logps(model):
    """log pi of both responses of every pair, nats, kept in the folder."""
    path = folder / f"logps-{'start' if model == start else 'policy'}.npy"
    if not path.is_file():
        loaded = load_language_model(str(model)).eval()
        scored = reference_logps(
            loaded,
            rows,
            PreferenceCollator(padding_token(tokenizer)),
            batch_size=8,
            cache=None,
            identity={},
            score=sequence_logprobs,
        )
        np.save(path, np.stack([scored["ref_chosen_logps"], scored["ref_rejected_logps"]], 1))
    return np.load(path)


ratio = logps(policy) - logps(start)
of_model = BETA * (ratio[:, 0] - ratio[:, 1])  # the margin of DPO, Section 4.1 of arXiv:2502.01930

columns = read_table(table)
psi = {side: np.stack([columns[name] for name in columns if name.startswith(f"{side}_")], 1) for side in ("first", "second")}
sign = np.where(columns["label"] == 1, 1.0, -1.0)
one, two = common_scale(psi["first"], psi["second"])
u = (sign[:, None] * (one - two))[np.isin(columns["row"] - 1, rows["index"])]
fit = dpo(u, beta=1.0, bound=50.0)
of_features = u @ fit.theta.numpy()
length = np.array([len(row["chosen_ids"]) - len(row["rejected_ids"]) for row in rows])
pd.DataFrame(
    {"pairs in the right order": [(m > 0).mean() for m in (of_features, of_model)], "mean margin": [of_features.mean(), of_model.mean()]},
    index=["features", "model"],
).round(3)

# %% [markdown]
# Both were fitted to these very pairs, so the shares say how well each can follow them, not how well each would do elsewhere.
#
# ## Which pairs does the worst case lean on?
#
# The KL ball of the same radius around the same sample, at each one's own losses.


# %%
def worst_weights(margin):
    losses = np.logaddexp(0, -margin)
    return worst_case(u, fit.theta, KL(RADIUS), beta=1.0, losses=losses).weights * len(u)


weights = {"features": worst_weights(of_features), "model": worst_weights(of_model)}


def rank_correlation(a, b, given=None):
    """Spearman's; with `given` the partial one: of what is left of both ranks once those of `given` are regressed out."""
    ranks = [rankdata(values) for values in (a, b)]
    if given is not None:
        design = np.stack([np.ones(len(given)), rankdata(given)], 1)
        ranks = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in ranks]
    return np.corrcoef(*ranks)[0, 1]


def agreement(a, b, given=None, draws=2000, seed=0):
    """The rank correlation with a 95 % percentile interval over resampled pairs."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        k = rng.integers(len(a), size=len(a))
        found.append(rank_correlation(a[k], b[k], None if given is None else given[k]))
    return rank_correlation(a, b, given), *np.quantile(found, [0.025, 0.975])


share = len(u) // 10
top = {name: set(np.argsort(-w)[:share]) for name, w in weights.items()}
lines = {
    "weights: features and model": agreement(weights["features"], weights["model"]),
    "the same, partial, given length": agreement(weights["features"], weights["model"], length),
    "weights of features and length": agreement(weights["features"], length),
    "weights of the model and length": agreement(weights["model"], length),
}
print(f"of the tenth of the pairs with the most weight, {len(top['features'] & top['model'])} of {share} are shared; by chance {share * share / len(u):.0f}")
pd.DataFrame(lines, index=["rank correlation", "95 % from", "to"]).T.round(3)

# %%
with paper():
    figure, axes = grid(PAGE, [2.3], 2, left=0.6, right=0.1, gap_x=0.6)
    left, right = axes[0]
    left.plot(weights["features"], weights["model"], ".", color=BLUE, markersize=2.5, alpha=0.6)
    left.axhline(1, color=GREY, linewidth=0.6)
    left.axvline(1, color=GREY, linewidth=0.6)
    left.set(xscale="log", yscale="log", xlabel="weight in the features' worst case, times n", ylabel="weight in the model's, times n")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_locator(FixedLocator([0.1, 0.3, 1, 3, 10, 30, 100]))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    left.set_title(f"KL ball of radius {RADIUS:g}: one point a pair")
    edges = np.quantile(length, np.linspace(0, 1, 6))
    part = np.clip(np.searchsorted(edges, length, side="right") - 1, 0, 4)
    for name, color, marker in (("features", BLUE, "s"), ("model", BLACK, "o")):
        means = [weights[name][part == k].mean() for k in range(5) if (part == k).any()]
        places = [length[part == k].mean() for k in range(5) if (part == k).any()]
        right.plot(places, means, marker=marker, color=color, label=name)
    right.axhline(1, color=GREY, linewidth=0.6)
    right.set(xlabel="chosen longer than rejected by, tokens", ylabel="mean weight, times n")
    right.set_title("by length, in fifths of the pairs")
    right.legend()
show(figure)

# %% [markdown]
# Right of the grey line are pairs that the features' worst case counts more than the sample does, above it those that the
# model's does. Where the cloud has no slope the two do not speak of the same pairs, and a worst case found on cheap features is
# no statement on the trained model's. The pairs that both lean on most:

# %%
both = np.argsort(-np.minimum(weights["features"], weights["model"]))[:5]
texts = load_rows(first_pairs)
pd.DataFrame(
    [
        {side: str(texts[rows[int(k)]["index"]][side])[-70:] for side in ("chosen", "rejected")}
        | {name: round(float(w[k]), 2) for name, w in weights.items()}
        for k in both
    ]
)
