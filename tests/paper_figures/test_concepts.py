"""The pictures of the guide show what they say: compared with closed forms, and with Proposition
E."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.special import softmax

from paper_figures import concepts, falling
from theory import dpo
from theory.policy import log_policy


def line(figure: Figure, gid: str) -> np.ndarray:
    """The (n, 2) points of the curve with this name."""
    (found,) = [curve for axes in figure.axes for curve in axes.lines if curve.get_gid() == gid]
    return np.asarray(found.get_xydata())


@pytest.fixture(scope="module")
def world() -> concepts.FiniteWorld:
    return concepts.example()


def test_every_pair_has_its_margin_and_its_loss(world: concepts.FiniteWorld) -> None:
    figure = concepts.margins(world)
    points = np.concatenate([line(figure, "right"), line(figure, "wrong")])
    margin = np.sort(world.u @ concepts.fitted(world))
    assert np.sort(points[:, 0]) == pytest.approx(margin, abs=1e-12)
    assert points[:, 1] == pytest.approx(np.log1p(np.exp(-points[:, 0])), abs=1e-12)
    assert (line(figure, "wrong")[:, 0] < 0).all() and (line(figure, "right")[:, 0] >= 0).all()


def test_worst_weights_are_the_softmax_of_the_losses_and_rewards_are_sorted(
    world: concepts.FiniteWorld,
) -> None:
    figure = concepts.balls(world)
    for tau in concepts.TAUS:
        points = line(figure, f"tau={tau:g}")
        assert points[:, 1] == pytest.approx(len(points) * softmax(points[:, 0] / tau), rel=1e-10)
    chosen, rejected = line(figure, "chosen")[:, 1], line(figure, "rejected")[:, 1]
    assert (np.diff(chosen) >= 0).all() and (np.diff(rejected) >= 0).all()
    # sorting keeps the sum, so that the mean difference is that of the pairs: beta w.E u
    assert chosen.mean() - rejected.mean() == pytest.approx(
        float(world.u.mean(0) @ concepts.fitted(world)), abs=1e-12
    )


def test_policies_end_at_the_collapse_radius_and_begin_at_dpo(world: concepts.FiniteWorld) -> None:
    figure = concepts.collapse(world)
    for ball in concepts.BALLS:
        radius, length = line(figure, ball).T
        assert length[0] == pytest.approx(1, abs=1e-6)
        assert (length[radius >= 1.001] == 0).all() and (length[radius <= 0.97] > 0.005).all()


def test_kldpo_is_dpo_where_annotators_agree_and_nothing_else_is() -> None:
    assert concepts.advantage("convex", 0, "kl") == pytest.approx(
        np.zeros(len(concepts.STEPS)), abs=1e-9
    )  # Proposition E
    assert abs(concepts.advantage("convex", 0, "w2-free")).max() > 0.02
    assert abs(concepts.advantage("sure annotators", 4, "kl")).max() > 0.02


def test_chosen_and_rejected_fall_by_the_kl_in_their_mean_and_dpo_is_the_theorys() -> None:
    world = falling.world()
    place = torch.arange(len(world.chosen))
    u = world.features[place, world.chosen] - world.features[place, world.rejected]
    found = falling.change(world, falling.OBJECTIVES["DPO"])
    theta = dpo(u, beta=0.1).theta.numpy()
    log_ratio = log_policy(theta, world.features.numpy()) + np.log(falling.RESPONSES)
    exact = [log_ratio[place, side].mean() for side in (world.chosen, world.rejected)]
    assert [found.chosen, found.rejected] == pytest.approx(exact, rel=1e-4)
    for options in falling.OBJECTIVES.values():
        one = falling.change(world, options)
        # the pairs are a sample of the responses: four standard errors of a mean of 4,000, whose
        # standard deviation is sqrt(2 KL) near the reference and of the KL's size far away
        kl = one.reference_kl
        error = 4 * (np.sqrt(2 * kl) + kl) / np.sqrt(2 * falling.CONTEXTS)
        assert (one.chosen + one.rejected) / 2 == pytest.approx(-one.reference_kl, abs=error)


def test_all_are_written_as_small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concepts, "WORLDS", 1)
    written = concepts.draw_pictures(tmp_path)
    assert [path.name for path in written] == [
        "margins.png",
        "balls.png",
        "collapse.png",
        "limits.png",
        "falling.png",
    ]
    assert all(2_000 < path.stat().st_size < 100_000 for path in written)
    guide = Path(__file__).resolve().parents[2] / "docs" / "guide" / "img"
    assert {path.name for path in written} == {path.name for path in guide.iterdir()}
