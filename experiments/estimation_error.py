"""How fast do the parameters of DPO, KLDPO and WDPO converge with the number of preference pairs?

For each world, sample size and replicate, every method is fitted to the same sample. Errors are
measured to the robust target (the minimiser of the same objective in the population) and to the
nominal theta*, in the 2-norm and in the data norm ||e||_Sigma, Sigma = E x x'. Out come the rows
(`errors.parquet`), its worlds (`worlds.csv`), the slopes of log error on log n (`rates.csv`) and
the paper's bounds with their coverage (`bounds.csv`).
"""

import time
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from experiments import screen
from experiments.engine.provenance import code_fingerprint, configuration, provenance
from experiments.engine.runner import run_cells
from experiments.engine.store import Cell, open_run, write_json, write_table
from experiments.methods import METHODS, USUAL, Setting
from experiments.pairs import BOUND_IS, Pairs, read_pairs
from theory.bounds import papers as bounds
from theory.policy import Array
from theory.rates import rate
from theory.worlds import (
    ContinuousWorld,
    FiniteWorld,
    World,
    random_world,
)

DELTA = 0.05  # confidence of the bounds and level of the error quantile
LABEL_COST = 1.0  # kappa of the metric
BLOCK = 25  # replicates in a cell
USED = ("methods", "pairs")  # modules beside this one that rows hang on
LARGEST_CONTINUOUS = 1_000_000  # pairs of a sample that is drawn one by one
# atoms up to which a world gets a metric between all of them, and with it the methods on a finite Z
METRIC_ATOMS = 512


@dataclass(frozen=True)
class WorldSpec:
    """One world of the study, small enough to travel to a worker."""

    kind: str = "finite"  # finite, sphere, gaussian, or pairs (a table of labelled pairs)
    dimension: int = 3
    beta: float = 1.0
    bound: float = 1.0
    contexts: int = 6
    actions: int = 2
    seed: int = 0
    path: str = ""
    digest: str = ""  # of the file at `path`: a table that changes is another world
    features: tuple[str, ...] = ()  # of a table of pairs
    ties: str = "half"  # of a table of pairs: two halves, or "drop"

    @property
    def name(self) -> str:
        """Name in the tables."""
        if self.kind == "pairs":
            return f"pairs {Path(self.path).stem} beta={self.beta:g} B={self.bound:g}"
        return f"{self.kind} d={self.dimension} beta={self.beta:g} B={self.bound:g}"

    @property
    def facts(self) -> dict[str, Any]:
        """Its row in worlds.csv: title for legends, number of features, and their names in a table
        of pairs."""
        title = f"pairs {Path(self.path).stem}" if self.kind == "pairs" else f"{self.kind} world"
        return {
            "world": self.name,
            "kind": self.kind,
            "title": title,
            "dimension": self.dimension,
            "beta": self.beta,
            "bound": self.bound,
            "features": ", ".join(self.features),
        }


@dataclass(frozen=True)
class Profile:
    """How large the study is."""

    replicates: int
    finite_sizes: tuple[int, ...]
    continuous_sizes: tuple[int, ...]
    fractions: tuple[float, ...]
    worlds: tuple[WorldSpec, ...]
    schedules: tuple[str, ...] = ("n^-1/2", "n^-1")
    schedule_start: float = 0.3  # fraction of the collapse radius at the smallest n


def _decades(low: int, high: int, each: int = 1) -> tuple[int, ...]:
    return tuple(round(10 ** (k / each)) for k in range(low * each, high * each + 1))


