"""The parts of the benchmark of compiled fits, in their smallest profile, and what they rest on."""

import importlib.util
from pathlib import Path

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest

from experiments.bench import alternate, child, cones, large, limits, scaling
from experiments.bench import solvers as bench
from experiments.bench.ours import BOUND, RADIUS, SMOOTH
from experiments.bench.samples import draw_pairs
from theory import fit

pytest.importorskip("numba")


def test_compiled_fits_are_compared_with_what_is_there(tmp_path: Path) -> None:
    bench.bench_solvers(tmp_path, "smoke", ["compiled"])
    table = pd.read_csv(tmp_path / "compiled.csv")
    assert (table.compiled_us > 0).all() and (table.over_torch.dropna() > 0).all()
    assert table.over_sklearn.notna().sum() == 1
    kinks = table.problem.str.contains(" of collapse")
    assert (table.objective_gap[~kinks].dropna() < 1e-12).all()
    assert (table.certified_gap[~kinks].dropna() < 1e-11).all()
    # some of these are left to torch, which stops at a gap of 1e-10
    assert (table.objective_gap[kinks] <= 1e-10).all() and (
        table.certified_gap[kinks] <= 1e-10
    ).all()
    assert {name.split()[0] for name in table.problem[kinks]} == {
        *("w1-label", "cvar", "tv", "w1-finite", "w2-finite")
    }
    if not importlib.util.find_spec("moreau"):
        assert (table.note == "moreau is not installed: make peers").sum() == 2
    if importlib.util.find_spec("jax"):
        assert table.jax_theta.max() < 1e-7
    else:
        assert "jax is not installed: make peers" in set(table.note)


def test_the_limit_counts_a_pair_s_operations() -> None:
    only_products = limits.Rates(exponential=0.0, loss=0.0, multiply_add=1.0)
    # margin 2, gradient 2, weights 2, Hessian 3; the KL ball's cross term 2 more
    assert only_products.limit("mean", 100, 2, 5) == pytest.approx(100 * 5 * 9e-9)
    assert only_products.limit("kl", 100, 2, 5) == pytest.approx(100 * 5 * 11e-9)
    assert large.products(2) == 9
    exponentials = limits.Rates(exponential=1.0, loss=10.0, multiply_add=0.0)
    assert exponentials.limit("kl", 1, 2, 1) == pytest.approx(11e-9)


def test_one_thread_is_timed_by_cpu_time_and_all_cores_by_wall_time() -> None:
    times = {
        "compiled": alternate.Times(cpu=[2.0, 4.0], wall=[8.0, 8.0]),
        "torch": alternate.Times(cpu=[6.0, 20.0], wall=[1.0, 1.0]),
        "compiled_all": alternate.Times(cpu=[9.0, 9.0], wall=[4.0, 2.0]),
        "torch_all": alternate.Times(cpu=[9.0, 9.0], wall=[4.0, 6.0]),
    }
    row = alternate.summary(times, replicates=2)
    assert (row["compiled_us"], row["torch_us"]) == (1.5e6, 6.5e6)
    assert (row["over_torch"], row["over_torch_range"]) == (4.0, "3 to 5")
    assert (row["compiled_all_us"], row["over_torch_all"], row["speedup"]) == (1.5e6, 2.0, 3.0)


def test_sides_take_turns_and_the_first_turn_is_not_timed() -> None:
    turns: list[str] = []
    times = alternate.alternate({name: lambda n=name: turns.append(n) for name in "ab"}, 2)  # type: ignore[misc]
    assert "".join(turns) == "ababab"
    assert [len(t.cpu) for t in times.values()] == [2, 2]


@pytest.mark.parametrize("kind", ["mean", "kl"])
def test_the_cone_program_has_our_minimiser(kind: str) -> None:
    """By Clarabel, which moreau is built on; moreau itself is not needed."""
    u = draw_pairs(2, 30, 2, seed=3).numpy()
    program = cones._Program(kind, 30, 2)
    for sample, values in zip(u, program.values(u), strict=True):
        A = program.pattern.copy()
        A.data = values
        x = cp.Variable(A.shape[1])
        left = program.right - A @ x
        count = program.inequalities
        a, b, c = (left[count + k :: 3] for k in range(3))
        asked = [left[:count] >= 0, cp.constraints.ExpCone(a, b, c)]
        cp.Problem(cp.Minimize(program.cost(RADIUS) @ x), asked).solve(solver=cp.CLARABEL)
        ours = fit(sample, SMOOTH[kind], beta=1.0, bound=BOUND)
        np.testing.assert_allclose(x.value[:2], ours.theta, atol=1e-4)


