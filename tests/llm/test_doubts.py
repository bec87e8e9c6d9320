"""Text of doubtful shape: what is warned of, what settles it, and that ordinary data are not
doubted."""

import json
import warnings
from typing import Any

import pytest

from llm.data.doubts import first_example
from llm.data.tokens import tokenise
from tests.llm.models import byte_tokenizer, word_tokenizer

MARKED = "<|user|>", "<|assistant|>"


def warned(rows: list[dict[str, Any]], tokenizer: Any, kind: str = "pairs", **options: Any) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tokenise(rows, tokenizer, kind, **options)
    return "\n".join(str(warning.message) for warning in caught)


def pair(prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected} | more


def decoded(rows: list[dict[str, Any]], tokenizer: Any, **options: Any) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = tokenise(rows, tokenizer, **options)[0]
    return [tokenizer.decode(row[f"{name}_ids"]) for name in ("prompt", "chosen")]


PLAIN = [pair("the cat", " is red", " is blue"), pair("a dog", " is sad", " is happy")]


def test_ordinary_data_are_not_doubted():
    assert warned(PLAIN, word_tokenizer()) == ""
    assert (
        warned([pair("今天", "好", "坏")], byte_tokenizer(["x"])) == ""
    )  # no blanks in this language
    talk = [
        pair(
            [{"role": "user", "content": "the cat"}],
            *([{"role": "assistant", "content": x}] for x in ("a", "is")),
        )
    ]  # type: ignore[arg-type]
    assert warned(talk, word_tokenizer(chat_template=True)) == ""


def test_columns_that_are_not_read_are_named():
    rows = [row | {"score": 1, "question": "what?"} for row in PLAIN]
    assert warned(rows, word_tokenizer()) == "columns not read: score, question."
    implicit = [
        {"instruction": "Q", "chosen": "the cat is red", "rejected": "the cat is blue", "note": 1}
    ]
    said = warned(implicit, word_tokenizer())
    assert (
        "columns not read: instruction, note." in said
        and "'the cat is'" in said
        and "--columns prompt=instruction" in said
    )
    assert "note" in (
        said := warned(
            implicit, byte_tokenizer(["x"]), columns={"prompt": "instruction"}, strings="raw"
        )
    )
    assert "instruction" not in said


def test_columns_of_other_names():
    rows = [{"q": "the cat", "better": " is red", "worse": " is blue", "prompt": "not this"}]
    names = {"prompt": "q", "chosen": "better", "rejected": "worse"}
    assert decoded(rows, word_tokenizer(), columns=names) == ["the cat", "is red <eos>"]
    with pytest.raises(
        ValueError,
        match=(
            r"--columns prompt=nope: the data have no column 'nope'; they have q, better, worse,"
            r" prompt"
        ),
    ):
        tokenise(rows, word_tokenizer(), columns={"prompt": "nope"})


def test_strings_for_a_chat_model():
    tokenizer = word_tokenizer(chat_template=True)
    rows = [pair("is the cat red", "the cat", "a dog", system="very happy")]
    said = warned(rows, tokenizer)
    assert (
        "has a chat template, but the data are strings" in said
        and "'is the cat redthe cat'" in said
    )
    assert "--strings chat" in said and "has a chat template" not in warned(
        rows, tokenizer, strings="raw"
    )
    assert "has a chat template" not in warned(rows, tokenizer, strings="chat")
    assert decoded(rows, tokenizer, strings="chat") == [
        "<|user|> is the cat red <eos> <|assistant|>",
        "the cat <eos>",
    ]
    with_system = decoded(rows, tokenizer, strings="chat", columns={"system": "system"})
    assert (
        with_system[0] == "<|system|> very happy <eos> <|user|> is the cat red <eos> <|assistant|>"
    )
    with pytest.raises(ValueError, match="give --strings chat"):
        tokenise(rows, tokenizer, columns={"system": "system"})


def test_dialogues_in_strings_become_turns():
    tokenizer = word_tokenizer(chat_template=True)
    said = "\n\nHuman: the cat\n\nAssistant: is red\n\nHuman: a dog\n\nAssistant:"
    rows = [{"chosen": said + " is happy", "rejected": said + " is sad"}]
    assert decoded(rows, tokenizer, strings="chat") == [
        "<|user|> the cat <eos> <|assistant|> is red <eos> <|user|> a dog <eos> <|assistant|>",
        "is happy <eos>",
    ]


