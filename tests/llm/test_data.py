"""Reading, checking, cutting and batching preference data. The truth of the tokens is what TRL's
trainers make of the rows."""

import gzip
import json
import math
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

from llm.data.tokens import PreferenceCollator, group_numbers, load_rows, padding_token, tokenise
from llm.global_batch import scores_of
from llm.objectives import ObjectiveParameters, make_objective
from tests.llm.models import byte_tokenizer, word_tokenizer

PAIRS = [
    {"prompt": "the cat", "chosen": " is red", "rejected": " is blue and sad"},
    {"prompt": "a dog", "chosen": " likes the sun", "rejected": " is not happy"},
    {"prompt": "the moon is", "chosen": " very blue", "rejected": " green"},
]
UNPAIRED = [
    {"prompt": "the cat", "completion": " is red", "label": True},
    {"prompt": "a dog", "completion": " is not very happy", "label": False},
    {"prompt": "the moon is", "completion": " blue", "label": True},
]


def messages(*contents: str) -> list[dict[str, str]]:
    return [
        {"role": "user" if i % 2 == 0 else "assistant", "content": content}
        for i, content in enumerate(contents)
    ]


def talk(row: dict[str, Any]) -> dict[str, Any]:
    """The same row as a conversation."""
    roles = {
        "prompt": "user",
        "chosen": "assistant",
        "rejected": "assistant",
        "completion": "assistant",
    }
    return {
        k: [{"role": roles[k], "content": v.strip()}] if k in roles else v for k, v in row.items()
    }


def rows(*changes: dict[str, Any], base: list[dict[str, Any]] = PAIRS) -> Dataset:
    return Dataset.from_list(
        [row | (changes[i] if i < len(changes) else {}) for i, row in enumerate(base)]
    )


def write_lines(path: Any, lines: list[dict[str, Any]]) -> Any:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


#  files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ending", ["jsonl", "jsonl.gz", "json", "json.gz", "parquet", "csv", "lines.json"]
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, ending):
    path = tmp_path / f"pairs.{ending}"
    given = [row | {"weight": 0.5 * i, "group": "ab"[i % 2]} for i, row in enumerate(PAIRS)]
    if ending == "parquet":
        pd.DataFrame(given).astype({"group": "category"}).to_parquet(path)
    elif ending == "csv":
        pd.DataFrame(given).to_csv(path, index=False)
    else:
        text = (
            json.dumps(given, indent=1) if ending.startswith("json") and "l" not in ending else None
        )
        data = (text or "\n\n".join(json.dumps(row) for row in given)).encode()
        path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    assert load_rows(path) == given


def test_strings_that_look_like_dates_or_numbers_stay_strings(tmp_path):
    dates = [
        {"prompt": "when", "chosen": "2020-01-01", "rejected": f"2021-01-0{i}"} for i in (1, 2)
    ]
    assert load_rows(write_lines(tmp_path / "a.jsonl", dates)) == dates
    pd.DataFrame([{"prompt": "7", "chosen": "1", "rejected": "02"}]).to_csv(
        tmp_path / "a.csv", index=False
    )
    assert load_rows(tmp_path / "a.csv") == [{"prompt": "7", "chosen": "1", "rejected": "02"}]


def test_a_row_longer_than_the_read_block(tmp_path):
    long = [PAIRS[0], PAIRS[1] | {"chosen": "very " * 5_000_000}]
    assert load_rows(write_lines(tmp_path / "a.jsonl", long)) == long


def test_saved_folders(tmp_path):
    Dataset.from_list(PAIRS).save_to_disk(tmp_path / "one")
    DatasetDict(train=Dataset.from_list(PAIRS), test=Dataset.from_list(PAIRS[:1])).save_to_disk(
        tmp_path / "two"
    )
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert load_rows(tmp_path / "one") == PAIRS
    test = load_rows(tmp_path / "two", split="test")
    assert test == PAIRS[:1]
    tokenise(test, word_tokenizer(), "unpaired")
    assert {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")
    } == before  # nothing is written next to the data
    with pytest.raises(ValueError, match=r"no split 'valid'; it has train, test"):
        load_rows(tmp_path / "two", split="valid")
    with pytest.raises(ValueError, match=r"split is 'test', which has no meaning"):
        load_rows(tmp_path / "one", split="test")


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_folder_with_the_layout_of_the_hub(tmp_path, monkeypatch, ending):
    used = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", used)
    folder = tmp_path / "snapshot"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in ("train", "test"))
        + "---\n# Pairs\n"
    )
    for split, part in (("train", PAIRS), ("test", PAIRS[:1])):
        frame, path = pd.DataFrame(part), folder / "data" / f"{split}-00000-of-00001.{ending}"
        (
            frame.to_parquet(path)
            if ending == "parquet"
            else frame.to_json(path, orient="records", lines=True)
        )
    assert load_rows(folder) == PAIRS
    assert load_rows(folder, split="test", name="default") == PAIRS[:1]
    assert not used.exists()
    with pytest.raises(ValueError, match="valid"):
        load_rows(folder, split="valid")


