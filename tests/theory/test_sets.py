"""Every ambiguity set of the registry: its estimator, collapse size and worst case against its
twin, and the rules that all of them keep. A set that is added is met here without a change."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch

import prefdro
import theory
from tests.theory.instances import DATA, Data, example_size
from theory import KL, collapse_radius, fit, worst_case
from theory.batch import pair_batch
from theory.fitting import dpo
from theory.losses import dpo_loss
from theory.sets import EXPORTS, SETS, AmbiguitySet
from theory.twins import knowledge, twins

pytestmark = pytest.mark.filterwarnings("ignore::theory.twins.certified.SolverFallback")
TWINS = twins()
CONVEX = [name for name, set in SETS.items() if set.facts.convex]
EXACT = [name for name, set in SETS.items() if set.facts.exact]
FRACTIONS = (0.05, 0.5, 0.95, 1.5)
INSTANCES = DATA[::3]


def there(name: str, data: Data) -> AmbiguitySet:
    return SETS[name].in_metric(data.distance, data.label_cost)


def sizes(name: str, data: Data) -> list[float]:
    """Sizes between the data alone and beyond collapse; where nothing collapses some of each."""
    set = there(name, data)
    if not set.facts.exact:
        return [0.1, 0.5, 2.0]
    edge = collapse_radius(data.u, set, data.p).item()
    if set.facts.grows:
        reach = edge - set.smallest if 1e-9 < edge - set.smallest < np.inf else 0.3
        wanted = [example_size(set, f * reach) for f in FRACTIONS]
        return [min(size, 0.999) if name == "tv" else size for size in wanted]
    reach = 1 / edge - 1 if edge > 0 else 2.0
    return [1 / (1 + f * reach) for f in FRACTIONS]


def test_every_convex_set_has_a_twin_and_no_twin_is_without_a_set() -> None:
    assert set(TWINS) == set(CONVEX)
    assert all(TWINS[name].collapse for name in EXACT)


@pytest.mark.some(36)
@pytest.mark.parametrize("data", INSTANCES, ids=lambda data: data.name)
@pytest.mark.parametrize("name", CONVEX)
def test_fits_against_the_twin(name: str, data: Data) -> None:
    """Clarabel's nine digits where the twin has no certificate of its own."""
    kind, problem = there(name, data), {"beta": data.beta, "bound": data.bound}
    wanted = sizes(name, data)
    found = fit(data.u, kind.sized(wanted), data.p, theta_ref=data.theta_ref, **problem)
    assert found.theta.shape == (len(wanted), data.u.shape[1]) and found.converged.all()
    assert (found.gap <= 1e-10 * found.value.clamp(min=1)).all()
    for r, size in enumerate(wanted):
        theta, value, gap = TWINS[name].fit(
            data.u, data.p, size, theta_ref=data.theta_ref, **problem, **knowledge(kind)
        )
        ours, room = found.value[r].item(), 3e-7 * max(value, 1.0)
        own = found.gap[r].item() if np.isfinite(gap) else room
        assert ours - value <= own + 1e-12 and value - ours <= min(gap, room) + 1e-12, size
        assert np.linalg.norm(theta) <= data.bound * (1 + 1e-6)


@pytest.mark.some(3)
@pytest.mark.parametrize("name", EXACT)
def test_collapse_against_the_twin_and_the_fits(name: str) -> None:
    for data in INSTANCES:
        kind = there(name, data)
        edge, program = collapse_radius(data.u, kind, data.p).item(), TWINS[name].collapse
        assert program is not None
        assert edge == pytest.approx(program(data.u, data.p, **knowledge(kind)), rel=1e-5, abs=1e-7)
        if not 1e-6 < edge - kind.smallest * kind.facts.grows < np.inf:
            continue
        near, far = (
            (kind.scaled(edge, 0.99), kind.scaled(edge, 1.01))
            if kind.facts.grows
            else (edge * 1.01, edge * 0.99)
        )
        common = {"beta": data.beta, "bound": data.bound}
        inside, beyond = (
            fit(data.u, kind.sized(size), data.p, **common) if size <= 1 or name != "cvar" else None
            for size in (near, far)
        )
        assert inside is None or not inside.collapsed
        assert beyond is not None and beyond.collapsed and beyond.theta.norm() == 0
        assert beyond.value.item() == pytest.approx(np.log(2), rel=1e-12)


