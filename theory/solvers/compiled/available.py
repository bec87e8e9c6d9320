"""Whether compiled solvers can run here, and how one is loaded.

They need numba (the extra `fast`) and a folder to keep what was compiled: NUMBA_CACHE_DIR, else
the user's cache. Compiling takes seconds for each kind of set, once on a machine; loading
what is there takes half a second, once in a process.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from theory.batch import PairBatch

SWITCH = "PREFDRO_COMPILED"  # 0 turns them off, 1 or nothing leaves them on
MOST_FEATURES = 256  # loops are 4.6 times faster at 128 and twice at 200: BLAS gains on them


def usable(pairs: PairBatch) -> bool:
    """Whether compiled solvers may be asked for these pairs.

    Raises:
        ValueError: PREFDRO_COMPILED is neither 0 nor 1.
    """
    here = pairs.p.device.type == "cpu" and pairs.ut.dtype == torch.float64
    return here and pairs.dimension <= MOST_FEATURES and ready()


def ready() -> bool:
    """Whether there are compiled solvers here; where something is in the way, a line says what."""
    return switched_on() and _obstacle() is None


def switched_on() -> bool:
    """What PREFDRO_COMPILED says."""
    given = os.environ.get(SWITCH, "1")
    if given not in ("0", "1"):
        raise ValueError(f"{SWITCH} must be 0 or 1, got {given!r}. 0 turns compiled solvers off.")
    return given == "1"


@cache
def kernel(name: str) -> Callable[..., None]:
    """`batch` of the module of this name in this folder, compiled or from the cache."""
    with _cache_folder_of_numba(), _announced():
        batch: Callable[..., None] = import_module(f"theory.solvers.compiled.{name}").batch
    return batch


def names() -> list[str]:
    """Of all kernels: the files of this folder that define a `batch`."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [path.stem for path in files if b"\n@kernel(" in path.read_bytes()]


def cache_folder() -> Path:
    """Where compiled code is kept. numba notices a change in a kernel's own file only, so that
    the name holds a hash of this folder.

    Raises:
        RuntimeError: no home folder is known.
    """
    sources = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    digest = hashlib.sha256(b"".join(sources)).hexdigest()
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    users = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(chosen) if chosen else Path(users) / "prefdro") / f"kernels-{digest[:16]}"


@cache
def _obstacle() -> str | None:
    """What is in the way, said once in a line; None where nothing is."""
    found = None
    try:
        import numba  # noqa: F401
    except (ImportError, SystemError) as error:  # not there, or not for this Python or numpy
        found = f"{error}; pip install -e '.[fast]' brings numba"
    else:
        try:
            folder = cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except (OSError, RuntimeError) as error:
            found = f"no folder for compiled code ({error}); set NUMBA_CACHE_DIR to one"
    if found is not None:
        _say(f"fits run without compiled solvers, several times slower: {found}")
    return found


@contextmanager
def _cache_folder_of_numba() -> Iterator[None]:
    """numba asks for the folder, and for who tells it, where a function is defined: only ours go
    there."""
    from numba.core import config as settings

    config: Any = settings
    ours = {
        "CACHE_DIR": str(cache_folder()),
        "CACHE_LOCATOR_CLASSES": "theory.solvers.compiled.cache.InOurFolder",
    }
    before = {name: getattr(config, name) for name in ours if hasattr(config, name)}
    for name in before:
        setattr(config, name, ours[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


@contextmanager
def _announced() -> Iterator[None]:
    """A line where something really is compiled, before it is."""
    from numba.core import event

    class Listener(event.Listener):
        def on_start(self, event: Any) -> None:
            _say_of_compiling()

        def on_end(self, event: Any) -> None:
            pass

    listener = Listener()
    event.register("numba:compile", listener)
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)


@cache
def _say_of_compiling() -> None:
    _say(
        f"compiling solvers for this machine, seconds for each kind of set, once ({SWITCH}=0: off)"
    )


def _say(line: str) -> None:
    print(f"prefdro: {line}", file=sys.stderr, flush=True)