@pytest.mark.parametrize("compress", [False, True])
def test_truncated_lines_name_file_and_line(tmp_path, compress):
    data = "".join(json.dumps(row) + "\n" for row in PAIRS).encode()[:-20]
    path = tmp_path / ("cut.jsonl.gz" if compress else "cut.jsonl")
    path.write_bytes(gzip.compress(data) if compress else data)
    with pytest.raises(
        ValueError,
        match=(
            r"cut\.jsonl(\.gz)?: .*1 row \(3\) not valid JSON.*cut\.jsonl(\.gz)?, line 3 \(the"
            r" last\)"
        ),
    ):
        load_rows(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"prompt": "x"}\nnonsense\n{"prompt": "y"}\n',
            r"1 row \(2\) not valid JSON.*a\.jsonl, line 2: ",
        ),
        (
            "a.jsonl",
            b'{"prompt": "x"}\n\n{"prompt": "\xff"}\n',
            r"a\.jsonl, line 3: the byte 0xff is not UTF-8 .*iconv",
        ),
        ("a.jsonl", b'{"prompt": "x"}\n["y"]\n', r"1 row \(2\) not an object.*a\.jsonl, line 2"),
        ("a.json", b'[{"prompt": "x"}, {"pro', r"a\.json, line 1: not valid JSON"),
        ("a.jsonl", b"", r"is empty \(0 bytes\)"),
        ("a.jsonl", b"\n\n", r"has no rows"),
        ("a.json", b"[]", r"has no rows"),
        (
            "a.csv",
            b"prompt,chosen,rejected\na,b\n",
            r"a\.csv, line 2: expected 3 cells \(prompt, chosen, rejected\), got 2",
        ),
        ("a.csv", b"prompt,chosen,rejected\n", r"has no rows"),
        ("a.csv", b"prompt,chosen,prompt\na,b,c\n", r"a\.csv has more than one column `prompt`"),
        (
            "a.parquet",
            b"PAR1 and no more",
            r"a\.parquet cannot be read as parquet .* download it again",
        ),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"prompt": "x"}\n' * 99, mtime=0)[:-9],
            r"a\.jsonl\.gz cannot be read as jsonl",
        ),
        ("a.txt", b"x", r"a\.txt: unknown kind of file. Known endings: \.jsonl"),
    ],
)
def test_damaged_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_rows(path)


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_rows_of_mixed_types_are_all_named(tmp_path, ending):
    bad = [
        *PAIRS,
        PAIRS[0] | {"chosen": 5},
        PAIRS[0] | {"chosen": ["x"]},
        *[PAIRS[0] | {"chosen": False}] * 2,
    ]
    path = tmp_path / f"a.{ending}"
    path.write_text(json.dumps(bad) if ending == "json" else "\n".join(map(json.dumps, bad)))
    with pytest.raises(
        ValueError,
        match=r"1 row \(4\) with a number in `chosen`.*1 row \(5\) with a list.*\(6, 7\) with true",
    ):
        tokenise(load_rows(path), word_tokenizer())
    mixed_elsewhere = [
        row | {"meta": meta} for row, meta in zip(PAIRS, [1, "x", {"y": 2}], strict=True)
    ]
    path.write_text(
        json.dumps(mixed_elsewhere)
        if ending == "json"
        else "\n".join(map(json.dumps, mixed_elsewhere))
    )
    assert load_rows(path) == mixed_elsewhere


def test_a_missing_file_is_not_taken_for_a_name_on_the_hub(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *args, **kwargs: asked.append((args, kwargs))
    )
    for missing in (
        tmp_path / "a",
        "./a",
        "../a/b",
        "~/a",
        "data/a.jsonl",
        "a.parquet",
        "a/b/c",
        r"data\a",
    ):
        with pytest.raises(FileNotFoundError, match="there is no file or folder"):
            load_rows(missing)
    assert not asked


