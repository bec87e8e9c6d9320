"""What all tests need: an environment that is the same for everybody, jitter, and a way out of a
standstill."""

import atexit
import faulthandler
import gc
import os
import shutil
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import settings

# Variables of whoever runs the tests that would change them: of launchers, clusters, terminals, and
# caches of models and data.
FOREIGN = (
    *(
        "RANK",
        "WORLD_SIZE",
        "LOCAL_",
        "GROUP_",
        "ROLE_",
        "MASTER_",
        "TORCHELASTIC_",
        "ACCELERATE_",
        "FSDP_",
        "DEEPSPEED_",
    ),
    *("RAY_", "DASK_", "SLURM_", "PMI_", "OMPI_", "MPI_", "WANDB_", "MLFLOW_", "COMET_"),
    *(
        "HF_",
        "HUGGINGFACE_",
        "TRANSFORMERS_",
        "XDG_CACHE_HOME",
        "MPL",
        "COLUMNS",
        "LINES",
        "FORCE_COLOR",
        "NO_COLOR",
        "TTY_",
    ),
    *("PYTHONWARNINGS", "PYTHONOPTIMIZE"),
)
STANDSTILL = 600.0  # seconds that importing and collecting, or leaving, may take


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--jitter",
        type=int,
        metavar="SEED",
        help="random instances in other last digits and another order of rows",
    )


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # xdist's workers inherit what is set here
        _own_environment()
    # the same examples of property tests for everybody, whatever a test leaves open
    settings.register_profile("same for all", derandomize=True)
    settings.load_profile("same for all")
    faulthandler.dump_traceback_later(STANDSTILL, exit=True, file=sys.__stderr__)
    if (seed := config.getoption("jitter")) is not None:
        from tests import jitter  # numpy and torch, which take a while

        jitter.turn_on(seed)


def _own_environment() -> None:
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    own = tempfile.mkdtemp(prefix="prefdro-tests-")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    style = Path(own, "matplotlibrc")
    style.touch()
    os.environ |= {
        "HF_HOME": f"{own}/huggingface",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MATPLOTLIBRC": str(style),  # matplotlib's own defaults
        "MPLBACKEND": "agg",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "TOKENIZERS_PARALLELISM": "false",  # some tests fork
    }


@pytest.hookimpl(tryfirst=True)  # before those that are not asked for are left out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of one expensive fixture go to one worker; those of exact bits or recorded numbers are
    none for jitter; of a test of many parameters some are fast."""
    _mark_the_rest_slow(items)
    for item in items:
        for definitions in item._fixtureinfo.name2fixturedefs.values():  # type: ignore[attr-defined]
            if definitions[-1].scope == "module":  # xdist would make it in each of its workers
                item.add_marker(pytest.mark.xdist_group(item.module.__name__))  # type: ignore[attr-defined]
        for mark in item.iter_markers("exact"):
            assert mark.args and isinstance(mark.args[0], str), (
                f"{item.nodeid}: @pytest.mark.exact needs a reason"
            )
    if config.getoption("jitter") is not None:
        exact = [item for item in items if item.get_closest_marker("exact")]
        items[:] = [item for item in items if item not in set(exact)]
        config.hook.pytest_deselected(items=exact)


def _mark_the_rest_slow(items: list[pytest.Item]) -> None:
    """Of a test marked some(k) all sets of parameters but k are slow. Which, their names decide:
    always the same ones, and none because of its place in the list."""
    families: dict[tuple[str, int], list[pytest.Item]] = {}
    for item in items:
        if mark := item.get_closest_marker("some"):
            family = (item.nodeid.split("[")[0], *mark.args)
            families.setdefault(family, []).append(item)
    for (_, count), family in families.items():
        for item in sorted(family, key=lambda one: sha256(one.nodeid.encode()).digest())[count:]:
            item.add_marker("slow")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """From here on each test has its own limit; xdist's main process has none, since it waits for
    all of them."""
    faulthandler.cancel_dump_traceback_later()


def pytest_unconfigure() -> None:
    """Threads and processes that keep this one from ending are named, and do not keep the run from
    ending."""
    faulthandler.dump_traceback_later(STANDSTILL, exit=True, file=sys.__stderr__)


@pytest.fixture(scope="session", autouse=True)
def quick_garbage_collection() -> None:
    """Each run of the Trainer collects garbage, which takes 0.2 s for the objects of imported
    libraries: leave those out."""
    gc.collect()
    gc.freeze()