_FINITE, _SPHERE = WorldSpec(), WorldSpec("sphere")
_SWEEP = (
    *(WorldSpec(kind, dimension=d) for kind in ("finite", "sphere") for d in (2, 5, 10)),
    *(WorldSpec(kind, beta=beta) for kind in ("finite", "sphere") for beta in (0.1, 0.3, 3.0)),
    *(WorldSpec(kind, bound=bound) for kind in ("finite", "sphere") for bound in (0.5, 2.0, 4.0)),
)
PROFILES: dict[str, Profile] = {
    "smoke": Profile(8, _decades(2, 4), _decades(2, 3), (0.3,), (_FINITE, _SPHERE)),
    "quick": Profile(100, _decades(2, 8), _decades(2, 5), (0.1, 0.5), (_FINITE, _SPHERE)),
    "paper": Profile(
        400,
        _decades(2, 8, 2),
        _decades(2, 5, 2),
        (0.03, 0.1, 0.3, 0.5, 0.7, 0.9),
        (_FINITE, _SPHERE, WorldSpec("gaussian"), *_SWEEP),
    ),
}


@dataclass
class EstimationError:
    """Estimation error against sample size, for every estimator, with the bounds of the
    theorems."""

    out: Path = Path("results/estimation-error")
    """Folder of the results; a run that was stopped resumes from what it holds."""
    profile: str = "quick"
    """Size of the study: smoke (seconds), quick (minutes on two cores) or paper (hours)."""
    seed: int = 0
    """Seed of all random numbers; the same seed gives the same rows."""
    replicates: int | None = None
    """Samples for each size, instead of the profile's number."""
    sizes: tuple[int, ...] | None = None
    """Sample sizes n, increasing, instead of the profile's; continuous worlds take those up to a
    million."""
    fractions: tuple[float, ...] | None = None
    """Radii as fractions, below 1, of the population's collapse radius, instead of the
    profile's."""
    beta: float | None = None
    """beta of the worlds, instead of their own."""
    bound: float | None = None
    """B in ||theta|| <= B of the worlds, instead of their own. theta* has norm B/2 in a made world.
    In that of --pairs theta* is the minimiser over all such theta: too small a B is all that is
    found, and without one B is twice the norm of the minimiser over all theta."""
    methods: tuple[str, ...] = field(default_factory=lambda: USUAL)
    """Methods to fit, by name (see `prefdro list`)."""
    pairs: Path | None = None
    """Table of labelled pairs (.csv, .parquet, .json, .jsonl, .npz) to use as the world: first_NAME
    and second_NAME for every feature, and label (1: the first response won, 0.5: a tie)."""
    features: tuple[str, ...] | None = None
    """With --pairs: the NAMEs that are features, instead of all columns of numbers; what looks like
    an identifier has to be named here."""
    exclude: tuple[str, ...] = ()
    """With --pairs: NAMEs that are left out."""
    ties: Literal["half", "drop"] = "half"
    """With --pairs: ties count as two pairs of half the weight, one for each response, or are left
    out."""
    backend: str = "loky"
    """Where cells are computed: sequential, loky (processes), dask or ray."""
    workers: int | None = None
    """Number of processes; the number of cores where not given."""
    address: str | None = None
    """Address of a running dask or ray cluster."""


# ------------------------------------------------------------------------------------------- worlds
def spec_of(parameters: dict[str, Any]) -> WorldSpec:
    """The world of a cell, with the place of its file."""
    known = parameters["world"]
    features = tuple(known["features"])  # a list where they were stored
    return WorldSpec(**known | {"features": features, "path": parameters.get("pairs", "")})


def build_world(spec: WorldSpec) -> World:
    """The world of a specification; theta* has norm B/2, but for a table of pairs."""
    if spec.kind == "finite":
        return random_world(
            spec.seed,
            contexts=spec.contexts,
            actions=spec.actions,
            dimension=spec.dimension,
            beta=spec.beta,
            bound=spec.bound,
        )
    if spec.kind == "pairs":
        return _pairs_world(spec)
    star = np.random.default_rng(spec.seed).standard_normal(spec.dimension)
    return ContinuousWorld(
        spec.kind,
        spec.dimension,
        star / np.linalg.norm(star) * spec.bound / 2,
        spec.beta,
        spec.bound,
    )


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""