def test_names_on_the_hub(tmp_path, monkeypatch):
    """The files of a data set are found and downloaded by `datasets`, and read here as local ones
    are."""
    asked = []
    files = {
        "train": [
            write_lines(tmp_path / "a.jsonl", PAIRS[:1]),
            write_lines(tmp_path / "b.jsonl", PAIRS[1:]),
        ],
        "test": [],
    }

    def builder(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        if args[0] == "trl-lib/none":
            raise datasets.exceptions.DatasetNotFoundError("Dataset doesn't exist")
        return SimpleNamespace(name="json", config=SimpleNamespace(data_files=files, field=None))

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    monkeypatch.setattr(datasets.DownloadManager, "download", lambda self, files: files)
    assert load_rows("trl-lib/pairs", "train", "small", "v1") == PAIRS
    assert asked == [(("trl-lib/pairs", "small"), {"revision": "v1", "cache_dir": None})]
    assert load_rows("trl-lib/pairs", "train[1:]") == PAIRS[1:]
    assert load_rows("trl-lib/pairs", "train[:1]+train[2:]") == [PAIRS[0], PAIRS[2]]
    with pytest.raises(ValueError, match=r"no split 'valid'; it has train, test"):
        load_rows("trl-lib/pairs", "valid")
    with pytest.raises(
        FileNotFoundError,
        match=r"no file or folder here, and could not be had from the hub .*give the folder",
    ):
        load_rows("trl-lib/none")


def test_arguments_without_meaning_and_folders_without_data(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", PAIRS)
    for argument in ("name", "revision", "split"):
        with pytest.raises(
            ValueError, match=f"{argument} is 'x', which has no meaning for .*a.jsonl"
        ):
            load_rows(path, **{argument: "x"})
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"nothing holds no data.*For a single file"):
        load_rows(tmp_path / "nothing")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jsonl").write_text('{"prompt": "x')
    with pytest.raises(
        ValueError, match=r"broken: none of the 1 rows can be used.*a\.jsonl, line 1"
    ):
        load_rows(tmp_path / "broken")


#  tokens ------------------------------------------------------------------------------------------

TEXT = [text for row in PAIRS for text in row.values()]
MERGING = [  # prompts that end inside a token of the whole
    {"prompt": "the ca", "chosen": "t is red", "rejected": "r is blue"},
    {"prompt": "the moon ", "chosen": "is very blue", "rejected": "green<eos>"},
    {"prompt": "a dog", "chosen": " likes the sun", "rejected": " likes the moon"},
]
IMPLICIT = [
    {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}
    for row in PAIRS
]
IMPLICIT_TALK = [
    {
        "chosen": messages("the cat", "is red", "a dog", "is happy"),
        "rejected": messages("the cat", "is red", "a dog", "likes"),
    },
    {"chosen": messages("a dog", "sees the sun"), "rejected": messages("a dog", "sees the moon")},
]


def by_trl(
    data: list[dict[str, Any]], tokenizer: Any, trainer: Any, max_length: int | None = None
) -> Any:
    args = SimpleNamespace(
        dataset_num_proc=None,
        max_length=max_length,
        truncation_mode="keep_start",
        dataset_kwargs=None,
    )
    this = SimpleNamespace(
        _tokenizer=tokenizer, calculate_KL=False, desirable_weight=1.0, undesirable_weight=1.0
    )
    return trainer._prepare_dataset(this, Dataset.from_list(data), tokenizer, args, "train")


@pytest.mark.filterwarnings("ignore:.*tokens merge across the boundary")
@pytest.mark.parametrize(
    "make", [word_tokenizer, lambda **more: byte_tokenizer(TEXT, **more)], ids=["words", "bytes"]
)
@pytest.mark.parametrize(
    "data",
    [PAIRS, MERGING, IMPLICIT, [talk(row) for row in PAIRS], IMPLICIT_TALK],
    ids=["strings", "merging", "implicit", "conversations", "implicit-conversations"],
)
def test_tokens_of_pairs_equal_those_of_trl(data, make):
    tokenizer = make(chat_template=True)
    theirs = by_trl(data, tokenizer, DPOTrainer)
    ours = tokenise(Dataset.from_list(data), tokenizer)
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert list(ours[column]) == list(theirs[column])
    assert list(ours["index"]) == list(range(len(data)))


@pytest.mark.filterwarnings("ignore:.*tokens merge across the boundary")
@pytest.mark.parametrize(
    "data",
    [UNPAIRED, PAIRS, [talk(row) for row in UNPAIRED]],
    ids=["strings", "pairs", "conversations"],
)
def test_tokens_of_unpaired_rows_equal_those_of_trl(data):
    tokenizer = byte_tokenizer(TEXT, chat_template=True)
    theirs = by_trl(data, tokenizer, KTOTrainer)
    ours = tokenise(Dataset.from_list(data), tokenizer, "unpaired")
    for column in ("prompt_ids", "completion_ids", "label"):
        assert list(ours[column]) == list(theirs[column])
    assert list(ours["kl_completion_ids"]) == [
        *ours["completion_ids"][1:],
        ours["completion_ids"][0],
    ]
    assert list(ours["index"]) == ([0, 1, 2, 0, 1, 2] if data is PAIRS else [0, 1, 2])


def test_template_inputs_reach_the_template():
    tokenizer = word_tokenizer(chat_template=True)
    tokenizer.chat_template = (
        "{% if mood %}{{ mood }} {% endif %}{{ tools | length if tools else 'not' }} "
        + tokenizer.chat_template
    )
    tool = {
        "type": "function",
        "function": {
            "name": "see",
            "description": "",
            "parameters": {"type": "object", "properties": {}},
        },
    }
    extra = {"chat_template_kwargs": {"mood": "angry"}, "tools": json.dumps([tool])}
    data = [talk(row) | extra for row in PAIRS]
    ours = tokenise(Dataset.from_list(data), tokenizer)
    assert list(ours["prompt_ids"]) == list(by_trl(data, tokenizer, DPOTrainer)["prompt_ids"])
    assert tokenizer.decode(ours["prompt_ids"][0]).startswith("angry")


def test_a_string_prompt_next_to_whole_conversations_is_left_out():
    """As in UltraFeedback, whose conversations begin with the prompt."""
    tokenizer = word_tokenizer(chat_template=True)
    doubled = tokenise(
        Dataset.from_list([row | {"prompt": "the cat"} for row in IMPLICIT_TALK]), tokenizer
    )
    assert doubled.to_list() == tokenise(Dataset.from_list(IMPLICIT_TALK), tokenizer).to_list()


@pytest.mark.filterwarnings("ignore:.*(left out|cut at)")
@pytest.mark.parametrize("max_length", [4, 6, 8, 20])
def test_batches_of_cut_rows_equal_those_of_trl(max_length):
    tokenizer = byte_tokenizer(TEXT)
    data = PAIRS + [
        {"prompt": "the the the the the the the the the", "chosen": "a", "rejected": "b"}
    ]
    theirs = by_trl(data, tokenizer, DPOTrainer, max_length)
    expected = DataCollatorForPreference(pad_token_id=0, max_length=max_length)(theirs.to_list())
    ours = tokenise(Dataset.from_list(data), tokenizer, max_length=max_length, long_prompts="drop")
    batch = PreferenceCollator(0)(ours.to_list())
    for key in ("input_ids", "attention_mask", "completion_mask"):
        assert torch.equal(batch[key], expected[key])


def test_the_next_completion_is_cut_to_its_new_prompt():
    tokenizer = word_tokenizer()
    data = [
        {"prompt": "the", "completion": " cat is red and happy", "label": 1},
        {"prompt": "a dog is", "completion": " sad", "label": 0},
        {"prompt": "the moon", "completion": " is blue", "label": 1},
    ]
    with pytest.warns(UserWarning, match=r"1 row \(1\) cut at the end"):
        ours = tokenise(Dataset.from_list(data), tokenizer, "unpaired", max_length=5)
    words = [tokenizer.decode(ids) for ids in ours["kl_completion_ids"]]
    assert words == ["sad <eos>", "is blue", "cat is red"]
    assert list(ours["label"]) == [True, False, True]
    one = tokenise(Dataset.from_list(data[:1]), tokenizer, "unpaired")
    assert one["kl_completion_ids"][0] == one["completion_ids"][0]


@pytest.mark.parametrize("kind", ["pairs", "unpaired"])
def test_the_form_of_the_rows_and_their_order_change_nothing(kind):
    data = Dataset.from_list(PAIRS * 5)
    forms = (data, data.to_list(), data.to_pandas())
    one, *others = (tokenise(form, word_tokenizer(), kind).to_list() for form in forms)
    assert all(other == one for other in others)
    order = np.random.default_rng(0).permutation(len(data))
    shuffled, straight = (tokenise(part, word_tokenizer()) for part in (data.select(order), data))
    assert list(shuffled["chosen_ids"]) == list(straight.select(order)["chosen_ids"])


#  weights and groups ------------------------------------------------------------------------------


def test_weights_and_groups():
    data = rows(
        {"weight": 2, "group": "sun"}, {"weight": 0, "group": "moon"}, {"weight": 1, "group": "sun"}
    )
    ours = tokenise(data, word_tokenizer())
    assert list(ours["weight"]) == [2.0, 0.0, 1.0]
    assert list(ours["group"]) == [1, 0, 1]
    assert group_numbers(ours) == {"moon": 0, "sun": 1}
    other = rows({"group": "sun"}, {"group": "sun"}, {"group": "sun"})
    held_out = tokenise(other, word_tokenizer(), groups=group_numbers(ours))
    assert list(held_out["group"]) == [
        1,
        1,
        1,
    ]  # as in the training data, though "moon" does not occur
    assert list(tokenise(data, word_tokenizer(), "unpaired")["weight"]) == [2, 0, 1, 2, 0, 1]
    numbered = tokenise(rows({"group": 3}, {"group": 0}, {"group": 3}), word_tokenizer())
    assert list(numbered["group"]) == [3, 0, 3] and group_numbers(numbered) == {}
    assert not isinstance(numbered.features["group"], ClassLabel)


def test_confidences_of_labels_reach_the_scores():
    """Of a tie, which is two rows, either label is as good."""
    chances = (0.9, 0.6, 0.9)
    labels = [
        {"label": x, "label_confidence": c} for x, c in zip((1, 0, 0.5), chances, strict=True)
    ]
    with pytest.warns(UserWarning, match="1 swapped, 1 ties"):
        ours = tokenise(rows(*labels), word_tokenizer())
    wanted = torch.tensor([0.9, 0.6, 0.5, 0.5])
    batch = PreferenceCollator(0)(ours.to_list())
    torch.testing.assert_close(batch["label_confidence"], wanted)
    batch["reference_logps"] = torch.zeros(8)
    logps = torch.tensor([2.0, -1.0, 1.0, -0.5, 0.0, 0.0, 0.0, 0.0])
    scores = scores_of(batch, logps)
    torch.testing.assert_close(scores.confidence, wanted)
    loss = make_objective(ObjectiveParameters("chi2_label", 1.0, label_rho=0.25)).losses(scores)
    m, c = logps[:4], wanted
    torch.testing.assert_close(  # no chance of these is cut
        loss, torch.log1p(torch.exp(-m)) + (1 - c) * m + 0.5 * (c * (1 - c)).sqrt() * m.abs()
    )
    both = make_objective(ObjectiveParameters("chi2_label", 1.0, label_rho=0.25, flip=0.1))
    with pytest.raises(ValueError, match=r"column label_confidence, and --flip is 0\.1"):
        both.losses(scores)


def test_rewards_go_with_their_responses():
    """Also where a label swaps them, or a tie makes two rows."""
    rewards = {"chosen_reward": 1.5, "rejected_reward": -0.5}
    with pytest.warns(UserWarning, match="1 swapped, 1 ties"):
        ours = tokenise(
            rows(*({"label": label} | rewards for label in (1, 0, 0.5))), word_tokenizer()
        )
    batch = PreferenceCollator(0)(ours.to_list()) | {"reference_logps": torch.zeros(8)}
    scores = scores_of(batch, torch.tensor([2.0, 0, 0, 0, 0, 0, 0, 0]))
    torch.testing.assert_close(scores.reward_difference, torch.tensor([2.0, -2.0, 2.0, -2.0]))
    loss = make_objective(ObjectiveParameters("rebel", 0.5)).losses(scores)
    torch.testing.assert_close(loss, torch.tensor([1.0, 4.0, 4.0, 4.0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [{"chosen_reward": 1.0}, {"chosen_reward": math.nan}, {"chosen_reward": None}],
            r"2 rows \(2, 3\) with a `chosen_reward` that is missing or not a finite number.*nan",
        ),
        (
            [{"label_confidence": 1.0}, {"label_confidence": 1.5}, {"label_confidence": None}],
            r"2 rows \(2, 3\) with a `label_confidence`.*1\.5",
        ),
        (
            [{"weight": 1.0}, {"weight": -1.0}, {"weight": math.inf}],
            r"2 rows \(2, 3\) with a `weight`.*-1",
        ),
        (
            [{"weight": 1.0}, {"weight": None}, {"weight": math.nan}],
            r"2 rows \(2, 3\) with a `weight`",
        ),
        ([{"weight": 0}, {"weight": 0}, {"weight": 0}], r"`weight` is zero in every row"),
        (
            [{"weight": "a"}, {"weight": "b"}, {"weight": "c"}],
            r"none of the 3 rows .* \(1, 2, 3\) with a `weight`.*'a'",
        ),
        ([{"group": "a"}, {"group": None}, {"group": "b"}], r"1 row \(2\) without a `group`"),
        (
            [{"group": 0}, {"group": -1}, {"group": 1}],
            r"1 row \(2\) with a `group` that is no whole number from 0 .*\(-1\)",
        ),
        (
            [{"group": 0.5}, {"group": 1.5}, {"group": 1.0}],
            r"2 rows \(1, 2\) with a `group` that is no whole number.*0\.5",
        ),
    ],
)
def test_bad_weights_and_groups(changes, message):
    with pytest.raises(ValueError, match=message):
        tokenise(rows(*changes), word_tokenizer())


def test_a_label_beside_chosen_and_rejected_says_who_won():
    """1 as it stands, 0 swapped, 0.5 two mirrored rows of half the weight."""
    tokenizer = word_tokenizer()
    plain = tokenise(PAIRS, tokenizer)
    sides = ("chosen_ids", "rejected_ids")
    with pytest.warns(UserWarning, match="1 pairs as they stand, 1 swapped, 1 ties, each as two"):
        ours = tokenise(rows({"label": 1}, {"label": 0.0}, {"label": 0.5}), tokenizer)
    assert "label" not in ours.column_names
    assert list(ours["index"]) == [0, 1, 2, 2] and list(ours["weight"]) == [1, 1, 0.5, 0.5]
    expected = [(0, False), (1, True), (2, False), (2, True)]
    for row, (given, swapped) in zip(ours, expected, strict=True):
        for name, other in zip(sides, sides[::-1], strict=True):
            assert row[name] == plain[given][other if swapped else name]
    weighted = rows(*[{"tie": tie, "weight": 2.0} for tie in (False, True, False)])
    with pytest.warns(UserWarning, match="2 pairs as they stand, 0 swapped, 1 ties"):
        ours = tokenise(weighted, tokenizer)
    assert list(ours["weight"]) == [2, 1, 1, 2]
    unpaired = tokenise(weighted, tokenizer, "unpaired")
    assert list(unpaired["weight"]) == [2, 1, 1, 2] * 2
    assert list(unpaired["label"]) == [True] * 4 + [False] * 4
    dropped = tokenise(rows({"tie": True}, {"tie": False}, {"tie": False}), tokenizer, ties="drop")
    assert list(dropped["index"]) == [1, 2] and "weight" not in dropped.column_names
    other = [row | {"label": label} for row, label in zip(PAIRS, ("a", 7, 0), strict=True)]
    ignored = tokenise(other, tokenizer, ties="ignore")
    assert ignored.column_names == plain.column_names
    assert list(ignored["chosen_ids"]) == list(plain["chosen_ids"])
    true = tokenise(rows({"label": True}, {"label": True}, {"label": True}), tokenizer)
    assert list(true["chosen_ids"]) == list(plain["chosen_ids"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [{"label": 1}, {"label": 2}, {"label": None}],
            r"2 rows \(2, 3\) with a `label` that is none of 1, 0\.5, 0.*--ties ignore.*2\)",
        ),
        ([{"label": "tie"}, {"label": 1}, {"label": 1}], r"1 row \(1\) with a `label`.*'tie'"),
        ([{"tie": 2}, {"tie": 1}, {"tie": 0}], r"1 row \(1\) with a `tie` that is neither"),
        (
            [{"tie": True, "label": 1}, {"tie": False, "label": 1}, {"tie": True, "label": 0.5}],
            r"1 row \(1\) whose `tie` and `label` say different",
        ),
    ],
)
def test_labels_beside_pairs_that_are_none(changes, message):
    data = [row | change for row, change in zip(PAIRS, changes, strict=True)]
    with pytest.raises(ValueError, match=message):
        tokenise(data, word_tokenizer())


