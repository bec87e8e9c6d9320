"""Which code and which versions made a result."""

import platform
import subprocess
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from theory.versions import versions

_PACKAGES = ("prefdro", "torch", "numpy", "scipy", "pandas", "pyarrow", "joblib")


@cache
def code_fingerprint(*files: Path) -> str:
    """Digest of theory/*.py and the given files: an experiment whose cells this code computes
    reuses none of other code.

    Read once in a process: files that change during a run do not change what it computes with.
    """
    theory = Path(__file__).resolve().parent.parent / "theory"
    return sha256(
        b"".join(file.read_bytes() for file in [*sorted(theory.glob("*.py")), *files])
    ).hexdigest()[:16]


def configuration(config: Any) -> dict[str, Any]:
    """A configuration dataclass as JSON can hold it; for run.json."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(config).items()
    }


def provenance(*more: str) -> dict[str, object]:
    """Versions of Python and the packages, `more` among them, and the commit of the checkout,
    marked when it has changes."""
    return {
        "versions": {"python": platform.python_version(), **versions(*_PACKAGES, *more)},
        "commit": _commit(),
    }


def _commit() -> str:
    """Empty outside a checkout."""
    try:
        command = [
            "git",
            "-C",
            str(Path(__file__).resolve().parent),
            "describe",
            "--always",
            "--dirty",
            "--abbrev=12",
        ]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
