"""lm-evaluation-harness as a library, on small tasks: its numbers against plain log-softmax sums,
and what can go wrong."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from lm_eval.tasks import TaskManager
from torch import nn

from llm.benchmarks.columns import Column
from llm.benchmarks.harness import SCORES, _prepare, evaluate_with_harness
from llm.benchmarks.local_tasks import LOCAL, write_local_tasks
from llm.data.corpus import EMOTIONS, generate_texts
from llm.models import language_model, word_tokenizer
from tests.launches import launch
from tests.llm.models import CHAT_TEMPLATE

POSITIONS = 18  # as many as the model of the emotion study has
ENDING = {"ending": LOCAL["ending"]}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return word_tokenizer(list(generate_texts(2000, 0).text), 8000)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> nn.Module:
    """Random weights, larger than usual: answers differ in their log-probabilities by far more than
    rounding."""
    made = language_model(None, tokenizer, width=16, layers=1, length=POSITIONS, seed=0)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.endswith("weight") and weight.ndim == 2:
                weight *= 20
    return made.train()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tasks")
    write_local_tasks(made, generate_texts(300, 1), seed=0, questions=12)
    return made


@pytest.fixture(scope="module")
def scores(model: nn.Module, tokenizer: Any, folder: Path) -> pd.DataFrame:
    return evaluate_with_harness(model, tokenizer, LOCAL, include=folder)


def questions(folder: Path, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()]


@torch.no_grad()
def logprob(model: nn.Module, tokenizer: Any, context: str, answer: str) -> float:
    """Of one answer, without batches and without padding."""
    start, ids = len(context.split()), tokenizer(f"{context} {answer}")["input_ids"]
    steps = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    return sum(float(steps[k - 1, ids[k]]) for k in range(start, len(ids)))


@torch.no_grad()
def greedy(model: nn.Module, tokenizer: Any, context: str, steps: int) -> str:
    ids = tokenizer(context)["input_ids"]
    for _ in range(steps):
        ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[len(context.split()) :], skip_special_tokens=True)


def test_choices_are_scored_by_their_log_probabilities(
    model: nn.Module, tokenizer: Any, folder: Path, scores: pd.DataFrame
) -> None:
    """Both columns in one call ask about the same texts, parted at other places: lm-eval's own
    model is wrong there."""
    rights = []
    for task in (*LOCAL["emotion"].tasks, *LOCAL["ending"].tasks):
        right = [
            int(
                np.argmax(
                    [logprob(model, tokenizer, row["context"], choice) for choice in row["choices"]]
                )
            )
            == row["answer"]
            for row in questions(folder, task)
        ]
        (row,) = scores[scores.task == task].itertuples()
        assert (row.metric, row.samples, row.value) == (
            "acc",
            len(right),
            pytest.approx(np.mean(right), abs=1e-12),
        )
        assert row.stderr == pytest.approx(np.std(right, ddof=1) / np.sqrt(len(right)), abs=1e-12)
        rights += right
    assert 0 < np.mean(rights) < 0.9


def test_written_words_are_those_of_greedy_decoding(
    model: nn.Module, tokenizer: Any, folder: Path, tmp_path: Path
) -> None:
    """On questions whose answers are the model's own words, or all but one of them are."""
    for source in folder.glob("local_words_*"):
        shutil.copy(source, tmp_path)
    task = LOCAL["words"].tasks[0]
    rows = [
        row | {"answer": greedy(model, tokenizer, row["context"], 5)}
        for row in questions(folder, task)
    ]
    rows[0]["answer"] += " again"
    (tmp_path / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = evaluate_with_harness(
        model, tokenizer, {"own": Column((task,), ("exact_match",))}, include=tmp_path
    )
    assert found.value.item() == pytest.approx(1 - 1 / len(rows))


def test_the_table_has_a_row_for_each_task(scores: pd.DataFrame) -> None:
    assert list(scores.columns) == SCORES
    assert list(scores.task) == [
        f"local_{column}_{emotion}"
        for column in ("emotion", "ending", "words")
        for emotion in EMOTIONS
    ]
    assert list(scores.column.unique()) == ["emotion", "ending", "words"]
    assert (scores.samples == 12).all()


def test_batches_and_repetition_change_nothing(
    model: nn.Module,
    tokenizer: Any,
    folder: Path,
    scores: pd.DataFrame,
    capfd: pytest.CaptureFixture[str],
) -> None:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    for size in (1, 7):
        again = evaluate_with_harness(model, tokenizer, LOCAL, include=folder, batch_size=size)
        pd.testing.assert_frame_equal(again, scores)
    assert (
        random.random(),
        np.random.rand(),
        float(torch.rand(())),
    ) == expected  # the caller's random numbers go on
    assert model.training  # as it was
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


def test_a_limit_takes_the_first_questions(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    found = evaluate_with_harness(
        model, tokenizer, ENDING, include=folder, limit=3, share=True
    )  # one process shares with none
    assert (found.samples == 3).all()


def test_a_model_in_a_folder(
    model: nn.Module, tokenizer: Any, folder: Path, scores: pd.DataFrame, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    tokenizer.save_pretrained(tmp_path)
    found = evaluate_with_harness(tmp_path, None, ENDING, include=folder)
    pd.testing.assert_frame_equal(found, scores[scores.column == "ending"].reset_index(drop=True))
    with pytest.raises(ValueError, match="cannot load the model"):
        evaluate_with_harness(tmp_path / "nowhere", tokenizer, ENDING, include=folder)


def test_code_of_a_model_is_not_run(tokenizer: Any, folder: Path, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    config = {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match="cannot load the model"):
        evaluate_with_harness(tmp_path, tokenizer, ENDING, include=folder)
    assert not (tmp_path / "ran").exists()


def test_answers_are_kept(
    model: nn.Module,
    tokenizer: Any,
    folder: Path,
    scores: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that is stopped goes on where it was: the second one asks the model for the rest
    only."""
    forward, asked = type(model).forward, []

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(1)
        if len(asked) == 3:
            raise RuntimeError("killed")
        return forward(self, *args, **kwargs)

    def evaluate() -> pd.DataFrame:
        return evaluate_with_harness(
            model, tokenizer, ENDING, include=folder, answers=tmp_path / "answers", batch_size=16
        )

    monkeypatch.setattr(type(model), "forward", counted)
    with pytest.raises(RuntimeError, match="killed"):
        evaluate()
    pd.testing.assert_frame_equal(
        evaluate(), scores[scores.column == "ending"].reset_index(drop=True)
    )
    rest = len(asked) - 3
    assert evaluate() is not None
    assert len(asked) - 3 == rest  # nothing was left to ask
    monkeypatch.setattr(type(model), "forward", forward)
    assert rest == -(-5 * 12 * 4 // 16) - 2


def test_prompts_in_the_chat_template(
    model: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*generate_texts(2000, 0).text, "<|user|> <|assistant|> <eos>"]
    tokenizer = word_tokenizer(texts, model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    with pytest.raises(ValueError, match="no chat template"):
        evaluate_with_harness(model, tokenizer, ENDING, include=folder, chat=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    read: list[str] = []
    encode = type(tokenizer).encode
    monkeypatch.setattr(
        type(tokenizer),
        "encode",
        lambda self, text, **more: read.append(text) or encode(self, text, **more),
    )
    evaluate_with_harness(
        model, tokenizer, ENDING, include=folder, chat=True, limit=1, max_length=POSITIONS
    )
    row = questions(folder, LOCAL["ending"].tasks[0])[0]
    assert f"<|user|> {row['context']} <eos> <|assistant|> {row['choices'][0]}" in [
        " ".join(text.split()) for text in read
    ]


def test_examples_are_drawn_with_the_seed(folder: Path) -> None:
    task = LOCAL["ending"].tasks[0]

    def prompt(seed: int, examples: int | None) -> str:
        made = _prepare({"ending": Column((task,), ("acc",), examples)}, folder, seed, None)[task]
        return made.fewshot_context(made.eval_docs[0], made.get_config("num_fewshot"))

    own = questions(folder, task)[0]["context"]
    assert prompt(0, None) == prompt(0, 0) == own
    assert prompt(0, 2).endswith(f"\n\n{own}") and prompt(0, 2).count("\n\n") == 2
    assert prompt(0, 2) == prompt(0, 2)
    assert len({prompt(seed, 2) for seed in range(5)}) > 1


def test_settings_of_written_answers(folder: Path) -> None:
    columns = {"words": LOCAL["words"]}
    for tokens, expected in ((None, 5), (2, 2)):
        made = _prepare(columns, folder, 0, tokens)[LOCAL["words"].tasks[0]]
        assert made.get_config("generation_kwargs")["max_gen_toks"] == expected


# ------------------------------------------------------------------------------------------- errors
def task_file(folder: Path, text: str) -> dict[str, Column]:
    (folder / "own.yaml").write_text(
        f"task: own\noutput_type: multiple_choice\ntest_split: test\n{text}"
    )
    return {"own": Column(("own",), ("acc",))}


def test_missing_data(
    model: nn.Module, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    columns = task_file(
        tmp_path,
        "dataset_path: someone/questions\ndataset_name: hard\ndoc_to_text: text\ndoc_to_target:"
        " answer",
    )
    monkeypatch.setattr(
        type(model), "forward", lambda *_, **__: pytest.fail("asked before all data are there")
    )
    with pytest.raises(
        ValueError,
        match=(
            r"'own'.*someone/questions hard.*in the cache only.*HF_HOME.*Nothing has been evaluated"
        ),
    ):
        evaluate_with_harness(model, tokenizer, columns, include=tmp_path)


def test_a_missing_package(model: nn.Module, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "utils.py").write_text("import no_such_package\n")
    with pytest.raises(ImportError, match=r"'own'.*no_such_package.*ifeval,math"):
        columns = task_file(tmp_path, "process_docs: !function utils.documents")
        evaluate_with_harness(model, tokenizer, columns, include=tmp_path)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (Column(("local_ending",), ("acc",)), "'local_ending' is a group of tasks: name its tasks"),
        (
            Column(("local_ending_joy",), ("acc_norm",)),
            "no metric 'acc_norm,none'; it has acc,none",
        ),
        (
            Column(("local_ending_joy",) * 2, ("acc",)),
            "local_ending_joy stand in several columns, or twice",
        ),
    ],
)
def test_columns_that_cannot_be(
    model: nn.Module, tokenizer: Any, folder: Path, column: Column, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_with_harness(model, tokenizer, {"column": column}, include=folder, limit=1)


def test_an_unknown_task(
    model: nn.Module, tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    # the list of all tasks takes ten seconds to read: here there are none but those of the folder
    monkeypatch.setattr(
        lm_eval.tasks,
        "TaskManager",
        lambda **more: TaskManager(**more | {"include_defaults": False}),
    )
    with pytest.raises(
        ValueError,
        match=r"'local_endig_joy' is no task of lm-eval nor of .*Similar names: local_ending_joy",
    ):
        evaluate_with_harness(
            model, tokenizer, {"x": Column(("local_endig_joy",), ("acc",))}, include=folder
        )
    with pytest.raises(ValueError, match="no folder of tasks at"):
        evaluate_with_harness(model, tokenizer, ENDING, include=folder / "nowhere")


# ---------------------------------------------------------------------------------------- processes
SCRIPT = """
import os, sys
from pathlib import Path
from llm.benchmarks.harness import evaluate_with_harness
from llm.benchmarks.local_tasks import LOCAL

model, tasks, out = sys.argv[1:]
rank = os.environ["RANK"]
given = {"include": Path(tasks)}
together = evaluate_with_harness(model, None, LOCAL, limit=9, share=True, **given)
together.to_csv(f"{out}/together-{rank}.csv")
alone = evaluate_with_harness(model, None, LOCAL, limit=5 + int(rank), **given)
alone.to_csv(f"{out}/alone-{rank}.csv")
"""


@pytest.mark.slow
def test_two_processes(model: nn.Module, tokenizer: Any, folder: Path, tmp_path: Path) -> None:
    """They divide the questions, nine of each task, and both get the table; without `share` each
    asks what it was told to."""
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "script.py").write_text(SCRIPT)
    script = [tmp_path / "script.py", tmp_path, folder, tmp_path]
    done = launch(script, tmp_path, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr[-4000:]
    truth = evaluate_with_harness(model, tokenizer, LOCAL, include=folder, limit=9)
    for rank in (0, 1):
        pd.testing.assert_frame_equal(
            pd.read_csv(tmp_path / f"together-{rank}.csv", index_col=0), truth
        )
        assert set(pd.read_csv(tmp_path / f"alone-{rank}.csv").samples) == {5 + rank}
