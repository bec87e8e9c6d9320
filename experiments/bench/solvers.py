"""How fast and how exact the estimators are, next to the solvers a user would otherwise take.

Every row fits the same samples with our batched estimator and with one peer, alternately and in the
same process, after one untimed run of each. `ours_s` and `peer_s` are medians of seconds per fit:
ours one call for all replicates, divided by their number, the peer one replicate after the other.
Solutions are compared through one objective, computed from theta by the numpy functions of this
file, which share no code with any of the solvers.

What each peer solves, in our notation (beta = 1, theta_ref = 0, no intercept, the bound out of
reach):

* cvxpy, KL ball: the convex program of the ball's dual, modelled and solved with Clarabel at its
  default accuracy. The model is built anew for each sample, as its data enter as constants.
* cvxpy, finite Z: one row per pair of atoms, with weights and radius as parameters. The model is
  compiled once, outside the timing, which leaves the fastest cvxpy loop over replicates.
* dro KLDRO (eps = radius in nats) and WassersteinDRO (eps = radius, p = 2 for the Euclidean ground
  metric, kappa = label cost): the same exact programs, built with cvxpy and solved with Clarabel.
* skwdro LogisticRegression: the W2 ball smoothed by an entropy term, solved by 3000 stochastic
  gradient steps in float32, accurate to about 1e-3. The cost "t-NC-2-2" is the squared Euclidean
  cost at fixed labels, so that rho is our radius; the default cost divides distances by 1 + 1e8,
  its price of a label, and so is another problem.
* scikit-learn LogisticRegression without penalty: L-BFGS to its default tolerance of 1e-4.

Rows "its twin" have every convex set of the registry against its own independent program. Rows
"ours, on the CPU" compare our fits on a CUDA device with those of the same samples on the CPU,
where at most `cpu_replicates` are timed: from 64 on the time per fit does not depend on them. The
parts "compiled", "scaling" and "large" are in files of their names, with tables of their own.
"""

import importlib
import importlib.util
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch

from experiments import screen
from experiments.bench import compiled, large, scaling
from experiments.bench.ours import BOUND, RADIUS
from experiments.bench.samples import BETA, Samples, draw_atoms, draw_pairs
from theory.batch import pair_batch
from theory.estimators import Fit, dpo, kldpo, wdpo_finite, wdpo_free
from theory.fitting import fit
from theory.sets import SETS, AmbiguitySet
from theory.twins import knowledge, twins

Array = np.ndarray
KL_RADIUS, TRANSPORT_RADIUS, LABEL_COST = RADIUS, 0.1, 1.0
WIDE_KL_RADIUS = 0.1  # close to the collapse radius, and beyond it in some replicates
Part = Literal["peers", "sets", "scaling", "devices", "compiled", "large"]
PARTS: tuple[Part, ...] = get_args(Part)
DEFAULT: tuple[Part, ...] = PARTS[:-1]
OWN_TABLES = {"scaling": scaling.bench, "compiled": compiled.bench, "large": large.bench}
COLUMNS = [
    *(
        "problem",
        "n",
        "d",
        "replicates",
        "peer",
        "device",
        "threads",
        "ours_s",
        "peer_s",
        "ratio",
        "target",
    ),
    *("objective_gap", "certified_gap", "met", "note"),
]


@dataclass(frozen=True)
class Profile:
    """Sizes of one benchmark run. A row stops after `repeats` timings, or after the first one
    beyond `seconds`."""

    pairs: int
    replicates: int
    repeats: int
    seconds: float
    atoms: tuple[int, ...]
    device_replicates: tuple[int, ...]
    cpu_replicates: int  # of the samples on devices, so many are fitted on the CPU, too
    dimension: int = 5


PROFILES = {
    "smoke": Profile(60, 4, 2, 5.0, (24,), (2, 5), 3),
    "quick": Profile(
        1000,
        256,
        7,
        15.0,
        (48, 160),
        (256, 4096, 65_536),
        1024,
    ),
    "paper": Profile(
        1000,
        256,
        25,
        120.0,
        (48, 160),
        (256, 4096, 65_536),
        1024,
    ),
}


