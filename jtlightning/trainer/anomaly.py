"""Which module or gradient was not finite first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jittor as jt

if TYPE_CHECKING:
    from jtlightning.task import Task


def name_first_non_finite(task: Task, run_step: Callable[[], Any]) -> str | None:
    """Name the first module whose output is not finite while `run_step` runs."""
    return None


def non_finite_names(named: Sequence[tuple[str, jt.Var]]) -> str:
    """The names of those Vars that hold NaN or infinity, the first five of them."""
    sums = jt.fetch_sync([value.float32().abs().sum() for _, value in named])
    bad = [name for (name, _), s in zip(named, sums, strict=True) if not math.isfinite(s.item())]
    return ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
