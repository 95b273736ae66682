"""Find a learning rate by a short trial with rising rates."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jtlightning.callbacks.base import Callback
from jtlightning.checkpoint.atomic import atomic_file

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer

_log = logging.getLogger(__name__)
_SMOOTHING = 0.98  # of the loss, as in the tests of fast.ai and Lightning
_SKIPPED = 10  # first and last steps in which the smoothed loss says little
_SKIPPED_END = 1


class LearningRateFinder(Callback):
    """Suggest a learning rate by the range test (Smith, 2017), and train with it.

    Before training, a trial of some steps raises the rate from `min_lr` to `max_lr`; afterwards
    the run is what it was before, bit for bit. The suggestion is the rate at which the smoothed
    loss falls most steeply, against the logarithm of the rate. It becomes the rate of the first
    parameter group, other groups keep their ratio to it, and the schedule's factor applies to it.
    The curve goes to `lr_find.csv` in the run's folder: `lr`, `loss`, `smoothed_loss`.

    A resumed run trains with the rate that was found and makes no new trial; nor does one with
    `fast_dev_run`.

    Args:
        min_lr: Rate of the first step.
        max_lr: Rate of the last step.
        num_training_steps: Steps of the trial.
        mode: Whether the rate is multiplied (`exponential`) or raised (`linear`) step by step.
        early_stop_threshold: The curve ends where the smoothed loss is above so many times its
            smallest value; None to use all of it.
        set_rate: Train with the suggestion; otherwise only report it.
    """

    def __init__(
        self,
        min_lr: float = 1e-8,
        max_lr: float = 1.0,
        num_training_steps: int = 100,
        mode: Literal["exponential", "linear"] = "exponential",
        early_stop_threshold: float | None = 4.0,
        *,
        set_rate: bool = True,
    ) -> None:
        if not 0 < min_lr < max_lr:
            raise ValueError(
                f"LearningRateFinder needs 0 < min_lr < max_lr, got {min_lr} and {max_lr}"
            )
        least = _SKIPPED + _SKIPPED_END + 2
        if num_training_steps < least:
            raise ValueError(
                f"LearningRateFinder.num_training_steps must be {least} or more, "
                f"got {num_training_steps}"
            )
        if mode not in ("exponential", "linear"):
            raise ValueError(f"LearningRateFinder.mode must be exponential or linear, got {mode!r}")
        if early_stop_threshold is not None and early_stop_threshold <= 1:
            raise ValueError(
                f"LearningRateFinder.early_stop_threshold must be above 1, "
                f"got {early_stop_threshold}"
            )
        self.min_lr, self.max_lr, self.mode = min_lr, max_lr, mode
        self.num_training_steps = num_training_steps
        self.early_stop_threshold, self.set_rate = early_stop_threshold, set_rate
        self.suggestion: float | None = None
        self.rates: list[float] = []  # the curve: rate, loss and smoothed loss of each step
        self.losses: list[float] = []
        self.smoothed: list[float] = []

    def on_fit_start(self, trainer: Trainer, task: Task) -> None:
        if trainer.fast_dev_run:
            return
        if self.suggestion is None and trainer.global_step == 0:
            self._search(trainer)
        if self.suggestion is not None and self.set_rate:
            trainer.set_learning_rate(self.suggestion)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.suggestion is None else {"suggestion": self.suggestion}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.suggestion = state["suggestion"]

    def _search(self, trainer: Trainer) -> None:
        losses = trainer.trial(self.num_training_steps, learning_rate=self._rate)
        self.losses, self.smoothed = losses, _smooth(losses)
        self.rates = [self._rate(step) for step in range(len(losses))]
        self._write(trainer)
        self.suggestion = self._suggest()
        if self.suggestion is not None:
            _log.info("suggested learning rate: %.3g", self.suggestion)
            return
        message = (
            f"LearningRateFinder: in {len(losses)} steps from {self.min_lr:g} to {self.max_lr:g} "
            f"the loss nowhere falls (first {losses[0]:.4g}, smallest {np.nanmin(losses):.4g}); "
            "try other limits or more steps, or choose a rate yourself and remove the finder"
        )
        if self.set_rate:
            raise RuntimeError(message)
        _log.warning("%s", message)

    def _rate(self, step: int) -> float:
        done = step / (self.num_training_steps - 1)
        if self.mode == "linear":
            return self.min_lr + (self.max_lr - self.min_lr) * done
        return float(self.min_lr * (self.max_lr / self.min_lr) ** done)

    def _suggest(self) -> float | None:
        """The rate of the steepest descent, or None where the loss never falls."""
        end = _usable(self.smoothed, self.early_stop_threshold) - _SKIPPED_END
        losses, rates = self.smoothed[_SKIPPED:end], self.rates[_SKIPPED:end]
        if len(losses) < 2:
            return None
        slopes = np.gradient(losses, np.log(rates))
        steepest = int(slopes.argmin())
        return rates[steepest] if slopes[steepest] < 0 else None

    def _write(self, trainer: Trainer) -> None:
        if trainer.run is None:
            return
        rows = zip(self.rates, self.losses, self.smoothed, strict=True)
        lines = ["lr,loss,smoothed_loss", *(",".join(map(repr, row)) for row in rows)]
        with atomic_file(trainer.run.path / "lr_find.csv") as write:
            write(("\n".join(lines) + "\n").encode())


def _smooth(losses: list[float]) -> list[float]:
    """The exponential average of the losses so far, without its bias towards 0."""
    smoothed, average = [], 0.0
    for step, loss in enumerate(losses):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smoothed.append(average / (1 - _SMOOTHING ** (step + 1)))
    return smoothed


def _usable(smoothed: list[float], threshold: float | None) -> int:
    """How many steps come before the loss explodes."""
    best = math.inf
    for step, value in enumerate(smoothed):
        best = min(best, value)
        # Written so that NaN counts as an explosion; without a threshold it is the last step,
        # which is left out anyway.
        if threshold is not None and not value <= threshold * best:
            return step
    return len(smoothed)
