"""Dominance against exact fractions, other implementations of the same integrals, the jackknife,
and what must hold under a change of units."""

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import ksone

from theory.stochastic_dominance import Dominance, band_width, dominance
from theory.transport import first_order_violation, second_order_violation

REWARDS = st.lists(st.integers(-20, 20), min_size=2, max_size=9)


def fractions_of(u: list[int], v: list[int]) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    """Violation and violation of squares, over all squares, of both orders, on the common
    levels."""
    n, m = len(u), len(v)
    count = math.lcm(n, m)
    up, low = sorted(u), sorted(v)
    gap = [Fraction(up[k * n // count] - low[k * m // count]) for k in range(count)]
    D = [Fraction(0)]
    for g in gap:
        D.append(D[-1] + g / count)

    def segment(a: Fraction, b: Fraction, power: int) -> Fraction:
        """int of (-x)_+^power over the segment from a to b, as if of length 1."""
        if a >= 0 and b >= 0:
            return Fraction(0)
        if a <= 0 and b <= 0:
            return sum((-a) ** j * (-b) ** (power - j) for j in range(power + 1)) / Fraction(
                power + 1
            )
        low = min(a, b)
        return -low / abs(b - a) * (-low) ** power / (power + 1)

    pairs = list(pairwise(D))
    first, second = sum(max(-g, 0) for g in gap) / count, sum(segment(*p, 1) for p in pairs) / count
    all_first = sum(g**2 for g in gap)
    all_second = sum(segment(*p, 2) + segment(-p[0], -p[1], 2) for p in pairs)
    ratio = sum(max(-g, 0) ** 2 for g in gap) / all_first if all_first else Fraction(-1)
    ratio_2 = sum(segment(*p, 2) for p in pairs) / all_second if all_second else Fraction(-1)
    return first, ratio, second, ratio_2


@given(REWARDS, REWARDS)
def test_exact_fractions(u: list[int], v: list[int]) -> None:
    found = dominance(u, v, low=-20, high=20)
    first, ratio, second, ratio_2 = (float(x) for x in fractions_of(u, v))
    assert found.first.violation == pytest.approx(first, abs=1e-12)
    assert found.second.violation == pytest.approx(second, abs=1e-12)
    for at, truth in ((found.first, ratio), (found.second, ratio_2)):
        if truth < 0:
            assert at.ratio is None or sorted(u) != sorted(v)
        else:
            assert at.ratio == pytest.approx(truth, abs=1e-9)


def test_the_functionals_of_theory_transport_say_the_same() -> None:
    rng = np.random.default_rng(0)
    u, v = rng.normal(0.2, 1, 57), rng.normal(0, 1.4, 83)
    found = dominance(u, v)
    for at, functional in (
        (found.first, first_order_violation),
        (found.second, second_order_violation),
    ):
        one, other = torch.from_numpy(u), torch.from_numpy(v)
        assert at.violation == pytest.approx(functional(one, other).item(), rel=1e-12)
        part, rest = functional(one, other, power=2), functional(-one, -other, power=2)
        if at is found.first:  # of -u over -v: where u exceeds v
            assert at.ratio == pytest.approx((part / (part + rest)).item(), rel=1e-12)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, None), (None, 1), (None, None)])
def test_the_certificate_by_its_definition(low: float | None, high: float | None) -> None:
    """Quantiles by numpy, at the midpoints of many levels."""
    rng = np.random.default_rng(1)
    u, v = rng.beta(2, 2, 80), rng.beta(2, 1.5, 150)
    found = dominance(u, v, low=low, high=high)
    e, f = (math.sqrt(math.log(40) / (2 * n)) for n in (80, 150))
    assert found.band == pytest.approx((e, f))
    assert found.levels == pytest.approx((0 if low == 0 else e, 1 if high == 1 else 1 - f))
    s = (np.arange(400_000) + 0.5) / 400_000
    ours = np.where(s > e, np.quantile(u, np.clip(s - e, 1e-12, 1), method="inverted_cdf"), 0.0)
    theirs = np.where(s < 1 - f, np.quantile(v, np.clip(s + f, 0, 1), method="inverted_cdf"), 1.0)
    here = (s > found.levels[0]) & (s < found.levels[1])
    gap = (theirs - ours) * here
    assert found.first.certificate == pytest.approx(np.maximum(gap, 0).mean(), abs=1e-4)
    if (low, high) == (0, 1):
        integral = gap.cumsum() / len(s)
        assert found.second.certificate == pytest.approx(np.maximum(integral, 0).mean(), abs=1e-4)
    else:
        assert found.second.certificate is None


