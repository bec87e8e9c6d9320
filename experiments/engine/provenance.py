"""Which code and which versions made a result."""

import platform
import subprocess
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from theory.versions import versions

ROOT = Path(__file__).resolve().parents[2]
STAGES = Path(__file__).with_name("stages.py")
_PACKAGES = ("prefdro", "torch", "numpy", "scipy", "pandas", "pyarrow", "joblib")


@cache
def code_fingerprint(*files: Path) -> str:
    """Digest of theory without its claims and twins, and of the given files: an experiment whose
    cells this code computes reuses none of other code.

    Read once in a process: files that change during a run do not change what it computes with.
    """
    code = [*files_of("theory", but=("claims", "twins")), *files]
    return sha256(b"".join(file.read_bytes() for file in code)).hexdigest()[:16]


def files_of(room: str, but: tuple[str, ...] = ()) -> list[Path]:
    """The modules of a folder of the checkout, without those of some of its folders."""
    folder = ROOT / room
    files = sorted(folder.rglob("*.py"))
    return [file for file in files if file.relative_to(folder).parts[0] not in but]


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
