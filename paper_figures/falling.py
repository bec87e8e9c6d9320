"""The picture of the guide's page on falling log-probabilities: what each objective does to chosen
and rejected responses in a log-linear world.

`concepts.py` draws it with the others. The objectives are those of `prefdro train`, minimised over
log-linear policies; both responses of a pair are drawn from the reference, which is uniform.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from llm.objectives import ObjectiveParameters, make_objective
from llm.scores import Pairs
from paper_figures import style
from paper_figures.style import BLACK, BLUE, GREY, ORANGE

CONTEXTS, RESPONSES, DIMENSIONS = 2000, 16, 5
OBJECTIVES: dict[str, dict[str, Any]] = {
    "DPO, beta 1": {"objective": "dpo", "beta": 1.0},
    "DPO, beta 0.3": {"objective": "dpo", "beta": 0.3},
    "DPO": {"objective": "dpo"},
    "cDPO, flip 0.1": {"objective": "cdpo", "flip": 0.1},
    "IPO": {"objective": "ipo"},
    "NCA": {"objective": "nca"},
    "SPPO": {"objective": "sppo"},
    "APO-zero": {"objective": "apo_zero"},
    "SimPO, margin 1": {"objective": "simpo", "target_margin": 1.0},
    "KLDPO, tau 0.5": {"objective": "kldpo", "tau": 0.5},
    "KLDPO, rho 0.05": {"objective": "kldpo", "rho": 0.05},
    "chi-squared, rho 0.1": {"objective": "chi2", "rho": 0.1},
    "DPO + 0.1 SFT": {"objective": "dpo", "sft_weight": 0.1},
    "ORPO, beta 1": {"objective": "orpo", "beta": 1.0, "sft_weight": 1.0},
}


class World(NamedTuple):
    """features (S, A, d), reward (S, A), and the place of the chosen and of the rejected response
    of each context, (S,)."""

    features: torch.Tensor
    reward: torch.Tensor
    chosen: torch.Tensor
    rejected: torch.Tensor


@dataclass(frozen=True)
class Change:
    """chosen, rejected: mean change of the log-probability, nats. reference_kl: KL(pi_ref || pi),
    nats. gain: mean reward above the reference's, as a share of what the best responses have."""

    chosen: float
    rejected: float
    reference_kl: float
    gain: float


def world(seed: int = 0) -> World:
    """Standard normal features, a reward of slope 1 along the first, one pair in each context."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(CONTEXTS, RESPONSES, DIMENSIONS))
    reward = features[..., 0]
    pair = np.argsort(rng.random((CONTEXTS, RESPONSES)), 1)[:, :2]
    of_pair = np.take_along_axis(reward, pair, 1)
    first = rng.random(CONTEXTS) < 1 / (1 + np.exp(of_pair[:, 1] - of_pair[:, 0]))
    chosen, rejected = np.where(first, pair.T, pair.T[::-1])
    return World(*(torch.tensor(values) for values in (features, reward, chosen, rejected)))


def change(w: World, options: dict[str, Any]) -> Change:
    """What the minimiser of an objective of `prefdro train` does to the world's responses."""
    objective = make_objective(ObjectiveParameters(**options))
    reference = torch.full((CONTEXTS, RESPONSES), -np.log(RESPONSES), dtype=torch.float64)
    one = torch.ones(CONTEXTS, dtype=torch.float64)

    def of_pairs(log_policy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.stack([w.chosen, w.rejected], 1)
        first, second = log_policy.gather(1, places).unbind(1)
        return first, second

    theta = torch.zeros(DIMENSIONS, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([theta], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        descent.zero_grad()
        log_policy = torch.log_softmax(w.features @ theta, -1)
        pairs = Pairs(*of_pairs(log_policy), *of_pairs(reference), one, one)
        value = objective.value(pairs)
        value.backward()
        return value

    descent.step(closure)
    log_ratio = torch.log_softmax(w.features @ theta.detach(), -1) - reference
    chosen, rejected = of_pairs(log_ratio)
    under = (log_ratio.exp() * w.reward).mean() - w.reward.mean()
    best = w.reward.amax(1).mean() - w.reward.mean()
    return Change(
        float(chosen.mean()), float(rejected.mean()), -float(log_ratio.mean()), float(under / best)
    )


def falling(w: World) -> Figure:
    """Chosen, rejected and their mean for each objective, beside the reward of its policy."""
    found = {name: change(w, options) for name, options in OBJECTIVES.items()}
    names = sorted(found, key=lambda name: found[name].reference_kl)
    places = np.arange(len(names))
    drawn, axes = style.grid(style.PAGE, [0.17 * len(names)], 2, left=1.25, right=0.1, gap_x=0.2)
    left, right = axes[0]
    for label, marker, color in (("chosen", "o", BLUE), ("rejected", "s", ORANGE)):
        values = [getattr(found[name], label) for name in names]
        left.plot(values, places, marker, color=color, markersize=4, label=label, gid=label)
    kl = [-found[name].reference_kl for name in names]
    left.plot(
        kl, places, "|", color=BLACK, markersize=7, label="minus KL(reference || policy)", gid="kl"
    )
    left.axvline(0, color=GREY, linewidth=0.7, zorder=0)
    left.set_xscale("symlog", linthresh=0.3)
    left.set_xlim(-50, 0.5)
    left.set_xticks([-30, -10, -3, -1, -0.3, 0, 0.3])
    left.xaxis.set_major_formatter("{x:g}")
    left.minorticks_off()
    left.set_xlabel("mean change of the log-probability, nats")
    right.barh(places, [found[name].gain for name in names], color=GREY, height=0.6)
    right.set(xlim=(0, 1), xlabel="reward gained, share of the best")
    for panel in (left, right):
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_yticks(places, names)
        panel.tick_params(axis="y", length=0, labelleft=panel is left)
    left.legend(loc="lower right", frameon=True, framealpha=1, edgecolor="none")
    return drawn
