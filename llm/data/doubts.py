"""Text of doubtful shape: it can be trained on, but is hardly what was meant. Warned of with what
is seen and what settles it."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from llm.data.checks import READ, name_of, spelt_messages
from llm.data.rows import Row, which

ENDS = 5  # tokens at the end of a completion that are looked at
ROLES = {"system", "developer", "user", "assistant", "tool", "function"}
SHOWN = 60  # characters of a text that a warning shows


def of_columns(names: Sequence[str], implicit: Row | None) -> list[str]:
    """Columns that are not read; `implicit`: the first row whose prompt was taken from its answers,
    if it was."""
    unread = [
        name
        for name in names
        if name not in READ and not (name.startswith("ref_") and name.endswith("logps"))
    ]
    if not unread:
        return []
    said = (
        f"column{'s' if len(unread) > 1 else ''} not read:"
        f" {', '.join(name or '(without a name)' for name in unread)}."
    )
    if implicit is not None:
        said += (
            " The prompt is what chosen and rejected begin with, in the first row"
            f" {_shown(_text(implicit['prompt']))}: if one of these columns is the prompt, say so"
            f" by --columns prompt={_likely(unread)}."
        )
    return [said]


def of_spelt(rows: Sequence[Row], texts: Sequence[str]) -> list[str]:
    """Strings that spell messages."""
    spelt = [
        row
        for row in rows
        if any(isinstance(row[name], str) and spelt_messages(row[name]) for name in texts)
    ]
    if 2 * len(spelt) <= len(rows):  # an answer may be about messages
        return []
    held = next(
        row[name]
        for row in spelt
        for name in texts
        if isinstance(row[name], str) and spelt_messages(row[name])
    )
    return [
        f"{which(row['index'] for row in spelt)} with messages written into strings, such as"
        f" {_shown(held)}: they are taken for plain text. --strings json reads them as messages;"
        " --strings raw keeps them as they are, without this warning."
    ]


def of_roles(rows: Sequence[Row], completions: Sequence[str]) -> list[str]:
    """Conversations whose completions are no turn of the assistant, or that have roles which
    templates do not know."""
    if isinstance(rows[0]["prompt"], str):
        return []
    said = []
    wrong = [
        row["index"]
        for row in rows
        if row["prompt"][-1]["role"] == "assistant"
        or any(row[n][0]["role"] == "user" or row[n][-1]["role"] == "user" for n in completions)
    ]
    if wrong:
        said.append(
            f"{which(wrong)} with a prompt that ends with the assistant's turn, or a completion"
            " that begins or ends with the user's: what the user says is trained on, too. Check"
            " where the prompt ends."
        )
    roles = {
        m["role"] for row in rows for name in ("prompt", *completions) for m in row[name]
    } - ROLES
    if roles:
        said.append(
            f"roles that most chat templates do not know: {', '.join(sorted(roles))}. Usual are"
            f" {', '.join(sorted(ROLES))}: rename them where the first example below does not look"
            " right."
        )
    twice = [row["index"] for row in rows if sum(m["role"] == "system" for m in row["prompt"]) > 1]
    if twice:
        said.append(f"{which(twice)} with more than one system message. Leave one of them out.")
    return said


def of_strings(
    rows: Sequence[Row],
    completions: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    strings: str | None,
) -> list[str]:
    """Strings that a template has written, or that a chat model will see without its template."""
    first = rows[0]
    if strings is not None or not isinstance(first["prompt"], str):
        return []
    seen = f"The first row is seen as {_junction(first['prompt'], first[completions[0]])}"
    special = [
        mark
        for mark in _special(tokenizer)
        if 2 * sum(mark in row["prompt"] for row in rows) > len(rows)
    ]
    if special:
        return [
            f"the prompts hold special tokens of the tokenizer ({', '.join(special)}), as if a chat"
            f" template had written them. {seen}. --strings templated adds only those at the"
            " beginning and the end that are missing; --strings raw adds the tokenizer's own to"
            " every text, without this warning."
        ]
    if tokenizer.chat_template:
        return [
            f"{name_of(tokenizer)} has a chat template, but the data are strings, to which it is"
            f" not applied. {seen}. --strings chat makes them a conversation (the prompt is the"
            " user's, the completion the assistant's); --strings raw keeps them as they are,"
            " without this warning."
        ]
    glued = [
        row["index"]
        for row in rows
        if any(_glued(row["prompt"], row[name]) for name in completions)
    ]
    if 2 * len(glued) > len(rows):
        return [
            f"{len(glued)} of {len(rows)} rows have no blank between prompt and completion. {seen}."
            " End the prompts or begin the completions with a blank or a line break; --strings raw"
            " keeps them as they are, without this warning."
        ]
    return []


def of_tokens(
    data: Dataset,
    completions: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    conversational: bool,
) -> list[str]:
    """A beginning or an end of sequence that stands there twice."""
    table = data.with_format("arrow")[:]
    index = table["index"].to_numpy()
    said = []
    bos = tokenizer.bos_token_id
    if bos is not None:
        starts = [_elements(table["prompt_ids"], k) for k in (0, 1)]
        twice = np.logical_and.reduce([start == bos for start in starts])
        if twice.any():
            said.append(
                f"{which(index[twice])} with {tokenizer.bos_token} twice at the beginning: in the"
                " text, and added by the tokenizer. Take it out of the text, or give --strings"
                " templated."
            )
    padding = {tokenizer.pad_token_id} - {tokenizer.eos_token_id}
    unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id}  # a word, unless it is both
    others = padding | unknown
    ends = {int(token) for token in tokenizer.all_special_ids if token not in others}
    for name in completions:
        lasts = [_elements(table[f"{name}_ids"], -k) for k in range(1, ENDS + 1)]
        twice = np.array(
            [_ends_twice(row, ends, tokenizer, conversational) for row in zip(*lasts, strict=True)]
        )
        if twice.any():
            last = tokenizer.decode(
                table[f"{name}_ids"][int(np.flatnonzero(twice)[0])].as_py()[-ENDS:]
            )
            said.append(
                f"{which(index[twice])} whose `{name}` ends twice, the first in {last!r}: an end"
                " stands in the text, and another one is added. Take it out of the text"
                + ("." if conversational else ", or give --strings templated.")
            )
    return said


def first_example(data: Dataset, tokenizer: PreTrainedTokenizerBase) -> str:
    """The first row as the model sees it, decoded with all special tokens, one part a line."""
    row = data[0]
    parts = [
        name for name in ("prompt", "chosen", "rejected", "completion") if f"{name}_ids" in row
    ]
    lines = [f"the first example as the model sees it (row {row['index'] + 1}):"]
    for name in parts:
        ids = row[f"{name}_ids"]
        text = repr(
            tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )
        short = text if len(text) <= 1000 else f"{text[:490]} [...] {text[-490:]}"
        lines.append(f"  {name + ':':<11} {short}  ({len(ids)} tokens)")
    return "\n".join(lines)


def _ends_twice(
    last: Iterable[Any], ends: set[int], tokenizer: PreTrainedTokenizerBase, conversational: bool
) -> bool:
    """Whether the token before the last one, less blank ones, ends a text, too. Templates may write
    two different ends."""
    tokens = [
        int(token)
        for token in last
        if token >= 0 and (token in ends or tokenizer.decode([token]).strip())
    ]
    if len(tokens) < 2 or tokens[0] not in ends:
        return False
    return tokens[1] == tokens[0] if conversational else tokens[1] in ends


def _elements(column: pa.ChunkedArray, position: int) -> np.ndarray:
    """The token at a position of each row, from the end where it is negative; -1 where a row has
    none."""
    values = column.combine_chunks()
    lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False).astype(np.int64)
    flat, starts = values.flatten().to_numpy(zero_copy_only=False), np.cumsum(lengths) - lengths
    at = np.where(position >= 0, starts + position, starts + lengths + position)
    there = (position < lengths) & (position >= -lengths)
    return np.where(there, flat[np.where(there, at, 0)], -1)


def _special(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Marks that no person types: special tokens but those that are words or blanks."""
    tokens = {str(token) for token in tokenizer.all_special_tokens}
    tokens |= {
        str(token)
        for token in getattr(tokenizer, "added_tokens_decoder", {}).values()
        if token.special
    }
    return sorted(token for token in tokens if len(token) > 2 and not token.isalnum())


def _glued(prompt: str, completion: str) -> bool:
    """Whether two words or sentences stand together without a blank; Chinese and others need
    none."""
    before, after = prompt[-1:], completion[:1]
    return (before + after).isascii() and bool(before.strip()) and after.isalnum()


def _likely(unread: Sequence[str]) -> str:
    known = ("question", "instruction", "input", "query", "context", "post")
    return next((name for name in unread if name.lower() in known), unread[0])


def _text(prompt: Any) -> str:
    return (
        prompt
        if isinstance(prompt, str)
        else " ".join(str(message.get("content")) for message in prompt)
    )


def _junction(prompt: str, completion: str) -> str:
    before = prompt if len(prompt) <= SHOWN else f"...{prompt[-SHOWN:]}"
    return repr(before + (completion if len(completion) <= SHOWN else f"{completion[:SHOWN]}..."))


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
