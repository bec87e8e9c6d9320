"""Prompts to be answered, from preference data: HelpSteer2, UltraFeedback Binarized, or any file
with a column `prompt`.

On the hub `nvidia/HelpSteer2` has the splits train and validation, each prompt in two rows (one for
each response), conversations written into one string; `HuggingFaceH4/ultrafeedback_binarized` has
train_prefs and test_prefs. A folder of the same layout or a single file is read in the same way.
The tests run on small folders of these layouts; the data sets themselves have not been read.
"""

import re
import warnings
from typing import Any

import numpy as np

from llm.data.chat import Message, Prompt, as_messages, token_rows
from llm.data.files import load_rows
from llm.data.rows import column_names, which

# how HelpSteer2 writes the turns after the first into a prompt (NVIDIA NeMo-Aligner,
# examples/nlp/data/steerlm/common.py)
TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")


def load_prompts(
    source: str,
    tokenizer: Any,
    *,
    split: str = "train",
    count: int | None = None,
    seed: int = 0,
    max_tokens: int | None = None,
    name: str | None = None,
    revision: str | None = None,
) -> list[Prompt]:
    """Distinct prompts in random order; of the same seed, fewer are the first of more.

    A prompt is a string, or a list of messages (role, content) where the data have one or a string
    holds several turns.

    Args:
        source: what `llm.data.files.load_rows` takes: a file, a folder, or a name on the hub.
        count: how many; None: all.
        max_tokens: of a prompt as `llm.data.chat.token_rows` reads it, chat template included. A
            longer prompt loses the end of its last message; it is left out where its earlier
            messages alone are too long. Both are counted in a warning.
        name, revision: configuration and revision of a data set.

    Raises:
        ValueError: there is no column `prompt`, a prompt is blank or ends with an answer, or there
            are fewer than `count`.
    """
    if count is not None and count < 1:
        raise ValueError(f"count must be at least 1, got {count}; None takes all prompts.")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}.")
    rows = load_rows(source, split, name, revision)
    if "prompt" not in (names := column_names(rows)):
        raise ValueError(f"{source} has no column `prompt`; it has {', '.join(names)}.")
    prompts = _distinct(row.get("prompt") for row in rows)
    chosen: list[Prompt] = []
    cut = dropped = 0
    for k in np.random.default_rng(seed).permutation(len(prompts)):
        short = prompts[k] if max_tokens is None else _shortened(tokenizer, prompts[k], max_tokens)
        if short is None:
            dropped += 1
            continue
        cut += short != prompts[k]
        chosen.append(short)
        if len(chosen) == count:
            break
    if cut or dropped:
        warnings.warn(
            f"{cut} of {len(chosen)} prompts are cut to {max_tokens} tokens; {dropped} more are"
            " left out, of whose last message nothing would remain.",
            stacklevel=2,
        )
    if not chosen or (count is not None and len(chosen) < count):
        raise ValueError(
            f"{source} (split {split}) has {len(prompts)} different prompts, of which {len(chosen)}"
            f" can be used; {count or 'some'} are needed. Ask for fewer, allow more tokens, or take"
            " more data."
        )
    return chosen


def turns(prompt: str) -> Prompt:
    """A prompt of HelpSteer2: messages where it holds several turns, else the string itself.

    Raises:
        ValueError: the turns do not alternate between user and assistant, or the last one is not
            the user's.
    """
    first, *rest = TURN.split(prompt)
    if not rest:
        return prompt
    roles = ["user", *[role.lower() for role in rest[::2]]]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise ValueError(
            f"a prompt has the turns {', '.join(roles)}: user and assistant must alternate, and the"
            " user be the last."
        )
    return [
        {"role": role, "content": content}
        for role, content in zip(roles, [first, *rest[1::2]], strict=True)
    ]


def _distinct(cells: Any) -> list[Prompt]:
    """Each prompt once, at its first place; messages without anything but role and content."""
    found: dict[Any, Prompt] = {}
    bad = []
    for i, cell in enumerate(cells):
        if isinstance(cell, str):
            prompt = turns(cell)
        else:
            prompt = [
                {"role": message["role"], "content": message["content"]} for message in cell or []
            ]
        if not _can_be_answered(prompt):
            bad.append(i)
            continue
        key = (
            prompt
            if isinstance(prompt, str)
            else tuple((message["role"], message["content"]) for message in prompt)
        )
        found.setdefault(key, prompt)
    if bad:
        raise ValueError(
            f"{which(bad)} with a `prompt` that is blank or no text, or a conversation that ends"
            " with an answer. Correct or remove them."
        )
    return list(found.values())


def _can_be_answered(prompt: Prompt) -> bool:
    messages = as_messages(prompt)
    return (
        bool(messages)
        and bool((messages[-1]["content"] or "").strip())
        and messages[-1]["role"] != "assistant"
    )


def _shortened(tokenizer: Any, prompt: Prompt, limit: int) -> Prompt | None:
    """The prompt within `limit` tokens, its last message cut at the end; None where nothing of that
    message is left."""
    *earlier, last = as_messages(prompt)
    short, ends = prompt, None
    excess = 0
    while (more := len(token_rows(tokenizer, [short])[0]) - limit) > 0:
        if ends is None:
            encoded = tokenizer(
                last["content"],
                add_special_tokens=False,
                return_offsets_mapping=True,
                verbose=False,
            )
            ends = [end for _, end in encoded["offset_mapping"]]
        excess += more  # more than once where the cut text is split into other tokens
        if excess >= len(ends):
            return None
        cut = last["content"][: ends[len(ends) - excess - 1]]
        short = (
            cut if isinstance(prompt, str) else [*earlier, Message(role=last["role"], content=cut)]
        )
    return short
