"""End a run as soon as something that it logs or learns is no longer finite."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jittor as jt
import numpy as np

from jtlightning.callbacks.base import Callback

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer


class NonFiniteError(RuntimeError):
    """A metric or a parameter is NaN or infinite."""


class NaNGuard(Callback):
    """Raise `NonFiniteError` for a metric or a parameter that is NaN or infinite.

    The trainer itself refuses a loss that is not finite, before the update. This looks at the
    rest: at every log step at the newest metrics (the gradient norm among them, where gradients
    are clipped by norm) and at the parameters and running statistics, and after a validation or
    an epoch at the metrics.

    Args:
        every_n_steps: Optimizer steps between two looks at the parameters; by default the
            trainer's `log_every_n_steps`.
        ignore_metrics: Names of metrics that may be NaN or infinite.
    """

    def __init__(
        self, every_n_steps: int | None = None, ignore_metrics: list[str] | None = None
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"NaNGuard.every_n_steps must be >= 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.ignore_metrics = frozenset(ignore_metrics or ())

    def on_train_batch_end(
        self, trainer: Trainer, task: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.at_step_boundary:
            return
        where = f"epoch {trainer.current_epoch}, step {trainer.global_step}, batch {batch_idx}"
        if trainer.should_log:
            self._check_metrics(trainer, where)
        every = self.every_n_steps
        if trainer.should_log if every is None else trainer.global_step % every == 0:
            self._check_parameters(task, where)

    def on_validation_end(self, trainer: Trainer, task: Task) -> None:
        if not trainer.sanity_checking:
            after = f"the validation after step {trainer.global_step}"
            self._check_metrics(trainer, f"{after}, epoch {trainer.current_epoch}")

    def on_train_epoch_end(self, trainer: Trainer, task: Task) -> None:
        self._check_metrics(
            trainer, f"the end of epoch {trainer.current_epoch}, step {trainer.global_step}"
        )

    def _check_metrics(self, trainer: Trainer, where: str) -> None:
        bad = {
            name: value
            for name, value in trainer.metrics.items()
            if not math.isfinite(value) and name not in self.ignore_metrics
        }
        if bad:
            values = ", ".join(f"{name} is {value}" for name, value in bad.items())
            raise NonFiniteError(
                f"{values} at {where}. If that is meant to happen, name it in "
                "NaNGuard.ignore_metrics"
            )

    def _check_parameters(self, task: Task, where: str) -> None:
        named = [(name, p) for name, p in task.named_parameters() if p.dtype.is_float()]
        # Kernels are compiled with fast-math: isfinite and x - x take NaN for a number, a sum
        # of magnitudes does not.
        with jt.no_grad():
            wide = [p if p.dtype == "float32" else p.float32() for _, p in named]
            sums = jt.fetch_sync([p.abs().sum() for p in wide])
        # A sum of large values may overflow, so the values themselves decide.
        bad = [
            name
            for (name, _), p, s in zip(named, wide, sums, strict=True)
            if not (math.isfinite(s.item()) or np.isfinite(p.numpy()).all())
        ]
        if bad:
            more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
            raise NonFiniteError(
                f"parameters are NaN or infinite at {where}: {', '.join(bad[:5])}{more}. Continue "
                "from the last checkpoint with a smaller learning rate or with gradient_clip_val"
            )