@pytest.mark.some(3)
@pytest.mark.parametrize("name", EXACT)
def test_the_worst_case_at_a_fit_is_its_value_and_no_other_theta_is_better(name: str) -> None:
    rng = np.random.default_rng(0)
    for data in INSTANCES[:8]:
        kind, common = there(name, data), {"beta": data.beta, "theta_ref": data.theta_ref}
        size = sizes(name, data)[1]
        found = fit(data.u, kind.sized(size), data.p, bound=data.bound, **common)
        at = worst_case(data.u, found.theta, kind.sized(size), data.p, **common)
        assert at.converged and at.value == pytest.approx(found.value.item(), rel=1e-9, abs=1e-12)
        twin = TWINS[name].worst
        if twin is not None:
            w = found.theta.numpy() - (0 if data.theta_ref is None else data.theta_ref)
            losses = np.logaddexp(0, -data.beta * data.u @ w)
            assert at.value == pytest.approx(twin(losses, data.p, size), rel=1e-6)
        for _ in range(5):
            theta = found.theta.numpy() + 0.1 * rng.normal(size=len(found.theta))
            theta *= min(1.0, data.bound / np.linalg.norm(theta))
            other = worst_case(data.u, theta, kind.sized(size), data.p, **common)
            assert other.value >= at.value - 1e-10


@pytest.mark.parametrize("name", [name for name in EXACT if SETS[name].facts.reweights])
def test_the_smallest_set_is_the_data_and_sizes_order_the_values(name: str) -> None:
    data, kind = DATA[0], SETS[name]
    grid = kind.range(np.linspace(0, 1, 6))
    found = fit(data.u, kind.sized(grid), data.p, beta=data.beta, bound=data.bound)
    plain = dpo(data.u, data.p, beta=data.beta, bound=data.bound)
    assert found.value[0].item() == pytest.approx(plain.value.item(), rel=1e-12)
    assert (found.value.diff() >= -1e-12).all()


@pytest.mark.parametrize("name", [name for name, s in SETS.items() if s.facts.objective])
def test_the_functional_of_the_trainer_is_the_worst_case_with_its_gradient(name: str) -> None:
    kind = SETS[name]
    if not kind.facts.reweights:
        pytest.skip("no functional of the losses alone")
    losses = torch.linspace(0.1, 2.0, 9, dtype=torch.float64, requires_grad=True)
    size = example_size(kind, 0.4)
    value = kind.worst_value(losses, size)
    (weights,) = torch.autograd.grad(value, losses)
    assert weights.sum().item() == pytest.approx(1.0) and (weights >= 0).all()
    if kind.facts.exact:
        p = np.full(9, 1 / 9)
        twin = TWINS[name].worst
        assert twin is not None
        assert value.item() == pytest.approx(twin(losses.detach().numpy(), p, size), rel=1e-6)


@pytest.mark.some(2)
@pytest.mark.parametrize("name", [name for name, kind in SETS.items() if kind.facts.reweights])
def test_the_value_of_a_fit_is_the_functional_of_the_trainer(name: str) -> None:
    """Solvers have a loss and a dual of their own, for speed: at their theta the functional that
    the trainer minimises has the value that they say."""
    for k, data in enumerate(DATA):
        wanted = sizes(name, data)
        size = wanted[k % len(wanted)]
        kind = SETS[name].sized(size)
        found = fit(data.u, kind, data.p, beta=data.beta, bound=data.bound)
        margins = data.beta * torch.as_tensor(data.u) @ found.theta
        value = kind.worst_value(dpo_loss(margins), size, torch.as_tensor(data.p))
        # the certificate, and rounding of a mean of losses
        assert abs(value - found.value) <= max(found.gap.item(), 0) + 1e-12 * (1 + value)


# ----------------------------------------------------------------------------------- the front door
@pytest.mark.parametrize("name", SETS)
def test_facts_are_told(name: str) -> None:
    facts = SETS[name].facts
    assert (
        (facts.name == name and facts.title and facts.about and "arXiv" in facts.source)
        or "doi" in facts.source
        or "code" in facts.source
    )
    assert SETS[name].sized(0.3).size == 0.3
    with pytest.raises(ValueError, match=f"has no {facts.size} here"):
        _ = SETS[name].size


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("bad", [-0.1, float("nan"), [[0.1]], "much"])
def test_sizes_out_of_range_are_refused(name: str, bad: object) -> None:
    u, distance = DATA[0].u, DATA[0].distance
    with pytest.raises(ValueError, match=SETS[name].facts.size):
        fit(u, SETS[name].in_metric(distance).sized(bad), beta=1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SETS)
