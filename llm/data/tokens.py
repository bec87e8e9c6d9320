"""Preference data cut into tokens and put into batches.

Formats are those of TRL: `prompt, chosen, rejected`; `chosen, rejected` whose common beginning is
the prompt; unpaired `prompt, completion, label`; each as strings or as conversations (lists of
messages with a role and a content). Optional columns: `weight` (a number >= 0), `group` (a whole
number >= 0 or a name), `tools` and `chat_template_kwargs` for the chat template; beside chosen and
rejected `label` (1: as they stand, 0: swapped, 0.5: a tie) or `tie` (true or false),
`label_confidence` (the probability that this label is right), and `chosen_reward` and
`rejected_reward` (scores of the two responses).
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import ClassLabel, Dataset, DatasetInfo, Features, List, Value
from datasets.utils import tqdm
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llm.data import doubts
from llm.data.chat import turns
from llm.data.checks import (
    TEXTS,
    TIES,
    can_be_written,
    check_tokenizer,
    checked_rows,
    name_of,
    who_won,
    with_prompts,
    without_blank,
)
from llm.data.files import load_rows
from llm.data.numbers import NUMBERS
from llm.data.rows import BadRows, Row, as_rows, column_names, renamed, which

__all__ = [
    "BadRows",
    "PreferenceCollator",
    "group_numbers",
    "load_rows",
    "padding_token",
    "preference_texts",
    "tokenise",
]

TOKENS = List(Value("int32"))
KEPT = {
    "label": Value("bool"),
    **{name: Value("float32") for name in NUMBERS},
    "group": Value("int64"),
    "index": Value("int64"),
}
STRINGS = ("raw", "chat", "templated", "json")
SURELY = (
    8  # letters of a prompt, in the mean: completions that begin with it hold it by no coincidence
)
BATCH = 1000  # rows given to the tokenizer at once


def tokenise(
    rows: Sequence[Mapping[str, Any]] | Dataset | pd.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    kind: str = "pairs",
    *,
    max_length: int | None = None,
    long_prompts: str = "drop",
    groups: dict[str, int] | None = None,
    columns: Mapping[str, str] | None = None,
    strings: str | None = None,
    ties: str = "half",
    bad: BadRows | None = None,
) -> Dataset:
    """Checked token ids, as the DPOTrainer and KTOTrainer of TRL cut them (trl 1.16), in memory.

    A prompt ends where its tokens and those of prompt and completion part, which is earlier than
    its own end where tokens merge across the boundary. A string is given an end-of-sequence token;
    a conversation has what its chat template writes. An implicit prompt of strings ends at the last
    turn's boundary (`llm.data.implicit_prompts`), where TRL takes the longest common beginning.
    Blank completions and pairs whose chosen and rejected tokens are identical are left out, with a
    warning.

    Args:
        rows: see the formats above. Pairs may be given where `kind` is unpaired: each becomes two
            rows.
        kind: "pairs" or "unpaired".
        max_length: tokens of prompt and completion; longer completions are cut at the end, with a
            warning. None: no limit.
        long_prompts: "drop" or "error", for prompts that fill `max_length`.
        groups: numbers of the groups' names, as `group_numbers` of the training data gives them;
            None: names in sorted order.
        columns: our names of the columns -> those of the data; `system` may be named where texts
            are or become conversations.
        strings: how strings are read. "raw": as they are, None: the same, with a warning where that
            is hardly what is meant; "chat": as messages for the chat template, turns marked as in
            HH-RLHF apart; "templated": a template has written them, so that beginning and end are
            added only where they are missing; "json": they spell lists of messages.
        ties: pairs that a `label` of 0.5 or a true `tie` says neither response won. "half": two
            rows of half the weight, one for each response, with the same `index`; "drop": left out;
            "ignore": neither column is read beside chosen and rejected.
        bad: the account of rows that cannot be used, of `load_rows`; not given, a new one for which
            they are an error.

    Returns:
        prompt_ids, chosen_ids, rejected_ids; or prompt_ids, completion_ids, label,
        kl_completion_ids (the completion of the next row of another prompt, cyclic); index, the
        position in `rows`; weight and group where given.

    Raises:
        ValueError: rows that cannot be used, all of them with their numbers and reasons; a
            tokenizer that lacks what they need.

    >>> from llm import tokenise, word_tokenizer
    >>> rows = [{"prompt": "is it", "chosen": " good", "rejected": " bad"}]
    >>> tokenizer = word_tokenizer(["is it good bad"], 7)
    >>> tokenise(rows, tokenizer)[0]
    {...'prompt_ids': [5, 6], 'chosen_ids': [4, 1], 'rejected_ids': [3, 1]...}
    """
    for name, value, accepted in (
        ("kind", kind, ("pairs", "unpaired")),
        ("long_prompts", long_prompts, ("error", "drop")),
        ("strings", strings, (*STRINGS, None)),
        ("ties", ties, TIES),
    ):
        if value not in accepted:
            raise ValueError(
                f"{name} must be {' or '.join(map(_quoted, accepted))}, got {value!r}."
            )
    if max_length is not None and max_length < 2:
        raise ValueError(
            "max_length must be at least 2 (one token of prompt, one of completion), got"
            f" {max_length}."
        )
    bad = BadRows() if bad is None else bad
    given = as_rows(rows)
    if len(given) == 0:
        raise ValueError("the data set has no rows.")

    if all(i in bad for i in range(len(given))):
        bad.settle(len(given))
    texts = _texts(given, kind, groups, columns, strings, ties, bad)
    _some_left(texts.rows, len(given), bad)
    conversational = not isinstance(texts.rows[0]["prompt"], str)
    check_tokenizer(tokenizer, conversational)
    said = doubts.of_columns(texts.names, texts.rows[0] if texts.implicit else None)
    said += texts.doubts
    if not texts.doubts:
        said += doubts.of_strings(texts.rows, texts.completions, tokenizer, strings)
    said += doubts.of_roles(texts.rows, texts.completions)
    left = texts.rows
    if kind == "unpaired" and "chosen" in texts.completions:
        left = _unpaired(left)
    completions = ["chosen", "rejected"] if kind == "pairs" else ["completion"]
    data = _tokenised(
        left, completions, tokenizer, max_length, strings == "templated", texts.groups, bad
    )
    _some_left(data, len(given), bad)
    data = _usable(data, completions, max_length, long_prompts, bad)
    bad.settle(len(given))
    _some_left(data, len(given), bad)
    said += doubts.of_tokens(data, completions, tokenizer, conversational)
    if left_out := bad.summary(len(given)):
        said.append(left_out)
    for warning in said:
        warnings.warn(warning, stacklevel=2)
    return data if kind == "pairs" else _with_next_completion(data, max_length)


def preference_texts(
    rows: Sequence[Mapping[str, Any]] | Dataset | pd.DataFrame,
    *,
    columns: Mapping[str, str] | None = None,
    strings: str | None = None,
    ties: str = "half",
    bad: BadRows | None = None,
) -> pd.DataFrame:
    """Pairs as the trainer reads them, for analyses of the text: prompt, chosen, rejected as
    strings; index, their position.

    Messages of a conversation are joined by empty lines. Arguments and errors as of `tokenise`;
    blank answers are left out.
    """
    bad = BadRows() if bad is None else bad
    given = as_rows(rows)
    texts = _texts(given, "pairs", None, columns, strings, ties, bad)
    bad.settle(len(given))
    _some_left(texts.rows, len(given), bad)
    if left_out := bad.summary(len(given)):
        warnings.warn(left_out, stacklevel=2)
    named = ("prompt", "chosen", "rejected")
    return pd.DataFrame(
        [
            {name: _joined(row[name]) for name in named} | {"index": row["index"]}
            for row in texts.rows
        ]
    )


def group_numbers(data: Dataset) -> dict[str, int]:
    """The number that `tokenise` gave to each name in the column `group`; empty where there are
    none, or they were numbers."""
    feature = data.features.get("group")
    return (
        {name: number for number, name in enumerate(feature.names)}
        if isinstance(feature, ClassLabel)
        else {}
    )


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad with: that of the end-of-sequence token where there is no padding token, since
    padding is masked.

    Raises:
        ValueError: the tokenizer has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ValueError(
        f"{name_of(tokenizer)} has neither a padding nor an end-of-sequence token, so that rows of"
        " different length cannot be put into a batch. Set one of its own tokens as either, e.g."
        ' `tokenizer.pad_token = "<pad>"`, and save it.'
    )


@dataclass
class PreferenceCollator:
    """Rows of `tokenise` (with reference log-probabilities or not) -> a batch of tensors, padded on
    the right.

    Of b pairs `input_ids`, `attention_mask` and `completion_mask` are (2b, T), rows 0..b-1 chosen
    and b..2b-1 rejected; of b unpaired responses (b, T), with `desirable` (b,) and the same three
    for the completion of another row as `kl_input_ids`, .... `reference_logps` (2b,) or (b,),
    `kl_reference_logps`, the columns of numbers float32, `group` and `index` int64 (b,) where the
    rows have them. T is the longest row, or the next multiple of `pad_to_multiple_of`.

    Args:
        pad_token_id: what rows are filled with.
        pad_to_multiple_of: of the length T, 1 or more.

    Raises:
        ValueError: a multiple below 1.

    >>> from llm import PreferenceCollator
    >>> row = {"prompt_ids": [5, 6], "chosen_ids": [4, 1], "rejected_ids": [1], "index": 0}
    >>> PreferenceCollator(pad_token_id=0)([row])["input_ids"].tolist()
    [[5, 6, 4, 1], [5, 6, 1, 0]]
    """

    pad_token_id: int
    pad_to_multiple_of: int = 1

    def __post_init__(self) -> None:
        if self.pad_to_multiple_of < 1:
            raise ValueError(
                "pad_to_multiple_of must be at least 1 (pad to the longest row), got"
                f" {self.pad_to_multiple_of}."
            )

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        first = rows[0]
        if "chosen_ids" in first:
            batch = self._sequences(
                rows, ["chosen_ids", "rejected_ids"], ["ref_chosen_logps", "ref_rejected_logps"]
            )
        else:
            batch = self._sequences(rows, ["completion_ids"], ["ref_logps"])
            other = self._sequences(rows, ["kl_completion_ids"], ["ref_kl_logps"])
            batch |= {f"kl_{key}": value for key, value in other.items()}
            batch["desirable"] = torch.tensor([bool(row["label"]) for row in rows])
        for column, dtype in (
            *((name, torch.float32) for name in NUMBERS),
            ("group", torch.int64),
            ("index", torch.int64),
        ):
            if column in first:
                batch[column] = torch.tensor([row[column] for row in rows], dtype=dtype)
        return batch

    def _sequences(
        self, rows: Sequence[dict[str, Any]], completions: list[str], references: list[str]
    ) -> dict[str, Tensor]:
        pairs = [(row["prompt_ids"], row[column]) for column in completions for row in rows]
        longest = max(len(prompt) + len(completion) for prompt, completion in pairs)
        width = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        ids = np.full((len(pairs), width), self.pad_token_id, dtype=np.int64)
        attention, scored = np.zeros_like(ids), np.zeros_like(ids)
        for i, (prompt, completion) in enumerate(pairs):
            start, end = len(prompt), len(prompt) + len(completion)
            ids[i, :start] = prompt
            ids[i, start:end] = completion
            attention[i, :end] = 1
            scored[i, start:end] = 1
        arrays = {"input_ids": ids, "attention_mask": attention, "completion_mask": scored}
        batch = {key: torch.from_numpy(array) for key, array in arrays.items()}
        if references[0] in rows[0]:
            logps = [row[column] for column in references for row in rows]
            batch["reference_logps"] = torch.tensor(logps, dtype=torch.float32)
        return batch


@dataclass
class _Texts:
    """Usable rows with a prompt, what they are made of, and the names of all columns of the
    data."""

    rows: list[Row]
    completions: list[str]
    groups: dict[str, int]
    implicit: bool
    names: list[str]
    doubts: list[str]


def _texts(
    given: list[Row],
    kind: str,
    groups: dict[str, int] | None,
    columns: Mapping[str, str] | None,
    strings: str | None,
    ties: str,
    bad: BadRows,
) -> _Texts:
    """From rows as they stand to prompts and completions, as strings or messages."""
    given = renamed(given, columns) if columns else given
    rows, texts, numbers = checked_rows(given, kind, groups, bad, serialised=strings == "json")
    said = doubts.of_spelt(rows, texts) if strings is None else []
    if "chosen" in texts:
        rows, done = who_won(rows, ties, bad)
        said += done
    implicit = "prompt" not in texts
    if implicit:
        rows = with_prompts(rows, bad)
    completions = [name for name in texts if name != "prompt"]
    if not implicit and strings != "raw":
        rows, repeated = _without_repeated_prompts(rows, completions)
        said += repeated
    if strings == "chat":
        rows = [_as_messages(row, completions) for row in rows]
    if columns and "system" in columns:
        rows = _with_system(rows, given, bad)
    rows = without_blank(rows, completions, bad)
    names = [
        name
        for name in column_names(given)
        if not (name == "system" and columns and "system" in columns)
        and not (name == "tie" and "chosen" in texts)
    ]
    return _Texts(rows, completions, numbers, implicit, names, said)


def _without_repeated_prompts(
    rows: list[Row], completions: list[str]
) -> tuple[list[Row], list[str]]:
    """Where every completion begins with its prompt, as in whole conversations, the prompt is cut
    from it; said where most do."""
    begin = [
        all(row[name][: len(row["prompt"])] == row["prompt"] for name in completions)
        for row in rows
    ]
    letters = isinstance(rows[0]["prompt"], str) if rows else False
    enough = not letters or sum(len(row["prompt"]) for row in rows) >= SURELY * len(
        rows
    )  # no coincidence of a word
    if not rows or not enough or 2 * sum(begin) <= len(rows):
        return rows, []
    if all(begin):
        cut = [
            row | {name: row[name][len(row["prompt"]) :] for name in completions} for row in rows
        ]
        return cut, [
            "every completion begins with its prompt once more: it is cut from them (--strings raw"
            " keeps strings as they are)."
        ]
    some = which(row["index"] for row, yes in zip(rows, begin, strict=True) if yes)
    return rows, [
        f"{some} with completions that begin with the prompt once more, which is trained on twice."
        " Cut it from them."
    ]


def _as_messages(row: Row, completions: list[str]) -> Row:
    if not isinstance(row["prompt"], str):
        return row
    answers = {name: [{"role": "assistant", "content": row[name].strip()}] for name in completions}
    return row | {"prompt": turns(row["prompt"])} | answers


def _with_system(rows: list[Row], given: list[Row], bad: BadRows) -> list[Row]:
    if rows and isinstance(rows[0]["prompt"], str):
        raise ValueError(
            "--columns system=... is a message of a conversation, but the texts are strings: give"
            " --strings chat."
        )
    found = []
    for row in rows:
        system = given[row["index"]].get("system")
        if isinstance(system, str | None) and can_be_written(system):
            found.append(
                row | {"prompt": [{"role": "system", "content": system}, *row["prompt"]]}
                if system
                else row
            )
        else:
            bad.add(
                [row["index"]],
                "with a system message that is no string, or holds half an emoji",
                repr(system)[:60],
            )
    return found


def _unpaired(rows: list[Row]) -> list[Row]:
    """One row for each response, in the order of TRL: of each thousand rows first all that are
    chosen."""
    found: list[Row] = []
    for start in range(0, len(rows), BATCH):
        for name, label in (("chosen", True), ("rejected", False)):
            for row in rows[start : start + BATCH]:
                rest = {k: v for k, v in row.items() if k not in TEXTS}
                found.append(
                    rest | {"prompt": row["prompt"], "completion": row[name], "label": label}
                )
    return found


def _tokenised(
    rows: list[Row],
    completions: list[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    templated: bool,
    groups: dict[str, int],
    bad: BadRows,
) -> Dataset:
    """Token ids of the rows that the chat template does not refuse, with the flags that `_usable`
    looks at."""
    names = [f"{name}_ids" for name in ["prompt", *completions]]
    flags = ("cut", "merged", "same")
    tokens: dict[str, list[Any]] = {name: [] for name in (*names, *flags)}
    rendered = list(
        _rendered(
            tqdm(rows, desc="chat template", unit="row", delay=2),
            completions,
            tokenizer,
            templated,
            bad,
        )
    )
    for start in tqdm(range(0, len(rendered), BATCH), desc="tokens", unit="batch", delay=2):
        part = rendered[start : start + BATCH]
        # text by text with or without the tokenizer's own special tokens, but the tokenizer takes
        # many at once
        encoded: dict[tuple[int, str], list[int]] = {}
        for special in (False, True):
            of_kind = [
                (i, name)
                for i, (_, texts, own) in enumerate(part)
                if own == special
                for name in texts
            ]
            if of_kind:
                of_texts = _encode(tokenizer, [part[i][1][name] for i, name in of_kind], special)
                encoded |= dict(zip(of_kind, of_texts, strict=True))
        for i in range(len(part)):
            prompt, full = encoded[i, "prompt"], [encoded[i, name] for name in completions]
            start_of_completion = min(_common_length(prompt, ids) for ids in full)
            parts = [ids[start_of_completion:max_length] for ids in full]
            tokens["prompt_ids"].append(prompt[:start_of_completion])
            for name, ids in zip(completions, parts, strict=True):
                tokens[f"{name}_ids"].append(ids)
            tokens["cut"].append(
                max_length is not None and any(len(ids) > max_length for ids in full)
            )
            tokens["merged"].append(start_of_completion < len(prompt))
            tokens["same"].append(len(parts) == 2 and parts[0] == parts[1])
    used = [row for row, _, _ in rendered]
    kept = {name: feature for name, feature in KEPT.items() if used and name in used[0]}
    if groups and "group" in kept:
        kept["group"] = ClassLabel(names=list(groups))
    features = Features(
        dict.fromkeys(names, TOKENS) | kept | {flag: Value("bool") for flag in flags}
    )
    return Dataset.from_dict(
        tokens | {name: [row[name] for row in used] for name in kept}, features=features
    )


def _rendered(
    rows: Iterable[Row],
    completions: list[str],
    tokenizer: PreTrainedTokenizerBase,
    templated: bool,
    bad: BadRows,
) -> Iterator[tuple[Row, dict[str, str], bool]]:
    """Each row with the texts to be cut, prompt and prompt with each completion, and whether
    special tokens are added to them."""
    eos, bos = tokenizer.eos_token, tokenizer.bos_token
    ends = tuple({eos, *tokenizer.all_special_tokens} - {None, bos, tokenizer.pad_token} | {eos})
    for row in rows:
        prompt = row["prompt"]
        try:
            if not isinstance(prompt, str):
                texts = {"prompt": _render(tokenizer, row, prompt, add_generation_prompt=True)}
                texts |= {name: _render(tokenizer, row, prompt + row[name]) for name in completions}
                own = False  # the template writes them
            elif templated:
                ended = {
                    name: row[name] if row[name].rstrip().endswith(ends) else row[name] + eos
                    for name in completions
                }
                texts = {"prompt": prompt} | {name: prompt + text for name, text in ended.items()}
                own = bos is None or not prompt.lstrip().startswith(bos)
            else:
                ended = {
                    name: row[name] if row[name].endswith(eos) else row[name] + eos
                    for name in completions
                }
                texts = {"prompt": prompt} | {name: prompt + text for name, text in ended.items()}
                own = True
        except Exception as error:  # templates raise what they like
            if isinstance(prompt, str):
                raise
            reason = (
                f"that the chat template of {name_of(tokenizer)} refuses: correct them or use"
                " another template"
            )
            bad.add([row["index"]], reason, str(error))
            continue
        yield row, texts, own


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool) -> list[list[int]]:
    options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    return tokenizer(texts, add_special_tokens=special, **options)["input_ids"]


def _render(
    tokenizer: PreTrainedTokenizerBase,
    row: Row,
    conversation: Any,
    add_generation_prompt: bool = False,
) -> str:
    text: Any = tokenizer.apply_chat_template(
        conversation,
        tools=row.get("tools"),
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        **row.get("chat_template_kwargs", {}),
    )
    return str(text)


def _common_length(prompt: list[int], whole: list[int]) -> int:
    if whole[: len(prompt)] == prompt:
        return len(prompt)
    return next(
        (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b),
        min(len(prompt), len(whole)),
    )


def _usable(
    data: Dataset, completions: list[str], max_length: int | None, long_prompts: str, bad: BadRows
) -> Dataset:
    """The rows that can be learnt from, without the flags; what is changed is counted in a warning,
    what is dropped in `bad`."""
    table = data.with_format("arrow")[:]
    index = table["index"].to_numpy()
    lengths = {
        name: pc.list_value_length(table[f"{name}_ids"]).to_numpy()
        for name in ["prompt", *completions]
    }
    cut, merged, same = (table[flag].to_numpy() for flag in ("cut", "merged", "same"))
    within = "" if max_length is None else f" within {max_length} tokens"

    bad.add(
        index[lengths["prompt"] == 0],
        "without a token of prompt, so that the first token of the completion has no probability"
        " (give a prompt, or use a tokenizer that begins every text with a token of its own)",
    )
    long = (
        np.zeros(len(table), dtype=bool) if max_length is None else lengths["prompt"] >= max_length
    )
    if long.any() and not bad.drop and (long_prompts == "error" or long.all()):
        raise ValueError(
            f"{which(index[long])} with a prompt that leaves no room for a completion within"
            f" max_length = {max_length} tokens (the longest prompt has {lengths['prompt'].max()})."
            " Raise max_length, shorten the prompts, or leave such rows out (--long_prompts drop),"
            " if there are others."
        )
    bad.leave_out(index[long], f"with a prompt that leaves no room for a completion{within}")
    for name in completions:
        bad.add(index[(lengths[name] == 0) & ~long], f"without a token of completion in `{name}`")
    bad.leave_out(index[same & ~long], f"with identical chosen and rejected{within}")
    keep = np.array([row not in bad for row in index], dtype=bool)
    if (
        keep.any()
        and "weight" in table.column_names
        and not (table["weight"].to_numpy()[keep] > 0).any()
    ):
        raise ValueError("column `weight` is zero in every row: there is nothing to learn from.")
    for flag, what in (
        (cut, f"cut at the end of the completion: longer than max_length = {max_length} tokens"),
        (
            merged,
            (
                "with a prompt whose tokens are not the first of prompt and completion: tokens"
                " merge across the boundary, or the chat template writes the prompt differently."
                " The completion starts where they part"
            ),
        ),
    ):
        if (flag & keep).any():
            warnings.warn(f"{which(index[flag & keep])} {what}.", stacklevel=3)
    data = data.remove_columns(["cut", "merged", "same"])
    return (
        data
        if keep.all()
        else _rebuilt(data, data.with_format("arrow")[:].filter(pa.array(keep)), {})
    )


def _with_next_completion(data: Dataset, max_length: int | None) -> Dataset:
    """Adds kl_completion_ids: the completion of the next row of another prompt, cyclic, cut to what
    `max_length` leaves of it."""
    table = data.with_format("arrow")[:]
    column = table["completion_ids"].combine_chunks()
    values, lengths = (
        column.flatten().to_numpy(),
        pc.list_value_length(column).to_numpy().astype(np.int64),
    )
    starts = np.cumsum(lengths) - lengths
    room = (
        np.inf
        if max_length is None
        else max_length - pc.list_value_length(table["prompt_ids"]).to_numpy()
    )
    other = _next_other(data["prompt_ids"])
    taken = np.minimum(lengths[other], room).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(taken)])
    positions = np.repeat(starts[other] - offsets[:-1], taken) + np.arange(offsets[-1])
    array = pa.ListArray.from_arrays(
        pa.array(offsets, type=pa.int32()), pa.array(values[positions], type=pa.int32())
    )
    return _rebuilt(
        data, table.append_column("kl_completion_ids", array), {"kl_completion_ids": TOKENS}
    )


def _next_other(prompts: Iterable[Sequence[int]]) -> np.ndarray:
    """Index of the next row, cyclic, with another prompt; of the next row where all prompts are the
    same."""
    numbers: dict[tuple[int, ...], int] = {}
    keys = np.array([numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts])
    last = np.flatnonzero(keys != np.roll(keys, -1))  # rows after which the prompt changes
    if len(last) == 0:
        last = np.arange(len(keys))
    return (last[np.searchsorted(last, np.arange(len(keys))) % len(last)] + 1) % len(keys)


def _rebuilt(data: Dataset, table: pa.Table, more: dict[str, Any]) -> Dataset:
    return Dataset(
        table.replace_schema_metadata(None),
        info=DatasetInfo(features=Features({**data.features, **more})),
    )


def _some_left(rows: Sequence[Row] | Dataset, count: int, bad: BadRows) -> None:
    if len(rows) == 0:
        bad.settle(count)
        raise ValueError(
            f"no row is left to learn from. {bad.summary(count)} Check how the data were made."
        )


def _joined(text: Any) -> str:
    return (
        text
        if isinstance(text, str)
        else "\n\n".join(str(message.get("content") or "") for message in text)
    )


def _quoted(value: str | None) -> str:
    return "None" if value is None else f'"{value}"'
