"""Training steps of WDPO: exact, by finite difference, and adversarial; see `llm.wasserstein` for
what each computes.

The penalty rho (E ||g||²)^(1/2) couples all pairs of the effective batch through one number, E
||g||².

| step             | before                                    | per micro-batch                   |
|------------------|-------------------------------------------|-----------------------------------|
| Exact            | ||g_i||² of all pairs, over micro-batches | double backward                   |
| FiniteDifference | plain gradient, which gives g on the way  | gradients at both ends z ± eps u  |
| Adversarial      | g                                         | gradient at z + rho u             |
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from llm import packing
from llm.global_batch import detached, scores_of
from llm.objective import Objective
from llm.scores import Scores
from llm.steps import Batch, Mean, with_value
from llm.wasserstein import embedding_outputs, squared_norms
from theory.functionals import gradient_norm
from theory.precision import wide


class Wasserstein(Mean):
    """What the three have in common. radius: rho in units of the embedding output (its square, if
    `squared`)."""

    def __init__(
        self,
        objective: Objective,
        accelerator: Accelerator,
        *,
        fused: bool,
        radius: float,
        squared: bool,
        packed: bool = False,
    ) -> None:
        super().__init__(objective, accelerator, fused=fused, packed=packed)
        self.radius, self.squared = radius, squared

    def penalty(self, norms: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of ||g_i||² and weights of this rank's pairs: the penalty of the effective batch, (E
        ||g||²)^(1/2), and slopes.

        The slopes are d penalty / d ||g_i||² for this rank's pairs, times the number of ranks.
        """
        leaf = wide(self.accelerator.gather(norms.detach())).requires_grad_()
        share = wide(self.accelerator.gather(weights))
        with torch.enable_grad():
            penalty = self.radius * gradient_norm(leaf, share, squared=self.squared)
            slopes = torch.autograd.grad(penalty, leaf)[0]
        start = self.accelerator.process_index * len(norms)
        own = slopes[start : start + len(norms)] * self.accelerator.num_processes
        root = (share * leaf.detach()).sum().sqrt()
        self.numbers["embedding_gradient_norm"].append(float(root))
        return penalty.detach().to(norms.dtype), root.to(norms.dtype), own.to(norms.dtype)

    def scores_and_output(
        self, model: nn.Module, batch: Batch, shift: Tensor | None = None
    ) -> tuple[Scores, Tensor]:
        """Scores of a micro-batch, and the embedding output that they were computed from: see
        `rows`. shift: (2b, T, width)."""
        if self.packed and shift is not None:
            shift = packing.packed(shift, batch)
        with embedding_outputs(model, shift) as outputs:
            scores = scores_of(batch, self.score(model, batch))
        return scores, outputs[0]

    def rows(self, gradient: Tensor, batch: Batch) -> Tensor:
        """A gradient at the embedding output of the model as (2b, T, width)."""
        return packing.unpacked(gradient, batch) if self.packed else gradient

    def gradients(self, model: nn.Module, batch: Batch, *, log: bool = False) -> Tensor:
        """g_i at both rows of each pair, (2b, T, width). log: these are the scores to be logged."""
        with self.accelerator.no_sync(model):
            scores, output = self.scores_and_output(model, batch)
            if log:
                self.seen.append(detached(scores))
            return self.rows(torch.autograd.grad(self.losses(scores).sum(), output)[0], batch)


