"""Notice Vars that are kept across steps, before they make a run slow or too large."""

from __future__ import annotations

import gc
import logging
import resource
import types
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jittor as jt

from jtlightning.callbacks.base import Callback

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer

_log = logging.getLogger(__name__)
_CONTAINERS = (dict, list, tuple, set, deque)
_MIB = 1024.0 * 1024.0
_SLOPE_STEPS = 100  # over fewer the slope is noise


class MemoryGrowthError(RuntimeError):
    """Far more Vars and operations are alive than in the first steps."""


class MemoryGuard(Callback):
    """Count live Vars and operations at step boundaries, and speak up when they multiply.

    Jittor is lazy: whatever keeps a Var that was computed in a step keeps the step's graph, and
    synchronising it later takes minutes. At every log step `memory/live_vars`,
    `memory/live_ops`, `memory/host_mib` and its slope `memory/host_mib_per_1000_steps` are
    logged; after each epoch the allocator's unused blocks are given back.

    Args:
        factor: Alarm where so many times the baseline's Vars and operations are alive.
        every_n_steps: Optimizer steps between two looks.
        warmup_steps: Steps of the process after which the baseline is taken.
        on_alarm: `raise` a `MemoryGrowthError`, or `warn`, once for each doubling.
    """

    def __init__(
        self,
        factor: float = 5.0,
        every_n_steps: int = 50,
        warmup_steps: int = 20,
        on_alarm: Literal["raise", "warn"] = "raise",
    ) -> None:
        if factor <= 1 or every_n_steps < 1 or warmup_steps < 1:
            raise ValueError(
                "MemoryGuard needs factor > 1, every_n_steps >= 1 and warmup_steps >= 1, "
                f"got {factor}, {every_n_steps} and {warmup_steps}"
            )
        if on_alarm not in ("raise", "warn"):
            raise ValueError(f"MemoryGuard.on_alarm must be raise or warn, got {on_alarm!r}")
        self.factor, self.every_n_steps = factor, every_n_steps
        self.warmup_steps, self.on_alarm = warmup_steps, on_alarm
        self._steps_done = 0
        self._baseline: tuple[int, int, float] | None = None  # step, alive, host MiB
        self._limit = 0.0

    def on_train_start(self, trainer: Trainer, task: Task) -> None:
        self._steps_done, self._baseline = 0, None

    def on_train_batch_end(
        self, trainer: Trainer, task: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.at_step_boundary:
            return
        self._steps_done += 1
        if self._steps_done == self.warmup_steps:
            alive = max(_alive(), 1)
            self._baseline = trainer.global_step, alive, host_mib()
            self._limit = self.factor * alive
        elif self._baseline is not None and self._steps_done % self.every_n_steps == 0:
            self._look(trainer, task)
        if trainer.should_log:
            trainer.log_metrics(self._values(trainer))

    def on_train_epoch_end(self, trainer: Trainer, task: Task) -> None:
        jt.gc()

    def _look(self, trainer: Trainer, task: Task) -> None:
        assert self._baseline is not None
        alive = _alive()
        if alive <= self._limit:
            return
        first_step, first, _ = self._baseline
        message = (
            f"at step {trainer.global_step} {alive} Vars and operations are alive, "
            f"{alive / first:.1f} times the {first} of step {first_step}: something keeps Vars of "
            f"earlier steps. Largest holders: {largest_holders(trainer, task)}. Keep numbers or "
            "NumPy arrays, log with self.log, and detach what has to stay a Var"
        )
        if self.on_alarm == "raise":
            raise MemoryGrowthError(message)
        _log.warning("%s", message)
        self._limit = 2.0 * alive

    def _values(self, trainer: Trainer) -> dict[str, float]:
        info, now_mib = jt.liveness_info(), host_mib()
        values = {
            "memory/live_vars": float(info["lived_vars"]),
            "memory/live_ops": float(info["lived_ops"]),
            "memory/host_mib": now_mib,
        }
        if jt.flags.use_cuda:
            values["memory/device_mib"] = jt.get_mem_info().total_cuda_used / _MIB
        steps = trainer.global_step - self._baseline[0] if self._baseline is not None else 0
        if self._baseline is not None and steps >= _SLOPE_STEPS:
            values["memory/host_mib_per_1000_steps"] = (now_mib - self._baseline[2]) / steps * 1000
        return values


def host_mib() -> float:
    """Resident memory of this process in MiB; its peak where the system tells only that."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / _MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def largest_holders(trainer: Trainer, task: Task, count: int = 3) -> str:
    """The containers that hold most Vars other than the task's and the optimizer's own."""
    groups = [] if trainer.optimizer is None else trainer.optimizer.param_groups
    known = {id(p) for p in task.parameters()}
    known |= {id(v) for g in groups for held in g.values() if isinstance(held, list) for v in held}
    found: list[tuple[int, float, Any]] = []
    for container in _containers():
        values = container.values() if isinstance(container, dict) else container
        held = [v for v in list(values) if isinstance(v, jt.Var) and id(v) not in known]
        if held:
            found.append((len(held), sum(v.nbytes for v in held) / _MIB, container))
    found.sort(key=lambda entry: entry[0], reverse=True)
    texts = [
        f"{type(box).__name__} of {number} Vars ({mib:.1f} MiB){_owner(box)}"
        for number, mib, box in found[:count]
    ]
    return "; ".join(texts) or "no container (a running sum, or a Var updated unread?)"


def _alive() -> int:
    jt.sync_all()
    info = jt.liveness_info()
    return int(info["lived_vars"] + info["lived_ops"])


def _containers() -> Iterator[Any]:
    """Every dict, list, tuple, set and deque that a tracked object holds or is."""
    seen: set[int] = set()
    for owner in gc.get_objects():
        # Vars do not take part in garbage collection, so a dict of Vars is not tracked itself.
        for box in (owner, *gc.get_referents(owner)):
            if isinstance(box, _CONTAINERS) and id(box) not in seen:
                seen.add(id(box))
                yield box


def _owner(box: Any) -> str:
    """` in Class.attribute`, if that can be found out."""
    for referrer in gc.get_referrers(box):
        if isinstance(referrer, types.FrameType) or referrer is box:
            continue
        if isinstance(referrer, dict):
            objects = gc.get_referrers(referrer)
            holder = next((o for o in objects if getattr(o, "__dict__", None) is referrer), None)
            names = referrer
        else:
            holder, names = referrer, getattr(referrer, "__dict__", {})
        name = next((key for key, value in list(names.items()) if value is box), None)
        if holder is not None and name is not None:
            is_module = isinstance(holder, types.ModuleType)
            return f" in {holder.__name__ if is_module else type(holder).__name__}.{name}"
    return ""
