"""The benchmark's own objectives against independent programs, and a run of its smallest
profile."""

import importlib.util
import re
from pathlib import Path

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest

from experiments.bench import solvers as bench

RNG = np.random.default_rng(0)
U, THETA = RNG.normal(size=(12, 3)), np.array([0.7, -0.4, 0.2])
P = RNG.dirichlet(np.full(12, 5.0))
LOSS = np.log1p(np.exp(-U @ THETA))
CLOSE = {"solver": cp.CLARABEL, "tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}


def test_kl_objective_is_the_worst_mean_loss_in_the_ball() -> None:
    q = cp.Variable(12, nonneg=True)
    ball = [cp.sum(q) == 1, cp.sum(cp.rel_entr(q, P)) <= bench.KL_RADIUS]
    worst = cp.Problem(cp.Maximize(LOSS @ q), ball).solve(**CLOSE)
    assert bench.kl_objective(bench.KL_RADIUS)(THETA, U, P) == pytest.approx(worst, rel=1e-7)


@pytest.mark.parametrize("power", [1, 2])
def test_finite_objective_is_the_worst_transport_plan(power: int) -> None:
    distance = np.linalg.norm(U[:, None] - U[None], axis=-1)
    plan = cp.Variable((12, 12), nonneg=True)
    spent = cp.sum(cp.multiply(plan, distance**power))
    ball = [cp.sum(plan, axis=1) == P, spent <= bench.TRANSPORT_RADIUS**power]
    worst = cp.Problem(cp.Maximize(cp.sum(plan @ LOSS)), ball).solve(**CLOSE)
    assert bench.finite_objective(power, distance)(THETA, U, P) == pytest.approx(worst, rel=1e-7)


def test_w1_label_objective_is_the_worst_share_of_flips() -> None:
    # the adversary flips shares of the labels at the cost kappa and spends what is left at the
    # slope beta ||theta||
    flips = cp.Variable(12, nonneg=True)
    left = bench.TRANSPORT_RADIUS - bench.LABEL_COST * (P @ flips)
    gain = LOSS @ P + cp.multiply(P, U @ THETA) @ flips + left * np.linalg.norm(THETA)
    worst = cp.Problem(cp.Maximize(gain), [flips <= 1, left >= 0]).solve(**CLOSE)
    assert bench.w1_label_objective(THETA, U, P) == pytest.approx(worst, rel=1e-7)


def test_w2_objective_of_one_far_pair_moves_it_by_the_radius() -> None:
    # one pair with margin -6: the loss is concave in the squared distance there, so all of the mass
    # moves by rho
    theta, u = np.array([2.0, 0.0]), np.array([[-3.0, 1.0]])
    expected = np.log1p(np.exp(6 + 2 * bench.TRANSPORT_RADIUS))
    assert bench.w2_objective(theta, u, np.ones(1)) == pytest.approx(expected, rel=1e-8)


def test_labelled_keeps_the_margins_and_has_two_classes() -> None:
    X, y = bench._labelled(U)
    assert set(y) == {-1.0, 1.0}
    np.testing.assert_allclose(y[:, None] * X, U)


def test_drawn_labels_follow_bradley_terry() -> None:
    u = bench.draw_pairs(2, 20_000, 5, seed=0).numpy()
    norms = np.linalg.norm(u, axis=-1)
    assert norms.max() <= 2
    assert np.mean(norms <= 1) == pytest.approx(0.5**5, abs=5e-3)  # uniform in the ball of radius 2
    # E[u 1{...}]: the sign is right in direction theta with probability sigma(|theta.u|)
    m = u @ np.array([1.0, -1.0, 0.5, 0.0, 0.3])
    assert np.mean(m > 0) == pytest.approx(np.mean(1 / (1 + np.exp(-np.abs(m)))), abs=6e-3)
    assert not np.allclose(u[0], u[1])


@pytest.fixture
def without_skwdro(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> bench.PeerFit:
        raise ImportError("skwdro")

    monkeypatch.setattr(bench, "skwdro_w2", missing)  # it takes seconds a fit


def test_smoke_run(
    tmp_path: Path, without_skwdro: None, capsys: pytest.CaptureFixture[str]
) -> None:
    table = bench.bench_solvers(tmp_path, "smoke", ["peers", "sets"])
    shown = capsys.readouterr().out.partition("ours against peers")[2]
    assert {*table.problem, *table.peer} <= set(re.split(r"  +|\n", shown))
    assert "skwdro: not installed: make peers" in shown
    assert "…" not in shown
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "solvers.csv")[["ours_s"]], table[["ours_s"]]
    )
    cpu = table[table.device == "cpu"].set_index(["problem", "peer"])
    exact = ["cvxpy", "cvxpy, compiled"] + (["dro"] if importlib.util.find_spec("dro") else [])
    compared = cpu[cpu.index.get_level_values("peer").isin(exact)]
    assert {"kldpo", "wdpo_finite p=1", "wdpo_finite p=2"} <= set(
        compared.index.get_level_values("problem")
    )
    # interior-point solvers at their default accuracy: a wrong radius, cost or weight shows at 1e-3
    # and more
    assert compared.objective_gap.abs().max() < 1e-6
    assert (cpu.certified_gap.dropna() < 1e-9).all()
    np.testing.assert_allclose(compared.ratio, compared.peer_s / compared.ours_s)
    absent = cpu.loc["wdpo_free p=2", "skwdro"]
    assert (
        absent.note == "not installed: make peers" and absent.ours_s > 0 and np.isnan(absent.peer_s)
    )


def test_a_peer_that_fails_is_reported_and_not_timed() -> None:
    calls: list[int] = []

    def sometimes(u: np.ndarray, p: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no solution")
        return np.zeros(5)

    size = bench.PROFILES["smoke"]
    case = bench.cases(size)[0]
    row = bench.compare(case, bench.Peer("other", lambda: sometimes, target=0.0), size, "cpu")
    assert row["note"] == "other failed on 1 of 3 samples: no solution"
    assert row["objective_gap"] < 0 and row["met"]
    broken = bench.Peer(
        "other", lambda: lambda u, p: np.linalg.solve(np.zeros((5, 5)), p[:5]), target=0.0
    )
    assert "met" not in bench.compare(case, broken, size, "cpu")


def test_unknown_profile_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"smoke, quick, paper, got 'fast'"):
        bench.bench_solvers(tmp_path, "fast")


def test_dro_is_imported_without_its_unused_requirements() -> None:
    pytest.importorskip("sklearn")
    if importlib.util.find_spec("dro") is None:
        pytest.skip("dro is not installed: make peers")
    theta = bench.dro_kl(bench.KL_RADIUS)(U, np.full(12, 1 / 12))
    assert theta.shape == (3,) and np.isfinite(theta).all()


def test_devices_are_compared_on_the_same_samples() -> None:
    """Here a device with itself: the values are the same, however often the samples come again."""
    found = [
        row
        for row in bench.devices(bench.PROFILES["smoke"], "cpu")
        if row["problem"] in ("dpo", "wdpo_finite p=1")
    ]
    assert [row["replicates"] for row in found] == [
        2,
        6,
    ] * 2  # 5 are asked for, in whole repetitions of 3
    assert all(row["objective_gap"] < 1e-12 and row["certified_gap"] < 1e-8 for row in found)


def test_devices_without_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees none"):
        bench.bench_solvers(tmp_path, "smoke", ["devices"])
