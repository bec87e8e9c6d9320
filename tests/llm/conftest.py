"""What all tests of this folder need."""

import gc

import pytest


@pytest.fixture(scope="session", autouse=True)
def quick_garbage_collection() -> None:
    """Each run of the Trainer collects garbage, which takes 0.2 s for the objects of imported libraries: leave those out."""
    gc.collect()
    gc.freeze()
