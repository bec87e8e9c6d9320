"""Tokenizers and models from the hub's layout and from scratch."""

from pathlib import Path

import pytest

from llm.models import gpt2_config, pretrained_tokenizer, word_tokenizer


def test_the_word_tokenizer_keeps_the_most_frequent_words(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(["b a", "b a", "d", "c", "b"], 6)
    assert set(tokenizer.get_vocab()) == {"[PAD]", "[EOS]", "[UNK]", "a", "b", "c"}
    ids = tokenizer("b d a")["input_ids"]
    assert tokenizer.decode(ids) == "b [UNK] a"
    tokenizer.save_pretrained(tmp_path)
    again = pretrained_tokenizer(str(tmp_path))
    assert again("b d a")["input_ids"] == ids
    assert (again.pad_token, again.eos_token) == ("[PAD]", "[EOS]")
    assert gpt2_config(again, width=128, layers=1, length=9).vocab_size == 6


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(["a b"], 5)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert pretrained_tokenizer(str(tmp_path)).pad_token == "[EOS]"
    with pytest.raises(ValueError, match=r"cannot load the tokenizer .*from `scratch`"):
        pretrained_tokenizer(str(tmp_path / "nowhere"))
