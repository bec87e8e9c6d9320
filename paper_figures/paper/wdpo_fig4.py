"""Fig. 4 of arXiv:2502.01930: reward against alpha for three pairs of objectives, alpha of the
training marked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.paper.published import setup
from paper_figures.studies import policies
from paper_figures.tables import read_tables, study_folder

COLUMNS = {
    "mixtures.csv": (
        *("pair", "first", "second", "method", "radius", "beta", "alpha"),
        *("reward", "reward_low", "reward_high", "seeds"),
    ),
    "rewards.parquet": ("pair", "method", "radius", "beta", "seed", "objective", "reward", "kl"),
}


def figure(mixtures: pd.DataFrame, rewards: pd.DataFrame, run: dict[str, Any]) -> Figure:
    """Rows: the pairs of the run's `curve_pairs`; columns: WDPO and KLDPO, at up to three radii
    each, with DPO and the start."""
    robust = [method for method in ("wdpo", "kldpo") if method in set(mixtures.method)]
    rows = []
    for pair in [pair for pair in run["curve_pairs"] if pair in set(mixtures.pair)]:
        means = mixtures[mixtures.pair == pair]
        first, second = means["first"].iloc[0], means["second"].iloc[0]
        seeds = mixed(rewards[rewards.pair == pair], first, second, sorted(means.alpha.unique()))
        xlabel = rf"test $\alpha$: weight of {first}"
        rows.append(policies.robust_row(pair, xlabel, means, seeds, robust, float(run["beta"])))
    paper = setup("armorm")
    numbers = paper["figure4"]
    pairs_of_paper = "; ".join(" + ".join(pair) for pair in paper["figure4_pairs"])
    return policies.curve_panels(
        rows,
        headings=[policies.METHODS[method].label for method in robust],
        trained=float(run["alpha"]),
        notes=[
            (
                f"{policies.scale(run)}. Bands: 95 % over seeds, of the difference seed by seed;"
                f" beta = {run['beta']:g}."
            ),
            policies.distances(rewards[rewards.pair.isin(run["curve_pairs"])], float(run["beta"])),
            (
                f"The paper (Fig. 4): LLaMA-3.2-1B, ArmoRM; {pairs_of_paper}; alpha_o ="
                f" {numbers['alpha_o']}, rho_o = {', '.join(map(str, numbers['rho_o']))}, tau ="
                f" {', '.join(map(str, numbers['tau']))}; no numbers of it are at hand."
            ),
        ],
    )


def mixed(rewards: pd.DataFrame, first: str, second: str, alphas: Sequence[float]) -> pd.DataFrame:
    """Reward of alpha * first + (1 - alpha) * second of each policy of `rewards`, one row for each
    alpha."""
    keys = ["method", "radius", "beta", "seed"]
    table = rewards.pivot_table(index=keys, columns="objective", values="reward")
    parts = [
        (a * table[first] + (1 - a) * table[second]).rename("reward").reset_index().assign(alpha=a)
        for a in alphas
    ]
    return pd.concat(parts, ignore_index=True)


def draw(source: Path, out: Path) -> list[Path]:
    """Draw wdpo_fig4 from the rows of `prefdro run armorm`; the paths written.

    Args:
        source: the folder that holds the studies' folders, or the study's own.
        out: folder of the figures.

    Raises:
        ValueError: a table or a column is missing, or none of the pairs has rows.
    """
    folder = study_folder(source, "armorm")
    tables, run = read_tables(folder, COLUMNS, "prefdro run armorm")
    if not set(run["curve_pairs"]) & set(tables["mixtures"].pair):
        raise ValueError(
            f"{folder / 'mixtures.csv'} has rows of none of the pairs"
            f" {', '.join(run['curve_pairs'])} of run.json."
        )
    with style.paper():
        drawn = figure(tables["mixtures"], tables["rewards"], run)
    return style.save_all([("wdpo_fig4", drawn)], out)
