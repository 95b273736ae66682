"""A table of what a task is made of, shown before training."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jittor as jt
import numpy as np
from jittor import nn
from rich import box
from rich.console import Console
from rich.table import Table

from jtlightning.callbacks.base import Callback
from jtlightning.flops import MacCount, count_macs, human

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer

_log = logging.getLogger(__name__)
_STATISTICS = ("running_mean", "running_var")
_MIB = 1024.0 * 1024.0


@dataclass
class SummaryRow:
    """Numbers of elements below one module, by what becomes of them in training."""

    name: str
    kind: str
    trainable: int = 0
    frozen: int = 0
    statistics: int = 0
    mib: float = 0.0
    macs: int | None = None


class ModelSummary(Callback):
    """Show modules with their numbers of trainable, frozen and statistics elements, and MiB.

    Trainable is what the optimizer updates; statistics are running means and variances,
    registered buffers and integers; frozen is the rest. A Var or module that hides from
    `parameters()`, in a plain list or dict or under a name with a leading underscore, is warned
    of: it would be neither trained nor saved.

    Where the task has an attribute `example_input` (a NumPy array, or a tuple of them for several
    arguments; a Var would become a parameter), a column shows the multiply-accumulates of a
    forward pass in evaluation mode: of `task(*example_input)` where the task has `execute`, else
    of `task.model`. `jtlightning.flops` says what counts; nothing is computed for it.

    Args:
        max_depth: Levels of modules shown; 0 shows only the total.
    """

    def __init__(self, max_depth: int = 1) -> None:
        if max_depth < 0:
            raise ValueError(f"ModelSummary.max_depth must be 0 or more, got {max_depth}")
        self.max_depth = max_depth
        self.console = Console()

    def on_fit_start(self, trainer: Trainer, task: Task) -> None:
        groups = None if trainer.optimizer is None else trainer.optimizer.param_groups
        trained = None if groups is None else {id(p) for g in groups for p in g["params"]}
        rows = summarize(task, self.max_depth, trained)
        count = forward_macs(task)
        if count is not None:
            for row in rows:
                row.macs = count.by_module.get(row.name, 0)
            rows[-1].macs = count.total
        console = self.console
        # A file or pipe has no width: without one, long module names would be cut.
        console.print(_table(rows), width=None if console.is_terminal else 120)
        for place in hidden_places(task):
            _log.warning(
                "%s is invisible to parameters(): it is neither trained nor saved. Use a public "
                "attribute, nn.ModuleList or nn.ParameterList",
                place,
            )


def summarize(
    module: nn.Module, max_depth: int = 1, trained: set[int] | None = None
) -> list[SummaryRow]:
    """One row per module down to `max_depth`, and the total last.

    Args:
        module: What to describe.
        max_depth: Levels below `module`.
        trained: `id` of each Var that an optimizer updates; None: all that take gradients.
    """
    total = SummaryRow("total", type(module).__name__)
    rows = {
        name: SummaryRow(name, type(child).__name__)
        for name, child in module.named_modules()
        if name and name.count(".") < max_depth
    }
    for name, value in module.named_parameters():
        kind = _kind(name, value, trained)
        parts = name.split(".")
        ancestors = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        for row in [total, *(rows[path] for path in ancestors if path in rows)]:
            setattr(row, kind, getattr(row, kind) + value.numel())
            row.mib += value.nbytes / _MIB
    return [*rows.values(), total]


def forward_macs(task: Any) -> MacCount | None:
    """Multiply-accumulates of `task.example_input` in evaluation mode, or None without one.

    Raises:
        ValueError: There is an example, but nothing that takes it.
    """
    example = getattr(task, "example_input", None)
    if example is None:
        return None
    has_own = type(task).execute is not nn.Module.execute
    network = task if has_own else getattr(task, "model", None)
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"{type(task).__name__}.example_input is set, but the task has neither execute() nor "
            "a `model` that could take it; leave it None"
        )
    inputs = example if isinstance(example, tuple) else (example,)
    values = [jt.array(x) if isinstance(x, np.ndarray) else x for x in inputs]
    modes = [(module, module.is_training()) for module in task.modules()]
    try:
        # In training mode the running statistics would take the example in.
        for module, _ in modes:
            module.is_train = False
        return count_macs(task, lambda: network(*values))
    finally:
        for module, mode in modes:
            module.is_train = mode


def hidden_places(module: nn.Module) -> list[str]:
    """Attributes with Vars or modules that `parameters()` does not see, as `path: what`."""
    places = []
    for path, child in module.named_modules():
        if isinstance(child, nn.Sequential | nn.ParameterList):
            continue  # keep their children in a dict, and know about them
        for name, value in vars(child).items():
            if isinstance(value, nn.Module):
                continue  # modules are found whatever their name
            number = sum(1 for _ in _contents(value))
            if isinstance(value, jt.Var):
                number, what = int(name.startswith("_")), "a Var with a leading underscore"
            else:
                what = f"{type(value).__name__} with {number} Vars or modules"
            if number:
                places.append(f"{path}.{name} ({what})" if path else f"{name} ({what})")
    return places


def _contents(value: Any) -> Iterator[Any]:
    if isinstance(value, jt.Var | nn.Module):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _contents(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _contents(item)


def _kind(name: str, value: jt.Var, trained: set[int] | None) -> str:
    if value.requires_grad if trained is None else id(value) in trained and value.requires_grad:
        return "trainable"
    # Jittor marks nothing but registered buffers, by this attribute.
    is_buffer = getattr(value, "persistent", None) is not None
    if is_buffer or name.rsplit(".", 1)[-1] in _STATISTICS or not value.dtype.is_float():
        return "statistics"
    return "frozen"


def _table(rows: list[SummaryRow]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("module", overflow="fold")
    table.add_column("type")
    counted = rows[-1].macs is not None
    for title in ("trainable", "frozen", "statistics", "MiB", *["MACs"] * counted):
        table.add_column(title, justify="right")
    for row in rows:
        if row is rows[-1]:
            table.add_section()
        counts = (f"{number:,}" for number in (row.trainable, row.frozen, row.statistics))
        macs = [human(row.macs)] if row.macs is not None else []
        table.add_row(row.name, row.kind, *counts, f"{row.mib:.2f}", *macs)
    return table
