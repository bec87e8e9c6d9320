"""Rows on AOT against other methods: paired and unpaired AOT and DPO, and AOT, DPO, IPO and KTO at
one KL to the reference."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import brentq

from experiments.aot.fits import Pairs, fit_aot, fit_aot_paired, fit_dpo, fit_methods
from experiments.aot.tables import LEVELS, replicate_rows
from experiments.aot.worlds import BETA, BOUND, AotWorld, Spec, build_world, judged, tensor
from theory.aot import random_starts
from theory.functionals import mean
from theory.losses import logistic
from theory.policy import Array
from theory.transport import quantile

MATCHED_KL = 0.3  # nats from the reference at which methods are compared


def pairing_rows(parameters: dict[str, Any], rng: np.random.Generator) -> pd.DataFrame:
    """DPO, paired and unpaired AOT on n pairs; unpaired AOT on as many independent responses, and
    on half as many rejected ones.

    value: objective at the minimiser. dpo: the DPO loss there on the same pairs (NaN without
    pairs).
    """
    spec, n = Spec(**parameters["world"]), parameters["n"]
    world = build_world(spec)
    tables = []
    for replicate in range(parameters["replicates"]):
        weights, others, few = (world.sample(rng, size, 1)[0] for size in (n, n, max(n // 2, 1)))
        pairs, starts = (
            Pairs.of(world, weights),
            random_starts(rng, parameters["starts"], spec.dimension, BOUND),
        )
        chosen, rejected = world.laws(weights)
        unequal = {"independent": world.laws(others)[1], "independent, half": world.laws(few)[1]}
        found = {
            ("dpo", "pairs"): fit_dpo(world, pairs),
            ("aot-paired", "pairs"): fit_aot_paired(world, pairs, starts),
        }
        for data, law in ({"pairs": rejected} | unequal).items():
            found["aot-unpaired", data] = fit_aot(world, chosen, law, starts)
        for (method, data), fit in found.items():
            loss = (
                float(mean(logistic(tensor(fit.w) @ pairs.x.T, BETA), pairs.p))
                if data == "pairs"
                else np.nan
            )
            keys = {
                "world": spec.rewards,
                "n": n,
                "method": method,
                "data": data,
                "value": fit.value,
                "dpo": loss,
            }
            row = replicate_rows(
                **keys, **judged(world, fit.w[None]), gap_certified=fit.gap, converged=fit.converged
            )
            tables.append(row.assign(replicate=replicate))
    return pd.concat(tables, ignore_index=True)


def methods_rows(parameters: dict[str, Any], rng: np.random.Generator) -> pd.DataFrame:
    """Each method on the same pairs, as fitted and with w scaled to `MATCHED_KL`; judged on the
    population's log-ratios.

    The columns chosen_0.025 and so on are the quantiles of log pi_theta/pi_ref of chosen and
    rejected responses.
    """
    spec, n = Spec(**parameters["world"]), parameters["n"]
    world = build_world(spec)
    tables = []
    for replicate in range(parameters["replicates"]):
        weights = world.sample(rng, n, 1)[0]
        starts = torch.cat(
            [
                torch.zeros(1, spec.dimension),
                random_starts(rng, parameters["starts"], spec.dimension, BOUND),
            ]
        )
        found = fit_methods(world, weights, starts.double(), rng)
        for method, fit in found.items():
            for matched in (False, True):
                scale = scale_to_kl(world, fit.w, MATCHED_KL) if matched else 1.0
                w = scale * fit.w[None]
                keys = {
                    "world": spec.rewards,
                    "n": n,
                    "method": method,
                    "matched": matched,
                    "scale": scale,
                }
                row = replicate_rows(
                    **keys,
                    value=fit.value,
                    **judged(world, w, linear=False),
                    **_quantiles(world, w),
                    stationarity=fit.gap,
                    converged=fit.converged,
                )
                tables.append(row.assign(replicate=replicate))
    return pd.concat(tables, ignore_index=True)


def scale_to_kl(world: AotWorld, w: Array, target: float) -> float:
    """The factor c with KL(pi_ref+cw || pi_ref) = target; the KL grows with c. NaN where no factor
    reaches it."""
    high = 1.0
    while float(world.kl(high * w)) < target:
        high *= 2
        if high > 1e6:
            return float("nan")
    return float(brentq(lambda c: float(world.kl(c * w)) - target, 0.0, high, xtol=1e-13))


def _quantiles(world: AotWorld, w: Array) -> dict[str, Array]:
    """Quantiles of the log-ratios at w (R, d), one column for each side and level."""
    ratio, sides = world.log_ratio(tensor(w)), world.laws(world.probability)
    columns: dict[str, Array] = {}
    for side, law in zip(("chosen", "rejected"), sides, strict=True):
        values = quantile(ratio, tensor(LEVELS), law).numpy()
        columns |= {f"{side}_{level:g}": values[:, k] for k, level in enumerate(LEVELS)}
    return columns
