"""Claims of our own on AOT: the law of its minimiser, and the deviation of its objective over the
whole ball. Theorems F5 and H1 of docs/theorems/aot.md."""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from theory.aot import minimise_aot, potentials, random_starts
from theory.bounds.aot import AotDeviation, Side, aot_deviation
from theory.claims.ledger import (
    Claim,
    Finding,
    Kind,
    Measurement,
    Row,
    conclude,
    coverage,
    curve,
    equality,
    panel,
    pick,
    rate_equal,
)
from theory.claims.predictions import predicted_mean, predicted_quantile
from theory.claims.transport import tensor
from theory.functionals import aot_unpaired
from theory.laws.aot import AotLaw, aot_law
from theory.losses import logistic
from theory.policy import Array
from theory.rates import rate
from theory.transport import coupling
from theory.worlds import unit_vectors

DELTA = 0.05
BETA = 1.0
_GAP = 1e-6  # of a fit: moves theta by about 1e-6, a thousandth of what a sample of 1e6 does
_STARTS = 8  # of every sample, drawn at random: the population's minimiser is not among them


# ------------------------------------------------------------------------------------------- worlds
@dataclass(frozen=True)
class _World:
    """Finitely many chosen and rejected atoms, the ball, and the law of their pairs (K, M), None
    where the two samples are independent."""

    name: str
    chosen: Array
    rejected: Array
    p: Array
    q: Array
    bound: float
    joint: Array | None = None

    def best(self) -> tuple[Array, float]:
        """theta*, and OT_h there."""
        wide = random_starts(np.random.default_rng(0), 64, self.chosen.shape[1], self.bound)
        found = self._minimised(self.p[None], self.q[None], wide)
        return found[0][0], float(found[1][0])

    def law(self, theta: Array) -> AotLaw:
        return aot_law(
            self.chosen,
            self.rejected,
            self.p,
            self.q,
            theta,
            h=logistic,
            beta=BETA,
            bound=self.bound,
            joint=self.joint,
        )

    def sample(self, rng: np.random.Generator, n: int, replicates: int) -> tuple[Array, Array]:
        """Shares of the atoms (R, K) and (R, M) in samples of n pairs."""
        if self.joint is None:
            return tuple(rng.multinomial(n, p, replicates) / n for p in (self.p, self.q))  # type: ignore[return-value]
        pairs = rng.multinomial(n, self.joint.ravel(), replicates).reshape(-1, *self.joint.shape)
        return pairs.sum(2) / n, pairs.sum(1) / n

    def minimisers(self, rng: np.random.Generator, p: Array, q: Array) -> Array:
        starts = random_starts(rng, _STARTS, self.chosen.shape[1], self.bound)
        return self._minimised(p, q, starts)[0]

    def _minimised(self, p: Array, q: Array, starts: Tensor) -> tuple[Array, Array]:
        fit = minimise_aot(
            self.chosen,
            self.rejected,
            p,
            q,
            starts=starts,
            h=logistic,
            beta=BETA,
            bound=self.bound,
            tolerance=_GAP,
        )
        if not bool(fit.converged.all()):
            raise RuntimeError(
                f"{int((~fit.converged).sum())} of {len(p)} fits in the world {self.name} did not"
                " converge."
            )
        return fit.theta.numpy(), fit.value.numpy()

    def values(self, theta: Array, p: Array, q: Array) -> Array:
        """OT_h at theta (T, d) for shares (R, K) and (R, M): (R, T)."""
        u, v = (
            tensor(theta @ atoms.T).expand(len(p), -1, -1) for atoms in (self.chosen, self.rejected)
        )
        return aot_unpaired(u, v, logistic, BETA, tensor(p)[:, None], tensor(q)[:, None]).numpy()


def _on_the_bound() -> _World:
    """The world of the claim aot-violation-rate, whose minimiser has the length B = 2."""
    rng = np.random.default_rng(1)
    chosen, rejected = (unit_vectors(rng.standard_normal((4, 2))) for _ in range(2))
    p, q = rng.dirichlet(np.full(4, 4.0)), rng.dirichlet(np.full(4, 4.0))
    return _World("on the bound, d = 2", chosen, rejected, p, q, 2.0)


