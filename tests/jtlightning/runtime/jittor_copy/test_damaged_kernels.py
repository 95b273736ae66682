"""Compiled kernels that a crash of the machine, or a kill, has left incomplete."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import jittor as jt
import pytest

from tests.jtlightning.runtime.conftest import REPOSITORY

#: Computes with three kernels of its own, and prints the sum.
PROGRAM = """
import sys
import jtlightning, jittor as jt
x = jt.ones(4)
total = 0.0
for number in range(3):
    name = f"t{sys.argv[1]}_{number}"
    source = f"int {name} = 1; for (int i = 0; i < in0_shape0; i++) @out(i) = @in0(i) + {name};"
    total += jt.code([4], "float32", [x], cpu_src=source).sum().item()
print(total)
"""


@pytest.fixture
def token() -> Iterator[str]:
    """A name that only this test's kernels hold; they are deleted in the end."""
    name = uuid.uuid4().hex
    yield name
    for library in libraries(name):
        for file in library.parent.glob(f"{library.stem}.*"):
            file.unlink()


def libraries(token: str) -> list[Path]:
    folder = Path(jt.flags.cache_path, "jit")
    sources = [file for file in folder.glob("*code*.cc") if token in file.read_text()]
    return sorted(source.with_suffix(".so") for source in sources)


def compute(token: str) -> str:
    return subprocess.check_output(
        [sys.executable, "-c", PROGRAM, token],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, text=True, timeout=200,
    )  # fmt: skip


def test_damaged_kernels_are_compiled_again(token: str) -> None:
    assert compute(token) == "24.0\n"
    empty, half, killed = libraries(token)
    sizes = [library.stat().st_size for library in (empty, half, killed)]
    # A crash of the machine loses content that was not written out, and keeps names and keys.
    os.truncate(empty, 0)
    os.truncate(half, sizes[1] // 2)
    # A kill stops the compiler before there is a key.
    os.truncate(killed, sizes[2] // 2)
    killed.with_name(f"{killed.name}.key").unlink()
    assert compute(token) == "24.0\n"
    assert [library.stat().st_size for library in (empty, half, killed)] == sizes
