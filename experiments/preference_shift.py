"""When is robustness more than staying near the reference policy?

Policies are trained on labels of one mixture of two rewards and judged at every other mixture
(Section 7.1, arXiv:2502.01930). Each robust fit is compared with two plain DPO policies that have
the same KL to the reference: DPO shrunk along its ray, which is DPO with a larger beta, and DPO
stopped early. Two more fits know the mixtures, and not which of them is true: the least worst-case
loss and the least worst-case regret over the laws that mixtures near alpha_o would give, where the
fraction says how near, as a share of the farthest. Out come the rows (`shift.parquet`), the paired
differences at matched KL (`matched.csv`) and the comparison of tuned radii (`tuned.csv`). Every
seed is another world with another sample, or another sample of the given pairs, so that intervals
over seeds speak of worlds of that kind.
"""

import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import t as student

from experiments import screen
from experiments.engine.provenance import code_fingerprint, configuration, provenance
from experiments.engine.runner import run_cells
from experiments.engine.store import Cell, open_run, write_json, write_table
from experiments.estimation_error import LABEL_COST, METRIC_ATOMS
from experiments.methods import METHODS, USUAL, Method, Setting
from theory.batch import PairBatch
from theory.claims.shift import ROUNDING
from theory.estimators import Fit
from theory.losses import dpo_loss
from theory.policy import Array
from theory.regret import least_regret
from theory.shift import (
    KINDS,
    Descent,
    Shift,
    candidate_laws,
    descend,
    evaluate,
    random_shift,
    scored_pairs,
    shrunk,
    stopped,
)
from theory.worlds import common_scale, feature_columns, read_table

FIRST_REWARD, SECOND_REWARD = "gpt2-helpful", "gpt2-harmless"
OTHER_SCORES = (
    "humor",
    "diversity",
    "coherence",
)  # perplexity is that of the model that answered: not comparable
PAIR_FEATURES = {
    "pairs, other scores": OTHER_SCORES,
    "pairs, all scores": (*OTHER_SCORES, FIRST_REWARD, SECOND_REWARD),
}
PAIR_BOUND = 20.0  # B for the given pairs, whose features have norms well below 1
CONTROLS = ("shrunk", "stopped")
# of the control curves; fraction f has the KL (1 - f)² of DPO's: near the reference that is (1 - f)
# times DPO's w
CONTROL_FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LEVEL = 0.95  # of the intervals
# over candidate mixtures: what is the largest of which is minimised; arXiv:2605.00155v2 for regret
CANDIDATES: dict[str, Literal["loss", "regret"]] = {
    "worst-loss": "loss",
    "worst-regret": "regret",
}
NOT_ROBUST = ("dpo", *(f"dpo-{control}" for control in CONTROLS))
KEYS = ["setting", "train", "n", "method", "fraction"]


@dataclass(frozen=True)
class Profile:
    """How large the study is."""

    replicates: int
    sizes: tuple[int, ...]  # preference pairs; the population is always there as well
    fractions: tuple[float, ...]
    train: tuple[float, ...]  # weights of the first reward in training, alpha_o
    alphas: int  # equally spaced weights of the first reward in the test
    settings: tuple[str, ...] = KINDS


PROFILES = {
    "smoke": Profile(3, (200,), (0.3, 0.7), (0.8,), 5, ("convex", "contexts")),
    "quick": Profile(16, (100, 1000), (0.2, 0.5, 0.8), (0.8,), 11),
    "paper": Profile(
        200, (50, 100, 300, 1000, 10000), (0.1, 0.3, 0.5, 0.7, 0.9), (0.9, 0.7, 0.5), 21
    ),
}


@dataclass
class PreferenceShift:
    """Robust policies under preference shift, against DPO policies at the same distance from the
    reference."""

    out: Path = Path("results/preference-shift")
    """Folder of the results; a run that was stopped resumes from what it holds."""
    profile: str = "quick"
    """Size of the study: smoke (seconds), quick (a minute on two cores) or paper (hours)."""
    seed: int = 0
    """Seed of all random numbers; the same seed gives the same rows."""
    replicates: int | None = None
    """Worlds for each setting, instead of the profile's number; with given pairs as many samples of
    them."""
    rewards: Path | None = None
    """Folder with two JSON files of scored answers to the same prompts, row by row, to use as two
    more settings."""
    backend: str = "loky"
    """Where cells are computed: sequential, loky (processes), dask or ray."""
    workers: int | None = None
    """Number of processes; the number of cores where not given."""
    address: str | None = None
    """Address of a running dask or ray cluster."""