def test_groups_that_the_training_data_do_not_have():
    known = {"moon": 0, "sun": 1}
    with pytest.raises(ValueError, match=r"1 row \(3\) of a group unknown.*moon, sun .*'star'"):
        tokenise(
            rows({"group": "sun"}, {"group": "moon"}, {"group": "star"}),
            word_tokenizer(),
            groups=known,
        )
    with pytest.raises(
        ValueError, match=r"holds numbers, but in the training data names \(moon, sun\)"
    ):
        tokenise(rows({"group": 0}, {"group": 1}, {"group": 1}), word_tokenizer(), groups=known)


#  rows that cannot be used ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (
            [{"prompt": "a", "chosen": "b"}],
            "pairs",
            r"columns are missing. The data have `prompt`, `chosen`; accepted are `pro",
        ),
        (
            [{"prompt": "a", "completion": "b"}],
            "unpaired",
            r"columns are missing. The data have `prompt`, `completion`",
        ),
        (UNPAIRED, "pairs", r"the data are unpaired .* but the objective compares pairs"),
        (
            [row | {"prompt": i} for i, row in enumerate(PAIRS)],
            "pairs",
            r"3 rows \(1, 2, 3\) with a number in `prompt`",
        ),
        ([PAIRS[0], PAIRS[1] | {"chosen": None}], "pairs", r"1 row \(2\) without `chosen`"),
        (
            [row | {"chosen": ["x"], "rejected": ["y"]} for row in PAIRS * 4],
            "pairs",
            r"rows \(1-12\) with a string for",
        ),
        (
            [row | {"chosen": {"text": "x"}} for row in PAIRS],
            "pairs",
            r"none of the .* with an object",
        ),
        (
            [talk(PAIRS[0]), talk(PAIRS[1]) | {"chosen": [{"role": "assistant", "content": None}]}],
            "pairs",
            r"\(2\) with a message whose content is",
        ),
        (
            [talk(PAIRS[0]), talk(PAIRS[1]) | {"rejected": []}],
            "pairs",
            r"1 row \(2\) with an empty list in `rejected`",
        ),
        (
            [talk(PAIRS[0]) | {"rejected": "x"}],
            "pairs",
            r"mixed: `prompt` has conv.*, `chosen` has conv.*`rejected` has str",
        ),
        (
            [PAIRS[1] | {"chosen": ""}, PAIRS[2] | {"chosen": " \n"}],
            "pairs",
            r"no row is left.*\(1, 2\) empty or blank",
        ),
        (
            [UNPAIRED[0] | {"completion": " "}],
            "unpaired",
            r"no row is left.*1 row \(1\) empty or blank .*`completion`",
        ),
        (
            [talk(PAIRS[0] | {"rejected": " "})],
            "pairs",
            r"no row is left.*1 row \(1\) empty or blank .*`rejected`",
        ),
        (
            [{"chosen": "a b", "rejected": "a c"}, {"chosen": "b", "rejected": "c"}],
            "pairs",
            r"1 row \(2\) without a column `prompt`, and without a common",
        ),
        ([{"chosen": "x ", "rejected": "y "}], "pairs", r"\(1\) without a column `prompt`"),
        (
            [{"chosen": messages("a", "b"), "rejected": messages("c", "b")}],
            "pairs",
            r"\(1\) without a column `prompt`",
        ),
        ([PAIRS[0], PAIRS[1] | {"prompt": ""}], "pairs", r"1 row \(2\) without a token of prompt"),
        (
            [row | {"rejected": row["chosen"]} for row in PAIRS],
            "pairs",
            r"no row .*\(1, 2, 3\) with identical chosen",
        ),
        (
            [UNPAIRED[0] | {"label": "yes"}],
            "unpaired",
            r"1 row \(1\) with a `label` that is neither true.*'yes'",
        ),
        (
            [UNPAIRED[0] | {"label": 1}, UNPAIRED[0] | {"label": 2}],
            "unpaired",
            r"1 row \(2\) with a `label` that is",
        ),
        (
            [UNPAIRED[0], UNPAIRED[0] | {"label": None}],
            "unpaired",
            r"1 row \(2\) with a `label` that is",
        ),
    ],
)
def test_rows_that_cannot_be_used(data, kind, message):
    with pytest.raises(ValueError, match=message):
        tokenise(Dataset.from_list(data), word_tokenizer(chat_template=True), kind)


