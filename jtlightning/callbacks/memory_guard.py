"""Notice Vars that are kept across steps, before they make a run slow or too large."""

from __future__ import annotations

import gc
import logging
import re
import resource
import types
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jittor as jt
import numpy as np

from jtlightning.callbacks.base import Callback

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer

_log = logging.getLogger(__name__)
_CONTAINERS = (dict, list, tuple, set, deque)
_MIB = 1024.0 * 1024.0
_SLOPE_STEPS = 100  # over fewer the slope is noise
_SLOPE_LOOKS = 8  # likewise: the allocator takes and returns megabytes at a time
_MARGIN = 200  # a few operations more are no multiple worth an alarm, however small the model
_MOST_VARS = 5_000  # as many more are too many, however large the model
_OBSERVED_STEPS = (4, 16, 64, 256)  # after so many steps the observer's findings are read


class MemoryGrowthError(RuntimeError):
    """Far more Vars and operations are alive than in the first steps."""


class MemoryGuard(Callback):
    """Count live Vars and operations at step boundaries, and speak up when they multiply.

    Jittor is lazy: whatever keeps a Var that was computed in a step keeps the step's graph, and
    synchronising it later takes minutes. From half of what raises the alarm on, the guard watches
    hooks and parts of the loop for a few steps, and the alarm names the one that keeps Vars. What
    does not go on rising is no alarm. Only counters are read, which changes no bit.

    At every log step `memory/live_vars`, `memory/live_ops`, `memory/host_mib` and its slope
    `memory/host_mib_per_1000_steps` (least squares over the last 200 looks) are logged; after
    each epoch the allocator's unused blocks are given back.

    Args:
        factor: Alarm where so many times the baseline's Vars or operations are alive.
        every_n_steps: Optimizer steps between two looks.
        warmup_steps: Steps of the process in which the baseline is taken, their smallest number.
        on_alarm: `raise` a `MemoryGrowthError`, or `warn`, once for each doubling.
        max_live_ops: Alarm above so many operations whatever the baseline; from 100,000 on Jittor
            itself becomes slow.
    """

    def __init__(
        self,
        factor: float = 5.0,
        every_n_steps: int = 50,
        warmup_steps: int = 20,
        on_alarm: Literal["raise", "warn"] = "raise",
        max_live_ops: int = 50_000,
    ) -> None:
        if factor <= 1 or every_n_steps < 1 or warmup_steps < 1 or max_live_ops < 1:
            raise ValueError(
                "MemoryGuard needs factor > 1, and every_n_steps, warmup_steps and max_live_ops "
                f">= 1, got {factor}, {every_n_steps}, {warmup_steps} and {max_live_ops}"
            )
        if on_alarm not in ("raise", "warn"):
            raise ValueError(f"MemoryGuard.on_alarm must be raise or warn, got {on_alarm!r}")
        self.factor, self.every_n_steps = factor, every_n_steps
        self.warmup_steps, self.on_alarm = warmup_steps, on_alarm
        self.max_live_ops = max_live_ops
        self._reset()

    def _reset(self) -> None:
        self._steps_done = 0
        self._baseline: dict[str, int] = {}
        self._limits: dict[str, float] = {}
        self._looks: deque[tuple[int, float]] = deque(maxlen=200)  # step, host MiB
        self._watch: _Watch | None = None
        self._findings = ""

    def on_train_start(self, trainer: Trainer, task: Task) -> None:
        gc.collect()  # what an earlier run has left must not raise the baseline
        self._reset()

    def on_train_batch_end(
        self, trainer: Trainer, task: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.at_step_boundary:
            return
        self._steps_done += 1
        if self._steps_done <= self.warmup_steps:
            self._take_baseline()
        elif self._steps_done % self.every_n_steps == 0:
            self._looks.append((trainer.global_step, host_mib()))
        if self._watch is not None:
            self._follow(trainer, task, self._watch)
        elif self._baseline and self._steps_done % self.every_n_steps == 0:
            self._look(trainer, task)
        if trainer.should_log:
            trainer.log_metrics(self._values(trainer))

    def on_train_epoch_end(self, trainer: Trainer, task: Task) -> None:
        jt.gc()

    def teardown(self, trainer: Trainer, task: Task, stage: str) -> None:
        self._end_watch(trainer)

    def _take_baseline(self) -> None:
        # The smallest number: what grows from the first step on must not raise its own limit. In
        # the very first steps the optimizer's moments are still missing.
        if self._steps_done <= min(2, self.warmup_steps - 1):
            return
        now = _alive()
        self._baseline = {k: min(n, self._baseline.get(k, n)) for k, n in now.items()}
        self._set_limits()

    def _set_limits(self) -> None:
        limits = {k: max(self.factor * n, n + _MARGIN) for k, n in self._baseline.items()}
        # A model that begins with as many is left its factor of 1.5.
        highest = max(self.max_live_ops, 1.5 * self._baseline["operations"])
        self._limits = {
            "Vars": min(limits["Vars"], self._baseline["Vars"] + _MOST_VARS),
            "operations": min(limits["operations"], highest),
        }

    def _look(self, trainer: Trainer, task: Task) -> None:
        fullness = self._fullness(trainer)
        if fullness > 0.5 and not self._findings:
            self._watch = _Watch(trainer, task)
            trainer.observers.append(self._watch.observe)
        elif fullness > 1:
            self._alarm(trainer, task)

    def _fullness(self, trainer: Trainer) -> float:
        """Between the baseline, 0, and the limit, 1."""
        now, first = _alive(), self._baseline
        # Logged Vars are held until the log step, without operations.
        kinds = now if trainer.should_log else ["operations"]
        return max((now[k] - first[k]) / (self._limits[k] - first[k]) for k in kinds)

    def _follow(self, trainer: Trainer, task: Task, watch: _Watch) -> None:
        watch.end_step()
        if watch.steps not in _OBSERVED_STEPS:
            return
        self._findings = watch.findings(trainer)
        if not self._findings and watch.steps < _OBSERVED_STEPS[-1]:
            return
        self._end_watch(trainer)
        if self._fullness(trainer) <= 1:
            return
        if self._findings or _alive()["operations"] > self.max_live_ops:
            self._alarm(trainer, task)
        else:  # more than before, but for good reasons: layers were unfrozen, say
            self._baseline = _alive()
            self._set_limits()

    def _end_watch(self, trainer: Trainer) -> None:
        if self._watch is not None and self._watch.observe in trainer.observers:
            trainer.observers.remove(self._watch.observe)
        self._watch = None

    def _alarm(self, trainer: Trainer, task: Task) -> None:
        now, first = _alive(), self._baseline
        counts = " and ".join(f"{now[k]} {k} ({first[k]} at first)" for k in now)
        cause = f"{self._findings}. " if self._findings else "something keeps Vars. "
        message = (
            f"at step {trainer.global_step} there are {counts} alive: {cause}Largest holders: "
            f"{largest_holders(trainer, task)}. Keep numbers or NumPy arrays, log with self.log, "
            "and detach what has to stay a Var"
        )
        if self.on_alarm == "raise":
            raise MemoryGrowthError(message)
        _log.warning("%s", message)
        self._findings = ""
        self._limits = {k: 2.0 * max(n, self._limits[k]) for k, n in now.items()}

    def _values(self, trainer: Trainer) -> dict[str, float]:
        info = jt.liveness_info()
        values = {
            "memory/live_vars": float(info["lived_vars"]),
            "memory/live_ops": float(info["lived_ops"]),
            "memory/host_mib": host_mib(),
        }
        if jt.flags.use_cuda:
            values["memory/device_mib"] = jt.get_mem_info().total_cuda_used / _MIB
        steps, mib = np.array(self._looks).T if self._looks else np.zeros((2, 1))
        if len(steps) >= _SLOPE_LOOKS and steps[-1] - steps[0] >= _SLOPE_STEPS:
            steps = steps - steps.mean()
            slope = (steps * mib).sum() / np.square(steps).sum()
            values["memory/host_mib_per_1000_steps"] = float(1000 * slope)
        return values


class _Watch:
    """Which hook or part of the loop makes and keeps the nodes that stay alive.

    Nodes of the graph are numbered in the order of their making, so the numbers at which a place
    is entered and left tell what was made in it. Containers of Vars are measured by length.
    """

    def __init__(self, trainer: Trainer, task: Task) -> None:
        self.steps = 0
        self._marks: list[tuple[int, str]] = [(_newest_node(), "")]  # from this node on: place
        self._open = [""]
        self._boundaries: deque[int] = deque([self._marks[0][0]], maxlen=2)
        self._boxes = _growing_kinds(_holders(trainer, task)[:50])
        self._gains: Counter[tuple[int, str]] = Counter()

    @contextmanager
    def observe(self, place: str) -> Iterator[None]:
        """What the trainer enters around every place."""
        lengths = [len(box) for box in self._boxes]
        self._open.append(place)
        self._marks.append((_newest_node(), place))
        try:
            yield
        finally:
            self._open.pop()
            self._marks.append((_newest_node(), self._open[-1]))
            for index, (box, before) in enumerate(zip(self._boxes, lengths, strict=True)):
                if len(box) != before:
                    self._gains[index, place] += len(box) - before

    def end_step(self) -> None:
        """Called at every step boundary."""
        self.steps += 1
        self._boundaries.append(_newest_node())

    def findings(self, trainer: Trainer) -> str:
        """Who keeps what, or nothing where nothing accumulates."""
        kept = self._kept_operations()
        texts = self._growing_boxes() or (self._replaced(trainer) if kept else [])
        texts += [
            f"{self._rate(number)} of {place} stay alive"
            for place, number in kept.most_common(3)
            if place and number >= self._least()
        ]
        return "; ".join(texts)

    def _growing_boxes(self) -> list[str]:
        total: Counter[int] = Counter()
        for (index, _), gain in self._gains.items():
            total[index] += gain
        return [
            f"{place} keeps {self._rate(gain, 'Var' if _vars_in(box) else 'container with Var')} "
            f"({_owner(box) or 'a container'})"
            for (index, place), gain in self._gains.most_common()
            for box in [self._boxes[index]]
            if gain > 0 and total[index] >= self._least()
        ]

    def _least(self) -> int:
        """What is kept once, or comes and goes, is no leak."""
        return max(3, self.steps // 8)

    def _replaced(self, trainer: Trainer) -> list[str]:
        """Attributes whose newest Var was made in an observed place and still has a graph."""
        # Not the task's own Vars: a running sum that it keeps is one of its parameters to Jittor.
        known = _known(trainer)
        found: dict[str, None] = {}
        for owner in gc.get_objects():
            if isinstance(owner, types.FrameType):
                continue
            for value in gc.get_referents(owner):
                if type(value) is jt.Var and id(value) not in known and not value.is_stop_grad():
                    place = self._place_of(value.id)
                    where = _attribute(owner, value) or _owner(owner)
                    if place and where:
                        found[f"{place} adds to the graph of {where}"] = None
        return list(found)[:3]

    def _kept_operations(self) -> Counter[str]:
        """Place -> operations made there that are still alive, those of the last step left out."""
        kept, first, last = Counter[str](), self._marks[0][0], self._boundaries[0]
        for node in jt.core.dump_all_graphs().nodes_info:
            number = re.match(r"Op\((\d+)", node)
            if number and first < int(number[1]) < last:
                kept[self._place_of(int(number[1]))] += 1
        return kept

    def _place_of(self, node: int) -> str:
        index = bisect_right(self._marks, node, key=lambda mark: mark[0]) - 1
        return self._marks[index][1] if index >= 0 else ""

    def _rate(self, number: int, what: str = "operation") -> str:
        each = round(number / self.steps)
        count, often = (each, "per step") if each else (number, f"in {self.steps} steps")
        return f"{count} {what}{'s' if count > 1 else ''} {often}"


def host_mib() -> float:
    """Resident memory of this process in MiB; its peak where the system tells only that."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / _MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def largest_holders(trainer: Trainer, task: Task, count: int = 3, *, by_size: bool = False) -> str:
    """The containers with most Vars of others, or `by_size` with most bytes, arrays too."""
    texts = [_describe(box, by_size) for box in _holders(trainer, task, by_size)[:count]]
    return "; ".join(texts) or "no container (a running sum, or a Var updated unread?)"


def _holders(trainer: Trainer, task: Task, by_size: bool = False) -> list[Any]:
    """Every container with Vars of others, the largest one first."""
    known = _known(trainer) | {id(p) for p in task.parameters()}
    found = []
    for container in _containers():
        others = [v for v in _vars_in(container, by_size) if id(v) not in known]
        held = sum(v.nbytes for v in others) if by_size else len(others)
        if held:
            found.append((held, container))
    return [box for _, box in sorted(found, key=lambda entry: entry[0], reverse=True)]


def _growing_kinds(boxes: list[Any]) -> list[Any]:
    """Those that can grow, and those that hold one of them: a list of dicts of Vars, say."""
    outer = [box for box in gc.get_referrers(*boxes) if box is not boxes] if boxes else []
    kinds = (box for box in (*boxes, *outer) if isinstance(box, list | dict | set | deque))
    return list({id(box): box for box in kinds}.values())


def _known(trainer: Trainer) -> set[int]:
    """`id` of the optimizer's Vars: parameters, gradients and moments."""
    groups = [] if trainer.optimizer is None else trainer.optimizer.param_groups
    return {id(v) for g in groups for held in g.values() if isinstance(held, list) for v in held}


def _vars_in(container: Any, arrays_too: bool = False) -> list[Any]:
    values = container.values() if isinstance(container, dict) else container
    kinds = (jt.Var, np.ndarray) if arrays_too else jt.Var
    return [v for v in list(values) if isinstance(v, kinds)]


def _alive() -> dict[str, int]:
    info = jt.liveness_info()
    return {"Vars": int(info["lived_vars"]), "operations": int(info["lived_ops"])}


def _newest_node() -> int:
    """The number of a node made for this purpose; it is gone again at once."""
    return int(jt.array(0).id)


def _containers() -> Iterator[Any]:
    """Every dict, list, tuple, set and deque that a tracked object holds or is."""
    seen: set[int] = set()
    for owner in gc.get_objects():
        # A dict of Vars is not tracked itself.
        for box in (owner, *gc.get_referents(owner)):
            if isinstance(box, _CONTAINERS) and id(box) not in seen:
                seen.add(id(box))
                yield box


def _describe(box: Any, arrays_too: bool) -> str:
    """`Class.attribute: list of 300 Vars, 12.3 MiB`."""
    held, owner = _vars_in(box, arrays_too), _owner(box)
    what = "Vars" if isinstance(held[0], jt.Var) else "arrays"
    mib = sum(v.nbytes for v in held) / _MIB
    text = f"{type(box).__name__} of {len(held)} {what}, {mib:.1f} MiB"
    return f"{owner}: {text}" if owner else text


def _owner(box: Any, depth: int = 2) -> str:
    """`Class.attribute` that is `box` or contains it, if that can be found out."""
    for referrer in gc.get_referrers(box):
        if isinstance(referrer, types.FrameType) or referrer is box:
            continue
        name = _attribute(referrer, box)
        if not name and depth and isinstance(referrer, _CONTAINERS):
            name = _owner(referrer, depth - 1)
        if name and not name.startswith(_Watch.__name__):
            return name
    return ""


def _attribute(holder: Any, value: Any) -> str:
    """`Class.attribute` (or `module.name`) under which `holder` has `value`."""
    if isinstance(holder, types.CellType):
        return "a variable of a closure"
    if isinstance(holder, dict):
        objects, names = gc.get_referrers(holder), holder
        holder = next((o for o in objects if getattr(o, "__dict__", None) is names), None)
    names = getattr(holder, "__dict__", None) or {}
    name = next((key for key, item in list(names.items()) if item is value), None)
    if name is None:
        return ""
    kind = holder if isinstance(holder, types.ModuleType) else type(holder)
    return f"{kind.__name__}.{name}"
