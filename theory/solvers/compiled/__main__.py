"""Compile what is not in the cache yet, two at a time: `python -m theory.solvers.compiled`.

Without it each kernel is compiled where it is first needed, by each of the processes that need it
at that time.
"""

from joblib import Parallel, delayed
from rich.console import Console
from rich.progress import track

from theory.solvers.compiled import available

_LONGEST = ("atom_moves", "label_moves")  # begun first, so that no process waits for the other


def _compile(name: str) -> None:
    available.kernel(name)


def main() -> None:
    if not available.ready():
        return
    names = sorted(available.names(), key=lambda name: name not in _LONGEST)
    done = Parallel(n_jobs=2, return_as="generator_unordered")(
        delayed(_compile)(name) for name in names
    )
    shown = Console(stderr=True)
    for _ in track(done, "compiled solvers", total=len(names), console=shown):
        pass


if __name__ == "__main__":
    main()
