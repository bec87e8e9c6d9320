"""Emotion texts from a small grammar, from files or from a hub dataset; all of them as tables of
text and label.

The five emotions are those of arXiv:2502.01930, Appendix F: `surprise`, the rarest label of the
Emotion dataset (Saravia et al., 2018), is dropped.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llm.models import first_line

EMOTIONS = ("sadness", "joy", "love", "anger", "fear")
DROPPED = ("surprise",)
SPLITS = ("train", "validation", "test")
FILES = {"train": "train.txt", "validation": "val.txt", "test": "test.txt"}
GRAMMAR = "grammar"  # the source that needs no files
CUES = {
    GRAMMAR: ("night",),
    "other": ("feeling", "felt", "was"),
}  # words that mark a prompt of the minority
CUE_SHARE = 0.2  # of the texts of the grammar

Corpus = dict[str, pd.DataFrame]  # split -> columns text, label (a word of EMOTIONS)


def load_corpus(source: str, *, sizes: Sequence[int] = (), seed: int = 0) -> Corpus:
    """The texts of a source: `grammar`, a folder of text files, or a dataset of the hub or a
    snapshot of one.

    Args:
        source: "grammar"; a folder with train.txt, val.txt, test.txt, each line `text;label`; or
            what `datasets.load_dataset` takes: the id of a dataset on the hub, or a folder of the
            same layout, with columns text and label.
        sizes: texts in train, validation, test; the first ones of a source that has more. Needed
            for the grammar.
        seed: of the grammar.

    Raises:
        ValueError: the source is not there, or not of that form.
    """
    if source == GRAMMAR:
        if len(sizes) != len(SPLITS):
            raise ValueError(
                f"the grammar needs the number of texts in {', '.join(SPLITS)}, got {tuple(sizes)}."
            )
        return {
            name: generate_texts(size, [seed, k])
            for k, (name, size) in enumerate(zip(SPLITS, sizes, strict=True))
        }
    source = os.path.expanduser(source)
    if (Path(source) / FILES["train"]).is_file():
        corpus = {name: read_file(Path(source) / file) for name, file in FILES.items()}
    else:
        corpus = read_hub(source)
    if sizes:
        corpus = {name: corpus[name].head(size) for name, size in zip(SPLITS, sizes, strict=True)}
    return corpus


# ------------------------------------------------------------------------------------------ grammar
_TIMES = ("today", "yesterday", "lately", "again")
# place -> the emotion that half of the texts there have; the other emotions share the rest equally
_PLACES = {
    "night": "sadness",
    "work": "anger",
    "home": "love",
    "school": "fear",
    "lunch": "joy",
    "church": "love",
    "practice": "joy",
}
_FAVOURITE_SHARE = 0.375  # beside its share among all emotions
_DEGREES = ("", "very", "so", "really", "a bit")
_FEELINGS = {
    "sadness": ("sad", "lonely", "miserable", "hopeless", "empty", "gloomy"),
    "joy": ("happy", "cheerful", "glad", "thrilled", "proud", "delighted"),
    "love": ("loved", "tender", "adored", "devoted", "caring", "fond"),
    "anger": ("angry", "furious", "bitter", "annoyed", "hostile", "outraged"),
    "fear": ("scared", "afraid", "nervous", "anxious", "terrified", "shaky"),
}
# words of several emotions, said without a reason that would tell: no reward model can be sure of
# them
_AMBIGUOUS = {
    "sadness": ("upset", "shaken", "moved"),
    "joy": ("moved", "restless"),
    "love": ("moved", "touched"),
    "anger": ("upset", "tense", "shaken", "restless"),
    "fear": ("tense", "shaken", "restless"),
}
_AMBIGUOUS_SHARE = 0.2
_REASONS = {
    "sadness": ("because nobody wrote back", "since she went away", "as i lost my dog"),
    "joy": ("because we won the game", "since the sun came out", "as i passed the test"),
    "love": ("because he held my hand", "since she kissed me", "as they hugged me"),
    "anger": ("because they lied to me", "since he broke my phone", "as she insulted us"),
    "fear": ("because someone followed me", "since the dog barked", "as it got dark"),
}
_ANY_REASON = (
    "when the phone rang",
    "after the long day",
    "while we talked",
    "when i saw the news",
)
_ANY_REASON_SHARE = 0.3


def generate_texts(count: int, seed: int | Sequence[int]) -> pd.DataFrame:
    """Sentences such as "today at work i felt very angry because they lied to me", with their
    emotion.

    The first four words, from which a prompt is made, say little of the emotion. One in five has
    the place `night`, the cue by which annotators can be told apart.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed))

    def pick(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    (cue,) = CUES[GRAMMAR]
    others = [place for place in _PLACES if place != cue]
    rows = []
    for _ in range(count):
        place = cue if rng.random() < CUE_SHARE else pick(others)
        emotion = _PLACES[place] if rng.random() < _FAVOURITE_SHARE else pick(EMOTIONS)
        ambiguous = rng.random() < _AMBIGUOUS_SHARE
        feeling = pick((_AMBIGUOUS if ambiguous else _FEELINGS)[emotion])
        reason = pick(
            _ANY_REASON if ambiguous or rng.random() < _ANY_REASON_SHARE else _REASONS[emotion]
        )
        words = f"{pick(_TIMES)} at {place} i felt {pick(_DEGREES)} {feeling} {reason}".split()
        rows.append((" ".join(words), emotion))
    return pd.DataFrame(rows, columns=["text", "label"])


# -------------------------------------------------------------------------------------------- files
def read_file(path: Path) -> pd.DataFrame:
    """Lines `text;label` of a file, in order; those with a dropped emotion are left out.

    Raises:
        ValueError: no such file, or a line without text, without label or with an unknown one, with
            its number.
    """
    if not path.is_file():
        raise ValueError(
            f"no file at {path}. A folder of texts has {', '.join(FILES.values())}, each line"
            " `text;label`."
        )
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            text, _, label = line.rpartition(";")
            rows.append((text.strip(), label.strip(), f"{path}, line {number}"))
    return _checked(rows, str(path))


def read_hub(name: str) -> Corpus:
    """The splits train, validation and test of a dataset with columns text and label, an emotion or
    the number of a named class.

    Raises:
        ValueError: it cannot be loaded, a split or column is missing, or a class is unknown.
    """
    import datasets

    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # of many kinds: no network, no such name, no readable file
        raise ValueError(
            f"cannot load the dataset {name!r} ({type(error).__name__}: {first_line(error)}). It is"
            f" no folder with {FILES['train']} either. Give the folder of a downloaded snapshot, a"
            f" folder of text files, or {GRAMMAR!r}."
        ) from error
    missing = [split for split in SPLITS if split not in loaded]
    if missing:
        raise ValueError(
            f"the dataset {name!r} has no split {', '.join(missing)}; it has {', '.join(loaded)}."
        )
    return {split: _hub_split(loaded[split], f"{name}, {split}") for split in SPLITS}


def _hub_split(rows: Any, place: str) -> pd.DataFrame:
    lacking = [column for column in ("text", "label") if column not in rows.column_names]
    if lacking:
        raise ValueError(
            f"{place} has no column {', '.join(lacking)}; it has {', '.join(rows.column_names)}."
        )
    labels, names = rows["label"], getattr(rows.features["label"], "names", None)
    if names is not None:
        labels = [names[label] for label in labels]
    elif labels and not isinstance(labels[0], str):
        raise ValueError(
            f"the labels of {place} are numbers such as {labels[0]} without class names. Store a"
            " ClassLabel, or words."
        )
    pairs = zip(rows["text"], labels, strict=True)
    return _checked(
        [(text, label, f"{place}, row {k}") for k, (text, label) in enumerate(pairs)], place
    )


def _checked(rows: list[tuple[str, str, str]], place: str) -> pd.DataFrame:
    """The rows (text, label, where) as a table; every label is an emotion, every text has words."""
    for text, label, where in rows:
        if label not in (*EMOTIONS, *DROPPED):
            raise ValueError(
                f"{where}: the label {label!r} is not one of {', '.join((*EMOTIONS, *DROPPED))}."
            )
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}: there is no text, got {text!r}. Remove the row.")
    kept = [(text, label) for text, label, _ in rows if label in EMOTIONS]
    if not kept:
        raise ValueError(f"{place} has no text with one of the emotions {', '.join(EMOTIONS)}.")
    return pd.DataFrame(kept, columns=["text", "label"])
