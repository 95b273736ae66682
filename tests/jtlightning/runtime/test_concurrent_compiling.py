"""Two processes that need the same new kernels at the same moment."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from . import own_kernels
from .conftest import REPOSITORY

#: Waits for the other process, then has three kernels compiled that nobody has seen before.
PROGRAM = f"""
import sys, time
from pathlib import Path
import jtlightning
from jtlightning import runtime
folder, rank, token = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
handle = runtime.capture_chatter(folder / ("jittor-" + rank + ".log"))
import jittor as jt
x = jt.ones(4)
x.sync()
before = handle.kernels
(folder / rank).touch()
while len(list(folder.glob("[01]"))) < 2:
    time.sleep(0.01)
{own_kernels.COMPUTE}
time.sleep(0.5)  # the monitor looks five times a second
print(handle.kernels - before, total)
"""


@pytest.mark.slow
def test_a_kernel_is_compiled_by_one_of_two_processes(tmp_path: Path) -> None:
    token = uuid.uuid4().hex
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), rank, token],
            env=environment, stdout=subprocess.PIPE, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    try:
        answers = [process.communicate(timeout=300)[0].split() for process in running]
    finally:
        for process in running:
            process.kill()
        libraries = own_kernels.forget(token)
    assert [total for _, total in answers] == ["24.0", "24.0"]
    assert libraries == 3
    assert sum(int(compiled) for compiled, _ in answers) == 3
