"""Which columns preference data may have, and which rows cannot be used: all of them are taken
down, with the reason of each."""

import ast
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from llm.data.implicit_prompts import split
from llm.data.numbers import NUMBERS
from llm.data.rows import BadRows, Row, column_names

TEXTS = ("prompt", "chosen", "rejected", "completion")
TEMPLATE_INPUTS = ("tools", "chat_template_kwargs")  # per row, handed to the chat template
READ = (*TEXTS, "label", *NUMBERS, "group", *TEMPLATE_INPUTS)
FORMATS = (
    "`prompt, chosen, rejected`; `chosen, rejected` that begin with the same prompt; or, for"
    " unpaired objectives, `prompt, completion, label`"
)
TIES = ("half", "drop", "ignore")  # what is done with pairs that neither response won
HALF = "half an emoji (a lone surrogate, which no UTF-8 text can hold)"
STRING, MESSAGES = "a string", "a list of messages"


def checked_rows(
    rows: Sequence[Row],
    kind: str,
    groups: dict[str, int] | None,
    bad: BadRows,
    *,
    serialised: bool = False,
) -> tuple[list[Row], list[str], dict[str, int]]:
    """The usable rows with what is read of them and their position `index`; label, weight, group
    and tools converted.

    serialised: the texts are JSON, or Python's way to write it, inside strings.

    Returns the rows, their text columns, and the number of each group's name in the order of the
    numbers (empty where groups are numbers or there are none).

    Raises:
        ValueError: columns are missing, or strings and conversations are mixed.
    """
    names = column_names(rows)
    texts = _text_columns(names, kind)
    given = sorted(name for name in names if name.startswith("ref_") and name.endswith("logps"))
    if given:
        warnings.warn(
            f"{', '.join(given)} in the data are not used: the reference is computed from the"
            " model.",
            stacklevel=3,
        )

    left = [Row(row, index=i) for i, row in enumerate(rows) if i not in bad]
    if serialised:
        left = _parsed(left, texts)
    shapes = {name: _common_shape(row.get(name) for row in left) for name in texts}
    if (
        texts == ["prompt", "chosen", "rejected"]
        and shapes["prompt"] == STRING
        and shapes["chosen"] == MESSAGES
    ):
        texts = texts[
            1:
            # as in UltraFeedback: the conversations begin with the prompt, which is given once more
            # as a string
        ]
    if len({shapes[name] for name in texts}) > 1:
        listed = ", ".join(
            f"`{name}` has {'strings' if shapes[name] == STRING else 'conversations'}"
            for name in texts
        )
        raise ValueError(
            f"strings and conversations are mixed: {listed}. Give all as strings, or all as lists"
            " of messages."
        )
    for name in texts:
        _check_shape(left, name, shapes[name], bad)
    numbers = _check_numbers(left, names, "completion" in texts, groups, bad)
    for name in TEMPLATE_INPUTS:
        if name in names:
            _check_template_input(left, name, bad)
    kept = (*texts, *TEMPLATE_INPUTS, "label", "tie", *NUMBERS, "group", "index")
    return (
        [{k: row[k] for k in kept if k in row} for row in left if row["index"] not in bad],
        texts,
        numbers,
    )


def with_prompts(rows: list[Row], bad: BadRows) -> list[Row]:
    """Rows of chosen and rejected, with the prompt that they begin with as a column of its own."""
    found = []
    for row in rows:
        parts = split(row["chosen"], row["rejected"])
        if parts is None:
            bad.add(
                [row["index"]],
                "without a column `prompt`, and without a common beginning of chosen and rejected"
                " that could be the prompt",
            )
        else:
            found.append(row | dict(zip(("prompt", "chosen", "rejected"), parts, strict=True)))
    return found


def _swapped(row: Row) -> Row:
    """What is of the chosen response, of the rejected one, and the reverse."""
    other = {"chosen": "rejected", "rejected": "chosen"}
    other |= {"chosen_reward": "rejected_reward", "rejected_reward": "chosen_reward"}
    return {name: row[given] for name, given in other.items() if given in row}


