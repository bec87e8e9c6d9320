"""Prompts from small folders with the layout of HelpSteer2 and UltraFeedback Binarized, and
training on the latter."""

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llm.data.chat import token_rows
from llm.data.prompts import load_prompts, turns
from llm.data.tokens import load_rows, tokenise
from llm.train import parse, train
from tests.llm.models import WORDS, byte_tokenizer, tiny_gpt2, word_tokenizer

SEVERAL = "the cat is red\n\n<extra_id_1>Assistant\nis it\n\n<extra_id_1>User\na dog likes the sun"
HELPSTEER = ["a bird", SEVERAL, "the moon is blue", "the sun", "very very very happy cat"]
TALK = [
    {"role": "user", "content": "the cat is red"},
    {"role": "assistant", "content": "is it"},
    {"role": "user", "content": "a dog likes the sun"},
]
CARD = """---
configs:
- config_name: default
  data_files:
{files}
---
"""


def helpsteer(folder: Path) -> str:
    """train.jsonl.gz and validation.jsonl.gz; every prompt in two rows; other folders beside
    them."""
    scores = {"helpfulness": 3, "correctness": 3, "coherence": 4, "complexity": 2, "verbosity": 2}
    for split, prompts in (("train", HELPSTEER), ("validation", ["a red dog"])):
        rows = [
            {"prompt": prompt, "response": f"yes {k}", **scores}
            for prompt in prompts
            for k in (1, 2)
        ]
        (folder / f"{split}.jsonl.gz").write_bytes(
            gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
        )
    for other in ("preference", "disagreements"):
        (folder / other).mkdir()
        row = {"prompt": "not this", "response_1": "a", "response_2": "b", "preference_strength": 1}
        (folder / other / f"{other}.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    (folder / "README.md").write_text(
        "---\nlicense: cc-by-4.0\nlanguage:\n- en\n---\n# HelpSteer2\n"
    )
    return str(folder)


def ultrafeedback(folder: Path, *, same: bool = False) -> str:
    """data/train_prefs-*.parquet and so on: the conversations begin with the prompt, which is given
    once more as a string."""

    def row(k: int, prompt: str, good: str, bad: str) -> dict[str, Any]:
        def talk(answer: str) -> list[dict[str, str]]:
            return [{"content": prompt, "role": "user"}, {"content": answer, "role": "assistant"}]

        scores = {"score_chosen": 8.0, "score_rejected": 8.0 if good == bad else 4.0}
        return {
            "prompt": prompt,
            "prompt_id": str(k),
            "chosen": talk(good),
            "rejected": talk(bad),
            "messages": talk(good),
        } | scores

    words = WORDS[:12]
    rows = [
        row(k, f"the {words[k]}", f"is very {words[-k]}", f"{words[k]} sees a") for k in range(12)
    ]
    (folder / "data").mkdir()
    splits = {
        "train_prefs": rows + ([row(99, "the", "same", "same")] if same else []),
        "test_prefs": rows[:2],
        "train_sft": rows[:1],
    }
    for split, part in splits.items():
        pd.DataFrame(part).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    files = "\n".join(f"  - split: {split}\n    path: data/{split}-*" for split in splits)
    (folder / "README.md").write_text(CARD.format(files=files))
    return str(folder)


# --------------------------------------------------------------------------------------- HelpSteer2
def test_helpsteer_prompts_come_once_with_their_turns(tmp_path: Path) -> None:
    source, tokenizer = helpsteer(tmp_path), word_tokenizer(chat_template=True)
    found = load_prompts(source, tokenizer)
    assert sorted(map(str, found)) == sorted(
        map(str, [TALK if prompt == SEVERAL else prompt for prompt in HELPSTEER])
    )
    assert load_prompts(source, tokenizer, split="validation") == ["a red dog"]


def test_a_seed_gives_an_order_and_fewer_are_the_first_of_more(tmp_path: Path) -> None:
    source, tokenizer = helpsteer(tmp_path), word_tokenizer(chat_template=True)
    orders = {seed: load_prompts(source, tokenizer, seed=seed) for seed in range(4)}
    for seed, order in orders.items():
        assert load_prompts(source, tokenizer, seed=seed, count=3) == order[:3]
    assert len({str(order) for order in orders.values()}) > 2


def test_turns_of_a_prompt() -> None:
    assert turns("the cat") == "the cat"
    assert turns(SEVERAL) == TALK
    mark = "<extra_id_1>"
    five = turns(
        f"a\n\n{mark}Assistant\nb\n\n{mark}User\nc\nd\n\n{mark}Assistant\ne\n\n{mark}User\nf"
    )
    assert [message["content"] for message in five] == ["a", "b", "c\nd", "e", "f"]  # type: ignore[index]
    for bad in (f"a\n{mark}User\nb", f"a\n{mark}Assistant\nb"):
        with pytest.raises(
            ValueError, match="user and assistant must alternate, and the user be the last"
        ):
            turns(bad)


# --------------------------------------------------------------------------------------- truncation
def test_long_prompts_lose_the_end_of_the_last_message(tmp_path: Path) -> None:
    """With the template a prompt of w words has w + 3 tokens; the conversation 18, of which 5 are
    its last message's words."""
    source, tokenizer = helpsteer(tmp_path), word_tokenizer(chat_template=True)
    with pytest.warns(UserWarning, match="2 of 4 prompts are cut to 6 tokens; 1 more are left out"):
        found = load_prompts(source, tokenizer, max_tokens=6)
    assert sorted(map(str, found)) == ["a bird", "the moon is", "the sun", "very very very"]
    with pytest.warns(
        UserWarning, match="1 of 5 prompts are cut to 16 tokens; 0 more are left out"
    ):
        found = load_prompts(source, tokenizer, max_tokens=16)
    assert [*TALK[:2], {"role": "user", "content": "a dog likes"}] in found
    assert load_prompts(source, tokenizer, max_tokens=18) == load_prompts(source, tokenizer)


