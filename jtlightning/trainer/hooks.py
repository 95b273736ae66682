"""Which methods a hook's name stands for, in the documented order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from jtlightning.callbacks.base import Callback

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer.trainer import Trainer

_NAMES = [
    name for name in vars(Callback) if name.startswith("on_") or name in {"setup", "teardown"}
]


class Hooks:
    """Calls hooks of callbacks (list order), then of the task; only overridden ones cost time."""

    def __init__(self, trainer: Trainer, task: Task, callbacks: Sequence[Callback]) -> None:
        self._first: dict[str, list[Callable[..., Any]]] = {}
        self._last: dict[str, list[Callable[..., Any]]] = {}
        for name in _NAMES:
            overriding = [
                c for c in callbacks if getattr(type(c), name) is not vars(Callback)[name]
            ]
            late = name == "on_train_epoch_end"
            first = [c for c in overriding if not (late and c.runs_after_task)]
            methods = [partial(getattr(c, name), trainer, task) for c in first]
            own = getattr(task, name, None)
            self._first[name] = [*methods, own] if own is not None else list(methods)
            last = [c for c in overriding if late and c.runs_after_task]
            self._last[name] = [partial(getattr(c, name), trainer, task) for c in last]

    def call(self, name: str, *args: Any) -> None:
        """Call the hook `name` of every callback and of the task."""
        for method in self._first[name]:
            method(*args)

    def call_after_task(self, name: str, *args: Any) -> None:
        """Call the hook of the callbacks that asked to run after the task's."""
        for method in self._last[name]:
            method(*args)

    def teardown(self, stage: str) -> None:
        """Call every `teardown` in order, also after one of them failed."""
        with ExitStack() as stack:
            for method in reversed(self._first["teardown"]):
                stack.callback(method, stage)