def _overlapping(place: str, seed: int, d: int, *, paired: bool = False) -> _World:
    """A world whose rejected features are the more spread out, so that no theta orders the rewards,
    and whose minimiser is at `place`. paired: the two responses of a pair have similar first
    features."""
    rng = np.random.default_rng([seed, d])
    chosen = 0.7 * rng.standard_normal((5, d)) + 0.5 * unit_vectors(np.ones(d))
    rejected = 1.4 * rng.standard_normal((6, d))
    p, q = rng.dirichlet(np.full(5, 4.0)), rng.dirichlet(np.full(6, 4.0))
    joint, name = None, f"{place}, d = {d}"
    if paired:
        plan = coupling(*(tensor(x) for x in (chosen[:, 0], rejected[:, 0], p, q)))
        joint = 0.2 * np.outer(p, q)
        np.add.at(joint, (plan.row.numpy(), plan.column.numpy()), 0.8 * plan.mass.numpy())
        name += ", the responses of a pair depend on each other"
    return _World(name, chosen, rejected, p, q, 4.0, joint)


# ---------------------------------------------------------------------------------------- limit law
def aot_limit_law(
    profile: str,
    seed: int,
    *,
    scale: float = 1.0,
    exponent: float = -0.5,
    dependence: bool = True,
) -> Finding:
    """Theorem F5: sqrt(n) (theta_n - theta*) -> N(0, scale V), n excess -> its quadratic form;
    `dependence=False` leaves the dependence of the pairs out of V."""
    sizes = pick(profile, (10**6,), (10**4, 10**6), (10**3, 10**4, 10**5, 10**6))
    replicates = pick(profile, 1000, 2000, 10000)
    worlds = [_on_the_bound(), _overlapping("inside", 6, 2)]
    worlds.append(_overlapping("inside", 6, 2, paired=True))
    if profile != "smoke":
        worlds.append(_overlapping("on the bound", 0, 3, paired=True))
    lines: list[Measurement] = []
    tables: dict[str, list[Row]] = {}
    ratios = []
    for index, world in enumerate(worlds):
        theta, least = world.best()
        law = world.law(theta)
        if not dependence:
            law = _World(**{**vars(world), "joint": None}).law(theta)
        rng = np.random.default_rng([seed, index])
        drawn = law.draw(rng, 200_000) * math.sqrt(scale)
        distance = float(np.quantile(np.linalg.norm(drawn, axis=1), 1 - DELTA))
        for n in sizes:
            p, q = world.sample(rng, n, replicates)
            found = world.minimisers(rng, p, q)
            errors = np.linalg.norm(found - theta, axis=1)
            above = world.values(found, world.p[None], world.q[None])[0] - least
            margin = 0.05 if n >= 10**6 else 0.1 if n >= 10**4 else 0.3
            where = f"{world.name}, n = {n:.0e}"
            lines += [
                predicted_quantile(
                    f"||theta_n - theta*||, {where}", errors * n**-exponent, distance, margin
                ),
                predicted_mean(
                    f"excess, {where}",
                    above * n ** (-2 * exponent),
                    scale * float(law.excess.sum()),
                    margin,
                ),
            ]
            ratios.append(float(np.quantile(errors, 1 - DELTA)) * n**-exponent / distance)
            shares = np.linspace(0.02, 0.98, 49)
            tables.setdefault(world.name, []).extend(
                curve(
                    np.quantile(np.linalg.norm(drawn, axis=1), shares),
                    np.quantile(errors, shares) * math.sqrt(n),
                    f"n = {n:.0e}",
                )
            )
    return conclude(
        f"measured/predicted 95 % quantiles {min(ratios):.3f} to {max(ratios):.3f}, sizes"
        f" {', '.join(f'{n:.0e}' for n in sizes)}",
        lines,
        {
            name: panel(
                rows,
                "predicted quantile of sqrt(n) ||theta_n - theta*||",
                "measured",
                kind="points",
                guide="y = x",
            )
            for name, rows in tables.items()
        },
    )


