"""Preference data cut into tokens and put into batches.

Formats are those of TRL: `prompt, chosen, rejected`; `chosen, rejected` whose common beginning is the prompt; unpaired
`prompt, completion, label`; each as strings or as conversations (lists of messages with a role and a content). Optional columns:
`weight` (a number >= 0) and `group` (a whole number >= 0 or a name). Rows are counted from 0, lines of a file from 1.
"""

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import ClassLabel, Dataset, DatasetInfo, Features, List, Value
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llm.data_checks import check_common_beginning, check_not_blank, check_tokenizer, checked_columns, is_text, name_of, which
from llm.data_files import load_rows

__all__ = ["PreferenceCollator", "group_numbers", "load_rows", "padding_token", "tokenise"]

TOKENS = List(Value("int32"))
KEPT = {"label": Value("bool"), "weight": Value("float32"), "group": Value("int64"), "index": Value("int64")}


def tokenise(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    kind: str = "pairs",
    *,
    max_length: int | None = None,
    long_prompts: str = "error",
    groups: dict[str, int] | None = None,
    num_proc: int | None = None,
) -> Dataset:
    """Checked token ids, as the DPOTrainer and KTOTrainer of TRL cut them (trl 1.16), in memory.

    A prompt ends where its tokens and those of prompt and completion part, which is earlier than its own end where tokens merge
    across the boundary. A string is given an end-of-sequence token; a conversation has what its chat template writes. Pairs whose
    chosen and rejected tokens are identical are left out, with a warning.

    Args:
        rows: see the formats above. Pairs may be given where `kind` is unpaired: each becomes two rows.
        kind: "pairs" or "unpaired".
        max_length: tokens of prompt and completion; longer completions are cut at the end, with a warning. None: no limit.
        long_prompts: "error" or "drop", for prompts that fill `max_length`.
        groups: numbers of the groups' names, as `group_numbers` of the training data gives them; None: names in sorted order.
        num_proc: processes. One is usually enough for strings, which the tokenizer cuts in parallel.

    Returns:
        prompt_ids, chosen_ids, rejected_ids; or prompt_ids, completion_ids, label, kl_completion_ids (the completion of the next
        row of another prompt, cyclic); index, the position in `rows`; weight and group where given.

    Raises:
        ValueError: rows that cannot be used, with their number and the first of them; a tokenizer that lacks what they need.
    """
    if kind not in ("pairs", "unpaired"):
        raise ValueError(f'kind must be "pairs" or "unpaired", got {kind!r}.')
    if long_prompts not in ("error", "drop"):
        raise ValueError(f'long_prompts must be "error" or "drop", got {long_prompts!r}.')
    if max_length is not None and max_length < 2:
        raise ValueError(f"max_length must be at least 2 (one token of prompt, one of completion), got {max_length}.")
    if len(rows) == 0:
        raise ValueError("the data set has no rows.")

    table, numbers = checked_columns(rows, kind, groups)
    check_tokenizer(tokenizer, conversational=not is_text(table[0].type))
    options = {"keep_in_memory": True, "load_from_cache_file": False, "num_proc": num_proc}
    texts = Dataset(table)
    if "prompt" not in texts.column_names:
        from trl.data_utils import extract_prompt  # slow to import

        check_common_beginning(table)
        texts = texts.map(extract_prompt, desc="prompts", **options)
    check_not_blank(texts.with_format("arrow")[:])
    if kind == "unpaired" and "chosen" in texts.column_names:
        from trl.data_utils import unpair_preference_dataset  # slow to import

        # in one process, since the order of the rows depends on how they are shared out
        texts = unpair_preference_dataset(texts, desc="one row for each response", **options | {"num_proc": None})

    completions = ["chosen", "rejected"] if kind == "pairs" else ["completion"]
    kept = {column: feature for column, feature in KEPT.items() if column in texts.column_names}
    if numbers:
        kept["group"] = ClassLabel(names=list(numbers))
    data = texts.map(
        _tokenise_batch,
        batched=True,
        fn_kwargs={"tokenizer": tokenizer, "completions": completions, "max_length": max_length},
        remove_columns=[column for column in texts.column_names if column not in kept],
        features=Features(
            {f"{column}_ids": TOKENS for column in ["prompt", *completions]}
            | kept
            | {flag: Value("bool") for flag in ("cut", "merged", "same")}
        ),
        desc="tokens",
        **options,
    )
    data = _usable(data, completions, max_length, long_prompts)
    return data if kind == "pairs" else _with_next_completion(data, max_length)


