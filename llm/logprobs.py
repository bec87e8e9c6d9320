"""Log-probabilities of completions under a causal language model, in float32 and without the logits
of the prompt.

The language-model head is applied to the positions that predict a completion token only, and, where
many, chunk by chunk under
checkpointing: the logits of a batch, its largest tensor, never exist as a whole. All of it happens
inside one call of the model, so that data-parallel wrappers see an ordinary forward pass.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from llm import packing

CHUNK_LOGITS = 2**24  # logits held at once; 64 MiB in float32


def sequence_logprobs(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    fused: bool = True,
    packed: bool = False,
    tail: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """sum_t log pi(y_t | x, y_<t) over the completion tokens of each row; shape (rows,), float32
    (float64 for such a model).

    Args:
        model: a causal language model, bare or wrapped (PEFT, DDP, FSDP).
        batch: `input_ids`, `attention_mask`, `completion_mask`, each (rows, T), padded on the
            right.
        fused: apply the head inside the model's forward to completion positions only, and leave out
            the attention mask, which right padding under causal attention does not need.
            `head_can_be_fused` says whether the model allows it.
        packed: put the sequences into one row without padding (`llm.packing`), for which
            `pack_sequences` must have prepared the model.
        tail: weight of the tokens of a completion beyond the length of the shorter one of its pair,
            rows i and rows/2 + i: LD-DPO, arXiv:2409.06411.
        temperature: pi is softmax(logits / temperature).

    Returns:
        (rows,) in nats.

    Raises:
        ValueError: the head of the model cannot be fused, with the reason.

    >>> import torch
    >>> from llm import PreferenceCollator, language_model, sequence_logprobs, word_tokenizer
    >>> tokenizer = word_tokenizer(["is it good bad"], 7)
    >>> model = language_model(None, tokenizer, width=8, layers=1, length=16, seed=0)
    >>> row = {"prompt_ids": [5, 6], "chosen_ids": [4, 1], "rejected_ids": [3, 1], "index": 0}
    >>> found = sequence_logprobs(model, PreferenceCollator(tokenizer.pad_token_id)([row]))
    >>> found.shape, bool((found < 0).all())  # chosen, rejected
    (torch.Size([2]), True)
    """
    ids, scored = batch["input_ids"], batch["completion_mask"].bool()
    scored = torch.cat([torch.zeros_like(scored[:, :1]), scored[:, 1:]], 1)  # nothing predicts it
    lengths = scored.sum(1)
    how: dict[str, Any] = {}
    if packed:
        how = packing.forward_arguments(batch)
        ids, scored = (packing.packed(x, batch) for x in (ids, scored))
    elif fused:
        # nothing attends to padding on the right: any token will do there, but models warn of
        # padding tokens without a mask
        ids = torch.where(batch["attention_mask"].bool(), ids, ids[:, :1])
    else:
        how["attention_mask"] = batch["attention_mask"]
    scored, targets = scored[:, 1:], ids[scored]
    if fused:
        with _token_logprobs_for_logits(_output_head(model), scored, targets, temperature):
            tokens = model(input_ids=ids, use_cache=False, **how).logits.reshape(-1)
    else:
        logits = model(input_ids=ids, use_cache=False, **how).logits[:, :-1][scored]
        tokens = -cross_entropy(_at_least_float32(logits) / temperature, targets, reduction="none")
    rows = torch.repeat_interleave(
        torch.arange(len(lengths), device=ids.device), lengths, output_size=len(targets)
    )
    if tail != 1:
        place = torch.arange(len(targets), device=ids.device) - (lengths.cumsum(0) - lengths)[rows]
        shared = lengths.view(2, -1).amin(0).repeat(2)
        tokens = torch.where(place < shared[rows], tokens, tail * tokens)
    return torch.zeros_like(lengths, dtype=tokens.dtype).index_add(0, rows, tokens)


def head_can_be_fused(model: nn.Module) -> bool:
    """Whether both ways of `sequence_logprobs` agree on a small padded batch of random tokens; to
    be asked before wrapping.

    They do not where a model changes its logits after the head (a soft cap, a scale), has no head
    of its own, or attends to what comes later.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            batch = _probe(model)
            plain = sequence_logprobs(model, batch, fused=False)
            fused = sequence_logprobs(model, batch)
            if not _hands_on_logits(model, batch["input_ids"]):
                return False
        return _close(plain, fused, model)
    except (AttributeError, NotImplementedError, TypeError, RuntimeError) as error:
        warnings.warn(
            f"log-probabilities are taken from full logits: the head cannot be fused ({error}).",
            stacklevel=2,
        )
        return False
    finally:
        model.train(training)


