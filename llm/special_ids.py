"""Special tokens that a model does not know: an id beyond its embeddings is nowhere used, and never
saved.

It happens where a padding token was added to the tokenizer and the model was not resized: its row
of embeddings is not there, so that a lookup fails, and a configuration that names it makes the
saved model one that cannot be loaded.
"""

import warnings
from typing import Any

from torch import nn

from llm.logprobs import unwrapped

_LISTS = ("suppress_tokens", "begin_suppress_tokens")


def settle_special_ids(model: nn.Module, tokenizer: Any) -> None:
    """Pad with a token that the model knows, and forget ids that it does not know in its
    configurations, with a warning.

    Raises:
        ValueError: it does not know the tokenizer's end or beginning of sequence.
    """
    known = unwrapped(model).get_input_embeddings().weight.shape[0]
    for what, token, number in (
        ("end-of-sequence", tokenizer.eos_token, tokenizer.eos_token_id),
        ("beginning-of-sequence", tokenizer.bos_token, tokenizer.bos_token_id),
    ):
        if number is not None and number >= known:
            raise ValueError(
                f"the tokenizer's {what} token {token!r} has the id {number}, and the model knows"
                f" {known} tokens (0 to {known - 1}). The tokenizer is that of another model, or"
                " the token was added to it and the model was not resized. Give the model's own"
                " tokenizer, or resize the model's embeddings to it, train them, and save both."
            )
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= known:
        instead = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        warnings.warn(
            f"the padding token {tokenizer.pad_token!r} has the id {tokenizer.pad_token_id}, beyond"
            f" the {known} embeddings of the model: {instead!r} is used in its place, here and in"
            " the tokenizer that is saved. Padding is masked: nothing depends on it.",
            stacklevel=2,
        )
        tokenizer.pad_token = instead
    config = unwrapped(model).config
    forgotten: dict[str, Any] = {}
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        forgotten |= forget_ids_beyond(part, known)
    if getattr(unwrapped(model), "generation_config", None) is not None:
        forgotten |= forget_ids_beyond(unwrapped(model).generation_config, known)
    if forgotten:
        named = ", ".join(f"{name} {value}" for name, value in forgotten.items())
        warnings.warn(
            f"the model's configuration has ids that it has no embeddings for ({named}): they are"
            " left out.",
            stacklevel=2,
        )


def forget_ids_beyond(config: Any, known: int) -> dict[str, Any]:
    """Set special ids that are no row of `known` embeddings to None, or take them from their list;
    which these were."""
    forgotten = {}
    for name, value in list(vars(config).items()):
        if (
            not (name.endswith("_token_id") or name in _LISTS)
            or value is None
            or isinstance(value, bool)
        ):
            continue
        ids = value if isinstance(value, (list, tuple)) else [value]
        inside = [number for number in ids if isinstance(number, int) and 0 <= number < known]
        if len(inside) < len(ids):
            forgotten[name] = value
            setattr(config, name, (inside or None) if isinstance(value, (list, tuple)) else None)
    return forgotten