def who_won(rows: list[Row], ties: str, bad: BadRows) -> tuple[list[Row], list[str]]:
    """Pairs as their columns `label` and `tie` say, and a sentence of what was done.

    A `label` of 1 keeps chosen and rejected, 0 swaps them, and 0.5, or a true `tie`, makes of a
    pair two of half its weight, one for each response; with `ties` "drop" it is left out. "ignore"
    reads neither column.
    """
    columns = [name for name in ("label", "tie") if any(name in row for row in rows)]
    if not columns:
        return rows, []
    listed = " and ".join(f"`{name}`" for name in columns)
    if ties == "ignore":
        unlabelled = [{k: v for k, v in row.items() if k not in columns} for row in rows]
        return unlabelled, [f"{listed} beside chosen and rejected not read (--ties ignore)."]
    remedy = (
        ": 1 is for a pair as it stands, 0 for chosen and rejected swapped, 0.5 for a tie (--ties"
        " ignore does not read the column)"
    )
    found: list[Row] = []
    counts = {1.0: 0, 0.0: 0, 0.5: 0}
    for row in rows:
        tie = row.get("tie", False)
        label = row.get("label", (0.5 if tie else 1.0) if "label" not in columns or tie else None)
        if not isinstance(tie, int | float) or tie not in (0, 1):
            bad.add([row["index"]], "with a `tie` that is neither true nor false", repr(tie)[:60])
        elif not isinstance(label, int | float) or label not in counts:
            bad.add(
                [row["index"]],
                f"with a `label` that is none of 1, 0.5, 0{remedy}",
                repr(label)[:60],
            )
        elif "tie" in row and "label" in row and bool(tie) != (label == 0.5):
            detail = f"tie {tie!r}, label {label!r}"
            bad.add([row["index"]], "whose `tie` and `label` say different things", detail)
        else:
            counts[float(label)] += 1
            plain = {k: v for k, v in row.items() if k not in columns}
            swapped = plain | _swapped(plain)
            if label == 0.5 and ties == "drop":
                bad.leave_out([row["index"]], "with a tie (--ties drop)")
            elif label == 0.5:
                half = {"weight": 0.5 * plain.get("weight", 1.0)}
                if "label_confidence" in plain:  # either label is as good
                    half["label_confidence"] = 0.5
                found += [plain | half, swapped | half]
            else:
                found.append(plain if label == 1 else swapped)
    if any("weight" in row for row in found):
        found = [{"weight": 1.0} | row for row in found]
    tied = {"half": "each as two of half the weight", "drop": "left out"}[ties]
    return found, [
        f"{listed} beside chosen and rejected: {counts[1.0]} pairs as they stand, {counts[0.0]}"
        f" swapped, {counts[0.5]} ties, {tied}."
    ]


def without_blank(rows: list[Row], completions: Sequence[str], bad: BadRows) -> list[Row]:
    """The rows whose completions say something; the others teach nothing and are left out."""
    for name in completions:
        blank = [row["index"] for row in rows if _says_nothing(row[name])]
        bad.leave_out(blank, f"empty or blank after the prompt in `{name}`")
    return [row for row in rows if row["index"] not in bad]


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, conversational: bool) -> None:
    """A chat template for conversations, an end-of-sequence token for strings."""
    if conversational and not tokenizer.chat_template:
        raise ValueError(
            f"the data are conversations, but {name_of(tokenizer)} has no chat template. Use the"
            " tokenizer of a chat model, set `tokenizer.chat_template` to the template that the"
            " model was trained with and save it, or give the data as strings."
        )
    if not conversational and tokenizer.eos_token is None:
        raise ValueError(
            f"{name_of(tokenizer)} has no end-of-sequence token, with which every completion must"
            " end. Set `tokenizer.eos_token` and save it."
        )


def name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """What to call a tokenizer in an error."""
    return (
        f"the tokenizer {os.path.basename(str(tokenizer.name_or_path)) or type(tokenizer).__name__}"
    )


