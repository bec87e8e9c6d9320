"""Small evaluation tasks from labelled texts, in lm-evaluation-harness's own format: they need no
hub and no network.

Three columns, each with one subtask for every emotion:

* `emotion`: the first words of a text, and five ways to go on, one of each emotion; which one is
  the text's own? Accuracy; chance is 0.2. The first words of the grammar's texts say little of the
  emotion: a policy's own leaning towards an emotion shows.
* `ending`: which of four last parts, three of them from texts of other emotions, goes with what
  came before? Accuracy; chance is 0.25.
* `words`: write the last words of a text, by greedy decoding. Exact match.

Each task is a YAML file with its questions next to it, so that the folder can be moved, and a group
for each column, so that lm-eval's own command line can run them, too:
`lm_eval --include_path FOLDER --tasks local_emotion ...`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llm.benchmarks.columns import Column
from llm.data.corpus import EMOTIONS

PROMPT_WORDS = 4  # given in the column `emotion`, as in the prompts of the emotion study
LAST_WORDS = 5  # asked for in the column `ending`
WRITTEN_WORDS = 4  # to be written in the column `words`
CHOICES = 4  # in the column `ending`

_CHOOSE = """\
output_type: multiple_choice
doc_to_choice: choices
"""
_WRITE = f"""\
output_type: generate_until
generation_kwargs:
  until: ["\\n"]
  do_sample: false
  max_gen_toks: {WRITTEN_WORDS + 1}
"""
_TASK = """\
task: {name}
custom_dataset: !function llm.benchmarks.local_tasks.read_questions
test_split: test
{kind}doc_to_text: context
doc_to_target: answer
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
_GROUP = """\
group: {name}
task: [{tasks}]
aggregate_metric_list:
  - metric: {metric}
    weight_by_size: true
metadata:
  version: 1.0
"""
_METRICS = {"emotion": "acc", "ending": "acc", "words": "exact_match"}
LOCAL = {
    column: Column(tuple(f"local_{column}_{emotion}" for emotion in EMOTIONS), (metric,))
    for column, metric in _METRICS.items()
}

Words = list[str]
Pools = dict[str, list[Words]]  # of each emotion, its texts


def write_local_tasks(
    folder: Path, texts: pd.DataFrame, *, seed: int, questions: int = 100
) -> None:
    """Write the tasks of the columns LOCAL, and their questions, into a folder: what
    `evaluate_with_harness` takes as `include`.

    Args:
        folder: made where it is not there.
        texts: columns text and label (a word of EMOTIONS), held out from training, in random order.
        seed: of the wrong answers and of the place of the right one.
        questions: of each subtask; fewer where an emotion has fewer texts.

    Raises:
        ValueError: an emotion has no text that is long enough, or too few different ones for the
            wrong answers.
    """
    shortest = max(PROMPT_WORDS, LAST_WORDS, WRITTEN_WORDS) + 1
    pools: Pools = {emotion: [] for emotion in EMOTIONS}
    for text, label in zip(texts.text, texts.label, strict=True):
        if len(words := text.split()) >= shortest:
            pools[label].append(words)
    if empty := [emotion for emotion, pool in pools.items() if not pool]:
        raise ValueError(
            f"no text of {', '.join(empty)} with at least {shortest} words among {len(texts)}"
            " texts: questions need some of every emotion. Take more texts."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for column, make in (("emotion", _emotion), ("ending", _ending), ("words", _words)):
        names, metric = LOCAL[column].tasks, _METRICS[column]
        kind = _WRITE if column == "words" else _CHOOSE
        for k, (name, emotion) in enumerate(zip(names, EMOTIONS, strict=True)):
            rng = np.random.default_rng([seed, k])
            rows = [make(words, emotion, pools, rng) for words in pools[emotion][:questions]]
            (folder / f"{name}.jsonl").write_text(
                "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
            )
            (folder / f"{name}.yaml").write_text(
                _TASK.format(name=name, kind=kind, metric=metric), encoding="utf-8"
            )
        group = _GROUP.format(name=f"local_{column}", tasks=", ".join(names), metric=metric)
        (folder / f"local_{column}.yaml").write_text(group, encoding="utf-8")


def read_questions(config_source: str, **_: Any) -> dict[str, Any]:
    """The questions of a task, from the file next to its YAML file; called by lm-eval with the
    task's metadata.

    Raises:
        ValueError: the file is not there.
    """
    from datasets import Dataset

    path = Path(config_source).with_suffix(".jsonl")
    if not path.is_file():
        raise ValueError(
            f"no questions at {path}, next to the task's file: write the tasks again with"
            " `write_local_tasks`."
        )
    return {
        "test": Dataset.from_list(
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        )
    }


def _emotion(words: Words, emotion: str, pools: Pools, rng: np.random.Generator) -> dict[str, Any]:
    others = [other for other in EMOTIONS if other != emotion]
    return _question(words, slice(PROMPT_WORDS, None), [pools[other] for other in others], rng)


def _ending(words: Words, emotion: str, pools: Pools, rng: np.random.Generator) -> dict[str, Any]:
    others = rng.choice(
        [other for other in EMOTIONS if other != emotion], size=CHOICES - 1, replace=False
    )
    return _question(words, slice(-LAST_WORDS, None), [pools[other] for other in others], rng)


def _words(words: Words, emotion: str, pools: Pools, rng: np.random.Generator) -> dict[str, Any]:
    return {"context": " ".join(words[:-WRITTEN_WORDS]), "answer": " ".join(words[-WRITTEN_WORDS:])}


def _question(
    words: Words, part: slice, pools: Sequence[list[Words]], rng: np.random.Generator
) -> dict[str, Any]:
    """Which part is the text's own? One wrong answer from each pool, all answers different, the
    right one at a random place."""
    own = words[part]
    choices = [own]
    for pool in pools:
        candidates = [other[part] for other in pool if other[part] not in choices]
        if not candidates:
            raise ValueError(
                f"too few texts for a wrong answer that is not {' '.join(own)!r} as well: take more"
                " texts."
            )
        choices.append(candidates[int(rng.integers(len(candidates)))])
    order = rng.permutation(len(choices))
    return {
        "context": " ".join(words[: part.start]),
        "choices": [" ".join(choices[k]) for k in order],
        "answer": int(np.flatnonzero(order == 0)[0]),
    }
