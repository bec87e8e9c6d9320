"""The notebooks: every source runs, and every .ipynb beside it is that source, executed."""

from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pandas as pd
import pytest

from experiments.execute_notebooks import FOLDER, execute, main, read
from tests.warm import Warm

SOURCES = sorted(FOLDER.glob("*.py"))
NAMES = [source.stem for source in SOURCES]
KILOBYTES = 300


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    """Runs a source as a script, away from the repository."""
    process = Warm()
    yield process
    process.close()


@pytest.fixture
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("output")


def test_there_are_nine() -> None:
    assert [name[:2] for name in NAMES] == [f"{k:02d}" for k in range(1, 10)]


@pytest.mark.some(3)
@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_the_source_runs(source: Path, tmp_path: Path, warm: Warm, output: Path) -> None:
    done = warm.run(source, tmp_path, output)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(tmp_path.iterdir())  # it leaves nothing behind


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_the_notebook_is_its_source_executed(source: Path) -> None:
    """If this fails: `python -m experiments.execute_notebooks`, and look at the result."""
    path = source.with_suffix(".ipynb")
    written, cells = nbformat.read(path, as_version=4), jupytext.read(source).cells
    nbformat.validate(written)
    assert [(cell.cell_type, cell.source) for cell in written.cells] == [
        (cell.cell_type, cell.source) for cell in cells
    ]
    code = [cell for cell in written.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < KILOBYTES * 1024


@pytest.mark.some(1)
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_your_own_pairs_are_read(ending: str, tmp_path: Path, warm: Warm, output: Path) -> None:
    """With a file of one's own, also as held-out pairs of the same population: those show no
    shift."""
    rng = np.random.default_rng(0)
    answers = [("word " * rng.integers(3, 9), "a " * rng.integers(1, 6) + "b?") for _ in range(80)]
    for k in range(0, 80, 5):  # pairs that no policy can separate
        answers[k] = answers[k][::-1]
    rows = pd.DataFrame(
        [{"prompt": f"say {k}", "chosen": a, "rejected": b} for k, (a, b) in enumerate(answers)]
    )
    path = tmp_path / f"mine.{ending}"
    if ending == "parquet":
        rows.to_parquet(path)
    elif ending == "csv":
        rows.to_csv(path, index=False)
    else:  # the prompt in the answers, as in HH-RLHF
        whole = {
            name: "\n\nHuman: " + rows.prompt + "\n\nAssistant: " + rows[name]
            for name in ("chosen", "rejected")
        }
        pd.DataFrame(whole).to_json(path, orient="records", lines=ending == "jsonl")
    done = warm.run(
        FOLDER / "07_your_data.py",
        tmp_path,
        output,
        PREFDRO_PAIRS=str(path),
        PREFDRO_HELD_OUT=str(path),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"80 pairs from {path}, 80 held out" in done.stdout and "annotators" not in done.stdout
    assert all(
        line.split()[5] == "none"
        for line in done.stdout.splitlines()
        if line.split()[:1] in (["kl"], ["w1"], ["w2"])
    )


def test_a_file_of_another_form_is_refused(tmp_path: Path, warm: Warm, output: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "say", "chosen": ["a"], "rejected": "b"}\n')
    done = warm.run(FOLDER / "07_your_data.py", tmp_path, output, PREFDRO_PAIRS=str(path))
    assert done.returncode != 0 and "strings and conversations are mixed" in done.stderr


def test_executing_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "small.py"
    source.write_text(
        "# %% [markdown]\n# Text.\n\n# %%\nfrom ipywidgets import interact\n\ninteract(lambda k:"
        " print(k), k=3);\n\n# %%\n1 + 1\n"
    )
    first = execute(source, tmp_path).read_bytes()
    assert execute(source, tmp_path).read_bytes() == first
    cells = nbformat.read(tmp_path / "small.ipynb", as_version=4).cells
    assert [cell.id for cell in cells] == ["small-0", "small-1", "small-2"]
    assert (
        cells[2].outputs[0].data["text/plain"] == "2"
        and "interactive" in cells[1].outputs[0].data["text/plain"]
    )


def test_an_unknown_notebook_is_an_error() -> None:
    with pytest.raises(SystemExit, match="no notebook begins with 99; there are 01_tour"):
        main(["99"])


def test_cells_are_numbered() -> None:
    assert [cell.id for cell in read(SOURCES[0]).cells][:2] == ["01_tour-0", "01_tour-1"]
