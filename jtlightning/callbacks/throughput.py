"""Log how fast training runs, and how long it waits for data."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from jtlightning.callbacks.base import Callback

if TYPE_CHECKING:
    from jtlightning.checkpoint.container import Checkpoint
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer


class _Reading(NamedTuple):
    time_s: float
    data_wait_s: float
    samples: int
    step: int


class Throughput(Callback):
    """Log speed over the last steps, without validations and the writing of checkpoints.

    Logged are `throughput/samples_per_s`, `throughput/steps_per_s`, `throughput/ms_per_step` and
    `throughput/data_wait_percent` (0 to 100, the share of the time in which training waited for
    a batch).

    Args:
        window: Optimizer steps that a value covers.
        skip_steps: First steps of the process that are left out, as they compile kernels.
        every_n_steps: Optimizer steps between two values; by default the trainer's
            `log_every_n_steps`.
    """

    def __init__(
        self, window: int = 50, skip_steps: int = 3, every_n_steps: int | None = None
    ) -> None:
        if window < 1 or skip_steps < 0 or (every_n_steps is not None and every_n_steps < 1):
            raise ValueError(
                "Throughput needs window >= 1, skip_steps >= 0 and every_n_steps >= 1, "
                f"got {window}, {skip_steps} and {every_n_steps}"
            )
        self.skip_steps, self.every_n_steps = skip_steps, every_n_steps
        self._readings: deque[_Reading] = deque(maxlen=window + 1)
        self._steps_done = 0
        self._paused_s = 0.0
        self._pause_s = 0.0  # when the present validation began
        # Checkpoints are written behind a hook of this callback and before its next one.
        self._between: tuple[float, float] | None = None  # since when: time, data wait
        self._saved = False

    def on_train_start(self, trainer: Trainer, task: Task) -> None:
        self._readings.clear()
        self._steps_done, self._paused_s = 0, 0.0
        self._between, self._saved = None, False

    def on_train_batch_start(
        self, trainer: Trainer, task: Task, batch: Any, batch_idx: int
    ) -> None:
        self._leave_saving(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, task: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.at_step_boundary:
            return
        self._steps_done += 1
        if self._steps_done >= self.skip_steps:
            self._readings.append(self._read(trainer))
        every = self.every_n_steps
        if trainer.should_log if every is None else trainer.global_step % every == 0:
            values = self._values()
            if values:
                trainer.log_metrics(values)
        self._between = time.perf_counter(), trainer.data_wait_s

    def on_validation_start(self, trainer: Trainer, task: Task) -> None:
        self._leave_saving(trainer)
        self._pause_s = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, task: Task) -> None:
        now_s = time.perf_counter()
        self._paused_s += now_s - self._pause_s
        self._between, self._saved = (now_s, trainer.data_wait_s), False

    def on_save_checkpoint(self, trainer: Trainer, task: Task, checkpoint: Checkpoint) -> None:
        self._saved = True

    def _leave_saving(self, trainer: Trainer) -> None:
        """Leave out the time since the last hook if a checkpoint was written in it.

        What went into waiting for data stays in.
        """
        if self._saved and self._between is not None:
            since_s, waited_s = self._between
            waited_s = trainer.data_wait_s - waited_s
            self._paused_s += max(time.perf_counter() - since_s - waited_s, 0.0)
        self._between, self._saved = None, False

    def _read(self, trainer: Trainer) -> _Reading:
        now_s = time.perf_counter() - self._paused_s
        return _Reading(now_s, trainer.data_wait_s, trainer.samples_seen, trainer.global_step)

    def _values(self) -> dict[str, float]:
        if len(self._readings) < 2:
            return {}
        first, last = self._readings[0], self._readings[-1]
        seconds, steps = last.time_s - first.time_s, last.step - first.step
        if seconds <= 0 or steps <= 0:
            return {}
        waited_s = last.data_wait_s - first.data_wait_s
        return {
            "throughput/samples_per_s": (last.samples - first.samples) / seconds,
            "throughput/steps_per_s": steps / seconds,
            "throughput/ms_per_step": 1000 * seconds / steps,
            "throughput/data_wait_percent": min(100 * waited_s / seconds, 100.0),
        }
