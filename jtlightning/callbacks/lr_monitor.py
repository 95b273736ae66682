"""Log the learning rates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jtlightning.callbacks.base import Callback

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer


class LearningRateMonitor(Callback):
    """Log the learning rate of each parameter group, `lr` or `lr/<group>`.

    Args:
        every_n_steps: Optimizer steps between two values; by default the trainer's
            `log_every_n_steps`, so that they stand in one row with the other metrics.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"LearningRateMonitor.every_n_steps must be >= 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self, trainer: Trainer, task: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.at_step_boundary:
            return
        every = self.every_n_steps
        if trainer.should_log if every is None else trainer.global_step % every == 0:
            trainer.log_metrics(trainer.learning_rates())