# ------------------------------------------------------------------------------------------- shifts
def read_pairs(folder: Path, features: tuple[str, ...]) -> tuple[Array, Array, Array, Array]:
    """Features (N, d), scaled to norms of at most 1, and the two rewards (N, 2) of both answers to
    each prompt.

    Each reward is divided by its standard deviation over all answers, so that a mixture weighs
    comparable numbers.
    """
    files = sorted(Path(folder).glob("*.json"))
    if len(files) != 2:
        raise ValueError(
            f"{folder} holds {len(files)} .json files, and two are needed: the scored answers of"
            " two models to the same prompts."
        )
    tables = [read_table(file) for file in files]
    psi, raw = (
        [feature_columns(table, list(names)) for table in tables]
        for names in (features, (FIRST_REWARD, SECOND_REWARD))
    )
    if len(psi[0]) != len(psi[1]):
        raise ValueError(
            f"{files[0].name} has {len(psi[0])} rows and {files[1].name} {len(psi[1])}: row i of"
            " both answers the same prompt."
        )
    unit = np.concatenate(raw).std(0)
    return *common_scale(*psi), raw[0] / unit, raw[1] / unit


@lru_cache(maxsize=8)
def _read_pairs(
    folder: str, features: tuple[str, ...], digest: str
) -> tuple[Array, Array, Array, Array]:
    if digest != _digest(Path(folder)):
        raise ValueError(
            f"the files in {folder} have changed since the run began. Start again: the old rows"
            " will not be used."
        )
    return read_pairs(Path(folder), features)


def _digest(folder: Path) -> str:
    return sha256(
        b"".join(file.read_bytes() for file in sorted(folder.glob("*.json")))
    ).hexdigest()[:16]


def build_shift(parameters: dict[str, Any]) -> Shift:
    """The shift of a cell."""
    setting, train = parameters["setting"], parameters["train"]
    alpha = np.linspace(0, 1, parameters["alphas"])
    if setting in PAIR_FEATURES:
        pairs = _read_pairs(parameters["rewards"], PAIR_FEATURES[setting], parameters["digest"])
        return scored_pairs(*pairs, train=train, alpha=alpha, beta=1.0, bound=PAIR_BOUND)
    return random_shift(
        setting, [parameters["seed"], parameters["replicate"]], train=train, alpha=alpha
    )


# -------------------------------------------------------------------------------------------- cells
@dataclass(frozen=True)
class _Training:
    """The K samples of a cell, DPO on them (K, d) with its KL to the reference, and the paths of
    gradient descent to it."""

    shift: Shift
    n: Array
    pairs: PairBatch
    heldout: PairBatch
    dpo: Fit
    kl: Array
    path: Descent

    def controls(self, kl: Array) -> dict[str, Array]:
        """DPO on every sample in turn with the KL `kl` (F K,) to the reference, shrunk and stopped:
        (F K, d) each."""
        sample = np.arange(len(kl)) % len(self.n)
        world = self.shift.world
        return {
            "shrunk": shrunk(world, self.dpo.theta.numpy()[sample], kl),
            "stopped": stopped(world, self.path, sample, kl),
        }