def test_the_slope_of_a_power_law_is_its_power() -> None:
    x = [10, 100, 1000, 10_000]
    found = scaling.slope(x, [3.0 * n**1.2 for n in x])
    assert found["slope"] == pytest.approx(1.2) and found["high"] - found["low"] < 1e-6
    # residuals +-h about the line y = x at log x = 1, 2, 3, 4 as (h, -h, -h, h): no slope, and
    # sqrt(4 h^2 / 2 / 5) is the standard error; 4.303 is the t quantile of 2 degrees of freedom
    h = 0.1
    bent = [n * np.exp(s * h) for n, s in zip(x, (1, -1, -1, 1), strict=True)]
    found = scaling.slope(x, bent)
    half = 4.3026527 * np.sqrt(4 * h**2 / 2 / 5) / np.log(10)
    assert (found["slope"], found["high"] - 1) == pytest.approx((1.0, half))


@pytest.mark.slow
def test_scaling_has_a_slope_for_each_set_and_a_peak(tmp_path: Path) -> None:
    bench.bench_solvers(tmp_path, "smoke", ["scaling"])
    table = pd.read_csv(tmp_path / "scaling.csv")
    assert len(table) == 2 * 3 * len(scaling.KINDS) and (table.fit_us > 0).all()
    group = table[(table.problem == "kl") & (table.against == "n")]
    expected = np.polyfit(np.log(group.n), np.log(group.fit_us), 1)[0]
    np.testing.assert_allclose(group.slope, expected)
    kept = pd.read_csv(tmp_path / "memory.csv")
    assert set(kept.problem) == {"mean", "kl"} and kept.met.all()
    # torch alone takes more than 50 MiB
    assert ((kept.peak_gib > 0.05) & (kept.peak_gib < scaling.MEMORY_LIMIT_GIB)).all()


def test_a_process_counts_its_peak_and_not_ours() -> None:
    ours = np.ones(1 << 27)  # a GiB
    found = child.measure(child.Job("mean", 1000, 5, 2))
    assert found["peak_gib"] < child.peak_gib() - 0.5
    assert ours[-1] == 1 and found["not_converged"] == 0 and found["certified_gap"] < 1e-11


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="no-such-set"):
        child.measure(child.Job("no-such-set", 10, 2, 1))


def test_large_problems_are_measured_computed_and_spread(tmp_path: Path) -> None:
    bench.bench_solvers(tmp_path, "smoke", ["large"])
    table = pd.read_csv(tmp_path / "large.csv")
    assert set(table.what) == {"small", "measured", "computed"}
    assert table.cpu_s[table.what == "computed"].isna().all()
    assert (table.cpu_s[table.what != "computed"] > 0).all()
    swept = pd.read_csv(tmp_path / "spread.csv").set_index("backend")
    assert swept.loc["sequential", "wall_efficiency"] == 1
    assert (swept.working_s <= swept.wall_s).all() and (swept.converged == 1).all()
    assert swept.value.nunique() == 1  # the same samples, wherever they were fitted


def test_the_formulae_go_through_the_small_cases() -> None:
    small = ((100, 5, 1), (1000, 5, 1), (1000, 50, 1))
    times = [1e-6 * (5 + n * (0.03 + 0.001 * d * (d + 7) / 2)) for n, d, _ in small]
    known = large.Constants(*large.constants(*times, small), atoms=2e-9)
    assert known.seconds(child.Job("kl", 10_000, 200, 3, 2)) == pytest.approx(
        6 * (5e-6 + 1e4 * (3e-8 + 1e-9 * 20_700))
    )
    assert known.seconds(child.Job("w1-finite", 2000, 5, 1)) == pytest.approx(8e-3)
    assert large.gib(child.Job("kl", 1 << 20, 4, 8), before=0.25) == pytest.approx(0.75)
