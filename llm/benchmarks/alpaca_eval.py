"""Files of AlpacaEval (github.com/tatsu-lab/alpaca_eval): instructions in, model outputs out, and
the results that it writes.

The evaluation itself, by its own package and a paid judge, runs elsewhere:

    alpaca_eval --model_outputs outputs.json --output_path results

None of it has run here; formats are those of the files in its repository.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

INSTRUCTION_COLUMNS = ("dataset", "instruction")
RESULT_COLUMNS = (
    "generator",
    "win_rate",
    "stderr",
    "length_controlled_win_rate",
    "length_controlled_stderr",
    "n",
)
LEADERBOARD = {  # its column -> ours
    "win_rate": "win_rate",
    "standard_error": "stderr",
    "length_controlled_winrate": "length_controlled_win_rate",
    "lc_standard_error": "length_controlled_stderr",
    "n_total": "n",
}


def read_instructions(path: str | Path) -> pd.DataFrame:
    """The instructions of alpaca_eval.json: columns dataset, instruction, in the order of the file.

    Raises:
        ValueError: it is not a list of objects with these keys.
    """
    rows = _records(path, INSTRUCTION_COLUMNS)
    return pd.DataFrame(
        {column: [str(row[column]) for row in rows] for column in INSTRUCTION_COLUMNS}
    )


def write_outputs(
    path: str | Path, instructions: pd.DataFrame, completions: Sequence[str], generator: str
) -> None:
    """What `alpaca_eval --model_outputs` reads: for each instruction the answer of the model that
    is called `generator`.

    Args:
        instructions: columns dataset, instruction, as `read_instructions` gives them.

    Raises:
        ValueError: there is not one completion for each instruction, or the model has no name.
    """
    if len(completions) != len(instructions):
        raise ValueError(
            f"there are {len(instructions)} instructions and {len(completions)} completions: give"
            " one for each."
        )
    if not generator:
        raise ValueError("the model needs a name (generator), under which AlpacaEval lists it.")
    table = instructions[list(INSTRUCTION_COLUMNS)].assign(
        output=list(completions), generator=generator
    )
    Path(path).write_text(
        json.dumps(table.to_dict("records"), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def read_results(path: str | Path) -> pd.DataFrame:
    """Results of AlpacaEval, one row for each model: of leaderboard.csv, or of annotations.json by
    their win rate.

    Columns generator, win_rate, stderr, length_controlled_win_rate, length_controlled_stderr
    (percent), n (comparisons). A leaderboard also has the models that AlpacaEval brings along. The
    length-controlled rate comes from a regression of its own: NaN for annotations, and where a
    leaderboard does not have it.

    Raises:
        ValueError: the file is neither of the two, or has no or impossible preferences.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".csv", ".json"):
        raise ValueError(
            f"{path} is neither a leaderboard (.csv) nor annotations (.json) of AlpacaEval."
        )
    table = _leaderboard(path) if suffix == ".csv" else _annotations(path)
    return table.reindex(columns=list(RESULT_COLUMNS)).astype({"n": int}).reset_index(drop=True)


def _leaderboard(path: str | Path) -> pd.DataFrame:
    table = pd.read_csv(path, index_col=0)
    missing = [
        column
        for column in ("win_rate", "standard_error", "n_total")
        if column not in table.columns
    ]
    if missing:
        raise ValueError(
            f"{path} is no leaderboard of AlpacaEval: it has no column {', '.join(missing)}."
        )
    return table.rename(columns=LEADERBOARD).rename_axis("generator").reset_index()


def _annotations(path: str | Path) -> pd.DataFrame:
    """The win rate of generator_2 against generator_1: the mean of preference - 1 in percent, as
    AlpacaEval computes it."""
    rows = _records(path, ("generator_2", "preference"))
    table = pd.DataFrame(
        {
            "generator": [row["generator_2"] for row in rows],
            "preference": [row["preference"] for row in rows],
        }
    )
    table["preference"] = pd.to_numeric(table.preference).replace(
        0, 1.5
    )  # 0 is an old way to write a draw
    answered = table.dropna(subset="preference")  # the judge's reply could not be read
    bad = answered[~answered.preference.between(1, 2)]
    if len(bad) or answered.empty:
        raise ValueError(
            f"{path}: {len(bad)} of {len(table)} preferences are not between 1 (the reference wins)"
            " and 2 (the model wins)"
            f"{f', the first is {bad.preference.iloc[0]}' if len(bad) else ', none could be read'}."
        )
    wins = answered.assign(win=100 * (answered.preference - 1)).groupby("generator", sort=False).win
    return pd.DataFrame(
        {"win_rate": wins.mean(), "stderr": wins.sem(), "n": wins.size()}
    ).reset_index()


def _records(path: str | Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): download or write it again.") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} must hold a list of objects, as AlpacaEval writes them.")
    for i, row in enumerate(rows):
        missing = [key for key in keys if key not in row]
        if missing:
            raise ValueError(
                f"{path}: object {i} (from 0) has no {', '.join(missing)}; it has {', '.join(row)}."
            )
    return rows
