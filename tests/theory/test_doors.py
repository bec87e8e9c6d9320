"""What a user may pass at the doors of theory/: tables, lists, views and odd types count as their
numbers, or are refused."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from tests.theory.instances import reweighting
from tests.theory.test_bad_input import refuses
from theory.aot import minimise_aot
from theory.batch import as_float64
from theory.bounds.papers import proposition_1, regularity_kl, theorem_1
from theory.bounds.uniform import uniform_wasserstein
from theory.collapse import collapse_radius
from theory.duals import (
    chi2_ball_dual,
    cvar_dual,
    kl_ball_dual,
    total_variation_dual,
    transport_dual,
)
from theory.estimators import dpo, gradient_penalty, kldpo, kldpo_tilt, wdpo_finite, wdpo_free
from theory.fitting import fit
from theory.functionals import (
    aot_second_order,
    aot_unpaired,
    chi2_ball,
    cvar,
    dr_dpo,
    kl_tilt,
    mean,
    worst_group,
)
from theory.inference import infer
from theory.laws.law import limit_law
from theory.losses import logistic
from theory.radius_choice import suggest_radii, temperature_for_share, value_coverage
from theory.separable import separation
from theory.sets import SETS
from theory.sets.kl import KL
from theory.sets.wasserstein_atoms import WassersteinAtoms
from theory.sets.wasserstein_free import WassersteinFree
from theory.solvers.adversary import free, on_atoms
from theory.transport import (
    first_order_violation,
    integrated_transport,
    power_mean,
    quantile,
    second_order_violation,
    transport,
)
from theory.worlds import common_scale, from_labels, from_policy, from_rewards, random_world
from theory.worst_cases import worst_case

RNG = np.random.default_rng(24)
U = np.round(RNG.normal(size=(7, 2)) + 0.4, 3)
W = RNG.dirichlet(np.ones(7))
D = np.linalg.norm(U[:, None] - U[None], axis=-1)
ESTIMATORS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "dpo": lambda u, p, D: dpo(u, p, beta=0.7, bound=6.0),
    "kldpo": lambda u, p, D: kldpo(u, p, radius=0.05, beta=0.7, bound=6.0),
    "kldpo_tilt": lambda u, p, D: kldpo_tilt(u, p, temperature=0.6, beta=0.7, bound=6.0),
    "wdpo_finite": lambda u, p, D: wdpo_finite(
        u, p, distance=D, power=2, radius=0.1, beta=0.7, bound=6.0
    ),
    "wdpo_free": lambda u, p, D: wdpo_free(
        u, p, power=1, radius=0.05, label_cost=0.3, beta=0.7, bound=6.0
    ),
    "gradient_penalty": lambda u, p, D: gradient_penalty(u, p, strength=0.1, beta=0.7, bound=6.0),
}


def frozen(x: np.ndarray) -> np.ndarray:
    copy = x.copy()
    copy.flags.writeable = False
    return copy


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "table": pd.DataFrame,
    "table with odd index": lambda x: pd.DataFrame(x, index=range(len(x), 0, -1)),
    "nullable table": lambda x: pd.DataFrame(x).astype("Float64"),
    "list": lambda x: x.tolist(),
    "read-only": frozen,
    "columns first": np.asfortranarray,
    "turned twice": lambda x: x[::-1].copy()[::-1],
    "every other": lambda x: np.repeat(x, 2, axis=0)[::2],
    "objects": lambda x: x.astype(object),
    "big-endian": lambda x: x.astype(">f8"),
    "tensor": torch.from_numpy,
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_numbers_gives_the_same_fit(name: str, form: str) -> None:
    change = FORMS[form]
    weights = pd.Series(W) if "table" in form else change(W)
    torch.testing.assert_close(
        ESTIMATORS[name](change(U), weights, change(D)).theta, ESTIMATORS[name](U, W, D).theta
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.uint8, bool, np.longdouble])
def test_types_of_numbers(dtype: type) -> None:
    x = np.array([[1, 0], [1, 1], [0, 1], [1, 0]]).astype(dtype)
    torch.testing.assert_close(
        dpo(x, beta=1.0, bound=3.0).theta, dpo(x.astype(float), beta=1.0, bound=3.0).theta
    )
    assert as_float64(x[::-1], "x").tolist() == x[::-1].astype(float).tolist()


def test_a_square_table_is_not_turned() -> None:
    """The solution of d pairs, each along its own axis, has one coordinate a pair; a triangle tells
    rows from columns."""
    square = np.array([[1.0, 2.0, 0.5], [0.0, -1.0, 1.0], [0.0, 0.0, 0.3]])
    found = dpo(pd.DataFrame(square, columns=list("xyz")), beta=1.0, bound=1.0)
    value = np.logaddexp(0, -square @ found.theta.numpy()).mean()
    assert value == pytest.approx(float(found.value), rel=1e-12)
    other = dpo(square.T, beta=1.0, bound=1.0)
    assert abs(float(other.value) - value) > 1e-3


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([["1.5", "2"], ["0", "1"]], ("u must be an array of numbers", "list", "to_numpy")),
        (pd.DataFrame({"a": ["x", "y"], "b": [1.0, 2.0]}), ("DataFrame", "text")),
        (np.array([[1 + 2j, 0], [0, 1]]), ("ndarray", "complex")),
        ([[1.0, 2.0], [3.0]], ("list", "same length")),
        ({"a": 1}, ("dict",)),
        (torch.ones(2, 2, dtype=torch.complex64), ("complex", "real")),
        (
            pd.DataFrame({"t": pd.to_datetime(["2020-01-01", "2020-01-02"])}),
            ("DataFrame", "datetime"),
        ),
        (np.ma.masked_array(U, mask=U > 1), ("non-finite",)),
        (pd.DataFrame(U).where(pd.DataFrame(U) < 1), ("non-finite",)),
    ],
)
def test_what_is_not_numbers_is_refused_in_a_sentence(bad: Any, words: tuple[str, ...]) -> None:
    refuses(lambda: dpo(bad, beta=1.0, bound=2.0), *words)


def test_tables_at_the_other_doors() -> None:
    table, series = pd.DataFrame(U), pd.Series(W)
    w = pd.Series([0.3, -0.2])
    assert collapse_radius(table, KL(), series).item() == collapse_radius(U, KL(), W).item()
    assert (
        collapse_radius(table, WassersteinAtoms(distance=pd.DataFrame(D))).item()
        == collapse_radius(U, WassersteinAtoms(distance=D)).item()
    )
    l = pd.Series([0.1, 0.9, 0.4])
    thirds = pd.Series([0.2, 0.5, 0.3])
    assert reweighting("cvar", l, thirds, 0.5).value == pytest.approx(
        0.9
    )  # the largest loss holds half of the mass
    assert on_atoms(
        l[::-1], thirds[::-1], distance=np.ones((3, 3)) - np.eye(3), power=1, radius=1.0
    ).value == pytest.approx(0.9)
    assert (
        free(table, series, w, beta=1.0, power=1, radius=0.1).value
        == free(U, W, w.to_numpy(), beta=1.0, power=1, radius=0.1).value
    )
    assert value_coverage("w1", table, w, beta=1.0, delta=0.1) == value_coverage(
        "w1", U, w.to_numpy(), beta=1.0, delta=0.1
    )
    assert suggest_radii(table, beta=0.5, bound=5.0) == suggest_radii(
        U[::-1][::-1], beta=0.5, bound=5.0
    )
    assert temperature_for_share(l, 0.5) == temperature_for_share(l.tolist(), 0.5)
    psi1, psi2 = common_scale(table, pd.DataFrame(U[::-1]))
    world = from_labels(
        pd.DataFrame(psi1), psi2[::-1][::-1], pd.Series([1, 0, 1, 1, 0, 1, 0]), beta=1.0, bound=2.0
    )
    np.testing.assert_array_equal(world.u[1], psi2[1] - psi1[1])
    rewarded = from_rewards(psi1, psi2, pd.Series(np.zeros(7)), [0.0] * 7, beta=1.0, bound=2.0)
    np.testing.assert_allclose(rewarded.probability, 1 / 14)
    assert (
        worst_case(world, w, WassersteinFree(0.1)).value
        == worst_case(world, w.to_numpy(), WassersteinFree(0.1)).value
    )
    logs = [regularity_kl(x, p, 0.1) for x, p in ((table, series), (U, W))]  # type: ignore[arg-type]
    assert logs[0] == logs[1]
    fits = [
        minimise_aot(a, b, starts=np.ones((1, 2)), h=logistic, beta=1.0, bound=2.0).value.item()
        for a, b in ((table, pd.DataFrame(-U)), (U, -U))
    ]
    assert fits[0] == fits[1]


def test_unsigned_features_do_not_wrap_round() -> None:
    psi1, psi2 = np.array([[0], [1]], dtype=np.uint8), np.array([[1], [0]], dtype=np.uint8)
    world = from_labels(psi1, psi2, np.array([1, 1], dtype=np.uint8), beta=1.0, bound=1.0)
    np.testing.assert_array_equal(world.u, [[-1.0], [1.0]])


# --------------------------------------------------------------------------------------- magnitudes
@pytest.mark.parametrize("name", ESTIMATORS)
def test_magnitudes_beyond_the_squares(name: str) -> None:
    call = ESTIMATORS[name]
    refuses(lambda: call(U * 1e200, W, D), "1e-50 to 1e+50", "unit")
    refuses(lambda: call(np.full((7, 2), 1e-320), W, D), "1e-50 to 1e+50", "unit")
    tiny = U.copy()
    tiny[0, 0] = 1e-320  # among ordinary ones it is as good as 0
    assert bool(call(tiny, W, D).converged.all())


def test_magnitudes_of_constants() -> None:
    for value in (1e-60, 1e60):
        refuses(lambda value=value: dpo(U, beta=value, bound=1.0), "beta", f"{value:g}", "between")
        refuses(lambda value=value: dpo(U, beta=1.0, bound=value), "bound", f"{value:g}", "between")
        refuses(
            lambda value=value: kldpo(U, radius=value, beta=1.0, bound=1.0),
            "radius",
            f"{value:g}",
            "collapse",
        )
        refuses(
            lambda value=value: wdpo_finite(
                U, distance=D * value, power=2, radius=1.0, beta=1.0, bound=1.0
            ),
            "distance",
        )
        refuses(
            lambda value=value: wdpo_free(
                U, power=1, label_cost=value, radius=1.0, beta=1.0, bound=1.0
            ),
            "label_cost",
        )
    refuses(lambda: dpo(U, beta=1e9, bound=1e9), "beta * bound * max|u|", "smaller bound")
    refuses(lambda: dpo(U, beta="1", bound=1.0), "beta", "str")  # type: ignore[arg-type]
    refuses(lambda: dpo(U, beta=1.0, bound=np.array([1.0, 2.0])), "bound", "single number")  # type: ignore[arg-type]
    refuses(lambda: dpo(U, beta=1.0, bound=1.0, tolerance=np.nan), "tolerance", "nan")
    assert bool(dpo(U, beta=np.float32(0.5), bound=torch.tensor(2.0)).converged)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------ weights and samples
X, Y = torch.tensor([0.3, -1.0, 2.5, 0.7]).double(), torch.tensor([1.0, 0.2, -0.4]).double()
A, B = torch.tensor([0.1, 0.4, 0.2, 0.3]).double(), torch.tensor([0.5, 0.25, 0.25]).double()
TRANSPORTS: dict[str, Callable[..., Any]] = {
    "transport": lambda x, y, a, b: transport(x, y, torch.abs, a, b),
    "first": first_order_violation,
    "second": second_order_violation,
    "integrated": lambda x, y, a, b: integrated_transport(
        x, y, lambda s, t: power_mean(s, t, 2), a, b
    ),
    "quantile": (
        lambda x, y, a, b: quantile(x, torch.tensor([0.5]), a) + quantile(y, torch.tensor([0.5]), b)
    ),
}


@pytest.mark.parametrize("name", TRANSPORTS)
@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([0.5, -0.25, 0.5, 0.25], ("weight 2 of 4 is -0.25", "0 to leave")),
        ([0.5, 0.25, float("nan"), 0.25], ("weight 3 of 4 is nan",)),
        ([0.5, 0.25, 0.25, float("inf")], ("weight 4 of 4 is inf",)),
        ([0.0, 0.0, 0.0, 0.0], ("all zero", "4 atoms")),
        ([0.5, 0.5], ("4 atoms", "(2,)")),
    ],
)
def test_weights_that_are_none(name: str, weights: list[float], words: tuple[str, ...]) -> None:
    refuses(lambda: TRANSPORTS[name](X, Y, torch.tensor(weights).double(), B), *words)
    refuses(lambda: TRANSPORTS[name](Y, X, B, torch.tensor(weights).double()), *words)


@pytest.mark.parametrize("name", TRANSPORTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_numbers(name: str, value: float) -> None:
    bad = X.clone()
    bad[1] = value
    refuses(lambda: TRANSPORTS[name](bad, Y, A, B), "1 entries that are NaN or infinite among 4")
    refuses(lambda: TRANSPORTS[name](Y, bad, None, None), "NaN or infinite")


def test_transport_takes_arrays_and_counts() -> None:
    counts = pd.Series([1, 4, 2, 3])
    truth = scipy.stats.wasserstein_distance(X, Y, A, B)
    assert float(
        transport(pd.Series(X.numpy()), Y.numpy()[::-1][::-1], torch.abs, counts, B)
    ) == pytest.approx(truth)  # type: ignore[arg-type]
    x = X.clone().requires_grad_()
    transport(x, Y, torch.abs, A, B).backward()
    assert x.grad is not None and bool((x.grad != 0).any())


FUNCTIONALS: dict[str, Callable[..., Any]] = {
    "mean": mean,
    "kl_tilt": lambda l, p: kl_tilt(l, 0.5, p),
    "dr_dpo": lambda l, p: dr_dpo(l, 0.5, p),
    "chi2": lambda l, p: chi2_ball(l, 0.1, p),
    "cvar": lambda l, p: cvar(l, 0.5, p),
    "group": lambda l, p: worst_group(l, torch.tensor([0, 1, 0, 1]), 2, p),
    "aot": lambda l, p: aot_unpaired(l, Y, logistic, 1.0, p, None),
    "aot second": lambda l, p: aot_second_order(Y, l, logistic, 1.0, None, p),
}


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_weights_of_functionals(name: str) -> None:
    call = FUNCTIONALS[name]
    refuses(lambda: call(X, torch.tensor([0.5, 0.5, -0.5, 0.5])), "weight 3 of 4 is -0.5")
    if name == "mean":  # a micro-batch may be without weight: its share of the mean is zero
        assert float(call(X, torch.zeros(4))) == 0.0
    else:
        refuses(lambda: call(X, torch.zeros(4)), "all zero")
    refuses(lambda: call(X, torch.tensor([0.5, 0.5])), "4 atoms")
    assert bool(
        torch.isnan(call(torch.where(X > 2, torch.nan, X), A)).all()
    )  # in a training run a NaN stays one


@pytest.mark.parametrize(
    "dual", [kl_ball_dual, chi2_ball_dual, cvar_dual, total_variation_dual, None]
)
def test_duals(dual: Callable[..., Any] | None) -> None:
    def call(l: Any, p: Any, r: float) -> Any:
        radius = torch.tensor([r]).double()
        return (
            dual(l, p, radius)
            if dual
            else transport_dual(l, p, torch.ones(4, 4).double() - torch.eye(4), radius)
        )

    l, p = X[None], A[None]
    refuses(
        lambda: call(l, torch.tensor([[0.5, 0.7, -0.2, 0.0]]).double(), 0.5),
        "weight 3 of 4 is -0.2",
    )
    refuses(lambda: call(l, 0 * p, 0.5), "all zero")
    refuses(lambda: call(l, p, float("nan")), "nan")
    refuses(lambda: call(l, p, -0.5), "-0.5")
    found = call(torch.where(l > 2, torch.nan, l), p, 0.5)
    assert not bool(found.converged.any())


# ------------------------------------------------------------------------------------------- bounds
def test_constants_of_the_bounds() -> None:
    common = {"beta": 1.0, "bound": 1.0}
    refuses(lambda: proposition_1(0, 2, delta=0.1, **common), "n must be", "0")
    refuses(lambda: theorem_1(10, regularity=0.1, delta=1.5, **common), "delta", "1.5")
    refuses(lambda: theorem_1(10, regularity=0.1, delta=0.1, beta=-1.0, bound=1.0), "beta", "-1")
    refuses(
        lambda: uniform_wasserstein(-5, 2, radius=0.1, power=1, diameter=1.0, delta=0.1, **common),
        "-5",
    )
    refuses(lambda: regularity_kl(U, np.ones(7), 0.1), "p must be", "sum")


def test_pairs_are_counted_from_one() -> None:
    holes = U.copy()
    holes[[0, 2]] = np.nan
    refuses(lambda: common_scale(holes, U), "pairs [1, 3]", "first pair is 1")
    refuses(
        lambda: from_rewards(
            U / 9, U / 9, [0, np.inf, 0, 0, 0, 0, 0], np.zeros(7), beta=1.0, bound=1.0
        ),
        "pair 2 is inf",
    )


def test_sparse_tensors_and_numbers_without_end() -> None:
    u = np.random.default_rng(0).standard_normal((20, 2)) + 0.3
    sparse = dpo(torch.from_numpy(u).to_sparse(), beta=1.0, bound=9.0)
    torch.testing.assert_close(sparse.theta, dpo(u, beta=1.0, bound=9.0).theta)
    huge = u.astype(object)
    huge[3, 1] = 10**400
    refuses(lambda: dpo(huge, beta=1.0, bound=9.0), "u must be an array of numbers")


# ----------------------------------------------------------------------------------------- messages
TABLE = pd.DataFrame(U, columns=["price", "[5]"])
DOORS: dict[str, Callable[[Any, Any], Any]] = {
    "fit": lambda u, p: fit(u, KL(0.05), p, beta=1.0),
    "dpo": lambda u, p: dpo(u, p, beta=1.0),
    "infer": lambda u, p: infer(fit(u, KL(0.05), p, beta=1.0), pairs=700),
    "limit law": lambda u, p: limit_law(u, p, KL(0.05), beta=1.0, bound=9.0),
    "worst case": lambda u, p: worst_case(u, [0.2, 0.1], KL(0.1), p, beta=1.0),
    "collapse": lambda u, p: collapse_radius(u, KL(), p),
    "separation": lambda u, p: separation(u, p),
    "regularity": lambda u, p: regularity_kl(u, p, 0.1),
    "aot": lambda u, p: minimise_aot(
        u, -U, p, p, starts=np.ones((1, 2)), h=logistic, beta=1.0, bound=2.0
    ),
    "labels": lambda u, p: from_labels(u, U / 9, np.ones(7), beta=1.0, bound=1.0),
    "scale": lambda u, p: common_scale(u, U),
}


@pytest.mark.parametrize("name", DOORS)
def test_a_hole_is_named_by_its_row_and_column(name: str) -> None:
    holes = TABLE.copy()
    holes.iloc[3, 1] = np.nan
    row = "pairs [4]" if name == "scale" else "atom 4" if name == "regularity" else " 4"
    refuses(lambda: DOORS[name](holes, W), row, "'[5]'")
    refuses(lambda: DOORS[name](holes.to_numpy(), W), row, "2")
    if name not in ("labels", "scale"):
        odd = W.copy()
        odd[4] = np.nan
        refuses(lambda: DOORS[name](U, odd), "nan", "5 of 7")


@pytest.mark.parametrize("name", DOORS)
def test_tables_views_objects_and_single_precision_are_taken(name: str) -> None:
    """Weights in single precision sum to one but for rounding."""
    call, small = DOORS[name], U / 9
    for u in (TABLE / 9, small[::-1][::-1], small.astype(object), (TABLE / 9).astype(object)):
        for p in (W, pd.Series(W), W.astype(np.float32), W[::-1][::-1], W.tolist()):
            call(u, p)


@pytest.mark.parametrize("value", [None, "0.1", [1.0, 2.0], np.nan])
def test_beta_that_is_no_number(value: Any) -> None:
    features = np.full((2, 2, 2), 0.1)
    for call in (
        lambda: fit(U, KL(0.1), beta=value),
        lambda: limit_law(U, W, KL(0.05), beta=value, bound=1.0),
        lambda: worst_case(U, [0.0, 0.1], KL(0.1), beta=value),
        lambda: from_labels(U / 9, -U / 9, np.ones(7), beta=value, bound=1.0),
        lambda: from_policy(features, [0.1, 0.1], beta=value, bound=1.0),
        lambda: random_world(0, contexts=2, actions=2, dimension=2, beta=value, bound=1.0),
        lambda: minimise_aot(U, -U, starts=U[:1], h=logistic, beta=value, bound=1.0),
        lambda: proposition_1(10, 3, beta=value, bound=1.0, delta=0.1),
    ):
        refuses(call, "beta")
    for call in (
        lambda: from_policy(features, [0.1, 0.1], beta=1.0, bound=value),
        lambda: random_world(0, contexts=2, actions=2, dimension=2, beta=1.0, bound=value),
        lambda: proposition_1(10, 3, beta=1.0, bound=value, delta=0.1),
    ):
        refuses(call, "bound")


@pytest.mark.parametrize("name", SETS)
def test_sizes_that_are_text(name: str) -> None:
    set = SETS[name].in_metric(D, 1.0).sized("0.1")
    refuses(lambda: fit(U, set, beta=1.0), set.facts.size, "'0.1'", "without quotes")
    if name != "gradient-squared":  # which has no worst case
        refuses(lambda: worst_case(U, [0.2, 0.1], set, beta=1.0), set.facts.size, "without quotes")


def test_functionals_of_what_is_no_tensor() -> None:
    for losses in (pd.Series(W), W, W.tolist()):
        for call in (kl_tilt, dr_dpo, chi2_ball, cvar):
            refuses(lambda call=call, x=losses: call(x, 0.5), type(losses).__name__, "torch.tensor")
        refuses(lambda x=losses: mean(x), "must be a tensor")
    refuses(lambda: chi2_ball(torch.ones(3), "0.1"), "'0.1'")  # type: ignore[arg-type]
    refuses(lambda: kl_tilt(torch.ones(3), None), "tau", "None")  # type: ignore[arg-type]


def test_features_in_far_apart_units_are_doubted_where_the_size_has_theirs() -> None:
    for factor in (1e6, 1e-8):
        uneven = TABLE * [1.0, factor]
        for call in (
            lambda u: fit(u, WassersteinFree(0.01, power=1), beta=1.0),
            lambda u: gradient_penalty(u, strength=0.01, beta=1.0, bound=1.0),
            lambda u: collapse_radius(u, WassersteinFree(power=2)),
            lambda u: worst_case(u, [0.1, 1e-9], WassersteinFree(0.01), beta=1.0),
        ):
            with pytest.warns(UserWarning, match=r"unit of all features.*common scale"):
                call(uneven)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fit(uneven, KL(0.01), beta=1.0)
            fit(TABLE * [1.0, 100.0], WassersteinFree(0.01), beta=1.0)
            fit(TABLE * [1.0, 0.0], WassersteinFree(0.01), beta=1.0)