@given(st.integers(0, 40), st.integers(0, 60))
def test_two_rewards_by_hand(ones: int, others: int) -> None:
    u, v = np.arange(40) < ones, np.arange(60) < others
    found = dominance(u, v, low=0.0, high=1.0)
    e, f = found.band
    upper = min(others / 60 + f, 1) - max(ones / 40 - e, 0)
    assert found.first.certificate == pytest.approx(max(upper, 0.0), abs=1e-12)
    assert found.first.violation == pytest.approx(max(others / 60 - ones / 40, 0.0), abs=1e-12)


@settings(deadline=None)
@given(
    st.lists(st.integers(-50, 50), min_size=3, max_size=12),
    st.lists(st.integers(-50, 50), min_size=3, max_size=12),
    st.sampled_from([0.25, 2.0, 16.0]),
    st.integers(-8, 8),
    st.randoms(use_true_random=False),
)
def test_units_and_order_do_not_matter(
    u: list[int], v: list[int], scale: float, shift: int, random: Any
) -> None:
    one = dominance(u, v, low=-50, high=50)
    moved = [[scale * x + shift for x in random.sample(side, len(side))] for side in (u, v)]
    two = dominance(*moved, low=-50 * scale + shift, high=50 * scale + shift)
    for a, b in ((one.first, two.first), (one.second, two.second)):
        assert b.violation == pytest.approx(scale * a.violation, abs=1e-9)
        assert b.certificate == pytest.approx(scale * a.certificate, abs=1e-9)
        assert (a.ratio is None) == (b.ratio is None)
        if a.ratio is not None:
            assert b.ratio == pytest.approx(a.ratio, abs=1e-9)
        if a.interval is not None and b.interval is not None:
            assert b.interval == pytest.approx(a.interval, abs=1e-6)
    back = dominance(v, u, low=-50, high=50)
    if one.first.ratio is not None:
        assert one.first.ratio + back.first.ratio == pytest.approx(1)


def _log_odds_error(found: Dominance, order: str) -> float:
    at = getattr(found, order)
    low, high = (math.log(x / (1 - x)) for x in at.interval)
    return (high - low) / 2 / 1.959964 * at.ratio * (1 - at.ratio)


@pytest.mark.some(2)
@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("cluster", [0, 1, 3])
def test_standard_errors_are_those_of_the_jackknife(order: str, cluster: int) -> None:
    """Independent samples (cluster 0): the jackknife of each side; pairs and clusters: that of the
    pairs or clusters."""
    rng = np.random.default_rng(3)
    n = 600 if cluster == 3 else 300
    group = np.arange(n) // max(cluster, 1)
    u = rng.normal(0.35, 1.5, n)[group]
    v = 0.5 * u + rng.normal(0, 1, n)

    def ratio(keep_u: np.ndarray, keep_v: np.ndarray) -> float:
        found = getattr(dominance(u[keep_u], v[keep_v]), order).ratio
        assert found is not None
        return float(found)

    def jackknife(values: list[float]) -> float:
        x = np.array(values)
        return (len(x) - 1) / len(x) * float(((x - x.mean()) ** 2).sum())

    everything = np.ones(n, bool)
    if cluster:
        found = dominance(u, v, paired=True, clusters=group if cluster > 1 else None)
        variance = jackknife([ratio(group != k, group != k) for k in np.unique(group)])
    else:
        found = dominance(u, v)
        leave = [np.arange(n) != k for k in range(n)]
        variance = jackknife([ratio(keep, everything) for keep in leave])
        variance += jackknife([ratio(everything, keep) for keep in leave])
    # they agree to the order of one over the number of clusters, 200 of three
    near = 0.15 if cluster == 3 else 0.08
    assert _log_odds_error(found, order) == pytest.approx(math.sqrt(variance), rel=near)