def test_no_batch_axis_in_none_out(name: str) -> None:
    u, distance = DATA[0].u, DATA[0].distance
    kind = SETS[name].in_metric(distance, 1.0)
    n, d = u.shape
    first, second = (example_size(kind, excess) for excess in (0.2, 0.3))
    one = fit(u, kind.sized(first), beta=1.0)
    assert one.theta.shape == (d,) and one.value.shape == one.gap.shape == ()
    path = fit(u, kind.sized([first, second]), beta=1.0)
    assert path.theta.shape == (2, d)
    torch.testing.assert_close(path.theta[0], one.theta, rtol=1e-9, atol=1e-12)
    batch = fit(np.stack([u] * 3), kind.sized(first), np.full(n, 1 / n), beta=1.0)
    assert batch.theta.shape == (3, d) and batch.value.shape == (3,)
    assert fit(u[None], kind.sized(first), beta=1.0).theta.shape == (1, d)


def test_a_fit_is_a_short_table_with_the_names_of_the_columns() -> None:
    table = pd.DataFrame(DATA[0].u[:, :1], columns=["length"])
    found = fit(table, theory.KL(0.01), beta=1.0)
    said = repr(found)
    assert "length" in said and "KLDPO" in said and "gap" in said and len(said.split("\n")) == 2
    assert found.names == ("length",) and isinstance(found.worst, theory.WorstCase)
    path = fit(table, theory.KL([0.0, 0.01]), beta=1.0)
    assert "2 fits of KLDPO" in repr(path) and len(path.worst) == 2


def test_everything_is_exported_under_both_names() -> None:
    assert {type(s).__name__ for s in SETS.values()} <= set(EXPORTS) <= set(dir(theory))
    for name in dir(theory):
        assert getattr(prefdro, name) is getattr(theory, name)
    with pytest.raises(AttributeError, match=r"no attribute 'KLD'; there are .*KL, .*fit"):
        _ = theory.KLD


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (theory.KL, r"set is the class KL\. .* such as KL\(0\.1\)"),
        ("kl", r"got 'kl'\. Take one of theory\.SETS"),
        (0.1, r"got 0\.1\."),
    ],
)
def test_what_is_no_set_is_refused_at_every_door(wrong: object, words: str) -> None:
    u = DATA[0].u
    doors = (
        lambda: fit(u, wrong, beta=1.0),  # type: ignore[arg-type]
        lambda: collapse_radius(u, wrong),  # type: ignore[arg-type]
        lambda: worst_case(u, u[0], wrong, beta=1.0),  # type: ignore[arg-type]
    )
    for door in doors:
        with pytest.raises(ValueError, match=words):
            door()


def test_the_set_comes_after_the_data() -> None:
    u, kl = DATA[0].u, theory.KL(0.1)
    for door in (lambda: fit(kl, u, beta=1.0), lambda: collapse_radius(kl, u)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"the data come first, as in fit\(u, set, weights\)"):
            door()


# -------------------------------------------------------------------------------- hard samples
REWEIGHTING = [name for name in EXACT if SETS[name].facts.reweights]


