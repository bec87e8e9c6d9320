"""The trainer on a log-linear policy, against the exact estimators of the theory on the same pairs.

pi(a | s) ∝ exp(theta.psi(s, a)) as a model of sequences of two tokens, context and action: margins
are beta (theta - theta_ref).u with u = psi(s, a+) - psi(s, a-), so that the trainer has to find
what `theory.estimators` find.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

from llm.data.tokens import PreferenceCollator
from llm.objectives import ObjectiveParameters
from llm.trainer import PreferenceTrainer
from tests.llm.training import arguments
from theory.aot import minimise_aot
from theory.estimators import dpo, kldpo, kldpo_tilt
from theory.losses import least_squares

BETA, BOUND = 1.5, 100.0
FAR = -1e9  # logit of a token that is no action


class LogLinear(nn.Module):
    """Tokens 0..S-1 are contexts and S..S+A-1 actions; psi (S, A, d). In float64, and with no head
    that could be fused."""

    def __init__(self, psi: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(psi.shape[2], dtype=torch.float64))
        self.register_buffer("psi", psi)
        self.tokens = nn.Embedding(psi.shape[0] + psi.shape[1], 1).requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        assert isinstance(self.psi, Tensor)
        contexts = self.psi.shape[0]
        logits = self.theta.new_full((*input_ids.shape, contexts + self.psi.shape[1]), FAR)
        scores = self.psi[input_ids[:, 0] % contexts] @ self.theta
        logits = torch.cat(
            [logits[..., :contexts], scores[:, None].expand(-1, input_ids.shape[1], -1)], -1
        )
        return SimpleNamespace(logits=logits)


class BarzilaiBorwein(torch.optim.Optimizer):
    """Gradient descent with the step s.s/s.y of the last move s and change of gradient y, for one
    small smooth problem."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state, size = self.state[p], group["lr"]
                if p.grad.norm() < 1e-9:  # what is left of a move is rounding
                    continue
                if "gradient" in state:
                    y = p.grad - state["gradient"]
                    size = float(
                        state["move"].square().sum()
                        / (state["move"] * y).sum().abs().clamp(min=1e-300)
                    )
                state["gradient"], state["move"] = p.grad.clone(), -size * p.grad
                p += state["move"]


def world(contexts: int, actions: int, count: int) -> tuple[Tensor, dict[str, list]]:
    """Features and noisily labelled pairs, with weights that float32 holds exactly, and the
    reference at theta_ref."""
    rng = np.random.default_rng(0)
    psi = torch.from_numpy(rng.normal(size=(contexts, actions, 3)))
    s = rng.integers(contexts, size=count)
    pair = np.stack([rng.choice(actions, 2, replace=False) for _ in range(count)])
    gap = (psi[s, pair[:, 0]] - psi[s, pair[:, 1]]) @ torch.tensor([1.0, -0.5, 0.3]).double()
    lost = rng.random(count) > 1 / (1 + np.exp(-gap.numpy()))
    pair[lost] = pair[lost][:, ::-1]
    columns = {
        "prompt_ids": [[int(i)] for i in s],
        "chosen_ids": [[contexts + int(i)] for i in pair[:, 0]],
        "rejected_ids": [[contexts + int(i)] for i in pair[:, 1]],
        "index": list(range(count)),
        "weight": (rng.integers(1, 9, size=count) / 64).tolist(),
    }
    return psi, columns


def features(psi: Tensor, rows: dict[str, list]) -> tuple[Tensor, Tensor]:
    """psi of chosen and rejected responses, (n, d) each."""
    s = torch.tensor(rows["prompt_ids"])[:, 0]
    return tuple(
        psi[s, torch.tensor(rows[c])[:, 0] - len(psi)] for c in ("chosen_ids", "rejected_ids")
    )  # type: ignore[return-value]


