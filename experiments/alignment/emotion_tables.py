"""Table of the emotion study: intervals over seeds."""

import pandas as pd

from experiments.alignment.equal_kl import KEYS, measures
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
