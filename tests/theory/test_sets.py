"""Every ambiguity set of the registry: its estimator, collapse size and worst case against its
twin, and the rules that all of them keep. A set that is added is met here without a change."""

import numpy as np
import pandas as pd
import pytest
import torch

import prefdro
import theory
from tests.theory.instances import DATA, Data
from theory import collapse_radius, fit, worst_case
from theory.fitting import dpo
from theory.sets import EXPORTS, SETS, AmbiguitySet
from theory.twins import knowledge, twins

pytestmark = pytest.mark.filterwarnings("ignore::theory.twins.programs.SolverFallback")
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
        reach = edge if 1e-9 < edge < np.inf else 0.3
        return [min(f * reach, 0.999) if name == "tv" else f * reach for f in FRACTIONS]
    reach = 1 / edge - 1 if edge > 0 else 2.0
    return [1 / (1 + f * reach) for f in FRACTIONS]


def test_every_convex_set_has_a_twin_and_no_twin_is_without_a_set() -> None:
    assert set(TWINS) == set(CONVEX)
    assert all(TWINS[name].collapse for name in EXACT)


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


@pytest.mark.parametrize("name", EXACT)
def test_collapse_against_the_twin_and_the_fits(name: str) -> None:
    for data in INSTANCES:
        kind = there(name, data)
        edge, program = collapse_radius(data.u, kind, data.p).item(), TWINS[name].collapse
        assert program is not None
        assert edge == pytest.approx(program(data.u, data.p, **knowledge(kind)), rel=1e-5, abs=1e-7)
        if not 1e-6 < edge < np.inf:
            continue
        near, far = (edge * 0.99, edge * 1.01) if kind.facts.grows else (edge * 1.01, edge * 0.99)
        common = {"beta": data.beta, "bound": data.bound}
        inside, beyond = (
            fit(data.u, kind.sized(size), data.p, **common) if size <= 1 or name != "cvar" else None
            for size in (near, far)
        )
        assert inside is None or not inside.collapsed
        assert beyond is not None and beyond.collapsed and beyond.theta.norm() == 0
        assert beyond.value.item() == pytest.approx(np.log(2), rel=1e-12)


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
    value = kind.worst_value(losses, 0.4)
    (weights,) = torch.autograd.grad(value, losses)
    assert weights.sum().item() == pytest.approx(1.0) and (weights >= 0).all()
    if kind.facts.exact:
        p = np.full(9, 1 / 9)
        twin = TWINS[name].worst
        assert twin is not None
        assert value.item() == pytest.approx(twin(losses.detach().numpy(), p, 0.4), rel=1e-6)


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
    one = fit(u, kind.sized(0.2), beta=1.0)
    assert one.theta.shape == (d,) and one.value.shape == one.gap.shape == ()
    path = fit(u, kind.sized([0.2, 0.3]), beta=1.0)
    assert path.theta.shape == (2, d)
    torch.testing.assert_close(path.theta[0], one.theta, rtol=1e-9, atol=1e-12)
    batch = fit(np.stack([u] * 3), kind.sized(0.2), np.full(n, 1 / n), beta=1.0)
    assert batch.theta.shape == (3, d) and batch.value.shape == (3,)
    assert fit(u[None], kind.sized(0.2), beta=1.0).theta.shape == (1, d)


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
    with pytest.raises(AttributeError, match="no attribute 'KLD'"):
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
