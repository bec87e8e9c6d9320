"""A language model of a few thousand weights, for claims on gradients with respect to the output of
an embedding layer."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from theory.losses import dpo_loss

_TOKENS, _WIDTH, _PAIRS = 40, 24, 48
_INIT = 0.02  # of all weights but the embeddings, as in GPT-2


class ToyModel(nn.Module):
    """Token and position embeddings, one pre-norm block of attention and a feed-forward layer, and
    a head; float64."""

    def __init__(self, embedding: float, length: int) -> None:
        super().__init__()
        self.token = nn.Embedding(_TOKENS, _WIDTH)
        self.position = nn.Parameter(embedding * torch.randn(length, _WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(_WIDTH) for _ in range(3))
        self.mix = nn.Linear(_WIDTH, 3 * _WIDTH, bias=False)
        self.out = nn.Linear(_WIDTH, _WIDTH, bias=False)
        self.up, self.down = nn.Linear(_WIDTH, 4 * _WIDTH), nn.Linear(4 * _WIDTH, _WIDTH)
        self.head = nn.Linear(_WIDTH, _TOKENS, bias=False)
        for layer in (self.mix, self.out, self.up, self.down, self.head):
            nn.init.normal_(layer.weight, std=_INIT)
        nn.init.normal_(self.token.weight, std=embedding)
        self.register_buffer("past", torch.full((length, length), -math.inf).triu(1))

    def log_probability(self, z: Tensor, tokens: Tensor) -> Tensor:
        """log pi of all tokens but the first (R,), from the embedding output z (R, T, width) of
        tokens (R, T)."""
        x = z + self.position
        q, k, v = self.mix(self.norms[0](x)).chunk(3, -1)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(_WIDTH) + self.past).softmax(-1)
        x = x + self.out(weights @ v)
        x = x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))
        found = self.head(self.norms[2](x)).log_softmax(-1)[:, :-1]
        return found.gather(-1, tokens[:, 1:, None])[..., 0].sum(-1)


def gradient_norms(
    seed: int,
    *,
    embedding: float,
    betas: Sequence[float],
    length: int = 16,
    pretraining: int = 60,
    steps: int,
) -> dict[float, list[float]]:
    """(E ||g||²)^(1/2) before each of `steps` steps of DPO and after the last, for each beta; g is
    the gradient of a pair's loss with respect to the embedding output of both responses.

    embedding: standard deviation of the initial embeddings. length: tokens of a text. The model is
    first trained on texts of a Markov chain, of which each token has two successors; texts with
    more even tokens are preferred. The reference model's log-probabilities are constants, as in
    WDPO.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trained = ToyModel(embedding, length).double()
        successors = torch.randint(_TOKENS, (_TOKENS, 2))

        def texts(count: int) -> Tensor:
            columns = [torch.randint(_TOKENS, (count,))]
            for _ in range(length - 1):
                columns.append(successors[columns[-1], torch.randint(2, (count,))])
            return torch.stack(columns, 1)

        optimiser = torch.optim.Adam(trained.parameters(), 1e-2)
        for _ in range(pretraining):
            tokens = texts(32)
            _step(optimiser, -trained.log_probability(trained.token(tokens), tokens).mean())
        one, other = texts(_PAIRS), texts(_PAIRS)
    better = ((one % 2 == 0).sum(1) >= (other % 2 == 0).sum(1))[:, None]
    pair = torch.where(better, one, other), torch.where(better, other, one)

    def scores(model: ToyModel) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        z = model.token(pair[0]), model.token(pair[1])
        chosen, rejected = (model.log_probability(*each) for each in zip(z, pair, strict=True))
        return chosen - rejected, z

    reference = scores(trained)[0].detach()
    norms: dict[float, list[float]] = {}
    for beta in betas:
        model = copy.deepcopy(trained)
        optimiser = torch.optim.Adam(model.parameters(), 1e-3)
        norms[beta] = []
        for _ in range(steps + 1):
            score, z = scores(model)
            losses = dpo_loss(beta * (score - reference))
            of_chosen, of_rejected = torch.autograd.grad(losses.sum(), z, retain_graph=True)
            squares = (of_chosen**2 + of_rejected**2).sum((1, 2))
            norms[beta].append(math.sqrt(squares.mean().item()))
            _step(optimiser, losses.mean())
    return norms


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
