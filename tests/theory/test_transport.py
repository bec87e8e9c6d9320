"""Transport on the line against POT, linear programs and projections by cvxpy; dominance against
its definition."""

from itertools import pairwise

import cvxpy as cp
import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import linprog
from torch import Tensor

from tests.jitter import order
from theory.transport import (
    coupling,
    first_order_violation,
    gauss_mean,
    integrated_transport,
    positive_power_mean,
    power_mean,
    quantile,
    second_order_violation,
    soft_sort,
    transport,
    transport_of,
)

quick = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

COSTS = {
    "square": lambda t: t**2,
    "absolute": lambda t: t.abs(),
    "logistic": lambda t: torch.log1p(torch.exp(-t)),
    "hinge": lambda t: torch.relu(0.4 - t) ** 2,
    "pinball": lambda t: torch.maximum(0.3 * t, -0.7 * t),
}


def sample(
    seed: int, sizes: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u, v and their weights; sizes 1 to 8, some values repeated and some weights zero."""
    rng = np.random.default_rng(seed)
    n, m = sizes or rng.integers(1, 9, 2)
    u, v = rng.normal(0.3, 1, n), rng.normal(0, 1, m)
    if rng.random() < 0.5:
        u, v = u.round(), v.round()
    p, q = (
        w * (rng.random(len(w)) < 0.8) + 1e-3
        for w in (rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m)))
    )
    if rng.random() < 0.5 and n > 1:
        p[0] = 0.0
    i, j = order(n), order(m)
    return tuple(torch.from_numpy(x) for x in (u[i], v[j], p[i] / p.sum(), q[j] / q.sum()))  # type: ignore[return-value]


def program(u: Tensor, v: Tensor, p: Tensor, q: Tensor, h) -> float:
    """The least expected cost over all couplings."""
    n, m = len(u), len(v)
    price = h(u[:, None] - v).numpy().ravel()
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    return float(linprog(price, A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([p, q])).fun)


# ---------------------------------------------------------------------------------------- transport
@pytest.mark.parametrize("name", COSTS)
@given(seed=seeds)
@quick
def test_sorting_against_the_linear_program(name: str, seed: int) -> None:
    u, v, p, q = sample(seed)
    assert transport(u, v, COSTS[name], p, q).item() == pytest.approx(
        program(u, v, p, q, COSTS[name]), abs=1e-9
    )


@given(seed=seeds)
@quick
def test_against_pot(seed: int) -> None:
    u, v, p, q = sample(seed)
    a, b, x, y = (z.numpy() for z in (p, q, u, v))
    assert transport(u, v, COSTS["square"], p, q).item() == pytest.approx(
        ot.emd2_1d(x, y, a, b), abs=1e-12
    )
    assert transport(u, v, COSTS["absolute"], p, q).item() == pytest.approx(
        ot.wasserstein_1d(x, y, a, b), abs=1e-12
    )
    price = COSTS["logistic"](u[:, None] - v).numpy()
    assert transport(u, v, COSTS["logistic"], p, q).item() == pytest.approx(
        (ot.emd(a, b, price) * price).sum(), abs=1e-10
    )


def test_a_concave_cost_is_not_solved_by_sorting() -> None:
    """u = (0, 1), v = (1, 2): leaving 1 in place is cheaper for the root of the distance, (0 +
    2^½)/2 < 1."""
    u, v, half = (
        torch.tensor([0.0, 1.0]).double(),
        torch.tensor([1.0, 2.0]).double(),
        torch.full((2,), 0.5).double(),
    )
    root = lambda t: t.abs().sqrt()  # noqa: E731
    assert transport(u, v, root).item() == 1.0
    assert program(u, v, half, half, root) == pytest.approx(2**0.5 / 2)


@given(seed=seeds)
@quick
def test_the_coupling_has_the_right_marginals_and_no_crossings(seed: int) -> None:
    u, v, p, q = sample(seed)
    plan = coupling(u, v, p, q)
    assert (plan.mass >= 0).all()
    torch.testing.assert_close(
        torch.zeros_like(p).scatter_add(0, plan.row, plan.mass), p, atol=1e-14, rtol=0
    )
    torch.testing.assert_close(
        torch.zeros_like(q).scatter_add(0, plan.column, plan.mass), q, atol=1e-14, rtol=0
    )
    used = plan.mass > 1e-14
    assert (u[plan.row[used]].diff() >= 0).all() and (v[plan.column[used]].diff() >= 0).all()


@given(seed=seeds)
@quick
def test_permutation_shift_and_symmetry(seed: int) -> None:
    u, v, p, q = sample(seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(u)))
    h = COSTS["logistic"]
    value = transport(u, v, h, p, q)
    torch.testing.assert_close(transport(u[order], v, h, p[order], q), value)
    torch.testing.assert_close(transport(u + 1.5, v + 1.5, h, p, q), value)
    torch.testing.assert_close(transport(v, u, lambda t: h(-t), q, p), value)
    torch.testing.assert_close(transport(-v, -u, h, q, p), value)


def test_a_weight_is_a_repetition_and_an_atom_without_weight_does_not_matter() -> None:
    u, v = torch.tensor([0.3, -1.0]).double(), torch.tensor([0.1, 0.9, 2.0]).double()
    h = COSTS["logistic"]
    value = transport(torch.tensor([0.3, 0.3, -1.0]).double(), v, h)
    torch.testing.assert_close(transport(u, v, h, torch.tensor([2 / 3, 1 / 3]).double()), value)
    for far in (1e4, -1e4):
        padded = torch.cat([u, torch.tensor([far]).double()])
        torch.testing.assert_close(
            transport(padded, v, h, torch.tensor([2 / 3, 1 / 3, 0]).double()), value
        )


def test_an_infinite_atom_without_weight_is_never_touched() -> None:
    """0.1 ten times adds up to a little less than one, and the other sample's last level is one."""
    u = torch.cat(
        [torch.linspace(-1, 1, 10).double(), torch.tensor([torch.inf, -torch.inf]).double()]
    ).requires_grad_()
    p = torch.cat([torch.full((10,), 0.1).double(), torch.zeros(2).double()])
    v = torch.linspace(0, 1, 4).double()
    value = transport(u, v, COSTS["logistic"], p)
    assert value.item() == pytest.approx(
        transport(u[:10].detach(), v, COSTS["logistic"]).item(), rel=1e-14
    )
    (gradient,) = torch.autograd.grad(value, u)
    assert torch.isfinite(gradient).all() and (gradient[10:] == 0).all()


def test_batches() -> None:
    rng = np.random.default_rng(0)
    u, v = torch.from_numpy(rng.normal(size=(2, 3, 5))), torch.from_numpy(rng.normal(size=(3, 4)))
    p = torch.from_numpy(rng.dirichlet(np.ones(5), size=(2, 3)))
    for weights in (None, p):
        value = transport(u, v, COSTS["logistic"], weights)
        second = second_order_violation(u, v, weights)
        for i in range(2):
            for j in range(3):
                one = None if weights is None else weights[i, j]
                torch.testing.assert_close(
                    value[i, j], transport(u[i, j], v[j], COSTS["logistic"], one)
                )
                torch.testing.assert_close(second[i, j], second_order_violation(u[i, j], v[j], one))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_devices(dtype: torch.dtype, device: str) -> None:
    u, v, p, q = (x.to(device=device, dtype=dtype) for x in sample(3, (6, 4)))
    tolerance = {torch.bfloat16: 3e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    for value, truth in (
        (
            transport(u, v, COSTS["logistic"], p, q),
            transport(*sample(3, (6, 4))[:2], COSTS["logistic"], *sample(3, (6, 4))[2:]),
        ),
        (soft_sort(u, 0.7).sum(), sample(3, (6, 4))[0].sum()),
    ):
        assert value.dtype == dtype and value.device.type == device
        assert value.item() == pytest.approx(truth.item(), abs=3 * tolerance, rel=tolerance)


@given(seed=seeds)
@quick
def test_quantile_is_the_inverse_of_the_distribution_function(seed: int) -> None:
    u, _, p, _ = sample(seed)
    levels = torch.linspace(0.003, 0.997, 40, dtype=torch.float64)
    for t, x in zip(levels.tolist(), quantile(u, levels, p).tolist(), strict=True):
        assert p[u <= x].sum() >= t - 1e-12 and p[u < x].sum() < t + 1e-12 and p[u == x].sum() > 0
    np.testing.assert_array_equal(
        quantile(u, levels).numpy(), np.quantile(u.numpy(), levels.numpy(), method="inverted_cdf")
    )


# -------------------------------------------------------------------------------------- derivatives
@pytest.mark.parametrize("name", ["square", "logistic", "hinge"])
def test_gradcheck(name: str) -> None:
    rng = np.random.default_rng(5)
    u, v = (torch.from_numpy(rng.normal(size=(2, n))).requires_grad_() for n in (5, 4))
    p = torch.from_numpy(rng.dirichlet(np.ones(5)))
    assert torch.autograd.gradcheck(lambda u, v: transport(u, v, COSTS[name], p), (u, v))
    assert torch.autograd.gradcheck(lambda u, v: second_order_violation(u, v, p, power=2), (u, v))
    assert torch.autograd.gradcheck(lambda u, v: first_order_violation(u, v, p, power=2), (u, v))


@pytest.mark.parametrize("softness", [0.3, 1.0, 3.0])
def test_soft_sort_gradcheck(softness: float) -> None:
    x = torch.from_numpy(np.random.default_rng(6).normal(size=(3, 6))).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft_sort(x, softness), x)


# ------------------------------------------------------------------------------------- soft sorting
@pytest.mark.parametrize("softness", [0.2, 0.7, 1.0, 2.5, 10.0, 1e3])
@pytest.mark.parametrize("seed", range(3))
def test_soft_sort_is_the_projection_on_the_permutahedron(seed: int, softness: float) -> None:
    """The permutahedron of x is the set of D x with D doubly stochastic."""
    x = np.random.default_rng(seed).normal(size=6) * 1.5
    n = len(x)
    D = cp.Variable((n, n), nonneg=True)
    point = D @ x
    problem = cp.Problem(
        cp.Minimize(cp.sum_squares(point - np.arange(1, n + 1) / softness)),
        [cp.sum(D, axis=0) == 1, cp.sum(D, axis=1) == 1],
    )
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    np.testing.assert_allclose(
        soft_sort(torch.from_numpy(x), softness).numpy(), point.value, atol=2e-5
    )


@given(seed=seeds, softness=st.floats(1e-3, 1e3))
@quick
def test_soft_sort_properties(seed: int, softness: float) -> None:
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(2, 7)))
    y = soft_sort(x, softness)
    torch.testing.assert_close(y.sum(-1), x.sum(-1), rtol=0, atol=1e-12)
    assert (y.diff(dim=-1) >= -1e-12).all()
    torch.testing.assert_close(soft_sort(x[:, torch.from_numpy(rng.permutation(7))], softness), y)
    torch.testing.assert_close(soft_sort(x + 2, softness), y + 2, rtol=0, atol=1e-9)
    hard = x.sort(-1).values
    settled = hard.diff(dim=-1).max(-1).values * softness <= 1
    assert torch.equal(y[settled], hard[settled])
    assert (
        hard.cumsum(-1) <= y.cumsum(-1) + 1e-9
    ).all()  # in the permutahedron: majorised by the hard sort


