"""Fig. 2 of arXiv:2502.01930: reward against alpha of emotion policies, DPO against WDPO and KLDPO
at three radii each."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.paper.published import setup
from paper_figures.studies import policies
from paper_figures.tables import read_tables, study_folder

COLUMNS = {
    "summary.csv": (
        "setting",
        "method",
        "radius",
        "beta",
        "final",
        "alpha",
        "reward",
        "reward_low",
        "reward_high",
        "seeds",
    ),
    "rewards.parquet": ("setting", "method", "radius", "beta", "step", "seed", "alpha", "reward"),
}
SETTINGS = {
    "convex": r"test $\alpha$ in $\alpha\,r_1 + (1-\alpha)\,r_2$",
    "geometric": r"test $\alpha$ in $r_1^{\alpha}\,r_2^{1-\alpha}$",
}


def figure(summary: pd.DataFrame, rewards: pd.DataFrame, run: dict[str, Any]) -> Figure:
    """Rows: convex and geometric mixtures of the rewards of anger and fear; columns: WDPO and
    KLDPO, at three radii each."""
    means = summary[summary.final & ~summary.alpha.isin(["worst", "mean"])]
    means = means.assign(
        alpha=means.alpha.astype(float), method=means.method.replace("sft", "start")
    )
    last = rewards.groupby(["setting", "method", "radius", "beta", "seed"]).step.transform("max")
    seeds = rewards[rewards.step == last]
    beta = float(
        means.beta[means.method == "dpo"].min()
    )  # the DPO runs of the control have a larger one
    robust = [method for method in ("wdpo", "kldpo") if method in set(means.method)]
    settings = [name for name in SETTINGS if name in set(means.setting)]
    rows = [
        policies.robust_row(
            s, SETTINGS[s], means[means.setting == s], seeds[seeds.setting == s], robust, beta
        )
        for s in settings
    ]
    paper = setup("emotion")
    radii = (
        f"rho_o = {', '.join(map(str, paper['rho_o']))} and tau ="
        f" {', '.join(map(str, paper['tau']))}"
    )
    return policies.curve_panels(
        rows,
        headings=[policies.METHODS[method].label for method in robust],
        trained=float(run.get("profile", {}).get("alpha", "nan")),
        notes=[
            (
                f"{policies.scale(run)}. $r_1$ = anger, $r_2$ = fear; "
                f"bands: 95 % over seeds, of the difference seed by seed; beta = {beta:g}."
            ),
            (
                f"The paper (Fig. 2): GPT-2 and the Emotion texts, {radii}; no numbers of it are at"
                " hand."
            ),
        ],
    )


def draw(source: Path, out: Path) -> list[Path]:
    """Draw wdpo_fig2 from the rows of `prefdro run emotion`; the paths written.

    Args:
        source: the folder that holds the studies' folders, or the study's own.
        out: folder of the figures.

    Raises:
        ValueError: a table or a column is missing.
    """
    folder = study_folder(source, "emotion")
    tables, run = read_tables(folder, COLUMNS, "prefdro run emotion", text=("alpha",))
    with style.paper():
        drawn = figure(tables["summary"], tables["rewards"], run)
    return style.save_all([("wdpo_fig2", drawn)], out)
