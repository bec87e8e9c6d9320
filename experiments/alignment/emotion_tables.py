"""Tables of the emotion study: intervals over seeds, and stochastic dominance of the rewards."""

from collections.abc import Sequence

import pandas as pd

from experiments.alignment.emotion_profiles import REWARDS
from experiments.alignment.equal_kl import KEYS, measures
from experiments.alignment.held_out import dominates
from llm.generate import mixed_reward
from theory.shift import mean_interval


def summary_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of reward and KL at each checkpoint and alpha, with 95 % t intervals."""
    out = []
    for key, group in measures(rows).groupby([*KEYS, "checkpoint", "final", "alpha"], sort=False):
        *run, _, final, alpha = key
        reward, kl = mean_interval(group.reward), mean_interval(group.kl)
        out.append((*run, group.step.max(), final, alpha, *reward, *kl, len(group)))
    names = ("reward", "reward_low", "reward_high", "kl", "kl_low", "kl_high", "seeds")
    return pd.DataFrame(out, columns=[*KEYS, "step", "final", "alpha", *names])


def dominance_table(samples: pd.DataFrame, alphas: Sequence[float]) -> pd.DataFrame:
    """Stochastic dominance of the rewards of each trained policy over those of the start (`sft`)
    and of DPO with the least beta, on the same test prompts, at each alpha; columns of
    `held_out.dominates`.

    samples: a row for each policy, step and prompt, with the two rewards, in [0, 1], and minority;
    the last step is taken.
    """
    last = samples[samples.step == samples.groupby([*KEYS, "seed"]).step.transform("max")]
    policies = {key: part.sort_values("prompt") for key, part in last.groupby([*KEYS, "seed"])}
    least = last[last.method == "dpo"].beta.min()
    rows = []
    for key, own in policies.items():
        setting, method, _, beta, seed = key
        if method == "sft":
            continue
        others = {"sft": (setting, "sft", 0.0, 0.0, seed)}
        if (method, beta) != ("dpo", least):
            others["dpo"] = setting, "dpo", 0.0, least, seed
        for worse, place in others.items():
            other = policies[place]
            for alpha in alphas if setting != "groups" else alphas[:1]:
                rewards = (
                    mixed_reward(part[list(REWARDS)].to_numpy(), setting, alpha, part.minority == 1)
                    for part in (own, other)
                )
                rows.append(
                    dict(zip((*KEYS, "seed"), key, strict=True))
                    | {"alpha": alpha, "worse": worse}
                    | dominates(*rewards, low=0.0, high=1.0)
                )
    return pd.DataFrame(rows)
