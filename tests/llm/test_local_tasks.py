"""The questions of the local tasks: right answers, different wrong ones, the same for the same
seed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from lm_eval.tasks import TaskManager

from llm.benchmarks.local_tasks import LOCAL, write_local_tasks
from llm.data.corpus import EMOTIONS, generate_texts

TEXTS = generate_texts(400, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tasks")
    write_local_tasks(made / "tasks", TEXTS, seed=0, questions=30)
    return made / "tasks"


def questions(folder: Path, column: str) -> dict[str, list[dict[str, Any]]]:
    return {
        emotion: [
            json.loads(line)
            for line in (folder / f"local_{column}_{emotion}.jsonl").read_text().splitlines()
        ]
        for emotion in EMOTIONS
    }


def test_the_right_answer_completes_a_text_of_the_emotion(folder: Path) -> None:
    label = TEXTS.drop_duplicates("text").set_index("text").label
    for column in ("emotion", "ending", "words"):
        for emotion, rows in questions(folder, column).items():
            assert len(rows) == 30
            for row in rows:
                answer = row["answer"] if column == "words" else row["choices"][row["answer"]]
                texts = TEXTS[TEXTS.text == f"{row['context']} {answer}"]
                assert emotion in set(texts.label), row
    assert label.nunique() == 5


def test_wrong_answers_are_of_other_emotions(folder: Path) -> None:
    """In the column emotion one of each; the answers differ, and the right one is not always at the
    same place."""
    for column, count, words in (("emotion", 5, None), ("ending", 4, 5)):
        ends = {
            emotion: {
                " ".join(text.split()[4:] if words is None else text.split()[-words:])
                for text in part.text
            }
            for emotion, part in TEXTS.groupby("label")
        }
        places = set()
        for emotion, rows in questions(folder, column).items():
            for row in rows:
                assert len(set(row["choices"])) == count
                places.add(row["answer"])
                for k, choice in enumerate(row["choices"]):
                    if k != row["answer"]:
                        assert any(choice in ends[other] for other in EMOTIONS if other != emotion)
                if column == "emotion":
                    assert all(
                        any(choice in ends[other] for choice in row["choices"])
                        for other in EMOTIONS
                    )
        assert places == set(range(count))


def test_the_seed_decides(folder: Path, tmp_path: Path) -> None:
    def contents(where: Path) -> dict[str, str]:
        return {path.name: path.read_text() for path in where.iterdir()}

    write_local_tasks(tmp_path / "same", TEXTS, seed=0, questions=30)
    write_local_tasks(tmp_path / "other", TEXTS, seed=1, questions=30)
    assert contents(tmp_path / "same") == contents(folder)
    assert contents(tmp_path / "other") != contents(folder)


def test_lm_eval_reads_them_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    manager = TaskManager(include_path=str(moved), include_defaults=False)
    assert manager.all_subtasks == sorted(
        task for column in LOCAL.values() for task in column.tasks
    )
    assert manager.all_groups == [f"local_{column}" for column in LOCAL]
    loaded = manager.load(["local_ending"])["tasks"]
    assert set(loaded) == set(LOCAL["ending"].tasks)
    assert all(len(task.eval_docs) == 30 for task in loaded.values())
    (moved / "local_words_joy.jsonl").unlink()
    with pytest.raises(ValueError, match=r"no questions at .*local_words_joy.jsonl"):
        manager.load(["local_words_joy"])


def test_too_few_texts(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="no text of love, fear with at least 6 words among 3 texts"
    ):
        labels = ["joy", "anger", "sadness"]
        write_local_tasks(
            tmp_path, pd.DataFrame({"text": ["a b c d e f"] * 3, "label": labels}), seed=0
        )
    with pytest.raises(
        ValueError, match="too few texts for a wrong answer that is not 'e f' as well"
    ):
        write_local_tasks(
            tmp_path, pd.DataFrame({"text": ["a b c d e f"] * 5, "label": EMOTIONS}), seed=0
        )