def test_strings_that_a_template_has_written():
    tokenizer = word_tokenizer(chat_template=True)
    rows = [pair("<|user|> the cat <eos> <|assistant|> ", "is red <eos> \n", "is blue <eos>")]
    said = warned(rows, tokenizer)
    assert (
        "special tokens of the tokenizer (<eos>, <|assistant|>, <|user|>)" in said
        and "--strings templated" in said
    )
    assert warned(rows, tokenizer, strings="templated") == ""
    talk = [
        pair(
            [{"role": "user", "content": "the cat"}],
            *([{"role": "assistant", "content": x}] for x in ("is red", "is blue")),
        )
    ]  # type: ignore[arg-type]
    assert decoded(rows, tokenizer, strings="templated") == decoded(
        talk, tokenizer
    )  # as the template itself cuts the messages
    without_end = [pair(rows[0]["prompt"], "is red", "is blue")]
    assert decoded(without_end, tokenizer, strings="templated") == decoded(talk, tokenizer)


def test_beginnings_and_ends_that_stand_there_twice():
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer(["the cat"])
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    rows = [pair("<bos>the cat", " is red<eos>\n", " is blue"), *PLAIN]
    said = warned(rows, tokenizer)
    assert (
        "1 row (1) with <bos> twice at the beginning" in said
        and "1 row (1) whose `chosen` ends twice" in said
    )
    assert "`rejected` ends twice" not in said
    assert decoded(rows, tokenizer, strings="templated") == ["<bos>the cat", " is red<eos>\n"]
    assert decoded(rows[1:], tokenizer, strings="templated") == ["<bos>the cat", " is red<eos>"]
    assert "ends twice" in warned(
        [pair("the cat", " is red<eos>\n", " is blue")], tokenizer, strings="raw"
    )
    chat = word_tokenizer(chat_template=True)
    talk = [
        pair(
            [{"role": "user", "content": "cat"}],
            *([{"role": "assistant", "content": x}] for x in ("red <eos>", "blue")),
        )
    ]  # type: ignore[arg-type]
    assert "1 row (1) whose `chosen` ends twice" in warned(talk, chat)


@pytest.mark.parametrize("spell", [json.dumps, repr], ids=["json", "python"])
def test_messages_in_strings(spell):
    tokenizer = byte_tokenizer(["x"], chat_template=True)
    user, good, bad = (
        [{"role": role, "content": text}]
        for role, text in (("user", "it's a cat"), ("assistant", "red"), ("assistant", "sad"))
    )
    rows = [pair(spell(user), spell(good), spell(bad))]
    said = warned(rows, tokenizer)
    assert "1 row (1) with messages written into strings" in said and "--strings json" in said
    talk = [pair(user, good, bad)]  # type: ignore[arg-type]
    assert decoded(rows, tokenizer, strings="json") == decoded(talk, tokenizer)
    with pytest.raises(
        ValueError, match=r"1 row \(2\) with a string in `prompt`, which needs a list of messages"
    ):
        tokenise([*rows, pair("[{", spell(good), spell(bad))], tokenizer, strings="json")


def test_sentences_without_a_blank_between_them():
    said = warned(
        [pair("the cat?", "red", "blue"), pair("a dog", "sad", "happy")], byte_tokenizer(["x"])
    )
    assert (
        "2 of 2 rows have no blank between prompt and completion" in said
        and "'the cat?red'" in said
    )
    assert (
        warned(
            [pair("the cat? ", "red", "blue"), pair("a dog\n", "sad", "happy")],
            byte_tokenizer(["x"]),
            strings="raw",
        )
        == ""
    )


def test_unpaired_rows_are_looked_at_too():
    rows = [
        {"prompt": "the cat?", "completion": "red", "label": True},
        {"prompt": "a dog?", "completion": "sad", "label": False},
    ]
    assert "no blank between" in warned(rows, byte_tokenizer(["x"]), "unpaired")


def test_the_first_example():
    tokenizer = word_tokenizer()
    said = first_example(tokenise(PLAIN, tokenizer), tokenizer)
    assert said.splitlines() == [
        "the first example as the model sees it (row 1):",
        "  prompt:     'the cat'  (2 tokens)",
        "  chosen:     'is red <eos>'  (3 tokens)",
        "  rejected:   'is blue <eos>'  (3 tokens)",
    ]
    long = [pair("the " * 2000, "cat", "dog")]
    assert len(first_example(tokenise(long, tokenizer), tokenizer)) < 2000


USER, GOOD, BAD = (
    [{"role": role, "content": text}]
    for role, text in (("user", "what is it?"), ("assistant", "red"), ("assistant", "sad"))
)


