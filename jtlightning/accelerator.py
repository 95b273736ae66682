"""Choose the device, and bring batches to it."""

from __future__ import annotations

from typing import Any, Literal

import jittor as jt
import numpy as np

from jtlightning.data.batch import map_arrays

Accelerator = Literal["auto", "cpu", "cuda"]


def select_device(accelerator: Accelerator) -> str:
    """Switch Jittor to the device that `accelerator` asks for and return "cpu" or "cuda".

    Raises:
        ValueError: CUDA is asked for and cannot be used, or Jittor runs under MPI.
    """
    if accelerator not in ("auto", "cpu", "cuda"):
        raise ValueError(f"accelerator is {accelerator!r}; choose auto, cpu or cuda")
    if jt.in_mpi and jt.world_size > 1:
        raise ValueError(
            f"started as {jt.world_size} MPI processes; training on several devices is not "
            "supported yet, start one process without mpirun"
        )
    if accelerator == "cuda" and not jt.has_cuda:
        raise ValueError(
            "accelerator=cuda, but Jittor runs without CUDA here; `segtasks doctor` tells why. "
            "Use accelerator=cpu or auto to train on the CPU"
        )
    device = "cuda" if jt.has_cuda and accelerator != "cpu" else "cpu"
    jt.flags.use_cuda = int(device == "cuda")
    return device


def to_device(batch: Any) -> Any:
    """The batch with every NumPy array in it as a `jt.Var`; other values stay.

    Raises:
        ValueError: An integer array holds values that Jittor's 32-bit conversion would wrap.
    """
    return map_arrays(_to_var, batch)


def _to_var(array: np.ndarray) -> jt.Var:
    if array.dtype == np.int64 and array.size:
        limit = np.iinfo(np.int32)
        if array.min() < limit.min or array.max() > limit.max:
            raise ValueError(
                f"an int64 array of the batch holds {int(abs(array).max())}, which does not fit "
                "Jittor's int32; keep such values (image ids, say) as Python numbers or strings"
            )
    return jt.array(array)