def holds_zero(u: np.ndarray) -> bool:
    """Whether 0 is in the convex hull of integer points of the plane, in integers: some two or
    three of them hold it (Carathéodory)."""
    points = [(int(x), int(y)) for x, y in u]

    def turn(a: tuple[int, int], b: tuple[int, int]) -> int:
        return a[0] * b[1] - a[1] * b[0]

    def opposite(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return turn(a, b) == 0 and a[0] * b[0] + a[1] * b[1] <= 0

    if (0, 0) in points or any(opposite(a, b) for a, b in combinations(points, 2)):
        return True
    signs = [
        {np.sign(turn(a, b)), np.sign(turn(b, c)), np.sign(turn(c, a))}
        for a, b, c in combinations(points, 3)
    ]
    return any(found in ({1}, {-1}) for found in signs)


@pytest.mark.parametrize("name", REWEIGHTING)
def test_nothing_collapses_where_zero_is_outside_the_hull_however_small_the_weights(
    name: str,
) -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(25):
        u = rng.integers(-2, 4, (rng.integers(2, 6), 2)).astype(float)
        if not u.any():
            continue
        p = 10.0 ** -(rng.random(len(u)) * rng.choice([1, 8, 12]))
        p /= p.sum()
        kind = SETS[name].in_metric(1 - np.eye(len(u)))
        edge = collapse_radius(u, kind, p).item()
        never = edge < 1e-8 if name == "cvar" else edge == np.inf  # tiny for so small weights
        if holds_zero(u):
            inside += 1
            assert name == "cvar" or not never
        else:
            assert never
    assert 5 < inside < 20


@pytest.mark.parametrize("rare", [1e-3, 1e-8, 1e-12])
def test_the_collapse_of_a_rare_atom_in_closed_form(rare: float) -> None:
    """u = (1, -2): the only Q with E u = 0 is (2/3, 1/3)."""
    p, q = np.array([1 - rare, rare]), np.array([2 / 3, 1 / 3])
    truth = {
        "kl": (q * np.log(q / p)).sum(),
        "chi2": (q**2 / p).sum() - 1,
        "tv": abs(q - p).sum() / 2,
        "cvar": (p / q).min(),
        "w1-finite": abs(q - p).sum() / 2,
        "w2-finite": np.sqrt(abs(q - p).sum() / 2),
    }
    for name in set(REWEIGHTING) & set(truth):
        kind = SETS[name].in_metric(1 - np.eye(2))
        found = collapse_radius([[1.0], [-2.0]], kind, p).item()
        # linear programs are solved to about 1e-9 of the largest weight
        room = 1e-10 if name in ("kl", "chi2") else 1e-8
        assert found == pytest.approx(truth[name], rel=room, abs=room * (name == "cvar"))


@pytest.mark.some(2)
@pytest.mark.parametrize("name", REWEIGHTING)
def test_no_certificate_for_the_reference_where_something_is_better(name: str) -> None:
    """The issue's four pairs, which (2, 1) separates: no set of weights makes theta_ref best."""
    u = np.array([[1.0, 1.0], [1.0, 1.0], [2.0, -1.0], [1.0, 1.0]])
    tiny = 2.3e-10
    p = [tiny, 0.92 - tiny, 0.08 - 6e-3, 6e-3]
    for size in (0.5, 0.999) if name in ("tv", "cvar") else (0.5, 1e3, 1e8):
        kind = SETS[name].in_metric(1 - np.eye(4))
        kind = kind.sized(example_size(kind, size))
        found = fit(u, kind, p, beta=0.1, bound=100.0)
        assert not found.collapsed
        away = fit(u, None, p, beta=0.1, bound=100.0)
        there = worst_case(u, away.theta, kind, p, beta=0.1).value
        assert found.value - max(found.gap.item(), 0) <= there + 1e-12


@pytest.mark.some(2)
@pytest.mark.parametrize("name", CONVEX)
def test_without_a_bound_every_fit_is_certified_and_none_is_worse_than_the_reference(
    name: str,
) -> None:
    """Also separable samples, whose minimiser the default bound holds."""
    rng = np.random.default_rng(1)
    for k in range(24):
        n = rng.integers(2, 8)
        u = rng.standard_normal((n, 2)) + rng.choice([0.0, 1.0])
        distance = np.linalg.norm(u[:, None] - u[None], axis=-1)
        size = example_size(SETS[name], [0.01, 0.05, 0.3][k % 3])
        found = fit(u, SETS[name].in_metric(distance, 1.0).sized(size), beta=1.0)
        assert found.converged, (k, found)
        assert found.value <= np.log(2)


@pytest.mark.parametrize("tau", [1e3, 1e9, 1e20, 1e49])
def test_a_hot_tilt_is_the_mean(tau: float) -> None:
    """tau log E exp(l/tau) = E l + Var l/(2 tau) + O(1/tau²), for losses of size one."""
    u = np.random.default_rng(2).standard_normal((6, 2))
    hot, plain = fit(u, theory.Tilt(tau), beta=1.0), fit(u, beta=1.0)
    losses = np.logaddexp(0, -u @ plain.theta.numpy())
    assert hot.converged
    assert hot.value.item() == pytest.approx(
        plain.value.item() + losses.var() / (2 * tau), abs=1 / tau**2 + 1e-14
    )


# ---------------------------------------------------------------------------- as Python objects
def test_sets_are_equal_by_their_numbers_and_can_be_keys() -> None:
    distance = 1 - np.eye(3)
    atoms = theory.WassersteinAtoms(0.1, distance)
    assert atoms == theory.WassersteinAtoms(0.1, torch.from_numpy(distance))
    assert atoms != theory.WassersteinAtoms(0.1, 2 * distance)
    assert theory.KL([0.1, 0.2]) == theory.KL(np.array([0.1, 0.2])) != theory.KL([0.1, 0.3])
    assert theory.KL(0.1) != theory.ChiSquared(0.1)
    assert len({atoms, theory.WassersteinAtoms(0.1, distance), theory.KL(0.1)}) == 2


def test_results_and_worlds_are_equal_to_themselves_only() -> None:
    u = DATA[0].u
    one, two = fit(u, theory.KL([0.1, 0.2]), beta=1.0), fit(u, theory.KL([0.1, 0.2]), beta=1.0)
    shape = {"contexts": 2, "actions": 2, "dimension": 2, "beta": 1.0, "bound": 4.0}
    world = theory.random_world(0, **shape)
    for thing, other in ((one, two), (one.worst[0], two.worst[0]), (world, None)):  # type: ignore[index]
        assert thing == thing and thing != other and hash(thing) == hash(thing)


def test_weights_of_single_precision_are_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.rand(1000, generator=generator)
    w = w / w.sum() * (1 + 1e-7)
    u = torch.randn(1000, 3, generator=generator)
    found = fit(u, theory.KL(0.01), w, beta=1.0)
    exact = fit(u, theory.KL(0.01), w.double() / w.double().sum(), beta=1.0)
    assert torch.allclose(found.theta, exact.theta, rtol=0, atol=1e-12)
    value = worst_case(u, found.theta, theory.KL(0.01), w, beta=1.0).value
    assert value == pytest.approx(found.value.item(), abs=1e-9)
    with pytest.raises(ValueError, match=r"sum furthest from one is 1\.00001"):
        fit(u, theory.KL(0.01), w * 1.00001, beta=1.0)


def test_what_stands_in_the_wrong_place_is_told() -> None:
    u = DATA[0].u
    shape = {"contexts": 2, "actions": 2, "dimension": 2, "beta": 1.0, "bound": 4.0}
    world = theory.random_world(0, **shape)
    for door in (lambda: fit(world, beta=1.0), lambda: collapse_radius(world, theory.KL())):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"u is a FiniteWorld.* as in fit\(world\.u, set,"):
            door()
    assert fit(world.u, theory.KL(0.1), world.probability, **world.problem).converged
    with pytest.raises(ValueError, match="radius is empty"):
        fit(u, theory.KL([]), beta=1.0)
    with pytest.raises(ValueError, match=r"weights come after it, as in fit\(u, set, weights\)"):
        fit(u, [0.3, 0.3, 0.4], theory.KL(0.1), beta=1.0)  # type: ignore[arg-type]
    row = fit(u, theory.KL(0.1), beta=1.0, theta_ref=np.full((1, u.shape[1]), 0.01))
    flat = fit(u, theory.KL(0.1), beta=1.0, theta_ref=np.full(u.shape[1], 0.01))
    assert torch.equal(row.theta, flat.theta)


def test_a_name_that_is_no_set_and_seeds_that_are_no_list() -> None:
    with pytest.raises(KeyError, match=r"no ambiguity set is named 'KL'; there are kl, "):
        _ = SETS["KL"]
    assert SETS.get("KL") is None and "KL" not in SETS
    shape = {"contexts": 2, "actions": 2, "dimension": 2, "beta": 1.0, "bound": 4.0}
    world = theory.random_world(0, **shape)
    for seeds in (1, [], np.random.SeedSequence(1)):
        with pytest.raises(ValueError, match="seeds must be a list, one seed for each sample"):
            world.sample(10, seeds)  # type: ignore[arg-type]


def test_there_is_no_fraction_of_a_way_that_does_not_end() -> None:
    """All pairs agree: no KL ball of finite radius makes the reference the answer."""
    with pytest.raises(ValueError, match="KL never makes the reference policy the answer"):
        KL().size_at(0.5, pair_batch([[1.0], [2.0]]))