# ------------------------------------------------------------------------------- uniform deviation
def aot_uniform_deviation(
    profile: str,
    seed: int,
    *,
    scale: float = 1.0,
    claimed: float = -0.5,
    constant: float = 1.0,
) -> Finding:
    """Theorem H1: sup over theta of |OT_h(n) - OT_h| <= constant times the bound; H1': its law is
    that of scale sup |G|, and it falls as n^claimed."""
    sizes = pick(
        profile, (10**3, 10**5), (10**3, 10**4, 10**5, 10**6), (10**3, 10**4, 10**5, 10**6)
    )
    replicates, points = pick(profile, (300, 60), (1000, 100), (4000, 400))
    lines: list[Measurement] = []
    tables: dict[str, list[Row]] = {}
    ratios, slopes = [], []
    for index, world in enumerate((_on_the_bound(), _overlapping("inside", 6, 2))):
        d = world.chosen.shape[1]
        rng = np.random.default_rng([seed, index])
        theta, least = world.best()
        inner = random_starts(np.random.default_rng(0), points, d, world.bound).numpy()
        outer = inner / np.linalg.norm(inner, axis=1, keepdims=True) * world.bound
        grid = np.concatenate([theta[None], inner, outer])
        phi, psi = _potentials(world, grid)
        truth = world.values(grid, world.p[None], world.q[None])
        # the Gaussian limit: G(theta) = phi·Z_p + psi·Z_q
        limit = sum(
            (rng.multinomial(10**8, chance, 20_000) / 10**8 - chance) * 10**4 @ values.T
            for chance, values in ((world.p, phi), (world.q, psi))
        )
        predicted = scale * float(np.quantile(np.abs(limit).max(1), 1 - DELTA))
        deviations = []
        for n in sizes:
            p, q = world.sample(rng, n, replicates)
            off = world.values(grid, p, q) - truth
            below = (p - world.p) @ phi.T + (q - world.q) @ psi.T - off
            found = np.abs(off).max(1)
            deviations.append(found)
            quantile = float(np.quantile(found, 1 - DELTA))
            bound = _bound(world, n)
            lines.append(
                coverage(
                    f"sup |OT_h(n) - OT_h|, {world.name}, n = {n:.0e}",
                    int((found > constant * bound.value).sum()),
                    replicates,
                    DELTA,
                    ratio=constant * bound.value / quantile,
                )
            )
            ratios.append(bound.value / quantile)
            fitted = world.minimisers(rng, p, q)
            above = world.values(fitted, world.p[None], world.q[None])[0] - least
            lines.append(
                coverage(
                    f"excess of the minimiser, {world.name}, n = {n:.0e}",
                    int((above > constant * bound.excess).sum()),
                    replicates,
                    DELTA,
                    ratio=constant * bound.excess / float(np.quantile(above, 1 - DELTA)),
                )
            )
            lines.append(
                equality(
                    f"OT_h(n) >= the mean of the population's potentials, {world.name},"
                    f" n = {n:.0e}",
                    float(below.max()),
                    1e-9,
                    step=True,
                )
            )
            if n >= 10**5:
                lines.append(
                    predicted_quantile(
                        f"sqrt(n) sup |OT_h(n) - OT_h| against sup |G|, {world.name}, n = {n:.0e}",
                        found * math.sqrt(n),
                        predicted,
                        0.05,
                    )
                )
            for series, y in (("95 % quantile", quantile), ("bound", bound.value)):
                tables.setdefault(world.name, []).extend(curve([n], [y], series))
            tables[world.name] += curve([n], [predicted / math.sqrt(n)], "predicted")
        fall = rate(np.array(sizes), np.array(deviations), seed=seed)
        slopes.append(fall.slope)
        lines.append(
            rate_equal(
                f"slope of sup |OT_h(n) - OT_h|, {world.name}",
                fall.slope,
                fall.low - 0.01,  # what the smallest size adds
                fall.high + 0.01,
                claimed,
            )
        )
    return conclude(
        f"bound/quantile {min(ratios):.3g} to {max(ratios):.3g}; slopes"
        f" {', '.join(f'{slope:.3f}' for slope in slopes)}",
        lines,
        {
            name: panel(rows, "sample size n", "sup |OT_h(n) - OT_h|", log="xy")
            for name, rows in tables.items()
        },
    )


