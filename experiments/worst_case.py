"""Where does the adversary of each ball put the probability, and how far off are the algorithms
that stand for it?

A small sample of labelled pairs and the DPO policy fitted to it. Out come, for each ball, the worst
expected loss over a range of radii (`values.csv`), the worst weights at equal effective sample size
(`weights.parquet`), and the worst transport plans (`moves.parquet`). Next to the exact worst cases
stand the tilt at one temperature and the step along the gradient.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit

from experiments import screen
from experiments.engine.provenance import configuration, provenance
from experiments.engine.store import open_run, write_json, write_table
from experiments.estimation_error import METRIC_ATOMS
from experiments.pairs import Pairs, read_pairs
from theory.estimators import dpo
from theory.policy import Array
from theory.sets import SETS, AmbiguitySet, AtPolicy
from theory.sets.gradient_penalty import GradientPenalty
from theory.sets.kl import KL
from theory.solvers.adversary import tilt
from theory.worlds import FiniteWorld, from_labels
from theory.worst_cases import WorstCase, worst_case

LABEL_COST = 0.5  # kappa of the metric; on the unit circle features are at most 2 apart
SHARES = (
    0.8,
    0.5,
    0.25,
)  # effective sample sizes, as shares of the sample, at which weights are compared
FRACTIONS = (
    0.1,
    0.3,
    0.6,
)  # of ||E u||, the collapse radius of W2 with free features, at which plans are compared
SAMPLE_BOUND = 4.0  # B of the sample
TRANSPORT_REACH = 2.0  # the same for transport, in units of ||E u||


@dataclass(frozen=True)
class Profile:
    """How large the study is: pairs in the sample, radii for each ball."""

    pairs: int
    radii: int


PROFILES = {"smoke": Profile(12, 5), "quick": Profile(40, 61), "paper": Profile(60, 121)}


@dataclass
class WorstCaseStudy:
    """Worst-case distributions of every ball at the DPO policy, next to their tractable
    versions."""

    out: Path = Path("results/worst-case")
    """Folder of the results."""
    profile: str = "quick"
    """Size of the study: smoke, quick or paper; all take seconds."""
    seed: int = 0
    """Seed of the sampled pairs; the same seed gives the same rows."""
    beta: float = 1.0
    """beta of the loss."""
    bound: float | None = None
    """B in ||theta|| <= B of the DPO fit; where not given 4 for the sample, and for --pairs twice
    the norm of the fit without a bound."""
    pairs: Path | None = None
    """Table of labelled pairs (.csv, .parquet, .json, .jsonl, .npz) in place of the sample:
    first_NAME and second_NAME for every feature, and label (1: the first response won, 0.5: a
    tie)."""
    features: tuple[str, ...] | None = None
    """With --pairs: the NAMEs that are features, instead of all columns of numbers; what looks like
    an identifier has to be named here."""
    exclude: tuple[str, ...] = ()
    """With --pairs: NAMEs that are left out."""
    ties: Literal["half", "drop"] = "half"
    """With --pairs: ties count as two pairs of half the weight, one for each response, or are left
    out."""


def sample_world(pairs: int, seed: int, *, beta: float, bound: float) -> FiniteWorld:
    """Pairs with features on the unit circle and Bradley–Terry labels, theta* of norm min(2, B)
    along the first axis."""
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    angle = rng.uniform(0, 2 * np.pi, (2, pairs))
    psi = np.stack([np.cos(angle), np.sin(angle)], -1)
    score = beta * min(2.0, bound) * (psi[0] - psi[1])[:, 0]
    label = (rng.random(pairs) < expit(score)).astype(int)
    return from_labels(psi[0], psi[1], label, beta=beta, bound=bound)


# ------------------------------------------------------------------------------------------- tables
def values_table(world: FiniteWorld, theta: Array, count: int) -> pd.DataFrame:
    """Worst expected loss against the radius; the tilt is that of the KL ball's own temperature at
    the middle of the range."""
    losses, p = _losses(world, theta), world.probability
    rows, grid = [], np.linspace(0, 1, count)
    for set in _reweighting():
        rows += [_summary(worst_case(world, theta, set.sized(r)), "exact") for r in set.range(grid)]
    far = TRANSPORT_REACH * grid * _unit(world)
    for set in [*_transport(world), GradientPenalty()]:
        version = "exact" if set.facts.exact else "tractable"
        rows += [_summary(worst_case(world, theta, set.sized(r)), version) for r in far]
    radii = KL().range(grid)
    tau = worst_case(world, theta, KL(radii.max() / 4)).dual
    if tau > 0:
        rows += [_summary(tilt(losses, p, radius=r, temperature=tau), "tractable") for r in radii]
    return pd.DataFrame(rows).assign(plain=float(p @ losses))


def weights_table(world: FiniteWorld, theta: Array) -> pd.DataFrame:
    """Weights of the reweighting balls, each at the radius where the effective share of the sample
    is one of `SHARES`."""
    losses, p = _losses(world, theta), world.probability
    tables = []
    for set in _reweighting():
        for share in SHARES:
            worst = at_share(set, losses, p, share)
            columns = {
                "ball": set.name,
                "share": share,
                "radius": worst.size,
                "effective": worst.effective,
            }
            atoms = {"atom": np.arange(len(p)), "loss": losses, "p": p, "q": worst.weights}
            tables.append(pd.DataFrame(columns | atoms))
    return pd.concat(tables, ignore_index=True)


def at_share(set: AmbiguitySet, losses: Array, p: Array, share: float) -> WorstCase:
    """The worst case of a set of weights whose effective share of the sample is `share`, or the
    smallest that the set reaches."""
    least = float(p[losses == losses[p > 0].max()].sum())  # all mass on the largest loss
    low, high = set.smallest, set.largest(least)
    nowhere = np.empty((len(p), 0))  # such a set sees the losses only

    def worst(size: float) -> WorstCase:
        return set.sized(size).worst(AtPolicy(nowhere, p, nowhere[0], 1.0, losses))

    def excess(size: float) -> float:
        return worst(size).effective - share

    if share <= least or excess(high) >= 0:
        return worst(high)
    return worst(brentq(excess, low, high, xtol=1e-14, rtol=1e-14))


def moves_table(world: FiniteWorld, theta: Array) -> pd.DataFrame:
    """Transport plans, drawn in the plane of w and the direction across it in which the pairs
    differ most.

    along, across: coordinates of x = psi1 - psi2; the prefix to_ is for the place of arrival.
    escapes: mass that goes to infinity in the limit. Moves of length 0 are pairs that stay.
    """
    plane = _plane(world, theta)
    start = world.x @ plane
    tables = []
    for set in [*_transport(world), GradientPenalty()]:
        for fraction in FRACTIONS:
            worst = worst_case(world, theta, set.sized(fraction * _unit(world)))
            moves = worst.moves
            assert moves is not None
            label = world.label[moves.source]
            to_label = np.where(moves.flipped, 1 - label, label)
            end = ((2.0 * to_label - 1)[:, None] * moves.u) @ plane
            if (moves.target >= 0).all():  # other atoms have their own x, whatever the label
                end = start[moves.target]
            tables.append(
                pd.DataFrame(
                    {
                        "ball": set.name,
                        "fraction": fraction,
                        "radius": worst.size,
                        "source": moves.source,
                        "target": moves.target,
                        "mass": moves.mass,
                        "distance": moves.distance,
                        "flipped": moves.flipped,
                        "escapes": (
                            (not worst.attained) & (moves.distance - LABEL_COST * moves.flipped > 0)
                        ),
                        "label": label,
                        "along": start[moves.source, 0],
                        "across": start[moves.source, 1],
                        "to_along": end[:, 0],
                        "to_across": end[:, 1],
                    }
                )
            )
    return pd.concat(tables, ignore_index=True)


def _reweighting() -> list[AmbiguitySet]:
    """The exact sets that keep to weights on the atoms."""
    return [set for set in SETS.values() if set.facts.exact and set.facts.reweights]


def _transport(world: FiniteWorld) -> list[AmbiguitySet]:
    """The exact sets that move mass; those between atoms need a metric between all of them."""
    small = len(world.probability) <= METRIC_ATOMS
    moving = [set for set in SETS.values() if set.facts.exact and not set.facts.reweights]
    distance = world.distance(LABEL_COST) if small else None
    return [set.in_metric(distance, LABEL_COST) for set in moving if small or not set.facts.atoms]


def _summary(worst: WorstCase, version: str) -> dict[str, Any]:
    numbers = ("value", "expected", "gap", "used", "dual", "effective", "attained", "converged")
    found = {"version": version, "ball": worst.name, "radius": worst.size}
    return found | {name: getattr(worst, name) for name in numbers}


def _losses(world: FiniteWorld, theta: Array) -> Array:
    return np.logaddexp(0, -world.beta * world.u @ (theta - world.theta_ref))


def _unit(world: FiniteWorld) -> float:
    """||E u||, the W2 collapse radius with free features; half of that for W1."""
    return float(np.linalg.norm(world.probability @ world.u))


def _plane(world: FiniteWorld, theta: Array) -> Array:
    """Orthonormal directions (d, 2): w, and the first principal direction of x across it (0 in one
    dimension)."""
    w = theta - world.theta_ref
    first = w / max(float(np.linalg.norm(w)), 1e-300)
    rest = world.x - np.outer(world.x @ first, first)
    second = (
        np.linalg.svd(np.sqrt(world.probability)[:, None] * rest, full_matrices=False)[2][0]
        if len(first) > 1
        else 0 * first
    )
    return np.stack([first, second - (second @ first) * first], 1)


# ---------------------------------------------------------------------------------------------- run
def run(config: WorstCaseStudy) -> dict[str, pd.DataFrame]:
    """Compute and write the tables `values`, `weights` and `moves`; they are also returned.

    Raises ValueError for an unknown profile or an unusable table of pairs, before anything is
    written.
    """
    if config.profile not in PROFILES:
        raise ValueError(
            f"unknown profile {config.profile!r}; choose one of {', '.join(PROFILES)}."
        )
    began, profile = time.perf_counter(), PROFILES[config.profile]
    table: Pairs | None = None
    if config.pairs is not None:
        table = read_pairs(config.pairs, features=config.features, exclude=config.exclude)
        world = table.world(beta=config.beta, bound=config.bound, ties=config.ties)
    elif config.features is not None or config.exclude or config.ties != "half":
        raise ValueError("features, exclude and ties are for a table of pairs: give --pairs TABLE.")
    else:
        bound = SAMPLE_BOUND if config.bound is None else config.bound
        world = sample_world(profile.pairs, config.seed, beta=config.beta, bound=bound)
    fit = dpo(world.u, world.probability, **world.problem)
    theta = fit.theta.numpy()
    makers: dict[str, Callable[[], pd.DataFrame]] = {
        "values": lambda: values_table(world, theta, profile.radii),
        "weights": lambda: weights_table(world, theta),
        "moves": lambda: moves_table(world, theta),
    }
    tables = {name: make() for name, make in makers.items()}
    exact = tables["values"][tables["values"].version == "exact"]
    with open_run(config.out) as out:
        write_table(tables["values"], out / "values.csv")
        write_table(tables["weights"], out / "weights.parquet")
        write_table(tables["moves"], out / "moves.parquet")
        write_json(
            {
                "experiment": "worst-case",
                "configuration": configuration(config),
                "profile": asdict(profile),
                "seed": config.seed,
                "pairs": len(world.probability) if table is None else len(table.label),
                **({} if table is None else {"table": table.facts(world)}),
                "dimension": world.dimension,
                "bound": world.bound,
                "at_bound": bool(fit.at_bound),
                "theta": theta.tolist(),
                "mean_loss": float(world.probability @ _losses(world, theta)),
                "label_cost": LABEL_COST,
                "collapse_radius_w2_free": _unit(world),
                "worst_cases": len(exact),
                "not_converged": int((~exact.converged).sum()),
                "largest_relative_gap": float((exact.gap.abs() / exact.value).max()),
                **provenance(),
                "wall_time_s": round(time.perf_counter() - began, 1),
            },
            out / "run.json",
        )
    return tables


def summarise(config: WorstCaseStudy, tables: dict[str, pd.DataFrame]) -> None:
    """Print what the pairs are, and how far the exact values of each ball are from their dual
    bounds."""
    record = json.loads((config.out / "run.json").read_text(encoding="utf-8"))
    if config.pairs is not None:
        table = read_pairs(config.pairs, features=config.features, exclude=config.exclude)
        print(table.describe(record["table"]["atoms"], config.ties))
    if record["at_bound"]:
        print(
            f"the DPO fit lies at its bound, ||theta|| = {record['bound']:g}: the worst cases are"
            " those of the bound. Give a larger --bound."
        )
    values = tables["values"]
    exact = values[values.version == "exact"].assign(
        relative_gap=lambda rows: rows.gap.abs() / rows.value
    )
    gaps = exact.groupby("ball").agg(
        problems=("value", "size"), largest_relative_gap=("relative_gap", "max")
    )
    screen.show(gaps.reset_index().to_dict("records"))