def group_numbers(data: Dataset) -> dict[str, int]:
    """The number that `tokenise` gave to each name in the column `group`; empty where there are none, or they were numbers."""
    feature = data.features.get("group")
    return {name: number for number, name in enumerate(feature.names)} if isinstance(feature, ClassLabel) else {}


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad with: that of the end-of-sequence token where there is no padding token, since padding is masked.

    Raises:
        ValueError: the tokenizer has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ValueError(
        f"{name_of(tokenizer)} has neither a padding nor an end-of-sequence token, so that rows of different length cannot be "
        'put into a batch. Set one of its own tokens as either, e.g. `tokenizer.pad_token = "<pad>"`, and save it.'
    )


@dataclass
class PreferenceCollator:
    """Rows of `tokenise` (with reference log-probabilities or not) -> a batch of tensors, padded on the right.

    Of b pairs `input_ids`, `attention_mask` and `completion_mask` are (2b, T), rows 0..b-1 chosen and b..2b-1 rejected; of b
    unpaired responses (b, T), with `desirable` (b,) and the same three for the completion of another row as `kl_input_ids`, ....
    `reference_logps` (2b,) or (b,), `kl_reference_logps`, `weight` float32, `group` and `index` int64 (b,) where the rows have
    them. T is the longest row, or the next multiple of `pad_to_multiple_of`.
    """

    pad_token_id: int
    pad_to_multiple_of: int = 1

    def __post_init__(self) -> None:
        if self.pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of must be at least 1 (pad to the longest row), got {self.pad_to_multiple_of}.")

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        first = rows[0]
        if "chosen_ids" in first:
            batch = self._sequences(rows, ["chosen_ids", "rejected_ids"], ["ref_chosen_logps", "ref_rejected_logps"])
        else:
            batch = self._sequences(rows, ["completion_ids"], ["ref_logps"])
            other = self._sequences(rows, ["kl_completion_ids"], ["ref_kl_logps"])
            batch |= {f"kl_{key}": value for key, value in other.items()}
            batch["desirable"] = torch.tensor([bool(row["label"]) for row in rows])
        for column, dtype in (("weight", torch.float32), ("group", torch.int64), ("index", torch.int64)):
            if column in first:
                batch[column] = torch.tensor([row[column] for row in rows], dtype=dtype)
        return batch

    def _sequences(self, rows: Sequence[dict[str, Any]], completions: list[str], references: list[str]) -> dict[str, Tensor]:
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


def _tokenise_batch(
    batch: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase, completions: list[str], max_length: int | None
) -> dict[str, list[Any]]:
    prompts = batch["prompt"]
    if isinstance(prompts[0], str):
        encode = _encoder(tokenizer, special=True)
        eos = tokenizer.eos_token
        prompt_ids = encode(prompts)
        ended = {column: [text if text.endswith(eos) else text + eos for text in batch[column]] for column in completions}
        whole = {column: encode([p + y for p, y in zip(prompts, ended[column], strict=True)]) for column in completions}
    else:
        encode = _encoder(tokenizer, special=False)  # the template writes them
        prompt_ids = encode(_render(tokenizer, batch, prompts, add_generation_prompt=True))
        dialogues = {column: [p + y for p, y in zip(prompts, batch[column], strict=True)] for column in completions}
        whole = {column: encode(_render(tokenizer, batch, dialogues[column])) for column in completions}

    names = [*(f"{column}_ids" for column in ["prompt", *completions]), "cut", "merged", "same"]
    tokens: dict[str, list[Any]] = {name: [] for name in names}
    for i, prompt in enumerate(prompt_ids):
        full = [whole[column][i] for column in completions]
        start = min(_common_length(prompt, ids) for ids in full)
        parts = [ids[start:max_length] for ids in full]
        tokens["prompt_ids"].append(prompt[:start])
        for column, part in zip(completions, parts, strict=True):
            tokens[f"{column}_ids"].append(part)
        tokens["cut"].append(max_length is not None and any(len(ids) > max_length for ids in full))
        tokens["merged"].append(start < len(prompt))
        tokens["same"].append(len(parts) == 2 and parts[0] == parts[1])
    return tokens


def _encoder(tokenizer: PreTrainedTokenizerBase, special: bool) -> Callable[[list[str]], list[list[int]]]:
    def encode(texts: list[str]) -> list[list[int]]:
        options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        return tokenizer(texts, add_special_tokens=special, **options)["input_ids"]

    return encode


def _render(
    tokenizer: PreTrainedTokenizerBase,
    batch: dict[str, list[Any]],
    conversations: Iterable[Any],
    add_generation_prompt: bool = False,
) -> list[str]:
    texts = []
    for i, conversation in enumerate(conversations):
        tools = batch["tools"][i] if "tools" in batch else None
        more = (batch["chat_template_kwargs"][i] or {}) if "chat_template_kwargs" in batch else {}
        try:
            text: Any = tokenizer.apply_chat_template(
                conversation,
                tools=json.loads(tools) if isinstance(tools, str) else tools,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **more,
            )
        except Exception as error:  # templates raise what they like
            raise ValueError(
                f"row {batch['index'][i]}: the chat template of {name_of(tokenizer)} refuses the conversation ({error}). Correct "
                "or remove the row, or use another template."
            ) from error
        texts.append(text)
    return texts


