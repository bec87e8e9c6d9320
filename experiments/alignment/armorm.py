"""ArmoRM: are policies that were trained for a mixture of two objectives good in others? Section 7,
arXiv:2502.01930 (Fig. 3, 4).

Two completions of each prompt are scored by a reward model with many objectives; annotators prefer
by a mixture of two of them; policies are trained on these labels and judged by every objective, and
by every other mixture of the two. The stages are folders in OUT/stages: prompts, completions,
scores, pairs, policies, judgements. By default all is generated here: texts, model, and a reward
model of five emotions. `--profile paper` is Llama-3.2-1B-Instruct, HelpSteer2 and ArmoRM.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from experiments import screen
from experiments.alignment.equal_kl import KEYS, matched_table
from experiments.alignment.models import check_objectives
from experiments.alignment.pairs import count_pairs
from experiments.alignment.policies import (
    completions_stage,
    judge_by_rewards,
    keys,
    policies,
    scores_stage,
)
from experiments.alignment.preferences import Annotators, labelled_pairs
from experiments.alignment.prompts import FILES, prompts_stage
from experiments.alignment.sizes import PAPER, QUICK, SMALL, SMOKE, Options, Sizes, chosen
from experiments.alignment.study import begin, finish
from experiments.alignment.training import Run
from experiments.engine.ranks import rank
from experiments.engine.stages import read_artefact
from llm.data.corpus import EMOTIONS
from llm.judges.evaluate import mean_of
from theory.shift import mean_interval

ALPHAS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # of Fig. 4
Pair = tuple[str, str]


@dataclass(frozen=True)
class Profile(Sizes):
    """Sizes, and the objectives. Pairs of objectives are written `first+second`."""

    radar: tuple[str, ...]
    curves: tuple[str, ...]
    axes: tuple[str, ...]
    alpha: float
    control_betas: tuple[float, ...]
    wdpo_radii: tuple[float, ...]
    kldpo_radii: tuple[float, ...]


_QUICK = Profile(
    **asdict(QUICK),
    radar=("anger+fear", "joy+sadness", "love+joy"),
    curves=("anger+joy", "joy+sadness", "anger+fear"),
    axes=EMOTIONS,
    alpha=0.5,
    control_betas=(0.3, 1.0),
    wdpo_radii=(0.05, 0.2),
    kldpo_radii=(0.5, 1.0),
)
PROFILES = {
    "smoke": replace(
        _QUICK,
        **asdict(SMOKE),
        radar=("anger+fear", "joy+sadness", "love+joy"),
        curves=("anger+fear", "joy+sadness", "love+joy"),
        wdpo_radii=(0.1,),
        kldpo_radii=(1.0,),
    ),
    "quick": _QUICK,
    "small": replace(
        _QUICK,
        **asdict(SMALL),
        radar=("anger+fear", "joy+sadness"),
        curves=("anger+fear", "joy+sadness"),
        wdpo_radii=(0.1,),
        kldpo_radii=(1.0,),
    ),
    "paper": Profile(
        **asdict(PAPER),
        radar=(
            "ultrafeedback-truthfulness+helpsteer-complexity",
            "ultrafeedback-helpfulness+helpsteer-coherence",
            "helpsteer-correctness+helpsteer-helpfulness",
        ),
        curves=(
            "ultrafeedback-honesty+helpsteer-complexity",
            "ultrafeedback-helpfulness+helpsteer-coherence",
            "ultrafeedback-truthfulness+helpsteer-complexity",
        ),
        axes=(
            "helpsteer-helpfulness",
            "helpsteer-correctness",
            "helpsteer-coherence",
            "ultrafeedback-honesty",
            "ArmoRM",
        ),
        alpha=0.5,
        control_betas=(0.03, 0.1),
        wdpo_radii=(0.005, 0.01),
        kldpo_radii=(1.0, 5.0),
    ),
}


@dataclass
class ArmoRM(Options):
    """Policies for mixtures of two objectives, judged by all of them. What is not given is taken
    from the profile."""

    out: Path = Path("results/armorm")
    """Folder of the results; a run that was stopped resumes from what it holds."""
    radar: tuple[str, ...] | None = None
    """Pairs of objectives of Fig. 3, each `first+second`."""
    curves: tuple[str, ...] | None = None
    """Pairs of objectives of Fig. 4."""
    axes: tuple[str, ...] | None = None
    """Objectives of Fig. 3, any of the reward model's."""
    alpha: float | None = None
    """alpha_o, the weight of the first objective in the labels."""
    control_betas: tuple[float, ...] | None = None
    """Larger beta of DPO, to compare at equal KL."""
    wdpo_radii: tuple[float, ...] | None = None
    """rho of WDPO: in units of the embedding norm, or, for `--wdpo released`, the authors'
    rho_o."""
    kldpo_radii: tuple[float, ...] | None = None
    """tau of KLDPO."""


