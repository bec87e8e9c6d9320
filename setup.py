"""Refuses every build but that of an editable clone; all else is in pyproject.toml.

The import names are theory, llm, experiments and paper_figures. A wheel would put folders of these
names among other packages' (PyPI has an llm), and overwrite their files.
"""

from typing import NoReturn

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.install import install
from setuptools.command.sdist import sdist


def refuse(command: Command) -> NoReturn:
    """End the build with what to do instead."""
    raise SystemExit(
        f"prefdro cannot be built with {command.get_command_name()}: its folders theory, llm,"
        " experiments and paper_figures would overwrite those of other packages, such as PyPI's"
        " llm. Use it from a clone: `git clone` it, then `make install` in the clone, which makes"
        " .venv there, or `pip install -e .`."
    )


refusing = {
    kind.__name__: type(kind.__name__, (kind,), {"run": refuse})
    for kind in (bdist_wheel, install, sdist)
}
setup(cmdclass=refusing)
