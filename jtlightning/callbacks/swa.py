"""Stochastic weight averaging: the equal average of the weights of a run's last epochs."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import jittor as jt

from jtlightning.averaging import WeightAverage
from jtlightning.callbacks.base import Callback
from jtlightning.data.batch import batch_size_of, map_arrays
from jtlightning.metrics import MetricLog
from jtlightning.seed import reseed

if TYPE_CHECKING:
    from jtlightning.checkpoint.container import Checkpoint
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer

_log = logging.getLogger(__name__)


class StochasticWeightAveraging(Callback):
    """Average the weights of the last epochs at a high learning rate (Izmailov et al., 2018).

    From the given epoch on the learning rate goes from the schedule's to `swa_lrs` and stays
    there, and the weights at the end of each epoch enter an average in which all count the same.
    The statistics of batch norm are then computed anew for the average, over the batches of the
    epoch just done (`training_step` without gradients, nothing logged); this costs one forward
    pass of the training data per averaged epoch.

    From then on validations, tests and predictions run on the average, as with `EMA`, so the last
    validation measures what is kept. The weights that are trained stay as they are: a checkpoint
    holds them as `model/...` and the average as `callback/StochasticWeightAveraging/average/...`.
    At the end of the run the average is saved as the weights of a file of their own,
    `checkpoints/swa.ckpt` (without optimizer: for validation, test, prediction and export).

    Args:
        swa_lrs: Learning rate of the averaged epochs: one for all parameter groups, or a list.
        swa_epoch_start: First averaged epoch, counted from 1 as in Lightning, or the fraction of
            `max_epochs` after which it comes.
        annealing_epochs: Epochs from the schedule's rate to `swa_lrs`; 0 to jump.
        annealing_strategy: `cos` or `linear`.
        statistics_batches: Batches for the statistics; by default as many as an epoch has.
        filename: Name of the file of the average, without its suffix.
    """

    def __init__(
        self,
        swa_lrs: float | list[float],
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: Literal["cos", "linear"] = "cos",
        *,
        statistics_batches: int | None = None,
        filename: str = "swa",
    ) -> None:
        _check(swa_lrs, swa_epoch_start, annealing_epochs, annealing_strategy, statistics_batches)
        self.swa_lrs, self.swa_epoch_start = swa_lrs, swa_epoch_start
        self.annealing_epochs, self.annealing_strategy = annealing_epochs, annealing_strategy
        self.statistics_batches, self.filename = statistics_batches, filename
        self.average = WeightAverage("StochasticWeightAveraging")
        self.count = 0  # epochs in the average
        self._first_step: int | None = None  # of the averaged epochs
        self._first_rates: list[float] = []  # the schedule's rates at that step
        self._start_epoch = 0
        self._statistics_due = self._exporting = False

    def setup(self, trainer: Trainer, task: Task, stage: str) -> None:
        if stage != "fit":
            return
        rivals = [
            type(callback).__name__
            for callback in trainer.callbacks
            if callback is not self
            and isinstance(getattr(callback, "average", None), WeightAverage)
        ]
        if rivals:
            raise ValueError(
                f"StochasticWeightAveraging and {rivals[0]} would both evaluate with their average "
                "of the weights; remove one of them"
            )
        start = self.swa_epoch_start
        if isinstance(start, float):
            if trainer.max_epochs is None:
                raise ValueError(
                    f"StochasticWeightAveraging.swa_epoch_start is {start}, a fraction of "
                    "max_epochs, which is not set; give the number of an epoch"
                )
            start = int(start * trainer.max_epochs)
        self._start_epoch = max(start - 1, 0)

    def on_fit_start(self, trainer: Trainer, task: Task) -> None:
        groups = [len(optimizer.param_groups) for optimizer in trainer.optimizers]
        if len(groups) != 1:
            raise ValueError(
                f"StochasticWeightAveraging works with one optimizer, the task has {len(groups)}"
            )
        if not task.automatic_optimization:
            raise ValueError(
                "StochasticWeightAveraging needs automatic optimisation: it runs training_step "
                "for the statistics alone"
            )
        if isinstance(self.swa_lrs, list) and len(self.swa_lrs) != groups[0]:
            raise ValueError(
                f"StochasticWeightAveraging.swa_lrs has {len(self.swa_lrs)} rates, the optimizer "
                f"{groups[0]} parameter groups ({', '.join(trainer.learning_rates())})"
            )
        if self.count:
            self.average.follow(task, trainer.optimizers)

    def on_train_start(self, trainer: Trainer, task: Task) -> None:
        if self._statistics_due:  # an error came in between
            self._compute_statistics(trainer, task)

    def on_before_optimizer_step(self, trainer: Trainer, task: Task, optimizer: Any) -> None:
        if trainer.current_epoch < self._start_epoch:
            return
        groups, step = optimizer.param_groups, trainer.global_step
        if self._first_step is None:
            self._first_step = step
            self._first_rates = [float(group.get("lr", optimizer.lr)) for group in groups]
        goals = self.swa_lrs if isinstance(self.swa_lrs, list) else [self.swa_lrs] * len(groups)
        done = self._annealed(step - self._first_step, trainer.steps_per_epoch)
        for group, first, goal in zip(groups, self._first_rates, goals, strict=True):
            group["lr"] = first + (goal - first) * done

    def on_train_batch_end(
        self, trainer: Trainer, task: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Before the validation at the end of the epoch, which is to measure the new average.
        epoch_done = trainer.batch_idx >= trainer.num_training_batches
        if not epoch_done or trainer.current_epoch < self._start_epoch:
            return
        self.average.follow(task, trainer.optimizers)  # the first time it takes the weights over
        self.average.move(1.0 / (self.count + 1))
        self.count += 1
        self._statistics_due = True
        jt.sync_all()
        self._compute_statistics(trainer, task)

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

    def on_train_end(self, trainer: Trainer, task: Task) -> None:
        if trainer.interrupted:
            return  # the resumed run goes on averaging
        if not self.count:
            _log.warning(
                "no epoch was averaged: training ended in epoch %d, swa_epoch_start is epoch %d",
                trainer.current_epoch + 1,
                self._start_epoch + 1,
            )
        elif trainer.enable_checkpointing and trainer.run is not None:
            path = trainer.run.checkpoints / f"{self.filename}.ckpt"
            self._exporting = True
            try:
                trainer.save_checkpoint(path, weights_only=True)
            finally:
                self._exporting = False
            _log.info("the average of %d epochs is in %s", self.count, path)

    def on_save_checkpoint(self, trainer: Trainer, task: Task, checkpoint: Checkpoint) -> None:
        if self._exporting:
            arrays = self.average.average_arrays()
        elif self.average.swapped:  # saved from within an evaluation
            arrays = self.average.raw_arrays()
        else:
            return
        checkpoint.tensors.update({f"model/{name}": array for name, array in arrays.items()})

    def on_exception(self, trainer: Trainer, task: Task, exception: BaseException) -> None:
        self.average.swap_out()

    def teardown(self, trainer: Trainer, task: Task, stage: str) -> None:
        self.average.release()

    def state_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "first_step": self._first_step,
            "first_rates": list(self._first_rates),
            "statistics_due": self._statistics_due,
            "average": self.average.average_arrays(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self._first_step = state["count"], state["first_step"]
        self._first_rates = list(state["first_rates"])
        self._statistics_due = state["statistics_due"]
        self.average.load(state.get("average", {}))

    def _annealed(self, steps: int, steps_per_epoch: int) -> float:
        """How far the rate is from the schedule's (0) to `swa_lrs` (1)."""
        span = self.annealing_epochs * steps_per_epoch
        done = min(steps / span, 1.0) if span else 1.0
        return done if self.annealing_strategy == "linear" else (1 - math.cos(math.pi * done)) / 2

    def _compute_statistics(self, trainer: Trainer, task: Task) -> None:
        """Give the average its own statistics of batch norm: their mean over training batches."""
        norms = [m for m in task.modules() if hasattr(m, "running_mean") and m.is_training()]
        self.average.swap_in(task)
        with _restored(trainer, norms), jt.no_grad():
            for norm in norms:  # from 0, as a difference to what was there would be rounded
                norm.running_mean.update(jt.zeros_like(norm.running_mean))
                norm.running_var.update(jt.zeros_like(norm.running_var))
            samples = 0
            for index, batch in enumerate(self._batches(trainer) if norms else ()):
                reseed(trainer.seed, "swa", trainer.current_epoch, index)
                size = batch_size_of(batch)
                samples += size
                for norm in norms:
                    norm.momentum = size / samples  # 1 at first: what was there before is gone
                task.training_step(map_arrays(jt.array, batch), index)
                jt.sync_all()
                trainer.metrics.clear()
        self.average.swap_out()
        self._statistics_due = False

    def _batches(self, trainer: Trainer) -> Iterator[Any]:
        source = trainer.train_source
        limit = trainer.num_training_batches
        if self.statistics_batches is not None:
            limit = min(limit, self.statistics_batches)
        batches = source.batches(trainer.current_epoch, 0, seed=trainer.seed)
        try:
            for _, batch in zip(range(limit), batches, strict=False):
                yield batch
        finally:
            if hasattr(batches, "close"):
                batches.close()