def test_an_empty_data_set():
    with pytest.raises(ValueError, match="has no rows"):
        tokenise(Dataset.from_list(PAIRS).select([]), word_tokenizer())


@pytest.mark.filterwarnings("ignore:.*cut at")
def test_identical_pairs_are_dropped_with_a_warning():
    data = [PAIRS[0], PAIRS[1] | {"rejected": PAIRS[1]["chosen"]}, PAIRS[2]]
    with pytest.warns(
        UserWarning,
        match=r"1 of 3 rows is left out: 1 row \(2\) with identical chosen and rejected",
    ):
        ours = tokenise(Dataset.from_list(data), word_tokenizer())
    assert list(ours["index"]) == [0, 2]
    alike = [PAIRS[0], {"prompt": "the cat", "chosen": " is very red", "rejected": " is very sad"}]
    with pytest.warns(
        UserWarning, match=r"1 row \(2\) with identical chosen and rejected within 4 tokens"
    ):
        assert list(
            tokenise(Dataset.from_list(alike), word_tokenizer(), max_length=4)["index"]
        ) == [0]


def test_prompts_that_leave_no_room():
    data = Dataset.from_list(
        [*PAIRS, {"prompt": "the the the the", "chosen": " red", "rejected": " blue"}]
    )
    with pytest.raises(
        ValueError,
        match=r"1 row \(4\) with a prompt .* max_length = 4 tokens \(the longest prompt has 4\)",
    ):
        tokenise(data, word_tokenizer(), max_length=4, long_prompts="error")
    with pytest.warns(UserWarning) as caught:
        ours = tokenise(data, word_tokenizer(), max_length=4, long_prompts="drop")
    assert [str(warning.message).split(":")[0] for warning in caught] == [
        "3 rows (1, 2, 3) cut at the end of the completion",
        "1 of 4 rows is left out",
    ]
    assert list(ours["index"]) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"4 rows \(1, 2, 3, 4\) with a prompt"):
        tokenise(data, word_tokenizer(), max_length=2, long_prompts="drop")


