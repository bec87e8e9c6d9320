"""Policies compared at equal KL to the start: robust ones against DPO with a larger beta, or
stopped earlier."""

import numpy as np
import pandas as pd

from theory.shift import mean_interval

KEYS = ["setting", "method", "radius", "beta"]
CONTROLS = ("beta", "stopped")


def measures(rows: pd.DataFrame) -> pd.DataFrame:
    """Each evaluation's reward and KL: at each alpha, and the worst and the mean over alpha (column
    `alpha`, text)."""
    keys = [*KEYS, "seed", "step"]
    at = rows[[*keys, "kl", "reward"]].assign(alpha=rows.alpha.map("{:g}".format))
    groups = rows.groupby(keys, sort=False)
    over = [
        groups.agg(kl=("kl", "first"), reward=("reward", how)).reset_index()
        for how in ("min", "mean")
    ]
    parts = [over[0].assign(alpha="worst"), over[1].assign(alpha="mean"), at]
    table = pd.concat(parts, ignore_index=True)
    # runs of a method may differ in their number of steps by a few, not in their number of
    # checkpoints
    step = table.groupby([*KEYS, "seed"]).step
    return table.assign(
        checkpoint=step.rank(method="dense"), final=table.step == step.transform("max")
    )


def matched_table(rows: pd.DataFrame, start: str = "sft") -> pd.DataFrame:
    """Reward of each robust method minus that of DPO at the same KL to the start, mean over seeds
    with a 95 % t interval.

    Above 0 the robust method is better. The control, on the same labels, is the line through the
    model that all start from and
    `beta`: DPO with every beta; `stopped`: DPO at each of its checkpoints. Seeds whose KL is beyond
    the ends of that line are left out and counted in `outside`. start: the method that stands for
    the model that all start from.
    """
    table = measures(rows)
    dpo = table[table.method == "dpo"]
    origin = table[table.method == start]
    controls = {"beta": dpo[dpo.final], "stopped": dpo[dpo.beta == dpo.beta.min()]}
    robust = table[table.final & ~table.method.isin([start, "dpo"])]
    place = ["setting", "seed", "alpha"]
    parts = []
    for control in CONTROLS:
        curves = dict(list(pd.concat([origin, controls[control]]).groupby(place, sort=False)))
        wanted = zip(*(robust[name] for name in place), robust.kl, strict=True)
        there = np.array(
            [at_kl(curves[setting, seed, alpha], kl) for setting, seed, alpha, kl in wanted],
            dtype=float,
        )
        parts.append(robust.assign(control=control, difference=robust.reward - there))
    out = []
    for key, group in pd.concat(parts).groupby([*KEYS, "control", "alpha"], sort=False):
        inside = group.difference.dropna()
        out.append(
            (*key, *mean_interval(inside), len(inside), len(group) - len(inside), group.kl.mean())
        )
    return pd.DataFrame(
        out,
        columns=[*KEYS, "control", "alpha", "difference", "low", "high", "seeds", "outside", "kl"],
    )


def at_kl(curve: pd.DataFrame, kl: float) -> float:
    """Reward on the line through the points of a curve (kl, reward) at a KL; NaN beyond its
    ends."""
    points = curve.sort_values("kl")
    return float(np.interp(kl, points.kl, points.reward, left=np.nan, right=np.nan))
