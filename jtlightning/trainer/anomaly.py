"""Which module or gradient was not finite first: looked for once the loss or a norm is not.

Nothing here runs in a step that goes well, so training has the same bits and speed with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import is_dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import jittor as jt
import numpy as np
from jittor import nn

if TYPE_CHECKING:
    from jtlightning.task import Task

_SHOWN = 5  # names in a message


def name_first_non_finite(
    task: Task, run_step: Callable[[], Any], *, loss_was_finite: bool = False
) -> str | None:
    """Name the first module whose output is not finite while `run_step` runs.

    Every module's output is read as soon as it exists, and the run is broken off at the first
    that holds NaN or infinity. Hooks of the modules are called as ever.

    Args:
        task: Whose modules are looked at.
        run_step: Runs the forward pass of the same micro-batch from the same state; what it
            returns is the loss, or a dict that holds it as `loss`.
        loss_was_finite: The loss was finite, and a gradient was not: a rectifier, for one, takes
            NaN for 0, so that a NaN in the batch may reach the gradients alone.

    Returns:
        None where the loss was finite and so is every output; else a sentence without its full
        stop, such as `model.norm (LayerNorm): output has 12 NaN of 4096 values; its inputs were
        finite`.
    """
    parameters = non_finite_names(list(task.named_parameters()), what="")
    if parameters:
        return f"parameters or statistics are not finite already: {parameters}"
    with ExitStack() as restore:
        for name, module in task.named_modules():
            _wrap(module, name, restore)
        try:
            outputs = run_step()
        except _FoundError as found:
            return str(found)
    if loss_was_finite:
        return None
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    step = f"{type(task).__name__}.training_step"
    if _describe(loss):
        return f"every module's output is finite, so it arises in {step} itself, in the loss"
    return f"a second run of {step} on this batch was finite, so it does not happen every time"


def non_finite_names(named: Sequence[tuple[str, jt.Var]], what: str | None = None) -> str:
    """Names and numbers of NaN and infinity, the first five of them, by the values themselves.

    Args:
        named: Name and Var of each parameter or gradient.
        what: What to return where all are finite; by default the largest magnitude, as then only
            a norm over them was not.
    """
    found, largest = [], 0.0
    for name, value in named:
        text = _describe(value)
        if text:
            found.append(f"{name} ({text})")
        elif what is None and value.numel() and value.dtype.is_float():
            largest = max(largest, float(np.abs(_numbers(value)).max()))
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    if found or what is not None:
        return ", ".join(found[:_SHOWN]) + more if found else what or ""
    return f"none by itself, but squares of magnitudes up to {largest:.3g} overflow"


class _FoundError(Exception):
    """Ends the second run of a step; its text says where."""


def _wrap(module: nn.Module, name: str, restore: ExitStack) -> None:
    """Let `module` look at its output; the class, hooks and an own `execute` stay as they are."""
    attributes, execute = vars(module), module.execute
    where = f"{name or 'the task'} ({type(module).__name__})"

    @wraps(execute)
    def looking(*args: Any, **kwargs: Any) -> Any:
        # Before the call, as a module may change its input in place.
        inputs = _first_non_finite((args, kwargs))
        output = execute(*args, **kwargs)
        found = _first_non_finite(output)
        if found:
            whose = f"its input{inputs} already" if inputs else "its inputs were finite"
            raise _FoundError(f"{where}: output{found}; {whose}")
        return output

    if "execute" in attributes:
        restore.callback(partial(attributes.__setitem__, "execute", execute))
    else:
        restore.callback(partial(attributes.pop, "execute"))
    attributes["execute"] = looking


def _first_non_finite(values: Any) -> str:
    """` 1 has 3 NaN of 8 values` for the first Var that is not finite, or nothing."""
    found = [(index, _describe(value)) for index, value in enumerate(_vars_in(values))]
    several = len(found) > 1
    return next((f"{f' {i}' if several else ''} has {text}" for i, text in found if text), "")


def _vars_in(value: Any) -> Iterator[jt.Var]:
    if isinstance(value, jt.Var):
        yield value
    elif isinstance(value, dict):
        yield from _vars_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _vars_in(item)
    elif is_dataclass(value):
        yield from _vars_in(vars(value))


def _describe(value: Any) -> str:
    """`3 NaN and 1 infinite of 8 values`, or nothing where all are finite."""
    if not isinstance(value, jt.Var) or not value.dtype.is_float():
        return ""
    numbers = _numbers(value)
    nan, infinite = int(np.isnan(numbers).sum()), int(np.isinf(numbers).sum())
    counts = [f"{nan} NaN"] * bool(nan) + [f"{infinite} infinite"] * bool(infinite)
    return f"{' and '.join(counts)} of {numbers.size} values" if counts else ""


def _numbers(value: jt.Var) -> np.ndarray:
    # In NumPy: Jittor's kernels are compiled with fast-math, where isfinite(nan) is true.
    wide = value if value.dtype in ("float32", "float64") else value.float32()
    return np.asarray(wide.numpy())
