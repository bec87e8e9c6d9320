# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From theory to a language model
#
# One function computes the KLDPO objective, for features and for a language model. First the two are shown to be the same
# number; then a tiny GPT-2, made here from random weights, is trained by the trainer that `prefdro train` uses. Nothing is
# downloaded.

# %%
import copy
import tempfile
import warnings

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, disable_progress_bars
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback
from transformers.utils import logging

from llm.arguments import PreferenceArguments
from llm.data.corpus import generate_texts
from llm.data.tokens import PreferenceCollator, tokenise
from llm.logprobs import sequence_logprobs
from llm.models import language_model, word_tokenizer
from llm.objectives import ObjectiveParameters, Pairs, make_objective
from llm.sft import Recipe, fine_tune
from llm.trainer import PreferenceTrainer
from paper_figures.notebook import show
from paper_figures.style import BLACK, BLUE, PAGE, Look, grid, label_ends, paper
from theory import kldpo_tilt
from theory.losses import dpo_loss
from theory.functionals import kl_tilt, tilt_weights

disable_progress_bars()
logging.disable_progress_bar()
logging.set_verbosity_error()
torch.set_num_threads(1)

# %% [markdown]
# ## 1. A language model that is log-linear
#
# Freeze the trunk of a GPT-2 and let responses be single tokens. Then $\log\pi(a|s) = W_a\cdot h(s) - \log Z(s)$ is log-linear
# in the head $W$, with features $\psi(s,a) = e_a\otimes h(s)$, and $\log Z$ cancels in a pair. So the theory of this package
# applies to it word for word.

# %%
VOCABULARY, WIDTH, BETA, TAU = 12, 8, 1.0, 0.5
config = GPT2Config(
    vocab_size=VOCABULARY,
    n_positions=16,
    n_embd=WIDTH,
    n_layer=2,
    n_head=2,
    tie_word_embeddings=False,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    initializer_range=0.5,
    bos_token_id=0,
    eos_token_id=0,
)
torch.manual_seed(0)
model = GPT2LMHeadModel(config).double().eval()
reference_head = model.lm_head.weight.detach().clone()

g = torch.Generator().manual_seed(1)
n = 60
prompts = torch.randint(1, VOCABULARY, (n, 5), generator=g)
answers = torch.stack([torch.randperm(VOCABULARY, generator=g)[:2] for _ in range(n)])  # chosen, rejected


def scores():
    """The log-probabilities of all pairs under the model as it is, in the form that the trainer's objectives take."""
    logps = {}
    for head, name in ((model.lm_head.weight.detach().clone(), ""), (reference_head, "reference_")):
        model.lm_head.weight.data.copy_(head)
        for column, response in enumerate(("chosen", "rejected")):
            ids = torch.cat([prompts, answers[:, column : column + 1]], 1)
            mask = torch.zeros_like(ids)
            mask[:, -1] = 1
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask}
            logps[name + response] = sequence_logprobs(model, batch).detach()
        if not name:
            mine = head
    model.lm_head.weight.data.copy_(mine)
    one = torch.ones(n)
    return Pairs(**logps, chosen_length=one, rejected_length=one)


# %%
with torch.no_grad():
    hidden = model.transformer(prompts).last_hidden_state[:, -1]  # h(s), (n, width)
one_hot = torch.nn.functional.one_hot(answers, VOCABULARY).double()
u = ((one_hot[:, 0] - one_hot[:, 1])[:, :, None] * hidden[:, None, :]).flatten(1)  # psi(chosen) - psi(rejected)
print(f"{n} pairs, {u.shape[1]} features")

# %% [markdown]
# Move the head a little, and compute KLDPO's objective twice: from the features and from the model's log-probabilities.

# %%
step = 0.3 * torch.randn(VOCABULARY, WIDTH, generator=g, dtype=torch.float64)
model.lm_head.weight.data.copy_(reference_head + step)
objective = make_objective(ObjectiveParameters("kldpo", beta=BETA, tau=TAU))
from_features = kl_tilt(dpo_loss(BETA * u @ step.flatten()), TAU).item()
from_model = objective.value(scores()).item()
print(f"features {from_features:.15f}\nmodel    {from_model:.15f}")

# %% [markdown]
# Equal to rounding. So the *exact* estimator of the theory, which knows nothing of models, solves the model's training problem:
# put its solution into the head.

# %%
fit = kldpo_tilt(u, temperature=TAU, beta=BETA, bound=3.0)
model.lm_head.weight.data.copy_(reference_head + fit.theta.reshape(VOCABULARY, WIDTH))
print(f"least objective over ||w|| <= 3: {fit.value.item():.12f}, certified within {fit.gap.item():.0e}")
print(f"what the model says of it:       {objective.value(scores()).item():.12f}")

# %% [markdown]
# (The bound matters: with more features than pairs, 96 against 60, these pairs are separable, and without it the loss has no
# minimum. Language models, too, have more parameters than pairs, and are usually stopped early.)
#
# ## 2. A real training run, tiny
#
# Texts about emotions from a small grammar; a GPT-2 of some 30 000 parameters learns to write them. Preferences: the joyful
# continuation over the other one, with **one label in five turned round**.

# %%
texts = generate_texts(1500, 0)
tokenizer = word_tokenizer(list(texts.text), 120)
start = language_model(None, tokenizer, width=32, layers=2, length=32, seed=0)
fine_tune(start, tokenizer, list(texts.text), Recipe(epochs=4, learning_rate=3e-3), length=32, seed=0)
print(f"{sum(p.numel() for p in start.parameters()):,} parameters")


