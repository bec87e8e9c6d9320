"""Claims of our own on dominance of held-out rewards: the certificate and the interval. Theorems
H2 and H3 of docs/theorems/aot.md."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import logit, ndtr
from scipy.stats import ksone, kstwo, norm

from theory.claims.ledger import (
    Claim,
    Finding,
    Kind,
    Measurement,
    Row,
    conclude,
    coverage,
    curve,
    inequality,
    panel,
    pick,
)
from theory.claims.predictions import predicted_quantile
from theory.functionals import aot_unpaired
from theory.losses import logistic
from theory.policy import Array
from theory.spectra import exponential, lower_tail, spectral_mean
from theory.stochastic_dominance import band_width, dominance
from theory.transport import first_order_violation

LEVEL = 0.95
DELTA = 1 - LEVEL
_CLUSTER = 4  # pairs in a cluster


@dataclass(frozen=True)
class _Laws:
    """Quantile functions of chosen and rejected rewards in [0, 1], and the correlation of the
    normal scores of a pair."""

    name: str
    chosen: Callable[[Array], Array]
    rejected: Callable[[Array], Array]
    correlation: float

    def draw(self, rng: np.random.Generator, n: int, cluster: int = 1) -> tuple[Array, Array]:
        """n pairs; those of a cluster have equal rewards."""
        one, other = np.repeat(rng.standard_normal((2, n // cluster)), cluster, axis=1)
        partner = self.correlation * one + math.sqrt(1 - self.correlation**2) * other
        return self.chosen(ndtr(one)), self.rejected(ndtr(partner))

    def truth(self) -> tuple[float, float, float, float]:
        """Violation and ratio of the first order, and of the second, by the midpoint rule."""
        t = (np.arange(200_000) + 0.5) / 200_000
        gap = self.chosen(t) - self.rejected(t)
        integral = (gap.cumsum() - gap / 2) / len(t)
        found = []
        for D in (gap, integral):
            below, everything = np.minimum(D, 0), (D**2).mean()
            found += [-below.mean(), (below**2).mean() / everything if everything > 0 else 0.0]
        return tuple(found)


def _laws() -> list[_Laws]:
    return [
        _Laws("chosen dominates", _power(4.0, 2.0), _power(1.5, 3.0), 0.5),
        _Laws("curves cross", _power(1.2, 1.0), _power(2.0, 2.2), 0.5),
        _Laws("equal laws, opposite ranks", _power(2.0, 2.0), _power(2.0, 2.0), -1.0),
        _Laws("two rewards", _coin(0.5), _coin(0.6), -1.0),
    ]


def _power(a: float, b: float) -> Callable[[Array], Array]:
    """Quantiles of the law of Kumaraswamy on [0, 1], F(x) = 1 - (1 - x^a)^b."""
    return lambda t: (1 - (1 - t) ** (1 / b)) ** (1 / a)


def _coin(chance: float) -> Callable[[Array], Array]:
    return lambda t: (t > 1 - chance).astype(float)


def dominance_certificate(
    profile: str, seed: int, *, band: float = 1.0, error: float = 1.0, clustered: bool = True
) -> Finding:
    """Theorems H2 and H3: the bands times `band` hold with probability 0.95, and with them the
    certificate; the interval's standard error is right times `error`; `clustered=False` takes every
    pair of a cluster for a draw of its own."""
    rng = np.random.default_rng(seed)
    lines = _bands(band)
    lines += _clusters(rng, pick(profile, 1500, 4000, 20000), band, clustered)
    tables: dict[str, list[Row]] = {}
    sizes = pick(profile, (100,), (50, 400, 2000), (50, 400, 2000, 10000))
    replicates = pick(profile, 100, 100, 1000)
    quantile = float(norm.isf(DELTA / 2))
    widths = []
    for laws in _laws():
        violation, ratio, violation_2, ratio_2 = laws.truth()
        for n in sizes:
            draws = [laws.draw(rng, n) for _ in range(replicates)]
            found = [dominance(*pair, low=0.0, high=1.0, paired=True) for pair in draws]
            for order, truth in (("first", violation), ("second", violation_2)):
                certified = np.array([getattr(one, order).certificate for one in found])
                lines.append(
                    coverage(
                        f"certificate of {order} order, {laws.name}, n = {n}",
                        int((certified < truth - 1e-9).sum()),
                        replicates,
                        DELTA,
                        ratio=float(np.median(certified)) / truth if truth > 1e-9 else None,
                    )
                )
                if order == "first":
                    own_pairs = np.array([one.from_pairs for one in found])
                    lines.append(
                        coverage(
                            f"certificate from pairs, {laws.name}, n = {n}",
                            int((own_pairs < truth - 1e-9).sum()),
                            replicates,
                            DELTA,
                            ratio=float(np.median(own_pairs)) / truth if truth > 1e-9 else None,
                        )
                    )
                    middle = float(np.median(certified))
                    own = float(np.median([one.first.violation for one in found]))
                    widths.append(float(np.median(certified - own)) * math.sqrt(n))
                    table = tables.setdefault(laws.name, [])
                    table += curve([n], [middle], "certificate") + curve([n], [own], "sample")
                    table += curve([n], [float(np.median(own_pairs))], "certificate from pairs")
                    table += curve([n], [violation], "law")
        if 1e-3 < ratio < 1 - 1e-3 and laws.name == "curves cross":
            lines += _interval_errors(laws, (ratio, ratio_2), profile, rng, quantile, error)
    return conclude(
        f"certificate less the sample's violation: {min(widths):.2g} to {max(widths):.2g} times"
        " n^-1/2, for rewards in [0, 1]",
        lines,
        {
            name: panel(rows, "pairs n", "violation of the first order", log="x")
            for name, rows in tables.items()
        },
    )


def _bands(band: float) -> list[Measurement]:
    """Failure rates of the bands for continuous laws, which are exact: of one band, and of both
    where the rejected rewards are the chosen ones, the worst dependence."""
    lines = []
    for what, law, allowed in (
        ("one band", ksone, DELTA / 2),
        ("both bands, the two samples equal", kstwo, DELTA),
    ):
        ratios = {
            n: allowed / float(law.sf(band * band_width(n, DELTA / 2), n))
            for n in (10, 100, 1000, 10000)
        }
        n = min(ratios, key=lambda size: ratios[size])
        example = f"n = {n}: exact failure probability {allowed / ratios[n]:.4g}, allowed {allowed}"
        lines.append(inequality(f"allowed/exact failure rate, {what}", ratios[n], example))
    return lines


def _clusters(
    rng: np.random.Generator, replicates: int, band: float, clustered: bool
) -> list[Measurement]:
    """One band from clusters of uniform rewards, equal or correlated within a cluster."""
    lines = []
    clusters = 50
    n = clusters * _CLUSTER
    width = band_width(clusters, DELTA, clustered=True) if clustered else band_width(n, DELTA)
    for correlation in (0.5, 1.0):
        shared, own = (rng.standard_normal((replicates, clusters, k)) for k in (1, _CLUSTER))
        scores = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
        ordered = np.sort(ndtr(scores).reshape(replicates, n), axis=1)
        off = (ordered - np.arange(n) / n).max(1)  # sup of F - F_n, just before an atom
        lines.append(
            coverage(
                f"a band from {clusters} clusters of {_CLUSTER}, correlation {correlation:g}",
                int((off > band * width).sum()),
                replicates,
                DELTA,
                counterexample="the band fails too often",
            )
        )
    return lines


def _interval_errors(
    laws: _Laws,
    truth: tuple[float, float],
    profile: str,
    rng: np.random.Generator,
    quantile: float,
    error: float,
) -> list[Measurement]:
    """Standardised errors of the two ratios, on the scale of log-odds, against the normal law:
    pairs, and clusters of equal pairs."""
    lines = []
    replicates = pick(profile, 250, 350, 4000)
    for cluster in (1, _CLUSTER):
        n = pick(profile, 1000, 2000, 10000) * cluster
        label = np.arange(n) // cluster
        errors: dict[str, list[float]] = {"first": [], "second": []}
        for _ in range(replicates):
            pair = laws.draw(rng, n, cluster)
            found = dominance(*pair, clusters=label if cluster > 1 else None, paired=True)
            for (order, list_of), ratio in zip(errors.items(), truth, strict=True):
                at = getattr(found, order)
                if at.interval is None:
                    list_of.append(math.inf)
                    continue
                deviation = (logit(at.interval[1]) - logit(at.interval[0])) / 2 / quantile
                list_of.append(abs(logit(at.ratio) - logit(ratio)) / (error * deviation))
        for order, list_of in errors.items():
            lines.append(
                predicted_quantile(
                    f"standardised error of the ratio of {order} order, {n // cluster} clusters of"
                    f" {cluster}",
                    np.array(list_of),
                    quantile,
                    0.1,
                )
            )
    return lines


def spectral_risk(profile: str, seed: int, *, factor: float = 1.0) -> Finding:
    """Spectral means of V over those of U, against the weighted violations of dominance of V by U,
    each bound times `factor`."""
    count = pick(profile, 300, 2000, 20_000)
    rng = np.random.default_rng(seed)
    share, rate = 0.25, 3.0
    weigh, tail = exponential(rate), lower_tail(share)
    density = rate * math.exp(-rate * share) / -math.expm1(-rate)  # of `weigh` at the share
    closest = dict.fromkeys(("first", "others", "second", "surrogate"), math.inf)
    examples = dict.fromkeys(closest, "")
    for index in range(count):
        n, m = rng.integers(1, 9, size=2)
        u, v = rng.normal(size=n), rng.normal(0.5, 1, size=m)
        if index % 3 == 0:  # below V at every level, where the first bound is met
            u, v = np.sort(v) - rng.exponential(size=m), np.sort(v)
        elif (
            index % 30 == 1
        ):  # only at the levels next to the share, where the second one nearly is
            u = np.arange(400.0)
            v = u + (np.arange(400) == 99)
        one, two = torch.from_numpy(u), torch.from_numpy(v)
        worse, worse_tail = (
            (spectral_mean(two, w) - spectral_mean(one, w)).item() for w in (weigh, tail)
        )
        violation = first_order_violation(one, two, spectrum=weigh).item()
        beta = float(rng.choice([0.3, 1.0, 30.0]))
        trained = aot_unpaired(one, two, logistic, beta, spectrum=weigh).item() / beta
        reach = _integrated_shortfall(u, v)
        top = rate / -math.expm1(-rate)  # the spectrum at level 0, the largest it has
        for name, bound, value in (
            ("first", violation, worse),
            ("others", violation / share / density, worse_tail),
            ("second", top * reach, worse),
            ("second", reach / share, worse_tail),
            ("surrogate", trained, worse),
        ):
            if value > 1e-9 and factor * bound < closest[name] * value:
                closest[name] = factor * bound / value
                examples[name] = f"u {u[:8].round(4).tolist()}, v {v[:8].round(4).tolist()}"
    lines = [
        inequality(f"{what}: bound over difference", closest[name], examples[name])
        for name, what in (
            ("first", "the weighted violation, for its own spectrum"),
            ("others", "times the largest ratio of the spectra, for CVaR's"),
            ("second", "largest shortfall of the integrated quantiles times w(0), for falling w"),
            ("surrogate", "the trained objective with the logistic cost, over beta"),
        )
    ]
    figure = ", ".join(f"{name} {ratio:.4g}" for name, ratio in closest.items())
    return conclude(f"bound/difference at least: {figure}", lines)


def _integrated_shortfall(u: Array, v: Array) -> float:
    """sup over levels of the integral from 0 of Q_V - Q_U, met where one of them jumps."""
    levels = np.unique(np.concatenate([np.arange(len(x) + 1) / len(x) for x in (u, v)]).round(12))
    cumulated = [
        np.interp(levels, np.arange(len(x) + 1) / len(x), np.r_[0, np.sort(x).cumsum()] / len(x))
        for x in (u, v)
    ]
    return float((cumulated[1] - cumulated[0]).max())


CLAIMS = (
    Claim(
        "spectral-risk",
        "derived; cf. arXiv:2603.10938v1, abstract",
        "weighted violations of dominance bound what any spectral risk loses",
        "For a spectrum w, M_w(V) - M_w(U) is at most the violation of first-order dominance with"
        " the levels weighed by w; for any other spectrum, at most that times the largest ratio of"
        " the two; and at most the trained objective, transport with the logistic cost weighed by"
        " w, divided by beta. For every w that falls, M_w(V) - M_w(U) is at most w(0) times the"
        " largest shortfall of the integrated quantiles, the violation of second-order dominance.",
        "Finite samples; for other spectra, w > 0 where they are.",
        "Random samples of unequal sizes, one in three everywhere below the other, one in thirty"
        " only next to the level of CVaR's share; exponential and CVaR's spectra, exactly.",
        "A bound below the difference. Bounds times 0.98 do that.",
        spectral_risk,
        Kind.DERIVED,
    ),
    Claim(
        "dominance-certificate",
        "derived; docs/theorems/aot.md, Theorems H2, H2' and H3",
        "held-out rewards certify dominance, up to a violation, for any law",
        "With probability at least 1 - delta the violation of first-order dominance, and that of"
        " the second order, is at most the certificate of `dominance`, at every n and for every"
        " law in [low, high], whatever the dependence between the two samples; a band from"
        " clusters costs a little more, and pairs give another certificate. The ratio of almost"
        " stochastic dominance is asymptotically normal with the standard error behind its"
        " interval.",
        "Draws, or clusters, independent within each sample; rewards in [low, high]. For the"
        " interval: large samples, positive densities, curves that cross.",
        "Exact failure rates of the bands; simulated ones of the certificate, for laws that"
        " dominate, cross, are equal and are two-point, with dependent pairs; of bands from"
        " clusters; standardised errors of the ratios against the normal law.",
        "A failure rate surely above 5 %, or a 95 % quantile of the standardised errors whose 99 %"
        " interval is more than 10 % off. Bands divided by 1.1, standard errors divided by 1.5, or"
        " clusters taken for single pairs do that.",
        dominance_certificate,
        Kind.DERIVED,
    ),
)
