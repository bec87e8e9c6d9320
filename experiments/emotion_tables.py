"""Tables of the emotion study: intervals over seeds, and robust policies against DPO policies with the same KL to the start."""

import numpy as np
import pandas as pd

from theory.shift import mean_interval

KEYS = ["setting", "method", "radius", "beta"]
CONTROLS = ("beta", "stopped")


def measures(rows: pd.DataFrame) -> pd.DataFrame:
    """Each evaluation's reward and KL: at each alpha, and the worst and the mean over alpha (column `alpha`, text)."""
    keys = [*KEYS, "seed", "step"]
    at = rows[[*keys, "kl", "reward"]].assign(alpha=rows.alpha.map("{:g}".format))
    groups = rows.groupby(keys, sort=False)
    over = [groups.agg(kl=("kl", "first"), reward=("reward", how)).reset_index() for how in ("min", "mean")]
    parts = [over[0].assign(alpha="worst"), over[1].assign(alpha="mean"), at]
    table = pd.concat(parts, ignore_index=True)
    # runs of a method may differ in their number of steps by a few, not in their number of checkpoints
    step = table.groupby([*KEYS, "seed"]).step
    return table.assign(checkpoint=step.rank(method="dense"), final=table.step == step.transform("max"))


def summary_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of reward and KL at each checkpoint and alpha, with 95 % t intervals."""
    out = []
    for key, group in measures(rows).groupby([*KEYS, "checkpoint", "final", "alpha"], sort=False):
        *run, _, final, alpha = key
        reward, kl = mean_interval(group.reward), mean_interval(group.kl)
        out.append((*run, group.step.max(), final, alpha, *reward, *kl, len(group)))
    names = ("reward", "reward_low", "reward_high", "kl", "kl_low", "kl_high", "seeds")
    return pd.DataFrame(out, columns=[*KEYS, "step", "final", "alpha", *names])


def matched_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Reward of each robust method minus that of DPO at the same KL to the start, mean over seeds with a 95 % t interval.

    Above 0 the robust method is better. The control, on the same labels, is the line through the model that all start from and
    `beta`: DPO with every beta; `stopped`: DPO at each of its checkpoints. Seeds whose KL is beyond the ends of that line are
    left out and counted in `outside`.
    """
    table = measures(rows)
    dpo = table[table.method == "dpo"]
    start = table[table.method == "sft"]
    controls = {"beta": dpo[dpo.final], "stopped": dpo[dpo.beta == dpo.beta.min()]}
    robust = table[table.final & ~table.method.isin(["sft", "dpo"])]
    place = ["setting", "seed", "alpha"]
    parts = []
    for control in CONTROLS:
        curves = dict(list(pd.concat([start, controls[control]]).groupby(place, sort=False)))
        wanted = zip(*(robust[name] for name in place), robust.kl, strict=True)
        there = np.array([at_kl(curves[setting, seed, alpha], kl) for setting, seed, alpha, kl in wanted], dtype=float)
        parts.append(robust.assign(control=control, difference=robust.reward - there))
    out = []
    for key, group in pd.concat(parts).groupby([*KEYS, "control", "alpha"], sort=False):
        inside = group.difference.dropna()
        out.append((*key, *mean_interval(inside), len(inside), len(group) - len(inside), group.kl.mean()))
    return pd.DataFrame(out, columns=[*KEYS, "control", "alpha", "difference", "low", "high", "seeds", "outside", "kl"])


def at_kl(curve: pd.DataFrame, kl: float) -> float:
    """Reward on the line through the points of a curve (kl, reward) at a KL; NaN beyond its ends."""
    points = curve.sort_values("kl")
    return float(np.interp(kl, points.kl, points.reward, left=np.nan, right=np.nan))
