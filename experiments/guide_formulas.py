"""Hook of mkdocs.yml: puts MathJax, one file of a locked package, into the guide's site, so that
formulas are drawn without a network."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

PACKAGE = "django-static-mathjax"  # MathJax's own files and nothing else; django is not needed
FOLDER = "mathjax/static/mathjax"
SCRIPT = "javascripts/tex-svg.js"  # docs/javascripts/formulas.js loads it from beside itself


def mathjax() -> Path:
    """The folder of MathJax in the installed package.

    Raises:
        PluginError: if the package is not installed.
    """
    try:
        return Path(str(distribution(PACKAGE).locate_file(FOLDER)))
    except PackageNotFoundError:
        raise PluginError(
            f"{PACKAGE}, which brings MathJax, is not installed. Run `make install`, or"
            " `pip install -e '.[guide]'`."
        ) from None


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by mkdocs with the files of the site."""
    files.append(File.generated(config, SCRIPT, abs_src_path=str(mathjax() / "es5" / "tex-svg.js")))
    return files
