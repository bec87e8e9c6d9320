"""`python -m experiments.execute_notebooks [NAME ...]`: execute the notebooks' sources (.py) and
write the .ipynb next to them.

What `jupytext --to ipynb --execute` does, without time stamps and random cell ids: the same outputs
give the same file. The state of widgets is not stored; a cell that shows one is followed by a still
figure.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "notebooks"


def read(source: Path) -> Any:
    """The notebook of a source in jupytext's py:percent format, with cells numbered for their
    ids."""
    import jupytext

    notebook = jupytext.read(source)
    notebook.metadata.pop("jupytext", None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{source.stem}-{number}"
    return notebook


def execute(source: Path, folder: Path = FOLDER) -> Path:
    """Run a source in a fresh kernel and write the notebook with its outputs into `folder`; raises
    where a cell does."""
    import nbformat
    from nbclient import NotebookClient

    notebook = read(source)
    # problems this small gain nothing from threads, and lose a lot where other processes run;
    # kernels inherit this
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    where = {"metadata": {"path": str(source.parent)}}
    NotebookClient(notebook, timeout=600, record_timing=False, resources=where).execute()
    _without_widgets(notebook)
    written = folder / f"{source.stem}.ipynb"
    nbformat.write(notebook, written)
    return written


def _without_widgets(notebook: Any) -> None:
    """Leave their text only: state and model ids differ from run to run, and mean nothing without a
    kernel."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)


def main(names: list[str]) -> None:
    """Execute the notebooks whose file names begin with one of the names; all without names."""
    sources = sorted(FOLDER.glob("*.py"))
    chosen = [
        source
        for source in sources
        if not names or any(source.stem.startswith(name) for name in names)
    ]
    if not chosen:
        known = ", ".join(source.stem for source in sources)
        raise SystemExit(f"no notebook begins with {' or '.join(names)}; there are {known}.")
    for source in chosen:
        began = time.perf_counter()
        written = execute(source)
        print(
            f"{written}: {time.perf_counter() - began:.0f} s,"
            f" {written.stat().st_size / 1024:.0f} KB",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
