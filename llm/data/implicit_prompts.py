"""Prompts that are not a column of their own: the common beginning of chosen and rejected, up to
the last turn's boundary."""

import re
from typing import Any

# How the turn of an assistant begins in strings:
# HH-RLHF, Alpaca, Vicuna, ChatML, Llama 2 to 4, Gemma, Zephyr, NeMo, DeepSeek.
ASSISTANT = re.compile(
    r"(?:^|\n)\s*(?:Assistant|ASSISTANT|assistant|AI|Bot|Chatbot|A|答|Response|TL;DR"
    r"|### (?:Response|Assistant|Answer))[:：][ \t]*\n?"
    r"| ASSISTANT:|\[/INST\]|<\|im_start\|>assistant\n"
    r"|<\|(?:start_)?header(?:_id|_start)?\|>assistant<\|(?:end_)?header(?:_id|_end)?\|>\n*"
    r"|<start_of_turn>model\n|<\|assistant\|>\n?|<extra_id_1>Assistant\n|<｜Assistant｜>|<\|CHATBOT_TOKEN\|>"
    r"|<\|start\|>assistant<\|channel\|>final<\|message\|>"
)
# what stands at the end of the common beginning without a blank after it; in Chinese, Japanese and
# Korean each sign is a word
PART_OF_A_WORD = re.compile(r"[^\s\u3000-\u9fff\uac00-\ud7af\uff00-\uffef]*\Z")


def split(chosen: Any, rejected: Any) -> tuple[Any, Any, Any] | None:
    """Prompt, chosen and rejected of two texts or conversations that begin with the same prompt;
    None if they begin differently.

    Of conversations the prompt is the common messages. Of strings it ends where the last turn of an
    assistant begins within the common beginning, where such turns are marked; otherwise at the last
    word's end, so that answers which begin alike ("I'm sorry", "I'm not") are not cut in the middle
    of a word. A blank between prompt and answer is the answer's.
    """
    alike = _common(chosen, rejected)
    if alike == 0:
        return None
    if not isinstance(chosen, str):
        alike = min(
            alike, min(len(chosen), len(rejected)) - 1
        )  # the last message is an answer, even where it is the same
        return (chosen[:alike], chosen[alike:], rejected[alike:]) if alike else None
    end = _boundary(chosen, rejected, alike)
    return chosen[:end], chosen[end:], rejected[end:]


def _common(a: Any, b: Any) -> int:
    """Length of the common beginning, by bisection: slices are compared much faster than elements
    one by one."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def _boundary(chosen: str, rejected: str, alike: int) -> int:
    found = ASSISTANT.finditer(chosen, 0, alike)
    # "A:" may be the first of several options; an answer has its question before it
    turns = [
        match.end()
        for match in found
        if match[0].strip() != "A:" or "Q:" in chosen[: match.start()]
    ]
    if turns:
        end = turns[-1]
        while end > 1 and chosen[end - 1] in " \t":
            end -= 1
        return end
    end = len(PART_OF_A_WORD.sub("", chosen[:alike])) or alike  # a single word has no earlier end
    return end - 1 if end > 1 and chosen[end - 1] == " " else end
