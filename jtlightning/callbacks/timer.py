"""Log how long a run has trained and evaluated."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from jtlightning.callbacks.base import Callback

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer


class Timer(Callback):
    """Log `time/train_s` and `time/validation_s`, summed over the processes of the run."""

    def __init__(self) -> None:
        self.train_s = self.validation_s = 0.0
        self._since_s: float | None = None

    def on_train_start(self, trainer: Trainer, task: Task) -> None:
        self._since_s = time.monotonic()

    def on_validation_start(self, trainer: Trainer, task: Task) -> None:
        self.train_s += self._lap()

    def on_validation_end(self, trainer: Trainer, task: Task) -> None:
        self.validation_s += self._lap()
        self._log(trainer)

    def on_train_epoch_end(self, trainer: Trainer, task: Task) -> None:
        self.train_s += self._lap()
        self._log(trainer)

    def state_dict(self) -> dict[str, Any]:
        self.train_s += self._lap()
        return {"train_s": self.train_s, "validation_s": self.validation_s}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.train_s, self.validation_s = state["train_s"], state["validation_s"]

    def _log(self, trainer: Trainer) -> None:
        if self._since_s is not None:
            trainer.log_metrics(
                {"time/train_s": self.train_s, "time/validation_s": self.validation_s}
            )

    def _lap(self) -> float:
        """Seconds since the last call; 0 before training starts, as in the sanity check."""
        if self._since_s is None:
            return 0.0
        now = time.monotonic()
        lap, self._since_s = now - self._since_s, now
        return lap
