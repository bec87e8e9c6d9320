"""Where an implicit prompt ends. Anthropic's format and others mark the turns; without marks a word
is not cut."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.data.implicit_prompts import split
from llm.data.tokens import load_rows

common = os.path.commonprefix
HH = "\n\nHuman: who?\n\nAssistant: me\n\nHuman: why?\n\nAssistant:"


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        (HH, " I am sorry", " I am not"),
        (HH, " I", " I am"),  # one answer begins the other
        (HH, " ", " yes"),
        ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "It is 5.", "It is 50."),
        ("[INST] q [/INST]", " yes", " yes, sir"),
        ("### Instruction:\nq\n\n### Response:\n", "so", "some"),
        ("<start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\n", "a b", "a c"),
        ("the cat", " is red", " was red"),
        ("It is", " 5.", " 50."),  # not "It is 5"
        ("the cat is", " really", " red"),  # not "the cat is re"
        ("the cat is", " red", " red and sad"),  # one answer is all of the common beginning
        ("Q: who?\nA:", " It is x", " It is y"),
        ("Options:\nA: one\nB: two\nPick:", " B", " C"),  # no answer
        ("post\nTL;DR:", " It is x", " It is y"),
        ("<｜User｜>q<｜Assistant｜>", "It is x", "It is y"),
        ("<|header_start|>assistant<|header_end|>\n\n", "It is x", "It is y"),
        ("问：谁\n答：", "是我", "是你"),
        ("今天", "好", "坏"),
        ("a line\n", "x", "y"),
    ],
)
def test_strings(prompt, chosen, rejected):
    assert split(prompt + chosen, prompt + rejected) == (prompt, chosen, rejected)


def test_nothing_in_common():
    assert split("a", "b") is None and split("", "x") is None
    assert split([{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]) is None
    assert (
        split([{"role": "user", "content": "a"}], [{"role": "user", "content": "a"}]) is None
    )  # no answer


def test_messages():
    user, one, two = (
        {"role": role, "content": text}
        for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "ab"))
    )
    assert split([user, one], [user, two]) == ([user], [one], [two])
    assert split([user, one], [user, one]) == ([user], [one], [one])
    assert split([user, one, user, two], [user, one, user, one]) == (
        [user, one, user],
        [two],
        [one],
    )


@given(st.text(), st.text())
def test_nothing_is_lost(a, b):
    parts = split(a, b)
    if parts is None:
        assert not common([a, b])
    else:
        prompt, chosen, rejected = parts
        assert prompt and prompt + chosen == a and prompt + rejected == b


@given(st.text(alphabet="ab \nAsitn:", max_size=40), st.text(max_size=8), st.text(max_size=8))
def test_the_prompt_never_reaches_beyond_what_is_common(shared, a, b):
    parts = split("x " + shared + a, "x " + shared + b)
    assert parts is not None and len(parts[0]) <= len(
        common(["x " + shared + a, "x " + shared + b])
    )


@pytest.mark.skipif(
    "PREFDRO_HH" not in os.environ,
    reason="PREFDRO_HH is not Anthropic's harmless-base/test.jsonl.gz",
)
def test_the_answers_of_hh_begin_after_the_name_of_the_assistant():
    rows = load_rows(Path(os.environ["PREFDRO_HH"]))
    parts = [split(row["chosen"], row["rejected"]) for row in rows]
    prompts = [part[0] for part in parts if part is not None]
    assert len(prompts) == len(rows) and all(
        prompt.endswith("\n\nAssistant:") for prompt in prompts
    )
