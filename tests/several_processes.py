"""Programs started by mpirun, for tests of several processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

needs_mpi = pytest.mark.skipif(
    shutil.which("mpirun") is None or shutil.which("mpicc") is None,
    reason="needs Open MPI: apt-get install openmpi-bin libopenmpi-dev",
)


def start(
    program: Path, processes: int, scenario: str, folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run `python program SCENARIO FOLDER` in so many processes, without mpirun if it is one."""
    folder.mkdir(exist_ok=True)
    environment = os.environ | {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMP_NUM_THREADS": "1",
        "nvcc_path": "",
    }
    mpirun = ["mpirun", "-np", str(processes), "--bind-to", "none", "--oversubscribe"]
    command = [sys.executable, str(program), scenario, str(folder)]
    return subprocess.run(
        [*(mpirun if processes > 1 else []), *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def run(program: Path, processes: int, scenario: str, folder: Path) -> list[dict[str, Any]]:
    """What each process reports, in the file SCENARIO-RANK.json or SCENARIO-alone.json."""
    done = start(program, processes, scenario, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    names = range(processes) if processes > 1 else ["alone"]
    return [json.loads((folder / f"{scenario}-{name}.json").read_text()) for name in names]