def parse_json(text: str) -> Any:
    """What a string spells as JSON, or as Python writes lists and dicts (pandas does into CSV);
    ValueError for anything else."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        # numpy puts line breaks where lists have commas; NaN is how pandas fills in what is missing
        spelt = re.sub(r"\bnan\b(?=\s*[,}\]])", "None", re.sub(r"\}\s*\n\s*\{", "}, {", text))
        try:
            return ast.literal_eval(spelt)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(str(error)) from None


def spelt_messages(text: Any) -> list[Any] | None:
    """The messages that a string spells, as JSON (perhaps twice over) or in Python's way; None
    where it spells none."""
    for _ in range(2):
        if not isinstance(text, str) or not text.lstrip().startswith(("[", "{", "(", '"')):
            break
        try:
            text = parse_json(text)
        except ValueError:
            return None
    messages = list(text) if isinstance(text, list | tuple) else [text]
    keys = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})
    good = messages and all(
        isinstance(m, dict) and any(pair <= m.keys() for pair in keys) for m in messages
    )
    return messages if good else None


def _text_columns(there: list[str], kind: str) -> list[str]:
    if {"chosen", "rejected"} <= set(there):
        return [name for name in ("prompt", "chosen", "rejected") if name in there]
    if {"prompt", "completion", "label"} <= set(there):
        if kind == "unpaired":
            return ["prompt", "completion"]
        raise ValueError(
            "the data are unpaired (prompt, completion, label), but the objective compares pairs."
            " Give `prompt, chosen, rejected`, or choose an objective for unpaired data."
        )
    raise ValueError(
        f"columns are missing. The data have {', '.join(f'`{name}`' for name in there) or 'none'};"
        f" accepted are {FORMATS}. Columns of other names are named by --columns, as in --columns"
        " prompt=question,chosen=better,rejected=worse."
    )


# -------------------------------------------------------------------------------------------- texts
def _parsed(rows: list[Row], texts: list[str]) -> list[Row]:
    """Cells that spell messages become them; others stay text, as the prompt of UltraFeedback
    beside its conversations."""
    spelt = [
        {
            name: messages
            for name in texts
            if (messages := spelt_messages(row.get(name))) is not None
        }
        for row in rows
    ]
    if rows and not any(spelt):
        seen = next(
            (row[name] for row in rows for name in texts if row.get(name) is not None), None
        )
        raise ValueError(
            f"--strings json: no cell of {', '.join(texts)} spells a list of messages with a role"
            f" and a content; the first is {_short(seen)}. Leave the option out, or correct how the"
            " file is written."
        )
    return [
        row | {name: _as_roles(messages) for name, messages in of_row.items()}
        for row, of_row in zip(rows, spelt, strict=True)
    ]


def _as_roles(messages: list[Any]) -> list[Any]:
    """Messages of ShareGPT, `from` and `value`, with a role and a content; others as they are."""
    roles = {"human": "user", "gpt": "assistant"}
    return [
        (
            {"role": roles.get(m["from"], m["from"]), "content": m["value"]}
            if "role" not in m and {"from", "value"} <= m.keys()
            else m
        )
        for m in messages
    ]


def _common_shape(cells: Iterator[Any]) -> str:
    counts = Counter(isinstance(cell, str) for cell in cells if isinstance(cell, str | list))
    return STRING if counts[True] > counts[False] or not counts[False] else MESSAGES


def _check_shape(rows: list[Row], name: str, shape: str, bad: BadRows) -> None:
    for row in rows:
        cell, found = row.get(name), None
        if cell is None:
            found = f"without `{name}`", ""
        elif shape == STRING and not isinstance(cell, str):
            found = (
                (
                    f"with {_kind(cell)} in `{name}`, which needs a string or, in all rows, a list"
                    " of messages"
                ),
                _short(cell),
            )
        elif shape == MESSAGES and (problem := _of_messages(cell)):
            found = (
                (
                    f"with {problem} in `{name}`, which needs a list of messages with a role and a"
                    " content, both strings"
                ),
                _short(cell),
            )
        elif not can_be_written(cell):
            found = f"with {HALF} in `{name}`", _short(cell)
        if found:
            bad.add([row["index"]], *found)


def _of_messages(cell: Any) -> str | None:
    """What is wrong with a conversation."""
    if not isinstance(cell, list):
        return _kind(cell)
    if not cell:
        return "an empty list"
    for message in cell:
        if not isinstance(message, dict):
            return f"{_kind(message)} for a message"
        if not isinstance(message.get("role"), str):
            return "a message without a role"
        if not isinstance(message.get("content"), str) and not (
            message.get("content") is None and message.get("tool_calls")
        ):
            return f"a message whose content is {_kind(message.get('content'))}"
    return None


def can_be_written(cell: Any) -> bool:
    """Whether all strings in it are text that UTF-8 can hold."""
    if isinstance(cell, str):
        try:
            return cell.isascii() or bool(cell.encode()) or True
        except UnicodeEncodeError:
            return False
    if isinstance(cell, dict):
        return all(can_be_written(part) for pair in cell.items() for part in pair)
    return not isinstance(cell, list) or all(map(can_be_written, cell))


def _says_nothing(completion: Any) -> bool:
    if isinstance(completion, str):
        return not completion.strip()
    answers = [
        message for message in completion if message.get("role") not in ("tool", "function")
    ] or completion
    return not (answers[-1].get("content") or "").strip() and not answers[-1].get(
        "tool_calls"
    )  # a tool may return nothing


def _check_template_input(rows: list[Row], name: str, bad: BadRows) -> None:
    """Tools and arguments of the template: as they stand, or as JSON in a string, which is empty
    where there are none."""
    wanted = list if name == "tools" else dict
    for row in rows:
        cell = row.pop(name, None)
        try:
            value = json.loads(cell) if isinstance(cell, str) and cell.strip() else cell
        except ValueError as error:
            bad.add(
                [row["index"]],
                f"with something in `{name}` that is no JSON",
                f"{_short(cell)}: {error}",
            )
            continue
        if value in (None, "", [], {}) or (isinstance(value, str) and not value.strip()):
            continue
        if not can_be_written(value):
            bad.add([row["index"]], f"with {HALF} in `{name}`", _short(cell))
        elif isinstance(value, wanted):
            row[name] = value
        else:
            bad.add(
                [row["index"]],
                f"with {_kind(value)} in `{name}`, which needs {_kind(wanted())}",
                _short(cell),
            )


# -------------------------------------------------------------------------- labels, weights, groups
def _check_numbers(
    rows: list[Row], names: list[str], labelled: bool, known: dict[str, int] | None, bad: BadRows
) -> dict[str, int]:
    for row in rows:
        if labelled:
            label = row.get("label")
            if not isinstance(label, int | float) or label not in (0, 1):
                bad.add(
                    [row["index"]],
                    "with a `label` that is neither true nor false (nor 1 or 0); true is desirable",
                    repr(label),
                )
                continue
            row["label"] = bool(label)
        for name, number in NUMBERS.items():
            if name in names and not number.holds(cell := row.get(name)):
                wrong = f"with a `{name}` that is {number.wrong}"
                bad.add([row["index"]], wrong, _short(cell))
    return _check_groups(rows, known, bad) if "group" in names else {}


def _check_groups(rows: list[Row], known: dict[str, int] | None, bad: BadRows) -> dict[str, int]:
    for row in rows:  # pandas writes whole numbers so where one is missing
        if isinstance(row.get("group"), float) and row["group"].is_integer():
            row["group"] = int(row["group"])
    cells = [row.get("group") for row in rows]
    numbered = sum(_is_number(cell) for cell in cells) > sum(
        isinstance(cell, str) for cell in cells
    )
    if numbered and known:
        raise ValueError(
            f"column `group` holds numbers, but in the training data names ({', '.join(known)})."
            " Use the same."
        )
    for row, cell in zip(rows, cells, strict=True):
        if cell is None:
            bad.add([row["index"]], "without a `group`, which other rows have")
        elif numbered and not (_is_number(cell) and 0 <= cell < 2**31):
            bad.add(
                [row["index"]],
                "with a `group` that is no whole number from 0 to 2147483647",
                _short(cell),
            )
        elif not numbered and not isinstance(cell, str):
            bad.add(
                [row["index"]],
                "with a `group` that is no name, as others have (or a whole number in all rows)",
                _short(cell),
            )
    if numbered:
        return {}
    if known is None:
        names = sorted({row["group"] for row in rows if isinstance(row.get("group"), str)})
        known = {name: number for number, name in enumerate(names)}
    for row in rows:
        cell = row.get("group")
        if isinstance(cell, str) and cell not in known:
            listed = ", ".join(known) or "numbers"
            bad.add(
                [row["index"]],
                f"of a group unknown to the training data, whose groups are {listed}",
                repr(cell),
            )
        elif isinstance(cell, str):
            row["group"] = known[cell]
    return known


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int) and not isinstance(cell, bool)


def _kind(cell: Any) -> str:
    names = {
        type(None): "nothing",
        str: STRING,
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(cell), f"a {type(cell).__name__}")


def _short(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 60 else f"{text[:57]}..."
