"""Which methods a hook's name stands for, in the documented order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from jtlightning.callbacks.base import Callback

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer.running import Running

#: Name for observers, and what to call.
_Method = tuple[str, Callable[..., Any]]
_NAMES = [
    name for name in vars(Callback) if name.startswith("on_") or name in {"setup", "teardown"}
]


class Hooks:
    """Calls hooks of callbacks (list order), then of the task; only overridden ones cost time.

    Without a task it calls nothing, as in a trial.
    """

    def __init__(
        self, trainer: Running, task: Task | None = None, callbacks: Sequence[Callback] = ()
    ) -> None:
        self._trainer = trainer
        self._first: dict[str, list[_Method]] = {}
        self._last: dict[str, list[_Method]] = {}
        for name in _NAMES:
            overriding = [
                c for c in callbacks if getattr(type(c), name) is not vars(Callback)[name]
            ]
            late = name == "on_train_epoch_end"
            first = [c for c in overriding if not (late and c.runs_after_task)]
            methods = [_bound(c, name, trainer, task) for c in first]
            own = getattr(task, name, None)
            if own is not None:
                methods.append((f"{type(task).__name__}.{name}", own))
            self._first[name] = methods
            last = [c for c in overriding if late and c.runs_after_task]
            self._last[name] = [_bound(c, name, trainer, task) for c in last]

    def call(self, name: str, *args: Any) -> None:
        """Call the hook `name` of every callback and of the task."""
        self._call(self._first[name], args)

    def call_after_task(self, name: str, *args: Any) -> None:
        """Call the hook of the callbacks that asked to run after the task's."""
        self._call(self._last[name], args)

    def teardown(self, stage: str) -> None:
        """Call every `teardown` in order, also after one of them failed."""
        with ExitStack() as stack:
            for _, method in reversed(self._first["teardown"]):
                stack.callback(method, stage)

    def _call(self, methods: list[_Method], args: tuple[Any, ...]) -> None:
        if not self._trainer.observers:
            for _, method in methods:
                method(*args)
            return
        for place, method in methods:
            with self._trainer.observe(place):
                method(*args)


def _bound(callback: Callback, name: str, trainer: Running, task: Task | None) -> _Method:
    return f"{type(callback).__name__}.{name}", partial(getattr(callback, name), trainer, task)