@contextmanager
def _restored(trainer: Trainer, norms: list[Any]) -> Iterator[None]:
    """Put back the momenta of batch norms, and let nothing that is logged be seen."""
    momenta, metrics = [norm.momentum for norm in norms], trainer.metrics
    trainer.metrics = MetricLog()
    try:
        yield
    finally:
        trainer.metrics = metrics
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _check(
    swa_lrs: float | list[float],
    start: int | float,
    annealing_epochs: int,
    strategy: str,
    batches: int | None,
) -> None:
    rates = swa_lrs if isinstance(swa_lrs, list) else [swa_lrs]
    if not rates or any(rate <= 0 for rate in rates):
        raise ValueError(f"StochasticWeightAveraging.swa_lrs must be above 0, got {swa_lrs}")
    fits = 0.0 <= start <= 1.0 if isinstance(start, float) else start >= 1
    if not fits:
        raise ValueError(
            "StochasticWeightAveraging.swa_epoch_start must be an epoch (int, from 1) or a "
            f"fraction of max_epochs (float, 0 to 1), got {start!r}"
        )
    if annealing_epochs < 0:
        raise ValueError(
            f"StochasticWeightAveraging.annealing_epochs must be 0 or more, got {annealing_epochs}"
        )
    if strategy not in ("cos", "linear"):
        raise ValueError(
            f"StochasticWeightAveraging.annealing_strategy must be cos or linear, got {strategy!r}"
        )
    if batches is not None and batches < 1:
        raise ValueError(
            f"StochasticWeightAveraging.statistics_batches must be 1 or more, got {batches}"
        )