def fit_cell(parameters: dict[str, Any], _: np.random.SeedSequence) -> pd.DataFrame:
    """All methods on the same samples of one world, with their controls, judged at every alpha."""
    shift = build_shift(parameters)
    world = shift.world
    # given pairs are the same for every seed, and their population is fitted once
    whole = (
        [np.inf]
        if parameters["setting"] not in PAIR_FEATURES or parameters["replicate"] == 0
        else []
    )
    n = np.array([*whole, *parameters["sizes"]])
    pairs, heldout = (_samples(shift, parameters, n, part) for part in ("training", "held out"))
    distance = world.distance(LABEL_COST) if len(world.probability) <= METRIC_ATOMS else None
    setting = Setting(world.problem, LABEL_COST, distance)
    dpo = METHODS["dpo"].fit(pairs, 0.0, setting)
    theta = dpo.theta.numpy()
    training = _Training(
        shift, n, pairs, heldout, dpo, evaluate(shift, theta).kl, descend(pairs, world, theta)
    )

    tables = [_rows(training, "dpo", (0.0,), np.zeros(1), theta, _ends(dpo))]
    kl = np.outer((1 - np.array(CONTROL_FRACTIONS)) ** 2, training.kl)
    for control, theta in training.controls(kl.ravel()).items():
        tables.append(
            _rows(training, f"dpo-{control}", CONTROL_FRACTIONS, np.array(CONTROL_FRACTIONS), theta)
        )
    fractions = tuple(parameters["fractions"])
    again = PairBatch(pairs.ut, pairs.p.repeat(len(fractions), 1))
    for name in USUAL:
        method = METHODS[name]
        if method.set is None or (method.finite_only and distance is None):
            continue
        knob = knobs(method, world.population(), fractions, setting)
        fit = method.fit(again, torch.from_numpy(knob.repeat(len(n))), setting)
        tables.append(_rows(training, name, fractions, knob, fit.theta.numpy(), _ends(fit)))
    if parameters["setting"] not in PAIR_FEATURES:
        laws = [candidate_laws(shift, p) for p in pairs.p.numpy()]
        for name, of in CANDIDATES.items():
            found = [
                least_regret(
                    world.u,
                    of_sample[_near(shift.alpha, parameters["train"], fraction)],
                    beta=world.beta,
                    bound=world.bound,
                    theta_ref=world.theta_ref,
                    of=of,
                )
                for fraction in fractions
                for of_sample in laws
            ]
            theta = np.stack([fit.theta for fit in found])
            converged = np.array([fit.converged for fit in found])
            ends = (converged, np.zeros_like(converged))
            tables.append(_rows(training, name, fractions, np.array(fractions), theta, ends))
    parts = {name: parameters[name] for name in ("setting", "train")} | {
        "seed": parameters["replicate"]
    }
    return pd.concat(tables, ignore_index=True).assign(**parts)


def _near(alpha: Array, train: float, fraction: float) -> NDArray[np.bool_]:
    """The mixtures within a fraction of the farthest from that of training; the nearest at
    least."""
    distance = np.abs(alpha - train)
    return (distance <= fraction * distance.max() + 1e-12) | (distance == distance.min())


def _ends(fit: Fit) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return fit.converged.numpy(), fit.collapsed.numpy()


def knobs(
    method: Method, population: PairBatch, fractions: tuple[float, ...], setting: Setting
) -> Array:
    """The knob at each fraction of the population's collapse radius, which is computed once."""
    if method.grows:
        return np.array(fractions) * method.knob(population, 1.0, setting)
    return np.array([method.knob(population, fraction, setting) for fraction in fractions])


def _rows(
    training: _Training,
    method: str,
    fractions: tuple[float, ...],
    knob: Array,
    theta: Array,
    ends: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None,
) -> pd.DataFrame:
    """One row for each alpha and each of the policies theta (F K, d), which stand fraction by
    fraction, with their controls. ends: whether each converged and collapsed, of fits."""
    shift, samples = training.shift, len(training.n)
    outcome = evaluate(shift, theta)
    controls = training.controls(outcome.kl)
    of_a_fit = {
        "n": np.tile(training.n, len(fractions)),
        "method": method,
        "fraction": np.repeat(fractions, samples),
        "knob": np.repeat(knob, samples),
        "kl": outcome.kl,
        "heldout": _loss(training, theta),
        **{f"heldout_{control}": _loss(training, point) for control, point in controls.items()},
        "converged": True if ends is None else ends[0],
        "collapsed": False if ends is None else ends[1],
    }
    at_an_alpha = {
        "alpha": np.tile(shift.alpha, len(theta)),
        "reward": outcome.reward.ravel(),
        "win_rate": outcome.win_rate.ravel(),
        "regret": outcome.regret.ravel(),
        **{
            f"regret_{control}": evaluate(shift, point).regret.ravel()
            for control, point in controls.items()
        },
    }
    return (
        pd.DataFrame(of_a_fit)
        .loc[lambda table: table.index.repeat(len(shift.alpha))]
        .assign(**at_an_alpha)
    )