def test_clusters_count_the_same_whatever_their_size() -> None:
    """A cluster of five copies is a cluster of one; its band comes from the number of clusters."""
    rng = np.random.default_rng(4)
    u, v = rng.normal(0.2, 1.5, 40), rng.normal(0, 1, 40)
    label = np.concatenate([np.arange(40), np.repeat([3, 7], 4)])
    found = dominance(u[label], v[label], clusters=label)
    single = dominance(u, v, paired=True)
    assert found.first.violation == pytest.approx(single.first.violation)
    assert found.first.interval == pytest.approx(single.first.interval)
    assert found.band == pytest.approx((band_width(40, 0.025, clustered=True),) * 2)
    assert found.band[0] > 1.1 * single.band[0]
    assert single.band[0] == pytest.approx(band_width(40, 0.025))


@pytest.mark.parametrize("delta", [0.005, 0.025, 0.2])
def test_the_clustered_band_by_quadrature(delta: float) -> None:
    n = 70
    e = band_width(n, delta, clustered=True)
    starts = np.linspace(math.sqrt(math.log(2) / (2 * n)), e * 0.999, 2000)
    chances = [quad(lambda s: math.exp(-2 * n * s**2), a, 1)[0] / (e - a) for a in starts]
    assert min(chances) == pytest.approx(delta, rel=1e-4)
    # Smirnov's exact law: a band from single draws would do with less
    assert ksone.sf(e, n) < ksone.sf(band_width(n, delta), n) <= delta


def test_where_the_bands_hold_the_certificate_holds() -> None:
    """No probability: 400 random laws on a few points, samples, and bands so narrow that they often
    fail. Truth by the functionals of theory.transport."""
    rng = np.random.default_rng(5)
    held, closest = 0, math.inf
    for _ in range(400):
        points = np.unique(rng.integers(0, 9, 5)) / 8
        p, q = (rng.dirichlet(np.ones(len(points))) for _ in range(2))
        counts = rng.multinomial(int(rng.integers(2, 30)), p), rng.multinomial(25, q)
        u, v = (np.repeat(points, count) for count in counts)
        found = dominance(u, v, level=0.05, low=0.0, high=1.0)
        laws = (x.cumsum() for x in (p, q))
        samples = (count.cumsum() / count.sum() for count in counts)
        (over, _), (_, under) = (
            ((F - Fn).max(), (Fn - F).max()) for F, Fn in zip(laws, samples, strict=True)
        )
        if over > found.band[0] or under > found.band[1]:
            continue
        held += 1
        atoms = torch.from_numpy(points)
        for at, functional in (
            (found.first, first_order_violation),
            (found.second, second_order_violation),
        ):
            truth = functional(atoms, atoms, torch.from_numpy(p), torch.from_numpy(q)).item()
            assert at.certificate >= truth - 1e-12
            closest = min(closest, at.certificate - truth)
    assert 50 < held < 350 and closest < 0.02


def test_the_certificate_from_pairs_by_hand() -> None:
    """Every gap is 0.1 or -0.1; 401 pairs, level 0.9; clusters of two pairs, one gap each way."""
    u = np.full(401, 0.5)
    v = np.where(np.arange(401) % 2, 0.6, 0.4)
    found = dominance(u, v, low=0.0, high=1.0, level=0.9, paired=True)
    share = math.log(20)
    width = math.sqrt(2 * 0.01 * 401 / 400 * share / 401) + 14 * share / 1200
    assert found.from_pairs == pytest.approx(200 / 401 * 0.1 + width)
    label = np.arange(401) // 2
    found = dominance(u, v, low=0.0, high=1.0, level=0.9, clusters=label)
    width = math.sqrt(2 * 0.01 * 201 / 200 * share / 201) + 14 * share / 600
    assert found.from_pairs == pytest.approx(100 / 201 * 0.1 + width)
    assert dominance(u, v, low=0.0, high=1.0).from_pairs is None
    assert dominance(u, v, low=0.0, paired=True).from_pairs is None