def plan(config: ArmoRM) -> Profile:
    """The profile with what the configuration replaces.

    Raises:
        ValueError: an unknown or impossible value.
    """
    profile: Profile = chosen(PROFILES, config)
    if not 0 <= profile.alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {profile.alpha}.")
    if profile.completions != 2:
        raise ValueError(
            "annotators compare two completions of each prompt, got completions ="
            f" {profile.completions}."
        )
    if any(beta <= profile.beta for beta in profile.control_betas):
        raise ValueError(
            f"control_betas must be larger than beta = {profile.beta:g}, got"
            f" {profile.control_betas}."
        )
    for pair in (*profile.radar, *profile.curves):
        parted(pair)
    return profile


def parted(pair: str) -> Pair:
    """The two objectives of `first+second`.

    Raises:
        ValueError: it has not that form.
    """
    words = pair.split("+")
    if len(words) != 2 or not all(words) or words[0] == words[1]:
        raise ValueError(
            f"a pair of objectives is written first+second, such as anger+fear, got {pair!r}."
        )
    return words[0], words[1]


def run(config: ArmoRM) -> dict[str, pd.DataFrame] | None:
    """Run or resume the study and write its tables; returns them, or None where other parts of it
    are made elsewhere.

    Raises:
        ValueError: a value, a source or a model that cannot be used.
        StoreError: the folder is not writable.
    """
    profile = plan(config)
    study = begin(config.out, profile, config, Path(__file__))
    both = tuple(dict.fromkeys((*profile.radar, *profile.curves)))
    check_objectives(
        study.models, [*profile.axes, *(name for pair in both for name in parted(pair))]
    )
    prompts = prompts_stage(study)
    completions = completions_stage(study, prompts, "train", profile.completions)
    scores = scores_stage(study, prompts, completions, "train")
    pairs = {
        (pair, seed): labelled_pairs(study, prompts, completions, scores, "train", who, seed)
        for pair, who in {pair: who_prefers(pair, profile.alpha) for pair in both}.items()
        for seed in range(profile.seeds)
    }
    wanted = [(run, pairs.get((pair, run.replicate))) for pair, run in runs(profile, both)]
    judge = partial(judge_by_rewards, prompts=prompts.folder / FILES["test"])
    judged = policies(study, wanted, judge, {"prompts": prompts.digest})
    if config.part is not None or rank() != 0:
        return None
    tables = tables_of(
        profile,
        [
            (pair, run, stage.folder)
            for (pair, run), stage in zip(runs(profile, both), judged, strict=True)
        ],
    )
    facts = {
        "alpha": profile.alpha,
        "beta": profile.beta,
        "radar_pairs": list(map(title, profile.radar)),
        "curve_pairs": list(map(title, profile.curves)),
        "axes": list(profile.axes),
        "preference_pairs": {
            title(pair): [
                count_pairs(made.folder) for (one, _), made in pairs.items() if one == pair
            ]
            for pair in both
        },
    }
    finish(config.out, "armorm", study, tables, facts, parquet=("rewards",))
    return tables


def title(pair: str) -> str:
    """How a pair of objectives is called in the tables."""
    return " + ".join(parted(pair))


def runs(profile: Profile, both: Sequence[str]) -> list[tuple[str, Run]]:
    """What is trained, with its pair of objectives, the costly ones first; and the start, which
    belongs to no pair."""
    kinds = [("wdpo", radius, profile.beta) for radius in profile.wdpo_radii]
    kinds += [("kldpo", radius, profile.beta) for radius in profile.kldpo_radii]
    kinds += [("dpo", 0.0, beta) for beta in (profile.beta, *profile.control_betas)]
    named = "{}-{}-radius={:g}-beta={:g}-seed-{}"
    trained = [
        (pair, Run(named.format(pair, method, radius, beta, seed), method, radius, beta, seed))
        for (method, radius, beta), pair, seed in product(kinds, both, range(profile.seeds))
    ]
    return trained + [
        ("", Run(f"start-seed-{seed}", "start", 0.0, 0.0, seed)) for seed in range(profile.seeds)
    ]