def _potentials(world: _World, grid: Array) -> tuple[Array, Array]:
    """phi (T, K) and psi (T, M) at every theta of a grid (T, d)."""
    pairs = [
        potentials(world.chosen @ theta, world.rejected @ theta, logistic, BETA, world.p, world.q)
        for theta in grid
    ]
    return np.array([phi for phi, _ in pairs]), np.array([psi for _, psi in pairs])


def _bound(world: _World, n: float) -> AotDeviation:
    sides = []
    for atoms, chance in ((world.chosen, world.p), (world.rejected, world.q)):
        centred = atoms - chance @ atoms
        spread = np.linalg.eigvalsh(centred.T @ (chance[:, None] * centred))[-1]
        sides.append(Side(n, float(np.linalg.norm(atoms, axis=1).max()), float(spread)))
    return aot_deviation(
        *sides,
        dimension=world.chosen.shape[1],
        bound=world.bound,
        lipschitz=BETA,
        delta=DELTA,
    )


CLAIMS = (
    Claim(
        "aot-law",
        "derived; docs/theorems/aot.md, Theorem F5",
        "AOT: sqrt(n) (theta_n - theta*) -> N(0, H^-1 S H^-1), also on the bound",
        "The minimiser of the sample's OT_h is asymptotically normal with the covariance of"
        " aot_law: S is that of the gradients of the Kantorovich potentials, H the curvature, on"
        " the tangent space of the bound where theta* is there. n times the excess has the law of"
        " the quadratic form.",
        "Finitely many atoms, one minimiser, different rewards there, no part of the chosen mass"
        " equal to a part of the rejected mass; pairs independent of each other, the two responses"
        " of a pair dependent or not. h logistic.",
        "Finite worlds, one with its minimiser on the bound, one whose pairs are dependent; many"
        " samples, minimised from random starts without the population's minimiser: 95 % quantile"
        " of the distance and mean of the excess over the predicted ones.",
        "A 99 % interval of a ratio outside 1 ± 5 % at n = 1e6, or ± 10 % at 1e4. A variance 1.5"
        " times as large, an exponent off by 0.1, or pairs taken to be independent do that.",
        aot_limit_law,
        Kind.DERIVED,
    ),
    Claim(
        "aot-deviation",
        "derived; docs/theorems/aot.md, Theorem H1",
        "AOT: sup over theta of |OT_h(n) - OT_h| is O(n^-1/2), with constants and with its law",
        "With probability at least 1 - delta the sample's objective is near the population's for"
        " every theta at once, and the excess of its minimiser small, by aot_deviation; sqrt(n)"
        " times the deviation has the law of the largest |phi_theta·Z + psi_theta·Z'|, Z and Z'"
        " normal.",
        "Linear rewards, ||theta|| <= B, bounded features, independent samples, h convex and"
        " Lipschitz; for the law, finitely many atoms without equal masses of parts.",
        "Finite worlds, the largest deviation over a cover of the ball and its sphere; coverage,"
        " bound over quantile, quantile over the predicted one, and slope. The inequality behind"
        " the lower side is checked on every sample.",
        "A failure rate surely above delta; a quantile off the predicted one by more than 5 %; a"
        " slope whose interval leaves out -1/2. The predicted law times 1.5 and the exponent -0.6"
        " do that.",
        aot_uniform_deviation,
        Kind.DERIVED,
    ),
)
