"""From the words of a command line and a YAML file of the same names to the dataclasses of
`llm.arguments`.

A value of the file means what it would mean as a word of the command line: 1e-6, which YAML takes
for a text, is a number where a number is wanted, and `no`, which YAML takes for false, is the word
where a word is wanted. Lists and mappings are for options that take several values; null is for
options that can be without a value.
"""

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, get_args, get_type_hints

from transformers import HfArgumentParser, TrainingArguments

# what other trainers call some of our options
ELSEWHERE = {
    "model_name_or_path": "model",
    "model_revision": "revision",
    "torch_dtype": "dtype",
    "attn_implementation": "attention",
    "use_peft": "lora",
    "lora_r": "lora_rank",
    "lora_target_modules": "lora_targets",
    "dataset_name": "data",
    "train_file": "data",
    "loss_type": "objective",
    "max_seq_length": "max_length",
    "resume": "resume_from_checkpoint",
}
# options whose value is a folder, a file, or else a name on the hub
PLACES = ("model", "tokenizer", "data", "eval_data", "reference_cache", "output_dir", "logging_dir")


class Written(str):
    """A word of a YAML file that stands there without quotes."""


class _Parser(HfArgumentParser):
    """Its errors are a line, without the list of some hundred options."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}. `{self.prog} --help` lists all options.", file=sys.stderr)
        raise SystemExit(2)


def parse_options(kinds: Sequence[Any], words: Sequence[str], prog: str) -> tuple[Any, ...]:
    """The dataclasses of these kinds from the words, among which `--config FILE` is a YAML file;
    the words have the last say.

    Raises:
        ValueError: the file cannot be read, or an option is unknown or has an impossible value.
    """
    words = list(words)
    parser = _Parser(kinds, prog=prog)
    parser.add_argument(
        "--config",
        help="YAML file of options, with the same names; the command line has the last word",
    )
    path = _taken_out(words)
    if path is not None:
        _set_defaults(parser, kinds, read_config(path), path)
    *parsed, unknown = parser.parse_args_into_dataclasses(
        args=words, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        raise ValueError(
            _unknown(
                [word for word in unknown if word.startswith("--")] or unknown,
                parser,
                "the command line",
            )
        )
    *parsed, rest = parsed
    if rest.config is not None:  # by an abbreviation
        raise ValueError(f"write --config {rest.config}: the option cannot be abbreviated.")
    return tuple(parsed)


def read_config(path: str | Path) -> dict[str, Any]:
    """The options of a YAML file, dashes in their names as underscores. Variables under `env` are
    put into the environment.

    Raises:
        ValueError: it cannot be read, is no mapping of options, is empty, or gives one twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses what is given twice, and keeps numbers and dates as they are written: argparse
        makes them what is wanted."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: dict[Any, int] = {}
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    continue
                name = self.construct_object(key, deep=True)
                if isinstance(name, str) and _name(name) in seen:
                    raise yaml.constructor.ConstructorError(
                        None,
                        None,
                        f"{name} is given twice, first in line {seen[_name(name)]}: leave one out",
                        key.start_mark,
                    )
                if isinstance(name, str):
                    seen[_name(name)] = key.start_mark.line + 1
            return super().construct_mapping(node, deep)

    def as_written(loader: Any, node: Any) -> str:
        text = loader.construct_scalar(node)
        return Written(text) if node.style is None else str(text)

    for kind in ("int", "float", "timestamp", "str"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", as_written)

    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
        options = yaml.load(text, Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"cannot read the options in {path}: {said}. It must be YAML, in UTF-8."
        ) from error
    if not isinstance(options, dict) or not options:
        held = "is empty" if not options else f"holds {options!r}"[:200]
        raise ValueError(
            f"{path} must hold lines `option: value`, with the names of `prefdro train --help`; it"
            f" {held}."
        )
    environment = options.pop("env", None) or {}
    if not isinstance(environment, dict):
        raise ValueError(
            f"`env` in {path} must be a mapping of variables of the environment, got"
            f" {environment!r}."
        )
    os.environ.update({str(name): str(value) for name, value in environment.items()})
    return {_name(name): value for name, value in options.items()}


def as_words(options: dict[str, Any]) -> list[str]:
    """Options as words of a command line. Those without a value are left out; a list is one word,
    with commas.

    The `no` of a strategy, which YAML takes for false, is the word again.
    """
    words = []
    for name, value in options.items():
        if value is None:
            continue
        if isinstance(value, list):
            value = ",".join(map(str, value))
        if value is False and name.endswith("_strategy"):
            value = "no"
        words += [
            f"--{name}",
            json.dumps(with_numbers(value)) if isinstance(value, dict) else str(value),
        ]
    return words


def listed(value: str | Sequence[str] | None) -> list[str]:
    """The parts of an option that is a list, or is written with commas and perhaps blanks."""
    parts = [value] if isinstance(value, str) else list(value or [])
    return [word for part in parts for word in re.split(r"[,\s]+", part.strip()) if word]


def _taken_out(words: list[str]) -> str | None:
    """The value of --config, which is removed from the words."""
    found = [
        k for k, word in enumerate(words) if word == "--config" or word.startswith("--config=")
    ]
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(f"--config was given {len(found)} times: put all options into one file.")
    word = words.pop(found[0])
    if "=" in word:
        return word.partition("=")[2]
    if found[0] == len(words) or words[found[0]].startswith("--"):
        raise ValueError("--config needs the name of a YAML file.")
    return words.pop(found[0])


def _set_defaults(
    parser: _Parser, kinds: Sequence[Any], options: dict[str, Any], path: str
) -> None:
    """What the file says takes the place of the defaults, which argparse turns into the right type
    as it does words."""
    actions: dict[str, Any] = {}
    for (
        action
    ) in parser._actions:  # of an option that is true by default the second one is --no_...
        actions.setdefault(action.dest, action)
    actions = {name: action for name, action in actions.items() if name not in ("config", "help")}
    if unknown := [name for name in options if name not in actions]:
        raise ValueError(_unknown(unknown, parser, str(path)))
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    defaults = {field.name: field.default for kind in kinds for field in fields(kind)}
    for name, value in options.items():
        try:
            actions[name].default = _as_word(
                value, actions[name], hints[name], name, defaults[name]
            )
        except ValueError as error:
            raise ValueError(f"{path}, option {name}: {error}") from None
        actions[name].required = False


def _as_word(value: Any, action: Any, hint: Any, name: str, default: Any) -> Any:
    """A value of the file as the default that argparse wants: a text as on the command line, or
    None, or a list."""
    kinds = get_args(hint) or (hint,)
    several = list in kinds or any(
        getattr(kind, "__origin__", None) is list for kind in (*kinds, hint)
    )
    truth = getattr(action.type, "__name__", "") == "string_to_bool"
    if value is None:
        if name == "report_to":
            return "none"
        if NoneType in kinds and name not in ("output_dir",):
            return None
        raise ValueError(
            "null (which `~` alone means, too) is no value of it. Leave the line out for"
            f" {default!r}."
        )
    if isinstance(value, dict):
        if name not in TrainingArguments._VALID_DICT_FIELDS:
            raise ValueError(f"takes one value, got the mapping {value}.")
        return json.dumps(with_numbers(value))
    if isinstance(value, list):
        if not several:
            raise ValueError(f"takes one value, got the list {value}.")
        if bad := [part for part in value if isinstance(part, (dict, list)) or part is None]:
            raise ValueError(f"takes a list of words, got {bad[0]!r} in it.")
        return [str(part) for part in value]
    if isinstance(value, bool) and not truth:
        word = "no" if value is False else "yes"
        choices = [str(choice) for choice in action.choices or ()]
        if word in choices:
            return word
        if name == "report_to" and value is False:
            return "none"
        there_are = f"; there are {', '.join(choices)}" if choices else ""
        raise ValueError(
            f"got {str(value).lower()}, which is also how YAML reads the words no, off, yes and on."
            f" Put a word into quotes{there_are}."
        )
    text = str(value)
    if (
        action.type is int
        and isinstance(value, Written)
        and isinstance(number := _number(value), float)
        and number.is_integer()
    ):
        return str(int(number))  # 4.0, 1e3
    return _expanded(text) if name in PLACES and isinstance(value, str) else text


def with_numbers(value: Any) -> Any:
    """A mapping or list of a file with numbers for what is written as one, without quotes."""
    if isinstance(value, dict):
        return {str(key): with_numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [with_numbers(part) for part in value]
    return _number(value) if isinstance(value, Written) else value


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return str(text)


def _expanded(place: str) -> str:
    """A folder or name with the variables of the environment put in, as a shell would; `~` is left
    to whoever opens it."""
    found = os.path.expandvars(place)
    if missing := re.search(r"\$\{?\w+\}?", found):
        raise ValueError(
            f"{place} names {missing[0]}, which is no variable of the environment. Set it, or write"
            " the path out."
        )
    return found


def _name(key: Any) -> str:
    return str(key).lstrip("-").replace("-", "_")


def _unknown(names: Sequence[str], parser: _Parser, where: str) -> str:
    known = [action.dest for action in parser._actions]
    said = []
    for name in names:
        word = _name(name.partition("=")[0])
        near = [ELSEWHERE[word]] if word in ELSEWHERE else get_close_matches(word, known, 1, 0.7)
        said.append(f"{name}{f' (did you mean {near[0]}?)' if near else ''}")
    return (
        f"{where} has what is no option of `{parser.prog}`: {', '.join(said)}. `{parser.prog}"
        " --help` lists all options."
    )