@dataclass
class Solvers:
    """What the benchmark can be told."""

    out: Path = Path("results/bench")
    """Folder for solvers.csv."""
    profile: Literal["smoke", "quick", "paper"] = "quick"
    """Size of the benchmark: smoke (seconds), quick (minutes) or paper (more repeats)."""
    parts: tuple[Part, ...] = DEFAULT
    """Against other packages; every set against its twin; how time and memory grow; on a CUDA
    device, where there is one, against the CPU; compiled against torch, JAX and the limit of the
    machine; and only where asked for, as it takes some ten minutes: what large problems cost."""


PeerFit = Callable[[Array, Array], Array]  # u (n, d), weights (n,) -> theta (d,)
Objective = Callable[[Array, Array, Array], float]  # theta, u, weights


@dataclass(frozen=True)
class Peer:
    """A solver of another package. `make` imports it and returns its fit; `accuracy` is the largest
    gap to be met."""

    name: str
    make: Callable[[], PeerFit]
    target: float
    accuracy: float = 1e-8


@dataclass(frozen=True)
class Case:
    """One problem, our estimator for it, its objective, and the peers that solve it too."""

    problem: str
    samples: Samples
    ours: Callable[[Samples], Fit]
    objective: Objective
    peers: tuple[Peer, ...]


# ------------------------------------------------------- objectives of theta, independent of theory
def _losses(theta: Array, u: Array) -> tuple[Array, Array]:
    """Margins and losses log(1 + exp(-margin))."""
    m = BETA * u @ theta
    return m, np.logaddexp(0, -m)


def _least(f: Callable[[float], float], low: float, high: float) -> float:
    """Minimum of a convex or unimodal f on [low, high] by golden section."""
    golden = (np.sqrt(5) - 1) / 2
    a, b = high - golden * (high - low), low + golden * (high - low)
    fa, fb = f(a), f(b)
    for _ in range(90):
        if fa < fb:
            high, b, fb = b, a, fa
            a = high - golden * (high - low)
            fa = f(a)
        else:
            low, a, fa = a, b, fb
            b = low + golden * (high - low)
            fb = f(b)
    return min(fa, fb)


def mean_objective(theta: Array, u: Array, p: Array) -> float:
    return float(p @ _losses(theta, u)[1])


def kl_objective(radius: float) -> Objective:
    """theta -> min over lambda of lambda rho + lambda log E exp(l/lambda), the worst mean loss over
    KL(q||p) <= rho."""

    def objective(theta: Array, u: Array, p: Array) -> float:
        l = _losses(theta, u)[1]
        top = l.max()

        def dual(log_lambda: float) -> float:
            lam = np.exp(log_lambda)
            return float(lam * radius + top + lam * np.log(p @ np.exp((l - top) / lam)))

        return _least(dual, -12.0, 12.0)

    return objective


def w1_objective(theta: Array, u: Array, p: Array) -> float:
    return mean_objective(theta, u, p) + TRANSPORT_RADIUS * BETA * float(np.linalg.norm(theta))


def w1_label_objective(theta: Array, u: Array, p: Array) -> float:
    """min over eta >= beta ||theta|| of eta rho + E max(l(m), l(-m) - kappa eta).

    Linear in eta between the points where l(-m) - l(m) = m equals kappa eta: the minimum is at one
    of them.
    """
    m, l = _losses(theta, u)
    floor = BETA * float(np.linalg.norm(theta))
    corners = np.maximum(m / LABEL_COST, floor)
    values = [
        eta * TRANSPORT_RADIUS + p @ np.maximum(l, l + m - LABEL_COST * eta)
        for eta in {floor, *corners}
    ]
    return float(min(values))


def w2_objective(theta: Array, u: Array, p: Array) -> float:
    """min over eta of eta rho^2 + E sup_t [l(m - b t) - eta t^2] with b = beta ||theta||, t on a
    refined grid."""
    m = BETA * u @ theta
    b = BETA * float(np.linalg.norm(theta))

    def moved(eta: float) -> Array:
        # the slope of l(m - bt) in t is at most b, so that t <= b / (2 eta); zoom in on the best
        # point
        low, high = np.zeros_like(m), np.full_like(m, b / (2 * eta))
        for zoom in range(5):
            t = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 257 if zoom == 0 else 17)
            values = np.logaddexp(0, b * t - m[:, None]) - eta * t**2
            best, step = values.argmax(1), t[:, 1] - t[:, 0]
            centre = np.take_along_axis(t, best[:, None], 1)[:, 0]
            low, high = np.maximum(centre - step, 0), centre + step
        return values.max(1)

    return _least(
        lambda s: float(np.exp(s) * TRANSPORT_RADIUS**2 + p @ moved(np.exp(s))), -5.0, 7.0
    )