def _pairs_world(spec: WorldSpec) -> FiniteWorld:
    if spec.digest != _digest(Path(spec.path)):
        raise ValueError(
            f"{spec.path} has changed since the run began. Start again: the old rows will not be"
            " used."
        )
    return _table_of(spec).world(beta=spec.beta, bound=spec.bound, ties=spec.ties)


def _pairs_spec(config: EstimationError, pairs: Path) -> WorldSpec:
    """The world of a table of pairs, with its features and a bound that is not met."""
    path = pairs.resolve()
    table = read_pairs(path, features=config.features, exclude=config.exclude)
    beta = WorldSpec.beta if config.beta is None else config.beta
    world = table.world(beta=beta, bound=config.bound, ties=config.ties)
    return WorldSpec(
        "pairs",
        dimension=world.dimension,
        beta=beta,
        bound=world.bound,
        path=str(path),
        digest=_digest(path),
        features=table.names,
        ties=config.ties,
    )


@dataclass(frozen=True)
class _Population:
    """What the population says: the setting, theta*, the data norm, and for each (method, fraction)
    the knob and the target."""

    world: World
    setting: Setting
    nominal: Array
    covariance: Array
    knobs: dict[tuple[str, float], float]
    targets: dict[tuple[str, float], Array]
    at_bound: tuple[tuple[str, float], ...]  # where the bound binds in the population itself


def _has_metric(world: World) -> bool:
    return isinstance(world, FiniteWorld) and len(world.probability) <= METRIC_ATOMS


@lru_cache(maxsize=4)
def _population(
    spec: WorldSpec, methods: tuple[str, ...], fractions: tuple[float, ...]
) -> _Population:
    world = build_world(spec)
    distance = (
        world.distance(LABEL_COST)
        if isinstance(world, FiniteWorld) and _has_metric(world)
        else None
    )
    setting = Setting(world.problem, LABEL_COST, distance)
    # the minimisers of a continuous world lie on the line through theta*
    population = world.population() if isinstance(world, FiniteWorld) else world.line()
    knobs, targets, at_bound = {}, {}, []
    for name in methods:
        method = METHODS[name]
        if method.finite_only and distance is None:
            continue
        for fraction in fractions if method.set else (0.0,):
            knob = method.knob(population, fraction, setting)
            if not np.isfinite(knob):
                raise ValueError(
                    f"the collapse radius of {name} is infinite in the world {spec.name}: its pairs"
                    " are separable, so that no radius is a fraction of it. Leave that method out,"
                    " or add pairs that disagree."
                )
            fit = method.fit(population, knob, setting)
            knobs[name, fraction] = knob
            if bool(fit.at_bound.any()):
                at_bound.append((name, fraction))
            targets[name, fraction] = (
                fit.theta[0].numpy() if isinstance(world, FiniteWorld) else world.lift(fit.theta[0])
            )
    nominal = world.theta_star
    if nominal is None:
        nominal = METHODS["dpo"].fit(population, 0.0, setting).theta[0].numpy()
    return _Population(
        world, setting, nominal, world.covariance(), knobs, targets, tuple(dict.fromkeys(at_bound))
    )


# -------------------------------------------------------------------------------------------- cells
def sample_seeds(
    seed: int, spec: WorldSpec, n: int, first: int, count: int
) -> list[np.random.SeedSequence]:
    """Seeds of the replicates; they depend on nothing else, so that all methods, radii and block
    sizes see the same samples."""
    facts = asdict(replace(spec, path=""))  # wherever its file lies
    if spec.kind != "pairs":  # which has features and ties, and the others do not
        del facts["features"], facts["ties"]
    identity = sha256(repr((facts, n)).encode()).digest()
    entropy = [seed, int.from_bytes(identity[:16], "big")]
    return [
        np.random.SeedSequence(entropy, spawn_key=(replicate,))
        for replicate in range(first, first + count)
    ]


