"""Compiled kernels that a crash of the machine, or a kill, has left incomplete."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest

from tests.jtlightning.runtime import own_kernels
from tests.jtlightning.runtime.conftest import REPOSITORY

PROGRAM = f"""
import sys
import jtlightning, jittor as jt
x, token = jt.ones(4), sys.argv[1]
{own_kernels.COMPUTE}
print(total)
"""


@pytest.fixture
def token() -> Iterator[str]:
    """A name that only this test's kernels hold; they are deleted in the end."""
    name = uuid.uuid4().hex
    yield name
    own_kernels.forget(name)


def compute(token: str) -> str:
    return subprocess.check_output(
        [sys.executable, "-c", PROGRAM, token],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, text=True, timeout=200,
    )  # fmt: skip


def test_damaged_kernels_are_compiled_again(token: str) -> None:
    assert compute(token) == "24.0\n"
    empty, half, killed = own_kernels.libraries(token)
    sizes = [library.stat().st_size for library in (empty, half, killed)]
    # A crash of the machine loses content that was not written out, and keeps names and keys.
    os.truncate(empty, 0)
    os.truncate(half, sizes[1] // 2)
    # A kill stops the compiler before there is a key.
    os.truncate(killed, sizes[2] // 2)
    killed.with_name(f"{killed.name}.key").unlink()
    assert compute(token) == "24.0\n"
    assert [library.stat().st_size for library in (empty, half, killed)] == sizes