@pytest.mark.filterwarnings("ignore:.*prompts are cut")
@pytest.mark.parametrize("chat", [True, False])
def test_cut_prompts_fit_and_are_beginnings(tmp_path: Path, chat: bool) -> None:
    texts = [f"caf\u00e9 na\u00efve {'the cat sees ' * k}\U0001f600 end" for k in range(1, 9)]
    tokenizer = byte_tokenizer(
        ["the cat sees", "<|user|> <|assistant|> "], chat_template=chat
    )  # the last sign: 4 tokens
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    overhead = 40 if chat else 0
    for limit in range(overhead + 5, overhead + 25):
        found = load_prompts(str(path), tokenizer, max_tokens=limit)
        lengths = [len(row) for row in token_rows(tokenizer, found)]
        assert max(lengths) <= limit
        whole = [text for text in texts if len(token_rows(tokenizer, [text])[0]) <= limit]
        assert sum(prompt in whole for prompt in found) >= len(whole)
        assert all(any(text.startswith(prompt) for text in texts) for prompt in found)  # type: ignore[arg-type]


def test_a_count_is_filled_up_from_the_prompts_that_fit(tmp_path: Path) -> None:
    source, tokenizer = helpsteer(tmp_path), word_tokenizer(chat_template=True)
    for seed in range(4):
        with pytest.warns(UserWarning, match="cut to 6 tokens"):
            assert len(load_prompts(source, tokenizer, count=4, seed=seed, max_tokens=6)) == 4
    with (
        pytest.warns(UserWarning, match="cut to 6 tokens"),
        pytest.raises(
            ValueError, match="has 5 different prompts, of which 4 can be used; 5 are needed"
        ),
    ):
        load_prompts(source, tokenizer, count=5, max_tokens=6)


# ------------------------------------------------------------------------------------ other sources
def test_prompts_of_ultrafeedback_and_of_messages(tmp_path: Path) -> None:
    source, tokenizer = ultrafeedback(tmp_path), word_tokenizer(chat_template=True)
    assert sorted(load_prompts(source, tokenizer, split="train_prefs")) == sorted(
        f"the {word}" for word in WORDS[:12]
    )  # type: ignore[type-var]
    assert len(load_prompts(source, tokenizer, split="test_prefs")) == 2
    path = tmp_path / "talks.jsonl"
    path.write_text(
        json.dumps({"prompt": TALK})
        + "\n"
        + json.dumps({"prompt": TALK[:1]})
        + "\n"
        + json.dumps({"prompt": TALK})
    )
    assert sorted(load_prompts(str(path), tokenizer), key=len) == [TALK[:1], TALK]


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    tokenizer, path = word_tokenizer(chat_template=True), tmp_path / "a.jsonl"
    path.write_text('{"chosen": "a", "rejected": "b"}\n')
    with pytest.raises(ValueError, match="has no column `prompt`; it has chosen, rejected"):
        load_prompts(str(path), tokenizer)
    path.write_text('{"prompt": "a"}\n{"prompt": " "}\n')
    with pytest.raises(ValueError, match=r"1 row \(2\) with a `prompt` that is blank"):
        load_prompts(str(path), tokenizer)
    path.write_text(json.dumps({"prompt": TALK[:2]}))
    with pytest.raises(
        ValueError, match=r"1 row \(1\) with a `prompt` that is blank.* ends with an answer"
    ):
        load_prompts(str(path), tokenizer)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        load_prompts(str(path), tokenizer, count=0)
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        load_prompts(str(path), tokenizer, max_tokens=0)


# ----------------------------------------------------------------------------------------- training
def test_pairs_of_ultrafeedback_are_cut_into_prompt_and_answers(tmp_path: Path) -> None:
    source, tokenizer = ultrafeedback(tmp_path, same=True), word_tokenizer(chat_template=True)
    with pytest.warns(UserWarning, match=r"1 of 13 rows is left out: 1 row \(13\) with identical"):
        found = tokenise(load_rows(source, "train_prefs"), tokenizer)
    assert len(found) == 12
    assert (
        tokenizer.decode(found[1]["prompt_ids"]) == f"<|user|> the {WORDS[1]} <eos> <|assistant|>"
    )
    assert tokenizer.decode(found[1]["chosen_ids"]) == f"is very {WORDS[11]} <eos>"
    assert tokenizer.decode(found[1]["rejected_ids"]) == f"{WORDS[1]} sees a <eos>"


def test_train_takes_a_folder_of_ultrafeedback(tmp_path: Path) -> None:
    for name in ("data", "model"):
        (tmp_path / name).mkdir()
    tokenizer = word_tokenizer(chat_template=True)
    tiny_gpt2(vocabulary=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    line = (
        f"--model {tmp_path / 'model'} --data {ultrafeedback(tmp_path / 'data')} --split"
        f" train_prefs --eval_split test_prefs --output_dir {tmp_path / 'out'} --run_on cpu"
        " --max_steps 1 --per_device_train_batch_size 12 --disable_tqdm true --report_to none"
        " --save_strategy no"
    )
    metrics = train(*parse(line.split()))
    assert metrics["eval_rewards/accuracies"] >= 0
    assert json.loads((tmp_path / "out" / "training.json").read_text())