def fit_cell(parameters: dict[str, Any], _: np.random.SeedSequence) -> pd.DataFrame:
    """All methods on the same samples: one world, one n, one block of replicates."""
    spec = spec_of(parameters)
    methods, fractions = tuple(parameters["methods"]), tuple(parameters["fractions"])
    start = parameters["schedule_start"]
    truth = _population(spec, methods, (*fractions, start))
    n = parameters["n"]
    pairs = truth.world.sample(
        n, sample_seeds(parameters["seed"], spec, n, parameters["first"], parameters["replicates"])
    )
    sample_covariance = pairs.outer(pairs.p).numpy()
    tables = []
    for name, fraction in truth.knobs:
        method = METHODS[name]
        plans: list[
            tuple[str, float, bool]
        ] = []  # radius in the tables, factor on the radius, whether it is fixed
        if fraction in fractions or method.set is None:
            plans.append((f"{fraction:g}" if method.set else "", 1.0, True))
        if fraction == start and method.set:
            shrink = {
                "n^-1/2": (n / parameters["n_min"]) ** -0.5,
                "n^-1": (n / parameters["n_min"]) ** -1.0,
            }
            plans += [
                (f"{start:g} {schedule}", shrink[schedule], False)
                for schedule in parameters["schedules"]
            ]
        for radius, factor, fixed in plans:
            knob = method.scaled(truth.knobs[name, fraction], factor)
            fit = method.fit(pairs, knob, truth.setting)
            theta = fit.theta.numpy()
            robust, nominal = theta - truth.targets[name, fraction], theta - truth.nominal
            kl = (
                truth.world.kl_to_reference(theta) if isinstance(truth.world, FiniteWorld) else None
            )
            tables.append(
                pd.DataFrame(
                    {
                        "world": spec.name,
                        "method": name,
                        "radius": radius,
                        "fraction": fraction if fixed and method.set else np.nan,
                        "knob": knob,
                        "n": n,
                        "replicate": parameters["first"] + np.arange(len(theta)),
                        "robust_2": np.linalg.norm(robust, axis=1) if fixed else np.nan,
                        "robust_data": _norm(robust, truth.covariance) if fixed else np.nan,
                        "nominal_2": np.linalg.norm(nominal, axis=1),
                        "nominal_data": _norm(nominal, truth.covariance),
                        "nominal_sample": _norm(nominal, sample_covariance),
                        "kl_to_reference": np.nan if kl is None else kl,
                        "value": fit.value.numpy(),
                        "gap": fit.gap.numpy(),
                        "dual": np.nan if fit.dual is None else fit.dual.numpy(),
                        "converged": fit.converged.numpy(),
                        "collapsed": fit.collapsed.numpy(),
                        "at_bound": fit.at_bound.numpy(),
                        "iterations": fit.iterations.numpy(),
                    }
                )
            )
    return pd.concat(tables, ignore_index=True)


def _norm(error: Array, matrix: Array) -> Array:
    """||e||_M for e (R, d), M (d, d) or (R, d, d)."""
    return np.sqrt(
        np.maximum(
            np.einsum(
                "ri,...ij,rj->r" if matrix.ndim == 2 else "ri,rij,rj->r", error, matrix, error
            ),
            0.0,
        )
    )