def trained(
    psi: Tensor,
    rows: dict[str, list],
    theta_ref: Tensor,
    p: ObjectiveParameters,
    out: Path,
    **settings: Any,
) -> Tensor:
    """theta after full-batch steps of the trainer."""
    s = torch.tensor(rows["prompt_ids"])[:, 0]
    reference = torch.log_softmax(psi @ theta_ref, 1)
    for name in ("chosen", "rejected"):
        rows[f"ref_{name}_logps"] = reference[
            s, torch.tensor(rows[f"{name}_ids"])[:, 0] - len(psi)
        ].tolist()
    model = LogLinear(psi)
    with torch.no_grad():
        model.theta.copy_(theta_ref)
    with pytest.warns(UserWarning, match="taken from full logits"):
        trainer = PreferenceTrainer(
            model,
            arguments(out, lr_scheduler_type="constant", logging_strategy="no", **settings),
            p,
            train_dataset=Dataset.from_dict(rows),
            data_collator=PreferenceCollator(0),
            optimizers=(BarzilaiBorwein([model.theta], 0.3), None),
        )
    trainer.train()
    return model.theta.detach()


ESTIMATORS: dict[str, tuple[dict[str, float], Callable[..., Any]]] = {
    "dpo": ({}, dpo),
    "kldpo rho": ({"rho": 0.05}, lambda u, p, **more: kldpo(u, p, radius=0.05, **more)),
    "kldpo tau": ({"tau": 0.8}, lambda u, p, **more: kldpo_tilt(u, p, temperature=0.8, **more)),
}


@pytest.mark.parametrize(("name", "micro"), [("dpo", 16), ("kldpo rho", 16), ("kldpo tau", 40)])
def test_the_trainer_finds_the_estimator(name: str, micro: int, tmp_path: Path) -> None:
    """To 1e-6: the data hold reference log-probabilities and weights in float32."""
    settings, estimator = ESTIMATORS[name]
    psi, rows = world(contexts=5, actions=4, count=40)
    theta_ref = torch.tensor([0.3, 0.2, -0.4]).double()
    chosen, rejected = features(psi, rows)
    weights = torch.tensor(rows["weight"]).double()
    fit = estimator(
        chosen - rejected, weights / weights.sum(), beta=BETA, bound=BOUND, theta_ref=theta_ref
    )
    assert fit.converged.all() and not fit.collapsed.any()
    cut = {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": -(-40 // micro),
        "max_steps": 30,
    }
    theta = trained(
        psi,
        rows,
        theta_ref,
        ObjectiveParameters(name.split()[0], BETA, **settings),
        tmp_path,
        **cut,
    )
    assert (theta - theta_ref).norm() > 0.3
    torch.testing.assert_close(theta, fit.theta, rtol=0, atol=1e-6)


def test_the_trainer_finds_a_minimum_of_aot(tmp_path: Path) -> None:
    """With one context log Z is the same for all responses, and unpaired AOT is that of linear
    rewards."""
    psi, rows = world(contexts=1, actions=60, count=30)
    everyone = np.random.default_rng(1).permutation(
        60
    )  # no two responses are equal, so that the coupling is unique
    for name, half in (("chosen_ids", everyone[:30]), ("rejected_ids", everyone[30:])):
        rows[name] = [[1 + int(i)] for i in half]
    p = ObjectiveParameters(
        "aot_unpaired", BETA, h="least_squares"
    )  # a minimum also where chosen dominate rejected
    theta = trained(
        psi,
        rows,
        torch.zeros(3).double(),
        p,
        tmp_path,
        per_device_train_batch_size=30,
        max_steps=60,
    )
    chosen, rejected = features(psi, rows)
    weights = torch.tensor(rows["weight"]).double()
    share = weights / weights.sum()
    near = theta[None] + 1e-2  # a start from which Newton's method has steps to take
    fit = minimise_aot(
        chosen, rejected, share, share, starts=near, h=least_squares, beta=BETA, bound=BOUND
    )
    assert fit.converged.all() and theta.norm() > 0.3
    torch.testing.assert_close(theta, fit.theta[0], rtol=0, atol=1e-6)
