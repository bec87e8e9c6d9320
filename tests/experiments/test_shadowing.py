"""Another package of one of our names is named, and ends the command."""

import shutil
import sys
from pathlib import Path

import pytest

from experiments.shadowing import refuse_shadowed
from tests.launches import ROOT, run


@pytest.mark.parametrize("name", ["llm", "theory", "paper_figures"])
@pytest.mark.parametrize("file", ["{}/__init__.py", "{}.py"])
def test_the_other_package_is_named_and_the_status_is_1(
    name: str, file: str, tmp_path: Path
) -> None:
    other = tmp_path / file.format(name)
    other.parent.mkdir(exist_ok=True)
    other.write_text("raise AssertionError('imported')")
    # as of a console script: the environment's packages come before the project's
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    program += "; from experiments.cli import main; main(['list'])"
    ended = run([sys.executable, "-c", program], env={"PYTHONPATH": str(ROOT)})
    assert ended.returncode == 1
    assert str(other) in ended.stderr and str(ROOT / name) in ended.stderr
    assert "make install" in ended.stderr and f"pip uninstall {name}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_clone_without_one_of_them_is_not_complete(tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir()
    for name in ("__init__.py", "shadowing.py"):
        shutil.copy(ROOT / "experiments" / name, tmp_path / "experiments")
    program = "from experiments.shadowing import refuse_shadowed; refuse_shadowed()"
    command = [sys.executable, "-S", "-c", program]  # -S: without what is installed
    ended = run(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert ended.returncode == 1
    assert f"there is no package theory in {tmp_path}" in ended.stderr


def test_ours_is_not_refused() -> None:
    refuse_shadowed()
