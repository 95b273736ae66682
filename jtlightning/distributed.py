"""Several processes of one run, started by MPI: who this one is, and what they tell each other.

Jittor's own averaging inside `Optimizer.backward` is switched off (it would average every
micro-batch); gradients are averaged once per update. Control messages travel through the host.
"""

from __future__ import annotations

import atexit
import os
import pickle
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn

import jittor as jt
import numpy as np


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those of the run.

    Attributes:
        rank: From 0; rank 0 writes files, logs and progress.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def several(self) -> bool:
        """Whether there is more than one process."""
        return self.size > 1


def find_ranks() -> Ranks:
    """The place that `mpirun` has given this process; alone without it.

    Raises:
        RuntimeError: Started by `mpirun`, but Jittor was built without MPI.
    """
    size = int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))
    if size == 1:
        return Ranks()
    if jt.compile_extern.mpi is None:
        raise RuntimeError(
            f"started as {size} processes by mpirun, but Jittor has no MPI here: it needs mpicc "
            "(pip install 'segtasks[mpi]', or on Debian: apt-get install openmpi-bin "
            "libopenmpi-dev), and use_mpi must not be 0"
        )
    return Ranks(int(os.environ["OMPI_COMM_WORLD_RANK"]), size)


def gather(value: Any, ranks: Ranks) -> list[Any]:
    """What each rank has passed, by rank; every rank must call it. Any value that pickles."""
    if not ranks.several:
        return [value]
    return [broadcast(value, ranks, root) for root in range(ranks.size)]


def broadcast(value: Any, ranks: Ranks, root: int = 0) -> Any:
    """What rank `root` has passed; every rank must call it."""
    if not ranks.several:
        return value
    mine = pickle.dumps(value) if ranks.rank == root else b""
    length = np.array([len(mine)], np.int64)
    jt.compile_extern.mpi.broadcast(length, root)
    content = np.zeros(int(length[0]), np.uint8)
    content[:] = np.frombuffer(mine, np.uint8) if ranks.rank == root else 0
    jt.compile_extern.mpi.broadcast(content, root)
    # From a process of this run; files never reach this.
    return value if ranks.rank == root else pickle.loads(content.tobytes())


def barrier(ranks: Ranks) -> None:
    """Wait for all ranks."""
    if ranks.several:
        jt.compile_extern.mpi.mpi_barrier()


def average(gradients: Sequence[jt.Var], ranks: Ranks) -> None:
    """Replace gradients by their mean over the ranks, in place, lazily, in the same order on all.

    A rank that took the reductions in another order than the others would wait for ever: each
    depends on the one before.
    """
    if not ranks.several:
        return
    before: list[jt.Var] = []
    for gradient in gradients:
        mean = gradient.mpi_all_reduce("mean")
        reduced = mean._input(0)  # the mean is a quotient; this is the sum
        reduced._add_dependency(before)
        before = [reduced]
        gradient.update(mean)


def share_parameters(parameters: Sequence[jt.Var], ranks: Ranks) -> None:
    """Give every rank the values of rank 0."""
    if not ranks.several:
        return
    jt.sync_all()
    for parameter in parameters:
        array = np.ascontiguousarray(parameter.numpy())
        jt.compile_extern.mpi.broadcast(array, 0)
        if ranks.rank:
            parameter.update(jt.array(array))
    jt.sync_all()


@contextmanager
def own_gradients() -> Iterator[None]:
    """Compute gradients of this rank alone, whatever Jittor would do with them."""
    before = jt.in_mpi
    jt.in_mpi = False
    try:
        yield
    finally:
        jt.in_mpi = before


def choose_batch_norm(module: Any, wanted: bool) -> None:
    """Let the batch norms of `module` use the statistics of all ranks, or each its own.

    Those of Jittor and of `segtasks` have an attribute `sync` that they look at under MPI.
    """
    for layer in module.modules():
        if hasattr(layer, "sync") and hasattr(layer, "running_mean"):
            layer.sync = wanted


def end_all_after_an_error(ranks: Ranks) -> None:
    """Let an error that ends this process end the others too, which may be waiting for it.

    A process leaves MPI together with all others; one that ends by an error must not wait for
    them to do so. `mpirun` ends the rest when one leaves without.
    """
    previous = sys.excepthook

    def tell_and_leave(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        sys.stderr.write(f"rank {ranks.rank} of {ranks.size} failed:\n")
        previous(kind, error, traceback)
        leave(1)

    sys.excepthook = tell_and_leave


def leave(code: int) -> NoReturn:
    """End this process at once, without waiting for the others in MPI."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