def test_prompts_that_merge_with_their_completion():
    with pytest.warns(
        UserWarning, match=r"1 row \(1\) with a prompt whose tokens are not the first of"
    ):
        tokenise(Dataset.from_list(MERGING[:1] + PAIRS[1:]), word_tokenizer())


def test_reference_columns_of_the_data_are_not_trusted():
    data = Dataset.from_list(
        [row | {"ref_chosen_logps": -1.0, "ref_rejected_logps": -1.0} for row in PAIRS]
    )
    with pytest.warns(
        UserWarning, match="ref_chosen_logps, ref_rejected_logps in the data are not used"
    ):
        assert not [
            column
            for column in tokenise(data, word_tokenizer()).column_names
            if column.startswith("ref_")
        ]


@pytest.mark.parametrize(
    "options",
    [{"kind": "pair"}, {"long_prompts": "cut"}, {"max_length": 1}],
    ids=["kind", "long_prompts", "max_length"],
)
def test_options_that_do_not_exist(options):
    with pytest.raises(
        ValueError, match=f"{next(iter(options))} must be .*, got {next(iter(options.values()))!r}"
    ):
        tokenise(Dataset.from_list(PAIRS), word_tokenizer(), **options)


#  tokenizers --------------------------------------------------------------------------------------


def test_tokenizers_that_lack_something():
    with pytest.raises(
        ValueError,
        match=r"conversations, but the tokenizer .* has no chat template.*give the data as strings",
    ):
        tokenise(Dataset.from_list([talk(row) for row in PAIRS]), word_tokenizer())
    with pytest.raises(
        ValueError, match=r"has no end-of-sequence token.* Set `tokenizer.eos_token`"
    ):
        tokenise(Dataset.from_list(PAIRS), word_tokenizer(eos=False))
    assert padding_token(word_tokenizer()) == 0
    assert padding_token(word_tokenizer(pad=False)) == 1
    with pytest.raises(ValueError, match=r"neither a padding nor an end-of-sequence token"):
        padding_token(word_tokenizer(pad=False, eos=False))


