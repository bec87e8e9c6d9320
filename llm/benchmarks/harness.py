"""Benchmarks by lm-evaluation-harness, called as a library.

lm-eval is slow to import and optional (`pip install 'prefdro[evaluation]'`): it is imported where
it is used. Its list of all its tasks, which tasks of a folder (`include`) do not need, takes about
ten seconds to read, once in a process.

The leaderboard needs more packages, `pip install 'lm-eval[ifeval,math]'`. Data come from the hub,
or from the cache of the `datasets` package (HF_HOME) where HF_HUB_OFFLINE=1 is set. GPQA is gated:
accept its terms on the hub and log in. IFEval also fetches NLTK's punkt_tab, which has to be in
NLTK_DATA where there is no network.
"""

import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from torch import nn

from llm.benchmarks.columns import Column
from llm.models import first_line, load_language_model, load_tokenizer
from llm.special_ids import settle_special_ids

SCORES = ["task", "column", "metric", "value", "stderr", "samples"]
# warnings of lm-eval about what is done here on purpose
_EXPECTED = (
    "Custom kwargs can be passed",
    "model kwarg is not of type `str`",
    "Passed an already-initialized model",
    "Overwriting default num_fewshot",
    "passing in an `attention_mask`",  # right padding under causal attention needs none
)


def evaluate_with_harness(
    model: nn.Module | str | Path,
    tokenizer: Any,
    columns: Mapping[str, Column],
    *,
    include: Path | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    chat: bool = False,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    answers: Path | None = None,
    share: bool = False,
    progress: bool = False,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> pd.DataFrame:
    """One row for each task: columns task, column, metric, value, stderr (NaN where lm-eval has
    none), samples (questions).

    The same arguments give the same table: examples in prompts are drawn with the seed, answers are
    greedy, and the caller's random numbers are left as they were. All tasks are prepared before the
    model answers the first question.

    Args:
        model: a causal language model, used where it lies; or a folder or hub name, loaded onto
            this process's GPU if it has one.
        tokenizer: of the model; None to load that of the folder or name.
        columns: `llm.benchmarks.columns.LEADERBOARD`, `AOT`, `llm.benchmarks.local_tasks.LOCAL`, or
            your own.
        include: a folder of further tasks in lm-eval's format. A task may run Python code that lies
            in that folder.
        limit: only that many questions of each task, the first ones; for a trial.
        batch_size: of one process. It changes nothing but rounding.
        chat: put prompts into the tokenizer's chat template, examples as turns of the conversation.
        max_length: longest prompt and answer, in tokens; what is longer loses its beginning, with a
            warning. None: the model's.
        max_new_tokens: longest answer that is written; None for what each task says.
        answers: a file (path without ending) where the model's answers are kept, so that an
            evaluation that was killed goes on where it was. The questions are the key: a file
            belongs to one model with one set of weights.
        share: the processes of one launch (`accelerate launch`, `torchrun`) divide the questions
            among them; every one has to make this call, with its own copy of the model, and every
            one gets the whole table.
        progress: show lm-eval's progress bars.
        dtype, trust_remote_code: of a model that is loaded here; code that comes with a model is
            not run unless allowed.

    Raises:
        ValueError: an unknown task or metric, data that cannot be had, a model that cannot be
            loaded, no chat template.
        ImportError: lm-eval, or a package that a task needs, is not installed.
    """
    _require()
    with _alone(seed), _quiet(progress):
        tasks = _prepare(columns, include, seed, max_new_tokens)
        if isinstance(model, (str, Path)):
            model, tokenizer = _load(str(model), tokenizer, dtype, trust_remote_code)
        if chat and not tokenizer.chat_template:
            raise ValueError(
                "the tokenizer has no chat template: leave `chat` off, or take the tokenizer of a"
                " chat model."
            )
        training = model.training
        try:
            results = _run(
                _wrapped(model, tokenizer, batch_size, max_length, answers, share),
                tasks,
                limit,
                chat,
            )
        finally:
            model.train(training)
        table = None if results is None else _table(results, columns, tasks)
        return _from_first(table) if share else table


def _require() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"lm-eval is not installed ({error}): pip install 'prefdro[evaluation]'."
        ) from error