def finite_objective(power: int, distance: Array) -> Objective:
    """theta -> min over eta of eta rho^p + E max_j [l_j - eta D_ij^p]."""
    cost = distance**power
    nearest = cost[cost > 0].min()

    def objective(theta: Array, u: Array, p: Array) -> float:
        l = _losses(theta, u)[1]

        def dual(eta: float) -> float:
            return float(eta * TRANSPORT_RADIUS**power + p @ (l - eta * cost).max(1))

        return _least(dual, 0.0, (l.max() - l.min()) / nearest)  # above this eta no mass moves

    return objective


# -------------------------------------------------------------------------------------------- peers
def _labelled(u: Array) -> tuple[Array, Array]:
    """Features X and labels y with y X = u: the peers are classifiers and insist on two classes."""
    y = np.where(np.arange(len(u)) % 2 == 0, 1.0, -1.0)
    return u * y[:, None], y


def cvxpy_kl(radius: float) -> PeerFit:
    import cvxpy as cp

    def fit(u: Array, p: Array) -> Array:
        theta, lam, nu = cp.Variable(u.shape[1]), cp.Variable(nonneg=True), cp.Variable()
        losses, mass = cp.Variable(len(u)), cp.Variable(len(u))
        # min lam rho + nu  with  E lam exp((l - nu)/lam) <= lam
        program = cp.Problem(
            cp.Minimize(lam * radius + nu),
            [
                losses >= cp.logistic(-BETA * (u @ theta)),
                cp.constraints.ExpCone(losses - nu, lam * np.ones(len(u)), mass),
                p @ mass <= lam,
            ],
        )
        program.solve(solver=cp.CLARABEL)
        return np.asarray(theta.value)

    return fit


def cvxpy_finite(power: int, u: Array, distance: Array) -> PeerFit:
    import cvxpy as cp

    n, d = u.shape
    theta, eta, losses, rows = (
        cp.Variable(d),
        cp.Variable(nonneg=True),
        cp.Variable(n),
        cp.Variable(n),
    )
    weights, budget = (
        cp.Parameter(n, nonneg=True),
        cp.Parameter(nonneg=True, value=TRANSPORT_RADIUS**power),
    )
    worst = (
        cp.reshape(rows, (n, 1), order="C")
        >= cp.reshape(losses, (1, n), order="C") - eta * distance**power
    )
    program = cp.Problem(
        cp.Minimize(eta * budget + weights @ rows),
        [losses >= cp.logistic(-BETA * (u @ theta)), worst],
    )

    def fit(_: Array, p: Array) -> Array:
        weights.value = p
        program.solve(solver=cp.CLARABEL)
        return np.asarray(theta.value)

    fit(u, np.full(n, 1 / n))  # compiles the program
    return fit


def _dro(module: str) -> Any:
    """dro.linear_model.<module> without dro/__init__.py, which imports torchvision, xgboost and
    lightgbm."""
    if "dro" not in sys.modules:
        spec = importlib.util.find_spec("dro")
        if spec is None:
            raise ImportError("dro")
        sys.modules["dro"] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"dro.linear_model.{module}")


def dro_kl(radius: float) -> PeerFit:
    model = _dro("kl_dro").KLDRO

    def fit(u: Array, p: Array) -> Array:
        X, y = _labelled(u)
        solver = model(input_dim=u.shape[1], model_type="logistic", fit_intercept=False, eps=radius)
        solver.fit(X, y)
        return np.asarray(solver.theta)

    return fit


def dro_w1(label_cost: float | None) -> PeerFit:
    model = _dro("wasserstein_dro").WassersteinDRO

    def fit(u: Array, p: Array) -> Array:
        X, y = _labelled(u)
        solver = model(input_dim=u.shape[1], model_type="logistic", fit_intercept=False)
        solver.update(
            {"eps": TRANSPORT_RADIUS, "p": 2, "kappa": "inf" if label_cost is None else label_cost}
        )
        solver.fit(X, y)
        return np.asarray(solver.theta)

    return fit


