"""A few training steps that leave no trace, for callbacks that look for good settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import jittor as jt

from jtlightning.metrics import MetricLog
from jtlightning.state import RunState
from jtlightning.trainer.hooks import Hooks
from jtlightning.trainer.step import NonFiniteGradientError, NonFiniteLossError, Stepper, loss_of

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer.loaders import BatchSource
    from jtlightning.trainer.trainer import Trainer


def run_trial(
    trainer: Trainer,
    task: Task,
    source: BatchSource,
    steps: int,
    learning_rate: Callable[[int], float] | None,
) -> list[float]:
    """See `Trainer.trial`.

    Raises:
        ValueError: The task optimises manually, so that its steps have no one loss.
    """
    if not task.automatic_optimization:
        raise ValueError("a trial needs a task with automatic optimisation")
    losses: list[float] = []
    with _undone(trainer, task):
        for driver in trainer.drivers:
            driver.forced_rate = learning_rate
        stepper = Stepper(trainer, task, Hooks(trainer))
        trainer.stepper = stepper
        batches = _endless(source, trainer.seed)
        try:
            while len(losses) < steps:
                losses.append(_step(stepper, batches))
                if not math.isfinite(losses[-1]):
                    break
        finally:
            batches.close()
    return losses


def _step(stepper: Stepper, batches: Iterator[object]) -> float:
    """One optimizer step; its mean loss, NaN where loss or gradients are not finite."""
    trainer = stepper.trainer
    values: list[jt.Var] = []
    trainer.state.batch_in_epoch = 0  # every window is a full one
    while not values or stepper.window_done:
        batch = next(batches)
        trainer.enter_batch(batch, trainer.state.batch_in_epoch)
        try:
            _, outputs = stepper.run(batch, trainer.state.batch_in_epoch)
        except (NonFiniteLossError, NonFiniteGradientError):
            return math.nan
        values.append(loss_of(outputs, stepper.task))
    trainer.metrics.clear()
    return sum(value.item() for value in values) / len(values)


def _endless(source: BatchSource, seed: int) -> Generator[object, None, None]:
    for epoch in itertools.count():
        batches = source.batches(epoch, 0, seed=seed)
        try:
            yield from batches
        finally:
            if hasattr(batches, "close"):
                batches.close()


@contextmanager
def _undone(trainer: Trainer, task: Task) -> Iterator[None]:
    """Put back everything that training changes: Vars, counters, metrics, rates."""
    jt.sync_all()
    moments = [var for driver in trainer.drivers for var in driver.moments().values()]
    # Second holders of the same Vars: an update gives the first ones new Vars.
    kept = [(var, jt.Var(0.0)) for var in [*task.parameters(), *moments]]
    for var, holder in kept:
        holder.assign(var)
    names = ("state", "metrics", "samples_seen", "data_wait_s", "batch_size")
    before = {name: getattr(trainer, name) for name in names}
    updates = [driver.updates for driver in trainer.drivers]
    trainer.state, trainer.metrics = RunState(), MetricLog()
    try:
        yield
    finally:
        for var, holder in kept:
            var.assign(holder)
        for driver, count in zip(trainer.drivers, updates, strict=True):
            driver.updates, driver.forced_rate = count, None
            driver.optimizer.zero_grad()
        for name, value in before.items():
            setattr(trainer, name, value)
        trainer.in_training_step, trainer.at_step_boundary = False, True
        jt.sync_all()