def plan(config: EstimationError) -> tuple[Profile, list[Cell]]:
    """The cells of a study, largest samples first so that no worker is left with one at the end."""
    if config.profile not in PROFILES:
        raise ValueError(
            f"unknown profile {config.profile!r}; choose one of {', '.join(PROFILES)}."
        )
    unknown = [name for name in config.methods if name not in METHODS]
    if unknown:
        raise ValueError(
            f"unknown method(s) {', '.join(unknown)}; choose from {', '.join(METHODS)}."
        )
    profile = PROFILES[config.profile]
    if config.sizes is not None:
        if (
            len(config.sizes) < 2
            or min(config.sizes) < 1
            or any(a >= b for a, b in zip(config.sizes, config.sizes[1:], strict=False))
        ):
            raise ValueError(
                "sizes must be at least two increasing whole numbers of at least 1, got"
                f" {list(config.sizes)}: a slope needs two."
            )
        small = tuple(n for n in config.sizes if n <= LARGEST_CONTINUOUS)
        profile = replace(profile, finite_sizes=config.sizes, continuous_sizes=small)
        if len(small) < 2:
            profile = replace(
                profile, worlds=tuple(spec for spec in profile.worlds if spec.kind == "finite")
            )
    if config.fractions is not None:
        labels = {f"{fraction:g}" for fraction in config.fractions}
        if (
            not config.fractions
            or not all(0 < x < 1 for x in config.fractions)
            or len(labels) < len(config.fractions)
        ):
            raise ValueError(
                "fractions must be different (to six digits), above 0 and below 1, got"
                f" {list(config.fractions)}. dpo stands for 0; from 1 on every exact robust"
                " estimator is the reference policy."
            )
        profile = replace(profile, fractions=config.fractions)
    if config.pairs is not None:
        profile = replace(profile, worlds=(_pairs_spec(config, config.pairs),))
    elif config.features is not None or config.exclude or config.ties != "half":
        raise ValueError("features, exclude and ties are for a table of pairs: give --pairs TABLE.")
    else:
        for name in ("beta", "bound"):
            if (value := getattr(config, name)) is not None:
                changed = (replace(spec, **{name: value}) for spec in profile.worlds)
                profile = replace(profile, worlds=tuple(dict.fromkeys(changed)))
    if config.replicates is not None:
        profile = replace(profile, replicates=config.replicates)
    worlds, replicates = profile.worlds, profile.replicates
    if replicates < 2:
        raise ValueError(
            f"replicates must be at least 2, got {replicates}: one sample has no spread."
        )
    for spec in worlds:  # what is wrong with a world shows before anything is computed
        world = build_world(spec)
        usable = [
            name for name in config.methods if not METHODS[name].finite_only or _has_metric(world)
        ]
        if not usable:
            raise ValueError(
                f"none of {', '.join(config.methods)} can run in the world {spec.name}: they need a"
                f" metric between all atoms, which is made for at most {METRIC_ATOMS} of them."
                " Choose a method with free features."
            )
        if spec.kind == "pairs":
            _population(spec, tuple(config.methods), (*profile.fractions, profile.schedule_start))
    cells = []
    for spec in worlds:
        sizes = (
            profile.finite_sizes if spec.kind in ("finite", "pairs") else profile.continuous_sizes
        )
        for n in reversed(sizes):
            for first in range(0, replicates, BLOCK):
                parameters = {
                    "world": asdict(
                        replace(spec, path=Path(spec.path).stem)
                    ),  # which file it is says its digest
                    "seed": config.seed,
                    "methods": list(config.methods),
                    "fractions": list(profile.fractions),
                    "schedules": list(profile.schedules),
                    "schedule_start": profile.schedule_start,
                    "n": n,
                    "n_min": sizes[0],
                    "first": first,
                    "replicates": min(BLOCK, replicates - first),
                }
                last = min(first + BLOCK, replicates) - 1
                places = {"pairs": spec.path} if spec.path else {}
                cells.append(
                    Cell(f"{spec.name} n={n} replicates {first}-{last}", parameters, places)
                )
    return profile, cells