def skwdro_w2() -> PeerFit:
    model = importlib.import_module("skwdro.linear_models").LogisticRegression
    stop = importlib.import_module("skwdro.solvers.optim_cond").OptCondTorch

    def fit(u: Array, p: Array) -> Array:
        X, y = _labelled(u)
        # the default stopping rule, in a fresh copy: the shared one remembers the gradient of an
        # earlier fit
        solver = model(
            rho=TRANSPORT_RADIUS, cost="t-NC-2-2", fit_intercept=False, opt_cond=stop(2, 1e-4, 0.0)
        )
        return np.asarray(solver.fit(X, y).coef_, dtype=np.float64)

    return fit


def sklearn_logistic() -> PeerFit:
    model = importlib.import_module("sklearn.linear_model").LogisticRegression

    def fit(u: Array, p: Array) -> Array:
        X, y = _labelled(u)
        return np.asarray(
            model(C=np.inf, fit_intercept=False).fit(X, y).coef_[0]
        )  # C = inf is penalty=None

    return fit


# -------------------------------------------------------------------------------------------- cases
def cases(size: Profile) -> list[Case]:
    """The comparisons of one profile, cheapest first."""
    pairs = Samples(draw_pairs(size.replicates, size.pairs, size.dimension, seed=1), None)
    common: dict[str, Any] = {"beta": BETA, "bound": BOUND}
    free = {"radius": TRANSPORT_RADIUS, **common}
    found = [
        Case(
            "dpo",
            pairs,
            lambda s: dpo(s.u, **common),
            mean_objective,
            (Peer("scikit-learn", sklearn_logistic, 10),),
        ),
        _kl_case("kldpo", pairs, KL_RADIUS),
        _kl_case("kldpo, near collapse", pairs, WIDE_KL_RADIUS),
        Case(
            "wdpo_free p=1",
            pairs,
            lambda s: wdpo_free(s.u, power=1, **free),
            w1_objective,
            (Peer("dro", lambda: dro_w1(None), 100),),
        ),
        Case(
            "wdpo_free p=1, labels",
            pairs,
            lambda s: wdpo_free(s.u, power=1, label_cost=LABEL_COST, **free),
            w1_label_objective,
            (Peer("dro", lambda: dro_w1(LABEL_COST), 100),),
        ),
        Case(
            "wdpo_free p=2",
            pairs,
            lambda s: wdpo_free(s.u, power=2, **free),
            w2_objective,
            (Peer("skwdro", skwdro_w2, 1000),),
        ),
    ]
    found += [_finite_case(size, atoms, power) for atoms in size.atoms for power in (1, 2)]
    return found


def _kl_case(problem: str, pairs: Samples, radius: float) -> Case:
    return Case(
        problem,
        pairs,
        lambda s: kldpo(s.u, radius=radius, beta=BETA, bound=BOUND),
        kl_objective(radius),
        (Peer("cvxpy", lambda: cvxpy_kl(radius), 200), Peer("dro", lambda: dro_kl(radius), 200)),
    )


def _finite_case(size: Profile, atoms: int, power: int) -> Case:
    samples, distance = draw_atoms(size.replicates, atoms, size.dimension, seed=2)
    return Case(
        f"wdpo_finite p={power}",
        samples,
        lambda s: wdpo_finite(
            s.u,
            s.weights,
            distance=distance,
            power=power,
            radius=TRANSPORT_RADIUS,
            beta=BETA,
            bound=BOUND,
        ),
        finite_objective(power, distance),
        (Peer("cvxpy, compiled", lambda: cvxpy_finite(power, samples.u.numpy(), distance), 20),),
    )


# ------------------------------------------------------------------------------------------- timing
def _seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    time.sleep(0.05)  # threads of the other side's libraries spin for a while after their work
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def _time_ours(case: Case, samples: Samples) -> tuple[float, Fit]:
    """Seconds for all replicates; reading theta on the CPU waits for the device."""

    def call() -> Fit:
        fit = case.ours(samples)
        return replace(fit, theta=fit.theta.cpu())

    return _seconds(call)


