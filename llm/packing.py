"""The sequences of a batch in one row, without padding: positions begin anew at each, and each
attends to itself only.

Attention is computed sequence by sequence, by PyTorch's own kernel and without a mask, so that it
costs what it costs without padding: a mask of blocks over the whole row, which transformers would
derive from the positions, costs the square of all tokens. What each layer has to know is an
argument of the model's forward, which transformers hands on to the attention function, and which
gradient checkpointing keeps for its second pass. The row is made inside the scoring: batches stay
rectangular everywhere else.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "sdpa_by_sequence"


def packed(tensor: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """(rows, T, ...) -> (1, tokens, ...): what is no padding, row after row."""
    return tensor[batch["attention_mask"].bool()][None]


def unpacked(tensor: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """(1, tokens, ...) -> (rows, T, ...), zero at the padding; differentiable."""
    there = batch["attention_mask"].bool()
    return tensor.new_zeros(*there.shape, *tensor.shape[2:]).index_put((there,), tensor[0])


def forward_arguments(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """What tells a model where in the packed row its sequences begin."""
    there = batch["attention_mask"].bool()
    positions = torch.arange(there.shape[1], device=there.device).expand_as(there)
    lengths = [length for length in there.sum(1).tolist() if length]
    return {"position_ids": packed(positions, batch), "sequence_lengths": lengths}


def attend_by_sequence(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sequence_lengths: list[int] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row, (1, heads, tokens, width) -> (1, tokens, heads, width), or without
    `sequence_lengths` of any batch as ever."""
    if sequence_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **others)
    found, start = [], 0
    parts = (x.split(sequence_lengths, dim=2) for x in (query, key, value))
    for length, q, k, v in zip(sequence_lengths, *parts, strict=True):
        own = slice(start, start + length)
        mask = None if attention_mask is None else attention_mask[..., own, own]
        found.append(sdpa_attention_forward(module, q, k, v, mask, **others)[0])
        start += length
    return torch.cat(found, dim=1), None


def mask_by_sequence(*positional: Any, **named: Any) -> Tensor | None:
    """None for a packed row that is causal and nothing else, as attention by sequence is of itself;
    else the mask of sdpa.

    Of a packed row transformers says that it needs its mask although nothing is padded. Sliding
    windows and masks of the model's own are kept, as blocks of one mask of the whole row.
    """
    plain = (
        not named.get("allow_is_causal_skip", True)
        and named.get("attention_mask") is None
        and named.get("local_size") is None
        and not named.get("use_vmap", False)
        and named.get("q_length") == named.get("kv_length")
    )
    return None if plain else sdpa_mask(*positional, **named)


AttentionInterface.register(ATTENTION, attend_by_sequence)
AttentionMaskInterface.register(ATTENTION, mask_by_sequence)