def test_soft_sort_of_many_atoms_pools_long_blocks() -> None:
    """Against scikit-learn's pool-adjacent-violators, on a sequence where blocks merge round after
    round."""
    isotonic = pytest.importorskip("sklearn.isotonic")
    x = np.sort(np.random.default_rng(0).standard_cauchy(400))
    z = np.arange(1, 401) / 30.0
    truth = z + isotonic.isotonic_regression(x - z, increasing=False)
    np.testing.assert_allclose(soft_sort(torch.from_numpy(x), 30.0).numpy(), truth, atol=1e-10)


def test_bad_input() -> None:
    x = torch.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match="softness must be positive and finite, got 0"):
        soft_sort(x, 0)
    with pytest.raises(ValueError, match="at least one number"):
        coupling(x, x[:0])
    with pytest.raises(ValueError, match="one number for each of the 2 atoms"):
        transport(x, x, torch.abs, torch.ones(3) / 3)
    with pytest.raises(ValueError, match=r"levels must lie in \[0, 1\], got -0.5 to 0.5"):
        quantile(x, torch.tensor([-0.5, 0.5]))


# ---------------------------------------------------------------------------------------- dominance
def test_violations_by_hand() -> None:
    """U = 1/2, V = 0 or 1: Q_V - Q_U is -1/2, then 1/2; D(t) = min(t, 1-t)/2. The other way round D
    = -min(t, 1-t)/2."""
    u, v = torch.tensor([0.5]).double(), torch.tensor([0.0, 1.0]).double()
    assert first_order_violation(u, v).item() == pytest.approx(1 / 4)
    assert first_order_violation(u, v, power=2).item() == pytest.approx(1 / 8)
    assert second_order_violation(u, v).item() == 0
    assert second_order_violation(v, u).item() == pytest.approx(1 / 8)
    assert second_order_violation(v, u, power=2).item() == pytest.approx(1 / 48)


