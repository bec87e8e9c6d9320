"""Small files with the keys and columns of AlpacaEval's own; their numbers computed by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llm.benchmarks.alpaca_eval import read_instructions, read_results, write_outputs

REFERENCE = [
    {
        "dataset": "helpful_base",
        "instruction": "Name a b\u00ebach.",
        "output": "Ipanema",
        "generator": "text_davinci_003",
    },
    {
        "dataset": "koala",
        "instruction": 'Say "hi"\nplease',
        "output": "hi",
        "generator": "text_davinci_003",
    },
]
# the columns of weighted_alpaca_eval_gpt4_turbo/leaderboard.csv in AlpacaEval's repository; the
# numbers are made up
LEADERBOARD = """\
,win_rate,standard_error,n_wins,n_wins_base,n_draws,n_total,discrete_win_rate,mode,avg_length,length_controlled_winrate,lc_standard_error
other,75.25,1.5,600,200,5,805,74.8,community,1994,70.5,0.25
ours,40.5,1.25,320.0,480,5,805,40.1,community,1200,45.75,
"""


def write(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def annotation(preference: float | None, model: str = "ours") -> dict[str, Any]:
    outputs = {
        "output_1": "a",
        "generator_1": "gpt4_1106_preview",
        "output_2": "b",
        "generator_2": model,
    }
    more = {
        "annotator": "weighted_alpaca_eval_gpt4_turbo",
        "price_per_example": 0.01,
        "raw_completion": {"text": "M"},
    }
    return {"instruction": "c", "dataset": "koala", "preference": preference} | outputs | more


def test_outputs_are_what_alpaca_eval_reads(tmp_path: Path) -> None:
    instructions = read_instructions(write(tmp_path / "alpaca_eval.json", REFERENCE))
    write_outputs(tmp_path / "outputs.json", instructions, ["Copacabana \u2600", "hello"], "ours")
    assert json.loads((tmp_path / "outputs.json").read_text(encoding="utf-8")) == [
        {
            "dataset": "helpful_base",
            "instruction": "Name a b\u00ebach.",
            "output": "Copacabana \u2600",
            "generator": "ours",
        },
        {
            "dataset": "koala",
            "instruction": 'Say "hi"\nplease',
            "output": "hello",
            "generator": "ours",
        },
    ]
    assert list(pd.read_json(tmp_path / "outputs.json").columns) == [
        "dataset",
        "instruction",
        "output",
        "generator",
    ]


def test_the_leaderboard(tmp_path: Path) -> None:
    (tmp_path / "leaderboard.csv").write_text(LEADERBOARD)
    table = read_results(tmp_path / "leaderboard.csv")
    assert table.iloc[0].tolist() == ["other", 75.25, 1.5, 70.5, 0.25, 805]
    assert table.iloc[1].tolist()[:4] == ["ours", 40.5, 1.25, 45.75]
    assert math.isnan(table.length_controlled_stderr[1])
    assert table.n.dtype.kind == "i"
    first = "\n".join(
        ",".join(line.split(",")[:9]) for line in LEADERBOARD.splitlines()
    )  # AlpacaEval 1 has no length control
    (tmp_path / "leaderboard.csv").write_text(first)
    assert read_results(tmp_path / "leaderboard.csv").length_controlled_win_rate.isna().all()


def test_annotations_by_hand(tmp_path: Path) -> None:
    """Wins 1, 0, 0.5 (an old draw), 0.25; one reply that could not be read: mean 0.4375, variance
    0.546875 / 3."""
    rows = [annotation(x) for x in (2.0, 1.0, 0, 1.25, None)] + [
        annotation(1.5, "second"),
        annotation(1.9, "second"),
    ]
    table = read_results(write(tmp_path / "annotations.json", rows))
    assert table.generator.tolist() == ["ours", "second"]
    assert table.n.tolist() == [4, 2]
    assert table.win_rate.tolist() == pytest.approx([43.75, 70.0])
    assert table.stderr.tolist() == pytest.approx([100 * math.sqrt(0.546875 / 3 / 4), 20.0])
    assert table.length_controlled_win_rate.isna().all()


def test_bad_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(ValueError, match=r"2 of 3 preferences are not between 1 .* the first is 3"):
        read_results(write(path, [annotation(3), annotation(1), annotation(0.5)]))
    with pytest.raises(ValueError, match="none could be read"):
        read_results(write(path, [annotation(None)]))
    with pytest.raises(
        ValueError, match=r"object 1 \(from 0\) has no preference; it has generator_2"
    ):
        read_results(write(path, [annotation(1), {"generator_2": "ours"}]))
    with pytest.raises(ValueError, match="has no dataset; it has instruction"):
        read_instructions(write(path, [{"instruction": "a"}]))
    with pytest.raises(ValueError, match="must hold a list of objects"):
        read_instructions(write(path, {"instruction": "a"}))
    path.write_text("[{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_instructions(path)
    with pytest.raises(ValueError, match=r"neither a leaderboard \(.csv\) nor annotations"):
        read_results(tmp_path / "a.txt")
    (tmp_path / "a.csv").write_text("name,win_rate\nours,1\n")
    with pytest.raises(ValueError, match="has no column standard_error, n_total"):
        read_results(tmp_path / "a.csv")
    instructions = pd.DataFrame(REFERENCE)
    with pytest.raises(ValueError, match="there are 2 instructions and 1 completions"):
        write_outputs(path, instructions, ["a"], "ours")
    with pytest.raises(ValueError, match="the model needs a name"):
        write_outputs(path, instructions, ["a", "b"], "")