def who_prefers(pair: str, alpha: float) -> Annotators:
    """Annotators who go by the mixture of a pair of objectives."""

    def reward(table: pd.DataFrame) -> np.ndarray:
        return mixture(table, parted(pair), alpha)

    return Annotators(pair, reward, {"pair": pair, "alpha": alpha}, purpose=25)


def mixture(table: pd.DataFrame, pair: Pair, alpha: float) -> np.ndarray:
    """alpha times the first objective plus 1 - alpha times the second, for each row."""
    return (alpha * table[pair[0]] + (1 - alpha) * table[pair[1]]).to_numpy()


# ------------------------------------------------------------------------------------------- tables
def tables_of(profile: Profile, judged: Sequence[tuple[str, Run, Path]]) -> dict[str, pd.DataFrame]:
    """Mean rewards of every policy, and their means over seeds with 95 % t intervals: by objective,
    and by mixture.

    Args:
        judged: pair of objectives, run, and the folder of what the policy is worth. The start
            belongs to all pairs.
    """
    both = tuple(dict.fromkeys((*profile.radar, *profile.curves)))
    rows = []
    for pair, run, folder in judged:
        scores = read_artefact(folder / "scores.parquet")
        kl = mean_of(read_artefact(folder / "completions.parquet").log_ratio.to_numpy())
        for name in (pair,) if pair else both:
            first, second = parted(name)
            place = {"pair": title(name), "first": first, "second": second, **keys(run)}
            for objective in scores:
                reward = mean_of(scores[objective].to_numpy())
                rows.append(
                    {
                        **place,
                        "objective": objective,
                        "reward": reward.value,
                        "reward_error": reward.error,
                        "kl": kl.value,
                        "kl_error": kl.error,
                    }
                )
    rewards = pd.DataFrame(rows)
    policy = ["pair", "first", "second", "method", "radius", "beta"]
    on_axes = rewards[rewards.objective.isin(profile.axes)]
    axes = [
        {
            **dict(zip([*policy, "objective"], key, strict=True)),
            **_over_seeds(group, "reward"),
            **_over_seeds(group, "kl"),
            "seeds": len(group),
        }
        for key, group in on_axes.groupby([*policy, "objective"], sort=False)
    ]
    mixtures = []
    for key, group in rewards.groupby(policy, sort=False):
        by_seed = group.pivot(index="seed", columns="objective", values="reward")
        for alpha in ALPHAS:
            values = pd.DataFrame(
                {"reward": alpha * by_seed[key[1]] + (1 - alpha) * by_seed[key[2]]}
            )
            mixtures.append(
                {
                    **dict(zip(policy, key, strict=True)),
                    "alpha": alpha,
                    **_over_seeds(values, "reward"),
                    "seeds": len(values),
                }
            )
    return {
        "rewards": rewards,
        "axes": pd.DataFrame(axes),
        "mixtures": pd.DataFrame(mixtures),
        "matched": matched(rewards),
    }


def matched(rewards: pd.DataFrame) -> pd.DataFrame:
    """Reward of mixtures minus that of DPO at the same KL to the start, as
    `experiments.alignment.equal_kl.matched_table` has it.

    The control is the line through the start and DPO with every beta. alpha, text: of ALPHAS, or
    the worst or the mean over them.
    """
    parts = []
    for (first, second), group in rewards.groupby(["first", "second"], sort=False):
        by_policy = group.pivot_table(
            index=["pair", *KEYS[1:], "seed", "kl"], columns="objective", values="reward"
        )
        for alpha in ALPHAS:
            reward = (
                (alpha * by_policy[first] + (1 - alpha) * by_policy[second])
                .rename("reward")
                .reset_index()
            )
            parts.append(reward.assign(alpha=alpha))
    rows = pd.concat(parts).rename(columns={"pair": "setting"}).assign(step=1)
    table = matched_table(rows, start="start")
    return (
        table[table.control == "beta"]
        .drop(columns="control")
        .rename(columns={"setting": "pair"})
        .reset_index(drop=True)
    )


def _over_seeds(group: pd.DataFrame, column: str) -> dict[str, float]:
    return dict(
        zip((column, f"{column}_low", f"{column}_high"), mean_interval(group[column]), strict=True)
    )


def summarise(config: ArmoRM, tables: dict[str, pd.DataFrame]) -> None:
    """Print the rewards of the mixtures that the policies were trained for."""
    mixtures = tables["mixtures"]
    screen.show(
        mixtures[mixtures.alpha == plan(config).alpha]
        .drop(columns=["first", "second", "alpha"])
        .to_dict("records"),
        "reward of the mixture that the policies were trained for, mean over seeds and 95 %\n"
        "interval",
    )