def pack_sequences(model: nn.Module) -> None:
    """Let the model attend by sequence, so that `sequence_logprobs` can pack; to be asked before
    wrapping.

    Raises:
        ValueError: a packed row of two short sequences does not give what it gives padded, or its
            second sequence sees the first.
    """
    inner, remedy = unwrapped(model), "Leave out --padding_free"
    attention = getattr(inner.config, "_attn_implementation", None)
    if attention not in ("sdpa", packing.ATTENTION):
        raise ValueError(
            f"--padding_free computes attention sequence by sequence with sdpa, and the model's is"
            f" {attention}. Set --attention sdpa. {remedy}, if the model has none."
        )
    training = model.training
    model.eval()
    batch, embedded = _probe(model), []
    watch = inner.get_input_embeddings().register_forward_hook(
        lambda _module, _inputs, output: embedded.append(output.requires_grad_())
    )
    try:
        with torch.no_grad():
            padded = sequence_logprobs(model, batch, fused=False)
        embedded.clear()
        inner.set_attn_implementation(packing.ATTENTION)
        if inner.config._attn_implementation != packing.ATTENTION:
            raise ValueError("its attention cannot be exchanged")
        with torch.enable_grad():
            found = sequence_logprobs(model, batch, fused=False, packed=True)
            slopes = torch.autograd.grad(found[1], embedded[0])[0]
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{type(inner).__name__} cannot read sequences without padding ({error}). {remedy}."
        ) from error
    finally:
        watch.remove()
        model.train(training)
    # of what the second sequence does not see, the derivative is zero to the last bit
    seen = bool(slopes[0, : int(batch["attention_mask"][0].sum())].any())
    if seen or not _close(padded, found.detach(), model):
        why = (
            "the second of two sequences in one row sees the first, as in models with a state"
            if seen
            else f"two sequences in one row have the log-probabilities {found.tolist()}, and padded"
            f" {padded.tolist()}, as where their positions go on"
        )
        raise ValueError(
            f"{type(inner).__name__} cannot read sequences without padding: {why}. {remedy}."
        )


def random_in_training(model: nn.Module) -> bool:
    """Whether log-probabilities in training mode differ from those in evaluation mode, on the same
    batch."""
    training = model.training
    try:
        with torch.no_grad():
            batch = _probe(model)
            truth, *found = [
                sequence_logprobs(model.train(mode), batch, fused=False)
                for mode in (False, True, True)
            ]
        return not all(_close(truth, x, model) for x in found)
    except (NotImplementedError, RuntimeError):  # kernels of a device that the model is not on yet
        return False
    finally:
        model.train(training)


def _close(truth: Tensor, found: Tensor, model: nn.Module) -> bool:
    tolerance = 0.02 if next(model.parameters()).dtype in (torch.bfloat16, torch.float16) else 1e-4
    return torch.allclose(truth, found, rtol=tolerance, atol=tolerance, equal_nan=True)


def _hands_on_logits(model: nn.Module, ids: Tensor) -> bool:
    """Whether the model returns what its head does: a soft cap changes large values only, which
    random weights do not give."""
    sent = torch.linspace(-100, 100, ids.numel(), device=ids.device).view(1, -1, 1)
    with _forward_replaced(_output_head(model), lambda *_: sent):
        return torch.equal(model(input_ids=ids, use_cache=False).logits.float(), sent)


def _probe(model: nn.Module) -> dict[str, Tensor]:
    """Two rows of random tokens, the second one padded."""
    vocabulary = unwrapped(model).get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (2, 8), generator=torch.Generator().manual_seed(0)).to(
        next(model.parameters()).device
    )
    attention = torch.ones_like(ids)
    attention[1, 5:] = 0
    completion = attention.clone()
    completion[:, :2] = 0
    return {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}


@contextmanager
def _token_logprobs_for_logits(
    head: Any, scored: Tensor, targets: Tensor, temperature: float
) -> Iterator[None]:
    """While open, the head returns log pi of the targets, shape (1, N, 1), in place of logits."""
    project = head.forward

    def logprobs(hidden: Tensor, wanted: Tensor) -> Tensor:
        return -cross_entropy(
            _at_least_float32(project(hidden)) / temperature, wanted, reduction="none"
        )

    def forward(hidden: Tensor, *_: Any) -> Tensor:
        kept = hidden[:, :-1][scored]
        size = max(256, CHUNK_LOGITS // _width(head))
        if len(kept) <= size:
            return logprobs(kept, targets).reshape(1, -1, 1)
        chunks = zip(kept.split(size), targets.split(size), strict=True)
        if torch.is_grad_enabled():
            parts = [checkpoint(logprobs, *chunk, use_reentrant=False) for chunk in chunks]
        else:
            parts = [logprobs(*chunk) for chunk in chunks]
        return torch.cat(parts).reshape(1, -1, 1)

    with _forward_replaced(head, forward):
        yield


@contextmanager
def _forward_replaced(head: Any, forward: Callable[..., Tensor]) -> Iterator[None]:
    own = head.__dict__.get("forward")  # set by accelerate's hooks on some models
    head.forward = forward
    try:
        yield
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own


def _output_head(model: nn.Module) -> Any:
    head = unwrapped(model).get_output_embeddings()
    if head is None:
        raise AttributeError(f"{type(model).__name__} has no output embeddings")
    return head


def unwrapped(model: nn.Module) -> Any:
    """The model inside data-parallel wrappers; FSDP2 and PEFT leave its methods reachable."""
    inner: Any = model
    while isinstance(getattr(inner, "module", None), nn.Module) and not hasattr(
        inner, "get_input_embeddings"
    ):
        inner = inner.module
    return inner


def _width(head: Any) -> int:
    return int(getattr(head, "out_features", 0) or head.weight.shape[0])


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
