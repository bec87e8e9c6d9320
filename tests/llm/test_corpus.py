"""Texts and tokenizers: every source gives the same table, and what is wrong with a source is said
with its place."""

import os
from pathlib import Path

import datasets
import pandas as pd
import pytest

from llm.data.corpus import CUES, EMOTIONS, SPLITS, generate_texts, load_corpus

TEXTS = {
    "train": [
        ("i feel low; really", "sadness"),
        ("i feel great", "joy"),
        ("i was amazed", "surprise"),
    ],
    "validation": [("i feel adored", "love")],
    "test": [("i feel mad", "anger"), ("i feel shaky", "fear")],
}
KEPT = {split: [row for row in rows if row[1] != "surprise"] for split, rows in TEXTS.items()}
HUB_NAMES = [
    "sadness",
    "joy",
    "love",
    "anger",
    "fear",
    "surprise",
]  # the class names of dair-ai/emotion, in its order


def write_files(folder: Path) -> Path:
    for split, file in zip(SPLITS, ("train.txt", "val.txt", "test.txt"), strict=True):
        (folder / file).write_text(
            "".join(f"{text};{label}\n" for text, label in TEXTS[split]) + "\n"
        )
    return folder


def write_snapshot(folder: Path, labels: str) -> Path:
    """A folder as a download of the hub makes it: parquet files in `split`, named in the head of
    README.md."""
    (folder / "split").mkdir()
    for split, rows in TEXTS.items():
        table = datasets.Dataset.from_dict(
            {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        )
        if labels != "words":
            table = table.cast_column("label", datasets.ClassLabel(names=HUB_NAMES))
        if labels == "numbers":
            table = table.cast_column("label", datasets.Value("int64"))
        table.to_parquet(folder / "split" / f"{split}-00000-of-00001.parquet")
    files = "".join(f"  - split: {split}\n    path: split/{split}-*\n" for split in TEXTS)
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: split\n  data_files:\n{files}  default: true\n---\n"
    )
    return folder


def rows(table: pd.DataFrame) -> list[tuple[str, str]]:
    return list(table[["text", "label"]].itertuples(index=False, name=None))


@pytest.mark.parametrize("kind", ["files", "classes", "words"])
def test_every_source_gives_the_same_texts(tmp_path: Path, kind: str) -> None:
    folder = write_files(tmp_path) if kind == "files" else write_snapshot(tmp_path, kind)
    corpus = load_corpus(str(folder))
    assert {split: rows(table) for split, table in corpus.items()} == KEPT
    assert rows(load_corpus(str(folder), sizes=(1, 1, 1))["test"]) == KEPT["test"][:1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("i feel fine", r"train.txt, line 2: the label 'i feel fine' is not one of"),
        ("i feel fine;bliss", r"train.txt, line 2: the label 'bliss'"),
        (" ;joy", r"train.txt, line 2: there is no text"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    write_files(tmp_path)
    (tmp_path / "train.txt").write_text(f"i feel great;joy\n{line}\n")
    with pytest.raises(ValueError, match=message):
        load_corpus(str(tmp_path))


def test_an_unusable_source_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot load the dataset.*Give the folder"):
        load_corpus(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="numbers such as 0 without class names"):
        load_corpus(str(write_snapshot(tmp_path, "numbers")))
    write_files(tmp_path)
    (tmp_path / "val.txt").unlink()
    with pytest.raises(ValueError, match=r"no file at .*val.txt"):
        load_corpus(str(tmp_path))
    with pytest.raises(ValueError, match="needs the number of texts"):
        load_corpus("grammar")


def test_only_dropped_emotions_leave_no_texts(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "test.txt").write_text("i was amazed;surprise\n")
    with pytest.raises(ValueError, match=r"test.txt has no text with one of the emotions"):
        load_corpus(str(tmp_path))


def test_the_grammar_puts_the_cue_in_a_fifth_of_the_prompts_and_depends_on_its_seed() -> None:
    texts = generate_texts(4000, 0)
    pd.testing.assert_frame_equal(texts, generate_texts(4000, 0))
    assert (texts.text != generate_texts(4000, 1).text).mean() > 0.9
    words = texts.text.str.split()
    (cue,) = CUES["grammar"]
    with_cue = words.map(lambda row: cue in row[:4])
    assert abs(with_cue.mean() - 0.2) < 4 * (0.2 * 0.8 / 4000) ** 0.5
    assert set(texts.label) == set(EMOTIONS)
    assert words.map(len).min() > 4
    # half of the texts with the cue are sad: the prompt says something, not everything
    assert (
        abs((texts.label[with_cue] == "sadness").mean() - 0.5) < 4 * (0.25 / with_cue.sum()) ** 0.5
    )


@pytest.mark.skipif(
    "PREFDRO_EMOTION" not in os.environ,
    reason="PREFDRO_EMOTION is not the folder of the Emotion texts",
)
def test_the_published_emotion_texts() -> None:
    corpus = load_corpus(os.environ["PREFDRO_EMOTION"])
    # 2000 test texts, of which 66 are of surprise: the counts of the dataset's card
    assert corpus["test"].label.value_counts().to_dict() == {
        "joy": 695,
        "sadness": 581,
        "anger": 275,
        "fear": 224,
        "love": 159,
    }
    assert len(corpus["train"]) == 16000 - 572