def _loss(training: _Training, theta: Array) -> Array:
    """DPO loss of theta (F K, d) on the held-out samples in turn."""
    world, pairs = training.shift.world, training.heldout
    margin = world.beta * pairs.project(torch.from_numpy(theta - world.theta_ref))
    return (pairs.p.repeat(len(theta) // pairs.replicates, 1) * dpo_loss(margin)).sum(-1).numpy()


def _samples(shift: Shift, parameters: dict[str, Any], sizes: Array, part: str) -> PairBatch:
    """One sample of each size, the population for an infinite one; `part` tells independent samples
    apart."""
    population = shift.world.population()
    identity = int.from_bytes(
        sha256(f"{parameters['setting']}, {part}".encode()).digest()[:8], "big"
    )
    weights = []
    for n in sizes:
        if np.isinf(n):
            weights.append(population.p)
        else:
            seed = np.random.SeedSequence(
                [parameters["seed"], parameters["replicate"], identity, int(n)]
            )
            weights.append(shift.world.sample(int(n), [seed]).p)
    return PairBatch(population.ut, torch.cat(weights))


def plan(config: PreferenceShift) -> tuple[Profile, list[Cell]]:
    """The cells of a study: one for each setting, alpha_o and seed; the largest worlds first."""
    if config.profile not in PROFILES:
        raise ValueError(
            f"unknown profile {config.profile!r}; choose one of {', '.join(PROFILES)}."
        )
    profile = PROFILES[config.profile]
    replicates = profile.replicates if config.replicates is None else config.replicates
    if replicates < 2:
        raise ValueError(
            f"replicates must be at least 2, got {replicates}: a single world has no interval."
        )
    files, places = {"digest": ""}, {"rewards": ""}
    if config.rewards is not None:
        folder = config.rewards.resolve()
        files, places = {"digest": _digest(folder)}, {"rewards": str(folder)}
        for features in PAIR_FEATURES.values():
            read_pairs(
                folder, features
            )  # what is wrong with the files shows before anything is computed
    cells = []
    for setting in [*(PAIR_FEATURES if config.rewards is not None else ()), *profile.settings]:
        for train in profile.train:
            for replicate in range(replicates):
                parameters = {
                    "setting": setting,
                    "train": train,
                    "seed": config.seed,
                    "replicate": replicate,
                    "sizes": list(profile.sizes),
                    "fractions": list(profile.fractions),
                    "alphas": profile.alphas,
                    **(files if setting in PAIR_FEATURES else {}),
                }
                given = places if setting in PAIR_FEATURES else {}
                cells.append(Cell(f"{setting} train={train:g} seed {replicate}", parameters, given))
    return profile, cells


# ------------------------------------------------------------------------------------------- tables
def measures(rows: pd.DataFrame) -> pd.DataFrame:
    """Each fit's regret and that of its controls: at each alpha, and the worst, mean and spread
    over alpha (column `alpha`)."""
    values = ["regret", *(f"regret_{control}" for control in CONTROLS)]
    at = rows[[*KEYS, "seed", *values]].assign(alpha=rows.alpha.map("{:g}".format))
    groups = rows.groupby([*KEYS, "seed"], sort=False)[values]
    over = {"worst": groups.max(), "mean": groups.mean(), "spread": groups.max() - groups.min()}
    return pd.concat(
        [*(table.reset_index().assign(alpha=name) for name, table in over.items()), at],
        ignore_index=True,
    )


def matched_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Regret minus that of the control at the same KL, in the mean over seeds with a t interval;
    below 0: the method is better.

    `unmatched` counts the fits whose KL the control does not reach: they are left out.
    """
    table = measures(rows[~rows.method.isin(NOT_ROBUST)])
    kl = rows.groupby(KEYS, sort=False).kl.mean().rename("kl")
    parts = []
    for control in CONTROLS:
        difference = table.assign(
            control=control, difference=table.regret - table[f"regret_{control}"]
        )
        parts.append(_intervals(difference, [*KEYS, "control", "alpha"]))
    return pd.concat(parts, ignore_index=True).join(kl, on=KEYS)


def tuned_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Worst-alpha regret with the fraction chosen for each seed, minus that of a rival; below 0:
    the method is better.

    tuning: `oracle` takes the fraction of least worst-alpha regret, which nobody can know;
    `held-out` that of least DPO loss on as many held-out pairs at alpha_o (on the population where
    that is the sample). rival: plain DPO, or DPO shrunk or stopped, chosen in the same way among
    the KLs of the method's own fits. Plain DPO is among the choices of all.
    """
    place = ["setting", "train", "n", "seed"]
    index = [*place, "method"]
    values = {"regret": "max", "heldout": "first", "kl": "first"}
    values |= {
        f"{value}_{control}": how
        for control in CONTROLS
        for value, how in (("regret", "max"), ("heldout", "first"))
    }
    fits = rows.groupby([*KEYS, "seed"], sort=False).agg(values).reset_index()
    plain = fits[fits.method == "dpo"].drop(columns="method")
    robust = fits[~fits.method.isin(NOT_ROBUST)]
    choices = pd.concat(
        [plain.merge(robust[index].drop_duplicates(), on=place), robust], ignore_index=True
    )
    parts = []
    for tuning, criterion in (("oracle", "regret"), ("held-out", "heldout")):
        best = _best(choices, [*place, "method"], criterion, "regret")
        rivals = {
            control: _best(
                choices, [*place, "method"], f"{criterion}_{control}", f"regret_{control}"
            )
            for control in CONTROLS
        }
        rivals["dpo"] = (
            choices[choices.fraction == 0]
            .set_index([*place, "method"])
            .assign(value=lambda t: t.regret)
        )
        for rival, table in rivals.items():
            pairs = best.assign(
                difference=best.value - table.value, tuning=tuning, rival=rival
            ).reset_index()
            keys = ["setting", "train", "n", "method", "tuning", "rival"]
            parts.append(_intervals(pairs, keys, means=("regret", "kl", "fraction")))
    return pd.concat(parts, ignore_index=True)


def _best(choices: pd.DataFrame, keys: list[str], criterion: str, value: str) -> pd.DataFrame:
    """The choice of least criterion in each group, the least fraction on a tie, with the column
    `value`; indexed by the keys."""
    chosen = (
        choices.sort_values([criterion, "fraction"], kind="stable")
        .drop_duplicates(keys)
        .set_index(keys)
    )
    return chosen.assign(value=chosen[value])


def _intervals(table: pd.DataFrame, keys: list[str], means: tuple[str, ...] = ()) -> pd.DataFrame:
    """Mean of `difference` over seeds in each group, with its t interval; NaN is left out and
    counted as unmatched."""
    groups = table.groupby(keys, sort=False)
    summary = groups.difference.agg(difference="mean", deviation="std", seeds="count")
    half = (
        student.ppf((1 + LEVEL) / 2, (summary.seeds - 1).clip(lower=1))
        * summary.deviation
        / np.sqrt(summary.seeds)
    )
    summary = summary.assign(low=summary.difference - half, high=summary.difference + half)
    summary["unmatched"] = groups.size() - summary.seeds
    columns = ["difference", "low", "high", "seeds", "unmatched"]
    return summary[columns].join(groups[list(means)].mean()).reset_index()


# ---------------------------------------------------------------------------------------------- run
def run(config: PreferenceShift) -> dict[str, pd.DataFrame]:
    """Run or resume the study and write its tables; returns them."""
    profile, cells = plan(config)
    began = time.perf_counter()
    with open_run(config.out) as out:
        rows = run_cells(
            cells,
            fit_cell,
            out,
            seed=config.seed,
            fingerprint=code_fingerprint(Path(__file__), Path(__file__).with_name("methods.py")),
            backend=config.backend,
            workers=config.workers,
            address=config.address,
        )
        tables = {"shift": rows, "matched": matched_table(rows), "tuned": tuned_table(rows)}
        write_table(rows, out / "shift.parquet")
        write_table(tables["matched"], out / "matched.csv")
        write_table(tables["tuned"], out / "tuned.csv")
        fits = rows.drop_duplicates([*KEYS, "seed"])
        write_json(
            {
                "experiment": "preference-shift",
                "configuration": configuration(config),
                "profile": asdict(profile),
                "settings": [
                    *profile.settings,
                    *(PAIR_FEATURES if config.rewards is not None else ()),
                ],
                "fits": len(fits),
                "not_converged": int((~fits.converged).sum()),
                **provenance(),
                "wall_time_s": round(time.perf_counter() - began, 1),
            },
            out / "run.json",
        )
    return tables


def summarise(config: PreferenceShift, tables: dict[str, pd.DataFrame]) -> None:
    """Print how often each method has less or more regret than DPO at equal KL."""
    matched = tables["matched"].query("control == 'shrunk' and alpha == 'worst'")
    counts = (
        matched.assign(lower=matched.high < -ROUNDING, higher=matched.low > ROUNDING)
        .groupby("method", sort=False)
        .agg(
            comparisons=("difference", "size"),
            lower=("lower", "sum"),
            higher=("higher", "sum"),
            mean=("difference", "mean"),
        )
    )
    screen.show(
        counts.reset_index().to_dict("records"),
        "worst-alpha regret minus that of DPO at equal KL: comparisons, 95 % intervals below and\n"
        "above 0, mean difference",
    )
