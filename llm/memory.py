"""What a training step will need, before the first one: weights, gradients, states of the
optimizer, and what a forward pass keeps for the backward pass.

The last is counted, not guessed: short rows of two lengths go through the model, and every tensor
that autograd saves is added up. What it keeps grows linearly with the tokens of a row, apart from
plain attention, which keeps a square of them: two lengths give both coefficients. A double
backward (`exact` of WDPO) keeps the graph of the first one, too.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from llm.logprobs import sequence_logprobs, unwrapped
from llm.packing import unpacked
from llm.wasserstein import embedding_outputs, squared_norms, twice_differentiable_attention

_TRIED = 64  # tokens of the longer row that is tried, where texts are not shorter themselves
GIB = 2**30
# numbers kept for each trained weight, by the beginning of the optimizer's name; others: none known
_STATES = (("adamw", 2), ("adam", 2), ("lion", 1), ("sgd", 0), ("adafactor", 0))


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a training step on one device, weights included.

    exact: the activations that WDPO's mode exact would keep, where another mode is used; else None.
    free: what the device has left with the weights on it, None where that is not known.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    exact: int | None
    free: int | None
    rows: int
    tokens: int

    @property
    def peak(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    @property
    def missing(self) -> int:
        """What is still to come beyond what is free; 0 where it fits or nothing is known."""
        return 0 if self.free is None else max(self.peak - self.weights - self.free, 0)

    def __str__(self) -> str:
        parts = [
            f"{name} {size / GIB:.1f}"
            for name, size in (
                ("weights", self.weights),
                ("gradients", self.gradients),
                ("optimizer", self.optimizer),
                (f"activations of {self.rows} x {self.tokens} tokens", self.activations),
            )
        ]
        left = "" if self.free is None else f"; {self.free / GIB:.1f} GiB are free for the rest"
        exact = (
            ""
            if self.exact is None
            else f"; --wdpo_mode exact would keep {self.exact / GIB:.1f} GiB of activations"
        )
        return f"memory: about {self.peak / GIB:.1f} GiB ({', '.join(parts)}){exact}{left}"


def estimate(
    model: nn.Module,
    *,
    rows: int,
    tokens: int,
    optimizer: str,
    exact: bool = False,
    compare_exact: bool = False,
    fused: bool = True,
    packed: bool = False,
    autocast: bool = False,
) -> Memory:
    """The memory of a training step on `rows` sequences of `tokens` tokens at once.

    Args:
        model: on its device; its weights count as they are.
        rows: sequences of a micro-batch on this device, two for each pair.
        tokens: of the longest; packed, of their mean.
        optimizer: its name among the arguments of the Trainer, such as adamw_torch.
        exact: WDPO's double backward.
        compare_exact: also what that would keep.
        fused, packed: as `llm.logprobs.sequence_logprobs`.
        autocast: under bfloat16.

    Returns:
        A `Memory`, whose activations are an estimate, within a quarter or so.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    name = optimizer.lower()
    states = next((count for start, count in _STATES if name.startswith(start)), 0)

    def kept(double: bool) -> int:
        long = min(_TRIED, max(tokens, 2))
        short = max(long // 2, 2)
        each = [_saved(model, t, fused, packed, autocast, double) / t for t in (short, long)]
        square = max((each[1] - each[0]) / (long - short), 0.0) if long > short else 0.0
        return int(rows * tokens * (each[1] + square * (tokens - long)))

    activations = kept(exact)
    return Memory(
        weights=weights,
        gradients=trained,
        optimizer=states * trained,
        activations=activations,
        exact=kept(True) if compare_exact and not exact else None,
        free=free_memory(next(model.parameters()).device),
        rows=rows,
        tokens=tokens,
    )


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where it does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available) if device.type == "cpu" else None


def peak_memory(device: torch.device) -> int | None:
    """Bytes at the peak so far: of tensors on a CUDA device, or of this whole process, libraries
    included; None where it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else 1024 * most)


def _saved(
    model: nn.Module, tokens: int, fused: bool, packed: bool, autocast: bool, double: bool
) -> int:
    """Bytes that one row of `tokens` tokens keeps for the backward pass, beyond the weights."""
    inner = unwrapped(model)
    device = next(inner.parameters()).device
    config = getattr(inner.config, "get_text_config", lambda: inner.config)()
    word = 0 if getattr(config, "pad_token_id", None) != 0 else 1  # models warn of bare padding
    ids = torch.full((2, tokens), word, device=device)
    mask = torch.ones_like(ids)
    completion = mask.clone()
    completion[:, : tokens // 2] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "completion_mask": completion}
    amp = torch.autocast(device.type, dtype=torch.bfloat16) if autocast else nullcontext()
    attention = twice_differentiable_attention() if double else nullcontext()
    was_training = inner.training
    inner.train()
    try:
        with _counted(inner) as sizes, amp, attention:
            _forward(inner, batch, fused, packed, double)
    finally:
        inner.train(was_training)
    return sum(sizes.values()) // len(ids)


def _forward(
    model: nn.Module, batch: Mapping[str, Tensor], fused: bool, packed: bool, double: bool
) -> Any:
    if not double:
        return sequence_logprobs(model, batch, fused=fused, packed=packed)
    with embedding_outputs(model) as outputs:
        scores = sequence_logprobs(model, batch, fused=fused, packed=packed)
    gradient = torch.autograd.grad(scores.sum(), outputs[0], create_graph=True)[0]
    return squared_norms(unpacked(gradient, batch) if packed else gradient).sum()


@contextmanager
def _counted(model: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes by storage of what autograd saves meanwhile, each storage once, weights left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}
    alive = []  # a storage that is freed would give its address to another

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes
