"""Which columns preference data may have, and what is wrong with those at hand: every offending row counted, the first named."""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

TEXTS = ("prompt", "chosen", "rejected", "completion")
TEMPLATE_INPUTS = ("tools", "chat_template_kwargs")  # per row, handed to the chat template
READ = (*TEXTS, "label", "weight", "group", *TEMPLATE_INPUTS)
FORMATS = (
    "`prompt, chosen, rejected`; `chosen, rejected` that begin with the same prompt; or, for unpaired objectives, "
    "`prompt, completion, label`"
)
NAMED = 5  # offending rows that an error names


def checked_columns(rows: Dataset, kind: str, groups: dict[str, int] | None) -> tuple[pa.Table, dict[str, int]]:
    """The columns that are used, their types checked, with label, weight and group converted and the row's `index` added.

    Second: the number of each group's name, in the order of the numbers; empty where groups are numbers or there are none.

    Raises:
        ValueError: columns are missing or of the wrong type, or some of their values cannot be used.
    """
    texts = _text_columns(rows.column_names, kind)
    table = rows.with_format("arrow")[:].replace_schema_metadata(None)
    if texts == ["prompt", "chosen", "rejected"] and is_text(table["prompt"].type) and not is_text(table["chosen"].type):
        texts = texts[1:]  # as in UltraFeedback: the conversations begin with the prompt, which is given once more as a string
    for column in texts:
        _check_text(column, table[column])
    if len({is_text(table[column].type) for column in texts}) > 1:
        shapes = ", ".join(f"`{column}` has {'strings' if is_text(table[column].type) else 'conversations'}" for column in texts)
        raise ValueError(f"strings and conversations are mixed: {shapes}. Give all as strings, or all as lists of messages.")
    given = sorted(column for column in table.column_names if column.startswith("ref_") and column.endswith("logps"))
    if given:
        warnings.warn(f"{', '.join(given)} in the data are not used: the reference is computed from the model.", stacklevel=3)

    columns = {column: table[column] for column in (*texts, *TEMPLATE_INPUTS) if column in table.column_names}
    numbers: dict[str, int] = {}
    if "completion" in texts:
        columns["label"] = _labels(table["label"])
    if "weight" in table.column_names:
        columns["weight"] = _weights(table["weight"])
    if "group" in table.column_names:
        columns["group"], numbers = _groups(table["group"], groups)
    columns["index"] = pa.array(np.arange(len(table)))
    return pa.table(columns), numbers


def check_common_beginning(table: pa.Table) -> None:
    """Chosen and rejected begin alike, so that their prompt can be taken from them."""
    if is_text(table["chosen"].type):
        first = [pc.utf8_slice_codeunits(table[column], 0, 1) for column in ("chosen", "rejected")]
        bad = _where(pc.or_(pc.not_equal(*first), pc.equal(first[0], "")))
    else:
        pairs = zip(table["chosen"].to_pylist(), table["rejected"].to_pylist(), strict=True)
        bad = [i for i, (chosen, rejected) in enumerate(pairs) if chosen[0] != rejected[0]]
    if bad:
        raise ValueError(
            f"there is no column `prompt`, and {which(bad)} without a common beginning of chosen and rejected that could be the "
            "prompt. Add the column, or remove them."
        )


def check_not_blank(table: pa.Table) -> None:
    """Completions (without the prompt) that say something."""
    for column in ("chosen", "rejected", "completion"):
        if column not in table.column_names:
            continue
        values = table[column]
        if is_text(values.type):
            bad = _where(pc.equal(pc.utf8_trim_whitespace(values), ""))
        else:
            bad = [i for i, value in enumerate(values.to_pylist()) if not value or any(_is_blank(message) for message in value)]
        if bad:
            raise ValueError(f"column `{column}`: {which(bad)} empty or blank after the prompt. Remove them.")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, conversational: bool) -> None:
    """A chat template for conversations, an end-of-sequence token for strings."""
    if conversational and not tokenizer.chat_template:
        raise ValueError(
            f"the data are conversations, but {name_of(tokenizer)} has no chat template. Use the tokenizer of a chat model, set "
            "`tokenizer.chat_template` to the template that the model was trained with and save it, or give the data as strings."
        )
    if not conversational and tokenizer.eos_token is None:
        raise ValueError(
            f"{name_of(tokenizer)} has no end-of-sequence token, with which every completion must end. Set `tokenizer.eos_token` "
            "and save it."
        )


def which(rows: Sequence[int] | np.ndarray) -> str:
    """`3 rows (0, 4, 9) are`, `1 row (7) is`: how many, the first of them, and the verb of the sentence."""
    named = ", ".join(str(int(row)) for row in rows[:NAMED]) + (", ..." if len(rows) > NAMED else "")
    return f"{len(rows)} row{'s' if len(rows) > 1 else ''} ({named}) {'are' if len(rows) > 1 else 'is'}"


def is_text(type_: pa.DataType) -> bool:
    """Whether an Arrow type is one of strings."""
    return pa.types.is_string(type_) or pa.types.is_large_string(type_)


def name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """What to call a tokenizer in an error."""
    return f"the tokenizer {os.path.basename(str(tokenizer.name_or_path)) or type(tokenizer).__name__}"


def _text_columns(there: list[str], kind: str) -> list[str]:
    if {"chosen", "rejected"} <= set(there):
        return [column for column in ("prompt", "chosen", "rejected") if column in there]
    if {"prompt", "completion", "label"} <= set(there):
        if kind == "unpaired":
            return ["prompt", "completion"]
        raise ValueError(
            "the data are unpaired (prompt, completion, label), but the objective compares pairs. Give `prompt, chosen, "
            "rejected`, or choose an objective for unpaired data."
        )
    raise ValueError(f"columns are missing. The data have {', '.join(there) or 'none'}; accepted are {FORMATS}.")


def _check_text(column: str, values: pa.ChunkedArray) -> None:
    if is_text(values.type):
        bad = _where(pc.is_null(values))
    elif pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        bad = [i for i, value in enumerate(values.to_pylist()) if not _is_conversation(value)]
    else:
        bad = list(range(len(values)))
    if bad:
        raise ValueError(
            f"column `{column}` (of type {_short(values.type)}): {which(bad)} neither a string nor a list of messages with a "
            "role and a content, both strings. Correct or remove them."
        )


def _is_conversation(value: Any) -> bool:
    return bool(value) and all(isinstance(message, dict) and _is_message(message) for message in value)


def _is_message(message: dict[str, Any]) -> bool:
    return isinstance(message.get("role"), str) and (isinstance(message.get("content"), str) or bool(message.get("tool_calls")))


def _is_blank(message: dict[str, Any]) -> bool:
    return not (message["content"] or "").strip() and not message.get("tool_calls")


def _labels(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if not (pa.types.is_boolean(values.type) or pa.types.is_integer(values.type)):
        raise ValueError(f"column `label` must be true or false (or 1 and 0), got {_short(values.type)}.")
    numbers = values.cast(pa.int64())
    bad = _where(pc.invert(pc.is_in(numbers, pa.array([0, 1]))))
    if bad:
        raise ValueError(f"column `label`: {which(bad)} neither true nor false (nor 1 or 0). True marks a desirable completion.")
    return numbers.cast(pa.bool_())


def _weights(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise ValueError(f"column `weight` must hold numbers, got {_short(values.type)}.")
    weights = values.cast(pa.float64()).to_numpy()  # null becomes NaN
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise ValueError(f"column `weight`: {which(bad)} missing, negative or not finite (the first is {weights[bad[0]]}).")
    return pa.chunked_array([pa.array(weights.astype(np.float32))])


def _groups(values: pa.ChunkedArray, known: dict[str, int] | None) -> tuple[pa.ChunkedArray, dict[str, int]]:
    bad = _where(pc.is_null(values))
    if bad:
        raise ValueError(f"column `group`: {which(bad)} missing. Give every row a group, or remove the column.")
    if pa.types.is_integer(values.type):
        bad = _where(pc.less(values, 0))
        if bad:
            raise ValueError(f"column `group`: {which(bad)} negative. Number the groups from 0, or give them names.")
        if known:
            raise ValueError(f"column `group` holds numbers, but in the training data names ({', '.join(known)}). Use the same.")
        return values.cast(pa.int64()), {}
    if not is_text(values.type):
        raise ValueError(f"column `group` must hold whole numbers or names, got {_short(values.type)}.")
    if known is None:
        known = {name: number for number, name in enumerate(sorted(pc.unique(values).to_pylist()))}
    numbers = pc.index_in(values, pa.array(sorted(known, key=known.__getitem__), type=values.type))
    bad = _where(pc.is_null(numbers))
    if bad:
        raise ValueError(
            f"column `group`: {which(bad)} of a group unknown to the training data (the first is {values[bad[0]].as_py()!r}), "
            f"whose groups are {', '.join(known) or 'numbers'}."
        )
    return numbers.cast(pa.int64()), known


def _where(mask: pa.ChunkedArray) -> list[int]:
    return np.flatnonzero(mask.to_numpy()).tolist()


def _short(type_: pa.DataType) -> str:
    text = str(type_)
    return text if len(text) <= 60 else f"{text[:57]}..."
