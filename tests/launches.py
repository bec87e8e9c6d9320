"""Starting processes from tests: limits that only a standstill reaches, nothing left behind, a
second try of a failed start.

What a test is about gets no second try. A launch counts as started when a rank has begun to run the
program; everything before that is torch's rendezvous, which gives up on a machine that is busy with
other things.
"""

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[1]
# seconds, below the limit of a test; what takes 30 s on an idle machine takes 5 minutes under a
# load of ten
PATIENCE = 600.0
MARK = "PREFDRO_TEST_STARTED"  # a file that the first rank to run its program makes
T = TypeVar("T")


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    timeout: float = PATIENCE,
) -> subprocess.CompletedProcess[str]:
    """A command with its output, in a session of its own: what it has started ends with it, and
    nothing can hold the pipes."""
    words = [str(word) for word in command]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        words, cwd=cwd, env={**os.environ, **(env or {})}, start_new_session=True, **pipes
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            end_group(process.pid)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def end_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def launch(
    program: Sequence[str | Path], folder: Path, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Two ranks of `program`, a script or -m and a module, with its arguments; on a free port.

    folder: where the mark goes. options: of `run`.
    """
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "tests.launches",
    ]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    mark = folder / f"started-{time.monotonic_ns()}"
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, MARK: str(mark), **options.pop("env", {})}
    for _ in range(2):
        done = run([*command, *program], env=env, **options)
        if mark.exists():  # it has started: whatever it ended with is what the test is about
            mark.unlink()
            break
    return done


def twice(start: Callable[[], T]) -> T:
    """What `start` gives, with one more try."""
    try:
        return start()
    except Exception:
        return start()


def wait_until(condition: Callable[[], bool], timeout: float = PATIENCE / 3) -> bool:
    """Whether it has come true."""
    deadline = time.monotonic() + timeout
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return met


@contextmanager
def ray_cluster(cpus: int) -> Iterator[str]:
    """The address of a cluster of this machine.

    Ray waits 30 s for its own raylet, and `Cluster` 30 s for the node; both are written into the
    code, and under a load of six both are too little. So the first question for the node is
    answered late rather than with an error.
    """
    import ray._private.services as services
    from ray.cluster_utils import Cluster

    class Patient(Cluster):  # type: ignore[misc]
        def _wait_for_node(self, node: Any, timeout: float = PATIENCE / 3) -> None:
            super()._wait_for_node(node, max(timeout, PATIENCE / 3))

    ask = services.get_node

    def ask_again(*given: Any, **named: Any) -> Any:
        deadline = time.monotonic() + PATIENCE / 3
        while True:
            try:
                return ask(*given, **named)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def start() -> Cluster:
        cluster = Patient()
        cluster.add_node(num_cpus=cpus, include_dashboard=False, object_store_memory=10**8)
        return cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # noqa: SIM112, it ends and restarts tasks where others fill the memory
    services.get_node = ask_again
    try:
        cluster = twice(start)
    finally:
        services.get_node = ask
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


if __name__ == "__main__":  # on each rank of a launch
    Path(os.environ[MARK]).touch()
    words = sys.argv[1:]
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
