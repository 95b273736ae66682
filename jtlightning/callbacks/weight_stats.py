"""Log how large weights, their updates and their gradients are."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Literal

import jittor as jt
import numpy as np

from jtlightning.callbacks.base import Callback

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer


class WeightStats(Callback):
    """Log statistics of the trainable weights every so many steps, per module or per parameter.

    Logged are `weight_norm/<name>`, `weight_mean/<name>`, `weight_std/<name>`, `grad_norm/<name>`
    (of the gradient that the update used, after clipping) and `update_ratio/<name>`: the norm of
    the step's change over the norm of the weights before it, around 0.001 where training goes well.
    It is left out while the weights are all zero. Everything is read after a step boundary, so
    the training is bit for bit the one without this callback. A logged step costs two copies of
    the weights and one of the gradients to the host, other steps nothing.

    Args:
        every_n_steps: Optimizer steps between two values.
        by: `module`: one value for all parameters of a module (its weight and its bias, say);
            `parameter`: each on its own.
        pattern: Regular expression; only parameters in whose name it is found are looked at.
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        by: Literal["module", "parameter"] = "module",
        pattern: str = "",
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"WeightStats.every_n_steps must be >= 1, got {every_n_steps}")
        if by not in ("module", "parameter"):
            raise ValueError(f"WeightStats.by must be module or parameter, got {by!r}")
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"WeightStats.pattern {pattern!r}: {error}") from error
        self.every_n_steps, self.by, self.pattern = every_n_steps, by, pattern
        self._before: dict[str, np.ndarray] = {}  # the weights one step before a logged one

    def on_train_start(self, trainer: Trainer, task: Task) -> None:
        named = dict(task.named_parameters())
        if self.pattern and not any(self._pattern.search(name) for name in named):
            raise ValueError(
                f"WeightStats.pattern {self.pattern!r} is found in no parameter's name; there "
                f"are {', '.join(list(named)[:5])}{' and others' if len(named) > 5 else ''}"
            )
        self._keep(trainer, task)

    def on_train_batch_end(
        self, trainer: Trainer, task: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.at_step_boundary:
            return
        if trainer.global_step % self.every_n_steps == 0:
            trainer.log_metrics(self._values(trainer, task))
        self._keep(trainer, task)

    def _keep(self, trainer: Trainer, task: Task) -> None:
        """Copy the weights to the host if the coming step is one that is logged."""
        self._before = {}
        if (trainer.global_step + 1) % self.every_n_steps == 0:
            wanted = {n: p for n, p in task.named_parameters() if not p.is_stop_grad()}
            self._before = _fetch({n: p for n, p in wanted.items() if self._pattern.search(n)})

    def _values(self, trainer: Trainer, task: Task) -> dict[str, float]:
        gradients = {n: g for n, g in trainer.gradients() if self._pattern.search(n)}
        named = dict(task.named_parameters())
        after = _fetch({name: named[name] for name in gradients})
        slopes = _fetch(gradients)
        sums: dict[str, _Sums] = {}
        for name, weight in after.items():
            group = name.rpartition(".")[0] or name if self.by == "module" else name
            total = sums.setdefault(group, _Sums())
            total.add(weight, self._before.get(name), slopes[name])
        return {
            f"{what}/{name}": value
            for name, total in sums.items()
            for what, value in total.values().items()
        }


class _Sums:
    """Sums over all elements of some parameters, in double precision."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = self.squares = self.gradient = 0.0
        self.before = self.update = 0.0

    def add(self, weight: np.ndarray, before: np.ndarray | None, gradient: np.ndarray) -> None:
        wide = weight.astype(np.float64).ravel()
        self.count += wide.size
        self.sum += float(wide.sum())
        self.squares += float(wide @ wide)
        slope = gradient.astype(np.float64).ravel()
        self.gradient += float(slope @ slope)
        if before is not None:
            old = before.astype(np.float64).ravel()
            self.before += float(old @ old)
            change = wide - old
            self.update += float(change @ change)

    def values(self) -> dict[str, float]:
        mean = self.sum / self.count
        values = {
            "weight_norm": math.sqrt(self.squares),
            "weight_mean": mean,
            "weight_std": math.sqrt(max(self.squares / self.count - mean * mean, 0.0)),
            "grad_norm": math.sqrt(self.gradient),
        }
        if self.before > 0:
            values["update_ratio"] = math.sqrt(self.update / self.before)
        return values


def _fetch(named: dict[str, jt.Var]) -> dict[str, np.ndarray]:
    arrays = jt.fetch_sync(list(named.values())) if named else []
    return dict(zip(named, arrays, strict=True))
