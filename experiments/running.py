"""Running one experiment by its name: its folder, its summary, and what to do next."""

from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.engine.ranks import rank
from experiments.engine.store import refuse_folder_of_another


def run_experiment(name: str, module: ModuleType, config: Any) -> None:
    """Run or resume an experiment, print its summary, and say where its tables are.

    Raises:
        StoreError: the folder holds the results of another experiment, or is not writable.
    """
    refuse_folder_of_another(config.out, name)
    tables = module.run(config)
    if tables is not None:
        module.summarise(config, tables)
        _say_where(config.out)
    elif rank() == 0:
        print(
            f"this part of the policies is in {config.out}/stages; when all parts are, run it"
            " without --part for the tables."
        )


def _say_where(out: Path) -> None:
    names = sorted(
        path.name
        for path in out.iterdir()
        if path.suffix in (".csv", ".parquet", ".json") and path.name[0] != "."
    )
    print(f"tables in {out}: {', '.join(names)}. Next: prefdro figures --from {out}")