def test_a_template_that_refuses_a_conversation():
    tokenizer = word_tokenizer(chat_template=True)
    refusal = "{% if messages[0].content == 'a dog' %}{{ raise_exception('no dogs') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    with pytest.raises(
        ValueError,
        match=r"1 row \(2\) that the chat template of the tokenizer .* refuses.*\(no dogs\)",
    ):
        tokenise(Dataset.from_list([talk(row) for row in PAIRS]), tokenizer)


#  batches -----------------------------------------------------------------------------------------


def test_a_batch_of_pairs_by_hand():
    first = {
        "prompt_ids": [1, 2, 3],
        "chosen_ids": [4, 5],
        "rejected_ids": [6],
        "index": 7,
        "weight": 0.5,
        "group": 1,
    }
    second = {
        "prompt_ids": [7, 8],
        "chosen_ids": [9],
        "rejected_ids": [10, 11],
        "index": 3,
        "weight": 2.0,
        "group": 0,
    }
    reference = [
        {"ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0},
        {"ref_chosen_logps": -3.0, "ref_rejected_logps": -4.0},
    ]
    batch = PreferenceCollator(0, pad_to_multiple_of=3)(
        [first | reference[0], second | reference[1]]
    )
    expected = {
        "input_ids": [
            [1, 2, 3, 4, 5, 0],
            [7, 8, 9, 0, 0, 0],
            [1, 2, 3, 6, 0, 0],
            [7, 8, 10, 11, 0, 0],
        ],
        "attention_mask": [
            [1, 1, 1, 1, 1, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0, 0],
        ],
        "completion_mask": [
            [0, 0, 0, 1, 1, 0],
            [0, 0, 1, 0, 0, 0],
            [0, 0, 0, 1, 0, 0],
            [0, 0, 1, 1, 0, 0],
        ],
        "reference_logps": [-1.0, -3.0, -2.0, -4.0],
        "weight": [0.5, 2.0],
        "group": [1, 0],
        "index": [7, 3],
    }
    assert {key: value.tolist() for key, value in batch.items()} == expected
    floats = ("reference_logps", "weight")
    assert all(
        value.dtype == (torch.float32 if key in floats else torch.int64)
        for key, value in batch.items()
    )
    plain = PreferenceCollator(0)(
        [{key: first[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids", "index")}]
    )
    assert set(plain) == {"input_ids", "attention_mask", "completion_mask", "index"}
    assert plain["input_ids"].shape == (2, 5)


def test_a_batch_of_responses_by_hand():
    first = {
        "prompt_ids": [1],
        "completion_ids": [2, 3],
        "kl_completion_ids": [4],
        "label": True,
        "index": 0,
    }
    second = {
        "prompt_ids": [5],
        "completion_ids": [4],
        "kl_completion_ids": [2, 3],
        "label": False,
        "index": 1,
    }
    reference = [
        {"ref_logps": -1.0, "ref_kl_logps": -2.0},
        {"ref_logps": -3.0, "ref_kl_logps": -4.0},
    ]
    batch = PreferenceCollator(9)([first | reference[0], second | reference[1]])
    assert {key: value.tolist() for key, value in batch.items()} == {
        "input_ids": [[1, 2, 3], [5, 4, 9]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "completion_mask": [[0, 1, 1], [0, 1, 0]],
        "reference_logps": [-1.0, -3.0],
        "kl_input_ids": [[1, 4, 9], [5, 2, 3]],
        "kl_attention_mask": [[1, 1, 0], [1, 1, 1]],
        "kl_completion_mask": [[0, 1, 0], [0, 1, 1]],
        "kl_reference_logps": [-2.0, -4.0],
        "desirable": [True, False],
        "index": [0, 1],
    }
    assert batch["desirable"].dtype == torch.bool


def test_batches_of_arrays_and_a_width_that_cannot_be():
    data = tokenise(Dataset.from_list(PAIRS), word_tokenizer())
    as_arrays = data.with_format("numpy")
    batch, expected = (PreferenceCollator(0)([d[i] for i in range(3)]) for d in (as_arrays, data))
    assert all(torch.equal(batch[key], expected[key]) for key in expected)
    with pytest.raises(ValueError, match=r"pad_to_multiple_of must be at least 1 .* got 0"):
        PreferenceCollator(0, pad_to_multiple_of=0)


def test_a_mismatched_completion_is_never_of_the_same_prompt() -> None:
    prompts, completions = (
        ["the", "the", "cat", "cat", "dog", "the"],
        [
            " a",
            " bird",
            " sun",
            " moon",
            " is",
            " was",
        ],
    )
    rows = Dataset.from_dict({"prompt": prompts, "completion": completions, "label": [True] * 6})
    tokenizer = word_tokenizer()
    found = tokenise(rows, tokenizer, "unpaired")["kl_completion_ids"]
    # rows 0, 1 and 5 share a prompt, and the last one is followed by the first: row 5 goes on to
    # row 2
    assert [tokenizer.decode(ids[:1]) for ids in found] == ["sun", "sun", "is", "is", "was", "sun"]