@given(seed=seeds)
@quick
def test_integrated_transport_against_quadrature(seed: int) -> None:
    u, v, p, q = sample(seed, (3, 4))
    plan = coupling(u, v, p, q)
    t = np.concatenate([[0], plan.mass.cumsum(0).numpy()])
    D = np.concatenate([[0], np.cumsum((plan.mass * (u[plan.row] - v[plan.column])).numpy())])
    beta = 0.2
    pieces = {
        "hinge": (
            lambda a, b: positive_power_mean(beta - a, beta - b, 2),
            lambda x: max(beta - x, 0) ** 2,
        ),
        "least squares": (
            lambda a, b: power_mean(beta - a, beta - b, 2),
            lambda x: (beta - x) ** 2,
        ),
        "violation": (lambda a, b: positive_power_mean(-a, -b, 1), lambda x: max(-x, 0)),
        "cube": (lambda a, b: positive_power_mean(-a, -b, 3), lambda x: max(-x, 0) ** 3),
        "logistic": (
            lambda a, b: gauss_mean(COSTS["logistic"], a, b),
            lambda x: np.logaddexp(0, -x),
        ),
    }
    for name, (mean, h) in pieces.items():
        truth = sum(
            quad(lambda s, h=h: h(np.interp(s, t, D)), lo, hi, epsabs=1e-12)[0]
            for lo, hi in pairwise(t)
        )
        assert integrated_transport(u, v, mean, p, q).item() == pytest.approx(truth, abs=1e-8), name


