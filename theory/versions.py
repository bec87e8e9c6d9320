"""Which versions of packages are here."""

from importlib import metadata


def versions(*names: str) -> dict[str, str]:
    """The version of each package; in words where it has none, as for a checkout that is run
    without being installed."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
