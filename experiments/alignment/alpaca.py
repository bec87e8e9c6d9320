"""AlpacaEval: the answers of policies to its instructions, in its format, and the win rates that it
gave them."""

import json
from functools import partial
from pathlib import Path

import pandas as pd

from experiments.alignment.completions import write_completions
from experiments.alignment.prompts import FILES, read_prompts
from experiments.alignment.study import Study
from experiments.alignment.training import Run
from experiments.engine.ranks import rank
from experiments.engine.stages import Stage, content, derived_seed, stage
from experiments.engine.store import write_table, write_text
from llm.benchmarks.alpaca_eval import read_instructions, read_results, write_outputs
from llm.data.chat import as_messages
from llm.models import pretrained_tokenizer

COLUMN = "AlpacaEval"
PROMPTS, TABLE = "prompts.jsonl", "instructions.parquet"


def instructions_stage(study: Study, path: Path | None, prompts: Stage) -> Stage:
    """Instructions as AlpacaEval has them, and as prompts; where no file is given, the test prompts
    stand for them."""
    made_from = {
        "file": content(path),
        "prompts": prompts.digest,
        "code": study.code,
        **study.models.made_from,
    }
    make = partial(_make, study=study, path=path, prompts=prompts.folder / FILES["test"])
    return stage(study.root, "instructions", made_from, make)


def _make(folder: Path, study: Study, path: Path | None, prompts: Path) -> None:
    if rank() != 0:
        return
    if path is None:
        asked = read_prompts(prompts)
        texts = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in asked]
        table = pd.DataFrame({"dataset": "test prompts", "instruction": texts})
    else:
        table = read_instructions(path)
        tokenizer = pretrained_tokenizer(
            study.models.policy, trust_remote_code=study.options.trust_remote_code
        )
        asked = [
            as_messages(text) if tokenizer.chat_template else text for text in table.instruction
        ]
    write_table(table, folder / TABLE)
    write_text(
        "".join(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in asked),
        folder / PROMPTS,
    )


def write_answers(folder: Path, *, study: Study, run: Run, policy: str, instructions: Path) -> None:
    """The policy's answers to the instructions, outputs.json in the folder: what
    `alpaca_eval --model_outputs` takes."""
    answers = write_completions(
        folder,
        policy=policy,
        prompts=instructions / PROMPTS,
        count=1,
        sizes=study.sizes,
        seed=derived_seed(study.options.seed, 28, run.replicate),
        trust_remote_code=study.options.trust_remote_code,
        name="answers",
    )
    if rank() == 0:
        table = pd.read_parquet(instructions / TABLE)
        write_outputs(
            folder / "outputs.json",
            table,
            list(pd.read_parquet(answers).text.str.strip()),
            generator(run),
        )


def generator(run: Run) -> str:
    """The name of a policy in AlpacaEval's files."""
    return f"{run.method} seed {run.replicate}"


def win_rates(path: Path, compared: list[Run]) -> pd.DataFrame:
    """AlpacaEval's win rates of our policies, as rows of the table of benchmarks, as shares.

    Raises:
        ValueError: the results name none of them.
    """
    results = read_results(path).set_index("generator")
    found = [run for run in compared if generator(run) in results.index]
    if not found:
        names = ", ".join(map(str, results.index[:5]))
        raise ValueError(
            f"{path} has results of {names}, and of none of ours, such as"
            f" {generator(compared[0])!r}."
        )
    rows = [
        {
            "method": run.method,
            "seed": run.replicate,
            "column": COLUMN,
            "task": "alpaca_eval",
            "metric": "win_rate",
            "value": results.win_rate[generator(run)] / 100,
            "stderr": results.stderr[generator(run)] / 100,
            "samples": results.n[generator(run)],
        }
        for run in found
    ]
    return pd.DataFrame(rows)