@pytest.mark.parametrize("length", [1e-9, 1.0, 7.0, 15.0])
def test_gauss_mean_is_exact_to_ten_digits_up_to_its_length(length: float) -> None:
    for middle in (-3.0, 0.0, 2.0):
        a, b = middle - length / 2, middle + length / 2
        truth = (
            np.logaddexp(0, -middle)
            if length < 1e-6
            else quad(lambda x: np.logaddexp(0, -x), a, b, epsabs=1e-13)[0] / length
        )
        value = gauss_mean(
            COSTS["logistic"], torch.tensor(a).double(), torch.tensor(b).double()
        ).item()
        assert value == pytest.approx(truth, abs=1e-10)


@given(seed=seeds)
@quick
def test_dominance_against_distribution_functions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    v = rng.normal(size=6)
    u = [v + rng.exponential(size=6), v.mean() + 0.5 * (v - v.mean()), rng.normal(0.7, 1, 6)][
        seed % 3
    ]
    x = np.concatenate([u, v])
    first = all((u <= c).mean() <= (v <= c).mean() for c in x)
    second = all(np.maximum(c - u, 0).mean() <= np.maximum(c - v, 0).mean() + 1e-13 for c in x)
    u, v = torch.from_numpy(rng.permutation(u)), torch.from_numpy(v)
    assert (first_order_violation(u, v).item() == 0) == first
    assert (second_order_violation(u, v).item() <= 1e-13) == second
    assert second or not first


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_whole_numbers_are_numbers(dtype: torch.dtype) -> None:
    u, v = torch.tensor([1, 2, 3], dtype=dtype), torch.tensor([2, 4, 6], dtype=dtype)
    assert float(transport(u, v, lambda g: g**2)) == pytest.approx(14 / 3)  # (1 + 4 + 9) / 3
    assert float(transport_of(u, v, lambda g: g**2)) == pytest.approx(14 / 3)
    assert float(first_order_violation(u, v)) == pytest.approx(2)
    assert (
        float(second_order_violation(u, v))
        == pytest.approx(float(second_order_violation(u.double(), v.double())))
        != 0
    )