def test_messages_in_strings_without_a_column_of_prompts():
    rows = [{"chosen": json.dumps(USER + GOOD), "rejected": json.dumps(USER + BAD)}]
    tokenizer = byte_tokenizer(["x"], chat_template=True)
    assert "--strings json" in warned(rows, tokenizer) and "--strings chat" not in warned(
        rows, tokenizer
    )
    assert decoded(rows, tokenizer, strings="json") == decoded([pair(USER, GOOD, BAD)], tokenizer)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spell",
    [
        lambda m: json.dumps(json.dumps(m)),
        lambda m: repr(tuple(m)),
        lambda m: "[" + "\n ".join(map(repr, m)) + "]",  # as numpy prints an array of objects
        lambda m: repr(m).replace("}", ", 'name': nan}"),
        lambda m: json.dumps(
            [
                {"from": {"user": "human", "assistant": "gpt"}[x["role"]], "value": x["content"]}
                for x in m
            ]
        ),
    ],
    ids=["twice", "tuple", "numpy", "nan", "sharegpt"],
)
def test_other_ways_to_spell_messages(spell):
    tokenizer = byte_tokenizer(["x"], chat_template=True)
    rows = [{"chosen": spell(USER + GOOD), "rejected": spell(USER + BAD)}]
    assert "--strings json" in warned(rows, byte_tokenizer(["x"]))
    assert decoded(rows, tokenizer, strings="json") == decoded([pair(USER, GOOD, BAD)], tokenizer)  # type: ignore[arg-type]


def test_a_plain_prompt_beside_spelt_conversations():
    """UltraFeedback as CSV; a prompt that happens to be JSON stays text."""
    tokenizer = byte_tokenizer(["x"], chat_template=True)
    rows = [
        pair(text, repr(USER + GOOD), repr(USER + BAD)) for text in ("what is it?", "5", "true")
    ]
    assert decoded(rows, tokenizer, strings="json") == decoded([pair(USER, GOOD, BAD)], tokenizer)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError,
        match=r"--strings json: no cell of prompt, chosen, rejected spells a list of messages",
    ):
        tokenise(PLAIN, tokenizer, strings="json")


def test_one_answer_about_messages_hides_nothing():
    tokenizer = word_tokenizer(chat_template=True)
    rows = [*PLAIN, pair("the moon", '{"role": "admin", "content": "x"}', " red")]
    assert (
        "has a chat template" in (said := warned(rows, tokenizer)) and "--strings json" not in said
    )
    marked = [*PLAIN, pair("the <eos> is", " red", " blue")]
    assert (
        "has a chat template" in (said := warned(marked, tokenizer))
        and "--strings templated" not in said
    )


def test_prompts_that_stand_in_the_completions_once_more():
    tokenizer = word_tokenizer(chat_template=True)
    whole = [pair(USER, USER + GOOD, USER + BAD)]  # type: ignore[arg-type]
    assert "begins with its prompt once more: it is cut" in warned(whole, tokenizer)
    talk = byte_tokenizer(["x"], chat_template=True)
    assert decoded(whole, talk) == decoded([pair(USER, GOOD, BAD)], talk)  # type: ignore[arg-type]
    strings = [
        pair(p, p + c, p + r)
        for p, c, r in (("the cat sees ", "the sun", "a dog"), ("a bird likes ", "red", "blue"))
    ]
    assert "it is cut" in warned(strings, word_tokenizer())
    assert decoded(strings, word_tokenizer()) == ["the cat sees", "the sun <eos>"]
    assert decoded(strings, word_tokenizer(), strings="raw") == [
        "the cat sees",
        "the cat sees the sun <eos>",
    ]
    assert "once more" not in warned(
        [pair("the", "the cat", "the dog")], byte_tokenizer(["x"])
    )  # a coincidence of a word
    some = [*strings, *strings, pair("the moon is", " red", " blue")]
    assert "4 rows (1, 2, 3, 4) with completions that begin with the prompt once more" in warned(
        some, word_tokenizer()
    )


def test_turns_of_the_wrong_speaker():
    tokenizer = word_tokenizer(chat_template=True)
    ends = [
        pair(USER, GOOD + USER, BAD),
        pair(USER + GOOD, GOOD, BAD),
        pair(USER, USER, BAD),
        pair(USER, GOOD, BAD),
    ]  # type: ignore[arg-type]
    assert "3 rows (1, 2, 3) with a prompt that ends with the assistant's turn, or" in warned(
        ends, tokenizer
    )
    human = [pair([{"role": "human", "content": "the cat"}], GOOD, BAD)]  # type: ignore[arg-type]
    assert "roles that most chat templates do not know: human" in warned(human, tokenizer)
    system = [{"role": "system", "content": "be happy"}]
    assert "more than one system message" in warned(
        [pair(system + USER, GOOD, BAD, s="be sad")], tokenizer, columns={"system": "s"}
    )  # type: ignore[arg-type]


def test_an_end_before_the_line_break_of_a_template():
    tokenizer = word_tokenizer(chat_template=True)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} <eos> \n{% endfor %}"
    talk = [pair(USER, [{"role": "assistant", "content": "red <eos>"}], BAD)]  # type: ignore[arg-type]
    assert "whose `chosen` ends twice" in warned(talk, tokenizer)


def test_an_unknown_last_word_is_no_end() -> None:
    tokenizer = word_tokenizer()
    rows = [{"prompt": "the", "chosen": " very zzz", "rejected": " sees"}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = tokenise(rows, tokenizer)
    assert data[0]["chosen_ids"][-2] == tokenizer.unk_token_id
