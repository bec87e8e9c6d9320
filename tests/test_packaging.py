"""Only an editable clone can be built: a wheel would overwrite other packages' files."""

import shutil
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.launches import ROOT, run

pytest.importorskip("setuptools", minversion="77")
PACKAGES = ("theory", "llm", "experiments", "paper_figures")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    return tmp_path


def build(what: str, clone: Path) -> CompletedProcess[str]:
    """What pip and build do, without them: the hook of the backend."""
    program = f"from setuptools.build_meta import build_{what}; build_{what}('built')"
    (clone / "built").mkdir()
    return run([sys.executable, "-c", program], cwd=clone)


@pytest.mark.parametrize("what", ["wheel", "sdist"])
def test_what_is_not_editable_is_refused_with_what_to_do(what: str, clone: Path) -> None:
    ended = build(what, clone)
    assert ended.returncode == 1
    assert "git clone" in ended.stderr and "make install" in ended.stderr
    assert "pip install -e ." in ended.stderr
    assert not [*(clone / "built").iterdir()]


def test_nor_is_it_installed_by_setup_py(clone: Path) -> None:
    ended = run([sys.executable, "setup.py", "install", "--root", "root"], cwd=clone)
    assert ended.returncode == 1
    assert "make install" in ended.stderr
    assert not (clone / "root").exists()


def test_an_editable_clone_is_built(clone: Path) -> None:
    ended = build("editable", clone)
    assert ended.returncode == 0, ended.stderr
    (wheel,) = (clone / "built").iterdir()
    assert "editable" in wheel.name
