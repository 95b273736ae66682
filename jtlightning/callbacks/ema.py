"""An exponential moving average of the weights, used for evaluation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jittor as jt

from jtlightning.callbacks.base import Callback

if TYPE_CHECKING:
    from jtlightning.checkpoint.container import Checkpoint
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer

_STATISTICS = ("running_mean", "running_var")


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
        self._average: dict[str, jt.Var] = {}
        self._weights: list[tuple[str, jt.Var]] = []  # the task's Vars of the same names
        self._grad_flags: list[bool] | None = None  # of the task's Vars while they are swapped out

    @property
    def swapped(self) -> bool:
        """Whether the task holds the average at the moment."""
        return self._grad_flags is not None

    def current_decay(self) -> float:
        """The decay of the newest update."""
        if not self.warmup_steps:
            return self.decay
        return self.decay * (1.0 - math.exp(-self.updates / self.warmup_steps))

    def on_fit_start(self, trainer: Trainer, task: Task) -> None:
        self._follow(trainer, task)

    def on_train_epoch_start(self, trainer: Trainer, task: Task) -> None:
        self._follow(trainer, task)

    def on_after_optimizer_step(self, trainer: Trainer, task: Task, optimizer: Any) -> None:
        self.updates += 1
        share = 1.0 - self.current_decay()
        with jt.no_grad():
            for name, weight in self._weights:
                average = self._average[name]
                # In this form a weight that does not change stays exactly what it is.
                self._average[name] = (average + (weight - average) * share).stop_grad()

    def on_validation_start(self, trainer: Trainer, task: Task) -> None:
        self._swap_in(task)

    def on_validation_end(self, trainer: Trainer, task: Task) -> None:
        self._swap_out()

    def on_test_start(self, trainer: Trainer, task: Task) -> None:
        self._swap_in(task)

    def on_test_end(self, trainer: Trainer, task: Task) -> None:
        self._swap_out()

    def on_predict_start(self, trainer: Trainer, task: Task) -> None:
        self._swap_in(task)

    def on_predict_end(self, trainer: Trainer, task: Task) -> None:
        self._swap_out()

    def on_exception(self, trainer: Trainer, task: Task, exception: BaseException) -> None:
        self._swap_out()

    def teardown(self, trainer: Trainer, task: Task, stage: str) -> None:
        self._swap_out()

    def on_save_checkpoint(self, trainer: Trainer, task: Task, checkpoint: Checkpoint) -> None:
        if (
            self.swapped
        ):  # saved from within an evaluation: `model/` is the raw weights all the same
            for name, _ in self._weights:
                checkpoint.tensors[f"model/{name}"] = self._average[name].numpy()

    def state_dict(self) -> dict[str, Any]:
        average = dict(self._weights) if self.swapped else self._average
        arrays = jt.fetch_sync(list(average.values())) if average else []
        return {"updates": self.updates, "average": dict(zip(average, arrays, strict=True))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        self._average = {
            name: jt.array(array).stop_grad() for name, array in state["average"].items()
        }

    def _follow(self, trainer: Trainer, task: Task) -> None:
        """Pair the averages with the task's Vars; new ones start at their present value."""
        groups = [] if trainer.optimizer is None else trainer.optimizer.param_groups
        trained = {id(parameter) for group in groups for parameter in group["params"]}
        self._weights = []
        for name, weight in task.named_parameters():
            if id(weight) not in trained and not self._is_statistic(name):
                continue
            if weight.dtype != "float32":
                raise ValueError(f"EMA averages float32 weights, but {name} is {weight.dtype}")
            if name not in self._average:
                self._average[name] = jt.array(weight.numpy()).stop_grad()
            self._weights.append((name, weight))
        self._check(dict(self._weights))

    def _is_statistic(self, name: str) -> bool:
        return self.average_statistics and name.rsplit(".", 1)[-1] in _STATISTICS

    def _check(self, weights: dict[str, jt.Var]) -> None:
        """Refuse averages that have no counterpart of their shape in the task."""
        wrong = [
            name
            for name, average in self._average.items()
            if name not in weights or tuple(weights[name].shape) != tuple(average.shape)
        ]
        if wrong:
            raise ValueError(
                f"the EMA state of the checkpoint does not fit this task: {', '.join(wrong[:5])}"
                f"{' and others' if len(wrong) > 5 else ''}; train the same parameters, or remove "
                "EMA from the callbacks"
            )

    def _swap_in(self, task: Task) -> None:
        if self.swapped or not self._average:
            return
        if not self._weights:  # validate, test and predict: there is a checkpoint but no optimizer
            named = dict(task.named_parameters())
            self._check(named)
            self._weights = [(name, named[name]) for name in self._average]
        self._grad_flags = [bool(weight.requires_grad) for _, weight in self._weights]
        for name, weight in self._weights:
            weight.swap(self._average[name])

    def _swap_out(self) -> None:
        if self._grad_flags is None:
            return
        for (name, weight), before in zip(self._weights, self._grad_flags, strict=True):
            # A trainer may switch gradients off before the swap or on again before its end: the
            # flags belong to what is swapped, so they are put right here whatever the order.
            wanted = before or bool(weight.requires_grad)
            weight.swap(self._average[name])
            weight.requires_grad = wanted
            self._average[name].stop_grad()
        self._grad_flags = None
