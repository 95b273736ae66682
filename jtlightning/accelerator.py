"""Choose the device."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import jittor as jt

Accelerator = Literal["auto", "cpu", "cuda"]

#: How NumPy, Jittor's allocators, CUDA, cuDNN, cuBLAS and C++ tell that there is no memory.
NO_MEMORY = re.compile(
    # Jittor guesses "overcommit issue or out of memory" wherever a compiler fails.
    r"unable to allocate|(?<!issue or )out of memory|memoryallocation|alloc_failed|bad_alloc|"
    r"cannot allocate memory",
    re.IGNORECASE,
)


def select_device(accelerator: Accelerator) -> str:
    """Switch Jittor to the device that `accelerator` asks for and return "cpu" or "cuda".

    Raises:
        ValueError: CUDA is asked for and cannot be used.
    """
    if accelerator not in ("auto", "cpu", "cuda"):
        raise ValueError(f"accelerator is {accelerator!r}; choose auto, cpu or cuda")
    if accelerator == "cuda" and not jt.has_cuda:
        raise ValueError(
            "accelerator=cuda, but Jittor runs without CUDA here; `segtasks doctor` tells why. "
            "Use accelerator=cpu or auto to train on the CPU"
        )
    _flush_subnormals()
    device = "cuda" if jt.has_cuda and accelerator != "cpu" else "cpu"
    jt.flags.use_cuda = int(device == "cuda")
    return device


def _flush_subnormals() -> None:
    """Settle how this thread and those that it starts treat subnormal numbers: as zero.

    Compilers link kernels so that loading one switches this on, but only for the thread that
    loads it, and Jittor loads kernels in any of its threads: a resumed run could treat the
    smallest numbers, such as young moments of Adam, differently from the run that it continues.
    """
    jt.flags.use_cuda = 0
    with jt.flag_scope(use_parallel_op_compiler=0):
        # Seven axes, so that no other code has loaded this kernel before.
        (jt.ones((1, 1, 1, 1, 1, 1, 2)) * 1.375).sync()


def be_deterministic() -> None:
    """Let CUDA convolutions take the algorithm that cuDNN proposes, not the fastest by timing.

    Nothing to do on a CPU, where every run repeats bit for bit.
    """
    if jt.has_cuda:
        jt.cudnn.set_algorithm_cache_size(0)


@contextmanager
def immediate_execution(wanted: bool) -> Iterator[None]:
    """Execute every operation when it is written, so that tracebacks point at the line to blame.

    Slow, and with other last bits, as nothing is fused. Where Jittor can (Python 3.10), its own
    messages name the lines that made an operation as well.
    """
    if not wanted:
        yield
        return
    before = jt.flags.lazy_execution, jt.flags.trace_py_var
    jt.flags.lazy_execution = 0
    if sys.version_info < (3, 11):  # Jittor 1.3.11 refuses later versions
        jt.flags.trace_py_var = 3
    try:
        yield
    finally:
        jt.flags.lazy_execution, jt.flags.trace_py_var = before
