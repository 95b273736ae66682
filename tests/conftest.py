"""Fixtures for every test; anything larger belongs beside the tests that use it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

# Before any test module imports Jittor.
from jtlightning import runtime

runtime.prepare()


def pytest_collection_finish() -> None:
    """Take the signals back from Jittor, which would end pytest when any child is killed."""
    if "jittor" in sys.modules:
        from jtlightning import signals

        signals.reclaim()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real images that some tests train on; it is not part of the repository."""
    folder = os.environ.get("SEGTASKS_TEST_DATA")
    if not folder:
        pytest.skip("SEGTASKS_TEST_DATA does not name the folder of test images")
    return Path(folder)