class Exact(Wasserstein):
    """Through the gradient, by a double backward."""

    def before(self, model: nn.Module, batches: list[Batch]) -> None:
        """Slopes of the penalty, where several micro-batches share them."""
        super().before(model, batches)
        if self.squared or len(batches) == 1:
            return
        norms = [squared_norms(self.gradients(model, batch)) for batch in batches]
        penalty, _, slopes = self.penalty(
            torch.cat(norms), torch.cat([batch["weight"] for batch in batches])
        )
        for batch, own in zip(batches, slopes.split([len(n) for n in norms]), strict=True):
            batch["slopes"], batch["penalty"] = own, penalty / len(batches)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """sum_i p_i l_i + s_i ||g_i||²."""
        scores, output = self.scores_and_output(model, batch)
        self.seen.append(detached(scores))
        found = torch.autograd.grad(self.losses(scores).sum(), output, create_graph=True)[0]
        norms = squared_norms(self.rows(found, batch))
        if "slopes" in batch:
            penalty, slopes = batch["penalty"], batch["slopes"]
        elif self.squared:  # a mean: shares of it add up
            slopes = self.radius * batch["weight"] * self.accelerator.num_processes
            penalty = (slopes * norms).sum().detach()
        else:
            penalty, _, slopes = self.penalty(norms, batch["weight"])
        plain = self.share(scores)
        return self.checked(with_value(plain + (slopes * norms).sum(), plain.detach() + penalty))


class Directed(Wasserstein):
    """Steps that look at the loss along u = g / (E ||g||²)^(1/2)."""

    def add_directions(self, batches: list[Batch], gradients: list[Tensor]) -> None:
        """u of each micro-batch; zero where all gradients are."""
        norms = torch.cat([squared_norms(gradient) for gradient in gradients])
        penalty, root, _ = self.penalty(norms, torch.cat([batch["weight"] for batch in batches]))
        for batch, gradient in zip(batches, gradients, strict=True):
            batch["direction"] = torch.where(root > 0, gradient / torch.where(root > 0, root, 1), 0)
            batch["penalty"], batch["root"] = penalty / len(batches), root


class Adversarial(Directed):
    """The loss at z + rho u, a point of the ball."""

    def before(self, model: nn.Module, batches: list[Batch]) -> None:
        """u of all pairs. The rewards that are logged are those of the policy, not of the
        adversary."""
        super().before(model, batches)
        self.add_directions(batches, [self.gradients(model, batch, log=True) for batch in batches])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss there."""
        scores, _ = self.scores_and_output(model, batch, self.radius * batch["direction"])
        return self.checked(self.share(scores))


class FiniteDifference(Directed):
    """Plain gradient, plus a central difference of plain gradients along u with the step epsilon.

    epsilon is the length of the shift of a whole pair, so that each of its tokens moves by less: in
    low precision it has to be large for the shift not to be lost in the rounding of the
    activations.
    """

    def __init__(
        self,
        objective: Objective,
        accelerator: Accelerator,
        *,
        fused: bool,
        radius: float,
        squared: bool,
        epsilon: float,
        packed: bool = False,
    ) -> None:
        super().__init__(
            objective, accelerator, fused=fused, radius=radius, squared=squared, packed=packed
        )
        self.epsilon = epsilon

    def before(self, model: nn.Module, batches: list[Batch]) -> None:
        """The plain gradients are added to the parameters here, and give u on the way."""
        super().before(model, batches)
        self.add_directions(batches, [self._plain_gradients(model, batch) for batch in batches])

    def _plain_gradients(self, model: nn.Module, batch: Batch) -> Tensor:
        with self.accelerator.no_sync(model):
            scores, output = self.scores_and_output(model, batch)
            self.seen.append(detached(scores))
            output.retain_grad()
            share = self.checked(self.share(scores))
            self.accelerator.backward(share)
        batch["plain"] = share.detach()
        assert output.grad is not None
        scale = (batch["weight"] * self.accelerator.num_processes).repeat(2)[:, None, None]
        gradient = self.rows(output.grad, batch)
        return torch.where(scale > 0, gradient / torch.where(scale > 0, scale, 1), 0)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """One end, batch["sign"] = ±1; a step needs both."""
        scores, _ = self.scores_and_output(
            model, batch, batch["sign"] * self.epsilon * batch["direction"]
        )
        # of rho E ||g||² the derivative is 2 rho (E ||g||²)^(1/2) times that of E l along u
        strength = self.radius * (2 * batch["root"] if self.squared else 1.0)
        surrogate = batch["sign"] * strength / (2 * self.epsilon) * self.share(scores)
        return self.checked(with_value(surrogate, batch["plain"] + batch["penalty"]))