def compare(case: Case, peer: Peer, size: Profile, device: str) -> dict[str, Any]:
    """One row: our batch and the peer's fits alternately, and the objectives of the replicates that
    the peer fitted."""
    samples = case.samples.to(device)
    _, fit = _time_ours(case, samples)
    row: dict[str, Any] = {
        "problem": case.problem,
        "n": case.samples.u.shape[-2],
        "d": case.samples.u.shape[-1],
        "replicates": case.samples.replicates,
        "peer": peer.name,
        "device": device,
        "threads": torch.get_num_threads(),
        "target": peer.target,
        "certified_gap": float(fit.gap.max()),
        "note": (
            "" if bool(fit.converged.all()) else f"{int((~fit.converged).sum())} fits not converged"
        ),
    }
    try:
        peer_fit = peer.make()
    except ImportError:
        seconds, _ = _time_ours(case, samples)
        return row | {
            "ours_s": seconds / case.samples.replicates,
            "note": "not installed: make peers",
        }
    ours_s: list[float] = []
    peer_s: list[float] = []
    gaps: list[float] = []
    failures = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' deprecation notices
        start = time.perf_counter()
        for attempt in range(size.repeats + 1):  # the first one warms up
            if len(ours_s) > 0 and time.perf_counter() - start > size.seconds:
                break
            r = attempt % case.samples.replicates
            u, p = case.samples.replicate(r)
            ours = _time_ours(case, samples)[0]
            try:
                seconds, theta = _seconds(lambda u=u, p=p: peer_fit(u, p))  # type: ignore[misc]
            except (
                Exception
            ) as error:  # each package has exceptions of its own, and its failure is a result
                failures.append(str(error))
                continue
            theirs = case.objective(theta, u, p)
            gaps.append((case.objective(fit.theta[r].numpy(), u, p) - theirs) / abs(theirs))
            if attempt > 0:
                ours_s.append(ours)
                peer_s.append(seconds)
    if failures:
        row["note"] = (
            f"{row['note']} {peer.name} failed on {len(failures)} of {attempt + 1} samples:"
            f" {failures[0]}".strip()
        )
    if peer_s:
        row["ours_s"], row["peer_s"] = (
            np.median(ours_s) / case.samples.replicates,
            np.median(peer_s),
        )
        row["ratio"], row["objective_gap"] = row["peer_s"] / row["ours_s"], max(gaps)
        row["met"] = bool(row["ratio"] >= peer.target and row["objective_gap"] <= peer.accuracy)
    return row


def _fitted(set: AmbiguitySet, samples: Samples) -> Fit:
    return fit(samples.u, set, beta=BETA, bound=BOUND)


def sets(size: Profile) -> Iterator[dict[str, Any]]:
    """Every convex set of the registry against its own cvxpy or linear-programming twin, on small
    samples: what the twin costs says what one fit by a modelling tool does, polish included."""
    known = twins()
    pairs, atoms = (draw_pairs(size.replicates, n, size.dimension, seed=4) for n in (200, 48))
    for name, kind in SETS.items():
        if not kind.facts.convex or kind.counts_labels:  # these pairs are met once
            continue
        u = atoms if kind.facts.atoms else pairs
        shared = u[0] if kind.facts.atoms else u  # a metric is that of one sample
        distance = np.linalg.norm(u[0][:, None].numpy() - u[0][None].numpy(), axis=-1)
        kind = kind.in_metric(distance, LABEL_COST)
        one = Samples(u[:1], None).replicate(0)
        kind = kind.sized(kind.size_at(0.3, pair_batch(*one), beta=BETA, bound=BOUND))
        case = Case(
            name,
            Samples(shared, None),
            partial(_fitted, kind),
            mean_objective,
            (),
        )
        _time_ours(case, case.samples)
        ours, found = min((_time_ours(case, case.samples) for _ in range(3)), key=lambda x: x[0])
        twin = partial(known[name].fit, beta=BETA, bound=BOUND, **knowledge(kind))
        peer_s, theirs = _seconds(partial(twin, *one, kind.size))
        value = found.value if found.value.ndim == 0 else found.value[0]
        replicates = 1 if kind.facts.atoms else size.replicates
        yield {
            "problem": name,
            "n": u.shape[1],
            "d": size.dimension,
            "replicates": replicates,
            "peer": "its twin",
            "device": "cpu",
            "threads": torch.get_num_threads(),
            "ours_s": ours / replicates,
            "peer_s": peer_s,
            "ratio": peer_s * replicates / ours,
            "objective_gap": (value.item() - theirs[1]) / theirs[1],
            "certified_gap": float(found.gap.max()),
            "note": "" if bool(found.converged.all()) else "fits not converged",
        }


