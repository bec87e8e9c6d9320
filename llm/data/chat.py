"""Prompts, as strings or as chat messages, and the tokens that a model reads of them."""

import re
from collections.abc import Sequence
from typing import Any

Message = dict[str, str]  # role and content
Prompt = str | Sequence[Message]


DATE = '{%- set date_string = "26 Jul 2024" %}'  # Llama's own default


def without_the_date(tokenizer: Any) -> Any:
    """The same tokenizer, whose chat template (as that of Llama 3.2) does not write today's date
    into every prompt.

    Otherwise the same prompt has other tokens tomorrow, and a run that goes on after midnight is
    another one.
    """
    template = tokenizer.chat_template
    if isinstance(template, str) and "strftime_now" in template and not template.startswith(DATE):
        tokenizer.chat_template = DATE + template
    return tokenizer


def as_messages(prompt: Prompt) -> list[Message]:
    """A prompt as messages: a string is one message of the user."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def text(tokenizer: Any, prompt: Prompt, completion: str | None = None) -> str:
    """What a model reads of a prompt that it shall answer, or of a prompt and its answer.

    With the tokenizer's chat template where it has one, without a completion up to the beginning of
    the answer. Otherwise the prompt itself, joined with the completion by a single blank.

    Raises:
        ValueError: the prompt is a list of messages and the tokenizer has no chat template, or the
            template refuses it.
    """
    if tokenizer.chat_template:
        answer = [] if completion is None else [{"role": "assistant", "content": completion}]
        messages = [*as_messages(prompt), *answer]
        try:
            rendered: str = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=not answer
            )
        except Exception as error:  # templates raise what they like
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise ValueError(
                f"the tokenizer's chat template refuses a conversation with the roles {roles}"
                f" ({error}): take those prompts out."
            ) from error
        return rendered
    if not isinstance(prompt, str):
        raise ValueError(
            "prompts are lists of messages, and the tokenizer has no chat template: give them as"
            " strings, or take the tokenizer of a chat model."
        )
    return (
        prompt
        if completion is None
        else " ".join(part for part in (prompt.rstrip(), completion.lstrip()) if part)
    )


def token_rows(
    tokenizer: Any, prompts: Sequence[Prompt], completions: Sequence[str] | None = None
) -> list[list[int]]:
    """Token ids of `text` for each prompt; the tokenizer's own special tokens are added where no
    chat template writes them.

    Raises:
        ValueError: as in `text`, or the numbers of prompts and completions differ.
    """
    if completions is not None and len(completions) != len(prompts):
        raise ValueError(
            f"there are {len(prompts)} prompts and {len(completions)} completions: give one for"
            " each prompt."
        )
    if not prompts:
        return []
    answers = [None] * len(prompts) if completions is None else completions
    texts = [
        text(tokenizer, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)
    ]
    rows: list[list[int]] = tokenizer(
        texts, add_special_tokens=not tokenizer.chat_template, verbose=False
    )["input_ids"]
    return rows


# a turn of Anthropic's HH-RLHF, which puts two line breaks before the name of the speaker
HH_TURN = re.compile(r"(?:^|\n\n)\s*(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}


def turns(prompt: str) -> list[Message]:
    """A string as messages: the turns of a dialogue written as in HH-RLHF, or else one message of
    the user.

    The last turn is the assistant's that is to be written, and is left out where it is empty.
    """
    first, *rest = HH_TURN.split(prompt)
    if not rest or first.strip():
        return [{"role": "user", "content": prompt.strip()}]
    messages = [
        {"role": HH_ROLES[name], "content": said.strip()}
        for name, said in zip(rest[::2], rest[1::2], strict=True)
    ]
    return messages[:-1] if messages[-1] == {"role": "assistant", "content": ""} else messages