def _common_length(prompt: list[int], whole: list[int]) -> int:
    if whole[: len(prompt)] == prompt:
        return len(prompt)
    return next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole)))


def _usable(data: Dataset, completions: list[str], max_length: int | None, long_prompts: str) -> Dataset:
    """The rows that can be learnt from, without the flags; what is dropped or changed is counted in a warning."""
    table = data.with_format("arrow")[:]
    index = table["index"].to_numpy()
    lengths = {column: pc.list_value_length(table[f"{column}_ids"]).to_numpy() for column in ["prompt", *completions]}
    cut, merged, same = (table[flag].to_numpy() for flag in ("cut", "merged", "same"))
    within = "" if max_length is None else f" within {max_length} tokens"

    bad = lengths["prompt"] == 0
    if bad.any():
        raise ValueError(
            f"{which(index[bad])} without a token of prompt, so that the first token of the completion has no probability. Give "
            "a prompt, or use a tokenizer that begins every text with a token of its own."
        )
    long = np.zeros(len(table), dtype=bool) if max_length is None else lengths["prompt"] >= max_length
    if long.any() and (long_prompts == "error" or long.all()):
        raise ValueError(
            f"{which(index[long])} with a prompt that leaves no room for a completion within max_length = {max_length} tokens "
            f"(the longest prompt has {lengths['prompt'].max()}). Raise max_length, shorten the prompts, or give "
            "--long_prompts drop to leave such rows out, if there are others."
        )
    same &= ~long
    for column in completions:
        bad = (lengths[column] == 0) & ~long
        if bad.any():
            raise ValueError(f"column `{column}`: {which(index[bad])} without a token of completion. Remove them.")
    if (same | long).all():
        raise ValueError(
            f"chosen and rejected are identical{within} in all {same.sum()} rows: there is nothing to prefer. Check how the "
            "pairs were made."
        )
    keep = ~(long | same)
    if "weight" in table.column_names and not (table["weight"].to_numpy()[keep] > 0).any():
        raise ValueError("column `weight` is zero in every row: there is nothing to learn from.")
    for flag, what in (
        (long, f"dropped: the prompt leaves no room for a completion{within}"),
        (same, f"dropped: chosen and rejected are identical{within}"),
        (cut & keep, f"cut at the end of the completion: longer than max_length = {max_length} tokens"),
        (
            merged & keep,
            "with a prompt whose tokens are not the first of prompt and completion: tokens merge across the boundary, or the "
            "chat template writes the prompt differently. The completion starts where they part",
        ),
    ):
        if flag.any():
            warnings.warn(f"{which(index[flag])} {what}.", stacklevel=3)
    data = data.remove_columns(["cut", "merged", "same"])
    return data if keep.all() else _rebuilt(data, data.with_format("arrow")[:].filter(pa.array(keep)), {})


def _with_next_completion(data: Dataset, max_length: int | None) -> Dataset:
    """Adds kl_completion_ids: the completion of the next row of another prompt, cyclic, cut to what `max_length` leaves of it."""
    table = data.with_format("arrow")[:]
    column = table["completion_ids"].combine_chunks()
    values, lengths = column.flatten().to_numpy(), pc.list_value_length(column).to_numpy().astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    room = np.inf if max_length is None else max_length - pc.list_value_length(table["prompt_ids"]).to_numpy()
    other = _next_other(data["prompt_ids"])
    taken = np.minimum(lengths[other], room).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(taken)])
    positions = np.repeat(starts[other] - offsets[:-1], taken) + np.arange(offsets[-1])
    array = pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), pa.array(values[positions], type=pa.int32()))
    return _rebuilt(data, table.append_column("kl_completion_ids", array), {"kl_completion_ids": TOKENS})


def _next_other(prompts: Iterable[Sequence[int]]) -> np.ndarray:
    """Index of the next row, cyclic, with another prompt; of the next row where all prompts are the same."""
    numbers: dict[tuple[int, ...], int] = {}
    keys = np.array([numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts])
    last = np.flatnonzero(keys != np.roll(keys, -1))  # rows after which the prompt changes
    if len(last) == 0:
        last = np.arange(len(keys))
    return (last[np.searchsorted(last, np.arange(len(keys))) % len(last)] + 1) % len(keys)


def _rebuilt(data: Dataset, table: pa.Table, more: dict[str, Any]) -> Dataset:
    return Dataset(table.replace_schema_metadata(None), info=DatasetInfo(features=Features({**data.features, **more})))