@contextmanager
def _alone(seed: int) -> Iterator[None]:
    """Inside, all random numbers come from the seed; afterwards those of the caller go on as if
    nothing had been."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            _seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)


@contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """Only warnings from lm-eval, without those expected; no progress bars unless wanted."""
    import datasets
    from lm_eval.api import model, task
    from lm_eval.models import huggingface
    from tqdm import tqdm

    def hidden(*args: Any, **kwargs: Any) -> Any:
        return tqdm(*args, **kwargs | {"disable": True})

    def unexpected(record: logging.LogRecord) -> bool:
        return not any(words in record.getMessage() for words in _EXPECTED)

    modules = (model, task, huggingface)
    names = ("lm_eval", "transformers.modeling_utils", *(module.__name__ for module in modules))
    loggers = [logging.getLogger(name) for name in names]
    level, bars = loggers[0].level, datasets.are_progress_bars_disabled()
    with ExitStack() as stack:
        loggers[0].setLevel(logging.WARNING)
        for logger in loggers:
            logger.addFilter(unexpected)
        if not progress:
            datasets.disable_progress_bars()
            for module in modules:
                stack.enter_context(mock.patch.object(module, "tqdm", hidden))
        try:
            yield
        finally:
            loggers[0].setLevel(level)
            for logger in loggers:
                logger.removeFilter(unexpected)
            if not bars:
                datasets.enable_progress_bars()


# -------------------------------------------------------------------------------------------- tasks
def _prepare(
    columns: Mapping[str, Column], include: Path | None, seed: int, max_new_tokens: int | None
) -> dict[str, Any]:
    """Every task of the columns by its name, with its data, examples and settings."""
    names = [name for column in columns.values() for name in column.tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"the tasks {', '.join(twice)} stand in several columns, or twice in one: evaluate them"
            " in another call."
        )
    manager = _manager(names, include)
    tasks = {}
    for column in columns.values():
        for name in column.tasks:
            _seed(
                seed
                # some tasks shuffle their answers when they are made: the order shall not depend on
                # other tasks
            )
            task = tasks[name] = _task(manager, name)
            examples = (
                column.examples if column.examples is not None else task.get_config("num_fewshot")
            )
            task.set_config(key="num_fewshot", value=examples or 0)
            task.set_fewshot_seed(seed=seed)
            if max_new_tokens is not None and task.get_config("output_type") == "generate_until":
                task.set_config(
                    key="generation_kwargs", value={"max_gen_toks": max_new_tokens}, update=True
                )
    return tasks


def _manager(names: list[str], include: Path | None) -> Any:
    """lm-eval's list of tasks: that of the folder if it has them all, otherwise all of lm-eval's
    with those of the folder."""
    from lm_eval.tasks import TaskManager

    if include is not None and not include.is_dir():
        raise ValueError(f"no folder of tasks at {include}.")
    manager = TaskManager(include_path=include, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = _all_tasks() if include is None else TaskManager(include_path=include)
    for name in names:
        if name not in manager.all_subtasks:
            near = get_close_matches(name, manager.all_subtasks)
            kind = (
                "a group of tasks: name its tasks"
                if name in manager.all_tasks
                else f"no task of lm-eval{_of(include)}"
            )
            raise ValueError(
                f"{name!r} is {kind}." + (f" Similar names: {', '.join(near)}." if near else "")
            )
    return manager


def _of(include: Path | None) -> str:
    return "" if include is None else f" nor of {include}"


@cache
def _all_tasks() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _task(manager: Any, name: str) -> Any:
    import datasets

    try:
        return manager.load([name])["tasks"][name]
    except ImportError as error:
        raise ImportError(
            f"the task {name!r} of lm-eval needs a package that is not installed"
            f" ({first_line(error)}). For the leaderboard: pip install 'lm-eval[ifeval,math]'."
            " Nothing has been evaluated yet."
        ) from error
    except Exception as error:  # of many kinds: no network, a gated data set, no such file
        config = manager.task_index[name].cfg or {}
        data = " ".join(
            str(config[key]) for key in ("dataset_path", "dataset_name") if config.get(key)
        )
        where = (
            "in the cache only, as HF_HUB_OFFLINE is set"
            if datasets.config.HF_HUB_OFFLINE
            else "on the hub and in the cache"
        )
        raise ValueError(
            f"cannot prepare the task {name!r} of lm-eval: {type(error).__name__}:"
            f" {first_line(error)}. Its data, {data or 'made by the task'}, are looked for {where}"
            f" ({datasets.config.HF_DATASETS_CACHE}). Where there is no network, fetch them on"
            " another machine with the same HF_HOME, or copy that cache; for gated data accept the"
            " terms and run `hf auth login`. Nothing has been evaluated yet."
        ) from error


# -------------------------------------------------------------------------------------------- model
def _load(name: str, tokenizer: Any, dtype: str, trust_remote_code: bool) -> tuple[nn.Module, Any]:
    """The model and, where none is given, its tokenizer."""
    import os

    if tokenizer is None:
        tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    model = load_language_model(name, dtype=dtype, trust_remote_code=trust_remote_code)
    settle_special_ids(model, tokenizer)
    return (
        model.to(
            f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
        ),
        tokenizer,
    )


def _wrapped(
    model: nn.Module,
    tokenizer: Any,
    batch_size: int,
    max_length: int | None,
    answers: Path | None,
    share: bool,
) -> Any:
    from lm_eval.api.model import CachingLM

    wrapped = _kind_of_model()(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=batch_size,
        max_length=max_length,
    )
    if share:
        from accelerate import Accelerator

        # lm-eval leaves it to the caller to divide the questions among the processes where it did
        # not load the model itself
        accelerator = wrapped.accelerator = Accelerator()
        wrapped._rank, wrapped._world_size = accelerator.process_index, accelerator.num_processes
    if answers is None:
        return wrapped
    answers.parent.mkdir(parents=True, exist_ok=True)
    return CachingLM(wrapped, f"{answers}-{wrapped.rank}-of-{wrapped.world_size}.db")


@cache
def _kind_of_model() -> Any:
    from lm_eval.models.huggingface import HFLM

    class Model(HFLM):
        """lm-eval's model, with one repair.

        To save time HFLM (0.4.13) looks at the same tokens once. Where they are parted into
        question and answer at two places, as can be in different tasks, it then scores the shorter
        answer at the wrong positions. Answers of one length at a time are safe.
        """

        def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[Any]:
            by_length: dict[int, list[int]] = {}
            for k, (_, _, answer) in enumerate(requests):
                by_length.setdefault(len(answer), []).append(k)
            found: dict[int, Any] = {}
            for rows in by_length.values():
                found |= zip(
                    rows,
                    super()._loglikelihood_tokens([requests[k] for k in rows], **kwargs),
                    strict=True,
                )
            return [found[k] for k in range(len(requests))]

    return Model


def _run(model: Any, tasks: dict[str, Any], limit: int | None, chat: bool) -> Any:
    """lm-eval's results; None in all processes but the first.

    Not by `simple_evaluate`, which after every call collects what is installed, for more than a
    second.
    """
    from lm_eval import evaluate

    return evaluate(
        lm=model,
        task_dict={"tasks": tasks},
        limit=limit,
        log_samples=False,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
    )


def _from_first(table: pd.DataFrame | None) -> pd.DataFrame:
    """The table of the first process, in all of them."""
    from accelerate.utils import broadcast_object_list

    (shared,) = broadcast_object_list([table])
    return shared


# ------------------------------------------------------------------------------------------ results
def _table(results: Any, columns: Mapping[str, Column], tasks: dict[str, Any]) -> pd.DataFrame:
    rows = []
    for name, column in columns.items():
        for task in column.tasks:
            found = results["results"][task]
            values, errors = zip(
                *(_number(found, task, metric) for metric in column.metrics), strict=True
            )
            metric = (
                column.metrics[0] if len(values) == 1 else f"mean of {' and '.join(column.metrics)}"
            )
            # the metrics of one task are not independent: there is no standard error of their mean
            error = errors[0] if len(errors) == 1 else float("nan")
            rows.append(
                (
                    task,
                    name,
                    metric,
                    float(np.mean(values)),
                    error,
                    int(results["n-samples"][task]["effective"]),
                )
            )
    return pd.DataFrame(rows, columns=SCORES)


def _number(found: Mapping[str, Any], task: str, metric: str) -> tuple[float, float]:
    """A metric of a task and its standard error."""
    name, _, kind = metric.partition(",")
    kind = kind or "none"
    if (key := f"{name},{kind}") not in found:
        known = [key for key in found if "," in key and "_stderr," not in key]
        raise ValueError(f"the task {task!r} has no metric {key!r}; it has {'; '.join(known)}.")
    error = found.get(f"{name}_stderr,{kind}", "N/A")
    return float(found[key]), float("nan") if isinstance(error, str) else float(error)