def pairs(count, seed):
    """Prompt of four words, a joyful continuation and one of another emotion; the last column says which labels are wrong."""
    rng = np.random.default_rng(seed)
    pool = generate_texts(6 * count, [seed, 1])
    halves = {kind: pool[(pool.label == "joy") == (kind == "joy")].text.str.split() for kind in ("joy", "other")}
    rows = []
    for joy, other in zip(halves["joy"].iloc[:count], halves["other"].iloc[:count], strict=True):
        good, bad = " " + " ".join(joy[4:]), " " + " ".join(other[4:])
        wrong = rng.random() < 0.2
        rows.append(
            {"prompt": " ".join(other[:4]), "chosen": bad if wrong else good, "rejected": good if wrong else bad, "wrong": wrong}
        )
    return pd.DataFrame(rows)


train, test = pairs(256, 2), pairs(200, 3)
train.head(3)


# %%
def trained(**parameters):
    """A copy of the start, trained for 40 steps of 64 pairs; with the trainer."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pairs whose continuations are the same words are left out, with a warning
        arguments = PreferenceArguments(
            output_dir=folder,
            max_steps=40,
            per_device_train_batch_size=64,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            logging_steps=4,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
        )
        data = tokenise(Dataset.from_pandas(train[["prompt", "chosen", "rejected"]]), tokenizer)
        trainer = PreferenceTrainer(
            copy.deepcopy(start),
            arguments,
            ObjectiveParameters(beta=0.3, **parameters),
            train_dataset=data,
            processing_class=tokenizer,
            data_collator=PreferenceCollator(tokenizer.pad_token_id),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_reference(None, None, 64)
        trainer.train()
    return trainer


runs = {"DPO": trained(objective="dpo"), "KLDPO, tau = 0.3": trained(objective="kldpo", tau=0.3)}

# %% [markdown]
# ## 3. What it learned, and what the tilt looked at
#
# `accuracy` is on test pairs, against the true labels: the share in which the joyful continuation gained more. `on wrong
# labels` is the share of the worst-case weights, at the trained policy, that sits on training pairs with a wrong label.


# %%
def margins(model, rows):
    """beta times the difference of the log-ratios, (n,)."""
    logps = {}
    for name, which in (("policy", model), ("start", start)):
        for response in ("chosen", "rejected"):
            parts = []
            for prompt, text in zip(rows.prompt, rows[response], strict=True):
                head, tail = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (prompt, text))
                parts.append((head, [*tail, tokenizer.eos_token_id]))
            longest = max(len(a) + len(b) for a, b in parts)
            pad = [longest - len(a) - len(b) for a, b in parts]
            batch = {
                "input_ids": torch.tensor(
                    [[*a, *b, *[tokenizer.pad_token_id] * k] for (a, b), k in zip(parts, pad, strict=True)]
                ),
                "attention_mask": torch.tensor([[1] * (longest - k) + [0] * k for k in pad]),
                "completion_mask": torch.tensor(
                    [[0] * len(a) + [1] * len(b) + [0] * k for (a, b), k in zip(parts, pad, strict=True)]
                ),
            }
            with torch.no_grad():
                logps[name, response] = sequence_logprobs(which, batch).double()
    return 0.3 * (logps["policy", "chosen"] - logps["start", "chosen"] - logps["policy", "rejected"] + logps["start", "rejected"])


facts = {}
truth = np.where(test.wrong, -1, 1)
for name, run in runs.items():
    model = run.model.eval()
    m = margins(model, train)
    weights = tilt_weights(dpo_loss(m), 0.3).numpy()
    right = np.sign(margins(model, test).numpy()) == truth
    facts[name] = {"accuracy": right.mean(), "mean margin": m.mean().item(), "on wrong labels": weights[train.wrong].sum()}
print(f"wrong labels in the data: {train.wrong.mean():.2f}")
pd.DataFrame(facts).T.round(3)

# %%
logs = {name: pd.DataFrame([x for x in run.state.log_history if "loss" in x]) for name, run in runs.items()}
size = logs["KLDPO, tau = 0.3"]
with paper():
    figure, axes = grid(PAGE, [1.6], 2, left=0.5, right=0.6, gap_x=1.5)
    ends = []
    for (name, log), color in zip(logs.items(), (BLACK, BLUE), strict=True):
        axes[0, 0].plot(log.step, log["rewards/margins"], color=color)
        ends.append((log.step.iloc[-1], log["rewards/margins"].iloc[-1], name.split(",")[0], Look("", color, "")))
    axes[0, 0].set(xlabel="step", ylabel="reward margin, nats", title="margins of the batches")
    label_ends(axes[0, 0], ends)
    axes[0, 1].plot(size.step, size["worst_case/effective_sample_size"], color=BLUE)
    axes[0, 1].axhline(64, color="0.6", linewidth=0.6)
    axes[0, 1].set(xlabel="step", ylabel="pairs", title="KLDPO: effective sample size of a batch", ylim=(0, 68))
show(figure)

# %% [markdown]
# **Right:** before the first step all losses are $\log 2$, the tilt is flat and all 64 pairs count. A few steps later some 47
# are left, in the end 38: as the losses spread, a fixed $\tau$ is a *larger* radius. Watch it in your own runs
# (`worst_case/effective_sample_size` in the log): a tilt that stands on ten pairs of a batch is learning from ten pairs.
#
# **The surprise is in the table.** At DPO's policy 97 % of what a tilt would look at are wrong labels: what is left of the loss
# after a good fit is the noise. KLDPO, which looks there while it trains, learns less of the truth (0.82 against 0.885, one
# seed, so read it as a direction and not as a number). A larger $\tau$, a larger $\beta$ or cleaner labels are the first things
# to try.
#
# **Try:** `objective="dr_dpo", b=0.3` (the opposite tilt), `wdpo`, `aot`; `tau=1.0`; the share 0.2 of wrong labels set to 0.
