"""`prefdro figures`: drawing from stored rows, of one experiment or of all."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import tyro

from paper_figures import catalogue


def figures(
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None,
    every: Annotated[bool, tyro.conf.arg(name="all"), tyro.conf.FlagCreatePairsOff] = False,
    results: Path | None = None,
    out: Path | None = None,
    workers: int | None = None,
) -> None:
    """Draw figures and tables from stored rows, without computing anything: of one experiment, or
    all of them (--all).

    Args:
        source: Folder of the experiment's tables.
        every: Draw every figure of both papers and of our own studies that has rows, and a page
            that shows them.
        results: With --all: the folder that holds the experiments' folders; ./results where not
            given.
        out: Folder of the figures; where not given SOURCE/figures, or with --all RESULTS/figures.
        workers: With --all: processes that draw; where not given, one for each processor.
    """
    if every:
        if source is not None:
            raise ValueError(
                f"--all draws from every experiment in --results: leave out --from {source}, or"
                " --all."
            )
        results = results or Path("results")
        if not results.is_dir():
            raise ValueError(
                f"there is no folder {results}. `make reproduce` makes ./results; give another one"
                " with --results."
            )
        return _draw_all(results, out or results / "figures", workers)
    if results is not None or workers is not None:
        raise ValueError(
            "--results and --workers go with --all; --from FOLDER draws the figures of one"
            " experiment."
        )
    if source is None:
        raise ValueError(
            "of what? Give --from FOLDER, the folder of an experiment's tables, or --all."
        )
    # matplotlib is slow to import and only needed here
    modules = [
        import_module(f"paper_figures.{name}") for name in catalogue.modules_of(_experiment(source))
    ]
    try:
        written = [
            path for module in modules for path in module.draw(source, out or source / "figures")
        ]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"the tables in {source} cannot be drawn ({error!r}): one was truncated, or is of"
            " another version. Run the experiment again, in the same folder: what is finished is"
            " not computed again."
        ) from error
    print("\n".join(str(path) for path in written))


def _draw_all(results: Path, out: Path, workers: int | None) -> None:
    from paper_figures import gallery

    outcomes = gallery.draw_all(results, out, workers)
    drawn = sum(bool(outcome.files) for outcome in outcomes)
    print(f"{drawn} of {len(outcomes)} figures and tables drawn; open {out / 'README.md'}")
    for command in dict.fromkeys(
        outcome.entry.command(results) for outcome in outcomes if not outcome.rows
    ):
        keys = [
            outcome.entry.key
            for outcome in outcomes
            if not outcome.rows and outcome.entry.command(results) == command
        ]
        print(f"no rows for {', '.join(keys)}: {command}")
    failed = {outcome.entry.module: outcome.error for outcome in outcomes if outcome.error}
    for module, error in failed.items():
        print(f"failed: paper_figures.{module}: {error}", file=sys.stderr)
    if failed:
        sys.exit(1)


def _experiment(source: Path) -> str:
    """What the folder says it holds."""
    record = source / "run.json"
    if not record.is_file():
        raise ValueError(
            f"{source} has no run.json: it is not the folder of a finished experiment. `prefdro"
            " run` makes one."
        )
    try:
        name = json.loads(record.read_text(encoding="utf-8"))["experiment"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{record} does not name its experiment ({error!r}); run the experiment again."
        ) from error
    known = catalogue.experiments()
    if name not in known:
        raise ValueError(
            f"{record} names the experiment {name!r}, which has no figures; there are"
            f" {', '.join(known)}."
        )
    return str(name)
