"""Chat templates that write today's date give the same prompt every day."""

from pathlib import Path

import pytest

from llm.arguments import ModelArguments
from llm.data.chat import text
from llm.models import pretrained_tokenizer
from llm.train import load_tokenizer
from tests.llm.models import CHAT_TEMPLATE, word_tokenizer

# as in Llama 3.2: the date of a caller, else today's, else a fixed one
DATED = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string ="
    " strftime_now('%d %b %Y %f') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif"
    " %}{%- endif %}Today is {{ date_string }} " + CHAT_TEMPLATE
)


@pytest.mark.parametrize("how", ["generation", "training"])
def test_a_template_that_writes_the_date_writes_the_same_every_day(
    how: str, tmp_path: Path
) -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = DATED
    tokenizer.save_pretrained(tmp_path)
    assert text(tokenizer, "the cat") != text(
        tokenizer, "the cat"
    )  # microseconds: it does write the time
    for name in (tmp_path, tmp_path / "saved"):
        loaded = (
            pretrained_tokenizer(str(name))
            if how == "generation"
            else load_tokenizer(ModelArguments(model=str(name)))
        )
        once, twice = text(loaded, "the cat"), text(loaded, "the cat")
        assert once == twice and once.startswith("Today is 26 Jul 2024 ")
        loaded.save_pretrained(tmp_path / "saved")  # as with a trained policy


def test_other_templates_are_left_as_they_are(tmp_path: Path) -> None:
    word_tokenizer(chat_template=True).save_pretrained(tmp_path)
    assert pretrained_tokenizer(str(tmp_path)).chat_template == CHAT_TEMPLATE
