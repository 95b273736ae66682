"""An exponential moving average of the weights, used for evaluation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from jtlightning.averaging import WeightAverage
from jtlightning.callbacks.base import Callback

if TYPE_CHECKING:
    from jtlightning.checkpoint.container import Checkpoint
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer


class EMA(Callback):
    """Average the weights over the steps, and evaluate with the average.

    After each step `average += (1 - d) * (weight - average)`, lazily, between the update and the
    step boundary. Averaged is what the optimizer updates and, unless `average_statistics` is off,
    the running means and variances of batch norm: an average of the weights goes with an average
    of their statistics. Anything else (frozen weights, constants) is the same in both. A layer
    that joins the optimizer later joins the average at the next epoch, from its value then.

    Validation, test and prediction run on the average; the task gets its own weights back
    afterwards, also after an error. A checkpoint holds the raw weights as `model/...` and the
    average as `callback/EMA/average/...`.

    Args:
        decay: `d`, close to 1: about the last 1 / (1 - d) steps count.
        warmup_steps: With a positive value `d = decay * (1 - exp(-step / warmup_steps))`, so that
            the average follows quickly at first.
        average_statistics: Off: evaluation uses the newest running statistics.
    """

    def __init__(
        self, decay: float = 0.999, *, warmup_steps: int = 0, average_statistics: bool = True
    ) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"EMA.decay must be at least 0 and below 1, got {decay}")
        if warmup_steps < 0:
            raise ValueError(f"EMA.warmup_steps must be 0 or more, got {warmup_steps}")
        self.decay, self.warmup_steps = decay, warmup_steps
        self.average_statistics = average_statistics
        self.updates = 0
        self.average = WeightAverage("EMA", statistics=average_statistics)

    def current_decay(self) -> float:
        """The decay of the newest update."""
        if not self.warmup_steps:
            return self.decay
        return self.decay * (1.0 - math.exp(-self.updates / self.warmup_steps))

    def on_fit_start(self, trainer: Trainer, task: Task) -> None:
        self.average.follow(task, trainer.optimizers)

    def on_train_epoch_start(self, trainer: Trainer, task: Task) -> None:
        self.average.follow(task, trainer.optimizers)

    def on_after_optimizer_step(self, trainer: Trainer, task: Task, optimizer: Any) -> None:
        number = next(i for i, known in enumerate(trainer.optimizers) if known is optimizer)
        if number == 0:
            self.updates += 1
        self.average.move(1.0 - self.current_decay(), number)

    def on_validation_start(self, trainer: Trainer, task: Task) -> None:
        self.average.swap_in(task)

    def on_validation_end(self, trainer: Trainer, task: Task) -> None:
        self.average.swap_out()

    def on_test_start(self, trainer: Trainer, task: Task) -> None:
        self.average.swap_in(task)

    def on_test_end(self, trainer: Trainer, task: Task) -> None:
        self.average.swap_out()

    def on_predict_start(self, trainer: Trainer, task: Task) -> None:
        self.average.swap_in(task)

    def on_predict_end(self, trainer: Trainer, task: Task) -> None:
        self.average.swap_out()

    def on_exception(self, trainer: Trainer, task: Task, exception: BaseException) -> None:
        self.average.swap_out()

    def teardown(self, trainer: Trainer, task: Task, stage: str) -> None:
        self.average.release()

    def on_save_checkpoint(self, trainer: Trainer, task: Task, checkpoint: Checkpoint) -> None:
        if self.average.swapped:  # saved from within an evaluation
            for name, array in self.average.raw_arrays().items():
                checkpoint.tensors[f"model/{name}"] = array

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "average": self.average.average_arrays()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        self.average.load(state["average"])