def test_pairs_that_hardly_differ_are_certified_better() -> None:
    rng = np.random.default_rng(0)
    u = rng.random(20_000)
    v = np.clip(u + rng.normal(0, 0.02, 20_000), 0, 1)
    found = dominance(u, v, low=0.0, high=1.0, paired=True)
    assert found.from_pairs < found.first.certificate / 5


def test_few_rewards_without_bounds_have_no_certificate() -> None:
    """Seven rewards have bands of width 0.51: no level is away from both ends."""
    found = dominance(np.arange(7), np.arange(7) - 1)
    assert found.first.certificate is None and found.levels[0] == found.levels[1]
    assert found.first.violation == 0
    assert dominance(np.arange(8), np.arange(8) - 1).first.certificate is not None


def test_dominance_and_its_opposite() -> None:
    u = np.linspace(0.5, 1, 3000)
    found = dominance(u, u - 0.4, low=0.0, high=1.0)
    assert found.first.violation == 0 and found.first.ratio == 0 and found.first.interval is None
    # below the band's width the chosen rewards may be 0, the rejected ones 0.1 + ...: by hand
    assert found.first.certificate < 0.012
    worse = dominance(u - 0.4, u, low=0.0, high=1.0)
    assert worse.first.ratio == 1 and worse.first.violation == pytest.approx(0.4)
    assert worse.first.certificate > 0.4
    same = dominance(u, u)
    assert same.first.ratio is None and same.first.interval is None and same.second.ratio is None


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"chosen": [1.0]}, "at least two rewards"),
        ({"chosen": [[1.0, 2.0]]}, "at least two rewards"),
        ({"rejected": [1.0, math.nan, 2.0]}, "1 entries that are NaN"),
        ({"low": 0.0, "rejected": [1.0, -2.0, 3.0]}, "-2 beyond the bound 0"),
        ({"high": 2.0}, "3 beyond the bound 2"),
        ({"level": 1.0}, "level"),
        ({"paired": True, "rejected": [1.0, 2.0]}, "3 chosen and 2 rejected"),
        ({"clusters": [1, 1, 1]}, "at least 2 different"),
        ({"clusters": [1, 2]}, "label for each of the 3"),
        ({"level": "0.95"}, "level must be"),
        ({"chosen": [1.7e308, 1.0, 2.0]}, r"magnitude 1.7e\+308"),
        ({"low": -math.inf}, "low and high must be finite"),
        ({"high": math.nan}, "low and high must be finite"),
        ({"clusters": [math.nan, 1.0, 2.0]}, "without missing ones"),
        ({"clusters": [None, "a", "b"]}, "without missing ones"),
        ({"clusters": [None, None, None]}, "without missing ones"),
    ],
)
def test_what_is_refused(how: dict[str, Any], message: str) -> None:
    given = {"chosen": [1.0, 2.0, 3.0], "rejected": [0.0, 1.0, 2.0]} | how
    with pytest.raises(ValueError, match=message):
        dominance(given.pop("chosen"), given.pop("rejected"), **given)


@pytest.mark.parametrize("unit", [1e-300, 1e-200, 1e200, 1e307])
def test_the_ratio_has_no_unit(unit: float) -> None:
    """Its squares would vanish or overflow: no NaN, and no two samples that count as equal."""
    rng = np.random.default_rng(0)
    u, v = rng.random(30), rng.random(30)
    usual, other = dominance(u, v), dominance(u * unit, v * unit)
    for order in ("first", "second"):
        at, there = getattr(usual, order), getattr(other, order)
        assert there.ratio == pytest.approx(at.ratio, rel=1e-9)
        assert there.interval == pytest.approx(at.interval, rel=1e-6)
        assert there.violation == pytest.approx(at.violation * unit, rel=1e-9)


def test_the_certificate_from_pairs_is_at_most_the_range() -> None:
    assert dominance([0.0, 1.0], [1.0, 0.0], low=0.0, high=1.0, paired=True).from_pairs == 1.0
