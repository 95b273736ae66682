"""Stop a run that no longer improves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from jtlightning.callbacks.base import Callback, check_monitored

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer


class EarlyStopping(Callback):
    """Stop once `monitor` has not improved for `patience` validations in a row.

    Args:
        monitor: Name of the metric, such as `val/miou`; an unknown one is an error at the first
            (trial) validation. Without validation data it is looked at after each epoch.
        mode: Whether the metric should be small (`min`) or large (`max`).
        patience: Validations without improvement that end the run.
        min_delta: An improvement has to be larger than this.
        stopping_threshold: Stop at once when the metric is better than this.
        divergence_threshold: Stop at once when the metric is worse than this.
        check_finite: Stop at once when the metric is NaN or infinite; otherwise such a value
            counts as no improvement.
    """

    runs_after_task = True

    def __init__(
        self,
        monitor: str,
        mode: Literal["min", "max"] = "min",
        patience: int = 3,
        *,
        min_delta: float = 0.0,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_finite: bool = True,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"EarlyStopping.mode must be min or max, got {mode!r}")
        if patience < 1 or min_delta < 0:
            raise ValueError(
                "EarlyStopping needs patience >= 1 and min_delta >= 0, "
                f"got {patience} and {min_delta}"
            )
        self.monitor, self.patience, self.min_delta = monitor, patience, min_delta
        self.sign = 1.0 if mode == "max" else -1.0
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.check_finite = check_finite
        self.best: float | None = None
        self.waited = 0

    @property
    def state_key(self) -> str:
        return f"EarlyStopping({self.monitor})"

    def on_sanity_check_end(self, trainer: Trainer, task: Task) -> None:
        check_monitored(trainer.metrics, self.monitor)

    def on_validation_end(self, trainer: Trainer, task: Task) -> None:
        if not trainer.sanity_checking and trainer.stage == "fit":
            self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, task: Task) -> None:
        if trainer.num_val_batches == 0:
            self._look(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]

    def _look(self, trainer: Trainer) -> None:
        value = trainer.metrics[self.monitor]
        # A NaN compares false with everything, so it counts as no improvement.
        if self.best is None and not math.isnan(value):
            improved = True
        else:
            improved = self._better(value, self.best, by=self.min_delta)
        if improved:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        reason = self._reason(value)
        if reason is not None:
            trainer.stop(reason)

    def _better(self, value: float, than: float | None, *, by: float = 0.0) -> bool:
        return than is not None and self.sign * (value - than) > by

    def _reason(self, value: float) -> str | None:
        """Why to stop, if so."""
        if self.check_finite and not math.isfinite(value):
            return f"{self.monitor} is {value}"
        if self._better(value, self.stopping_threshold):
            return f"{self.monitor} reached {value:.4g}, past {self.stopping_threshold:.4g}"
        limit = self.divergence_threshold
        if limit is not None and self._better(limit, value):
            return f"{self.monitor} diverged to {value:.4g}, past {limit:.4g}"
        if self.waited >= self.patience:
            best = "without a value" if self.best is None else f"at {self.best:.4g}"
            return f"{self.monitor} stayed {best} for {self.waited} validations"
        return None