def devices(size: Profile, device: str) -> Iterator[dict[str, Any]]:
    """Each problem on a device against the same samples on the CPU, by replicates; beyond
    `cpu_replicates` they come again."""
    for case in cases(replace(size, replicates=size.cpu_replicates)):
        for replicates in size.device_replicates:
            few = case.samples.first(min(replicates, size.cpu_replicates))
            there = few.repeated(-(-replicates // size.cpu_replicates)).to(device)
            row: dict[str, Any] = {
                "problem": case.problem,
                "n": case.samples.u.shape[-2],
                "d": size.dimension,
                "replicates": there.replicates,
                "peer": "ours, on the CPU",
                "device": device,
                "threads": torch.get_num_threads(),
            }
            try:
                _time_ours(case, there)
                ours = [_time_ours(case, there) for _ in range(2)]
            except torch.OutOfMemoryError as error:
                yield row | {"note": f"out of memory: {str(error).splitlines()[0]}"}
                continue
            cpu_s, on_cpu = min(
                (_time_ours(case, few) for _ in range(2)), key=lambda timed: timed[0]
            )
            seconds, fit = min(ours, key=lambda timed: timed[0])
            row |= {"ours_s": seconds / there.replicates, "peer_s": cpu_s / few.replicates}
            apart = (fit.value[: few.replicates].cpu() - on_cpu.value).abs() / on_cpu.value.abs()
            left = int((~fit.converged).sum())
            row |= {"ratio": row["peer_s"] / row["ours_s"], "objective_gap": float(apart.max())}
            yield row | {
                "certified_gap": float(fit.gap.max()),
                "note": f"{left} fits not converged" if left else "",
            }


# ------------------------------------------------------------------------------------------- report
def run(config: Solvers) -> None:
    """Run the benchmark with these options."""
    bench_solvers(config.out, config.profile, config.parts)


def bench_solvers(out: Path, profile: str, parts: Sequence[str] = DEFAULT) -> pd.DataFrame:
    """Run the benchmark, print its table and write it to `out`/solvers.csv.

    profile: "smoke" (seconds), "quick" (minutes) or "paper" (more repetitions). parts: which of
    PARTS; "devices" is for a CUDA device, on which "peers" is repeated, too, and those in
    OWN_TABLES write files of their own. Raises ValueError for an unknown profile.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}.")
    if tuple(parts) == ("devices",) and not torch.cuda.is_available():
        raise ValueError(
            "the part devices compares a CUDA device with the CPU, and torch sees none: leave it"
            " out."
        )
    size = PROFILES[profile]
    out.mkdir(parents=True, exist_ok=True)
    for part, bench in OWN_TABLES.items():
        if part in parts:
            bench(out, profile)
    if set(parts) <= set(OWN_TABLES):
        return pd.DataFrame(columns=COLUMNS)
    table = pd.DataFrame(columns=COLUMNS)
    for number, row in enumerate(_rows(size, parts)):
        table = pd.DataFrame([*table.to_dict("records"), row], columns=COLUMNS)
        table.to_csv(
            out / "solvers.csv", index=False
        )  # row by row: an interrupted run keeps what it has measured
        print(
            f"[{number + 1}] {row['problem']}, n = {row['n']}, R = {row['replicates']}:"
            f" {row['peer']}"
        )
    _show(table)
    print(f"written to {out / 'solvers.csv'}")
    return table


def _rows(size: Profile, parts: Sequence[str]) -> Iterator[dict[str, Any]]:
    cuda = ["cuda"] if torch.cuda.is_available() else []
    if "peers" in parts:
        for case in cases(size):
            for peer in case.peers:
                for device in ["cpu", *cuda]:
                    yield compare(case, peer, size, device)
    if "sets" in parts:
        yield from sets(size)
    if "devices" in parts:
        for device in cuda:
            yield from devices(size, device)


def _show(table: pd.DataFrame) -> None:
    """The times, and what is to be said of some rows; how exact each is, is in the file."""
    shown, notes = [], []
    for row in table.to_dict("records"):
        solver = (
            row["peer"] if row["device"] == "cpu" else f"{row['peer']} (ours on {row['device']})"
        )
        shown.append(
            {
                "problem": row["problem"],
                "n x R": f"{row['n']} x {row['replicates']}",
                "solver": solver,
                "ours ms": 1e3 * row["ours_s"],
                "peer ms": 1e3 * row["peer_s"],
                "ratio": row["ratio"],
                "target": row["target"],
                "met": row["met"],
            }
        )
        if isinstance(row["note"], str) and row["note"]:
            notes.append(f"{row['problem']}, {shown[-1]['n x R']}, {solver}: {row['note']}")
    screen.show(shown, f"ours against peers, {table['threads'][0]} threads")
    print(*notes, sep="\n")
