"""Scripts, each in a process of its own that has the libraries already: a fork of one that has
imported them and has one thread.

As `python SCRIPT` would, without the seconds that importing torch, transformers and matplotlib
takes each time.
"""

import json
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.launches import PATIENCE, ROOT, end_group


class Warm:
    """The process that forks. One script at a time."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.warm"]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True, **pipes)

    def run(
        self, script: Path, folder: Path, output: Path, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """The script in `folder`, with its output, which passes through files in the folder
        `output`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        out, err = output / "stdout", output / "stderr"
        task = {
            "script": str(script),
            "folder": str(folder),
            "out": str(out),
            "err": str(err),
            "variables": variables,
        }
        limit = threading.Timer(PATIENCE, end_group, [self.process.pid])
        limit.start()
        try:
            print(json.dumps(task), file=self.process.stdin, flush=True)
            status = int(self.process.stdout.readline() or -9)
        finally:
            limit.cancel()
        return subprocess.CompletedProcess(
            [str(script)], status, out.read_text("utf-8"), err.read_text("utf-8")
        )

    def close(self) -> None:
        end_group(self.process.pid)
        self.process.communicate()


def become(script: str, folder: str, out: str, err: str, variables: Mapping[str, str]) -> None:
    """Run the script in this process."""
    for number, name in ((0, os.devnull), (1, out), (2, err)):
        os.dup2(
            os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            number,
        )
    for name in [name for name in os.environ if name.startswith("PREFDRO_")]:
        del os.environ[name]
    os.environ |= variables
    os.chdir(folder)
    sys.argv = [script]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


def serve() -> None:
    import matplotlib.pyplot  # noqa: F401

    import paper_figures.notebook  # noqa: F401

    for line in sys.stdin:
        assert len(os.listdir("/proc/self/task")) == 1, (
            "a process with several threads must not be forked"
        )
        child = os.fork()
        if child == 0:
            become(**json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
