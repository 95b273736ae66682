"""Running out of memory, told with what holds it, instead of a crash or a bare number."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import jittor as jt

from jtlightning.accelerator import NO_MEMORY
from jtlightning.callbacks.memory_guard import host_mib, largest_holders

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer.trainer import Trainer

_MIB = 1024.0 * 1024.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

# Jittor's allocator for the CPU uses the pointer that it gets without a look at it, so that a
# refused allocation ends the process by SIGSEGV, without a message. An object of this class takes
# its place: the same, but it raises, as the allocators for CUDA do. Jittor then gives its unused
# blocks back and tries once more.
_HEADER = r"""
#include <new>
#include <stdexcept>
#include <string>
#include "mem/allocator/aligned_allocator.h"
namespace jittor {
struct CheckedAllocator : AlignedAllocator {
    void* alloc(size_t size, size_t& allocation) override {
        void* pointer = AlignedAllocator::alloc(size, allocation);
        if (!pointer && size)
            throw std::runtime_error("Unable to allocate " + std::to_string(size >> 20) + " MiB");
        return pointer;
    }
};
static_assert(sizeof(CheckedAllocator) == sizeof(AlignedAllocator), "it takes the other's place");
}
"""
_INSTALL = "new (&aligned_allocator) CheckedAllocator(); @out(0) = 1;"


class OutOfMemoryError(RuntimeError):
    """There was no memory for what was asked; the message names what holds it."""


def check_allocations() -> None:
    """Let Jittor raise where the system refuses memory for the CPU; may be called repeatedly.

    Compiles for a second when it is called for the first time on a machine, and takes a few
    milliseconds later. Where Linux hands out more than it has, it refuses nothing and kills a
    process instead; then there is nothing to raise.
    """
    if not sys.platform.startswith("linux") or jt.flags.use_cuda:
        return
    jt.code((1,), "int32", [], cpu_header=_HEADER, cpu_src=_INSTALL).sync()


def explain_out_of_memory(
    error: BaseException, trainer: Trainer, task: Task
) -> OutOfMemoryError | None:
    """The error to raise instead of `error`, or None where it is about something else.

    Args:
        error: What left the run: NumPy's `MemoryError`, or Jittor's `RuntimeError` whose text
            tells of an allocation.
        trainer: Its optimizer, position and run folder are named.
        task: Its parameters are told from what others hold.
    """
    reason = next(filter(None, map(_reason, _chain(error))), None)
    if reason is None or isinstance(error, OutOfMemoryError):
        return None
    # What was cached and is free again, so that the message itself has room.
    jt.gc()
    where = f"epoch {trainer.current_epoch}, step {trainer.global_step}"
    return OutOfMemoryError(
        f"out of memory at {where}: {reason}. {_totals(trainer, task)}. Largest other holders: "
        f"{largest_holders(trainer, task, by_size=True)}. {_remedy(trainer)}"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str:
    """What was refused, in one line; nothing where the error is no refusal."""
    text = _COLOURS.sub("", str(error))
    if isinstance(error, MemoryError):
        return text or "Python had no memory for an object"
    refused = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if not (refused or (isinstance(error, RuntimeError) and NO_MEMORY.search(text))):
        return ""
    lines = [line.split("[Reason]:")[-1].strip() for line in text.splitlines()]
    told = next((line for line in lines if NO_MEMORY.search(line)), lines[0])
    operation = re.search(r"\[OP TYPE\]: *(.*)", text)
    shape = re.search(r"\[Output\]: *(.*?),? *$", text, re.MULTILINE)
    result = f" with the result {shape[1]}" if shape else ""
    return f"{told} in {operation[1].strip()}{result}" if operation else told


def _totals(trainer: Trainer, task: Task) -> str:
    groups = [] if trainer.optimizer is None else trainer.optimizer.param_groups
    weights = {id(p): p.nbytes for p in task.parameters()}
    held = [v for g in groups for values in g.values() if isinstance(values, list) for v in values]
    others = {id(v): v.nbytes for v in held if isinstance(v, jt.Var) and id(v) not in weights}
    memory = jt.get_mem_info()
    device = f", {memory.total_cuda_used / _MIB:.0f} MiB on the GPU" if jt.flags.use_cuda else ""
    return (
        f"The process holds {host_mib():.0f} MiB, Jittor {memory.total_cpu_used / _MIB:.0f} MiB on "
        f"the CPU{device}; of these parameters and statistics {sum(weights.values()) / _MIB:.1f} "
        f"MiB, gradients and moments {sum(others.values()) / _MIB:.1f} MiB"
    )


def _remedy(trainer: Trainer) -> str:
    run = trainer.run
    saved = [] if run is None else sorted(run.checkpoints.glob("*.ckpt"))
    advice = (
        "Use smaller batches with accumulate_grad_batches so many times larger, or smaller images, "
        "and keep numbers or NumPy arrays instead of Vars"
    )
    if not saved:
        return f"{advice}. No checkpoint has been written yet"
    assert run is not None
    return f"{advice}; then continue with ckpt_path last. Checkpoints: {run.checkpoints}"