# ------------------------------------------------------------------------------------------- tables
def rates_table(errors: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Slopes for each world, method, radius, target and norm, over all n and over the upper half of
    the sizes (the tail)."""
    rows = []
    for (world, method, radius), group in errors.groupby(["world", "method", "radius"], sort=False):
        for target in ("robust", "nominal"):
            for norm in ("2", "data"):
                table = group.pivot(
                    index="n", columns="replicate", values=f"{target}_{norm}"
                ).sort_index()
                if table.isna().to_numpy().any():  # a shrinking radius has no fixed robust target
                    continue
                for name, part in (("all", table), ("tail", table.iloc[len(table) // 2 :])):
                    r = rate(part.index.to_numpy(float), part.to_numpy(), seed=seed)
                    rows.append(
                        {
                            "world": world,
                            "method": method,
                            "target": target,
                            "norm": norm,
                            "radius": radius,
                            "range": name,
                            "slope": r.slope,
                            "ci_low": r.low,
                            "ci_high": r.high,
                            "n_min": part.index.min(),
                            "n_max": part.index.max(),
                            "replicates": part.shape[1],
                            "not_converged": int((~group.converged).sum()),
                            "at_bound": int(group.at_bound.sum()),
                        }
                    )
    return pd.DataFrame(rows)


def worlds_table(
    config: EstimationError,
    specs: dict[str, WorldSpec],
    methods: tuple[str, ...],
    fractions: tuple[float, ...],
) -> pd.DataFrame:
    """A row for each world: its facts, how many atoms it has, where its bound is from, and whether
    that binds in the population.

    targets_at_bound: the methods whose population fit lies on the sphere ||theta|| = B, as
    "kldpo 0.3" with the fraction: their bias says more of B than of the method.
    """
    rows = []
    for spec in specs.values():
        truth = _population(spec, methods, fractions)
        given, pairs = config.bound is not None, spec.kind == "pairs"
        rows.append(
            spec.facts
            | {
                "atoms": (
                    len(truth.world.probability) if isinstance(truth.world, FiniteWorld) else None
                ),
                "theta_star_norm": float(np.linalg.norm(truth.nominal)),
                "bound_is": "given" if given else BOUND_IS if pairs else "the profile's",
                "targets_at_bound": ", ".join(
                    f"{method} {fraction:g}" if METHODS[method].set else method
                    for method, fraction in truth.at_bound
                ),
            }
        )
    return pd.DataFrame(rows)


def _table_of(spec: WorldSpec) -> Pairs:
    return read_pairs(Path(spec.path), features=spec.features)


def _table_facts(specs: dict[str, WorldSpec]) -> dict[str, Any]:
    """What run.json says of the table of pairs."""
    (spec,) = specs.values()
    world = build_world(spec)
    assert isinstance(world, FiniteWorld)
    return {"pairs": _table_of(spec).facts(world)}


def bounds_table(
    errors: pd.DataFrame, specs: dict[str, WorldSpec], fractions: tuple[float, ...]
) -> pd.DataFrame:
    """Prop. 1 and Theorems 1 and 2 with the constants of each world, next to the measured error
    quantile.

    Theorem 2 stands twice: as printed, where the lower bound of the dual variable over Theta is
    zero because theta_ref is in Theta, and with the range of the dual variable met at the two
    minimisers.
    """
    rows = []
    methods = tuple(sorted(errors.method.unique()))
    for world_name, spec in specs.items():
        truth = _population(spec, methods, fractions)
        world = truth.world
        if isinstance(world, ContinuousWorld) and not world.bounded:
            continue
        constants = {"beta": world.beta, "bound": world.bound}
        for (method, radius, n), group in errors[errors.world == world_name].groupby(
            ["method", "radius", "n"], sort=False
        ):
            if method == "dpo":
                if (
                    world.theta_star is None
                ):  # Prop. 1 needs Bradley–Terry labels with a true parameter
                    continue
                value = bounds.proposition_1(n, world.dimension, delta=DELTA, **constants)
                rows.append(
                    _bound_row(
                        world_name,
                        method,
                        radius,
                        n,
                        "Prop. 1",
                        value,
                        group,
                        "nominal_sample",
                        np.nan,
                    )
                )
                continue
            fraction = float(group.fraction.iloc[0])
            if np.isnan(fraction) or method not in ("kldpo", "wdpo-w1", "wdpo-w2"):
                continue
            regularity = _regularity(spec, method, fraction, methods, fractions)
            if method == "kldpo":
                dual = group.dual[np.isfinite(group.dual)]
                loss = constants | {"regularity": regularity, "delta": DELTA}
                printed = bounds.theorem_2(n, dual_low=0.0, dual_high=float(dual.max()), **loss)
                rescued = bounds.theorem_2(
                    n, dual_low=float(dual.min()), dual_high=float(dual.max()), **loss
                )
                rows.append(
                    _bound_row(
                        world_name,
                        method,
                        radius,
                        n,
                        "Thm. 2",
                        printed,
                        group,
                        "robust_2",
                        regularity,
                    )
                )
                rows.append(
                    _bound_row(
                        world_name,
                        method,
                        radius,
                        n,
                        "Thm. 2, dual at the minimisers",
                        rescued,
                        group,
                        "robust_2",
                        regularity,
                    )
                )
            else:
                value = bounds.theorem_1(n, regularity=regularity, delta=DELTA, **constants)
                rows.append(
                    _bound_row(
                        world_name,
                        method,
                        radius,
                        n,
                        "Thm. 1",
                        value,
                        group,
                        "robust_2",
                        regularity,
                    )
                )
    return pd.DataFrame(rows)


def population_error(
    spec: WorldSpec, methods: tuple[str, ...], fractions: tuple[float, ...]
) -> float:
    """How far the targets of a continuous world move with a coarser quadrature (48 nodes for 64); 0
    in a finite world."""
    truth = _population(spec, methods, fractions)
    if not isinstance(truth.world, ContinuousWorld):
        return 0.0
    coarse = truth.world.line(48)
    moved = [
        np.linalg.norm(
            truth.world.lift(METHODS[name].fit(coarse, knob, truth.setting).theta[0])
            - truth.targets[name, fraction]
        )
        for (name, fraction), knob in truth.knobs.items()
    ]
    return float(max(moved))


@lru_cache(maxsize=256)
def _regularity(
    spec: WorldSpec,
    method: str,
    fraction: float,
    methods: tuple[str, ...],
    fractions: tuple[float, ...],
) -> float:
    """lambda of Assumption 2, by optimisation over the ball of that world."""
    truth = _population(spec, methods, fractions)
    radius, world = truth.knobs[method, fraction], truth.world
    if isinstance(
        world, ContinuousWorld
    ):  # isotropic: every direction is the weakest, and one projection tells
        line = world.line()
        return bounds.regularity_kl(line.ut[0].T.numpy(), line.p[0].numpy(), radius)
    if method == "kldpo":
        return bounds.regularity_kl(world.x, world.probability, radius)
    power = 1 if method == "wdpo-w1" else 2
    assert truth.setting.distance is not None
    return bounds.regularity_finite(
        world.x, world.probability, truth.setting.distance**power, radius**power
    )


def _bound_row(
    world: str,
    method: str,
    radius: str,
    n: int,
    statement: str,
    bound: float,
    group: pd.DataFrame,
    error: str,
    regularity: float,
) -> dict[str, Any]:
    measured = group[error]
    quantile = float(measured.quantile(1 - DELTA))
    return {
        "world": world,
        "method": method,
        "radius": radius,
        "n": n,
        "statement": statement,
        "bound": bound,
        "error_q": quantile,
        "coverage": float((measured <= bound).mean()),
        "tightness": bound / quantile if quantile > 0 else np.inf,
        "delta": DELTA,
        "regularity": regularity,
        "at_bound": int(group.at_bound.sum()),
    }


# ---------------------------------------------------------------------------------------------- run
def run(config: EstimationError) -> dict[str, pd.DataFrame]:
    """Run or resume the study and write its tables; returns them."""
    profile, cells = plan(config)
    began = time.perf_counter()
    with open_run(config.out) as out:
        errors = run_cells(
            cells,
            fit_cell,
            out,
            seed=config.seed,
            fingerprint=code_fingerprint(
                Path(__file__), *(Path(__file__).with_name(f"{room}.py") for room in USED)
            ),
            backend=config.backend,
            workers=config.workers,
            address=config.address,
        )
        errors = errors.sort_values(
            ["world", "method", "radius", "n", "replicate"], kind="stable", ignore_index=True
        )
        specs = {(spec := spec_of(cell.parameters | cell.places)).name: spec for cell in cells}
        methods, fractions = tuple(config.methods), (*profile.fractions, profile.schedule_start)
        tables = {
            "errors": errors,
            "worlds": worlds_table(config, specs, methods, fractions),
            "rates": rates_table(errors, config.seed),
            "bounds": bounds_table(errors, specs, fractions),
        }
        write_table(tables["errors"], out / "errors.parquet")
        for name in ("worlds", "rates", "bounds"):
            write_table(tables[name], out / f"{name}.csv")
        write_json(
            {
                "experiment": "estimation-error",
                "configuration": configuration(config),
                "profile": asdict(profile),
                "seed": config.seed,
                "fits": len(errors),
                "not_converged": int((~errors.converged).sum()),
                "at_bound": int(errors.at_bound.sum()),
                **(_table_facts(specs) if config.pairs is not None else {}),
                "population_error": {
                    name: population_error(spec, methods, fractions) for name, spec in specs.items()
                },
                "methods_without_a_world": sorted(set(config.methods) - set(errors.method)),
                **provenance(),
                "wall_time_s": round(time.perf_counter() - began, 1),
            },
            out / "run.json",
        )
    return tables


def summarise(config: EstimationError, tables: dict[str, pd.DataFrame]) -> None:
    """Print the rates to the robust target, the bounds that fail, and what was not fitted."""
    if config.pairs is not None:
        (world,) = tables["worlds"].itertuples()
        table = read_pairs(config.pairs, features=config.features, exclude=config.exclude)
        print(table.describe(world.atoms, config.ties))
        print(f"B = {world.bound:g} ({world.bound_is}), ||theta*|| = {world.theta_star_norm:.3g}.")
    rates = tables["rates"]
    shown = rates[(rates.target == "robust") & (rates.norm == "2")]
    # the tail, the upper half of the sizes; all of them where the tail is a single size
    has_tail = shown[shown.range == "tail"].set_index(["world", "method", "radius"]).slope.notna()
    keys = pd.MultiIndex.from_frame(shown[["world", "method", "radius"]])
    wanted = np.where(has_tail.reindex(keys), "tail", "all")
    shown = shown[shown.range == wanted]
    screen.show(
        [
            {
                "world": row.world,
                "method": row.method,
                "radius": row.radius,
                "sizes": row.range,
                "slope": f"{row.slope:.3f}",
                "95 % interval": f"[{row.ci_low:.3f}, {row.ci_high:.3f}]",
                "not converged": row.not_converged,
                "at the bound": row.at_bound,
            }
            for row in shown.itertuples()
        ],
        "rates, to the robust target: slope of log error on log n",
    )
    bounds, errors = tables["bounds"], tables["errors"]
    if len(bounds):
        low = bounds[bounds.coverage < 1 - bounds.delta]
        print(f"bounds: {len(bounds)} checked, {len(low)} with coverage below 1 - delta.")
    without = sorted(set(config.methods) - set(errors.method))
    if without:
        print(
            f"not run, for lack of a finite world of at most {METRIC_ATOMS} atoms:"
            f" {', '.join(without)}."
        )
    print(f"fits: {len(errors)}, not converged: {int((~errors.converged).sum())}.")
    if met := int(errors.at_bound.sum()):
        least = errors[errors.at_bound].n
        print(
            f"at the bound ||theta|| = B: {met} fits, with {least.min()} to {least.max()} pairs."
            " Their error is that of the bound; a larger --bound frees them, unless the sample is"
            " separable."
        )
    for row in tables["worlds"].itertuples():
        if row.targets_at_bound:
            print(
                f"the bound binds in the population of {row.world}, for {row.targets_at_bound}:"
                f" these targets, and theta* (norm {row.theta_star_norm:.3g}), are those of B ="
                f" {row.bound:g}, not of the {row.kind}. Give a larger --bound."
            )
