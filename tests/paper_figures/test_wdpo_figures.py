"""Figures 1 to 4 of WDPO/KLDPO: what is drawn has the numbers of the tables; the scheme's curves
against other solvers."""

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import minimize

from paper_figures import style
from paper_figures.paper import wdpo_fig1, wdpo_fig2, wdpo_fig3, wdpo_fig4
from paper_figures.studies import policies
from tests.paper_figures.language_tables import SCALE, T2, write_armorm
from tests.paper_figures.test_emotion import write_study


def panel(figure: Figure, title: str) -> Axes:
    return next(
        axes for axes in figure.axes if axes.get_title("left") == title or axes.get_title() == title
    )


def line(axes: Axes, gid: str) -> np.ndarray:
    return np.array(next(one for one in axes.lines if one.get_gid() == gid).get_xydata())


def small_print(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


# ------------------------------------------------------------------------------------------- Fig. 1
@pytest.mark.parametrize("tau", [None, wdpo_fig1.TAU])
def test_the_policies_of_the_scheme_minimise_the_objectives(tau: float | None) -> None:
    reward = wdpo_fig1.TRAIN * wdpo_fig1.REWARDS[0] + (1 - wdpo_fig1.TRAIN) * wdpo_fig1.REWARDS[1]
    pairs = list(permutations(range(3), 2))
    chance = (
        np.array([1 / (1 + np.exp(reward[j] - reward[i])) for i, j in pairs]) / 3
    )  # of the pair and of i preferred

    def objective(logits: np.ndarray) -> float:
        losses = np.array(
            [np.log1p(np.exp(-wdpo_fig1.BETA * (logits[i] - logits[j]))) for i, j in pairs]
        )
        return float(
            chance @ losses if tau is None else tau * np.log(chance @ np.exp(losses / tau))
        )

    logits = minimize(objective, np.zeros(3), tol=1e-12).x
    learned = np.exp(logits) / np.exp(logits).sum()
    beta = wdpo_fig1.BETA if tau is None else wdpo_fig1.robust_beta(tau)
    np.testing.assert_allclose(wdpo_fig1.policy(beta), learned, atol=2e-4)


def test_the_worst_case_of_the_scheme_is_the_worst_of_its_ball() -> None:
    centre, pi = wdpo_fig1.population(wdpo_fig1.TRAIN), wdpo_fig1.policy(wdpo_fig1.BETA)
    worst = wdpo_fig1.worst_case(centre, pi, wdpo_fig1.RADIUS_KL)
    others = np.random.default_rng(0).dirichlet(np.ones(3), 20_000)
    inside = others[(others * np.log(others / centre)).sum(1) <= wdpo_fig1.RADIUS_KL]
    best = (-(inside @ np.log(pi))).max()
    assert best <= -(worst @ np.log(pi)) < best + 0.02
    assert (worst * np.log(worst / centre)).sum() == pytest.approx(wdpo_fig1.RADIUS_KL)


def test_the_scheme_says_what_it_shows(tmp_path: Path) -> None:
    with style.paper():
        figure = wdpo_fig1.scheme()
    values = line(figure.axes[2], "DPO")
    learned = wdpo_fig1.policy(wdpo_fig1.BETA)
    assert values[0, 1] == pytest.approx(learned @ wdpo_fig1.REWARDS[1]) and values[
        -1, 1
    ] == pytest.approx(learned @ wdpo_fig1.REWARDS[0])
    robust = line(figure.axes[2], "KLDPO")
    assert (
        robust[1, 1] < values[1, 1] and robust[8, 1] > values[8, 1]
    )  # less at alpha_o = 0.1, more at 0.8: as the title says
    written = wdpo_fig1.draw(tmp_path / "nowhere", tmp_path)
    assert [path.name for path in written] == ["wdpo_fig1.pdf", "wdpo_fig1.png"] and written[
        1
    ].stat().st_size > 10_000


# ------------------------------------------------------------------------------------------- Fig. 2
def test_emotion_curves_and_differences(tmp_path: Path) -> None:
    source = write_study(tmp_path / "emotion")
    run = json.loads((source / "run.json").read_text())
    run["scale"] = SCALE
    summary = pd.read_csv(source / "summary.csv", dtype={"alpha": str})
    rewards = pd.read_parquet(source / "rewards.parquet")
    with style.paper():
        figure = wdpo_fig2.figure(summary, rewards, run)
    convex = panel(figure, "convex: KLDPO")
    assert convex.lines and line(convex, r"$\tau$ = 1")[:, 0].tolist() == [0.0, 0.5, 1.0]
    kept = summary[
        (summary.setting == "convex")
        & (summary.method == "kldpo")
        & (summary.radius == 1)
        & summary.final
    ]
    kept = kept[~kept.alpha.isin(["worst", "mean"])]
    np.testing.assert_allclose(line(convex, r"$\tau$ = 1")[:, 1], kept.sort_values("alpha").reward)
    below = figure.axes[figure.axes.index(convex) + 2]  # panels stand row by row, two in each
    mine = rewards[(rewards.setting == "convex") & (rewards.step == 10) & (rewards.alpha == 1.0)]
    by = {
        m: mine[(mine.method == m) & (mine.beta == 0.1) & mine.radius.isin([0, 1])].reward.mean()
        for m in ("kldpo", "dpo")
    }
    assert line(below, r"$\tau$ = 1")[-1, 1] == pytest.approx(by["kldpo"] - by["dpo"])
    assert SCALE in small_print(figure)
    assert not {"dpo|1", r"DPO, beta 1"} & {one.get_gid() for one in convex.lines}


def test_the_scale_of_the_emotion_study_comes_from_its_profile() -> None:
    run = {
        "profile": {
            "source": "grammar",
            "layers": 2,
            "width": 64,
            "seeds": 4,
            "prompts": 100,
            "model": None,
        },
        "pairs": [96, 96],
    }
    said = policies.scale(run)
    assert (
        said == "ours: texts of a grammar, GPT-2 of 2 layers of width 64, trained from scratch, 96"
        " pairs, 4 seeds"
    )
    assert policies.scale({"scale": "Generated corpus."}) == "ours: Generated corpus"


# ------------------------------------------------------------------------------------------- Fig. 3
@pytest.fixture(scope="module")
def armorm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_armorm(tmp_path_factory.mktemp("results"))


def test_radar(armorm: Path) -> None:
    axes, run = pd.read_csv(armorm / "axes.csv"), json.loads((armorm / "run.json").read_text())
    with style.paper():
        figure = wdpo_fig3.figure(axes, run)
    radar = panel(figure, "trained on anger + fear")
    points = line(radar, "DPO")
    row = (
        axes[(axes.pair == "anger + fear") & (axes.method == "dpo") & (axes.beta == 0.1)]
        .set_index("objective")
        .reward
    )
    texts = [text.get_text() for text in radar.texts]
    for k, objective in enumerate(run["axes"]):
        low, high = map(
            float, next(t for t in texts if t.startswith(objective)).split("\n")[1].split(" to ")
        )
        angle = np.pi / 2 - 2 * np.pi * k / 5
        along = points[k] @ np.array(
            [np.cos(angle), np.sin(angle)]
        )  # methods stand side by side: across the spoke
        assert along == pytest.approx(0.25 + 0.75 * (row[objective] - low) / (high - low))
        assert (
            low
            <= axes[axes.objective == objective]
            .query("method == 'dpo' and beta == 0.1")
            .reward.min()
        )
    assert sum(one.get_gid() == "DPO|interval" for one in radar.lines) == 5
    scales = [sorted(t.get_text() for t in one.texts) for one in figure.axes]
    assert scales[0] == scales[1] == scales[2]  # the same in every radar
    assert "DPO with" not in " ".join(texts) and SCALE in small_print(figure)


def test_ends_of_a_spoke_are_round_and_hold_the_values() -> None:
    rows = pd.DataFrame(
        {
            "objective": "joy",
            "reward": [0.31, 0.42],
            "reward_low": [0.30, 0.41],
            "reward_high": [0.32, 0.43],
        }
    )
    assert wdpo_fig3.scales([rows], ["joy"])["joy"] == pytest.approx((0.3, 0.45))


# ------------------------------------------------------------------------------------------- Fig. 4
def test_mixtures(armorm: Path) -> None:
    mixtures, run = (
        pd.read_csv(armorm / "mixtures.csv"),
        json.loads((armorm / "run.json").read_text()),
    )
    rewards = pd.read_parquet(armorm / "rewards.parquet")
    with style.paper():
        figure = wdpo_fig4.figure(mixtures, rewards, run)
    top = panel(figure, "joy + sadness: WDPO")
    row = mixtures[
        (mixtures.pair == "joy + sadness") & (mixtures.method == "wdpo") & (mixtures.radius == 0.05)
    ]
    np.testing.assert_allclose(
        line(top, r"$\rho$ = 0.05"), row[["alpha", "reward"]].sort_values("alpha")
    )
    assert line(top, "trained")[0, 0] == 0.1
    below = figure.axes[figure.axes.index(top) + 2]
    mine = (
        rewards[rewards.pair == "joy + sadness"]
        .set_index(["method", "radius", "beta", "objective", "seed"])
        .reward
    )
    gaps = [
        0.25 * (mine["wdpo", 0.05, 0.1, "joy", s] - mine["dpo", 0.0, 0.1, "joy", s])
        + 0.75 * (mine["wdpo", 0.05, 0.1, "sadness", s] - mine["dpo", 0.0, 0.1, "sadness", s])
        for s in range(3)
    ]
    assert line(below, r"$\rho$ = 0.05")[1] == pytest.approx([0.25, np.mean(gaps)])
    band = policies.interval(pd.DataFrame([gaps]))
    assert band.high.iloc[0] - band["mean"].iloc[0] == pytest.approx(
        T2 * np.std(gaps, ddof=1) / 3**0.5
    )


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no folder armorm. Make the tables with `prefdro run armorm --out"
    ):
        wdpo_fig3.draw(tmp_path, tmp_path / "out")
    folder = write_armorm(tmp_path)
    run = json.loads((folder / "run.json").read_text()) | {"radar_pairs": ["hope + doubt"]}
    (folder / "run.json").write_text(json.dumps(run))
    with pytest.raises(ValueError, match="none of the pairs hope \\+ doubt"):
        wdpo_fig3.draw(tmp_path, tmp_path / "out")


def test_the_study_s_own_folder_is_taken_too(armorm: Path, tmp_path: Path) -> None:
    assert [path.name for path in wdpo_fig4.draw(armorm, tmp_path)] == [
        "wdpo_fig4.pdf",
        "wdpo_fig4.png",
    ]
