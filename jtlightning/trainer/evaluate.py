"""Validation, test and prediction: one pass over a loader without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jittor as jt

from jtlightning.seed import reseed
from jtlightning.trainer.device import to_device

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer.loaders import BatchSource
    from jtlightning.trainer.trainer import Trainer

#: Batches between two fetches of logged values, so that held values stay bounded.
FETCH_EVERY = 50


@contextmanager
def evaluation_mode(task: Task) -> Iterator[None]:
    """Put every module in evaluation mode, and each back into the mode that it was in.

    Jittor's own `eval()` and `train()` also change gradient flags and unfreeze layers that were
    frozen in between; here nothing but the mode is touched.
    """
    modes = [(module, module.is_training()) for module in task.modules()]
    for module, _ in modes:
        module.is_train = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.is_train = mode


def enter_training_mode(task: Task) -> None:
    """Put every module in training mode; Jittor builds its dropout in evaluation mode."""
    for module in task.modules():
        module.is_train = True


def evaluate(
    trainer: Trainer,
    task: Task,
    source: BatchSource,
    stage: str,
    limit: int,
    *,
    collect: bool = False,
) -> list[Any]:
    """Run `stage` (validation, test or predict) over at most `limit` batches.

    Several processes share them; each sees the numbers that its batches have for all.

    Returns the outputs of the steps where `collect` asks for them, else an empty list.
    """
    hooks = trainer.hooks
    step = getattr(task, f"{stage}_step")
    outputs = []
    trainer.evaluating = stage
    place = f"{type(task).__name__}.{stage}_step"
    hooks.call(f"on_{stage}_start")
    with evaluation_mode(task), jt.no_grad():
        hooks.call(f"on_{stage}_epoch_start")
        batches = source.batches(0, 0, seed=trainer.seed)
        for index in range(trainer.global_rank, limit, trainer.world_size):
            with trainer.observe(f"{stage}_next_batch"):
                batch = next(batches, None)
            if batch is None:
                break
            if index == trainer.global_rank:
                trainer.arm_signals()
            # The same randomness at every validation, whatever training did before.
            reseed(trainer.seed, stage, index)
            trainer.enter_batch(batch, index)
            with trainer.observe("to_device"):
                batch = to_device(batch)
            hooks.call(f"on_{stage}_batch_start", batch, index)
            with trainer.observe(place):
                output = step(batch, index)
            hooks.call(f"on_{stage}_batch_end", output, batch, index)
            with trainer.observe("synchronize"):
                jt.sync_all()
            trainer.metrics.detach()
            if collect:
                outputs.append(output)
            if (index // trainer.world_size + 1) % FETCH_EVERY == 0:
                trainer.metrics.fetch()
        if hasattr(batches, "close"):
            batches.close()
        trainer.batch_position = None
        hooks.call(f"on_{stage}_epoch_end")
        means = trainer.metrics.finish_epoch(stage)
    trainer.evaluating = None
    trainer.log_metrics(means)
    hooks.call(f"on_{stage}_end")
    trainer.flush_logs()
    return outputs
