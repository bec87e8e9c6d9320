"""Versions of what is installed, and of a checkout that is not."""

import torch

from theory.versions import versions


def test_versions() -> None:
    assert versions("torch", "no-such-package-anywhere") == {
        "torch": torch.__version__,
        "no-such-package-anywhere": "not installed",
    }
